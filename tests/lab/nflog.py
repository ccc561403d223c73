"""Reads NFLOG as ulogd does, from a netlink socket (linux/netfilter/nfnetlink_log.h): the prefix of each packet logged."""

from __future__ import annotations

import socket
import struct
from types import TracebackType

from routed.testing.lab import Namespace

NETLINK_NETFILTER = 12
_LOG = 4 << 8
_PACKET, _CONFIG = _LOG, _LOG | 1
_REQUEST, _ACK = 1, 4
_BIND, _COPY_META = 1, 1
_PREFIX = 10


class LogReader:
    """One group's packets, from now on."""

    def __init__(self, where: Namespace, group: int) -> None:
        with where.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(60)
        self._read: list[str] = []
        mode = struct.pack("!IBB", 0, _COPY_META, 0)
        for attribute in (struct.pack("=HHB3x", 5, 1, _BIND), struct.pack("=HH", 10, 2) + mode + bytes(2)):
            body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + attribute
            self._socket.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, _REQUEST | _ACK, 1, 0) + body)
            answer = self._socket.recv(4096)
            (code,) = struct.unpack_from("=i", answer, 16)
            if code:
                raise OSError(-code, "NFLOG")

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def next(self) -> str:
        """The prefix of the next packet; waits for it, but not for ever."""
        while not self._read:
            data = self._socket.recv(65536)  # the kernel sends several at once
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _PACKET:
                    self._read.append(_prefix(data[20:length]))
                data = data[length + 3 & ~3 :]
        return self._read.pop(0)

    def until(self, wanted: str) -> list[str]:
        """All prefixes up to the first that is this one."""
        seen = [self.next()]
        while seen[-1] != wanted:
            seen.append(self.next())
        return seen


def _prefix(attributes: bytes) -> str:
    while len(attributes) >= 4:
        size, what = struct.unpack_from("=HH", attributes)
        if what & 0x3FFF == _PREFIX:
            return attributes[4:size].rstrip(b"\x00").decode()
        attributes = attributes[size + 3 & ~3 :]
    return ""
