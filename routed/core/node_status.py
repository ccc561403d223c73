"""The status a CalicoNodeStatus asks for, as Calico's node writes it: its classes Agent, BGP and Routes.

Reading only, like `queries`, but in Calico's words and not ours. Times are texts that the caller makes of the core's
seconds, so equal states give equal values and what has not changed need not be written. Routes come one by one; a None
between them is a good moment for other work.

What Calico reads from two BIRDs is told of one speaker: `birdV4` and `birdV6` say the same. Who writes it where, and
when, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from routed.bgp.neighbor import State
from routed.core.core import Core
from routed.core.exchanged import Wanted, in_order
from routed.core.peer import Peer
from routed.model.resources import JsonObject, JsonValue
from routed.net.addresses import format_address, format_router_id
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.rib.decide import explain
from routed.rib.path import Path
from routed.rib.table import FamilyRib

#: What becomes of a time of the core in a status.
Clock: TypeAlias = Callable[[float], str]

#: BIRD's words where a route has no gateway, and where it has no way at all.
_NO_GATEWAY = "N/A"
_BLACKHOLE = "blackhole"
_UNREACHABLE = "unreachable"

_SUFFIX = {Family.IPV4_UNICAST: "V4", Family.IPV6_UNICAST: "V6"}
_PEER_TYPES = {"Mesh": "NodeMesh", "Global": "GlobalPeer", "Node": "NodePeer", "Local": "NodePeer"}


def agent_status(core: Core, version: str, started_at: float, clock: Clock) -> JsonObject:
    """The class Agent. Ready is who runs BGP and has begun to choose routes."""
    speaker = core.plan.speaker
    ready = speaker is not None and core.planned and not core.restart.deferring
    daemon: JsonObject = {
        "state": "Ready" if ready else "NotReady",
        "version": version,
        "routerID": format_router_id(speaker.router_id) if speaker is not None else "",
        "lastBootTime": clock(started_at),
        "lastReconfigurationTime": clock(core.planned_at) if core.planned_at is not None else "",
    }
    return {"birdV4": daemon, "birdV6": daemon}


def bgp_status(core: Core, clock: Clock) -> JsonObject:
    """The class BGP."""
    found: JsonObject = {}
    for family, suffix in _SUFFIX.items():
        peers = [peer for peer in core.peers.values() if peer.plan.session.families[0] is family]
        peers.sort(key=lambda peer: (peer.plan.session.address, peer.plan.name))
        up = sum(peer.neighbor.state is State.ESTABLISHED for peer in peers)
        found[f"numberEstablished{suffix}"] = up
        found[f"numberNotEstablished{suffix}"] = len(peers) - up
        found[f"peers{suffix}"] = [_peer(peer, clock) for peer in peers]
    return found


def _peer(peer: Peer, clock: Clock) -> JsonValue:
    counters = peer.neighbor.counters
    since = counters.established_at if peer.neighbor.state is State.ESTABLISHED else counters.state_changed_at
    return {
        "peerIP": format_address(peer.plan.session.address),
        "type": _peer_type(peer.plan.name),
        "state": peer.neighbor.state.label,
        "since": clock(since) if since is not None else "",
    }


def _peer_type(name: str) -> str:
    return _PEER_TYPES[name.partition("_")[0]]


def route_status(core: Core, family: Family) -> Iterator[JsonObject | None]:
    """The routes of a family for the class Routes, by address. None between."""
    rib = core.ribs[family]
    for prefix in in_order(Wanted(family).among(rib.table)):
        if prefix is None:
            yield None
            continue
        candidates = [path for path in rib.candidates(prefix) if not path.rejected]
        used = _used(rib, prefix, candidates)
        for path in sorted(candidates, key=lambda path: (path not in used, path.source.name)):
            yield {
                "type": "FIB" if path in used else "RIB",
                "destination": format_prefix(family, prefix),
                **_way(core, family, prefix, path),
                "learnedFrom": _learned_from(core, family, prefix, path),
            }


def _used(rib: FamilyRib, prefix: bytes, candidates: list[Path]) -> list[Path]:
    """The paths packets take: the best one, and those that share the traffic with it."""
    best = rib.best(prefix)
    if best is None or len(candidates) == 1:
        return [] if best is None else [best]
    usable = [path for path in candidates if path.usable]
    verdicts = explain(usable, maximum_paths=rib.maximum_paths)
    return [best, *(verdict.path for verdict in verdicts if verdict.multipath and verdict.path is not best)]


def _way(core: Core, family: Family, prefix: bytes, path: Path) -> JsonObject:
    """Where a path leads, as BIRD shows it: the first of several gateways."""
    gateways = path.next_hop.gateways if path.next_hop is not None else ()
    if path.source is core.origins.local:
        origin = core.plan.origins.get((family, prefix))
        if origin is not None and origin.interface:
            return {"gateway": _NO_GATEWAY, "interface": origin.interface}
        route = core.kernel_route(family, prefix)[0]
        gateways = route.gateways if route is not None else ()
        if not gateways:
            return {"gateway": _NO_GATEWAY, "interface": _BLACKHOLE}
    elif path.source is core.origins.learned:
        return {"gateway": _NO_GATEWAY, "interface": path.interface}
    elif not gateways:
        return {"gateway": _NO_GATEWAY, "interface": _UNREACHABLE}
    first = gateways[0]
    interface = core.interfaces.get(first.interface)
    return {
        "gateway": format_address(first.address) if first.address else _NO_GATEWAY,
        "interface": interface.name if interface is not None else "",
    }


def _learned_from(core: Core, family: Family, prefix: bytes, path: Path) -> JsonObject:
    source = path.source
    if source is core.origins.local:
        origin = core.plan.origins.get((family, prefix))
        return {"sourceType": "Kernel" if origin is not None and origin.kind == "workload" else "Static"}
    if source is core.origins.learned:
        return {"sourceType": "Kernel" if path.interface.startswith(core.plan.learn.workload_prefixes) else "Direct"}
    mesh = _peer_type(source.name) == "NodeMesh"
    return {"sourceType": "NodeMesh" if mesh else "BGPPeer", "peerIP": format_address(source.address)}
