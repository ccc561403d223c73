"""Capabilities: meaning, negotiation, and every OPEN that must be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.capabilities import Capabilities, Negotiated, PeerRestart, advertise, negotiate
from routed.bgp.messages import Capability, Open
from routed.errors import PeerError
from routed.net.families import Family

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
MP4, MP6 = Capability(1, bytes.fromhex("00010001")), Capability(1, bytes.fromhex("00020001"))
VPN4 = Capability(1, bytes.fromhex("00010080"))


def ours(local_as: int = 65001, families: tuple[Family, ...] = (V4, V6), **changes: int) -> Open:
    message = advertise(
        local_as=local_as, hold_time=90, router_id=1, families=families, restart=PeerRestart(120, False, {V4: False})
    )
    return replace(message, **changes)


def theirs(*capabilities: Capability, **changes: int) -> Open:
    return replace(Open(65002, 90, 2, capabilities), **changes)


def as4(asn: int) -> Capability:
    return Capability(65, asn.to_bytes(4, "big"))


def agree(
    peer: Open, *, own: Open | None = None, local_as: int = 65001, peer_as: int = 65002, keepalive: int = 0
) -> Negotiated:
    return negotiate(own or ours(), peer, local_as=local_as, peer_as=peer_as, keepalive_time=keepalive)


def refused(
    peer: Open, *, own: Open | None = None, local_as: int = 65001, peer_as: int = 65002
) -> tuple[int, int, bytes]:
    with pytest.raises(PeerError) as caught:
        agree(peer, own=own, local_as=local_as, peer_as=peer_as)
    assert caught.value.message
    return caught.value.code, caught.value.subcode, caught.value.data


# --- what we say ----------------------------------------------------------------------------------------------------


def test_our_open_in_octets() -> None:
    message = advertise(
        local_as=4200000001,
        hold_time=240,
        router_id=0x0A000001,
        families=(V4, V6),
        restart=PeerRestart(120, True, {V4: True, V6: False}),
    )
    fields = ("04", "5ba0", "00f0", "0a000001", "22", "0220")  # AS_TRANS in the 2-octet field
    capabilities = ("010400010001", "010400020001", "0200", "4104fa56ea01", "400a", "8078", "00010180", "00020100")
    assert message.encode()[19:].hex() == "".join(fields + capabilities)


def test_capabilities_the_peer_refused_are_left_out() -> None:
    message = advertise(
        local_as=65001,
        hold_time=90,
        router_id=1,
        families=(V4, V6),
        restart=PeerRestart(120),
        without=(MP6, Capability(64, b""), Capability(2, b"")),
    )
    assert message.capabilities == (MP4, as4(65001))


@given(st.integers(0, 4095), st.booleans(), st.dictionaries(st.sampled_from(Family), st.booleans()))
def test_graceful_restart_round_trip(restart_time: int, restarting: bool, families: dict[Family, bool]) -> None:
    restart = PeerRestart(restart_time, restarting, families)
    assert Capabilities.parse([Capability(64, restart.encode())]).graceful_restart == restart


# --- what they say --------------------------------------------------------------------------------------------------


def test_unknown_capabilities_and_families_are_ignored() -> None:
    parsed = Capabilities.parse([Capability(73, b"\x04host\x00"), Capability(200, b"\xff" * 255), VPN4, MP6])
    assert parsed.families == (V6,)
    assert parsed.ignored == (73, 200)


def test_repeated_capabilities() -> None:
    """Multiprotocol adds up, of others the last counts (RFC 4724 3)."""
    first, last = PeerRestart(10, True, {V4: True}), PeerRestart(20, False, {V6: True})
    parsed = Capabilities.parse(
        [MP4, MP6, MP4, as4(1), as4(2), Capability(64, first.encode()), Capability(64, last.encode())]
    )
    assert parsed.families == (V4, V6)
    assert parsed.four_octet_as == 2
    assert parsed.graceful_restart == last


@pytest.mark.parametrize("code", [1, 64, 65])
@pytest.mark.parametrize("value", [b"", b"\x00", b"\x00" * 3, b"\x00" * 5])
def test_a_known_capability_of_the_wrong_length_is_2_0(code: int, value: bytes) -> None:
    """CVE-2025-43971 and its kind: length zero, and one off in both directions."""
    with pytest.raises(PeerError) as caught:
        Capabilities.parse([Capability(code, value)])
    assert (caught.value.code, caught.value.subcode, caught.value.data) == (2, 0, b"")


@pytest.mark.parametrize("code", [code for code in range(256) if code not in (1, 64, 65)])
def test_every_other_capability_of_length_zero_is_harmless(code: int) -> None:
    Capabilities.parse([Capability(code, b"")])


@given(st.lists(st.builds(Capability, st.integers(0, 255), st.binary(max_size=255)), max_size=30))
def test_any_capabilities_are_understood_or_a_peer_error(capabilities: list[Capability]) -> None:
    try:
        parsed = Capabilities.parse(capabilities)
    except PeerError as error:
        assert (error.code, error.subcode) == (2, 0)  # noqa: PT017 - either outcome is right
    else:
        assert len(parsed.ignored) <= len(capabilities)


# --- agreement ------------------------------------------------------------------------------------------------------


def test_what_a_session_does_without_is_told_once_each() -> None:
    offers = (MP4, MP6, Capability(5, b"\0\1\0\1\0\2"), Capability(200, b"x"), Capability(200, b"y"), as4(65002))
    agreed = agree(theirs(*offers), own=ours(families=(V6,)))
    assert agreed.families == {V6}
    assert agreed.declined == ("family ipv4-unicast", "capability 5 (extended next hop)", "capability 200")
    assert agree(theirs(MP4, MP6, as4(65002))).declined == ()


@pytest.mark.parametrize(
    ("own", "peer", "common"),
    [
        ((V4, V6), (MP4, MP6), {V4, V6}),
        ((V4, V6), (MP6,), {V6}),
        ((V4,), (MP4, MP6), {V4}),
        ((V4, V6), (), {V4}),  # no Multiprotocol at all: IPv4 unicast is implied (RFC 4760 8)
        ((V4, V6), (VPN4, MP6), {V6}),  # with one, only what it says
        ((), (MP4,), {V4}),
    ],
)
def test_common_families(own: tuple[Family, ...], peer: tuple[Capability, ...], common: set[Family]) -> None:
    assert agree(theirs(*peer), own=ours(families=own)).families == common


@pytest.mark.parametrize(
    ("own", "peer", "data"),
    [
        ((V6,), (MP4,), MP6),
        ((V6,), (), MP6),
        ((V4,), (MP6,), MP4),
        ((V4,), (VPN4,), MP4),
    ],
)
def test_no_common_family_is_2_7_naming_ours(
    own: tuple[Family, ...], peer: tuple[Capability, ...], data: Capability
) -> None:
    assert refused(theirs(*peer), own=ours(families=own)) == (2, 7, bytes((data.code, 4)) + data.value)


@pytest.mark.parametrize(
    ("own", "peer", "hold_time", "keepalive", "expected"),
    [
        (90, 90, 90, 0, 30.0),
        (240, 90, 90, 0, 30.0),
        (90, 240, 90, 0, 30.0),
        (240, 240, 240, 80, 80.0),
        (240, 30, 30, 80, 10.0),  # a configured interval never exceeds a third
        (240, 240, 240, 5, 5.0),
        (3, 90, 3, 0, 1.0),
        (0, 90, 0, 0, 0.0),
        (90, 0, 0, 30, 0.0),
    ],
)
def test_hold_time_is_the_smaller(own: int, peer: int, hold_time: int, keepalive: int, expected: float) -> None:
    negotiated = agree(theirs(MP4, hold_time=peer), own=ours(hold_time=own), keepalive=keepalive)
    assert (negotiated.hold_time, negotiated.keepalive_time) == (hold_time, expected)


def test_what_one_side_lacks_is_off() -> None:
    plain = agree(theirs(MP4))
    assert (plain.four_octet_as, plain.route_refresh, plain.graceful_restart) == (False, False, None)
    restart = PeerRestart(60, True, {V4: True})
    full = agree(theirs(MP4, as4(65002), Capability(2, b""), Capability(64, restart.encode())))
    assert (full.four_octet_as, full.route_refresh, full.graceful_restart) == (True, True, restart)
    silent = advertise(local_as=65001, hold_time=90, router_id=1, families=(V4,), restart=None)
    assert agree(theirs(MP4, Capability(64, restart.encode())), own=silent).graceful_restart is None


# --- refusals (RFC 4271 6.2, 6286, 6793, 7607) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "peer_as"),
    [
        (theirs(MP4, two_octet_as=65003), 65002),
        (theirs(MP4, as4(65003)), 65002),  # the capability wins
        (theirs(MP4, as4(65003), two_octet_as=65003), 65002),
        (theirs(MP4, as4(4200000002), two_octet_as=23456), 4200000001),
        (theirs(MP4, two_octet_as=23456), 4200000001),  # AS_TRANS without the capability names nobody
        (theirs(MP4, as4(23456), two_octet_as=23456), 65002),
        (theirs(MP4, two_octet_as=0), 65002),
        (theirs(MP4, as4(0)), 65002),
        (theirs(MP4, as4(65002), two_octet_as=0), 65002),
    ],
)
def test_bad_peer_as(peer: Open, peer_as: int) -> None:
    assert refused(peer, peer_as=peer_as) == (2, 2, b"")


@pytest.mark.parametrize(
    ("peer", "peer_as"),
    [
        (theirs(MP4), 65002),
        (theirs(MP4, as4(65002)), 65002),
        (theirs(MP4, as4(4200000001), two_octet_as=23456), 4200000001),
        (theirs(MP4, as4(65002), two_octet_as=23456), 65002),
        (theirs(MP4, as4(65002), two_octet_as=7), 65002),
    ],
)
def test_good_peer_as(peer: Open, peer_as: int) -> None:
    assert agree(peer, peer_as=peer_as).peer_as == peer_as


@pytest.mark.parametrize("hold_time", [1, 2])
def test_hold_time_of_1_and_2_is_2_6(hold_time: int) -> None:
    assert refused(theirs(MP4, hold_time=hold_time)) == (2, 6, b"")


@pytest.mark.parametrize("hold_time", [0, 3, 65535])
def test_other_hold_times_are_fine(hold_time: int) -> None:
    agree(theirs(MP4, hold_time=hold_time))


def test_router_id_zero_is_2_3() -> None:
    assert refused(theirs(MP4, router_id=0)) == (2, 3, b"")


def test_our_router_id_is_2_3_within_the_as_only() -> None:
    """RFC 6286 2.2: identifiers need be unique within an AS."""
    assert refused(theirs(MP4, router_id=1, two_octet_as=65001), peer_as=65001) == (2, 3, b"")
    assert agree(theirs(MP4, router_id=1)).peer_router_id == 1


def test_a_router_id_need_not_be_an_address() -> None:
    assert agree(theirs(MP4, router_id=0xFFFFFFFF)).peer_router_id == 0xFFFFFFFF
