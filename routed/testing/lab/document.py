"""A YAML file whose every value knows where it stands, so that what is wrong with it can be said with line and column."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import yaml

from routed.testing.lab.namespaces import LabError

#: Octets of the largest file that is read.
MAX_SIZE = 1 << 20


class TopologyError(LabError):
    """A file of a topology can't be used; the text says where and why."""


def read_document(file: Path, change: Callable[[str], str] = str) -> Value:
    """The one document in a file, whose text `change` may rewrite. Raises TopologyError."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TopologyError(f"{file}: {error.strerror}") from None
    if len(data) > MAX_SIZE:
        raise TopologyError(f"{file}: is larger than {MAX_SIZE} octets: this is no topology")
    try:
        root = yaml.compose(change(data.decode()), yaml.SafeLoader)
    except UnicodeDecodeError:
        raise TopologyError(f"{file}: is not text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise TopologyError(f"{file}{where}: is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise TopologyError(f"{file}: is not YAML: {error}") from None
    if root is None:
        raise TopologyError(f"{file}: is empty")
    return Value(file, "", root)


class Value:
    """A piece of the file and where it stands."""

    def __init__(self, file: Path, key: str, node: yaml.Node) -> None:
        self.file = file
        self.key = key
        self.node = node

    @property
    def place(self) -> str:
        mark = self.node.start_mark
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}"

    def fail(self, what: str) -> NoReturn:
        raise TopologyError(f"{self.place}: {self.key + ': ' if self.key else ''}{what}")

    @property
    def empty(self) -> bool:
        return self.node.tag == "tag:yaml.org,2002:null"

    def items(self) -> dict[str, Value]:
        """The entries of a mapping."""
        if self.empty:
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            self.fail("must be a mapping")
        found: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key_node, node in self.node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged |= Value(self.file, self.key, node).items()
                continue
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            value = Value(self.file, f"{self.key}.{name}" if self.key else name, node)
            if name in found:
                Value(self.file, value.key, key_node).fail("is given twice")
            found[name] = value
        return {**merged, **found}  # `<<: *anchor`: what stands in the mapping itself wins

    def known(self, used: set[str], noted: Mapping[str, str], refused: Mapping[str, str]) -> dict[str, Value]:
        """The entries of a mapping that may only have these keys."""
        found = self.items()
        for name, value in found.items():
            if name in used or name in noted:
                continue
            if name in refused:
                value.fail(f"containerlab has this, but {refused[name]}")
            every = [*used, *noted, *refused]
            near = difflib.get_close_matches(name, every, 1)
            value.fail(
                f"unknown key; did you mean `{near[0]}`?"
                if near
                else f"unknown key; known are {', '.join(sorted(used))}"
            )
        return found

    def elements(self) -> list[Value]:
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail("must be a list")
        return [Value(self.file, f"{self.key}[{index}]", node) for index, node in enumerate(self.node.value)]

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or self.empty:
            self.fail("must be a text")
        value: str = self.node.value
        return value

    def number(self, least: int, most: int) -> int:
        value = self.text()
        if not value.isdecimal() or not least <= int(value) <= most:
            self.fail(f"must be a number from {least} to {most}")
        return int(value)

    def words(self) -> tuple[str, ...]:
        """A command line, in words: no shell runs it."""
        try:
            return tuple(shlex.split(self.text()))
        except ValueError as error:
            self.fail(f"is no command line: {str(error).lower()}")
