"""The restated Kubernetes end-to-end cases of NetworkPolicy, read into a world that changes step by step."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tests.corpora import CORPORA
from tests.policy.specification import Connection, Endpoint, World

FILE = CORPORA / "netpol" / "k8s-e2e.json"


@dataclass(frozen=True)
class Probe:
    connection: Connection
    expected: bool
    text: str


@dataclass(frozen=True)
class Step:
    """A world with what is to be tried in it."""

    title: str
    world: World
    pods: tuple[Endpoint, ...]
    probes: tuple[Probe, ...]


@cache
def cases() -> list[dict[str, Any]]:
    return list(json.loads(FILE.read_text())["cases"]) if FILE.exists() else []


def steps(case: dict[str, Any]) -> Iterator[Step]:
    """The worlds of a case, one after the other."""
    namespaces = {name: dict(each["labels"]) for name, each in case["namespaces"].items()}
    pods = {f"{pod['namespace']}/{pod['name']}": _pod(pod) for pod in case["pods"]}
    nodes = {node["name"]: _host("node", node) for node in case["nodes"]}
    externals = {host["name"]: _host("ext", host) for host in case["externals"]}
    policies: dict[tuple[str, str], dict[str, Any]] = {}
    for number, step in enumerate(case["steps"], 1):
        for gone in step.get("delete", []):
            policies.pop((gone["namespace"], gone["name"]), None)
        for pod in step.get("pods", []):
            pods[f"{pod['namespace']}/{pod['name']}"] = _pod(pod)
        namespaces |= {name: dict(labels) for name, labels in step.get("namespaceLabels", {}).items()}
        for name, labels in step.get("podLabels", {}).items():
            pods[name] = replace(pods[name], labels=dict(labels))
        for policy in step["apply"]:
            metadata = policy["metadata"]
            policies[metadata["namespace"], metadata["name"]] = _with_addresses(policy, pods)
        everybody = (
            {f"pod:{name}": pod for name, pod in pods.items()}
            | {f"node:{name}": node for name, node in nodes.items()}
            | {f"ext:{name}": host for name, host in externals.items()}
        )
        world = World([copy.deepcopy(policy) for policy in policies.values()], copy.deepcopy(namespaces))
        probes = tuple(
            Probe(
                Connection(
                    everybody[probe["from"]],
                    everybody[probe["to"]],
                    probe["proto"],
                    probe["port"],
                    probe.get("family") == "v6",
                ),
                probe["expect"] == "allow",
                f"{probe['from']} -> {probe['to']} {probe['proto']}/{probe['port']}",
            )
            for probe in step["probes"]
        )
        yield Step(f"{case['id']} {case['title']} step {number}", world, tuple(pods.values()), probes)


def _pod(pod: dict[str, Any]) -> Endpoint:
    ports = tuple((each["name"], each["protocol"], each["containerPort"]) for each in pod["ports"])
    return Endpoint(
        "pod", pod["name"], pod["namespace"], dict(pod["labels"]), pod["node"], tuple(pod["ips"].values()), ports
    )


def _host(kind: str, host: dict[str, Any]) -> Endpoint:
    return Endpoint(kind, host["name"], node=host["name"], addresses=tuple(host["ips"].values()))


def _with_addresses(policy: dict[str, Any], pods: dict[str, Endpoint]) -> dict[str, Any]:
    """{{ns/pod}} and {{ns/pod:v6}} become the pod's address."""

    def address(match: re.Match[str]) -> str:
        name, _, family = match[1].partition(":")
        return next(each for each in pods[name].addresses if (":" in each) is (family == "v6"))

    made: dict[str, Any] = json.loads(re.sub(r"\{\{([^}]+)\}\}", address, json.dumps(policy)))
    return made
