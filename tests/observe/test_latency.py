"""The stages of a change: which are counted, from when, and which are not."""

from __future__ import annotations

import pytest

from routed.core.effects import Milestone
from routed.observe.latency import FOLLOWED, TICKETS, Histogram, Latency


class World:
    """A clock and a count of UPDATEs that do as they are told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent = 0
        self.latency = Latency(lambda: self.now, lambda: self.sent)
        self.latency.in_sync()

    def counts(self) -> dict[str, int]:
        return {
            f"{begin} {stage}": sum(histogram.counts)
            for (begin, stage), histogram in self.latency.histograms.items()
            if sum(histogram.counts)
        }

    def largest(self, begin: str, stage: str) -> float:
        return self.latency.histograms[begin, stage].largest


def test_a_change_of_the_datastore_goes_through_all_stages() -> None:
    world = World()
    latency = world.latency
    latency.resource(1.0)
    latency.resource(1.5)
    world.now = 2.0
    latency.milestone(Milestone.PLANNED)
    world.now = 3.0
    latency.milestone(Milestone.CHOSEN)
    ticket = latency.ticket()
    assert ticket and latency.ticket() == ticket
    world.sent, world.now = 5, 4.0
    latency.turn_ended(1.5, all_written=True, more=False)
    world.now = 5.0
    latency.acknowledged([ticket])
    assert world.counts() == {"datastore planned": 2, "datastore rib": 2, "datastore sent": 2, "datastore kernel": 2}
    assert [world.largest("datastore", stage) for stage in ("planned", "rib", "sent", "kernel")] == [1, 2, 3, 4]
    assert sum(latency.turns.counts) == 1


def test_octets_of_a_turn_count_once_from_the_first() -> None:
    world = World()
    world.latency.octets(1.0)
    world.latency.octets(2.0)
    world.now = 3.0
    world.latency.milestone(Milestone.CHOSEN)
    assert world.counts() == {"peer rib": 1}
    assert world.largest("peer", "rib") == 2.0


def test_what_leads_to_nothing_is_not_counted() -> None:
    world = World()
    world.latency.octets(1.0)  # a keepalive
    world.latency.turn_ended(1.0, all_written=True, more=False)
    world.latency.resource(2.0)  # a label nobody looks at
    world.latency.milestone(Milestone.PLANNED)
    world.latency.turn_ended(2.0, all_written=True, more=False)
    world.now = 9.0
    world.latency.milestone(Milestone.CHOSEN)  # somebody else's
    world.latency.turn_ended(9.0, all_written=True, more=False)
    assert world.counts() == {"datastore planned": 1}
    assert world.latency.ticket() == 0


def test_a_slow_turn_of_writing_is_waited_for() -> None:
    world = World()
    world.latency.octets(1.0)
    world.latency.milestone(Milestone.CHOSEN)
    world.sent = 1
    world.latency.turn_ended(1.0, all_written=False, more=False)
    assert "peer sent" not in world.counts()
    world.now = 4.0
    world.latency.turn_ended(4.0, all_written=True, more=False)
    assert world.largest("peer", "sent") == 3.0


def test_the_first_snapshot_is_no_change() -> None:
    latency = Latency(lambda: 1.0, lambda: 0)
    latency.resource(0.0)
    latency.in_sync()
    latency.milestone(Milestone.PLANNED)
    assert sum(latency.histograms["datastore", "planned"].counts) == 0


def test_memory_is_bounded() -> None:
    world = World()
    for _ in range(FOLLOWED + 10):
        world.latency.resource(0.0)
    world.latency.milestone(Milestone.PLANNED)
    assert world.counts() == {"datastore planned": FOLLOWED}
    for _ in range(TICKETS + 10):
        world.latency.octets(0.0)
        world.latency.milestone(Milestone.CHOSEN)
        first = world.latency.ticket()
        world.latency.turn_ended(0.0, all_written=False, more=True)
    assert len(world.latency._tickets) == TICKETS
    world.latency.acknowledged([1, first, first, 10**9])
    assert world.counts()["peer kernel"] == 1


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.1, 0), (0.11, 1), (1.0, 1), (1.01, 2)])
def test_a_bound_is_an_upper_bound(value: float, bucket: int) -> None:
    histogram = Histogram((0.1, 1.0))
    histogram.observe(value)
    assert histogram.counts[bucket] == 1 and histogram.sum == value
