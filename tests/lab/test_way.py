"""Which way a packet goes, of a real kernel with two uplinks, rules by source and port, and a group of gateways."""

from __future__ import annotations

from collections.abc import Callable
from errno import EHOSTUNREACH, ENETUNREACH

import pytest

from routed.dataplane.way import way_of
from routed.desired import Gateway
from routed.errors import KernelError
from routed.net.addresses import parse_address
from routed.netlink.routes import Flow
from routed.testing.lab import Lab

pytestmark = pytest.mark.lab

Ask = Callable[..., Gateway | None]
INDEX = {"eth0": 101, "eth1": 102, "pod": 103}


@pytest.fixture(scope="module")
def ask(lab: Lab) -> Ask:
    node = lab.namespace("node")
    for name, index in INDEX.items():
        node.ip(f"link add {name} index {index} type veth peer name {name}-peer")
        node.ip(f"link set {name} up", f"link set {name}-peer up")
    for number in (0, 1):
        node.ip(f"addr add 192.0.{number}.1/24 dev eth{number}")
        node.ip(f"addr add fd00:{number}::1/64 dev eth{number} nodad")
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    node.ip("route add 10.65.0.1 dev pod")
    node.ip("route add default via 192.0.0.254")
    node.ip("route add default via 192.0.1.254 table 7")
    node.ip("rule add from 10.65.0.1 lookup 7")
    node.ip("rule add ipproto udp dport 53 lookup 7")
    node.ip("route add 203.0.113.0/24 nexthop via 192.0.0.254 nexthop via 192.0.1.254")
    node.ip("route add blackhole 198.51.100.0/24")
    node.ip("route add fd00:9::/64 via fd00:1::ff")

    def asked(destination: str, source: str = "", incoming: str = "", *numbers: int) -> Gateway | None:
        with node.entered():
            flow = Flow(
                parse_address(destination), parse_address(source) if source else b"", INDEX.get(incoming, 0), *numbers
            )
            return way_of(flow)

    return asked


def gateway(address: str, name: str) -> Gateway:
    return Gateway(parse_address(address) if address else b"", INDEX[name])


def test_what_is_forwarded_goes_by_the_rules_for_who_sends_it(ask: Ask):
    assert ask("10.99.0.1") == gateway("192.0.0.254", "eth0")
    assert ask("10.99.0.1", "10.65.0.1", "pod") == gateway("192.0.1.254", "eth1")
    assert ask("10.99.0.1", "192.0.0.1") == gateway("192.0.0.254", "eth0")


def test_rules_by_port_and_protocol_count(ask: Ask):
    assert ask("10.99.0.1", "", "", 17, 32768, 53) == gateway("192.0.1.254", "eth1")
    assert ask("10.99.0.1", "", "", 6, 32768, 53) == gateway("192.0.0.254", "eth0")
    assert ask("10.99.0.1", "", "", 132, 32768, 53) == gateway("192.0.0.254", "eth0"), "it has none of SCTP's"


def test_of_a_group_it_is_the_one_that_is_taken(ask: Ask):
    assert ask("203.0.113.9") in (gateway("192.0.0.254", "eth0"), gateway("192.0.1.254", "eth1"))


def test_what_is_on_a_network_of_the_node_has_no_gateway(ask: Ask):
    assert ask("192.0.1.77") == gateway("", "eth1")
    assert ask("fd00:1::77") == gateway("", "eth1")
    assert ask("fd00:9::77") == gateway("fd00:1::ff", "eth1")


def test_what_stays_here_has_no_way_out(ask: Ask):
    assert ask("192.0.0.1") is None


@pytest.mark.parametrize("destination", ["198.51.100.1", "fd00:77::1"])
def test_what_goes_nowhere_is_said_to(ask: Ask, destination: str):
    with pytest.raises(KernelError) as caught:
        ask(destination)
    assert caught.value.errno in (ENETUNREACH, EHOSTUNREACH, 22)
