"""Netlink bytes: golden messages, round trips, and that nothing from a socket can raise."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix
from routed.netlink.links import decode_address, decode_link, dump_addresses, dump_links
from routed.netlink.messages import Message, Refusal, attribute, attributes, dump_errno, fence, messages, parse_error
from routed.netlink.numbers import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, RTM_DELROUTE, RTM_NEWROUTE
from routed.netlink.routes import (
    Operation,
    RouteDecoder,
    dump_routes,
    encode_routes,
    message_length,
    refused_prefix,
)

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def encode(batch: RouteBatch, create: Operation = Operation.EXCLUSIVE, *, table: int = 254, metric: int = 0) -> bytes:
    return encode_routes(batch, table=table, protocol=120, sequence=7, create=create, metric=metric)


def test_one_ipv4_route_octet_by_octet():
    """As `strace ip route add 10.1.0.64/26 via 10.0.0.2 dev 3 proto 120` has it, but for the order of attributes."""
    route = KernelRoute(RouteKind.UNICAST, (Gateway(parse_address("10.0.0.2"), 3),))
    assert encode(RouteBatch(V4, [parse_prefix("10.1.0.64/26")[1]], route)).hex(" ", 4) == (
        "34000000 18000106 07000000 00000000"  # 52 octets, RTM_NEWROUTE, REQUEST|CREATE|EXCL, sequence 7
        " 021a0000 fe780001 00000000"  # AF_INET /26, main, protocol 120, universe, unicast
        " 08000100 0a010040 08000500 0a000002 08000400 03000000"  # RTA_DST, RTA_GATEWAY, RTA_OIF
    )


def test_one_deletion_octet_by_octet():
    assert encode(RouteBatch(V4, [parse_prefix("10.1.0.0/16")[1]], None), Operation.DELETE).hex(" ", 4) == (
        "24000000 19000100 07000000 00000000 02100000 fe78ff00 00000000 08000100 0a010000"
    )


def test_operations_differ_in_type_and_flags():
    batch = RouteBatch(V4, [b"\x00"], KernelRoute(RouteKind.BLACKHOLE))
    seen = {}
    for operation in Operation:
        (message,) = messages(encode(batch, operation))
        seen[operation] = (message.type, message.flags)
    assert seen == {
        Operation.EXCLUSIVE: (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL),
        Operation.REPLACE: (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_REPLACE),
        Operation.DELETE: (RTM_DELROUTE, NLM_F_REQUEST),
    }


def prefixes(family: Family) -> st.SearchStrategy[bytes]:
    return st.builds(
        make_prefix,
        st.binary(min_size=family.address_length, max_size=family.address_length),
        st.one_of(st.integers(0, family.max_length), st.sampled_from([24, 26, family.max_length])),
    )


@st.composite
def batches(draw: st.DrawFn) -> RouteBatch:
    family = draw(st.sampled_from(Family))
    addresses = [st.binary(min_size=family.address_length, max_size=family.address_length)]
    if family is V4:
        addresses.append(st.binary(min_size=16, max_size=16))
    legs = st.one_of(
        st.builds(Gateway, st.one_of(*addresses), st.integers(0, 2**31 - 1), st.booleans()),
        st.builds(Gateway, st.just(b""), st.integers(1, 2**31 - 1), st.booleans()),
    )
    gateways = draw(st.lists(legs, max_size=4, unique=True))
    kind = RouteKind.UNICAST if gateways else RouteKind.BLACKHOLE
    route = KernelRoute(kind, tuple(sorted(gateways)))
    return RouteBatch(family, draw(st.lists(prefixes(family), max_size=300, unique=True)), route)


@given(batches(), st.sampled_from([1, 254, 255, 256, 2**32 - 1]), st.integers(0, 2**32 - 1))
def test_what_is_encoded_is_decoded(batch, table, metric):
    data = encode(batch, table=table, metric=metric)
    decoder = RouteDecoder()
    found = []
    for message in messages(data):
        family, prefix, facts = decoder.decode(message.data)
        assert family is batch.family and facts.plain
        assert (facts.table, facts.protocol, facts.metric) == (table, 120, metric)
        assert (facts.kind, facts.gateways) == (batch.route.kind, batch.route.gateways)
        assert refused_prefix(Refusal(1, "", message.data)) == (family, prefix)
        assert len(message.data) <= message_length(family, batch.route)
        found.append(prefix)
    assert sorted(found) == sorted(batch.prefixes)


def test_a_group_is_deleted_leg_by_leg():
    legs = tuple(Gateway(parse_address(f"fd00::{n}"), 3) for n in (1, 2))
    batch = RouteBatch(V6, [parse_prefix("fd01::/64")[1]], KernelRoute(RouteKind.UNICAST, legs))
    decoded = [RouteDecoder().decode(message.data) for message in messages(encode(batch, Operation.DELETE))]
    assert [facts.gateways for _, _, facts in decoded] == [legs[:1], legs[1:]]


@given(st.lists(prefixes(V4), min_size=1, max_size=40))
def test_lengths_are_told_apart_however_they_are_mixed(mixed):
    batch = RouteBatch(V4, mixed, KernelRoute(RouteKind.BLACKHOLE))
    decoder = RouteDecoder()
    assert sorted(decoder.decode(m.data)[1] for m in messages(encode(batch))) == sorted(mixed)


# `ip -4 route show table all` on Linux 6: `10.1.0.64/26 via 10.0.0.2 dev 3 proto 120`, as dumped
DUMPED = bytes.fromhex(
    "3c000000 18000200 07000000 0a000000 021a0000 fe780001 00000000"
    "08000f00 fe000000 08000100 0a010040 08000500 0a000002 08000400 03000000"
)


def test_the_kernels_order_of_attributes_takes_the_fast_path():
    decoder = RouteDecoder()
    first = decoder.decode(DUMPED)
    again = decoder.decode(DUMPED)
    assert first[:2] == (V4, parse_prefix("10.1.0.64/26")[1])
    assert first[2].gateways == (Gateway(parse_address("10.0.0.2"), 3),)
    assert again[2] is first[2]
    other = DUMPED[:17] + b"\x18" + DUMPED[18:40] + parse_address("10.2.3.0") + DUMPED[44:]
    assert decoder.decode(other)[:2] == (V4, parse_prefix("10.2.3.0/24")[1])
    assert decoder.decode(other)[2] is first[2]


def test_a_fence_is_answered_and_does_nothing():
    (message,) = messages(fence(9))
    assert (message.type, message.sequence, message.flags & 4) == (1, 9, 4)


def test_refusals_and_acknowledgements():
    request = encode(RouteBatch(V4, [parse_prefix("10.1.0.0/16")[1]], None), Operation.DELETE)
    text = b"Nexthop has invalid gateway\x00"
    extack = struct.pack("=HH", 4 + len(text), 1) + text
    body = struct.pack("=i", -errno.ENETUNREACH) + request + extack
    data = struct.pack("=IHHII", 16 + len(body), 2, 0x200, 7, 0) + body
    (message,) = messages(data)
    refusal = parse_error(message)
    assert (refusal.errno, refusal.text) == (errno.ENETUNREACH, "Nexthop has invalid gateway")
    assert refused_prefix(refusal) == (V4, parse_prefix("10.1.0.0/16")[1])
    body = struct.pack("=i", 0) + request[:16]
    (message,) = messages(struct.pack("=IHHII", 16 + len(body), 2, 0x100, 7, 0) + body)
    assert parse_error(message).errno == 0
    assert dump_errno(Message(3, 0, 7, 0, bytes(16) + struct.pack("=i", -errno.ENOENT))) == errno.ENOENT


def test_links_and_addresses():
    name = struct.pack("=HH", 9, 3) + b"eth0\x00" + bytes(3)
    link = struct.pack("=IHHII", 32 + len(name), 16, 0, 0, 0) + struct.pack("=BBHiII", 0, 0, 1, 5, 0x10001, 0) + name
    decoded = decode_link(link)
    assert (decoded.index, decoded.name, decoded.enabled, decoded.up) == (5, "eth0", True, True)
    no_carrier = link[:24] + struct.pack("=I", 1) + link[28:]
    assert (decode_link(no_carrier).enabled, decode_link(no_carrier).up) == (True, False)
    assert decode_link(link[:16] + b"\x07" + link[17:]) is None  # a bridge port's message
    local = struct.pack("=HH", 8, 2) + parse_address("10.0.0.1")
    peer = struct.pack("=HH", 8, 1) + parse_address("10.0.0.2")
    body = struct.pack("=BBBBI", 2, 32, 0, 0, 5) + peer + local
    address = decode_address(struct.pack("=IHHII", 16 + len(body), 20, 0, 0, 0) + body)
    assert (address.index, address.address, address.length) == (5, parse_address("10.0.0.1"), 32)
    assert decode_address(struct.pack("=IHHII", 24, 20, 0, 0, 0) + struct.pack("=BBBBI", 7, 0, 0, 0, 5)) is None


@pytest.mark.parametrize("request_data", [dump_links(3), dump_addresses(3), dump_routes(V6, table=1000, sequence=3)])
def test_dump_requests_are_one_message(request_data):
    (message,) = messages(request_data)
    assert message.sequence == 3 and message.flags & 0x300 == 0x300 and len(message.data) == len(request_data)


@given(st.lists(st.tuples(st.sampled_from([1, 4, 5, 6, 9, 15, 18, 99]), st.binary(max_size=12)), max_size=6))
def test_attributes_of_odd_lengths_do_not_raise(values):
    body = b"".join(attribute(kind, value) for kind, value in values)
    RouteDecoder().decode(struct.pack("=I", 28 + len(body)) + DUMPED[4:28] + body)


@given(st.binary(max_size=200), st.integers(0, 60), st.sampled_from([16, 20, 24, 25, 2, 3]))
def test_no_octets_from_the_socket_can_raise_but_cut_short_at_worst(noise, cut, kind):
    whole = (DUMPED + noise)[: max(16, len(DUMPED) - cut)]
    for data in (noise, struct.pack("=IHHII", len(whole), kind, 0, 1, 1) + whole[16:]):
        for message in messages(data):
            list(attributes(message.data, 16))
            RouteDecoder().decode(message.data)
            decode_link(message.data)
            decode_address(message.data)
            refused_prefix(parse_error(message))
            refused_prefix(Refusal(1, "", message.data))
