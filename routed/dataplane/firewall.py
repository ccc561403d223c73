"""Policy as an nf_tables program: one table of ours, changed by atomic batches. Octets out, no socket.

    raw_prerouting   packets of workloads with a source that is not theirs are dropped; untracked host policy
    pre_dnat         host policy before the destination is translated
    input, output    host policy; what workloads say to their node
    forward          from_workload, to_workload and the host's forward policy, in the order a packet meets them
    postrouting      host policy for packets of the node whose destination was translated: only here is it known where
                     they leave
    nat_postrouting  natOutgoing

Each of these jumps to a dispatch chain (`from_workload`, `host_in`, ...), whose verdict map leads by interface name to a
walk. A walk calls a chain for each of its tiers; endpoints that ask the same share it. In a tier's chain every policy's is
called, and `mark & DECIDED` tells whether it decided: a chain cannot end the walk itself, since `accept` would also skip the
packet's other endpoint, and `return` only leaves the chain. So the calls are never deeper than from a base chain to a
policy's, however many tiers there are: the kernel allows 16. Walks are reached by `goto`, so a `return` in one leads back
to the base chain, where the packet's next endpoint is asked. In a dispatch chain for workloads, what has no entry is
dropped.

Packets of a workload at a bridge show the bridge, not the workload's port. They are told by their addresses: `from_bridge`
drops what does not have a MAC address and a source that belong together (and the port lets in no other MAC address), and the
walk is found by address. `desired_policy.BridgePort` says who is at one.

A workload's packet has a source that is reached by the interface it came by, or one of `EndpointPolicy.sources` where
`HostRules.source_spoofing` lets it (`spoofed`); at a bridge only its own.

Invariants: the program in the kernel and the mirror here agree while batches succeed; `rebuild` makes the whole table
anew in one transaction, whatever was there. Batches can be written in steps, none of which takes long (`changing`,
`rebuilding`): what goes into the kernel is the whole batch. Elements go one by one, rules a chain at a time; a set that a
packet may be looking into is deleted only after that. Other tables are never named.

Long for one idea: the program and the mirror it is made from can only be read together. Sockets, threads and retries are
in `firewall_kernel`; what should be allowed is `policy`'s business.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product

from routed.dataplane import firewall_words as words
from routed.dataplane.table_found import TableFound
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
    SetKind,
    SetSpec,
    SetUpdate,
    Side,
    Walk,
)
from routed.net.families import Family
from routed.netlink import nft_expressions as nft
from routed.netlink.nft_expressions import Base, Compare, CtState, Meta, Verdict
from routed.netlink.nftables import (
    INTERFACE_NAME,
    MAC_ADDRESS,
    Batch,
    ChainFound,
    Element,
    ElementFound,
    Hook,
    Priority,
    SetShape,
    comment,
    concatenation,
    found_as,
)

TABLE = "routed"
PORTION = 512
"""Elements of a set that are written in one step."""
CLOSED = "closed"
"""The only chain of a table that is there in place of one the kernel does not take."""

#: Bits of the packet mark this program uses; kube-proxy has 0x4000 and 0x8000.
ALLOWED = 0x10000
PASSED = 0x20000
DECIDED = ALLOWED | PASSED
EARLY = 0x40000
"""A host policy before connection tracking or translation has admitted the packet."""

_UDP, _IPIP = 17, 4
_VXLAN_PORT = 4789

#: The chain a packet is dispatched in, and its verdict map, by place and direction.
_DISPATCH = {
    (Place.WORKLOAD, "egress"): "from_workload",
    (Place.WORKLOAD, "ingress"): "to_workload",
    (Place.HOST, "ingress"): "host_in",
    (Place.HOST, "egress"): "host_out",
    (Place.HOST_FORWARD, "ingress"): "forward_in",
    (Place.HOST_FORWARD, "egress"): "forward_out",
    (Place.HOST_PRE_DNAT, "ingress"): "pre_dnat_in",
    (Place.HOST_UNTRACKED, "ingress"): "untracked_in",
    (Place.HOST_UNTRACKED, "egress"): "untracked_out",
}
_EARLY_PLACES = (Place.HOST_PRE_DNAT, Place.HOST_UNTRACKED)
_OPEN_ENDED = (*_EARLY_PLACES, Place.HOST_FORWARD)
"""Where a packet that no tier decides about goes on."""
_FAILSAFE_PLACES = (Place.HOST, Place.HOST_PRE_DNAT, Place.HOST_UNTRACKED)
_OF_WORKLOADS_TOO = (Place.HOST_PRE_DNAT, Place.HOST_FORWARD)
"""Where the wildcard means workloads' interfaces as well."""

_OF_WORKLOADS = ("from_workload", "to_workload")
"""The dispatch chains that also find a walk by address: of workloads at a bridge, whose interface no packet shows here."""
_FROM_BRIDGE = "from_bridge"
_LOOPBACK = b"\x08\x7f"
"""127.0.0.0/8: with route_localnet a workload might reach what listens there, which is the node's alone."""
_SPOOFED = "spoofed"
"""Where packets of workloads end up that have a source which is not theirs, while some may have such."""


WILDCARD = "*"

_Key = tuple[Place, str]
"""An endpoint: where, and the interface."""


class Firewall:
    """See the module's docstring."""

    def __init__(self, table: str = TABLE) -> None:
        self.table = table
        self._host = HostRules()
        self._sets: dict[str, tuple[SetSpec, set[bytes]]] = {}
        self._chains: dict[str, Chain] = {}
        self._given_up: dict[str, str] = {}
        """Chains whose rules the kernel does not take, and why; in their place everything is denied."""
        self._endpoints: dict[_Key, EndpointPolicy] = {}
        self._at_bridges: Counter[str] = Counter()
        """Workloads at each bridge."""
        self._sources: dict[str, tuple[tuple[Family, bytes], ...]] = {}
        """Prefixes that workloads may have sources of, by interface."""
        self._walks: Counter[str] = Counter()
        """Endpoints that lead to each walk, by the name of its first chain."""
        self._walk_of: dict[str, tuple[Walk, Place]] = {}
        self._base: dict[str, tuple[bytes, ...]] = {}
        """Rules of the base and dispatch chains, as they are in the kernel."""
        self._names: dict[bytes, str] = {}
        """What people call those of them that drop."""
        self._base_due = True
        """They may be others by now: more has changed than pods, which come and go without changing them."""

    # ---- changes

    def change(self, wanted: PolicyBatch) -> Batch:
        """Take a change in; the batch that makes it in a kernel that has all before it."""
        batch = Batch(self.table)
        for _ in self.changing(wanted, batch):
            pass
        return batch

    def changing(self, wanted: PolicyBatch, batch: Batch) -> Iterator[None]:
        """`change` in steps of bounded length. Nobody else may change anything before the last one."""
        sets_before, chains_before, walks_before = set(self._sets), set(self._chains), set(self._walk_of)
        for update in wanted.sets:
            spec = update.spec
            removed, added = self._take_set(update)
            if update.gone:
                continue
            if spec.name not in sets_before:
                batch.add_set(spec.name, words.shape_of(spec))
            yield from _by_portions(batch.delete_elements, spec.name, words.members_of(spec, removed))
            yield from _by_portions(batch.add_elements, spec.name, words.members_of(spec, added))
        if wanted.host is not None:
            old, self._host, self._base_due = self._host, wanted.host, True
            self._change_pools(batch, old)
            if (old.log_group, old.log_denied) != (self._host.log_group, self._host.log_denied):
                self._names.clear()
                yield from self._rewrite_all(batch)
        for chain_update in wanted.chains:
            self._take_chain(chain_update)
            if chain_update.chain is not None:
                self._write_chain(batch, chain_update.chain, new=chain_update.name not in chains_before)
                yield
        old_elements: dict[str, list[Element]] = {}
        new_elements: dict[str, list[Element]] = {}
        for endpoint in wanted.endpoints:
            key = (endpoint.place, endpoint.interface)
            old_policy = self._take_endpoint(endpoint)
            for direction in ("ingress", "egress"):
                before_it = self._entries(key, old_policy, direction)
                after_it = self._entries(key, endpoint.policy, direction)
                for name, element in before_it:
                    if (name, element) not in after_it:
                        old_elements.setdefault(name, []).append(element)
                for name, element in after_it:
                    if (name, element) not in before_it:
                        new_elements.setdefault(name, []).append(element)
            yield
        for name in [name for name in self._walk_of if name not in walks_before]:
            self._write_walk(batch, name)
            yield
        for name, elements in old_elements.items():
            yield from _by_portions(batch.delete_elements, name, elements)
        for name, elements in new_elements.items():
            yield from _by_portions(batch.add_elements, name, elements)
        self._write_base(batch)
        yield
        for name in [name for name in self._walk_of if not self._walks[name]]:
            for delete in (batch.flush_chain, batch.delete_chain):
                for chain in self._chains_of_walk(name):
                    delete(chain)
            self._forget_walk(name)
            yield
        for chain_update in wanted.chains:
            if chain_update.chain is None and chain_update.name in chains_before:
                batch.delete_chain(_policy_chain(chain_update.name))
        for update in wanted.sets:
            if update.gone and update.spec.name in sets_before:
                batch.then.append(update.spec.name)

    def take_in(self, wanted: PolicyBatch) -> None:
        """Take a change in that only the next `rebuild` writes."""
        for update in wanted.sets:
            self._take_set(update)
        if wanted.host is not None:
            self._host, self._base_due = wanted.host, True
        for chain_update in wanted.chains:
            self._take_chain(chain_update)
        for endpoint in wanted.endpoints:
            self._take_endpoint(endpoint)
        for name in [name for name in self._walk_of if not self._walks[name]]:
            self._forget_walk(name)

    def rebuild(self) -> Batch:
        """The whole table from the mirror, in place of whatever is there."""
        batch = Batch(self.table)
        for _ in self.rebuilding(batch):
            pass
        return batch

    def rebuilding(self, batch: Batch, found: TableFound | None = None) -> Iterator[None]:
        """`rebuild` in steps of bounded length; of what is `found` in the kernel, what need not change stays.

        Nobody may change anything before the last one.
        """
        shapes, chains = self._shapes(), set(self._plain_chains())
        if found is None or not found.fits(_BASE_CHAINS, chains, shapes):
            found = TableFound()
            batch.add_table()
            batch.delete_table()
        batch.is_rebuild = True
        batch.add_table("made by routed; changes by hand are undone")
        if found.chains:
            batch.flush_rules()
        for name in found.sets.keys() - shapes.keys():
            batch.flush_set(name)  # a map may lead to chains that go
            batch.then.append(name)
        for name, shape in shapes.items():
            if name not in found.sets:
                batch.add_set(name, shape)
        dispatched: dict[str, list[Element]] = {name: [] for name in shapes if name not in self._sets}
        for family in Family:
            for kind, pools in (("nat", self._host.nat_pools), ("all", self._host.all_pools)):
                dispatched[_pool_set(kind, family)] = list(words.ranges_of(pools.get(family, ()), family))
            dispatched[words.ends_set(family)] = [Element(end) for end in _ends(self._host, family)]
        for name, (spec, members) in self._sets.items():
            yield from self._write_elements(batch, name, words.members_of(spec, members), found)
        for chain in self._chains.values():
            self._write_chain(batch, chain, new=True)
            yield
        for name in self._walk_of:
            self._write_walk(batch, name)
            yield
        for key, policy in self._endpoints.items():
            for direction in ("ingress", "egress"):
                for name, element in self._entries(key, policy, direction):
                    dispatched[name].append(element)
            yield
        for name, elements in dispatched.items():
            yield from self._write_elements(batch, name, elements, found)
        for name in (_FROM_BRIDGE, _SPOOFED, *_DISPATCH.values()):
            batch.add_chain(name)
        self._base, self._base_due = {}, True
        self._write_base(batch)
        for name in found.chains.keys() - chains - {_NAT, *(base for base in _BASE_CHAINS if self._base[base])}:
            batch.delete_chain(name)

    def _write_elements(self, batch: Batch, name: str, wanted: Iterable[Element], found: TableFound) -> Iterator[None]:
        """The elements of a set of which some may be there."""
        if name in found.sets:
            differs = found.difference(name, list(wanted))
            if differs.anew:
                batch.flush_set(name)
            yield from _by_portions(batch.delete_elements, name, differs.removed)
            wanted = differs.added
        yield from _by_portions(batch.add_elements, name, wanted)

    def _shapes(self) -> dict[str, SetShape]:
        """All sets of the table."""
        shapes = {f"by_{name}": SetShape(INTERFACE_NAME, verdicts=True) for name in _DISPATCH.values()}
        for family in Family:
            for name in _OF_WORKLOADS:
                shapes[_by_address(name, family)] = SetShape(words.ADDRESS[family], verdicts=True)
            shapes[_bridged_set(family)] = SetShape(concatenation(MAC_ADDRESS, words.ADDRESS[family]))
            for kind in ("nat", "all"):
                shapes[_pool_set(kind, family)] = SetShape(words.ADDRESS[family], interval=True)
            shapes[words.ends_set(family)] = SetShape(words.ADDRESS[family])
        return shapes | {spec.name: words.shape_of(spec) for spec, _ in self._sets.values()}

    def _plain_chains(self) -> Iterator[str]:
        """All chains of the table but those packets enter by themselves."""
        yield from (_FROM_BRIDGE, _SPOOFED, *_DISPATCH.values())
        yield from map(_policy_chain, self._chains)
        for name in self._walk_of:
            yield from self._chains_of_walk(name)

    def give_up(self, chain: str, why: str) -> bool:
        """The kernel does not take a chain's rules: from the next batch on everything is denied in their place, until they
        change. Whether there is such a chain and it was not given up before."""
        if chain not in self._chains or chain in self._given_up:
            return False
        self._given_up[chain] = why
        return True

    def closed(self) -> Batch:
        """A chain in place of rules that are missing, refused or not yet put back: no new connection from or to a pod."""
        batch = Batch(self.table)
        batch.add_table("made by routed; changes by hand are undone")
        batch.add_base_chain(CLOSED, "filter", Hook.FORWARD, Priority.FILTER)
        batch.add_rule(CLOSED, words.is_known())
        for prefix in self._host.workload_prefixes:
            for key in (Meta.IIFNAME, Meta.OIFNAME):
                batch.add_rule(CLOSED, words.has_interface(key, prefix) + self._deny("rules that are missing"))
        return batch

    # ---- questions

    @property
    def problems(self) -> tuple[str, ...]:
        """What the kernel does not take, in sentences."""
        return tuple(
            sorted(
                f"the kernel refuses the rules of {self._chains[name].policy} ({why}); what it is for is closed instead"
                for name, why in self._given_up.items()
                if name in self._chains
            )
        )

    @property
    def program(self) -> PolicyBatch:
        """All of it, as one batch."""
        return PolicyBatch(
            tuple(SetUpdate(spec, frozenset(members)) for spec, members in self._sets.values()),
            tuple(ChainUpdate(name, chain) for name, chain in self._chains.items()),
            tuple(EndpointUpdate(name, place, policy) for (place, name), policy in self._endpoints.items()),
            self._host,
        )

    def rules_of(self, chain: str) -> tuple[str, list[tuple[str, bytes]]]:
        """The kernel's name of a policy's chain, and the comments and expressions its rules must have there, in order."""
        made = [
            (comment(rule.origin), each) for rule in self._rules(self._chains[chain]) for each in self._render(rule)
        ]
        return _policy_chain(chain), made

    def sets_of(self, chain: str) -> set[str]:
        """The sets that a policy's rules name."""
        sides = [side for rule in self._chains[chain].rules for side in (rule.source, rule.destination)]
        return {name for side in sides for name in (*side.sets, *side.not_sets, *side.port_sets, *side.not_port_sets)}

    def dispatch_maps(self, place: Place, direction: str) -> tuple[str, ...]:
        """The maps by which packets find the walk of an interface, or of a bridged workload by its address."""
        name = _DISPATCH[place, direction]
        by_address = (
            [_by_address(name, family) for family in Family] if name in _OF_WORKLOADS and self._bridges() else []
        )
        return f"by_{name}", *by_address

    def elements_of(self, name: str) -> set[ElementFound]:
        """What the kernel must list of a set or a dispatch map."""
        made: Iterable[Element] = (
            words.members_of(*self._sets[name])
            if name in self._sets
            else (
                element
                for key, policy in self._endpoints.items()
                for direction in ("ingress", "egress")
                for place, element in self._entries(key, policy, direction)
                if place == name
            )
        )
        return {found for element in made for found in found_as(element)}

    def walk_of(self, place: Place, interface: str, direction: str) -> dict[str, list[tuple[str, bytes]]]:
        """The chains that lead a packet at an endpoint through its tiers: the comments and expressions of their rules."""
        name = self.walk_chain(place, interface, direction) or ""
        return {
            chain: [(comment(origin), expressions) for expressions, origin in rules]
            for chain, rules in (self._walk_rules(name) if name in self._walk_of else {}).items()
        }

    @property
    def base_rules(self) -> dict[str, tuple[bytes, ...]]:
        """The rules that base and dispatch chains must have."""
        return self._base

    def decisions(self) -> dict[str, dict[str, tuple[str, Action]]]:
        """By the kernel's chain and a rule's comment there: whose rule it is, and what it does."""
        found = {
            _policy_chain(name): {comment(rule.origin): (chain.policy, rule.action) for rule in self._rules(chain)}
            for name, chain in self._chains.items()
        }
        for chain, rules in self._base.items():
            found[chain] = {said: (said, Action.DENY) for each in rules if (said := self._names.get(each))}
        for name, (walk, place) in self._walk_of.items():
            stages = _stages(walk, place)
            for chain, (tier, _, end) in zip(_stage_chains(name, stages), stages, strict=True):
                if end is Action.DENY:
                    said = comment(f"end of {tier}")
                    found[chain] = {said: (said, Action.DENY)}
        return found

    def walk_chain(self, place: Place, interface: str, direction: str) -> str | None:
        """The chain that judges an endpoint, for people; None where nothing is asked there."""
        policy = self._endpoints.get((place, interface))
        target = self._target(policy, direction)
        return target[1] if target is not None and target[1] else None

    # ---- the mirror

    def _take_set(self, update: SetUpdate) -> tuple[set[bytes], set[bytes]]:
        """The members that go and come by it."""
        name = update.spec.name
        if update.gone:
            self._sets.pop(name, None)
            return set(), set()
        _, members = self._sets.setdefault(name, (update.spec, set()))
        removed, added = set(update.removed & members), set(update.added - members)
        members -= removed
        members |= added
        return removed, added

    def _take_chain(self, update: ChainUpdate) -> None:
        self._given_up.pop(update.name, None)
        if update.chain is not None:
            self._chains[update.name] = update.chain
        else:
            self._chains.pop(update.name, None)

    def _take_endpoint(self, update: EndpointUpdate) -> EndpointPolicy | None:
        """What the policy there was before. A walk nobody is led to any more stays until `_forget_walk`."""
        key = (update.place, update.interface)
        old = self._endpoints.pop(key, None)
        if update.policy is not None:
            self._endpoints[key] = update.policy
        self._base_due |= update.place is not Place.WORKLOAD
        sources = update.policy.sources if update.policy is not None and update.policy.port is None else ()
        if update.place is Place.WORKLOAD and self._sources.get(update.interface, ()) != sources:
            self._base_due = True
            if sources:
                self._sources[update.interface] = sources
            else:
                del self._sources[update.interface]
        for policy, step in ((old, -1), (update.policy, +1)):
            if policy is not None and policy.port is not None:
                self._at_bridges[policy.port.bridge] += step
                self._base_due = True
        for direction in ("ingress", "egress"):
            was, now = self._target(old, direction), self._target(update.policy, direction)
            if was != now and (update.place, direction) in _DISPATCH:
                self._count(old, direction, -1)
                self._count(update.policy, direction, +1)
        return old

    # ---- sets

    def _change_pools(self, batch: Batch, old: HostRules) -> None:
        for kind, before, after in (
            ("nat", old.nat_pools, self._host.nat_pools),
            ("all", old.all_pools, self._host.all_pools),
        ):
            for family in Family:
                if before.get(family, ()) != after.get(family, ()):
                    batch.flush_set(_pool_set(kind, family))
                    batch.add_elements(_pool_set(kind, family), words.ranges_of(after.get(family, ()), family))

        for family in Family:
            was, now = _ends(old, family), _ends(self._host, family)
            batch.delete_elements(words.ends_set(family), [Element(end) for end in was if end not in now])
            batch.add_elements(words.ends_set(family), [Element(end) for end in now if end not in was])

    # ---- chains of policies

    def _rewrite_all(self, batch: Batch) -> Iterator[None]:
        for chain in self._chains.values():
            self._write_chain(batch, chain, new=False)
            yield
        for name in self._walk_of:
            self._write_walk(batch, name, new=False)
            yield

    def _write_chain(self, batch: Batch, chain: Chain, *, new: bool) -> None:
        name = _policy_chain(chain.name)
        if new:
            batch.add_chain(name)
        else:
            batch.flush_chain(name)
        batch.subject = chain.name
        for rule in self._rules(chain):
            for expressions in self._render(rule):
                batch.add_rule(name, expressions, rule.origin)
        batch.subject = ""

    def _rules(self, chain: Chain) -> tuple[Rule, ...]:
        if chain.name in self._given_up:
            return (Rule(Action.DENY, origin=f"{chain.policy} as the kernel refuses its rules"),)
        return chain.rules

    def _render(self, rule: Rule) -> Iterator[bytes]:
        """The kernel's rules for one of ours: one for every pair of alternatives for ports."""
        family = rule.family
        start = b""
        if family is not None:
            start += nft.meta(Meta.NFPROTO) + nft.compare(words.PROTO[family])
        if rule.protocol is not None:
            start += nft.meta(Meta.L4PROTO) + nft.compare(bytes([rule.protocol]))
        if rule.not_protocol is not None:
            start += nft.meta(Meta.L4PROTO) + nft.compare(bytes([rule.not_protocol]), Compare.NOT_EQUAL)
        if rule.icmp is not None:
            start += words.has_icmp(rule.icmp, Compare.EQUAL)
        if rule.not_icmp is not None:
            start += words.has_icmp(rule.not_icmp, Compare.NOT_EQUAL)
        # numbers of ports before sets: what does not match should be done with at little cost
        end = words.has_addresses(rule.source, family, words.SOURCE)
        end += words.has_addresses(rule.destination, family, words.DESTINATION)
        end += self._act(rule)
        sources = self._ports(rule.source, words.SOURCE, 0)
        destinations = self._ports(rule.destination, words.DESTINATION, 2)
        for source, destination in product(sources, destinations):
            yield start + source + destination + end

    def _ports(self, side: Side, where: dict[Family, tuple[int, int]], offset: int) -> list[bytes]:
        """The alternatives a side has for its port, each with the ports it must not have."""

        def in_set(name: str, *, inverted: bool = False) -> bytes:
            spec = self._sets[name][0]
            if spec.kind is SetKind.RANGES:
                return nft.payload(Base.TRANSPORT, offset, 2) + nft.lookup(name, inverted=inverted)
            return words.in_named(spec, where, offset, inverted=inverted)

        refused = b"".join(words.has_port_in(offset, *each, operator=Compare.NOT_EQUAL) for each in side.not_ports)
        refused += b"".join(in_set(name, inverted=True) for name in side.not_port_sets)
        wanted = [words.has_port_in(offset, *each) for each in side.ports]
        wanted += [in_set(name) for name in side.port_sets]
        return [each + refused for each in wanted] or [refused]

    def _act(self, rule: Rule) -> bytes:
        match rule.action:
            case Action.ALLOW:
                return nft.counter() + words.set_mark(ALLOWED) + nft.verdict(Verdict.RETURN)
            case Action.PASS:
                return nft.counter() + words.set_mark(PASSED) + nft.verdict(Verdict.RETURN)
            case Action.LOG:
                return nft.counter() + nft.log(self._host.log_group or 0, f"routed log {rule.origin}")
            case Action.DENY:
                return self._deny(rule.origin)

    def _deny(self, origin: str) -> bytes:
        log = b""
        if self._host.log_denied and self._host.log_group is not None:
            log = nft.log(self._host.log_group, f"routed deny {origin}")
        return nft.counter() + log + nft.verdict(Verdict.DROP)

    def _dropped(self, match: bytes, name: str) -> bytes:
        """A rule of a base or dispatch chain that drops, under a name."""
        made = match + self._deny(name)
        self._names[made] = name
        return made

    # ---- walks

    def _target(self, policy: EndpointPolicy | None, direction: str) -> tuple[Verdict, str] | None:
        """Where the dispatch leads for an endpoint: None where it has no entry."""
        if policy is None:
            return None
        walk = policy.ingress if direction == "ingress" else policy.egress
        if walk is None:
            return Verdict.RETURN, ""
        return Verdict.GOTO, _walk_name(walk, policy.place)

    def _entries(self, key: _Key, policy: EndpointPolicy | None, direction: str) -> list[tuple[str, Element]]:
        """What of an endpoint is in which map or set."""
        (place, interface), target = key, self._target(policy, direction)
        dispatch = _DISPATCH.get((place, direction))
        if policy is None or target is None or dispatch is None or interface == WILDCARD:
            return []
        port = policy.port
        if port is None:
            return [(f"by_{dispatch}", words.way_of(interface, target))]
        found = []
        for address in port.addresses:
            family = Family.of_address(address)
            found.append((_by_address(dispatch, family), Element(address, verdict=target)))
            if direction == "egress":
                found.append((_bridged_set(family), Element(port.mac.ljust(8, b"\x00") + address)))
        return found

    def _bridges(self) -> tuple[str, ...]:
        """The bridges that workloads are at."""
        return tuple(sorted(bridge for bridge, ports in self._at_bridges.items() if ports))

    def _workload_names(self) -> tuple[str, ...]:
        """Beginnings of the names of interfaces that workloads' packets come and go by, and whole names."""
        return (*self._host.workload_prefixes, *(f"{bridge}\x00" for bridge in self._bridges()))

    def _count(self, policy: EndpointPolicy | None, direction: str, step: int) -> None:
        target = self._target(policy, direction)
        if policy is None or target is None or not target[1]:
            return
        walk = policy.ingress if direction == "ingress" else policy.egress
        name = target[1]
        self._walks[name] += step
        if self._walks[name] and walk is not None:
            self._walk_of.setdefault(name, (walk, policy.place))

    def _write_walk(self, batch: Batch, name: str, *, new: bool = True) -> None:
        rules = self._walk_rules(name)
        for chain in rules:  # a chain must be there before something leads to it
            if new:
                batch.add_chain(chain)
            else:
                batch.flush_chain(chain)
        for chain, made in rules.items():
            for expressions, origin in made:
                batch.add_rule(chain, expressions, origin)

    def _walk_rules(self, name: str) -> dict[str, list[tuple[bytes, str]]]:
        """The rules, with what people call them, of a walk's chain and of one for each tier, which returns once it decided
        or came to its end."""
        walk, place = self._walk_of[name]
        stages = _stages(walk, place)
        names = _stage_chains(name, stages)
        found: dict[str, list[tuple[bytes, str]]] = {}
        whole: list[tuple[bytes, str]] = []
        for chain, (tier, chains, end) in zip(names, stages, strict=True):
            rules = found[chain] = [(words.clear_mark(DECIDED), "")]
            for each in chains:
                rules.append((nft.verdict(Verdict.JUMP, _policy_chain(each)), ""))
                rules.append((words.has_mark(DECIDED) + nft.verdict(Verdict.RETURN), ""))
            if end is not Action.PASS:
                asked = ", ".join(made.policy for each in chains if (made := self._chains.get(each)) is not None)
                origin = f"end of {tier}"
                rules.append((self._deny(f"{origin}: {asked}" if asked else origin), origin))
            whole.append((nft.verdict(Verdict.JUMP, chain), ""))
            whole.append((words.has_mark(ALLOWED) + self._allowed(place), ""))
        whole.append((self._undecided(place, "the last tier" if stages else "no policy"), ""))
        return found | {name: whole}

    def _allowed(self, place: Place) -> bytes:
        if place is Place.HOST_UNTRACKED:
            return nft.no_track() + words.set_mark(EARLY) + nft.verdict(Verdict.RETURN)
        if place is Place.HOST_PRE_DNAT:
            return words.set_mark(EARLY) + nft.verdict(Verdict.RETURN)
        return nft.verdict(Verdict.RETURN)

    def _undecided(self, place: Place, origin: str) -> bytes:
        return nft.verdict(Verdict.RETURN) if place in _OPEN_ENDED else self._deny(f"end of {origin}")

    def _chains_of_walk(self, name: str) -> tuple[str, ...]:
        return (name, *_stage_chains(name, _stages(*self._walk_of[name])))

    def _forget_walk(self, name: str) -> None:
        del self._walk_of[name], self._walks[name]

    # ---- base chains

    def _write_base(self, batch: Batch) -> None:
        if not self._base_due:
            return
        self._base_due = False
        wanted = self._base_rules()
        for chain, rules in wanted.items():
            before = self._base.get(chain)
            if before == rules:
                continue
            if before:
                batch.flush_chain(chain)
            base = _BASE_CHAINS.get(chain)
            if base is not None and rules and not before:
                batch.add_base_chain(base.name, base.kind, Hook(base.hook or 0), base.priority)
            elif base is not None and before and not rules and chain != _NAT:
                batch.delete_chain(chain)
            for expressions in rules:
                batch.add_rule(chain, expressions, self._names.get(expressions, ""))
        self._base = wanted

    def _base_rules(self) -> dict[str, tuple[bytes, ...]]:
        """The rules of base and dispatch chains; those of places no endpoint is at stay empty."""
        used = {(place, direction) for (place, direction) in _DISPATCH if self._is_used(place, direction)}
        names, bridges = self._workload_names(), self._bridges()
        workloads = [words.has_interface(Meta.IIFNAME, name) for name in names]
        to_workloads = [words.has_interface(Meta.OIFNAME, name) for name in names]
        known = words.is_known()
        loopback = words.in_net(Family.IPV4_UNICAST, _LOOPBACK, words.DESTINATION)

        def asked(place: Place, direction: str) -> list[bytes]:
            if (place, direction) not in used:
                return []
            skips = place is not Place.HOST_UNTRACKED and (place, direction) != (Place.HOST_FORWARD, "egress")
            return [
                (words.lacks_mark(EARLY) if skips else b"") + nft.verdict(Verdict.JUMP, _DISPATCH[place, direction])
            ]

        # nobody else's mark, and no outer packet's, may pass for one of ours
        unmarked = [words.clear_mark(EARLY)] if any(place is not Place.WORKLOAD for place, _ in used) else []
        rules: dict[str, list[bytes]] = {
            "raw_prerouting": [
                *unmarked,
                *(self._dropped(match + loopback, "loopback of the node") for match in workloads),
                *(self._spoofed(match + nft.fib_source_present() + nft.compare(bytes(4))) for match in workloads),
                *(
                    words.has_interface(Meta.IIFNAME, f"{bridge}\x00") + nft.verdict(Verdict.JUMP, _FROM_BRIDGE)
                    for bridge in bridges
                ),
                *asked(Place.HOST_UNTRACKED, "ingress"),
            ],
            "raw_output": [*unmarked, *asked(Place.HOST_UNTRACKED, "egress")],
            "pre_dnat": [known, *asked(Place.HOST_PRE_DNAT, "ingress")] if self._is_used(Place.HOST_PRE_DNAT) else [],
            "input": [],
            "output": [],
            "postrouting": [],
            "forward": [
                known,
                *asked(Place.HOST_FORWARD, "ingress"),
                *(match + nft.verdict(Verdict.JUMP, "from_workload") for match in workloads),
                *(match + nft.verdict(Verdict.JUMP, "to_workload") for match in to_workloads),
                *asked(Place.HOST_FORWARD, "egress"),
            ],
            _NAT: list(self._nat_rules()),
            _FROM_BRIDGE: list(_bridged_rules()) if bridges else [],
            _SPOOFED: list(self._source_rules()),
        }
        to_host = self._host.workload_to_host
        if self._host.tunnels:
            rules["input"] = [known, *self._strangers()]
        if to_host is not Action.ALLOW or self._is_used(Place.HOST, "ingress"):
            rules["input"] = rules["input"] or [known]
            for match in workloads:
                rules["input"] += [match + each + nft.verdict(Verdict.RETURN) for each in words.discovery()]
                if to_host is Action.PASS:
                    rules["input"].append(match + nft.verdict(Verdict.JUMP, "from_workload"))
                if to_host is Action.DENY:
                    rules["input"].append(self._dropped(match, "workload to host"))
                else:
                    rules["input"].append(match + nft.verdict(Verdict.RETURN))
            rules["input"] += asked(Place.HOST, "ingress")
        if self._is_used(Place.HOST, "egress"):
            passed = [match + nft.verdict(Verdict.RETURN) for match in to_workloads]
            (ask,) = asked(Place.HOST, "egress")
            rules["output"] = [known, *passed, words.is_translated() + nft.verdict(Verdict.RETURN), ask]
            rules["postrouting"] = [
                known,
                *passed,
                nft.meta(Meta.IIF) + nft.compare(bytes(4)) + words.is_translated() + ask,
            ]
        for (place, direction), name in _DISPATCH.items():
            rules[name] = list(self._dispatch_rules(place, direction, name)) if self._is_used(place, direction) else []
        return {chain: tuple(each) for chain, each in rules.items()}

    def _spoofed(self, match: bytes) -> bytes:
        """What becomes of a workload's packet by whose interface its source is not reached."""
        if self._host.source_spoofing and self._sources:
            return match + nft.verdict(Verdict.JUMP, _SPOOFED)
        return self._dropped(match, "spoofed source")

    def _source_rules(self) -> Iterator[bytes]:
        if not self._host.source_spoofing or not self._sources:
            return
        for interface, sources in sorted(self._sources.items()):
            for family, net in sources:
                match = words.has_interface(Meta.IIFNAME, f"{interface}\x00") + words.in_net(family, net, words.SOURCE)
                yield match + nft.verdict(Verdict.RETURN)
        yield self._dropped(nft.fib_source_present() + nft.compare(bytes(4)), "spoofed source")

    def _is_used(self, place: Place, direction: str = "") -> bool:
        if place is Place.WORKLOAD:
            return True
        return any(
            at is place and walk is not None and direction in ("", asked)
            for (at, _), policy in self._endpoints.items()
            for walk, asked in ((policy.ingress, "ingress"), (policy.egress, "egress"))
        )

    def _dispatch_rules(self, place: Place, direction: str, name: str) -> Iterator[bytes]:
        by = Meta.IIFNAME if direction == "ingress" else Meta.OIFNAME
        if place is Place.WORKLOAD:
            if self._host.drop_invalid:
                yield self._dropped(words.in_state(CtState.INVALID), "of no connection")
            by = Meta.OIFNAME if direction == "ingress" else Meta.IIFNAME
            if direction == "egress":  # a pod must not speak the node's tunnels around its policy
                yield self._dropped(words.has_protocol(_IPIP), "tunnels of workloads")
                for port in sorted({_VXLAN_PORT, *(each.port for each in self._host.tunnels if each.protocol == _UDP)}):
                    yield self._dropped(words.has_protocol(_UDP) + words.has_port(2, port), "tunnels of workloads")
            where = words.DESTINATION if direction == "ingress" else words.SOURCE
            for bridge, family in product(self._bridges(), Family):
                match = (
                    words.has_interface(by, f"{bridge}\x00") + nft.meta(Meta.NFPROTO) + nft.compare(words.PROTO[family])
                )
                address = nft.payload(Base.NETWORK, *where[family])
                yield match + address + nft.verdict_map(_by_address(name, family))
            yield nft.meta(by) + nft.verdict_map(f"by_{name}")
            yield self._dropped(b"", "unknown workload")
            return
        if place in _FAILSAFE_PLACES:
            yield from self._failsafe_rules(place, direction)
        yield nft.meta(by) + nft.verdict_map(f"by_{name}")
        policy = self._endpoints.get((place, WILDCARD))
        target = self._target(policy, direction)
        if target is not None:
            for prefix in (*(() if place in _OF_WORKLOADS_TOO else self._workload_names()), "lo\x00"):
                yield words.has_interface(by, prefix) + nft.verdict(Verdict.RETURN)
            yield nft.verdict(*target)

    def _failsafe_rules(self, place: Place, direction: str) -> Iterator[bytes]:
        leave = nft.verdict(Verdict.RETURN)
        for each in words.discovery():
            yield each + leave
        inward, outward = self._host.failsafe_in, self._host.failsafe_out
        asked, answered = (inward, outward) if direction == "ingress" else (outward, inward)
        other = words.SOURCE if direction == "ingress" else words.DESTINATION
        for failsafe in asked:
            yield words.is_failsafe(failsafe, 2, other) + leave
        for tunnel in self._host.tunnels:
            yield words.is_tunnelled(tunnel) + words.with_end(tunnel, other) + leave
        if place is Place.HOST_UNTRACKED:  # nobody knows a reply here but by its source port
            for failsafe in answered:
                yield words.is_failsafe(failsafe, 0, other) + leave

    def _strangers(self) -> Iterator[bytes]:
        """Packets for a tunnel from who is no node: what is in them would pass for a pod's."""
        for tunnel in self._host.tunnels:
            stranger = words.is_tunnelled(tunnel) + words.with_end(tunnel, words.SOURCE, inverted=True)
            yield self._dropped(stranger, "tunnel packets of who is no node")

    def _nat_rules(self) -> Iterator[bytes]:
        for family, pools in sorted(self._host.nat_pools.items()):
            if not pools:
                continue
            yield (
                nft.meta(Meta.NFPROTO)
                + nft.compare(words.PROTO[family])
                + nft.payload(Base.NETWORK, *words.SOURCE[family])
                + nft.lookup(_pool_set("nat", family))
                + nft.payload(Base.NETWORK, *words.DESTINATION[family])
                + nft.lookup(_pool_set("all", family), inverted=True)
                + nft.counter()
                + nft.masquerade(fully_random=True)
            )


_NAT = "nat_postrouting"
"""Never deleted: connections that are translated need it as long as they live."""
_BASE_CHAINS = {
    name: ChainFound(name, kind, hook, priority)
    for name, kind, hook, priority in (
        ("raw_prerouting", "filter", Hook.PREROUTING, Priority.RAW),
        ("raw_output", "filter", Hook.OUTPUT, Priority.RAW),
        ("pre_dnat", "filter", Hook.PREROUTING, Priority.MANGLE),
        ("input", "filter", Hook.INPUT, Priority.FILTER),
        ("output", "filter", Hook.OUTPUT, Priority.FILTER),
        ("forward", "filter", Hook.FORWARD, Priority.FILTER),
        ("postrouting", "filter", Hook.POSTROUTING, Priority.MANGLE),
        (_NAT, "nat", Hook.POSTROUTING, Priority.SOURCE_NAT),
    )
}
"""As the kernel lists them. Those without rules are not there: a packet is stopped at each, whatever is in it."""


# ---- names


def _policy_chain(name: str) -> str:
    return f"p_{name}"


def _walk_name(walk: Walk, place: Place) -> str:
    """By content: endpoints that ask the same share one."""
    content = repr((place if place in _OPEN_ENDED else "closed", walk))
    return f"w_{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _stages(walk: Walk, place: Place) -> list[tuple[str, tuple[str, ...], Action]]:
    """The tiers of a walk and, where it must end in a decision, the profiles: names, chains, what their end does."""
    stages = [(tier.name, tier.chains, tier.end) for tier in walk.tiers]
    if place not in _OPEN_ENDED:
        stages.append(("profiles", walk.profiles, Action.DENY))
    return stages


def _stage_chains(name: str, stages: list[tuple[str, tuple[str, ...], Action]]) -> list[str]:
    """The chains of a walk's tiers."""
    return [f"{name}_{number}" for number in range(len(stages))]


def _pool_set(kind: str, family: Family) -> str:
    return f"pools_{kind}_{words.LABEL[family]}"


def _by_address(dispatch: str, family: Family) -> str:
    return f"by_{dispatch}_{words.LABEL[family]}"


def _bridged_set(family: Family) -> str:
    return f"bridged_{words.LABEL[family]}"


def _bridged_rules() -> Iterator[bytes]:
    """What comes by a bridge has the addresses of one workload; its port lets only its own MAC address in."""
    for family in Family:
        source = nft.payload(Base.LINK, 6, 6, nft.concat_register(0))
        source += nft.payload(Base.NETWORK, *words.SOURCE[family], nft.concat_register(2))
        known = nft.lookup(_bridged_set(family), register=nft.concat_register(0)) + nft.verdict(Verdict.RETURN)
        yield nft.meta(Meta.NFPROTO) + nft.compare(words.PROTO[family]) + source + known
    link_local = nft.payload(Base.NETWORK, 8, 2) + nft.bitwise(b"\xff\xc0") + nft.compare(b"\xfe\x80")
    yield (
        nft.meta(Meta.NFPROTO)
        + nft.compare(words.PROTO[Family.IPV6_UNICAST])
        + link_local
        + nft.verdict(Verdict.RETURN)
    )
    yield nft.counter() + nft.verdict(Verdict.DROP)


def _ends(host: HostRules, family: Family) -> list[bytes]:
    """The other ends of all tunnels of a family."""
    return sorted({end for tunnel in host.tunnels if tunnel.family is family for end in tunnel.ends})


def _by_portions(change: Callable[[str, list[Element]], int], name: str, elements: Iterable[Element]) -> Iterator[None]:
    """A change of a set's elements in steps: a set may have all pods of a cluster."""
    rest = iter(elements)
    while portion := list(islice(rest, PORTION)):
        change(name, portion)
        yield
