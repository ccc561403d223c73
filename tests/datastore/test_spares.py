"""Spare files: written again, and never what somebody still reads, names otherwise, or would find after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from routed.datastore.spares import FOLDER_NAME, LIMIT, Spares


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    return Spares(str(tmp_path))


def test_a_spare_is_given_out_only_after_the_folder_is_on_disk(tmp_path: Path, spares: Spares) -> None:
    (tmp_path / "a.json").write_text("old")
    assert not spares.unsettled
    assert spares.keep(str(tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()
    assert spares.unsettled
    assert spares.take() is None
    spares.settled()
    taken = spares.take()
    assert taken is not None
    file, name = taken
    os.close(file)
    assert Path(name).read_text() == "old", "it is the same file"
    assert spares.take() is None, "and given out once"


def test_a_replaced_file_is_a_spare_only_where_it_was_replaced(tmp_path: Path, spares: Spares) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    name = spares.name_too(str(path))
    spares.replaced(name, done=False)
    assert path.read_text() == "old"
    assert path.stat().st_nlink == 1
    name = spares.name_too(str(path))
    (tmp_path / "new").write_text("new")
    os.replace(tmp_path / "new", path)
    spares.replaced(name, done=True)
    spares.settled()
    taken = spares.take()
    assert taken is not None
    os.close(taken[0])
    assert (path.read_text(), Path(taken[1]).read_text()) == ("new", "old")


def read_by_somebody(path: Path) -> Callable[[], None]:
    return path.open().close


def linked_by_somebody(path: Path) -> Callable[[], None]:
    path.with_suffix(".backup").hardlink_to(path)
    return lambda: None


@pytest.mark.parametrize("used", [read_by_somebody, linked_by_somebody])
def test_what_somebody_else_has_is_not_written_again(
    tmp_path: Path, spares: Spares, used: Callable[[Path], Callable[[], None]]
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    done = used(path)
    assert spares.keep(str(path))
    spares.settled()
    assert spares.take() is None
    assert list((tmp_path / FOLDER_NAME).iterdir()) == [], "and it is not kept for ever"
    done()


def test_there_are_so_many_and_no_more(tmp_path: Path, spares: Spares) -> None:
    paths = [tmp_path / f"{number}.json" for number in range(LIMIT + 1)]
    for path in paths:
        path.write_text("x")
    kept = [spares.keep(str(path)) for path in paths]
    assert kept == [True] * LIMIT + [False]
    assert paths[-1].exists()
    spares.close()
    assert not (tmp_path / FOLDER_NAME).exists()


def test_what_a_run_that_was_killed_left_goes(tmp_path: Path, spares: Spares) -> None:
    (tmp_path / FOLDER_NAME).mkdir()
    (tmp_path / FOLDER_NAME / "7").write_text("left")
    (tmp_path / "a.json").write_text("old")
    assert spares.keep(str(tmp_path / "a.json"))
    assert [each.read_text() for each in (tmp_path / FOLDER_NAME).iterdir()] == ["old"]


def test_where_they_cannot_be_kept_nothing_is_taken_away(tmp_path: Path, spares: Spares) -> None:
    (tmp_path / FOLDER_NAME).symlink_to("/nowhere")
    (tmp_path / "a.json").write_text("old")
    assert not spares.keep(str(tmp_path / "a.json"))
    assert spares.name_too(str(tmp_path / "a.json")) == ""
    assert (tmp_path / "a.json").read_text() == "old"
