"""Commands about BGP neighbours: `show neighbors`, `show summary`, `show received`, `show advertised`, `clear`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from routed.cli.attributes import ATTRIBUTES, attribute_facts, attributes_line
from routed.cli.command import (
    SHOW,
    Commands,
    Render,
    Row,
    UsageError,
    ask,
    connect,
    each,
    prefix_or_address,
    sentence,
    show_list,
    show_one,
    stream,
)
from routed.cli.tables import NARROWEST, duration, facts, table, terminal_width
from routed.errors import ControlError
from routed.observe.logs import harmless

NUMBERS = frozenset(
    {"AS", "Rcvd", "Best", "Sent", "V", "MsgRcvd", "MsgSent", "OutQ", "State/PfxRcd", "PfxSnt", "Pref", "MED"}
)

#: What may be cut on a narrow terminal, and to how many characters.
TEXTS = {
    "Name": NARROWEST, "Desc": NARROWEST, "AS path": NARROWEST, "Communities": NARROWEST, "From": NARROWEST,
    "Verdict": 24, "State": 12,
}  # fmt: skip

#: Attributes that are left out on a narrow terminal, the first of them first.
SPARE_ATTRIBUTES = ("Communities", "MED", "Origin", "Pref", "AS path")


def add(commands: Commands) -> None:
    commands.group("show", SHOW)
    shown = commands.add(
        "show neighbors",
        _neighbors,
        "the BGP neighbours, or everything about one",
        watch=True,
        examples=[
            ("routedctl show neighbors", "a line for each"),
            ("routedctl show neighbors 10.0.0.2", "everything about one"),
        ],
        aliases=["neighbours", "protocols"],
    )
    shown.add_argument("address", nargs="?", metavar="ADDR", help="a neighbour's address")
    summary = commands.add(
        "show summary",
        _summary,
        "the BGP neighbours of each family with message and prefix counts, as `show bgp summary` of other routers",
        watch=True,
        examples=[
            ("routedctl show summary", "all families"),
            ("routedctl show summary --family ipv6", "one of them"),
        ],
    )
    _add_family(summary)
    for name, run, text, examples in (
        (
            "received",
            _received,
            "what a neighbour announced to us (Adj-RIB-In), and what became of each route",
            [
                ("routedctl show received 10.0.0.2", "all of it, what a filter or loop check refused included"),
                ("routedctl show received 10.0.0.2 10.244.2.0/26", "one prefix in full"),
                ("routedctl show received 10.0.0.2 10.244.0.0/16 --longer", "what lies within a prefix"),
            ],
        ),
        (
            "advertised",
            _advertised,
            "what we announce to a neighbour (Adj-RIB-Out), with the attributes as they are sent",
            [
                ("routedctl show advertised 10.0.0.254", "all of it"),
                (
                    "routedctl show advertised 10.0.0.254 10.244.1.0/26",
                    "one prefix in full, or why it is not announced",
                ),
                ("routedctl show advertised 10.0.0.254 --all", "also what is not announced, and why"),
            ],
        ),
    ):
        parser = commands.add(f"show {name}", run, text, watch=True, examples=examples)
        parser.add_argument("address", metavar="ADDR", help="a neighbour's address or name")
        parser.add_argument(
            "prefix", nargs="?", type=prefix_or_address, metavar="PREFIX", help="a prefix, or an address it covers"
        )
        parser.add_argument("--longer", action="store_true", help="also the prefixes that lie within PREFIX")
        parser.set_defaults(request=name)
        if run is _advertised:
            parser.add_argument("--all", action="store_true", help="also what is not announced, and why")
        _add_family(parser)
    clear = commands.add(
        "clear",
        _clear,
        "reset the session with a neighbour, or exchange the routes again without a reset (soft)",
        examples=[
            ("routedctl clear 10.0.0.2", "reset the session (Cease/4)"),
            ("routedctl clear 10.0.0.2 soft", "ask for its routes again, and send ours again; the session stays"),
            ("routedctl clear 10.0.0.2 soft in", "only ask for its routes again"),
            ("routedctl clear 10.0.0.2 soft out", "only send our routes again"),
            ("routedctl clear all soft out", "the same for every neighbour"),
        ],
    )
    clear.add_argument(
        "address", metavar="ADDR", help="the neighbour's address or name; `all` or `*` for every neighbour"
    )
    clear.add_argument("how", nargs="*", metavar="soft [in|out]", help="without a reset of the session")
    soft = clear.add_mutually_exclusive_group()
    soft.add_argument("--in", dest="mode", action="store_const", const="in", help="the same as `soft in`")
    soft.add_argument("--out", dest="mode", action="store_const", const="out", help="the same as `soft out`")


def _add_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", choices=("ipv4", "ipv6"), help="of one address family only")


def _neighbors(arguments: argparse.Namespace) -> int:
    if arguments.address is not None:
        return stream(arguments, each(neighbor), "neighbors", address=arguments.address)
    return stream(arguments, neighbors, "neighbors")


def _summary(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        status = client.ask("status")
        rows = list(client.stream("neighbors"))
    assert isinstance(status, dict)
    known = {label for row in rows if isinstance(row, dict) for label in row.get("families") or {}}
    labels = [label for label in sorted(known) if label.startswith(arguments.family or "")]
    answer = {
        **{name: status.get(name) for name in ("routerId", "as", "memoryBytes")},
        "families": {
            label: {
                **((status.get("routes") or {}).get(label) or {}),
                "neighbors": [
                    _of_family(row, label) for row in rows if isinstance(row, dict) and label in row["families"]
                ],
            }
            for label in labels
        },
    }
    return show_one(arguments, answer, summary)


def _of_family(row: Row, label: str) -> Row:
    """What a summary says of one neighbour in one family."""
    messages, family = row.get("messages") or {}, row["families"][label]
    kept = ("name", "address", "as", "state", "sinceSeconds", "establishedCount", "lastError", "lastRefusal", "why")
    return {
        **{name: row.get(name) for name in kept},
        "version": 4,
        "messagesReceived": sum((messages.get("received") or {}).values()),
        "messagesSent": sum((messages.get("sent") or {}).values()),
        "prefixesReceived": family.get("received"),
        "prefixesSent": family.get("sent"),
        "prefixesWaiting": family.get("waiting"),
    }


def _received(arguments: argparse.Namespace) -> int:
    single = arguments.prefix is not None and not arguments.longer
    return _exchanged(arguments, each(received) if single else received_table, single)


def _advertised(arguments: argparse.Namespace) -> int:
    single = arguments.prefix is not None and not arguments.longer
    return _exchanged(arguments, each(advertised) if single else advertised_table, single, all=arguments.all)


def _exchanged(arguments: argparse.Namespace, render: Render, single: bool, **values: object) -> int:
    names = ("address", "prefix", "family", "longer")
    values |= {name: getattr(arguments, name) for name in names}
    with connect(arguments) as client:
        rows = client.stream(arguments.request, **values)
        if single:
            found = list(rows)
            if not found:
                raise ControlError(f"{arguments.address} has not announced {arguments.prefix}")
            rows = iter(found)
        return show_list(arguments, rows, render)


def _clear(arguments: argparse.Namespace) -> int:
    modes = {
        (): "hard",
        ("soft",): "soft",
        ("soft", "in"): "in",
        ("soft", "out"): "out",
        ("in",): "in",
        ("out",): "out",
    }
    mode = arguments.mode or modes.get(tuple(arguments.how))
    if mode is None or (arguments.mode and arguments.how):
        raise UsageError(f"after the neighbour comes `soft`, `soft in` or `soft out`, not `{' '.join(arguments.how)}`")
    if arguments.address in ("all", "*"):
        return stream(arguments, each(sentence), "clear", address="all", mode=mode)
    return show_one(arguments, ask(arguments, "clear", address=arguments.address, mode=mode), sentence)


def neighbors(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show neighbors`: one line a neighbour."""
    headings = ("Neighbor", "AS", "State", "Up/Down", "Rcvd", "Best", "Sent", "Name")
    yield from table(
        headings,
        map(_neighbor_line, rows),
        right=NUMBERS,
        width=terminal_width(),
        spare=("Best",),
        shrink=TEXTS,
        key="Neighbor",
    )


def summary(answer: Row) -> Iterator[str]:
    """`routedctl show summary`."""
    headings = (
        "Neighbor", "V", "AS", "MsgRcvd", "MsgSent", "OutQ", "Up/Down", "State/PfxRcd", "PfxSnt", "Desc",
    )  # fmt: skip
    memory = answer.get("memoryBytes")
    used = f", memory {memory / 2**20:.0f} MiB" if isinstance(memory, int) else ""
    yield f"BGP router identifier {answer.get('routerId') or '-'}, local AS number {answer.get('as') or '-'}{used}"
    for label, family in (answer.get("families") or {}).items():
        peers = family.get("neighbors") or []
        up = sum(1 for row in peers if row.get("state") == "Established")
        yield ""
        yield f"{label}: {family.get('prefixes')} prefixes, table version {family.get('tableVersion')}"
        yield from table(
            headings,
            map(_summary_line, peers),
            right=NUMBERS,
            width=terminal_width(),
            shrink=TEXTS,
            spare=("V", "OutQ", "MsgSent", "MsgRcvd", "Desc"),
            key="Neighbor",
        )
        counts = [sum(row.get(name) or 0 for row in peers) for name in ("prefixesReceived", "prefixesSent")]
        yield f"{len(peers)} neighbors, {up} established; {counts[0]} prefixes received, {counts[1]} sent"


def _summary_line(row: Row) -> tuple[object, ...]:
    up = row.get("state") == "Established"
    never = not up and not row.get("establishedCount")
    return (
        row.get("address"),
        row.get("version"),
        row.get("as"),
        row.get("messagesReceived"),
        row.get("messagesSent"),
        row.get("prefixesWaiting"),
        "never" if never else duration(row.get("sinceSeconds")),
        row.get("prefixesReceived") if up else row.get("state"),
        row.get("prefixesSent") if up else None,
        _named(row, up),
    )


def _named(row: Row, up: bool) -> str:
    """Its name; where it is not up, why, and what refused it before the last attempt."""
    error, refusal = row.get("lastError"), row.get("lastRefusal")
    if up or not error:
        return str(row.get("name"))
    return f"{row.get('name')}: {error}{f'; before that: {refusal}' if refusal and refusal != error else ''}"


def _neighbor_line(row: Row) -> tuple[object, ...]:
    families = (row.get("families") or {}).values()
    up = row.get("state") == "Established"
    name = _named(row, up)
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


def _password(row: Row) -> str | None:
    """Where it is kept; what it is nobody here knows."""
    return f"TCP MD5, Secret {harmless(str(row['password']))}" if row.get("password") else None


def _hops(row: Row) -> str | None:
    hops = row.get("ttlSecurity")
    return f"at most {hops} hop{'s' if hops != 1 else ''} away" if hops else None


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
            ("last error", _aged(row, "lastError")),
            ("refused before", _aged(row, "lastRefusal") if row.get("lastRefusal") != row.get("lastError") else None),
            ("went down by", row.get("lastDown") if row.get("lastDown") != row.get("lastError") else None),
            ("our end", f"{row.get('localAddress') or 'any address'}, AS {row.get('localAs')}"),
            ("port", f"{row.get('port')}{' (passive: we wait for the peer)' if row.get('passive') else ''}"),
            ("password", _password(row)),
            ("goes on as is", row.get("waitsForPassword")),
            ("TTL security", _hops(row)),
            ("router id", negotiated.get("routerId")),
            ("hold time", _times(negotiated)),
            ("families", ", ".join(negotiated.get("families") or [])),
            ("capabilities", _capabilities(negotiated)),
            ("offered only", ", ".join(negotiated.get("declined") or [])),
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


def _aged(row: Row, name: str) -> str | None:
    """With its age: what went wrong may be put right long since."""
    text, age = row.get(name), duration(row.get(f"{name}Seconds"))
    return f"{text} ({age} ago)" if text and age else text


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


# --- what was exchanged


def received_table(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show received ADDR`: a line a prefix."""
    lines = ((_mark(row), row.get("prefix"), *attributes_line(row), _verdict(row)) for row in rows)
    yield from table(
        ("", "Prefix", *ATTRIBUTES, "Verdict"),
        lines,
        right=NUMBERS,
        width=terminal_width(),
        shrink=TEXTS,
        spare=SPARE_ATTRIBUTES,
        key="Prefix",
    )


def _mark(row: Row) -> str:
    return ">" if row.get("best") else "=" if row.get("multipath") else "" if row.get("accepted") else "x"


def _verdict(row: Row) -> str:
    changed = f"; changed by {row['changedBy']}" if row.get("changedBy") else ""
    return f"{'stale; ' if row.get('stale') else ''}{row.get('reason')}{changed}"


def received(row: Row) -> Iterator[str]:
    """`routedctl show received ADDR PREFIX`: one prefix in full."""
    yield harmless(f"{row.get('prefix')} from {row.get('peer')}: {'accepted' if row.get('accepted') else 'refused'}")
    changed = [f"{name} = {_changed(value)}" for name, value in (row.get("changedTo") or {}).items()]
    yield from facts(
        [
            ("verdict", row.get("reason")),
            ("stale", "kept while the peer restarts" if row.get("stale") else None),
            *attribute_facts(row),
            ("changed by", row.get("changedBy")),
            ("changed to", ", ".join(changed)),
        ],
        "  ",
    )


def _changed(value: object) -> str:
    if value is None or value == "":
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def advertised_table(rows: Iterable[Row]) -> Iterator[str]:
    """`routedctl show advertised ADDR`: a line a prefix."""
    lines = ((row.get("prefix"), *attributes_line(row), row.get("from"), _told(row)) for row in rows)
    yield from table(
        ("Prefix", *ATTRIBUTES, "From", "State"),
        lines,
        right=NUMBERS,
        width=terminal_width(),
        shrink=TEXTS,
        spare=("From", *SPARE_ATTRIBUTES),
        key="Prefix",
    )


def _told(row: Row) -> str:
    return f"{row.get('state')}: {row['reason']}" if row.get("reason") else str(row.get("state"))


def advertised(row: Row) -> Iterator[str]:
    """`routedctl show advertised ADDR PREFIX`: one prefix in full."""
    yield harmless(f"{row.get('prefix')} to {row.get('peer')}: {row.get('state')}")
    yield from facts([("because", row.get("reason")), ("learned from", row.get("from")), *attribute_facts(row)], "  ")
