"""Which items match which selectors, kept true while items, inherited labels and selectors change.

An item (a pod's interface, a network set) has labels of its own and inherits those of its parents (profiles): its own win,
then the first parent's. Items that have all of these in common, as the pods of a Deployment do, are one group, and what is
asked is asked of groups. A change costs what it touches. A new group is only tried with selectors it may match: each
selector waits under labels or label values without which it cannot match. A changed label only concerns selectors that
mention it.

Invariants: `matches(key)` is exactly the items whose labels the selector matches; every difference since the last `take`
is in its answer once, or not at all where it was undone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Set
from dataclasses import field
from typing import Generic, TypeAlias, TypeVar

from routed.model.selector import (
    All,
    And,
    Contains,
    EndsWith,
    Equal,
    Global,
    Has,
    In,
    Not,
    NotEqual,
    NotIn,
    Or,
    Selector,
    StartsWith,
)
from routed.values import dataclass

K = TypeVar("K", bound=Hashable)
"""What names a selector."""
I = TypeVar("I", bound=Hashable)  # noqa: E741 - an item
"""What names an item."""

T = TypeVar("T", bound=Hashable)
V = TypeVar("V", bound=Hashable)

Ticket: TypeAlias = "tuple[str, str | None]"
"""A label with a value, or (None) with any: what an item must have for a selector to match."""

_EMPTY: Mapping[str, str] = {}
_SHARED = {"projectcalico.org/namespace": 1, "projectcalico.org/orchestrator": 2}
"""Labels that say little of an item: a namespace's pods have the one, all pods the other."""


@dataclass(slots=True, eq=False)
class _Group(Generic[K, I]):
    """Items that have the same labels of their own and the same parents."""

    own: Mapping[str, str]
    parents: tuple[str, ...]
    items: set[I] = field(default_factory=set)
    labels: Mapping[str, str] = field(default_factory=dict)
    """What they have and inherit."""
    matched_by: set[K] = field(default_factory=set)
    """The selectors that match them."""


class LabelIndex(Generic[K, I]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._groups: dict[tuple[frozenset[tuple[str, str]], tuple[str, ...]], _Group[K, I]] = {}
        self._items: dict[I, _Group[K, I]] = {}
        self._parents: dict[str, Mapping[str, str]] = {}
        self._children: dict[str, set[_Group[K, I]]] = {}
        self._by_ticket: dict[Ticket, set[_Group[K, I]]] = {}
        self._selectors: dict[K, Selector] = {}
        self._waiting: dict[Ticket | None, set[K]] = {}
        """Selectors by what they need; None: they may match anything."""
        self._mentioned: dict[str, set[K]] = {}
        self._matches: dict[K, set[I]] = {}
        self._changes: dict[K, dict[I, bool]] = {}

    # ---- changes

    def set_item(self, item: I, labels: Mapping[str, str], parents: tuple[str, ...] = ()) -> None:
        """An item is new, or has these labels and parents now."""
        known = (frozenset(labels.items()), parents)
        group = self._groups.get(known)
        if group is None:
            group = self._groups[known] = self._made(_Group(labels, parents))
        before = self._items.get(item)
        if before is group:
            return
        self._items[item] = group
        group.items.add(item)
        matched: set[K] = set()
        if before is not None:
            matched = before.matched_by
            for key in matched - group.matched_by:
                self._note(key, item, matched=False)
            self._leave(item, before)
        for key in group.matched_by - matched:
            self._note(key, item, matched=True)

    def remove_item(self, item: I) -> None:
        group = self._items.pop(item, None)
        if group is None:
            return
        for key in group.matched_by:
            self._note(key, item, matched=False)
        self._leave(item, group)

    def set_parent(self, parent: str, labels: Mapping[str, str] | None) -> None:
        """What children inherit from a parent; None: nothing any more."""
        if self._parents.get(parent, _EMPTY) == (labels or _EMPTY):
            return
        if labels:
            self._parents[parent] = labels
        else:
            self._parents.pop(parent, None)
        for group in self._children.get(parent, ()):
            self._relabel(group)

    def add_selector(self, key: K, selector: Selector) -> None:
        """Have a selector's matches followed; it must not change while it is here."""
        if key in self._selectors:
            return
        self._selectors[key] = selector
        matches = self._matches[key] = set()
        tickets = needed(selector)
        for ticket in tickets if tickets is not None else (None,):
            self._waiting.setdefault(ticket, set()).add(key)
        for label in mentioned(selector):
            self._mentioned.setdefault(label, set()).add(key)
        groups = self._with_tickets(selector)
        if groups is None:
            candidates: Iterable[_Group[K, I]] = self._groups.values()
            if tickets is not None:
                candidates = set().union(*(self._by_ticket.get(ticket, ()) for ticket in tickets))
            groups = {group for group in candidates if selector.matches(group.labels)}
        for group in groups:
            group.matched_by.add(key)
            matches |= group.items
        if matches:
            self._changes[key] = dict.fromkeys(matches, True)

    def remove_selector(self, key: K) -> None:
        selector = self._selectors.pop(key, None)
        if selector is None:
            return
        for item in self._matches.pop(key):
            self._items[item].matched_by.discard(key)
        self._changes.pop(key, None)
        tickets = needed(selector)
        for ticket in tickets if tickets is not None else (None,):
            self._waiting[ticket].discard(key)
            if not self._waiting[ticket]:
                del self._waiting[ticket]
        for label in mentioned(selector):
            self._mentioned[label].discard(key)
            if not self._mentioned[label]:
                del self._mentioned[label]

    # ---- questions

    def matches(self, key: K) -> set[I]:
        """The items a selector matches now; not to be changed."""
        return self._matches[key]

    def has(self, key: K) -> bool:
        """Whether a selector is followed."""
        return key in self._selectors

    def matching(self, item: I) -> Set[K]:
        """The selectors that match an item, none where there is no such item; not to be changed."""
        group = self._items.get(item)
        return frozenset() if group is None else group.matched_by

    def labels(self, item: I) -> Mapping[str, str]:
        """All labels of an item, inherited ones included."""
        return self._items[item].labels

    def take(self) -> dict[K, dict[I, bool]]:
        """What changed since the last call: by selector, items that match now (True) or no longer do."""
        changes, self._changes = self._changes, {}
        return changes

    # ---- inside

    def _with_tickets(self, selector: Selector) -> set[_Group[K, I]] | None:
        """What matches, where tickets alone tell; not to be changed. None: labels have to be looked at."""
        match selector:
            case Equal(label, value):
                return self._by_ticket.get((label, value), set())
            case Has(label):
                return self._by_ticket.get((label, None), set())
            case In(label, values):
                return set().union(*(self._by_ticket.get((label, value), ()) for value in values))
            case And(operands):
                found = [self._with_tickets(operand) for operand in operands]
                known = [each for each in found if each is not None]
                return set.intersection(*sorted(known, key=len)) if known and len(known) == len(found) else None
            case _:
                return None

    def _made(self, group: _Group[K, I]) -> _Group[K, I]:
        """A new group, known where it has to be."""
        for parent in group.parents:
            self._children.setdefault(parent, set()).add(group)
        labels = group.labels = self._inherited(group)
        for ticket in _tickets_of(labels):
            self._by_ticket.setdefault(ticket, set()).add(group)
        candidates = set(self._waiting.get(None, ())).union(*map(self._waiting_for, _tickets_of(labels)))
        group.matched_by = {key for key in candidates if self._selectors[key].matches(labels)}
        return group

    def _leave(self, item: I, group: _Group[K, I]) -> None:
        """An item is not in a group any more, which goes with its last one."""
        group.items.discard(item)
        if group.items:
            return
        del self._groups[frozenset(group.own.items()), group.parents]
        for parent in group.parents:
            _discard(self._children, parent, group)
        for ticket in _tickets_of(group.labels):
            _discard(self._by_ticket, ticket, group)

    def _inherited(self, group: _Group[K, I]) -> Mapping[str, str]:
        inherited = [self._parents[parent] for parent in group.parents if parent in self._parents]
        if not inherited:
            return group.own
        merged: dict[str, str] = {}
        for each in reversed(inherited):
            merged.update(each)
        merged.update(group.own)
        return merged

    def _relabel(self, group: _Group[K, I]) -> None:
        old, labels = group.labels, self._inherited(group)
        if old == labels:
            return
        group.labels = labels
        before, after = set(_tickets_of(old)), set(_tickets_of(labels))
        for ticket in before - after:
            _discard(self._by_ticket, ticket, group)
        for ticket in after - before:
            self._by_ticket.setdefault(ticket, set()).add(group)
        changed = {label for label in old.keys() | labels.keys() if old.get(label) != labels.get(label)}
        for key in set().union(*(self._mentioned.get(label, ()) for label in changed)):
            matched = self._selectors[key].matches(labels)
            if matched is (key in group.matched_by):
                continue
            (group.matched_by.add if matched else group.matched_by.discard)(key)
            for item in group.items:
                self._note(key, item, matched=matched)

    def _waiting_for(self, ticket: Ticket) -> Iterable[K]:
        return self._waiting.get(ticket, ())

    def _note(self, key: K, item: I, *, matched: bool) -> None:
        (self._matches[key].add if matched else self._matches[key].discard)(item)
        changes = self._changes.setdefault(key, {})
        if changes.get(item) is (not matched):
            del changes[item]
        else:
            changes[item] = matched
        if not changes:
            del self._changes[key]


def _discard(table: dict[T, set[V]], name: T, value: V) -> None:
    table[name].discard(value)
    if not table[name]:
        del table[name]


def _tickets_of(labels: Mapping[str, str]) -> Iterable[Ticket]:
    for label, value in labels.items():
        yield label, value
        yield label, None


def needed(selector: Selector) -> list[Ticket] | None:
    """Tickets of which an item must have at least one to match; None: it may match without any."""
    match selector:
        case Equal(label, value):
            return [(label, value)]
        case In(label, values):
            return [(label, value) for value in sorted(values)]
        case Has(label) | Contains(label) | StartsWith(label) | EndsWith(label):
            return [(label, None)]
        case And(operands):
            known = [tickets for tickets in map(needed, operands) if tickets is not None]
            return min(known, key=_cost, default=None)
        case Or(operands):
            all_of = [needed(operand) for operand in operands]
            if any(tickets is None for tickets in all_of):
                return None
            return sorted({ticket for tickets in all_of for ticket in tickets or ()}, key=str)
        case _:
            return None


def _cost(tickets: list[Ticket]) -> tuple[int, int, int]:
    """A value says more than a label alone; few tickets more than many; of two, not what many or all pods have."""
    return (
        sum(1 for _, value in tickets if value is None),
        len(tickets),
        sum(_SHARED.get(label, 0) for label, _ in tickets),
    )


def mentioned(selector: Selector) -> frozenset[str]:
    """The labels on which it depends whether a selector matches."""
    match selector:
        case (
            Equal(label) | NotEqual(label) | In(label) | NotIn(label) | Has(label) | Contains(label) | StartsWith(label)
            | EndsWith(label)
        ):  # fmt: skip
            return frozenset((label,))
        case Not(operand):
            return mentioned(operand)
        case And(operands) | Or(operands):
            return frozenset().union(*map(mentioned, operands))
        case All() | Global():
            return frozenset()
        case _:
            raise TypeError(f"not a selector: {selector!r}")
