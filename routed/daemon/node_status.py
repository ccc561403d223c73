"""Writes the status of the CalicoNodeStatus objects that name this node, on their period.

Invariants: a write is based on the object as it is stored at that moment (compare-and-swap), so that neither a change of
its spec nor another writer's field is lost; what has not changed is not written again; an object that is gone is not
written back. A failure keeps nothing from going on: it is told, and tried again on the next period.

A folder of resource files is for people to write, often under version control or mounted read-only: there nothing is
written, and that is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from routed import __version__
from routed.core.core import Core
from routed.core.effects import Level
from routed.core.node_status import Clock, agent_status, bgp_status, route_status
from routed.datastore.store import Conflict, Store
from routed.errors import StoreError
from routed.model.resources import JsonObject, JsonValue, ResourceKey, Update
from routed.model.schema import parse_stored
from routed.model.settings import CalicoNodeStatus, NodeStatusClass
from routed.net.families import Family

#: Routes of a family in one object: etcd takes no more than 1.5 MB in one write.
MAX_ROUTES = 3000
#: Writes that came too late before the next period is waited for.
ATTEMPTS = 3
#: The parts of a status that are written, or left out.
_OURS = frozenset(("lastUpdated", "agent", "bgp", "routes"))
#: Seconds until a failed write is tried again where the period is longer, or there is none.
RETRY = 30.0
#: Seconds the wall clock may differ from what it was before times already told are told anew.
_STEP = 2.0


class NodeStatusWriter:
    """See the module's docstring."""

    def __init__(
        self,
        node: str,
        core: Core,
        store: Store | None,
        clock: Callable[[], float],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        """`store`: None where it is a folder of resource files. `clock` is the core's."""
        self._node = node
        self._core = core
        self._store = store
        self._clock = clock
        self._log = log
        self._bug = bug
        self._started_at = clock()
        self._offset = time.time() - clock()
        self._wanted: dict[ResourceKey, CalicoNodeStatus] = {}
        self._due: dict[ResourceKey, float] = {}
        self._wake = asyncio.Event()
        self._synced = asyncio.Event()
        self._problems: dict[ResourceKey, str] = {}

    @property
    def problems(self) -> list[str]:
        """A sentence for each object that gets no status, or not all of it."""
        return [f"{key}: {text}" for key, text in sorted(self._problems.items())]

    def update(self, update: Update) -> None:
        """The datastore says this of a resource."""
        key, value = update.key, update.value
        if key.kind != CalicoNodeStatus.kind:
            return
        if not isinstance(value, CalicoNodeStatus) or value.node != self._node:
            if self._wanted.pop(key, None) is not None:
                self._due.pop(key, None)
                self._tell(key, "")
            return
        before, self._wanted[key] = self._wanted.get(key), value
        if self._store is None:
            self._tell(key, "its status is not written into a folder of resource files; ask routedctl on the node")
        elif before is None or (before.classes, before.update_period) != (value.classes, value.update_period):
            self._due[key] = self._clock()
            self._wake.set()

    def in_sync(self) -> None:
        """The datastore was read: what is written now is of all of it, also what is written once."""
        self._synced.set()

    async def run(self) -> None:
        """Write what is due until cancelled."""
        await self._synced.wait()
        while True:
            self._wake.clear()
            for key in [key for key, due in self._due.items() if due <= self._clock()]:
                await self._report(key)
            waited_for = min(self._due.values(), default=None)
            try:
                async with asyncio.timeout(None if waited_for is None else max(0.0, waited_for - self._clock())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _report(self, key: ResourceKey) -> None:
        if self._due.pop(key, None) is None:  # it went while another one was written
            return
        problem = ""
        try:
            problem = await self._write(key)
        except StoreError as error:
            problem = f"its status cannot be written: {error}"
        except Exception as error:
            self._bug(f"the status of {key}", error)
            problem = "writing its status ended with an internal error; the log has it"
        wanted = self._wanted.get(key)
        if wanted is None:
            return
        self._tell(key, problem)
        period = wanted.update_period
        if problem:
            period = min(period or RETRY, RETRY)
        if period and key not in self._due:  # a change of its spec meanwhile is due at once
            self._due[key] = self._clock() + period

    async def _write(self, key: ResourceKey) -> str:
        """Make the stored object's status what it is now; what is left out of it, in words."""
        assert self._store is not None
        for attempt in range(1, ATTEMPTS + 1):
            stored = await self._store.get(key)
            if stored is None or not isinstance(stored.resource, CalicoNodeStatus):
                return ""
            if stored.resource.node != self._node:
                return ""
            status, problem = await self._status(stored.resource)
            manifest = stored.resource.manifest
            before = manifest.get("status")
            if isinstance(before, dict):  # what a newer Calico has there
                status |= {name: value for name, value in before.items() if name not in _OURS}
            if isinstance(before, dict) and before | {"lastUpdated": None} == status | {"lastUpdated": None}:
                return problem
            fresh = parse_stored(manifest | {"status": status})
            try:
                await self._store.write(key, fresh, stored.revision)
            except Conflict:
                if attempt == ATTEMPTS:
                    raise
            else:
                return problem
        return ""

    async def _status(self, wanted: CalicoNodeStatus) -> tuple[JsonObject, str]:
        core, clock = self._core, self._wall()
        status: JsonObject = {"lastUpdated": clock(self._clock())}
        problems: list[str] = []
        if NodeStatusClass.AGENT in wanted.classes:
            status["agent"] = agent_status(core, f"routed {__version__}", self._started_at, clock)
        if NodeStatusClass.BGP in wanted.classes:
            status["bgp"] = bgp_status(core, clock)
        if NodeStatusClass.ROUTES in wanted.classes:
            routes: JsonObject = {}
            for family, name in ((Family.IPV4_UNICAST, "routesV4"), (Family.IPV6_UNICAST, "routesV6")):
                found, all_of_them = await self._routes(family)
                routes[name] = found
                if not all_of_them:
                    problems.append(
                        f"its status has {MAX_ROUTES} routes of {family.label} and not all; see routedctl show route"
                    )
            status["routes"] = routes
        return status, "; ".join(problems)

    async def _routes(self, family: Family) -> tuple[list[JsonValue], bool]:
        found: list[JsonValue] = []
        for row in route_status(self._core, family):
            if row is None:
                await asyncio.sleep(0)
            elif len(found) == MAX_ROUTES:
                return found, False
            else:
                found.append(row)
        return found, True

    def _wall(self) -> Clock:
        offset = time.time() - self._clock()
        if abs(offset - self._offset) > _STEP:
            self._offset = offset
        kept = self._offset
        return lambda at: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at + kept))

    def _tell(self, key: ResourceKey, problem: str) -> None:
        before = self._problems.pop(key, "")
        if problem:
            self._problems[key] = problem
        if problem and problem != before:
            self._log(Level.WARNING, "status", f"{key}: {problem}")
        elif before and not problem:
            self._log(Level.INFO, "status", f"put right: {key}: {before}")
