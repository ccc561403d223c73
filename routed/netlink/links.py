"""Link and address messages: dump requests, and what RTM_NEWLINK, RTM_NEWADDR and their like say.

`struct ifinfomsg`: u8 family, pad, u16 type, i32 index, u32 flags, u32 change. `struct ifaddrmsg`: u8 family, prefix
length, flags, scope, u32 index. `struct ndmsg`, of neighbours and FDB entries: u8 family, pad, u16 pad, i32 index, u16
state, u8 flags, u8 type.
"""

from __future__ import annotations

import struct
import sys

from routed.netlink.messages import HEADER_LENGTH, attributes, request
from routed.netlink.numbers import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IFA_ADDRESS,
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    IFA_FLAGS,
    IFA_LOCAL,
    IFF_LOWER_UP,
    IFF_RUNNING,
    IFF_UP,
    IFLA_IFNAME,
    IFLA_MTU,
    NLM_F_DUMP,
    RTM_GETADDR,
    RTM_GETLINK,
)
from routed.values import dataclass

IFINFOMSG = struct.Struct("=BBHiII")
IFADDRMSG = struct.Struct("=BBBBI")
NDMSG = struct.Struct("=BBHiHBB")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as a link message describes it."""

    index: int
    name: str
    enabled: bool
    """Administratively up: IFF_UP."""
    up: bool
    """Enabled, and the layer below is up: IFF_UP and IFF_LOWER_UP."""
    mtu: int = 0
    """Octets of the largest packet; 0 where the message does not say."""
    running: bool = False
    """IFF_RUNNING: the kernel has seen that the layer below is up, and hands packets to it."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of ours on an interface."""

    index: int
    address: bytes
    """Packed; our own end on a point-to-point link."""
    length: int
    """Prefix length."""
    passing: bool = False
    """Not one to be known by: deprecated, temporary (RFC 8981), or not known yet to be nobody else's (RFC 4862)."""


#: Of IPv4 the bit of temporary ones says that there is another of the subnet.
_PASSING_IPV4 = IFA_F_DEPRECATED
_PASSING_IPV6 = IFA_F_DEPRECATED | IFA_F_TEMPORARY | IFA_F_TENTATIVE | IFA_F_DADFAILED


def dump_links(sequence: int) -> bytes:
    return request(RTM_GETLINK, NLM_F_DUMP, sequence, IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0))


def dump_addresses(sequence: int) -> bytes:
    return request(RTM_GETADDR, NLM_F_DUMP, sequence, IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0))


def decode_link(data: bytes) -> Link | None:
    """A link message, header included. None for one about a bridge port (AF_BRIDGE) or the like."""
    if len(data) < HEADER_LENGTH + IFINFOMSG.size:
        return None
    family, _, _, index, flags, _ = IFINFOMSG.unpack_from(data, HEADER_LENGTH)
    if family != AF_UNSPEC:
        return None
    name, mtu = "", 0
    for kind, value in attributes(data, HEADER_LENGTH + IFINFOMSG.size):
        if kind == IFLA_IFNAME:
            name = value.rstrip(b"\x00").decode("utf-8", "replace")
        elif kind == IFLA_MTU and len(value) == 4:
            mtu = int.from_bytes(value, sys.byteorder)
            break  # it comes behind the name
    enabled = bool(flags & IFF_UP)
    return Link(index, name, enabled, enabled and bool(flags & IFF_LOWER_UP), mtu, bool(flags & IFF_RUNNING))


def link_index(data: bytes) -> int:
    """Of the link a message is about; 0 where it says none."""
    return IFINFOMSG.unpack_from(data, HEADER_LENGTH)[3] if len(data) >= HEADER_LENGTH + IFINFOMSG.size else 0


def link_name(data: bytes) -> str:
    """Which link a message is about, one about a bridge port included; empty where it does not say."""
    for kind, value in attributes(data, HEADER_LENGTH + IFINFOMSG.size):
        if kind == IFLA_IFNAME:
            return value.rstrip(b"\x00").decode("utf-8", "replace")
    return ""


def decode_address(data: bytes) -> Address | None:
    """An address message, header included. None for a family that is not IP."""
    if len(data) < HEADER_LENGTH + IFADDRMSG.size:
        return None
    family, length, flags, _, index = IFADDRMSG.unpack_from(data, HEADER_LENGTH)
    if family not in (AF_INET, AF_INET6):
        return None
    local = address = b""
    for kind, value in attributes(data, HEADER_LENGTH + IFADDRMSG.size):
        if kind == IFA_LOCAL:
            local = value
        elif kind == IFA_ADDRESS:
            address = value
        elif kind == IFA_FLAGS and len(value) == 4:  # the eight of the header, and more
            flags = int.from_bytes(value, sys.byteorder)
    own = local or address
    passing = bool(flags & (_PASSING_IPV4 if family == AF_INET else _PASSING_IPV6))
    return Address(index, own, length, passing) if len(own) in (4, 16) else None
