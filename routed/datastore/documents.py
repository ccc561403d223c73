"""YAML text to JSON documents, each field with the line it is on.

Invariants: values are plain JSON; a document that cannot be read does not spoil the ones beside it (reading goes on
at the next `---`); the file is hostile: nesting and what aliases expand to are bounded, duplicate keys and tags
beyond JSON's types are refused. Plain scalars are read as Kubernetes reads them (YAML 1.1 booleans such as `yes`), but
for the two traps that Go's reader does not have either: `64512:10` is text, not a base-60 number, and a timestamp is
text. Built from libyaml's events, so that no recursion and no object per node stands between 2,000 documents and
their values; a document of JSON on one line, as programs write it, is read by JSON's reader. What the documents mean
is not this module's business.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import cast

import msgspec
import yaml

from routed.model.fields import field_path, shown
from routed.model.resources import JsonObject, JsonValue
from routed.values import dataclass

#: Levels of objects and lists in one document; Calico's deepest have eight.
MAX_DEPTH = 64
#: Values that the aliases of one file may stand for, in all.
MAX_ALIASED = 100_000
#: Objects and lists in a file of one line that is read as JSON.
MAX_ONE_LINE = 10_000
#: Documents of one file that are no YAML before the rest is left unread; each costs a new start of the parser.
MAX_BROKEN = 100

#: Texts of a file that are kept once however often it says them: how many, and how long.
MAX_TEXTS, MAX_SHARED = 20_000, 64

_Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_DIRECTIVE = re.compile("^%", re.MULTILINE)
_BREAKS = frozenset("\x85\u2028\u2029")
"""What begins a line in YAML and not in JSON."""
_OF_NUMBERS = bytes(48 if each in b"-+.0123456789eE" else 32 for each in range(256))
_LONG_NUMBER = b"0" * 21
"""What may be a number that YAML takes for text, once everything numbers are made of is a zero."""
_MERGE = '"<<"'
_ENCODER = msgspec.json.Encoder()
_PRINTABLE = bytes((9, 10, 13, *range(32, 127)))
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,19})")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,30}|[0-9]{1,30}(?:\.[0-9]{0,30})?)(?:[eE][-+]?[0-9]{1,4})?")
_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= {form: True for word in ("true", "yes", "on") for form in (word, word.title(), word.upper())}
_WORDS |= {form: False for word in ("false", "no", "off") for form in (word, word.title(), word.upper())}

_TAG = "tag:yaml.org,2002:"


class Mark:
    """The line (from 1) of a value, and the marks of what is in it."""

    __slots__ = ("children", "line")

    def __init__(self, line: int) -> None:
        self.line = line
        self.children: dict[str | int, Mark] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One document, or (`error` not empty) why it could not be read and where."""

    line: int
    value: JsonValue = None
    mark: Mark | None = None
    error: str = ""
    field: str = ""
    text: str = ""
    """As it is written, where that is JSON on one line."""
    before: JsonValue = None
    """Where it could not be read: what of it was before the fault, or, where that is a key given twice, all of it."""
    open_at: str = ""
    """The innermost object or list around the fault, whose rest is not in `before`."""

    def line_of(self, field: str) -> int:
        """The line of a field; of the nearest object around it where the document does not have it."""
        if self.mark is None:
            return self.line
        mark, path = self.mark, ""
        while True:
            inner = _step(mark, path, field)
            if inner is None:
                return mark.line
            path, mark = inner


def _step(mark: Mark, path: str, field: str) -> tuple[str, Mark] | None:
    """From what is at `path`, the member or element on the way to `field`; None where there is none."""
    children = mark.children or {}
    index = _INDEX.match(field, len(path))
    if index and (child := children.get(int(index[1]))):
        return field[: index.end()], child
    inner = [
        (child_path, child)
        for name, child in (children.items() if not index else ())
        if field.startswith(child_path := field_path(path, name))
        and field[len(child_path) : len(child_path) + 1] in ("", ".", "[")
    ]
    # A label's name may hold dots, so one member's path may begin with another's.
    return max(inner, key=lambda found: len(found[0]), default=None)


def read_documents(data: bytes) -> Iterator[Document]:
    """The documents of a file, in order. Empty ones are left out; never raises for what the file holds."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Document(data.count(b"\n", 0, error.start) + 1, error="the file is not UTF-8 text")
        return
    found = _UNPRINTABLE.search(text) if not data.isascii() or data.translate(None, _PRINTABLE) else None
    if found:
        line = text.count("\n", 0, found.start()) + 1
        yield Document(line, error=f"the file holds the control character U+{ord(found[0]):04X}, so it is damaged")
        return
    reader = _Reader()
    directive = _DIRECTIVE.search(text) if "%" in text else None  # from there on it is YAML
    last = directive.start() if directive else len(text)
    unread, unread_line, line = 0, 0, 0
    for start, end in pairwise([0, *_separators(text), len(text)]):
        opening = 3 if text.startswith("---", start) else 0
        written = text[start + opening : end].strip()
        plain = _one_line(written) if written[:1] == "{" and start <= last else None
        if plain is not None:
            yield from reader.documents(text[unread:start], unread_line)
            if reader.exhausted:
                return
            at = line + text.count("\n", start, text.index("{", start))
            yield Document(at + 1, plain, Mark(at + 1), text=written)
            unread, unread_line = end, line + text.count("\n", start, end)
        line += text.count("\n", start, end)
    yield from reader.documents(text[unread:], unread_line)


def _separators(text: str) -> Iterator[int]:
    """Where `_SEPARATOR` matches, but at the very beginning; by searching for text, which takes a tenth of the time."""
    at = text.find("\n---")
    while at >= 0:
        if text[at + 4 : at + 5].isspace() or at + 4 == len(text):
            yield at + 1
        at = text.find("\n---", at + 1)


def _one_line(text: str) -> JsonObject | None:
    """A document that is one object of JSON on one line, as programs write it; None: the reader for people must look.

    Where all is on one line, that is the line of every field. What JSON's reader would take otherwise than YAML's is left to
    that one: keys given twice, escapes, long numbers, depth.
    """
    if "\n" in text or "\\" in text or _MERGE in text or not (text.isascii() or _BREAKS.isdisjoint(text)):
        return None
    octets = text.encode()
    if _LONG_NUMBER in octets.translate(_OF_NUMBERS):
        return None
    open_at_most = text.count("{") + text.count("[")
    if open_at_most > MAX_ONE_LINE:
        return None
    try:
        value: JsonValue = msgspec.json.decode(octets)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or (open_at_most > MAX_DEPTH and _height(value) > MAX_DEPTH):
        return None
    # without escapes each key and each text has two quotation marks: where some are missing, a key was given twice
    try:
        written = _ENCODER.encode(value)
    except OverflowError:  # of msgspec's releases some write only integers of 64 bits
        return None
    return value if written.count(b'"') == octets.count(b'"') else None


def _height(value: JsonValue) -> int:
    """Levels of objects and lists."""
    if isinstance(value, dict):
        return 1 + max(map(_height, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_height(each) for each in value if isinstance(each, (dict, list))), default=0)
    return 0


def _flat(text: str, start: int) -> str:
    """A guess at why the document that begins at `start` is not YAML: it was pasted from a page that ate its spaces."""
    following = _SEPARATOR.search(text, start + 3)
    lines = text[start : following.start() if following else len(text)].splitlines()
    if any(line.endswith(":") for line in lines[:-1]) and not any(line[:1].isspace() for line in lines):
        return "; no line of it is indented, so the text has lost its indentation"
    return ""


class _Unreadable(Exception):
    """The current document is refused; the rest of it is skipped, or (`abandon`) not even parsed."""

    def __init__(self, line: int, field: str, text: str, *, abandon: bool = False) -> None:
        super().__init__(text)
        self.document = Document(line, error=text, field=field)
        self.abandon = abandon


class _Frame:
    """An object or list that is being filled."""

    __slots__ = ("anchor", "height", "key", "key_line", "mark", "merges", "path", "size_before", "value")

    def __init__(
        self, value: JsonObject | list[JsonValue], mark: Mark, path: str, anchor: str | None, size: int
    ) -> None:
        self.value = value
        self.mark = mark
        self.path = path
        self.anchor = anchor
        self.size_before = size
        self.height = 1
        self.key: str | None = None
        self.key_line = 0
        self.merges: list[tuple[JsonObject, Mark]] = []


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: JsonValue
    mark: Mark
    size: int
    height: int


class _Reader:
    """Turns the events of one stream into documents."""

    def __init__(self) -> None:
        self.exhausted = False
        """So many documents were broken that no more are read."""
        self._broken = 0
        self.started = 0
        """Line (from 0, in the text given) where the document under way began."""
        self._aliased = 0
        self._texts: dict[str, str] = {}
        """Short texts so far: thousands of resources say the same words, which are kept once."""
        self._builder: _Builder | None = None
        """Of the document under way."""

    def documents(self, text: str, first_line: int) -> Iterator[Document]:
        """The documents of `text`, whose first line is number `first_line` (from 0), broken ones among them."""
        if not text or text.isspace():
            return
        offset = 0
        while self._broken < MAX_BROKEN:
            try:
                yield from self.read(text[offset:], first_line)
                return
            except _Unreadable as refusal:
                yield refusal.document
            except yaml.YAMLError as error:
                before, open_at = self._builder.so_far() if self._builder is not None else (None, "")
                hint = _flat(text, _line_offset(text, offset, self.started))
                at = _error_line(error, self.started) + first_line + 1
                sentence = f"this is not YAML: {_sentence(error)}{hint}"
                yield Document(at, error=sentence, before=before, open_at=open_at)
            self._broken += 1
            # Past the separator that opened the broken document, if one did.
            line_start = _line_offset(text, offset, self.started)
            own = _SEPARATOR.match(text, line_start)
            following = _SEPARATOR.search(text, own.end() if own else line_start)
            if not following:
                return
            first_line += text.count("\n", offset, following.start())
            offset = following.start()
        self.exhausted = True
        yield Document(first_line + 1, error=f"the rest is not read, after {MAX_BROKEN} documents that are not YAML")

    def read(self, text: str, first_line: int) -> Iterator[Document]:
        """The documents of `text`, whose first line is number `first_line` (from 0).

        Raises yaml.YAMLError, and _Unreadable to abandon a document; what follows it has to be read anew.
        """
        self.started = 0
        loader = _Loader(text)
        try:
            while True:
                event = cast("yaml.Event", loader.get_event())
                if isinstance(event, yaml.DocumentStartEvent):
                    self.started = _line(event)
                    document = self._document(loader, first_line)
                    if document is not None:
                        yield document
                elif isinstance(event, yaml.DocumentEndEvent):
                    self.started = _line(event)
                elif isinstance(event, yaml.StreamEndEvent):
                    return
        finally:
            loader.dispose()

    def _document(self, loader: yaml.SafeLoader | yaml.CSafeLoader, first_line: int) -> Document | None:
        builder = self._builder = _Builder(first_line + 1, MAX_ALIASED - self._aliased, self._texts)
        unreadable: Document | None = None
        while True:
            event = cast("yaml.Event", loader.get_event())
            if isinstance(event, yaml.DocumentEndEvent):
                self.started = _line(event)
                self._aliased += builder.aliased
                self._builder = None
                root = builder.root
                if unreadable is None and builder.fault is not None:
                    unreadable = replace(builder.fault, before=None if root is None else root.value)
                if unreadable is not None:
                    return unreadable
                return None if root is None or root.value is None else Document(root.mark.line, root.value, root.mark)
            if unreadable is None:
                try:
                    builder.take(event)
                except _Unreadable as refusal:
                    before, open_at = builder.so_far()
                    refusal.document = replace(refusal.document, before=before, open_at=open_at)
                    if refusal.abandon:
                        raise
                    unreadable = refusal.document


class _Builder:
    """One document's value and marks, from its events."""

    def __init__(self, first_line: int, may_alias: int, texts: dict[str, str]) -> None:
        self._texts = texts
        self.root: _Anchored | None = None
        self.fault: Document | None = None
        """The first key that is given twice; the rest is read on, for what it says of the whole."""
        self.aliased = 0
        self._may_alias = may_alias
        self._first_line = first_line
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Anchored] = {}
        self._size = 0

    def take(self, event: yaml.Event) -> None:
        line = _line(event) + self._first_line
        if isinstance(event, yaml.ScalarEvent):
            frame = self._stack[-1] if self._stack else None
            if frame is not None and frame.key is None and isinstance(frame.value, dict):
                self._take_key(frame, event, line)
                return
            self._size += 1
            value = self._scalar(event, line)
            if isinstance(value, str):
                value = self._once(value)
            mark = Mark(line)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(value, mark, 1, 0)
            self._put(value, mark, 0)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._open(event, line)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, line)

    def so_far(self) -> tuple[JsonValue, str]:
        """What there is of a document that is not complete, and the path of what is being filled."""
        if not self._stack:
            return (None if self.root is None else self.root.value), ""
        inner: JsonValue = self._stack[-1].value
        for frame in reversed(self._stack[:-1]):
            if isinstance(frame.value, list):
                inner = [*frame.value, inner]
            elif frame.key is not None:
                inner = {**frame.value, frame.key: inner}
        return inner, self._stack[-1].path

    def _once(self, text: str) -> str:
        known = self._texts.get(text)
        if known is None:
            if len(text) <= MAX_SHARED and len(self._texts) < MAX_TEXTS:
                self._texts[text] = text
            return text
        return known

    def _path(self) -> str:
        """The path of the value that comes next."""
        if not self._stack:
            return ""
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            return field_path(frame.path, len(frame.value))
        return frame.path if frame.key is None else field_path(frame.path, frame.key)

    def _take_key(self, frame: _Frame, event: yaml.ScalarEvent, line: int) -> None:
        key = event.value
        if key in frame.value and key != "<<":
            first = (frame.mark.children or {})[key].line
            text = f"is given twice, first on line {first}"
            self.fault = self.fault or Document(line, error=text, field=field_path(frame.path, key))
        frame.key = sys.intern(key)
        frame.key_line = line

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, line: int) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        path = self._path()
        self._refuse_complex_key(line)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            raise _Unreadable(line, path, f"has the tag {shown(event.tag)}, which is not supported")
        if len(self._stack) >= MAX_DEPTH:
            # libyaml takes time squared in the depth of brackets, so this must not be parsed to its end.
            raise _Unreadable(line, path, f"is nested deeper than {MAX_DEPTH} levels", abandon=True)
        mark = Mark(line)
        mark.children = {}
        self._size += 1
        self._stack.append(_Frame({} if mapping else [], mark, path, event.anchor, self._size - 1))

    def _close(self) -> None:
        frame = self._stack.pop()
        if isinstance(frame.value, dict):
            for other, other_mark in frame.merges:
                for key, value in other.items():
                    if key not in frame.value and frame.mark.children is not None:
                        frame.value[key] = value
                        frame.mark.children[key] = (other_mark.children or {}).get(key, other_mark)
        if frame.anchor is not None:
            size = self._size - frame.size_before
            self._anchors[frame.anchor] = _Anchored(frame.value, frame.mark, size, frame.height)
        self._put(frame.value, frame.mark, frame.height)

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        self._refuse_complex_key(line)
        path = self._path()
        name = event.anchor or ""
        target = self._anchors.get(name)
        if target is None:
            raise _Unreadable(line, path, f"refers to {shown('*' + name)}, which is not complete before it")
        self.aliased += target.size
        self._size += target.size
        if self.aliased > self._may_alias or len(self._stack) + target.height > MAX_DEPTH:
            raise _Unreadable(line, path, f"stands for too much: aliases may repeat at most {MAX_ALIASED} values")
        mark = Mark(line)
        mark.children = target.mark.children
        self._put(target.value, mark, target.height)

    def _refuse_complex_key(self, line: int) -> None:
        if self._stack and self._stack[-1].key is None and isinstance(self._stack[-1].value, dict):
            raise _Unreadable(line, self._stack[-1].path, "has a key that is not text")

    def _put(self, value: JsonValue, mark: Mark, height: int) -> None:
        if not self._stack:
            self.root = _Anchored(value, mark, self._size, height)
            return
        frame = self._stack[-1]
        frame.height = max(frame.height, height + 1)
        children = frame.mark.children
        if isinstance(frame.value, list):
            if children is not None:
                children[len(frame.value)] = mark
            frame.value.append(value)
            return
        key, frame.key = frame.key, None
        if key is None:
            return
        if key == "<<":
            self._merge(frame, value, mark)
            return
        frame.value[key] = value
        if children is not None:
            mark.line = frame.key_line
            children[key] = mark

    def _merge(self, frame: _Frame, value: JsonValue, mark: Mark) -> None:
        for index, other in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(other, dict):
                raise _Unreadable(mark.line, frame.path, 'has a "<<" that names no object')
            other_mark = (mark.children or {}).get(index, mark) if isinstance(value, list) else mark
            frame.merges.append((other, other_mark))

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> JsonValue:
        text: str = event.value
        tag = event.tag
        if tag is None or tag == "!":
            return resolve_plain(text) if event.implicit[0] and tag is None else text
        if tag == _TAG + "str":
            return text
        value = resolve_plain(text)
        types: dict[str, tuple[type, ...]] = {
            "null": (type(None),),
            "bool": (bool,),
            "int": (int,),
            "float": (int, float),
        }
        wanted = types.get(tag.removeprefix(_TAG))
        if wanted is None or not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise _Unreadable(line, self._path(), f"has the tag {shown(tag)}, which does not fit {shown(text)}")
        return value


def resolve_plain(text: str) -> bool | int | float | str | None:
    """The value of a plain scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text) and not (text[0] == "0" and text.isdigit()):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


def _line(event: yaml.Event) -> int:
    """Line (from 0) an event begins on."""
    return event.start_mark.line if event.start_mark is not None else 0


def _error_line(error: yaml.YAMLError, otherwise: int) -> int:
    """Line (from 0) a YAML error points at."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            return int(mark.line)
    return otherwise


def _sentence(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return f"{error.problem} {error.context or ''}".strip()
    return "it cannot be parsed"


def _line_offset(text: str, offset: int, lines: int) -> int:
    """Where the line that is `lines` after `offset` begins."""
    for _ in range(lines):
        following = text.find("\n", offset)
        if following < 0:
            return len(text)
        offset = following + 1
    return offset
