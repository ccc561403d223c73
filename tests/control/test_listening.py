"""Unix sockets at paths: whose they are, on real ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from routed.control.listening import Listening
from routed.errors import ConfigError

KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]


def listening(path: Path, kind: socket.SocketKind) -> Listening:
    return Listening(str(path), kind, 0o600, 4, "cni.socket")


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_who_is_gone_left_is_replaced(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as gone:
        gone.bind(str(path))
        gone.listen()
    made = listening(path, kind)
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, kind) as caller:
        caller.connect(str(path))
    made.close()
    assert not path.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_who_lives_loses_it(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    first = listening(path, kind)
    with pytest.raises(ConfigError, match=r"another routed is running with this cni\.socket"):
        listening(path, kind)
    with socket.socket(socket.AF_UNIX, kind) as caller:
        caller.connect(str(path))
    first.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_else_put_there_stays(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    first = listening(path, kind)
    path.unlink()
    second = listening(path, kind)
    first.close()
    with socket.socket(socket.AF_UNIX, kind) as caller:
        caller.connect(str(path))
    second.close()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="a file that is no socket has this name"):
        listening(path, kind)
    assert path.read_text() == "precious"


def test_where_there_can_be_no_socket(tmp_path: Path) -> None:
    before = os.umask(0o022)
    os.umask(before)
    with pytest.raises(ConfigError, match="No such file or directory"):
        listening(tmp_path / "none" / "s", socket.SOCK_STREAM)
    with pytest.raises(ConfigError, match="its path is too long for a socket"):
        listening(tmp_path / ("x" * 200), socket.SOCK_STREAM)
    assert os.umask(before) == before
