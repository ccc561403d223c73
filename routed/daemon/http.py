"""The small HTTP server of `/metrics`, `/healthz` and `/readyz`.

It runs on the daemon's loop, so that a loop that is stuck answers nobody.

One request a connection, GET and HEAD, nothing that has a body. Whoever connects is not trusted: at most `CONNECTIONS`
at a time, a request must be there within `REQUEST_TIME` and `REQUEST_SIZE`, an answer must be taken within
`RESPONSE_TIME`. h11 reads and writes HTTP/1.1 (RFC 9112). An address that can't be had is reported and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import cast

import h11

from routed.values import dataclass

#: Connections at a time; more are closed at once.
CONNECTIONS = 32
#: Seconds in which the request must be there, and octets it may have.
REQUEST_TIME = 5.0
REQUEST_SIZE = 8192
#: Seconds in which the answer must be made and taken.
RESPONSE_TIME = 30.0
#: Seconds between attempts to have an address.
LISTEN_RETRY = 3.0

Address = tuple[str, int]
"""An IP address as text, and a port."""


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[str], Awaitable[Response]]
"""Makes the answer; its argument is the request's Accept header."""

_NEVER_CACHED = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("Connection", "close"))


class HttpServer:
    """See the module's docstring."""

    def __init__(
        self,
        pages: Mapping[str, Page],
        *,
        told: Callable[[str, bool], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        """`told` gets one sentence about an address, and whether it is a problem; `bug` what a page should not raise."""
        self.pages = dict(pages)
        self.bug = bug
        self.connections: set[Connection] = set()
        self._told = told
        self._listeners: dict[Address, contextlib.ExitStack] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._problems: dict[Address, str] = {}

    @property
    def problems(self) -> list[str]:
        """What keeps us from listening, now."""
        return list(self._problems.values())

    def listen(self, addresses: tuple[Address, ...]) -> None:
        """Listen there and nowhere else: what can be had listens when this returns, the rest as soon as it can be had."""
        for address in [address for address in self._listeners if address not in addresses]:
            self._listeners.pop(address).close()
            self._problems.pop(address, None)
        for address in addresses:
            if address not in self._listeners:
                self._listeners[address] = listener = contextlib.ExitStack()
                serving = self._serve(address, self._opened(address, listener), listener)
                task = asyncio.get_running_loop().create_task(serving)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                listener.callback(task.cancel)

    async def close(self) -> None:
        self.listen(())
        for connection in list(self.connections):
            connection.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _opened(self, address: Address, listener: contextlib.ExitStack) -> socket.socket | None:
        """A listening socket there, the listener's own; None where there can't be one now, which is a problem then."""
        try:
            sock = _listening_socket(address)
        except OSError as error:
            problem = f"{_why(address, error)}; routed goes on without it and keeps trying"
            if self._problems.get(address) != problem:
                self._problems[address] = problem
                self._told(problem, True)
            return None
        listener.callback(sock.close)
        self._problems.pop(address, None)
        self._told(f"metrics and health at http://{shown(address)}/", False)
        return sock

    async def _serve(self, address: Address, sock: socket.socket | None, listener: contextlib.ExitStack) -> None:
        """Answer at one address, where it could not be had once it can, until the listener is closed."""
        while sock is None:
            await asyncio.sleep(LISTEN_RETRY)
            sock = self._opened(address, listener)
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self),
            sock=sock,
            start_serving=False,  # nothing is waited for before the server is the listener's to close
        )
        listener.callback(server.close)
        await server.start_serving()


class Connection(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_SIZE)
        self._octets = 0
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= CONNECTIONS:
            self._transport.abort()
            return
        self._server.connections.add(self)
        self._deadline = asyncio.get_running_loop().call_later(REQUEST_TIME, self.abort)

    def connection_lost(self, _: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._task is not None or self not in self._server.connections:
            return  # what comes behind the request is not read
        self._octets += len(data)
        if self._octets > REQUEST_SIZE:  # h11 itself bounds only what is not whole yet
            self._answer(Response(f"a request has {REQUEST_SIZE} octets at most\n".encode(), 431), head=False)
            return
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._answer(Response(b"this is no request we read\n", error.error_status_hint), head=False)
            return
        if isinstance(event, h11.Request):
            self._restart_deadline()
            self._task = asyncio.get_running_loop().create_task(self._serve(event))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _serve(self, request: h11.Request) -> None:
        head = request.method == b"HEAD"
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        page = self._server.pages.get(path)
        accept = b",".join(value for name, value in request.headers if name == b"accept").decode("latin-1")
        if page is None:
            paths = " ".join(sorted(self._server.pages))
            response = Response(f"there is no such page; there are {paths}\n".encode(), 404)
        elif request.method not in (b"GET", b"HEAD"):
            response = Response(b"only GET and HEAD\n", 405)
        else:
            try:
                response = await page(accept)
            except Exception as error:
                self._server.bug(f"the page {path}", error)
                response = Response(b"internal error of routed; its log has the details\n", 500)
        self._answer(response, head=head)

    def _answer(self, response: Response, *, head: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._restart_deadline()
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *_NEVER_CACHED,
            *([("Allow", "GET, HEAD")] if response.status == 405 else []),
        ]
        out: list[bytes] = []
        with contextlib.suppress(h11.LocalProtocolError):  # the peer's half is in a state that takes no answer
            reason = HTTPStatus(response.status).phrase
            out.append(
                self._http.send(h11.Response(status_code=response.status, reason=reason, headers=headers)) or b""
            )
            if not head:
                out.append(self._http.send(h11.Data(data=response.body)) or b"")
        transport.write(b"".join(out))
        transport.close()  # after what was written is taken; the deadline ends the wait

    def _restart_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(RESPONSE_TIME, self.abort)


def _listening_socket(address: Address) -> socket.socket:
    """Raises OSError."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(CONNECTIONS)
    except OSError:
        sock.close()
        raise
    return sock


def _why(address: Address, error: OSError) -> str:
    what = f"metrics.listen: cannot listen on {shown(address)}"
    if error.errno == errno.EADDRINUSE:
        return f"{what}: another program uses it (see `ss -ltnp sport = :{address[1]}`)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what}: no interface here has this address"
    return f"{what}: {os.strerror(error.errno or 0)}"


def shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
