"""What may be taken back by itself, and that nothing is before its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routed.ipam.allocator import claim, release_affinity
from routed.ipam.blocks import Owner
from routed.ipam.check import Finding, Problem, state_of
from routed.ipam.garbage import Patience, garbage
from routed.model.resources import Cidr, Node
from routed.model.schema import parse_manifest
from routed.net.prefixes import parse_prefix
from tests.ipam.test_allocator import SMALL, Site, demand

API = "projectcalico.org/v3"


def look(site: Site, *nodes: str, own: str = "") -> list[Finding]:
    stored = [found.value for found in site.store.items.values()]
    return garbage(state_of([SMALL, *stored, *(Node(name=name) for name in nodes)]), own)


def give(site: Site, node: str, handle: str | None, **secondary: str) -> str:
    (address,) = site.assign(replace(demand(node, ""), owner=Owner(handle, {"node": node, **secondary})))
    return address


def test_only_addresses_of_pods_and_containers_leak():
    site = Site()
    pod = give(site, "n1", "net.a", namespace="default", pod="a")
    container = give(site, "n1", "net.b")
    give(site, "n1", "vxlan-tunnel-addr-n1", type="vxlanTunnelAddress")
    give(site, "n1", None)
    found = look(site, "n1")
    assert sorted((each.address, each.pod) for each in found) == sorted([(pod, "default/a"), (container, "")])


def test_a_node_that_is_gone_is_one_finding():
    site = Site()
    give(site, "n1", "net.a", namespace="default", pod="a")
    give(site, "n2", "net.b", namespace="default", pod="b")
    assert [(each.problem, each.node) for each in look(site, "n1")] == [
        (Problem.LEAKED, "n1"),
        (Problem.NO_NODE, "n2"),
    ]
    assert [each.node for each in look(site, "n1", own="n1")] == ["n1"]  # a node alone takes back its own only


def spare(site: Site) -> list[str]:
    return sorted(each.cidr for each in look(site, "n1") if each.problem is Problem.SPARE)


def test_a_node_keeps_a_block_with_an_address_to_give():
    site = Site()
    blocks = [Cidr(*parse_prefix(f"10.0.0.{last}/30")) for last in (0, 4, 8)]
    for cidr in blocks:
        assert site.store.run(claim(cidr, "n1", site.clock()))
    assert spare(site) == ["10.0.0.4/30", "10.0.0.8/30"]  # all are empty: one stays
    for number in range(4):
        site.assign(demand("n1", f"net.{number}"))
    assert spare(site) == ["10.0.0.8/30"]  # the first is full: one of the others stays
    site.assign(demand("n1", "net.4"))
    assert spare(site) == ["10.0.0.8/30"]  # the second has addresses to give
    assert site.store.run(release_affinity("n1", blocks[2], only_empty=True))
    assert spare(site) == []
    assert not site.store.run(release_affinity("n1", blocks[1], only_empty=True))  # in use: it stays


def test_a_node_keeps_no_empty_block_of_a_pool_that_does_not_select_it():
    site = Site()
    blocks = [Cidr(*parse_prefix(f"10.0.0.{last}/30")) for last in (0, 4)]
    for cidr in blocks:
        assert site.store.run(claim(cidr, "n1", site.clock()))
    held = [found.value for found in site.store.items.values()]
    node = parse_manifest({"apiVersion": API, "kind": "Node", "metadata": {"name": "n1"}, "spec": {}})

    def found(**spec: str) -> list[tuple[Problem, str]]:
        pool = {"apiVersion": API, "kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/24", **spec}}
        state = state_of([parse_manifest(pool), node, *held])
        return sorted((each.problem, each.cidr) for each in garbage(state))

    assert found() == [(Problem.SPARE, "10.0.0.4/30")]
    assert found(nodeSelector="rack == 'b'") == [(Problem.SPARE, "10.0.0.0/30"), (Problem.SPARE, "10.0.0.4/30")]
    assert found(cidr="10.9.0.0/24") == [(Problem.SPARE, "10.0.0.0/30"), (Problem.SPARE, "10.0.0.4/30")]


def test_a_virtual_owner_of_blocks_is_no_missing_node():
    affinity = parse_manifest(
        {
            "apiVersion": API,
            "kind": "BlockAffinity",
            "metadata": {"name": "lb-10-0-0-0-30"},
            "spec": {"node": "load-balancer", "cidr": "10.0.0.0/30", "state": "confirmed", "type": "virtual"},
        }
    )
    assert garbage(state_of([SMALL, affinity])) == []


FINDINGS = [Finding(Problem.LEAKED, f"{number}", address=f"10.0.0.{number}") for number in range(4)]


def test_a_thing_is_waited_for_and_one_that_went_and_came_is_another():
    patience, leak = Patience(), FINDINGS[0]
    assert patience.look([leak], 0.0, 10.0) == []
    assert patience.look([leak], 9.0, 10.0) == []
    assert patience.look([], 9.5, 10.0) == []
    assert patience.look([leak], 10.0, 10.0) == []
    assert patience.look([leak], 20.0, 10.0) == [leak]
    patience.again(leak, 20.0)
    assert patience.look([leak], 25.0, 10.0) == [] and len(patience) == 1
    patience.forget()
    assert patience.look([leak], 99.0, 0.0) == []  # never at the first look
    assert patience.look([leak], 99.5, 0.0) == [leak]


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.sets(st.sampled_from(FINDINGS))), max_size=20), st.floats(0.0, 10.0))
def test_nothing_is_due_that_was_not_found_at_every_look_for_the_grace_period(looks: list[Any], grace: float):
    patience, now = Patience(), 0.0
    seen: list[tuple[float, set[Finding]]] = []
    for pause, found in looks:
        now += pause
        seen.append((now, found))
        for each in patience.look(found, now, grace):
            unbroken = []
            for at, there in reversed(seen):
                if each not in there:
                    break
                unbroken.append(at)
            assert len(unbroken) >= 2 and now - unbroken[-1] >= grace
