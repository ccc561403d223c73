"""The file datastore: a folder watched by looking at it, every 0.3 s, in a thread.

Looking was chosen over inotify: it sees through symlinks (Kubernetes flips `..data` two links away from the files),
over every file system, and when the folder itself is swapped, with nothing to re-arm and no queue to overflow. One
`stat` for each of 1,000 files costs about 6 ms of a thread; nothing is read unless it changed. After a change the next
look follows within 0.1 s, so a change is applied about 0.4 s after its last write and always within one second.

Invariants: the sink is only called on the loop's thread, and never for long at a stretch; reading and parsing happen in
a worker thread. The first snapshot is complete before `in_sync`. What a look believes is `folder`'s business.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from routed.datastore.folder import Folder, Look, Problem
from routed.datastore.health import StoreHealth
from routed.datastore.own_files import OwnFiles
from routed.errors import StoreError
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.workloads import WorkloadEndpoint

__all__ = ["FileStore", "Problem", "Sink", "load_folder"]

#: Seconds between looks, and before the second look at something that just changed.
INTERVAL = 0.3
SETTLE = 0.1
#: Seconds the sink may be fed before the loop gets a turn.
_SLICE = 0.01


class Sink(Protocol):
    """Who is told. Called on the loop's thread."""

    def update(self, update: Update) -> None:
        """A resource is new, changed or gone."""

    def in_sync(self) -> None:
        """The first snapshot is complete. Called once."""

    def problems(self, problems: tuple[Problem, ...]) -> None:
        """The open problems changed; these are all of them."""


class FileStore:
    """A folder of resource files, as a stream of updates."""

    def __init__(self, path: str | os.PathLike[str], kept: str = "") -> None:
        """`kept`: see `Folder`."""
        self.path = os.fspath(path)
        self._kept = kept
        self.own = OwnFiles()
        """Where who writes into the folder says so."""
        self.health = StoreHealth("file")
        self.when_vanished: Callable[[list[Resource], Mapping[ResourceKey, Resource]], None] | None = None
        """Who hears of endpoints that are gone, with all there was before they went, before anybody is told of it."""

    async def run(self, sink: Sink) -> None:
        """Feed the sink until cancelled. Raises StoreError where the folder cannot be read at the start."""
        folder = Folder(self.path, self._kept, self.own)
        try:
            look = await asyncio.to_thread(folder.look)
        except StoreError as error:
            self._note(str(error))
            raise
        problems = await self._deliver(look, sink, ())
        sink.in_sync()
        self.health.readings += 1
        self._note(look.unreadable)
        while True:
            await asyncio.sleep(SETTLE if look.unsettled else INTERVAL)
            look = await asyncio.to_thread(folder.look)
            self.health.changes += len(look.updates)
            self._tell_vanished(look)
            problems = await self._deliver(look, sink, problems)
            self._note(look.unreadable)

    def _note(self, problem: str) -> None:
        """A look is over; `problem` is why it did not see the folder, or empty."""
        health = self.health
        if problem and problem != health.problem:
            health.failures += 1
        health.connected, health.problem = not problem, problem
        if not problem:
            health.as_of = time.time()

    def _tell_vanished(self, look: Look) -> None:
        if self.when_vanished is None:
            return
        gone = [
            look.before[update.key]
            for update in look.updates
            if update.value is None and update.key.kind == WorkloadEndpoint.kind
        ]
        if gone:
            self.when_vanished(gone, look.before)

    async def _deliver(self, look: Look, sink: Sink, known: tuple[Problem, ...]) -> tuple[Problem, ...]:
        loop = asyncio.get_running_loop()
        until = loop.time() + _SLICE
        for update in look.updates:
            sink.update(update)
            if loop.time() > until:
                await asyncio.sleep(0)
                until = loop.time() + _SLICE
        if look.problems != known:
            sink.problems(look.problems)
        return look.problems


def load_folder(path: str | os.PathLike[str]) -> tuple[list[Resource], list[Problem]]:
    """The resources in a folder now, sorted by key, and what is wrong there. Raises StoreError as `FileStore.run`."""
    folder = Folder(os.fspath(path))
    look = folder.look()
    return [update.value for update in look.updates if update.value is not None], list(look.problems)
