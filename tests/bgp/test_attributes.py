"""AttributeSet: what is written reads back, on 4-octet and 2-octet sessions; texts for people; the pool."""

from __future__ import annotations

import gc
import json

from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.as_path import join_segments, prepend
from routed.bgp.attribute_reader import ATTRIBUTES, read_attributes
from routed.bgp.attributes import (
    ATTRIBUTE_FLAGS,
    AttributeFields,
    AttributeSet,
    as_path_text,
    communities_text,
    describe,
    encode_attributes,
    extended_communities_text,
    large_communities_text,
)
from routed.bgp.update import AttributePool, DecodeContext, UpdateDecoder, reach_message
from routed.net.families import Family

V4 = Family.IPV4_UNICAST
V6 = Family.IPV6_UNICAST

asns = st.one_of(st.integers(1, 0xFFFF), st.integers(0x10000, 0xFFFFFFFF))
paths = st.lists(st.tuples(st.sampled_from([1, 2]), st.lists(asns, min_size=1, max_size=6).map(tuple)), max_size=4).map(
    join_segments
)
hosts4 = st.tuples(st.integers(1, 223).filter(lambda first: first != 127), st.binary(min_size=3, max_size=3)).map(
    lambda parts: bytes((parts[0],)) + parts[1]
)
hosts6 = st.binary(min_size=15, max_size=15).map(lambda rest: b"\x20" + rest)
link_locals = st.binary(min_size=14, max_size=14).map(lambda rest: b"\xfe\x80" + rest)
numbers = st.integers(0, 0xFFFFFFFF)


def chunks(size: int, most: int = 6) -> st.SearchStrategy[bytes]:
    """Some values of `size` octets, none twice: drawn as one, since drawing each costs more than the test does."""

    def distinct(octets: bytes) -> bytes:
        return b"".join(dict.fromkeys(octets[at : at + size] for at in range(0, len(octets), size)))

    lengths = st.integers(0, most).map(lambda count: count * size)
    return lengths.flatmap(lambda length: st.binary(min_size=length, max_size=length)).map(distinct)


unknown_attributes = st.dictionaries(
    st.sampled_from([code for code in range(256) if code not in ATTRIBUTE_FLAGS]), st.binary(max_size=300), max_size=3
).map(lambda values: tuple((0xE0, code, values[code]) for code in sorted(values)))


@st.composite
def attribute_sets(draw: st.DrawFn, family: Family = V4) -> AttributeSet:
    fields: AttributeFields = {
        "origin": draw(st.integers(0, 2)),
        "as_path": draw(paths),
        "next_hop": draw(hosts4 if family is V4 else hosts6),
        "link_local": draw(st.one_of(st.just(b""), link_locals)) if family is V6 else b"",
        "med": draw(st.none() | numbers),
        "local_pref": draw(numbers),
        "atomic_aggregate": draw(st.booleans()),
        "aggregator": draw(st.none() | st.tuples(asns, st.binary(min_size=4, max_size=4))),
        "communities": draw(chunks(4, 80)),
        "extended_communities": draw(chunks(8)),
        "large_communities": draw(chunks(12, 25)),
        "originator_id": draw(st.none() | numbers),
        "cluster_list": draw(chunks(4)),
        "unknown": draw(unknown_attributes),
    }
    written = {7: "aggregator", 8: "communities", 16: "extended_communities", 32: "large_communities"}
    there = [code for code, name in written.items() if fields.get(name)]
    fields["partial"] = tuple(code for code in there if draw(st.booleans()))
    return AttributeSet(**fields)


def decode(attrs: AttributeSet, family: Family, *, four_octet_as: bool) -> AttributeSet:
    """Through the wire of an internal session."""
    attributes = encode_attributes(attrs, four_octet_as=four_octet_as, family=family, include_local_pref=True)
    message = reach_message(family, attributes, attrs.next_hop + attrs.link_local, b"\x08\x0a")
    assert int.from_bytes(message[16:18], "big") == len(message)
    decoder = UpdateDecoder(DecodeContext(four_octet_as, False, frozenset((V4, V6))), pool=AttributePool())
    update = decoder.decode(message[19:])
    assert update.findings == ()
    (reach,) = update.reach
    assert (reach.family, list(reach.prefixes)) == (family, [b"\x08\x0a"])
    return reach.attrs


@given(st.sampled_from([V4, V6]).flatmap(lambda family: st.tuples(st.just(family), attribute_sets(family))))
def test_round_trip_with_four_octets(case: tuple[Family, AttributeSet]) -> None:
    family, attrs = case
    assert decode(attrs, family, four_octet_as=True).content() == attrs.content()


@given(attribute_sets())
def test_round_trip_with_two_octets(attrs: AttributeSet) -> None:
    """RFC 6793: AS4_PATH and AS4_AGGREGATOR bring everything back."""
    assert decode(attrs, V4, four_octet_as=False).content() == attrs.content()


@given(attribute_sets())
def test_attributes_are_in_ascending_order_and_known_flags(attrs: AttributeSet) -> None:
    block = encode_attributes(attrs, four_octet_as=False, family=V4, include_local_pref=True)
    codes, at = [], 0
    while at < len(block):
        flags, code = block[at], block[at + 1]
        header = 4 if flags & 0x10 else 3
        length = int.from_bytes(block[at + 2 : at + header], "big")
        assert (length > 255) == bool(flags & 0x10)
        if code in ATTRIBUTE_FLAGS:
            assert flags & 0xE0 == ATTRIBUTE_FLAGS[code] | (0x20 if code in attrs.partial else 0)
        else:
            assert flags & 0xE0 == 0xE0  # optional transitive, and Partial: we passed on what we do not know
        codes.append(code)
        at += header + length
    assert codes == sorted(set(codes))


@given(attribute_sets(), attribute_sets())
def test_content_is_equal_exactly_for_equal_fields(one: AttributeSet, two: AttributeSet) -> None:
    assert (one.content() == two.content()) == (one.fields() == two.fields())
    assert one.content() == tuple(one.fields().values())
    assert one.replace().content() == one.content() and one.replace() is not one


@given(attribute_sets(), numbers)
def test_replace_changes_what_is_named_only(attrs: AttributeSet, med: int) -> None:
    changed = attrs.replace(med=med, as_path=prepend(attrs.as_path, 64512))
    assert changed.med == med
    assert changed.as_path_length == attrs.as_path_length + 1
    assert changed.neighbor_as == 64512 and 64512 in changed.as_numbers
    assert changed.replace(med=attrs.med, as_path=attrs.as_path).content() == attrs.content()


@given(attribute_sets())
def test_description_is_plain_json(attrs: AttributeSet) -> None:
    text = json.dumps(describe(attrs))
    assert text.isascii() and text.isprintable()
    assert json.loads(text)["asPathLength"] == attrs.as_path_length


def test_local_pref_goes_to_internal_peers_always_and_to_others_never() -> None:
    attrs = AttributeSet(next_hop=bytes((192, 0, 2, 1)))
    for given_value, sent in ((None, 100), (7, 7)):
        internal = encode_attributes(
            attrs.replace(local_pref=given_value), four_octet_as=True, family=V4, include_local_pref=True
        )
        assert read_attributes(internal, four_octet_as=True, external=False).fields["local_pref"] == sent
    external = encode_attributes(attrs.replace(local_pref=7), four_octet_as=True, family=V4, include_local_pref=False)
    assert b"\x40\x05" not in external


def test_as4_attributes_go_to_two_octet_peers_only_where_needed() -> None:
    small = AttributeSet(as_path=prepend(b"", 65001), next_hop=bytes((192, 0, 2, 1)), aggregator=(65001, bytes(4)))
    block = encode_attributes(small, four_octet_as=False, family=V4, include_local_pref=False)
    assert read_attributes(block, four_octet_as=False, external=True).codes == {1, 2, 3, 7}
    large = small.replace(as_path=prepend(b"", 70000), aggregator=(70000, bytes(4)))
    block = encode_attributes(large, four_octet_as=False, family=V4, include_local_pref=False)
    read = read_attributes(block, four_octet_as=False, external=True)
    assert read.codes == {1, 2, 3, 7, 17, 18}
    assert read.fields["aggregator"] == (70000, bytes(4))
    block = encode_attributes(large, four_octet_as=True, family=V4, include_local_pref=False)
    assert read_attributes(block, four_octet_as=True, external=True).codes == {1, 2, 3, 7}


def test_as4_of_an_older_aggregation_is_ignored() -> None:
    """RFC 6793 4.2.3: beside an AGGREGATOR that is not AS_TRANS neither AS4 attribute describes this route."""
    large = AttributeSet(as_path=prepend(b"", 70000), next_hop=bytes((192, 0, 2, 1)), aggregator=(70000, bytes(4)))
    block = encode_attributes(large, four_octet_as=False, family=V4, include_local_pref=False)
    aggregated = block.replace(bytes.fromhex("c007065ba0"), bytes.fromhex("c00706fde9"))
    read = read_attributes(aggregated, four_octet_as=False, external=True)
    assert read.fields["aggregator"] == (65001, bytes(4))
    assert read.fields["as_path"] == prepend(b"", 23456)


def test_an_aggregator_of_two_octets_says_nothing_of_the_path() -> None:
    """Without AS4_AGGREGATOR beside it: any four-octet speaker writes it so for a route that a small AS aggregated."""
    attrs = AttributeSet(as_path=prepend(b"", 70000), next_hop=bytes((192, 0, 2, 1)), aggregator=(65010, bytes(4)))
    block = encode_attributes(attrs, four_octet_as=False, family=V4, include_local_pref=False)
    read = read_attributes(block, four_octet_as=False, external=True)
    assert read.codes == {1, 2, 3, 7, 17}
    assert (read.fields["aggregator"], read.fields["as_path"]) == ((65010, bytes(4)), attrs.as_path)


def test_the_partial_bit_stays() -> None:
    """RFC 4271 5: nobody takes it away again, from attributes we know neither; those it can't be on lose it."""
    attrs = AttributeSet(
        next_hop=bytes((192, 0, 2, 1)),
        med=5,
        aggregator=(65010, bytes(4)),
        communities=bytes(4),
        extended_communities=bytes(8),
        large_communities=bytes(12),
        partial=(7, 16, 32),
    )
    block = encode_attributes(attrs, four_octet_as=True, family=V4, include_local_pref=False)
    for head, value in (("e00708", "0000fdf2"), ("c00804", "00000000"), ("e01008", "00000000"), ("e0200c", "00000000")):
        assert bytes.fromhex(head + value) in block
    assert read_attributes(block, four_octet_as=True, external=True).fields["partial"] == (7, 16, 32)
    with_med = block.replace(bytes.fromhex("800404"), bytes.fromhex("a00404"))
    assert read_attributes(with_med, four_octet_as=True, external=True).fields["partial"] == (7, 16, 32)


def test_texts() -> None:
    attrs = AttributeSet(
        as_path=join_segments([(2, (64512, 64513)), (1, (2, 1))]),
        communities=bytes.fromhex("fc000064 ffffff01 ffff029a ffff0000 ffffff04"),
        large_communities=bytes.fromhex("0000fc00 00000001 ffffffff"),
        extended_communities=bytes.fromhex(
            "0002fc0000000064 0103c000020100c8 0202000111700005 4002fc0000000064 0306000000000001"
        ),
    )
    assert as_path_text(attrs) == "64512 64513 {1,2}"
    assert communities_text(attrs) == "64512:100 no-export blackhole graceful-shutdown no-peer"
    assert large_communities_text(attrs) == "64512:1:4294967295"
    assert extended_communities_text(attrs) == (
        "rt:64512:100 soo:192.0.2.1:200 rt:70000:5 0x4002fc0000000064 0x0306000000000001"
    )
    empty = AttributeSet()
    assert (as_path_text(empty), communities_text(empty), large_communities_text(empty)) == ("", "", "")
    assert describe(empty) == {"origin": "igp", "asPath": "", "asPathLength": 0}


def test_description_names_everything() -> None:
    attrs = AttributeSet(
        origin=2,
        as_path=prepend(b"", 65001),
        next_hop=b"\x20\x01\x0d\xb8" + bytes(11) + b"\1",
        link_local=b"\xfe\x80" + bytes(13) + b"\2",
        med=0,
        local_pref=100,
        atomic_aggregate=True,
        aggregator=(70000, bytes((192, 0, 2, 9))),
        communities=bytes.fromhex("fc000064"),
        extended_communities=bytes.fromhex("0002fc0000000064"),
        large_communities=bytes(11) + b"\1",
        originator_id=0x0A000001,
        cluster_list=bytes((10, 0, 0, 2, 10, 0, 0, 3)),
        unknown=((0xE0, 200, b"\x1b[31m"),),
    )
    assert describe(attrs) == {
        "origin": "incomplete",
        "asPath": "65001",
        "asPathLength": 1,
        "nextHop": "2001:db8::1",
        "linkLocalNextHop": "fe80::2",
        "med": 0,
        "localPref": 100,
        "atomicAggregate": True,
        "aggregator": {"as": 70000, "routerId": "192.0.2.9"},
        "communities": ["64512:100"],
        "extendedCommunities": ["rt:64512:100"],
        "largeCommunities": ["0:0:1"],
        "originatorId": "10.0.0.1",
        "clusterList": ["10.0.0.2", "10.0.0.3"],
        "unknown": [{"type": 200, "flags": 0xE0, "value": "1b5b33316d"}],
    }


def test_repeated_large_communities_are_dropped() -> None:
    """RFC 8092 5."""
    one, two = bytes(11) + b"\1", bytes(11) + b"\2"
    block = bytes((0xC0, 32, 48)) + one + two + one + two
    assert read_attributes(block, four_octet_as=True, external=True).fields["large_communities"] == one + two


def test_the_pool_keeps_one_set_for_each_content_and_only_while_it_is_used() -> None:
    pool = AttributePool()
    kept = pool.intern(AttributeSet(med=1))
    assert pool.intern(AttributeSet(med=1)) is kept
    assert pool.intern(AttributeSet(med=2)) is not kept
    gc.collect()
    assert len(pool) == 1
    del kept
    gc.collect()
    assert len(pool) == 0


def test_every_known_attribute_has_flags_and_a_reader() -> None:
    assert set(ATTRIBUTES) | {14, 15} == set(ATTRIBUTE_FLAGS)
