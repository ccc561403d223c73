"""Which routes the node originates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from routed.net.families import Family
from routed.net.prefixes import parse_prefix

if TYPE_CHECKING:
    from tests.plan.conftest import Scenario

Make = Callable[..., "Scenario"]

BLOCKS = """
- {kind: BlockAffinity, metadata: {name: a}, spec: {node: kube-master, cidr: 10.244.1.0/26, state: confirmed}}
- {kind: BlockAffinity, metadata: {name: b}, spec: {node: kube-master, cidr: "fd00:10:244:1::/122", state: confirmed}}
- {kind: BlockAffinity, metadata: {name: c}, spec: {node: kube-master, cidr: 10.2.0.1/32, state: confirmed}}
- {kind: BlockAffinity, metadata: {name: d}, spec: {node: kube-master, cidr: "fd00:10:245::1/128", state: confirmed}}
- {kind: BlockAffinity, metadata: {name: e}, spec: {node: kube-master, cidr: 10.244.2.0/26, state: pending}}
- {kind: BlockAffinity, metadata: {name: f}, spec: {node: kube-master, cidr: 10.244.3.0/26, state: pendingDeletion}}
- {kind: BlockAffinity, metadata: {name: g}, spec: {node: kube-node-1, cidr: 10.244.4.0/26, state: confirmed}}
- {kind: BlockAffinity, metadata: {name: h}, spec: {node: kube-master, cidr: 10.244.5.0/26, deleted: "true"}}
- {kind: BlockAffinity, metadata: {name: i}, spec: {node: kube-master, cidr: 10.244.6.0/26, type: virtual}}
"""


def test_confirmed_blocks_of_this_node_single_addresses_without_a_blackhole(scenario: Make) -> None:
    made = scenario(BLOCKS)
    assert made.origins == {
        "10.244.1.0/26": True,
        "fd00:10:244:1::/122": True,
        "10.2.0.1/32": False,
        "fd00:10:245::1/128": False,
    }
    origin = made.plan.origins[parse_prefix("10.244.1.0/26")]
    assert (origin.kind, origin.why) == ("block", "BlockAffinity a")


def test_blocks_come_and_go(scenario: Make) -> None:
    made = scenario(BLOCKS)
    made.apply(
        "- {kind: BlockAffinity, metadata: {name: e}, spec: {node: kube-master, cidr: 10.244.2.0/26, state: confirmed}}"
    )
    made.apply(
        "- {kind: BlockAffinity, metadata: {name: a}, spec: {node: kube-node-1, cidr: 10.244.1.0/26, state: confirmed}}"
    )
    made.remove("BlockAffinity", "c")
    assert [prefix for prefix in made.origins if ":" not in prefix] == ["10.244.2.0/26"]


POD_CIDRS = """
- kind: Node
  metadata: {name: kube-master}
  spec: {bgp: {ipv4Address: 10.192.0.2/16}}
  status: {podCIDRs: [10.244.9.0/24, "fd00:10:244:9::/80"]}
"""


def test_pod_cidrs_where_no_affinity_names_the_node(scenario: Make) -> None:
    made = scenario(POD_CIDRS)
    assert made.origins == {"10.244.9.0/24": True, "fd00:10:244:9::/80": True}
    assert made.plan.origins[parse_prefix("10.244.9.0/24")].why == "Node kube-master status.podCIDRs"
    pending = (
        "- {kind: BlockAffinity, metadata: {name: e}, spec: {node: kube-master, cidr: 10.244.2.0/26, state: pending}}"
    )
    assert made.apply(pending).origins == {"fd00:10:244:9::/80": True}, "IPAM owns IPv4 on this node"


def test_a_block_two_nodes_claim_is_reported(scenario: Make) -> None:
    made = scenario(
        BLOCKS,
        "- {kind: BlockAffinity, metadata: {name: z}, spec: {node: kube-node-1, cidr: 10.244.1.0/26, state: confirmed}}",
    )
    assert [problem.split(";")[0] for problem in made.plan.problems] == [
        "BlockAffinity a: kube-node-1 holds the same block 10.244.1.0/26 by BlockAffinity z"
    ]
    assert made.remove("BlockAffinity", "z").plan.problems == ()


def test_own_blocks_stay_when_the_node_resource_goes(scenario: Make) -> None:
    made = scenario(BLOCKS).remove("Node", "kube-master")
    assert made.plan.speaker is None
    assert (Family.IPV4_UNICAST, b"\x1a\x0a\xf4\x01\x00") in made.plan.origins
