"""Keeps this node's tunnel devices what the core wants: at once when that changes, and every RESYNC seconds against others.

The kernel is asked on a thread. What it refuses is tried again, and told until it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

from routed.core.effects import Level, problem_lines
from routed.daemon.background import Background
from routed.dataplane.tunnels import KINDS, DeviceState, TunnelKernel, tell
from routed.desired import Tunnel
from routed.observed import Interface

#: Seconds between two looks at devices nobody touched, and before what failed is tried again.
RESYNC = 30.0
RETRY = 2.0


class TunnelKeeper:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
        guarded: Callable[[], Awaitable[None]],
    ) -> None:
        """No device is made before `guarded` answers: from then on rules let in only packets of other nodes. Raises OSError
        where there is no netlink."""
        self._kernel = TunnelKernel()
        self._log = log
        self._bug = bug
        self._guarded = guarded
        self._wanted: tuple[Tunnel, ...] | None = None
        self._synced = False
        self._there: dict[str, tuple[int, bool]] = {}
        self._due = asyncio.Event()
        self._settled = asyncio.Event()
        self._work = Background()
        self.states: tuple[DeviceState, ...] = ()
        """The devices as they were made last."""
        self.problems: tuple[str, ...] = ()

    def start(self) -> None:
        self._work.start(self._run())

    async def stop(self) -> None:
        """The devices stay."""
        await self._work.stop()
        self._kernel.close()

    def apply(self, tunnels: tuple[Tunnel, ...]) -> None:
        """All there should be. Before the first call nothing is touched."""
        self._wanted = tunnels
        self._settled.clear()
        self._due.set()

    def in_sync(self) -> None:
        """The datastore was read. Before that a device stays that nobody asks for: it may be younger than what was saved."""
        if not self._synced:
            self._synced = True
            self._settled.clear()
            self._due.set()

    def interfaces(self, interfaces: Mapping[int, Interface]) -> None:
        """What the kernel has: somebody may have taken a device away."""
        there = {each.name: (each.index, each.up) for each in interfaces.values() if each.name in KINDS}
        if there != self._there:
            self._there = there
            self._due.set()

    def look(self) -> None:
        """The devices' MTUs follow others'."""
        self._due.set()

    @property
    def reached(self) -> tuple[tuple[str, int], ...]:
        """How many nodes each device that is there reaches."""
        return tuple((state.tunnel.device, len(state.tunnel.peers)) for state in self.states)

    async def settled(self) -> None:
        """Until what was applied last is in the kernel, or was refused."""
        if self._wanted is not None:
            await self._settled.wait()

    async def _run(self) -> None:
        guarded = False
        while True:
            pause = RETRY if self.problems else RESYNC
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._due.wait()
            self._due.clear()
            wanted, synced = self._wanted, self._synced
            if wanted is None:
                continue
            if wanted and not guarded:
                await self._guarded()
                guarded = True
                self._due.set()
                continue
            try:
                states, problems = await asyncio.shield(asyncio.to_thread(self._kernel.make, wanted, remove=synced))
            except Exception as error:
                self._bug("the tunnel devices", error)
                states, problems = [], ["the tunnel devices: an internal error; the log has it"]
            self._report(tuple(states), tuple(problems))
            if wanted is self._wanted and synced is self._synced:
                self._settled.set()

    def _report(self, states: tuple[DeviceState, ...], problems: tuple[str, ...]) -> None:
        if states != self.states:
            self.states = states
            self._log(Level.INFO, "tunnels", tell(states) or "no tunnel device")
        for level, line in problem_lines(self.problems, problems, Level.ERROR):
            self._log(level, "tunnels", line)
        self.problems = problems
