"""Routes of VXLAN pools: they lead into the tunnel once its device is there and the other node has an address in it."""

from __future__ import annotations

from typing import Any

from routed.desired import Gateway
from routed.model.resources import JsonObject, ResourceKey
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.testing.world import Node, World

V4 = Family.IPV4_UNICAST
REMOTE = parse_prefix("10.65.2.0/26")


def resource(kind: str, name: str, spec: dict[str, Any]) -> JsonObject:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}


def pool(mode: str) -> JsonObject:
    return resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "vxlanMode": mode})


def node(number: int, **more: str) -> JsonObject:
    return resource("Node", f"n{number}", {"bgp": {"ipv4Address": f"10.0.0.{number}/24"}, **more})


def block(number: int) -> JsonObject:
    spec = {"node": f"n{number}", "cidr": f"10.65.{number}.0/26", "state": "confirmed"}
    return resource("BlockAffinity", f"b{number}", spec)


def two(world: World, mode: str = "Always", *, own_workloads: bool = True) -> Node:
    """The first of two nodes, each with an address in the tunnel."""
    everything = [
        pool(mode), block(1), block(2), node(1, ipv4VXLANTunnelAddr="10.65.1.0"),
        node(2, ipv4VXLANTunnelAddr="10.65.2.0"),
    ]  # fmt: skip
    nodes = [
        world.add(f"n{number}", [(f"10.0.0.{number}", 24)], everything, own_workloads=own_workloads)
        for number in (1, 2)
    ]
    world.run(5)
    return nodes[0]


def remote(one: Node) -> Gateway | None:
    """Where the route to the other's block leads."""
    route = one.kernel.get(REMOTE)
    return route.gateways[0] if route is not None else None


def why(one: Node) -> str:
    return one.core.kernel_route(*REMOTE)[1]


def into(index: int) -> Gateway:
    return Gateway(parse_address("10.65.2.0"), index, onlink=True)


def test_the_device_decides() -> None:
    world = World()
    one = two(world)
    assert (
        remote(one) is None
        and why(one) == "IPPool v4: vxlanMode Always, but no interface vxlan.calico is up on this node"
    )
    (tunnel,) = one.tunnels or ()
    assert [peer.node for peer in tunnel.peers] == ["n2"]
    for index in (7, 9):  # it may come back as another
        one.device("vxlan.calico", index)
        world.run(0)
        assert remote(one) == into(index) and not why(one)
        one.device("vxlan.calico", index, up=False)
        world.run(0)
        assert remote(one) is None


def test_so_does_the_other_node_s_address() -> None:
    world = World()
    one = two(world)
    one.device("vxlan.calico", 7)
    one.apply(node(2))
    world.run(0)
    assert remote(one) is None and "but no Node with the address 10.0.0.2 has a VXLAN address" in why(one)
    one.apply(node(2, ipv4VXLANTunnelAddr="10.65.2.9"))
    world.run(0)
    assert remote(one) == Gateway(parse_address("10.65.2.9"), 7, onlink=True)
    one.delete(ResourceKey("Node", "n2"))
    world.run(0)
    assert remote(one) is None and one.tunnels is not None and one.tunnels[0].peers == ()


def test_a_pool_changes_its_mind() -> None:
    world = World()
    one = two(world, "CrossSubnet")
    one.device("vxlan.calico", 7)
    world.run(0)
    direct = remote(one)
    assert direct is not None and direct.address == parse_address("10.0.0.2")
    for mode, expected in (("Always", into(7)), ("Never", direct), ("Always", into(7)), ("CrossSubnet", direct)):
        one.apply(pool(mode))
        world.run(3)
        assert remote(one) == expected
    assert one.routes()["10.65.1.0/26"] == "blackhole"


def test_a_route_stays_as_it_was_until_the_tunnel_carries() -> None:
    world = World()
    one = two(world, "Never")
    one.apply(node(2))
    world.run(0)
    direct = remote(one)
    assert direct is not None and direct.address == parse_address("10.0.0.2")
    one.apply(pool("Always"))
    world.run(20)
    assert remote(one) == direct and not why(one)  # neither has a tunnel yet
    one.device("vxlan.calico", 7)
    world.run(5)
    assert remote(one) == direct  # the other has none
    one.apply(node(2, ipv4VXLANTunnelAddr="10.65.2.0"))
    world.run(1.5)
    assert remote(one) == direct  # it may not know us yet
    world.run(1)
    assert remote(one) == into(7)
    one.device("vxlan.calico", 7, up=False)
    world.run(1)
    assert remote(one) == direct
    world.run(60)
    assert remote(one) is None and "no interface vxlan.calico is up" in why(one)  # long enough
    one.device("vxlan.calico", 8)
    world.run(0)
    assert remote(one) == into(8)  # nothing to wait for any more


def test_a_pool_that_changes_its_mind_again_waits_for_nobody() -> None:
    world = World()
    one = two(world, "Never")
    for mode in ("Always", "Never"):
        one.apply(pool(mode))
        world.run(1)
    assert one.core.programmer.moving.next_timer() is None
    direct = remote(one)
    assert direct is not None and direct.address == parse_address("10.0.0.2")


def behind_a_switch(world: World, *more: JsonObject) -> Node:
    """A node that hears of the other's block from a switch, which is no Node and says that it is the next hop."""
    mesh = resource("BGPConfiguration", "default", {"asNumber": 64512, "nodeToNodeMeshEnabled": False})
    everything = [
        mesh, pool("Always"), block(1), node(1, ipv4VXLANTunnelAddr="10.65.1.0"), node(2, ipv4VXLANTunnelAddr="10.65.2.0"),
        resource("BGPPeer", "tor", {"peerIP": "10.0.0.254", "asNumber": 65001}), *more,
    ]  # fmt: skip
    one = world.add("n1", [("10.0.0.1", 24)], everything, own_workloads=True)
    switch = [
        resource("BGPConfiguration", "default", {"asNumber": 65001, "nodeToNodeMeshEnabled": False}),
        resource("Node", "tor", {"bgp": {"ipv4Address": "10.0.0.254/24"}}),
        resource("BlockAffinity", "b2", {"node": "tor", "cidr": "10.65.2.0/26", "state": "confirmed"}),
        resource("BGPPeer", "n1", {"peerIP": "10.0.0.1", "asNumber": 64512}),
    ]
    world.add("tor", [("10.0.0.254", 24)], switch)
    one.device("vxlan.calico", 7)
    world.run(30)
    return one


def allocations(node_name: str | None) -> JsonObject:
    spec = {
        "cidr": "10.65.2.0/26", "affinity": f"host:{node_name}" if node_name else None, "allocations": [None] * 64,
        "unallocated": list(range(64)), "attributes": [],
    }  # fmt: skip
    return resource("IPAMBlock", "10-65-2-0-26", spec)


def test_behind_a_switch_the_block_says_the_node() -> None:
    world = World()
    one = behind_a_switch(world)
    assert remote(one) is None and "no other node that holds this very block" in why(one)
    one.apply(allocations("n2"))
    world.run(0)
    assert remote(one) == into(7)
    one.apply(allocations("n9"))  # which is nowhere
    world.run(0)
    assert remote(one) is None
    one.apply(allocations("n2"))
    world.run(0)
    assert remote(one) == into(7)
    one.apply(allocations(None))
    world.run(0)
    assert remote(one) is None


def test_behind_a_switch_an_affinity_says_it_where_there_is_no_block() -> None:
    assert remote(behind_a_switch(World(), block(2))) == into(7)


def test_beside_felix_nothing_is_made() -> None:
    world = World()
    one = two(world, own_workloads=False)
    one.device("vxlan.calico", 7)
    world.run(0)
    assert remote(one) is None and "Felix programs its routes" in why(one) and one.tunnels is None
