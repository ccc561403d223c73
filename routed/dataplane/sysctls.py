"""Files below /proc/sys/net of one network namespace, that of the thread that opens this.

They are found from descriptors of their folders. By their full names the kernel would look at the `net` of every namespace
anybody ever asked for: on a node with hundreds of pods that takes longer than all else of a small file.
"""

from __future__ import annotations

import contextlib
import os

ROOT = "/proc/sys/net"
_FOLDERS = ("ipv4/conf", "ipv6/conf", "ipv4/neigh")


class Sysctls:
    """See the module's docstring. Paths are of a folder of _FOLDERS, an interface, and a setting."""

    def __init__(self, root: str = ROOT) -> None:
        self._folders: dict[str, int] = {}
        for name in _FOLDERS:
            with contextlib.suppress(FileNotFoundError):  # a kernel may be without IPv6
                self._folders[name] = os.open(os.path.join(root, name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        for each in self._folders.values():
            os.close(each)
        self._folders.clear()

    def have(self, folder: str) -> bool:
        """The kernel has settings of this kind."""
        return folder in self._folders

    def read(self, path: str) -> str:
        """Raises OSError."""
        file = self._open(path, os.O_RDONLY)
        try:
            return os.read(file, 64).decode("ascii", "replace").strip()
        finally:
            os.close(file)

    def set(self, path: str, value: str) -> None:
        """Raises OSError.

        One that says so already is not written: of some the kernel makes a change of all interfaces, one after the other.
        """
        file = self._open(path, os.O_RDWR)
        try:
            if os.read(file, 64).strip() != value.encode():
                os.pwrite(file, value.encode(), 0)
        finally:
            os.close(file)

    def _open(self, path: str, flags: int) -> int:
        name = next(each for each in _FOLDERS if path.startswith(f"{each}/"))
        folder = self._folders.get(name)
        if folder is None:
            raise FileNotFoundError(path)
        return os.open(path[len(name) + 1 :], flags | os.O_CLOEXEC, dir_fd=folder)
