"""What is in a set: addresses and networks from many sources, of which the kernel gets each once and none inside another.

Invariants: a member is in while at least one source gives it; `shown` are the members no other covers; each call returns
exactly how `shown` changed. Wire prefixes of one family.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from dataclasses import field

from routed.net.families import Family
from routed.net.prefixes import make_prefix
from routed.values import dataclass


@dataclass(slots=True)
class Difference:
    """How what is shown changed; what came and went in between is in neither."""

    added: set[bytes] = field(default_factory=set)
    removed: set[bytes] = field(default_factory=set)

    def add(self, member: bytes) -> None:
        if member in self.removed:
            self.removed.discard(member)
        else:
            self.added.add(member)

    def remove(self, member: bytes) -> None:
        if member in self.added:
            self.added.discard(member)
        else:
            self.removed.add(member)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class Members:
    """Members that do not cover each other: packed addresses, or ports at addresses."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    @property
    def shown(self) -> frozenset[bytes]:
        return frozenset(self._counts)

    def add(self, member: bytes, difference: Difference) -> None:
        count = self._counts[member] = self._counts.get(member, 0) + 1
        if count == 1:
            difference.add(member)

    def remove(self, member: bytes, difference: Difference) -> None:
        self._counts[member] -= 1
        if not self._counts[member]:
            del self._counts[member]
            difference.remove(member)


class Networks:
    """Wire prefixes, of which only those inside no other are shown."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._counts: Counter[bytes] = Counter()
        self._lengths: Counter[int] = Counter()
        self._order: list[bytes] = []
        """All, each as its first address and its length: what is inside another stands behind it."""
        self._shown: set[bytes] = set()

    @property
    def shown(self) -> frozenset[bytes]:
        return frozenset(self._shown)

    def add(self, member: bytes, difference: Difference) -> None:
        self._counts[member] += 1
        if self._counts[member] > 1:
            return
        self._lengths[member[0]] += 1
        insort(self._order, self._place(member))
        if self._covered(member):
            return
        for other in self._inside(member):
            if other in self._shown:
                self._shown.discard(other)
                difference.remove(other)
        self._shown.add(member)
        difference.add(member)

    def remove(self, member: bytes, difference: Difference) -> None:
        self._counts[member] -= 1
        if self._counts[member]:
            return
        del self._counts[member]
        self._lengths[member[0]] -= 1
        if not self._lengths[member[0]]:
            del self._lengths[member[0]]
        del self._order[bisect_left(self._order, self._place(member))]
        if member not in self._shown:
            return
        self._shown.discard(member)
        difference.remove(member)
        for other in self._inside(member):
            if not self._covered(other):
                self._shown.add(other)
                difference.add(other)

    def _place(self, member: bytes) -> bytes:
        return member[1:].ljust(self._family.address_length, b"\x00") + member[:1]

    def _covered(self, member: bytes) -> bool:
        """Whether a shorter one holds it."""
        address = member[1:].ljust(self._family.address_length, b"\x00")
        return any(length < member[0] and make_prefix(address, length) in self._counts for length in self._lengths)

    def _inside(self, member: bytes) -> list[bytes]:
        """Those that are inside of one, shown or not."""
        if member[0] == self._family.max_length:
            return []
        octets = self._family.address_length
        first = bisect_right(self._order, self._place(member))
        last = int.from_bytes(member[1:].ljust(octets, b"\x00"), "big") | (1 << self._family.max_length - member[0]) - 1
        behind = bisect_right(self._order, last.to_bytes(octets, "big") + b"\xff", first)
        return [make_prefix(each[:-1], each[-1]) for each in self._order[first:behind]]
