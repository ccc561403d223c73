"""OPEN, NOTIFICATION, KEEPALIVE and ROUTE-REFRESH: bytes <-> values, and a NOTIFICATION in words.

Invariants: `decode` raises nothing but PeerError, with the code, subcode and data the NOTIFICATION must carry; whatever
`encode` gives, `decode` gives back. An OPEN's capabilities are split into (code, value) here and understood in
`capabilities`. Text a peer sent leaves this module only through `harmless`: one printable line, no bidirectional tricks.

RFC 4271 4.1, 4.2, 4.4, 4.5, 6.1, 6.2; RFC 5492 (capabilities); RFC 9072 (extended optional parameters); RFC 2918 (route
refresh); RFC 4486, 6608, 8203, 9003, 9384, 9687 (what NOTIFICATIONs say).

Not here: UPDATE (`update`), framing of the byte stream (`session`), which OPEN is acceptable (`capabilities`).
"""

from __future__ import annotations

from typing import NamedTuple

from routed.bgp.iana import (
    BGP_VERSION,
    HEADER_LENGTH,
    MARKER,
    MAX_MESSAGE,
    CeaseSubcode,
    MessageType,
    NotificationCode,
    OpenSubcode,
    ParameterType,
)
from routed.errors import PeerError
from routed.net.families import Family, family_from_wire
from routed.values import dataclass

MINIMUM_LENGTH = {
    MessageType.OPEN.value: 29,
    MessageType.UPDATE.value: 23,
    MessageType.NOTIFICATION.value: 21,
    MessageType.KEEPALIVE.value: 19,
    MessageType.ROUTE_REFRESH.value: 23,
}
"""Octets of the shortest message of each type, header included (RFC 4271 4.2 to 4.5, RFC 2918 3)."""

MAXIMUM_LENGTH = {
    MessageType.OPEN.value: MAX_MESSAGE,
    MessageType.UPDATE.value: MAX_MESSAGE,
    MessageType.NOTIFICATION.value: MAX_MESSAGE,
    MessageType.KEEPALIVE.value: HEADER_LENGTH,
    MessageType.ROUTE_REFRESH.value: MAX_MESSAGE,
}
"""Octets of the longest. A KEEPALIVE is only a header; ORF entries behind a ROUTE-REFRESH (RFC 5291) are not read."""

SHUTDOWN_LIMIT = 255
"""Octets of UTF-8 in a shutdown communication (RFC 9003 2)."""

TEXT_LIMIT = 400
"""Characters of peer-supplied text shown in one sentence, after escaping."""


def frame(kind: int, body: bytes) -> bytes:
    """A whole message: marker 16 octets, length 2, type 1, body (RFC 4271 4.1)."""
    return MARKER + (HEADER_LENGTH + len(body)).to_bytes(2, "big") + bytes((kind,)) + body


KEEPALIVE = frame(MessageType.KEEPALIVE, b"")
"""The whole KEEPALIVE message (RFC 4271 4.4)."""


def route_refresh(family: Family) -> bytes:
    """A whole ROUTE-REFRESH message: AFI 2 octets, reserved 1, SAFI 1 (RFC 2918 3)."""
    return frame(MessageType.ROUTE_REFRESH, bytes((family.afi >> 8, family.afi & 0xFF, 0, family.safi)))


def refreshed_family(body: bytes) -> Family | None:
    """The family a ROUTE-REFRESH asks for, or None for one routed does not know (ignored, RFC 2918 4).

    `body` has at least 4 octets. The reserved octet is not read: it means something only where RFC 7313 was negotiated.
    """
    return family_from_wire(body[0] << 8 | body[1], body[3])


class Capability(NamedTuple):
    """One capability as on the wire: code 1 octet, length 1, value (RFC 5492 4)."""

    code: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Open:
    """An OPEN (RFC 4271 4.2): version 1 octet, My Autonomous System 2, Hold Time 2, BGP Identifier 4, parameters."""

    two_octet_as: int
    """My Autonomous System: AS_TRANS where the number needs four octets (RFC 6793 9)."""
    hold_time: int
    router_id: int
    capabilities: tuple[Capability, ...] = ()
    """In message order, repetitions kept."""

    def encode(self) -> bytes:
        """The whole message: capabilities in one parameter (RFC 5492 4), in RFC 9072's form where 255 octets are too few."""
        capabilities = b"".join(bytes((code, len(value))) + value for code, value in self.capabilities)
        size = len(capabilities)
        if not size:
            parameters = b"\x00"
        elif size + 2 <= 255:
            parameters = bytes((size + 2, ParameterType.CAPABILITIES, size)) + capabilities
        else:
            # RFC 9072 2: 255, 255, length of all 2 octets; then type 1, length 2 octets each
            parameters = (
                b"\xff\xff"
                + (size + 3).to_bytes(2, "big")
                + bytes((ParameterType.CAPABILITIES,))
                + size.to_bytes(2, "big")
                + capabilities
            )
        return frame(
            MessageType.OPEN,
            bytes((BGP_VERSION,))
            + self.two_octet_as.to_bytes(2, "big")
            + self.hold_time.to_bytes(2, "big")
            + self.router_id.to_bytes(4, "big")
            + parameters,
        )

    @classmethod
    def decode(cls, body: bytes) -> Open:
        """An OPEN from its body (at least 10 octets). Raises PeerError 2/1, 2/4 or 2/0 (RFC 4271 6.2)."""
        if body[0] != BGP_VERSION:
            raise PeerError(
                NotificationCode.OPEN_MESSAGE_ERROR,
                OpenSubcode.UNSUPPORTED_VERSION_NUMBER,
                BGP_VERSION.to_bytes(2, "big"),
                f"the peer speaks BGP version {body[0]}, only version {BGP_VERSION} is supported",
            )
        capabilities: list[Capability] = []
        for kind, value in _parameters(body[9:]):
            if kind != ParameterType.CAPABILITIES:
                raise PeerError(
                    NotificationCode.OPEN_MESSAGE_ERROR,
                    OpenSubcode.UNSUPPORTED_OPTIONAL_PARAMETER,
                    b"",
                    f"the peer's OPEN has optional parameter {kind}, which is not supported",
                )
            capabilities += split_capabilities(value)
        return cls(
            two_octet_as=int.from_bytes(body[1:3], "big"),
            hold_time=int.from_bytes(body[3:5], "big"),
            router_id=int.from_bytes(body[5:9], "big"),
            capabilities=tuple(capabilities),
        )


def _malformed_open(text: str) -> PeerError:
    """RFC 4271 6.2: a recognized parameter that is malformed is an Unspecific error."""
    return PeerError(
        NotificationCode.OPEN_MESSAGE_ERROR, OpenSubcode.UNSPECIFIC, b"", f"the peer's OPEN is malformed: {text}"
    )


def _parameters(data: bytes) -> list[tuple[int, bytes]]:
    """(type, value) of each optional parameter. `data` starts at the Opt Parm Len octet.

    RFC 9072 2: a first parameter type of 255 means the extended form, whatever the (non-zero) length octet says.
    """
    size = data[0]
    if size and data[1:2] == b"\xff":
        if len(data) < 4:
            raise _malformed_open("it ends inside the extended optional parameters length")
        size, position, octets = int.from_bytes(data[2:4], "big"), 4, 2
    else:
        position, octets = 1, 1
    end = position + size
    if end != len(data):
        raise _malformed_open(
            f"its optional parameters should take {size} octets, {len(data) - position} follow the length field"
        )
    parameters: list[tuple[int, bytes]] = []
    while position < end:
        start = position + 1 + octets
        if start > end:
            raise _malformed_open("an optional parameter is cut off before its length")
        stop = start + int.from_bytes(data[position + 1 : start], "big")
        if stop > end:
            raise _malformed_open(f"optional parameter {data[position]} runs past the end")
        parameters.append((data[position], data[start:stop]))
        position = stop
    return parameters


def split_capabilities(data: bytes) -> list[Capability]:
    """The capabilities of one parameter. Raises PeerError 2/0 where one runs past the end."""
    capabilities: list[Capability] = []
    position, end = 0, len(data)
    while position < end:
        if position + 2 > end:
            raise _malformed_open("a capability is cut off before its length")
        stop = position + 2 + data[position + 1]
        if stop > end:
            raise _malformed_open(f"capability {data[position]} runs past the end of its parameter")
        capabilities.append(Capability(data[position], data[position + 2 : stop]))
        position = stop
    return capabilities


def harmless(data: bytes | str) -> str:
    """Peer-supplied text, safe to show in a log line, a terminal or a table.

    Invalid UTF-8, control, format and separator characters (newlines, escapes, bidirectional overrides, zero-width)
    become backslash escapes, so do the double quote and the backslash themselves; the length is bounded.
    """
    text = data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data
    out: list[str] = []
    for character in text:
        point = ord(character)
        if 0xDC80 <= point <= 0xDCFF:
            out.append(f"\\x{point - 0xDC00:02x}")
        elif character in '"\\':
            out.append("\\" + character)
        elif character.isprintable():
            out.append(character)
        elif point < 0x100:
            out.append(f"\\x{point:02x}")
        elif point < 0x10000:
            out.append(f"\\u{point:04x}")
        else:
            out.append(f"\\U{point:08x}")
    shown = "".join(out)
    return shown if len(shown) <= TEXT_LIMIT else shown[:TEXT_LIMIT] + "..."


_CODE_NAMES = {
    1: "Message Header Error",
    2: "OPEN Message Error",
    3: "UPDATE Message Error",
    4: "Hold Timer Expired",
    5: "Finite State Machine Error",
    6: "Cease",
    7: "ROUTE-REFRESH Message Error",
    8: "Send Hold Timer Expired",
}

_SUBCODE_NAMES = {
    (1, 1): "Connection Not Synchronized",
    (1, 2): "Bad Message Length",
    (1, 3): "Bad Message Type",
    (2, 1): "Unsupported Version Number",
    (2, 2): "Bad Peer AS",
    (2, 3): "Bad BGP Identifier",
    (2, 4): "Unsupported Optional Parameter",
    (2, 5): "Authentication Failure",
    (2, 6): "Unacceptable Hold Time",
    (2, 7): "Unsupported Capability",
    (2, 11): "Role Mismatch",
    (3, 1): "Malformed Attribute List",
    (3, 2): "Unrecognized Well-known Attribute",
    (3, 3): "Missing Well-known Attribute",
    (3, 4): "Attribute Flags Error",
    (3, 5): "Attribute Length Error",
    (3, 6): "Invalid ORIGIN Attribute",
    (3, 7): "AS Routing Loop",
    (3, 8): "Invalid NEXT_HOP Attribute",
    (3, 9): "Optional Attribute Error",
    (3, 10): "Invalid Network Field",
    (3, 11): "Malformed AS_PATH",
    (5, 1): "Receive Unexpected Message in OpenSent State",
    (5, 2): "Receive Unexpected Message in OpenConfirm State",
    (5, 3): "Receive Unexpected Message in Established State",
    (6, 1): "Maximum Number of Prefixes Reached",
    (6, 2): "Administrative Shutdown",
    (6, 3): "Peer De-configured",
    (6, 4): "Administrative Reset",
    (6, 5): "Connection Rejected",
    (6, 6): "Other Configuration Change",
    (6, 7): "Connection Collision Resolution",
    (6, 8): "Out of Resources",
    (6, 9): "Hard Reset",
    (6, 10): "BFD Down",
    (7, 1): "Invalid Message Length",
}

_SPOKEN = (CeaseSubcode.ADMINISTRATIVE_SHUTDOWN, CeaseSubcode.ADMINISTRATIVE_RESET)
"""The Cease subcodes that carry a shutdown communication (RFC 9003 2)."""


@dataclass(frozen=True, slots=True)
class Notification:
    """A NOTIFICATION message: error code 1 octet, subcode 1, data (RFC 4271 4.5)."""

    code: int
    subcode: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """The whole message. Data that does not fit 4,096 octets is cut."""
        return frame(
            MessageType.NOTIFICATION, bytes((self.code, self.subcode)) + self.data[: MAX_MESSAGE - HEADER_LENGTH - 2]
        )

    @classmethod
    def decode(cls, body: bytes) -> Notification:
        """From a body of at least 2 octets; every code and subcode is taken as it comes."""
        return cls(body[0], body[1], body[2:])

    @classmethod
    def cease(cls, subcode: int, text: str = "") -> Notification:
        """A Cease; `text` becomes the shutdown communication of RFC 9003, cut to 255 octets at a character."""
        if not text:
            return cls(NotificationCode.CEASE, subcode)
        octets = text.encode("utf-8", "replace")[:SHUTDOWN_LIMIT].decode("utf-8", "ignore").encode()
        return cls(NotificationCode.CEASE, subcode, bytes((len(octets),)) + octets)

    @property
    def communication(self) -> bytes | None:
        """The shutdown communication as it came, or None where there is none (or its length octet lies)."""
        if self.code != NotificationCode.CEASE or self.subcode not in _SPOKEN or len(self.data) < 2:
            return None
        size = self.data[0]
        return self.data[1 : 1 + size] if 0 < size < len(self.data) else None

    def text(self) -> str:
        """`6/2 Administrative Shutdown, message "maintenance"`: numbers, the registry's words, what the data says."""
        name = _SUBCODE_NAMES.get((self.code, self.subcode)) or _CODE_NAMES.get(self.code, "unknown error")
        shown = f"{self.code}/{self.subcode} {name}"
        if self.code == NotificationCode.CEASE and self.subcode == CeaseSubcode.HARD_RESET and len(self.data) >= 2:
            return f"{shown}: {Notification.decode(self.data).text()}"  # RFC 8538 3: the real reason is inside
        communication = self.communication
        if communication is not None:
            return f'{shown}, message "{harmless(communication)}"'
        if self.data:
            return f"{shown}, data {self.data[:32].hex()}" + ("..." if len(self.data) > 32 else "")
        return shown
