"""Whose blocks and addresses are: what was asked about and is another's since is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routed.model.ipam import AllocationAttribute, IPAMBlock
from routed.model.resources import Cidr
from routed.net.prefixes import covers, parse_prefix
from routed.plan.blocks import Blocks

CIDRS = [Cidr(*parse_prefix(each)) for each in ("10.65.0.0/30", "10.65.0.4/31", "10.65.0.6/32")]
ADDRESSES = [Cidr(*parse_prefix(f"10.65.0.{each}/32")) for each in range(8)]


@st.composite
def blocks(draw: st.DrawFn) -> IPAMBlock:
    cidr = draw(st.sampled_from(CIDRS))
    size = 1 << (32 - cidr.prefix[0])
    nodes = st.sampled_from([{}, {"node": "n1"}, {"node": "n2"}])
    attributes = draw(
        st.lists(st.builds(AllocationAttribute, secondary=nodes, released_at=st.sampled_from(["", "now"])), max_size=3)
    )
    indexes = st.none() | st.integers(0, 3)  # also one that is not there
    return IPAMBlock(
        name=str(cidr), cidr=cidr, affinity=draw(st.sampled_from([None, "host:n1", "host:n2"])),
        allocations=tuple(draw(st.lists(indexes, min_size=size, max_size=size))), attributes=tuple(attributes),
        deleted=draw(st.booleans()),
    )  # fmt: skip


def node_with(there: dict[str, IPAMBlock], address: Cidr) -> str | None:
    """What the block with an address says; blocks don't overlap."""
    block = next(
        (each for each in there.values() if not each.deleted and covers(each.cidr.prefix, address.prefix)), None
    )
    if block is None:
        return None
    owner = block.owner(address.prefix[-1] - block.cidr.prefix[-1])
    return owner.secondary.get("node") if owner is not None else None


@given(st.lists(st.tuples(blocks(), st.booleans(), st.sets(st.sampled_from(ADDRESSES))), max_size=12))
def test_who_asked_hears_of_every_change(steps: list[tuple[IPAMBlock, bool, set[Cidr]]]) -> None:
    subject = Blocks()
    there: dict[str, IPAMBlock] = {}
    heard: dict[Cidr, str | None] = {}
    holders: dict[Cidr, str | None] = {}
    for block, exists, asked in steps:
        subject.put(block.name, block if exists else None)
        if exists:
            there[block.name] = block
        else:
            there.pop(block.name, None)
        moved = subject.take_moved()
        for cidr in CIDRS:
            present = there.get(str(cidr))
            holder = present.affinity if present is not None and not present.deleted else None
            assert subject.affinity(cidr) == holder
            assert cidr in moved or holders.get(cidr) == holder
            holders[cidr] = holder
        for address in asked | (heard.keys() & moved):
            heard[address] = subject.node_with(address)
        assert heard == {address: node_with(there, address) for address in heard}
