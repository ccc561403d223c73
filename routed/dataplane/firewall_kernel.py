"""The firewall's program in the kernel: one thread commits batches; where somebody else changes the table it is made anew.

Nothing is written before the first `apply`, so a restart leaves the rules of before in force until all that is wanted is
known; then the whole table is made anew in one transaction, in which sets that are there already and stay are not touched
(`table_found` says why). However large, a batch is written in slices, a turn of the loop each, and sent as one. Later
changes are batches of what differs. A batch the kernel refuses changes nothing there: the whole table is made anew. Where it
is a policy's rules that are refused, everything is denied in their place, so that no policy keeps another from being
enforced. What is refused still is tried again with growing pauses; the rules of before stay in force, and where there are
none, no new connection from or to a pod passes, and host endpoints are open, so that somebody can get in. Somebody else's
change to the table is undone the same way; meanwhile no new connection from or to a pod passes, nor at a host endpoint but
by failsafe ports (`firewall_guard`).

Closing leaves the table in place.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_guard import FirewallGuard
from routed.dataplane.firewall_layout import CLOSED, CLOSED_HOSTS
from routed.dataplane.table_found import TableFound
from routed.dataplane.table_socket import Refusal, TableSocket
from routed.desired_policy import PolicyBatch
from routed.netlink.nftables import (
    Batch,
    ElementFound,
    RuleFound,
    decode_chain,
    decode_rule,
    decode_set,
    dump_chains,
    dump_rules,
    dump_sets,
)

#: Seconds before a refused table is tried again, and at most.
RETRY = 1.0
RETRY_MAX = 60.0

#: Octets of a batch written before the loop has a turn: a few milliseconds' work.
SLICE = 32_000


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
        self._lost = False
        """Rules of ours went since a table began to be written: what is written may not fit any more."""
        self._pause = RETRY
        self._closed = False
        self._is_ours = False
        """The table is no longer one of before: something of ours was sent."""
        self.commits = 0
        self.rebuilds = 0
        self.refusals = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Batches of changes and whole tables the kernel took, and refusals since start."""
        return self.commits - self.rebuilds, self.rebuilds, self.refusals

    def start(self) -> None:
        """Open the sockets, in the namespace of this thread. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        table = self._firewall.table
        self._writer, self._reader = TableSocket(table), TableSocket(table)
        self._guard = FirewallGuard(self._firewall, self._writer.port, self._undo)

    def close(self) -> None:
        """Stop writing. The table stays."""
        if self._closed:
            return
        self._closed = True
        if self._running is not None:
            self._running.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for each in (self._guard, self._writer, self._reader):
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

    async def is_there(self) -> bool:
        """Whether the kernel has a table of ours, of whatever time, that is more than the closed one."""
        try:
            return not await self._loop.run_in_executor(self._thread, self._chains_there) <= CLOSED
        except OSError:
            return False

    async def rules(self) -> list[RuleFound]:
        """The table's rules with what they counted, as the kernel has them. Raises OSError."""
        return await self._loop.run_in_executor(self._thread, self._read_rules)

    async def look(self, sets: Collection[str]) -> tuple[list[RuleFound], dict[str, set[ElementFound]]]:
        """The rules, and what is in these sets (see `Firewall.elements_of`), at one time. Raises OSError."""

        def read() -> tuple[list[RuleFound], dict[str, set[ElementFound]]]:
            return self._read_rules(), {name: self._reader.read_elements(name) for name in sets}

        return await self._loop.run_in_executor(self._thread, read)

    # ---- inside

    def _wake(self) -> None:
        if self._running is None and not self._closed:
            self._running = self._loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting or self._rebuild:
                waiting, self._waiting = self._waiting, []
                applied = self._applied
                if self._rebuild:
                    await self._guard.done()
                    self._rebuild = self._lost = False
                    for change in waiting:
                        self._firewall.take_in(change)
                    found = None if self._replace else await self._loop.run_in_executor(self._thread, self._read_table)
                    batches = [await self._written(partial(self._firewall.rebuilding, found=found))]
                    if self._lost:
                        continue  # the rest of it was not written
                else:
                    batches = [await self._written(partial(self._firewall.changing, change)) for change in waiting]
                self._is_ours = True
                taken, refusal = await self._loop.run_in_executor(self._thread, self._commit, batches)
                self.commits += taken
                self.rebuilds += taken if batches[0].is_rebuild else 0
                if refusal is not None:
                    self.refusals += 1
                    self._rebuild = True
                    self._in_force = -1
                    if self._firewall.give_up(refusal.subject, refusal.text):
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
                        self._in_force = applied
                    waiters, self._settled = self._settled, []
                    for waiter in waiters:
                        if not waiter.done():
                            waiter.set_result(None)
        finally:
            self._running = None

    async def _written(self, steps: Callable[[Batch], Iterator[None]]) -> Batch:
        """A batch, written while the loop has a turn after every few messages. Of a whole table it is no more than the
        beginning where rules went meanwhile."""
        batch = Batch(self._firewall.table)
        written = 0
        for _ in steps(batch):
            if batch.size - written >= SLICE:
                written = batch.size
                await asyncio.sleep(0)
                if self._lost and batch.is_rebuild:
                    break
        return batch

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._tell(problem)

    def _close_where_nothing_is(self) -> str:
        """In the thread: where there is no table of ours, one that admits nothing new from or to pods. Host endpoints are
        left to the rules of before, or open. What holds now, in words."""
        closing = self._firewall.closed(hosts=False)
        try:
            there = self._chains_there()
        except OSError as error:
            return f"nobody can tell what there is ({os.strerror(error.errno or 0)})"
        opening = Batch(self._firewall.table)
        for chain in sorted(there & CLOSED_HOSTS):
            opening.flush_chain(chain)
            opening.delete_chain(chain)
        _, refusal = self._commit([opening])
        if refusal is not None:
            return f"host endpoints stay closed but for failsafe ports ({refusal.text})"
        if not there <= CLOSED:
            return "those of before stay in force"
        _, refusal = self._commit([] if there - CLOSED_HOSTS else [closing])
        if refusal is not None:
            return f"there are none, nor can pods be cut off ({refusal.text})"
        return "as there are none no new connection from or to a pod passes"

    def _chains_there(self) -> set[str]:
        return {each.name for each in self._reader.read(dump_chains(self._firewall.table, 1), decode_chain)}

    def _read_table(self) -> TableFound | None:
        """In the thread: all that is there but rules; None where it cannot be read."""
        table = self._firewall.table
        try:
            sets = {each.name: each for each in self._reader.read(dump_sets(table, 1), decode_set)}
            return TableFound(
                {each.name: each for each in self._reader.read(dump_chains(table, 1), decode_chain)},
                sets,
                {name: frozenset(self._reader.read_elements(name)) for name in sets},
            )
        except OSError:
            return None

    def _commit(self, batches: list[Batch]) -> tuple[int, Refusal | None]:
        """In the thread: send each batch. How many the kernel took, and why not the next, or None."""
        for number, batch in enumerate(batches):
            for change in batch.changes:
                refusal = self._writer.commit(change)
                if refusal is not None:
                    return number, refusal
        return len(batches), None

    def _read_rules(self) -> list[RuleFound]:
        return self._reader.read(dump_rules(self._firewall.table, 1), decode_rule)

    def _undo(self, *, lost: bool = False) -> bool:
        """Have the table made anew, as somebody else changed it; `lost` if packets may feel it. Whether it is ours."""
        self._lost |= lost
        if not self._is_ours:
            return False
        self._rebuild = True
        self._in_force = -1
        self._wake()
        return True
