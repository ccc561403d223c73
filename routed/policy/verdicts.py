"""What the stored policies say of a connection, on every node it crosses; offline, from resources alone.

Each node on the way gets an engine of its own, fed with everything, policies that cannot be read included, and a judge that
walks its program. Pods nobody has wired yet (a Pod manifest with addresses) are judged as if they were. Which interface
of a node a packet passes, no resource says: it is that of the host endpoint with the node's address or, where the node has
one host endpoint with an interface, of that; else one that only `*` is about. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from routed.desired_policy import Icmp, PolicyBatch
from routed.errors import RoutedError
from routed.model.kubernetes import Namespace, Pod
from routed.model.policies import GlobalNetworkSet, NetworkSet, Profile, Tier
from routed.model.resources import IPPool, Node, Resource, ResourceKey, Update
from routed.model.settings import FelixConfiguration
from routed.model.workloads import HostEndpoint, WorkloadEndpoint, interface_of
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.policy.engine import PolicyEngine
from routed.policy.host import host_rules
from routed.policy.judge import FirewallModel, Judgement, Packet
from routed.policy.kubernetes import Kubernetes
from routed.policy.refusals import Refusal, read_refusal

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
                return Party(text, each.name, addresses=_node_addresses(each))
        if slash:
            raise UnknownEndpoint(f"{text}: there is no such pod with an address in the datastore")
        try:
            address = parse_address(text)
        except ValueError:
            raise UnknownEndpoint(f"{text}: is neither NAMESPACE/POD, nor an address, nor the name of a Node") from None
        for each in self._resources.values():
            if isinstance(each, WorkloadEndpoint) and any(ip.prefix[1:] == address for ip in each.ip_networks):
                return replace(self._pod(text, each), addresses=(address,))
            if isinstance(each, Node) and address in _node_addresses(each):
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
        """What becomes of the first packet of a connection. Raises UnknownEndpoint where the two share no family."""
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
            raise UnknownEndpoint(f"{source.text} and {destination.text} have no addresses of one family: {shown}")
        packet = Packet(*pair, asked.protocol, asked.source_port, asked.port, asked.icmp)
        crossings: list[tuple[str, Judgement]] = []
        for node, incoming, outgoing in self._crossed(source, destination):
            judgement = self._judge(node).judge(replace(packet, incoming=incoming, outgoing=outgoing))
            crossings.append((node, judgement))
            if not judgement.admitted:
                return Verdict(False, packet, tuple(crossings))
        return Verdict(True, packet, tuple(crossings))

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

    def _crossed(self, source: Party, destination: Party) -> list[tuple[str, str, str]]:
        """Nodes with the interfaces a packet comes in and leaves by; none where it never leaves a pod."""
        if source.node and source.node == destination.node:
            same = source.interface == destination.interface
            return [] if same else [(source.node, source.interface, destination.interface)]
        crossed = []
        if source.node:
            crossed.append((source.node, source.interface, self._uplink(source.node)))
        if destination.node:
            crossed.append((destination.node, self._uplink(destination.node), destination.interface))
        return crossed

    def _addresses(self, node: str) -> tuple[bytes, ...]:
        found = self._resources.get(ResourceKey(Node.kind, node))
        return _node_addresses(found) if isinstance(found, Node) else ()

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


def _node_addresses(node: Node) -> tuple[bytes, ...]:
    bgp = node.bgp
    return tuple(each.address for each in (bgp.ipv4_address, bgp.ipv6_address) if each is not None) if bgp else ()
