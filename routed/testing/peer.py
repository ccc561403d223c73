"""A scripted BGP peer: says exactly the octets a test writes, and hands over exactly those it hears.

    with ScriptedPeer(namespace, "10.0.0.2", "10.0.0.1", asn=65001) as peer:
        peer.establish()
        peer.send(update(origin() + as_path(65001) + next_hop("10.0.0.2"), nlri("192.0.2.0/24")))
        peer.expect(UPDATE)

Written from the RFCs on its own: it shares no code with `routed.bgp`, so that a mistake there is not repeated here. It
blocks, keeps no timers and sends nothing by itself, KEEPALIVEs included: let the hold time be longer than the test.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from dataclasses import field

from routed.testing.lab import POLL, Namespace
from routed.values import dataclass

OPEN, UPDATE, NOTIFICATION, KEEPALIVE, ROUTE_REFRESH = 1, 2, 3, 4, 5
MARKER = b"\xff" * 16
AS_TRANS = 23456

#: Seconds an answer may take.
PATIENCE = 30.0


# ---- octets to send


def message(kind: int, body: bytes = b"") -> bytes:
    return MARKER + struct.pack(">HB", 19 + len(body), kind) + body


def capability(code: int, value: bytes = b"") -> bytes:
    return bytes((code, len(value))) + value


def multiprotocol(ipv6: bool = False) -> bytes:
    """The multiprotocol capability (RFC 4760) of IPv4 or IPv6 unicast."""
    return capability(1, struct.pack(">HBB", 2 if ipv6 else 1, 0, 1))


def four_octet_as(asn: int) -> bytes:
    return capability(65, struct.pack(">I", asn))


def graceful_restart(seconds: int, *families: tuple[int, int, int], restarting: bool = False) -> bytes:
    """The graceful restart capability (RFC 4724); a family is (AFI, SAFI, flags)."""
    head = struct.pack(">H", seconds | (0x8000 if restarting else 0))
    return capability(64, head + b"".join(struct.pack(">HBB", *family) for family in families))


def open_message(asn: int, router_id: str, hold_time: int = 240, capabilities: bytes = b"", version: int = 4) -> bytes:
    parameters = bytes((2, len(capabilities))) + capabilities if capabilities else b""
    head = struct.pack(">BHH4s", version, min(asn, 65535) if asn < 65536 else AS_TRANS, hold_time, packed(router_id))
    return message(OPEN, head + bytes((len(parameters),)) + parameters)


def attribute(flags: int, code: int, value: bytes) -> bytes:
    """A path attribute; the extended length bit is set where it must be."""
    if len(value) > 255:
        return struct.pack(">BBH", flags | 0x10, code, len(value)) + value
    return bytes((flags, code, len(value))) + value


def origin(value: int = 0) -> bytes:
    return attribute(0x40, 1, bytes((value,)))


def as_path(*numbers: int, octets: int = 4) -> bytes:
    """One AS_SEQUENCE, or nothing."""
    path = b"".join(number.to_bytes(octets, "big") for number in numbers)
    return attribute(0x40, 2, bytes((2, len(numbers))) + path if numbers else b"")


def next_hop(address: str) -> bytes:
    return attribute(0x40, 3, packed(address))


def med(value: int) -> bytes:
    return attribute(0x80, 4, struct.pack(">I", value))


def local_pref(value: int = 100) -> bytes:
    return attribute(0x40, 5, struct.pack(">I", value))


def communities(*values: str) -> bytes:
    """`65000:1` and so on."""
    numbers = [int(number) for value in values for number in value.split(":")]
    return attribute(0xC0, 8, struct.pack(f">{len(numbers)}H", *numbers))


def mp_reach(next_hops: str, *prefixes: str) -> bytes:
    """MP_REACH_NLRI of IPv6 unicast; `next_hops` is one address, or a global and a link-local one."""
    hops = b"".join(packed(each) for each in next_hops.split())
    return attribute(0x80, 14, struct.pack(">HBB", 2, 1, len(hops)) + hops + b"\0" + nlri(*prefixes))


def mp_unreach(*prefixes: str) -> bytes:
    return attribute(0x80, 15, struct.pack(">HB", 2, 1) + nlri(*prefixes))


def nlri(*prefixes: str) -> bytes:
    return b"".join(_prefix(each) for each in prefixes)


def _prefix(text: str) -> bytes:
    network = ipaddress.ip_network(text)
    return bytes((network.prefixlen,)) + network.network_address.packed[: (network.prefixlen + 7) // 8]


def update(attributes: bytes = b"", reachable: bytes = b"", withdrawn: bytes = b"") -> bytes:
    lengths = struct.pack(">H", len(withdrawn)), struct.pack(">H", len(attributes))
    return message(UPDATE, lengths[0] + withdrawn + lengths[1] + attributes + reachable)


END_OF_RIB = update()


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


# ---- octets heard


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as it came."""

    kind: int
    body: bytes

    @property
    def error(self) -> tuple[int, int]:
        """Code and subcode of a NOTIFICATION."""
        return self.body[0], self.body[1]


@dataclass(slots=True)
class HeardUpdate:
    """An UPDATE taken to pieces. Prefixes of both families are in text; attributes are (flags, value) by type code."""

    announced: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    attributes: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    next_hop: str = ""
    """Of the prefixes announced; for IPv6 with a link-local one, both."""

    @property
    def end_of_rib(self) -> bool:
        return not self.announced and not self.withdrawn


def read_update(body: bytes) -> HeardUpdate:
    """Raises ValueError, struct.error or IndexError where an UPDATE is not well-formed."""
    found = HeardUpdate()
    (length,) = struct.unpack_from(">H", body)
    found.withdrawn += _read_prefixes(body[2 : 2 + length], 4)
    at = 2 + length
    (length,) = struct.unpack_from(">H", body, at)
    at, end = at + 2, at + 2 + length
    while at < end:
        flags, code = body[at], body[at + 1]
        long = bool(flags & 0x10)
        (size,) = struct.unpack_from(">H" if long else ">B", body, at + 2)
        at += 4 if long else 3
        if code in found.attributes or at + size > end:
            raise ValueError(f"attribute {code} twice, or longer than the UPDATE")
        value = body[at : at + size]
        at += size
        found.attributes[code] = (flags, value)
        if code == 3:
            found.next_hop = str(ipaddress.ip_address(value))
        elif code == 14:
            hops = value[4 : 4 + value[3]]
            found.next_hop = " ".join(str(ipaddress.ip_address(hops[i : i + 16])) for i in range(0, len(hops), 16))
            found.announced += _read_prefixes(value[5 + value[3] :], 16)
        elif code == 15:
            found.withdrawn += _read_prefixes(value[3:], 16)
    found.announced += _read_prefixes(body[end:], 4)
    return found


def _read_prefixes(octets: bytes, size: int) -> list[str]:
    found, at = [], 0
    while at < len(octets):
        length = octets[at]
        count = (length + 7) // 8
        value = octets[at + 1 : at + 1 + count]
        if len(value) != count:
            raise ValueError("a prefix ends after the UPDATE does")
        found.append(str(ipaddress.ip_network((value.ljust(size, b"\0"), length))))
        at += 1 + count
    return found


class ScriptedPeer:
    """One TCP connection at a time, from one address. A context manager."""

    def __init__(self, namespace: Namespace, local: str, remote: str, *, asn: int, router_id: str = "") -> None:
        self.namespace = namespace
        self.local = local
        self.remote = remote
        self.asn = asn
        self.router_id = router_id or (local if ":" not in local else "192.0.2.99")
        self._buffer = b""
        self._socket: socket.socket | None = None

    def __enter__(self) -> ScriptedPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the connection

    @property
    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.local else socket.AF_INET

    def connect(self, port: int = 179, deadline: float = PATIENCE) -> None:
        """Connect; whatever was connected before is closed. A port that is not open yet is tried until `deadline`."""
        self.close()
        until = time.monotonic() + deadline
        while True:
            with self.namespace.entered():
                sock = socket.socket(self._family, socket.SOCK_STREAM)
            sock.bind((self.local, 0))
            try:
                sock.connect((self.remote, port))
            except ConnectionRefusedError:
                sock.close()
                if time.monotonic() > until:
                    raise
                time.sleep(POLL)
            else:
                self._take(sock)
                return

    def listener(self, port: int = 179) -> socket.socket:
        """A listening socket at our end, for `accept`. The caller closes it."""
        with self.namespace.entered():
            sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.local, port))
        sock.listen(8)
        sock.settimeout(PATIENCE)
        return sock

    def accept(self, listener: socket.socket) -> None:
        self.close()
        self._take(listener.accept()[0])

    def _take(self, sock: socket.socket) -> None:
        self._socket, self._buffer = sock, b""
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def socket(self) -> socket.socket:
        if self._socket is None:
            raise RuntimeError("the peer is not connected")
        return self._socket

    def close(self) -> None:
        """Close TCP (FIN) without a word."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reset(self) -> None:
        """Close TCP with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # ---- talking

    def send(self, *octets: bytes) -> None:
        self.socket.sendall(b"".join(octets))

    def open(self, hold_time: int = 240, capabilities: bytes | None = None) -> bytes:
        """Our OPEN: multiprotocol of the connection's family and four-octet AS numbers unless told otherwise."""
        if capabilities is None:
            capabilities = multiprotocol(":" in self.local) + four_octet_as(self.asn)
        return open_message(self.asn, self.router_id, hold_time, capabilities)

    def establish(self, hold_time: int = 240, capabilities: bytes | None = None) -> bytes:
        """Connect if that is not done, and exchange OPENs and KEEPALIVEs. The other side's OPEN, without its header."""
        if self._socket is None:
            self.connect()
        self.send(self.open(hold_time, capabilities))
        theirs = self.expect(OPEN).body
        self.send(message(KEEPALIVE))
        self.expect(KEEPALIVE)
        return theirs

    def receive(self, deadline: float = PATIENCE) -> Heard | None:
        """The next message; None where the connection ended. Raises TimeoutError."""
        until = time.monotonic() + deadline
        while (found := self._parse()) is None:
            self.socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._buffer += data
            if time.monotonic() > until:
                raise TimeoutError(f"no whole message within {deadline:g} s")
        return found

    def _parse(self) -> Heard | None:
        if len(self._buffer) < 19:
            return None
        length, kind = struct.unpack_from(">HB", self._buffer, 16)
        if self._buffer[:16] != MARKER or not 19 <= length <= 4096:
            raise ValueError(f"what arrived is no BGP message: {self._buffer[:19].hex()}")
        if len(self._buffer) < length:
            return None
        body, self._buffer = self._buffer[19:length], self._buffer[length:]
        return Heard(kind, body)

    def expect(self, kind: int, deadline: float = PATIENCE) -> Heard:
        """The next message but for KEEPALIVEs (unless one is wanted), which must be of this type."""
        until = time.monotonic() + deadline
        while True:
            found = self.receive(max(0.001, until - time.monotonic()))
            if found is None:
                raise AssertionError(f"waited for a message of type {kind}, and the connection ended")
            if found.kind == kind:
                return found
            if found.kind != KEEPALIVE:
                raise AssertionError(
                    f"waited for a message of type {kind}, heard type {found.kind}: {found.body.hex()}"
                )

    def expect_notification(self, deadline: float = PATIENCE) -> tuple[int, int]:
        """Code and subcode of the NOTIFICATION that comes, whatever comes before it."""
        until = time.monotonic() + deadline
        while True:
            found = self.receive(max(0.001, until - time.monotonic()))
            if found is None:
                raise AssertionError("waited for a NOTIFICATION, and the connection ended without")
            if found.kind == NOTIFICATION:
                return found.error

    def expect_end(self, deadline: float = PATIENCE) -> list[Heard]:
        """What is heard until the connection ends."""
        until, heard = time.monotonic() + deadline, []
        while (found := self.receive(max(0.001, until - time.monotonic()))) is not None:
            heard.append(found)
        return heard

    def updates_until(self, prefix: str, deadline: float = PATIENCE) -> list[HeardUpdate]:
        """The UPDATEs up to the one that announces or withdraws `prefix`, that one included, End-of-RIBs left out."""
        until, heard = time.monotonic() + deadline, []
        while True:
            update_ = read_update(self.expect(UPDATE, max(0.001, until - time.monotonic())).body)
            if not update_.end_of_rib:
                heard.append(update_)
            if prefix in update_.announced or prefix in update_.withdrawn:
                return heard
