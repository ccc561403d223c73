"""Requests to rtnetlink and their answers, in order, on one socket that waits.

For links, addresses and neighbours, which are few, and for the way of one packet. Routes go another way (`kernel`).

Invariants: an answer is taken for the request that has its sequence number; what comes too late for one given up is left
aside. Every refusal is a KernelError with the kernel's own sentence. Of requests that are sent together only the last is
acknowledged: the kernel carries them out in order, and tells of each that it refuses.

The kernel does the waiting (SO_RCVTIMEO), not Python's socket, which would ask `poll` before every call: each call into the
kernel lets go of the interpreter, and a thread that has to get it back from a busy loop waits longer than the kernel took.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence

from routed.dataplane.sockets import RECEIVE_SIZE, receive_now
from routed.errors import KernelError
from routed.netlink.messages import Message, dump_errno, messages, parse_error, without_ack
from routed.netlink.numbers import NETLINK_ROUTE, NLMSG_DONE, NLMSG_ERROR, RTM_NEWLINK, RTM_NEWROUTE

#: Seconds the kernel may take to answer.
_PATIENCE = 5.0
#: Requests in one send: their answers fit into the smallest receive buffer.
_AT_ONCE = 64

_ANSWERS = (RTM_NEWLINK, RTM_NEWROUTE)
_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_SIOCGIFMTU, _SIOCGIFINDEX = 0x8921, 0x8933
_TIMEVAL = struct.pack("@ll", int(_PATIENCE), 0)
_SEQUENCE = struct.Struct("=I")


class Exchange:
    """See the module's docstring."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._sequence = 0
        opened.setblocking(True)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
        with contextlib.suppress(OSError):  # the kernel's sentences are a help, not a need
            opened.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)

    def close(self) -> None:
        self._socket.close()

    def next(self) -> int:
        self._sequence += 1
        return self._sequence

    def index_of(self, name: str) -> int | None:
        """The index of a link in the socket's namespace, by the one question that waits for no change of others."""
        return self._ask_by_name(_SIOCGIFINDEX, name)

    def mtu_of(self, name: str) -> int:
        """The MTU of a link there, by the same; 0 where there is none."""
        return self._ask_by_name(_SIOCGIFMTU, name) or 0

    def _ask_by_name(self, question: int, name: str) -> int | None:
        try:
            answer = fcntl.ioctl(self._socket, question, struct.pack("16si20x", name.encode()[:15], 0))
        except OSError:
            return None
        value: int = struct.unpack_from("i", answer, 16)[0]
        return value

    def ask(self, request: bytes, what: str) -> list[Message]:
        """The answers to one request. Raises KernelError."""
        return self.ask_all([request], what)

    def ask_all(self, requests: Sequence[bytes], what: str) -> list[Message]:
        """Send all, and wait for every answer; the first refusal is raised, as KernelError, once all have answered."""
        answers: list[Message] = []
        refusal: KernelError | None = None
        try:
            for start in range(0, len(requests), _AT_ONCE):
                some = [without_ack(request) for request in requests[start : start + _AT_ONCE]]
                some[-1] = requests[start + len(some) - 1]
                sent = {_sequence_of(request) for request in some}
                last = _sequence_of(some[-1])
                self._socket.send(b"".join(some))
                while last in sent:
                    for message in self._receive():
                        if message.sequence not in sent:
                            continue  # of a request given up before
                        sent.discard(message.sequence)
                        if message.type in _ANSWERS:
                            answers.append(message)
                        elif message.type == NLMSG_ERROR:
                            answer = parse_error(message)
                            if answer.errno and refusal is None:
                                refusal = KernelError(answer.errno, answer.text, what)
        except BlockingIOError:
            raise KernelError(errno.ETIMEDOUT, "", what) from None
        except OSError as error:
            raise KernelError(error.errno or 0, "", what) from None
        if refusal is not None:
            raise refusal
        return answers

    def dump(self, request: bytes, what: str) -> list[Message]:
        """All that a dump request gives. Raises KernelError."""
        sequence = _sequence_of(request)
        found: list[Message] = []
        try:
            self._socket.send(request)
            while True:
                for message in self._receive():
                    if message.sequence != sequence:
                        continue
                    if message.type == NLMSG_DONE:
                        if number := dump_errno(message):
                            raise KernelError(number, "", what)
                        return found
                    if message.type == NLMSG_ERROR:
                        answer = parse_error(message)
                        raise KernelError(answer.errno, answer.text, what)
                    found.append(message)
        except BlockingIOError:
            raise KernelError(errno.ETIMEDOUT, "", what) from None
        except OSError as error:
            raise KernelError(error.errno or 0, "", what) from None

    def _receive(self) -> Iterator[Message]:
        """The next answer; mostly it is there when the request was sent."""
        data = receive_now(self._socket.fileno())
        return messages(self._socket.recv(RECEIVE_SIZE) if data is None else data)


def open_exchange(protocol: int = NETLINK_ROUTE) -> Exchange:
    """In the network namespace of this thread. Raises OSError."""
    return Exchange(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol))


def _sequence_of(request: bytes) -> int:
    sequence: int = _SEQUENCE.unpack_from(request, 8)[0]
    return sequence
