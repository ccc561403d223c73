"""A store in memory for the allocator's procedures: revisions, compare-and-swap, and everything through text."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from routed.ipam.allocator import CONFLICT, Clock, Found, Get, HasElder, List, Procedure, Request, Write, block_key
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.resources import BlockAffinity, Cidr, Resource, ResourceKey
from routed.model.schema import parse_manifest

R = TypeVar("R")


@dataclass
class MemoryStore:
    items: dict[ResourceKey, Found] = field(default_factory=dict)
    revision: int = 0
    writes: int = 0
    made: dict[ResourceKey, int] = field(default_factory=dict)
    """The revision at which each was made."""

    def answer(self, request: Request) -> Any:
        match request:
            case Get(key):
                return self.items.get(key)
            case HasElder(cidr):
                own = self.made[block_key(cidr)]
                return any(
                    found.value.cidr.overlaps(cidr) and self.made[key] < own
                    for key, found in self.items.items()
                    if isinstance(found.value, IPAMBlock)
                )
            case List(kind):
                return [found for key, found in sorted(self.items.items()) if key.kind == kind]
            case Write(key, wanted, revision):
                there = self.items.get(key)
                if (there.revision if there else None) != revision:
                    return CONFLICT
                self.writes += 1
                self.revision += 1
                if wanted is None:
                    self.items.pop(key, None)
                else:
                    manifest = wanted if isinstance(wanted, dict) else wanted.manifest
                    value = parse_manifest(json.loads(json.dumps(manifest)))
                    assert isinstance(wanted, dict) or value == wanted
                    assert value.key == key
                    if there is None:
                        self.made[key] = self.revision
                    self.items[key] = Found(value, str(self.revision))
                return str(self.revision)

    def run(self, procedure: Procedure[R]) -> R:
        """Carry a procedure out, with nobody else at work."""
        return finish(self, procedure)

    def of_kind(self, kind: type[Resource]) -> list[Any]:
        return [found.value for found in self.items.values() if isinstance(found.value, kind)]

    @property
    def blocks(self) -> dict[Cidr, IPAMBlock]:
        return {block.cidr: block for block in self.of_kind(IPAMBlock)}

    @property
    def handles(self) -> dict[str, dict[Cidr, int]]:
        return {handle.name: dict(handle.blocks) for handle in self.of_kind(IPAMHandle)}

    @property
    def affinities(self) -> list[BlockAffinity]:
        return self.of_kind(BlockAffinity)


def finish(store: MemoryStore, procedure: Generator[Request, Any, R]) -> R:
    answer: Any = None
    while True:
        try:
            answer = store.answer(procedure.send(answer))
        except StopIteration as done:
            result: R = done.value
            return result


class TestClock:
    """A clock that is moved by hand; times as RFC 3339 say are its seconds."""

    __test__ = False

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> Clock:
        now = self.now

        def is_older(text: str, seconds: float) -> bool:
            return now - int(text.rstrip("Z").rpartition(".")[2]) > seconds

        return Clock(f"2026-01-01T00:00:00.{now:09d}Z", now * 1_000_000_000, is_older)
