"""Which blocks have an address, and who has it in them."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.model.deletion import is_given_back
from routed.model.ipam import BLOCK_LENGTHS, MAX_BLOCK_SIZE, AllocationAttribute, IPAMBlock, blocks_with
from routed.model.paths import block_name
from routed.model.resources import Cidr, Resource, ResourceKey
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix

#: Of both families, each with blocks of several sizes one in the other, the largest there may be among them.
NETWORKS = [("10.64.0.0", 32), ("fd00:64::", 128)]
SIZES = (0, 2, 6, 16)


def block(cidr: Cidr) -> IPAMBlock:
    size = 1 << cidr.family.max_length - cidr.prefix[0]
    return IPAMBlock(name=str(cidr), cidr=cidr, allocations=(None,) * size)


def address_in(text: str, offset: int) -> bytes:
    return (ipaddress.ip_address(text) + offset).packed


@st.composite
def cidrs(draw: st.DrawFn) -> Cidr:
    text, bits = draw(st.sampled_from(NETWORKS))
    address = address_in(text, draw(st.integers(0, 2 * MAX_BLOCK_SIZE - 1)))
    return Cidr(Family.of_address(address), make_prefix(address, bits - draw(st.sampled_from(SIZES))))


@given(st.sets(cidrs(), max_size=6).flatmap(lambda there: st.tuples(st.just(there), cidrs(), st.integers(0, 70))))
def test_all_blocks_with_an_address_are_found_the_smallest_first(case: tuple[set[Cidr], Cidr, int]) -> None:
    there, near, offset = case
    blocks = {cidr: block(cidr) for cidr in there}
    network = ipaddress.ip_network(str(near))
    address = network[min(offset, network.num_addresses - 1)]
    expected = sorted(
        (cidr for cidr in there if cidr.family == near.family and address in ipaddress.ip_network(str(cidr))),
        key=lambda cidr: -cidr.prefix[0],
    )
    found = list(blocks_with(address.packed, blocks.get))
    assert [each.cidr for each in found] == expected
    lengths = sorted({cidr.prefix[0] for cidr in there if cidr.family is near.family}, reverse=True)
    assert list(blocks_with(address.packed, blocks.get, lengths)) == found
    for each in blocks.values():
        ordinal = each.ordinal_of(address.packed)
        assert (ordinal is not None) == (each.cidr in expected)
        assert ordinal is None or ipaddress.ip_network(str(each.cidr))[ordinal] == address


@pytest.mark.parametrize("family", Family)
def test_every_block_the_reader_takes_is_looked_for(family: Family) -> None:
    """Neither less nor more."""
    address = address_in(
        dict((32, text) if bits == 32 else (128, text) for text, bits in NETWORKS)[family.max_length], 5
    )
    asked: list[Cidr] = []

    def nothing_there(cidr: Cidr) -> None:
        asked.append(cidr)

    assert not list(blocks_with(address, nothing_there))
    assert [cidr.prefix[0] for cidr in asked] == list(BLOCK_LENGTHS[family])
    assert 1 << family.max_length - asked[-1].prefix[0] == MAX_BLOCK_SIZE
    assert all(cidr == Cidr(family, make_prefix(address, cidr.prefix[0])) for cidr in asked)


def with_owner(text: str, address: str, handle: str | None) -> IPAMBlock:
    """A block, and the handle one of its addresses was given under; None: nobody has it."""
    cidr = Cidr(*parse_prefix(text))
    of_nobody = block(cidr)
    ordinal = of_nobody.ordinal_of(parse_address(address))
    allocations = [None if handle is None or each != ordinal else 0 for each in range(len(of_nobody.allocations))]
    attributes = (AllocationAttribute(handle_id=handle),) if handle is not None else ()
    return replace(of_nobody, name=block_name(cidr), allocations=tuple(allocations), attributes=attributes)


@pytest.mark.parametrize(
    ("blocks", "given_back"),
    [
        ([], False),
        ([("10.64.0.0/26", None)], True),
        ([("10.64.0.0/26", "k8s.c1")], False),
        ([("10.64.0.0/26", "k8s.c2")], True),
        ([("10.64.0.0/16", None)], True),
        ([("10.64.0.0/16", "k8s.c1")], False),
        ([("10.64.0.0/26", None), ("10.64.0.0/20", "k8s.c1")], False),  # given when the pool had larger blocks
        ([("10.64.0.0/26", "k8s.c1"), ("10.64.0.0/20", None)], False),
        ([("10.64.0.0/26", "k8s.c2"), ("10.64.0.0/20", None)], True),
    ],
)
def test_an_address_is_given_back_where_no_block_has_it_for_its_pod(
    blocks: list[tuple[str, str | None]], given_back: bool
) -> None:
    address = "10.64.0.5"
    stored: dict[ResourceKey, Resource] = {
        each.key: each for each in (with_owner(cidr, address, handle) for cidr, handle in blocks)
    }
    endpoint = WorkloadEndpoint(
        name="p", namespace="d", node="n", orchestrator="k8s", workload="p", endpoint="eth0",
        container_id="c1", ip_networks=(Cidr(*parse_prefix(f"{address}/32")),),
    )  # fmt: skip
    assert is_given_back(endpoint, stored.get) is given_back
