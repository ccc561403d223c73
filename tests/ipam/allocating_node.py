"""A node that takes and gives back addresses of an etcd until it is killed: `allocating_node.py ENDPOINT NODE SEED`.

What it holds it claims under /held/ADDRESS, which must not be there: a second holder of an address is told by exit
status 3. What an earlier life of the node left it gives back first, as the daemon does when the runtime calls.
"""

from __future__ import annotations

import asyncio
import random
import sys

from routed.datastore.allocating import carry_out, clock, cluster_of
from routed.datastore.etcd import EtcdStore
from routed.datastore.etcd_settings import EtcdConfig
from routed.ipam.allocator import Demand, assign_addresses, release_by_handle
from routed.ipam.blocks import Owner
from routed.model.resources import JsonObject, ResourceKey
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import format_address
from routed.net.families import Family

MOST = 10
"""Addresses a node holds at once; eight nodes hold more than three quarters of the pool of the test."""


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Node:
    def __init__(self, endpoint: str, name: str, chance: random.Random) -> None:
        self.store = EtcdStore(EtcdConfig((endpoint,)))
        self.name = name
        self.chance = chance
        self.held: dict[str, ResourceKey] = {}
        """Endpoints by handle."""

    async def run(self) -> None:
        self.cluster = cluster_of(each.resource for each in (await self.store.read({"IPPool"})).resources.values())
        for each in (await self.store.read({WorkloadEndpoint.kind})).resources.values():
            if isinstance(each.resource, WorkloadEndpoint) and each.resource.node == self.name:
                self.held[each.resource.container_id] = each.resource.key
        tell("up")
        for handle in list(self.held):
            await self.give_back(handle)
        while True:
            if self.held and (len(self.held) >= MOST or self.chance.random() < 0.45):
                await self.give_back(self.chance.choice(sorted(self.held)))
            else:
                await self.take(f"{self.name}.{self.chance.getrandbits(64):x}")

    async def take(self, handle: str) -> None:
        demand = Demand(self.name, {}, Owner(handle, {"node": self.name}), Family.IPV4_UNICAST)
        outcome = await carry_out(self.store, assign_addresses(self.cluster, demand, clock()))
        for each in outcome.addresses:
            address = format_address(each)
            if await self.store.client.swap([(f"/held/{address}", 0)], [(f"/held/{address}", handle.encode())]) is None:
                tell(f"{address} is given to {handle}, and somebody holds it")
                sys.exit(3)
            spec: JsonObject = {
                "orchestrator": "cni", "node": self.name, "containerID": handle, "workload": handle, "endpoint": "eth0",
                "ipNetworks": [f"{address}/32"],
            }  # fmt: skip
            name = f"{self.name}-cni-{handle}-eth0"
            metadata: JsonObject = {"name": name, "namespace": "default"}
            manifest: JsonObject = {
                "apiVersion": "projectcalico.org/v3", "kind": WorkloadEndpoint.kind, "metadata": metadata, "spec": spec,
            }  # fmt: skip
            value = parse_manifest(manifest)
            await self.store.write(value.key, value, None)
            self.held[handle] = value.key

    async def give_back(self, handle: str) -> None:
        stored = await self.store.get(self.held.pop(handle))
        assert stored is not None and isinstance(stored.resource, WorkloadEndpoint)
        for network in stored.resource.ip_networks:
            path = f"/held/{format_address(network.prefix[1:])}"
            pair = await self.store.client.get(path)
            if pair is not None:
                assert pair.value == handle.encode(), path
                await self.store.client.swap([(path, pair.revision)], [(path, None)])
        await self.store.write(stored.resource.key, None, stored.revision)
        await carry_out(self.store, release_by_handle(self.cluster, handle, clock()))


if __name__ == "__main__":
    asyncio.run(Node(sys.argv[1], sys.argv[2], random.Random(sys.argv[3])).run())
