"""The errors that cross a room's border. Each room maps foreign exceptions to one of these where they enter.

A `RoutedError` always reads as one sentence that tells the person who can act what is wrong and, where it is known,
what to do. A bug is never one of these: it is caught only by the supervisor in `daemon/`.
"""

from __future__ import annotations

import os  # strerror only: the C library's words for an errno


class RoutedError(Exception):
    """Base of everything routed raises on purpose."""


class ConfigError(RoutedError):
    """The user's configuration or a resource is wrong. `path` is where: a file, `file:line`, or a field like `spec.peerIP`.

    At start: exit status 78 (EX_CONFIG). On reload: refused, the old state stays.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class PeerError(RoutedError):
    """A peer broke the protocol; becomes a NOTIFICATION with this code, subcode and data (RFC 4271 section 6)."""

    def __init__(self, code: int, subcode: int, data: bytes = b"", message: str = "") -> None:
        super().__init__(message or f"protocol error {code}/{subcode}")
        self.code = code
        self.subcode = subcode
        self.data = data
        self.message = message


class StoreError(RoutedError):
    """The datastore refused or could not be reached."""


class Unavailable(StoreError):
    """No member of the datastore answers, or none that has a leader. Worth trying again."""


class Compacted(StoreError):
    """The datastore has forgotten the revision asked for. List again."""


class Denied(StoreError):
    """The datastore does not let us: wrong user, password, role or certificate."""


class KernelError(RoutedError):
    """The kernel refused `what`. `errno` is positive; `extack` is the kernel's own sentence, often empty."""

    def __init__(self, errno: int, extack: str, what: str) -> None:
        text = os.strerror(errno) if errno else "error"
        super().__init__(f"{what}: {text}" + (f" ({extack})" if extack else ""))
        self.errno = errno
        self.extack = extack
        self.what = what


class ControlError(RoutedError):
    """A request on the control socket could not be answered; the text is for the person who asked."""


class CniError(RoutedError):
    """A CNI call failed. `code` is the specification's (1 to 99) or ours (100 and up); `details` is for people."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
