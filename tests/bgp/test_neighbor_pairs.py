"""Two neighbours joined by a pipe: collisions, graceful restart, and whatever faults a random network can make."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routed.bgp.capabilities import PeerRestart, multiprotocol
from routed.bgp.iana import MARKER
from routed.bgp.messages import KEEPALIVE, Capability, Notification, Open
from routed.bgp.neighbor import (
    COLLISION_PATIENCE,
    CloseRequested,
    ConnectRequested,
    Established,
    Neighbor,
    NeighborConfig,
    SessionDown,
    StaleExpired,
    State,
)
from routed.bgp.update import Update, end_of_rib
from routed.net.families import Family
from routed.testing.pipe import EXAMPLE, MIRROR, ManualClock, Pipe, Side, build

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
NOW = 1000.0
COLLISION = Notification(6, 7).encode()


def pair(left: NeighborConfig = EXAMPLE, right: NeighborConfig = MIRROR, **how: float) -> Pipe:
    return Pipe(build(left, 1), build(right, 2), ManualClock(NOW), **how)


# --- collisions (RFC 4271 6.8, RFC 6286 2.3) --------------------------------------------------------------------------


def initiator(pipe: Pipe) -> Side:
    """Who began the connection that is left."""
    (session,) = {pipe.neighbors[0]._sessions[pipe.neighbors[0].connection]}
    return Side.RIGHT if session.incoming else Side.LEFT


@pytest.mark.parametrize(
    ("ids", "numbers", "winner"),
    [
        ((1, 2), (65001, 65002), Side.RIGHT),
        ((2, 1), (65001, 65002), Side.LEFT),
        ((2, 1), (65002, 65001), Side.LEFT),
        ((0x7FFFFFFF, 0x80000000), (65001, 65002), Side.RIGHT),  # unsigned
        ((0xFFFFFFFF, 1), (65001, 65002), Side.LEFT),
        ((5, 5), (65001, 65002), Side.RIGHT),  # equal ids: the larger AS
        ((5, 5), (4200000001, 65002), Side.LEFT),
        ((1, 2), (65001, 65001), Side.RIGHT),
    ],
)
@pytest.mark.parametrize("stagger", [0.0, 0.0005, -0.0005], ids=["together", "left first", "right first"])
def test_both_connect_at_once(ids: tuple[int, int], numbers: tuple[int, int], winner: Side, stagger: float) -> None:
    left = replace(EXAMPLE, router_id=ids[0], local_as=numbers[0], peer_as=numbers[1])
    right = replace(MIRROR, router_id=ids[1], local_as=numbers[1], peer_as=numbers[0])
    pipe = pair(left, right)
    first, second = (Side.LEFT, Side.RIGHT) if stagger >= 0 else (Side.RIGHT, Side.LEFT)
    pipe.neighbors[first].start(pipe.clock.now)
    pipe.collect(first)
    pipe.run(abs(stagger))
    pipe.neighbors[second].start(pipe.clock.now)
    pipe.collect(second)
    pipe.run(1)
    assert pipe.joined()
    assert initiator(pipe) is winner
    assert any(one.data.endswith(COLLISION) for one in pipe.sent)
    for neighbor in pipe.neighbors:
        assert neighbor.counters.established == 1
        assert not neighbor.counters.last_error, "a collision is nobody's mistake"
        assert len(neighbor._sessions) == 1
    pipe.run(600)
    assert pipe.joined() and all(neighbor.counters.established == 1 for neighbor in pipe.neighbors)


def peer_open(router_id: int = 2, *, restart: bool = False) -> bytes:
    capabilities = (Capability(1, bytes.fromhex("00010001")),)
    if restart:
        capabilities += (Capability(64, bytes.fromhex("003c" + "00010100")),)
    return Open(65002, 90, router_id, capabilities).encode()


def colliding() -> tuple[Neighbor, int, int]:
    """A neighbour with a connection of each side, both in OpenSent: (it, ours, theirs)."""
    neighbor = build(replace(EXAMPLE, router_id=10))
    neighbor.start(NOW)
    ours = next(event.conn for event in neighbor.events if hasattr(event, "conn"))
    neighbor.connected(ours, NOW)
    theirs = neighbor.accept(NOW)
    assert isinstance(theirs, int)
    for conn in (ours, theirs):
        neighbor.control_output(conn)
    neighbor.events = []
    return neighbor, ours, theirs


@pytest.mark.parametrize("peer_id", [2, 20], ids=["our id is higher", "theirs is higher"])
@pytest.mark.parametrize("ours_first", [True, False], ids=["OPEN on ours first", "OPEN on theirs first"])
def test_the_loser_gets_exactly_cease_7(peer_id: int, ours_first: bool) -> None:
    neighbor, ours, theirs = colliding()
    winner, loser = (ours, theirs) if peer_id < 10 else (theirs, ours)
    for conn in (ours, theirs) if ours_first else (theirs, ours):
        neighbor.receive_data(conn, peer_open(peer_id), NOW)
    assert neighbor.control_output(loser).endswith(COLLISION)
    assert neighbor.control_output(winner) == KEEPALIVE
    assert CloseRequested(loser) in neighbor.events and CloseRequested(winner) not in neighbor.events
    neighbor.receive_data(winner, KEEPALIVE, NOW)
    assert neighbor.connection == winner


def test_a_bad_open_loses_without_a_collision() -> None:
    neighbor, ours, theirs = colliding()
    neighbor.receive_data(ours, peer_open(20), NOW)
    neighbor.receive_data(theirs, Open(65009, 90, 20).encode(), NOW)
    assert neighbor.control_output(theirs).endswith(Notification(2, 2).encode())
    neighbor.receive_data(ours, KEEPALIVE, NOW)
    assert neighbor.connection == ours


@pytest.mark.parametrize("peer_id", [2, 20], ids=["our id is higher", "theirs is higher"])
@pytest.mark.parametrize("ours_first", [True, False], ids=["OPEN on ours first", "OPEN on theirs first"])
def test_the_peer_is_made_established_on_neither_before_it_is_decided(peer_id: int, ours_first: bool) -> None:
    """A peer that is Established on the one that ends would end the other as well."""
    neighbor, ours, theirs = colliding()
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    neighbor.receive_data(first, peer_open(peer_id) + KEEPALIVE, NOW)
    neighbor.handle_timer(NOW + COLLISION_PATIENCE - 0.1)
    assert not neighbor.pending_output() and not neighbor.events
    neighbor.receive_data(second, peer_open(peer_id), NOW + COLLISION_PATIENCE - 0.1)
    winner, loser = (ours, theirs) if peer_id < 10 else (theirs, ours)
    assert neighbor.control_output(loser) == COLLISION
    assert neighbor.control_output(winner) == KEEPALIVE
    neighbor.receive_data(winner, KEEPALIVE, NOW + COLLISION_PATIENCE)
    assert neighbor.connection == winner


@pytest.mark.parametrize("ours_first", [True, False], ids=["OPEN on ours", "OPEN on theirs"])
def test_what_waited_for_another_connection_goes_on_once_that_has_ended(ours_first: bool) -> None:
    neighbor, ours, theirs = colliding()
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    neighbor.receive_data(first, peer_open(20) + KEEPALIVE, NOW)
    neighbor.closed(second, NOW, "the peer closed the connection")
    assert neighbor.control_output(first) == KEEPALIVE
    assert neighbor.connection == first and neighbor.counters.established == 1


@pytest.mark.parametrize("ours_first", [True, False], ids=["OPEN on ours", "OPEN on theirs"])
def test_a_connection_that_says_nothing_is_waited_for_only_so_long(ours_first: bool) -> None:
    neighbor, ours, theirs = colliding()
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    neighbor.receive_data(first, peer_open(20) + KEEPALIVE, NOW + 1)
    at = neighbor.next_timer()
    assert at == NOW + COLLISION_PATIENCE
    neighbor.handle_timer(at)
    assert neighbor.connection == first
    assert neighbor.control_output(second) == COLLISION


def test_an_attempt_that_is_made_anew_is_not_waited_for_anew() -> None:
    neighbor = build(replace(EXAMPLE, connect_retry_time=1.0))
    neighbor.start(NOW)
    theirs = neighbor.accept(NOW)
    assert isinstance(theirs, int)
    neighbor.receive_data(theirs, peer_open(20) + KEEPALIVE, NOW)
    while (at := neighbor.next_timer()) is not None and at <= NOW + COLLISION_PATIENCE:
        assert neighbor.connection == 0
        neighbor.handle_timer(at)
    assert neighbor.connection == theirs
    assert sum(isinstance(event, ConnectRequested) for event in neighbor.events) > 1


def test_a_peer_that_floods_what_waits_is_not_waited_with() -> None:
    neighbor, ours, _ = colliding()
    neighbor.receive_data(ours, peer_open(20), NOW)
    neighbor.receive_data(ours, end_of_rib(V4), NOW)
    assert neighbor.control_output(ours).startswith(KEEPALIVE + MARKER), "an UPDATE came too early: NOTIFICATION 5/2"


def answered() -> tuple[Neighbor, int, int]:
    """Ours is in OpenConfirm, our KEEPALIVE is out, and then the peer's arrives: (the neighbour, ours, theirs)."""
    neighbor = build(replace(EXAMPLE, router_id=10))
    neighbor.start(NOW)
    ours = next(event.conn for event in neighbor.events if isinstance(event, ConnectRequested))
    neighbor.connected(ours, NOW)
    neighbor.receive_data(ours, peer_open(20), NOW)
    theirs = neighbor.accept(NOW)
    assert isinstance(theirs, int)
    for conn in (ours, theirs):
        neighbor.control_output(conn)
    return neighbor, ours, theirs


def test_a_peer_that_may_be_established_on_ours_decides_for_its_own() -> None:
    neighbor, ours, theirs = answered()
    neighbor.receive_data(ours, KEEPALIVE, NOW)
    neighbor.receive_data(theirs, peer_open(20), NOW)
    assert neighbor.state is State.OPEN_CONFIRM
    assert neighbor.control_output(theirs) == KEEPALIVE and not neighbor.control_output(ours)
    neighbor.receive_data(theirs, KEEPALIVE, NOW)
    assert neighbor.connection == theirs
    assert neighbor.control_output(ours) == COLLISION


@pytest.mark.parametrize("how", ["closed", "NOTIFICATION", "UPDATE", "patience"])
def test_a_peer_that_may_be_established_on_ours_decides_for_ours(how: str) -> None:
    neighbor, ours, theirs = answered()
    neighbor.receive_data(ours, KEEPALIVE, NOW)
    neighbor.receive_data(theirs, peer_open(20), NOW)
    neighbor.control_output(theirs)
    assert neighbor.connection == 0
    if how == "closed":
        neighbor.closed(theirs, NOW, "the peer closed the connection")
    elif how == "NOTIFICATION":
        neighbor.receive_data(theirs, COLLISION, NOW)
    elif how == "UPDATE":
        neighbor.receive_data(ours, end_of_rib(V4), NOW)
    else:
        neighbor.handle_timer(NOW + COLLISION_PATIENCE)
    assert neighbor.connection == ours and neighbor.counters.established == 1
    assert neighbor.control_output(theirs) == (COLLISION if how in ("UPDATE", "patience") else b"")


def test_where_the_peer_decides_nothing_the_rule_does() -> None:
    neighbor, ours, theirs = answered()
    neighbor.receive_data(theirs, peer_open(20), NOW)
    neighbor.control_output(theirs)
    neighbor.handle_timer(NOW + COLLISION_PATIENCE)
    assert neighbor.control_output(ours) == COLLISION
    neighbor.receive_data(theirs, KEEPALIVE, NOW + COLLISION_PATIENCE)
    assert neighbor.connection == theirs


def established(*, restart: bool, graceful_restart: bool = True) -> tuple[Neighbor, int]:
    neighbor = build(replace(EXAMPLE, passive=True, graceful_restart=graceful_restart))
    neighbor.start(NOW)
    conn = neighbor.accept(NOW)
    assert isinstance(conn, int)
    neighbor.receive_data(conn, peer_open(restart=restart) + KEEPALIVE, NOW)
    assert neighbor.connection == conn
    neighbor.control_output(conn)
    neighbor.events = []
    return neighbor, conn


@pytest.mark.parametrize(("restart", "graceful_restart"), [(False, True), (True, False)])
def test_an_established_session_wins_over_a_new_connection(restart: bool, graceful_restart: bool) -> None:
    neighbor, conn = established(restart=restart, graceful_restart=graceful_restart)
    second = neighbor.accept(NOW + 50)
    assert isinstance(second, int)
    neighbor.control_output(second)
    neighbor.receive_data(second, peer_open(restart=restart) + KEEPALIVE, NOW + 50)
    assert neighbor.control_output(second) == COLLISION
    assert neighbor.connection == conn and neighbor.state is State.ESTABLISHED


def test_with_graceful_restart_the_new_open_replaces_the_session() -> None:
    """RFC 4724 4.2: the peer has restarted and our TCP has not noticed."""
    neighbor, conn = established(restart=True)
    second = neighbor.accept(NOW + 50)
    assert isinstance(second, int)
    assert neighbor.connection == conn, "a connection that has said nothing replaces nobody"
    neighbor.receive_data(second, peer_open(restart=True), NOW + 50)
    (down,) = [event for event in neighbor.events if isinstance(event, SessionDown)]
    assert down.keep_routes and down.families == {V4}
    assert CloseRequested(conn) in neighbor.events
    assert neighbor.control_output(conn) == b"", "the old connection is dropped without a NOTIFICATION"
    neighbor.receive_data(second, KEEPALIVE, NOW + 50)
    assert neighbor.connection == second
    assert not any(isinstance(event, StaleExpired) for event in neighbor.events)
    neighbor.handle_timer(NOW + 130)
    assert not any(isinstance(event, StaleExpired) for event in neighbor.events)


def test_a_silent_connection_replaces_nobody() -> None:
    neighbor, conn = established(restart=True)
    second = neighbor.accept(NOW + 50)
    assert isinstance(second, int)
    neighbor.control_output(second)
    for later in range(50, 291, 10):
        neighbor.receive_data(conn, KEEPALIVE, NOW + later)
        neighbor.handle_timer(NOW + later)
    assert neighbor.connection == conn
    assert neighbor.control_output(second) == Notification(4).encode()
    assert neighbor.counters.last_error == "the peer sent no OPEN within 240 s of connecting"


def test_a_bad_open_replaces_nobody() -> None:
    neighbor, conn = established(restart=True)
    second = neighbor.accept(NOW + 50)
    assert isinstance(second, int)
    neighbor.receive_data(second, Open(65009, 90, 2).encode(), NOW + 50)
    assert neighbor.connection == conn


def test_a_connection_that_arrives_as_the_session_comes_up_is_no_restart_and_is_not_answered() -> None:
    """Our OPEN on it, read before our KEEPALIVE on the other, would make the peer end the other."""
    neighbor, conn = established(restart=True)
    assert neighbor.accept(NOW + 0.5) == 0 and not neighbor.counters.connections_refused
    assert not neighbor.pending_output() and neighbor.connection == conn


# --- graceful restart (RFC 4724) --------------------------------------------------------------------------------------


def joined(left: NeighborConfig = EXAMPLE, right: NeighborConfig | None = None) -> Pipe:
    pipe = pair(left, right or replace(MIRROR, passive=True))
    pipe.start()
    pipe.run(1)
    assert pipe.joined()
    return pipe


def down(pipe: Pipe, side: Side) -> SessionDown:
    event = pipe.events(side, SessionDown)[-1]
    assert isinstance(event, SessionDown)
    return event


def test_loss_of_tcp_keeps_routes_until_the_peer_is_back() -> None:
    pipe = joined()
    pipe.reset(Side.LEFT)
    for side in Side:
        assert down(pipe, side).keep_routes and down(pipe, side).families == {V4, V6}
    pipe.run(60)
    assert pipe.joined()
    assert not pipe.events(Side.LEFT, StaleExpired)
    pipe.run(200)
    assert not pipe.events(Side.LEFT, StaleExpired) and not pipe.events(Side.RIGHT, StaleExpired)


def test_routes_expire_after_the_restart_time_the_peer_gave() -> None:
    pipe = joined(right=replace(MIRROR, passive=True, restart_time=33))
    pipe.listening = [False, False]
    began = pipe.clock.now
    pipe.reset(Side.LEFT)
    pipe.run(32.9)
    assert not pipe.events(Side.LEFT, StaleExpired)
    pipe.run(0.2)
    (expired,) = [one for one in pipe.log if one.side is Side.LEFT and isinstance(one.event, StaleExpired)]
    assert expired.at == pytest.approx(began + 33)
    pipe.run(600)
    assert len(pipe.events(Side.LEFT, StaleExpired)) == 1


@pytest.mark.parametrize(
    "end",
    [
        lambda pipe: pipe.neighbors[1].stop(pipe.clock.now, Notification.cease(2), admin_down=True),
        lambda pipe: pipe.neighbors[1].stop(pipe.clock.now, Notification.cease(4), admin_down=False),
        lambda pipe: pipe.send(Side.RIGHT, b"\0" * 19),
        lambda pipe: pipe.send(Side.LEFT, b"\0" * 19),
    ],
    ids=["shutdown", "reset", "we send a NOTIFICATION", "we receive one"],
)
def test_a_notification_keeps_nothing(end: Callable[[Pipe], None]) -> None:
    pipe = joined()
    end(pipe)
    pipe.collect(Side.RIGHT)
    pipe.run(1)
    for side in Side:
        assert not down(pipe, side).keep_routes
        assert not down(pipe, side).families
    pipe.run(300)
    assert not pipe.events(Side.LEFT, StaleExpired)


def test_hold_timer_expiry_keeps_nothing() -> None:
    """RFC 4724 knows only the loss of TCP; keeping routes past a NOTIFICATION is RFC 8538, which is not spoken."""
    pipe = joined()
    pipe.silent = True
    pipe.run(91)
    for side in Side:
        assert down(pipe, side) == SessionDown("hold timer expired after 90 s", False)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (replace(EXAMPLE, graceful_restart=False), MIRROR),
        (EXAMPLE, replace(MIRROR, graceful_restart=False)),
        (EXAMPLE, replace(MIRROR, restart_time=0)),
    ],
)
def test_without_graceful_restart_on_both_sides_nothing_is_kept(left: NeighborConfig, right: NeighborConfig) -> None:
    pipe = joined(left, replace(right, passive=True))
    pipe.reset(Side.LEFT)
    assert not down(pipe, Side.LEFT).keep_routes


@pytest.mark.parametrize(
    ("peer_families", "kept"), [((V4, V6), {V4}), ((V4,), {V4}), ((V6,), set())], ids=["both", "IPv4", "IPv6"]
)
def test_only_families_that_are_negotiated_and_restartable_are_kept(
    peer_families: tuple[Family, ...], kept: set[Family]
) -> None:
    neighbor = build(replace(EXAMPLE, passive=True))
    neighbor.start(NOW)
    conn = neighbor.accept(NOW)
    assert isinstance(conn, int)
    capabilities = (*map(multiprotocol, peer_families), Capability(64, PeerRestart(60, False, {V4: True}).encode()))
    neighbor.receive_data(conn, Open(65002, 90, 2, capabilities).encode() + KEEPALIVE, NOW)
    neighbor.closed(conn, NOW + 1, "connection reset")
    (event,) = [event for event in neighbor.events if isinstance(event, SessionDown)]
    assert event == SessionDown("connection reset", bool(kept), frozenset(kept))


def test_an_administrator_does_not_wait_for_stale_routes() -> None:
    pipe = joined()
    pipe.listening = [False, False]
    pipe.reset(Side.LEFT)
    left = pipe.neighbors[0]
    left.stop(pipe.clock.now, None, admin_down=True)
    assert StaleExpired("is not waited for any more") in left.events


def test_a_restarting_speaker_says_so_until_it_is_up() -> None:
    pipe = pair(EXAMPLE, replace(MIRROR, passive=True))
    pipe.neighbors[0].restarting(frozenset({V4}))
    pipe.start()
    pipe.run(1)
    told = pipe.neighbors[1].negotiated
    assert told is not None and told.graceful_restart is not None
    assert told.graceful_restart.restarting
    assert told.graceful_restart.families == {V4: True, V6: False}
    pipe.reset(Side.LEFT)
    pipe.run(30)
    told = pipe.neighbors[1].negotiated
    assert told is not None and told.graceful_restart is not None
    assert not told.graceful_restart.restarting
    assert told.graceful_restart.families == {V4: False, V6: False}


def test_a_restart_that_is_over_is_no_longer_told() -> None:
    pipe = pair(EXAMPLE, replace(MIRROR, passive=True))
    pipe.neighbors[0].restarting(frozenset({V4, V6}))
    pipe.neighbors[0].restarting(None)
    pipe.start()
    pipe.run(1)
    told = pipe.neighbors[1].negotiated
    assert told is not None and told.graceful_restart is not None
    assert not told.graceful_restart.restarting and not any(told.graceful_restart.families.values())


# --- any network ------------------------------------------------------------------------------------------------------


def check(pipe: Pipe) -> None:
    """What must hold whatever the network did."""
    for side in Side:
        neighbor = pipe.neighbors[side]
        assert len(neighbor._sessions) <= 3
        up = False
        for one in pipe.log:
            if one.side is side:
                if isinstance(one.event, Established):
                    assert not up
                    up = True
                elif isinstance(one.event, SessionDown):
                    assert up and one.event.reason
                    up = False
                elif isinstance(one.event, Update):
                    assert up
        assert up == (neighbor.state is State.ESTABLISHED) == bool(neighbor.connection)


fault = st.sampled_from(["reset", "reset one side", "silence", "deaf left", "deaf right", "stop", "update", "wait"])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(fault, st.floats(0, 100)), max_size=8),
    st.sampled_from([0.0, 0.001, 0.3]),
    st.sampled_from(["none", "left", "right"]),
    st.booleans(),
)
def test_any_faults_end_in_one_session(
    seed: int, faults: list[tuple[str, float]], latency: float, passive: str, restart: bool
) -> None:
    rng = random.Random(seed)
    left = replace(EXAMPLE, passive=passive == "left", graceful_restart=restart)
    right = replace(MIRROR, passive=passive == "right", router_id=rng.choice([1, 0xFFFFFFFF]))
    pipe = Pipe(build(left, seed), build(right, seed + 1), ManualClock(NOW), latency=latency, chop=rng)
    pipe.start()
    for name, seconds in faults:
        side = rng.choice(list(Side))
        if name.startswith("reset") and pipe.joined():
            pipe.reset(side, also_other=name == "reset")
        elif name == "silence":
            pipe.silent = True
        elif name == "deaf left":
            pipe.listening[0] = False
        elif name == "deaf right":
            pipe.listening[1] = False
        elif name == "stop":
            pipe.neighbors[side].stop(pipe.clock.now, rng.choice([None, Notification.cease(4)]), admin_down=False)
            pipe.collect(side)
        elif name == "update" and pipe.joined():
            pipe.send(side, end_of_rib(V4))
        pipe.run(seconds)
        check(pipe)
        pipe.silent, pipe.listening = False, [True, True]
    pipe.run(600)
    check(pipe)
    assert pipe.joined(), [neighbor.counters.last_error for neighbor in pipe.neighbors]
    before = [neighbor.counters.established for neighbor in pipe.neighbors]
    pipe.run(600)
    assert [neighbor.counters.established for neighbor in pipe.neighbors] == before, "and it stays"
