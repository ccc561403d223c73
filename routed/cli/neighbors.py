"""Commands about BGP neighbours: `show neighbors`, `clear`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from routed.cli.command import Commands, Row, ask, each, sentence, show_one, stream
from routed.cli.tables import duration, facts, table, terminal_width
from routed.observe.logs import harmless

NUMBERS = frozenset({"AS", "Rcvd", "Best", "Sent"})


def add(commands: Commands) -> None:
    commands.group("show", "show neighbors, routes or the kernel's table")
    shown = commands.add(
        "show neighbors",
        _neighbors,
        "the BGP neighbours, or everything about one",
        examples=[
            ("routedctl show neighbors", "a line for each"),
            ("routedctl show neighbors 10.0.0.2", "everything about one"),
        ],
        aliases=["neighbours", "protocols"],
    )
    shown.add_argument("address", nargs="?", metavar="ADDR", help="a neighbour's address")
    clear = commands.add(
        "clear",
        _clear,
        "reset the session with a neighbour",
        examples=[
            ("routedctl clear 10.0.0.2", "reset the session (Cease/4)"),
            ("routedctl clear 10.0.0.2 --in", "ask for its routes again, the session stays"),
            ("routedctl clear 10.0.0.2 --out", "send our routes again, the session stays"),
        ],
    )
    clear.add_argument("address", metavar="ADDR", help="the neighbour's address")
    soft = clear.add_mutually_exclusive_group()
    soft.add_argument("--in", dest="mode", action="store_const", const="in", help="only ask it for its routes again")
    soft.add_argument("--out", dest="mode", action="store_const", const="out", help="only send it our routes again")


def _neighbors(arguments: argparse.Namespace) -> int:
    if arguments.address is not None:
        return stream(arguments, each(neighbor), "neighbors", address=arguments.address)
    return stream(arguments, neighbors, "neighbors")


def _clear(arguments: argparse.Namespace) -> int:
    answer = ask(arguments, "clear", address=arguments.address, mode=arguments.mode or "hard")
    return show_one(arguments, answer, sentence)


def neighbors(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show neighbors`: one line a neighbour."""
    headings = ("Neighbor", "AS", "State", "Up/Down", "Rcvd", "Best", "Sent", "Name")
    yield from table(headings, map(_neighbor_line, rows), right=NUMBERS, width=terminal_width())


def _neighbor_line(row: Row) -> tuple[object, ...]:
    families = (row.get("families") or {}).values()
    up = row.get("state") == "Established"
    name = str(row.get("name"))
    if not up and row.get("lastError"):
        name = f"{name}: {row['lastError']}"
    counts = [sum(family.get(key) or 0 for family in families) for key in ("received", "sent")]
    best = max((family.get("best") or 0 for family in families), default=0)
    received, sent = counts
    stale = any(family.get("stale") for family in families)
    return (
        row.get("address"),
        row.get("as"),
        row.get("state"),
        duration(row.get("sinceSeconds")),
        received if up or stale else None,
        best if up or stale else None,
        sent if up else None,
        name,
    )


def neighbor(row: Row) -> Iterator[str]:
    """`routedctl show neighbors ADDR`: everything about one."""
    negotiated = row.get("negotiated") or {}
    restart = negotiated.get("gracefulRestart") or {}
    messages = row.get("messages") or {}
    yield f"{harmless(str(row.get('name')))}: {row.get('address')}, AS {row.get('as')}, {row.get('type')}"
    yield from facts(
        [
            ("state", f"{row.get('state')}{_since(row)}"),
            ("configured by", row.get("why")),
            ("last error", row.get("lastError")),
            ("our end", f"{row.get('localAddress') or 'any address'}, AS {row.get('localAs')}"),
            ("port", f"{row.get('port')}{' (passive: we wait for the peer)' if row.get('passive') else ''}"),
            ("router id", negotiated.get("routerId")),
            ("hold time", _times(negotiated)),
            ("families", ", ".join(negotiated.get("families") or [])),
            ("capabilities", _capabilities(negotiated)),
            ("restart time", f"{restart['restartTime']} s" if restart else None),
            ("forwarding kept", ", ".join(restart.get("forwarding") or [])),
            ("times up", row.get("establishedCount")),
            ("sent", _counted(messages, "sent")),
            ("received", _counted(messages, "received")),
            ("bad UPDATEs", _malformed(messages)),
        ],
        "  ",
    )
    for label, family in (row.get("families") or {}).items():
        filters = [(row.get(key) or {}).get(label) for key in ("importFilter", "exportFilter")]
        yield f"  {label}"
        yield from facts(
            [
                ("received", f"{family.get('received')}{_stale(family)}"),
                ("best", family.get("best")),
                ("sent", family.get("sent")),
                ("End-of-RIB", "received" if family.get("endOfRib") else "not received"),
                ("sending", family.get("sending")),
                ("import filter", filters[0]),
                ("export filter", filters[1]),
            ],
            "    ",
        )


def _since(row: Row) -> str:
    since = duration(row.get("sinceSeconds"))
    return f", for {since}" if since else ""


def _times(negotiated: Row) -> str | None:
    if not negotiated:
        return None
    if not negotiated.get("holdTime"):
        return "0 (no keepalives)"
    return f"{negotiated['holdTime']} s, a keepalive every {negotiated.get('keepaliveTime')} s"


def _capabilities(negotiated: Row) -> str:
    names = (("fourOctetAs", "4-octet AS"), ("routeRefresh", "route refresh"), ("gracefulRestart", "graceful restart"))
    return ", ".join(name for key, name in names if negotiated.get(key))


def _counted(messages: Row, direction: str) -> str:
    counts = messages.get(direction) or {}
    return ", ".join(f"{value} {name}" for name, value in counts.items() if value) or "none"


def _malformed(messages: Row) -> str | None:
    """UPDATEs in which something was wrong (RFC 7606)."""
    withdrawn, discarded = messages.get("treatAsWithdraw") or 0, messages.get("attributeDiscard") or 0
    if not withdrawn and not discarded:
        return None
    text = f"{withdrawn} treated as withdrawals, {discarded} lost an attribute"
    return f"{text}; last: {messages['lastFinding']}" if messages.get("lastFinding") else text


def _stale(family: Row) -> str:
    return f" ({family['stale']} stale: kept while the peer restarts)" if family.get("stale") else ""
