"""An address that goes to another pod: what its former one was let through to on other nodes is over with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, Namespace
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
    cluster.settle(lambda: is_heard(web.namespace, api.address), "web may speak to api")
    assert runtime.call("DEL", web.namespace, name="web", namespace="production").status == 0
    made = cluster.lab.namespace("production-other")
    answer = runtime.call("ADD", made, name="other", namespace="production", runtimeConfig={"ips": [web.address]})
    assert answer.status == 0 and answer.addresses == [web.address], answer.output
    other = Pod(made, web.address)
    cluster.settle(lambda: not is_heard(other.namespace, api.address), "and other may not, though it has its address")
    assert not any(is_heard(other.namespace, api.address) for _ in range(5))
