"""The recorded topologies: each builds a world, lets things happen, and has one of its nodes recorded.

ROUTED_RECORD=1 python -m pytest tests/conformance      writes the recordings anew; read the difference before committing
"""

from __future__ import annotations

from collections.abc import Callable

from routed.model.resources import JsonObject, JsonValue, ResourceKey
from routed.net.families import Family
from routed.testing.world import World

Topology = Callable[[World], None]


def manifest(kind: str, name: str, spec: JsonObject, labels: JsonObject | None = None) -> JsonObject:
    metadata: JsonObject = {"name": name}
    if labels is not None:
        metadata["labels"] = labels
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def node(index: int, **bgp: JsonValue) -> JsonObject:
    spec: JsonObject = {"bgp": {"ipv4Address": f"10.0.0.{index}/24", "ipv6Address": f"fd00::{index}/64", **bgp}}
    return manifest("Node", f"n{index}", spec, {"name": f"n{index}"})


def block(index: int, cidr: str) -> JsonObject:
    name = f"n{index}-{cidr.translate(str.maketrans('./:', '---'))}"
    return manifest(
        "BlockAffinity", name, {"node": f"n{index}", "cidr": cidr, "state": "confirmed", "deleted": "false"}
    )


POOLS = [
    manifest("IPPool", "v4", {"cidr": "10.244.0.0/16", "blockSize": 26}),
    manifest("IPPool", "v6", {"cidr": "fd00:10::/48", "blockSize": 122}),
]
NO_MESH = manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False, "asNumber": 64512})


def start(world: World, index: int, *more: JsonObject, found: bool = False) -> None:
    world.add(
        f"n{index}",
        [(f"10.0.0.{index}", 24), (f"fd00::{index}", 64)],
        [*POOLS, *more, block(index, f"10.244.{index}.0/26"), block(index, f"fd00:10:0:{index}::/122")],
        routes_found=frozenset(Family) if found else frozenset(),
    )


def mesh(world: World) -> None:
    nodes = [node(index) for index in (1, 2, 3)]
    for index in (1, 2, 3):
        start(world, index, *nodes)
    world.run(10)


def mesh_node_dies(world: World) -> None:
    mesh(world)
    world.kill("n3")
    world.run(200)


def mesh_session_lost(world: World) -> None:
    mesh(world)
    world.sever("n1", "n2")
    world.run(30)


def mesh_link_down(world: World) -> None:
    mesh(world)
    world.nodes["n1"].link(False)
    world.run(3)
    world.nodes["n1"].link(True)
    world.run(3)


def mesh_restart(world: World) -> None:
    mesh(world)
    world.nodes["n3"].engine.shutdown("restart", "", world.now)
    world.run(0)
    world.kill("n3")
    start(world, 3, *[node(index) for index in (1, 2, 3)], found=True)
    world.run(30)


def mesh_shutdown(world: World) -> None:
    mesh(world)
    world.nodes["n2"].engine.shutdown("shutdown", "new kernel", world.now)
    world.run(5)
    world.kill("n2")
    world.run(60)


def reflectors(world: World) -> None:
    nodes = [node(1, routeReflectorClusterID="1.0.0.1"), node(2, routeReflectorClusterID="1.0.0.1")]
    nodes += [node(index) for index in (3, 4, 5)]
    peer = manifest("BGPPeer", "rr", {"nodeSelector": "all()", "peerSelector": "name in {'n1', 'n2'}"})
    for index in range(1, 6):
        start(world, index, NO_MESH, peer, *nodes)
    world.run(10)
    world.kill("n2")
    world.run(150)


def as_per_node(world: World) -> None:
    nodes = [node(index, asNumber=65000 + index) for index in (1, 2, 3)]
    for index in (1, 2, 3):
        start(world, index, *nodes)
    world.run(10)


def transit(world: World) -> None:
    """n2 passes what n1 says on to n3, since an accept-all filter asks for it."""
    nodes = [node(index, asNumber=65000 + index) for index in (1, 2, 3)]
    every: JsonValue = [{"action": "Accept"}]
    open_filter = manifest(
        "BGPFilter", "all", {"exportV4": every, "exportV6": every, "importV4": every, "importV6": every}
    )
    peers = [
        manifest(
            "BGPPeer",
            f"p{one}{other}",
            {"node": f"n{one}", "peerIP": f"10.0.0.{other}", "asNumber": 65000 + other, "filters": ["all"]},
        )
        for one, other in ((1, 2), (2, 1), (2, 3), (3, 2))
    ]
    for index in (1, 2, 3):
        start(world, index, NO_MESH, open_filter, *peers, *nodes)
    world.run(10)
    world.nodes["n2"].delete(ResourceKey("BGPPeer", "p23"))
    world.run(5)


def filters(world: World) -> None:
    mesh_nodes = [node(index) for index in (1, 2)]
    peer = manifest("BGPPeer", "all", {"peerSelector": "all()", "filters": ["f"]})
    for index in (1, 2):
        start(world, index, NO_MESH, peer, manifest("BGPFilter", "f", {}), *mesh_nodes)
    world.run(10)
    for spec in (
        {"importV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.244.2.0/24"}]},
        {"exportV6": [{"action": "Reject"}]},
        {},
    ):
        world.nodes["n1"].apply(manifest("BGPFilter", "f", spec))  # type: ignore[arg-type]
        world.run(1)


def blocks_come_and_go(world: World) -> None:
    mesh(world)
    for third in range(100, 110):
        world.nodes["n1"].apply(block(1, f"10.244.{third}.0/26"))
        world.run(0)
    for third in range(100, 105):
        world.nodes["n1"].delete(ResourceKey("BlockAffinity", f"n1-10-244-{third}-0-26"))
    world.run(1)


def wrong_as(world: World) -> None:
    start(world, 1, NO_MESH, node(1), manifest("BGPPeer", "p", {"node": "n1", "peerIP": "10.0.0.2", "asNumber": 65002}))
    start(world, 2, NO_MESH, node(2), manifest("BGPPeer", "p", {"node": "n2", "peerIP": "10.0.0.1", "asNumber": 65001}))
    world.run(60)
    world.nodes["n1"].apply(manifest("BGPPeer", "p", {"node": "n1", "peerIP": "10.0.0.2", "asNumber": 64512}))
    world.nodes["n2"].apply(manifest("BGPPeer", "p", {"node": "n2", "peerIP": "10.0.0.1", "asNumber": 64512}))
    world.run(60)


def passwords(world: World) -> None:
    """A mesh whose password comes, changes at one end and then the other; a peer by a gateway; listening moves."""
    secret: JsonObject = {"secretKeyRef": {"name": "bgp", "key": "mesh"}}
    settings = manifest("BGPConfiguration", "default", {"nodeMeshPassword": secret, "bindMode": "NodeIP"})
    far: JsonObject = {
        "node": "n1", "peerIP": "172.16.0.1", "asNumber": 65001, "reachableBy": "10.0.0.254", "ttlSecurity": 2,
    }  # fmt: skip
    nodes = [node(index) for index in (1, 2)]
    for index in (1, 2):
        start(world, index, settings, manifest("BGPPeer", "far", far), *nodes)
    world.run(1)
    for generation in (1, 2):
        for name in ("n1", "n2"):
            world.nodes[name].secret("bgp/mesh", generation)
            world.run(20)
    world.nodes["n1"].secret("bgp/mesh", 2, "the file is gone")
    world.nodes["n1"].apply(manifest("BGPConfiguration", "default", {"nodeMeshPassword": secret}))
    world.nodes["n1"].delete(ResourceKey("BGPPeer", "far"))
    world.run(20)


def sessions_stay(world: World) -> None:
    """Another resource asks for a session that is up, and then a password that is not there yet."""
    start(world, 1, node(1), node(2))
    start(world, 2, node(1), node(2))
    world.run(20)
    world.nodes["n1"].apply(manifest("BGPPeer", "p", {"peerIP": "10.0.0.2", "asNumber": 64512}))
    world.run(100)
    world.nodes["n1"].delete(ResourceKey("BGPPeer", "p"))
    world.run(5)
    secret: JsonObject = {"secretKeyRef": {"name": "bgp", "key": "mesh"}}
    for name in ("n1", "n2"):
        world.nodes[name].apply(manifest("BGPConfiguration", "default", {"nodeMeshPassword": secret}))
    world.run(30)
    for name in ("n1", "n2"):
        world.nodes[name].secret("bgp/mesh", 1)
    world.run(30)


#: By name: the topology and the node that is recorded.
TOPOLOGIES: dict[str, tuple[Topology, str]] = {
    "mesh": (mesh, "n1"),
    "mesh-node-dies": (mesh_node_dies, "n1"),
    "mesh-session-lost": (mesh_session_lost, "n2"),
    "mesh-link-down": (mesh_link_down, "n1"),
    "mesh-restart-helper": (mesh_restart, "n1"),
    "mesh-restart-speaker": (mesh_restart, "n3"),
    "mesh-shutdown": (mesh_shutdown, "n1"),
    "reflector": (reflectors, "n1"),
    "reflector-client": (reflectors, "n4"),
    "as-per-node": (as_per_node, "n2"),
    "transit": (transit, "n2"),
    "filters": (filters, "n1"),
    "blocks-come-and-go": (blocks_come_and_go, "n2"),
    "wrong-as": (wrong_as, "n1"),
    "passwords": (passwords, "n1"),
    "sessions-stay": (sessions_stay, "n1"),
}
