"""A neighbour: when it connects, how it backs off, whom it lets in, what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from routed.bgp.capabilities import Capabilities
from routed.bgp.messages import KEEPALIVE, Capability, Notification, Open
from routed.bgp.neighbor import (
    CloseRequested,
    ConnectRequested,
    Established,
    Neighbor,
    SessionDown,
    State,
    StateChanged,
)
from routed.net.families import Family
from routed.testing.pipe import EXAMPLE, MIRROR, ManualClock, Pipe, Side, build

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
NOW = 1000.0
Fail = Callable[[int, float], None]
"""What becomes of an attempt: called with its connection and the time."""

PEER_OPEN = Open(65002, 90, 0xC0000202, (Capability(1, bytes.fromhex("00010001")),)).encode()


def attempts(neighbor: Neighbor) -> list[int]:
    """The connections asked for since the last call."""
    found = [event.conn for event in neighbor.events if isinstance(event, ConnectRequested)]
    neighbor.events = []
    return found


def drive(neighbor: Neighbor, seconds: float, fail: Fail, now: float = NOW) -> list[float]:
    """Times of all attempts in a span in which `fail(conn, now)` answers each of them."""
    end, times = now + seconds, []
    while True:
        for conn in attempts(neighbor):
            times.append(now)
            fail(conn, now)
            neighbor.control_output(conn)
        at = neighbor.next_timer()
        if at is None or at > end:
            return times
        assert at >= now
        now = at
        neighbor.handle_timer(now)


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


# --- connecting and back-off ----------------------------------------------------------------------------------------


def refuse_tcp(neighbor: Neighbor) -> Fail:
    return lambda conn, now: neighbor.connect_failed(conn, now, "Connection refused")


def answer(neighbor: Neighbor, *messages: bytes) -> Fail:
    def fail(conn: int, now: float) -> None:
        neighbor.connected(conn, now)
        for message in messages:
            neighbor.receive_data(conn, message, now)

    return fail


def close_at_once(neighbor: Neighbor) -> Fail:
    def fail(conn: int, now: float) -> None:
        neighbor.connected(conn, now)
        neighbor.closed(conn, now, "closed by the peer")

    return fail


def come_up_and_fall(neighbor: Neighbor) -> Fail:
    return answer(neighbor, PEER_OPEN, KEEPALIVE, Notification.cease(4).encode())


FAILURES: dict[str, Callable[[Neighbor], Fail]] = {
    "TCP refused": refuse_tcp,
    "TCP closed": close_at_once,
    "NOTIFICATION 2/2": lambda neighbor: answer(neighbor, Notification(2, 2).encode()),
    "NOTIFICATION 2/1": lambda neighbor: answer(neighbor, Notification(2, 1, b"\0\4").encode()),
    "NOTIFICATION 2/7": lambda neighbor: answer(neighbor, Notification(2, 7).encode()),
    "NOTIFICATION 6/5": lambda neighbor: answer(neighbor, Notification.cease(5).encode()),
    "NOTIFICATION after its OPEN": lambda neighbor: answer(neighbor, PEER_OPEN, Notification(2, 2).encode()),
    "its OPEN is bad": lambda neighbor: answer(neighbor, Open(65009, 90, 9).encode()),
    "garbage": lambda neighbor: answer(neighbor, b"SSH-2.0-OpenSSH\r\n"),
    "KEEPALIVE first": lambda neighbor: answer(neighbor, KEEPALIVE),
    "up and down": come_up_and_fall,
    "down by TCP": lambda neighbor: answer(neighbor, PEER_OPEN, KEEPALIVE, b"\0" * 19),
}


@pytest.mark.parametrize("how", FAILURES)
def test_reconnects_never_storm(how: str) -> None:
    """On every failure path: at once, within 5 s, then doubling to 30 s at most; never a burst, never a stop."""
    neighbor = build()
    neighbor.start(NOW)
    times = drive(neighbor, 600, FAILURES[how](neighbor))
    assert times[0] == NOW
    waits = gaps(times)
    assert all(0.75 * low <= wait <= low for wait, low in zip(waits, [5, 10, 20], strict=False)), waits
    assert all(22.5 <= wait <= 30 for wait in waits[3:]), waits
    assert 20 <= len(times) <= 32
    assert neighbor.counters.last_error
    assert neighbor.counters.connect_attempts == len(times)


def test_a_connection_attempt_nobody_answers_is_given_up() -> None:
    neighbor = build()
    neighbor.start(NOW)
    times = drive(neighbor, 200, lambda *_: None)
    assert times[0] == NOW and 3.75 <= gaps(times)[0] <= 5
    assert max(gaps(times)) <= 30
    assert neighbor.counters.last_error == "the peer did not answer the connection attempt in time"
    assert neighbor.state is State.CONNECT


@pytest.mark.parametrize(
    ("guard", "hint"),
    [
        ({"password": "bgp/tor"}, "; a peer with another password, or none, looks like this too"),
        ({"ttl_security": 1}, "; a peer without TTL security, or more than 1 hops away, looks like this too"),
    ],
)
def test_no_answer_of_a_guarded_peer_may_mean_the_guard(guard: dict[str, str], hint: str) -> None:
    neighbor = build(replace(EXAMPLE, **guard))
    neighbor.start(NOW)
    drive(neighbor, 20, lambda *_: None)
    assert neighbor.counters.last_error == "the peer did not answer the connection attempt in time" + hint


def test_a_given_up_attempt_is_closed_before_the_next() -> None:
    neighbor = build()
    neighbor.start(NOW)
    (first,) = attempts(neighbor)
    at = neighbor.next_timer()
    assert at is not None
    neighbor.handle_timer(at)
    assert [type(event) for event in neighbor.events] == [CloseRequested, ConnectRequested]
    assert neighbor.events[0] == CloseRequested(first)
    neighbor.connected(first, at)  # too late: it is not ours any more
    assert neighbor.state is State.CONNECT


def test_a_silent_peer_counts_as_a_failure() -> None:
    neighbor = build()
    neighbor.start(NOW)
    times = drive(neighbor, 1200, neighbor.connected)
    assert all(wait >= 240 + 3.75 for wait in gaps(times))


def test_jitter_spreads_neighbours_apart() -> None:
    firsts = set()
    for seed in range(20):
        neighbor = build(seed=seed)
        neighbor.start(NOW)
        firsts.add(drive(neighbor, 6, refuse_tcp(neighbor))[1])
    assert len(firsts) == 20


def test_failures_are_forgotten_after_a_session_that_lasted() -> None:
    neighbor = build(replace(EXAMPLE, graceful_restart=False))
    neighbor.start(NOW)
    assert max(gaps(drive(neighbor, 200, refuse_tcp(neighbor)))) > 20
    conn = neighbor.accept(NOW + 200)
    assert isinstance(conn, int)
    neighbor.receive_data(conn, PEER_OPEN + KEEPALIVE, NOW + 200)
    assert neighbor.state is State.ESTABLISHED
    neighbor.closed(conn, NOW + 235, "connection reset")
    neighbor.events = []
    at = neighbor.next_timer()
    assert at is not None and 3.75 <= at - (NOW + 235) <= 5


def test_failures_are_remembered_after_a_session_that_did_not() -> None:
    neighbor = build()
    neighbor.start(NOW)
    drive(neighbor, 200, refuse_tcp(neighbor))
    conn = neighbor.accept(NOW + 200)
    assert isinstance(conn, int)
    neighbor.receive_data(conn, PEER_OPEN + KEEPALIVE, NOW + 200)
    neighbor.closed(conn, NOW + 205, "connection reset")
    at = neighbor.next_timer()
    assert at is not None and at - (NOW + 205) >= 22.5


def test_starting_again_is_immediate() -> None:
    neighbor = build()
    neighbor.start(NOW)
    drive(neighbor, 100, refuse_tcp(neighbor))
    neighbor.stop(NOW + 100, Notification.cease(4), admin_down=False)
    neighbor.start(NOW + 100)
    assert attempts(neighbor)


# --- passive and incoming -------------------------------------------------------------------------------------------


def test_a_passive_neighbour_never_connects() -> None:
    neighbor = build(replace(EXAMPLE, passive=True))
    neighbor.start(NOW)
    assert neighbor.state is State.ACTIVE
    now = NOW
    for ending in (
        Notification(2, 2).encode(),
        PEER_OPEN + Notification(2, 2).encode(),
        PEER_OPEN + KEEPALIVE,
        b"GET /",
    ):
        now += 10
        conn = neighbor.accept(now)
        assert isinstance(conn, int)
        neighbor.receive_data(conn, ending, now)
        neighbor.closed(conn, now + 1, "closed by the peer")
        assert neighbor.state is State.ACTIVE
        assert neighbor.next_timer() is None
    neighbor.handle_timer(now + 1000)
    neighbor.stop(now, None, admin_down=False)
    neighbor.start(now)
    assert not attempts(neighbor)
    assert neighbor.state is State.ACTIVE


def test_a_connection_is_accepted_in_idle_while_the_back_off_runs() -> None:
    neighbor = build()
    neighbor.start(NOW)
    refuse_tcp(neighbor)(attempts(neighbor)[0], NOW)
    assert neighbor.state is State.IDLE
    conn = neighbor.accept(NOW + 1)
    assert isinstance(conn, int)
    neighbor.receive_data(conn, PEER_OPEN + KEEPALIVE, NOW + 1)
    assert neighbor.state is State.ESTABLISHED
    assert neighbor.connection == conn
    at = neighbor.next_timer()
    assert at is not None and at > NOW + 20  # the keepalive, no attempt
    assert not attempts(neighbor)


def test_when_an_accepted_session_ends_connecting_goes_on() -> None:
    neighbor = build()
    neighbor.start(NOW)
    refuse_tcp(neighbor)(attempts(neighbor)[0], NOW)
    conn = neighbor.accept(NOW + 1)
    assert isinstance(conn, int)
    neighbor.receive_data(conn, PEER_OPEN + KEEPALIVE + Notification.cease(4).encode(), NOW + 1)
    assert drive(neighbor, 60, refuse_tcp(neighbor), NOW + 1)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda _: None, "not started"),
        (lambda neighbor: (neighbor.start(NOW), neighbor.stop(NOW, None, admin_down=True)), "not started"),
        (lambda neighbor: neighbor.reconfigure(replace(EXAMPLE, admin_down=True), NOW), "administratively down"),
    ],
)
def test_connections_that_are_refused(prepare: Callable[[Neighbor], object], words: str) -> None:
    neighbor = build()
    prepare(neighbor)
    refusal = neighbor.accept(NOW)
    assert isinstance(refusal, str) and words in refusal
    assert neighbor.counters.connections_refused == 1


def test_a_newer_connection_replaces_a_silent_one() -> None:
    """At most one half-open connection of the peer's, and a silent one cannot keep the peer out."""
    neighbor = build(replace(EXAMPLE, passive=True))
    neighbor.start(NOW)
    conns = [neighbor.accept(NOW + second) for second in range(50)]
    assert [event.conn for event in neighbor.events if isinstance(event, CloseRequested)] == conns[:-1]
    assert len(neighbor._sessions) == 1
    first = neighbor.control_output(int(conns[0]))
    assert first.endswith(Notification(6, 7).encode())
    neighbor.receive_data(int(conns[-1]), PEER_OPEN + KEEPALIVE, NOW + 50)
    assert neighbor.connection == conns[-1]


def test_beside_an_established_session_one_half_open_connection_at_most() -> None:
    neighbor = build(replace(EXAMPLE, passive=True))
    neighbor.start(NOW)
    conn = neighbor.accept(NOW)
    assert isinstance(conn, int)
    neighbor.receive_data(conn, PEER_OPEN + KEEPALIVE, NOW)
    for second in range(20):
        neighbor.accept(NOW + second)
        assert len(neighbor._sessions) <= 2
    assert neighbor.connection == conn


def test_nothing_is_kept_for_connections_that_are_gone() -> None:
    neighbor = build(replace(EXAMPLE, passive=True))
    neighbor.start(NOW)
    for second in range(20):
        conn = neighbor.accept(NOW + second)
        assert isinstance(conn, int)
        if second % 2:
            neighbor.receive_data(conn, b"GET /", NOW + second)
        neighbor.closed(conn, NOW + second, "closed by the peer")
    assert not neighbor._sessions and not neighbor._output and not neighbor.pending_output()


# --- stopping and changing ------------------------------------------------------------------------------------------


def joined(**changes: int) -> Pipe:
    pipe = Pipe(build(replace(EXAMPLE, **changes)), build(replace(MIRROR, passive=True), 1), ManualClock())
    pipe.start()
    pipe.run(1)
    assert pipe.joined()
    return pipe


def test_stop_with_a_reason_reaches_the_other_side() -> None:
    pipe = joined()
    left, right = pipe.neighbors
    left.stop(pipe.clock.now, Notification.cease(2, "node drain"), admin_down=True)
    pipe.collect(Side.LEFT)
    pipe.run(100)
    down = '6/2 Administrative Shutdown, message "node drain"'
    assert left.counters.last_down_reason == f"administratively down: NOTIFICATION {down}"
    assert right.counters.last_down_reason == f"peer ended the session: NOTIFICATION {down}"
    for side in Side:
        (event,) = pipe.events(side, SessionDown)
        assert isinstance(event, SessionDown) and not event.keep_routes
    assert pipe.states == (State.IDLE, State.ACTIVE)
    assert left.next_timer() is None


def test_stop_without_a_notification_lets_the_peer_keep_our_routes() -> None:
    pipe = joined()
    pipe.neighbors[0].stop(pipe.clock.now, None, admin_down=True)
    pipe.collect(Side.LEFT)
    pipe.run(1)
    (event,) = pipe.events(Side.RIGHT, SessionDown)
    assert isinstance(event, SessionDown) and event.keep_routes


def test_a_reset_comes_back_by_itself() -> None:
    pipe = joined()
    pipe.neighbors[0].stop(pipe.clock.now, Notification.cease(4), admin_down=False)
    pipe.collect(Side.LEFT)
    pipe.run(10)
    assert pipe.joined()
    assert pipe.neighbors[0].counters.established == 2


def test_admin_down_live_and_up_again() -> None:
    pipe = joined()
    left = pipe.neighbors[0]
    left.reconfigure(replace(left.config, admin_down=True), pipe.clock.now)
    pipe.collect(Side.LEFT)
    pipe.run(60)
    assert pipe.states == (State.IDLE, State.ACTIVE)
    left.start(pipe.clock.now)
    assert left.state is State.IDLE
    left.reconfigure(replace(left.config, admin_down=False), pipe.clock.now)
    pipe.collect(Side.LEFT)
    pipe.run(1)
    assert pipe.joined()


def test_changes_that_apply_live_touch_nothing() -> None:
    pipe = joined()
    left = pipe.neighbors[0]
    changed = replace(left.config, passive=True, hold_time=30, keepalive_time=7, restart_time=60, port=1179)
    assert not changed.needs_reset(left.config)
    left.reconfigure(changed, pipe.clock.now)
    pipe.collect(Side.LEFT)
    pipe.run(300)
    assert pipe.joined()
    assert left.counters.established == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"address": b"\x0a\0\0\1"},
        {"local_address": b"\x0a\0\0\1"},
        {"interface": "eth0"},
        {"local_as": 1},
        {"peer_as": 1},
        {"router_id": 1},
        {"families": (V4,)},
        {"graceful_restart": False},
    ],
)
def test_changes_that_need_a_reset(changes: dict[str, object]) -> None:
    assert replace(EXAMPLE, **changes).needs_reset(EXAMPLE)  # type: ignore[arg-type]


def test_the_order_of_families_needs_no_reset() -> None:
    assert not replace(EXAMPLE, families=(V6, V4)).needs_reset(EXAMPLE)


def test_becoming_passive_ends_the_attempts_and_becoming_active_begins_them() -> None:
    neighbor = build()
    neighbor.start(NOW)
    (conn,) = attempts(neighbor)
    neighbor.reconfigure(replace(EXAMPLE, passive=True), NOW)
    assert CloseRequested(conn) in neighbor.events
    assert neighbor.state is State.ACTIVE and neighbor.next_timer() is None
    neighbor.reconfigure(EXAMPLE, NOW + 1)
    assert drive(neighbor, 6, refuse_tcp(neighbor), NOW + 1)


# --- capabilities the peer refuses (RFC 5492 3) -----------------------------------------------------------------------


def test_2_7_is_tried_once_without_what_it_names_then_in_full() -> None:
    neighbor = build()
    neighbor.start(NOW)
    seen: list[set[int]] = []

    def fail(conn: int, now: float) -> None:
        neighbor.connected(conn, now)
        ours = Open.decode(neighbor.control_output(conn)[19:])
        seen.append({code for code, _ in ours.capabilities})
        neighbor.receive_data(conn, Notification(2, 7, bytes.fromhex("400200780200")).encode(), now)

    drive(neighbor, 60, fail)
    assert seen[:3] == [{1, 2, 64, 65}, {1, 65}, {1, 2, 64, 65}]


@pytest.mark.parametrize("refusal", [Notification(2, 7), Notification(2, 7, b"\x41"), Notification(2, 4)])
def test_a_peer_without_capabilities_gets_an_open_without_any(refusal: Notification) -> None:
    neighbor = build()
    neighbor.start(NOW)
    plain = Open(65002, 90, 0xC0000202).encode()

    def old_speaker(conn: int, now: float) -> None:
        neighbor.connected(conn, now)
        ours = Open.decode(neighbor.control_output(conn)[19:])
        neighbor.receive_data(conn, refusal.encode() if ours.capabilities else plain + KEEPALIVE, now)

    drive(neighbor, 20, old_speaker)
    assert neighbor.state is State.ESTABLISHED
    assert neighbor.negotiated is not None
    assert neighbor.negotiated.families == {V4}
    assert not neighbor.negotiated.four_octet_as
    assert neighbor.open_message().capabilities, "the next session is tried in full"


def test_one_family_refused_leaves_the_other() -> None:
    neighbor = build()
    neighbor.start(NOW)
    (conn,) = attempts(neighbor)
    neighbor.connected(conn, NOW)
    neighbor.receive_data(conn, Notification(2, 7, bytes.fromhex("010400020001")).encode(), NOW)
    assert "trying once without" in neighbor.counters.last_error
    assert Capabilities.parse(neighbor.open_message().capabilities).families == (V4,)


def test_the_only_family_is_never_left_out() -> None:
    neighbor = build(replace(EXAMPLE, families=(V6,)))
    neighbor.start(NOW)
    (conn,) = attempts(neighbor)
    neighbor.connected(conn, NOW)
    neighbor.receive_data(conn, Notification(2, 7, bytes.fromhex("010400020001")).encode(), NOW)
    assert Capabilities.parse(neighbor.open_message().capabilities).families == (V6,)


# --- what it tells --------------------------------------------------------------------------------------------------


def test_states_are_told_in_order_with_reasons() -> None:
    pipe = joined()
    states = [
        (event.old, event.new) for event in pipe.events(Side.LEFT, StateChanged) if isinstance(event, StateChanged)
    ]
    order = [State.IDLE, State.CONNECT, State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED]
    assert states == list(pairwise(order))
    pipe.reset(Side.LEFT)
    for side in Side:
        assert all(event.reason for event in pipe.events(side, StateChanged) if isinstance(event, StateChanged))
        assert pipe.neighbors[side].counters.last_down_reason == "connection reset"


def test_established_tells_what_was_agreed() -> None:
    pipe = joined(hold_time=30)
    (event,) = pipe.events(Side.RIGHT, Established)
    assert isinstance(event, Established)
    negotiated = event.negotiated
    assert negotiated is pipe.neighbors[1].negotiated
    assert (negotiated.peer_as, negotiated.peer_router_id, negotiated.hold_time) == (65001, EXAMPLE.router_id, 30)
    assert negotiated.external and negotiated.four_octet_as and negotiated.route_refresh
    assert negotiated.families == {V4, V6}


def test_counters_count_both_sides_alike() -> None:
    pipe = joined()
    pipe.run(200)
    left, right = (neighbor.counters for neighbor in pipe.neighbors)
    assert left.keepalives_sent == right.keepalives_received > 5
    assert left.opens_sent == right.opens_received == 1
    assert left.as_dict()["received"] == right.as_dict()["sent"]


def test_what_refused_us_is_not_hidden_by_what_comes_of_trying_again() -> None:
    """As BIRD does: after an error it closes each connection without a word for minutes."""
    neighbor = build()
    neighbor.start(NOW)
    attempt, later = attempts(neighbor), close_at_once(neighbor)
    answer(neighbor, Open(65009, 90, 9).encode())(attempt[0], NOW + 1)
    drive(neighbor, 60, later, NOW + 1)
    refusal = "the peer says it is AS 65009, configured is AS 65002 (sent NOTIFICATION 2/2 Bad Peer AS)"
    assert neighbor.counters.last_error == "closed by the peer"
    assert (neighbor.counters.refusal, neighbor.counters.refusal_at) == (refusal, NOW + 1)
    assert neighbor.state is not State.ESTABLISHED
    drive(neighbor, 60, answer(neighbor, PEER_OPEN, KEEPALIVE), NOW + 61)
    assert neighbor.state is State.ESTABLISHED
    assert neighbor.counters.refusal == ""


def test_who_waits_to_try_again_was_not_left_without_an_answer() -> None:
    neighbor = build()
    neighbor.start(NOW)
    now, reasons, lost = NOW, set(), close_at_once(neighbor)
    while now < NOW + 60:
        for event in neighbor.events:
            if isinstance(event, StateChanged) and event.old is State.ACTIVE:
                reasons.add(event.reason)
        for conn in attempts(neighbor):
            lost(conn, now)
        now = neighbor.next_timer() or NOW + 60
        neighbor.handle_timer(now)
    assert reasons == {"connecting again"}
