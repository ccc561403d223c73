"""TCP for the core: connects, listens, reads, and writes what it pulls. An adapter without rules of its own.

The core names connections by number; this module keeps the sockets behind the numbers. What a peer sends goes to the
core as it arrives. Writing is pulled: while a socket takes octets the core is asked for more (`Owner.take`), and once it
is full nothing is asked, so a peer that never reads costs one chunk of memory. After a `close` what the core still has
to say (a NOTIFICATION) is written, our direction is shut, and what the peer sends is thrown away until it closes too; a
peer that does not within `LINGER` seconds is reset.

What guards a session (`Protection`): the password of TCP MD5 (RFC 2385) is a key on the socket that connects, and for
the peer's address on every listening socket; TTL security (RFC 5082) is set on each connection. Fail closed: where the
kernel refuses a key, the peer neither is connected to nor gets in.

Failures are sentences: they end in the log and in `routedctl`. Passwords never do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import field
from typing import Protocol, cast

from routed.bgp.neighbor import silence
from routed.net.addresses import format_address, is_link_local
from routed.values import dataclass

#: Octets asked of the core at a time.
CHUNK = 262144

#: Chunks written on one connection before the others get their turn.
CHUNKS_A_TURN = 4

#: Seconds between our closing a connection and its reset.
LINGER = 3.0

#: Connections waiting to be accepted on one listening socket.
BACKLOG = 512

#: Seconds between two attempts to open a listening socket; the first come sooner, since an earlier listener of ours may
#: be about to let the port go.
LISTEN_RETRY = 3.0
LISTEN_RETRY_FIRST = (0.05, 0.25)

#: Routing protocols' packets are marked "internetwork control" (RFC 4594 3.2: CS6), as every BGP speaker does.
TRAFFIC_CLASS = 0xC0

#: Linux's names for what Python's socket module has none for.
TCP_MD5SIG = 14
IP_MINTTL = 21
IPV6_MINHOPCOUNT = 73

#: TTL of a packet that has passed no router.
FULL_TTL = 255

#: SO_LINGER on, zero seconds: closing sends a reset.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Protection:
    """What a connection with a peer must have."""

    password: bytes | None = field(default=None, repr=False)
    """Of TCP MD5: the peer signs every segment with it; None: no segment is signed."""
    hops: int = 0
    """The peer is at most this far away; 0: at any distance."""


UNPROTECTED = Protection()


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
        with contextlib.suppress(OSError):  # uvloop raises where the socket is closed already
            sock = transport.get_extra_info("socket")
            if sock is not None:
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
        self._protections: dict[bytes, Protection] = {}
        """By the peer's address."""

    def __len__(self) -> int:
        """Connections that are not yet gone."""
        return len(self._connections) + len(self._ending)

    def connect(
        self,
        conn: int,
        remote: bytes,
        port: int,
        local: bytes,
        interface: str,
        protection: Protection = UNPROTECTED,
    ) -> None:
        """Open a connection; answered by `connected` or `connect_failed`, not before the next turn of the loop."""
        attempt = self._connect(conn, remote, port, local, interface, protection)
        self._connecting[conn] = asyncio.get_running_loop().create_task(attempt)

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

    def listen(self, port: int, addresses: tuple[bytes, ...] = ()) -> None:
        """Listen on a port of these local addresses (none: of all), as soon as it can be had; no longer elsewhere."""
        if self._listener is not None:
            self._listener.stop()
        self._listener = Listener(self, port, addresses, self._protections)

    def protect(self, protections: Mapping[bytes, Protection]) -> None:
        """What connections that come in from these addresses must have from now on; those from others nothing.

        Connections that are up keep what they came up with.
        """
        self._protections = dict(protections)
        if self._listener is not None:
            self._listener.protect(self._protections)

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

    async def _connect(
        self, conn: int, remote: bytes, port: int, local: bytes, interface: str, protection: Protection
    ) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if len(remote) == 4 else socket.AF_INET6
        what = f"{format_address(remote)} port {port}"
        sock = None
        try:
            scope = 0
            if interface:
                scope = _interface_index(interface)
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            _mark(sock, family)
            if protection.password is not None:
                what = f"no TCP MD5 for the session with {format_address(remote)}"
                set_md5_key(sock, remote, protection.password)
            limit_hops(sock, family, protection.hops)
            if local:
                what = f"the source address {format_address(local)} cannot be used"
                sock.bind(_socket_address(local, 0, scope if is_link_local(local) else 0))
            what = f"{format_address(remote)} port {port}"
            await loop.sock_connect(sock, _socket_address(remote, port, scope))
            await loop.create_connection(lambda: Connection(self, conn), sock=sock)
        except OSError as error:
            if sock is not None:
                sock.close()
            if self._connecting.pop(conn, None) is not None:
                self.owner.connect_failed(conn, f"{what}: {_why(error)}{_hint(error, protection)}")
        except asyncio.CancelledError:
            if sock is not None:
                sock.close()
            raise

    def made(self, connection: Connection) -> None:
        """A connection is up. Ours goes by its number; one that came in is named by the owner, or reset."""
        transport = connection.transport
        assert transport is not None
        remote = local = None
        with contextlib.suppress(OSError):  # uvloop raises where the socket is closed already
            remote, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if remote is None or local is None:  # it is gone already
            connection.reset()
            if self._connecting.pop(connection.conn, None) is not None:
                self.owner.connect_failed(connection.conn, "the connection broke as soon as it was up")
            return
        if connection.conn:
            if self._connecting.pop(connection.conn, None) is None:  # closed while it came up
                self._ending.add(connection)
                connection.reset()
                return
            self._connections[connection.conn] = connection
            self.owner.connected(connection.conn, _packed(local))
            return
        if self._lets_in(transport, _packed(remote)):
            connection.conn = self.owner.accepted(_packed(remote), _packed(local), _interface_name(remote))
        if connection.conn:
            self._connections[connection.conn] = connection
        else:
            self._ending.add(connection)
            connection.reset()

    def _lets_in(self, transport: asyncio.Transport, remote: bytes) -> bool:
        """Put what guards its address on a connection that came in; False where that can't be."""
        protection = self._protections.get(remote, UNPROTECTED)
        if protection.password is not None and (self._listener is None or not self._listener.has_key(remote)):
            return False
        if protection.hops:
            try:
                family = socket.AF_INET if len(remote) == 4 else socket.AF_INET6
                limit_hops(transport.get_extra_info("socket"), family, protection.hops)
            except OSError:
                return False
        return True

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
    """Keeps a port open, on all local addresses of both families or on some, retrying until it can be had."""

    def __init__(
        self,
        transports: Transports,
        port: int,
        addresses: tuple[bytes, ...],
        protections: Mapping[bytes, Protection],
    ) -> None:
        self.port = port
        self._transports = transports
        self._wanted: list[tuple[socket.AddressFamily, bytes]] = [
            (socket.AF_INET if len(address) == 4 else socket.AF_INET6, address) for address in addresses
        ] or [(socket.AF_INET, b""), (socket.AF_INET6, b"")]
        self._protections = protections
        self._sockets: list[tuple[socket.socket, dict[bytes, bytes]]] = []
        """Each with the MD5 keys it has, by the peer's address."""
        self._servers: list[asyncio.Server] = []
        self._port_problems: tuple[str, ...] = ()
        self._told: tuple[str, ...] | None = None
        self._key_problems: dict[bytes, str] = {}
        """Why an address has no key on some socket."""
        self._task = asyncio.get_running_loop().create_task(self._open())

    def stop(self) -> None:
        self._task.cancel()
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._sockets.clear()

    def protect(self, protections: Mapping[bytes, Protection]) -> None:
        """See `Transports.protect`."""
        self._protections = protections
        self._key_problems = {}
        for sock, keys in self._sockets:
            self._set_keys(sock, keys)
        if self._told is not None:
            self._tell()

    def has_key(self, remote: bytes) -> bool:
        """Whether what comes in from an address has shown the password it must."""
        return remote not in self._key_problems

    def _set_keys(self, sock: socket.socket, keys: dict[bytes, bytes]) -> None:
        """Make a socket's keys what the protections say."""
        length = 4 if sock.family == socket.AF_INET else 16
        wanted = {
            remote: protection.password
            for remote, protection in self._protections.items()
            if protection.password is not None and len(remote) == length
        }
        for remote in [remote for remote in keys if remote not in wanted]:
            with contextlib.suppress(OSError):
                set_md5_key(sock, remote, b"")
            del keys[remote]
        for remote, password in wanted.items():
            if keys.get(remote) == password:
                continue
            try:
                set_md5_key(sock, remote, password)
            except OSError as error:
                self._key_problems[remote] = _key_problem(remote, error)
                keys.pop(remote, None)
            else:
                keys[remote] = password

    async def _open(self) -> None:
        wanted = list(self._wanted)
        for pause in itertools.chain(LISTEN_RETRY_FIRST, itertools.repeat(LISTEN_RETRY)):
            problems = await self._try(wanted)
            if not wanted or pause == LISTEN_RETRY:
                self._port_problems = problems
                self._tell()
            if not wanted:
                return
            await asyncio.sleep(pause)

    async def _try(self, wanted: list[tuple[socket.AddressFamily, bytes]]) -> tuple[str, ...]:
        """Open what is still wanted; what kept us from it."""
        problems = []
        for entry in wanted[:]:
            family, address = entry
            try:
                sock = listening_socket(family, self.port, address)
            except OSError as error:
                missing = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if missing and family is socket.AF_INET6 and not address:
                    wanted.remove(entry)  # a node without IPv6
                    continue
                problems.append(_listen_problem(family, self.port, address, error))
                continue
            wanted.remove(entry)
            keys: dict[bytes, bytes] = {}
            self._set_keys(sock, keys)
            self._sockets.append((sock, keys))
            loop = asyncio.get_running_loop()
            self._servers.append(
                await loop.create_server(lambda: Connection(self._transports), sock=sock, backlog=BACKLOG)
            )
        return tuple(problems)

    def _tell(self) -> None:
        problems = (*self._port_problems, *self._key_problems.values())
        if problems != self._told:
            self._told = problems
            self._transports.owner.listen_problem(self.port, problems)


def set_md5_key(sock: socket.socket, remote: bytes, password: bytes) -> None:
    """Have a socket sign segments to an address, and take only those signed with the password; empty: no longer.

    Raises OSError. The layout is `struct tcp_md5sig` of linux/tcp.h.
    """
    if len(remote) == 4:
        address = struct.pack("=HH4s", socket.AF_INET, 0, remote)
    else:
        address = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, remote, 0)
    value = struct.pack("=128sBBHi80s", address, 0, 0, len(password), 0, password)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, value)


def limit_hops(sock: socket.socket, family: int, hops: int) -> None:
    """Generalized TTL security (RFC 5082): send with a full TTL, drop what comes from farther away. Raises OSError."""
    if not hops:
        return
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, FULL_TTL)
        sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, FULL_TTL + 1 - hops)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, FULL_TTL)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, FULL_TTL + 1 - hops)


def listening_socket(family: socket.AddressFamily, port: int, address: bytes = b"") -> socket.socket:
    """A socket bound to a port of one local address, or of all of one family. Raises OSError.

    It answers with a full TTL: the peer may ask for one before this end knows which peer it is.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _mark(sock, family)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, FULL_TTL)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, FULL_TTL)
        sock.bind((socket.inet_ntop(family, address) if address else "", port))
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


def _hint(error: OSError, protection: Protection) -> str:
    """What a failure may mean with a peer that is guarded."""
    if error.errno not in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return ""
    return silence(password=protection.password is not None, hops=protection.hops)


def _key_problem(remote: bytes, error: OSError) -> str:
    what = f"connections from {format_address(remote)} are refused: the kernel takes no TCP MD5 key for it"
    if error.errno == errno.ENOMEM:
        return f"{what}, for want of room: raise `sysctl net.core.optmem_max`"
    return f"{what}: {_why(error)}"


def _listen_problem(family: socket.AddressFamily, port: int, address: bytes, error: OSError) -> str:
    where = f"of {format_address(address)}" if address else f"({'IPv4' if family == socket.AF_INET else 'IPv6'})"
    what = f"cannot listen on port {port} {where}"
    if error.errno == errno.EADDRNOTAVAIL and address:
        return f"{what}: no interface has this address, and bindMode is NodeIP; routed keeps trying"
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
