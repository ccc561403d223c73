"""Nodes behind a route reflector that says it is the next hop itself, with one block for all of them: whose an address is is
known from the block alone, and its tunnel leads to the node that has borrowed it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, missing, resource
from tests.lab.test_cni import DUAL, Node
from tests.lab.test_cni_etcd import NUMBERS, Site

pytestmark = [
    pytest.mark.lab,
    pytest.mark.etcd,
    pytest.mark.skipif(bool(missing("bird")), reason="BIRD is not installed"),
]

#: The reflector programs no route: a packet that follows the next hop it names ends there.
REFLECTOR = """
router id 10.0.0.100;
protocol device {}
template bgp nodes {
  local as 64512; rr client; passive;
  ipv4 { import all; export all; next hop self; };
  ipv6 { import all; export all; next hop self; };
}
""" + "".join(
    f"protocol bgp n{number}{name} from nodes {{ neighbor {net}{number} as 64512; }}\n"
    for number in NUMBERS
    for name, net in (("v4", "10.0.0."), ("v6", "fd00::"))
)
ADDRESSES = ("10.0.0.100", "fd00::100")


class Borrowing(Site):
    """One block in each family, which the first node that asks has."""

    def start(self) -> None:
        self.etcd.start()
        self.reflector = Bird(self.outside, REFLECTOR)
        self.reflector.start()
        self.etcd.put_resource(
            "bgpconfigurations",
            resource("BGPConfiguration", "default", {"asNumber": 64512, "nodeToNodeMeshEnabled": False}),
        )
        for name, address in zip(("v4", "v6"), ADDRESSES, strict=True):
            peer = resource("BGPPeer", name, {"peerIP": address, "asNumber": 64512})
            self.etcd.put_resource("bgppeers", peer)
        for name, cidr in (("v4", "10.65.0.0/26"), ("v6", "fd00:65::/122")):
            self.etcd.put_resource("ippools", resource("IPPool", name, {"cidr": cidr, "vxlanMode": "Always"}))
        for number in NUMBERS:
            bgp = {"ipv4Address": f"10.0.0.{number}/24", "ipv6Address": f"fd00::{number}/64"}
            self.etcd.put_resource("nodes", resource("Node", f"n{number}", {"bgp": bgp}))
            node = self.nodes[number] = Node(self.lab, number)
            self.wire.attach(node.namespace, "eth0", f"10.0.0.{number}/24", f"fd00::{number}/64")
            node.routed.configure(datastore={"type": "etcd", "endpoints": [self.etcd.url]})
        for node in self.nodes.values():
            node.start()

    def unreachable_from_nodes(self) -> list[str]:
        return [
            f"n{number} -> {address}"
            for number in NUMBERS
            for _, addresses in self.pods.values()
            for address in addresses
            if not self.nodes[number].namespace.pings(address)
        ]

    def lenders(self) -> set[str]:
        blocks = [
            json.loads(self.etcd.ctl("get", "--print-value-only", key))
            for key in self.etcd.keys("/calico/ipam/v2/assignment/")
        ]
        return {block["affinity"] for block in blocks}


@pytest.fixture(scope="module")
def site() -> Iterator[Borrowing]:
    with Lab() as lab:
        made = Borrowing(lab)
        made.start()
        for number in NUMBERS:
            made.add(number, f"p{number}")
        yield made


def leads(site: Borrowing, number: int, address: str) -> str:
    """The route to an address in a node's kernel."""
    ipv6 = ":" in address
    return site.nodes[number].namespace.routes(protocol=120, ipv6=ipv6).get(address, "")


def test_the_tunnel_of_a_borrowed_address_leads_to_the_node_that_has_it(site: Borrowing) -> None:
    assert len(site.lenders()) <= 2, "one node has the only block of a family"
    wait_for(lambda: not site.unreachable(), 60, "every pod reaches every other", state=site.unreachable)
    # the nodes too, from their own end of the tunnel, whose address is borrowed as well
    wait_for(lambda: not site.unreachable_from_nodes(), 30, "nodes reach pods", state=site.unreachable_from_nodes)
    for other in NUMBERS:
        for address, device in zip(site.pods[f"p{other}"][1], ("vxlan.calico", "vxlan-v6.calico"), strict=True):
            routes = [leads(site, number, address) for number in NUMBERS if number != other]
            borrowed = [route for route in routes if route]
            assert all(f"dev {device}" in route and "onlink" in route for route in borrowed), routes
            assert not any(via in route for route in borrowed for via in ADDRESSES)
    assert sum(bool(leads(site, 1, each)) for _, addresses in site.pods.values() for each in addresses) >= 2


def test_a_borrowed_address_that_is_given_back_has_no_tunnel(site: Borrowing) -> None:
    seen_from, borrower = next(
        (number, other)
        for number in NUMBERS
        for other in NUMBERS
        if number != other and leads(site, number, site.pods[f"p{other}"][1][0])
    )
    pod, addresses = site.pods.pop(f"p{borrower}")
    assert site.nodes[borrower].runtime.call("DEL", pod, **DUAL).status == 0
    wait_for(
        lambda: not any(leads(site, seen_from, address) for address in addresses), 30, "its routes go",
        state=site.lab.report,
    )  # fmt: skip
    site.add(borrower, f"later-{borrower}")
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)
