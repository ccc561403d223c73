"""The sets that rules name: the addresses, networks and ports in each, and how they changed since the kernel heard.

A rule names a source (a selector, networks, ports, the endpoints of a service), and the kernel's rule a set, which is made
when the first chain names it and goes with the last one. `_peers` follows which endpoints and network sets of the whole
cluster the selectors select. Where one selects its first network, or none any more, its sets become sets of another kind
under another name, and the policies whose rules name them are to be compiled again (`take_stale`).

Invariants: a set holds what its source gives, each member once; what `changes` gives, applied in order, is what the sets
hold. Pure. Which policies and endpoints there are is not known here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TypeAlias

from routed.desired_policy import SetKind, SetSpec, SetUpdate
from routed.model.kubernetes import EndpointSlice
from routed.model.policies import PolicyType
from routed.model.resources import Resource, ResourceKey
from routed.model.selector import Selector
from routed.model.workloads import EndpointPort
from routed.net.families import Family
from routed.policy.index import LabelIndex
from routed.policy.members import Difference, Members, Networks
from routed.policy.rules import (
    FixedNetworks,
    FixedPorts,
    SelectedAddresses,
    SelectedPorts,
    ServiceEndpoints,
    Source,
    kind_of,
)
from routed.values import dataclass

ChainKey: TypeAlias = "tuple[ResourceKey, PolicyType]"
SetKey: TypeAlias = "tuple[Source, Family]"


@dataclass(frozen=True, slots=True)
class Contribution:
    """What an endpoint or network set adds to the sets of a selector that selects it."""

    networks: tuple[tuple[Family, bytes], ...] = ()
    """Wire prefixes."""
    ports: tuple[EndpointPort, ...] = ()
    is_network: bool = False
    """Not every prefix of it is one address."""


_NOTHING = Contribution()


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


class RuleSets:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._peers: LabelIndex[Selector, ResourceKey] = LabelIndex()
        self._contributions: dict[ResourceKey, Contribution] = {}
        self._selected_by: dict[ResourceKey, set[Selector]] = {}
        """The selectors whose sets have an item's contribution now."""
        self._network_items: Counter[Selector] = Counter()
        """How many network sets a selector selects."""
        self._sets: dict[SetKey, _Set] = {}
        self._sets_of: dict[Selector, set[SetKey]] = {}
        self._sets_of_chain: dict[ChainKey, set[SetKey]] = {}
        self._dirty: set[SetKey] = set()
        self._gone: list[_Set] = []
        self._services: dict[tuple[str, str], dict[ResourceKey, EndpointSlice]] = {}
        self._stale: set[ResourceKey] = set()
        self.found_members = 0
        """Of sets that were made, so far."""

    # ---- what rules may select

    def set_item(
        self, key: ResourceKey, labels: Mapping[str, str], parents: tuple[str, ...], contribution: Contribution
    ) -> None:
        """An endpoint or network set is there, with these labels and what it gives."""
        old = self._contributions.get(key)
        if old is not None and old != contribution:
            for selector in self._selected_by.get(key, ()):
                self._contribute(selector, old, contribution)
        self._contributions[key] = contribution
        self._peers.set_item(key, labels, parents)

    def remove_item(self, key: ResourceKey) -> None:
        self._peers.remove_item(key)
        self.follow()  # while what it contributed is still known
        self._contributions.pop(key, None)

    def set_parent(self, name: str, labels: Mapping[str, str] | None) -> None:
        """Labels that items inherit from a profile; None: there is none of this name."""
        self._peers.set_parent(name, labels)

    def set_slice(self, key: ResourceKey, old: Resource | None, new: Resource | None) -> None:
        """An EndpointSlice is another than before, or came, or went."""
        stale = {
            (key.namespace, value.service) for value in (old, new) if isinstance(value, EndpointSlice) and value.service
        }
        if isinstance(old, EndpointSlice) and old.service:
            slices = self._services.get((key.namespace, old.service), {})
            slices.pop(key, None)
        if isinstance(new, EndpointSlice) and new.service:
            self._services.setdefault((key.namespace, new.service), {})[key] = new
        for service in stale:
            for (source, family), found in self._sets.items():
                if isinstance(source, ServiceEndpoints) and (source.namespace, source.name) == service:
                    wanted = frozenset(self._service_members(source, family))
                    self._dirty.add((source, family))
                    for member in found.members.shown - wanted:
                        found.members.remove(member, found.difference)
                    for member in wanted - found.members.shown:
                        found.members.add(member, found.difference)

    # ---- what rules name

    def renew(self, chain: ChainKey) -> set[SetKey]:
        """A chain is about to name its sets anew: those it named so far, for `renewed`."""
        return self._sets_of_chain.pop(chain, set())

    def renewed(self, chain: ChainKey, before: set[SetKey]) -> None:
        """It has named all: what it names no more goes, if no other does."""
        self._forget_unused(chain, before - self._sets_of_chain.get(chain, set()))

    def named(self, source: Source, family: Family, user: ChainKey) -> str:
        """The set for a source, made where there is none."""
        key = (source, family)
        found = self._sets.get(key)
        if found is None:
            selector = source.selector if isinstance(source, (SelectedAddresses, SelectedPorts)) else None
            if selector is not None:
                self._peers.add_selector(selector, selector)
                self._sets_of.setdefault(selector, set()).add(key)
                self.follow()
            found = self._sets[key] = self._make_set(source, family)
            self._dirty.add(key)
        found.users.add(user)
        self._sets_of_chain.setdefault(user, set()).add(key)
        return found.spec.name

    def release(self, chain: ChainKey) -> None:
        """A chain is gone, and names no set any more."""
        self._forget_unused(chain, self._sets_of_chain.pop(chain, set()))

    # ---- what becomes of it

    def follow(self) -> None:
        """Bring sets in line with what selectors select."""
        for selector, changes in self._peers.take().items():
            before = networks = self._network_items[selector]
            has_sets = bool(self._sets_of.get(selector))
            for item, matched in changes.items():
                contribution = self._contributions[item]
                selected_by = self._selected_by.setdefault(item, set())
                networks += (1 if matched else -1) * contribution.is_network
                if has_sets:
                    self._contribute(selector, *((_NOTHING, contribution) if matched else (contribution, _NOTHING)))
                if matched:
                    selected_by.add(selector)
                else:
                    selected_by.discard(selector)
                    if not selected_by:
                        del self._selected_by[item]
            self._network_items[selector] = networks
            if bool(before) is not bool(networks):
                self._change_kind(selector)

    def take_stale(self) -> set[ResourceKey]:
        """The policies whose rules name sets that are of another kind than at the last call."""
        stale, self._stale = self._stale, set()
        return stale

    def changes(self) -> Iterator[SetUpdate]:
        dirty, self._dirty = self._dirty, set()
        gone, self._gone = self._gone, []
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

    # ---- members

    def _make_set(self, source: Source, family: Family) -> _Set:
        selector = source.selector if isinstance(source, SelectedAddresses) else None
        kind = kind_of(source, networks=bool(selector is not None and self._network_items[selector]))
        members: Members | Networks = Networks(family) if kind is SetKind.NETS else Members()
        made = _Set(source, family, SetSpec(_set_name(source, family, kind), family, kind), members)
        for member in self._members(made):
            members.add(member, made.difference)
            self.found_members += 1
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

    def _service_members(self, source: ServiceEndpoints, family: Family) -> Iterator[bytes]:
        seen: set[bytes] = set()
        for each in self._services.get((source.namespace, source.name), {}).values():
            ports = [(port.protocol, port.port) for port in each.ports if port.port is not None]
            # Ready or not, as with Felix: a policy is about who they are, not about where traffic should go.
            for address in (ip for endpoint in each.endpoints for ip in endpoint.addresses):
                if Family.of_address(address) is not family:
                    continue
                if not source.with_ports:
                    seen.add(address)
                    continue
                seen |= {address + bytes((protocol,)) + port.to_bytes(2, "big") for protocol, port in ports}
        yield from seen

    def _contribute(self, selector: Selector, before: Contribution, after: Contribution) -> None:
        """What an item adds to a selector's sets is another by now. What it goes on adding is not touched."""
        for key in self._sets_of.get(selector, ()):
            found = self._sets.get(key)
            if found is None:
                continue
            self._dirty.add(key)
            gone, new = (Counter(_given(found, each)) for each in (before, after))
            if gone and new:
                gone, new = gone - new, new - gone
            for members, change in ((gone, found.members.remove), (new, found.members.add)):
                for member in members.elements():
                    change(member, found.difference)

    def _change_kind(self, selector: Selector) -> None:
        """A selector selects its first network, or none any more: its sets are made anew, and the rules that name them."""
        for key in list(self._sets_of.get(selector, ())):
            found = self._sets.get(key)
            if found is None or not isinstance(found.source, SelectedAddresses):
                continue
            self._gone.append(found)
            made = self._sets[key] = self._make_set(found.source, found.family)
            made.users = found.users
            self._dirty.add(key)
            self._stale |= {policy for policy, _ in found.users}

    # ---- what nobody names any more

    def _forget_unused(self, chain: ChainKey, candidates: set[SetKey]) -> None:
        """A chain names these sets no more."""
        for key in candidates:
            found = self._sets[key]
            found.users.discard(chain)
            if found.users:
                continue
            del self._sets[key]
            self._gone.append(found)
            if isinstance(found.source, (SelectedAddresses, SelectedPorts)):
                selector = found.source.selector
                self._sets_of[selector].discard(key)
                if not self._sets_of[selector]:
                    self._forget_selector(selector)

    def _forget_selector(self, selector: Selector) -> None:
        del self._sets_of[selector]
        self.follow()
        for item in self._peers.matches(selector):
            selected_by = self._selected_by[item]
            selected_by.discard(selector)
            if not selected_by:
                del self._selected_by[item]
        self._peers.remove_selector(selector)
        del self._network_items[selector]


def _given(of: _Set, contribution: Contribution) -> Iterator[bytes]:
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


def _set_name(source: Source, family: Family, kind: SetKind) -> str:
    digest = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
    return f"s_{digest}_{4 if family is Family.IPV4_UNICAST else 6}{kind.value[0]}"
