"""What a process wrote into a folder of resource files, between who writes and who follows: it need not be parsed again.

Invariant: what is handed over is only believed where the file says exactly that (`folder` compares), so it may be lost, late
or outdated. Whoever has compared tells the writer, who need not read a file before it goes then. Used from any thread.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from routed.model.resources import Resource


class OwnFile(NamedTuple):
    """A file of one resource."""

    data: bytes
    resource: Resource


class OwnFiles:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: dict[str, OwnFile | None] = {}
        self._compared: dict[str, tuple[int, ...]] = {}
        """What is there, by name: its signature once it was seen to say what was written, when no change could hide."""

    def wrote(self, name: str, file: OwnFile | None) -> None:
        """A file says this now, or (None) is gone."""
        with self._lock:
            self._news[name] = file
            if file is None:
                self._compared.pop(name, None)
            else:
                self._compared[name] = ()

    def take(self) -> dict[str, OwnFile | None]:
        """What was written since this was last asked."""
        with self._lock:
            taken, self._news = self._news, {}
        return taken

    def compared(self, name: str, signature: tuple[int, ...]) -> None:
        """With this signature, a file says what was written: any change since then shows in it."""
        with self._lock:
            if name in self._compared:
                self._compared[name] = signature

    def is_as_written(self, name: str, signature: tuple[int, ...] | None) -> bool:
        """Whether a file that still has this signature says what was written into it last."""
        return signature is not None and self._compared.get(name) == signature
