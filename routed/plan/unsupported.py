"""What BGPConfigurations and IPPools ask for that this release does not do: a sentence each, never silence.

What a BGPPeer asks for is judged in `peers`, since it matters only on the nodes the peer is for.
"""

from __future__ import annotations

from routed.model.bgp import PER_NODE
from routed.model.resources import (
    DEFAULT_ROUTE_PRIORITY,
    BGPConfiguration,
    EncapMode,
    IPPool,
    LogSeverity,
)
from routed.model.settings import FelixConfiguration, set_fields
from routed.plan.cluster import Cluster
from routed.plan.types import CalicoVersion

#: Kinds that only mean something to who enforces policies.
_NOT_ENFORCED = ("NetworkPolicy", "GlobalNetworkPolicy", "KubernetesNetworkPolicy", "HostEndpoint")
#: What of a FelixConfiguration counts for routes.
FELIX_USED = frozenset({"interfacePrefix"})
#: And for policy.
FELIX_OF_POLICY = frozenset(
    {
        "defaultEndpointToHostAction",
        "disableConntrackInvalidCheck",
        "failsafeInboundHostPorts",
        "failsafeOutboundHostPorts",
    }
)
#: And for tunnels.
FELIX_OF_TUNNELS = frozenset({"ipipMTU", "vxlanMTU", "vxlanMTUV6", "vxlanPort", "vxlanVNI"})


def unsupported_settings(
    cluster: Cluster, version: CalicoVersion = CalicoVersion.V3_31, *, own_workloads: bool = False
) -> list[str]:
    """`own_workloads`: the node's pods are routed's, and so are policy and NAT for them."""
    problems: list[str] = []
    if version is CalicoVersion.V3_31:
        problems.extend(_priorities(cluster.default_configuration))
    for name, configuration in sorted(cluster.configurations.items()):
        label = f"BGPConfiguration {name}: "
        if name == "default":
            problems.extend(label + text for text in _cluster_wide(configuration))
        elif configuration.node_name is None:
            problems.append(label + "nothing uses it; the names that count are default and node.<nodename>")
        elif configuration.node_name == cluster.node_name:
            problems.extend(label + text for text in _of_this_node(configuration))
    for name, pool in sorted(cluster.pools.items()):
        problems.extend(f"IPPool {name}: {text}" for text in _pool(pool, own_workloads=own_workloads))
    for kind in _NOT_ENFORCED if not own_workloads else ():
        others = cluster.others.get(kind)
        if others:
            problems.append(f"{min(others)}{_and_more(len(others))}: no policies are enforced without cni.enabled")
    for key, felix in sorted(cluster.others.get(FelixConfiguration.kind, {}).items()):
        if isinstance(felix, FelixConfiguration) and felix.node_name in (None, cluster.node_name):
            used = FELIX_USED | (FELIX_OF_POLICY | FELIX_OF_TUNNELS if own_workloads else frozenset())
            fields = [name for name in set_fields(felix) if name not in used]
            if fields:
                problems.append(f"{key}: not used of it are {', '.join(fields)}")
    node = cluster.node
    if own_workloads and node is not None and (node.wireguard_public_key or node.wireguard_public_key_v6):
        problems.append(
            f"{node.key}: status.wireguardPublicKey: nothing is encrypted, routed makes no WireGuard device"
        )
    return problems


def _and_more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def _cluster_wide(configuration: BGPConfiguration) -> list[str]:
    return _log_level(configuration)


def _priorities(default: BGPConfiguration) -> list[str]:
    return [
        f"BGPConfiguration default: spec.{field}: counts as of Calico v3.32, and calicoVersion is v3.31"
        for field, value in (
            ("ipv4NormalRoutePriority", default.ipv4_normal_route_priority),
            ("ipv6NormalRoutePriority", default.ipv6_normal_route_priority),
        )
        if value != DEFAULT_ROUTE_PRIORITY
    ]


def _of_this_node(configuration: BGPConfiguration) -> list[str]:
    spec = configuration.manifest.get("spec")
    fields = sorted(spec) if isinstance(spec, dict) else []
    ignored = [
        f"spec.{field}: counts in the BGPConfiguration default only" for field in fields if field not in PER_NODE
    ]
    return [*ignored, *_log_level(configuration)]


def _log_level(configuration: BGPConfiguration) -> list[str]:
    if configuration.log_severity_screen in (None, LogSeverity.INFO):
        return []
    return ["spec.logSeverityScreen: not used, the level is log.level in routed's own configuration"]


def _pool(pool: IPPool, *, own_workloads: bool) -> list[str]:
    found = []
    if pool.vxlan_mode is not EncapMode.NEVER and not own_workloads:
        found.append(f"spec.vxlanMode: {pool.vxlan_mode.value}: its routes are announced, but left to Felix to program")
    if pool.nat_outgoing and not own_workloads:
        found.append("spec.natOutgoing: is not supported, packets leave the cluster with the pod's address")
    return found
