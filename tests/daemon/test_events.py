"""Events: what followers get, what they miss and are told they missed, and that nobody pays for what nobody follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from routed.bgp.attributes import AttributeSet
from routed.cli import events as cli
from routed.daemon import events as module
from routed.daemon.events import KINDS, Events, Follower
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix
from routed.rib.path import Path, Source, SourceKind
from routed.rib.table import Change

V4 = Family.IPV4_UNICAST
ALL = frozenset(KINDS)


def path(name: str) -> Path:
    return Path(Source(name, SourceKind.EBGP, 1, b"\x0a\x00\x00\x02"), AttributeSet(next_hop=b"\x0a\x00\x00\x02"), None)


def change(count: int, start: int = 0) -> Change:
    return Change(None, path("tor"), [make_prefix((start + n).to_bytes(4, "big"), 32) for n in range(count)])


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


async def read(follower: Follower, count: int) -> list[dict[str, Any]]:
    """The next `count` events at least."""
    found: list[Any] = []
    while len(found) < count:
        found += await anext(follower)
    return found


def test_events_come_in_their_order_and_only_the_kinds_asked_for() -> None:
    async def body() -> None:
        events = Events(clock=lambda: 0.0)
        events.publish("session", "tor", "before", address="10.0.0.2")
        follower = events.follow(frozenset({"session", "kernel"}))
        for number, kind in enumerate(("session", "datastore", "kernel", "session")):
            events.publish(kind, "x", str(number))
        assert [row["text"] for row in await read(follower, 3)] == ["0", "2", "3"]
        assert [row["text"] for row in events.recent] == ["before", "0", "1", "2", "3"]
        assert events.recent[0] == {
            "time": "1970-01-01T00:00:00.000Z", "kind": "session", "subject": "tor", "text": "before", "address": "10.0.0.2",
        }  # fmt: skip
        waiting = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish("kernel", "x", "late")
        assert [row["text"] for row in await waiting] == ["late"]  # type: ignore[index]

    run(body)


def test_routedctl_knows_all_kinds() -> None:
    assert cli.KINDS == KINDS


def test_routes_are_looked_at_only_while_somebody_follows_them() -> None:
    async def body() -> None:
        wanted: list[bool] = []
        events = Events()
        events.routes_wanted = wanted.append
        one = events.follow(frozenset({"session"}))
        two, three = events.follow(ALL), events.follow(ALL)
        assert wanted == [True, True]
        await two.aclose()
        assert wanted[-1] is True
        await three.aclose()
        assert wanted[-1] is False
        await one.aclose()
        assert wanted[-1] is False

    run(body)


def test_a_burst_of_routes_comes_in_batches_and_filtered() -> None:
    async def body() -> None:
        events = Events()
        everything, narrow, one = (
            events.follow(ALL),
            events.follow(ALL, parse_prefix("0.0.1.0/24"), longer=True),
            events.follow(ALL, parse_prefix("0.0.0.7/32")),
        )
        events.routes(V4, [change(10_000)])
        batch = await anext(everything)
        assert len(batch) == module.BATCH
        assert len(await read(everything, 10_000 - len(batch))) == 10_000 - len(batch)
        assert [row["prefix"] for row in await read(narrow, 256)] == [f"0.0.1.{n}/32" for n in range(256)]
        (row,) = await read(one, 1)
        assert (row["prefix"], row["text"], row["old"]) == ("0.0.0.7/32", "none -> tor via 10.0.0.2", None)
        assert row["new"]["nextHop"] == "10.0.0.2"
        events.routes(Family.IPV6_UNICAST, [change(1)])
        assert len(await read(everything, 1)) == 1

    run(body)


def test_who_reads_too_slowly_is_told_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    monkeypatch.setattr(module, "MAX_PREFIXES", 100)

    async def body() -> None:
        events = Events()
        follower = events.follow(ALL)
        for number in range(15):
            events.publish("session", "x", str(number))
        events.routes(V4, [change(3)])
        found = await read(follower, 11)
        assert [row["text"] for row in found[:-1]] == [str(number) for number in range(10)]
        assert (found[-1]["kind"], found[-1]["count"]) == ("dropped", 8)
        assert len(events.recent) == 15, "nobody else lost anything"
        events.routes(V4, [change(60), change(60, start=100), change(30, start=200)])
        found = await read(follower, 91)
        assert [row["kind"] for row in found].count("route") == 90
        assert found[-1]["count"] == 60

    run(body)
