"""TCP for the core: connects, listens, reads, and writes what it pulls. An adapter without rules of its own.

The core names connections by number; this module keeps the sockets behind the numbers. What a peer sends goes to the
core as it arrives. Writing is pulled: while a socket takes octets the core is asked for more (`Owner.take`), and once it
is full nothing is asked, so a peer that never reads costs one chunk of memory. After a `close` what the core still has
to say (a NOTIFICATION) is written, our direction is shut, and what the peer sends is thrown away until it closes too; a
peer that does not within `LINGER` seconds is reset.

Failures are sentences: they end in the log and in `routedctl`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from typing import Protocol, cast

from routed.net.addresses import format_address, is_link_local

#: Octets asked of the core at a time.
CHUNK = 262144

#: Chunks written on one connection before the others get their turn.
CHUNKS_A_TURN = 4

#: Seconds between our closing a connection and its reset.
LINGER = 3.0

#: Connections waiting to be accepted on one listening socket.
BACKLOG = 512

#: Seconds between two attempts to open a listening socket.
LISTEN_RETRY = 3.0

#: Routing protocols' packets are marked "internetwork control" (RFC 4594 3.2: CS6), as every BGP speaker does.
TRAFFIC_CLASS = 0xC0

#: SO_LINGER on, zero seconds: closing sends a reset.
RESET = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """Who is told, on the loop's thread. `conn` is the core's number of a connection."""

    def connected(self, conn: int, local: bytes) -> None: ...
    def connect_failed(self, conn: int, reason: str) -> None: ...
    def accepted(self, remote: bytes, local: bytes, interface: str) -> int:
        """The number of a new incoming connection, or 0: reset it."""

    def received(self, conn: int, data: bytes) -> None: ...
    def closed(self, conn: int, reason: str) -> None: ...
    def writing_paused(self, conn: int) -> None: ...
    def writing_resumed(self, conn: int) -> None: ...
    def take(self, conn: int, limit: int) -> bytes: ...
    def listen_problem(self, port: int, problems: tuple[str, ...]) -> None:
        """What keeps us from listening on a port, all of it; empty once nothing does."""


class Connection(asyncio.Protocol):
    """One TCP connection, ours or theirs."""

    __slots__ = ("_loop", "_reset_timer", "closing", "conn", "paused", "transport", "transports")

    def __init__(self, transports: Transports, conn: int = 0) -> None:
        self.transports = transports
        self.conn = conn
        """The core's number; 0 until an incoming connection has one."""
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.closing = False
        self._reset_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=0)
        self.transports.made(self)

    def data_received(self, data: bytes) -> None:
        if not self.closing:
            self.transports.owner.received(self.conn, data)

    def eof_received(self) -> None:
        """Returning nothing closes the transport: BGP has no use for half of a connection."""

    def connection_lost(self, error: Exception | None) -> None:
        if self._reset_timer is not None:
            self._reset_timer.cancel()
        self.transports.lost(self, error)

    def pause_writing(self) -> None:
        self.paused = True
        if not self.closing:
            self.transports.owner.writing_paused(self.conn)

    def resume_writing(self) -> None:
        self.paused = False
        if not self.closing:
            self.transports.owner.writing_resumed(self.conn)

    def pull(self) -> bool:
        """Write what the core has to say; True where it may have more and the socket would take it."""
        transport = self.transport
        if transport is None:
            return False
        for _ in range(CHUNKS_A_TURN):
            if self.paused or transport.is_closing():
                return False
            data = self.transports.owner.take(self.conn, CHUNK)
            if not data:
                return False
            transport.write(data)
        return not self.paused

    def close(self) -> None:
        """Say the last words, then end the connection."""
        transport = self.transport
        if transport is None or self.closing:
            return
        if not transport.is_closing():
            last = self.transports.owner.take(self.conn, CHUNK)
            if last:
                transport.write(last)
        self.closing = True
        if not transport.is_closing():
            with contextlib.suppress(OSError, RuntimeError):  # the peer may have reset it this very moment
                transport.write_eof()
        self._reset_timer = asyncio.get_running_loop().call_later(LINGER, self.reset)

    def reset(self) -> None:
        """End the connection at once, with a TCP reset; what is not yet sent is lost."""
        self.closing = True
        transport = self.transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        transport.abort()


class Transports:
    """All connections and listening sockets of the daemon."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._connections: dict[int, Connection] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._ending: set[Connection] = set()
        """Closed by us, not yet gone."""
        self._listener: Listener | None = None

    def __len__(self) -> int:
        """Connections that are not yet gone."""
        return len(self._connections) + len(self._ending)

    def connect(self, conn: int, remote: bytes, port: int, local: bytes, interface: str) -> None:
        """Open a connection; answered by `connected` or `connect_failed`, not before the next turn of the loop."""
        task = asyncio.get_running_loop().create_task(self._connect(conn, remote, port, local, interface))
        self._connecting[conn] = task

    def close(self, conn: int) -> None:
        """End a connection, or the attempt to open one. The owner hears no more of it."""
        connecting = self._connecting.pop(conn, None)
        if connecting is not None:
            connecting.cancel()
        connection = self._connections.pop(conn, None)
        if connection is not None:
            self._ending.add(connection)
            connection.close()

    def reset(self, conn: int) -> None:
        """End a connection without last words."""
        connection = self._connections.pop(conn, None)
        if connection is not None:
            self._ending.add(connection)
            connection.reset()

    def pull(self, conn: int) -> bool:
        """Write what the core has to say on a connection; True where it may have more."""
        connection = self._connections.get(conn)
        return connection is not None and connection.pull()

    def listen(self, port: int) -> None:
        """Listen on a port of all local addresses, as soon as it can be had; no longer on an earlier one."""
        if self._listener is not None:
            self._listener.stop()
        self._listener = Listener(self, port)

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def reset_all(self) -> None:
        """The end: nothing is waited for."""
        self.stop_listening()
        for task in self._connecting.values():
            task.cancel()
        for connection in [*self._connections.values(), *self._ending]:
            connection.reset()

    # ---- inside

    async def _connect(self, conn: int, remote: bytes, port: int, local: bytes, interface: str) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if len(remote) == 4 else socket.AF_INET6
        what = f"cannot connect to {format_address(remote)} port {port}"
        sock = None
        try:
            scope = 0
            if interface:
                scope = _interface_index(interface)
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            _mark(sock, family)
            if local:
                what = f"cannot use the source address {format_address(local)}"
                sock.bind(_socket_address(local, 0, scope if is_link_local(local) else 0))
            what = f"cannot connect to {format_address(remote)} port {port}"
            await loop.sock_connect(sock, _socket_address(remote, port, scope))
            await loop.create_connection(lambda: Connection(self, conn), sock=sock)
        except OSError as error:
            if sock is not None:
                sock.close()
            if self._connecting.pop(conn, None) is not None:
                self.owner.connect_failed(conn, f"{what}: {_why(error)}")
        except asyncio.CancelledError:
            if sock is not None:
                sock.close()
            raise

    def made(self, connection: Connection) -> None:
        """A connection is up. Ours goes by its number; one that came in is named by the owner, or reset."""
        transport = connection.transport
        assert transport is not None
        remote, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if remote is None or local is None:  # it is gone already; if ours, `_connect` or `lost` says so
            connection.reset()
            return
        if connection.conn:
            if self._connecting.pop(connection.conn, None) is None:  # closed while it came up
                self._ending.add(connection)
                connection.reset()
                return
            self._connections[connection.conn] = connection
            self.owner.connected(connection.conn, _packed(local))
            return
        connection.conn = self.owner.accepted(_packed(remote), _packed(local), _interface_name(remote))
        if connection.conn:
            self._connections[connection.conn] = connection
        else:
            self._ending.add(connection)
            connection.reset()

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """A connection is gone: the peer's doing, or the end of our own closing."""
        self._ending.discard(connection)
        if self._connecting.pop(connection.conn, None) is not None:
            self.owner.connect_failed(connection.conn, "the connection broke as soon as it was up")
        if self._connections.get(connection.conn) is connection:
            del self._connections[connection.conn]
            reason = "the peer closed the connection" if error is None else f"the connection broke: {_why(error)}"
            self.owner.closed(connection.conn, reason)


class Listener:
    """Keeps a port open on all local addresses of both families, retrying until it can be had."""

    def __init__(self, transports: Transports, port: int) -> None:
        self.port = port
        self._transports = transports
        self._servers: dict[socket.AddressFamily, asyncio.Server] = {}
        self._problems: tuple[str, ...] | None = None
        self._task = asyncio.get_running_loop().create_task(self._open())

    def stop(self) -> None:
        self._task.cancel()
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    async def _open(self) -> None:
        wanted = [socket.AF_INET, socket.AF_INET6]
        while True:
            problems = []
            for family in wanted[:]:
                try:
                    sock = listening_socket(family, self.port)
                except OSError as error:
                    if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and family is socket.AF_INET6:
                        wanted.remove(family)  # a node without IPv6
                        continue
                    problems.append(_listen_problem(family, self.port, error))
                    continue
                wanted.remove(family)
                loop = asyncio.get_running_loop()
                self._servers[family] = await loop.create_server(
                    lambda: Connection(self._transports), sock=sock, backlog=BACKLOG
                )
            if tuple(problems) != self._problems:
                self._problems = tuple(problems)
                self._transports.owner.listen_problem(self.port, self._problems)
            if not wanted:
                return
            await asyncio.sleep(LISTEN_RETRY)


def listening_socket(family: socket.AddressFamily, port: int) -> socket.socket:
    """A socket bound to a port of all local addresses of one family. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _mark(sock, family)
        sock.bind(("", port))
        sock.listen(BACKLOG)  # here, not later in the loop: a port that is taken shows up on listen, too
    except OSError:
        sock.close()
        raise
    return sock


def _mark(sock: socket.socket, family: socket.AddressFamily) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TRAFFIC_CLASS)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, TRAFFIC_CLASS)


def _listen_problem(family: socket.AddressFamily, port: int, error: OSError) -> str:
    what = f"cannot listen on port {port} ({'IPv4' if family == socket.AF_INET else 'IPv6'})"
    if error.errno == errno.EADDRINUSE:
        return f"{what}: another program uses it (see `ss -ltnp sport = :{port}`); routed keeps trying"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{what}: no permission, it takes root or CAP_NET_BIND_SERVICE; routed keeps trying"
    return f"{what}: {_why(error)}; routed keeps trying"


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _socket_address(address: bytes, port: int, scope: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if len(address) == 4:
        return format_address(address), port
    return format_address(address), port, 0, scope


def _packed(name: tuple[str, int] | tuple[str, int, int, int]) -> bytes:
    """The packed address of a socket name; text may carry a scope (`fe80::1%eth0`)."""
    host = name[0].partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def _interface_index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise OSError(f"there is no interface {name}") from None


def _interface_name(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """The interface a link-local peer is on, else empty."""
    if len(name) == 4 and name[3]:
        with contextlib.suppress(OSError):
            return socket.if_indextoname(name[3])
    return ""
