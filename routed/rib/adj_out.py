"""Adj-RIB-Out: what each peer hears, encoded once for all peers that hear the same (RFC 4271 sections 3.2 and 9.2).

Peers whose export rules, capabilities and next hop are alike form an `UpdateGroup`. The group turns best-path changes
into finished messages once and keeps them in a log of chunks; each peer (`AdjRibOut`) has a position in the log and
copies from there when its socket can take more. Split horizon is a property of a chunk: its source hears `instead` of
it the withdrawal of what it had heard before from another source, or nothing.

There is no per-prefix record of what was advertised: an export rule is a function of (prefix, path), so what a peer has
been told about the old best path follows from applying the same rule to it.

A peer that is new, or falls behind by more than `LOG_LIMIT`, leaves the log: it gets a queue of the prefixes it must
still hear about, each looked up in the Loc-RIB only when it is sent, so what changed twice is sent once and the queue is
bounded by the table. When the queue is empty it rejoins the log at its head. Nothing is ever queued as bytes per peer.

Not here: what may be said to whom, and in which octets (`export`), the user's route filters (`filters`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from routed.bgp.attributes import AttributeSet
from routed.bgp.update import end_of_rib
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE
from routed.rib.export import ExportPolicy, announcements, encode, export_attributes, refusal, withdrawals
from routed.rib.path import Path, Source
from routed.rib.table import Change, FamilyRib

#: Octets of finished messages a peer may be behind before it leaves the group's log for a queue of its own.
LOG_LIMIT = 16 * 1024 * 1024

#: Prefixes a queue looks up and encodes at a time: enough to pack messages well, and about 2 ms of work.
QUEUE_SLICE = 4000

#: Paths whose encoding a group remembers.
ENCODED_CACHE = 65536

#: Any prefix but the default route, for filters that do not look at it.
_SOME_PREFIX = b"\x20\x00\x00\x00\x00"


class Chunk:
    """Finished messages, for everybody in the group but `source`, which hears `instead`."""

    __slots__ = ("data", "instead", "instead_messages", "messages", "prefixes", "source")

    def __init__(
        self, source: Source | None, data: list[bytes], instead: list[bytes], prefixes: list[Sequence[bytes]]
    ) -> None:
        self.source = source
        self.data = b"".join(data)
        self.messages = len(data)
        self.instead = b"".join(instead)
        self.instead_messages = len(instead)
        self.prefixes = prefixes


class UpdateGroup:
    """The peers that hear the same, and the log of what they hear."""

    __slots__ = (
        "_encoded",
        "_encoded_attrs",
        "_uncounted",
        "_whole",
        "advertised",
        "base",
        "log",
        "log_bytes",
        "members",
        "policy",
        "rib",
    )

    def __init__(self, policy: ExportPolicy, rib: FamilyRib) -> None:
        self.policy = policy
        self.rib = rib
        self.members: set[AdjRibOut] = set()
        self.log: deque[Chunk] = deque()
        self.base = 0
        """How many chunks were ever dropped from the front of the log."""
        self.log_bytes = 0
        self._whole = policy.export_filter.accepts_all or policy.export_filter.prefix_free
        """The filter judges a path alike for all its prefixes (the default route aside)."""
        self._encoded: dict[Path, bytes | None] = {}
        """What `_exported_whole` found (only `_whole` groups use it). Both caches hold paths alive, so both are bounded."""
        self._encoded_attrs: dict[tuple[Path, AttributeSet], bytes | None] = {}
        """Encoded attributes by path and what the filter made of its attributes."""
        self.advertised: dict[Source, int] = {}
        """How many prefixes the group holds advertised, by the source of their best path."""
        self._uncounted = set(rib.table)
        """Prefixes `count` has still to look at; what happens to them until then is its business."""

    def count(self) -> Iterator[None]:
        """Fill `advertised` with what the table held when the group began, a slice at a time."""
        rib, advertised, uncounted = self.rib, self.advertised, self._uncounted
        prefixes = list(uncounted)
        for start in range(0, len(prefixes), QUEUE_SLICE):
            for prefix in prefixes[start : start + QUEUE_SLICE]:
                uncounted.discard(prefix)
                path = rib.best(prefix)
                if path is not None and self.exported(prefix, path) is not None:
                    advertised[path.source] = advertised.get(path.source, 0) + 1
            yield

    # ---- the rules

    def exported(self, prefix: bytes, path: Path) -> bytes | None:
        """Encoded attributes with which the group announces `prefix`, or None where a rule keeps it from the group."""
        if self._whole and prefix != DEFAULT_ROUTE:
            return self._exported_whole(path)
        if refusal(path, self.policy) is not None:
            return None
        verdict = self.policy.export_filter.evaluate(self.policy.family, prefix, path)
        if not verdict.accept:
            return None
        if len(self._encoded_attrs) >= ENCODED_CACHE:
            self._encoded_attrs.clear()
        key = (path, verdict.attrs)
        if key not in self._encoded_attrs:
            self._encoded_attrs[key] = encode(export_attributes(path, verdict.attrs, self.policy), self.policy)
        return self._encoded_attrs[key]

    def _exported_whole(self, path: Path) -> bytes | None:
        """The same for all prefixes of a path, where the filter does not look at the prefix."""
        encoded = self._encoded
        if path in encoded:
            return encoded[path]
        if len(encoded) >= ENCODED_CACHE:
            encoded.clear()
        result: bytes | None = None
        if refusal(path, self.policy) is None:
            verdict = self.policy.export_filter.evaluate(self.policy.family, _SOME_PREFIX, path)
            if verdict.accept:
                result = encode(export_attributes(path, verdict.attrs, self.policy), self.policy)
        encoded[path] = result
        return result

    # ---- the log

    def append(self, changes: list[Change]) -> bool:
        """Encode best-path changes for the members in the log; True where there is something new to send."""
        writer = _ChunkWriter(self.policy.family)
        for change in changes:
            old, new, prefixes = change.old, change.new, change.prefixes
            if self._whole and not (self.rib.default_route_seen and DEFAULT_ROUTE in prefixes):
                attributes = None if new is None else self._exported_whole(new)
                heard = old if old is not None and self._exported_whole(old) is not None else None
                self._tell(writer, heard, new, attributes, prefixes)
                continue
            for prefix in prefixes:
                attributes = None if new is None else self.exported(prefix, new)
                heard = old if old is not None and self.exported(prefix, old) is not None else None
                self._tell(writer, heard, new, attributes, (prefix,))
        chunks = writer.finish()
        for member in self.members:
            member.recheck(changes)
        if not chunks:
            return False
        if any(member.in_log for member in self.members):
            for chunk in chunks:
                self.log.append(chunk)
                self.log_bytes += len(chunk.data)
        for member in self.members:
            if not member.in_log:
                for chunk in chunks:
                    member.enqueue(chunk)
        return True

    def _tell(
        self,
        writer: _ChunkWriter,
        heard: Path | None,
        new: Path | None,
        attributes: bytes | None,
        prefixes: Sequence[bytes],
    ) -> None:
        """Write what follows for the members from what they had `heard` and what the rules now let out, if anything."""
        if new is not None and attributes is not None:
            self._count(heard, new, prefixes)
            writer.announce(new.source, attributes, prefixes)
            if heard is not None and heard.source is not new.source:
                writer.withdraw_from_source(prefixes)
        elif heard is not None:
            self._count(heard, None, prefixes)
            writer.withdraw(heard.source, prefixes)

    def _count(self, old: Path | None, new: Path | None, prefixes: Sequence[bytes]) -> None:
        count = len(prefixes)
        if self._uncounted:
            count -= sum(1 for prefix in prefixes if prefix in self._uncounted)
        if old is not None:
            self.advertised[old.source] = self.advertised.get(old.source, 0) - count
        if new is not None:
            self.advertised[new.source] = self.advertised.get(new.source, 0) + count

    @property
    def head(self) -> int:
        """The position behind the newest chunk."""
        return self.base + len(self.log)

    def trim(self) -> None:
        """Forget chunks everybody has; put members that are too far behind on a queue of their own."""
        while self.log:
            slowest = min((member.position for member in self.members if member.in_log), default=self.head)
            while self.base < slowest:
                self.log_bytes -= len(self.log.popleft().data)
                self.base += 1
            if self.log_bytes <= LOG_LIMIT:
                return
            for member in self.members:
                if member.in_log and member.position == slowest:
                    member.leave_log()


class _ChunkWriter:
    """Packs consecutive changes into as few messages and chunks as order allows."""

    __slots__ = (
        "_announced",
        "_attributes",
        "_chunks",
        "_data",
        "_family",
        "_instead",
        "_source",
        "_touched",
        "_withdrawn",
    )

    def __init__(self, family: Family) -> None:
        self._family = family
        self._chunks: list[Chunk] = []
        self._source: Source | None = None
        self._attributes = b""
        self._announced: list[Sequence[bytes]] = []
        self._withdrawn: list[Sequence[bytes]] = []
        self._instead: list[Sequence[bytes]] = []
        self._data: list[bytes] = []
        self._touched: list[Sequence[bytes]] = []

    def announce(self, source: Source, attributes: bytes, prefixes: Sequence[bytes]) -> None:
        if attributes != self._attributes or source is not self._source or self._withdrawn:
            if self._announced or self._withdrawn:
                self._close_message()
            if source is not self._source:
                self._close_chunk()
                self._source = source
            self._attributes = attributes
        self._announced.append(prefixes)

    def withdraw(self, source: Source, prefixes: Sequence[bytes]) -> None:
        if source is not self._source or self._announced:
            self._close_message()
            if source is not self._source:
                self._close_chunk()
                self._source = source
        self._withdrawn.append(prefixes)

    def withdraw_from_source(self, prefixes: Sequence[bytes]) -> None:
        """The source of the announcement just made loses what it had heard of the same prefixes from another."""
        self._instead.append(prefixes)

    def _close_message(self) -> None:
        if self._announced:
            self._data += announcements(self._family, self._attributes, self._announced)
            self._touched += self._announced
            self._announced = []
        if self._withdrawn:
            self._data += withdrawals(self._family, self._withdrawn)
            self._touched += self._withdrawn
            self._withdrawn = []

    def _close_chunk(self) -> None:
        if self._data:
            instead = withdrawals(self._family, self._instead) if self._instead else []
            self._chunks.append(Chunk(self._source, self._data, instead, self._touched))
            self._data, self._instead, self._touched = [], [], []

    def finish(self) -> list[Chunk]:
        self._close_message()
        self._close_chunk()
        return self._chunks


class AdjRibOut:
    """One peer's place in what its group says."""

    __slots__ = (
        "_first_queue",
        "_previous",
        "_queue",
        "_queue_at",
        "_waiting",
        "eor_due",
        "group",
        "held",
        "in_log",
        "messages",
        "position",
        "source",
    )

    def __init__(self, source: Source, group: UpdateGroup) -> None:
        self.source = source
        self.group = group
        self.in_log = False
        self.position = 0
        self.eor_due = True
        """End-of-RIB is still to be sent, after the first queue."""
        self.messages = 0
        """UPDATEs given out by `take`."""
        self.held = False
        """Route selection is deferred (RFC 4724 4.1): nothing is sent yet."""
        self._queue: list[bytes] = list(group.rib.table)
        self._queue_at = 0
        self._first_queue = True
        self._waiting: dict[bytes, None] = {}
        self._previous: UpdateGroup | None = None
        group.members.add(self)

    def refresh(self) -> None:
        """Say everything again (RFC 2918)."""
        self._owe()
        self._queue, self._queue_at, self._first_queue, self._previous = list(self.group.rib.table), 0, True, None

    def release(self) -> None:
        """Route selection is over: say what was chosen."""
        self.held = False
        self._waiting = {}
        self._queue, self._queue_at, self._first_queue = list(self.group.rib.table), 0, True

    def move(self, group: UpdateGroup) -> None:
        """Export rules changed: announce what they now let out and withdraw what they no longer do.

        Best-path changes must have been given to the group it leaves.
        """
        previous = self.group
        previous.members.discard(self)
        group.members.add(self)
        if not self.held:
            self._owe()
        self.group = group
        if not self.held:  # what it has heard follows from the rules of before, except where something is owed
            self._queue = [prefix for prefix in group.rib.table if prefix not in self._waiting]
            self._queue_at, self._first_queue, self._previous = 0, False, previous

    def close(self) -> None:
        self.group.members.discard(self)

    @property
    def first(self) -> bool:
        """The peer has not yet heard all there was when it came up: it can't hold what it would have to forget."""
        return self._first_queue

    @property
    def backlog(self) -> int:
        """How many prefixes, about, the peer is still to hear about."""
        unread = self.group.head - self.position if self.in_log else 0
        return len(self._queue) - min(self._queue_at, len(self._queue)) + len(self._waiting) + unread

    def owed(self) -> Iterator[Sequence[bytes]]:
        """The prefixes the peer is still to hear about, a slice at a time, for people who ask."""
        log = self.group.log
        chunks = [log[index] for index in range(self.position - self.group.base, len(log))] if self.in_log else []
        told = [prefixes for chunk in chunks for prefixes in chunk.prefixes]
        for prefixes in (*told, self._queue[self._queue_at :], list(self._waiting)):
            for start in range(0, len(prefixes), QUEUE_SLICE):
                yield prefixes[start : start + QUEUE_SLICE]

    def said_before(self, prefix: bytes, path: Path) -> bool:
        """The prefix is owed only for export rules that changed, and they say of it what the peer knows already."""
        previous = self._previous if not self.group.rib.changes else None
        if previous is None or prefix in self._waiting:
            return False
        return previous.exported(prefix, path) == self.group.exported(prefix, path)

    def has_output(self) -> bool:
        if self.held:
            return False
        if self.in_log:
            return self.position < self.group.head
        return True

    def take(self, limit: int) -> bytes:
        """The next messages for this peer, about `limit` octets of them. Empty does not mean all: see `has_output`."""
        if self.held:
            return b""
        out: list[bytes] = []
        size = 0
        if not self.in_log and size < limit:  # one slice, whatever comes of it: there may be nothing to say for long
            for message in self._take_queue():
                out.append(message)
                size += len(message)
                self.messages += 1
        group = self.group
        if self.in_log and size < limit and self.position < group.head:
            log, source = group.log, self.source
            index = self.position - group.base
            end = len(log)
            while index < end and size < limit:
                chunk = log[index]
                index += 1
                if chunk.source is not source:
                    data = chunk.data
                    self.messages += chunk.messages
                else:
                    data = chunk.instead
                    self.messages += chunk.instead_messages
                if data:
                    out.append(data)
                    size += len(data)
            self.position = group.base + index
        return b"".join(out)

    def enqueue(self, chunk: Chunk) -> None:
        """A change happened while this peer is on its own queue."""
        waiting = self._waiting
        for prefixes in chunk.prefixes:
            waiting.update(dict.fromkeys(prefixes))

    def recheck(self, changes: list[Change]) -> None:
        """While this peer hears of new export rules, the old ones say what it was told only where nothing changed."""
        if self._previous is not None:
            for change in changes:
                self._waiting.update(dict.fromkeys(change.prefixes))

    def leave_log(self) -> None:
        """Too far behind: hear about the prefixes of the unread chunks one by one, in their state at that time."""
        self.in_log = False
        self._queue, self._queue_at = [], 0
        unread = self.group.log
        for index in range(self.position - self.group.base, len(unread)):
            self.enqueue(unread[index])

    def _owe(self) -> None:
        """Remember what the peer has not heard of yet, whatever its group told the others: that stays waiting."""
        if self.in_log:
            self.leave_log()
        self._waiting.update(dict.fromkeys(self._queue[self._queue_at :]))

    def _take_queue(self) -> Iterator[bytes]:
        """Messages for the next slice of the queue; joins the log when nothing is left."""
        group, rib, source = self.group, self.group.rib, self.source
        # a change the groups have not heard of makes the table no witness of what was told: say everything
        previous = self._previous if not rib.changes else None
        reach: dict[bytes, list[bytes]] = {}
        gone: list[bytes] = []
        end = self._queue_at + QUEUE_SLICE
        for prefix in self._queue[self._queue_at : end]:
            path = rib.best(prefix)
            attributes = None
            if path is not None and path.source is not source:
                attributes = group.exported(prefix, path)
            if attributes is not None:
                if previous is not None and path is not None and previous.exported(prefix, path) == attributes:
                    continue
                reach.setdefault(attributes, []).append(prefix)
            elif not self._first_queue and (
                previous is None or (path is not None and path.source is not source and previous.exported(prefix, path))
            ):
                gone.append(prefix)
        self._queue_at = end
        if gone:
            yield from withdrawals(group.policy.family, [gone])
        for attributes, prefixes in reach.items():
            yield from announcements(group.policy.family, attributes, [prefixes])
        if self._queue_at < len(self._queue):
            return
        if self.eor_due and (
            self._first_queue or not self._waiting
        ):  # what was owed at a move is part of the beginning
            self.eor_due = False
            yield end_of_rib(group.policy.family)
        self._first_queue, self._previous = False, None
        if self._waiting:
            self._queue, self._queue_at = list(self._waiting), 0
            self._waiting = {}
            return
        self._queue, self._queue_at = [], 0
        self.in_log = True
        self.position = group.head
