"""The command `check`: what is wrong with routed.yaml or with resources, told without a daemon, all of it at once.

The files are read by what the daemon reads them with, and planned with what it plans with, so what is accepted here is
accepted there. The engine's modules are loaded when the command runs.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from routed.cli.command import DEFAULT_CONFIG, Commands, ExitStatus, Row, show_one
from routed.cli.tables import table, terminal_width
from routed.config import MAX_SIZE, Config, check_config, pod_cidrs
from routed.datastore.config_lines import place_of_key
from routed.errors import ConfigError
from routed.observe.logs import harmless

if TYPE_CHECKING:
    from routed.datastore.documents import Document

#: Errors looked for in one resource; each hides those behind it, so it is read again without the field.
MAX_ERRORS = 20

#: Nodes planned for where none is named.
MAX_NODES = 50


def add(commands: Commands) -> None:
    check = commands.add(
        "check",
        _check,
        "check routed.yaml or resource files without a daemon: every error with its line, warnings, and the plan",
        examples=[
            ("routedctl check", "/etc/routed/routed.yaml and the resources it names"),
            ("routedctl check /etc/routed/resources", "a folder of resources, or one file of them"),
            ("routedctl check /etc/routed/resources --node node-1", "and what that node would do"),
        ],
    )
    check.add_argument("path", nargs="?", metavar="FILE|DIR", help=f"default {DEFAULT_CONFIG} and what it names")
    check.add_argument("--node", metavar="NAME", help="plan for this node: warnings, sessions, blocks")


def _check(arguments: argparse.Namespace) -> int:
    path = arguments.path or getattr(arguments, "config", DEFAULT_CONFIG)
    errors: list[str] = []
    node, config = arguments.node, None
    resources: list[Any] = []
    places: dict[str, Place] = {}
    if not os.path.exists(path):
        raise ConfigError(path, "there is no such file or folder")
    if os.path.isdir(path) or _holds_resources(path):
        resources, places, errors = _resources(path)
    else:
        config, errors = _config(path)
        if os.path.isdir(config.datastore_path):
            node = node or config.node_name
            resources, places, wrong = _resources(config.datastore_path)
            errors += wrong
        elif config.datastore_path:
            place = place_of_key(path, "datastore.path")
            errors.append(f"{place}: datastore.path: there is no folder {config.datastore_path}")
        if config.kubeconfig:
            from routed.datastore.kubeconfig import load_kubeconfig  # noqa: PLC0415 - see the module's docstring

            try:
                load_kubeconfig(config.kubeconfig)
            except ConfigError as error:
                place = place_of_key(path, "kubernetes.kubeconfig")
                errors.append(f"{place}: kubernetes.kubeconfig: {error}")
    answer: Row = {"path": path, "errors": errors, "resources": len(resources), "plan": None}
    if node is not None:
        answer["plan"], warnings, notes = _plan(node, resources, config)
    else:  # what any of the nodes would say
        nodes = [each.key.name for each in resources if each.key.kind == "Node"][:MAX_NODES]
        plans = [_plan(each, resources, None) for each in nodes]
        warnings, notes = (sorted({text for each in plans for text in each[what]}) for what in (1, 2))
    answer["warnings"], answer["notes"] = ([_placed(text, places) for text in texts] for texts in (warnings, notes))
    show_one(arguments, answer, report)
    return ExitStatus.CONFIG if errors else ExitStatus.OK


Place = Callable[[str], str]
"""`FILE:LINE` of a field of a resource."""


def _placed(text: str, places: Mapping[str, Place]) -> str:
    """A warning behind the place of what it is about: it begins with the resource, and goes on with a field if with any."""
    match = re.match(r"(\S+ \S+?)(?:: (spec[^ :]*))?[: ]", text)
    place = places.get(match[1]) if match else None
    return text if place is None or match is None else f"{place(match[2] or '')}: {text}"


def _holds_resources(path: str) -> bool:
    """Whether a file is one of resources: a document of it says `kind:`."""
    from routed.datastore.documents import read_documents  # noqa: PLC0415 - see the module's docstring

    return any(isinstance(each.value, dict) and "kind" in each.value for each in read_documents(_read(path)))


def _read(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(path, "is no file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from None


def _config(path: str) -> tuple[Config, list[str]]:
    data = _read(path)
    if len(data) > MAX_SIZE:
        raise ConfigError(path, f"is larger than {MAX_SIZE} octets: this is no routed.yaml")
    config, found = check_config(data, path)
    return config, [str(error) for error in found]


def _resources(path: str) -> tuple[list[Any], dict[str, Place], list[str]]:
    """The resources of a folder or file that can be read, where each is, and what is wrong with the others."""
    from routed.datastore.documents import read_documents  # noqa: PLC0415
    from routed.datastore.folder import SUFFIXES, manifests_of  # noqa: PLC0415

    names = [path]
    if os.path.isdir(path):
        names = [
            os.path.join(path, name)
            for name in sorted(os.listdir(path))
            if name.endswith(SUFFIXES) and not name.startswith(".") and os.path.isfile(os.path.join(path, name))
        ]
    found: dict[Any, Any] = {}
    where: dict[str, Place] = {}
    errors: list[str] = []
    for name in names:
        data = _read(name)
        if not data.strip():
            errors.append(f"{name}: the file is empty")
        wrong: list[tuple[int, str]] = []
        for document in read_documents(data):
            if document.error:
                wrong.append((document.line, f"{document.field}: {document.error}".removeprefix(": ")))
                continue
            manifests, problem = manifests_of(document)
            if problem is not None:
                wrong.append((document.line_of(problem[0]), ": ".join(problem)))
            for at, manifest in manifests:
                resource, refused = _resource(manifest, at)
                wrong += [(document.line_of(error.path), f"{error.path}: {error.message}") for error in refused]
                if resource is None:
                    continue
                key = str(resource.key)
                if key in where:
                    line = document.line_of(at) if at else document.line
                    wrong.append((line, f"{key} is already in {where[key]('')}; this one has no effect"))
                else:
                    found[resource.key], where[key] = resource, partial(_place, name, document, at)
        errors += [f"{name}:{line}: {text}" for line, text in sorted(wrong)]
    return list(found.values()), where, errors


def _place(name: str, document: Document, at: str, field: str) -> str:
    inside = ".".join(each for each in (at, field) if each)
    return f"{name}:{document.line_of(inside) if inside else document.line}"


def _resource(manifest: Any, where: str) -> tuple[Any, list[ConfigError]]:
    """A resource, or everything that is wrong with it: after an error the field is left out and the rest read again."""
    from routed.model.schema import parse_manifest  # noqa: PLC0415

    errors: list[ConfigError] = []
    while len(errors) < MAX_ERRORS:
        try:
            resource = parse_manifest(manifest, where)
        except ConfigError as error:
            if any(before.path.startswith(error.path) for before in errors):  # misses what was taken away here
                break
            errors.append(error)
            manifest = _without(manifest, error.path.removeprefix(where).lstrip("."))
            if manifest is None:
                break
        else:
            return (None if errors else resource), errors
    return None, errors


def _without(value: Any, path: str) -> Any:
    """A copy of a manifest without one field, `spec.peers[2].name`; None where there is none such."""
    name, _, rest = path.partition(".")
    name, bracket, index = name.partition("[")
    if not isinstance(value, dict) or name not in value:
        return None
    inner = value[name]
    if bracket:
        number = index.partition("]")[0]
        if not isinstance(inner, list) or not number.isdigit() or int(number) >= len(inner):
            return None
        at = int(number)
        item = _without(inner[at], rest) if rest else None
        if rest and item is None:
            return None
        return {**value, name: [*inner[:at], *([item] if rest else []), *inner[at + 1 :]]}
    if not rest:
        return {key: each for key, each in value.items() if key != name}
    made = _without(inner, rest)
    return None if made is None else {**value, name: made}


def _plan(node: str, resources: list[Any], config: Config | None) -> tuple[Row, list[str], list[str]]:
    """What a node would do with these resources, what they ask for that it would not, and what else it would say."""
    from routed.datastore.secrets import SecretFolder  # noqa: PLC0415
    from routed.model.resources import Update  # noqa: PLC0415
    from routed.net.addresses import format_address, format_router_id  # noqa: PLC0415
    from routed.net.prefixes import format_prefix  # noqa: PLC0415
    from routed.plan.planner import Planner  # noqa: PLC0415
    from routed.plan.speaker import router_id_from_name  # noqa: PLC0415
    from routed.plan.types import PlanSettings  # noqa: PLC0415

    settings = PlanSettings()
    if config is not None:
        settings = PlanSettings(
            router_id=router_id_from_name(node) if config.router_id_from_name else config.router_id,
            calico_version=config.calico_version,
            pod_cidrs=pod_cidrs(config),
            interface_prefixes=config.interface_prefixes,
            own_workloads=config.cni.enabled,
        )
    planner = Planner(node, settings)
    for resource in resources:
        planner.update(Update(resource.key, resource))
    if config is not None:
        for news in SecretFolder(config.secrets_dir).look():
            planner.secret(news.reference, news.generation, news.problem)
    else:  # which passwords there are depends on the node's own configuration
        for reference in _passwords(resources):
            planner.secret(reference, 1, "")
    plan = planner.plan()
    speaker = plan.speaker
    row: Row = {
        "node": node,
        "as": None if speaker is None else speaker.local_as,
        "routerId": None if speaker is None else format_router_id(speaker.router_id),
        "sessions": [
            {
                "name": peer.name,
                "address": format_address(peer.session.address),
                "as": peer.session.peer_as,
                "passive": peer.session.passive,
                "why": peer.why,
                "held": peer.session.held or None,
                "importFilter": {family.label: each.name for family, each in peer.import_filter.items()},
                "exportFilter": {family.label: each.name for family, each in peer.export_filter.items()},
            }
            for peer in plan.peers.values()
        ],
        "origins": [
            {"prefix": format_prefix(family, prefix), "kind": origin.kind, "why": origin.why}
            for (family, prefix), origin in plan.origins.items()
        ],
    }
    return row, list(plan.problems), list(plan.notes)


def _passwords(resources: Iterable[Any]) -> Iterator[str]:
    for resource in resources:
        for name in ("password", "node_mesh_password"):
            ref = getattr(resource, name, None)
            if ref is not None:
                yield f"{ref.name}/{ref.key}"


def report(answer: Row) -> Iterator[str]:
    """`routedctl check`."""
    for error in answer["errors"]:
        yield harmless(f"error: {error}")
    for warning in answer["warnings"]:
        yield harmless(f"warning: {warning}")
    for note in answer["notes"]:
        yield harmless(f"note: {note}")
    plan = answer["plan"]
    if plan is not None:
        yield harmless(f"{plan['node']} would have AS {plan['as'] or '-'}, router id {plan['routerId'] or '-'},")
        held = sum(row["held"] is not None for row in plan["sessions"])
        yield f"{_counted(len(plan['sessions']) - held, 'session')}{f', and {held} that may not start' if held else ''}:"
        sessions = ((row["address"], row["as"], row["name"], _why(row)) for row in plan["sessions"])
        yield from table(("Neighbor", "AS", "Name", "Why"), sessions, right=frozenset({"AS"}), width=terminal_width())
        yield f"and announce {_counted(len(plan['origins']), 'route')} of its own:"
        origins = ((row["prefix"], row["kind"], row["why"]) for row in plan["origins"])
        yield from table(("Prefix", "Kind", "Why"), origins, width=terminal_width())
    errors, warnings = (_counted(len(answer[what]), what[:-1]) for what in ("errors", "warnings"))
    verdict = errors if answer["errors"] else "no errors"
    yield harmless(f"{answer['path']}: {verdict}, {warnings}, {_counted(answer['resources'], 'resource')}")


def _why(session: Row) -> str:
    return f"{session['why']}; {session['held']}" if session["held"] else str(session["why"])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
