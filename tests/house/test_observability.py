"""Metrics, alerts, dashboard and their pages agree: every query asks for what there is, every alert is explained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed.observe.catalogue import METRICS, Metric
from tests.house.rooms import ROOT, section, table

ALERTS = ROOT / "config" / "alerts.yaml"
DASHBOARD = ROOT / "config" / "grafana-dashboard.json"

#: Metrics that are not ours: Prometheus' own, and those of its client library.
FOREIGN = {
    "up": set[str](),
    "process_resident_memory_bytes": set[str](),
    "process_cpu_seconds_total": set[str](),
}

#: Labels Prometheus puts on everything.
ADDED = {"instance", "job"}

WORDS = {"and", "or", "unless", "on", "ignoring", "by", "without", "group_left", "group_right", "bool", "offset"}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    found = [str(rule["expr"]) for rule in alerts()]
    return found + [target["expr"] for panel in panels() for target in panel["targets"]]


def asked(query: str) -> tuple[dict[str, set[str]], set[str]]:
    """The metrics a query names, each with the labels it selects by; and the labels it groups or joins by."""
    query = re.sub(r"\[[^]]*\]", "", query)
    grouped: set[str] = set()
    for labels in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", query):
        grouped |= {label.strip() for label in labels.split(",")} - {""}
    query = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    metrics: dict[str, set[str]] = {}
    for name, selector in re.findall(
        r'([a-zA-Z_:][\w:]*)\s*(\{(?:[^}"]|"[^"]*")*\})?(?!\s*\()', re.sub(r"\w+\s*\(", "(", query)
    ):
        if name not in WORDS:
            metrics.setdefault(name, set()).update(
                re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', "", selector))
            )
    return metrics, grouped


def known(name: str) -> Metric | None:
    metric = METRICS.get(name)
    if metric is not None and metric.kind != "histogram":
        return metric
    base = METRICS.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return base if base is not None and base.kind == "histogram" and base.name != name else None


def labels_of(name: str) -> set[str]:
    if name in FOREIGN:
        return ADDED | FOREIGN[name]
    metric = known(name)
    assert metric is not None, f"there is no metric {name}"
    return ADDED | set(metric.labels) | ({"le"} if name.endswith("_bucket") else set())


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_metrics_and_labels_there_are(query: str) -> None:
    metrics, grouped = asked(query)
    assert metrics
    for name, selected in metrics.items():
        assert selected <= labels_of(name), name
    assert grouped <= set().union(*(labels_of(name) for name in metrics))


def test_the_reader_of_queries_reads() -> None:
    query = 'sum by (le, peer) (rate(a_bucket{x="y{z}", w!~"v"}[5m])) / on (instance) group_left (q) b > 1 or c'
    assert asked(query) == ({"a_bucket": {"x", "w"}, "b": set(), "c": set()}, {"le", "peer", "instance", "q"})


def test_the_dashboard_has_no_panel_twice_and_covers_each_area() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles) and len({panel["id"] for panel in panels()}) == len(titles)
    used = {name for query in queries() for name in asked(query)[0]}
    for area in ("bgp", "fib", "rib", "datastore", "loop", "change", "config"):
        assert any(name.startswith(f"routed_{area}_") for name in used), area


def test_every_alert_is_explained() -> None:
    text = (ROOT / "docs" / "alerts.md").read_text()
    names = [rule["alert"] for rule in alerts()]
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == names
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        names_in_summary = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        metrics, _ = asked(str(rule["expr"]))
        assert names_in_summary <= set().union(*(labels_of(name) for name in metrics))


def test_the_page_has_every_metric_as_it_is() -> None:
    text = section((ROOT / "docs" / "metrics.md").read_text(), "## Every metric")
    rows = re.findall(r"^\| `(routed_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows}
    assert listed == {metric.name: (metric.kind, metric.labels, metric.help) for metric in METRICS.values()}
    assert len(rows) == len(METRICS)


def test_every_label_is_explained() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    told = {label for row in table(text, "label", "values") for label in re.findall(r"`(\w+)`", row[0])}
    plain = {"version", "python", "kind", "address", "remote_as", "generation"}
    assert told | plain == {label for metric in METRICS.values() for label in metric.labels}


def test_names_follow_the_conventions() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"routed_[a-z0-9_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.help.endswith((".", ")")), metric.name
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is not installed")
class TestPromtool:
    def test_the_rules_are_valid(self) -> None:
        done = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_the_alerts_fire_when_they_should_and_not_before(self, tmp_path: Path) -> None:
        story = Path(__file__).with_name("alerts.test.yaml").read_text().replace("ALERTS", str(ALERTS))
        file = tmp_path / "alerts.test.yaml"
        file.write_text(story)
        done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_each_alert_has_a_story(self) -> None:
        story = yaml.safe_load(Path(__file__).with_name("alerts.test.yaml").read_text())
        fired = {
            each["alertname"] for test in story["tests"] for each in test["alert_rule_test"] if each.get("exp_alerts")
        }
        silent = {
            each["alertname"]
            for test in story["tests"]
            for each in test["alert_rule_test"]
            if not each.get("exp_alerts")
        }
        assert fired == silent == {rule["alert"] for rule in alerts()}
