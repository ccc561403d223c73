"""Policies compiled and judged: Kubernetes' own cases, and any worlds against the specification, changed step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.desired_policy import Place, SetKind, Side
from routed.model.resources import Resource, Update
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint
from routed.policy.engine import SLICE, PolicyEngine
from routed.policy.judge import FirewallModel
from tests.policy.cases import FILE, cases, steps
from tests.policy.nodes import Nodes, policy, profile, workload
from tests.policy.specification import Connection, Endpoint, World, admitted


@pytest.mark.skipif(not FILE.exists(), reason=f"the corpus {FILE.name} is not here")
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case['id']}-{case['title'].replace(' ', '-')}")
def test_kubernetes_own_cases(case: dict[str, Any]):
    nodes = Nodes([node["name"] for node in case["nodes"]])
    wrong = []
    for step in steps(case):
        nodes.become(step.world, step.pods)
        for probe in step.probes:
            judgement = nodes.judge(probe.connection)
            if judgement.admitted is not probe.expected:
                wrong.append(f"{step.title}: {probe.text}: {judgement}, expected {probe.expected}")
    assert wrong == []


# ---- any worlds

LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b"]), max_size=2)
NAMESPACES = ("red", "blue")
PORT_NAMES = ("web", "dns")
PORTS = (80, 81, 443)

EXPRESSIONS = st.fixed_dictionaries(
    {"key": st.sampled_from(["app", "tier"]), "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"])}
).flatmap(
    lambda each: (
        st.just(each)
        if each["operator"] in ("Exists", "DoesNotExist")
        else st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2, unique=True).map(
            lambda values: {**each, "values": values}
        )
    )
)
SELECTORS = st.fixed_dictionaries(
    {}, optional={"matchLabels": LABELS, "matchExpressions": st.lists(EXPRESSIONS, max_size=1)}
)
NAMESPACE_SELECTORS = SELECTORS | st.sampled_from(NAMESPACES).map(
    lambda name: {"matchLabels": {"kubernetes.io/metadata.name": name}}
)
BLOCKS = st.sampled_from(
    [
        {"cidr": "10.0.0.0/16"},
        {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]},
        {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.0.2.7/32"]},
        {"cidr": "192.0.2.0/24"},
        {"cidr": "fd00::/16", "except": ["fd00:0:1::/48"]},
        {"cidr": "::/0"},
    ]
)
PEERS = st.one_of(
    st.fixed_dictionaries({"podSelector": SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": NAMESPACE_SELECTORS}),
    st.fixed_dictionaries({"podSelector": SELECTORS, "namespaceSelector": NAMESPACE_SELECTORS}),
    st.fixed_dictionaries({"ipBlock": BLOCKS}),
)
POLICY_PORTS = st.fixed_dictionaries(
    {}, optional={"protocol": st.sampled_from(["TCP", "UDP"]), "port": st.sampled_from([*PORTS, *PORT_NAMES])}
) | st.just({"port": 80, "endPort": 90})


def rules(side: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(
        st.fixed_dictionaries(
            {}, optional={side: st.lists(PEERS, max_size=2), "ports": st.lists(POLICY_PORTS, max_size=2)}
        ),
        max_size=2,
    )


POLICIES = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(NAMESPACES),
        "spec": st.fixed_dictionaries(
            {"podSelector": SELECTORS},
            optional={
                "ingress": rules("from"),
                "egress": rules("to"),
                "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
            },
        ),
    }
)
POD_PORTS = st.dictionaries(
    st.sampled_from(PORT_NAMES), st.tuples(st.sampled_from(["TCP", "UDP"]), st.sampled_from(PORTS)), max_size=2
)


@st.composite
def pods(draw: st.DrawFn) -> tuple[Endpoint, ...]:
    made = []
    for number in range(draw(st.integers(2, 4))):
        node = draw(st.sampled_from(["n1", "n2"]))
        third = 1 if node == "n1" else 2
        made.append(
            Endpoint(
                "pod",
                f"pod-{number}",
                draw(st.sampled_from(NAMESPACES)),
                draw(LABELS),
                node,
                (f"10.0.{third}.{number + 1}", f"fd00:0:{third}::{number + 1}"),
                tuple((name, protocol, port) for name, (protocol, port) in draw(POD_PORTS).items()),
            )
        )
    return tuple(made)


WORLDS = st.tuples(st.lists(POLICIES, max_size=3), st.tuples(LABELS, LABELS), pods())
OUTSIDE = Endpoint("ext", "outside", addresses=("192.0.2.7", "2001:db8::7"))


def world_of(policies: list[dict[str, Any]], labels: tuple[dict[str, str], dict[str, str]]) -> World:
    return World(
        [
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": f"p{number}", "namespace": each["namespace"]},
                "spec": each["spec"],
            }
            for number, each in enumerate(policies)
        ],
        {name: {**each, "kubernetes.io/metadata.name": name} for name, each in zip(NAMESPACES, labels, strict=True)},
    )


@settings(max_examples=75, deadline=None)
@given(st.lists(WORLDS, min_size=1, max_size=3), st.sampled_from(["TCP", "UDP"]), st.sampled_from(PORTS), st.booleans())
def test_any_worlds_one_after_the_other(
    worlds: list[tuple[Any, Any, tuple[Endpoint, ...]]], protocol: str, port: int, ipv6: bool
):
    """What is enforced after any changes is what the specification says of the last state."""
    nodes = Nodes(["n1", "n2"])
    for policies, labels, here in worlds:
        world = world_of(policies, labels)
        nodes.become(world, here)
        for source in (*here, OUTSIDE):
            for destination in (*here, OUTSIDE):
                if source == destination:
                    continue
                connection = Connection(source, destination, protocol, port, ipv6)
                judgement = nodes.judge(connection)
                assert judgement.admitted is admitted(world, connection), (source.name, destination.name, judgement)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORLDS, min_size=2, max_size=4))
def test_changes_lead_where_a_new_start_would(worlds: list[tuple[Any, Any, tuple[Endpoint, ...]]]):
    """Nothing is left over: the program after changes is the program of an engine that only saw the end."""
    changed, fresh = Nodes(["n1"]), Nodes(["n1"])
    for policies, labels, here in worlds:
        changed.become(world_of(policies, labels), here)
    policies, labels, here = worlds[-1]
    fresh.become(world_of(policies, labels), here)
    one, other = changed.firewalls["n1"], fresh.firewalls["n1"]
    assert one.chains == other.chains
    assert one.endpoints == other.endpoints
    assert {name: members for name, (_, members) in one.sets.items()} == {
        name: members for name, (_, members) in other.sets.items()
    }


def test_an_interface_that_goes_from_one_pod_to_another_in_one_change():
    """Whichever of the two is looked at first: the new one's policy stays."""
    for old, new in (("a", "b"), ("b", "a")):
        nodes = Nodes(["n1"])
        for name in (old, new):
            pod = Endpoint("pod", name, "red", {}, "n1", ("10.0.1.1",))
            nodes.apply([workload(pod, "cali0"), profile("red", {})])
            assert (Place.WORKLOAD, "cali0") in nodes.firewalls["n1"].endpoints


def test_of_two_that_name_one_interface_the_other_one_has_it_when_the_first_goes():
    """A pod whose interface another endpoint named for a moment is not cut off when that one is put right."""
    nodes = Nodes(["n1"])
    first = Endpoint("pod", "a", "red", {}, "n1", ("10.0.1.1",))
    other = Endpoint("pod", "b", "red", {}, "n1", ("10.0.1.2",))
    a, b, doubled = workload(first, "cali0"), workload(other, "cali1"), workload(first, "cali1")
    nodes.apply([a, b, profile("red", {})])
    before = dict(nodes.firewalls["n1"].endpoints)
    for _ in range(2):
        nodes.apply([doubled, b, profile("red", {})])
        assert any("has the interface cali1, as" in each for each in nodes.engines["n1"].problems)
        nodes.apply([a, b, profile("red", {})])
        assert nodes.firewalls["n1"].endpoints == before
        assert not nodes.engines["n1"].problems
    nodes.apply([a, replace(b, interface_name="cali0"), profile("red", {})])
    nodes.apply([replace(b, interface_name="cali0"), profile("red", {})])
    assert set(nodes.firewalls["n1"].endpoints) == {(Place.WORKLOAD, "cali0")}


def test_behind_a_profile_that_is_not_there_none_is_asked():
    pod = Endpoint("pod", "a", "red", {}, "n1", ("10.0.1.1",))
    endpoint = workload(pod)
    assert isinstance(endpoint, WorkloadEndpoint)
    nodes, probe = Nodes(["n1"]), Connection(OUTSIDE, pod, "TCP", 80)
    for profiles, admits in ((("kns.red", "lacking"), True), (("lacking", "kns.red"), False), ((), False)):
        nodes.apply([replace(endpoint, profiles=profiles), profile("red", {})])
        assert nodes.judge(probe).admitted is admits


def test_a_set_that_is_needed_again_in_the_turn_it_was_given_up_keeps_nothing_it_lost():
    """A policy's name changes, and who it lets in, at once."""

    def step(name: str, good: str) -> tuple[World, tuple[Endpoint, ...]]:
        peer = {"podSelector": {"matchLabels": {"role": "good"}}}
        spec = {"podSelector": {"matchLabels": {"role": "server"}}, "ingress": [{"from": [peer]}]}
        pods = tuple(
            Endpoint("pod", pod, "red", {"role": role}, "n1", (f"10.0.1.{number}",))
            for number, (pod, role) in enumerate(
                [("a", "server"), *((pod, "good" if pod in good else "bad") for pod in "bcd")], 1
            )
        )
        manifest = {"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "red"}, "spec": spec}
        return World([{"apiVersion": "networking.k8s.io/v1", **manifest}], {"red": {}}), pods

    nodes = Nodes(["n1"])
    for name, good in (("one", "bc"), ("two", "bd"), ("three", "c")):
        world, pods = step(name, good)
        nodes.become(world, pods)
        admits = {pod.name for pod in pods[1:] if nodes.judge(Connection(pod, pods[0], "TCP", 80)).admitted}
        assert admits == set(good)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_what_changes_between_two_slices_is_in_the_same_program(changes: list[tuple[int, int, int]]):
    """One engine works a little after every change, the other in one go at the end: they say the same."""
    sliced, whole = PolicyEngine("n1"), PolicyEngine("n1")
    for number, namespace in enumerate(NAMESPACES):
        made = profile(namespace, {"team": str(number)})
        for engine in (sliced, whole):
            engine.update(Update(made.key, made))
    for which, value, slices in changes:
        update = _change(which, value)
        for engine in (sliced, whole):
            engine.update(update)
        for _ in range(slices):
            sliced.work(1)
    told = []
    for engine in (sliced, whole):
        model, batch = FirewallModel(), engine.flush()
        if batch is not None:
            model.apply(batch)
        told.append((model.sets, model.chains, model.endpoints))
    assert told[0] == told[1]


def _change(which: int, value: int) -> Update:
    """A pod or a policy becomes another one, or goes."""
    namespace = NAMESPACES[which % 2]
    made: Resource
    if which < 6:
        labels = {"app": "ab"[value % 2], **({"tier": "a"} if value % 3 else {})}
        pod = Endpoint("pod", f"p{which}", namespace, labels, "n1" if which < 4 else "n2", (f"10.0.0.{which}",))
        made = workload(pod, f"cali{which}")
    else:
        peer = [
            {"podSelector": {"matchLabels": {"app": "a"}}},
            {"namespaceSelector": {"matchLabels": {"team": str(value % 2)}}},
            {"ipBlock": {"cidr": "10.0.0.0/24"}},
        ][value % 3]
        made = policy(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": f"p{which}", "namespace": namespace},
                "spec": {
                    "podSelector": {"matchLabels": {"app": "ab"[value // 3]}},
                    "ingress": [{"from": [peer], "ports": [{"port": 80}]}],
                },
            }
        )
    return Update(made.key, None if value == 5 else made)


def test_a_slice_is_bounded_by_policies_walks_and_members():
    engine = PolicyEngine("n1")
    pods = [
        Endpoint("pod", f"p{n}", "red", {"app": f"a{n % 50}"}, "n1" if n < 50 else "n2", (f"10.{n >> 8}.{n & 255}.1",))
        for n in range(3_000)
    ]
    for made in (profile("red", {}), *(workload(pod, f"cali{n}") for n, pod in enumerate(pods))):
        engine.update(Update(made.key, made))
    for number in range(200):
        peer = {"matchLabels": {"app": f"a{number % 50}"}} if number % 20 else {}
        spec = {
            "podSelector": {"matchLabels": {"app": f"a{number % 50}"}},
            "ingress": [{"from": [{"podSelector": peer}]}],
        }
        manifest = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec}
        made = policy({**manifest, "metadata": {"name": f"p{number}", "namespace": "red"}})
        engine.update(Update(made.key, made))
    slices = 1
    while engine.work():
        slices += 1
        assert slices < 1_000
    assert slices > (50 + 200) // SLICE
    batch = engine.flush()
    assert batch is not None
    assert len(batch.chains) == 200 + 2  # and the two of the profile
    # everybody is in one set, which is made once however many policies name it
    assert max(len(update.added) for update in batch.sets) == 3_000


def test_networks_that_rules_name_one_by_one_are_no_sets():
    """The kernel looks for a set by walking through all there are, and published lists of networks are long."""
    here = Endpoint("pod", "a", "red", {"app": "a"}, "n1", ("10.0.0.1", "fd00::1"))
    blocks = [{"ipBlock": {"cidr": f"20.0.{n}.0/24", "except": [f"20.0.{n}.0/30"]}} for n in range(100)]
    spec = {"podSelector": {}, "ingress": [{"from": blocks}, {"from": [{"ipBlock": {"cidr": "fd00::/8"}}]}]}
    manifest = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec}
    several = {"source": {"nets": ["30.0.0.0/8", "31.0.0.0/8"]}, "action": "Allow"}
    calico = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "several"},
        "spec": {"selector": "all()", "ingress": [several], "types": ["Ingress"]},
    }
    engine = PolicyEngine("n1")
    for made in (
        profile("red", {}),
        workload(here, "cali0"),
        policy({**manifest, "metadata": {"name": "p", "namespace": "red"}}),
        parse_manifest(calico),
    ):
        engine.update(Update(made.key, made))
    while engine.work():
        pass
    batch = engine.flush()
    assert batch is not None
    assert [(update.spec.kind, len(update.added)) for update in batch.sets] == [(SetKind.NETS, 2)]
    (rules,) = (each.chain.rules for each in batch.chains if each.chain and len(each.chain.rules) == 101)
    assert rules[7].source == Side(net=bytes([24, 20, 0, 7]), not_net=bytes([30, 20, 0, 7, 0]))
    assert rules[100].source == Side(net=bytes([8, 0xFD]))


def test_what_only_a_set_loses_is_in_the_program_without_another_slice():
    here = Endpoint("pod", "a", "red", {"app": "a"}, "n1", ("10.0.0.1",))
    only = policy(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "red"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]},
        }
    )
    engine = PolicyEngine("n1")
    for each in (profile("red", {}), workload(here), only):
        engine.update(Update(each.key, each))
    assert engine.flush() is not None
    moved = workload(replace(here, labels={"app": "b"}))
    engine.update(Update(moved.key, moved))
    batch = engine.flush()
    assert batch is not None
    assert [each.removed for each in batch.sets] == [frozenset((b"\x0a\x00\x00\x01",))]


def test_of_a_set_that_changes_only_what_differs_is_touched():
    engine = PolicyEngine("n1")

    def told(kind: str, name: str, spec: dict[str, Any]) -> tuple[tuple[frozenset[bytes], frozenset[bytes]], ...]:
        made = parse_manifest(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": kind,
                "metadata": {"name": name, "labels": {"list": "bad"}},
                "spec": spec,
            }
        )
        engine.update(Update(made.key, made))
        batch = engine.flush()
        return tuple((each.added, each.removed) for each in batch.sets) if batch is not None else ()

    pod = workload(Endpoint("pod", "a", "red", {"pod": "a"}, "n1", ("10.65.0.1",)), "calia")
    for resource in (profile("red", {}), pod):
        engine.update(Update(resource.key, resource))
    deny = {"action": "Deny", "source": {"selector": "list == 'bad'"}}
    told("GlobalNetworkPolicy", "closed", {"selector": "pod == 'a'", "types": ["Ingress"], "ingress": [deny]})
    nets = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.3.0.0/16"]
    first, second, third, fourth = (bytes((16, 10, number)) for number in range(1, 5))
    assert (frozenset((first, second, third)), frozenset()) in told("GlobalNetworkSet", "list", {"nets": nets})
    assert told("GlobalNetworkSet", "list", {"nets": [*nets[1:3], "10.4.0.0/16"]}) == (
        (frozenset((fourth,)), frozenset((first,))),
    )
    assert told("GlobalNetworkSet", "list", {"nets": ["10.4.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]}) == ()
