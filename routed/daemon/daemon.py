"""One run of the daemon: what starts in which order, what a signal does, what stops in which order.

Start: folders, the control socket's name, the kernel read back (routes of ours found there make this a restart), the core,
the datastore. The BGP port opens when the core asks for it, after the first in-sync.

Stop: no more input, sessions end as `onStop` says, the last words are written, and the kernel's routes stay. A second
signal does not wait.

Long for one idea: what is started, in which order, what it is told of the others, and how it all ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from routed import __version__
from routed.bgp.neighbor import State, StateChanged
from routed.config import Config, load_config, make_folders, pod_cidrs, registration, reload
from routed.control.protocol import Request
from routed.control.server import ControlServer
from routed.core.core import Core, CoreSettings
from routed.core.effects import Level
from routed.core.peer import Peer
from routed.daemon.answers import Answers
from routed.daemon.datastores import open_followed, open_kubernetes, to_write
from routed.daemon.driver import Driver, trace
from routed.daemon.events import Events
from routed.daemon.explain import Explanations
from routed.daemon.health import Health
from routed.daemon.http import HttpServer
from routed.daemon.left_rules import LeftRules
from routed.daemon.left_tunnels import LeftTunnels, devices_left
from routed.daemon.metrics import DaemonState, Metrics
from routed.daemon.node_status import NodeStatusWriter
from routed.daemon.readiness import ReadinessJudge
from routed.daemon.registration import Registrar
from routed.daemon.relay import Beneath, Relay
from routed.daemon.systemd import Notifier
from routed.daemon.workloads import Workloads
from routed.dataplane.conntrack import FullnessWatch, tune, use
from routed.dataplane.engine import KernelSettings
from routed.dataplane.handover import hand_over
from routed.dataplane.kernel import Kernel
from routed.dataplane.way import way_of
from routed.datastore.file import FileStore
from routed.datastore.secrets import LOOK, SecretFolder
from routed.errors import ConfigError, ControlError, KernelError, StoreError
from routed.model.workloads import INTERFACE_PREFIX
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.observe.logs import LogWriter
from routed.observe.recorder import Engine, Header, RecordingCore
from routed.observed import KernelChange, RouteFailure
from routed.plan.speaker import router_id_from_name

if TYPE_CHECKING:  # gRPC and httpx are imported by who needs them: see `datastores`
    from routed.datastore.etcd import EtcdStore
    from routed.datastore.kubernetes import KubernetesSource

#: Seconds the last words may take to reach the peers.
FAREWELL = 3.0

#: Seconds between two looks at the loop's lag, the log's repeats and the watchdog.
TICK = 1.0

#: Seconds systemd is asked to wait on while the kernel's routes are read back, each TICK anew.
START_PATIENCE = 30.0

#: Seconds of lag that are worth a line in the log.
LONG_LAG = 1.0

#: Seconds between two attempts to read a datastore that can't be read.
STORE_RETRY = 2.0

#: Allocations between two looks of the garbage collector: there are few cycles, and a look at a large table is long.
COLLECT_AFTER = 50_000
#: The same before the datastore was read: a large cluster is a million objects, and all of them stay.
COLLECT_AFTER_WHILE_READING = 1_000_000


class Daemon:
    """See the module's docstring."""

    def __init__(self, config: Config, path: str, log: LogWriter, record: str | None = None) -> None:
        """`path` is where the configuration came from, for reloads; `record` the file to record the core's inputs in."""
        self._config = config
        self._path = path
        self._log = log
        self._record = record
        self._notifier = Notifier()
        self._kernel_problem = ""
        self._store_problem = ""
        self._reload_problem = ""
        self._secrets = SecretFolder(config.secrets_dir)
        self._reload_accepted = True
        self._restart_needed = False
        self._config_read_at = time.time()
        self._http: HttpServer | None = None
        self._workloads: Workloads | None = None
        self._left_tunnels: LeftTunnels | None = None
        self._left_rules: LeftRules | None = None
        self._registrar: Registrar | None = None
        self._node_status: NodeStatusWriter | None = None
        self._kubernetes: KubernetesSource | None = None
        self._relay: Relay | None = None
        self._fullness = FullnessWatch()
        self._changes: list[KernelChange] = []
        """What the kernel told before there was a core to tell."""
        self._driver: Driver | None = None
        self._core: Core | None = None
        self._kernel: Kernel | None = None
        self._stopped = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop_mode = ""
        self._stop_reason = ""

    async def run(self) -> int:
        """Run until told to stop; the exit status. Raises ConfigError where it can't start."""
        make_folders(self._config)
        recording = self._open_recording()
        try:
            await self._run(recording)
        finally:
            if recording is not None:
                with contextlib.suppress(OSError):  # a full disk has been reported
                    recording.close()
        self._log.close()
        return 0

    async def _run(self, recording: TextIO | None) -> None:
        config = self._config
        store = open_followed(config)
        kernel = Kernel(
            KernelSettings(
                table=config.kernel.table,
                protocol=config.kernel.route_protocol,
                metric=config.kernel.metric,
                program_routes=config.kernel.program_routes,
                left_to_pods="" if config.cni.enabled else INTERFACE_PREFIX,
            ),
            changed=self._kernel_changed,
            failed=self._routes_failed,
            problem=self._kernel_problem_changed,
            done=self._routes_done,
        )
        metrics: Metrics | None = None
        tasks: list[asyncio.Task[None]] = []
        control: ControlServer | None = None
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._stray_bug)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            if config.kernel.program_routes and config.kernel.take_over:
                await self._take_over(config)
            await _unless(self._stopped, self._start_kernel(kernel))
            if not self._stopped.is_set():
                settings = CoreSettings(
                    node_name=config.node_name,
                    router_id=router_id_from_name(config.node_name) if config.router_id_from_name else config.router_id,
                    program_routes=config.kernel.program_routes,
                    routes_found=kernel.found_at_start if config.kernel.program_routes else frozenset(),
                    pod_cidrs=pod_cidrs(config),
                    calico_version=config.calico_version,
                    interface_prefixes=config.interface_prefixes,
                    program_priorities=config.kernel.metric == 0,
                    own_workloads=config.cni.enabled,
                )
                core, engine = self._build_core(settings, recording)
                self._core, self._kernel = core, kernel
                driver = self._driver = Driver(
                    engine,
                    kernel,
                    self._log,
                    passwords=self._secrets.password,
                    updates_sent=lambda: core.updates_sent,
                    node_name=config.node_name,
                )
                core.measure = driver.latency.milestone
                health = Health(
                    ReadinessJudge(core),
                    store.health,
                    clock=driver.clock,
                    kernel_problem=lambda: self._kernel_problem,
                    store_problem=lambda: self._store_problem,
                    stopping=self._stopped.is_set,
                )
                metrics = Metrics(
                    core,
                    driver,
                    kernel,
                    store.health,
                    self._state,
                    named_peers=lambda: self._config.metrics.peers,
                    ready=lambda: health.readiness().ready,
                )
                metrics.garbage.start()
                self._http = HttpServer(health.pages(metrics), told=self._http_told, bug=driver.bug)
                self._http.listen(config.metrics.listen)
                _watch(core, driver.events)
                answers = Answers(
                    core,
                    driver,
                    kernel,
                    store,
                    config=lambda: self._config,
                    problems=self._problems,
                    stop=self.stop,
                )
                control = ControlServer(
                    {**answers.handlers(), "policy": self._explain, "tunnels": self._tunnels}, driver.bug
                )
                await control.start(config.socket_path)
                changes, self._changes = self._changes, []
                for change in changes:
                    driver.kernel(change)
                self._log.write(
                    Level.INFO, "routed", f"version {__version__} runs as node {config.node_name}, pid {os.getpid()}"
                )
                node_status = self._node_status = NodeStatusWriter(
                    config.node_name,
                    core,
                    None if isinstance(store, FileStore) else store,
                    driver.clock,
                    self._log.write,
                    driver.bug,
                )
                relay = self._start_workloads(core, driver, kernel, store, node_status)
                await self._look_at_secrets(driver)  # before the resources that name them
                if self._kubernetes is not None:  # before the datastore is in sync, and routes are chosen
                    self._kubernetes.begin(self._beneath(relay))
                tasks.append(loop.create_task(self._follow_secrets(driver)))
                tasks.append(loop.create_task(self._read_datastore(relay, store)))
                if config.node.register:
                    self._registrar = Registrar(
                        registration(config),
                        to_write(store, config),
                        self._log.write,
                        lost=lambda: bool(core.address_problems),
                    )
                    tasks.append(loop.create_task(self._registrar.run()))
                tasks.append(loop.create_task(node_status.run()))
                if self._kubernetes is not None:
                    tasks.append(loop.create_task(self._kubernetes.run(self._beneath(relay))))
                tasks.append(loop.create_task(self._tick(answers, health, metrics)))
                if self._workloads is not None:
                    tasks.append(loop.create_task(self._workloads.policy.counting(lambda: self._config.metrics.listen)))
                tell_collector()
                self._notifier.ready(self._summary())
                await self._stopped.wait()
                await self._farewell(driver)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if metrics is not None:
                metrics.garbage.stop()
            if self._http is not None:
                await self._http.close()
            if control is not None:
                await control.stop()
            if self._workloads is not None:
                await self._workloads.stop()
            if self._left_tunnels is not None:
                await self._left_tunnels.stop()
            if self._left_rules is not None:
                self._left_rules.close()
            if self._driver is not None:
                self._driver.transports.reset_all()
            kernel.close()

    # ---- people

    def stop(self, mode: str, reason: str) -> None:
        """End the run soon: `restart` or `shutdown` as in `Core.shutdown`. The second call ends it at once."""
        if self._stopped.is_set():
            self._hurry.set()
            return
        self._stop_mode, self._stop_reason = mode, reason
        # not before the next turn of the loop: who asked on the control socket gets an answer first
        asyncio.get_running_loop().call_soon(self._stopped.set)

    def _signalled(self, number: signal.Signals) -> None:
        self._log.write(Level.INFO, "routed", f"{number.name} received: stopping ({self._config.on_stop})")
        self.stop(self._config.on_stop, "routed is stopping")

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            new, refused = reload(self._config, load_config(self._path))
        except ConfigError as error:
            self._reload_accepted = False
            self._reload_problem = f"reload refused, the old configuration stays: {error}"
            self._log.write(Level.ERROR, "config", self._reload_problem)
            self._tell("daemon", "config", self._reload_problem)
        else:
            self._config = new
            self._secrets.path = new.secrets_dir
            self._log.level, self._log.form = new.log.level, new.log.form
            self._reload_problem = ""
            self._reload_accepted, self._restart_needed = True, bool(refused)
            self._config_read_at = time.time()
            if self._http is not None:
                self._http.listen(new.metrics.listen)
            if refused:
                self._reload_problem = (
                    f"{self._path}: {', '.join(refused)} changed, which takes a restart; the old stays"
                )
                self._log.write(Level.WARNING, "config", f"reloaded, but not all: {self._reload_problem}")
            else:
                self._log.write(Level.INFO, "config", "reloaded; resources are followed as they change")
            self._tell("daemon", "config", self._reload_problem or "reloaded")
        self._notifier.ready(self._summary())

    def _problems(self) -> list[str]:
        """Everything a person should see to, the plan's own problems excepted."""
        driver = self._driver
        return [
            *(driver.store_problems if driver is not None else ()),
            *(driver.listen_problems if driver is not None else ()),
            *(self._http.problems if self._http is not None else ()),
            *(self._workloads.problems if self._workloads is not None else ()),
            *(self._left_tunnels.problems if self._left_tunnels is not None else ()),
            *(self._left_rules.problems if self._left_rules is not None else ()),
            *(self._node_status.problems if self._node_status is not None else ()),
            *(self._kubernetes.problems if self._kubernetes is not None else ()),
            *((self._fullness.problem,) if self._fullness.problem else ()),
            *((self._registrar.problem,) if self._registrar is not None and self._registrar.problem else ()),
            *(
                problem
                for problem in (self._store_problem, self._kernel_problem, self._reload_problem, self._secrets.problem)
                if problem
            ),
        ]

    def _summary(self) -> str:
        """The node in one line, for `systemctl status`."""
        core, kernel = self._core, self._kernel
        if core is None or kernel is None:
            return f"node {self._config.node_name}: starting"
        up = sum(peer.neighbor.state is State.ESTABLISHED for peer in core.peers.values())
        routes = sum(kernel.route_count(family) for family in Family)
        problems = len(self._problems()) + len(core.plan.problems)
        return (
            f"node {self._config.node_name}: {up} of {len(core.peers)} sessions established, {routes} routes in the kernel"
            f"{f', {problems} problems: see routedctl status' if problems else ''}"
        )

    def _state(self) -> DaemonState:
        """What only we know, for the metrics."""
        driver = self._driver
        return DaemonState(
            reload_accepted=self._reload_accepted,
            config_read_at=self._config_read_at,
            restart_needed=self._restart_needed,
            datastore_problems=len(driver.store_problems if driver is not None else ())
            + bool(self._store_problem)
            + len(self._node_status.problems if self._node_status is not None else ()),
            kernel_problems=int(bool(self._kernel_problem)),
            config_problems=int(bool(self._reload_problem)),
            secrets_problems=int(bool(self._secrets.problem)),
            listen_problems=len(driver.listen_problems if driver is not None else ())
            + len(self._http.problems if self._http is not None else ()),
            kubernetes_problems=len(self._kubernetes.problems) if self._kubernetes is not None else 0,
            pod_problems=len(self._workloads.problems) if self._workloads is not None else 0,
            pods=self._workloads.pods.outcomes if self._workloads is not None else (),
            pods_without_endpoint=self._workloads.pod_keeper.without_endpoint if self._workloads is not None else None,
            collector=self._workloads.collector.state if self._workloads is not None else None,
            firewall=self._workloads.policy.kernel.counts if self._workloads is not None else None,
            policies=self._workloads.policy.tally if self._workloads is not None else None,
            tunnels=self._workloads.tunnels.reached if self._workloads is not None else (),
            conntrack=use(),
        )

    def _kubernetes_told(self, text: str, problem: bool) -> None:
        self._log.write(Level.WARNING if problem else Level.INFO, "kubernetes", text)

    def _http_told(self, text: str, problem: bool) -> None:
        self._log.write(Level.ERROR if problem else Level.INFO, "metrics", text)

    # ---- the kernel

    def _routes_done(self, tickets: Sequence[int]) -> None:
        if self._driver is not None:
            self._driver.latency.acknowledged(tickets)

    async def _take_over(self, config: Config) -> None:
        """Routes another daemon left behind become ours, before ours are read back: the start is a restart then."""
        kernel = config.kernel
        giving = set(kernel.take_over) - {kernel.route_protocol}
        try:
            handed = await asyncio.to_thread(hand_over, kernel.table, giving, kernel.route_protocol)
        except KernelError as error:
            self._log.write(Level.ERROR, "kernel", f"no route was taken over: {error}")
            return
        if handed.routes:
            self._log.write(Level.INFO, "kernel", f"{handed.routes} routes of another routing daemon were taken over")
        for text in handed.left:
            self._log.write(Level.WARNING, "kernel", f"not taken over: {text}")

    async def _start_kernel(self, kernel: Kernel) -> None:
        patience = asyncio.ensure_future(self._ask_for_patience())
        try:
            await kernel.start()
        except OSError as error:
            raise ConfigError("", f"cannot speak to the kernel about routes: {error.strerror}") from None
        finally:
            patience.cancel()

    async def _ask_for_patience(self) -> None:
        """Reading back a large table may take longer than the unit's start may; a loop that hangs asks for nothing."""
        while True:
            self._notifier.starting(f"node {self._config.node_name}: reading the kernel's routes", START_PATIENCE)
            await asyncio.sleep(TICK)

    def _kernel_changed(self, change: KernelChange) -> None:
        if self._driver is None:
            self._changes.append(change)
            return
        self._driver.kernel(change)
        if self._workloads is not None and (change.full or change.interfaces or change.interfaces_removed):
            self._workloads.interfaces_changed(change)

    def _routes_failed(self, failures: tuple[RouteFailure, ...], cleared: tuple[tuple[Family, bytes], ...]) -> None:
        if self._driver is not None:
            self._driver.route_failures(failures, cleared)

    def _kernel_problem_changed(self, problem: str) -> None:
        self._kernel_problem = problem
        if problem:
            self._log.write(Level.ERROR, "kernel", problem)
        else:
            self._log.write(Level.INFO, "kernel", "the kernel takes routes again")
        self._tell("kernel", "kernel", problem or "the kernel takes routes again")

    def _tell(self, kind: str, subject: str, text: str) -> None:
        """Those who follow the events hear of it."""
        if self._driver is not None:
            self._driver.events.publish(kind, subject, text)

    # ---- tasks

    def _start_workloads(
        self, core: Core, driver: Driver, kernel: Kernel, followed: FileStore | EtcdStore, node_status: NodeStatusWriter
    ) -> Relay:
        """What of the node's pods is ours; where the datastore's news go from here on."""
        config = self._config
        for problem in tune(config.conntrack):
            self._log.write(Level.WARNING, "conntrack", problem)
        if config.kubeconfig:
            self._kubernetes = open_kubernetes(config, self._kubernetes_told)
        if not config.cni.enabled:
            self._left_rules = LeftRules()
            for problem in self._left_rules.problems:
                self._log.write(Level.WARNING, "policy", problem)
            if not devices_left():
                return Relay(
                    driver, (node_status.update,), (node_status.in_sync, tell_collector_of_the_cluster), driver.clock
                )
            left = self._left_tunnels = LeftTunnels(
                config.node_name, to_write(followed, config), self._log.write, driver.bug
            )
            relay = self._relay = Relay(
                driver,
                (left.update, node_status.update),
                (left.in_sync, node_status.in_sync, tell_collector_of_the_cluster),
                driver.clock,
            )
            left.start(relay.publish)
            return relay
        written = to_write(followed, config, busy=True)
        named = lambda: self._config.metrics.policies  # noqa: E731  (what a reload changes)
        workloads = Workloads(
            config, core, kernel, followed, written, self._log.write, driver.bug, self._kubernetes, named
        )
        workloads.start()
        self._workloads = workloads
        workloads.take_interfaces()  # what was told before
        relay = self._relay = Relay(
            driver,
            (
                workloads.policy.update,
                workloads.former_owners.update,  # which asks the pods what was before
                workloads.pods.update,
                workloads.update,
                workloads.pod_keeper.update,
                workloads.tunnel_addresses.update,
                node_status.update,
                *((workloads.pod_follower.update,) if self._kubernetes is not None else ()),
            ),
            (
                workloads.in_sync,
                workloads.policy.in_sync,
                workloads.former_owners.in_sync,
                workloads.pod_keeper.in_sync,
                workloads.tunnel_addresses.in_sync,
                node_status.in_sync,
                tell_collector_of_the_cluster,
            ),
            driver.clock,
            (workloads.policy.unreadable,),
            workloads.loaded,
        )
        workloads.follow(relay)
        driver.tunnels = workloads.apply_tunnels
        return relay

    def _beneath(self, relay: Relay) -> Beneath:
        return Beneath(relay) if self._workloads is None else Beneath(relay, self._workloads.pod_follower.told)

    async def _read_datastore(self, driver: Relay, store: FileStore | EtcdStore) -> None:
        while True:
            try:
                await store.run(driver)
            except StoreError as error:
                self._store_problem = str(error)
                self._log.write(Level.ERROR, "datastore", f"{error}; trying again")
                self._tell("datastore", "datastore", f"{error}; trying again")
            except Exception as error:
                self._store_problem = "reading the datastore ended with an internal error; the log has it"
                self._log.write(Level.ERROR, "bug", f"in the datastore: {trace(error)}")
            await asyncio.sleep(STORE_RETRY)
            self._store_problem = ""

    async def _look_at_secrets(self, driver: Driver) -> None:
        look = self._secrets.look
        for news in await asyncio.to_thread(look) if self._secrets.path else look():
            driver.secret(news.reference, news.generation, news.problem)

    async def _follow_secrets(self, driver: Driver) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._look_at_secrets(driver)
            except Exception as error:
                driver.bug("the secrets", error)

    async def _tick(self, answers: Answers, health: Health, metrics: Metrics) -> None:
        loop = asyncio.get_running_loop()
        interval = min(TICK, self._notifier.watchdog_interval or TICK)
        while True:
            expected = loop.time() + interval
            await asyncio.sleep(interval)
            lag = loop.time() - expected
            answers.largest_lag = max(answers.largest_lag, lag)
            metrics.lag.observe(max(0.0, lag))
            health.tick()
            if lag >= LONG_LAG:
                self._log.write(Level.WARNING, "routed", f"busy or stopped for {lag:.1f} s")
            self._log.tidy()
            if self._relay is not None:
                self._relay.tidy()
            said = self._fullness.look(use())
            if said:
                self._log.write(Level.WARNING if self._fullness.problem else Level.INFO, "conntrack", said)
            if self._notifier.watchdog_interval is not None:
                self._notifier.alive(self._summary())

    async def _farewell(self, driver: Driver) -> None:
        """End the sessions and wait until the peers have closed too, but not for long."""
        self._notifier.stopping(self._stop_reason)
        self._tell("daemon", "routed", f"stops: {self._stop_reason}")
        driver.shutdown(self._stop_mode, self._stop_reason)
        loop = asyncio.get_running_loop()
        until = loop.time() + FAREWELL
        while len(driver.transports) and loop.time() < until and not self._hurry.is_set():
            await asyncio.sleep(0.01)
        self._log.write(Level.INFO, "routed", "stopped; routes stay in the kernel")

    # ---- inside

    async def _explain(self, request: Request) -> dict[str, object]:
        if self._core is None or self._workloads is None:
            raise ControlError("this node enforces no policies: cni.enabled is not set")
        return await Explanations(self._core, self._workloads.policy, self._config.node_name, way_of).answer(request)

    def _tunnels(self, _: Request) -> list[dict[str, object]]:
        if self._workloads is None:
            raise ControlError("this node's tunnels are not routed's: cni.enabled is not set")
        return self._workloads.tunnel_rows()

    def _open_recording(self) -> TextIO | None:
        if self._record is None:
            return None
        try:
            return open(self._record, "w", encoding="utf-8", buffering=1 << 20)
        except OSError as error:
            raise ConfigError(self._record, f"cannot write the recording: {error.strerror}") from None

    def _recording_failed(self, error: OSError) -> None:
        self._log.write(Level.ERROR, "record", f"the recording {self._record} ends here: {error.strerror}")

    def _build_core(self, settings: CoreSettings, recording: TextIO | None) -> tuple[Core, Engine]:
        """A core, and what the daemon drives: itself, or the recorder around it."""
        seed = secrets.randbits(64)
        core = Core(settings, seed)
        if recording is None:
            return core, core
        return core, RecordingCore(core, Header(settings, seed), recording, self._recording_failed)

    def _stray_bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception nobody caught: one line, and the loop goes on."""
        error = context.get("exception")
        text = trace(error) if isinstance(error, BaseException) else str(context.get("message"))
        self._log.write(Level.ERROR, "bug", f"in the loop: {text}")


def _watch(core: Core, events: Events) -> None:
    """Sessions become events always, routes while somebody follows them."""

    def session(peer: Peer, change: StateChanged) -> None:
        events.publish(
            "session",
            peer.plan.name,
            f"{change.old.label} -> {change.new.label}: {change.reason}",
            address=format_address(peer.plan.session.address),
            old=change.old.label,
            new=change.new.label,
            reason=change.reason,
        )

    def routes_wanted(wanted: bool) -> None:
        core.exporter.watch = events.routes if wanted else None

    core.watch_sessions = session
    events.routes_wanted = routes_wanted


def tell_collector() -> None:
    """What exists now stays: the collector need not look at it again, nor at what is being read from the datastore."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_WHILE_READING, 20, 100)


def tell_collector_of_the_cluster() -> None:
    """What the datastore held was read, and stays too."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 100)


async def _unless(event: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Wait for `work`, but no longer than until `event`."""
    task = asyncio.ensure_future(work)
    stopper = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, stopper), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        stopper.cancel()
