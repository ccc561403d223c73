"""What goes out and comes in: the default export rules in their order, BGPFilters in front of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from routed.net.families import Family
from routed.rib.path import SourceKind

if TYPE_CHECKING:
    from tests.plan.conftest import Scenario

Make = Callable[..., "Scenario"]

PEER = "Global_172_16_0_1"
BASE = """
- {kind: BGPPeer, metadata: {name: tor}, spec: {peerIP: 172.16.0.1, asNumber: 65001}}
- {kind: IPPool, metadata: {name: pods}, spec: {cidr: 10.244.0.0/16}}
- {kind: IPPool, metadata: {name: shut}, spec: {cidr: 10.245.0.0/16, disabled: true}}
- {kind: IPPool, metadata: {name: quiet}, spec: {cidr: 10.246.0.0/16, disableBGPExport: true}}
- {kind: IPPool, metadata: {name: pods6}, spec: {cidr: "fd00:10:244::/48"}}
- kind: BlockAffinity
  metadata: {name: own}
  spec: {node: kube-master, cidr: 10.244.1.0/26, state: confirmed}
- kind: BlockAffinity
  metadata: {name: own-outside-pools}
  spec: {node: kube-master, cidr: 192.168.0.0/26, state: confirmed}
- kind: BlockAffinity
  metadata: {name: own-of-disabled-pool}
  spec: {node: kube-master, cidr: 10.245.1.0/26, state: confirmed}
- kind: BlockAffinity
  metadata: {name: own-of-quiet-pool}
  spec: {node: kube-master, cidr: 10.246.1.0/26, state: confirmed}
"""


@pytest.mark.parametrize(
    ("prefix", "accepted", "rule"),
    [
        ("10.244.1.0/26", True, "own block 10.244.1.0/26 (BlockAffinity own)"),
        ("10.244.1.5/32", False, "announced as part of own block 10.244.1.0/26 (BlockAffinity own)"),
        ("10.244.2.0/26", True, "inside IPPool pods 10.244.0.0/16"),
        ("10.244.2.7/32", True, "inside IPPool pods 10.244.0.0/16"),
        ("10.244.0.0/16", True, "inside IPPool pods 10.244.0.0/16"),
        ("10.240.0.0/12", False, "outside this node's blocks and every enabled IPPool"),
        ("10.245.2.0/26", False, "outside this node's blocks and every enabled IPPool"),
        ("10.245.1.0/26", True, "own block 10.245.1.0/26 (BlockAffinity own-of-disabled-pool)"),
        ("10.246.1.0/26", False, "disableBGPExport of IPPool quiet 10.246.0.0/16"),
        ("10.246.2.0/26", False, "disableBGPExport of IPPool quiet 10.246.0.0/16"),
        ("192.168.0.0/26", True, "own block 192.168.0.0/26 (BlockAffinity own-outside-pools)"),
        ("192.168.0.1/32", False, "announced as part of own block 192.168.0.0/26 (BlockAffinity own-outside-pools)"),
        ("203.0.113.0/24", False, "outside this node's blocks and every enabled IPPool"),
        ("0.0.0.0/0", False, "outside this node's blocks and every enabled IPPool"),
    ],
)
def test_the_default_rules(scenario: Make, prefix: str, accepted: bool, rule: str) -> None:
    assert scenario(BASE).exports(PEER, prefix)[::2] == (accepted, rule)


def test_ipv6_sessions_judge_by_ipv6_pools(scenario: Make) -> None:
    made = scenario(BASE)
    assert made.exports("Mesh_fd5f__3", "fd00:10:244:1::/122").accept
    assert not made.exports("Mesh_fd5f__3", "fd00:10:245:1::/122").accept


def test_a_workload_that_moves_here_escapes_its_block(scenario: Make) -> None:
    made = scenario(BASE)
    assert made.exports(PEER, "10.244.1.5/32", local_pref=2147483647 - 512).accept
    assert not made.exports(PEER, "10.244.1.5/32", local_pref=2147483647 - 1024).accept


FILTERS = """
- kind: BGPFilter
  metadata: {name: no-default}
  spec: {importV4: [{action: Reject, matchOperator: Equal, cidr: 0.0.0.0/0}]}
- kind: BGPFilter
  metadata: {name: own-only}
  spec: {exportV4: [{action: Reject, source: RemotePeers}]}
- {kind: BGPFilter, metadata: {name: all}, spec: {exportV4: [{action: Accept}]}}
"""


def with_filters(scenario: Make, *names: str) -> Scenario:
    spec = f"{{peerIP: 172.16.0.1, asNumber: 65001, filters: {list(names)}}}"
    return scenario(BASE, FILTERS, f"- {{kind: BGPPeer, metadata: {{name: tor}}, spec: {spec}}}")


def test_import_accepts_what_no_filter_rejects(scenario: Make) -> None:
    made = with_filters(scenario, "no-default")
    assert made.imports(PEER, "0.0.0.0/0")[::2] == (False, "BGPFilter no-default rule 1: Reject 0.0.0.0/0")
    assert made.imports(PEER, "203.0.113.0/24").accept
    assert scenario(BASE).imports(PEER, "0.0.0.0/0").accept
    assert scenario(BASE).plan.peers[PEER].import_filter[Family.IPV4_UNICAST].accepts_all


def test_filters_come_first_and_fall_through_to_the_default_rules(scenario: Make) -> None:
    made = with_filters(scenario, "own-only")
    assert not made.exports(PEER, "10.244.2.0/26").accept
    assert made.exports(PEER, "10.244.1.0/26", SourceKind.LOCAL).accept
    assert not made.exports(PEER, "203.0.113.0/24", SourceKind.LOCAL).accept


def test_accept_all_replaces_the_pool_rules_only(scenario: Make) -> None:
    made = with_filters(scenario, "all")
    for prefix in ("203.0.113.0/24", "10.246.2.0/26", "10.244.1.5/32"):
        assert made.exports(PEER, prefix)[::2] == (True, "BGPFilter all rule 1: Accept")
    assert not made.exports(PEER, "0.0.0.0/0").accept
    export_filter = made.plan.peers[PEER].export_filter[Family.IPV4_UNICAST]
    assert export_filter.accepts_all and export_filter.prefix_free


def test_filters_apply_in_the_order_of_their_names_in_the_peer(scenario: Make) -> None:
    assert not with_filters(scenario, "own-only", "all").exports(PEER, "203.0.113.0/24").accept
    assert with_filters(scenario, "all", "own-only").exports(PEER, "203.0.113.0/24").accept


def test_an_unknown_filter_is_skipped_and_reported(scenario: Make) -> None:
    made = with_filters(scenario, "gone", "own-only")
    assert not made.exports(PEER, "10.244.2.0/26").accept
    assert any("BGPFilter gone, which does not exist" in problem for problem in made.plan.problems)


def test_prefix_advertisements_add_communities(scenario: Make) -> None:
    text = """
        - kind: BGPConfiguration
          metadata: {name: default}
          spec:
            communities: [{name: large, value: "64512:300:100"}]
            prefixAdvertisements:
            - {cidr: 10.244.0.0/16, communities: [large, "64512:120"]}
            - {cidr: 10.244.1.0/26, communities: ["64512:121"]}
    """
    made = scenario(BASE, text)
    attrs = made.exports(PEER, "10.244.1.0/26").attrs
    assert attrs.communities == bytes.fromhex("fc000078fc000079")
    assert attrs.large_communities == bytes.fromhex("0000fc000000012c00000064")
    assert made.exports(PEER, "10.244.2.0/26").attrs.communities == bytes.fromhex("fc000078")
    own = """
        - kind: BGPConfiguration
          metadata: {name: node.kube-master}
          spec: {prefixAdvertisements: [{cidr: 10.244.2.0/26, communities: ["64512:1"]}]}
    """
    made.apply(own)
    assert made.exports(PEER, "10.244.1.0/26").attrs.communities == b"", "a node's own list replaces the cluster's"
    assert made.exports(PEER, "10.244.2.0/26").attrs.communities == bytes.fromhex("fc000001")
    assert made.plan.problems == ()


def test_peers_alike_share_their_filters(scenario: Make) -> None:
    plan = scenario(BASE).plan
    filters = [
        plan.peers[name].export_filter[Family.IPV4_UNICAST] for name in ("Mesh_10_192_0_3", "Mesh_10_192_0_10", PEER)
    ]
    assert filters[0] is filters[1]
    assert filters[0] == filters[2]
