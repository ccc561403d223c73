"""The configuration as shipped, driven as containerd does: loopback, then the list, with Debian's plugins behind ours.

ADD goes down the list, each with the result of the one before; CHECK goes down it too, DEL up, both with the result that was
kept. A runtime calls DEL again until it works, also once the container's namespace is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import resource
from tests.house.rooms import ROOT
from tests.lab.test_cni import FORMS, Node, cluster

PLUGINS = "/usr/lib/cni"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
#: What Debian 12's and Ubuntu 24.04's plugins know too.
CHAINED = ("0.3.1", "0.4.0", "1.0.0")

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not os.path.exists(f"{PLUGINS}/portmap"),
        reason="Debian's plugins are not installed (containernetworking-plugins)",
    ),
    pytest.mark.skipif(shutil.which("iptables") is None, reason="iptables, which portmap calls, is not installed"),
]

SERVER = """
import socket
server = socket.create_server(("", 80))
print("listening", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as connection:
        print(connection.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


class Failed(Exception):
    """(plugin, what it printed)"""


class Containerd:
    """Its order of calls, with the configuration as shipped."""

    def __init__(self, node: Node, version: str, **runtime: Any) -> None:
        self.node = node
        self.version = version
        self.runtime = runtime
        self.kept: dict[str, Any] = {}
        """Results, by container, as in /var/lib/cni/results."""
        self.list = json.loads((ROOT / "config/10-routed.conflist").read_text())
        self.list["plugins"][0]["socket"] = node.runtime.socket

    def call(self, plugin: dict[str, Any], command: str, environment: dict[str, str], previous: Any) -> Any:
        configuration = {key: value for key, value in plugin.items() if key != "capabilities"}
        configuration |= {"cniVersion": self.version, "name": self.list["name"]}
        wanted = {key: value for key, value in self.runtime.items() if plugin.get("capabilities", {}).get(key)}
        if wanted:
            configuration["runtimeConfig"] = wanted
        if previous is not None:
            configuration["prevResult"] = previous
        kind = plugin["type"]
        program = self.node.runtime.plugin if kind == "routed-cni" else (f"{PLUGINS}/{kind}",)
        done = subprocess.run(
            ["nsenter", f"--net={NETNS}/{self.node.namespace.full_name}", "--", *program],
            input=json.dumps(configuration).encode(),
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": PLUGINS, **environment},
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise Failed(kind, done.stdout.decode())
        return json.loads(done.stdout) if done.stdout.strip() else None

    def environment(self, pod: Namespace, gone: bool = False) -> dict[str, str]:
        words = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name};K8S_POD_INFRA_CONTAINER_ID=c-{pod.name}"
        )
        return {
            "CNI_CONTAINERID": f"c-{pod.name}",
            "CNI_NETNS": "" if gone else f"{NETNS}/{pod.full_name}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": words,
        }

    def add(self, pod: Namespace) -> Any:
        environment = self.environment(pod)
        self.call({"type": "loopback"}, "ADD", {**environment, "CNI_IFNAME": "lo"}, None)
        result = None
        for plugin in self.list["plugins"]:
            result = self.call(plugin, "ADD", environment, result)
        self.kept[pod.name] = result
        return result

    def check(self, pod: Namespace) -> None:
        for plugin in self.list["plugins"]:
            if plugin["type"] == "portmap":  # that of 1.1 looks for IPv4's rules among those of IPv6, and fails always
                plugin = {**plugin, "capabilities": {}}
            self.call(plugin, "CHECK", self.environment(pod), self.kept[pod.name])

    def delete(self, pod: Namespace, *, gone: bool = False) -> None:
        previous = self.kept.get(pod.name) if self.version != "0.3.1" else None  # DEL is given it since 0.4.0
        for plugin in reversed(self.list["plugins"]):
            self.call(plugin, "DEL", self.environment(pod, gone), previous)
        self.call({"type": "loopback"}, "DEL", {**self.environment(pod, gone), "CNI_IFNAME": "lo"}, None)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab() as lab:
        made = Node(lab, 1)
        outside = lab.namespace("outside")
        lab.link(made.namespace.port("eth0", "10.0.0.1/24", "fd00::1/64"), outside.port("eth0", "10.0.0.9/24"))
        made.routed.put(*cluster(1), resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "natOutgoing": True}))
        made.start()
        yield made


def reached(source: Namespace, address: str, port: int) -> str:
    """Whom the server saw, or what became of it."""
    return source.run(sys.executable, "-c", CLIENT, address, str(port)).strip()


def serve(pod: Namespace) -> None:
    server = pod.start("server", sys.executable, "-c", SERVER)
    wait_for(lambda: "listening" in server.text(), 30, "the pod's server listens", state=pod.lab.report)


@pytest.mark.parametrize("version", CHAINED)
def test_the_list_as_shipped(node: Node, version: str):
    port = 8080 + CHAINED.index(version)
    limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
    mappings = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]
    containerd = Containerd(node, version, portMappings=mappings, bandwidth=limits)
    pod, outside = node.lab.namespace(f"web-{port}"), node.lab.namespaces["outside"]
    result = containerd.add(pod)
    assert result["cniVersion"] == version
    (ip,) = result["ips"]
    address = ip["address"].removesuffix("/32")
    interface = result["interfaces"][0]["name"]

    serve(pod)
    assert reached(outside, "10.0.0.1", port) == "10.0.0.9", node.lab.report()  # the source is the client's
    assert reached(node.namespace, "10.0.0.1", port) == "10.0.0.1"
    assert reached(pod, "10.0.0.9", 1) == "ConnectionRefusedError"  # it gets out, and to nobody

    shaped = node.namespace.run("tc", "qdisc", "show")
    assert [line for line in shaped.splitlines() if "tbf" in line and f"dev {interface} " in line and "8Mbit" in line]
    (other,) = [line.split()[4] for line in shaped.splitlines() if "tbf" in line and f"dev {interface} " not in line]
    if version != "0.3.1":
        containerd.check(pod)

        def is_seen() -> bool:
            """Unless the daemon, which keeps the interface, was faster than the call."""
            node.namespace.ip(f"link set {interface} down")
            try:
                containerd.check(pod)
            except Failed as error:
                return "is down" in str(error)
            return False

        wait_for(is_seen, 60, "CHECK sees what is wrong", state=node.lab.report)
        node.namespace.ip(f"link set {interface} up")

    containerd.delete(pod)
    assert reached(outside, "10.0.0.1", port) == "ConnectionRefusedError"
    wait_for(lambda: interface not in node.interfaces(), 30, "the interface goes", state=node.lab.report)
    assert other not in node.namespace.run("ip", "-br", "link")
    assert f"{port}" not in node.namespace.run("iptables-save", "-t", "nat")
    assert address not in node.namespace.routes(protocol=120)
    containerd.delete(pod)
    containerd.delete(pod, gone=True)


def test_a_list_that_fails_further_down_is_undone(node: Node):
    """As containerd does: an ADD that failed anywhere is followed by DEL of all."""
    containerd = Containerd(node, "1.0.0", portMappings=[{"hostPort": 99, "containerPort": 80, "protocol": "none"}])
    pod = node.lab.namespace("unlucky")
    with pytest.raises(Failed, match="portmap"):
        containerd.add(pod)
    assert len(node.interfaces()) == 1
    containerd.runtime = {}
    containerd.delete(pod)
    wait_for(lambda: not node.interfaces(), 30, "the interface goes", state=node.lab.report)


def test_ours_further_down_the_list(node: Node):
    """What plugins before us made is in our result."""
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net0", "mac": "0e:00:00:00:00:01", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    pod = node.lab.namespace("second")
    result = node.runtime.add(pod, previous=previous).output
    assert result["interfaces"][0] == previous["interfaces"][0] and len(result["interfaces"]) == 3
    assert result["ips"][0] == previous["ips"][0] and result["ips"][1]["interface"] == 2
    assert (result["routes"], result["dns"]) == (previous["routes"], previous["dns"])
    assert node.runtime.call("CHECK", pod, previous=result).status == 0
    assert node.runtime.call("DEL", pod, previous=result).status == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_gets_its_own_words(node: Node, version: str):
    pod = node.lab.namespace(f"v{version.replace('.', '')}")
    told = node.runtime.call("VERSION", cniVersion=version)
    assert (
        told.status == 0
        and told.output["cniVersion"] == version
        and set(VERSIONS) < set(told.output["supportedVersions"])
    )
    result = node.runtime.add(pod, cniVersion=version).output
    assert result["cniVersion"] == version
    (ip,), (host, inside) = result["ips"], result["interfaces"]
    assert ip["interface"] == 1 and ip.get("version") == ("4" if version < "1" else None)
    assert inside["sandbox"] == f"{NETNS}/{pod.full_name}" and "sandbox" not in host
    assert host.get("mtu") == (1500 if version == "1.1.0" else None)
    assert {key: set(value) for key, value in zip("hi", (host, inside), strict=True)} == {
        "h": {"name", "mac"} | ({"mtu"} if version == "1.1.0" else set()),
        "i": {"name", "mac", "sandbox"} | ({"mtu"} if version == "1.1.0" else set()),
    }
    for command, since in (("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")):
        attachments = [{"containerID": f"c-{pod.name}", "ifname": "eth0"}]
        settings = {"cniVersion": version, "cni.dev/valid-attachments": attachments}
        answer = node.runtime.call(command, pod, previous=result, **settings)
        if version >= since:
            assert (answer.status, answer.output) == (0, None)
        else:
            assert answer.status == 1 and answer.output["code"] == 1 and answer.output["cniVersion"] == version
    assert node.runtime.call("DEL", pod, cniVersion=version).status == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_version_of_nobody(node: Node, form: str):
    answer = node.runtime.call("ADD", node.lab.namespace(f"nobody-{form}"), cniVersion="2.0.0")
    assert answer.status == 1 and answer.output["code"] == 1 and "'2.0.0' is none of" in answer.output["msg"]
