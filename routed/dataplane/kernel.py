"""The kernel as the daemon uses it: the engine with sockets, timers and a thread under it.

The loop never waits for the kernel: a chunk of routes is handed to one thread, since a single insertion may keep the
kernel busy for half a second (the trie of 250,000 IPv4 routes doubles its root) while keepalives must go out. The thread
sends, takes the answers that lie ready when the send returns, and hands them back; everything else happens on the loop.

Closing leaves all routes in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from routed.dataplane.engine import EngineCounters, KernelEngine, KernelSettings
from routed.dataplane.ours import FibEntry
from routed.dataplane.routes import RouteCounters
from routed.dataplane.sockets import NetlinkSocket, is_overflow, open_dumper, open_monitor, open_writer
from routed.desired import RouteBatch
from routed.errors import KernelError
from routed.net.families import Family
from routed.observed import KernelChange, RouteFailure

#: Datagrams taken from one socket in a turn of the loop: at 32 KiB of a dump each, about 5 ms.
_TURN = 8
#: Notifications, one a datagram, taken in a turn.
_NOTIFICATIONS = 256

ChangedCallback = Callable[[KernelChange], None]
FailedCallback = Callable[[tuple[RouteFailure, ...], tuple[tuple[Family, bytes], ...]], None]
"""New refusals, and refusals that are over."""
DoneCallback = Callable[[Sequence[int]], None]
"""Tickets all routes of which the kernel took or refused."""
ProblemCallback = Callable[[str], None]
"""One sentence about why nothing works; empty when it works again."""


class Kernel:
    """Routes written and watched. All methods and callbacks belong to the loop's thread."""

    def __init__(
        self,
        settings: KernelSettings,
        *,
        changed: ChangedCallback,
        failed: FailedCallback,
        problem: ProblemCallback,
        done: DoneCallback | None = None,
    ) -> None:
        self._settings = settings
        self._changed = changed
        self._failed = failed
        self._tell_problem = problem
        self._done = done
        self._problem = ""
        self._dump_problem = ""
        self._sockets: list[NetlinkSocket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._scheduled = False
        self._waiters: list[asyncio.Future[None]] = []
        self._listeners: list[asyncio.Future[None]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="routes")
        self._closed = False

    async def start(self) -> None:
        """Open the sockets and read everything back; `changed` is told in full before this returns.

        Raises OSError where the sockets can't be opened.
        """
        self._loop = asyncio.get_running_loop()
        self._writer = self._open(open_writer())
        self._monitor = self._open(open_monitor(self._writer.port, self._settings.table))
        self._dumper = self._open(open_dumper())
        self._engine = KernelEngine(self._settings, self._writer.port)
        self._loop.add_reader(self._monitor.fileno(), self._work)
        self._loop.add_reader(self._dumper.fileno(), self._read_dumper)
        self._engine.start(self._loop.time())
        self._work()
        await self.drained()

    def close(self) -> None:
        """Stop writing and watching. Routes stay."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in (*self._waiters, *self._listeners):
            waiter.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for each in self._sockets:
            self._loop.remove_reader(each.fileno())
            each.close()

    def apply(self, batches: Iterable[RouteBatch], ticket: int = 0) -> None:
        """Desired changes, in order; written soon. `done` hears of a `ticket` greater than 0 when they are."""
        self._engine.apply(batches, ticket)
        self._schedule()

    def sweep(self, families: Iterable[Family]) -> None:
        """Remove our routes of these families that were found at start and not asked for since."""
        self._engine.sweep(families)
        self._schedule()

    async def drained(self) -> None:
        """Until everything applied so far is in the kernel or refused by it."""
        self._schedule()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    async def answered(self, within: float) -> None:
        """Until the kernel has answered a chunk of routes, or these seconds are over."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._listeners.append(waiter)
        await asyncio.wait((waiter,), timeout=within)

    # ---- questions

    @property
    def found_at_start(self) -> frozenset[Family]:
        """Families that had routes of ours in the kernel when we started."""
        return self._engine.found_at_start

    @property
    def problem(self) -> str:
        """Why nothing can be written or read at the moment, or empty."""
        return self._problem

    @property
    def route_counters(self) -> RouteCounters:
        return self._engine.routes.counters

    @property
    def counters(self) -> EngineCounters:
        return self._engine.counters

    def route_count(self, family: Family) -> int:
        """Routes of ours in the kernel."""
        return self._engine.routes.count(family)

    def routes_pending(self, family: Family) -> int:
        """Prefixes whose route is still to be written or put back."""
        return self._engine.routes.pending(family)

    def routes_refused(self, family: Family) -> int:
        """Prefixes whose route the kernel refuses."""
        return self._engine.routes.refused_now(family)

    def routes_stale(self, family: Family) -> int:
        """Routes found at start that nobody asked for yet."""
        return self._engine.routes.stale(family)

    def routes_use(self, interface: int) -> bool:
        """Whether a route of ours may lead through an interface."""
        return self._engine.routes.uses(interface)

    def fib(self, family: Family) -> Iterator[FibEntry]:
        """Every route of ours; may be walked in slices."""
        return self._engine.routes.entries(family)

    def fib_entry(self, family: Family, prefix: bytes) -> FibEntry | None:
        return self._engine.routes.entry(family, prefix)

    # ---- inside

    def _open(self, opened: NetlinkSocket) -> NetlinkSocket:
        self._sockets.append(opened)
        return opened

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        """Carry on whatever can be carried on, and tell what came of it."""
        self._scheduled = False
        if self._closed:
            return
        engine = self._engine
        now = self._loop.time()
        at = engine.next_timer()
        if at is not None and at <= now:
            engine.handle_timer(now)
        self._take_notifications(now)  # what others did to a route decides how it may be written
        chunk = engine.take_write(now)
        if chunk:
            self._thread.submit(self._exchange, chunk).add_done_callback(self._exchanged)
        if chunk is not None:
            self._schedule()  # there may be more; other callbacks go first
        request = engine.take_dump(now)
        if request:
            try:
                self._dumper.send(request)
            except OSError as error:
                self._dump_problem = f"can't ask the kernel for its routes: {error.strerror}"
                engine.dump_lost(now)
        self._tell()
        self._set_timer()
        if engine.idle and self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _tell(self) -> None:
        engine = self._engine
        change = engine.take_change() if engine.ready else None
        if change is not None:
            self._changed(change)
        routes = engine.routes
        if routes.failures or routes.cleared:
            failures, routes.failures = routes.failures, []
            cleared, routes.cleared = routes.cleared, []
            self._failed(tuple(failures), tuple(cleared))
        if routes.done_tickets:
            tickets, routes.done_tickets = routes.done_tickets, []
            if self._done is not None:
                self._done(tickets)
        problem = routes.problem or self._dump_problem
        if problem != self._problem:
            self._problem = problem
            self._tell_problem(problem)

    def _set_timer(self) -> None:
        at = self._engine.next_timer()
        if self._timer is not None:
            if at == self._timer_at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._work()

    def _exchange(self, chunk: bytes) -> list[bytes | OSError]:
        """On the thread: send a chunk; the kernel's answers, complete when the send returns."""
        answers: list[bytes | OSError] = []
        try:
            self._writer.send(chunk)
        except OSError as error:
            return [error]
        while True:
            try:
                data = self._writer.receive()
            except OSError as error:
                answers.append(error)
                continue
            if data is None:
                return answers
            answers.append(data)

    def _exchanged(self, future: Future[list[bytes | OSError]]) -> None:
        """Still on the thread."""
        if not self._closed and not future.cancelled():
            self._loop.call_soon_threadsafe(self._answered, future)

    def _answered(self, future: Future[list[bytes | OSError]]) -> None:
        if self._closed:
            return
        now = self._loop.time()
        for answer in future.result():
            if isinstance(answer, OSError):
                self._engine.writer_overflow(now)
            else:
                self._engine.writer_data(answer, now)
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            if not listener.done():
                listener.set_result(None)
        self._work()

    def _take_notifications(self, now: float) -> None:
        for _ in range(_NOTIFICATIONS):
            try:
                data = self._monitor.receive()
            except OSError as error:
                if not is_overflow(error):
                    raise
                self._engine.monitor_overflow(now)
                continue
            if data is None:
                break
            self._engine.monitor_data(data, now)

    def _read_dumper(self) -> None:
        now = self._loop.time()
        for _ in range(_TURN):
            try:
                data = self._dumper.receive()
                if data is None:
                    break
                self._engine.dump_data(data, now)
                self._dump_problem = ""
            except KernelError as error:
                self._dump_problem = str(error)
            except OSError as error:
                self._dump_problem = f"can't read the kernel's routes: {error.strerror}"
                self._engine.dump_lost(now)
        self._work()
