"""Clusters that are not one IPv4 subnet on port 179 in one AS: IPv6 alone, other ports, tables and protocols, an AS a node,
peers behind routers.
"""

from __future__ import annotations

from routed.testing.lab import Lab, wait_for
from routed.testing.peer import ScriptedPeer, as_path, next_hop, nlri, origin, update
from routed.testing.routers import Routed, resource
from tests.lab.topology import (
    SOON,
    Rack,
    address,
    affinity,
    block,
    cluster,
    configuration,
    node,
    pod,
    pools,
    start,
)


def wait_for_block(routed: Routed, number: int, *, ipv6: bool = False) -> None:
    wait_for(
        lambda: (
            routed.kernel_routes(ipv6=ipv6).get(block(number, ipv6=ipv6))
            == f"via {address(number, ipv6=ipv6)} dev eth0"
        ),
        SOON,
        f"{routed.node_name} has the block of node-{number}",
        state=lambda: (routed.kernel_routes(ipv6=ipv6), routed.sessions()),
    )


def test_ipv6_alone(lab: Lab) -> None:
    """No IPv4 anywhere: the router id comes from the name (or routerId), and packets arrive."""
    rack = Rack(lab, "six")
    routers = {
        1: rack.node(1, *cluster(1, 2, ipv4=False), ipv4=False),
        2: rack.node(2, *cluster(1, 2, ipv4=False), ipv4=False, routerId="192.0.2.2"),
    }
    start(*routers.values())
    for number, other in ((1, 2), (2, 1)):
        wait_for_block(routers[number], other, ipv6=True)
    for number, other in ((1, 2), (2, 1)):  # an answer needs the way back
        assert routers[number].namespace.pings(pod(other, ipv6=True), source=pod(number, ipv6=True), timeout=SOON)
    ids = {number: routed.status()["routerId"] for number, routed in routers.items()}
    assert ids[2] == "192.0.2.2"
    assert ids[1] not in ("0.0.0.0", ids[2])
    assert routers[2].neighbors()[address(1, ipv6=True)]["negotiated"]["routerId"] == ids[1]
    assert [routed.problems() for routed in routers.values()] == [[], []]
    for routed in routers.values():
        routed.kill()


def test_another_port_and_one_node_with_its_own(lab: Lab) -> None:
    rack = Rack(lab, "ports")
    resources = [*cluster(11, 12, listenPort=1790), resource("BGPConfiguration", "node.node-12", {"listenPort": 2790})]
    routers = {number: rack.node(number, *resources) for number in (11, 12)}
    start(*routers.values())
    for number, other in ((11, 12), (12, 11)):
        wait_for_block(routers[number], other)
        wait_for_block(routers[number], other, ipv6=True)
    listening = {number: routed.namespace.run("ss", "-Htln").split() for number, routed in routers.items()}
    assert any(word.endswith(":1790") for word in listening[11]) and any(
        word.endswith(":2790") for word in listening[12]
    )
    assert not any(word.endswith(":179") for words in listening.values() for word in words)
    # the port changes while it runs
    for routed in routers.values():
        routed.put(configuration(listenPort=1791))
    wait_for(lambda: routers[11].status()["listenPort"] == 1791, SOON, "the port has changed")
    for number, other in ((11, 12), (12, 11)):
        wait_for(
            lambda number=number, other=other: routers[number].established(address(other)),
            3 * SOON,
            "the session is up",
            state=routers[number].sessions,
        )
        wait_for_block(routers[number], other)
    for routed in routers.values():
        routed.kill()


def test_an_as_for_each_node(lab: Lab) -> None:
    """A mesh of external sessions: next hops are the nodes' own, each AS is in the path, and a loop is refused."""
    rack = Rack(lab, "ases")
    numbers = (21, 22, 23)
    asn = {21: 65021, 22: 65022, 23: 4_200_000_023}
    resources = [
        configuration(),
        *pools(),
        *(node(number, asNumber=asn[number]) for number in numbers),
        *(affinity(number, block(number)) for number in numbers),
        *(affinity(number, block(number, ipv6=True)) for number in numbers),
    ]
    routers = {number: rack.node(number, *resources) for number in numbers}
    start(*routers.values())
    for number in numbers:
        for other in numbers:
            if other != number:
                wait_for_block(routers[number], other)
                wait_for_block(routers[number], other, ipv6=True)
    # what comes by a third node is a longer path, and may come first
    wait_for(
        lambda: routers[21].best(block(23)).get("asPath") == "4200000023", SOON, "the shortest path is the best",
        state=lambda: routers[21].route(block(23)),
    )  # fmt: skip
    assert routers[21].best(block(23))["type"] == "external"
    # each tells the others what it heard, for it is inside a pool: a longer path, and our own AS in it is a loop
    wait_for(
        lambda: any(path["asPath"] == "65022 4200000023" for path in routers[21].route(block(23))["candidates"]),
        SOON,
        "the longer path is known too",
        state=lambda: routers[21].route(block(23)),
    )
    assert all(
        "loop" in path["reason"]
        for path in routers[23].route(block(23))["candidates"]
        if "4200000023" in path["asPath"].split()
    )
    for routed in routers.values():
        routed.kill()


def test_another_table_and_protocol(lab: Lab) -> None:
    rack = Rack(lab, "tables")
    routed = rack.node(31, *cluster(31, 32), kernel={"table": 1000, "routeProtocol": 121, "metric": 77})
    other = rack.node(32, *cluster(31, 32), kernel={"programRoutes": False})
    start(routed, other)
    for ipv6 in (False, True):
        wait_for(
            lambda ipv6=ipv6: (
                routed.namespace.routes(protocol=121, ipv6=ipv6, table="1000").keys()
                == {block(31, ipv6=ipv6), block(32, ipv6=ipv6)}
            ),
            SOON,
            "both blocks are in table 1000",
            state=lambda: (routed.namespace.routes(table="all"), routed.route(block(32))),
        )
        shown = routed.namespace.routes(protocol=121, ipv6=ipv6, table="1000")[block(32, ipv6=ipv6)]
        assert shown.startswith(f"via {address(32, ipv6=ipv6)} dev eth0 metric 77")
        assert routed.namespace.routes(protocol=121, ipv6=ipv6) == {}
    # gateways are found in the main table, also when that changes
    detour = f"{address(32)}/32 via 10.0.0.99"
    for change, gateway in (("add", "10.0.0.99"), ("del", address(32))):
        routed.namespace.route(f"{change} {detour}")
        wait_for(
            lambda gateway=gateway: (
                f"via {gateway} " in routed.namespace.routes(protocol=121, table="1000").get(block(32), "")
            ),
            SOON,
            f"the route leads to {gateway}",
            state=lambda: routed.route(block(32)),
        )
    # programRoutes false: routes are known, and the kernel holds none
    wait_for(lambda: block(31) in other.routes(), SOON, "the block is known", state=other.routes)
    assert other.kernel_routes() == {} and other.kernel_routes(ipv6=True) == {}
    assert other.status()["kernel"]["programRoutes"] is False
    for each in (routed, other):
        each.kill()


def test_peers_behind_a_router(lab: Lab) -> None:
    """Sessions need no common subnet: the next hop resolves through the kernel's routes, to the gateway on the wire."""
    near, router, far = (lab.namespace(name, forward=True) for name in ("near", "router", "far"))
    lab.link(near.port("eth0", "10.1.0.1/24"), router.port("eth0", "10.1.0.254/24"))
    lab.link(far.port("eth0", "10.2.0.1/24"), router.port("eth1", "10.2.0.254/24"))
    near.route("add default via 10.1.0.254")
    far.route("add 10.1.0.0/16 via 10.2.0.254")
    resources = [
        configuration(),
        *pools(),
        resource("Node", "near", {"bgp": {"ipv4Address": "10.1.0.1/24"}}),
        resource("Node", "far", {"bgp": {"ipv4Address": "10.2.0.1/24"}}),
        resource("BlockAffinity", "near", {"node": "near", "cidr": "10.244.1.0/26"}),
        resource("BlockAffinity", "far", {"node": "far", "cidr": "10.244.2.0/26"}),
    ]
    routers = [Routed(near), Routed(far)]
    for routed in routers:
        routed.put(*resources)
    start(*routers)
    wait_for(
        lambda: routers[0].kernel_routes().get("10.244.2.0/26") == "via 10.1.0.254 dev eth0",
        SOON,
        "the route uses the gateway on the wire",
        state=routers[0].kernel_routes,
    )
    wait_for(lambda: routers[1].kernel_routes().get("10.244.1.0/26") == "via 10.2.0.254 dev eth0", SOON, "and back")
    resolved = routers[0].best("10.244.2.0/26")
    assert resolved["nextHop"] == "10.2.0.1" and "default" in resolved["resolved"]
    # the way there changes: the route follows, the session stays
    lab.link(near.port("eth1", "10.3.0.1/24"), router.port("eth2", "10.3.0.254/24"))
    near.route("add 10.2.0.0/24 via 10.3.0.254")
    wait_for(
        lambda: routers[0].kernel_routes().get("10.244.2.0/26") == "via 10.3.0.254 dev eth1",
        SOON,
        "the route follows the next hop's own",
        state=routers[0].kernel_routes,
    )
    near.route("del 10.2.0.0/24 via 10.3.0.254")
    wait_for(
        lambda: routers[0].kernel_routes().get("10.244.2.0/26") == "via 10.1.0.254 dev eth0", SOON, "and back again"
    )
    near.route("del default via 10.1.0.254")
    wait_for(lambda: "10.244.2.0/26" not in routers[0].kernel_routes(), SOON, "no way, no route")
    row = routers[0].route("10.244.2.0/26")["candidates"][0]
    assert not row["best"] and "next hop unreachable" in row["reason"]
    assert {each["establishedCount"] for each in routers[0].neighbors().values()} == {1}


def test_a_next_hop_that_is_a_third_machine(lab: Lab) -> None:
    """An internal route's next hop is whoever the peer says, resolved on its own: through another BGP route if need be."""
    rack = Rack(lab, "third")
    routed = rack.node(
        41,
        node(41),
        configuration(nodeToNodeMeshEnabled=False),
        resource("BGPPeer", "peer", {"node": "node-41", "peerIP": address(42), "asNumber": 64512}),
    )
    routed.start()
    machine = rack.machine("peer-42", 42)
    with ScriptedPeer(machine, address(42), address(41), asn=64512) as peer:
        peer.establish()
        internal = bytes.fromhex("40050400000064")
        peer.send(
            update(origin() + as_path() + next_hop("172.16.5.5") + internal, nlri("192.0.2.0/24")),
            update(origin() + as_path() + next_hop(address(43)) + internal, nlri("198.51.100.0/24")),
        )
        wait_for(
            lambda: routed.kernel_routes() == {"198.51.100.0/24": f"via {address(43)} dev eth0"},
            SOON,
            "what resolves is in the kernel",
            state=routed.kernel_routes,
        )
        assert "next hop unreachable" in routed.route("192.0.2.0/24")["candidates"][0]["reason"]
        peer.send(update(origin() + as_path() + next_hop(address(44)) + internal, nlri("172.16.0.0/16")))
        wait_for(
            lambda: routed.kernel_routes().get("192.0.2.0/24") == f"via {address(44)} dev eth0",
            SOON,
            "it resolves through the new route",
            state=routed.kernel_routes,
        )
        peer.send(update(withdrawn=nlri("172.16.0.0/16")))
        wait_for(lambda: "192.0.2.0/24" not in routed.kernel_routes(), SOON, "and not without it")
