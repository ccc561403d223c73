"""One echo request (RFC 792, RFC 4443), judged so that a process that stood still is not taken for a packet that was lost.

The answer is looked for once more after its time: `ping`, stopped until then, leaves by its alarm and does not read it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import time

#: Types of request and reply; Linux's names of socket options that Python has no names for.
_ICMP, _ICMPV6 = (8, 0), (128, 129)
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_IP_RECVERR, _IPV6_RECVERR = 11, 25

#: No two have one identifier within half a minute: connection tracking would take the second for one it knows.
_identifiers = itertools.count(os.getpid())


def is_answered(asking: socket.socket, timeout: float) -> bool:
    """Whether a request by a socket of `open_socket` is answered within `timeout` seconds. Closes the socket."""
    mark = os.urandom(16)
    with asking:
        try:
            asking.send(_request(asking.family == socket.AF_INET6, mark))
        except OSError:  # no route, or dropped where it was sent
            return False
        until = time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            try:
                if mark in asking.recv(2048):
                    return True
            except BlockingIOError:
                if left < 0:  # that was the look after its time
                    return False
                select.select([asking], [], [], left)
            except OSError:  # somebody said that it is not reached
                return False


def open_socket(address: str, source: str = "") -> socket.socket:
    """One that asks an address, from where the kernel chooses or from `source`, in this thread's network namespace."""
    ipv6 = ":" in address
    made = socket.socket(*((socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) if ipv6 else
                           (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)))  # fmt: skip
    made.setblocking(False)
    reply = (_ICMPV6 if ipv6 else _ICMP)[1]
    if ipv6:
        words = [0xFFFFFFFF] * 8
        words[reply >> 5] &= ~(1 << (reply & 31))
        made.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("8I", *words))
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        made.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("I", 0xFFFFFFFF & ~(1 << reply)))
        made.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    if source:
        made.bind((source, 0))
    with contextlib.suppress(OSError):  # without a route; sending says so too
        made.connect((address, 0))
    return made


def _request(ipv6: bool, mark: bytes) -> bytes:
    body = struct.pack("!HH", next(_identifiers) & 0xFFFF, 1) + mark.ljust(56, b"\0")
    if ipv6:
        return struct.pack("!BBH", _ICMPV6[0], 0, 0) + body  # the kernel writes the checksum
    total = sum(struct.unpack(f"!{len(body) // 2}H", body)) + (_ICMP[0] << 8)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", _ICMP[0], 0, 0xFFFF - total) + body
