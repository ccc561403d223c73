"""Pods' addresses on a real etcd, of which a node follows a part: what Calico's nodes beside it see of each step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from routed.cli.main import main
from routed.datastore import folder
from routed.datastore.etcd import EtcdStore
from routed.datastore.etcd_settings import EtcdConfig
from routed.datastore.saved import Identity, SavedState
from routed.ipam.check import CHECKED, Problem, check, state_of
from routed.model.ipam import IPAMBlock
from routed.model.resources import BlockAffinity, JsonObject, Update
from routed.model.schema import KINDS
from tests.daemon.test_pods import Node
from tests.datastore.etcd_server import Cluster, P, cluster
from tests.datastore.test_etcd import until

pytestmark = pytest.mark.etcd

IPAM = "/calico/ipam/v2/"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made


class Follower(Node):
    """A node and what it follows of etcd."""

    def __init__(self, server: Cluster, name: str, saved: Path | None) -> None:
        self.name = name
        identity = Identity(name, "/calico", server.endpoints)
        state = None if saved is None else SavedState(str(saved), identity)
        self.etcd = EtcdStore(EtcdConfig(server.endpoints), node=name, kinds=KINDS, saved=state)
        super().__init__(self.etcd, name)
        self.synced = False
        self.open: tuple[folder.Problem, ...] = ()

    def update(self, update: Update) -> None:
        self.pods.update(update)

    def loaded(self) -> None:
        pass

    def in_sync(self) -> None:
        self.synced = True

    def problems(self, problems: tuple[folder.Problem, ...]) -> None:
        self.open = problems


def on_node(server: Cluster, name: str, test: Callable[[Follower], Awaitable[None]], saved: Path | None = None) -> None:
    async def run() -> None:
        node = Follower(server, name, saved)
        running = asyncio.create_task(node.etcd.run(node))
        try:
            await until(lambda: node.synced, "in sync")
            await test(node)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await node.close()
            await node.etcd.close()

    asyncio.run(run())


def pool(name: str, **spec: object) -> dict[str, object]:
    manifest = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}
    return {f"{P}ippools/{name}": manifest}


def nodes(*names: str, uid: str = "first") -> dict[str, object]:
    return {
        f"{P}nodes/{name}": {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"rack": name}, "uid": uid},
            "spec": {},
        }
        for name in names
    }


def claimed(node: str, cidr: str) -> dict[str, object]:
    """A block without an address in use, held for long."""
    block = cidr.replace("/", "-")
    size = 1 << 32 - int(cidr.rpartition("/")[2])
    held: JsonObject = {
        "cidr": cidr,
        "affinity": f"host:{node}",
        "allocations": [None] * size,
        "unallocated": list(range(size)),
        "attributes": [],
        "affinity_claim_time": "2026-01-01T00:00:00Z",
    }
    return {
        f"{IPAM}host/{node}/ipv4/block/{block}": {"state": "confirmed", "type": "host", "deleted": False},
        f"{IPAM}assignment/ipv4/block/{block}": held,
    }


def keys(server: Cluster, prefix: str) -> list[str]:
    return server.ctl("get", "--prefix", "--keys-only", IPAM + prefix).split()


def history(server: Cluster, since: int) -> list[str]:
    """What happened to affinities and blocks: the state or holder written, or "gone"."""
    told: list[str] = []
    end = f"{IPAM}handle/end"
    server.put(end, "")

    async def run() -> None:
        store = EtcdStore(EtcdConfig(server.endpoints))
        async with asyncio.timeout(60):
            async for events in store.client.watch([(IPAM, IPAM[:-1] + "0", since)]):
                for pair in events.pairs:
                    if "/block/" in pair.key:
                        value = json.loads(pair.value) if pair.value else {}
                        what = value.get("state") or value.get("affinity") or "gone"
                        told.append(f"{pair.key.removeprefix(IPAM)} {what}")
                if any(pair.key == end for pair in events.pairs):
                    break
        await store.close()

    asyncio.run(run())
    return told


def test_a_block_is_taken_over_with_the_other_node_s_affinity(server: Cluster) -> None:
    """As Calico does it: pendingDeletion, block, affinity. A second confirmed affinity would be announced on by its node."""
    server.put_all(
        pool("p", cidr="10.60.0.0/30", blockSize=30)
        | nodes("n1", "n2")
        | {f"{IPAM}config": {"strict_affinity": True, "auto_allocate_blocks": True}}
        | claimed("n2", "10.60.0.0/30")
    )
    since = json.loads(server.ctl("get", "x", "-w", "json"))["header"]["revision"] + 1

    async def test(node: Follower) -> None:
        result = await node.call("ADD")
        assert result["ips"][0]["address"] == "10.60.0.0/32"

    on_node(server, "n1", test)
    block = "ipv4/block/10.60.0.0-30"
    assert history(server, since)[:6] == [
        f"host/n2/{block} pendingDeletion",
        f"assignment/{block} gone",
        f"host/n2/{block} gone",
        f"host/n1/{block} pending",
        f"assignment/{block} host:n1",
        f"host/n1/{block} confirmed",
    ]
    assert keys(server, "host/") == [f"{IPAM}host/n1/{block}"]


def test_a_node_that_was_removed_and_comes_back_begins_with_nothing(server: Cluster, tmp_path: Path) -> None:
    """`delete node`, `ipam release --node`, all while it is stopped: its saved state is of blocks it has no more."""
    blocks = [f"10.60.0.{4 * number}/30" for number in range(8)]
    server.put_all(pool("p", cidr="10.60.0.0/26", blockSize=30) | nodes("n1", "n2"))
    server.put_all({key: value for cidr in blocks for key, value in claimed("n1", cidr).items()})
    config = tmp_path / "routed.yaml"
    config.write_text(f"nodeName: x\ndatastore: {{type: etcd, endpoints: ['{server.endpoints[0]}']}}\n")
    saved = tmp_path / "saved"

    async def before(node: Follower) -> None:
        await node.call("ADD")
        await until(lambda: len(node.pods.known({BlockAffinity.kind})) == 8, "all are known")

    on_node(server, "n1", before, saved)

    async def beside(other: Follower) -> None:
        for words in (["delete", "node", "n1"], ["ipam", "release", "--node", "n1"]):
            assert await asyncio.to_thread(main, ["--config", str(config), *words]) == 0
        await until(lambda: not other.pods.known({IPAMBlock.kind}), "nobody believes in the blocks any more")
        assert other.open == (), "nor takes it for an accident"

    on_node(server, "n2", beside)
    assert keys(server, "") == []
    server.put_all(nodes("n1", uid="second"))

    async def after(node: Follower) -> None:
        result = await node.call("ADD", "db", "c2")
        (affinity,) = keys(server, "host/")
        assert len(result["ips"]) == 1 and affinity.startswith(f"{IPAM}host/n1/")
        await until(
            lambda: len(node.pods.known({BlockAffinity.kind})) == 1, "it holds what it claimed, and nothing else"
        )

    on_node(server, "n1", after, saved)


def test_what_is_held_is_announced_on_and_gives_no_address(server: Cluster, tmp_path: Path) -> None:
    """Blocks and affinities vanish as by accident: routes stay, and addresses are given by what etcd has."""
    blocks = [f"10.60.0.{4 * number}/30" for number in range(16)]
    server.put_all(pool("p", cidr="10.60.0.0/26", blockSize=30) | nodes("n1", "n2"))
    server.put_all({key: value for cidr in blocks for key, value in claimed("n1", cidr).items()})
    saved = tmp_path / "saved"

    async def before(node: Follower) -> None:
        await until(lambda: len(node.pods.known({BlockAffinity.kind})) == 16, "all are known")

    on_node(server, "n1", before, saved)
    server.delete("--prefix", f"{IPAM}host/")
    server.delete("--prefix", f"{IPAM}assignment/")
    server.put_all({key: value for cidr in blocks[1:] for key, value in claimed("n2", cidr).items()})

    async def after(node: Follower) -> None:
        result = await node.call("ADD")
        assert result["ips"][0]["address"] == "10.60.0.0/32", "of the block that nobody has now"
        assert keys(server, "host/n1/") == [f"{IPAM}host/n1/ipv4/block/10.60.0.0-30"]
        await until(lambda: "15 of 16 BlockAffinity" in str(node.open), "the others are held")
        assert len(node.pods.known({BlockAffinity.kind})) == 16

    on_node(server, "n1", after, saved)


def test_empty_blocks_of_pools_that_do_not_select_the_node_are_given_up(server: Cluster) -> None:
    """And those of no pool; what somebody uses stays, and a check names it where there is no pool."""
    config = {"strict_affinity": False, "auto_allocate_blocks": True}
    used = claimed("n1", "10.9.0.0/30")
    held = used[f"{IPAM}assignment/ipv4/block/10.9.0.0-30"]
    assert isinstance(held, dict)
    held |= {"allocations": [0, None, None, None], "unallocated": [1, 2, 3], "attributes": [{"handle_id": "x"}]}
    server.put_all(
        pool("p", cidr="10.60.0.0/26", blockSize=30)
        | pool("other", cidr="10.61.0.0/26", blockSize=30, nodeSelector="rack == 'zz'")
        | nodes("n1")
        | {f"{IPAM}config": config}
        | {key: value for number in range(16) for key, value in claimed("n1", f"10.61.0.{4 * number}/30").items()}
        | claimed("n1", "10.8.0.0/30")
        | claimed("n1", "10.60.0.0/30")
        | used
    )

    async def test(node: Follower) -> None:
        await node.call("ADD")
        assert keys(server, "host/") == [f"{IPAM}host/n1/ipv4/block/{block}-30" for block in ("10.60.0.0", "10.9.0.0")]
        found = check(state_of(node.pods.known(CHECKED)))
        assert [each.cidr for each in found if each.problem is Problem.NO_POOL] == ["10.9.0.0/30"]

    on_node(server, "n1", test)
