"""Commands about routes: `show route`, `show fib`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator

from routed.cli.attributes import attribute_facts
from routed.cli.command import SHOW, Commands, Row, each, prefix_or_address, stream
from routed.cli.tables import NARROWEST, facts, table, terminal_width
from routed.observe.logs import harmless

NUMBERS = frozenset({"Pref"})

#: What may be cut on a narrow terminal, and to how many characters: a next hop with its interface stays whole.
TEXTS = {"Route": 36, "From": NARROWEST, "AS path": NARROWEST, "Kernel": NARROWEST, "State": NARROWEST}


def add(commands: Commands) -> None:
    commands.group("show", SHOW)
    shown = commands.add(
        "show route",
        _route,
        "the routes in use, or one prefix in full",
        watch=True,
        examples=[
            ("routedctl show route", "the routes in use"),
            ("routedctl show route 10.244.1.0/26 --all", "every path, which won, in which step"),
            ("routedctl show route 10.244.1.7", "the route that covers an address"),
        ],
        aliases=["routes"],
    )
    shown.add_argument(
        "prefix", nargs="?", type=prefix_or_address, metavar="PREFIX", help="a prefix, or an address it covers"
    )
    shown.add_argument("--all", action="store_true", help="every path with the step that decided, refused ones too")
    commands.add(
        "show fib",
        _fib,
        "our routes in the kernel, and those it refused",
        watch=True,
        examples=[("routedctl show fib", "what we asked of the kernel, and what it said")],
    )


def _route(arguments: argparse.Namespace) -> int:
    render = each(route) if arguments.prefix or arguments.all else routes
    every = bool(arguments.all or arguments.prefix)
    return stream(arguments, render, "routes", prefix=arguments.prefix, all=every)


def _fib(arguments: argparse.Namespace) -> int:
    return stream(arguments, fib, "fib")


def routes(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show route`: a line for each path in use."""
    headings = ("", "Prefix", "Route", "From", "Pref", "AS path", "Kernel")
    yield from table(
        headings,
        _route_lines(rows),
        right=NUMBERS,
        width=terminal_width(),
        shrink=TEXTS,
        spare=("Pref", "From", "AS path"),
        key="Prefix",
    )


def _route_lines(rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
    for row in rows:
        candidates = row.get("candidates") or []
        for path in [path for path in candidates if path.get("best") or path.get("multipath")] or candidates[:1]:
            mark = ">" if path.get("best") else "=" if path.get("multipath") else "x"
            used = path.get("best") or path.get("multipath")
            yield (
                mark,
                row.get("prefix"),
                _leads(path, row) if used else path.get("reason"),
                path.get("from"),
                path.get("localPref"),
                path.get("asPath"),
                _kernel_state(row) if path.get("best") else None,
            )


def _leads(path: Row, row: Row) -> str | None:
    """Where a path in use leads, with the tunnel that the kernel's route goes into on its way there."""
    resolved: str | None = path.get("resolved")
    said = str(resolved or "").replace(",", " ").split()
    tunnels = [each for each in re.findall(r"\bdev (\S+)", str(row.get("kernel") or "")) if each not in said]
    if not tunnels or "dev" not in said:
        return resolved
    return f"through {', '.join(dict.fromkeys(tunnels))} {resolved}"


def _kernel_state(row: Row) -> str:
    if row.get("kernelFailure"):
        return str(row["kernelFailure"])
    return str(row.get("kernelState") or ("left" if row.get("kernelNot") else "none"))


def route(row: Row) -> Iterator[str]:
    """One prefix in full: every path, why it won or lost, and what became of it."""
    candidates = row.get("candidates") or []
    yield f"{row.get('prefix')}: {len(candidates)} path{'' if len(candidates) == 1 else 's'}"
    for path in candidates:
        mark = ">" if path.get("best") else "=" if path.get("multipath") else " "
        peer = f"peer {path['peer']}, router id {path.get('peerRouterId')}" if path.get("peer") else "this node"
        yield harmless(f"{mark} from {path.get('from')} ({path.get('type')}; {peer})")
        yield from facts(
            [
                ("decision", path.get("reason")),
                ("values", _compared(path)),
                ("next hop", _next_hop(path)),
                *attribute_facts({**path, "nextHop": None}),
            ],
            "    ",
        )
    state = f" ({row['kernelState']})" if row.get("kernelState") else ""
    if row.get("notAnnounced"):
        yield harmless(f"  not announced by this node: {row['notAnnounced']}")
    wanted = row.get("kernel") or f"no route wanted{': ' if row.get('kernelNot') else ''}{row.get('kernelNot') or ''}"
    yield harmless(f"  kernel: {wanted}{state}")
    if row.get("kernelFailure"):
        yield harmless(f"  kernel: {row['kernelFailure']}")
    for peer in row.get("notAdvertisedTo") or []:
        yield harmless(f"  not advertised to {peer.get('peer')}: {peer.get('reason')}")


def _compared(path: Row) -> str | None:
    if path.get("step") is None:
        return None
    text = f"step {path['step']}, {path.get('stepName')}: {path.get('value')}"
    return text if path.get("best") else f"{text}, the winner's {path.get('winnerValue')}"


def _next_hop(path: Row) -> str | None:
    if path.get("nextHop") is None:
        return path.get("resolved")
    return f"{path['nextHop']} ({path.get('resolved')}; metric {path.get('metric')})"


# --- the kernel's table


def fib(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show fib`: what we asked of the kernel, and what it said."""
    yield from table(
        ("Prefix", "Route", "State"), map(_fib_line, rows), width=terminal_width(), shrink=TEXTS, key="Prefix"
    )


def _fib_line(row: Row) -> tuple[object, ...]:
    state = row.get("state")
    return row.get("prefix"), row.get("route"), f"{state}: {row['reason']}" if row.get("reason") else state
