"""The firewall's program in the kernel: one thread commits batches, a monitor notices who else changed the table.

Nothing is written before the first `apply`, so a restart leaves the rules of before in force until all that is wanted is
known; then the whole table is made anew in one transaction, in which sets that are there already and stay are not touched
(`table_found` says why). However large, a batch is written in slices, a turn of the loop
each, and sent as one. Later changes are batches of what differs. A batch the kernel
refuses changes nothing there: the whole table is made anew. Where it is a policy's rules that are refused, everything is
denied in their place, so that no policy keeps another from being enforced. What is refused still is tried again with
growing pauses; the rules of before stay in force, and where there are none, no new connection from or to a pod passes.
Somebody else's change to the table is undone the same way; where rules are gone by it, no new connection from or to a pod
passes until they are back.

Closing leaves the table in place.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from routed.dataplane.firewall import CLOSED, Firewall
from routed.dataplane.sockets import NetlinkSocket, is_overflow, open_nftables
from routed.dataplane.table_found import TableFound
from routed.desired_policy import PolicyBatch
from routed.netlink.messages import Message, messages, parse_error
from routed.netlink.nftables import (
    Batch,
    CounterFound,
    ElementFound,
    RuleFound,
    decode_chain,
    decode_elements,
    decode_rule,
    decode_set,
    dump_chains,
    dump_elements,
    dump_rules,
    dump_sets,
    is_loss,
    table_of_event,
)
from routed.netlink.numbers import NLMSG_DONE, NLMSG_ERROR

Answer = TypeVar("Answer")

#: NFNLGRP_NFTABLES, as a bit of nl_groups.
_EVENTS = 1 << (7 - 1)

#: Seconds before a refused table is tried again, and at most.
RETRY = 1.0
RETRY_MAX = 60.0

#: Seconds the kernel may take for one answer. Making thousands of rules takes some.
_PATIENCE = 60.0

#: Octets of a batch written before the loop has a turn: a few milliseconds' work.
SLICE = 32_000

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


class _Refusal(NamedTuple):
    text: str
    chain: str = ""
    """Whose rules it is that could never be taken."""


__all__ = ["CounterFound", "FirewallKernel"]


class FirewallKernel:
    """See the module's docstring. All methods and callbacks belong to the loop's thread."""

    def __init__(self, firewall: Firewall, problem: Callable[[str], None]) -> None:
        """`problem` hears one sentence when the kernel refuses the rules, and nothing (empty) once it takes them."""
        self._firewall = firewall
        self._tell = problem
        self._problem = ""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="firewall")
        self._waiting: list[PolicyBatch] = []
        self._applied = 0
        """Batches so far."""
        self._in_force = 0
        """How many of them are in force; none while the table must be made anew."""
        self._settled: list[asyncio.Future[None]] = []
        self._running: asyncio.Task[None] | None = None
        self._rebuild = True
        self._replace = False
        """Nothing of what is there may stay."""
        self._gap = False
        """Rules of ours are gone, so until all is written anew nothing new may pass."""
        self._pause = RETRY
        self._closed = False
        self.commits = 0
        self.rebuilds = 0
        self.refusals = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Batches of changes, whole tables, and refusals since start."""
        return self.commits - self.rebuilds, self.rebuilds, self.refusals

    def start(self) -> None:
        """Open the sockets, in the namespace of this thread. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._socket = open_nftables()
        self._monitor = open_nftables(groups=_EVENTS)
        self._asker = open_nftables()
        self._loop.add_reader(self._monitor.fileno(), self._look)

    def close(self) -> None:
        """Stop writing. The table stays."""
        if self._closed:
            return
        self._closed = True
        if self._running is not None:
            self._running.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._loop.remove_reader(self._monitor.fileno())
        for each in (self._socket, self._monitor, self._asker):
            each.close()

    def apply(self, batch: PolicyBatch) -> None:
        """Have a change made; what is applied in one turn of the loop comes into force in order."""
        self._waiting.append(batch)
        self._applied += 1
        self._wake()

    async def settled(self) -> None:
        """Until all that was applied so far is in force. Waits for as long as the kernel refuses it.

        What is applied later is not waited for: where pods come and go all the time, there is no end to it.
        """
        wanted = self._applied
        while self._in_force < wanted:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._settled.append(waiter)
            await waiter

    async def rules(self) -> list[RuleFound]:
        """The table's rules with what they counted, as the kernel has them. Raises OSError."""
        return await self._loop.run_in_executor(self._thread, self._read_rules)

    async def look(self, sets: Collection[str]) -> tuple[list[RuleFound], dict[str, set[ElementFound]]]:
        """The rules, and what is in these sets (see `Firewall.elements_of`), at one time. Raises OSError."""

        def read() -> tuple[list[RuleFound], dict[str, set[ElementFound]]]:
            return self._read_rules(), {name: self._read_elements(name) for name in sets}

        return await self._loop.run_in_executor(self._thread, read)

    # ---- inside

    def _wake(self) -> None:
        if self._running is None and not self._closed:
            self._running = self._loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting or self._rebuild:
                waiting, self._waiting = self._waiting, []
                taken = self._applied
                if self._rebuild:
                    self._rebuild = False
                    for change in waiting:
                        self._firewall.take_in(change)
                    if self._gap:
                        self._gap = False
                        await self._loop.run_in_executor(self._thread, self._commit, [self._firewall.closed()])
                    found = None if self._replace else await self._loop.run_in_executor(self._thread, self._read_table)
                    batches = [await self._written(partial(self._firewall.rebuilding, found=found))]
                    self.rebuilds += 1
                else:
                    batches = [await self._written(partial(self._firewall.changing, change)) for change in waiting]
                refusal = await self._loop.run_in_executor(self._thread, self._commit, batches)
                self.commits += len(batches)
                if refusal is not None:
                    self.refusals += 1
                    self._rebuild = True
                    self._in_force = -1
                    if self._firewall.give_up(refusal.chain, refusal.text):
                        continue
                    if batches[0].is_rebuild and not self._replace:
                        self._replace = True
                    elif batches[0].is_rebuild:
                        instead = await self._loop.run_in_executor(self._thread, self._close_where_nothing_is)
                        self._report(f"the kernel refuses the policy rules, and {instead}: {refusal.text}")
                        await asyncio.sleep(self._pause)
                        self._pause = min(RETRY_MAX, self._pause * 2)
                else:
                    self._report("; ".join(self._firewall.problems))
                    self._pause = RETRY
                    self._replace = False
                    if not self._rebuild:
                        self._in_force = taken
                    waiters, self._settled = self._settled, []
                    for waiter in waiters:
                        if not waiter.done():
                            waiter.set_result(None)
        finally:
            self._running = None

    async def _written(self, steps: Callable[[Batch], Iterator[None]]) -> Batch:
        """A batch, written while the loop has a turn after every few messages."""
        batch = Batch(self._firewall.table)
        written = 0
        for _ in steps(batch):
            if batch.size - written >= SLICE:
                written = batch.size
                await asyncio.sleep(0)
        return batch

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._tell(problem)

    def _close_where_nothing_is(self) -> str:
        """In the thread: where there is no table of ours, one that admits nothing new. What holds now, in words."""
        try:
            there, closed = self._chains_there(), self._firewall.closed()
            if there and there != {CLOSED}:
                return "those of before stay in force"
            refusal = None if there else self._send(closed)
        except OSError as error:
            refusal = _Refusal(os.strerror(error.errno or 0))
        if refusal is not None:
            return f"there are none, nor can pods be cut off ({refusal.text})"
        return "as there are none no new connection from or to a pod passes"

    def _chains_there(self) -> set[str]:
        return {each.name for each in self._read(dump_chains(self._firewall.table, 1), decode_chain)}

    def _read_table(self) -> TableFound | None:
        """In the thread: all that is there but rules; None where it cannot be read."""
        table = self._firewall.table
        try:
            sets = {each.name: each for each in self._read(dump_sets(table, 1), decode_set)}
            return TableFound(
                {each.name: each for each in self._read(dump_chains(table, 1), decode_chain)},
                sets,
                {name: frozenset(self._read_elements(name)) for name in sets},
            )
        except OSError:
            return None

    def _read(self, question: bytes, decode: Callable[[Message, str], Answer | None]) -> list[Answer]:
        """What the kernel answers about the table."""
        self._drain(self._asker)
        self._asker.send(question)
        found: list[Answer] = []
        while True:
            for message in messages(self._wait(self._asker)):
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                decoded = decode(message, self._firewall.table)
                if decoded is not None:
                    found.append(decoded)

    def _commit(self, batches: list[Batch]) -> _Refusal | None:
        """In the thread: send each batch and take its answers. Why one was refused, or None."""
        for batch in (each for made in batches for each in (made, made.cleanup())):
            if batch is None or not len(batch):
                continue
            try:
                refusal = self._send(batch)
            except OSError as error:
                refusal = _Refusal(os.strerror(error.errno or 0))
            if refusal is not None:
                return refusal
        return None

    def _send(self, batch: Batch) -> _Refusal | None:
        self._drain(self._socket)
        self._socket.send(batch.encode())
        refusal: _Refusal | None = None
        answered = 0
        while answered < len(batch):
            for message in messages(self._wait(self._socket)):
                if message.type != NLMSG_ERROR:
                    continue
                answer = parse_error(message)
                if not message.sequence or answer.errno in (errno.ENOBUFS, errno.ENOMEM):
                    return refusal or _Refusal(os.strerror(answer.errno))
                answered += 1
                if answer.errno and refusal is None:
                    chain = batch.about(message.sequence) if answer.errno in _NEVER else ""
                    said = f" ({answer.text})" if answer.text else ""
                    refusal = _Refusal(f"{os.strerror(answer.errno)}{said}", chain)
        return refusal

    def _wait(self, opened: NetlinkSocket) -> bytes:
        while True:
            data = opened.receive()
            if data is not None:
                return data
            if not select.select([opened.fileno()], [], [], _PATIENCE)[0]:
                raise TimeoutError(errno.ETIMEDOUT, "the kernel does not answer")

    def _drain(self, opened: NetlinkSocket) -> None:
        """Forget answers nobody waited for."""
        while opened.receive() is not None:
            pass

    def _read_rules(self) -> list[RuleFound]:
        return self._read(dump_rules(self._firewall.table, 1), decode_rule)

    def _read_elements(self, name: str) -> set[ElementFound]:
        self._drain(self._asker)
        self._asker.send(dump_elements(self._firewall.table, name, 1))
        found: set[ElementFound] = set()
        while True:
            for message in messages(self._wait(self._asker)):
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found |= set(decode_elements(message))

    def _look(self) -> None:
        """Somebody changed some table: ours, and not by us?"""
        try:
            data = self._monitor.receive()
        except OSError as error:
            if not is_overflow(error):
                raise
            self._undo()  # what was missed may have been about us
            return
        others = [
            message
            for message in messages(data or b"")
            if message.port != self._socket.port and table_of_event(message) == self._firewall.table
        ]
        if others:
            self._undo()
            self._gap |= self._rebuild and any(map(is_loss, others))

    def _undo(self) -> None:
        if self.commits:  # else the table is one of before, and nobody's yet
            self._rebuild = True
            self._in_force = -1
            self._wake()
