"""`routedctl check`: all errors of files at once with their lines, and the plan, as the daemon would have it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from routed.cli.main import main
from tests.house.rooms import ROOT

SAMPLES = ROOT / "config" / "resources"

BAD = """\
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec:
  peerIP: nonsense
  foo: 1
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: p}
spec: {cidr: 10.0.0.0/8, blockSize: 99}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: good}
spec: {cidr: 10.1.0.0/16}
---
bad: [
"""


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    status = main(["check", *words])
    return status, capsys.readouterr().out.splitlines()


def test_all_errors_of_all_files_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(BAD)
    (tmp_path / "b.yaml").write_text(BAD.split("---\n")[2])
    (tmp_path / "c.yaml").write_text("")
    (tmp_path / ".hidden.yaml").write_text("[")
    status, lines = run(capsys, str(tmp_path))
    assert status == 78
    places = [line.removeprefix(f"error: {tmp_path}/").split(": ")[:2] for line in lines[:-1]]
    assert places == [
        ["a.yaml:5", "spec.peerIP"],
        ["a.yaml:6", "spec.foo"],
        ["a.yaml:11", "spec.blockSize"],
        ["a.yaml:19", "this is not YAML"],
        ["b.yaml:1", f"IPPool good is already in {tmp_path}/a.yaml:13; this one has no effect"],
        ["c.yaml", "the file is empty"],
    ]
    assert lines[-1] == f"{tmp_path}: 6 errors, 0 warnings, 1 resource"
    assert main(["check", str(tmp_path), "--json"]) == 78
    answer = json.loads(capsys.readouterr().out)
    assert (len(answer["errors"]), answer["plan"]) == (6, None)


def test_what_the_daemon_takes_check_takes(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(capsys, str(SAMPLES))
    assert (status, lines[-1]) == (0, f"{SAMPLES}: no errors, 0 warnings, 14 resources")
    status, lines = run(capsys, str(SAMPLES / "mesh.yaml"), "--node", "node-1")
    assert status == 0
    assert "10.0.0.2  64512  Mesh_10_0_0_2  node-to-node mesh, Node node-2" in lines
    assert "10.244.1.0/26  block  BlockAffinity node-1-10-244-1-0-26" in lines


def test_a_configuration_and_the_folder_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "routed.yaml"
    config.write_text("nodeName: node-9\nkernl: {}\ndatastore: {type: file, path: resources}\nlog: {level: loud}\n")
    status, lines = run(capsys, str(config))
    assert status == 78
    assert lines[:3] == [
        f"error: {config}:2: kernl: unknown key; did you mean `kernel`?",
        f"error: {config}:4: log.level: must be debug or info or warning or error, not 'loud'",
        f"error: {config}:3: datastore.path: there is no folder {tmp_path}/resources",
    ]
    config.write_text("nodeName: node-1\ndatastore: {type: file, path: resources}\n")
    status, lines = run(capsys, str(config))
    assert lines[0] == f"error: {config}:2: datastore.path: there is no folder {tmp_path}/resources"
    (tmp_path / "resources").symlink_to(SAMPLES)
    assert main(["check", "--config", str(config)]) == 0
    assert "node-1 would have AS 64512, router id 10.0.0.1," in capsys.readouterr().out


def test_warnings_name_what_is_not_supported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\n"
    (tmp_path / "pool.yaml").write_text(pool + "spec: {cidr: 10.0.0.0/16, natOutgoing: true}\n")
    node = "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: a}\n"
    (tmp_path / "node.yaml").write_text(node + "spec: {bgp: {ipv4Address: 10.1.0.1/24}}\n")
    status, lines = run(capsys, str(tmp_path))
    assert status == 0
    assert [line for line in lines if line.startswith(f"note: {tmp_path}/pool.yaml:4: IPPool p: spec.natOutgoing")]


def test_passwords_and_the_sessions_that_wait_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\n"
    peer = head + "metadata: {{name: {0}}}\nspec:\n  peerIP: 10.0.0.{1}\n  asNumber: 1\n"
    password = "  password: {{secretKeyRef: {{name: bgp, key: {0}}}}}\n"
    node = (
        "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: a}\nspec: {bgp: {ipv4Address: 10.0.0.1/24}}\n"
    )
    resources = tmp_path / "resources"
    resources.mkdir()
    peers = [peer.format(name, at) + password.format(name) for at, name in ((8, "there"), (9, "missing"))]
    (resources / "all.yaml").write_text("---\n".join([node, *peers]))
    (tmp_path / "secrets" / "bgp").mkdir(parents=True)
    (tmp_path / "secrets" / "bgp" / "there").write_text("word")
    config = tmp_path / "routed.yaml"
    config.write_text("nodeName: a\ndatastore: {type: file, path: resources}\nsecrets: {dir: secrets}\n")
    status, lines = run(capsys, str(config))
    assert status == 0
    (warning,) = (line for line in lines if line.startswith("warning: "))
    assert warning.startswith(
        f"warning: {resources}/all.yaml:20: BGPPeer missing: spec.password: there is no bgp/missing"
    )
    assert "1 session, and 1 that may not start:" in lines
    assert [line for line in lines if line.startswith("10.0.0.9") and "its password is missing" in line]
    # the resources alone say nothing of passwords
    status, lines = run(capsys, str(resources))
    assert lines == [f"{resources}: no errors, 0 warnings, 3 resources"]


def test_only_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    assert run(capsys, str(tmp_path)) == (0, [f"{tmp_path}: no errors, 0 warnings, 0 resources"])
    assert main(["check", str(tmp_path / "x.yaml")]) == 78
    assert capsys.readouterr().err == f"routedctl: {tmp_path}/x.yaml: is no file\n"


def test_hostile_files_are_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text('apiVersion: "\\x1b[2J"\nkind: "IPPool\\u202e"\n')
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x1b[2J")
    (tmp_path / "c.yaml").write_text("[" * 5000)
    status, lines = run(capsys, str(tmp_path))
    assert status == 78
    assert not set("".join(lines)) & set("\x1b\u202e")


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 78
    assert capsys.readouterr().err == f"routedctl: {tmp_path}/none: there is no such file or folder\n"


def test_a_configuration_that_names_no_folder_reads_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "other.yaml").write_text("not: a resource\n")
    config = tmp_path / "routed.yaml"
    config.write_text("nodeName: n1\nlog: {level: info}\n")
    assert main(["check", str(config)]) == 78
    said = capsys.readouterr().out
    assert "datastore.path: is required" in said and "other.yaml" not in said and "would have" not in said
    assert said.endswith("1 error, 0 warnings, 0 resources\n")


def test_a_folder_that_is_not_there_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "routed.yaml"
    config.write_text("nodeName: n1\ndatastore:\n  type: file\n  path: nowhere\n")
    assert main(["check", str(config)]) == 78
    said = capsys.readouterr().out
    assert f"error: {config}:4: datastore.path: there is no folder {tmp_path / 'nowhere'}" in said
    assert "would have" not in said


def test_a_kubeconfig_the_daemon_would_not_start_with_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config, kubeconfig = tmp_path / "routed.yaml", tmp_path / "kubeconfig"
    (tmp_path / "resources").mkdir()
    config.write_text(
        f"nodeName: n1\ndatastore: {{type: file, path: resources}}\nkubernetes:\n  kubeconfig: {kubeconfig}\n"
    )
    assert main(["check", str(config)]) == 78
    where = f"error: {config}:4: kubernetes.kubeconfig: {kubeconfig}"
    assert f"{where}: cannot read the kubeconfig: No such file or directory\n" in capsys.readouterr().out
    kubeconfig.write_text("[]")
    assert main(["check", str(config)]) == 78
    assert f"{where}: is not a kubeconfig\n" in capsys.readouterr().out
