"""What the core asks of the world, as values. The daemon carries them out in order; the recorder writes them down."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from routed.desired import RouteBatch
from routed.net.families import Family


class Level(enum.StrEnum):
    """How loud a log line is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a TCP connection; answered by `connected` or `connect_failed` with the same `conn`."""

    conn: int
    remote: bytes
    port: int
    local: bytes
    """Packed source address; empty leaves the choice to the kernel."""
    interface: str
    """Scope of a link-local remote address, else empty."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close a connection after writing what `take` still gives for it. No `closed` is expected."""

    conn: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Accept connections on this port, on all local addresses of both families."""

    port: int


@dataclass(frozen=True, slots=True)
class Routes:
    """Changes of what the kernel should hold, in order."""

    batches: tuple[RouteBatch, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove our routes of these families that were found at start and that nobody asked for since."""

    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """One line for people."""

    level: Level
    subject: str
    """What it is about: a peer's name, `plan`, `core`."""
    text: str


Effect = Connect | Close | Listen | Routes | Sweep | Log
