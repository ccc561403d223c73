"""What may be stored and not be written, as Calico's validator and the rules beside its types have it."""

from __future__ import annotations

from typing import Any

import pytest

from routed.model.schema import parse_manifest
from routed.model.writing import refusals


def refused(kind: str, spec: dict[str, Any], name: str = "default", namespace: str = "") -> list[str]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    manifest = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
    return refusals(parse_manifest(manifest))  # it is valid where it is stored


def policy(direction: str = "ingress", **rule: Any) -> dict[str, Any]:
    return {direction: [{"action": "Allow", **rule}]}


POOL = {"cidr": "10.9.0.0/16"}
LOAD_BALANCER = {**POOL, "allowedUses": ["LoadBalancer"]}
ENDPOINT = {
    "orchestrator": "k8s", "node": "node-1", "pod": "a", "endpoint": "eth0", "interfaceName": "cali1",
    "ipNetworks": ["10.9.0.1/32"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("GlobalNetworkPolicy", {"types": ["Ingress", "Ingress"]}, "spec.types: names a type twice"),
        ("GlobalNetworkPolicy", {"selector": "global()"}, "spec.selector: global() may only be used in"),
        ("GlobalNetworkPolicy", {"namespaceSelector": "global()"}, "spec.namespaceSelector: global() may only"),
        ("GlobalNetworkPolicy", {"doNotTrack": True}, "spec.doNotTrack: takes applyOnForward: true"),
        ("GlobalNetworkPolicy", policy(source={"selector": "global()"}), "spec.ingress[0].source.selector: global()"),
        (
            "GlobalNetworkPolicy",
            policy(source={"nets": ["fd00::/64"]}, destination={"nets": ["10.0.0.0/8"]}),
            "spec.ingress[0]: has networks of IPv4 and of IPv6",
        ),
        (
            "GlobalNetworkPolicy",
            policy("egress", destination={"notNets": ["0.0.0.0/0"]}),
            "spec.egress[0].destination.notNets[0]: 0.0.0.0/0 is everything",
        ),
        (
            "GlobalNetworkPolicy",
            policy(protocol="TCP", destination={"ports": [80, 0]}),
            "spec.ingress[0].destination.ports[1]: a port is 1 to 65535",
        ),
        ("GlobalNetworkPolicy", policy("egress", http={"methods": ["GET"]}), "spec.egress[0].http: is for ingress"),
        (
            "GlobalNetworkPolicy",
            policy(protocol="UDP", http={"methods": ["GET"]}),
            "spec.ingress[0].http: takes protocol",
        ),
        (
            "GlobalNetworkPolicy",
            policy(http={"methods": ["GET", "GET"]}),
            "spec.ingress[0].http.methods: names a method",
        ),
        ("IPPool", {**POOL, "nodeSelector": "global()"}, "spec.nodeSelector: global() is not for pools"),
        (
            "IPPool",
            {**POOL, "allowedUses": ["Tunnel"], "namespaceSelector": "all()"},
            "spec.namespaceSelector: must be left",
        ),
        ("IPPool", {**LOAD_BALANCER, "nodeSelector": "has(a)"}, "spec.nodeSelector: must be all()"),
        ("IPPool", {**LOAD_BALANCER, "disableBGPExport": True}, "spec.disableBGPExport: must be false"),
        ("IPPool", {**LOAD_BALANCER, "vxlanMode": "Always"}, "spec.vxlanMode: must be Never"),
        (
            "HostEndpoint",
            {"node": "n", "interfaceName": "eth0", "ports": [{"name": "a", "protocol": "ICMP", "port": 8}]},
            "spec.ports[0].protocol: must be TCP, UDP or SCTP",
        ),
        ("BGPConfiguration", {"communities": [{"name": "a", "value": "1:2"}]}, "spec.communities: are of no use"),
    ],
)
def test_what_is_not_to_be_written(kind: str, spec: dict[str, Any], expected: str) -> None:
    (found,) = refused(kind, spec)
    assert found.startswith(expected)


def test_translated_addresses_are_the_endpoint_s_own() -> None:
    nat = {"internalIP": "10.9.0.2", "externalIP": "192.0.2.1"}
    name = "node--1-k8s-a-eth0"
    (found,) = refused("WorkloadEndpoint", {**ENDPOINT, "ipNATs": [nat]}, name, "default")
    assert found.startswith("spec.ipNATs[0].internalIP")
    assert not refused("WorkloadEndpoint", {**ENDPOINT, "ipNATs": [{**nat, "internalIP": "10.9.0.1"}]}, name, "default")


def test_names() -> None:
    assert refused("Tier", {"order": 1}, "a.b") == [
        "metadata.name: must be at most 63 of a-z, 0-9 and '-', with no dot, not \"a.b\""
    ]
    assert refused("Tier", {"order": 1}, "a" * 64) and not refused("Tier", {"order": 1}, "a-b")
    assert refused("ClusterInformation", {}, "other")[0].startswith("metadata.name: must be default")
    assert not refused("ClusterInformation", {})


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("GlobalNetworkPolicy", policy(protocol="TCP", destination={"ports": [80, "90:100", "http"]})),
        ("GlobalNetworkPolicy", policy(source={"namespaceSelector": "global()", "nets": ["10.0.0.1/8"]})),
        ("GlobalNetworkPolicy", {**policy(http={"methods": ["GET"]}), "types": ["Ingress", "Egress"]}),
        ("GlobalNetworkPolicy", {"doNotTrack": True, "applyOnForward": True}),
        ("IPPool", {**LOAD_BALANCER, "nodeSelector": "all()"}),
        ("BGPConfiguration", {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["1:2"]}]}),
    ],
)
def test_what_calico_takes_is_taken(kind: str, spec: dict[str, Any]) -> None:
    assert refused(kind, spec) == []
