"""Nodes that register at the same time, in one datastore, get one pool and one BGPConfiguration between them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from routed.daemon.registration import register, would_write
from routed.datastore.editing import FolderStore
from routed.errors import ConfigError
from routed.model.fields import as_node_address
from routed.model.resources import Cidr, Node, NodeAddress, ResourceKey
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.plan.registration import ClusterDefaults, Registration

V4 = Family.IPV4_UNICAST
CLUSTER = ClusterDefaults(pools={V4: Cidr(*parse_prefix("10.65.0.0/16"))})


def said(number: int) -> NodeAddress:
    return as_node_address(f"10.0.0.{number}/24", "", V4)


def test_many_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        nodes = [Registration(f"n{number}", {V4: said(number)}, cluster=CLUSTER) for number in range(1, 7)]
        done = await asyncio.gather(*(register(node, FolderStore(str(tmp_path))) for node in nodes))
        written = [str(each.key) for one in done for each in one]
        assert sorted(written) == [
            "BGPConfiguration default", "IPPool default-ipv4-ippool", *(f"Node n{number}" for number in range(1, 7)),
        ]  # fmt: skip
        store = FolderStore(str(tmp_path))
        assert len((await store.read(("IPPool", "BGPConfiguration", "Node"))).resources) == 8
        assert await register(nodes[0], store) == []

    asyncio.run(work())


def test_an_address_that_moves_with_the_configuration(tmp_path: Path) -> None:
    async def work() -> None:
        store = FolderStore(str(tmp_path))
        await register(Registration("n1", {V4: said(1)}, cluster=CLUSTER), store)
        (moved,) = await would_write(Registration("n1", {V4: said(7)}, cluster=CLUSTER), store)
        assert str(moved.key) == "Node n1" and "10.0.0.7/24" in str(moved.manifest)
        stored = await store.get(ResourceKey(Node.kind, "n1"))
        assert stored is not None and "10.0.0.1/24" in str(stored.resource.manifest)  # it was only asked
        with pytest.raises(ConfigError, match=r"Node n1 has the address 10\.0\.0\.1 of this node, n2"):
            await register(Registration("n2", {V4: said(1)}, cluster=CLUSTER), store)
        with pytest.raises(ConfigError, match="neither ipv4 nor ipv6 says how"):
            await register(Registration("n3", {V4: None}, cluster=CLUSTER), store)

    asyncio.run(work())
