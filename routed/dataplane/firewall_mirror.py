"""What the firewall's program is made from: sets, chains, endpoints and walks as they were last told.

A walk is known by its content and counted by the endpoints that ask it; one nobody is led to any more stays until
`forget_walk`, so that whoever writes can take its chains away. An address is known with the interface its packets come by
(`source`) unless workloads of several have it: then only the kernel's routes can tell.

Invariants: pure, and knows no rule. It takes a change at once; that the kernel has it is its writer's business (`firewall`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from routed.dataplane import firewall_layout as layout
from routed.dataplane import firewall_words as words
from routed.desired_policy import (
    Action,
    Chain,
    ChainUpdate,
    EndpointPolicy,
    EndpointUpdate,
    HostRules,
    Place,
    PolicyBatch,
    Rule,
    SetSpec,
    SetUpdate,
    Walk,
)
from routed.net.families import Family
from routed.netlink.nft_expressions import Verdict
from routed.netlink.nftables import INTERFACE_NAME, MAC_ADDRESS, Element, SetShape, concatenation

_Key = tuple[Place, str]
"""An endpoint: where, and the interface."""


class Mirror:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.host = HostRules()
        self.sets: dict[str, tuple[SetSpec, set[bytes]]] = {}
        self.chains: dict[str, Chain] = {}
        self.given_up: dict[str, str] = {}
        """Chains whose rules the kernel does not take, and why; in their place everything is denied."""
        self.endpoints: dict[_Key, EndpointPolicy] = {}
        self.at_bridges: Counter[str] = Counter()
        """Workloads at each bridge."""
        self.sources: dict[str, tuple[tuple[Family, bytes], ...]] = {}
        """Prefixes that workloads may have sources of, by interface."""
        self.holders: dict[bytes, Counter[str]] = {}
        """By which interfaces, or bridges, workloads are reached that have an address."""
        self.indexes: dict[str, int] = {}
        """Of interfaces that are there."""
        self.walks: Counter[str] = Counter()
        """Endpoints that lead to each walk, by the name of its first chain."""
        self.walk_of: dict[str, tuple[Walk, Place]] = {}
        self.base_due = True
        """Rules of base chains may be others by now: more has changed than pods, which come and go without changing them."""

    # ---- changes

    def take_set(self, update: SetUpdate) -> tuple[set[bytes], set[bytes]]:
        """The members that go and come by it."""
        name = update.spec.name
        if update.gone:
            self.sets.pop(name, None)
            return set(), set()
        _, members = self.sets.setdefault(name, (update.spec, set()))
        removed, added = set(update.removed & members), set(update.added - members)
        members -= removed
        members |= added
        return removed, added

    def take_chain(self, update: ChainUpdate) -> None:
        self.given_up.pop(update.name, None)
        if update.chain is not None:
            self.chains[update.name] = update.chain
        else:
            self.chains.pop(update.name, None)

    def take_endpoint(self, update: EndpointUpdate) -> EndpointPolicy | None:
        """What the policy there was before. A walk nobody is led to any more stays until `forget_walk`."""
        key = (update.place, update.interface)
        old = self.endpoints.pop(key, None)
        if update.policy is not None:
            self.endpoints[key] = update.policy
        self.base_due |= update.place is not Place.WORKLOAD
        sources = update.policy.sources if update.policy is not None and update.policy.port is None else ()
        if update.place is Place.WORKLOAD and self.sources.get(update.interface, ()) != sources:
            self.base_due = True
            if sources:
                self.sources[update.interface] = sources
            else:
                del self.sources[update.interface]
        for policy, step in ((old, -1), (update.policy, +1)):
            if policy is None:
                continue
            if policy.port is not None:
                self.at_bridges[policy.port.bridge] += step
                self.base_due = True
            for address in policy.addresses:
                holders = self.holders.setdefault(address, Counter())
                holders[_way_to(policy)] += step
                if not holders[_way_to(policy)]:
                    del holders[_way_to(policy)]
                if not holders:
                    del self.holders[address]
        for direction in ("ingress", "egress"):
            was, now = self.target(old, direction), self.target(update.policy, direction)
            if was != now and (update.place, direction) in layout.DISPATCH:
                self._count(old, direction, -1)
                self._count(update.policy, direction, +1)
        return old

    def take_interfaces(self, wanted: PolicyBatch) -> None:
        for name, index in wanted.interfaces.items():
            if index:
                self.indexes[name] = index
            else:
                self.indexes.pop(name, None)

    def _count(self, policy: EndpointPolicy | None, direction: str, step: int) -> None:
        target = self.target(policy, direction)
        if policy is None or target is None or not target[1]:
            return
        walk = policy.ingress if direction == "ingress" else policy.egress
        name = target[1]
        self.walks[name] += step
        if self.walks[name] and walk is not None:
            self.walk_of.setdefault(name, (walk, policy.place))

    def forget_walk(self, name: str) -> None:
        del self.walk_of[name], self.walks[name]

    # ---- addresses

    def addresses_of(self, update: EndpointUpdate) -> Iterator[bytes]:
        """Those that a workload has before and after a change."""
        for policy in (self.endpoints.get((update.place, update.interface)), update.policy):
            if policy is not None:
                yield from policy.addresses

    def addresses_behind(self, interface: str) -> Iterator[bytes]:
        """Those of workloads whose packets come by an interface, or bridge."""
        policy = self.endpoints.get((Place.WORKLOAD, interface))
        if policy is not None and policy.port is None:
            yield from policy.addresses
        if self.at_bridges[interface]:
            for policy in self.endpoints.values():
                if policy.port is not None and policy.port.bridge == interface:
                    yield from policy.addresses

    def source(self, address: bytes) -> Element | None:
        """An address with the interface its packets come by. None while that is not there, and where workloads of several
        have it: then only the kernel's routes can tell."""
        holders = self.holders.get(address, ())
        index = self.indexes.get(next(iter(holders))) if len(holders) == 1 else None
        return words.source_at(index, address) if index is not None else None

    def own_sources(self, family: Family) -> Iterator[Element]:
        for address in self.holders:
            if Family.of_address(address) is family and (source := self.source(address)):
                yield source

    # ---- endpoints

    def target(self, policy: EndpointPolicy | None, direction: str) -> tuple[Verdict, str] | None:
        """Where the dispatch leads for an endpoint: None where it has no entry."""
        if policy is None:
            return None
        walk = policy.ingress if direction == "ingress" else policy.egress
        if walk is None:
            return Verdict.RETURN, ""
        return Verdict.GOTO, layout.walk_name(walk, policy.place)

    def entries(self, key: _Key, policy: EndpointPolicy | None, direction: str) -> list[tuple[str, Element]]:
        """What of an endpoint is in which map or set."""
        (place, interface), target = key, self.target(policy, direction)
        dispatch = layout.DISPATCH.get((place, direction))
        if policy is None or target is None or dispatch is None or interface == layout.WILDCARD:
            return []
        port = policy.port
        if port is None:
            return [(f"by_{dispatch}", words.way_of(interface, target))]
        found = []
        for address in policy.addresses:
            family = Family.of_address(address)
            found.append((layout.by_address(dispatch, family), Element(address, verdict=target)))
            if direction == "egress":
                found.append((layout.bridged_set(family), Element(port.mac.ljust(8, b"\x00") + address)))
        return found

    def bridges(self) -> tuple[str, ...]:
        """The bridges that workloads are at."""
        return tuple(sorted(bridge for bridge, ports in self.at_bridges.items() if ports))

    def workload_names(self) -> tuple[str, ...]:
        """Beginnings of the names of interfaces that workloads' packets come and go by, and whole names."""
        return (*self.host.workload_prefixes, *(f"{bridge}\x00" for bridge in self.bridges()))

    def is_used(self, place: Place, direction: str = "") -> bool:
        """Whether something is asked there, of any endpoint."""
        if place is Place.WORKLOAD:
            return True
        return any(
            at is place and walk is not None and direction in ("", asked)
            for (at, _), policy in self.endpoints.items()
            for walk, asked in ((policy.ingress, "ingress"), (policy.egress, "egress"))
        )

    def asks(self, place: Place, interface: str, direction: str) -> bool:
        """Whether something is asked at one endpoint."""
        target = self.target(self.endpoints.get((place, interface)), direction)
        return target is not None and bool(target[1])

    # ---- the table

    def rules(self, chain: Chain) -> tuple[Rule, ...]:
        """Those that count: of a chain that was given up, a denial."""
        if chain.name in self.given_up:
            return (Rule(Action.DENY, origin=f"{chain.policy} as the kernel refuses its rules"),)
        return chain.rules

    def chains_of_walk(self, name: str) -> tuple[str, ...]:
        return (name, *layout.stage_chains(name, layout.stages(*self.walk_of[name])))

    def shapes(self) -> dict[str, SetShape]:
        """All sets of the table."""
        shapes = {f"by_{name}": SetShape(INTERFACE_NAME, verdicts=True) for name in layout.DISPATCH.values()}
        for family in Family:
            for name in layout.OF_WORKLOADS:
                shapes[layout.by_address(name, family)] = SetShape(words.ADDRESS[family], verdicts=True)
            shapes[layout.own_set(family)] = words.source_shape(family)
            shapes[layout.bridged_set(family)] = SetShape(concatenation(MAC_ADDRESS, words.ADDRESS[family]))
            for kind in ("nat", "all"):
                shapes[layout.pool_set(kind, family)] = SetShape(words.ADDRESS[family], interval=True)
            shapes[words.ends_set(family)] = SetShape(words.ADDRESS[family])
        return shapes | {spec.name: words.shape_of(spec) for spec, _ in self.sets.values()}

    def plain_chains(self) -> Iterator[str]:
        """All chains of the table but those packets enter by themselves."""
        yield from layout.INNER_CHAINS
        yield from map(layout.policy_chain, self.chains)
        for name in self.walk_of:
            yield from self.chains_of_walk(name)


def _way_to(policy: EndpointPolicy) -> str:
    """By what a workload's packets come."""
    return policy.port.bridge if policy.port is not None else policy.interface
