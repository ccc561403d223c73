"""The control socket: server and client against each other, and against who does not play by the rules."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from routed.control import protocol, server
from routed.control.client import ControlClient, Unreachable
from routed.control.protocol import Request
from routed.control.server import ControlServer, Handler
from routed.errors import ControlError


class Bugs(list[str]):
    def __call__(self, what: str, error: Exception) -> None:
        self.append(f"{what}: {type(error).__name__}: {error}")


def numbers(request: Request) -> Iterator[object]:
    yield from range(int(request.text("count") or 0))


def broken_stream(_: Request) -> Iterator[object]:
    yield "first"
    raise ControlError("the rest is lost")


def refuse(_: Request) -> object:
    raise ControlError("no, thank you")


HANDLERS: dict[str, Handler] = {
    "echo": lambda request: request.arguments,
    "nothing": lambda _: None,
    "numbers": numbers,
    "broken": broken_stream,
    "refuse": refuse,
    "bug": lambda _: 1 / 0,
    "flag": lambda request: request.flag("all"),
}


def served(path: Path, client: Callable[[str], Any], handlers: dict[str, Handler] = HANDLERS) -> tuple[Any, Bugs]:
    """What `client` gives, run in a thread beside a server at `path`; and the bugs the server met."""
    bugs = Bugs()

    async def body() -> Any:
        control = ControlServer(handlers, bugs)
        await control.start(str(path))
        try:
            return await asyncio.to_thread(client, str(path))
        finally:
            await control.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(body()), bugs


def ask(name: str, **arguments: object) -> Callable[[str], Any]:
    def client(path: str) -> Any:
        with ControlClient(path, patience=10) as control:
            return control.ask(name, **arguments)

    return client


def raw(data: bytes) -> Callable[[str], list[dict[str, Any]]]:
    """All reply lines to octets sent as they are."""

    def client(path: str) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(path)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return [json.loads(line) for line in sock.makefile("rb")]

    return client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "routed.sock"


def test_a_question_and_its_answer(path: Path) -> None:
    answer, _ = served(path, ask("echo", prefix="10.0.0.0/8", all=True, text="ü\n\x1b"))
    assert answer == {"prefix": "10.0.0.0/8", "all": True, "text": "ü\n\x1b"}
    assert served(path, ask("nothing"))[0] is None
    assert not path.exists(), "the socket goes with its server"


def test_the_socket_is_for_its_group(path: Path) -> None:
    mode, _ = served(path, lambda name: os.stat(name).st_mode)
    assert stat.S_IMODE(mode) == 0o660


def test_long_answers_come_in_batches(path: Path) -> None:
    def client(name: str) -> list[object]:
        with ControlClient(name) as control:
            return list(control.stream("numbers", count="20000"))

    assert served(path, client)[0] == list(range(20000))
    lines, _ = served(path, raw(b'{"version":1,"request":"numbers","arguments":{"count":"20000"}}\n'))
    assert len(lines) > 20
    assert lines[-1] == {"version": 1, "result": None}


def test_an_empty_list_is_no_null(path: Path) -> None:
    def client(name: str) -> list[object]:
        with ControlClient(name) as control:
            return list(control.stream("numbers", count="0"))

    assert served(path, client)[0] == []


def test_a_turn_offered_is_not_an_item(path: Path) -> None:
    def client(name: str) -> list[object]:
        with ControlClient(name) as control:
            return list(control.stream("slow"))

    handlers: dict[str, Handler] = {"slow": lambda _: iter([None, 1, None, None, 2, None])}
    assert served(path, client, handlers)[0] == [1, 2]


def test_several_questions_on_one_connection(path: Path) -> None:
    def client(name: str) -> list[object]:
        with ControlClient(name) as control:
            return [control.ask("echo", n=n) for n in range(3)]

    assert served(path, client)[0] == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("request_name", "arguments", "sentence"),
    [
        ("refuse", {}, "no, thank you"),
        ("bug", {}, "an internal error of routed; its log has the details"),
        (
            "dance",
            {},
            "unknown request `dance`; this daemon answers: broken, bug, echo, flag, nothing, numbers, refuse",
        ),
        ("flag", {"all": "yes"}, "argument `all` of request `flag` must be true or false"),
        ("numbers", {"count": 3}, "argument `count` of request `numbers` must be text"),
    ],
)
def test_errors_are_sentences(path: Path, request_name: str, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ControlError) as caught:
        served(path, ask(request_name, **arguments))
    assert str(caught.value) == sentence


def test_a_bug_is_handed_on_and_the_connection_goes_on(path: Path) -> None:
    def client(name: str) -> object:
        with ControlClient(name) as control:
            with pytest.raises(ControlError):
                control.ask("bug")
            return control.ask("echo", still="here")

    assert served(path, client) == ({"still": "here"}, ["request bug: ZeroDivisionError: division by zero"])


def test_a_stream_may_end_in_an_error(path: Path) -> None:
    def client(name: str) -> None:
        with ControlClient(name) as control:
            items = control.stream("broken")
            assert next(items) == "first"
            with pytest.raises(ControlError, match="the rest is lost"):
                next(items)

    served(path, client)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"hello\n", "this request is not JSON"),
        (b"\xff\xfe\n", "this request is not JSON"),
        (b"[" * 60000 + b"\n", "this request is not JSON"),
        (b"[]\n", "a request must be a JSON object"),
        (b"{}\n", "this request has version null, expected 1: routed and routedctl differ in version"),
        (b'{"version":2}\n', "this request has version 2, expected 1: routed and routedctl differ in version"),
        (b'{"version":true}\n', "this request has version true, expected 1: routed and routedctl differ in version"),
        (b'{"version":1}\n', "a request needs a field `request` with its name"),
        (b'{"version":1,"request":"echo","arguments":[]}\n', "`arguments` of a request must be an object"),
        (b"x" * 70000 + b"\n", "the request is larger than 65536 octets"),
    ],
)
def test_bad_requests(path: Path, line: bytes, sentence: str) -> None:
    replies, bugs = served(path, raw(line))
    assert replies == [{"version": 1, "error": sentence}]
    assert bugs == []


def test_half_a_request_is_no_request(path: Path) -> None:
    assert served(path, raw(b'{"version":1,"request":"echo"}')) == ([], [])


def test_clients_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)

    def client(name: str) -> object:
        with ControlClient(name) as first, ControlClient(name) as second:
            assert first.ask("echo") == second.ask("echo") == {}
            with ControlClient(name) as third, pytest.raises(ControlError, match="too many clients"):
                third.ask("echo")
            return first.ask("echo", one=1)

    assert served(path, client)[0] == {"one": 1}


def test_a_client_that_never_reads_holds_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SLOWEST_READER", 0.05)
    dropped = threading.Event()
    produced = 0

    def endless(_: Request) -> Iterator[object]:
        nonlocal produced
        try:
            while True:
                produced += 1
                yield "x" * 1000
        finally:
            dropped.set()

    def client(name: str) -> object:
        with socket.socket(socket.AF_UNIX) as sleeper, ControlClient(name) as other:
            sleeper.connect(name)
            sleeper.sendall(protocol.encode_request(Request("endless")))
            assert other.ask("echo", n=1) == {"n": 1}
            assert dropped.wait(30)
            return other.ask("echo", n=2)

    answer, bugs = served(path, client, {**HANDLERS, "endless": endless})
    assert (answer, bugs) == ({"n": 2}, [])
    assert produced < 10_000, "no more than a few batches are held"


def test_a_client_that_goes_in_the_middle_is_no_bug(path: Path) -> None:
    """`routedctl show route | head`: it reads some and goes, while we have more to say."""
    stopped = threading.Event()

    def endless(_: Request) -> Iterator[object]:
        try:
            while True:
                yield {"text": "x" * 1000}
        finally:
            stopped.set()

    def client(name: str) -> object:
        with ControlClient(name) as asking:
            next(asking.stream("endless"))
        assert stopped.wait(30), "the stream is given up"
        return ask("echo", n=2)(name)

    answer, bugs = served(path, client, {**HANDLERS, "endless": endless})
    assert (answer, bugs) == ({"n": 2}, [])


class Ticks(AsyncIterator[list[object]]):
    """A feed that gives a number whenever it is asked for one, up to three, and then nothing."""

    def __init__(self) -> None:
        self.count = 0
        self.closed = threading.Event()

    async def __anext__(self) -> list[object]:
        self.count += 1
        if self.count > 3:
            await asyncio.Event().wait()
        return [self.count]

    async def aclose(self) -> None:
        self.closed.set()


def test_a_feed_is_followed_until_the_client_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEARTBEAT", 0.02)
    ticks = Ticks()

    def client(name: str) -> list[object]:
        with ControlClient(name, patience=5) as control, ControlClient(name) as other:
            items = control.stream("ticks")
            found = [next(items) for _ in range(3)]
            assert other.ask("echo", n=1) == {"n": 1}
        assert ticks.closed.wait(30), "the feed is closed with its client"
        with socket.socket(socket.AF_UNIX) as sock:  # and the heartbeat is an empty batch
            sock.settimeout(60)
            sock.connect(name)
            sock.sendall(b'{"version":1,"request":"ticks"}\n')
            lines = sock.makefile("rb")
            assert {lines.readline() for _ in range(8)} == {b'{"version":1,"items":[]}\n'}
        return found

    answer, bugs = served(path, client, {**HANDLERS, "ticks": lambda _: ticks})
    assert (answer, bugs) == ([1, 2, 3], [])


def test_nobody_there(path: Path) -> None:
    with pytest.raises(Unreachable, match=f"routed is not running: nothing listens on {path}; start it with"):
        ControlClient(str(path))
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with pytest.raises(Unreachable, match="routed is not running"):
        ControlClient(str(path))


def test_a_daemon_that_says_nothing(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with ControlClient(str(path), patience=0.05) as control, pytest.raises(Unreachable, match="did not answer"):
            control.ask("status")


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (b"", "routed closed the connection"),
        (b'{"version":1', "routed closed the connection"),
        (b"?\n", "this reply is not JSON"),
        (b'{"version":7,"result":1}\n', "this reply has version 7, expected 1"),
        (b'{"version":1}\n', "holds neither result nor error"),
        (b'{"version":1,"items":1}\n', "`items` is no list"),
    ],
)
def test_a_daemon_that_talks_nonsense(path: Path, reply: bytes, sentence: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with ControlClient(str(path), patience=5) as control:
            daemon, _ = listener.accept()
            daemon.sendall(reply)
            daemon.shutdown(socket.SHUT_WR)
            with pytest.raises((ControlError, Unreachable), match=sentence):
                control.ask("status")
            daemon.close()


def test_the_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    assert served(path, ask("echo"))[0] == {}
