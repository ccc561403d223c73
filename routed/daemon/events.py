"""What happens in this daemon, for those who follow it: sessions, the datastore, the kernel's refusals, routes.

The last `REMEMBERED` events are kept, routes excepted. Each follower has a bounded queue: what does not fit is counted
and the count told in its place, so a slow reader costs nobody anything but itself. Routes are looked at only while
somebody follows them, and then the table's own lists of changes wait in the queue; they become events a slice at a time,
when they are read.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from routed.bgp.attributes import as_path_text
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import covers, format_prefix
from routed.rib.path import Path
from routed.rib.table import Change

Row = dict[str, object]

KINDS = ("session", "datastore", "kernel", "daemon", "route")

REMEMBERED = 1000

#: Events, and prefixes of route changes, that may wait for a follower.
MAX_WAITING = 10_000
MAX_PREFIXES = 1_000_000

#: Events handed out at a time, and prefixes looked at for them.
BATCH = 256
SLICE = 4000


class Events:
    """See the module's docstring."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._followers: list[Follower] = []
        self.recent: deque[Row] = deque(maxlen=REMEMBERED)
        self.routes_wanted: Callable[[bool], None] = lambda _: None
        """Called when the first follower of routes comes (True) and the last one goes (False)."""

    def publish(self, kind: str, subject: str, text: str, **fields: object) -> None:
        event: Row = {"time": self._time(), "kind": kind, "subject": subject, "text": text, **fields}
        self.recent.append(event)
        for follower in self._followers:
            follower.offer(event)

    def routes(self, family: Family, changes: Sequence[Change]) -> None:
        """Best paths changed."""
        for follower in self._followers:
            follower.offer_routes(self._time(), family, changes)

    def follow(
        self, kinds: frozenset[str], within: tuple[Family, bytes] | None = None, *, longer: bool = False
    ) -> Follower:
        """Events of some kinds from now on; if `within` is given, routes only of it, or (`longer`) of what it covers."""
        follower = Follower(self, kinds, within, longer=longer)
        self._followers.append(follower)
        if "route" in kinds:
            self.routes_wanted(True)
        return follower

    def leave(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)
            self.routes_wanted(any("route" in each.kinds for each in self._followers))

    def _time(self) -> str:
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Follower(AsyncIterator[list[object]]):
    """One reader's queue. Iterating gives batches of events and never ends; `aclose` does."""

    def __init__(
        self, events: Events, kinds: frozenset[str], within: tuple[Family, bytes] | None, *, longer: bool
    ) -> None:
        self.kinds = kinds
        self._events = events
        self._within = within
        self._longer = longer
        self._waiting: deque[Row | _Routes] = deque()
        self._prefixes = 0
        """How many prefixes of route changes wait."""
        self._dropped = 0
        self._ready = asyncio.Event()

    def offer(self, event: Row) -> None:
        if event["kind"] not in self.kinds:
            return
        if len(self._waiting) < MAX_WAITING:
            self._put(event)
        else:
            self._dropped += 1

    def offer_routes(self, time: str, family: Family, changes: Sequence[Change]) -> None:
        if "route" not in self.kinds or (self._within is not None and family is not self._within[0]):
            return
        for change in changes:
            prefixes = change.prefixes
            if self._within is not None and not self._longer:
                prefixes = (self._within[1],) if self._within[1] in prefixes else ()
            if not prefixes:
                continue
            if len(self._waiting) >= MAX_WAITING or self._prefixes + len(prefixes) > MAX_PREFIXES:
                self._dropped += len(prefixes)
                continue
            self._prefixes += len(prefixes)
            self._put(_Routes(time, family, change.old, change.new, prefixes))

    def _put(self, item: Row | _Routes) -> None:
        self._waiting.append(item)
        self._ready.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> list[object]:
        while True:
            batch = self._take()
            if batch:
                return batch
            if self._waiting:  # nothing of this slice was wanted
                await asyncio.sleep(0)
                continue
            self._ready.clear()
            await self._ready.wait()

    async def aclose(self) -> None:
        self._events.leave(self)
        self._waiting.clear()

    def _take(self) -> list[object]:
        batch: list[object] = []
        looked = 0
        while self._waiting and len(batch) < BATCH and looked < SLICE:
            item = self._waiting[0]
            if isinstance(item, dict):
                batch.append(self._waiting.popleft())
                continue
            prefixes = item.prefixes[item.at : item.at + BATCH - len(batch)]
            item.at += len(prefixes)
            looked += len(prefixes)
            self._prefixes -= len(prefixes)
            batch += [item.event(prefix) for prefix in prefixes if self._wants(prefix)]
            if item.at >= len(item.prefixes):
                self._waiting.popleft()
        if not self._waiting and self._dropped:
            text = f"{self._dropped} events were left out here: they came faster than they were read"
            batch.append({"kind": "dropped", "subject": "events", "text": text, "count": self._dropped})
            self._dropped = 0
        return batch

    def _wants(self, prefix: bytes) -> bool:
        return self._within is None or covers(self._within[1], prefix)


class _Routes:
    """Prefixes whose best path went from one path to another; as far as `at` they have been read."""

    __slots__ = ("at", "family", "new", "old", "prefixes", "time")

    def __init__(
        self, time: str, family: Family, old: Path | None, new: Path | None, prefixes: Sequence[bytes]
    ) -> None:
        self.time = time
        self.family = family
        self.old = old
        self.new = new
        self.prefixes = prefixes
        self.at = 0

    def event(self, prefix: bytes) -> Row:
        text = f"{_short(self.old)} -> {_short(self.new)}"
        subject = format_prefix(self.family, prefix)
        return {
            "time": self.time,
            "kind": "route",
            "subject": subject,
            "text": text,
            "family": self.family.label,
            "prefix": subject,
            "old": _described(self.old),
            "new": _described(self.new),
        }


def _short(path: Path | None) -> str:
    if path is None:
        return "none"
    by = f" via {format_address(path.attrs.next_hop)}" if path.attrs.next_hop else ""
    return f"{path.source.name}{by}"


def _described(path: Path | None) -> Row | None:
    if path is None:
        return None
    next_hop = path.attrs.next_hop
    return {
        "from": path.source.name,
        "nextHop": format_address(next_hop) if next_hop else None,
        "asPath": as_path_text(path.attrs),
        "localPref": path.local_pref,
    }
