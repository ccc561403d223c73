"""First packets of connections between namespaces, made octet by octet, and which of them arrived.

What is judged is a packet, so nothing here waits for a connection to be made: a reply may have to pass other rules. A number
in each packet tells it from all others. Connection tracking must not know a packet's tuple, nor the reverse of it, from an
earlier one: `forget` it, and do not send both in one volley (`distinct`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence

from routed.testing.lab import Namespace
from tests.lab.policy_site import PATIENCE, QUIET, icmp_message, icmp_number, sctp_init, sctp_number
from tests.policy.calico_specification import Probe

TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
_MARK = b"first packet"
_SEQUENCE = 0x52000000
_CHECKSUM_AT = {TCP: 16, UDP: 6}


def distinct(probes: Iterable[Probe]) -> list[Probe]:
    """Those that connection tracking takes for new ones, beside each other, of what it tracks at all."""
    kept: list[Probe] = []
    seen: set[tuple[tuple[str, int], tuple[str, int], int]] = set()
    for probe in probes:
        if probe.icmp is not None and probe.icmp[0] not in (8, 13, 128):
            continue
        here, there = (probe.source, probe.source_port), (probe.destination, probe.port)
        way = (min(here, there), max(here, there), probe.protocol)
        if probe.icmp is None and way in seen:
            continue
        seen.add(way)
        kept.append(probe)
    return kept


class FirstPackets:
    def __init__(self, hosts: Mapping[str, Namespace]) -> None:
        """`hosts` by address, of both families."""
        self._hosts = hosts
        self._opened = contextlib.ExitStack()
        self._poll = select.epoll()
        self._ears: dict[int, tuple[int, socket.socket]] = {}
        for address, host in hosts.items():
            for protocol in (TCP, UDP, SCTP, ICMPV6 if ":" in address else ICMP):
                with host.entered():
                    ear = self._opened.enter_context(self._socket(address, protocol))
                ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                ear.bind((address, 0))
                self._ears[ear.fileno()] = (protocol, ear)
                self._poll.register(ear, select.EPOLLIN)

    def close(self) -> None:
        self._opened.close()
        self._poll.close()

    def _socket(self, address: str, protocol: int) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_RAW, protocol)
        made.setblocking(False)
        if made.family == socket.AF_INET6 and protocol in _CHECKSUM_AT:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, _CHECKSUM_AT[protocol])
        return made

    def forget(self, nodes: Iterable[Namespace]) -> None:
        for node in nodes:
            node.run("conntrack", "-F", check=False)

    def arrived(self, probes: Sequence[Probe], expected: set[int]) -> set[int]:
        """The numbers of those that came where they were sent to. Waits for the expected ones, and a moment for others."""
        self._listen({}, 0)  # what came too late for the volley before
        with contextlib.ExitStack() as opened:
            for number, probe in enumerate(probes):
                with self._hosts[probe.source].entered():
                    sender = opened.enter_context(self._socket(probe.source, probe.protocol))
                sender.bind((probe.source, 0))
                with contextlib.suppress(PermissionError):  # dropped where it was sent
                    sender.sendto(_octets(probe, number), (probe.destination, 0))
            found: dict[int, str] = {}
            until, quiet_since = time.monotonic() + PATIENCE, time.monotonic()
            while time.monotonic() < until and (not expected <= found.keys() or time.monotonic() - quiet_since < QUIET):
                if self._listen(found, QUIET / 4):
                    quiet_since = time.monotonic()
        return {number for number, address in found.items() if address == probes[number].destination}

    def _listen(self, found: dict[int, str], wait: float) -> bool:
        """Note what was heard, by number where."""
        heard = self._poll.poll(wait)
        for descriptor, _ in heard:
            protocol, ear = self._ears[descriptor]
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = ear.recv(512)[20 if ear.family == socket.AF_INET else 0 :]
                    number = _number(protocol, data)
                    if number is not None:
                        found[number] = ear.getsockname()[0]
        return bool(heard)


def _octets(probe: Probe, number: int) -> bytes:
    match probe.protocol:
        case 6:
            segment = struct.pack(
                "!HHIIBBHHH", probe.source_port, probe.port, _SEQUENCE | number, 0, 0x50, 2, 65535, 0, 0
            )
        case 17:
            text = _MARK + struct.pack("!I", number)
            segment = struct.pack("!HHHH", probe.source_port, probe.port, 8 + len(text), 0) + text
        case 132:
            return sctp_init(probe.source_port, probe.port, number)
        case _:
            assert probe.icmp is not None
            kind, code = probe.icmp
            return icmp_message(40_000 + number, kind << 8 | code, number)
    if ":" in probe.source:
        return segment  # the kernel writes the checksum
    at = _CHECKSUM_AT[probe.protocol]
    addresses = b"".join(ipaddress.IPv4Address(each).packed for each in (probe.source, probe.destination))
    pseudo = addresses + struct.pack("!HH", probe.protocol, len(segment))
    return segment[:at] + struct.pack("!H", _checksum(pseudo + segment)) + segment[at + 2 :]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total or 0xFFFF


def _number(protocol: int, data: bytes) -> int | None:
    """Of a first packet; None for anything else that comes by."""
    if protocol == TCP:
        sequence, flags = struct.unpack_from("!I", data, 4)[0], data[13]
        return sequence & 0xFFFF if flags == 2 and sequence & 0xFFFF0000 == _SEQUENCE else None
    if protocol == UDP:
        return struct.unpack("!I", data[-4:])[0] if data[8:].startswith(_MARK) else None
    return sctp_number(data) if protocol == SCTP else icmp_number(data)
