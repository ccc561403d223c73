"""Prefixes, addresses and numbers against the standard library's reading of the same text."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.net.addresses import (
    format_address,
    format_router_id,
    is_link_local,
    parse_address,
    parse_asn,
    parse_router_id,
)
from routed.net.families import Family, family_from_wire
from routed.net.prefixes import covers, format_prefix, make_prefix, parse_prefix, plain_prefix, prefix_address

NETWORKS = st.one_of(
    st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 32)),
    st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 128)),
).map(lambda pair: ipaddress.ip_network((pair[0], pair[1]), strict=False))


@given(NETWORKS)
def test_a_wire_prefix_is_canonical_and_comes_back(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    family, prefix = parse_prefix(str(network))
    assert family is Family.of_address(network.network_address.packed)
    assert (prefix[0], len(prefix)) == (network.prefixlen, 1 + (network.prefixlen + 7) // 8)
    assert make_prefix(network.broadcast_address.packed, network.prefixlen) == prefix, "host bits do not count"
    assert prefix_address(family, prefix) == network.network_address.packed
    assert ipaddress.ip_network(format_prefix(family, prefix)) == network


@given(
    st.one_of(
        NETWORKS.map(str),
        st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){3}(/[0-9./]{0,5})?", fullmatch=True),
        st.from_regex(r"[0-9a-fA-F:.]{2,20}(/[0-9]{0,4})?(%[a-z0-9]{1,3})?", fullmatch=True),
        st.text(max_size=20),
    )
)
def test_plain_text_is_read_as_the_standard_library_reads_it(text: str) -> None:
    plain = plain_prefix(text)
    if plain is None:
        return
    found = ipaddress.ip_interface(text)
    assert plain[2] == found.packed
    assert plain[1] == make_prefix(found.packed, found.network.prefixlen)
    assert plain[0] is Family.of_address(found.packed)


@given(NETWORKS)
def test_what_people_write_is_plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    assert plain_prefix(str(network)) is not None
    assert plain_prefix(str(network.network_address)) is not None


@pytest.mark.parametrize("text", ["", "/", "10.0.0.1/", "10.0.0.1/33", "fe80::1%eth0/64", "10.0.0.0/255.0.0.0", "1\0"])
def test_other_spellings_are_not_plain(text: str) -> None:
    assert plain_prefix(text) is None


@given(NETWORKS, NETWORKS)
def test_covers_is_subnet_of(
    outer: ipaddress.IPv4Network | ipaddress.IPv6Network, inner: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> None:
    if outer.version != inner.version:
        return
    expected = inner.subnet_of(outer)  # type: ignore[arg-type]
    assert covers(parse_prefix(str(outer))[1], parse_prefix(str(inner))[1]) is expected


@given(NETWORKS, st.integers(0, 128))
def test_a_prefix_covers_its_own_parts(network: ipaddress.IPv4Network | ipaddress.IPv6Network, length: int) -> None:
    longer = min(network.prefixlen + length, network.max_prefixlen)
    part = make_prefix(network.broadcast_address.packed, longer)
    assert covers(parse_prefix(str(network))[1], part)


@pytest.mark.parametrize(
    ("text", "asn"), [(64512, 64512), ("64512", 64512), ("1.10", 65546), ("4294967295", 4294967295), (0, 0)]
)
def test_as_numbers(text: int | str, asn: int) -> None:
    assert parse_asn(text) == asn


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1.", ".1", "1.65536", "65536.1", "4294967296", "1.2.3", "٣", -1, 2**32, True]
)
def test_what_is_no_as_number(text: int | str) -> None:
    with pytest.raises(ValueError, match="not an AS number"):
        parse_asn(text)


def test_router_ids_and_addresses() -> None:
    assert format_router_id(parse_router_id("10.0.0.1")) == "10.0.0.1"
    with pytest.raises(ValueError, match="6286"):
        parse_router_id("0.0.0.0")
    assert format_address(parse_address("2001:DB8::0:1")) == "2001:db8::1"
    assert [is_link_local(parse_address(text)) for text in ("fe80::1", "febf::1", "fec0::1", "fd00::1", "254.128.0.1")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert not is_link_local(b"")


def test_families_by_their_numbers() -> None:
    assert [family_from_wire(family.afi, family.safi) for family in Family] == list(Family)
    assert family_from_wire(25, 70) is None
