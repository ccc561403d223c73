"""Which routes this node originates for its own pods: one for every address of a WorkloadEndpoint that is here.

Only where the node's pods are routed's (`PlanSettings.own_workloads`); beside Calico's CNI plugin and Felix these routes
are theirs, and learned from the kernel instead (`program`). How such a route is announced follows from the blocks, as for
any other: one inside an own block hides behind it.
"""

from __future__ import annotations

from routed.net.families import Family
from routed.plan.cluster import Cluster
from routed.plan.types import Origin

WORKLOAD = "workload"


def workload_routes(cluster: Cluster) -> dict[tuple[Family, bytes], Origin]:
    """The routes, by prefix; of two endpoints with one address the first by name has it."""
    found: dict[tuple[Family, bytes], Origin] = {}
    for key in sorted(cluster.workloads):
        endpoint = cluster.workloads[key]
        if not endpoint.interface_name:
            continue
        for network in endpoint.ip_networks:
            origin = Origin(kind=WORKLOAD, blackhole=False, why=str(key), interface=endpoint.interface_name)
            found.setdefault((network.family, network.prefix), origin)
    return found


def shared_addresses(cluster: Cluster) -> list[str]:
    """Addresses that two endpoints of this node have: a sentence each."""
    owners: dict[tuple[Family, bytes], str] = {}
    problems = []
    for key in sorted(cluster.workloads):
        for network in cluster.workloads[key].ip_networks:
            first = owners.setdefault((network.family, network.prefix), str(key))
            if first != str(key):
                problems.append(f"{key}: {network} is the address of {first} too, which has it; one of the two must go")
    return problems


def not_done(cluster: Cluster) -> list[str]:
    """What endpoints of this node ask for that nobody does here: a sentence each."""
    problems = []
    for key in sorted(cluster.workloads):
        found = cluster.workloads[key]
        asked = [
            name
            for name, value in (
                ("allowSpoofedSourcePrefixes", found.allow_spoofed_source_prefixes),
                ("ipNATs", found.ip_nats),
                ("ipv4Gateway", found.ipv4_gateway),
                ("ipv6Gateway", found.ipv6_gateway),
                ("qosControls", found.qos_controls),
            )
            if value
        ]
        if asked:
            problems.append(f"{key}: not done for it are {', '.join(asked)}")
    return problems
