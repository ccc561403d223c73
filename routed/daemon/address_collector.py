"""Takes back what is nobody's: leaked addresses, what crashes left, spare blocks, all of nodes that are gone.

One node at a time does it for the cluster: the one that has the lease in etcd. It looks at what it follows of the datastore
anyway; what stays garbage for the grace period is looked at once more, in a fresh reading of the datastore itself, and taken
back where that agrees. On a folder of files there is no such lock, and a node takes back its own only.

Invariants: nothing is taken back on the word of one look, or while a part of the datastore cannot be read, is held back as
a mass deletion, or is locked (ClusterInformation); an address the Kubernetes API knows a pod with is kept. A node whose
daemon runs is not gone, whatever became of its Node: such a daemon says that it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from routed.core.effects import Level, problem_lines
from routed.daemon.background import Background
from routed.datastore.allocating import cluster_of
from routed.datastore.editing import FolderStore
from routed.datastore.mending import give_back, put_right, remove_endpoints
from routed.datastore.store import Conflict, Contents
from routed.errors import StoreError
from routed.ipam.check import CHECKED, Finding, Problem, state_of, unchanged
from routed.ipam.garbage import DEFAULT_GRACE, Patience, garbage
from routed.model.ipam import IPAMConfig, IPReservation
from routed.model.resources import JsonObject, Node, Resource, ResourceKey, Update
from routed.model.settings import ClusterInformation, KubeControllersConfiguration, locked
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import format_address

if TYPE_CHECKING:  # gRPC and httpx are imported by who needs them: see `datastores`
    from routed.datastore.etcd import EtcdStore
    from routed.datastore.lease import Lease

#: Seconds a dead collector is waited for, at most and at least; it writes its lease anew three times in that.
MAX_TTL, MIN_TTL = 60.0, 5.0
#: Seconds between two looks, at most. There are three in a grace period, or more.
LOOK = 300.0
#: What a node follows anyway, and is looked at.
FOLLOWED = CHECKED | {ClusterInformation.kind, KubeControllersConfiguration.kind}
_READ = CHECKED | {IPAMConfig.kind, IPReservation.kind}

_TAKEN_BACK = {
    Problem.LEAKED: "address",
    Problem.HANDLE: "handle",
    Problem.NO_BLOCK: "affinity",
    Problem.STALE_AFFINITY: "affinity",
    Problem.SPARE: "block",
    Problem.NO_NODE: "node",
}


class AddressCollector:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        store: EtcdStore | FolderStore,
        known: Callable[[Iterable[str]], list[Resource]],
        ready: Callable[[], bool],
        publish: Callable[[Update], None],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
        pod: Callable[[str, str], Awaitable[JsonObject | None]] | None,
        grace: float | None,
    ) -> None:
        """`known` has the resources of some kinds as they are followed, `pod` asks the Kubernetes API; `grace` is what this
        node's configuration says, None: nothing."""
        self._node_name = node_name
        self._store = store
        self._known = known
        self._ready = ready
        self._publish = publish
        self._log = log
        self._bug = bug
        self._pod = pod
        self._said = grace
        self._patience = Patience()
        self._looked_at = float("-inf")
        self._lease: Lease | None = None
        self._life: Lease | None = None
        if not isinstance(store, FolderStore):
            self._lease = store.lease("address-collector", node_name)
            self._life = store.lease(self._life_of(node_name), node_name)
        self._work = Background()
        self.problems: tuple[str, ...] = ()
        self.released: Counter[str] = Counter(dict.fromkeys(_TAKEN_BACK.values(), 0))

    def start(self) -> None:
        self._work.start(self._run())

    async def stop(self) -> None:
        """Another node may go on at once."""
        await self._work.stop()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(1):
                if self._lease is not None:
                    await self._lease.give_up()

    @property
    def collects(self) -> bool:
        """This node does it now."""
        return self._work.runs and (self._lease is None or self._lease.held)

    @property
    def state(self) -> tuple[bool, int, tuple[tuple[str, int], ...]]:
        """Whether it is this node, what is garbage if it stays as it is, and what was taken back, by what it was."""
        return self.collects, len(self._patience), tuple(self.released.items())

    # ---- inside

    async def _run(self) -> None:
        while True:
            problems: list[str] = []
            pause = MAX_TTL
            try:
                pause = await self._turn(problems)
            except Conflict:
                pause = MIN_TTL
            except StoreError as error:
                self._patience.forget()
                problems.append(f"lost addresses are not taken back: {error}")
            except Exception as error:
                self._bug("taking back addresses", error)
                problems.append("lost addresses are not taken back: an internal error; the log has it")
            for level, line in problem_lines(self.problems, problems, Level.WARNING):
                self._log(level, "ipam", line)
            self.problems = tuple(problems)
            await asyncio.sleep(pause)

    async def _turn(self, problems: list[str]) -> float:
        """Seconds until the next."""
        grace = self._grace()
        ttl = max(MIN_TTL, min(MAX_TTL, grace / 3))
        interval = min(LOOK, grace / 3)
        if not self._ready() or self._is_locked():
            self._patience.forget()
            return MIN_TTL / 5
        await self._sign_of_life(ttl, problems)
        if not grace:
            self._patience.forget()
            if self._lease is not None:
                await self._lease.give_up()
            return MAX_TTL
        if self._lease is not None:
            held = self._lease.held
            if not await self._lease.take(ttl):
                self._patience.forget()
                return min(ttl, interval)  # or this node's sign of life might come after the other's patience
            if not held:
                self._log(Level.INFO, "ipam", "this node takes back lost addresses now, for the cluster")
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= interval:
            self._looked_at = now
            await self._look(now, grace, problems)
        return min(interval, ttl / 3)

    def _grace(self) -> float:
        if self._said is not None:
            return self._said
        for one in self._known((KubeControllersConfiguration.kind,)):
            if isinstance(one, KubeControllersConfiguration) and one.name == "default":
                return DEFAULT_GRACE if one.leak_grace_period is None else one.leak_grace_period
        return DEFAULT_GRACE

    def _is_locked(self) -> bool:
        return any(one.name == "default" and locked(one) for one in self._known((ClusterInformation.kind,)))

    # ---- looking, and taking back

    async def _look(self, now: float, grace: float, problems: list[str]) -> None:
        due = self._patience.look(await self._garbage(self._known(CHECKED)), now, grace)
        if not due:
            return
        contents = await self._store.read(_READ)
        if contents.problems:  # what cannot be read may be the endpoint that has the address
            problems += [
                "lost addresses are not taken back while a part of the datastore cannot be read",
                *contents.problems,
            ]
            return
        fresh = await self._garbage(each.resource for each in contents.resources.values())
        for finding in unchanged(due, fresh):
            kept = await self._take_back(finding, contents)
            if kept:
                self._patience.again(finding, now)
                problems.append(kept)

    async def _garbage(self, resources: Iterable[Resource]) -> list[Finding]:
        """Found in a thread: a large cluster has very many."""
        looked_at = list(resources)
        own = "" if self._lease is not None else self._node_name
        return await asyncio.to_thread(lambda: garbage(state_of(looked_at), own))

    async def _take_back(self, finding: Finding, contents: Contents) -> str:
        """Why it is kept, or empty."""
        cluster = cluster_of(each.resource for each in contents.resources.values())
        if finding.problem is Problem.NO_NODE:
            node = finding.node
            if await self._lives(node):
                return f"node {node} runs and its Node is gone: its addresses are kept; apply the Node, or end routed there"
            removed = await remove_endpoints(self._store, contents.resources.values(), node, self._publish)
            released = await give_back(self._store, cluster, node, self._publish)
            addresses = ", ".join(map(format_address, released))
            self._log(
                Level.INFO,
                "ipam",
                f"node {node} is gone: its {len(removed)} endpoints and its blocks were taken back"
                f"{f', and the addresses {addresses}' if addresses else ''}",
            )
        else:
            if finding.problem is Problem.LEAKED and await self._has_a_pod(finding):
                return f"{finding.address} is that of pod {finding.pod} in Kubernetes, and no WorkloadEndpoint has it"
            nodes = {key.name for key in contents.resources if key.kind == Node.kind}
            if not await put_right(self._store, cluster, nodes, finding, self._publish):
                return ""
            self._log(Level.INFO, "ipam", f"{finding.text}: taken back")
        self.released[_TAKEN_BACK[finding.problem]] += 1
        return ""

    async def _has_a_pod(self, finding: Finding) -> bool:
        namespace, _, name = finding.pod.partition("/")
        if self._pod is None or not name:
            return False
        manifest = await self._pod(namespace, name)
        status = manifest.get("status") if manifest is not None else None
        if not isinstance(status, dict) or status.get("phase") in ("Succeeded", "Failed"):
            return False
        listed = status.get("podIPs")
        addresses = [each.get("ip") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        return finding.address in (*addresses, status.get("podIP"))

    # ---- nodes without a Node that live

    @staticmethod
    def _life_of(node: str) -> str:
        return f"alive/{node}"

    async def _lives(self, node: str) -> bool:
        if isinstance(self._store, FolderStore):
            return False
        return await self._store.lease(self._life_of(node), self._node_name).taken()

    async def _sign_of_life(self, ttl: float, problems: list[str]) -> None:
        """Where this node has pods and no Node, whoever takes back addresses hears that they are in use."""
        if self._life is None:
            return
        own = ResourceKey(Node.kind, self._node_name)
        if any(one.key == own for one in self._known((Node.kind,))) or not any(
            isinstance(one, WorkloadEndpoint) and one.node == self._node_name
            for one in self._known((WorkloadEndpoint.kind,))
        ):
            await self._life.give_up()
            return
        await self._life.take(max(ttl, 3 * MIN_TTL))
        problems.append(
            f"Node {self._node_name} is gone and this node has pods: their addresses are kept while it runs"
        )
