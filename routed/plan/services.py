"""Addresses of services this node announces, by the default BGPConfiguration (Calico's service advertisement).

Whole ranges: every serviceClusterIPs range; serviceExternalIPs and serviceLoadBalancerIPs ranges that are more than one
address, the latter only with serviceLoadBalancerAggregation Enabled. All nodes announce them, except those with the label
`node.kubernetes.io/exclude-from-external-load-balancers=true`, which announce nothing of services.

Invariant: everything inside the three lists is kept out of the kernel (`service_ranges`), whoever announces it.
"""

from __future__ import annotations

from collections.abc import Iterator

from routed.model.resources import Cidr, LoadBalancerAggregation
from routed.net.families import Family
from routed.plan.cluster import Cluster
from routed.plan.types import Origin

SERVICE = "service"
EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"

Key = tuple[Family, bytes]


def service_ranges(cluster: Cluster) -> Iterator[tuple[str, Cidr]]:
    """The ranges of all three lists, each with its field's name."""
    default = cluster.default_configuration
    for name, cidrs in (
        ("serviceClusterIPs", default.service_cluster_ips),
        ("serviceExternalIPs", default.service_external_ips),
        ("serviceLoadBalancerIPs", default.service_load_balancer_ips),
    ):
        for cidr in cidrs:
            yield name, cidr


def is_excluded(cluster: Cluster) -> bool:
    """Whether this node announces nothing of services."""
    node = cluster.node
    return node is not None and node.labels.get(EXCLUDE_LABEL) == "true"


def service_routes(cluster: Cluster) -> dict[Key, Origin]:
    """The service routes this node originates."""
    if is_excluded(cluster):
        return {}
    aggregated = cluster.default_configuration.service_load_balancer_aggregation is LoadBalancerAggregation.ENABLED
    routes: dict[Key, Origin] = {}
    for name, cidr in service_ranges(cluster):
        single = cidr.prefix[0] == cidr.family.max_length
        if name == "serviceClusterIPs" or (not single and (name == "serviceExternalIPs" or aggregated)):
            key = (cidr.family, cidr.prefix)
            routes.setdefault(key, Origin(SERVICE, blackhole=False, why=f"BGPConfiguration default {name}"))
    return routes
