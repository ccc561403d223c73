"""Addresses given once more to who has them, after the datastore has forgotten that they were given.

An etcd restored from a backup knows nothing of what was given out since. The procedure gives the same addresses under the
same handles, where nobody else has been given them meanwhile: all of an attachment or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routed.ipam.allocator import (
    Clock,
    Cluster,
    Demand,
    Procedure,
    assign_specific,
    owner_of,
    release_addresses,
)
from routed.ipam.blocks import Owner
from routed.model.ipam import AllocationAttribute
from routed.net.addresses import format_address
from routed.net.families import Family


def reassign(
    cluster: Cluster, node: str, labels: Mapping[str, str], lost: Sequence[tuple[bytes, Owner]], clock: Clock
) -> Procedure[str]:
    """Why somebody cannot have his addresses back, for people, or empty. `lost`: each, and who had it."""
    free: list[tuple[bytes, Owner]] = []
    for address, owner in lost:
        now = yield from owner_of(cluster, address)
        if now is None:
            free.append((address, owner))
        elif now.handle_id != owner.handle:
            return f"{format_address(address)} was given to {_named(now)}"
    given: list[bytes] = []
    for address, owner in free:
        demand = Demand(node, labels, owner, Family.of_address(address))
        outcome = yield from assign_specific(cluster, demand, address, clock)
        if not outcome.addresses:
            yield from release_addresses(cluster, given, clock, handle=owner.handle)
            return f"{format_address(address)}: {outcome.reason}"
        given.append(address)
    return ""


def _named(owner: AllocationAttribute) -> str:
    said = owner.secondary
    if said.get("pod"):
        return f"{said.get('namespace', 'default')}/{said['pod']} on node {said.get('node', '?')}"
    return owner.handle_id or "somebody"
