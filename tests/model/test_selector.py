"""The selector language: truth tables from Calico's documentation, and properties over generated trees."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.model.selector import (
    MAX_DEPTH,
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
    parse_selector,
)

LABELS = st.sampled_from(["a", "b", "in", "not", "has", "all", "rack.io/row-1", "contains_x"])
VALUES = st.text(string.ascii_lowercase + " _-\"'é", max_size=3).filter(lambda text: not ('"' in text and "'" in text))

LEAVES: st.SearchStrategy[Selector] = st.one_of(
    st.just(All()),
    st.just(Global()),
    st.builds(Has, LABELS),
    *(st.builds(kind, LABELS, VALUES) for kind in (Equal, NotEqual, Contains, StartsWith, EndsWith)),
    *(st.builds(kind, LABELS, st.frozensets(VALUES, max_size=3)) for kind in (In, NotIn)),
)


def _grow(inner: st.SearchStrategy[Selector]) -> st.SearchStrategy[Selector]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(And, several), st.builds(Or, several))


SELECTORS = st.recursive(LEAVES, _grow, max_leaves=12)
LABEL_SETS = st.dictionaries(LABELS, VALUES, max_size=4)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        (" \t", {}, True),
        ("all()", {}, True),
        ("all( )", {}, True),
        ("global()", {}, True),
        ("has(a)", {"a": ""}, True),
        ("has( a )", {}, False),
        ("a == 'x'", {"a": "x"}, True),
        ('a=="x"', {"a": "y"}, False),
        ("a == 'x'", {}, False),
        ("a != 'x'", {"a": "x"}, False),
        ("a != 'x'", {}, True),
        ("a in {'x', \"y\"}", {"a": "y"}, True),
        ("a in{'x'}", {}, False),
        ("a in {}", {"a": ""}, False),
        ("a in {'x',}", {"a": "x"}, True),
        ("a not in {'x'}", {}, True),
        ("a notin {'x'}", {"a": "x"}, False),
        ("a contains 'bc'", {"a": "abcd"}, True),
        ("a contains ''", {}, False),
        ("a starts with 'ab'", {"a": "abc"}, True),
        ("a startswith 'b'", {"a": "abc"}, False),
        ("a ends with 'bc'", {"a": "abc"}, True),
        ("a endswith 'bc'", {}, False),
        ("!has(a)", {}, True),
        ("!!has(a)", {}, False),
        ("! a == 'x'", {"a": "y"}, True),
        ("has(a) && has(b) || has(c)", {"c": ""}, True),  # && binds tighter
        ("has(a) && (has(b) || has(c))", {"c": ""}, False),
        ("has(c) || has(a) && has(b)", {"c": ""}, True),
        ("!(has(a) || has(b))", {}, True),
        ("kubernetes.io/hostname == 'kind-control-plane'", {"kubernetes.io/hostname": "kind-control-plane"}, True),
        ("has == 'x' && all == 'y' && in in {'z'}", {"has": "x", "all": "y", "in": "z"}, True),
        ("contains contains 'n'", {"contains": "n"}, True),
    ],
)
def test_truth(text: str, labels: dict[str, str], expected: bool) -> None:
    assert parse_selector(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a", "operator after the label a"),
        ("a = 'x'", "operator"),
        ("a == x", "string in quotes at character 6"),
        ("a == 'x", "string in quotes"),
        ("a == 'x' &&", "found the end"),
        ("a == 'x' & b == 'y'", '"&&", "||" or the end at character 10'),
        ("(a == 'x'", '")"'),
        ("a in {'x' 'y'}", '"," or "}"'),
        ("a in {,}", "string in quotes"),
        ("a in 'x'", '"{"'),
        ("has (a)", "operator after the label has"),
        ("has(a", "operator"),
        ("a == 'x'\n", "character 9"),
        ("a" * 513 + " == 'x'", "operator"),
        ("é == 'x'", "a label"),
        ("()", "a label"),
        ("(" * (MAX_DEPTH + 2), "nested deeper"),
        ("!" * 100_000, "nested deeper"),
    ],
)
def test_refused_with_a_sentence(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_selector(text)
    assert complaint in str(caught.value)
    assert str(caught.value).isascii()


@given(SELECTORS)
def test_text_round_trip(selector: Selector) -> None:
    assert parse_selector(str(selector)) == selector


@given(SELECTORS, SELECTORS, LABEL_SETS)
def test_algebra(left: Selector, right: Selector, labels: dict[str, str]) -> None:
    a, b = left.matches(labels), right.matches(labels)
    assert parse_selector(f"!({left})").matches(labels) is (not a)
    assert parse_selector(f"({left}) && ({right})").matches(labels) is (a and b)
    assert parse_selector(f"({left}) || ({right})").matches(labels) is (a or b)


def _python(selector: Selector, labels: dict[str, str]) -> bool:
    """The grammar's meaning once more, as Python says it."""
    match selector:
        case All() | Global():
            return True
        case Has(label):
            return label in labels
        case Equal(label, value):
            return label in labels and labels[label] == value
        case NotEqual(label, value):
            return not (label in labels and labels[label] == value)
        case Contains(label, value):
            return label in labels and value in labels[label]
        case StartsWith(label, value):
            return label in labels and labels[label][: len(value)] == value
        case EndsWith(label, value):
            return (
                label in labels
                and labels[label][len(labels[label]) - len(value) :] == value
                and len(value) <= len(labels[label])
            )
        case In(label, values):
            return label in labels and labels[label] in values
        case NotIn(label, values):
            return not (label in labels and labels[label] in values)
        case Not(operand):
            return not _python(operand, labels)
        case And(operands):
            return all(_python(one, labels) for one in operands)
        case Or(operands):
            return any(_python(one, labels) for one in operands)
    raise AssertionError(selector)


@given(SELECTORS, LABEL_SETS)
def test_evaluation_is_python_s(selector: Selector, labels: dict[str, str]) -> None:
    assert selector.matches(labels) is _python(selector, labels)


@given(st.text("ab ()!&|='\"{},hasinot", max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        selector = parse_selector(text)
    except ValueError:
        return
    assert parse_selector(str(selector)) == selector
