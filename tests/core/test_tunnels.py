"""Routes of VXLAN pools: they lead into the tunnel once its device is there and the other node has an address in it."""

from __future__ import annotations

from typing import Any

import pytest

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


def behind_a_switch(world: World, *more: JsonObject, announced: tuple[str, ...] = ("10.65.2.0/26",)) -> Node:
    """A node that hears of what is the other's from a switch, which is no Node and says that it is the next hop."""
    mesh = resource("BGPConfiguration", "default", {"asNumber": 64512, "nodeToNodeMeshEnabled": False})
    own = {"ipv6Address": "fd00::1/64", "ipv4Address": "10.0.0.1/24"}
    everything = [
        mesh, pool("Always"), POOL_V6, block(1), resource("Node", "n1", {"bgp": own, "ipv4VXLANTunnelAddr": "10.65.1.0"}),
        node(2, ipv4VXLANTunnelAddr="10.65.2.0"), *more,
        *(resource("BGPPeer", f"tor{at}", {"peerIP": ip, "asNumber": 65001}) for at, ip in enumerate(SWITCH)),
    ]  # fmt: skip
    one = world.add("n1", [("10.0.0.1", 24), ("fd00::1", 64)], everything, own_workloads=True)
    switch = [
        resource("BGPConfiguration", "default", {"asNumber": 65001, "nodeToNodeMeshEnabled": False}),
        resource("Node", "tor", {"bgp": {"ipv4Address": f"{SWITCH[0]}/24", "ipv6Address": f"{SWITCH[1]}/64"}}),
        *(
            resource("BlockAffinity", f"b{at}", {"node": "tor", "cidr": cidr, "state": "confirmed"})
            for at, cidr in enumerate(announced)
        ),
        *(
            resource("BGPPeer", f"n1-{at}", {"peerIP": ip, "asNumber": 64512})
            for at, ip in enumerate(("10.0.0.1", "fd00::1"))
        ),
    ]
    world.add("tor", [(SWITCH[0], 24), (SWITCH[1], 64)], switch)
    one.device("vxlan.calico", 7)
    one.device("vxlan-v6.calico", 8)
    world.run(30)
    return one


SWITCH = ("10.0.0.254", "fd00::254")
POOL_V6 = resource("IPPool", "v6", {"cidr": "fd00:65::/64", "vxlanMode": "Always"})


def allocations(
    node_name: str | None, cidr: str = "10.65.2.0/26", given: dict[int, str] | None = None, *, released: bool = False
) -> JsonObject:
    """A block, whose it is, and which of its addresses nodes have."""
    given = given or {}
    attributes: list[Any] = [
        {"handle_id": "h", "secondary": {"node": each, "pod": "p"}} if each else {"handle_id": "h"}
        for each in given.values()
    ]
    if released:
        attributes = [{"releasedAt": "2026-01-01T00:00:00Z"} for _ in given]
    indexes = {ordinal: index for index, ordinal in enumerate(given)}
    spec = {
        "cidr": cidr, "affinity": f"host:{node_name}" if node_name else None,
        "allocations": [indexes.get(each) for each in range(64)],
        "unallocated": [each for each in range(64) if each not in given], "attributes": attributes,
    }  # fmt: skip
    return resource("IPAMBlock", cidr.translate(str.maketrans(".:/", "---")), spec)


def test_behind_a_switch_the_block_says_the_node() -> None:
    world = World()
    one = behind_a_switch(world)
    assert remote(one) is None and "nor does a block say which node has it" in why(one)
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


BORROWED = {Family.IPV4_UNICAST: "10.65.3.9/32", Family.IPV6_UNICAST: "fd00:65::49/128"}
LENDER = {Family.IPV4_UNICAST: "10.65.3.0/26", Family.IPV6_UNICAST: "fd00:65::40/122"}
ENDS = {
    Family.IPV4_UNICAST: Gateway(parse_address("10.65.2.0"), 7, onlink=True),
    Family.IPV6_UNICAST: Gateway(parse_address("fe80::6402:3ff:fe04:506"), 8, onlink=True),
}
VTEPS = {
    "ipv4VXLANTunnelAddr": "10.65.2.0", "ipv6VXLANTunnelAddr": "fd00:65::2", "vxlanTunnelMACAddrV6": "66:02:03:04:05:06",
}  # fmt: skip


def of_two(**more: str) -> JsonObject:
    return resource("Node", "n2", {"bgp": {"ipv4Address": "10.0.0.2/24", "ipv6Address": "fd00::2/64"}, **more})


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("lender", ["n3", "n1", None])
def test_behind_a_switch_the_block_says_who_has_borrowed_an_address(family: Family, lender: str | None) -> None:
    world = World()
    one = behind_a_switch(world, of_two(), announced=(BORROWED[family],))
    prefix, cidr = parse_prefix(BORROWED[family]), LENDER[family]

    def leads(*, none: str = "") -> Gateway | None:
        world.run(0)
        route, why = one.core.kernel_route(*prefix)
        assert one.kernel.get(prefix) == route and none in why, why
        return route.gateways[0] if route is not None else None

    def put(given: dict[int, str], *, released: bool = False) -> None:
        one.apply(allocations(lender, cidr, given, released=released))

    assert leads(none="nor does a block say which node has it") is None
    put({9: "n2", 4: "n3"})
    assert leads(none="no Node with the address") is None, "its end of the tunnel is not there yet"
    one.apply(of_two(**VTEPS))
    assert leads() == ENDS[family]
    put({4: "n3", 9: "n2", 5: "n2"})
    assert leads() == ENDS[family], "others come and go"
    put({4: "n3"})
    assert leads(none="nor does a block say which node has it") is None, "given back"
    put({9: "n2"})
    assert leads() == ENDS[family]
    put({9: "n2"}, released=True)
    assert leads() is None, "cooling down"
    put({9: ""})
    assert leads() is None, "nobody says whose"
    put({9: "n2"})
    assert leads() == ENDS[family]
    one.delete(ResourceKey("IPAMBlock", cidr.translate(str.maketrans(".:/", "---"))))
    assert leads() is None
    put({9: "n2"})
    assert leads() == ENDS[family], "a block that comes back"


def test_a_block_of_one_address_is_lent_as_well() -> None:
    world = World()
    spec = {
        "cidr": "10.65.3.9/32", "affinity": "host:n3", "allocations": [0], "unallocated": [],
        "attributes": [{"handle_id": "h", "secondary": {"node": "n2"}}],
    }  # fmt: skip
    third = node(3, ipv4VXLANTunnelAddr="10.65.3.0")
    lent = resource("IPAMBlock", "10-65-3-9-32", spec)
    one = behind_a_switch(world, third, lent, announced=("10.65.3.9/32",))
    prefix = parse_prefix("10.65.3.9/32")
    assert one.kernel[prefix].gateways == (into(7),)
    one.apply(
        resource("IPAMBlock", "10-65-3-9-32", {**spec, "allocations": [None], "unallocated": [0], "attributes": []})
    )
    world.run(0)
    assert one.kernel[prefix].gateways == (Gateway(parse_address("10.65.3.0"), 7, onlink=True),)


@pytest.mark.parametrize(
    ("own_workloads", "into"), [(True, Gateway(parse_address("10.65.1.5"), 7, onlink=True)), (False, None)]
)
def test_a_borrowed_address_of_a_tunnel_is_announced_where_no_felix_leads_to_it(
    own_workloads: bool, into: Gateway | None
) -> None:
    world = World()
    one = two(world, own_workloads=own_workloads)
    for each in world.nodes.values():
        each.apply(node(2, ipv4VXLANTunnelAddr="10.65.1.5"))
    world.nodes["n2"].device("vxlan.calico", 7, "10.65.1.5")
    one.device("vxlan.calico", 7, "10.65.1.0")
    world.run(5)
    route = one.kernel.get(parse_prefix("10.65.1.5/32"))
    assert (route.gateways[0] if route is not None else None) == into
    assert parse_prefix("10.65.1.0/32") not in world.nodes["n2"].kernel, "of a block of one's own it is part of that"


def test_into_ipip_too_by_the_node_and_else_by_the_next_hop() -> None:
    world = World()
    spec = {"cidr": "10.65.0.0/16", "ipipMode": "Always"}
    borrowed = parse_prefix("10.65.3.9/32")
    one = behind_a_switch(world, resource("IPPool", "v4", spec), announced=("10.65.2.0/26", "10.65.3.9/32"))
    one.device("tunl0", 9)
    world.run(0)
    switch, two_ = (Gateway(parse_address(ip), 9, onlink=True) for ip in (SWITCH[0], "10.0.0.2"))
    assert remote(one) == switch and one.kernel[borrowed].gateways == (switch,), (
        "as Calico's BIRD, where nothing is known"
    )
    one.apply(allocations("n2"))
    one.apply(allocations("n3", "10.65.3.0/26", {9: "n2"}))
    world.run(0)
    assert remote(one) == two_ and one.kernel[borrowed].gateways == (two_,)


def test_behind_a_switch_too_a_route_waits_until_the_other_end_knows_us() -> None:
    world = World()
    one = behind_a_switch(world, pool("Never"), node(2), allocations("n2"))
    one.apply(pool("Always"))
    world.run(5)
    switch = remote(one)
    assert switch is not None and switch.address == parse_address(SWITCH[0])
    one.apply(node(2, ipv4VXLANTunnelAddr="10.65.2.0"))
    world.run(1.5)
    assert remote(one) == switch
    world.run(1)
    assert remote(one) == into(7)


def test_beside_felix_nothing_is_made() -> None:
    world = World()
    one = two(world, own_workloads=False)
    one.device("vxlan.calico", 7)
    world.run(0)
    assert remote(one) is None and "Felix programs its routes" in why(one) and one.tunnels is None
