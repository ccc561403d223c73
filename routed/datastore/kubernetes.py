"""Objects of the Kubernetes API as a stream of updates: list, then watch from there, for each kind asked for.

Invariants: what the API once said stays until the API says otherwise, over a restart too where it is saved (a node that
starts while the API is away, or slow, announces what it had); that it cannot be reached, or that a watch ends, deletes
nothing. A watch that is too old (410 Gone) is answered by listing anew, and only differences are told. An object
that cannot be read keeps its last good value, with a problem that names it. The sink is called on the loop's thread.

Of Pods only the node's own are asked for, and only what an endpoint has of them is looked at: a kubelet reports on a pod
again and again. They are not saved either, since what they last said is in their endpoints.

The API's own rules: https://kubernetes.io/docs/reference/using-api/api-concepts/ ("Efficient detection of changes",
"Retrieving large results sets in chunks").
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

from routed.datastore.count import Count
from routed.datastore.guard import Change, Guard, MassDelete
from routed.datastore.kubeconfig import Access
from routed.datastore.saved import SavedState, Saver
from routed.errors import ConfigError, StoreError
from routed.model.resources import JsonObject, JsonValue, Resource, ResourceKey, Update
from routed.values import dataclass

#: Objects asked for at once.
PAGE = 500
#: Seconds a watch lasts before it is asked for again, and without a word after which it counts as dead.
WATCH_SECONDS = 300
SILENCE = WATCH_SECONDS + 30.0
#: Seconds before the first and the longest pause after a failure.
RETRY = 0.5
RETRY_MAX = 30.0
_CONNECT = 10.0
#: Seconds an answer may take to begin, and to go on: the API itself gives up after 60. And those after which it is told.
ANSWER = 65.0
_LATE = 10.0
#: Seconds a watch lasts at least where all is well; a shorter one is a failure too, and followed by a pause.
_SHORT = 1.0
_GONE = 410
#: Octets of one object, at most; etcd refuses larger ones.
_MAX_LINE = 8 << 20


@dataclass(frozen=True, slots=True)
class ApiKind:
    """A kind of the API, and where its objects are."""

    kind: str
    api_version: str
    path: str
    """`/api/v1/services`."""
    chosen: str = ""
    """The field selector of those asked for; empty: all."""
    part: Callable[[JsonObject], JsonObject] | None = None
    """What of an object counts: that the rest is another one is no change."""
    saved: bool = True
    meanwhile: str = ""
    """What follows while they are not to be had, for people."""


SERVICES = ApiKind("Service", "v1", "/api/v1/services")
NAMESPACES = ApiKind("Namespace", "v1", "/api/v1/namespaces")
ENDPOINT_SLICES = ApiKind("EndpointSlice", "discovery.k8s.io/v1", "/apis/discovery.k8s.io/v1/endpointslices")


def pods_of(node: str) -> ApiKind:
    """The Pods of one node."""
    meanwhile = "; labels that change while a pod runs here reach no policy meanwhile"
    return ApiKind("Pod", "v1", "/api/v1/pods", f"spec.nodeName={node}", _who_it_is, saved=False, meanwhile=meanwhile)


class Sink(Protocol):
    """Who is told."""

    def update(self, update: Update) -> None: ...


class KubernetesSource:
    """See the module's docstring."""

    def __init__(
        self,
        access: Access,
        kinds: tuple[ApiKind, ...],
        parse: Callable[[JsonObject], Resource],
        told: Callable[[str, bool], None] = lambda _, __: None,
        saved: SavedState | None = None,
    ) -> None:
        """`told` hears of every problem when it begins, and when it is over."""
        self._access = access
        self._told = told
        self._kinds = kinds
        self._parse = parse
        self._known: dict[ApiKind, dict[ResourceKey, Any]] = {kind: {} for kind in kinds}
        self._problems: dict[str, str] = {}
        """By object or kind."""
        self._synced: set[ApiKind] = set()
        self._mirror = Guard(MassDelete(enabled=False))
        """What is known, as it is saved."""
        self._saver = None if saved is None else Saver(saved, self._mirror, 0.0, lambda: None)
        self.in_sync = asyncio.Event()
        """Every kind was read once."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong now, a sentence each."""
        return tuple(self._problems[key] for key in sorted(self._problems))

    def begin(self, sink: Sink) -> None:
        """Tell what an earlier run heard, which counts until the API says otherwise."""
        if self._saver is None:
            return
        try:
            loaded = self._saver.state.load()
        except ConfigError:  # there is none, or it is of another cluster: then the API is waited for
            return
        self._mirror.load(loaded.good.items(), {})
        for key, good in loaded.good.items():
            for kind in self._kinds:
                if kind.kind == key.kind:
                    self._known[kind][key] = good.resource
                    sink.update(Update(key, good.resource))

    async def run(self, sink: Sink) -> None:
        """Feed the sink until cancelled. Never raises where the API fails: it is tried again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind in self._kinds:
                    tasks.create_task(self._follow(kind, sink))
        finally:
            if self._saver is not None:
                await self._saver.close()

    async def get(self, path: str) -> JsonObject | None:
        """One object, as the API has it; None where there is none. Raises StoreError."""
        try:
            async with self._client() as client:
                answer = await client.get(path)
        except (httpx.HTTPError, ConfigError, OSError) as error:
            raise StoreError(f"the Kubernetes API cannot be asked for {path}: {_why(error)}") from None
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise StoreError(f"the Kubernetes API refuses {path}: {answer.status_code} {answer.reason_phrase}")
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(f"the Kubernetes API answers {path} with something that is no object")
        return found

    async def know(self, kind: ApiKind, name: str, sink: Sink) -> None:
        """Ask for an object of the cluster that was not heard of yet, and tell of it. Raises StoreError."""
        key = ResourceKey(kind.kind, name)
        if key in self._known[kind]:
            return
        found = await self.get(f"{kind.path}/{name}")
        if found is not None and key not in self._known[kind]:  # what a watch said meanwhile is not older
            self._put(kind, found, sink)

    # ---- inside

    def _wrong(self, key: str, text: str) -> None:
        if self._problems.get(key) != text:
            self._problems[key] = text
            self._told(text, True)

    def _right(self, key: str) -> None:
        text = self._problems.pop(key, None)
        if text is not None:
            self._told(f"put right: {text}", False)

    def _is_late(self, kind: ApiKind) -> None:
        """It may yet answer, but people should know why there are no services, say."""
        self._wrong(
            kind.kind,
            f"the Kubernetes API has been asked for all {kind.kind} objects for {_LATE:g} s, and not given them"
            f"{self._meanwhile(kind)}",
        )

    async def _follow(self, kind: ApiKind, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        pause = RETRY
        revision = ""
        too_old = 0
        """How often in turn the API had forgotten what it had just said itself."""
        while True:
            began = loop.time()
            try:
                async with self._client() as client:
                    if not revision:
                        late = loop.call_later(_LATE, self._is_late, kind)
                        try:
                            revision = await self._list(client, kind, sink)
                        finally:
                            late.cancel()
                        if too_old <= 1:
                            self._right(kind.kind)
                        self._synced.add(kind)
                        if len(self._synced) == len(self._kinds):
                            self.in_sync.set()
                        if self._saver is not None:
                            self._saver.save_all(0, Count())
                    began = loop.time()
                    async for event in self._watch(client, kind, revision):
                        revision = self._take(kind, event, sink) or revision
                        pause, too_old = RETRY, 0
                        self._right(kind.kind)
                if loop.time() - began > _SHORT:
                    too_old = 0
                    continue
            except _Gone:
                revision = ""
                if loop.time() - began > _SHORT:  # it has lasted, and all is listed once
                    too_old = 0
                    continue
                too_old += 1
                if too_old > 1:
                    self._wrong(
                        kind.kind,
                        f"the Kubernetes API says at once that its own list of {kind.kind} objects is too old to go on from "
                        f"(410): they are listed again and again, up to {RETRY_MAX:g} s apart",
                    )
            except (httpx.HTTPError, ConfigError, OSError, ValueError, StoreError) as error:
                self._wrong(
                    kind.kind,
                    f"the Kubernetes API does not give us {kind.kind} objects: {_why(error)}{self._meanwhile(kind)}",
                )
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(RETRY_MAX, pause * 2)

    def _meanwhile(self, kind: ApiKind) -> str:
        of_before = kind not in self._synced and self._known[kind]
        return f"; the {len(self._known[kind])} of before the start are used" if of_before else kind.meanwhile

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        try:
            self._access = self._access.renewed()
        except ConfigError as error:  # a certificate without its new key, say: the next connection looks again
            self._wrong("kubeconfig", f"{error}; what was read before is used")
        else:
            self._right("kubeconfig")
        access = self._access
        extensions = {"sni_hostname": access.server_name} if access.server_name else {}

        async def name_the_server(request: httpx.Request) -> None:
            request.extensions.update(extensions)

        async with httpx.AsyncClient(
            base_url=access.server,
            headers={"Accept": "application/json", "User-Agent": "routed", **access.authorization()},
            verify=access.context if access.context is not None else False,
            timeout=httpx.Timeout(_CONNECT, read=ANSWER),
            trust_env=False,
            event_hooks={"request": [name_the_server]},
        ) as client:
            yield client

    async def _list(self, client: httpx.AsyncClient, kind: ApiKind, sink: Sink) -> str:
        """Read all objects; the revision to watch from."""
        seen: set[ResourceKey] = set()
        token = ""
        while True:
            more = {"continue": token} if token else {}
            answer = await client.get(kind.path, params={"limit": PAGE, **_chosen(kind), **more})
            if answer.status_code == _GONE:  # the pages grew too old on the way
                raise _Gone
            _check(answer, kind)
            page = answer.json()
            metadata = page.get("metadata") or {}
            for item in page.get("items") or []:
                key = self._put(kind, item, sink)
                if key is not None:
                    seen.add(key)
            token = metadata.get("continue") or ""
            if not token:
                for key in [key for key in self._known[kind] if key not in seen]:
                    self._remove(kind, key, sink)
                return str(metadata.get("resourceVersion") or "")

    async def _watch(self, client: httpx.AsyncClient, kind: ApiKind, revision: str) -> AsyncIterator[dict[str, Any]]:
        parameters: dict[str, str | int] = {
            "watch": 1,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_SECONDS,
            "resourceVersion": revision,
            **_chosen(kind),
        }
        async with contextlib.AsyncExitStack() as stack:
            request = client.stream("GET", kind.path, params=parameters, timeout=httpx.Timeout(_CONNECT, read=SILENCE))
            async with asyncio.timeout(ANSWER):  # that it begins; then it may be silent for long
                answer = await stack.enter_async_context(request)
            if answer.status_code == _GONE:
                raise _Gone
            _check(answer, kind)
            self._right(kind.kind)
            line = b""
            async for part in answer.aiter_bytes():
                *whole, rest = (line + part).split(b"\n")
                for each in whole:
                    if each.strip():
                        try:
                            event = json.loads(each)
                        except RecursionError:
                            raise StoreError("an event is nested too deeply") from None
                        if not isinstance(event, dict):
                            raise StoreError("an event is no object")
                        yield event
                line = rest
                if len(line) > _MAX_LINE:
                    raise StoreError("an event does not end")

    def _take(self, kind: ApiKind, event: dict[str, Any], sink: Sink) -> str:
        """Take an event in; the revision after it."""
        what, found = event.get("type"), event.get("object")
        if not isinstance(found, dict):  # what comes after it may be whole: going back would only bring it again
            self._wrong(kind.kind, f"the Kubernetes API sent a change of a {kind.kind} that names no object")
            return ""
        if what == "ERROR":
            if found.get("code") == _GONE:
                raise _Gone
            raise StoreError(str(found.get("message") or found.get("reason") or "an error without a reason")[:200])
        if what in ("ADDED", "MODIFIED"):
            self._put(kind, found, sink)
        elif what == "DELETED":
            key = _key(kind, found)
            if key is not None:
                self._remove(kind, key, sink)
        metadata = found.get("metadata")
        return str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else ""

    def _put(self, kind: ApiKind, found: Any, sink: Sink) -> ResourceKey | None:
        key = _key(kind, found)
        if key is None:
            return None
        manifest = {**(kind.part(found) if kind.part else found), "kind": kind.kind, "apiVersion": kind.api_version}
        try:
            value = self._parse(manifest)
        except ConfigError as error:
            self._wrong(str(key), f"{key} in the Kubernetes API: {error}; its last good state stays")
            return key
        self._right(str(key))
        if self._known[kind].get(key) != value:
            self._known[kind][key] = value
            self._save(kind, Change(key, value))
            sink.update(Update(key, value))
        return key

    def _remove(self, kind: ApiKind, key: ResourceKey, sink: Sink) -> None:
        self._right(str(key))
        if self._known[kind].pop(key, None) is not None:
            self._save(kind, Change(key, None))
            sink.update(Update(key, None))

    def _save(self, kind: ApiKind, change: Change) -> None:
        if self._saver is None or not kind.saved:
            return
        if change.resource is None:
            self._mirror.own((change.key,))
        else:
            self._mirror.changes([change], 0.0)
        if kind in self._synced:  # until then the file has what was there of it before, complete
            self._saver.save((change.key,), 0)


class _Gone(Exception):
    """What we know is too old to go on from."""


def _check(answer: httpx.Response, kind: ApiKind) -> None:
    if answer.status_code in (401, 403):
        raise StoreError(
            f"{answer.status_code} {answer.reason_phrase}: the user of the kubeconfig must be allowed to list and watch "
            f"{kind.path}"
        )
    if answer.status_code != 200:
        raise StoreError(f"{answer.status_code} {answer.reason_phrase}")


def _chosen(kind: ApiKind) -> dict[str, str]:
    return {"fieldSelector": kind.chosen} if kind.chosen else {}


def _who_it_is(pod: JsonObject) -> JsonObject:
    """Of a Pod what its endpoint has."""
    spec = pod.get("spec")
    if not isinstance(spec, dict):
        return pod
    kept: JsonObject = {name: spec[name] for name in ("nodeName", "serviceAccountName") if name in spec}
    for name in ("containers", "initContainers"):
        containers = spec.get(name)
        if isinstance(containers, list):
            kept[name] = [{"ports": each.get("ports")} if isinstance(each, dict) else each for each in containers]
    return {"metadata": _named(pod.get("metadata")), "spec": kept}


def _named(metadata: JsonValue) -> JsonValue:
    if not isinstance(metadata, dict):
        return metadata
    return {name: metadata[name] for name in ("name", "namespace", "labels") if name in metadata}


def _key(kind: ApiKind, found: Any) -> ResourceKey | None:
    metadata = found.get("metadata") if isinstance(found, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return None
    return ResourceKey(kind.kind, metadata["name"], str(metadata.get("namespace") or ""))


def _why(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return "it does not answer"
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:300]
