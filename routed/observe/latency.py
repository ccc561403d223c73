"""How long a change takes from stage to stage, as histograms: measured a turn of the loop, never a prefix.

A change begins when its news arrives: a resource from the datastore, or octets from a peer. Its stages:

- `planned` (datastore only): the plan that takes it in is made;
- `rib`: the best paths it changes are decided, and encoded for the peers;
- `sent`: UPDATEs about them are written to the sockets of all peers whose sockets took them;
- `kernel`: the kernel has acknowledged, or refused, the routes it changes.

Each is the time since the beginning. A stage that a change does not lead to (a label that no selector looks at, a
keepalive) is not counted. Changes of the datastore count one by one, once the first snapshot is in; octets of peers count
once a turn, by the oldest. Where one turn of the loop holds several changes all of them wait for each other, and that is
what is measured. A peer whose socket is full is not waited for.

Knows no clock but the one it is given; the core tells it of milestones, the driver of arrivals and the end of writing,
the kernel of tickets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from routed.core.effects import Milestone

#: Upper bounds in seconds. The kernel takes about 4 us a route, a table of half a million seconds.
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: What a change begins with, and the stages it may reach.
STAGES = {"datastore": ("planned", "rib", "sent", "kernel"), "peer": ("rib", "sent", "kernel")}

#: Changes of resources that are followed at a time; of more at once the first are.
FOLLOWED = 4096

#: Tickets the kernel has not answered yet that are remembered.
TICKETS = 4096

Begin = tuple[str, float]
"""What a change began with, and when."""


class Histogram:
    """Counts by upper bound. The last count is of what exceeds all bounds."""

    __slots__ = ("bounds", "counts", "largest", "sum")

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.largest = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.largest = max(self.largest, value)


class Latency:
    """See the module's docstring."""

    def __init__(self, clock: Callable[[], float], updates_sent: Callable[[], int]) -> None:
        """`updates_sent` is how many UPDATEs were written so far, to all peers."""
        self.histograms = {(begin, stage): Histogram() for begin, stages in STAGES.items() for stage in stages}
        self.turns = Histogram()
        """Seconds the turns of the driver took."""
        self._clock = clock
        self._updates_sent = updates_sent
        self._in_sync = False
        self._resources: list[Begin] = []
        """Changes of resources that no plan knows yet."""
        self._planned: list[Begin] = []
        """Planned, not yet seen in the table."""
        self._octets_at: float | None = None
        """When the first octets of this turn arrived."""
        self._chosen: list[Begin] = []
        """Of this turn: in the table, not yet asked of the kernel."""
        self._unsent: list[Begin] = []
        self._unsent_mark = 0
        self._ticket = 0
        self._tickets: dict[int, list[Begin]] = {}

    # ---- arrivals

    def resource(self, now: float) -> None:
        """The datastore told of a change."""
        if self._in_sync and len(self._resources) < FOLLOWED:
            self._resources.append(("datastore", now))

    def in_sync(self) -> None:
        """The snapshot is complete: what comes from now on are changes."""
        self._in_sync = True

    def octets(self, now: float) -> None:
        """A peer sent something."""
        if self._octets_at is None:
            self._octets_at = now

    # ---- stages

    def milestone(self, milestone: Milestone) -> None:
        """The core got this far."""
        now = self._clock()
        if milestone is Milestone.PLANNED:
            self._observe("planned", self._resources, now)
            self._planned, self._resources = self._resources, []
            return
        chosen, self._planned = self._planned, []
        if self._octets_at is not None:
            chosen.append(("peer", self._octets_at))
            self._octets_at = None
        if chosen:
            self._observe("rib", chosen, now)
            self._chosen += chosen
            if not self._unsent:
                self._unsent_mark = self._updates_sent()
            if len(self._unsent) < FOLLOWED:
                self._unsent += chosen

    def ticket(self) -> int:
        """A number for the routes this turn asks of the kernel, to hear of them in `acknowledged`; 0: nobody asks."""
        if not self._chosen:
            return 0
        if self._ticket not in self._tickets or self._tickets[self._ticket] is not self._chosen:
            self._ticket += 1
            self._tickets[self._ticket] = self._chosen
            if len(self._tickets) > TICKETS:
                del self._tickets[next(iter(self._tickets))]
        return self._ticket

    def acknowledged(self, tickets: Sequence[int]) -> None:
        """The kernel is through with all routes of these tickets."""
        now = self._clock()
        for ticket in tickets:
            self._observe("kernel", self._tickets.pop(ticket, ()), now)

    def turn_ended(self, began: float, *, all_written: bool, more: bool) -> None:
        """The driver's turn is over. `all_written`: no peer that would take octets waits for any; `more`: work is left."""
        now = self._clock()
        self.turns.observe(now - began)
        if all_written and self._unsent:
            if self._updates_sent() > self._unsent_mark:
                self._observe("sent", self._unsent, now)
            self._unsent = []
        self._octets_at = None
        self._chosen = []
        if not more:
            self._planned = []  # nothing in the table changed by it

    def _observe(self, stage: str, begun: Sequence[Begin], now: float) -> None:
        for begin, at in begun:
            self.histograms[begin, stage].observe(now - at)
