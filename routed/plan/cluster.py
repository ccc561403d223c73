"""The resources a plan is made from, with the look-ups every part of planning asks.

Invariants: holds the last value of every resource and nothing derived but an index of block claims; `apply` says what a
change can matter to, so that a thousand Nodes that only report their state, and the blocks of others, cost nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import TypeVar

from routed.model.ipam import IPAMBlock
from routed.model.kubernetes import EndpointSlice, Service
from routed.model.policies import Profile
from routed.model.resources import (
    DEFAULT_AS_NUMBER,
    AffinityType,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    BlockAffinity,
    Cidr,
    IPPool,
    Node,
    NodeAddress,
    Resource,
    ResourceKey,
    Update,
)
from routed.model.settings import ClusterInformation, FelixConfiguration
from routed.model.workloads import WorkloadEndpoint
from routed.net.families import Family
from routed.plan.blocks import Blocks
from routed.values import dataclass

K = TypeVar("K")
T = TypeVar("T")

_SETTINGS = frozenset((FelixConfiguration.kind, ClusterInformation.kind))
_NOTHING_CONFIGURED = BGPConfiguration(name="default")


class Aspect(enum.Flag):
    """What a changed resource can change in a plan."""

    NOTHING = 0
    SESSIONS = enum.auto()
    ORIGINS = enum.auto()
    FILTERS = enum.auto()
    WORKLOADS = enum.auto()
    TUNNELS = enum.auto()


@dataclass(frozen=True, slots=True)
class Secret:
    """What planning knows of a password: never the password."""

    generation: int
    """Of its content; 0: there is none."""
    problem: str
    """What is wrong with it, in words, or empty."""


NO_SECRET = Secret(0, "")


class Cluster:
    """See the module's docstring. Dictionaries are by resource name."""

    __slots__ = (
        "_changed_workloads",
        "_claims",
        "affinities",
        "blocks",
        "configurations",
        "filters",
        "local_endpoints",
        "node_name",
        "nodes",
        "others",
        "peers",
        "pools",
        "secrets",
        "services",
        "workloads",
    )

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.nodes: dict[str, Node] = {}
        self.configurations: dict[str, BGPConfiguration] = {}
        self.peers: dict[str, BGPPeer] = {}
        self.filters: dict[str, BGPFilter] = {}
        self.pools: dict[str, IPPool] = {}
        self.affinities: dict[str, BlockAffinity] = {}
        self.secrets: dict[str, Secret] = {}
        """By `SECRET/KEY`."""
        self.others: dict[str, dict[ResourceKey, Resource]] = {}
        """By kind: what planning has no use for."""
        self.workloads: dict[ResourceKey, WorkloadEndpoint] = {}
        """The endpoints on this node."""
        self._changed_workloads: dict[ResourceKey, None] = {}
        self.services: dict[ResourceKey, Service] = {}
        self.local_endpoints: dict[ResourceKey, tuple[str, str, Family]] = {}
        """EndpointSlices with a ready endpoint on this node: (namespace, service, family of the endpoints)."""
        self.blocks = Blocks()
        """What the blocks themselves say of who has them and their addresses."""
        self._claims: dict[Cidr, set[str]] = {}
        """Names of the affinities of each block."""

    # ---- changes

    def apply(self, update: Update) -> Aspect:
        """Take in a change; what it can change in a plan. Kinds planning does not know change nothing."""
        name, value = update.key.name, update.value
        match update.key.kind:
            case Node.kind:
                return self._apply_node(name, value if isinstance(value, Node) else None)
            case BlockAffinity.kind:
                return self._apply_affinity(name, value if isinstance(value, BlockAffinity) else None)
            case BGPConfiguration.kind:
                _put(self.configurations, name, value if isinstance(value, BGPConfiguration) else None)
                return Aspect.SESSIONS | Aspect.FILTERS | Aspect.ORIGINS
            case BGPPeer.kind:
                _put(self.peers, name, value if isinstance(value, BGPPeer) else None)
                return Aspect.SESSIONS
            case BGPFilter.kind:
                _put(self.filters, name, value if isinstance(value, BGPFilter) else None)
                return Aspect.FILTERS
            case IPPool.kind:
                _put(self.pools, name, value if isinstance(value, IPPool) else None)
                return Aspect.FILTERS | Aspect.TUNNELS
            case WorkloadEndpoint.kind:
                return self._apply_workload(update.key, value if isinstance(value, WorkloadEndpoint) else None)
            case IPAMBlock.kind:
                return self._apply_block(name, value if isinstance(value, IPAMBlock) else None)
            case Service.kind:
                _put(self.services, update.key, value if isinstance(value, Service) else None)
                return self._of_services()
            case EndpointSlice.kind:
                found = self._local_endpoint(update.key, value) if isinstance(value, EndpointSlice) else None
                if found == self.local_endpoints.get(update.key):
                    return Aspect.NOTHING
                _put(self.local_endpoints, update.key, found)
                return self._of_services()
            case kind:
                others = self.others.setdefault(kind, {})
                before = bool(others)
                _put(others, update.key, value)
                # what there is none of, and what is set, is told with the plan
                if (
                    bool(others) is not before
                    or kind in _SETTINGS
                    or (kind == Profile.kind and self.peers_with_workloads)
                ):
                    settings = Aspect.FILTERS | Aspect.TUNNELS if kind in _SETTINGS else Aspect.NOTHING
                    return Aspect.SESSIONS | settings
                return Aspect.NOTHING

    def _apply_block(self, name: str, block: IPAMBlock | None) -> Aspect:
        for cidr in self.blocks.put(name, block):
            # of nearly all blocks a node knows no affinity
            if cidr in self._claims and any(one.node == self.node_name for one in self.claims(cidr)):
                return Aspect.ORIGINS
        return Aspect.NOTHING

    def _of_services(self) -> Aspect:
        """What a change of services can matter to: nothing where no range of them is announced."""
        default = self.default_configuration
        announced = default.service_cluster_ips or default.service_external_ips or default.service_load_balancer_ips
        return Aspect.ORIGINS if announced else Aspect.NOTHING

    def _local_endpoint(self, key: ResourceKey, found: EndpointSlice) -> tuple[str, str, Family] | None:
        if not any(one.ready and one.node_name == self.node_name for one in found.endpoints):
            return None
        family = Family.IPV6_UNICAST if found.address_type == "IPv6" else Family.IPV4_UNICAST
        return key.namespace, found.service, family

    def _apply_node(self, name: str, node: Node | None) -> Aspect:
        old = self.nodes.get(name)
        _put(self.nodes, name, node)
        aspect = Aspect.NOTHING
        if old is None or node is None or old.bgp != node.bgp or old.labels != node.labels:
            aspect |= Aspect.SESSIONS
        if _tunnel_ends(old) != _tunnel_ends(node):
            aspect |= Aspect.TUNNELS
        if name == self.node_name:
            aspect |= Aspect.ORIGINS
            if (
                old is None
                or node is None
                or old.bgp != node.bgp
                or old.wireguard_public_key != node.wireguard_public_key
            ):
                aspect |= Aspect.FILTERS
        return aspect

    def _apply_workload(self, key: ResourceKey, workload: WorkloadEndpoint | None) -> Aspect:
        old = self.workloads.get(key)
        if workload is not None and workload.node != self.node_name:
            workload = None
        _put(self.workloads, key, workload)
        if old == workload:
            return Aspect.NOTHING
        self._changed_workloads[key] = None
        return Aspect.WORKLOADS | (Aspect.SESSIONS if self.peers_with_workloads else Aspect.NOTHING)

    def _apply_affinity(self, name: str, affinity: BlockAffinity | None) -> Aspect:
        old = self.affinities.get(name)
        _put(self.affinities, name, affinity)
        if old is not None:
            self._claims[old.cidr].discard(name)
            if not self._claims[old.cidr]:
                del self._claims[old.cidr]
        if affinity is not None:
            self._claims.setdefault(affinity.cidr, set()).add(name)
        for changed in (old, affinity):
            if changed is not None:
                self.blocks.claimed(changed.cidr)
        for changed in (old, affinity):
            if changed is not None and (
                changed.node == self.node_name or any(one.node == self.node_name for one in self.claims(changed.cidr))
            ):
                return Aspect.ORIGINS
        return Aspect.NOTHING

    def take_changed_workloads(self) -> list[ResourceKey]:
        """The endpoints on this node that came, changed or went since the last call."""
        changed = list(self._changed_workloads)
        self._changed_workloads.clear()
        return changed

    # ---- look-ups

    @property
    def node(self) -> Node | None:
        """This node."""
        return self.nodes.get(self.node_name)

    @property
    def default_configuration(self) -> BGPConfiguration:
        return self.configurations.get("default", _NOTHING_CONFIGURED)

    @property
    def peers_with_workloads(self) -> bool:
        """Whether any BGPPeer makes workloads peers."""
        return any(peer.local_workload_selector is not None for peer in self.peers.values())

    def labels_of(self, workload: WorkloadEndpoint) -> Mapping[str, str]:
        """A workload's labels, over those its profiles give it."""
        labels: dict[str, str] = {}
        profiles = self.others.get(Profile.kind, {})
        for name in reversed(workload.profiles):
            profile = profiles.get(ResourceKey(Profile.kind, name))
            if isinstance(profile, Profile):
                labels.update(profile.labels_to_apply)
        labels.update(workload.labels)
        return labels

    @property
    def calico_release(self) -> tuple[int, int] | None:
        """What ClusterInformation says the cluster runs; None: nothing."""
        for information in self.others.get(ClusterInformation.kind, {}).values():
            if isinstance(information, ClusterInformation) and information.name == "default":
                return information.release
        return None

    @property
    def felix(self) -> dict[str, FelixConfiguration]:
        """By name."""
        others = self.others.get(FelixConfiguration.kind, {})
        return {key.name: value for key, value in others.items() if isinstance(value, FelixConfiguration)}

    def holder(self, cidr: Cidr) -> bytes:
        """The BGP address of the node that has an address, or holds a block, as its block says, else an affinity; empty
        where nobody does."""
        name = self.blocks.node_with(cidr) if cidr.prefix[0] == cidr.family.max_length else None
        if name is None:
            affinity = self.blocks.affinity(cidr)
            kind, _, name = (affinity or "").partition(":")
            if kind != AffinityType.HOST:
                claims = [one.node for one in self.claims(cidr) if one.is_confirmed and one.type is AffinityType.HOST]
                name = claims[0] if len(claims) == 1 and affinity is None else ""
        node = self.nodes.get(name)
        return address_of(node, cidr.family) if node is not None else b""

    def claims(self, cidr: Cidr) -> list[BlockAffinity]:
        """All nodes' affinities of a block, by name."""
        return [self.affinities[name] for name in sorted(self._claims.get(cidr, ()))]

    def other_claims(self, affinity: BlockAffinity) -> list[BlockAffinity]:
        """The affinities of its block but this one, by name; nearly always none."""
        names = self._claims.get(affinity.cidr, ())
        if len(names) < 2:
            return []
        return [self.affinities[name] for name in sorted(names) if name != affinity.name]

    def as_number(self, node: Node) -> int:
        if node.bgp is not None and node.bgp.as_number is not None:
            return node.bgp.as_number
        default = self.default_configuration.as_number
        return DEFAULT_AS_NUMBER if default is None else default

    def listen_port(self, node_name: str) -> int | None:
        """The port BGPConfigurations give a node; None: they say nothing, so it is 179."""
        own = self.configurations.get(f"node.{node_name}")
        if own is not None and own.listen_port is not None:
            return own.listen_port
        return self.default_configuration.listen_port

    def selected(self, peer: BGPPeer) -> Iterator[Node]:
        """The nodes a BGPPeer is for, by name."""
        for name in sorted(self.nodes):
            node = self.nodes[name]
            if is_selected(peer, node):
                yield node


def is_selected(peer: BGPPeer, node: Node) -> bool:
    """Whether a BGPPeer is for this node: by nodeSelector, by name, or because it is for all."""
    if peer.node_selector is not None:
        return peer.node_selector.matches(node.labels)
    return not peer.node or peer.node == node.name


def address_of(node: Node, family: Family) -> bytes:
    """A node's BGP address of a family, packed; empty where it has none."""
    if node.bgp is None:
        return b""
    own: NodeAddress | None = node.bgp.ipv4_address if family is Family.IPV4_UNICAST else node.bgp.ipv6_address
    return own.address if own is not None else b""


def _tunnel_ends(node: Node | None) -> tuple[object, ...]:
    """What of a Node decides what a tunnel to it looks like."""
    if node is None:
        return ()
    return (
        node.ipv4_vxlan_tunnel_addr,
        node.vxlan_tunnel_mac_addr,
        node.ipv6_vxlan_tunnel_addr,
        node.vxlan_tunnel_mac_addr_v6,
        node.bgp.ipv4_ipip_tunnel_addr if node.bgp is not None else None,
        address_of(node, Family.IPV4_UNICAST),
        address_of(node, Family.IPV6_UNICAST),
        node.wireguard,
    )


def _put(table: dict[K, T], name: K, value: T | None) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
