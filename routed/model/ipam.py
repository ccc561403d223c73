"""Addresses: pools, reservations, and what the allocator keeps about its blocks.

Invariants: an IPAMBlock has one entry in `allocations` for each of its addresses; sequence numbers are whole 64-bit
numbers. The allocator's own objects are read as its JSON stands in etcd, under `spec`; `paths` moves what the key
says and the Kubernetes datastore's spellings. How addresses are given out is not decided here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import ClassVar, cast

from routed.errors import ConfigError
from routed.model.fields import Fields, as_choice, as_cidr, as_text, decimal, field_path, shown
from routed.model.head import Head, Kind, kind_shape
from routed.model.resources import (
    AffinityState,
    AffinityType,
    AllowedUse,
    AssignmentMode,
    BlockAffinity,
    Cidr,
    EncapMode,
    IPPool,
    JsonValue,
    Resource,
)
from routed.model.selector import All
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix, parse_prefix, prefix_address
from routed.values import dataclass

_LINK_LOCAL = (parse_prefix("169.254.0.0/16"), parse_prefix("fe80::/10"))
MAX_SEQUENCE = (1 << 64) - 1
#: The largest block that anybody allocates from; a value with more entries is no block.
MAX_BLOCK_BITS = 16
MAX_BLOCK_SIZE = 1 << MAX_BLOCK_BITS
#: Seconds, as Calico's API server has it.
MAX_COOLDOWN = 1200
AFFINITY_TYPES = frozenset(map(str, AffinityType))
_ORDINAL = frozenset((int,))
_ORDINAL_OR_FREE = frozenset((int, type(None)))
_FREE = frozenset((None,))


_TO_DASHES = str.maketrans(".:/", "---")


def name_of_block(cidr: str) -> str:
    """The name of a block: its prefix with "-" for ".", ":" and "/", as the Kubernetes datastore makes it."""
    return cidr.translate(_TO_DASHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class IPReservation(Resource):
    """Addresses the allocator must not give out by itself."""

    kind: ClassVar[str] = "IPReservation"

    reserved_cidrs: tuple[Cidr, ...] = ()


@dataclass(frozen=True, slots=True)
class AllocationAttribute:
    """What is known of the owner of one or more addresses of a block."""

    handle_id: str | None = None
    secondary: Mapping[str, str] = field(default_factory=dict, hash=False)
    """`node`, `namespace`, `pod`, `type`, `timestamp`, ..."""
    alternate_owner: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The other owner during a live migration."""
    released_at: str = ""
    """When the address was given back; while this is set it is cooling down and belongs to nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAMBlock(Resource):
    """A block of addresses and who has which of them."""

    kind: ClassVar[str] = "IPAMBlock"

    cidr: Cidr
    affinity: str | None = None
    """`host:<node>`, `virtual:<name>`, or None: nobody's."""
    affinity_claim_time: str = ""
    allocations: tuple[int | None, ...] = ()
    """Of each address the index of its attribute, or None where it is free."""
    unallocated: tuple[int, ...] = ()
    """Free ordinals, the one to give out next first."""
    attributes: tuple[AllocationAttribute, ...] = ()
    sequence_number: int = 0
    sequence_number_for_allocation: Mapping[int, int] = field(default_factory=dict, hash=False)
    deleted: bool = False

    @property
    def whole(self) -> IPAMBlock:
        """The block with all its parts read, for who makes another one of them."""
        return self

    @property
    def host(self) -> str | None:
        """The node that holds the block."""
        kind, _, name = (self.affinity or "").partition(":")
        return name if kind == AffinityType.HOST else None

    def nodes_of_addresses(self) -> dict[int, str]:
        """The node that has an address, by ordinal, where the block says it."""
        nodes = [None if each.released_at else each.secondary.get("node") for each in self.attributes]
        return pick_nodes(self.allocations, nodes)

    def ordinal_of(self, address: bytes) -> int | None:
        """The ordinal of an address; None where it is not in the block."""
        family = self.cidr.family
        if len(address) != family.address_length:
            return None
        ordinal = int.from_bytes(address) - int.from_bytes(prefix_address(*self.cidr))
        return ordinal if 0 <= ordinal < 1 << family.max_length - self.cidr.prefix[0] else None

    def owner_of(self, address: bytes) -> AllocationAttribute | None:
        """Who has an address, as `owner` says it; None also where it is not in the block."""
        ordinal = self.ordinal_of(address)
        return None if ordinal is None else self.owner(ordinal)

    def owner(self, ordinal: int) -> AllocationAttribute | None:
        """Who has an address: its attribute, an empty one where the block lost it, or None where it is free."""
        index = self.allocations[ordinal]
        if index is None:
            return None
        attribute = self.attributes[index] if index < len(self.attributes) else AllocationAttribute()
        return None if attribute.released_at else attribute


#: The lengths of the prefixes blocks may have, the longest first.
BLOCK_LENGTHS = {
    family: tuple(range(family.max_length, family.max_length - MAX_BLOCK_BITS - 1, -1)) for family in Family
}


def blocks_with(
    address: bytes, block_at: Callable[[Cidr], IPAMBlock | None], lengths: Iterable[int] | None = None
) -> Iterator[IPAMBlock]:
    """The blocks that have an address, the smallest first: its route is the one that packets to the address take.

    There are several only where a pool had blocks of another size before. `block_at`: the block with exactly this prefix;
    `lengths`: those of all blocks there are, the longest first, where that is known.
    """
    family = Family.of_address(address)
    for length in BLOCK_LENGTHS[family] if lengths is None else lengths:
        block = block_at(Cidr(family, make_prefix(address, length)))
        if block is not None:
            yield block


def pick_nodes(allocations: Sequence[int | None], nodes: Sequence[str | None]) -> dict[int, str]:
    """The node of each address that has one; `nodes`: that of each attribute."""
    return {
        ordinal: node
        for ordinal, index in enumerate(allocations)
        if index is not None and index < len(nodes) and (node := nodes[index])
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAMHandle(Resource):
    """How many addresses of which blocks were taken under one handle (a sandbox, a tunnel)."""

    kind: ClassVar[str] = "IPAMHandle"

    blocks: Mapping[Cidr, int] = field(default_factory=dict, hash=False)
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAMConfig(Resource):
    """The allocator's settings. A boolean that is left out of an existing one is false; `DEFAULT_IPAM_CONFIG` is what
    holds where there is none."""

    kind: ClassVar[str] = "IPAMConfig"

    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    max_blocks_per_host: int = 0
    """0: no limit of the cluster's."""
    ip_cooldown: float = 0.0
    """Seconds an address that was given back is not given out again."""


DEFAULT_IPAM_CONFIG = IPAMConfig(name="default", auto_allocate_blocks=True)


def _parse_ip_pool(head: Head) -> IPPool:
    spec = head.spec
    cidr = spec.required_cidr("cidr")
    ipv4 = cidr.family is Family.IPV4_UNICAST
    for family, reserved in _LINK_LOCAL:
        if family is cidr.family and (covers(reserved, cidr.prefix) or covers(cidr.prefix, reserved)):
            raise spec.error("cidr", f"must not overlap the link-local range, which {cidr} does")
    ipip = spec.choice("ipipMode", EncapMode) or EncapMode.NEVER
    vxlan = spec.choice("vxlanMode", EncapMode) or EncapMode.NEVER
    if ipip is not EncapMode.NEVER and not ipv4:
        raise spec.error("ipipMode", "must be Never for an IPv6 pool")
    if ipip is not EncapMode.NEVER and vxlan is not EncapMode.NEVER:
        raise spec.error("vxlanMode", f"must be Never where ipipMode is {ipip}")
    disabled = spec.boolean("disabled") or False
    least, most = (20, 32) if ipv4 else (116, 128)
    block_size = (spec.integer("blockSize", least, most) if spec.values.get("blockSize") != 0 else None) or (
        26 if ipv4 else 122
    )
    if not disabled and cidr.prefix[0] > block_size:
        raise spec.error("cidr", f"must hold at least one block of /{block_size}, which {cidr} does not")
    uses = tuple(as_choice(value, path, AllowedUse) for path, value in spec.array("allowedUses"))
    if AllowedUse.LOAD_BALANCER in uses and len(set(uses)) > 1:
        raise spec.error("allowedUses", "must not combine LoadBalancer with other uses")
    return IPPool(
        **head.common,
        cidr=cidr,
        ipip_mode=ipip,
        vxlan_mode=vxlan,
        nat_outgoing=spec.boolean("natOutgoing") or False,
        disabled=disabled,
        disable_bgp_export=spec.boolean("disableBGPExport") or False,
        block_size=block_size,
        node_selector=spec.selector("nodeSelector") or All(),
        namespace_selector=spec.selector("namespaceSelector"),
        allowed_uses=uses or (AllowedUse.WORKLOAD, AllowedUse.TUNNEL),
        assignment_mode=spec.choice("assignmentMode", AssignmentMode) or AssignmentMode.AUTOMATIC,
    )


def _parse_block_affinity(head: Head) -> BlockAffinity:
    spec = head.spec
    return BlockAffinity(
        **head.common,
        node=spec.required_text("node"),
        cidr=spec.required_cidr("cidr"),
        state=spec.choice("state", AffinityState) or AffinityState.CONFIRMED,
        type=spec.choice("type", AffinityType) or AffinityType.HOST,
        deleted=_deleted(spec),
    )


def _deleted(spec: Fields) -> bool:
    # The Kubernetes datastore writes this boolean as text.
    deleted = spec.values.get("deleted")
    return deleted == "true" if deleted in ("true", "false", "") else spec.boolean("deleted") or False


def _parse_ip_reservation(head: Head) -> IPReservation:
    spec = head.spec
    return IPReservation(
        **head.common,
        reserved_cidrs=tuple(as_cidr(as_text(value, path), path) for path, value in spec.array("reservedCIDRs")),
    )


def _parse_block(head: Head) -> IPAMBlock:
    spec = head.spec
    cidr = spec.required_cidr("cidr")
    size = 1 << min(cidr.family.max_length - cidr.prefix[0], 32)
    if size > MAX_BLOCK_SIZE:
        raise spec.error("cidr", f"is no block of addresses: {cidr} holds {size} of them")
    allocations = _parse_allocations(spec)
    if len(allocations) != size:
        raise spec.error("allocations", f"must have {size} entries, one an address of {cidr}, not {len(allocations)}")
    affinity = spec.text("affinity") or None
    if affinity is None and (legacy := spec.text("hostAffinity")):
        affinity = f"{AffinityType.HOST}:{legacy}"
    if affinity is not None and affinity.partition(":")[0] not in AFFINITY_TYPES:
        raise spec.error("affinity", f'must be "host:" or "virtual:" and a name, not {shown(affinity)}')
    return IPAMBlock(
        **head.common,
        cidr=cidr,
        affinity=affinity,
        affinity_claim_time=spec.text("affinity_claim_time") or spec.text("affinityClaimTime"),
        allocations=allocations,
        unallocated=_parse_unallocated(spec, allocations),
        attributes=tuple(map(_parse_attribute, spec.objects("attributes"))),
        sequence_number=spec.integer("sequenceNumber", 0, MAX_SEQUENCE) or 0,
        sequence_number_for_allocation=_parse_sequence_numbers(spec, size),
        deleted=_deleted(spec),
    )


# A cluster has tens of thousands of blocks, with an entry for each address: what is right is found to be so a list at a
# time, and only what is not is looked at one by one, for the path in the error.


def _parse_allocations(spec: Fields) -> tuple[int | None, ...]:
    values = spec.elements("allocations")
    if _ORDINAL_OR_FREE.issuperset(map(type, values)):
        indices = cast("set[int]", {*values, 0} - _FREE)
        if min(indices) >= 0 and max(indices) < MAX_BLOCK_SIZE:
            return tuple(cast("list[int | None]", values))
    return tuple(_ordinal(each, path, MAX_BLOCK_SIZE) for path, each in spec.array("allocations"))


def _parse_unallocated(spec: Fields, allocations: tuple[int | None, ...]) -> tuple[int, ...]:
    values, size = spec.elements("unallocated"), len(allocations)
    if values and _ORDINAL.issuperset(map(type, values)):
        ordinals = cast("set[int]", set(values))
        free = {ordinal for ordinal, index in enumerate(allocations) if index is None}
        if len(ordinals) == len(values) and ordinals <= free:
            return tuple(cast("list[int]", values))
    unallocated: dict[int, None] = {}
    for path, each in spec.array("unallocated"):
        ordinal = _ordinal(each, path, size)
        if ordinal is None or ordinal in unallocated or allocations[ordinal] is not None:
            raise ConfigError(path, f"must name a free address, each once, not {shown(each)}")
        unallocated[ordinal] = None
    return tuple(unallocated)


def _ordinal(value: JsonValue, path: str, limit: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise ConfigError(path, f"must be null or a whole number from 0 to {limit - 1}, not {shown(value)}")
    return value


def _parse_attribute(entry: Fields) -> AllocationAttribute:
    return AllocationAttribute(
        handle_id=entry.text("handle_id") or None,
        secondary=entry.text_map("secondary"),
        alternate_owner=entry.text_map("alternateOwnerAttrs"),
        released_at=entry.text("releasedAt"),
    )


def _parse_sequence_numbers(spec: Fields, size: int) -> Mapping[int, int]:
    value = spec.object("sequenceNumberForAllocation")
    found: dict[int, int] = {}
    if value is None:
        return found
    for key, number in value.values.items():
        number = number if type(number) is int and 0 <= number <= MAX_SEQUENCE else value.integer(key, 0, MAX_SEQUENCE)
        ordinal = decimal(key)
        if ordinal is None or ordinal >= size or number is None:
            path = field_path(spec.at("sequenceNumberForAllocation"), key)
            raise ConfigError(path, f"must be the ordinal of an address, 0 to {size - 1}, with a number")
        found[ordinal] = number
    return found


def _parse_handle(head: Head) -> IPAMHandle:
    spec = head.spec
    named = spec.text("handleID")
    if named and named != head.name:
        raise spec.error("handleID", f"must be the resource's name {shown(head.name)}, not {shown(named)}")
    blocks = spec.object("block")
    found: dict[Cidr, int] = {}
    for key in blocks.values if blocks is not None else ():
        if blocks is not None:
            found[as_cidr(key, blocks.at(key))] = blocks.integer(key, 0, MAX_BLOCK_SIZE) or 0
    return IPAMHandle(**head.common, blocks=found, deleted=_deleted(spec))


class AddressPersistence(enum.StrEnum):
    """Whether KubeVirt's virtual machines keep their addresses."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


def _parse_config(head: Head) -> IPAMConfig:
    spec = head.spec
    if head.name != "default":
        raise head.top.error("metadata.name", f"must be default: there is one for the cluster, not {shown(head.name)}")
    strict = spec.boolean("strictAffinity") or False
    blocks = spec.integer("maxBlocksPerHost", 0, 0x7FFFFFFF) or 0
    spec.choice("kubeVirtVMAddressPersistence", AddressPersistence)  # of virtual machines, which are none of ours
    if blocks and not strict:
        raise spec.error("maxBlocksPerHost", "may only be set where strictAffinity is true")
    return IPAMConfig(
        **head.common,
        strict_affinity=strict,
        auto_allocate_blocks=spec.boolean("autoAllocateBlocks") or False,
        max_blocks_per_host=blocks,
        ip_cooldown=float(spec.integer("ipCooldownSeconds", 0, MAX_COOLDOWN) or 0),
    )


KINDS = (
    Kind(
        name=IPPool.kind,
        plural="ippools",
        short=("ipp",),
        read=_parse_ip_pool,
        shape=kind_shape("""
            spec {
                allowedUses assignmentMode blockSize cidr disableBGPExport disabled ipipMode namespaceSelector
                natOutgoing nodeSelector vxlanMode
            }
            status
        """),
    ),
    Kind(
        name=IPReservation.kind,
        plural="ipreservations",
        short=("ipres",),
        read=_parse_ip_reservation,
        shape=kind_shape("spec { reservedCIDRs } status"),
    ),
    Kind(
        name=BlockAffinity.kind,
        plural="blockaffinities",
        short=("blockaffinity",),
        free_name=True,
        read=_parse_block_affinity,
        shape=kind_shape("spec { cidr deleted node state type } status"),
    ),
    Kind(
        name=IPAMBlock.kind,
        plural="ipamblocks",
        free_name=True,
        read=_parse_block,
        shape=kind_shape("""
            spec {
                affinity affinityClaimTime affinity_claim_time allocations
                attributes { alternateOwnerAttrs handle_id releasedAt secondary }
                cidr deleted hostAffinity sequenceNumber sequenceNumberForAllocation unallocated
            }
            status
        """),
    ),
    Kind(
        name=IPAMHandle.kind,
        plural="ipamhandles",
        free_name=True,
        read=_parse_handle,
        shape=kind_shape("spec { block deleted handleID } status"),
    ),
    Kind(
        name=IPAMConfig.kind,
        plural="ipamconfigs",
        short=("ipamconfiguration", "ipamconfigurations", "ipamconfig"),
        read=_parse_config,
        shape=kind_shape("""
            spec { autoAllocateBlocks ipCooldownSeconds kubeVirtVMAddressPersistence maxBlocksPerHost strictAffinity }
            status
        """),
    ),
)
