"""What the kernel was seen to hold that is not ours: foreign routes, interfaces, addresses. Types only, no logic.

`dataplane/` reports these; next-hop tracking and planning read them. The twin of `desired.py`, in the other direction.
"""

from __future__ import annotations

from routed.desired import Gateway
from routed.net.families import Family
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class ForeignRoute:
    """A route in the table we watch, put there by somebody else (another protocol number than ours)."""

    family: Family
    prefix: bytes
    metric: int
    protocol: int
    """rtm_protocol: 2 kernel, 3 boot, 4 static, 12 bird, ..."""
    kind: int
    """rtm_type: 1 unicast, 6 blackhole, 7 unreachable, 8 prohibit."""
    gateways: tuple[Gateway, ...]
    """Legs; a Gateway with an empty address is directly connected through its interface."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A link, by index."""

    index: int
    name: str
    up: bool
    """Administratively up and with carrier."""
    addresses: tuple[tuple[bytes, int], ...] = ()
    """(packed address, prefix length), sorted."""


@dataclass(frozen=True, slots=True)
class KernelChange:
    """A batch of observations, in the order seen. A resync is one change with `full` set: what it does not name is gone."""

    full: bool = False
    routes_added: tuple[ForeignRoute, ...] = ()
    """Added or replaced. The key of a foreign route is (family, prefix, metric)."""
    routes_removed: tuple[ForeignRoute, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    """Added or changed."""
    interfaces_removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteFailure:
    """The kernel, or our own rule, refused one route of ours."""

    family: Family
    prefix: bytes
    errno: int
    """Positive errno; 0 where we refused it ourselves (a foreign route is in the way)."""
    reason: str
    """A sentence for people, with the kernel's text."""
