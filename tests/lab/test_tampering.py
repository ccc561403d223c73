"""Somebody changes our table by hand: `policy explain` says what differs, and all is put back.

The daemon's keeper and the answer to `policy explain` on a real kernel; nft is the hand. Nothing of ours runs between the
change and the question, so the answer is about the changed kernel; then the change is noticed and undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from routed.control.protocol import Request
from routed.daemon.explain import Explanations
from tests.lab.policy_site import interface_of
from tests.lab.test_host_policy import CLIENT, PODS, A, B, Site, allow, resource
from tests.policy.nodes import twin

pytestmark = pytest.mark.lab

POLICIES = [
    resource(
        "GlobalNetworkPolicy",
        "into-b",
        {
            "selector": "pod == 'b'",
            "types": ["Ingress"],
            "ingress": [allow("TCP", 80, source={"selector": "pod == 'a'"}), allow("UDP", nets=("10.65.1.4/32",))],
        },
    ),
]
OURS = {(A, B, "TCP/80"): True, (CLIENT, B, "TCP/80"): False, (A, B, "TCP/443"): False, (CLIENT, B, "UDP/80"): True}


class Core:
    interfaces: dict[int, Any] = {}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    made.have(*POLICIES)
    yield made
    made.close()


def explained(site: Site) -> dict[str, Any]:
    asked = {"source": PODS[A], "destination": PODS[B], "protocol": "6", "port": "80"}
    answers = Explanations(cast("Any", Core()), site.keeper, "node", lambda _: None)
    answer: dict[str, Any] = site.run(answers.answer(Request("policy", dict(asked))))
    return answer


def listed(site: Site) -> str:
    return site.node.run("nft", "-s", "list", "table", "inet", "routed")


def name_in(site: Site, kind: str, part: str) -> str:
    """A set of addresses or a chain of policies of our table by a part of its definition."""
    for block in listed(site).split("\n\t}\n"):
        if f"{kind} " in block and part in block and "set own_" not in block:
            return block.split(f"{kind} ")[1].split()[0]
    raise AssertionError(f"no {kind} with {part}")


RULE = "GlobalNetworkPolicy into-b ingress 1"


def replaced(site: Site, chain: str, part: str, rule: str) -> str:
    """The command that has another rule in place of a chain's first with a part."""
    lines = site.node.run("nft", "-a", "list", "chain", "inet", "routed", chain).splitlines()
    handle = next(line.rsplit("# handle ", 1)[1] for line in lines if part in line)
    return f"replace rule inet routed {chain} handle {handle} {rule}"


def walk_to(site: Site, address: str) -> str:
    """The chain that packets to a pod are led to."""
    elements = site.node.run("nft", "list", "map", "inet", "routed", "by_to_workload")
    return elements.split(f'"{interface_of(address)}" : goto ')[1].split()[0].rstrip(",")


CHANGES = {
    "a member more": lambda site: (
        ["add", "element", "inet", "routed", name_in(site, "set", PODS[A]), "{ 192.0.2.7 }"],
        "nobody put there, 192.0.2.7",
    ),
    "a member less": lambda site: (
        ["delete", "element", "inet", "routed", name_in(site, "set", PODS[A]), f"{{ {PODS[A]} }}"],
        f"lacks {PODS[A]}",
    ),
    "a member less, IPv6": lambda site: (
        ["delete", "element", "inet", "routed", name_in(site, "set", twin(PODS[A])), f"{{ {twin(PODS[A])} }}"],
        f"lacks {twin(PODS[A])}",
    ),
    "a rule less": lambda site: (
        ["flush", "chain", "inet", "routed", name_in(site, "chain", "into-b ingress 1")],
        "the kernel has the rules []",
    ),
    "a rule more": lambda site: (
        ["insert", "rule", "inet", "routed", name_in(site, "chain", "into-b ingress 1"), "accept"],
        "the kernel has the rules ['', ",
    ),
    "another rule in a rule's place": lambda site: (
        [replaced(site, name_in(site, "chain", "into-b ingress 1"), "into-b ingress 1", f'accept comment "{RULE}"')],
        "the kernel's rule 'GlobalNetworkPolicy into-b ingress 1' is not the one that was made",
    ),
    "another rule at the beginning": lambda site: (
        [replaced(site, "forward", "ct state", "accept")],
        "chain forward: the kernel's rule 1 is not the one that was made",
    ),
    "a way past": lambda _: (
        ["insert", "rule", "inet", "routed", "forward", "accept"],
        "chain forward: the kernel has ",
    ),
    "another's source": lambda _: (
        ["add", "element", "inet", "routed", "own_6", f'{{ "{interface_of(PODS[A])}" . {twin(PODS[B])} }}'],
        f"nobody put there, {twin(PODS[B])} at the interface of index ",
    ),
    "no way in": lambda _: (
        ["delete", "element", "inet", "routed", "by_to_workload", f'{{ "{interface_of(PODS[B])}" }}'],
        f"set by_to_workload: the kernel lacks {interface_of(PODS[B])}",
    ),
    "another way": lambda _: (
        [
            (
                f'delete element inet routed by_to_workload {{ "{interface_of(PODS[B])}" }}; '
                f'add element inet routed by_to_workload {{ "{interface_of(PODS[B])}" : accept }}'
            )
        ],
        f"set by_to_workload: the kernel has {interface_of(PODS[B])} : accept, and what was made is goto w_",
    ),
    "a walk that asks nobody": lambda site: (
        ["flush", "chain", "inet", "routed", walk_to(site, PODS[B])],
        "chain w_",
    ),
    "a tier that ends in nothing": lambda site: (
        ["flush", "chain", "inet", "routed", walk_to(site, PODS[B]) + "_0"],
        "_0: the kernel has the rules []",
    ),
    "a tier that asks another policy": lambda site: (
        [replaced(site, walk_to(site, PODS[B]) + "_0", "jump p_", "accept")],
        "_0: the kernel's rule 2 is not the one that was made",
    ),
    "no table": lambda _: (["delete", "table", "inet", "routed"], "chain forward: the kernel has 0 rules"),
    "nothing at all": lambda _: (["flush", "ruleset"], "chain forward: the kernel has 0 rules"),
}


def test_a_kernel_that_is_as_it_should_be(site: Site):
    answer = explained(site)
    assert answer["differences"] == [] and answer["verdict"] == "allow"


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changed_is_told_and_undone(site: Site, change: str):
    before, rebuilds = listed(site), site.keeper.kernel.rebuilds
    words, said = CHANGES[change](site)
    site.node.run("nft", *words)
    differences = explained(site)["differences"]
    assert any(said in each for each in differences), differences

    site.run(site.made_anew(rebuilds, 60))
    assert sorted(listed(site).split()) == sorted(before.split())
    site.check(OURS)
    assert explained(site)["differences"] == []
