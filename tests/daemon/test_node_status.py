"""CalicoNodeStatus objects in a real etcd, filled by the daemon's writer; a folder of files, where it writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from routed.core.core import Core, CoreSettings
from routed.core.effects import Level
from routed.daemon import node_status as node_status_module
from routed.daemon.node_status import NodeStatusWriter
from routed.datastore.etcd import EtcdStore
from routed.datastore.etcd_settings import EtcdConfig
from routed.model.resources import JsonObject, Resource, ResourceKey, Update
from routed.model.schema import parse_manifest
from tests.datastore.etcd_server import Cluster, P, cluster


def wanted(name: str = "mine", node: str = "a", period: int = 1, classes: tuple[str, ...] = ("Agent",)) -> JsonObject:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "CalicoNodeStatus",
        "metadata": {"name": name, "uid": "0b1", "annotations": {"kept": "yes"}},
        "spec": {"node": node, "classes": list(classes), "updatePeriodSeconds": period},
    }


def node(*addresses: str) -> JsonObject:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": "a"},
        "spec": {"bgp": dict(zip(("ipv4Address", "ipv6Address"), addresses, strict=False))},
    }


class Stage:
    """A core, a store that follows etcd into it, and the writer."""

    def __init__(self, server: Cluster | None) -> None:
        self.server = server
        self.core = Core(CoreSettings(node_name="a"), 1)
        self.log: list[str] = []
        self.store = EtcdStore(EtcdConfig(server.endpoints), node="a") if server is not None else None
        self.now: Callable[[], float] = asyncio.get_running_loop().time
        self.writer = NodeStatusWriter("a", self.core, self.store, self.now, self._logged, self._bug)
        self.known: set[str] = set()

    def _logged(self, _: Level, subject: str, text: str) -> None:
        self.log.append(f"{subject}: {text}")

    def _bug(self, where: str, error: Exception) -> None:
        raise AssertionError(where) from error

    # the store's sink

    def update(self, update: Update) -> None:
        self.known.add(str(update.key))
        self.core.resource(update, self.now())
        self.core.flush(self.now())
        self.writer.update(update)

    def loaded(self) -> None: ...

    def in_sync(self) -> None:
        self.core.in_sync(self.now())
        self.core.flush(self.now())
        self.writer.in_sync()

    def problems(self, _: object) -> None: ...

    # etcd

    async def put(self, value: JsonObject) -> None:
        assert self.server is not None
        await asyncio.to_thread(self.server.put, _path(value), value)

    async def stored(self, name: str = "mine") -> dict[str, Any]:
        assert self.server is not None
        text = await asyncio.to_thread(self.server.ctl, "get", "--print-value-only", f"{P}caliconodestatuses/{name}")
        return json.loads(text) if text.strip() else {}

    async def revision(self, name: str = "mine") -> int:
        assert self.server is not None
        found = json.loads(
            await asyncio.to_thread(self.server.ctl, "get", "-w", "json", f"{P}caliconodestatuses/{name}")
        )
        return int(found["kvs"][0]["mod_revision"])

    async def until(self, condition: Callable[[], Awaitable[object]], what: str) -> None:
        end = self.now() + 60
        while not await condition():
            assert self.now() < end, f"waited for: {what}"
            await asyncio.sleep(0.02)


def _path(value: JsonObject) -> str:
    metadata = value["metadata"]
    assert isinstance(metadata, dict)
    return P + ("nodes/" if value["kind"] == "Node" else "caliconodestatuses/") + str(metadata["name"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


def play(server: Cluster, *before: JsonObject) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    """Run a scene with these objects in etcd, the store and the writer at work."""

    def run(scene: Callable[[Stage], Awaitable[None]]) -> None:
        server.delete("--prefix", "")
        for each in before:
            server.put(_path(each), each)

        async def main() -> None:
            stage = Stage(server)
            assert stage.store is not None
            tasks = [asyncio.create_task(stage.store.run(stage)), asyncio.create_task(stage.writer.run())]
            try:
                await scene(stage)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await stage.store.close()

        asyncio.run(main())

    return run


@pytest.mark.etcd
def test_the_status_is_written_kept_up_and_nothing_else_is_touched(server: Cluster) -> None:
    """Fields of a newer Calico among it."""
    theirs = wanted("theirs", "b") | {"status": {"lastUpdated": None}}
    mine = wanted(period=1, classes=("Agent", "BGP", "Routes"))
    mine = {**mine, "ofTomorrow": 1, "spec": {**mine["spec"], "ofTomorrow": 1}}  # type: ignore[dict-item]

    @play(server, node("10.0.0.1/24"), mine | {"status": {"ofTomorrow": [1]}}, theirs)
    async def scene(stage: Stage) -> None:
        async def ready() -> bool:
            return bool((await stage.stored()).get("status", {}).get("agent", {}).get("birdV4", {}).get("routerID"))

        await stage.until(ready, "the status is there")
        found = await stage.stored()
        status = found.pop("status")
        assert found == mine, "the rest is as it was"
        assert status.pop("ofTomorrow") == [1]
        assert status["agent"]["birdV4"]["state"] == "Ready"
        assert status["agent"]["birdV4"]["routerID"] == "10.0.0.1"
        assert status["lastUpdated"].endswith("Z") and status["lastUpdated"][:2] == "20"
        assert status["bgp"]["numberEstablishedV4"] == 0
        assert status["routes"] == {"routesV4": [], "routesV6": []}
        assert await stage.stored("theirs") == theirs
        assert "CalicoNodeStatus theirs" not in stage.known, "what is for others is not even read"

        # a peer appears: told within the period, and what somebody else wrote meanwhile stays
        before = await stage.revision()
        await stage.put(
            node("10.0.0.1/24") | {"metadata": {"name": "b"}, "spec": {"bgp": {"ipv4Address": "10.0.0.2/24"}}}
        )
        await stage.until(lambda: _has_peer(stage), "the peer is told of")
        assert await stage.revision() > before
        await stage.put(found | {"metadata": {"name": "mine", "labels": {"new": "yes"}}, "status": status})
        await stage.until(lambda: _has_peer(stage), "it is told of again")
        assert (await stage.stored())["metadata"]["labels"] == {"new": "yes"}

        # fewer classes, at once
        await stage.put(wanted(period=3600, classes=("Agent",)))

        async def only_agent() -> bool:
            return set((await stage.stored()).get("status", {})) == {"lastUpdated", "agent"}

        await stage.until(only_agent, "one class is left")
        assert stage.writer.problems == []

        # gone is gone
        assert stage.server is not None
        await asyncio.to_thread(stage.server.delete, f"{P}caliconodestatuses/mine")
        await stage.until(lambda: _is(not stage.writer._wanted), "its deletion is followed at once")
        assert await stage.stored() == {}


async def _has_peer(stage: Stage) -> bool:
    peers = (await stage.stored()).get("status", {}).get("bgp", {}).get("peersV4", [])
    return [(one["peerIP"], one["type"]) for one in peers] == [("10.0.0.2", "NodeMesh")]


async def _is(value: bool) -> bool:
    return value


@pytest.mark.etcd
def test_what_has_not_changed_is_not_written_and_period_zero_is_once(server: Cluster) -> None:
    @play(server, node("10.0.0.1/24"), wanted(period=0))
    async def scene(stage: Stage) -> None:
        async def there() -> bool:
            return "status" in await stage.stored()

        await stage.until(there, "the status is written once")
        await stage.until(lambda: _is(stage.writer._due == {}), "and never again")
        revision = await stage.revision()
        key = ResourceKey("CalicoNodeStatus", "mine")
        assert await stage.writer._write(key) == ""
        assert await stage.revision() == revision, "nothing has changed, so nothing was written"


@pytest.mark.etcd
def test_a_write_that_came_too_late_reads_again(server: Cluster) -> None:
    @play(server, node("10.0.0.1/24"))
    async def scene(stage: Stage) -> None:
        assert stage.store is not None
        read = stage.store.get
        others = 0

        async def raced(key: ResourceKey) -> object:
            nonlocal others
            found = await read(key)
            if others < 2:
                others += 1
                await stage.put(wanted(period=3600) | {"metadata": {"name": "mine", "labels": {"turn": str(others)}}})
            return found

        stage.store.get = raced  # type: ignore[method-assign,assignment]
        await stage.put(wanted(period=3600))

        async def there() -> bool:
            return "status" in await stage.stored()

        await stage.until(there, "it is written in the end")
        assert (await stage.stored())["metadata"]["labels"] == {"turn": "2"}


@pytest.mark.etcd
def test_a_table_that_is_too_large_is_cut_and_told(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_status_module, "MAX_ROUTES", 1)
    blocks = {f"/calico/ipam/v2/host/a/ipv4/block/10.244.{number}.0-26": {"state": "confirmed"} for number in range(2)}
    server.delete("--prefix", "")

    @play(server, node("10.0.0.1/24"))
    async def scene(stage: Stage) -> None:
        assert stage.server is not None
        await asyncio.to_thread(stage.server.put_all, blocks)
        await stage.put(wanted(classes=("Routes",)))
        await stage.until(lambda: _is(bool(stage.writer.problems)), "it is told")
        assert stage.writer.problems == [
            "CalicoNodeStatus mine: its status has 1 routes of ipv4-unicast and not all; see routedctl show route"
        ]
        assert stage.log == [f"status: {stage.writer.problems[0]}"]
        routes = (await stage.stored())["status"]["routes"]
        assert [one["destination"] for one in routes["routesV4"]] == ["10.244.0.0/26"]


@pytest.mark.etcd
def test_nothing_is_written_of_a_datastore_that_is_half_read(server: Cluster) -> None:
    """What comes behind it is told later where there is much of it, and period 0 is written once."""

    async def main() -> None:
        stage = Stage(server)
        assert stage.store is not None
        await stage.put(wanted(period=0))
        stage.update(Update(ResourceKey("CalicoNodeStatus", "mine"), parse_manifest(wanted(period=0))))
        running = asyncio.create_task(stage.writer.run())
        for _ in range(100):
            await stage.store.get(ResourceKey("CalicoNodeStatus", "mine"))
        assert "status" not in await stage.stored()
        mine = parse_manifest(node("10.0.0.1/24"))
        stage.update(Update(mine.key, mine))
        stage.in_sync()

        async def there() -> bool:
            return "status" in await stage.stored()

        await stage.until(there, "the status is written")
        assert (await stage.stored())["status"]["agent"]["birdV4"]["routerID"] == "10.0.0.1"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await stage.store.close()

    server.delete("--prefix", "")
    asyncio.run(main())


def test_one_that_goes_while_another_is_written_ends_nothing() -> None:
    """All that are due are gone through; the datastore's news come in between."""

    class Store:
        """Where reading one object lets the others go."""

        def __init__(self, stage: Stage) -> None:
            self.stage = stage
            self.read: list[str] = []

        async def get(self, key: ResourceKey) -> None:
            self.read.append(key.name)
            for name in ("one", "two"):
                self.stage.writer.update(Update(ResourceKey("CalicoNodeStatus", name), None))

    async def main() -> None:
        stage = Stage(None)
        store = Store(stage)
        stage.writer._store = store  # type: ignore[assignment]
        _tell(stage, parse_manifest(wanted("one")), parse_manifest(wanted("two")))
        running = asyncio.create_task(stage.writer.run())
        stage.in_sync()
        await stage.until(lambda: _is(bool(store.read)), "the first is read")
        _tell(stage, parse_manifest(wanted("three")))
        await stage.until(lambda: _is("three" in store.read or running.done()), "the next is read")
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert store.read == ["one", "three"]

    asyncio.run(main())


def test_nothing_is_written_into_a_folder_and_that_is_told() -> None:
    async def main() -> None:
        stage = Stage(None)
        assert stage.writer.problems == []
        mine, others = parse_manifest(wanted()), parse_manifest(wanted("theirs", "b"))
        _tell(stage, mine, others)
        assert stage.writer.problems == [
            "CalicoNodeStatus mine: its status is not written into a folder of resource files; ask routedctl on the node"
        ]
        stage.writer.update(Update(mine.key, None))
        assert stage.writer.problems == []

    asyncio.run(main())


def _tell(stage: Stage, *resources: Resource) -> None:
    for each in resources:
        stage.writer.update(Update(each.key, each))
