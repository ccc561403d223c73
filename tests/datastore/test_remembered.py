"""What a store remembers of its own writes, and when it asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest

from routed.datastore.remembered import LIMIT, RememberingStore
from routed.datastore.store import Conflict, Contents, Edit, Stored
from routed.errors import StoreError
from routed.model.resources import Cidr, Resource, ResourceKey, Update
from routed.model.schema import parse_manifest


def handle(name: str, count: int = 1) -> Resource:
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "IPAMHandle",
            "metadata": {"name": name},
            "spec": {"block": {"10.65.0.0/26": count}},
        }
    )


class Backend:
    """A store that counts what it is asked."""

    shared_with_calico = False
    guards_deletions = False
    gone = frozenset[ResourceKey]()

    def __init__(self) -> None:
        self.items: dict[ResourceKey, tuple[Resource, int]] = {}
        self.asked = 0
        self.broken = False
        self.problems: tuple[str, ...] = ()

    async def read(self, _: Collection[str] | None = None) -> Contents:
        return Contents({}, self.problems)

    async def get(self, key: ResourceKey) -> Stored | None:
        self.asked += 1
        found = self.items.get(key)
        return None if found is None else Stored(found[0], str(found[1]), "")

    async def has_elder(self, _: Cidr) -> bool:
        return False

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        if self.broken:
            raise StoreError("gone")
        there = self.items.get(key)
        if (None if there is None else str(there[1])) != revision:
            raise Conflict(str(key))
        if resource is None:
            del self.items[key]
            return ""
        self.items[key] = resource, (there[1] if there else 0) + 1
        return str(self.items[key][1])

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        return [await self.write(edit.key, edit.resource, edit.revision) for edit in edits]

    async def close(self) -> None:
        pass


def test_own_writes_are_not_read_back():
    async def main() -> None:
        backend = Backend()
        store = RememberingStore(backend, lambda _: None)
        first, second = handle("a"), handle("a", 2)
        revision = await store.write(first.key, first, None)
        found = await store.get(first.key)
        assert found is not None and (found.resource, found.revision) == (first, revision)
        await store.write(first.key, second, found.revision)
        assert backend.asked == 0 and backend.items[first.key][0] is second

    asyncio.run(main())


def test_a_conflict_asks_the_datastore_even_where_nothing_is_known_to_be_there():
    async def main() -> None:
        backend = Backend()
        store = RememberingStore(backend, lambda _: False)
        mine, theirs = handle("a"), handle("a", 7)
        assert await store.get(mine.key) is None and backend.asked == 0
        await backend.write(theirs.key, theirs, None)
        with pytest.raises(Conflict):
            await store.write(mine.key, mine, None)
        found = await store.get(mine.key)
        assert found is not None and found.resource is theirs
        await store.write(mine.key, mine, found.revision)
        assert backend.asked == 1

    asyncio.run(main())


@pytest.mark.parametrize("value", [None, handle("a", 3)])
def test_what_the_datastore_tells_otherwise_is_forgotten(value: Resource | None):
    async def main() -> None:
        backend = Backend()
        store = RememberingStore(backend, lambda _: None)
        mine = handle("a")
        await store.write(mine.key, mine, None)
        store.told(Update(mine.key, mine))
        await store.get(mine.key)
        assert backend.asked == 0
        store.told(Update(mine.key, value))
        await store.get(mine.key)
        assert backend.asked == 1

    asyncio.run(main())


def test_after_a_write_whose_end_is_not_known_the_datastore_is_asked():
    async def main() -> None:
        backend = Backend()
        store = RememberingStore(backend, lambda _: False)
        mine = handle("a")
        revision = await store.write(mine.key, mine, None)
        backend.broken = True
        with pytest.raises(StoreError):
            await store.write(mine.key, None, revision)
        assert await store.get(mine.key) is not None and backend.asked == 1

    asyncio.run(main())


def test_what_is_followed_and_not_found_may_be_in_what_cannot_be_read():
    async def main() -> None:
        backend = Backend()
        there = {handle("a").key}
        store = RememberingStore(backend, there.__contains__)
        assert await store.get(handle("a").key) is None, "it has just gone"
        backend.problems = ("b.json:1: is no document",)
        with pytest.raises(StoreError, match=r"IPAMHandle a is not found, .*: b.json:1: is no document"):
            await store.get(handle("a").key)
        assert await store.get(handle("new").key) is None
        there.clear()
        assert await store.get(handle("a").key) is None

    asyncio.run(main())


def test_a_deletion_is_not_remembered_and_memory_is_bounded():
    async def main() -> None:
        backend = Backend()
        store = RememberingStore(backend, lambda _: None)
        mine = handle("a")
        await store.write(mine.key, None, await store.write(mine.key, mine, None))
        assert await store.get(mine.key) is None and backend.asked == 1
        many = [handle(f"h{number}") for number in range(LIMIT + 1)]
        for each in many:
            await store.write(each.key, each, None)
        await store.get(many[-1].key)
        assert backend.asked == 1
        await store.get(many[0].key)
        assert backend.asked == 2

    asyncio.run(main())
