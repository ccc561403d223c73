"""The allocator's procedures on a datastore: its reads and writes carried out, its clock, what it must know.

Invariant: a write of a procedure that lost a race is told so and nothing else happens; what was written is told of before
the procedure goes on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from routed.datastore.store import Conflict, Editable, Store
from routed.ipam.allocator import CONFLICT, Answer, Clock, Cluster, Found, Get, HasElder, List, Procedure, Write
from routed.ipam.holders import Holder
from routed.model.ipam import DEFAULT_IPAM_CONFIG, IPAMConfig, IPReservation
from routed.model.resources import Cidr, IPPool, Resource, Update
from routed.model.schema import parse_stored

R = TypeVar("R")


async def carry_out(
    store: Store,
    procedure: Procedure[R],
    listed: Callable[[str], Awaitable[list[Found]]] | None = None,
    written: Callable[[Update], None] = lambda _: None,
) -> R:
    """Run a procedure to its end. Raises StoreError.

    `listed` answers for all resources of a kind where somebody follows them anyway; a procedure bears it that they are a
    little old. `written` hears of each write.
    """

    async def read(kind: str) -> list[Found]:
        return await _list(store, kind)

    return await run(store, procedure, listed or read, written)


async def run(
    store: Editable,
    procedure: Procedure[R],
    listed: Callable[[str], Awaitable[list[Found]]],
    written: Callable[[Update], None] = lambda _: None,
) -> R:
    """As `carry_out`, on whatever can be edited."""
    answer: Answer = None
    while True:
        try:
            request = procedure.send(answer)
        except StopIteration as done:
            result: R = done.value
            return result
        match request:
            case Get(key):
                stored = await store.get(key)
                answer = None if stored is None else Found(stored.resource, stored.revision)
            case HasElder(block):
                answer = await store.has_elder(block)
            case List(kind):
                answer = await listed(kind)
            case Write(key, wanted, revision):
                value = parse_stored(wanted) if isinstance(wanted, dict) else wanted
                try:
                    answer = await store.write(key, value, revision)
                except Conflict:
                    answer = CONFLICT
                else:
                    written(Update(key, value))


async def _list(store: Store, kind: str) -> list[Found]:
    contents = await store.read({kind})
    return [Found(each.resource, each.revision) for key, each in contents.resources.items() if key.kind == kind]


def cluster_of(resources: Iterable[Resource], held: Callable[[bytes], Holder | None] = lambda _: None) -> Cluster:
    """What the allocator must know of these resources. `held` says who has an address, whatever the blocks say."""
    pools: list[IPPool] = []
    config = DEFAULT_IPAM_CONFIG
    reserved: list[Cidr] = []
    for one in resources:
        match one:
            case IPPool():
                pools.append(one)
            case IPAMConfig(name="default"):
                config = one
            case IPReservation():
                reserved += one.reserved_cidrs
    return Cluster(tuple(pools), config, tuple(reserved), held)


def clock() -> Clock:
    """What it is now."""
    now = datetime.now(UTC)

    def is_older(text: str, seconds: float) -> bool:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            return False
        return (now - then.astimezone(UTC)).total_seconds() > seconds

    return Clock(now.strftime("%Y-%m-%dT%H:%M:%SZ"), time.time_ns(), is_older)
