"""What of the table goes out to which peers: under which policy each is told, and in whose company.

Peers that are told the same are one update group, for which a change is encoded once. A group is made when the first peer
needs it and forgotten when another is made after its last one left.

Invariant: a group knows what the table held when it began and hears each change since once. So what changed before is
passed on before a peer gets its group.

Not here: the groups themselves and the RFCs' rules of announcing (`rib`), when a peer begins to hear (`core`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from routed.bgp.attributes import DEFAULT_LOCAL_PREF
from routed.core.connections import Connections
from routed.core.peer import Peer
from routed.net.families import Family
from routed.plan.types import KernelPlan
from routed.rib.adj_out import AdjRibOut, UpdateGroup
from routed.rib.export import ExportPolicy
from routed.rib.path import SourceKind
from routed.rib.table import Change, FamilyRib


class Exporter:
    """See the module's docstring."""

    def __init__(
        self,
        ribs: Mapping[Family, FamilyRib],
        peers: Mapping[str, Peer],
        connections: Connections,
        writable: set[int],
        later: Callable[[Iterator[None]], None],
    ) -> None:
        """`writable` is told whose connections have something to say, `later` of walks over a table, a slice a step."""
        self.plan = KernelPlan()
        """It says what LOCAL_PREF stands for in the kernel."""
        self.watch: Callable[[Family, Sequence[Change]], None] | None = None
        """Who is told of best paths as they change, before the peers are. It only looks: see `Core`."""
        self._ribs = ribs
        self._peers = peers
        self._connections = connections
        self._writable = writable
        self._later = later
        self._groups: dict[ExportPolicy, UpdateGroup] = {}

    def groups(self) -> list[UpdateGroup]:
        """The groups of peers that hear the same, of all families."""
        return [group for group in self._groups.values() if group.members]

    def begin(self, peer: Peer, family: Family, *, held: bool) -> None:
        """Tell a peer that has come up of everything, not before it is released where that is `held` back."""
        adj_out = peer.adj_out[family] = AdjRibOut(peer.source, self.group(self._policy(peer, family)))
        adj_out.held = held

    def policy_changed(self, peer: Peer, family: Family) -> None:
        """What decides how a peer is told of a family may be another: tell it what differs."""
        adj_out = peer.adj_out.get(family)
        if adj_out is None:
            return
        policy = self._policy(peer, family)
        if policy != adj_out.group.policy:
            adj_out.move(self.group(policy))
            self._writable.add(peer.neighbor.connection)

    def best_paths_changed(self, family: Family) -> None:
        """Encode what changed in the table, once a group."""
        changes = self._ribs[family].take_changes()
        if self.watch is not None and changes:
            self.watch(family, changes)
        for policy, group in self._groups.items():
            if policy.family is family and group.append(changes):
                group.trim()
                for member in group.members:
                    peer = self._peers.get(member.source.name)
                    if peer is not None and peer.neighbor.connection:
                        self._writable.add(peer.neighbor.connection)

    def group(self, policy: ExportPolicy) -> UpdateGroup:
        """Whom a policy tells."""
        rib = self._ribs[policy.family]
        if rib.changes:
            # a new group counts what the table holds, who moves to one knows it: they must not hear it again
            self.best_paths_changed(policy.family)
        group = self._groups.get(policy)
        if group is None:
            for known in [policy for policy, group in self._groups.items() if not group.members]:
                del self._groups[known]
            group = self._groups[policy] = UpdateGroup(policy, rib)
            if rib.table:
                self._later(group.count())
        return group

    def _policy(self, peer: Peer, family: Family) -> ExportPolicy:
        plan = peer.plan
        negotiated = peer.neighbor.negotiated
        return ExportPolicy(
            family=family,
            kind=plan.kind,
            local_as=plan.session.local_as,
            cluster_id=plan.cluster_id,
            local_address=self._connections.local_address(peer),
            next_hop_mode=plan.next_hop_mode,
            four_octet_as=negotiated is not None and negotiated.four_octet_as,
            export_filter=plan.export_filter[family],
            default_local_pref=DEFAULT_LOCAL_PREF
            if plan.kind is SourceKind.EBGP
            else self.plan.default_local_pref(family),
        )
