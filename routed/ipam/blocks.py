"""What happens inside one block: addresses given out, given back, cooling down. Calico's block JSON, byte for byte.

A block is its manifest; every function takes one and gives a new one, with all fields it does not know kept. `allocations`
has an index into `attributes`, or null, for each address; `unallocated` is the queue of free ordinals, so that an address
given back is the last to be given out again; an attribute is shared by addresses of the same owner and goes with the last
of them; a released address under cooldown keeps an attribute that says only when (`releasedAt`) and is nobody's.

Invariants: a free ordinal is in `unallocated` exactly once, no other is; every attribute is used; `sequenceNumber` grows
by one with every change, and `sequenceNumberForAllocation` says at which number an address was given out, so that a late
release of an earlier owner can be told from one of the present.

Pure. Which block, for whom and how it is written is `allocator`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import cast

from routed.model.ipam import AllocationAttribute, IPAMBlock
from routed.model.paths import block_name
from routed.model.resources import Cidr, JsonObject, JsonValue
from routed.net.prefixes import prefix_address
from routed.values import dataclass

_API_VERSION = "projectcalico.org/v3"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has an address."""

    handle: str | None
    secondary: Mapping[str, str]
    """`node`, `namespace`, `pod`, `timestamp`, `type`."""


@dataclass(frozen=True, slots=True)
class Released:
    """What a release did."""

    manifest: JsonObject
    released: tuple[bytes, ...]
    """Addresses that were somebody's and are nobody's now."""
    handles: Mapping[str, int]
    """How many of them were under each handle."""


def new_block(cidr: Cidr, affinity: str | None, claimed_at: str, sequence: int) -> JsonObject:
    """An empty block. `sequence` is where its numbers begin: nanoseconds of the clock, so that a block that is deleted
    and made again does not repeat them."""
    size = 1 << (cidr.family.max_length - cidr.prefix[0])
    spec: JsonObject = {"cidr": str(cidr)}
    if affinity is not None:
        spec |= {"affinity": affinity, "affinity_claim_time": claimed_at}
    spec |= {
        "allocations": [None] * size,
        "unallocated": list(range(size)),
        "attributes": [],
        "sequenceNumber": sequence,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }
    return {
        "apiVersion": _API_VERSION,
        "kind": IPAMBlock.kind,
        "metadata": {"name": block_name(cidr)},
        "spec": spec,
    }


def after(block: IPAMBlock, manifest: JsonObject) -> IPAMBlock:
    """The block that a manifest made here of `block` describes, without reading again what was not changed."""
    old, spec = block.manifest.get("spec"), manifest.get("spec")
    if not isinstance(old, dict) or not isinstance(spec, dict):
        raise ValueError(f"{block.key} has no spec")
    values, raw = _list(spec, "attributes"), old.get("attributes")
    read = dict(zip(map(id, raw), block.attributes, strict=True)) if isinstance(raw, list) else {}
    known = list(map(read.get, map(id, values)))  # all but the one that was added
    numbers = _object(spec, "sequenceNumberForAllocation")
    kept = spec.get("affinity") == old.get("affinity")
    return replace(
        block.whole,
        manifest=manifest,
        affinity=block.affinity if kept else None,
        affinity_claim_time=block.affinity_claim_time if kept else "",
        allocations=tuple(cast("list[int | None]", _list(spec, "allocations"))),
        unallocated=tuple(cast("list[int]", _list(spec, "unallocated"))),
        attributes=tuple(each or _attribute(value) for each, value in zip(known, values, strict=True)),
        sequence_number=cast("int", spec["sequenceNumber"]),
        sequence_number_for_allocation=dict(
            zip(map(int, numbers), cast("Iterable[int]", numbers.values()), strict=True)
        ),
    )


def _attribute(value: JsonValue) -> AllocationAttribute:
    """One that was written here."""
    made = cast("dict[str, str | None]", value)
    secondary = cast("dict[str, dict[str, str]]", value).get("secondary", {})
    return AllocationAttribute(made.get("handle_id") or None, secondary, released_at=made.get("releasedAt") or "")


def address_at(block: IPAMBlock, ordinal: int) -> bytes:
    """The packed address of an ordinal."""
    family = block.cidr.family
    first = int.from_bytes(prefix_address(family, block.cidr.prefix), "big")
    return (first + ordinal).to_bytes(family.address_length, "big")


def free_count(block: IPAMBlock, is_reserved: Callable[[bytes], bool]) -> int:
    """Addresses that could be given out now."""
    return sum(1 for ordinal in block.unallocated if not is_reserved(address_at(block, ordinal)))


def allocations(block: IPAMBlock) -> Iterator[tuple[int, AllocationAttribute]]:
    """The ordinals of a block that somebody has, and who."""
    for ordinal in range(len(block.allocations)):
        owner = block.owner(ordinal)
        if owner is not None:
            yield ordinal, owner


def is_empty(block: IPAMBlock) -> bool:
    """Nobody has an address of it; cooling ones do not count."""
    return all(block.owner(ordinal) is None for ordinal in range(len(block.allocations)))


def assign(
    block: IPAMBlock, count: int, owner: Owner, is_reserved: Callable[[bytes], bool]
) -> tuple[JsonObject, tuple[bytes, ...]]:
    """Give out up to `count` addresses, the longest free first; those reserved keep their place in the queue."""
    free = (each for each in block.unallocated if not is_reserved(address_at(block, each)))
    chosen = list(islice(free, max(0, count)))
    return _assign(block, chosen, owner), tuple(address_at(block, each) for each in chosen)


def assign_address(block: IPAMBlock, address: bytes, owner: Owner) -> JsonObject | None:
    """Give out this very address, reserved or not; None where somebody has it or it is cooling down."""
    ordinal = block.ordinal_of(address)
    if ordinal is None or ordinal not in block.unallocated:
        return None
    return _assign(block, [ordinal], owner)


def _assign(block: IPAMBlock, ordinals: list[int], owner: Owner) -> JsonObject:
    manifest, spec = _editable(block)
    if not ordinals:
        return manifest
    attributes = _list(spec, "attributes")
    index = next(
        (
            number
            for number, each in enumerate(block.attributes)
            if each.handle_id == owner.handle and _is_owner(each, owner)
        ),
        len(attributes),
    )
    if index == len(attributes):
        entry: JsonObject = {"handle_id": owner.handle, "secondary": dict(owner.secondary)}
        attributes.append(entry)
    allocations = _list(spec, "allocations")
    numbers = _object(spec, "sequenceNumberForAllocation")
    for ordinal in ordinals:
        allocations[ordinal] = index
        numbers[str(ordinal)] = block.sequence_number
    taken = set(ordinals)
    spec["unallocated"] = [ordinal for ordinal in block.unallocated if ordinal not in taken]
    spec["sequenceNumber"] = block.sequence_number + 1
    return manifest


def _is_owner(attribute: AllocationAttribute, owner: Owner) -> bool:
    return (
        not attribute.released_at
        and not attribute.alternate_owner
        and attribute.handle_id == owner.handle
        and dict(attribute.secondary) == dict(owner.secondary)
    )


def release(
    block: IPAMBlock,
    addresses: Iterable[bytes],
    released_at: str = "",
    *,
    handle: str | None = None,
    sequence: Mapping[bytes, int] | None = None,
) -> Released:
    """Give addresses back; those that nobody has are passed over.

    `released_at` (RFC 3339) begins their cooldown; empty: they are free at once. With `handle`, only addresses under that
    handle are released; with `sequence`, only those given out at that number.
    """
    chosen: dict[int, AllocationAttribute] = {}
    for address in addresses:
        ordinal = block.ordinal_of(address)
        attribute = block.owner(ordinal) if ordinal is not None else None
        if ordinal is None or attribute is None or (handle is not None and attribute.handle_id != handle):
            continue
        number = block.sequence_number_for_allocation.get(ordinal)
        if sequence is not None and address in sequence and number is not None and number != sequence[address]:
            continue
        chosen[ordinal] = attribute
    handles = Counter(attribute.handle_id for attribute in chosen.values() if attribute.handle_id is not None)
    manifest = _release(block, sorted(chosen), released_at)
    return Released(manifest, tuple(address_at(block, ordinal) for ordinal in sorted(chosen)), handles)


def release_handle(block: IPAMBlock, handle: str, released_at: str = "") -> Released:
    """Give back all addresses under a handle."""
    own = _having(block, {index for index, each in enumerate(block.attributes) if each.handle_id == handle})
    return release(block, [address_at(block, each) for each in own], released_at, handle=handle)


def _release(block: IPAMBlock, ordinals: list[int], released_at: str) -> JsonObject:
    manifest, spec = _editable(block)
    if not ordinals:
        return manifest
    allocations = _list(spec, "allocations")
    attributes = _list(spec, "attributes")
    numbers = _object(spec, "sequenceNumberForAllocation")
    for ordinal in ordinals:
        numbers.pop(str(ordinal), None)
    if released_at:
        cooling: JsonObject = {"releasedAt": released_at}
        index = attributes.index(cooling) if cooling in attributes else len(attributes)
        if index == len(attributes):
            attributes.append(cooling)
        for ordinal in ordinals:
            allocations[ordinal] = index
    else:
        _free(spec, ordinals)
    _drop_unused_attributes(spec)
    spec["sequenceNumber"] = block.sequence_number + 1
    return manifest


def collect(block: IPAMBlock, is_over: Callable[[str], bool]) -> JsonObject | None:
    """Free the addresses whose cooldown `is_over` (asked with their `releasedAt`); None where there are none."""
    over = {index for index, each in enumerate(block.attributes) if each.released_at and is_over(each.released_at)}
    ordinals = _having(block, over)
    if not ordinals:
        return None
    manifest, spec = _editable(block)
    _free(spec, ordinals)
    _drop_unused_attributes(spec)
    spec["sequenceNumber"] = block.sequence_number + 1
    return manifest


def _having(block: IPAMBlock, attributes: Collection[int]) -> list[int]:
    """The ordinals that have one of these attributes."""
    return [ordinal for ordinal, index in enumerate(block.allocations) if index in attributes] if attributes else []


def is_exhausted(block: IPAMBlock) -> bool:
    """No address is free, and none is cooling down."""
    return not block.unallocated and not any(each.released_at for each in block.attributes)


def without_affinity(block: IPAMBlock) -> JsonObject:
    """The block belongs to no node any more; those who have addresses of it keep them."""
    manifest, spec = _editable(block)
    spec.pop("affinity", None)
    spec.pop("affinity_claim_time", None)
    spec.pop("hostAffinity", None)
    spec["affinity"] = None
    spec["sequenceNumber"] = block.sequence_number + 1
    return manifest


def touched(block: IPAMBlock) -> JsonObject:
    """The same block at a new revision, so that whoever decided on the old one must look again."""
    manifest, spec = _editable(block)
    spec["sequenceNumber"] = block.sequence_number + 1
    return manifest


def _free(spec: JsonObject, ordinals: list[int]) -> None:
    allocations, unallocated = _list(spec, "allocations"), _list(spec, "unallocated")
    for ordinal in ordinals:
        allocations[ordinal] = None
        unallocated.append(ordinal)


def _drop_unused_attributes(spec: JsonObject) -> None:
    allocations, attributes = _list(spec, "allocations"), _list(spec, "attributes")
    used = sorted({index for index in allocations if isinstance(index, int)})
    places = {old: new for new, old in enumerate(used)}
    spec["attributes"] = [attributes[old] for old in used if old < len(attributes)]
    spec["allocations"] = [places[index] if isinstance(index, int) else None for index in allocations]


def _editable(block: IPAMBlock) -> tuple[JsonObject, JsonObject]:
    """A copy of a block's manifest and its spec, with the lists that old writers left out.

    No deeper than what is changed here: every address given out or back makes one, and a block says much.
    """
    spec = block.manifest.get("spec")
    if not isinstance(spec, dict):
        raise ValueError(f"{block.key} has no spec")
    spec = dict(spec)
    for name in ("allocations", "unallocated", "attributes"):
        there = spec.get(name)
        spec[name] = list(there) if isinstance(there, list) else []
    numbers = spec.get("sequenceNumberForAllocation")
    spec["sequenceNumberForAllocation"] = dict(numbers) if isinstance(numbers, dict) else {}
    return {**block.manifest, "spec": spec}, spec


def _list(spec: JsonObject, name: str) -> list[JsonValue]:
    value = spec[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _object(spec: JsonObject, name: str) -> JsonObject:
    value = spec[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value
