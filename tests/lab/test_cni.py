"""Pods by CNI calls on real nodes: the plugin as a runtime runs it, the daemon behind it, packets between what comes out."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echoes import echoes
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import Routed, resource
from tests.cni.forms import FORMS, PYTHON, program

pytestmark = pytest.mark.lab

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
    plugin: tuple[str, ...] = tuple(PYTHON)
    version: str = "1.0.0"
    extra: dict[str, Any] = field(default_factory=dict)

    def call(
        self,
        command: str,
        pod: Namespace | None = None,
        name: str = "",
        previous: Any = None,
        namespace: str = "default",
        **values: Any,
    ) -> Answer:
        configuration = {
            "cniVersion": self.version, "name": NETWORK, "type": "routed-cni", "socket": self.socket, **self.extra, **values,
        }  # fmt: skip
        if previous is not None:
            configuration["prevResult"] = previous
        environment = {"CNI_COMMAND": command, "PATH": "/usr/bin:/bin", "CNI_PATH": "/nowhere"}
        if pod is not None:
            environment |= {
                "CNI_CONTAINERID": f"c-{pod.name}",
                "CNI_NETNS": f"{NETNS}/{pod.full_name}",
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name or pod.name}",
            }
        done = subprocess.run(
            ["nsenter", f"--net={NETNS}/{self.node.full_name}", "--", *self.plugin],
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
    def __init__(self, lab: Lab, number: int, form: str = "c") -> None:
        self.lab = lab
        self.number = number
        self.namespace = lab.namespace(f"n{number}", forward=True)
        self.routed = Routed(self.namespace, cni={"enabled": True, "socket": f"{self.namespace.folder}/cni.sock"})
        plugin = program(form, self.namespace.folder)
        self.runtime = Runtime(self.namespace, f"{self.namespace.folder}/cni.sock", tuple(plugin))

    @classmethod
    def alone(cls, lab: Lab, form: str = "c") -> Node:
        """Node 1 with an uplink that leads nowhere."""
        made = cls(lab, 1, form)
        made.namespace.ip("link add eth0 type bridge", "link set eth0 up")
        made.namespace.address("eth0", "10.0.0.1/24", "fd00::1/64")
        return made

    def start(self) -> None:
        self.routed.start()
        wait_for(self.is_ready, 30, "the node takes pods", state=self.lab.report)

    def is_ready(self) -> bool:
        return self.runtime.call("STATUS", cniVersion="1.1.0").status == 0

    def interfaces(self) -> list[str]:
        """The node's ends of pods' wires."""
        links = self.namespace.run("ip", "-br", "link").splitlines()
        return [line.split("@")[0] for line in links if line.startswith("cali")]


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


@pytest.fixture(params=FORMS)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with Lab() as lab:
        made = Node.alone(lab, request.param)
        made.routed.put(*cluster(1))
        made.start()
        yield made


DUAL = {"ipam": {"type": "routed-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}}


def test_pods_come_and_go(node: Node):
    one, two = node.lab.namespace("web-0"), node.lab.namespace("web-1")
    first, second = node.runtime.add(one, **DUAL), node.runtime.add(two, **DUAL)
    assert len({*first.addresses, *second.addresses}) == 4
    for address in second.addresses:
        assert one.pings(address), node.lab.report()
        assert node.namespace.pings(address)
    for address in first.addresses:
        assert two.pings(address)
    check = node.runtime.call("CHECK", one, previous=first.output, **DUAL)
    assert check.status == 0, check.output
    again = node.runtime.add(one, **DUAL)
    assert again.output == first.output
    assert node.runtime.call("DEL", one).status == 0
    assert node.runtime.call("DEL", one).status == 0
    wait_for(lambda: node.interfaces() == [second.output["interfaces"][0]["name"]], 30, "the interface goes")
    assert not one.pings(second.addresses[0], timeout=0.2) and node.namespace.pings(second.addresses[0])
    routes = node.namespace.routes(protocol=120)
    assert first.addresses[0] not in routes and second.addresses[0] in routes
    gone = node.runtime.call("CHECK", one, previous=first.output, **DUAL)
    assert gone.status == 1 and gone.output["code"] == 3


SWITCHES = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


def node_that_passes_nothing_on(lab: Lab) -> Node:
    """Not started, in a namespace that forwards neither family."""
    node = Node(lab, 1)
    for switch in SWITCHES:
        node.namespace.sysctl(switch, "0")
    node.namespace.ip("link add eth0 type bridge", "link set eth0 up")
    node.namespace.address("eth0", "10.0.0.1/24", "fd00::1/64")
    return node


def test_a_node_that_takes_pods_passes_packets_on():
    with Lab() as lab:
        node = node_that_passes_nothing_on(lab)
        node.routed.put(*cluster(1))
        node.start()
        assert node.namespace.run("sysctl", "-n", *SWITCHES).split() == ["1", "1"]
        assert "no packet passes" not in node.routed.ctl("status")
        node.namespace.sysctl(SWITCHES[1], "0")
        assert f"{SWITCHES[1]} is 0, so no packet passes" in node.routed.ctl("status")
        told = node.runtime.call("STATUS", cniVersion="1.1.0")
        assert told.output["code"] == 51 and "no packet passes" in told.output["msg"]


def test_a_family_that_gets_its_first_pool_later_is_passed_on_too():
    with Lab() as lab:
        node = node_that_passes_nothing_on(lab)
        pools = [each for each in cluster(1) if each["kind"] == "IPPool"]
        node.routed.put(*(each for each in cluster(1) if each["kind"] != "IPPool"))
        node.routed.start()
        wait_for(
            lambda: "there is no enabled IPPool" in str(node.runtime.call("STATUS", cniVersion="1.1.0").output), 30,
            "the datastore was read", state=lab.report,
        )  # fmt: skip
        assert node.namespace.run("sysctl", "-n", *SWITCHES).split() == ["0", "0"]
        for pool, expected in zip(pools, (["1", "0"], ["1", "1"]), strict=True):
            node.routed.put(pool)
            wait_for(
                lambda expected=expected: node.namespace.run("sysctl", "-n", *SWITCHES).split() == expected,
                30,
                f"{pool['metadata']['name']} is passed on",
                state=lab.report,
            )
        node.namespace.sysctl(SWITCHES[0], "0")
        node.routed.put({**pools[0], "spec": {**pools[0]["spec"], "natOutgoing": True}})
        wait_for(lambda: "masquerade" in node.namespace.run("nft", "list", "ruleset"), 30, "the change is read")
        assert node.namespace.run("sysctl", "-n", *SWITCHES).split() == ["0", "1"]


def test_a_restart_of_the_daemon_loses_no_packet_and_finds_all_again(node: Node):
    one, two = node.lab.namespace("web-0"), node.lab.namespace("web-1")
    first, second = node.runtime.add(one), node.runtime.add(two)
    asked = echoes(one, second.addresses[0])
    node.routed.kill()
    down = node.runtime.call("ADD", node.lab.namespace("web-2"))
    assert down.status == 1 and down.output["code"] == 11
    node.start()
    assert asked.end()[1] == []
    assert node.runtime.add(one).output == first.output
    third = node.runtime.add(node.lab.namespace("web-3"))
    assert third.addresses[0] not in (first.addresses[0], second.addresses[0])


LOCALHOST = """
import socket
server = socket.create_server(("127.0.0.1", 9998))
print("listening", flush=True)
while True:
    server.accept()
"""
CONNECTING = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", 9998), 1)
    print("connected")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("values", [{}, {"attach": "bridge"}], ids=["routed", "bridge"])
def test_what_listens_on_the_nodes_loopback_is_the_nodes_alone(node: Node, values: dict[str, Any]):
    server = node.namespace.start("server", sys.executable, "-c", LOCALHOST)
    wait_for(lambda: "listening" in server.text(), 30, "it listens")
    assert "connected" in node.namespace.run(sys.executable, "-c", CONNECTING)
    pod = node.lab.namespace("nosy")
    node.runtime.add(pod, **values)
    pod.sysctl("net.ipv4.conf.eth0.route_localnet", "1")
    pod.ip("addr del 127.0.0.1/8 dev lo", "route add 127.0.0.1 via 169.254.1.1 dev eth0")
    assert "connected" not in pod.run(sys.executable, "-c", CONNECTING)
    dropped = [
        line for line in node.namespace.run("nft", "list", "ruleset").splitlines() if "loopback of the node" in line
    ]
    assert any("packets 0 " not in line for line in dropped), dropped


def test_policy_is_in_force_when_the_pod_starts(node: Node):
    deny = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "only-blue", "namespace": "default"},
        "spec": {
            "selector": "app == 'db'",
            "types": ["Ingress"],
            "ingress": [{"action": "Allow", "source": {"selector": "app == 'blue'"}}],
        },
    }
    node.routed.put(deny)
    labelled = {"args": {"cni": {"labels": [{"key": "app", "value": "db"}]}}}
    database = node.runtime.add(node.lab.namespace("db"), **labelled)
    blue, red = node.lab.namespace("blue"), node.lab.namespace("red")
    node.runtime.add(blue, args={"cni": {"labels": [{"key": "app", "value": "blue"}]}})
    node.runtime.add(red, args={"cni": {"labels": [{"key": "app", "value": "red"}]}})
    wait_for(
        lambda: "only_blue" in node.namespace.run("nft", "list", "table", "inet", "routed"), 30, "the policy is read"
    )
    assert blue.pings(database.addresses[0]) and not red.pings(database.addresses[0], timeout=0.3)
    assert node.namespace.pings(database.addresses[0])  # its own node always may


def test_annotations_as_long_as_kubernetes_allows_keep_no_pod_from_coming_and_going(node: Node):
    """256 KiB, of which each octet may be six in JSON; and what a GC spares has no limit."""
    pod = node.lab.namespace("annotated")
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "\x01" * (256 << 10)}
    long = {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}
    before = set(node.interfaces())
    added = node.runtime.add(pod, cniVersion="1.1.0", **long)
    assert len(set(node.interfaces()) - before) == 1
    for command in ("CHECK", "DEL"):
        answer = node.runtime.call(command, pod, previous=added.output, cniVersion="1.1.0", **long)
        assert answer.status == 0, answer.output
    wait_for(lambda: set(node.interfaces()) == before, 30, "the interface goes", state=node.lab.report)


def test_the_mtu_is_the_uplink_s_less_what_tunnels_need(node: Node):
    def mtu_of(name: str, **values: Any) -> int:
        pod = node.lab.namespace(name)
        told = node.runtime.add(pod, cniVersion="1.1.0", **values).output["interfaces"][1]["mtu"]
        assert f"mtu {told} " in pod.run("ip", "link", "show", "eth0")
        return int(told)

    node.namespace.ip("link set eth0 mtu 1400")
    assert mtu_of("plain") == 1400
    assert mtu_of("told", mtu=1280) == 1280
    node.routed.put(resource("IPPool", "tunnels", {"cidr": "10.99.0.0/16", "vxlanMode": "CrossSubnet"}))
    numbers = itertools.count()
    wait_for(lambda: mtu_of(f"inside-{next(numbers)}") == 1350, 30, "room is left for VXLAN", state=node.lab.report)
    node.namespace.ip("link set eth0 mtu 1380")
    wait_for(
        lambda: "mtu 1330 " in node.namespace.run("ip", "link", "show", "vxlan.calico", check=False), 30,
        "the tunnel follows its uplink", state=node.lab.report,
    )  # fmt: skip


def test_a_socket_whose_file_somebody_removes_is_listened_at_again(node: Node):
    path = Path(node.runtime.socket)
    path.unlink()
    wait_for(node.is_ready, 30, "the plugin finds the daemon again", state=node.lab.report)
    path.unlink()
    path.mkdir()
    wait_for(
        lambda: "no CNI call arrives" in node.routed.ctl("status"), 30, "where it cannot, it says so",
        state=node.lab.report,
    )  # fmt: skip
    path.rmdir()
    wait_for(node.is_ready, 30, "and listens as soon as it can", state=node.lab.report)
    assert "no CNI call arrives" not in node.routed.ctl("status")


def test_gc_removes_what_the_runtime_forgot(node: Node):
    kept, lost = node.lab.namespace("kept"), node.lab.namespace("lost")
    first, second = node.runtime.add(kept), node.runtime.add(lost)
    valid = [{"containerID": f"c-{kept.name}", "ifname": "eth0"}]
    answer = node.runtime.call("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid})
    assert answer.status == 0, answer.output
    wait_for(lambda: node.interfaces() == [first.output["interfaces"][0]["name"]], 30, "only one is left")
    routes = node.namespace.routes(protocol=120)
    assert first.addresses[0] in routes and second.addresses[0] not in routes


def test_gc_removes_the_interface_of_an_endpoint_that_is_gone(node: Node):
    """As a daemon leaves it that ends between the datastore's part of a removal and the kernel's."""
    kept, lost = node.lab.namespace("kept"), node.lab.namespace("lost")
    first, second = node.runtime.add(kept), node.runtime.add(lost)
    names = [each.output["interfaces"][0]["name"] for each in (first, second)]
    node.routed.kill()
    (file,) = [path for path in node.routed.resources.glob("workloadendpoint-*") if names[1] in path.read_text()]
    file.unlink()
    node.start()
    valid = [{"containerID": f"c-{each.name}", "ifname": "eth0"} for each in (kept, lost)]

    def collect(of: list[dict[str, str]]) -> None:
        answer = node.runtime.call("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": of})
        assert answer.status == 0, answer.output

    wait_for(
        lambda: node.runtime.call("STATUS", cniVersion="1.1.0").status == 0, 60, "it is ready", state=node.lab.report
    )
    collect(valid)
    assert sorted(node.interfaces()) == sorted(names)
    collect(valid[:1])
    wait_for(lambda: node.interfaces() == names[:1], 30, "only one is left", state=node.lab.report)
    assert node.namespace.pings(first.addresses[0])


def test_an_address_by_name_and_one_that_is_taken(node: Node):
    first = node.runtime.add(node.lab.namespace("one"), runtimeConfig={"ips": ["10.65.3.7"]})
    assert first.addresses == ["10.65.3.7"]
    taken = node.runtime.call("ADD", node.lab.namespace("two"), runtimeConfig={"ips": ["10.65.3.7"]})
    assert taken.status == 1 and taken.output["code"] == 100 and "default/n1-k8s-one-eth0 has it" in taken.output["msg"]
    assert len(node.interfaces()) == 1


SERVER = """
import socket
server = socket.create_server(("", 80))
print("listening", flush=True)
kept = []
while True:
    kept.append(server.accept())
"""
CLIENT = """
import socket, sys, time
connections = [socket.create_connection((address, 80), 5) for address in sys.argv[1:]]
print("connected", flush=True)
time.sleep(600)
"""


def test_who_gets_an_address_gets_none_of_its_connections(node: Node):
    if shutil.which("conntrack") is None:
        pytest.skip("conntrack is not installed")
    old, other, client = (node.lab.namespace(name) for name in ("old", "other", "client"))
    dual = {"ips": ["10.65.3.7", "fd00:65::7"]}
    node.runtime.add(old, runtimeConfig=dual)
    addresses = ["10.65.3.7", "fd00:65::7", node.runtime.add(other).addresses[0]]
    node.runtime.add(client, **DUAL)
    for pod in (old, other):
        server = pod.start(
            "server", sys.executable, "-c", SERVER.replace('("", 80)', '("::", 80), family=10, dualstack_ipv6=True')
        )
        wait_for(lambda server=server: "listening" in server.text(), 30, "a server listens", state=node.lab.report)
    calls = client.start("client", sys.executable, "-c", CLIENT, *addresses)
    wait_for(lambda: "connected" in calls.text(), 30, "connections are there", state=node.lab.report)
    for words in (
        "table ip service",
        "chain ip service c { type nat hook prerouting priority dstnat; }",
        "rule ip service c ip daddr 192.0.2.80 dnat to 10.65.3.7",
    ):
        node.namespace.run("nft", "add", *words.split())
    for pod, target in ((old, addresses[2]), (client, "192.0.2.80")):  # it calls others, and answers for a service
        others = pod.start("calls", sys.executable, "-c", CLIENT, target)
        wait_for(lambda others=others: "connected" in others.text(), 30, "so are these", state=node.lab.report)

    def tracked() -> list[str]:
        told = node.namespace.run("conntrack", "-L") + node.namespace.run("conntrack", "-L", "-f", "ipv6")
        found = [line for line in told.splitlines() if "ESTABLISHED" in line]
        return [address for address in addresses if any(f"={address} " in line for line in found)]

    wait_for(lambda: tracked() == addresses, 30, "all are made, as the node has it", state=tracked)
    assert node.runtime.call("DEL", old).status == 0
    assert tracked() == addresses  # nobody closed them
    new = node.runtime.add(node.lab.namespace("new"), runtimeConfig=dual)
    assert new.addresses == addresses[:2]
    assert tracked() == addresses[2:]
