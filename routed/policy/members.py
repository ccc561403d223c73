"""What is in a set: addresses and networks from many sources, of which the kernel gets each once and none inside another.

Invariants: a member is in while at least one source gives it; `shown` are the members no other covers; each call returns
exactly how `shown` changed. Wire prefixes of one family.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix


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
        self._shown: set[bytes] = set()

    @property
    def shown(self) -> frozenset[bytes]:
        return frozenset(self._shown)

    def add(self, member: bytes, difference: Difference) -> None:
        self._counts[member] += 1
        if self._counts[member] > 1:
            return
        self._lengths[member[0]] += 1
        if self._covered(member):
            return
        for other in self._inside(member):
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
        if member not in self._shown:
            return
        self._shown.discard(member)
        difference.remove(member)
        if member[0] < self._family.max_length:
            for other in [other for other in self._counts if covers(member, other) and not self._covered(other)]:
                self._shown.add(other)
                difference.add(other)

    def _covered(self, member: bytes) -> bool:
        """Whether a shorter one holds it."""
        address = member[1:].ljust(self._family.address_length, b"\x00")
        return any(length < member[0] and make_prefix(address, length) in self._counts for length in self._lengths)

    def _inside(self, member: bytes) -> list[bytes]:
        """Those shown that a new one covers."""
        if member[0] == self._family.max_length:
            return []
        return [other for other in self._shown if covers(member, other)]
