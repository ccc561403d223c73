"""Addresses of the cluster's pods that go to another pod: what this node tracks of connections of the former one goes.

A pod's own node removes them before the pod begins to speak (`pods`). On others they would stay until they time out, and
who gets the address would be let through as the former pod was: datagrams from the port that one used, for as long as they
keep coming. So every node removes them when the datastore tells it of the new pod, which is about when it begins to speak.

The kernel walks through its whole table for one address, so only addresses are looked for that somebody else had before:
the allocator gives out last what was given back last, so in a cluster with room in its blocks these are few.

Invariants: no call of the container runtime waits for this; one address at a time is looked for, in a thread; how many
addresses are remembered is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

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
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
        forget: Callable[[Iterable[bytes]], str] | None = None,
    ) -> None:
        """`before`: the endpoint as it is until `update` has returned."""
        self._node_name = node_name
        self._before = before
        self._log = log
        self._bug = bug
        self._connections = FormerConnections()
        self._forget = forget or self._connections.forget
        self._left: dict[bytes, _Owner] = {}
        """Who had an address last that nobody has, the longest gone first."""
        self._came: dict[bytes, _Owner] = {}
        """Who has an address that may have been another's."""
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
                self._left.pop(address, None)
                self._left[address] = owner
                if len(self._left) > REMEMBERED:
                    del self._left[next(iter(self._left))]
        here = isinstance(update.value, WorkloadEndpoint) and update.value.node == self._node_name
        for address, owner in new.items():
            if old.get(address) == owner:
                continue
            if here:
                self._left.pop(address, None)
            else:  # that who had it went may be told a moment later
                self._came[address] = owner
                self._due.set()

    async def look(self) -> None:
        """Remove what is tracked of the addresses that went to another pod since the last look."""
        came, self._came = self._came, {}
        for address, owner in came.items():
            former = self._left.get(address)
            if former is None or former == owner:
                continue
            del self._left[address]
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


def _owned(endpoint: Resource | None) -> dict[bytes, _Owner]:
    if not isinstance(endpoint, WorkloadEndpoint):
        return {}
    return dict.fromkeys(addresses_of(endpoint), (endpoint.key, endpoint.container_id))
