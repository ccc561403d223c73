"""What all tests share: the laboratory, and what it says when a test in it fails."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from hypothesis import HealthCheck, settings

from routed.testing.lab import Lab

# how long something takes on a machine that has other things to do is nothing a test may fail for
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# the suite is the same in each run: what only other examples show is looked for by `make explore`
settings.register_profile("house", _PATIENT, derandomize=True)
settings.register_profile("explore", _PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

# where the environment forbids to write bytecode, each daemon that a test starts would compile the whole program again
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# daemons that give root up, FRR's and etcd's beside them, read what tests write for them
os.umask(0o022)

#: The folders of tests that need namespaces, real kernels and other people's daemons.
LAB_FOLDERS = {"lab", "interop"}

HERE = Path(__file__).parent

ETCD_INSTALLED = shutil.which("etcd") is not None


@cache
def in_the_lab(module: Path) -> bool:
    return module.is_relative_to(HERE) and module.relative_to(HERE).parts[0] in LAB_FOLDERS


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if in_the_lab(item.path):
            item.add_marker(pytest.mark.lab)
        if item.get_closest_marker("lab") is not None and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root, for network namespaces"))
        if item.get_closest_marker("etcd") is not None:
            item.add_marker(pytest.mark.lab)  # it is another's daemon, though it needs no root
            if not ETCD_INSTALLED:
                item.add_marker(pytest.mark.skip(reason="etcd is not installed (Debian: etcd-server)"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory for the tests of one module."""
    with Lab() as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The last words of a lab's programs go beside a failure."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        report.sections.append(("laboratory", lab.report()))
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """A failure that did not come again is no failure of the run, and is told as if it were (docs/decisions/0024)."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed, then run once more: {report.nodeid}")
        report.toterminal(terminalreporter._tw)
