"""What the daemon answers about a packet, and that a kernel with other rules is told apart."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from routed.control.protocol import Request
from routed.daemon.explain import Explanations
from routed.daemon.policy import PolicyKeeper
from routed.errors import ControlError
from routed.model.resources import Update
from routed.netlink.nftables import ElementFound, RuleFound
from tests.policy.nodes import interface_of, policy, profile, workload
from tests.policy.specification import Endpoint

WEB = Endpoint("pod", "web", "red", {"app": "web"}, "n1", ("10.65.0.1",))
API = Endpoint("pod", "api", "red", {"app": "api"}, "n1", ("10.65.0.2",))
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web", "namespace": "red"},
    "spec": {"podSelector": {"matchLabels": {"app": "api"}}, "ingress": [{"ports": [{"port": 80}]}]},
}


class Core:
    interfaces: dict[int, Any] = {}


def kept() -> PolicyKeeper:
    """A keeper whose kernel has all that was made."""
    keeper = PolicyKeeper("n1", lambda _: None, lambda *_: None)
    for value in (workload(WEB), workload(API), profile("red", {}), policy(POLICY)):
        keeper.engine.update(Update(value.key, value))
    batch = keeper.engine.flush()
    assert batch is not None
    keeper.firewall.change(batch)
    return keeper


def explained(rules: list[str], strange: frozenset[ElementFound] = frozenset(), **values: str) -> dict[str, Any]:
    keeper = kept()

    async def found(sets: list[str]) -> tuple[list[RuleFound], dict[str, set[ElementFound]]]:
        chain = next(chain for chain in keeper.firewall.program.chains if chain.name.startswith("red_knp_default_web"))
        listed = [RuleFound(f"p_{chain.name}", number, rule, 7, 700) for number, rule in enumerate(rules)]
        found = {name: keeper.firewall.elements_of(name) for name in sets}
        return listed, {name: each ^ strange if name.startswith("by_") else each for name, each in found.items()}

    keeper.kernel.look = found  # type: ignore[method-assign, assignment]
    asked = {"source": "10.65.0.1", "destination": "10.65.0.2", "protocol": "6", "port": "80"} | values
    answer = asyncio.run(Explanations(cast("Any", Core()), keeper, "n1").answer(Request("policy", dict(asked))))
    return cast("dict[str, Any]", answer)


RULE = "NetworkPolicy red/knp.default.web ingress 1"


def test_a_packet_between_two_pods_of_the_node():
    answer = explained([RULE])
    assert (answer["verdict"], answer["reason"]) == ("allow", RULE)
    assert (answer["incoming"], answer["outgoing"]) == (interface_of(WEB), interface_of(API))
    assert [step["direction"] for step in answer["steps"]] == ["egress", "ingress"]
    rules = [each for chain in answer["chains"] for each in chain["rules"]]
    assert {"rule": RULE, "packets": 7, "bytes": 700} in rules
    assert explained([RULE], port="81")["verdict"] == "deny"


def test_a_kernel_with_other_rules_disagrees():
    (difference, *_) = [each for each in explained([])["differences"] if "knp_default_web" in each]
    assert RULE in difference and "the kernel has the rules []" in difference


def test_sets_with_other_members_disagree():
    api = interface_of(API).encode().ljust(16, b"\x00")
    (way,) = {each for each in kept().firewall.elements_of("by_to_workload") if each.key == api}
    said = explained([RULE], frozenset({way}))["differences"]
    assert any("set by_to_workload: the kernel lacks " + interface_of(API) in each for each in said)
    said = explained([RULE], frozenset({ElementFound(b"cali0".ljust(16, b"\x00"))}))["differences"]
    assert any("the kernel has, and nobody put there, cali0" in each for each in said)


def test_what_comes_from_another_node_or_goes_there_passes_as_it_is_said_to():
    there = {"tunnel": "vxlan.calico", "translated": "192.0.2.9"}
    answer = explained([RULE], destination="10.65.9.9", **there)
    assert (answer["source"], answer["incoming"], answer["outgoing"]) == (
        "10.65.0.1",
        interface_of(WEB),
        "vxlan.calico",
    )
    answer = explained([RULE], source="10.65.9.9", **there)
    assert (answer["source"], answer["incoming"], answer["outgoing"]) == (
        "192.0.2.9",
        "vxlan.calico",
        interface_of(API),
    )


@pytest.mark.parametrize(
    "values",
    [
        {"source": "web"},
        {"protocol": "tcp"},
        {"port": "70000"},
        {"destination": "fd00::1"},
        {"tunnel": "eth0"},
        {"translated": "fd00::1"},
    ],
    ids=str,
)
def test_what_is_no_packet(values: dict[str, str]):
    with pytest.raises(ControlError):
        explained([], **values)
