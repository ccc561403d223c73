"""The allocator's protocol: alone, against others at work between any two steps, and stopped at any step."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.ipam.allocator import (
    Cluster,
    Demand,
    Found,
    assign_addresses,
    assign_specific,
    block_at,
    block_count,
    block_key,
    claim,
    in_search_order,
    owner_of,
    pool_of,
    release_addresses,
    release_affinity,
    release_by_handle,
    search_order,
    usable_pools,
)
from routed.ipam.blocks import Owner, address_at
from routed.ipam.holders import Holder
from routed.model.ipam import IPAMConfig
from routed.model.resources import AllowedUse, AssignmentMode, Cidr, IPPool
from routed.model.selector import All, parse_selector
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.net.prefixes import covers, parse_prefix
from tests.ipam.stores import MemoryStore, TestClock
from tests.policy.nodes import workload
from tests.policy.specification import Endpoint

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def pool(name: str, cidr: str, block_size: int, **values: Any) -> IPPool:
    defaults = {"node_selector": All(), "allowed_uses": (AllowedUse.WORKLOAD, AllowedUse.TUNNEL)}
    return IPPool(name=name, cidr=Cidr(*parse_prefix(cidr)), block_size=block_size, **(defaults | values))


SMALL = pool("small", "10.0.0.0/28", 30)
"""Four blocks of four addresses."""
STRICT = IPAMConfig(name="default", strict_affinity=True, auto_allocate_blocks=True)


def demand(node: str, handle: str, count: int = 1, family: Family = V4, **values: Any) -> Demand:
    return Demand(node, {"rack": node[-1]}, Owner(handle, {"node": node}), family, count, **values)


class Site:
    def __init__(self, *pools: IPPool, **values: Any) -> None:
        self.store = MemoryStore()
        self.clock = TestClock()
        self.cluster = Cluster(pools or (SMALL,), **values)

    def assign(self, wanted: Demand) -> list[str]:
        outcome = self.store.run(assign_addresses(self.cluster, wanted, self.clock()))
        self.reason = outcome.reason
        assert len(outcome.pools) == len(outcome.addresses)
        return [format_address(each) for each in outcome.addresses]

    def release(self, handle: str) -> list[str]:
        return [format_address(each) for each in self.store.run(release_by_handle(self.cluster, handle, self.clock()))]

    def check(self) -> None:
        """What must hold whenever nobody is at work."""
        check(self.store)


def check(store: MemoryStore, *, exact_handles: bool = True) -> dict[bytes, str]:
    """Who has which address; everything agrees."""
    owners: dict[bytes, str] = {}
    counted: dict[str, Counter[Cidr]] = {}
    for cidr, block in store.blocks.items():
        for ordinal in range(len(block.allocations)):
            owner = block.owner(ordinal)
            if owner is not None:
                assert owner.handle_id is not None
                owners[address_at(block, ordinal)] = owner.handle_id
                counted.setdefault(owner.handle_id, Counter())[cidr] += 1
    for handle, blocks in counted.items():
        for cidr, count in blocks.items():
            there = store.handles.get(handle, {}).get(cidr, 0)
            assert there == count if exact_handles else there >= count, (handle, cidr)
    if exact_handles:
        assert store.handles.keys() == counted.keys()
    return owners


def test_a_node_takes_a_block_and_then_the_next():
    site = Site()
    first = site.assign(demand("n1", "a", 3))
    assert len(first) == 3 and len(site.store.blocks) == 1
    second = site.assign(demand("n1", "b", 3))
    assert len({*first, *second}) == 6 and len(site.store.blocks) == 2
    assert all(affinity.is_confirmed and affinity.node == "n1" for affinity in site.store.affinities)
    site.check()
    assert len(site.release("a")) == 3 and site.release("a") == []
    assert len(site.store.blocks) == 2  # a node keeps its blocks
    site.check()


def test_it_counts_up_in_the_order_of_calico():
    site = Site()
    (first,) = site.assign(demand("n1", "a"))
    site.release("a")
    assert [site.assign(demand("n1", f"h{number}"))[0] for number in range(4)][-1] == first


def test_two_nodes_two_blocks():
    site = Site()
    one, other = site.assign(demand("n1", "a")), site.assign(demand("n2", "b"))
    blocks = {str(affinity.cidr): affinity.node for affinity in site.store.affinities}
    assert sorted(blocks.values()) == ["n1", "n2"] and one != other


def test_a_full_pool_is_borrowed_from_and_strict_affinity_forbids_it():
    for config, expected in ((IPAMConfig(name="default", auto_allocate_blocks=True), 1), (STRICT, 0)):
        site = Site(config=config)
        assert len(site.assign(demand("n1", "a", 13))) == 13  # all four blocks are n1's
        assert len(site.assign(demand("n2", "b"))) == expected
        if not expected:
            assert "no block is free in small" in site.reason and "strictAffinity" in site.reason
        site.check()
        assert {affinity.node for affinity in site.store.affinities} == {"n1"}


def test_only_blocks_that_are_there_are_borrowed_from():
    """A /48 of IPv6 has 2^74 blocks: nobody may walk them."""
    wide = pool("wide", "fd00:244::/48", 122)
    site = Site(wide, SMALL, config=IPAMConfig(name="default", auto_allocate_blocks=True))
    site.assign(demand("n1", "a", family=V6))
    site.assign(demand("n3", "of-another-family"))
    site.cluster = replace(site.cluster, config=IPAMConfig(name="default", auto_allocate_blocks=False))
    (borrowed,) = site.assign(demand("n2", "b", family=V6))
    assert borrowed.startswith("fd00:244:") and len(site.store.blocks) == 2
    site.check()


def test_a_block_that_is_all_reserved_is_nobodys():
    """It would give no address, and every call would claim one more."""
    halves = (Cidr(*parse_prefix("10.0.0.0/31")), Cidr(*parse_prefix("10.0.0.2/31")))
    site = Site(reserved=(Cidr(*parse_prefix("10.0.0.8/29")), *halves))
    assert len(site.assign(demand("n1", "a", 9))) == 4
    assert list(map(str, site.store.blocks)) == ["10.0.0.4/30"]
    assert site.reason == "no block is free in small"
    wide = pool("wide", "fd00:244::/48", 122)
    for reserved in ("fd00:244::/49", "fd00:244:0:8000::/49"):
        site = Site(wide, reserved=(Cidr(*parse_prefix(reserved)),))
        assert len(site.assign(demand("n1", "a", family=V6))) == 1
    site = Site(wide, reserved=(Cidr(*parse_prefix("fd00::/16")),))
    assert site.assign(demand("n1", "a", family=V6)) == [] and not site.store.blocks


def test_pools_asked_for_are_tried_in_their_order_and_all_must_be_there():
    site = Site(
        pool("a", "10.0.0.0/30", 30), pool("b", "10.0.1.0/30", 30), pool("off", "10.0.2.0/30", 30, disabled=True)
    )
    (first,) = site.assign(demand("n1", "one", pools=("b", "10.0.0.0/30")))
    assert first.startswith("10.0.1.")
    (second,) = site.assign(demand("n2", "two", pools=("10.0.0.0/30", "b")))
    assert second.startswith("10.0.0.")
    for wrong, why in (("off", "disabled"), ("nope", "not there")):
        assert site.assign(demand("n1", "four", pools=("a", wrong))) == []
        assert site.reason == f"the pool asked for, {wrong}, is {why}"


def test_the_limit_of_blocks_counts_those_of_the_pools_in_question():
    site = Site(SMALL, pool("other", "10.0.1.0/28", 30), config=replace(STRICT, max_blocks_per_host=1))
    assert len(site.assign(demand("n1", "a", 4, pools=("other",)))) == 4
    assert len(site.assign(demand("n1", "b", 4, pools=("small",)))) == 4
    assert len(site.assign(demand("n1", "c", pools=("small",)))) == 0


@given(st.sets(st.integers(0, 63)), st.text("abc", min_size=1))
def test_blocks_that_are_there_come_in_the_order_of_the_search(numbers: set[int], node: str):
    there = {block_at(pool("p", "10.0.0.0/24", 30), number) for number in numbers}
    elsewhere = {block_at(pool("other", "10.0.1.0/24", 30), 1), block_at(pool("six", "fd00::/64", 122), 1)}
    small = pool("p", "10.0.0.0/24", 30)
    assert in_search_order(small, node, there | elsewhere) == [
        each for each in search_order(small, node) if each in there
    ]


def test_nothing_left_is_said():
    site = Site()
    assert len(site.assign(demand("n1", "a", 20))) == 16
    assert site.reason == "no block is free in small"


def test_addresses_that_nobody_has_and_nobody_is_given_are_said():
    site = Site(config=replace(STRICT, ip_cooldown=300.0), reserved=(Cidr(*parse_prefix("10.0.0.0/31")),))
    assert len(site.assign(demand("n1", "a", 3))) == 3
    assert len(site.assign(demand("n1", "b", 20))) == 11
    site.release("a")
    assert site.assign(demand("n1", "c")) == []
    first, *others = site.reason.split("; ")
    assert first == "no block is free in small" and "strictAffinity" in others[0]
    assert others[1].startswith("3 of the node's addresses cool down for 300 s (ipCooldownSeconds), the first since 20")
    assert others[2].startswith("2 are reserved or in use elsewhere")


def test_pools_that_nothing_is_drawn_from_are_said_with_the_reason():
    elsewhere = parse_selector("rack == 'other'")
    others = (
        pool("a", "10.1.0.0/28", 30, disabled=True),
        pool("b", "10.2.0.0/28", 30, allowed_uses=(AllowedUse.TUNNEL,)),
        pool("c", "10.3.0.0/28", 30, assignment_mode=AssignmentMode.MANUAL),
        pool("d", "10.4.0.0/28", 30, node_selector=elsewhere),
        pool("e", "10.5.0.0/28", 30, namespace_selector=elsewhere),
        pool("v6", "fd00:244::/120", 122, disabled=True),
    )
    said = (
        "a is disabled, b is for other uses (allowedUses), c is only for who asks for it (assignmentMode), "
        "d is for other nodes (nodeSelector), e is for other namespaces (namespaceSelector)"
    )
    site = Site(*others)
    assert site.assign(demand("n1", "x")) == []
    assert site.reason == f"there is no enabled pool of this family for it; {said}"
    site = Site(*others, SMALL)
    assert len(site.assign(demand("n1", "x", 17))) == 16
    assert site.reason == f"no block is free in small; {said}"
    site = Site(*(pool(f"p{each}", f"10.{each}.0.0/28", 30, disabled=True) for each in range(1, 9)))
    assert site.assign(demand("n1", "x")) == [] and site.reason.endswith("p5 is disabled and 3 more")
    site = Site(pool("v6", "fd00:244::/120", 122, disabled=True))
    assert site.assign(demand("n1", "x")) == [] and site.reason == "there is no enabled pool of this family for it"


def test_limits_of_blocks():
    site = Site(config=replace(STRICT, max_blocks_per_host=1))
    assert len(site.assign(demand("n1", "a", 6))) == 4
    assert "node n1 has 1 blocks of small, the limit" in site.reason
    site = Site(config=IPAMConfig(name="default", auto_allocate_blocks=False))
    assert site.assign(demand("n1", "a")) == [] and "autoAllocateBlocks" in site.reason
    site = Site()
    assert len(site.assign(demand("n1", "a", 6, maximum_blocks=1))) == 4


def test_reservations():
    site = Site(reserved=(Cidr(*parse_prefix("10.0.0.0/29")), Cidr(*parse_prefix("10.0.0.9"))))
    given = site.assign(demand("n1", "a", 16))
    assert sorted(given, key=parse_address) == [f"10.0.0.{number}" for number in (8, 10, 11, 12, 13, 14, 15)]


POOLS = (
    pool("all", "10.0.0.0/24", 26),
    pool("rack", "10.0.1.0/24", 26, node_selector=parse_selector("rack == '1'")),
    pool("team", "10.0.2.0/24", 26, namespace_selector=parse_selector("team == 'a'")),
    pool("manual", "10.0.3.0/24", 26, assignment_mode=AssignmentMode.MANUAL),
    pool("off", "10.0.4.0/24", 26, disabled=True),
    pool("tunnels", "10.0.5.0/24", 26, allowed_uses=(AllowedUse.TUNNEL,)),
    pool("six", "fd00::/64", 122),
)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ["all", "rack"]),
        ({"node": "n2"}, ["all"]),
        ({"namespace_labels": {"team": "a"}}, ["all", "rack", "team"]),
        ({"pools": ("manual",)}, ["manual"]),
        ({"pools": ("10.0.1.0/24",), "node": "n2"}, ["rack"]),
        ({"pools": ("off",)}, []),
        ({"use": AllowedUse.TUNNEL}, ["all", "rack", "tunnels"]),
        ({"family": V6}, ["six"]),
        ({"family": V6, "pools": ("all",)}, []),
    ],
)
def test_which_pools_a_demand_may_use(values: dict[str, Any], names: list[str]):
    node = values.pop("node", "n1")
    wanted = demand(node, "h", **values)
    pools, reason = usable_pools(Cluster(POOLS), wanted)
    assert [each.name for each in pools] == names
    assert bool(reason) is not bool(pools)


def test_addresses_by_name():
    site = Site()

    def ask(address: str, node: str = "n1", **values: Any) -> tuple[list[str], str]:
        wanted = demand(node, f"h-{address}", **values)
        outcome = site.store.run(assign_specific(site.cluster, wanted, parse_address(address), site.clock()))
        return [format_address(each) for each in outcome.addresses], outcome.reason

    assert ask("10.0.0.5") == (["10.0.0.5"], "")
    assert ask("10.0.0.5") == ([], "somebody has it, or it is cooling down")
    assert ask("10.0.0.6", "n2") == (["10.0.0.6"], "")
    assert ask("192.0.2.1") == ([], "it is in no enabled pool")
    assert ask("10.0.0.7", use=AllowedUse.LOAD_BALANCER)[0] == []
    site.cluster = replace(site.cluster, config=STRICT)
    assert "belongs to n1" in ask("10.0.0.7", "n2")[1]
    site.check()


@pytest.mark.parametrize(("before", "now"), [(26, 29), (29, 26)])
def test_a_pool_made_again_with_another_block_size(before: int, now: int):
    """The blocks of the size it had stay their nodes', and no new one has an address of theirs."""
    site = Site(pool("p", "10.50.0.0/25", before))
    old = site.assign(demand("n1", "a", 3)) + site.assign(demand("n2", "b", 1))
    site.cluster = Cluster((pool("p", "10.50.0.0/25", now),))
    assert site.assign(demand("n1", "c"))[0] not in old  # its own block goes on giving
    taken = [each for number in range(30) for each in site.assign(demand(f"n{number % 3 + 1}", f"d{number}"))]
    # two blocks of eight leave no room for one of 64: what they have is all there is
    assert len(set(taken + old)) == len(taken + old) == {26: 4 + 30, 29: 16 - 1}[before]
    cidrs = sorted(site.store.blocks)
    assert {cidr.prefix[0] for cidr in cidrs} >= {before}
    for one, other in itertools.combinations(cidrs, 2):
        assert not covers(one.prefix, other.prefix) and not covers(other.prefix, one.prefix), (str(one), str(other))
    again = parse_address(old[1])
    outcome = site.store.run(assign_specific(site.cluster, demand("n3", "x"), again, site.clock()))
    assert outcome.reason == "somebody has it, or it is cooling down"
    found = site.store.run(owner_of(site.cluster, again))
    assert found is not None and found.handle_id == "a"
    assert site.store.run(release_addresses(site.cluster, [again], site.clock())) == (again,)
    assert site.store.run(assign_specific(site.cluster, demand("n1", "x"), again, site.clock())).addresses == (again,)
    site.check()


@given(st.lists(st.integers(0, 2), max_size=120), st.lists(st.sampled_from([25, 26, 28, 30]), min_size=3, max_size=3))
def test_nodes_for_which_a_pool_has_different_block_sizes_claim_at_once(order: list[int], sizes: list[int]) -> None:
    """Whatever is done in between any two steps, no two blocks overlap when all are done."""
    store, clock = MemoryStore(), TestClock()
    procedures = {
        number: assign_addresses(
            Cluster((pool("p", "10.50.0.0/25", size),), STRICT), demand(f"n{number}", f"h{number}"), clock()
        )
        for number, size in enumerate(sizes)
    }
    answers: dict[int, Any] = dict.fromkeys(procedures)
    given: dict[int, tuple[bytes, ...]] = {}
    for number in itertools.chain(order, itertools.cycle(procedures)):
        if len(given) == len(procedures):
            break
        if number not in given:
            try:
                answers[number] = store.answer(procedures[number].send(answers[number]))
            except StopIteration as done:
                given[number] = done.value.addresses
    blocks = list(store.blocks)
    assert not [(one, other) for one, other in itertools.combinations(blocks, 2) if one.overlaps(other)]
    addresses = [each for found in given.values() for each in found]
    assert addresses and len(set(addresses)) == len(addresses)


def test_an_address_by_name_claims_no_block_over_those_of_another_size():
    site = Site(pool("p", "10.50.0.0/30", 31))
    (first,) = site.assign(demand("n2", "a"))
    site.cluster = Cluster((pool("p", "10.50.0.0/29", 29),))
    (block,) = site.store.blocks
    other = next(
        each for each in ("10.50.0.1", "10.50.0.3") if each != first and int(each[-1]) // 2 != int(first[-1]) // 2
    )
    outcome = site.store.run(assign_specific(site.cluster, demand("n1", "x"), parse_address(other), site.clock()))
    assert outcome.reason == "blocks of another size are in its block 10.50.0.0/29"
    assert list(site.store.blocks) == [block]


def test_cooldown_of_addresses():
    site = Site(config=IPAMConfig(name="default", auto_allocate_blocks=True, ip_cooldown=60))
    given = site.assign(demand("n1", "a", 16))
    site.release("a")
    site.clock.now += 30
    assert site.assign(demand("n1", "b")) == []
    site.clock.now += 31
    assert set(site.assign(demand("n1", "b", 16))) == set(given)
    site.check()


def test_release_by_address_and_what_is_nobody_s_goes():
    site = Site()
    given = site.assign(demand("n1", "a", 2))
    (cidr,) = site.store.blocks
    assert site.store.run(release_affinity("n1", cidr))
    assert site.store.affinities == [] and site.store.blocks[cidr].affinity is None
    addresses = [parse_address(each) for each in (*given, "192.0.2.1", "10.0.0.15")]
    wrong = site.store.run(release_addresses(site.cluster, addresses, site.clock(), handle="other"))
    assert wrong == ()
    released = site.store.run(release_addresses(site.cluster, addresses, site.clock()))
    assert [format_address(each) for each in released] == sorted(given)
    assert not site.store.items  # the block went with its last address, and so did the handle


def test_an_empty_block_is_given_up_whole():
    site = Site()
    site.assign(demand("n1", "a"))
    site.release("a")
    (cidr,) = site.store.blocks
    assert site.store.run(release_affinity("n1", cidr, only_empty=True))
    assert not site.store.items


def test_a_long_empty_block_of_another_node_is_taken_over():
    site = Site(config=STRICT)
    site.assign(demand("n1", "a", 16))
    site.release("a")
    assert site.assign(demand("n2", "b")) == []  # too young
    site.clock.now += 61
    assert len(site.assign(demand("n2", "b"))) == 1
    assert Counter(affinity.node for affinity in site.store.affinities) == {"n1": 3, "n2": 1}
    site.check()


def test_ipv6():
    site = Site(pool("six", "fd00::/120", 122))
    (address,) = site.assign(demand("n1", "a", family=V6))
    assert pool_of(site.cluster.pools, V6, parse_address(address)) is not None
    site.check()


@pytest.mark.parametrize("state", ["pending", "confirmed"])
def test_half_a_claim_of_before_is_finished(state: str):
    """A crash after the affinity was written: pending, or (by others) confirmed without its block."""
    site = Site()
    cidr = next(search_order(SMALL, "n1"))
    procedure = claim(cidr, "n1", site.clock())
    answer: Any = None
    for _ in range(2 if state == "pending" else 6):
        answer = site.store.answer(procedure.send(answer))
    if state == "confirmed":
        found = site.store.items.pop(block_key(cidr))
        assert found is not None
    (before,) = site.store.affinities
    assert before.state.value == state
    (address,) = site.assign(demand("n1", "a"))
    assert address_at(site.store.blocks[cidr], 0) == parse_address(address)
    (affinity,) = site.store.affinities
    assert affinity.is_confirmed


def test_an_affinity_to_another_node_s_block_is_no_promise():
    site = Site()
    first = next(search_order(SMALL, "n1"))
    site.store.run(claim(first, "n2", site.clock()))
    procedure = claim(first, "n1", site.clock())
    answer: Any = None
    for _ in range(2):  # only the affinity is written
        answer = site.store.answer(procedure.send(answer))
    assert {affinity.node for affinity in site.store.affinities} == {"n1", "n2"}
    site.assign(demand("n1", "a"))
    assert site.store.blocks[first].host == "n2"
    assert not any(affinity.node == "n1" and affinity.cidr == first for affinity in site.store.affinities)


def test_where_a_node_looks_first():
    starts = Counter(next(search_order(pool("p", "10.0.0.0/16", 26), f"node-{number}")) for number in range(200))
    assert len(starts) > 140  # they rarely meet
    assert sorted(search_order(SMALL, "x")) == [
        Cidr(V4, parse_prefix(f"10.0.0.{number}/30")[1]) for number in range(0, 16, 4)
    ]
    assert block_count(SMALL) == 4


# ---- many at once


def interleave(
    store: MemoryStore, procedures: dict[str, Any], rng: random.Random, crash: float = 0.0
) -> dict[str, Any]:
    """Run procedures a step at a time in any order; some crash for good before a step. Results by name."""
    answers: dict[str, Any] = dict.fromkeys(procedures)
    results: dict[str, Any] = {}
    waiting = sorted(procedures)
    while waiting:
        name = rng.choice(waiting)
        if rng.random() < crash:
            waiting.remove(name)
            continue
        try:
            answers[name] = store.answer(procedures[name].send(answers[name]))
        except StopIteration as done:
            results[name] = done.value
            waiting.remove(name)
    return results


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(2, 5))
def test_contention(seed: int, strict: bool, count: int):
    """Nobody's address is another's too, and everything agrees once all are done."""
    rng = random.Random(seed)
    site = Site(config=STRICT if strict else IPAMConfig(name="default", auto_allocate_blocks=True))
    clock = site.clock()
    for round_number in range(3):
        held = check(site.store)
        procedures: dict[str, Any] = {}
        for number in range(count):
            node = f"n{number % 3}"
            procedures[f"assign{number}"] = assign_addresses(
                site.cluster, demand(node, f"h{round_number}-{number}", rng.randint(1, 4)), clock
            )
        for handle in rng.sample(sorted(set(held.values())), min(2, len(set(held.values())))):
            procedures[f"release {handle}"] = release_by_handle(site.cluster, handle, clock)
        if rng.random() < 0.3 and site.store.blocks:
            cidr = rng.choice(sorted(site.store.blocks))
            procedures["give up"] = release_affinity(site.store.blocks[cidr].host or "n0", cidr)
        results = interleave(site.store, procedures, rng)
        owners = check(site.store)
        for number in range(count):
            given = results[f"assign{number}"].addresses
            assert all(owners[address] == f"h{round_number}-{number}" for address in given)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes(seed: int):
    """Whoever stops half-way leaks nothing that releasing its handle does not put right, and blocks nobody."""
    rng = random.Random(seed)
    site = Site()
    clock = site.clock()
    procedures: dict[str, Any] = {
        f"h{number}": assign_addresses(site.cluster, demand(f"n{number % 3}", f"h{number}", rng.randint(1, 3)), clock)
        for number in range(5)
    }
    results = interleave(site.store, procedures, rng, crash=0.1)
    owners = check(site.store, exact_handles=False)
    for name, outcome in results.items():
        assert all(owners[address] == name for address in outcome.addresses)
    for name in procedures:
        site.release(name)
    assert check(site.store) == {}
    everything = site.assign(demand("n9", "all", 16))
    held_by_none = [block for block in site.store.blocks.values() if block.host is None]
    assert len(everything) == 16 and not held_by_none
    site.check()


def test_addresses_that_somebody_has_are_given_to_nobody():
    """Whatever the blocks say: they may be lost, and begin anew."""
    has = {parse_address("10.0.0.1"): Holder("pod a", "n1"), parse_address("10.0.0.5"): Holder("pod b", "n2")}
    site = Site(held=has.get)
    given = site.assign(demand("n1", "h", 16))
    assert len(given) == 14 and not {"10.0.0.1", "10.0.0.5"} & {*given}
    site.check()
    wanted = demand("n1", "x")
    outcome = site.store.run(assign_specific(site.cluster, wanted, parse_address("10.0.0.5"), site.clock()))
    assert (outcome.addresses, outcome.reason) == ((), "pod b has it")
    site.cluster = replace(site.cluster, held=lambda _: None)
    assert site.assign(demand("n1", "y", 3)) == ["10.0.0.1", "10.0.0.5"]


def test_an_address_is_given_whose_holder_has_just_gone():
    """The datastore has the endpoint no more, and here nobody has heard of it yet."""
    address, endpoint = (
        parse_address("10.0.0.5"),
        workload(Endpoint("pod", "b", "default", {}, "n2", ("10.0.0.5",)), "cali1"),
    )
    site = Site(held={address: Holder("pod b", "n2", endpoint.key)}.get)
    wanted = demand("n1", "x")

    def asked() -> tuple[tuple[bytes, ...], str]:
        outcome = site.store.run(assign_specific(site.cluster, wanted, address, site.clock()))
        return outcome.addresses, outcome.reason

    assert asked() == ((), "pod b has it"), "its block is lost: the pod may live on"
    site.assign(demand("n1", "a", 16))
    site.release("a")
    site.store.items[endpoint.key] = Found(endpoint, "1")
    assert asked() == ((), "pod b has it")
    del site.store.items[endpoint.key]
    assert asked() == ((address,), "")


def test_a_lost_block_is_left_to_the_node_whose_pods_are_in_it_while_there_are_others():
    others = {parse_address(f"10.0.0.{number}"): Holder("pod", "n2") for number in range(1, 13, 4)}
    site = Site(held=others.get)
    site.assign(demand("n1", "a", 4))
    assert [str(block) for block in site.store.blocks] == ["10.0.0.12/30"]
    assert len(site.assign(demand("n1", "b", 2))) == 2
    assert len(site.store.blocks) == 2  # rather than nothing


def test_an_empty_block_of_a_node_with_pods_in_it_is_not_taken_from_it():
    has: dict[bytes, Holder] = {}
    site = Site(held=has.get)
    blocks = [block for number in range(4) if (block := site.assign(demand("n2", f"h{number}", 4)))]
    assert len(blocks) == 4
    for number in range(4):
        site.release(f"h{number}")
    has |= {parse_address(each[0]): Holder("pod", "n2") for each in blocks}
    site.clock.now += 3600
    site.cluster = replace(site.cluster, config=STRICT)
    assert site.assign(demand("n1", "x")) == [] and "no block is free" in site.reason
    has.clear()
    assert len(site.assign(demand("n1", "x"))) == 1


def test_a_block_whose_claim_got_lost_is_the_nodes_own_again():
    site = Site()
    site.assign(demand("n1", "a", 2))
    (affinity,) = [key for key in site.store.items if key.kind == "BlockAffinity"]
    del site.store.items[affinity]
    assert len(site.assign(demand("n1", "b", 2))) == 2
    assert len(site.store.blocks) == 1 and affinity in site.store.items
    site.check()
    del site.store.items[affinity]  # now that it is full, another is taken
    assert len(site.assign(demand("n1", "c"))) == 1 and len(site.store.blocks) == 2


def test_empty_blocks_are_given_up_where_no_pool_at_all_is_for_the_node():
    site = Site(pool("small", "10.0.0.0/28", 30))
    site.assign(demand("n1", "a", 2))
    site.release("a")
    assert len(site.store.blocks) == 1
    site.cluster = Cluster((pool("small", "10.0.0.0/28", 30, node_selector=parse_selector("rack == 'other'")),))
    assert site.assign(demand("n1", "b")) == [] and "small is for other nodes (nodeSelector)" in site.reason
    assert not site.store.blocks and not site.store.affinities
