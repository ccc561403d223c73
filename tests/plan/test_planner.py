"""The planner as a whole: the speaker, problems, order, resets over many changes, a thousand nodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.model.resources import JsonObject, Resource, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import format_router_id, parse_address, parse_router_id
from routed.plan.diff import diff
from routed.plan.planner import Planner
from routed.plan.speaker import router_id_from_name
from routed.plan.types import PlanSettings, Speaker

if TYPE_CHECKING:
    from tests.plan.conftest import Scenario

Make = Callable[..., "Scenario"]

# ---- the speaker


def test_the_speaker(scenario: Make) -> None:
    made = scenario("""
        - {kind: BGPConfiguration, metadata: {name: node.kube-master}, spec: {listenPort: 1790}}
        - kind: Node
          metadata: {name: kube-master}
          spec: {bgp: {asNumber: 64999, ipv4Address: 10.192.0.2/16, routeReflectorClusterID: 224.0.0.1}}
    """)
    assert made.plan.speaker == Speaker(
        local_as=64999,
        router_id=parse_router_id("10.192.0.2"),
        listen_port=1790,
        cluster_id=parse_router_id("224.0.0.1"),
        ipv4_address=parse_address("10.192.0.2"),
    )


def test_router_ids(scenario: Make) -> None:
    six = '- {kind: Node, metadata: {name: kube-master}, spec: {bgp: {ipv6Address: "fd5f::2/64"}}}'
    speaker = scenario(six).plan.speaker
    assert speaker is not None and speaker.router_id == router_id_from_name("kube-master")
    chosen = scenario(six, router_id=7).plan.speaker
    assert chosen is not None and chosen.router_id == 7


@given(st.text(max_size=20))
def test_router_ids_from_names_are_host_addresses(name: str) -> None:
    assert 1 <= int(format_router_id(router_id_from_name(name)).split(".")[0]) <= 223


def test_bgp_off(scenario: Make) -> None:
    missing = scenario(node="nobody").plan
    assert (missing.speaker, missing.peers) == (None, {})
    assert missing.problems == (
        "Node nobody: there is no such resource, so BGP is off on this node; is nodeName right?",
    )
    without = scenario("- {kind: Node, metadata: {name: kube-master}, spec: {}}").plan
    assert (without.speaker, without.peers) == (None, {})
    assert without.problems == ("Node kube-master: it has no spec.bgp, so BGP is off on this node",)
    only_as = scenario("- {kind: Node, metadata: {name: kube-master}, spec: {bgp: {asNumber: 64512}}}").plan
    assert only_as.speaker is not None and only_as.peers == {}
    assert "neither ipv4Address nor ipv6Address" in only_as.problems[0]


# ---- problems


@pytest.mark.parametrize(
    ("kind", "name", "spec", "expected"),
    [
        ("BGPConfiguration", "default", "nodeMeshPassword: {secretKeyRef: {name: s, key: k}}", "spec.nodeMeshPassword"),
        ("BGPConfiguration", "default", "ipv4NormalRoutePriority: 512", "spec.ipv4NormalRoutePriority"),
        ("BGPConfiguration", "default", "logSeverityScreen: Debug", "spec.logSeverityScreen"),
        ("BGPConfiguration", "node.kube-master", "bindMode: NodeIP", "spec.bindMode"),
        ("BGPConfiguration", "other", "listenPort: 179", "nothing uses it"),
        ("IPPool", "p", "cidr: 10.244.0.0/16, vxlanMode: CrossSubnet", "spec.vxlanMode: CrossSubnet"),
    ],
)
def test_what_is_not_supported_is_said_once(scenario: Make, kind: str, name: str, spec: str, expected: str) -> None:
    made = scenario(f"- {{kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
    told = (*made.plan.problems, *made.plan.notes)
    assert [text.startswith(f"{kind} {name}: {expected}") for text in told] == [True]
    made.remove(kind, name)
    assert not made.plan.problems and not made.plan.notes


def test_ordinary_settings_are_no_problem(scenario: Make) -> None:
    assert not scenario("""
        - kind: BGPConfiguration
          metadata: {name: default}
          spec: {logSeverityScreen: Info, nodeToNodeMeshEnabled: true, asNumber: 64512, bindMode: None, listenPort: 179}
        - {kind: BGPConfiguration, metadata: {name: node.kube-node-1}, spec: {bindMode: NodeIP}}
        - {kind: IPPool, metadata: {name: p}, spec: {cidr: 10.244.0.0/16, natOutgoing: false, ipipMode: Never}}
    """).plan.problems


# ---- any order, any change


def manifest(kind: str, name: str, spec: JsonObject, labels: JsonObject | None = None) -> Resource:
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": kind,
            "metadata": {"name": name, "labels": labels or {}},
            "spec": spec,
        }
    )


def random_resource(rng: random.Random) -> tuple[ResourceKey, Resource]:
    """A resource that is none of the watched peer's business: not our Node, not the default configuration, not its
    BGPPeer, and no filter it names."""
    number = rng.randrange(40)
    octet = 10 + number
    kind = rng.choice(["Node", "BGPPeer", "BGPFilter", "IPPool", "BlockAffinity", "BGPConfiguration"])
    spec: JsonObject
    labels: JsonObject = {}
    name = f"random-{number}"
    if kind == "Node":
        bgp: JsonObject = {"ipv4Address": f"10.0.0.{octet}/24"}
        if rng.random() < 0.3:
            bgp["asNumber"] = rng.choice([64512, 64600])
        if rng.random() < 0.2:
            bgp["routeReflectorClusterID"] = rng.choice(["1.1.1.1", "2.2.2.2"])
        if rng.random() < 0.3:
            bgp["ipv6Address"] = f"fd00::{octet}/64"
        spec, labels = {"bgp": bgp}, {"rack": rng.choice(["a", "b"])}
    elif kind == "BGPPeer":
        spec = rng.choice(
            [
                {"peerIP": f"172.16.0.{octet}", "asNumber": rng.choice([64512, 65001])},
                {"nodeSelector": "rack == 'a'", "peerSelector": "rack == 'b'"},
                {"node": f"random-{rng.randrange(40)}", "peerIP": "10.0.0.1", "asNumber": 64512},
                {"node": "me", "peerIP": f"10.0.0.{octet}", "asNumber": 64512, "filters": ["random-1"]},
            ]
        )
    elif kind == "BGPFilter":
        spec = {"importV4": [{"action": rng.choice(["Accept", "Reject"]), "source": "RemotePeers"}]}
    elif kind == "IPPool":
        spec = {
            "cidr": f"10.{100 + number}.0.0/16",
            "disabled": rng.random() < 0.5,
            "disableBGPExport": rng.random() < 0.5,
        }
    elif kind == "BlockAffinity":
        node = rng.choice(["me", "random-1"])
        spec = {"node": node, "cidr": f"10.{100 + number}.1.0/26", "state": rng.choice(["confirmed", "pending"])}
    else:
        name, spec = f"node.random-{number}", {"listenPort": rng.choice([179, 1790])}
    resource = manifest(kind, name, spec, labels)
    return resource.key, resource


def base() -> list[Resource]:
    return [
        manifest("Node", "me", {"bgp": {"ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64"}}, {"rack": "a"}),
        manifest("Node", "friend", {"bgp": {"ipv4Address": "10.0.0.2/24", "ipv6Address": "fd00::2/64"}}, {"rack": "c"}),
        manifest("BGPPeer", "watched", {"node": "me", "peerIP": "192.0.2.1", "asNumber": 65001, "filters": ["mine"]}),
        manifest(
            "BGPFilter", "mine", {"importV4": [{"action": "Reject", "cidr": "0.0.0.0/0", "matchOperator": "Equal"}]}
        ),
    ]


def planner_of(*resources: Resource) -> Planner:
    planner = Planner("me", PlanSettings())
    for resource in resources:
        planner.update(Update(resource.key, resource))
    return planner


def test_hundreds_of_unrelated_changes_reset_nobody() -> None:
    rng = random.Random(20)
    planner = planner_of(*base())
    plan = planner.plan()
    watched = ("Node_192_0_2_1", "Mesh_10_0_0_2", "Mesh_fd00__2")
    assert set(watched) == set(plan.peers)
    resets = touched = changes = 0
    for _ in range(500):
        key, resource = random_resource(rng)
        planner.update(Update(key, resource if rng.random() < 0.8 else None))
        old, plan = plan, planner.plan()
        delta = diff(old, plan)
        changes += bool(delta)
        touched += any(plan.peers[name].session != old.peers[name].session for name in watched)
        resets += sum(name in delta.reset or name in delta.removed or name in delta.added for name in watched)
    assert (resets, touched) == (0, 0)
    assert changes > 150, "the changes do change plans"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_a_plan_depends_on_the_resources_only(seed: int, shuffler: random.Random) -> None:
    """Whatever order they come in, and whatever was there before."""
    rng = random.Random(seed)
    resources = {resource.key: resource for resource in base()} | dict(random_resource(rng) for _ in range(30))
    expected = planner_of(*resources.values()).plan()
    planner = Planner("me")
    order = list(resources.items())
    shuffler.shuffle(order)
    passing: set[ResourceKey] = set()
    for key, resource in order:
        other_key, other = random_resource(rng)
        passing.add(other_key)
        planner.update(Update(other_key, other))
        planner.update(Update(key, resource))
        if rng.random() < 0.3:
            planner.plan()
    for key in passing:
        planner.update(Update(key, resources.get(key)))
    plan = planner.plan()
    assert plan == expected
    assert list(plan.peers) == list(expected.peers)


def test_a_change_among_a_thousand_nodes_touches_one_peer() -> None:
    nodes = [
        manifest("Node", f"n{number}", {"bgp": {"ipv4Address": f"10.1.{number // 250}.{number % 250 + 1}/16"}})
        for number in range(1000)
    ]
    planner = planner_of(*base(), *nodes)
    plan = planner.plan()
    assert len(plan.peers) == 1003
    for number in range(5):
        changed = manifest("Node", f"n{number}", {"bgp": {"ipv4Address": f"10.2.0.{number + 1}/16"}})
        planner.update(Update(changed.key, changed))
        old, plan = plan, planner.plan()
        delta = diff(old, plan)
        assert (len(delta.added), len(delta.removed), len(delta.reset), len(delta.changed)) == (1, 1, 0, 0)

    quiet = manifest("Node", "n7", {"bgp": {"ipv4Address": "10.1.0.8/16"}, "orchRefs": [{"orchestrator": "k8s"}]})
    planner.update(Update(quiet.key, quiet))
    assert planner.plan() is plan, "a Node that only reports something else changes nothing"


def test_what_nobody_acts_on_is_told(scenario: Make) -> None:
    made = scenario("""
        - {kind: GlobalNetworkPolicy, metadata: {name: a}, spec: {selector: all()}}
        - {kind: GlobalNetworkPolicy, metadata: {name: b}, spec: {selector: all()}}
        - {kind: FelixConfiguration, metadata: {name: default}, spec: {bpfEnabled: true, ipipMTU: 1480}}
        - {kind: FelixConfiguration, metadata: {name: node.other}, spec: {bpfEnabled: true}}
        - {kind: Tier, metadata: {name: x}, spec: {order: 1}}
        - {kind: Node, metadata: {name: kube-master}, status: {wireguardPublicKey: eA==}}
    """)
    assert made.plan.notes == (
        "FelixConfiguration default: not used of it are bpfEnabled, ipipMTU",
        "GlobalNetworkPolicy a and 1 more: routed enforces no policies without cni.enabled; Felix does, if it runs",
    )
    assert made.plan.problems == ("Node kube-master: it has no spec.bgp, so BGP is off on this node",)
    planner = Planner("kube-master", PlanSettings(own_workloads=True))
    key = parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": "kube-master"},
            "spec": {"bgp": {"ipv4Address": "10.192.0.2/16"}},
            "status": {"wireguardPublicKey": "eA=="},
        }
    )
    planner.update(Update(key.key, key))
    assert planner.plan().problems == (
        "Node kube-master: status.wireguardPublicKey: nothing is encrypted, routed makes no WireGuard device",
    )
