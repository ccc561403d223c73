"""Messages about tunnel devices: making a VXLAN or IPIP link, what such a link is like, forwarding entries and neighbours.

A VXLAN device asks three tables about a packet: the route (to an address inside the tunnel), the neighbour of that address
(a MAC address), and its own forwarding database (FDB: for that MAC address, whom to send the outer packet). The last two
are both `struct ndmsg` messages: AF_BRIDGE with NTF_SELF is the FDB's.
"""

from __future__ import annotations

import struct
import sys

from routed.desired import TunnelKind
from routed.net.families import Family
from routed.netlink.links import IFADDRMSG, IFINFOMSG, NDMSG
from routed.netlink.messages import HEADER_LENGTH, attribute, attributes, request
from routed.netlink.numbers import (
    AF_BRIDGE,
    AF_UNSPEC,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_VXLAN_ID,
    IFLA_VXLAN_LEARNING,
    IFLA_VXLAN_LOCAL,
    IFLA_VXLAN_LOCAL6,
    IFLA_VXLAN_PORT,
    NDA_DST,
    NDA_LLADDR,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NTF_SELF,
    NUD_PERMANENT,
    RT_SCOPE_UNIVERSE,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
)
from routed.netlink.routes import AF_OF_FAMILY
from routed.values import dataclass

_U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class TunnelLink:
    """A link, as far as it may be a tunnel."""

    index: int
    kind: str
    """IFLA_INFO_KIND; empty for hardware and the like."""
    mac: bytes
    mtu: int
    enabled: bool
    vni: int = 0
    port: int = 0
    local: bytes = b""
    learning: bool = False
    alias: str = ""


@dataclass(frozen=True, slots=True)
class NeighbourEntry:
    """A neighbour (address -> MAC address), or an FDB entry (MAC address -> address)."""

    index: int
    mac: bytes
    address: bytes
    permanent: bool


def make_vxlan(
    sequence: int, *, name: str, family: Family, mac: bytes, vni: int, port: int, local: bytes, mtu: int
) -> bytes:
    """A device that learns nothing, down, sending from `local` by whichever interface leads there."""
    data = b"".join((
        attribute(IFLA_VXLAN_ID, _U32.pack(vni)),
        attribute(IFLA_VXLAN_LOCAL if family is Family.IPV4_UNICAST else IFLA_VXLAN_LOCAL6, local),
        attribute(IFLA_VXLAN_LEARNING, b"\x00"),
        attribute(IFLA_VXLAN_PORT, port.to_bytes(2, "big")),
    ))  # fmt: skip
    return _make(
        sequence, name, TunnelKind.VXLAN, attribute(IFLA_ADDRESS, mac) + attribute(IFLA_MTU, _U32.pack(mtu)), data
    )


def make_ipip(sequence: int, name: str) -> bytes:
    """Under the name `tunl0` this has the kernel load the module, whose own device then has that name (EEXIST).

    In a network namespace without that device (`net.core.fb_tunnels_only_for_init_net`) it makes one like it, from and to
    anybody. Nothing is said of IFLA_INFO_DATA: with it, even empty, the outer packets may not be fragmented, and those of
    the kernel's own device may.
    """
    return _make(sequence, name, TunnelKind.IPIP, b"", b"")


def _make(sequence: int, name: str, kind: TunnelKind, link: bytes, data: bytes) -> bytes:
    info = attribute(IFLA_INFO_KIND, kind.value.encode()) + (attribute(IFLA_INFO_DATA, data) if data else b"")
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name.encode() + b"\x00")
    return request(
        RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body + link + attribute(IFLA_LINKINFO, info)
    )


def change_link(
    sequence: int, index: int, *, mtu: int = 0, mac: bytes = b"", up: bool | None = None, alias: str = ""
) -> bytes:
    """What is named changes; the rest stays."""
    flags, change = (IFF_UP if up else 0), (IFF_UP if up is not None else 0)
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, flags, change)
    if mtu:
        body += attribute(IFLA_MTU, _U32.pack(mtu))
    if mac:
        body += attribute(IFLA_ADDRESS, mac)
    if alias:
        body += attribute(IFLA_IFALIAS, alias.encode())
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, body)


def remove_address(sequence: int, index: int, family: Family, address: bytes, length: int) -> bytes:
    return request(
        RTM_DELADDR,
        NLM_F_ACK,
        sequence,
        IFADDRMSG.pack(AF_OF_FAMILY[family], length, 0, RT_SCOPE_UNIVERSE, index)
        + attribute(IFA_LOCAL, address)
        + attribute(IFA_ADDRESS, address),
    )


def remove_neighbour(sequence: int, index: int, family: Family, address: bytes) -> bytes:
    body = NDMSG.pack(AF_OF_FAMILY[family], 0, 0, index, 0, 0, 0) + attribute(NDA_DST, address)
    return request(RTM_DELNEIGH, NLM_F_ACK, sequence, body)


def set_forwarding(sequence: int, index: int, mac: bytes, address: bytes) -> bytes:
    """Frames for a MAC address go to this node, and to no other."""
    return request(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, sequence, _forwarding(index, mac, address))


def remove_forwarding(sequence: int, index: int, mac: bytes, address: bytes) -> bytes:
    return request(RTM_DELNEIGH, NLM_F_ACK, sequence, _forwarding(index, mac, address))


def _forwarding(index: int, mac: bytes, address: bytes) -> bytes:
    return (
        NDMSG.pack(AF_BRIDGE, 0, 0, index, NUD_PERMANENT, NTF_SELF, 0)
        + attribute(NDA_LLADDR, mac)
        + attribute(NDA_DST, address)
    )


def dump_neighbours(sequence: int, family: Family | None) -> bytes:
    """All neighbours of a family; None: all FDB entries. Of all links: who asks, picks."""
    body = NDMSG.pack(AF_BRIDGE if family is None else AF_OF_FAMILY[family], 0, 0, 0, 0, 0, 0)
    return request(RTM_GETNEIGH, NLM_F_DUMP, sequence, body)


def decode_neighbour(data: bytes) -> NeighbourEntry | None:
    """A neighbour message, header included."""
    if len(data) < HEADER_LENGTH + NDMSG.size:
        return None
    _, _, _, index, state, _, _ = NDMSG.unpack_from(data, HEADER_LENGTH)
    mac = address = b""
    for kind, value in attributes(data, HEADER_LENGTH + NDMSG.size):
        if kind == NDA_LLADDR:
            mac = value
        elif kind == NDA_DST:
            address = value
    return NeighbourEntry(index, mac, address, bool(state & NUD_PERMANENT))


def decode_tunnel(data: bytes) -> TunnelLink | None:
    """A link message, header included. None for one about a bridge port or the like."""
    if len(data) < HEADER_LENGTH + IFINFOMSG.size:
        return None
    family, _, _, index, flags, _ = IFINFOMSG.unpack_from(data, HEADER_LENGTH)
    if family != AF_UNSPEC:
        return None
    kind, mac, mtu, details, alias = "", b"", 0, b"", ""
    for number, value in attributes(data, HEADER_LENGTH + IFINFOMSG.size):
        if number == IFLA_ADDRESS:
            mac = value
        elif number == IFLA_IFALIAS:
            alias = value.rstrip(b"\x00").decode("utf-8", "replace")
        elif number == IFLA_MTU:
            mtu = int.from_bytes(value, sys.byteorder)
        elif number == IFLA_LINKINFO:
            for inner, content in attributes(value, 0):
                if inner == IFLA_INFO_KIND:
                    kind = content.rstrip(b"\x00").decode("ascii", "replace")
                elif inner == IFLA_INFO_DATA:
                    details = content
    vni = port = 0
    local, learning = b"", False
    if kind == TunnelKind.VXLAN:
        for number, value in attributes(details, 0):
            if number == IFLA_VXLAN_ID:
                vni = int.from_bytes(value, sys.byteorder)
            elif number == IFLA_VXLAN_PORT:
                port = int.from_bytes(value, "big")
            elif number in (IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6):
                local = value
            elif number == IFLA_VXLAN_LEARNING:
                learning = value != b"\x00"
    return TunnelLink(index, kind, mac, mtu, bool(flags & IFF_UP), vni, port, local, learning, alias)
