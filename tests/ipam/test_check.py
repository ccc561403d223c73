"""What a check finds, and that what two looks agree on can be put right."""

from __future__ import annotations

import contextlib
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from routed.ipam.allocator import (
    Cluster,
    Found,
    Get,
    assign_addresses,
    claim,
    recount_handle,
    release_addresses,
    release_affinity,
    release_allocation,
    release_by_handle,
    release_node,
)
from routed.ipam.check import Finding, Problem, check, state_of, unchanged
from routed.model.ipam import IPAMBlock
from routed.model.resources import Cidr, Node
from routed.model.schema import parse_manifest
from routed.net.addresses import format_address, parse_address
from routed.net.prefixes import parse_prefix
from tests.ipam.stores import MemoryStore
from tests.ipam.test_allocator import SMALL, Site, demand

API = "projectcalico.org/v3"


def look(site: Site, *nodes: str, **extra: Any) -> list[Finding]:
    """A check of the store with these nodes (n1 and n2 where none are named) and `endpoints={name: address}`."""
    endpoints = [
        parse_manifest(
            {
                "apiVersion": API,
                "kind": "WorkloadEndpoint",
                "metadata": {"name": f"n1-cni-{name}-eth0", "namespace": "default"},
                "spec": {"orchestrator": "cni", "node": "n1", "containerID": name, "endpoint": "eth0",
                         "ipNetworks": [f"{address}/32"], "workload": name},
            }
        )
        for name, address in extra.get("endpoints", {}).items()
    ]  # fmt: skip
    stored = [found.value for found in site.store.items.values()]
    own = [*extra.get("nodes", ()), *(Node(name=name) for name in nodes or ("n1", "n2"))]
    return check(state_of([SMALL, *stored, *endpoints, *own]))


def put_right(store: MemoryStore, site: Site, findings: list[Finding]) -> None:
    for each in findings:
        cidr = Cidr(*parse_prefix(each.cidr)) if each.cidr else None
        clock = site.clock()
        if each.problem is Problem.LEAKED:
            assert cidr is not None
            number = each.sequence if each.sequence >= 0 else None
            address = parse_address(each.address)
            store.run(release_allocation(site.cluster, cidr, address, clock, handle=each.handle, sequence=number))
        elif each.problem is Problem.HANDLE:
            store.run(recount_handle(each.handle, cidr, each.count))
        elif each.problem is Problem.NO_AFFINITY:
            assert cidr is not None
            store.run(claim(cidr, each.node, clock))
        elif each.problem in (Problem.NO_BLOCK, Problem.STALE_AFFINITY):
            assert cidr is not None
            store.run(release_affinity(each.node, cidr))


def test_what_has_an_endpoint_adds_up_and_what_has_none_leaked():
    site = Site()
    (one,), (other,) = site.assign(demand("n1", "a")), site.assign(demand("n1", "b"))
    assert look(site, endpoints={"a": one, "b": other}) == []
    (leak,) = look(site, endpoints={"a": one})
    assert (leak.problem, leak.address, leak.handle, leak.node) == (Problem.LEAKED, other, "b", "n1")
    put_right(site.store, site, [leak])
    assert look(site, endpoints={"a": one}) == [] and "b" not in site.store.handles


def test_a_block_inside_another_is_named():
    site, others = Site(), Site()  # a node of Calico's own looks at nobody else's
    for store, node, cidr in (
        (site.store, "n1", "10.0.0.0/30"), (others.store, "n2", "10.0.0.2/31"), (site.store, "n1", "10.0.0.4/30")
    ):  # fmt: skip
        assert store.run(claim(Cidr(*parse_prefix(cidr)), node, site.clock()))
    site.store.items |= others.store.items
    (text,) = [each.text for each in look(site) if each.problem is Problem.OVERLAP]
    assert text.startswith("block 10.0.0.2/31 of node n2 is inside block 10.0.0.0/30 of node n1")


def test_an_address_that_went_to_another_since_is_not_the_leak_of_the_report():
    site = Site()
    site.assign(demand("n1", "a", 4))
    before = look(site)
    site.release("a")
    site.assign(demand("n1", "a", 4))
    now = look(site)
    assert len(before) == len(now) == 4 and unchanged(before, now) == []
    put_right(site.store, site, before)
    assert look(site) == now  # even told to, nobody loses what was given out later
    put_right(site.store, site, unchanged(now, look(site)))
    assert look(site) == []


def test_the_addresses_of_tunnels_are_no_leak():
    site = Site()
    (address,) = site.assign(demand("n1", "vxlan-tunnel-addr-n1"))
    assert [each.problem for each in look(site)] == [Problem.LEAKED]
    node = Node(name="n1", ipv4_vxlan_tunnel_addr=parse_address(address))
    assert look(site, "n2", nodes=[node]) == []


def test_two_with_one_address_and_one_that_no_block_gave():
    site = Site()
    (one,) = site.assign(demand("n1", "a"))
    (twice,) = look(site, endpoints={"a": one, "b": one})
    assert twice.problem is Problem.TWICE and "n1-cni-a-eth0" in twice.text and "n1-cni-b-eth0" in twice.text
    free = next(each for each in ("10.0.0.0", "10.0.0.1") if each != one)
    (missing,) = look(site, endpoints={"a": one, "b": free})
    assert (missing.problem, missing.address) == (Problem.NOT_ALLOCATED, free)
    assert look(site, endpoints={"a": one, "b": "172.16.0.1"}) == []  # of no pool: not the allocator's business


def test_affinities_that_disagree():
    site = Site()
    site.assign(demand("n1", "a"))
    (block,) = site.store.blocks
    (key,) = [key for key in site.store.items if key.kind == "BlockAffinity"]
    mine = site.store.items.pop(key)
    site.release("a")
    (finding,) = look(site)
    assert (finding.problem, finding.node) == (Problem.NO_AFFINITY, "n1")
    put_right(site.store, site, [finding])
    assert look(site) == [] and site.store.items[key].value == mine.value
    for node, cidr, problem in (("n2", str(block), Problem.STALE_AFFINITY), ("n2", "10.0.0.12/30", Problem.NO_BLOCK)):
        name = f"{node}-{cidr.replace('.', '-').replace('/', '-')}"
        spec = {"node": node, "cidr": cidr, "state": "pending" if problem is Problem.NO_BLOCK else "confirmed"}
        manifest = {"apiVersion": API, "kind": "BlockAffinity", "metadata": {"name": name}, "spec": spec}
        value = parse_manifest(manifest)
        site.store.items[value.key] = type(mine)(value, "9")
        if str(block) == "10.0.0.12/30" and problem is Problem.NO_BLOCK:
            continue
        (finding,) = look(site)
        assert (finding.problem, finding.node) == (problem, "n2")
        put_right(site.store, site, [finding])
        assert look(site) == []


def test_a_confirmed_affinity_needs_no_block_to_be_right():
    """Its block is announced: who writes affinities by hand, and no blocks, must not lose a route to a repair."""
    site = Site()
    spec = {"node": "n1", "cidr": "10.0.0.0/30", "state": "confirmed"}
    value = parse_manifest(
        {"apiVersion": API, "kind": "BlockAffinity", "metadata": {"name": "n1-10-0-0-0-30"}, "spec": spec}
    )
    site.store.items[value.key] = Found(value, "1")
    assert look(site) == []


def test_a_node_that_is_gone_gives_all_back_also_what_it_borrowed():
    site = Site()
    site.assign(demand("n1", "a", 13))
    site.assign(demand("n2", "b", 2))  # borrowed: all blocks are n1's
    kept = site.assign(demand("n1", "c"))
    assert any(each.problem is Problem.NO_NODE and each.node == "n2" for each in look(site, "n1"))
    released = site.store.run(release_node(site.cluster, "n2", site.clock()))
    assert len(released) == 2 and set(site.store.handles) == {"a", "c"}
    released = site.store.run(release_node(site.cluster, "n1", site.clock()))
    assert {format_address(each) for each in released} >= set(kept)
    assert site.store.items == {}


def test_blocks_that_have_nothing_of_a_gone_node_are_not_asked_for():
    """In a large cluster that is nearly all of them, for each node."""
    site = Site()
    site.assign(demand("n1", "a", 13))
    site.assign(demand("n2", "b", 2))
    there = {block.key for block in site.store.blocks.values() if "n2" in block.nodes_of_addresses().values()}
    asked = set()
    procedure, answer = release_node(site.cluster, "n2", site.clock()), None
    with contextlib.suppress(StopIteration):
        while True:
            request = procedure.send(answer)
            if isinstance(request, Get) and request.key.kind == IPAMBlock.kind:
                asked.add(request.key)
            answer = site.store.answer(request)
    assert asked == there and 0 < len(there) < len(site.store.blocks)


STEPS = st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.booleans(), st.integers(0, 30)), max_size=12)


@settings(max_examples=60)
@given(STEPS, st.randoms(use_true_random=False))
def test_whatever_stops_half_way_can_be_put_right(steps: list[tuple[str, bool, int]], chance: random.Random):
    """Procedures that are cut off after any number of their requests leave nothing that a check does not mend."""
    site = Site()
    cluster = Cluster((SMALL,))
    for at, (node, gives, cut) in enumerate(steps):
        handle = chance.choice(sorted(site.store.handles) or ["none"])
        procedure: Any = (
            assign_addresses(cluster, demand(node, f"h{at}", 2), site.clock())
            if gives
            else release_by_handle(cluster, handle, site.clock())
        )
        answer: Any = None
        try:
            for _ in range(cut):
                answer = site.store.answer(procedure.send(answer))
        except StopIteration:
            pass
        site.clock.now += 1
    nodes = ("n1", "n2", "n3")
    for _ in range(3):  # what a release leaves of a handle, or of a claim, the next look finds
        put_right(site.store, site, look(site, *nodes))
    assert look(site, *nodes) == []
    assert site.store.handles == {}
    assert site.store.run(release_addresses(cluster, [parse_address("10.0.0.1")], site.clock())) == ()
