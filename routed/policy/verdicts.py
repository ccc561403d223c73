"""What the stored policies say of a connection, on every node it crosses; offline, from resources alone.

Each node on the way gets an engine of its own, fed with everything, policies that cannot be read included, and a judge that
walks its program. Pods nobody has wired yet (a Pod manifest with addresses) are judged as if they were. Which interface
of a node a packet passes, no resource says: it is that of the host endpoint with the node's address or, where the node has
one host endpoint with an interface, of that; else one that only `*` is about. To pods of another node packets pass the
device of the tunnel that their pool has, and a node sends from its address there, else from the one in its Node. What leaves
a pool with `natOutgoing` for no pool arrives at another node with the address of its own node. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from routed.desired_policy import Icmp, PolicyBatch
from routed.errors import RoutedError
from routed.model.kubernetes import Namespace, Pod
from routed.model.policies import GlobalNetworkSet, NetworkSet, Profile, Tier
from routed.model.resources import (
    IPIP_DEVICE,
    VXLAN_DEVICES,
    Cidr,
    EncapMode,
    IPPool,
    Node,
    NodeAddress,
    Resource,
    ResourceKey,
    Update,
)
from routed.model.settings import FelixConfiguration
from routed.model.workloads import HostEndpoint, WorkloadEndpoint, interface_of
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.net.prefixes import covers
from routed.policy.engine import PolicyEngine
from routed.policy.host import host_rules
from routed.policy.judge import FirewallModel, Judgement, Packet, begins_nothing
from routed.policy.kubernetes import Kubernetes
from routed.policy.refusals import Refusal, read_refusal
from routed.values import dataclass

UPLINK = "uplink"
"""Where packets leave a node that are for no pod of it."""
_ASKED = frozenset(
    each.kind
    for each in (
        Tier, Profile, NetworkSet, GlobalNetworkSet, HostEndpoint, WorkloadEndpoint, Namespace, Pod, FelixConfiguration,
    )
)  # fmt: skip
SOURCE_PORT = 32768
"""That of a connection whose nobody says."""


class UnknownEndpoint(RoutedError):
    """Nobody of this name or address is known."""


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a connection."""

    text: str
    """As it was asked for."""
    node: str = ""
    """Where it is; empty: outside the cluster."""
    interface: str = ""
    """Of a pod, on its node; empty for nodes and for who is outside."""
    addresses: tuple[bytes, ...] = ()
    chooses: bool = False
    """It is a node, which has still others to send from."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is sent."""

    protocol: int
    port: int = 0
    """Destination port."""
    source_port: int = SOURCE_PORT
    icmp: Icmp | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    admitted: bool
    packet: Packet
    crossings: tuple[tuple[str, Judgement], ...]
    """Nodes in the order the connection meets them, up to the one that drops it."""
    tunnel: str = ""
    """The device it passes between the nodes, if it is a tunnel's."""
    translated: bytes = b""
    """The source it arrives from at another node, if that is another."""


class Verdicts:
    """See the module's docstring."""

    def __init__(
        self, resources: Iterable[Resource], broken: Iterable[tuple[str, str]] = (), prefixes: tuple[str, ...] = ()
    ) -> None:
        """`broken`: manifests that cannot be read, with why; `prefixes`: of pods' interfaces, where configured."""
        kubernetes = Kubernetes()
        self._prefixes = prefixes
        self._refusals: list[Refusal] = []
        self.unsure: tuple[str, ...] = ()
        """What of the datastore cannot be read while nodes go on with what it last said, which only they know."""
        for text, why in broken:
            refusal = _refusal(text, why)
            if refusal is not None:
                self._refusals.append(refusal)
            if refusal.keeps_last if refusal is not None else _is_asked(text):
                self.unsure = (*self.unsure, f"{why}; nodes go on with its last good version, which only they know")
        self._felix: dict[str, FelixConfiguration] = {}
        self._pools: list[IPPool] = []
        self._resources: dict[ResourceKey, Resource] = {}
        for resource in resources:
            for update in kubernetes.update(Update(resource.key, resource)):
                if update.value is None:
                    self._resources.pop(update.key, None)
                else:
                    self._resources[update.key] = update.value
        for each in self._resources.values():
            if isinstance(each, FelixConfiguration):
                self._felix[each.name] = each
            elif isinstance(each, IPPool):
                self._pools.append(each)
        for key, each in self._resources.items():
            if isinstance(each, WorkloadEndpoint) and not each.interface_name:
                self._resources[key] = replace(each, interface_name=interface_of(str(key)))
        self._judges: dict[str, FirewallModel] = {}

    def party(self, text: str) -> Party:
        """NAMESPACE/POD, an address, or the name of a node. Raises UnknownEndpoint."""
        namespace, slash, name = text.partition("/")
        for each in self._resources.values():
            if slash and isinstance(each, WorkloadEndpoint) and (each.namespace, each.pod) == (namespace, name):
                return self._pod(text, each)
            if not slash and isinstance(each, Node) and each.name == text:
                return Party(text, each.name, addresses=_node_addresses(each), chooses=True)
        if slash:
            raise UnknownEndpoint(f"{text}: there is no such pod with an address in the datastore")
        try:
            address = parse_address(text)
        except ValueError:
            raise UnknownEndpoint(f"{text}: is neither NAMESPACE/POD, nor an address, nor the name of a Node") from None
        if ip_address(address).is_loopback:
            raise UnknownEndpoint(f"{text}: is everybody's own; no node judges what is sent there")
        for each in self._resources.values():
            if isinstance(each, WorkloadEndpoint) and any(ip.prefix[1:] == address for ip in each.ip_networks):
                return replace(self._pod(text, each), addresses=(address,))
            if isinstance(each, Node) and address in (*_node_addresses(each), *_tunnel_addresses(each)):
                return Party(text, each.name, addresses=(address,))
        return Party(text, addresses=(address,))

    def _pod(self, text: str, endpoint: WorkloadEndpoint) -> Party:
        addresses = tuple(network.prefix[1:] for network in endpoint.ip_networks)
        return Party(text, endpoint.node, endpoint.interface_name, addresses)

    def port(self, to: Party, name: str, protocol: int) -> int | None:
        """The number of a named port of a pod."""
        for each in self._resources.values():
            if isinstance(each, WorkloadEndpoint) and (each.node, each.interface_name) == (to.node, to.interface):
                return next((port.port for port in each.ports if (port.name, port.protocol) == (name, protocol)), None)
        return None

    def judge(self, source: Party, destination: Party, asked: Asked, family: Family | None = None) -> Verdict:
        """What becomes of the first packet of a connection; `family`: not by the first that both have, but by this.

        Raises UnknownEndpoint where the two have no addresses of it.
        """
        pair = next(
            (
                (one, other)
                for one in source.addresses
                for other in destination.addresses
                if len(one) == len(other) and family in (None, Family.of_address(one))
            ),
            None,
        )
        if pair is None:
            shown = ", ".join(format_address(each) for each in (*source.addresses, *destination.addresses))
            which = "one family" if family is None else family.label
            raise UnknownEndpoint(f"{source.text} and {destination.text} have no addresses of {which}: {shown}")
        tunnel, address = self._tunnel(source.node, destination.node, pair[1]) or ("", pair[0])
        if source.chooses:
            pair = (address, pair[1])
        translated = self._translated(source.node, *pair) if destination.node not in ("", source.node) else b""
        invalid = begins_nothing(asked.protocol, asked.icmp)
        packet = Packet(*pair, asked.protocol, asked.source_port, asked.port, asked.icmp, invalid=invalid)
        crossings: list[tuple[str, Judgement]] = []
        for node, incoming, outgoing in self._crossed(source, destination, tunnel):
            there = replace(packet, incoming=incoming, outgoing=outgoing)
            if translated and node != source.node:
                there = replace(there, source=translated)
            judgement = self._judge(node).judge(there)
            crossings.append((node, judgement))
            if not judgement.admitted:
                break
        admitted = all(judgement.admitted for _, judgement in crossings)
        return Verdict(admitted, packet, tuple(crossings), tunnel, translated)

    def _judge(self, node: str) -> FirewallModel:
        found = self._judges.get(node)
        if found is None:
            engine, found = PolicyEngine(node), FirewallModel()
            for key, value in self._resources.items():
                engine.update(Update(key, value))
            for refusal in self._refusals:
                engine.refuse(refusal)
            engine.interfaces(dict.fromkeys(self._addresses(node), self._uplink(node)))
            found.apply(PolicyBatch(host=host_rules(self._pools, self._felix, node, self._prefixes)))
            batch = engine.flush()
            if batch is not None:
                found.apply(batch)
            self._judges[node] = found
        return found

    def _crossed(self, source: Party, destination: Party, tunnel: str) -> list[tuple[str, str, str]]:
        """Nodes with the interfaces a packet comes in and leaves by; none where it never leaves a pod."""
        if source.node and source.node == destination.node:
            same = source.interface == destination.interface
            return [] if same else [(source.node, source.interface, destination.interface)]
        crossed = []
        if source.node:
            crossed.append((source.node, source.interface, tunnel or self._uplink(source.node)))
        if destination.node:
            crossed.append((destination.node, tunnel or self._uplink(destination.node), destination.interface))
        return crossed

    def _addresses(self, node: str) -> tuple[bytes, ...]:
        found = self._resources.get(ResourceKey(Node.kind, node))
        return _node_addresses(found) if isinstance(found, Node) else ()

    def _tunnel(self, node: str, other: str, to: bytes) -> tuple[str, bytes] | None:
        """The device by which a node's packets go to an address at another, and its own address there."""
        found = self._resources.get(ResourceKey(Node.kind, node))
        pools = [each for each in self._pools if _holds(each.cidr, to)]
        if not pools or not isinstance(found, Node) or other in ("", node):
            return None
        mode, device, address = _into_tunnel(found, max(pools, key=lambda each: each.cidr.prefix[0]))
        beside = any(_holds(each, there) for each in _subnets(found) for there in self._addresses(other))
        if address is None or mode is EncapMode.NEVER or (mode is EncapMode.CROSS_SUBNET and beside):
            return None
        return device, address

    def _translated(self, node: str, own: bytes, to: bytes) -> bytes:
        """The node's address, where it stands for the source of what leaves it; else none."""
        leaves = not any(_holds(pool.cidr, to) for pool in self._pools)
        if not leaves or not any(pool.nat_outgoing and _holds(pool.cidr, own) for pool in self._pools):
            return b""
        return next((each for each in self._addresses(node) if len(each) == len(own)), b"")

    def _uplink(self, node: str) -> str:
        """See the module's docstring."""
        own = self._addresses(node)
        named = [
            each
            for each in self._resources.values()
            if isinstance(each, HostEndpoint) and each.node == node and each.interface_name not in ("", "*")
        ]
        by_address = [each for each in named if any(ip in own for ip in each.expected_ips)]
        found = by_address or (named if len(named) == 1 else [])
        return min((each.interface_name for each in found), default=UPLINK)


def _refusal(text: str, why: str) -> Refusal | None:
    try:
        return read_refusal(text, why)
    except ValueError:  # no JSON
        return None


def _is_asked(text: str) -> bool:
    """Whether a manifest that cannot be read is of a kind that verdicts depend on."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") in _ASKED


def _networks(node: Node) -> tuple[NodeAddress, ...]:
    bgp = node.bgp
    return tuple(each for each in (bgp.ipv4_address, bgp.ipv6_address) if each is not None) if bgp else ()


def _node_addresses(node: Node) -> tuple[bytes, ...]:
    return tuple(each.address for each in _networks(node))


def _subnets(node: Node) -> tuple[Cidr, ...]:
    return tuple(Cidr(Family.of_address(each.address), each.subnet) for each in _networks(node))


def _tunnel_addresses(node: Node) -> tuple[bytes, ...]:
    ipip = node.bgp.ipv4_ipip_tunnel_addr if node.bgp is not None else None
    found = (node.ipv4_vxlan_tunnel_addr, node.ipv6_vxlan_tunnel_addr, ipip)
    return tuple(each for each in found if each is not None)


def _into_tunnel(node: Node, pool: IPPool) -> tuple[EncapMode, str, bytes | None]:
    """When a pool's packets go into its tunnel, and a node's device and address there."""
    ipv4 = pool.cidr.family is Family.IPV4_UNICAST
    if pool.vxlan_mode is not EncapMode.NEVER:
        device = VXLAN_DEVICES[pool.cidr.family]
        return pool.vxlan_mode, device, node.ipv4_vxlan_tunnel_addr if ipv4 else node.ipv6_vxlan_tunnel_addr
    return pool.ipip_mode, IPIP_DEVICE, node.bgp.ipv4_ipip_tunnel_addr if ipv4 and node.bgp is not None else None


def _holds(cidr: Cidr, address: bytes) -> bool:
    return cidr.family is Family.of_address(address) and covers(cidr.prefix, bytes((8 * len(address),)) + address)
