"""Putting right what a check of addresses found: one finding, or all of a node that is gone.

Invariants: a finding is put right only if the datastore still has it as it was found; what an endpoint has is never
released.
Which findings are put right, and by whom they were found twice, is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from routed.datastore.allocating import carry_out, clock
from routed.datastore.applying import announce
from routed.datastore.store import Conflict, Store, Stored
from routed.ipam.allocator import Cluster, claim, recount_handle, release_affinity, release_allocation, release_node
from routed.ipam.check import Finding, Problem
from routed.model.resources import Cidr, Resource, Update
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import parse_address
from routed.net.prefixes import parse_prefix


def _nobody(_: Update) -> None:
    """Nobody follows."""


async def put_right(
    store: Store,
    cluster: Cluster,
    nodes: Collection[str],
    finding: Finding,
    written: Callable[[Update], None] = _nobody,
) -> bool | None:
    """Whether it was done; False where it has changed meanwhile, None where it is for a person. Raises StoreError."""
    cidr = Cidr(*parse_prefix(finding.cidr)) if finding.cidr else None
    match finding.problem:
        case Problem.LEAKED if cidr is not None:
            address = parse_address(finding.address)
            handle, sequence = finding.handle or None, finding.sequence if finding.sequence >= 0 else None
            procedure = release_allocation(cluster, cidr, address, clock(), handle=handle, sequence=sequence)
        case Problem.HANDLE:
            procedure = recount_handle(finding.handle, cidr, finding.count)
        case Problem.NO_BLOCK | Problem.STALE_AFFINITY if cidr is not None:
            procedure = release_affinity(finding.node, cidr)
        case Problem.SPARE | Problem.NO_POOL if cidr is not None and finding.node and finding.count < 1:
            procedure = release_affinity(finding.node, cidr, only_empty=True)
        case Problem.NO_AFFINITY if cidr is not None and finding.node in nodes:
            procedure = claim(cidr, finding.node, clock())
        case _:
            return None
    return await carry_out(store, procedure, written=written)


async def remove_endpoints(
    store: Store, stored: Iterable[Stored], node: str, written: Callable[[Update], None] = _nobody
) -> list[Resource]:
    """Remove the endpoints of a node that is gone, as they were read. Raises Conflict where somebody writes them."""
    removed: list[Resource] = []
    for each in stored:
        endpoint = each.resource
        if not isinstance(endpoint, WorkloadEndpoint) or endpoint.node != node:
            continue
        try:
            revision = each.revision
            if store.guards_deletions:
                revision, _ = await announce(store, endpoint.key, each, revision)
            await store.write(endpoint.key, None, revision)
        except Conflict:
            raise Conflict(f"{endpoint.key} is changed by others: is its node still running?") from None
        written(Update(endpoint.key, None))
        removed.append(endpoint)
    return removed


async def give_back(
    store: Store, cluster: Cluster, node: str, written: Callable[[Update], None] = _nobody
) -> tuple[bytes, ...]:
    """All addresses and blocks of a node that is gone; the addresses that were released. Raises StoreError."""
    return await carry_out(store, release_node(cluster, node, clock()), written=written)
