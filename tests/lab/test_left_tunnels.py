"""A node whose pods are routed's no longer: its tunnel stays while a pool wants it, then goes; a foreign one stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import resource
from tests.lab.test_cni import Node, cluster

pytestmark = pytest.mark.lab

DEVICE = "vxlan.calico"


def pool(mode: str) -> dict[str, Any]:
    return resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "blockSize": 26, "vxlanMode": mode})


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab() as lab:
        made = Node.alone(lab)
        made.routed.put(*cluster(1), pool("Always"))
        yield made


def links(node: Node) -> str:
    return node.namespace.run("ip", "-br", "link")


def test_what_was_made_here_goes_when_no_pool_wants_it(node: Node) -> None:
    node.start()
    wait_for(
        lambda: DEVICE in links(node) and "VXLANTunnelAddr" in node.routed.ctl("get", "node", "n1", "-o", "yaml"), 30,
        "there is a tunnel", state=node.lab.report,
    )  # fmt: skip
    before = node.routed.log().count("in sync")
    node.routed.kill()
    node.routed.configure(cni={"enabled": False})
    node.routed.start()
    wait_for(lambda: node.routed.log().count("in sync") > before, 30, "it runs without pods", state=node.lab.report)
    assert DEVICE in links(node) and "VXLANTunnelAddr" in node.routed.ctl("get", "node", "n1", "-o", "yaml")
    node.routed.put(pool("Never"))
    wait_for(lambda: DEVICE not in links(node), 30, "it goes with the last pool", state=node.lab.report)
    wait_for(
        lambda: "VXLANTunnelAddr" not in node.routed.ctl("get", "node", "n1", "-o", "yaml"), 30,
        "and its address", state=node.lab.report,
    )  # fmt: skip
    wait_for(lambda: "add up" in node.routed.ctl("ipam", "check", check=False), 30, "nothing is left of it")


def test_what_another_made_stays(node: Node) -> None:
    node.namespace.ip(f"link add {DEVICE} type vxlan id 4096 dstport 4789 local 10.0.0.1 nolearning")
    node.routed.configure(cni={"enabled": False})
    node.routed.put(pool("Never"))
    node.routed.start()
    wait_for(lambda: "in sync" in node.routed.log(), 30, "it runs", state=node.lab.report)
    stays(lambda: DEVICE in links(node), 8, "the other tunnel is left alone")
