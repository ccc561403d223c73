"""Metrics: the catalogue is what is served, a scrape walks no table, names are bounded, sums never run backwards."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from routed.bgp.counters import DownReason
from routed.bgp.fsm import State
from routed.bgp.iana import NotificationCode
from routed.core.core import Core, CoreSettings
from routed.daemon.driver import Driver
from routed.daemon.metrics import DaemonState, Metrics, notification_names
from routed.dataplane.engine import EngineCounters
from routed.dataplane.kernel import Kernel
from routed.dataplane.routes import RouteCounters
from routed.datastore.health import StoreHealth
from routed.model.resources import JsonObject, Update
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.observe.catalogue import METRICS, OTHERS
from routed.observe.latency import Latency
from routed.rib.adj_out import AdjRibOut
from routed.rib.export import ExportPolicy

API = "projectcalico.org/v3"


class NotWalked(dict[bytes, Any]):
    """A table that may be counted and looked into, but not walked."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("a scrape walked the table")

    def keys(self) -> Any:
        raise AssertionError("a scrape walked the table")

    items = values = keys


class StillKernel:
    """A kernel to which nothing happened but two refusals."""

    problem = ""
    counters = EngineCounters()
    route_counters = RouteCounters(failures={17: 2, 4095: 1})

    def route_count(self, _: Family) -> int:
        return 7

    routes_pending = routes_refused = routes_stale = route_count

    def fib_entry(self, *_: object) -> None:
        return None


class StillDriver:
    """As much of a driver as metrics read."""

    def __init__(self) -> None:
        self.latency = Latency(time.monotonic, lambda: 0)
        self.bugs = 0
        self.clock = time.monotonic


def core_with(peers: int) -> Core:
    core = Core(CoreSettings("a"), 1)
    manifests: list[JsonObject] = [
        {
            "apiVersion": API,
            "kind": "Node",
            "metadata": {"name": "a"},
            "spec": {"bgp": {"ipv4Address": "10.255.0.1/8"}},
        },
        *(
            {
                "apiVersion": API,
                "kind": "BGPPeer",
                "metadata": {"name": f"p{index}"},
                "spec": {
                    "peerIP": f"10.0.{index // 250}.{index % 250 + 1}",
                    "asNumber": 65000 if index == 3 else 64512,
                },
            }
            for index in range(peers)
        ),
    ]
    for manifest in manifests:
        resource = parse_manifest(manifest)
        core.resource(Update(resource.key, resource), 0.0)
    core.in_sync(0.0)
    core.flush(0.0)
    assert len(core.peers) == peers
    return core


def metrics_of(core: Core, named: int = 100) -> Metrics:
    return Metrics(
        core,
        cast("Driver", StillDriver()),
        cast("Kernel", StillKernel()),
        StoreHealth("file", as_of=time.time()),
        DaemonState,
        named_peers=lambda: named,
        ready=lambda: True,
    )


def values(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.families()
        for sample in family.samples
    }


def test_both_forms_say_the_same_and_all_of_the_catalogue() -> None:
    async def scrape() -> None:
        metrics = metrics_of(core_with(3))
        text, text_type = await metrics.page("text/plain")
        openmetrics, openmetrics_type = await metrics.page("application/openmetrics-text; version=1.0.0")
        assert text_type.startswith("text/plain") and openmetrics_type.startswith("application/openmetrics-text")
        assert openmetrics.endswith(b"# EOF\n") and openmetrics.count(b"# EOF") == 1
        ours = {name.removesuffix("_total") for name in METRICS}
        for families in (list(parse_text(text.decode())), list(parse_openmetrics(openmetrics.decode()))):
            assert {
                family.name.removesuffix("_total") for family in families if family.name.startswith("routed")
            } == ours
            for family in families:
                metric = METRICS.get(family.name) or METRICS.get(f"{family.name}_total")
                for sample in family.samples if metric is not None else []:
                    assert set(sample.labels) - {"le"} == set(metric.labels), sample
                    assert family.documentation == metric.help
        units = dict(re.findall(r"^# UNIT (\S+) (\S+)$", openmetrics.decode(), re.MULTILINE))
        assert units["routed_datastore_age_seconds"] == units["routed_turn_seconds"] == "seconds"
        assert all(name.endswith(f"_{unit}") for name, unit in units.items())

    asyncio.run(scrape())


def test_a_scrape_walks_no_table_and_gives_way_between_metrics(record_property: Any) -> None:
    core = core_with(500)
    for family, rib in core.ribs.items():
        groups = []
        for number, peer in enumerate(core.peers.values()):
            if family in peer.adj_in:
                if not groups:
                    policy = ExportPolicy(
                        family,
                        peer.plan.kind,
                        64512,
                        0,
                        b"",
                        peer.plan.next_hop_mode,
                        True,
                        peer.plan.export_filter[family],
                    )
                    groups.append(core.exporter.group(policy))
                member = AdjRibOut.__new__(AdjRibOut)
                member.group, member.source = groups[0], peer.source
                peer.adj_out[family] = member
                groups[0].members.add(member)
                groups[0].advertised[peer.source] = number
                peer.neighbor.state = State.ESTABLISHED
        rib.table = NotWalked({index.to_bytes(4, "big"): None for index in range(100_000)})
    metrics = metrics_of(core)
    steps = []
    began = before = time.perf_counter()
    for _ in metrics.families():
        now = time.perf_counter()
        steps.append(now - before)
        before = now
    record_property("collecting", f"{before - began:.4f} s, longest {max(steps):.4f} s")

    async def scrape() -> tuple[int, float, float]:
        turns, longest, last = 0, 0.0, time.perf_counter()
        task = asyncio.create_task(metrics.page("text/plain"))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return turns, longest, len(await task)  # type: ignore[arg-type]

    began = time.perf_counter()
    turns, longest, _ = asyncio.run(scrape())
    record_property("scrape", f"{time.perf_counter() - began:.4f} s, longest step {longest:.4f} s")
    assert turns > len(METRICS)
    found = values(metrics)
    sent = [value for (name, labels), value in found.items() if name == "routed_bgp_prefixes_sent"]
    assert len(sent) == 101 and sum(sent) == 500 * sum(range(500)) - sum(range(500))


def test_names_are_bounded_sticky_and_external_peers_come_first() -> None:
    core = core_with(6)
    metrics = metrics_of(core, named=2)

    def named() -> set[str]:
        return {dict(labels)["peer"] for name, labels in values(metrics) if name == "routed_bgp_session_up"}

    first = named()
    assert OTHERS in first and len(first) == 3
    assert next(name for name, peer in core.peers.items() if peer.neighbor.config.external) in first
    core.peers = dict(reversed(core.peers.items()))
    assert named() == first
    gone = next(name for name in first if name != OTHERS)
    del core.peers[gone]
    assert len(named() & first) == 2 and len(named()) == 3


def test_what_the_others_count_never_runs_backwards() -> None:
    core = core_with(3)
    metrics = metrics_of(core, named=0)
    key = ("routed_bgp_session_flaps_total", (("peer", OTHERS), ("reason", "connection_lost")))
    a, b, _ = core.peers.values()
    a.neighbor.counters.downs[DownReason.CONNECTION_LOST] = 5
    b.neighbor.counters.downs[DownReason.CONNECTION_LOST] = 3
    assert values(metrics)[key] == 8
    del core.peers[a.plan.name]
    b.neighbor.counters.downs[DownReason.CONNECTION_LOST] = 1  # a new neighbour in its place
    assert values(metrics)[key] == 9
    core.peers["renamed"] = core.peers.pop(b.plan.name)
    b.neighbor.counters.downs[DownReason.CONNECTION_LOST] = 2
    assert values(metrics)[key] == 10


@pytest.mark.parametrize(
    ("code", "subcode", "names"),
    [
        (6, 2, ("cease", "administrative_shutdown")),
        (6, 0, ("cease", "unspecific")),
        (6, 200, ("cease", "other")),
        (4, 0, ("hold_timer_expired", "unspecific")),
        (4, 9, ("hold_timer_expired", "other")),
        (1, 0, ("message_header_error", "unspecific")),
        (99, 1, ("other", "other")),
    ],
)
def test_notifications_have_the_registry_s_names(code: int, subcode: int, names: tuple[str, str]) -> None:
    assert notification_names(code, subcode) == names


def test_a_peer_cannot_make_up_label_values() -> None:
    assert len({notification_names(code, subcode) for code in range(256) for subcode in range(256)}) < 60
    assert {notification_names(code, 0)[0] for code in NotificationCode} >= {"cease", "update_message_error"}


def test_refusals_go_by_the_name_of_their_errno() -> None:
    found = values(metrics_of(core_with(0)))
    errors = {
        dict(labels)["errno"]: value for (name, labels), value in found.items() if name == "routed_fib_errors_total"
    }
    assert errors == {"EEXIST": 2, "other": 1}
