"""Pools whose routes move into a tunnel while packets flow: each stays as it was until the tunnel carries.

When a pool gets an encapsulation, each node takes an address for its tunnel, writes it into its Node, makes the device, and
hears of the others', all a moment apart. A route that moved at once would lead into a tunnel whose other end is not there,
or does not know us yet. So a route of such a pool stays bare until this node has its device and the other node its address,
both for SETTLE seconds; after PATIENCE it counts no more that it once was bare.

Invariants: a function of what it is told and of `now`; what is there before the first plan never moves.
"""

from __future__ import annotations

from routed.net.families import Family
from routed.rib.program import Programming, ProgramPolicy

#: Seconds a tunnel must be there on this side before its first packet: the other side hears of it that much later at most.
SETTLE = 2.0
#: Seconds routes stay bare for want of a tunnel.
PATIENCE = 60.0

#: In place of a next hop: this node's own devices.
_OWN = b""


class Moving:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._until: dict[tuple[Family, bytes], float] = {}
        """Pools that move, by prefix."""
        self._waiting: dict[tuple[Family, bytes], float] = {}
        """Next hops whose end of the tunnel is new, and until when that counts."""

    def plan(self, family: Family, old: ProgramPolicy, new: ProgramPolicy, now: float) -> None:
        """What becomes of routes changed."""
        before = {rule.prefix for rule in old.rules if rule.device}
        after = {rule.prefix for rule in new.rules if rule.device}
        for prefix in after - before:
            rule = old.judge(prefix)
            if rule is None or rule.programming is not Programming.LEAVE:  # else it never was bare
                self._until[family, prefix] = now + PATIENCE
        for key in [key for key in self._until if key[0] is family and key[1] not in after]:
            del self._until[key]
        for device, ways in new.ways.items():
            known = old.ways.get(device, {})
            for next_hop, way in ways.items():
                if known.get(next_hop) != way:
                    self._waiting[family, next_hop] = now + SETTLE
        self._tidy()

    def devices(self, now: float) -> None:
        """This node's tunnel devices changed."""
        self._waiting |= dict.fromkeys(((family, _OWN) for family in Family), now + SETTLE)
        self._tidy()

    def is_bare(self, family: Family, pool: bytes, next_hop: bytes, *, carries: bool) -> bool:
        """Whether a route of a pool stays as it was; `next_hop`: of the node at the tunnel's other end; `carries`: there
        are a device and a way to it."""
        if (family, pool) not in self._until:
            return False
        return not carries or (family, next_hop) in self._waiting or (family, _OWN) in self._waiting

    def next_timer(self) -> float | None:
        return min((*self._until.values(), *self._waiting.values()), default=None)

    def timer(self, now: float) -> bool:
        """Whether a time has come, and routes are to be looked at."""
        come = False
        for times in (self._until, self._waiting):
            for key in [key for key, at in times.items() if at <= now]:
                del times[key]
                come = True
        self._tidy()
        return come

    def _tidy(self) -> None:
        """Where no pool moves nobody waits."""
        if not self._until:
            self._waiting.clear()
