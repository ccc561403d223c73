"""Which items match which selectors, kept true while items, inherited labels and selectors change.

An item (a pod's interface, a network set) has labels of its own and inherits those of its parents (profiles): its own win,
then the first parent's. A change costs what it touches. A new item is only tried with selectors it may match: each
selector waits under labels or label values without which it cannot match. A changed label only concerns selectors that
mention it.

Invariants: `matches(key)` is exactly the items whose labels the selector matches; every difference since the last `take`
is in its answer once, or not at all where it was undone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
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

K = TypeVar("K", bound=Hashable)
"""What names a selector."""
I = TypeVar("I", bound=Hashable)  # noqa: E741 - an item
"""What names an item."""

Ticket: TypeAlias = "tuple[str, str | None]"
"""A label with a value, or (None) with any: what an item must have for a selector to match."""

_EMPTY: Mapping[str, str] = {}
_SHARED = {"projectcalico.org/namespace": 1, "projectcalico.org/orchestrator": 2}
"""Labels that say little of an item: a namespace's pods have the one, all pods the other."""


@dataclass(slots=True)
class _Item:
    own: Mapping[str, str]
    parents: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    """What it has and inherits."""


class LabelIndex(Generic[K, I]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._items: dict[I, _Item] = {}
        self._parents: dict[str, Mapping[str, str]] = {}
        self._children: dict[str, set[I]] = {}
        self._by_ticket: dict[Ticket, set[I]] = {}
        self._selectors: dict[K, Selector] = {}
        self._waiting: dict[Ticket | None, set[K]] = {}
        """Selectors by what they need; None: they may match anything."""
        self._mentioned: dict[str, set[K]] = {}
        self._matches: dict[K, set[I]] = {}
        self._changes: dict[K, dict[I, bool]] = {}

    # ---- changes

    def set_item(self, item: I, labels: Mapping[str, str], parents: tuple[str, ...] = ()) -> None:
        """An item is new, or has these labels and parents now."""
        known = self._items.get(item)
        if known is None:
            known = self._items[item] = _Item(labels, parents)
        else:
            self._leave(item, known.parents)
            known.own, known.parents = labels, parents
        for parent in parents:
            self._children.setdefault(parent, set()).add(item)
        self._relabel(item, known)

    def remove_item(self, item: I) -> None:
        known = self._items.get(item)
        if known is None:
            return
        known.own = _EMPTY
        self._leave(item, known.parents)
        del self._items[item]
        for ticket in _tickets_of(known.labels):
            self._by_ticket[ticket].discard(item)
            if not self._by_ticket[ticket]:
                del self._by_ticket[ticket]
        for key in [*self._candidates(known.labels), *self._waiting.get(None, ())]:
            self._note(key, item, matched=False)

    def set_parent(self, parent: str, labels: Mapping[str, str] | None) -> None:
        """What children inherit from a parent; None: nothing any more."""
        if self._parents.get(parent, _EMPTY) == (labels or _EMPTY):
            return
        if labels:
            self._parents[parent] = labels
        else:
            self._parents.pop(parent, None)
        for item in self._children.get(parent, ()):
            self._relabel(item, self._items[item])

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
        exactly = self._with_tickets(selector)
        if exactly is not None:
            matches |= exactly
        else:
            candidates: Iterable[I] = self._items
            if tickets is not None:
                candidates = set().union(*(self._by_ticket.get(ticket, ()) for ticket in tickets))
            for item in candidates:
                if selector.matches(self._items[item].labels):
                    matches.add(item)
        if matches:
            self._changes[key] = dict.fromkeys(matches, True)

    def remove_selector(self, key: K) -> None:
        selector = self._selectors.pop(key, None)
        if selector is None:
            return
        del self._matches[key]
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

    def selectors(self) -> Iterable[K]:
        """The selectors that are followed."""
        return self._selectors.keys()

    def labels(self, item: I) -> Mapping[str, str]:
        """All labels of an item, inherited ones included."""
        return self._items[item].labels

    def take(self) -> dict[K, dict[I, bool]]:
        """What changed since the last call: by selector, items that match now (True) or no longer do."""
        changes, self._changes = self._changes, {}
        return changes

    # ---- inside

    def _with_tickets(self, selector: Selector) -> set[I] | None:
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

    def _leave(self, item: I, parents: tuple[str, ...]) -> None:
        for parent in parents:
            children = self._children.get(parent)
            if children is not None:
                children.discard(item)
                if not children:
                    del self._children[parent]

    def _relabel(self, item: I, known: _Item) -> None:
        labels: Mapping[str, str] = known.own
        inherited = [self._parents[parent] for parent in known.parents if parent in self._parents]
        if inherited:
            merged: dict[str, str] = {}
            for each in reversed(inherited):
                merged.update(each)
            merged.update(known.own)
            labels = merged
        old, known.labels = known.labels, labels
        if old == labels:
            if not old:  # it may be new, and without labels
                for key in self._waiting.get(None, ()):
                    self._note(key, item, matched=self._selectors[key].matches(labels))
            return
        if not old:
            keys = {*self._candidates(labels), *self._waiting.get(None, ())}
        else:
            changed = {label for label in old.keys() | labels.keys() if old.get(label) != labels.get(label)}
            keys = set().union(*(self._mentioned.get(label, ()) for label in changed))
        before, after = set(_tickets_of(old)), set(_tickets_of(labels))
        for ticket in before - after:
            self._by_ticket[ticket].discard(item)
            if not self._by_ticket[ticket]:
                del self._by_ticket[ticket]
        for ticket in after - before:
            self._by_ticket.setdefault(ticket, set()).add(item)
        for key in keys:
            self._note(key, item, matched=self._selectors[key].matches(labels))

    def _candidates(self, labels: Mapping[str, str]) -> set[K]:
        found: set[K] = set()
        for ticket in _tickets_of(labels):
            found |= self._waiting.get(ticket, set())
        return found

    def _note(self, key: K, item: I, *, matched: bool) -> None:
        matches = self._matches[key]
        if matched is (item in matches):
            return
        if matched:
            matches.add(item)
        else:
            matches.discard(item)
        changes = self._changes.setdefault(key, {})
        if changes.get(item) is (not matched):
            del changes[item]
        else:
            changes[item] = matched
        if not changes:
            del self._changes[key]


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
