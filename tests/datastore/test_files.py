"""Single files: a new name that nobody else has, and who else has one open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from routed.datastore import files
from routed.datastore.files import is_being_written, is_open_elsewhere, name_anew, read_whole, write_whole


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_new_name_is_taken_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    if not in_one_step:
        monkeypatch.setattr(files, "_RENAMEAT2", None)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    name_anew(str(one), str(other))
    assert (one.exists(), other.read_text(), other.stat().st_nlink) == (False, "1", 1)
    one.write_text("2")
    with pytest.raises(FileExistsError):
        name_anew(str(one), str(other))
    assert (one.read_text(), other.read_text()) == ("2", "1")
    other.unlink()
    other.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        name_anew(str(one), str(other))
    with pytest.raises(FileNotFoundError):
        name_anew(str(tmp_path / "gone"), str(tmp_path / "new"))


def test_who_else_has_a_file_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    writing, reading = os.open(path, os.O_WRONLY), os.open(path, os.O_RDONLY)
    assert is_open_elsewhere(writing)
    assert is_being_written(reading)
    os.close(reading)
    assert not is_open_elsewhere(writing)
    reading = os.open(path, os.O_RDONLY)
    os.close(writing)
    assert not is_being_written(reading)
    os.close(reading)


def test_a_file_is_read_up_to_its_end_or_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        write_whole(file.fileno(), bytes(range(256)) * 64)
    assert read_whole(str(path), 1 << 20) == bytes(range(256)) * 64
    assert read_whole(str(path), 10) == bytes(range(10))
