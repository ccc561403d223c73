"""The engine of one node: resources, sessions and the kernel's table in; bytes, kernel routes and log lines out.

A `Core` is a deterministic function of its inputs: every method that takes `now` is one, the recorder writes each down,
and replaying them gives the same outputs byte for byte. Nothing here waits, opens or measures; randomness is a seeded
generator. Calls are bounded: work over whole tables is cut into slices that `flush` runs one at a time, so a keepalive
never waits for a table walk.

Order of a turn, as the daemon drives it: feed inputs; then `flush(now)` once, again in later turns while it returns
True; carry out `effects`; for every connection in `writable`, `take` and write.

Restart (RFC 4724 4.1): see `core/restart`; until it is over, OPENs to peers that have not been up since say that this
speaker has restarted and forwards as before (R and F bits), or they would drop its routes when they come back.

Long for one idea: the order in which one list of inputs has its effects, over sessions, plan and tables. What has an order
of its own is beside it, and knows nothing of the core: whose a connection is (`connections`), paths of what peers announce
(`imports`), what they are told (`exports`), own routes (`origins`), what goes into the kernel (`programming`), what a
restart waits for (`restart`).

Not here: wire formats and session rules (`bgp`), choosing (`rib`), what resources mean (`plan`), sockets (`daemon`).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field

from routed.bgp.iana import CeaseSubcode
from routed.bgp.messages import Notification
from routed.bgp.neighbor import (
    CloseRequested,
    ConnectRequested,
    Established,
    Neighbor,
    RefreshReceived,
    SessionDown,
    StaleExpired,
    State,
    StateChanged,
)
from routed.bgp.update import AttributePool, Update
from routed.core.connections import Connections, Refusals
from routed.core.effects import (
    Close,
    Connect,
    Effect,
    Guard,
    Guards,
    Level,
    Listen,
    Log,
    Milestone,
    Routes,
    Sweep,
    Tunnels,
    problem_lines,
)
from routed.core.exports import Exporter
from routed.core.imports import Importer
from routed.core.interfaces import Interfaces
from routed.core.origins import Origins
from routed.core.peer import Peer
from routed.core.programming import TUNNEL_DEVICES, Programmer
from routed.core.restart import Restart, awaited
from routed.core.waiting import keep_what_is_up
from routed.desired import KernelRoute
from routed.model.resources import Update as ResourceUpdate
from routed.net.addresses import format_address, is_link_local
from routed.net.families import Family
from routed.observed import Interface, KernelChange, RouteFailure
from routed.plan.diff import diff
from routed.plan.planner import Planner
from routed.plan.types import CalicoVersion, PeerChange, PeerPlan, Plan, PlanSettings, PodCidrs
from routed.rib.decide import MAXIMUM_PATHS
from routed.rib.nexthops import NextHopTable
from routed.rib.path import SourceKind
from routed.rib.table import FamilyRib
from routed.values import dataclass

#: Seconds stale routes are kept for a restarted peer whose End-of-RIB does not come.
STALE_MAX = 360.0

#: What of a peer changes without a new session, for people.
CHANGES = {
    PeerChange.SESSION: "settings of the session",
    PeerChange.IMPORT: "what is accepted",
    PeerChange.ROLE: "the part in route reflection",
    PeerChange.EXPORT: "what is announced",
}

#: Peers that are named where a line is about many.
NAMED = 3


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """What a core is told once, at start."""

    node_name: str
    router_id: int | None = None
    """From the configuration; None takes the Node's IPv4 address."""
    program_routes: bool = True
    routes_found: frozenset[Family] = field(default_factory=frozenset)
    """Families in which the kernel held routes of ours at start: this is a restart."""
    maximum_paths: int = MAXIMUM_PATHS
    pod_cidrs: PodCidrs = PodCidrs.WITHOUT_AFFINITY
    calico_version: CalicoVersion | None = None
    """None: by the resources."""
    interface_prefixes: tuple[str, ...] = ()
    """Of workloads' interfaces; empty: by the resources."""
    program_priorities: bool = True
    """Whether routes go into the kernel at the priorities LOCAL_PREF says (v3.32); False: all at one metric."""
    own_workloads: bool = False
    """The pods of this node are ours."""


def _unmeasured(_: Milestone) -> None:
    """Nobody measures."""


class Core:
    """See the module's docstring."""

    def __init__(self, settings: CoreSettings, seed: int) -> None:
        self.settings = settings
        self.effects: list[Effect] = []
        """To be carried out by the owner, who takes the list and leaves an empty one."""
        self.writable: set[int] = set()
        """Connections `take` may have bytes for; the owner removes what it served, and never puts another set here."""
        self.measure: Callable[[Milestone], None] = _unmeasured
        """Told how far `flush` has got. It may look at a clock, the core does not."""
        self.updates_sent = 0
        """UPDATEs given out by `take`, to all peers."""
        self.peers: dict[str, Peer] = {}
        self.plan = Plan()
        self._planned: Plan | None = None
        """What the planner made, which `plan` differs from in sessions that wait for a password."""
        self.planned = False
        """`plan` follows from the datastore: the first was made."""
        self.planned_at: float | None = None
        """When a plan last differed from the one before."""
        self.interfaces = Interfaces()
        self.connections = Connections()
        self.refusals = Refusals()
        self.address_problems: tuple[str, ...] = ()
        """Addresses of the Node that no interface has."""
        self.route_failures: dict[tuple[Family, bytes], RouteFailure] = {}
        self._planner = Planner(
            settings.node_name,
            PlanSettings(
                router_id=settings.router_id,
                interface_of=lambda path: path.interface,
                calico_version=settings.calico_version,
                pod_cidrs=settings.pod_cidrs,
                interface_prefixes=settings.interface_prefixes,
                own_workloads=settings.own_workloads,
            ),
        )
        self.ribs: dict[Family, FamilyRib] = {
            family: FamilyRib(family, program_routes=settings.program_routes, maximum_paths=settings.maximum_paths)
            for family in Family
        }
        self.programmer = Programmer(self.ribs, self._planner.holder)
        """What of the chosen routes goes into the kernel."""
        self.next_hops = NextHopTable(self.programmer.own_route)
        for family, rib in self.ribs.items():
            rib.watched = self.next_hops.watched[family]
        self.restart = Restart(routes_found=bool(settings.routes_found))
        self.stopping = False
        self.watch_sessions: Callable[[Peer, StateChanged], None] | None = None
        """Who is told of sessions' states as they change, as `exporter.watch` is of best paths. They only look: what a core
        does never depends on them, and they are no part of a recording."""
        self._random = random.Random(seed)
        self._pool = AttributePool()
        self.origins = Origins(self.ribs, self.next_hops, self.interfaces, self._pool)
        self._speaks_from: set[bytes] = set()
        """The Node's addresses."""
        self._replan_needed = False
        self._peers_added = 0
        self._jobs: deque[Iterator[None]] = deque()
        """Walks over tables, for `flush` to do a slice of."""
        self.importer = Importer(
            self.ribs, self.peers, self.next_hops, self.interfaces, self.connections, self._jobs.append
        )
        self.exporter = Exporter(self.ribs, self.peers, self.connections, self.writable, self._jobs.append)
        self._timers: list[tuple[float, str]] = []
        self._listening = Listen(0)
        self._guards = Guards(())

    # ================================================================ inputs: the datastore

    def resource(self, update: ResourceUpdate, now: float) -> None:  # noqa: ARG002 - every input carries its time
        """A resource exists with this value, or (None) does not."""
        self._planner.update(update)
        self._replan_needed = True

    def secret(self, reference: str, generation: int, problem: str, now: float) -> None:  # noqa: ARG002
        """A password is kept at `reference` (`SECRET/KEY`): its content's generation, or 0 where there is none.

        `problem` says what is wrong with it; with an empty reference, why there are no secrets at all. The password itself
        never comes here.
        """
        self._planner.secret(reference, generation, problem)
        self._replan_needed = True

    def loaded(self, now: float) -> None:
        """What an earlier run saved is complete: act on it, but take nothing from the kernel on its word alone."""
        self._begin(now)

    def in_sync(self, now: float) -> None:
        """The datastore's first snapshot is complete: act on it from here on."""
        if self.restart.synced_at is None:
            self.restart.synced_at = now
        self._begin(now)

    def _begin(self, now: float) -> None:
        if self.restart.in_sync_at is None:
            self.restart.in_sync_at = now
            self._replan_needed = True
            if self.restart.deferring:
                self._log(
                    Level.INFO,
                    "restart",
                    "the kernel has routes of ours from before: they stay, and route selection waits for the peers",
                )

    # ================================================================ inputs: connections

    def connected(self, conn: int, local: bytes, now: float) -> None:
        """A `Connect` succeeded; `local` is the packed address it was made from."""
        peer = self.connections.peers.get(conn)
        if peer is None:
            self.effects.append(Close(conn))
            return
        self.connections.made(conn, local)
        peer.neighbor.connected(conn, now)
        self._after(peer, now)

    def connect_failed(self, conn: int, reason: str, now: float) -> None:
        peer = self.connections.peers.pop(conn, None)
        if peer is not None:
            peer.neighbor.connect_failed(conn, now, reason)
            self._after(peer, now)

    def accepted(self, remote: bytes, local: bytes, interface: str, now: float) -> int:
        """Somebody connected to us: the id of the new connection, or 0 to close it at once."""
        refusal = "it is not the address of a configured peer"
        for peer in list(self.peers.values()):
            config = peer.neighbor.config
            if config.address != remote or (config.interface and interface and config.interface != interface):
                continue
            answer = peer.neighbor.accept(now)
            if isinstance(answer, int):
                if answer:
                    self.connections.peers[answer] = peer
                    self.connections.made(answer, local)
                    self._after(peer, now)
                return answer
            refusal = answer
        self._log(Level.WARNING, "listen", f"refused a connection from {format_address(remote)}: {refusal}")
        self.refusals.add(remote, refusal, now)
        return 0

    def received(self, conn: int, data: bytes, now: float) -> None:
        peer = self.connections.peers.get(conn)
        if peer is not None:
            peer.neighbor.receive_data(conn, data, now)
            self._after(peer, now)

    def closed(self, conn: int, reason: str, now: float) -> None:
        """The connection ended without our asking."""
        peer = self.connections.peers.pop(conn, None)
        if peer is not None:
            peer.neighbor.closed(conn, now, reason)
            self._after(peer, now)
            self.connections.gone(conn)

    def writing_paused(self, conn: int, now: float) -> None:
        """The connection's socket buffer is full."""
        peer = self.connections.peers.get(conn)
        if peer is not None:
            peer.neighbor.writing_paused(conn, now)
            self._rearm(peer)

    def writing_resumed(self, conn: int, now: float) -> None:
        peer = self.connections.peers.get(conn)
        if peer is not None:
            peer.neighbor.writing_resumed(conn, now)
            self.writable.add(conn)
            self._rearm(peer)

    # ================================================================ inputs: the kernel

    def kernel(self, change: KernelChange, now: float) -> None:
        """Foreign routes, links or addresses changed."""
        before = self.interfaces.apply(change)
        if before or change.interfaces:
            touched = [*before.values(), *change.interfaces]
            if change.full or any(address in self._speaks_from for each in touched for address, _ in each.addresses):
                self._check_addresses()
            names = {interface.name for interface in touched}
            if not TUNNEL_DEVICES.isdisjoint(names) and self.programmer.devices(self.interfaces.values(), now):
                self._program_pools()
            self.origins.devices_changed(names)
        self.importer.next_hops_changed(set(self.next_hops.apply(change)))
        if before or change.interfaces:
            self._links_changed(before, now)
        self.origins.kernel(change)

    def route_failures_changed(
        self,
        failures: tuple[RouteFailure, ...],
        cleared: tuple[tuple[Family, bytes], ...],
        now: float,  # noqa: ARG002
    ) -> None:
        """The kernel refused routes, or took ones it had refused before."""
        for key in cleared:
            self.route_failures.pop(key, None)
        for failure in failures:
            self.route_failures[failure.family, failure.prefix] = failure

    # ================================================================ inputs: time and people

    def timer(self, now: float) -> None:
        """The time `next_timer` gave has come."""
        while self._timers and self._timers[0][0] <= now:
            at, name = heapq.heappop(self._timers)
            peer = self.peers.get(name)
            if peer is None or peer.timer_at != at:
                continue
            peer.timer_at = None
            peer.neighbor.handle_timer(now)
            if peer.stale_until is not None and peer.stale_until <= now:
                self._log(Level.WARNING, name, f"no End-of-RIB within {STALE_MAX:.0f} s: its stale routes are removed")
                self._sweep(peer)
            self._after(peer, now)
        if self.programmer.moving.timer(now):
            self._program_pools()

    def shutdown(self, mode: str, reason: str, now: float) -> None:
        """End all sessions: `restart` closes TCP so that helpers keep our routes, `shutdown` sends Cease/2 with `reason`."""
        self.stopping = True
        for peer in self.peers.values():
            notification = (
                Notification.cease(CeaseSubcode.ADMINISTRATIVE_SHUTDOWN, reason) if mode == "shutdown" else None
            )
            peer.neighbor.stop(now, notification, admin_down=True, why=reason or f"routed stops ({mode})")
            self._after(peer, now)

    def clear(self, address: bytes, mode: str, now: float) -> bool:
        """Reset a peer's session (`hard`), or ask for (`in`) or give (`out`) its routes again. False: no such peer."""
        found = False
        for peer in self.peers.values():
            if peer.neighbor.config.address != address:
                continue
            found = True
            if mode == "hard":
                peer.neighbor.stop(now, Notification.cease(CeaseSubcode.ADMINISTRATIVE_RESET), admin_down=False)
                peer.neighbor.start(now)
            elif mode == "in":
                for family in peer.adj_in:
                    peer.neighbor.refresh(family)
            else:
                for adj_out in peer.adj_out.values():
                    adj_out.refresh()
                    self.writable.add(peer.neighbor.connection)
            self._after(peer, now)
        return found

    # ================================================================ outputs

    def flush(self, now: float) -> bool:
        """Do what the inputs of this turn led to, one slice of it; True where another call has more to do."""
        if self.stopping:  # sessions end, but the kernel keeps what it has
            return False
        if self._replan_needed and self.restart.in_sync_at is not None:
            self._replan_needed = False
            plan = self._planner.plan()
            differs, self._planned = plan is not self._planned, plan
            if differs:
                self.planned_at = now
            self.measure(Milestone.PLANNED)
            if differs or not self.planned:
                self._apply_plan(*keep_what_is_up(plan, self.peers.values()), now)
            self.planned = True
            moved = self._planner.take_moved_blocks()
            if not self.restart.deferring:
                self.effects.extend(map(Routes, self.programmer.moved(moved)))
        for family, rib in self.ribs.items():
            if rib.touched:
                touched, rib.touched = rib.touched, set()
                self.importer.next_hops_changed(set(self.next_hops.routes_changed(family, touched)))
        chosen = False
        for family, rib in self.ribs.items():
            if rib.changes:
                chosen = True
                self.exporter.best_paths_changed(family)
            if rib.kernel_changes:
                chosen = True
                kernel_changes = rib.take_kernel_changes()
                if not self.restart.deferring:
                    self.effects.append(Routes(self.programmer.changed(family, kernel_changes)))
        if chosen:
            self.measure(Milestone.CHOSEN)
        if not self.restart.is_over:
            self._check_restart(now)
        if self._jobs:  # after the changes so far were passed on: `UpdateGroup.count` must not see what it will hear of
            job = self._jobs[0]
            if next(job, True):  # a slice yields None
                self._jobs.popleft()
        self.importer.forget_next_hops()
        return bool(self._jobs) or any(rib.changes or rib.kernel_changes or rib.touched for rib in self.ribs.values())

    def take(self, conn: int, limit: int) -> bytes:
        """The next octets to write on a connection, about `limit` of them; empty when there is nothing to say."""
        peer = self.connections.peers.get(conn)
        if peer is None:
            return self.connections.last_words(conn)
        data = peer.neighbor.control_output(conn)
        if peer.neighbor.connection == conn:
            for adj_out in peer.adj_out.values():
                if len(data) >= limit:
                    break
                before = adj_out.messages
                data += adj_out.take(limit - len(data))
                peer.neighbor.counters.updates_sent += adj_out.messages - before
                self.updates_sent += adj_out.messages - before
                if not data and adj_out.has_output():
                    self.writable.add(conn)  # a slice without anything to say: ask again in the next turn
        return data

    def next_timer(self) -> float | None:
        """When `timer` wants to be called, or None."""
        times = (self._timers[0][0] if self._timers else None, self.programmer.moving.next_timer())
        at = min((each for each in times if each is not None), default=None)
        look = None if self.restart.is_over else self.restart.next_look(self.peers.values())
        return look if at is None or (look is not None and look < at) else at

    # ================================================================ sessions

    def _after(self, peer: Peer, now: float) -> None:
        """Act on what a neighbour reports, and note that it may have something to write."""
        neighbor = peer.neighbor
        events = neighbor.events
        if events:
            neighbor.events = []
            for event in events:
                if event.__class__ is Update:
                    self.importer.update(peer, event)
                    if event.end_of_rib is not None:
                        self._end_of_rib(peer, event.end_of_rib)
                elif isinstance(event, ConnectRequested):
                    self._connect(peer, event.conn)
                elif isinstance(event, CloseRequested):
                    self._close(peer, event.conn)
                elif isinstance(event, Established):
                    self._established(peer, event, now)
                elif isinstance(event, SessionDown):
                    self._down(peer, event)
                elif isinstance(event, StaleExpired):
                    if not self.stopping:  # then the kernel keeps them
                        self._log(Level.WARNING, peer.plan.name, f"{event.why}: its routes are removed")
                    peer.problem_told = neighbor.counters.last_error  # this line says it
                    self._sweep(peer)
                elif isinstance(event, RefreshReceived):
                    if event.family in peer.adj_out:
                        peer.adj_out[event.family].refresh()
                        self.writable.add(neighbor.connection)
                elif isinstance(event, StateChanged):
                    self._state_changed(peer, event)
        problem = neighbor.counters.last_error
        if problem != peer.problem_told:
            peer.problem_told = problem
            if problem:
                self._log(Level.INFO if self.stopping else Level.WARNING, peer.plan.name, problem)
        for waiting in neighbor.pending_output():
            self.writable.add(waiting)
        self._rearm(peer)

    def _state_changed(self, peer: Peer, event: StateChanged) -> None:
        level = Level.INFO if event.new is State.ESTABLISHED else Level.DEBUG
        if event.old is State.ESTABLISHED:
            level = Level.INFO if self.stopping else Level.WARNING
            peer.problem_told = peer.neighbor.counters.last_error  # this line says it
        kept = f"; its {peer.kept} routes are kept, as stale" if event.old is State.ESTABLISHED and peer.kept else ""
        self._log(level, peer.plan.name, f"{event.old.label} -> {event.new.label}: {event.reason}{kept}")
        if self.watch_sessions is not None:
            self.watch_sessions(peer, event)

    def _rearm(self, peer: Peer) -> None:
        at = peer.neighbor.next_timer()
        if peer.stale_until is not None and (at is None or peer.stale_until < at):
            at = peer.stale_until
        if at is not None and (peer.timer_at is None or at < peer.timer_at):
            peer.timer_at = at
            heapq.heappush(self._timers, (at, peer.plan.name))

    def _connect(self, peer: Peer, conn: int) -> None:
        config = peer.neighbor.config
        self.connections.peers[conn] = peer
        self.effects.append(
            Connect(
                conn,
                config.address,
                config.port,
                config.local_address,
                config.interface,
                config.password,
                config.ttl_security,
            )
        )

    def _close(self, peer: Peer, conn: int) -> None:
        """Let a connection go; what is still to be said on it (a NOTIFICATION) waits for `take`."""
        self.connections.close(conn, peer.neighbor.control_output(conn))
        self.writable.discard(conn)
        self.effects.append(Close(conn))

    def _established(self, peer: Peer, event: Established, now: float) -> None:
        negotiated = event.negotiated
        peer.source.router_id = negotiated.peer_router_id
        peer.end_of_rib.clear()
        self.refusals.forget(peer.plan.session.address)
        peer.link, peer.link_lost = self._link(peer), False
        restart = negotiated.graceful_restart
        for family, adj_in in peer.adj_in.items():
            adj_in.new_epoch()
            kept = family in negotiated.families and restart is not None and restart.families.get(family, False)
            if adj_in.count and not kept:
                self._jobs.append(self.ribs[family].sweep(adj_in))
            elif adj_in.count:
                peer.stale_until = now + STALE_MAX
            if family in negotiated.families:
                self.exporter.begin(peer, family, held=self.restart.deferring)
                self.writable.add(event.conn)

    def _down(self, peer: Peer, event: SessionDown) -> None:
        for adj_out in peer.adj_out.values():
            adj_out.close()
        peer.adj_out = {}
        peer.stale_until = None
        peer.end_of_rib.clear()
        if not event.keep_routes:
            peer.kept = 0
            self._sweep(peer)
            return
        peer.kept = sum(adj_in.count for family, adj_in in peer.adj_in.items() if family in event.families)
        for family, adj_in in peer.adj_in.items():
            adj_in.new_epoch()
            if adj_in.count and family not in event.families:
                self._jobs.append(self.ribs[family].sweep(adj_in))

    def _sweep(self, peer: Peer) -> None:
        """Remove all routes of a peer that its current session did not announce."""
        peer.stale_until = None
        for family, adj_in in peer.adj_in.items():
            if State.ESTABLISHED is not peer.neighbor.state:
                adj_in.new_epoch()
            if adj_in.count:
                self._jobs.append(self.ribs[family].sweep(adj_in))

    def _end_of_rib(self, peer: Peer, family: Family) -> None:
        adj_in = peer.adj_in.get(family)
        if family not in peer.end_of_rib:
            count = adj_in.count if adj_in is not None else 0
            self._log(
                Level.INFO, peer.plan.name, f"End-of-RIB: it has announced all its {family.label} routes, {count}"
            )
        peer.end_of_rib.add(family)
        if adj_in is not None and peer.stale_until is not None:
            self._jobs.append(self.ribs[family].sweep(adj_in))
            if peer.end_of_rib >= set(peer.adj_out):
                peer.stale_until = None

    def _check_addresses(self) -> None:
        """Say where the Node's address is on no interface."""
        speaker = self.plan.speaker
        self._speaks_from = {speaker.ipv4_address, speaker.ipv6_address} if speaker is not None else set()
        known = self.address_problems
        self.address_problems = self.interfaces.without_address(self.settings.node_name, speaker)
        if speaker is not None and self.interfaces:
            self._tell_problems(known, self.address_problems)

    def session_address(self, peer: Peer) -> bytes:
        """Our packed address in a peer's session; where there is none, the configured one or empty."""
        return self.connections.local_address(peer) or peer.neighbor.config.local_address

    # ================================================================ the plan

    def _apply_plan(self, plan: Plan, waiting: Mapping[str, str], now: float) -> None:
        """Have everything be as a plan says. `waiting`: why peers have not the password they are to have."""
        old, self.plan = self.plan, plan
        delta = diff(old, plan)
        self.exporter.plan = plan.kernel
        self.importer.filters_ask_for_interfaces = any(
            rule.interface
            for peer in plan.peers.values()
            for filters in (peer.import_filter, peer.export_filter)
            for route_filter in filters.values()
            for rule in route_filter.rules
        )
        self._tell_problems(old.problems, plan.problems)
        for note in plan.notes:
            if note not in old.notes:
                self._log(Level.INFO, "plan", note)
        if plan.speaker is not None:
            self.origins.speak_as(plan.speaker.router_id)
        self._apply_kernel_plan(old, plan, now)
        if plan.speaker != old.speaker:
            self._check_addresses()
        guards = Guards(tuple(_guards(plan.peers.values())))
        if guards != self._guards:
            self._guards = guards
            self.effects.append(guards)
        for name in delta.removed:
            self._remove_peer(name, now)
        for name, before in delta.renamed.items():
            self._rename_peer(before, plan.peers[name])
        for name, reason in delta.reset.items():
            self._reset_peer(plan.peers[name], reason, now)
        self._tell_changes(delta.changed)
        for name, change in delta.changed.items():
            self._change_peer(plan.peers[name], change, now)
        for name in delta.added:
            self._peers_added += 1
            self._add_peer(plan.peers[name], self._peers_added, now)
        for name, peer in self.peers.items():
            peer.plan = plan.peers[name]  # another resource may ask for the very same
            told, peer.waits_for_password = peer.waits_for_password, waiting.get(name, "")
            if peer.waits_for_password and peer.waits_for_password != told:
                self._log(
                    Level.WARNING,
                    name,
                    f"{peer.waits_for_password}; the session goes on as it came up until there is one",
                )
        self.origins.plan(old.origins, delta.origins_removed, delta.origins_set)
        if plan.speaker is not None:
            listen = Listen(plan.speaker.listen_port, plan.speaker.listen_addresses)
            if listen != self._listening:
                self._listening = listen
                self.effects.append(listen)

    def _apply_kernel_plan(self, old: Plan, plan: Plan, now: float) -> None:
        """What of the routes goes into the kernel, and what of the kernel's is ours, changed."""
        self.programmer.policy = plan.kernel.policy
        for family, rib in self.ribs.items():
            if self.planned:
                self.programmer.moving.plan(family, old.kernel.policy[family], plan.kernel.policy[family], now)
            if plan.kernel.normal_priority[family] != old.kernel.normal_priority[family]:
                self._priorities_changed(family, rib)
            elif plan.kernel.policy[family] != old.kernel.policy[family] and not self.restart.deferring and rib.table:
                self._jobs.append(self._program_all(family, absent=True))
        if plan.tunnels is not None and plan.tunnels != old.tunnels:
            self.effects.append(Tunnels(plan.tunnels))
        self.origins.learn(plan.learn)

    def _priorities_changed(self, family: Family, rib: FamilyRib) -> None:
        """LOCAL_PREF means a priority from now on, or another one, or none: judge everything of a family again."""
        if self.settings.program_priorities:
            rib.normal_priority = self.plan.kernel.normal_priority[family]
        default = self.plan.kernel.default_local_pref(family)
        for peer in self.peers.values():
            if family in peer.adj_in:
                peer.source.default_local_pref = default
                self.importer.judge_anew(peer, family, always=True)
                self.exporter.policy_changed(peer, family)
        self.origins.priorities_changed(family, self.plan.kernel.normal_priority)

    def _link(self, peer: Peer) -> int:
        """Index of the interface that is up and directly leads to an external peer, or 0."""
        if peer.plan.kind is not SourceKind.EBGP:
            return 0
        remote = peer.neighbor.config.address
        if is_link_local(remote):
            index = self.importer.scope(peer)
            return index if self.interfaces.is_up(index) else 0
        index = self.interfaces.connected(remote, self.connections.local_address(peer))
        if index:
            return index
        legs = self.next_hops.track(remote).gateways  # a route may lead to it without a network
        return legs[0].interface if legs and all(leg.address == remote for leg in legs) else 0

    def _links_changed(self, before: Mapping[int, Interface], now: float) -> None:
        """End external sessions whose link is gone, and connect again at once where it is back.

        Their hold timers would take minutes, in which packets go nowhere. A session that was not on the link, or that has
        another one, is left to its timers: it may find its way.
        """
        for peer in list(self.peers.values()):
            up = self.interfaces.is_up(peer.link)
            if not peer.link or up is not peer.link_lost:
                continue
            if up:
                peer.link_lost = False
                peer.neighbor.start(now)
            else:
                other = self._link(peer)
                if other:
                    peer.link = other
                    continue
                peer.link_lost = True
                name = before[peer.link].name if peer.link in before else f"{peer.link}"
                peer.neighbor.stop(
                    now, None, admin_down=False, why=f"interface {name}, which the session ran over, is down"
                )
            self._after(peer, now)

    def _add_peer(self, plan: PeerPlan, number: int, now: float) -> None:
        neighbor = Neighbor(plan.session, rng=self._random, pool=self._pool, allocate=self.connections.allocate)
        peer = self.peers[plan.name] = Peer(plan, neighbor, number)
        peer.source.default_local_pref = self.plan.kernel.default_local_pref(plan.session.families[0])
        if self.restart.sweep_pending:
            neighbor.restarting(self.settings.routes_found)
        self._log(Level.INFO, plan.name, f"peer added: {plan.why}")
        neighbor.start(now)
        self._after(peer, now)

    def _remove_peer(self, name: str, now: float) -> None:
        self._drop_peer(name, CeaseSubcode.PEER_DECONFIGURED, "no resource asks for this peer any more", now)
        self._log(Level.INFO, name, "peer removed: no resource asks for it any more")

    def _rename_peer(self, old: str, plan: PeerPlan) -> None:
        """Another resource asks for the same session now."""
        peer = self.peers[plan.name] = self.peers.pop(old)
        peer.source.name = plan.name
        peer.timer_at = None  # its wake-up was under the other name
        self._rearm(peer)
        self._log(Level.INFO, plan.name, f"{plan.why} asks for the peer that was {old}")

    def _reset_peer(self, plan: PeerPlan, reason: str, now: float) -> None:
        """A change its session can't survive: a new peer takes its place."""
        self._log(Level.INFO, plan.name, f"its session starts anew: {reason}")
        peer = self.peers[plan.name]
        before = peer.neighbor.counters
        self._drop_peer(plan.name, CeaseSubcode.OTHER_CONFIGURATION_CHANGE, reason, now)
        self._add_peer(plan, peer.number, now)
        neighbor = self.peers[plan.name].neighbor
        if before.established and not self.restart.deferring:
            neighbor.restarting(None)  # it has been up since, and was told to forget what it heard
        counters = neighbor.counters
        counters.downs, counters.notifications = before.downs, before.notifications  # or nobody would see this one

    def _drop_peer(self, name: str, subcode: CeaseSubcode, why: str, now: float) -> None:
        """End a peer's session and let its routes go."""
        peer = self.peers[name]
        peer.neighbor.stop(now, Notification.cease(subcode), admin_down=True, why=why)
        self._after(peer, now)
        self._sweep(peer)
        del self.peers[name]

    def _change_peer(self, plan: PeerPlan, change: PeerChange, now: float) -> None:
        """A change its session survives."""
        peer = self.peers[plan.name]
        old, peer.plan = peer.plan, plan
        if change & (PeerChange.SESSION | PeerChange.NAME):
            peer.neighbor.reconfigure(plan.session, now)
        peer.source.kind = plan.kind
        for family, adj_in in peer.adj_in.items():
            adj_in.import_filter = plan.import_filter[family]
            if PeerChange.ROLE in change:
                self.importer.judge_anew(peer, family, always=True)
            elif plan.allowed_own_as != old.allowed_own_as:
                self.importer.judge_anew(peer, family)
            elif PeerChange.IMPORT in change:
                self._jobs.append(self.ribs[family].reimport(adj_in))
            self.exporter.policy_changed(peer, family)
        self._after(peer, now)

    # ================================================================ restart

    def _check_restart(self, now: float) -> None:
        """End the deferral of route selection, and the keeping of routes found at start, when it is time.

        Only `flush` calls it, after it has passed on what changed: a sweep must come behind the routes it spares.
        """
        restart = self.restart
        if restart.in_sync_at is None or self._replan_needed:
            return
        elapsed = restart.look(now)
        if restart.deferring:
            waiting = [peer for peer in self.peers.values() if awaited(peer)]
            if restart.selects(waiting, elapsed):
                self._select(waiting)
        # what was chosen must be asked of the kernel before the rest goes
        if self._jobs or any(rib.changes or rib.kernel_changes for rib in self.ribs.values()):
            return
        if restart.sweeps(self.peers.values(), now):
            restart.sweep_pending = False
            for peer in self.peers.values():
                peer.neighbor.restarting(None)  # those that were not back: nothing of theirs is kept any more
            self._log(Level.INFO, "restart", "it is over: routes from before that nobody announced again are removed")
            self.effects.append(Sweep(tuple(sorted(self.settings.routes_found))))

    def _select(self, waiting: list[Peer]) -> None:
        """Route selection begins: program and advertise what was learned so far."""
        self.restart.deferring = False
        missing = f", without {', '.join(peer.plan.name for peer in waiting[:5])}" if waiting else ""
        self._log(Level.INFO, "restart", f"route selection begins{missing}")
        for peer in self.peers.values():
            for adj_out in peer.adj_out.values():
                adj_out.release()
            if peer.adj_out:
                self.writable.add(peer.neighbor.connection)
        self._jobs.extend(self._program_all(family) for family in self.ribs)

    def _program_all(self, family: Family, *, absent: bool = False) -> Iterator[None]:
        """Put a family's chosen routes into the kernel, a slice at a time; with `absent`, take those out that are not to
        be there."""
        for batches in self.programmer.everything(family, absent=absent):
            self.effects.append(Routes(batches))
            yield

    def kernel_route(self, family: Family, prefix: bytes) -> tuple[KernelRoute | None, str]:
        """What the kernel should hold for a prefix; where that is nothing though a route was chosen, why."""
        return self.programmer.route(family, prefix)

    def _program_pools(self) -> None:
        """What decides about routes of pools with encapsulation is another."""
        if not self.restart.deferring:
            self._jobs.extend(self._program_all(family, absent=True) for family in self.programmer.tunnelled())

    # ================================================================ log

    def _tell_changes(self, changed: Mapping[str, PeerChange]) -> None:
        """A line for each kind of change, however many peers it is about: one block of ours may be about all."""
        for kind, what in CHANGES.items():
            names = [name for name, change in changed.items() if kind in change]
            if names:
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                self._log(Level.INFO, "plan", f"{what} changed for {', '.join(names[:NAMED])}{more}; sessions stay")

    def _tell_problems(self, known: tuple[str, ...], now: tuple[str, ...]) -> None:
        for level, line in problem_lines(known, now, Level.WARNING):
            self._log(level, "plan", line)

    def _log(self, level: Level, subject: str, text: str) -> None:
        self.effects.append(Log(level, subject, text))


def _guards(peers: Iterable[PeerPlan]) -> Iterator[Guard]:
    """What connections from the peers' addresses must have. An address that is held keeps its guard: nobody gets in."""
    seen: set[bytes] = set()
    for peer in peers:
        session = peer.session
        if (session.password or session.ttl_security) and session.address not in seen:
            seen.add(session.address)
            yield Guard(session.address, session.password, session.password_generation, session.ttl_security)
