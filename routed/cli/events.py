"""The command `events`: what happened in the daemon, and with --follow what happens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator

from routed.cli.command import Commands, ExitStatus, Row, connect, emit_each, prefix_or_address
from routed.observe.logs import harmless

KINDS = ("session", "datastore", "kernel", "daemon", "route")


def add(commands: Commands) -> None:
    events = commands.add(
        "events",
        _events,
        "what happened lately: sessions, datastore, kernel; with --follow also what happens from now on",
        examples=[
            ("routedctl events", "the last 1000"),
            ("routedctl events --follow", "these, and all that come, until Ctrl-C"),
            ("routedctl events --follow --kind session --json", "sessions only, one JSON object a line"),
            ("routedctl events --follow --kind route --prefix 10.244.2.0/26", "the best path of one prefix"),
            ("routedctl events --follow --kind route --prefix 10.244.0.0/16 --longer", "and of all within"),
        ],
    )
    events.add_argument("--follow", "-f", action="store_true", help="go on with what happens, until Ctrl-C")
    events.add_argument(
        "--kind",
        action="append",
        choices=KINDS,
        help="only events of this kind, may be repeated; without it all but route, which are told to followers only",
    )
    events.add_argument("--prefix", type=prefix_or_address, metavar="PREFIX", help="of the routes only this prefix")
    events.add_argument("--longer", action="store_true", help="also the prefixes that lie within --prefix")


def _events(arguments: argparse.Namespace) -> int:
    kinds = arguments.kind or (KINDS if arguments.prefix else KINDS[:-1])
    with connect(arguments) as client:
        rows = client.stream(
            "events",
            follow=arguments.follow,
            kinds=",".join(kinds),
            prefix=arguments.prefix,
            longer=arguments.longer,
        )
        emit_each((json.dumps(row) for row in rows) if "json" in arguments else _lines(rows))
    return ExitStatus.OK


def _lines(rows: Iterable[object]) -> Iterator[str]:
    for row in rows:
        assert isinstance(row, dict)
        yield line(row)


def line(event: Row) -> str:
    """An event on one line: when, of what kind, about what, what."""
    parts = (str(event.get(name) or "-") for name in ("time", "kind", "subject"))
    time, kind, subject = parts
    return harmless(f"{time} {kind:<9} {subject}: {event.get('text')}")
