"""A node that begins while etcd is away is guarded by the rules it knew last: those in the kernel, or those it saved."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import resource
from tests.lab import stranger
from tests.lab.etcd import Etcd
from tests.lab.test_cni import Node

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

POD = "10.65.0.77"
GUARDED = "the packets of a tunnel are let in from other nodes"


class Site:
    """A node with a pool of VXLAN and a policy for itself, a host that is no node, and etcd on that."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.outside = lab.namespace("outside")
        self.node = Node(lab, 1)
        wire = lab.segment("wire")
        wire.attach(self.outside, "eth0", "10.0.0.254/24")
        wire.attach(self.node.namespace, "eth0", "10.0.0.1/24")
        self.etcd = Etcd(self.outside, "10.0.0.254")
        self.etcd.start()
        for kind, made in (
            ("bgpconfigurations", resource("BGPConfiguration", "default", {"asNumber": 64512})),
            ("ippools", resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "vxlanMode": "Always"})),
            ("nodes", resource("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}})),
            ("nodes", resource("Node", "n2", {"bgp": {"ipv4Address": "10.0.0.2/24"}})),
            ("hostendpoints", resource("HostEndpoint", "n1-eth0", {"node": "n1", "interfaceName": "eth0"})),
            (
                "globalnetworkpolicies",
                resource(
                    "GlobalNetworkPolicy",
                    "default.pings",
                    {
                        "selector": "all()",
                        "types": ["Ingress"],
                        "ingress": [{"action": "Deny", "protocol": "ICMP"}, {"action": "Allow"}],
                    },
                ),
            ),
        ):
            self.etcd.put_resource(kind, made)
        self.node.routed.configure(datastore={"type": "etcd", "endpoints": [self.etcd.url]})
        self.node.start()
        wait_for(lambda: stranger.device(self.node.namespace), 30, "the tunnel's device", state=lab.report)
        wait_for(self.is_guarded, 30, GUARDED, state=lab.report)

    def rules(self) -> str:
        """The rules with their handles, without what they counted."""
        return self.node.namespace.run("nft", "-s", "-a", "list", "table", "inet", "routed", check=False)

    def is_guarded(self) -> bool:
        """The node's policy is in force."""
        return "udp dport 4789" in self.rules() and not self.outside.pings("10.0.0.1", timeout=0.3)

    def received(self) -> int:
        """Packets the tunnel's device has had from a stranger's packet."""
        node = self.node.namespace
        with stranger.tunnel(self.outside, "10.0.0.254", node, "10.0.0.1", POD):
            before = stranger.received(node)
            assert not self.outside.pings(POD, timeout=0.3)
            return stranger.received(node) - before


@pytest.fixture
def site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


def test_a_boot_makes_the_rules_from_what_was_saved(site: Site) -> None:
    kernel = site.node.namespace
    assert site.received() == 0
    site.node.routed.kill()
    site.etcd.kill()
    kernel.run("nft", "flush", "ruleset")
    kernel.ip("link del vxlan.calico")
    assert site.outside.pings("10.0.0.1")
    site.node.routed.start()
    wait_for(lambda: stranger.device(kernel), 30, "the tunnel's device", state=site.lab.report)
    assert "udp dport 4789" in site.rules(), "the rules are there before it"
    assert site.is_guarded() and site.received() == 0
    assert not site.node.is_ready(), "pods wait for the datastore itself"
    site.etcd.start()
    wait_for(site.node.is_ready, 60, "the node takes pods", state=site.lab.report)
    stays(site.is_guarded, 1.0, GUARDED)
    assert site.received() == 0


def test_a_tunnel_that_was_not_saved_yet_stays(site: Site) -> None:
    """The daemon was killed a moment after it had made the device: whether a pool wants it only etcd can tell."""
    site.node.routed.kill()
    site.etcd.kill()
    kernel, made = site.node.namespace, stranger.device(site.node.namespace)
    assert made is not None
    (saved,) = [
        path for path in (site.node.routed.folder / "state").iterdir() if b"VXLANTunnelAddr" in path.read_bytes()
    ]
    saved.write_bytes(b"".join(line for line in saved.open("rb") if b"VXLANTunnelAddr" not in line))
    site.node.routed.start()
    said = "starting with what was last saved"
    wait_for(lambda: said in site.node.routed.log(), 30, said, state=site.lab.report)
    same = lambda: (stranger.device(kernel) or {}).get("ifindex") == made["ifindex"]  # noqa: E731
    stays(same, 3.0, "the device is there")
    site.etcd.start()
    wait_for(site.node.is_ready, 60, "the node takes pods", state=site.lab.report)
    stays(same, 1.0, "the device is there")
    assert site.received() == 0


def test_the_rules_of_before_are_left_alone_while_there_are_any(site: Site) -> None:
    site.node.routed.kill()
    site.etcd.kill()
    before = site.rules()
    site.node.routed.start()
    said = "starting with what was last saved"
    wait_for(lambda: said in site.node.routed.log(), 30, said, state=site.lab.report)
    stays(lambda: site.rules() == before, 1.0, "the rules are those of before")
    site.node.namespace.run("nft", "flush", "ruleset")
    wait_for(site.is_guarded, 30, GUARDED, state=site.lab.report)
    assert site.received() == 0
