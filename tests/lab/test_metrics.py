"""Metrics and health of running daemons: what happened is in the numbers, and Prometheus itself can ask for it."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from routed.observe.catalogue import METRICS
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Routed
from tests.house.test_observability import alerts, queries
from tests.lab.topology import RECONNECT, SOON, Rack, address, affinity, block, cluster, start

PORT = 9971
PEER = "Mesh_10_0_0_2"


def ask(
    namespace: Namespace, path: str, accept: str = "", port: int = PORT, timeout: float = 20
) -> tuple[int, str, str]:
    """Status, content type and body of a page served in a namespace."""
    with namespace.entered():
        sock = socket.create_connection(("127.0.0.1", port), timeout)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.sock = sock
    try:
        connection.request("GET", path, headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def value(node: Routed, name: str, **labels: str) -> float:
    """One sample of a node, 0 where there is none."""
    _, _, text = ask(node.namespace, "/metrics", "application/openmetrics-text; version=1.0.0")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def latency(node: Routed, origin: str, stage: str) -> float:
    return value(node, "routed_change_latency_seconds_count", origin=origin, stage=stage)


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> tuple[Routed, Routed]:
    rack = Rack(lab)
    one, two = (rack.node(number, *cluster(1, 2)) for number in (1, 2))
    start(one, two)
    return one, two


@pytest.fixture
def pair(nodes: tuple[Routed, Routed]) -> Iterator[tuple[Routed, Routed]]:
    one, two = nodes
    wait_for(lambda: up(one, 2) and up(two, 1), RECONNECT, "the mesh is up", state=one.neighbors)
    yield nodes
    wait_for(lambda: up(one, 2) and up(two, 1), RECONNECT, "the mesh is up again", state=one.neighbors)


def up(node: Routed, other: int) -> bool:
    """Both sessions are there, all that the other has to say was said, and it is in the kernel."""
    families = zip((False, True), ("ipv4-unicast", "ipv6-unicast"), strict=True)
    neighbors, status = node.neighbors(), node.status()
    return not status["routeSelectionDeferred"] and all(
        (row := neighbors.get(address(other, ipv6=ipv6), {})).get("state") == "Established"
        and not row["families"][family]["stale"]
        and row["families"][family]["received"] == row["families"][family]["sent"] == 1
        and block(other, ipv6=ipv6) in node.kernel_routes(ipv6=ipv6)
        for ipv6, family in families
    )


def test_everything_in_the_catalogue_is_served_and_nothing_else(pair: tuple[Routed, Routed]) -> None:
    status, content_type, text = ask(pair[0].namespace, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert status == 200 and content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {name.removesuffix("_total"): metric for name, metric in METRICS.items()}
    assert {name for name in families if name.startswith("routed")} == set(ours)
    for name, metric in ours.items():
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample.name
    assert {name for name in families if not name.startswith("routed")} >= {"process_resident_memory_bytes"}
    status, content_type, plain = ask(pair[0].namespace, "/metrics")
    assert status == 200 and content_type.startswith("text/plain")
    assert "routed_bgp_peers 2.0" in plain


def test_the_numbers_are_those_of_routedctl(pair: tuple[Routed, Routed]) -> None:
    one, _ = pair
    wait_for(lambda: ask(one.namespace, "/readyz")[0] == 200, SOON, "it is ready")
    row = one.neighbors()[address(2, ipv6=False)]["families"]["ipv4-unicast"]
    for name in ("received", "best", "sent"):
        assert value(one, f"routed_bgp_prefixes_{name}", peer=PEER, family="ipv4-unicast") == row[name] == 1
    assert value(one, "routed_bgp_prefixes_best", peer=PEER, family="ipv6-unicast") == 0
    assert value(one, "routed_fib_routes", family="ipv4-unicast") == 2
    assert value(one, "routed_fib_blackholes", family="ipv4-unicast") == 1
    assert value(one, "routed_bgp_sessions", state="Established") == 2
    assert value(one, "routed_bgp_session_state", peer=PEER) == 6
    assert value(one, "routed_ready") == value(one, "routed_in_sync") == value(one, "routed_datastore_connected") == 1
    assert 0 <= value(one, "routed_datastore_age_seconds") < 30
    assert value(one, "process_resident_memory_bytes") > 1 << 20


def test_healthy_and_ready(pair: tuple[Routed, Routed]) -> None:
    status, _, text = ask(pair[0].namespace, "/healthz")
    assert status == 200 and text.startswith("ok")
    wait_for(lambda: ask(pair[0].namespace, "/readyz")[0] == 200, SOON, "it is ready")
    _, _, text = ask(pair[0].namespace, "/readyz")
    assert text.splitlines()[0] == "ready" and f"peer {PEER} 10.0.0.2 Established" in text
    status, content_type, text = ask(pair[0].namespace, "/readyz", "application/json")
    assert (status, content_type) == (200, "application/json")
    assert {peer["name"]: peer["up"] for peer in json.loads(text)["peers"]}[PEER] is True


def test_a_flap_is_counted_under_its_reason(pair: tuple[Routed, Routed]) -> None:
    one, two = pair
    flaps = "routed_bgp_session_flaps_total"
    notes = "routed_bgp_notifications_total"
    before = value(one, flaps, peer=PEER, reason="notification_received")
    two.ask("clear", address="10.0.0.1", mode="hard")
    wait_for(lambda: value(one, flaps, peer=PEER, reason="notification_received") == before + 1, SOON, "it is counted")
    assert value(two, flaps, peer="Mesh_10_0_0_1", reason="reset") == 1
    cease = {"code": "cease", "subcode": "administrative_reset"}
    assert value(one, notes, peer=PEER, direction="received", **cease) == 1
    assert value(two, notes, peer="Mesh_10_0_0_1", direction="sent", **cease) == 1
    wait_for(lambda: up(one, 2) and up(two, 1), RECONNECT, "the session is back")

    before = value(one, flaps, peer=PEER, reason="connection_lost")
    two.kill()
    wait_for(lambda: value(one, flaps, peer=PEER, reason="connection_lost") == before + 1, SOON, "the crash is counted")
    wait_for(lambda: ask(one.namespace, "/readyz")[0] == 503, SOON, "with no session at all it is not ready")
    _, _, text = ask(one.namespace, "/readyz")
    assert "no session is up, of 2" in text
    two.start()
    wait_for(lambda: ask(one.namespace, "/readyz")[0] == 200, RECONNECT, "ready again")


def test_a_refusal_of_the_kernel_is_counted_under_its_errno(pair: tuple[Routed, Routed]) -> None:
    one, two = pair
    one.namespace.ip("route add blackhole 10.244.2.64/26 proto static")
    for node in pair:
        node.put(affinity(2, "10.244.2.64/26"))
    refused = "routed_fib_routes_refused"
    wait_for(lambda: value(one, refused, family="ipv4-unicast") == 1, SOON, "the route is refused")
    assert value(one, "routed_fib_errors_total", errno="EEXIST") >= 1
    assert value(two, refused, family="ipv4-unicast") == 0
    one.namespace.ip("route del blackhole 10.244.2.64/26 proto static")
    wait_for(lambda: value(one, refused, family="ipv4-unicast") == 0, SOON, "the route is there")
    for node in pair:
        node.remove("BlockAffinity", affinity(2, "10.244.2.64/26")["metadata"]["name"])
    wait_for(lambda: "10.244.2.64/26" not in one.kernel_routes(), SOON, "the block is gone")


def test_a_change_is_timed_from_stage_to_stage(pair: tuple[Routed, Routed]) -> None:
    one, two = pair
    stages = ("planned", "rib", "sent", "kernel")
    before = {stage: latency(one, "datastore", stage) for stage in stages}
    heard = {stage: latency(two, "peer", stage) for stage in ("rib", "kernel")}
    one.put(affinity(1, "10.244.1.64/26"))
    wait_for(lambda: "10.244.1.64/26" in two.kernel_routes(), SOON, "the block is in the other's kernel")
    wait_for(lambda: latency(two, "peer", "kernel") > heard["kernel"], SOON, "the kernel's answer is timed")
    assert latency(two, "peer", "rib") > heard["rib"]
    for stage in stages:  # what an earlier test took away may still be on its way, and count too
        wait_for(lambda stage=stage: latency(one, "datastore", stage) > before[stage], SOON, f"{stage} is timed")  # type: ignore[misc]
    assert 0 < value(one, "routed_change_latency_seconds_sum", origin="datastore", stage="kernel") < 60
    one.remove("BlockAffinity", affinity(1, "10.244.1.64/26")["metadata"]["name"])
    wait_for(lambda: "10.244.1.64/26" not in two.kernel_routes(), SOON, "the block is gone")


def test_a_daemon_that_is_stuck_answers_nobody(pair: tuple[Routed, Routed]) -> None:
    one, _ = pair
    one.processes[0].signal(signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            ask(one.namespace, "/healthz", timeout=0.5)
    finally:
        one.processes[0].signal(signal.SIGCONT)
    assert ask(one.namespace, "/healthz")[0] == 200


def test_the_address_changes_live_and_one_that_cannot_be_had_is_a_problem(pair: tuple[Routed, Routed]) -> None:
    one, _ = pair
    one.configure(metrics={"listen": ["127.0.0.1:9972", "192.0.2.1:9971"]})
    one.processes[0].signal(signal.SIGHUP)
    problem = "metrics.listen: cannot listen on 192.0.2.1:9971: no interface here has this address"
    wait_for(lambda: problem in " ".join(one.problems()), SOON, "the address is a problem", state=one.problems)
    assert ask(one.namespace, "/healthz", port=9972)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(one.namespace, "/healthz")
    one.configure(metrics=None)
    one.processes[0].signal(signal.SIGHUP)
    wait_for(lambda: not one.problems(), SOON, "all is well")
    assert value(one, "routed_config_reload_success") == 1


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_understands_every_query_and_finds_the_alerts_well(
    pair: tuple[Routed, Routed], tmp_path: Path
) -> None:
    one, _ = pair
    shutil.copy(Path(__file__).parents[2] / "config" / "alerts.yaml", tmp_path)
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "routed", "static_configs": [{"targets": [f"127.0.0.1:{PORT}"]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = one.namespace.start(
        "prometheus",
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:9090",
    )

    def asked(path: str, **arguments: str) -> list[dict[str, object]]:
        with one.namespace.entered():
            sock = socket.create_connection(("127.0.0.1", 9090), 20)
        connection = http.client.HTTPConnection("127.0.0.1", 9090)
        connection.sock = sock
        connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(arguments)}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["status"] == "success", answer
        found: list[dict[str, object]] = answer["data"].get("result") or answer["data"].get("groups") or []
        return found

    def scraped() -> bool:
        try:
            return bool(asked("query", query="count_over_time(routed_ready[1m]) > 4"))
        except (OSError, ValueError):  # not listening yet, or starting: then it answers in plain words
            return False

    try:
        wait_for(scraped, 60, "Prometheus has scraped a few times")
        for query in queries():
            concrete = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
            if re.search(r" (==|>|<) ", concrete) or re.search("errno|notifications", concrete):
                asked("query", query=concrete)
            else:  # who did not answer a scrape in time has no values until the next
                wait_for(partial(asked, "query", query=concrete), SOON, f"something comes of {concrete}")

        def rules() -> list[dict[str, object]]:
            return [rule for group in asked("rules") for rule in group["rules"]]  # type: ignore[attr-defined]

        well = {rule["alert"]: "ok" for rule in alerts()}
        wait_for(lambda: {rule["name"]: rule["health"] for rule in rules()} == well, SOON, "all are well", state=rules)
        firing = {rule["name"] for rule in rules() if rule["state"] == "firing"}
        assert firing <= {"RoutedSessionFlaps"}, "nothing is wrong now"
    finally:
        process.kill()
