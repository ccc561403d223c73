"""Which fields a kind has, as data: what is unknown is found before anything is read, and documents can be checked.

    shape("spec { bgp { asNumber ipv4Address } orchRefs { nodeName } } status")

is an object with the members `spec` and `status`; a member without braces may hold anything (its reader judges it);
a list has the shape of its elements. `rules !{ ... }` is closed: a member that is not known there changes what its
neighbours mean (a filter rule with a condition left out matches more), so it is refused even where unknown fields of a
newer writer are otherwise left out and reported (docs/decisions/0011).

Invariants: pure data, built once at import; nothing is copied unless something has to be left out. What the fields
mean and how they are read is the readers' business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field

from routed.errors import ConfigError
from routed.model.fields import field_path, nearest
from routed.model.resources import JsonValue
from routed.values import dataclass

_TOKEN = re.compile(r"\s*(!?\{|\}|[A-Za-z0-9_-]+)\s*")


@dataclass(frozen=True, slots=True)
class Shape:
    """The members an object may have."""

    members: Mapping[str, Shape | None]
    """None: anything may stand there."""
    closed: bool = False
    deeper: tuple[tuple[str, Shape], ...] = field(init=False, repr=False, compare=False)
    """The members that have a shape of their own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "deeper", tuple((name, one) for name, one in self.members.items() if one is not None))


def shape(text: str) -> Shape:
    """The shape that `text` writes down; see the module's docstring."""
    tokens = [match[1] for match in _TOKEN.finditer(text)]
    members, rest = _members(tokens)
    if rest or "".join(tokens) != re.sub(r"\s", "", text):
        raise ValueError(f"not a shape: {text}")
    return Shape(members)


def _members(tokens: list[str]) -> tuple[dict[str, Shape | None], list[str]]:
    members: dict[str, Shape | None] = {}
    last = ""
    while tokens:
        token, tokens = tokens[0], tokens[1:]
        if token == "}":
            break
        if token in ("{", "!{"):
            inner, tokens = _members(tokens)
            members[last] = Shape(inner, closed=token == "!{")
        else:
            members[token] = None
            last = token
    return members, tokens


def paths(of: Shape, parent: str = "") -> Iterator[str]:
    """Every field that can be written, `spec.bgp.asNumber`, the elements of a list under the list's own name."""
    for name, inner in of.members.items():
        path = f"{parent}.{name}" if parent else name
        if inner is None:
            yield path
        else:
            yield from paths(inner, path)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A field that is not known where it stands."""

    error: ConfigError
    closed: bool
    """It stands where leaving it out would change what the others mean."""


def unknown_fields(value: JsonValue, of: Shape, path: str = "") -> Iterator[Unknown]:
    """The fields of a manifest that its kind does not have, in its order."""
    return iter(()) if _all_known(value, of) else _unknown(value, of, path)


def _all_known(value: JsonValue, of: Shape) -> bool:
    """Nearly always, so it is found out without a path and a generator for each object."""
    if isinstance(value, dict):
        if not value.keys() <= of.members.keys():
            return False
        for name, deeper in of.deeper:
            inner = value.get(name)
            if inner and not _all_known(inner, deeper):
                return False
    elif isinstance(value, list):
        flat, names = not of.deeper, of.members.keys()
        for element in value:
            if not (element.keys() <= names if flat and isinstance(element, dict) else _all_known(element, of)):
                return False
    return True


def _unknown(value: JsonValue, of: Shape, path: str) -> Iterator[Unknown]:
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from _unknown(element, of, field_path(path, index))
    elif isinstance(value, dict):
        members = of.members
        for name, inner in value.items():
            if name not in members:
                hint = nearest(name, members) or f"; known are {', '.join(sorted(members))}"
                yield Unknown(ConfigError(field_path(path, name), f"is not a field known here{hint}"), of.closed)
            elif isinstance(inner, (dict, list)) and (deeper := members[name]) is not None:
                yield from _unknown(inner, deeper, field_path(path, name))


def known_only(value: JsonValue, of: Shape) -> JsonValue:
    """A copy without the fields that are not known; what has none of them is shared."""
    if isinstance(value, list):
        return [known_only(element, of) for element in value]
    if not isinstance(value, dict):
        return value
    return {
        name: inner if (deeper := of.members[name]) is None else known_only(inner, deeper)
        for name, inner in value.items()
        if name in of.members
    }


def lost_indentation(manifest: JsonValue, where: str = "") -> ConfigError | None:
    """Why a manifest that was pasted flat can't be read: what belongs below `metadata` or `spec` stands beside it."""
    if not isinstance(manifest, dict):
        return None
    around = [name for name in ("metadata", "spec") if name in manifest and manifest[name] is None]
    beside = [name for name in manifest if name not in ("apiVersion", "kind", "metadata", "spec", "status")]
    if not around or not beside:
        return None
    text = f"stands beside {' and '.join(around)}, with nothing below: the text has lost its indentation"
    return ConfigError(field_path(where, beside[0]), f"{text}; move what belongs to each two spaces to the right")


def with_unknown(made: JsonValue, stored: JsonValue, of: Shape) -> JsonValue:
    """`made` with the fields of `stored` that nobody here knows, which a newer writer put there."""
    if not isinstance(made, dict) or not isinstance(stored, dict):
        return made
    whole = dict(made)
    for name, value in stored.items():
        if name not in of.members:
            whole.setdefault(name, value)
        elif name in whole and (deeper := of.members[name]) is not None:
            whole[name] = with_unknown(whole[name], value, deeper)
    return whole
