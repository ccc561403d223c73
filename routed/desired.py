"""The contract between planning and the kernel: what the kernel should look like. Types only, no logic.

`plan/`, `policy/` and `rib/` write these words, `dataplane/` makes them true; neither side knows the other's.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from routed.net.families import Family
from routed.values import dataclass


class RouteKind(enum.IntEnum):
    """Route types, by the kernel's numbers (RTN_*)."""

    UNICAST = 1
    BLACKHOLE = 6


@dataclass(frozen=True, slots=True, order=True)
class Gateway:
    """One leg of a kernel route: an on-link neighbour, reached through an interface."""

    address: bytes
    """Packed address of the neighbour; empty for a directly connected leg."""
    interface: int
    """Interface index; 0 leaves the choice to the kernel."""
    onlink: bool = False
    """RTNH_F_ONLINK: reachable though no address of the interface covers it."""


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """What one prefix should be in the FIB. Shared by all prefixes with the same gateways."""

    kind: RouteKind
    gateways: tuple[Gateway, ...] = ()
    """Sorted; more than one is ECMP; none for a blackhole."""
    metric: int = 0
    """Its priority in the kernel (RTA_PRIORITY); 0: the one all our routes have that name none."""


@dataclass(frozen=True, slots=True, order=True)
class TunnelPeer:
    """Another node at the far end of a tunnel."""

    node: str
    address: bytes
    """Packed: where the outer packets go."""
    vtep: bytes
    """Packed: its own address inside the tunnel; empty where it has none, which IPIP does not need."""
    gateway: bytes
    """Packed: what routes to it lead through; its neighbour entry says the MAC address."""
    mac: bytes
    """What inner frames for it are addressed to."""


class TunnelKind(enum.StrEnum):
    """Link kinds, by the kernel's names (IFLA_INFO_KIND)."""

    VXLAN = "vxlan"
    IPIP = "ipip"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel device of this node and whom it reaches."""

    device: str
    kind: TunnelKind
    family: Family
    """Of the packets inside and of those outside."""
    address: bytes
    """Packed: the device's own address."""
    local: bytes
    """Packed: the source of outer packets, the node's address."""
    mac: bytes = b""
    vni: int = 0
    port: int = 0
    """UDP port of outer packets."""
    mtu: int = 0
    """0: of the interface with the local address, less what the tunnel puts around packets."""
    peers: tuple[TunnelPeer, ...] = ()
    """Sorted."""


#: Octets every link with IPv6 must carry (RFC 8200).
LEAST_MTU_OF_IPV6 = 1280


def tunnel_overhead(kind: TunnelKind, family: Family) -> int:
    """Octets a tunnel puts around a packet."""
    outer = 20 if family is Family.IPV4_UNICAST else 40
    return outer + 30 if kind is TunnelKind.VXLAN else outer  # UDP 8, VXLAN 8, Ethernet 14


@dataclass(frozen=True, slots=True)
class RouteBatch:
    """Many prefixes that should all become `route`, or be absent from the kernel (None)."""

    family: Family
    prefixes: Sequence[bytes]
    """Wire prefixes, without duplicates."""
    route: KernelRoute | None
