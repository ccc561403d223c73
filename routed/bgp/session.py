"""One connection to a neighbour: stream -> messages -> events of the state machine, and the timers it runs.

A session performs what `fsm.TRANSITIONS` says and nothing else. It has no socket and no clock: octets and `now` (monotonic
seconds) come in, what it wants goes to its owner, the neighbour: octets to write, decoded UPDATEs, state changes.

Invariants:
- However a stream is cut, the same messages come out: a header is judged when its 19 octets are there, a body when all of
  it is. The one exception serves people: octets that can no longer become a marker are refused before 19 are there.
- After the connection is dropped no octet of it is looked at.
- A message about which the owner wants to be asked again stays at the beginning of the buffer, with all behind it.
- Timers are deadlines (infinity: not running); `next_timer` is the earliest, `handle_timer` acts on those that are due.
- The loop over UPDATEs in Established is the hot path: no object per message but the Update itself, and the row
  (ESTABLISHED, UPDATE) of the table written out, the hold timer being restarted once per call.

RFC 4271 6.1, 8, 10; RFC 6608; RFC 9687. Not here: more than one connection, back-off, graceful restart (`neighbor`).
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from typing import Protocol

from routed.bgp.capabilities import Negotiated
from routed.bgp.counters import Counters
from routed.bgp.errors import Finding, Severity
from routed.bgp.fsm import TRANSITIONS, Action, Event, State
from routed.bgp.iana import (
    HEADER_LENGTH,
    MARKER,
    MAX_MESSAGE,
    CeaseSubcode,
    FiniteStateMachineSubcode,
    MessageHeaderSubcode,
    MessageType,
    NotificationCode,
    OpenSubcode,
)
from routed.bgp.messages import (
    KEEPALIVE,
    MAXIMUM_LENGTH,
    MINIMUM_LENGTH,
    Notification,
    Open,
    refreshed_family,
    route_refresh,
)
from routed.bgp.update import AttributePool, DecodeContext, Update, UpdateDecoder
from routed.errors import PeerError
from routed.net.families import Family

NEVER = math.inf
"""The deadline of a timer that does not run."""

LARGE_HOLD_TIME = 240.0
"""Seconds to wait for an OPEN (RFC 4271 8.2.2: "a HoldTimer value of 4 minutes is suggested")."""

SEND_HOLD_TIME_MIN = 480.0
"""Seconds; the send hold time is this or twice the hold time, whichever is more (RFC 9687 5)."""

JITTER_MIN = 0.75
"""Timers run for this share of their time, or more, up to all of it (RFC 4271 10)."""

_UPDATE = MessageType.UPDATE.value
_UPDATE_OCTET = bytes((_UPDATE,))
_LENGTH_AND_TYPE = struct.Struct(">HB")

_EVENT_OF_TYPE = {
    MessageType.UPDATE.value: Event.UPDATE,
    MessageType.KEEPALIVE.value: Event.KEEPALIVE,
    MessageType.ROUTE_REFRESH.value: Event.ROUTE_REFRESH,
}

_TYPE_OF_EVENT = {
    Event.OPEN: MessageType.OPEN,
    Event.OPEN_MESSAGE_ERROR: MessageType.OPEN,
    Event.KEEPALIVE: MessageType.KEEPALIVE,
    Event.UPDATE: MessageType.UPDATE,
    Event.UPDATE_ERROR: MessageType.UPDATE,
    Event.ROUTE_REFRESH: MessageType.ROUTE_REFRESH,
}

_UNEXPECTED_IN = {
    State.OPEN_SENT: FiniteStateMachineSubcode.UNEXPECTED_MESSAGE_IN_OPENSENT,
    State.OPEN_CONFIRM: FiniteStateMachineSubcode.UNEXPECTED_MESSAGE_IN_OPENCONFIRM,
    State.ESTABLISHED: FiniteStateMachineSubcode.UNEXPECTED_MESSAGE_IN_ESTABLISHED,
}

_EVENT_OF_ERROR = {
    NotificationCode.MESSAGE_HEADER_ERROR.value: Event.HEADER_ERROR,
    NotificationCode.OPEN_MESSAGE_ERROR.value: Event.OPEN_MESSAGE_ERROR,
    NotificationCode.UPDATE_MESSAGE_ERROR.value: Event.UPDATE_ERROR,
}


class SessionOwner(Protocol):
    """What a session asks of its neighbour."""

    counters: Counters

    def open_message(self) -> Open:
        """The OPEN to send now."""

    def judge_open(self, session: Session, theirs: Open, now: float) -> Negotiated | None:
        """Accept a peer's OPEN, or raise PeerError; None where a collision ended this session meanwhile, or where it is to
        be asked again (`waits_until`)."""

    def may_come_up(self, session: Session, now: float) -> bool:
        """Whether the peer's first KEEPALIVE makes this session Established; False: ask again (`waits_until`)."""

    def notification_received(self, session: Session, notification: Notification) -> str:
        """Take note of a NOTIFICATION; the reason it gives the end of this session."""

    def silence(self) -> str:
        """What it may mean that the peer does not answer, to stand behind that; or empty."""

    def request_connection(self, session: Session) -> int:
        """Begin a TCP connection; its id."""

    def release_connection(self, conn: int) -> None:
        """Close a connection once what was written is out."""

    def write(self, conn: int, data: bytes) -> None: ...

    def update_sink(self) -> Callable[[Update], None]:
        """Where decoded UPDATEs go, for the duration of one call."""

    def refresh_received(self, family: Family) -> None: ...

    def retry_delay(self) -> float:
        """Seconds until the next attempt, jitter included."""

    def count_retry(self, session: Session, event: Event, reason: str, reply: Notification | None, now: float) -> None:
        """A connection is given up; `reply` is the NOTIFICATION of its end, sent or received."""

    def clear_retries(self, session: Session) -> None: ...

    def state_changed(
        self, session: Session, old: State, event: Event, reason: str, now: float, reply: Notification | None
    ) -> None: ...


class Session:
    """One instance of the state machine, with at most one connection at a time."""

    __slots__ = (
        "_body",
        "_buffer",
        "_connect_retry_at",
        "_decode",
        "_event",
        "_hold_at",
        "_idle_hold_at",
        "_keepalive_at",
        "_now",
        "_owner",
        "_pool",
        "_reason",
        "_reply",
        "_rng",
        "_send_hold_at",
        "asked_at",
        "conn",
        "incoming",
        "negotiated",
        "opened_at",
        "ours",
        "says_more",
        "state",
        "waits_until",
    )

    def __init__(self, owner: SessionOwner, *, rng: random.Random, pool: AttributePool, incoming: bool) -> None:
        self._owner = owner
        self._rng = rng
        self._pool = pool
        self.incoming = incoming
        self.state = State.IDLE
        self.conn = 0
        """Id of the connection, 0 without one."""
        self.ours: Open | None = None
        """The OPEN sent on this connection."""
        self.negotiated: Negotiated | None = None
        self.opened_at = 0.0
        """When this session began to connect, and later when it entered OpenSent."""
        self.waits_until = NEVER
        """Its owner wants to be asked again about the message at the beginning of the buffer: at once when something
        changes, by giving no octets, and at the latest then. Infinity: nothing waits."""
        self.asked_at = NEVER
        """When it was first asked about it."""
        self.says_more = False
        """Behind the message at hand there is more than may come before it is answered."""
        self._decode: Callable[[bytes], Update] | None = None
        self._buffer = b""
        self._connect_retry_at = self._idle_hold_at = NEVER
        self._hold_at = self._keepalive_at = self._send_hold_at = NEVER
        # the event being handled, for the actions
        self._body = b""
        self._event = Event.MANUAL_STOP
        self._now = 0.0
        self._reason = ""
        self._reply: Notification | None = None

    # ---------------------------------------------------------------- events

    def handle(self, event: Event, now: float, reason: str = "", reply: Notification | None = None) -> None:
        """Execute the row of (state, `event`). `reason` is a sentence for people, `reply` the NOTIFICATION at hand."""
        row = TRANSITIONS[self.state, event]
        self._event, self._now, self._reason, self._reply = event, now, reason, reply
        for action in row.actions:
            _PERFORM[action](self)
        old = self.state
        if row.state is not old:
            self.state = row.state
            self._owner.state_changed(self, old, event, self._reason, now, reply)

    def opened(self, event: Event, now: float) -> None:
        """TCP is there: one we asked for (event 16), or one we accepted (17)."""
        self.opened_at = now
        self.handle(event, now, "connected" if event is Event.TCP_CONNECTION_REQUEST_ACKED else "accepted a connection")

    def wait(self, now: float, since: float, patience: float) -> bool:
        """Ask again about the message at hand: until `patience` seconds after `since`, or after it was first asked."""
        self.asked_at = min(self.asked_at, now)
        until = min(since, self.asked_at) + patience
        if now >= until or self.says_more:
            self.asked_at = NEVER
            return False
        self.waits_until = until
        return True

    def lost(self, now: float, reason: str) -> None:
        """TCP is gone, or never came."""
        self.conn = 0
        self.handle(Event.TCP_CONNECTION_FAILS, now, reason)

    # ---------------------------------------------------------------- octets

    def receive_data(self, data: bytes, now: float) -> None:
        """Octets from the peer, cut anywhere."""
        buffer = self._buffer + data if self._buffer else data
        self._buffer = b""
        self.waits_until = NEVER
        decode = self._decode  # set in Established only
        deliver = self._owner.update_sink()
        unpack, startswith = _LENGTH_AND_TYPE.unpack_from, buffer.startswith
        position, end, updates = 0, len(buffer), 0
        try:
            while (body := position + HEADER_LENGTH) <= end:
                if not startswith(MARKER, position):
                    raise _not_synchronized()
                length, kind = unpack(buffer, position + 16)
                stop = position + length
                if kind == _UPDATE and decode is not None and 23 <= length <= MAX_MESSAGE:
                    if stop > end:
                        break
                    updates += 1
                    update = decode(buffer[body:stop])
                    deliver(update)
                    if update.findings:
                        self._count_findings(update.findings)
                    position = stop
                    continue
                _check_header(length, kind)
                if stop > end:
                    break
                self.says_more = end - stop > MAX_MESSAGE or buffer[stop + 18 : stop + 19] == _UPDATE_OCTET
                self._receive_message(kind, buffer[body:stop], now)
                if not self.conn:
                    return
                if self.waits_until != NEVER:
                    break
                position = stop
                decode = self._decode
            else:
                if position < end and not MARKER.startswith(buffer[position : position + 16]):
                    raise _not_synchronized()
        except PeerError as error:
            reply = Notification(error.code, error.subcode, error.data)
            self.handle(_EVENT_OF_ERROR[error.code], now, f"{error} (sent NOTIFICATION {reply.text()})", reply)
            return
        finally:
            if updates:
                self._owner.counters.updates_received += updates
        self._buffer = buffer[position:]
        if updates:
            self._restart_hold(now)

    def _receive_message(self, kind: int, body: bytes, now: float) -> None:
        """Any whole message but an UPDATE in Established."""
        counters = self._owner.counters
        if kind == MessageType.OPEN:
            try:
                self._receive_open(body, now)
            finally:
                counters.opens_received += self.waits_until == NEVER
            return
        if kind == MessageType.NOTIFICATION:
            counters.notifications_received += 1
            notification = Notification.decode(body)
            counters.count_notification("received", notification)
            reason = self._owner.notification_received(self, notification)
            wrong_version = (notification.code, notification.subcode) == (
                NotificationCode.OPEN_MESSAGE_ERROR,
                OpenSubcode.UNSUPPORTED_VERSION_NUMBER,
            )
            event = Event.NOTIFICATION_VERSION_ERROR if wrong_version else Event.NOTIFICATION
            self.handle(event, now, reason, notification)
            return
        if kind == MessageType.KEEPALIVE:
            if self.state is State.OPEN_CONFIRM and not self._owner.may_come_up(self, now):
                return
            counters.keepalives_received += 1
        elif kind == MessageType.UPDATE:
            counters.updates_received += 1
        else:
            counters.refreshes_received += 1
        self._body = body
        self.handle(_EVENT_OF_TYPE[kind], now, "the peer accepted our OPEN")

    def _receive_open(self, body: bytes, now: float) -> None:
        """Judge an OPEN, then let the table see it. In the wrong state it is not even read."""
        if self.state is State.OPEN_SENT:
            negotiated = self._owner.judge_open(self, Open.decode(body), now)
            if negotiated is None:
                return
            self.asked_at = NEVER
            self.negotiated = negotiated
        self.handle(Event.OPEN, now, "the peer's OPEN was accepted")

    def _count_findings(self, findings: tuple[Finding, ...]) -> None:
        worst = max(findings, key=lambda finding: finding.severity)
        counters = self._owner.counters
        if worst.severity is Severity.TREAT_AS_WITHDRAW:
            counters.treat_as_withdraw += 1
        else:
            counters.attribute_discards += 1
        counters.last_finding = worst.text

    def send_refresh(self, family: Family) -> None:
        """Ask the peer for its routes again (RFC 2918). Only in Established."""
        self._owner.counters.refreshes_sent += 1
        self._owner.write(self.conn, route_refresh(family))

    # ---------------------------------------------------------------- timers

    def next_timer(self) -> float:
        """The earliest deadline; infinity without one."""
        return min(
            self._hold_at,
            self._keepalive_at,
            self._connect_retry_at,
            self._idle_hold_at,
            self._send_hold_at,
            self.waits_until,
        )

    def handle_timer(self, now: float) -> None:
        """Act on every deadline that has passed."""
        if self.waits_until <= now:
            self.receive_data(b"", now)
        if self._hold_at <= now:
            self._hold_at = NEVER
            self.handle(Event.HOLD_TIMER_EXPIRES, now, self._hold_reason())
        if self._send_hold_at <= now:
            self._send_hold_at = NEVER
            self.handle(
                Event.SEND_HOLD_TIMER_EXPIRES,
                now,
                f"send hold timer expired: the peer has read nothing for {self._send_hold_time():.0f} s",
            )
        if self._keepalive_at <= now:
            self._keepalive_at = NEVER
            self.handle(Event.KEEPALIVE_TIMER_EXPIRES, now)
        if self._connect_retry_at <= now:
            self._connect_retry_at = NEVER
            why = "connecting again"
            if self.state is State.CONNECT:
                why = f"the peer did not answer the connection attempt in time{self._owner.silence()}"
            self.handle(Event.CONNECT_RETRY_TIMER_EXPIRES, now, why)
        if self._idle_hold_at <= now:
            self._idle_hold_at = NEVER
            self.handle(Event.IDLE_HOLD_TIMER_EXPIRES, now, "connecting again")

    def retry_at(self, at: float) -> None:
        """When to connect next, in Idle or Active; infinity: not by ourselves."""
        self._idle_hold_at = at if self.state is State.IDLE else NEVER
        self._connect_retry_at = at if self.state is State.ACTIVE else NEVER

    @property
    def will_retry(self) -> bool:
        """Whether, in Idle or Active, a timer leads to the next attempt."""
        return min(self._idle_hold_at, self._connect_retry_at) != NEVER

    def writing_paused(self, now: float) -> None:
        """The peer does not read: what we want to send no longer fits the socket."""
        if self._send_hold_at == NEVER:
            self._send_hold_at = now + self._send_hold_time()

    def writing_resumed(self) -> None:
        self._send_hold_at = NEVER

    def _send_hold_time(self) -> float:
        return max(SEND_HOLD_TIME_MIN, 2.0 * self.negotiated.hold_time if self.negotiated else 0.0)

    def _hold_reason(self) -> str:
        if self.state is State.OPEN_SENT:
            return f"the peer sent no OPEN within {LARGE_HOLD_TIME:.0f} s of connecting"
        hold_time = self.negotiated.hold_time if self.negotiated else 0
        if self.state is State.OPEN_CONFIRM:
            return f"the peer did not confirm our OPEN with a KEEPALIVE within {hold_time} s"
        return f"hold timer expired after {hold_time} s"

    def _restart_hold(self, now: float) -> None:
        hold_time = self.negotiated.hold_time if self.negotiated else 0
        self._hold_at = now + hold_time if hold_time else NEVER

    def _restart_keepalive(self, now: float) -> None:
        interval = self.negotiated.keepalive_time if self.negotiated else 0.0
        # RFC 4271 4.4: not more than one a second
        self._keepalive_at = now + max(1.0, interval * self._rng.uniform(JITTER_MIN, 1.0)) if interval else NEVER

    # ---------------------------------------------------------------- actions of the table

    def _clear_retries(self) -> None:
        self._owner.clear_retries(self)

    def _count_retry(self) -> None:
        self._owner.count_retry(self, self._event, self._reason, self._reply, self._now)

    def _start_connect_retry(self) -> None:
        self._connect_retry_at = self._now + self._owner.retry_delay()

    def _stop_connect_retry(self) -> None:
        self._connect_retry_at = NEVER

    def _start_idle_hold(self) -> None:
        self._idle_hold_at = self._now + self._owner.retry_delay()

    def _stop_idle_hold(self) -> None:
        self._idle_hold_at = NEVER

    def _connect(self) -> None:
        self.opened_at = self._now
        self._owner.counters.connect_attempts += 1
        self.conn = self._owner.request_connection(self)

    def _send_open(self) -> None:
        self.ours = self._owner.open_message()
        self._owner.counters.opens_sent += 1
        self._owner.write(self.conn, self.ours.encode())

    def _start_large_hold(self) -> None:
        self._hold_at = self._now + LARGE_HOLD_TIME

    def _start_session_timers(self) -> None:
        self._restart_hold(self._now)
        self._restart_keepalive(self._now)

    def _perform_restart_hold(self) -> None:
        if self.state is State.OPEN_CONFIRM:
            self._begin_updates()
        self._restart_hold(self._now)

    def _begin_updates(self) -> None:
        """Entering Established: from here on UPDATEs are decoded, as negotiated."""
        negotiated = self.negotiated
        assert negotiated is not None
        context = DecodeContext(
            four_octet_as=negotiated.four_octet_as, external=negotiated.external, families=negotiated.families
        )
        self._decode = UpdateDecoder(context, pool=self._pool).decode

    def _send_keepalive(self) -> None:
        self._owner.counters.keepalives_sent += 1
        self._owner.write(self.conn, KEEPALIVE)
        self._restart_keepalive(self._now)

    def _send(self, notification: Notification) -> None:
        self._owner.counters.notifications_sent += 1
        self._owner.counters.count_notification("sent", notification)
        self._owner.write(self.conn, notification.encode())

    def _send_reply(self) -> None:
        if self._reply is not None:
            self._send(self._reply)

    def _send_hold_expired(self) -> None:
        self._send(Notification(NotificationCode.HOLD_TIMER_EXPIRED))

    def _send_fsm_error(self) -> None:
        kind = _TYPE_OF_EVENT.get(self._event)
        if kind is None:
            notification = Notification(NotificationCode.FINITE_STATE_MACHINE_ERROR)
            what = self._event.name.lower().replace("_", " ")
        else:
            # RFC 6608 4: the data is the type of the unexpected message
            notification = Notification(
                NotificationCode.FINITE_STATE_MACHINE_ERROR, _UNEXPECTED_IN[self.state], bytes((kind,))
            )
            what = f"{'an' if kind in (1, 2) else 'a'} {kind.name.replace('_', '-')} message"
        self._reason = f"{what} came in state {self.state.label} (sent NOTIFICATION {notification.text()})"
        self._send(notification)

    def _drop(self) -> None:
        conn, self.conn = self.conn, 0
        self._buffer = b""
        self._decode = None
        self.negotiated = None
        self.ours = None
        self._hold_at = self._keepalive_at = self._send_hold_at = self.waits_until = self.asked_at = NEVER
        if conn:
            self._owner.release_connection(conn)

    def _deliver(self) -> None:
        """Hand a ROUTE-REFRESH on; for UPDATEs this is part of the loop in `receive_data`."""
        family = refreshed_family(self._body)
        if family is not None and self.negotiated is not None and family in self.negotiated.families:
            self._owner.refresh_received(family)


_PERFORM: dict[Action, Callable[[Session], None]] = {
    Action.CLEAR_RETRIES: Session._clear_retries,
    Action.COUNT_RETRY: Session._count_retry,
    Action.START_CONNECT_RETRY: Session._start_connect_retry,
    Action.STOP_CONNECT_RETRY: Session._stop_connect_retry,
    Action.START_IDLE_HOLD: Session._start_idle_hold,
    Action.STOP_IDLE_HOLD: Session._stop_idle_hold,
    Action.CONNECT: Session._connect,
    Action.SEND_OPEN: Session._send_open,
    Action.START_LARGE_HOLD: Session._start_large_hold,
    Action.START_SESSION_TIMERS: Session._start_session_timers,
    Action.RESTART_HOLD: Session._perform_restart_hold,
    Action.SEND_KEEPALIVE: Session._send_keepalive,
    Action.SEND_CEASE: Session._send_reply,
    Action.SEND_NOTIFICATION: Session._send_reply,
    Action.SEND_HOLD_EXPIRED: Session._send_hold_expired,
    Action.SEND_FSM_ERROR: Session._send_fsm_error,
    Action.DELIVER: Session._deliver,
    Action.DROP: Session._drop,
}


def _not_synchronized() -> PeerError:
    return PeerError(
        NotificationCode.MESSAGE_HEADER_ERROR,
        MessageHeaderSubcode.CONNECTION_NOT_SYNCHRONIZED,
        b"",
        "the peer does not speak BGP: a message without the marker",
    )


def _check_header(length: int, kind: int) -> None:
    """RFC 4271 6.1, and the bounds of the type. Raises PeerError 1/2 with the length as data, or 1/3 with the type."""
    low = MINIMUM_LENGTH.get(kind, HEADER_LENGTH)
    high = MAXIMUM_LENGTH.get(kind, MAX_MESSAGE)
    if not low <= length <= high:
        raise PeerError(
            NotificationCode.MESSAGE_HEADER_ERROR,
            MessageHeaderSubcode.BAD_MESSAGE_LENGTH,
            length.to_bytes(2, "big"),
            f"a message of type {kind} says it is {length} octets long, {low} to {high} are possible",
        )
    if kind not in MINIMUM_LENGTH:
        raise PeerError(
            NotificationCode.MESSAGE_HEADER_ERROR,
            MessageHeaderSubcode.BAD_MESSAGE_TYPE,
            bytes((kind,)),
            f"a message of the unknown type {kind}",
        )


COLLISION = Notification(NotificationCode.CEASE, CeaseSubcode.CONNECTION_COLLISION_RESOLUTION)
"""What the losing connection of RFC 4271 6.8 ends with."""
