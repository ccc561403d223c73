"""Rule expressions of nf_tables: what a rule is made of, octet by octet (linux/netfilter/nf_tables.h).

A rule is a list of expressions the kernel runs in order: load something into a register, compare the register, and so
on; the first comparison that fails ends the rule. Each function here gives one encoded expression
(`NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA }`); a rule is their concatenation. Numbers in attributes are big-endian.

Registers: `REGISTER` holds 16 octets; a concatenated key is loaded field by field into `concat_register(i)`, each of
4 octets. Shapes follow what `nft` itself emits, so that `nft list ruleset` reads them back as text.

Not here: tables, chains, sets and batches (`nftables`), and what the rules should say (`dataplane`).
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Mapping
from typing import TypeAlias

from routed.netlink.messages import attribute, attributes

NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10

REGISTER = 1
"""NFT_REG_1: 16 octets."""
_VERDICT_REGISTER = 0

_NESTED = 0x8000
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

_LIST_ELEM = 1

_again = functools.lru_cache(4096)
"""Thousands of rules are made of the same expressions."""


def u32(value: int) -> bytes:
    return _U32.pack(value)


def u64(value: int) -> bytes:
    return _U64.pack(value)


def text(value: str) -> bytes:
    """A NUL-terminated string."""
    return value.encode() + b"\x00"


def cut(words: str, octets: int) -> str:
    """As much of a text as fits, in whole characters; what would spoil a line of a log stands as a question mark."""
    plain = "".join(each if each.isprintable() else "?" for each in words)
    return plain.encode(errors="replace")[:octets].decode(errors="ignore")


def nested(kind: int, *values: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(values))


def concat_register(field: int) -> int:
    """NFT_REG32_00 and up: the 4-octet register of 4-octet word `field` of a concatenated key."""
    return 8 + field


class Meta(enum.IntEnum):
    """NFT_META_*."""

    MARK = 3
    IIF = 4
    OIF = 5
    IIFNAME = 6
    OIFNAME = 7
    NFPROTO = 15
    L4PROTO = 16


class Base(enum.IntEnum):
    """NFT_PAYLOAD_*: where a payload offset counts from."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2


class Compare(enum.IntEnum):
    """NFT_CMP_*."""

    EQUAL = 0
    NOT_EQUAL = 1


class Verdict(enum.IntEnum):
    """Verdict codes: netfilter's and nf_tables' own."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5


class CtState(enum.IntFlag):
    """Bits of NFT_CT_STATE: `1 << (enum ip_conntrack_info + 1)`, invalid is bit 0."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8
    UNTRACKED = 64


def data_value(value: bytes) -> bytes:
    """NFTA_DATA_VALUE."""
    return attribute(1, value)


def data_verdict(verdict: Verdict, chain: str = "") -> bytes:
    """NFTA_DATA_VERDICT; `chain` is where JUMP and GOTO lead."""
    code = attribute(1, struct.pack(">i", verdict))
    return nested(2, code, attribute(2, text(chain)) if chain else b"")


# ---- loads


@_again
def meta(key: Meta, register: int = REGISTER) -> bytes:
    return _expression("meta", attribute(2, u32(key)), attribute(1, u32(register)))


@_again
def set_mark(register: int = REGISTER) -> bytes:
    """The packet's mark becomes the register's value."""
    return _expression("meta", attribute(2, u32(Meta.MARK)), attribute(3, u32(register)))


@_again
def payload(base: Base, offset: int, length: int, register: int = REGISTER) -> bytes:
    return _expression(
        "payload",
        attribute(1, u32(register)),
        attribute(2, u32(base)),
        attribute(3, u32(offset)),
        attribute(4, u32(length)),
    )


@_again
def ct_state(register: int = REGISTER) -> bytes:
    return _expression("ct", attribute(2, u32(0)), attribute(1, u32(register)))


@_again
def ct_status(register: int = REGISTER) -> bytes:
    return _expression("ct", attribute(2, u32(2)), attribute(1, u32(register)))


def fib_source_present(register: int = REGISTER) -> bytes:
    """Whether the FIB has a route back to the source address out of the interface the packet came in by: 1 or 0.

    `fib saddr . iif oif exists`, the reverse path check of nft (RFC 3704 2.2, strict).
    """
    flags = 1 | 8 | 32  # NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT
    return _expression("fib", attribute(1, u32(register)), attribute(2, u32(1)), attribute(3, u32(flags)))


def fib_destination_type(register: int = REGISTER) -> bytes:
    """The type of the route to the destination address (RTN_*): `fib daddr type`."""
    return _expression("fib", attribute(1, u32(register)), attribute(2, u32(3)), attribute(3, u32(2)))


@_again
def immediate(value: bytes, register: int = REGISTER) -> bytes:
    return _expression("immediate", attribute(1, u32(register)), nested(2, data_value(value)))


@_again
def bitwise(mask: bytes, xor: bytes | None = None, register: int = REGISTER) -> bytes:
    """register = (register & mask) ^ xor."""
    length = len(mask)
    return _expression(
        "bitwise",
        attribute(1, u32(register)),
        attribute(2, u32(register)),
        attribute(3, u32(length)),
        attribute(6, u32(0)),
        nested(4, data_value(mask)),
        nested(5, data_value(xor if xor is not None else bytes(length))),
    )


# ---- comparisons


@_again
def compare(value: bytes, operator: Compare = Compare.EQUAL, register: int = REGISTER) -> bytes:
    return _expression("cmp", attribute(1, u32(register)), attribute(2, u32(operator)), nested(3, data_value(value)))


@_again
def in_range(low: bytes, high: bytes, operator: Compare = Compare.EQUAL, register: int = REGISTER) -> bytes:
    """low <= register <= high, both inclusive and of the same length; NOT_EQUAL inverts."""
    return _expression(
        "range",
        attribute(1, u32(register)),
        attribute(2, u32(operator)),
        nested(3, data_value(low)),
        nested(4, data_value(high)),
    )


def lookup(set_name: str, set_id: int = 0, *, inverted: bool = False, register: int = REGISTER) -> bytes:
    """The register's value is in the set. `set_id` names a set made in the same batch, 0 one that exists."""
    return _expression(
        "lookup",
        attribute(1, text(set_name)),
        attribute(2, u32(register)),
        attribute(4, u32(set_id)) if set_id else b"",
        attribute(5, u32(1)) if inverted else b"",
    )


def verdict_map(set_name: str, set_id: int = 0, register: int = REGISTER) -> bytes:
    """The verdict the map has for the register's value; no entry: the rule ends."""
    return _expression(
        "lookup",
        attribute(1, text(set_name)),
        attribute(2, u32(register)),
        attribute(3, u32(_VERDICT_REGISTER)),
        attribute(4, u32(set_id)) if set_id else b"",
    )


# ---- statements


@_again
def verdict(code: Verdict, chain: str = "") -> bytes:
    return _expression("immediate", attribute(1, u32(_VERDICT_REGISTER)), nested(2, data_verdict(code, chain)))


@_again
def counter() -> bytes:
    """An anonymous counter."""
    return _expression("counter", attribute(1, u64(0)), attribute(2, u64(0)))


def log(group: int, prefix: str, snaplen: int = 0) -> bytes:
    """To NFLOG `group`, with a prefix, of which 127 octets are kept."""
    return _expression(
        "log",
        attribute(1, struct.pack(">H", group)),
        attribute(2, text(cut(prefix, 127))),
        attribute(3, u32(snaplen)) if snaplen else b"",
    )


def limit(rate: int, burst: int) -> bytes:
    """At most `rate` packets a second match, `burst` more at once."""
    return _expression(
        "limit", attribute(1, u64(rate)), attribute(2, u64(1)), attribute(3, u32(burst)), attribute(4, u32(0)),
        attribute(5, u32(0)),
    )  # fmt: skip


def masquerade(*, fully_random: bool = False) -> bytes:
    return _expression("masq", attribute(1, u32(1 << 4)) if fully_random else b"")


def source_nat(family: int, register: int = REGISTER) -> bytes:
    """The source address becomes the register's value."""
    return _expression(
        "nat",
        attribute(1, u32(0)),
        attribute(2, u32(family)),
        attribute(3, u32(register)),
    )


def no_track() -> bytes:
    return _expression("notrack")


def reject_port_unreachable() -> bytes:
    """ICMP or ICMPv6 port unreachable, whichever fits (NFT_REJECT_ICMPX_UNREACH)."""
    return _expression("reject", attribute(1, u32(2)), attribute(2, b"\x01"))


def _expression(name: str, *data: bytes) -> bytes:
    return nested(_LIST_ELEM, attribute(1, text(name)), nested(2, *data))


# ---- reading back

_Fields: TypeAlias = "dict[int, bytes | int | _Fields]"

#: Attributes that hold data in attributes, and those that are registers, by expression.
_DATA: Mapping[str, tuple[int, ...]] = {"cmp": (3,), "immediate": (2,), "range": (3, 4), "bitwise": (4, 5)}
_REGISTERS: Mapping[str, tuple[int, ...]] = {
    "meta": (1, 3), "payload": (1,), "ct": (1,), "fib": (1,), "immediate": (1,), "bitwise": (1, 2), "cmp": (1,),
    "range": (1,), "lookup": (2, 3), "nat": (3,),
}  # fmt: skip


def same(made: bytes, found: bytes) -> bool:
    """Whether a rule the kernel lists is the one that was made.

    The kernel writes defaults out, names a register of 16 octets by its other number, and has counted meanwhile.
    """
    ours, theirs = _read(made), _read(found)
    return len(ours) == len(theirs) and all(
        name == other and (name == "counter" or _holds(fields, there))
        for (name, fields), (other, there) in zip(ours, theirs, strict=True)
    )


def _read(expressions: bytes) -> list[tuple[str, _Fields]]:
    found: list[tuple[str, _Fields]] = []
    for _, expression in attributes(expressions, 0):
        parts = dict(attributes(expression, 0))
        name = parts.get(1, b"").rstrip(b"\x00").decode("ascii", "replace")
        fields: _Fields = {}
        for kind, value in attributes(parts.get(2, b""), 0):
            if kind in _DATA.get(name, ()):
                inner = dict(attributes(value, 0))
                fields[kind] = {1: inner[1]} if 1 in inner else {2: dict(attributes(inner.get(2, b""), 0))}
            elif kind in _REGISTERS.get(name, ()):
                number = int.from_bytes(value, "big")
                fields[kind] = 1 + (number - 8) // 4 if number >= 8 and not number % 4 else number
            else:
                fields[kind] = value
        found.append((name, fields))
    return found


def _holds(ours: _Fields, theirs: _Fields) -> bool:
    """All of ours is there, and what is more is nothing but zeros."""
    for kind, value in ours.items():
        other = theirs.get(kind)
        if isinstance(value, dict):
            if not isinstance(other, dict) or not _holds(value, other):
                return False
        elif value != other and not (other is None and isinstance(value, bytes) and not any(value)):
            return False
    return not any(
        any(value) if isinstance(value, bytes) else bool(value) for kind, value in theirs.items() if kind not in ours
    )
