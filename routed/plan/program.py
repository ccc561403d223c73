"""Which of the chosen routes go into the kernel, and which routes of others there are this node's own.

The part of Calico's BIRD configuration that is about its kernel and direct protocols.

Kept out of the kernel: service ranges; VXLAN pools, whose routes Felix makes; and of the other pools those that
programClusterRoutes leaves to Felix (Disabled: all; EnabledIPIPOnly: those without encapsulation; EnabledNoEncapOnly:
those with IPIP). Routes of an IPIP pool lead into the tunnel, with CrossSubnet only past this node's own subnet.

What differs between Calico's versions is decided here too: as of v3.32 LOCAL_PREF and a route's priority are one.
"""

from __future__ import annotations

import re

from routed.model.resources import EncapMode, IPPool, ProgramClusterRoutes
from routed.net.families import Family
from routed.plan.cluster import Cluster
from routed.plan.origins import BLOCK
from routed.plan.services import service_ranges
from routed.plan.types import CalicoVersion, KernelPlan, LearnPlan, Origin, PlanSettings
from routed.rib.program import Programming, ProgramPolicy, ProgramRule

DEFAULT_INTERFACE_PREFIX = "cali"

_VERSION = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})")

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
        policy={family: _policy(cluster, family) for family in Family},
        normal_priority={
            Family.IPV4_UNICAST: default.ipv4_normal_route_priority if mapped else 0,
            Family.IPV6_UNICAST: default.ipv6_normal_route_priority if mapped else 0,
        },
    )


def plan_learning(cluster: Cluster, settings: PlanSettings, origins: dict[tuple[Family, bytes], Origin]) -> LearnPlan:
    return LearnPlan(
        workload_prefixes=settings.interface_prefixes or cluster.interface_prefixes or (DEFAULT_INTERFACE_PREFIX,),
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
    found = _VERSION.match(cluster.calico_version)
    newer = found is not None and (int(found[1]), int(found[2])) >= (3, 32)
    return CalicoVersion.V3_32 if newer else CalicoVersion.V3_31


def felix_owns_ipip(cluster: Cluster) -> bool:
    return "IPIP" in _LEFT_TO_FELIX[cluster.default_configuration.program_cluster_routes]


def _policy(cluster: Cluster, family: Family) -> ProgramPolicy:
    rules = [
        ProgramRule(cidr.prefix, Programming.LEAVE, f"BGPConfiguration default {name}: kube-proxy has them", first=True)
        for name, cidr in service_ranges(cluster)
        if cidr.family is family
    ]
    setting = cluster.default_configuration.program_cluster_routes
    for name, pool in sorted(cluster.pools.items()):
        if pool.cidr.family is family:
            rule = _pool_rule(name, pool, setting)
            if rule is not None:
                rules.append(rule)
    node = cluster.node
    subnet = b""
    if rules and family is Family.IPV4_UNICAST and node is not None and node.bgp is not None and node.bgp.ipv4_address:
        subnet = node.bgp.ipv4_address.subnet
    return ProgramPolicy(rules, subnet)


def _pool_rule(name: str, pool: IPPool, setting: ProgramClusterRoutes) -> ProgramRule | None:
    prefix = pool.cidr.prefix
    if pool.vxlan_mode is not EncapMode.NEVER:
        why = f"IPPool {name}: vxlanMode {pool.vxlan_mode.value}, Felix programs its routes"
        return ProgramRule(prefix, Programming.LEAVE, why)
    ipip = pool.ipip_mode is not EncapMode.NEVER
    if ("IPIP" if ipip else "no encapsulation") in _LEFT_TO_FELIX[setting]:
        why = f"IPPool {name}: programClusterRoutes {setting.value} leaves its routes to Felix"
        return ProgramRule(prefix, Programming.LEAVE, why)
    if not ipip:
        return None
    cross = pool.ipip_mode is EncapMode.CROSS_SUBNET
    return ProgramRule(
        prefix,
        Programming.IPIP_CROSS_SUBNET if cross else Programming.IPIP,
        f"IPPool {name}: ipipMode {pool.ipip_mode.value}",
    )
