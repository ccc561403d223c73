"""Drives the core: gives it inputs with their time, carries out its effects, writes what it has to say, wakes it up.

A turn comes once after everything that arrived in one turn of the loop, and again at once while the core has more to do:
timers that are due, one slice of work, the effects in their order, then writing. So a keepalive never waits for a table.

The supervisor is here: what a bug raises while one connection's input is handled ends that connection (the core hears
`closed`, the peer sees a reset), with one line in the log; a bug elsewhere is logged and the daemon goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from routed.core.effects import Close, Connect, Effect, Guards, Level, Listen, Log, Routes, Sweep, Tunnels
from routed.daemon.events import Events
from routed.daemon.transport import Protection, Transports
from routed.datastore.file import Problem
from routed.desired import RouteBatch, Tunnel
from routed.model.resources import BGPConfiguration, Node, ResourceKey, Update
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.observe.latency import Latency
from routed.observe.logs import LogWriter
from routed.observe.recorder import Engine
from routed.observed import KernelChange, RouteFailure

#: Seconds of writing in one turn, before arrivals are looked at again.
PULL_SECONDS = 0.02

#: Seconds before work that raised is tried again.
BUG_PAUSE = 1.0


def no_tunnels(_tunnels: tuple[Tunnel, ...]) -> None:
    """Where the tunnel devices are not ours."""


def no_passwords(reference: str) -> bytes:
    """Where no secrets are configured."""
    raise KeyError(reference)


class RouteSink(Protocol):
    """Who makes the kernel's table what the core wants."""

    def apply(self, batches: Sequence[RouteBatch], ticket: int = 0) -> None: ...
    def sweep(self, families: Sequence[Family]) -> None: ...


class Driver:
    """See the module's docstring. One thread; every public method may be called from any callback of the loop."""

    def __init__(
        self,
        engine: Engine,
        routes: RouteSink,
        log: LogWriter,
        clock: Callable[[], float] = time.monotonic,
        passwords: Callable[[str], bytes] = no_passwords,
        updates_sent: Callable[[], int] | None = None,
        node_name: str = "",
    ) -> None:
        """`passwords` gives the password kept at a reference; `updates_sent` how many UPDATEs the engine gave out so far,
        for who wants their latency measured.
        """
        self.engine = engine
        self.tunnels: Callable[[tuple[Tunnel, ...]], None] = no_tunnels
        """Who makes the tunnel devices these and no others."""
        self.transports = Transports(self)
        self.clock = clock
        self.latency = Latency(clock, updates_sent or (lambda: 0))
        self.bugs = 0
        """Exceptions nobody should have seen, since start."""
        self.events = Events()
        self.listen_problems: tuple[str, ...] = ()
        self.store_problems: tuple[str, ...] = ()
        self._known_problems: tuple[Problem, ...] = ()
        self.listening = False
        """The port the core wants open is, in all families."""
        self.stopping = False
        self._routes = routes
        self._passwords = passwords
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._in_sync = False
        self._began = False
        """The engine was told that it may act on what the datastore holds."""
        self._vital = {
            ResourceKey(Node.kind, node_name),
            ResourceKey(BGPConfiguration.kind, f"node.{node_name}"),
            ResourceKey(BGPConfiguration.kind, "default"),
        }
        """Without these, where they are there, nobody knows which AS this node is in and whom it is to talk to."""
        self._unread: set[ResourceKey] = set()
        """Those of them that cannot be read now, and of which nothing is known from before."""
        self._turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._paused_until = 0.0

    # ---- the transport's owner

    def connected(self, conn: int, local: bytes) -> None:
        try:
            self.engine.connected(conn, local, self.clock())
        except Exception as error:
            self._connection_bug(conn, error)
        self.wake()

    def connect_failed(self, conn: int, reason: str) -> None:
        try:
            self.engine.connect_failed(conn, reason, self.clock())
        except Exception as error:
            self.bug("connect_failed", error)
        self.wake()

    def accepted(self, remote: bytes, local: bytes, interface: str) -> int:
        conn = 0
        if not self.stopping:
            try:
                conn = self.engine.accepted(remote, local, interface, self.clock())
            except Exception as error:
                self.bug("accepted", error)
            self.wake()
        return conn

    def received(self, conn: int, data: bytes) -> None:
        now = self.clock()
        try:
            self.engine.received(conn, data, now)
        except Exception as error:
            self._connection_bug(conn, error)
        self.latency.octets(now)
        if not self._turn_due:
            self.wake()

    def closed(self, conn: int, reason: str) -> None:
        try:
            self.engine.closed(conn, reason, self.clock())
        except Exception as error:
            self.bug("closed", error)
        self.wake()

    def writing_paused(self, conn: int) -> None:
        try:
            self.engine.writing_paused(conn, self.clock())
        except Exception as error:
            self._connection_bug(conn, error)
        self.wake()

    def writing_resumed(self, conn: int) -> None:
        try:
            self.engine.writing_resumed(conn, self.clock())
        except Exception as error:
            self._connection_bug(conn, error)
        self.wake()

    def take(self, conn: int, limit: int) -> bytes:
        return self.engine.take(conn, limit)

    def listen_problem(self, port: int, problems: tuple[str, ...]) -> None:
        self.listen_problems = problems
        self.listening = not problems
        for problem in problems:
            self._log.write(Level.ERROR, "listen", problem)
        if not problems:
            self._log.write(Level.INFO, "listen", f"listening on port {port}")
        for text in problems or (f"listening on port {port}",):
            self.events.publish("daemon", "listen", text)

    # ---- the datastore's sink

    def update(self, update: Update) -> None:
        now = self.clock()
        self.latency.resource(now)
        try:
            self.engine.resource(update, now)
        except Exception as error:
            self.bug(f"resource {update.key}", error)
        if update.key in self._vital and update.value is not None:
            self._vital.discard(update.key)  # its last good value stays, whatever becomes of it
            self._unread.discard(update.key)
            self._begin()
        self.wake()

    def loaded(self) -> None:
        self._log.write(Level.WARNING, "datastore", "the datastore does not answer: starting with what was last saved")
        try:
            self.engine.loaded(self.clock())
        except Exception as error:
            self.bug("loaded", error)
        self.wake()

    def in_sync(self) -> None:
        self.latency.in_sync()
        if not self._in_sync:
            self._in_sync = True
            self._log.write(
                Level.INFO, "datastore", "in sync: everything it holds was read, and is followed from here on"
            )
        self.events.publish("datastore", "datastore", "read completely: in sync")
        self._begin()
        self.wake()

    def _begin(self) -> None:
        """Have the engine act on what was read, unless what it must not be without cannot be read."""
        if not self._in_sync or self._unread or self._began:
            return
        self._began, self._unread = True, set()
        try:
            self.engine.in_sync(self.clock())
        except Exception as error:
            self.bug("in_sync", error)
        self.wake()

    def problems(self, problems: tuple[Problem, ...]) -> None:
        if not self._began:
            self._unread = {key for problem in problems if (key := _key_of(problem)) in self._vital}
        waits = (
            f"{key} cannot be read, and nothing is known of it from before: this node begins no session and touches "
            "no route until it can be"
            for key in sorted(self._unread)
        )
        known, self.store_problems = self.store_problems, (*(str(problem) for problem in problems), *waits)
        for problem in self.store_problems:
            if problem not in known:
                self._log.write(Level.ERROR, "datastore", problem)
                self.events.publish("datastore", "datastore", problem, problem=True)
        wrong = {problem.file for problem in problems}
        for before in self._known_problems:
            if before.file not in wrong:
                self._log.write(Level.INFO, "datastore", f"put right: {before}")
                self.events.publish("datastore", "datastore", f"put right: {before}", problem=False)
        self._known_problems = problems
        self._begin()

    # ---- secrets

    def secret(self, reference: str, generation: int, problem: str) -> None:
        """What is known of the password kept at `reference`: see `Core.secret`."""
        try:
            self.engine.secret(reference, generation, problem, self.clock())
        except Exception as error:
            self.bug("secret", error)
        self.wake()

    def _password(self, reference: str) -> bytes | None:
        return self._passwords(reference) if reference else None

    # ---- the kernel

    def kernel(self, change: KernelChange) -> None:
        try:
            self.engine.kernel(change, self.clock())
        except Exception as error:
            self.bug("kernel", error)
        self.wake()

    def route_failures(self, failures: tuple[RouteFailure, ...], cleared: tuple[tuple[Family, bytes], ...]) -> None:
        for failure in failures:
            self._log.write(Level.WARNING, "kernel", failure.reason)
            prefix = format_prefix(failure.family, failure.prefix)
            self.events.publish("kernel", prefix, failure.reason, prefix=prefix, errno=failure.errno, refused=True)
        for family, key in cleared:
            prefix = format_prefix(family, key)
            self.events.publish("kernel", prefix, "no longer refused", prefix=prefix, refused=False)
            self._log.write(Level.INFO, "kernel", f"put right: the route to {prefix}")
        try:
            self.engine.route_failures_changed(failures, cleared, self.clock())
        except Exception as error:
            self.bug("route_failures_changed", error)
        self.wake()

    # ---- people

    def clear(self, address: bytes, mode: str) -> bool:
        found = self.engine.clear(address, mode, self.clock())
        self.wake()
        return found

    def shutdown(self, mode: str, reason: str) -> None:
        """End all sessions now. The kernel's routes stay: from here on nothing more is asked of it."""
        self.stopping = True
        self.transports.stop_listening()
        if self._timer is not None:
            self._timer.cancel()
        try:
            self.engine.shutdown(mode, reason, self.clock())
        except Exception as error:
            self.bug("shutdown", error)
        self._act()

    # ---- turns

    def wake(self) -> None:
        """Have a turn soon."""
        if not self._turn_due and not self.stopping:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.stopping:
            return
        now = self.clock()
        more = False
        if now >= self._paused_until:
            try:
                due = self.engine.next_timer()
                if due is not None and due <= now:
                    self.engine.timer(now)
                more = self.engine.flush(now)
            except Exception as error:
                self.bug("turn", error)
                self._paused_until = now + BUG_PAUSE  # or the same bug would spin
        self._act()
        working = more
        if self.engine.writable and self._pull(now):
            more = True
        self.latency.turn_ended(now, all_written=not self.engine.writable, more=working)
        if more or self.engine.writable:
            self.wake()
        self._arm()

    def _arm(self) -> None:
        """One handle for the earliest timer. A later time leaves the earlier handle: it will fire and find nothing due."""
        at = self.engine.next_timer()
        if self._paused_until and self._paused_until > self.clock():
            at = self._paused_until
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        # A millisecond later than asked: the loop counts in milliseconds and must not fire too early.
        self._timer = self._loop.call_later(max(0.0, at - self.clock()) + 0.001, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._turn()

    def _act(self) -> None:
        engine = self.engine
        while engine.effects:
            effects, engine.effects = engine.effects, []
            for effect in effects:
                try:
                    self._carry_out(effect)
                except Exception as error:
                    self.bug(type(effect).__name__, error)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Log():
                self._log.write(effect.level, effect.subject, effect.text)
            case Routes():
                if not self.stopping:
                    self._routes.apply(effect.batches, self.latency.ticket())
            case Connect():
                protection = Protection(self._password(effect.password), effect.ttl_security)
                self.transports.connect(
                    effect.conn, effect.remote, effect.port, effect.local, effect.interface, protection
                )
            case Guards():
                self.transports.protect(
                    {
                        guard.remote: Protection(
                            # one that is held has no password yet, and the core lets nobody in for it
                            self._password(guard.password) if guard.generation else None,
                            guard.ttl_security,
                        )
                        for guard in effect.peers
                    }
                )
            case Close():
                self.transports.close(effect.conn)
            case Listen():
                self.listening = False
                self.transports.listen(effect.port, effect.addresses)
            case Sweep():
                if not self.stopping:
                    self._routes.sweep(effect.families)
            case Tunnels():
                if not self.stopping:
                    self.tunnels(effect.tunnels)

    def _pull(self, now: float) -> bool:
        """Write what there is, everybody in turn; True where there is more for a socket that takes it."""
        engine = self.engine
        waiting = list(engine.writable)
        engine.writable.clear()
        until = now + PULL_SECONDS
        more = False
        for served, conn in enumerate(waiting, 1):
            try:
                again = self.transports.pull(conn)
            except Exception as error:
                self._connection_bug(conn, error)
                again = False
            if again:
                engine.writable.add(conn)
                more = True
            if served < len(waiting) and self.clock() >= until:
                engine.writable.update(waiting[served:])
                return True
        return more

    # ---- the supervisor

    def bug(self, what: str, error: Exception) -> None:
        """Log what should not have happened, on one line."""
        self.bugs += 1
        self._log.write(Level.ERROR, "bug", f"in {what}: {trace(error)}")

    def _connection_bug(self, conn: int, error: Exception) -> None:
        self.bug(f"connection {conn}, which ends", error)
        try:
            self.engine.closed(
                conn, f"internal error of routed: {type(error).__name__}; its log has the details", self.clock()
            )
        except Exception as second:
            self.bug(f"the end of connection {conn}", second)
        self.transports.reset(conn)
        self.wake()


def trace(error: BaseException) -> str:
    """An exception and where it comes from, innermost call first, on one line."""
    frames = [
        f"{frame.filename.rpartition('/routed/')[2]}:{frame.lineno} {frame.name}"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    ]
    return f"{type(error).__name__}: {error} [at {' < '.join(frames)}]"


def _key_of(problem: Problem) -> ResourceKey | None:
    """Which Node or BGPConfiguration a problem is about, if any."""
    if not problem.manifest:
        return None
    try:
        found = json.loads(problem.manifest)
        kind, name = found["kind"], found["metadata"]["name"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return ResourceKey(kind, name) if isinstance(kind, str) and isinstance(name, str) else None
