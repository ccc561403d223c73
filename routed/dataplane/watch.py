"""What the kernel holds that is not ours: foreign routes of the table we write to, interfaces, addresses.

Notifications are netted: between two calls of `take_change` a route that came and went is never mentioned.

Complications first:
- Linux removes IPv4 routes without a word when their interface goes down or loses its last address; so does IPv6 where
  net.ipv6.route.skip_notify_on_dev_down is set. We draw the same conclusion from the link and address messages.
- Several IPv4 routes may share prefix and metric (`ip route append`); the first is in effect, and the others must be
  known for when it goes.
- One message may remove a single leg of an IPv6 multipath group, while additions always show the whole group.

Not here: our own routes (`routes`), what follows for next hops (`rib/nexthops`).
"""

from __future__ import annotations

from collections.abc import Iterator

from routed.desired import Gateway
from routed.net.families import Family
from routed.netlink.links import Address, Link
from routed.netlink.numbers import IP6_RT_PRIO_USER, NLM_F_APPEND, NLM_F_REPLACE
from routed.netlink.routes import RouteFacts
from routed.observed import ForeignRoute, Interface, KernelChange

RouteKey = tuple[bytes, int]
"""(wire prefix, metric)"""


class Watch:
    """Foreign state, kept from dumps and notifications. `metric` is that of our own routes, 0 for the kernel's default."""

    def __init__(self, metric: int) -> None:
        self.interfaces: dict[int, Interface] = {}
        self._own_metric = {
            Family.IPV4_UNICAST: metric,
            Family.IPV6_UNICAST: metric or IP6_RT_PRIO_USER,
        }
        self._held: dict[Family, dict[bytes, ForeignRoute]] = {family: {} for family in Family}
        """Foreign routes at our own metric: where one is, ours can't be."""
        self.many_metrics = False
        """Some of our routes have a metric of their own: whatever foreign route goes may have been in the way of one."""
        self._routes: dict[Family, dict[RouteKey, tuple[ForeignRoute, ...]]] = {family: {} for family in Family}
        self._enabled: set[int] = set()
        """Interfaces that are administratively up."""
        self._addresses: dict[int, set[tuple[bytes, int]]] = {}
        self._before_routes: dict[tuple[Family, RouteKey], ForeignRoute | None] = {}
        """What we last told about each route touched since."""
        self._before_interfaces: dict[int, Interface | None] = {}
        self._full = False
        """The next change is told in full."""
        self._released: list[tuple[Family, bytes]] = []

    # ---- questions

    def own_metric(self, family: Family) -> int:
        """The metric our routes show up with in the kernel."""
        return self._own_metric[family]

    def held(self, family: Family) -> dict[bytes, ForeignRoute]:
        """Foreign routes that hold a prefix at our metric, by prefix. Read-only."""
        return self._held[family]

    def holder(self, family: Family, prefix: bytes, metric: int) -> ForeignRoute | None:
        """The foreign route that holds a prefix at a metric."""
        aliases = self._routes[family].get((prefix, metric))
        return aliases[0] if aliases else None

    def interface_name(self, index: int) -> str:
        interface = self.interfaces.get(index)
        return interface.name if interface is not None else f"interface {index}"

    def routes(self) -> Iterator[ForeignRoute]:
        """All foreign routes in effect."""
        for table in self._routes.values():
            for aliases in table.values():
                yield aliases[0]

    # ---- resync

    def found_route(self, family: Family, prefix: bytes, facts: RouteFacts) -> None:
        """A foreign route in a dump."""
        if facts.plain:
            self._append(family, prefix, _foreign(family, prefix, facts))

    def adopt(self, fresh: Watch, *, full: bool) -> None:
        """A dump was read into `fresh`: that is the truth from now on. `full`: tell all of it, not the difference."""
        before_routes = {
            (family, key): aliases[0] for family, table in self._routes.items() for key, aliases in table.items()
        }
        before_interfaces: dict[int, Interface | None] = dict(self.interfaces)
        for family, held in self._held.items():
            self._released.extend((family, prefix) for prefix in held if prefix not in fresh._held[family])
        if self.many_metrics:
            self._released.extend(
                (family, key[0])
                for family, table in self._routes.items()
                for key in table
                if key not in fresh._routes[family]
            )
        for (family, key), before in self._before_routes.items():  # not told yet: what was told is what counts
            if before is not None:
                before_routes[family, key] = before
            else:
                before_routes.pop((family, key), None)
        before_interfaces.update(self._before_interfaces)
        self._routes, self._held, self.interfaces = fresh._routes, fresh._held, fresh.interfaces
        self._enabled, self._addresses = fresh._enabled, fresh._addresses
        self._full = self._full or full
        self._before_routes = {**dict.fromkeys(fresh._before_routes), **before_routes}
        self._before_interfaces = {**dict.fromkeys(fresh.interfaces), **before_interfaces}

    # ---- notifications

    def route_added(self, family: Family, prefix: bytes, facts: RouteFacts, flags: int) -> ForeignRoute | None:
        """A foreign route came or changed; the route, or None where it is of no interest."""
        if not facts.plain:
            return None
        route = _foreign(family, prefix, facts)
        key = (prefix, facts.metric)
        self._remember(family, key)
        if family is Family.IPV6_UNICAST or flags & NLM_F_REPLACE:
            self._put(family, key, (route,))
        elif flags & NLM_F_APPEND:
            self._append(family, prefix, route)
        else:
            self._put(family, key, (route, *(r for r in self._routes[family].get(key, ()) if r != route)))
        return route

    def route_removed(self, family: Family, prefix: bytes, facts: RouteFacts) -> ForeignRoute | None:
        """A foreign route, or some of its legs, went; the route, or None where it is of no interest."""
        if not facts.plain:
            return None
        route = _foreign(family, prefix, facts)
        key = (prefix, facts.metric)
        self._remember(family, key)
        aliases = self._routes[family].get(key, ())
        if family is Family.IPV6_UNICAST and aliases:
            first = aliases[0]
            legs = tuple(leg for leg in first.gateways if leg not in route.gateways)
            left = ForeignRoute(family, prefix, first.metric, first.protocol, first.kind, legs)
            self._put(family, key, (left,) if legs else ())
        else:
            self._put(family, key, tuple(alias for alias in aliases if alias != route))
        return route

    def forget_legs(self, family: Family, prefix: bytes, metric: int, own: tuple[Gateway, ...]) -> None:
        """Legs that are ours don't belong to the foreign route the kernel showed them in (IPv6 joins such groups)."""
        key = (prefix, metric)
        aliases = self._routes[family].get(key)
        if aliases:
            first = aliases[0]
            left = tuple(leg for leg in first.gateways if leg not in own)
            if left and left != first.gateways:
                route = ForeignRoute(family, prefix, first.metric, first.protocol, first.kind, left)
                self._put(family, key, (route, *aliases[1:]))

    def legs_appended(self, family: Family, prefix: bytes, facts: RouteFacts, legs: tuple[Gateway, ...]) -> None:
        """Somebody appended legs to our IPv6 route; the kernel shows them under our protocol number."""
        self._put(
            family,
            (prefix, facts.metric),
            (ForeignRoute(family, prefix, facts.metric, facts.protocol, facts.kind, legs),),
        )

    def link_changed(self, link: Link) -> bool:
        """A link came or changed; whether routes through it may have vanished without a word."""
        was_enabled = link.index in self._enabled
        known = self.interfaces.get(link.index)
        if known is not None and (known.name, known.up, was_enabled) == (link.name, link.up, link.enabled):
            return False  # of a link much is told that is nothing to us
        if link.enabled:
            self._enabled.add(link.index)
        else:
            self._enabled.discard(link.index)
        self._put_interface(link.index, link.name, link.up)
        if was_enabled and not link.enabled:
            self._drop_routes(link.index, (Family.IPV4_UNICAST, Family.IPV6_UNICAST))
            return True
        return False

    def link_removed(self, index: int) -> None:
        self._remember_interface(index)
        self.interfaces.pop(index, None)
        self._addresses.pop(index, None)
        self._enabled.discard(index)
        self._drop_routes(index, (Family.IPV4_UNICAST, Family.IPV6_UNICAST))

    def address_added(self, address: Address) -> None:
        self._addresses.setdefault(address.index, set()).add((address.address, address.length))
        self._refresh_addresses(address.index)

    def address_removed(self, address: Address) -> None:
        addresses = self._addresses.get(address.index, set())
        addresses.discard((address.address, address.length))
        self._refresh_addresses(address.index)
        if len(address.address) == 4 and not any(len(own) == 4 for own, _ in addresses):
            self._drop_routes(address.index, (Family.IPV4_UNICAST,))

    # ---- what to tell

    def take_released(self) -> list[tuple[Family, bytes]]:
        """Prefixes that foreign routes held at our metric and no longer do."""
        released, self._released = self._released, []
        return [(family, prefix) for family, prefix in released if prefix not in self._held[family]]

    def take_change(self) -> KernelChange | None:
        """Everything that differs from what the last call told, or None."""
        if self._full:
            self._full = False
            change = KernelChange(True, tuple(self.routes()), (), tuple(self.interfaces.values()), ())
        elif self._before_routes or self._before_interfaces:
            added, removed = [], []
            for (family, key), before in self._before_routes.items():
                aliases = self._routes[family].get(key)
                if aliases is None:
                    if before is not None:
                        removed.append(before)
                elif aliases[0] != before:
                    added.append(aliases[0])
            changed, gone = [], []
            for index, old in self._before_interfaces.items():
                interface = self.interfaces.get(index)
                if interface is None:
                    if old is not None:
                        gone.append(index)
                elif interface != old:
                    changed.append(interface)
            change = KernelChange(False, tuple(added), tuple(removed), tuple(changed), tuple(gone))
        else:
            return None
        self._before_routes = {}
        self._before_interfaces = {}
        nothing = not (change.routes_added or change.routes_removed or change.interfaces or change.interfaces_removed)
        return None if nothing and not change.full else change

    # ---- inside

    def _remember(self, family: Family, key: RouteKey) -> None:
        if (family, key) not in self._before_routes:
            aliases = self._routes[family].get(key)
            self._before_routes[family, key] = aliases[0] if aliases else None

    def _put(self, family: Family, key: RouteKey, aliases: tuple[ForeignRoute, ...]) -> None:
        self._remember(family, key)
        prefix, metric = key
        if aliases:
            self._routes[family][key] = aliases
        else:
            self._routes[family].pop(key, None)
        if metric == self._own_metric[family]:
            if aliases:
                self._held[family][prefix] = aliases[0]
            elif self._held[family].pop(prefix, None) is not None:
                self._released.append((family, prefix))
        elif self.many_metrics and not aliases:
            self._released.append((family, prefix))

    def _append(self, family: Family, prefix: bytes, route: ForeignRoute) -> None:
        key = (prefix, route.metric)
        there = self._routes[family].get(key, ())
        interface = route.gateways and route.gateways[0].interface
        # every pod's interface has one to fe80::/64, so that most are told apart by their interfaces
        others = [r for r in there if (r.gateways and r.gateways[0].interface) != interface or r != route]
        self._put(family, key, (*others, route))

    def _drop_routes(self, index: int, families: tuple[Family, ...]) -> None:
        """Routes all of whose legs are on interfaces that are down are gone now that `index` is one of them."""
        for family in families:
            for key, aliases in list(self._routes[family].items()):
                left = tuple(alias for alias in aliases if not self._dead(alias, index))
                if len(left) != len(aliases):
                    self._put(family, key, left)

    def _dead(self, route: ForeignRoute, index: int) -> bool:
        interfaces = {leg.interface for leg in route.gateways}
        return index in interfaces and (interfaces - {index}).isdisjoint(self._enabled)

    def _remember_interface(self, index: int) -> None:
        self._before_interfaces.setdefault(index, self.interfaces.get(index))

    def _put_interface(self, index: int, name: str, up: bool) -> None:
        self._remember_interface(index)
        self.interfaces[index] = Interface(index, name, up, tuple(sorted(self._addresses.get(index, ()))))

    def _refresh_addresses(self, index: int) -> None:
        """Addresses are dumped after links and may be removed after them: one without its link waits for it."""
        interface = self.interfaces.get(index)
        if interface is not None:
            self._put_interface(index, interface.name, interface.up)


def _foreign(family: Family, prefix: bytes, facts: RouteFacts) -> ForeignRoute:
    return ForeignRoute(family, prefix, facts.metric, facts.protocol, facts.kind, facts.gateways)
