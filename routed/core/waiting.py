"""Sessions whose new password is not there yet: what is up goes on under what it came up with.

A reference to a password comes by the datastore, to all nodes at once, and its file by other ways, later. A session that
has been up as it is now does not end for that; it ends, and begins anew under the password, once that is known. One that
has not been up waits for it (decision "no session without its password").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from routed.core.peer import Peer
from routed.plan.diff import end_of, reset_reason
from routed.plan.types import PeerPlan, Plan


def keep_what_is_up(plan: Plan, peers: Iterable[Peer]) -> tuple[Plan, dict[str, str]]:
    """The plan with such sessions guarded as they are now, and their names, with the reason why they wait."""
    held = {end_of(peer): peer for peer in plan.peers.values() if peer.session.held}
    if not held:
        return plan, {}
    kept: dict[str, PeerPlan] = {}
    for peer in peers:
        wanted = held.get(end_of(peer.plan))
        if wanted is None or peer.plan.session.held or not peer.neighbor.counters.established:
            continue
        now = peer.plan.session
        session = replace(wanted.session, password=now.password, password_generation=now.password_generation, held="")
        as_it_is = replace(wanted, session=session)
        if not reset_reason(peer.plan, as_it_is):  # else it ends anyway, and begins under nothing but its password
            kept[wanted.name] = as_it_is
    if not kept:
        return plan, {}
    reasons = {name: plan.peers[name].session.held for name in kept}
    return replace(plan, peers={**plan.peers, **kept}), reasons
