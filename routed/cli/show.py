"""The daemon's answers as text. Reads the shapes `core/queries` and the dataplane give; a missing field is not shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from routed.cli.tables import duration, facts, table
from routed.observe.logs import harmless

Row: TypeAlias = dict[str, Any]
"""A JSON object of an answer. Its text may come from a peer: everything printed passes `harmless`."""

NUMBERS = frozenset({"AS", "Rcvd", "Best", "Sent", "Pref", "Metric"})


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
    problems = row.get("problems") or []
    yield f"problems: {len(problems)}" if problems else "problems: none"
    for problem in problems:
        yield f"  {harmless(str(problem))}"


def _listening(row: Row) -> str | None:
    port = row.get("listenPort")
    if port is None:
        return None
    return f"{port}{'' if row.get('listening') else ' (not open)'}"


def _datastore(row: Row) -> str:
    return f"{row.get('datastore', '')} ({'in sync' if row.get('inSync') else 'not read yet'})"


def _route_counts(counts: Row) -> str:
    return f"{counts.get('prefixes', 0)} prefixes, {counts.get('origins', 0)} our own"


def _kernel(row: Row, kernel: Row) -> str:
    if kernel.get("programRoutes") is False:
        return "routes are not programmed (kernel.programRoutes is false)"
    refused = row.get("routesRefusedByKernel") or 0
    text = f"{kernel.get('routes', 0)} routes in table {kernel.get('table')}"
    return f"{text}, {refused} refused" if refused else text


# --- neighbors


def neighbors(rows: Iterable[Row], width: int | None) -> Iterator[str]:
    """`routedctl show neighbors`: one line a neighbour."""
    headings = ("Neighbor", "AS", "State", "Up/Down", "Rcvd", "Best", "Sent", "Name")
    yield from table(headings, map(_neighbor_line, rows), right=NUMBERS, width=width)


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


# --- routes


def routes(rows: Iterable[Row], width: int | None) -> Iterator[str]:
    """`routedctl show route`: a line for each path in use."""
    headings = ("", "Prefix", "Route", "From", "Pref", "AS path", "Kernel")
    yield from table(headings, _route_lines(rows), right=NUMBERS, width=width)


def _route_lines(rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
    for row in rows:
        candidates = row.get("candidates") or []
        for path in [path for path in candidates if path.get("best") or path.get("multipath")] or candidates[:1]:
            mark = ">" if path.get("best") else "=" if path.get("multipath") else "x"
            used = path.get("best") or path.get("multipath")
            yield (
                mark,
                row.get("prefix"),
                path.get("resolved") if used else path.get("reason"),
                path.get("from"),
                path.get("localPref"),
                path.get("asPath"),
                _kernel_state(row) if path.get("best") else None,
            )


def _kernel_state(row: Row) -> str:
    if row.get("kernelFailure"):
        return str(row["kernelFailure"])
    return str(row.get("kernelState") or "none")


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
                ("AS path", path.get("asPath") or "empty"),
                ("origin", path.get("origin")),
                ("local pref", path.get("localPref")),
                ("MED", path.get("med")),
                ("communities", _words(path.get("communities"))),
                ("large communities", _words(path.get("largeCommunities"))),
                ("ext. communities", _words(path.get("extendedCommunities"))),
                ("aggregator", _aggregator(path)),
                ("originator id", path.get("originatorId")),
                ("cluster list", _words(path.get("clusterList"))),
                ("unknown", _unknown(path)),
            ],
            "    ",
        )
    state = f" ({row['kernelState']})" if row.get("kernelState") else ""
    yield harmless(f"  kernel: {row.get('kernel') or 'no route wanted'}{state}")
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


def _words(words: list[str] | None) -> str:
    return " ".join(words or [])


def _aggregator(path: Row) -> str | None:
    aggregator = path.get("aggregator")
    return None if aggregator is None else f"AS {aggregator.get('as')}, {aggregator.get('routerId')}"


def _unknown(path: Row) -> str:
    return ", ".join(f"type {each.get('type')}: {each.get('value')}" for each in path.get("unknown") or [])


# --- the kernel's table


def fib(rows: Iterable[Row], width: int | None) -> Iterator[str]:
    """`routedctl show fib`: what we asked of the kernel, and what it said."""
    yield from table(("Prefix", "Route", "State"), map(_fib_line, rows), width=width)


def _fib_line(row: Row) -> tuple[object, ...]:
    state = row.get("state")
    return row.get("prefix"), row.get("route"), f"{state}: {row['reason']}" if row.get("reason") else state
