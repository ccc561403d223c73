"""NLRI fields: the fast way and the plain way agree, and both agree with a reading of RFC 4271 4.3 by `ipaddress`."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp import nlri as module
from routed.bgp.nlri import NlriError, split_nlri, split_uniform, without_unroutable
from routed.net.families import Family
from routed.net.prefixes import format_prefix, make_prefix, parse_prefix

V4 = Family.IPV4_UNICAST
V6 = Family.IPV6_UNICAST

families = st.sampled_from([V4, V6])


@st.composite
def raw_prefixes(draw: st.DrawFn, family: Family) -> bytes:
    """As a peer may send them: bits past the length set or not."""
    length = draw(st.integers(0, family.max_length))
    octets = (length + 7) // 8
    return bytes((length,)) + draw(st.binary(min_size=octets, max_size=octets))


def naive(family: Family, raw: bytes) -> str:
    address = int.from_bytes(raw[1:].ljust(family.address_length, b"\0"), "big")
    kind = ipaddress.IPv4Network if family is V4 else ipaddress.IPv6Network
    return str(kind((address, raw[0]), strict=False))


@given(st.data(), families)
def test_split_is_canonical_and_in_order(data: st.DataObject, family: Family) -> None:
    raw = data.draw(st.lists(raw_prefixes(family), max_size=40))
    prefixes, _ = split_nlri(family, b"".join(raw))
    assert [str(ipaddress.ip_network(format_prefix(family, prefix))) for prefix in prefixes] == [
        naive(family, one) for one in raw
    ]
    assert list(prefixes) == [make_prefix(one[1:], one[0]) for one in raw]


@given(st.data(), families)
def test_uniform_fields_split_alike(data: st.DataObject, family: Family) -> None:
    length = data.draw(st.integers(0, family.max_length))
    octets = (length + 7) // 8
    raw = [
        bytes((length,)) + data.draw(st.binary(min_size=octets, max_size=octets))
        for _ in range(data.draw(st.integers(1, 30)))
    ]
    fast = split_uniform(family, b"".join(raw))
    clean = [make_prefix(one[1:], length) for one in raw]
    if fast is None:
        # only for a reason: stray bits, or a first octet that needs a closer look
        _, suspect = split_nlri(family, b"".join(raw))
        assert raw != clean or suspect
    else:
        assert list(fast) == raw == clean
        assert without_unroutable(family, fast) is fast


@given(families, st.binary(max_size=80))
def test_any_octets_split_or_raise(family: Family, octets: bytes) -> None:
    try:
        prefixes, suspect = split_nlri(family, octets)
    except NlriError:
        return
    assert sum(1 + (prefix[0] + 7) // 8 for prefix in prefixes) == len(octets)
    assert all(prefix[0] <= family.max_length and make_prefix(prefix[1:], prefix[0]) == prefix for prefix in prefixes)
    if not suspect:
        assert without_unroutable(family, prefixes) is prefixes


@given(families, st.data())
def test_every_unroutable_prefix_is_suspected(family: Family, data: st.DataObject) -> None:
    inside = {
        V4: ["127.0.0.0/8", "224.0.0.0/4"],
        V6: ["::1/128", "fe80::/10", "ff00::/8"],
    }[family]
    outer = ipaddress.ip_network(data.draw(st.sampled_from(inside)))
    length = data.draw(st.integers(outer.prefixlen, family.max_length))
    bits = data.draw(st.integers(0, 2 ** (family.max_length - outer.prefixlen) - 1))
    address = (int(outer.network_address) | bits).to_bytes(family.address_length, "big")
    prefix = make_prefix(address, length)
    good = parse_prefix("10.0.0.0/8" if family is V4 else "2001:db8::/32")[1]
    for field in (prefix, good + prefix, prefix + good, prefix * 3):
        prefixes, suspect = split_nlri(family, field)
        assert suspect
        assert prefix not in without_unroutable(family, prefixes)
        assert list(without_unroutable(family, prefixes)) == [one for one in prefixes if one == good]


@pytest.mark.parametrize("text", ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "126.0.0.0/7", "192.0.0.0/3", "240.0.0.0/8"])
def test_ipv4_prefixes_that_stay(text: str) -> None:
    prefix = parse_prefix(text)[1]
    assert list(without_unroutable(V4, split_nlri(V4, prefix)[0])) == [prefix]


@pytest.mark.parametrize("text", ["::/0", "::/128", "fc00::/7", "fec0::/10", "::ffff:0:0/96", "64:ff9b::/96"])
def test_ipv6_prefixes_that_stay(text: str) -> None:
    prefix = parse_prefix(text)[1]
    assert list(without_unroutable(V6, split_nlri(V6, prefix)[0])) == [prefix]


def test_the_cache_of_splitters_is_bounded() -> None:
    """A peer that sends every possible count keeps no more than the bound; and none of it is ever wrong."""
    for count in range(1, 900):
        field = bytes((8, 10)) * count
        assert split_uniform(V4, field) == (bytes((8, 10)),) * count
        kept = sum(key >> 5 for key in module._splitters)
        assert kept <= module._MAX_CACHED_FIELDS
