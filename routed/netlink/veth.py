"""Messages that make a veth pair between a node and a pod, and wire its two ends: links, addresses, neighbours, routes.

Encoders, each one request with an ACK, but for questions, and what a rule says. The pod's end is made straight into the
pod's network namespace (IFLA_NET_NS_FD in VETH_INFO_PEER), and what goes on inside it is sent through a socket opened
there, so that whoever sends these never enters the namespace.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping

from routed.net.families import Family
from routed.netlink.links import IFADDRMSG, IFINFOMSG, NDMSG, link_index
from routed.netlink.messages import HEADER_LENGTH, attribute, attributes, request
from routed.netlink.numbers import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    FR_ACT_TO_TBL,
    FRA_PRIORITY,
    FRA_SRC,
    FRA_TABLE,
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_FLAGS,
    IFA_LOCAL,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_INET6_CONF,
    IFLA_INET_CONF,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IN6_ADDR_GEN_MODE_NONE,
    NDA_DST,
    NDA_LLADDR,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NUD_PERMANENT,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_COMPAT,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_TABLE,
    RTM_DELLINK,
    RTM_DELRULE,
    RTM_GETLINK,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    VETH_INFO_PEER,
)
from routed.netlink.routes import AF_OF_FAMILY, RTMSG
from routed.values import dataclass

_U32 = struct.Struct("=I")

_FIB_RULE = struct.Struct("=BBBBBBBBI")

_RTPROT_BOOT = 3
_RTN_UNICAST = 1


@dataclass(frozen=True, slots=True)
class SourceRule:
    """What has this source is routed by this table."""

    family: Family
    address: bytes
    table: int
    priority: int


@dataclass(frozen=True, slots=True)
class Pair:
    """What a link message says of one end of a pair."""

    index: int
    peer: int
    """The other end's index, in its namespace."""
    ipv6: tuple[int, ...]
    """What /proc/sys/net/ipv6/conf/NAME has as files, by number (DEVCONF_*); empty where the link has no IPv6."""


def make_veth(
    sequence: int, *, name: str, mac: bytes, peer_name: str, peer_mac: bytes, peer_namespace: int, mtu: int
) -> bytes:
    """A pair, both ends down. EEXIST where either name is taken; `peer_namespace` is an open descriptor."""
    peer = b"".join((
        IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0),
        attribute(IFLA_IFNAME, _name(peer_name)),
        attribute(IFLA_ADDRESS, peer_mac),
        attribute(IFLA_MTU, _U32.pack(mtu)),
        attribute(IFLA_NET_NS_FD, _U32.pack(peer_namespace)),
    ))  # fmt: skip
    kind = attribute(IFLA_INFO_KIND, b"veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    body = b"".join((
        IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0),
        attribute(IFLA_IFNAME, _name(name)),
        attribute(IFLA_ADDRESS, mac),
        attribute(IFLA_MTU, _U32.pack(mtu)),
        attribute(IFLA_LINKINFO, kind),
    ))  # fmt: skip
    return request(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body)


def get_link(sequence: int, name: str) -> bytes:
    """The answer is a link message (`links.decode_link`), or ENODEV."""
    return request(
        RTM_GETLINK, 0, sequence, IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _name(name))
    )


def decode_mac(data: bytes) -> bytes:
    """The MAC address of a link message, header included; empty where it has none."""
    return dict(attributes(data, HEADER_LENGTH + IFINFOMSG.size)).get(IFLA_ADDRESS, b"")


def decode_pair(data: bytes) -> Pair:
    """Of a link message about one end, header included."""
    index = link_index(data)
    found = dict(attributes(data, HEADER_LENGTH + IFINFOMSG.size))
    ipv6 = dict(attributes(dict(attributes(found.get(IFLA_AF_SPEC, b""), 0)).get(AF_INET6, b""), 0))
    values = ipv6.get(IFLA_INET6_CONF, b"")
    return Pair(index, _number(found.get(IFLA_LINK), 0), struct.unpack(f"={len(values) // 4}i", values))


def set_link_up(sequence: int, index: int) -> bytes:
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, IFF_UP, IFF_UP))


def set_named_link_up(sequence: int, name: str) -> bytes:
    """Of a link whose index is not known yet."""
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, IFF_UP, IFF_UP) + attribute(IFLA_IFNAME, _name(name))
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, body)


def configure_link(sequence: int, name: str, settings: Mapping[int, int], *, link_local: bool = True) -> bytes:
    """What /proc/sys/net/ipv4/conf/NAME has as files, by their numbers (IPV4_DEVCONF_*), in one step. Without `link_local`
    the link has no IPv6 address but those it is given: EAFNOSUPPORT where it has no IPv6. Of a link that is down nobody is
    told."""
    values = b"".join(attribute(number, _U32.pack(value)) for number, value in settings.items())
    families = attribute(AF_INET, attribute(IFLA_INET_CONF, values)) if values else b""
    if not link_local:
        families += attribute(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,))))
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _name(name))
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, body + attribute(IFLA_AF_SPEC, families))


def delete_link(sequence: int, index: int) -> bytes:
    """Of a pair, both ends. The kernel takes tens of milliseconds."""
    return request(RTM_DELLINK, NLM_F_ACK, sequence, IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, 0, 0))


def set_link_group(sequence: int, index: int, group: int) -> bytes:
    """Links of a group can be deleted at once."""
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, 0, 0) + attribute(IFLA_GROUP, _U32.pack(group))
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, body)


def delete_group(sequence: int, group: int) -> bytes:
    """All links of a group (never 0, which every link is in from the start), in hardly more time than one takes."""
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0) + attribute(IFLA_GROUP, _U32.pack(group))
    return request(RTM_DELLINK, NLM_F_ACK, sequence, body)


def add_host_address(sequence: int, index: int, family: Family, address: bytes) -> bytes:
    """A /32 or /128, without duplicate address detection."""
    length = family.max_length
    return request(
        RTM_NEWADDR,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        sequence,
        IFADDRMSG.pack(AF_OF_FAMILY[family], length, 0, RT_SCOPE_UNIVERSE, index)
        + attribute(IFA_LOCAL, address)
        + attribute(IFA_ADDRESS, address)
        + attribute(IFA_FLAGS, _U32.pack(IFA_F_NODAD)),
    )


def set_neighbour(sequence: int, index: int, family: Family, address: bytes, mac: bytes) -> bytes:
    """A permanent neighbour: nobody asks the wire who has the address."""
    return request(
        RTM_NEWNEIGH,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        sequence,
        NDMSG.pack(AF_OF_FAMILY[family], 0, 0, index, NUD_PERMANENT, 0, 0)
        + attribute(NDA_DST, address)
        + attribute(NDA_LLADDR, mac),
    )


def add_link_route(sequence: int, index: int, family: Family, address: bytes, table: int = RT_TABLE_MAIN) -> bytes:
    """A host route for what is directly behind the link."""
    return _route(
        sequence,
        family,
        table,
        family.max_length,
        RT_SCOPE_LINK,
        attribute(RTA_DST, address) + attribute(RTA_OIF, _U32.pack(index)),
    )


def add_default_route(sequence: int, index: int, family: Family, gateway: bytes, table: int = RT_TABLE_MAIN) -> bytes:
    return _route(
        sequence,
        family,
        table,
        0,
        RT_SCOPE_UNIVERSE,
        attribute(RTA_GATEWAY, gateway) + attribute(RTA_OIF, _U32.pack(index)),
    )


def add_source_rule(sequence: int, rule: SourceRule) -> bytes:
    return request(RTM_NEWRULE, NLM_F_ACK | NLM_F_CREATE, sequence, _rule(rule))


def delete_source_rule(sequence: int, rule: SourceRule) -> bytes:
    """ENOENT where there is none."""
    return request(RTM_DELRULE, NLM_F_ACK, sequence, _rule(rule))


def dump_rules(sequence: int, family: Family) -> bytes:
    return request(RTM_GETRULE, NLM_F_DUMP, sequence, _FIB_RULE.pack(AF_OF_FAMILY[family], 0, 0, 0, 0, 0, 0, 0, 0))


def decode_source_rule(data: bytes) -> SourceRule | None:
    """A rule message, header included; None for a rule that is not about one source alone."""
    if len(data) < HEADER_LENGTH + _FIB_RULE.size:
        return None
    number, to, length, _, table, _, _, action, _ = _FIB_RULE.unpack_from(data, HEADER_LENGTH)
    family = next((each for each, value in AF_OF_FAMILY.items() if value == number), None)
    if family is None or to or length != family.max_length or action != FR_ACT_TO_TBL:
        return None
    found = dict(attributes(data, HEADER_LENGTH + _FIB_RULE.size))
    table = _number(found.get(FRA_TABLE), table)
    return SourceRule(family, found.get(FRA_SRC, b""), table, _number(found.get(FRA_PRIORITY), 0))


def _number(value: bytes | None, default: int) -> int:
    return default if value is None else int.from_bytes(value, sys.byteorder)


def _rule(rule: SourceRule) -> bytes:
    """`struct fib_rule_hdr`: u8 family, destination and source length, tos, table, two reserved, u8 action, u32 flags."""
    header = _FIB_RULE.pack(AF_OF_FAMILY[rule.family], 0, rule.family.max_length, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    return b"".join((
        header,
        attribute(FRA_SRC, rule.address),
        attribute(FRA_TABLE, _U32.pack(rule.table)),
        attribute(FRA_PRIORITY, _U32.pack(rule.priority)),
    ))  # fmt: skip


def _route(sequence: int, family: Family, table: int, length: int, scope: int, rest: bytes) -> bytes:
    short = table if table <= 255 else RT_TABLE_COMPAT
    header = RTMSG.pack(AF_OF_FAMILY[family], length, 0, 0, short, _RTPROT_BOOT, scope, _RTN_UNICAST, 0)
    if table > 255:
        rest += attribute(RTA_TABLE, _U32.pack(table))
    return request(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, sequence, header + rest)


def _name(name: str) -> bytes:
    return name.encode() + b"\x00"
