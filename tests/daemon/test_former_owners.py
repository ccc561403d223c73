"""Which addresses' connections go when the cluster's endpoints change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from routed.core.effects import Level
from routed.daemon import former_owners
from routed.daemon.former_owners import FormerOwners
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import format_address
from tests.policy.nodes import workload
from tests.policy.specification import Endpoint


def endpoint(name: str, *addresses: str, node: str = "n2", container: str = "") -> WorkloadEndpoint:
    made = workload(Endpoint("pod", name, "red", {}, node, addresses))
    assert isinstance(made, WorkloadEndpoint)
    return replace(made, container_id=container or name)


A, B = "10.65.0.1", "10.65.0.2"


def gone(one: WorkloadEndpoint) -> Update:
    return Update(one.key, None)


def there(one: WorkloadEndpoint) -> Update:
    return Update(one.key, one)


def forgotten(*turns: list[Update], answer: str = "", said: list[str] | None = None) -> list[str]:
    """What is looked for where these updates come, each list of them at once."""
    known: dict[ResourceKey, Resource] = {}
    asked: list[str] = []
    lines: list[str] = [] if said is None else said

    def forget(addresses: Iterable[bytes]) -> str:
        asked.extend(map(format_address, addresses))
        return answer

    def log(level: Level, subject: str, text: str) -> None:
        assert level is Level.WARNING
        lines.append(f"{subject}: {text}")

    async def in_force() -> None:
        pass

    async def run() -> None:
        owners = FormerOwners("n1", known.get, in_force, log, lambda *_: None, forget)
        owners.in_sync()
        for turn in turns:
            for update in turn:
                owners.update(update)
                if update.value is None:
                    known.pop(update.key, None)
                else:
                    known[update.key] = update.value
            await owners.look()

    asyncio.run(run())
    return asked


def test_an_address_that_another_pod_gets_is_looked_for():
    assert forgotten([there(endpoint("a", A, B))], [gone(endpoint("a"))], [there(endpoint("b", B))]) == [B]


def test_in_whatever_order_both_are_told_at_once():
    before = [there(endpoint("a", A))]
    for both in ([gone(endpoint("a")), there(endpoint("b", A))], [there(endpoint("b", A)), gone(endpoint("a"))]):
        assert forgotten(before, both) == [A]


def test_that_the_former_pod_went_may_be_told_last():
    """A deletion may be put off, for it might be an accident."""
    before = [there(endpoint("a", A))]
    assert forgotten(before, [there(endpoint("b", A))], [gone(endpoint("a"))]) == [A]
    other = [there(endpoint("b", A, node="n1"))]
    assert forgotten(before, other, [gone(endpoint("a"))]) == [], "the node's own was looked after"


def test_what_lets_the_former_pod_through_is_out_of_force_first():
    """A datagram in between would have its connection tracked again, for as long as others follow."""
    order: list[str] = []

    async def in_force() -> None:
        await asyncio.sleep(0)
        order.append("in force")

    def forget(addresses: Iterable[bytes]) -> str:
        order.extend(map(format_address, addresses))
        return ""

    async def run() -> None:
        known: dict[ResourceKey, Resource] = {}
        owners = FormerOwners("n1", known.get, in_force, lambda *_: None, lambda *_: None, forget)
        owners.in_sync()
        one = endpoint("a", A)
        owners.update(there(one))
        await owners.look()
        assert order == [], "nobody waits for what concerns nobody"
        known[one.key] = one
        owners.update(gone(one))
        owners.update(there(endpoint("b", A)))
        await owners.look()

    asyncio.run(run())
    assert order == ["in force", A]


def test_an_address_nobody_had_is_not_looked_for():
    assert forgotten([there(endpoint("a", A))], [gone(endpoint("a"))], [there(endpoint("b", B))]) == []


def test_what_a_pod_has_again_stays_its_own():
    """As after a datastore was put back; its connections live."""
    one = endpoint("a", A)
    assert forgotten([there(one)], [gone(one)], [there(one)], [there(replace(one, labels={"x": "y"}))]) == []


def test_a_pod_of_the_same_name_is_another():
    first, second = endpoint("a", A, container="1"), endpoint("a", A, container="2")
    assert forgotten([there(first)], [there(second)]) == [A]
    assert forgotten([there(first)], [gone(first)], [there(second)]) == [A]


def test_the_node_s_own_pods_were_looked_after_when_they_were_made():
    assert forgotten([there(endpoint("a", A))], [gone(endpoint("a"))], [there(endpoint("b", A, node="n1"))]) == []


def test_an_address_of_the_node_s_own_pod_may_go_to_another_node():
    assert forgotten(
        [there(endpoint("a", A, node="n1"))], [gone(endpoint("a", node="n1"))], [there(endpoint("b", A))]
    ) == [A]


def test_between_two_pods_one_may_come_and_go_at_once():
    at_once = [there(endpoint("b", A)), gone(endpoint("b"))]
    assert forgotten([there(endpoint("a", A))], [gone(endpoint("a"))], at_once, [there(endpoint("c", A))]) == [A]


def test_how_many_are_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(former_owners, "REMEMBERED", 1)
    went = [endpoint("a", A), endpoint("b", B)]
    assert forgotten([*map(there, went), *map(gone, went)], [there(endpoint("c", A, B))]) == [B]


def test_why_it_cannot_be_done_is_said_once():
    said: list[str] = []
    turns = [[change(endpoint(name, A))] for name in "abc" for change in (there, gone)]
    assert forgotten(*turns, answer="conntrack: no", said=said) == [A, A]
    assert said == ["policy: conntrack: no"]
