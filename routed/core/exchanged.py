"""What was exchanged with one peer, prefix by prefix: its Adj-RIB-In with our verdicts, its Adj-RIB-Out as it is sent.

Reading only, in slices: a row is None where it is a good moment for other work, since to walk one peer's routes is to
walk the table. What a peer is told is not worked out here: the octets come from the peer's update group, which writes
the UPDATEs with them, and are read back. Shapes are as stable as those of `queries`.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from routed.bgp.attribute_reader import read_attributes
from routed.bgp.attributes import AttributeSet, describe
from routed.core.core import Core
from routed.core.peer import Peer
from routed.core.queries import Row
from routed.net.families import Family
from routed.net.prefixes import covers, format_prefix, make_prefix, prefix_address
from routed.rib.adj_out import AdjRibOut, UpdateGroup
from routed.rib.decide import explain
from routed.rib.export import refusal
from routed.rib.path import Path
from routed.rib.table import SLICE, AdjRibIn, FamilyRib
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which prefixes a question is about: all of a family, one, or (`longer`) one and those it covers."""

    family: Family
    prefix: bytes | None = None
    longer: bool = False

    def among(self, known: Collection[bytes]) -> Iterator[bytes | None]:
        """Those of `known` that are meant, as it is when the first is asked for. None between."""
        if self.prefix is not None and not self.longer:
            if self.prefix in known:
                yield self.prefix
            return
        for number, prefix in enumerate(list(known)):  # a copy, since routes come and go between two turns
            if not number % SLICE:
                yield None
            if self.prefix is None or covers(self.prefix, prefix):
                yield prefix


def by_address(prefix: bytes) -> tuple[bytes, int]:
    """What prefixes are put in order by: the address, then the length."""
    return prefix[1:], prefix[0]


def in_order(prefixes: Iterable[bytes | None]) -> Iterator[bytes | None]:
    """Prefixes by their addresses, each once. None between: sorting a million of them takes seconds.

    Runs of `SLICE` are sorted, one a step; then one prefix is taken at a time from the run that has the next one. So no
    step depends on how many there are, or how many share their first octets.
    """
    runs: list[list[bytes]] = [[]]
    for prefix in prefixes:
        if prefix is None:
            yield None
            continue
        runs[-1].append(prefix)
        if len(runs[-1]) == SLICE:
            runs[-1].sort(key=by_address)
            runs.append([])
            yield None
    runs[-1].sort(key=by_address)
    last: bytes | None = None
    for prefix in heapq.merge(*runs, key=by_address):
        yield None if prefix == last else prefix
        last = prefix


def longest_match(family: Family, host: bytes, known: Collection[bytes]) -> bytes:
    """The longest of `known` prefixes that covers an address, or the address itself where none does."""
    address = prefix_address(family, host)
    for length in range(family.max_length, -1, -1):
        prefix = make_prefix(address, length)
        if prefix in known:
            return prefix
    return host


# --- Adj-RIB-In


def received(core: Core, peer: Peer, wanted: Wanted) -> Iterator[Row | None]:
    """What a peer announced, as it announced it, and what became of each route: refused ones and stale ones included."""
    rib, adj_in = core.ribs[wanted.family], peer.adj_in[wanted.family]
    announced = wanted.among(_Announced(rib, adj_in))
    for prefix in in_order(announced):
        if prefix is None:
            yield None
            continue
        path = _path_of(rib, adj_in, prefix)
        yield None if path is None else _received(rib, adj_in, prefix, path)


class _Announced(Collection[bytes]):
    """The prefixes of an Adj-RIB-In, which are kept in the table (see `rib.table`)."""

    def __init__(self, rib: FamilyRib, adj_in: AdjRibIn) -> None:
        self._rib = rib
        self._adj_in = adj_in

    def __contains__(self, prefix: object) -> bool:
        return isinstance(prefix, bytes) and _path_of(self._rib, self._adj_in, prefix) is not None

    def __iter__(self) -> Iterator[bytes]:
        return chain(self._rib.table, self._adj_in.refused) if self._adj_in.count else iter(())

    def __len__(self) -> int:
        return self._adj_in.count


def announces(core: Core, peer: Peer, family: Family) -> Collection[bytes]:
    """The prefixes a peer has announced, to look one up in."""
    return _Announced(core.ribs[family], peer.adj_in[family])


def _path_of(rib: FamilyRib, adj_in: AdjRibIn, prefix: bytes) -> Path | None:
    """The path a peer announced for a prefix, as it came in or was kept out."""
    kept_out = adj_in.refused.get(prefix)
    if kept_out is not None:
        return kept_out
    return next((path for path in rib.candidates(prefix) if path.source is adj_in.source), None)


def _received(rib: FamilyRib, adj_in: AdjRibIn, prefix: bytes, path: Path) -> Row:
    refused = prefix in adj_in.refused
    row: Row = {
        "peer": adj_in.source.name,
        "family": rib.family.label,
        "prefix": format_prefix(rib.family, prefix),
        **describe(path.announced.attrs),
        "accepted": not refused and not path.rejected,
        "stale": path.epoch != adj_in.epoch,
        "best": False,
        "multipath": False,
    }
    if path.rejected:
        row["reason"] = path.rejected
    elif refused:
        row["reason"] = f"refused on import by {adj_in.import_filter.evaluate(rib.family, prefix, path).rule}"
    elif not path.usable:
        row["reason"] = f"next hop {path.next_hop.text}" if path.next_hop is not None else "not usable"
    else:
        usable = [each for each in rib.candidates(prefix) if each.usable]
        verdicts = explain(usable, maximum_paths=rib.maximum_paths)
        verdict = next(verdict for verdict in verdicts if verdict.path is path)
        row.update(best=path is rib.best(prefix), multipath=verdict.multipath, reason=verdict.text)
    if path.announced is not path:
        rule = adj_in.import_filter.evaluate(rib.family, prefix, path.announced).rule
        row["changedBy"] = rule
        before, after = describe(path.announced.attrs), describe(path.attrs)
        row["changedTo"] = {
            name: after.get(name) for name in {**before, **after} if before.get(name) != after.get(name)
        }
    return row


# --- Adj-RIB-Out


def advertised(core: Core, peer: Peer, wanted: Wanted, *, every: bool = False) -> Iterator[Row | None]:
    """What a peer is told, with the attributes it is told; with `every` also what it is not told, and why.

    `state` is `sent`; `pending` where the peer is about to be told, since its socket takes no more or its turn has not
    come; `withdrawing` where it is about to be told that the route is gone; or `not advertised`.
    """
    adj_out = peer.adj_out.get(wanted.family)
    if adj_out is None:
        return
    rib, group = core.ribs[wanted.family], adj_out.group
    owed: set[bytes] = set()
    for prefixes in adj_out.owed():
        owed.update(prefixes)
        yield None
    for change in list(rib.changes):
        for start in range(0, len(change.prefixes), SLICE):
            owed.update(change.prefixes[start : start + SLICE])
            yield None
    read: dict[bytes, AttributeSet] = {}
    for prefix in in_order(chain(wanted.among(rib.table), wanted.among(owed))):
        if prefix is None:
            yield None
            continue
        path = rib.best(prefix)
        told = group.exported(prefix, path) if path is not None and path.source is not peer.source else None
        row: Row = {
            "peer": peer.plan.name,
            "family": wanted.family.label,
            "prefix": format_prefix(wanted.family, prefix),
            "from": path.source.name if path is not None else None,
        }
        if told is not None and path is not None:
            if told not in read:
                read[told] = _read(told, group)
            waits = prefix in owed and not adj_out.said_before(prefix, path)
            state = "pending" if adj_out.held or waits else "sent"
            yield {**row, "state": state, **describe(read[told])}
        elif prefix in owed and not adj_out.first:
            yield {**row, "state": "withdrawing", "reason": _why_not(peer, adj_out, prefix, path)}
        elif every:
            yield {**row, "state": "not advertised", "reason": _why_not(peer, adj_out, prefix, path)}
        else:
            yield None


def _read(octets: bytes, group: UpdateGroup) -> AttributeSet:
    """Attributes from the octets of an UPDATE; in IPv6 the next hop stands before them, see `rib.export`."""
    policy = group.policy
    next_hop, block = b"", octets
    if policy.family is not Family.IPV4_UNICAST:
        next_hop, block = octets[1 : 1 + octets[0]], octets[1 + octets[0] :]
    fields = read_attributes(block, four_octet_as=policy.four_octet_as, external=False).fields
    if next_hop:
        fields["next_hop"], fields["link_local"] = next_hop[:16], next_hop[16:]
    return AttributeSet(**fields)


def _why_not(peer: Peer, adj_out: AdjRibOut, prefix: bytes, path: Path | None) -> str:
    """Why a peer is not told of a prefix."""
    if path is None:
        return "there is no usable path to it"
    if path.source is peer.source:
        return "it is where the best path came from"
    policy = adj_out.group.policy
    reason = refusal(path, policy)
    if reason is not None:
        return reason
    verdict = policy.export_filter.evaluate(policy.family, prefix, path)
    return "its attributes fill a whole message (RFC 4271 9.2)" if verdict.accept else verdict.rule
