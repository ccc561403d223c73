"""YAML to documents: values as Kubernetes reads them, lines, broken documents beside good ones, hostile files."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from routed.datastore import documents
from routed.datastore.documents import MAX_ALIASED, MAX_BROKEN, Document, read_documents, resolve_plain
from routed.model.fields import field_path
from routed.model.resources import JsonValue


def read(text: str | bytes) -> list[Document]:
    return list(read_documents(text.encode() if isinstance(text, str) else text))


def values(text: str | bytes) -> list[JsonValue]:
    documents = read(text)
    assert [document.error for document in documents if document.error] == []
    return [document.value for document in documents]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64512", 64512),
        ("-1", -1),
        ("0", 0),
        ("0x10", 16),
        ("010", "010"),
        ("64512:10", "64512:10"),  # base 60 in YAML 1.1, a community here
        ("66:11:22:33:44:55", "66:11:22:33:44:55"),
        ("1:2:3", "1:2:3"),
        ("1.10", 1.1),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("fd00::1", "fd00::1"),
        ("::1", "::1"),
        ("2026-05-01T10:00:00Z", "2026-05-01T10:00:00Z"),
        ("2026-05-01", "2026-05-01"),
        ("120s", "120s"),
        ("true", True),
        ("yes", True),
        ("Off", False),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("99999999999999999999999", 1e23),
        ("9" * 5000, "9" * 5000),
        ("-", "-"),
        ("+", "+"),
        (".", "."),
        ("1_000", "1_000"),
    ],
)
def test_plain_scalars(text: str, value: JsonValue) -> None:
    assert resolve_plain(text) == value
    assert type(resolve_plain(text)) is type(value)


def test_forms_of_documents() -> None:
    assert values("") == []
    assert values("# nothing but a comment\n") == []
    assert values("---\n---\n# x\n---\n") == []
    assert values("a: 1\n---\nb: 2\n...\n---\nc: 3") == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert values("%YAML 1.1\n---\na: 1\n") == [{"a": 1}]
    assert values("\ufeffa: 1\r\nb: 'x'\r\n") == [{"a": 1, "b": "x"}]
    assert values("a: |\n  --- x\n  y\nb: \"1\"\nc: '2'\nd: !!str 3\ne: ! 4\n") == [
        {"a": "--- x\ny\n", "b": "1", "c": "2", "d": "3", "e": "4"}
    ]
    assert values("a: !!int 3\nb: !!float 2\nc: !!bool true\nd: !!null ~\n") == [{"a": 3, "b": 2, "c": True, "d": None}]
    assert values("1: x\ntrue: y\n") == [{"1": "x", "true": "y"}]
    assert values('{"a": [1, {"b":\t"\\u00e9\\/\\n"}],\n "c": null}') == [{"a": [1, {"b": "é/\n"}], "c": None}]
    assert values("just text") == ["just text"]


def test_aliases_and_merges() -> None:
    text = "base: &b {x: 1, y: [1, 2]}\none: *b\ntwo: {<<: *b, x: 2}\nthree:\n  <<: [*b, {z: 3}]\n"
    base = {"x": 1, "y": [1, 2]}
    assert values(text) == [{"base": base, "one": base, "two": {"x": 2, "y": [1, 2]}, "three": {**base, "z": 3}}]


def test_lines_of_fields() -> None:
    (document,) = read(
        "# comment\nkind: X\nspec:\n  list:\n  - a: 1\n    b.c: 2\n  -\n    a: 3\n  text: >\n    x\n    y\n  last:\n    4\n"
    )
    assert document.line == 2
    for field, line in [
        ("", 2),
        ("kind", 2),
        ("spec", 3),
        ("spec.list", 4),
        ("spec.list[0]", 5),
        ("spec.list[0].a", 5),
        ("spec.list[0].b.c", 6),
        ("spec.list[1].a", 8),
        ("spec.text", 9),
        ("spec.last", 12),
        ("spec.missing.field", 3),
        ("spec.list[7].a", 4),
        ("spec.listless", 3),
        ("elsewhere", 2),
    ]:
        assert (field, document.line_of(field)) == (field, line)


@pytest.mark.parametrize(
    ("text", "before", "open_at"),
    [
        ("kind: A\nspec: {a: 1}\nspec: {b: 2}\nlast: 3\n", {"kind": "A", "spec": {"b": 2}, "last": 3}, ""),
        ("kind: A\nitems: [{x: 1}, {x: [1, 2}]\n", {"kind": "A", "items": [{"x": 1}, {"x": [1, 2]}]}, "items[1].x"),
        (
            "kind: A\nmetadata: {name: n, labels: {a: ]\n",
            {"kind": "A", "metadata": {"name": "n", "labels": {}}},
            "metadata.labels",
        ),
        ("kind: A\nspec: !!binary eA==\n", {"kind": "A"}, ""),
        ("]", None, ""),
    ],
)
def test_what_was_before_a_fault(text: str, before: object, open_at: str) -> None:
    (document,) = read(text)
    assert document.error and (document.before, document.open_at) == (before, open_at)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\n---\nb: [1\n---\nc: 3\n", [(1, ""), (4, "flow sequence"), (5, "")]),
        ("---\na: 1\n b: 2\n---\nc: 3\n", [(3, "mapping values"), (5, "")]),
        ("---\n'x\n---\nd: 1", [(3, "quoted"), (4, "")]),
        ("a: 1\n---\nb: 'x", [(1, ""), (3, "end of stream")]),
        ("a: @x\n---\nb: `\n---\nc: %\n---\nd: 1", [(1, "token"), (3, "token"), (5, "token"), (7, "")]),
        ("a: 1\na: 2\n---\nb: 1", [(2, "is given twice, first on line 1"), (4, "")]),
        ("a: {b: 1,\n b: 2}\n---\nb: 1", [(2, "is given twice"), (4, "")]),
        ("? [a]\n: 1\n---\nb: 1", [(1, "key that is not text"), (4, "")]),
        ("? &k {a: 1}\n: 1\n", [(1, "key that is not text")]),
        ("x: &k 1\n? *k\n: 1\n", [(2, "key that is not text")]),
        ("a: *b\n---\nb: 1", [(1, '"*b"'), (3, "")]),
        ("&a [*a]", [(1, "not complete")]),
        ("a: &x 1\n---\nb: *x", [(1, ""), (3, '"*x"')]),
        ("a: !!python/object/apply:os.system [x]\n---\nb: 1", [(1, "is not supported"), (3, "")]),
        ("a: !!binary eA==", [(1, "does not fit")]),
        ("a: !!int x", [(1, "does not fit")]),
        ("a: !!int true", [(1, "does not fit")]),
        ("a: {<<: 1}", [(1, "names no object")]),
        ("a: 1\nb: \x00\n", [(2, "U+0000")]),
        (b"a: 1\nb: \xff\n", [(2, "UTF-8")]),
    ],
)
def test_a_bad_document_spoils_no_other(text: str | bytes, found: list[tuple[int, str]]) -> None:
    documents = read(text)
    assert [document.line for document in documents] == [line for line, _ in found]
    for document, (_, sentence) in zip(documents, found, strict=True):
        assert sentence in document.error
        assert bool(document.error) is bool(sentence)


def test_the_field_of_a_refused_document() -> None:
    (document,) = read("spec:\n  list:\n  - x: 1\n    x: 2\n")
    assert (document.line, document.field) == (4, "spec.list[0].x")


def test_hostile_files_are_refused_in_bounded_time() -> None:
    """Unbounded would be minutes: the suite's own timeout is the bound."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
    )
    (document,) = read(bomb)
    assert str(MAX_ALIASED) in document.error
    documents = read("".join(f"---\n{bomb}" for _ in range(20)))
    assert all(document.error for document in documents)
    deep = "a: &a [x]\n" + "".join(f"b{n}: &b{n} [*{'a' if not n else f'b{n - 1}'}]\n" for n in range(200))
    assert "stands for too much" in read(deep)[0].error
    for nested in ("[" * 200_000, "{a: " * 200_000, "- " * 5_000, "[[]," * 50_000, "? " * 5_000):
        assert all(document.error for document in read(nested))
    refused, good = read("[" * 100 + "]" * 100 + "\n---\na: 1\n")
    assert "nested deeper" in refused.error
    assert (good.line, good.value) == (3, {"a": 1})
    documents = read("---\n'x\n" * 100_000)
    assert len(documents) == MAX_BROKEN + 1
    assert "the rest is not read" in documents[-1].error


def _no_number(text: str) -> bool:
    """PyYAML writes `0E0` without quotes, which is a number to Kubernetes."""
    return not re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", text)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**15), 10**15),
        st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8).filter(_no_number),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab.c-/", max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.lists(JSON.filter(lambda value: value is not None), max_size=3), st.booleans())
def test_whatever_json_is_written_is_read(documents: list[JsonValue], flow: bool) -> None:
    assert values(yaml.safe_dump_all(documents, default_flow_style=flow, allow_unicode=True)) == documents
    for document in documents:
        assert values(json.dumps(document, ensure_ascii=False)) == [document]


@given(st.dictionaries(st.text(max_size=20), JSON, max_size=5), st.booleans())
def test_json_on_one_line_is_read_as_by_the_reader_for_people(value: JsonValue, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    for candidate in (text, text + "\n"):
        quick, careful = read(candidate), read(text + "\n#\n")
        if any(document.error for document in careful):  # as for a key of more than 1,024 characters
            continue
        assert [document.value for document in quick] == [document.value for document in careful]
        for path in _fields(value):
            assert [document.line_of(path) for document in quick] == [1] * len(quick)


_PIECES = [
    '{"a": [1, {"b": "c"}]}', '{"a": 1, "a": 2}', "{a: 1}", "a: 1\nb:\n- c: &x y\n- *x", "", "# nothing", "'never closed",
    "%YAML 1.1", "a: |\n  {}\n  text", '{"b": "\\u00e9"}', '{"a":\n 1}', '  {"indented": true}  ', '{"a": 1} # b', "...",
    "---", "[", "--- a", "{}", '{"\xe9": "\xfc"}',
]  # fmt: skip
_BETWEEN = ["\n---\n", "\n--- ", "\n---\r\n", "\n\n---  \n\n", "\n"]


@given(st.lists(st.sampled_from(_PIECES), max_size=6), st.sampled_from(_BETWEEN))
def test_json_among_other_documents_is_read_as_yaml_is(pieces: list[str], between: str) -> None:
    text = between.join(pieces)
    quick = read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_one_line", lambda _: None)
        careful = read(text)
    assert [(each.value, each.error == "", each.line) for each in quick] == [
        (each.value, each.error == "", each.line) for each in careful
    ]


def test_json_among_broken_documents_does_not_make_more_of_them_be_read() -> None:
    found = read("---\n'x\n---\n{}\n" * 1000)
    assert "the rest is not read" in found[-1].error
    assert sum(1 for each in found if each.error) == MAX_BROKEN + 1


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"<<": 1}',
        '{"a": {"b": "c", "d": 1, "b": "c"}}',
        '{"a": [{"": 1, "": 1}], "b": -123456789012345678901.5}',
        '{"a": 123456789012345678901234}',
        '{"a": 99999999999999999999}',
        "{a: 1}",
    ],
)
def test_what_json_reads_otherwise_is_left_to_the_reader_for_people(text: str) -> None:
    quick, careful = read(text), read(text + "\n#\n")
    assert [(each.value, each.error, each.line) for each in quick] == [
        (each.value, each.error, each.line) for each in careful
    ]


def _fields(value: JsonValue, path: str = "") -> list[str]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for name, child in inner for deeper in _fields(child, field_path(path, name)))]


@given(JSON.filter(lambda value: isinstance(value, dict)))
def test_every_field_has_a_line_in_its_document(value: JsonValue) -> None:
    text = "# first\n---\n" + yaml.safe_dump(value, allow_unicode=True)
    (document,) = read(text)
    for field in _fields(value):
        assert 2 <= document.line_of(field) <= text.count("\n")


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`,?#\n \t~<1é\x00"), max_size=60), st.binary(max_size=6))
def test_any_file_is_read_or_refused(text: str, tail: bytes) -> None:
    for document in read_documents(text.encode() + tail):
        assert document.line >= 1
        assert document.error or document.value is not None


@given(st.lists(st.sampled_from(["---", "\n", " ", "-", "a", "\u00a0", "\t", "\r"]), max_size=12).map("".join))
def test_separators_are_found_as_by_their_pattern(text: str) -> None:
    assert list(documents._separators(text)) == [
        each.start() for each in documents._SEPARATOR.finditer(text) if each.start()
    ]
