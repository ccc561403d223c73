"""One configured neighbour: its connections, who may connect when, and what the owner of its routes must know.

Invariants:
- At most one connection is Established; beside it, or before it, at most one of ours and one of the peer's are half-open.
  A newer connection of the peer's replaces its older half-open one, so that a silent one cannot keep the peer out.
- A started neighbour that is not passive and has no session past OpenSent always has an attempt or a timer running; a
  passive one never connects. The wait doubles with every failure on whatever path (TCP, OPEN, NOTIFICATION, timers) up to
  a limit, with jitter, and is short again after a session that lasted.
- UPDATEs are reported between Established and SessionDown of their session, in order, and never else.
- Every refusal and every end has a reason in words, in its event and in the counters.

Collisions (RFC 4271 6.8, RFC 6286 2.3): when the second OPEN arrives, the connection begun by the speaker with the higher
router id stays (equal ids: the higher AS); the other ends with Cease/7. The RFC's two decisions, ours and the peer's, agree
only where neither is Established yet on what the other lets go: else both connections end, and what BIRD calls a graceful
restart may end the one that stays. So an OPEN waits, and with it the KEEPALIVE that would make the peer Established, while
another connection is under way on which none has arrived. Where ours was answered before the peer's arrived, and theirs is
to stay, the peer may be Established on ours: it decides, by what it says on its own, and its KEEPALIVE on ours waits. Either
waits COLLISION_PATIENCE after the other connection began, then the one that says nothing ends.

An Established session wins over any newer connection, unless graceful restart was negotiated: then the peer has lost the old
one, whatever our TCP thinks, and the new OPEN replaces it with the routes kept (RFC 4724 4.2). A connection that was under
way when the session came up, or arrives within a second of that, is still an ordinary collision: both speakers connecting
at once must not look like a restart. One that arrives then ends before our OPEN could make the peer prefer it.

After a NOTIFICATION 2/7 or 2/4 one attempt is made without the capabilities the peer named, or without any (RFC 5492 3).

Long for one idea: collisions, back-off and graceful restart all decide on the same few connections, and every verb may
touch all three.

Like `session`: no socket, no clock. RFC 4271 6.8, 8, 10; 4724; 5492; 6286. Not here: sockets, MD5 and TTL (`daemon`),
stale routes themselves (`core`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from routed.bgp.capabilities import Negotiated, PeerRestart, advertise, negotiate
from routed.bgp.capabilities import named as names
from routed.bgp.counters import Counters, DownReason
from routed.bgp.fsm import Event, State
from routed.bgp.iana import CapabilityCode, CeaseSubcode, NotificationCode, OpenSubcode
from routed.bgp.messages import Capability, Notification, Open, split_capabilities
from routed.bgp.session import COLLISION, JITTER_MIN, NEVER, Session
from routed.bgp.update import AttributePool, Update
from routed.errors import PeerError
from routed.net.families import Family
from routed.values import dataclass

__all__ = [
    "CloseRequested",
    "ConnectRequested",
    "Counters",
    "Established",
    "Neighbor",
    "NeighborConfig",
    "NeighborEvent",
    "Notification",
    "RefreshReceived",
    "SessionDown",
    "StaleExpired",
    "State",
    "StateChanged",
]

RESTART_GUARD = 1.0
"""Seconds after a session came up in which a new connection cannot be a restarted peer's."""

COLLISION_PATIENCE = 3.0
"""Seconds in which an answer is expected on a connection that collides with another one."""


@dataclass(frozen=True, slots=True)
class NeighborConfig:
    """What is configured of one neighbour. Times are seconds; addresses are packed octets."""

    name: str
    """The name people see, e.g. `Mesh_10_0_0_2`."""
    address: bytes
    port: int
    """TCP port to connect to."""
    local_address: bytes
    """Source address of our connections; empty: the kernel chooses."""
    local_as: int
    peer_as: int
    router_id: int
    """Our BGP identifier: not zero (RFC 6286)."""
    passive: bool
    """Never connect, only accept."""
    families: tuple[Family, ...]
    hold_time: int = 240
    """What our OPEN proposes: 0 (no keepalives) or at least 3 (RFC 4271 4.2)."""
    keepalive_time: int = 0
    """Longest time between KEEPALIVEs; 0, or more than a third of the negotiated hold time: that third."""
    connect_retry_time: float = 5.0
    """Wait before the first retry; doubled with every failure."""
    connect_retry_limit: float = 30.0
    """The longest wait, and how long a session must have been Established for earlier failures to be forgotten."""
    graceful_restart: bool = True
    """Advertise RFC 4724 and keep the peer's routes while it restarts."""
    restart_time: int = 120
    """What our graceful restart capability promises, at most 4095."""
    interface: str = ""
    """For a link-local `address`: the interface it is on."""
    password: str = ""
    """`SECRET/KEY`: where the password of TCP MD5 (RFC 2385) is kept, which nobody here knows; empty: none."""
    password_generation: int = 0
    """Of the password's content: another number, another password."""
    ttl_security: int = 0
    """Hops the peer may be away (GTSM, RFC 5082); 0: any number."""
    admin_down: bool = False
    held: str = ""
    """Why there must be no session although somebody wants one, in words; empty: nothing forbids it."""

    @property
    def down_reason(self) -> str:
        """Why it neither connects nor accepts; empty where it may."""
        return self.held or ("administratively down" if self.admin_down else "")

    @property
    def external(self) -> bool:
        """Whether this is an eBGP neighbour."""
        return self.local_as != self.peer_as

    def needs_reset(self, old: NeighborConfig) -> bool:
        """Whether a session held under `old` must end before this configuration can apply.

        The rest changes live: `passive`, `admin_down`, `held`, `port` and the times, those of the OPEN from the next
        session on.
        """
        return (
            self.address != old.address
            or self.local_address != old.local_address
            or self.interface != old.interface
            or self.local_as != old.local_as
            or self.peer_as != old.peer_as
            or self.router_id != old.router_id
            or set(self.families) != set(old.families)
            or self.graceful_restart != old.graceful_restart
            or self.password != old.password
            or (self.password_generation != old.password_generation and not old.held)
            or self.ttl_security != old.ttl_security
        )


@dataclass(frozen=True, slots=True)
class ConnectRequested:
    """Begin a TCP connection; answer with `connected` or `connect_failed`."""

    conn: int


@dataclass(frozen=True, slots=True)
class CloseRequested:
    """Close a connection, or give up the attempt, after writing what `control_output` still gives."""

    conn: int


@dataclass(frozen=True, slots=True)
class Established:
    conn: int
    negotiated: Negotiated


@dataclass(frozen=True, slots=True)
class SessionDown:
    """The Established session ended."""

    reason: str
    keep_routes: bool
    """Graceful restart applies: keep the peer's routes as stale until Established and End-of-RIB, or StaleExpired."""
    families: frozenset[Family] = frozenset()
    """With `keep_routes`: the families it applies to; routes of others go now (RFC 4724 4.2)."""


@dataclass(frozen=True, slots=True)
class StaleExpired:
    """The peer did not come back within its restart time, or must not be waited for: its stale routes go."""

    why: str
    """For people; the peer is its subject."""


@dataclass(frozen=True, slots=True)
class RefreshReceived:
    """The peer wants all our routes of a family again (RFC 2918)."""

    family: Family


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The neighbour's furthest connection is in another state."""

    old: State
    new: State
    reason: str


NeighborEvent = (
    ConnectRequested
    | CloseRequested
    | Established
    | SessionDown
    | StaleExpired
    | RefreshReceived
    | StateChanged
    | Update
)


class Neighbor:
    """One configured neighbour. Call a verb, then take `events`, `control_output` and `next_timer`."""

    __slots__ = (
        "_allocate",
        "_established",
        "_forwarding",
        "_half_open",
        "_keep",
        "_outgoing",
        "_output",
        "_pool",
        "_restart_at",
        "_retries",
        "_rng",
        "_sessions",
        "_started",
        "_verdict_at",
        "_without",
        "config",
        "connection",
        "counters",
        "events",
        "negotiated",
        "state",
    )

    def __init__(
        self, config: NeighborConfig, *, rng: random.Random, pool: AttributePool, allocate: Callable[[], int]
    ) -> None:
        """`allocate` gives a fresh connection id, greater than 0, at every call."""
        self.config = config
        self._rng = rng
        self._pool = pool
        self._allocate = allocate
        self.events: list[NeighborEvent] = []
        """What happened; the caller takes the list away and leaves an empty one."""
        self.counters = Counters()
        self.state = State.IDLE
        """The state of the connection that is furthest."""
        self.negotiated: Negotiated | None = None
        """Of the Established session."""
        self.connection = 0
        """Id of the Established connection, or 0."""
        self._started = False
        self._outgoing = Session(self, rng=rng, pool=pool, incoming=False)
        """The instance that connects, and in a passive neighbour only waits in Active."""
        self._half_open: Session | None = None
        """The peer's connection, before it is Established."""
        self._established: Session | None = None
        self._sessions: dict[int, Session] = {}
        """By connection id, as long as the connection is ours to use."""
        self._output: dict[int, bytearray] = {}
        self._retries = 0
        """ConnectRetryCounter (RFC 4271 8), the exponent of the back-off."""
        self._restart_at = NEVER
        self._verdict_at = NEVER
        """When the peer's decision of a collision is waited for no longer."""
        self._forwarding: frozenset[Family] | None = None
        self._without: tuple[Capability, ...] = ()

    # ================================================================ verbs

    def start(self, now: float) -> None:
        """Let it connect or be connected to; an active neighbour connects at once. With a `down_reason` it does nothing."""
        if self.config.down_reason:
            self.counters.went_wrong(self.config.down_reason, now)
            return
        self._started = True
        self._retries = 0
        self._without = ()
        outgoing = self._outgoing
        if not self._settled_elsewhere() and not self.config.passive:
            if outgoing.state is State.IDLE:
                outgoing.handle(Event.MANUAL_START, now, "started")
            elif outgoing.state is State.ACTIVE:
                outgoing.handle(Event.CONNECT_RETRY_TIMER_EXPIRES, now, "started")
        self._settle(now)

    def stop(self, now: float, notification: Notification | None, *, admin_down: bool, why: str = "") -> None:
        """End all connections, with `notification` or, without one, by closing TCP so that a helper keeps our routes.

        `admin_down`: stay down, and refuse the peer, until `start`. Otherwise the neighbour comes back by itself after
        the usual wait, or at once by `start`. `why` is for people. One that is not told and comes back by itself has lost
        its link: none of its routes are kept, whatever graceful restart would ask for.
        """
        said = f": NOTIFICATION {notification.text()}" if notification else ""
        reason = f"{why or ('administratively down' if admin_down else 'reset by this side')}{said}"
        self.counters.went_wrong(reason, now)
        if admin_down:
            self._started = False
        for session in self._all():
            session.handle(Event.MANUAL_STOP if admin_down else Event.AUTOMATIC_STOP, now, reason, notification)
        if admin_down and self._restart_at != NEVER:
            self._restart_at = NEVER
            self.events.append(StaleExpired("is not waited for any more"))
        self._settle(now)

    def restarting(self, forwarding: frozenset[Family] | None) -> None:
        """This speaker has restarted: until the session is up, OPENs say so (R bit), with the F bit for `forwarding`.

        None: the restart is over, also for a neighbour that never came back.
        """
        self._forwarding = forwarding

    def reconfigure(self, config: NeighborConfig, now: float) -> None:
        """Apply a changed configuration live. Where `config.needs_reset(old)`, `stop` first and `start` after."""
        was_down = self.config.down_reason
        self.config = config
        if config.down_reason and self._started:
            cease = Notification.cease(CeaseSubcode.ADMINISTRATIVE_SHUTDOWN)
            self.stop(now, cease, admin_down=True, why=config.down_reason)
        elif was_down and not config.down_reason:
            if self.counters.last_error == was_down:
                self.counters.last_error = ""  # it is no reason any more
            self.start(now)
        else:
            self._settle(now)

    def connected(self, conn: int, now: float) -> None:
        """A requested connection is there."""
        session = self._sessions.get(conn)
        if session is not None and session.state is State.CONNECT:
            session.opened(Event.TCP_CONNECTION_REQUEST_ACKED, now)
            self._settle(now)

    def connect_failed(self, conn: int, now: float, reason: str) -> None:
        """A requested connection could not be made; `reason` in words, e.g. the errno's."""
        self._lost(conn, now, f"cannot connect: {reason}")

    def accept(self, now: float) -> int | str:
        """The configured address has connected to us: the id of the connection, or why it is refused; 0: it has lost a
        collision already, which is nobody's mistake."""
        refusal = ""
        if self.config.held:
            refusal = f"the neighbour is held: {self.config.held}"
        elif self.config.admin_down:
            refusal = "the neighbour is administratively down"
        elif not self._started:
            refusal = "the neighbour is not started"
        if refusal:
            self.counters.connections_refused += 1
            return refusal
        self.counters.connections_accepted += 1
        if self._established is not None and now < self._came_up_at() + RESTART_GUARD:
            return 0
        older = self._half_open
        session = Session(self, rng=self._rng, pool=self._pool, incoming=True)
        session.handle(Event.MANUAL_START_PASSIVE, now, "waiting for the peer to connect")
        session.conn = self._allocate()
        self._sessions[session.conn] = session
        self._half_open = session
        session.opened(Event.TCP_CONNECTION_CONFIRMED, now)
        if older is not None:
            reason = "replaced by a newer connection from the peer before it was up"
            older.handle(Event.OPEN_COLLISION_DUMP, now, reason, COLLISION)
        self._settle(now)
        return session.conn

    def receive_data(self, conn: int, data: bytes, now: float) -> None:
        """Octets from a connection, cut anywhere. Those of a connection that was given up are ignored."""
        session = self._sessions.get(conn)
        if session is not None:
            state = session.state
            session.receive_data(data, now)
            if session.state is not state:
                self._settle(now)

    def closed(self, conn: int, now: float, reason: str) -> None:
        """The connection ended without our asking; `reason` in words."""
        self._lost(conn, now, reason)

    def writing_paused(self, conn: int, now: float) -> None:
        """The connection takes no more octets: the send hold timer runs until `writing_resumed` (RFC 9687)."""
        session = self._sessions.get(conn)
        if session is not None:
            session.writing_paused(now)

    def writing_resumed(self, conn: int, now: float) -> None:  # noqa: ARG002 - all verbs carry the time
        session = self._sessions.get(conn)
        if session is not None:
            session.writing_resumed()

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        at = min(self._outgoing.next_timer(), self._restart_at, self._verdict_at)
        if self._half_open is not None:
            at = min(at, self._half_open.next_timer())
        if self._established is not None:
            at = min(at, self._established.next_timer())
        return None if at == NEVER else at

    def handle_timer(self, now: float) -> None:
        """Act on what is due. Give octets that have arrived to `receive_data` first: they restart the hold timer."""
        for session in self._all():
            if session.next_timer() <= now:
                session.handle_timer(now)
        if self._verdict_at <= now:
            self._verdict_at = NEVER
            if self._half_open is not None and self._half_open.state is self._outgoing.state is State.OPEN_CONFIRM:
                self._let_go(self._outgoing, "both sides connected at once, the peer's stays", now)
        if self._restart_at <= now:
            self._restart_at = NEVER
            self.counters.went_wrong("the peer did not come back within its restart time", now)
            self.events.append(StaleExpired("did not come back in its restart time"))
        self._settle(now)

    def refresh(self, family: Family) -> bool:
        """Ask the peer for its routes of a family again; False where it cannot be asked (RFC 2918 4)."""
        session, negotiated = self._established, self.negotiated
        if session is None or negotiated is None or not negotiated.route_refresh or family not in negotiated.families:
            return False
        session.send_refresh(family)
        return True

    def control_output(self, conn: int) -> bytes:
        """OPEN, KEEPALIVE, NOTIFICATION and ROUTE-REFRESH octets to write now, ahead of UPDATEs. The call takes them."""
        output = self._output.get(conn)
        if not output:
            return b""
        data = bytes(output)
        if conn in self._sessions:
            output.clear()
        else:
            del self._output[conn]
        return data

    def pending_output(self) -> list[int]:
        """The connections `control_output` has something for."""
        return [conn for conn, output in self._output.items() if output]

    # ================================================================ between the sessions

    def _all(self) -> list[Session]:
        sessions = [self._outgoing]
        sessions += [
            one for one in (self._half_open, self._established) if one is not None and one is not self._outgoing
        ]
        return sessions

    def _settled_elsewhere(self) -> bool:
        """Whether a connection other than the outgoing one has got so far that connecting would only collide with it."""
        if self._established is not None:
            return self._established is not self._outgoing
        return self._half_open is not None and self._half_open.state >= State.OPEN_CONFIRM

    def _settle(self, now: float) -> None:
        """Make the outgoing instance do what the others' states ask for, and go on with what waited for another one."""
        for waiting in (self._outgoing, self._half_open):
            if waiting is not None and waiting.waits_until != NEVER:
                waiting.receive_data(b"", now)
        outgoing = self._outgoing
        if not self._started or outgoing.state >= State.OPEN_SENT:
            return
        if self.config.passive:
            if outgoing.state is not State.ACTIVE or outgoing.will_retry:
                outgoing.handle(Event.MANUAL_STOP, now, "passive")
                outgoing.handle(Event.MANUAL_START_PASSIVE, now, "waiting for the peer to connect")
        elif self._settled_elsewhere():
            if outgoing.state is not State.IDLE:
                outgoing.handle(Event.OPEN_COLLISION_DUMP, now, "the peer's connection is used")
            outgoing.retry_at(NEVER)
        elif outgoing.state is not State.CONNECT and not outgoing.will_retry:
            outgoing.retry_at(now + self.retry_delay())

    def _collide(self, session: Session, theirs: Open, now: float) -> bool:
        """RFC 4271 6.8 for a connection whose OPEN has just arrived; False where it ends, or has to wait."""
        established = self._established
        if established is not None:
            if self._keep_families() and session.opened_at >= self._came_up_at() + RESTART_GUARD:
                conn, established.conn = established.conn, 0
                self._forget(conn)
                self.events.append(CloseRequested(conn))
                established.handle(
                    Event.TCP_CONNECTION_FAILS,
                    now,
                    "the peer has opened a new connection: it has lost or restarted this one",
                )
                return True
            session.handle(Event.OPEN_COLLISION_DUMP, now, "there is an Established session with the peer", COLLISION)
            return False
        other = self._half_open if session is self._outgoing else self._outgoing
        if other is None or other.state < State.CONNECT or other.state is State.ACTIVE:
            return True
        if other.state is not State.OPEN_CONFIRM and other.waits_until == NEVER:
            if session.wait(now, max(session.opened_at, other.opened_at), COLLISION_PATIENCE):
                return False
            self._let_go(other, "the other connection is further", now)
            return True
        ours_win = self._ours_win(theirs.router_id)
        loser = session if session.incoming == ours_win else other
        if loser is self._outgoing and loser.state is State.OPEN_CONFIRM:
            self._verdict_at = now + COLLISION_PATIENCE
            return True
        winner = "ours" if ours_win else "the peer's"
        self._let_go(loser, f"both sides connected at once, {winner} stays", now)
        return loser is not session

    def may_come_up(self, session: Session, now: float) -> bool:
        """Whether the peer's KEEPALIVE counts; not yet while it may still prefer the connection it began itself."""
        theirs, negotiated = self._half_open, session.negotiated
        if session.incoming or theirs is None or theirs.state < State.OPEN_SENT or negotiated is None:
            return True
        return self._ours_win(negotiated.peer_router_id) or not session.wait(now, theirs.opened_at, COLLISION_PATIENCE)

    def _ours_win(self, peer_router_id: int) -> bool:
        """Which of two connections stays where both sides connect at once (RFC 6286 2.3)."""
        return (self.config.router_id, self.config.local_as) > (peer_router_id, self.config.peer_as)

    def _let_go(self, session: Session, reason: str, now: float) -> None:
        """End what has lost a collision."""
        session.handle(Event.OPEN_COLLISION_DUMP, now, reason, COLLISION)

    def _came_up_at(self) -> float:
        return self.counters.established_at or 0.0

    def _lost(self, conn: int, now: float, reason: str) -> None:
        session = self._sessions.get(conn)
        self._forget(conn)
        if session is not None:
            session.lost(now, reason)
            self._settle(now)

    def _forget(self, conn: int) -> None:
        """Nothing can be read from or written to the connection any more."""
        self._sessions.pop(conn, None)
        self._output.pop(conn, None)

    def _keep_families(self) -> frozenset[Family]:
        """The families whose routes survive the loss of the current session (RFC 4724 4.2)."""
        restart = self.negotiated.graceful_restart if self.negotiated else None
        if self.negotiated is None or restart is None or not restart.restart_time:
            return frozenset()
        return self.negotiated.families & restart.families.keys()

    def _show_state(self, reason: str, now: float) -> None:
        state = max(session.state for session in self._all())
        if state is not self.state:
            self.events.append(StateChanged(self.state, state, reason))
            self.state = state
            self.counters.state_changed_at = now

    # ================================================================ what the sessions ask (session.SessionOwner)

    def open_message(self) -> Open:
        """Our OPEN as of now."""
        config = self.config
        restart = None
        if config.graceful_restart:
            forwarding = self._forwarding or frozenset()
            restart = PeerRestart(
                config.restart_time,
                self._forwarding is not None,
                {family: family in forwarding for family in config.families},
            )
        return advertise(
            local_as=config.local_as,
            hold_time=config.hold_time,
            router_id=config.router_id,
            families=config.families,
            restart=restart,
            without=self._without,
        )

    def judge_open(self, session: Session, theirs: Open, now: float) -> Negotiated | None:
        """Check the peer's OPEN, then collisions: a bad OPEN must not end a good connection."""
        ours = session.ours or self.open_message()
        config = self.config
        negotiated = negotiate(
            ours,
            theirs,
            local_as=config.local_as,
            peer_as=config.peer_as,
            keepalive_time=config.keepalive_time,
        )
        return negotiated if self._collide(session, theirs, now) else None

    def notification_received(self, session: Session, notification: Notification) -> str:
        """Learn from what the peer refuses, and say it in words."""
        code, subcode = notification.code, notification.subcode
        hint = ""
        if session.state in (State.OPEN_SENT, State.OPEN_CONFIRM) and code == NotificationCode.OPEN_MESSAGE_ERROR:
            if subcode == OpenSubcode.BAD_PEER_AS:
                hint = f" (it does not accept us as AS {self.config.local_as})"
            elif subcode == OpenSubcode.UNACCEPTABLE_HOLD_TIME:
                hint = f" (we proposed {self.config.hold_time} s)"
            elif subcode in (OpenSubcode.UNSUPPORTED_CAPABILITY, OpenSubcode.UNSUPPORTED_OPTIONAL_PARAMETER):
                self._without = () if self._without else self._refused(session, notification)
                if self._without:
                    hint = " (trying once without what it refuses)"
        if session.state is State.ESTABLISHED:
            return f"peer ended the session: NOTIFICATION {notification.text()}{hint}"
        return f"peer refused: NOTIFICATION {notification.text()}{hint}"

    def _refused(self, session: Session, notification: Notification) -> tuple[Capability, ...]:
        """Which of the capabilities we sent to leave out. Those without which no family would be left stay."""
        sent = session.ours.capabilities if session.ours else ()
        try:
            named = split_capabilities(notification.data)
        except PeerError:
            named = []
        if notification.subcode == OpenSubcode.UNSUPPORTED_OPTIONAL_PARAMETER:
            named = []
        # nothing named, or the peer knows no capabilities at all: leave out everything
        refused = [one for one in sent if not named or names(one, named)]
        spared = {one for one in sent if one.code == CapabilityCode.MULTIPROTOCOL}
        if spared <= set(refused) and Family.IPV4_UNICAST not in self.config.families:
            refused = [one for one in refused if one not in spared]
        return tuple(refused)

    def request_connection(self, session: Session) -> int:
        conn = self._allocate()
        self._sessions[conn] = session
        self.events.append(ConnectRequested(conn))
        return conn

    def release_connection(self, conn: int) -> None:
        """The session is done with it: what was written still goes out, then it closes."""
        del self._sessions[conn]
        self.events.append(CloseRequested(conn))

    def write(self, conn: int, data: bytes) -> None:
        """Queue control octets."""
        self._output.setdefault(conn, bytearray()).extend(data)

    def update_sink(self) -> Callable[[Update], None]:
        return self.events.append

    def refresh_received(self, family: Family) -> None:
        self.events.append(RefreshReceived(family))

    def silence(self) -> str:
        """What it may mean that the peer does not answer, to stand behind that; or empty."""
        return silence(password=bool(self.config.password), hops=self.config.ttl_security)

    def retry_delay(self) -> float:
        """Seconds to wait: doubled with each failure after the first, bounded, then jittered (RFC 4271 10)."""
        config = self.config
        doublings = min(max(self._retries - 1, 0), 16)
        wait = min(config.connect_retry_time * 2.0**doublings, config.connect_retry_limit)
        return wait * self._rng.uniform(JITTER_MIN, 1.0)

    def clear_retries(self, session: Session) -> None:
        """The peer's connections begin and end without touching our back-off."""
        if session is self._outgoing:
            self._retries = 0

    def count_retry(self, session: Session, event: Event, reason: str, reply: Notification | None, now: float) -> None:
        """Any failure of any connection lengthens the wait; one after a session that lasted is the first again."""
        came_up = self.counters.established_at
        lasted = session.state is State.ESTABLISHED and came_up is not None
        if lasted and came_up is not None and now - came_up >= self.config.connect_retry_limit:
            self._retries = 0
        self._retries += 1
        elsewhere = any(one.state >= State.OPEN_SENT for one in self._all() if one is not session)
        if event is not Event.OPEN_COLLISION_DUMP and not (elsewhere and _is_collision(reply)):
            self.counters.went_wrong(reason, now)
            if reply is not None and session.state is not State.ESTABLISHED and not _is_collision(reply):
                self.counters.refusal, self.counters.refusal_at = reason, now

    def state_changed(
        self, session: Session, old: State, event: Event, reason: str, now: float, reply: Notification | None
    ) -> None:
        """Follow a session into and out of Established."""
        if session.state is State.ESTABLISHED:
            self._came_up(session, reason, now)
            return
        if old is State.ESTABLISHED:
            self._went_down(event, reason, reply, now)
        if session is self._half_open and session.state < State.OPEN_SENT:
            self._half_open = None
            self._verdict_at = NEVER
        self._show_state(reason, now)

    def _came_up(self, session: Session, reason: str, now: float) -> None:
        assert session.negotiated is not None
        others = [one for one in (self._outgoing, self._half_open) if one is not None and one is not session]
        self._established = session
        if session is self._half_open:
            self._half_open = None
        self.connection = session.conn
        self.negotiated = session.negotiated
        self.counters.established += 1
        self.counters.established_at = now
        self.counters.refusal, self.counters.refusal_at = "", None
        self._restart_at = self._verdict_at = NEVER
        self._forwarding = None
        self._without = ()
        self._show_state(reason, now)
        self.events.append(Established(session.conn, session.negotiated))
        for other in others:
            if other.state >= State.OPEN_SENT:
                other.handle(Event.OPEN_COLLISION_DUMP, now, "the other connection came up first", COLLISION)

    def _went_down(self, event: Event, reason: str, reply: Notification | None, now: float) -> None:
        kept = self._keep_families() if event is Event.TCP_CONNECTION_FAILS else frozenset()
        if kept and self.negotiated is not None and self.negotiated.graceful_restart is not None:
            self._restart_at = now + self.negotiated.graceful_restart.restart_time
        self._established = None
        self.connection = 0
        self.negotiated = None
        why = _down_reason(event, reply)
        self.counters.downs[why] = self.counters.downs.get(why, 0) + 1
        self.counters.last_down_reason = reason
        self.counters.went_wrong(reason, now)
        self.events.append(SessionDown(reason, bool(kept), kept))


def _down_reason(event: Event, reply: Notification | None) -> DownReason:
    if event is Event.MANUAL_STOP and reply is not None and reply.subcode == CeaseSubcode.OTHER_CONFIGURATION_CHANGE:
        return DownReason.CONFIGURATION_CHANGED
    if event is Event.AUTOMATIC_STOP and reply is None:  # nothing was said, for nothing would arrive
        return DownReason.INTERFACE_DOWN
    return _DOWN_REASONS.get(event, DownReason.PROTOCOL_ERROR)


_DOWN_REASONS = {
    Event.MANUAL_STOP: DownReason.ADMINISTRATIVE,
    Event.AUTOMATIC_STOP: DownReason.RESET,
    Event.HOLD_TIMER_EXPIRES: DownReason.HOLD_TIMER_EXPIRED,
    Event.SEND_HOLD_TIMER_EXPIRES: DownReason.SEND_HOLD_TIMER_EXPIRED,
    Event.TCP_CONNECTION_FAILS: DownReason.CONNECTION_LOST,
    Event.OPEN_COLLISION_DUMP: DownReason.CONNECTION_LOST,
    Event.NOTIFICATION: DownReason.NOTIFICATION_RECEIVED,
    Event.NOTIFICATION_VERSION_ERROR: DownReason.NOTIFICATION_RECEIVED,
}


def _is_collision(reply: Notification | None) -> bool:
    return reply is not None and (reply.code, reply.subcode) == (COLLISION.code, COLLISION.subcode)


def silence(*, password: bool, hops: int) -> str:
    """What no answer may mean with a peer that is guarded: neither end is told why the other drops its packets."""
    if password:
        return "; a peer with another password, or none, looks like this too"
    if hops:
        return f"; a peer without TTL security, or more than {hops} hops away, looks like this too"
    return ""
