"""Services of a Kubernetes API on a node: what the API says is announced, and what it takes back is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from routed.datastore.kubernetes import ENDPOINT_SLICES, SERVICES
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Routed, resource
from tests.datastore.kubernetes_api import TOKEN, KubernetesApi, make_certificates

pytestmark = pytest.mark.lab


class Api:
    """The stand-in in a namespace, on a loop of its own."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(namespace, folder), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    def _run(self, namespace: Namespace, folder: Path) -> None:
        async def main() -> None:
            self._over = asyncio.Event()
            async with KubernetesApi(folder) as self.api:
                self.api.objects = {SERVICES.path: {}, ENDPOINT_SLICES.path: {}}
                self._started.set()
                await self._over.wait()

        with namespace.entered():  # the thread's, so the sockets are there
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(main())

    def put(self, path: str, name: str, labels: dict[str, str] | None = None, **body: object) -> None:
        asyncio.run_coroutine_threadsafe(self.api.put(path, "shop", name, labels, **body), self.loop).result(10)

    def delete(self, path: str, name: str) -> None:
        asyncio.run_coroutine_threadsafe(self.api.delete(path, "shop", name), self.loop).result(10)

    def refuse(self, status: int) -> None:
        def now() -> None:
            self.api.refuse = status
            self.api.hang_up()

        self.loop.call_soon_threadsafe(now)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)


@contextmanager
def node_with_api(lab: Lab) -> Iterator[tuple[Routed, Api]]:
    node = lab.namespace("n1")
    node.ip("link add eth0 type bridge", "link set eth0 up")
    node.address("eth0", "10.0.0.1/24")
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
    routed = Routed(node, kubernetes={"kubeconfig": str(config)})
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
        wait_for(lambda: "10.96.0.0/16" in routes(routed), 15, "the range is announced", state=lab.report)
        assert "10.96.0.10/32" not in routes(routed)  # no endpoint here
        api.put(
            ENDPOINT_SLICES.path,
            "web-1",
            {"kubernetes.io/service-name": "web"},
            addressType="IPv4",
            endpoints=[{"addresses": ["10.65.0.1"], "conditions": {"ready": True}, "nodeName": "n1"}],
            ports=[{"port": 80, "protocol": "TCP"}],
        )
        wait_for(lambda: "10.96.0.10/32" in routes(routed), 15, "the service has an endpoint here", state=lab.report)
        api.refuse(503)
        wait_for(lambda: any("503" in one for one in routed.ask("status")["problems"]), 15, "it is said")
        assert routes(routed) >= {"10.96.0.0/16", "10.96.0.10/32"}
        api.refuse(0)
        wait_for(lambda: not any("503" in one for one in routed.ask("status")["problems"]), 30, "the problem is over")
        api.delete(ENDPOINT_SLICES.path, "web-1")
        wait_for(lambda: "10.96.0.10/32" not in routes(routed), 15, "the endpoint is gone")
        assert "warning kubernetes: the Kubernetes API does not give us" in routed.log()
        assert "info    kubernetes: put right: " in routed.log()
        assert TOKEN not in routed.log()
