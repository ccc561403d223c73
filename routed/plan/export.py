"""Import and export filters of a peer: a user's BGPFilters first, then Calico's default rules.

Import: what no BGPFilter decides on is accepted. Export, in this order: BGPFilters; pools with disableBGPExport keep
their routes in; routes that leave by a tunnel of Calico's own stay in (to internal peers; those of its eBPF interfaces to
all; where the node's pods are ours the pools' tunnels are, too: no Felix leads others to an address in one that is borrowed,
so it is announced); prefixAdvertisements add communities; a block of this node goes out as a whole and nothing inside it,
except a route with a better than normal priority (a workload that is moving here); routes inside the service ranges this
node announces go out, and from a route reflector those inside all external ones; routes inside an enabled pool go out,
which is what lets borrowed addresses and other nodes' blocks through; nothing else does.

The rules about interfaces are there only where something may leave by such an interface, since they cost a look at the
interface of every route. Invariant: one `RouteFilter` object for all peers that are judged alike, kept while its content
stays the same, so that an unrelated change of resources leaves update groups alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

from routed.model.resources import AddCommunity, BGPFilterRule, EncapMode, PrefixAdvertisement
from routed.net.families import Family
from routed.plan.cluster import Cluster
from routed.plan.origins import BLOCK, block_text
from routed.plan.program import felix_owns_ipip
from routed.plan.services import SERVICE
from routed.plan.types import Origin
from routed.rib.filters import Action, PrefixMatch, RouteFilter, Rule, compile_rules
from routed.rib.path import HIGHEST_LOCAL_PREF, Path

#: Calico's own interfaces, whose routes internal peers make themselves: WireGuard's, and pools' tunnels.
_WIREGUARD = "*.cali"
_VXLAN_TUNNELS = "*.calico"
_IPIP_TUNNEL = "tunl0"
#: And those nobody is told of.
_EBPF = "bpf*.cali"

PeerFilters = tuple[Mapping[Family, RouteFilter], Mapping[Family, RouteFilter]]
"""(import, export)"""

_Key = tuple[Family, bool, tuple[str, ...]]
"""Family, whether the peer is external, names of its BGPFilters."""


class FilterBook:
    """The filters in use. `interface_of`: see `RouteFilter`."""

    __slots__ = ("_current", "_interface_of", "_last", "_origins", "_own_workloads", "_rules")

    def __init__(self, interface_of: Callable[[Path], str] | None, *, own_workloads: bool) -> None:
        self._interface_of = interface_of
        self._own_workloads = own_workloads
        self._current: dict[_Key, PeerFilters] = {}
        self._last: dict[_Key, PeerFilters] = {}
        self._rules: dict[tuple[Family, bool], tuple[Rule, ...]] = {}
        self._origins: Mapping[tuple[Family, bytes], Origin] = {}

    def renew(self, origins: Mapping[tuple[Family, bytes], Origin]) -> None:
        """Something filters are made of changed. Those that come out the same will be the same objects."""
        self._last, self._current = self._current, {}
        self._rules.clear()
        self._origins = origins

    def for_peer(self, cluster: Cluster, family: Family, external: bool, names: tuple[str, ...]) -> PeerFilters:
        """The filters of a peer with these BGPFilters; names that do not exist are skipped, as in Calico."""
        key = (family, external, names)
        found = self._current.get(key)
        if found is None:
            found = self._make(cluster, key)
            last = self._last.pop(key, None)
            if last is not None and last == found:
                found = last
            self._current[key] = found
        return found

    def _make(self, cluster: Cluster, key: _Key) -> PeerFilters:
        family, external, names = key
        incoming: list[Rule] = []
        outgoing: list[Rule] = []
        for name in names:
            resource = cluster.filters.get(name)
            if resource is None:
                continue
            v4 = family is Family.IPV4_UNICAST
            lists: tuple[tuple[list[Rule], tuple[BGPFilterRule, ...]], ...] = (
                (incoming, resource.import_v4 if v4 else resource.import_v6),
                (outgoing, resource.export_v4 if v4 else resource.export_v6),
            )
            for target, rules in lists:
                target.extend(compile_rules(name, rules, family, external=external))
        label = ", ".join(names)
        import_filter = RouteFilter(label or "accept all", family, incoming, interface_of=self._interface_of)
        export_filter = RouteFilter(
            f"{label}, default rules" if label else "default rules",
            family,
            (*outgoing, *self._default_rules(cluster, family, external)),
            export=True,
            default=False,
            default_text="outside this node's blocks and every enabled IPPool",
            interface_of=self._interface_of,
        )
        return {family: import_filter}, {family: export_filter}

    def _default_rules(self, cluster: Cluster, family: Family, external: bool) -> tuple[Rule, ...]:
        """What is behind a user's own rules, made where there is a peer to need it."""
        rules = self._rules.get((family, external))
        if rules is None:
            tunnels = () if external else _tunnels(cluster, own_workloads=self._own_workloads)
            rules = tuple(default_export_rules(cluster, family, self._origins, tunnels))
            self._rules[family, external] = rules
        return rules


def default_export_rules(
    cluster: Cluster, family: Family, origins: Mapping[tuple[Family, bytes], Origin], tunnels: Iterable[str]
) -> list[Rule]:
    """The rules behind a user's own, in Calico's order; what leaves by `tunnels` the peer is not told of."""
    kept_in: list[PrefixMatch] = []
    enabled: list[PrefixMatch] = []
    for name, pool in sorted(cluster.pools.items()):
        if pool.cidr.family is family:
            match = _inside(family, pool.cidr.prefix, f"{name} {pool.cidr}")
            if pool.disable_bgp_export:
                kept_in.append(match)
            elif not pool.disabled:
                enabled.append(match)
    own = [(prefix, origin) for (of, prefix), origin in origins.items() if of is family]
    blocks = [_matches(family, prefix, origin) for prefix, origin in own if origin.kind == BLOCK]
    services = tuple(
        _inside(family, prefix, block_text(family, prefix, origin)) for prefix, origin in own if origin.kind == SERVICE
    )
    exact = tuple(match for match, _ in blocks)
    within = tuple(match for _, match in blocks)
    rules: list[Rule] = []
    if kept_in:
        rules.append(Rule(Action.REJECT, "disableBGPExport of IPPool ", tuple(kept_in)))
    if _has_tunnels(cluster):
        rules.extend(
            Rule(Action.REJECT, f"leaves by {glob}, an interface of Calico's own", interface=glob)
            for glob in (*tunnels, _EBPF)
        )
    rules.extend(
        Rule(
            Action.CONTINUE,
            f"prefixAdvertisement {advertisement.cidr}",
            (_inside(family, advertisement.cidr.prefix, ""),),
            operations=tuple(map(AddCommunity, advertisement.communities)),
        )
        for advertisement in _advertisements(cluster, family)
    )
    if blocks:
        rules.append(Rule(Action.ACCEPT, "own block ", exact))
        rules.append(
            Rule(
                Action.ACCEPT,
                "better than normal priority inside own block ",
                within,
                local_pref=_elevated(cluster, family),
            )
        )
        rules.append(Rule(Action.REJECT, "announced as part of own block ", within))
    if services:
        rules.append(Rule(Action.ACCEPT, "inside service range ", services))
    reflected = _reflected_services(cluster, family)
    if reflected:
        rules.append(Rule(Action.ACCEPT, "reflected, inside ", reflected))
    if enabled:
        rules.append(Rule(Action.ACCEPT, "inside IPPool ", tuple(enabled)))
    return rules


@functools.lru_cache(4096)  # a block that comes or goes leaves the others as they were
def _matches(family: Family, prefix: bytes, origin: Origin) -> tuple[PrefixMatch, PrefixMatch]:
    """A block itself, and what is inside."""
    text = block_text(family, prefix, origin)
    length = prefix[0]
    return PrefixMatch(prefix, length, length, text), PrefixMatch(prefix, length + 1, family.max_length, text)


def _tunnels(cluster: Cluster, *, own_workloads: bool) -> tuple[str, ...]:
    """Interfaces whose routes internal peers make themselves."""
    if own_workloads:
        return (_WIREGUARD,)
    return (_WIREGUARD, _VXLAN_TUNNELS, *((_IPIP_TUNNEL,) if felix_owns_ipip(cluster) else ()))


def _has_tunnels(cluster: Cluster) -> bool:
    """Whether Calico may have interfaces of its own on this node: tunnels, WireGuard, eBPF."""
    node = cluster.node
    return (node is not None and bool(node.wireguard_public_key or node.wireguard_public_key_v6)) or any(
        pool.ipip_mode is not EncapMode.NEVER or pool.vxlan_mode is not EncapMode.NEVER
        for pool in cluster.pools.values()
    )


def _elevated(cluster: Cluster, family: Family) -> tuple[int, int]:
    """LOCAL_PREFs of a priority better than the normal one."""
    default = cluster.default_configuration
    v4 = family is Family.IPV4_UNICAST
    normal = default.ipv4_normal_route_priority if v4 else default.ipv6_normal_route_priority
    return HIGHEST_LOCAL_PREF - normal + 1, 0xFFFFFFFF


def _reflected_services(cluster: Cluster, family: Family) -> tuple[PrefixMatch, ...]:
    """Ranges a route reflector passes on though it may announce nothing of them itself."""
    node = cluster.node
    if node is None or node.bgp is None or not node.bgp.route_reflector_cluster_id:
        return ()
    default = cluster.default_configuration
    matches = {
        cidr.prefix: _inside(family, cidr.prefix, f"{name} {cidr}")
        for name, cidrs in (
            ("serviceLoadBalancerIPs", default.service_load_balancer_ips),
            ("serviceExternalIPs", default.service_external_ips),
        )
        for cidr in cidrs
        if cidr.family is family
    }
    return tuple(matches.values())


def _advertisements(cluster: Cluster, family: Family) -> list[PrefixAdvertisement]:
    """This node's own list where it has one (of any family), else the cluster's."""
    own = cluster.configurations.get(f"node.{cluster.node_name}")
    source = own if own is not None and own.prefix_advertisements else cluster.default_configuration
    return [one for one in source.prefix_advertisements if one.cidr.family is family and one.communities]


def _inside(family: Family, prefix: bytes, text: str) -> PrefixMatch:
    return PrefixMatch(prefix, prefix[0], family.max_length, text)
