"""Files that nobody needs any more, kept to be written again.

A file system finds room for a new file by looking at what went in the last minutes (ext4 gives nothing out again that was
deleted within 1 to 5 minutes, and looks at each of these, every time): where hundreds come and go in a second, making a file
takes several times as long as all else that is done with it. So a file that is done with gets a name in a hidden folder, and
the next one that is made is that file with other contents.

Invariants: only a file that is as this process wrote it is kept. It is written again only once it is on disk that its old
name does not mean it any more (`settled`), so that no crash shows one thing's contents under the name of another; and only
where it has no other name and nobody else has it open. There are `LIMIT` at most; those of a run that was killed go when the
next one keeps its first. Used by who holds the lock of the folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
from collections import deque

from routed.datastore.files import is_open_elsewhere

FOLDER_NAME = ".routed.spare"
LIMIT = 128


class Spares:
    """See the module's docstring."""

    def __init__(self, folder: str) -> None:
        self._room = os.path.join(folder, FOLDER_NAME)
        self._names = itertools.count()
        self._made = False
        self._usable: deque[str] = deque()
        self._unsettled: list[str] = []

    @property
    def unsettled(self) -> bool:
        """Some wait for the folder to be on disk."""
        return bool(self._unsettled)

    def settled(self) -> None:
        """The folder is on disk as it was when the last one was kept."""
        self._usable.extend(self._unsettled)
        self._unsettled.clear()

    def keep(self, path: str) -> bool:
        """Take a file from its place. False: it is still there."""
        name = self._name()
        if not name:
            return False
        try:
            os.rename(path, name)
        except OSError:
            return False
        self._unsettled.append(name)
        return True

    def name_too(self, path: str) -> str:
        """Name a file that is about to be replaced; what to tell `replaced`, or empty."""
        name = self._name()
        try:
            if name:
                os.link(path, name)
        except OSError:
            return ""
        return name

    def replaced(self, name: str, *, done: bool) -> None:
        """The file that was named so has lost its old name, or has not."""
        if done:
            self._unsettled.append(name)
        else:
            with contextlib.suppress(OSError):
                os.unlink(name)

    def take(self) -> tuple[int, str] | None:
        """A file to be written from its beginning, open, and its name; None where there is none."""
        while self._usable:
            name = self._usable.popleft()
            try:
                file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not is_open_elsewhere(file):
                return file, name
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(name)
        return None

    def close(self) -> None:
        """Give them back."""
        if self._made:
            shutil.rmtree(self._room, ignore_errors=True)
        self._made = False
        self._usable.clear()
        self._unsettled.clear()

    def _name(self) -> str:
        """For one more; empty where there are enough, or cannot be."""
        if len(self._usable) + len(self._unsettled) >= LIMIT:
            return ""
        if not self._made:
            shutil.rmtree(self._room, ignore_errors=True)
            try:
                os.mkdir(self._room, mode=0o700)
            except OSError:
                return ""
            self._made = True
        return os.path.join(self._room, str(next(self._names)))
