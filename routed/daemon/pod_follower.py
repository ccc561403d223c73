"""What changes of a pod at the Kubernetes API while it runs: its labels, above all, are brought into its endpoints.

In a cluster on etcd Calico's kube-controllers may do that as well, or nobody does. So each node follows its own pods at the
API, and where one says something else than the endpoint has of what is the API's to say (`pod_identity.follows`), the
endpoint is written anew, and with it every node's policy.

What the watch said is only the reason to look: it may be behind what an ADD was told, or what kube-controllers have written.
The API itself is asked right before anything is written, and where the endpoint says the same nothing is.

Invariants: nothing is written but over the state that was compared; a pod that is gone from the API, or is in the datastore
itself, changes nothing; no call of the container runtime waits for this.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from routed.core.effects import Level
from routed.daemon.background import Background
from routed.daemon.pod_identity import brought_up
from routed.daemon.pods import Pods
from routed.errors import ConfigError, StoreError
from routed.ipam.allocator import CONFLICT, Found, Get, Procedure, Write
from routed.model.kubernetes import Pod
from routed.model.resources import JsonObject, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint

#: Seconds until what could not be done is tried again.
RETRY = 2.0
#: Times an endpoint that others change at the same time is written again.
_ATTEMPTS = 3


class PodFollower:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        pods: Pods,
        ask: Callable[[str, str], Awaitable[JsonObject | None]],
        not_yet: Callable[[], bool],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        """`ask` the API for a pod, by namespace and name; `not_yet`: the datastore was not read, or may not be written."""
        self._node_name = node_name
        self._pods = pods
        self._ask = ask
        self._not_yet = not_yet
        self._log = log
        self._bug = bug
        self._said: dict[ResourceKey, Pod] = {}
        """What the API's watch said last."""
        self._stored: set[ResourceKey] = set()
        """Pods the datastore has, which count before the API's."""
        self._endpoints: dict[ResourceKey, dict[ResourceKey, WorkloadEndpoint]] = {}
        """Of this node, by pod."""
        self._pod_of: dict[ResourceKey, ResourceKey] = {}
        self._differ: dict[ResourceKey, None] = {}
        """Pods to be looked at."""
        self._why = ""
        """The last look at one failed."""
        self._due = asyncio.Event()
        self._work = Background()

    def start(self) -> None:
        self._work.start(self._run())

    async def stop(self) -> None:
        await self._work.stop()

    @property
    def problems(self) -> tuple[str, ...]:
        if not self._why or not self._differ:
            return ()
        first = next(iter(self._differ))
        others = f" and {len(self._differ) - 1} others" if len(self._differ) > 1 else ""
        which = f"{first.namespace}/{first.name}{others}"
        return (f"what changed in the Kubernetes API of pod {which} has reached no policy yet: {self._why}",)

    def told(self, update: Update) -> None:
        """The API says that a pod of this node is so, or that there is none."""
        if isinstance(update.value, Pod):
            self._said[update.key] = update.value
            self._look(update.key)
        else:
            self._said.pop(update.key, None)

    def update(self, update: Update) -> None:
        """The datastore says so, or we do."""
        key = update.key
        if key.kind == Pod.kind:
            if update.value is not None:
                self._stored.add(key)
            else:
                self._stored.discard(key)
                self._look(key)
        elif key.kind == WorkloadEndpoint.kind:
            pod = self._pod_of.pop(key, None)
            if pod is not None:
                there = self._endpoints[pod]
                del there[key]
                if not there:
                    del self._endpoints[pod]
            endpoint = update.value
            if isinstance(endpoint, WorkloadEndpoint) and endpoint.node == self._node_name and endpoint.pod:
                pod = ResourceKey(Pod.kind, endpoint.pod, key.namespace)
                self._pod_of[key] = pod
                self._endpoints.setdefault(pod, {})[key] = endpoint
                self._look(pod)

    def _look(self, key: ResourceKey) -> None:
        pod = self._said.get(key)
        if pod is None or key in self._stored:
            return
        if any(brought_up(endpoint, pod) is not None for endpoint in self._endpoints.get(key, {}).values()):
            self._differ[key] = None
            self._due.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY if self._differ else None):
                    await self._due.wait()
            self._due.clear()
            for key in [] if self._not_yet() else list(self._differ):
                del self._differ[key]
                try:
                    await self._bring(key)
                except StoreError as error:  # it is the same for the next one
                    self._differ[key] = None
                    self._why = str(error)
                    break
                except Exception as error:
                    self._bug(f"the labels of pod {key.namespace}/{key.name}", error)
                else:
                    self._why = ""

    async def _bring(self, key: ResourceKey) -> None:
        """Bring what the API says of a pod now into its endpoints. Raises StoreError."""
        manifest = await self._ask(key.namespace, key.name)
        if manifest is None:
            return
        try:
            pod = parse_manifest({**manifest, "kind": Pod.kind, "apiVersion": "v1"})
        except ConfigError as error:  # which no other pod need wait for
            self._log(
                Level.WARNING, "kubernetes", f"{key} in the Kubernetes API: {error}; its endpoints stay as they are"
            )
            return
        assert isinstance(pod, Pod)
        for endpoint in list(self._endpoints.get(key, ())):
            if key not in self._stored and await self._pods.carry_out_beside(_write(endpoint, pod)):
                self._log(Level.INFO, "cni", f"{endpoint} has what its Pod in the Kubernetes API says now")


def _write(key: ResourceKey, pod: Pod) -> Procedure[bool]:
    """Bring an endpoint up to what its Pod says; whether that took a write."""
    for _ in range(_ATTEMPTS):
        found = yield Get(key)
        if not isinstance(found, Found) or not isinstance(found.value, WorkloadEndpoint):
            return False
        manifest = brought_up(found.value, pod)
        if manifest is None:
            return False
        if (yield Write(key, manifest, found.revision)) is not CONFLICT:
            return True
    raise StoreError(f"{key} is changed by others at the same time")
