"""Route messages: batches of RTM_NEWROUTE and RTM_DELROUTE out, what the kernel says about its routes in.

A route message is the netlink header, then `struct rtmsg` (u8 family, dst_len, src_len, tos, table, protocol, scope,
type; u32 flags), then attributes.

Encoding runs at the speed of C: all prefixes of one length share the octets before and after their destination, so a
batch is one `join`. Decoding caches by everything but the destination, since a million routes have a handful of
gateways.

What the flags mean to the kernel, per family, since it differs (net/ipv4/fib_trie.c, net/ipv6/ip6_fib.c):
- CREATE|EXCL: refused with EEXIST where a route of the same prefix, TOS and metric exists, whoever's it is.
- REPLACE without CREATE: replaces what has the same prefix, TOS and metric, whoever's it is, else ENOENT. IPv6 replaces
  a whole multipath group by a whole RTA_MULTIPATH.
- CREATE alone appends to an IPv6 multipath group, even to another program's: never used here.
- RTM_DELROUTE matches what is named: without gateways, all legs; with one, IPv6 removes just that leg.
"""

from __future__ import annotations

import enum
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache

from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.families import Family
from routed.net.prefixes import make_prefix
from routed.netlink.messages import HEADER, HEADER_LENGTH, Refusal, attribute, attributes, request
from routed.netlink.numbers import (
    AF_INET,
    AF_INET6,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_COMPAT,
    RTA_DPORT,
    RTA_DST,
    RTA_GATEWAY,
    RTA_IIF,
    RTA_IP_PROTO,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_SPORT,
    RTA_SRC,
    RTA_TABLE,
    RTA_VIA,
    RTM_DELROUTE,
    RTM_F_CLONED,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTNH_F_ONLINK,
)
from routed.values import dataclass

RTMSG = struct.Struct("=8BI")
"""rtm_family, rtm_dst_len, rtm_src_len, rtm_tos, rtm_table, rtm_protocol, rtm_scope, rtm_type, rtm_flags"""
RTMSG_LENGTH = 12

_NEXTHOP = struct.Struct("=HBBi")
"""rtnh_len, rtnh_flags, rtnh_hops, rtnh_ifindex"""
_U32 = struct.Struct("=I")
_U16 = struct.Struct("=H")

_RTN_UNICAST = 1

#: Protocols whose ports the kernel takes with a question for one route: TCP and UDP.
_ROUTED_BY_PORT = (6, 17)

#: Distinct gateway tails a decoder remembers before it starts over; a node has far fewer.
_TAIL_CACHE = 65536

#: Prefixes unpacked by one precompiled struct.
_BLOCK = 128

AF_OF_FAMILY = {Family.IPV4_UNICAST: AF_INET, Family.IPV6_UNICAST: AF_INET6}
FAMILY_OF_AF = {AF_INET: Family.IPV4_UNICAST, AF_INET6: Family.IPV6_UNICAST}


class Operation(enum.Enum):
    """What to do with a batch's prefixes."""

    EXCLUSIVE = "exclusive"
    """Create; EEXIST where the prefix and metric are taken."""
    REPLACE = "replace"
    """Replace what is there; ENOENT where nothing is."""
    DELETE = "delete"
    """Remove what has our protocol number; with a route given, only its legs."""


_FLAGS = {
    Operation.EXCLUSIVE: (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL),
    Operation.REPLACE: (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_REPLACE),
    Operation.DELETE: (RTM_DELROUTE, NLM_F_REQUEST),
}


def encode_routes(
    batch: RouteBatch, *, table: int, protocol: int, sequence: int, create: Operation, metric: int
) -> bytes:
    """One message for every prefix of the batch (one a leg for DELETE with a route), none of them asking for an ACK.

    `metric` 0 leaves RTA_PRIORITY out: the kernel takes 0 for IPv4 and 1024 for IPv6 when adding, any when deleting.
    """
    if create is Operation.DELETE and batch.route is not None and len(batch.route.gateways) > 1:
        return b"".join(
            encode_routes(
                RouteBatch(batch.family, batch.prefixes, KernelRoute(batch.route.kind, (gateway,))),
                table=table, protocol=protocol, sequence=sequence, create=create, metric=metric,
            )
            for gateway in batch.route.gateways
        )  # fmt: skip
    out = []
    address_length = batch.family.address_length
    kind, flags = _FLAGS[create]
    scope, route_type, rtm_flags, rest = _describe(batch.family, batch.route, create)
    if table > 255:
        rest += attribute(RTA_TABLE, _U32.pack(table))
    if metric:
        rest += attribute(RTA_PRIORITY, _U32.pack(metric))
    length = HEADER_LENGTH + RTMSG_LENGTH + 4 + address_length + len(rest)
    head = HEADER.pack(length, kind, flags, sequence, 0)
    for bits, prefixes in _by_length(batch.prefixes):
        octets = (bits + 7) >> 3
        start = b"".join((
            head,
            RTMSG.pack(
                AF_OF_FAMILY[batch.family], bits, 0, 0, table if table <= 255 else RT_TABLE_COMPAT, protocol, scope,
                route_type, rtm_flags,
            ),
            _U16.pack(4 + address_length), _U16.pack(RTA_DST),
        ))  # fmt: skip
        end = bytes(address_length - octets) + rest
        out.append(start)
        out.append((end + start).join(_destinations(prefixes, octets)))
        out.append(end)
    return b"".join(out)


def message_length(family: Family, route: KernelRoute | None) -> int:
    """At most how many octets one message for such a route takes, to size chunks by."""
    legs = sum(16 + len(gateway.address) for gateway in route.gateways) if route is not None else 0
    return 56 + family.address_length + legs


def dump_routes(family: Family, *, table: int, sequence: int) -> bytes:
    """A request for all routes of one table; needs NETLINK_GET_STRICT_CHK on the socket to be filtered by it."""
    body = RTMSG.pack(AF_OF_FAMILY[family], 0, 0, 0, table if table <= 255 else RT_TABLE_COMPAT, 0, 0, 0, 0)
    return request(RTM_GETROUTE, NLM_F_DUMP, sequence, body + attribute(RTA_TABLE, _U32.pack(table)))


@dataclass(frozen=True, slots=True)
class Flow:
    """What the kernel looks at when it routes a packet."""

    destination: bytes
    source: bytes = b""
    """Empty: one of the node's own, which the kernel then chooses."""
    incoming: int = 0
    """The index of the interface it comes in by; 0: the node sends it."""
    protocol: int = 0
    source_port: int = 0
    port: int = 0


def ask_way(flow: Flow, sequence: int) -> bytes:
    """A request for the route that the kernel would take now; the answer is one RTM_NEWROUTE, or why there is none."""
    family = Family.of_address(flow.destination)
    bits = family.max_length
    rest = [attribute(RTA_DST, flow.destination)]
    if flow.source:
        rest.append(attribute(RTA_SRC, flow.source))
    if flow.incoming:
        rest.append(attribute(RTA_IIF, _U32.pack(flow.incoming)))
    if flow.protocol in _ROUTED_BY_PORT:
        rest.append(attribute(RTA_IP_PROTO, bytes((flow.protocol,))))
        for kind, port in ((RTA_SPORT, flow.source_port), (RTA_DPORT, flow.port)):
            if port:
                rest.append(attribute(kind, port.to_bytes(2, "big")))
    body = RTMSG.pack(AF_OF_FAMILY[family], bits, bits if flow.source else 0, 0, 0, 0, 0, 0, 0)
    return request(RTM_GETROUTE, 0, sequence, body + b"".join(rest))


def refused_prefix(refusal: Refusal) -> tuple[Family, bytes] | None:
    """Family and wire prefix of a request of ours the kernel refused, or None where it was not one about a route."""
    data = refusal.request
    start = HEADER_LENGTH + RTMSG_LENGTH + 4
    family = FAMILY_OF_AF.get(data[HEADER_LENGTH]) if len(data) > start else None
    if family is None or len(data) < start + family.address_length or data[HEADER_LENGTH + 1] > family.max_length:
        return None
    return family, make_prefix(data[start : start + family.address_length], data[HEADER_LENGTH + 1])


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """What a route message says beside its prefix. Shared by all routes that look alike."""

    table: int
    protocol: int
    metric: int
    kind: int
    """rtm_type"""
    plain: bool
    """Selected by destination alone (no TOS, no source prefix), and not a cached clone."""
    gateways: tuple[Gateway, ...]
    """Sorted. Empty for kinds that go nowhere."""


class RouteDecoder:
    """Decodes RTM_NEWROUTE and RTM_DELROUTE, remembering what it saw after the destination."""

    def __init__(self) -> None:
        self._facts: dict[bytes, RouteFacts] = {}

    def decode(self, data: bytes) -> tuple[Family, bytes, RouteFacts] | None:
        """Family, wire prefix and the rest of a route message (header included); None for another family's.

        The kernel puts RTA_TABLE first and RTA_DST second, which the fast path expects; any other order works too.
        """
        family = FAMILY_OF_AF.get(data[16]) if len(data) >= 28 else None
        if family is None:
            return None
        bits = data[17]
        end = 44 if family is Family.IPV4_UNICAST else 56
        if data[36:40] == _DST_HEADER[family] and bits <= family.max_length and len(data) >= end:
            key = data[18:36] + data[end:]
            facts = self._facts.get(key)
            if facts is not None:
                if not bits & 7:
                    return family, data[17:18] + data[40 : 40 + (bits >> 3)], facts
                return family, make_prefix(data[40:end], bits), facts
            if len(self._facts) >= _TAIL_CACHE:
                self._facts.clear()
            facts = self._facts[key] = _facts(data)
            return family, make_prefix(data[40:end], bits), facts
        address = bytes(family.address_length)
        for kind, value in attributes(data, HEADER_LENGTH + RTMSG_LENGTH):
            if kind == RTA_DST and len(value) == family.address_length:
                address = value
        return (family, make_prefix(address, bits), _facts(data)) if bits <= family.max_length else None


_DST_HEADER = {
    family: _U16.pack(4 + family.address_length) + _U16.pack(RTA_DST)
    for family in (Family.IPV4_UNICAST, Family.IPV6_UNICAST)
}


def _facts(data: bytes) -> RouteFacts:
    _, _, source_length, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(data, HEADER_LENGTH)
    gateway, interface, metric = b"", 0, 0
    gateways: set[Gateway] = set()
    for attribute_type, value in attributes(data, HEADER_LENGTH + RTMSG_LENGTH):
        if attribute_type == RTA_GATEWAY:
            gateway = value
        elif attribute_type == RTA_VIA:
            gateway = value[2:]
        elif attribute_type == RTA_OIF:
            interface = _number(value)
        elif attribute_type == RTA_PRIORITY:
            metric = _number(value)
        elif attribute_type == RTA_TABLE:
            table = _number(value)
        elif attribute_type == RTA_MULTIPATH:
            gateways.update(_legs(value))
    if kind != _RTN_UNICAST:
        gateways.clear()
    elif (interface or gateway) and not gateways:
        gateways.add(Gateway(gateway, interface, bool(flags & RTNH_F_ONLINK)))
    plain = not (source_length or tos or flags & RTM_F_CLONED)
    return RouteFacts(table, protocol, metric, kind, plain, tuple(sorted(gateways)))


def _number(value: bytes) -> int:
    return int.from_bytes(value[:4], sys.byteorder)


def _legs(data: bytes) -> list[Gateway]:
    """The value of an RTA_MULTIPATH: `struct rtnexthop` and attributes, repeated."""
    legs = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, flags, _, interface = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        gateway = b""
        for kind, value in attributes(data, offset + _NEXTHOP.size, min(offset + length, len(data))):
            if kind == RTA_GATEWAY:
                gateway = value
            elif kind == RTA_VIA:
                gateway = value[2:]
        legs.append(Gateway(gateway, interface, bool(flags & RTNH_F_ONLINK)))
        offset += (length + 3) & ~3
    return legs


def _describe(family: Family, route: KernelRoute | None, create: Operation) -> tuple[int, int, int, bytes]:
    """rtm_scope, rtm_type, rtm_flags and the attributes that say where a route leads."""
    if route is None:
        return RT_SCOPE_NOWHERE, 0, 0, b""
    if route.kind is not RouteKind.UNICAST:
        return (RT_SCOPE_NOWHERE if create is Operation.DELETE else RT_SCOPE_UNIVERSE), route.kind, 0, b""
    gateways = route.gateways
    direct = family is Family.IPV4_UNICAST and not any(gateway.address for gateway in gateways)
    scope = RT_SCOPE_NOWHERE if create is Operation.DELETE else RT_SCOPE_LINK if direct else RT_SCOPE_UNIVERSE
    if len(gateways) == 1:
        (gateway,) = gateways
        rest = _gateway(family, gateway.address)
        if gateway.interface:
            rest += attribute(RTA_OIF, _U32.pack(gateway.interface))
        return scope, route.kind, RTNH_F_ONLINK if gateway.onlink else 0, rest
    legs = []
    for gateway in gateways:
        via = _gateway(family, gateway.address)
        flags = RTNH_F_ONLINK if gateway.onlink else 0
        legs.append(_NEXTHOP.pack(_NEXTHOP.size + len(via), flags, 0, gateway.interface) + via)
    return scope, route.kind, 0, attribute(RTA_MULTIPATH, b"".join(legs))


def _gateway(family: Family, address: bytes) -> bytes:
    """RTA_GATEWAY, or RTA_VIA for an IPv4 route through an IPv6 neighbour (RFC 5549 in the kernel)."""
    if not address:
        return b""
    if len(address) == family.address_length:
        return attribute(RTA_GATEWAY, address)
    return attribute(RTA_VIA, _U16.pack(AF_OF_FAMILY[Family.of_address(address)]) + address)


def _by_length(prefixes: Sequence[bytes]) -> list[tuple[int, Sequence[bytes]]]:
    """Prefixes grouped by length in bits; usually they all have one."""
    if not prefixes:
        return []
    first = prefixes[0]
    size = len(first)
    joined = b"".join(prefixes)
    # Each prefix begins with its length: where every `size`th octet is the same length, every prefix has it.
    if len(joined) == size * len(prefixes) and joined[::size] == first[:1] * len(prefixes):
        return [(first[0], prefixes)]
    groups: dict[int, list[bytes]] = {}
    for prefix in prefixes:
        groups.setdefault(prefix[0], []).append(prefix)
    return list(groups.items())


def _destinations(prefixes: Sequence[bytes], octets: int) -> list[bytes]:
    """The destination octets of prefixes of one length: `prefix[1:]` of each, at a third of the price."""
    joined = b"".join(prefixes)
    step = (octets + 1) * _BLOCK
    out: list[bytes] = []
    for start in range(0, len(joined), step):
        block = joined[start : start + step]
        out.extend(_splitter(octets, len(block) // (octets + 1)).unpack(block))
    return out


@lru_cache(maxsize=4 * _BLOCK)
def _splitter(octets: int, count: int) -> struct.Struct:
    return struct.Struct(f"x{octets}s" * count)
