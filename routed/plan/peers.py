"""Which neighbours this node has: the node-to-node mesh and BGPPeers, by Calico's rules.

Three passes over the BGPPeers, each in order of their names, then the mesh; the first to name an address and port wins:
1. global ones (no node, no nodeSelector), 2. those that select this node, 3. the reverse of those that name this node as
the peer, so that both ends of a session between nodes follow from one resource.

Beside them, pods of this node that a localWorkloadSelector selects are peers that connect to us.

A node is the passive side of a mesh session, and of a global one with a node given by its address, where the other
node's address is greater *as text* ("10.0.0.9" > "10.0.0.10"): the other node, Calico's BIRD perhaps, compares the same
strings, and a session with one opener can restart gracefully. A reflector, a node with routeReflectorClusterID, is in no
mesh; its internal peers are its clients, unless they have its cluster id. Sessions carry the family of their address;
both families are two sessions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from routed.bgp.neighbor import NeighborConfig
from routed.model.resources import DEFAULT_PORT, BGPPeer, Node, ReversePeering, SecretKeyRef, SourceAddress
from routed.model.resources import NextHopMode as ResourceNextHopMode
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix, prefix_address
from routed.plan.cluster import NO_SECRET, Cluster, address_of, is_selected
from routed.plan.types import NextHopMode, Origin, Speaker
from routed.rib.path import SourceKind
from routed.values import dataclass

#: Graceful restart time where no resource names one; what Calico's BIRD uses.
DEFAULT_RESTART_TIME = 120
#: The longest that fits the capability's 12 bits (RFC 4724 section 3).
MAX_RESTART_TIME = 4095

#: The scope in the name of a session with a pod.
_WORKLOAD = "Local_Workload"

#: Kind of the origin that leads to a peer.
PEER_WAY = "peer"

_NEXT_HOP_MODES = {
    ResourceNextHopMode.AUTO: NextHopMode.AUTO,
    ResourceNextHopMode.SELF: NextHopMode.SELF,
    ResourceNextHopMode.KEEP: NextHopMode.KEEP,
}


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """A `PeerPlan` whose filters are still names."""

    session: NeighborConfig
    kind: SourceKind
    cluster_id: int
    next_hop_mode: NextHopMode
    allowed_own_as: int
    filters: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class PeersPlanned:
    """What `plan_peers` answers."""

    specs: dict[str, PeerSpec]
    """By name."""
    ways: dict[tuple[Family, bytes], Origin]
    """The routes that lead to peers."""
    problems: list[str]
    notes: list[str]
    """As in `Plan`."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The other end of a session."""

    address: bytes
    port: int | None
    """As resources give it; None: 179."""
    as_number: int
    cluster_id: int | None
    """Of a node that is a route reflector."""
    is_node: bool
    """Given by an address that is a node's. (Nodes a selector found don't count: both ends open, as in Calico.)"""


@dataclass(frozen=True, slots=True)
class _Password:
    """How a session is authenticated: see the fields of NeighborConfig."""

    reference: str
    generation: int
    held: str


_NO_PASSWORD = _Password("", 0, "")


def plan_peers(cluster: Cluster, speaker: Speaker) -> PeersPlanned:
    """Which neighbours this node has."""
    builder = _Builder(cluster, speaker)
    for peer in builder.resources:
        if peer.is_global:
            builder.add_forward(peer, "Global")
    for peer in builder.resources:
        if not peer.is_global and is_selected(peer, builder.node):
            builder.add_forward(peer, "Node")
    for peer in builder.resources:
        builder.add_reverse(peer)
    builder.add_mesh()
    for peer in builder.resources:
        builder.add_workloads(peer)
    return PeersPlanned(builder.specs, builder.ways, builder.problems, builder.notes)


class _Builder:
    """One run of `plan_peers`."""

    def __init__(self, cluster: Cluster, speaker: Speaker) -> None:
        self.cluster = cluster
        self.speaker = speaker
        self.node = cluster.nodes[cluster.node_name]
        self.own = {Family.IPV4_UNICAST: speaker.ipv4_address, Family.IPV6_UNICAST: speaker.ipv6_address}
        self.own_text = {family: format_address(address) if address else "" for family, address in self.own.items()}
        self.resources = [cluster.peers[name] for name in sorted(cluster.peers)]
        self.specs: dict[str, PeerSpec] = {}
        self.ways: dict[tuple[Family, bytes], Origin] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._taken: dict[tuple[bytes, int], PeerSpec] = {}
        self._guards: dict[bytes, PeerSpec] = {}
        """The first session with each address."""
        self._nodes = [cluster.nodes[name] for name in sorted(cluster.nodes)]
        self._owners: dict[bytes, Node] = {}
        for node in self._nodes:
            for family in Family:
                address = address_of(node, family)
                if address:
                    self._owners.setdefault(address, node)

    # ---- the passes

    def add_forward(self, peer: BGPPeer, scope: str) -> None:
        self._report_filters(peer)
        if peer.peer_selector is not None:
            targets = [
                self._node_target(node, address)
                for node in self._nodes
                if peer.peer_selector.matches(node.labels)
                for _, address in self._addresses(node)
            ]
        elif peer.peer_ip is not None:
            targets = [self._address_target(peer, peer.peer_ip)]
        else:
            return
        for target in targets:
            family = Family.of_address(target.address)
            own = self.own[family]
            if target.address == own:
                continue
            if not own:
                if peer.peer_ip is not None:
                    field = "ipv4Address" if family is Family.IPV4_UNICAST else "ipv6Address"
                    self.problems.append(
                        f"BGPPeer {peer.name}: no session with {format_address(target.address)}, "
                        f"since Node {self.node.name} has no spec.bgp.{field}"
                    )
                continue
            passive = scope == "Global" and target.is_node and format_address(target.address) > self.own_text[family]
            local_as = self.speaker.local_as if peer.local_as_number is None else peer.local_as_number
            self._add(peer, scope, target, local_as, passive=passive)

    def add_reverse(self, peer: BGPPeer) -> None:
        if peer.reverse_peering is ReversePeering.MANUAL or not self._names_this_node(peer):
            return
        only = Family.of_address(peer.peer_ip) if peer.peer_ip is not None else None
        reported = False
        for node in self.cluster.selected(peer):
            for family, address in self._addresses(node):
                if only is not None and family is not only:
                    continue
                if not self.own[family] or address == self.own[family]:
                    continue
                if not reported:
                    reported = True
                    self._report_filters(peer)
                target = self._node_target(node, address)
                if peer.local_as_number is not None:
                    target = replace(target, as_number=peer.local_as_number)
                self._add(peer, "Node", target, self.speaker.local_as, passive=False, reverse=True)

    def add_mesh(self) -> None:
        default = self.cluster.default_configuration
        if default.node_to_node_mesh_enabled is False or self.speaker.cluster_id:
            return
        restart_time = self._restart_time(
            default.node_mesh_max_restart_time, f"BGPConfiguration {default.name}: spec.nodeMeshMaxRestartTime"
        )
        password = self._password(default.node_mesh_password, f"BGPConfiguration {default.name}: spec.nodeMeshPassword")
        local_as = self.speaker.local_as
        taken: list[str] = []
        mesh: dict[tuple[bytes, int], str] = {}
        for node in self._nodes:
            bgp = node.bgp
            if bgp is None or bgp.route_reflector_cluster_id is not None:
                continue
            for family, address in self._addresses(node):
                own = self.own[family]
                text = format_address(address)
                if address == own and node.name != self.node.name:
                    self.problems.append(
                        f"Node {node.name}: has this node's own address {text}, so there is no session"
                    )
                if not own or address == own:
                    continue
                key = (address, self.cluster.listen_port(node.name) or DEFAULT_PORT)
                if key in mesh:
                    self.problems.append(
                        f"Node {node.name}: has the address {text} of Node {mesh[key]}, so there is no session of its own"
                    )
                    continue
                if key in self._taken:
                    taken.append(f"{text} of {node.name} ({self._taken[key].why})")
                    continue
                peer_as = self.cluster.as_number(node)
                mesh[key] = node.name
                self._put(
                    key,
                    PeerSpec(
                        session=NeighborConfig(
                            name=_peer_name("Mesh", text, None),
                            address=address,
                            port=key[1],
                            local_address=own,
                            local_as=local_as,
                            peer_as=peer_as,
                            router_id=self.speaker.router_id,
                            passive=text > self.own_text[family],
                            families=(family,),
                            restart_time=restart_time,
                            password=password.reference,
                            password_generation=password.generation,
                            held=password.held,
                        ),
                        kind=SourceKind.IBGP if peer_as == local_as else SourceKind.EBGP,
                        cluster_id=0,
                        next_hop_mode=NextHopMode.AUTO,
                        allowed_own_as=0,
                        filters=(),
                        why=f"node-to-node mesh, Node {node.name}",
                    ),
                )
        if taken:
            more = f" and {len(taken) - 5} more" if len(taken) > 5 else ""
            self.notes.append(
                f"node-to-node mesh: not used for {', '.join(taken[:5])}{more}, since the same address and port "
                "already have a session; it is the first that counts"
            )

    def add_workloads(self, peer: BGPPeer) -> None:
        """Pods of this node that a BGPPeer selects: they connect to us, from their own addresses."""
        if peer.local_workload_selector is None or not is_selected(peer, self.node):
            return
        if self.speaker.listen_addresses:
            self.problems.append(
                f"BGPPeer {peer.name}: spec.localWorkloadSelector: pods connect to the address of their own interface's "
                "other end, and bindMode NodeIP does not listen there"
            )
        for key in sorted(self.cluster.workloads):
            workload = self.cluster.workloads[key]
            if not peer.local_workload_selector.matches(self.cluster.labels_of(workload)):
                continue
            for cidr in workload.ip_networks:
                address = prefix_address(cidr.family, cidr.prefix)
                as_number = self.speaker.local_as if peer.as_number is None else peer.as_number
                local_as = self.speaker.local_as if peer.local_as_number is None else peer.local_as_number
                target = _Target(address, None, as_number, None, is_node=False)
                self._add(peer, _WORKLOAD, target, local_as, passive=True)

    # ---- inside

    def _addresses(self, node: Node) -> Iterator[tuple[Family, bytes]]:
        for family in Family:
            address = address_of(node, family)
            if address:
                yield family, address

    def _node_target(self, node: Node, address: bytes) -> _Target:
        cluster_id = node.bgp.route_reflector_cluster_id if node.bgp is not None else None
        port = self.cluster.listen_port(node.name)
        return _Target(address, port, self.cluster.as_number(node), cluster_id, is_node=False)

    def _address_target(self, peer: BGPPeer, address: bytes) -> _Target:
        as_number = peer.as_number if peer.as_number is not None else self.speaker.local_as
        port = peer.peer_port
        owner = self._owners.get(address)
        if owner is None:
            return _Target(address, port, as_number, None, is_node=False)
        if port is None and self.cluster.as_number(owner) == as_number:
            port = self.cluster.listen_port(owner.name)
        cluster_id = owner.bgp.route_reflector_cluster_id if owner.bgp is not None else None
        return _Target(address, port, as_number, cluster_id, is_node=True)

    def _names_this_node(self, peer: BGPPeer) -> bool:
        """Whether this node is the other end of a peering."""
        if peer.peer_selector is not None:
            return peer.peer_selector.matches(self.node.labels)
        if peer.peer_ip is None:
            return False
        return (
            peer.peer_ip == self.own[Family.of_address(peer.peer_ip)]
            and peer.as_number in (None, self.speaker.local_as)
            and (peer.peer_port is None or peer.peer_port == self.speaker.listen_port)
        )

    def _add(
        self, peer: BGPPeer, scope: str, target: _Target, local_as: int, *, passive: bool, reverse: bool = False
    ) -> None:
        key = (target.address, target.port or DEFAULT_PORT)
        first = self._taken.get(key)
        if first is not None and reverse:
            return
        family = Family.of_address(target.address)
        external = target.as_number != local_as
        kind = SourceKind.EBGP if external else SourceKind.IBGP
        if not external and self.speaker.cluster_id and target.cluster_id != self.speaker.cluster_id:
            kind = SourceKind.IBGP_CLIENT
        if peer.next_hop_mode is not None:
            next_hop_mode = _NEXT_HOP_MODES[peer.next_hop_mode]
        else:
            next_hop_mode = NextHopMode.KEEP if peer.keep_original_next_hop and external else NextHopMode.AUTO
        password = self._password(peer.password, f"BGPPeer {peer.name}: spec.password")
        spec = PeerSpec(
            session=NeighborConfig(
                name=_peer_name(scope, format_address(target.address), target.port),
                address=target.address,
                port=key[1],
                local_address=self.own[family]
                if peer.source_address is SourceAddress.USE_NODE_IP and scope != _WORKLOAD
                else b"",
                local_as=local_as,
                peer_as=target.as_number,
                router_id=self.speaker.router_id,
                passive=passive,
                families=(family,),
                keepalive_time=0 if peer.keepalive_time is None else _seconds(peer.keepalive_time),
                restart_time=self._restart_time(peer.max_restart_time, f"BGPPeer {peer.name}: spec.maxRestartTime"),
                password=password.reference,
                password_generation=password.generation,
                ttl_security=peer.ttl_security or 0,
                held=password.held,
            ),
            kind=kind,
            cluster_id=0 if external else self.speaker.cluster_id,
            next_hop_mode=next_hop_mode,
            allowed_own_as=peer.num_allowed_local_as_numbers,
            filters=peer.filters,
            why=f"BGPPeer {peer.name} (reverse)" if reverse else f"BGPPeer {peer.name}",
        )
        if first is None:
            self._put(key, spec)
            if not reverse:  # the gateway is on this side's way
                self._add_way(peer, target.address)
        elif not _same_but_for_names(first, spec):
            self.problems.append(
                f"BGPPeer {peer.name}: not used for {format_address(target.address)} port {key[1]}, "
                f"since {first.why} says something else about the same address and port and comes first"
            )

    def _restart_time(self, value: float | None, label: str) -> int:
        if value is None:
            return DEFAULT_RESTART_TIME
        seconds = _seconds(value)
        if seconds > MAX_RESTART_TIME:
            self.problems.append(f"{label}: {seconds} s is more than BGP can say; it is {MAX_RESTART_TIME} s")
        return min(seconds, MAX_RESTART_TIME)

    def _password(self, ref: SecretKeyRef | None, label: str) -> _Password:
        """What a session is to be authenticated with. One whose password is missing is held, unless it is optional."""
        if ref is None:
            return _NO_PASSWORD
        reference = f"{ref.name}/{ref.key}"
        secret = self.cluster.secrets.get(reference, NO_SECRET)
        if secret.generation:
            if secret.problem:
                self.problems.append(f"{label}: {secret.problem}; the password known before stays in use")
            return _Password(reference, secret.generation, "")
        folder = self.cluster.secrets.get("", NO_SECRET).problem
        where = f": {folder}" if folder else " in the folder secrets.dir of routed's own configuration"
        why = secret.problem or f"there is no {reference}{where}"
        if ref.optional and not secret.problem:
            self.notes.append(f"{label}: {why}, and it is optional: there is no password")
            return _NO_PASSWORD
        self.problems.append(f"{label}: {why}, so no session begins; one that is up goes on as it is")
        return _Password(reference, 0, f"its password is missing: {why}")

    def _add_way(self, peer: BGPPeer, address: bytes) -> None:
        """Of reachableBy: a route to the peer alone, as Calico gives BIRD a static one."""
        gateway = peer.reachable_by
        if gateway is None:
            return
        family = Family.of_address(address)
        key = (family, make_prefix(address, family.max_length))
        way = Origin(PEER_WAY, blackhole=False, why=f"BGPPeer {peer.name} spec.reachableBy", gateway=gateway)
        known = self.ways.setdefault(key, way)
        if known.gateway != gateway:
            self.problems.append(
                f"BGPPeer {peer.name}: spec.reachableBy {format_address(gateway)} is not used, "
                f"since {known.why} leads to the same address by {format_address(known.gateway)} and comes first"
            )

    def _put(self, key: tuple[bytes, int], spec: PeerSpec) -> None:
        self._check_guard(key[0], spec)
        self._taken[key] = spec
        self.specs[spec.session.name] = spec

    def _check_guard(self, address: bytes, spec: PeerSpec) -> None:
        """Connections that come in are told apart by their address: two sessions with one have to agree."""
        new = spec.session
        known = self._guards.setdefault(address, spec)
        old = known.session
        if (old.password, old.ttl_security) != (new.password, new.ttl_security):
            self.problems.append(
                f"{spec.why}: {known.why} has another password or ttlSecurity for {format_address(address)}; "
                "connections from that address are let in by those of the first"
            )

    def _report_filters(self, peer: BGPPeer) -> None:
        self.problems.extend(
            f"BGPPeer {peer.name}: spec.filters names BGPFilter {name}, which does not exist, so it filters nothing"
            for name in peer.filters
            if name not in self.cluster.filters
        )


def _peer_name(scope: str, address: str, port: int | None) -> str:
    """`Mesh_10_0_0_2`, `Global_10_0_0_254_port_1790`, `Node_fd5f__2`: as Calico names BIRD's protocols."""
    name = f"{scope}_{address.replace('.', '_').replace(':', '_')}"
    return name if port is None else f"{name}_port_{port}"


def _seconds(value: float) -> int:
    """Whole seconds, as they go on the wire; halves round up."""
    return math.floor(value + 0.5)


def _same_but_for_names(one: PeerSpec, other: PeerSpec) -> bool:
    return replace(other, session=replace(other.session, name=one.session.name), why=one.why) == one
