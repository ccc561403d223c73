"""The passwords and tokens of a node are in nothing it writes or answers, whatever goes wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, Routed, resource
from tests.datastore.kubernetes_api import make_certificates
from tests.lab.etcd import Etcd

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

SESSION, STORE, TOKEN, WRONG = "Tu-qui-session", "Tu-qui-store", "Tu-qui-token", "Tu-qui-wrong"

ASKED = (
    "status", "show neighbors", "show neighbors 10.0.0.2", "show summary", "show routes", "show interfaces",
    "show received 10.0.0.2", "show advertised 10.0.0.2", "version", "get BGPPeer", "get BGPPeer -o yaml", "export",
)  # fmt: skip


def test_no_secret_is_written_or_answered(lab: Lab) -> None:
    here, there = lab.namespace("here"), lab.namespace("there")
    lab.link(here.port("eth0", "10.0.0.1/24"), there.port("eth0", "10.0.0.2/24"))

    etcd = Etcd(here)
    etcd.start()
    password = {"secretKeyRef": {"name": "bgp", "key": "tor"}}
    for folder, manifest in (
        (
            "bgpconfigurations",
            resource("BGPConfiguration", "default", {"serviceClusterIPs": [{"cidr": "10.96.0.0/16"}]}),
        ),
        ("nodes", resource("Node", "here", {"bgp": {"ipv4Address": "10.0.0.1/24"}})),
        ("bgppeers", resource("BGPPeer", "tor", {"peerIP": "10.0.0.2", "asNumber": 65001, "password": password})),
    ):
        etcd.put_resource(folder, manifest)
    for words in (f"user add root:{STORE}", "user grant-role root root", "auth enable"):
        etcd.ctl(*words.split())

    files = here.folder / "secret"
    (files / "bgp").mkdir(parents=True)
    (files / "bgp" / "tor").write_text(SESSION)
    (files / "etcd").write_text(STORE)
    make_certificates(files)  # nobody listens there: the API can't be reached, which is told
    cluster = {"server": "https://127.0.0.1:6443", "certificate-authority": "ca.pem"}
    (files / "kubeconfig").write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
            }
        )
    )
    routed = Routed(
        here,
        datastore={"type": "etcd", "endpoints": [etcd.url], "username": "root", "passwordFile": str(files / "etcd")},
        secrets={"dir": str(files)},
        kubernetes={"kubeconfig": str(files / "kubeconfig")},
        metrics={"listen": "127.0.0.1:9971"},
    )
    recording = here.folder / "recording"
    argv = (sys.executable, "-m", "routed.daemon.main", "run", "--config", str(routed.config), "--record")
    process = here.start("routed", *argv, str(recording))
    routed.processes = [process]
    session = f'neighbor 10.0.0.1 as 64512; password "{SESSION}"; connect retry time 1; connect delay time 1;'
    bird = Bird(
        there,
        "router id 10.0.0.2; protocol device {}\n"
        f"protocol bgp here {{ local 10.0.0.2 as 65001; {session} ipv4 {{ import all; export none; }}; }}\n",
    )
    bird.start()
    wait_for(
        lambda: bird.established("10.0.0.1") and routed.established("10.0.0.2"),
        40,
        "the session with a password is up at both ends",
        state=lab.report,
    )

    answers: dict[str, str] = {}

    def ask(*form: str) -> None:
        for words in ASKED:
            answers[" ".join((words, *form))] = routed.ctl(*words.split(), *form, check=False)
        for path in ("metrics", "healthz", "readyz"):
            answers[" ".join((path, *form))] = here.run("curl", "-s", f"http://127.0.0.1:9971/{path}", check=False)
        for what in ("cmdline", "comm"):
            answers[" ".join((what, *form))] = Path(f"/proc/{process.pid}/{what}").read_text()

    ask()
    assert "Established" in answers["show neighbors"]
    assert "bgp/tor" in answers["show neighbors 10.0.0.2"]
    # each of them goes wrong
    (files / "bgp" / "tor").write_text(WRONG)
    wait_for(lambda: not bird.established("10.0.0.1"), 30, "the other password ended the session", state=lab.report)
    (files / "etcd").write_text(WRONG)
    etcd.ctl("auth", "disable", user=f"root:{STORE}")
    etcd.ctl("user", "delete", "root")
    etcd.ctl("user", "add", f"root:{TOKEN}")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("auth", "enable")
    etcd.kill()
    etcd.start()
    wait_for(lambda: "etcd" in " ".join(routed.problems()), 30, "etcd refuses the password", state=routed.problems)
    wait_for(lambda: "kubernetes: " in routed.log(), 30, "the API is away", state=lab.report)
    ask("--json")
    process.stop()

    kept = [*(here.folder / "state").rglob("*"), *(here.folder / "run").rglob("*"), recording]
    texts = {str(each): each.read_bytes().decode("utf-8", "replace") for each in kept if each.is_file()}
    assert len(texts[str(recording)]) > 1000
    texts["log"] = routed.log()
    texts |= answers
    for name, text in texts.items():
        found = [secret for secret in (SESSION, STORE, TOKEN, WRONG) if secret in text]
        assert not found, f"{name} has {found}"
