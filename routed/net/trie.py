"""A longest-prefix table over wire prefixes.

One dictionary per prefix length and the lengths in use, longest first: a lookup costs one dictionary probe per length
present, which beats a pointer trie in Python by far and stays exact. Keys are canonical wire prefixes of one family.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from routed.net.prefixes import make_prefix

V = TypeVar("V")


class PrefixTable(Generic[V]):
    """Exact and longest-match lookups of one family's prefixes."""

    __slots__ = ("_by_length", "_lengths")

    def __init__(self) -> None:
        self._by_length: dict[int, dict[bytes, V]] = {}
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return sum(len(table) for table in self._by_length.values())

    def __contains__(self, prefix: bytes) -> bool:
        return prefix in self._by_length.get(prefix[0], ())

    def __setitem__(self, prefix: bytes, value: V) -> None:
        table = self._by_length.get(prefix[0])
        if table is None:
            table = self._by_length[prefix[0]] = {}
            self._lengths = sorted(self._by_length, reverse=True)
        table[prefix] = value

    def get(self, prefix: bytes) -> V | None:
        return self._by_length.get(prefix[0], {}).get(prefix)

    def pop(self, prefix: bytes) -> V | None:
        """Remove a prefix; its value, or None where it was not held."""
        table = self._by_length.get(prefix[0])
        if table is None:
            return None
        value = table.pop(prefix, None)
        if not table:
            del self._by_length[prefix[0]]
            self._lengths = sorted(self._by_length, reverse=True)
        return value

    def items(self) -> Iterator[tuple[bytes, V]]:
        """All entries, longest prefixes first."""
        for length in self._lengths:
            yield from self._by_length[length].items()

    def matches(self, prefix: bytes) -> Iterator[tuple[bytes, V]]:
        """The entries that cover `prefix` (itself included), longest first."""
        own, octets = prefix[0], prefix[1:]
        for length in self._lengths:
            if length <= own:
                key = make_prefix(octets, length)
                value = self._by_length[length].get(key)
                if value is not None:
                    yield key, value

    def longest_match(self, address: bytes) -> tuple[bytes, V] | None:
        """The most specific entry that holds a packed address."""
        return next(self.matches(bytes((len(address) * 8,)) + address), None)
