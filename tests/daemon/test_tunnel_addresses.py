"""Addresses of tunnel devices: taken, kept, claimed, given back, whatever was there before; on a real folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed.core.effects import Level
from routed.daemon import tunnel_addresses
from routed.daemon.tunnel_addresses import TunnelAddresses
from routed.datastore.allocating import carry_out, clock
from routed.datastore.editing import FolderStore
from routed.ipam.allocator import Cluster, Demand, assign_specific
from routed.ipam.blocks import Owner
from routed.ipam.holders import Holders
from routed.model.resources import IPPool, ResourceKey, Update
from routed.net.addresses import parse_address
from routed.net.families import Family

API = "projectcalico.org/v3"


class Here:
    """A node's datastore, and what `TunnelAddresses` did to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(str(folder))
        self.gone: list[bytes] = []
        self.lines: list[str] = []
        self.holders = Holders()
        self.put("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}})

    def put(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        manifest = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
        (self.folder / f"{kind}-{name}.yaml").write_text(yaml.safe_dump(manifest))

    def node(self) -> dict[str, Any]:
        spec: dict[str, Any] = yaml.safe_load((self.folder / "Node-n1.yaml").read_text())["spec"]
        return spec

    async def handles(self) -> dict[str, int]:
        contents = await self.store.read(("IPAMHandle",))
        return {key.name: sum(one.resource.blocks.values()) for key, one in contents.resources.items()}  # type: ignore[attr-defined]

    async def during(self, until: Callable[[], object]) -> TunnelAddresses:
        """Let it work until something holds."""

        async def gone(address: bytes) -> None:
            self.gone.append(address)

        def log(_level: Level, _subject: str, text: str) -> None:
            self.lines.append(text)

        def bug(what: str, error: Exception) -> None:
            raise AssertionError(what) from error

        def publish(update: Update) -> None:
            made.update(update)

        made = TunnelAddresses("n1", self.store, publish, gone, self.holders.who, log, bug)
        contents = await self.store.read()
        for key, stored in contents.resources.items():
            made.update(Update(key, stored.resource))
            self.holders.change(key, None, stored.resource)
        made.start()
        made.in_sync()
        async with asyncio.timeout(60):
            while not until():
                await asyncio.sleep(0.01)
        await made.stop()
        return made


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setattr(tunnel_addresses, "LINGER", 0.05)
    made = Here(tmp_path)
    made.put("IPPool", "v4", {"cidr": "10.65.0.0/24", "vxlanMode": "CrossSubnet"})
    return made


def test_an_address_is_taken_once(here: Here) -> None:
    async def work() -> None:
        await here.during(lambda: "ipv4VXLANTunnelAddr" in here.node())
        address = here.node()["ipv4VXLANTunnelAddr"]
        assert address.startswith("10.65.0.") and await here.handles() == {"vxlan-tunnel-addr-n1": 1}
        blocks = (await here.store.read(("IPAMBlock",))).resources
        (block,) = (one.resource.manifest["spec"] for one in blocks.values())
        assert block["attributes"] == [  # type: ignore[index,call-overload]
            {"handle_id": "vxlan-tunnel-addr-n1", "secondary": {"node": "n1", "type": "vxlanTunnelAddress"}}
        ]
        here.put("IPPool", "ipip", {"cidr": "10.67.0.0/24", "ipipMode": "Always"})
        await here.during(lambda: "ipv4IPIPTunnelAddr" in here.node()["bgp"])  # the last it looks at
        assert here.node()["ipv4VXLANTunnelAddr"] == address
        assert await here.handles() == {"vxlan-tunnel-addr-n1": 1, "ipip-tunnel-addr-n1": 1}

    run(work())


def test_one_that_is_written_already_is_claimed(here: Here) -> None:
    async def work() -> None:
        here.put("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}, "ipv4VXLANTunnelAddr": "10.65.0.77"})
        await here.during(lambda: any("10.65.0.77" in line for line in here.lines))
        assert here.node()["ipv4VXLANTunnelAddr"] == "10.65.0.77"
        assert await here.handles() == {"vxlan-tunnel-addr-n1": 1}

    run(work())


def test_one_that_a_pod_has_is_left_to_it_though_no_block_says_so(here: Here) -> None:
    async def work() -> None:
        here.put("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}, "ipv4VXLANTunnelAddr": "10.65.0.77"})
        endpoint = {
            "orchestrator": "cni",
            "node": "n2",
            "containerID": "c1",
            "endpoint": "eth0",
            "ipNetworks": ["10.65.0.77/32"],
        }
        manifest = {
            "apiVersion": API, "kind": "WorkloadEndpoint", "spec": endpoint,
            "metadata": {"name": "n2-cni-c1-eth0", "namespace": "default"},
        }  # fmt: skip
        (here.folder / "endpoint.yaml").write_text(yaml.safe_dump(manifest))
        await here.during(lambda: here.node()["ipv4VXLANTunnelAddr"] != "10.65.0.77")
        assert await here.handles() == {"vxlan-tunnel-addr-n1": 1}

    run(work())


def test_one_that_a_pod_has_is_left_to_it(here: Here) -> None:
    async def work() -> None:
        stored = await here.store.get(ResourceKey(IPPool.kind, "v4"))
        assert stored is not None and isinstance(stored.resource, IPPool)
        demand = Demand("n2", {}, Owner("pods.c1", {"node": "n2"}), Family.IPV4_UNICAST)
        cluster, taken = Cluster((stored.resource,)), parse_address("10.65.0.77")
        await carry_out(here.store, assign_specific(cluster, demand, taken, clock()))
        here.put("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}, "ipv4VXLANTunnelAddr": "10.65.0.77"})
        await here.during(lambda: here.node()["ipv4VXLANTunnelAddr"] != "10.65.0.77")
        assert await here.handles() == {"vxlan-tunnel-addr-n1": 1, "pods.c1": 1}

    run(work())


def test_it_is_given_back_after_the_device_is_gone(here: Here) -> None:
    async def work() -> None:
        await here.during(lambda: "ipv4VXLANTunnelAddr" in here.node())
        address = here.node()["ipv4VXLANTunnelAddr"]
        here.put("IPPool", "v4", {"cidr": "10.65.0.0/24"})
        await here.during(lambda: here.gone)
        assert "ipv4VXLANTunnelAddr" not in here.node() and here.gone == [parse_address(address)]
        handle = here.folder / "ipamhandle-vxlan-tunnel-addr-n1.json"
        await here.during(lambda: not handle.exists())  # also where the one before was cut off in the middle
        assert await here.handles() == {}

    run(work())


def test_what_a_crash_left_under_the_handle_is_released(here: Here) -> None:
    async def work() -> None:
        await here.during(lambda: "ipv4VXLANTunnelAddr" in here.node())
        here.put("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}})  # as if the Node had never been written
        await here.during(lambda: "ipv4VXLANTunnelAddr" in here.node())
        assert await here.handles() == {"vxlan-tunnel-addr-n1": 1}

    run(work())


def test_another_pool_another_address(here: Here) -> None:
    async def work() -> None:
        await here.during(lambda: "ipv4VXLANTunnelAddr" in here.node())
        here.put("IPPool", "v4", {"cidr": "10.65.0.0/24"})
        here.put("IPPool", "w4", {"cidr": "10.66.0.0/24", "vxlanMode": "Always"})
        await here.during(lambda: here.node()["ipv4VXLANTunnelAddr"].startswith("10.66."))
        assert await here.handles() == {"vxlan-tunnel-addr-n1": 1}

    run(work())


@pytest.mark.parametrize("wrong", [{"disabled": True}, {"allowedUses": ["Workload"]}, {"nodeSelector": "has(other)"}])
def test_pools_that_are_not_for_it_give_none(here: Here, wrong: dict[str, Any]) -> None:
    async def work() -> None:
        here.put("IPPool", "v4", {"cidr": "10.65.0.0/24", "vxlanMode": "Always", **wrong})
        here.put("IPPool", "ipip", {"cidr": "10.67.0.0/24", "ipipMode": "Always"})
        await here.during(lambda: "ipv4IPIPTunnelAddr" in here.node()["bgp"])  # the last it looks at
        assert "ipv4VXLANTunnelAddr" not in here.node()
        assert await here.handles() == {"ipip-tunnel-addr-n1": 1}

    run(work())


def test_a_pool_that_is_full_is_told(here: Here) -> None:
    async def work() -> None:
        here.put("IPPool", "v4", {"cidr": "10.65.0.0/24", "vxlanMode": "Always", "blockSize": 26})
        here.put("IPReservation", "all", {"reservedCIDRs": ["10.65.0.0/24"]})
        made = await here.during(lambda: here.lines)
        assert any("this node has no VXLAN address" in problem for problem in made.problems)

    run(work())
