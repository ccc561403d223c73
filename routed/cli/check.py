"""The command `check`: what is wrong with routed.yaml or with resources, told without a daemon, all of it at once.

The files are read by what the daemon reads them with, and planned with what it plans with, so what is accepted here is
accepted there. The engine's modules are loaded when the command runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import yaml

from routed.cli.command import DEFAULT_CONFIG, Commands, ExitStatus, Row, show_one
from routed.cli.tables import table, terminal_width
from routed.config import MAX_SIZE, Config, check_config, pod_cidrs
from routed.errors import ConfigError
from routed.observe.logs import harmless

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
    if not os.path.exists(path):
        raise ConfigError(path, "there is no such file or folder")
    if os.path.isdir(path) or _holds_resources(path):
        resources, errors = _resources(path)
    else:
        config, errors = _config(path)
        if os.path.isdir(config.datastore_path):
            node = node or config.node_name
            resources, wrong = _resources(config.datastore_path)
            errors += wrong
        elif config.datastore_path:
            errors.append(f"{path}{_line_of_folder(path)}: datastore.path: there is no folder {config.datastore_path}")
    answer: Row = {"path": path, "errors": errors, "resources": len(resources), "plan": None, "warnings": []}
    if node is not None:
        answer["plan"], answer["warnings"] = _plan(node, resources, config)
    else:  # what any of the nodes would complain about
        nodes = [each.key.name for each in resources if each.key.kind == "Node"][:MAX_NODES]
        answer["warnings"] = sorted({text for each in nodes for text in _plan(each, resources, None)[1]})
    show_one(arguments, answer, report)
    return ExitStatus.CONFIG if errors else ExitStatus.OK


def _holds_resources(path: str) -> bool:
    """Whether a file is one of resources: a document of it says `kind:`."""
    from routed.datastore.documents import read_documents  # noqa: PLC0415 - see the module's docstring

    return any(isinstance(each.value, dict) and "kind" in each.value for each in read_documents(_read(path)))


def _read(path: str) -> bytes:
    try:
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


def _line_of_folder(path: str) -> str:
    """`:LINE` where a routed.yaml that can be read names its datastore's folder."""
    node = yaml.compose(_read(path), yaml.SafeLoader)
    for name in ("datastore", "path"):
        node = next((value for key, value in node.value if key.value == name), None) if node is not None else None
    return f":{node.start_mark.line + 1}" if node is not None else ""


def _resources(path: str) -> tuple[list[Any], list[str]]:
    """The resources of a folder or file that can be read, and what is wrong with the others."""
    from routed.datastore.documents import read_documents  # noqa: PLC0415
    from routed.datastore.folder import SUFFIXES, manifests_of  # noqa: PLC0415

    names = [path]
    if os.path.isdir(path):
        names = [
            os.path.join(path, name)
            for name in sorted(os.listdir(path))
            if name.endswith(SUFFIXES) and not name.startswith(".")
        ]
    found: dict[Any, Any] = {}
    where: dict[Any, str] = {}
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
                line = document.line_of(at) if at else document.line
                if resource.key in found:
                    wrong.append((line, f"{resource.key} is already in {where[resource.key]}; this one has no effect"))
                else:
                    found[resource.key], where[resource.key] = resource, f"{name}:{line}"
        errors += [f"{name}:{line}: {text}" for line, text in sorted(wrong)]
    return list(found.values()), errors


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


def _plan(node: str, resources: list[Any], config: Config | None) -> tuple[Row, list[str]]:
    """What a node would do with these resources, and what they ask for that it would not."""
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
        )
    planner = Planner(node, settings)
    for resource in resources:
        planner.update(Update(resource.key, resource))
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
    return row, list(plan.problems)


def report(answer: Row) -> Iterator[str]:
    """`routedctl check`."""
    for error in answer["errors"]:
        yield harmless(f"error: {error}")
    for warning in answer["warnings"]:
        yield harmless(f"warning: {warning}")
    plan = answer["plan"]
    if plan is not None:
        yield harmless(f"{plan['node']} would have AS {plan['as'] or '-'}, router id {plan['routerId'] or '-'},")
        yield f"{len(plan['sessions'])} sessions:"
        sessions = ((row["address"], row["as"], row["name"], row["why"]) for row in plan["sessions"])
        yield from table(("Neighbor", "AS", "Name", "Why"), sessions, right=frozenset({"AS"}), width=terminal_width())
        yield f"and announce {len(plan['origins'])} routes of its own:"
        origins = ((row["prefix"], row["kind"], row["why"]) for row in plan["origins"])
        yield from table(("Prefix", "Kind", "Why"), origins, width=terminal_width())
    count = len(answer["errors"])
    verdict = "no errors" if not count else f"{count} error{'' if count == 1 else 's'}"
    warned, read = len(answer["warnings"]), answer["resources"]
    yield harmless(
        f"{answer['path']}: {verdict}, {warned} warning{'' if warned == 1 else 's'}, "
        f"{read} resource{'' if read == 1 else 's'}"
    )
