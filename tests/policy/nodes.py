"""A cluster of policy engines in memory: the oracle's worlds as Calico resources, packets judged node by node."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from routed.desired_policy import Icmp
from routed.model.kubernetes import KubernetesNetworkPolicy, calico_policy
from routed.model.resources import JsonObject, Resource, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.policy.engine import PolicyEngine
from routed.policy.judge import FirewallModel, Judgement, Packet
from tests.policy.specification import Connection, Endpoint, World

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
"""And ICMP, which is two; its type and code stand in place of a port."""
UPLINK = "eth0"


def twin(address: str) -> str:
    """The IPv6 address beside an IPv4 one; of a network (`10.0.0.0/8`) the network."""
    host, slash, length = address.partition("/")
    made = ipaddress.IPv6Address(int(ipaddress.IPv6Address("fd00::")) + int(ipaddress.IPv4Address(host)))
    return f"{made}/{96 + int(length)}" if slash else str(made)


def packet(connection: Connection, source_port: int = 40000, incoming: str = "", outgoing: str = "") -> Packet:
    """The first of a connection."""
    addresses = (parse_address(connection.address(each)) for each in (connection.source, connection.destination))
    if connection.protocol == "ICMP":
        icmp = Icmp(*divmod(connection.port, 256))
        return Packet(*addresses, 58 if connection.ipv6 else 1, icmp=icmp, incoming=incoming, outgoing=outgoing)
    return Packet(
        *addresses,
        PROTOCOLS[connection.protocol],
        source_port,
        connection.port,
        incoming=incoming,
        outgoing=outgoing,
    )


def interface_of(pod: Endpoint) -> str:
    return "cali" + hashlib.sha1(f"{pod.namespace}.{pod.name}".encode()).hexdigest()[:11]


def workload(pod: Endpoint, interface: str = "") -> Resource:
    """The WorkloadEndpoint a CNI plugin writes for a pod."""
    segments = "-".join(each.replace("-", "--") for each in (pod.node, "k8s", pod.name, "eth0"))
    manifest: JsonObject = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {
            "name": segments,
            "namespace": pod.namespace,
            "labels": {
                **pod.labels,
                "projectcalico.org/namespace": pod.namespace,
                "projectcalico.org/orchestrator": "k8s",
            },
        },
        "spec": {
            "orchestrator": "k8s",
            "node": pod.node,
            "pod": pod.name,
            "endpoint": "eth0",
            "containerID": "c",
            "ipNetworks": [f"{ip}/{128 if ':' in ip else 32}" for ip in pod.addresses],
            "profiles": [f"kns.{pod.namespace}"],
            "interfaceName": interface or interface_of(pod),
            "ports": [
                {"name": name, "protocol": protocol, "port": number} for name, protocol, number in pod.ports if name
            ],
        },
    }
    return parse_manifest(manifest)


def profile(namespace: str, labels: Mapping[str, str]) -> Resource:
    """What Calico's kube-controllers writes for a namespace."""
    allow: JsonObject = {"action": "Allow"}
    applied: JsonObject = {f"pcns.{label}": value for label, value in labels.items()}
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Profile",
            "metadata": {"name": f"kns.{namespace}"},
            "spec": {
                "ingress": [allow],
                "egress": [allow],
                "labelsToApply": {**applied, "pcns.projectcalico.org/name": namespace},
            },
        }
    )


def policy(manifest: Mapping[str, Any]) -> Resource:
    """A Kubernetes NetworkPolicy as it is enforced."""
    read = parse_manifest(dict(manifest))
    assert isinstance(read, KubernetesNetworkPolicy)
    return parse_manifest(calico_policy(read))


class Nodes:
    """Engines and model firewalls of some nodes, fed the same resources."""

    def __init__(self, names: Iterable[str]) -> None:
        self.engines = {name: PolicyEngine(name) for name in names}
        self.firewalls = {name: FirewallModel() for name in self.engines}
        self._told: dict[Any, Resource] = {}

    def become(self, world: World, pods: Iterable[Endpoint]) -> None:
        """Have the resources of a world, by updates of what differs."""
        wanted = [
            *(workload(pod) for pod in pods),
            *(profile(name, labels) for name, labels in world.namespaces.items()),
            *(policy(each) for each in world.policies),
        ]
        self.apply(wanted)

    def apply(self, wanted: Iterable[Resource]) -> None:
        """These resources exist, and no others."""
        now = {resource.key: resource for resource in wanted}
        updates = [Update(key, None) for key in self._told.keys() - now.keys()]
        updates += [Update(key, value) for key, value in now.items() if self._told.get(key) != value]
        self._told = now
        for name, engine in self.engines.items():
            for update in updates:
                engine.update(update)
            batch = engine.flush()
            if batch is not None:
                self.firewalls[name].apply(batch)

    def judge(self, connection: Connection, source_port: int = 40000) -> Judgement:
        """What becomes of a connection's first packet, on every node it crosses."""
        source, destination = connection.source, connection.destination
        here = source.kind == "pod"
        crossed: list[tuple[str, str, str]] = []
        if source == destination:
            return Judgement(True, "it never leaves the pod")
        if source.kind in ("pod", "node") and destination.node == source.node:
            incoming = interface_of(source) if here else ""
            outgoing = interface_of(destination) if destination.kind == "pod" else ""
            crossed.append((source.node, incoming, outgoing))
        else:
            if here:
                crossed.append((source.node, interface_of(source), UPLINK))
            elif source.kind == "node":
                crossed.append((source.node, "", UPLINK))
            if destination.kind == "pod":
                crossed.append((destination.node, UPLINK, interface_of(destination)))
            elif destination.kind == "node":
                crossed.append((destination.node, UPLINK, ""))
        return self.cross(packet(connection, source_port), crossed)

    def cross(self, packet: Packet, nodes: Iterable[tuple[str, str, str]]) -> Judgement:
        """What becomes of a packet on nodes, each with the interfaces it comes in and leaves by."""
        judgement = Judgement(True, "no node on the way")
        for node, incoming, outgoing in nodes:
            judgement = self.firewalls[node].judge(replace(packet, incoming=incoming, outgoing=outgoing))
            if not judgement.admitted:
                break
        return judgement
