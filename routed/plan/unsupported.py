"""What BGPConfigurations and IPPools ask for that this release does not do: a sentence each, never silence.

What is done by another program where routed only takes BIRD's place (NAT, policies, tunnels: Felix's), or settled in
routed's own configuration, is a note: nobody has to act on it. What nobody does is a problem.

What a BGPPeer asks for is judged in `peers`, since it matters only on the nodes the peer is for.
"""

from __future__ import annotations

from dataclasses import field

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
from routed.values import dataclass

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
        "workloadSourceSpoofing",
    }
)
#: And for tunnels.
FELIX_OF_TUNNELS = frozenset({"ipipMTU", "vxlanMTU", "vxlanMTUV6", "vxlanPort", "vxlanVNI"})


@dataclass(frozen=True, slots=True)
class Unsupported:
    """See `Plan` for the difference."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def unsupported_settings(cluster: Cluster, version: CalicoVersion, *, own_workloads: bool = False) -> Unsupported:
    """`own_workloads`: the node's pods are routed's, and so are policy and NAT for them."""
    found = Unsupported()
    problems, notes = found.problems, found.notes
    if version is CalicoVersion.V3_31:
        problems.extend(_priorities(cluster.default_configuration))
    for name, configuration in sorted(cluster.configurations.items()):
        label = f"BGPConfiguration {name}: "
        if name == "default":
            notes.extend(label + text for text in _log_level(configuration))
        elif configuration.node_name is None:
            problems.append(label + "nothing uses it; the names that count are default and node.<nodename>")
        elif configuration.node_name == cluster.node_name:
            problems.extend(label + text for text in _of_this_node(configuration))
            notes.extend(label + text for text in _log_level(configuration))
    for name, pool in sorted(cluster.pools.items()) if not own_workloads else ():
        notes.extend(f"IPPool {name}: {text}" for text in _left_to_felix(pool))
    for kind in _NOT_ENFORCED if not own_workloads else ():
        others = cluster.others.get(kind)
        if others:
            who = f"{min(others)}{_and_more(len(others))}"
            notes.append(f"{who}: routed enforces no policies without cni.enabled; Felix does, if it runs")
    for key, felix in sorted(cluster.others.get(FelixConfiguration.kind, {}).items()):
        if isinstance(felix, FelixConfiguration) and felix.node_name in (None, cluster.node_name):
            used = FELIX_USED | (FELIX_OF_POLICY | FELIX_OF_TUNNELS if own_workloads else frozenset())
            fields = [name for name in set_fields(felix) if name not in used]
            if fields:
                notes.append(f"{key}: not used of it are {', '.join(fields)}")
    node = cluster.node
    if own_workloads and node is not None and (node.wireguard_public_key or node.wireguard_public_key_v6):
        problems.append(
            f"{node.key}: status.wireguardPublicKey: nothing is encrypted, routed makes no WireGuard device"
        )
    return found


def _and_more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


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
    return [f"spec.{field}: counts in the BGPConfiguration default only" for field in fields if field not in PER_NODE]


def _log_level(configuration: BGPConfiguration) -> list[str]:
    if configuration.log_severity_screen in (None, LogSeverity.INFO):
        return []
    return ["spec.logSeverityScreen: not used, the level is log.level in routed's own configuration"]


def _left_to_felix(pool: IPPool) -> list[str]:
    found = []
    if pool.vxlan_mode is not EncapMode.NEVER:
        found.append(f"spec.vxlanMode: {pool.vxlan_mode.value}: its routes are announced, but left to Felix to program")
    if pool.nat_outgoing:
        found.append("spec.natOutgoing: routed translates no addresses without cni.enabled; Felix does, if it runs")
    return found
