"""A task that goes on until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine


class Background:
    """One at most, of one owner. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """It was started, and not stopped since."""
        return self._task is not None

    def start(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    async def stop(self) -> None:
        """Returns once it has ended; none that runs is no error."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
