"""Pods' wires on a real kernel: pairs made into other namespaces through sockets opened there."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from routed.dataplane import pods as wiring_module
from routed.dataplane.exchange import Exchange
from routed.dataplane.pods import (
    GATEWAYS,
    IPV6_SYSCTLS,
    NODE_SYSCTLS,
    PROXY_SYSCTLS,
    PodPort,
    PodWiring,
    pod_sysctls,
)
from routed.errors import KernelError
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.namespaces import NETNS

pytestmark = pytest.mark.lab

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


@dataclass
class Pod:
    """A namespace as a container runtime makes it, and what the plugin opens in it."""

    namespace: Namespace
    descriptor: int
    inside: socket.socket
    port: PodPort


class Node:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = lab.namespace("node", forward=True)
        self.namespace.address("lo", "192.0.2.1/32", "2001:db8::1/128")
        self._opened = contextlib.ExitStack()
        with self.namespace.entered():
            self.wiring = PodWiring()
        self._opened.callback(self.wiring.close)

    def pod(self, number: int, *addresses: str) -> Pod:
        namespace = self.lab.namespace(f"pod{number}")
        for path, value in pod_sysctls(ipv6=True, bridged=False):  # the plugin's part
            namespace.sysctl("net." + path.replace("/", "."), value)
        descriptor = os.open(f"{NETNS}/{namespace.full_name}", os.O_RDONLY)
        self._opened.callback(os.close, descriptor)
        with namespace.entered():
            inside = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._opened.callback(inside.close)
        packed = tuple((V6 if ":" in each else V4, parse_address(each)) for each in addresses)
        mac = bytes((0x0E, 0, 0, 0, 0, number))
        return Pod(namespace, descriptor, inside, PodPort(f"cali{number}", "eth0", mac, packed, 1400))

    def attach(self, pod: Pod) -> int:
        """What a daemon does, routes included."""
        with self.namespace.entered():  # sysctls are seen from where the thread is
            index = self.wiring.attach(pod.port, pod.descriptor, pod.inside)
        for family, _ in pod.port.addresses:
            address = next(each for each in self._texts(pod, family))
            self.namespace.ip(f"route add {address} dev {pod.port.bridge or pod.port.interface}")
        return index

    def _texts(self, pod: Pod, family: Family) -> Iterator[str]:
        for kind, address in pod.port.addresses:
            if kind is family:
                yield socket.inet_ntop(socket.AF_INET6 if family is V6 else socket.AF_INET, address)

    def close(self) -> None:
        self._opened.close()


def has(namespace: Namespace, interface: str) -> bool:
    """Whether a namespace has an interface of this name."""
    return any(
        line.split(": ")[1].split("@")[0] == interface for line in namespace.run("ip", "-o", "link").splitlines()
    )


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab() as lab:
        made = Node(lab)
        yield made
        made.close()


def test_two_pods_reach_each_other_and_their_node_without_a_default_route(node: Node):
    one, two = node.pod(1, "10.65.0.1", "fd00:65::1"), node.pod(2, "10.65.0.2", "fd00:65::2")
    node.attach(one)
    node.attach(two)
    assert one.namespace.pings("10.65.0.2") and two.namespace.pings("10.65.0.1")
    assert one.namespace.pings("fd00:65::2") and two.namespace.pings("fd00:65::1")
    assert node.namespace.pings("10.65.0.1") and node.namespace.pings("fd00:65::2")
    neighbours = one.namespace.run("ip", "neigh", "show", "dev", "eth0")
    assert "169.254.1.1 lladdr ee:ee:ee:ee:ee:ee PERMANENT" in neighbours
    assert "fe80::ecee:eeff:feee:eeee lladdr ee:ee:ee:ee:ee:ee PERMANENT" in neighbours
    assert "10.65.0.1 lladdr 0e:00:00:00:00:01 PERMANENT" in node.namespace.run("ip", "neigh", "show", "dev", "cali1")
    assert "mtu 1400" in one.namespace.run("ip", "link", "show", "eth0")
    assert one.namespace.routes() == {"default": "via 169.254.1.1 dev eth0", "169.254.1.1": "dev eth0 scope link"}


def test_the_first_packet_to_a_pod_that_was_made_arrives(node: Node):
    # before the kernel's link watch has run, the node's end drops what is sent
    for number in range(10):
        pod = node.pod(number, f"10.65.0.{number + 1}")
        with pod.namespace.entered():
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind(("", 7777))
            receiver.settimeout(60)
        with node.namespace.entered(), receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            node.wiring.attach(pod.port, pod.descriptor, pod.inside)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, pod.port.interface.encode())
            sender.sendto(b"first", (f"10.65.0.{number + 1}", 7777))
            assert receiver.recv(10) == b"first"
        state = node.namespace.run("ip", "-o", "link", "show", pod.port.interface)
        assert "state UP" in state, state


def test_the_gateway_is_what_the_kernel_makes_of_the_mac(node: Node):
    node.attach(node.pod(1, "10.65.0.1", "fd00:65::1"))
    wait_for(
        lambda: "inet6 fe80::ecee:eeff:feee:eeee/64" in node.namespace.run("ip", "addr", "show", "cali1"),
        30,
        "the node's end has its link-local address",
    )
    assert socket.inet_ntop(socket.AF_INET6, GATEWAYS[V6]) == "fe80::ecee:eeff:feee:eeee"


def test_the_node_s_end_of_a_pod_without_ipv6_has_none_and_hears_no_router(node: Node):
    node.namespace.sysctl("net.ipv6.conf.default.accept_ra", 1)  # as a node has it
    pod = node.pod(1, "10.65.0.1")
    node.attach(pod)
    assert pod.namespace.pings("192.0.2.1") and node.namespace.pings("10.65.0.1")
    assert "inet6" not in node.namespace.run("ip", "addr", "show", "cali1")
    assert node.namespace.run("cat", "/proc/sys/net/ipv6/conf/cali1/accept_ra").strip() == "0"
    small = node.pod(2, "10.65.0.2")
    small.port = replace(small.port, mtu=1000)  # where the kernel has no IPv6 to be kept quiet
    node.attach(small)
    assert small.namespace.pings("10.65.0.1")


def test_an_address_counts_once_its_packets_are_the_pod_s(node: Node, monkeypatch: pytest.MonkeyPatch):
    """The kernel makes the route to an IPv6 address some time after it has said that the address is there."""
    pod = node.pod(1, "10.65.0.1", "fd00:65::1")
    node.attach(pod)
    pod.namespace.ip("route del local fd00:65::1 dev eth0 table local")
    monkeypatch.setattr(wiring_module, "_CARRIER", 0.1)
    with node.namespace.entered(), pytest.raises(KernelError, match=r"eth0 inside the pod \(fd00:65::1\)"):
        node.wiring._await_addresses(pod.port, Exchange(pod.inside))


@pytest.mark.parametrize("bridge", ["", "br0"])
def test_a_pod_has_ipv6_where_the_node_turns_it_off_for_interfaces_to_come(node: Node, bridge: str):
    node.namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    pod = node.pod(1, "10.65.0.1", "fd00:65::1")
    pod.port = replace(pod.port, bridge=bridge)
    node.attach(pod)
    assert node.namespace.pings("fd00:65::1") and pod.namespace.pings("fd00:65::1")
    with node.namespace.entered():
        assert node.wiring.differences(pod.port, pod.inside) == []


def test_a_second_interface_takes_nothing_from_the_first(node: Node):
    """What comes from its addresses goes out by it, everything else as before, also once it is gone."""
    pod, other = node.pod(1, "10.65.0.1", "fd00:65::1"), node.pod(2, "10.65.0.2", "fd00:65::2")
    node.attach(pod)
    node.attach(other)
    before = pod.namespace.routes()
    packed = ((V4, parse_address("10.65.0.11")), (V6, parse_address("fd00:65::11")))
    mac = bytes.fromhex("0e0000000011")
    second = replace(pod, port=PodPort("cali11", "net1", mac, packed, 1400, secondary=True))
    node.attach(second)
    assert pod.namespace.routes() == before
    for first_address, second_address, target in (
        ("10.65.0.1", "10.65.0.11", "10.65.0.2"), ("fd00:65::1", "fd00:65::11", "fd00:65::2"),
    ):  # fmt: skip
        for source in (first_address, second_address):
            pod.namespace.run("ping", "-n", "-c", "1", "-W", "2", "-I", source, target)
        assert other.namespace.pings(second_address) and other.namespace.pings(first_address)
    with node.namespace.entered():
        assert node.wiring.differences(second.port, second.inside) == []
        assert node.wiring.differences(pod.port, pod.inside) == []
    node.namespace.ip("link del cali11")
    assert other.namespace.pings("10.65.0.1") and other.namespace.pings("fd00:65::1")


@pytest.mark.parametrize("first", ["eth0", "net1"])
def test_a_second_interface_has_routes_of_its_own_whichever_came_first(node: Node, first: str):
    pod, other = node.pod(1, "10.65.0.1", "fd00:65::1"), node.pod(2, "10.65.0.2", "fd00:65::2")
    node.attach(other)
    packed = ((V4, parse_address("10.65.0.11")), (V6, parse_address("fd00:65::11")))
    second = replace(pod, port=PodPort("cali11", "net1", bytes.fromhex("0e0000000011"), packed, 1400, secondary=True))
    for each in (pod, second) if first == "eth0" else (second, pod):
        node.attach(each)
        for address in [*(each.port.addresses)]:
            text = socket.inet_ntop(socket.AF_INET if len(address[1]) == 4 else socket.AF_INET6, address[1])
            assert other.namespace.pings(text), "also alone"
    for address in ("10.65.0.1", "fd00:65::1", "10.65.0.11", "fd00:65::11"):
        assert other.namespace.pings(address)

    def differences(of: Pod) -> list[str]:
        with node.namespace.entered():
            return node.wiring.differences(of.port, of.inside)

    assert differences(pod) == differences(second) == []
    assert "dev eth0" in pod.namespace.routes()["default"]
    for family, address in (("-4", "10.65.0.11"), ("-6", "fd00:65::11")):
        pod.namespace.run("ip", family, "rule", "del", "pref", "1000")
        assert f"the container has no rule for what comes from {address}" in differences(second)
    pod.namespace.run("ip", "rule", "add", "from", "192.0.2.7", "lookup", "77", "pref", "1000")  # somebody's
    with node.namespace.entered():
        node.wiring.attach(second.port, second.descriptor, second.inside)  # as an ADD again does
        node.wiring.attach(second.port, second.descriptor, second.inside)
    node.namespace.ip("route replace 10.65.0.11 dev cali11", "route replace fd00:65::11 dev cali11")
    assert differences(second) == [] and other.namespace.pings("10.65.0.11") and other.namespace.pings("fd00:65::11")
    for family, kept in (("-4", 2), ("-6", 1)):
        rules = [each for each in pod.namespace.run("ip", family, "rule").splitlines() if each.startswith("1000:")]
        assert len(rules) == kept, rules  # none of interfaces that are gone


def test_what_is_not_as_it_was_made_is_named(node: Node):
    pod = node.pod(1, "10.65.0.1", "fd00:65::1")
    node.attach(pod)
    outside, inside = node.namespace, pod.namespace
    gateway6 = socket.inet_ntop(socket.AF_INET6, GATEWAYS[V6])
    mac, node_mac = "0e:00:00:00:00:01", "ee:ee:ee:ee:ee:ee"
    permanent = [(inside, "eth0", each, node_mac) for each in ("169.254.1.1", gateway6)]
    permanent += [(outside, "cali1", each, mac) for each in ("10.65.0.1", "fd00:65::1")]

    def differences() -> list[str]:
        with outside.entered():
            return node.wiring.differences(pod.port, pod.inside)

    assert differences() == []
    inside.ip("addr add 192.0.2.9/32 dev eth0")  # the pod's own business
    inside.ip("route add 198.51.100.0/24 via 169.254.1.1")
    assert differences() == []
    for where, change, back, words in (
        (inside, "addr del 10.65.0.1/32 dev eth0", "addr add 10.65.0.1/32 dev eth0", "no address 10.65.0.1"),
        (inside, "addr del fd00:65::1/128 dev eth0", "addr add fd00:65::1/128 dev eth0", "no address fd00:65::1"),
        (inside, "route del default", "route add default via 169.254.1.1 dev eth0", "no default route by 169.254.1.1"),
        (inside, f"route del default via {gateway6} dev eth0", f"route add default via {gateway6} dev eth0",
         "no default route by fe80"),
        (inside, "neigh del 169.254.1.1 dev eth0", f"neigh add 169.254.1.1 lladdr {node_mac} dev eth0 nud permanent",
         "eth0 has no permanent neighbour 169.254.1.1"),
        (outside, "neigh del 10.65.0.1 dev cali1", f"neigh add 10.65.0.1 lladdr {mac} dev cali1 nud permanent",
         "cali1 has no permanent neighbour 10.65.0.1"),
        (inside, "link set eth0 address 0e:00:00:00:00:77", f"link set eth0 address {mac}", "0e:00:00:00:00:77"),
        (outside, "link set cali1 address 0e:00:00:00:00:88", f"link set cali1 address {node_mac}", "0e:00:00:00:00:88"),
        (inside, "link set eth0 mtu 1300", "link set eth0 mtu 1400", "eth0 in the container has an MTU of 1300, not 1400"),
        (outside, "link set cali1 mtu 1300", "link set cali1 mtu 1400", "cali1 has an MTU of 1300"),
        (outside, "link set cali1 down", "link set cali1 up", "cali1 is down"),
    ):  # fmt: skip
        where.ip(change)
        found = differences()
        assert any(words in each for each in found), (change, found)
        where.ip(back)
        for namespace, device, each, at in permanent:  # they go with a link's state and its MAC address
            namespace.ip(f"neigh replace {each} lladdr {at} dev {device} nud permanent")
        wait_for(lambda: differences() == [], 30, f"all is well after {back}")
    outside.sysctl("net.ipv4.conf.cali1.forwarding", "0")
    assert differences() == ["net/ipv4/conf/cali1/forwarding is 0, not 1"]
    outside.ip("link del cali1")
    assert differences() == ["eth0 in the container is gone"]


@pytest.mark.parametrize("proxy_arp", [False, True])
def test_sysctls_of_the_node_s_end(node: Node, proxy_arp: bool):
    for name in ("accept_ra", "accept_dad"):
        node.namespace.sysctl(f"net.ipv6.conf.default.{name}", 1)  # as a node has it
    pod = node.pod(1, "10.65.0.1", "fd00:65::1")
    pod.port = replace(pod.port, proxy_arp=proxy_arp)
    node.attach(pod)
    for path, value in NODE_SYSCTLS + IPV6_SYSCTLS:
        assert node.namespace.run("cat", "/proc/sys/net/" + path.format("cali1")).strip() == value
    values = {node.namespace.run("cat", "/proc/sys/net/" + path.format("cali1")).strip() for path, _ in PROXY_SYSCTLS}
    assert (values == {"0", "1"}) is proxy_arp


def test_a_leftover_of_the_same_name_is_replaced(node: Node):
    node.namespace.ip("link add cali1 type bridge")
    one = node.pod(1, "10.65.0.1")
    first = node.attach(one)
    two = node.pod(2, "10.65.0.1")
    two.port = replace(two.port, interface="cali1")
    with node.namespace.entered():
        second = node.wiring.attach(two.port, two.descriptor, two.inside)
    assert first != second
    assert not has(one.namespace, "eth0")
    assert has(two.namespace, "eth0")


def test_what_is_taken_inside_is_refused_and_nothing_is_left(node: Node):
    pod = node.pod(1, "10.65.0.1")
    pod.namespace.ip("link add eth0 type bridge")
    with node.namespace.entered(), pytest.raises(KernelError, match="interface cali1 of a pod: File exists"):
        node.wiring.attach(pod.port, pod.descriptor, pod.inside)
    assert not has(node.namespace, "cali1")


def test_what_fails_half_way_leaves_nothing(node: Node):
    pod = node.pod(1, "10.65.0.1", "fd00:65::1")
    pod.namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    with node.namespace.entered(), pytest.raises(KernelError, match="inside the pod"):
        node.wiring.attach(pod.port, pod.descriptor, pod.inside)
    assert not has(node.namespace, "cali1")
    assert not has(pod.namespace, "eth0")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 16, "a b", "{}"])
def test_names_that_are_none(node: Node, name: str):
    pod = node.pod(1, "10.65.0.1")
    pod.port = replace(pod.port, interface=name)
    with node.namespace.entered(), pytest.raises(KernelError, match="cannot be an interface"):
        node.wiring.attach(pod.port, pod.descriptor, pod.inside)


def test_many_at_once(node: Node):
    """Calls come from several threads; none takes the kernel's answer to another."""
    pods = [node.pod(number, f"10.65.0.{number}") for number in range(1, 13)]
    failures: list[Exception] = []

    def attach(pod: Pod) -> None:
        with node.namespace.entered():
            try:
                for _ in range(3):
                    node.wiring.attach(pod.port, pod.descriptor, pod.inside)
                    assert has(node.namespace, pod.port.interface)
                    assert node.wiring.index_of(pod.port.interface) is not None
            except Exception as failure:
                failures.append(failure)

    threads = [threading.Thread(target=attach, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert all(has(pod.namespace, "eth0") for pod in pods)


def test_what_is_asked_without_waiting_for_the_kernel_s_changes(node: Node):
    with node.namespace.entered():
        assert node.wiring.index_of("lo") == 1 and node.wiring.mtu_of("lo") == 65536
        assert node.wiring.index_of("nobody") is None and node.wiring.mtu_of("nobody") == 0


def test_many_are_detached_at_once_and_nothing_else(node: Node):
    pods = [node.pod(number, f"10.65.0.{number}") for number in range(1, 6)]
    indexes = [node.attach(pod) for pod in pods]
    node.namespace.ip("link add other type bridge", "link set other group 5")

    def detach() -> None:
        with node.namespace.entered():
            node.wiring.detach(indexes[0])
            node.wiring.detach_all(indexes[:4])  # one is gone already
            node.wiring.detach_all(indexes[:4])

    thread = threading.Thread(target=detach)
    thread.start()
    thread.join(30)
    assert [has(node.namespace, pod.port.interface) for pod in pods] == [False] * 4 + [True]
    assert has(node.namespace, "other")
    assert not has(pods[1].namespace, "eth0")


def test_detaching_twice(node: Node):
    pod = node.pod(1, "10.65.0.1")
    index = node.attach(pod)

    def detach() -> None:
        with node.namespace.entered():
            node.wiring.detach(index)
            node.wiring.detach(index)

    thread = threading.Thread(target=detach)
    thread.start()
    thread.join(20)
    assert not has(node.namespace, "cali1")
