"""Pods by CNI calls on real nodes: the plugin as a runtime runs it, the daemon behind it, packets between what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from routed.cni import client
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import Routed, resource

pytestmark = pytest.mark.lab

PLUGIN = (sys.executable, "-I", "-S", client.__file__)
NETWORK = "pods"


@dataclass
class Answer:
    status: int
    output: Any

    @property
    def addresses(self) -> list[str]:
        return [ip["address"].partition("/")[0] for ip in self.output["ips"]]


@dataclass
class Runtime:
    """Calls the plugin as containerd does: environment, configuration on standard input, one process a call."""

    node: Namespace
    socket: str
    version: str = "1.0.0"
    extra: dict[str, Any] = field(default_factory=dict)

    def call(
        self, command: str, pod: Namespace | None = None, name: str = "", previous: Any = None, **values: Any
    ) -> Answer:
        configuration = {
            "cniVersion": self.version, "name": NETWORK, "type": "routed-cni", "socket": self.socket, **self.extra, **values,
        }  # fmt: skip
        if previous is not None:
            configuration["prevResult"] = previous
        environment = {"CNI_COMMAND": command, "PATH": "/usr/bin:/bin", "CNI_PATH": "/nowhere"}
        if pod is not None:
            environment |= {
                "CNI_CONTAINERID": f"c-{name or pod.name}",
                "CNI_NETNS": f"{NETNS}/{pod.full_name}",
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name or pod.name}",
            }
        done = subprocess.run(
            ["nsenter", f"--net={NETNS}/{self.node.full_name}", "--", *PLUGIN],
            input=json.dumps(configuration).encode(),
            stdout=subprocess.PIPE,
            env=environment,
            check=False,
            timeout=60,
        )
        return Answer(done.returncode, json.loads(done.stdout) if done.stdout else None)

    def add(self, pod: Namespace, **values: Any) -> Answer:
        answer = self.call("ADD", pod, **values)
        assert answer.status == 0, answer.output
        return answer


class Node:
    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.namespace = lab.namespace(f"n{number}", forward=True)
        self.routed = Routed(self.namespace, cni={"enabled": True, "socket": f"{self.namespace.folder}/cni.sock"})
        self.runtime = Runtime(self.namespace, f"{self.namespace.folder}/cni.sock")

    def pod(self, name: str) -> Namespace:
        return self.lab.namespace(name)


def cluster(nodes: int) -> list[dict[str, Any]]:
    return [
        resource("BGPConfiguration", "default", {"asNumber": 64512}),
        resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "blockSize": 26}),
        resource("IPPool", "v6", {"cidr": "fd00:65::/64", "blockSize": 122}),
        *(
            resource(
                "Node",
                f"n{number}",
                {"bgp": {"ipv4Address": f"10.0.0.{number}/24", "ipv6Address": f"fd00::{number}/64"}},
            )
            for number in range(1, nodes + 1)
        ),
    ]


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab() as lab:
        made = Node(lab, 1)
        made.namespace.ip("link add eth0 type bridge", "link set eth0 up")
        made.namespace.address("eth0", "10.0.0.1/24", "fd00::1/64")
        made.routed.put(*cluster(1))
        made.routed.start()
        wait_for(lambda: made.runtime_ready(), 20, "the node takes pods", state=lab.report)  # type: ignore[attr-defined]
        yield made


def _ready(self: Node) -> bool:
    self.runtime.version = "1.1.0"
    answer = self.runtime.call("STATUS")
    self.runtime.version = "1.0.0"
    return answer.status == 0


Node.runtime_ready = _ready  # type: ignore[attr-defined]


def test_pods_come_and_go(node: Node):
    one, two = node.pod("web-0"), node.pod("web-1")
    dual = {"ipam": {"type": "routed-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}}
    first, second = node.runtime.add(one, **dual), node.runtime.add(two, **dual)
    assert len({*first.addresses, *second.addresses}) == 4
    for address in second.addresses:
        assert one.pings(address), node.lab.report()
        assert node.namespace.pings(address)
    for address in first.addresses:
        assert two.pings(address)
    check = node.runtime.call("CHECK", one, previous=first.output, **dual)
    assert check.status == 0, check.output
    again = node.runtime.add(one, **dual)
    assert again.output == first.output
    assert node.runtime.call("DEL", one).status == 0
    assert node.runtime.call("DEL", one).status == 0
    wait_for(lambda: "cali" not in node.namespace.run("ip", "-br", "link").replace(second.output["interfaces"][0]["name"], ""),
             10, "the interface goes")  # fmt: skip
    assert not one.pings(second.addresses[0], timeout=0.2) and node.namespace.pings(second.addresses[0])
    routes = node.namespace.routes(protocol=120)
    assert first.addresses[0] not in routes and second.addresses[0] in routes
    gone = node.runtime.call("CHECK", one, previous=first.output, **dual)
    assert gone.status == 1 and gone.output["code"] == 3
