"""A unix socket of the daemon's at a path: taken from nobody who still listens there, and removed only by who made it.

Not here: what is said on it (`protocol`, `cni.protocol`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from routed.errors import ConfigError


class Listening:
    """A socket that listens at a path until `close`."""

    def __init__(self, path: str, kind: socket.SocketKind, mode: int, backlog: int, setting: str) -> None:
        """`mode` is that of the file; `setting` the one that says where it is. What a daemon that is gone left is replaced.

        Raises ConfigError: somebody listens there, something else has the name, no permission.
        """
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        old = os.umask(0o777 & ~mode)
        try:
            try:
                self.socket.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_left_over(path, kind, setting)
                self.socket.bind(path)
            self.socket.listen(backlog)
            self._inode = os.stat(path).st_ino
        except OSError as error:
            self.socket.close()
            text = "its path is too long for a socket (107 octets at most)" if error.errno is None else error.strerror
            raise ConfigError(path, f"{setting}: cannot listen there: {text}") from None
        except ConfigError:
            self.socket.close()
            raise
        finally:
            os.umask(old)

    @property
    def is_there(self) -> bool:
        """The path still leads here."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Also from its folder, if it is still ours there."""
        self.socket.close()
        if self.is_there:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def _remove_left_over(path: str, kind: socket.SocketKind, setting: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ConfigError(path, f"{setting}: cannot listen there: a file that is no socket has this name")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, with a full queue
    raise ConfigError(
        path, f"another routed is running with this {setting}; stop it, or give this one a {setting} of its own"
    )
