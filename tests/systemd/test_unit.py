"""systemd's own tools on the unit, and every directive of it is there for something.

How the service behaves is tests/lab/test_service.py: this is what can be said without starting anything.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from routed.testing.service import DIRECTIVES, read_unit
from tests.house.rooms import ROOT

UNIT = ROOT / "systemd" / "routed.service"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def analyze(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, check=False)


def exposure(text: str, folder: Path) -> float:
    """The sum of what systemd counts against a unit."""
    folder.mkdir(exist_ok=True)
    path = folder / "routed.service"
    path.write_text(text)
    rows = json.loads(analyze("security", "--offline=true", "--json=short", str(path)).stdout)
    return sum(float(row["exposure"] or 0) for row in rows)


def test_verify_is_silent(tmp_path: Path) -> None:
    """It returns 0 also where it complains. The program is only there where routed is installed (tests/lab/test_deb.py)."""
    path = tmp_path / "routed.service"
    path.write_text(UNIT.read_text().replace("/usr/bin/routed", "/bin/true"))
    done = analyze("verify", "--man=no", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    path.write_text(path.read_text().replace("WatchdogSec", "WatchdogSecs"))
    assert "WatchdogSecs" in analyze("verify", "--man=no", str(path)).stderr, "it would complain"


def test_the_exposure_is_at_most_two(tmp_path: Path) -> None:
    path = tmp_path / "routed.service"
    shutil.copy(UNIT, path)
    done = analyze("security", "--offline=true", "--threshold=20", str(path))
    assert done.returncode == 0, done.stdout


#: No sandbox by themselves: what the service is, and what it may.
NOT_SANDBOX = {"AmbientCapabilities", "SystemCallErrorNumber"}


def test_every_directive_of_the_sandbox_counts(tmp_path: Path) -> None:
    text = UNIT.read_text()
    base = exposure(text, tmp_path / "base")
    sandbox = text.partition("\nAmbientCapabilities=")[2].partition("[Install]")[0]
    lines = [line for line in sandbox.splitlines()[1:] if "=" in line and not line.startswith("#")]
    assert len(lines) > 20
    for line in lines:
        if line.partition("=")[0] not in NOT_SANDBOX:
            assert exposure(text.replace(f"{line}\n", "", 1), tmp_path / "less") > base, line


def test_drop_ins_are_understood(tmp_path: Path) -> None:
    """Each example with the unit, as systemd would merge them."""
    for example in sorted((ROOT / "systemd" / "examples").iterdir()):
        text = example.read_text().replace("/opt/routed/bin/routed", "/bin/true")
        path = tmp_path / "routed.service"
        merged = UNIT.read_text().replace("/usr/bin/routed", "/bin/true").replace("[Install]", f"{text}\n[Install]")
        path.write_text(merged)
        done = analyze("verify", "--man=no", str(path))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), example.name


def sysctls() -> dict[str, str]:
    lines = (ROOT / "systemd" / "90-routed.conf").read_text().splitlines()
    pairs = [line.split("=") for line in lines if line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, value in pairs}


def test_every_kernel_setting_exists_and_has_a_reason() -> None:
    reason = False
    for line in (ROOT / "systemd" / "90-routed.conf").read_text().splitlines():
        assert not line or line.startswith("#") or reason, line
        reason = bool(line)
    for key in sysctls():
        assert Path("/proc/sys", *key.split(".")).exists(), key


def test_every_directive_is_tried_or_said_not_to_be() -> None:
    """The stand-in for systemd knows exactly what the unit says."""
    unit = read_unit(UNIT.read_text())
    assert set(unit["Service"]) == set(DIRECTIVES)


def test_the_page_names_what_was_not_tried() -> None:
    page = (ROOT / "docs" / "systemd.md").read_text().partition("## What is tested, and what was not")[2]
    for name, how in DIRECTIVES.items():
        if "not tried" in how or "lets us" in how:
            assert f"`{name}=`" in page, name
