"""routedctl on a datastore of files: what is typed, what is written, what is said, and the exit status."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from routed.cli.main import main
from routed.datastore.file import load_folder
from tests.datastore.etcd_server import Cluster, P, cluster
from tests.model.examples import EXAMPLES
from tests.model.test_schema import ALL


class Ran(NamedTuple):
    status: int
    out: str
    err: str


class Desk:
    """A person with a configuration, a folder of resources and some files."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.resources = path / "resources"
        self.resources.mkdir()
        (path / "routed.yaml").write_text("nodeName: n\ndatastore: {type: file, path: resources}\n")
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def file(self, text: str, name: str = "in.yaml") -> str:
        (self.path / name).write_text(text)
        return str(self.path / name)

    def run(self, *words: str, stdin: str = "") -> Ran:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main(["--config", str(self.path / "routed.yaml"), *words])
        return Ran(status, *self._capsys.readouterr())

    def names(self) -> list[str]:
        resources, problems = load_folder(self.resources)
        assert problems == []
        return [str(one.key) for one in resources]


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, capsys, monkeypatch)


def peer(name: str, number: int = 65001, **spec: object) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": {"name": name},
            "spec": {"peerIP": "10.0.0.254", "asNumber": number, **spec},
        }
    )


def test_apply_says_what_it_did_and_does_nothing_twice(desk: Desk) -> None:
    file = desk.file(f"{peer('a')}---\n{peer('b')}")
    assert desk.run("apply", "-f", file) == (0, "BGPPeer a: created\nBGPPeer b: created\n", "")
    assert desk.run("apply", "-f", file) == (0, "BGPPeer a: unchanged\nBGPPeer b: unchanged\n", "")
    assert desk.run("apply", "-f", "-", stdin=peer("a", 7)).out == "BGPPeer a: configured\n"
    assert desk.names() == ["BGPPeer a", "BGPPeer b"]
    rows = json.loads(desk.run("apply", "-f", file, "--json", "--dry-run").out)
    assert [row["result"] for row in rows] == ["configured", "unchanged"]
    assert "asNumber: 7" in desk.run("get", "bgppeer", "a", "-o", "yaml").out


def test_nothing_is_written_where_anything_is_wrong(desk: Desk) -> None:
    file = desk.file(f"{peer('a')}---\n{peer('b', asNumber=0)}---\n{peer('a')}---\nkind: [\n")
    ran = desk.run("apply", "-f", file)
    assert (ran.status, ran.out, desk.names()) == (65, "", [])
    lines = ran.err.splitlines()
    assert lines[0] == f"{file}:14: spec.asNumber: must not be AS 0, which is reserved (RFC 7607)"
    assert lines[1].startswith(f"{file}:17: BGPPeer a is already in {file}:1")
    assert lines[2].startswith(f"{file}:26: this is not YAML")


def test_a_folder_and_what_cannot_be_read(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    assert desk.run("apply", "-f", str(folder)).err == f"{folder}: holds no .yaml, .yml, .json file\n"
    (folder / "b.json").write_text(json.dumps(yaml.safe_load(peer("b"))))
    (folder / "a.yaml").write_text(peer("a"))
    assert desk.run("apply", "-f", str(folder)).out == "BGPPeer a: created\nBGPPeer b: created\n"
    ran = desk.run("apply", "-f", str(tmp_path / "none.yaml"))
    assert (ran.status, ran.err) == (65, f"{tmp_path}/none.yaml: cannot be read: No such file or directory\n")


def test_pools_are_judged_beside_those_that_are_there(desk: Desk) -> None:
    def pool(name: str, cidr: str, size: int = 26) -> str:
        return yaml.safe_dump(
            {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name}}
            | {"spec": {"cidr": cidr, "blockSize": size}}
        )

    assert desk.run("apply", "-f", "-", stdin=pool("a", "10.0.0.0/16")).status == 0
    ran = desk.run("apply", "-f", "-", stdin=pool("b", "10.0.128.0/17"))
    assert (ran.status, ran.err) == (
        65,
        "standard input:1: spec.cidr: 10.0.128.0/17 overlaps 10.0.0.0/16 of IPPool a\n",
    )
    ran = desk.run("apply", "-f", "-", stdin=pool("a", "10.0.0.0/16", 28))
    assert ran.status == 65
    assert "cannot change" in ran.err


def test_what_was_not_asked_for_stays(desk: Desk) -> None:
    node: dict[str, Any] = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": "n", "uid": "6f", "creationTimestamp": "2026-05-01T10:00:00Z"},
        "spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}},
        "status": {"podCIDRs": ["10.244.1.0/24"]},
    }
    assert desk.run("import", "-f", "-", stdin=yaml.safe_dump(node)).out == "Node n: created\n"
    wanted = {"apiVersion": node["apiVersion"], "kind": "Node", "metadata": {"name": "n", "labels": {"rack": "a"}}}
    ran = desk.run("apply", "-f", "-", stdin=yaml.safe_dump(wanted | {"spec": {"bgp": {"ipv4Address": "10.0.0.2/24"}}}))
    assert ran.out == "Node n: configured\n"
    stored = yaml.safe_load(desk.run("get", "node", "n", "-o", "yaml").out)
    assert stored["metadata"]["uid"] == "6f"
    assert stored["status"] == node["status"]
    assert stored["spec"]["bgp"]["ipv4Address"] == "10.0.0.2/24"


def test_get(desk: Desk) -> None:
    assert desk.run("apply", "-f", "-", stdin=f"{peer('a', filters=['x', 'y'])}---\n{peer('b')}").status == 0
    assert desk.run("get", "bgpp").out.splitlines() == [
        "name  peer        peer selector  asn    node  node selector",
        "a     10.0.0.254  -              65001  -     -",
        "b     10.0.0.254  -              65001  -     -",
    ]
    assert "x,y" in desk.run("get", "BGPPeers", "-o", "wide").out
    assert desk.run("get", "bgppeers,ippools", "-o", "name").out == "BGPPeer/a\nBGPPeer/b\n"
    assert json.loads(desk.run("get", "bgppeer", "a", "--json").out)["metadata"]["name"] == "a"
    assert len(json.loads(desk.run("get", "bgppeer", "-o", "json").out)["items"]) == 2
    assert desk.run("get", "bgppeer", "a", "c").err == "BGPPeer c is not there\n"
    assert desk.run("get", "bgppear").status == 2
    assert "did you mean BGPPeer" in desk.run("get", "bgppear").err
    assert "projectcalico-default-allow" in desk.run("get", "profiles").out


def test_namespaces(desk: Desk) -> None:
    for namespace in ("default", "shop"):
        policy = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy"}
        metadata = {"metadata": {"name": f"p-{namespace}", "namespace": namespace}, "spec": {"selector": "all()"}}
        assert desk.run("apply", "-f", "-", stdin=yaml.safe_dump(policy | metadata)).status == 0
    assert desk.run("get", "np", "-o", "name").out == "NetworkPolicy/p-default\n"
    assert desk.run("get", "np", "-n", "shop", "-o", "name").out == "NetworkPolicy/p-shop\n"
    assert desk.run("get", "np", "-A").out.splitlines()[0].split()[:2] == ["namespace", "name"]
    assert desk.run("delete", "np", "p-shop").status == 1
    assert desk.run("delete", "np", "p-shop", "-n", "shop").out == "NetworkPolicy shop/p-shop: deleted\n"


def test_delete(desk: Desk) -> None:
    file = desk.file(f"{peer('a')}---\n{peer('b')}---\n{peer('c')}")
    assert desk.run("apply", "-f", file).status == 0
    assert desk.run("delete", "bgppeer", "a", "--dry-run").out == "BGPPeer a: deleted (dry run)\n"
    ran = desk.run("delete", "bgppeer", "a", "x", "b")
    assert ran == (1, "BGPPeer a: deleted\nBGPPeer b: deleted\n", "BGPPeer x: BGPPeer x is not there\n")
    assert desk.run("delete", "-f", desk.file(peer("c"), "c.yaml")).out == "BGPPeer c: deleted\n"
    assert desk.names() == []
    assert desk.run("delete").status == 2
    assert desk.run("delete", "bgppeer").status == 2


def test_diff(desk: Desk) -> None:
    file = desk.file(peer("a"))
    ran = desk.run("diff", "-f", file)
    assert ran.status == 1
    assert "+  name: a" in ran.out
    assert desk.run("apply", "-f", file).status == 0
    assert desk.run("diff", "-f", file) == (0, "", "")
    ran = desk.run("diff", "-f", desk.file(peer("a", 65002)))
    assert ran.status == 1
    assert [line for line in ran.out.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        "-  asNumber: 65001",
        "+  asNumber: 65002",
    ]
    assert desk.run("diff", "-f", desk.file("kind: x\n")).status == 65


def test_a_difference_as_json(desk: Desk) -> None:
    file = desk.file(peer("a"))
    ran = desk.run("--json", "diff", "-f", file)
    (row,) = json.loads(ran.out)
    assert ran.status == 1 and (row["kind"], row["name"], row["where"], row["stored"]) == ("BGPPeer", "a", None, None)
    assert row["wanted"]["spec"]["asNumber"] == 65001 and row["file"].startswith(file)
    assert desk.run("apply", "-f", file).status == 0
    assert desk.run("diff", "--json", "-f", file) == (0, "[]\n", "")
    (row,) = json.loads(desk.run("diff", "--json", "-f", desk.file(peer("a", 65002))).out)
    assert [row[each]["spec"]["asNumber"] for each in ("stored", "wanted")] == [65001, 65002]
    assert "a.yaml" in row["where"]


def test_an_export_as_json(desk: Desk, tmp_path: Path) -> None:
    everything = yaml.safe_dump_all([ALL[kind] for kind in sorted(ALL)])
    assert desk.run("import", "-f", "-", stdin=everything).status == 0
    exported = json.loads(desk.run("--json", "export").out)
    assert exported["kind"] == "List" and len(exported["items"]) == len(ALL)
    assert exported["items"] == list(yaml.safe_load_all(desk.run("export").out))
    again = desk.run("import", "--json", "-f", "-", stdin=json.dumps(exported))
    assert {row["result"] for row in json.loads(again.out)} == {"unchanged"}
    rows = json.loads(desk.run("export", "--json", "-o", str(tmp_path / "out")).out)
    assert sum(row["count"] for row in rows) == len(ALL) and all(Path(row["file"]).exists() for row in rows)


def test_a_difference_is_what_differs_not_the_order_it_is_written_in(desk: Desk) -> None:
    stored = {"spec": {"asNumber": 65001, "peerIP": "10.0.0.254"}, **yaml.safe_load(peer("a"))}
    assert next(iter(stored)) == "spec"
    (desk.resources / "a.json").write_text(json.dumps(stored))
    ran = desk.run("diff", "-f", desk.file(peer("a", 65002, filters=["x"])))
    lines = [line for line in ran.out.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert sorted(lines) == ["+    - x", "+  asNumber: 65002", "+  filters:", "-  asNumber: 65001"]


def test_what_counts_in_the_default_bgpconfiguration_is_written_nowhere_else(desk: Desk) -> None:
    def configuration(name: str) -> str:
        made = {"apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration", "metadata": {"name": name}}
        return yaml.safe_dump(made | {"spec": {"asNumber": 65000, "listenPort": 1790}})

    ran = desk.run("apply", "-f", "-", stdin=configuration("node.n"))
    assert (ran.status, ran.out, desk.names()) == (65, "", [])
    assert "spec.asNumber: may only be set in the BGPConfiguration named default, not in node.n" in ran.err
    assert desk.run("apply", "-f", "-", stdin=configuration("default")).status == 0


@pytest.mark.parametrize("where", ["files", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_a_policy_of_kubernetes_is_found_by_what_its_manifest_says(request: pytest.FixtureRequest, where: str) -> None:
    """Its manifest has `kind: NetworkPolicy` and its own name, wherever it is stored."""
    desk: Desk = request.getfixturevalue("etcd_desk" if where == "etcd" else "desk")
    key = {"etcd": "NetworkPolicy shop/knp.default.db", "files": "KubernetesNetworkPolicy shop/db"}[where]
    assert desk.run("apply", "-f", "-", stdin=yaml.safe_dump(EXAMPLES["KubernetesNetworkPolicy"])).status == 0
    assert desk.run("get", "networkpolicy", "db", "-n", "shop", "-o", "name").out == key.replace(" shop/", "/") + "\n"
    assert desk.run("get", "networkpolicy", "db").status == 1, "of another namespace"
    assert desk.run("delete", "networkpolicy", "db", "-n", "shop").out == f"{key}: deleted\n"
    assert desk.run("get", "networkpolicy", "db", "-n", "shop").err == "NetworkPolicy db is not there\n"


def test_export_and_import_are_complete_and_safe_to_repeat(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = yaml.safe_dump_all([ALL[kind] for kind in sorted(ALL)])
    assert desk.run("import", "-f", "-", stdin=everything).status == 0
    (tmp_path / "second").mkdir()
    second = Desk(tmp_path / "second", capsys, monkeypatch)
    exported = desk.run("export")
    assert exported.status == 0
    assert second.run("import", "-f", "-", stdin=exported.out).status == 0
    assert second.names() == desk.names()
    assert len(second.names()) == len(ALL)
    assert {
        line.rpartition(": ")[2] for line in second.run("import", "-f", "-", stdin=exported.out).out.splitlines()
    } == {"unchanged"}
    assert second.run("export").out == exported.out
    assert desk.run("export", "-o", str(tmp_path / "out")).status == 0
    resources, problems = load_folder(tmp_path / "out")
    assert problems == []
    assert len(resources) == len(ALL)
    assert desk.run("export", "-o", str(tmp_path / "out")).status == 2


def test_an_export_that_is_not_complete_says_so(desk: Desk) -> None:
    (desk.resources / "bad.yaml").write_text("kind: BGPPeer\n")
    assert desk.run("apply", "-f", "-", stdin=peer("a")).status == 0
    ran = desk.run("export")
    assert ran.status == 1
    assert "what cannot be read is not in the export" in ran.err


def test_ipam_show(desk: Desk) -> None:
    block = EXAMPLES["IPAMBlock"]
    pool = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "pods"}}
    made = yaml.safe_dump_all([block, pool | {"spec": {"cidr": "10.244.0.0/16"}}])
    assert desk.run("import", "-f", "-", stdin=made).status == 0
    line = desk.run("ipam", "show").out.splitlines()[1]
    assert line.split()[:6] == ["pool", "pods", "10.244.0.0/16", "65536", "2", "(0%)"]
    (row,) = [
        row for row in json.loads(desk.run("ipam", "show", "--show-blocks", "--json").out) if row["grouping"] == "block"
    ]
    assert (row["cidr"], row["total"], row["inUse"], row["note"]) == ("10.244.1.0/30", 4, 2, "host:node-1")
    answer = json.loads(desk.run("ipam", "show", "--ip", "10.244.1.2", "--json").out)
    assert (answer["inUse"], answer["handle"], answer["pool"]) == (True, "k8s-pod-network.Ab_12", "pods")
    assert "10.244.1.1 is free" in desk.run("ipam", "show", "--ip", "10.244.1.1").out
    assert "10.9.9.9 is in no block" in desk.run("ipam", "show", "--ip", "10.9.9.9").out
    assert desk.run("ipam", "show", "--ip", "x").status == 2


def test_ipam_release_takes_nothing_that_somebody_has(desk: Desk, tmp_path: Path) -> None:
    """Of the example block, .0 and .2 are given out; an endpoint has .2."""
    endpoint = {
        "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": "node--1-cni-x-eth0", "namespace": "default"},
        "spec": {"orchestrator": "cni", "node": "node-1", "containerID": "x", "workload": "x", "endpoint": "eth0",
                 "ipNetworks": ["10.244.1.2/32"]},
    }  # fmt: skip
    made = yaml.safe_dump_all([EXAMPLES["IPAMBlock"], endpoint])
    assert desk.run("import", "-f", "-", stdin=made).status == 0
    before = desk.run("ipam", "show").out
    ran = desk.run("ipam", "release", "--ip", "10.244.1.2")
    assert ran.status == 2 and "is that of WorkloadEndpoint" in ran.err
    ran = desk.run("ipam", "release", "--handle", "k8s-pod-network.Ab_12")
    assert ran.status == 2 and "--handle: 10.244.1.2 is that of WorkloadEndpoint" in ran.err
    assert "is not given out" in desk.run("ipam", "release", "--ip", "10.244.1.1").err
    assert "no report" in desk.run("ipam", "release", "--from-report", desk.file("{}", "report.json")).err
    report = str(tmp_path / "report.json")
    ran = desk.run("ipam", "check", "-o", report)
    assert ran.status == 1 and "10.244.1.2 " not in ran.out
    assert "would be put right" in desk.run("ipam", "release", "--from-report", report, "--dry-run").out
    rows = json.loads(desk.run("ipam", "release", "--from-report", report, "--dry-run", "--json").out)
    assert rows and {row["result"] for row in rows} == {"would be put right"} and "10.244.1." in rows[0]["what"]
    rows = json.loads(desk.run("--json", "ipam", "release", "--node", "node-1", "--dry-run").out)
    assert "WorkloadEndpoint default/node--1-cni-x-eth0" in [row["what"] for row in rows]
    (desk.resources / "bad.yaml").write_text("kind: WorkloadEndpoint\n")
    ran = desk.run("ipam", "release", "--from-report", report)
    assert ran.status == 1 and "nothing is released while" in ran.err
    assert desk.run("ipam", "show").out == before
    (desk.resources / "bad.yaml").unlink()
    assert desk.run("ipam", "release", "--node", "node-1").status == 0
    assert "WorkloadEndpoint" not in " ".join(desk.names())


def test_kubernetes_policies_stay_what_they_are_in_files(desk: Desk) -> None:
    ran = desk.run("apply", "-f", "-", stdin=yaml.safe_dump(EXAMPLES["KubernetesNetworkPolicy"]))
    assert ran == (0, "KubernetesNetworkPolicy shop/db: created\n", "")
    assert "networking.k8s.io/v1" in desk.run("get", "knp", "db", "-n", "shop", "-o", "yaml").out


# ---- the manifests of the operator, as people paste them

NETWORK = """\
apiVersion: operator.tigera.io/v1
kind: CalicoNetwork
metadata:
  name: default
spec:
  bgp: Enabled
  ipPools:
  - blockSize: 26
    cidr: 192.168.0.0/16
    encapsulation: VXLANCrossSubnet
    natOutgoing: Enabled
    nodeSelector: all()
"""
NODE = """\
apiVersion: operator.tigera.io/v1
kind: CalicoNode
metadata:
  name: default
spec:
  bgp:
    enabled: true
    nodeToNodeMeshEnabled: true
"""
INSTALLATION = """\
apiVersion: operator.tigera.io/v1
kind: Installation
metadata:
  name: default
spec:
  variant: Calico
  calicoNetwork:
    bgp: Enabled
    mtu: 1440
    ipPools:
    - blockSize: 26
      cidr: 192.168.0.0/16
      encapsulation: VXLANCrossSubnet
      natOutgoing: Enabled
      nodeSelector: all()
    - cidr: fd00:10::/48
"""


def spec_of(desk: Desk, kind: str, name: str) -> dict[str, Any]:
    spec = yaml.safe_load(desk.run("get", kind, name, "-o", "yaml").out)["spec"]
    assert isinstance(spec, dict)
    return spec


def test_a_pasted_network(desk: Desk) -> None:
    ran = desk.run("apply", "-f", "-", stdin=NETWORK)
    assert (ran.status, ran.out) == (0, "IPPool default-ipv4-ippool: created\nBGPConfiguration default: created\n")
    became = "standard input:1: spec.bgp became nodeToNodeMeshEnabled: true in BGPConfiguration default"
    assert ran.err.splitlines() == [
        "standard input:1: CalicoNetwork spec.ipPools[0] became IPPool default-ipv4-ippool",
        f"{became}, unless that says nodeToNodeMeshEnabled already",
    ]
    assert spec_of(desk, "ippool", "default-ipv4-ippool") == {
        "cidr": "192.168.0.0/16",
        "ipipMode": "Never",
        "vxlanMode": "CrossSubnet",
        "natOutgoing": True,
        "blockSize": 26,
        "nodeSelector": "all()",
    }
    assert desk.run("apply", "-f", "-", stdin=NETWORK).out.count("unchanged") == 2


def test_a_pasted_node_is_laid_over_what_is_there(desk: Desk) -> None:
    before = {"apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration", "metadata": {"name": "default"}}
    before |= {"spec": {"asNumber": 64999, "nodeToNodeMeshEnabled": False}}
    assert desk.run("apply", "-f", "-", stdin=yaml.safe_dump(before)).status == 0
    assert desk.run("apply", "-f", "-", stdin=NODE).out == "BGPConfiguration default: configured\n"
    assert spec_of(desk, "bgpconfig", "default") == {"asNumber": 64999, "nodeToNodeMeshEnabled": True}
    off = NODE.replace("enabled: true", "enabled: false")
    assert "still peered with" in desk.run("apply", "-f", "-", stdin=off).err
    assert spec_of(desk, "bgpconfig", "default")["nodeToNodeMeshEnabled"] is False


def test_a_pasted_installation(desk: Desk) -> None:
    ran = desk.run("apply", "-f", "-", stdin=INSTALLATION)
    assert ran.status == 0
    assert (
        "left alone, since they are about workloads of the operator's: spec.variant, spec.calicoNetwork.mtu" in ran.err
    )
    assert spec_of(desk, "ippool", "default-ipv6-ippool")["blockSize"] == 122
    assert spec_of(desk, "ippool", "default-ipv4-ippool")["vxlanMode"] == "CrossSubnet"


@pytest.mark.parametrize("text", [NETWORK, INSTALLATION, NODE.replace("    nodeToNodeMeshEnabled: true\n", "")])
def test_bgp_enabled_leaves_a_mesh_off_that_somebody_switched_off(desk: Desk, text: str) -> None:
    """The operator's `bgp: Enabled` starts BIRD; the mesh is BGPConfiguration's."""
    before = {"apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration", "metadata": {"name": "default"}}
    assert desk.run("apply", "-f", "-", stdin=yaml.safe_dump(before | {"spec": {"asNumber": 64999}})).status == 0
    assert "BGPConfiguration default: configured" in desk.run("apply", "-f", "-", stdin=text).out
    assert spec_of(desk, "bgpconfig", "default") == {"asNumber": 64999, "nodeToNodeMeshEnabled": True}
    off = yaml.safe_dump(before | {"spec": {"nodeToNodeMeshEnabled": False}})
    assert desk.run("apply", "-f", "-", stdin=off).status == 0
    ran = desk.run("apply", "-f", "-", stdin=text)
    assert "BGPConfiguration default: unchanged" in ran.out
    assert "unless that says nodeToNodeMeshEnabled already" in ran.err
    disabled = text.replace("Enabled\n    mtu", "Disabled\n    mtu").replace("bgp: Enabled", "bgp: Disabled")
    assert desk.run("apply", "-f", "-", stdin=disabled.replace("enabled: true", "enabled: false")).status == 0
    assert spec_of(desk, "bgpconfig", "default") == {"nodeToNodeMeshEnabled": False}


def test_what_the_operator_s_manifests_became_part_of_is_not_deleted_with_them(desk: Desk) -> None:
    before = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\n"
    before += "spec: {asNumber: 64999, serviceClusterIPs: [{cidr: 10.96.0.0/12}]}\n"
    assert desk.run("apply", "-f", "-", stdin=before).status == 0
    assert desk.run("apply", "-f", "-", stdin=f"{NETWORK}---\n{NODE}").status == 0
    kept = spec_of(desk, "bgpconfig", "default")
    ran = desk.run("delete", "-f", "-", stdin=f"{NETWORK}---\n{NODE}")
    assert (ran.status, ran.out) == (0, "IPPool default-ipv4-ippool: deleted\nBGPConfiguration default: unchanged\n")
    assert (
        "default: stays: the manifest is about spec.nodeToNodeMeshEnabled of it alone, which apply changes" in ran.err
    )
    assert spec_of(desk, "bgpconfig", "default") == kept and kept["asNumber"] == 64999
    other = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: default-ipv4-ippool}\n"
    assert desk.run("apply", "-f", "-", stdin=other + "spec: {cidr: 10.244.0.0/16}\n").status == 0
    ran = desk.run("delete", "-f", "-", stdin=NETWORK)
    assert "stays: it is the pool 10.244.0.0/16, and the manifest is about 192.168.0.0/16" in ran.err
    assert spec_of(desk, "ippool", "default-ipv4-ippool")["cidr"] == "10.244.0.0/16"


def test_what_stands_beside_an_installation_in_calico_s_own_file(desk: Desk) -> None:
    """Pasted as it is: the Installation counts, the rest is about programs nobody here runs."""
    head = "apiVersion: operator.tigera.io/v1\n"
    beside = "".join(
        f"---\n{head}kind: {kind}\nmetadata: {{name: default}}\n{spec}"
        for kind, spec in (("APIServer", "spec: {}\n"), ("Goldmane", ""), ("Whisker", ""))
    )
    text = f"{head}kind: Installation\nmetadata: {{name: default}}\n"
    text += "spec: {calicoNetwork: {ipPools: [{cidr: 10.9.0.0/16}]}}\n"
    ran = desk.run("apply", "-f", "-", stdin=text + beside)
    assert (ran.status, ran.out) == (0, "IPPool default-ipv4-ippool: created\n")
    for kind in ("APIServer", "Goldmane", "Whisker"):
        assert f"{kind}: left alone, since it is about programs of the operator's" in ran.err


def test_what_calico_refuses_to_have_written_is_refused(desk: Desk) -> None:
    head = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: a}\n"
    ran = desk.run("apply", "-f", "-", stdin=f"{head}spec: {{doNotTrack: true}}\n---\n{peer('b')}")
    assert (ran.status, ran.out) == (65, "")
    assert ran.err == "standard input:4: spec.doNotTrack: takes applyOnForward: true\n"
    assert desk.names() == [], "nothing is written where anything is wrong"


FORMLESS = """
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: a}
  spec:
    podSelector: {}
    ingress:
    - from:
      - ipBlock: {cidr: 10.0.0.1}
      ports:
      - protocol: tcp
        port: "80"
"""


@pytest.mark.parametrize("where", ["files", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_what_kubernetes_refuses_is_refused_as_it_was_written(request: pytest.FixtureRequest, where: str) -> None:
    """Line, field and reason are of what was handed over, in etcd too, where Calico's form of it would be stored."""
    desk: Desk = request.getfixturevalue("etcd_desk" if where == "etcd" else "desk")
    ran = desk.run("apply", "-f", "-", stdin=FORMLESS)
    assert (ran.status, ran.out) == (65, "")
    assert ran.err.splitlines() == [
        "standard input:12: items[0].spec.ingress[0].from[0].ipBlock.cidr: must have a length, as 10.0.0.1/32",
        'standard input:14: items[0].spec.ingress[0].ports[0].protocol: must be TCP, UDP or SCTP, in capitals, not "tcp"',
        "standard input:15: items[0].spec.ingress[0].ports[0].port: must be a number, without quotes: 80",
    ]
    assert desk.run("delete", "-f", "-", stdin=FORMLESS).err.startswith(
        "KubernetesNetworkPolicy" if where == "files" else "NetworkPolicy"
    )


@pytest.mark.parametrize("where", ["files", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_a_policy_of_a_tier_that_is_not_there_is_refused(request: pytest.FixtureRequest, where: str) -> None:
    desk: Desk = request.getfixturevalue("etcd_desk" if where == "etcd" else "desk")
    head = "apiVersion: projectcalico.org/v3\n"
    policy = f"{head}kind: NetworkPolicy\nmetadata: {{name: a}}\nspec: {{tier: front}}\n"
    ran = desk.run("apply", "-f", "-", stdin=policy)
    assert (ran.status, ran.out) == (65, "")
    assert ran.err == 'standard input:1: spec.tier: there is no Tier "front"; make it before, or with the policy\n'
    tier = f"{head}kind: Tier\nmetadata: {{name: front}}\nspec: {{order: 1}}\n"
    assert desk.run("apply", "-f", "-", stdin=f"{policy}---\n{tier}").status == 0
    assert desk.run("apply", "-f", "-", stdin=policy.replace("spec: {", "spec: {order: 1, ")).status == 0
    ran = desk.run("delete", "tier", "front")
    assert ran.status == 1 and "Tier front: NetworkPolicy" in ran.err and "would be in no tier" in ran.err
    assert "Tier front: deleted" in desk.run("delete", "-f", "-", stdin=f"{tier}---\n{policy}").out
    desk.run("apply", "-f", "-", stdin=tier.replace("front", "default").replace("1}", "1000000}"))
    assert "is Calico's own and stays" in desk.run("delete", "tier", "default").err


def test_a_manifest_that_asks_for_nothing_says_so(desk: Desk) -> None:
    text = "apiVersion: operator.tigera.io/v1\nkind: Installation\nspec: {calicoNetwork: {ipPools: []}}\n"
    ran = desk.run("apply", "-f", "-", stdin=text)
    assert (ran.status, ran.out, ran.err) == (0, "", "standard input:1: nothing of it is to be written\n")


def test_all_of_them_pasted_at_once(desk: Desk) -> None:
    ran = desk.run("apply", "-f", "-", stdin=f"{NETWORK}---\n{NODE}")
    assert (ran.status, ran.out) == (0, "IPPool default-ipv4-ippool: created\nBGPConfiguration default: created\n")
    assert spec_of(desk, "bgpconfig", "default") == {"nodeToNodeMeshEnabled": True}
    off = NODE.replace("MeshEnabled: true", "MeshEnabled: false").replace("enabled: true", "asNumber: 64999")
    for text in (f"{NETWORK}---\n{off}", f"{off}---\n{NETWORK}"):  # what a manifest says of the mesh itself counts
        assert desk.run("apply", "-f", "-", stdin=text).status == 0
        assert spec_of(desk, "bgpconfig", "default") == {"nodeToNodeMeshEnabled": False, "asNumber": 64999}
    ran = desk.run("apply", "-f", "-", stdin=f"{NODE}---\n{off}")
    assert ran.status == 65
    assert "spec.nodeToNodeMeshEnabled: false is said here, and true before in standard input:1" in ran.err


@pytest.mark.parametrize("text", [NETWORK, NODE, INSTALLATION, peer("a")])
def test_lost_indentation_is_refused_with_line_and_reason(desk: Desk, text: str) -> None:
    flat = "\n".join(line.strip() for line in text.splitlines())
    ran = desk.run("apply", "-f", "-", stdin=flat)
    assert ran.status == 65
    assert ran.err.startswith("standard input:")
    assert "lost its indentation" in ran.err
    assert desk.names() == []


def test_an_installation_with_all_that_people_vary(desk: Desk) -> None:
    """Two pools and families, BGP off, every encapsulation; what is for the operator itself is named."""
    text = """
apiVersion: operator.tigera.io/v1
kind: Installation
metadata: {name: default}
spec:
  variant: Calico
  calicoNetwork:
    bgp: Disabled
    linuxDataplane: Iptables
    nodeAddressAutodetectionV4: {firstFound: true}
    ipPools:
    - {name: pods, cidr: 192.168.0.0/16, encapsulation: IPIP, natOutgoing: Disabled, blockSize: 25}
    - {cidr: 172.31.0.0/16, encapsulation: VXLAN, nodeSelector: "rack == 'a'"}
    - {cidr: "fd00:10::/48", encapsulation: None, natOutgoing: Enabled, disableBGPExport: true}
"""
    ran = desk.run("apply", "-f", "-", stdin=text)
    assert ran.status == 0, ran.err
    assert "left alone, since they are about workloads of the operator's: spec.variant, " in ran.err
    assert "spec.calicoNetwork.nodeAddressAutodetectionV4" in ran.err and "spec.calicoNetwork.linuxDataplane" in ran.err
    assert "BGPPeers, if there are any, are still peered with" in ran.err
    made = yaml.safe_load(desk.run("get", "ippools,bgpconfigurations", "-o", "yaml").out)["items"]
    same = {"assignmentMode", "allowedUses"}
    assert {
        one["metadata"]["name"]: {name: value for name, value in one["spec"].items() if name not in same} for one in made
    } == {
        "default": {"nodeToNodeMeshEnabled": False},
        "pods": {
            "cidr": "192.168.0.0/16", "ipipMode": "Always", "vxlanMode": "Never", "natOutgoing": False, "blockSize": 25,
            "nodeSelector": "all()",
        },
        "default-ipv4-ippool": {
            "cidr": "172.31.0.0/16", "ipipMode": "Never", "vxlanMode": "Always", "natOutgoing": True, "blockSize": 26,
            "nodeSelector": "rack == 'a'",
        },
        "default-ipv6-ippool": {
            "cidr": "fd00:10::/48", "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": True, "blockSize": 122,
            "nodeSelector": "all()", "disableBGPExport": True,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (("bgp: Enabled", "bgp: true"), 6, "spec.bgp: must be Enabled or Disabled, not true"),
        (("VXLANCrossSubnet", "Geneve"), 10, "spec.ipPools[0].encapsulation: must be one of None, IPIP"),
        (
            ("blockSize", "blocksize"),
            8,
            "spec.ipPools[0].blocksize: is not a field known here; did you mean blockSize?",
        ),
        (("CalicoNetwork", "Network"), 2, "kind: must be one of CalicoNetwork, CalicoNode or Installation"),
    ],
)
def test_what_the_operator_would_not_take_either(desk: Desk, change: tuple[str, str], line: int, reason: str) -> None:
    ran = desk.run("apply", "-f", "-", stdin=NETWORK.replace(*change))
    assert ran.status == 65
    assert f"standard input:{line}: {reason}" in ran.err


# ---- where


def test_which_datastore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: str) -> tuple[int, str]:
        (tmp_path / "c.yaml").write_text(config)
        return main(["get", "nodes", "--config", str(tmp_path / "c.yaml")]), capsys.readouterr().err

    assert run("datastore: {type: file, path: none}") == (
        69,
        f"routedctl: {tmp_path}/none: the folder of resources cannot be read: No such file or directory\n",
    )
    assert run("datastore: {type: redis}")[0] == 78
    assert run("nodeName: n")[0] == 78
    assert main(["get", "nodes", "--socket", "/nowhere"]) == 2


# ---- on a real etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@pytest.fixture
def etcd_desk(desk: Desk, etcd: Cluster) -> Desk:
    etcd.delete("--prefix", "")
    (desk.path / "routed.yaml").write_text(
        yaml.safe_dump({"nodeName": "n", "datastore": {"type": "etcd", "endpoints": list(etcd.endpoints)}})
    )
    return desk


@pytest.mark.etcd
def test_etcd_holds_what_calico_would_write(etcd_desk: Desk, etcd: Cluster) -> None:
    assert etcd_desk.run("apply", "-f", "-", stdin=peer("a")).out == "BGPPeer a: created\n"
    key = "/calico/resources/v3/projectcalico.org/bgppeers/a"
    stored = json.loads(etcd.ctl("get", key, "--print-value-only"))
    assert stored["spec"] == {"peerIP": "10.0.0.254", "asNumber": 65001}
    assert set(stored["metadata"]) == {"name", "uid", "creationTimestamp"}
    stored["spec"]["ofTomorrow"] = {"a": 1}
    etcd.ctl("put", key, json.dumps(stored))
    assert etcd_desk.run("apply", "-f", "-", stdin=peer("a", 65002)).out == "BGPPeer a: configured\n"
    again = json.loads(etcd.ctl("get", key, "--print-value-only"))
    assert again["metadata"] == stored["metadata"]
    assert again["spec"] == {"peerIP": "10.0.0.254", "asNumber": 65002, "ofTomorrow": {"a": 1}}
    assert etcd_desk.run("diff", "-f", etcd_desk.file(peer("a", 65002))).status == 0
    assert etcd_desk.run("delete", "bgppeer", "a").out == "BGPPeer a: deleted\n"
    assert etcd.ctl("get", "--prefix", "/calico", "--keys-only").strip() == ""


@pytest.mark.etcd
def test_kubernetes_policies_go_to_etcd_as_calico_s(etcd_desk: Desk) -> None:
    ran = etcd_desk.run("apply", "-f", "-", stdin=yaml.safe_dump(EXAMPLES["KubernetesNetworkPolicy"]))
    assert ran.out == "NetworkPolicy shop/knp.default.db: created\n"
    assert "is stored as NetworkPolicy shop/knp.default.db" in ran.err
    assert etcd_desk.run("get", "np", "-n", "shop", "-o", "name").out == "NetworkPolicy/knp.default.db\n"


@pytest.mark.etcd
def test_a_namespace_goes_to_etcd_as_the_profile_calico_would_make_of_it(etcd_desk: Desk, etcd: Cluster) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
    file = etcd_desk.file(yaml.safe_dump(namespace))
    ran = etcd_desk.run("apply", "-f", file)
    assert ran.out == "Profile kns.shop: created\n"
    assert "is stored as Profile kns.shop, which is what Calico's components read" in ran.err
    stored = json.loads(etcd.ctl("get", f"{P}profiles/kns.shop", "--print-value-only"))
    assert stored["spec"] == {
        "ingress": [{"action": "Allow"}],
        "egress": [{"action": "Allow"}],
        "labelsToApply": {
            "pcns.team": "a", "pcns.kubernetes.io/metadata.name": "shop", "pcns.projectcalico.org/name": "shop",
        },
    }  # fmt: skip
    assert etcd_desk.run("apply", "-f", file).out == "Profile kns.shop: unchanged\n"
    assert etcd_desk.run("diff", "-f", file).status == 0
    assert etcd_desk.run("delete", "namespace", "shop").out == "Profile kns.shop: deleted\n"
    assert etcd_desk.run("delete", "namespace", "shop").err == "Namespace shop: Namespace shop is not there\n"


@pytest.mark.etcd
def test_other_kinds_of_kubernetes_are_stored_beside_calico_s_and_that_is_told(etcd_desk: Desk, etcd: Cluster) -> None:
    for kind, key in (("Pod", "Pod shop/web-0"), ("Service", "Service shop/web")):
        ran = etcd_desk.run("apply", "-f", "-", stdin=yaml.safe_dump(EXAMPLES[kind]))
        assert ran.out == f"{key}: created\n"
        assert f"{key} is stored beside Calico's resources, where nobody but routed reads it" in ran.err
        assert etcd.ctl("get", f"{P}kubernetes{kind.lower()}s/{key.partition(' ')[2]}", "--keys-only").strip()
    # an import changes nothing, and says what that means
    ran = etcd_desk.run("import", "-f", "-", stdin=yaml.safe_dump(EXAMPLES["Namespace"]))
    assert "created" in ran.out
    assert "is stored beside Calico's resources" in ran.err


@pytest.mark.etcd
def test_from_files_to_etcd_and_back(
    etcd_desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind: a second time nothing changes, on either side."""
    made = yaml.safe_dump_all([ALL[kind] for kind in sorted(ALL)])
    (tmp_path / "files").mkdir()
    files = Desk(tmp_path / "files", capsys, monkeypatch)
    assert files.run("import", "-f", "-", stdin=made).out.count("created") == len(ALL)
    ran = etcd_desk.run("import", "-f", "-", stdin=files.run("export").out)
    assert (ran.status, ran.out.count("created")) == (0, len(ALL))
    renamed = (
        "BlockAffinity node-1-10-244-1-0-26 is stored as BlockAffinity virtual.node-1-10-244-1-0-26, by what it says"
    )
    assert renamed in ran.err
    assert etcd_desk.run("import", "-f", "-", stdin=files.run("export").out).out.count("unchanged") == len(ALL)
    exported = etcd_desk.run("export")
    assert exported.status == 0
    assert exported.out.count("\nkind: ") == len(ALL)
    assert etcd_desk.run("import", "-f", "-", stdin=exported.out).out.count("unchanged") == len(ALL)
    (tmp_path / "back").mkdir()
    back = Desk(tmp_path / "back", capsys, monkeypatch)
    assert back.run("import", "-f", "-", stdin=exported.out).status == 0
    assert back.run("export").out == exported.out


@pytest.mark.parametrize("where", ["files", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_every_command_knows_every_kind(request: pytest.FixtureRequest, where: str) -> None:
    """apply, diff, get, delete: what was applied is found by its kind and name, is no difference, and can be deleted."""
    desk: Desk = request.getfixturevalue("etcd_desk" if where == "etcd" else "desk")
    assert desk.run("apply", "-f", desk.file(yaml.safe_dump(ALL["Tier"]))).status == 0  # some policies are of it
    for kind, made in sorted((ALL | {"Tier": {**ALL["Tier"], "metadata": {"name": "other"}}}).items()):
        file = desk.file(yaml.safe_dump(made))
        ran = desk.run("apply", "-f", file)
        assert ran.status == 0, (kind, ran.err)
        key, _, result = ran.out.strip().partition(": ")
        assert result == "created", kind
        stored_kind, _, name = key.partition(" ")
        namespace, _, name = name.rpartition("/")
        assert desk.run("diff", "-f", file).status == 0, kind
        assert desk.run("apply", "-f", file).out.endswith(": unchanged\n"), kind
        place = ["-n", namespace] if namespace else []
        got = desk.run("get", stored_kind, name, *place, "-o", "yaml")
        assert got.status == 0, (kind, got.err)
        assert yaml.safe_load(got.out)["metadata"]["name"] == name
        ran = desk.run("delete", "-f", file)
        assert ran.out == f"{key}: deleted\n", (kind, ran.err)
        assert desk.run("get", stored_kind, name, *place).status == 1, kind
    assert desk.run("delete", "tier", "security").status == 0
    assert desk.run("get", "all", "-A", "-o", "name").out == "Profile/projectcalico-default-allow\n"
    assert desk.run("get", "all", "-A").out.startswith("Profile:\n")
    assert desk.run("get", "profiles").out.startswith("name")


@pytest.mark.etcd
def test_an_affinity_that_another_calico_named_is_stored_by_what_it_says(etcd_desk: Desk, etcd: Cluster) -> None:
    spec = {"node": "n2", "cidr": "10.244.7.0/26", "state": "confirmed", "type": "host", "deleted": False}
    made = yaml.safe_dump(
        {"apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity", "metadata": {"name": "x"}, "spec": spec}
    )
    assert etcd_desk.run("import", "-f", "-", stdin=made).out == "BlockAffinity n2-10-244-7-0-26: created\n"
    stored = etcd.ctl("get", "/calico/ipam/v2/host/n2/ipv4/block/10.244.7.0-26", "--print-value-only")
    assert json.loads(stored) == {"state": "confirmed", "deleted": False}
    assert etcd_desk.run("apply", "-f", "-", stdin=made).out == "BlockAffinity n2-10-244-7-0-26: unchanged\n"
    got = yaml.safe_load(etcd_desk.run("get", "blockaffinity", "n2-10-244-7-0-26", "-o", "yaml").out)
    assert got["spec"] == spec
    assert etcd_desk.run("delete", "blockaffinity", "n2-10-244-7-0-26").status == 0


@pytest.mark.etcd
def test_garbage_beside_what_is_shown(etcd_desk: Desk, etcd: Cluster) -> None:
    """A list that is not complete is exit status 1; what was asked for by name and is there is 0."""
    assert etcd_desk.run("apply", "-f", "-", stdin=peer("a")).status == 0
    etcd.ctl("put", f"{P}bgppeers/b", "{")
    ran = etcd_desk.run("get", "bgppeers", "-o", "name")
    assert (ran.status, ran.out) == (1, "BGPPeer/a\n")
    assert ran.err.startswith(f"{P}bgppeers/b: the value is not JSON")
    ran = etcd_desk.run("get", "bgppeer", "a", "-o", "name")
    assert (ran.status, ran.out) == (0, "BGPPeer/a\n")
    assert f"{P}bgppeers/b" in ran.err
    assert etcd_desk.run("get", "bgppeer", "b").status == 1
    assert etcd_desk.run("get", "nodes").status == 0, "of another kind"
    assert etcd_desk.run("export").status == 1
    # and it can be put right, or away
    assert etcd_desk.run("apply", "-f", "-", stdin=peer("b")).out == "BGPPeer b: configured\n"
    assert etcd_desk.run("get", "bgppeers", "-o", "name") == (0, "BGPPeer/a\nBGPPeer/b\n", "")
    etcd.ctl("put", f"{P}bgppeers/b", "[]")
    assert etcd_desk.run("delete", "bgppeer", "b").out == "BGPPeer b: deleted\n"
    etcd.ctl("put", "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-26", "{}")
    assert etcd_desk.run("ipam", "show").status == 1
    assert etcd_desk.run("ipam", "check").status == 1


def test_a_file_that_cannot_be_read_beside_what_is_shown(desk: Desk) -> None:
    assert desk.run("apply", "-f", "-", stdin=peer("a")).status == 0
    (desk.resources / "bad.yaml").write_text("kind: BGPPeer\n")
    ran = desk.run("get", "bgppeers", "-o", "name")
    assert (ran.status, ran.out) == (1, "BGPPeer/a\n")
    assert desk.run("get", "bgppeer", "a", "-o", "name").status == 0


def test_an_etcd_that_is_not_there(desk: Desk) -> None:
    (desk.path / "routed.yaml").write_text("datastore: {type: etcd, endpoints: ['http://127.0.0.1:1']}\n")
    ran = desk.run("get", "nodes")
    assert ran.status == 69
    assert "etcd" in ran.err
