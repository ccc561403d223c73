"""A label that changes at the Kubernetes API while its pod runs: the policy of every node goes by it, with real packets."""

from __future__ import annotations

from typing import Any

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import resource
from tests.lab.etcd import Etcd
from tests.lab.test_cni import Node
from tests.lab.test_kubernetes import PODS, Api, pod_object, start_api

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

GUARDED = {
    "selector": "role == 'db'",
    "types": ["Ingress"],
    "ingress": [{"action": "Allow", "source": {"selector": "role == 'web'"}}],
}


def put_pod(api: Api, name: str, node: str, **labels: str) -> None:
    made: dict[str, Any] = pod_object(name, "shop", labels)
    api.put(PODS, name, labels, spec={**made["spec"], "nodeName": node}, status=made["status"])


@pytest.mark.timeout(300)
def test_a_label_changed_at_the_api_changes_what_every_node_lets_through():
    """Also one that changes while the daemon, or the API, is away, or that a compacted watch did not tell of."""
    with Lab() as lab:
        wire, outside = lab.segment("wire"), lab.namespace("outside")
        wire.attach(outside, "eth0", "10.0.0.100/24")
        etcd = Etcd(outside, "10.0.0.100")
        etcd.start()
        etcd.put_resource("bgpconfigurations", resource("BGPConfiguration", "default", {"asNumber": 64512}))
        etcd.put_resource("ippools", resource("IPPool", "v4", {"cidr": "10.65.0.0/16"}))
        etcd.put_resource("globalnetworkpolicies", resource("GlobalNetworkPolicy", "guarded", GUARDED))
        nodes = [Node(lab, number) for number in (1, 2)]
        for number, node in enumerate(nodes, 1):
            wire.attach(node.namespace, "eth0", f"10.0.0.{number}/24")
            bgp = {"ipv4Address": f"10.0.0.{number}/24"}
            etcd.put_resource("nodes", resource("Node", f"n{number}", {"bgp": bgp}))
            node.routed.configure(datastore={"type": "etcd", "endpoints": [etcd.url]})
        first, second = nodes
        api, config = start_api(first.namespace)
        try:
            put_pod(api, "web", "n1", role="other")
            put_pod(api, "elsewhere", "n2", role="web")
            first.routed.configure(
                datastore={"type": "etcd", "endpoints": [etcd.url]}, kubernetes={"kubeconfig": config}
            )
            for node in nodes:
                node.start()
            web, fixed, db = (lab.namespace(name) for name in ("web", "fixed", "db"))
            first.runtime.add(web, namespace="shop")
            labels = {"args": {"cni": {"labels": [{"key": "role", "value": "other"}]}}}
            first.runtime.add(fixed, namespace="shop", **labels)
            role = {"args": {"cni": {"labels": [{"key": "role", "value": "db"}]}}}
            (address,) = second.runtime.add(db, namespace="shop", **role).addresses
            wait_for(lambda: address in first.namespace.run("ip", "route"), 30, "the route", state=lab.report)

            def let_through(what: str) -> None:
                wait_for(lambda: web.pings(address, timeout=0.5), 60, what, state=lab.report)

            def kept_out(what: str) -> None:
                wait_for(lambda: not web.pings(address, timeout=0.5), 60, what, state=lab.report)

            kept_out("it is another role's")
            put_pod(api, "web", "n1", role="web")
            let_through("its label is another one")
            put_pod(api, "fixed", "n1", role="web")  # which the API has no say about
            put_pod(api, "web", "n1", role="other")
            kept_out("it is what it was")

            first.routed.kill()
            put_pod(api, "web", "n1", role="web")
            first.start()
            let_through("the daemon was away when it changed")

            api.refuse(503)
            wait_for(lambda: any("Pod objects: 503" in each for each in first.routed.problems()), 30, "it is said")
            put_pod(api, "web", "n1", role="other")
            assert web.pings(address)
            api.refuse(0)
            kept_out("the API is back")

            api.refuse(503)
            put_pod(api, "web", "n1", role="web")
            api.forget()  # 410 for a watch that goes on
            api.refuse(0)
            let_through("all are listed anew")

            api.delete(PODS, "web")
            put_pod(api, "late", "n1", role="late")
            late = lab.namespace("late")
            first.runtime.add(late, namespace="shop")
            put_pod(api, "late", "n1", role="web")
            wait_for(lambda: late.pings(address, timeout=0.5), 60, "its label is another one", state=lab.report)
            assert web.pings(address), "whose Pod is gone, and its DEL has not come"
            assert not fixed.pings(address, timeout=0.3)
            assert all("spec.nodeName%3Dn1" in each for each in api.api.asked if each.startswith(f"{PODS}?"))
        finally:
            api.close()
