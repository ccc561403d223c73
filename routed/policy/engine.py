"""The policy of one node: takes resources in one by one, gives what changes for the kernel.

`_subjects` follows which endpoints of this node policies are for, and keeps their walks; `sets` has what the rules of the
policies name. A policy is compiled when it changes, or when a set it names changes its kind (addresses or networks), and
only while an endpoint here is subject to it.

Invariants: what `flush` gives, applied in order, is the whole program for the resources so far, in however many slices
(`work`) it was made, and whatever changed between them. A policy that cannot be read (`refuse`) closes what it is for, in
its directions; it never opens anything, nor keeps another from being enforced. Pure: no clock, no kernel.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping

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
from routed.model.workloads import HostEndpoint, WorkloadEndpoint
from routed.net.families import Family
from routed.policy.index import LabelIndex
from routed.policy.refusals import UNREADABLE, Refusal, Refused, closing_policy
from routed.policy.rules import cannot_judge, compile_rule
from routed.policy.scope import NAMESPACE, subjects, workload_labels
from routed.policy.sets import ChainKey, Contribution, RuleSets

_DEFAULT_TIER = Tier(name="default", order=1_000_000.0)
_LAST = float("inf")

_WILDCARD = "*"
_IN_ORDER = operator.attrgetter("kind", "name", "namespace")
"""The order of keys, without a call for each comparison."""

SLICE = 16
"""Walks or policies made in one go, so that whoever calls gets to other things between."""
SLICE_MEMBERS = 2_000
"""Members of sets found in one go; the policy that has most of them at once is made in full."""

_DIRECTIONS = {PolicyType.INGRESS: "ingress", PolicyType.EGRESS: "egress"}


class PolicyEngine:
    """See the module's docstring."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._resources: dict[ResourceKey, Resource] = {DEFAULT_ALLOW.key: DEFAULT_ALLOW}
        self._refused: dict[ResourceKey, Refused] = {}
        self._sets = RuleSets()
        self._subjects: LabelIndex[ResourceKey, ResourceKey] = LabelIndex()
        self._unjudged: dict[ResourceKey, frozenset[str]] = {}
        """Policies with rules that are left out, and why."""
        self._chains: dict[ChainKey, Chain] = {}
        """Those the kernel has."""
        self._users: dict[ChainKey, set[ResourceKey]] = {}
        """Endpoints whose walks name a chain."""
        self._walks: dict[ResourceKey, tuple[EndpointPolicy, ...]] = {}
        self._claims: dict[tuple[str, Place], dict[ResourceKey, EndpointPolicy]] = {}
        """The endpoints that name an interface; the first by name counts."""
        self._doubled: set[tuple[str, Place]] = set()
        """Interfaces that more than one names."""
        self._chains_of: dict[ResourceKey, frozenset[ChainKey]] = {}
        self._lacking: dict[ResourceKey, frozenset[str]] = {}
        """Endpoints with profiles that are not there, or interfaces that are another's, in sentences."""
        self._stale_policies: set[ResourceKey] = set()
        self._stale_endpoints: set[ResourceKey] = set()
        self._interfaces_by_address: Mapping[bytes, str] = {}
        self._made_chains: dict[str, ChainUpdate] = {}
        """What the next batch says of chains."""
        self._made_endpoints: dict[tuple[str, Place], EndpointPolicy | None] = {}
        """What it says of endpoints."""
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
                self._sets.set_slice(key, old, value)
            case _:
                if value is not None:
                    del self._resources[key]

    def refuse(self, refusal: Refusal) -> None:
        """A policy is there and cannot be read: it closes what its selector says, in its directions, where it is asked.

        Where not even that can be read: everything in its namespace; a global one keeps its last good version, or what it
        closes already, or where there was neither says nothing.
        """
        key = refusal.key
        if refusal.keeps_last:
            before = self._refused.get(key)
            self._refused[key] = Refused(refusal, before.closing if before is not None else None)
            return
        closing = closing_policy(refusal)
        self._resources.pop(key, None)
        self._unjudged.pop(key, None)
        self._refused[key] = Refused(refusal, closing)
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
        self._stale_policies |= self._sets.take_stale()
        if self._stale_endpoints:
            self._rewalk(heapq.nsmallest(limit, self._stale_endpoints, _IN_ORDER))
        else:
            self._recompile(heapq.nsmallest(limit, self._stale_policies, _IN_ORDER))
        self._sets.follow()  # a set may have to hold networks now, and then its rules change
        self._stale_policies |= self._sets.take_stale()
        return bool(self._stale_endpoints or self._stale_policies)

    def flush(self) -> PolicyBatch | None:
        """What changed since the last call, in one batch; None where nothing did. What `work` left undone is done first."""
        while self.work():
            pass
        chains, self._made_chains = tuple(self._made_chains.values()), {}
        made, self._made_endpoints = self._made_endpoints, {}
        endpoints = tuple(EndpointUpdate(*at, policy) for at, policy in made.items())
        sets = tuple(self._sets.changes())
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
        self._sets.set_parent(key.name, labels)
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
        labels = workload_labels(endpoint, key.namespace)
        self._sets.set_item(key, labels, endpoint.profiles, Contribution(endpoint.ip_networks, endpoint.ports))
        self._local(key, labels, endpoint.profiles, here=endpoint.node == self._node_name)

    def _host_changed(self, key: ResourceKey, endpoint: HostEndpoint | None) -> None:
        if endpoint is None:
            self._item_gone(key)
            self._stale_endpoints |= self._host_endpoints()
            return
        networks = tuple(
            (Family.of_address(address), bytes((8 * len(address),)) + address) for address in endpoint.expected_ips
        )
        self._sets.set_item(key, endpoint.labels, endpoint.profiles, Contribution(networks, endpoint.ports))
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
        self._sets.set_item(key, labels, parents, Contribution(networks, is_network=True))

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
        self._sets.remove_item(key)
        self._subjects.remove_item(key)
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
            for at in {(each.interface, each.place) for each in old} | now.keys():
                claims = self._claims.setdefault(at, {})
                was = claims[min(claims)] if claims else None
                if at in now:
                    claims[key] = now[at]
                else:
                    claims.pop(key, None)
                counts = claims[min(claims)] if claims else None
                if counts != was:
                    updates[at] = counts
                if not claims:
                    del self._claims[at]
                (self._doubled.add if len(claims) > 1 else self._doubled.discard)(at)
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
            found = {UNREADABLE.name: UNREADABLE}.get(name) or self._resources.get(ResourceKey(Tier.kind, name))
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
            port = BridgePort(endpoint.bridge, endpoint.mac or b"") if endpoint.bridge else None
            own = tuple(each.prefix[1:] for each in endpoint.ip_networks)
            sources = tuple((each.family, each.prefix) for each in endpoint.allow_spoofed_source_prefixes)
            made_here = EndpointPolicy(endpoint.interface_name, Place.WORKLOAD, ingress, egress, port, own, sources)
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
        enough = self._sets.found_members + SLICE_MEMBERS
        for key in stale:
            self._stale_policies.discard(key)
            for direction in PolicyType:
                update = self._compile((key, direction))
                if update is not None:
                    self._made_chains[update.name] = update
            self._stale_policies |= self._sets.take_stale()
            if self._sets.found_members >= enough:
                return

    def _compile(self, chain: ChainKey) -> ChainUpdate | None:
        key, direction = chain
        name = chain_name(key, direction)
        rules = self._rules(chain)
        if not self._users.get(chain) or rules is None:
            self._users.pop(chain, None)
            if self._chains.pop(chain, None) is not None:
                self._sets.release(chain)
                return ChainUpdate(name, None)
            return None
        before = self._sets.renew(chain)
        compiled: list[Rule] = []
        label = _label(key)
        for number, rule in enumerate(rules, 1):
            origin = f"{label} {_DIRECTIONS[direction]} {number}"
            compiled += compile_rule(
                rule, key.namespace, origin, lambda source, family: self._sets.named(source, family, chain)
            )
        self._sets.renewed(chain, before)
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

    # ---- problems

    def _tell_problems(self) -> None:
        problems = {f"{_label(key)}: {each.told(key in self._resources)}" for key, each in self._refused.items()}
        problems.update(*self._unjudged.values())
        problems.update(*self._lacking.values())
        for at in self._doubled:
            first, *others = sorted(self._claims[at])
            if first.kind == WorkloadEndpoint.kind:
                problems.update(
                    f"{_label(key)}: has the interface {at[0]}, as {_label(first)}, which comes first by name and counts"
                    for key in others
                )
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


def _unjudged(key: ResourceKey, policy: Policy) -> Iterator[str]:
    for direction, rules in (("ingress", policy.ingress), ("egress", policy.egress)):
        for number, rule in enumerate(rules):
            why = cannot_judge(rule)
            if why:
                yield f"{_label(key)}: spec.{direction}[{number}].{why}"


@functools.lru_cache(1 << 12)
def chain_name(key: ResourceKey, direction: PolicyType) -> str:
    """The chain of a policy or profile in one direction: readable, and no two alike."""
    words = "_".join(part for part in (key.namespace, key.name) if part)
    readable = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:22]
    digest = hashlib.sha256(f"{key.kind}/{key.namespace}/{key.name}".encode()).hexdigest()[:10]
    return f"{readable}_{digest}_{'in' if direction is PolicyType.INGRESS else 'out'}"


def _label(key: ResourceKey) -> str:
    """A policy as people call it."""
    return str(key)
