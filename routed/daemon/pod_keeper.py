"""Keeps the node's ends of pods as they were made, against whoever else changes them.

At once where the kernel tells of it, and every RESYNC seconds against all. What the kernel tells of one pod's interface is
first held against that pod alone, when no call for it is under way: of pods that come and go much is told that is half done.
What is put right is the node's: link state, MAC address, MTU, neighbours, sysctls, and at a bridge the port's flags and
what it lets in. Routes and policy have
keepers of their own; the pod's own end is the pod's. An interface that is gone can only be made by the runtime, and is
told until it is.

Invariants: nothing is changed while a call for the pod is under way. An MTU is kept as it was when the interface was first
seen: what the call asked for is written nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from routed.core.effects import Level, problem_lines
from routed.daemon.background import Background
from routed.daemon.pods import Pods
from routed.dataplane.forwarding import filters_sources, translates_on_bridges
from routed.dataplane.pod_state import NodeState
from routed.dataplane.pods import NODE_MAC, PodPort, PodWiring, pods_ends
from routed.dataplane.sockets import is_overflow, open_link_monitor
from routed.errors import KernelError
from routed.model.resources import ResourceKey, Update
from routed.model.settings import FelixConfiguration
from routed.model.workloads import WorkloadEndpoint
from routed.netlink.bridge import decode_bridge_link
from routed.netlink.links import decode_link, link_index, link_name
from routed.netlink.messages import Message, messages
from routed.netlink.numbers import RTM_NEWLINK

#: Seconds between two looks at interfaces nobody touched.
RESYNC = 30.0
#: Seconds in which the kernel's news are gathered, and from one look to the next at least.
GATHER = 0.2
PAUSE = 1.0
#: Seconds after which an interface no endpoint has is told of: those that come and go have none for a moment.
LOST = 20.0
#: Interfaces named in one sentence.
_NAMED = 5


class PodKeeper:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        pods: Pods,
        wiring: PodWiring,
        proxy_arp: bool,
        mtu_changed: Callable[[], None],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        """`mtu_changed` hears of another MTU of a link that is no pod's."""
        self._node_name = node_name
        self._pods = pods
        self._wiring = wiring
        self._proxy_arp = proxy_arp
        self._mtu_changed = mtu_changed
        self._log = log
        self._bug = bug
        self._endpoints: dict[ResourceKey, WorkloadEndpoint] = {}
        """Those of this node that calls made."""
        self._by_interface: dict[str, WorkloadEndpoint] = {}
        """Without interfaces that more than one names: whose they are nobody knows, and policy tells of it."""
        self._naming: dict[str, dict[ResourceKey, WorkloadEndpoint]] = {}
        """All that name an interface."""
        self._mtus: dict[int, int] = {}
        """By the index of the link."""
        self._others: dict[str, int] = {}
        """MTUs of links that are no pod's."""
        self._named: dict[ResourceKey, str] = {}
        """Interfaces of all endpoints of this node, whoever made them."""
        self._nobodys: dict[int, float] = {}
        """Interfaces that no endpoint has, by index, and since when."""
        self._due = asyncio.Event()
        self._all = True
        """What is due is a look at all pods, not only at those in doubt."""
        self._doubted: set[str] = set()
        """Interfaces of pods that may not be as they should be."""
        self._synced = False
        self._work = Background()
        self.problems: tuple[str, ...] = ()
        self.without_endpoint = 0
        """Interfaces of pods that no WorkloadEndpoint has."""

    def start(self) -> None:
        """Raises OSError where there is no netlink."""
        self._loop = asyncio.get_running_loop()
        self._monitor = open_link_monitor()
        self._loop.add_reader(self._monitor.fileno(), self._told)
        self._gathering: asyncio.TimerHandle | None = None
        self._work.start(self._run())

    async def stop(self) -> None:
        await self._work.stop()
        if self._gathering is not None:
            self._gathering.cancel()
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        if update.key.kind == FelixConfiguration.kind:  # which pods may have others' sources
            self._look_at_all()
        if update.key.kind != WorkloadEndpoint.kind:
            return
        old, new = self._endpoints.pop(update.key, None), update.value
        self._named.pop(update.key, None)
        if isinstance(new, WorkloadEndpoint) and new.node == self._node_name:
            self._named[update.key] = new.interface_name
        if old is not None:
            del self._naming[old.interface_name][update.key]
            self._decide(old.interface_name)
            if old.interface_name in self._by_interface:  # what was told while two named it was nobody's
                self._doubted.add(old.interface_name)
                self._due.set()
        if (
            isinstance(new, WorkloadEndpoint)
            and new.node == self._node_name
            and new.container_id
            and new.interface_name
            and new.mac is not None
        ):
            self._endpoints[update.key] = new
            self._naming.setdefault(new.interface_name, {})[update.key] = new
            self._decide(new.interface_name)

    def _decide(self, interface: str) -> None:
        """Whose an interface is, after another one names it or one does no more."""
        naming = self._naming[interface]
        if len(naming) == 1:
            (self._by_interface[interface],) = naming.values()
            return
        self._by_interface.pop(interface, None)
        if not naming:
            del self._naming[interface]

    def in_sync(self) -> None:
        self._synced = True
        self._look_at_all()

    # ---- the kernel's news

    def _told(self) -> None:
        """Something happened to some link. Pods that come and go tell much, so what comes soon after is read with it."""
        self._loop.remove_reader(self._monitor.fileno())
        self._gathering = self._loop.call_later(GATHER, self._read)

    def _read(self) -> None:
        self._gathering = None
        last: dict[int, Message] = {}
        """By link: of what is told again and again only the last is read."""
        while True:
            try:
                data = self._monitor.receive()
            except OSError as error:
                if not is_overflow(error):
                    raise
                self._look_at_all()
                continue
            if data is None:
                break
            for message in messages(data):
                last[link_index(message.data)] = message
        self._loop.add_reader(self._monitor.fileno(), self._told)
        told = {link_name(each.data): each.data if each.type == RTM_NEWLINK else b"" for each in last.values()}
        self._look_at_mtus(told)
        bridges = {each.bridge for each in self._by_interface.values() if each.bridge}
        doubted = {name for name, data in told.items() if self._concerns(name, data, bridges)}
        if not doubted.isdisjoint(bridges):
            self._look_at_all()
        elif doubted:
            self._doubted |= doubted
            self._due.set()

    def _look_at_all(self) -> None:
        self._all = True
        self._due.set()

    def _look_at_mtus(self, told: dict[str, bytes]) -> None:
        """Tunnels and new pods have theirs by that of the uplink."""
        found = {name: link.mtu for name, data in told.items() if (link := decode_link(data)) is not None}
        changed = {
            name: mtu
            for name, mtu in found.items()
            if name not in self._by_interface and self._others.get(name, mtu) != mtu
        }
        self._others |= {name: mtu for name, mtu in found.items() if name not in self._by_interface}
        if changed:
            self._mtu_changed()

    def _concerns(self, name: str, data: bytes, bridges: set[str]) -> bool:
        """Whether a link is not as it should be, by the last that was told of it; no data: it is gone."""
        endpoint = self._by_interface.get(name)
        if endpoint is None and name not in bridges:
            return False
        link, facts = decode_link(data), decode_bridge_link(data)
        if link is None or facts is None:  # gone, or about its being a port
            return endpoint is None or bool(endpoint.bridge) or not data
        if not link.enabled or facts.mac != NODE_MAC:
            return True
        if endpoint is None:
            return False
        return link.mtu != self._mtus.setdefault(link.index, link.mtu) or bool(facts.master) != bool(endpoint.bridge)

    # ---- looking, and putting right

    async def _run(self) -> None:
        looked = self._loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(looked + RESYNC):
                    await self._due.wait()
            self._due.clear()
            doubted, self._doubted = self._doubted, set()
            if not self._synced:
                looked = self._loop.time()
                continue
            problems: list[str] = []
            try:
                if not self._all and self._loop.time() < looked + RESYNC and not await self._any_wrong(doubted):
                    await asyncio.sleep(PAUSE)
                    continue
                self._all, looked = False, self._loop.time()
                await self._look(problems)
            except KernelError as error:
                problems.append(str(error))
            except Exception as error:
                self._bug("the interfaces of pods", error)
                problems.append("the interfaces of pods: an internal error; the log has it")
            for level, line in problem_lines(self.problems, problems, Level.ERROR):
                self._log(level, "cni", line)
            self.problems = tuple(problems)
            await asyncio.sleep(PAUSE)

    async def _any_wrong(self, doubted: Iterable[str]) -> bool:
        """Whether one of these pods' interfaces is not as it should be once no call for it is under way."""
        for name in doubted:
            endpoint = self._by_interface.get(name)
            if endpoint is None:
                continue
            async with self._pods.turn(endpoint.container_id):
                if self._by_interface.get(name) is not endpoint:
                    continue
                if await asyncio.to_thread(self._is_wrong, endpoint):
                    return True
        return False

    def _is_wrong(self, endpoint: WorkloadEndpoint) -> bool:
        """In a thread."""
        try:
            node = self._wiring.node_state((endpoint.interface_name, endpoint.bridge))
        except KernelError:
            return True  # the look at all tells of it
        if endpoint.interface_name not in node.links:
            return True
        return self._may_be_mended(endpoint, node) and bool(self._wrong(endpoint, node))

    def _may_be_mended(self, endpoint: WorkloadEndpoint, node: NodeState) -> bool:
        """It is there, and no interface of the node's own that an endpoint names: `plan` tells of that."""
        return endpoint.interface_name in node.links and self._pods.is_pods(endpoint.interface_name)

    async def _look(self, problems: list[str]) -> None:
        node = await asyncio.to_thread(self._wiring.node_state)
        there = {link.index: link.mtu for link, _ in node.links.values()}
        self._others = {name: link.mtu for name, (link, _) in node.links.items() if name not in self._by_interface}
        self._mtus = {index: self._mtus.get(index, mtu) for index, mtu in there.items()}
        if any(self._pods.spoofs(each.allow_spoofed_source_prefixes) for each in self._by_interface.values()):
            problems += filter(None, (filters_sources(),))
        if any(each.bridge for each in self._by_interface.values()):
            problems += filter(None, (translates_on_bridges(),))
        missing = [each for each in self._by_interface.values() if each.interface_name not in node.links]
        there_are = [each for each in self._by_interface.values() if self._may_be_mended(each, node)]
        for endpoint in await asyncio.to_thread(lambda: [each for each in there_are if self._wrong(each, node)]):
            async with self._pods.turn(endpoint.container_id):  # it may have been a call that was half done
                if self._by_interface.get(endpoint.interface_name) is endpoint:
                    await self._mend(endpoint, problems)
        gone = []
        for endpoint in missing:
            async with self._pods.turn(endpoint.container_id):
                is_there = self._wiring.index_of(endpoint.interface_name) is not None
                if self._by_interface.get(endpoint.interface_name) is endpoint and not is_there:
                    gone.append(endpoint)
        if gone:
            named = ", ".join(_named(each) for each in gone[:_NAMED])
            more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
            problems.append(f"the interfaces of pods are gone until their runtime makes the pods anew: {named}{more}")
        self._look_for_nobodys(node, problems)

    def _look_for_nobodys(self, node: NodeState, problems: list[str]) -> None:
        """Pods whose endpoints are lost: they have no routes, and their addresses may be another's by now."""
        names, now = set(self._named.values()), self._loop.time()
        found = {index: name for index, name in pods_ends(node).items() if name not in names}
        self._nobodys = {index: self._nobodys.get(index, now) for index in found}
        lost = sorted(name for index, name in found.items() if now - self._nobodys[index] >= LOST)
        self.without_endpoint = len(lost)
        if lost:
            named = ", ".join(lost[:_NAMED]) + (f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else "")
            problems.append(
                f"no WorkloadEndpoint has the interfaces {named}: their pods reach nobody until they are made anew"
            )

    async def _mend(self, endpoint: WorkloadEndpoint, problems: list[str]) -> None:
        node = await asyncio.to_thread(self._wiring.node_state, (endpoint.interface_name, endpoint.bridge))
        if endpoint.interface_name not in node.links:
            return
        wrong = await asyncio.to_thread(self._wrong, endpoint, node)
        if not wrong:
            return
        what = f"{_named(endpoint)} was changed by others"
        try:
            await asyncio.to_thread(self._wiring.mend, self._port(endpoint, node), node)
        except KernelError as error:
            problems.append(f"{what}: {'; '.join(wrong)}; that cannot be put right: {error}")
            return
        self._log(Level.WARNING, "cni", f"{what} and put right: {'; '.join(wrong)}")
        self._look_at_all()  # what was done to one pod of a bridge may have undone something of another

    def _wrong(self, endpoint: WorkloadEndpoint, node: NodeState) -> list[str]:
        return list(self._wiring.wrong_at_node(self._port(endpoint, node), node))

    def _port(self, endpoint: WorkloadEndpoint, node: NodeState) -> PodPort:
        assert endpoint.mac is not None
        link, _ = node.links[endpoint.interface_name]
        return PodPort(
            endpoint.interface_name,
            endpoint.endpoint,
            endpoint.mac,
            tuple((network.family, network.prefix[1:]) for network in endpoint.ip_networks),
            self._mtus.get(link.index, link.mtu),
            self._proxy_arp,
            bridge=endpoint.bridge,
            spoofs=self._pods.spoofs(endpoint.allow_spoofed_source_prefixes),
        )


def _named(endpoint: WorkloadEndpoint) -> str:
    return f"{endpoint.interface_name} of {endpoint.namespace}/{endpoint.pod or endpoint.container_id}"
