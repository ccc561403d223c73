"""What a start with routes of ours in the kernel waits for, and until when (RFC 4724 4.1).

Where an earlier run left routes, what is chosen is neither advertised nor programmed (`deferring`) until the peers have
sent their End-of-RIB, or `DEFERRAL_MAX` has passed; and what the kernel holds beyond what was chosen is swept only after
that (`sweep_pending`), when nobody owes a route any more, or `SWEEP_MAX` after the datastore has spoken. A start without
such routes defers nothing.

Invariant: the two flags go from True to False once, the deferral first.

Not here: what is done when a wait is over, which is the core's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from routed.bgp.neighbor import State
from routed.core.peer import Peer

#: Seconds a restarting speaker at least waits for peers that are not up yet, and at most for anything (RFC 4724 4.1). The
#: shorter one is also what a peer that sends no End-of-RIB has to announce its routes again before old ones are swept.
DEFERRAL_SETTLE = 10.0
DEFERRAL_MAX = 30.0

#: Seconds after which routes found at start are swept even if a peer never came back: our own restart time.
SWEEP_MAX = 120.0


class Restart:
    """See the module's docstring."""

    def __init__(self, *, routes_found: bool) -> None:
        self.deferring = routes_found
        """Route selection is deferred: nothing is advertised or programmed yet."""
        self.sweep_pending = routes_found
        self.in_sync_at: float | None = None
        """Since when there is something to act on: what an earlier run saved, or what the datastore says."""
        self.synced_at: float | None = None
        """Since when the datastore itself has spoken: what is in the kernel and nobody asks for may go."""
        self._looked = float("-inf")

    @property
    def is_over(self) -> bool:
        return not (self.deferring or self.sweep_pending)

    def look(self, now: float) -> float:
        """Note that the waits are judged now. Seconds since there is something to act on."""
        assert self.in_sync_at is not None
        self._looked = now
        return now - self.in_sync_at

    def selects(self, waiting: Collection[Peer], elapsed: float) -> bool:
        """Whether route selection begins without the peers that are still `awaited`."""
        up = any(peer.neighbor.state is State.ESTABLISHED for peer in waiting)
        return not waiting or elapsed >= DEFERRAL_MAX or (not up and elapsed >= DEFERRAL_SETTLE)

    def sweeps(self, peers: Collection[Peer], now: float) -> bool:
        """Whether what was found at start, and nobody announced again, may go: with all that was chosen in the kernel."""
        return (
            self.sweep_pending
            and not self.deferring
            and self.synced_at is not None
            and (now - self.synced_at >= SWEEP_MAX or not any(owes_routes(peer, now) for peer in peers))
        )

    def next_look(self, peers: Collection[Peer]) -> float | None:
        """When a wait may next be over by time alone, or None."""
        if self.is_over or self.in_sync_at is None:
            return None
        return min((due for due in self._looks(self.in_sync_at, peers) if due > self._looked), default=None)

    def _looks(self, in_sync_at: float, peers: Collection[Peer]) -> Iterator[float]:
        if self.deferring:
            yield in_sync_at + DEFERRAL_SETTLE
            yield in_sync_at + DEFERRAL_MAX
            return
        if self.synced_at is None:
            return
        yield self.synced_at + SWEEP_MAX
        for peer in peers:
            came_up = peer.neighbor.counters.established_at
            if came_up is not None and peer.neighbor.state is State.ESTABLISHED:
                yield came_up + DEFERRAL_SETTLE


def awaited(peer: Peer) -> bool:
    """Whether a restarting speaker still waits for this peer's End-of-RIB (RFC 4724 4.1)."""
    negotiated = peer.neighbor.negotiated
    if peer.neighbor.state is not State.ESTABLISHED or negotiated is None:
        return not peer.neighbor.config.admin_down
    restart = negotiated.graceful_restart
    if restart is None or restart.restarting:
        return False
    return not peer.end_of_rib >= set(peer.adj_out)


def owes_routes(peer: Peer, now: float) -> bool:
    """Whether routes found at start may still be announced by this peer again.

    Wider than `awaited`: a peer that restarts too, or never heard of graceful restart, delays no route selection, but
    what it announced before must not leave the kernel in the moment before it announces it again.
    """
    negotiated, came_up = peer.neighbor.negotiated, peer.neighbor.counters.established_at
    if peer.neighbor.state is not State.ESTABLISHED or negotiated is None or came_up is None:
        return not peer.neighbor.config.admin_down
    if peer.end_of_rib >= set(peer.adj_out):
        return False
    return negotiated.graceful_restart is not None or now - came_up < DEFERRAL_SETTLE
