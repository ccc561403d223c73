"""Chains that admit no new connection where rules are missing, refused or not yet put back.

Pods are cut off from all but their own node (that only where it is not what they may anyway), host endpoints from all but
failsafe ports, neighbour discovery and tunnels between nodes. Connections that are there live on.

Invariants: no rule names a set, since those may be gone. Nobody is locked out of the node: where no failsafe port is left,
host endpoints stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from routed.dataplane import firewall_layout as layout
from routed.dataplane import firewall_words as words
from routed.dataplane.firewall_mirror import Mirror
from routed.desired_policy import Action, HostRules, Place
from routed.netlink import nft_expressions as nft
from routed.netlink.nft_expressions import Compare, CtState, Meta, Verdict
from routed.netlink.nftables import Batch, Hook, Priority

_MISSING = "rules that are missing"


class Closing(NamedTuple):
    """A base chain that closes."""

    name: str
    hook: Hook
    passes: list[bytes]
    """What is left alone beside connections that are there."""
    matches: list[bytes]
    """What of the rest is dropped."""

    def write(self, batch: Batch, host: HostRules) -> None:
        batch.add_base_chain(self.name, "filter", self.hook, Priority.FILTER)
        batch.flush_chain(self.name)  # it may be there
        batch.add_rule(self.name, words.is_known())
        for each in self.passes:
            batch.add_rule(self.name, each + nft.verdict(Verdict.ACCEPT))
        for each in self.matches:
            batch.add_rule(self.name, each + words.denied(host, _MISSING), _MISSING)


def closing(mirror: Mirror, *, hosts: bool) -> Iterator[Closing]:
    """The chains; with `hosts` those for host endpoints as well."""
    workloads = mirror.workload_names()
    of_pods = [words.has_interface(key, name) for name, key in product(workloads, (Meta.IIFNAME, Meta.OIFNAME))]
    yield Closing("closed", Hook.FORWARD, [], of_pods)
    if mirror.host.workload_to_host is not Action.ALLOW:
        from_pods = [words.has_interface(Meta.IIFNAME, name) for name in workloads]
        yield Closing("closed_input", Hook.INPUT, list(words.discovery()), from_pods)
    if hosts and mirror.host.failsafe_in:
        yield from _hosts(mirror)


def _hosts(mirror: Mirror) -> Iterator[Closing]:
    """At each interface where policy of any kind is asked. Packets of the node are stopped where it is known by which
    interface they leave, though their destination was translated."""
    # what untracked policy has admitted, where that is there
    early = words.in_state(CtState.UNTRACKED) + words.has_mark(layout.EARLY)
    of_node = nft.meta(Meta.IIF) + nft.compare(bytes(4))
    local, passing = (Place.HOST, *layout.EARLY_PLACES), (Place.HOST_FORWARD, *layout.EARLY_PLACES)
    heard = list(_where_asked(mirror, local, "ingress"))
    said = [of_node + each for each in _where_asked(mirror, (Place.HOST, Place.HOST_UNTRACKED), "egress")]
    passed = [*_where_asked(mirror, passing, "ingress"), *_where_asked(mirror, (Place.HOST_FORWARD,), "egress")]
    for chain, hook, kept, matches in (
        ("closed_host_in", Hook.INPUT, list(_kept_open(mirror, "ingress")), heard),
        ("closed_host_out", Hook.POSTROUTING, list(_kept_open(mirror, "egress")), said),
        ("closed_host_forward", Hook.FORWARD, [], passed),
    ):
        if matches:
            yield Closing(chain, hook, [early, *kept], matches)


def _kept_open(mirror: Mirror, direction: str) -> Iterator[bytes]:
    """What no host policy closes: without the ends of tunnels, since the sets of them may be gone."""
    inward = direction == "ingress"
    yield from words.discovery()
    for failsafe in mirror.host.failsafe_in if inward else mirror.host.failsafe_out:
        yield words.is_failsafe(failsafe, 2, words.SOURCE if inward else words.DESTINATION)
    yield from map(words.is_tunnelled, mirror.host.tunnels)


def _where_asked(mirror: Mirror, places: tuple[Place, ...], direction: str) -> Iterator[bytes]:
    """Packets at interfaces at which host policy of one of these kinds is asked."""
    key = Meta.IIFNAME if direction == "ingress" else Meta.OIFNAME
    named = {interface for place, interface in mirror.endpoints if place in places} - {layout.WILDCARD}
    elsewhere = [place for place in places if mirror.asks(place, layout.WILDCARD, direction)]
    asked = {
        name
        for name in named
        if any(mirror.asks(place, name, direction) for place in places)
        or any((place, name) not in mirror.endpoints for place in elsewhere)
    }
    for name in sorted(asked):
        yield words.has_interface(key, f"{name}\x00")
    if elsewhere:
        workloads = () if any(place in layout.OF_WORKLOADS_TOO for place in elsewhere) else mirror.workload_names()
        others = (*(f"{name}\x00" for name in sorted(named)), *workloads, "lo\x00")
        yield b"".join(words.has_interface(key, name, Compare.NOT_EQUAL) for name in others)
