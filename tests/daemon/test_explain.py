"""What the daemon answers about a packet, and that a kernel with other rules is told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from errno import ENETUNREACH
from typing import Any, ClassVar, cast

import pytest

from routed.control.protocol import Request
from routed.daemon.explain import Explanations
from routed.daemon.policy import PolicyKeeper
from routed.desired import Gateway
from routed.errors import ControlError, KernelError
from routed.model.resources import Update
from routed.net.addresses import parse_address
from routed.netlink.nftables import ElementFound, RuleFound
from routed.netlink.routes import Flow
from routed.observed import Interface
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
    interfaces: ClassVar = {
        2: Interface(2, "eth0", True, ((parse_address("192.0.2.1"), 24),)),
        3: Interface(3, "eth1", True, ((parse_address("198.51.100.1"), 24),)),
        7: Interface(7, interface_of(WEB), True),
    }


def no_way(flow: Flow) -> Gateway | None:  # noqa: ARG001 - it has none for any
    raise KernelError(ENETUNREACH, "", "asking for a route")


def kept() -> PolicyKeeper:
    """A keeper whose kernel has all that was made."""
    keeper = PolicyKeeper("n1", lambda _: None, lambda *_: None)
    for value in (workload(WEB), workload(API), profile("red", {}), policy(POLICY)):
        keeper.engine.update(Update(value.key, value))
    batch = keeper.engine.flush()
    assert batch is not None
    keeper.firewall.change(batch)
    return keeper


def explained(
    rules: list[str],
    strange: frozenset[ElementFound] = frozenset(),
    way_of: Callable[[Flow], Gateway | None] = no_way,
    **values: str,
) -> dict[str, Any]:
    keeper = kept()

    async def found(sets: list[str]) -> tuple[list[RuleFound], dict[str, set[ElementFound]]]:
        chain = next(chain for chain in keeper.firewall.program.chains if chain.name.startswith("red_knp_default_web"))
        listed = [RuleFound(f"p_{chain.name}", number, rule, 7, 700) for number, rule in enumerate(rules)]
        found = {name: keeper.firewall.elements_of(name) for name in sets}
        return listed, {name: each ^ strange if name.startswith("by_") else each for name, each in found.items()}

    keeper.kernel.look = found  # type: ignore[method-assign, assignment]
    asked = {"source": "10.65.0.1", "destination": "10.65.0.2", "protocol": "6", "port": "80"} | values
    answer = asyncio.run(Explanations(cast("Any", Core()), keeper, "n1", way_of).answer(Request("policy", dict(asked))))
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


def test_of_several_ways_out_it_is_the_kernel_s():
    asked: list[Flow] = []

    def by_eth1(flow: Flow) -> Gateway:
        asked.append(flow)
        return Gateway(parse_address("198.51.100.254"), 3)

    answer = explained([RULE], destination="10.99.0.9", way_of=by_eth1)
    assert (answer["outgoing"], answer["outgoingBy"]) == ("eth1", "as the kernel routes it, via 198.51.100.254")
    assert (answer["incoming"], answer["incomingBy"]) == (interface_of(WEB), "the pod's own")
    assert asked == [Flow(parse_address("10.99.0.9"), parse_address("10.65.0.1"), 7, 6, 32768, 80)]
    assert explained([RULE], destination="10.99.0.9", tunnel="tunl0", way_of=by_eth1)["outgoing"] == "eth1"


def test_what_comes_from_elsewhere_comes_in_where_the_kernel_would_answer_to():
    def by_eth0(flow: Flow) -> Gateway | None:
        return Gateway(b"", 2) if flow == Flow(parse_address("10.99.0.9")) else no_way(flow)

    answer = explained([RULE], source="10.99.0.9", way_of=by_eth0)
    assert (answer["incoming"], answer["incomingBy"]) == ("eth0", "the kernel's way back to it")
    assert answer["outgoing"] == interface_of(API)


def test_a_way_is_asked_for_again_without_who_sends_where_the_kernel_would_not_take_it_in_there():
    def without_source(flow: Flow) -> Gateway | None:
        return no_way(flow) if flow.source else Gateway(b"", 3)

    assert explained([RULE], destination="10.99.0.9", way_of=without_source)["outgoing"] == "eth1"


def test_where_the_kernel_knows_no_way_it_says_what_there_would_be():
    answer = explained([RULE], destination="198.51.100.7")
    assert (answer["outgoing"], answer["outgoingBy"]) == (
        "eth1",
        "the network it is on, though the kernel knows no way",
    )
    answer = explained([RULE], destination="10.99.0.9")
    assert (answer["outgoing"], answer["outgoingBy"]) == ("uplink", "nobody knows which: the kernel knows no way")


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
