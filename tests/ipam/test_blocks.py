"""Blocks: what is given out and given back, in any order, on Calico's own JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routed.ipam.blocks import (
    Owner,
    address_at,
    after,
    assign,
    assign_address,
    collect,
    free_count,
    is_empty,
    new_block,
    release,
    release_handle,
    touched,
    without_affinity,
)
from routed.model.ipam import IPAMBlock
from routed.model.resources import Cidr, JsonObject
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix


def block_of(manifest: JsonObject) -> IPAMBlock:
    """As a store gives it back: through text."""
    read = parse_manifest(json.loads(json.dumps(manifest)))
    assert isinstance(read, IPAMBlock)
    return read


def empty(text: str = "10.244.1.0/29") -> IPAMBlock:
    return block_of(new_block(Cidr(*parse_prefix(text)), "host:node-1", "2026-05-01T10:00:00Z", 1777000000000000001))


def nothing_reserved(_: bytes) -> bool:
    return False


def test_a_new_block_is_calico_s():
    assert empty("10.244.1.0/30").manifest["spec"] == {
        "cidr": "10.244.1.0/30",
        "affinity": "host:node-1",
        "affinity_claim_time": "2026-05-01T10:00:00Z",
        "allocations": [None, None, None, None],
        "unallocated": [0, 1, 2, 3],
        "attributes": [],
        "sequenceNumber": 1777000000000000001,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


def test_an_assignment_is_calico_s():
    owner = Owner("k8s-pod-network.c1", {"node": "node-1", "pod": "web-0", "namespace": "default"})
    manifest, given = assign(empty("10.244.1.0/30"), 2, owner, nothing_reserved)
    assert given == (parse_address("10.244.1.0"), parse_address("10.244.1.1"))
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    assert spec["allocations"] == [0, 0, None, None] and spec["unallocated"] == [2, 3]
    assert spec["attributes"] == [
        {
            "handle_id": "k8s-pod-network.c1",
            "secondary": {"node": "node-1", "pod": "web-0", "namespace": "default"},
        }
    ]
    assert spec["sequenceNumber"] == 1777000000000000002
    assert spec["sequenceNumberForAllocation"] == {"0": 1777000000000000001, "1": 1777000000000000001}


def test_the_last_given_back_is_the_last_given_out():
    block = empty("10.244.1.0/30")
    owner = Owner("h", {})
    block = block_of(assign(block, 2, owner, nothing_reserved)[0])
    block = block_of(release(block, [parse_address("10.244.1.0")]).manifest)
    order = []
    while free_count(block, nothing_reserved):
        manifest, given = assign(block, 1, owner, nothing_reserved)
        block = block_of(manifest)
        order += given
    assert order == [parse_address(each) for each in ("10.244.1.2", "10.244.1.3", "10.244.1.0")]


def test_reserved_addresses_are_passed_over_and_can_be_asked_for():
    reserved = {parse_address("10.244.1.0"), parse_address("10.244.1.2")}
    block = empty("10.244.1.0/30")
    owner = Owner("h", {})
    manifest, given = assign(block, 4, owner, reserved.__contains__)
    assert given == (parse_address("10.244.1.1"), parse_address("10.244.1.3"))
    assert free_count(block_of(manifest), reserved.__contains__) == 0
    asked = assign_address(block_of(manifest), parse_address("10.244.1.2"), owner)
    assert asked is not None and block_of(asked).unallocated == (0,)
    assert assign_address(block_of(asked), parse_address("10.244.1.2"), owner) is None
    assert assign_address(block, parse_address("10.244.2.2"), owner) is None
    assert assign_address(block, parse_address("fd00::1"), owner) is None


def test_a_late_release_does_not_take_the_next_owner_s_address():
    block = block_of(assign(empty(), 1, Owner("first", {}), nothing_reserved)[0])
    address = address_at(block, 0)
    number = block.sequence_number_for_allocation[0]
    block = block_of(release(block, [address]).manifest)
    again = assign_address(block, address, Owner("second", {}))
    assert again is not None
    block = block_of(again)
    assert release(block, [address], sequence={address: number}).released == ()
    assert release(block, [address], handle="first").released == ()
    assert release(block, [address], handle="second").released == (address,)


def test_cooldown():
    block = block_of(assign(empty("10.244.1.0/31"), 2, Owner("h", {}), nothing_reserved)[0])
    done = release_handle(block, "h", "2026-05-01T10:00:00Z")
    assert done.handles == {"h": 2} and len(done.released) == 2
    cooling = block_of(done.manifest)
    assert is_empty(cooling) and free_count(cooling, nothing_reserved) == 0
    assert cooling.manifest["spec"]["attributes"] == [{"releasedAt": "2026-05-01T10:00:00Z"}]  # type: ignore[index, call-overload]
    assert release_handle(cooling, "h").released == ()
    assert collect(cooling, lambda _: False) is None
    collected = collect(cooling, lambda at: at == "2026-05-01T10:00:00Z")
    assert collected is not None
    assert block_of(collected).unallocated == (0, 1) and block_of(collected).attributes == ()


def test_fields_of_others_stay():
    manifest = new_block(Cidr(*parse_prefix("10.244.1.0/30")), None, "", 1)
    manifest["spec"]["affinity"] = None  # type: ignore[index, call-overload]
    manifest["metadata"]["annotations"] = {"who": "them"}  # type: ignore[index, call-overload]
    block = block_of(manifest)
    for changed in (assign(block, 1, Owner(None, {}), nothing_reserved)[0], touched(block), without_affinity(block)):
        assert changed["metadata"] == {"name": "10-244-1-0-30", "annotations": {"who": "them"}}
        assert block_of(changed).affinity is None
        assert block_of(changed).sequence_number == 2


HANDLES = st.sampled_from(["h1", "h2", "h3"])


class BlockMachine(RuleBasedStateMachine):
    """A block against a plain dictionary of who has what."""

    def __init__(self) -> None:
        super().__init__()
        self.block = empty()
        self.owners: dict[bytes, str] = {}
        self.cooling: set[bytes] = set()
        self.number = self.block.sequence_number

    def become(self, manifest: JsonObject) -> None:
        self.block = after(self.block, manifest)
        assert self.block == block_of(manifest)

    @rule(handle=HANDLES, count=st.integers(0, 9), pod=st.sampled_from(["a", "b"]), reserved=st.sets(st.integers(0, 7)))
    def assign(self, handle: str, count: int, pod: str, reserved: set[int]) -> None:
        kept = {address_at(self.block, each) for each in reserved}
        free = free_count(self.block, kept.__contains__)
        manifest, given = assign(self.block, count, Owner(handle, {"pod": pod}), kept.__contains__)
        assert len(given) == min(count, free) and not kept & set(given)
        assert not set(given) & self.owners.keys() and not set(given) & self.cooling
        self.owners |= dict.fromkeys(given, handle)
        self.become(manifest)

    @rule(handle=HANDLES, cooldown=st.booleans())
    def release_by_handle(self, handle: str, cooldown: bool) -> None:
        done = release_handle(self.block, handle, "2026-01-01T00:00:00Z" if cooldown else "")
        assert set(done.released) == {address for address, owner in self.owners.items() if owner == handle}
        self.forget(done.released, cooldown, done.handles)
        self.become(done.manifest)

    @rule(ordinals=st.sets(st.integers(0, 7)), cooldown=st.booleans())
    def release_addresses(self, ordinals: set[int], cooldown: bool) -> None:
        asked = {address_at(self.block, each) for each in ordinals}
        done = release(self.block, asked, "2026-01-02T00:00:00Z" if cooldown else "")
        assert set(done.released) == asked & self.owners.keys()
        self.forget(done.released, cooldown, done.handles)
        self.become(done.manifest)

    def forget(self, released: tuple[bytes, ...], cooldown: bool, handles: Mapping[str, int]) -> None:
        counts: dict[str, int] = {}
        for address in released:
            owner = self.owners.pop(address)
            counts[owner] = counts.get(owner, 0) + 1
            if cooldown:
                self.cooling.add(address)
        assert dict(handles) == counts

    @rule()
    def collect(self) -> None:
        manifest = collect(self.block, lambda _: True)
        assert (manifest is None) is not bool(self.cooling)
        self.cooling.clear()
        if manifest is not None:
            self.become(manifest)

    @invariant()
    def it_is_whole(self) -> None:
        block = self.block
        for ordinal in range(8):
            address = address_at(block, ordinal)
            assert block.ordinal_of(address) == ordinal
            owner = block.owner(ordinal)
            assert (owner.handle_id if owner else None) == self.owners.get(address)
            free = address not in self.owners and address not in self.cooling
            assert block.unallocated.count(ordinal) == free
            assert (ordinal in block.sequence_number_for_allocation) is (address in self.owners)
        assert {index for index in block.allocations if index is not None} == set(range(len(block.attributes)))
        assert is_empty(block) is (not self.owners)
        assert block.sequence_number >= self.number
        self.number = block.sequence_number
        assert block.cidr.family is Family.IPV4_UNICAST


TestBlock = BlockMachine.TestCase
TestBlock.settings = settings(TestBlock.settings, max_examples=50)
