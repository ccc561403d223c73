"""UPDATE messages: what is written reads back; whatever is read, only PeerError comes out; the caches tell the truth."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.bgp import update as module
from routed.bgp.attributes import AttributeSet, encode_attributes, prepend
from routed.bgp.errors import Severity
from routed.bgp.update import (
    AttributePool,
    DecodeContext,
    Update,
    UpdateDecoder,
    end_of_rib,
    nlri_room,
    reach_message,
    update_message,
    withdraw_message,
)
from routed.errors import PeerError
from routed.net.families import Family
from routed.net.prefixes import make_prefix

V4 = Family.IPV4_UNICAST
V6 = Family.IPV6_UNICAST
BOTH = frozenset((V4, V6))
HOP6 = bytes.fromhex("20010db8000000000000000000000001")
LINK_LOCAL = bytes.fromhex("fe800000000000000000000000000001")


def decoder(*, external: bool = True, four_octet_as: bool = True) -> UpdateDecoder:
    return UpdateDecoder(DecodeContext(four_octet_as, external, BOTH), pool=AttributePool())


def example(family: Family = V4, **changes: int) -> tuple[AttributeSet, bytes]:
    attrs = AttributeSet(
        as_path=prepend(b"", 65001, 2),
        next_hop=bytes((192, 0, 2, 1)) if family is V4 else HOP6,
        med=changes.get("med", 5),
        communities=bytes.fromhex("fde80001"),
    )
    return attrs, encode_attributes(attrs, four_octet_as=True, family=family, include_local_pref=False)


def facts(update: Update) -> object:
    """Everything an Update says, as comparable values."""
    return (
        [(reach.family, list(reach.prefixes), reach.attrs.content()) for reach in update.reach],
        [(family, list(prefixes)) for family, prefixes in update.withdrawn],
        update.end_of_rib,
        [(finding.severity, finding.attribute, finding.text) for finding in update.findings],
    )


@st.composite
def prefixes_of(draw: st.DrawFn, family: Family) -> bytes:
    length = draw(st.integers(0, family.max_length))
    address = draw(st.binary(min_size=family.address_length - 1, max_size=family.address_length - 1))
    return make_prefix(b"\x20" + address, length)


@given(st.sampled_from([V4, V6]), st.data())
def test_withdrawals_read_back(family: Family, data: st.DataObject) -> None:
    prefixes = data.draw(st.lists(prefixes_of(family), min_size=1, max_size=60))
    message = withdraw_message(family, b"".join(prefixes))
    assert message[:16] == b"\xff" * 16 and message[18] == 2
    assert int.from_bytes(message[16:18], "big") == len(message)
    update = decoder().decode(message[19:])
    assert [(f, list(p)) for f, p in update.withdrawn] == [(family, prefixes)]
    assert not update.reach and not update.findings and update.end_of_rib is None


@given(st.sampled_from([V4, V6]), st.data(), st.booleans())
def test_announcements_read_back(family: Family, data: st.DataObject, with_link_local: bool) -> None:
    prefixes = data.draw(st.lists(prefixes_of(family), min_size=1, max_size=60))
    attrs, block = example(family)
    if family is V6 and with_link_local:
        attrs = attrs.replace(link_local=LINK_LOCAL)
    message = reach_message(family, block, attrs.next_hop + attrs.link_local, b"".join(prefixes))
    subject = decoder()
    for _ in range(2):
        update = subject.decode(message[19:])
        assert facts(update) == ([(family, prefixes, attrs.content())], [], None, [])


@pytest.mark.parametrize("family", [V4, V6])
def test_end_of_rib(family: Family) -> None:
    message = end_of_rib(family)
    assert len(message) == (23 if family is V4 else 30)
    assert facts(decoder().decode(message[19:])) == ([], [], family, [])


def test_ipv4_end_of_rib_may_come_as_mp_unreach() -> None:
    value = struct.pack(">HB", 1, 1)
    assert decoder().decode(update_message(b"", b"\x80\x0f\x03" + value, b"")[19:]).end_of_rib is V4


def test_ipv4_prefixes_may_come_in_mp_attributes() -> None:
    prefix = bytes.fromhex("18c00002")
    attrs, block = example(V6)
    reach = b"\x80\x0e" + bytes((13,)) + bytes.fromhex("000101 04 c0000201 00") + prefix
    update = decoder().decode(update_message(b"", reach + block, b"")[19:])
    assert facts(update) == ([(V4, [prefix], attrs.replace(next_hop=bytes((192, 0, 2, 1))).content())], [], None, [])
    unreach = b"\x80\x0f\x07" + bytes.fromhex("000101") + prefix
    assert facts(decoder().decode(update_message(b"", unreach, b"")[19:])) == ([], [(V4, [prefix])], None, [])


def test_next_hops_of_ipv6_routes() -> None:
    """RFC 2545 3, and the forms peers without a global address send."""
    _, block = example(V6)
    prefix = bytes.fromhex("2020010db8")
    other = bytes.fromhex("20010db8000000000000000000000002")
    for field, expected in (
        (HOP6, (HOP6, b"")),
        (HOP6 + LINK_LOCAL, (HOP6, LINK_LOCAL)),
        (HOP6 + other, (HOP6, b"")),  # the second is no link-local address: of no use to us
        (bytes(16) + LINK_LOCAL, (LINK_LOCAL, b"")),
        (LINK_LOCAL, (LINK_LOCAL, b"")),
        (LINK_LOCAL + LINK_LOCAL, (LINK_LOCAL, LINK_LOCAL)),
    ):
        update = decoder().decode(reach_message(V6, block, field, prefix)[19:])
        assert update.findings == ()
        assert (update.reach[0].attrs.next_hop, update.reach[0].attrs.link_local) == expected


def test_both_carriers_in_one_message_have_their_own_next_hops() -> None:
    _, block4 = example(V4)
    message = reach_message(V6, block4, HOP6, bytes.fromhex("2020010db8"))
    body = message[19:] + bytes.fromhex("18c00002")
    subject = decoder()
    for _ in range(2):
        update = subject.decode(body)
        assert {reach.family: reach.attrs.next_hop for reach in update.reach} == {V4: bytes((192, 0, 2, 1)), V6: HOP6}


def test_equal_attributes_are_one_object_across_sessions_and_blocks() -> None:
    pool = AttributePool()
    _, block = example()
    one = UpdateDecoder(DecodeContext(True, True, BOTH), pool=pool)
    two = UpdateDecoder(DecodeContext(True, False, BOTH), pool=pool)
    prefix = bytes.fromhex("18c00002")
    first = one.decode(reach_message(V4, block, b"", prefix)[19:]).reach[0].attrs
    assert one.decode(reach_message(V4, block, b"", prefix * 3)[19:]).reach[0].attrs is first
    assert two.decode(reach_message(V4, block, b"", prefix)[19:]).reach[0].attrs is first
    other_order = block[4:] + block[:4]
    assert one.decode(reach_message(V4, other_order, b"", prefix)[19:]).reach[0].attrs is first


def test_sessions_do_not_share_their_caches() -> None:
    """The same octets mean different things to an internal and an external session, and with 2-octet AS numbers."""
    attrs, _ = example()
    block = encode_attributes(attrs, four_octet_as=True, family=V4, include_local_pref=True)
    body = reach_message(V4, block, b"", bytes.fromhex("18c00002"))[19:]
    pool = AttributePool()
    seen = [
        UpdateDecoder(DecodeContext(wide, external, BOTH), pool=pool).decode(body)
        for wide, external in ((True, True), (True, False), (False, False))
    ]
    assert seen[0].reach[0].attrs.local_pref is None
    assert seen[1].reach[0].attrs.local_pref == 100
    assert not seen[2].reach


@pytest.mark.parametrize("family", [V4, V6])
@pytest.mark.parametrize("max_message", [4096, 65535])
def test_nlri_room_is_what_fits(family: Family, max_message: int) -> None:
    _, block = example(family)
    room = nlri_room(family, block, max_message)
    hop = HOP6 + LINK_LOCAL if family is V6 else b""
    assert len(reach_message(family, block, hop, bytes(room))) == max_message
    assert nlri_room(family, bytes(max_message), max_message) == 0


# --- hostile octets ----------------------------------------------------------------------------------------------------


def only_peer_errors(subject: UpdateDecoder, body: bytes) -> Update | None:
    error: PeerError | None = None
    try:
        update = subject.decode(body)
    except PeerError as caught:
        error = caught
    if error is not None:
        assert error.code == 3 and 1 <= error.subcode <= 11
        assert "RFC " in error.message and error.message.isprintable()
        assert len(error.data) <= len(body)
        return None
    for finding in update.findings:
        assert finding.severity < Severity.SESSION_RESET
        assert "RFC " in finding.text or "draft-" in finding.text
    for family, prefixes in [(reach.family, reach.prefixes) for reach in update.reach] + list(update.withdrawn):
        assert prefixes
        for prefix in prefixes:
            assert make_prefix(prefix[1:], prefix[0]) == prefix and prefix[0] <= family.max_length
            assert len(prefix) == 1 + (prefix[0] + 7) // 8
    for reach in update.reach:
        assert len(reach.attrs.next_hop) == reach.family.address_length
        assert not any(finding.severity is Severity.TREAT_AS_WITHDRAW for finding in update.findings)
    return update


contexts = st.builds(
    DecodeContext,
    st.booleans(),
    st.booleans(),
    st.sampled_from([BOTH, frozenset((V4,)), frozenset((V6,)), frozenset()]),
)


@settings(max_examples=300)
@given(contexts, st.binary(max_size=120))
def test_random_octets(context: DecodeContext, body: bytes) -> None:
    only_peer_errors(UpdateDecoder(context, pool=AttributePool()), body)


@st.composite
def attribute_soup(draw: st.DrawFn) -> bytes:
    """A body with sound lengths and attributes of any code, flags and content."""
    parts = []
    for _ in range(draw(st.integers(0, 8))):
        code = draw(st.one_of(st.integers(0, 255), st.sampled_from([1, 2, 3, 4, 5, 8, 14, 15, 16, 17, 18, 23, 40])))
        flags = draw(st.sampled_from([0x40, 0x80, 0xC0, 0xE0, 0x50, 0x90]) | st.integers(0, 255))
        value = draw(st.binary(max_size=40))
        if code in (14, 15) and draw(st.booleans()):
            head = draw(st.sampled_from(["00020110", "00020120", "00010104", "000201", "000101", "001946"]))
            value = bytes.fromhex(head) + value
        length = struct.pack(">H", len(value)) if flags & 0x10 else bytes((len(value),))
        parts.append(bytes((flags, code)) + length + value)
    block = b"".join(parts)
    withdrawn, nlri = draw(st.sampled_from([b"", b"\x08\x0a"])), draw(st.sampled_from([b"", b"\x18\xc0\0\2", b"\0"]))
    return struct.pack(">H", len(withdrawn)) + withdrawn + struct.pack(">H", len(block)) + block + nlri


@settings(max_examples=300)
@given(contexts, attribute_soup())
def test_random_attributes(context: DecodeContext, body: bytes) -> None:
    subject = UpdateDecoder(context, pool=AttributePool())
    first = only_peer_errors(subject, body)
    again = only_peer_errors(subject, body)
    assert (first is None) == (again is None)
    if first is not None and again is not None:
        assert facts(first) == facts(again)  # the cache changes nothing


def good_bodies() -> list[bytes]:
    attrs, block = example()
    _, block6 = example(V6)
    rich = encode_attributes(
        attrs.replace(
            as_path=prepend(attrs.as_path, 70000),
            aggregator=(70000, bytes(4)),
            large_communities=bytes(12),
            extended_communities=bytes(8),
            cluster_list=bytes(4),
            originator_id=1,
            unknown=((0xE0, 200, b"abc"),),
        ),
        four_octet_as=False,
        family=V4,
        include_local_pref=True,
    )
    return [
        reach_message(V4, block, b"", bytes.fromhex("18c00002 1ac0000240"))[19:],
        reach_message(V4, rich, b"", bytes.fromhex("18c00002"))[19:],
        reach_message(V6, block6, HOP6 + LINK_LOCAL, bytes.fromhex("2020010db8 4020010db800000001"))[19:],
        withdraw_message(V4, bytes.fromhex("18c00002"))[19:],
        withdraw_message(V6, bytes.fromhex("2020010db8"))[19:],
    ]


@settings(max_examples=300)
@given(contexts, st.sampled_from(good_bodies()), st.data())
def test_mutated_messages(context: DecodeContext, body: bytes, data: st.DataObject) -> None:
    subject = UpdateDecoder(context, pool=AttributePool())
    only_peer_errors(subject, body)  # a warm cache, as in a session
    octets = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(octets) - 1))
        action = data.draw(st.sampled_from(["set", "delete", "insert"]))
        if action == "set":
            octets[at] = data.draw(st.integers(0, 255))
        elif action == "delete" and len(octets) > 1:
            del octets[at]
        else:
            octets.insert(at, data.draw(st.integers(0, 255)))
    only_peer_errors(subject, bytes(octets))


def test_every_cut_of_a_good_message() -> None:
    for body in good_bodies():
        for cut in range(len(body)):
            only_peer_errors(decoder(four_octet_as=False), body[:cut])


def test_a_damaged_message_never_hits_the_cache_of_a_good_one() -> None:
    """The attribute length reaches past the body, and what is there of the block is one seen before."""
    _, block = example()
    subject = decoder()
    subject.decode(reach_message(V4, block, b"", bytes.fromhex("18c00002"))[19:])
    with pytest.raises(PeerError):
        subject.decode(b"\0\0" + struct.pack(">H", len(block) + 1) + block)
    assert not subject.decode(b"\0\0" + struct.pack(">H", len(block)) + block).reach


def test_a_block_with_mp_is_never_found_as_one_without() -> None:
    """Excised in any position, what is cached is the rest: a second MP attribute is still seen."""
    _, block = example(V6)
    subject = decoder()
    mp = bytes.fromhex("800e1a 000201 10") + HOP6 + bytes.fromhex("00 2020010db8")
    assert len(mp) == 3 + 26
    expected = facts(subject.decode(update_message(b"", mp + block, b"")[19:]))
    for position in (4, len(block)):
        body = update_message(b"", block[:position] + mp + block[position:], b"")[19:]
        assert facts(subject.decode(body)) == expected
    for first in (mp + block + mp, mp + mp + block, block + mp + mp):
        with pytest.raises(PeerError):
            subject.decode(update_message(b"", first, b"")[19:])


def test_the_cache_of_a_session_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never repeats itself (CVE-2026-30405's class) keeps no more than the bound, next hops included."""
    monkeypatch.setattr(module, "_MAX_CACHED_OCTETS", 50 * 1024)
    subject = decoder()
    prefix = bytes.fromhex("2020010db8")
    for number in range(500):
        _, block = example(V4, med=number)
        assert subject.decode(reach_message(V4, block, b"", b"\x08\x0a")[19:]).reach[0].attrs.med == number
        _, block6 = example(V6)
        hop = HOP6[:12] + number.to_bytes(4, "big")
        assert subject.decode(reach_message(V6, block6, hop, prefix)[19:]).reach[0].attrs.next_hop == hop
        held = sum(1 + len(entry.by_next_hop) for entry in subject._blocks.values())
        assert held <= 50


@pytest.mark.parametrize("broken", [False, True])
def test_hostile_sizes_stay_linear(broken: bool) -> None:
    """The longest message there could be (RFC 8654's), filled with the smallest of everything."""
    block = b"\xc0\x63\x00" * 20000 + (b"\x40\x01\x01" if broken else b"")
    started = time.perf_counter()
    only_peer_errors(decoder(), struct.pack(">HH", 0, len(block)) + block + b"\0" * 5000)
    only_peer_errors(decoder(), struct.pack(">H", 65000) + b"\0" * 65000 + b"\0\0")
    path = prepend(b"", 70000, 16000)
    path_block = struct.pack(">BBH", 0x50, 2, len(path)) + path
    only_peer_errors(decoder(), struct.pack(">HH", 0, len(path_block)) + path_block + b"\x08\x0a")
    assert time.perf_counter() - started < 30.0, "quadratic would be minutes"
