"""What BGPConfigurations and IPPools ask for that this release does not do: a sentence each, never silence.

What a BGPPeer asks for is judged in `peers`, since it matters only on the nodes the peer is for.
"""

from __future__ import annotations

from routed.model.resources import (
    DEFAULT_ROUTE_PRIORITY,
    BGPConfiguration,
    EncapMode,
    IPPool,
    LogSeverity,
    ProgramClusterRoutes,
)
from routed.plan.cluster import Cluster

#: What a `node.<name>` BGPConfiguration may say, as in Calico.
_PER_NODE = frozenset({"listenPort", "prefixAdvertisements", "logSeverityScreen", "communities"})


def unsupported_settings(cluster: Cluster) -> list[str]:
    problems: list[str] = []
    for name, configuration in sorted(cluster.configurations.items()):
        label = f"BGPConfiguration {name}: "
        if name == "default":
            problems.extend(label + text for text in _cluster_wide(configuration))
        elif configuration.node_name is None:
            problems.append(label + "nothing uses it; the names that count are default and node.<nodename>")
        elif configuration.node_name == cluster.node_name:
            problems.extend(label + text for text in _of_this_node(configuration))
    for name, pool in sorted(cluster.pools.items()):
        problems.extend(f"IPPool {name}: {text}" for text in _pool(pool))
    return problems


def _cluster_wide(configuration: BGPConfiguration) -> list[str]:
    services = (
        ("serviceClusterIPs", configuration.service_cluster_ips),
        ("serviceExternalIPs", configuration.service_external_ips),
        ("serviceLoadBalancerIPs", configuration.service_load_balancer_ips),
    )
    texts = [f"spec.{field}: services are not announced" for field, cidrs in services if cidrs]
    checks = (
        (
            bool(configuration.ignored_interfaces),
            "spec.ignoredInterfaces: not needed, addresses of interfaces are never announced",
        ),
        (
            configuration.local_workload_peering_ipv4 is not None
            or configuration.local_workload_peering_ipv6 is not None,
            "spec.localWorkloadPeeringIPV4 and IPV6: peering with pods is not supported",
        ),
        (
            configuration.program_cluster_routes
            in (ProgramClusterRoutes.DISABLED, ProgramClusterRoutes.ENABLED_IPIP_ONLY),
            "spec.programClusterRoutes: not supported, see kernel.programRoutes in routed's own configuration",
        ),
        (
            configuration.ipv4_normal_route_priority != DEFAULT_ROUTE_PRIORITY
            or configuration.ipv6_normal_route_priority != DEFAULT_ROUTE_PRIORITY,
            "spec.ipv4NormalRoutePriority and ipv6NormalRoutePriority: not supported, the priority is 1024",
        ),
    )
    return [*texts, *(text for is_set, text in checks if is_set), *_log_level(configuration)]


def _of_this_node(configuration: BGPConfiguration) -> list[str]:
    spec = configuration.manifest.get("spec")
    fields = sorted(spec) if isinstance(spec, dict) else []
    ignored = [
        f"spec.{field}: counts in the BGPConfiguration default only" for field in fields if field not in _PER_NODE
    ]
    return [*ignored, *_log_level(configuration)]


def _log_level(configuration: BGPConfiguration) -> list[str]:
    if configuration.log_severity_screen in (None, LogSeverity.INFO):
        return []
    return ["spec.logSeverityScreen: not used, the level is log.level in routed's own configuration"]


def _pool(pool: IPPool) -> list[str]:
    found = [
        f"spec.{field}: {mode.value} is not supported, its routes are programmed without encapsulation"
        for field, mode in (("ipipMode", pool.ipip_mode), ("vxlanMode", pool.vxlan_mode))
        if mode is not EncapMode.NEVER
    ]
    if pool.nat_outgoing:
        found.append("spec.natOutgoing: is not supported, packets leave the cluster with the pod's address")
    return found
