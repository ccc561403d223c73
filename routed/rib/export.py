"""Export rules: what peers with one policy are told of a path, and the octets that say it (RFC 4271 5.1 and 9.2).

Kept here: RFC 4271 9.2 (internal routes to internal peers), RFC 4456 (reflection, ORIGINATOR_ID, CLUSTER_LIST), RFC 1997
and 8642 (well-known communities), RFC 4360 6 (extended communities that stay in the AS), 5.1 (which attributes travel),
and packing prefixes into messages. Everything is a function of its arguments.

Not here: who hears what when (`adj_out`), the user's route filters (`filters`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from routed.bgp.as_path import prepend
from routed.bgp.attributes import DEFAULT_LOCAL_PREF, AttributeSet, encode_attributes, split_values
from routed.bgp.iana import MAX_MESSAGE, Community
from routed.bgp.update import nlri_room, reach_message, withdraw_message
from routed.net.addresses import is_link_local
from routed.net.families import Family
from routed.rib.filters import RouteFilter
from routed.rib.path import Path, SourceKind
from routed.values import dataclass

NO_EXPORT = Community.NO_EXPORT.to_bytes(4, "big")
NO_ADVERTISE = Community.NO_ADVERTISE.to_bytes(4, "big")
NO_EXPORT_SUBCONFED = Community.NO_EXPORT_SUBCONFED.to_bytes(4, "big")


class NextHopMode(enum.Enum):
    """What NEXT_HOP a peer is told (Calico's nextHopMode)."""

    AUTO = "Auto"
    """RFC 4271 5.1.3: ourselves to external peers and for our own routes, unchanged to internal peers."""
    SELF = "Self"
    KEEP = "Keep"


@dataclass(frozen=True, slots=True)
class ExportPolicy:
    """All that decides what a peer is told. Equal policies share an update group."""

    family: Family
    kind: SourceKind
    local_as: int
    cluster_id: int
    local_address: bytes
    """Our packed address of the family, for NEXT_HOP."""
    next_hop_mode: NextHopMode
    four_octet_as: bool
    export_filter: RouteFilter
    default_local_pref: int = DEFAULT_LOCAL_PREF
    """What internal peers are told of a path that says none."""


def refusal(path: Path, policy: ExportPolicy) -> str | None:
    """Why the protocol itself keeps a path from peers with this policy, or None. The route filter is asked after it."""
    attrs = path.attrs
    kind = path.kind
    if kind is SourceKind.IBGP and policy.kind is SourceKind.IBGP:
        return (
            "learned from an internal peer, and this peer is internal and not a route-reflection client (RFC 4271 9.2)"
        )
    if kind is SourceKind.IBGP_CLIENT and policy.kind is not SourceKind.EBGP and not policy.cluster_id:
        return "learned from an internal peer, and this node reflects no routes any more (RFC 4271 9.2)"
    communities = attrs.communities
    if communities:
        known = set(split_values(communities, 4))
        if NO_ADVERTISE in known:
            return "carries community no-advertise (RFC 1997)"
        if policy.kind is SourceKind.EBGP and (NO_EXPORT in known or NO_EXPORT_SUBCONFED in known):
            return "carries community no-export and this peer is external (RFC 1997)"
    return None


def export_attributes(path: Path, attrs: AttributeSet, policy: ExportPolicy) -> AttributeSet:
    """What peers with this policy are told of a path's attributes (RFC 4271 5.1, RFC 4456 8)."""
    local = path.kind is SourceKind.LOCAL
    external = policy.kind is SourceKind.EBGP
    own_next_hop = (
        local
        or not attrs.next_hop
        or is_link_local(attrs.next_hop)  # RFC 2545 3
        or policy.next_hop_mode is NextHopMode.SELF
        or (policy.next_hop_mode is NextHopMode.AUTO and external)
    )
    next_hop = policy.local_address if own_next_hop else attrs.next_hop
    if external:
        return attrs.replace(
            as_path=prepend(attrs.as_path, policy.local_as),
            next_hop=next_hop,
            link_local=b"",
            extended_communities=_transitive(attrs.extended_communities),
            med=attrs.med if local else None,
            local_pref=None,
            originator_id=None,
            cluster_list=b"",
        )
    reflected = path.kind in (SourceKind.IBGP, SourceKind.IBGP_CLIENT)
    return attrs.replace(
        next_hop=next_hop,
        link_local=b"",
        local_pref=policy.default_local_pref if attrs.local_pref is None else attrs.local_pref,
        originator_id=(attrs.originator_id if attrs.originator_id is not None else path.source.router_id)
        if reflected
        else None,
        cluster_list=policy.cluster_id.to_bytes(4, "big") + attrs.cluster_list if reflected else b"",
    )


def _transitive(communities: bytes) -> bytes:
    """The extended communities that may cross the border of an AS: those without bit 0x40 (RFC 4360 2 and 6)."""
    return b"".join(community for community in split_values(communities, 8) if not community[0] & 0x40)


def encode(attrs: AttributeSet, policy: ExportPolicy) -> bytes | None:
    """The attribute octets of a group's messages; for IPv6, preceded by the next hop: see `announcements`.

    None where they leave no room for a prefix in a message: such a path can't be announced (RFC 4271 9.2).
    """
    encoded = encode_attributes(
        attrs,
        four_octet_as=policy.four_octet_as,
        family=policy.family,
        include_local_pref=policy.kind is not SourceKind.EBGP,
    )
    if nlri_room(policy.family, encoded) <= policy.family.address_length:
        return None
    if policy.family is Family.IPV4_UNICAST:
        return encoded
    return bytes((len(attrs.next_hop),)) + attrs.next_hop + encoded


def announcements(family: Family, encoded: bytes, prefixes: list[Sequence[bytes]]) -> list[bytes]:
    """Messages that announce prefixes with one encoded attribute set, each as full as 4,096 octets allow."""
    next_hop, attributes = b"", encoded
    if family is not Family.IPV4_UNICAST:
        next_hop, attributes = encoded[1 : 1 + encoded[0]], encoded[1 + encoded[0] :]
    room = nlri_room(family, attributes)
    return [reach_message(family, attributes, next_hop, nlri) for nlri in _pack(prefixes, room)]


def withdrawals(family: Family, prefixes: list[Sequence[bytes]]) -> list[bytes]:
    """Messages that withdraw prefixes, each as full as 4,096 octets allow."""
    return [withdraw_message(family, nlri) for nlri in _pack(prefixes, MAX_MESSAGE - _WITHDRAW_OVERHEAD)]


def _pack(groups: list[Sequence[bytes]], room: int) -> Iterator[bytes]:
    """Join prefixes into runs of at most `room` octets."""
    joined = b"".join([b"".join(group) for group in groups])
    if len(joined) <= room:
        yield joined
        return
    start, end = 0, 0
    for group in groups:
        for prefix in group:
            if end + len(prefix) - start > room:
                yield joined[start:end]
                start = end
            end += len(prefix)
    yield joined[start:]


#: Header, the two length fields, and an MP_UNREACH_NLRI header with AFI and SAFI (RFC 4760 4).
_WITHDRAW_OVERHEAD = 19 + 4 + 4 + 3
