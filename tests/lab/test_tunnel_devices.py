"""Tunnel devices on a real kernel: made, left alone where they are right, changed in place, put right, removed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from routed.dataplane.tunnels import TunnelKernel
from routed.desired import Tunnel, TunnelKind, TunnelPeer
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.testing.lab import Lab, Namespace, wait_for

pytestmark = pytest.mark.lab

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def peer(number: int, family: Family = V4) -> TunnelPeer:
    high, low = divmod(number, 256)
    mac = bytes((0x66, 0, 0, 0, high, low))
    if family is V4:
        vtep = gateway = bytes((10, 65, high, low))
        return TunnelPeer(f"n{number}", bytes((10, 1, high, low)), vtep, gateway, mac)
    vtep = parse_address("fd65::")[:14] + bytes((high, low))
    gateway = parse_address("fe80::")[:14] + bytes((high, low))
    return TunnelPeer(f"n{number}", parse_address("fd01::")[:14] + bytes((high, low)), vtep, gateway, mac)


def tunnel(*peers: int, family: Family = V4) -> Tunnel:
    return Tunnel(
        device="vxlan.calico" if family is V4 else "vxlan-v6.calico",
        kind=TunnelKind.VXLAN,
        family=family,
        address=parse_address("10.65.0.1" if family is V4 else "fd65::1"),
        local=parse_address("10.1.0.1" if family is V4 else "fd01::1"),
        mac=bytes.fromhex("660000000001"),
        vni=4096,
        port=4789,
        peers=tuple(peer(number, family) for number in peers),
    )


class Machine:
    def __init__(self, node: Namespace) -> None:
        self.node = node
        with node.entered():
            self.kernel = TunnelKernel()

    def make(self, *tunnels: Tunnel) -> list[str]:
        """What is wrong."""
        return self.kernel.make(tunnels)[1]

    def link(self, name: str = "vxlan.calico") -> Any:
        return json.loads(self.node.run("ip", "-j", "-d", "addr", "show", name))[0]

    def is_settled(self) -> bool:
        """Whether the kernel is done with a device that came: for a second or two its state and its link-local address
        change by themselves."""
        link = self.link()
        local = [each for each in link["addr_info"] if each["scope"] == "link"]
        return (
            link["operstate"] in ("UP", "UNKNOWN") and bool(local) and not any(each.get("tentative") for each in local)
        )

    def forwarding(self, name: str = "vxlan.calico") -> dict[str, str]:
        found = json.loads(self.node.run("bridge", "-j", "fdb", "show", "dev", name))
        return {entry["mac"]: entry["dst"] for entry in found if "dst" in entry}

    def neighbours(self, name: str = "vxlan.calico", family: str = "-4") -> dict[str, str]:
        found = json.loads(self.node.run("ip", "-j", family, "neigh", "show", "dev", name, "nud", "permanent"))
        return {entry["dst"]: entry["lladdr"] for entry in found}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Lab() as lab:
        node = lab.namespace("node")
        node.ip("link add eth0 mtu 9000 type veth peer name eth1", "link set eth0 up", "link set eth1 up")
        node.address("eth0", "10.1.0.1/24", "fd01::1/64")
        made = Machine(node)
        with contextlib.closing(made.kernel):
            yield made


@pytest.mark.parametrize("family", [V4, V6])
def test_nodes_come_move_and_go(machine: Machine, family: Family) -> None:
    name, which = ("vxlan.calico", "-4") if family is V4 else ("vxlan-v6.calico", "-6")

    def agrees(wanted: Tunnel) -> None:
        assert machine.make(wanted) == []
        assert machine.forwarding(name) == {each.mac.hex(":"): format_address(each.address) for each in wanted.peers}
        assert machine.neighbours(name, which) == {
            format_address(each.gateway): each.mac.hex(":") for each in wanted.peers
        }

    agrees(tunnel(2, 3, family=family))
    index = machine.link(name)["ifindex"]
    agrees(tunnel(3, 4, 5, family=family))
    moved = tunnel(3, 4, 5, family=family)
    agrees(replace(moved, peers=(replace(moved.peers[0], address=peer(99, family).address), *moved.peers[1:])))
    agrees(replace(moved, peers=(replace(moved.peers[0], mac=bytes.fromhex("660000000099")), *moved.peers[1:])))
    agrees(tunnel(*range(2, 602), family=family))
    agrees(tunnel(family=family))
    assert machine.link(name)["ifindex"] == index
    assert machine.make() == [] and name not in machine.node.run("ip", "link")


def test_what_is_right_is_left_alone(machine: Machine) -> None:
    wanted = tunnel(2, 3)
    assert machine.make(wanted) == []
    wait_for(machine.is_settled, 30, "the device has settled", state=machine.link)
    watched = machine.node.start("monitor", "ip", "-o", "monitor", "link", "address", "neigh")
    machine.node.ip("link set eth1 mtu 7000")
    wait_for(
        lambda: "eth1" in watched.text() or not machine.node.ip("link set eth1 mtu 7001", "link set eth1 mtu 7000"),
        30,
        "it watches",
    )
    assert machine.make(wanted) == machine.make(wanted) == []
    machine.node.ip("link set eth1 mtu 8000")
    wait_for(lambda: "mtu 8000" in watched.text(), 30, "what came later is seen", state=watched.text)
    assert "vxlan.calico" not in watched.text()


def test_mtu_and_mac_change_in_place_and_the_rest_anew(machine: Machine) -> None:
    assert machine.make(tunnel(2)) == []
    first = machine.link()
    assert first["mtu"] == 8950
    assert machine.make(replace(tunnel(2), mtu=1400, mac=bytes.fromhex("660000000077"))) == []
    assert (machine.link()["mtu"], machine.link()["address"]) == (1400, "66:00:00:00:00:77")
    assert machine.link()["ifindex"] == first["ifindex"]
    assert machine.make(replace(tunnel(2), address=parse_address("10.65.0.9"))) == []
    addresses = [each["local"] for each in machine.link()["addr_info"] if each["family"] == "inet"]
    assert addresses == ["10.65.0.9"] and machine.link()["ifindex"] == first["ifindex"]
    for change in ({"vni": 7}, {"port": 8472}, {"local": parse_address("10.1.0.8")}):
        before = machine.link()["ifindex"]
        assert machine.make(replace(tunnel(2), **change)) == []  # type: ignore[arg-type]
        assert machine.link()["ifindex"] != before
        assert "UP" in machine.link()["flags"] and len(machine.forwarding()) == len(machine.neighbours()) == 1


@pytest.mark.parametrize(("family", "flag"), [(V4, "-4"), (V6, "-6")])
def test_another_mac_address_costs_no_neighbour(machine: Machine, family: Family, flag: str) -> None:
    """The kernel forgets those of a link whose address changes, by whomever."""
    wanted = tunnel(2, 3, family=family)
    assert machine.make(wanted) == []
    before = machine.neighbours(wanted.device, flag)
    assert len(before) == 2
    assert machine.make(replace(wanted, mac=bytes.fromhex("660000000077"))) == []
    assert machine.neighbours(wanted.device, flag) == before
    machine.node.ip(f"link set {wanted.device} address 66:00:00:00:00:99")
    assert machine.make(wanted) == []
    assert (
        machine.neighbours(wanted.device, flag) == before
        and machine.link(wanted.device)["address"] == "66:00:00:00:00:01"
    )


def test_felix_s_own_device_is_taken_over(machine: Machine) -> None:
    machine.node.ip(
        "link add vxlan.calico address 66:00:00:00:00:01 mtu 1450 type vxlan id 4096 dstport 4789 local 10.1.0.1 dev eth0"
        " nolearning",
        "link set vxlan.calico up",
        "addr add 10.65.0.1/32 dev vxlan.calico",
        "neigh add 10.65.0.2 lladdr 66:00:00:00:00:02 dev vxlan.calico nud permanent",
    )
    machine.node.run("bridge", "fdb", "add", "66:00:00:00:00:02", "dev", "vxlan.calico", "dst", "10.1.0.2", "self")
    wait_for(machine.is_settled, 30, "the device has settled", state=machine.link)
    before = machine.link()
    assert machine.make(replace(tunnel(2, 3), mtu=1450)) == []
    assert machine.link() == before and set(machine.neighbours()) == {"10.65.0.2", "10.65.0.3"}
    assert machine.forwarding() == {"66:00:00:00:00:02": "10.1.0.2", "66:00:00:00:00:03": "10.1.0.3"}


def test_what_others_did_is_put_right(machine: Machine) -> None:
    assert machine.make(tunnel(2, 3)) == []
    machine.node.ip("link set vxlan.calico down", "addr add 10.65.9.9/32 dev vxlan.calico")
    machine.node.run("bridge", "fdb", "del", "66:00:00:00:00:02", "dev", "vxlan.calico", "dst", "10.1.0.2", "self")
    machine.node.run("bridge", "fdb", "add", "66:00:00:00:00:0a", "dev", "vxlan.calico", "dst", "10.1.0.10", "self")
    assert machine.make(tunnel(2, 3)) == []
    assert "UP" in machine.link()["flags"]
    assert [each["local"] for each in machine.link()["addr_info"] if each["family"] == "inet"] == ["10.65.0.1"]
    assert set(machine.forwarding()) == {"66:00:00:00:00:02", "66:00:00:00:00:03"}
    assert len(machine.neighbours()) == 2


def test_a_stranger_of_that_name_is_reported_and_left(machine: Machine) -> None:
    machine.node.ip("link add vxlan.calico type veth peer name other")
    (problem,) = machine.make(tunnel(2))
    assert problem == (
        "the tunnel device vxlan.calico: File exists (an interface of another kind has this name (veth))"
    )
    assert machine.make() == [] and "vxlan.calico" in machine.node.run("ip", "link")


def test_a_stranger_with_the_same_number_is_named(machine: Machine) -> None:
    machine.node.ip("link add flannel.1 type vxlan id 4096 dstport 4789 local 10.0.0.1 dev eth0")
    (problem,) = machine.make(tunnel(2))
    assert problem == (
        "the tunnel device vxlan.calico: File exists (flannel.1 has VNI 4096 at port 4789: remove it, or set another"
        " vxlanVNI or vxlanPort in FelixConfiguration)"
    )
    machine.node.ip("link del flannel.1")
    assert machine.make(tunnel(2)) == []


def test_a_node_address_on_the_loopback_takes_the_smallest_uplink(machine: Machine) -> None:
    machine.node.ip("addr add 10.9.9.9/32 dev lo", "link set eth1 mtu 4000")
    assert machine.make(replace(tunnel(2), local=parse_address("10.9.9.9"))) == []
    assert machine.link()["mtu"] == 3950


def test_an_uplink_too_small_for_ipv6_keeps_ipv4_from_nothing(machine: Machine) -> None:
    assert machine.make(tunnel(2), tunnel(2, family=V6)) == []
    machine.node.ip("link set eth0 mtu 1300")
    (problem,) = machine.make(tunnel(2), tunnel(2, family=V6))
    assert problem == (
        "the tunnel device vxlan-v6.calico: its MTU would be 1230, and IPv6 takes 1280: raise the uplink's to 1350"
    )
    assert machine.link()["mtu"] == 1250
