"""The operator's manifests, pasted on real nodes: pools and the mesh come of them, and nothing else changes."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import Routed, resource
from tests.cli.test_resources import INSTALLATION, NETWORK, NODE

pytestmark = pytest.mark.lab

NODES = [resource("Node", name, {"bgp": {"ipv4Address": f"10.0.0.{index}/24"}}) for index, name in ((1, "a"), (2, "b"))]
BLOCKS = [
    resource("BlockAffinity", f"{name}-v4", {"node": name, "cidr": f"192.168.{index}.0/26", "state": "confirmed"})
    for index, name in ((1, "a"), (2, "b"))
]


def test_a_network_a_node_and_an_installation(lab: Lab) -> None:
    ports = [lab.namespace(name).port("eth0", f"10.0.0.{index}/24") for index, name in ((1, "a"), (2, "b"))]
    lab.link(*ports)
    nodes = [Routed(port.namespace) for port in ports]
    a = nodes[0]
    for each in nodes:
        each.put(*NODES, *BLOCKS, resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}))
        each.start()

    def paste(text: str) -> None:
        for each in nodes:
            (each.folder / "pasted.yaml").write_text(text)
            each.ctl("apply", "-f", str(each.folder / "pasted.yaml"))

    def heard() -> set[str]:
        return {
            row["prefix"] for row in a.stream("routes") for one in row["candidates"] if one["from"] == "Mesh_10_0_0_2"
        }

    paste(NETWORK)
    wait_for(lambda: "default-ipv4-ippool" in a.ctl("get", "ippools"), 30, "the pool is stored")
    stays(lambda: not a.sessions(), 1.0, "`bgp: Enabled` does not switch on a mesh that is off")
    paste(NODE)
    wait_for(lambda: a.established("10.0.0.2"), 30, "the mesh is up", state=lab.report)
    wait_for(lambda: heard() == {"192.168.2.0/26"}, 30, "blocks inside the pool are announced", state=lab.report)
    established = next(iter(a.stream("neighbors")))["establishedCount"]
    paste(INSTALLATION)
    wait_for(lambda: "fd00:10::/48" in a.ctl("get", "ippools"), 30, "the Installation's second pool is stored")
    stays(lambda: a.established("10.0.0.2"), 1.0, "and no session is reset")
    assert next(iter(a.stream("neighbors")))["establishedCount"] == established
    assert heard() == {"192.168.2.0/26"}
