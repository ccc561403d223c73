"""Path attributes: the interned, parsed form every other room reads, its octets, and its text for people.

Invariants: an `AttributeSet` holds checked values only (a peer's come through `attribute_reader`); AS paths are in
4-octet form; lists are as received. MP_REACH_NLRI and MP_UNREACH_NLRI carry prefixes and belong to `update`. What a
route means (loops, preference, which attributes go to which peer) is the RIB's.

RFC 4271 4.3, 5; 1997, 4360, 8092 (communities); 4456 (reflection); 6793 (4-octet AS).
"""

from __future__ import annotations

import struct
from typing import TypedDict, Unpack

from routed.bgp.as_path import format_as_path, narrow_as_path, prepend, summarise
from routed.bgp.iana import AS_MAX_2_OCTET, AS_TRANS, AttributeCode, AttributeFlag, Community, Origin
from routed.net.addresses import format_address, format_router_id
from routed.net.families import Family

__all__ = [
    "ATTRIBUTE_FLAGS",
    "DEFAULT_LOCAL_PREF",
    "AttributeFields",
    "AttributeSet",
    "Unknown",
    "as_path_text",
    "cluster_list_text",
    "communities_text",
    "describe",
    "encode_attribute",
    "encode_attributes",
    "extended_communities_text",
    "large_communities_text",
    "prepend",
]

_WELL_KNOWN = int(AttributeFlag.TRANSITIVE)
_OPTIONAL_TRANSITIVE = int(AttributeFlag.OPTIONAL | AttributeFlag.TRANSITIVE)
_OPTIONAL_NON_TRANSITIVE = int(AttributeFlag.OPTIONAL)
_PARTIAL = int(AttributeFlag.PARTIAL)
_EXTENDED = int(AttributeFlag.EXTENDED_LENGTH)

ATTRIBUTE_FLAGS: dict[int, int] = {
    AttributeCode.ORIGIN: _WELL_KNOWN,
    AttributeCode.AS_PATH: _WELL_KNOWN,
    AttributeCode.NEXT_HOP: _WELL_KNOWN,
    AttributeCode.MULTI_EXIT_DISC: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.LOCAL_PREF: _WELL_KNOWN,
    AttributeCode.ATOMIC_AGGREGATE: _WELL_KNOWN,
    AttributeCode.AGGREGATOR: _OPTIONAL_TRANSITIVE,
    AttributeCode.COMMUNITIES: _OPTIONAL_TRANSITIVE,
    AttributeCode.ORIGINATOR_ID: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.CLUSTER_LIST: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.MP_REACH_NLRI: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.MP_UNREACH_NLRI: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.EXTENDED_COMMUNITIES: _OPTIONAL_TRANSITIVE,
    AttributeCode.AS4_PATH: _OPTIONAL_TRANSITIVE,
    AttributeCode.AS4_AGGREGATOR: _OPTIONAL_TRANSITIVE,
    AttributeCode.PMSI_TUNNEL: _OPTIONAL_TRANSITIVE,
    AttributeCode.TUNNEL_ENCAPSULATION: _OPTIONAL_TRANSITIVE,
    AttributeCode.IPV6_EXTENDED_COMMUNITIES: _OPTIONAL_TRANSITIVE,
    AttributeCode.AIGP: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.BGP_LS: _OPTIONAL_NON_TRANSITIVE,
    AttributeCode.LARGE_COMMUNITY: _OPTIONAL_TRANSITIVE,
    AttributeCode.ONLY_TO_CUSTOMER: _OPTIONAL_TRANSITIVE,
    AttributeCode.NEXT_HOP_DEPENDENT_CHARACTERISTICS: _OPTIONAL_TRANSITIVE,
    AttributeCode.PREFIX_SID: _OPTIONAL_TRANSITIVE,
}
"""The Optional and Transitive bits each attribute we know is defined with."""

DEFAULT_LOCAL_PREF = 100
"""What goes to an internal peer for a path without LOCAL_PREF, which it must carry there (RFC 4271 5.1.5)."""

Unknown = tuple[int, int, bytes]
"""(flags, type code, value)"""


class AttributeFields(TypedDict, total=False):
    """The arguments of `AttributeSet`."""

    origin: int
    as_path: bytes
    next_hop: bytes
    link_local: bytes
    med: int | None
    local_pref: int | None
    atomic_aggregate: bool
    aggregator: tuple[int, bytes] | None
    communities: bytes
    extended_communities: bytes
    large_communities: bytes
    originator_id: int | None
    cluster_list: bytes
    unknown: tuple[Unknown, ...]
    partial: tuple[int, ...]


class AttributeSet:
    """The attributes of an UPDATE that describe a path, parsed once. Immutable by convention; compares by identity.

    MP_REACH_NLRI and MP_UNREACH_NLRI are not part of it: their next hop is `next_hop`, their prefixes are the update's.
    """

    __slots__ = (
        "__weakref__",
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
        "partial",
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
        unknown: tuple[Unknown, ...] = (),
        partial: tuple[int, ...] = (),
    ) -> None:
        self.origin = origin
        self.as_path = as_path
        """Segments in 4-octet form, whatever the session spoke: type octet, count octet, ASNs (RFC 4271 4.3 b)."""
        self.next_hop = next_hop
        """Packed global next hop: 4 or 16 octets; empty for a path of our own. A link-local address where the peer
        gave no global one."""
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
        """RFC 8092: 12 octets each, without repetitions."""
        self.originator_id = originator_id
        self.cluster_list = cluster_list
        """RFC 4456: 4 octets each, nearest first."""
        self.unknown = unknown
        """(flags, type code, value) of optional transitive attributes not handled above, in code order; passed on with
        the Partial bit. The flags keep Optional, Transitive and Partial only."""
        self.partial = partial
        """Type codes of those handled above that came with the Partial bit, in order: nobody takes it away again (RFC
        4271 5)."""
        # derived from as_path, once
        self.as_path_length, self.neighbor_as, self.as_numbers = summarise(as_path)

    def fields(self) -> AttributeFields:
        """Everything it was made of."""
        return {
            "origin": self.origin,
            "as_path": self.as_path,
            "next_hop": self.next_hop,
            "link_local": self.link_local,
            "med": self.med,
            "local_pref": self.local_pref,
            "atomic_aggregate": self.atomic_aggregate,
            "aggregator": self.aggregator,
            "communities": self.communities,
            "extended_communities": self.extended_communities,
            "large_communities": self.large_communities,
            "originator_id": self.originator_id,
            "cluster_list": self.cluster_list,
            "unknown": self.unknown,
            "partial": self.partial,
        }

    def replace(self, **changes: Unpack[AttributeFields]) -> AttributeSet:
        """A new set with some fields changed. Not interned: give it to the pool where it will be kept."""
        fields = self.fields()
        fields.update(changes)
        return AttributeSet(**fields)

    def content(self) -> tuple[object, ...]:
        """A hashable value that is equal exactly for sets of equal content."""
        return (
            self.origin,
            self.as_path,
            self.next_hop,
            self.link_local,
            self.med,
            self.local_pref,
            self.atomic_aggregate,
            self.aggregator,
            self.communities,
            self.extended_communities,
            self.large_communities,
            self.originator_id,
            self.cluster_list,
            self.unknown,
            self.partial,
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_attribute(flags: int, code: int, value: bytes) -> bytes:
    """One attribute; the Extended Length flag is set where the value needs it and only there."""
    if len(value) > 255:
        return struct.pack(">BBH", flags | _EXTENDED, code, len(value)) + value
    return bytes((flags & ~_EXTENDED, code, len(value))) + value


def encode_attributes(attrs: AttributeSet, *, four_octet_as: bool, family: Family, include_local_pref: bool) -> bytes:
    """The path attributes of an UPDATE for routes of `family`, in ascending order of type code, MP_REACH_NLRI excluded.

    NEXT_HOP is there for IPv4 only. A 2-octet peer gets AS_TRANS, AS4_PATH and AS4_AGGREGATOR as needed (RFC 6793
    4.2.2). `include_local_pref` is for internal peers. Everything else the set holds is written: taking out what must
    not go to a peer (MED, ORIGINATOR_ID, CLUSTER_LIST, non-transitive communities) is the exporter's.
    """
    out: list[tuple[int, bytes]] = []

    def add(code: AttributeCode, value: bytes) -> None:
        flags = ATTRIBUTE_FLAGS[code]
        out.append((code, encode_attribute(flags | _PARTIAL if code in attrs.partial else flags, code, value)))

    add(AttributeCode.ORIGIN, bytes((attrs.origin,)))
    as_path, as4_path = (attrs.as_path, b"") if four_octet_as else narrow_as_path(attrs.as_path)
    add(AttributeCode.AS_PATH, as_path)
    if family is Family.IPV4_UNICAST:
        if len(attrs.next_hop) != 4:
            raise ValueError("an IPv4 route is announced with an IPv4 next hop; set one before encoding")
        add(AttributeCode.NEXT_HOP, attrs.next_hop)
    if attrs.med is not None:
        add(AttributeCode.MULTI_EXIT_DISC, attrs.med.to_bytes(4, "big"))
    if include_local_pref:
        local_pref = DEFAULT_LOCAL_PREF if attrs.local_pref is None else attrs.local_pref
        add(AttributeCode.LOCAL_PREF, local_pref.to_bytes(4, "big"))
    if attrs.atomic_aggregate:
        add(AttributeCode.ATOMIC_AGGREGATE, b"")
    if attrs.aggregator is not None:
        asn, router_id = attrs.aggregator
        if four_octet_as:
            add(AttributeCode.AGGREGATOR, asn.to_bytes(4, "big") + router_id)
        elif asn <= AS_MAX_2_OCTET:
            add(AttributeCode.AGGREGATOR, asn.to_bytes(2, "big") + router_id)
        else:
            add(AttributeCode.AGGREGATOR, AS_TRANS.to_bytes(2, "big") + router_id)
            add(AttributeCode.AS4_AGGREGATOR, asn.to_bytes(4, "big") + router_id)
    if attrs.communities:
        add(AttributeCode.COMMUNITIES, attrs.communities)
    if attrs.originator_id is not None:
        add(AttributeCode.ORIGINATOR_ID, attrs.originator_id.to_bytes(4, "big"))
    if attrs.cluster_list:
        add(AttributeCode.CLUSTER_LIST, attrs.cluster_list)
    if attrs.extended_communities:
        add(AttributeCode.EXTENDED_COMMUNITIES, attrs.extended_communities)
    if as4_path:
        add(AttributeCode.AS4_PATH, as4_path)
    if attrs.large_communities:
        add(AttributeCode.LARGE_COMMUNITY, attrs.large_communities)
    for flags, code, value in attrs.unknown:
        out.append((code, encode_attribute(flags | _PARTIAL, code, value)))
    out.sort(key=lambda entry: entry[0])
    return b"".join(octets for _, octets in out)


# --- text for people -------------------------------------------------------------------------------------------------

_COMMUNITY_NAMES = {
    Community.GRACEFUL_SHUTDOWN: "graceful-shutdown",
    Community.ACCEPT_OWN: "accept-own",
    Community.LLGR_STALE: "llgr-stale",
    Community.NO_LLGR: "no-llgr",
    Community.BLACKHOLE: "blackhole",
    Community.NO_EXPORT: "no-export",
    Community.NO_ADVERTISE: "no-advertise",
    Community.NO_EXPORT_SUBCONFED: "no-export-subconfed",
    Community.NOPEER: "no-peer",
}

_ORIGIN_NAMES = {Origin.IGP: "igp", Origin.EGP: "egp", Origin.INCOMPLETE: "incomplete"}

_EXTENDED_SUBTYPES = {0x02: "rt", 0x03: "soo"}
"""Route target and route origin (RFC 4360 4, 5)."""


def split_values(value: bytes, size: int) -> list[bytes]:
    return [value[at : at + size] for at in range(0, len(value), size)]


def as_path_text(attrs: AttributeSet) -> str:
    """`64512 64513 {1,2} (3 4)`; empty for a path that crossed no AS."""
    return format_as_path(attrs.as_path)


def _community_text(value: bytes) -> str:
    number = int.from_bytes(value, "big")
    return _COMMUNITY_NAMES.get(number) or f"{number >> 16}:{number & 0xFFFF}"  # type: ignore[call-overload]


def communities_text(attrs: AttributeSet) -> str:
    """`64512:100 no-export`, in the order received."""
    return " ".join(map(_community_text, split_values(attrs.communities, 4)))


def large_communities_text(attrs: AttributeSet) -> str:
    """`64512:1:2`, in the order received (RFC 8092 4: three unsigned decimals)."""
    return " ".join(
        "{}:{}:{}".format(*struct.unpack(">III", value)) for value in split_values(attrs.large_communities, 12)
    )


def _extended_community_text(value: bytes) -> str:
    name = _EXTENDED_SUBTYPES.get(value[1])
    kind = value[0]
    if name is not None and kind == 0:
        asn, number = struct.unpack_from(">HI", value, 2)
        return f"{name}:{asn}:{number}"
    if name is not None and kind == 1:
        return f"{name}:{format_address(value[2:6])}:{int.from_bytes(value[6:], 'big')}"
    if name is not None and kind == 2:
        asn, number = struct.unpack_from(">IH", value, 2)
        return f"{name}:{asn}:{number}"
    return "0x" + value.hex()


def extended_communities_text(attrs: AttributeSet) -> str:
    """`rt:64512:100 soo:10.0.0.1:1 0x0123456789abcdef`: route targets and origins by name, others in hexadecimal."""
    return " ".join(map(_extended_community_text, split_values(attrs.extended_communities, 8)))


def cluster_list_text(attrs: AttributeSet) -> str:
    """`10.0.0.1 10.0.0.2`, nearest first."""
    return " ".join(map(format_address, split_values(attrs.cluster_list, 4)))


def describe(attrs: AttributeSet) -> dict[str, object]:
    """The set for people and JSON, absent attributes left out. Numbers and text made of numbers only: nothing a peer
    could smuggle control characters into."""
    text: dict[str, object] = {
        "origin": _ORIGIN_NAMES[Origin(attrs.origin)],
        "asPath": as_path_text(attrs),
        "asPathLength": attrs.as_path_length,
    }
    if attrs.next_hop:
        text["nextHop"] = format_address(attrs.next_hop)
    if attrs.link_local:
        text["linkLocalNextHop"] = format_address(attrs.link_local)
    if attrs.med is not None:
        text["med"] = attrs.med
    if attrs.local_pref is not None:
        text["localPref"] = attrs.local_pref
    if attrs.atomic_aggregate:
        text["atomicAggregate"] = True
    if attrs.aggregator is not None:
        text["aggregator"] = {"as": attrs.aggregator[0], "routerId": format_address(attrs.aggregator[1])}
    if attrs.communities:
        text["communities"] = communities_text(attrs).split(" ")
    if attrs.extended_communities:
        text["extendedCommunities"] = extended_communities_text(attrs).split(" ")
    if attrs.large_communities:
        text["largeCommunities"] = large_communities_text(attrs).split(" ")
    if attrs.originator_id is not None:
        text["originatorId"] = format_router_id(attrs.originator_id)
    if attrs.cluster_list:
        text["clusterList"] = cluster_list_text(attrs).split(" ")
    if attrs.unknown:
        text["unknown"] = [{"type": code, "flags": flags, "value": value.hex()} for flags, code, value in attrs.unknown]
    return text
