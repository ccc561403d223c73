"""What a plan is made of, and what differs between two of them. Values only; all compare by content."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import field

from routed.bgp.attributes import DEFAULT_LOCAL_PREF
from routed.bgp.neighbor import NeighborConfig
from routed.desired import Tunnel
from routed.net.families import Family
from routed.rib.export import NextHopMode
from routed.rib.filters import RouteFilter
from routed.rib.path import HIGHEST_LOCAL_PREF, Path, SourceKind
from routed.rib.program import PROGRAM_ALL, ProgramPolicy
from routed.values import dataclass

__all__ = [
    "CalicoVersion", "KernelPlan", "LearnPlan", "NextHopMode", "Origin", "PeerChange", "PeerPlan", "Plan", "PlanDelta",
    "PlanSettings", "PodCidrs", "Speaker",
]  # fmt: skip


class CalicoVersion(enum.StrEnum):
    """Which Calico routed behaves like where they differ on the wire or in the kernel."""

    V3_31 = "v3.31"
    V3_32 = "v3.32"
    """LOCAL_PREF carries the priority (metric) of a route."""


class PodCidrs(enum.Enum):
    """When status.podCIDRs of this Node are its own blocks."""

    NEVER = "never"
    WITHOUT_AFFINITY = "without-affinity"
    """Where no BlockAffinity of a family names the node."""
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What the daemon's own configuration says about planning."""

    router_id: int | None = None
    """None: the Node's IPv4 address, or a hash of its name where it has none."""
    interface_of: Callable[[Path], str] | None = None
    """The name of the interface a path leaves through, for filters that ask; without it they never match."""
    calico_version: CalicoVersion | None = None
    """None: what ClusterInformation says, else v3.31."""
    pod_cidrs: PodCidrs = PodCidrs.WITHOUT_AFFINITY
    interface_prefixes: tuple[str, ...] = ()
    """What names of workload interfaces begin with; empty: what FelixConfiguration says, else `cali`."""
    own_workloads: bool = False
    """The pods of this node are ours: their routes follow from their WorkloadEndpoints."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """This node as a BGP speaker."""

    local_as: int
    router_id: int
    listen_port: int
    cluster_id: int = 0
    """Route-reflector cluster id; 0: not a route reflector."""
    ipv4_address: bytes = b""
    """Packed, without its mask; empty: the Node has none, so it has no IPv4 sessions."""
    ipv6_address: bytes = b""
    listen_addresses: tuple[bytes, ...] = ()
    """Where connections are taken (bindMode NodeIP); empty: on every address."""


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One neighbour, with everything routed has to know of it."""

    name: str
    """`Mesh_10_0_0_2`, `Global_...`, `Node_...`, as in Calico."""
    session: NeighborConfig
    kind: SourceKind
    """EBGP, IBGP or IBGP_CLIENT (our route-reflection client)."""
    cluster_id: int
    """Of an internal peer: what goes in front of CLUSTER_LIST when we reflect, and marks a loop (RFC 4456 8). 0 where
    this node reflects nothing."""
    next_hop_mode: NextHopMode
    allowed_own_as: int
    """How often our own AS may be in a path the peer announces (numAllowedLocalASNumbers)."""
    import_filter: Mapping[Family, RouteFilter]
    export_filter: Mapping[Family, RouteFilter]
    why: str
    """Which resource made it: "BGPPeer tor-a", "node-to-node mesh"."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A route this node originates."""

    kind: str
    """`block`: a block of pod addresses this node owns; `service`: addresses of services; `workload`: an address
    of a pod here; `peer`: the way to a peer by its
    reachableBy."""
    blackhole: bool
    """Whether the kernel gets a blackhole for it, so that unused addresses do not follow the default route."""
    why: str
    """Which resource made it: "BlockAffinity node-1-10-244-1-0-26"."""
    gateway: bytes = b""
    """Packed address the kernel's route leads through; empty: none."""
    interface: str = ""
    """The interface it is directly behind; empty: none."""


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """What of the chosen routes goes into the kernel, a family each."""

    policy: Mapping[Family, ProgramPolicy] = field(default_factory=lambda: dict.fromkeys(Family, PROGRAM_ALL))
    normal_priority: Mapping[Family, int] = field(default_factory=lambda: dict.fromkeys(Family, 0))
    """The priority of a route that says none, where LOCAL_PREF and priority are one (v3.32); 0: they are not."""

    def default_local_pref(self, family: Family) -> int:
        """The LOCAL_PREF of a path that says none."""
        normal = self.normal_priority[family]
        return HIGHEST_LOCAL_PREF - normal if normal else DEFAULT_LOCAL_PREF


@dataclass(frozen=True, slots=True)
class LearnPlan:
    """Which routes others put into the kernel are routes of this node."""

    workload_prefixes: tuple[str, ...] = ("cali",)
    """Host routes straight to an interface whose name begins with one of these are workloads' addresses."""
    ignored_interfaces: tuple[str, ...] = ()
    """Globs of interfaces whose own addresses are not looked at."""
    inside: Mapping[Family, tuple[bytes, ...]] = field(default_factory=lambda: dict.fromkeys(Family, ()))
    """An interface's own address is announced where one of these (the enabled pools) covers it ..."""
    outside: Mapping[Family, tuple[bytes, ...]] = field(default_factory=lambda: dict.fromkeys(Family, ()))
    """... and none of these (own blocks) does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What this node should do. Without a speaker there are no peers."""

    speaker: Speaker | None = None
    peers: Mapping[str, PeerPlan] = field(default_factory=dict)
    """By name."""
    origins: Mapping[tuple[Family, bytes], Origin] = field(default_factory=dict)
    withheld: Mapping[tuple[Family, bytes], str] = field(default_factory=dict)
    """Blocks this node has a claim to and does not announce, with the reason."""
    kernel: KernelPlan = field(default_factory=KernelPlan)
    learn: LearnPlan = field(default_factory=LearnPlan)
    tunnels: tuple[Tunnel, ...] | None = None
    """The devices of pools with encapsulation; None: they are somebody else's."""
    problems: tuple[str, ...] = ()
    """What resources ask for and won't get, a sentence each that begins with the resource; sorted."""
    notes: tuple[str, ...] = ()
    """What is as it should be and may surprise all the same: which of two resources counts where they say the same, and what
    is another program's part on this node. Like problems, but for nobody to act on."""


class PeerChange(enum.Flag):
    """What of a neighbour changed that its session survives."""

    NAME = enum.auto()
    """Its name: another resource asks for the same session now."""
    SESSION = enum.auto()
    """Its NeighborConfig, in fields that apply live."""
    IMPORT = enum.auto()
    """Its import filters: judge its Adj-RIB-In again."""
    ROLE = enum.auto()
    """Whether an internal peer is our route-reflection client, or our cluster id: judge its Adj-RIB-In again, and tell all
    others anew what comes from it."""
    EXPORT = enum.auto()
    """What it is told (export filters, next-hop mode): it moves to another update group."""


@dataclass(frozen=True, slots=True)
class PlanDelta:
    """How to get from one plan to the next. Names are in the plan's order."""

    speaker_changed: bool = False
    """Whether the listen port, AS, router id ... of the node changed; what sessions must do about it is in the rest."""
    removed: tuple[str, ...] = ()
    """Peers that are gone. End these first: an added one may have the same address."""
    added: tuple[str, ...] = ()
    reset: Mapping[str, str] = field(default_factory=dict)
    """Peers whose session must end and begin anew, with the reason for people: "peer AS 65001 -> 65002"."""
    changed: Mapping[str, PeerChange] = field(default_factory=dict)
    """Peers whose session stays up."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """New name -> old name of peers that are the same as before; they are in `reset` or `changed` too, by their new name."""
    origins_removed: tuple[tuple[Family, bytes], ...] = ()
    origins_set: Mapping[tuple[Family, bytes], Origin] = field(default_factory=dict)
    """Added, or changed in what the kernel gets."""

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = PlanDelta()
