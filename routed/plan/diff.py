"""How to get from one plan to the next, so that a change of resources touches only what it is about.

For every field of a `PeerPlan` it is settled here whether a session survives its change. What the session itself is made
of is `NeighborConfig.needs_reset`'s to say. The rest applies live: filters, next-hop mode, loop tolerance, and whether an
internal peer is a route-reflection client and of which cluster, which its end of the session never hears.

A neighbour is who it is by its address and port, not by its name: where the resource that asks for it is another one now
(`Mesh_10_0_0_2` -> `Global_10_0_0_2`), it is renamed.
"""

from __future__ import annotations

from dataclasses import fields, replace

from routed.bgp.neighbor import NeighborConfig
from routed.net.addresses import format_address, format_router_id
from routed.plan.types import Origin, PeerChange, PeerPlan, Plan, PlanDelta


def diff(old: Plan, new: Plan) -> PlanDelta:
    """What changed from `old` to `new`, problems and reasons (`why`) left out."""
    reset: dict[str, str] = {}
    changed: dict[str, PeerChange] = {}
    added: list[str] = []
    renamed = _renamed(old, new)
    stay = {*new.peers, *renamed.values()}
    for name, peer in new.peers.items() if new.peers is not old.peers else ():
        before = old.peers.get(renamed.get(name, name))
        if before is peer:
            continue
        if before is None:
            added.append(name)
            continue
        reason = reset_reason(before, peer)
        if reason:
            reset[name] = reason
            continue
        change = _live_change(before, peer)
        if change:
            changed[name] = change
    return PlanDelta(
        speaker_changed=old.speaker != new.speaker,
        removed=tuple(name for name in old.peers if name not in stay),
        added=tuple(added),
        reset=reset,
        changed=changed,
        renamed=renamed,
        origins_removed=tuple(key for key in old.origins if key not in new.origins),
        origins_set={
            key: origin
            for key, origin in new.origins.items()
            if (was := old.origins.get(key)) is None or (was is not origin and _in_kernel(was) != _in_kernel(origin))
        },
    )


def _renamed(old: Plan, new: Plan) -> dict[str, str]:
    """Peers with another name than before, by the new one. Address and port are enough to know one by: see `plan/peers`."""
    gone = {end_of(peer): name for name, peer in old.peers.items() if name not in new.peers}
    if not gone:
        return {}
    come = {name: end_of(peer) for name, peer in new.peers.items() if name not in old.peers}
    return {name: gone[end] for name, end in come.items() if end in gone}


def end_of(peer: PeerPlan) -> tuple[bytes, int, str]:
    """What a neighbour is known by, whatever it is called."""
    return peer.session.address, peer.session.port, peer.session.interface


def _in_kernel(origin: Origin) -> tuple[bool, bytes, str]:
    """What of an origin decides what the kernel gets."""
    return origin.blackhole, origin.gateway, origin.interface


def reset_reason(old: PeerPlan, new: PeerPlan) -> str:
    """Why a session held under `old` can't go on under `new`, for people; empty where it can."""
    if new.session.needs_reset(old.session):
        return _session_text(old.session, new.session)
    return ""


def _live_change(old: PeerPlan, new: PeerPlan) -> PeerChange:
    change = PeerChange(0)
    if old.name != new.name:
        change |= PeerChange.NAME
    if replace(old.session, name=new.session.name) != new.session:
        change |= PeerChange.SESSION
    if old.import_filter != new.import_filter or old.allowed_own_as != new.allowed_own_as:
        change |= PeerChange.IMPORT
    if old.kind is not new.kind or old.cluster_id != new.cluster_id:
        change |= PeerChange.ROLE
    if old.export_filter != new.export_filter or old.next_hop_mode is not new.next_hop_mode:
        change |= PeerChange.EXPORT
    return change


def _session_text(old: NeighborConfig, new: NeighborConfig) -> str:
    """`peer AS 65001 -> 65002`, for every field that differs and counts."""
    texts = []
    for entry in fields(NeighborConfig):
        before, after = getattr(old, entry.name), getattr(new, entry.name)
        if entry.name in ("name", "held"):  # what holds it is said where it is held
            continue
        if entry.name == "password_generation":
            if before and after and before != after:
                texts.append(f"the password in Secret {new.password} changed")
        elif before != after:
            text = format_router_id if entry.name == "router_id" else _text
            texts.append(f"{entry.name.replace('_', ' ')} {text(before)} -> {text(after)}")
    return ", ".join(texts)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return format_address(value) if value else "any"
    return str(value) or "none"
