"""Batches for a table, questions about it, and the kernel's answers: one socket to nf_tables that waits for them.

Invariants: belongs to one thread at a time, which it blocks, and for long where a whole table is made. What comes late for
something given up is left aside.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from routed.dataplane.sockets import open_nftables
from routed.netlink.messages import Message, messages, parse_error
from routed.netlink.nftables import Batch, ElementFound, decode_elements, decode_table, dump_elements, get_table
from routed.netlink.numbers import NLMSG_DONE, NLMSG_ERROR

Answer = TypeVar("Answer")

#: Seconds the kernel may take for one answer. Making thousands of rules takes some.
_PATIENCE = 60.0

#: What the kernel says of a message it could never take, and not of one it can't take now.
_NEVER = (
    errno.EINVAL,
    errno.ERANGE,
    errno.EOVERFLOW,
    errno.E2BIG,
    errno.EMSGSIZE,
    errno.ENAMETOOLONG,
    errno.EOPNOTSUPP,
)


class Refusal(NamedTuple):
    """Why the kernel did not take a batch."""

    text: str
    subject: str = ""
    """What it is about that could never be taken."""


class TableSocket:
    """See the module's docstring."""

    def __init__(self, table: str) -> None:
        """In the network namespace of this thread. Raises OSError."""
        self.table = table
        self._socket = open_nftables()
        self.port = self._socket.port
        """Of whom the kernel says that a change is by it."""

    def close(self) -> None:
        self._socket.close()

    def is_there(self) -> bool:
        """Whether the kernel has the table, by whomever. Raises OSError."""
        return bool(self.read(get_table(self.table, 1), decode_table))

    def commit(self, batch: Batch) -> Refusal | None:
        """Have the kernel take a batch. Why it did not, or None."""
        try:
            return self._send(batch)
        except OSError as error:
            return Refusal(os.strerror(error.errno or 0))

    def read(self, question: bytes, decode: Callable[[Message, str], Answer | None]) -> list[Answer]:
        """What the kernel answers about the table. Raises OSError."""
        found: list[Answer] = []
        for message in self._asked(question):
            decoded = decode(message, self.table)
            if decoded is not None:
                found.append(decoded)
        return found

    def read_elements(self, name: str) -> set[ElementFound]:
        """What is in a set. Raises OSError."""
        return {
            each for message in self._asked(dump_elements(self.table, name, 1)) for each in decode_elements(message)
        }

    def _asked(self, question: bytes) -> Iterator[Message]:
        self._drain()
        self._socket.send(question)
        while True:
            for message in messages(self._wait()):
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    return
                yield message

    def _send(self, batch: Batch) -> Refusal | None:
        self._drain()
        self._socket.send(batch.encode())
        refusal: Refusal | None = None
        while True:
            for message in messages(self._wait()):
                if message.type != NLMSG_ERROR:
                    continue
                answer = parse_error(message)
                if not message.sequence or answer.errno in (errno.ENOBUFS, errno.ENOMEM):
                    return refusal or Refusal(os.strerror(answer.errno))
                if answer.errno and refusal is None:
                    subject = batch.about(message.sequence) if answer.errno in _NEVER else ""
                    said = f" ({answer.text})" if answer.text else ""
                    refusal = Refusal(f"{os.strerror(answer.errno)}{said}", subject)
                if message.sequence == len(batch):
                    return refusal

    def _wait(self) -> bytes:
        while True:
            data = self._socket.receive()
            if data is not None:
                return data
            if not select.select([self._socket.fileno()], [], [], _PATIENCE)[0]:
                raise TimeoutError(errno.ETIMEDOUT, "the kernel does not answer")

    def _drain(self) -> None:
        """Forget answers nobody waited for."""
        while self._socket.receive() is not None:
            pass
