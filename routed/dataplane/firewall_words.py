"""The words of policy as nf_tables has them: members of sets as elements, and what a packet must be as expressions.

Each function gives octets for one condition or statement; in which chain they stand, and in which order, is the business of
who makes rules of them, how they are coded `netlink.nft_expressions`'. A transport header's ports are at offsets 0 and 2,
`where` is the offset and length of an address in the network header by family (`SOURCE`, `DESTINATION`). Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from routed.desired_policy import Failsafe, HostRules, Icmp, SetKind, SetSpec, Side, TunnelPackets
from routed.net.families import Family
from routed.netlink import nft_expressions as nft
from routed.netlink.nft_expressions import Base, Compare, CtState, Meta, Verdict
from routed.netlink.nftables import (
    INTERFACE_INDEX,
    IPV4_ADDRESS,
    IPV6_ADDRESS,
    PORT,
    PROTOCOL,
    Element,
    SetShape,
    concatenation,
)

ADDRESS = {Family.IPV4_UNICAST: IPV4_ADDRESS, Family.IPV6_UNICAST: IPV6_ADDRESS}
PROTO = {Family.IPV4_UNICAST: bytes([nft.NFPROTO_IPV4]), Family.IPV6_UNICAST: bytes([nft.NFPROTO_IPV6])}
SOURCE = {Family.IPV4_UNICAST: (12, 4), Family.IPV6_UNICAST: (8, 16)}
DESTINATION = {Family.IPV4_UNICAST: (16, 4), Family.IPV6_UNICAST: (24, 16)}
LABEL = {Family.IPV4_UNICAST: "4", Family.IPV6_UNICAST: "6"}

_ICMPV6 = 58
_DISCOVERY = ((130, 136), (143, 143))
"""ICMPv6 types without which there is no neighbour: multicast listeners, routers and neighbours (RFC 4861, 3810)."""
_KNOWN = CtState.ESTABLISHED | CtState.RELATED
_DESTINATION_TRANSLATED = 1 << 5
"""IPS_DST_NAT of a connection's status."""


def ends_set(family: Family) -> str:
    return f"tunnel_ends_{LABEL[family]}"


# ---- elements


def shape_of(spec: SetSpec) -> SetShape:
    address = ADDRESS[spec.family]
    if spec.kind is SetKind.PORTS:
        return SetShape(concatenation(address, PROTOCOL, PORT))
    if spec.kind is SetKind.RANGES:
        return SetShape(PORT, interval=True)
    return SetShape(address, interval=spec.kind is SetKind.NETS)


def members_of(spec: SetSpec, members: Iterable[bytes]) -> Iterable[Element]:
    if spec.kind is SetKind.NETS:
        return ranges_of(members, spec.family)
    if spec.kind is SetKind.HOSTS:
        return (Element(member) for member in sorted(members))
    if spec.kind is SetKind.RANGES:
        behind = {member: int.from_bytes(member[2:], "big") + 1 for member in sorted(members)}
        return (Element(member[:2], b"" if end >> 16 else struct.pack(">H", end)) for member, end in behind.items())
    length = spec.family.address_length
    return (
        Element(b"".join((member[:length], member[length : length + 1], bytes(3), member[length + 1 :], bytes(2))))
        for member in sorted(members)
    )


def ranges_of(prefixes: Iterable[bytes], family: Family) -> Iterator[Element]:
    """Wire prefixes as ranges; the end is the first address behind, empty behind the last there is."""
    width, octets = family.max_length, family.address_length
    for prefix in sorted(prefixes, key=lambda each: each[1:]):
        first = int.from_bytes(prefix[1:].ljust(octets, b"\x00"), "big")
        behind = first + (1 << (width - prefix[0]))
        yield Element(first.to_bytes(octets, "big"), b"" if behind >> width else behind.to_bytes(octets, "big"))


def way_of(interface: str, target: tuple[Verdict, str]) -> Element:
    return Element(interface.encode().ljust(16, b"\x00"), verdict=target)


def source_shape(family: Family) -> SetShape:
    """Interfaces, by index, and addresses that packets from there may come from."""
    return SetShape(concatenation(INTERFACE_INDEX, ADDRESS[family]))


def source_at(index: int, address: bytes) -> Element:
    return Element(struct.pack("=I", index) + address)


# ---- expressions


def lacks_source(name: str, family: Family) -> bytes:
    """Of a family, and interface and source are not in a set. Each packet is asked this: an index takes half the time of a
    name, and so do four octets, four times, of sixteen at once."""
    offset, length = SOURCE[family]
    words = [nft.payload(Base.NETWORK, offset + at, 4, nft.concat_register(1 + at // 4)) for at in range(0, length, 4)]
    return (
        nft.meta(Meta.NFPROTO)
        + nft.compare(PROTO[family])
        + nft.meta(Meta.IIF, nft.concat_register(0))
        + b"".join(words)
        + nft.lookup(name, inverted=True, register=nft.concat_register(0))
    )


def local_to_link() -> Iterator[bytes]:
    """IPv6 packets whose source is of the link, or none yet: of no route, and no router passes them on (RFC 4291, 2.5)."""
    ipv6 = nft.meta(Meta.NFPROTO) + nft.compare(PROTO[Family.IPV6_UNICAST])
    offset, length = SOURCE[Family.IPV6_UNICAST]
    yield ipv6 + nft.payload(Base.NETWORK, offset, 2) + nft.bitwise(b"\xff\xc0") + nft.compare(b"\xfe\x80")
    yield ipv6 + nft.payload(Base.NETWORK, offset, length) + nft.compare(bytes(length))


def has_protocol(protocol: int) -> bytes:
    return nft.meta(Meta.L4PROTO) + nft.compare(bytes([protocol]))


def has_port(offset: int, port: int) -> bytes:
    return nft.payload(Base.TRANSPORT, offset, 2) + nft.compare(struct.pack(">H", port))


def discovery() -> Iterator[bytes]:
    for low, high in _DISCOVERY:
        yield has_protocol(_ICMPV6) + nft.payload(Base.TRANSPORT, 0, 1) + nft.in_range(bytes([low]), bytes([high]))


def is_failsafe(failsafe: Failsafe, offset: int, where: dict[Family, tuple[int, int]]) -> bytes:
    """A port at `offset`, with somebody of its network."""
    return (
        in_net(failsafe.family, failsafe.net, where) + has_protocol(failsafe.protocol) + has_port(offset, failsafe.port)
    )


def is_tunnelled(tunnel: TunnelPackets) -> bytes:
    """The outer packets of a tunnel, whoever's."""
    port = has_port(2, tunnel.port) if tunnel.port else b""
    return nft.meta(Meta.NFPROTO) + nft.compare(PROTO[tunnel.family]) + has_protocol(tunnel.protocol) + port


def with_end(tunnel: TunnelPackets, where: dict[Family, tuple[int, int]], *, inverted: bool = False) -> bytes:
    """With another node; inverted: with anybody else."""
    end = nft.payload(Base.NETWORK, *where[tunnel.family])
    return end + nft.lookup(ends_set(tunnel.family), inverted=inverted)


def in_net(family: Family | None, net: bytes, where: dict[Family, tuple[int, int]]) -> bytes:
    """An address in a wire prefix; no family: in any."""
    if family is None:
        return b""
    load = nft.payload(Base.NETWORK, *where[family])
    return nft.meta(Meta.NFPROTO) + nft.compare(PROTO[family]) + load + _is_within(family, net, Compare.EQUAL)


def _is_within(family: Family, net: bytes, operator: Compare) -> bytes:
    """What was loaded, in or outside a wire prefix."""
    bits, width = net[0], family.max_length
    mask = ((1 << bits) - 1 << (width - bits)).to_bytes(family.address_length, "big")
    masked = nft.bitwise(mask) if bits < width else b""
    return masked + nft.compare(net[1:].ljust(family.address_length, b"\x00"), operator)


def is_translated() -> bytes:
    """The destination was translated. Never holds for a packet that is not tracked, and neither would its opposite."""
    return (
        nft.ct_status()
        + nft.bitwise(struct.pack("=I", _DESTINATION_TRANSLATED))
        + nft.compare(bytes(4), Compare.NOT_EQUAL)
    )


def has_interface(key: Meta, prefix: str, operator: Compare = Compare.EQUAL) -> bytes:
    """A name that begins so; with a NUL at its end, exactly this name."""
    name = prefix.encode()
    return nft.meta(key) + nft.compare(name.ljust(16, b"\x00") if name.endswith(b"\x00") else name, operator)


def in_state(bits: CtState) -> bytes:
    return nft.ct_state() + nft.bitwise(struct.pack("=I", bits)) + nft.compare(bytes(4), Compare.NOT_EQUAL)


def is_known() -> bytes:
    return in_state(_KNOWN) + nft.verdict(Verdict.ACCEPT)


def is_unknown() -> bytes:
    return nft.ct_state() + nft.bitwise(struct.pack("=I", _KNOWN)) + nft.compare(bytes(4))


def to_loopback() -> bytes:
    """To 127.0.0.0/8. What nearly all packets are not is asked first."""
    first = nft.payload(Base.NETWORK, DESTINATION[Family.IPV4_UNICAST][0], 1) + nft.compare(b"\x7f")
    return first + nft.meta(Meta.NFPROTO) + nft.compare(PROTO[Family.IPV4_UNICAST])


def set_mark(bits: int) -> bytes:
    return _write_mark(0xFFFFFFFF & ~bits, bits)


def clear_mark(bits: int) -> bytes:
    return _write_mark(0xFFFFFFFF & ~bits, 0)


def _write_mark(kept: int, added: int) -> bytes:
    return nft.meta(Meta.MARK) + nft.bitwise(struct.pack("=I", kept), struct.pack("=I", added)) + nft.set_mark()


def has_mark(bits: int) -> bytes:
    return nft.meta(Meta.MARK) + nft.bitwise(struct.pack("=I", bits)) + nft.compare(bytes(4), Compare.NOT_EQUAL)


def lacks_mark(bits: int) -> bytes:
    return nft.meta(Meta.MARK) + nft.bitwise(struct.pack("=I", bits)) + nft.compare(bytes(4))


def denied(host: HostRules, origin: str) -> bytes:
    """Counted, where that is wanted logged, and dropped."""
    log = b""
    if host.log_denied and host.log_group is not None:
        log = nft.log(host.log_group, f"routed deny {origin}")
    return nft.counter() + log + nft.verdict(Verdict.DROP)


def has_icmp(icmp: Icmp, operator: Compare) -> bytes:
    value = bytes([icmp.type]) if icmp.code is None else bytes([icmp.type, icmp.code])
    return nft.payload(Base.TRANSPORT, 0, len(value)) + nft.compare(value, operator)


def has_addresses(side: Side, family: Family | None, where: dict[Family, tuple[int, int]]) -> bytes:
    if not (side.sets or side.not_sets or side.net or side.not_net):
        return b""
    if family is None:
        raise ValueError("a rule that names sets or networks has a family")
    load = nft.payload(Base.NETWORK, *where[family])
    asked = [load + _is_within(family, side.net, Compare.EQUAL)] if side.net else []
    asked += [load + _is_within(family, side.not_net, Compare.NOT_EQUAL)] if side.not_net else []
    asked += [load + nft.lookup(name) for name in side.sets]
    asked += [load + nft.lookup(name, inverted=True) for name in side.not_sets]
    return b"".join(asked)


def has_port_in(offset: int, low: int, high: int, operator: Compare = Compare.EQUAL) -> bytes:
    load = nft.payload(Base.TRANSPORT, offset, 2)
    if low == high:
        return load + nft.compare(struct.pack(">H", low), operator)
    return load + nft.in_range(struct.pack(">H", low), struct.pack(">H", high), operator)


def in_named(spec: SetSpec, where: dict[Family, tuple[int, int]], offset: int, *, inverted: bool = False) -> bytes:
    """Address, protocol and port side by side are in a set."""
    words = where[spec.family][1] // 4
    return (
        nft.payload(Base.NETWORK, *where[spec.family], register=nft.concat_register(0))
        + nft.meta(Meta.L4PROTO, nft.concat_register(words))
        + nft.payload(Base.TRANSPORT, offset, 2, nft.concat_register(words + 1))
        + nft.lookup(spec.name, inverted=inverted, register=nft.concat_register(0))
    )
