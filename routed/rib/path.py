"""Paths: who told us about a prefix, with which attributes, through which next hop.

A `Path` is shared by every prefix one source announced with one attribute set; the tables hold references to it, never
an object per prefix. What follows from a path alone (its kernel route) lives on it and dies with it. Paths and sources
compare by identity.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from routed.bgp.attributes import DEFAULT_LOCAL_PREF, AttributeSet
from routed.net.families import Family

if TYPE_CHECKING:
    from routed.desired import KernelRoute
    from routed.rib.nexthops import NextHop


HIGHEST_LOCAL_PREF = 2147483647
"""LOCAL_PREF is this minus a route's priority (its metric), as Calico puts priorities on the wire."""

NORMAL_PRIORITY = 1024
"""The priority of a route nothing is special about. A lower one is a workload's that moves between nodes."""


class SourceKind(enum.IntEnum):
    """Where a path came from, as route propagation rules ask it (RFC 4271 9.2, RFC 4456 6)."""

    LOCAL = 0
    EBGP = 1
    IBGP = 2
    """An internal peer that is not our route-reflection client."""
    IBGP_CLIENT = 3


class Source:
    """One session's worth of a neighbour (or this node itself): the identity its paths are judged by."""

    __slots__ = ("address", "by_priority", "default_local_pref", "kind", "name", "prefixes_best", "router_id")

    def __init__(self, name: str, kind: SourceKind, router_id: int, address: bytes) -> None:
        self.name = name
        self.kind = kind
        self.router_id = router_id
        """BGP identifier from its OPEN; ours for LOCAL."""
        self.address = address
        """Packed peer address; empty for LOCAL."""
        self.default_local_pref = DEFAULT_LOCAL_PREF
        """What a path without LOCAL_PREF counts as."""
        self.by_priority = False
        """Whether LOCAL_PREFs of its paths are priorities, so that a learned route with a better one goes before them."""
        self.prefixes_best = dict.fromkeys(Family, 0)
        """How many prefixes of a family have a path of this source as their best one. Kept by the RIB."""


class Path:
    """One (source, attributes, next hop), see the module's docstring."""

    __slots__ = (
        "announced",
        "attrs",
        "epoch",
        "interface",
        "kernel_route",
        "kind",
        "next_hop",
        "rejected",
        "source",
        "usable",
    )

    def __init__(self, source: Source, attrs: AttributeSet, next_hop: NextHop | None, epoch: int = 0) -> None:
        self.source = source
        self.kind = source.kind
        """What its source was when it was made: a peer that becomes a client has its paths made anew."""
        self.attrs = attrs
        self.next_hop = next_hop
        """None for local paths."""
        self.epoch = epoch
        """Which session of the source announced it; one older than its Adj-RIB-In's is stale (RFC 4724) or about to go."""
        self.announced: Path = self
        """The path as the peer announced it: another one where the import filter changed the attributes."""
        self.interface = ""
        """The name of the interface it leaves by, for filters that ask. It stays as it was when the next hop is lost; where
        that moves to another interface, another path takes this one's place, so that a verdict on a path never changes."""
        self.rejected = ""
        """Why it can't be chosen whatever its next hop ("AS path holds our own AS 64512"), or empty."""
        self.usable = True
        """Whether the decision may choose it: not rejected, and its next hop resolved. Kept by the RIB."""
        self.kernel_route: KernelRoute | None = None
        """The route it stands for in the kernel, from its next hop's resolution; cache of the RIB."""

    @property
    def local_pref(self) -> int:
        value = self.attrs.local_pref
        return self.source.default_local_pref if value is None else value
