"""When to try again: refused routes, and routes somebody else removes.

Two schedules. `Retries` goes through everything refused in rounds, a slice at a time, with doubling pauses between the
rounds, and at once when something changed for the better. `Repairs` puts disturbed routes back, later each time the same
prefix is disturbed again, so that a fight with another program costs neither of us much.

Not here: what a retry or a repair writes (`routes`).
"""

from __future__ import annotations

from routed.net.families import Family

#: Entries handled at a time (a few ms of work).
SLICE = 4000

#: Seconds until refused routes are tried again, doubling from first to last.
RETRY_FIRST, RETRY_LAST = 1.0, 30.0
#: Between slices of one round, and before a round that an event asked for.
RETRY_SOON = 0.05
#: Seconds until a disturbed route is put back, doubling each time it happens again, and until that is forgiven.
REPAIR_FIRST, REPAIR_LAST, REPAIR_FORGIVEN = 0.05, 60.0, 120.0

RouteId = tuple[Family, bytes]


class Retries:
    """The schedule of refused routes."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._delay = RETRY_FIRST
        self._round: list[RouteId] = []

    def failed(self, now: float) -> None:
        """Something was refused."""
        if self.at is None:
            self.at = now + self._delay

    def soon(self, now: float) -> None:
        """The world changed: a new round."""
        self._delay = RETRY_FIRST
        self._round = []
        self.at = now + RETRY_SOON

    def helped(self, now: float) -> None:
        """A refusal ended; what helped this one may help the others."""
        if self.at is not None:
            self.at = min(self.at, now + RETRY_SOON)

    def nothing_left(self) -> None:
        self.at = None
        self._delay = RETRY_FIRST
        self._round = []

    def due(self, now: float, everything: list[RouteId] | None) -> list[RouteId]:
        """The next slice. `everything` refused begins a new round; None goes on with the one that is `under_way`."""
        if everything is not None:
            self._round = everything
        part = self._round[:SLICE]
        del self._round[:SLICE]
        if self._round:
            self.at = now + RETRY_SOON
        else:
            self._delay = min(self._delay * 2, RETRY_LAST)
            self.at = now + self._delay
        return part

    @property
    def under_way(self) -> bool:
        return bool(self._round)


class Repairs:
    """The schedule of disturbed routes."""

    def __init__(self) -> None:
        self._fights: dict[RouteId, int] = {}
        """How often each was disturbed lately."""
        self._forgive_at: float | None = None
        self._due: dict[int, tuple[float, list[RouteId]]] = {}
        """By how often it happened: when, and which."""

    def add(self, which: RouteId, now: float) -> None:
        level = self._fights.get(which, 0)
        self._fights[which] = level + 1
        self._forgive_at = now + REPAIR_FORGIVEN
        delay = min(REPAIR_FIRST * 2.0 ** min(level, 32), REPAIR_LAST)
        self._due.setdefault(level, (now + delay, []))[1].append(which)

    def next_timer(self) -> float | None:
        times = [at for at, _ in self._due.values()]
        if self._forgive_at is not None:
            times.append(self._forgive_at)
        return min(times, default=None)

    def take(self, now: float) -> list[RouteId]:
        """What is due, up to a slice of each kind."""
        taken: list[RouteId] = []
        for level, (at, waiting) in list(self._due.items()):
            if at <= now:
                taken += waiting[:SLICE]
                if len(waiting) > SLICE:
                    self._due[level] = (at, waiting[SLICE:])
                else:
                    del self._due[level]
        if self._forgive_at is not None and self._forgive_at <= now:
            self._forgive_at = None
            self._fights.clear()
        return taken
