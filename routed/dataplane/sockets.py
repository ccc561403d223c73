"""AF_NETLINK sockets: opened, sized, filtered. The only place that knows their options.

Everything is in the network namespace of the thread that opens it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading

from routed.netlink.nftables import NETLINK_NETFILTER
from routed.netlink.numbers import (
    NETLINK_ROUTE,
    RT_TABLE_COMPAT,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_LINK,
)

_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

#: The monitor must hold what happens while a large dump is read; the writer a refusal for each route of a chunk.
_MONITOR_BUFFER = 64 << 20
_WRITER_BUFFER = 16 << 20
_SEND_BUFFER = 4 << 20
#: Of a whole table of rules, in one send.
_BATCH_BUFFER = 256 << 20

#: The kernel fills at most 32 KiB of a dump at once; notifications and refusals are smaller.
RECEIVE_SIZE = 65536

_GROUPS = (RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE)

# Classic BPF (linux/filter.h): loads are big-endian, so that comparisons are with the octets as they lie in memory.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_JUMP_EQUAL, _RETURN = 0x15, 0x06
_ACCEPT, _DROP = 0xFFFFFFFF, 0


_LIBC = ctypes.PyDLL(None, use_errno=True)
_ROOM = threading.local()


def receive_now(descriptor: int) -> bytes | None:
    """One datagram; None where none waits. Raises OSError.

    The interpreter is kept: this waits for nothing, and where another thread computes, getting it back takes many times
    what the kernel takes to hand a message over.
    """
    try:
        room = _ROOM.buffer
    except AttributeError:
        room = _ROOM.buffer = ctypes.create_string_buffer(RECEIVE_SIZE)
    length: int = _LIBC.recv(descriptor, room, RECEIVE_SIZE, socket.MSG_DONTWAIT)
    if length >= 0:
        return ctypes.string_at(room, length)
    number = ctypes.get_errno()
    if number in (errno.EAGAIN, errno.EINTR):
        return None
    raise OSError(number, os.strerror(number))


class NetlinkSocket:
    """A non-blocking socket to rtnetlink, or to another netlink protocol."""

    def __init__(
        self,
        *,
        receive_buffer: int,
        groups: int = 0,
        protocol: int = NETLINK_ROUTE,
        send_buffer: int = _SEND_BUFFER,
    ) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setblocking(False)
            self._size(socket.SO_SNDBUF, _SO_SNDBUFFORCE, send_buffer)
            self._size(socket.SO_RCVBUF, _SO_RCVBUFFORCE, receive_buffer)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.bind((0, groups))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[0]
        """The kernel's name for this socket; in the header of everything it causes."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """The kernel carries the messages out before this returns. Raises OSError."""
        self._socket.send(data)

    def receive(self) -> bytes | None:
        """One datagram; None where none waits. Raises OSError; ENOBUFS means that messages were lost."""
        return receive_now(self._socket.fileno())

    def filter(self, writer_port: int, table: int) -> None:
        """Have the kernel drop what the writer caused and what other tables' routes do, before it costs us anything.

        The main table's stay: next hops resolve through it.
        """
        rtm_table = table if table <= 255 else RT_TABLE_COMPAT
        program = [
            (_LOAD_WORD, 0, 0, 12),  # nlmsg_pid
            (_JUMP_EQUAL, 7, 0, socket.htonl(writer_port)),
            (_LOAD_HALF, 0, 0, 4),  # nlmsg_type
            (_JUMP_EQUAL, 1, 0, socket.htons(RTM_NEWROUTE)),
            (_JUMP_EQUAL, 0, 3, socket.htons(RTM_DELROUTE)),
            (_LOAD_BYTE, 0, 0, 20),  # rtm_table
            (_JUMP_EQUAL, 1, 0, rtm_table),
            (_JUMP_EQUAL, 0, 1, RT_TABLE_MAIN),
            (_RETURN, 0, 0, _ACCEPT),
            (_RETURN, 0, 0, _DROP),
        ]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )

    def close(self) -> None:
        self._socket.close()

    def _size(self, option: int, forced: int, octets: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, forced, octets)
        except PermissionError:  # without CAP_NET_ADMIN: as much as net.core.*mem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, option, octets)


def open_writer() -> NetlinkSocket:
    """For route changes; also by its `port` what the monitor must not hear."""
    return NetlinkSocket(receive_buffer=_WRITER_BUFFER)


def open_dumper() -> NetlinkSocket:
    return NetlinkSocket(receive_buffer=_WRITER_BUFFER)


def open_monitor(writer_port: int, table: int) -> NetlinkSocket:
    """Hears of links, addresses and the routes of the table and of main, but for the writer's doing."""
    groups = 0
    for group in _GROUPS:
        groups |= 1 << (group - 1)
    monitor = NetlinkSocket(receive_buffer=_MONITOR_BUFFER, groups=groups)
    monitor.filter(writer_port, table)
    return monitor


def open_link_monitor() -> NetlinkSocket:
    """Hears of links alone, whoever changes them."""
    return NetlinkSocket(receive_buffer=_WRITER_BUFFER, groups=1 << (RTNLGRP_LINK - 1))


def open_nftables(*, groups: int = 0) -> NetlinkSocket:
    """To nf_tables. A batch is one send, however large; answered are messages that are refused, and the last."""
    return NetlinkSocket(
        receive_buffer=_MONITOR_BUFFER, groups=groups, protocol=NETLINK_NETFILTER, send_buffer=_BATCH_BUFFER
    )


def is_overflow(error: OSError) -> bool:
    """Whether a failed receive means that messages were lost."""
    return error.errno == errno.ENOBUFS
