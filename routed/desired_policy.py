"""The contract between policy and the kernel: which packets may pass, in no firewall's words. Types only, no logic.

`policy/` writes these from selectors and policies, `dataplane/` makes an nf_tables program of them and `testing/` a model
that judges packets. Existence is the value: an update with None removes.

A packet of a new connection is judged at every endpoint it passes, first as what leaves the source (egress), then as what
arrives at the destination (ingress). At an endpoint the tiers are walked in order, in each the chains in order, in each
the rules in order; the first rule that matches and is no LOG decides: ALLOW ends the walk at this endpoint, DENY drops,
PASS goes to the next tier. A tier whose chains all end without a decision does what its `end` says. Behind the last tier
come the profiles' chains, and behind them DENY. Replies and related packets always pass.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field

from routed.net.families import Family
from routed.values import dataclass


class Action(enum.Enum):
    """What a rule does."""

    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"
    LOG = "log"
    """Write the packet down and go on."""


class SetKind(enum.Enum):
    """What the members of a set are."""

    HOSTS = "hosts"
    """Packed addresses."""
    NETS = "nets"
    """Wire prefixes, none inside another."""
    PORTS = "ports"
    """Packed address, u8 protocol, u16 port: a port with a name, wherever it is open."""
    RANGES = "ranges"
    """u16 first port, u16 last; none meets another."""


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set of addresses that rules name."""

    name: str
    """At most 40 characters of [a-z0-9_]."""
    family: Family
    kind: SetKind


@dataclass(frozen=True, slots=True)
class SetUpdate:
    """A set is new (`added` is all of it), changes, or (`gone`) is no longer named by any rule."""

    spec: SetSpec
    added: frozenset[bytes] = frozenset()
    removed: frozenset[bytes] = frozenset()
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """What a rule asks of one side of a connection. All that is given must hold."""

    sets: tuple[str, ...] = ()
    """The address is in every one of these."""
    not_sets: tuple[str, ...] = ()
    """The address is in none of these."""
    ports: tuple[tuple[int, int], ...] = ()
    """The port is in one of these ranges (both ends inclusive), or in one of `port_sets`; empty both: any port. A few at
    most: many are a set."""
    port_sets: tuple[str, ...] = ()
    not_ports: tuple[tuple[int, int], ...] = ()
    not_port_sets: tuple[str, ...] = ()
    net: bytes = b""
    """The address is in this network, a wire prefix of the rule's family; empty: in any. Several are a set."""
    not_net: bytes = b""
    """The address is not in this one."""

    @property
    def asks_for_ports(self) -> bool:
        return bool(self.ports or self.port_sets or self.not_ports or self.not_port_sets)


ANY = Side()


@dataclass(frozen=True, slots=True)
class Icmp:
    """A type, and a code or any."""

    type: int
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; all its conditions must hold."""

    action: Action
    family: Family | None = None
    """None: both. A rule that names sets or networks has their family."""
    protocol: int | None = None
    """IP protocol number. A rule that asks for ports has one."""
    not_protocol: int | None = None
    icmp: Icmp | None = None
    not_icmp: Icmp | None = None
    source: Side = ANY
    destination: Side = ANY
    origin: str = ""
    """Where it comes from, for people and counters: "NetworkPolicy default/web ingress 1"."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The rules of a policy or a profile in one direction; shared by all endpoints that it is for."""

    name: str
    """At most 40 characters of [a-z0-9_]."""
    rules: tuple[Rule, ...]
    policy: str = ""
    """Whose rules they are, for people and counters: "NetworkPolicy default/web"."""


@dataclass(frozen=True, slots=True)
class ChainUpdate:
    name: str
    chain: Chain | None


@dataclass(frozen=True, slots=True)
class TierWalk:
    """One tier at one endpoint in one direction."""

    name: str
    chains: tuple[str, ...]
    """Never empty: a tier with no policy for an endpoint is not there."""
    end: Action
    """DENY or PASS."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What decides at one endpoint in one direction."""

    tiers: tuple[TierWalk, ...] = ()
    profiles: tuple[str, ...] = ()


ADMIT = None
"""In place of a Walk: nothing is asked in this direction."""


class Place(enum.Enum):
    """Where an endpoint's walks are asked."""

    WORKLOAD = "workload"
    """A pod's interface on this node: what comes out of it (egress), what goes into it (ingress)."""
    HOST = "host"
    """An interface of the node: packets for the node itself (ingress), packets of the node itself (egress)."""
    HOST_FORWARD = "host-forward"
    """An interface of the node: packets that only pass through (applyOnForward). Without a decision, a packet goes on.
    Ingress is not asked about what was admitted earlier (the two places below)."""
    HOST_PRE_DNAT = "host-pre-dnat"
    """Ingress before the destination is translated. Without a decision, a packet goes on."""
    HOST_UNTRACKED = "host-untracked"
    """Both directions before connections are tracked. ALLOW leaves the packet untracked; without a decision it goes on."""


@dataclass(frozen=True, slots=True)
class BridgePort:
    """A workload's interface that is a port of a bridge: its packets are told by their addresses."""

    bridge: str
    mac: bytes
    """Of the workload's own end."""


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What is asked at one interface."""

    interface: str
    """A name; for places of the host also `*`: every interface but `lo` that has none of its own there, though it be one
    that asks nothing. Before translation and when passing through those of workloads are among them, else they are not."""
    place: Place
    ingress: Walk | None
    egress: Walk | None
    port: BridgePort | None = None
    """Of a workload; None: packets come and go by the interface itself."""
    addresses: tuple[bytes, ...] = ()
    """Packed, of a workload: its own."""
    sources: tuple[tuple[Family, bytes], ...] = ()
    """Wire prefixes that packets of a workload may come from beside its own addresses, where the host lets it."""


@dataclass(frozen=True, slots=True)
class EndpointUpdate:
    interface: str
    place: Place
    policy: EndpointPolicy | None


@dataclass(frozen=True, slots=True)
class Failsafe:
    """A port of the node (in), or of others (out), that no host policy closes."""

    protocol: int
    port: int
    family: Family | None = None
    net: bytes = b""
    """Wire prefix of `family` that the other side is in; empty: anybody."""


@dataclass(frozen=True, slots=True)
class TunnelPackets:
    """What carries a tunnel between nodes."""

    family: Family
    protocol: int
    port: int
    """Destination port; 0 where the protocol has none."""
    ends: tuple[bytes, ...]
    """Packed addresses of the other nodes, sorted."""


@dataclass(frozen=True, slots=True)
class HostRules:
    """What holds on the whole node. Neighbour discovery and multicast listeners' reports are never asked about."""

    workload_prefixes: tuple[str, ...] = ("cali",)
    """Interfaces that begin so are workloads'; one nobody has described yet admits nothing."""
    workload_to_host: Action = Action.ALLOW
    """Packets of workloads for the node itself; PASS asks the workload's egress first, and then admits."""
    source_spoofing: bool = False
    """Workloads that stand alone may have the `sources` they ask for."""
    drop_invalid: bool = True
    """Packets to and from workloads of no connection, that are no beginning of one either, are dropped."""
    failsafe_in: tuple[Failsafe, ...] = ()
    failsafe_out: tuple[Failsafe, ...] = ()
    nat_pools: Mapping[Family, tuple[bytes, ...]] = field(default_factory=dict, hash=False)
    """Wire prefixes of the pools whose packets are masqueraded when they leave all pools."""
    all_pools: Mapping[Family, tuple[bytes, ...]] = field(default_factory=dict, hash=False)
    """Destinations that are never reached by a masqueraded packet."""
    tunnels: tuple[TunnelPackets, ...] = ()
    """Outer packets of the node's tunnels: no host policy closes them, and from anybody else they are dropped."""
    log_group: int | None = None
    """NFLOG group of LOG rules and of denials; None: denials are not logged and LOG goes to group 0."""
    log_denied: bool = False


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """Changes that come into force together."""

    sets: tuple[SetUpdate, ...] = ()
    chains: tuple[ChainUpdate, ...] = ()
    endpoints: tuple[EndpointUpdate, ...] = ()
    host: HostRules | None = None
    """None: as before."""
    interfaces: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Indexes of interfaces that are there now, and 0 for those that are not any more. With them packets of workloads are
    known by less work; without them they are judged alike."""
