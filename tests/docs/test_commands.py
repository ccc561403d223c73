"""Every command in README.md, docs/ and the other pages is run as a reader would, and prints what the page says.

New pages are picked up by themselves. What their commands may be:

- `routed` and `routedctl`, and the programs of RUN: run on a node that is set up as README's five minutes say, with a
  second node and a top-of-rack switch. Where the page shows output, ours has the same lines, numbers and times aside;
- `make TARGET`: the target exists; what it does is for the test named in TARGETS;
- a program of NOT_RUN, with the reason why it can't be run here;
- a block with a marker, see `blocks`.

Anything else fails: add it to the list it belongs to. Words in capitals (ADDR, PREFIX) stand for what PLACEHOLDERS says.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Routed
from tests.docs.blocks import Command, commands
from tests.house.rooms import ROOT, documents

RUN = {
    "routedctl": "asks the node",
    "ip": "looks at the node's kernel",
    "sysctl": "sets what belongs to a namespace",
    "curl": "asks the node's web port",
    "jq": "takes JSON apart",
}

NOT_RUN = {
    "routed": "runs for ever: its arguments are checked, and the node of this test runs it",
    "apt": "needs the network; .ci/packages installs the same",
    "apt-get": "needs the network; .ci/packages installs the same",
    "systemctl": "there is no systemd as PID 1 where tests run; tests/systemd starts the unit's command",
    "systemd-sysusers": "writes to this machine's /etc",
    "journalctl": "there is no journal where tests run",
    "cp": "writes to this machine's /etc: tests/lab/test_service.py types it in a copy",
    "mkdir": "writes to this machine's /etc",
    "ln": "writes to this machine's /usr",
    "git": "fetches from the network",
    "python3": "makes a virtual environment: `make setup` does",
    "pip": "installs: tests/lab/test_service.py types it",
    "python": "the project's own tests and benchmarks",
    "pytest": "the project's own tests",
    "dpkg": "installs a package: tests/package does",
    "kubectl": "needs a cluster",
    "containerlab": "needs Docker; routed.testing.lab runs the same files",
    "promtool": "checked with the metrics, in tests/observe",
    "docker": "there is no Docker where tests run",
}

TARGETS = {
    "lab": "tests/lab/test_runner.py", "lab-down": "tests/lab/test_runner.py",
    "demo": "tests/lab/test_demo.py", "test": "this run", "test-fast": "this run", "bench": "tests/bench/test_bench.py",
    "setup": ".ci/run", "check": ".ci/run", "format": ".ci/run", "help": ".ci/run", "clean": ".ci/run",
}  # fmt: skip
"""Targets of the Makefile a page may name, and who runs them. Targets that are not here need only exist."""

PLACEHOLDERS = {"ADDR": "10.0.0.2", "PREFIX": "10.244.2.0/26", "NODE": "node-1", "NAME": "node-1"}

KNOWN = {*RUN, *NOT_RUN, "make"}

PAGES = [page for page in documents() if "decisions" not in page.parts]

COMMANDS = {page: list(commands(page, KNOWN)) for page in PAGES}

#: Seconds for sessions and routes to come, and for what a command changed to settle.
SOON = 30.0


def typed(page: Path) -> list[Command]:
    """The commands of a page that this test runs."""
    return [
        each
        for each in COMMANDS[page]
        if "not run" not in each.markers and each.program in RUN
    ]  # fmt: skip


def test_there_is_something_to_run() -> None:
    found = [each.program for page in PAGES for each in typed(page)]
    assert found.count("routedctl") >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_known(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for each in COMMANDS[page]:
        if "not run" in each.markers:
            assert len(each.markers["not run"]) > 10, f"{each}: say why it is not run"
            continue
        for program in re.split(r" && | \| ", re.sub(r"'[^']*'|\"[^\"]*\"", "QUOTED", each.text)):
            name = Command(page, each.line, program, {}).program
            assert name in KNOWN, f"{each}: `{name}` is in none of the lists of {Path(__file__).name}"
            if name == "make":
                target = re.sub(r"^.*?make ", "", program).split()[0]
                assert target in targets, f"{each}: the Makefile has no target {target}"


def five_minutes() -> tuple[dict[str, object], list[dict[str, object]]]:
    """routed.yaml and the resources of README's five minutes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    config = yaml.safe_load(re.search(r"^ +nodeName: node-1\n.*\n", text, re.MULTILINE)[0])  # type: ignore[index]
    start = text.index("       apiVersion: projectcalico.org/v3")
    lines = text[start:].splitlines()
    end = next(number for number, line in enumerate(lines) if line and not line.startswith("       "))
    return config, list(yaml.safe_load_all("\n".join(line[7:] for line in lines[:end])))


class Reader:
    """Somebody who types what a page says, on node-1."""

    def __init__(self, lab: Lab) -> None:
        _, self.manifests = five_minutes()
        ports = {
            name: lab.namespace(name).port("eth0", f"10.0.0.{index}/24")
            for name, index in (("node-1", 1), ("node-2", 2), ("tor", 254))
        }
        segment = lab.segment("rack")
        self.nodes = {}
        for name, port in ports.items():
            segment.attach(port.namespace, "eth0", *port.addresses)
            self.nodes[name] = Routed(port.namespace)
        for name in ("node-1", "node-2"):
            self.nodes[name].put(*self.manifests)  # type: ignore[arg-type]
        self.nodes["tor"].put(*switch())  # type: ignore[arg-type]
        for each in self.nodes.values():
            each.start()
        for each in self.nodes.values():
            each.wait()
        self.node = self.nodes["node-1"]
        self._programs()
        shutil.copy(ROOT / "tests" / "conformance" / "recordings" / "mesh.jsonl", self.node.folder / "inputs.jsonl")
        self.settle()

    def _programs(self) -> None:
        """`routed` and `routedctl` for the shell, of this node."""
        self.bin = self.node.folder / "bin"
        self.bin.mkdir()
        for name, module in (("routed", "routed.daemon.main"), ("routedctl", "routed.cli.main")):
            config = f" --config {self.node.config}" if name == "routedctl" else ""
            file = self.bin / name
            file.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module}{config} "$@"\n')
            file.chmod(0o755)

    def settle(self) -> None:
        """As it is some seconds after step 4 of the five minutes."""
        if not self.node.alive:
            self.node.start()
            self.node.wait()
        wait_for(lambda: self.node.established("10.0.0.2", "10.0.0.254"), SOON, "sessions of node-1")
        wait_for(lambda: len(self.node.kernel_routes()) == 2, SOON, "routes of node-1")
        wait_for(lambda: not self.node.status()["sweepPending"], SOON, "the end of the start")

    def here(self, text: str) -> str:
        """A command with the paths of this node instead of the usual ones."""
        for name, value in PLACEHOLDERS.items():
            text = re.sub(rf"(?<![\w-]){name}(?![\w-])", value, text)
        text = text.replace("/etc/routed/resources", str(self.node.resources))
        return text.replace("/etc/routed", str(self.node.folder)).replace("/var/tmp", str(self.node.folder))

    def there(self, text: str) -> str:
        """Output with the usual paths instead of this node's."""
        text = text.replace(str(self.node.resources), "/etc/routed/resources")
        return text.replace(str(self.node.folder), "/etc/routed")

    def type(self, text: str) -> tuple[int, str]:
        """Exit status and output of a command line, typed at node-1."""
        endless = re.search(r"--(follow|watch)\b", text) is not None
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        with self.node.namespace.entered():
            argv = (*(("timeout", "-s", "INT", "3") if endless else ()), "sh", "-c", self.here(text))
            done = subprocess.run(
                argv, cwd=self.node.folder, env=environment, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, check=False, timeout=60,
            )  # fmt: skip
        status = 0 if endless and done.returncode in (124, 130) else done.returncode
        return status, self.there(done.stdout)


def switch() -> list[dict[str, object]]:
    """The top-of-rack switch the five minutes speak of: another routed, for what it says is not what is looked at."""
    api = "projectcalico.org/v3"
    return [
        {"apiVersion": api, "kind": "Node", "metadata": {"name": "tor"},
         "spec": {"bgp": {"ipv4Address": "10.0.0.254/24", "asNumber": 65001}}},
        {"apiVersion": api, "kind": "BGPConfiguration", "metadata": {"name": "default"},
         "spec": {"asNumber": 65001, "nodeToNodeMeshEnabled": False}},
        *({"apiVersion": api, "kind": "BGPPeer", "metadata": {"name": f"node-{index}"},
           "spec": {"peerIP": f"10.0.0.{index}", "asNumber": 64512}} for index in (1, 2)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reader(lab: Lab) -> Iterator[Reader]:
    made = Reader(lab)
    yield made
    for each in made.nodes.values():
        each.kill()


def shape(line: str) -> str:
    """A line without what differs from one day to the next: blanks, times, process ids, sizes, counts."""
    line = re.sub(r"\b\d+d\d\dh\d\dm\b|\b\d\d:\d\d:\d\d\b", "TIME", line)
    line = re.sub(r"\b\d{4}-\d\d-\d\d.TIME[.\d]*Z?", "TIME", line)
    line = re.sub(r"(?<![\w.:/-])\d+(\.\d+)?(?![\w.:/-])", "N", line)
    return " ".join(line.split())


def missing_lines(wanted: list[str], printed: str) -> list[str]:
    """The lines of a page that were not printed, in their order; `...` stands for any lines."""
    shapes = [shape(line) for line in printed.splitlines()]
    missing, at = [], 0
    for line in wanted:
        if not line.strip() or line.strip() in ("...", "…"):
            continue
        if shape(line) in shapes[at:]:
            at = shapes.index(shape(line), at) + 1
        else:
            missing.append(line)
    return missing


@pytest.mark.lab
@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_do_what_the_page_says(page: Path, reader: Reader) -> None:
    for each in typed(page):
        expected = int(each.markers.get("exits with", "0"))
        until = time.monotonic() + SOON
        while True:
            reader.settle()
            status, printed = reader.type(each.text)
            missing = missing_lines(each.output, printed)
            if (status == expected and not missing) or time.monotonic() > until or not each.output:
                break
        assert status == expected, f"{each}\nended with {status} and printed\n{printed}"
        assert not missing, f"{each}\ndid not print\n{chr(10).join(missing)}\nbut\n{printed}"


def test_what_the_comparison_sees() -> None:
    page = ["State   Up/Down", "...", "up for:  00:00:03", "10.0.0.2  4", ""]
    assert missing_lines(page, "State     Up/Down\nx\ny\nup for: 11:22:33\n10.0.0.2 17") == []
    assert missing_lines(page, "State Up/Down\nup for: 1d00h00m\n10.0.0.3 4") == ["10.0.0.2  4"]
    assert missing_lines(["a", "b"], "b\na") == ["b"]


def test_what_a_page_may_hold(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n    # routedctl status   # a comment\n    node: x\n    # routedctl version\n\n"
        "```yaml\n# routedctl is no command here\nrouted: 1\n```\n\n<!-- exits with: 78 -->\n\n"
        "```sh\nroutedctl check \\\n  x.yaml\nunknown thing\n```\n\n"
        "<!-- not run: needs a moon -->\n```console\n# moon up\n```\n"
    )
    found = list(commands(page, KNOWN))
    assert [(each.text, each.output) for each in found] == [
        ("routedctl status", ["node: x"]),
        ("routedctl version", []),
        ("routedctl check   x.yaml", []),
        ("unknown thing", []),
        ("moon up", []),
    ]
    assert [each.markers for each in found[2:]] == [{"exits with": "78"}] * 2 + [{"not run": "needs a moon"}]
    assert shlex.split(found[2].text) == ["routedctl", "check", "x.yaml"]
