"""Which routes this node originates: its own blocks of pod addresses.

A block is the node's own by a confirmed BlockAffinity; a pending one is not (nobody may use the block yet), nor is one
about to be deleted. Where no BlockAffinity of a family names this node, the Node's status.podCIDRs are its blocks.
Every block but a single address gets a blackhole in the kernel, so that packets to its unused addresses end here
instead of following the default route; a single address is a pod's, whose own route must not compete with it.
"""

from __future__ import annotations

from routed.model.resources import AffinityType
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.plan.cluster import Cluster
from routed.plan.types import Origin

BLOCK = "block"


def plan_origins(cluster: Cluster) -> tuple[dict[tuple[Family, bytes], Origin], list[str]]:
    """The routes to originate, and what is wrong with the resources they come from."""
    origins: dict[tuple[Family, bytes], Origin] = {}
    problems: list[str] = []
    named: set[Family] = set()
    for name in sorted(cluster.affinities):
        affinity = cluster.affinities[name]
        if affinity.node != cluster.node_name or affinity.type is not AffinityType.HOST:
            continue
        cidr = affinity.cidr
        named.add(cidr.family)
        if affinity.is_confirmed:
            origins.setdefault((cidr.family, cidr.prefix), _block(cidr.family, cidr.prefix, f"BlockAffinity {name}"))
            problems.extend(
                f"BlockAffinity {name}: {other.node} holds the same block {cidr} by BlockAffinity {other.name}; "
                "both nodes announce it until one of the two is removed"
                for other in cluster.claims(cidr)
                if other.node != affinity.node and other.is_confirmed and other.type is AffinityType.HOST
            )
    node = cluster.node
    for cidr in node.pod_cidrs if node is not None else ():
        if cidr.family not in named:
            why = f"Node {cluster.node_name} status.podCIDRs"
            origins.setdefault((cidr.family, cidr.prefix), _block(cidr.family, cidr.prefix, why))
    return origins, problems


def _block(family: Family, prefix: bytes, why: str) -> Origin:
    return Origin(kind=BLOCK, blackhole=prefix[0] < family.max_length, why=why)


def block_text(family: Family, prefix: bytes, origin: Origin) -> str:
    """`10.244.1.0/26 (BlockAffinity node-1-10-244-1-0-26)`."""
    return f"{format_prefix(family, prefix)} ({origin.why})"
