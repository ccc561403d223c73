"""`make demo` as a newcomer runs it: it works, leaves nothing behind, and where it can't work says so in a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "routed.testing.demo"]


def namespaces(pid: int) -> list[str]:
    return [name for name in os.listdir("/run/netns") if name.startswith(f"rlab-{pid}-")]


def test_the_demo_works_and_cleans_up() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=110)
    assert (process.returncode, errors) == (0, "")
    assert "All 24 pings answered" in output
    assert "LOST" not in output
    for expected in (
        r"node-1\$ routedctl show neighbors",
        r"10\.10\.0\.254 +65000 +Established",
        r"10\.244\.2\.0/26 via 10\.10\.0\.2 dev eth0",
        r"fd00:10:244:3::/122 via fd00:10::3",
        r"blackhole 10\.244\.1\.0/26",
        r"the only candidate",
    ):
        assert re.search(expected, output), expected
    assert namespaces(process.pid) == []


def test_without_bird_it_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {**os.environ, "PATH": str(tmp_path_factory.mktemp("empty"))}
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "demo: BIRD 2 is not installed: `make demo` installs what is needed\n"


def test_stopped_halfway_it_cleans_up(tmp_path: Path) -> None:
    # nobody agrees with this one, so the demo waits until it is stopped
    (tmp_path / "bird").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "bird").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # in the background of a script it would be deaf to the signal
    command = ["env", "--default-signal=INT", *COMMAND]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Starting"):
            break
    process.send_signal(2)
    _, errors = process.communicate(timeout=110)
    assert process.returncode == 1
    assert errors == "demo: FAILED: interrupted\n"
    assert namespaces(process.pid) == []
