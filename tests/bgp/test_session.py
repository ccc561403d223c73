"""One connection: framing however the stream is cut, header errors to the octet, timers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.bgp.messages import KEEPALIVE, Capability, Notification, Open, frame, route_refresh
from routed.bgp.neighbor import (
    CloseRequested,
    Established,
    Neighbor,
    NeighborEvent,
    RefreshReceived,
    SessionDown,
    State,
    StateChanged,
)
from routed.bgp.update import Update, end_of_rib, update_message
from routed.net.families import Family
from routed.testing.pipe import EXAMPLE, build

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
MARKER = b"\xff" * 16
NOW = 1000.0

CAPABILITIES = (
    Capability(1, bytes.fromhex("00010001")),
    Capability(1, bytes.fromhex("00020001")),
    Capability(2, b""),
    Capability(65, (65002).to_bytes(4, "big")),
)
PEER_OPEN = Open(65002, 90, 0xC0000202, CAPABILITIES).encode()

ATTRIBUTES = bytes.fromhex("40010100" + "400206" + "0201" + "0000fdea" + "400304" + "c0000202")
ROUTE = update_message(b"", ATTRIBUTES, bytes.fromhex("180a0000" + "180a0001"))
WITHDRAWAL = update_message(bytes.fromhex("180a0000"), b"", b"")
BAD_ORIGIN = update_message(b"", b"\x40\x01\x01\x09" + ATTRIBUTES[4:], bytes.fromhex("180a0002"))
BAD_AGGREGATOR = update_message(b"", ATTRIBUTES + bytes.fromhex("c0070100"), bytes.fromhex("180a0003"))
OVERRUN = frame(2, bytes.fromhex("ffff0000"))


def opened(state: State, **changes: int) -> tuple[Neighbor, int]:
    """A neighbour with one connection of the peer's in a state, its own output drained."""
    neighbor = build(replace(EXAMPLE, passive=True, **changes))
    neighbor.start(NOW)
    conn = neighbor.accept(NOW)
    assert isinstance(conn, int)
    if state >= State.OPEN_CONFIRM:
        neighbor.receive_data(conn, PEER_OPEN, NOW)
    if state >= State.ESTABLISHED:
        neighbor.receive_data(conn, KEEPALIVE, NOW)
    assert neighbor.state is state
    neighbor.control_output(conn)
    neighbor.events = []
    return neighbor, conn


def notification(neighbor: Neighbor, conn: int) -> Notification | None:
    """The one NOTIFICATION that was sent, the connection being closed after it."""
    assert CloseRequested(conn) in neighbor.events
    data = neighbor.control_output(conn)
    if not data:
        return None
    assert data[:16] == MARKER and data[18] == 3 and int.from_bytes(data[16:18], "big") == len(data)
    return Notification.decode(data[19:])


# --- framing --------------------------------------------------------------------------------------------------------


def plain(event: NeighborEvent) -> object:
    """An event as a value that compares by content."""
    if isinstance(event, Update):
        reach = [(one.family, one.attrs.content(), list(one.prefixes)) for one in event.reach]
        withdrawn = [(family, list(prefixes)) for family, prefixes in event.withdrawn]
        return reach, withdrawn, event.end_of_rib, event.findings
    return event


def outcome(pieces: list[bytes], state: State) -> object:
    """Everything observable after a connection in OpenSent got these pieces."""
    neighbor, conn = opened(state)
    for piece in pieces:
        neighbor.receive_data(conn, piece, NOW)
    counters = {name: getattr(neighbor.counters, name) for name in neighbor.counters.__slots__}
    return [plain(event) for event in neighbor.events], neighbor.control_output(conn), neighbor.state, counters


message = st.one_of(
    st.sampled_from([ROUTE, WITHDRAWAL, BAD_ORIGIN, BAD_AGGREGATOR, end_of_rib(V4), end_of_rib(V6), KEEPALIVE]),
    st.sampled_from([route_refresh(V4), route_refresh(V6), frame(5, b"\x00\x19\x00\x46")]),
    st.sampled_from(
        [PEER_OPEN, OVERRUN, Notification.cease(2, "bye").encode(), frame(9, b""), MARKER + b"\x00\x05\x02"]
    ),
    st.builds(frame, st.integers(0, 255), st.binary(max_size=40)),
    st.binary(max_size=40),
)
stream = st.lists(message, max_size=12).map(b"".join)


@settings(max_examples=200)
@given(stream, st.sampled_from([State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED]), st.booleans(), st.data())
def test_any_chopping_of_a_stream_decodes_the_same(
    data: bytes, state: State, opening: bool, draw: st.DataObject
) -> None:
    if opening and state is State.OPEN_SENT:
        data = PEER_OPEN + KEEPALIVE + data
    whole = outcome([data], state)
    assert outcome([data[at : at + 1] for at in range(len(data))], state) == whole
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=8)))
    assert outcome([data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)], state) == whole


def test_updates_in_the_chunk_that_establishes_the_session() -> None:
    neighbor, conn = opened(State.OPEN_SENT)
    neighbor.receive_data(conn, PEER_OPEN + KEEPALIVE + ROUTE + end_of_rib(V4), NOW)
    kinds = [type(event) for event in neighbor.events if not isinstance(event, StateChanged)]
    assert kinds == [Established, Update, Update]


def test_findings_are_passed_on_and_counted() -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, ROUTE + BAD_ORIGIN + BAD_AGGREGATOR, NOW)
    assert len(neighbor.events) == 3
    counters = neighbor.counters
    assert (counters.updates_received, counters.treat_as_withdraw, counters.attribute_discards) == (3, 1, 1)
    assert counters.last_finding
    assert neighbor.state is State.ESTABLISHED


def test_an_update_error_ends_the_session_after_what_was_good() -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, ROUTE + OVERRUN + ROUTE, NOW)
    assert [type(event) for event in neighbor.events] == [Update, CloseRequested, SessionDown, StateChanged]
    sent = notification(neighbor, conn)
    assert sent == Notification(3, 1)
    assert "NOTIFICATION 3/1 Malformed Attribute List" in neighbor.counters.last_error


# --- message headers (RFC 4271 6.1) ---------------------------------------------------------------------------------


def header(length: int, kind: int) -> bytes:
    return MARKER + length.to_bytes(2, "big") + bytes((kind,))


HEADER_ERRORS = [
    (bytes(16) + b"\x00\x13\x04", Notification(1, 1)),
    (b"\xff" * 15 + b"\xfe\x00\x13\x04", Notification(1, 1)),
    (b"GET / HTTP/1.1\r\n", Notification(1, 1)),
    (b"\x00", Notification(1, 1)),
    (header(0, 4), Notification(1, 2, b"\x00\x00")),
    (header(18, 4), Notification(1, 2, b"\x00\x12")),
    (header(4097, 2), Notification(1, 2, b"\x10\x01")),
    (header(65535, 2), Notification(1, 2, b"\xff\xff")),
    (header(28, 1), Notification(1, 2, b"\x00\x1c")),
    (header(22, 2), Notification(1, 2, b"\x00\x16")),
    (header(20, 3), Notification(1, 2, b"\x00\x14")),
    (header(20, 4), Notification(1, 2, b"\x00\x14")),
    (header(22, 5), Notification(1, 2, b"\x00\x16")),
    (header(19, 0), Notification(1, 3, b"\x00")),
    (header(19, 6), Notification(1, 3, b"\x06")),
    (header(4096, 255), Notification(1, 3, b"\xff")),
    (header(3, 255), Notification(1, 2, b"\x00\x03")),
]


@pytest.mark.parametrize(
    "state", [State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED], ids=lambda value: value.name
)
@pytest.mark.parametrize(("octets", "expected"), HEADER_ERRORS)
def test_header_errors_are_told_at_once(octets: bytes, expected: Notification, state: State) -> None:
    """As soon as the header is there: its body, if it had one, is not waited for."""
    neighbor, conn = opened(state)
    neighbor.receive_data(conn, octets, NOW)
    assert notification(neighbor, conn) == expected
    assert neighbor.counters.last_error.endswith(f"(sent NOTIFICATION {expected.text()})")


@pytest.mark.parametrize("length", [19, 20, 4096])
def test_the_longest_and_shortest_messages_are_taken(length: int) -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    if length == 19:
        data = KEEPALIVE
    else:
        room = 4096 - 19 - 4
        data = update_message(bytes.fromhex("180a0000") * (room // 4) + b"\x00" * (room % 4), b"", b"")
        assert len(data) == 4096
    neighbor.receive_data(conn, data, NOW)
    assert neighbor.state is State.ESTABLISHED


# --- messages in the wrong state (RFC 6608) -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "data", "expected"),
    [
        (State.OPEN_SENT, ROUTE, Notification(5, 1, b"\x02")),
        (State.OPEN_SENT, OVERRUN, Notification(5, 1, b"\x02")),
        (State.OPEN_SENT, KEEPALIVE, Notification(5, 1, b"\x04")),
        (State.OPEN_SENT, route_refresh(V4), Notification(5, 1, b"\x05")),
        (State.OPEN_CONFIRM, ROUTE, Notification(5, 2, b"\x02")),
        (State.OPEN_CONFIRM, PEER_OPEN, Notification(5, 2, b"\x01")),
        (State.OPEN_CONFIRM, route_refresh(V4), Notification(5, 2, b"\x05")),
        (State.ESTABLISHED, PEER_OPEN, Notification(5, 3, b"\x01")),
        (State.ESTABLISHED, frame(1, bytes(10)), Notification(5, 3, b"\x01")),
    ],
)
def test_unexpected_messages(state: State, data: bytes, expected: Notification) -> None:
    neighbor, conn = opened(state)
    neighbor.receive_data(conn, data, NOW)
    assert notification(neighbor, conn) == expected
    assert f"came in state {state.label}" in neighbor.counters.last_error


# --- OPENs that are refused (RFC 4271 6.2), to the octet --------------------------------------------------------------


def hexed(body: str) -> bytes:
    return frame(1, bytes.fromhex(body))


@pytest.mark.parametrize(
    ("data", "sent", "reason"),
    [
        (hexed("05fdea005ac000020200"), "0201" + "0004", "the peer speaks BGP version 5"),
        (hexed("04fdeb005ac000020200"), "0202", "the peer says it is AS 65003, configured is AS 65002"),
        (hexed("040000005ac000020200"), "0202", "AS 0"),
        (hexed("04fdea0001c000020200"), "0206", "hold time of 1 s"),
        (hexed("04fdea0002c000020200"), "0206", "hold time of 2 s"),
        (hexed("04fdea005a0000000000"), "0203", "router id is 0.0.0.0"),
        (hexed("04fdea005ac000020202" + "0900"), "0204", "optional parameter 9"),
        (hexed("04fdea005ac000020203" + "020141"), "0200", "malformed"),
        (hexed("04fdea005ac000020204" + "02024100"), "0200", "capability 65"),
        (
            hexed("04fdea005ac000020208" + "0206010400190041"),
            "0207" + "010400010001" + "010400020001",
            "address families",
        ),
    ],
)
def test_refused_opens(data: bytes, sent: str, reason: str) -> None:
    neighbor, conn = opened(State.OPEN_SENT)
    neighbor.receive_data(conn, data, NOW)
    body = bytes.fromhex(sent)
    assert neighbor.control_output(conn) == MARKER + (19 + len(body)).to_bytes(2, "big") + b"\x03" + body
    assert CloseRequested(conn) in neighbor.events
    assert reason in neighbor.counters.last_error
    assert neighbor.counters.last_error == next(e.reason for e in neighbor.events if isinstance(e, StateChanged))


# --- NOTIFICATION received ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state", [State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED], ids=lambda value: value.name
)
@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Notification(2, 1, b"\x00\x04"), "2/1 Unsupported Version Number"),
        (Notification.cease(2, "bye\x1b[2J"), '6/2 Administrative Shutdown, message "bye\\x1b[2J"'),
        (Notification(6, 2, b"\xff"), "6/2 Administrative Shutdown"),
        (Notification(0, 0), "0/0 unknown error"),
        (Notification(255, 255, bytes(4000)), "255/255 unknown error"),
    ],
)
def test_a_notification_ends_every_state_without_an_answer(state: State, message: Notification, words: str) -> None:
    neighbor, conn = opened(state)
    neighbor.receive_data(conn, message.encode() + ROUTE, NOW)
    assert notification(neighbor, conn) is None
    assert words in neighbor.counters.last_error
    begins = "peer ended the session" if state is State.ESTABLISHED else "peer refused"
    assert neighbor.counters.last_error.startswith(begins)


def test_bad_peer_as_says_which_as_was_refused() -> None:
    neighbor, conn = opened(State.OPEN_SENT)
    neighbor.receive_data(conn, Notification(2, 2).encode(), NOW)
    expected = "peer refused: NOTIFICATION 2/2 Bad Peer AS (it does not accept us as AS 65001)"
    assert neighbor.counters.last_error == expected


# --- timers ---------------------------------------------------------------------------------------------------------


def test_a_peer_that_says_nothing_is_let_go_after_four_minutes() -> None:
    neighbor, conn = opened(State.OPEN_SENT)
    assert neighbor.next_timer() == NOW + 240
    neighbor.handle_timer(NOW + 240)
    assert notification(neighbor, conn) == Notification(4)
    assert neighbor.counters.last_error == "the peer sent no OPEN within 240 s of connecting"


def test_a_peer_that_does_not_confirm() -> None:
    neighbor, conn = opened(State.OPEN_CONFIRM)
    neighbor.handle_timer(NOW + 90)
    assert notification(neighbor, conn) == Notification(4)
    assert "did not confirm" in neighbor.counters.last_error


@pytest.mark.parametrize("data", [KEEPALIVE, ROUTE, end_of_rib(V4), route_refresh(V4), KEEPALIVE + ROUTE[:-1]])
def test_messages_restart_the_hold_timer(data: bytes) -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, data, NOW + 80)
    neighbor.handle_timer(NOW + 169.9)
    assert neighbor.state is State.ESTABLISHED
    neighbor.handle_timer(NOW + 170)
    assert neighbor.state < State.ESTABLISHED
    assert neighbor.counters.last_down_reason == "hold timer expired after 90 s"


def test_a_part_of_a_message_does_not_restart_the_hold_timer() -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, ROUTE[:-1], NOW + 89)
    neighbor.handle_timer(NOW + 90)
    assert notification(neighbor, conn) == Notification(4)


def test_hold_time_zero_runs_no_timer() -> None:
    neighbor, conn = opened(State.ESTABLISHED, hold_time=0)
    assert neighbor.next_timer() is None
    neighbor.receive_data(conn, KEEPALIVE + ROUTE, NOW + 5)
    assert neighbor.next_timer() is None
    neighbor.handle_timer(NOW + 1e6)
    assert neighbor.state is State.ESTABLISHED
    assert neighbor.control_output(conn) == b""


@pytest.mark.parametrize(("hold_time", "keepalive_time", "interval"), [(90, 0, 30), (90, 7, 7), (9, 100, 3)])
def test_keepalives_come_at_a_jittered_interval(hold_time: int, keepalive_time: int, interval: int) -> None:
    neighbor, conn = opened(State.ESTABLISHED, hold_time=hold_time, keepalive_time=keepalive_time)
    now, gaps = NOW, []
    for _ in range(200):
        at = neighbor.next_timer()
        assert at is not None
        neighbor.receive_data(conn, KEEPALIVE, at)
        neighbor.handle_timer(at)
        assert neighbor.control_output(conn) == KEEPALIVE
        gaps.append(at - now)
        now = at
    assert 0.75 * interval <= min(gaps) < 0.8 * interval
    assert 0.95 * interval < max(gaps) <= interval + 1e-6


def test_keepalives_are_never_more_than_one_a_second() -> None:
    neighbor, _ = opened(State.ESTABLISHED, hold_time=3)
    assert neighbor.next_timer() == NOW + 1


def test_a_late_timer_sends_one_keepalive_not_a_burst() -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, KEEPALIVE, NOW + 85)
    neighbor.handle_timer(NOW + 86)
    assert neighbor.control_output(conn) == KEEPALIVE


@pytest.mark.parametrize(("hold_time", "send_hold"), [(90, 480), (240, 480), (600, 1200), (0, 480)])
def test_send_hold_timer(hold_time: int, send_hold: int) -> None:
    """RFC 9687: TCP is closed without a NOTIFICATION, nothing would get through."""
    neighbor, conn = opened(State.OPEN_SENT, hold_time=hold_time)
    neighbor.receive_data(conn, Open(65002, hold_time, 9, CAPABILITIES).encode() + KEEPALIVE, NOW)
    neighbor.writing_paused(conn, NOW)
    neighbor.writing_paused(conn, NOW + 100)
    for second in range(0, send_hold, 10):
        neighbor.receive_data(conn, KEEPALIVE, NOW + second)
        neighbor.handle_timer(NOW + second)
    assert neighbor.state is State.ESTABLISHED
    neighbor.control_output(conn)
    neighbor.handle_timer(NOW + send_hold)
    assert notification(neighbor, conn) is None
    assert neighbor.counters.last_error == f"send hold timer expired: the peer has read nothing for {send_hold} s"


def test_send_hold_timer_stops_when_the_peer_reads_again() -> None:
    neighbor, conn = opened(State.ESTABLISHED, hold_time=0)
    neighbor.writing_paused(conn, NOW)
    assert neighbor.next_timer() == NOW + 480
    neighbor.writing_resumed(conn, NOW + 479)
    assert neighbor.next_timer() is None


# --- the rest -------------------------------------------------------------------------------------------------------


def test_route_refresh_both_ways() -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, route_refresh(V6) + frame(5, b"\x00\x19\x00\x46"), NOW)
    assert neighbor.events == [RefreshReceived(V6)]
    assert neighbor.refresh(V4)
    assert neighbor.control_output(conn) == route_refresh(V4)
    assert (neighbor.counters.refreshes_received, neighbor.counters.refreshes_sent) == (2, 1)


@pytest.mark.parametrize("entries", ["01", "0180", "0180ffff", "018000" + "ff" * 60])
def test_orf_entries_behind_a_route_refresh_are_not_read(entries: str) -> None:
    """RFC 5291 was not negotiated; CVE-2023-41360 and its kind were in reading lengths that need not be read."""
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, frame(5, bytes.fromhex("00010001" + entries)), NOW)
    assert neighbor.events == [RefreshReceived(V4)]
    assert neighbor.state is State.ESTABLISHED


def test_a_peer_without_route_refresh_is_not_asked() -> None:
    neighbor, conn = opened(State.OPEN_SENT)
    assert not neighbor.refresh(V4)
    neighbor.receive_data(conn, Open(65002, 90, 9, CAPABILITIES[:1]).encode() + KEEPALIVE, NOW)
    neighbor.control_output(conn)
    assert not neighbor.refresh(V4)
    assert neighbor.control_output(conn) == b""


def test_nothing_is_read_after_the_end() -> None:
    neighbor, conn = opened(State.ESTABLISHED)
    neighbor.receive_data(conn, Notification.cease(4).encode(), NOW)
    neighbor.events = []
    neighbor.receive_data(conn, ROUTE, NOW)
    neighbor.closed(conn, NOW, "closed by the peer")
    assert neighbor.events == []


def test_a_buffer_full_of_updates_is_delivered_whole() -> None:
    """256 KiB at once, as the daemon reads them: every message is an event, in order."""
    neighbor, conn = opened(State.ESTABLISHED)
    count = 262_144 // len(ROUTE)
    neighbor.events = []
    neighbor.receive_data(conn, ROUTE * count, NOW)
    assert len(neighbor.events) == count
    assert neighbor.counters.updates_received == count
