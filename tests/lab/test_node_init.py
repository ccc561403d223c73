"""A node from nothing: real interfaces, `routed node init` and the daemon that registers itself, on files and on etcd."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest
import yaml

from routed.testing.lab import Lab, LabError, stays, wait_for
from routed.testing.routers import Routed
from tests.datastore.etcd_server import P
from tests.lab.etcd import Etcd

pytestmark = pytest.mark.lab


class Machine:
    """A node with three interfaces and routes, and its routed."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = lab.namespace("n1")
        peer = lab.namespace("peer")
        addresses = {"docker0": "172.17.0.1/16", "eth0": "10.0.0.1/24", "eth1": "10.2.0.1/24"}
        for name, address in addresses.items():
            lab.link(self.namespace.port(name, address), peer.port(name))
        self.namespace.address("eth1", "fd02::1/64")
        self.namespace.ip("route add 198.51.100.0/24 via 10.2.0.9")

    def routed(self, name: str, **settings: object) -> Routed:
        made = Routed(self.namespace, "n1", **settings)
        made.folder = self.namespace.folder / name
        made.folder.mkdir()
        made.resources = made.folder / "etc" / "resources"
        made.config = made.folder / "routed.yaml"
        made.configure(
            datastore={"type": "file", "path": str(made.resources)},
            runDir=str(made.folder / "run"),
            stateDir=str(made.folder / "state"),
        )
        return made


def init(routed: Routed, *words: str) -> str:
    argv = (sys.executable, "-m", "routed.daemon.main", "node", "init", "--config", str(routed.config), *words)
    return routed.namespace.run(*argv)


def stored(routed: Routed) -> dict[str, dict[str, object]]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in routed.resources.glob("*.yaml")}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Lab() as lab:
        yield Machine(lab)


@pytest.mark.parametrize(
    ("ways", "ipv4", "ipv6"),
    [
        ({}, "10.0.0.1/24", None),
        ({"ipv4": "interface=eth1", "ipv6": "first-found"}, "10.2.0.1/24", "fd02::1/64"),
        ({"ipv4": "can-reach=198.51.100.7"}, "10.2.0.1/24", None),
        ({"ipv4": "cidr=172.16.0.0/12"}, "172.17.0.1/16", None),
        ({"ipv4": "skip-interface=eth0"}, "10.2.0.1/24", None),
        ({"ipv4": "10.2.0.1", "ipv6": "fd02::1/80"}, "10.2.0.1/24", "fd02::1/80"),
    ],
)
def test_addresses_are_found_as_calico_finds_them(machine: Machine, ways: dict[str, str], ipv4: str, ipv6: str) -> None:
    name = "-".join(ways.values()).replace("/", "_").replace(":", "_") or "first"
    routed = machine.routed(name, node=ways)
    (*_, node) = yaml.safe_load_all(init(routed, "--dry-run"))
    assert node["spec"]["bgp"] == {"ipv4Address": ipv4, **({"ipv6Address": ipv6} if ipv6 else {})}
    assert not routed.resources.exists()


def test_an_address_that_will_not_stay_is_not_the_node_s(machine: Machine) -> None:
    """The kernel lists the newest first: a privacy address (RFC 8981), a deprecated one, one that is still checked."""
    namespace = machine.lab.namespace("private")
    machine.lab.link(namespace.port("eth0"), machine.lab.namespace("wire").port("eth0"))
    for key in ("all", "eth0"):
        namespace.sysctl(f"net.ipv6.conf.{key}.use_tempaddr", 2)
        namespace.sysctl(f"net.ipv6.conf.{key}.dad_transmits", 30)  # half a minute, unless `nodad`
        namespace.sysctl(f"net.ipv6.conf.{key}.accept_dad", 1)
    for commands in (
        ("address add fd00:10::1/64 dev eth0 mngtmpaddr nodad",),
        ("address add fd00:10::5/64 dev eth0 nodad preferred_lft 0 valid_lft forever",),
        ("address add fd00:10::7/64 dev eth0",),
        ("address add 10.0.0.5/24 dev eth0 preferred_lft 0 valid_lft forever", "address add 10.0.0.6/24 dev eth0"),
    ):
        namespace.ip(*commands)
    shown = [
        line.split() for line in namespace.run("ip", "-6", "-o", "address", "show", "scope", "global").splitlines()
    ]
    kinds = {word for words in shown for word in words if word in ("temporary", "deprecated", "tentative")}
    assert kinds == {"temporary", "deprecated", "tentative"}
    for method in ("first-found", "can-reach=fd00:10::99", "cidr=fd00:10::/64"):
        routed = Routed(namespace, "private", node={"ipv4": "first-found", "ipv6": method})
        (*_, node) = yaml.safe_load_all(init(routed, "--dry-run"))
        assert node["spec"]["bgp"] == {"ipv4Address": "10.0.0.6/24", "ipv6Address": "fd00:10::1/64"}, (method, shown)


def test_a_folder_from_nothing_and_a_daemon_that_starts_with_it(machine: Machine) -> None:
    routed = machine.routed(
        "files",
        node={"asNumber": 64600, "routeReflectorClusterID": "244.0.0.1", "labels": {"rack": "a"}},
        clusterDefaults={"asNumber": 64999, "ipv4Pool": "10.65.0.0/16"},
    )
    said = init(routed)
    assert said.count(" was written: ") == 3 and str(routed.resources) in said
    found = stored(routed)
    assert set(found) == {"bgpconfiguration-default", "ippool-default-ipv4-ippool", "node-n1"}
    assert found["node-n1"]["metadata"] == {"name": "n1", "labels": {"rack": "a"}}
    assert "nothing was written" in init(routed)
    assert stored(routed) == found
    routed.start()
    wait_for(lambda: "64600" in json.dumps(routed.status()), 30, "the node speaks BGP", state=routed.status)
    wait_for(lambda: not routed.problems(), 30, "nothing is wrong", state=routed.problems)
    routed.stop()


def test_the_daemon_registers_its_node_once_there_is_an_address(machine: Machine) -> None:
    routed = machine.routed("itself", node={"register": True, "ipv4": "interface=eth9"})
    routed.start()
    wait_for(lambda: any("not registered yet" in one for one in routed.problems()), 30, "it says that there is none")
    assert any("by interface=eth9" in one for one in routed.problems())
    machine.lab.link(machine.namespace.port("eth9", "10.9.0.1/24"), machine.lab.namespace("late").port("eth0"))
    wait_for(lambda: "node-n1" in stored(routed), 30, "the Node is written", state=routed.problems)
    wait_for(lambda: not routed.problems(), 30, "nothing is wrong any more", state=routed.problems)
    wait_for(lambda: "64512" in json.dumps(routed.status()), 30, "it speaks BGP", state=routed.status)
    routed.stop()
    before = stored(routed)
    routed.start()
    wait_for(lambda: "64512" in json.dumps(routed.status()), 30, "it is the same node again")
    assert stored(routed) == before
    routed.stop()


def test_what_cannot_be_is_refused(machine: Machine) -> None:
    routed = machine.routed("refused", node={"ipv4": "interface=nothing"})
    with pytest.raises(LabError, match="no IPv4 address was found by interface=nothing; interfaces that are up: "):
        init(routed)
    routed.configure(node={}, clusterDefaults={"ipv4Pool": "10.0.0.0/8"})
    with pytest.raises(LabError, match=r"the default pool 10\.0\.0\.0/8 holds this node's own address 10\.0\.0\.1"):
        init(routed)


@pytest.mark.etcd
def test_on_etcd(machine: Machine) -> None:
    etcd = Etcd(machine.namespace)
    etcd.start()
    routed = machine.routed("etcd")
    routed.configure(datastore={"type": "etcd", "endpoints": [etcd.url]}, clusterDefaults={"ipv4Pool": "none"})
    said = init(routed)
    assert said.count(" was written: ") == 6 and f"{P}nodes/n1" in said
    assert "nothing was written" in init(routed)
    tiers = {"default": (1000000, "Deny"), "kube-admin": (1000, "Pass"), "kube-baseline": (10000000, "Pass")}
    assert sorted(etcd.keys(P)) == [
        f"{P}bgpconfigurations/default", f"{P}clusterinformations/default", f"{P}nodes/n1",
        *(f"{P}tiers/{name}" for name in tiers),
    ]  # fmt: skip
    # the shapes are those calico-node writes, marks of its clients included
    values = {key.removeprefix(P): json.loads(etcd.ctl("get", "--print-value-only", key)) for key in etcd.keys(P)}
    for path, value in values.items():
        assert value["apiVersion"] == "projectcalico.org/v3" and set(value["metadata"]) == {
            "name", "uid", "creationTimestamp",
        }, path  # fmt: skip
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value["metadata"]["uid"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value["metadata"]["creationTimestamp"])
    information = values["clusterinformations/default"]
    assert information["kind"] == "ClusterInformation"
    assert re.fullmatch(r"[0-9a-f]{32}", information["spec"].pop("clusterGUID"))
    assert information["spec"] == {"datastoreReady": True, "clusterType": "bgp"}
    for name, (order, action) in tiers.items():
        assert values[f"tiers/{name}"]["kind"] == "Tier"
        assert values[f"tiers/{name}"]["spec"] == {"order": order, "defaultAction": action}
    # what Calico wrote stays, what it lacks is added, and a locked datastore is left alone
    written = {"kind": "ClusterInformation", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "default"}}
    spec = {"clusterGUID": "ab" * 16, "clusterType": "k8s,bgp", "calicoVersion": "v3.32.1", "variant": "Calico"}
    etcd.put(f"{P}clusterinformations/default", written | {"spec": spec})
    etcd.ctl("del", f"{P}tiers/kube-baseline")
    assert init(routed).count(" was written: ") == 2
    key = f"{P}clusterinformations/default"
    assert json.loads(etcd.ctl("get", "--print-value-only", key))["spec"] == {**spec, "datastoreReady": True}
    etcd.put(key, written | {"spec": {**spec, "datastoreReady": False}})
    routed.configure(node={"labels": {"rack": "z"}})
    with pytest.raises(LabError, match="the datastore is locked"):
        init(routed)
    assert "rack" not in etcd.ctl("get", "--print-value-only", f"{P}nodes/n1")
    etcd.put(key, written | {"spec": {**spec, "datastoreReady": True}})
    routed.configure(nodeName="n2")
    with pytest.raises(LabError, match=r"Node n1 has the address 10\.0\.0\.1 of this node, n2"):
        init(routed)


@pytest.mark.etcd
def test_an_address_that_changes_while_the_daemon_runs(lab: Lab) -> None:
    """As DHCP may: the Node follows, and so do the other nodes' sessions and routes."""
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.link(a.port("eth0", "10.0.0.1/24"), b.port("eth0", "10.0.0.2/24"))
    etcd = Etcd(b, "10.0.0.2")
    etcd.start()
    here, there = (
        Routed(
            each,
            datastore={"type": "etcd", "endpoints": [etcd.url]},
            node={"register": True},
            clusterDefaults={"ipv4Pool": "10.65.0.0/16"},
        )
        for each in (a, b)
    )
    etcd.put("/calico/ipam/v2/host/a/ipv4/block/10.65.1.0-26", {"state": "confirmed"})
    here.start()
    there.start()
    wait_for(lambda: "10.65.1.0/26 via 10.0.0.1" in b.run("ip", "route"), 60, "a is reached", state=lab.report)
    a.ip("address add 10.0.0.9/24 dev eth0")
    stays(lambda: not here.problems() and "10.0.0.1/24" in node(etcd, "a"), 1.0, "another address changes nothing")
    a.ip("address del 10.0.0.1/24 dev eth0")  # the kernel takes the second one of its subnet with it
    lost = "no IPv4 address was found by first-found"
    wait_for(lambda: any(lost in each for each in here.problems()), 60, "there is no address", state=here.problems)
    a.ip("address add 10.0.0.9/24 dev eth0")
    wait_for(lambda: "10.0.0.9/24" in node(etcd, "a"), 60, "the Node follows", state=lab.report)
    wait_for(lambda: "10.65.1.0/26 via 10.0.0.9" in b.run("ip", "route"), 90, "and so do routes", state=lab.report)
    wait_for(lambda: not here.problems(), 30, "nothing is wrong any more", state=here.problems)
    assert "addresses changed: 10.0.0.1/24 before, 10.0.0.9/24 now" in lab.report()


def node(etcd: Etcd, name: str) -> str:
    return etcd.ctl("get", "--print-value-only", f"{P}nodes/{name}")
