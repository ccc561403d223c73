"""The TCP adapter against real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from routed.daemon import transport
from routed.daemon.transport import Connection, Protection, Transports, set_md5_key
from tests.ports import free_port

LOCALHOST = bytes([127, 0, 0, 1])
LOCALHOST_6 = bytes(15) + b"\x01"


class Owner:
    """Notes what it is told and gives what the test put in `output`."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.data: dict[int, bytes] = {}
        self.output: dict[int, list[bytes]] = {}
        self.endless: set[int] = set()
        self.taken = 0
        self.refuse = False
        self.next_conn = 100
        self.changed = asyncio.Event()

    def note(self, *call: object) -> None:
        self.calls.append(call)
        self.changed.set()

    def connected(self, conn: int, local: bytes) -> None:
        self.note("connected", conn, local)

    def connect_failed(self, conn: int, reason: str) -> None:
        self.note("connect_failed", conn, reason)

    def accepted(self, remote: bytes, local: bytes, interface: str) -> int:
        self.note("accepted", remote, local, interface)
        self.next_conn += 1
        return 0 if self.refuse else self.next_conn

    def received(self, conn: int, data: bytes) -> None:
        self.data[conn] = self.data.get(conn, b"") + data
        self.changed.set()

    def closed(self, conn: int, reason: str) -> None:
        self.note("closed", conn, reason)

    def writing_paused(self, conn: int) -> None:
        self.note("paused", conn)

    def writing_resumed(self, conn: int) -> None:
        self.note("resumed", conn)

    def take(self, conn: int, limit: int) -> bytes:
        if conn in self.endless:
            self.taken += limit
            return bytes(limit)
        chunks = self.output.get(conn)
        return chunks.pop(0) if chunks else b""

    def listen_problem(self, port: int, problems: tuple[str, ...]) -> None:
        self.note("listen", port, problems)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]


def run(test: Callable[[Owner, Transports], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        owner = Owner()
        transports = Transports(owner)
        try:
            await test(owner, transports)
        finally:
            transports.reset_all()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


@contextlib.asynccontextmanager
async def remote_end(family: socket.AddressFamily = socket.AF_INET) -> AsyncIterator[tuple[int, asyncio.Queue[Any]]]:
    """A listening peer: its port, and (reader, writer) of each connection."""
    accepted: asyncio.Queue[Any] = asyncio.Queue()

    async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put((reader, writer))

    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    server = await asyncio.start_server(on_connect, host, 0, family=family)
    yield server.sockets[0].getsockname()[1], accepted
    server.close()


async def listening(owner: Owner, transports: Transports) -> int:
    port = free_port()
    transports.listen(port)
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0)
                continue
            writer.close()
            break
    await owner.until(lambda: {"closed", "listen"} <= set(owner.names()))
    assert ("listen", port, ()) in owner.calls
    owner.calls.clear()
    return port


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, LOCALHOST), (socket.AF_INET6, LOCALHOST_6)])
def test_connects_from_the_given_source_writes_and_reads(family: socket.AddressFamily, address: bytes) -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end(family) as (port, accepted):
            transports.connect(1, address, port, address, "")
            reader, writer = await accepted.get()
            await owner.until(lambda: bool(owner.calls))
            assert owner.calls == [("connected", 1, address)]
            owner.output[1] = [b"open", b"keepalive"]
            assert transports.pull(1) is False
            assert await reader.readexactly(13) == b"openkeepalive"
            writer.write(b"hello")
            await owner.until(lambda: owner.data.get(1) == b"hello")
            writer.close()
            await owner.until(lambda: ("closed", 1, "the peer closed the connection") in owner.calls)
            assert len(transports) == 0

    run(test)


def test_source_address_is_the_one_asked_for() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end() as (port, accepted):
            transports.connect(1, LOCALHOST, port, bytes([127, 0, 0, 9]), "")
            _, writer = await accepted.get()
            assert writer.get_extra_info("peername")[0] == "127.0.0.9"
            await owner.until(lambda: bool(owner.calls))
            assert owner.calls == [("connected", 1, bytes([127, 0, 0, 9]))]

    run(test)


@pytest.mark.parametrize(
    ("remote", "local", "interface", "reason"),
    [
        (LOCALHOST, b"", "", "127.0.0.1 port {port}: Connection refused"),
        (
            LOCALHOST,
            bytes([192, 0, 2, 1]),
            "",
            "the source address 192.0.2.1 cannot be used: Cannot assign requested address",
        ),
        (
            bytes([0xFE, 0x80] + [0] * 13 + [1]),
            b"",
            "no-such-if",
            "fe80::1 port {port}: there is no interface no-such-if",
        ),
    ],
)
def test_failures_are_sentences(remote: bytes, local: bytes, interface: str, reason: str) -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        port = free_port()
        transports.connect(7, remote, port, local, interface)
        await owner.until(lambda: bool(owner.calls))
        assert owner.calls == [("connect_failed", 7, reason.format(port=port))]

    run(test)


def test_a_peer_that_never_reads_costs_one_chunk() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end() as (port, accepted):
            transports.connect(1, LOCALHOST, port, b"", "")
            reader, _ = await accepted.get()
            await owner.until(lambda: bool(owner.calls))
            owner.endless.add(1)
            async with asyncio.timeout(60):
                while transports.pull(1):
                    await asyncio.sleep(0)
            assert ("paused", 1) in owner.calls
            connection = transports._connections[1]
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() <= transport.CHUNK
            taken = owner.taken
            assert transports.pull(1) is False, "a full socket is not pulled for"
            assert owner.taken == taken
            owner.endless.clear()
            read = await reader.readexactly(taken)
            assert len(read) == taken
            assert ("resumed", 1) in owner.calls

    run(test)


def test_last_words_are_written_before_the_end() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end() as (port, accepted):
            transports.connect(1, LOCALHOST, port, b"", "")
            reader, writer = await accepted.get()
            await owner.until(lambda: bool(owner.calls))
            owner.output[1] = [b"notification"]
            transports.close(1)
            writer.write(b"more updates nobody wants")
            assert await reader.read() == b"notification"
            writer.close()
            async with asyncio.timeout(60):
                while len(transports):
                    await asyncio.sleep(0.001)
            assert owner.names() == ["connected"], "what we closed ourselves is not reported"
            assert owner.data == {}

    run(test)


def test_a_peer_that_does_not_close_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LINGER", 0.05)

    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end() as (port, accepted):
            transports.connect(1, LOCALHOST, port, b"", "")
            reader, writer = await accepted.get()
            await owner.until(lambda: bool(owner.calls))
            transports.close(1)
            assert await reader.read() == b"", "first our direction is shut"
            async with asyncio.timeout(60):
                while len(transports):
                    await asyncio.sleep(0.001)
                while reader.exception() is None:
                    writer.write(b"still here")
                    await asyncio.sleep(0.001)
            assert isinstance(reader.exception(), BrokenPipeError), "what a reset after a FIN reads as"

    run(test)


def test_closing_an_attempt_ends_it_without_a_word() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end() as (port, _):
            transports.connect(1, LOCALHOST, port, b"", "")
            transports.close(1)
            transports.connect(2, LOCALHOST, port, b"", "")
            await owner.until(lambda: bool(owner.calls))
            assert owner.calls == [("connected", 2, LOCALHOST)]

    run(test)


class GoneTransport(asyncio.Transport):
    """What uvloop hands out where the peer's reset came before the protocol heard of the connection."""

    aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - the real one has them
        raise OSError(errno.EBADF, "Bad file descriptor")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing will be written."""

    def abort(self) -> None:
        self.aborted = True


def test_a_connection_that_is_gone_before_we_hear_of_it_has_failed_and_only_once() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        async with remote_end() as (port, _):
            transports.connect(1, LOCALHOST, port, b"", "")
            for conn in (1, 0):
                connection, gone = Connection(transports, conn), GoneTransport()
                connection.connection_made(gone)
                connection.connection_lost(None)
                assert gone.aborted
            assert owner.calls == [("connect_failed", 1, "the connection broke as soon as it was up")]

    run(test)


def test_accepts_on_both_families() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        port = await listening(owner, transports)
        for host, address in (("127.0.0.1", LOCALHOST), ("::1", LOCALHOST_6)):
            owner.calls.clear()
            reader, writer = await asyncio.open_connection(host, port)
            await owner.until(lambda: bool(owner.calls))
            assert owner.calls == [("accepted", address, address, "")]
            conn = owner.next_conn
            owner.output[conn] = [b"open"]
            transports.pull(conn)
            assert await reader.readexactly(4) == b"open"
            writer.write(b"hi")
            await owner.until(lambda conn=conn: owner.data.get(conn) == b"hi")  # type: ignore[misc]
            writer.close()

    run(test)


def test_a_refused_connection_is_reset() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        port = await listening(owner, transports)
        owner.refuse = True
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert "closed" not in owner.names()

    run(test)


def test_a_port_that_is_taken_is_reported_and_had_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LISTEN_RETRY", 0.01)

    async def test(owner: Owner, transports: Transports) -> None:
        port = free_port()
        taken = socket.create_server(("127.0.0.1", port))
        transports.listen(port)
        await owner.until(lambda: bool(owner.calls))
        name, _, problems = owner.calls.pop()
        assert name == "listen"
        assert isinstance(problems, tuple) and len(problems) == 1
        assert problems[0] == (
            f"cannot listen on port {port} (IPv4): another program uses it (see `ss -ltnp sport = :{port}`);"
            " routed keeps trying"
        )
        taken.close()
        await owner.until(lambda: bool(owner.calls))
        assert owner.calls == [("listen", port, ())]
        await asyncio.open_connection("127.0.0.1", port)

    run(test)


def test_another_port_replaces_the_first() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        first = await listening(owner, transports)
        await listening(owner, transports)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", first)

    run(test)


# ---- what guards a session

SECRET = Protection(b"s3cret")


def signed(password: bytes, remote: bytes = LOCALHOST) -> socket.socket:
    """A socket that signs for a peer."""
    sock = socket.socket(socket.AF_INET if len(remote) == 4 else socket.AF_INET6)
    sock.setblocking(False)
    set_md5_key(sock, remote, password)
    return sock


async def opened(owner: Owner, transports: Transports) -> int:
    """Listen, and wait until that is said to be so: who guards a port lets no probe in."""
    port = free_port()
    transports.listen(port)
    await owner.until(lambda: ("listen", port, ()) in owner.calls)
    return port


async def reaches(sock: socket.socket, host: str, port: int, seconds: float = 30.0) -> bool:
    """Whether a connection comes about; segments that are not signed as they should be are dropped in silence."""
    with sock:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (host, port)), seconds)
        except TimeoutError:
            return False
        return True


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", LOCALHOST), ("::1", LOCALHOST_6)])
def test_a_listening_socket_wants_the_peer_s_password(host: str, address: bytes) -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        port = await opened(owner, transports)
        transports.protect({address: SECRET})
        plain = socket.socket(socket.AF_INET if len(address) == 4 else socket.AF_INET6)
        plain.setblocking(False)
        assert await reaches(signed(b"s3cret", address), host, port)
        await owner.until(lambda: ("accepted", address, address, "") in owner.calls)
        assert not await reaches(signed(b"another", address), host, port, 0.3)
        assert not await reaches(plain, host, port, 0.3)

        transports.protect({address: Protection(b"renewed")})
        assert await reaches(signed(b"renewed", address), host, port)
        assert not await reaches(signed(b"s3cret", address), host, port, 0.3)

        transports.protect({})
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        assert not await reaches(signed(b"renewed", address), host, port, 0.3), "a signature nobody asked for"

    run(test)


def test_a_listener_that_opens_later_has_the_passwords() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        transports.protect({LOCALHOST: SECRET})
        port = await opened(owner, transports)
        assert await reaches(signed(b"s3cret"), "127.0.0.1", port)
        assert not await reaches(signed(b"other"), "127.0.0.1", port, 0.3)

    run(test)


def test_we_sign_what_we_open() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        other = Transports(theirs := Owner())
        other.protect({LOCALHOST: SECRET})
        port = await opened(theirs, other)
        transports.connect(1, LOCALHOST, port, b"", "", SECRET)
        await owner.until(lambda: ("connected", 1, LOCALHOST) in owner.calls)
        transports.connect(2, LOCALHOST, port, b"", "", Protection(b"wrong"))
        transports.connect(3, LOCALHOST, port, b"", "")
        theirs.output[theirs.next_conn] = [b"hello"]
        other.pull(theirs.next_conn)
        await owner.until(lambda: owner.data.get(1) == b"hello")
        assert owner.names() == ["connected"], "the others wait for an answer"
        other.reset_all()

    run(test)


def test_a_password_the_kernel_does_not_take_lets_nobody_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no room")

    async def test(owner: Owner, transports: Transports) -> None:
        port = await opened(owner, transports)
        owner.calls.clear()
        monkeypatch.setattr(transport, "set_md5_key", refuse)
        transports.protect({LOCALHOST: SECRET})
        ((_, _, (problem,)),) = owner.calls  # type: ignore[misc]
        assert problem == (
            "connections from 127.0.0.1 are refused: the kernel takes no TCP MD5 key for it, for want of room: "
            "raise `sysctl net.core.optmem_max`"
        )
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        transports.connect(5, LOCALHOST, port, b"", "", SECRET)
        await owner.until(lambda: "connect_failed" in owner.names())
        assert "accepted" not in owner.names()
        assert owner.calls[-1] == (
            "connect_failed", 5, "no TCP MD5 for the session with 127.0.0.1: Cannot allocate memory",
        )  # fmt: skip

    run(test)


@pytest.mark.parametrize("address", [LOCALHOST, LOCALHOST_6])
def test_ttl_security_on_both_ends(address: bytes) -> None:
    """Loopback is no router, so a full TTL arrives in full, and what is sent with less is dropped."""

    async def test(owner: Owner, transports: Transports) -> None:
        near = Protection(hops=1)
        transports.protect({address: near})
        port = await opened(owner, transports)
        other = Transports(theirs := Owner())
        other.connect(1, address, port, b"", "", near)
        await theirs.until(lambda: ("connected", 1, address) in theirs.calls)
        await owner.until(lambda: owner.next_conn == 101)
        theirs.output[1] = [b"near"]
        other.pull(1)
        await owner.until(lambda: owner.data.get(101) == b"near")

        other.connect(2, address, port, b"", "")
        await theirs.until(lambda: ("connected", 2, address) in theirs.calls)
        await owner.until(lambda: owner.next_conn == 102)
        theirs.output[2] = [b"from afar"]
        other.pull(2)
        owner.output[101] = [b"and back"]
        transports.pull(101)
        await theirs.until(lambda: theirs.data.get(1) == b"and back")
        assert 102 not in owner.data, "sent with the usual TTL of 64"
        other.reset_all()

    run(test)


def test_listening_on_some_addresses_only() -> None:
    async def test(owner: Owner, transports: Transports) -> None:
        port = await opened(owner, transports)
        _, writer = await asyncio.open_connection("127.0.0.2", port)
        await owner.until(lambda: owner.next_conn == 101)
        owner.calls.clear()
        transports.listen(port, (LOCALHOST, LOCALHOST_6))
        await owner.until(lambda: ("listen", port, ()) in owner.calls)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", port)
        for host in ("127.0.0.1", "::1"):
            _, other = await asyncio.open_connection(host, port)
            other.close()
        writer.write(b"still here")
        await owner.until(lambda: owner.data.get(101) == b"still here")
        transports.listen(port)
        owner.calls.clear()
        await owner.until(lambda: ("listen", port, ()) in owner.calls)
        _, other = await asyncio.open_connection("127.0.0.2", port)
        other.close()
        writer.close()

    run(test)


def test_an_address_no_interface_has_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LISTEN_RETRY", 0.01)

    async def test(owner: Owner, transports: Transports) -> None:
        port = free_port()
        no_such = (
            f"cannot listen on port {port} of 192.0.2.1: no interface has this address, and bindMode is NodeIP; "
            "routed keeps trying"
        )
        transports.listen(port, (LOCALHOST, bytes([192, 0, 2, 1])))
        await owner.until(lambda: bool(owner.calls))
        assert owner.calls[0] == (
            "listen",
            port,
            (no_such,),
        )
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    run(test)


def test_a_protection_does_not_show_its_password() -> None:
    assert "s3cret" not in repr(SECRET)
