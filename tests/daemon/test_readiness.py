"""When a node is ready, and in which words it says that it is not."""

from __future__ import annotations

import asyncio
import json
import time
from typing import cast

from routed.bgp.fsm import State
from routed.core.core import Core, CoreSettings
from routed.daemon.health import TICKS_MISSED, Health
from routed.daemon.metrics import Metrics
from routed.daemon.readiness import GRACE, ReadinessJudge
from routed.datastore.health import StoreHealth
from routed.net.families import Family
from tests.daemon.test_metrics import core_with


def reasons(judge: ReadinessJudge, now: float, kernel: str = "", datastore: str = "") -> tuple[str, ...]:
    return judge.judge(now, kernel_problem=kernel, datastore_note=datastore, stopping=False).reasons


def up(core: Core, *names: str) -> None:
    for name, peer in core.peers.items():
        peer.neighbor.state = State.ESTABLISHED if name in names else State.ACTIVE


def test_at_first_all_sessions_then_any() -> None:
    core = core_with(3)
    judge = ReadinessJudge(core)
    a, b, c = core.peers
    up(core, a, b)
    assert reasons(judge, 1.0) == ("1 of 3 sessions are not up yet (for 29 s more all must be, then any)",)
    up(core, a, b, c)
    assert reasons(judge, 2.0) == ()
    up(core, b)
    assert reasons(judge, 3.0) == (), "all were up: from then on one is enough"
    up(core)
    assert reasons(judge, 4.0) == ("no session is up, of 3",)


def test_a_peer_that_never_comes_is_waited_for_until_the_grace_period_is_over() -> None:
    core = core_with(2)
    judge = ReadinessJudge(core)
    up(core, next(iter(core.peers)))
    assert reasons(judge, GRACE - 1)
    assert not reasons(judge, GRACE)


def test_that_all_were_up_is_seen_by_the_clock_too() -> None:
    core = core_with(2)
    judge = ReadinessJudge(core)
    up(core, *core.peers)
    judge.look(1.0)
    up(core, next(iter(core.peers)))
    assert not reasons(judge, 2.0)


def test_a_node_without_peers_is_ready() -> None:
    assert not reasons(ReadinessJudge(core_with(0)), 0.0)


def test_what_else_holds_it_back() -> None:
    core = Core(CoreSettings("a", routes_found=frozenset({Family.IPV4_UNICAST})), 1)
    judge = ReadinessJudge(core)
    assert reasons(judge, 0.0, datastore="no such folder") == ("the datastore has not been read yet: no such folder",)
    core.in_sync(0.0)
    assert reasons(judge, 0.0) == ("the first plan is being made",)
    core.flush(0.0)
    core.restart.deferring = True
    assert reasons(judge, 0.0) == ("route selection waits for the peers' routes after a restart",)
    core.restart.deferring = False
    assert reasons(judge, 0.0, kernel="not permitted") == ("the kernel's routes cannot be kept: not permitted",)
    stopping = judge.judge(0.0, kernel_problem="", datastore_note="", stopping=True)
    assert stopping.reasons == ("routed is stopping",)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def health_of(core: Core, store: StoreHealth, clock: Clock) -> Health:
    return Health(
        ReadinessJudge(core),
        store,
        clock=clock,
        kernel_problem=str,
        store_problem=str,
        stopping=bool,
    )


def ask(health: Health, path: str, accept: str = "") -> tuple[int, str]:
    return asyncio.run(_ask(health, path, accept))


async def _ask(health: Health, path: str, accept: str) -> tuple[int, str]:
    response = await health.pages(cast("Metrics", None))[path](accept)
    return response.status, response.body.decode()


def test_the_page_has_a_line_for_each_peer_and_hostile_text_is_harmless() -> None:
    core = core_with(2)
    first = next(iter(core.peers.values()))
    first.neighbor.counters.last_error = 'peer says "</pre><script>\n\x1b[2J"'
    clock = Clock()
    health = health_of(core, StoreHealth("file", True, as_of=time.time()), clock)
    status, text = ask(health, "/readyz")
    assert status == 503
    lines = text.splitlines()
    assert lines[0] == "not ready" and lines[1].startswith("- 2 of 2 sessions")
    assert len(lines) == 4 and all(line.startswith("peer ") for line in lines[2:])
    assert "\x1b" not in text and "\\x1b[2J" in text
    status, text = ask(health, "/readyz", "application/json")
    row = json.loads(text)
    assert status == 503 and text.isascii() and "\x1b" not in text
    assert row["ready"] is False and [peer["up"] for peer in row["peers"]] == [False, False]
    assert row["peers"][0]["reason"] == first.neighbor.counters.last_error
    up(core, *core.peers)
    status, text = ask(health, "/readyz")
    assert (status, text.splitlines()[0]) == (200, "ready")


def test_an_old_word_of_the_datastore_is_noted_and_holds_nothing_back() -> None:
    core = core_with(0)
    store = StoreHealth("etcd", connected=True, as_of=time.time())
    health = health_of(core, store, Clock())
    assert ask(health, "/readyz") == (200, "ready\n")
    store.connected, store.problem, store.as_of = False, "connection refused", time.time() - 100
    status, text = ask(health, "/readyz")
    assert status == 200
    assert "note: what the datastore said last is from 100 s ago: connection refused" in text
    store.from_snapshot = True
    assert "its last good state is used, from 100 s ago (connection refused)" in ask(health, "/readyz")[1]


def test_healthy_while_the_clock_ticks() -> None:
    clock = Clock()
    health = health_of(core_with(0), StoreHealth("file"), clock)
    assert ask(health, "/healthz") == (200, "ok: the last tick was 0.0 s ago\n")
    clock.now = TICKS_MISSED + 1
    status, text = ask(health, "/healthz")
    assert status == 503 and "has stopped" in text
    assert ask(health, "/healthz", "application/json")[0] == 503
    health.tick()
    assert ask(health, "/healthz")[0] == 200
