"""Commands about the node as a whole: `status`, `show interfaces`, `version`, `confirm`, `shutdown`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from routed import __version__
from routed.cli.command import SHOW, Commands, Row, ask, sentence, show_list, show_one
from routed.cli.tables import duration, facts, table, terminal_width
from routed.control.client import Unreachable
from routed.errors import ConfigError, ControlError
from routed.observe.logs import harmless

#: RT_TABLE_MAIN, which nobody knows by its number.
MAIN_TABLE = 254


def add(commands: Commands) -> None:
    commands.add(
        "status",
        _status,
        "the node at a glance, and its problems",
        watch=True,
        examples=[
            ("routedctl status", "is this node well?"),
            ("routedctl status --json", "the same for a program"),
        ],
    )
    commands.add(
        "version",
        _version,
        "the version of routedctl and of the daemon",
        examples=[("routedctl version", "both versions; a daemon that does not run is no error")],
    )
    commands.group("show", SHOW)
    commands.add(
        "show interfaces",
        _interfaces,
        "the node's interfaces as routed sees them",
        watch=True,
        examples=[("routedctl show interfaces", "which carries BGP, which leads to workloads, what is down")],
    )
    confirm = commands.add(
        "confirm",
        _confirm,
        "follow deletions in etcd that were held because so many came at once",
        examples=[
            ("routedctl confirm", "all that are held; `routedctl status` says which"),
            ("routedctl confirm BGPPeer", "those of one kind"),
        ],
        abbreviate=False,
    )
    confirm.add_argument("kind", metavar="KIND", nargs="?", default="", help="only deletions of this kind")
    shutdown = commands.add(
        "shutdown",
        _shutdown,
        "end all sessions with a reason (Cease/2), then the daemon; its routes stay in the kernel",
        examples=[('routedctl shutdown --reason "new kernel"', "the peers' operators read why")],
        abbreviate=False,
    )
    shutdown.add_argument("--reason", metavar="TEXT", default="", help="what the peers' operators read (RFC 9003)")


def _status(arguments: argparse.Namespace) -> int:
    return show_one(arguments, ask(arguments, "status"), status)


def _interfaces(arguments: argparse.Namespace) -> int:
    return show_list(arguments, ask(arguments, "interfaces"), interfaces)


def interfaces(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show interfaces`."""
    lines = (
        (
            row.get("name"),
            row.get("state"),
            row.get("mtu"),
            " ".join(row.get("roles") or []),
            " ".join(row["addresses"]),
        )
        for row in rows
    )
    yield from table(
        ("Interface", "State", "MTU", "Role", "Addresses"), lines, right=frozenset({"MTU"}), width=terminal_width()
    )


def _confirm(arguments: argparse.Namespace) -> int:
    return show_one(arguments, ask(arguments, "confirm", kind=arguments.kind or None), sentence)


def _shutdown(arguments: argparse.Namespace) -> int:
    return show_one(arguments, ask(arguments, "shutdown", reason=arguments.reason), sentence)


def _version(arguments: argparse.Namespace) -> int:
    """Also says the version of a daemon that runs; one that does not is no error here."""
    try:
        daemon = ask(arguments, "status").get("version")
    except (Unreachable, ControlError, ConfigError):
        daemon = None
    return show_one(arguments, {"routedctl": __version__, "routed": daemon}, _versions)


def _versions(versions: Any) -> Iterator[str]:
    daemon = versions["routed"]
    yield f"routedctl {versions['routedctl']}"
    yield f"routed {harmless(str(daemon))}" if daemon else "routed is not running"


def status(row: Row) -> Iterator[str]:
    """`routedctl status`."""
    peers = row.get("peers") or {}
    routes = row.get("routes") or {}
    kernel = row.get("kernel") or {}
    yield from facts(
        [
            ("node", row.get("node")),
            ("version", row.get("version")),
            ("pid", row.get("pid")),
            ("up for", duration(row.get("runningSeconds"))),
            ("router id", row.get("routerId")),
            ("AS", row.get("as")),
            ("BGP port", _listening(row)),
            ("datastore", _datastore(row)),
            ("peers", f"{peers.get('established', 0)} of {peers.get('configured', 0)} established"),
            *((f"{label} routes", _route_counts(counts)) for label, counts in routes.items()),
            ("kernel", _kernel(row, kernel)),
            (
                "restart",
                "route selection waits for the peers' End-of-RIB" if row.get("routeSelectionDeferred") else None,
            ),
        ]
    )
    for each in row.get("blocksNotAnnounced") or []:
        yield harmless(f"not announced: {each.get('prefix')}: {each.get('reason')}")
    problems = row.get("problems") or []
    yield f"problems: {len(problems)}" if problems else "problems: none"
    for problem in problems:
        yield f"  {harmless(str(problem))}"
    notes = row.get("notes") or []
    if notes:
        yield f"notes: {len(notes)}"
    for note in notes:
        yield f"  {harmless(str(note))}"


def _listening(row: Row) -> str | None:
    port = row.get("listenPort")
    if port is None:
        return None
    return f"{port}{'' if row.get('listening') else ' (not open)'}"


def _datastore(row: Row) -> str:
    store = row.get("store") or {}
    notes = ["in sync" if row.get("inSync") else "not read yet"]
    if store.get("stale"):
        notes = ["what was saved, stale"]
    elif not store.get("connected", True):
        notes.append("does not answer")
    if store.get("type") == "etcd":
        notes.append(f"revision {store.get('revision') or 'unknown'}")
        if store.get("ageSeconds") is not None:
            notes.append(f"{store['ageSeconds']:.0f} s old")
    if store.get("heldDeletions"):
        notes.append(f"{store['heldDeletions']} deletions held")
    return f"{row.get('datastore', '')} ({', '.join(notes)})"


def _route_counts(counts: Row) -> str:
    return f"{counts.get('prefixes', 0)} prefixes, {counts.get('origins', 0)} our own"


def _kernel(row: Row, kernel: Row) -> str:
    if kernel.get("programRoutes") is False:
        return "routes are not programmed (kernel.programRoutes is false)"
    refused = row.get("routesRefusedByKernel") or 0
    number = kernel.get("table")
    text = f"{kernel.get('routes', 0)} routes in table {'main' if number == MAIN_TABLE else number}"
    return f"{text}, {refused} refused" if refused else text
