"""The label index against the obvious: every selector tried on every item, after any changes in any order."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routed.model.selector import Selector, parse_selector
from routed.policy.index import LabelIndex, mentioned, needed

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y", "xy"]), max_size=3)
TERMS = [
    "a == 'x'", "b != 'y'", "has(c)", "!has(a)", "a in {'x', 'y'}", "b not in {'x'}", "c contains 'x'",
    "a starts with 'x'", "b ends with 'y'", "all()", "global()", "a in {}", "!(a == 'x' && has(b))",
]  # fmt: skip
TEXTS = st.recursive(
    st.sampled_from(TERMS),
    lambda inner: st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda each: f"({' '.join(each)})"),
    max_leaves=4,
)
ITEMS = st.integers(0, 5)
PARENTS = st.lists(st.sampled_from(["p", "q", "r"]), unique=True, max_size=3).map(tuple)


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index: LabelIndex[str, int] = LabelIndex()
        self.items: dict[int, tuple[Mapping[str, str], tuple[str, ...]]] = {}
        self.parents: dict[str, Mapping[str, str]] = {}
        self.selectors: dict[str, Selector] = {}
        self.told: dict[str, set[int]] = {}
        """What a listener knows who only hears of changes."""

    def expected(self, item: int) -> dict[str, str]:
        own, parents = self.items[item]
        labels: dict[str, str] = {}
        for source in (own, *(self.parents.get(parent, {}) for parent in parents)):
            for label, value in source.items():
                labels.setdefault(label, value)
        return labels

    @rule(item=ITEMS, labels=LABELS, parents=PARENTS)
    def set_item(self, item: int, labels: dict[str, str], parents: tuple[str, ...]) -> None:
        self.index.set_item(item, labels, parents)
        self.items[item] = (labels, parents)

    @rule(item=ITEMS)
    def remove_item(self, item: int) -> None:
        self.index.remove_item(item)
        self.items.pop(item, None)

    @rule(parent=st.sampled_from("pqr"), labels=st.none() | LABELS)
    def set_parent(self, parent: str, labels: dict[str, str] | None) -> None:
        self.index.set_parent(parent, labels)
        self.parents[parent] = labels or {}

    @rule(text=TEXTS)
    def add_selector(self, text: str) -> None:
        selector = parse_selector(text)
        self.index.add_selector(text, selector)
        self.selectors[text] = selector
        self.told.setdefault(text, set())

    @rule(data=st.data())
    def remove_selector(self, data: st.DataObject) -> None:
        if self.selectors:
            text = data.draw(st.sampled_from(sorted(self.selectors)))
            self.index.remove_selector(text)
            del self.selectors[text], self.told[text]

    @rule()
    def take(self) -> None:
        for text, changes in self.index.take().items():
            for item, matched in changes.items():
                assert matched is not (item in self.told[text]), "a change that is none"
                (self.told[text].add if matched else self.told[text].discard)(item)
        for text, matches in self.told.items():
            assert matches == self.index.matches(text)

    @invariant()
    def matches_are_what_selectors_say(self) -> None:
        for text, selector in self.selectors.items():
            assert self.index.matches(text) == {item for item in self.items if selector.matches(self.expected(item))}
        for item in self.items:
            assert self.index.labels(item) == self.expected(item)
            matching = {text for text, matches in self.selectors.items() if matches.matches(self.expected(item))}
            assert self.index.matching(item) == matching


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(TestIndex.settings, max_examples=50)


@given(TEXTS, LABELS)
def test_what_a_selector_needs_and_mentions(text: str, labels: dict[str, str]):
    selector = parse_selector(text)
    tickets = needed(selector)
    if selector.matches(labels) and tickets is not None:
        assert any(label in labels and value in (None, labels[label]) for label, value in tickets)
    without = {label: value for label, value in labels.items() if label in mentioned(selector)}
    assert selector.matches(labels) is selector.matches(without)


def test_selectors_wait_where_few_items_come_by():
    assert needed(parse_selector("projectcalico.org/namespace == 'a' && app == 'b'")) == [("app", "b")]
    assert needed(parse_selector("has(x) && app in {'b', 'c'}")) == [("app", "b"), ("app", "c")]
    assert needed(parse_selector("app == 'a' || !has(x)")) is None
    assert needed(parse_selector("!has(x) && has(y)")) == [("y", None)]


def test_what_all_pods_have_is_no_reason_to_try_a_selector():
    for text in (
        "projectcalico.org/orchestrator == 'k8s' && app == 'a'",
        "projectcalico.org/namespace == 'x' && projectcalico.org/orchestrator == 'k8s' && app == 'a'",
    ):
        assert needed(parse_selector(text)) == [("app", "a")]
    text = "projectcalico.org/orchestrator == 'k8s' && projectcalico.org/namespace == 'x'"
    assert needed(parse_selector(text)) == [("projectcalico.org/namespace", "x")]
