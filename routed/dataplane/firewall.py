"""Policy as an nf_tables program: one table of ours, changed by atomic batches. Octets out, no socket.

`firewall_layout` says what is where in the table, `firewall_mirror` holds what its rules are made from; they are written in
`firewall_walks` (policies), `firewall_base` (the way to them) and `firewall_closing` (what is there in their place). Here is
what of all that goes into a batch, and in which order, and what the kernel must have after it.

Invariants: the program in the kernel and the mirror agree while batches succeed; `rebuild` makes all rules anew in one
transaction, whatever was there. Batches can be written in steps, none of which takes long (`changing`, `rebuilding`): what
goes into the kernel is the whole batch. Elements go one by one, rules a chain at a time; a set is filled before rules that
look into it, and deleted after; what a set of ranges gains it has before the rules that came with it, where the ranges let
it, since the kernel shows it later than those. Other tables are never named.

Sockets, threads and retries are in `firewall_kernel`; what should be allowed is `policy`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from routed.dataplane import firewall_layout as layout
from routed.dataplane import firewall_words as words
from routed.dataplane.firewall_base import BaseRules
from routed.dataplane.firewall_closing import closing
from routed.dataplane.firewall_mirror import Mirror
from routed.dataplane.firewall_walks import WalkRules
from routed.dataplane.table_found import TableFound
from routed.desired_policy import (
    Action,
    Chain,
    ChainUpdate,
    EndpointUpdate,
    HostRules,
    Place,
    PolicyBatch,
    SetSpec,
    SetUpdate,
)
from routed.net.families import Family
from routed.netlink.nftables import (
    Batch,
    Element,
    ElementFound,
    Hook,
    SetFlag,
    comment,
    found_as,
)

_TABLE_COMMENT = "made by routed; changes by hand are undone"
PORTION = 512
"""Elements of a set that are written in one step."""
_RANGES_COMPARED = 10_000
"""Pairs of ranges at most that it is asked of whether they meet."""


class Firewall:
    """See the module's docstring."""

    def __init__(self, table: str = layout.TABLE) -> None:
        self.table = table
        self._mirror = Mirror()
        self._walks = WalkRules(self._mirror)
        self._base_rules = BaseRules(self._mirror)
        self._base: dict[str, tuple[bytes, ...]] = {}
        """The rules of the base and dispatch chains, as they are in the kernel."""

    # ---- changes

    def change(self, wanted: PolicyBatch) -> Batch:
        """Take a change in; the batch that makes it in a kernel that has all before it."""
        batch = Batch(self.table)
        for _ in self.changing(wanted, batch):
            pass
        return batch

    def changing(self, wanted: PolicyBatch, batch: Batch) -> Iterator[None]:
        """`change` in steps of bounded length. Nobody else may change anything before the last one."""
        mirror = self._mirror
        sets_before, chains_before, walks_before = set(mirror.sets), set(mirror.chains), set(mirror.walk_of)
        for update in wanted.sets:
            spec = update.spec
            removed, added = mirror.take_set(update)
            if update.gone:
                continue
            new = spec.name not in sets_before
            if new:
                batch.before.add_set(spec.name, words.shape_of(spec))
            filled = batch.before if new or _come_apart(spec, removed, added) else batch
            yield from _by_portions(batch.delete_elements, spec.name, words.members_of(spec, removed))
            yield from _by_portions(filled.add_elements, spec.name, words.members_of(spec, added))
        if wanted.host is not None:
            old, mirror.host, mirror.base_due = mirror.host, wanted.host, True
            self._change_pools(batch.before, old)
            if _written_into_rules(old) != _written_into_rules(mirror.host):
                yield from self._rewrite_all(batch)
        for chain_update in wanted.chains:
            mirror.take_chain(chain_update)
            if chain_update.chain is not None:
                self._write_chain(batch, chain_update.chain, new=chain_update.name not in chains_before)
                yield
        old_elements: dict[str, list[Element]] = {}
        new_elements: dict[str, list[Element]] = {}
        concerned = {address for each in wanted.endpoints for address in mirror.addresses_of(each)}
        concerned.update(*map(mirror.addresses_behind, wanted.interfaces))
        sources_before = {address: mirror.source(address) for address in concerned}
        mirror.take_interfaces(wanted)
        for endpoint in wanted.endpoints:
            key = (endpoint.place, endpoint.interface)
            old_policy = mirror.take_endpoint(endpoint)
            for direction in ("ingress", "egress"):
                before_it = mirror.entries(key, old_policy, direction)
                after_it = mirror.entries(key, endpoint.policy, direction)
                for name, element in before_it:
                    if (name, element) not in after_it:
                        old_elements.setdefault(name, []).append(element)
                for name, element in after_it:
                    if (name, element) not in before_it:
                        new_elements.setdefault(name, []).append(element)
            yield
        for address, was in sources_before.items():
            name, now = layout.own_set(Family.of_address(address)), mirror.source(address)
            if was != now and was is not None:
                old_elements.setdefault(name, []).append(was)
            if was != now and now is not None:
                new_elements.setdefault(name, []).append(now)
        for name in [name for name in mirror.walk_of if name not in walks_before]:
            self._write_walk(batch, name)
            yield
        for name, elements in old_elements.items():
            yield from _by_portions(batch.delete_elements, name, elements)
        for name, elements in new_elements.items():
            yield from _by_portions(batch.add_elements, name, elements)
        self._write_base(batch)
        yield
        for name in [name for name in mirror.walk_of if not mirror.walks[name]]:
            for delete in (batch.flush_chain, batch.delete_chain):
                for chain in mirror.chains_of_walk(name):
                    delete(chain)
            mirror.forget_walk(name)
            yield
        for chain_update in wanted.chains:
            if chain_update.chain is None and chain_update.name in chains_before:
                batch.delete_chain(layout.policy_chain(chain_update.name))
        for update in wanted.sets:
            if update.gone and update.spec.name in sets_before:
                batch.after.delete_set(update.spec.name)

    def take_in(self, wanted: PolicyBatch) -> None:
        """Take a change in that only the next `rebuild` writes."""
        mirror = self._mirror
        for update in wanted.sets:
            mirror.take_set(update)
        if wanted.host is not None:
            mirror.host, mirror.base_due = wanted.host, True
        for chain_update in wanted.chains:
            mirror.take_chain(chain_update)
        for endpoint in wanted.endpoints:
            mirror.take_endpoint(endpoint)
        mirror.take_interfaces(wanted)
        for name in [name for name in mirror.walk_of if not mirror.walks[name]]:
            mirror.forget_walk(name)

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
        mirror = self._mirror
        shapes, chains = mirror.shapes(), set(mirror.plain_chains())
        batch.is_rebuild = True
        sets = batch.before
        if found is None or not found.fits(layout.BASE_CHAINS, chains, shapes):
            found, sets = TableFound(), batch
            batch.add_table()
            batch.delete_table()
        sets.add_table(_TABLE_COMMENT)
        if sets is batch:
            for each in closing(mirror, hosts=True):  # as long as its rules look into sets that come with them
                each.write(batch, mirror.host)
                batch.after.flush_chain(each.name)
                batch.after.delete_chain(each.name)
        if found.chains:
            batch.flush_rules()
        for name in found.sets.keys() - shapes.keys():
            if found.sets[name].flags & SetFlag.MAP:
                batch.flush_set(name)  # it may lead to chains that go
            batch.after.delete_set(name)
        for name, shape in shapes.items():
            if name not in found.sets:
                sets.add_set(name, shape)
        dispatched: dict[str, list[Element]] = {name: [] for name in shapes if name not in mirror.sets}
        for family in Family:
            for kind, pools in (("nat", mirror.host.nat_pools), ("all", mirror.host.all_pools)):
                dispatched[layout.pool_set(kind, family)] = list(words.ranges_of(pools.get(family, ()), family))
            dispatched[words.ends_set(family)] = [Element(end) for end in _ends(mirror.host, family)]
        for name, (spec, members) in mirror.sets.items():
            yield from self._write_elements(batch, sets, name, words.members_of(spec, members), found)
        for chain in mirror.chains.values():
            self._write_chain(batch, chain, new=True)
            yield
        for name in mirror.walk_of:
            self._write_walk(batch, name)
            yield
        for key, policy in mirror.endpoints.items():
            for direction in ("ingress", "egress"):
                for name, element in mirror.entries(key, policy, direction):
                    dispatched[name].append(element)
            yield
        for family in Family:
            dispatched[layout.own_set(family)] = list(mirror.own_sources(family))
        for name, elements in dispatched.items():
            filled = batch if shapes[name].verdicts else sets  # a verdict leads to a chain, which comes with the rules
            yield from self._write_elements(batch, filled, name, elements, found)
        for name in layout.INNER_CHAINS:
            batch.add_chain(name)
        self._base, mirror.base_due = {}, True
        self._write_base(batch)
        stay = {layout.NAT, *(base for base in layout.BASE_CHAINS if self._base[base])}
        for name in found.chains.keys() - chains - stay:
            batch.delete_chain(name)

    def _write_elements(
        self, batch: Batch, sets: Batch, name: str, wanted: Iterable[Element], found: TableFound
    ) -> Iterator[None]:
        """The elements of a set of which some may be there. They come and go with the rules of `batch`; but those of a new
        set come before, in `sets`, and so does what one of ranges gains and nothing that goes is in the way of."""
        if name not in found.sets:
            yield from _by_portions(sets.add_elements, name, wanted)
            return
        differs = found.difference(name, list(wanted))
        if differs.anew:
            batch.flush_set(name)
        yield from _by_portions(batch.delete_elements, name, differs.removed)
        apart = (
            found.sets[name].flags & SetFlag.INTERVAL
            and not differs.anew
            and _are_apart(differs.removed, differs.added)
        )
        yield from _by_portions((sets if apart else batch).add_elements, name, differs.added)

    def give_up(self, chain: str, why: str) -> bool:
        """The kernel does not take a chain's rules: from the next batch on everything is denied in their place, until they
        change. Whether there is such a chain and it was not given up before."""
        mirror = self._mirror
        if chain not in mirror.chains or chain in mirror.given_up:
            return False
        mirror.given_up[chain] = why
        return True

    def closed(self, *, hosts: bool = True) -> Batch:
        """Chains in place of rules that are missing, refused or not yet put back: no new connection from or to a pod; to the
        node only where that is not what its pods may anyway; with `hosts` none at a host endpoint but at failsafe ports.
        Before them the table itself: somebody may have put it to sleep, and the kernel takes no new chain together with its
        waking."""
        batch = Batch(self.table)
        for each in (batch.before, batch):
            each.add_table(_TABLE_COMMENT)
        for chain in closing(self._mirror, hosts=hosts):
            chain.write(batch, self._mirror.host)
        return batch

    # ---- questions

    @property
    def problems(self) -> tuple[str, ...]:
        """What the kernel does not take, in sentences."""
        mirror = self._mirror
        return tuple(
            sorted(
                f"the kernel refuses the rules of {mirror.chains[name].policy} ({why}); what it is for is closed instead"
                for name, why in mirror.given_up.items()
                if name in mirror.chains
            )
        )

    @property
    def program(self) -> PolicyBatch:
        """All of it, as one batch."""
        mirror = self._mirror
        return PolicyBatch(
            tuple(SetUpdate(spec, frozenset(members)) for spec, members in mirror.sets.values()),
            tuple(ChainUpdate(name, chain) for name, chain in mirror.chains.items()),
            tuple(EndpointUpdate(name, place, policy) for (place, name), policy in mirror.endpoints.items()),
            mirror.host,
            mirror.indexes,
        )

    def rules_of(self, chain: str) -> tuple[str, list[tuple[str, bytes]]]:
        """The kernel's name of a policy's chain, and the comments and expressions its rules must have there, in order."""
        made = [
            (comment(rule.origin), each)
            for rule in self._mirror.rules(self._mirror.chains[chain])
            for each in self._walks.of_rule(rule)
        ]
        return layout.policy_chain(chain), made

    def sets_of(self, chain: str) -> set[str]:
        """The sets that a policy's rules name."""
        sides = [side for rule in self._mirror.chains[chain].rules for side in (rule.source, rule.destination)]
        return {name for side in sides for name in (*side.sets, *side.not_sets, *side.port_sets, *side.not_port_sets)}

    def dispatch_maps(self, place: Place, direction: str) -> tuple[str, ...]:
        """The maps by which packets find the walk of an interface, or of a bridged workload by its address, and the sets of
        the sources that are workloads' own."""
        name = layout.DISPATCH[place, direction]
        by_address = (
            [layout.by_address(name, family) for family in Family]
            if name in layout.OF_WORKLOADS and self._mirror.bridges()
            else []
        )
        return f"by_{name}", *by_address, *(layout.OWN_SETS if (place, direction) == (Place.WORKLOAD, "egress") else ())

    def elements_of(self, name: str) -> set[ElementFound]:
        """What the kernel must list of a set or a dispatch map."""
        mirror = self._mirror
        made: Iterable[Element]
        if name in mirror.sets:
            made = words.members_of(*mirror.sets[name])
        elif name in layout.OWN_SETS:
            made = mirror.own_sources(layout.OWN_SETS[name])
        else:
            made = (
                element
                for key, policy in mirror.endpoints.items()
                for direction in ("ingress", "egress")
                for place, element in mirror.entries(key, policy, direction)
                if place == name
            )
        return {found for element in made for found in found_as(element)}

    def walk_of(self, place: Place, interface: str, direction: str) -> dict[str, list[tuple[str, bytes]]]:
        """The chains that lead a packet at an endpoint through its tiers: the comments and expressions of their rules."""
        name = self.walk_chain(place, interface, direction) or ""
        return {
            chain: [(comment(origin), expressions) for expressions, origin in rules]
            for chain, rules in (self._walks.of_walk(name) if name in self._mirror.walk_of else {}).items()
        }

    @property
    def base_rules(self) -> dict[str, tuple[bytes, ...]]:
        """The rules that base and dispatch chains must have."""
        return self._base

    def decisions(self) -> dict[str, dict[str, tuple[str, Action]]]:
        """By the kernel's chain and a rule's comment there: whose rule it is, and what it does."""
        mirror = self._mirror
        found = {
            layout.policy_chain(name): {
                comment(rule.origin): (chain.policy, rule.action) for rule in mirror.rules(chain)
            }
            for name, chain in mirror.chains.items()
        }
        for chain, rules in self._base.items():
            found[chain] = {
                said: (said, Action.DENY) for each in rules if (said := self._base_rules.names.get((chain, each)))
            }
        for name, (walk, place) in mirror.walk_of.items():
            stages = layout.stages(walk, place)
            found[name] = {comment(layout.OF_NONE): (layout.OF_NONE, Action.DENY)}
            for chain, (tier, _, end) in zip(layout.stage_chains(name, stages), stages, strict=True):
                if end is Action.DENY:
                    said = comment(f"end of {tier}")
                    found[chain] = {said: (said, Action.DENY)}
        return found

    def walk_chain(self, place: Place, interface: str, direction: str) -> str | None:
        """The chain that judges an endpoint, for people; None where nothing is asked there."""
        policy = self._mirror.endpoints.get((place, interface))
        target = self._mirror.target(policy, direction)
        return target[1] if target is not None and target[1] else None

    # ---- the mirror

    # ---- sets

    def _change_pools(self, batch: Batch, old: HostRules) -> None:
        mirror = self._mirror
        for kind, before, after in (
            ("nat", old.nat_pools, mirror.host.nat_pools),
            ("all", old.all_pools, mirror.host.all_pools),
        ):
            for family in Family:
                was, now = (list(words.ranges_of(pools.get(family, ()), family)) for pools in (before, after))
                batch.delete_elements(layout.pool_set(kind, family), [each for each in was if each not in now])
                batch.add_elements(layout.pool_set(kind, family), [each for each in now if each not in was])
        for family in Family:
            there, here = _ends(old, family), _ends(mirror.host, family)
            batch.delete_elements(words.ends_set(family), [Element(end) for end in there if end not in here])
            batch.add_elements(words.ends_set(family), [Element(end) for end in here if end not in there])

    # ---- chains of policies

    def _rewrite_all(self, batch: Batch) -> Iterator[None]:
        for chain in self._mirror.chains.values():
            self._write_chain(batch, chain, new=False)
            yield
        for name in self._mirror.walk_of:
            self._write_walk(batch, name, new=False)
            yield

    def _write_chain(self, batch: Batch, chain: Chain, *, new: bool) -> None:
        name = layout.policy_chain(chain.name)
        if new:
            batch.add_chain(name)
        else:
            batch.flush_chain(name)
        batch.subject = chain.name
        for rule in self._mirror.rules(chain):
            for expressions in self._walks.of_rule(rule):
                batch.add_rule(name, expressions, rule.origin)
        batch.subject = ""

    # ---- walks

    def _write_walk(self, batch: Batch, name: str, *, new: bool = True) -> None:
        rules = self._walks.of_walk(name)
        for chain in rules:  # a chain must be there before something leads to it
            if new:
                batch.add_chain(chain)
            else:
                batch.flush_chain(chain)
        for chain, made in rules.items():
            for expressions, origin in made:
                batch.add_rule(chain, expressions, origin)

    # ---- base chains

    def _write_base(self, batch: Batch) -> None:
        if not self._mirror.base_due:
            return
        self._mirror.base_due = False
        wanted = self._base_rules.made()
        for chain, rules in wanted.items():
            before = self._base.get(chain)
            if before == rules:
                continue
            if before:
                batch.flush_chain(chain)
            base = layout.BASE_CHAINS.get(chain)
            if base is not None and rules and not before:
                batch.add_base_chain(base.name, base.kind, Hook(base.hook or 0), base.priority)
            elif base is not None and before and not rules and chain != layout.NAT:
                batch.delete_chain(chain)
            for expressions in rules:
                batch.add_rule(chain, expressions, self._base_rules.names.get((chain, expressions), ""))
        self._base = wanted


def _come_apart(spec: SetSpec, removed: set[bytes], added: set[bytes]) -> bool:
    """Whether members of a set of ranges may come before others go."""
    if not added or not words.shape_of(spec).interval:
        return False
    return _are_apart(words.members_of(spec, removed), words.members_of(spec, added))


def _are_apart(removed: Iterable[Element], added: Iterable[Element]) -> bool:
    """Whether ranges that come meet none of those that go."""
    gone, come = list(removed), list(added)
    if len(gone) * len(come) > _RANGES_COMPARED:
        return False
    return not any(_meet(one, other) for one in gone for other in come)


def _meet(one: Element, other: Element) -> bool:
    return (not one.end or other.key < one.end) and (not other.end or one.key < other.end)


def _written_into_rules(host: HostRules) -> tuple[object, ...]:
    """What chains of policies and walks say beside what is asked in them."""
    return host.log_group, host.log_denied, host.drop_invalid


def _ends(host: HostRules, family: Family) -> list[bytes]:
    """The other ends of all tunnels of a family."""
    return sorted({end for tunnel in host.tunnels if tunnel.family is family for end in tunnel.ends})


def _by_portions(change: Callable[[str, list[Element]], int], name: str, elements: Iterable[Element]) -> Iterator[None]:
    """A change of a set's elements in steps: a set may have all pods of a cluster."""
    rest = iter(elements)
    while portion := list(islice(rest, PORTION)):
        change(name, portion)
        yield
