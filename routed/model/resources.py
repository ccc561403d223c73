"""The resources of a cluster, as values: Calico's kinds and fields, parsed once.

Invariants: everything is frozen; a field that Calico leaves out carries Calico's default, or None where Calico
distinguishes "not set". Addresses are packed octets, prefixes are canonical wire prefixes, AS numbers and router ids
are unsigned 32-bit integers, times are float seconds, communities are packed octets (4 for a standard one, RFC 1997;
12 for a large one, RFC 8092). `manifest` is the JSON the resource came from, kept for recording and for read-modify-
write of fields routed does not know. Parsing and validation are in `schema`; meaning is in `plan/`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from typing import ClassVar, NamedTuple, TypeAlias, TypedDict

import msgspec

from routed.model.selector import Selector
from routed.net.families import Family
from routed.net.prefixes import covers, format_prefix
from routed.values import dataclass

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""Any JSON value."""
JsonObject: TypeAlias = dict[str, JsonValue]
"""A JSON object. Never changed once it is part of a resource."""

DEFAULT_AS_NUMBER = 64512
"""The AS of a node when neither the Node nor the default BGPConfiguration names one."""
DEFAULT_PORT = 179
DEFAULT_ROUTE_PRIORITY = 1024


def json_line(value: JsonValue, *, ordered: bool = False) -> bytes:
    """JSON on one line, as the datastore has it and a saved state keeps it: made often, so by the quickest of encoders.

    `ordered`: the same for equal values, whatever the order of their keys.
    """
    try:
        return msgspec.json.encode(value, order="deterministic" if ordered else None)
    except (OverflowError, UnicodeEncodeError):
        # a number of more than 64 bits, or half of a pair, which JSON can only hold as an escape: written back as it came
        return json.dumps(value, separators=(",", ":"), sort_keys=ordered).encode()


class BindMode(enum.StrEnum):
    NONE = "None"
    NODE_IP = "NodeIP"


class ProgramClusterRoutes(enum.StrEnum):
    ENABLED = "Enabled"
    DISABLED = "Disabled"
    ENABLED_IPIP_ONLY = "EnabledIPIPOnly"
    ENABLED_NO_ENCAP_ONLY = "EnabledNoEncapOnly"


class LoadBalancerAggregation(enum.StrEnum):
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class LogSeverity(enum.StrEnum):
    TRACE = "Trace"
    DEBUG = "Debug"
    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"
    FATAL = "Fatal"


class NextHopMode(enum.StrEnum):
    AUTO = "Auto"
    SELF = "Self"
    KEEP = "Keep"


class SourceAddress(enum.StrEnum):
    USE_NODE_IP = "UseNodeIP"
    NONE = "None"


class ReversePeering(enum.StrEnum):
    AUTO = "Auto"
    MANUAL = "Manual"


class MatchOperator(enum.StrEnum):
    EQUAL = "Equal"
    NOT_EQUAL = "NotEqual"
    IN = "In"
    NOT_IN = "NotIn"


class FilterAction(enum.StrEnum):
    ACCEPT = "Accept"
    REJECT = "Reject"


class MatchSource(enum.StrEnum):
    REMOTE_PEERS = "RemotePeers"


class PeerType(enum.StrEnum):
    EBGP = "eBGP"
    IBGP = "iBGP"


class EncapMode(enum.StrEnum):
    """ipipMode and vxlanMode of a pool."""

    NEVER = "Never"
    ALWAYS = "Always"
    CROSS_SUBNET = "CrossSubnet"


VXLAN_DEVICES = {Family.IPV4_UNICAST: "vxlan.calico", Family.IPV6_UNICAST: "vxlan-v6.calico"}
IPIP_DEVICE = "tunl0"
"""A node's interfaces into the tunnels of pools, as Felix names them."""


class AllowedUse(enum.StrEnum):
    WORKLOAD = "Workload"
    TUNNEL = "Tunnel"
    LOAD_BALANCER = "LoadBalancer"


class AssignmentMode(enum.StrEnum):
    AUTOMATIC = "Automatic"
    MANUAL = "Manual"


class AffinityState(enum.StrEnum):
    """An absent or empty state is old data and means confirmed."""

    CONFIRMED = "confirmed"
    PENDING = "pending"
    PENDING_DELETION = "pendingDeletion"


class AffinityType(enum.StrEnum):
    HOST = "host"
    VIRTUAL = "virtual"


# What is made, looked up and compared for each of tens of thousands of keys is a tuple: that takes a third of the time.


class ResourceKey(NamedTuple):
    """What names a resource; `namespace` is empty for the global kinds."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Cidr(NamedTuple):
    """A prefix with its family, since a wire prefix alone does not tell."""

    family: Family
    prefix: bytes
    """Canonical wire prefix."""

    def __str__(self) -> str:
        return format_prefix(self.family, self.prefix)

    def overlaps(self, other: Cidr) -> bool:
        return self.family is other.family and (covers(self.prefix, other.prefix) or covers(other.prefix, self.prefix))


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """`10.0.0.1/24`: a node's own address and the subnet it is in (what CrossSubnet is judged by)."""

    address: bytes
    """Packed octets."""
    subnet: bytes
    """Wire prefix of the subnet; a host prefix where the manifest gave no mask."""


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    """Where a password is kept: a key of a Secret."""

    name: str
    key: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Base of every kind."""

    kind: ClassVar[str]

    name: str
    namespace: str = ""
    """Empty for the kinds that belong to the whole cluster."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    manifest: JsonObject = field(default_factory=dict, hash=False, repr=False)
    """The whole JSON object this was parsed from. Treat as read-only."""

    @property
    def key(self) -> ResourceKey:
        return ResourceKey(self.kind, self.name, self.namespace)

    def manifest_text(self) -> bytes:
        """The manifest as JSON on one line."""
        return json_line(self.manifest)

    def says_the_same(self, other: Resource) -> bool:
        """Whether another resource was parsed from an equal manifest."""
        return self.manifest == other.manifest


kept_manifest: Callable[[Resource], bytes | JsonObject] = vars(Resource)["manifest"].__get__
"""What the field was given, where that is not what the resource shows: see `Unread`."""


class Unread(Resource):
    """Beside a kind: one that was found right without its manifest being made, which is read when somebody asks.

    In the field is what was stored, as octets on one line, or in a changed copy a manifest. It equals the resource it stands
    for.
    """

    __slots__ = ()

    @property
    def manifest(self) -> JsonObject:
        kept = kept_manifest(self)
        if isinstance(kept, bytes):
            manifest: JsonObject = json.loads(kept)  # nothing is kept of it: hardly anybody asks
            return manifest
        return kept

    def manifest_text(self) -> bytes:
        kept = kept_manifest(self)
        return kept if isinstance(kept, bytes) else super().manifest_text()

    def says_the_same(self, other: Resource) -> bool:
        return (isinstance(other, Unread) and kept_manifest(self) == kept_manifest(other)) or super().says_the_same(
            other
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Resource) or other.kind != self.kind:
            return NotImplemented
        names = (each.name for each in fields(self) if each.name != "manifest")
        return all(getattr(self, name) == getattr(other, name) for name in names) and self.says_the_same(other)

    def __hash__(self) -> int:
        return super().__hash__()


class Common(TypedDict):
    """What every reader hands to its resource."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    manifest: JsonObject


class Update(NamedTuple):
    """The one input of `plan`: the resource at `key` is now `value`, or absent (None)."""

    key: ResourceKey
    value: Resource | None


# --- Node ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeBGP:
    """Node.spec.bgp. A Node without it speaks no BGP."""

    as_number: int | None = None
    """None: the default BGPConfiguration's."""
    ipv4_address: NodeAddress | None = None
    ipv6_address: NodeAddress | None = None
    ipv4_ipip_tunnel_addr: bytes | None = None
    route_reflector_cluster_id: int | None = None
    """As a router id; None: not a route reflector. Never 0."""


@dataclass(frozen=True, slots=True)
class NodeWireguard:
    interface_ipv4_address: bytes | None = None
    interface_ipv6_address: bytes | None = None


@dataclass(frozen=True, slots=True)
class OrchRef:
    node_name: str
    orchestrator: str


@dataclass(frozen=True, slots=True)
class ReportedAddress:
    """An entry of Node.spec.addresses: an address a client can reach the node at."""

    address: NodeAddress
    type: str = ""


@dataclass(frozen=True, slots=True)
class NodeInterface:
    name: str
    addresses: tuple[bytes, ...] = ()
    """Packed octets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Resource):
    kind: ClassVar[str] = "Node"

    bgp: NodeBGP | None = None
    ipv4_vxlan_tunnel_addr: bytes | None = None
    vxlan_tunnel_mac_addr: bytes | None = None
    """Six octets."""
    ipv6_vxlan_tunnel_addr: bytes | None = None
    vxlan_tunnel_mac_addr_v6: bytes | None = None
    orch_refs: tuple[OrchRef, ...] = ()
    wireguard: NodeWireguard | None = None
    addresses: tuple[ReportedAddress, ...] = ()
    interfaces: tuple[NodeInterface, ...] = ()
    wireguard_public_key: str = ""
    wireguard_public_key_v6: str = ""
    pod_cidrs: tuple[Cidr, ...] = ()
    """status.podCIDRs: the node's own blocks where no BlockAffinity names them."""


# --- BGPConfiguration ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrefixAdvertisement:
    """Communities to add to routes inside `cidr`, with names already resolved against spec.communities."""

    cidr: Cidr
    communities: tuple[bytes, ...]
    """Packed: 4 octets (standard) or 12 (large)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPConfiguration(Resource):
    """`default` is the cluster's; `node.<name>` may override its listen port, advertisements and log severity."""

    kind: ClassVar[str] = "BGPConfiguration"

    log_severity_screen: LogSeverity | None = None
    node_to_node_mesh_enabled: bool | None = None
    """None counts as true."""
    as_number: int | None = None
    """None counts as DEFAULT_AS_NUMBER."""
    listen_port: int | None = None
    """None: the default BGPConfiguration's, then DEFAULT_PORT."""
    bind_mode: BindMode = BindMode.NONE
    service_cluster_ips: tuple[Cidr, ...] = ()
    service_external_ips: tuple[Cidr, ...] = ()
    service_load_balancer_ips: tuple[Cidr, ...] = ()
    service_load_balancer_aggregation: LoadBalancerAggregation = LoadBalancerAggregation.ENABLED
    communities: tuple[tuple[str, bytes], ...] = ()
    """(name, packed community) in the manifest's order."""
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    node_mesh_password: SecretKeyRef | None = None
    node_mesh_max_restart_time: float | None = None
    """Seconds; None: 120."""
    ignored_interfaces: tuple[str, ...] = ()
    """Interface names, `*` matches any run of characters."""
    local_workload_peering_ipv4: bytes | None = None
    local_workload_peering_ipv6: bytes | None = None
    program_cluster_routes: ProgramClusterRoutes | None = None
    """None: as the cluster's Calico has it."""
    ipv4_normal_route_priority: int = DEFAULT_ROUTE_PRIORITY
    ipv6_normal_route_priority: int = DEFAULT_ROUTE_PRIORITY

    @property
    def node_name(self) -> str | None:
        """The node a `node.<name>` configuration is for; None for the others."""
        return self.name[5:] if self.name.startswith("node.") else None


# --- BGPPeer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPPeer(Resource):
    """Which nodes peer with whom. No `node` and no `node_selector`: every node (a global peer)."""

    kind: ClassVar[str] = "BGPPeer"

    node: str = ""
    node_selector: Selector | None = None
    peer_ip: bytes | None = None
    """Packed address; None where `peer_selector` or `local_workload_selector` names the peers."""
    peer_port: int | None = None
    """The port written in peerIP; None: 179, or the listen port of the node that owns the address."""
    as_number: int | None = None
    local_as_number: int | None = None
    peer_selector: Selector | None = None
    local_workload_selector: Selector | None = None
    keep_original_next_hop: bool = False
    """Deprecated in Calico: keep, for eBGP only."""
    next_hop_mode: NextHopMode | None = None
    """None: not set, so `keep_original_next_hop` decides."""
    password: SecretKeyRef | None = None
    source_address: SourceAddress = SourceAddress.USE_NODE_IP
    max_restart_time: float | None = None
    """Seconds, the graceful restart time; None: 120."""
    keepalive_time: float | None = None
    """Seconds."""
    num_allowed_local_as_numbers: int = 0
    ttl_security: int | None = None
    """Hops (GTSM, RFC 5082); None: off."""
    reachable_by: bytes | None = None
    """Packed address of the gateway the peer is reached through."""
    filters: tuple[str, ...] = ()
    """Names of BGPFilters, applied in this order."""
    reverse_peering: ReversePeering = ReversePeering.AUTO

    @property
    def is_global(self) -> bool:
        return not self.node and self.node_selector is None


# --- BGPFilter -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddCommunity:
    value: bytes
    """Packed: 4 octets (standard) or 12 (large)."""


@dataclass(frozen=True, slots=True)
class PrependASPath:
    prefix: tuple[int, ...]
    """In the order the path will read."""


@dataclass(frozen=True, slots=True)
class SetPriority:
    value: int
    """Route priority (metric), 1..2147483646; LOCAL_PREF is 2147483647 minus it."""


FilterOperation: TypeAlias = AddCommunity | PrependASPath | SetPriority


@dataclass(frozen=True, slots=True)
class BGPFilterRule:
    """One rule; all conditions present must hold. The first rule that matches decides."""

    action: FilterAction
    cidr: bytes | None = None
    """Wire prefix of the rule list's family."""
    match_operator: MatchOperator | None = None
    """Set exactly where `cidr` is."""
    prefix_length_min: int | None = None
    prefix_length_max: int | None = None
    source: MatchSource | None = None
    interface: str = ""
    """Glob; `*` matches any run of characters."""
    peer_type: PeerType | None = None
    communities: tuple[bytes, ...] = ()
    """Packed; at most one, as in Calico."""
    as_path_prefix: tuple[int, ...] = ()
    priority: int | None = None
    operations: tuple[FilterOperation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPFilter(Resource):
    kind: ClassVar[str] = "BGPFilter"

    import_v4: tuple[BGPFilterRule, ...] = ()
    import_v6: tuple[BGPFilterRule, ...] = ()
    export_v4: tuple[BGPFilterRule, ...] = ()
    export_v6: tuple[BGPFilterRule, ...] = ()


# --- IPPool, BlockAffinity -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IPPool(Resource):
    kind: ClassVar[str] = "IPPool"

    cidr: Cidr
    ipip_mode: EncapMode = EncapMode.NEVER
    vxlan_mode: EncapMode = EncapMode.NEVER
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = False
    block_size: int
    """Prefix length of a block; 26 for IPv4 and 122 for IPv6 unless set."""
    node_selector: Selector
    """all() unless set."""
    namespace_selector: Selector | None = None
    allowed_uses: tuple[AllowedUse, ...] = (AllowedUse.WORKLOAD, AllowedUse.TUNNEL)
    assignment_mode: AssignmentMode = AssignmentMode.AUTOMATIC


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAffinity(Resource):
    """A block of addresses held by a node. Only a confirmed one that is not deleted is the node's own."""

    kind: ClassVar[str] = "BlockAffinity"

    node: str
    cidr: Cidr
    state: AffinityState = AffinityState.CONFIRMED
    type: AffinityType = AffinityType.HOST
    deleted: bool = False

    @property
    def is_confirmed(self) -> bool:
        return self.state is AffinityState.CONFIRMED and not self.deleted
