"""Addresses of services this node announces, by the default BGPConfiguration (Calico's service advertisement).

Whole ranges: every serviceClusterIPs range; serviceExternalIPs and serviceLoadBalancerIPs ranges that are more than one
address, the latter only with serviceLoadBalancerAggregation Enabled. All nodes announce them, except those with the label
`node.kubernetes.io/exclude-from-external-load-balancers=true`, which announce nothing of services.

Single addresses, by the Services and EndpointSlices in the datastore: of a service whose externalTrafficPolicy is Local its
cluster IPs (where serviceClusterIPs are announced), and its external and load-balancer IPs inside their ranges, from nodes
with a ready endpoint of it; of any other its external IPs that are a range of one address, and its load-balancer IPs that
are one or whose range is not aggregated, from every node.

Invariant: everything inside the three lists is kept out of the kernel (`service_ranges`), whoever announces it.
"""

from __future__ import annotations

from collections.abc import Iterator

from routed.model.kubernetes import Service
from routed.model.resources import Cidr, LoadBalancerAggregation
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix
from routed.plan.cluster import Cluster
from routed.plan.types import Origin

SERVICE = "service"
EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"

#: Types of services that have addresses of their own.
_WITH_ADDRESSES = frozenset({"ClusterIP", "NodePort", "LoadBalancer"})

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
    local = set(cluster.local_endpoints.values())
    for where, service in sorted(cluster.services.items()):
        if service.cluster_ips and service.type in _WITH_ADDRESSES:
            for address in _addresses(cluster, service, aggregated=aggregated):
                family = Family.of_address(address)
                if not service.external_traffic_local or (where.namespace, where.name, family) in local:
                    key = (family, make_prefix(address, family.max_length))
                    routes.setdefault(key, Origin(SERVICE, blackhole=False, why=str(where)))
    return routes


def _addresses(cluster: Cluster, service: Service, *, aggregated: bool) -> Iterator[bytes]:
    """The addresses of a service that have routes of their own, where it may attract traffic at all."""
    default = cluster.default_configuration
    single_only = not service.external_traffic_local
    if service.external_traffic_local and default.service_cluster_ips:
        yield from service.cluster_ips
    for addresses, ranges, ones in (
        (service.external_ips, default.service_external_ips, single_only),
        (service.load_balancer_ips, default.service_load_balancer_ips, single_only and aggregated),
    ):
        for address in addresses:
            if any(_holds(cidr, address, single_only=ones) for cidr in ranges):
                yield address


def _holds(cidr: Cidr, address: bytes, *, single_only: bool) -> bool:
    family = Family.of_address(address)
    if cidr.family is not family or (single_only and cidr.prefix[0] != family.max_length):
        return False
    return covers(cidr.prefix, make_prefix(address, family.max_length))
