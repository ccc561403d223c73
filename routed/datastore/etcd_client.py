"""One live member of an etcd cluster, whichever answers: octets in, octets out.

`aetcd` brings etcd's messages and stubs; its client is not used, for it knows one endpoint, no TLS and no new token
(docs/decisions/0019). A `Client` holds one channel at a time. Where that fails, all endpoints are tried, beginning behind
the one that failed and each STAGGER seconds after the one before; the first that answers a linearizable read is taken:
that is one with a leader, so neither a dead member, one that drops packets nor one cut off from the others delays a start
by more than STAGGER seconds.

Invariants: there is no connection but that of the channel in use, and while there is none those of the attempts. Every
error is a StoreError with one sentence, without secrets. A read is tried again on another member, a write only where it
cannot have happened. Every call has a deadline. What keys and values mean is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import field
from typing import Any, NamedTuple, TypeVar

from routed.values import dataclass

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read at import; what goes wrong is said by our own errors

import grpc
from aetcd import rpc

from routed.datastore.count import Count
from routed.datastore.etcd_settings import EtcdConfig, contents
from routed.datastore.tls import tls_problem
from routed.errors import Compacted, Denied, StoreError, Unavailable

#: Seconds between the attempts to reach one endpoint and the next, and that one may take: with TLS and a login it is five
#: round trips, and a member may need 2 s for each.
STAGGER = 1.0
PROBE = 15.0
#: Seconds a call may take.
CALL = 20.0
#: Seconds without a sign of life after which a watch is asked for one, and that the answer may take.
QUIET = 10.0
#: Keys in one page of a listing: few enough to be in the processor's cache when they are read; fewer where the page is too
#: large for one message.
PAGE = 1000
#: Octets of the largest message; etcd's own limit for a request is 1.5 MiB, a page has many values.
MAX_MESSAGE = 64 << 20

#: Members that have no leader refuse, so that a member cut off from the others is noticed.
_REQUIRE_LEADER = (("hasleader", "true"),)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # while a watch is open; without one etcd takes pings for an attack
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

T = TypeVar("T")


class KeyValue(NamedTuple):
    key: str
    value: bytes | None
    """None: deleted."""
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys under some prefixes, as they were at one revision."""

    count: Count
    pairs: list[KeyValue]


@dataclass(frozen=True, slots=True)
class Events:
    """What happened under one of the watched prefixes, up to `revision`. Without events: nothing, up to there."""

    watch: int | None
    """Its number; None: of no prefix, the member only lives."""
    revision: int
    pairs: tuple[KeyValue, ...]


@dataclass(slots=True)
class _Member:
    endpoint: str
    channel: Any
    token: str = field(default="", repr=False)
    kv: Any = field(init=False, repr=False)
    """Its calls on keys: to make them anew takes a fifth of the time that calling one does."""

    def __post_init__(self) -> None:
        self.kv = rpc.KVStub(self.channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (*_REQUIRE_LEADER, ("token", self.token)) if self.token else _REQUIRE_LEADER


class Client:
    """See the module's docstring. Used on one loop."""

    def __init__(self, config: EtcdConfig, seed: int | None = None) -> None:
        self.config = config
        self._endpoints = list(config.endpoints)
        random.Random(seed).shuffle(self._endpoints)  # 5,000 nodes must not all choose the same member
        self._member: _Member | None = None
        self._connecting = asyncio.Lock()

    @property
    def endpoint(self) -> str:
        """The endpoint in use; empty where there is none."""
        return self._member.endpoint if self._member is not None else ""

    async def close(self) -> None:
        await self._drop(self._member)

    # ---- reading

    async def listing(self, ranges: Sequence[tuple[str, str]]) -> Listing:
        """All keys in some ranges (first key, key after the last) as of one revision. Raises Compacted as `pages`."""
        count = await self.count(ranges[0])
        return Listing(count, [pair async for page in self.pages(ranges, count.revision) for pair in page])

    async def count(self, of: tuple[str, str]) -> Count:
        """How far etcd has counted now, asked by way of a range that we may read."""
        head = await self._read(
            lambda member: self._range(member, of[0].encode(), of[1].encode(), 0, 1, keys_only=True), of[0]
        )
        index = await self.index()  # after the other, so that a member that lagged behind has caught up
        return Count(int(head.header.cluster_id), int(head.header.revision), int(head.header.raft_term), index)

    async def index(self) -> int:
        """How far raft has counted, as far as our member knows; 0 where it does not tell us."""
        return await self._read(self._index)

    async def _index(self, member: _Member) -> int:
        try:
            status = await rpc.MaintenanceStub(member.channel).Status(
                rpc.StatusRequest(), timeout=CALL, metadata=member.metadata
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED):
                return 0
            raise
        return int(status.raftIndex)

    async def pages(self, ranges: Sequence[tuple[str, str]], revision: int) -> AsyncGenerator[list[KeyValue], None]:
        """All keys in some ranges as of a revision, range by range. While one page is looked at the next are on their way.

        Raises Compacted where etcd forgets that revision before we are through.
        """
        reading = [
            asyncio.create_task(self._page(first.encode(), end.encode(), revision, PAGE)) for first, end in ranges
        ]
        try:
            for number, (_, end) in enumerate(ranges):
                rest: bytes | None = b""
                while rest is not None:
                    pairs, rest, limit = await reading[number]
                    if rest is not None:
                        reading[number] = asyncio.create_task(self._page(rest, end.encode(), revision, limit))
                    yield pairs
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def _page(
        self, first: bytes, end: bytes, revision: int, limit: int
    ) -> tuple[list[KeyValue], bytes | None, int]:
        """One page, where the next begins (None: there is none), and how many keys it should have."""
        while True:
            try:
                page = await self._read(
                    lambda member, limit=limit: self._range(member, first, end, revision, limit),  # type: ignore[misc]
                    _text(first),
                )
            except _TooLarge as error:
                if limit == 1:
                    raise StoreError(f"etcd: the value of a key after {_text(first)} is too large to read") from error
                limit = max(1, limit // 8)
                continue
            pairs = [KeyValue(_text(kv.key), kv.value, kv.mod_revision) for kv in page.kvs]
            return pairs, page.kvs[-1].key + b"\0" if page.more else None, limit

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """What a key holds, or (with a revision) held. Raises Compacted where etcd has forgotten that."""
        answer = await self._read(lambda member: self._range(member, key.encode(), b"", revision, 1), key)
        for kv in answer.kvs:
            return KeyValue(key, kv.value, int(kv.mod_revision))
        return None

    async def made(self, keys: tuple[str, str]) -> list[tuple[str, int]]:
        """The keys of a range, and the revision at which each was made."""
        first, end = (each.encode() for each in keys)
        answer = await self._read(lambda member: self._range(member, first, end, 0, 0, keys_only=True), keys[0])
        return [(_text(kv.key), int(kv.create_revision)) for kv in answer.kvs]

    def _range(
        self, member: _Member, first: bytes, end: bytes, revision: int, limit: int, *, keys_only: bool = False
    ) -> Awaitable[Any]:
        request = rpc.RangeRequest(key=first, range_end=end, revision=revision, limit=limit, keys_only=keys_only)
        call: Awaitable[Any] = member.kv.Range(request, timeout=CALL, metadata=member.metadata)
        return call

    async def watch(self, ranges: Sequence[tuple[str, str, int]]) -> AsyncIterator[Events]:
        """What happens in some ranges, each from a revision on. Ends only with an error."""
        member = await self._ready()
        call = rpc.WatchStub(member.channel).Watch(metadata=member.metadata)
        life = _Life(asyncio.get_running_loop().time())
        asking = asyncio.create_task(_ask_whether_it_lives(call, life))
        try:
            for number, (first, end, revision) in enumerate(ranges, 1):
                request = rpc.WatchCreateRequest(
                    key=first.encode(),
                    range_end=end.encode(),
                    start_revision=revision,
                    progress_notify=True,
                    watch_id=number,
                    fragment=True,
                )
                async with asyncio.timeout(CALL):  # not wait_for, which may lose a cancellation (Python 3.11)
                    await call.write(rpc.WatchRequest(create_request=request))
            parts: dict[int, list[KeyValue]] = {}
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise await _ended(call)
                life.heard = asyncio.get_running_loop().time()
                watch = int(response.watch_id)
                if response.canceled or response.compact_revision:
                    if response.compact_revision:
                        raise Compacted(f"etcd has forgotten what was before revision {response.compact_revision}")
                    raise _refusal(member.endpoint, grpc.StatusCode.UNKNOWN, response.cancel_reason)
                if response.created or watch <= 0:  # an answer to our own question, which says nothing of a range
                    yield Events(None, 0, ())
                    continue
                pairs = parts.setdefault(watch, [])
                pairs.extend(
                    KeyValue(_text(event.kv.key), None if event.type else event.kv.value, int(event.kv.mod_revision))
                    for event in response.events
                )
                if not response.fragment:
                    del parts[watch]
                    yield Events(
                        watch - 1, pairs[-1].revision if pairs else int(response.header.revision), tuple(pairs)
                    )
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
            await self._drop(member)
            raise _mapped(member.endpoint, error) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            await self._drop(member)  # it is silent, or another call found it dead
            raise _mapped(member.endpoint, TimeoutError() if life.is_over else None) from None
        except StoreError:
            await self._drop(member)
            raise
        finally:
            asking.cancel()
            call.cancel()

    # ---- writing

    async def swap(
        self, compares: Sequence[tuple[str, int]], writes: Sequence[tuple[str, bytes | None]], ttl: float | None = None
    ) -> int | None:
        """Write all (None deletes) if each key compared is at its revision (0: absent): the new revision, or None."""
        for attempt in range(len(self._endpoints) + 1):
            member = await self._ready()
            try:
                return await self._swap(member, compares, writes, ttl)
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                raise Unavailable(f"{_mapped(member.endpoint, None)}; whether it was written is not known") from None
            except grpc.aio.AioRpcError as error:
                refusal = _mapped(member.endpoint, error)
                if _login_is_over(error):  # it was not written
                    await self._drop(member)
                    if attempt < len(self._endpoints):
                        continue
                if isinstance(refusal, Unavailable):
                    await self._drop(member)
                    raise Unavailable(
                        f"{refusal}; whether it was written is not known, so look before trying again"
                    ) from None
                beside = f" or one of {len(writes) - 1} beside it" if len(writes) > 1 else ""
                raise self._lacking(refusal, "write", f"{writes[0][0]}{beside}") from None
        raise AssertionError("the loop returns")

    async def _swap(
        self, member: _Member, compares: Sequence[tuple[str, int]], writes: Sequence[tuple[str, bytes | None]],
        ttl: float | None,
    ) -> int | None:  # fmt: skip
        lease = 0
        if ttl is not None:
            grant = await rpc.LeaseStub(member.channel).LeaseGrant(
                rpc.LeaseGrantRequest(TTL=max(1, round(ttl))), timeout=CALL, metadata=member.metadata
            )
            lease = int(grant.ID)
        request = rpc.TxnRequest(
            compare=[
                rpc.Compare(result="EQUAL", target="MOD", key=key.encode(), mod_revision=revision)
                for key, revision in compares
            ],
            success=[
                rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))
                if value is None
                else rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value, lease=lease))
                for key, value in writes
            ],
        )
        answer = await member.kv.Txn(request, timeout=CALL, metadata=member.metadata)
        if lease and not answer.succeeded:
            await rpc.LeaseStub(member.channel).LeaseRevoke(
                rpc.LeaseRevokeRequest(ID=lease), timeout=CALL, metadata=member.metadata
            )
        return int(answer.header.revision) if answer.succeeded else None

    # ---- members

    async def _read(self, ask: Callable[[_Member], Awaitable[T]], key: str = "") -> T:
        """Ask a member; where it fails, another one. `key`: what is asked for, or the first of it."""
        failure: StoreError | None = None
        for _ in range(len(self._endpoints) + 1):
            member = await self._ready()
            try:
                return await ask(member)
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                failure = _mapped(member.endpoint, None)  # another call found the member dead
            except grpc.aio.AioRpcError as error:
                failure = _mapped(member.endpoint, error)
                if not _login_is_over(error) and not isinstance(failure, Unavailable):
                    raise self._lacking(failure, "read", key) from None
                await self._drop(member)
        raise failure or Unavailable("etcd: there are no endpoints")

    def _lacking(self, refusal: StoreError, right: str, what: str) -> StoreError:
        """A refusal for what a role lacks, with who lacks it and what would help."""
        if not what or not isinstance(refusal, Denied) or "permission denied" not in str(refusal):
            return refusal
        who = f"user {self.config.username}" if self.config.username else "the user of our certificate"
        return Denied(
            f"{refusal}: {who} may not {right} {what}; a role of that user must: etcdctl role grant-permission ROLE {right} "
            "KEY, or with --prefix=true what begins with it (configuration.md has what is needed)"
        )

    async def _ready(self) -> _Member:
        async with self._connecting:
            if self._member is None:
                self._member = await self._connect()
            return self._member

    async def _drop(self, member: _Member | None) -> None:
        if member is None or member is not self._member:
            return
        self._member = None
        self._endpoints.remove(member.endpoint)
        self._endpoints.append(member.endpoint)
        with contextlib.suppress(Exception):
            await member.channel.close()

    async def _connect(self) -> _Member:
        failures: dict[str, StoreError] = {}
        tasks: dict[asyncio.Task[_Member], str] = {}
        waiting = list(self._endpoints)
        try:
            while waiting or tasks:
                if waiting:
                    endpoint = waiting.pop(0)
                    tasks[asyncio.create_task(self._probe(endpoint))] = endpoint
                done, _ = await asyncio.wait(
                    tasks, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    endpoint = tasks.pop(task)
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, StoreError):
                        raise error
                    failures[endpoint] = error
        finally:
            for task in tasks:
                task.cancel()
            for late in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(late, _Member):  # it answered as well
                    await late.channel.close()
        # who is told no by one member need not be told that another is down
        denied = next((error for error in failures.values() if not isinstance(error, Unavailable)), None)
        raise denied or Unavailable("; ".join(str(error) for error in failures.values()))

    async def _probe(self, endpoint: str) -> _Member:
        member = _Member(endpoint, self._channel(endpoint))
        try:
            async with asyncio.timeout(PROBE):
                await self._login(member)
                request = rpc.RangeRequest(key=b"\0", range_end=b"\0", limit=1, count_only=True)
                try:
                    await member.kv.Range(request, metadata=member.metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.PERMISSION_DENIED:  # it answers; what we may is asked later
                        raise
        except BaseException as error:
            with contextlib.suppress(Exception):
                await member.channel.close()
            if isinstance(error, (grpc.aio.AioRpcError, TimeoutError)):
                refusal = _mapped(endpoint, error)
                if isinstance(refusal, Unavailable):
                    reason = await asyncio.to_thread(tls_problem, endpoint, self.config)
                    refusal = Denied(f"etcd {endpoint}: {reason}") if reason else refusal
                raise refusal from None
            raise
        return member

    async def _login(self, member: _Member) -> None:
        config = self.config
        if not config.username:
            return
        password = config.password
        if config.password_file:
            password = contents(config.password_file, "datastore.passwordFile").decode(errors="replace").rstrip("\r\n")
        try:
            answer = await rpc.AuthStub(member.channel).Authenticate(
                rpc.AuthenticateRequest(name=config.username, password=password), metadata=_REQUIRE_LEADER
            )
            member.token = answer.token
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" not in (error.details() or ""):
                raise

    def _channel(self, endpoint: str) -> Any:
        scheme, _, target = endpoint.rpartition("://")
        if scheme != "https":
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        config = self.config
        credentials = grpc.ssl_channel_credentials(
            contents(config.ca_file, "datastore.caFile") if config.ca_file else None,
            contents(config.key_file, "datastore.keyFile") if config.key_file else None,
            contents(config.cert_file, "datastore.certFile") if config.cert_file else None,
        )
        return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)


@dataclass(slots=True)
class _Life:
    """Of a watch."""

    heard: float
    """When it last said something, on the loop's clock."""
    is_over: bool = False
    """It was asked, and did not answer."""


async def _ask_whether_it_lives(call: Any, life: _Life) -> None:
    """A watch that stays silent is asked, and one that does not answer is ended. Beside the reading, which goes on for
    each of its messages as it is."""
    loop = asyncio.get_running_loop()
    while True:
        while (silent := loop.time() - life.heard) < QUIET:
            await asyncio.sleep(QUIET - silent)
        asked = life.heard
        try:
            async with asyncio.timeout(QUIET):
                await call.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            await asyncio.sleep(QUIET)
        except TimeoutError:
            pass
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return  # it has ended, as who reads it is told
        if life.heard == asked:
            life.is_over = True
            call.cancel()
            return


async def _ended(call: Any) -> grpc.aio.AioRpcError:
    """Why a watch says no more."""
    code, details = await call.code(), await call.details()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details or "the watch has ended")


class _TooLarge(StoreError):
    """A page does not fit one message."""


def _text(key: bytes) -> str:
    return key.decode(errors="replace")


def _login_is_over(error: grpc.aio.AioRpcError) -> bool:
    """The token has expired, or who may do what has changed: logging in again may help."""
    details = error.details() or ""
    return "invalid auth token" in details or "revision of auth store is old" in details


def _is_cancelled() -> bool:
    """Whether it is us who are cancelled, and not the call we wait for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _mapped(endpoint: str, error: BaseException | None) -> StoreError:
    if isinstance(error, grpc.aio.AioRpcError):
        # where it was raised holds the call, and that its connection, closed or not, for as long as the refusal is kept
        error.__traceback__ = None
        return _refusal(endpoint, error.code(), error.details() or "")
    if isinstance(error, TimeoutError):
        return Unavailable(f"etcd {endpoint} does not answer")
    return Unavailable(f"etcd {endpoint}: the connection has ended")


def _refusal(endpoint: str, code: grpc.StatusCode, details: str) -> StoreError:
    said = " ".join(details.split())[:300].removeprefix("etcdserver: ") or code.name
    if "has been compacted" in said:
        return Compacted(f"etcd {endpoint}: {said}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message" in said.lower():
        return _TooLarge(f"etcd {endpoint}: {said}")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED) or any(
        words in said for words in ("authentication failed", "user name is empty", "permission denied", "invalid auth")
    ):
        return Denied(f"etcd {endpoint} refuses us: {said}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"etcd {endpoint} does not answer in time")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return StoreError(f"etcd {endpoint}: {said}")
    return Unavailable(f"etcd {endpoint}: {said}")
