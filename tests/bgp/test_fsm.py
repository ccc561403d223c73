"""The state machine against an oracle written from RFC 4271 8.2.2, RFC 6608 and RFC 9687, not from the table."""

# ruff: noqa: ARG002 - the recording owner has a neighbour's signatures

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp import fsm
from routed.bgp.capabilities import Negotiated, negotiate
from routed.bgp.fsm import TRANSITIONS, Action, Event, State
from routed.bgp.messages import Capability, Notification, Open
from routed.bgp.session import NEVER, Counters, Session
from routed.bgp.update import AttributePool, Update
from routed.net.families import Family


class Owner:
    """A neighbour that writes down what its session asks for."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.written = bytearray()
        self.released: list[int] = []
        self.requested = 0
        self.retries = 0
        self.changes: list[tuple[State, State, str]] = []
        self.updates: list[Update] = []
        self.refreshed: list[Family] = []

    def open_message(self) -> Open:
        return Open(65001, 90, 1, (Capability(1, bytes.fromhex("00010001")),))

    def judge_open(self, session: Session, theirs: Open, now: float) -> Negotiated | None:
        return negotiate(self.open_message(), theirs, local_as=65001, peer_as=65002)

    def notification_received(self, session: Session, notification: Notification) -> str:
        return f"peer: {notification.text()}"

    def request_connection(self, session: Session) -> int:
        self.requested += 1
        return 100 + self.requested

    def release_connection(self, conn: int) -> None:
        self.released.append(conn)

    def write(self, conn: int, data: bytes) -> None:
        assert conn, "nothing may be written without a connection"
        self.written += data

    def update_sink(self) -> Callable[[Update], None]:
        return self.updates.append

    def refresh_received(self, family: Family) -> None:
        self.refreshed.append(family)

    def retry_delay(self) -> float:
        return 5.0

    def count_retry(self, session: Session, event: Event, reason: str, reply: Notification | None, now: float) -> None:
        self.retries += 1

    def clear_retries(self, session: Session) -> None:
        self.retries = 0

    def state_changed(
        self, session: Session, old: State, event: Event, reason: str, now: float, reply: Notification | None
    ) -> None:
        self.changes.append((old, session.state, reason))

    def messages(self) -> list[tuple[int, bytes]]:
        """What was written since the last call, as (type, body)."""
        found, data = [], bytes(self.written)
        self.written.clear()
        while data:
            size = int.from_bytes(data[16:18], "big")
            found.append((data[18], data[19:size]))
            data = data[size:]
        return found


PEER_OPEN = Open(65002, 90, 2).encode()


def session_in(state: State) -> tuple[Session, Owner]:
    """A session brought to a state by events alone."""
    owner = Owner()
    session = Session(owner, rng=random.Random(1), pool=AttributePool(), incoming=False)
    if state is State.ACTIVE:
        session.handle(Event.MANUAL_START_PASSIVE, 0.0)
    elif state is not State.IDLE:
        session.handle(Event.MANUAL_START, 0.0)
    if state >= State.OPEN_SENT:
        session.opened(Event.TCP_CONNECTION_REQUEST_ACKED, 0.0)
    if state >= State.OPEN_CONFIRM:
        session.receive_data(PEER_OPEN, 0.0)
    if state >= State.ESTABLISHED:
        session.handle(Event.KEEPALIVE, 0.0)
    assert session.state is state
    owner.messages()
    owner.retries, owner.requested, owner.changes = 7, 0, []
    return session, owner


# --- the oracle -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What RFC 4271 asks for: next state, NOTIFICATION or KEEPALIVE or OPEN sent, TCP dropped, counter, new attempt."""

    state: State
    sends: str = ""
    drops: bool = False
    counter: str = "same"  # same, zero, more
    connects: bool = False


def oracle(state: State, event: Event) -> Expected:
    """RFC 4271 8.2.2, read state by state; deviations of fsm's docstring are marked with D."""
    number = int(event)
    match state:
        case State.IDLE:
            # "ManualStart ... sets ConnectRetryCounter to zero, starts the ConnectRetryTimer, initiates a TCP connection"
            if number == 1:
                return Expected(State.CONNECT, counter="zero", connects=True)
            if number == 4:
                return Expected(State.ACTIVE, counter="zero")
            if number == 13:
                return Expected(State.CONNECT, connects=True)
            # "The ManualStop event (Event 2) and AutomaticStop (Event 8) event are ignored in the Idle state", D: counter
            if number == 2:
                return Expected(State.IDLE, counter="zero")
            return Expected(State.IDLE)
        case State.CONNECT | State.ACTIVE:
            drops = state is State.CONNECT  # in Active there is no connection to drop
            if number in (1, 4):
                return Expected(state)
            if number == 2:
                return Expected(State.IDLE, drops=drops, counter="zero")
            if number == 9:
                # D: an attempt that timed out counts
                return Expected(
                    State.CONNECT, drops=drops, connects=True, counter="more" if state is State.CONNECT else "same"
                )
            if number in (16, 17):
                return Expected(State.OPEN_SENT, sends="OPEN")
            return Expected(State.IDLE, drops=drops, counter="more")
        case State.OPEN_SENT:
            if number in (1, 4, 16, 17):
                return Expected(state)
            if number == 2:
                return Expected(State.IDLE, sends="6/2", drops=True, counter="zero")
            if number == 8:
                return Expected(State.IDLE, sends="6/2", drops=True, counter="more")
            if number == 10:
                return Expected(State.IDLE, sends="4/0", drops=True, counter="more")
            if number == 18:
                return Expected(State.ACTIVE, drops=True, counter="more")
            if number == 19:
                return Expected(State.OPEN_CONFIRM, sends="KEEPALIVE")
            if number in (21, 22, 23):
                return Expected(State.IDLE, sends="given", drops=True, counter="more")
            if number in (24, 25):  # D: 25 without an answer, 24 counted
                return Expected(State.IDLE, drops=True, counter="more")
            if number == 29:
                return Expected(State.IDLE, drops=True, counter="more")
            if number in (26, 27, 28, 100):
                return Expected(State.IDLE, sends="5/1", drops=True, counter="more")
            return Expected(State.IDLE, sends="5/0", drops=True, counter="more")
        case State.OPEN_CONFIRM:
            if number in (1, 4, 16, 17):
                return Expected(state)
            if number == 2:
                return Expected(State.IDLE, sends="6/2", drops=True, counter="zero")
            if number == 8:
                return Expected(State.IDLE, sends="6/2", drops=True, counter="more")
            if number == 10:
                return Expected(State.IDLE, sends="4/0", drops=True, counter="more")
            if number == 11:
                return Expected(state, sends="KEEPALIVE")
            if number in (18, 24, 25, 29):
                return Expected(State.IDLE, drops=True, counter="more")
            if number in (21, 22, 23):
                return Expected(State.IDLE, sends="given", drops=True, counter="more")
            if number == 26:
                return Expected(State.ESTABLISHED)
            if number in (19, 27, 28, 100):
                return Expected(State.IDLE, sends="5/2", drops=True, counter="more")
            return Expected(State.IDLE, sends="5/0", drops=True, counter="more")
        case State.ESTABLISHED:
            if number in (1, 4, 16, 17, 26, 27, 100):
                return Expected(state)
            if number == 2:
                return Expected(State.IDLE, sends="6/2", drops=True, counter="zero")
            if number == 8:
                return Expected(State.IDLE, sends="6/2", drops=True, counter="more")
            if number == 10:
                return Expected(State.IDLE, sends="4/0", drops=True, counter="more")
            if number == 11:
                return Expected(state, sends="KEEPALIVE")
            if number in (18, 24, 25, 29):
                return Expected(State.IDLE, drops=True, counter="more")
            if number in (21, 23, 28):
                return Expected(State.IDLE, sends="given", drops=True, counter="more")
            if number in (19, 22):
                return Expected(State.IDLE, sends="5/3", drops=True, counter="more")
            return Expected(State.IDLE, sends="5/0", drops=True, counter="more")


GIVEN = Notification(3, 1, b"given")
CEASE = Notification.cease(2)
SENDS = {"": [], "OPEN": [1], "KEEPALIVE": [4]}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda value: value.name)
def test_every_pair_does_what_the_rfc_says(state: State, event: Event) -> None:
    expected = oracle(state, event)
    session, owner = session_in(state)
    had = session.conn
    if event in (Event.TCP_CONNECTION_REQUEST_ACKED, Event.TCP_CONNECTION_CONFIRMED) and state is State.ACTIVE:
        session.conn = 55
    if event is Event.ROUTE_REFRESH:
        session._body = bytes.fromhex("00010001")
    if event is Event.OPEN and state is State.OPEN_SENT:
        session.negotiated = negotiate(Open(65001, 90, 1), Open(65002, 90, 2), local_as=65001, peer_as=65002)
    elif event is Event.UPDATE and state is State.ESTABLISHED:
        session._body = bytes(4)
    reply = CEASE if event in (Event.MANUAL_STOP, Event.AUTOMATIC_STOP) else GIVEN
    session.handle(event, 10.0, "a reason", reply)

    assert session.state is expected.state
    messages = owner.messages()
    if "/" in expected.sends or expected.sends == "given":
        ((kind, body),) = messages
        assert kind == 3
        notification = Notification.decode(body)
        if expected.sends == "given":
            assert notification == GIVEN
        else:
            assert f"{notification.code}/{notification.subcode}" == expected.sends
            if notification.code == 5 and notification.subcode:
                assert len(notification.data) == 1  # RFC 6608 4: the type that came
    else:
        assert [kind for kind, _ in messages] == SENDS[expected.sends]
    assert owner.released == ([had] if expected.drops else [])
    assert owner.retries == {"same": 7, "zero": 0, "more": 8}[expected.counter]
    assert owner.requested == expected.connects
    if session.state is not state:
        assert [(old, new) for old, new, _ in owner.changes] == [(state, expected.state)]
        assert all(reason for _, _, reason in owner.changes)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda value: value.name)
def test_timers_run_only_where_they_mean_something(state: State, event: Event) -> None:
    session, _ = session_in(state)
    if state is State.ACTIVE and event in (Event.TCP_CONNECTION_REQUEST_ACKED, Event.TCP_CONNECTION_CONFIRMED):
        session.conn = 55
    if event is Event.OPEN and state is State.OPEN_SENT:
        session.negotiated = negotiate(Open(65001, 90, 1), Open(65002, 90, 2), local_as=65001, peer_as=65002)
    session._body = bytes.fromhex("00010001")
    session.handle(event, 10.0, "a reason", GIVEN)
    if session.state < State.OPEN_SENT:
        assert session._hold_at == session._keepalive_at == session._send_hold_at == NEVER
        assert session.negotiated is None and session._decode is None and not session._buffer
    else:
        assert session._hold_at != NEVER
        assert session._connect_retry_at == session._idle_hold_at == NEVER
    if session.state is State.CONNECT:
        assert session._connect_retry_at != NEVER, "an attempt must end"


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_total() -> None:
    assert set(TRANSITIONS) == set(itertools.product(State, Event))


def test_no_row_leaves_a_connection_without_dropping_it() -> None:
    for (state, event), row in TRANSITIONS.items():
        if state in (State.CONNECT, State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED) and row.state in (
            State.IDLE,
            State.ACTIVE,
        ):
            assert Action.DROP in row.actions, (state, event)
            sends = [action for action in row.actions if action.name.startswith("SEND_")]
            assert not sends or row.actions.index(sends[0]) < row.actions.index(Action.DROP)


def test_every_failure_is_counted_and_damped() -> None:
    """The back-off misses no path: only a manual stop ends without it."""
    for (state, event), row in TRANSITIONS.items():
        if state > State.IDLE and row.state is State.IDLE and event is not Event.MANUAL_STOP:
            assert Action.COUNT_RETRY in row.actions, (state, event)
            assert Action.START_IDLE_HOLD in row.actions, (state, event)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_any_sequence_of_events_keeps_the_invariants(events: list[Event]) -> None:
    owner = Owner()
    session = Session(owner, rng=random.Random(1), pool=AttributePool(), incoming=False)
    for now, event in enumerate(events):
        if event is Event.OPEN and session.state is State.OPEN_SENT:
            session.negotiated = negotiate(Open(65001, 90, 1), Open(65002, 90, 2), local_as=65001, peer_as=65002)
        if event in (Event.TCP_CONNECTION_REQUEST_ACKED, Event.TCP_CONNECTION_CONFIRMED) and not session.conn:
            if session.state is not State.ACTIVE:
                continue
            session.conn = 1000 + now
        session._body = bytes.fromhex("00010001")
        session.handle(event, float(now), "a reason", GIVEN)
        assert bool(session.conn) == (session.state not in (State.IDLE, State.ACTIVE))
        assert (session.negotiated is not None) == (session.state >= State.OPEN_CONFIRM)


# --- the documentation ----------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[2] / "docs" / "fsm.md"


def test_the_document_shows_this_table() -> None:
    """The document itself says how to renew it."""
    text = DOCUMENT.read_text()
    (shown,) = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert shown == fsm.diagram()
    assert fsm.table() in text
