"""NetworkPolicy (networking.k8s.io/v1) as its specification reads, evaluated on raw manifests: the oracle of the tests.

Written from the text of the API alone, in the plainest way, with nothing of routed in it: neither its model nor its
selectors. A connection is admitted where the source's egress and the destination's ingress both admit it; a pod is
isolated for a direction where a policy of its namespace selects it for that direction; what a node says to its own pods,
and they to it, is always admitted, and so is what a pod says to itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """One side of a connection: a pod, a node or somebody outside."""

    kind: str
    """pod, node, ext."""
    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    node: str = ""
    """Where a pod runs; of a node its own name."""
    addresses: tuple[str, ...] = ()
    ports: tuple[tuple[str, str, int], ...] = ()
    """(name, protocol, number) of a pod's container ports."""


@dataclass(frozen=True)
class Connection:
    source: Endpoint
    destination: Endpoint
    protocol: str
    port: int
    ipv6: bool = False

    def address(self, endpoint: Endpoint) -> str:
        return next(each for each in endpoint.addresses if (":" in each) is self.ipv6)


@dataclass(frozen=True)
class World:
    policies: Sequence[Manifest]
    namespaces: Mapping[str, Mapping[str, str]]
    """Labels by name."""


def admitted(world: World, connection: Connection) -> bool:
    source, destination = connection.source, connection.destination
    if source == destination:
        return True
    if "node" in (source.kind, destination.kind) and source.node == destination.node:
        return True
    return all(
        _admits(world, connection, direction, subject, peer)
        for direction, subject, peer in (("Egress", source, destination), ("Ingress", destination, source))
    )


def _admits(world: World, connection: Connection, direction: str, subject: Endpoint, peer: Endpoint) -> bool:
    if subject.kind != "pod":
        return True
    applying = [
        policy
        for policy in world.policies
        if (policy["metadata"].get("namespace") or "default") == subject.namespace
        and _selects(policy["spec"].get("podSelector") or {}, subject.labels)
        and direction in _types(policy["spec"])
    ]
    if not applying:
        return True
    section, others = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return any(
        _rule_matches(world, connection, rule, others, subject.namespace, peer)
        for policy in applying
        for rule in policy["spec"].get(section) or []
    )


def _types(spec: Manifest) -> list[str]:
    if spec.get("policyTypes"):
        return list(spec["policyTypes"])
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _rule_matches(
    world: World, connection: Connection, rule: Manifest | None, others: str, namespace: str, peer: Endpoint
) -> bool:
    rule = rule or {}
    peers, ports = rule.get(others) or [], rule.get("ports") or []
    return (not peers or any(_peer_matches(world, connection, each, namespace, peer) for each in peers)) and (
        not ports or any(_port_matches(connection, each) for each in ports)
    )


def _peer_matches(world: World, connection: Connection, wanted: Manifest, namespace: str, peer: Endpoint) -> bool:
    block = wanted.get("ipBlock")
    if block is not None:
        address = ipaddress.ip_address(connection.address(peer))
        return _inside(address, block["cidr"]) and not any(_inside(address, each) for each in block.get("except") or [])
    if peer.kind != "pod":
        return False
    pods, namespaces = wanted.get("podSelector"), wanted.get("namespaceSelector")
    if namespaces is None:
        if peer.namespace != namespace:
            return False
    elif not _selects(namespaces, world.namespaces[peer.namespace]):
        return False
    return pods is None or _selects(pods, peer.labels)


def _inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address, cidr: str) -> bool:
    return address in ipaddress.ip_network(cidr, strict=False)


def _port_matches(connection: Connection, wanted: Manifest) -> bool:
    protocol = wanted.get("protocol") or "TCP"
    if protocol != connection.protocol:
        return False
    port = wanted.get("port")
    if port is None:
        return True
    if isinstance(port, str):
        return any(
            (name, declared) == (port, protocol) and number == connection.port
            for name, declared, number in connection.destination.ports
        )
    last: int = wanted.get("endPort") or port
    return bool(port <= connection.port <= last)


def _selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        key, operator, values = expression["key"], expression["operator"], expression.get("values") or []
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True
