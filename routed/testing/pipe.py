"""Two neighbours joined by an in-memory network, under a clock a test turns by hand.

`Pipe` plays the part of the daemon for two `Neighbor` objects: it connects, carries octets with a latency, closes, and calls
their timers, all in virtual time and in a reproducible order. What either side reported is in `log`, what it sent in
`sent`. Faults: a side that does not listen, a link that loses everything, a connection that one side loses alone.

Invariants: octets of a connection arrive in order and unchanged (possibly cut anew, with `chop`); a close arrives after
them. Nothing here reads a real clock or sleeps.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from functools import partial

from routed.bgp.fsm import State
from routed.bgp.neighbor import (
    CloseRequested,
    ConnectRequested,
    Established,
    Neighbor,
    NeighborConfig,
    NeighborEvent,
)
from routed.bgp.update import AttributePool
from routed.net.families import Family
from routed.values import dataclass

EXAMPLE = NeighborConfig(
    name="example",
    address=bytes((192, 0, 2, 2)),
    port=179,
    local_address=b"",
    local_as=65001,
    peer_as=65002,
    router_id=0xC0000201,
    passive=False,
    families=(Family.IPV4_UNICAST, Family.IPV6_UNICAST),
    hold_time=90,
)
"""A neighbour of 192.0.2.1 in AS 65001 to start from: `dataclasses.replace` what a test is about."""

MIRROR = replace(EXAMPLE, address=bytes((192, 0, 2, 1)), local_as=65002, peer_as=65001, router_id=0xC0000202)
"""The configuration of the other end."""


def build(config: NeighborConfig = EXAMPLE, seed: int = 0) -> Neighbor:
    """A neighbour of its own, with connection ids 1, 2, 3... and reproducible jitter."""
    return Neighbor(config, rng=random.Random(seed), pool=AttributePool(), allocate=partial(next, itertools.count(1)))


class ManualClock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def advance_to(self, at: float) -> None:
        """Time does not run backwards."""
        if at < self.now:
            raise ValueError(f"the clock is at {self.now}, it cannot go back to {at}")
        self.now = at


class Side(IntEnum):
    """The two ends of a pipe."""

    LEFT = 0
    RIGHT = 1

    @property
    def other(self) -> Side:
        return Side(1 - self)


@dataclass(frozen=True, slots=True)
class Logged:
    """Something a side reported."""

    at: float
    side: Side
    event: NeighborEvent


@dataclass(frozen=True, slots=True)
class Sent:
    """Control octets a side wrote."""

    at: float
    side: Side
    conn: int
    data: bytes


class Pipe:
    """The network between two neighbours."""

    def __init__(
        self,
        left: Neighbor,
        right: Neighbor,
        clock: ManualClock,
        *,
        latency: float = 0.001,
        chop: random.Random | None = None,
    ) -> None:
        """`latency`: seconds one way. `chop`: cut what is sent at random places."""
        self.neighbors = (left, right)
        self.clock = clock
        self.latency = latency
        self.chop = chop
        self.listening = [True, True]
        """Whether each side accepts connections; otherwise they are refused."""
        self.silent = False
        """The link loses everything, connection attempts too."""
        self.log: list[Logged] = []
        self.sent: list[Sent] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._far: dict[tuple[Side, int], int] = {}
        """(side, its connection id) -> the other side's id of the same connection."""
        self._given_up: set[tuple[Side, int]] = set()
        """Attempts that were cancelled before the SYN arrived."""

    # ---------------------------------------------------------------- driving

    def start(self) -> None:
        """Start both neighbours now."""
        for side in Side:
            self.neighbors[side].start(self.clock.now)
            self.collect(side)

    def run(self, seconds: float) -> None:
        """Let virtual time pass, with everything that happens in it."""
        end = self.clock.now + seconds
        while True:
            due = self._queue[0][0] if self._queue else end + 1
            timers = [(at, side) for side in Side if (at := self.neighbors[side].next_timer()) is not None]
            if timers and min(timers)[0] < due:
                at, side = min(timers)
                if at > end:
                    break
                self.clock.advance_to(max(at, self.clock.now))
                self.neighbors[side].handle_timer(self.clock.now)
                self.collect(side)
                continue
            if due > end:
                break
            at, _, act = heapq.heappop(self._queue)
            self.clock.advance_to(max(at, self.clock.now))
            act()
        self.clock.advance_to(end)

    def send(self, side: Side, data: bytes) -> None:
        """Write octets, UPDATEs usually, on a side's Established connection."""
        self._carry(side, self.neighbors[side].connection, data)

    def reset(self, side: Side, *, also_other: bool = True) -> None:
        """TCP of the Established connection is lost at `side`; the other side notices too, or only later."""
        near = self.neighbors[side].connection
        far = self._far.pop((side, near))
        self._far.pop((side.other, far), None)
        self.neighbors[side].closed(near, self.clock.now, "connection reset")
        self.collect(side)
        if also_other:
            self.neighbors[side.other].closed(far, self.clock.now, "connection reset")
            self.collect(side.other)

    # ---------------------------------------------------------------- looking

    @property
    def states(self) -> tuple[State, State]:
        return self.neighbors[0].state, self.neighbors[1].state

    def joined(self) -> bool:
        """Whether both sides are Established on the two ends of one connection."""
        left, right = self.neighbors
        return bool(left.connection) and self._far.get((Side.LEFT, left.connection)) == right.connection

    def events(self, side: Side, kind: type[NeighborEvent]) -> list[NeighborEvent]:
        """What a side reported, of one kind."""
        return [one.event for one in self.log if one.side is side and isinstance(one.event, kind)]

    def established_at(self, side: Side) -> list[float]:
        return [one.at for one in self.log if one.side is side and isinstance(one.event, Established)]

    # ---------------------------------------------------------------- the network

    def collect(self, side: Side) -> None:
        """Do what a side asks for; call it after any verb called from outside."""
        neighbor = self.neighbors[side]
        events, neighbor.events = neighbor.events, []
        for event in events:
            self.log.append(Logged(self.clock.now, side, event))
            if isinstance(event, ConnectRequested):
                self._later(self.latency, self._arrive, side, event.conn)
            elif isinstance(event, CloseRequested):
                self._flush(side, event.conn)
                self._close(side, event.conn)
        for conn in neighbor.pending_output():
            self._flush(side, conn)

    def _later(self, seconds: float, act: Callable[[Side, int], None], side: Side, conn: int) -> None:
        self._schedule(seconds, lambda: act(side, conn))

    def _schedule(self, seconds: float, act: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.clock.now + seconds, self._sequence, act))

    def _arrive(self, side: Side, conn: int) -> None:
        """A SYN is there."""
        if self.silent or (side, conn) in self._given_up:
            return
        answer: int | str = "connection refused"
        if self.listening[side.other]:
            answer = self.neighbors[side.other].accept(self.clock.now) or "closed at once"
        if isinstance(answer, str):
            self._schedule(self.latency, lambda: self._fail(side, conn, answer))
            return
        self._far[side, conn] = answer
        self._far[side.other, answer] = conn
        self._later(self.latency, self._connected, side, conn)
        self.collect(side.other)

    def _connected(self, side: Side, conn: int) -> None:
        self.neighbors[side].connected(conn, self.clock.now)
        self.collect(side)

    def _fail(self, side: Side, conn: int, reason: str) -> None:
        self.neighbors[side].connect_failed(conn, self.clock.now, reason)
        self.collect(side)

    def _flush(self, side: Side, conn: int) -> None:
        data = self.neighbors[side].control_output(conn)
        if data:
            self.sent.append(Sent(self.clock.now, side, conn, data))
            self._carry(side, conn, data)

    def _carry(self, side: Side, conn: int, data: bytes) -> None:
        far = self._far.get((side, conn))
        if far is None or self.silent:
            return
        pieces = [data]
        if self.chop is not None:
            cuts = sorted(self.chop.randrange(len(data) + 1) for _ in range(3))
            pieces = [data[low:high] for low, high in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        for piece in pieces:
            if piece:
                self._deliver_later(side.other, far, piece)

    def _deliver_later(self, side: Side, conn: int, data: bytes) -> None:
        def deliver() -> None:
            self.neighbors[side].receive_data(conn, data, self.clock.now)
            self.collect(side)

        self._schedule(self.latency, deliver)

    def _close(self, side: Side, conn: int) -> None:
        far = self._far.pop((side, conn), None)
        if far is None:
            self._given_up.add((side, conn))
        if far is None or self.silent:
            return

        def close() -> None:
            if self._far.pop((side.other, far), None) is not None:
                self.neighbors[side.other].closed(far, self.clock.now, "closed by the peer")
                self.collect(side.other)

        self._schedule(self.latency, close)
