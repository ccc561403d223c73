"""What the keeper makes of policies that cannot be read, in whatever order the datastore tells of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from routed.daemon.policy import PolicyKeeper
from routed.datastore.file import Problem
from routed.desired_policy import Place, PolicyBatch
from routed.model.resources import Update
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.observed import Interface
from routed.policy.engine import SLICE
from routed.policy.judge import FirewallModel, Packet
from tests.policy.nodes import profile, workload
from tests.policy.specification import Endpoint

WIDE: dict[str, Any] = {
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


def admits(keeper: PolicyKeeper, model: FirewallModel, interface: str = "cali0") -> bool:
    """A packet from outside to the pod at an interface, after what was told has been worked off."""
    batch = keeper.engine.flush()
    if batch is not None:
        model.apply(batch)
    outside, inside = parse_address("192.0.2.9"), parse_address("10.65.0.1")
    return model.judge(Packet(outside, inside, 6, 32768, 80, incoming="eth0", outgoing=interface)).admitted


@pytest.mark.parametrize("action", ["Allow", "Deny"])
def test_a_global_policy_that_breaks_in_two_steps_is_as_it_last_was(action: str):
    keeper, model = PolicyKeeper("n1", lambda _: None, bug), FirewallModel()
    rules = {**WIDE["spec"], "types": ["Ingress"], "ingress": [{"action": action}]}
    good, pod, open_namespace = parse_manifest({**WIDE, "spec": rules}), workload(POD, "cali0"), profile("red", {})
    for each in (open_namespace, good, pod):
        keeper.update(Update(each.key, each))
    assert admits(keeper, model) is (action == "Allow")
    keeper.unreadable((BROKEN,))
    assert not admits(keeper, model), "what it selects is closed"
    keeper.unreadable((GARBAGE,))
    assert admits(keeper, model) is (action == "Allow")
    assert "its last good version stays" in keeper.problems[0]
    other = workload(replace(POD, name="later"), "cali1")  # and everything is asked anew
    tier = parse_manifest(
        {"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "t"}, "spec": {"order": 3}}
    )
    for each in (other, tier):
        keeper.update(Update(each.key, each))
    assert admits(keeper, model) is admits(keeper, model, "cali1") is (action == "Allow")


def test_a_global_policy_that_was_never_good_goes_on_to_close_what_it_closes():
    keeper, model = PolicyKeeper("n1", lambda _: None, bug), FirewallModel()
    for each in (profile("red", {}), workload(POD, "cali0")):
        keeper.update(Update(each.key, each))
    keeper.unreadable((BROKEN,))
    assert not admits(keeper, model)
    keeper.unreadable((GARBAGE,))
    assert not admits(keeper, model) and "what it selects is closed" in keeper.problems[0]
    keeper.unreadable(())
    assert admits(keeper, model)


def test_a_global_policy_none_of_whose_versions_was_good_is_told_as_that():
    keeper, model = PolicyKeeper("n1", lambda _: None, bug), FirewallModel()
    for each in (profile("red", {}), workload(POD, "cali0")):
        keeper.update(Update(each.key, each))
    keeper.unreadable((GARBAGE,))
    assert admits(keeper, model)
    assert "none of its versions was good, so it enforces nothing" in keeper.problems[0]


class Kernel:
    """Takes batches."""

    def __init__(self) -> None:
        self.batches: list[PolicyBatch] = []

    def apply(self, batch: PolicyBatch) -> None:
        self.batches.append(batch)

    def start(self) -> None: ...

    async def settled(self) -> None: ...


def test_the_loop_has_a_turn_between_two_slices_of_a_large_program(monkeypatch: pytest.MonkeyPatch):
    keeper = PolicyKeeper("n1", lambda _: None, bug)
    kernel = Kernel()
    monkeypatch.setattr(keeper, "kernel", kernel)
    done: list[int] = []
    """Slices of work at each turn of the loop."""
    work = keeper.engine.work

    def counted(limit: int = SLICE) -> bool:
        done[-1] += 1
        return work(limit)

    monkeypatch.setattr(keeper.engine, "work", counted)

    async def run() -> None:
        keeper.start()
        pod = workload(POD, "cali0")
        keeper.update(Update(pod.key, pod))
        for number in range(10 * SLICE):
            made = parse_manifest({**WIDE, "metadata": {"name": f"wide{number}"}})
            keeper.update(Update(made.key, made))
        await asyncio.sleep(0)
        assert done == []  # nothing before the datastore was read
        keeper.in_sync()
        while not kernel.batches:
            done.append(0)
            await asyncio.sleep(0)
            assert len(done) < 100
        assert max(done) <= 2  # the last slice, and that nothing is left
        assert sum(done) > 10
        assert len(kernel.batches[0].chains) == 10 * SLICE
        # a pod that waits for its policy waits for all of it
        for number in range(5 * SLICE):
            made = parse_manifest({**WIDE, "metadata": {"name": f"more{number}"}})
            keeper.update(Update(made.key, made))
        done.append(0)
        await keeper.settled()
        assert len(kernel.batches[1].chains) == 5 * SLICE

    asyncio.run(run())


def test_interfaces_that_come_go_and_change_their_names_are_told_by_what_they_are_now():
    keeper, told = PolicyKeeper("n1", lambda _: None, bug), dict[str, int]()

    def taken() -> dict[str, int]:
        told.update(keeper._moved)
        keeper._moved = {}
        return {name: index for name, index in told.items() if index}

    keeper.interfaces({5: Interface(5, "cali0", True), 6: Interface(6, "cali1", True)})
    assert taken() == {"cali0": 5, "cali1": 6}
    keeper.links((Interface(5, "cali1", True), Interface(6, "cali0", True)), ())
    assert taken() == {"cali0": 6, "cali1": 5}
    keeper.links((Interface(9, "cali0", False),), (6,))  # made anew in one turn
    assert taken() == {"cali0": 9, "cali1": 5}
    keeper.links((Interface(9, "cali0", True),), ())
    assert not keeper._moved, "nothing but its state changed"
    keeper.links((), (5, 77))
    assert taken() == {"cali0": 9} and told["cali1"] == 0
    keeper.interfaces({2: Interface(2, "eth0", True)})
    assert taken() == {"eth0": 2}
