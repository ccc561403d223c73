"""Eight nodes take and give back addresses of one real etcd at once, and are killed at random points."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from routed.cli.main import main
from tests.datastore.etcd_server import Cluster, P, cluster
from tests.ipam import allocating_node

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

NODES = 8
KILLS = 20


class Nodes:
    """One process a node."""

    def __init__(self, server: Cluster, folder: Path, chance: random.Random) -> None:
        self._server = server
        self._folder = folder
        self._chance = chance
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.lives = 0

    def start(self, name: str) -> None:
        """Start a node; it is waited for before it is killed."""
        argv = [sys.executable, allocating_node.__file__, self._server.endpoints[0], name, str(self._chance.random())]
        with open(self._folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log)
        self._running[name] = process
        self.lives += 1

    def kill(self, name: str) -> None:
        """Kill a node at a random point of its work."""
        process = self._running.pop(name)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n", self.log(name)
        time.sleep(self._chance.uniform(0, 0.1))  # the random point, not a wait for anything
        ended = process.poll()
        assert ended is None, (ended, process.stdout.read() if ended is not None else b"", self.log(name))
        process.kill()
        process.wait()
        process.stdout.close()

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()[-2000:]

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()


def test_no_address_is_given_twice_and_none_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(20)
    with cluster(tmp_path) as server:
        names = [f"n{number}" for number in range(NODES)]
        manifest = {"apiVersion": "projectcalico.org/v3"}
        pool = {"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/25", "blockSize": 29}}
        server.put(f"{P}ippools/p", manifest | pool)
        for name in names:
            server.put(f"{P}nodes/{name}", manifest | {"kind": "Node", "metadata": {"name": name}, "spec": {}})
        config = tmp_path / "routed.yaml"
        config.write_text(f"nodeName: x\ndatastore: {{type: etcd, endpoints: ['{server.endpoints[0]}']}}\n")

        def ctl(*words: str) -> tuple[int, str]:
            status = main(["--config", str(config), *words])
            return status, capsys.readouterr().out

        nodes = Nodes(server, tmp_path, chance)
        try:
            for name in names:
                nodes.start(name)
            for _ in range(KILLS):
                time.sleep(chance.uniform(0, 0.1))  # the random point at which it is killed, not a wait for anything
                victim = chance.choice(names)
                nodes.kill(victim)
                nodes.start(victim)
            for name in names:
                nodes.kill(name)
        finally:
            nodes.stop()
        assert nodes.lives == NODES + KILLS

        report = tmp_path / "report.json"
        ctl("ipam", "check", "-o", str(report))
        found = json.loads(report.read_text())["findings"]
        # a crash leaves too much, never too little: nobody has an address that is free, or another's
        assert {each["problem"] for each in found} <= {"leaked", "handle", "no block", "no affinity"}, found
        for each in found:
            if each["problem"] == "handle":
                under = re.search(r"which has (\d+) under it", each["text"])
                assert under is not None and each["count"] > int(under[1]), each["text"]
        endpoints = len(server.ctl("get", "--prefix", "--keys-only", f"{P}workloadendpoints/").split())
        assert endpoints > NODES
        for _ in range(3):  # a release may find what is then nobody's: the next look has it
            if ctl("ipam", "check", "-o", str(report))[0] == 0:
                break
            status, said = ctl("ipam", "release", "--from-report", str(report))
            assert status == 0, said
        assert ctl("ipam", "check") == (0, "all addresses, handles and blocks add up\n")
        (line,) = json.loads(ctl("ipam", "show", "--json")[1])
        assert line["inUse"] == endpoints
        assert len(server.ctl("get", "--prefix", "--keys-only", "/calico/ipam/v2/handle/").split()) == endpoints

        # a node that is removed gives all of its own back, and nobody else's
        gone = len(server.ctl("get", "--prefix", "--keys-only", f"{P}workloadendpoints/default/n3-").split())
        status = main(["--config", str(config), "ipam", "release", "--node", "n3"])
        assert status == 2 and "delete it first" in capsys.readouterr().err
        server.delete(f"{P}nodes/n3")
        assert ctl("ipam", "check")[0] == 1
        assert ctl("ipam", "release", "--node", "n3")[0] == 0
        assert ctl("ipam", "check")[0] == 0
        assert json.loads(ctl("ipam", "show", "--json")[1])[0]["inUse"] == endpoints - gone
        assert not server.ctl("get", "--prefix", "--keys-only", "/calico/ipam/v2/host/n3/").split()
