"""Own writes are passed on at once; what the datastore tells from before them is held back until it tells of them."""

from __future__ import annotations

import json

from routed.daemon.relay import PATIENCE, Beneath, Relay
from routed.datastore.folder import Problem
from routed.model.paths import Layout, decode_at
from routed.model.resources import JsonObject, Resource, Update
from routed.model.schema import parse_manifest
from routed.model.unread import UnreadBlock


class Sink:
    def __init__(self) -> None:
        self.told: list[Resource | None] = []

    def update(self, update: Update) -> None:
        self.told.append(update.value)

    def loaded(self) -> None: ...
    def in_sync(self) -> None: ...
    def problems(self, problems: tuple[Problem, ...]) -> None: ...


def block(given: int) -> JsonObject:
    return {
        "cidr": "10.65.0.0/30", "affinity": "host:n1", "allocations": [0 if at < given else None for at in range(4)],
        "unallocated": list(range(given, 4)), "attributes": [{"handle_id": "h"}] if given else [],
    }  # fmt: skip


def stored(given: int) -> Resource:
    """As etcd tells of it: octets that nobody has read yet."""
    place = Layout().place("/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-30")
    assert place is not None
    found = decode_at(place, json.dumps(block(given), separators=(",", ":")).encode()).resource
    assert isinstance(found, UnreadBlock)
    return found


def written(given: int) -> Resource:
    """As it was written here."""
    name = {"name": "10-65-0-0-30"}
    return parse_manifest(
        {"apiVersion": "projectcalico.org/v3", "kind": "IPAMBlock", "metadata": dict(name), "spec": block(given)}
    )


def test_a_block_that_others_change_at_the_same_time() -> None:
    sink, now = Sink(), [0.0]
    relay = Relay(sink, (), (), lambda: now[0])
    mine = written(2)
    relay.publish(Update(mine.key, mine))
    relay.update(Update(mine.key, stored(1)))  # another node's write, from before
    assert sink.told == [mine]
    relay.update(Update(mine.key, stored(2)))  # ours
    relay.update(Update(mine.key, stored(3)))
    assert sink.told == [mine, stored(3)]
    relay.publish(Update(mine.key, mine))
    relay.update(Update(mine.key, stored(4)))  # over ours, which is never told of
    relay.tidy()
    assert len(sink.told) == 3
    now[0] = PATIENCE
    relay.tidy()
    assert sink.told[3:] == [stored(4)]


def test_what_the_api_says_counts_where_the_datastore_says_nothing() -> None:
    def namespace(team: str) -> Resource:
        return parse_manifest(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": team}}}
        )

    sink = Sink()
    relay = Relay(sink, (), (), lambda: 0.0)
    api = Beneath(relay)
    first, second, stored_one = namespace("a"), namespace("b"), namespace("c")
    api.update(Update(first.key, first))
    relay.update(Update(first.key, stored_one))
    api.update(Update(first.key, second))
    assert sink.told == [first, stored_one]
    relay.update(Update(first.key, None))
    assert sink.told[2:] == [second]
    relay.update(Update(first.key, stored_one))
    api.update(Update(first.key, None))
    relay.update(Update(first.key, None))
    api.update(Update(first.key, first))
    assert sink.told[3:] == [stored_one, None, first]


def test_a_block_that_goes() -> None:
    sink = Sink()
    relay = Relay(sink, (), (), lambda: 0.0)
    mine = written(1)
    relay.publish(Update(mine.key, None))
    relay.update(Update(mine.key, stored(1)))
    relay.update(Update(mine.key, None))
    assert sink.told == [None]
