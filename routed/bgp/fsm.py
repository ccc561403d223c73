"""The finite state machine of one BGP connection: a table, executed as it stands (RFC 4271 8).

Rules:
- Everything that decides a transition is in `TRANSITIONS`, keyed (State, Event). A session looks its row up, performs
  the row's actions in order and takes the row's state; it has no other way to change state.
- The table is total. Pairs the RFC does not name are errors of the state machine: 5/1, 5/2, 5/3 of RFC 6608 where a
  message came in the wrong state, 5/0 for the rest.
- Events are already judged: an OPEN that breaks a rule arrives as OPEN_MESSAGE_ERROR with its NOTIFICATION ready, so
  each row has one next state.
- The table knows no neighbour, timer value or octet; the words it uses for them are `Action`s.

Where it differs from 8.2.2, on purpose:
- Back-off: every row that gives a connection up counts the failure (ConnectRetryCounter) and starts the IdleHoldTimer,
  the damping RFC 4271 leaves open. The RFC names some of these rows without the counter; a peer that always refuses
  must slow us down on every path.
- A NOTIFICATION is never answered, in OpenSent either (8.2.2 lists event 25 there among the FSM errors; 6.4: no reply).
- Message header errors in Established are reported as such (6.1), not as FSM errors.
- A second OPEN on one connection is an unexpected message (RFC 6608), not a collision: that is between connections.
- A passive start never starts the ConnectRetryTimer: a passive neighbour must not connect.
- The DelayOpen option is not implemented, so its events (12, 20) do not exist; neither do 14 and 15, which judge a TCP
  connection before it is accepted: that happens before the session exists.
- SEND_HOLD_TIMER_EXPIRES is event 29 of RFC 9687. ROUTE_REFRESH has no number; it is judged as an UPDATE is.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class State(enum.IntEnum):
    """RFC 4271 8.2.2, nearest to Established last."""

    IDLE = 0
    CONNECT = 1
    ACTIVE = 2
    OPEN_SENT = 3
    OPEN_CONFIRM = 4
    ESTABLISHED = 5

    @property
    def label(self) -> str:
        """The RFC's spelling: `OpenSent`."""
        return _LABELS[self]


_LABELS = {
    State.IDLE: "Idle",
    State.CONNECT: "Connect",
    State.ACTIVE: "Active",
    State.OPEN_SENT: "OpenSent",
    State.OPEN_CONFIRM: "OpenConfirm",
    State.ESTABLISHED: "Established",
}


class Event(enum.IntEnum):
    """RFC 4271 8.1, under its numbers; 29 is RFC 9687's. 100 and above have none."""

    MANUAL_START = 1
    MANUAL_STOP = 2
    MANUAL_START_PASSIVE = 4
    AUTOMATIC_STOP = 8
    CONNECT_RETRY_TIMER_EXPIRES = 9
    HOLD_TIMER_EXPIRES = 10
    KEEPALIVE_TIMER_EXPIRES = 11
    IDLE_HOLD_TIMER_EXPIRES = 13
    TCP_CONNECTION_REQUEST_ACKED = 16
    TCP_CONNECTION_CONFIRMED = 17
    TCP_CONNECTION_FAILS = 18
    OPEN = 19
    HEADER_ERROR = 21
    OPEN_MESSAGE_ERROR = 22
    OPEN_COLLISION_DUMP = 23
    NOTIFICATION_VERSION_ERROR = 24
    NOTIFICATION = 25
    KEEPALIVE = 26
    UPDATE = 27
    UPDATE_ERROR = 28
    SEND_HOLD_TIMER_EXPIRES = 29
    ROUTE_REFRESH = 100


class Action(enum.StrEnum):
    """What a row has a session do."""

    CLEAR_RETRIES = "set the ConnectRetryCounter to zero"
    COUNT_RETRY = "add one to the ConnectRetryCounter"
    START_CONNECT_RETRY = "start the ConnectRetryTimer"
    STOP_CONNECT_RETRY = "stop the ConnectRetryTimer"
    START_IDLE_HOLD = "start the IdleHoldTimer"
    STOP_IDLE_HOLD = "stop the IdleHoldTimer"
    CONNECT = "begin a TCP connection"
    SEND_OPEN = "send an OPEN"
    START_LARGE_HOLD = "start the HoldTimer with 4 minutes"
    START_SESSION_TIMERS = "start the negotiated HoldTimer and KeepaliveTimer"
    RESTART_HOLD = "restart the HoldTimer"
    SEND_KEEPALIVE = "send a KEEPALIVE, restart the KeepaliveTimer"
    SEND_CEASE = "send a Cease, if there is one to send"
    SEND_NOTIFICATION = "send the NOTIFICATION the error asks for"
    SEND_HOLD_EXPIRED = "send NOTIFICATION 4/0"
    SEND_FSM_ERROR = "send NOTIFICATION 5/x"
    DELIVER = "hand the message on"
    DROP = "drop the TCP connection, release everything of the session"


class Transition(NamedTuple):
    """One row: what to do, in order, and the state after it."""

    actions: tuple[Action, ...]
    state: State


A, E, S = Action, Event, State

_IGNORE: tuple[Action, ...] = ()
_GIVE_UP = (A.STOP_CONNECT_RETRY, A.DROP, A.COUNT_RETRY, A.START_IDLE_HOLD)
_STARTS = (E.MANUAL_START, E.MANUAL_START_PASSIVE)
_SECOND_CONNECTION = (E.TCP_CONNECTION_REQUEST_ACKED, E.TCP_CONNECTION_CONFIRMED)

_REPORTED = (E.HEADER_ERROR, E.OPEN_MESSAGE_ERROR, E.OPEN_COLLISION_DUMP)

#: Rows all three states with a connection share.
_CONNECTED: dict[Event, Transition] = {
    **{event: Transition((A.SEND_FSM_ERROR, *_GIVE_UP), S.IDLE) for event in Event},
    **{event: Transition((A.SEND_NOTIFICATION, *_GIVE_UP), S.IDLE) for event in _REPORTED},
    E.MANUAL_STOP: Transition((A.SEND_CEASE, A.STOP_CONNECT_RETRY, A.STOP_IDLE_HOLD, A.DROP, A.CLEAR_RETRIES), S.IDLE),
    E.AUTOMATIC_STOP: Transition((A.SEND_CEASE, *_GIVE_UP), S.IDLE),
    E.HOLD_TIMER_EXPIRES: Transition((A.SEND_HOLD_EXPIRED, *_GIVE_UP), S.IDLE),
    # RFC 9687 4: the connection is stuck, a NOTIFICATION would not pass either
    E.SEND_HOLD_TIMER_EXPIRES: Transition(_GIVE_UP, S.IDLE),
    E.TCP_CONNECTION_FAILS: Transition(_GIVE_UP, S.IDLE),
    E.NOTIFICATION: Transition(_GIVE_UP, S.IDLE),
    E.NOTIFICATION_VERSION_ERROR: Transition(_GIVE_UP, S.IDLE),
}


def _rows(
    state: State, base: dict[Event, Transition], changed: dict[Event, Transition]
) -> dict[tuple[State, Event], Transition]:
    return {(state, event): changed.get(event, base[event]) for event in Event}


def _stay(state: State, events: tuple[Event, ...]) -> dict[Event, Transition]:
    return {event: Transition(_IGNORE, state) for event in events}


TRANSITIONS: dict[tuple[State, Event], Transition] = {
    # 8.2.2 Idle: no connection; only a start or the end of the back-off leads out
    **_rows(
        S.IDLE,
        _stay(S.IDLE, tuple(Event)),
        {
            E.MANUAL_START: Transition(
                (A.CLEAR_RETRIES, A.STOP_IDLE_HOLD, A.START_CONNECT_RETRY, A.CONNECT), S.CONNECT
            ),
            E.MANUAL_START_PASSIVE: Transition((A.CLEAR_RETRIES, A.STOP_IDLE_HOLD), S.ACTIVE),
            E.MANUAL_STOP: Transition((A.STOP_IDLE_HOLD, A.CLEAR_RETRIES), S.IDLE),
            E.IDLE_HOLD_TIMER_EXPIRES: Transition((A.STOP_IDLE_HOLD, A.START_CONNECT_RETRY, A.CONNECT), S.CONNECT),
        },
    ),
    # Connect: waiting for a TCP connection of ours
    **_rows(
        S.CONNECT,
        {event: Transition(_GIVE_UP, S.IDLE) for event in Event},
        {
            **_stay(S.CONNECT, _STARTS),
            E.MANUAL_STOP: Transition((A.STOP_CONNECT_RETRY, A.DROP, A.CLEAR_RETRIES), S.IDLE),
            E.CONNECT_RETRY_TIMER_EXPIRES: Transition(
                (A.DROP, A.COUNT_RETRY, A.START_CONNECT_RETRY, A.CONNECT), S.CONNECT
            ),
            **{
                event: Transition((A.STOP_CONNECT_RETRY, A.SEND_OPEN, A.START_LARGE_HOLD), S.OPEN_SENT)
                for event in _SECOND_CONNECTION
            },
        },
    ),
    # Active: waiting for one of the peer's, or for the next attempt
    **_rows(
        S.ACTIVE,
        {event: Transition(_GIVE_UP, S.IDLE) for event in Event},
        {
            **_stay(S.ACTIVE, _STARTS),
            E.MANUAL_STOP: Transition((A.STOP_CONNECT_RETRY, A.DROP, A.CLEAR_RETRIES), S.IDLE),
            E.CONNECT_RETRY_TIMER_EXPIRES: Transition((A.START_CONNECT_RETRY, A.CONNECT), S.CONNECT),
            **{
                event: Transition((A.STOP_CONNECT_RETRY, A.SEND_OPEN, A.START_LARGE_HOLD), S.OPEN_SENT)
                for event in _SECOND_CONNECTION
            },
        },
    ),
    # OpenSent: our OPEN is out, theirs is awaited. A second connection is a session of its own (6.8).
    **_rows(
        S.OPEN_SENT,
        _CONNECTED,
        {
            **_stay(S.OPEN_SENT, _STARTS + _SECOND_CONNECTION),
            E.OPEN: Transition((A.STOP_CONNECT_RETRY, A.SEND_KEEPALIVE, A.START_SESSION_TIMERS), S.OPEN_CONFIRM),
            E.TCP_CONNECTION_FAILS: Transition((A.DROP, A.COUNT_RETRY, A.START_CONNECT_RETRY), S.ACTIVE),
        },
    ),
    # OpenConfirm: their OPEN was good, their KEEPALIVE is awaited
    **_rows(
        S.OPEN_CONFIRM,
        _CONNECTED,
        {
            **_stay(S.OPEN_CONFIRM, _STARTS + _SECOND_CONNECTION),
            E.KEEPALIVE_TIMER_EXPIRES: Transition((A.SEND_KEEPALIVE,), S.OPEN_CONFIRM),
            E.KEEPALIVE: Transition((A.RESTART_HOLD,), S.ESTABLISHED),
        },
    ),
    # Established: routes are exchanged
    **_rows(
        S.ESTABLISHED,
        _CONNECTED,
        {
            **_stay(S.ESTABLISHED, _STARTS + _SECOND_CONNECTION),
            E.KEEPALIVE_TIMER_EXPIRES: Transition((A.SEND_KEEPALIVE,), S.ESTABLISHED),
            E.KEEPALIVE: Transition((A.RESTART_HOLD,), S.ESTABLISHED),
            E.UPDATE: Transition((A.RESTART_HOLD, A.DELIVER), S.ESTABLISHED),
            E.ROUTE_REFRESH: Transition((A.RESTART_HOLD, A.DELIVER), S.ESTABLISHED),
            E.UPDATE_ERROR: Transition((A.SEND_NOTIFICATION, *_GIVE_UP), S.IDLE),
            E.OPEN_MESSAGE_ERROR: Transition((A.SEND_FSM_ERROR, *_GIVE_UP), S.IDLE),
        },
    ),
}


def diagram() -> str:
    """The table as a Mermaid state diagram: one edge for each pair of states, labelled with the events that take it."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (state, event), row in TRANSITIONS.items():
        if row.state is not state:
            edges.setdefault((state, row.state), []).append(event.name)
    lines = ["stateDiagram-v2", "    [*] --> Idle"]
    for (old, new), events in sorted(edges.items()):
        if new is State.IDLE and len(events) > 4:
            staying = [event.name for event in Event if TRANSITIONS[old, event].state is not State.IDLE]
            label = "any but " + ", ".join(staying)
        else:
            label = ", ".join(events)
        lines.append(f"    {old.label} --> {new.label}: {label}")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table as Markdown: a section a state, rows with the same effect on one line."""
    lines: list[str] = []
    for state in State:
        lines += [f"### {state.label}", "", "| events | actions | next |", "|---|---|---|"]
        rows: dict[Transition, list[str]] = {}
        for event in Event:
            rows.setdefault(TRANSITIONS[state, event], []).append(event.name)
        for row, events in rows.items():
            actions = "; ".join(row.actions) or "none"
            lines.append(f"| {', '.join(events)} | {actions} | {row.state.label} |")
        lines.append("")
    return "\n".join(lines)
