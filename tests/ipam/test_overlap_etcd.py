"""Two nodes with different definitions of one pool claim blocks of one real etcd at the same time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routed.datastore.allocating import clock, run
from routed.datastore.etcd import EtcdStore
from routed.datastore.etcd_settings import EtcdConfig
from routed.ipam.allocator import Cluster, Found, Procedure, assign_addresses
from routed.model.ipam import IPAMBlock
from routed.model.resources import BlockAffinity, Cidr, ResourceKey
from routed.net.families import Family
from tests.datastore.etcd_server import Cluster as Server
from tests.datastore.etcd_server import cluster
from tests.ipam.test_allocator import STRICT, demand, pool

pytestmark = pytest.mark.etcd

#: More than the steps in which a node claims a block and gives an address of it.
STEPS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("etcd")
    with cluster(folder) as made:
        yield made


class Stopping:
    """A store that a procedure uses until its n-th step, where it waits until it may go on."""

    def __init__(self, store: EtcdStore, steps: int) -> None:
        self._store = store
        self._left = steps
        self.stopped, self.go_on = asyncio.Event(), asyncio.Event()

    async def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.stopped.set()
            await self.go_on.wait()

    async def get(self, key: ResourceKey) -> Any:
        await self.step()
        return await self._store.get(key)

    async def has_elder(self, block: Cidr) -> bool:
        await self.step()
        return await self._store.has_elder(block)

    async def write(self, key: ResourceKey, resource: Any, revision: str | None) -> str:
        await self.step()
        return await self._store.write(key, resource, revision)

    async def listed(self, kind: str) -> list[Found]:
        await self.step()
        return await self.all_of(kind)

    async def all_of(self, kind: str) -> list[Found]:
        stored = (await self._store.read({kind})).resources.values()
        return [Found(each.resource, each.revision) for each in stored]


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize(("first", "second"), [(26, 28), (28, 26)])
def test_the_younger_block_is_given_up_before_it_gives_an_address(
    server: Server, first: int, second: int, ipv6: bool
) -> None:
    """One node is stopped at each of its steps in turn, while the other does all of its own."""
    family = Family.IPV6_UNICAST if ipv6 else Family.IPV4_UNICAST

    async def round_of(steps: int) -> None:
        base = f"fd00:{first:x}:{steps:x}::/122" if ipv6 else f"10.{first}.{steps}.0/26"
        stores = [EtcdStore(EtcdConfig((server.endpoints[0],))) for _ in range(2)]

        def procedure(node: str, size: int) -> Procedure[Any]:
            own = pool("p", base, size + 96 if ipv6 else size)
            return assign_addresses(
                Cluster((own,), STRICT), demand(node, f"{node}-{first}-{steps}", family=family), clock()
            )

        slow, fast = Stopping(stores[0], steps), Stopping(stores[1], 1_000)
        running = asyncio.create_task(run(slow, procedure("slow", first), slow.listed))
        stopped = asyncio.create_task(slow.stopped.wait())
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        other = await run(fast, procedure("fast", second), fast.listed)
        slow.go_on.set()
        outcomes = [await running, other]
        stopped.cancel()

        whole = Cidr(family, pool("p", base, 64 if ipv6 else 32).cidr.prefix)
        blocks = [
            each.value.cidr
            for each in await fast.all_of(IPAMBlock.kind)
            if isinstance(each.value, IPAMBlock) and each.value.cidr.overlaps(whole)
        ]
        claims = [
            each.value.cidr
            for each in await fast.all_of(BlockAffinity.kind)
            if isinstance(each.value, BlockAffinity) and each.value.cidr.overlaps(whole)
        ]
        for store in stores:
            await store.close()
        assert not [pair for pair in itertools.combinations(blocks, 2) if pair[0].overlaps(pair[1])], (steps, blocks)
        assert sorted(claims) == sorted(blocks), steps
        given = [each for outcome in outcomes for each in outcome.addresses]
        assert given and len(set(given)) == len(given), (steps, outcomes)

    for steps in range(STEPS):
        asyncio.run(round_of(steps))
