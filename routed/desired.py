"""The contract between planning and the kernel: what the kernel should look like. Types only, no logic.

`plan/`, `policy/` and `rib/` write these words, `dataplane/` makes them true; neither side knows the other's.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from routed.net.families import Family


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


@dataclass(frozen=True, slots=True)
class RouteBatch:
    """Many prefixes that should all become `route`, or be absent from the kernel (None)."""

    family: Family
    prefixes: Sequence[bytes]
    """Wire prefixes, without duplicates."""
    route: KernelRoute | None
