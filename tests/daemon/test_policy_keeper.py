"""What the keeper makes of policies that cannot be read, in whatever order the datastore tells of them."""

from __future__ import annotations

import json

import pytest

from routed.daemon.policy import PolicyKeeper
from routed.datastore.file import Problem
from routed.desired_policy import Place
from routed.model.resources import Update
from routed.model.schema import parse_manifest
from routed.policy.judge import FirewallModel
from tests.policy.nodes import workload
from tests.policy.specification import Endpoint

WIDE = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "GlobalNetworkPolicy",
    "metadata": {"name": "wide"},
    "spec": {"selector": "app == 'db'", "types": ["Ingress"]},
}
GARBAGE = Problem("etcd", 0, "", "is not JSON", json.dumps({**WIDE, "spec": None}))
BROKEN = Problem("etcd", 0, "", "order", json.dumps({**WIDE, "spec": {**WIDE["spec"], "order": "first"}}))
POD = Endpoint("pod", "db", "red", {"app": "db"}, "n1", ("10.65.0.1",))


def bug(where: str, error: Exception) -> None:
    raise AssertionError(where) from error


def tiers(keeper: PolicyKeeper) -> list[str]:
    """Those asked about what comes to the pod."""
    model = FirewallModel()
    batch = keeper.engine.flush()
    assert batch is not None
    model.apply(batch)
    policy = model.endpoints[Place.WORKLOAD, "cali0"]
    assert policy.ingress is not None
    return [tier.name for tier in policy.ingress.tiers]


@pytest.mark.parametrize("first", ["the policy", "that it is broken"])
def test_the_last_good_version_of_a_global_policy_stays(first: str):
    """A start from saved state tells of the two in either order."""
    keeper = PolicyKeeper("n1", lambda _: None, bug)
    good, pod = parse_manifest(WIDE), workload(POD, "cali0")
    keeper.update(Update(pod.key, pod))
    steps = [lambda: keeper.update(Update(good.key, good)), lambda: keeper.unreadable((GARBAGE,))]
    for step in steps if first == "the policy" else reversed(steps):
        step()
    assert tiers(keeper) == ["default"]
    assert "its last good version stays" in keeper.problems[0]


@pytest.mark.parametrize("first", ["the policy", "that it is broken"])
def test_a_selector_that_can_be_read_closes_whatever_else_is_wrong(first: str):
    keeper = PolicyKeeper("n1", lambda _: None, bug)
    good, pod = parse_manifest(WIDE), workload(POD, "cali0")
    keeper.update(Update(pod.key, pod))
    steps = [lambda: keeper.update(Update(good.key, good)), lambda: keeper.unreadable((BROKEN,))]
    for step in steps if first == "the policy" else reversed(steps):
        step()
    assert tiers(keeper) == ["policies that cannot be read"]
    keeper.unreadable(())
    assert tiers(keeper) == ["default"]
    (problem,) = keeper.problems
    assert problem.startswith("WorkloadEndpoint red/n1-k8s-db-eth0: there is no Profile kns.red, so it allows nothing")
