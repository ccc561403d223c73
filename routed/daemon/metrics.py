"""Fills the catalogue of metrics and writes it out for Prometheus, a slice at a time.

Reading only, and nothing here walks a table: values are counters kept where things happen, and a look at each peer. The loop
gets a turn after each family is read, and after each slice of it is written, so a scrape of many peers delays nobody.

Peers have names in labels up to `metrics.peers` of them: external ones first, then internal ones, by name; who has a name
keeps it as long as it is configured. The rest count together as `(others)`, in counters that never run backwards.

The library that writes is imported by the first scrape, so that the start does not wait for it.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from errno import errorcode
from typing import TYPE_CHECKING

from routed import __version__
from routed.bgp.counters import DownReason
from routed.bgp.iana import (
    CeaseSubcode,
    FiniteStateMachineSubcode,
    MessageHeaderSubcode,
    NotificationCode,
    OpenSubcode,
    UpdateSubcode,
)
from routed.bgp.neighbor import State
from routed.core.core import Core
from routed.core.peer import Peer
from routed.daemon.driver import Driver
from routed.dataplane.conntrack import ConntrackUse
from routed.dataplane.kernel import Kernel
from routed.dataplane.tally import RuleTally
from routed.datastore.health import StoreHealth
from routed.desired import RouteKind
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.observe.catalogue import METRICS, OTHERS, Metric
from routed.observe.latency import BOUNDS, Histogram
from routed.rib.adj_out import UpdateGroup
from routed.rib.path import SourceKind
from routed.values import dataclass

if TYPE_CHECKING:
    from prometheus_client import ProcessCollector
    from prometheus_client.core import Metric as MetricFamily

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]

#: Upper bounds of lags and pauses: seconds are worth an alarm, milliseconds are not.
LAG_BOUNDS = BOUNDS[3:]

#: Samples that are written between two turns of the loop: about 2 ms of work.
SLICE = 200

#: What ends the OpenMetrics form: once, not behind every family.
_OPENMETRICS_END = b"# EOF\n"

_SUBCODES = {
    NotificationCode.MESSAGE_HEADER_ERROR: MessageHeaderSubcode,
    NotificationCode.OPEN_MESSAGE_ERROR: OpenSubcode,
    NotificationCode.UPDATE_MESSAGE_ERROR: UpdateSubcode,
    NotificationCode.FINITE_STATE_MACHINE_ERROR: FiniteStateMachineSubcode,
    NotificationCode.CEASE: CeaseSubcode,
}

_KINDS = {SourceKind.EBGP: "external", SourceKind.IBGP: "internal", SourceKind.IBGP_CLIENT: "client"}


@dataclass(slots=True)
class DaemonState:
    """What only the daemon knows; it writes, the metrics read."""

    reload_accepted: bool = True
    config_read_at: float = 0.0
    restart_needed: bool = False
    datastore_problems: int = 0
    kernel_problems: int = 0
    config_problems: int = 0
    secrets_problems: int = 0
    listen_problems: int = 0
    kubernetes_problems: int = 0
    pod_problems: int = 0
    pods: tuple[tuple[str, int], ...] = ()
    """CNI calls by outcome; empty where the node's pods are not ours."""
    pods_without_endpoint: int | None = None
    collector: tuple[bool, int, tuple[tuple[str, int], ...]] | None = None
    """Of lost addresses: whether it is this node, what it waits for, what it took back."""
    firewall: tuple[int, int, int] | None = None
    """Batches of changes, whole tables, refusals."""
    policies: RuleTally | None = None
    tunnels: tuple[tuple[str, int], ...] = ()
    """Nodes each tunnel device reaches."""
    conntrack: ConntrackUse | None = None


class GarbageWatch:
    """How long the garbage collector stopped everything."""

    def __init__(self) -> None:
        self.pauses = {str(generation): Histogram(LAG_BOUNDS) for generation in range(3)}
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.monotonic()
        else:
            self.pauses[str(info["generation"])].observe(time.monotonic() - self._began)

    def start(self) -> None:
        gc.callbacks.append(self)

    def stop(self) -> None:
        if self in gc.callbacks:
            gc.callbacks.remove(self)


class Metrics:
    """See the module's docstring."""

    def __init__(
        self,
        core: Core,
        driver: Driver,
        kernel: Kernel,
        health: StoreHealth,
        state: Callable[[], DaemonState],
        *,
        named_peers: Callable[[], int],
        ready: Callable[[], bool],
    ) -> None:
        self.lag = Histogram(LAG_BOUNDS)
        """The daemon's clock observes here once a second."""
        self.garbage = GarbageWatch()
        self._core = core
        self._driver = driver
        self._kernel = kernel
        self._health = health
        self._state = state
        self._named_peers = named_peers
        self._ready = ready
        self._named: dict[str, None] = {}
        self._seen: dict[tuple[str, int, Labels], float] = {}
        """Last values of counters that count among the others: (metric, peer, labels)."""
        self._others: dict[tuple[str, Labels], float] = {}
        self._process: ProcessCollector | None = None
        self._turn = asyncio.Lock()

    async def page(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the form the scraper asks for, and its content type."""
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - see the module's docstring

        encode, content_type = choose_encoder(accept)
        out = []
        async with self._turn:  # two at a time would only make each other slower
            for family in self.families():
                await asyncio.sleep(0)
                samples = family.samples
                for start in range(0, max(1, len(samples)), SLICE):
                    family.samples = samples[start : start + SLICE]
                    text = encode(_Only(family)).removesuffix(_OPENMETRICS_END)
                    out.append(_without_head(text) if start else text)
                    await asyncio.sleep(0)
        if "openmetrics" in content_type:
            out.append(_OPENMETRICS_END)
        return b"".join(out), content_type

    def families(self) -> Iterator[MetricFamily]:
        """Every metric of the catalogue, then those of the process (`process_*`)."""
        self._name_peers()
        for metric in METRICS.values():
            histograms = self._histograms(metric.name)
            if histograms is not None:
                yield _histogram_family(metric, histograms)
            elif metric.name in _PEER_READERS:
                yield _family(metric, self._over_peers(metric, _PEER_READERS[metric.name]))
            else:
                yield _family(metric, self._node(metric.name))
        if self._process is None:
            from prometheus_client import ProcessCollector  # noqa: PLC0415 - see the module's docstring

            self._process = ProcessCollector(registry=None)
        yield from self._process.collect()

    # ---- of the node

    def _histograms(self, name: str) -> list[tuple[Labels, Histogram]] | None:
        latency = self._driver.latency
        match name:
            case "routed_loop_lag_seconds":
                return [((), self.lag)]
            case "routed_turn_seconds":
                return [((), latency.turns)]
            case "routed_gc_pause_seconds":
                return [((generation,), pauses) for generation, pauses in self.garbage.pauses.items()]
            case "routed_change_latency_seconds":
                return list(latency.histograms.items())
        return None

    def _node(self, name: str) -> Samples:
        core, health, state, kernel = self._core, self._health, self._state(), self._kernel
        match name.removeprefix("routed_"):
            case "build_info":
                return [((__version__, platform.python_version()), 1)]
            case "ready":
                return [((), self._ready())]
            case "in_sync":
                return [((), core.restart.in_sync_at is not None)]
            case "route_selection_deferred":
                return [((), core.restart.deferring)]
            case "sweep_pending":
                return [((), core.restart.sweep_pending)]
            case "problems":
                return [
                    (("plan",), len(core.plan.problems) + len(core.address_problems)),
                    (("datastore",), state.datastore_problems),
                    (("kernel",), state.kernel_problems),
                    (("config",), state.config_problems),
                    (("secrets",), state.secrets_problems),
                    (("listen",), state.listen_problems),
                    (("kubernetes",), state.kubernetes_problems),
                    (("pods",), state.pod_problems),
                ]
            case "cni_pods_total":
                return [((outcome,), count) for outcome, count in state.pods]
            case "pods_without_endpoint":
                return [] if state.pods_without_endpoint is None else [((), state.pods_without_endpoint)]
            case "ipam_collector":
                return [] if state.collector is None else [((), state.collector[0])]
            case "ipam_suspects":
                return [] if state.collector is None else [((), state.collector[1])]
            case "ipam_taken_back_total":
                return [] if state.collector is None else [((what,), count) for what, count in state.collector[2]]
            case "tunnel_nodes":
                return [((device,), count) for device, count in state.tunnels]
            case "firewall_commits_total":
                if state.firewall is None:
                    return []
                return [(("change",), state.firewall[0]), (("table",), state.firewall[1])]
            case "firewall_refusals_total":
                return [] if state.firewall is None else [((), state.firewall[2])]
            case "policy_packets_total":
                if state.policies is None:
                    return []
                return [
                    *(((policy, action.value), count) for policy, action, count in state.policies.named),
                    *(((OTHERS, action.value), count) for action, count in state.policies.others),
                ]
            case "conntrack_entries":
                return [] if state.conntrack is None else [((), state.conntrack.entries)]
            case "conntrack_entries_limit":
                return [] if state.conntrack is None else [((), state.conntrack.maximum)]
            case "conntrack_lost_total":
                if state.conntrack is None:
                    return []
                lost = state.conntrack
                return [(("dropped",), lost.dropped), (("evicted",), lost.evicted), (("raced",), lost.insert_failed)]
            case "bugs_total":
                return [((), self._driver.bugs)]
            case "config_reload_success":
                return [((), state.reload_accepted)]
            case "config_reload_timestamp_seconds":
                return [((), state.config_read_at)]
            case "config_restart_needed":
                return [((), state.restart_needed)]
            case "loop_lag_max_seconds":
                return [((), self.lag.largest)]
            case "datastore_connected":
                return [((health.kind,), health.connected)]
            case "datastore_from_snapshot":
                return [((), health.from_snapshot)]
            case "datastore_age_seconds":
                return [] if health.as_of is None else [((), max(0.0, time.time() - health.as_of))]
            case "datastore_revision":
                return [((), health.revision)]
            case "datastore_held_deletions":
                return [((), health.held)]
            case "datastore_changes_total":
                return [((), health.changes)]
            case "datastore_readings_total":
                return [((), health.readings)]
            case "datastore_failures_total":
                return [((), health.failures)]
            case "bgp_peers":
                return [((), len(core.peers))]
            case "bgp_sessions":
                states = [peer.neighbor.state for peer in core.peers.values()]
                return [((each.label,), states.count(each)) for each in State]
            case "bgp_peer_info":
                return [
                    ((name, format_address(session.address), str(session.peer_as), _KINDS[peer.plan.kind]), 1)
                    for name in self._named
                    if (peer := core.peers.get(name)) is not None
                    for session in [peer.neighbor.config]
                ]
            case "bgp_connections_refused_total":
                return [((), core.refusals.total)]
            case "bgp_prefixes_sent":
                return self._prefixes_sent()
            case "bgp_update_groups":
                groups = core.exporter.groups()
                return [((family.label,), sum(group.policy.family is family for group in groups)) for family in Family]
            case "rib_prefixes":
                return [((family.label,), len(rib.table)) for family, rib in core.ribs.items()]
            case "rib_originated":
                return [
                    ((family.label,), sum(origin is family for origin, _ in core.plan.origins)) for family in Family
                ]
            case "rib_best_path_changes_total":
                return [((family.label,), rib.version) for family, rib in core.ribs.items()]
            case "fib_writable":
                return [((), not kernel.problem)]
            case "fib_routes":
                return [((family.label,), kernel.route_count(family)) for family in Family]
            case "fib_blackholes":
                return [((family.label,), self._blackholes(family)) for family in Family]
            case "fib_routes_pending":
                return [((family.label,), kernel.routes_pending(family)) for family in Family]
            case "fib_routes_refused":
                return [((family.label,), kernel.routes_refused(family)) for family in Family]
            case "fib_routes_stale":
                return [((family.label,), kernel.routes_stale(family)) for family in Family]
            case "fib_errors_total":
                failures = kernel.route_counters.failures
                return [((errorcode.get(number, "other"),), count) for number, count in failures.items()]
            case "fib_writes_total":
                counters = kernel.route_counters
                return [
                    (("add",), counters.added), (("replace",), counters.replaced), (("delete",), counters.deleted)
                ]  # fmt: skip
            case "fib_repairs_total":
                return [((), kernel.route_counters.repaired)]
            case "fib_dumps_total":
                return [((), kernel.counters.dumps)]
            case "fib_overflows_total":
                return [((), kernel.counters.overflows)]
        raise KeyError(name)

    def _blackholes(self, family: Family) -> int:
        """Own blocks are few; nothing else of ours is a blackhole."""
        entries = (self._kernel.fib_entry(each, prefix) for each, prefix in self._core.plan.origins if each is family)
        return sum(
            entry is not None
            and entry.state == "installed"
            and entry.route is not None
            and entry.route.kind is RouteKind.BLACKHOLE
            for entry in entries
        )

    # ---- of peers

    def _name_peers(self) -> None:
        peers, most = self._core.peers, self._named_peers()
        for name in [name for name in self._named if name not in peers]:
            del self._named[name]
        for name in list(self._named)[most:]:
            del self._named[name]
        if len(self._named) < min(most, len(peers)):
            rest = [peer for name, peer in peers.items() if name not in self._named]
            rest.sort(key=lambda peer: (peer.plan.kind is not SourceKind.EBGP, peer.plan.name))
            self._named.update(dict.fromkeys(peer.plan.name for peer in rest[: most - len(self._named)]))

    def _over_peers(self, metric: Metric, read: PeerReader) -> Samples:
        """A reader's values of every peer: under its name, or summed up."""
        samples: list[tuple[Labels, float]] = []
        sums: dict[Labels, float] = {}
        if metric.kind == "counter":
            sums = {labels: value for (name, labels), value in self._others.items() if name == metric.name}
        now = self._driver.clock()
        for name, peer in self._core.peers.items():
            values = read(peer, now)
            if name in self._named:
                samples += [((name, *labels), value) for labels, value in values]
                continue
            for labels, value in values:
                if metric.kind == "counter":
                    key = (metric.name, peer.number, labels)
                    before = self._seen.get(key, 0.0)
                    self._seen[key] = value
                    sums[labels] = sums.get(labels, 0.0) + (value - before if value >= before else value)
                else:
                    sums[labels] = sums.get(labels, 0.0) + value
        if metric.kind == "counter":
            self._others.update({(metric.name, labels): value for labels, value in sums.items()})
            numbers = {peer.number for peer in self._core.peers.values()}
            gone = [key for key in self._seen if key[0] == metric.name and key[1] not in numbers]
            for key in gone:
                del self._seen[key]
        if metric.name in _NOT_SUMMED:
            return samples
        return [*samples, *(((OTHERS, *labels), value) for labels, value in sums.items())]

    def _prefixes_sent(self) -> Samples:
        totals: dict[UpdateGroup, int] = {}
        sums: dict[Labels, float] = {}
        samples: list[tuple[Labels, float]] = []
        for name, peer in self._core.peers.items():
            for family in peer.adj_in:
                adj_out = peer.adj_out.get(family)
                sent = 0
                if adj_out is not None:
                    group = adj_out.group
                    if group not in totals:
                        totals[group] = sum(group.advertised.values())
                    sent = totals[group] - group.advertised.get(peer.source, 0)
                if name in self._named:
                    samples.append(((name, family.label), sent))
                else:
                    sums[family.label,] = sums.get((family.label,), 0) + sent
        return [*samples, *(((OTHERS, *labels), value) for labels, value in sums.items())]


# ---- one peer's values

PeerReader = Callable[[Peer, float], Samples]


def _uptime(peer: Peer, now: float) -> Samples:
    since = peer.neighbor.counters.established_at
    up = peer.neighbor.state is State.ESTABLISHED and since is not None
    return [((), now - since if up and since is not None else 0.0)]


def _flaps(peer: Peer, _: float) -> Samples:
    downs = peer.neighbor.counters.downs
    return [((reason.value,), downs.get(reason, 0)) for reason in DownReason]


def _messages(peer: Peer, _: float) -> Samples:
    counters = peer.neighbor.counters
    return [
        (("received", "open"), counters.opens_received),
        (("received", "update"), counters.updates_received),
        (("received", "notification"), counters.notifications_received),
        (("received", "keepalive"), counters.keepalives_received),
        (("received", "route_refresh"), counters.refreshes_received),
        (("sent", "open"), counters.opens_sent),
        (("sent", "update"), counters.updates_sent),
        (("sent", "notification"), counters.notifications_sent),
        (("sent", "keepalive"), counters.keepalives_sent),
        (("sent", "route_refresh"), counters.refreshes_sent),
    ]


def _notifications(peer: Peer, _: float) -> Samples:
    sums: dict[Labels, float] = {}
    for (direction, code, subcode), count in peer.neighbor.counters.notifications.items():
        labels = (direction, *notification_names(code, subcode))
        sums[labels] = sums.get(labels, 0) + count
    return list(sums.items())


def notification_names(code: int, subcode: int) -> tuple[str, str]:
    """The registry's words for a NOTIFICATION: a closed set, whatever numbers a peer makes up."""
    try:
        known = NotificationCode(code)
    except ValueError:
        return "other", "other"
    subcodes = _SUBCODES.get(known)
    if subcodes is None or (subcode == 0 and subcodes is MessageHeaderSubcode):
        return known.name.lower(), "unspecific" if subcode == 0 else "other"
    try:
        return known.name.lower(), subcodes(subcode).name.lower()
    except ValueError:
        return known.name.lower(), "other"


def _update_errors(peer: Peer, _: float) -> Samples:
    counters = peer.neighbor.counters
    return [
        (("treat_as_withdraw",), counters.treat_as_withdraw),
        (("attribute_discard",), counters.attribute_discards),
    ]


_PEER_READERS: dict[str, PeerReader] = {
    "routed_bgp_session_up": lambda peer, _: [((), peer.neighbor.state is State.ESTABLISHED)],
    "routed_bgp_session_state": lambda peer, _: [((), peer.neighbor.state + 1)],
    "routed_bgp_session_uptime_seconds": _uptime,
    "routed_bgp_session_established_total": lambda peer, _: [((), peer.neighbor.counters.established)],
    "routed_bgp_session_flaps_total": _flaps,
    "routed_bgp_connect_attempts_total": lambda peer, _: [((), peer.neighbor.counters.connect_attempts)],
    "routed_bgp_notifications_total": _notifications,
    "routed_bgp_messages_total": _messages,
    "routed_bgp_update_errors_total": _update_errors,
    "routed_bgp_prefixes_received": lambda peer, _: [((f.label,), adj.count) for f, adj in peer.adj_in.items()],
    "routed_bgp_prefixes_accepted": lambda peer, _: [
        ((family.label,), adj_in.count - len(adj_in.refused)) for family, adj_in in peer.adj_in.items()
    ],
    "routed_bgp_prefixes_best": lambda peer, _: [
        ((family.label,), peer.source.prefixes_best[family]) for family in peer.adj_in
    ],
}

#: Where a sum over several peers would mean nothing.
_NOT_SUMMED = {"routed_bgp_session_state", "routed_bgp_session_uptime_seconds"}


# ---- the library's words


def _without_head(text: bytes) -> bytes:
    """The samples alone: HELP and TYPE stand before a family's first ones."""
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text


class _Only:
    """A registry of one family, for the library's writers."""

    def __init__(self, family: MetricFamily) -> None:
        self._family = family

    def collect(self) -> list[MetricFamily]:
        return [self._family]


def _family(metric: Metric, samples: Samples) -> MetricFamily:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - see the module's docstring

    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family


def _histogram_family(metric: Metric, histograms: list[tuple[Labels, Histogram]]) -> MetricFamily:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - see the module's docstring

    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
    for labels, histogram in histograms:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        family.add_metric(labels, buckets, histogram.sum)
    return family
