"""The connection tracking table: on made-up files where the kernel's answers matter, on the real one where it is ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from routed.dataplane.conntrack import (
    MAX_TIMEOUT,
    ROOT,
    STATISTICS,
    TIMEOUTS,
    ConntrackSettings,
    ConntrackUse,
    FullnessWatch,
    tune,
    use,
)
from routed.testing.lab import Lab


def test_sizes_and_timeouts_are_written(tmp_path: Path):
    for name in ("max", "buckets", "tcp_timeout_established"):
        (tmp_path / f"nf_conntrack_{name}").write_text("1\n")
    settings = ConntrackSettings(65536, 8192, {"tcp_timeout_established": 86400})
    assert tune(settings, str(tmp_path)) == []
    assert (tmp_path / "nf_conntrack_max").read_text() == "65536"
    assert (tmp_path / "nf_conntrack_buckets").read_text() == "8192"
    assert (tmp_path / "nf_conntrack_tcp_timeout_established").read_text() == "86400"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ConntrackSettings(maximum=600_000), "is more than 64 times the kernel's 8192 buckets"),
        (ConntrackSettings(buckets=1_000), "are too few for the kernel's nf_conntrack_max 262144"),
        (ConntrackSettings(maximum=1 << 20, buckets=1 << 16), "would take 256 MiB, more memory than there is"),
    ],
)
def test_sizes_that_do_not_go_with_what_the_machine_has_are_refused(
    tmp_path: Path, settings: ConntrackSettings, words: str
):
    (tmp_path / "nf_conntrack_max").write_text("262144\n")
    (tmp_path / "nf_conntrack_buckets").write_text("8192\n")
    (problem,) = tune(settings, str(tmp_path), memory=200 << 20)
    assert words in problem
    assert (tmp_path / "nf_conntrack_max").read_text() == "262144\n"


def test_buckets_in_whole_pages_are_not_written_again(tmp_path: Path):
    """The kernel has 1,024 where 1,000 were asked for, and would rehash the whole table."""
    path = tmp_path / "nf_conntrack_buckets"
    (tmp_path / "nf_conntrack_max").write_text("8192\n")
    path.write_text("1024\n")
    assert tune(ConntrackSettings(buckets=1000), str(tmp_path)) == []
    assert path.read_text() == "1024\n"


def test_what_is_right_already_is_not_written(tmp_path: Path):
    path = tmp_path / "nf_conntrack_buckets"
    path.write_text("8192\n")
    before = path.stat().st_mtime_ns
    assert tune(ConntrackSettings(buckets=8192), str(tmp_path)) == []
    assert path.stat().st_mtime_ns == before  # writing buckets would rehash the whole table


def test_a_kernel_without_it(tmp_path: Path):
    (problem,) = tune(ConntrackSettings(maximum=65536), str(tmp_path))
    assert "load nf_conntrack first" in problem
    assert use(str(tmp_path)) is None


def test_use_adds_up_all_processors(tmp_path: Path):
    (tmp_path / "nf_conntrack_count").write_text("12\n")
    (tmp_path / "nf_conntrack_max").write_text("100\n")
    statistics = tmp_path / "stat"
    statistics.write_text("entries drop early_drop insert_failed\n0000000c 0000000a 1 2\n0000000c 00000001 0 3\n")
    assert use(str(tmp_path), str(statistics)) == ConntrackUse(12, 100, dropped=11, evicted=1, insert_failed=5)


def test_a_warning_comes_once_and_ends_once():
    watch = FullnessWatch()
    said = [watch.look(ConntrackUse(entries, 100, 0, 0, 0)) for entries in (79, 80, 99, 75, 70, 69, 10)]
    assert [bool(text) for text in said] == [False, True, False, False, False, True, False]
    assert "80 of 100 entries" in said[1] and "raise conntrack.max" in said[1]
    assert watch.problem == ""
    assert watch.look(None) == ""


@pytest.mark.lab
def test_in_another_namespace_the_sizes_are_said_to_be_out_of_reach_and_timeouts_work():
    with Lab() as lab:
        node = lab.namespace("node")
        with node.entered():
            problems = tune(ConntrackSettings(70_000, 9_000, {"udp_timeout": 31, "tcp_timeout_close": MAX_TIMEOUT}))
            used = use()
            assert Path(ROOT, "nf_conntrack_udp_timeout").read_text().strip() == "31"
    assert [problem.split()[1] for problem in problems] == [
        f"{ROOT}/nf_conntrack_{each}" for each in ("buckets", "max")
    ]
    assert all("initial network namespace" in problem for problem in problems)
    assert used is not None and used.maximum > 0


@pytest.mark.lab
def test_the_names_of_timeouts_are_the_kernel_s():
    with Lab() as lab, lab.namespace("node").entered():
        there = {name.removeprefix("nf_conntrack_") for name in os.listdir(ROOT) if "timeout" in name}
        assert Path(STATISTICS).exists()
    assert there - TIMEOUTS <= {name for name in there if "dccp" in name}
    assert TIMEOUTS - there <= {name for name in TIMEOUTS if name.startswith(("gre", "sctp"))}


@pytest.mark.lab
@pytest.mark.xdist_group("initial-namespace")
def test_sizes_in_the_initial_namespace():
    """The one test that changes something outside namespaces of its own; it puts it back."""
    paths = [Path(ROOT, "nf_conntrack_max"), Path(ROOT, "nf_conntrack_buckets")]
    if not all(os.access(path, os.W_OK) for path in paths):
        pytest.skip("this is not the initial network namespace, or nf_conntrack is not loaded")
    before = [int(path.read_text()) for path in paths]
    try:
        assert tune(ConntrackSettings(65536, 8192)) == []
        assert [int(path.read_text()) for path in paths] == [65536, 8192]
        assert tune(ConntrackSettings(65536, 8_500)) == ["conntrack.buckets: the kernel made 8704 of 8500"]
        assert tune(ConntrackSettings(65536, 8_500)) == []
    finally:
        tune(ConntrackSettings(before[0], before[1]))
    assert [int(path.read_text()) for path in paths] == before
