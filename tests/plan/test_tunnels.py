"""Which tunnel devices a node has, whom they reach, and which routes lead into them."""

from __future__ import annotations

from typing import Any

import yaml

from routed.desired import Tunnel, TunnelKind, TunnelPeer, tunnel_overhead
from routed.model.resources import ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.plan.planner import Planner
from routed.plan.types import Plan, PlanSettings
from routed.rib.program import Programming

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST

CLUSTER = """
- {kind: IPPool, metadata: {name: v4}, spec: {cidr: 10.65.0.0/16, vxlanMode: CrossSubnet}}
- {kind: IPPool, metadata: {name: v6}, spec: {cidr: "fd65::/64", vxlanMode: Always}}
- kind: Node
  metadata: {name: n1}
  spec: {bgp: {ipv4Address: 10.1.0.1/24, ipv6Address: "fd01::1/64"},
         ipv4VXLANTunnelAddr: 10.65.1.0, ipv6VXLANTunnelAddr: "fd65::1:0"}
- kind: Node
  metadata: {name: n2}
  spec: {bgp: {ipv4Address: 10.1.0.2/24, ipv6Address: "fd01::2/64"},
         ipv4VXLANTunnelAddr: 10.65.2.0, ipv6VXLANTunnelAddr: "fd65::2:0", vxlanTunnelMACAddr: "02:00:00:00:00:02"}
- kind: Node
  metadata: {name: n3}
  spec: {bgp: {ipv4Address: 10.2.0.3/24}, ipv4VXLANTunnelAddr: 10.65.3.0}
- {kind: Node, metadata: {name: n4}, spec: {bgp: {ipv4Address: 10.2.0.4/24}}}
"""


class Node1:
    def __init__(self, *, own_workloads: bool = True) -> None:
        self.planner = Planner("n1", PlanSettings(own_workloads=own_workloads))
        self.apply(CLUSTER)

    def apply(self, text: str) -> None:
        for manifest in yaml.safe_load(text):
            resource = parse_manifest({"apiVersion": "projectcalico.org/v3", **manifest})
            self.planner.update(Update(resource.key, resource))

    def remove(self, kind: str, name: str) -> None:
        self.planner.update(Update(ResourceKey(kind, name), None))

    @property
    def plan(self) -> Plan:
        return self.planner.plan()

    def tunnel(self, device: str) -> Tunnel:
        (found,) = [each for each in self.plan.tunnels or () if each.device == device]
        return found

    def way(self, family: Family, prefix: str, next_hop: str) -> str | bytes | None:
        """Where a route leads: `direct`, the gateway inside the tunnel, or None: nowhere."""
        policy = self.plan.kernel.policy[family]
        rule = policy.judge(parse_prefix(prefix)[1])
        hop = parse_address(next_hop)
        if rule is None or not policy.tunnels(rule, hop):
            return "direct"
        return policy.way(rule, hop) or None


def test_the_devices_and_whom_they_reach() -> None:
    node = Node1()
    v4 = node.tunnel("vxlan.calico")
    assert (v4.kind, v4.vni, v4.port, v4.mtu) == (TunnelKind.VXLAN, 4096, 4789, 0)
    assert (v4.address, v4.local) == (parse_address("10.65.1.0"), parse_address("10.1.0.1"))
    assert v4.mac == bytes.fromhex("6640b3eab63f")
    second, third = v4.peers
    gateway = parse_address("10.65.2.0")
    assert second == TunnelPeer("n2", parse_address("10.1.0.2"), gateway, gateway, bytes.fromhex("020000000002"))
    assert third.node == "n3" and third.mac[:1] == b"f"
    v6 = node.tunnel("vxlan-v6.calico")
    assert v6.local == parse_address("fd01::1") and v6.mac != v4.mac
    (only,) = v6.peers
    assert only.vtep == parse_address("fd65::2:0")
    first, second_half = only.mac[:3], only.mac[3:]
    interface = bytes((first[0] ^ 2,)) + first[1:] + b"\xff\xfe" + second_half
    assert only.gateway == parse_address("fe80::")[:8] + interface


def test_which_routes_lead_into_a_tunnel() -> None:
    node = Node1()
    assert node.way(V4, "10.65.2.0/26", "10.1.0.2") == "direct"
    assert node.way(V4, "10.65.3.0/26", "10.2.0.3") == parse_address("10.65.3.0")
    assert node.way(V4, "10.65.4.0/26", "10.2.0.4") is None  # it has no address in the tunnel yet
    assert node.way(V4, "10.99.0.0/26", "10.2.0.3") == "direct"
    assert node.way(V6, "fd65::2:0/122", "fd01::2") == node.tunnel("vxlan-v6.calico").peers[0].gateway
    node.apply('- {kind: IPPool, metadata: {name: v6}, spec: {cidr: "fd65::/64", vxlanMode: CrossSubnet}}')
    assert node.way(V6, "fd65::2:0/122", "fd01::2") == "direct"
    node.apply("- {kind: IPPool, metadata: {name: v4}, spec: {cidr: 10.65.0.0/16, ipipMode: Always}}")
    assert node.way(V4, "10.65.2.0/26", "10.1.0.2") == parse_address("10.1.0.2")


def test_nodes_come_and_go() -> None:
    node = Node1()
    node.remove("Node", "n2")
    assert [peer.node for peer in node.tunnel("vxlan.calico").peers] == ["n3"]
    assert not node.tunnel("vxlan-v6.calico").peers
    node.apply(
        "- {kind: Node, metadata: {name: n4}, spec: {bgp: {ipv4Address: 10.2.0.4/24}, ipv4VXLANTunnelAddr: 10.65.4.0}}"
    )
    assert [peer.node for peer in node.tunnel("vxlan.calico").peers] == ["n3", "n4"]
    assert node.way(V4, "10.65.4.0/26", "10.2.0.4") == parse_address("10.65.4.0")
    before = node.plan
    node.apply("- {kind: Node, metadata: {name: n4, labels: {a: b}}, spec: {bgp: {ipv4Address: 10.2.0.4/24}, "
               "ipv4VXLANTunnelAddr: 10.65.4.0}}")  # fmt: skip
    assert node.plan.tunnels is before.tunnels and node.plan.kernel is before.kernel


def test_felix_configures_them() -> None:
    node = Node1()
    felix = "{{kind: FelixConfiguration, metadata: {{name: {}}}, spec: {{{}}}}}"
    node.apply("- " + felix.format("default", "vxlanVNI: 7, vxlanPort: 8472, vxlanMTU: 1300, vxlanMTUV6: 1280"))
    v4, v6 = node.tunnel("vxlan.calico"), node.tunnel("vxlan-v6.calico")
    assert (v4.vni, v4.port, v4.mtu, v6.vni, v6.port, v6.mtu) == (7, 8472, 1300, 7, 8472, 1280)
    node.apply("- " + felix.format("node.n1", "vxlanMTU: 1200"))
    assert node.tunnel("vxlan.calico").mtu == 1200 and node.tunnel("vxlan.calico").vni == 7
    assert not [problem for problem in node.plan.problems if "vxlan" in problem]


def test_what_is_wrong_is_told() -> None:
    node = Node1()
    assert node.plan.problems == ()
    node.apply("- {kind: Node, metadata: {name: n1}, spec: {bgp: {ipv4Address: 10.1.0.1/24}}}")
    assert any("IPPool v6: Node n1 has no spec.bgp.ipv6Address" in problem for problem in node.plan.problems)
    node.apply("""
- {kind: Node, metadata: {name: n3}, spec: {bgp: {ipv4Address: 10.2.0.3/24}, ipv4VXLANTunnelAddr: 10.65.3.0,
                                            vxlanTunnelMACAddr: "02:00:00:00:00:02"}}
""")
    assert any("Nodes n2, n3: have the same VXLAN MAC address 02:00:00:00:00:02" in one for one in node.plan.problems)


def test_beside_felix_they_are_felix_s() -> None:
    node = Node1(own_workloads=False)
    assert node.plan.tunnels is None
    rule: Any = node.plan.kernel.policy[V4].judge(parse_prefix("10.65.2.0/26")[1])
    assert rule.programming is Programming.LEAVE and "Felix" in rule.why
    assert any("left to Felix" in note for note in node.plan.notes) and not node.plan.problems


def test_what_a_tunnel_puts_around_packets() -> None:
    assert [tunnel_overhead(TunnelKind.VXLAN, family) for family in (V4, V6)] == [50, 70]
    assert tunnel_overhead(TunnelKind.IPIP, V4) == 20


def test_without_bgp_nothing_leads_into_a_tunnel_and_that_is_told() -> None:
    node = Node1()
    assert not [problem for problem in node.plan.problems if "mesh is off" in problem]
    node.apply("- {kind: BGPConfiguration, metadata: {name: default}, spec: {nodeToNodeMeshEnabled: false}}")
    (problem,) = [problem for problem in node.plan.problems if "mesh is off" in problem]
    assert problem.startswith("IPPool v4, v6: ")
    node.apply("- {kind: BGPPeer, metadata: {name: tor}, spec: {peerIP: 10.1.0.254, asNumber: 65001}}")
    assert not [problem for problem in node.plan.problems if "mesh is off" in problem]
