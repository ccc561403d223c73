"""Pods at a bridge: ports of it that reach each other by the node alone, beside routed pods and those of another node.

Real packets: what is allowed and what policy forbids, stolen addresses, stolen MAC addresses, frames past the gateway.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echoes import echoes
from routed.testing.routers import resource
from tests.lab.test_cni import DUAL, Answer
from tests.lab.test_cni_etcd import TCP_SERVER, Site

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

BRIDGED = {**DUAL, "attach": "bridge"}
GATEWAYS = ("169.254.1.1", "fe80::ecee:eeff:feee:eeee")
NODE_MAC = "ee:ee:ee:ee:ee:ee"
PODS = {"a": (1, BRIDGED), "b": (1, BRIDGED), "c": (1, DUAL), "d": (2, BRIDGED)}


class Bridged(Site):
    def attach(self, name: str, number: int, **values: Any) -> Answer:
        namespace = self.lab.namespace(name)
        labels = {"cni": {"labels": [{"key": "pod", "value": name}]}}
        answer = self.nodes[number].runtime.add(namespace, args=labels, **values)
        self.pods[name] = (namespace, answer.addresses)
        return answer

    def of(self, name: str) -> tuple[Namespace, str, str]:
        namespace, (ipv4, ipv6) = self.pods[name]
        return namespace, ipv4, ipv6

    def port(self, name: str) -> str:
        """The node's interface of a pod."""
        ipv4 = self.pods[name][1][0]
        endpoints = self.etcd.ctl(
            "get", "--prefix", "--print-value-only", "/calico/resources/v3/projectcalico.org/workload"
        )
        found = [json.loads(line) for line in endpoints.splitlines() if f'"{ipv4}/32"' in line]
        return str(found[0]["spec"]["interfaceName"])


@pytest.fixture(scope="module")
def site() -> Iterator[Bridged]:
    with Lab() as lab:
        made = Bridged(lab)
        made.start()
        for name, (number, values) in PODS.items():
            made.attach(name, number, **values)
        wait_for(lambda: not made.unreachable(), 30, "every pod reaches every other", state=made.unreachable)
        yield made


def bridge(node: Namespace, *words: str) -> Any:
    return json.loads(node.run("bridge", "-j", "-d", *words))


def test_pods_are_guarded_ports_of_the_bridge(site: Bridged) -> None:
    node = site.nodes[1].namespace
    ports = {each["ifname"]: each for each in bridge(node, "link")}
    assert set(ports) == {site.port("a"), site.port("b")}
    for each in ports.values():
        assert each["master"] == "routed0" and each["isolated"] and each["locked"] and not each["learning"]
    routes = node.routes(protocol=120)
    assert "dev routed0" in routes[site.of("a")[1]] and f"dev {site.port('c')}" in routes[site.of("c")[1]]
    assert not node.run("sh", "-c", f"ip -6 address show dev {site.port('a')}").strip()
    for name in "ab":
        namespace, ipv4, _ = site.of(name)
        assert namespace.run("ip", "-4", "-o", "address", "show", "eth0").split()[3] == f"{ipv4}/32"


def test_every_pod_reaches_every_other_without_a_loss(site: Bridged) -> None:
    asked = {
        f"{source} > {address}": echoes(site.pods[source][0], address, 0.02)
        for source, target in permutations(site.pods, 2)
        for address in site.pods[target][1]
    }
    assert {what: lost for what, each in asked.items() if (lost := each.end()[1])} == {}
    for address in ("192.0.2.9", "2001:db8::9"):
        assert site.pods["a"][0].pings(address)  # masqueraded as any pod's


def test_policy_is_asked_between_two_pods_of_one_bridge(site: Bridged) -> None:
    a, *of_a = site.of("a")
    b, *of_b = site.of("b")
    c, d = site.pods["c"][0], site.pods["d"][0]
    allow = [{"action": "Allow", "source": {"selector": "pod == 'c'"}}]
    inward = resource("GlobalNetworkPolicy", "in", {"selector": "pod == 'b'", "types": ["Ingress"], "ingress": allow})
    outward = resource("GlobalNetworkPolicy", "out", {"selector": "pod == 'a'", "types": ["Egress"], "egress": []})
    try:
        site.etcd.put_resource("globalnetworkpolicies", inward)
        for address in of_b:
            wait_for(lambda address=address: not a.pings(address), 30, "a may not, from the same bridge")
            assert not d.pings(address), "d may not, from another node"
            assert c.pings(address), "c may, from beside the bridge"
        assert all(b.pings(address) for address in of_a), "b itself may"
        site.etcd.put_resource("globalnetworkpolicies", outward)
        for address in of_b + site.pods["c"][1] + site.pods["d"][1]:
            wait_for(lambda address=address: not a.pings(address), 30, "a says nothing to anybody")
        assert all(c.pings(address) for address in of_a), "but answers"
        said = json.loads(
            site.nodes[1].namespace.run(
                *_ctl(site, "policy", "explain", "--from", of_a[0], "--to", of_b[0], "--port", "80", "--json")
            )
        )
        assert said["verdict"] == "deny" and '"differences": []' in json.dumps(said), said
    finally:
        for name in ("in", "out"):
            site.routedctl("delete", "globalnetworkpolicy", name)
    wait_for(lambda: not site.unreachable(), 30, "and all is open again", state=site.unreachable)


def _ctl(site: Bridged, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "routed.cli.main", "--config", str(site.nodes[1].routed.config), *words)


def test_nobody_speaks_with_the_address_of_another(site: Bridged) -> None:
    a, _, own_ipv6 = site.of("a")
    _, *of_b = site.of("b")
    c, *of_c = site.of("c")
    heard = c.start("hearing", "tcpdump", "-nli", "eth0", "icmp or icmp6")
    wait_for(lambda: "listening on" in heard.text(), 30, "it listens")
    mac = mac_of(a)
    (foreign,) = {
        each["mac"]
        for each in bridge(site.nodes[1].namespace, "fdb", "show", "dev", site.port("b"))
        if each.get("state") == "static"
    }
    for own, stolen in zip(of_b, of_b, strict=True):
        a.address("lo", f"{stolen}/{128 if ':' in stolen else 32}")
        target = of_c[":" in stolen]
        assert own == stolen and not a.pings(target, source=stolen), "the address of b with the MAC address of a"
        a.ip("link set eth0 down", f"link set eth0 address {foreign}", "link set eth0 up", *_gateways(own_ipv6))
        assert not a.pings(target, source=stolen), "both of b"
        assert not a.pings(target), "the MAC address of b with the address of a"
        a.ip("link set eth0 down", f"link set eth0 address {mac}", "link set eth0 up", *_gateways(own_ipv6))
        a.ip(f"address del {stolen}/{128 if ':' in stolen else 32} dev lo")
    wait_for(lambda: all(a.pings(each) for each in of_c), 30, "with its own it speaks")
    assert not [line for line in heard.text().splitlines() if any(f" {stolen} > " in line for stolen in of_b)]
    heard.kill()


def mac_of(pod: Namespace) -> str:
    return str(json.loads(pod.run("ip", "-j", "link", "show", "eth0"))[0]["address"])


def _gateways(ipv6: str) -> list[str]:
    """What a pod loses when its interface goes down."""
    return [
        f"address replace {ipv6}/128 dev eth0 nodad",
        *(f"neigh replace {each} lladdr {NODE_MAC} dev eth0 nud permanent" for each in GATEWAYS),
        "route replace 169.254.1.1 dev eth0", "route replace default via 169.254.1.1",
        f"route replace default via {GATEWAYS[1]} dev eth0",
    ]  # fmt: skip


def test_frames_past_the_gateway_reach_no_neighbour(site: Bridged) -> None:
    """Who knows the MAC address of another port, and asks the bridge for it, is not let through: policy would not hear."""
    a, *_ = site.of("a")
    b, ipv4, _ = site.of("b")
    mac = mac_of(b)
    heard = b.start("hearing", "tcpdump", "-nlei", "eth0", "icmp")
    wait_for(lambda: "listening on" in heard.text(), 30, "it listens")
    own = mac_of(a)
    a.ip(f"route add {ipv4} dev eth0", f"neigh replace {ipv4} lladdr {mac} dev eth0 nud permanent")
    assert not a.pings(ipv4)
    a.ip(f"neigh del {ipv4} dev eth0", f"route del {ipv4} dev eth0")
    wait_for(lambda: a.pings(ipv4), 30, "by the gateway it is reached")
    assert own not in heard.text()
    heard.kill()


SERVICES = ("10.96.0.10", "fd00:96::10")
OF_BRIDGES = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], 80), 3).recv(100).decode())"


@pytest.mark.skipif(
    not os.path.exists("/proc/sys/net/bridge"), reason="the kernel has no br_netfilter, or it is not loaded"
)
def test_services_of_the_same_bridge_take_bridges_that_do_not_translate_and_status_says_so(site: Bridged) -> None:
    """As kube-proxy and portmap translate: the destination, and the source too of who is its own server."""
    node, routed = site.nodes[1].namespace, site.nodes[1].routed
    (a, *of_a), (b, *of_b), c = site.of("a"), site.of("b"), site.pods["c"][0]
    server = b.start("server", sys.executable, "-c", TCP_SERVER)
    wait_for(lambda: "listening" in server.text(), 30, "the server listens")
    for family, service, address in zip(("ip", "ip6"), SERVICES, of_b, strict=True):
        to = f"[{address}]:8080" if family == "ip6" else f"{address}:8080"
        node.run(
            "nft",
            f"add table {family} services;"
            f"add chain {family} services pre {{ type nat hook prerouting priority -100; }};"
            f"add rule {family} services pre {family} daddr {service} tcp dport 80 dnat to {to};"
            f"add chain {family} services post {{ type nat hook postrouting priority 100; }};"
            f"add rule {family} services post {family} saddr {address} {family} daddr {address} masquerade",
        )
    closed = resource("GlobalNetworkPolicy", "in", {"selector": "pod == 'b'", "types": ["Ingress"], "ingress": []})

    def reaches(source: Namespace, service: str) -> str:
        return source.run(sys.executable, "-c", CONNECT, service, check=False).strip()

    def told() -> bool:
        return "a pod at a bridge reaches no Service" in routed.ctl("status")

    try:
        node.run("sysctl", "-w", *(f"{each}=1" for each in OF_BRIDGES))
        wait_for(told, 60, "status tells of it", state=lambda: routed.ctl("status"))
        assert all(each in routed.ctl("status") for each in OF_BRIDGES)
        assert all(reaches(c, service) for service in SERVICES), "who is beside the bridge is not concerned"
        assert not any(reaches(a, service) for service in SERVICES), "else status would complain of nothing"
        node.run("sysctl", "-w", *(f"{each}=0" for each in OF_BRIDGES))
        for own, service in zip(of_a, SERVICES, strict=True):
            assert reaches(a, service) == own
            assert reaches(b, service), "and itself"
        wait_for(lambda: not told(), 60, "status tells of it no more", state=lambda: routed.ctl("status"))
        site.etcd.put_resource("globalnetworkpolicies", closed)
        for service in SERVICES:
            wait_for(
                lambda service=service: not reaches(a, service), 30, "policy is asked of it", state=site.lab.report
            )
    finally:
        site.routedctl("delete", "globalnetworkpolicy", "in", check=False)
        node.run("sysctl", "-w", *(f"{each}=1" for each in OF_BRIDGES))
        for family in ("ip", "ip6"):
            node.run("nft", "delete", "table", family, "services")
        server.kill()
    wait_for(lambda: not site.unreachable(), 30, "and all is open again", state=site.unreachable)


def test_a_restart_loses_nothing_and_check_sees_what_is_wrong(site: Bridged) -> None:
    node, (a, *_), of_b = site.nodes[1], site.of("a"), site.pods["b"][1]
    asked = [echoes(a, address) for address in of_b]
    node.routed.kill()
    node.start()
    assert [each.end()[1] for each in asked] == [[], []]
    made = node.runtime.add(a, **BRIDGED)  # again: the same
    assert made.addresses == site.pods["a"][1]
    assert node.runtime.call("CHECK", a, previous=made.output, **BRIDGED).status == 0

    def is_seen() -> bool:
        """Unless the daemon, which keeps the port, was faster than the call."""
        node.namespace.ip(f"link set {site.port('a')} nomaster")
        answer = node.runtime.call("CHECK", a, previous=made.output, **BRIDGED)
        return answer.status != 0 and "is no port of routed0" in answer.output["msg"]

    wait_for(is_seen, 60, "CHECK sees what is wrong", state=site.lab.report)
    site.pods["a"] = (a, node.runtime.add(a, **BRIDGED).addresses)  # which puts it right
    wait_for(lambda: not site.unreachable(), 30, "all is as it was", state=site.unreachable)


def test_what_cannot_be_is_refused_and_what_goes_leaves_nothing(site: Bridged) -> None:
    node = site.nodes[1]
    namespace = site.lab.namespace("e")
    answer = node.runtime.call("ADD", namespace, **{**BRIDGED, "bridge": "eth0"})
    assert answer.status and "begins with routed" in answer.output["msg"], answer.output
    node.namespace.ip("link add routed-x type bridge")
    answer = node.runtime.call("ADD", namespace, **{**BRIDGED, "bridge": "routed-x"})
    assert answer.status and "somebody else has this name" in answer.output["msg"], answer.output
    answer = node.runtime.call("ADD", namespace, **{**DUAL, "bridge": "routed-b7"})
    assert (answer.status, answer.output["code"]) == (1, 7)
    assert len(node.interfaces()) == 3 and "routed-b7" not in node.namespace.run("ip", "-br", "link")
    made = site.attach("f", 1, **{**BRIDGED, "bridge": "routed-b7"})
    wait_for(lambda: not site.unreachable(), 30, "another bridge does as well", state=site.unreachable)
    neighbours = node.namespace.run("ip", "neigh", "show", "dev", "routed-b7") + node.namespace.run(
        "ip", "-6", "neigh", "show", "dev", "routed-b7"
    )
    assert all(address in neighbours for address in made.addresses)
    port = site.port("f")
    assert node.runtime.call("DEL", site.pods.pop("f")[0], **{**BRIDGED, "bridge": "routed-b7"}).status == 0
    wait_for(lambda: port not in node.interfaces(), 30, "its interface goes")
    neighbours = node.namespace.run("ip", "neigh", "show", "dev", "routed-b7") + node.namespace.run(
        "ip", "-6", "neigh", "show", "dev", "routed-b7"
    )
    assert not any(address in neighbours for address in made.addresses)
    wait_for(lambda: f"{made.addresses[0]}" not in node.namespace.routes(protocol=120), 30, "and its route")

    def rules() -> str:
        return node.namespace.run("nft", "list", "table", "inet", "routed")

    wait_for(lambda: port not in (now := rules()) and made.addresses[0] not in now, 30, "and its rules", state=rules)
