"""Routes of this node that others put into its kernel: workloads' addresses, and interfaces' own.

Where Felix or another CNI plugin runs beside us, a workload has a host route straight to its interface (`cali...`), and we
announce what Calico's BIRD would: BIRD learns such routes, and the addresses of all other interfaces ("direct").
Of the latter only those matter that lie inside an enabled pool and outside our own blocks (tunnel addresses borrowed from
another block, mostly); Calico's default rules let no other out, and we don't look at them.

Invariant: what is learned is a function of the kernel's state and the plan, not of the order of events.
Not here: making paths of it (`core/origins`), whether it is exported (`plan/export`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import TypeAlias

from routed.net.addresses import is_link_local
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.plan.types import LearnPlan
from routed.values import dataclass

Key: TypeAlias = tuple[Family, bytes]

_UNICAST = 1

#: Interfaces whose addresses Calico's BIRD never looks at, beside the workloads'.
_NEVER_DIRECT = ("kube-ipvs*",)


@dataclass(frozen=True, slots=True)
class Learned:
    """Why a prefix is a route of this node."""

    interface: str
    metric: int
    """Of the kernel's route; 0 for an interface's own address."""


class Learner:
    """See the module's docstring. Learns nothing until it has a plan."""

    def __init__(self) -> None:
        self.current: dict[Key, Learned] = {}
        self.plan: LearnPlan | None = None
        self._ignored: re.Pattern[str] | None = None
        self._interfaces: dict[int, Interface] = {}
        self._routes: dict[Key, dict[int, ForeignRoute]] = {}
        """Host routes straight to an interface, by metric."""
        self._through: dict[int, set[Key]] = {}
        """Keys of routes and addresses, by interface."""
        self._owners: dict[Key, set[int]] = {}
        """Interfaces with an address whose network this is."""

    def configure(self, plan: LearnPlan) -> dict[Key, Learned | None]:
        """Learn by this plan from now on; what changed."""
        self.plan = plan
        globs = (*_NEVER_DIRECT, *plan.ignored_interfaces)
        self._ignored = re.compile("|".join(map(translate, globs)))
        return self._judge({*self._routes, *self._owners, *self.current})

    def apply(self, change: KernelChange) -> dict[Key, Learned | None]:
        """Take in what the kernel was seen to hold; what changed."""
        touched: set[Key] = set()
        if change.full:
            touched.update(self.current)
            self._routes.clear()
            self._through.clear()
            self._owners.clear()
            self._interfaces = {}
        for route in change.routes_removed:
            by_metric = self._routes.get((route.family, route.prefix))
            if by_metric is not None and by_metric.pop(route.metric, None) is not None:
                key = (route.family, route.prefix)
                touched.add(key)
                if not by_metric:
                    del self._routes[key]
        for route in change.routes_added:
            if route.prefix[0] != route.family.max_length:
                continue
            key = (route.family, route.prefix)
            by_metric = self._routes.get(key)
            if route.kind == _UNICAST and route.gateways and not any(leg.address for leg in route.gateways):
                self._routes.setdefault(key, {})[route.metric] = route
                for leg in route.gateways:
                    self._through.setdefault(leg.interface, set()).add(key)
            elif by_metric is None or by_metric.pop(route.metric, None) is None:
                continue
            elif not by_metric:
                del self._routes[key]
            touched.add(key)
        for index in change.interfaces_removed:
            touched |= self._forget(index)
        for interface in change.interfaces:
            touched |= self._forget(interface.index)
            self._interfaces[interface.index] = interface
            keys = self._through.setdefault(interface.index, set())
            for address, length in interface.addresses:
                if not is_link_local(address):
                    key = (Family.of_address(address), make_prefix(address, length))
                    self._owners.setdefault(key, set()).add(interface.index)
                    keys.add(key)
            touched |= keys
        return self._judge(touched)

    def _forget(self, index: int) -> set[Key]:
        """Let go of an interface's addresses; the keys it had to do with."""
        self._interfaces.pop(index, None)
        keys = self._through.pop(index, set())
        for key in keys:
            owners = self._owners.get(key)
            if owners is not None:
                owners.discard(index)
                if not owners:
                    del self._owners[key]
        routes = {key for key in keys if key in self._routes}
        if routes:
            self._through[index] = routes
        return keys

    def _judge(self, keys: Iterable[Key]) -> dict[Key, Learned | None]:
        if self.plan is None:
            return {}
        changed: dict[Key, Learned | None] = {}
        for key in keys:
            found = self._of_workload(key, self.plan) or self._of_interface(key, self.plan)
            if found != self.current.get(key):
                changed[key] = found
                if found is None:
                    del self.current[key]
                else:
                    self.current[key] = found
        return changed

    def _of_workload(self, key: Key, plan: LearnPlan) -> Learned | None:
        by_metric = self._routes.get(key)
        for metric in sorted(by_metric) if by_metric is not None else ():
            for leg in self._routes[key][metric].gateways:
                interface = self._interfaces.get(leg.interface)
                if interface is not None and interface.name.startswith(plan.workload_prefixes):
                    return Learned(interface.name, metric)
        return None

    def _of_interface(self, key: Key, plan: LearnPlan) -> Learned | None:
        owners = self._owners.get(key)
        if not owners:
            return None
        family, prefix = key
        if not any(covers(pool, prefix) for pool in plan.inside[family]) or any(
            covers(block, prefix) for block in plan.outside[family]
        ):
            return None
        names = sorted(
            interface.name
            for interface in map(self._interfaces.get, owners)
            if interface is not None
            and interface.up
            and not interface.name.startswith(plan.workload_prefixes)
            and not (self._ignored is not None and self._ignored.fullmatch(interface.name))
        )
        return Learned(names[0], 0) if names else None
