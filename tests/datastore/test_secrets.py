"""The folder of passwords, as Kubernetes mounts Secrets and as people write files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from routed.datastore.secrets import THE_FOLDER, SecretFolder, SecretNews


def settle(folder: SecretFolder) -> list[SecretNews]:
    """What two looks that agree have found."""
    return folder.look() + folder.look()


@pytest.fixture
def bgp(tmp_path: Path) -> Path:
    made = tmp_path / "bgp"
    made.mkdir()
    return made


def test_the_first_look_believes_what_it_sees(tmp_path: Path, bgp: Path) -> None:
    (bgp / "tor").write_bytes(b"s3cret\n")
    (bgp / "mesh").write_bytes(b"with space and \xff\r\n")
    folder = SecretFolder(str(tmp_path))
    assert folder.look() == [SecretNews("bgp/mesh", 1, ""), SecretNews("bgp/tor", 1, "")]
    assert folder.password("bgp/tor") == b"s3cret"
    assert folder.password("bgp/mesh") == b"with space and \xff"
    assert folder.look() == []
    with pytest.raises(KeyError):
        folder.password("bgp/other")


def test_a_change_counts_once_two_looks_agree(tmp_path: Path, bgp: Path) -> None:
    (bgp / "tor").write_bytes(b"one")
    folder = SecretFolder(str(tmp_path))
    folder.look()
    (bgp / "tor").write_bytes(b"second")
    assert folder.look() == []
    assert folder.password("bgp/tor") == b"one"
    assert folder.look() == [SecretNews("bgp/tor", 2, "")]
    assert folder.password("bgp/tor") == b"second"
    (bgp / "tor").write_bytes(b"second\n")
    assert settle(folder) == [], "the same password, written again"


def test_a_mounted_secret_is_switched_by_its_link(tmp_path: Path, bgp: Path) -> None:
    for version, content in (("..v1", b"one"), ("..v2", b"two")):
        (bgp / version).mkdir()
        (bgp / version / "tor").write_bytes(content)
    (bgp / "..data").symlink_to("..v1")
    (bgp / "tor").symlink_to("..data/tor")
    folder = SecretFolder(str(tmp_path))
    assert folder.look() == [SecretNews("bgp/tor", 1, "")]
    (bgp / "..new").symlink_to("..v2")
    os.replace(bgp / "..new", bgp / "..data")
    assert settle(folder) == [SecretNews("bgp/tor", 2, "")]
    assert folder.password("bgp/tor") == b"two"


def test_a_password_once_known_stays_known(tmp_path: Path, bgp: Path) -> None:
    file = bgp / "tor"
    file.write_bytes(b"one")
    folder = SecretFolder(str(tmp_path))
    folder.look()
    for spoil, text in (
        (lambda: file.write_bytes(b""), "is empty"),
        (lambda: file.write_bytes(b"x" * 81), "more than the 80 octets"),
        (file.unlink, "there is no bgp/tor any more"),
        (file.mkdir, "is no file"),
    ):
        spoil()
        (news,) = settle(folder)
        assert news.generation == 1 and text in news.problem
        assert folder.password("bgp/tor") == b"one"
    file.rmdir()
    file.write_bytes(b"one")
    assert settle(folder)[-1] == SecretNews("bgp/tor", 1, ""), "back, and the same"


def test_a_file_that_never_held_a_password(tmp_path: Path, bgp: Path) -> None:
    (bgp / "tor").write_bytes(b"\n")
    folder = SecretFolder(str(tmp_path))
    (news,) = folder.look()
    assert news.generation == 0 and news.problem.endswith("tor is empty")
    with pytest.raises(KeyError):
        folder.password("bgp/tor")


def test_the_folder_itself(tmp_path: Path) -> None:
    missing = SecretFolder(str(tmp_path / "missing"))
    (news,) = missing.look()
    assert missing.problem.endswith("cannot read the folder of secrets: No such file or directory")
    assert news == SecretNews(THE_FOLDER, 0, missing.problem) and missing.look() == []
    (tmp_path / "missing" / "bgp").mkdir(parents=True)
    (tmp_path / "missing" / "bgp" / "tor").write_bytes(b"late")
    (tmp_path / "missing" / "stray").write_bytes(b"a file beside the folders is no secret")
    assert settle(missing) == [SecretNews(THE_FOLDER, 0, ""), SecretNews("bgp/tor", 1, "")]
    assert missing.problem == ""


def test_that_none_is_set_is_told_once_and_until_one_is(tmp_path: Path, bgp: Path) -> None:
    (bgp / "tor").write_bytes(b"first")
    folder = SecretFolder("")
    (news,) = folder.look()
    assert news.reference == THE_FOLDER and not news.generation and news.problem.startswith("secrets.dir, ")
    assert folder.look() == [] and folder.problem == "", "nothing is wrong with it"
    folder.path = str(tmp_path)
    assert settle(folder) == [SecretNews(THE_FOLDER, 0, ""), SecretNews("bgp/tor", 1, "")]
    folder.path = ""
    assert folder.look() == [news] and folder.password("bgp/tor") == b"first"


def test_nothing_shows_a_password(tmp_path: Path, bgp: Path) -> None:
    (bgp / "tor").write_bytes(b"s3cret")
    folder = SecretFolder(str(tmp_path))
    news = folder.look()
    (bgp / "tor").write_bytes(b"s3cret" * 20)
    news += settle(folder)
    assert len(news) == 2
    assert "s3cret" not in repr((folder._secrets, news))
