"""The rules of policies and of the walks that lead through them, in the kernel's octets.

A policy's rule marks what it decides and returns. In a tier's chain `mark & DECIDED` tells whether a policy did: a chain
cannot end the walk itself, since `accept` would also skip the packet's other endpoint, and `return` only leaves the chain.

Invariants: pure, made from the mirror alone, so the same mirror has the same rules: what is in the kernel is held against
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from routed.dataplane import firewall_layout as layout
from routed.dataplane import firewall_words as words
from routed.dataplane.firewall_mirror import Mirror
from routed.desired_policy import Action, Place, Rule, SetKind, Side
from routed.net.families import Family
from routed.netlink import nft_expressions as nft
from routed.netlink.nft_expressions import Base, Compare, CtState, Meta, Verdict


class WalkRules:
    """See the module's docstring."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def of_rule(self, rule: Rule) -> Iterator[bytes]:
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

    def of_walk(self, name: str) -> dict[str, list[tuple[bytes, str]]]:
        """The rules, with what people call them, of a walk's chain and of one for each tier, which returns once it decided
        or came to its end."""
        mirror = self._mirror
        walk, place = mirror.walk_of[name]
        stages = layout.stages(walk, place)
        names = layout.stage_chains(name, stages)
        found: dict[str, list[tuple[bytes, str]]] = {}
        whole: list[tuple[bytes, str]] = []
        elsewhere = place in (Place.WORKLOAD, Place.HOST_UNTRACKED)  # workloads' are dropped on the way here
        if mirror.host.drop_invalid and not elsewhere:
            whole.append((words.in_state(CtState.INVALID) + words.denied(mirror.host, layout.OF_NONE), layout.OF_NONE))
        for chain, (tier, chains, end) in zip(names, stages, strict=True):
            rules = found[chain] = [(words.clear_mark(layout.DECIDED), "")]
            for each in chains:
                rules.append((nft.verdict(Verdict.JUMP, layout.policy_chain(each)), ""))
                rules.append((words.has_mark(layout.DECIDED) + nft.verdict(Verdict.RETURN), ""))
            if end is not Action.PASS:
                asked = ", ".join(made.policy for each in chains if (made := mirror.chains.get(each)) is not None)
                origin = f"end of {tier}"
                rules.append((words.denied(mirror.host, f"{origin}: {asked}" if asked else origin), origin))
            whole.append((nft.verdict(Verdict.JUMP, chain), ""))
            whole.append((words.has_mark(layout.ALLOWED) + self._allowed(place), ""))
        origin = "end of the last tier" if stages else "end of no policy"
        whole.append((self._undecided(place, origin), "" if place in layout.OPEN_ENDED else origin))
        return found | {name: whole}

    # ---- inside

    def _ports(self, side: Side, where: dict[Family, tuple[int, int]], offset: int) -> list[bytes]:
        """The alternatives a side has for its port, each with the ports it must not have."""

        def in_set(name: str, *, inverted: bool = False) -> bytes:
            spec = self._mirror.sets[name][0]
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
                return nft.counter() + words.set_mark(layout.ALLOWED) + nft.verdict(Verdict.RETURN)
            case Action.PASS:
                return nft.counter() + words.set_mark(layout.PASSED) + nft.verdict(Verdict.RETURN)
            case Action.LOG:
                return nft.counter() + nft.log(self._mirror.host.log_group or 0, f"routed log {rule.origin}")
            case Action.DENY:
                return words.denied(self._mirror.host, rule.origin)

    def _allowed(self, place: Place) -> bytes:
        if place is Place.HOST_UNTRACKED:
            return nft.no_track() + words.set_mark(layout.EARLY) + nft.verdict(Verdict.RETURN)
        if place is Place.HOST_PRE_DNAT:
            return words.set_mark(layout.EARLY) + nft.verdict(Verdict.RETURN)
        return nft.verdict(Verdict.RETURN)

    def _undecided(self, place: Place, origin: str) -> bytes:
        if place in layout.OPEN_ENDED:
            return nft.verdict(Verdict.RETURN)
        return words.denied(self._mirror.host, origin)
