"""The socket of CNI calls, on a real one."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from routed.cni.call import Request
from routed.cni.protocol import RESULT
from routed.control import listening
from routed.daemon import cni
from routed.daemon.cni import CniServer, Conversation, Inside

DEADLINE = 30.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


def unexpected(where: str, error: Exception) -> None:
    raise AssertionError(where) from error


async def handle(request: Request, _: Inside | None, __: Conversation) -> bytes:
    raise AssertionError(request)


async def answers(path: Path) -> bool:
    """Whether somebody answers there, be it that this is no call."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as caller:
        async with asyncio.timeout(DEADLINE):
            await loop.sock_connect(caller, str(path))
            await loop.sock_sendall(caller, b"?")
            return (await loop.sock_recv(caller, 4096)).startswith(RESULT)


def test_it_listens_again_where_its_folder_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni, "LOOK", 0.02)
    path = tmp_path / "run" / "cni.sock"

    async def story() -> None:
        server = CniServer(handle, unexpected)
        server.start(str(path))
        assert await answers(path)
        shutil.rmtree(path.parent)
        await until(lambda: path.exists() and not server.problem)
        assert await answers(path)
        shutil.rmtree(path.parent)
        path.parent.write_text("a file")  # so no folder can be made
        await until(lambda: bool(server.problem))
        assert "no CNI call arrives" in server.problem and str(path) in server.problem
        path.parent.unlink()
        await until(lambda: not server.problem)
        assert await answers(path)
        await server.stop()
        assert not path.exists()

    asyncio.run(story())


def test_it_goes_on_looking_where_there_is_no_descriptor_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni, "LOOK", 0.02)
    path = tmp_path / "cni.sock"

    class Sockets:
        def __getattr__(self, name: str) -> object:
            return getattr(socket, name)

        def socket(self, *_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    async def story() -> None:
        server = CniServer(handle, unexpected)
        server.start(str(path))
        with monkeypatch.context() as short:
            short.setattr(listening, "socket", Sockets())
            path.unlink()
            await until(lambda: "Too many open files" in server.problem)
        await until(lambda: not server.problem)
        assert await answers(path)
        await server.stop()

    asyncio.run(story())
