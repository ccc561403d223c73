"""What of the addresses that are given out does not add up.

Allocations are held against the endpoints and nodes that should have them, handles against the blocks they count,
affinities against the blocks they claim.

Invariants: nothing is decided by one look. An address is given out before its endpoint is written and a handle counts
before a block gives out, so each finding may be somebody's work under way; `unchanged` tells what two looks agree on, and
only that may be put right.

Not here: putting right (the procedures of `allocator`), and how the state was read.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import field

from routed.ipam.blocks import address_at, allocations, is_empty
from routed.ipam.holders import addresses_of
from routed.model.ipam import AllocationAttribute, IPAMBlock, IPAMHandle
from routed.model.resources import AffinityType, BlockAffinity, Cidr, IPPool, Node, Resource
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import covers, prefix_address
from routed.values import dataclass

#: Of the addresses that Windows keeps to itself in each block; nobody's endpoint has them, and they are no leak.
WINDOWS_HANDLE = "windows-reserved-ipam-handle"

#: Kinds that must be read for a check.
CHECKED = frozenset(
    kind.kind for kind in (IPPool, IPAMBlock, IPAMHandle, BlockAffinity, Node, WorkloadEndpoint)
)  # fmt: skip


class Problem(enum.StrEnum):
    """What is wrong."""

    LEAKED = "leaked"
    """An address is given out, and nobody has it."""
    NOT_ALLOCATED = "not allocated"
    """An endpoint has an address of a pool that no block says is given out; somebody may be given it."""
    TWICE = "twice"
    """Two endpoints have one address, or two blocks hold it."""
    HANDLE = "handle"
    """A handle counts other addresses than the blocks have under it."""
    NO_BLOCK = "no block"
    """A claim that was begun or is being given up, of a block that is not there. A confirmed one is right without: its block
    is announced, and people who write affinities by hand write no blocks."""
    STALE_AFFINITY = "stale affinity"
    """A node claims a block that another holds."""
    NO_AFFINITY = "no affinity"
    """A block says that a node holds it, and the node does not claim it."""
    NO_POOL = "no pool"
    """A block is in no pool: nobody gets an address of it any more, and it goes with the last it has given out."""
    OVERLAP = "overlap"
    """Two blocks have addresses in common, as where a pool was made again with another block size."""
    NO_NODE = "no node"
    """Addresses or blocks are held for a node that is not there."""
    SPARE = "spare block"
    """Nothing wrong, and never found by `check`: a node holds an empty block it does not need."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something wrong. Two looks agree on it where all of this is the same."""

    problem: Problem
    text: str
    """For people."""
    address: str = ""
    cidr: str = ""
    """The block, where there is one."""
    handle: str = ""
    node: str = ""
    sequence: int = -1
    """Of an allocation: the number it was given out at, so that a later one of the same address is another; -1: none."""
    count: int = 0
    """What a handle counts in the block."""
    pod: str = ""
    """Of an allocation: whose it is, `namespace/name`."""
    use: str = ""
    """Of an allocation that is no pod's: what for, as a tunnel."""


@dataclass(slots=True)
class State:
    """What a check looks at."""

    pools: list[IPPool] = field(default_factory=list)
    blocks: list[IPAMBlock] = field(default_factory=list)
    handles: list[IPAMHandle] = field(default_factory=list)
    affinities: list[BlockAffinity] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    endpoints: list[WorkloadEndpoint] = field(default_factory=list)


def state_of(resources: Iterable[Resource]) -> State:
    """What of these resources counts."""
    state = State()
    for one in resources:
        match one:
            case IPPool():
                state.pools.append(one)
            case IPAMBlock() if not one.deleted:
                state.blocks.append(one)
            case IPAMHandle() if not one.deleted:
                state.handles.append(one)
            case BlockAffinity(type=AffinityType.HOST) if not one.deleted:
                state.affinities.append(one)
            case Node():
                state.nodes[one.name] = one
            case WorkloadEndpoint():
                state.endpoints.append(one)
    return state


def check(state: State) -> list[Finding]:
    """All that is wrong, in order."""
    of_blocks = (*_overlapping(state), *_missing_pools(state))
    return sorted([*_addresses(state), *_handles(state), *_affinities(state), *of_blocks, *_missing_nodes(state)])


def unchanged(earlier: Iterable[Finding], now: Iterable[Finding]) -> list[Finding]:
    """What is wrong now in the same way as it was."""
    before = set(earlier)
    return [finding for finding in now if finding in before]


def holders(state: State) -> dict[bytes, list[str]]:
    """Who has which address: endpoints, and nodes by their tunnels."""
    held: dict[bytes, list[str]] = {}
    for endpoint in state.endpoints:
        for address in addresses_of(endpoint):
            held.setdefault(address, []).append(str(endpoint.key))
    for node in state.nodes.values():
        for address in addresses_of(node):
            held.setdefault(address, []).append(f"a tunnel of node {node.name}")
    return held


def _addresses(state: State) -> Iterator[Finding]:
    held = holders(state)
    blocks: dict[bytes, list[IPAMBlock]] = {}
    for block in state.blocks:
        for ordinal, owner in allocations(block):
            address = address_at(block, ordinal)
            blocks.setdefault(address, []).append(block)
            if address in held or owner.handle_id == WINDOWS_HANDLE or (block.affinity or "").startswith("virtual:"):
                continue
            yield Finding(
                Problem.LEAKED,
                f"{format_address(address)} is given out {_to(owner)}, and no endpoint or tunnel has it",
                address=format_address(address),
                cidr=str(block.cidr),
                handle=owner.handle_id or "",
                node=owner.secondary.get("node", ""),
                sequence=block.sequence_number_for_allocation.get(ordinal, -1),
                pod=_pod(owner),
                use=owner.secondary.get("type", ""),
            )
    for address, holding in blocks.items():
        if len(holding) > 1:
            text = (
                f"{format_address(address)} is given out in {' and '.join(sorted(str(each.cidr) for each in holding))}"
            )
            yield Finding(Problem.TWICE, text, address=format_address(address))
    for address, who in held.items():
        if len(who) > 1:
            text = f"{format_address(address)} is that of {' and '.join(sorted(who))}"
            yield Finding(Problem.TWICE, text, address=format_address(address))
        if address not in blocks and any(covers_address(pool.cidr, address) for pool in state.pools):
            text = f"{format_address(address)} of {who[0]} is given out by no block, so somebody else may be given it"
            yield Finding(Problem.NOT_ALLOCATED, text, address=format_address(address))


def covers_address(cidr: Cidr, address: bytes) -> bool:
    """Whether an address is in a prefix."""
    family = cidr.family
    return len(address) == family.address_length and covers(cidr.prefix, bytes((family.max_length,)) + address)


def _pod(owner: AllocationAttribute) -> str:
    about = owner.secondary
    return f"{about.get('namespace', 'default')}/{about['pod']}" if about.get("pod") else ""


def _to(owner: AllocationAttribute) -> str:
    about = owner.secondary
    if about.get("pod"):
        return f"to pod {_pod(owner)} on node {about.get('node', '?')}"
    if about.get("type"):
        return f"as {about['type']} of node {about.get('node', '?')}"
    return f"under handle {owner.handle_id}" if owner.handle_id else "without a handle"


def _handles(state: State) -> Iterator[Finding]:
    have: dict[str, Counter[Cidr]] = {}
    for block in state.blocks:
        for _, owner in allocations(block):
            if owner.handle_id is not None:
                have.setdefault(owner.handle_id, Counter())[block.cidr] += 1
    counted = {handle.name: handle.blocks for handle in state.handles}
    for handle in have.keys() | counted.keys():
        counts, there = counted.get(handle, {}), have.get(handle, Counter())
        for cidr in counts.keys() | there.keys():
            count = counts.get(cidr, 0)
            if count != there[cidr]:
                text = f"handle {handle} counts {count} of {cidr}, which has {there[cidr]} under it"
                yield Finding(Problem.HANDLE, text, cidr=str(cidr), handle=handle, count=count)
        if not counts and not there:
            yield Finding(Problem.HANDLE, f"handle {handle} counts nothing", handle=handle)


def _affinities(state: State) -> Iterator[Finding]:
    blocks = {block.cidr: block for block in state.blocks}
    claims = {(affinity.node, affinity.cidr): affinity for affinity in state.affinities}
    for (node, cidr), affinity in claims.items():
        block = blocks.get(cidr)
        if block is None:
            if not affinity.is_confirmed:
                text = f"node {node} has begun to claim {cidr}, or to give it up, and there is no such block"
                yield Finding(Problem.NO_BLOCK, text, cidr=str(cidr), node=node)
        elif block.host != node:
            text = f"node {node} claims {cidr}, which {_of(block)} holds"
            yield Finding(Problem.STALE_AFFINITY, text, cidr=str(cidr), node=node)
    for cidr, block in blocks.items():
        if block.host and (block.host, cidr) not in claims:
            text = f"block {cidr} says node {block.host} holds it, which does not claim it"
            yield Finding(Problem.NO_AFFINITY, text, cidr=str(cidr), node=block.host)


def _of(block: IPAMBlock) -> str:
    return f"node {block.host}" if block.host else block.affinity or "nobody"


def _overlapping(state: State) -> Iterator[Finding]:
    for family in Family:
        around: list[IPAMBlock] = []
        own = [block for block in state.blocks if block.cidr.family is family]
        for block in sorted(own, key=lambda each: (prefix_address(family, each.cidr.prefix), each.cidr.prefix[0])):
            while around and not covers(around[-1].cidr.prefix, block.cidr.prefix):
                around.pop()
            if around:
                outer = around[-1]
                text = (
                    f"block {block.cidr} of {_of(block)} is inside block {outer.cidr} of {_of(outer)}: packets to addresses "
                    f"of it go to {_of(block)}, whoever gave them out; move its pods away and release it"
                )
                yield Finding(Problem.OVERLAP, text, cidr=str(block.cidr), node=block.host or "")
            around.append(block)


def _missing_pools(state: State) -> Iterator[Finding]:
    for block in state.blocks:
        cidr = block.cidr
        if not any(pool.cidr.family is cidr.family and covers(pool.cidr.prefix, cidr.prefix) for pool in state.pools):
            used = not is_empty(block)
            text = f"block {cidr} of {_of(block)} is in no pool{', and addresses of it are in use' if used else ''}"
            yield Finding(Problem.NO_POOL, text, cidr=str(cidr), node=block.host or "", count=int(used))


def _missing_nodes(state: State) -> Iterator[Finding]:
    named = {affinity.node for affinity in state.affinities} | {block.host for block in state.blocks if block.host}
    for block in state.blocks:
        named |= {owner.secondary["node"] for _, owner in allocations(block) if owner.secondary.get("node")}
    for name in named - state.nodes.keys():
        yield Finding(
            Problem.NO_NODE,
            f"there is no node {name}, and it holds blocks or addresses (ipam release --node)",
            node=name,
        )
