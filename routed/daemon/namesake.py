"""Two machines with one node name: the second is told, and takes no pods while the first runs.

What a node has in the datastore goes by its name. A second machine that is called the same (a cloned image, two hosts of one
name) would give out addresses of the first one's blocks, which lead to the first, and to its container runtime all pods of
the first are garbage. So whoever takes pods says in etcd which machine it is, under its node's name, anew in time.

Which machine it is: the boot and the network namespace, so that a daemon that is started again, for whatever reason, goes
on at once. After a boot, or where the daemon is in a container that was made anew, what the one before said is waited for,
`TTL` at most. A daemon that ends does not take it back: the second would be the node before the first is started again.

Invariants: where etcd cannot be asked, nobody is kept from anything that was not kept from it before. A folder of files is
one node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from routed.core.effects import Level, problem_lines
from routed.daemon.background import Background
from routed.datastore.editing import FolderStore
from routed.errors import StoreError

if TYPE_CHECKING:  # gRPC is imported by who needs it: see `datastores`
    from routed.datastore.etcd import EtcdStore

#: Seconds a machine that died is waited for; it says that it runs three times in that.
TTL = 60.0
#: Seconds between two questions while there are two, or where etcd did not answer.
_AGAIN = 5.0
_BOOT = "/proc/sys/kernel/random/boot_id"


def this_machine() -> str:
    """What tells it from all others while it runs, with its name for people."""
    try:
        with open(_BOOT, encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/net').st_ino}"


class Namesake:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        store: EtcdStore | FolderStore,
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        self._node_name = node_name
        self._log = log
        self._bug = bug
        self.problems: tuple[str, ...] = ()
        self.why_not = ""
        """Why this machine takes no pods now; empty where it may."""
        self.asks = False
        """Etcd has not answered yet."""
        self._work = Background()
        self._own = self._other = None
        if not isinstance(store, FolderStore):
            run = this_machine()
            self._own = store.lease(f"runs/{node_name}", node_name, run)
            self._other = store.lease(f"runs-too/{node_name}", node_name, run)
            self.why_not = "it is not known yet whether another machine runs as this node; try again"
            self.asks = True

    def start(self) -> None:
        if self._own is not None:
            self._work.start(self._run())

    async def stop(self) -> None:
        """See the module's docstring. That the second one runs too is over."""
        await self._work.stop()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(1):
                if self._other is not None:
                    await self._other.give_up()

    # ---- inside

    async def _run(self) -> None:
        while True:
            pause = _AGAIN
            try:
                pause = await self._look()
            except StoreError:  # whoever asks the datastore for anything says so
                pass
            except Exception as error:
                self._bug("looking for another machine of this name", error)
            if self.asks and not self.problems:
                self.why_not = ""
            self.asks = False
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """Seconds until the next."""
        assert self._own is not None and self._other is not None
        if await self._own.take(TTL):
            await self._other.give_up()
            other = await self._other.holder()
            self.why_not = ""
            self._tell(
                f"{_name(other)} runs as node {self._node_name} too, and takes no pods while this machine does: give it "
                f"another nodeName"
                if other
                else ""
            )
            return TTL / 3 if not other else _AGAIN
        other = await self._own.holder()
        if not other:  # it has just gone
            return 0.0
        await self._other.take(TTL)
        self.why_not = (
            f"{_name(other)} runs as node {self._node_name}, so this machine takes no pods: give one of the two another "
            f"nodeName, or wait {TTL:g} s at most where it is this machine before it was started anew"
        )
        self._tell(self.why_not)
        return _AGAIN

    def _tell(self, problem: str) -> None:
        problems = (problem,) if problem else ()
        for level, line in problem_lines(self.problems, problems, Level.ERROR):
            self._log(level, "node", line)
        self.problems = problems


def _name(run: str) -> str:
    name = run.partition(" ")[0]
    return f"a machine named {json.dumps(name)}" if name else "another machine"
