"""How a resource says that it is deleted on purpose: before it is, or by what was done with it.

Calico and Kubernetes say it already, each where it can be said: an affinity by its state `pendingDeletion`, blocks and
handles by `deleted`, everything else by `metadata.deletionTimestamp`. A block says it too by having no address in use:
allocators, Calico's as well, delete no other. Who then sees it vanish knows that it is no accident (`datastore.guard`),
on every node, and also where the vanishing was all that it missed. Invariant: an announcement changes nothing else of
the resource.
"""

from __future__ import annotations

from collections.abc import Callable

from routed.model.ipam import AllocationAttribute, IPAMBlock, IPAMHandle, blocks_with
from routed.model.paths import ALLOCATOR_KINDS, block_name
from routed.model.resources import AffinityState, BlockAffinity, Cidr, JsonObject, Resource, ResourceKey
from routed.model.schema import parse_stored
from routed.model.workloads import WorkloadEndpoint


def is_announced(resource: Resource) -> bool:
    """Whether a resource says that it is about to be deleted."""
    if isinstance(resource, BlockAffinity):
        return resource.state is AffinityState.PENDING_DELETION or resource.deleted
    if isinstance(resource, IPAMBlock):
        whole = resource.whole
        return whole.deleted or all(whole.owner(ordinal) is None for ordinal in range(len(whole.allocations)))
    if isinstance(resource, IPAMHandle):
        return resource.deleted
    metadata = resource.manifest.get("metadata")
    return isinstance(metadata, dict) and bool(metadata.get("deletionTimestamp"))


def announced(resource: Resource, at: str) -> Resource | None:
    """The resource as it says so, `at` a time (RFC 3339); None where its kind has no way to."""
    if isinstance(resource, BlockAffinity):
        return _with(resource, "spec", {"state": AffinityState.PENDING_DELETION.value})
    if isinstance(resource, (IPAMBlock, IPAMHandle)):
        return _with(resource, "spec", {"deleted": True})
    if resource.kind in ALLOCATOR_KINDS:
        return None
    return _with(resource, "metadata", {"deletionTimestamp": at})


def is_given_back(endpoint: WorkloadEndpoint, stored: Callable[[ResourceKey], Resource | None]) -> bool:
    """Whether all addresses of an endpoint are somebody else's or nobody's, in blocks that are there (`stored`)."""

    def block_at(cidr: Cidr) -> IPAMBlock | None:
        block = stored(ResourceKey(IPAMBlock.kind, block_name(cidr)))
        return block if isinstance(block, IPAMBlock) and block.cidr == cidr else None

    def is_free(address: bytes) -> bool:
        owners = [block.owner_of(address) for block in blocks_with(address, block_at)]
        return bool(owners) and not any(_is_of(owner, endpoint.container_id) for owner in owners)

    return bool(endpoint.ip_networks) and all(is_free(network.prefix[1:]) for network in endpoint.ip_networks)


def _is_of(owner: AllocationAttribute | None, container_id: str) -> bool:
    """Whether an address may be a container's, by the handle it was given under."""
    return owner is not None and (not container_id or container_id in (owner.handle_id or container_id))


def _with(resource: Resource, part: str, fields: JsonObject) -> Resource:
    before = resource.manifest.get(part)
    whole = (before if isinstance(before, dict) else {}) | fields
    return parse_stored(resource.manifest | {part: whole})
