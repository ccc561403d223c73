"""The table as the kernel has it, for who makes it anew: what may stay, and what of a set differs from what is wanted.

A packet that is on its way through the rules of before looks into sets as they are at that moment. So a set that is
replaced, if by one with the same members, may be empty to it for an instant, and what only that set admits is lost, or what
it denies passes. What need not change is therefore left alone: chains get their rules anew, which a packet never sees half,
and sets only the members that differ.

Invariants: pure; octets and what was read, no socket. Where a chain or set is not of the kind that is wanted, nothing fits,
and the whole table has to be replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field

from routed.netlink.nftables import ChainFound, Element, ElementFound, SetFlag, SetFound, SetShape, found_as
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class SetDifference:
    """How a set becomes what is wanted."""

    anew: bool = False
    """All of it has to go first: what matches everything cannot be told from others, nor what is no range."""
    removed: Iterable[Element] = ()
    added: Iterable[Element] = ()


@dataclass(frozen=True, slots=True)
class TableFound:
    """See the module's docstring."""

    chains: Mapping[str, ChainFound] = field(default_factory=dict)
    sets: Mapping[str, SetFound] = field(default_factory=dict)
    elements: Mapping[str, frozenset[ElementFound]] = field(default_factory=dict)

    def fits(self, base: Mapping[str, ChainFound], chains: Iterable[str], sets: Mapping[str, SetShape]) -> bool:
        """Whether what there is of these can stay."""
        wanted = {name: ChainFound(name) for name in chains} | dict(base)
        return all(self.chains.get(name, each) == each for name, each in wanted.items()) and all(
            self.sets[name].has(shape) for name, shape in sets.items() if name in self.sets
        )

    def difference(self, name: str, wanted: list[Element]) -> SetDifference:
        """Between what is in a set and what should be."""
        found = self.elements.get(name, frozenset())
        listed = {each for element in wanted for each in found_as(element)}
        if listed == found:
            return SetDifference()
        surplus = found - listed
        if self.sets[name].flags & SetFlag.INTERVAL:
            there = _ranges(found)
            if there is None:
                return SetDifference(anew=True, added=wanted)
            stay = set(there) & set(wanted)
            return SetDifference(
                removed=[each for each in there if each not in stay],
                added=[each for each in wanted if each not in stay],
            )
        if any(not each.key for each in surplus):
            return SetDifference(anew=True, added=wanted)
        return SetDifference(removed=[Element(each.key) for each in surplus], added=_missing(wanted, found))


def _ranges(found: Iterable[ElementFound]) -> list[Element] | None:
    """The ranges of a set as they were written; None where beginnings and ends are not in turns."""
    ranges: list[Element] = []
    begun: bytes | None = None
    for each in sorted(found, key=lambda each: (each.key, not each.end)):
        if each.end is (begun is None) or each.verdict is not None:
            return None
        if begun is None:
            begun = each.key
        else:
            ranges.append(Element(begun, each.key))
            begun = None
    return ranges if begun is None else [*ranges, Element(begun, b"")]


def _missing(wanted: list[Element], found: frozenset[ElementFound]) -> Iterator[Element]:
    return (element for element in wanted if found.isdisjoint(found_as(element)))
