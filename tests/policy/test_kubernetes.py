"""Kubernetes' kinds beside Calico's: what is derived, who wins, what comes back; and policies that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.model.kubernetes import Pod
from routed.model.policies import NetworkPolicy, PolicyType, Profile
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint
from routed.policy.engine import PolicyEngine
from routed.policy.kubernetes import Kubernetes
from routed.policy.refusals import read_refusal
from tests.policy.nodes import policy, profile, workload
from tests.policy.specification import Endpoint

RAW = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web", "namespace": "red"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
}


class Told:
    """What follows from updates, as last told."""

    def __init__(self) -> None:
        self.kubernetes = Kubernetes()
        self.now: dict[ResourceKey, Resource] = {}

    def tell(self, *values: Resource) -> None:
        for value in values:
            self._take(Update(value.key, value))

    def remove(self, value: Resource) -> None:
        self._take(Update(value.key, None))

    def _take(self, update: Update) -> None:
        for each in self.kubernetes.update(update):
            if each.value is None:
                self.now.pop(each.key, None)
            else:
                self.now[each.key] = each.value


def namespace(name: str, **labels: str) -> Resource:
    return parse_manifest({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {**labels}}})


def pod(name: str, ip: str = "", **labels: str) -> Resource:
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "red", "labels": labels},
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
    }
    if ip:
        manifest["status"] = {"podIP": ip, "phase": "Running"}
    return parse_manifest(manifest)


def test_a_policy_of_kubernetes_is_what_its_controllers_would_write():
    told = Told()
    told.tell(parse_manifest(RAW))
    assert told.now == {(made := policy(RAW)).key: made}
    stale = policy({**RAW, "spec": {"podSelector": {}}})
    told.tell(stale)
    assert told.now[made.key] == made
    told.remove(parse_manifest(RAW))
    assert told.now[made.key] == stale
    told.remove(stale)
    assert told.now == {}


def test_a_namespace_s_labels_are_its_profile_s_and_the_profile_s_rules_stay():
    told = Told()
    told.tell(namespace("red", team="a"))
    made = told.now[ResourceKey(Profile.kind, "kns.red")]
    assert isinstance(made, Profile) and made.ingress and made.egress
    assert made.labels_to_apply == {
        "pcns.team": "a",
        "pcns.kubernetes.io/metadata.name": "red",
        "pcns.projectcalico.org/name": "red",
    }
    stored = profile("red", {"team": "old", "gone": "x"})
    told.tell(stored)
    assert told.now[stored.key].labels_to_apply == made.labels_to_apply  # type: ignore[attr-defined]
    told.remove(namespace("red"))
    assert told.now[stored.key] == stored


def test_a_pod_s_labels_are_its_endpoint_s_as_they_change():
    told = Told()
    wired = workload(Endpoint("pod", "one", "red", {"app": "old"}, "n1", ("10.65.0.1",)))
    told.tell(wired, pod("one", app="new"))
    made = told.now[wired.key]
    assert isinstance(made, WorkloadEndpoint)
    assert made.labels["app"] == "new" and made.labels["projectcalico.org/orchestrator"] == "k8s"
    assert [(port.name, port.port) for port in made.ports] == [("web", 80)]
    told.remove(pod("one"))
    assert told.now[wired.key] == wired


def test_a_pod_s_service_account_is_its_endpoint_s():
    told = Told()
    wired = workload(Endpoint("pod", "one", "red", {}, "n1", ("10.65.0.1",)))
    raw = pod("one").manifest
    account = {**raw, "spec": {**raw["spec"], "serviceAccountName": "sa-b"}}  # type: ignore[dict-item]
    told.tell(wired, parse_manifest(account))
    made = told.now[wired.key]
    assert isinstance(made, WorkloadEndpoint)
    assert (made.service_account_name, made.profiles) == ("sa-b", ("kns.red", "ksa.red.sa-b"))
    told.tell(pod("one"))
    made = told.now[wired.key]
    assert isinstance(made, WorkloadEndpoint)
    assert (made.service_account_name, made.profiles) == ("default", ("kns.red", "ksa.red.default"))
    told.tell(replace(wired, service_account_name="default"))  # as one wrote it that knew of no such profile
    made = told.now[wired.key]
    assert isinstance(made, WorkloadEndpoint) and made.profiles == ("kns.red", "ksa.red.default")


def test_a_pod_nobody_wired_is_a_peer_until_somebody_does():
    told = Told()
    told.tell(pod("one", "10.65.0.9", app="a"))
    (made,) = told.now.values()
    assert isinstance(made, WorkloadEndpoint) and made.interface_name == "" and made.labels["app"] == "a"
    wired = workload(Endpoint("pod", "one", "red", {}, "n1", ("10.65.0.1",)))
    told.tell(wired)
    (now,) = told.now.values()
    assert isinstance(now, WorkloadEndpoint) and now.interface_name
    told.remove(wired)
    assert told.now == {made.key: made}
    told.remove(pod("one"))
    assert told.now == {}


ITEMS = (
    *(pod(name, ip, app=label) for name in ("a-b", "b") for ip in ("", "10.65.0.1") for label in "xy"),
    *(workload(Endpoint("pod", name, "red", {"app": "z"}, node, ("10.65.0.2",)))
      for name in ("a-b", "b") for node in ("n1", "n2")),
    *(namespace("red", team=team) for team in "ab"),
    profile("red", {"team": "c"}),
    parse_manifest(RAW),
    policy({**RAW, "spec": {"podSelector": {}}}),
)  # fmt: skip


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_is_finished_has_no_addresses_though_its_endpoint_is_stored(phase: str):
    told, engine = Told(), PolicyEngine("n1")
    running = pod("web", "10.65.0.1", app="web")
    assert isinstance(running, Pod)
    endpoint = workload(Endpoint("pod", "web", "red", {"app": "web"}, "n1", ("10.65.0.1",)), "calia")
    allow = {"action": "Allow", "source": {"selector": "app == 'web'"}}
    spec = {"selector": "app == 'db'", "types": ["Ingress"], "ingress": [allow]}
    manifest = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "spec": spec}
    admits = parse_manifest({**manifest, "metadata": {"name": "db", "namespace": "red"}})
    db = workload(Endpoint("pod", "db", "red", {"app": "db"}, "n1", ("10.65.0.2",)), "calib")

    def peers(value: Resource) -> tuple[set[bytes], set[bytes]]:
        told.tell(value)
        for each in told.now.values():
            engine.update(Update(each.key, each))
        batch = engine.flush()
        sets = batch.sets if batch is not None else ()
        return {each for update in sets for each in update.added}, {each for update in sets for each in update.removed}

    web = bytes((10, 65, 0, 1))
    told.tell(db, endpoint, admits, profile("red", {}))
    assert peers(running) == ({web}, set())
    assert peers(replace(running, phase=phase)) == (set(), {web})
    assert engine.interface_of(web) == "" and peers(running) == ({web}, set())


@given(st.lists(st.tuples(st.sampled_from(ITEMS), st.booleans()), max_size=12))
def test_only_the_last_state_counts(changes: list[tuple[Resource, bool]]):
    told, left = Told(), dict[ResourceKey, Resource]()
    for value, there in changes:
        if there:
            told.tell(value)
            left[value.key] = value
        else:
            told.remove(value)
            left.pop(value.key, None)
    fresh = Told()
    fresh.tell(*left.values())
    assert told.now == fresh.now


# ---- what cannot be read


def calico(spec: Any, kind: str = "NetworkPolicy", name: str = "p") -> str:
    metadata = {"name": name, **({"namespace": "red"} if kind == "NetworkPolicy" else {})}
    return json.dumps({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})


BROKEN = [{"action": "Allow", "source": {"nets": ["10.0.0.0/40"]}}]
BOTH = frozenset(PolicyType)
HOSTILE = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["b\"''c"]}]}}
"""What no selector of Calico's can say: both quotes."""
FROM_HOSTILE: Any = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [HOSTILE]}]}
BAD_NAME = {"name": 'a"; flush ruleset #', "namespace": "red"}


@pytest.mark.parametrize(
    ("text", "selector", "types"),
    [
        (calico({"selector": "app == 'a'", "ingress": BROKEN}), "app == 'a'", {PolicyType.INGRESS}),
        (calico({"selector": "app == 'a'", "egress": BROKEN}), "app == 'a'", {PolicyType.EGRESS}),
        (calico({"selector": "app == 'a'", "types": ["Ingress", "Egress"], "ingress": BROKEN}), "app == 'a'", BOTH),
        (calico({"selector": "app == 'a'", "types": ["Inside"]}), "app == 'a'", set()),
        (calico({"selector": "app = 'a'"}), None, set()),
        (calico({"selector": "app = 'a'"}, "GlobalNetworkPolicy"), None, set()),
        (calico({"selector": "app = 'a'", "types": ["Inside"]}, "GlobalNetworkPolicy"), None, set()),
        (calico({"selector": "app == 'a'"}).replace('"apiVersion": "projectcalico.org/v3", ', ""), "app == 'a'",
         {PolicyType.INGRESS}),
        (calico({"selector": "app == 'a'", "egress": BROKEN}).replace("projectcalico.org/v3", "x/v9"), "app == 'a'",
         {PolicyType.EGRESS}),
        (calico([]), None, set()),
        (calico({"selector": "has(x)", "ingress": BROKEN}, "GlobalNetworkPolicy"), "has(x)", {PolicyType.INGRESS}),
        (json.dumps({**RAW, "spec": {**RAW["spec"], "egress": [{"to": 7}]}}), "app == 'web'", BOTH),  # type: ignore[dict-item]
        (json.dumps({**RAW, "spec": {"podSelector": 7}}), None, set()),
        (json.dumps({**RAW, "spec": {"podSelector": {"matchLabels": {"a b": "c"}}}}), None, set()),
        (json.dumps({**RAW, "spec": FROM_HOSTILE}), "app == 'web'", {PolicyType.INGRESS}),
        (json.dumps({**RAW, "metadata": BAD_NAME}), "app == 'web'", {PolicyType.INGRESS}),
        (json.dumps({**RAW, "apiVersion": "extensions/v1beta1"}), "app == 'web'", {PolicyType.INGRESS}),
        (calico({"selector": "app == 'a'", "types": ["Egress"]}, name="ж" * 110), "app == 'a'", {PolicyType.EGRESS}),
    ],
)  # fmt: skip
def test_what_is_left_of_a_broken_policy(text: str, selector: str | None, types: set[PolicyType]):
    refusal = read_refusal(text, "why")
    assert refusal is not None and refusal.types == types
    assert (refusal.selector is None) is (selector is None)
    if selector is not None:
        assert selector.replace("'", '"') in str(refusal.selector).replace("'", '"')
    assert refusal.key.kind in (NetworkPolicy.kind, "GlobalNetworkPolicy")


@pytest.mark.parametrize(
    ("spec", "stages"),
    [
        ({}, (False, False, False, False)),
        ({"applyOnForward": True}, (True, False, False, False)),
        ({"applyOnForward": True, "preDNAT": True}, (True, True, False, False)),
        ({"applyOnForward": True, "doNotTrack": True}, (True, False, True, False)),
        ({"applyOnForward": "perhaps"}, (False, False, False, True)),
        ({"applyOnForward": True, "preDNAT": True, "doNotTrack": True}, (False, False, False, True)),
    ],
)
def test_where_a_broken_policy_is_asked(spec: Any, stages: tuple[bool, ...]):
    text = calico({"selector": "has(x)", "ingress": BROKEN, **spec}, "GlobalNetworkPolicy")
    refusal = read_refusal(text, "why")
    assert refusal is not None and refusal.selector is not None and refusal.types == {PolicyType.INGRESS}
    found = (refusal.apply_on_forward, refusal.pre_dnat, refusal.do_not_track, refusal.anywhere)
    assert found == stages


NOT_POLICIES = ["", "7", "{}", '{"kind": "IPPool", "metadata": {"name": "x"}}', calico({})[:-1] + ', "metadata": 7}']


@pytest.mark.parametrize("text", NOT_POLICIES)
def test_what_is_no_policy(text: str):
    assert read_refusal(text, "why") is None
