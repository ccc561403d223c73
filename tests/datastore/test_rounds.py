"""Procedures carried out together: one write for all, nothing given twice, and those who lost a race try again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.datastore.allocating import clock
from routed.datastore.rounds import AT_ONCE, Rounds
from routed.datastore.store import Conflict, Contents, Edit, Stored
from routed.errors import CniError, StoreError
from routed.ipam.allocator import (
    CONFLICT,
    Answer,
    Cluster,
    Demand,
    Found,
    Get,
    Outcome,
    Procedure,
    Write,
    assign_addresses,
    block_key,
    handle_key,
    release_by_handle,
)
from routed.ipam.blocks import Owner, assign
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.resources import BlockAffinity, Cidr, IPPool, Resource, ResourceKey
from routed.model.schema import parse_manifest
from routed.net.families import Family

POOL = parse_manifest(
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "pool"},
        "spec": {"cidr": "10.65.0.0/24", "blockSize": 29},
    }
)
assert isinstance(POOL, IPPool)
CLUSTER = Cluster((POOL,))


class Memory:
    """A store; `meddle` is called before each write of several."""

    shared_with_calico = False
    guards_deletions = False
    gone = frozenset[ResourceKey]()

    def __init__(self) -> None:
        self.items: dict[ResourceKey, tuple[Resource, str]] = {}
        self.revision = 0
        self.together: list[list[Edit]] = []
        self.meddle = list[str]()
        self.broken = False

    async def read(self, _: object = None) -> Contents:
        return Contents({})

    async def get(self, key: ResourceKey) -> Stored | None:
        found = self.items.get(key)
        return None if found is None else Stored(*found, "memory")

    async def has_elder(self, _: Cidr) -> bool:
        return False

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        return (await self._make([Edit(key, resource, revision)]))[0]

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        self.together.append(list(edits))
        if self.broken:
            raise StoreError("gone")
        if self.meddle:
            self._take_one(self.meddle.pop())
        return await self._make(edits)

    async def _make(self, edits: Sequence[Edit]) -> list[str]:
        await asyncio.sleep(0)
        for edit in edits:
            there = self.items.get(edit.key)
            if (there[1] if there else None) != edit.revision:
                raise Conflict(str(edit.key))
        return [self._put(edit.key, edit.resource) for edit in edits]

    def _put(self, key: ResourceKey, resource: Resource | None) -> str:
        self.revision += 1
        if resource is None:
            self.items.pop(key, None)
            return ""
        self.items[key] = resource, str(self.revision)
        return str(self.revision)

    def _take_one(self, handle: str) -> None:
        """Somebody else gets an address of the first block with one."""
        for block in self.of(IPAMBlock):
            if isinstance(block, IPAMBlock) and block.unallocated:
                manifest, _ = assign(block, 1, Owner(handle, {}), lambda _: False)
                self._put(block.key, parse_manifest(manifest))
                return

    def of(self, kind: type[Resource]) -> list[Resource]:
        return [value for value, _ in self.items.values() if isinstance(value, kind)]

    async def listed(self, kind: str) -> list[Found]:
        return [Found(value, revision) for value, revision in self.items.values() if value.kind == kind]

    async def close(self) -> None:
        pass

    def rounds(self, apart: float = 0.0) -> Rounds:
        return Rounds(self, self.listed, lambda _: None, apart)

    @property
    def given(self) -> dict[str, int]:
        """Addresses by handle, as blocks have them."""
        found: dict[str, int] = {}
        for block in self.of(IPAMBlock):
            assert isinstance(block, IPAMBlock)
            for ordinal in range(len(block.allocations)):
                owner = block.owner(ordinal)
                if owner is not None and owner.handle_id is not None:
                    found[owner.handle_id] = found.get(owner.handle_id, 0) + 1
        return found

    @property
    def counted(self) -> dict[str, int]:
        """The same, as handles do."""
        return {one.name: sum(one.blocks.values()) for one in self.of(IPAMHandle) if isinstance(one, IPAMHandle)}


def take(handle: str) -> Procedure[Outcome]:
    demand = Demand("n1", {}, Owner(handle, {"node": "n1"}), Family.IPV4_UNICAST)
    return assign_addresses(CLUSTER, demand, clock())


def give_back(handle: str) -> Procedure[tuple[bytes, ...]]:
    return release_by_handle(CLUSTER, handle, clock())


def test_who_comes_together_is_written_together():
    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        await rounds.carry_out(lambda: take("first"))  # claims the block
        writes = store.revision
        outcomes = await asyncio.gather(
            *(rounds.carry_out(lambda number=number: take(f"h{number}")) for number in range(7))
        )
        assert len({outcome.addresses for outcome in outcomes}) == 7
        assert [len(edits) for edits in store.together] == [8]
        assert [edit.key.kind for edit in store.together[0]] == [IPAMHandle.kind] * 7 + [IPAMBlock.kind]
        assert store.revision == writes + 8 and store.given == store.counted

    asyncio.run(main())


def test_more_than_a_round_takes_get_another_one_and_blocks_are_claimed_alone():
    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        count = 2 * AT_ONCE
        outcomes = await asyncio.gather(
            *(rounds.carry_out(lambda number=number: take(f"h{number}")) for number in range(count))
        )
        assert len({outcome.addresses[0] for outcome in outcomes}) == count
        assert len(store.of(BlockAffinity)) == count // 8
        assert all(isinstance(one, BlockAffinity) and one.is_confirmed for one in store.of(BlockAffinity))
        assert store.given == store.counted

    asyncio.run(main())


def test_whoever_is_alone_waits_for_nobody():
    async def main() -> None:
        rounds = Memory().rounds(apart=3600.0)
        async with asyncio.timeout(60):
            for number in range(5):
                await rounds.carry_out(lambda number=number: take(f"h{number}"))

    asyncio.run(main())


def test_where_several_are_about_a_round_waits_for_more():
    async def main() -> None:
        store = Memory()
        rounds = store.rounds(apart=0.1)
        await rounds.carry_out(lambda: take("first"))  # claims the block
        write_all, may_write = store.write_all, asyncio.Event()

        async def slowly(edits: Sequence[Edit]) -> list[str]:
            await may_write.wait()
            return await write_all(edits)

        store.write_all = slowly  # type: ignore[method-assign]
        one, two = (asyncio.ensure_future(rounds.carry_out(lambda name=name: take(name))) for name in ("one", "two"))
        await asyncio.sleep(0)
        may_write.set()
        await asyncio.gather(one, two)
        three = asyncio.ensure_future(rounds.carry_out(lambda: take("three")))
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.gather(three, rounds.carry_out(lambda: take("four")))
        written = [{edit.key.name for edit in edits if edit.key.kind == IPAMHandle.kind} for edits in store.together]
        assert written == [{"one", "two"}, {"three", "four"}]

    asyncio.run(main())


def test_what_fails_in_one_procedure_fails_that_one_only():
    def fails() -> Procedure[None]:
        yield Write(handle_key("x"), {"apiVersion": "projectcalico.org/v3", "kind": "IPAMHandle",
                                      "metadata": {"name": "x"}, "spec": {"block": {}, "deleted": False}}, None)  # fmt: skip
        raise CniError(100, "no")

    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        await rounds.carry_out(lambda: take("first"))
        one, bad, two = await asyncio.gather(
            rounds.carry_out(lambda: take("one")), rounds.carry_out(fails), rounds.carry_out(lambda: take("two")),
            return_exceptions=True,
        )  # fmt: skip
        assert isinstance(one, Outcome) and isinstance(two, Outcome) and isinstance(bad, CniError)
        assert store.given == store.counted == {"first": 1, "one": 1, "two": 1}
        store.broken = True
        for answer in await asyncio.gather(
            rounds.carry_out(lambda: take("a")), rounds.carry_out(lambda: take("b")), return_exceptions=True
        ):
            assert isinstance(answer, StoreError)
        assert store.given == store.counted == {"first": 1, "one": 1, "two": 1}

    asyncio.run(main())


def test_a_store_that_takes_nothing_is_told_of_until_it_does_or_nobody_tries(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        await rounds.carry_out(lambda: take("first"))
        assert rounds.problem == ""
        store.broken = True
        for _ in range(2):
            with pytest.raises(StoreError, match="gone"):
                await rounds.carry_out(lambda: take("a"))
            assert rounds.problem == "gone"
            store.broken = False
            await rounds.carry_out(lambda: take("b"))
            assert rounds.problem == ""
            store.broken = True
        with pytest.raises(StoreError, match="gone"):
            await rounds.carry_out(lambda: take("a"))
        monkeypatch.setattr("routed.datastore.rounds.REMEMBERED", 0.0)
        assert rounds.problem == ""

    asyncio.run(main())


def test_who_gives_up_waiting_harms_nobody():
    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        await rounds.carry_out(lambda: take("first"))
        waiting = asyncio.ensure_future(rounds.carry_out(lambda: take("gone")))
        other = asyncio.ensure_future(rounds.carry_out(lambda: take("other")))
        await asyncio.sleep(0)
        waiting.cancel()
        await other
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await rounds.carry_out(lambda: give_back("gone"))
        assert store.given == store.counted == {"first": 1, "other": 1}

    asyncio.run(main())


def test_a_procedure_sees_what_those_before_it_would_write():
    def looks() -> Procedure[Answer]:
        found = yield Get(handle_key("h"))
        return found

    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        await rounds.carry_out(lambda: take("first"))
        _, seen, _, unseen = await asyncio.gather(
            rounds.carry_out(lambda: take("h")), rounds.carry_out(looks),
            rounds.carry_out(lambda: give_back("h")), rounds.carry_out(looks),
        )  # fmt: skip
        assert isinstance(seen, Found) and unseen is None
        assert handle_key("h") not in store.items  # what came and went was never written
        assert block_key(next(one for one in store.of(IPAMBlock) if isinstance(one, IPAMBlock)).cidr) in store.items

    asyncio.run(main())


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=8), max_size=6),
    st.lists(st.sampled_from(("x", "y")), max_size=4),
)
def test_whatever_comes_together_and_whoever_meddles_nothing_is_given_twice_or_lost(
    turns: list[list[tuple[str, bool]]], meddlers: list[str]
):
    async def main() -> None:
        store = Memory()
        rounds = store.rounds()
        store.meddle = list(meddlers)
        expected: dict[str, int] = {}
        for turn in turns:
            procedures = [
                (lambda name=name: take(name)) if taking else (lambda name=name: give_back(name))
                for name, taking in turn
            ]
            await asyncio.gather(*(rounds.carry_out(make) for make in procedures))
            for name, taking in turn:
                if taking:
                    expected[name] = expected.get(name, 0) + 1
                else:
                    expected.pop(name, None)
        ours = {name: count for name, count in store.given.items() if name not in "xy"}
        assert ours == expected == store.counted
        for block in store.of(IPAMBlock):
            assert isinstance(block, IPAMBlock)
            free = [ordinal for ordinal, index in enumerate(block.allocations) if index is None]
            assert sorted(block.unallocated) == free

    asyncio.run(main())


POD = parse_manifest({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}})


def without_pod(name: str) -> Procedure[Outcome | None]:
    """An address, if nothing says more of the pod."""
    if isinstance((yield Get(POD.key)), Found) or (yield Write(POD.key, None, None)) is CONFLICT:
        return None
    return (yield from take(name))


def test_a_round_is_written_only_where_nothing_is_there_that_must_not_be():
    async def main() -> None:
        store = Memory()
        told: list[ResourceKey] = []
        rounds = Rounds(store, store.listed, lambda update: told.append(update.key))
        await rounds.carry_out(lambda: take("first"))
        for name in ("a", "b"):
            assert await rounds.carry_out(lambda name=name: without_pod(name))
        assert POD.key in {edit.key for edit in store.together[-1]}
        assert POD.key not in told, "nobody is told of what is as it was"
        before = store.given
        appears = store.write_all

        async def write_all(edits: Sequence[Edit]) -> list[str]:
            if POD.key not in store.items:  # between the round's reading and its writing
                store._put(POD.key, POD)
            return await appears(edits)

        store.write_all = write_all  # type: ignore[method-assign]
        found = await asyncio.gather(*(rounds.carry_out(lambda name=name: without_pod(name)) for name in "cd"))
        assert found == [None, None]
        assert store.given == before

    asyncio.run(main())
