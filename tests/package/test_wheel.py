"""The wheel has all that is needed, and runs from a fresh environment that never saw these sources."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from package import completions, wheel
from routed import __version__
from routed.cni.protocol import VERSIONS
from routed.testing.lab import wait_for
from tests.house.rooms import PACKAGE, ROOT, project_files

SOON = 30.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def prefix(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; what it depends on comes, as it is, from the environment of the tests."""
    made = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(made, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(made / "bin/python"), "install", "--quiet"]
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *offline, str(built)], check=True)
    (folder,) = (made / "lib").glob("python*/site-packages")
    (folder / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_every_file_is_in_it(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    data = f"routed-{__version__}.data/data/share"
    for path in project_files():
        name = path.relative_to(ROOT)
        if path.is_relative_to(PACKAGE):
            assert str(name) in names
        elif name.parts[0] == "config":
            assert f"{data}/doc/routed/examples/{'/'.join(name.parts[1:])}" in names
        elif name.parts[0] == "systemd":
            assert f"{data}/routed/systemd/{'/'.join(name.parts[1:])}" in names
    assert {f"{data}/man/man8/routed.8", f"{data}/man/man8/routedctl.8", f"{data}/man/man5/routed.yaml.5"} <= names
    assert {f"{data}/{place}" for place in completions.PLACES.values()} <= names
    assert not [name for name in names if name.startswith(("tests/", "package/", "build/"))]


def test_what_it_depends_on_is_what_is_declared(prefix: Path) -> None:
    (folder,) = (prefix / "lib").glob("python*/site-packages")
    (made,) = importlib.metadata.distributions(name="routed", path=[str(folder)])
    ours = {each for each in importlib.metadata.requires("routed") or () if "extra ==" not in each}
    assert {each for each in made.requires or () if "extra ==" not in each} == ours


def output(prefix: Path, *argv: str) -> str:
    return subprocess.run(
        [str(prefix / "bin" / argv[0]), *argv[1:]],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={"PATH": ""},
    ).stdout


def test_the_programs_are_those_of_the_wheel(prefix: Path) -> None:
    where = output(prefix, "python", "-c", "import routed; print(routed.__file__)").strip()
    assert where.startswith(str(prefix)), "not the sources"
    assert output(prefix, "routed", "--version") == f"routed {__version__}\n"
    assert "show neighbors" in output(prefix, "routedctl", "--help")


@pytest.mark.parametrize("linked", [False, True])
def test_the_plugin_starts_isolated_and_by_a_link_too(prefix: Path, tmp_path: Path, linked: bool) -> None:
    program = prefix / "bin/routed-cni"
    if linked:
        (tmp_path / "routed-cni").symlink_to(program)
        program = tmp_path / "routed-cni"
    (tmp_path / "posix.py").write_text("raise SystemExit('the caller chose our modules')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('the caller chose what runs before us')")
    done = subprocess.run(
        [str(program)],
        input=b'{"cniVersion": "1.1.0"}',
        stdout=subprocess.PIPE,
        check=True,
        cwd=tmp_path,
        env={"PATH": os.defpath, "CNI_COMMAND": "VERSION", "PYTHONPATH": str(tmp_path)},
    )
    assert json.loads(done.stdout)["supportedVersions"] == list(VERSIONS)


@contextlib.contextmanager
def running(prefix: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "resources").mkdir()
    (folder / "routed.yaml").write_text(
        "nodeName: wheel\ndatastore: {type: file, path: resources}\nrunDir: run\nstateDir: state\n"
        "kernel: {programRoutes: false}\n"
    )
    process = subprocess.Popen(
        [str(prefix / "bin/routed"), "run", "--config", str(folder / "routed.yaml")],
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.defpath},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_runs(prefix: Path, tmp_path: Path) -> None:
    with running(prefix, tmp_path) as process:
        ask = [str(prefix / "bin/routedctl"), "--config", str(tmp_path / "routed.yaml"), "status"]

        def said() -> str:
            assert process.poll() is None
            return subprocess.run(ask, capture_output=True, text=True, check=False).stdout

        assert "wheel" in wait_for(said, SOON, "it answers") and __version__ in said()
        process.terminate()
        assert process.wait(SOON) == 0
