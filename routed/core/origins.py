"""Routes of this node's own in the table: what the plan originates, and what others put into the kernel.

An origin is a blackhole, leads by a gateway, or is directly behind an interface. One of the last kind leads nowhere while
its interface is not up: it is announced and not programmed, until the interface is there.

Invariant: each origin and each route learned is in the table once, as the plan and the interfaces of now say.

Not here: which prefixes are originated (`plan`), which of the kernel's routes are ours to announce (`core/learned`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from routed.bgp.attributes import AttributeSet
from routed.bgp.update import AttributePool
from routed.core.interfaces import Interfaces
from routed.core.learned import Key, Learned, Learner
from routed.desired import Gateway, KernelRoute, RouteKind
from routed.net.families import Family
from routed.observed import KernelChange
from routed.plan.types import LearnPlan, Origin
from routed.rib.nexthops import NextHopTable
from routed.rib.path import HIGHEST_LOCAL_PREF, Path, Source, SourceKind
from routed.rib.table import FamilyRib

_BLACKHOLE = KernelRoute(RouteKind.BLACKHOLE)


class Origins:
    """See the module's docstring."""

    def __init__(
        self,
        ribs: Mapping[Family, FamilyRib],
        next_hops: NextHopTable,
        interfaces: Interfaces,
        pool: AttributePool,
    ) -> None:
        self.local = Source("local", SourceKind.LOCAL, 0, b"")
        self.learned = Source("kernel", SourceKind.LOCAL, 0, b"")
        """Our own routes too, but put into the kernel by others."""
        self._ribs = ribs
        self._next_hops = next_hops
        self._interfaces = interfaces
        self._pool = pool
        self._attrs = pool.intern(AttributeSet())
        self._learner = Learner()
        self._normal_priority: Mapping[Family, int] = dict.fromkeys(Family, 0)
        """As in `KernelPlan`."""
        self._behind: dict[str, dict[Key, tuple[Origin, int]]] = {}
        """Origins directly behind an interface, by its name, with the index their route has now; 0: there is none."""

    def speak_as(self, router_id: int) -> None:
        self.local.router_id = self.learned.router_id = router_id

    # ---------------------------------------------------------------- what the plan originates

    def plan(self, old: Mapping[Key, Origin], removed: Iterable[Key], changed: Mapping[Key, Origin]) -> None:
        """Originate by another plan: what is not in it any more, and what is new or another than in the `old` one."""
        for key in removed:
            family, prefix = key
            self._ribs[family].withdraw_origin(prefix, self.local)
            self._forget_behind(old[key].interface, key)
        for key, origin in changed.items():
            was = old.get(key)
            if was is not None:
                self._forget_behind(was.interface, key)
            self._originate(key, origin)

    def devices_changed(self, names: Iterable[str]) -> None:
        """Interfaces came, went or changed: routes behind them lead there, or nowhere while they are gone."""
        for name in names:
            for key, (origin, index) in list(self._behind.get(name, {}).items()):
                if self._interfaces.up(name) != index:
                    self._originate(key, origin)

    def _originate(self, key: Key, origin: Origin) -> None:
        family, prefix = key
        path = Path(self.local, self._attrs, self._next_hops.track(origin.gateway) if origin.gateway else None)
        path.kernel_route = _BLACKHOLE if origin.blackhole else None
        if origin.interface:
            index = self._interfaces.up(origin.interface)
            self._behind.setdefault(origin.interface, {})[key] = (origin, index)
            path.interface = origin.interface
            if index:
                path.kernel_route = KernelRoute(RouteKind.UNICAST, (Gateway(b"", index),))
        self._ribs[family].originate(prefix, path)

    def _forget_behind(self, name: str, key: Key) -> None:
        """What is behind an interface no more."""
        behind = self._behind.get(name)
        if behind is not None and behind.pop(key, None) is not None and not behind:
            del self._behind[name]

    # ---------------------------------------------------------------- what others put into the kernel

    def kernel(self, change: KernelChange) -> None:
        """Take in what the kernel was seen to hold."""
        self._learn(self._learner.apply(change))

    def learn(self, plan: LearnPlan) -> None:
        """Learn by this plan from now on. What is learned before the first is not in the table."""
        if plan != self._learner.plan:
            self._learn(self._learner.configure(plan))

    def priorities_changed(self, family: Family, normal: Mapping[Family, int]) -> None:
        """A metric of the kernel's means another LOCAL_PREF, or none, in a family."""
        self._normal_priority = normal
        self.learned.by_priority = any(normal.values())
        self._learn({key: found for key, found in self._learner.current.items() if key[0] is family})

    def _learn(self, changed: Mapping[Key, Learned | None]) -> None:
        """Routes of ours that others put into the kernel came, changed or went."""
        for (family, prefix), found in changed.items():
            if found is None:
                self._ribs[family].withdraw_origin(prefix, self.learned)
                continue
            attrs = self._attrs
            normal = self._normal_priority[family]
            if normal:
                attrs = self._pool.intern(AttributeSet(local_pref=HIGHEST_LOCAL_PREF - (found.metric or normal)))
            path = Path(self.learned, attrs, None)
            path.interface = found.interface
            self._ribs[family].originate(prefix, path)
