"""One neighbour as the core holds it: its plan, its sessions, and its places in the RIBs."""

from __future__ import annotations

from routed.bgp.neighbor import Neighbor
from routed.net.families import Family
from routed.plan.types import PeerPlan
from routed.rib.adj_out import AdjRibOut
from routed.rib.path import Source
from routed.rib.table import AdjRibIn


class Peer:
    """Mutable state of one planned peer."""

    __slots__ = (
        "adj_in",
        "adj_out",
        "end_of_rib",
        "kept",
        "link",
        "link_lost",
        "neighbor",
        "number",
        "plan",
        "problem_told",
        "source",
        "stale_until",
        "timer_at",
        "waits_for_password",
    )

    def __init__(self, plan: PeerPlan, neighbor: Neighbor, number: int) -> None:
        self.number = number
        """Its own, whatever it is called, and that of the one that takes its place when its session is reset."""
        self.plan = plan
        self.neighbor = neighbor
        self.source = Source(plan.name, plan.kind, 0, plan.session.address)
        self.adj_in: dict[Family, AdjRibIn] = {
            family: AdjRibIn(self.source, plan.import_filter[family]) for family in plan.session.families
        }
        self.adj_out: dict[Family, AdjRibOut] = {}
        """Only while Established."""
        self.end_of_rib: set[Family] = set()
        """Families whose End-of-RIB arrived in this session."""
        self.stale_until: float | None = None
        """When stale routes go even if the peer's End-of-RIB never comes (RFC 4724 4.2)."""
        self.kept = 0
        """Routes kept as stale when the last session ended."""
        self.link = 0
        """Index of the interface that the session of a directly connected external peer runs over, or ran over last."""
        self.link_lost = False
        """That interface went down and has not come back since."""
        self.waits_for_password = ""
        """Why the password it is to have is not known, in words; the session goes on as it came up until it is."""
        self.problem_told = ""
        """The neighbour's `last_error` when it was last put into the log."""
        self.timer_at: float | None = None
        """The wake-up the core holds for the neighbour's timers."""
