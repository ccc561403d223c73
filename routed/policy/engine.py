"""The policy of one node: takes resources in one by one, gives what changes for the kernel.

Three indexes carry the work. `_peers` follows which endpoints and network sets of the whole cluster the selectors of rules
select, and keeps the sets that rules name. `_subjects` follows which endpoints of this node policies are for, and keeps
their walks. A policy is compiled when it changes, or when a set it names changes its kind (addresses or networks), and
only while an endpoint here is subject to it.

Invariants: what `flush` gives, applied in order, is the whole program for the resources so far, in however many slices
(`work`) it was made, and whatever changed between them. A policy that cannot be
read (`refuse`) closes what it is for, in its directions; it never opens anything, nor keeps another from being enforced.
Pure: no clock, no kernel.

Long for one idea: everything that must be told when a resource changes is here, and nowhere else.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from routed.desired_policy import (
    Action,
    BridgePort,
    Chain,
    ChainUpdate,
    EndpointPolicy,
    EndpointUpdate,
    Place,
    PolicyBatch,
    Rule,
    SetKind,
    SetSpec,
    SetUpdate,
    TierWalk,
    Walk,
)
from routed.model.kubernetes import ACCOUNT_PROFILE, NAMESPACE_PROFILE, EndpointSlice
from routed.model.policies import (
    DEFAULT_ALLOW,
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    NetworkPolicy,
    NetworkSet,
    Policy,
    PolicyType,
    Profile,
    Tier,
    TierAction,
)
from routed.model.policies import Rule as PolicyRule
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.selector import Selector
from routed.model.workloads import EndpointPort, HostEndpoint, WorkloadEndpoint
from routed.net.families import Family
from routed.policy.index import LabelIndex
from routed.policy.members import Difference, Members, Networks
from routed.policy.refusals import Refusal
from routed.policy.rules import (
    FixedNetworks,
    FixedPorts,
    SelectedAddresses,
    SelectedPorts,
    ServiceEndpoints,
    Source,
    cannot_judge,
    compile_rule,
    kind_of,
)
from routed.policy.scope import NAMESPACE, SERVICE_ACCOUNT, subjects

_DROPPED_LABELS = ("pcns.", "pcsa.")
"""Prefixes of labels an endpoint can only inherit."""

_DEFAULT_TIER = Tier(name="default", order=1_000_000.0)
_LAST = float("inf")
_UNREADABLE = Tier(name="policies that cannot be read", order=-_LAST)
"""Asked before all others: what cannot be read must not be overruled by what allows."""

_WILDCARD = "*"
_IN_ORDER = operator.attrgetter("kind", "name", "namespace")
"""The order of keys, without a call for each comparison."""

SLICE = 16
"""Walks or policies made in one go, so that whoever calls gets to other things between."""
SLICE_MEMBERS = 2_000
"""Members of sets found in one go; the policy that has most of them at once is made in full."""

_DIRECTIONS = {PolicyType.INGRESS: "ingress", PolicyType.EGRESS: "egress"}

ChainKey: TypeAlias = "tuple[ResourceKey, PolicyType]"
SetKey: TypeAlias = "tuple[Source, Family]"


@dataclass(frozen=True, slots=True)
class _Contribution:
    """What an endpoint or network set adds to the sets of a selector that selects it."""

    networks: tuple[tuple[Family, bytes], ...] = ()
    """Wire prefixes."""
    ports: tuple[EndpointPort, ...] = ()
    is_network: bool = False
    """Not every prefix of it is one address."""


@dataclass(slots=True)
class _Set:
    """A set that rules name."""

    source: Source
    family: Family
    spec: SetSpec
    members: Members | Networks
    users: set[ChainKey] = field(default_factory=set)
    told: bool = False
    """The kernel has heard of it."""
    difference: Difference = field(default_factory=Difference)

    @property
    def in_kernel(self) -> frozenset[bytes]:
        """The members the kernel has heard of."""
        return (self.members.shown - self.difference.added) | self.difference.removed


class PolicyEngine:
    """See the module's docstring."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._resources: dict[ResourceKey, Resource] = {DEFAULT_ALLOW.key: DEFAULT_ALLOW}
        self._refused: dict[ResourceKey, _Refused] = {}
        self._peers: LabelIndex[Selector, ResourceKey] = LabelIndex()
        self._subjects: LabelIndex[ResourceKey, ResourceKey] = LabelIndex()
        self._contributions: dict[ResourceKey, _Contribution] = {}
        self._selected_by: dict[ResourceKey, set[Selector]] = {}
        """The selectors whose sets have an item's contribution now."""
        self._network_items: Counter[Selector] = Counter()
        """How many network sets a selector selects."""
        self._sets: dict[SetKey, _Set] = {}
        self._sets_of: dict[Selector, set[SetKey]] = {}
        self._sets_of_chain: dict[ChainKey, set[SetKey]] = {}
        self._dirty_sets: set[SetKey] = set()
        self._unjudged: dict[ResourceKey, frozenset[str]] = {}
        """Policies with rules that are left out, and why."""
        self._services: dict[tuple[str, str], dict[ResourceKey, EndpointSlice]] = {}
        self._chains: dict[ChainKey, Chain] = {}
        """Those the kernel has."""
        self._users: dict[ChainKey, set[ResourceKey]] = {}
        """Endpoints whose walks name a chain."""
        self._walks: dict[ResourceKey, tuple[EndpointPolicy, ...]] = {}
        self._owners: dict[tuple[str, Place], ResourceKey] = {}
        """Whose the policy at an interface is: the endpoint that named it last."""
        self._chains_of: dict[ResourceKey, frozenset[ChainKey]] = {}
        self._lacking: dict[ResourceKey, frozenset[str]] = {}
        """Endpoints with profiles that are not there, or interfaces that are another's, in sentences."""
        self._stale_policies: set[ResourceKey] = set()
        self._stale_endpoints: set[ResourceKey] = set()
        self._stale_services: set[tuple[str, str]] = set()
        self._interfaces_by_address: Mapping[bytes, str] = {}
        self._gone_sets: list[_Set] = []
        self._made_chains: dict[str, ChainUpdate] = {}
        """What the next batch says of chains."""
        self._made_endpoints: dict[tuple[str, Place], EndpointPolicy | None] = {}
        """What it says of endpoints."""
        self._found_members = 0
        """In this slice of work."""
        self.problems: tuple[str, ...] = ()

    # ---- inputs

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        key, value = update.key, update.value
        old = self._resources.get(key)
        if value is None:
            if key == DEFAULT_ALLOW.key:
                return
            self._resources.pop(key, None)
        else:
            self._resources[key] = value
        self._refused.pop(key, None)
        match key.kind:
            case NetworkPolicy.kind | GlobalNetworkPolicy.kind:
                self._policy_changed(key, value if isinstance(value, Policy) else None)
            case Profile.kind:
                self._profile_changed(key, value if isinstance(value, Profile) else None)
            case Tier.kind:
                self._stale_endpoints |= self._walks.keys()
            case WorkloadEndpoint.kind:
                self._workload_changed(key, value if isinstance(value, WorkloadEndpoint) else None)
            case HostEndpoint.kind:
                self._host_changed(key, value if isinstance(value, HostEndpoint) else None)
            case NetworkSet.kind | GlobalNetworkSet.kind:
                self._network_set_changed(key, value if isinstance(value, (NetworkSet, GlobalNetworkSet)) else None)
            case EndpointSlice.kind:
                self._slice_changed(key, old, value)
            case _:
                if value is not None:
                    del self._resources[key]

    def refuse(self, refusal: Refusal) -> None:
        """A policy is there and cannot be read: it closes what its selector says, in its directions, where it is asked.

        Where not even that can be read: everything in its namespace; a global one keeps its last good version, or what it
        closes already, or where there was neither says nothing.
        """
        key, selector = refusal.key, refusal.selector
        if refusal.keeps_last:
            before = self._refused.get(key)
            self._refused[key] = _Refused(refusal, before.closing if before is not None else None)
            return
        types = refusal.types or frozenset(PolicyType)
        closing: Policy
        if key.kind == GlobalNetworkPolicy.kind:
            closing = GlobalNetworkPolicy(
                name=key.name,
                tier=_UNREADABLE.name,
                selector=selector,
                types=types,
                apply_on_forward=refusal.apply_on_forward,
                pre_dnat=refusal.pre_dnat,
                do_not_track=refusal.do_not_track,
            )
        else:
            closing = NetworkPolicy(
                name=key.name, namespace=key.namespace, tier=_UNREADABLE.name, selector=selector, types=types
            )
        self._resources.pop(key, None)
        self._unjudged.pop(key, None)
        self._refused[key] = _Refused(refusal, closing)
        self._stale_endpoints |= self._matches(key)
        self._subjects.remove_selector(key)
        self._subjects.add_selector(key, subjects(closing))
        self._stale_policies.add(key)
        self._stale_endpoints |= self._subjects.matches(key)

    def interfaces(self, by_address: Mapping[bytes, str]) -> None:
        """The node's interfaces by their packed addresses, for host endpoints that name only addresses."""
        if dict(by_address) != self._interfaces_by_address:
            self._interfaces_by_address = dict(by_address)
            self._stale_endpoints |= {key for key in self._resources if key.kind == HostEndpoint.kind}

    # ---- questions

    def interface_of(self, address: bytes) -> str:
        """The interface of the pod of this node that has an address; empty where none has."""
        for key in self._walks:
            found = self._resources.get(key)
            if isinstance(found, WorkloadEndpoint) and any(each.prefix[1:] == address for each in found.ip_networks):
                return found.interface_name
        return ""

    # ---- outputs

    def work(self, limit: int = SLICE) -> bool:
        """Make up to `limit` walks or policies anew that changes concern, or fewer where they have many members in sets.
        Whether there is more to do before `flush`.

        Updates may come between two slices: what was made of what they change is made again.
        """
        self._follow_subjects()
        self._found_members = 0
        if self._stale_endpoints:
            self._rewalk(heapq.nsmallest(limit, self._stale_endpoints, _IN_ORDER))
        else:
            self._recompile(heapq.nsmallest(limit, self._stale_policies, _IN_ORDER))
        self._follow_peers()  # a set may have to hold networks now, and then its rules change
        return bool(self._stale_endpoints or self._stale_policies)

    def flush(self) -> PolicyBatch | None:
        """What changed since the last call, in one batch; None where nothing did. What `work` left undone is done first."""
        while self.work():
            pass
        chains, self._made_chains = tuple(self._made_chains.values()), {}
        made, self._made_endpoints = self._made_endpoints, {}
        endpoints = tuple(EndpointUpdate(*at, policy) for at, policy in made.items())
        sets = tuple(self._changed_sets())
        self._tell_problems()
        if not sets and not chains and not endpoints:
            return None
        return PolicyBatch(sets=sets, chains=chains, endpoints=endpoints)

    # ---- policies and profiles

    def _policy_changed(self, key: ResourceKey, policy: Policy | None) -> None:
        self._stale_policies.add(key)
        self._unjudged.pop(key, None)
        if policy is None:
            self._stale_endpoints |= self._matches(key)
            self._subjects.remove_selector(key)
            return
        unjudged = frozenset(_unjudged(key, policy))
        if unjudged:
            self._unjudged[key] = unjudged
        scope = subjects(policy)
        self._stale_endpoints |= self._matches(key)
        self._subjects.remove_selector(key)
        self._subjects.add_selector(key, scope)
        self._stale_endpoints |= self._subjects.matches(key)

    def _matches(self, key: ResourceKey) -> set[ResourceKey]:
        return set(self._subjects.matches(key)) if self._subjects.has(key) else set()

    def _profile_changed(self, key: ResourceKey, profile: Profile | None) -> None:
        labels = profile.labels_to_apply if profile is not None else None
        self._peers.set_parent(key.name, labels)
        self._subjects.set_parent(key.name, labels)
        self._stale_policies.add(key)
        self._stale_endpoints |= self._endpoints_with_profile(key.name)

    def _endpoints_with_profile(self, name: str) -> set[ResourceKey]:
        return {
            key
            for key in self._walks
            if isinstance(found := self._resources.get(key), (WorkloadEndpoint, HostEndpoint))
            and name in found.profiles
        }

    # ---- endpoints

    def _workload_changed(self, key: ResourceKey, endpoint: WorkloadEndpoint | None) -> None:
        if endpoint is None or not endpoint.ip_networks:
            self._item_gone(key)
            return
        networks = tuple((each.family, each.prefix) for each in endpoint.ip_networks)
        labels = _workload_labels(endpoint, key.namespace)
        self._item(key, labels, endpoint.profiles, _Contribution(networks, endpoint.ports))
        self._local(key, labels, endpoint.profiles, here=endpoint.node == self._node_name)

    def _host_changed(self, key: ResourceKey, endpoint: HostEndpoint | None) -> None:
        if endpoint is None:
            self._item_gone(key)
            self._stale_endpoints |= self._host_endpoints()
            return
        networks = tuple(
            (Family.of_address(address), bytes((8 * len(address),)) + address) for address in endpoint.expected_ips
        )
        self._item(key, endpoint.labels, endpoint.profiles, _Contribution(networks, endpoint.ports))
        self._local(key, endpoint.labels, endpoint.profiles, here=endpoint.node == self._node_name)
        self._stale_endpoints |= self._host_endpoints()

    def _host_endpoints(self) -> set[ResourceKey]:
        """Those of this node: whether there is one for all interfaces is each one's business."""
        return {key for key in self._walks if key.kind == HostEndpoint.kind}

    def _network_set_changed(self, key: ResourceKey, found: NetworkSet | GlobalNetworkSet | None) -> None:
        if found is None:
            self._item_gone(key)
            return
        labels: Mapping[str, str] = found.labels
        parents: tuple[str, ...] = ()
        if key.namespace:
            labels = {**labels, NAMESPACE: key.namespace}
            parents = (NAMESPACE_PROFILE + key.namespace,)
        networks = tuple((each.family, each.prefix) for each in found.nets)
        self._item(key, labels, parents, _Contribution(networks, is_network=True))

    def _item(
        self, key: ResourceKey, labels: Mapping[str, str], parents: tuple[str, ...], contribution: _Contribution
    ) -> None:
        """Something rules may select."""
        old = self._contributions.get(key)
        if old is not None and old != contribution:
            for selector in self._selected_by.get(key, ()):
                self._contribute(selector, old, -1)
                self._contribute(selector, contribution, +1)
        self._contributions[key] = contribution
        self._peers.set_item(key, labels, parents)

    def _local(self, key: ResourceKey, labels: Mapping[str, str], parents: tuple[str, ...], *, here: bool) -> None:
        if here:
            self._subjects.set_item(key, labels, parents)
            self._walks.setdefault(key, ())
            self._stale_endpoints.add(key)
        else:
            self._subjects.remove_item(key)
            if key in self._walks:
                self._stale_endpoints.add(key)

    def _item_gone(self, key: ResourceKey) -> None:
        self._peers.remove_item(key)
        self._subjects.remove_item(key)
        self._follow_peers()  # while what it contributed is still known
        self._contributions.pop(key, None)
        if key in self._walks:
            self._stale_endpoints.add(key)

    # ---- walks

    def _follow_subjects(self) -> None:
        for changes in self._subjects.take().values():
            self._stale_endpoints |= changes.keys()

    def _rewalk(self, stale: list[ResourceKey]) -> None:
        """The walks of endpoints that may have changed."""
        self._stale_endpoints.difference_update(stale)
        updates = self._made_endpoints
        ordered = self._ordered_policies(stale)
        for key in stale:
            if key not in self._walks:
                continue
            self._look_for_problems(key)
            made, chains = self._walks_of(key, ordered)
            before = self._chains_of.pop(key, frozenset())
            for chain in before - chains:  # of chains it matters whether somebody uses them, not who
                users = self._users[chain]
                users.discard(key)
                if not users:
                    self._stale_policies.add(chain[0])
            for chain in chains - before:
                users = self._users.setdefault(chain, set())
                if not users:
                    self._stale_policies.add(chain[0])
                users.add(key)
            old, self._walks[key] = self._walks[key], made
            if chains:
                self._chains_of[key] = chains
            now = {(each.interface, each.place): each for each in made}
            for each in old:
                at = (each.interface, each.place)
                if at not in now and self._owners.get(at) == key:
                    del self._owners[at]
                    updates[at] = None
            for at, each in now.items():
                if each not in old or self._owners.get(at) != key:
                    self._owners[at] = key
                    updates[at] = each
            if not self._is_here(key):
                del self._walks[key]

    def _is_here(self, key: ResourceKey) -> bool:
        found = self._resources.get(key)
        if isinstance(found, WorkloadEndpoint):
            return found.node == self._node_name and bool(found.ip_networks)
        return isinstance(found, HostEndpoint) and found.node == self._node_name

    def _ordered_policies(self, stale: Iterable[ResourceKey]) -> dict[ResourceKey, list[ResourceKey]]:
        """The policies each endpoint is subject to, in the order they are asked."""
        return {key: sorted(self._subjects.matching(key), key=self._rank) for key in stale}

    def _rank(self, key: ResourceKey) -> tuple[float, str]:
        policy = self._policy(key)
        order = policy.order if policy is not None and policy.order is not None else _LAST
        return order, f"{key.name}/{key.namespace}/{key.kind}"  # as one text, which is not the order of its parts

    def _policy(self, key: ResourceKey) -> Policy | None:
        refused = self._refused.get(key)
        if refused is not None and refused.closing is not None:
            return refused.closing
        found = self._resources.get(key)
        return found if isinstance(found, Policy) else None

    def _tiers(self, policies: list[ResourceKey]) -> list[tuple[Tier, list[ResourceKey]]]:
        by_tier: dict[str, list[ResourceKey]] = {}
        for key in policies:
            policy = self._policy(key)
            if policy is not None:
                by_tier.setdefault(policy.tier, []).append(key)
        tiers: list[tuple[bool, float, str, Tier]] = []
        for name in by_tier:
            found = {_UNREADABLE.name: _UNREADABLE}.get(name) or self._resources.get(ResourceKey(Tier.kind, name))
            known = isinstance(found, Tier) or name == _DEFAULT_TIER.name
            tier = found if isinstance(found, Tier) else _DEFAULT_TIER if known else Tier(name=name)
            # what nobody made comes behind what nobody ordered, and closes
            tiers.append((not known, _LAST if tier.order is None else tier.order, name, tier))
        return [(tier, by_tier[name]) for _, _, name, tier in sorted(tiers, key=lambda each: each[:3])]

    def _walks_of(
        self, key: ResourceKey, ordered: dict[ResourceKey, list[ResourceKey]]
    ) -> tuple[tuple[EndpointPolicy, ...], frozenset[ChainKey]]:
        if not self._is_here(key):
            return (), frozenset()
        endpoint = self._resources[key]
        chains: set[ChainKey] = set()
        if isinstance(endpoint, WorkloadEndpoint):
            if not endpoint.interface_name:
                return (), frozenset()
            ingress, egress = (
                self._walk(ordered[key], direction, Place.WORKLOAD, endpoint.profiles, chains)
                for direction in PolicyType
            )
            port = None
            if endpoint.bridge:
                addresses = tuple(network.prefix[1:] for network in endpoint.ip_networks)
                port = BridgePort(endpoint.bridge, endpoint.mac or b"", addresses)
            sources = tuple((each.family, each.prefix) for each in endpoint.allow_spoofed_source_prefixes)
            made_here = EndpointPolicy(endpoint.interface_name, Place.WORKLOAD, ingress, egress, port, sources)
            return (made_here,), frozenset(chains)
        assert isinstance(endpoint, HostEndpoint)
        interfaces = [name for name, owner in self._host_interfaces().items() if owner == key]
        if not interfaces:
            return (), frozenset()
        made = []
        wildcard = any(
            isinstance(each := self._resources.get(other), HostEndpoint) and each.interface_name == _WILDCARD
            for other in self._walks
        )
        for place in (Place.HOST, Place.HOST_FORWARD, Place.HOST_PRE_DNAT, Place.HOST_UNTRACKED):
            profiles = endpoint.profiles if place is Place.HOST else ()
            at_place = [policy for policy in ordered[key] if self._belongs(policy, place)]
            both = (self._walk(at_place, direction, place, profiles, chains) for direction in PolicyType)
            # but for the host itself, nothing is in the way where nobody asks
            inward, outward = (walk if walk.tiers or place is Place.HOST else None for walk in both)
            for interface in interfaces:
                beside_wildcard = wildcard and interface != _WILDCARD
                if beside_wildcard or inward is not None or outward is not None:
                    made.append(EndpointPolicy(interface, place, inward, outward))
        return tuple(made), frozenset(chains)

    def _host_interfaces(self) -> dict[str, ResourceKey]:
        """Whose each interface of the host is: of several endpoints that name it or its addresses the first by name."""
        found: dict[str, ResourceKey] = {}
        for key in sorted(self._host_endpoints()):
            endpoint = self._resources.get(key)
            if isinstance(endpoint, HostEndpoint) and endpoint.node == self._node_name:
                for name in self._interfaces_of(endpoint):
                    found.setdefault(name, key)
        return found

    def _interfaces_of(self, endpoint: HostEndpoint) -> tuple[str, ...]:
        """The interfaces an endpoint names, by their name or by their addresses."""
        if endpoint.interface_name:
            return (endpoint.interface_name,)
        named = (self._interfaces_by_address.get(ip) for ip in endpoint.expected_ips)
        return tuple(dict.fromkeys(name for name in named if name))

    def _belongs(self, key: ResourceKey, place: Place) -> bool:
        """Whether a policy is asked at a place of the host."""
        if self._may_be_asked_anywhere(key):
            return True
        policy = self._policy(key)
        if not isinstance(policy, GlobalNetworkPolicy):
            return place is Place.HOST
        if policy.do_not_track:
            return place is Place.HOST_UNTRACKED
        if policy.pre_dnat:
            return place is Place.HOST_PRE_DNAT
        return place is Place.HOST or (place is Place.HOST_FORWARD and policy.apply_on_forward)

    def _walk(
        self,
        policies: list[ResourceKey],
        direction: PolicyType,
        place: Place,
        profiles: tuple[str, ...],
        chains: set[ChainKey],
    ) -> Walk:
        if place is Place.WORKLOAD:  # before and around tracking is the host's business only
            policies = [key for key in policies if self._is_plain(key)]
        early = place in (Place.HOST_PRE_DNAT, Place.HOST_UNTRACKED)
        tiers = []
        for tier, members in self._tiers(policies):
            named = [key for key in members if (policy := self._policy(key)) is not None and direction in policy.types]
            if not named:
                continue
            chains |= {(key, direction) for key in named}
            end = Action.PASS if early or tier.default_action is TierAction.PASS else Action.DENY
            tiers.append(TierWalk(tier.name, tuple(chain_name(key, direction) for key in named), end))
        # one that is not there allows nothing, and what stands behind it is not asked
        asked = (ResourceKey(Profile.kind, name) for name in profiles)
        present = list(itertools.takewhile(self._resources.__contains__, asked))
        chains |= {(key, direction) for key in present}
        return Walk(tuple(tiers), tuple(chain_name(key, direction) for key in present))

    def _is_plain(self, key: ResourceKey) -> bool:
        policy = self._policy(key)
        early = isinstance(policy, GlobalNetworkPolicy) and (policy.do_not_track or policy.pre_dnat)
        return not early or self._may_be_asked_anywhere(key)

    def _may_be_asked_anywhere(self, key: ResourceKey) -> bool:
        refused = self._refused.get(key)
        return refused is not None and refused.refusal.anywhere

    # ---- chains

    def _recompile(self, stale: list[ResourceKey]) -> None:
        for key in stale:
            self._stale_policies.discard(key)
            for direction in PolicyType:
                update = self._compile((key, direction))
                if update is not None:
                    self._made_chains[update.name] = update
            if self._found_members >= SLICE_MEMBERS:
                return

    def _compile(self, chain: ChainKey) -> ChainUpdate | None:
        key, direction = chain
        name = chain_name(key, direction)
        rules = self._rules(chain)
        if not self._users.get(chain) or rules is None:
            self._users.pop(chain, None)
            if self._chains.pop(chain, None) is not None:
                self._release(chain)
                return ChainUpdate(name, None)
            return None
        before = self._sets_of_chain.pop(chain, set())
        compiled: list[Rule] = []
        label = _label(key)
        for number, rule in enumerate(rules, 1):
            origin = f"{label} {_DIRECTIONS[direction]} {number}"
            compiled += compile_rule(
                rule, key.namespace, origin, lambda source, family: self._named(source, family, chain)
            )
        self._forget_unused(chain, before - self._sets_of_chain.get(chain, set()))
        refused = self._refused.get(key)
        if refused is not None and refused.closing is not None:
            compiled = [Rule(Action.DENY, origin=f"{label} cannot be read")]
        made = Chain(name, tuple(compiled), label)
        if self._chains.get(chain) == made:
            return None
        self._chains[chain] = made
        return ChainUpdate(name, made)

    def _rules(self, chain: ChainKey) -> tuple[PolicyRule, ...] | None:
        key, direction = chain
        found: Resource | None = self._policy(key) if key.kind != Profile.kind else self._resources.get(key)
        if isinstance(found, (Policy, Profile)):
            return found.ingress if direction is PolicyType.INGRESS else found.egress
        return None

    # ---- sets

    def _named(self, source: Source, family: Family, user: ChainKey) -> str:
        """The set for a source, made where there is none."""
        key = (source, family)
        found = self._sets.get(key)
        if found is None:
            selector = source.selector if isinstance(source, (SelectedAddresses, SelectedPorts)) else None
            if selector is not None:
                self._peers.add_selector(selector, selector)
                self._sets_of.setdefault(selector, set()).add(key)
                self._follow_peers()
            found = self._sets[key] = self._make_set(source, family)
            self._dirty_sets.add(key)
        found.users.add(user)
        self._sets_of_chain.setdefault(user, set()).add(key)
        return found.spec.name

    def _make_set(self, source: Source, family: Family) -> _Set:
        selector = source.selector if isinstance(source, SelectedAddresses) else None
        kind = kind_of(source, networks=bool(selector is not None and self._network_items[selector]))
        members: Members | Networks = Networks(family) if kind is SetKind.NETS else Members()
        made = _Set(source, family, SetSpec(_set_name(source, family, kind), family, kind), members)
        for member in self._members(made):
            members.add(member, made.difference)
            self._found_members += 1
        return made

    def _members(self, of: _Set) -> Iterator[bytes]:
        source = of.source
        if isinstance(source, FixedNetworks):
            yield from source.prefixes
        elif isinstance(source, FixedPorts):
            yield from (low.to_bytes(2, "big") + high.to_bytes(2, "big") for low, high in source.ranges)
        elif isinstance(source, ServiceEndpoints):
            yield from self._service_members(source, of.family)
        else:
            for item in self._peers.matches(source.selector):
                if source.selector in self._selected_by.get(item, ()):
                    yield from _given(of, self._contributions[item])

    def _follow_peers(self) -> None:
        """Bring sets in line with what selectors select."""
        for selector, changes in self._peers.take().items():
            before = networks = self._network_items[selector]
            has_sets = bool(self._sets_of.get(selector))
            for item, matched in changes.items():
                contribution = self._contributions[item]
                selected_by = self._selected_by.setdefault(item, set())
                networks += (1 if matched else -1) * contribution.is_network
                if has_sets:
                    self._contribute(selector, contribution, 1 if matched else -1)
                if matched:
                    selected_by.add(selector)
                else:
                    selected_by.discard(selector)
                    if not selected_by:
                        del self._selected_by[item]
            self._network_items[selector] = networks
            if bool(before) is not bool(networks):
                self._change_kind(selector)

    def _contribute(self, selector: Selector, contribution: _Contribution, step: int) -> None:
        for key in self._sets_of.get(selector, ()):
            found = self._sets.get(key)
            if found is None:
                continue
            self._dirty_sets.add(key)
            change = found.members.add if step > 0 else found.members.remove
            for member in _given(found, contribution):
                change(member, found.difference)

    def _change_kind(self, selector: Selector) -> None:
        """A selector selects its first network, or none any more: its sets are made anew, and the rules that name them."""
        for key in list(self._sets_of.get(selector, ())):
            found = self._sets.get(key)
            if found is None or not isinstance(found.source, SelectedAddresses):
                continue
            self._gone_sets.append(found)
            made = self._sets[key] = self._make_set(found.source, found.family)
            made.users = found.users
            self._dirty_sets.add(key)
            self._stale_policies |= {policy for policy, _ in found.users}

    def _release(self, chain: ChainKey) -> None:
        """A chain is gone, and names no set any more."""
        self._forget_unused(chain, self._sets_of_chain.pop(chain, set()))

    def _forget_unused(self, chain: ChainKey, candidates: set[SetKey]) -> None:
        """A chain names these sets no more."""
        for key in candidates:
            found = self._sets[key]
            found.users.discard(chain)
            if found.users:
                continue
            del self._sets[key]
            self._gone_sets.append(found)
            if isinstance(found.source, (SelectedAddresses, SelectedPorts)):
                selector = found.source.selector
                self._sets_of[selector].discard(key)
                if not self._sets_of[selector]:
                    self._forget_selector(selector)

    def _forget_selector(self, selector: Selector) -> None:
        del self._sets_of[selector]
        self._follow_peers()
        for item in self._peers.matches(selector):
            selected_by = self._selected_by[item]
            selected_by.discard(selector)
            if not selected_by:
                del self._selected_by[item]
        self._peers.remove_selector(selector)
        del self._network_items[selector]

    def _changed_sets(self) -> Iterator[SetUpdate]:
        dirty, self._dirty_sets = self._dirty_sets, set()
        gone, self._gone_sets = self._gone_sets, []
        held = {each.spec.name: each for each in gone if each.told}
        for key in sorted(dirty, key=lambda key: self._sets[key].spec.name if key in self._sets else ""):
            each = self._sets.get(key)
            if each is None:
                continue
            difference, each.difference = each.difference, Difference()
            if not each.told:
                each.told = True
                before = held.pop(each.spec.name, None)
                if before is None:
                    yield SetUpdate(each.spec, each.members.shown)
                    continue
                # given up and needed again: what the kernel has of it is not all new
                there, wanted = before.in_kernel, each.members.shown
                difference = Difference(set(wanted - there), set(there - wanted))
            if difference:
                yield SetUpdate(each.spec, frozenset(difference.added), frozenset(difference.removed))
        for each in held.values():
            yield SetUpdate(each.spec, gone=True)

    # ---- services

    def _slice_changed(self, key: ResourceKey, old: Resource | None, new: Resource | None) -> None:
        for value in (old, new):
            if isinstance(value, EndpointSlice) and value.service:
                self._stale_services.add((key.namespace, value.service))
        if isinstance(old, EndpointSlice) and old.service:
            slices = self._services.get((key.namespace, old.service), {})
            slices.pop(key, None)
        if isinstance(new, EndpointSlice) and new.service:
            self._services.setdefault((key.namespace, new.service), {})[key] = new
        for service in self._stale_services:
            for (source, family), found in self._sets.items():
                if isinstance(source, ServiceEndpoints) and (source.namespace, source.name) == service:
                    wanted = frozenset(self._service_members(source, family))
                    self._dirty_sets.add((source, family))
                    for member in found.members.shown - wanted:
                        found.members.remove(member, found.difference)
                    for member in wanted - found.members.shown:
                        found.members.add(member, found.difference)
        self._stale_services.clear()

    def _service_members(self, source: ServiceEndpoints, family: Family) -> Iterator[bytes]:
        seen: set[bytes] = set()
        for each in self._services.get((source.namespace, source.name), {}).values():
            ports = [(port.protocol, port.port) for port in each.ports if port.port is not None]
            addresses = [ip for endpoint in each.endpoints if endpoint.ready for ip in endpoint.addresses]
            for address in addresses:
                if Family.of_address(address) is not family:
                    continue
                if not source.with_ports:
                    seen.add(address)
                    continue
                seen |= {address + bytes((protocol,)) + port.to_bytes(2, "big") for protocol, port in ports}
        yield from seen

    # ---- problems

    def _tell_problems(self) -> None:
        problems = {f"{_label(key)}: {refusal}" for key, refusal in self._refused.items()}
        problems.update(*self._unjudged.values())
        problems.update(*self._lacking.values())
        self.problems = tuple(sorted(problems))

    def _look_for_problems(self, key: ResourceKey) -> None:
        endpoint = self._resources.get(key)
        names = endpoint.profiles if isinstance(endpoint, (WorkloadEndpoint, HostEndpoint)) else ()
        lacking = frozenset(
            f"{_label(key)}: there is no Profile {name}, so it allows nothing, and those after it are not asked"
            for name in names
            if ResourceKey(Profile.kind, name) not in self._resources and not name.startswith(ACCOUNT_PROFILE)
        )
        if isinstance(endpoint, HostEndpoint):
            owners = self._host_interfaces()
            lacking |= {
                f"{_label(key)}: has no effect at {name}, which {_label(owner)} is for, that comes first by name"
                for name in self._interfaces_of(endpoint)
                if (owner := owners.get(name, key)) != key
            }
        if lacking and self._is_here(key):
            self._lacking[key] = lacking
        else:
            self._lacking.pop(key, None)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A policy that cannot be read."""

    refusal: Refusal
    closing: Policy | None
    """What takes its place; None: its last good version stays."""

    def __str__(self) -> str:
        if self.closing is None:
            return f"{self.refusal.reason}; its last good version stays"
        return f"{self.refusal.reason}; until it is put right, what it selects is closed"


def _unjudged(key: ResourceKey, policy: Policy) -> Iterator[str]:
    for direction, rules in (("ingress", policy.ingress), ("egress", policy.egress)):
        for number, rule in enumerate(rules):
            why = cannot_judge(rule)
            if why:
                yield f"{_label(key)}: spec.{direction}[{number}].{why}"


def _workload_labels(endpoint: WorkloadEndpoint, namespace: str) -> Mapping[str, str]:
    written, account = endpoint.labels, endpoint.service_account_name
    if written.get(NAMESPACE) == namespace and (not account or written.get(SERVICE_ACCOUNT) == account):
        names = " ".join(written)
        if not any(prefix in names for prefix in _DROPPED_LABELS):
            return written  # as Calico writes nearly all
    labels = {label: value for label, value in written.items() if not label.startswith(_DROPPED_LABELS)}
    labels[NAMESPACE] = namespace
    if account:
        labels[SERVICE_ACCOUNT] = account
    return labels


def _given(of: _Set, contribution: _Contribution) -> Iterator[bytes]:
    """What an item adds to a set, as its kind has it."""
    source = of.source
    for family, prefix in contribution.networks:
        if family is not of.family:
            continue
        if of.spec.kind is SetKind.NETS:
            yield prefix
        elif of.spec.kind is SetKind.HOSTS:
            if prefix[0] == family.max_length:
                yield prefix[1:]
        elif isinstance(source, SelectedPorts) and prefix[0] == family.max_length:
            for port in contribution.ports:
                if port.name in source.ports and port.protocol == source.protocol:
                    yield prefix[1:] + bytes((port.protocol,)) + port.port.to_bytes(2, "big")


def chain_name(key: ResourceKey, direction: PolicyType) -> str:
    """The chain of a policy or profile in one direction: readable, and no two alike."""
    words = "_".join(part for part in (key.namespace, key.name) if part)
    readable = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:22]
    digest = hashlib.sha256(f"{key.kind}/{key.namespace}/{key.name}".encode()).hexdigest()[:10]
    return f"{readable}_{digest}_{'in' if direction is PolicyType.INGRESS else 'out'}"


def _set_name(source: Source, family: Family, kind: SetKind) -> str:
    digest = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
    return f"s_{digest}_{4 if family is Family.IPV4_UNICAST else 6}{kind.value[0]}"


def _label(key: ResourceKey) -> str:
    """A policy as people call it."""
    return str(key)
