"""Services of a Kubernetes API on a node: what the API says is announced, and what it takes back is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed.datastore.kubernetes import ENDPOINT_SLICES, NAMESPACES, SERVICES, pods_of
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Routed, resource
from tests.datastore.kubernetes_api import TOKEN, KubernetesApi, make_certificates
from tests.lab.test_cni import DUAL, Node, cluster

pytestmark = pytest.mark.lab

PODS = pods_of("any").path


class Api:
    """The stand-in in a namespace, on a loop of its own."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(namespace, folder), daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    def _run(self, namespace: Namespace, folder: Path) -> None:
        async def main() -> None:
            self._over = asyncio.Event()
            async with KubernetesApi(folder) as self.api:
                self.api.objects = {SERVICES.path: {}, ENDPOINT_SLICES.path: {}, NAMESPACES.path: {}, PODS: {}}
                self._started.set()
                await self._over.wait()

        with namespace.entered():  # the thread's, so the sockets are there
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(main())

    def put(self, path: str, name: str, labels: dict[str, str] | None = None, **body: object) -> None:
        asyncio.run_coroutine_threadsafe(self.api.put(path, "shop", name, labels, **body), self.loop).result(60)

    def put_namespace(self, name: str, **labels: str) -> None:
        asyncio.run_coroutine_threadsafe(self.api.put(NAMESPACES.path, "", name, labels), self.loop).result(60)

    def delete(self, path: str, name: str) -> None:
        asyncio.run_coroutine_threadsafe(self.api.delete(path, "shop", name), self.loop).result(60)

    def _soon(self, work: Callable[[], object]) -> None:
        """On the stand-in's loop; done when this returns."""

        async def now() -> None:
            work()

        asyncio.run_coroutine_threadsafe(now(), self.loop).result(60)

    def refuse(self, status: int) -> None:
        def now() -> None:
            self.api.refuse = status
            self.api.hang_up()

        self._soon(now)

    def forget(self) -> None:
        self._soon(self.api.forget)

    def hang(self) -> None:
        """Take what is asked and say nothing, until `answer`."""
        self._soon(self.api.answers.clear)

    def answer(self) -> None:
        self._soon(self.api.answers.set)

    def close(self) -> None:
        self.answer()
        self._soon(self._over.set)
        self._thread.join(20)


def start_api(node: Namespace) -> tuple[Api, str]:
    """The stand-in beside a node, and the path of a kubeconfig for it."""
    folder = node.folder / "kubernetes"
    folder.mkdir()
    make_certificates(folder)
    api = Api(node, folder)
    config = folder / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [
                    {
                        "name": "k",
                        "cluster": {"server": f"https://localhost:{api.api.port}", "certificate-authority": "ca.pem"},
                    }
                ],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
            }
        )
    )
    return api, str(config)


@contextmanager
def node_with_api(lab: Lab) -> Iterator[tuple[Routed, Api]]:
    node = lab.namespace("n1")
    node.ip("link add eth0 type bridge", "link set eth0 up")
    node.address("eth0", "10.0.0.1/24")
    api, config = start_api(node)
    routed = Routed(node, kubernetes={"kubeconfig": config})
    routed.put(
        resource("BGPConfiguration", "default", {"serviceClusterIPs": [{"cidr": "10.96.0.0/16"}]}),
        resource("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}}),
    )
    routed.start()
    try:
        yield routed, api
    finally:
        api.close()


def routes(routed: Routed) -> set[str]:
    return {row["prefix"] for row in routed.stream("routes")}


def test_services_come_from_the_api_and_stay_while_it_is_away():
    with Lab() as lab, node_with_api(lab) as (routed, api):
        api.put(
            SERVICES.path,
            "web",
            spec={
                "type": "NodePort",
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10"],
                "externalTrafficPolicy": "Local",
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
        )
        wait_for(lambda: "10.96.0.0/16" in routes(routed), 30, "the range is announced", state=lab.report)
        assert "10.96.0.10/32" not in routes(routed)  # no endpoint here
        api.put(
            ENDPOINT_SLICES.path,
            "web-1",
            {"kubernetes.io/service-name": "web"},
            addressType="IPv4",
            endpoints=[{"addresses": ["10.65.0.1"], "conditions": {"ready": True}, "nodeName": "n1"}],
            ports=[{"port": 80, "protocol": "TCP"}],
        )
        wait_for(lambda: "10.96.0.10/32" in routes(routed), 30, "the service has an endpoint here", state=lab.report)
        api.refuse(503)
        wait_for(lambda: any("503" in one for one in routed.ask("status")["problems"]), 30, "it is said")
        assert routes(routed) >= {"10.96.0.0/16", "10.96.0.10/32"}
        # a node that starts meanwhile has what it had, before it chooses and announces anything
        said = routed.log()
        routed.stop()
        routed.start()
        wait_for(lambda: routed.ask("status")["inSync"], 30, "it is in sync with the datastore")
        wait_for(
            lambda: routes(routed) >= {"10.96.0.0/16", "10.96.0.10/32"}, 30, "and has the services", state=lab.report
        )
        used = "the 1 of before the start are used"
        wait_for(lambda: any(used in one for one in routed.ask("status")["problems"]), 30, "which is said")
        api.refuse(0)
        wait_for(lambda: not any("503" in one for one in routed.ask("status")["problems"]), 30, "the problem is over")
        api.delete(ENDPOINT_SLICES.path, "web-1")
        wait_for(lambda: "10.96.0.10/32" not in routes(routed), 30, "the endpoint is gone")
        assert "warning kubernetes: the Kubernetes API does not give us" in said
        assert "info    kubernetes: put right: " in routed.log()
        assert TOKEN not in said + routed.log()


def test_an_api_that_hangs_at_the_very_first_start_keeps_nothing_else_waiting():
    """Nothing was saved yet: the sessions, the routes that are no services' and End-of-RIB come all the same."""
    service = {
        "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "protocol": "TCP"}],
    }  # fmt: skip
    endpoints = [{"addresses": ["10.65.0.1"], "conditions": {"ready": True}, "nodeName": "n1"}]
    with Lab() as lab:
        node, other = lab.namespace("n1"), lab.namespace("n2")
        lab.link(node.port("eth0", "10.0.0.1/24"), other.port("eth0", "10.0.0.2/24"))
        api, config = start_api(node)
        try:
            api.put(SERVICES.path, "web", spec=service)
            api.put(
                ENDPOINT_SLICES.path, "web-1", {"kubernetes.io/service-name": "web"}, addressType="IPv4",
                endpoints=endpoints, ports=[{"port": 80, "protocol": "TCP"}],
            )  # fmt: skip
            api.hang()
            resources = (
                resource("BGPConfiguration", "default", {"serviceClusterIPs": [{"cidr": "10.96.0.0/16"}]}),
                resource("IPPool", "v4", {"cidr": "10.244.0.0/16"}),
                *(resource("Node", f"n{one}", {"bgp": {"ipv4Address": f"10.0.0.{one}/24"}}) for one in (1, 2)),
                resource("BlockAffinity", "n1-v4", {"node": "n1", "cidr": "10.244.1.0/26", "state": "confirmed"}),
            )
            routed, peer = Routed(node, kubernetes={"kubeconfig": config}), Routed(other)
            routed.put(*resources)
            peer.put(*resources)
            peer.start()
            routed.start()
            wait_for(lambda: "10.244.1.0/26" in other.routes(protocol=120), 30, "the block", state=lab.report)
            assert "10.96.0.0/16" in routes(routed), "and the range of services"
            wait_for(lambda: "End-of-RIB: it has announced all" in peer.log(), 30, "End-of-RIB", state=lab.report)
            assert "10.96.0.10/32" not in routes(routed)
            up = peer.neighbors()["10.0.0.1"]["establishedCount"]
            wait_for(
                lambda: any("Kubernetes API has been asked for all Service" in one for one in routed.problems()),
                60,
                "it is said",
                state=lab.report,
            )
            api.answer()
            wait_for(lambda: "10.96.0.10/32" in routes(peer), 60, "the service is announced", state=lab.report)
            wait_for(
                lambda: not any("Kubernetes API" in one for one in routed.problems()), 30, "and the problem is over"
            )
            assert peer.neighbors()["10.0.0.1"]["establishedCount"] == up == 1
        finally:
            api.close()


def pod_object(name: str, namespace: str, labels: dict[str, str]) -> dict[str, Any]:
    """A Pod as the API has it while its sandbox is made."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "labels": labels, "uid": "0b4f7c1e-3c0f-4c39-8f9e-6c3b7d0f2a11",
            "resourceVersion": "4711", "creationTimestamp": "2026-11-26T08:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": "1"}],
        },
        "spec": {
            "serviceAccountName": "default", "nodeName": "n1", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "main", "image": "registry/main:1", "ports": [{"name": "web", "containerPort": 8080}]}],
            "volumes": [{"name": "token", "projected": {"sources": []}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    }  # fmt: skip


def test_a_pod_s_labels_come_from_the_api_and_policy_holds_by_them():
    with Lab() as lab:
        node = Node.alone(lab)
        api, config = start_api(node.namespace)
        try:
            api.api.objects[PODS] = {
                f"shop/{name}": pod_object(name, "shop", {"role": name}) for name in ("db", "web", "other")
            }
            node.routed.configure(kubernetes={"kubeconfig": config})
            api.api.denied.add(PODS)
            policy = {
                "selector": "role == 'db'",
                "types": ["Ingress"],
                "ingress": [{"action": "Allow", "source": {"selector": "role == 'web'"}}],
            }
            shop = resource("NetworkPolicy", "db", policy)
            shop["metadata"]["namespace"] = "shop"
            node.routed.put(*cluster(1), shop)
            node.start()
            pods = {name: lab.namespace(name) for name in ("db", "web", "other")}
            answers = {name: node.runtime.call("ADD", pod, namespace="shop", **DUAL) for name, pod in pods.items()}
            for address in answers["db"].addresses:
                assert pods["web"].pings(address), lab.report()
                assert not pods["other"].pings(address, timeout=0.3)
            for address in answers["other"].addresses:
                assert pods["db"].pings(address)

            # who may not list pods has what was so far; who may has what changes of a pod while it runs
            (address, _) = answers["db"].addresses
            needs = "must be allowed to list and watch /api/v1/pods"
            wait_for(lambda: any(needs in each for each in node.routed.problems()), 30, "it is said", state=lab.report)
            changed = pod_object("other", "shop", {"role": "web"})
            api.put(PODS, "other", {"role": "web"}, spec=changed["spec"], status=changed["status"])
            assert not pods["other"].pings(address, timeout=0.3)
            api.api.denied.clear()
            wait_for(lambda: pods["other"].pings(address, timeout=0.5), 60, "its label counts", state=lab.report)
            wait_for(lambda: not any(needs in each for each in node.routed.problems()), 30, "and that is over")

            # who is not in the API, or cannot be looked up there, is not let through as somebody else
            api.refuse(503)
            answer = node.runtime.call("ADD", lab.namespace("late"), name="web", namespace="shop")
            assert answer.status == 1 and answer.output["code"] == 11 and "503" in answer.output["msg"], answer.output
            assert len(node.interfaces()) == 3
            api.refuse(0)
            answer = node.runtime.call("ADD", lab.namespace("stranger"), namespace="shop")
            assert answer.status == 1 and answer.output["code"] == 11, answer.output
            assert len(node.interfaces()) == 3
        finally:
            api.close()


def test_a_namespace_s_labels_come_from_the_api_and_choose_pools_and_policies():
    with Lab() as lab:
        node = Node.alone(lab)
        api, config = start_api(node.namespace)
        try:
            api.api.objects[PODS] = {f"{each}/x": pod_object("x", each, {}) for each in ("shop", "back")}
            api.put_namespace("back", team="b")
            node.routed.configure(kubernetes={"kubeconfig": config})
            node.routed.put(
                *cluster(1),
                resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "blockSize": 26, "namespaceSelector": "team != 'a'"}),
                resource("IPPool", "a", {"cidr": "10.77.0.0/24", "blockSize": 28, "namespaceSelector": "team == 'a'"}),
                resource(
                    "GlobalNetworkPolicy",
                    "no-a",
                    {
                        "namespaceSelector": "team == 'b'",
                        "types": ["Ingress"],
                        "ingress": [
                            {"action": "Deny", "source": {"namespaceSelector": "team == 'a'"}},
                            {"action": "Allow"},
                        ],
                    },
                ),
            )
            node.start()
            shop, back = lab.namespace("shop"), lab.namespace("back")
            api.put_namespace("shop", team="a")  # right before its first pod
            a = node.runtime.call("ADD", shop, name="x", namespace="shop")
            b = node.runtime.call("ADD", back, name="x", namespace="back")
            (of_a,), (of_b,) = a.addresses, b.addresses
            assert of_a.startswith("10.77.0.") and of_b.startswith("10.65."), (of_a, of_b)
            assert back.pings(of_a) and not shop.pings(of_b, timeout=0.3)
            api.put_namespace("shop", team="c")
            wait_for(lambda: shop.pings(of_b, timeout=0.5), 30, "it is no team of that name any more", state=lab.report)
            # what the datastore says of a namespace counts before what the API does
            manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
            node.routed.put(manifest)
            wait_for(lambda: not shop.pings(of_b, timeout=0.3), 30, "the datastore says it is", state=lab.report)
            node.routed.remove("Namespace", "shop")
            wait_for(lambda: shop.pings(of_b, timeout=0.5), 30, "the API's word again", state=lab.report)
        finally:
            api.close()
