"""A network of cores in memory: nodes joined by perfect wires, a clock that jumps, kernels that are dictionaries.

Everything that happens is a function of the calls made here, in order, so a test that uses it needs no waiting and a
failure repeats. For what needs real sockets or a real kernel there is `lab`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from routed.core.core import Core, CoreSettings
from routed.core.effects import Close, Connect, Guard, Guards, Listen, Log, Routes, Sweep, Tunnels
from routed.desired import Gateway, KernelRoute, RouteBatch, Tunnel
from routed.model.resources import JsonObject, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, make_prefix
from routed.observe.recorder import Engine, Header
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.plan.types import CalicoVersion

ETH0 = 2


class Node:
    """One core and the world as it sees it."""

    def __init__(self, world: World, core: Core, engine: Engine, addresses: Iterable[tuple[str, int]]) -> None:
        self.world = world
        self.core = core
        """To look at."""
        self.engine = engine
        """To drive: the core itself, or what records it."""
        self.addresses = [(parse_address(text), length) for text, length in addresses]
        self.kernel: dict[tuple[Family, bytes], KernelRoute] = {}
        self.batches: list[RouteBatch] = []
        """All that was asked of the kernel, in order."""
        self.found: set[tuple[Family, bytes]] = set()
        """Routes of ours that were there at start and were not asked for since."""
        self.swept: set[tuple[Family, bytes]] = set()
        self.log: list[str] = []
        self.sweeps: list[tuple[Family, ...]] = []
        self.listen = Listen(0)
        self.guards: dict[bytes, Guard] = {}
        """What connections from an address must have."""
        self.secrets: dict[str, int] = {}
        self.tunnels: tuple[Tunnel, ...] | None = None
        """The devices there should be; None: nobody said."""
        self.alive = True
        self.more = True

    def apply(self, *manifests: JsonObject) -> None:
        """Resources exist with these contents."""
        for manifest in manifests:
            resource = parse_manifest(manifest, "")
            self.engine.resource(Update(resource.key, resource), self.world.now)
        self.more = True

    def secret(self, reference: str, generation: int, problem: str = "") -> None:
        """There is a password at a reference. Two nodes have the same where reference and generation are the same."""
        self.secrets[reference] = generation
        self.engine.secret(reference, generation, problem, self.world.now)
        self.more = True

    def delete(self, key: ResourceKey) -> None:
        self.engine.resource(Update(key, None), self.world.now)
        self.more = True

    def link(self, up: bool) -> None:
        """The interface that leads to all others goes up or down."""
        routes = tuple(
            ForeignRoute(Family.of_address(address), make_prefix(address, length), 0, 2, 1, (Gateway(b"", ETH0),))
            for address, length in self.addresses
        )
        interface = Interface(ETH0, "eth0", up, tuple(sorted(self.addresses)))
        if up:
            change = KernelChange(interfaces=(interface,), routes_added=routes)
        else:
            change = KernelChange(interfaces=(interface,), routes_removed=routes)
        self.engine.kernel(change, self.world.now)
        self.more = True

    def device(self, name: str, index: int, *addresses: str, up: bool = True) -> None:
        """An interface beside the one that leads to all others comes or changes; `up` false: it goes."""
        packed = [parse_address(each) for each in addresses]
        found = Interface(index, name, True, tuple((each, len(each) * 8) for each in packed))
        change = KernelChange(interfaces=(found,)) if up else KernelChange(interfaces_removed=(index,))
        self.engine.kernel(change, self.world.now)
        self.more = True

    def routes(self) -> dict[str, str]:
        """The kernel's routes of ours, in words: `via ADDRESS`, several with commas, or `blackhole`."""
        return {
            format_prefix(family, prefix): ", ".join(
                f"via {format_address(gateway.address)}" if gateway.address else "direct" for gateway in route.gateways
            )
            or "blackhole"
            for (family, prefix), route in sorted(self.kernel.items(), key=lambda item: (item[0][0], item[0][1]))
        }


class _Wire:
    """One TCP connection: the two ends' nodes and connection numbers, and octets on their way."""

    def __init__(self, ends: tuple[tuple[Node, int], tuple[Node, int]]) -> None:
        self.ends = ends
        self.to: list[list[bytes]] = [[], []]
        self.closing = [False, False]


class World:
    """All nodes, the wires between them, and the time."""

    def __init__(
        self, *, record: Callable[[str, Core, Header], Engine] | None = None, calico_version: str | None = None
    ) -> None:
        """`record` puts a recorder in front of a node's core, by the node's name."""
        self._version = None if calico_version is None else CalicoVersion(calico_version)
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self._record = record
        self._started = 0
        self._wires: dict[tuple[str, int], tuple[_Wire, int]] = {}
        self.cut: set[frozenset[str]] = set()
        """Pairs of nodes between which no new connection is possible."""

    def add(
        self,
        name: str,
        addresses: Iterable[tuple[str, int]],
        manifests: Iterable[JsonObject],
        *,
        routes_found: frozenset[Family] = frozenset(),
        kernel: Mapping[tuple[Family, bytes], KernelRoute] | None = None,
        own_workloads: bool = False,
    ) -> Node:
        """A node starts: its link is up, its datastore holds `manifests`."""
        self._started += 1
        header = Header(
            CoreSettings(
                node_name=name,
                routes_found=routes_found,
                calico_version=self._version,
                own_workloads=own_workloads,
            ),
            seed=self._started,
        )
        core = Core(header.settings, header.seed)
        engine = core if self._record is None else self._record(name, core, header)
        node = self.nodes[name] = Node(self, core, engine, addresses)
        node.kernel.update(kernel or {})
        node.found = set(node.kernel)
        node.link(True)
        node.apply(*manifests)
        engine.in_sync(self.now)
        return node

    def kill(self, name: str) -> Node:
        """A node vanishes: the others see their connections closed."""
        node = self.nodes.pop(name)
        node.alive = False
        for key in [key for key in self._wires if key[0] == name]:
            self._lose(key)
        return node

    def sever(self, one: str, other: str) -> None:
        """All connections between two nodes are reset."""
        for key, (wire, side) in list(self._wires.items()):
            if key[0] == one and wire.ends[1 - side][0] is self.nodes[other]:
                self.nodes[one].engine.closed(key[1], "connection reset by peer", self.now)
                self.nodes[one].more = True
                self._lose(key)

    def run(self, seconds: float = 0.0, *, until: Callable[[], bool] | None = None) -> bool:
        """Let things happen until nothing more does, and the clock jump for up to `seconds`. Whether `until` holds."""
        deadline = self.now + seconds
        while True:
            while self._step():
                if until is not None and until():
                    return True
            if until is not None and until():
                return True
            timers = [at for node in self.nodes.values() if (at := node.engine.next_timer()) is not None]
            at = min(timers, default=deadline + 1)
            if at > deadline:
                self.now = deadline
                return until is None
            self.now = max(self.now, at)
            for node in self.nodes.values():
                due = node.engine.next_timer()
                if due is not None and due <= self.now:
                    node.engine.timer(self.now)
                    node.more = True

    def _step(self) -> bool:
        busy = False
        for node in list(self.nodes.values()):
            if node.more or node.engine.effects:
                busy = True
                node.more = node.engine.flush(self.now)
                self._carry_out(node)
        for key, (wire, side) in list(self._wires.items()):
            node, conn = wire.ends[side]
            if conn in node.engine.writable:
                node.engine.writable.discard(conn)
                while data := node.engine.take(conn, 65536):
                    wire.to[1 - side].append(data)
                    busy = True
                busy = busy or conn in node.engine.writable
            if wire.to[side] and key in self._wires:
                busy = True
                for data in wire.to[side]:
                    node.engine.received(conn, data, self.now)
                wire.to[side] = []
                node.more = True
            if wire.closing[1 - side] and key in self._wires and not wire.to[side]:
                busy = True
                node.engine.closed(conn, "connection closed by peer", self.now)
                node.more = True
                self._lose(key)
        return busy

    def _carry_out(self, node: Node) -> None:
        effects, node.engine.effects = node.engine.effects, []
        for effect in effects:
            match effect:
                case Connect():
                    self._connect(node, effect)
                case Close():
                    self._close(node, effect.conn)
                case Guards():
                    node.guards = {guard.remote: guard for guard in effect.peers}
                case Listen():
                    node.listen = effect
                case Routes():
                    node.batches += effect.batches
                    for batch in effect.batches:
                        for prefix in batch.prefixes:
                            node.found.discard((batch.family, prefix))
                            if batch.route is None:
                                node.kernel.pop((batch.family, prefix), None)
                            else:
                                node.kernel[batch.family, prefix] = batch.route
                case Sweep():
                    node.sweeps.append(effect.families)
                    for key in [key for key in node.found if key[0] in effect.families]:
                        node.found.discard(key)
                        node.swept.add(key)
                        del node.kernel[key]
                case Tunnels():
                    node.tunnels = effect.tunnels
                case Log():
                    node.log.append(f"{effect.subject}: {effect.text}")
        if node.engine.effects:
            self._carry_out(node)

    def _connect(self, node: Node, effect: Connect) -> None:
        node.more = True
        other = next(
            (
                each
                for each in self.nodes.values()
                if each.listen.port == effect.port and any(address == effect.remote for address, _ in each.addresses)
            ),
            None,
        )
        names = {name for name, each in self.nodes.items() if each in (node, other)}
        if other is None or frozenset(names) in self.cut:
            node.engine.connect_failed(effect.conn, "connection refused", self.now)
            return
        local = effect.local or next(address for address, _ in node.addresses if len(address) == len(effect.remote))
        guard = other.guards.get(local)
        asked = (guard.password, guard.generation, guard.ttl_security) if guard is not None else ("", 0, 0)
        if asked != (effect.password, node.secrets.get(effect.password, 0), effect.ttl_security):
            node.engine.connect_failed(effect.conn, "connection timed out", self.now)
            return
        conn = other.engine.accepted(local, effect.remote, "", self.now)
        other.more = True
        if conn == 0:
            node.engine.connect_failed(effect.conn, "connection reset by peer", self.now)
            return
        wire = _Wire(((node, effect.conn), (other, conn)))
        self._wires[self._name(node), effect.conn] = (wire, 0)
        self._wires[self._name(other), conn] = (wire, 1)
        node.engine.connected(effect.conn, local, self.now)

    def _name(self, node: Node) -> str:
        return next(name for name, each in self.nodes.items() if each is node)

    def _close(self, node: Node, conn: int) -> None:
        entry = self._wires.pop((self._name(node), conn), None)
        if entry is not None:
            wire, side = entry
            last = node.engine.take(conn, 65536)
            if last:
                wire.to[1 - side].append(last)
            wire.closing[side] = True

    def _lose(self, key: tuple[str, int]) -> None:
        """One end is gone without a word; the other end notices."""
        entry = self._wires.pop(key, None)
        if entry is not None:
            wire, side = entry
            wire.closing[side] = True
