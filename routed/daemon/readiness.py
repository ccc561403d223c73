"""Whether this node may be given traffic: what `/readyz` says, with a reason for each peer.

Ready is who has read the datastore (or its last good state), has begun to choose routes, can write to the kernel, and has
sessions: at first all that are configured, and from the moment they were up, or the grace period is over, any one. So a
node is not ready before its routes are there, and a peer that goes away later does not take the node down. A node without
peers is ready. These are Calico's rules for BIRD's readiness; the datastore and the kernel are ours.
"""

from __future__ import annotations

from routed.bgp.neighbor import State
from routed.core.core import Core
from routed.net.addresses import format_address
from routed.values import dataclass

#: Seconds after the datastore was read in which all sessions must be up.
GRACE = 30.0


@dataclass(frozen=True, slots=True)
class PeerReadiness:
    """One peer, for people."""

    name: str
    address: str
    state: str
    up: bool
    reason: str
    """Why it is not up, or empty."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is so now."""

    reasons: tuple[str, ...]
    """Why the node is not ready; empty where it is."""
    notes: tuple[str, ...]
    """What a person should know although it holds nothing back."""
    peers: tuple[PeerReadiness, ...]

    @property
    def ready(self) -> bool:
        return not self.reasons


class ReadinessJudge:
    """Judges, and remembers that the beginning is over."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._settled = False
        """All sessions were up at one time, or the grace period is over: from here on one is enough."""

    def look(self, now: float) -> None:
        """To be called every second: that all sessions were up must be seen also where nobody asks."""
        core = self._core
        if self._settled or core.restart.in_sync_at is None:
            return
        wanted = [peer for peer in core.peers.values() if not peer.neighbor.config.admin_down]
        # the plan must have been made: peers begin to exist by it
        all_up = bool(wanted) and all(peer.neighbor.state is State.ESTABLISHED for peer in wanted)
        self._settled = all_up or now - core.restart.in_sync_at >= GRACE

    def judge(self, now: float, *, kernel_problem: str, datastore_note: str, stopping: bool) -> Readiness:
        """`datastore_note`: what is wrong with the datastore although we go on with what it said last."""
        self.look(now)
        core = self._core
        peers = tuple(
            _peer_readiness(peer.plan.name, peer.neighbor.config.address, peer.neighbor.state, reason)
            for peer in core.peers.values()
            for reason in [peer.neighbor.counters.last_error]
            if not peer.neighbor.config.admin_down
        )
        down = [peer for peer in peers if not peer.up]
        reasons = []
        if stopping:
            reasons.append("routed is stopping")
        if core.restart.in_sync_at is None:
            reasons.append("the datastore has not been read yet" + (f": {datastore_note}" if datastore_note else ""))
        elif not core.planned:
            reasons.append("the first plan is being made")
        elif core.restart.deferring:
            reasons.append("route selection waits for the peers' routes after a restart")
        if kernel_problem:
            reasons.append(f"the kernel's routes cannot be kept: {kernel_problem}")
        if down and core.restart.in_sync_at is not None:
            if not self._settled:
                left = GRACE - (now - core.restart.in_sync_at)
                reasons.append(
                    f"{len(down)} of {len(peers)} sessions are not up yet (for {left:.0f} s more all must be, then any)"
                )
            elif len(down) == len(peers):
                reasons.append(f"no session is up, of {len(peers)}")
        notes = (datastore_note,) if datastore_note and core.restart.in_sync_at is not None else ()
        return Readiness(tuple(reasons), notes, peers)


def _peer_readiness(name: str, address: bytes, state: State, reason: str) -> PeerReadiness:
    up = state is State.ESTABLISHED
    return PeerReadiness(
        name, format_address(address), state.label, up, "" if up else reason or f"the session is in state {state.label}"
    )
