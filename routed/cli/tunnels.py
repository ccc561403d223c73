"""The command `show tunnels`: the tunnel devices of pools with encapsulation, and the nodes each reaches."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from routed.cli.command import SHOW, Commands, Row, ask, show_list
from routed.cli.tables import table, terminal_width
from routed.observe.logs import harmless


def add(commands: Commands) -> None:
    commands.group("show", SHOW)
    commands.add(
        "show tunnels",
        _tunnels,
        "the tunnel devices of pools with VXLAN or IPIP, and the nodes they reach",
        watch=True,
        examples=[("routedctl show tunnels", "addresses, MTU, and who is at the other ends")],
    )


def _tunnels(arguments: argparse.Namespace) -> int:
    return show_list(arguments, ask(arguments, "tunnels"), tunnels)


def tunnels(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show tunnels`."""
    found = list(rows)
    if not found:
        yield "no pool asks for a tunnel"
    for number, row in enumerate(found):
        if number:
            yield ""
        vxlan = f", VNI {row.get('vni')}, UDP port {row.get('port')}, MAC {row.get('mac')}" if row.get("vni") else ""
        state = f"MTU {row['mtu']}" if row.get("mtu") else "not in the kernel yet"
        yield harmless(f"{row.get('device')}: {row.get('address')} from {row.get('local')}{vxlan}, {state}")
        lines = (
            (each.get("node"), each.get("address"), each.get("vtep"), each.get("mac"))
            for each in row.get("peers") or []
        )
        yield from table(("Node", "Reached at", "In the tunnel", "MAC"), lines, width=terminal_width())
