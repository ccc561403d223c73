"""Path attributes: the interned, parsed form every other room reads.

(skeleton; decode/encode to follow)
"""

from __future__ import annotations


class AttributeSet:
    """The attributes of an UPDATE that describe a path, parsed once. Immutable by convention; compares by identity.

    MP_REACH_NLRI and MP_UNREACH_NLRI are not part of it: their next hop is `next_hop`, their prefixes are the update's.
    """

    __slots__ = (
        "aggregator",
        "as_numbers",
        "as_path",
        "as_path_length",
        "atomic_aggregate",
        "cluster_list",
        "communities",
        "extended_communities",
        "large_communities",
        "link_local",
        "local_pref",
        "med",
        "neighbor_as",
        "next_hop",
        "origin",
        "originator_id",
        "unknown",
    )

    def __init__(
        self,
        *,
        origin: int = 0,
        as_path: bytes = b"",
        next_hop: bytes = b"",
        link_local: bytes = b"",
        med: int | None = None,
        local_pref: int | None = None,
        atomic_aggregate: bool = False,
        aggregator: tuple[int, bytes] | None = None,
        communities: bytes = b"",
        extended_communities: bytes = b"",
        large_communities: bytes = b"",
        originator_id: int | None = None,
        cluster_list: bytes = b"",
        unknown: tuple[tuple[int, int, bytes], ...] = (),
    ) -> None:
        self.origin = origin
        self.as_path = as_path
        """Segments in 4-octet form, whatever the session spoke: type octet, count octet, ASNs (RFC 4271 4.3 b)."""
        self.next_hop = next_hop
        """Packed global next hop: 4 or 16 octets; empty for a path of our own."""
        self.link_local = link_local
        """The link-local half of a 32-octet IPv6 next hop (RFC 2545), or empty."""
        self.med = med
        self.local_pref = local_pref
        self.atomic_aggregate = atomic_aggregate
        self.aggregator = aggregator
        """(AS, packed IPv4 router id)"""
        self.communities = communities
        """RFC 1997: 4 octets each, in the order received."""
        self.extended_communities = extended_communities
        """RFC 4360: 8 octets each."""
        self.large_communities = large_communities
        """RFC 8092: 12 octets each."""
        self.originator_id = originator_id
        self.cluster_list = cluster_list
        """RFC 4456: 4 octets each, nearest first."""
        self.unknown = unknown
        """(flags, type code, value) of optional transitive attributes not handled above, in code order; passed on with the Partial bit."""
        # derived from as_path, once
        self.as_path_length = 0
        self.neighbor_as = 0
        self.as_numbers: frozenset[int] = frozenset()
