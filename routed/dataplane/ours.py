"""One family's routes of ours as we know them, and how we speak of them to people.

What the kernel holds is one dictionary (prefix -> shared KernelRoute). What is desired is the same, but for the
exceptions, which are few when nothing happens: `queued`, `failed`, `disturbed`, `stale`.

Not here: what follows from any of it (`routes`).
"""

from __future__ import annotations

import errno as errnos
import os
from typing import NamedTuple

from routed.dataplane.watch import Watch
from routed.desired import Gateway, KernelRoute, RouteKind
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.observed import ForeignRoute
from routed.rib.nexthops import PROTOCOL_NAMES
from routed.values import dataclass


class Refused(NamedTuple):
    """What we wanted and why the kernel did not. Shared by all prefixes with the same story."""

    route: KernelRoute | None
    errno: int
    text: str
    """The kernel's extended-ACK sentence."""


@dataclass(frozen=True, slots=True)
class FibEntry:
    """One route of ours, for people."""

    family: Family
    prefix: bytes
    route: KernelRoute | None
    """What it should be; what it is where `state` is stale; None where it should go."""
    state: str
    """installed | pending | failed | stale (found at start, waits for its owner or the sweep)"""
    reason: str = ""


class OwnRoutes:
    """One family's routes of ours, see the module's docstring."""

    __slots__ = (
        "disturbed", "failed", "family", "installed", "leftovers", "odd", "queued", "stale", "swept", "unseen",
    )  # fmt: skip

    def __init__(self, family: Family) -> None:
        self.family = family
        self.installed: dict[bytes, KernelRoute] = {}
        """What the kernel holds, once it has handled the chunks in flight."""
        self.queued: dict[bytes, KernelRoute | None] = {}
        """To be written."""
        self.failed: dict[bytes, Refused] = {}
        """Refused, to be retried; `installed` may hold what was there before."""
        self.disturbed: dict[bytes, KernelRoute] = {}
        """Removed or changed by somebody else, to be repaired into this."""
        self.stale: set[bytes] = set()
        """Found at start and not asked for yet."""
        self.swept = False
        """Nothing may be stale any more."""
        self.leftovers: list[tuple[bytes, int]] = []
        """Routes of ours beside those we know of, to be swept: (prefix, metric)."""
        self.unseen: dict[bytes, KernelRoute] = {}
        """During a dump: what it should show and has not yet."""
        self.odd: dict[bytes, KernelRoute] = {}
        """During a dump: what it showed that differs from what we believed."""

    def entry(self, prefix: bytes, watch: Watch, problem: str) -> FibEntry | None:
        """One route for people, or None. `problem` is why nothing can be written at the moment."""
        family = self.family
        failed = self.failed.get(prefix)
        if failed is not None:
            route = self.queued.get(prefix, failed.route)
            return FibEntry(family, prefix, route, "failed", why_refused(watch, family, prefix, failed))
        if prefix in self.queued:
            return FibEntry(family, prefix, self.queued[prefix], "pending", problem)
        if prefix in self.disturbed:
            reason = "another program removed or changed it; it is about to be put back"
            return FibEntry(family, prefix, self.disturbed[prefix], "pending", reason)
        installed = self.installed.get(prefix)
        if installed is None:
            return None
        return FibEntry(family, prefix, installed, "stale" if prefix in self.stale else "installed")


def why_refused(watch: Watch, family: Family, prefix: bytes, refused: Refused) -> str:
    """A sentence for the person who can act."""
    text = format_prefix(family, prefix)
    if refused.errno == errnos.EEXIST:
        foreign = watch.holder(family, prefix, metric_of(watch, family, refused.route))
        by = _describe_foreign(watch, foreign) if foreign is not None else "a route of another program"
        return f"refused: {text} is held by {by}; remove it or filter the prefix"
    what = f"to remove {text}" if refused.route is None else f"{text} {describe(watch, refused.route)}"
    extra = f" ({refused.text})" if refused.text else ""
    return f"the kernel refused {what}: {os.strerror(refused.errno)}{extra}"


def describe(watch: Watch, route: KernelRoute) -> str:
    """`via 10.0.0.2 dev eth0`, as `ip route` has it."""
    where = _describe_legs(watch, route.gateways) if route.kind is RouteKind.UNICAST else route.kind.name.lower()
    return f"{where} metric {route.metric}" if route.metric else where


def metric_of(watch: Watch, family: Family, route: KernelRoute | None) -> int:
    """The metric a route of ours has in the kernel."""
    return (route.metric if route is not None else 0) or watch.own_metric(family)


def same_route(wanted: KernelRoute, seen: KernelRoute) -> bool:
    """Whether what the kernel shows is what we wrote; an interface we left to the kernel may be any."""
    if wanted == seen:
        return True
    if wanted.kind is not seen.kind or wanted.metric != seen.metric or len(wanted.gateways) != len(seen.gateways):
        return False
    if all(leg.interface for leg in wanted.gateways):
        return False
    return all(
        ours.address == theirs.address and ours.onlink == theirs.onlink and ours.interface in (0, theirs.interface)
        for ours, theirs in zip(wanted.gateways, sorted(seen.gateways, key=lambda leg: leg.address), strict=True)
    )


def _describe_foreign(watch: Watch, foreign: ForeignRoute) -> str:
    protocol = PROTOCOL_NAMES.get(foreign.protocol, f"protocol {foreign.protocol}")
    legs = _describe_legs(watch, foreign.gateways)
    return f"a {protocol} route {legs}" if legs else f"a {protocol} route"


def _describe_legs(watch: Watch, legs: tuple[Gateway, ...]) -> str:
    words = []
    for leg in legs:
        if leg.address:
            words.append(f"via {format_address(leg.address)}")
        if leg.interface:
            words.append(f"dev {watch.interface_name(leg.interface)}")
        if leg.onlink:
            words.append("onlink")
    return " ".join(words)
