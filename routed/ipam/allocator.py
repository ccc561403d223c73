"""Addresses for whoever asks, and back: Calico's protocol on blocks, affinities and handles, as reads and writes.

Every procedure is a generator. It yields what it wants of the store (`Get`, `List`, `Write`) and is sent the answer; a
write that lost a race is sent `CONFLICT`, and the procedure looks again. So the whole protocol runs in a test against a
store in memory, with any other allocator at work between any two steps, and stopped at any step.

The order of writes makes every crash safe, at most leaving something that is found and put right later:
- a block is claimed by an affinity `pending`, then the block, then the affinity `confirmed`; a pending affinity is nobody's
  promise, and whoever finds one finishes or removes it. Between the two last it is looked whether another node, for which
  the pool has another block size, was faster with a block that overlaps: the younger one is given up, before it gives out
  anything;
- a handle counts an address before a block gives it out, so no address is without its handle; a handle that counts too
  many is put right when its addresses are released;
- a block is given up by an affinity `pendingDeletion`, then the block, then the affinity.

Long for one idea: the order of writes is one protocol, and each procedure relies on what the others may leave behind.

Not here: which clock, store or node (the caller's), and what a pod's address is good for.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import field
from typing import TypeAlias, TypeVar

from routed.ipam.blocks import (
    Owner,
    Released,
    address_at,
    after,
    allocations,
    assign,
    assign_address,
    collect,
    free_count,
    is_empty,
    is_exhausted,
    new_block,
    release,
    release_handle,
    touched,
    without_affinity,
)
from routed.ipam.holders import Holder
from routed.model.ipam import DEFAULT_IPAM_CONFIG, AllocationAttribute, IPAMBlock, IPAMConfig, IPAMHandle
from routed.model.paths import block_name
from routed.model.resources import (
    AffinityState,
    AllowedUse,
    AssignmentMode,
    BlockAffinity,
    Cidr,
    IPPool,
    JsonObject,
    Resource,
    ResourceKey,
)
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix, prefix_address
from routed.values import dataclass

#: Times a write that lost a race is tried again.
RETRIES = 100
#: Blocks a node takes in one go where nothing else limits it.
DEFAULT_BLOCK_LIMIT = 20
#: Pools an error names that nothing is drawn from: it is one line of a runtime's log.
SAID = 5
#: Seconds an empty block of another node must have been claimed before it may be taken from it.
RECLAIM_AFTER = 60.0

_API_VERSION = "projectcalico.org/v3"
_MASK32 = 0xFFFFFFFF

R = TypeVar("R")


# ---- what is asked of the store


@dataclass(frozen=True, slots=True)
class Get:
    """Answered by a `Found`, or None."""

    key: ResourceKey


@dataclass(frozen=True, slots=True)
class List:
    """All resources of a kind; answered by a list of `Found`."""

    kind: str


@dataclass(frozen=True, slots=True)
class Write:
    """Make a resource this, read or to be read, or (None) remove it, if it still has this revision (None: if there is
    none).

    Answered by the new revision, or by CONFLICT.
    """

    key: ResourceKey
    value: JsonObject | Resource | None
    revision: str | None


@dataclass(frozen=True, slots=True)
class HasElder:
    """Whether the store itself has, at this moment, a block with addresses of this one that was made before it.

    Answered by a boolean.
    """

    block: Cidr


@dataclass(frozen=True, slots=True)
class Found:
    value: Resource
    revision: str
    """The store's own; opaque."""


class Lost(enum.Enum):
    """The answer to a write that came too late."""

    CONFLICT = "conflict"


CONFLICT = Lost.CONFLICT

Request: TypeAlias = Get | List | Write | HasElder
Answer: TypeAlias = "Found | list[Found] | str | Lost | bool | None"
Procedure: TypeAlias = Generator[Request, Answer, R]


# ---- what a request says


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the allocator must know of the cluster; read by the caller."""

    pools: tuple[IPPool, ...]
    config: IPAMConfig = DEFAULT_IPAM_CONFIG
    reserved: tuple[Cidr, ...] = ()
    """Of IPReservations."""
    held: Callable[[bytes], Holder | None] = field(default=lambda _: None, compare=False)
    """Who has an address, whatever the blocks say: nobody else is given it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What somebody wants."""

    node: str
    node_labels: Mapping[str, str]
    owner: Owner
    family: Family
    count: int = 1
    pools: tuple[str, ...] = ()
    """Names or CIDRs of pools, in the order they are tried; empty: those whose selectors fit."""
    namespace: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    use: AllowedUse = AllowedUse.WORKLOAD
    maximum_blocks: int = 0
    """Of the node, where the cluster's configuration says nothing; 0: DEFAULT_BLOCK_LIMIT."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What the caller's clock says, in the forms the JSON needs."""

    text: str
    """RFC 3339, UTC."""
    nanoseconds: int
    is_older: Callable[[str, float], bool]
    """Whether an RFC 3339 time is more than so many seconds ago."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a demand."""

    addresses: tuple[bytes, ...]
    pools: tuple[IPPool, ...]
    """The pool of each address."""
    reason: str = ""
    """Why there are fewer than wanted, for people."""


# ---- pools


def usable_pools(cluster: Cluster, demand: Demand) -> tuple[list[IPPool], str]:
    """The pools a demand may draw from, or none and why."""
    enabled = [
        pool
        for pool in sorted(cluster.pools, key=lambda pool: pool.name)
        if not pool.disabled and pool.cidr.family is demand.family and demand.use in pool.allowed_uses
    ]
    if demand.pools:
        asked: list[IPPool] = []
        for name in demand.pools:
            found = next((pool for pool in enabled if name in (pool.name, str(pool.cidr))), None)
            if found is None:
                there = next((pool for pool in cluster.pools if name in (pool.name, str(pool.cidr))), None)
                why = _why_not(there, demand) if there is not None else "not there"
                return [], f"the pool asked for, {name}, is {why}"
            if found not in asked:
                asked.append(found)
        return asked, ""
    chosen = [
        pool
        for pool in enabled
        if pool.assignment_mode is AssignmentMode.AUTOMATIC
        and pool.node_selector.matches(demand.node_labels)
        and (pool.namespace_selector is None or pool.namespace_selector.matches(demand.namespace_labels))
    ]
    if chosen:
        return chosen, ""
    return [], "there is no enabled pool of this family for it" + _passed_over(cluster, demand)


def _why_not(pool: IPPool, demand: Demand) -> str:
    """Why a demand draws nothing from a pool that it does not ask for, or empty; for people, after `it is`."""
    if pool.cidr.family is not demand.family:
        return "of the other family"
    if pool.disabled:
        return "disabled"
    if demand.use not in pool.allowed_uses:
        return "for other uses (allowedUses)"
    if pool.assignment_mode is not AssignmentMode.AUTOMATIC:
        return "only for who asks for it (assignmentMode)"
    if not pool.node_selector.matches(demand.node_labels):
        return "for other nodes (nodeSelector)"
    if pool.namespace_selector is not None and not pool.namespace_selector.matches(demand.namespace_labels):
        return "for other namespaces (namespaceSelector)"
    return ""


def _passed_over(cluster: Cluster, demand: Demand) -> str:
    """The pools of its family that a demand draws nothing from, for people; empty where it asked for some by name."""
    if demand.pools:
        return ""
    others = [
        f"{pool.name} is {why}"
        for pool in sorted(cluster.pools, key=lambda pool: pool.name)
        if pool.cidr.family is demand.family and (why := _why_not(pool, demand))
    ]
    more = f" and {len(others) - SAID} more" if len(others) > SAID else ""
    return f"; {', '.join(others[:SAID])}{more}" if others else ""


def pool_of(pools: Iterable[IPPool], family: Family, address: bytes) -> IPPool | None:
    """The pool an address is in."""
    host = make_prefix(address, family.max_length)
    return next((pool for pool in pools if pool.cidr.family is family and covers(pool.cidr.prefix, host)), None)


def is_for_node(pools: Iterable[IPPool], block: Cidr, labels: Mapping[str, str]) -> bool:
    """Whether a block is in a pool that selects a node with these labels: else it is given up once nobody uses it."""
    return any(
        pool.cidr.family is block.family
        and covers(pool.cidr.prefix, block.prefix)
        and pool.node_selector.matches(labels)
        for pool in pools
    )


def block_at(pool: IPPool, number: int) -> Cidr:
    """The n-th block of a pool."""
    family = pool.cidr.family
    first = int.from_bytes(prefix_address(family, pool.cidr.prefix), "big")
    address = first + (number << (family.max_length - pool.block_size))
    return Cidr(family, make_prefix(address.to_bytes(family.address_length, "big"), pool.block_size))


def block_count(pool: IPPool) -> int:
    return 1 << (pool.block_size - pool.cidr.prefix[0])


def block_holding(pool: IPPool, address: bytes) -> Cidr:
    """The block of a pool that an address of it is in."""
    return Cidr(pool.cidr.family, make_prefix(address, pool.block_size))


def search_order(pool: IPPool, node: str, reserved: Iterable[Cidr] = ()) -> Iterator[Cidr]:
    """A pool's blocks as a node looks for a free one: from a place that follows from its name, so that nodes rarely meet.

    What is reserved as a whole is passed over in one step. There are 2^64 blocks and more in a pool of IPv6: not to be
    walked for those that exist, see `in_search_order`.
    """
    family, count, start = pool.cidr.family, block_count(pool), _search_start(pool, node)
    first = int.from_bytes(prefix_address(family, pool.cidr.prefix), "big")
    inside = [each for each in reserved if each.family is family]
    for number, end in ((start, count), (0, start)):
        while number < end:
            block = block_at(pool, number)
            whole = next((each for each in inside if covers(each.prefix, block.prefix)), None)
            if whole is None:
                yield block
                number += 1
                continue
            beyond = int.from_bytes(prefix_address(family, whole.prefix), "big") + (
                1 << family.max_length - whole.prefix[0]
            )
            number = beyond - first >> family.max_length - pool.block_size


def in_search_order(pool: IPPool, node: str, blocks: Iterable[Cidr]) -> list[Cidr]:
    """Those of `blocks` that are a pool's, in the order `search_order` comes to them."""
    family, count, start = pool.cidr.family, block_count(pool), _search_start(pool, node)
    first = int.from_bytes(prefix_address(family, pool.cidr.prefix), "big")
    shift = family.max_length - pool.block_size

    def place(block: Cidr) -> int:
        number = int.from_bytes(prefix_address(family, block.prefix), "big") - first >> shift
        return (number - start) % count

    return sorted(
        (each for each in blocks if each.family is family and covers(pool.cidr.prefix, each.prefix)), key=place
    )


def _search_start(pool: IPPool, node: str) -> int:
    return _fnv32(node.encode()) % block_count(pool)


def _fnv32(data: bytes) -> int:
    """FNV-1a, 32 bits."""
    value = 0x811C9DC5
    for octet in data:
        value = (value ^ octet) * 0x01000193 & _MASK32
    return value


# ---- keys and manifests


def block_key(cidr: Cidr) -> ResourceKey:
    return ResourceKey(IPAMBlock.kind, block_name(cidr))


def handle_key(handle: str) -> ResourceKey:
    return ResourceKey(IPAMHandle.kind, handle)


def affinity_name(node: str, cidr: Cidr) -> str:
    return f"{node}-{block_name(cidr)}"


def affinity_key(node: str, cidr: Cidr) -> ResourceKey:
    return ResourceKey(BlockAffinity.kind, affinity_name(node, cidr))


def _affinity(node: str, cidr: Cidr, state: AffinityState) -> JsonObject:
    return {
        "apiVersion": _API_VERSION,
        "kind": BlockAffinity.kind,
        "metadata": {"name": affinity_name(node, cidr)},
        "spec": {"node": node, "cidr": str(cidr), "state": state.value, "type": "host", "deleted": False},
    }


# ---- assignment


def assign_addresses(cluster: Cluster, demand: Demand, clock: Clock) -> Procedure[Outcome]:
    """Addresses for a demand: from the node's own blocks, from new ones, and where it is allowed from others' blocks."""
    pools, reason = usable_pools(cluster, demand)
    given: list[bytes] = []
    reserved = _kept_back(cluster)
    own = yield from _own_blocks(demand.node, demand.family)
    usable = [cidr for pool in pools for cidr in own if covers(pool.cidr.prefix, cidr.prefix)]
    for cidr in own:
        if cidr not in usable and not is_for_node(cluster.pools, cidr, demand.node_labels):
            yield from release_affinity(demand.node, cidr, only_empty=True)
    if not pools:
        return Outcome((), (), reason)
    for cidr in usable:
        if len(given) >= demand.count:
            break
        given += yield from _from_block(cluster, cidr, demand, demand.count - len(given), reserved, clock, own=True)
    limit = cluster.config.max_blocks_per_host or demand.maximum_blocks or DEFAULT_BLOCK_LIMIT
    held, known = len(usable), {*own}
    reason = ""
    while len(given) < demand.count:
        if not cluster.config.auto_allocate_blocks:
            reason = "the cluster's IPAM configuration forbids new blocks (autoAllocateBlocks)"
            break
        if held >= limit:
            names = ", ".join(pool.name for pool in pools)
            reason = f"node {demand.node} has {held} blocks of {names}, the limit (maxBlocksPerHost)"
            break
        claimed = yield from _claim_next(cluster, pools, demand.node, known, clock)
        if claimed is None:
            reason = f"no block is free in {', '.join(pool.name for pool in pools)}"
            break
        held += 1
        usable.append(claimed)
        given += yield from _from_block(cluster, claimed, demand, demand.count - len(given), reserved, clock, own=True)
    if len(given) < demand.count and not cluster.config.strict_affinity:
        given += yield from _borrow(cluster, pools, demand, demand.count - len(given), reserved, clock)
    if len(given) >= demand.count:
        reason = ""
    else:
        if cluster.config.strict_affinity:
            reason += "; addresses of other nodes' blocks are not given out (strictAffinity)"
        reason += yield from _not_given(cluster, usable, reserved)
        reason += _passed_over(cluster, demand)
    return Outcome(tuple(given), tuple(_pools_of(pools, demand.family, given)), reason)


def _has_gone(holder: Holder) -> Procedure[bool]:
    """Whether the datastore has a holder no more: we may hear of it in a moment."""
    return holder.key is not None and not isinstance((yield Get(holder.key)), Found)


def assign_specific(cluster: Cluster, demand: Demand, address: bytes, clock: Clock) -> Procedure[Outcome]:
    """One address that was asked for by name."""
    pool = pool_of((pool for pool in cluster.pools if not pool.disabled), demand.family, address)
    if pool is None:
        return Outcome((), (), "it is in no enabled pool")
    if demand.use not in pool.allowed_uses:
        return Outcome((), (), f"the pool {pool.name} is not for this use")
    holder = cluster.held(address)
    if holder is not None and not (yield from _has_gone(holder)):
        return Outcome((), (), f"{holder.what} has it")
    cidr = yield from block_of(pool, address)
    for _ in range(RETRIES):
        found = yield Get(block_key(cidr))
        if not isinstance(found, Found):
            if holder is not None:  # who is gone with the block may have been lost with it, and live on
                return Outcome((), (), f"{holder.what} has it")
            if (yield from _is_overlapped(cidr)):
                return Outcome((), (), f"blocks of another size are in its block {cidr}")
            claimed = yield from claim(cidr, demand.node, clock)
            if not claimed and cluster.config.strict_affinity:
                return Outcome((), (), f"the block {cidr} belongs to another node (strictAffinity)")
            continue
        block = _block(found)
        if cluster.config.strict_affinity and block.host != demand.node:
            return Outcome((), (), f"the block {cidr} belongs to {block.host or 'nobody'} (strictAffinity)")
        manifest = assign_address(_collected(cluster, found, clock), address, demand.owner)
        if manifest is None:
            return Outcome((), (), "somebody has it, or it is cooling down")
        yield from _count_handle(demand.owner.handle, cidr, +1)
        answer = yield Write(block_key(cidr), manifest, found.revision)
        if answer is not CONFLICT:
            return Outcome((address,), (pool,))
        yield from _count_handle(demand.owner.handle, cidr, -1)
    return Outcome((), (), f"the block {cidr} is changed too often by others")


def block_of(pool: IPPool, address: bytes) -> Procedure[Cidr]:
    """The block that an address of a pool is in: of the pool's size, unless there is one of another, as pools had before."""
    cidr = block_holding(pool, address)
    if isinstance((yield Get(block_key(cidr))), Found):
        return cidr
    host = make_prefix(address, cidr.family.max_length)
    there = yield from _block_cidrs()
    return next((each for each in there if each.family is cidr.family and covers(each.prefix, host)), cidr)


def owner_of(cluster: Cluster, address: bytes) -> Procedure[AllocationAttribute | None]:
    """Who has been given an address, or None: nobody, or it is in no pool."""
    pool = pool_of(cluster.pools, Family.of_address(address), address)
    if pool is None:
        return None
    found = yield Get(block_key((yield from block_of(pool, address))))
    if not isinstance(found, Found):
        return None
    return _block(found).owner_of(address)


def _block_cidrs() -> Procedure[list[Cidr]]:
    """Of all blocks there are."""
    answer = yield List(IPAMBlock.kind)
    found = (each.value for each in (answer if isinstance(answer, list) else ()))
    return [block.cidr for block in found if isinstance(block, IPAMBlock)]


def _is_overlapped(cidr: Cidr) -> Procedure[bool]:
    return _overlapping((yield from _block_cidrs()), cidr.family, cidr.prefix[0])(cidr)


def _overlapping(there: Iterable[Cidr], family: Family, size: int) -> Callable[[Cidr], bool]:
    """Whether a block of this size has addresses in common with one of another size, which a pool had before: two nodes
    would give out the same addresses, and all packets to them would go to the smaller block's."""
    others = [each for each in there if each.family is family and each.prefix[0] != size]
    larger = {each.prefix for each in others if each.prefix[0] < size}
    lengths = {prefix[0] for prefix in larger}
    around = {make_prefix(prefix_address(family, each.prefix), size) for each in others if each.prefix[0] > size}

    def overlaps(cidr: Cidr) -> bool:
        if cidr.prefix in around:
            return True
        address = prefix_address(family, cidr.prefix) if lengths else b""
        return any(make_prefix(address, length) in larger for length in lengths)

    return overlaps


def _pools_of(pools: list[IPPool], family: Family, addresses: Iterable[bytes]) -> Iterator[IPPool]:
    for address in addresses:
        pool = pool_of(pools, family, address)
        if pool is not None:
            yield pool


def _kept_back(cluster: Cluster) -> Callable[[bytes], bool]:
    """Which addresses nobody is given of himself: those reserved, and those that somebody has."""
    families = {cidr.family for cidr in cluster.reserved}

    def is_kept_back(address: bytes) -> bool:
        if cluster.held(address) is not None:
            return True
        family = Family.of_address(address)
        host = make_prefix(address, family.max_length) if family in families else b""
        return any(cidr.family is family and covers(cidr.prefix, host) for cidr in cluster.reserved)

    return is_kept_back


def _not_given(cluster: Cluster, own: Iterable[Cidr], is_kept_back: Callable[[bytes], bool]) -> Procedure[str]:
    """What is in a node's blocks that nobody has and nobody is given now, for people; empty where nothing is."""
    cooling: list[str] = []
    kept = 0
    for cidr in own:
        found = yield Get(block_key(cidr))
        if isinstance(found, Found):
            block = _block(found)
            released = [each.released_at for each in block.attributes]
            indices = (index for index in block.allocations if index is not None and index < len(released))
            cooling += filter(None, (released[index] for index in indices))
            kept += sum(is_kept_back(address_at(block, each)) for each in block.unallocated)
    said = ""
    if cooling:
        said += (
            f"; {len(cooling)} of the node's addresses cool down for {cluster.config.ip_cooldown:g} s (ipCooldownSeconds), "
            f"the first since {min(cooling)}"
        )
    if kept:
        said += f"; {kept} are reserved or in use elsewhere (IPReservation, or `routedctl ipam check`)"
    return said


def _is_lived_in(cluster: Cluster, cidr: Cidr, node: str) -> bool:
    """Whether somebody on another node has an address of a block."""
    return any(holder.node != node for holder in map(cluster.held, _addresses(cidr)) if holder is not None)


def _addresses(cidr: Cidr) -> Iterator[bytes]:
    """All of a block, which has 4,096 at most."""
    family = cidr.family
    first = int.from_bytes(prefix_address(family, cidr.prefix), "big")
    for number in range(1 << family.max_length - cidr.prefix[0]):
        yield (first + number).to_bytes(family.address_length, "big")


def _own_blocks(node: str, family: Family) -> Procedure[list[Cidr]]:
    """The blocks a node holds, those it may use first: unfinished claims are finished when they are used."""
    answer = yield List(BlockAffinity.kind)
    held = []
    for found in answer if isinstance(answer, list) else ():
        affinity = found.value
        if (
            isinstance(affinity, BlockAffinity)
            and affinity.node == node
            and affinity.cidr.family is family
            and affinity.state is not AffinityState.PENDING_DELETION
        ):
            held.append(affinity)
    held.sort(key=lambda each: (not each.is_confirmed, each.cidr))
    return [each.cidr for each in held]


def _from_block(
    cluster: Cluster,
    cidr: Cidr,
    demand: Demand,
    count: int,
    is_kept_back: Callable[[bytes], bool],
    clock: Clock,
    *,
    own: bool,
) -> Procedure[tuple[bytes, ...]]:
    """Up to `count` addresses of a block; with `own`, only while it is the node's."""
    for _ in range(RETRIES):
        answer = yield Get(block_key(cidr))
        if not isinstance(answer, Found):
            if not own or (yield from _is_overlapped(cidr)) or not (yield from claim(cidr, demand.node, clock)):
                return ()
            continue
        if own:
            if _block(answer).host != demand.node:
                yield from _drop_stale_affinity(cidr, demand.node)
                return ()
            if is_exhausted(_block(answer)):
                return ()
            if not (yield from _confirm(cidr, demand.node)):
                return ()
        block = _collected(cluster, answer, clock)
        manifest, given = assign(block, count, demand.owner, is_kept_back)
        if not given:
            return ()
        yield from _count_handle(demand.owner.handle, cidr, len(given))
        written = yield Write(block_key(cidr), after(block, manifest), answer.revision)
        if written is not CONFLICT:
            return given
        yield from _count_handle(demand.owner.handle, cidr, -len(given))
    return ()


def _collected(cluster: Cluster, found: Found, clock: Clock) -> IPAMBlock:
    """A block without the addresses whose cooldown is over; nothing is written for that alone."""
    block = _block(found)
    manifest = collect(block, lambda at: clock.is_older(at, cluster.config.ip_cooldown))
    return block if manifest is None else after(block, manifest)


def _borrow(
    cluster: Cluster,
    pools: list[IPPool],
    demand: Demand,
    count: int,
    is_kept_back: Callable[[bytes], bool],
    clock: Clock,
) -> Procedure[tuple[bytes, ...]]:
    """Addresses of blocks that other nodes hold, or nobody."""
    answer = yield List(IPAMBlock.kind)
    there = {
        found.value.cidr: found.value
        for found in (answer if isinstance(answer, list) else ())
        if isinstance(found.value, IPAMBlock)
    }
    given: list[bytes] = []
    for pool in pools:
        for cidr in in_search_order(pool, demand.node, there):
            if len(given) >= count:
                return tuple(given)
            if not free_count(there[cidr], is_kept_back):
                continue
            given += yield from _from_block(cluster, cidr, demand, count - len(given), is_kept_back, clock, own=False)
    return tuple(given)


# ---- claiming blocks


def _claim_next(
    cluster: Cluster, pools: list[IPPool], node: str, known: set[Cidr], clock: Clock
) -> Procedure[Cidr | None]:
    """A block for a node, besides the `known` ones: one that says it is its own (the claim got lost), one nobody has, or an
    empty one another node has held for a while.

    Never one whose addresses are all kept back: it would give nothing, and the next call would take another. One that pods
    of other nodes live in, because it got lost, is left to them while there is another.
    """
    is_kept_back = _kept_back(cluster)
    answer = yield List(IPAMBlock.kind)
    there = {
        found.value.cidr: found
        for found in (answer if isinstance(answer, list) else ())
        if isinstance(found.value, IPAMBlock)
    }
    for pool in pools:
        for cidr in in_search_order(pool, node, there):
            block = _block(there[cidr])
            if block.host != node or cidr in known or not free_count(block, is_kept_back):
                continue
            known.add(cidr)
            if (yield from claim(cidr, node, clock)):
                return cidr
    lived_in: list[Cidr] = []
    for pool in pools:
        overlaps = _overlapping(there, pool.cidr.family, pool.block_size)
        for cidr in search_order(pool, node, cluster.reserved):
            if cidr in there or overlaps(cidr) or all(map(is_kept_back, _addresses(cidr))):
                continue
            if _is_lived_in(cluster, cidr, node):
                lived_in.append(cidr)
                continue
            if (yield from claim(cidr, node, clock)):
                return cidr
    for pool in pools:
        for cidr in in_search_order(pool, node, there):
            block = _block(there[cidr])
            if all(map(is_kept_back, _addresses(cidr))) or _is_lived_in(cluster, cidr, node):
                continue
            host = block.host
            if (
                host
                and host != node
                and is_empty(block)
                and block.affinity_claim_time
                and clock.is_older(block.affinity_claim_time, RECLAIM_AFTER)
                and (yield from release_affinity(host, cidr, only_empty=True))
                and (yield from claim(cidr, node, clock))
            ):
                return cidr
    for cidr in lived_in:
        if (yield from claim(cidr, node, clock)):
            return cidr
    return None


def claim(cidr: Cidr, node: str, clock: Clock) -> Procedure[bool]:
    """Make a block this node's: False where another has it, or a block of another size that overlaps."""
    key = affinity_key(node, cidr)
    for _ in range(RETRIES):
        held = yield Get(key)
        if not isinstance(held, Found):
            answer = yield Write(key, _affinity(node, cidr, AffinityState.PENDING), None)
            if answer is CONFLICT:
                continue
        elif not isinstance(held.value, BlockAffinity) or held.value.state is not AffinityState.PENDING:
            answer = yield Write(key, _with_state(held.value, AffinityState.PENDING), held.revision)
            if answer is CONFLICT:
                continue
        manifest = new_block(cidr, f"host:{node}", clock.text, clock.nanoseconds)
        answer = yield Write(block_key(cidr), manifest, None)
        if answer is CONFLICT:
            found = yield Get(block_key(cidr))
            if not isinstance(found, Found):
                continue
            if _block(found).host != node:
                yield from _drop_stale_affinity(cidr, node)
                return False
            # ours, of a claim that was cut off: whoever decided on it before must look again
            answer = yield Write(block_key(cidr), touched(_block(found)), found.revision)
            if answer is CONFLICT:
                continue
        if (yield HasElder(cidr)) and (yield from release_affinity(node, cidr, only_empty=True)):
            return False
        if (yield from _confirm(cidr, node)):
            return True
    return False


def _confirm(cidr: Cidr, node: str) -> Procedure[bool]:
    """The affinity of a block that is ours says so; False where it is gone or given up."""
    key = affinity_key(node, cidr)
    for _ in range(RETRIES):
        held = yield Get(key)
        if not isinstance(held, Found) or not isinstance(held.value, BlockAffinity):
            return False
        if held.value.state is AffinityState.PENDING_DELETION:
            return False
        if held.value.is_confirmed:
            return True
        answer = yield Write(key, _with_state(held.value, AffinityState.CONFIRMED), held.revision)
        if answer is not CONFLICT:
            return True
    return False


def _drop_stale_affinity(cidr: Cidr, node: str) -> Procedure[None]:
    """Ours to a block that another has."""
    held = yield Get(affinity_key(node, cidr))
    if isinstance(held, Found):
        yield Write(affinity_key(node, cidr), None, held.revision)


def release_affinity(node: str, cidr: Cidr, *, only_empty: bool = False) -> Procedure[bool]:
    """Give a block up: it goes where it is empty, else it becomes nobody's. False where somebody uses it meanwhile."""
    key = affinity_key(node, cidr)
    for _ in range(RETRIES):
        held = yield Get(key)
        found = yield Get(block_key(cidr))
        block = _block(found) if isinstance(found, Found) else None
        if block is not None and only_empty and (block.host != node or not is_empty(block)):
            return False
        if isinstance(held, Found):
            if not isinstance(held.value, BlockAffinity):
                return False
            if held.value.state is not AffinityState.PENDING_DELETION:
                answer = yield Write(key, _with_state(held.value, AffinityState.PENDING_DELETION), held.revision)
                if answer is CONFLICT:
                    continue
                held = Found(held.value, answer if isinstance(answer, str) else "")
        if block is not None and isinstance(found, Found) and block.host == node:
            manifest = None if is_empty(block) else without_affinity(block)
            answer = yield Write(block_key(cidr), manifest, found.revision)
            if answer is CONFLICT:
                if only_empty and isinstance(held, Found):  # it is in use again: the affinity goes back
                    yield Write(key, _with_state(held.value, AffinityState.CONFIRMED), held.revision)
                continue
        if isinstance(held, Found):
            answer = yield Write(key, None, held.revision)
            if answer is CONFLICT:
                continue
        return True
    return False


# ---- release


def release_by_handle(cluster: Cluster, handle: str, clock: Clock) -> Procedure[tuple[bytes, ...]]:
    """Give back all addresses under a handle; none is no error."""
    held = yield Get(handle_key(handle))
    if not isinstance(held, Found) or not isinstance(held.value, IPAMHandle):
        return ()
    released: list[bytes] = []
    for cidr in sorted(held.value.blocks):
        released += yield from _release_in(cluster, cidr, clock, lambda block, at: release_handle(block, handle, at))
        # what the handle counted and no block has (a crash between the two) goes with it
        yield from _count_handle(handle, cidr, None)
    return tuple(released)


def release_addresses(
    cluster: Cluster, addresses: Iterable[bytes], clock: Clock, *, handle: str | None = None
) -> Procedure[tuple[bytes, ...]]:
    """Give back addresses by name; those nobody has are passed over."""
    released: list[bytes] = []
    by_block: dict[Cidr, list[bytes]] = {}
    for address in addresses:
        pool = pool_of(cluster.pools, Family.of_address(address), address)
        if pool is not None:
            by_block.setdefault((yield from block_of(pool, address)), []).append(address)
    for cidr, inside in sorted(by_block.items()):

        def chosen(block: IPAMBlock, at: str, inside: list[bytes] = inside) -> Released:
            return release(block, inside, at, handle=handle)

        released += yield from _release_in(cluster, cidr, clock, chosen, count_handles=True)
    return tuple(released)


def release_allocation(
    cluster: Cluster, cidr: Cidr, address: bytes, clock: Clock, *, handle: str | None, sequence: int | None
) -> Procedure[bool]:
    """Give back one address of a block, if it is still the allocation that is meant. Its pool may be gone."""
    numbers = None if sequence is None else {address: sequence}

    def chosen(block: IPAMBlock, at: str) -> Released:
        return release(block, (address,), at, handle=handle, sequence=numbers)

    return bool((yield from _release_in(cluster, cidr, clock, chosen, count_handles=True)))


def recount_handle(handle: str, cidr: Cidr | None, count: int) -> Procedure[bool]:
    """Make a handle count of a block what the block has under it, if it still counts `count`.

    Without a block: remove the handle if it counts nothing at all.
    """
    held = yield Get(handle_key(handle))
    there = held.value if isinstance(held, Found) and isinstance(held.value, IPAMHandle) else None
    if cidr is None:
        if there is None or there.blocks or not isinstance(held, Found):
            return False
        return (yield Write(handle_key(handle), None, held.revision)) is not CONFLICT
    found = yield Get(block_key(cidr))
    has = 0
    if isinstance(found, Found):
        has = sum(owner.handle_id == handle for _, owner in allocations(_block(found)))
    if (there.blocks.get(cidr, 0) if there is not None else 0) != count or has == count:
        return False
    yield from _count_handle(handle, cidr, has - count if has else None)
    return True


def release_node(cluster: Cluster, node: str, clock: Clock) -> Procedure[tuple[bytes, ...]]:
    """Give back all that a node that is no more has: addresses, also those it borrowed, and blocks."""

    def chosen(block: IPAMBlock, at: str) -> Released:
        own = [address_at(block, each) for each, owner in allocations(block) if owner.secondary.get("node") == node]
        return release(block, own, at)

    released: list[bytes] = []
    answer = yield List(IPAMBlock.kind)
    blocks = [_block(found) for found in (answer if isinstance(answer, list) else ())]
    # each is read again before it is changed, which thousands that have nothing of the node's need not be
    for cidr in sorted(block.cidr for block in blocks if node in block.nodes_of_addresses().values()):
        released += yield from _release_in(cluster, cidr, clock, chosen, count_handles=True)
    answer = yield List(BlockAffinity.kind)
    held = {block.cidr for block in blocks if block.host == node}
    for found in answer if isinstance(answer, list) else ():
        if isinstance(found.value, BlockAffinity) and found.value.node == node:
            held.add(found.value.cidr)
    for cidr in sorted(held):
        yield from release_affinity(node, cidr)
    return tuple(released)


def _release_in(
    cluster: Cluster,
    cidr: Cidr,
    clock: Clock,
    choose: Callable[[IPAMBlock, str], Released],
    *,
    count_handles: bool = False,
) -> Procedure[tuple[bytes, ...]]:
    for _ in range(RETRIES):
        found = yield Get(block_key(cidr))
        if not isinstance(found, Found):
            return ()
        done = choose(_block(found), clock.text if cluster.config.ip_cooldown else "")
        if not done.released:
            return ()
        left = after(_block(found), done.manifest)
        # a block that is nobody's and empty has no reason to be
        nothing = left.affinity is None and is_empty(left) and not left.attributes
        answer = yield Write(block_key(cidr), None if nothing else left, found.revision)
        if answer is CONFLICT:
            continue
        if count_handles:
            for handle, count in done.handles.items():
                yield from _count_handle(handle, cidr, -count)
        return done.released
    return ()


def _count_handle(handle: str | None, cidr: Cidr, step: int | None) -> Procedure[None]:
    """Count addresses of a block under a handle; None: there are none any more. A handle without any goes."""
    if handle is None:
        return
    key = handle_key(handle)
    for _ in range(RETRIES):
        held = yield Get(key)
        counts: dict[str, int] = {}
        revision: str | None = None
        there = held.value if isinstance(held, Found) and isinstance(held.value, IPAMHandle) else None
        if there is not None and isinstance(held, Found):
            counts = {str(block): count for block, count in there.blocks.items()}
            revision = held.revision
        now = 0 if step is None else counts.get(str(cidr), 0) + step
        if now > 0:
            counts[str(cidr)] = now
        elif counts.pop(str(cidr), None) is None:
            return
        answer = yield Write(key, _counting(handle, there, counts) if counts else None, revision)
        if answer is not CONFLICT:
            return


def _counting(handle: str, there: IPAMHandle | None, counts: Mapping[str, int]) -> JsonObject:
    """A handle's manifest with these counts of blocks, and all else as it is."""
    manifest: JsonObject = {
        "apiVersion": _API_VERSION,
        "kind": IPAMHandle.kind,
        "metadata": {"name": handle},
        "spec": {"deleted": False},
    }
    if there is not None:
        manifest = copy.deepcopy(there.manifest)
    spec = manifest.get("spec")
    if isinstance(spec, dict):
        spec["block"] = dict(counts)
    return manifest


# ---- inside


def _block(found: Found) -> IPAMBlock:
    if not isinstance(found.value, IPAMBlock):
        raise TypeError(f"{found.value.key} is no block")
    return found.value


def _with_state(value: Resource, state: AffinityState) -> JsonObject:
    manifest = copy.deepcopy(value.manifest)
    spec = manifest.get("spec")
    if isinstance(spec, dict):
        spec["state"] = state.value
    return manifest
