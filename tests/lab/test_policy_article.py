"""Policies as people write them, applied by routedctl to two real nodes: manifests of Kubernetes and Calico, real packets.

Both nodes read one folder, as nodes do that get it from one place.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from routed.testing.lab import Lab, LabError, Namespace, wait_for
from routed.testing.routers import Routed, resource
from tests.cni.forms import program
from tests.lab.nflog import LogReader
from tests.lab.test_cni import Runtime

pytestmark = pytest.mark.lab

LOG_GROUP = 7

ALLOW_WEB_TO_API = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-web-to-api
  namespace: production
spec:
  podSelector:
    matchLabels:
      app: api
  policyTypes:
  - Ingress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: web
    ports:
    - protocol: TCP
      port: 8080
"""

LIMIT_EXTERNAL_ACCESS = """\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: limit-external-access
  namespace: production
spec:
  selector: app == 'api'
  types:
  - Egress
  egress:
  - action: Allow
    protocol: TCP
    destination:
      nets:
      - 10.0.0.0/24
      ports:
      - 80
  - action: Allow
    protocol: UDP
    destination:
      nets:
      - 10.0.0.0/24
      ports:
      - 53
"""

BY_NAMESPACE = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-trusted, namespace: production}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {trusted: "yes"}}
"""


def namespace(name: str, **labels: str) -> str:
    lines = "".join(f"    {label}: '{value}'\n" for label, value in labels.items())
    return f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    name: {name}\n{lines}"


def pod(namespace: str, name: str, **labels: str) -> str:
    lines = "".join(f"    {label}: {value}\n" for label, value in labels.items())
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n{lines}"
        "spec:\n  containers:\n  - name: c\n"
    )


SERVER = """\
import itertools, selectors, socket, sys
chosen = selectors.DefaultSelector()
for address, text in itertools.product(sys.argv[1].split(","), sys.argv[2:]):
    kind, port = text.split("/")
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, int(port)))
    if kind == "TCP":
        made.listen(64)
    chosen.register(made, selectors.EVENT_READ, kind)
while True:
    for key, _ in chosen.select():
        if key.data == "TCP":
            key.fileobj.accept()[0].close()
        else:
            data, peer = key.fileobj.recvfrom(64)
            key.fileobj.sendto(data, peer)
"""
SERVED = ("TCP/80", "TCP/443", "TCP/8080", "TCP/8081", "UDP/53", "UDP/123")


def reaches(source: Namespace, address: str, what: str, timeout: float = 0.4) -> bool:
    """Whether a connection is made, or a datagram answered."""
    kind, port = what.split("/")
    with source.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM)
    with made:
        made.settimeout(timeout)
        try:
            made.connect((address, int(port)))
            if kind == "UDP":
                made.send(b"?")
                made.recv(64)
        except OSError:
            return False
        return True


@dataclass
class Pod:
    namespace: Namespace
    address: str

    def reaches(self, other: Pod, what: str, timeout: float = 0.4) -> bool:
        return reaches(self.namespace, other.address, what, timeout)


class Cluster:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / "datastore"
        self.folder.mkdir()
        self.nodes: list[Routed] = []
        segment = lab.segment("wire")
        for number in (1, 2):
            node = lab.namespace(f"n{number}", forward=True)
            segment.attach(node, "eth0", f"192.0.2.{number}/24")
            made = Routed(
                node,
                datastore={"type": "file", "path": str(self.folder)},
                cni={"enabled": True, "socket": f"{node.folder}/cni.sock"},
                policy={"logGroup": LOG_GROUP},
            )
            self.nodes.append(made)
        self.outside: dict[str, Pod] = {}
        host = lab.namespace("outside")
        segment.attach(host, "eth0", "192.0.2.9/24", "10.0.0.10/24", "10.0.1.10/24")
        host.ip("route add 10.65.0.0/16 via 192.0.2.1")
        for node in self.nodes:
            node.namespace.ip("route add 10.0.0.0/23 via 192.0.2.9")
        self.serve(host, "10.0.0.10", "10.0.1.10")
        self.near, self.far = Pod(host, "10.0.0.10"), Pod(host, "10.0.1.10")
        self.put(
            resource("BGPConfiguration", "default", {"asNumber": 64512}),
            resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "blockSize": 26}),
            *(resource("Node", f"n{each}", {"bgp": {"ipv4Address": f"192.0.2.{each}/24"}}) for each in (1, 2)),
        )
        self.runtimes = [
            Runtime(each.namespace, f"{each.namespace.folder}/cni.sock", tuple(program("c", each.namespace.folder)))
            for each in self.nodes
        ]
        for node in self.nodes:
            node.start()
        wait_for(
            lambda: all(each.call("STATUS", cniVersion="1.1.0").status == 0 for each in self.runtimes),
            30,
            "both nodes take pods",
            state=lab.report,
        )

    def put(self, *manifests: Any) -> None:
        self.nodes[0].resources = self.folder
        self.nodes[0].put(*manifests)

    def serve(self, where: Namespace, *addresses: str) -> None:
        where.start("server", sys.executable, "-c", SERVER, ",".join(addresses), *SERVED)

    def apply(self, *documents: str, check: bool = True) -> str:
        """By routedctl."""
        path = self.lab.folder / "applied.yaml"
        path.write_text("---\n".join(documents))
        return self.nodes[0].ctl("apply", "-f", str(path), check=check)

    def pod(self, node: int, namespace: str, name: str) -> Pod:
        """As a runtime starts it, after its manifest was applied."""
        made = self.lab.namespace(f"{namespace}-{name}")
        runtime = self.runtimes[node - 1]
        answer = runtime.call("ADD", made, name=name, namespace=namespace)
        assert answer.status == 0, answer.output
        self.serve(made, answer.addresses[0])
        return Pod(made, answer.addresses[0])

    def settle(self, condition: Any, what: str) -> None:
        wait_for(condition, 30, what, state=self.lab.report)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab() as lab:
        yield Cluster(lab)


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> dict[str, Pod]:
    cluster.apply(
        namespace("production", trusted="yes"),
        namespace("staging"),
        pod("production", "api", app="api"),
        pod("production", "web", app="web"),
        pod("production", "other", app="other"),
        pod("production", "db", app="db"),
        pod("staging", "web", app="web"),
    )
    cluster.settle(
        lambda: all("Namespace" in node.ctl("get", "ns", "staging", "-o", "yaml") for node in cluster.nodes),
        "the manifests are read",
    )
    made = {
        "api": cluster.pod(1, "production", "api"),
        "web": cluster.pod(2, "production", "web"),
        "other": cluster.pod(1, "production", "other"),
        "db": cluster.pod(2, "production", "db"),
        "stranger": cluster.pod(1, "staging", "web"),
    }
    for name, each in made.items():
        cluster.settle(lambda each=each: cluster.near.reaches(each, "TCP/80"), f"{name} serves")
    return made


@pytest.fixture
def in_force(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """Both of the article's policies."""
    cluster.apply(ALLOW_WEB_TO_API, LIMIT_EXTERNAL_ACCESS)
    cluster.settle(lambda: not pods["other"].reaches(pods["api"], "TCP/8080"), "the first is in force")
    cluster.settle(lambda: not pods["api"].reaches(cluster.far, "TCP/80"), "the second is in force")


@pytest.fixture
def open_to_all(cluster: Cluster) -> None:
    """Neither of them."""
    path = cluster.lab.folder / "deleted.yaml"
    for document in (ALLOW_WEB_TO_API, LIMIT_EXTERNAL_ACCESS):
        path.write_text(document)
        cluster.nodes[0].ctl("delete", "-f", str(path), check=False)  # it may not be there


@pytest.mark.usefixtures("open_to_all")
def test_allow_web_to_api(cluster: Cluster, pods: dict[str, Pod]):
    for source in ("web", "other", "stranger"):
        cluster.settle(lambda source=source: pods[source].reaches(pods["api"], "TCP/8080"), f"{source} is open")
    assert "allow-web-to-api" in cluster.apply(ALLOW_WEB_TO_API)
    cluster.settle(lambda: not pods["other"].reaches(pods["api"], "TCP/8080"), "the policy is in force")
    assert pods["web"].reaches(pods["api"], "TCP/8080")
    assert not pods["web"].reaches(pods["api"], "TCP/8081")
    assert not pods["stranger"].reaches(pods["api"], "TCP/8080")  # the same label, in another namespace
    assert not cluster.near.reaches(pods["api"], "TCP/8080")
    assert pods["api"].reaches(pods["other"], "TCP/8080")
    assert reaches(cluster.nodes[0].namespace, pods["api"].address, "TCP/8081")  # its own node
    # what a pod is called may change while it runs
    cluster.apply(pod("production", "other", app="web"))
    cluster.settle(lambda: pods["other"].reaches(pods["api"], "TCP/8080"), "the new label counts")
    cluster.apply(pod("production", "other", app="other"))
    cluster.settle(lambda: not pods["other"].reaches(pods["api"], "TCP/8080"), "and the old one again")


@pytest.mark.usefixtures("open_to_all")
def test_limit_external_access(cluster: Cluster, pods: dict[str, Pod]):
    api = pods["api"]
    for what, where in product(SERVED, (cluster.near, cluster.far)):
        cluster.settle(lambda what=what, where=where: api.reaches(where, what), f"{what} is open")
    assert "limit-external-access" in cluster.apply(LIMIT_EXTERNAL_ACCESS)
    cluster.settle(lambda: not api.reaches(cluster.far, "TCP/80"), "the policy is in force")
    assert all(api.reaches(cluster.near, what, 20) for what in ("TCP/80", "UDP/53"))  # a server must come to answer
    assert not any(api.reaches(cluster.near, what) for what in SERVED if what not in ("TCP/80", "UDP/53"))
    assert not any(api.reaches(cluster.far, what) for what in SERVED)
    assert not api.reaches(pods["web"], "TCP/80")
    assert pods["web"].reaches(cluster.far, "TCP/443")


@pytest.mark.usefixtures("in_force")
def test_explain_asks_the_kernel(cluster: Cluster, pods: dict[str, Pod]):
    node = cluster.nodes[0]  # where api and other are
    words = ["policy", "explain", "--from", "production/other", "--to", "production/api", "--port", "8080", "--json"]
    before = json.loads(node.ctl(*words))
    assert (before["verdict"], before["kernel"]["verdict"]) == ("deny", "deny")
    assert before["reason"] == "end of default" and before["disagreements"] == []
    words[3], words[5] = "production/api", "10.0.0.10"
    words[7] = "80"
    allowed = json.loads(node.ctl(*words))
    rule = "NetworkPolicy production/limit-external-access egress 1"
    assert (allowed["verdict"], allowed["reason"], allowed["kernel"]["reason"]) == ("allow", rule, rule)
    assert allowed["kernel"]["outgoingBy"].startswith("as the kernel routes it"), allowed["kernel"]
    way = f"leaves by {allowed['kernel']['outgoing']} ({allowed['kernel']['outgoingBy']})"
    assert f"  comes in by {allowed['kernel']['incoming']} (the pod's own), {way}\n" in node.ctl(*words[:-1])
    counted = {each["rule"]: each["packets"] for chain in allowed["kernel"]["chains"] for each in chain["rules"]}
    assert pods["api"].reaches(cluster.near, "TCP/80")
    again = json.loads(node.ctl(*words))
    now = {each["rule"]: each["packets"] for chain in again["kernel"]["chains"] for each in chain["rules"]}
    assert now[rule] == counted[rule] + 1


@pytest.mark.usefixtures("in_force")
def test_denied_packets_are_logged_and_counted_by_policy(cluster: Cluster, pods: dict[str, Pod]):
    node = cluster.nodes[0]
    # what logs is asked first and decides nothing; what is denied by a rule is told by it, else by who was asked
    cluster.apply(
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: watch, namespace: production}\n"
        "spec:\n  order: 1\n  selector: app == 'api'\n  types: [Ingress]\n  ingress:\n"
        "  - {action: Log, protocol: UDP}\n  - {action: Deny, protocol: UDP, destination: {ports: [123]}}\n"
    )
    watch = "NetworkPolicy production/watch ingress"
    with LogReader(node.namespace, LOG_GROUP) as log:

        def logged() -> bool:
            reaches(pods["other"].namespace, pods["api"].address, "UDP/123", 0.05)
            return f"routed log {watch} 1" in log.next()

        cluster.settle(logged, "the policy is in force")
        log.until(f"routed deny {watch} 2")
        assert not pods["other"].reaches(pods["api"], "TCP/8081")
        asked = "NetworkPolicy production/watch, NetworkPolicy production/knp.default.allow-web-to-api"
        end = log.until(f"routed deny end of default: {asked}")[-1]
        assert pods["web"].reaches(pods["api"], "TCP/8080")

    def counted() -> dict[tuple[str, str], int]:
        text = node.namespace.run("curl", "-s", "http://127.0.0.1:9971/metrics")
        return {
            (sample.labels["policy"], sample.labels["action"]): int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "routed_policy_packets_total"
        }

    def after(name: str, action: str) -> bool:
        return counted().get((name, action), 0) >= 1

    for name, action in (
        ("NetworkPolicy production/watch", "log"),
        ("NetworkPolicy production/watch", "deny"),
        ("NetworkPolicy production/knp.default.allow-web-to-api", "allow"),
        (end.split(":")[0].removeprefix("routed deny "), "deny"),
    ):
        cluster.settle(lambda name=name, action=action: after(name, action), f"{name} {action} is counted")
    node.ctl("delete", "NetworkPolicy", "watch", "-n", "production")


def test_a_namespace_s_labels_count_as_they_change(cluster: Cluster, pods: dict[str, Pod]):
    cluster.apply(BY_NAMESPACE)
    cluster.settle(lambda: not pods["stranger"].reaches(pods["db"], "TCP/80"), "the policy is in force")
    assert pods["other"].reaches(pods["db"], "TCP/80")
    cluster.apply(namespace("staging", trusted="yes"))
    cluster.settle(lambda: pods["stranger"].reaches(pods["db"], "TCP/80"), "staging is trusted")
    cluster.apply(namespace("staging"))
    cluster.settle(lambda: not pods["stranger"].reaches(pods["db"], "TCP/80"), "and no more")


@pytest.mark.usefixtures("in_force")
def test_a_broken_policy_closes_what_it_selects_and_nothing_else(cluster: Cluster, pods: dict[str, Pod]):
    broken = (
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: broken, namespace: staging}\n"
        "spec:\n  selector: app == 'web'\n  ingress:\n  - action: Allow\n    source: {nets: [10.0.0.0/40]}\n"
    )
    with pytest.raises(LabError, match=r"applied\.yaml:8: .*nets"):
        cluster.apply(broken)
    stranger, other = pods["stranger"], pods["other"]
    assert other.reaches(stranger, "TCP/80")
    path = Path(cluster.folder) / "broken.yaml"
    path.write_text(broken)
    cluster.settle(lambda: not other.reaches(stranger, "TCP/80"), "what it selects is closed")
    assert stranger.reaches(other, "TCP/80")  # in its direction only
    assert pods["web"].reaches(pods["api"], "TCP/8080") and not other.reaches(pods["api"], "TCP/8080")
    (problem,) = [each for each in cluster.nodes[0].problems() if "what it selects is closed" in each]
    assert problem.startswith("NetworkPolicy staging/broken: ") and "broken.yaml:8" in problem
    path.write_text(broken.replace("10.0.0.0/40", "192.0.2.0/24"))
    cluster.settle(lambda: cluster.near.reaches(stranger, "TCP/80"), "put right")
    assert not any("closed" in each for each in cluster.nodes[0].problems())
    path.write_text(broken.replace("app == 'web'", "app = 'web'"))
    cluster.settle(lambda: not cluster.near.reaches(stranger, "TCP/80"), "no selector: its namespace is closed")
    assert not stranger.reaches(cluster.near, "TCP/80")  # in both directions
    assert pods["web"].reaches(pods["api"], "TCP/8080")
    path.unlink()
    cluster.settle(lambda: other.reaches(stranger, "TCP/80"), "it is gone")
