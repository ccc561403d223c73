"""Addresses of the cluster's pods that go to another pod: what this node tracks of connections of the former one goes.

A pod's own node removes them before the pod begins to speak (`pods`). On others they would stay until they time out, and
who gets the address would be let through as the former pod was: datagrams from the port that one used, for as long as they
keep coming. So every node removes them when the datastore has told it of both and its rules follow, about when the new pod
begins to speak: under rules that still let the former one through, its next datagram would have them tracked again.

The kernel walks through its whole table for one address, so only addresses are looked for that somebody else had before:
the allocator gives out last what was given back last, so in a cluster with room in its blocks these are few.

Invariants: no call of the container runtime waits for this; one address at a time is looked for, in a thread; how many
addresses are remembered is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from routed.core.effects import Level
from routed.daemon.background import Background
from routed.dataplane.conntrack import FormerConnections
from routed.ipam.holders import addresses_of
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.workloads import WorkloadEndpoint

#: Addresses of pods that went that are remembered: at 100 pods a second those of longer than datagrams are tracked.
REMEMBERED = 16_384

_Owner = tuple[ResourceKey, str]
"""An endpoint, and the container that it was of."""


class FormerOwners:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        before: Callable[[ResourceKey], Resource | None],
        in_force: Callable[[], Awaitable[None]],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
        forget: Callable[[Iterable[bytes]], str] | None = None,
    ) -> None:
        """`before`: the endpoint as it is until `update` has returned. `in_force`: until the rules follow what was told."""
        self._node_name = node_name
        self._before = before
        self._in_force = in_force
        self._log = log
        self._bug = bug
        self._connections = FormerConnections()
        self._forget = forget or self._connections.forget
        self._left: dict[bytes, _Owner] = {}
        """Who had an address last that nobody has, the longest gone first."""
        self._came: dict[bytes, _Owner] = {}
        """Who has an address that may have been another's."""
        self._early: dict[bytes, _Owner] = {}
        """Who got an address that nobody is known to have had, the longest ago first: that the former one went may be told
        later, where a deletion is put off."""
        self._synced = False
        self._due = asyncio.Event()
        self._work = Background()
        self._said = ""

    def start(self) -> None:
        self._work.start(self._run())

    async def stop(self) -> None:
        await self._work.stop()
        self._connections.close()

    def in_sync(self) -> None:
        """The datastore was read: who went before is not known, and thousands of pods need not be compared with it."""
        self._synced = True

    def update(self, update: Update) -> None:
        """A resource is to be another one, or (None) to go."""
        if not self._synced or update.key.kind != WorkloadEndpoint.kind:
            return
        old, new = _owned(self._before(update.key)), _owned(update.value)
        for address, owner in old.items():
            if new.get(address) != owner:
                _remember(self._left, address, owner)
                early = self._early.pop(address, None)
                if early is not None and early != owner:
                    self._came[address] = early
                    self._due.set()
        here = isinstance(update.value, WorkloadEndpoint) and update.value.node == self._node_name
        for address, owner in new.items():
            if old.get(address) == owner:
                continue
            if here:
                self._left.pop(address, None)
            else:
                self._came[address] = owner
                self._due.set()

    async def look(self) -> None:
        """Remove what is tracked of the addresses that went to another pod since the last look."""
        came, self._came = self._came, {}
        passed_on = []
        for address, owner in came.items():
            former = self._left.get(address)
            if former is None:
                _remember(self._early, address, owner)
            elif former != owner:
                del self._left[address]
                passed_on.append(address)
        if passed_on:
            await self._in_force()
        for address in passed_on:
            problem = await asyncio.to_thread(self._forget, (address,))
            if problem and problem != self._said:
                self._said = problem
                self._log(Level.WARNING, "policy", problem)

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.look()
            except Exception as error:
                self._bug("removing a former pod's connections", error)


def _remember(owners: dict[bytes, _Owner], address: bytes, owner: _Owner) -> None:
    owners.pop(address, None)
    owners[address] = owner
    if len(owners) > REMEMBERED:
        del owners[next(iter(owners))]


def _owned(endpoint: Resource | None) -> dict[bytes, _Owner]:
    if not isinstance(endpoint, WorkloadEndpoint):
        return {}
    return dict.fromkeys(addresses_of(endpoint), (endpoint.key, endpoint.container_id))
