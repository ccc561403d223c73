"""Messages about a bridge and its ports.

Encoders, each one request with an ACK, and what a link message says of a bridge or a port. A port here learns nothing, lets
in frames of the addresses that are written for it and no others (`locked`), and passes none to another such port
(`isolated`): what goes between two ports goes by the bridge itself.
"""

from __future__ import annotations

import struct
import sys

from routed.netlink.links import IFINFOMSG, NDMSG
from routed.netlink.messages import HEADER_LENGTH, attribute, attributes, request
from routed.netlink.numbers import (
    AF_BRIDGE,
    AF_UNSPEC,
    IFLA_ADDRESS,
    IFLA_BRPORT_ISOLATED,
    IFLA_BRPORT_LEARNING,
    IFLA_BRPORT_LOCKED,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    NDA_LLADDR,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NTF_MASTER,
    NUD_NOARP,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
)
from routed.values import dataclass

_U32 = struct.Struct("=I")

_GUARDS = {IFLA_BRPORT_LEARNING: b"\x00", IFLA_BRPORT_ISOLATED: b"\x01", IFLA_BRPORT_LOCKED: b"\x01"}


@dataclass(frozen=True, slots=True)
class BridgeLink:
    """What a link message says that matters to bridges and ports."""

    index: int
    kind: str
    """IFLA_INFO_KIND."""
    mac: bytes
    master: int
    """Index of the bridge it is a port of; 0: of none."""
    guarded: bool = False
    """It is a port, and as `guard_port` makes it."""


def make_bridge(sequence: int, name: str, mac: bytes) -> bytes:
    """A bridge, down. EEXIST where the name is taken."""
    body = b"".join((
        IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0),
        attribute(IFLA_IFNAME, name.encode() + b"\x00"),
        attribute(IFLA_ADDRESS, mac),
        attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"bridge")),
    ))  # fmt: skip
    return request(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body)


def set_master(sequence: int, index: int, bridge: int) -> bytes:
    """Make a link a port of a bridge; 0: of none."""
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, 0, 0) + attribute(IFLA_MASTER, _U32.pack(bridge))
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, body)


def guard_port(sequence: int, index: int) -> bytes:
    """A port that learns nothing, is locked and isolated. EINVAL or EOPNOTSUPP on kernels before 5.18."""
    data = b"".join(attribute(each, value) for each, value in _GUARDS.items())
    info = attribute(IFLA_INFO_SLAVE_KIND, b"bridge\x00") + attribute(IFLA_INFO_SLAVE_DATA, data)
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, 0, 0) + attribute(IFLA_LINKINFO, info)
    return request(RTM_NEWLINK, NLM_F_ACK, sequence, body)


def add_port_address(sequence: int, index: int, mac: bytes) -> bytes:
    """A MAC address is behind this port. EEXIST where it is behind one already."""
    body = NDMSG.pack(AF_BRIDGE, 0, 0, index, NUD_NOARP, NTF_MASTER, 0) + attribute(NDA_LLADDR, mac)
    return request(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence, body)


def decode_bridge_link(data: bytes) -> BridgeLink | None:
    """A link message, header included."""
    if len(data) < HEADER_LENGTH + IFINFOMSG.size:
        return None
    family, _, _, index, _, _ = IFINFOMSG.unpack_from(data, HEADER_LENGTH)
    if family != AF_UNSPEC:
        return None
    kind, mac, master, details = "", b"", 0, b""
    for number, value in attributes(data, HEADER_LENGTH + IFINFOMSG.size):
        if number == IFLA_ADDRESS:
            mac = value
        elif number == IFLA_MASTER:
            master = int.from_bytes(value, sys.byteorder)
        elif number == IFLA_LINKINFO:
            for inner, content in attributes(value, 0):
                if inner == IFLA_INFO_KIND:
                    kind = content.rstrip(b"\x00").decode("ascii", "replace")
                elif inner == IFLA_INFO_SLAVE_DATA:
                    details = content
    port = dict(attributes(details, 0)) if master else {}
    return BridgeLink(index, kind, mac, master, all(port.get(each) == value for each, value in _GUARDS.items()))
