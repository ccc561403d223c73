"""Why sessions ended, in a word: what the metrics count flaps by, and when a core says how far it has got."""

from __future__ import annotations

import pytest

from routed.bgp.counters import DownReason
from routed.bgp.fsm import TRANSITIONS, Event, State
from routed.bgp.messages import Notification
from routed.bgp.neighbor import _down_reason
from routed.core.effects import Milestone
from routed.model.resources import Update
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.testing.world import Node, World
from tests.core.test_nodes import block, established, mesh, node


def downs(each: Node) -> dict[str, int]:
    """All flaps of a node, by reason."""
    sums: dict[str, int] = {}
    for peer in each.core.peers.values():
        for reason, count in peer.neighbor.counters.downs.items():
            sums[reason] = sums.get(reason, 0) + count
    return sums


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pair(world: World) -> tuple[Node, Node]:
    one, two = mesh(world, 2)
    assert world.run(10, until=lambda: established(one) == established(two) == 2)
    assert downs(one) == downs(two) == {}
    return one, two


def test_a_reset_here_is_a_notification_there(world: World, pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.core.clear(parse_address("10.0.0.2"), "hard", world.now)
    world.run(10)
    assert downs(one) == {DownReason.RESET: 1}
    assert downs(two) == {DownReason.NOTIFICATION_RECEIVED: 1}


def test_a_broken_connection(world: World, pair: tuple[Node, Node]) -> None:
    one, two = pair
    world.sever("n1", "n2")
    world.run(10)
    assert set(downs(one)) == set(downs(two)) == {DownReason.CONNECTION_LOST}


def test_a_shutdown(world: World, pair: tuple[Node, Node]) -> None:
    one, two = pair
    one.core.shutdown("shutdown", "new disk", world.now)
    world.run(5)
    assert downs(one) == {DownReason.ADMINISTRATIVE: 2}
    assert downs(two) == {DownReason.NOTIFICATION_RECEIVED: 2}


def test_a_change_its_session_does_not_survive_is_counted_although_the_peer_is_a_new_one(
    world: World, pair: tuple[Node, Node]
) -> None:
    one, two = pair
    for each in pair:
        each.apply(node("n2", 2, asNumber=65002))
    world.run(20)
    assert established(one) == 2
    assert downs(one).get(DownReason.CONFIGURATION_CHANGED, 0) + downs(two).get(DownReason.CONFIGURATION_CHANGED, 0) > 0


@pytest.mark.parametrize(
    "event", [event for event in Event if TRANSITIONS[State.ESTABLISHED, event].state is State.IDLE]
)
def test_every_end_of_a_session_has_a_reason(event: Event) -> None:
    expected = {
        Event.HOLD_TIMER_EXPIRES: DownReason.HOLD_TIMER_EXPIRED,
        Event.SEND_HOLD_TIMER_EXPIRES: DownReason.SEND_HOLD_TIMER_EXPIRED,
        Event.MANUAL_STOP: DownReason.ADMINISTRATIVE,
        Event.AUTOMATIC_STOP: DownReason.RESET,
        Event.TCP_CONNECTION_FAILS: DownReason.CONNECTION_LOST,
        Event.OPEN_COLLISION_DUMP: DownReason.CONNECTION_LOST,
        Event.NOTIFICATION: DownReason.NOTIFICATION_RECEIVED,
        Event.NOTIFICATION_VERSION_ERROR: DownReason.NOTIFICATION_RECEIVED,
    }
    if event is not Event.AUTOMATIC_STOP:  # then nothing is said for one reason only, and that is tested with a link
        assert _down_reason(event, None) is expected.get(event, DownReason.PROTOCOL_ERROR)
    assert _down_reason(event, Notification(3, 1)) is expected.get(event, DownReason.PROTOCOL_ERROR)


def test_milestones_are_told_once_a_turn_and_only_where_something_happened(pair: tuple[Node, Node]) -> None:
    core = pair[0].core
    told: list[Milestone] = []
    core.measure = told.append
    core.flush(100.0)
    assert told == []
    resource = parse_manifest(block("n1", "10.244.1.64/26"))
    core.resource(Update(resource.key, resource), 100.0)
    core.flush(100.0)
    assert told == [Milestone.PLANNED, Milestone.CHOSEN]
