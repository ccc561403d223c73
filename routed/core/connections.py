"""Connections by their numbers: whose each is, between which addresses, and what is still to be said on one that ends.

Also who connected and was turned away: the last few addresses are remembered, for people who look for a peer that comes
from another address than it was configured with.

Not here: when to open and close one (`bgp/neighbor`), sockets (`daemon/transport`).
"""

from __future__ import annotations

from routed.core.peer import Peer
from routed.values import dataclass

#: Connections being closed whose last octets nobody has taken yet.
LAST_WORDS = 1024

#: Addresses whose refused connections are remembered.
REFUSED_KEPT = 8


class Connections:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.peers: dict[int, Peer] = {}
        """Whose each is that is open or being opened."""
        self._local: dict[int, bytes] = {}
        self._last_words: dict[int, bytes] = {}
        self._last = 0

    def allocate(self) -> int:
        """A number no connection has had."""
        self._last += 1
        return self._last

    def made(self, conn: int, local: bytes) -> None:
        """A connection is there, from or to this packed address of ours."""
        self._local[conn] = local

    def local_address(self, peer: Peer) -> bytes:
        """Our packed address in a peer's session, or empty where it has none."""
        return self._local.get(peer.neighbor.connection, b"")

    def gone(self, conn: int) -> None:
        """A connection ended."""
        self.peers.pop(conn, None)
        self._local.pop(conn, None)

    def close(self, conn: int, last_words: bytes) -> None:
        """Let a connection go; what is still to be said on it (a NOTIFICATION) waits for `last_words`."""
        self.gone(conn)
        if last_words:
            self._last_words[conn] = last_words
            if len(self._last_words) > LAST_WORDS:  # connections that were gone before anybody could write
                del self._last_words[next(iter(self._last_words))]

    def last_words(self, conn: int) -> bytes:
        return self._last_words.pop(conn, b"")


@dataclass(frozen=True, slots=True)
class Refused:
    """Connections from one address that nobody wanted."""

    count: int
    last_at: float
    reason: str


class Refusals:
    """The last addresses whose connections were refused."""

    def __init__(self) -> None:
        self.total = 0
        """Connections refused since the start."""
        self.latest: dict[bytes, Refused] = {}
        """By packed address, the latest last."""

    def add(self, remote: bytes, reason: str, now: float) -> None:
        self.total += 1
        count = self.latest.pop(remote, Refused(0, 0.0, "")).count
        self.latest[remote] = Refused(count + 1, now, reason)
        if len(self.latest) > REFUSED_KEPT:
            del self.latest[next(iter(self.latest))]

    def forget(self, remote: bytes) -> None:
        """Whatever kept it out, it is in now."""
        self.latest.pop(remote, None)
