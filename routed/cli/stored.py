"""What the commands about resources do: read the datastore that routed.yaml names, compare, write, show.

What a command decides (what is valid, what is a change) is `datastore.applying`'s business; here is what a person sees.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from routed.cli.command import ExitStatus, UsageError, configuration, emit
from routed.cli.tables import table
from routed.datastore.applying import (
    Form,
    Outcome,
    Reading,
    Wanted,
    apply,
    as_stored,
    check_beside,
    deletable,
    delete,
    in_order_of,
    kinds_beside,
    kinds_of,
    merged_with,
    read_manifests,
    same,
    selected,
    with_namespace,
)
from routed.datastore.editing import FolderStore, to_yaml
from routed.datastore.opening import open_store
from routed.datastore.store import Contents, Store, Stored
from routed.errors import ConfigError
from routed.model.resources import JsonObject, JsonValue, Resource, ResourceKey
from routed.model.schema import KIND_TABLE, KINDS, kind_named
from routed.observe.logs import harmless

T = TypeVar("T")

#: Of a kind, the heads of `get`'s columns after the name, and the field below each. Those after None are of `-o wide`.
_COLUMNS: dict[str, tuple[tuple[str, str] | None, ...]] = {
    "Node": (("asn", "spec.bgp.asNumber"), ("ipv4", "spec.bgp.ipv4Address"), ("ipv6", "spec.bgp.ipv6Address"), None,
             ("reflector cluster", "spec.bgp.routeReflectorClusterID"), ("labels", "metadata.labels")),
    "BGPPeer": (("peer", "spec.peerIP"), ("peer selector", "spec.peerSelector"), ("asn", "spec.asNumber"),
                ("node", "spec.node"), ("node selector", "spec.nodeSelector"), None, ("filters", "spec.filters")),
    "BGPConfiguration": (("asn", "spec.asNumber"), ("mesh", "spec.nodeToNodeMeshEnabled"), ("port", "spec.listenPort"),
                         None, ("log", "spec.logSeverityScreen")),
    "IPPool": (("cidr", "spec.cidr"), ("selector", "spec.nodeSelector"), ("disabled", "spec.disabled"), None,
               ("block", "spec.blockSize"), ("ipip", "spec.ipipMode"), ("vxlan", "spec.vxlanMode"),
               ("nat", "spec.natOutgoing")),
    "BlockAffinity": (("cidr", "spec.cidr"), ("node", "spec.node"), ("state", "spec.state"), None, ("type", "spec.type")),
    "IPAMBlock": (("cidr", "spec.cidr"), ("affinity", "spec.affinity")),
    "NetworkPolicy": (("tier", "spec.tier"), ("order", "spec.order"), ("selector", "spec.selector"), None,
                      ("types", "spec.types")),
    "GlobalNetworkPolicy": (("tier", "spec.tier"), ("order", "spec.order"), ("selector", "spec.selector"), None,
                            ("types", "spec.types")),
    "Tier": (("order", "spec.order"), ("default action", "spec.defaultAction")),
    "WorkloadEndpoint": (("node", "spec.node"), ("networks", "spec.ipNetworks"), ("interface", "spec.interfaceName"),
                         None, ("pod", "spec.pod"), ("profiles", "spec.profiles")),
    "HostEndpoint": (("node", "spec.node"), ("interface", "spec.interfaceName"), ("ips", "spec.expectedIPs"), None,
                     ("profiles", "spec.profiles")),
    "ClusterInformation": (("version", "spec.calicoVersion"), ("ready", "spec.datastoreReady"), None,
                           ("guid", "spec.clusterGUID")),
    "CalicoNodeStatus": (("node", "spec.node"), ("classes", "spec.classes"), ("updated", "status.lastUpdated")),
}  # fmt: skip


@contextlib.asynccontextmanager
async def _opened(arguments: argparse.Namespace) -> AsyncIterator[Store]:
    if "socket" in arguments:
        raise UsageError("resources are read and written in the datastore, without the daemon: use --config")
    path, config = configuration(arguments, "so the datastore is not known")
    if not config:
        raise ConfigError(
            path, "there is no such configuration file, so the datastore is not known; name one with --config"
        )
    store = open_store(path, config)
    try:
        yield store
    finally:
        await store.close()


def with_store(arguments: argparse.Namespace, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do something with the configured datastore."""

    async def run() -> T:
        async with _opened(arguments) as store:
            result = await work(store)
            if isinstance(store, FolderStore):
                complain(store.losses)
            return result

    return asyncio.run(run())


def complain(lines: Iterable[str]) -> None:
    """What a person should know beside the result."""
    for line in lines:
        sys.stderr.write(harmless(line) + "\n")


def _read(arguments: argparse.Namespace, store: Store, *, exact: bool = False) -> Reading:
    form = Form.OWN if not store.shared_with_calico else Form.BESIDE if exact else Form.CALICO
    return read_manifests(arguments.files, form)


def run_apply(arguments: argparse.Namespace) -> int:
    return with_store(arguments, lambda store: _applied(arguments, store, exact=False))


def run_import(arguments: argparse.Namespace) -> int:
    return with_store(arguments, lambda store: _applied(arguments, store, exact=True))


async def _applied(arguments: argparse.Namespace, store: Store, *, exact: bool) -> int:
    reading = _read(arguments, store, exact=exact)
    if reading.errors:
        complain(reading.errors)
        return ExitStatus.DATA
    contents = await store.read(kinds_of(reading.wanted))
    errors = [] if exact else check_beside(reading.wanted, contents)
    if errors:
        complain(errors)
        return ExitStatus.DATA
    wanted, said = _as_stored(reading, contents, store)
    complain(said)
    outcomes = await apply(store, wanted, contents, exact=exact, dry_run=arguments.dry_run)
    return _report(arguments, outcomes)


def _as_stored(reading: Reading, contents: Contents, store: Store) -> tuple[Sequence[Wanted], Sequence[str]]:
    """What is wanted by the names the store has, and all there is to say of it."""
    if not store.shared_with_calico:
        return reading.wanted, reading.said
    wanted, said = as_stored(reading.wanted, contents)
    return wanted, (*reading.said, *said)


def _report(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> int:
    """A line for each resource, and the exit status of all."""
    note = " (dry run)" if arguments.dry_run else ""
    if "json" in arguments:
        rows = [
            {
                "kind": one.key.kind,
                "namespace": one.key.namespace,
                "name": one.key.name,
                "result": one.result,
                "error": one.error,
            }
            for one in outcomes
        ]
        emit([json.dumps(rows, indent=2)])
    else:
        emit(harmless(f"{one.key}: {one.result}{note}") for one in outcomes if not one.error)
        complain(f"{one.key}: {one.error}" for one in outcomes if one.error)
    complain(f"{one.key}: {one.note}" for one in outcomes if one.note)
    if any(one.conflict for one in outcomes):
        return ExitStatus.CONFLICT
    return ExitStatus.ERROR if any(one.error for one in outcomes) else ExitStatus.OK


def run_delete(arguments: argparse.Namespace) -> int:
    return with_store(arguments, lambda store: _deleted(arguments, store))


async def _deleted(arguments: argparse.Namespace, store: Store) -> int:
    if bool(arguments.files) == bool(arguments.kinds):
        raise UsageError("say what to delete: KIND and NAME, or -f FILE")
    stay: list[Outcome] = []
    if arguments.files:
        reading = _read(arguments, store)
        if reading.errors:
            complain(reading.errors)
            return ExitStatus.DATA
        contents = await store.read(kinds_of(reading.wanted))
        wanted, _ = _as_stored(reading, contents, store)
        keys, stay = deletable(wanted, contents)
    else:
        if not arguments.names:
            raise UsageError("say which: a NAME after the kind")
        keys = [
            ResourceKey(kind, name, arguments.namespace if KIND_TABLE[kind].namespaced else "")
            for kind in _kinds(arguments.kinds)
            for name in arguments.names
        ]
    return _report(arguments, [*await delete(store, keys, dry_run=arguments.dry_run), *stay])


def _kinds(words: str) -> list[str]:
    if words == "all":
        return list(KINDS)
    try:
        return list(dict.fromkeys(kind_named(word).name for word in words.split(",")))
    except ValueError as error:
        raise UsageError(str(error)) from None


def run_get(arguments: argparse.Namespace) -> int:
    return with_store(arguments, lambda store: _got(arguments, store))


async def _got(arguments: argparse.Namespace, store: Store) -> int:
    kinds = _kinds(arguments.kinds)
    contents = await store.read(kinds_beside(kinds) if arguments.names else kinds)
    namespace = None if arguments.everywhere else arguments.namespace
    found, missing = selected(contents, kinds, arguments.names, namespace)
    output = arguments.output or ("json" if "json" in arguments else "table")
    if output == "name":
        emit(harmless(f"{one.resource.kind}/{one.resource.name}") for one in found)
    elif output in ("yaml", "json"):
        manifests: list[JsonValue] = [with_namespace(one.resource) for one in found]
        single = len(manifests) == 1 and len(arguments.names) == 1
        shown: JsonValue = manifests[0] if single else {"apiVersion": "v1", "kind": "List", "items": manifests}
        emit([to_yaml(shown).rstrip("\n") if output == "yaml" else json.dumps(shown, indent=2)])
    else:
        emit(_tables(found, named=len(kinds) > 1, wide=output == "wide", everywhere=arguments.everywhere))
    complain(contents.problems)
    complain(f"{' or '.join(kinds)} {name} is not there" for name in missing)
    # where all that was named is there, what else cannot be read is told and no failure
    incomplete = bool(contents.problems) and not arguments.names
    return ExitStatus.ERROR if missing or incomplete else ExitStatus.OK


def _tables(found: Sequence[Stored], *, named: bool, wide: bool, everywhere: bool) -> Iterator[str]:
    """A table for each kind there is one of, under its name where it was not the only one asked for."""
    kinds = list(dict.fromkeys(one.resource.kind for one in found))
    for kind in kinds:
        columns = _COLUMNS.get(kind, ())
        cut = columns.index(None) if None in columns else len(columns)
        shown = [column for column in (columns if wide else columns[:cut]) if column is not None]
        namespaced = KIND_TABLE[kind].namespaced and everywhere
        heads = [
            *(["namespace"] if namespaced else []),
            "name",
            *(head for head, _ in shown),
            *(["where"] if wide else []),
        ]
        rows = [
            (
                *([one.resource.namespace] if namespaced else []),
                one.resource.name,
                *(_cell(one.resource, field) for _, field in shown),
                *([one.where] if wide else []),
            )
            for one in found
            if one.resource.kind == kind
        ]
        if named:
            yield f"{kind}:"
        yield from table(heads, rows)
        if kind != kinds[-1]:
            yield ""


def _cell(resource: Resource, field: str) -> str:
    value: JsonValue = resource.manifest
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, list):
        return ",".join(str(one) for one in value)
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def run_diff(arguments: argparse.Namespace) -> int:
    return with_store(arguments, lambda store: _differences(arguments, store))


async def _differences(arguments: argparse.Namespace, store: Store) -> int:
    reading = _read(arguments, store)
    if reading.errors:
        complain(reading.errors)
        return ExitStatus.DATA
    contents = await store.read(kinds_of(reading.wanted))
    wanted, said = _as_stored(reading, contents, store)
    complain(said)
    different: list[JsonObject] = []
    for one in wanted:
        stored = contents.resources.get(one.resource.key)
        new = merged_with(one, stored, exact=False, stamp=False)
        if stored is not None and same(stored.resource, new):
            continue
        old = None if stored is None else with_namespace(stored.resource)
        wished = in_order_of(with_namespace(new), old)
        different.append(
            {
                "kind": new.kind,
                "namespace": new.namespace,
                "name": new.name,
                "file": one.where,
                "where": None if stored is None else stored.where,
                "stored": old,
                "wanted": wished,
            }
        )
        if "json" in arguments:
            continue
        lines = difflib.unified_diff(
            [] if old is None else to_yaml(old).splitlines(),
            to_yaml(wished).splitlines(),
            "nothing" if stored is None else stored.where,
            one.where,
            lineterm="",
        )
        emit(harmless(line) for line in lines)
    if "json" in arguments:
        emit([json.dumps(different, indent=2)])
    return ExitStatus.ERROR if different else ExitStatus.OK


def run_export(arguments: argparse.Namespace) -> int:
    contents = with_store(arguments, lambda store: store.read())
    as_json = "json" in arguments
    if arguments.output is not None:
        counts = _export_to(arguments.output, contents)
        rows = [{"kind": kind, "file": file, "count": count} for kind, file, count in counts]
        emit([json.dumps(rows, indent=2)] if as_json else (f"{kind}: {count}" for kind, _, count in counts))
    elif as_json:
        found = sorted(contents.resources.values(), key=lambda one: one.resource.key)
        items = [_exported(one.resource) for one in found]
        emit([json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2)])
    else:
        emit(_documents(contents.resources.values()))
    complain(contents.problems)
    if contents.problems:
        complain(["what cannot be read is not in the export"])
    return ExitStatus.ERROR if contents.problems else ExitStatus.OK


def _documents(found: Iterable[Stored]) -> Iterator[str]:
    for one in sorted(found, key=lambda one: one.resource.key):
        yield "---\n" + to_yaml(_exported(one.resource)).rstrip("\n")


def _exported(resource: Resource) -> JsonObject:
    manifest = with_namespace(resource)
    metadata = manifest.get("metadata")
    kept: JsonObject = dict(metadata) if isinstance(metadata, dict) else {}
    kept.pop("resourceVersion", None)
    return manifest | {"metadata": kept}


def _export_to(folder: str, contents: Contents) -> list[tuple[str, str, int]]:
    """Write a file a kind: each kind with its file and how many there are."""
    written = []
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise UsageError(f"{folder} is not empty; an export goes into an empty folder")
        for kind in dict.fromkeys(key.kind for key in sorted(contents.resources)):
            of_kind = [one for key, one in contents.resources.items() if key.kind == kind]
            path = os.path.join(folder, f"{KIND_TABLE[kind].plural}.yaml")
            with open(path, "x", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in _documents(of_kind))
            written.append((kind, path, len(of_kind)))
    except OSError as error:
        raise ConfigError(folder, f"cannot be written: {error.strerror}") from None
    return written
