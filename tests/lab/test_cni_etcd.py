"""Three nodes whose pods are routed's, on one real etcd: addresses by CNI calls on each, packets between all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import permutations

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echoes import echoes
from routed.testing.routers import resource
from tests.datastore.etcd_server import P
from tests.lab.etcd import Etcd
from tests.lab.test_cni import DUAL, Node

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

NUMBERS = (1, 2, 3)
OUTSIDE = ("192.0.2.9", "2001:db8::9")
TCP_CLIENT = "import socket, sys; print(socket.create_connection((sys.argv[1], 8080), 30).recv(100).decode())"
TCP_SERVER = """
import socket
server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].removeprefix("::ffff:").encode())
    connection.close()
"""


class Site:
    """The nodes, their datastore, and a host that knows no route to pods."""

    def __init__(self, lab: Lab, **settings: object) -> None:
        """`settings` are more of the nodes' routed.yaml."""
        self.lab = lab
        self.settings = settings
        self.wire = lab.segment("wire")
        self.outside = lab.namespace("outside")
        self.wire.attach(self.outside, "eth0", "10.0.0.100/24", "fd00::100/64")
        self.etcd = Etcd(self.outside, "10.0.0.100")
        self.outside.address("lo", *(f"{address}/{8 * (16 if ':' in address else 4)}" for address in OUTSIDE))
        self.nodes: dict[int, Node] = {}
        self.pods: dict[str, tuple[Namespace, list[str]]] = {}

    def start(self) -> None:
        self.etcd.start()
        self.etcd.put_resource("bgpconfigurations", resource("BGPConfiguration", "default", {"asNumber": 64512}))
        self.etcd.put_resource("ippools", resource("IPPool", "v4", {"cidr": "10.65.0.0/16", "natOutgoing": True}))
        self.etcd.put_resource("ippools", resource("IPPool", "v6", {"cidr": "fd00:65::/64", "natOutgoing": True}))
        for number in NUMBERS:
            bgp = {"ipv4Address": f"10.0.0.{number}/24", "ipv6Address": f"fd00::{number}/64"}
            self.etcd.put_resource("nodes", resource("Node", f"n{number}", {"bgp": bgp}))
            node = self.nodes[number] = Node(self.lab, number)
            self.wire.attach(node.namespace, "eth0", f"10.0.0.{number}/24", f"fd00::{number}/64")
            node.namespace.ip(
                *(f"route add {address} via {via}" for address, via in zip(OUTSIDE, GATEWAYS, strict=True))
            )
            node.routed.configure(datastore={"type": "etcd", "endpoints": [self.etcd.url]}, **self.settings)
        for node in self.nodes.values():
            node.start()

    def routedctl(self, *words: str, check: bool = True) -> str:
        """What routedctl prints on the first node, which need not have a daemon for it."""
        node = self.nodes[1]
        argv = (sys.executable, "-m", "routed.cli.main", "--config", str(node.routed.config), *words)
        return node.namespace.run(*argv, check=check)

    def in_use(self) -> int:
        return sum(pool["inUse"] for pool in json.loads(self.routedctl("ipam", "show", "--json")))

    def add(self, number: int, name: str) -> list[str]:
        pod = self.lab.namespace(name)
        addresses = self.nodes[number].runtime.add(pod, **DUAL).addresses
        self.pods[name] = (pod, addresses)
        server = pod.start("server", sys.executable, "-c", TCP_SERVER)
        wait_for(lambda: "listening" in server.text(), 30, "the pod's server listens", state=self.lab.report)
        return addresses

    def unreachable(self) -> list[str]:
        """Pairs of pods where one does not get an echo of the other."""
        return [
            f"{source} -> {address}"
            for source, target in permutations(self.pods, 2)
            for address in self.pods[target][1]
            if not self.pods[source][0].pings(address)
        ]


GATEWAYS = ("10.0.0.100", "fd00::100")


@pytest.fixture
def site() -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab)
        made.start()
        yield made


def tcp(source: Namespace, address: str) -> str:
    """Who the other side sees."""
    return source.run(sys.executable, "-c", TCP_CLIENT, address).strip()


@pytest.mark.timeout(300)
def test_pods_on_three_nodes_and_one_etcd(site: Site) -> None:
    for number in NUMBERS:
        for letter in "ab":
            site.add(number, f"p{number}{letter}")
    given = [address for _, addresses in site.pods.values() for address in addresses]
    assert len(set(given)) == len(given) == 12
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)
    for source, target in permutations(site.pods, 2):
        for own, address in zip(site.pods[source][1], site.pods[target][1], strict=True):
            assert tcp(site.pods[source][0], address) == own  # between pods nothing is translated

    server = site.outside.start("server", sys.executable, "-c", TCP_SERVER)
    wait_for(lambda: "listening" in server.text(), 30, "the outside server listens")
    for number in NUMBERS:
        pod = site.pods[f"p{number}a"][0]
        assert tcp(pod, OUTSIDE[0]) == f"10.0.0.{number}"
        assert tcp(pod, OUTSIDE[1]) == f"fd00::{number}"
        assert all(pod.pings(address) for address in OUTSIDE)

    # a pool whose blocks are single addresses: the pod has its block's route, and the block is announced
    site.etcd.put_resource("ippools", resource("IPPool", "ones", {"cidr": "10.70.0.0/28", "blockSize": 32}))
    ipam = {**DUAL["ipam"], "assign_ipv6": "false", "ipv4_pools": ["ones"]}
    single = site.lab.namespace("single")
    wait_for(
        lambda: site.nodes[1].runtime.call("ADD", single, ipam=ipam).status == 0, 30, "the pool is known",
        state=site.lab.report,
    )  # fmt: skip
    (address,) = site.nodes[1].runtime.add(single, ipam=ipam).addresses
    wait_for(lambda: site.pods["p3a"][0].pings(address), 30, "it is reached from another node", state=site.lab.report)
    assert site.nodes[1].runtime.call("DEL", single).status == 0

    # a daemon dies: the packets don't notice, and the next one knows the node's pods
    pod, addresses = site.pods["p1a"]
    asked = echoes(site.pods["p3a"][0], addresses[0])
    first = site.nodes[1]
    first.routed.kill()
    first.start()
    assert asked.end()[1] == []
    assert first.runtime.add(pod, **DUAL).addresses == addresses
    site.add(1, "p1c")
    assert not set(site.pods["p1c"][1]) & set(given)
    wait_for(lambda: not site.unreachable(), 30, "the new pod is reached too", state=site.unreachable)

    # etcd dies: a call says that it should be tried again, and nothing is half made; what is there works on
    site.etcd.kill()
    unlucky = site.lab.namespace("p1d")
    answer = first.runtime.call("ADD", unlucky, **DUAL)
    assert answer.status == 1 and answer.output["code"] == 11, answer.output
    wait_for(lambda: len(first.interfaces()) == 3, 30, "no interface is left of it", state=site.lab.report)
    assert not site.unreachable()
    site.etcd.start()
    wait_for(
        lambda: first.runtime.call("ADD", unlucky, **DUAL).status == 0, 60, "it works again", state=site.lab.report
    )
    assert first.runtime.call("DEL", unlucky).status == 0
    wait_for(lambda: "add up" in site.routedctl("ipam", "check", check=False), 30, "nothing leaked")

    # etcd hangs: the call is answered all the same, and what etcd does of it when it goes on is taken back
    unlucky = site.lab.namespace("p1e")
    site.etcd.hang()
    answer = first.runtime.call("ADD", unlucky, **DUAL)
    assert answer.status == 1 and answer.output["code"] == 11, answer.output
    assert len(first.interfaces()) == 3 and not site.unreachable()
    spare = site.pods.pop("p1c")[0]
    answer = first.runtime.call("DEL", spare, **DUAL)
    assert answer.status == 1 and answer.output["code"] == 11 and "not answered for 5 s" in answer.output["msg"]
    site.etcd.go_on()
    wait_for(lambda: first.runtime.call("DEL", spare, **DUAL).status == 0, 60, "it goes once etcd answers")
    wait_for(
        lambda: (
            "add up" in site.routedctl("ipam", "check", check=False)
            and site.in_use() == 2 * len(site.pods)
            and not [key for key in site.etcd.keys(f"{P}workloadendpoints/") if "p1e" in key]
        ),
        60, "nothing is left of it", state=lambda: site.routedctl("ipam", "check", check=False),
    )  # fmt: skip
    wait_for(
        lambda: first.runtime.call("ADD", unlucky, **DUAL).status == 0, 60, "it works again", state=site.lab.report
    )
    assert first.runtime.call("DEL", unlucky).status == 0

    # while the datastore is locked, as for a migration, nothing is written
    def lock(locked: bool) -> None:
        site.etcd.put_resource(
            "clusterinformations", resource("ClusterInformation", "default", {"datastoreReady": not locked})
        )

    lock(True)
    wait_for(
        lambda: first.runtime.call("STATUS", cniVersion="1.1.0").status == 1,
        30,
        "the lock is heard of",
        state=site.lab.report,
    )
    handles = site.etcd.keys("/calico/ipam/v2/handle/")
    for command in ("ADD", "DEL"):
        answer = first.runtime.call(command, unlucky if command == "ADD" else pod, **DUAL)
        assert answer.status == 1 and answer.output["code"] == 11 and "locked" in answer.output["msg"], answer.output
    assert site.etcd.keys("/calico/ipam/v2/handle/") == handles
    lock(False)
    wait_for(
        lambda: first.runtime.call("STATUS", cniVersion="1.1.0").status == 0,
        30,
        "it is open again",
        state=site.lab.report,
    )

    # a Pod's manifest is in force for an ADD that follows at once
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late", "namespace": "default"}}
    folder = site.outside.folder / "late.yaml"
    for number in range(5):
        manifest["metadata"]["labels"] = {"round": str(number)}  # type: ignore[index]
        folder.write_text(json.dumps(manifest))
        site.routedctl("apply", "-f", str(folder))
        late = site.lab.namespace(f"late{number}")
        first.runtime.call("ADD", late, name="late", **DUAL)
        (key,) = [key for key in site.etcd.keys(f"{P}workloadendpoints/") if "-late-" in key]
        stored = json.loads(site.etcd.ctl("get", "--print-value-only", key))
        assert stored["metadata"]["labels"]["round"] == str(number)
        assert first.runtime.call("DEL", late, name="late").status == 0

    # all pods of a node go, and so does what etcd has of them
    for name in ("p2a", "p2b"):
        assert site.nodes[2].runtime.call("DEL", site.pods.pop(name)[0]).status == 0
    left = site.etcd.keys("/calico/ipam/v2/handle/") + site.etcd.keys(f"{P}workloadendpoints/")
    assert not [key for key in left if "p2a" in key or "p2b" in key]
    assert len(site.etcd.keys("/calico/ipam/v2/handle/")) == len(site.pods)
    assert len(site.etcd.keys(f"{P}workloadendpoints/")) == len(site.pods)
    assert site.in_use() == 2 * len(site.pods)
    assert "add up" in site.routedctl("ipam", "check")

    # a node is removed with its pods on it: what it had is found, and given back
    third = site.nodes[3]
    third.routed.kill()
    lost = [site.pods.pop(name) for name in ("p3a", "p3b")]
    site.etcd.ctl("del", f"{P}nodes/n3")
    assert "there is no node n3" in site.routedctl("ipam", "check", check=False)
    said = site.routedctl("ipam", "release", "--node", "n3")
    for _, addresses in lost:
        assert all(f"{address}: released" in said for address in addresses)
    assert "add up" in site.routedctl("ipam", "check")
    assert not site.etcd.keys("/calico/ipam/v2/host/n3/")
    for number in (1, 2):
        kernel = site.nodes[number].namespace
        wait_for(
            lambda kernel=kernel: "10.0.0.3" not in str(kernel.routes(protocol=120)), 30, "the routes to it go",
            state=site.lab.report,
        )  # fmt: skip
    assert not site.unreachable()
