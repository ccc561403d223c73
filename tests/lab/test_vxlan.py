"""Pools with VXLAN on real nodes: two in one subnet, one in another, between them a router that knows no pod's address."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import permutations

import pytest
import yaml

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echoes import echoes
from routed.testing.routers import Json, resource
from tests.datastore.etcd_server import P
from tests.lab import stranger
from tests.lab.etcd import Etcd
from tests.lab.test_cni import DUAL, Node
from tests.lab.test_cni_etcd import TCP_SERVER, tcp

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

SUBNET = {1: 1, 2: 1, 3: 2}
DEVICES = ("vxlan.calico", "vxlan-v6.calico")


class Site:
    """The nodes, the router between their subnets, and etcd on it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.router = lab.namespace("router", forward=True)
        wires = {subnet: lab.segment(f"wire{subnet}") for subnet in (1, 2)}
        for subnet, wire in wires.items():
            wire.attach(self.router, f"eth{subnet}", f"10.{subnet}.0.254/24", f"fd0{subnet}::254/64")
        self.etcd = Etcd(self.router, "10.1.0.254")
        self.etcd.start()
        self.etcd.put_resource("bgpconfigurations", resource("BGPConfiguration", "default", {"asNumber": 64512}))
        self.pools("CrossSubnet")
        self.nodes: dict[int, Node] = {}
        self.pods: dict[int, tuple[Namespace, list[str]]] = {}
        for number, subnet in SUBNET.items():
            bgp = {"ipv4Address": f"10.{subnet}.0.{number}/24", "ipv6Address": f"fd0{subnet}::{number}/64"}
            self.etcd.put_resource("nodes", resource("Node", f"n{number}", {"bgp": bgp}))
            node = self.nodes[number] = Node(lab, number)
            wires[subnet].attach(node.namespace, "eth0", *bgp.values())
            node.namespace.ip(f"route add default via 10.{subnet}.0.254", f"route add default via fd0{subnet}::254")
            node.routed.configure(datastore={"type": "etcd", "endpoints": [self.etcd.url]})
        for node in self.nodes.values():
            node.start()

    def pools(self, mode: str) -> None:
        shared = {"vxlanMode": mode, "natOutgoing": True}
        self.etcd.put_resource("ippools", resource("IPPool", "v4", {"cidr": "10.65.0.0/16", **shared}))
        self.etcd.put_resource("ippools", resource("IPPool", "v6", {"cidr": "fd00:65::/64", **shared}))

    def node(self, number: int) -> Json:
        found: Json = json.loads(self.etcd.ctl("get", "--print-value-only", f"{P}nodes/n{number}"))
        return found

    def add(self, number: int) -> None:
        pod = self.lab.namespace(f"p{number}")
        self.pods[number] = (pod, self.nodes[number].runtime.add(pod, **DUAL).addresses)
        server = pod.start("server", sys.executable, "-c", TCP_SERVER)
        wait_for(lambda: "listening" in server.text(), 30, "the pod's server listens", state=self.lab.report)

    def unreachable(self) -> list[str]:
        return [
            f"p{source} -> {address}"
            for source, target in permutations(self.pods, 2)
            for address in self.pods[target][1]
            if not self.pods[source][0].pings(address)
        ]

    def devices(self, number: int) -> list[str]:
        links = self.nodes[number].namespace.run("ip", "-br", "link").split()
        return [name for name in DEVICES if name in links]

    def sent(self, number: int) -> int:
        """Packets the node has put into its tunnels."""
        said = self.nodes[number].namespace.run("ip", "-j", "-s", "link", "show", "type", "vxlan")
        return sum(link["stats64"]["tx"]["packets"] for link in json.loads(said))

    def entries(self, number: int) -> set[tuple[str, str]]:
        """(MAC address, node address) of the forwarding entries."""
        said = self.nodes[number].namespace.run("bridge", "fdb", "show")
        return set(re.findall(r"^(\S+) dev vxlan\S+ dst (\S+) self permanent", said, re.M))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab)
        for number in SUBNET:
            made.add(number)
        wait_for(lambda: not made.unreachable(), 90, "every pod reaches every other", state=made.unreachable)
        yield made


def count(site: Site, source: int, target: int) -> int:
    """How many packets ten pings and a TCP connection in each family put into tunnels of the source's node."""
    pod, own = site.pods[source]
    before = site.sent(source)
    for mine, address in zip(own, site.pods[target][1], strict=True):
        assert all(pod.pings(address, timeout=10) for _ in range(10))
        assert tcp(pod, address) == mine
    return site.sent(source) - before


def test_what_stays_in_the_subnet_goes_bare(site: Site) -> None:
    assert count(site, 1, 2) < 8  # not the pings: the kernel's own router solicitations are counted as well
    assert count(site, 1, 3) >= 28
    assert count(site, 3, 2) >= 28
    for number, other in ((1, 3), (3, 1)):
        kernel = site.nodes[number].namespace
        vtep = site.node(other)["spec"]["ipv4VXLANTunnelAddr"]
        leads = [route for route in kernel.routes(protocol=120).values() if "vxlan" in route]
        assert leads and all(
            "via 10.65." in route and "dev vxlan.calico" in route and "onlink" in route for route in leads
        )
        assert any(f"via {vtep} " in route for route in leads)
        assert [route for route in kernel.routes(protocol=120, ipv6=True).values() if "dev vxlan-v6.calico" in route]
    direct = [route for route in site.nodes[1].namespace.routes(protocol=120).values() if "via 10.1.0.2 " in route]
    assert direct and not [route for route in direct if "vxlan" in route]
    assert not site.router.routes(protocol=120) and "10.65" not in str(site.router.routes())


def test_what_leaves_the_pools_is_translated_and_nodes_reach_pods(site: Site) -> None:
    server = site.router.start("server", sys.executable, "-c", TCP_SERVER)
    wait_for(lambda: "listening" in server.text(), 30, "the outside server listens", state=site.lab.report)
    pod = site.pods[1][0]
    assert tcp(pod, "10.2.0.254") == "10.1.0.1" and tcp(pod, "fd02::254") == "fd01::1"
    for number, other in permutations(SUBNET, 2):
        for address in site.pods[other][1]:
            assert site.nodes[number].namespace.pings(address), (number, address)


def test_devices_are_as_felix_makes_them(site: Site) -> None:
    node = site.nodes[1].namespace
    (link,) = json.loads(node.run("ip", "-j", "-d", "addr", "show", "vxlan.calico"))
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data.get("learning")) == (4096, 4789, "10.1.0.1", False)
    assert link["mtu"] == 1450
    assert link["address"] == "66:40:b3:ea:b6:3f"  # f and the beginning of the SHA-1 of n1
    spec = site.node(1)["spec"]
    ours = [each for each in link["addr_info"] if each["family"] == "inet"]
    assert [(each["local"], each["prefixlen"]) for each in ours] == [(spec["ipv4VXLANTunnelAddr"], 32)]
    (link,) = json.loads(node.run("ip", "-j", "-d", "addr", "show", "vxlan-v6.calico"))
    assert link["mtu"] == 1430 and link["linkinfo"]["info_data"]["local6"] == "fd01::1"
    assert spec["ipv6VXLANTunnelAddr"] in [each["local"] for each in link["addr_info"]]
    handle = site.etcd.ctl("get", "--print-value-only", "/calico/ipam/v2/handle/vxlan-tunnel-addr-n1")
    assert sum(json.loads(handle)["block"].values()) == 1
    wait_for(  # of the node in the same subnet no ping has needed them
        lambda: len(site.entries(1)) == 4, 30, "two nodes' entries in two families", state=lambda: site.entries(1)
    )
    assert {address for _, address in site.entries(1)} == {"10.1.0.2", "10.2.0.3", "fd01::2", "fd02::3"}
    shown = json.loads(site.nodes[1].routed.ctl("show", "tunnels", "--json"))
    assert [(row["device"], row["mtu"], [peer["node"] for peer in row["peers"]]) for row in shown] == [
        ("vxlan.calico", 1450, ["n2", "n3"]), ("vxlan-v6.calico", 1430, ["n2", "n3"]),
    ]  # fmt: skip
    said = site.nodes[1].routed.ctl("show", "tunnels")
    assert "vxlan.calico: " in said and "VNI 4096, UDP port 4789, MAC 66:40:b3:ea:b6:3f, MTU 1450" in said
    vtep = site.node(3)["spec"]["ipv4VXLANTunnelAddr"]
    assert re.search(rf"^n3 +10\.2\.0\.3 +{vtep} +66:", said, re.M)
    assert f"via {vtep} dev vxlan.calico" in site.nodes[1].routed.ctl("show", "fib", "--json")
    pod = json.loads(site.pods[1][0].run("ip", "-j", "link", "show", "eth0"))
    assert pod[0]["mtu"] == 1430


def test_a_restart_costs_no_packet(site: Site) -> None:
    asked = [echoes(site.pods[3][0], address) for address in site.pods[1][1]]
    before = site.nodes[1].namespace.run("ip", "-br", "link", "show", "vxlan.calico")
    site.nodes[1].routed.kill()
    site.nodes[1].start()
    assert [each.end()[1] for each in asked] == [[], []]
    assert site.nodes[1].namespace.run("ip", "-br", "link", "show", "vxlan.calico") == before


def test_what_others_change_is_put_right(site: Site) -> None:
    site.nodes[3].namespace.ip("link del vxlan.calico")
    wait_for(lambda: site.devices(3) == list(DEVICES), 20, "the device is back", state=site.lab.report)
    wait_for(lambda: not site.unreachable(), 30, "the pods reach each other again", state=site.unreachable)


def test_only_nodes_may_send_into_the_tunnel(site: Site) -> None:
    """A stranger's outer packets are dropped; nodes' pass also where host policy closes everything."""
    router, node, pod = site.router, site.nodes[1].namespace, site.pods[1][1][0]

    def dropped() -> int:
        table = json.loads(node.run("nft", "-j", "list", "chain", "inet", "routed", "input"))["nftables"]
        counters = [
            part["counter"] for each in table if "rule" in each for part in each["rule"]["expr"] if "counter" in part
        ]
        return sum(counter["packets"] for counter in counters)

    with stranger.tunnel(router, "10.1.0.254", node, "10.1.0.1", pod):
        before, lost = stranger.received(node), dropped()
        assert not router.pings(pod, timeout=0.3)
        assert dropped() > lost and stranger.received(node) == before
        site.etcd.put_resource(
            "hostendpoints", resource("HostEndpoint", "n1-all", {"node": "n1", "interfaceName": "*"})
        )
        failsafe = [{"protocol": "TCP", "port": port} for port in (179, 2379)]
        site.etcd.put_resource(
            "felixconfigurations",
            resource(
                "FelixConfiguration",
                "default",
                {"failsafeInboundHostPorts": failsafe, "failsafeOutboundHostPorts": failsafe},
            ),
        )
        wait_for(
            lambda: not node.pings("10.1.0.254", timeout=0.3), 30, "host policy closes the node", state=site.lab.report
        )
        assert site.pods[1][0].pings(site.pods[3][1][0]) and site.pods[3][0].pings(site.pods[1][1][1])
        assert not router.pings(pod, timeout=0.3) and stranger.received(node) > before
        site.etcd.put_resource(
            "hostendpoints", resource("HostEndpoint", "n1-all", {"node": "n9", "interfaceName": "*"})
        )
        wait_for(lambda: node.pings("10.1.0.254"), 30, "the node is open again", state=site.lab.report)


def test_a_pool_changes_its_mind(site: Site) -> None:
    into = echoes(site.pods[1][0], site.pods[2][1][0])
    site.pools("Always")
    wait_for(lambda: count(site, 1, 2) >= 28, 30, "the subnet's packets are in the tunnel too", state=site.lab.report)
    assert not site.unreachable()
    assert into.end()[1] == []
    through = echoes(site.pods[1][0], site.pods[2][1][0])
    site.pools("Never")
    for number in SUBNET:
        wait_for(lambda number=number: not site.devices(number), 30, "the devices go", state=site.lab.report)
        assert "ipv4VXLANTunnelAddr" not in site.node(number)["spec"]
    wait_for(  # only what no device has any more is given back
        lambda: not [key for key in site.etcd.keys("/calico/ipam/v2/handle/") if "vxlan" in key], 30,
        "the addresses are given back", state=site.lab.report,
    )  # fmt: skip
    assert through.end()[1] == []
    assert site.pods[1][0].pings(site.pods[2][1][0]) and not site.pods[1][0].pings(site.pods[3][1][0])
    # from no tunnel at all into one: each route stays as it was until the tunnel carries
    asked = [
        echoes(site.pods[source][0], address) for source, target in ((1, 2), (2, 1)) for address in site.pods[target][1]
    ]
    site.pools("Always")
    wait_for(lambda: count(site, 1, 2) >= 28, 30, "the packets are in the tunnel", state=site.lab.report)
    assert [each.end()[1] for each in asked] == [[]] * 4
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)
    site.pools("CrossSubnet")
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)


def test_a_node_that_goes_is_forgotten(site: Site) -> None:
    site.nodes[3].routed.kill()
    site.etcd.ctl("del", f"{P}nodes/n3")
    kept = {"10.1.0.2", "fd01::2"}
    wait_for(
        lambda: {address for _, address in site.entries(1)} == kept, 30, "its entries go", state=lambda: site.entries(1)
    )
    for number in (1, 2):  # and of the others' kernels everything that led to it
        kernel = site.nodes[number].namespace
        for device, family in (("vxlan.calico", "-4"), ("vxlan-v6.calico", "-6")):
            neighbours = ["ip", family, "neigh", "show", "dev", device, "nud", "permanent"]
            wait_for(
                lambda kernel=kernel, neighbours=neighbours: len(kernel.run(*neighbours).splitlines()) == 1, 30,
                "its neighbours go", state=site.lab.report,
            )  # fmt: skip
        for ipv6 in (False, True):
            wait_for(
                lambda kernel=kernel, ipv6=ipv6: not [
                    route for route in kernel.routes(protocol=120, ipv6=ipv6).items() if "vxlan" in str(route)
                ],
                150, "its routes go", state=lambda kernel=kernel: kernel.run("ip", "route"),
            )  # fmt: skip
    assert [key for key in site.etcd.keys("/calico/ipam/v2/handle/") if key.endswith("tunnel-addr-n3")]
    argv = (sys.executable, "-m", "routed.cli.main", "--config", str(site.nodes[1].routed.config))
    site.nodes[1].namespace.run(*argv, "ipam", "release", "--node", "n3")
    assert not [key for key in site.etcd.keys("/calico/ipam/v2/handle/") if key.endswith("tunnel-addr-n3")]
    assert "add up" in site.nodes[1].namespace.run(*argv, "ipam", "check")


def test_ipip_or_why_not() -> None:
    """Where the kernel has it, tunl0 is up with an address; where not, people are told what to load."""
    with Lab() as lab:
        node = Node(lab, 1)
        node.namespace.ip("link add eth0 type bridge", "link set eth0 up")
        node.namespace.address("eth0", "10.0.0.1/24")
        node.routed.put(
            resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "ipipMode": "Always"}),
            resource("Node", "n1", {"bgp": {"asNumber": 64512, "ipv4Address": "10.0.0.1/24"}}),
        )
        node.start()
        told = "the tunnel device tunl0: Operation not supported (the kernel has no ipip: load the module ipip)"

        def settled() -> bool:
            if told in node.routed.problems():
                return True
            found = node.namespace.run("ip", "-br", "addr", "show", "tunl0", check=False)
            return "10.65." in found and "UP" in found

        wait_for(settled, 30, "tunl0 is up, or why not is told", state=lab.report)
        written = yaml.safe_load((node.routed.resources / "Node-n1.yaml").read_text())
        assert written["spec"]["bgp"]["ipv4IPIPTunnelAddr"].startswith("10.65.")
