"""OPEN, NOTIFICATION, ROUTE-REFRESH: exact octets, every cut, hostile text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.messages import (
    KEEPALIVE,
    Capability,
    Notification,
    Open,
    harmless,
    refreshed_family,
    route_refresh,
)
from routed.errors import PeerError
from routed.net.families import Family

MARKER = "ff" * 16
BODY = 19

capability = st.builds(Capability, st.integers(0, 255), st.binary(max_size=255))
opens = st.builds(
    Open,
    two_octet_as=st.integers(0, 0xFFFF),
    hold_time=st.integers(0, 0xFFFF),
    router_id=st.integers(0, 0xFFFFFFFF),
    capabilities=st.lists(capability, max_size=12).map(tuple),
)


def open_body(parameters: str) -> bytes:
    """An OPEN body with version 4, AS 65002, hold time 90, id 192.0.2.2 and the given hex from Opt Parm Len on."""
    return bytes.fromhex("04fdea005ac0000202" + parameters)


def refused(body: bytes) -> tuple[int, int, bytes]:
    with pytest.raises(PeerError) as caught:
        Open.decode(body)
    return caught.value.code, caught.value.subcode, caught.value.data


# --- framing --------------------------------------------------------------------------------------------------------


def test_keepalive_is_a_bare_header() -> None:
    assert KEEPALIVE.hex() == MARKER + "001304"


@pytest.mark.parametrize(("family", "octets"), [(Family.IPV4_UNICAST, "00010001"), (Family.IPV6_UNICAST, "00020001")])
def test_route_refresh(family: Family, octets: str) -> None:
    assert route_refresh(family).hex() == MARKER + "001705" + octets
    assert refreshed_family(bytes.fromhex(octets)) is family


def test_route_refresh_of_a_family_nobody_routes_is_none() -> None:
    assert refreshed_family(bytes.fromhex("00190046")) is None


# --- OPEN -----------------------------------------------------------------------------------------------------------


@given(opens)
def test_open_round_trip(message: Open) -> None:
    encoded = message.encode()
    assert int.from_bytes(encoded[16:18], "big") == len(encoded)
    assert Open.decode(encoded[BODY:]) == message


def test_open_octets() -> None:
    message = Open(65001, 90, 0xC0000201, (Capability(1, bytes.fromhex("00010001")), Capability(2, b"")))
    assert message.encode().hex() == MARKER + "0027" + "01" + "04" + "fde9" + "005a" + "c0000201" + (
        "0a" + "0208" + "010400010001" + "0200"
    )


def test_open_without_capabilities_has_no_parameter() -> None:
    assert Open(1, 90, 2).encode().hex() == MARKER + "001d01" + "04" + "0001" + "005a" + "00000002" + "00"


def test_more_than_255_octets_take_the_extended_form_of_rfc_9072() -> None:
    message = Open(1, 90, 2, (Capability(73, bytes(200)), Capability(75, bytes(100))))
    assert message.encode()[BODY + 9 :][:7].hex() == "ffff" + "0133" + "02" + "0130"
    assert Open.decode(message.encode()[BODY:]) == message


@given(st.lists(capability, max_size=6), st.integers(1, 255))
def test_extended_form_counts_whatever_its_length_octet_says(capabilities: list[Capability], length_octet: int) -> None:
    """RFC 9072 2: the non-extended length SHOULD be 255, and is not looked at but for zero."""
    values = [bytes((code, len(value))) + value for code, value in capabilities]
    parameters = b"".join(b"\x02" + len(value).to_bytes(2, "big") + value for value in values)
    body = open_body("")[:9] + bytes((length_octet, 255)) + len(parameters).to_bytes(2, "big") + parameters
    assert Open.decode(body).capabilities == tuple(capabilities)


def test_capabilities_may_come_one_a_parameter_or_several() -> None:
    one = Open.decode(open_body("10" + "0206010400010001" + "0206010400020001"))
    several = Open.decode(open_body("0e" + "020c010400010001010400020001"))
    assert (
        one.capabilities
        == several.capabilities
        == (
            Capability(1, bytes.fromhex("00010001")),
            Capability(1, bytes.fromhex("00020001")),
        )
    )


@pytest.mark.parametrize("version", [0, 1, 3, 5, 255])
def test_wrong_version_names_ours(version: int) -> None:
    assert refused(bytes((version,)) + open_body("00")[1:]) == (2, 1, b"\x00\x04")


@pytest.mark.parametrize("parameters", ["020100", "0403020000", "03fe0100", "ffff0004" + "01000100"])
def test_unknown_optional_parameter_is_2_4(parameters: str) -> None:
    """Parameter 1, authentication, is one of them: RFC 4271 dropped it."""
    assert refused(open_body(parameters)) == (2, 4, b"")


@pytest.mark.parametrize(
    "parameters",
    [
        "01",  # a length, and nothing
        "0102",  # a parameter without its length
        "020201",  # its value missing
        "0402030102",  # capability that runs past its parameter
        "03020141",  # capability without a length
        "00ff",  # octets behind an empty list
        "00ff0000",  # that an extended form would explain, were its length octet not zero
        "05020041040000",  # octets behind a list
        "ff",  # 255 octets announced, none there (CVE-2022-43681: the OPEN ends at this octet)
        "ffff",  # CVE-2022-40318: extended marker, then every cut of the tail
        "ffff00",
        "ffff0001",
        "ffff000102",
        "ffff00020200",
        "ffff0003020001",
        "ffff0004020001",
        "ffff000402000141",  # CVE-2022-40302: a capability header at the very end
        "ffff0006020003410400",
    ],
)
def test_parameters_that_do_not_add_up_are_2_0(parameters: str) -> None:
    assert refused(open_body(parameters)) == (2, 0, b"")


@given(opens, st.data())
def test_every_cut_of_an_open_is_refused_in_order(message: Open, data: st.DataObject) -> None:
    body = message.encode()[BODY:]
    cut = data.draw(st.integers(10, len(body)))
    if cut < len(body):
        assert refused(body[:cut])[:2] == (2, 0)


@given(st.binary(min_size=10, max_size=600))
def test_any_octets_are_an_open_or_a_peer_error(body: bytes) -> None:
    for octets in (body, b"\x04" + body[1:], b"\x04" + body[1:9] + b"\xff\xff" + body[11:]):
        try:
            Open.decode(octets)
        except PeerError as error:
            assert error.code == 2  # noqa: PT017 - either outcome is right


# --- NOTIFICATION ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))
def test_notification_round_trip_and_always_has_a_text(code: int, subcode: int, data: bytes) -> None:
    """CVE-2018-5378..5381: every code and subcode, known or not, with any data."""
    notification = Notification(code, subcode, data)
    assert Notification.decode(notification.encode()[BODY:]) == notification
    text = notification.text()
    assert text.startswith(f"{code}/{subcode} ")
    assert text.isprintable()


def test_notification_octets() -> None:
    assert Notification(2, 1, b"\x00\x04").encode().hex() == MARKER + "0017" + "03" + "0201" + "0004"


def test_data_too_long_for_a_message_is_cut() -> None:
    assert len(Notification(1, 2, bytes(9000)).encode()) == 4096


@pytest.mark.parametrize(
    ("notification", "text"),
    [
        (Notification(4), "4/0 Hold Timer Expired"),
        (Notification(2, 2), "2/2 Bad Peer AS"),
        (Notification(1, 2, b"\x00\x05"), "1/2 Bad Message Length, data 0005"),
        (Notification(5, 1, b"\x02"), "5/1 Receive Unexpected Message in OpenSent State, data 02"),
        (Notification(6, 2, b"\x0bmaintenance"), '6/2 Administrative Shutdown, message "maintenance"'),
        (Notification(6, 4, "\x03né".encode()), '6/4 Administrative Reset, message "né"'),
        (Notification(6, 9, b"\x06\x02\x02hi"), '6/9 Hard Reset: 6/2 Administrative Shutdown, message "hi"'),
        (Notification(6, 99), "6/99 Cease"),
        (Notification(77, 1), "77/1 unknown error"),
    ],
)
def test_notification_in_words(notification: Notification, text: str) -> None:
    assert notification.text() == text


@pytest.mark.parametrize("claimed", [0, 4, 128, 129, 200, 255])
def test_shutdown_communication_whose_length_lies_is_shown_as_data(claimed: int) -> None:
    """CVE-2019-16159: the length octet past what is there. Length zero: no communication (RFC 9003 2)."""
    notification = Notification(6, 2, bytes((claimed,)) + b"abc")
    assert notification.communication is None
    assert "message" not in notification.text()


@pytest.mark.parametrize("length", [1, 127, 128, 129, 255])
def test_shutdown_communications_of_every_allowed_length(length: int) -> None:
    notification = Notification.decode(Notification.cease(2, "x" * length).encode()[BODY:])
    assert notification.communication == b"x" * length


@given(st.text())
def test_our_shutdown_communication_fits_and_is_utf_8(text: str) -> None:
    notification = Notification.cease(2, text)
    assert len(notification.data) <= 256
    if notification.data:
        assert notification.data[0] == len(notification.data) - 1
        said = notification.data[1:].decode()
        assert text.encode("utf-8", "replace").decode().startswith(said)


# --- peer-supplied text ---------------------------------------------------------------------------------------------


@given(st.one_of(st.binary(max_size=255), st.text(max_size=255)))
def test_harmless_text_is_one_printable_line(data: bytes | str) -> None:
    shown = harmless(data)
    assert shown.isprintable()
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in shown)
    assert '"' not in shown.replace('\\"', "")
    assert len(shown) < 500


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"a\nb\r\x1b[2J", "a\\x0ab\\x0d\\x1b[2J"),
        (b"\xff\xfeok", "\\xff\\xfeok"),
        ("ab\u202ecd\u200b", "ab\\u202ecd\\u200b"),
        ("\u2028", "\\u2028"),
        ('","state":"Established', '\\",\\"state\\":\\"Established'),
        ("back\\slash", "back\\\\slash"),
        ("Grüße 東京", "Grüße 東京"),
    ],
)
def test_harmless_examples(data: bytes | str, shown: str) -> None:
    assert harmless(data) == shown
