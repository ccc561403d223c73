"""What the kernel should hold for a prefix, where pools and services decide: left out, as chosen, or into a tunnel.

The table chooses; this says what of the choice is programmed under the plan's `ProgramPolicy`, with the tunnel devices that
are up, and for pools that are just moving into a tunnel (`core/moving`). Where a policy is empty nobody need ask.

Invariants: a function of the table, the plan and what it was told; `effects` are its owner's.

Not here: which pools mean what (`plan/program`), choosing (`rib`), writing routes (`dataplane`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from routed.core.moving import Moving
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.model.resources import IPIP_DEVICE, VXLAN_DEVICES, Cidr
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.observed import Interface
from routed.rib.decide import best
from routed.rib.path import Path
from routed.rib.program import PROGRAM_ALL, Programming, ProgramPolicy, ProgramRule
from routed.rib.table import SLICE, FamilyRib

#: Devices that routes may lead into.
TUNNEL_DEVICES = frozenset((IPIP_DEVICE, *VXLAN_DEVICES.values()))


class Programmer:
    """See the module's docstring."""

    def __init__(self, ribs: Mapping[Family, FamilyRib], holder: Callable[[Cidr], bytes]) -> None:
        self.policy: Mapping[Family, ProgramPolicy] = dict.fromkeys(Family, PROGRAM_ALL)
        """The plan's."""
        self.moving = Moving()
        self._ribs = ribs
        self._holder = holder
        """The next hop (packed) of the node that holds a block or has a single address, or empty."""
        self._tunnels: dict[str, int] = {}
        """Indexes of the tunnel devices that are up, by name."""

    def devices(self, interfaces: Iterable[Interface], now: float) -> bool:
        """Whether tunnel devices came or went: `moves` says whose routes lead into them, or can't."""
        found = {each.name: each.index for each in interfaces if each.up and each.name in TUNNEL_DEVICES}
        if found == self._tunnels:
            return False
        self._tunnels = found
        self.moving.devices(now)
        return True

    def tunnelled(self) -> list[Family]:
        """Families with routes that tunnels decide about."""
        return [
            family
            for family, policy in self.policy.items()
            if any(rule.programming is not Programming.LEAVE for rule in policy.rules)
        ]

    def _goes_by_holder(self, cidr: Cidr) -> bool:
        """Whether the route to a block or a single address may go by the node that has it."""
        rib, policy = self._ribs[cidr.family], self.policy[cidr.family]
        rule = policy.judge(cidr.prefix) if policy.ways else None
        return rule is not None and bool(rule.device) and rib.program_routes and cidr.prefix in rib.table

    def moved(self, blocks: Iterable[Cidr]) -> Iterator[tuple[RouteBatch, ...]]:
        """Other nodes hold blocks now: what becomes of routes that may go by who holds them."""
        for cidr in blocks:
            if self._goes_by_holder(cidr):
                yield self.batches(cidr.family, (cidr.prefix,))

    def changed(
        self, family: Family, changes: Iterable[tuple[KernelRoute | None, Sequence[bytes]]]
    ) -> tuple[RouteBatch, ...]:
        """The table chose otherwise for prefixes."""
        if self.policy[family]:
            return self.batches(family, (prefix for _, prefixes in changes for prefix in prefixes))
        return tuple(RouteBatch(family, prefixes, route) for route, prefixes in changes)

    def everything(self, family: Family, *, absent: bool = False) -> Iterator[tuple[RouteBatch, ...]]:
        """A family's chosen routes for the kernel, a slice at a time; with `absent` also those that are not to be there."""
        rib = self._ribs[family]
        prefixes = list(rib.table) if rib.program_routes else []
        for start in range(0, len(prefixes), SLICE):
            batches = self.batches(family, prefixes[start : start + SLICE])
            yield tuple(batch for batch in batches if absent or batch.route is not None)

    def batches(self, family: Family, prefixes: Iterable[bytes]) -> tuple[RouteBatch, ...]:
        """What prefixes should be in the kernel now."""
        wanted: dict[KernelRoute | None, list[bytes]] = {}
        for prefix in dict.fromkeys(prefixes):
            route, _ = self.route(family, prefix)
            wanted.setdefault(route, []).append(prefix)
        return tuple(RouteBatch(family, batch, route) for route, batch in wanted.items())

    def route(self, family: Family, prefix: bytes) -> tuple[KernelRoute | None, str]:
        """What the kernel should hold for a prefix; where that is nothing though a route was chosen, why."""
        rib, policy = self._ribs[family], self.policy[family]
        route = rib.kernel_route(prefix)
        if route is None or not policy:
            return route, ""
        rule = policy.judge(prefix)
        if rule is not None and rule.programming is Programming.LEAVE:
            return None, rule.why
        chosen = rib.multipath(prefix)
        paths = chosen
        if policy.left:
            paths = tuple(path for path in chosen if path.next_hop is None or path.next_hop.address not in policy.left)
            if chosen and not paths:
                return None, next(policy.left[path.next_hop.address] for path in chosen if path.next_hop is not None)
        if rule is None and len(paths) == len(chosen):
            return route, ""
        if any(path.next_hop is None for path in paths):
            return route, ""
        gateways, altered, missing = self._ways(family, prefix, rule, paths)
        if not gateways and rule is not None:
            return None, f"{rule.why}, but {missing}"
        if not altered and len(paths) == len(chosen):
            return route, ""
        return KernelRoute(RouteKind.UNICAST, tuple(sorted(gateways)), route.metric), ""

    def own_route(self, family: Family, prefix: bytes) -> Path | None:
        """Our best path for exactly this prefix that next hops may resolve through; None where we program nothing."""
        rib, policy = self._ribs[family], self.policy[family]
        if not rib.program_routes:
            return None
        rule = policy.judge(prefix)
        if rule is not None and rule.programming is Programming.LEAVE:
            return None
        carriers = [
            path
            for path in rib.candidates(prefix)
            if path.next_hop is None or (path.next_hop.resolves_directly and path.next_hop.address not in policy.left)
        ]
        return best(carriers, maximum_paths=1).best if carriers else None

    def _ways(
        self, family: Family, prefix: bytes, rule: ProgramRule | None, paths: tuple[Path, ...]
    ) -> tuple[set[Gateway], bool, str]:
        """Gateways of a route: whether they are others than its paths', and why one has none."""
        policy = self.policy[family]
        gateways: set[Gateway] = set()
        tunnelled, missing = False, ""
        for path in paths:
            next_hop = path.next_hop
            if next_hop is None:
                continue
            if rule is None or not policy.tunnels(rule, next_hop.address):
                gateways.update(next_hop.gateways)
                continue
            device, node = self._tunnels.get(rule.device, 0), next_hop.address
            way = policy.way(rule, node)
            if not way:
                # who announces it is no node, as a switch that sets itself as next hop: the block says the node
                node = self._holder(Cidr(family, prefix)) or node
                way = policy.way(rule, node) or (next_hop.address if rule.any_next_hop else b"")
            if self.moving.is_bare(family, rule.prefix, node, carries=bool(device and way)):
                gateways.update(next_hop.gateways)
            elif device and way:
                tunnelled = True
                gateways.add(Gateway(way, device, onlink=True))
            elif device:
                missing = f"no Node with the address {format_address(next_hop.address)} has a VXLAN address, "
                if node != next_hop.address:
                    missing += f"nor has {format_address(node)}, the node that has it"
                else:
                    missing += "nor does a block say which node has it"
            else:
                missing = f"no interface {rule.device} is up on this node"
        return gateways, tunnelled or bool(missing), missing
