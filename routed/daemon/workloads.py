"""A node whose pods are routed's: the CNI socket, the pods behind it, their policy, put together for `daemon`.

What of this is there follows from `cni.enabled`; without it nothing here runs, and no rule or interface is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import TYPE_CHECKING

from routed.config import Config
from routed.core.core import Core
from routed.core.effects import Level
from routed.daemon.address_collector import AddressCollector
from routed.daemon.background import Background
from routed.daemon.cni import CniServer
from routed.daemon.former_owners import FormerOwners
from routed.daemon.namesake import Namesake
from routed.daemon.pod_follower import PodFollower
from routed.daemon.pod_keeper import PodKeeper
from routed.daemon.pod_mtu import Uplink, pod_mtu
from routed.daemon.pods import SETTLE, Pods
from routed.daemon.policy import PolicyKeeper
from routed.daemon.reclaimer import Reclaimer
from routed.daemon.relay import Beneath, Relay
from routed.daemon.tunnel_addresses import TunnelAddresses
from routed.daemon.tunnels import TunnelKeeper
from routed.dataplane.forwarding import forward, not_forwarding
from routed.dataplane.kernel import Kernel
from routed.dataplane.pods import PodWiring
from routed.dataplane.tunnels import KINDS, DeviceState
from routed.datastore.editing import FolderStore
from routed.datastore.file import FileStore
from routed.desired import Tunnel
from routed.errors import ConfigError, StoreError
from routed.ipam.holders import Holder
from routed.model.resources import IPPool, JsonObject, Update
from routed.net.addresses import format_address, is_link_local
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.observed import Interface, KernelChange
from routed.plan.autodetect import VIRTUAL

if TYPE_CHECKING:  # gRPC and httpx are imported by who needs them: see `datastores`
    from routed.datastore.etcd import EtcdStore
    from routed.datastore.kubernetes import KubernetesSource

#: Of the uplink, where it cannot be told.
DEFAULT_MTU = 1500
_LOOPBACK = "lo"
_FAMILIES = (Family.IPV4_UNICAST, Family.IPV6_UNICAST)
_VIRTUAL = re.compile("|".join(f"(?:{each})" for each in VIRTUAL))
#: Seconds for which the datastore may be away before STATUS says so: what is short should not take a node out of use.
AWAY = 60.0
#: Seconds the Kubernetes API may take to say what a pod is.
API = 5.0
_POLL = 0.001
#: Seconds the routes to an interface that is to go may take to go.
_DRAIN = 1.0
#: Seconds after which a route is looked for even where the kernel answered nothing.
_LOOK_AGAIN = 0.05


class Workloads:
    """See the module's docstring."""

    def __init__(
        self,
        config: Config,
        core: Core,
        kernel: Kernel,
        followed: FileStore | EtcdStore,
        store: EtcdStore | FolderStore,
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
        kubernetes: KubernetesSource | None,
        named_policies: Callable[[], int],
    ) -> None:
        """`store`: what is written where `followed` is followed.

        Raises ConfigError where the kernel has no nf_tables or the socket cannot be made.
        """
        self._config = config
        self._core = core
        self._kernel = kernel
        self._log = log
        self._problem = self._api_problem = ""
        self._read = False
        """The datastore was."""
        self._own_addresses: dict[bytes, str] = {}
        self._forwarded: set[Family] = set()
        """Families whose packets the node was told to pass on."""
        self.policy = PolicyKeeper(
            config.node_name,
            self._policy_problem,
            bug,
            config.interface_prefixes,
            config.policy_log_group,
            named_policies,
        )
        self._kubernetes = kubernetes
        self._health = followed.health
        self._wiring = PodWiring()
        self.pods = Pods(
            config.node_name,
            store,
            self._wiring,
            self,
            log,
            self if kubernetes is not None else None,
            config.cni.proxy_arp,
        )
        self.former_owners = FormerOwners(config.node_name, self.pods.endpoint, self.policy.settled, log, bug)
        self._server = CniServer(self.pods.handle, bug)
        self.tunnels = TunnelKeeper(log, bug, self.policy.until_there)
        self._old_rules = Background()
        self.pod_keeper = PodKeeper(
            config.node_name, self.pods, self._wiring, config.cni.proxy_arp, self.tunnels.look, log, bug
        )
        self.tunnel_addresses = TunnelAddresses(
            config.node_name, store, self.publish, self._tunnel_gone, self.pods.holder, log, bug
        )
        self.namesake = Namesake(config.node_name, store, log, bug)
        self.collector = AddressCollector(
            config.node_name,
            store,
            self.pods.known,
            lambda: not self.ready,
            self.publish,
            log,
            bug,
            self.pod if kubernetes is not None else None,
            config.leak_grace_period,
        )
        self.reclaimer = Reclaimer(
            config.node_name, self.pods, self._wiring, lambda: bool(self.ready or self.pods.lock), log, bug
        )
        if isinstance(followed, FileStore):
            followed.when_vanished = self.reclaimer.vanished
        else:
            followed.when_restored = self.reclaimer.restored
        self.pod_follower = PodFollower(
            config.node_name, self.pods, self.pod, lambda: not self.synced or bool(self.pods.lock), log, bug
        )
        self._followed: set[int] = set()
        """Interfaces whose addresses or state matter to policy or tunnels."""
        self._relay: Relay | None = None
        self._store = store

    def start(self) -> None:
        """Open everything. Raises ConfigError."""
        try:
            self.policy.start()
        except OSError as error:
            raise ConfigError("", f"cni.enabled: the kernel has no nf_tables: {error.strerror}") from None
        folder = self._config.datastore_path
        if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(
                "",
                f"cni.enabled: pods' addresses and endpoints are written to the datastore, and routed may not write to "
                f"{folder}; put datastore.path where it may, as below /var/lib/routed",
            )
        self._server.start(self._config.cni.socket)
        self.pod_keeper.start()
        self.tunnels.start()
        self.tunnel_addresses.start()
        self.namesake.start()
        self.collector.start()
        self.reclaimer.start()
        self.pod_follower.start()
        self.former_owners.start()

    def follow(self, relay: Relay) -> None:
        """Where our own writes go."""
        self._relay = relay

    async def stop(self) -> None:
        """No more calls. Interfaces, routes and rules stay."""
        await self._server.stop()
        await self.pod_keeper.stop()
        await self.collector.stop()
        await self.namesake.stop()
        await self.reclaimer.stop()
        await self.pod_follower.stop()
        await self.former_owners.stop()
        await self.tunnel_addresses.stop()
        await self.tunnels.stop()
        await self._old_rules.stop()
        await self.pods.close()
        self.policy.close()
        if isinstance(self._store, FolderStore):
            await self._store.close()

    def loaded(self) -> None:
        """The datastore does not answer, and what was saved of it is complete. Pods wait for the datastore itself, for what
        they have is not decided by old state; rules do not where there are none."""
        self._old_rules.start(self.policy.loaded())

    def in_sync(self) -> None:
        """The datastore was read."""
        self._read = True
        self.tunnels.in_sync()
        self._forward()

    def update(self, update: Update) -> None:
        """A resource is another one, as `pods` knows: a family of addresses may be new here."""
        if self._read and update.key.kind == IPPool.kind:
            self._forward()

    def _forward(self) -> None:
        """Packets of the pools' families are to be passed on. Once: who turns it off later is told, and has his will."""
        families = self._families() - self._forwarded
        self._forwarded |= families
        changed, problems = forward(families)
        for line in changed:
            self._log(Level.INFO, "kernel", f"{line}, so that packets to and from pods are passed on")
        for line in problems:
            self._log(Level.WARNING, "kernel", line)

    def _families(self) -> set[Family]:
        return {pool.cidr.family for pool in self.pods.pools() if not pool.disabled}

    def _not_forwarding(self) -> list[str]:
        return not_forwarding(sorted(self._families(), key=lambda family: family.label))

    @property
    def problems(self) -> tuple[str, ...]:
        return (
            *self._not_forwarding(),
            *filter(
                None,
                (self._server.problem, self._problem, self._api_problem, self.pods.problem, self.pods.who.problem),
            ),
            *self.policy.problems,
            *self.pod_keeper.problems,
            *self.tunnels.problems,
            *self.tunnel_addresses.problems,
            *self.namesake.problems,
            *self.collector.problems,
            *self.reclaimer.problems,
            *self.pod_follower.problems,
        )

    def interfaces_changed(self, change: KernelChange) -> None:
        """The kernel's interfaces or addresses are others now. Those of pods, which come and go, only policy hears of."""
        if (
            change.full
            or not self._followed.isdisjoint(change.interfaces_removed)
            or any(each.index in self._followed or _is_followed(each) for each in change.interfaces)
        ):
            self.take_interfaces()
        else:
            self.policy.links(change.interfaces, change.interfaces_removed)

    def take_interfaces(self) -> None:
        """What interfaces the kernel has by now."""
        there = self._core.interfaces
        followed = [each for each in there.values() if _is_followed(each)]
        self._followed = {each.index for each in followed}
        self._own_addresses = {
            address: interface.name
            for interface in followed
            if interface.name not in KINDS  # those of tunnels are the tunnels'
            for address, _ in interface.addresses
        }
        self.policy.interfaces(there)
        self.tunnels.interfaces(there)

    def _policy_problem(self, problem: str) -> None:
        self._problem = problem
        if problem:
            self._log(Level.ERROR, "policy", problem)
        else:
            self._log(Level.INFO, "policy", "the kernel takes the policy rules again")

    def apply_tunnels(self, tunnels: tuple[Tunnel, ...]) -> None:
        """The tunnel devices there should be, and whose packets may come for them."""
        self.tunnels.apply(tunnels)
        self.policy.tunnels(tunnels)

    def tunnel_rows(self) -> list[dict[str, object]]:
        """The tunnels there should be, for people and programs; what is there has an index and an MTU."""
        made = {state.tunnel.device: state for state in self.tunnels.states}
        return [_row(tunnel, made.get(tunnel.device)) for tunnel in self._core.plan.tunnels or ()]

    async def _tunnel_gone(self, address: bytes) -> None:
        """Until no tunnel device has an address, which no plan asks for any more."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE
        while any(tunnel.address == address for tunnel in self._core.plan.tunnels or ()) and loop.time() < until:
            await asyncio.sleep(_POLL)
        await self.tunnels.settled()

    # ---- what `pods` needs

    def publish(self, update: Update) -> None:
        if self._relay is not None:
            self._relay.publish(update)

    @property
    def synced(self) -> bool:
        return self.policy.synced and self._core.planned

    @property
    def ready(self) -> str:
        if not self.synced:
            return "routed has not read the datastore yet; try again"
        if self._core.restart.deferring:
            return "routed restarts and waits for its peers; try again"
        return self.not_ours

    @property
    def away(self) -> str:
        health = self._health
        if health.connected or health.as_of is None or time.time() - health.as_of < AWAY:
            return ""
        return f"the datastore has not answered for {AWAY:g} s: {health.problem}"

    @property
    def not_ours(self) -> str:
        return self.namesake.why_not

    @property
    def workload_prefixes(self) -> tuple[str, ...]:
        return self.policy.workload_prefixes

    @property
    def source_spoofing(self) -> bool:
        return self.policy.source_spoofing

    @property
    def limited(self) -> str:
        return "; ".join(filter(None, (self._kernel.problem, self._problem, *self._not_forwarding())))

    async def until_ready(self) -> str:
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE
        while self.synced and (self._core.restart.deferring or self.namesake.asks) and loop.time() < until:
            await asyncio.sleep(_LOOK_AGAIN)
        return self.ready

    def mtu(self, families: Collection[Family]) -> tuple[int, str]:
        said = {(tunnel.kind, tunnel.family): tunnel.mtu for tunnel in self._core.plan.tunnels or ()}
        return pod_mtu(self._uplinks(), list(self.pods.pools()), said, families)

    def _uplinks(self) -> dict[Family, Uplink]:
        """By family: the two may leave by different ones. A family without an address here has what the other one has."""
        speaker = self._core.plan.speaker
        own = {}
        if speaker is not None:
            own = {Family.IPV4_UNICAST: speaker.ipv4_address, Family.IPV6_UNICAST: speaker.ipv6_address}
        found = {family: self._uplink(address) for family, address in own.items() if address}
        named = [each for each in found.values() if each.name]
        other = min(named, key=lambda each: each.mtu, default=Uplink("", DEFAULT_MTU))
        return {family: each if (each := found.get(family, other)).name else other for family in _FAMILIES}

    def _uplink(self, own: bytes) -> Uplink:
        """The interface with this address; where that is on the loopback, the real one with the smallest MTU."""
        there = [found for index in self._followed if (found := self._core.interfaces.get(index)) is not None]
        with_own = [each.name for each in there if any(address == own for address, _ in each.addresses)]
        name = next((each for each in with_own if each != _LOOPBACK), "")
        if not name and with_own:
            real = [
                each.name for each in self._core.interfaces.values() if each.up and not _VIRTUAL.fullmatch(each.name)
            ]
            uplinks = [Uplink(each, mtu) for each in real if (mtu := self._wiring.mtu_of(each))]
            return min(uplinks, key=lambda each: each.mtu, default=Uplink("", DEFAULT_MTU))
        return Uplink(name, (self._wiring.mtu_of(name) if name else 0) or DEFAULT_MTU)

    def own(self, address: bytes) -> Holder | None:
        at = self._own_addresses.get(address)
        if at is not None:
            return Holder(f"interface {at} of this node", self._config.node_name)
        return self.reclaimer.holder(address)

    async def in_force(self, prefixes: Iterable[tuple[Family, bytes]]) -> str:
        waiting = list(prefixes)
        await self.policy.settled()
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE
        while True:
            missing = ""
            for family, prefix in waiting:
                entry = self._kernel.fib_entry(family, prefix)
                if entry is None or entry.state != "installed":
                    why = f": {entry.reason}" if entry is not None and entry.reason else ""
                    missing = f"the route to {format_prefix(family, prefix)} is not in the kernel{why}"
            if not missing:
                return ""
            if loop.time() > until:
                return missing
            await self._kernel.answered(_LOOK_AGAIN)

    async def unused(self, interfaces: Collection[int]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _DRAIN
        while loop.time() < until and any(self._kernel.routes_use(each) for each in interfaces):
            await self._kernel.answered(_LOOK_AGAIN)

    async def pod(self, namespace: str, name: str) -> JsonObject | None:
        assert self._kubernetes is not None
        async with self._api_answers("a pod"):
            return await self._kubernetes.get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    async def namespace(self, name: str) -> None:
        from routed.datastore.kubernetes import NAMESPACES  # noqa: PLC0415 - httpx is for who asks the API

        assert self._kubernetes is not None and self._relay is not None
        async with self._api_answers("a namespace"):
            await self._kubernetes.know(NAMESPACES, name, Beneath(self._relay))

    @contextlib.asynccontextmanager
    async def _api_answers(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(API):
                yield
        except TimeoutError:
            self._api_problem = f"the Kubernetes API has not answered for {API:g} s when it was asked for {what}"
            raise StoreError(self._api_problem) from None
        self._api_problem = ""


def _is_followed(interface: Interface) -> bool:
    """Whether it has an address that is its own, or is a tunnel's."""
    return interface.name in KINDS or any(not is_link_local(address) for address, _ in interface.addresses)


def _row(tunnel: Tunnel, made: DeviceState | None) -> dict[str, object]:
    return {
        "device": tunnel.device,
        "kind": tunnel.kind.value,
        "family": tunnel.family.label,
        "address": format_address(tunnel.address),
        "local": format_address(tunnel.local),
        "mac": tunnel.mac.hex(":") or None,
        "vni": tunnel.vni or None,
        "port": tunnel.port or None,
        "index": made.index if made is not None else None,
        "mtu": made.mtu if made is not None else None,
        "peers": [
            {
                "node": peer.node,
                "address": format_address(peer.address),
                "vtep": format_address(peer.vtep) if peer.vtep else None,
                "gateway": format_address(peer.gateway),
                "mac": peer.mac.hex(":") or None,
            }
            for peer in tunnel.peers
        ],
    }
