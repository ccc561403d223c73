"""Netlink framing: headers, attributes, acknowledgements and errors.

A message is `u32 length, u16 type, u16 flags, u32 sequence, u32 port id` and a body; an attribute is `u16 length,
u16 type` and a value. Lengths count their own header; both are padded to 4 octets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from routed.netlink.numbers import NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST, NLMSG_NOOP, NLMSGERR_ATTR_MSG
from routed.values import dataclass

HEADER = struct.Struct("=IHHII")
"""nlmsg_len, nlmsg_type, nlmsg_flags, nlmsg_seq, nlmsg_pid"""
HEADER_LENGTH = 16

_ATTRIBUTE = struct.Struct("=HH")
_FLAGS = struct.Struct("=H")
_ERROR = struct.Struct("=i")
_PADDING = (b"", bytes(3), bytes(2), bytes(1))
"""By the length modulo 4."""
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


class Message(NamedTuple):
    """One netlink message: its header's fields, and header and body together as `data`."""

    type: int
    flags: int
    sequence: int
    port: int
    """Port id of the socket whose request caused it; 0 is the kernel itself."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """An NLMSG_ERROR. `errno` is positive, 0 for a plain acknowledgement."""

    errno: int
    text: str
    """The kernel's extended-ACK sentence, often empty."""
    request: bytes
    """The message that was refused, header and all; only its header for an acknowledgement."""


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. A truncated tail ends the iteration."""
    offset, end = 0, len(data)
    while offset + HEADER_LENGTH <= end:
        length, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if length < HEADER_LENGTH or offset + length > end:
            return
        yield Message(kind, flags, sequence, port, data[offset : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(type, value) of the attributes in data[offset:end]. A malformed one ends the iteration."""
    if end is None:
        end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = len(value)
    if length & 3:
        return _ATTRIBUTE.pack(length + 4, kind) + value + _PADDING[length & 3]
    return _ATTRIBUTE.pack(length + 4, kind) + value


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One request to the kernel; NLM_F_REQUEST is implied."""
    return HEADER.pack(HEADER_LENGTH + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def without_ack(asked: bytes) -> bytes:
    """The same request, of which the kernel only tells that it refuses it."""
    flags: int = _FLAGS.unpack_from(asked, 6)[0]
    return asked[:6] + _FLAGS.pack(flags & ~NLM_F_ACK) + asked[8:]


def with_ack(asked: bytes) -> bytes:
    """The same request, of which the kernel also tells that it was taken."""
    flags: int = _FLAGS.unpack_from(asked, 6)[0]
    return asked[:6] + _FLAGS.pack(flags | NLM_F_ACK) + asked[8:]


def fence(sequence: int) -> bytes:
    """A message that does nothing but be acknowledged, after everything sent before it was handled.

    At the end of a chunk it makes the one ACK of the chunk, whether or not the chunk's last route was refused.
    """
    return HEADER.pack(HEADER_LENGTH, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)


def parse_error(message: Message) -> Refusal:
    """The content of an NLMSG_ERROR: `i32 -errno`, the refused request, extended-ACK attributes."""
    data = message.data
    if len(data) < HEADER_LENGTH + 4 + HEADER_LENGTH:
        return Refusal(0, "", b"")
    errno = -_ERROR.unpack_from(data, HEADER_LENGTH)[0]
    start = HEADER_LENGTH + 4
    length = HEADER.unpack_from(data, start)[0]
    end = start + (HEADER_LENGTH if errno == 0 or message.flags & NLM_F_CAPPED else length)
    text = ""
    if message.flags & NLM_F_ACK_TLVS:
        for kind, value in attributes(data, (end + 3) & ~3):
            if kind == NLMSGERR_ATTR_MSG:
                text = value.rstrip(b"\x00").decode("utf-8", "replace")
    return Refusal(errno, text, data[start:end])


def dump_errno(message: Message) -> int:
    """Positive errno an NLMSG_DONE carries, 0 where the dump went well."""
    return -_ERROR.unpack_from(message.data, HEADER_LENGTH)[0] if len(message.data) >= HEADER_LENGTH + 4 else 0
