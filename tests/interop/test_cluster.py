"""routed in a cluster of others: among Calico's BIRDs in a mesh, and below two top-of-rack switches of different makes."""

from __future__ import annotations

from routed.testing.lab import Lab, Namespace, stays, wait_for
from routed.testing.routers import Bird, Frr, Routed, Router, resource
from tests.lab.topology import SOON

AS = 64512


def calico_bird(namespace: Namespace, own: str, block: str, others: dict[str, bool]) -> Bird:
    """BIRD as Calico's confd configures it on a node: `others` are the nodes it peers with, and whether it is passive."""
    mesh = "".join(
        f"protocol bgp Mesh_{address.replace('.', '_')} from bgp_template {{ neighbor {address} as {AS};"
        f" {'passive on;' if passive else ''} }}\n"
        for address, passive in others.items()
    )
    return Bird(
        namespace,
        f"router id {own};\nprotocol device {{ scan time 2; }}\nprotocol direct {{ ipv4; }}\n"
        "protocol kernel { learn; persist; scan time 2; merge paths on; graceful restart;\n"
        "  ipv4 { import all; export where source ~ [RTS_BGP, RTS_STATIC]; }; }\n"
        f"protocol static {{ ipv4; route {block} blackhole; }}\n"
        f"template bgp bgp_template {{ local {own} as {AS}; multihop; connect delay time 2; connect retry time 5;\n"
        "  error wait time 5, 30; graceful restart on;\n"
        "  ipv4 { import all; export where source ~ [RTS_BGP, RTS_STATIC]; gateway recursive; add paths on; }; }\n"
        + mesh,
    )


def test_a_node_of_a_calico_mesh(lab: Lab) -> None:
    """Each pair has one session, opened by the end Calico's rule says; blocks are in every kernel."""
    segment = lab.segment("lan")
    # as texts: "10.0.0.10" < "10.0.0.2" < "10.0.0.9"
    addresses = {"node-a": "10.0.0.9", "node-b": "10.0.0.10", "node-c": "10.0.0.2"}
    blocks = {"node-a": "10.244.1.0/26", "node-b": "10.244.2.0/26", "node-c": "10.244.3.0/26"}
    spaces = {name: lab.namespace(name) for name in addresses}
    for name, address in addresses.items():
        segment.attach(spaces[name], "eth0", f"{address}/24")
    routed = Routed(spaces["node-c"])
    for name, address in addresses.items():
        routed.put(
            resource("Node", name, {"bgp": {"ipv4Address": f"{address}/24"}}),
            resource("BlockAffinity", name, {"node": name, "cidr": blocks[name]}),
        )
    routed.put(resource("IPPool", "pool", {"cidr": "10.244.0.0/16"}))
    birds: dict[str, Router] = {
        name: calico_bird(
            spaces[name],
            addresses[name],
            blocks[name],
            {other: other > addresses[name] for other in addresses.values() if other != addresses[name]},
        )
        for name in ("node-a", "node-b")
    }
    for bird in birds.values():
        bird.start()
    routed.start()
    wait_for(
        lambda: (
            routed.established("10.0.0.9", "10.0.0.10")
            and all(bird.established(*(set(addresses.values()) - {addresses[name]})) for name, bird in birds.items())
        ),
        45,
        "the mesh is complete",
        state=lambda: [routed.sessions(), *(bird.sessions() for bird in birds.values())],
    )
    wait_for(
        lambda: (
            routed.kernel_routes()
            == {
                blocks["node-a"]: "via 10.0.0.9 dev eth0",
                blocks["node-b"]: "via 10.0.0.10 dev eth0",
                blocks["node-c"]: "blackhole",
            }
        ),
        SOON,
        "the node's kernel has all blocks",
        state=routed.kernel_routes,
    )
    for name in birds:
        wait_for(
            lambda name=name: "via 10.0.0.2 dev eth0" in spaces[name].routes().get(blocks["node-c"], ""),
            SOON,
            f"the kernel of {name} has routed's block",
            state=spaces[name].routes,
        )
    rows = routed.neighbors()
    assert {address: row["passive"] for address, row in rows.items()} == {"10.0.0.9": True, "10.0.0.10": False}
    assert {row["establishedCount"] for row in rows.values()} == {1}
    assert {row["localAddress"] for row in rows.values()} == {"10.0.0.2"}
    assert routed.problems() == []


def tor_config(own: str, asn: int, node: str) -> str:
    return (
        f"router bgp {asn}\n bgp router-id {own}\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
        f" neighbor {node} remote-as 65001\n neighbor {node} timers 6 60\n neighbor {node} timers connect 1\n"
        " address-family ipv4 unicast\n  network 0.0.0.0/0\n  network 192.0.2.0/24\n exit-address-family\n"
    )


def test_traffic_is_shared_between_two_switches(lab: Lab) -> None:
    """Equal routes of FRR and BIRD in different ASes become one route with two legs; one leg goes with its switch."""
    node, left, right = lab.namespace("node"), lab.namespace("left"), lab.namespace("right")
    lab.link(node.port("eth0", "10.1.0.1/24"), left.port("eth0", "10.1.0.254/24"))
    lab.link(node.port("eth1", "10.2.0.1/24"), right.port("eth0", "10.2.0.254/24"))
    for namespace in (left, right):  # both reach the network behind them
        namespace.address("lo", "192.0.2.1/32")
    frr = Frr(left, tor_config("10.1.0.254", 65101, "10.1.0.1"))
    bird = Bird(
        right,
        "router id 10.2.0.254;\nprotocol device {}\n"
        "protocol static { ipv4; route 0.0.0.0/0 blackhole; route 192.0.2.0/24 blackhole; }\n"
        "protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n"
        "protocol bgp node { local 10.2.0.254 as 65102; neighbor 10.2.0.1 as 65001; connect delay time 1;\n"
        "  connect retry time 2; error wait time 1, 2; ipv4 { import all; export all; }; }\n",
    )
    routed = Routed(node)
    routed.put(
        resource("Node", "node", {"bgp": {"ipv4Address": "10.1.0.1/24", "asNumber": 65001}}),
        resource("BGPPeer", "left", {"node": "node", "peerIP": "10.1.0.254", "asNumber": 65101}),
        resource(
            "BGPPeer",
            "right",
            {"node": "node", "peerIP": "10.2.0.254", "asNumber": 65102, "sourceAddress": "None"},
        ),
        resource("BlockAffinity", "block", {"node": "node", "cidr": "10.244.1.0/26"}),
    )
    frr.start()
    bird.start()
    routed.start()
    both = "nexthop via 10.1.0.254 dev eth0 weight 1 nexthop via 10.2.0.254 dev eth1 weight 1"
    for prefix in ("192.0.2.0/24", "default"):
        wait_for(
            lambda prefix=prefix: routed.kernel_routes().get(prefix) == both,
            SOON,
            f"{prefix} has two legs",
            state=lambda: (routed.kernel_routes(), routed.sessions()),
        )
    assert node.pings("192.0.2.1")
    for switch in (frr, bird):
        wait_for(
            lambda switch=switch: "10.244.1.0/26" in switch.routes(), SOON, "it has the block", state=switch.routes
        )
    sessions = routed.neighbors()["10.1.0.254"]["establishedCount"]
    row = routed.route("192.0.2.0/24")
    assert [path["multipath"] for path in row["candidates"]] == [True, True]

    left.ip("link set eth0 down")  # the wire is cut: no hold time to wait for, which would be a minute
    wait_for(
        lambda: routed.kernel_routes().get("192.0.2.0/24") == "via 10.2.0.254 dev eth1",
        SOON,
        "traffic moves to the other switch",
        state=routed.kernel_routes,
    )
    assert node.pings("192.0.2.1")
    assert routed.established("10.2.0.254")
    left.ip("link set eth0 up")
    # FRR ended the session when its link went down, which we hear now
    wait_for(
        lambda: (
            routed.neighbors()["10.1.0.254"]["establishedCount"] == sessions + 1 and routed.established("10.1.0.254")
        ),
        60,
        "a new session with FRR",
        state=routed.sessions,
    )
    wait_for(
        lambda: routed.kernel_routes().get("192.0.2.0/24") == both, 60, "both legs again", state=routed.kernel_routes
    )

    bird.ctl("disable", "node")
    wait_for(
        lambda: routed.kernel_routes().get("192.0.2.0/24") == "via 10.1.0.254 dev eth0",
        SOON,
        "a session that ends takes its leg",
        state=routed.kernel_routes,
    )
    stays(lambda: node.pings("192.0.2.1"), 0.5, "packets arrive")
    assert routed.neighbors()["10.1.0.254"]["state"] == "Established"


def test_routes_of_one_switch_are_not_told_the_other(lab: Lab) -> None:
    """Without a filter that says so a node is no transit: only what is its own, or inside its pools, goes out."""
    node, left, right = lab.namespace("node"), lab.namespace("left"), lab.namespace("right")
    lab.link(node.port("eth0", "10.1.0.1/24"), left.port("eth0", "10.1.0.254/24"))
    lab.link(node.port("eth1", "10.2.0.1/24"), right.port("eth0", "10.2.0.254/24"))
    switches = [
        Frr(left, tor_config("10.1.0.254", 65101, "10.1.0.1").replace("192.0.2.0", "198.51.100.0")),
        Frr(right, tor_config("10.2.0.254", 65102, "10.2.0.1").replace("  network 192.0.2.0/24\n", "")),
    ]
    routed = Routed(node)
    routed.put(
        resource("Node", "node", {"bgp": {"ipv4Address": "10.1.0.1/24", "asNumber": 65001}}),
        resource("BGPPeer", "left", {"node": "node", "peerIP": "10.1.0.254", "asNumber": 65101}),
        resource(
            "BGPPeer",
            "right",
            {"node": "node", "peerIP": "10.2.0.254", "asNumber": 65102, "sourceAddress": "None"},
        ),
        resource("BlockAffinity", "block", {"node": "node", "cidr": "10.244.1.0/26"}),
    )
    for switch in switches:
        switch.start()
    routed.start()
    wait_for(
        lambda: all("10.244.1.0/26" in switch.routes() for switch in switches) and "198.51.100.0/24" in routed.routes(),
        SOON,
        "own block is with both",
        state=lambda: [switch.routes() for switch in switches],
    )
    assert "198.51.100.0/24" not in switches[1].routes()
    counts = {address: row["establishedCount"] for address, row in routed.neighbors().items()}
    accept = [{"action": "Accept"}]
    routed.put(
        resource("BGPFilter", "transit", {"exportV4": accept}),
        resource(
            "BGPPeer",
            "right",
            {
                "node": "node",
                "peerIP": "10.2.0.254",
                "asNumber": 65102,
                "sourceAddress": "None",
                "filters": ["transit"],
            },
        ),
    )
    wait_for(
        lambda: "198.51.100.0/24" in switches[1].routes(), SOON, "the filter lets it out", state=switches[1].routes
    )
    assert '"65001 65101"' in switches[1].routes()["198.51.100.0/24"]
    now = {address: row["establishedCount"] for address, row in routed.neighbors().items()}
    assert now == counts, "no session was reset for it"
    assert "0.0.0.0/0" not in str(switches[1].route("0.0.0.0/0")) or all(
        path["aspath"]["string"] == "Local" for path in switches[1].route("0.0.0.0/0")
    ), "a bare accept lets no default route out"
