"""Questions people ask a core, answered as JSON-ready values. Reading only: nothing here changes a core.

The shapes are stable: fields may be added, never renamed or removed. Times are seconds since, not clock times, for the
core knows none. Text that came from a peer is made harmless where it is decoded (`bgp.messages`), not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from routed.bgp.attributes import describe
from routed.bgp.neighbor import State
from routed.core.core import Core
from routed.core.peer import Peer
from routed.net.addresses import format_address, format_router_id
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.rib.decide import explain
from routed.rib.export import refusal
from routed.rib.path import Path, SourceKind
from routed.rib.table import FamilyRib

Row: TypeAlias = dict[str, object]

#: Seconds a refused connection is worth a line.
REFUSED_SHOWN = 600.0

_KIND_NAMES = {
    SourceKind.LOCAL: "local",
    SourceKind.EBGP: "external",
    SourceKind.IBGP: "internal",
    SourceKind.IBGP_CLIENT: "internal, route-reflection client",
}


def status(core: Core, now: float) -> Row:
    """The node at a glance."""
    speaker = core.plan.speaker
    established = sum(1 for peer in core.peers.values() if peer.neighbor.state is State.ESTABLISHED)
    return {
        "node": core.settings.node_name,
        "routerId": format_router_id(speaker.router_id) if speaker is not None else None,
        "as": speaker.local_as if speaker is not None else None,
        "listenPort": speaker.listen_port if speaker is not None else None,
        "inSync": core.restart.in_sync_at is not None,
        "routeSelectionDeferred": core.restart.deferring,
        "sweepPending": core.restart.sweep_pending,
        "peers": {"configured": len(core.peers), "established": established},
        "routes": {
            family.label: {
                "prefixes": len(rib.table),
                "tableVersion": rib.version,
                "origins": sum(1 for origin_family, _ in core.plan.origins if origin_family is family),
            }
            for family, rib in core.ribs.items()
        },
        "routesRefusedByKernel": len(core.route_failures),
        "blocksNotAnnounced": [
            {"prefix": format_prefix(family, prefix), "reason": reason}
            for (family, prefix), reason in sorted(core.plan.withheld.items())
        ],
        "problems": [*core.plan.problems, *core.address_problems, *_refused_connections(core, now)],
        "notes": list(core.plan.notes),
        "uptimeSeconds": None if core.restart.in_sync_at is None else round(now - core.restart.in_sync_at, 3),
    }


def _refused_connections(core: Core, now: float) -> list[str]:
    """Who tried to connect lately and was not let in: often a peer that comes from another address than configured."""
    return [
        f"{format_address(remote)} connected {refused.count} times and was refused, last {now - refused.last_at:.0f} s ago: "
        f"{refused.reason}"
        for remote, refused in core.refusals.latest.items()
        if now - refused.last_at < REFUSED_SHOWN
    ]


def neighbors(core: Core, now: float, address: bytes | None = None) -> Iterator[Row]:
    """One row a peer, or those with an address only; each made when it is asked for."""
    peers = sorted(core.peers.values(), key=lambda peer: (len(peer.plan.session.address), peer.plan.session.address))
    for peer in peers:
        if address is None or peer.plan.session.address == address:
            yield _neighbor(core, peer, now)


def _neighbor(core: Core, peer: Peer, now: float) -> Row:
    config, neighbor = peer.plan.session, peer.neighbor
    counters, negotiated = neighbor.counters, neighbor.negotiated
    up = neighbor.state is State.ESTABLISHED
    since = counters.established_at if up else counters.state_changed_at
    row: Row = {
        "name": peer.plan.name,
        "address": format_address(config.address),
        "port": config.port,
        "as": config.peer_as,
        "localAs": config.local_as,
        "localAddress": format_address(local) if (local := core.session_address(peer)) else None,
        "type": _KIND_NAMES[peer.plan.kind],
        "passive": config.passive,
        "password": config.password or None,
        "waitsForPassword": peer.waits_for_password or None,
        "ttlSecurity": config.ttl_security or None,
        "state": neighbor.state.label,
        "sinceSeconds": _ago(since, now),
        "lastError": counters.last_error,
        "lastErrorSeconds": _ago(counters.last_error_at, now),
        "lastRefusal": counters.refusal,
        "lastRefusalSeconds": _ago(counters.refusal_at, now),
        "lastDown": counters.last_down_reason,
        "why": peer.plan.why,
        "establishedCount": counters.established,
        "messages": counters.as_dict(),
        "families": {family.label: _neighbor_family(peer, family) for family in peer.adj_in},
        "importFilter": {family.label: peer.plan.import_filter[family].name for family in peer.adj_in},
        "exportFilter": {family.label: peer.plan.export_filter[family].name for family in peer.adj_in},
    }
    if negotiated is not None:
        restart = negotiated.graceful_restart
        row["negotiated"] = {
            "routerId": format_router_id(negotiated.peer_router_id),
            "holdTime": negotiated.hold_time,
            "keepaliveTime": negotiated.keepalive_time,
            "families": sorted(family.label for family in negotiated.families),
            "fourOctetAs": negotiated.four_octet_as,
            "routeRefresh": negotiated.route_refresh,
            "declined": list(negotiated.declined),
            "gracefulRestart": None
            if restart is None
            else {
                "restartTime": restart.restart_time,
                "restarting": restart.restarting,
                "forwarding": sorted(family.label for family, kept in restart.families.items() if kept),
            },
        }
    return row


def _ago(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _neighbor_family(peer: Peer, family: Family) -> Row:
    adj_in, adj_out = peer.adj_in[family], peer.adj_out.get(family)
    sent = 0
    if adj_out is not None:
        advertised = adj_out.group.advertised
        sent = sum(advertised.values()) - advertised.get(peer.source, 0)
    return {
        "received": adj_in.count,
        "refused": len(adj_in.refused),
        "stale": adj_in.stale,
        "best": peer.source.prefixes_best[family],
        "sent": sent,
        "waiting": adj_out.backlog if adj_out is not None else 0,
        "endOfRib": family in peer.end_of_rib,
        "sending": "deferred" if adj_out is not None and adj_out.held else "current" if adj_out is not None else None,
    }


def routes(core: Core, prefix: tuple[Family, bytes], *, every: bool = False) -> Iterator[Row]:
    """A prefix of the table, if it is there. With `every`, all candidates with the step that decided, and those refused."""
    family, key = prefix
    row = _route(core, core.ribs[family], key, every)
    if row["candidates"] or row["notAnnounced"]:
        yield row


def _route(core: Core, rib: FamilyRib, prefix: bytes, every: bool) -> Row:
    candidates = rib.candidates(prefix)
    usable = [path for path in candidates if path.usable]
    verdicts = {verdict.path: verdict for verdict in explain(usable, maximum_paths=rib.maximum_paths)}
    best = rib.best(prefix)
    failure = core.route_failures.get((rib.family, prefix))
    rows: list[Row] = []
    for path in candidates:
        row = _path(path)
        verdict = verdicts.get(path)
        if verdict is None:
            row.update(best=False, multipath=False, reason=_unusable(path))
        else:
            row.update(
                best=path is best,
                multipath=verdict.multipath,
                step=None if verdict.step is None else int(verdict.step),
                stepName=verdict.name,
                value=verdict.value,
                winnerValue=verdict.winner_value,
                reason=verdict.text,
            )
        if every or row["best"] or row["multipath"] or best is None:
            rows.append(row)
    if every:
        rows += _refused(core, rib, prefix)
    rows.sort(key=lambda row: (not row["best"], not row["multipath"], str(row["from"])))
    return {
        "family": rib.family.label,
        "prefix": format_prefix(rib.family, prefix),
        "candidates": rows,
        "kernel": _kernel(core, rib, prefix),
        "kernelNot": core.kernel_route(rib.family, prefix)[1] if rib.program_routes else "",
        "notAnnounced": core.plan.withheld.get((rib.family, prefix)),
        "kernelFailure": None if failure is None else failure.reason,
        "notAdvertisedTo": _not_advertised(core, rib, prefix, best) if every and best is not None else [],
    }


def _path(path: Path) -> Row:
    source = path.source
    next_hop = path.next_hop
    return {
        "from": source.name,
        "peer": format_address(source.address) if source.address else None,
        "peerRouterId": format_router_id(source.router_id) if source.router_id else None,
        "type": _KIND_NAMES[source.kind],
        **describe(path.attrs),
        "localPref": path.local_pref,
        "resolved": next_hop.text
        if next_hop is not None
        else f"this node, dev {path.interface} (kernel route)"
        if path.interface
        else "this node",
        "metric": next_hop.metric if next_hop is not None else 0,
    }


def _unusable(path: Path) -> str:
    if path.rejected:
        return path.rejected
    return f"next hop {path.next_hop.text}" if path.next_hop is not None else "not usable"


def _refused(core: Core, rib: FamilyRib, prefix: bytes) -> list[Row]:
    """Paths peers announced that a loop check or an import filter kept out of the table."""
    rows: list[Row] = []
    for peer in core.peers.values():
        adj_in = peer.adj_in.get(rib.family)
        path = adj_in.refused.get(prefix) if adj_in is not None else None
        if adj_in is None or path is None:
            continue
        reason = path.rejected
        if not reason:
            reason = f"refused on import by {adj_in.import_filter.evaluate(rib.family, prefix, path).rule}"
        rows.append({**_path(path), "best": False, "multipath": False, "reason": reason})
    return rows


def _kernel(core: Core, rib: FamilyRib, prefix: bytes) -> str | None:
    """What the prefix should be in the kernel, in the words of `ip route`."""
    route = core.kernel_route(rib.family, prefix)[0] if rib.program_routes else None
    if route is None:
        return None
    if not route.gateways:
        return "blackhole"
    legs = []
    for gateway in route.gateways:
        interface = core.interfaces.get(gateway.interface)
        device = interface.name if interface is not None else str(gateway.interface)
        legs.append(f"via {format_address(gateway.address)} dev {device}" if gateway.address else f"dev {device}")
    return " nexthop ".join(legs)


def _not_advertised(core: Core, rib: FamilyRib, prefix: bytes, best: Path) -> list[Row]:
    """The established peers that are not told of a prefix, each with the reason."""
    rows: list[Row] = []
    for peer in core.peers.values():
        adj_out = peer.adj_out.get(rib.family)
        if adj_out is None:
            continue
        policy = adj_out.group.policy
        if best.source is peer.source:
            reason: str | None = "it is where the best path came from"
        else:
            reason = refusal(best, policy)
            if reason is None:
                verdict = policy.export_filter.evaluate(rib.family, prefix, best)
                reason = None if verdict.accept else verdict.rule
        if reason is not None:
            rows.append({"peer": peer.plan.name, "reason": reason})
    return rows
