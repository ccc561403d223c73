"""Our dataclasses behave as the standard library's, for every way in which they are declared here."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, ClassVar

import pytest

from routed import values

WAYS: list[dict[str, bool]] = [
    {},
    {"frozen": True},
    {"frozen": True, "kw_only": True},
    {"frozen": True, "order": True},
    {"frozen": True, "repr": False},
    {"eq": False},
]


def declared(decorate: Callable[..., Any], way: dict[str, bool]) -> type:
    """A class with every kind of field, and one that inherits from it."""

    @decorate(slots=True, **way)
    class Base:
        name: str
        octets: bytes = b"x"
        kind: ClassVar[str] = "a kind"
        labels: Mapping[str, str] = field(default_factory=dict, hash=False)
        secret: str = field(default="", repr=False)
        steps: tuple[int, ...] = field(default=(), compare=False)
        made: int = field(default=7, init=False)
        fresh: list[int] = field(default_factory=list, init=False, hash=False)

    @decorate(slots=True, **way)
    class Child(Base):
        """With a docstring."""

        octets: bytes = b"y"
        late: int = field(default=0, kw_only=True)
        sum: int = field(init=False, compare=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "sum", len(self.name) + self.late)

    return Child


def outcome(work: Callable[[], object]) -> object:
    """What it returns or raises, in words: the two classes are not one another."""
    try:
        found = work()
    except Exception as error:
        return type(error)
    return str(found) if isinstance(found, (str, bool, tuple)) else type(found).__name__


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    (("a",), {}),
    ((), {"name": "a"}),
    ((), {"name": "a", "late": 3}),
    (("a", b"z", {"k": "v"}, "s", (1,)), {}),
    (("a", b"z", {"k": "v"}, "s", (1,), 3), {}),
    (("a",), {"name": "b"}),
    ((), {"name": "a", "made": 1}),
    ((), {"name": "a", "steps": (1, 2)}),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_class_does_what_the_standard_librarys_does(way: dict[str, bool]) -> None:
    found: list[list[object]] = []
    for decorate in (dataclass, values.dataclass):
        cls = declared(decorate, way)
        seen: list[object] = [cls.__slots__, cls.__match_args__, [each.name for each in dataclasses.fields(cls)]]
        seen += [cls.__hash__ is None, cls.kind, hasattr(cls("a"), "__dict__") if not way.get("kw_only") else None]
        made = []
        for given, named in GIVEN:
            seen.append(outcome(lambda: cls(*given, **named)))  # noqa: B023 - called at once
            try:
                made.append(cls(*given, **named))
            except TypeError:
                continue
        for one in made:
            seen.append(str(one) if way.get("repr", True) else "")
            seen += [getattr(one, each.name) for each in dataclasses.fields(one)]
            seen += [outcome(lambda: hash(one) == hash(copy.copy(one))), outcome(lambda: one < made[0])]  # noqa: B023
            changed = copy.copy(one)
            seen += [outcome(lambda: setattr(changed, "name", "n")), changed == one]  # noqa: B023
            seen += [outcome(lambda: delattr(changed, "late"))]  # noqa: B023
        again = dataclasses.replace(made[0], name="b")
        seen += [again == made[0], made[0] == copy.copy(made[0]), made[0] != object(), dataclasses.asdict(again)]
        seen += [one == other for one in made for other in made]
        if way.get("order"):
            seen += [(one < again, one <= again, one > again, one >= again) for one in made]
        found.append(seen)
    assert found[0] == found[1]


@values.dataclass(frozen=True, slots=True)
class Pickled:
    name: str
    number: int = 0


@values.dataclass(frozen=True, slots=True)
class Own:
    """With methods of its own, which stay."""

    name: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "name", text.upper())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own)

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "own"


class Stored(Pickled):
    """What keeps something else in a field than it shows."""

    __slots__ = ()

    @property
    def name(self) -> str:  # type: ignore[override]
        return "shown of " + vars(Pickled)["name"].__get__(self)


def test_a_frozen_one_is_copied_and_pickled() -> None:
    one = Pickled("a", 1)
    assert copy.copy(one) == one == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) and hash(one) == hash(
        ("a", 1)
    )


def test_methods_of_a_class_stay() -> None:
    one = Own("a")
    assert (one.name, one == Own("b"), hash(one), repr(one)) == ("A", True, 7, "own")
    with pytest.raises(FrozenInstanceError):
        one.name = "b"  # type: ignore[misc]


def test_a_subclass_finds_what_was_given_in_the_slot() -> None:
    assert Stored("a").name == "shown of a" and Stored("a", 2).number == 2
    assert dataclasses.replace(Stored("a"), name="b").name == "shown of b"


def test_a_method_is_compiled_when_it_is_first_called() -> None:
    @values.dataclass(frozen=True, slots=True)
    class Fresh:
        name: str

    before = Fresh.__init__
    one = Fresh("a")
    assert Fresh.__init__ is not before and Fresh.__init__.__qualname__.endswith("Fresh.__init__")
    assert one == Fresh(name="a") and Fresh.__init__.__code__.co_varnames[:2] == ("self", "name")


def test_slots_are_asked_for() -> None:
    with pytest.raises(TypeError, match="without slots"):
        values.dataclass(slots=False)
