"""What the core asks of the world, as values. The daemon carries them out in order; the recorder writes them down."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator

from routed.desired import RouteBatch, Tunnel
from routed.net.families import Family
from routed.values import dataclass


class Level(enum.StrEnum):
    """How loud a log line is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def problem_lines(known: Collection[str], now: Collection[str], level: Level) -> Iterator[tuple[Level, str]]:
    """A line for each problem that is new, and for each that is gone."""
    for problem in now:
        if problem not in known:
            yield level, problem
    for problem in known:
        if problem not in now:
            yield Level.INFO, f"put right: {problem}"


class Milestone(enum.Enum):
    """How far `flush` has got: told, as it happens, to who measures. Nothing follows from it."""

    PLANNED = enum.auto()
    """All changes of resources are in the plan."""
    CHOSEN = enum.auto()
    """What changed in the table is decided, and encoded for the peers."""


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
    password: str = ""
    """`SECRET/KEY`: where the password of TCP MD5 (RFC 2385) is kept; empty: none."""
    ttl_security: int = 0
    """Hops the peer may be away (RFC 5082); 0: any number."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What a connection from a peer's address must have to be let in: `password` and `ttl_security` as in Connect."""

    remote: bytes
    password: str
    generation: int
    """Of the password: another number, another password."""
    ttl_security: int


@dataclass(frozen=True, slots=True)
class Guards:
    """All there are now. Comes before what is asked of a connection under them."""

    peers: tuple[Guard, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Close a connection after writing what `take` still gives for it. No `closed` is expected."""

    conn: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Accept connections on this port, and no longer on what an earlier one named."""

    port: int
    addresses: tuple[bytes, ...] = ()
    """Packed local addresses; empty: all of both families."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Changes of what the kernel should hold, in order."""

    batches: tuple[RouteBatch, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove our routes of these families that were found at start and that nobody asked for since."""

    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True)
class Tunnels:
    """All tunnel devices this node should have. Comes before the routes that lead into them."""

    tunnels: tuple[Tunnel, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """One line for people."""

    level: Level
    subject: str
    """What it is about: a peer's name, `plan`, `core`."""
    text: str


Effect = Connect | Close | Guards | Listen | Routes | Sweep | Tunnels | Log
