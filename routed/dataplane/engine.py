"""The kernel room's one state machine: netlink bytes and `now` in, netlink bytes and observations out.

Three conversations, a socket each: the *writer* carries route changes and their refusals, the *monitor* hears what
changes (but not what the writer did), the *dumper* reads everything back: at start, when the monitor lost messages, when
routes may have vanished without a word, and every now and then.

Invariants:
- Nothing is written before the first dump is complete, nothing between the loss of notifications and the dump that
  makes up for them, and nothing while a dump that must be exact is read.
- What the monitor hears during a dump is taken in after it, in order, so that the end state is the kernel's whatever
  the dump already showed.
- A verifying dump gives way to new work; all others finish.

Not here: sockets, waiting, threads (`kernel`).
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable

from routed.dataplane.routes import RouteSync
from routed.dataplane.watch import Watch
from routed.desired import RouteBatch
from routed.errors import KernelError
from routed.net.families import Family
from routed.netlink.links import decode_address, decode_link, dump_addresses, dump_links
from routed.netlink.messages import Message, dump_errno, messages, parse_error
from routed.netlink.numbers import (
    NLM_F_DUMP_INTR,
    NLM_F_REPLACE,
    NLMSG_DONE,
    NLMSG_ERROR,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from routed.netlink.routes import RouteDecoder, RouteFacts, dump_routes
from routed.observed import KernelChange
from routed.values import dataclass

#: Between a link or address event that may have removed routes silently and the dump that looks: the owner of the routes
#: usually reacts to the event itself meanwhile.
SETTLE = 0.1
#: At least this much between two dumps asked for by suspicion.
SUSPICION_INTERVAL = 2.0
#: Dumps torn by a concurrent change are repeated, but not for ever.
MAX_ATTEMPTS = 5
#: A verifying dump may take this part of the time.
VERIFY_SHARE = 0.01

_LINKS, _ADDRESSES, _ROUTES4, _ROUTES6, _MAIN4, _MAIN6 = range(6)
_ROUTE_FAMILY = {
    _ROUTES4: Family.IPV4_UNICAST,
    _ROUTES6: Family.IPV6_UNICAST,
    _MAIN4: Family.IPV4_UNICAST,
    _MAIN6: Family.IPV6_UNICAST,
}


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """Which of the kernel's routes are ours."""

    table: int = RT_TABLE_MAIN
    """Routing table, 1 to 2^32 - 1."""
    protocol: int = 120
    """rtm_protocol of our routes; nobody else may use it."""
    metric: int = 0
    """Of our routes; 0 leaves it to the kernel (IPv4: 0, IPv6: 1024)."""
    program_routes: bool = True
    """False: watch only."""
    left_to_pods: str = ""
    """How pods' interfaces begin, where pods are not ours (any more): a host route straight to such an interface is the
    pod's, whoever made it, and goes with the interface."""
    verify_interval: float = 90.0
    """Seconds between dumps that look whether all is as it should be."""


@dataclass(slots=True)
class EngineCounters:
    """Since start, for metrics."""

    dumps: int = 0
    overflows: int = 0
    """Times the monitor or the writer lost messages."""


class KernelEngine:
    """See the module's docstring. `writer_port` is the writer socket's netlink port id."""

    def __init__(self, settings: KernelSettings, writer_port: int) -> None:
        self.settings = settings
        self.watch = Watch(settings.metric)
        """Of the table we write to: what may be in our way."""
        self.roads = self.watch if settings.table == RT_TABLE_MAIN else Watch(settings.metric)
        """Of the main table, in which the kernel looks for gateways whatever table the route is in: next hops do so too."""
        self._watches = (self.watch,) if self.roads is self.watch else (self.watch, self.roads)
        self.routes = RouteSync(self.watch, table=settings.table, protocol=settings.protocol)
        self.counters = EngineCounters()
        self.ready = False
        """The first dump is complete."""
        self.found_at_start: frozenset[Family] = frozenset()
        """Families that had routes of ours before we wrote any."""
        self._writer_port = writer_port
        self._decoder = RouteDecoder()
        self._fresh: Watch | None = None
        """What the dump under way shows of others in our table."""
        self._fresh_watches: tuple[Watch, ...] = ()
        """The same, in the order of `_watches`."""
        self._step = _LINKS
        self._send_step = False
        self._sequence = 0
        self._attempt = 1
        self._torn = False
        self._ending = False
        self._optional = False
        """The dump under way only verifies."""
        self._discard = False
        self._full = True
        """The next complete dump is told in full."""
        self._dump_at: float | None = None
        self._dump_began = 0.0
        self._last_suspicion = float("-inf")
        self._verify_at: float | None = None
        self._backlog: list[bytes] = []

    # ---- inputs

    def start(self, now: float) -> None:
        """Ask for the first dump."""
        self._dump_at = now

    def apply(self, batches: Iterable[RouteBatch], ticket: int = 0) -> None:
        """Desired changes."""
        if self._optional and self._fresh is not None and not self._discard and not self._ending:
            self._discard = True
            self.routes.abandon_dump()
        self.routes.apply(batches, ticket)

    def sweep(self, families: Iterable[Family]) -> None:
        """Remove what was found at start and has not been asked for."""
        self.routes.sweep(families)

    def monitor_data(self, data: bytes, now: float) -> None:
        """One datagram of notifications."""
        if self._fresh is not None and not self._discard:
            self._backlog.append(data)
        else:
            self._notifications(data, now)

    def monitor_overflow(self, now: float) -> None:
        """The monitor's receive buffer ran over: notifications are lost."""
        self.counters.overflows += 1
        self._full = True
        self._dump_by(now)
        if self._fresh is not None:
            self._torn = True  # the dump under way may miss what was lost

    def writer_data(self, data: bytes, now: float) -> None:
        """One datagram of answers to our chunks."""
        routes = self.routes
        for message in messages(data):
            if message.type == NLMSG_ERROR:
                refusal = parse_error(message)
                if refusal.errno:
                    routes.refused(message.sequence, refusal, now)
                else:
                    routes.acknowledged(message.sequence, now)
        if routes.suspect:
            self._suspicion(now)

    def writer_overflow(self, now: float) -> None:
        """Answers to our chunks are lost."""
        self.counters.overflows += 1
        self.routes.replies_lost()
        self._dump_by(now)

    def dump_data(self, data: bytes, now: float) -> None:
        """One datagram of a dump. Raises KernelError where the kernel refuses to dump."""
        for message in messages(data):
            if message.sequence != self._sequence or self._fresh is None:
                continue
            if message.flags & NLM_F_DUMP_INTR:
                self._torn = True
            kind = message.type
            if kind == RTM_NEWROUTE:
                self._found_route(message, now)
            elif kind == RTM_NEWLINK:
                link = decode_link(message.data)
                if link is not None:
                    for fresh in self._fresh_watches:
                        fresh.link_changed(link)
            elif kind == RTM_NEWADDR:
                address = decode_address(message.data)
                if address is not None:
                    for fresh in self._fresh_watches:
                        fresh.address_added(address)
            elif kind in (NLMSG_DONE, NLMSG_ERROR):
                refusal = parse_error(message) if kind == NLMSG_ERROR else None
                errno = refusal.errno if refusal is not None else dump_errno(message)
                # a table nobody wrote to yet does not exist, and IPv6 may be absent altogether
                if errno not in (0, errnos.ENOENT, errnos.EAFNOSUPPORT, errnos.EOPNOTSUPP):
                    text = refusal.text if refusal is not None else ""
                    self._abandon(now)
                    raise KernelError(errno, text, "reading the kernel's routes")
                self._step_done(now)

    def dump_lost(self, now: float) -> None:
        """The answer to a dump is incomplete, or the request could not be sent."""
        if self._fresh is not None and not self._ending:
            self._sequence += 1  # what may still come belongs to nothing
            self._abandon(now)

    def handle_timer(self, now: float) -> None:
        if self._ending:
            self._end(now)
        if not self.routes.held:
            self.routes.handle_timer(now)
        if self._verify_at is not None and self._verify_at <= now and self._dump_at is None and self._fresh is None:
            self._verify_at = None
            if self.routes.idle:
                self._optional = True
                self._dump_at = now
            else:
                self._verify_at = now + self.settings.verify_interval

    def next_timer(self) -> float | None:
        """When `handle_timer` (or `take_dump`) has something to do."""
        if self._ending:
            return 0.0
        times = [at for at in (self._verify_at, self._dump_at if self._fresh is None else None) if at is not None]
        if not self.routes.held:
            at = self.routes.next_timer()
            if at is not None:
                times.append(at)
        return min(times, default=None)

    # ---- outputs

    def take_write(self, now: float) -> bytes | None:
        """The next chunk for the writer; empty: call again; None: nothing to do."""
        if not self.ready or self._full or not self.settings.program_routes:
            return None  # what others hold is not known: a change might hit it
        return self.routes.take_write(now)

    def take_dump(self, now: float) -> bytes:
        """The next request for the dumper, or empty."""
        if self._fresh is None and self._dump_at is not None and self._dump_at <= now and not self._ending:
            self.routes.held = True
            if self.routes.in_flight:
                return b""
            self._dump_at = None
            self._dump_began = now
            self._attempt = 1
            self._begin()
        if not self._send_step:
            return b""
        self._send_step = False
        self._sequence += 1
        if self._step == _LINKS:
            return dump_links(self._sequence)
        if self._step == _ADDRESSES:
            return dump_addresses(self._sequence)
        return dump_routes(_ROUTE_FAMILY[self._step], table=self._step_table, sequence=self._sequence)

    def take_change(self) -> KernelChange | None:
        """What was observed since the last call, or None."""
        if self.watch is not self.roads:
            self.watch.take_change()  # nobody follows what only stands in the way
        return self.roads.take_change()

    @property
    def idle(self) -> bool:
        """Started, and everything that can be written is."""
        return self.ready and self._fresh is None and not self._ending and self.routes.idle

    # ---- inside: dumps

    def _dump_by(self, at: float) -> None:
        """A dump that must be exact, at the latest at `at`."""
        if self._optional and self._fresh is None:
            self._dump_at = None
            self._optional = False
        self._dump_at = at if self._dump_at is None else min(self._dump_at, at)

    def _suspicion(self, now: float) -> None:
        self.routes.suspect = False
        at = max(now + SETTLE, self._last_suspicion + SUSPICION_INTERVAL)
        self._last_suspicion = at
        self._dump_by(at)

    def _begin(self) -> None:
        self._fresh_watches = tuple(Watch(self.settings.metric) for _ in self._watches)
        self._fresh = self._fresh_watches[0]
        self._step = _LINKS
        self._send_step = True
        self._torn = False
        self._discard = False
        self.routes.begin_dump()

    def _found_route(self, message: Message, now: float) -> None:
        decoded = self._decoder.decode(message.data)
        if decoded is None or self._fresh is None or self._discard:
            return
        family, prefix, facts = decoded
        if facts.table != self._step_table or family is not _ROUTE_FAMILY.get(self._step):
            return
        if self._step >= _MAIN4:
            self._fresh_watches[-1].found_route(family, prefix, facts)
        elif not self._is_ours(family, prefix, facts, self._fresh):
            self._fresh.found_route(family, prefix, facts)
        elif facts.plain:
            self.routes.found_own(family, prefix, facts, now)

    def _step_done(self, now: float) -> None:
        if self._discard:
            self._abandon(now)
        elif self._step < (_ROUTES6 if len(self._watches) == 1 else _MAIN6):
            self._step += 1
            self._send_step = True
        elif self._torn and self._attempt < MAX_ATTEMPTS:
            self._attempt += 1
            self._begin()
        else:
            self._complete(now)

    @property
    def _step_table(self) -> int:
        """The table whose routes the dump's step reads."""
        return RT_TABLE_MAIN if self._step >= _MAIN4 else self.settings.table

    def _abandon(self, now: float) -> None:
        """A dump that leads to nothing: given up for new work, or refused."""
        if not self._optional:
            self._dump_at = now + 1.0
        if not self._discard:
            self.routes.abandon_dump()
        self._finish(now)

    def _complete(self, now: float) -> None:
        if self._fresh is None:
            return
        self.counters.dumps += 1
        for watch, found in zip(self._watches, self._fresh_watches, strict=True):
            watch.adopt(found, full=self._full)
        self._full = False
        self._ending = True
        self._end(now)

    def _end(self, now: float) -> None:
        if self.routes.end_dump(now):
            return
        self._ending = False
        if not self.ready:
            self.ready = True
            self.found_at_start = frozenset(self.routes.found)
        self._released()
        self._finish(now)

    def _finish(self, now: float) -> None:
        self._fresh = None
        self._send_step = False
        self._optional = False
        self._discard = False
        pause = max(self.settings.verify_interval, (now - self._dump_began) / VERIFY_SHARE)
        self._verify_at = now + pause
        backlog, self._backlog = self._backlog, []
        for data in backlog:
            self._notifications(data, now)

    # ---- inside: notifications

    def _notifications(self, data: bytes, now: float) -> None:
        better: set[int] = set()
        """Interfaces about which something changed for the better."""
        for message in messages(data):
            kind = message.type
            if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                self._route_event(message, better, now)
            elif kind == RTM_NEWLINK:
                link = decode_link(message.data)
                if link is not None:
                    went = [watch.link_changed(link) for watch in self._watches]
                    if any(went):
                        self._vanished(link.index, now)
                    elif link.up:
                        better.add(link.index)
            elif kind == RTM_DELLINK:
                link = decode_link(message.data)
                if link is not None:
                    for watch in self._watches:
                        watch.link_removed(link.index)
                    self._vanished(link.index, now)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                address = decode_address(message.data)
                if address is not None:
                    for watch in self._watches:
                        if kind == RTM_NEWADDR:
                            watch.address_added(address)
                        else:
                            watch.address_removed(address)
                    if kind == RTM_NEWADDR:
                        better.add(address.index)
                    else:
                        self._vanished(address.index, now)
        self._released()
        if better:
            self.routes.retry_soon(better, now)

    def _route_event(self, message: Message, better: set[int], now: float) -> None:
        if message.port == self._writer_port:
            return
        decoded = self._decoder.decode(message.data)
        if decoded is None:
            return
        family, prefix, facts = decoded
        if facts.table != self.settings.table:
            if facts.table == RT_TABLE_MAIN:
                self._road_event(message, family, prefix, facts, better)
            return
        if self._is_ours(family, prefix, facts, self.watch):
            if facts.plain and (facts.metric or not self.watch.own_metric(family)):
                if message.type == RTM_NEWROUTE:
                    self.routes.own_seen(family, prefix, facts, now)
                else:
                    self.routes.own_removed(family, prefix, facts, now)
        elif message.type == RTM_NEWROUTE:
            if self.watch.route_added(family, prefix, facts, message.flags) is None:
                return
            better.update(leg.interface for leg in facts.gateways)
            if self.routes.may_be_ours(family, facts.metric):
                self._beside_ours(family, prefix, facts, message.flags, now)
        else:
            self.watch.route_removed(family, prefix, facts)

    def _is_ours(self, family: Family, prefix: bytes, facts: RouteFacts, watch: Watch) -> bool:
        if facts.protocol != self.settings.protocol:
            return False
        left = self.settings.left_to_pods
        if not left or not facts.gateways or facts.gateways[0].address or prefix[0] != family.max_length:
            return True
        return not watch.interface_name(facts.gateways[0].interface).startswith(left)

    def _road_event(self, message: Message, family: Family, prefix: bytes, facts: RouteFacts, better: set[int]) -> None:
        """A route of the main table changed, while ours go into another."""
        if message.type == RTM_DELROUTE:
            self.roads.route_removed(family, prefix, facts)
        elif self.roads.route_added(family, prefix, facts, message.flags) is not None:
            better.update(leg.interface for leg in facts.gateways)

    def _beside_ours(self, family: Family, prefix: bytes, facts: RouteFacts, flags: int, now: float) -> None:
        """A foreign route appeared at the prefix and metric where ours would be."""
        own = self.routes.own_gateways(family, prefix, facts.metric)
        if flags & NLM_F_REPLACE:
            self.routes.own_replaced(family, prefix, facts.metric, now)
        elif own and family is Family.IPV6_UNICAST and set(own) < set(facts.gateways):
            self.watch.forget_legs(family, prefix, facts.metric, own)

    def _vanished(self, interface: int, now: float) -> None:
        """Routes through an interface may be gone; if ours are among them, look."""
        if self.settings.program_routes and self.routes.uses(interface):
            self._dump_by(now + SETTLE)

    def _released(self) -> None:
        for family, prefix in self.watch.take_released():
            self.routes.foreign_gone(family, prefix)
