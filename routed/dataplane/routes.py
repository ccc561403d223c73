"""Our own routes: from what is desired and what the kernel holds to the writes that lead from one to the other.

Invariants:
- A new route is created exclusively, so that a foreign route is never replaced. Only what the kernel is known to hold as
  ours is replaced, and without NLM_F_CREATE. Deletions name our protocol number.
- A prefix changed twice before being written is written once.
- `installed` runs ahead of the kernel by the chunks in flight; a refusal sets it back.
- A route whose metric changes is made at the new one before the old one goes.
- Every refusal is told once in `failures` until it changes, and once in `cleared` when it ends.

Complications first:
- IPv6 lets other programs append legs to our route, in one multipath group. Those legs are foreign: such a prefix is
  changed by deleting our legs one by one and creating exclusively, which the kernel then refuses.
- The kernel shows such a group under the protocol number of its first leg. When we start, a group that begins with our
  leg counts as ours as a whole: nothing tells the others' legs apart.
- A notification may be older than our last write. Believing it leads at worst to EEXIST without a foreign route in
  sight, which asks for a dump (`suspect`), and the dump settles it.

Long for one idea: the life of a route between wanted, queued, in flight, installed, disturbed and refused, every event of
which may meet every state.

Not here: when to try again (`patience`), what is foreign (`watch`), dumps and notifications as bytes (`engine`).
"""

from __future__ import annotations

import errno as errnos
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from itertools import islice, repeat

from routed.dataplane.chunks import Batch, Chunk, Segment
from routed.dataplane.ours import FibEntry, OwnRoutes, Refused, metric_of, same_route, why_refused
from routed.dataplane.patience import SLICE, Repairs, Retries, RouteId
from routed.dataplane.watch import Watch
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.families import Family
from routed.netlink.messages import HEADER, Refusal
from routed.netlink.numbers import NLM_F_REPLACE, RTM_DELROUTE
from routed.netlink.routes import Operation, RouteFacts, message_length, refused_prefix
from routed.observed import RouteFailure
from routed.values import dataclass

#: Octets of one send: about 2,000 IPv4 routes or 8 ms of the kernel's time, well below the default send buffer.
CHUNK_BYTES = 128 * 1024
#: Chunks handed out and not acknowledged: one with the kernel, one ready for it.
MAX_IN_FLIGHT = 2

#: Deletions between two neighbours, at least, where many are waiting.
SCATTER_RUN = 1000
#: Seconds between attempts where we are not permitted to write at all.
DENIED_RETRY = 5.0

NOT_PERMITTED = "not permitted to change routes: run as root or give CAP_NET_ADMIN"

_MAX_SHARED_ROUTES = 65536
#: Routes that are searched for those through an interface; of more it is believed that there are some.
_MAX_SEARCHED = 20_000
_GONE = object()
_NOWHERE = KernelRoute(RouteKind.UNICAST)
_ABSENT_ERRNOS = frozenset({errnos.ESRCH, errnos.ENOENT, errnos.ENODEV})


@dataclass(slots=True)
class RouteCounters:
    """Since start, for metrics."""

    added: int = 0
    replaced: int = 0
    deleted: int = 0
    repaired: int = 0
    """Put back after somebody else removed or changed them."""
    failures: dict[int, int] = field(default_factory=dict)
    """Refusals by errno, every attempt counted."""
    chunks: int = 0


class RouteSync:
    """The writer's mind. The engine feeds it and carries its chunks; see the module's docstring."""

    def __init__(self, watch: Watch, *, table: int, protocol: int) -> None:
        self.failures: list[RouteFailure] = []
        self.cleared: list[tuple[Family, bytes]] = []
        self.counters = RouteCounters()
        self.done_tickets: list[int] = []
        """Tickets all routes of which the kernel took or refused since the owner last took the list away."""
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
        self._tables = {family: OwnRoutes(family) for family in Family}
        self._queue: deque[Batch] = deque()
        self._in_flight: deque[Chunk] = deque()
        self._sequence = 0
        self._shared: dict[KernelRoute, KernelRoute] = {}
        """One object for equal routes, so that comparing is `is`."""
        self._through: dict[int, set[KernelRoute]] = {}
        """Those of them with a leg through an interface, by its index; 0: whichever the kernel chose."""
        self._forgot_shared = False
        self._metrics = False
        """Some route of ours has a metric of its own."""
        self._facts: RouteFacts | None = None
        self._facts_family = Family.IPV4_UNICAST
        self._facts_route = _NOWHERE
        self._refusals: set[Refused] = set()
        self._uncertain: dict[RouteId, set[Gateway]] = {}
        """Legs of ours that may be or may have gone, since the kernel's answer was lost."""
        self._retries = Retries()
        self._repairs = Repairs()
        self._denied_until: float | None = None
        self._open_tickets: dict[int, int] = {}
        """Batches of each ticket the kernel has not answered yet."""

    # ---- what is wanted

    def apply(self, batches: Iterable[RouteBatch], ticket: int = 0) -> None:
        """The prefixes of each batch should be its route from now on (None: absent).

        A `ticket` greater than 0 turns up in `done_tickets` once the kernel is through with all that was applied with it.
        """
        for batch in batches:
            table = self._tables[batch.family]
            prefixes = batch.prefixes
            if table.stale:
                table.stale.difference_update(prefixes)
            if table.disturbed:
                for prefix in prefixes:
                    table.disturbed.pop(prefix, None)
            self._enqueue(table, self._share(self._at_metric(batch.family, batch.route)), prefixes)
            if ticket:
                self._queue[-1].tickets = (ticket,)
                self._open_tickets[ticket] = self._open_tickets.get(ticket, 0) + 1

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
        chunk = Chunk(self._sequence)
        examined = 0
        while self._queue and chunk.size < budget and examined < SLICE:
            self._scatter_deletions()
            batch = self._queue[0]
            start = batch.position
            room = max(
                1, min((budget - chunk.size) // message_length(batch.table.family, batch.route), SLICE - examined)
            )
            batch.position = start + room
            prefixes: Sequence[bytes]
            if batch.position >= len(batch.prefixes):
                self._queue.popleft()
                chunk.tickets += batch.tickets
                prefixes = batch.prefixes[start:] if start else batch.prefixes
            else:
                prefixes = batch.prefixes[start : batch.position]
            examined += len(prefixes)
            if batch.metric >= 0:
                self._write_leftovers(chunk, batch.table, prefixes, batch.metric)
            else:
                self._write(chunk, batch.table, batch.route, prefixes, now)
        if not chunk.segments:
            self._tickets_done(chunk.tickets)
            if not self._queue and not self._in_flight:  # what was not permitted is not wanted any more
                self._not_denied()
            return b""
        self._in_flight.append(chunk)
        self.counters.chunks += 1
        return chunk.finish()

    def _scatter_deletions(self) -> None:
        """Have the deletions at the head of the queue go far from each other.

        The kernel's trie reshapes a node with every few neighbours that leave it: half a million routes go three times
        as fast in an order that thins out the whole table than in the order of their addresses (docs/benchmarks.md).
        """
        queue = self._queue
        head = queue[0]
        if head.route is not None or head.metric >= 0 or head.scattered or head.position:
            return
        waiting: list[bytes] = []
        tickets: tuple[int, ...] = ()
        while queue and queue[0].route is None and queue[0].metric < 0 and queue[0].table is head.table:
            batch = queue.popleft()
            waiting += batch.prefixes[batch.position :]
            tickets += batch.tickets
        stride = max(1, len(waiting) // SCATTER_RUN)
        merged = Batch(head.table, None, [each for first in range(stride) for each in waiting[first::stride]])
        merged.scattered = True
        merged.tickets = tickets
        queue.appendleft(merged)

    def _tickets_done(self, tickets: Iterable[int]) -> None:
        for ticket in tickets:
            left = self._open_tickets[ticket] - 1
            if left:
                self._open_tickets[ticket] = left
            else:
                del self._open_tickets[ticket]
                self.done_tickets.append(ticket)

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
            # its acknowledgement got lost; the dump that follows tells what came of it
            self._tickets_done(self._in_flight.popleft().tickets)
            self.suspect = True
        if not self._in_flight:
            return
        chunk = self._in_flight.popleft()
        self._tickets_done(chunk.tickets)
        counters = self.counters
        refused = chunk.refused
        for segment in chunk.segments:
            table = segment.table
            count = len(segment.prefixes)
            if refused:
                count -= sum((table.family, prefix) in refused for prefix in segment.prefixes)
            if segment.operation is Operation.EXCLUSIVE:
                counters.added += count
            elif segment.operation is Operation.REPLACE:
                counters.replaced += count
            else:
                counters.deleted += count
            if table.failed:
                for prefix in segment.prefixes:
                    failed = table.failed.get(prefix)
                    if failed is None or (table.family, prefix) in refused:
                        continue
                    if segment.leftover and failed.route is not None:  # it may have been what stood in the way
                        self._enqueue(table, failed.route, [prefix])
                    else:
                        self._clear(table, prefix, now)
        if not chunk.denied and self._denied_until is not None:
            self._not_denied()

    def replies_lost(self) -> None:
        """The kernel's answers to what is in flight are lost; only a dump can tell."""
        for chunk in self._in_flight:
            self._tickets_done(chunk.tickets)
            for segment in chunk.segments:
                failed = segment.table.failed
                for prefix in failed.keys() & segment.prefixes if failed and not segment.leftover else ():
                    failed[prefix] = failed[prefix]._replace(route=segment.wanted)
                for prefix, before in segment.before.items():
                    self._uncertain.setdefault((segment.table.family, prefix), set()).update(before.gateways)
        if self._in_flight:  # nor whether it was permitted: if not, what is missing is written and refused again
            self._not_denied()
        self._in_flight.clear()
        self.suspect = True

    # ---- what others do to our routes

    def own_removed(self, family: Family, prefix: bytes, facts: RouteFacts, now: float) -> None:
        """Somebody else removed our route, or some legs of it."""
        table = self._tables[family]
        old = table.installed.get(prefix)
        if old is None or metric_of(self._watch, family, old) != facts.metric:
            return
        left = tuple(leg for leg in old.gateways if leg not in facts.gateways)
        if family is Family.IPV6_UNICAST and left:
            table.installed[prefix] = self._share(KernelRoute(old.kind, left)) or old
            if prefix not in table.stale:
                self._disturb(table, prefix, old, now)
            return
        self._lost(table, prefix, old, now)

    def own_seen(self, family: Family, prefix: bytes, facts: RouteFacts, now: float) -> None:
        """Somebody else made a route under our number, or changed ours."""
        table = self._tables[family]
        route = self._route_of(family, facts)
        old = table.installed.get(prefix)
        if old is None:
            self._unknown(table, prefix, route, now)
        elif old.metric != route.metric:
            table.leftovers.append((prefix, facts.metric))
            if table.swept:
                self._sweep_leftovers(table)
        elif not same_route(old, route):
            if family is Family.IPV6_UNICAST and set(old.gateways) < set(route.gateways):
                ours = self._uncertain.get((family, prefix), set()).union(old.gateways)
                extra = tuple(leg for leg in route.gateways if leg not in ours)
                if extra:
                    self._watch.legs_appended(family, prefix, facts, extra)
                    return
            table.installed[prefix] = route
            if prefix not in table.stale:
                self._disturb(table, prefix, old, now)

    def own_replaced(self, family: Family, prefix: bytes, metric: int, now: float) -> None:
        """A foreign route took the place of ours. Trying to add ours again tells why it can't be."""
        table = self._tables[family]
        old = table.installed.get(prefix)
        if old is None or metric_of(self._watch, family, old) != metric:
            return
        del table.installed[prefix]
        if prefix in table.stale:
            table.stale.discard(prefix)
        elif prefix in table.failed:
            self._disturb(table, prefix, old, now)
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
                self._retries.soon(now)
                return

    def uses(self, interface: int) -> bool:
        """Whether a route of ours may lead through the interface."""
        if self._forgot_shared:
            return True
        through = [*self._through.get(0, ()), *self._through.get(interface, ())]
        if not through or sum(len(table.installed) for table in self._tables.values()) > _MAX_SEARCHED:
            return bool(through)
        # where pods come and go, nearly every interface goes after its routes: that is not worth a dump
        known = set(map(id, through))
        if not all(known.isdisjoint(map(id, table.installed.values())) for table in self._tables.values()):
            return True
        if not (
            self._queue or self._in_flight or any(table.failed or table.disturbed for table in self._tables.values())
        ):
            self._facts = None
            for route in through:
                del self._shared[route]
                for leg in route.gateways:
                    self._through[leg.interface].discard(route)
        return False

    def own_gateways(self, family: Family, prefix: bytes, metric: int) -> tuple[Gateway, ...]:
        """Legs of ours the kernel holds for a prefix at a metric."""
        route = self._tables[family].installed.get(prefix)
        if route is None or metric_of(self._watch, family, route) != metric:
            return ()
        return route.gateways

    def may_be_ours(self, family: Family, metric: int) -> bool:
        """Whether a route of ours may have this metric."""
        return self._metrics or metric == self._watch.own_metric(family)

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
        if facts.metric != self._watch.own_metric(family) and self._is_extra(table, prefix, facts.metric):
            table.leftovers.append((prefix, facts.metric))
            self.found.add(family)
            return
        route = (
            self._facts_route
            if facts is self._facts and family is self._facts_family
            else self._route_of(family, facts)
        )
        old = table.unseen.pop(prefix, None)
        if old is None:
            known = table.installed.get(prefix)
            if known is None:
                self._unknown(table, prefix, route, now)
            elif metric_of(self._watch, family, known) != facts.metric:  # beside one of a lower metric, shown before
                table.leftovers.append((prefix, facts.metric))
        elif old is not route and not same_route(old, route):
            table.odd[prefix] = route
        if table.failed and prefix in table.failed and table.failed[prefix].route is route:
            self._clear(table, prefix, now)

    def _is_extra(self, table: OwnRoutes, prefix: bytes, metric: int) -> bool:
        """Whether a route of ours at an unusual metric is not the one we know of for its prefix."""
        if not metric:
            return True  # no route we write says so: it is of a time when 0 was the usual one
        known = table.unseen.get(prefix) or table.installed.get(prefix)
        return known is not None and metric_of(self._watch, table.family, known) != metric

    def end_dump(self, now: float) -> bool:
        """The dump is complete: what it did not show is gone. Works a slice at a time; whether there is more to do."""
        for table in self._tables.values():
            family = table.family
            for prefix, route in table.odd.items():
                metric = metric_of(self._watch, family, route)
                facts = RouteFacts(0, self._protocol, metric, route.kind, True, route.gateways)
                self.own_seen(family, prefix, facts, now)
            table.odd = {}
            unseen = table.unseen
            for _ in range(min(SLICE, len(unseen))):
                prefix, route = unseen.popitem()
                metric = metric_of(self._watch, family, route)
                foreign = self._watch.holder(family, prefix, metric)
                if (
                    foreign is not None
                    and family is Family.IPV6_UNICAST
                    and route.gateways
                    and set(route.gateways) < set(foreign.gateways)
                ):  # one group, shown under the protocol number of its first leg
                    self._watch.forget_legs(family, prefix, metric, route.gateways)
                    continue
                self._lost(table, prefix, route, now)
            if unseen:
                return True
            if table.swept:
                self._sweep_leftovers(table)
        self._uncertain = {}
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
        times = [at for at in (self._retries.at, self._repairs.next_timer()) if at is not None]
        if self._denied_until is not None and self._queue and not self._in_flight:
            times.append(self._denied_until)
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        repairs = self._repairs.take(now)
        if repairs:
            self._repair(repairs)
        if self._retries.at is not None and self._retries.at <= now:
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

    def pending(self, family: Family) -> int:
        """Prefixes whose route is still to be written or put back."""
        return len(self._tables[family].queued) + len(self._tables[family].disturbed)

    def refused_now(self, family: Family) -> int:
        """Prefixes whose route the kernel refuses."""
        return len(self._tables[family].failed)

    def stale(self, family: Family) -> int:
        """Routes found at start that nobody asked for yet."""
        return len(self._tables[family].stale)

    def entries(self, family: Family) -> Iterator[FibEntry]:
        """Every route of ours, wanted or there. May be walked in slices while routes change."""
        table = self._tables[family]
        exceptions = (table.queued, table.failed, table.disturbed)
        for prefix in list(table.installed):
            if not any(prefix in each for each in exceptions):
                entry = table.entry(prefix, self._watch, self.problem)
                if entry is not None:
                    yield entry
        for prefix in dict.fromkeys([*table.queued, *table.failed, *table.disturbed]):
            entry = table.entry(prefix, self._watch, self.problem)
            if entry is not None:
                yield entry

    def entry(self, family: Family, prefix: bytes) -> FibEntry | None:
        """One route of ours, or None. What is on its way to the kernel is not there before the kernel says so."""
        table = self._tables[family]
        entry = table.entry(prefix, self._watch, self.problem)
        if (
            entry is not None
            and entry.state == "installed"
            and any(chunk.changes(table, prefix) for chunk in self._in_flight)
        ):
            return FibEntry(family, prefix, entry.route, "pending")
        return entry

    # ---- inside: writing

    def _enqueue(self, table: OwnRoutes, route: KernelRoute | None, prefixes: Sequence[bytes]) -> None:
        table.queued.update(dict.fromkeys(prefixes, route))
        self._queue.append(Batch(table, route, prefixes))

    def _write(
        self, chunk: Chunk, table: OwnRoutes, route: KernelRoute | None, prefixes: Sequence[bytes], now: float
    ) -> None:
        """Put what prefixes of the queue need into a chunk."""
        queued = table.queued
        values: list[object] = list(map(queued.pop, prefixes, repeat(_GONE)))
        if values.count(route) != len(values):
            current = []
            for prefix, value in zip(prefixes, values, strict=True):
                if value is route:
                    current.append(prefix)
                elif value is None or isinstance(value, KernelRoute):  # changed since: a later batch writes it
                    queued[prefix] = value
            if not current:
                return
            prefixes = current
        if route is None:
            self._write_deletions(chunk, table, prefixes, now)
        elif table.installed.keys().isdisjoint(prefixes):
            table.installed.update(dict.fromkeys(prefixes, route))
            self._put(chunk, Segment(table, Operation.EXCLUSIVE, route, prefixes))
        else:
            self._write_changes(chunk, table, route, prefixes, now)

    def _write_changes(
        self, chunk: Chunk, table: OwnRoutes, route: KernelRoute, prefixes: Sequence[bytes], now: float
    ) -> None:
        """Some of the prefixes are in the kernel already."""
        installed = table.installed
        family, watch = table.family, self._watch
        olds = list(map(installed.get, prefixes))
        old = olds[0]
        changed: dict[bytes, KernelRoute] = {}
        moved: dict[int, dict[bytes, KernelRoute]] = {}
        new = []
        if (
            old is not None
            and old is not route
            and not self._metrics
            and not watch.held(family)
            and olds.count(old) == len(olds)
        ):
            if not same_route(route, old):  # the usual change: all of one announcement's prefixes
                changed = dict.fromkeys(prefixes, old)
        else:
            for prefix, old in zip(prefixes, olds, strict=True):
                if old is None:
                    new.append(prefix)
                elif old is not route and not same_route(route, old):
                    metric = metric_of(watch, family, old)
                    if old.metric != route.metric:
                        moved.setdefault(metric, {})[prefix] = old
                        new.append(prefix)
                    elif watch.holder(family, prefix, metric) is not None:
                        self._put_delete_legs(chunk, table, prefix, old, instead=route)
                        new.append(prefix)
                    else:
                        changed[prefix] = old
        if table.failed:
            for prefix in prefixes:
                if prefix in table.failed and same_route(route, installed.get(prefix, _NOWHERE)):
                    self._clear(table, prefix, now)
        installed.update(dict.fromkeys(prefixes, route))
        if changed:
            segment = Segment(table, Operation.REPLACE, route, list(changed))
            segment.before = changed
            self._put(chunk, segment)
        if new:
            self._put(chunk, Segment(table, Operation.EXCLUSIVE, route, new))
        for metric, before in moved.items():
            self._put_deletions(chunk, table, before, metric, instead=route)

    def _write_deletions(self, chunk: Chunk, table: OwnRoutes, prefixes: Sequence[bytes], now: float) -> None:
        olds = map(table.installed.pop, prefixes, repeat(None))
        before = {prefix: old for prefix, old in zip(prefixes, olds, strict=True) if old is not None}
        if table.failed:
            for prefix in prefixes:
                if prefix not in before and prefix in table.failed:
                    self._clear(table, prefix, now)
        family, watch = table.family, self._watch
        usual = watch.own_metric(family)
        if family is Family.IPV6_UNICAST and (self._metrics or watch.held(family)):
            for prefix, route in list(before.items()):
                if watch.holder(family, prefix, metric_of(watch, family, route)) is not None:
                    self._put_delete_legs(chunk, table, prefix, before.pop(prefix))
        if self._metrics:
            by_metric: dict[int, dict[bytes, KernelRoute]] = {}
            for prefix, route in before.items():
                by_metric.setdefault(route.metric or usual, {})[prefix] = route
            for metric, some in by_metric.items():
                self._put_deletions(chunk, table, some, metric)
        elif before:
            self._put_deletions(chunk, table, before, usual)

    def _put_deletions(
        self,
        chunk: Chunk,
        table: OwnRoutes,
        before: dict[bytes, KernelRoute],
        metric: int,
        instead: KernelRoute | None = None,
    ) -> None:
        segment = Segment(table, Operation.DELETE, None, list(before))
        segment.instead = instead
        segment.before = before
        self._put(chunk, segment, metric)

    def _write_leftovers(self, chunk: Chunk, table: OwnRoutes, prefixes: Sequence[bytes], metric: int) -> None:
        """Remove what was beside the routes we know of, unless it is the one we know of by now."""
        known = table.installed
        gone = [
            prefix
            for prefix in prefixes
            if prefix not in known or metric_of(self._watch, table.family, known[prefix]) != metric
        ]
        if gone:
            segment = Segment(table, Operation.DELETE, None, gone)
            segment.leftover = True
            self._put(chunk, segment, metric)

    def _put_delete_legs(
        self,
        chunk: Chunk,
        table: OwnRoutes,
        prefix: bytes,
        old: KernelRoute,
        instead: KernelRoute | None = None,
    ) -> None:
        """Remove just what is ours, where a foreign route has the same prefix and metric."""
        legs = old if table.family is Family.IPV6_UNICAST else None
        segment = Segment(table, Operation.DELETE, legs, [prefix])
        segment.before = {prefix: old}
        segment.instead = instead
        self._put(chunk, segment, metric_of(self._watch, table.family, old))

    def _put(self, chunk: Chunk, segment: Segment, metric: int | None = None) -> None:
        if metric is None:
            metric = metric_of(self._watch, segment.table.family, segment.route)
        chunk.put(segment, table=self._table_number, protocol=self._protocol, metric=metric)

    def _sweep_leftovers(self, table: OwnRoutes) -> None:
        by_metric: dict[int, list[bytes]] = {}
        for prefix, metric in table.leftovers:
            by_metric.setdefault(metric, []).append(prefix)
        table.leftovers = []
        for metric, prefixes in by_metric.items():
            self._queue.append(Batch(table, None, prefixes, metric))

    # ---- inside: answers

    def _not_denied(self) -> None:
        """Nothing says any more that we are not permitted to write."""
        self._denied_until, self.problem = None, ""

    def _refused(self, chunk: Chunk, segment: Segment, prefix: bytes, refusal: Refusal, now: float) -> None:
        table = segment.table
        errno = refusal.errno
        if segment.operation is Operation.DELETE and errno in _ABSENT_ERRNOS:
            return
        chunk.refused.add((table.family, prefix))
        if errno == errnos.EPERM:
            self.problem = NOT_PERMITTED
            chunk.denied = True
            self._denied_until = now + DENIED_RETRY
        index = self._in_flight.index(chunk)
        if any(later.changes(table, prefix) for later in islice(self._in_flight, index + 1, None)):
            return  # what is on its way decides
        if segment.operation is Operation.DELETE and prefix in table.installed:
            self.suspect = True  # a change in two steps, the first of which failed
            return
        old = segment.before.get(prefix)
        if old is not None and errno != errnos.ENOENT:
            table.installed[prefix] = old
        else:
            table.installed.pop(prefix, None)
        if prefix in table.queued:
            return
        wanted = segment.wanted
        ours_was_gone = segment.operation is Operation.REPLACE and errno == errnos.ENOENT
        if errno == errnos.EPERM or ours_was_gone:
            self._enqueue(table, wanted, [prefix])
        else:
            self._fail(table, prefix, wanted, refusal, now)

    def _fail(self, table: OwnRoutes, prefix: bytes, wanted: KernelRoute | None, refusal: Refusal, now: float) -> None:
        self.counters.failures[refusal.errno] = self.counters.failures.get(refusal.errno, 0) + 1
        refused = Refused(wanted, refusal.errno, refusal.text)
        if len(self._refusals) >= _MAX_SHARED_ROUTES:
            self._refusals.clear()
        self._refusals.add(refused)
        metric = metric_of(self._watch, table.family, wanted)
        if refusal.errno == errnos.EEXIST and self._watch.holder(table.family, prefix, metric) is None:
            self.suspect = True
        self._retries.failed(now)
        if table.failed.get(prefix) == refused:
            return
        table.failed[prefix] = refused
        reason = why_refused(self._watch, table.family, prefix, refused)
        self.failures.append(RouteFailure(table.family, prefix, refused.errno, reason))

    def _clear(self, table: OwnRoutes, prefix: bytes, now: float) -> None:
        """A refusal is over."""
        del table.failed[prefix]
        self.cleared.append((table.family, prefix))
        if any(each.failed for each in self._tables.values()):
            self._retries.helped(now)
        else:
            self._refusals.clear()
            self._retries.nothing_left()

    def _retry(self, now: float) -> None:
        """Queue the next slice of refused routes; conflicts with a known foreign route wait for that to go."""
        everything = None
        if not self._retries.under_way:
            everything = [(table.family, prefix) for table in self._tables.values() for prefix in table.failed]
        wanted: dict[tuple[Family, KernelRoute | None], list[bytes]] = {}
        for family, prefix in self._retries.due(now, everything):
            table = self._tables[family]
            refused = table.failed.get(prefix)
            if refused is None or prefix in table.queued:
                continue
            metric = metric_of(self._watch, family, refused.route)
            if refused.errno == errnos.EEXIST and self._watch.holder(family, prefix, metric) is not None:
                continue
            wanted.setdefault((family, refused.route), []).append(prefix)
        for (family, route), prefixes in wanted.items():
            self._enqueue(self._tables[family], route, prefixes)

    # ---- inside: repair

    def _unknown(self, table: OwnRoutes, prefix: bytes, route: KernelRoute, now: float) -> None:
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

    def _lost(self, table: OwnRoutes, prefix: bytes, route: KernelRoute, now: float) -> None:
        """A route of ours is not there any more, and we did not remove it."""
        del table.installed[prefix]
        if prefix in table.stale:
            table.stale.discard(prefix)
        else:
            self._disturb(table, prefix, route, now)

    def _disturb(self, table: OwnRoutes, prefix: bytes, wanted: KernelRoute, now: float) -> None:
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
        if prefix not in table.disturbed:
            self._repairs.add((table.family, prefix), now)
            table.disturbed[prefix] = wanted

    def _repair(self, which: list[RouteId]) -> None:
        wanted: dict[tuple[Family, KernelRoute], list[bytes]] = {}
        for family, prefix in which:
            route = self._tables[family].disturbed.pop(prefix, None)
            if route is not None:
                wanted.setdefault((family, route), []).append(prefix)
        for (family, route), prefixes in wanted.items():
            self.counters.repaired += len(prefixes)
            self._enqueue(self._tables[family], route, prefixes)

    # ---- inside: one object for equal routes

    def _share(self, route: KernelRoute | None) -> KernelRoute | None:
        if route is None:
            return None
        known = self._shared.get(route)
        if known is not None:
            return known
        if len(self._shared) >= _MAX_SHARED_ROUTES:
            self._shared.clear()
            self._through.clear()
            self._forgot_shared = True
        self._shared[route] = route
        for leg in route.gateways:
            self._through.setdefault(leg.interface, set()).add(route)
        return route

    def _at_metric(self, family: Family, route: KernelRoute | None) -> KernelRoute | None:
        """A route that names a metric only where that is not the usual one."""
        if route is None or not route.metric:
            return route
        if route.metric == self._watch.own_metric(family):
            return KernelRoute(route.kind, route.gateways)
        self._metrics = self._watch.many_metrics = True
        return route

    def _route_of(self, family: Family, facts: RouteFacts) -> KernelRoute:
        """The route a message of the kernel describes."""
        if facts.kind in (RouteKind.UNICAST, RouteKind.BLACKHOLE):
            found = KernelRoute(RouteKind(facts.kind), facts.gateways, facts.metric)
            route = self._at_metric(family, found) or found
        else:  # a kind we never write: equal to nothing we want
            route = _NOWHERE
        shared = self._share(route) or route
        self._facts, self._facts_family, self._facts_route = facts, family, shared
        return shared
