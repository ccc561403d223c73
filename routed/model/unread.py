"""Blocks as they are stored: found right in one go, and read when somebody asks for more than whose they are.

A cluster has tens of thousands of blocks. A node asks of nearly all of them only who holds them, and reading one whole makes
hundreds of objects. So the octets are judged by a compiled decoder and kept, and nothing else is.

Invariants: what `plain_block` takes, the reader (`ipam`) takes too, as the same resource; of what it does not take it says
nothing, so that the reader looks at it and says what is wrong. An `UnreadBlock` equals the block it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import Annotated, Literal

import msgspec

from routed.model.fields import decimal
from routed.model.head import API_VERSION
from routed.model.ipam import (
    AFFINITY_TYPES,
    MAX_BLOCK_BITS,
    MAX_BLOCK_SIZE,
    MAX_SEQUENCE,
    AllocationAttribute,
    IPAMBlock,
    name_of_block,
    pick_nodes,
)
from routed.model.resources import Cidr, JsonObject, Resource
from routed.model.schema import parse_manifest
from routed.net.prefixes import plain_prefix

_Ordinal = Annotated[int, msgspec.Meta(ge=0, lt=MAX_BLOCK_SIZE)]
_Sequence = Annotated[int, msgspec.Meta(ge=0)]


class _Attribute(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    handle_id: str | None = None
    secondary: dict[str, str] | None = None
    alternateOwnerAttrs: dict[str, str] | None = None
    releasedAt: str | None = None


class _Block(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What Calico writes today; everything else is for the reader."""

    cidr: str
    allocations: list[_Ordinal | None]
    affinity: str | None = None
    affinity_claim_time: str | None = None
    unallocated: list[_Ordinal] | None = None
    attributes: list[_Attribute] | None = None
    deleted: bool | None = None
    sequenceNumber: _Sequence = 0
    sequenceNumberForAllocation: dict[str, _Sequence] | None = None


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    apiVersion: Literal["projectcalico.org/v3"]
    kind: Literal["IPAMBlock"]
    metadata: _Named
    spec: msgspec.Raw


_DECODER = msgspec.json.Decoder(_Block)
_MANIFEST = msgspec.json.Decoder(_Manifest)
_BLOCK_BEGINS = f'{{"apiVersion":"{API_VERSION}","kind":"{IPAMBlock.kind}"'.encode()


class UnreadBlock(IPAMBlock):
    """See the module's docstring."""

    __slots__ = ("_octets", "_whole")
    _octets: bytes
    _whole: IPAMBlock | None

    def __init__(self, name: str, cidr: Cidr, affinity: str | None, octets: bytes, *, deleted: bool) -> None:
        put = object.__setattr__  # frozen, as every resource
        put(self, "name", name)
        put(self, "namespace", "")
        put(self, "labels", {})
        put(self, "cidr", cidr)
        put(self, "affinity", affinity)
        put(self, "deleted", deleted)
        put(self, "_octets", octets)
        put(self, "_whole", None)

    @property
    def whole(self) -> IPAMBlock:
        if self._whole is None:
            read = parse_manifest(json.loads(self.manifest_text()))
            assert isinstance(read, IPAMBlock)
            object.__setattr__(self, "_whole", read)
            return read
        return self._whole

    @property
    def manifest(self) -> JsonObject:
        return self.whole.manifest

    @property
    def affinity_claim_time(self) -> str:
        return self.whole.affinity_claim_time

    @property
    def allocations(self) -> tuple[int | None, ...]:
        return self.whole.allocations

    @property
    def unallocated(self) -> tuple[int, ...]:
        return self.whole.unallocated

    @property
    def attributes(self) -> tuple[AllocationAttribute, ...]:
        return self.whole.attributes

    @property
    def sequence_number(self) -> int:
        return self.whole.sequence_number

    @property
    def sequence_number_for_allocation(self) -> Mapping[int, int]:
        return self.whole.sequence_number_for_allocation

    def nodes_of_addresses(self) -> dict[int, str]:
        block = _DECODER.decode(self._octets)  # again, for nothing of it is kept
        attributes = block.attributes or ()
        nodes = [None if each.releasedAt else (each.secondary or {}).get("node") for each in attributes]
        return pick_nodes(block.allocations, nodes)

    def manifest_text(self) -> bytes:
        return b'%s,"metadata":{"name":"%s"},"spec":%s}' % (_BLOCK_BEGINS, self.name.encode(), self._octets)

    def says_the_same(self, other: Resource) -> bool:
        if isinstance(other, UnreadBlock):  # nothing is kept of a comparison
            return self._octets == other._octets or json.loads(self._octets) == json.loads(other._octets)
        return super().says_the_same(other)

    def __eq__(self, other: object) -> bool:
        return self.whole == (other.whole if isinstance(other, UnreadBlock) else other)

    def __hash__(self) -> int:
        return hash(self.whole)

    def __repr__(self) -> str:
        return repr(self.whole)


def plain_block(octets: bytes, name: str, cidr: Cidr | None = None, spelling: str = "") -> UnreadBlock | None:
    """The block stored with a name; `cidr` and its canonical spelling are what its key says, where there is one.

    None: the reader must look.
    """
    try:
        block = _DECODER.decode(octets)
    except (msgspec.DecodeError, RecursionError):
        return None
    if cidr is None:
        plain = plain_prefix(block.cidr)
        if plain is None:
            return None
        cidr = Cidr(*plain[:2])
        spelling = str(cidr)
        if name_of_block(spelling) != name:
            return None
    if block.cidr != spelling or b"\n" in octets:
        return None
    bits = cidr.family.max_length - cidr.prefix[0]
    allocations = block.allocations
    size = len(allocations)
    if bits > MAX_BLOCK_BITS or size != 1 << bits:
        return None
    if block.unallocated and not _are_free(block.unallocated, allocations):
        return None
    affinity = block.affinity or None
    if affinity is not None and affinity.partition(":")[0] not in AFFINITY_TYPES:
        return None
    if block.sequenceNumber > MAX_SEQUENCE:
        return None
    for key, number in (block.sequenceNumberForAllocation or {}).items():
        ordinal = decimal(key)
        if number > MAX_SEQUENCE or ordinal is None or ordinal >= size:
            return None
    return UnreadBlock(name, cidr, affinity, octets, deleted=bool(block.deleted))


def _are_free(unallocated: list[int], allocations: list[int | None]) -> bool:
    """Whether these are ordinals of free addresses, each once."""
    if len(set(unallocated)) != len(unallocated):
        return False
    try:  # the first twice, for what is got by one index is no tuple
        found: tuple[int | None, ...] = itemgetter(unallocated[0], *unallocated)(allocations)
    except IndexError:
        return False
    return found.count(None) == len(found)


def plain_block_text(text: bytes) -> UnreadBlock | None:
    """The block whose `manifest_text` this is. None: the reader must look."""
    try:
        manifest = _MANIFEST.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return plain_block(bytes(manifest.spec), manifest.metadata.name)
