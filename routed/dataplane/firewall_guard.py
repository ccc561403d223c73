"""Hears who else changes the firewall's table, and closes it before anything else is done.

The kernel tells of a change piece by piece, of a table that is flushed by thousands of messages. With the first that packets
may feel a small batch goes out, of chains that admit no new connection from or to a pod, or at a host endpoint but by
failsafe ports (`Firewall.closed`), by a socket and a thread that do nothing else: who writes or reads a large table is not
waited for. What is told later of changes that were made before is left aside: all is made anew anyway, and whoever does that
waits until what closes is there (`done`), for it takes the chains away again.

Invariants: a change that packets may feel and that comes after the kernel took what closes closes once more. The order is
the kernel's: its own word about what closes lies in the same stream. Of a table that is not ours yet only a loss closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import ParamSpec

from routed.dataplane.firewall import Firewall
from routed.dataplane.sockets import is_overflow, open_nftables
from routed.dataplane.table_socket import TableSocket
from routed.netlink.messages import messages
from routed.netlink.nftables import Batch, concerns_packets, decode_rule, dump_rules, is_loss, table_of_event

Given = ParamSpec("Given")

#: NFNLGRP_NFTABLES, as a bit of nl_groups.
_EVENTS = 1 << (7 - 1)

_PORT = slice(12, 16)
_PORT_ID = struct.Struct("=I")
"""nlmsg_pid, of the first message of a datagram."""

#: Datagrams of notifications read before the loop has a turn: some 10 ms, if all are of somebody else.
_AT_ONCE = 256

#: Seconds the loop stands still for what closes. The kernel takes 2 ms, or as long as another's change of its rules.
_PATIENCE = 0.05


class FirewallGuard:
    """See the module's docstring. Belongs to the loop's thread."""

    def __init__(self, firewall: Firewall, writer: int, changed: Callable[..., bool]) -> None:
        """Begin, in the network namespace of this thread. `writer` is the port whose changes are our own; `changed` hears
        of others', with `lost` true if packets may feel them, and says whether the table is ours. Raises OSError."""
        self._firewall = firewall
        self._ours = _PORT_ID.pack(writer)
        self._changed = changed
        self._monitor = open_nftables(groups=_EVENTS)
        self._socket = TableSocket(firewall.table)
        self._own = _PORT_ID.pack(self._socket.port)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="firewall-guard")
        self._closing: Future[None] | None = None
        self._unheard = False
        """The kernel has not yet told of what closes: what it tells was before."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._monitor.fileno(), self._look)

    def close(self) -> None:
        """Hear and do nothing any more."""
        self._loop.remove_reader(self._monitor.fileno())
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._monitor.close()
        self._socket.close()

    async def done(self) -> None:
        """Until what closes is there."""
        while self._closing is not None and not self._closing.done():
            await asyncio.wait((asyncio.wrap_future(self._closing),))

    def _look(self) -> None:
        """Somebody changed some table: ours, and not by us?"""
        try:
            for _ in range(_AT_ONCE):
                data = self._monitor.receive()
                if data is None or self._hear(data):
                    return
        except OSError as error:
            if not is_overflow(error):
                raise
            self._unheard = False
            self._changed(lost=True)  # what was missed may have been about us
            self._do(self._close_where_rules_went, self._firewall.base_rules, self._firewall.closed())

    def _hear(self, data: bytes) -> bool:
        """Whether it closed. What the kernel tells in one datagram is by one change."""
        port = data[_PORT]
        if port == self._own:
            self._unheard = False
        if self._unheard or port in (self._own, self._ours):
            return False
        for message in messages(data):
            if table_of_event(message) == self._firewall.table:
                concerned = concerns_packets(message)
                if (self._changed(lost=concerned) and concerned) or is_loss(message):
                    self._unheard = True
                    self._do(self._close, self._firewall.closed())
                    return True
        return False

    def _do(self, work: Callable[Given, None], *given: Given.args, **named: Given.kwargs) -> None:
        self._closing = self._thread.submit(work, *given, **named)
        wait((self._closing,), _PATIENCE)

    def _close(self, batch: Batch) -> None:
        """In the thread."""
        if any(self._socket.commit(each) for each in batch.changes):
            self._unheard = False  # the kernel has nothing to tell of it

    def _close_where_rules_went(self, base: Mapping[str, tuple[bytes, ...]], batch: Batch) -> None:
        """In the thread: nobody has said whether rules of ours are gone."""
        with contextlib.suppress(OSError):
            for chain, rules in base.items():
                question = dump_rules(self._firewall.table, 1, chain)
                if rules and len(self._socket.read(question, decode_rule)) < len(rules):
                    self._close(batch)
                    return
