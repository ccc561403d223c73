"""Sessions that follow from resources: mesh, BGPPeers, reflectors, conflicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from routed.net.addresses import parse_address, parse_router_id
from routed.net.families import Family
from routed.plan.types import NextHopMode
from routed.rib.path import SourceKind

if TYPE_CHECKING:
    from tests.plan.conftest import Scenario

Make = Callable[..., "Scenario"]

MESH_OFF = "- {kind: BGPConfiguration, metadata: {name: default}, spec: {nodeToNodeMeshEnabled: false}}\n"

# ---- mesh


def test_mesh_with_the_string_comparison(scenario: Make) -> None:
    """10.192.0.10 is less than 10.192.0.2 as text, so kube-master is the passive side towards .3 only."""
    assert scenario().peers == {
        "Mesh_10_192_0_3": "10.192.0.3 179 64512 IBGP passive",
        "Mesh_fd5f__3": "fd5f::3 179 64512 IBGP passive",
        "Mesh_10_192_0_10": "10.192.0.10 179 64512 IBGP",
    }


def test_exactly_one_end_of_every_mesh_session_opens_it(scenario: Make) -> None:
    ends = {}
    for node, address in (("kube-master", "10.192.0.2"), ("kube-node-1", "10.192.0.3"), ("kube-node-2", "10.192.0.10")):
        for peer in scenario(node=node).plan.peers.values():
            ends[parse_address(address), peer.session.address] = peer.session.passive
    both = [(one, other) for one, other in ends if (other, one) in ends]
    assert len(both) == 6
    assert all(ends[one, other] is not ends[other, one] for one, other in both)


def test_a_mesh_session_in_detail(scenario: Make) -> None:
    peer = scenario().plan.peers["Mesh_fd5f__3"]
    session = peer.session
    assert session.local_address == parse_address("fd5f::2")
    assert session.families == (Family.IPV6_UNICAST,)
    assert set(peer.import_filter) == set(peer.export_filter) == {Family.IPV6_UNICAST}
    assert session.router_id == parse_router_id("10.192.0.2")
    assert (session.hold_time, session.keepalive_time, session.restart_time) == (240, 0, 120)
    assert (peer.cluster_id, peer.allowed_own_as, peer.next_hop_mode) == (0, 0, NextHopMode.AUTO)
    assert peer.why == "node-to-node mesh, Node kube-node-1"
    assert peer.import_filter[Family.IPV6_UNICAST].accepts_all


def test_as_numbers_ports_and_restart_time_of_the_mesh(scenario: Make) -> None:
    mesh = scenario("""
        - kind: BGPConfiguration
          metadata: {name: default}
          spec: {asNumber: 64600, listenPort: 1790, nodeMeshMaxRestartTime: 200s}
        - {kind: BGPConfiguration, metadata: {name: node.kube-node-2}, spec: {listenPort: 1791}}
        - {kind: Node, metadata: {name: kube-node-1}, spec: {bgp: {asNumber: 64601, ipv4Address: 10.192.0.3/16}}}
    """)
    assert mesh.peers == {
        "Mesh_10_192_0_3": "10.192.0.3 1790 64601 EBGP passive",
        "Mesh_10_192_0_10": "10.192.0.10 1791 64600 IBGP",
    }
    assert {peer.session.restart_time for peer in mesh.plan.peers.values()} == {200}
    assert mesh.plan.speaker is not None
    assert (mesh.plan.speaker.local_as, mesh.plan.speaker.listen_port) == (64600, 1790)


def test_mesh_off(scenario: Make) -> None:
    assert scenario(MESH_OFF).peers == {}


REFLECTOR = """
- kind: Node
  metadata: {name: kube-node-1, labels: {reflector: "true"}}
  spec: {bgp: {ipv4Address: 10.192.0.3/16, routeReflectorClusterID: 224.0.0.1}}
"""


def test_reflectors_leave_the_mesh(scenario: Make) -> None:
    assert list(scenario(REFLECTOR).peers) == ["Mesh_10_192_0_10"]
    assert scenario(REFLECTOR, node="kube-node-1").peers == {}


def test_two_nodes_with_one_address_are_one_peer(scenario: Make) -> None:
    twins = scenario("- {kind: Node, metadata: {name: z}, spec: {bgp: {ipv4Address: 10.192.0.3/16}}}")
    assert twins.plan.peers["Mesh_10_192_0_3"].why == "node-to-node mesh, Node kube-node-1"
    assert twins.plan.problems == (
        "Node z: has the address 10.192.0.3 of Node kube-node-1, so there is no session of its own",
    )


# ---- explicit peers


def test_a_global_external_peer(scenario: Make) -> None:
    tor = scenario(
        MESH_OFF,
        """
        - kind: BGPPeer
          metadata: {name: tor}
          spec: {peerIP: 172.16.0.1, asNumber: 65001, keepaliveTime: 20s, maxRestartTime: 90.5s, sourceAddress: None}
    """,
    )
    assert tor.peers == {"Global_172_16_0_1": "172.16.0.1 179 65001 EBGP"}
    peer = tor.plan.peers["Global_172_16_0_1"]
    assert (peer.session.keepalive_time, peer.session.restart_time, peer.session.local_address) == (20, 91, b"")
    assert peer.why == "BGPPeer tor"
    assert tor.plan.problems == ()


def test_ports_in_peer_ip_name_the_session(scenario: Make) -> None:
    assert scenario(
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: a}, spec: {peerIP: "172.16.0.1:1790", asNumber: 65001}}
        - {kind: BGPPeer, metadata: {name: b}, spec: {peerIP: "[fd5f::99]:500", asNumber: 65001, node: kube-master}}
        - {kind: BGPPeer, metadata: {name: c}, spec: {peerIP: 172.16.0.1, asNumber: 65001}}
    """,
    ).peers == {
        "Global_172_16_0_1_port_1790": "172.16.0.1 1790 65001 EBGP",
        "Global_172_16_0_1": "172.16.0.1 179 65001 EBGP",
        "Node_fd5f__99_port_500": "fd5f::99 500 65001 EBGP",
    }


def test_node_and_node_selector_choose_the_nodes(scenario: Make) -> None:
    text = (
        MESH_OFF,
        """
        - kind: Node
          metadata: {name: kube-master, labels: {rack: a}}
          spec: {bgp: {ipv4Address: 10.192.0.2/16}}
        - {kind: BGPPeer, metadata: {name: a}, spec: {nodeSelector: "rack == 'a'", peerIP: 172.16.0.1, asNumber: 1}}
        - {kind: BGPPeer, metadata: {name: b}, spec: {nodeSelector: "rack == 'b'", peerIP: 172.16.0.2, asNumber: 1}}
        - {kind: BGPPeer, metadata: {name: c}, spec: {node: kube-master, peerIP: 172.16.0.3, asNumber: 1}}
        - {kind: BGPPeer, metadata: {name: d}, spec: {node: kube-node-1, peerIP: 172.16.0.4, asNumber: 1}}
    """,
    )
    assert list(scenario(*text).peers) == ["Node_172_16_0_1", "Node_172_16_0_3"]
    assert list(scenario(*text, node="kube-node-1").peers) == ["Node_172_16_0_4"]
    assert scenario(*text, node="kube-node-2").peers == {}


def test_a_global_peer_that_is_a_node_is_passive_by_string_and_takes_its_port(scenario: Make) -> None:
    text = (
        MESH_OFF,
        """
        - {kind: BGPConfiguration, metadata: {name: node.kube-node-1}, spec: {listenPort: 1791}}
        - kind: BGPPeer
          metadata: {name: hub}
          spec: {peerIP: 10.192.0.3, asNumber: 64512, reversePeering: Manual}
    """,
    )
    assert scenario(*text).peers == {"Global_10_192_0_3_port_1791": "10.192.0.3 1791 64512 IBGP passive"}
    assert scenario(*text, node="kube-node-1").peers == {}, "a peer is never itself, and nothing is reversed"


def test_an_ipv6_peer_needs_an_ipv6_address(scenario: Make) -> None:
    text = ('- {kind: BGPPeer, metadata: {name: six}, spec: {peerIP: "fd5f::99", asNumber: 65001}}',)
    assert "Global_fd5f__99" in scenario(*text).peers
    lacking = scenario(*text, node="kube-node-2")
    assert "Global_fd5f__99" not in lacking.peers
    assert lacking.plan.problems == (
        "BGPPeer six: no session with fd5f::99, since Node kube-node-2 has no spec.bgp.ipv6Address",
    )


def test_local_as_number_decides_what_is_internal(scenario: Make) -> None:
    peers = scenario(
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: a}, spec: {peerIP: 172.16.0.1, asNumber: 65001, localASNumber: 65001}}
        - {kind: BGPPeer, metadata: {name: b}, spec: {peerIP: 172.16.0.2, asNumber: 64512, localASNumber: 65001}}
    """,
    ).plan.peers
    assert (peers["Global_172_16_0_1"].kind, peers["Global_172_16_0_1"].session.local_as) == (SourceKind.IBGP, 65001)
    assert (peers["Global_172_16_0_2"].kind, peers["Global_172_16_0_2"].session.local_as) == (SourceKind.EBGP, 65001)


def test_next_hop_modes(scenario: Make) -> None:
    def mode(spec: str) -> NextHopMode:
        peers = scenario(
            f"{MESH_OFF}- {{kind: BGPPeer, metadata: {{name: a}}, spec: {{peerIP: 172.16.0.1, {spec}}}}}"
        ).plan.peers
        return peers["Global_172_16_0_1"].next_hop_mode

    assert mode("asNumber: 65001") is NextHopMode.AUTO
    assert mode("asNumber: 65001, nextHopMode: Auto") is NextHopMode.AUTO
    assert mode("asNumber: 65001, nextHopMode: Self") is NextHopMode.SELF
    assert mode("asNumber: 64512, nextHopMode: Keep") is NextHopMode.KEEP
    assert mode("asNumber: 65001, keepOriginalNextHop: true") is NextHopMode.KEEP
    assert mode("asNumber: 64512, keepOriginalNextHop: true") is NextHopMode.AUTO, "for external peers only"


def test_allowed_own_as(scenario: Make) -> None:
    text = (
        "- {kind: BGPPeer, metadata: {name: a}, spec: {peerIP: 172.16.0.1, asNumber: 1, numAllowedLocalASNumbers: 2}}"
    )
    assert scenario(text).plan.peers["Global_172_16_0_1"].allowed_own_as == 2


# ---- peerSelector, reverse peering, reflectors

SELECTORS = (
    MESH_OFF,
    REFLECTOR,
    """
- kind: BGPPeer
  metadata: {name: to-reflectors}
  spec: {nodeSelector: "!has(reflector)", peerSelector: has(reflector)}
""",
)


def test_peer_selector_and_its_reverse(scenario: Make) -> None:
    assert scenario(*SELECTORS).peers == {"Node_10_192_0_3": "10.192.0.3 179 64512 IBGP"}
    reflector = scenario(*SELECTORS, node="kube-node-1")
    assert reflector.peers == {
        "Node_10_192_0_2": "10.192.0.2 179 64512 IBGP_CLIENT",
        "Node_10_192_0_10": "10.192.0.10 179 64512 IBGP_CLIENT",
    }
    assert reflector.plan.peers["Node_10_192_0_2"].why == "BGPPeer to-reflectors (reverse)"
    assert {peer.cluster_id for peer in reflector.plan.peers.values()} == {parse_router_id("224.0.0.1")}
    assert reflector.plan.speaker is not None
    assert reflector.plan.speaker.cluster_id == parse_router_id("224.0.0.1")


def test_manual_reverse_peering_reverses_nothing(scenario: Make) -> None:
    text = [
        one.replace("peerSelector: has(reflector)", "peerSelector: has(reflector), reversePeering: Manual")
        for one in SELECTORS
    ]
    assert list(scenario(*text).peers) == ["Node_10_192_0_3"]
    assert scenario(*text, node="kube-node-1").peers == {}


def test_peer_selector_gives_both_families(scenario: Make) -> None:
    text = (
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: all}, spec: {peerSelector: all()}}
    """,
    )
    assert scenario(*text).peers == {
        "Global_10_192_0_3": "10.192.0.3 179 64512 IBGP",
        "Global_fd5f__3": "fd5f::3 179 64512 IBGP",
        "Global_10_192_0_10": "10.192.0.10 179 64512 IBGP",
    }


def test_a_node_given_by_address_peers_back_in_that_family(scenario: Make) -> None:
    text = (
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: six}, spec: {node: kube-master, peerIP: "fd5f::3", asNumber: 64512}}
        - {kind: BGPPeer, metadata: {name: as}, spec: {node: kube-node-2, peerIP: 10.192.0.3, asNumber: 1}}
    """,
    )
    assert scenario(*text, node="kube-node-1").peers == {"Node_fd5f__2": "fd5f::2 179 64512 IBGP"}
    assert scenario(*text, node="kube-node-2").peers == {"Node_10_192_0_3": "10.192.0.3 179 1 EBGP"}


def test_the_reverse_of_a_local_as_expects_that_as(scenario: Make) -> None:
    text = (
        MESH_OFF,
        """
        - kind: BGPPeer
          metadata: {name: x}
          spec: {node: kube-master, peerIP: 10.192.0.3, asNumber: 64512, localASNumber: 65009}
    """,
    )
    assert scenario(*text).peers == {"Node_10_192_0_3": "10.192.0.3 179 64512 EBGP"}
    assert scenario(*text, node="kube-node-1").peers == {"Node_10_192_0_2": "10.192.0.2 179 65009 EBGP"}


def test_clients_and_fellow_reflectors_by_address(scenario: Make) -> None:
    text = (
        MESH_OFF,
        REFLECTOR,
        """
        - kind: Node
          metadata: {name: kube-master}
          spec: {bgp: {ipv4Address: 10.192.0.2/16, routeReflectorClusterID: 224.0.0.1}}
        - {kind: BGPPeer, metadata: {name: other}, spec: {node: kube-master, peerIP: 172.16.0.9, asNumber: 64512}}
        - {kind: BGPPeer, metadata: {name: fellow}, spec: {node: kube-master, peerIP: 10.192.0.3, asNumber: 64512}}
        - {kind: BGPPeer, metadata: {name: tor}, spec: {node: kube-master, peerIP: 172.16.0.1, asNumber: 65001}}
    """,
    )
    plan = scenario(*text).plan
    assert plan.peers["Node_172_16_0_9"].kind is SourceKind.IBGP_CLIENT
    assert plan.peers["Node_10_192_0_3"].kind is SourceKind.IBGP, "the same cluster id: an ordinary internal peer"
    assert (plan.peers["Node_172_16_0_1"].kind, plan.peers["Node_172_16_0_1"].cluster_id) == (SourceKind.EBGP, 0)
    other_cluster = scenario(*text).apply("""
        - kind: Node
          metadata: {name: kube-node-1}
          spec: {bgp: {ipv4Address: 10.192.0.3/16, routeReflectorClusterID: 224.0.0.2}}
    """)
    assert other_cluster.plan.peers["Node_10_192_0_3"].kind is SourceKind.IBGP_CLIENT


# ---- the first counts


def test_global_before_node_and_names_in_order(scenario: Make) -> None:
    conflict = scenario(
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: a}, spec: {node: kube-master, peerIP: 172.16.0.1, asNumber: 65001}}
        - {kind: BGPPeer, metadata: {name: c}, spec: {peerIP: 172.16.0.1, asNumber: 65003}}
        - {kind: BGPPeer, metadata: {name: b}, spec: {peerIP: 172.16.0.1, asNumber: 65002}}
    """,
    )
    assert conflict.peers == {"Global_172_16_0_1": "172.16.0.1 179 65002 EBGP"}
    assert [problem.split(":")[0] for problem in conflict.plan.problems] == ["BGPPeer a", "BGPPeer c"]
    assert all("BGPPeer b says something else" in problem for problem in conflict.plan.problems)


def test_saying_the_same_twice_is_no_problem(scenario: Make) -> None:
    assert not scenario(
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: a}, spec: {peerIP: 172.16.0.1, asNumber: 65001}}
        - {kind: BGPPeer, metadata: {name: b}, spec: {node: kube-master, peerIP: 172.16.0.1, asNumber: 65001}}
    """,
    ).plan.problems


def test_times_and_hops_that_calico_takes(scenario: Make) -> None:
    """As its confd has them: rounded to whole seconds, 0 is nothing said; what BGP has no room for is the most it has."""
    made = scenario("""
        - kind: BGPPeer
          metadata: {name: a}
          spec: {peerIP: 172.16.0.1, asNumber: 65001, ttlSecurity: 0, keepaliveTime: 500ms}
        - kind: BGPPeer
          metadata: {name: b}
          spec: {peerIP: 172.16.0.2, asNumber: 65001, keepaliveTime: 0s, maxRestartTime: 2h}
        - {kind: BGPConfiguration, metadata: {name: default}, spec: {logSeverityScreen: info, nodeMeshMaxRestartTime: 90m}}
    """)
    a, b, mesh = (made.plan.peers[name].session for name in ("Global_172_16_0_1", "Global_172_16_0_2", "Mesh_fd5f__3"))
    assert (a.ttl_security, a.keepalive_time, b.keepalive_time) == (0, 1, 0)
    assert (b.restart_time, mesh.restart_time) == (4095, 4095)
    assert made.plan.problems == (
        "BGPConfiguration default: spec.nodeMeshMaxRestartTime: 5400 s is more than BGP can say; it is 4095 s",
        "BGPPeer b: spec.maxRestartTime: 7200 s is more than BGP can say; it is 4095 s",
    )


def test_a_bgp_peer_goes_before_the_mesh(scenario: Make) -> None:
    both = scenario("- {kind: BGPPeer, metadata: {name: a}, spec: {peerIP: 10.192.0.3, asNumber: 64512, filters: []}}")
    assert "Global_10_192_0_3" in both.peers and "Mesh_10_192_0_3" not in both.peers
    assert both.plan.notes[0].startswith("node-to-node mesh: not used for 10.192.0.3 of kube-node-1 (BGPPeer a)")
    assert not both.plan.problems, "a cluster that is set up like this is healthy"


def test_explicit_goes_before_reverse(scenario: Make) -> None:
    text = (
        MESH_OFF,
        """
        - {kind: BGPPeer, metadata: {name: a}, spec: {node: kube-node-1, peerIP: 10.192.0.2, asNumber: 64512}}
        - kind: BGPPeer
          metadata: {name: b}
          spec: {node: kube-master, peerIP: 10.192.0.3, asNumber: 64512, nextHopMode: Self}
    """,
    )
    peer = scenario(*text).plan.peers["Node_10_192_0_3"]
    assert (peer.why, peer.next_hop_mode) == ("BGPPeer b", NextHopMode.SELF)
    assert scenario(*text).plan.problems == ()


# ---- not supported, or not to be had

UNSUPPORTED = """
- kind: BGPPeer
  metadata: {name: secure}
  spec:
    node: kube-master
    peerIP: 172.16.0.1
    asNumber: 65001
    password: {secretKeyRef: {name: s, key: k}}
    ttlSecurity: 2
    reachableBy: 172.16.0.254
    filters: [missing]
"""


def test_what_is_not_to_be_had_is_said_where_it_counts(scenario: Make) -> None:
    problems = scenario(UNSUPPORTED).plan.problems
    for field in ("password", "filters"):
        assert [one for one in problems if one.startswith(f"BGPPeer secure: spec.{field}")], field
    elsewhere = scenario(UNSUPPORTED, node="kube-node-1").plan.problems
    assert not [one for one in elsewhere if "secure" in one], "not a peer of that node"
    fixed = scenario(UNSUPPORTED).apply("- {kind: BGPFilter, metadata: {name: missing}, spec: {}}").plan.problems
    assert not [one for one in fixed if "filters" in one]


def test_where_there_is_no_folder_of_secrets_that_is_what_is_said(scenario: Make) -> None:
    subject = scenario(UNSUPPORTED)
    subject.planner.secret("", 0, "secrets.dir is not set")
    (problem,) = [one for one in subject.plan.problems if "spec.password" in one]
    assert problem.startswith(
        "BGPPeer secure: spec.password: there is no s/k: secrets.dir is not set, so no session begins"
    )
    subject.planner.secret("", 0, "")
    (problem,) = [one for one in subject.plan.problems if "spec.password" in one]
    assert "there is no s/k in the folder secrets.dir of routed's own configuration, so" in problem


def test_a_peer_without_an_as_number_is_in_the_cluster_s(scenario: Make) -> None:
    plan = scenario("""
        - {kind: BGPPeer, metadata: {name: p}, spec: {peerIP: 172.16.0.9}}
    """).plan
    assert plan.peers["Global_172_16_0_9"].session.peer_as == 64512
    assert plan.peers["Global_172_16_0_9"].kind is SourceKind.IBGP


def test_another_node_with_our_address_is_told(scenario: Make) -> None:
    both = scenario("- {kind: Node, metadata: {name: twin}, spec: {bgp: {ipv4Address: 10.192.0.2/16}}}")
    assert "Node twin: has this node's own address 10.192.0.2, so there is no session" in both.plan.problems
