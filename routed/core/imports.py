"""Paths of what peers announce: made as UPDATEs come, and made anew where what they follow from has changed.

A path is judged for loops (RFC 4271 9.1.2, RFC 4456 8), its next hop tracked, and it is known by which interface it leaves,
which filters may ask for. All prefixes of one peer with the same attributes share a path.

Invariant: the paths in the table are as the plans and next hops of now make them, as soon as the walks asked for by `later`
are done.

Not here: filters and the table (`rib`), how a next hop resolves (`rib/nexthops`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from routed.bgp.as_path import segments
from routed.bgp.attributes import AttributeSet, split_values
from routed.bgp.update import Update
from routed.core.connections import Connections
from routed.core.interfaces import Interfaces
from routed.core.peer import Peer
from routed.net.addresses import format_router_id, is_link_local
from routed.net.families import Family
from routed.plan.types import PeerPlan
from routed.rib.nexthops import NextHop, NextHopTable
from routed.rib.path import Path, SourceKind
from routed.rib.table import PATH_CACHE, FamilyRib

#: Next hops tracked before those no longer in use are looked for.
NEXT_HOPS = 4096


class Importer:
    """See the module's docstring."""

    def __init__(
        self,
        ribs: Mapping[Family, FamilyRib],
        peers: Mapping[str, Peer],
        next_hops: NextHopTable,
        interfaces: Interfaces,
        connections: Connections,
        later: Callable[[Iterator[None]], None],
    ) -> None:
        """`later` is told of walks over a table, a slice a step."""
        self.filters_ask_for_interfaces = False
        """A filter of the plan asks by which interface a path leaves."""
        self._ribs = ribs
        self._peers = peers
        self._next_hops = next_hops
        self._interfaces = interfaces
        self._connections = connections
        self._later = later
        self._next_hops_most = NEXT_HOPS

    def update(self, peer: Peer, update: Update) -> None:
        """Take a peer's UPDATE into the table."""
        for family, prefixes in update.withdrawn:
            adj_in = peer.adj_in.get(family)
            if adj_in is not None:
                self._ribs[family].withdraw(adj_in, prefixes)
        for reach in update.reach:
            adj_in = peer.adj_in.get(reach.family)
            if adj_in is not None:
                path = adj_in.paths.get(reach.attrs)
                if path is None:
                    path = self._path(peer, reach.family, reach.attrs)
                self._ribs[reach.family].announce(adj_in, path, reach.prefixes)

    def _path(self, peer: Peer, family: Family, attrs: AttributeSet) -> Path:
        adj_in = peer.adj_in[family]
        address = attrs.next_hop
        next_hop = self._next_hops.track(address, self.scope(peer) if is_link_local(address) else 0)
        path = Path(peer.source, attrs, next_hop, adj_in.epoch)
        path.rejected = loop(peer.plan, attrs)
        path.interface = self._interfaces.towards(next_hop)
        if len(adj_in.paths) >= PATH_CACHE:
            adj_in.paths.clear()
        adj_in.paths[attrs] = path
        adj_in.next_hops.add(next_hop)
        self._ribs[family].refresh(path)
        return path

    def scope(self, peer: Peer) -> int:
        """The interface of a link-local next hop: the session's; 0 where there is none."""
        return self._interfaces.scope(peer.neighbor.config.interface, self._connections.local_address(peer))

    # ---------------------------------------------------------------- made anew

    def judge_anew(self, peer: Peer, family: Family, *, always: bool = False) -> None:
        """What loop rules and filters ask of a peer's paths has changed: have paths made anew and judged.

        `always`: other ones even where nothing of that differs, for what else follows from them does.
        """
        adj_in = peer.adj_in[family]
        adj_in.paths.clear()
        self._later(self._ribs[family].reimport(adj_in, self._remake(peer, family, always=always)))

    def _remake(self, peer: Peer, family: Family, *, always: bool) -> Callable[[Path], Path]:
        """Paths like those a peer's routes have, judged for loops by its plan of now and leaving by the interface of now."""
        made: dict[Path, Path] = {}

        def remake(path: Path) -> Path:
            new = made.get(path)
            if new is None:
                new = Path(path.source, path.attrs, path.next_hop, path.epoch)
                new.rejected = loop(peer.plan, path.attrs)
                new.interface = self._interfaces.towards(path.next_hop) or path.interface
                if not always and (new.rejected, new.interface) == (path.rejected, path.interface):
                    new = path
                else:
                    self._ribs[family].refresh(new)
                made[path] = new
            return new

        return remake

    def next_hops_changed(self, changed: set[NextHop]) -> None:
        """Next hops lead elsewhere, or nowhere: judge what uses them."""
        if not changed:
            return
        for family, rib in self._ribs.items():
            adj_ins = [peer.adj_in[family] for peer in self._peers.values() if family in peer.adj_in]
            rib.next_hops_changed(changed, adj_ins)
        if self.filters_ask_for_interfaces:
            for peer in self._peers.values():
                for family, adj_in in peer.adj_in.items():
                    if not adj_in.next_hops.isdisjoint(changed):
                        self.judge_anew(peer, family)

    # ---------------------------------------------------------------- forgotten

    def forget_next_hops(self) -> None:
        """A peer may name a new next hop with every route it replaces: where many are tracked, remember those in use."""
        if len(self._next_hops) <= self._next_hops_most:
            return
        live = set().union(*(rib.next_hops_in_use() for rib in self._ribs.values()))
        for peer in self._peers.values():
            for adj_in in peer.adj_in.values():
                adj_in.forget_unused(live)
        refused = (adj_in.next_hops for peer in self._peers.values() for adj_in in peer.adj_in.values())
        self._next_hops.forget_unused(live.union(*refused))
        self._next_hops_most = max(NEXT_HOPS, 2 * len(self._next_hops))


def loop(plan: PeerPlan, attrs: AttributeSet) -> str:
    """Why a path of a peer must be a loop, or empty (RFC 4271 9.1.2, RFC 4456 8)."""
    local_as = plan.session.local_as
    if (
        local_as in attrs.as_numbers
        and sum(numbers.count(local_as) for _, numbers in segments(attrs.as_path)) > plan.allowed_own_as
    ):
        return f"its AS_PATH holds our own AS {local_as}"
    if plan.kind is not SourceKind.EBGP:
        if attrs.originator_id is not None and attrs.originator_id == plan.session.router_id:
            return "its ORIGINATOR_ID is our router id: it was reflected back to us"
        if attrs.cluster_list and plan.cluster_id:
            own = plan.cluster_id.to_bytes(4, "big")
            if own in split_values(attrs.cluster_list, 4):
                return f"its CLUSTER_LIST holds our cluster id {format_router_id(plan.cluster_id)}"
    return ""
