"""Wire prefixes: the canonical NLRI octets that key every table (see the room's docstring)."""

from __future__ import annotations

import ipaddress
import socket  # inet_pton only: a pure function, and strict

from routed.net.addresses import format_address
from routed.net.families import Family

#: For a prefix length modulo 8, the mask of the bits that count in its last octet.
_LAST_OCTET_MASK = bytes([0xFF, 0x80, 0xC0, 0xE0, 0xF0, 0xF8, 0xFC, 0xFE])

#: A family and the socket library's number of it.
_IPV4 = (Family.IPV4_UNICAST, socket.AF_INET)
_IPV6 = (Family.IPV6_UNICAST, socket.AF_INET6)

DEFAULT_ROUTE = b"\x00"
"""The wire prefix of 0.0.0.0/0 and ::/0."""


def make_prefix(address: bytes, length: int) -> bytes:
    """The wire prefix that covers `length` bits of a packed address; host bits are cleared."""
    octets = (length + 7) >> 3
    body = address[:octets]
    rest = length & 7
    if rest:
        body = body[:-1] + bytes((body[-1] & _LAST_OCTET_MASK[rest],))
    return bytes((length,)) + body


def prefix_address(family: Family, prefix: bytes) -> bytes:
    """The packed network address of a wire prefix, padded with zeros to the family's length."""
    return prefix[1:].ljust(family.address_length, b"\x00")


def plain_prefix(text: str) -> tuple[Family, bytes, bytes] | None:
    """Family, wire prefix and packed address of `a.b.c.d/n` or `x::/n`; None for any other spelling, and for what is none.

    For tens of thousands at a time: `ipaddress` takes ten times as long.
    """
    address, slash, digits = text.partition("/")
    family, number = _IPV6 if ":" in address else _IPV4
    try:
        packed = socket.inet_pton(number, address)
    except (OSError, ValueError):
        return None
    length = len(packed) * 8
    if slash:
        if not (digits.isascii() and digits.isdigit() and len(digits) < 4 and int(digits) <= length):
            return None
        length = int(digits)
    return family, make_prefix(packed, length), packed


#: Of an IPv4 prefix by how its length is spelt: that as its first octet, how many more it has, and the bits behind it.
_IPV4_LENGTHS = {str(n): (bytes((n,)), (n + 7) >> 3, (1 << (32 - n)) - 1) for n in range(33)}


def plain_ipv4_network(address: str, length: str) -> bytes | None:
    """The wire prefix that `address` and `length` spell as we would, with no bit set past the length; None: look closer."""
    first, octets, host = _IPV4_LENGTHS.get(length, (b"", 0, 0))
    try:
        packed = socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError):
        return None
    return first + packed[:octets] if first and not int.from_bytes(packed, "big") & host else None


def parse_prefix(text: str) -> tuple[Family, bytes]:
    """Family and wire prefix of `a.b.c.d/n` or `x::/n`; host bits are cleared, a bare address is a host prefix.

    Raises ValueError.
    """
    if (plain := plain_prefix(text)) is not None:
        return plain[:2]
    network = ipaddress.ip_network(text, strict=False)
    family = Family.IPV4_UNICAST if network.version == 4 else Family.IPV6_UNICAST
    return family, make_prefix(network.network_address.packed, network.prefixlen)


def format_prefix(family: Family, prefix: bytes) -> str:
    """`10.244.1.0/26` or `fd00::/122`."""
    return f"{format_address(prefix_address(family, prefix))}/{prefix[0]}"


def covers(outer: bytes, inner: bytes) -> bool:
    """Whether wire prefix `inner` lies within `outer` (equal counts). Both of one family."""
    length = outer[0]
    if inner[0] < length:
        return False
    whole, rest = divmod(length, 8)
    if outer[1 : 1 + whole] != inner[1 : 1 + whole]:
        return False
    return not rest or (outer[1 + whole] ^ inner[1 + whole]) & _LAST_OCTET_MASK[rest] == 0


def is_part(inner: bytes, outer: bytes) -> bool:
    """Whether wire prefix `inner` lies within `outer` and is not all of it. Both of one family."""
    return inner != outer and covers(outer, inner)
