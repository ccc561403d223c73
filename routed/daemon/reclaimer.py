"""After etcd was restored from a backup, or a folder emptied: pods that run here and are known no more are written again.

What a backup is too old for is known from what was believed before (`restored`, also of an earlier run): the endpoint, and
under which handle its addresses were given. Whoever has its interface still runs, and keeps its addresses: endpoint,
addresses and handles are written as they were, unless somebody else was given an address meanwhile, which is told until
one of the two goes. The other way round, an endpoint that only the backup has, and whose interface is not there, is of a pod
that went since: it and its addresses are given back.

A folder does not say that it is another one. That an endpoint was lost, and not deleted by somebody, is known there by the
block: who deletes an endpoint's file leaves the block, which still gives the pod its addresses; where an older copy was put
back, or all files went, the addresses are gone with the endpoint (`vanished`).

Invariants: only what the datastore has lost is written again; an endpoint that somebody deletes stays deleted. Nobody
here is given an address that waits to be written again (`holder`). One container at a time, and no call for it meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from routed.cni.call import handle_of
from routed.core.effects import Level
from routed.daemon.background import Background
from routed.daemon.pods import Pods
from routed.dataplane.pods import PodWiring
from routed.datastore.allocating import clock
from routed.errors import StoreError
from routed.ipam.allocator import CONFLICT, Found, Get, Procedure, Write, release_by_handle
from routed.ipam.blocks import Owner
from routed.ipam.holders import Holder
from routed.ipam.reassign import reassign
from routed.model.ipam import IPAMBlock, IPAMHandle, blocks_with
from routed.model.resources import Cidr, Resource, ResourceKey
from routed.model.workloads import WorkloadEndpoint
from routed.values import dataclass

#: Seconds until what could not be written again is tried once more.
RETRY = 10.0
#: And until it is asked again whether anything may be written yet.
WAIT = 1.0
#: Seconds in which nothing more vanishes from a folder, until what is left there is looked at.
SETTLED = 2.0
_ETCD, _FOLDER = "the backup etcd was restored from", "the folder"
_ATTEMPTS = 3
#: Pods named in one sentence.
_NAMED = 5


@dataclass(slots=True)
class _Lost:
    """A pod that runs, as it was before."""

    endpoint: WorkloadEndpoint
    index: int
    """Of its interface."""
    owners: tuple[tuple[bytes, Owner], ...]
    holder: Holder
    by: str
    """What does not have it any more, for people."""
    doubtful: bool = False
    """Perhaps somebody deleted it."""
    why: str = ""
    """It could not be written again."""

    @property
    def handle(self) -> str:
        return self.owners[0][1].handle or ""


class _Given:
    """Addresses, and under which handles they were given; of resources that are gone through once."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._blocks: dict[Cidr, IPAMBlock] = {}
        self._handles: dict[str, list[str]] = {}
        """By what is behind a dot of theirs (`handle_of`): networks and containers may have dots of their own."""
        for each in resources:
            if isinstance(each, IPAMBlock):
                self._blocks[each.cidr] = each
            elif isinstance(each, IPAMHandle):
                _, *behind = each.name.split(".")
                for start in range(len(behind)):
                    self._handles.setdefault(".".join(behind[start:]), []).append(each.name)

    def by_blocks(self, endpoint: WorkloadEndpoint) -> list[tuple[bytes, Owner]]:
        """The addresses of an endpoint that blocks give out."""
        found = []
        for address in (network.prefix[1:] for network in endpoint.ip_networks):
            owners = (block.owner_of(address) for block in blocks_with(address, self._blocks.get))
            owner = next((each for each in owners if each is not None and each.handle_id), None)
            if owner is not None:
                found.append((address, Owner(owner.handle_id, owner.secondary)))
        return found

    def by_handles(self, endpoint: WorkloadEndpoint) -> Iterator[tuple[bytes, Owner]]:
        """The same, where the blocks went a moment before: all of its addresses are under the handle of its attachment."""
        _, _, attachment = handle_of("", endpoint.container_id, endpoint.endpoint).partition(".")
        pod = {"namespace": endpoint.namespace, "pod": endpoint.pod} if endpoint.pod else {}
        who = {"node": endpoint.node, **pod}
        for handle in self._handles.get(attachment, ()):
            yield from ((network.prefix[1:], Owner(handle, who)) for network in endpoint.ip_networks)


class Reclaimer:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        pods: Pods,
        wiring: PodWiring,
        not_yet: Callable[[], bool],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        """`not_yet`: the datastore was not read, or nothing may be written."""
        self._node_name = node_name
        self._pods = pods
        self._wiring = wiring
        self._not_yet = not_yet
        self._log = log
        self._bug = bug
        self._lost: dict[ResourceKey, _Lost] = {}
        self._before: frozenset[ResourceKey] | None = None
        """Endpoints there were, until those that came back with the backup are looked for."""
        self._held: dict[bytes, Holder] = {}
        self._last_vanished = 0.0
        self._due = asyncio.Event()
        self._work = Background()

    def start(self) -> None:
        self._work.start(self._run())

    async def stop(self) -> None:
        await self._work.stop()

    @property
    def problems(self) -> tuple[str, ...]:
        stuck = [each for each in self._lost.values() if each.why]
        if not stuck:
            return ()
        names = [f"{each.endpoint.namespace}/{_name(each.endpoint)} ({each.why})" for each in stuck[:_NAMED]]
        more = f" and {len(stuck) - _NAMED} more" if len(stuck) > _NAMED else ""
        problem = (
            f"{stuck[0].by} does not have pods which run here, and they cannot be written again; put back what they lack, "
            f"or delete them or who has their addresses: {'; '.join(names)}{more}"
        )
        return (problem,)

    def holder(self, address: bytes) -> Holder | None:
        """The pod that runs here and waits to be written again with this address."""
        return self._held.get(address)

    def restored(self, before: Mapping[ResourceKey, Resource]) -> None:
        """An etcd that was restored was read; `before` it, all endpoints and blocks were these."""
        self._pods.forget()
        endpoints = list(self._own(before.values()))
        self._before = frozenset(endpoint.key for endpoint in endpoints)
        given = _Given(before.values())
        for endpoint in endpoints:
            self._keep(endpoint, given, _ETCD)
        self._due.set()

    def vanished(self, gone: Iterable[Resource], before: Mapping[ResourceKey, Resource]) -> None:
        """These endpoints are in a folder no more; `before` that it had these resources."""
        lost = [endpoint for endpoint in self._own(gone) if self._pods.has(endpoint.key)]  # others go by a call
        given = _Given(before.values() if lost else ())
        for endpoint in lost:
            self._pods.forget()
            self._keep(endpoint, given, _FOLDER, doubtful=True)
            self._last_vanished = asyncio.get_running_loop().time()
            self._due.set()

    def _keep(self, endpoint: WorkloadEndpoint, given: _Given, by: str, *, doubtful: bool = False) -> None:
        """A pod may have been lost; one that runs has an interface."""
        index = self._wiring.index_of(endpoint.interface_name) if endpoint.interface_name else None
        owners = tuple(given.by_blocks(endpoint) or given.by_handles(endpoint))
        if index is not None and len(owners) == len(endpoint.ip_networks) > 0:
            holder = Holder(f"{endpoint.key}, which {by} does not have,", self._node_name)
            self._lost[endpoint.key] = _Lost(endpoint, index, owners, holder, by, doubtful)
            self._held |= {address: holder for address, _ in owners}

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._due.wait()
            self._due.clear()
            if self._not_yet():
                continue
            try:
                await self._look()
            except StoreError:  # told by who follows it
                continue
            except Exception as error:
                self._bug("pods that a restored etcd does not know", error)

    def _pause(self) -> float | None:
        if self._before is not None or any(lost.doubtful for lost in self._lost.values()):
            return WAIT
        return RETRY if self._lost else None

    async def _look(self) -> None:
        """Compare with what etcd has now, and write what it lacks."""
        stored = await self._pods.stored(WorkloadEndpoint.kind)
        if self._before is not None:
            for endpoint in self._own(stored.values()):
                if endpoint.key not in self._before:
                    await self._give_back(endpoint)
            self._before = None
        if any(lost.doubtful for lost in self._lost.values()):
            if asyncio.get_running_loop().time() < self._last_vanished + SETTLED:
                return
            await self._judge()
        for key, lost in list(self._lost.items()):
            async with self._turn(lost.endpoint):
                if self._lost.get(key) is lost and await self._is_settled(lost, stored.get(key)):
                    self._let_go(key)

    async def _judge(self) -> None:
        """Who was deleted by somebody: his block still gives him his addresses."""
        now = _Given((await self._pods.stored(IPAMBlock.kind)).values())
        for key, lost in list(self._lost.items()):
            given = {address: owner.handle for address, owner in now.by_blocks(lost.endpoint)}
            if lost.doubtful and given == {address: owner.handle for address, owner in lost.owners}:
                self._let_go(key)
            lost.doubtful = False

    def _let_go(self, key: ResourceKey) -> None:
        lost = self._lost.pop(key)
        self._held = {each: holder for each, holder in self._held.items() if holder is not lost.holder}

    async def _is_settled(self, lost: _Lost, there: Resource | None) -> bool:
        """Whether etcd has a pod again, or the pod is gone."""
        if self._wiring.index_of(lost.endpoint.interface_name) != lost.index or _is_same(there, lost.endpoint):
            return True
        await self._pods.ensure_profile(lost.endpoint.namespace)
        why = await self._pods.carry_out(lambda: self._procedure(lost))
        self._tell(lost, why)
        lost.why = why
        return not why

    @contextlib.asynccontextmanager
    async def _turn(self, endpoint: WorkloadEndpoint) -> AsyncIterator[None]:
        async with self._pods.turn(endpoint.container_id), self._pods.turn(f"interface:{endpoint.interface_name}"):
            yield

    def _procedure(self, lost: _Lost) -> Procedure[str]:
        """Write addresses and endpoint; why that cannot be, or empty."""
        endpoint, now = lost.endpoint, clock()
        cluster = self._pods.cluster((endpoint.key,))
        held = cluster.held
        cluster = replace(cluster, held=lambda address: None if (by := held(address)) is lost.holder else by)
        found = yield Get(endpoint.key)
        there = found.value if isinstance(found, Found) else None
        if isinstance(there, WorkloadEndpoint) and there.container_id not in ("", endpoint.container_id):
            suffix = lost.handle.partition(endpoint.container_id)
            yield from release_by_handle(cluster, f"{suffix[0]}{there.container_id}{suffix[2]}", now)
        why = yield from reassign(cluster, self._node_name, self._pods.node_labels, lost.owners, now)
        if why:
            return why
        for _ in range(_ATTEMPTS):
            found = yield Get(endpoint.key)
            revision = found.revision if isinstance(found, Found) else None
            if (yield Write(endpoint.key, endpoint, revision)) is not CONFLICT:
                return ""
        raise StoreError(f"{endpoint.key} is changed by others at the same time")

    async def _give_back(self, endpoint: WorkloadEndpoint) -> None:
        """An endpoint that came with the backup, unless its pod is there."""
        async with self._turn(endpoint):
            if self._wiring.index_of(endpoint.interface_name) is not None:
                return
            given = _Given((await self._pods.stored(IPAMBlock.kind)).values())
            handles = {owner.handle or "" for _, owner in given.by_blocks(endpoint)}
            for handle in sorted(handles) or [""]:
                await self._pods.take_back([(endpoint.key, endpoint.container_id)], handle)
            what = f"{endpoint.key} came with the backup etcd was restored from, and its pod is gone"
            self._log(Level.WARNING, "cni", f"{what}: removed")

    def _tell(self, lost: _Lost, why: str) -> None:
        what = f"{lost.endpoint.key} runs here, and {lost.by} does not have it"
        if not why:
            self._log(Level.WARNING, "cni", f"{what}: written again")
        elif why != lost.why:
            self._log(Level.ERROR, "cni", f"{what}; it cannot be written again: {why}")

    def _own(self, resources: Iterable[Resource]) -> Iterator[WorkloadEndpoint]:
        """Endpoints of this node that calls made."""
        for each in resources:
            if isinstance(each, WorkloadEndpoint) and each.node == self._node_name and each.container_id:
                yield each


def _name(endpoint: WorkloadEndpoint) -> str:
    return endpoint.pod or endpoint.container_id


def _is_same(there: Resource | None, endpoint: WorkloadEndpoint) -> bool:
    """Whether an endpoint is of the same sandbox, with the same addresses."""
    return (
        isinstance(there, WorkloadEndpoint)
        and there.container_id == endpoint.container_id
        and there.ip_networks == endpoint.ip_networks
    )
