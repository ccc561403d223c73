"""Pods that a restored etcd does not know: written again where they run, on a real etcd; interfaces are names."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from routed.cni.call import handle_of
from routed.daemon.reclaimer import Reclaimer
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.resources import Cidr, Resource, ResourceKey
from routed.model.workloads import WorkloadEndpoint
from routed.net.families import Family
from tests.daemon.test_pods import Wiring
from tests.daemon.test_pods_etcd import Follower, nodes, pool
from tests.datastore.etcd_server import Cluster, cluster
from tests.datastore.test_etcd import ctl, until

pytestmark = pytest.mark.etcd


class Restorable(Follower):
    """A node whose daemon writes its pods again."""

    def __init__(self, server: Cluster, name: str, saved: Path, wiring: Wiring) -> None:
        super().__init__(server, name, saved)
        self.wiring = self.pods._wiring = wiring  # type: ignore[assignment]
        self.reclaimer = Reclaimer(
            name,
            self.pods,
            wiring,  # type: ignore[arg-type]
            lambda: not self.synced,
            lambda _, __, text: self.log.append(text),
            lambda what, error: pytest.fail(f"{what}: {error!r}"),
        )
        self.etcd.when_restored = self.reclaimer.restored
        self.dataplane.own = self.reclaimer.holder  # type: ignore[method-assign]


class Site:
    """One etcd and a node, which is restarted as `on` is called again: its interfaces and its saved state stay."""

    def __init__(self, server: Cluster, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.wiring = Wiring()
        server.put_all(pool("v4", cidr="10.65.0.0/24", blockSize=29) | nodes("n1", "n2"))

    def on(self, test: Callable[[Restorable], Awaitable[None]], name: str = "n1") -> None:
        async def run() -> None:
            wiring = self.wiring if name == "n1" else Wiring()
            node = Restorable(self.server, name, self.folder / f"{name}.saved", wiring)
            node.reclaimer.start()
            running = asyncio.create_task(node.etcd.run(node))
            try:
                await until(lambda: node.synced, "in sync")
                await test(node)
            finally:
                await node.reclaimer.stop()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await node.close()
                await node.etcd.close()

        asyncio.run(run())

    def backup(self) -> None:
        self.server.ctl("snapshot", "save", str(self.folder / "backup"))

    def restore(self) -> None:
        self.server.stop()
        shutil.rmtree(self.folder / "m0")
        self.server.restore(self.folder / "backup", "the same")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with cluster(tmp_path) as server:
        yield Site(server, tmp_path)


async def stored(node: Restorable, kind: type[Resource]) -> dict[ResourceKey, Resource]:
    return {key: each.resource for key, each in (await node.etcd.read({kind.kind})).resources.items()}


async def told(node: Restorable) -> None:
    """Until etcd's watch has told of all endpoints: what was not heard of is not remembered."""
    there = set(await stored(node, WorkloadEndpoint))
    await until(
        lambda: there == {key for key in node.etcd.guard.good if key.kind == WorkloadEndpoint.kind}, "the watch"
    )


async def state(
    node: Restorable, *, exact: bool = True
) -> tuple[dict[ResourceKey, tuple[str, str]], dict[str, set[str]]]:
    """Endpoints with their container and addresses; handles with the ordinals they have, which (exact) they count."""
    endpoints = {
        key: (each.container_id, ",".join(map(str, each.ip_networks)))
        for key, each in (await stored(node, WorkloadEndpoint)).items()
        if isinstance(each, WorkloadEndpoint)
    }
    given: dict[str, set[str]] = {}
    for block in (await stored(node, IPAMBlock)).values():
        assert isinstance(block, IPAMBlock)
        for ordinal in range(len(block.allocations)):
            owner = block.owner(ordinal)
            if owner is not None:
                given.setdefault(owner.handle_id or "", set()).add(f"{block.cidr} {ordinal}")
    counted = {
        each.name: sum(each.blocks.values())
        for each in (await stored(node, IPAMHandle)).values()
        if isinstance(each, IPAMHandle)
    }
    assert not exact or counted == {handle: len(ordinals) for handle, ordinals in given.items()}
    return endpoints, given


@pytest.mark.parametrize("when", ["followed", "restarted"])
def test_pods_younger_than_the_backup_keep_their_addresses(site: Site, when: str) -> None:
    """One from before it, one that was made after it, one whose sandbox is another since, and one that went since."""
    held: list[object] = []

    async def before(node: Restorable) -> None:
        for name in ("old", "again", "gone"):
            await node.call("ADD", name, f"c-{name}")
        await ctl(site.backup)
        await node.call("ADD", "young", "c-young")
        await node.call("DEL", "gone", "c-gone")
        await node.call("ADD", "again", "c-again2")
        await node.pods.close()
        held.append(await state(node))
        await told(node)
        if when == "followed":
            await ctl(site.restore)
            await check(node)

    async def check(node: Restorable) -> None:
        async def is_as_it_was() -> bool:
            return await state(node, exact=False) == held[0]

        for _ in range(200):
            if await is_as_it_was():
                break
            await asyncio.sleep(0.1)
        assert await state(node) == held[0], node.log
        await until(lambda: not node.reclaimer._lost and not node.reclaimer._held, "nothing waits")
        assert not node.reclaimer.problems
        log = "\n".join(node.log)
        assert log.count("written again") == 2 and log.count("its pod is gone: removed") == 1, log
        known = {each.key for each in node.pods.known({WorkloadEndpoint.kind})}
        assert known == set(await stored(node, WorkloadEndpoint))
        result = await node.call("ADD", "next", "c-next")
        given = {address for _, addresses in held[0][0].values() for address in addresses.split(",")}  # type: ignore[index]
        assert result["ips"][0]["address"] not in given
        for name, container in (("old", "c-old"), ("young", "c-young"), ("again", "c-again2"), ("next", "c-next")):
            await node.call("DEL", name, container)
        assert await state(node) == ({}, {})

    site.on(before)
    if when == "restarted":
        site.restore()
        site.on(check)


def test_an_address_that_was_given_to_another_meanwhile_is_told(site: Site) -> None:
    addresses: list[str] = []

    async def before(node: Restorable) -> None:
        await ctl(site.backup)
        addresses.append((await node.call("ADD", "young", "c-young"))["ips"][0]["address"].partition("/")[0])
        await told(node)

    async def thief(node: Restorable) -> None:
        await node.call("ADD", "thief", "c-thief", args={"cni": {"ips": addresses}})

    async def check(node: Restorable) -> None:
        await until(lambda: bool(node.reclaimer.problems), "it is told")
        (problem,) = node.reclaimer.problems
        assert f"shop/young ({addresses[0]} was given to shop/thief on node n2)" in problem
        endpoints, given = await state(node)
        assert [key.name for key in endpoints if "thief" in key.name] and len(endpoints) == len(given) == 1
        await node.call("DEL", "young", "c-young")
        await node.pods.close()
        node.reclaimer._due.set()
        await until(lambda: not node.reclaimer.problems, "nothing runs with it any more")
        assert len((await state(node))[0]) == 1

    site.on(before)
    site.restore()
    site.on(thief, "n2")
    site.on(check)


def test_an_endpoint_that_somebody_deletes_stays_deleted(site: Site) -> None:
    async def test(node: Restorable) -> None:
        await node.call("ADD", "web", "c1")
        await node.call("ADD", "other", "c2")
        (key,) = [key for key in await stored(node, WorkloadEndpoint) if "web" in key.name]
        found = await node.etcd.get(key)
        assert found is not None
        await ctl(site.server.delete, found.where)
        await until(lambda: key not in {each.key for each in node.pods.known({WorkloadEndpoint.kind})}, "it is gone")
        assert not node.reclaimer._lost and key not in await stored(node, WorkloadEndpoint)

    site.on(test)


class Known:
    """What a Reclaimer asks of pods where a folder lost some."""

    def has(self, _: ResourceKey) -> bool:
        return True

    def forget(self) -> None:
        pass


class GoneThrough(dict[ResourceKey, Resource]):
    """Resources, and how often all of them were looked at."""

    times = 0

    def values(self):  # type: ignore[no-untyped-def]  # as a dict's
        self.times += 1
        return super().values()


def test_what_many_pods_had_is_found_by_their_handles_in_one_pass() -> None:
    """Their blocks went before them; a pod has a second interface, and a network has a dot in its name."""
    endpoints, handles, wiring = [], [], Wiring()
    for number in range(50):
        for interface in ("eth0", "net1"):
            address = bytes((10, 65, interface == "net1", number))
            container = f"c.{number}" if number % 2 else f"c{number}"
            handles.append(IPAMHandle(name=handle_of("k8s.net", container, interface)))
            endpoint = WorkloadEndpoint(
                name=f"p{number}-{interface}", namespace="shop", node="n1", orchestrator="k8s", workload=f"p{number}",
                endpoint=interface, container_id=container, interface_name=f"cali{number}{interface}",
                ip_networks=(Cidr(Family.IPV4_UNICAST, b"\x20" + address),),
            )  # fmt: skip
            wiring.interfaces[endpoint.interface_name] = len(wiring.interfaces) + 1
            endpoints.append(endpoint)
    before = GoneThrough({each.key: each for each in (*endpoints, *handles)})
    pods = Known()
    reclaimer = Reclaimer("n1", pods, wiring, lambda: False, lambda *_: None, lambda *_: None)  # type: ignore[arg-type]

    async def run() -> None:
        reclaimer.vanished(endpoints, before)

    asyncio.run(run())
    assert before.times == 1
    for endpoint, handle in zip(endpoints, handles, strict=True):
        ((address, owner),) = reclaimer._lost[endpoint.key].owners
        assert address == endpoint.ip_networks[0].prefix[1:] and owner.handle == handle.name
        assert reclaimer.holder(address) is reclaimer._lost[endpoint.key].holder
