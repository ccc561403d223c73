"""Which routes this node originates: its own blocks of pod addresses, and the ranges of services.

A block is the node's own by a confirmed BlockAffinity; a pending one is not (nobody may use the block yet), nor is one
about to be deleted, nor one whose block says that another node has it: such a claim is in `withheld`, with the reason.
(Calico goes by the affinity alone there.) Status.podCIDRs of the Node are its blocks where the settings say so.
Every block but a single address gets a blackhole in the kernel, so that packets to its unused addresses end here
instead of following the default route; a single address is a pod's, whose own route takes its place.

Ranges of services (`services`) are announced and never programmed: kube-proxy takes the packets.
"""

from __future__ import annotations

import functools
from dataclasses import field

from routed.model.resources import AffinityState, AffinityType, BlockAffinity
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.plan.cluster import Cluster
from routed.plan.services import service_routes
from routed.plan.types import Origin, PodCidrs
from routed.values import dataclass

BLOCK = "block"

Key = tuple[Family, bytes]


@dataclass(frozen=True, slots=True)
class Origins:
    """What `plan_origins` found."""

    routes: dict[Key, Origin] = field(default_factory=dict)
    withheld: dict[Key, str] = field(default_factory=dict)
    """Blocks the node has some claim to and that are not announced: why."""
    problems: list[str] = field(default_factory=list)


def plan_origins(cluster: Cluster, pod_cidrs: PodCidrs = PodCidrs.WITHOUT_AFFINITY) -> Origins:
    """The routes to originate, and what is wrong with the resources they come from."""
    found = Origins()
    named: set[Family] = set()
    for name in sorted(cluster.affinities):
        affinity = cluster.affinities[name]
        if affinity.node != cluster.node_name or affinity.type is not AffinityType.HOST:
            continue
        cidr = affinity.cidr
        named.add(cidr.family)
        key = (cidr.family, cidr.prefix)
        reason = _withheld(affinity)
        holder = cluster.blocks.affinity(cidr) or f"host:{cluster.node_name}"
        if not reason and holder != f"host:{cluster.node_name}":
            reason = f"BlockAffinity {name} is confirmed, but the block {cidr} itself says that it is {holder}'s"
            found.problems.append(f"{reason}; it is not announced until the two agree")
        if reason:
            found.withheld[key] = reason
            continue
        found.routes.setdefault(key, _block(cidr.family, cidr.prefix, f"BlockAffinity {name}"))
        found.problems.extend(
            f"BlockAffinity {name}: {other.node} holds the same block {cidr} by BlockAffinity {other.name}; "
            "both nodes announce it until one of the two is removed"
            for other in cluster.other_claims(affinity)
            if other.node != affinity.node and other.is_confirmed and other.type is AffinityType.HOST
        )
    node = cluster.node
    for cidr in node.pod_cidrs if node is not None and pod_cidrs is not PodCidrs.NEVER else ():
        if cidr.family not in named or pod_cidrs is PodCidrs.ALWAYS:
            why = f"Node {cluster.node_name} status.podCIDRs"
            found.routes.setdefault((cidr.family, cidr.prefix), _block(cidr.family, cidr.prefix, why))
    for key in found.routes.keys() & found.withheld.keys():  # another affinity or podCIDRs has it
        del found.withheld[key]
    for key, origin in service_routes(cluster).items():
        found.routes.setdefault(key, origin)
    return found


def _withheld(affinity: BlockAffinity) -> str:
    """Why a BlockAffinity of this node makes no route, or empty."""
    if affinity.deleted or affinity.state is AffinityState.PENDING_DELETION:
        return f"BlockAffinity {affinity.name} is about to be deleted"
    if affinity.state is AffinityState.PENDING:
        return f"BlockAffinity {affinity.name} is pending: the block is not this node's yet"
    return ""


@functools.lru_cache(4096)  # what stays the same is the same object
def _block(family: Family, prefix: bytes, why: str) -> Origin:
    return Origin(kind=BLOCK, blackhole=prefix[0] < family.max_length, why=why)


def block_text(family: Family, prefix: bytes, origin: Origin) -> str:
    """`10.244.1.0/26 (BlockAffinity node-1-10-244-1-0-26)`."""
    return f"{format_prefix(family, prefix)} ({origin.why})"
