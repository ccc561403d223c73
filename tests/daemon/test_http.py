"""The HTTP server against raw sockets: what it answers, whom it cuts off, what becomes of an address it can't have."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from routed.daemon import http
from routed.daemon.http import HttpServer, Response
from tests.ports import free_port

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


async def page(accept: str) -> Response:
    return Response(f"you accept {accept or 'anything'}\n".encode())


async def broken(_: str) -> Response:
    raise RuntimeError("a bug")


class Stage:
    """A server on a port of its own, and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []
        self.bugs: list[str] = []
        self.server = HttpServer(
            {"/": page, "/broken": broken, "/large": large},
            told=lambda text, problem: self.told.append((text, problem)),
            bug=lambda what, error: self.bugs.append(f"{what}: {error}"),
        )
        self.port = free_port()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def ask(self, request: bytes) -> bytes:
        """Everything the server answers until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        try:
            async with asyncio.timeout(60):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def large(_: str) -> Response:
    return Response(b"x" * (32 << 20))


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def play() -> None:
        stage = Stage()
        stage.server.listen((("127.0.0.1", stage.port),))
        await stage.until(lambda: bool(stage.told))
        try:
            await story(stage)
        finally:
            await stage.server.close()
            await stage.until(lambda: not stage.server.connections)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("request_", "status", "has", "body"),
    [
        (GET % b"/", b"200 OK", b"Content-Type: text/plain; charset=utf-8", b"you accept anything\n"),
        (GET % b"/?x=1", b"200 OK", b"Connection: close", b"you accept anything\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nAccept: a/b\r\n\r\n", b"200 OK", b"Content-Length: 15", b"you accept a/b\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200 OK", b"Cache-Control: no-store", b"you accept anything\n"),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK", b"Content-Length: 20", b""),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
            b"405 ",
            b"Allow: GET, HEAD",
            b"only GET and HEAD\n",
        ),
        (GET % b"/<script>", b"404 ", b"text/plain", b"there is no such page; there are / /broken /large\n"),
        (GET % b"/../etc/passwd", b"404 ", b"text/plain", b"there is no such page; there are / /broken /large\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400 ", b"Connection: close", b"this is no request we read\n"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 ", b"Connection: close", b"this is no request we read\n"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 9000,
            b"431 ",
            b"Connection: close",
            b"a request has 8192 octets at most\n",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 60000 + b"\r\n\r\n",
            b"431 ",
            b"Connection: close",
            b"a request has 8192 octets at most\n",
        ),
    ],
)
def test_answers(request_: bytes, status: bytes, has: bytes, body: bytes) -> None:
    async def story(stage: Stage) -> None:
        head, _, rest = (await stage.ask(request_)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert has in head
        assert rest == body

    played(story)


def test_a_page_with_a_bug_is_an_answer_too() -> None:
    async def story(stage: Stage) -> None:
        assert b"500 Internal Server Error" in await stage.ask(GET % b"/broken")
        assert stage.bugs == ["the page /broken: a bug"]

    played(story)


def test_who_is_slow_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_TIME", 0.2)
    monkeypatch.setattr(http, "RESPONSE_TIME", 0.4)

    async def story(stage: Stage) -> None:
        assert await stage.ask(b"GET / HT") == b""  # the request does not come: cut off with nothing
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port, limit=1024)
        writer.write(GET % b"/large")  # the answer is not taken
        await stage.until(lambda: bool(stage.server.connections))
        await stage.until(lambda: not stage.server.connections)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(32 << 20)
        writer.close()
        monkeypatch.undo()  # who asks now has the time that people have
        assert b"200 OK" in await stage.ask(GET % b"/")

    played(story)


def test_there_are_not_more_connections_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 3)

    async def story(stage: Stage) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", stage.port) for _ in range(3)]
        await stage.until(lambda: len(stage.server.connections) == 3)
        assert await stage.ask(GET % b"/") == b""
        idle.pop()[1].close()
        await stage.until(lambda: len(stage.server.connections) == 2)
        assert b"200 OK" in await stage.ask(GET % b"/")
        for _, writer in idle:
            writer.close()

    played(story)


def connects(port: int) -> bool:
    """Whether the kernel takes a connection there, at this moment: the loop gets no turn meanwhile."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_it_listens_and_stops_to_when_it_says_so() -> None:
    """Who reloads the daemon and hears that it did finds the new address open and the old one closed."""

    async def story(stage: Stage) -> None:
        first, second = stage.port, free_port()
        for new, old in ((second, first), (first, second), (second, first)):
            stage.server.listen((("127.0.0.1", new),))
            assert stage.told[-1] == (f"metrics and health at http://127.0.0.1:{new}/", False)
            assert connects(new) and not connects(old)
        stage.port = second
        assert b"200 OK" in await stage.ask(GET % b"/")
        stage.server.listen((("127.0.0.1", first),))
        assert connects(first) and not connects(second)

    played(story)


def test_an_address_that_is_taken_is_told_and_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LISTEN_RETRY", 0.05)

    async def story(stage: Stage) -> None:
        taken = free_port()
        with socket.create_server(("127.0.0.1", taken)):
            stage.server.listen((("127.0.0.1", stage.port), ("127.0.0.1", taken), ("192.0.2.1", 1)))
            await stage.until(lambda: len(stage.server.problems) == 2)
            assert f"cannot listen on 127.0.0.1:{taken}: another program uses it" in stage.server.problems[0]
            assert "192.0.2.1:1: no interface here has this address" in stage.server.problems[1]
            assert b"200 OK" in await stage.ask(GET % b"/")
        await stage.until(lambda: len(stage.server.problems) == 1)
        stage.server.listen((("127.0.0.1", taken),))
        await stage.until(lambda: not stage.server.problems)
        first, stage.port = stage.port, taken
        assert b"200 OK" in await stage.ask(GET % b"/")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", first)
        assert [problem for _, problem in stage.told].count(True) == 2, "each problem is told once"

    played(story)
