"""Procedures that many ask for at once, carried out together: what they write is one write of the datastore.

Each write of a datastore costs a question over the network and a disk, and pods that come at the same time want addresses
of the same block. So procedures that wait while a write is under way are then run one after the other on a draft, in
which each sees what those before it would write, and the draft is written in one piece: on etcd one transaction, which
all of them are in or none. Where several are about, rounds begin apart from each other, the further the more come, so that
what a round costs here, in the datastore and in all who are told of it is shared; whoever is alone waits for nobody.

Invariants: procedures take effect in the order in which they came, whoever waits together. A procedure that does more than
give addresses out and back (it claims a block) is run alone, write by write, since its order of writes is its protocol.
Where somebody else was faster, the first of the round is run alone, and the others get another round. Whoever gives up
waiting still has his procedure carried out if it had begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from routed.datastore.allocating import carry_out, run
from routed.datastore.store import Conflict, Edit, Store, Stored
from routed.errors import StoreError, Unavailable
from routed.ipam.allocator import Found, Procedure
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.kubernetes import Pod
from routed.model.resources import Cidr, Resource, ResourceKey, Update
from routed.model.workloads import WorkloadEndpoint
from routed.values import dataclass

R = TypeVar("R")

#: Procedures in one round: each writes a handle, a block and an endpoint, may rely on a Pod not being there, and etcd takes
#: 128 of these at once.
AT_ONCE = 24
#: Seconds from one round to the next, where the one before was of MANY or more; of fewer, as much less.
APART = 0.05
MANY = 4
#: Seconds for which others are expected after two came together.
COMPANY = 0.25

#: Seconds for which a write that failed is told of.
REMEMBERED = 600.0

_DRAFT = "draft"
_DRAFTED = (IPAMBlock.kind, IPAMHandle.kind, WorkloadEndpoint.kind, Pod.kind)


@dataclass(slots=True)
class _Asked:
    make: Callable[[], Procedure[Any]]
    """A run of the procedure."""
    answer: asyncio.Future[Any]


class _MustBeAlone(Exception):
    """The procedure's writes have an order of their own."""


class _Draft:
    """What a round would write, over what is stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._edits: dict[ResourceKey, Edit] = {}

    async def get(self, key: ResourceKey) -> Stored | None:
        edit = self._edits.get(key)
        if edit is None:
            return await self._store.get(key)
        return None if edit.resource is None else Stored(edit.resource, _DRAFT, "")

    async def has_elder(self, block: Cidr) -> bool:  # noqa: ARG002
        raise _MustBeAlone  # who asks claims it

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        if key.kind not in _DRAFTED:
            raise _MustBeAlone
        before = self._edits.pop(key, None)
        based_on = revision if before is None else before.revision
        came = before is not None and before.resource is not None
        if resource is not None or based_on is not None or not came:  # else it came and went within the round
            self._edits[key] = Edit(key, resource, based_on)
        return _DRAFT if resource is not None else ""

    def copy(self) -> dict[ResourceKey, Edit]:
        return dict(self._edits)

    def reset(self, edits: dict[ResourceKey, Edit]) -> None:
        self._edits = edits

    @property
    def edits(self) -> list[Edit]:
        """In the order that a crash between any two leaves right: a handle counts what a block gives out, and an
        endpoint has what was given out."""
        return sorted(self._edits.values(), key=_rank)


def _rank(edit: Edit) -> int:
    there = edit.resource is not None
    if edit.key.kind == WorkloadEndpoint.kind:
        return 4 if there else 0
    return 2 if edit.key.kind == IPAMBlock.kind else 1 if there else 3


class Rounds:
    """See the module's docstring. Used on one loop."""

    def __init__(
        self,
        store: Store,
        listed: Callable[[str], Awaitable[list[Found]]],
        written: Callable[[Update], None],
        apart: float = APART,
    ) -> None:
        """`listed` and `written` as of `carry_out`."""
        self._apart = apart
        self._store = store
        self._listed = listed
        self._written = written
        self._waiting: deque[_Asked] = deque()
        self._working: asyncio.Task[None] | None = None
        self._next = 0.0
        """When the next round may begin, while there is company."""
        self._company_until = 0.0
        self._refused = ("", 0.0)
        """What the datastore said as it took no write, and when; empty once it took one."""

    @property
    def problem(self) -> str:
        """Why the last write failed, where the datastore answers but takes none; for as long as callers may try again."""
        said, at = self._refused
        return said if said and asyncio.get_running_loop().time() - at < REMEMBERED else ""

    async def carry_out(self, make: Callable[[], Procedure[R]]) -> R:
        """Run a procedure to its end; `make` begins it, again where it lost a race. Raises what it does, and StoreError."""
        loop = asyncio.get_running_loop()
        asked = _Asked(make, loop.create_future())
        self._waiting.append(asked)
        if self._working is None:
            self._working = loop.create_task(self._work())
        else:
            self._company_until = loop.time() + COMPANY
        result: R = await asked.answer
        return result

    async def _work(self) -> None:
        try:
            while self._waiting:
                left = await self._round(await self._gather())
                if left:
                    await self._alone(left[0])
                    self._waiting.extendleft(reversed(left[1:]))
        finally:
            self._working = None
            while self._waiting:
                _tell(self._waiting.popleft(), error=StoreError("routed stops"))

    async def _gather(self) -> list[_Asked]:
        """Those of the next round, once it may begin."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now < min(self._next, self._company_until) and len(self._waiting) < AT_ONCE:
            await asyncio.sleep(self._next - now)
        taken = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
        self._next = loop.time() + self._apart * min(1.0, len(taken) / MANY)
        return [each for each in taken if not each.answer.cancelled()]

    async def _round(self, asked: list[_Asked]) -> list[_Asked]:
        """Carry out what can be together; what is left."""
        draft = _Draft(self._store)
        done: list[tuple[_Asked, object]] = []
        for number, each in enumerate(asked):
            before = draft.copy()
            try:
                done.append((each, await run(draft, each.make(), self._listed)))
            except _MustBeAlone:
                draft.reset(before)
                return [*await self._write(draft, done), *asked[number:]]
            except Exception as error:  # of this procedure; its caller is told
                draft.reset(before)
                _tell(each, error=error)
        return await self._write(draft, done)

    async def _write(self, draft: _Draft, done: list[tuple[_Asked, object]]) -> list[_Asked]:
        edits = draft.edits
        try:
            if edits:
                await self._store.write_all(edits)
        except Conflict:
            return [each for each, _ in done]
        except Exception as error:
            self._failed(error)
            for each, _ in done:
                _tell(each, error=error)
            return []
        if edits:
            self._refused = ("", 0.0)
        for edit in edits:
            if not edit.is_condition:
                self._written(Update(edit.key, edit.resource))
        for each, result in done:
            _tell(each, result)
        return []

    async def _alone(self, asked: _Asked) -> None:
        try:
            result = await carry_out(self._store, asked.make(), self._listed, self._written)
        except Exception as error:
            self._failed(error)
            _tell(asked, error=error)
        else:
            self._refused = ("", 0.0)
            _tell(asked, result)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, StoreError) and not isinstance(error, Conflict | Unavailable):
            self._refused = (str(error), asyncio.get_running_loop().time())


def _tell(asked: _Asked, result: object = None, error: Exception | None = None) -> None:
    if asked.answer.done():  # nobody waits any more
        return
    if error is not None:
        asked.answer.set_exception(error)
    else:
        asked.answer.set_result(result)
