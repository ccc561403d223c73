"""Procedures that many ask for at once, carried out together: what they write is one write of the datastore.

Each write of a datastore costs a question over the network and a disk, and pods that come at the same time want addresses
of the same block. So procedures that wait while a write is under way are then run one after the other on a draft, in
which each sees what those before it would write, and the draft is written in one piece: on etcd one transaction, which
all of them are in or none.

Invariants: procedures take effect in the order in which they came, whoever waits together. A procedure that does more than
give addresses out and back (it claims a block) is run alone, write by write, since its order of writes is its protocol.
Where somebody else was faster, the first of the round is run alone, and the others get another round. Whoever gives up
waiting still has his procedure carried out if it had begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from routed.datastore.allocating import carry_out, run
from routed.datastore.store import Conflict, Edit, Store, Stored
from routed.errors import StoreError
from routed.ipam.allocator import Found, Procedure
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.kubernetes import Pod
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.workloads import WorkloadEndpoint

R = TypeVar("R")

#: Procedures in one round: each writes a handle, a block and an endpoint, may rely on a Pod not being there, and etcd takes
#: 128 of these at once.
AT_ONCE = 24

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
        self, store: Store, listed: Callable[[str], Awaitable[list[Found]]], written: Callable[[Update], None]
    ) -> None:
        """As of `carry_out`."""
        self._store = store
        self._listed = listed
        self._written = written
        self._waiting: deque[_Asked] = deque()
        self._working: asyncio.Task[None] | None = None

    async def carry_out(self, make: Callable[[], Procedure[R]]) -> R:
        """Run a procedure to its end; `make` begins it, again where it lost a race. Raises what it does, and StoreError."""
        loop = asyncio.get_running_loop()
        asked = _Asked(make, loop.create_future())
        self._waiting.append(asked)
        if self._working is None:
            self._working = loop.create_task(self._work())
        result: R = await asked.answer
        return result

    async def _work(self) -> None:
        try:
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                left = await self._round([each for each in taken if not each.answer.cancelled()])
                if left:
                    await self._alone(left[0])
                    self._waiting.extendleft(reversed(left[1:]))
        finally:
            self._working = None
            while self._waiting:
                _tell(self._waiting.popleft(), error=StoreError("routed stops"))

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
            for each, _ in done:
                _tell(each, error=error)
            return []
        for edit in edits:
            if not edit.is_condition:
                self._written(Update(edit.key, edit.resource))
        for each, result in done:
            _tell(each, result)
        return []

    async def _alone(self, asked: _Asked) -> None:
        try:
            _tell(asked, await carry_out(self._store, asked.make(), self._listed, self._written))
        except Exception as error:
            _tell(asked, error=error)


def _tell(asked: _Asked, result: object = None, error: Exception | None = None) -> None:
    if asked.answer.done():  # nobody waits any more
        return
    if error is not None:
        asked.answer.set_exception(error)
    else:
        asked.answer.set_result(result)
