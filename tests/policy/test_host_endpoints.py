"""Host endpoints on the model: which interfaces each is for, and what a policy that cannot be read closes there."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest

from routed.model.resources import Resource, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.policy.engine import PolicyEngine
from routed.policy.judge import FirewallModel, Packet
from routed.policy.refusals import read_refusal

OPEN = ["projectcalico-default-allow"]
FAR, NEAR, OWN = map(parse_address, ("192.0.2.9", "10.64.0.1", "192.0.2.1"))
TO_HOST = Packet(FAR, OWN, 6, 40000, 8080, incoming="eth0")
FORWARDED = Packet(FAR, NEAR, 6, 40000, 8080, incoming="eth0", outgoing="eth1")


class Node:
    def __init__(self) -> None:
        self.engine, self.model = PolicyEngine("n1"), FirewallModel()
        self.engine.interfaces({parse_address("192.0.2.1"): "eth0", parse_address("198.51.100.1"): "eth1"})

    def tell(self, *resources: Resource, gone: tuple[Resource, ...] = ()) -> None:
        for each in resources:
            self.engine.update(Update(each.key, each))
        for each in gone:
            self.engine.update(Update(each.key, None))
        self.flush()

    def flush(self) -> None:
        batch = self.engine.flush()
        if batch is not None:
            self.model.apply(batch)

    def passes(self, packet: Packet) -> bool:
        return self.model.judge(packet).admitted


def host_endpoint(name: str, **spec: Any) -> Resource:
    made = {"node": "n1", **spec}
    return parse_manifest(manifest("HostEndpoint", name, made))


def manifest(kind: str, name: str, spec: Any) -> Any:
    metadata = {"name": name, **({"labels": {"role": name}} if kind == "HostEndpoint" else {})}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def from_interface(name: str) -> Packet:
    return Packet(FAR, OWN, 6, 40000, 8080, incoming=name)


def test_all_interfaces_that_have_one_of_the_addresses_are_protected():
    node = Node()
    both = host_endpoint("both", expectedIPs=["192.0.2.1", "198.51.100.1"])
    node.tell(both)
    assert not node.passes(from_interface("eth0")) and not node.passes(from_interface("eth1"))
    assert node.passes(from_interface("eth2"))
    node.tell(host_endpoint("both", expectedIPs=["198.51.100.1"]))
    assert node.passes(from_interface("eth0")) and not node.passes(from_interface("eth1"))
    node.tell(gone=(both,))
    assert node.passes(from_interface("eth0")) and node.passes(from_interface("eth1"))


@pytest.mark.parametrize("interface", ["eth0", "*"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_several_at_an_interface_the_first_by_name_counts_whatever_came_last(order: tuple[int, ...], interface: str):
    closed = host_endpoint("aa", interfaceName=interface)
    rest = [host_endpoint("bb", interfaceName=interface, profiles=OPEN)]
    rest.append(
        parse_manifest(
            manifest("GlobalNetworkPolicy", "p", {"selector": "role == 'bb'", "ingress": [{"action": "Allow"}]})
        )
    )
    node = Node()
    for at in order:
        node.tell((closed, *rest)[at])
    assert not node.passes(TO_HOST)
    node.tell(gone=(rest[1],))
    assert not node.passes(TO_HOST)
    assert any("HostEndpoint bb: has no effect at" in problem for problem in node.engine.problems)
    node.tell(gone=(closed,))
    assert node.passes(TO_HOST) and not node.engine.problems


def test_an_endpoint_of_an_address_and_one_of_the_interface_are_at_it_together():
    node = Node()
    node.tell(host_endpoint("b", interfaceName="eth0"), host_endpoint("a", expectedIPs=["192.0.2.1"], profiles=OPEN))
    assert node.passes(TO_HOST)


@pytest.mark.parametrize(
    ("stages", "closed"),
    [
        ({}, (TO_HOST,)),
        ({"applyOnForward": True}, (TO_HOST, FORWARDED)),
        ({"applyOnForward": True, "preDNAT": True}, (TO_HOST, FORWARDED)),
        ({"applyOnForward": True, "doNotTrack": True}, (TO_HOST, FORWARDED)),
        ({"applyOnForward": "perhaps"}, (TO_HOST, FORWARDED)),
    ],
)
def test_a_policy_that_breaks_closes_where_it_was_asked(stages: dict[str, Any], closed: tuple[Packet, ...]):
    node = Node()
    node.tell(host_endpoint("host", interfaceName="eth0", profiles=OPEN))
    assert node.passes(TO_HOST) and node.passes(FORWARDED)
    spec = {"selector": "role == 'host'", "types": ["Ingress"], "ingress": [{"action": "Allowx"}], **stages}
    refusal = read_refusal(json.dumps(manifest("GlobalNetworkPolicy", "g", spec)), "why")
    assert refusal is not None
    node.engine.refuse(refusal)
    node.flush()
    assert [node.passes(each) for each in (TO_HOST, FORWARDED)] == [each not in closed for each in (TO_HOST, FORWARDED)]
    good = parse_manifest(
        manifest("GlobalNetworkPolicy", "g", {"selector": "role == 'host'", "ingress": [{"action": "Allow"}]})
    )
    node.tell(good)
    assert node.passes(TO_HOST) and node.passes(FORWARDED)
