"""Next-hop tracking: which on-link gateways a BGP next hop stands for right now (RFC 4271 section 9.1.2.1).

A next hop resolves in at most two steps, by the longest match:
1. *directly*, through foreign routes alone (connected, static, another daemon's; the default route counts);
2. through a route of ours that is longer than any foreign match, if that route's own next hop resolves directly.

Invariants:
- The outcome is a function of the foreign table, the interfaces and our candidates, never of the order in which they
  came. That is what the limit to two steps is for: which of our routes may carry a next hop is decided by direct
  resolution alone, so a next hop can't change the standing of the route that carries it, and nothing can flap. (BIRD
  does not resolve through BGP routes at all; decision 0007.)
- `NextHop` objects are interned: one per (address, interface). They are updated in place, and whoever holds one is
  told through the returned lists.
- At equal length a foreign route goes before ours, since we never replace one.

Not here: watching the kernel (`dataplane/watch`), choosing between paths (`decide`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from routed.desired import Gateway
from routed.net.addresses import format_address, is_link_local
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE, format_prefix, make_prefix
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.rib.path import Path
from routed.values import dataclass

_UNICAST = 1
_THROW = 9
#: rtm_type of routes that end a lookup without a way out, in the words of `ip route`.
_DEAD_ENDS = {2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}

#: rtm_protocol, as /etc/iproute2/rt_protos names the common ones.
PROTOCOL_NAMES = {
    1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp", 18: "keepalived",
    80: "felix", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Resolution:
    gateways: tuple[Gateway, ...]
    metric: int
    text: str


def _unreachable(why: str) -> _Resolution:
    return _Resolution((), 0, f"unreachable: {why}")


class NextHop:
    """Where a BGP next hop leads. Compares by identity; read-only for everybody but its table."""

    __slots__ = (
        "_covering",
        "_direct",
        "_interfaces",
        "address",
        "gateways",
        "interface",
        "metric",
        "text",
    )

    def __init__(self, address: bytes, interface: int) -> None:
        self.address = address
        """Packed."""
        self.interface = interface
        """Interface index a link-local address belongs to; 0 otherwise."""
        self.gateways: tuple[Gateway, ...] = ()
        """On-link legs, sorted; more than one is ECMP; empty means unreachable."""
        self.metric = 0
        """Cost of reaching it: 0 on a connected network, otherwise the metric of the kernel's route it resolves by."""
        self.text = ""
        """`via 10.0.0.254 dev eth0 (default route)`, or why it is unreachable."""
        bits = len(address) * 8
        self._covering = tuple(make_prefix(address, length) for length in range(bits, -1, -1))
        self._direct = _unreachable("not resolved yet")
        self._interfaces: frozenset[int] = frozenset()

    @property
    def resolves_directly(self) -> bool:
        """Whether foreign routes alone lead to it: then a route with this next hop may carry others."""
        return bool(self._direct.gateways)

    def __repr__(self) -> str:
        return f"<NextHop {format_address(self.address)} {self.text}>"


class NextHopTable:
    """All next hops in use. Pure.

    `own_route` gives the best of our paths for exactly one prefix among those whose next hop `resolves_directly` and those
    of our own making, or None.
    """

    def __init__(self, own_route: Callable[[Family, bytes], Path | None]) -> None:
        self.watched: dict[Family, set[bytes]] = {family: set() for family in Family}
        """Every prefix that covers a tracked next hop: only these can matter to one."""
        self._own_route = own_route
        self._next_hops: dict[tuple[bytes, int], NextHop] = {}
        self._foreign: dict[Family, dict[bytes, dict[int, ForeignRoute]]] = {family: {} for family in Family}
        """By prefix, then metric."""
        self._interfaces: dict[int, Interface] = {}
        self._own_addresses: Counter[bytes] = Counter()
        """How many interfaces have each."""

    def __len__(self) -> int:
        return len(self._next_hops)

    def track(self, address: bytes, interface: int = 0) -> NextHop:
        """The next hop for a packed address, resolved. `interface` is needed for link-local addresses only."""
        key = (address, interface)
        next_hop = self._next_hops.get(key)
        if next_hop is None:
            next_hop = self._next_hops[key] = NextHop(address, interface)
            self.watched[Family.of_address(address)].update(next_hop._covering)
            self._resolve_directly(next_hop)
            self._resolve(next_hop)
        return next_hop

    def forget_unused(self, live: set[NextHop]) -> None:
        """Stop tracking every next hop that is not in `live`."""
        self._next_hops = {key: next_hop for key, next_hop in self._next_hops.items() if next_hop in live}
        for watched in self.watched.values():
            watched.clear()
        for next_hop in self._next_hops.values():
            self.watched[Family.of_address(next_hop.address)].update(next_hop._covering)

    def apply(self, change: KernelChange) -> list[NextHop]:
        """Take in what the kernel was seen to hold; the next hops whose gateways or metric changed."""
        if change.full:
            touched_prefixes = None
            for table in self._foreign.values():
                table.clear()
            self._interfaces = {}
            touched_interfaces: set[int] = set()
        else:
            touched_prefixes = {
                (route.family, route.prefix)
                for routes in (change.routes_added, change.routes_removed)
                for route in routes
            }
            touched_interfaces = {interface.index for interface in change.interfaces} | set(change.interfaces_removed)
        for route in change.routes_removed:
            by_metric = self._foreign[route.family].get(route.prefix)
            if by_metric is not None:
                by_metric.pop(route.metric, None)
                if not by_metric:
                    self._foreign[route.family].pop(route.prefix)
        for route in change.routes_added:
            by_metric = self._foreign[route.family].get(route.prefix)
            if by_metric is None:
                by_metric = self._foreign[route.family][route.prefix] = {}
            by_metric[route.metric] = route
        before: list[Interface | None] = [self._interfaces.pop(index, None) for index in change.interfaces_removed]
        for interface in change.interfaces:
            before.append(self._interfaces.get(interface.index))
            self._interfaces[interface.index] = interface
        touched_addresses: set[bytes] = set()
        if change.full:
            self._own_addresses = Counter(
                address for interface in self._interfaces.values() for address, _ in interface.addresses
            )
        else:  # a node may have very many interfaces, and all pods' have the same link-local address
            for old in before:
                self._count_addresses(old, -1, touched_addresses)
            for interface in change.interfaces:
                self._count_addresses(interface, 1, touched_addresses)

        if touched_prefixes is None:
            return self._kernel_changed(list(self._next_hops.values()))
        prefixes: dict[Family, set[bytes]] = {family: set() for family in Family}
        for family, prefix in touched_prefixes:
            if prefix in self.watched[family]:
                prefixes[family].add(prefix)
        touched = [
            next_hop
            for next_hop in self._next_hops.values()
            if not prefixes[Family.of_address(next_hop.address)].isdisjoint(next_hop._covering)
            or not touched_interfaces.isdisjoint(next_hop._interfaces)
            or next_hop.address in touched_addresses
        ]
        return self._kernel_changed(touched)

    def routes_changed(self, family: Family, prefixes: Iterable[bytes]) -> list[NextHop]:
        """Our candidates for `prefixes` changed; the next hops that resolve differently now."""
        hits = self.watched[family].intersection(prefixes)
        if not hits:
            return []
        touched = [
            next_hop
            for next_hop in self._next_hops.values()
            if len(next_hop.address) == family.address_length and not hits.isdisjoint(next_hop._covering)
        ]
        return [next_hop for next_hop in touched if self._resolve(next_hop)]

    def _interface_name(self, index: int) -> str:
        """`eth0`, or `interface 7` for one we have not seen."""
        interface = self._interfaces.get(index)
        return interface.name if interface is not None else f"interface {index}"

    # ---- inside

    def _count_addresses(self, interface: Interface | None, step: int, touched: set[bytes]) -> None:
        """An interface's addresses came (1) or went (-1); those nobody else has are added to `touched`."""
        for address, _ in interface.addresses if interface is not None else ():
            count = self._own_addresses[address] = self._own_addresses[address] + step
            if not count:
                del self._own_addresses[address]
            if count == (step > 0):
                touched ^= {address}

    def _kernel_changed(self, touched: list[NextHop]) -> list[NextHop]:
        """What the kernel holds changed for `touched`; and for what our routes with such a next hop carry."""
        if not touched:
            return []
        for next_hop in touched:
            self._resolve_directly(next_hop)
        return [next_hop for next_hop in self._next_hops.values() if self._resolve(next_hop)]

    def _resolve(self, next_hop: NextHop) -> bool:
        """Update one next hop; whether its gateways or metric changed."""
        found = self._through_own_route(next_hop) or next_hop._direct
        # what decides between paths must not depend on what was decided: the direct metric, wherever there is one
        metric = next_hop._direct.metric if next_hop._direct.gateways else found.metric
        changed = found.gateways != next_hop.gateways or metric != next_hop.metric
        next_hop.gateways, next_hop.metric, next_hop.text = found.gateways, metric, found.text
        return changed

    def _resolve_directly(self, next_hop: NextHop) -> None:
        interfaces: set[int] = set()
        next_hop._direct = self._directly(next_hop, interfaces)
        next_hop._interfaces = frozenset(interfaces)

    def _directly(self, next_hop: NextHop, interfaces: set[int]) -> _Resolution:
        address = next_hop.address
        if next_hop.interface:
            return self._through(next_hop.interface, address, interfaces)
        if address in self._own_addresses:
            return _unreachable(f"{format_address(address)} is this node's own address")
        if is_link_local(address):
            return _unreachable(f"{format_address(address)} is link-local and its interface is not known")
        foreign = self._foreign[Family.of_address(address)]
        for prefix in next_hop._covering:
            by_metric = foreign.get(prefix)
            if by_metric is not None:
                result = self._by_foreign(address, prefix, by_metric, interfaces)
                if result is not None:
                    return result
        return _unreachable(f"no route to {format_address(address)}")

    def _through_own_route(self, next_hop: NextHop) -> _Resolution | None:
        """By a route of ours that is more specific than any foreign one; None to go by those."""
        address = next_hop.address
        if next_hop.interface or address in self._own_addresses or is_link_local(address):
            return None
        family = Family.of_address(address)
        foreign = self._foreign[family]
        for prefix in next_hop._covering:
            if prefix in foreign:
                return None
            path = self._own_route(family, prefix)
            if path is None:
                continue
            inner = path.next_hop
            if inner is next_hop:
                return None  # it is announced by itself: reached as before
            if inner is not None:
                found = inner._direct
                whose = "BGP route" if path.source.kind else "route by reachableBy"
                way = f"{whose} {format_prefix(family, prefix)} through {format_address(inner.address)}"
                return _Resolution(found.gateways, found.metric, f"{self._legs(found.gateways)} ({way})")
            if path.kernel_route is not None:
                block = format_prefix(family, prefix)
                return _unreachable(f"{format_address(address)} lies in our own block {block} and is not in use")
        return None

    def _by_foreign(
        self, address: bytes, prefix: bytes, by_metric: dict[int, ForeignRoute], interfaces: set[int]
    ) -> _Resolution | None:
        """Resolve by one prefix's foreign routes, the lowest metric that has a living leg; None to look further."""
        family = Family.of_address(address)
        where = "default route" if prefix == DEFAULT_ROUTE else format_prefix(family, prefix)
        down: str | None = None
        for metric in sorted(by_metric):
            route = by_metric[metric]
            if route.kind == _THROW:
                continue
            if route.kind != _UNICAST:
                if down is not None:
                    break
                return _unreachable(f"the route to it is of type {_DEAD_ENDS.get(route.kind, route.kind)} ({where})")
            legs = set()
            connected = False
            for leg in route.gateways:
                interfaces.add(leg.interface)
                interface = self._interfaces.get(leg.interface)
                if interface is None or not interface.up:
                    down = self._interface_name(leg.interface)
                elif leg.address:
                    legs.add(leg)
                else:
                    connected = True
                    legs.add(Gateway(address, leg.interface, leg.onlink))
            if legs:
                gateways = tuple(sorted(legs))
                protocol = PROTOCOL_NAMES.get(route.protocol, f"protocol {route.protocol}")
                way = (
                    f"{where}, connected" if connected else where if prefix == DEFAULT_ROUTE else f"{where}, {protocol}"
                )
                return _Resolution(gateways, 0 if connected else metric, f"{self._legs(gateways)} ({way})")
        return _unreachable(f"{down} is down ({where})") if down is not None else None

    def _through(self, index: int, address: bytes, interfaces: set[int]) -> _Resolution:
        """An address known to be on the link of one interface."""
        interfaces.add(index)
        interface = self._interfaces.get(index)
        if interface is None or not interface.up:
            return _unreachable(f"{self._interface_name(index)} is {'gone' if interface is None else 'down'}")
        if any(address == own for own, _ in interface.addresses):
            return _unreachable(f"{format_address(address)} is this node's own address")
        gateways = (Gateway(address, index),)
        return _Resolution(gateways, 0, f"{self._legs(gateways)} (on link)")

    def _legs(self, gateways: tuple[Gateway, ...]) -> str:
        return ", ".join(f"via {format_address(g.address)} dev {self._interface_name(g.interface)}" for g in gateways)
