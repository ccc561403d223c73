"""An address that goes to another pod: what its former one was let through to on other nodes is over with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from tests.lab.test_policy_article import Cluster, Pod, namespace, pod

pytestmark = pytest.mark.lab

WEB_MAY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-may, namespace: production}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
"""
PORT = 5353


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab() as lab:
        made = Cluster(lab)
        made.apply(
            namespace("production"),
            *(pod("production", name, app=name) for name in ("api", "web", "other")),
            WEB_MAY,
        )
        yield made


def is_heard(source: Namespace, address: str) -> bool:
    """Whether a datagram from a port that is always the same is answered."""
    with source.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(0.4)
        try:
            made.bind(("", PORT))
            made.connect((address, 53))
            made.send(b"?")
            return made.recv(64) == b"?"
        except OSError:
            return False


def test_who_gets_an_address_is_not_taken_for_its_former_pod_on_other_nodes(cluster: Cluster):
    api = cluster.pod(1, "production", "api")
    web = cluster.pod(2, "production", "web")
    runtime = cluster.runtimes[1]
    cluster.settle(
        lambda: not cluster.near.reaches(api, "UDP/53"), "the policy is in force"
    )  # else web need not be known
    cluster.settle(lambda: is_heard(web.namespace, api.address), "web may speak to api")
    tracked = lambda: f"src={web.address} " in cluster.nodes[0].namespace.run("conntrack", "-L", "-p", "udp")  # noqa: E731
    assert tracked()
    assert runtime.call("DEL", web.namespace, name="web", namespace="production").status == 0
    made = cluster.lab.namespace("production-other")
    answer = runtime.call("ADD", made, name="other", namespace="production", runtimeConfig={"ips": [web.address]})
    assert answer.status == 0 and answer.addresses == [web.address], answer.output
    other = Pod(made, web.address)
    # it says nothing before: an answer that is on its way just then is tracked anew
    wait_for(lambda: not tracked(), 20, "what was tracked of web is gone before its time", state=cluster.lab.report)
    assert not any(is_heard(other.namespace, api.address) for _ in range(5))
