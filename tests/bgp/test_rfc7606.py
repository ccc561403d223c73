"""RFC 7606 clause by clause: one row for each thing that can be wrong with an UPDATE, and what must come of it.

Each row changes one attribute of a good UPDATE (or its fields) and is decoded; expected values come from the RFCs named
beside them, not from the code.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from routed.bgp.errors import Severity
from routed.bgp.update import AttributePool, DecodeContext, Update, UpdateDecoder
from routed.errors import PeerError
from routed.net.families import Family

V4 = Family.IPV4_UNICAST
V6 = Family.IPV6_UNICAST
PREFIX = bytes.fromhex("18c00002")  # 192.0.2.0/24
PREFIX6 = bytes.fromhex("2020010db8")  # 2001:db8::/32
NEXT_HOP6 = bytes.fromhex("20010db8000000000000000000000001")


def attribute(flags: int, code: int, value: bytes) -> bytes:
    if flags & 0x10:
        return struct.pack(">BBH", flags, code, len(value)) + value
    return bytes((flags, code, len(value))) + value


def body(withdrawn: bytes, attributes: bytes, nlri: bytes) -> bytes:
    return struct.pack(">H", len(withdrawn)) + withdrawn + struct.pack(">H", len(attributes)) + attributes + nlri


def mp_reach(nlri: bytes = PREFIX6, *, next_hop: bytes = NEXT_HOP6, afi: int = 2, safi: int = 1) -> bytes:
    return struct.pack(">HBB", afi, safi, len(next_hop)) + next_hop + b"\0" + nlri


def mp_unreach(nlri: bytes = PREFIX6, *, afi: int = 2, safi: int = 1) -> bytes:
    return struct.pack(">HB", afi, safi) + nlri


def decoder(
    *, external: bool = True, four_octet_as: bool = True, families: frozenset[Family] = frozenset((V4, V6))
) -> UpdateDecoder:
    return UpdateDecoder(DecodeContext(four_octet_as, external, families), pool=AttributePool())


ORIGIN = attribute(0x40, 1, b"\0")
AS_PATH = attribute(0x40, 2, bytes.fromhex("02010000fde9"))
NEXT_HOP = attribute(0x40, 3, bytes((192, 0, 2, 1)))
LOCAL_PREF = attribute(0x40, 5, bytes((0, 0, 0, 200)))


def good(*, external: bool, but: bytes = b"") -> bytes:
    """The attributes of a good UPDATE, `but` in the place of the one with its type code, or behind the others."""
    block = [ORIGIN, AS_PATH, NEXT_HOP] if external else [ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF]
    if but:
        block = [part for part in block if part[1] != but[1]] + [but]
    return b"".join(block)


@dataclass(frozen=True)
class Row:
    name: str
    wrong: bytes
    outcome: str
    cites: str
    peers: tuple[str, ...] = ("external", "internal")
    four_octet_as: bool = True
    data: bytes = field(default=b"")


ROWS = [
    # 3 (c): Optional and Transitive flags
    Row("ORIGIN optional", attribute(0xC0, 1, b"\0"), "withdraw", "3 (c)"),
    Row("ORIGIN not transitive", attribute(0x00, 1, b"\0"), "withdraw", "3 (c)"),
    Row("ORIGIN partial (our reading)", attribute(0x60, 1, b"\0"), "withdraw", "RFC 4271 section 4.3"),
    Row("AS_PATH optional", attribute(0xC0, 2, bytes.fromhex("02010000fde9")), "withdraw", "3 (c)"),
    Row("NEXT_HOP optional", attribute(0xC0, 3, bytes((192, 0, 2, 1))), "withdraw", "3 (c)"),
    Row("MED transitive", attribute(0xC0, 4, bytes(4)), "withdraw", "3 (c)"),
    Row("ATOMIC_AGGREGATE optional", attribute(0xC0, 6, b""), "withdraw", "3 (c)"),
    Row("AGGREGATOR well-known", attribute(0x40, 7, bytes.fromhex("0000fde9c0000201")), "withdraw", "3 (c)"),
    Row("COMMUNITIES not transitive", attribute(0x80, 8, bytes(4)), "withdraw", "3 (c)"),
    Row("ORIGINATOR_ID transitive", attribute(0xC0, 9, bytes(4)), "withdraw", "3 (c)"),
    Row("CLUSTER_LIST transitive", attribute(0xC0, 10, bytes(4)), "withdraw", "3 (c)"),
    Row("LARGE_COMMUNITY not transitive", attribute(0x80, 32, bytes(12)), "withdraw", "3 (c)"),
    Row("MED partial is not a conflict", attribute(0xA0, 4, bytes(4)), "accept", ""),
    Row("low flag bits are ignored", attribute(0x4F, 1, b"\0"), "accept", ""),
    Row("extended length of a short value", attribute(0x50, 1, b"\0"), "accept", ""),
    # 3 (d): mandatory attributes are tested apart; 3 (g): repetition is tested apart
    # 7.1 ORIGIN
    Row("ORIGIN empty", attribute(0x40, 1, b""), "withdraw", "7.1"),
    Row("ORIGIN of two octets", attribute(0x40, 1, b"\0\0"), "withdraw", "7.1"),
    Row("ORIGIN undefined", attribute(0x40, 1, b"\3"), "withdraw", "7.1"),
    # 7.2 AS_PATH
    Row("segment type 0", attribute(0x40, 2, bytes.fromhex("00010000fde9")), "withdraw", "7.2"),
    Row("segment type 5", attribute(0x40, 2, bytes.fromhex("05010000fde9")), "withdraw", "7.2"),
    Row("segment overrun", attribute(0x40, 2, bytes.fromhex("02020000fde9")), "withdraw", "7.2"),
    Row("segment underrun", attribute(0x40, 2, bytes.fromhex("02010000fde902")), "withdraw", "7.2"),
    Row("segment empty", attribute(0x40, 2, bytes.fromhex("0200")), "withdraw", "7.2"),
    Row("2-octet path on a 4-octet session", attribute(0x40, 2, bytes.fromhex("0201fde9")), "withdraw", "7.2"),
    Row("AS 0", attribute(0x40, 2, bytes.fromhex("02020000fde900000000")), "withdraw", "RFC 7607 section 2"),
    Row("AS 0 in a set", attribute(0x40, 2, bytes.fromhex("010100000000")), "withdraw", "RFC 7607 section 2"),
    Row("confederation", attribute(0x40, 2, bytes.fromhex("03010000fde9")), "withdraw", "RFC 5065 section 5"),
    Row("confederation set", attribute(0x40, 2, bytes.fromhex("04010000fde9")), "withdraw", "RFC 5065 section 5"),
    Row("zeros across two AS numbers", attribute(0x40, 2, bytes.fromhex("02020001000000000001")), "accept", ""),
    # well-formed by RFC 4271 4.3 b; that an external peer must have prepended its AS is the first-AS check of 6.3
    Row("AS_PATH empty", attribute(0x40, 2, b""), "accept", ""),
    # 7.3 NEXT_HOP, and RFC 4271 6.3 for one that is no host's
    Row("NEXT_HOP of three octets", attribute(0x40, 3, bytes((192, 0, 2))), "withdraw", "7.3"),
    Row("NEXT_HOP of sixteen octets", attribute(0x40, 3, NEXT_HOP6), "withdraw", "7.3"),
    Row("NEXT_HOP empty", attribute(0x40, 3, b""), "withdraw", "7.3"),
    Row("NEXT_HOP 0.0.0.0", attribute(0x40, 3, bytes(4)), "withdraw", "RFC 4271 section 6.3"),
    Row("NEXT_HOP 0.1.2.3", attribute(0x40, 3, bytes((0, 1, 2, 3))), "withdraw", "RFC 4271 section 6.3"),
    Row("NEXT_HOP loopback", attribute(0x40, 3, bytes((127, 0, 0, 1))), "withdraw", "RFC 4271 section 6.3"),
    Row("NEXT_HOP multicast", attribute(0x40, 3, bytes((224, 0, 0, 1))), "withdraw", "RFC 4271 section 6.3"),
    Row("NEXT_HOP class E", attribute(0x40, 3, bytes((255, 255, 255, 255))), "withdraw", "RFC 4271 section 6.3"),
    # 7.4, 7.5
    Row("MED of three octets", attribute(0x80, 4, bytes(3)), "withdraw", "7.4"),
    Row("MED empty", attribute(0x80, 4, b""), "withdraw", "7.4"),
    Row("LOCAL_PREF of five octets", attribute(0x40, 5, bytes(5)), "withdraw", "7.5", ("internal",)),
    Row("LOCAL_PREF of five octets, external", attribute(0x40, 5, bytes(5)), "discard", "7.5", ("external",)),
    Row("LOCAL_PREF from an external peer", LOCAL_PREF, "discard", "7.5", ("external",)),
    # 7.6, 7.7
    Row("ATOMIC_AGGREGATE of one octet", attribute(0x40, 6, b"\0"), "discard", "7.6"),
    Row("AGGREGATOR of six octets", attribute(0xC0, 7, bytes.fromhex("fde9c0000201")), "discard", "7.7"),
    Row(
        "AGGREGATOR of eight octets", attribute(0xC0, 7, bytes.fromhex("0000fde9c0000201")), "discard", "7.7",
        four_octet_as=False,
    ),
    Row("AGGREGATOR of AS 0", attribute(0xC0, 7, bytes.fromhex("00000000c0000201")), "discard", "RFC 7607 section 2"),
    # 7.8, 7.14, 7.15, RFC 8092 6
    Row("COMMUNITIES empty", attribute(0xC0, 8, b""), "withdraw", "7.8"),
    Row("COMMUNITIES of five octets", attribute(0xC0, 8, bytes(5)), "withdraw", "7.8"),
    Row("EXTENDED COMMUNITIES empty", attribute(0xC0, 16, b""), "withdraw", "7.14"),
    Row("EXTENDED COMMUNITIES of nine octets", attribute(0xC0, 16, bytes(9)), "withdraw", "7.14"),
    Row("IPv6 extended communities empty", attribute(0xC0, 25, b""), "withdraw", "7.15"),
    Row("IPv6 extended communities of 19 octets", attribute(0xC0, 25, bytes(19)), "withdraw", "7.15"),
    Row("LARGE_COMMUNITY empty", attribute(0xC0, 32, b""), "withdraw", "RFC 8092 section 6"),
    Row("LARGE_COMMUNITY of 13 octets", attribute(0xC0, 32, bytes(13)), "withdraw", "RFC 8092 section 6"),
    # 7.9, 7.10
    Row("ORIGINATOR_ID of three octets", attribute(0x80, 9, bytes(3)), "withdraw", "7.9", ("internal",)),
    Row("ORIGINATOR_ID from an external peer", attribute(0x80, 9, bytes(4)), "discard", "7.9", ("external",)),
    Row("CLUSTER_LIST empty", attribute(0x80, 10, b""), "withdraw", "7.10", ("internal",)),
    Row("CLUSTER_LIST of six octets", attribute(0x80, 10, bytes(6)), "withdraw", "7.10", ("internal",)),
    Row("CLUSTER_LIST from an external peer", attribute(0x80, 10, bytes(4)), "discard", "7.10", ("external",)),
    # RFC 6793 6
    Row("AS4_PATH from a 4-octet peer", attribute(0xC0, 17, bytes.fromhex("02010000fde9")), "discard", "RFC 6793"),
    Row("AS4_PATH damaged, 4-octet peer", attribute(0xC0, 17, bytes.fromhex("09010000fde9")), "withdraw", "RFC 6793"),
    Row(
        "AS4_PATH damaged, 2-octet peer", attribute(0xC0, 17, bytes.fromhex("09010000fde9")), "discard", "RFC 6793",
        four_octet_as=False,
    ),
    Row("AS4_PATH empty, 2-octet peer", attribute(0xC0, 17, b""), "discard", "RFC 6793", four_octet_as=False),
    Row(
        "AS4_AGGREGATOR of seven octets", attribute(0xC0, 18, bytes(7)), "discard", "RFC 6793", four_octet_as=False
    ),
    Row(
        "AS4_AGGREGATOR of AS 0", attribute(0xC0, 18, bytes(8)), "discard", "RFC 7607 section 2", four_octet_as=False
    ),
    Row("AS4_AGGREGATOR from a 4-octet peer", attribute(0xC0, 18, b"\1" * 8), "discard", "RFC 6793"),
    # attributes that are checked and carried
    Row("OTC of three octets", attribute(0xC0, 35, bytes(3)), "withdraw", "RFC 9234 section 5"),
    Row("OTC of AS 0", attribute(0xC0, 35, bytes(4)), "withdraw", "RFC 7607 section 2"),
    Row("PREFIX_SID of empty TLVs", attribute(0xC0, 40, bytes(15)), "accept", ""),
    Row("PREFIX_SID all zero", attribute(0xC0, 40, bytes(16)), "discard", "RFC 8669 section 6"),
    Row("PREFIX_SID cut short", attribute(0xC0, 40, bytes.fromhex("0100ff00")), "discard", "RFC 8669 section 6"),
    Row("PREFIX_SID empty", attribute(0xC0, 40, b""), "discard", "RFC 8669 section 6"),
    Row("TUNNEL_ENCAPSULATION cut short", attribute(0xC0, 23, bytes.fromhex("000800ff")), "withdraw", "RFC 9012"),
    Row("TUNNEL_ENCAPSULATION sub-TLV", attribute(0xC0, 23, bytes.fromhex("00080002ff00")), "withdraw", "RFC 9012"),
    Row("AIGP transitive", attribute(0xC0, 26, bytes.fromhex("01000b0000000000000001")), "discard", "3 (c)"),
    Row("AIGP of any content is not ours", attribute(0x80, 26, bytes.fromhex("0100")), "accept", ""),
    # unknown ones: RFC 4271 5 and 6.3
    Row("unknown optional transitive", attribute(0xC0, 200, b"abc"), "accept", ""),
    Row("unknown optional transitive, type 255", attribute(0xC0, 255, bytes(40)), "accept", ""),
    Row("unknown optional transitive, empty", attribute(0xC0, 200, b""), "accept", ""),
    Row("unknown optional non-transitive", attribute(0x80, 200, b"abc"), "accept", ""),
    Row(
        "unknown well-known", attribute(0x40, 200, b"abc"), "3/2", "RFC 4271 section 6.3",
        data=attribute(0x40, 200, b"abc"),
    ),
    Row(
        "unknown well-known, extended length", attribute(0x50, 200, bytes(300)), "3/2", "RFC 4271 section 6.3",
        data=attribute(0x50, 200, bytes(300)),
    ),
    # 4: what is left of the list holds no attribute, or less of one than it says
    Row("one octet left", b"\x40\x63"[:1], "withdraw", "section 4"),
    Row("two octets left", b"\xc0\x63", "withdraw", "section 4"),
    Row("three octets left with extended length", b"\xd0\x63\0", "withdraw", "section 4"),
    Row("attribute overruns the list", b"\xc0\x08\x08\0\0\0\0", "withdraw", "section 4"),
]  # fmt: skip


def cases() -> list[pytest.param]:  # type: ignore[valid-type]
    return [pytest.param(row, peer, id=f"{row.name}, {peer}") for row in ROWS for peer in row.peers]


def as_path_for(four_octet_as: bool, block: bytes) -> bytes:
    return block if four_octet_as else block.replace(AS_PATH, attribute(0x40, 2, bytes.fromhex("0201fde9")))


@pytest.mark.parametrize(("row", "peer"), cases())
def test_clause(row: Row, peer: str) -> None:
    external = peer == "external"
    block = good(external=external, but=row.wrong) if len(row.wrong) > 1 else good(external=external) + row.wrong
    block = as_path_for(row.four_octet_as, block)
    subject = decoder(external=external, four_octet_as=row.four_octet_as)
    message = body(b"", block, PREFIX)
    if "/" in row.outcome:
        with pytest.raises(PeerError) as caught:
            subject.decode(message)
        assert f"{caught.value.code}/{caught.value.subcode}" == row.outcome
        assert caught.value.data == row.data
        assert row.cites in str(caught.value)
        return
    for update in (subject.decode(message), subject.decode(message)):  # the second time from the cache
        if row.outcome == "withdraw":
            assert update.withdrawn and [list(part[1]) for part in update.withdrawn] == [[PREFIX]]
            assert not update.reach
            assert strongest(update) is Severity.TREAT_AS_WITHDRAW
        else:
            assert [list(reach.prefixes) for reach in update.reach] == [[PREFIX]]
            assert not update.withdrawn
            assert strongest(update) is (Severity.ATTRIBUTE_DISCARD if row.outcome == "discard" else None)
        if row.cites:
            assert any(row.cites in finding.text for finding in update.findings)
        for finding in update.findings:
            assert finding.text.isprintable() and finding.text[0].isalpha() and not finding.text.endswith(".")
            assert "RFC " in finding.text or "draft-" in finding.text


def strongest(update: Update) -> Severity | None:
    return max((finding.severity for finding in update.findings), default=None)


@pytest.mark.parametrize("external", [True, False])
def test_a_good_update_has_no_findings(external: bool) -> None:
    update = decoder(external=external).decode(body(b"", good(external=external), PREFIX))
    assert update.findings == ()
    assert [list(reach.prefixes) for reach in update.reach] == [[PREFIX]]


@pytest.mark.parametrize(("code", "name"), [(1, "ORIGIN"), (2, "AS_PATH"), (3, "NEXT_HOP")])
def test_missing_mandatory_attribute_withdraws(code: int, name: str) -> None:
    """3 (d); and CVE-2023-46753's shape: only an unknown attribute is there."""
    block = b"".join(part for part in (ORIGIN, AS_PATH, NEXT_HOP) if part[1] != code)
    for attributes in (block, block + attribute(0xC0, 99, b"x"), attribute(0xC0, 99, b"x")):
        update = decoder().decode(body(b"", attributes, PREFIX))
        assert not update.reach
        assert [list(part[1]) for part in update.withdrawn] == [[PREFIX]]
        assert any(f"{name} is missing (RFC 7606 section 3 (d))" == finding.text for finding in update.findings)


def test_prefixes_without_any_attribute_are_withdrawn() -> None:
    """CVE-2023-41358's shape: NLRI after a Total Path Attribute Length of zero."""
    update = decoder().decode(body(b"", b"", PREFIX))
    assert not update.reach and [list(part[1]) for part in update.withdrawn] == [[PREFIX]]


def test_next_hop_is_mandatory_only_with_the_nlri_field() -> None:
    block = ORIGIN + AS_PATH + attribute(0x80, 14, mp_reach())
    update = decoder().decode(body(b"", block, b""))
    assert update.findings == () and update.reach[0].attrs.next_hop == NEXT_HOP6
    both = decoder().decode(body(b"", block, PREFIX))
    assert not both.reach
    assert {(family, *prefixes) for family, prefixes in both.withdrawn} == {(V4, PREFIX), (V6, PREFIX6)}


def test_next_hop_beside_mp_reach_alone_is_ignored() -> None:
    """RFC 4760 3: whatever is in it."""
    for wrong in (attribute(0x40, 3, bytes(4)), attribute(0x40, 3, b"\1"), attribute(0xC0, 3, bytes(4))):
        update = decoder().decode(body(b"", attribute(0x80, 14, mp_reach()) + ORIGIN + AS_PATH + wrong, b""))
        assert update.findings == () and len(update.reach) == 1


@pytest.mark.parametrize("code", [1, 2, 3, 4, 8, 16, 32, 200])
def test_repeated_attribute_keeps_the_first(code: int) -> None:
    """3 (g)."""
    first = {
        1: ORIGIN,
        2: AS_PATH,
        3: NEXT_HOP,
        4: attribute(0x80, 4, bytes((0, 0, 0, 1))),
        8: attribute(0xC0, 8, bytes((0, 1, 0, 1))),
        16: attribute(0xC0, 16, bytes((0, 2, 0, 1, 0, 0, 0, 1))),
        32: attribute(0xC0, 32, bytes(11) + b"\1"),
        200: attribute(0xC0, 200, b"first"),
    }[code]
    alone = decoder().decode(body(b"", good(external=True, but=first), PREFIX))
    for second in (attribute(first[0], code, first[3:-1] + b"\x02"), attribute(first[0], code, b"")):
        block = good(external=True, but=first) + second + second
        update = decoder().decode(body(b"", block, PREFIX))
        assert [finding.severity for finding in update.findings] == [Severity.ATTRIBUTE_DISCARD]
        assert "3 (g)" in update.findings[0].text
        assert update.reach[0].attrs.content() == alone.reach[0].attrs.content()


@pytest.mark.parametrize(
    ("code", "value"),
    [(14, mp_reach()), (15, mp_unreach()), (14, mp_reach(afi=25, safi=70)), (15, mp_unreach(afi=25, safi=70))],
)
def test_repeated_mp_attribute_resets(code: int, value: bytes) -> None:
    """3 (g): Malformed Attribute List."""
    twice = attribute(0x80, code, value)
    for block in (twice + ORIGIN + AS_PATH + twice, ORIGIN + twice + AS_PATH + twice, twice + twice):
        with pytest.raises(PeerError) as caught:
            decoder().decode(body(b"", block, b""))
        assert (caught.value.code, caught.value.subcode) == (3, 1)


def test_strongest_finding_wins_and_reading_goes_on() -> None:
    """3 (h): a discard, a withdraw and a reset in each order."""
    discard = attribute(0x40, 6, b"\0")
    withdraw = attribute(0xC0, 8, b"\0")
    reset = attribute(0x40, 99, b"")
    mild = decoder().decode(body(b"", good(external=True) + discard + withdraw, PREFIX))
    assert [finding.attribute for finding in mild.findings] == [6, 8]
    assert not mild.reach
    for block in (discard + withdraw + reset, reset + withdraw + discard, withdraw + reset + discard):
        with pytest.raises(PeerError) as caught:
            decoder().decode(body(b"", good(external=True) + block, PREFIX))
        assert (caught.value.code, caught.value.subcode, caught.value.data) == (3, 2, reset)


def test_broken_list_without_reachable_prefixes_resets() -> None:
    """5.2: with attributes, without reachable prefixes, more than a discard means prefixes may be lost in it."""
    for withdrawn, block in (
        (b"", ORIGIN + attribute(0x40, 2, b"\2")),
        (PREFIX, good(external=True) + b"\xc0"),
        (b"", attribute(0x80, 15, mp_unreach()) + attribute(0x80, 4, b"")),
        (b"", b"\xc0\x08"),
    ):
        with pytest.raises(PeerError) as caught:
            decoder().decode(body(withdrawn, block, b""))
        assert (caught.value.code, caught.value.subcode) == (3, 1)
        assert "5.2" in str(caught.value)
    harmless = decoder().decode(body(PREFIX, attribute(0x40, 6, b"\0"), b""))
    assert [list(part[1]) for part in harmless.withdrawn] == [[PREFIX]]


def test_attributes_without_prefixes_are_no_error_and_no_end_of_rib() -> None:
    """5.2, and CVE-2023-47235's shape: what is not empty is never an End-of-RIB."""
    for block in (good(external=True), attribute(0xC0, 99, b"x"), attribute(0x80, 15, mp_unreach(b"")) + ORIGIN):
        update = decoder().decode(body(b"", block, b""))
        assert (update.reach, update.withdrawn, update.end_of_rib, update.findings) == ((), (), None, ())


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0\0\0",
        bytes.fromhex("ffff0000"),
        bytes.fromhex("00010000"),
        bytes.fromhex("00000001"),
        bytes.fromhex("0000ffff00"),
        bytes.fromhex("000318c00000"),
        body(PREFIX, good(external=True), b"")[:-1],
    ],
)
def test_lengths_that_do_not_add_up_reset(message: bytes) -> None:
    """RFC 4271 6.3 (kept by RFC 7606 4): CVE-2026-37462's shape, in both orders."""
    with pytest.raises(PeerError) as caught:
        decoder().decode(message)
    assert (caught.value.code, caught.value.subcode) == (3, 1)


@pytest.mark.parametrize("nlri", [b"\x21" + bytes(5), b"\xff", b"\x18\xc0\0", b"\x18\xc0\0\2\x20", PREFIX + b"\x01"])
def test_damaged_prefix_fields_reset(nlri: bytes) -> None:
    """5.3; the subcode is RFC 4271's Invalid Network Field, that of an MP attribute RFC 4760 7's."""
    for message in (body(b"", good(external=True), nlri), body(nlri, b"", b"")):
        with pytest.raises(PeerError) as caught:
            decoder().decode(message)
        assert (caught.value.code, caught.value.subcode) == (3, 10)


@pytest.mark.parametrize("nlri", [b"\x81" + bytes(17), b"\xff", b"\x20\x20\x01\x0d", PREFIX6 + b"\x40\0"])
def test_damaged_mp_prefixes_reset(nlri: bytes) -> None:
    for block in (
        attribute(0x80, 14, mp_reach(nlri)) + ORIGIN + AS_PATH,
        attribute(0x80, 15, mp_unreach(nlri)),
        attribute(0x80, 15, mp_unreach(nlri)) + attribute(0x80, 14, mp_reach()) + ORIGIN + AS_PATH,
    ):
        with pytest.raises(PeerError) as caught:
            decoder().decode(body(b"", block, b""))
        assert (caught.value.code, caught.value.subcode) == (3, 9)


@pytest.mark.parametrize("length", [0, 4, 12, 15, 17, 24, 31, 33, 48])
def test_mp_next_hop_of_a_wrong_length_resets(length: int) -> None:
    """7.11: the prefixes behind it can't be found."""
    block = attribute(0x80, 14, mp_reach(next_hop=b"\x20" * length)) + ORIGIN + AS_PATH
    with pytest.raises(PeerError) as caught:
        decoder().decode(body(b"", block, b""))
    assert (caught.value.code, caught.value.subcode) == (3, 1)
    assert "7.11" in str(caught.value)


def test_truncated_mp_reach_never_goes_unnoticed() -> None:
    """CVE-2023-46752's shape: cut at each octet, with the attribute's own length adjusted and not."""
    whole = mp_reach(PREFIX6)
    for cut in range(len(whole)):
        honest = attribute(0x80, 14, whole[:cut]) + ORIGIN + AS_PATH
        if cut == len(whole) - len(PREFIX6):
            # nothing is lost where the cut falls in front of the prefixes
            assert not decoder().decode(body(b"", honest, b"")).reach
            continue
        with pytest.raises(PeerError):
            decoder().decode(body(b"", honest, b""))
        with pytest.raises(PeerError) as caught:
            decoder().decode(body(b"", ORIGIN + AS_PATH + attribute(0x80, 14, whole)[: 3 + cut], b""))
        assert caught.value.subcode == 1


@pytest.mark.parametrize("flags", [0x00, 0x40, 0xC0])
@pytest.mark.parametrize(("code", "value"), [(14, mp_reach()), (15, mp_unreach())])
def test_mp_attribute_with_wrong_flags_resets(flags: int, code: int, value: bytes) -> None:
    """5.3."""
    wrong = attribute(flags, code, value)
    with pytest.raises(PeerError) as caught:
        decoder().decode(body(b"", wrong + ORIGIN + AS_PATH, b""))
    assert (caught.value.code, caught.value.subcode, caught.value.data) == (3, 4, wrong)


@pytest.mark.parametrize(
    ("afi", "safi"), [(1, 2), (1, 128), (2, 2), (2, 4), (25, 70), (16388, 71), (0, 0), (0xFFFF, 255)]
)
def test_other_families_never_reset(afi: int, safi: int) -> None:
    """RFC 4760 7: whatever their content, routes of this session's families go on."""
    for octets in (b"", b"\xff", b"\xff" * 40, bytes(40)):
        for flags in (0x80, 0xC0, 0x00):
            reach = attribute(flags, 14, struct.pack(">HB", afi, safi) + octets)
            unreach = attribute(flags, 15, struct.pack(">HB", afi, safi) + octets)
            update = decoder().decode(body(b"", reach + good(external=True) + unreach, PREFIX))
            assert [list(part.prefixes) for part in update.reach] == [[PREFIX]]
            assert [finding.attribute for finding in update.findings] == [14, 15]
            assert all("RFC 4760 section 7" in finding.text for finding in update.findings)
            # and alone, with a bad attribute: its prefixes are lost on us, but were there
            alone = decoder().decode(body(b"", reach + ORIGIN + attribute(0x40, 2, b"\2"), b""))
            assert not alone.reach and not alone.withdrawn


def test_families_not_negotiated_are_ignored_with_a_finding() -> None:
    v6_only = decoder(families=frozenset((V6,)))
    update = v6_only.decode(body(PREFIX, good(external=True), PREFIX))
    assert not update.reach and not update.withdrawn
    assert all(finding.severity is Severity.ATTRIBUTE_DISCARD for finding in update.findings)
    assert v6_only.decode(bytes(4)).end_of_rib is None
    v4_only = decoder(families=frozenset((V4,)))
    update = v4_only.decode(body(b"", attribute(0x80, 14, mp_reach()) + ORIGIN + AS_PATH, b""))
    assert not update.reach and [finding.attribute for finding in update.findings] == [14]
    assert v4_only.decode(body(b"", attribute(0x80, 15, mp_unreach(b"")), b"")).end_of_rib is None


@pytest.mark.parametrize(
    "next_hop",
    [bytes(16), bytes(15) + b"\1", bytes.fromhex("ff02") + bytes(13) + b"\5"],
    ids=["unspecified", "loopback", "multicast"],
)
def test_mp_next_hop_that_is_no_hosts_withdraws(next_hop: bytes) -> None:
    update = decoder().decode(body(b"", attribute(0x80, 14, mp_reach(next_hop=next_hop)) + ORIGIN + AS_PATH, b""))
    assert not update.reach and update.withdrawn == ((V6, (PREFIX6,)),)
    assert [finding.attribute for finding in update.findings] == [14]


def test_treat_as_withdraw_reaches_every_carrier() -> None:
    """All four at once, a malformed attribute in each position between them (CVE-2026-41643's class)."""
    other, other6 = bytes.fromhex("18c00003"), bytes.fromhex("2020010db9")
    parts = [attribute(0x80, 14, mp_reach()), ORIGIN, AS_PATH, NEXT_HOP, attribute(0x80, 15, mp_unreach(other6))]
    wrong = attribute(0x80, 4, b"\0")
    for position in range(len(parts) + 1):
        for turn in range(len(parts)):
            order = parts[turn:] + parts[:turn]
            order.insert(position, wrong)
            update = decoder().decode(body(other, b"".join(order), PREFIX))
            assert not update.reach
            withdrawn = {(family, prefix) for family, prefixes in update.withdrawn for prefix in prefixes}
            assert withdrawn == {(V4, other), (V4, PREFIX), (V6, PREFIX6), (V6, other6)}


def test_prefixes_nobody_routes_are_ignored() -> None:
    """RFC 4271 6.3: a semantically incorrect prefix is logged and ignored, the others count."""
    multicast = bytes.fromhex("08e0")
    loopback = bytes.fromhex("187f0000")
    update = decoder().decode(body(b"", good(external=True), multicast + PREFIX + loopback))
    assert [list(reach.prefixes) for reach in update.reach] == [[PREFIX]]
    assert [finding.severity for finding in update.findings] == [Severity.ATTRIBUTE_DISCARD]
    none = decoder().decode(body(b"", good(external=True), multicast))
    assert not none.reach and not none.withdrawn
    link_local = bytes.fromhex("40fe80000000000000")
    block = attribute(0x80, 14, mp_reach(link_local + PREFIX6 + b"\0")) + ORIGIN + AS_PATH
    update = decoder().decode(body(b"", block, b""))
    assert [list(reach.prefixes) for reach in update.reach] == [[PREFIX6, b"\0"]]


def test_findings_are_bounded() -> None:
    """A message full of repetitions gives one finding for each type code, not one for each repetition."""
    update = decoder().decode(body(b"", good(external=True) + attribute(0x80, 4, b"") * 1300, PREFIX))
    assert len(update.findings) == 2
    every = b"".join(attribute(0xC0, code, b"") for code in range(256) if code not in (1, 2, 3, 14, 15))
    update = decoder().decode(body(b"", good(external=True) + every * 5, PREFIX))
    assert len(update.findings) < 3 * 256
