"""Dataclasses that cost little until they are used: the standard library's, with methods that are made when first called.

The standard library writes and compiles six functions for a frozen class with slots, 1 ms for each class. We have hundreds,
most of whose methods a run never calls: that was half of the daemon's, of routedctl's and of a CNI call's time to start.
Here each of `__init__`, `__eq__`, `__hash__` and the orders is compiled at its first call; `__repr__` and the refusal to
change what is frozen are one function for all classes. Fields, slots, `replace`, `fields` and `asdict` are the standard
library's own.

Invariants: a class behaves as the standard library's would, for the parameters there are (tests/test_values.py compares
them); InitVar is not for these classes. A field of a frozen class is set through its slot, which is three times as fast as
`object.__setattr__` by name: a subclass that replaces a field by a property finds what was given in the slot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, FrozenInstanceError
from reprlib import recursive_repr
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen=False, slots, eq=True, order=False, repr=True, kw_only=False):  # noqa: A002 - its names
        """A class decorator; the parameters are those of `dataclasses.dataclass`, and `slots` must be true."""
        if not slots:
            raise TypeError("classes without slots are the standard library's")
        return lambda cls: _made(cls, frozen=frozen, eq=eq, order=order, shown=repr, kw_only=kw_only)


__all__ = ["dataclass"]

C = TypeVar("C")
Method = Callable[..., object]

_ORDERS = {"__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">="}


def _made(cls: type[C], *, frozen: bool, eq: bool, order: bool, shown: bool, kw_only: bool) -> type[C]:
    if cls.__doc__ is None:
        cls.__doc__ = cls.__name__  # or the standard library asks `inspect` for a signature to put there
    own = frozenset(cls.__dict__)
    hashed = cls.__dict__.get("__hash__") is not None
    cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(cls)

    def put(name: str, method: object) -> None:
        if name not in own:
            setattr(cls, name, method)

    put("__init__", _later(cls, "__init__", _initializer, frozen))
    if shown:
        put("__repr__", _repr)
    if eq:
        put("__eq__", _later(cls, "__eq__", _comparison, "=="))
        if not hashed:
            cls.__hash__ = _later(cls, "__hash__", _hash, None) if frozen else None  # type: ignore[assignment]
    if order:
        for name, sign in _ORDERS.items():
            put(name, _later(cls, name, _comparison, sign))
    if frozen:
        put("__setattr__", _refuse_set)
        put("__delattr__", _refuse_delete)
        put("__getstate__", _state)
        put("__setstate__", _set_state)
    return cls


def _later(cls: type, name: str, make: Callable[[type, str, object], Method], how: object) -> Method:
    """A method that at its first call is replaced by what `make` makes of it."""

    def first(*args: object, **named: object) -> object:
        made = make(cls, name, how)
        setattr(cls, name, made)
        return made(*args, **named)

    first.__name__, first.__qualname__ = name, f"{cls.__qualname__}.{name}"
    return first


def _compiled(cls: type, name: str, parameters: str, body: list[str], names: Mapping[str, object]) -> Method:
    text = f"def {name}({parameters}):\n" + "\n".join(f" {line}" for line in body or ["pass"])
    space = {**names}
    exec(text, space)
    made = space[name]
    assert callable(made)
    made.__module__, made.__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"  # type: ignore[attr-defined]
    return made


def _initializer(cls: type, name: str, frozen: object) -> Method:
    given: list[str] = []
    by_name: list[str] = []
    body: list[str] = []
    names: dict[str, object] = {"_missing": MISSING}
    for each in dataclasses.fields(cls):
        field, made = each.name, each.name
        if each.default_factory is not MISSING:
            names[f"_make_{field}"] = each.default_factory
            made = f"_make_{field}() if {field} is _missing else {field}" if each.init else f"_make_{field}()"
        elif each.default is not MISSING:
            names[f"_default_{field}"] = each.default
            made = field if each.init else f"_default_{field}"
        elif not each.init:
            continue
        if each.init:
            default = "_missing" if each.default_factory is not MISSING else f"_default_{field}"
            optional = each.default is not MISSING or each.default_factory is not MISSING
            (by_name if each.kw_only else given).append(f"{field}={default}" if optional else field)
        if frozen:
            names[f"_set_{field}"] = getattr(cls, field).__set__
            body.append(f"_set_{field}(self, {made})")
        else:
            body.append(f"self.{field} = {made}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    made_of = ", ".join(["self", *given, *(["*", *by_name] if by_name else [])])
    return _compiled(cls, name, made_of, body, names)


def _values(of: str, fields: list[str]) -> str:
    return "(" + "".join(f"{of}.{field}," for field in fields) + ")"


def _comparison(cls: type, name: str, sign: object) -> Method:
    fields = [each.name for each in dataclasses.fields(cls) if each.compare]
    body = [
        "if other.__class__ is self.__class__:",
        f" return {_values('self', fields)} {sign} {_values('other', fields)}",
        "return NotImplemented",
    ]
    return _compiled(cls, name, "self, other", body, {})


def _hash(cls: type, name: str, _: object) -> Method:
    fields = [each.name for each in dataclasses.fields(cls) if (each.compare if each.hash is None else each.hash)]
    return _compiled(cls, name, "self", [f"return hash({_values('self', fields)})"], {})


@recursive_repr()
def _repr(self: object) -> str:
    shown = [each.name for each in dataclasses.fields(self) if each.repr]  # type: ignore[arg-type]
    return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


def _refuse_set(_: object, name: str, __: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(_: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: object) -> list[object]:
    return [getattr(self, each.name) for each in dataclasses.fields(self)]  # type: ignore[arg-type]


def _set_state(self: object, state: list[object]) -> None:
    for each, value in zip(dataclasses.fields(self), state, strict=True):  # type: ignore[arg-type]
        object.__setattr__(self, each.name, value)
