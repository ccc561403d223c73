"""The planner: takes in resources one by one, makes the plan that follows from all of them.

Planning is in parts (sessions, origins, filters), and a change redoes only the parts it can matter to. Within a part all
is redone, since that is simple and a thousand nodes take milliseconds; what comes out equal to what was there before
stays the same object, so that the difference of two plans is found by identity.
"""

from __future__ import annotations

from routed.desired import Tunnel
from routed.model.resources import Cidr, Update
from routed.model.settings import may_spoof, workload_prefixes
from routed.net.families import Family
from routed.plan.cluster import Aspect, Cluster, Secret
from routed.plan.export import FilterBook
from routed.plan.origins import Origins, plan_origins
from routed.plan.peers import PeerSpec, plan_peers
from routed.plan.program import calico_version, plan_kernel, plan_learning
from routed.plan.speaker import plan_speaker
from routed.plan.tunnels import no_way_in, plan_tunnels, tunnel_problems
from routed.plan.types import KernelPlan, LearnPlan, Origin, PeerPlan, Plan, PlanSettings, Speaker
from routed.plan.unsupported import Unsupported, unsupported_settings
from routed.plan.workloads import Workloads


class Planner:
    """See the module's docstring."""

    def __init__(self, node_name: str, settings: PlanSettings | None = None) -> None:
        self._settings = settings if settings is not None else PlanSettings()
        self._cluster = Cluster(node_name)
        self._dirty: Aspect = Aspect.SESSIONS | Aspect.ORIGINS | Aspect.FILTERS | Aspect.TUNNELS
        self._plan = Plan()
        self._book = FilterBook(self._settings.interface_of, own_workloads=self._settings.own_workloads)
        self._speaker: Speaker | None = None
        self._specs: dict[str, PeerSpec] = {}
        self._made_from: dict[str, PeerSpec] = {}
        """What each peer of the last plan was made from."""
        self._ways: dict[tuple[Family, bytes], Origin] = {}
        """Routes to peers by their reachableBy."""
        self._origins = Origins()
        self._kernel = KernelPlan()
        self._learn = LearnPlan()
        self._workloads = Workloads()
        self._source_spoofing = False
        self._session_problems: list[str] = []
        self._session_notes: list[str] = []
        self._unsupported = Unsupported()
        self._tunnels: tuple[Tunnel, ...] | None = None
        self._tunnel_problems: list[str] = []

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        aspect = self._cluster.apply(update)
        if aspect is not Aspect.NOTHING:
            self._dirty |= aspect

    def secret(self, reference: str, generation: int, problem: str) -> None:
        """What there is at `reference` (`SECRET/KEY`): see `Secret`. An empty one is of the folder itself."""
        self._cluster.secrets[reference] = Secret(generation, problem)
        self._dirty |= Aspect.SESSIONS

    def holder(self, block: Cidr) -> bytes:
        """The BGP address of the node that holds a block or has a single address; empty where no node is known to."""
        return self._cluster.holder(block)

    def take_moved_blocks(self) -> set[Cidr]:
        """Blocks, and single addresses, that may have another holder than at the last call."""
        return self._cluster.blocks.take_moved()

    def plan(self) -> Plan:
        """The plan for the resources as they are now; the same object as last time where nothing changed."""
        dirty = self._dirty
        if not dirty:
            return self._plan
        self._dirty = Aspect.NOTHING
        cluster = self._cluster
        renew = Aspect.FILTERS in dirty
        if Aspect.ORIGINS in dirty:
            origins = plan_origins(cluster, self._settings.pod_cidrs)
            renew |= origins.routes != self._origins.routes
            self._origins = origins
        if dirty & ~Aspect.WORKLOADS:
            self._workloads.named(
                workload_prefixes(cluster.felix, cluster.node_name, self._settings.interface_prefixes)
            )
        if Aspect.WORKLOADS in dirty and self._settings.own_workloads:
            for key in cluster.take_changed_workloads():
                self._workloads.put(key, cluster.workloads.get(key))
        if Aspect.TUNNELS in dirty and self._settings.own_workloads:
            self._tunnels = plan_tunnels(cluster)
            self._tunnel_problems = tunnel_problems(cluster)
        if dirty & (Aspect.FILTERS | Aspect.ORIGINS | Aspect.TUNNELS):
            kernel = plan_kernel(cluster, self._settings)
            learn = plan_learning(cluster, self._settings, self._origins.routes)
            self._kernel = kernel if kernel != self._kernel else self._kernel
            self._learn = learn if learn != self._learn else self._learn
        if renew:
            self._book.renew(self._origins.routes)
        if dirty & (Aspect.SESSIONS | Aspect.FILTERS):  # a peer may name a filter that did not exist before
            self._speaker, self._session_problems = plan_speaker(cluster, self._settings)
            self._specs, self._ways, self._session_notes = {}, {}, []
            if self._speaker is not None:
                found = plan_peers(cluster, self._speaker)
                self._specs, self._ways, self._session_notes = found.specs, found.ways, found.notes
                self._session_problems += found.problems
        peers = self._plan.peers
        if dirty & ~Aspect.WORKLOADS:  # pods come and go more often than all else, and are nobody's peers
            peers = self._peers()
            self._source_spoofing = may_spoof(cluster.felix, cluster.node_name)
            self._unsupported = unsupported_settings(
                cluster, calico_version(cluster, self._settings), own_workloads=self._settings.own_workloads
            )
        problems = [
            *self._session_problems,
            *self._origins.problems,
            *self._workloads.problems(self._source_spoofing),
            *self._tunnel_problems,
            *(no_way_in(cluster) if self._settings.own_workloads and self._speaker is not None and not peers else ()),
            *self._unsupported.problems,
        ]
        plan = Plan(
            speaker=self._speaker,
            peers=peers,
            origins={
                **self._ways,
                **self._origins.routes,
                **self._workloads.routes,
            },  # a block may be one pod's address
            withheld=self._origins.withheld,
            kernel=self._kernel,
            learn=self._learn,
            tunnels=self._tunnels,
            problems=tuple(sorted(set(problems))),
            notes=tuple(sorted({*self._session_notes, *self._unsupported.notes})),
        )
        if plan != self._plan:
            self._plan = plan
        return self._plan

    def _peers(self) -> dict[str, PeerPlan]:
        last, made_from = self._plan.peers, self._made_from
        peers: dict[str, PeerPlan] = {}
        for name, spec in self._specs.items():
            session = spec.session
            family = session.families[0]
            incoming, outgoing = self._book.for_peer(self._cluster, family, session.external, spec.filters)
            old = last.get(name)
            if (
                old is not None
                and old.import_filter is incoming
                and old.export_filter is outgoing
                and made_from[name] == spec
            ):
                peers[name] = old
                continue
            peers[name] = PeerPlan(
                name=name,
                session=session,
                kind=spec.kind,
                cluster_id=spec.cluster_id,
                next_hop_mode=spec.next_hop_mode,
                allowed_own_as=spec.allowed_own_as,
                import_filter=incoming,
                export_filter=outgoing,
                why=spec.why,
            )
        self._made_from = self._specs
        return peers
