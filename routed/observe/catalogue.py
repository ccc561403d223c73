"""Every metric there is: its name, kind, labels and what it means. docs/metrics.md is this list; the daemon fills it.

Invariants: names follow Prometheus' conventions (base units, `_total` on counters); label values come from closed sets
(states, reasons, errno names, families), peers and policies excepted, whose number is bounded (`metrics.peers` and
`metrics.policies` of routed.yaml).
"""

from __future__ import annotations

from routed.values import dataclass

#: The value of `peer` and `policy` that stands for all beyond `metrics.peers` and `metrics.policies`, together.
OTHERS = "(others)"

#: Base units (OpenMetrics): what names end with.
UNITS = ("seconds", "bytes")


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the catalogue."""

    name: str
    kind: str
    """gauge | counter | histogram"""
    help: str
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The unit its name ends with, or empty where it counts things."""
        word = self.name.removesuffix("_total").rpartition("_")[2]
        return word if word in UNITS else ""


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"routed_{name}", "gauge", text, labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"routed_{name}_total", "counter", text, labels)


def _histogram(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"routed_{name}", "histogram", text, labels)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # the daemon
        _gauge("build_info", "Always 1; the version in labels.", "version", "python"),
        _gauge("ready", "1 where /readyz says 200."),
        _gauge("in_sync", "1 once the datastore was read completely, or its last good state was loaded."),
        _gauge("route_selection_deferred", "1 while a restarted node waits for its peers' routes (RFC 4724 4.1)."),
        _gauge("sweep_pending", "1 while routes found at start may still be claimed by a peer."),
        _gauge("problems", "What a person should see to, as in routedctl status.", "area"),
        _counter("bugs", "Internal errors; each has a line `bug:` in the log."),
        _gauge("config_reload_success", "1 where the last reload of routed.yaml was accepted, or there was none."),
        _gauge("config_reload_timestamp_seconds", "Unix time of the last accepted reading of routed.yaml."),
        _gauge("config_restart_needed", "1 where routed.yaml has changes that take a restart."),
        # the loop
        _histogram("loop_lag_seconds", "How late the loop was for its own clock, looked at once a second."),
        _gauge("loop_lag_max_seconds", "The largest lag of the loop since start."),
        _histogram("turn_seconds", "How long turns of the loop took: decide, encode, write."),
        _histogram("gc_pause_seconds", "How long the garbage collector stopped everything.", "generation"),
        # latency
        _histogram(
            "change_latency_seconds",
            "Time from the arrival of a change (of the datastore, or octets from a peer) to a stage: planned, rib "
            "(decided), sent (UPDATEs written), kernel (routes acknowledged).",
            "origin",
            "stage",
        ),
        # the datastore
        _gauge("datastore_connected", "1 while the datastore answers.", "kind"),
        _gauge("datastore_from_snapshot", "1 while we work from the last good state of an earlier run."),
        _gauge("datastore_age_seconds", "Time since what we hold was last known to be what the datastore says."),
        _gauge("datastore_revision", "The datastore's revision of what we hold; 0 where it has none."),
        _gauge("datastore_held_deletions", "Deletions the mass-delete guard holds back."),
        _counter("datastore_changes", "Resources changed or deleted since the first complete reading."),
        _counter("datastore_readings", "Complete readings: the first, and those after a lost watch or a compaction."),
        _counter("datastore_failures", "Times the datastore could not be reached or read."),
        # sessions
        _gauge("bgp_peers", "Peers that are configured."),
        _gauge("bgp_sessions", "Peers by the state of their session.", "state"),
        _gauge("bgp_peer_info", "Always 1; who a peer is, in labels.", "peer", "address", "remote_as", "type"),
        _gauge("bgp_session_up", "1 where the session is Established; of others, how many are.", "peer"),
        _gauge("bgp_session_state", "1 Idle, 2 Connect, 3 Active, 4 OpenSent, 5 OpenConfirm, 6 Established.", "peer"),
        _gauge("bgp_session_uptime_seconds", "How long the session has been Established; 0 where it is not.", "peer"),
        _counter("bgp_session_established", "Times the session came up.", "peer"),
        _counter("bgp_session_flaps", "Times the Established session ended.", "peer", "reason"),
        _counter("bgp_connect_attempts", "TCP connections begun.", "peer"),
        _counter("bgp_connections_refused", "TCP connections of addresses that are no peer's, or not wanted."),
        _counter("bgp_notifications", "NOTIFICATIONs.", "peer", "direction", "code", "subcode"),
        _counter("bgp_messages", "BGP messages.", "peer", "direction", "type"),
        _counter("bgp_update_errors", "Malformed UPDATEs the session survived (RFC 7606).", "peer", "handling"),
        # routes
        _gauge("bgp_prefixes_received", "Prefixes the peer announces.", "peer", "family"),
        _gauge("bgp_prefixes_accepted", "Those of them that loop checks and import filters let in.", "peer", "family"),
        _gauge("bgp_prefixes_best", "Prefixes whose best path is the peer's.", "peer", "family"),
        _gauge("bgp_prefixes_sent", "Prefixes we announce to the peer.", "peer", "family"),
        _gauge("bgp_update_groups", "Groups of peers that hear the same.", "family"),
        _gauge("rib_prefixes", "Prefixes in the table.", "family"),
        _gauge("rib_originated", "Prefixes of our own.", "family"),
        _counter("rib_best_path_changes", "Prefixes whose best path changed.", "family"),
        # the kernel
        _gauge("fib_writable", "0 where the kernel refuses all our writing, as without CAP_NET_ADMIN."),
        _gauge("fib_routes", "Routes of ours in the kernel, blackholes included.", "family"),
        _gauge("fib_blackholes", "Blackhole routes of ours in the kernel, one an own block.", "family"),
        _gauge("fib_routes_pending", "Routes still to be written or put back.", "family"),
        _gauge("fib_routes_refused", "Routes the kernel refuses now.", "family"),
        _gauge("fib_routes_stale", "Routes found at start that nobody asked for yet.", "family"),
        _counter("fib_errors", "Routes the kernel refused, every attempt counted.", "errno"),
        _counter("fib_writes", "Routes written.", "operation"),
        _counter("fib_repairs", "Routes put back after another program removed or changed them."),
        _counter("fib_dumps", "Times our table was read back from the kernel."),
        _counter("fib_overflows", "Times news of the kernel were lost, and read back."),
        # pods and connections
        _counter("cni_pods", "Pods added, removed, and not added since a step failed.", "outcome"),
        _gauge("pods_without_endpoint", "Interfaces of pods that no WorkloadEndpoint has: such pods reach nobody."),
        _gauge("ipam_collector", "1 on the node that takes back lost addresses for the cluster."),
        _gauge("ipam_suspects", "What the collector takes back if it stays as it is for the grace period."),
        _counter("ipam_taken_back", "What this node took back: addresses, handles, affinities, blocks, nodes.", "what"),
        _gauge("tunnel_nodes", "Other nodes a tunnel device reaches; none where there is no such device.", "device"),
        _counter("firewall_commits", "Batches of policy rules the kernel took.", "kind"),
        _counter("firewall_refusals", "Batches of policy rules the kernel refused."),
        _counter(
            "policy_packets",
            "Packets that rules of policies and profiles decided about or logged: the first of connections, not replies.",
            "policy",
            "action",
        ),
        _gauge("conntrack_entries", "Connections tracked in this network namespace; none where nothing is tracked."),
        _gauge("conntrack_entries_limit", "Entries the connection tracking table may have."),
        _counter("conntrack_lost", "Packets and entries lost since the table was full or raced.", "how"),
    )
}
"""By name."""
