"""What a CalicoNodeStatus is told: of a mesh, a route reflector, workloads, two ways to one prefix."""

from __future__ import annotations

from collections.abc import Mapping

from routed.core.node_status import agent_status, bgp_status, route_status
from routed.model.resources import JsonObject
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.observed import ForeignRoute, Gateway, Interface, KernelChange
from routed.testing.world import World

API = "projectcalico.org/v3"
CALI = 7
TUNNEL = 8


def manifest(kind: str, name: str, spec: JsonObject) -> JsonObject:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def node(name: str, index: int, **bgp: object) -> JsonObject:
    return manifest("Node", name, {"bgp": {"ipv4Address": f"10.0.0.{index}/24", **bgp}})  # type: ignore[dict-item]


def block(owner: str, cidr: str) -> JsonObject:
    return manifest(
        "BlockAffinity", f"{owner}-{cidr.partition('/')[0]}", {"node": owner, "cidr": cidr, "state": "confirmed"}
    )


def clock(at: float) -> str:
    return f"t{at:.0f}"


CLUSTER = [
    manifest("IPPool", "v4", {"cidr": "10.244.0.0/16"}),
    manifest("BGPPeer", "tor", {"peerIP": "10.0.0.9", "asNumber": 65001}),
    node("a", 1),
    node("b", 2),
]


def rows(here: object, family: Family = Family.IPV4_UNICAST) -> list[JsonObject]:
    return [row for row in route_status(here.core, family) if row is not None]  # type: ignore[attr-defined]


def test_a_node_of_a_mesh_with_a_peer_that_is_down() -> None:
    world = World()
    here = world.add("a", [("10.0.0.1", 24)], [*CLUSTER, block("a", "10.244.1.0/26")])
    assert agent_status(here.core, "routed 1", 900.0, clock)["birdV4"] == {
        "state": "NotReady", "version": "routed 1", "routerID": "", "lastBootTime": "t900", "lastReconfigurationTime": "",
    }  # fmt: skip
    world.add("b", [("10.0.0.2", 24)], [*CLUSTER, block("b", "10.244.2.0/26")])
    world.run(5)
    agent = agent_status(here.core, "routed 1", 900.0, clock)
    assert agent["birdV4"] == agent["birdV6"] == {
        "state": "Ready", "version": "routed 1", "routerID": "10.0.0.1", "lastBootTime": "t900",
        "lastReconfigurationTime": "t1000",
    }  # fmt: skip

    found = bgp_status(here.core, clock)
    peers = found.pop("peersV4")
    assert found == {
        "numberEstablishedV4": 1, "numberNotEstablishedV4": 1, "numberEstablishedV6": 0, "numberNotEstablishedV6": 0,
        "peersV6": [],
    }  # fmt: skip
    assert isinstance(peers, list)
    up, down = peers
    assert up == {"peerIP": "10.0.0.2", "type": "NodeMesh", "state": "Established", "since": "t1000"}
    assert isinstance(down, Mapping)
    assert (down["peerIP"], down["type"]) == ("10.0.0.9", "GlobalPeer")
    assert down["state"] in ("Connect", "Active", "Idle")

    assert rows(here) == [
        {
            "type": "FIB", "destination": "10.244.1.0/26", "gateway": "N/A", "interface": "blackhole",
            "learnedFrom": {"sourceType": "Static"},
        },
        {
            "type": "FIB", "destination": "10.244.2.0/26", "gateway": "10.0.0.2", "interface": "eth0",
            "learnedFrom": {"sourceType": "NodeMesh", "peerIP": "10.0.0.2"},
        },
    ]  # fmt: skip
    assert rows(here, Family.IPV6_UNICAST) == []


def test_what_the_kernel_holds_and_what_is_not_used() -> None:
    world = World()
    peer = manifest("BGPPeer", "b", {"node": "a", "peerIP": "10.0.0.2", "asNumber": 64512})
    quiet = manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
    here = world.add("a", [("10.0.0.1", 24)], [*CLUSTER[:1], *CLUSTER[2:], peer, quiet, block("a", "10.244.1.0/26")])
    back = manifest("BGPPeer", "a", {"node": "b", "peerIP": "10.0.0.1", "asNumber": 64512})
    theirs = [block("b", "10.244.1.0/26"), block("b", "10.244.2.0/26")]
    world.add("b", [("10.0.0.2", 24)], [*CLUSTER[:1], *CLUSTER[2:], back, quiet, *theirs])
    host = ForeignRoute(*parse_prefix("10.244.9.5/32"), 0, 3, 1, (Gateway(b"", CALI),))
    interfaces = (
        Interface(CALI, "cali123", True),
        Interface(TUNNEL, "tunl0", True, ((bytes([10, 244, 8, 1]), 32),)),
    )
    here.engine.kernel(KernelChange(routes_added=(host,), interfaces=interfaces), world.now)
    here.more = True
    world.run(5)

    def told(row: JsonObject) -> str:
        source = row["learnedFrom"]
        assert isinstance(source, dict)
        return " ".join(str(row[name]) for name in ("type", "destination", "gateway", "interface")) + (
            f" {source['sourceType']} {source.get('peerIP', '')}".rstrip()
        )

    assert [told(row) for row in rows(here)] == [
        "FIB 10.244.1.0/26 N/A blackhole Static",
        "RIB 10.244.1.0/26 10.0.0.2 eth0 BGPPeer 10.0.0.2",
        "FIB 10.244.2.0/26 10.0.0.2 eth0 BGPPeer 10.0.0.2",
        "FIB 10.244.8.1/32 N/A tunl0 Direct",
        "FIB 10.244.9.5/32 N/A cali123 Kernel",
    ]
    peers = bgp_status(here.core, clock)["peersV4"]
    assert isinstance(peers, list)
    assert [one["type"] for one in peers if isinstance(one, dict)] == ["NodePeer"]
    here.link(up=False)
    world.run(1)
    assert "10.244.2.0/26 N/A unreachable" in "\n".join(told(row) for row in rows(here))


def test_a_node_without_bgp_is_not_ready() -> None:
    world = World()
    here = world.add("a", [("10.0.0.1", 24)], [manifest("Node", "a", {})])
    world.run(1)
    found = agent_status(here.core, "routed 1", 900.0, clock)["birdV4"]
    assert isinstance(found, dict)
    assert (found["state"], found["routerID"]) == ("NotReady", "")
