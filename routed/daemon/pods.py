"""Pods come and go: what a CNI call makes of addresses, interfaces, endpoints, routes and policy, and takes back.

An ADD takes addresses, makes the interface, writes the WorkloadEndpoint, and answers once routes and policy for it are in
the kernel; whatever fails on the way, all before it is undone. What a crash leaves behind is found by the next call for
the same container, or by GC: addresses are counted under the container's handle, and interfaces have names that follow
from the pod. A DEL takes all of it back and succeeds where there is nothing; the kernel's slow part, deleting the
interface, goes on after the answer.

Addresses and the endpoint that has them are one write of the datastore, and so is their end; those of pods that come and
go at the same time are written together (`datastore.rounds`).

Invariants: one call at a time for a container, and for an interface, which the next sandbox of a pod has as well; the
datastore's resources are a mirror fed by `update`, and every write of ours is in it before the call goes on.

Long for one idea: the order of steps, and of undoing them, is one story.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from routed.cni.call import (
    FIRST_INTERFACE,
    INTERNAL,
    INVALID_CONFIGURATION,
    INVALID_ENVIRONMENT,
    LIMITED,
    NO_ADDRESS,
    NOT_AS_IT_WAS,
    NOT_AVAILABLE,
    SOURCES,
    TRY_AGAIN,
    UNKNOWN_CONTAINER,
    UNSUPPORTED_FIELD,
    Request,
    handle_of,
)
from routed.cni.results import Attached, format_result, previous_result
from routed.core.effects import Level
from routed.daemon.cni import Conversation, Inside
from routed.daemon.pod_identity import Identities, Identity, Labels
from routed.dataplane.conntrack import FormerConnections
from routed.dataplane.pods import NODE_MAC, PodPort, PodWiring, kernel_has_ipv6, pod_sysctls
from routed.datastore.allocating import carry_out, clock, cluster_of
from routed.datastore.applying import stamped
from routed.datastore.remembered import RememberingStore
from routed.datastore.rounds import Rounds
from routed.datastore.store import Conflict, Store
from routed.errors import CniError, KernelError, StoreError
from routed.ipam.allocator import (
    CONFLICT,
    Clock,
    Cluster,
    Demand,
    Found,
    Get,
    Procedure,
    Write,
    assign_addresses,
    assign_specific,
    block_key,
    owner_of,
    release_by_handle,
)
from routed.ipam.blocks import Owner
from routed.ipam.holders import Holder, Holders
from routed.model.ipam import IPAMBlock, IPAMConfig, IPAMHandle, IPReservation
from routed.model.kubernetes import (
    NAMESPACE_LABELS,
    Namespace,
    Pod,
    calico_key,
    namespace_labels,
    namespace_profile,
)
from routed.model.policies import Profile
from routed.model.resources import (
    BlockAffinity,
    Cidr,
    IPPool,
    Node,
    Resource,
    ResourceKey,
    Update,
    json_line,
)
from routed.model.schema import parse_manifest
from routed.model.settings import ClusterInformation, KubeControllersConfiguration, locked
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix

#: Kinds that are kept, by what they are needed for.
MIRRORED = frozenset(
    kind.kind
    for kind in (
        IPPool, IPReservation, IPAMConfig, IPAMBlock, BlockAffinity, IPAMHandle, Node, WorkloadEndpoint, Profile, Pod,
        Namespace, ClusterInformation, KubeControllersConfiguration,
    )
)  # fmt: skip

#: Seconds routes and policy of a new pod may take to be in the kernel.
SETTLE = 10.0
#: Seconds the datastore may take to take an ADD.
STORE = 15.0
#: Seconds the datastore may take to take back what a DEL or GC gives back: the runtime calls again, and again.
RELEASE = 5.0
#: Seconds taking back what an ADD did may take before it is answered, and between attempts after that.
UNDO = 3.0
PAY_EVERY = 2.0
#: What helps where CHECK found a difference.
REMEDY = (
    "an ADD again for the same container puts it right and keeps its addresses; container runtimes call it by themselves "
    "only where they make the pod anew"
)
#: Seconds of looking through what all nodes have before the loop gets a turn.
_SLICE = 0.005
#: Times an endpoint that others change at the same time is written again.
_ATTEMPTS = 3
R = TypeVar("R")


class Dataplane(Protocol):
    """What must be in force before a pod starts."""

    def publish(self, update: Update) -> None:
        """A resource changed by our own hand: routes and policy follow from it as from any other."""

    async def in_force(self, prefixes: Iterable[tuple[Family, bytes]]) -> str:
        """Wait until the routes to these and all policy are in the kernel; why they are not, or empty."""

    async def unused(self, interfaces: Collection[int]) -> None:
        """Wait, a moment at most, until no route leads to these interfaces any more."""

    @property
    def synced(self) -> bool:
        """The datastore was read: who has what is known."""

    @property
    def ready(self) -> str:
        """Why pods cannot be added now, or empty."""

    @property
    def source_spoofing(self) -> bool:
        """Pods may have the sources they ask for."""

    @property
    def workload_prefixes(self) -> tuple[str, ...]:
        """What names of pods' interfaces begin with."""

    @property
    def limited(self) -> str:
        """Why pods that are there may not be reached, or empty."""

    @property
    def away(self) -> str:
        """The datastore has not answered for so long that nobody should be sent here, and why; or empty."""

    @property
    def not_ours(self) -> str:
        """Why what goes by this node's name may be another machine's, or empty."""

    async def until_ready(self) -> str:
        """Wait while a restart is nearly over; why pods cannot be added then, or empty."""

    def mtu(self, families: Collection[Family]) -> tuple[int, str]:
        """Of a pod's interface: the uplink's, less what tunnels need; and why it cannot be, or empty."""

    def own(self, address: bytes) -> Holder | None:
        """Who on the node has an address: an interface of its own, or a pod that etcd has forgotten."""


class _PodIsThere(Exception):
    """What says who a pod is came meanwhile."""


class _Turns:
    """The calls for one container, or for one interface."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.calls = 0
        """Under way and waiting."""


class Pods:
    """See the module's docstring."""

    def __init__(
        self,
        node_name: str,
        store: Store,
        wiring: PodWiring,
        dataplane: Dataplane,
        log: Callable[[Level, str, str], None],
        labels: Labels | None = None,
        proxy_arp: bool = False,
    ) -> None:
        self._node_name = node_name
        self._store = RememberingStore(store, self._is_there)
        self._wiring = wiring
        self._dataplane = dataplane
        self._log = log
        self._proxy_arp = proxy_arp
        self._connections = FormerConnections()
        self._own_namespace = os.stat("/proc/self/ns/net")
        self._mirror: dict[str, dict[ResourceKey, Resource]] = {kind: {} for kind in MIRRORED}
        self.who = Identities(node_name, self._store, self._mirror, labels)
        self._holders = Holders()
        self._leaving: set[ResourceKey] = set()
        """Endpoints that are being removed."""
        self._own: dict[str, dict[ResourceKey, None]] = {}
        """The endpoints of this node that a CNI call made, by container."""
        self._turns: dict[str, _Turns] = {}
        self._rounds = Rounds(self._store, self._listed, self._tell)
        self._owed: dict[tuple[str, str], tuple[ResourceKey, str]] = {}
        """What ADDs that failed could not take back: the endpoint and the handle, by container and interface."""
        self._paying: asyncio.Task[None] | None = None
        self._hands = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pods")
        """Who makes interfaces: the kernel makes one at a time anyway, and each thread more takes turns from the loop."""
        self._going: list[int] = []
        """Interfaces to be removed, by index."""
        self._teardown: asyncio.Task[None] | None = None
        self._said = ""
        """What was wrong with the last pod's connections, if anything ever was."""
        self.added = 0
        self.removed = 0
        self.failed = 0

    # ---- what is known

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        mirror = self._mirror.get(update.key.kind)
        if mirror is None:
            return
        self._store.told(update)
        self._holders.change(update.key, mirror.get(update.key), update.value)
        if update.value is None:
            old = mirror.pop(update.key, None)
        else:
            old = mirror.get(update.key)
            mirror[update.key] = update.value
        self._index(old, there=False)
        self._index(update.value, there=True)

    def _index(self, endpoint: Resource | None, *, there: bool) -> None:
        if not isinstance(endpoint, WorkloadEndpoint) or not self._is_own(endpoint):
            return
        keys = self._own.setdefault(endpoint.container_id, {})
        if there:
            keys[endpoint.key] = None
        else:
            keys.pop(endpoint.key, None)
        if not keys:
            del self._own[endpoint.container_id]

    def endpoint(self, key: ResourceKey) -> Resource | None:
        """A WorkloadEndpoint of the cluster, by what is followed."""
        return self._mirror[WorkloadEndpoint.kind].get(key)

    def holder(self, address: bytes, but: Collection[ResourceKey] = ()) -> Holder | None:
        """Who has an address by what is followed, whatever the blocks say; apart from these, and from who is just going."""
        return self._holders.who(address, but, self._leaving) or self._dataplane.own(address)

    def _is_there(self, key: ResourceKey) -> bool | None:
        """Whether something is, by what is followed; of the affinities an etcd has, that is this node's only."""
        if key.kind not in MIRRORED or key.kind == BlockAffinity.kind:
            return None
        return key in self._mirror[key.kind]

    async def close(self) -> None:
        """Let the last interfaces go."""
        if self._paying is not None:
            self._paying.cancel()
        if self._teardown is not None:
            await asyncio.wait((self._teardown,), timeout=5)
        self._connections.close()
        self._wiring.close()

    @property
    def outcomes(self) -> tuple[tuple[str, int], ...]:
        """How many pods were added, removed, and could not be added."""
        return (("added", self.added), ("removed", self.removed), ("failed", self.failed))

    @property
    def problem(self) -> str:
        """Why no pod can be made or removed, though the datastore answers."""
        why = self._rounds.problem
        return f"the datastore did not take what was last written for a pod: {why}" if why else ""

    # ---- calls

    async def handle(self, request: Request, inside: Inside | None, conversation: Conversation) -> bytes:
        """Carry a CNI call out. Raises CniError."""
        if request.command == "STATUS":
            if problem := self._not_ready():
                raise CniError(NOT_AVAILABLE, problem)
            if problem := self._dataplane.limited:
                raise CniError(LIMITED, problem)
            return b""
        if request.command == "GC":
            await self._collect(request)
            return b""
        # of two sandboxes of a pod, one that is given up and the next, each has the interface in its turn
        async with self.turn(request.container_id), self.turn(f"interface:{self.who.key_of(request)[1]}"):
            if request.command == "DEL":
                await self._delete(request)
                return b""
            if inside is None:
                raise CniError(INTERNAL, "the call came without the container's namespace")
            if os.path.samestat(os.fstat(inside.namespace), self._own_namespace):
                raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS: is the node's own network namespace")
            if request.command == "CHECK":
                await self._check(request, inside)
                return b""
            try:
                return await self._add(request, inside, conversation)
            except BaseException:
                self.failed += 1
                raise

    @contextlib.asynccontextmanager
    async def turn(self, what: str) -> AsyncIterator[None]:
        """One call at a time for a container, or for an interface, in the order they came. A container's comes first."""
        turns = self._turns.setdefault(what, _Turns())
        turns.calls += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.calls -= 1
            if not turns.calls:
                del self._turns[what]

    async def _add(self, request: Request, inside: Inside, conversation: Conversation) -> bytes:
        if problem := await self._dataplane.until_ready() or self.lock:
            raise CniError(TRY_AGAIN, problem)
        if request.sources and not self._dataplane.source_spoofing:
            raise CniError(
                UNSUPPORTED_FIELD,
                f"{SOURCES}: pods have no sources but their own: workloadSourceSpoofing of FelixConfiguration is not Any",
            )
        identity = await self.who.of(request)
        there = self._mirror[WorkloadEndpoint.kind].get(identity.key)
        if isinstance(there, WorkloadEndpoint) and there.container_id == request.container_id:
            made = await self._found_again(request, inside, there, identity, conversation)
            if made is not None:
                return json_line(format_result(request, made))
        ipv6 = Family.IPV6_UNICAST in request.families
        if ipv6 and not kernel_has_ipv6():
            raise CniError(
                INVALID_CONFIGURATION, "ipam.assign_ipv6: the kernel has no IPv6 (ipv6.disable=1 at its boot?)"
            )
        mtu, problem = (request.mtu, "") if request.mtu else self._dataplane.mtu(request.families)
        if problem:
            raise CniError(INVALID_CONFIGURATION, problem)
        mac = request.mac or (there.mac if isinstance(there, WorkloadEndpoint) else None) or _random_mac()
        try:
            # the plugin writes them while addresses are found
            await conversation.begin_sysctls(pod_sysctls(ipv6=ipv6, bridged=bool(request.bridge)))
            try:
                async with asyncio.timeout(STORE):
                    await self.ensure_profile(identity.key.namespace)
                    try:
                        addresses = await self._rounds.carry_out(lambda: self._admission(request, identity, mac))
                    except _PodIsThere:
                        known = identity = await self.who.of(request, ask=True)
                        addresses = await self._rounds.carry_out(lambda: self._admission(request, known, mac))
            except TimeoutError:
                raise CniError(TRY_AGAIN, f"the datastore has not answered for {STORE:g} s; try again") from None
            self._owed.pop((request.container_id, request.interface), None)
            await conversation.sysctls_written()
            families = tuple((Family.of_address(each), each) for each in addresses)
            port = PodPort(
                identity.interface,
                request.interface,
                mac,
                families,
                mtu,
                self._proxy_arp,
                secondary=request.interface != FIRST_INTERFACE,
                bridge=request.bridge,
                spoofs=self.spoofs(identity.sources),
            )
            problem = await asyncio.get_running_loop().run_in_executor(self._hands, self._attach, port, inside)
            if problem and problem != self._said:
                self._said = problem
                self._log(Level.WARNING, "cni", problem)
            prefixes = [(family, make_prefix(each, 8 * len(each))) for family, each in families]
            if problem := await self._dataplane.in_force(prefixes):
                raise CniError(TRY_AGAIN, problem)
        except BaseException:
            await asyncio.shield(self._undo(request, identity))
            raise
        self.added += 1
        made = Attached(identity.interface, NODE_MAC, request.interface, mac, addresses, mtu)
        return json_line(format_result(request, made))

    def _attach(self, port: PodPort, inside: Inside) -> str:
        """In a thread: the pod's interface, and nothing left of who had its addresses, or why not. Raises CniError."""
        problem = self._connections.forget(address for _, address in port.addresses)
        try:
            self._wiring.attach(port, inside.namespace, inside.netlink)
        except KernelError as error:
            if error.errno == errno.EEXIST:
                raise CniError(
                    INVALID_ENVIRONMENT, f"CNI_IFNAME: the container has an interface {port.pod_interface} already"
                ) from None
            raise CniError(INTERNAL, str(error)) from None
        return problem

    async def _delete(self, request: Request) -> None:
        self._must_know()
        endpoints = list(self._endpoints(request.container_id, request.interface))
        await self._remove(endpoints, request.handle)
        if not endpoints:  # somebody may have taken it away under the pod
            interface = self.who.key_of(request)[1]
            if not any(each.interface_name == interface for each in self._endpoints()):
                self._tear_down(interface)

    async def _check(self, request: Request, inside: Inside) -> None:
        endpoints = list(self._endpoints(request.container_id, request.interface))
        if not endpoints:
            raise CniError(UNKNOWN_CONTAINER, f"container {request.container_id} has no {request.interface} of ours")
        (endpoint,) = endpoints
        if endpoint.mac is None or not endpoint.interface_name:
            raise CniError(NOT_AS_IT_WAS, f"{endpoint.key} has no interface")
        told = previous_result(request)
        addresses = tuple(network.prefix[1:] for network in endpoint.ip_networks)
        if set(addresses) != told.addresses:
            has = ", ".join(format_address(each) for each in addresses)
            raise CniError(NOT_AS_IT_WAS, f"prevResult does not tell of what {request.interface} has: {has}")
        if told.mac not in (None, endpoint.mac):
            raise CniError(
                NOT_AS_IT_WAS,
                f"prevResult says another MAC address than {request.interface} has: {endpoint.mac.hex(':')}",
            )
        if ResourceKey(IPAMHandle.kind, request.handle) not in self._mirror[IPAMHandle.kind]:
            raise CniError(NOT_AS_IT_WAS, f"no address is given out under {request.handle}")
        if wrong := await self._differences(request, inside, endpoint, told.mtu):
            raise CniError(NOT_AS_IT_WAS, "; ".join(wrong), REMEDY)
        networks = [(network.family, network.prefix) for network in endpoint.ip_networks]
        if problem := await self._dataplane.in_force(networks):
            raise CniError(NOT_AS_IT_WAS, problem)

    async def _differences(
        self, request: Request, inside: Inside, endpoint: WorkloadEndpoint, mtu: int = 0
    ) -> list[str]:
        """What of an endpoint's interface is not as it was made."""
        port = self._port(request, endpoint, mtu)
        try:
            return await asyncio.to_thread(self._wiring.differences, port, inside.netlink)
        except KernelError as error:
            raise CniError(INTERNAL, str(error)) from None

    def _port(self, request: Request, endpoint: WorkloadEndpoint, mtu: int = 0) -> PodPort:
        """The interface of an endpoint that was made before."""
        assert endpoint.mac is not None
        families = {network.family for network in endpoint.ip_networks}
        return PodPort(
            endpoint.interface_name,
            request.interface,
            endpoint.mac,
            tuple((network.family, network.prefix[1:]) for network in endpoint.ip_networks),
            mtu or request.mtu or self._wiring.mtu_of(endpoint.interface_name) or self._dataplane.mtu(families)[0],
            self._proxy_arp,
            secondary=request.interface != FIRST_INTERFACE,
            bridge=endpoint.bridge,
            spoofs=self.spoofs(endpoint.allow_spoofed_source_prefixes),
        )

    def is_pods(self, interface: str) -> bool:
        """Whether an endpoint's interface may be one: whoever writes the datastore may name the node's uplink."""
        return interface.startswith(self._dataplane.workload_prefixes)

    def spoofs(self, prefixes: Iterable[Cidr]) -> bool:
        """Whether an endpoint with these beside its addresses may have IPv4 sources that are not its own."""
        return self._dataplane.source_spoofing and any(each.family is Family.IPV4_UNICAST for each in prefixes)

    async def _collect(self, request: Request) -> None:
        """Remove what belongs to no attachment the runtime still knows."""
        if request.valid_attachments is None:
            return
        self._must_know()
        if problem := self._dataplane.not_ours:
            raise CniError(TRY_AGAIN, problem)
        valid = {handle_of(request.network, *each) for each in request.valid_attachments}
        for endpoint in list(self._endpoints()):
            handle = handle_of(request.network, endpoint.container_id, endpoint.endpoint)
            # those whose addresses are not counted under it are another network's
            if handle not in valid and ResourceKey(IPAMHandle.kind, handle) in self._mirror[IPAMHandle.kind]:
                async with self.turn(endpoint.container_id):
                    self._log(Level.INFO, "cni", f"GC removes {endpoint.key} of container {endpoint.container_id}")
                    await self._remove([endpoint], handle)
        # a network's name may begin as this one's, and a dot follow: what an endpoint has is settled above
        living = tuple(handle_of("", each.container_id, each.endpoint) for each in self._endpoints())
        for handle in await self._given_here(f"{request.network}.", valid):
            if not handle.endswith(living):
                self._log(Level.INFO, "cni", f"GC releases the addresses of {handle}")
                await self._remove([], handle)
        if {handle_of(request.network, each.container_id, each.endpoint) for each in self._endpoints()} == valid:
            await self._collect_interfaces()

    async def _collect_interfaces(self) -> None:
        """Remove interfaces of pods that no endpoint has: a crash right after an endpoint was removed leaves its own.

        To be called where every attachment the runtime knows has an endpoint, and no other network's has one: else it may
        be the endpoint that was lost, and its pod lives.
        """
        try:
            there = await asyncio.to_thread(self._wiring.pods_ends)
        except KernelError as error:
            self._log(Level.WARNING, "cni", f"GC cannot look for interfaces that were left: {error}")
            return
        endpoints = self._mirror[WorkloadEndpoint.kind].values()
        named = {each.interface_name for each in endpoints if isinstance(each, WorkloadEndpoint)}
        for name in sorted(there.values()):
            if name not in named and f"interface:{name}" not in self._turns:
                self._log(Level.INFO, "cni", f"GC removes {name}, which no endpoint has")
                self._tear_down(name)

    # ---- addresses

    def _admission(self, request: Request, identity: Identity, mac: bytes) -> Procedure[tuple[bytes, ...]]:
        """Addresses, and the endpoint that has them, once what an earlier sandbox or an ADD that was cut off left behind
        is given back. Raises CniError."""
        cluster, now = self.cluster((identity.key,)), clock()
        if identity.without is not None:
            found = yield Get(identity.without)
            if isinstance(found, Found) or (yield Write(identity.without, None, None)) is CONFLICT:
                raise _PodIsThere
        there = self._mirror[WorkloadEndpoint.kind].get(identity.key)
        if isinstance(there, WorkloadEndpoint) and there.container_id and there.container_id != request.container_id:
            handle = handle_of(request.network, there.container_id, request.interface)
            yield from _release(cluster, handle, (there,), now)
        yield from release_by_handle(cluster, request.handle, now)
        addresses = yield from self._addresses(cluster, request, identity, now)
        manifest = self.who.endpoint(request, identity, addresses, mac)
        for _ in range(_ATTEMPTS):
            found = yield Get(identity.key)
            there_now = found if isinstance(found, Found) else None
            marked = stamped(manifest, there_now.value if there_now is not None else None)
            answer = yield Write(identity.key, marked, there_now.revision if there_now is not None else None)
            if answer is not CONFLICT:
                return addresses
        raise CniError(TRY_AGAIN, f"{identity.key} is changed by others at the same time")

    def _addresses(
        self, cluster: Cluster, request: Request, identity: Identity, now: Clock
    ) -> Procedure[tuple[bytes, ...]]:
        namespace, name = request.pod
        secondary = {"node": self._node_name, "timestamp": _timestamp()}
        if name:
            secondary |= {"namespace": namespace or "default", "pod": name}
        given: list[bytes] = []
        for family in request.families:
            demand = Demand(
                node=self._node_name,
                node_labels=self.node_labels,
                owner=Owner(request.handle, secondary),
                family=family,
                pools=request.pools.get(family, ()),
                namespace=identity.key.namespace,
                namespace_labels=self._namespace_labels(identity.key.namespace),
            )
            asked = next((each for each in request.addresses if Family.of_address(each) is family), None)
            if asked is None:
                outcome = yield from assign_addresses(cluster, demand, now)
            else:
                outcome = yield from assign_specific(cluster, demand, asked, now)
            if not outcome.addresses:
                version = "IPv4" if family is Family.IPV4_UNICAST else "IPv6"
                which = f"the address {format_address(asked)}" if asked is not None else f"an {version} address"
                raise CniError(NO_ADDRESS, f"cannot give the pod {which}: {outcome.reason}")
            given += outcome.addresses
        return tuple(given)

    async def _listed(self, kind: str) -> list[Found]:
        """All of a kind, but what the datastore has no more: that nodes go on as before says nothing of who has what."""
        gone = self._store.gone
        return [Found(value, "") for key, value in self._mirror[kind].items() if key not in gone]

    def _tell(self, update: Update) -> None:
        self.update(update)
        self._dataplane.publish(update)

    def known(self, kinds: Iterable[str]) -> list[Resource]:
        """The resources of some of the kinds in MIRRORED."""
        return [one for kind in kinds for one in self._mirror.get(kind, {}).values()]

    def has(self, endpoint: ResourceKey) -> bool:
        """Whether there is such an endpoint, by what is followed, and it is not just being removed here."""
        return endpoint in self._mirror[WorkloadEndpoint.kind] and endpoint not in self._leaving

    def pools(self) -> Iterable[IPPool]:
        """The cluster's."""
        return [pool for pool in self._mirror[IPPool.kind].values() if isinstance(pool, IPPool)]

    async def stored(self, kind: str) -> dict[ResourceKey, Resource]:
        """All of a kind, as the datastore has it now. Raises StoreError."""
        return {key: each.resource for key, each in (await self._store.read({kind})).resources.items()}

    async def carry_out(self, make: Callable[[], Procedure[R]]) -> R:
        """Write what a procedure writes, among what calls do. Raises StoreError."""
        return await self._rounds.carry_out(make)

    async def carry_out_beside(self, procedure: Procedure[R]) -> R:
        """The same at once and beside what calls write, so that none of them waits for it. Raises StoreError."""
        return await carry_out(self._store, procedure, self._listed, self._tell)

    def forget(self) -> None:
        """What was written last may not be in the datastore any more."""
        self._store.forget()

    def cluster(self, but: Collection[ResourceKey] = ()) -> Cluster:
        """What the allocator must know; `but`: endpoints that may get their own address."""
        kinds = (IPPool.kind, IPAMConfig.kind, IPReservation.kind)
        gone = self._store.gone  # whatever goes on as before: nobody is given an address of a pool that was deleted
        resources = (one for kind in kinds for key, one in self._mirror[kind].items() if key not in gone)
        return cluster_of(resources, lambda address: self.holder(address, but))

    @property
    def node_labels(self) -> Mapping[str, str]:
        node = self._mirror[Node.kind].get(ResourceKey(Node.kind, self._node_name))
        return node.labels if node is not None else {}

    def _namespace_labels(self, namespace: str) -> Mapping[str, str]:
        key = ResourceKey(Namespace.kind, namespace)
        found = self._mirror[Namespace.kind].get(key)
        profile = self._mirror[Profile.kind].get(calico_key(key))
        applied: Mapping[str, str] = profile.labels_to_apply if isinstance(profile, Profile) else {}
        if found is not None:
            applied = namespace_labels(namespace, found.labels)
        return {
            label.removeprefix(NAMESPACE_LABELS): value
            for label, value in applied.items()
            if label.startswith(NAMESPACE_LABELS)
        }

    # ---- endpoints

    def _endpoints(self, container_id: str | None = None, interface: str | None = None) -> Iterable[WorkloadEndpoint]:
        """The endpoints of this node that a CNI call made, of one container if one is named."""
        containers = list(self._own.values()) if container_id is None else [self._own.get(container_id, {})]
        for key in [each for keys in containers for each in keys]:
            found = self._mirror[WorkloadEndpoint.kind].get(key)
            if isinstance(found, WorkloadEndpoint) and interface in (None, found.endpoint):
                yield found

    def _is_own(self, endpoint: WorkloadEndpoint) -> bool:
        """Whether a CNI call made it, on this node."""
        return bool(endpoint.container_id) and endpoint.node == self._node_name

    async def ensure_profile(self, namespace: str) -> None:
        """Without Calico's controllers nobody writes a namespace's profile; without one its pods would reach nobody."""
        own = ResourceKey(Namespace.kind, namespace)
        key = calico_key(own)
        if key in self._mirror[Profile.kind]:
            return
        found = self._mirror[Namespace.kind].get(own)
        value = parse_manifest(stamped(namespace_profile(namespace, found.labels if found is not None else {})))
        with contextlib.suppress(Conflict):  # another node was faster
            await self._store.write(key, value, None)
            self._tell(Update(key, value))

    async def _remove(self, endpoints: Sequence[WorkloadEndpoint], handle: str) -> None:
        """Remove a container's endpoints and interfaces, and give its addresses back."""
        for endpoint in endpoints:
            if endpoint.bridge:  # before another pod may have its addresses
                addresses = [network.prefix[1:] for network in endpoint.ip_networks]
                try:
                    await asyncio.to_thread(self._wiring.forget_at, endpoint.bridge, addresses)
                except KernelError as error:
                    self._log(Level.WARNING, "cni", str(error))
        try:
            async with asyncio.timeout(RELEASE):
                await self.take_back([(each.key, each.container_id) for each in endpoints], handle)
        except TimeoutError:
            raise CniError(TRY_AGAIN, f"the datastore has not answered for {RELEASE:g} s; try again") from None
        for endpoint in endpoints:
            if self._mirror[WorkloadEndpoint.kind].get(endpoint.key) is endpoint:  # the datastore has it no more
                self._tell(Update(endpoint.key, None))
            if not self._is_anothers(endpoint.key, endpoint.container_id):
                self._tear_down(endpoint.interface_name)
            self.removed += 1

    def _is_anothers(self, key: ResourceKey, container_id: str) -> bool:
        """Another sandbox of the pod has the endpoint by now, and so the interface, whose name is the same."""
        there = self._mirror[WorkloadEndpoint.kind].get(key)
        return isinstance(there, WorkloadEndpoint) and there.container_id != container_id

    async def take_back(self, endpoints: Sequence[tuple[ResourceKey, str]], handle: str) -> None:
        """Remove these endpoints, where they are still these containers', and give back what is under a handle."""

        def removal() -> Procedure[None]:
            removed = []
            for key, container_id in endpoints:
                for _ in range(_ATTEMPTS):
                    found = yield Get(key)
                    if not isinstance(found, Found) or not _is_of(found.value, container_id):
                        break
                    if (yield Write(key, None, found.revision)) is not CONFLICT:
                        removed.append(found.value)
                        break
            yield from _release(self.cluster(), handle, removed, clock())

        leaving = {key for key, _ in endpoints}
        self._leaving |= leaving
        try:
            await self._rounds.carry_out(removal)
        finally:
            self._leaving -= leaving

    # ---- putting things right

    async def _found_again(
        self,
        request: Request,
        inside: Inside,
        there: WorkloadEndpoint,
        identity: Identity,
        conversation: Conversation,
    ) -> Attached | None:
        """What an earlier ADD of the same container made: as it was, or made anew with the same addresses."""
        if there.mac is None or not there.ip_networks or request.mac not in (None, there.mac):
            return None
        if there.bridge != request.bridge:
            return None
        port = self._port(request, there)
        loop = asyncio.get_running_loop()
        wrong = await self._differences(request, inside, there)
        if wrong:  # what is the node's need not cost the pod its connections
            with contextlib.suppress(KernelError):
                await loop.run_in_executor(self._hands, self._wiring.mend_if_there, port)
                wrong = await self._differences(request, inside, there)
        if wrong:
            self._log(Level.WARNING, "cni", f"{there.key} is added again, and made anew: {'; '.join(wrong)}")
            ipv6 = any(family is Family.IPV6_UNICAST for family, _ in port.addresses)
            await conversation.begin_sysctls(pod_sysctls(ipv6=ipv6, bridged=bool(port.bridge)))
            await conversation.sysctls_written()
            try:
                await loop.run_in_executor(self._hands, self._attach, port, inside)
            except CniError:
                if self._wiring.index_of(port.interface) is None:  # what there was is gone
                    await asyncio.shield(self._undo(request, identity))
                raise
        if await self._dataplane.in_force([(network.family, network.prefix) for network in there.ip_networks]):
            return None
        addresses = tuple(address for _, address in port.addresses)
        return Attached(there.interface_name, NODE_MAC, request.interface, there.mac, addresses, port.mtu)

    async def _undo(self, request: Request, identity: Identity) -> None:
        """Take back what an ADD did so far: soon, or once the datastore answers."""
        if not self._is_anothers(identity.key, request.container_id):
            self._tear_down(identity.interface)
        try:
            async with asyncio.timeout(UNDO):
                await self.take_back([(identity.key, request.container_id)], request.handle)
        except (StoreError, TimeoutError):
            self._owed[request.container_id, request.interface] = identity.key, request.handle
            if self._paying is None:
                self._paying = asyncio.get_running_loop().create_task(self._pay())

    async def _pay(self) -> None:
        """Take back what could not be when it should have been."""
        try:
            while self._owed:
                await asyncio.sleep(PAY_EVERY)
                for container_id, interface in list(self._owed):
                    async with self.turn(container_id):
                        owed = self._owed.get((container_id, interface))
                        if owed is None:  # an ADD has done so
                            continue
                        key, handle = owed
                        with contextlib.suppress(StoreError):
                            await self.take_back([(key, container_id)], handle)
                            self._owed.pop((container_id, interface), None)
        finally:
            self._paying = None

    def _tear_down(self, interface: str) -> None:
        """Remove an interface, soon. Which one is settled now: a pod of the same name may have another in a moment."""
        index = self._wiring.index_of(interface)
        if index is None:
            return
        if not self.is_pods(interface):
            self._log(Level.WARNING, "cni", f"{interface} is no pod's interface by its name, so it is not removed")
            return
        self._going.append(index)
        if self._teardown is None:
            self._teardown = asyncio.get_running_loop().create_task(self._detach())

    async def _detach(self) -> None:
        """The kernel takes long for each time, not for each interface: those that come meanwhile go together. Routes go
        first: of an interface that takes routes with it the kernel does not say which, and all of them would be read."""
        try:
            while self._going:
                going, self._going = self._going, []
                await self._dataplane.unused(going)
                try:
                    await asyncio.to_thread(self._wiring.detach_all, going)
                except KernelError as error:
                    self._log(Level.WARNING, "cni", str(error))
        finally:
            self._teardown = None

    # ---- whether anything can be done

    def _not_ready(self) -> str:
        if not any(not pool.disabled for pool in self.cluster().pools):
            return self._dataplane.ready or "there is no enabled IPPool"
        return self._dataplane.ready or self.lock or self._dataplane.away

    @property
    def lock(self) -> str:
        """Why nothing may be written, as during a migration of the datastore, or empty."""
        return locked(self._mirror[ClusterInformation.kind].get(ResourceKey(ClusterInformation.kind, "default")))

    def _must_know(self) -> None:
        """Raises CniError while it is not known who has what, or that may not change."""
        if not self._dataplane.synced:
            raise CniError(TRY_AGAIN, "routed has not read the datastore yet; try again")
        if lock := self.lock:
            raise CniError(TRY_AGAIN, lock)

    async def _given_here(self, begin: str, but: Collection[str]) -> list[str]:
        """Handles that begin so and are none of `but`, whose addresses this node gave out.

        Nearly all there are, tens of thousands, are other nodes': those are passed over by their block, and others of the
        loop get their turns.
        """
        ours: dict[Cidr, bool] = {}
        found, until = [], time.monotonic() + _SLICE
        for handle in list(self._mirror[IPAMHandle.kind].values()):
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + _SLICE
            if isinstance(handle, IPAMHandle) and handle.name.startswith(begin) and handle.name not in but:
                for cidr in handle.blocks:
                    if cidr not in ours:
                        ours[cidr] = self._has_given(cidr)
                if any(map(ours.__getitem__, handle.blocks)) and self._is_ours(handle):
                    found.append(handle.name)
        return found

    def _has_given(self, cidr: Cidr) -> bool:
        """Whether any address of a block is this node's."""
        block = self._mirror[IPAMBlock.kind].get(block_key(cidr))
        return isinstance(block, IPAMBlock) and (
            block.host == self._node_name or self._node_name in block.nodes_of_addresses().values()
        )

    def _is_ours(self, handle: IPAMHandle) -> bool:
        """Whether a handle's addresses are in blocks of this node, so that no other node's pod is meant."""
        for cidr in handle.blocks:
            block = self._mirror[IPAMBlock.kind].get(block_key(cidr))
            if isinstance(block, IPAMBlock):
                for ordinal in range(len(block.allocations)):
                    owner = block.owner(ordinal)
                    if owner is not None and owner.handle_id == handle.name:
                        return owner.secondary.get("node") == self._node_name
                if block.host == self._node_name:  # counted, and never given out: a crash came between
                    return True
        return False


def _is_of(found: Resource, container_id: str) -> bool:
    return isinstance(found, WorkloadEndpoint) and found.container_id == container_id


def _release(cluster: Cluster, handle: str, endpoints: Iterable[Resource], now: Clock) -> Procedure[None]:
    """Give back what is under a handle; where nothing is, what these endpoints have: their network had another name then."""
    if (yield from release_by_handle(cluster, handle, now)):
        return
    for endpoint in endpoints:
        if not isinstance(endpoint, WorkloadEndpoint):
            continue
        for network in endpoint.ip_networks:
            owner = yield from owner_of(cluster, network.prefix[1:])
            if owner is not None and f".{endpoint.container_id}." in f"{owner.handle_id}.":
                yield from release_by_handle(cluster, owner.handle_id or "", now)


def _random_mac() -> bytes:
    """Locally administered, of one interface."""
    mac = bytearray(secrets.token_bytes(6))
    mac[0] = mac[0] & 0xFE | 0x02
    return bytes(mac)


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
