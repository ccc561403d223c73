"""Addresses, AS numbers and router ids: text <-> value.

Packed octets inside, text at the edges. `ipaddress` parses text (it is strict and complete); it is never used on a
hot path. Router ids are unsigned 32-bit integers, since RFC 4271 compares them as such.
"""

from __future__ import annotations

import ipaddress
import socket  # inet_ntop only: a pure function with the kernel's spelling


def parse_address(text: str) -> bytes:
    """Packed octets of an IPv4 or IPv6 address in text. Raises ValueError."""
    return ipaddress.ip_address(text).packed


def format_address(address: bytes) -> str:
    """Text of 4 or 16 packed octets, in the kernel's spelling (RFC 5952 for IPv6)."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def is_link_local(address: bytes) -> bool:
    """Whether packed octets are an IPv6 link-local address (fe80::/10), which means something on one link only."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def parse_asn(value: int | str) -> int:
    """An AS number from 64512, "64512" or the dotted form "1.10" (RFC 5396). Raises ValueError outside 0..2^32-1."""
    if isinstance(value, str):
        high, dot, low = value.partition(".")
        if not (high.isascii() and high.isdigit() and (not dot or (low.isascii() and low.isdigit()))):
            raise ValueError(f"{value!r} is not an AS number")
        if dot:
            if int(high) > 0xFFFF or int(low) > 0xFFFF:
                raise ValueError(f"{value!r} is not an AS number: each half is at most 65535")
            return int(high) << 16 | int(low)
        value = int(high)
    if isinstance(value, bool) or not 0 <= value <= 0xFFFFFFFF:
        raise ValueError(f"{value!r} is not an AS number")
    return value


def parse_router_id(text: str) -> int:
    """A router id from dotted-quad text. Raises ValueError; zero is refused (RFC 6286)."""
    value = int(ipaddress.IPv4Address(text))
    if value == 0:
        raise ValueError("router id 0.0.0.0 is not allowed (RFC 6286)")
    return value


def format_router_id(router_id: int) -> str:
    return socket.inet_ntop(socket.AF_INET, router_id.to_bytes(4, "big"))
