"""Which of the chosen routes go into the kernel, and which routes of others there are this node's own.

The part of Calico's BIRD configuration that is about its kernel and direct protocols.

Kept out of the kernel: service ranges; VXLAN pools, whose routes Felix makes; of the other pools those that
programClusterRoutes leaves to Felix (Disabled: all; EnabledIPIPOnly: those without encapsulation; EnabledNoEncapOnly:
those with IPIP); and what has another node's BGP address as next hop where both nodes run WireGuard, whose device Felix
leads to them (as of v3.33; before, such routes stood behind Felix's rules). Where the node's pods are routed's there is
no Felix, and all of these are ours. Routes of a pool with encapsulation lead into its tunnel, with CrossSubnet only past
this node's own subnet.

What differs between Calico's versions is decided here too: as of v3.32 LOCAL_PREF and a route's priority are one.
"""

from __future__ import annotations

from routed.model.resources import IPIP_DEVICE, VXLAN_DEVICES, EncapMode, IPPool, Node, ProgramClusterRoutes
from routed.model.settings import workload_prefixes
from routed.net.families import Family
from routed.plan.cluster import Cluster, address_of
from routed.plan.origins import BLOCK
from routed.plan.services import service_ranges
from routed.plan.tunnels import ways_into
from routed.plan.types import CalicoVersion, KernelPlan, LearnPlan, Origin, PlanSettings
from routed.rib.program import Programming, ProgramPolicy, ProgramRule

_LEFT_TO_FELIX = {
    ProgramClusterRoutes.ENABLED: (),
    ProgramClusterRoutes.DISABLED: ("IPIP", "no encapsulation"),
    ProgramClusterRoutes.ENABLED_IPIP_ONLY: ("no encapsulation",),
    ProgramClusterRoutes.ENABLED_NO_ENCAP_ONLY: ("IPIP",),
}


def plan_kernel(cluster: Cluster, settings: PlanSettings) -> KernelPlan:
    mapped = calico_version(cluster, settings) is CalicoVersion.V3_32
    default = cluster.default_configuration
    return KernelPlan(
        policy={family: _policy(cluster, family, settings) for family in Family},
        normal_priority={
            Family.IPV4_UNICAST: default.ipv4_normal_route_priority if mapped else 0,
            Family.IPV6_UNICAST: default.ipv6_normal_route_priority if mapped else 0,
        },
    )


def plan_learning(cluster: Cluster, settings: PlanSettings, origins: dict[tuple[Family, bytes], Origin]) -> LearnPlan:
    return LearnPlan(
        workload_prefixes=workload_prefixes(cluster.felix, cluster.node_name, settings.interface_prefixes),
        ignored_interfaces=cluster.default_configuration.ignored_interfaces,
        inside={
            family: tuple(
                sorted(
                    pool.cidr.prefix
                    for pool in cluster.pools.values()
                    if pool.cidr.family is family and not pool.disabled
                )
            )
            for family in Family
        },
        outside={
            family: tuple(
                sorted(prefix for (of, prefix), origin in origins.items() if of is family and origin.kind == BLOCK)
            )
            for family in Family
        },
    )


def calico_version(cluster: Cluster, settings: PlanSettings) -> CalicoVersion:
    """Which Calico to behave like: as the settings say, else by ClusterInformation, else the older one."""
    if settings.calico_version is not None:
        return settings.calico_version
    return CalicoVersion.V3_32 if (cluster.calico_release or (0, 0)) >= (3, 32) else CalicoVersion.V3_31


def felix_owns_ipip(cluster: Cluster) -> bool:
    return "IPIP" in _LEFT_TO_FELIX[_program_cluster_routes(cluster)]


def _program_cluster_routes(cluster: Cluster) -> ProgramClusterRoutes:
    """What is said, else what the cluster's Calico leaves to BGP: without IPIP since v3.33, where Felix has it."""
    said = cluster.default_configuration.program_cluster_routes
    if said is not None:
        return said
    newer = (cluster.calico_release or (0, 0)) >= (3, 33)
    return ProgramClusterRoutes.ENABLED_NO_ENCAP_ONLY if newer else ProgramClusterRoutes.ENABLED


def _policy(cluster: Cluster, family: Family, settings: PlanSettings) -> ProgramPolicy:
    rules = [
        ProgramRule(cidr.prefix, Programming.LEAVE, f"BGPConfiguration default {name}: kube-proxy has them", first=True)
        for name, cidr in service_ranges(cluster)
        if cidr.family is family
    ]
    setting = _program_cluster_routes(cluster)
    for name, pool in sorted(cluster.pools.items()):
        if pool.cidr.family is family:
            rule = _pool_rule(name, pool, None if settings.own_workloads else setting)
            if rule is not None:
                rules.append(rule)
    node = cluster.node
    subnet = b""
    if rules and node is not None and node.bgp is not None:
        own = node.bgp.ipv4_address if family is Family.IPV4_UNICAST else node.bgp.ipv6_address
        subnet = own.subnet if own is not None else b""
    ways = {device: ways_into(cluster, family, device) for device in {rule.device for rule in rules if rule.device}}
    left = {} if settings.own_workloads else _by_wireguard(cluster, family)
    return ProgramPolicy(rules, subnet, ways, left)


def _by_wireguard(cluster: Cluster, family: Family) -> dict[bytes, str]:
    """The BGP addresses of the nodes that Felix's WireGuard device leads to, where this node has one itself."""
    node = cluster.node
    if node is None or not _wireguard_address(node, family):
        return {}
    return {
        address: f"{other.key} is a WireGuard peer, Felix programs routes to it"
        for name, other in sorted(cluster.nodes.items())
        if name != cluster.node_name and _wireguard_address(other, family) and (address := address_of(other, family))
    }


def _wireguard_address(node: Node, family: Family) -> bytes | None:
    if node.wireguard is None:
        return None
    wireguard = node.wireguard
    return wireguard.interface_ipv4_address if family is Family.IPV4_UNICAST else wireguard.interface_ipv6_address


def _pool_rule(name: str, pool: IPPool, felix: ProgramClusterRoutes | None) -> ProgramRule | None:
    """`felix` says what is left to it; None: there is none, the node's pods are ours."""
    prefix = pool.cidr.prefix
    if pool.vxlan_mode is not EncapMode.NEVER:
        why = f"IPPool {name}: vxlanMode {pool.vxlan_mode.value}"
        if felix is not None:
            return ProgramRule(prefix, Programming.LEAVE, f"{why}, Felix programs its routes")
        return ProgramRule(prefix, _into(pool.vxlan_mode), why, device=VXLAN_DEVICES[pool.cidr.family])
    ipip = pool.ipip_mode is not EncapMode.NEVER
    if felix is not None and ("IPIP" if ipip else "no encapsulation") in _LEFT_TO_FELIX[felix]:
        why = f"IPPool {name}: programClusterRoutes {felix.value} leaves its routes to Felix"
        return ProgramRule(prefix, Programming.LEAVE, why)
    if not ipip:
        return None
    why = f"IPPool {name}: ipipMode {pool.ipip_mode.value}"
    return ProgramRule(prefix, _into(pool.ipip_mode), why, device=IPIP_DEVICE, any_next_hop=True)


def _into(mode: EncapMode) -> Programming:
    return Programming.CROSS_SUBNET if mode is EncapMode.CROSS_SUBNET else Programming.TUNNEL
