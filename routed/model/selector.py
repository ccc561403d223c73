"""Label selectors: Calico's expression language, parsed to a tree that can be evaluated and printed.

    or   := and ("||" and)*
    and  := term ("&&" term)*
    term := "!"* ( "has(" L ")" | "all()" | "global()" | "(" or ")" | L "==" S | L "!=" S | L "contains" S
                 | L "starts with" S | L "ends with" S | L "in" "{" S, ... "}" | L "not in" "{" S, ... "}" )

L is a label of [A-Za-z0-9_./-], at most 512 characters; S is a string in single or double quotes, without escapes;
white space is space and tab, and may be left out of "not in", "starts with" and "ends with". An empty selector is
all().

Invariants: a tree is immutable, hashable and compares by structure; `parse_selector(str(s)) == s` for every s this
module parsed; `!=` and `not in` hold where the label is absent, the other comparisons do not. Text is hostile: nesting
is bounded. What the labels belong to (nodes, namespaces) is the caller's business: `global()` only means something to a
namespaceSelector, so here it holds for everything, as in Calico.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field

from routed.values import dataclass

#: Parentheses and negations deeper than this are refused; people write three or four.
MAX_DEPTH = 64

_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,512}")
_SPACE = re.compile(r"[ \t]*")
_CALL = re.compile(r"(?:has\([ \t]*([A-Za-z0-9_./-]{1,512})[ \t]*\)|(all|global)\([ \t]*\))")
_STRING = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_OPERATOR = re.compile(r"==|!=|contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in")


class Selector(ABC):
    """A parsed selector."""

    __slots__ = ()

    @abstractmethod
    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether something with these labels is selected."""


@dataclass(frozen=True, slots=True)
class All(Selector):
    def matches(self, labels: Mapping[str, str]) -> bool:  # noqa: ARG002
        return True

    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class Global(Selector):
    def matches(self, labels: Mapping[str, str]) -> bool:  # noqa: ARG002
        return True

    def __str__(self) -> str:
        return "global()"


@dataclass(frozen=True, slots=True)
class Has(Selector):
    label: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self.label in labels

    def __str__(self) -> str:
        return f"has({self.label})"


@dataclass(frozen=True, slots=True)
class Equal(Selector):
    label: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) == self.value

    def __str__(self) -> str:
        return f"{self.label} == {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class NotEqual(Selector):
    label: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) != self.value

    def __str__(self) -> str:
        return f"{self.label} != {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class Contains(Selector):
    label: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.label)
        return found is not None and self.value in found

    def __str__(self) -> str:
        return f"{self.label} contains {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class StartsWith(Selector):
    label: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.label)
        return found is not None and found.startswith(self.value)

    def __str__(self) -> str:
        return f"{self.label} starts with {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class EndsWith(Selector):
    label: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.label)
        return found is not None and found.endswith(self.value)

    def __str__(self) -> str:
        return f"{self.label} ends with {_quoted(self.value)}"


@dataclass(frozen=True, slots=True)
class In(Selector):
    label: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) in self.values

    def __str__(self) -> str:
        return f"{self.label} in {_set(self.values)}"


@dataclass(frozen=True, slots=True)
class NotIn(Selector):
    label: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) not in self.values

    def __str__(self) -> str:
        return f"{self.label} not in {_set(self.values)}"


@dataclass(frozen=True, slots=True)
class Not(Selector):
    operand: Selector

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.operand.matches(labels)

    def __str__(self) -> str:
        # A comparison needs no parentheses: "!" takes the whole term that follows.
        inner = str(self.operand)
        return f"!({inner})" if isinstance(self.operand, (And, Or)) else f"!{inner}"


@dataclass(frozen=True, slots=True)
class And(Selector):
    operands: tuple[Selector, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(("And", self.operands)))

    def __hash__(self) -> int:
        return self._hash  # they are keys of tables that are asked for each of thousands of pods

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(operand.matches(labels) for operand in self.operands)

    def __str__(self) -> str:
        return " && ".join(f"({one})" if isinstance(one, (And, Or)) else str(one) for one in self.operands)


@dataclass(frozen=True, slots=True)
class Or(Selector):
    operands: tuple[Selector, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(("Or", self.operands)))

    def __hash__(self) -> int:
        return self._hash  # they are keys of tables that are asked for each of thousands of pods

    def matches(self, labels: Mapping[str, str]) -> bool:
        return any(operand.matches(labels) for operand in self.operands)

    def __str__(self) -> str:
        return " || ".join(f"({one})" if isinstance(one, Or) else str(one) for one in self.operands)


_COMPARISONS: dict[str, type[Equal | NotEqual | Contains | StartsWith | EndsWith]] = {
    "==": Equal,
    "!=": NotEqual,
    "contains": Contains,
    "startswith": StartsWith,
    "endswith": EndsWith,
}


@functools.lru_cache(4096)
def parse_selector(text: str) -> Selector:
    """The tree of a selector in text. Raises ValueError with a sentence that names the character it stopped at."""
    parser = _Parser(text)
    parser.skip_space()
    if parser.at == len(text):
        return All()
    tree = parser.parse_or(0)
    if parser.at < len(text):
        raise parser.error('"&&", "||" or the end')
    return tree


def _quoted(value: str) -> str:
    # There are no escapes, so a string never holds both quotes.
    return f"'{value}'" if '"' in value else f'"{value}"'


def _set(values: frozenset[str]) -> str:
    return "{" + ", ".join(_quoted(value) for value in sorted(values)) + "}"


class _Parser:
    """Recursive descent over one text; `at` is the next character to read, always past white space."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def error(self, expected: str) -> ValueError:
        found = f"{self.text[self.at : self.at + 20]!a}" if self.at < len(self.text) else "the end"
        return ValueError(f"expected {expected} at character {self.at + 1}, found {found}")

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def take(self, token: str) -> bool:
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        self.skip_space()
        return True

    def parse_or(self, depth: int) -> Selector:
        operands = [self.parse_and(depth)]
        while self.take("||"):
            operands.append(self.parse_and(depth))
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def parse_and(self, depth: int) -> Selector:
        operands = [self.parse_term(depth)]
        while self.take("&&"):
            operands.append(self.parse_term(depth))
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def parse_term(self, depth: int) -> Selector:
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels at character {self.at + 1}")
        if self.take("!"):
            return Not(self.parse_term(depth + 1))
        if self.take("("):
            inner = self.parse_or(depth + 1)
            if not self.take(")"):
                raise self.error('"&&", "||" or ")"')
            return inner
        call = _CALL.match(self.text, self.at)
        if call:
            self.at = call.end()
            self.skip_space()
            if call[1] is not None:
                return Has(call[1])
            return All() if call[2] == "all" else Global()
        return self.parse_comparison()

    def parse_comparison(self) -> Selector:
        label_match = _LABEL.match(self.text, self.at)
        if not label_match:
            raise self.error('a label, "has(label)", "all()", "!" or "("')
        self.at = label_match.end()
        self.skip_space()
        label = label_match[0]
        match = _OPERATOR.match(self.text, self.at)
        if not match:
            raise self.error(
                f'an operator after the label {label[:64]} (one of "==", "!=", "in", "not in", "contains",'
                ' "starts with", "ends with")'
            )
        self.at = match.end()
        self.skip_space()
        operator = match[0].replace(" ", "").replace("\t", "")
        if operator == "in":
            return In(label, self.parse_set())
        if operator == "notin":
            return NotIn(label, self.parse_set())
        return _COMPARISONS[operator](label, self.parse_string())

    def parse_string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if not match:
            raise self.error("a string in quotes")
        self.at = match.end()
        self.skip_space()
        return match[1] if match[1] is not None else match[2]

    def parse_set(self) -> frozenset[str]:
        if not self.take("{"):
            raise self.error('"{" and a set of strings')
        values: set[str] = set()
        while not self.take("}"):
            values.add(self.parse_string())
            if not self.take(",") and not self.text.startswith("}", self.at):
                raise self.error('"," or "}"')
        return frozenset(values)
