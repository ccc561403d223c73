"""Our own routes: what is desired, what the kernel holds, and the writes that lead from one to the other.

Per family one dictionary says what the kernel holds of ours (prefix -> shared KernelRoute). What is desired is the same,
but for the exceptions, which are small when nothing happens: `queued` (to be written), `failed` (refused, to be retried),
`disturbed` (removed or changed by somebody else, to be repaired), `stale` (found at start and not asked for yet).

Invariants:
- A new route is created exclusively, so that a foreign route is never replaced. Only what the kernel is known to hold as
  ours is replaced, and without NLM_F_CREATE. Deletions name our protocol number.
- A prefix changed twice before being written is written once.
- `installed` runs ahead of the kernel by the chunks in flight; a refusal sets it back.
- Every refusal is told once in `failures` until it changes, and once in `cleared` when it ends.

Complications first:
- IPv6 lets other programs append legs to our route, in one multipath group. Those legs are foreign: such a prefix is
  changed by deleting our legs one by one and creating exclusively, which the kernel then refuses.
- A notification may be older than our last write. Believing it leads at worst to EEXIST without a foreign route in sight,
  which asks for a dump (`suspect`), and the dump settles it.
- Somebody who removes the same route again and again is answered later each time.
"""

from __future__ import annotations

import errno as errnos
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import NamedTuple

from routed.dataplane.watch import Watch
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.netlink.messages import HEADER, Refusal, fence
from routed.netlink.numbers import NLM_F_REPLACE, RTM_DELROUTE
from routed.netlink.routes import Operation, RouteFacts, encode_routes, message_length, refused_prefix
from routed.observed import ForeignRoute, RouteFailure
from routed.rib.nexthops import PROTOCOL_NAMES

#: Octets of one send: about 2,000 IPv4 routes or 8 ms of the kernel's time, well below the default send buffer.
CHUNK_BYTES = 128 * 1024
#: Chunks handed out and not acknowledged: one with the kernel, one ready for it.
MAX_IN_FLIGHT = 2
#: Prefixes examined in one turn where nothing needs writing, repaired or retried at a time.
SLICE = 4000

#: Seconds until refused routes are tried again, doubling from first to last.
RETRY_FIRST, RETRY_LAST = 1.0, 30.0
#: Between slices of one round of retries, and before a retry that an event asked for.
RETRY_SOON = 0.05
#: Seconds until a route somebody removed is put back, doubling each time it happens again; and when that is forgiven.
REPAIR_FIRST, REPAIR_LAST, REPAIR_FORGIVEN = 0.05, 60.0, 120.0
#: Seconds between attempts where we are not permitted to write at all.
DENIED_RETRY = 5.0

NOT_PERMITTED = "not permitted to change routes: run as root or give CAP_NET_ADMIN"

_MAX_SHARED_ROUTES = 65536
_GONE = object()
_ABSENT_ERRNOS = frozenset({errnos.ESRCH, errnos.ENOENT, errnos.ENODEV})


class Refused(NamedTuple):
    """What we wanted and why the kernel did not. Shared by all prefixes with the same story."""

    route: KernelRoute | None
    errno: int
    text: str
    """The kernel's extended-ACK sentence."""


@dataclass(frozen=True, slots=True)
class FibEntry:
    """One route of ours, for people."""

    family: Family
    prefix: bytes
    route: KernelRoute | None
    """What it should be; what it is where `state` is stale; None where it should go."""
    state: str
    """installed | pending | failed | stale (found at start, waits for its owner or the sweep)"""
    reason: str = ""


@dataclass(slots=True)
class RouteCounters:
    """Since start, for metrics."""

    added: int = 0
    replaced: int = 0
    deleted: int = 0
    repaired: int = 0
    """Put back after somebody else removed or changed them."""
    failures: dict[int, int] = field(default_factory=dict)
    """By errno."""
    chunks: int = 0


class _Table:
    """One family's routes, see the module's docstring."""

    __slots__ = (
        "disturbed", "failed", "family", "fights", "installed", "leftovers", "odd", "queued", "stale", "swept", "unseen",
    )  # fmt: skip

    def __init__(self, family: Family) -> None:
        self.family = family
        self.installed: dict[bytes, KernelRoute] = {}
        self.queued: dict[bytes, KernelRoute | None] = {}
        self.failed: dict[bytes, Refused] = {}
        self.disturbed: dict[bytes, KernelRoute] = {}
        self.stale: set[bytes] = set()
        self.swept = False
        self.fights: dict[bytes, int] = {}
        """How often somebody disturbed a prefix lately."""
        self.leftovers: list[tuple[bytes, int]] = []
        """Routes of ours at another metric than today's, to be swept: (prefix, metric)."""
        self.unseen: dict[bytes, KernelRoute] = {}
        """During a dump: what it should show and has not yet."""
        self.odd: dict[bytes, KernelRoute] = {}
        """During a dump: what it showed that differs from what we believed."""


class _Batch:
    __slots__ = ("metric", "position", "prefixes", "route", "table")

    def __init__(self, table: _Table, route: KernelRoute | None, prefixes: Sequence[bytes], metric: int) -> None:
        self.table = table
        self.route = route
        self.prefixes = prefixes
        self.metric = metric
        """Of a leftover; -1 for our own."""
        self.position = 0


class _Segment:
    """Part of a chunk: one operation on prefixes that share a route."""

    __slots__ = ("_members", "before", "operation", "prefixes", "route", "table")

    def __init__(
        self,
        table: _Table,
        operation: Operation,
        route: KernelRoute | None,
        prefixes: Sequence[bytes],
        before: dict[bytes, KernelRoute],
    ) -> None:
        self.table = table
        self.operation = operation
        self.route = route
        self.prefixes = prefixes
        self.before = before
        """What the kernel held, of prefixes replaced or deleted."""
        self._members: frozenset[bytes] | None = None

    def __contains__(self, prefix: bytes) -> bool:
        if self._members is None:
            self._members = frozenset(self.prefixes)
        return prefix in self._members


class _Chunk:
    __slots__ = ("refused", "segments", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.segments: list[_Segment] = []
        self.refused: set[tuple[Family, bytes]] = set()


class RouteSync:
    """The writer's mind. The engine feeds it and carries its chunks; see the module's docstring."""

    def __init__(self, watch: Watch, *, table: int, protocol: int, metric: int) -> None:
        self.failures: list[RouteFailure] = []
        self.cleared: list[tuple[Family, bytes]] = []
        self.counters = RouteCounters()
        self.problem = ""
        """Why nothing at all can be written, or empty."""
        self.suspect = False
        """Something is not as we believe: a dump is needed."""
        self.held = False
        """No chunk may go out, a dump is being read."""
        self.found: set[Family] = set()
        """Families that had routes of ours when the first dump was read."""
        self._watch = watch
        self._table_number = table
        self._protocol = protocol
        self._metric = metric
        self._tables = {family: _Table(family) for family in Family}
        self._queue: deque[_Batch] = deque()
        self._in_flight: deque[_Chunk] = deque()
        self._sequence = 0
        self._shared: dict[KernelRoute, KernelRoute] = {}
        """One object for equal routes, so that comparing is `is`."""
        self._forgot_shared = False
        self._facts: RouteFacts | None = None
        self._facts_route = KernelRoute(RouteKind.UNICAST)
        self._refusals: dict[Refused, Refused] = {}
        self._retry_at: float | None = None
        self._retry_delay = RETRY_FIRST
        self._retry_round: list[tuple[_Table, list[bytes]]] = []
        self._repairs: dict[int, tuple[float, list[tuple[_Table, bytes]]]] = {}
        """By how often it happened: when, and which."""
        self._forgive_at: float | None = None
        self._denied_until: float | None = None

    # ---- what is wanted

    def apply(self, batches: Iterable[RouteBatch]) -> None:
        """The prefixes of each batch should be its route from now on (None: absent)."""
        for batch in batches:
            table = self._tables[batch.family]
            prefixes = batch.prefixes
            if table.stale:
                table.stale.difference_update(prefixes)
            if table.disturbed:
                for prefix in prefixes:
                    table.disturbed.pop(prefix, None)
            self._enqueue(table, self._share(batch.route), prefixes)

    def sweep(self, families: Iterable[Family]) -> None:
        """What was found at start and not asked for since goes; so does, from now on, what turns up under our number."""
        for family in families:
            table = self._tables[family]
            table.swept = True
            stale, table.stale = table.stale, set()
            if stale:
                self._enqueue(table, None, list(stale))
            self._sweep_leftovers(table)

    # ---- bytes out, bytes in

    def take_write(self, now: float) -> bytes | None:
        """The next chunk to send; empty where work was done without need to write; None where there is nothing to do."""
        if self.held or not self._queue or len(self._in_flight) >= MAX_IN_FLIGHT:
            return None
        budget = CHUNK_BYTES
        if self._denied_until is not None:
            if now < self._denied_until or self._in_flight:
                return None
            budget = 1
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        chunk = _Chunk(self._sequence)
        out: list[bytes] = []
        size, examined = 0, 0
        while self._queue and size < budget and examined < SLICE:
            batch = self._queue[0]
            start = batch.position
            room = max(1, min((budget - size) // message_length(batch.table.family, batch.route), SLICE - examined))
            batch.position = start + room
            prefixes: Sequence[bytes]
            if batch.position >= len(batch.prefixes):
                self._queue.popleft()
                prefixes = batch.prefixes[start:] if start else batch.prefixes
            else:
                prefixes = batch.prefixes[start : batch.position]
            examined += len(prefixes)
            if batch.metric >= 0:
                size += self._write_leftovers(chunk, out, batch.table, prefixes, batch.metric)
            else:
                size += self._write(chunk, out, batch.table, batch.route, prefixes, now)
        if not out:
            return b""
        out.append(fence(chunk.sequence))
        self._in_flight.append(chunk)
        self.counters.chunks += 1
        return b"".join(out)

    def refused(self, sequence: int, refusal: Refusal, now: float) -> None:
        """The kernel refused one message of a chunk."""
        chunk = next((chunk for chunk in self._in_flight if chunk.sequence == sequence), None)
        where = refused_prefix(refusal)
        if chunk is None or where is None:
            return
        family, prefix = where
        _, kind, flags, _, _ = HEADER.unpack_from(refusal.request)
        operation = Operation.REPLACE if flags & NLM_F_REPLACE else Operation.EXCLUSIVE
        if kind == RTM_DELROUTE:
            operation = Operation.DELETE
        for segment in chunk.segments:
            if segment.operation is operation and segment.table.family is family and prefix in segment:
                self._refused(chunk, segment, prefix, refusal, now)
                return

    def acknowledged(self, sequence: int, now: float) -> None:
        """The kernel is through with a chunk."""
        while self._in_flight and self._in_flight[0].sequence != sequence:
            self._in_flight.popleft()  # its acknowledgement got lost; the dump that follows tells what came of it
            self.suspect = True
        if not self._in_flight:
            return
        chunk = self._in_flight.popleft()
        counters = self.counters
        refused = chunk.refused
        done = False
        for segment in chunk.segments:
            table = segment.table
            count = len(segment.prefixes)
            if refused:
                count -= sum((table.family, prefix) in refused for prefix in segment.prefixes)
            done = done or count > 0
            if segment.operation is Operation.EXCLUSIVE:
                counters.added += count
            elif segment.operation is Operation.REPLACE:
                counters.replaced += count
            else:
                counters.deleted += count
            if table.failed:
                for prefix in segment.prefixes:
                    if prefix in table.failed and (table.family, prefix) not in refused:
                        self._clear(table, prefix, now)
        if done and self._denied_until is not None:
            self._denied_until = None
            self.problem = ""

    def replies_lost(self) -> None:
        """The kernel's answers to what is in flight are lost; only a dump can tell."""
        self._in_flight.clear()
        self.suspect = True

    # ---- what others do to our routes

    def own_removed(self, family: Family, prefix: bytes, facts: RouteFacts, now: float) -> None:
        """Somebody else removed our route, or some legs of it."""
        table = self._tables[family]
        old = table.installed.get(prefix)
        if old is None:
            return
        left = tuple(leg for leg in old.gateways if leg not in facts.gateways)
        if family is Family.IPV6_UNICAST and left:
            table.installed[prefix] = self._share(KernelRoute(old.kind, left)) or old
            if prefix not in table.stale:
                self._disturb(table, prefix, old, now)
            return
        del table.installed[prefix]
        if prefix in table.stale:
            table.stale.discard(prefix)
        else:
            self._disturb(table, prefix, old, now)

    def own_seen(self, family: Family, prefix: bytes, facts: RouteFacts, now: float) -> None:
        """Somebody else made a route under our number, or changed ours."""
        table = self._tables[family]
        route = self._route_of(facts)
        old = table.installed.get(prefix)
        if old is None:
            self._unknown(table, prefix, route, now)
        elif not _same(old, route):
            if family is Family.IPV6_UNICAST and set(old.gateways) < set(route.gateways):
                extra = tuple(leg for leg in route.gateways if leg not in old.gateways)
                self._watch.legs_appended(family, prefix, facts, extra)
                return
            table.installed[prefix] = route
            if prefix not in table.stale:
                self._disturb(table, prefix, old, now)

    def own_replaced(self, family: Family, prefix: bytes) -> None:
        """A foreign route took the place of ours. Trying to add ours again tells why it can't be."""
        table = self._tables[family]
        old = table.installed.pop(prefix, None)
        if old is None:
            return
        if prefix in table.stale:
            table.stale.discard(prefix)
        elif prefix not in table.queued:
            self._enqueue(table, table.disturbed.pop(prefix, old), [prefix])

    def foreign_gone(self, family: Family, prefix: bytes) -> None:
        """Nothing foreign holds the prefix any more."""
        table = self._tables[family]
        refused = table.failed.get(prefix)
        if refused is not None and prefix not in table.queued:
            self._enqueue(table, refused.route, [prefix])

    def retry_soon(self, interfaces: set[int], now: float) -> None:
        """Something about these interfaces changed for the better: routes refused there may be accepted now."""
        for refused in self._refusals:
            legs = refused.route.gateways if refused.route is not None else ()
            if any(not leg.interface or leg.interface in interfaces for leg in legs):
                self._retry_delay = RETRY_FIRST
                self._retry_round = []
                self._retry_at = now + RETRY_SOON
                return

    def uses(self, interface: int) -> bool:
        """Whether a route of ours may lead through the interface."""
        return self._forgot_shared or any(
            leg.interface in (0, interface) for route in self._shared for leg in route.gateways
        )

    def own_gateways(self, family: Family, prefix: bytes) -> tuple[Gateway, ...]:
        """Legs of ours the kernel holds for a prefix."""
        route = self._tables[family].installed.get(prefix)
        return route.gateways if route is not None else ()

    # ---- dumps

    def begin_dump(self) -> None:
        """A dump of the table follows. Nothing may be in flight, and `held` is set until it ends."""
        self.suspect = False
        for table in self._tables.values():
            table.unseen = dict(table.installed)
            table.odd = {}
            table.leftovers = []

    def found_own(self, family: Family, prefix: bytes, facts: RouteFacts, now: float) -> None:
        """A route with our protocol number in a dump."""
        table = self._tables[family]
        if facts.metric != self._watch.own_metric(family):
            table.leftovers.append((prefix, facts.metric))
            self.found.add(family)
            return
        route = self._facts_route if facts is self._facts else self._route_of(facts)
        old = table.unseen.pop(prefix, None)
        if old is None:
            if prefix not in table.installed:
                self._unknown(table, prefix, route, now)
        elif old is not route and not _same(old, route):
            table.odd[prefix] = route
        if table.failed and prefix in table.failed and table.failed[prefix].route is route:
            self._clear(table, prefix, now)

    def end_dump(self, now: float) -> bool:
        """The dump is complete: what it did not show is gone. Works a slice at a time; whether there is more to do."""
        for table in self._tables.values():
            family = table.family
            for prefix, route in table.odd.items():
                facts = RouteFacts(0, self._protocol, self._watch.own_metric(family), route.kind, True, route.gateways)
                self.own_seen(family, prefix, facts, now)
            table.odd = {}
            held = self._watch.held(family)
            unseen = table.unseen
            for _ in range(min(SLICE, len(unseen))):
                prefix, route = unseen.popitem()
                foreign = held.get(prefix)
                if (
                    foreign is not None
                    and family is Family.IPV6_UNICAST
                    and route.gateways
                    and set(route.gateways) < set(foreign.gateways)
                ):  # one group, shown under the protocol number of its first leg
                    self._watch.forget_legs(family, prefix, route.gateways)
                    continue
                del table.installed[prefix]
                if prefix in table.stale:
                    table.stale.discard(prefix)
                else:
                    self._disturb(table, prefix, route, now)
            if unseen:
                return True
            if table.swept:
                self._sweep_leftovers(table)
        self.held = False
        return False

    def abandon_dump(self) -> None:
        """Forget what a dump showed so far; write again."""
        for table in self._tables.values():
            table.unseen = {}
            table.odd = {}
        self.held = False

    # ---- time

    def next_timer(self) -> float | None:
        times = [at for at in (self._retry_at, self._forgive_at) if at is not None]
        times.extend(at for at, _ in self._repairs.values())
        if self._denied_until is not None and self._queue and not self._in_flight:
            times.append(self._denied_until)
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        for level, (at, prefixes) in list(self._repairs.items()):
            if at <= now:
                self._repair(prefixes[:SLICE])
                if len(prefixes) > SLICE:
                    self._repairs[level] = (now, prefixes[SLICE:])
                else:
                    del self._repairs[level]
        if self._forgive_at is not None and self._forgive_at <= now:
            self._forgive_at = None
            for table in self._tables.values():
                table.fights.clear()
        if self._retry_at is not None and self._retry_at <= now:
            self._retry(now)

    # ---- questions

    @property
    def idle(self) -> bool:
        """Everything that can be written is written and acknowledged."""
        return not self._queue and not self._in_flight

    @property
    def in_flight(self) -> bool:
        return bool(self._in_flight)

    def count(self, family: Family) -> int:
        """Routes of ours in the kernel."""
        return len(self._tables[family].installed)

    def failed_count(self, family: Family) -> int:
        return len(self._tables[family].failed)

    def entries(self, family: Family) -> Iterator[FibEntry]:
        """Every route of ours, wanted or there. May be walked in slices while routes change."""
        table = self._tables[family]
        for prefix in list(table.installed):
            if prefix not in table.queued and prefix not in table.failed and prefix not in table.disturbed:
                entry = self.entry(family, prefix)
                if entry is not None:
                    yield entry
        for prefix in [*table.queued, *table.failed, *table.disturbed]:
            entry = self.entry(family, prefix)
            if entry is not None:
                yield entry

    def entry(self, family: Family, prefix: bytes) -> FibEntry | None:
        """One route of ours, or None."""
        table = self._tables[family]
        failed = table.failed.get(prefix)
        if prefix in table.queued:
            route = table.queued[prefix]
            reason = self.problem or (self._reason(family, prefix, failed) if failed is not None else "")
            return FibEntry(family, prefix, route, "failed" if failed is not None else "pending", reason)
        if failed is not None:
            return FibEntry(family, prefix, failed.route, "failed", self._reason(family, prefix, failed))
        if prefix in table.disturbed:
            reason = "another program removed or changed it; it is about to be put back"
            return FibEntry(family, prefix, table.disturbed[prefix], "pending", reason)
        route = table.installed.get(prefix)
        if route is None:
            return None
        return FibEntry(family, prefix, route, "stale" if prefix in table.stale else "installed")

    # ---- inside: writing

    def _enqueue(self, table: _Table, route: KernelRoute | None, prefixes: Sequence[bytes]) -> None:
        table.queued.update(dict.fromkeys(prefixes, route))
        self._queue.append(_Batch(table, route, prefixes, -1))

    def _write(
        self,
        chunk: _Chunk,
        out: list[bytes],
        table: _Table,
        route: KernelRoute | None,
        prefixes: Sequence[bytes],
        now: float,
    ) -> int:
        """Put what prefixes of the queue need into a chunk; octets added."""
        queued = table.queued
        values: list[object] = list(map(queued.pop, prefixes, repeat(_GONE)))
        if values.count(route) != len(values):
            current = []
            for prefix, value in zip(prefixes, values, strict=True):
                if value is route:
                    current.append(prefix)
                elif value is None or isinstance(value, KernelRoute):  # changed since: a later batch writes it
                    queued[prefix] = value
            prefixes = current
            if not prefixes:
                return 0
        installed = table.installed
        if route is None:
            return self._write_deletions(chunk, out, table, prefixes, now)
        if installed.keys().isdisjoint(prefixes):
            installed.update(dict.fromkeys(prefixes, route))
            return self._put(chunk, out, _Segment(table, Operation.EXCLUSIVE, route, prefixes, {}))
        new, changed = [], {}
        for prefix in prefixes:
            old = installed.get(prefix)
            if old is None:
                new.append(prefix)
            elif old is not route and not _same(old, route):
                changed[prefix] = old
            elif prefix in table.failed:
                self._clear(table, prefix, now)
        held = self._watch.held(table.family)
        shared = [prefix for prefix in changed if prefix in held] if held else []
        size = 0
        for prefix in shared:
            old = changed.pop(prefix)
            size += self._put(chunk, out, _Segment(table, Operation.DELETE, old, [prefix], {prefix: old}))
            new.append(prefix)
        installed.update(dict.fromkeys(prefixes, route))
        if changed:
            size += self._put(chunk, out, _Segment(table, Operation.REPLACE, route, list(changed), changed))
        if new:
            size += self._put(chunk, out, _Segment(table, Operation.EXCLUSIVE, route, new, {}))
        return size

    def _write_deletions(
        self, chunk: _Chunk, out: list[bytes], table: _Table, prefixes: Sequence[bytes], now: float
    ) -> int:
        installed = table.installed
        before: dict[bytes, KernelRoute] = {}
        for prefix in prefixes:
            old = installed.pop(prefix, None)
            if old is not None:
                before[prefix] = old
            elif prefix in table.failed:
                self._clear(table, prefix, now)
        held = self._watch.held(table.family)
        size = 0
        if held and table.family is Family.IPV6_UNICAST:
            for prefix in [prefix for prefix in before if prefix in held]:
                old = before.pop(prefix)
                size += self._put(chunk, out, _Segment(table, Operation.DELETE, old, [prefix], {prefix: old}))
        if before:
            size += self._put(chunk, out, _Segment(table, Operation.DELETE, None, list(before), before))
        return size

    def _write_leftovers(
        self, chunk: _Chunk, out: list[bytes], table: _Table, prefixes: Sequence[bytes], metric: int
    ) -> int:
        return self._put(chunk, out, _Segment(table, Operation.DELETE, None, prefixes, {}), metric)

    def _put(self, chunk: _Chunk, out: list[bytes], segment: _Segment, metric: int | None = None) -> int:
        family = segment.table.family
        if metric is None:
            metric = self._metric if family is Family.IPV4_UNICAST else self._watch.own_metric(family)
        data = encode_routes(
            RouteBatch(family, segment.prefixes, segment.route),
            table=self._table_number,
            protocol=self._protocol,
            sequence=chunk.sequence,
            create=segment.operation,
            metric=metric,
        )
        chunk.segments.append(segment)
        out.append(data)
        return len(data)

    def _sweep_leftovers(self, table: _Table) -> None:
        by_metric: dict[int, list[bytes]] = {}
        for prefix, metric in table.leftovers:
            by_metric.setdefault(metric, []).append(prefix)
        table.leftovers = []
        for metric, prefixes in by_metric.items():
            self._queue.append(_Batch(table, None, prefixes, metric))

    # ---- inside: answers

    def _refused(self, chunk: _Chunk, segment: _Segment, prefix: bytes, refusal: Refusal, now: float) -> None:
        table = segment.table
        errno = refusal.errno
        if segment.operation is Operation.DELETE and errno in _ABSENT_ERRNOS:
            return
        chunk.refused.add((table.family, prefix))
        self.counters.failures[errno] = self.counters.failures.get(errno, 0) + 1
        index = self._in_flight.index(chunk)
        for later in islice(self._in_flight, index + 1, None):
            if any(other.table is table and prefix in other for other in later.segments):
                return  # what is on its way decides
        old = segment.before.get(prefix)
        wanted = segment.route if segment.operation is not Operation.DELETE else None
        if segment.operation is Operation.DELETE and segment.route is not None and prefix in table.installed:
            self.suspect = True  # a change in two steps, the first of which failed
            return
        if old is not None and errno != errnos.ENOENT:
            table.installed[prefix] = old
        else:
            table.installed.pop(prefix, None)
        if prefix in table.queued:
            return
        if errno == errnos.EPERM:
            self.problem = NOT_PERMITTED
            self._denied_until = now + DENIED_RETRY
            self._enqueue(table, wanted, [prefix])
        elif segment.operation is Operation.REPLACE and errno == errnos.ENOENT:
            self._enqueue(table, wanted, [prefix])  # ours was gone: create it
        else:
            self._fail(table, prefix, wanted, refusal, now)

    def _fail(self, table: _Table, prefix: bytes, wanted: KernelRoute | None, refusal: Refusal, now: float) -> None:
        refused = Refused(wanted, refusal.errno, refusal.text)
        if len(self._refusals) >= _MAX_SHARED_ROUTES:
            self._refusals.clear()
        refused = self._refusals.setdefault(refused, refused)
        if refusal.errno == errnos.EEXIST and prefix not in self._watch.held(table.family):
            self.suspect = True
        if self._retry_at is None:
            self._retry_at = now + self._retry_delay
        if table.failed.get(prefix) == refused:
            return
        table.failed[prefix] = refused
        reason = self._reason(table.family, prefix, refused)
        self.failures.append(RouteFailure(table.family, prefix, refused.errno, reason))

    def _clear(self, table: _Table, prefix: bytes, now: float) -> None:
        """A refusal is over."""
        del table.failed[prefix]
        self.cleared.append((table.family, prefix))
        if any(each.failed for each in self._tables.values()):
            if self._retry_at is not None:  # what helped this one may help the others
                self._retry_at = min(self._retry_at, now + RETRY_SOON)
        else:
            self._refusals.clear()
            self._retry_at = None
            self._retry_delay = RETRY_FIRST
            self._retry_round = []

    def _retry(self, now: float) -> None:
        """Queue the next slice of a round of retries; conflicts with a known foreign route wait for that to go."""
        if not self._retry_round:
            self._retry_round = [(table, list(table.failed)) for table in self._tables.values() if table.failed]
        for table, prefixes in self._retry_round[:1]:
            held = self._watch.held(table.family)
            part = prefixes[:SLICE]
            del prefixes[:SLICE]
            by_route: dict[KernelRoute | None, list[bytes]] = {}
            for prefix in part:
                refused = table.failed.get(prefix)
                if refused is None or prefix in table.queued or (refused.errno == errnos.EEXIST and prefix in held):
                    continue
                by_route.setdefault(refused.route, []).append(prefix)
            for route, these in by_route.items():
                self._enqueue(table, route, these)
            if not prefixes:
                del self._retry_round[0]
        if self._retry_round:
            self._retry_at = now + RETRY_SOON
        else:
            self._retry_delay = min(self._retry_delay * 2, RETRY_LAST)
            self._retry_at = now + self._retry_delay if any(each.failed for each in self._tables.values()) else None

    def _reason(self, family: Family, prefix: bytes, refused: Refused) -> str:
        text = format_prefix(family, prefix)
        if refused.errno == errnos.EEXIST:
            foreign = self._watch.held(family).get(prefix)
            by = self._describe_foreign(foreign) if foreign is not None else "a route of another program"
            return f"refused: {text} is held by {by}; remove it or filter the prefix"
        what = f"to remove {text}" if refused.route is None else f"{text} {self.describe(refused.route)}"
        extra = f" ({refused.text})" if refused.text else ""
        return f"the kernel refused {what}: {os.strerror(refused.errno)}{extra}"

    def _describe_foreign(self, foreign: ForeignRoute) -> str:
        protocol = PROTOCOL_NAMES.get(foreign.protocol, f"protocol {foreign.protocol}")
        legs = " ".join(self._leg(leg) for leg in foreign.gateways)
        return f"a {protocol} route" + (f" {legs}" if legs else "")

    def describe(self, route: KernelRoute) -> str:
        """`via 10.0.0.2 dev eth0`, as `ip route` has it."""
        if route.kind is not RouteKind.UNICAST:
            return route.kind.name.lower()
        return " ".join(self._leg(leg) for leg in route.gateways)

    def _leg(self, leg: Gateway) -> str:
        via = f"via {format_address(leg.address)}" if leg.address else ""
        device = f"dev {self._watch.interface_name(leg.interface)}" if leg.interface else ""
        return " ".join(word for word in (via, device, "onlink" if leg.onlink else "") if word)

    # ---- inside: repair

    def _unknown(self, table: _Table, prefix: bytes, route: KernelRoute, now: float) -> None:
        """The kernel holds a route under our number that we did not know of."""
        table.installed[prefix] = route
        if prefix in table.queued or prefix in table.disturbed:
            return  # about to be made what it should be
        refused = table.failed.get(prefix)
        if refused is not None:
            if refused.route is not route:
                self._enqueue(table, refused.route, [prefix])
            else:
                self._clear(table, prefix, now)
        elif table.swept:
            self._enqueue(table, None, [prefix])
        else:
            table.stale.add(prefix)
            self.found.add(table.family)

    def _disturb(self, table: _Table, prefix: bytes, wanted: KernelRoute, now: float) -> None:
        """Somebody removed or changed our route: put it back, later each time."""
        if prefix in table.queued:
            return
        refused = table.failed.get(prefix)
        if refused is not None:
            if refused.route is not None:
                self._enqueue(table, refused.route, [prefix])
            else:
                self._clear(table, prefix, now)
            return
        level = table.fights.get(prefix, 0)
        table.fights[prefix] = level + 1
        self._forgive_at = now + REPAIR_FORGIVEN
        if prefix in table.disturbed:
            return
        table.disturbed[prefix] = wanted
        at, prefixes = self._repairs.setdefault(level, (now + min(REPAIR_FIRST * 2**level, REPAIR_LAST), []))
        prefixes.append((table, prefix))

    def _repair(self, prefixes: list[tuple[_Table, bytes]]) -> None:
        runs: dict[tuple[Family, KernelRoute], list[bytes]] = {}
        for table, prefix in prefixes:
            wanted = table.disturbed.pop(prefix, None)
            if wanted is not None:
                runs.setdefault((table.family, wanted), []).append(prefix)
        for (family, wanted), these in runs.items():
            self.counters.repaired += len(these)
            self._enqueue(self._tables[family], wanted, these)

    # ---- inside: one object for equal routes

    def _share(self, route: KernelRoute | None) -> KernelRoute | None:
        if route is None:
            return None
        if len(self._shared) >= _MAX_SHARED_ROUTES:
            self._shared.clear()
            self._forgot_shared = True
        return self._shared.setdefault(route, route)

    def _route_of(self, facts: RouteFacts) -> KernelRoute:
        """The route a message of the kernel describes."""
        if facts.kind in (RouteKind.UNICAST, RouteKind.BLACKHOLE):
            route = KernelRoute(RouteKind(facts.kind), facts.gateways)
        else:  # a kind we never write: equal to nothing we want
            route = KernelRoute(RouteKind.UNICAST)
        shared = self._share(route) or route
        self._facts, self._facts_route = facts, shared
        return shared


def _same(wanted: KernelRoute, seen: KernelRoute) -> bool:
    """Whether what the kernel shows is what we wrote; an interface we left to the kernel may be any."""
    if wanted == seen:
        return True
    if wanted.kind is not seen.kind or len(wanted.gateways) != len(seen.gateways):
        return False
    if all(leg.interface for leg in wanted.gateways):
        return False
    return all(
        ours.address == theirs.address and ours.onlink == theirs.onlink and ours.interface in (0, theirs.interface)
        for ours, theirs in zip(wanted.gateways, sorted(seen.gateways, key=lambda leg: leg.address), strict=True)
    )
