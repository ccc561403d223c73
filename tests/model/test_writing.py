"""What may be stored and not be written, as Calico's validator and the rules beside its types have it."""

from __future__ import annotations

from typing import Any

import pytest

from routed.model.schema import parse_manifest
from routed.model.writing import refusals


def refused(kind: str, spec: dict[str, Any], name: str = "default", namespace: str = "") -> list[str]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    manifest = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
    return [str(one) for one in refusals(parse_manifest(manifest))]  # it is valid where it is stored


def policy(direction: str = "ingress", **rule: Any) -> dict[str, Any]:
    return {direction: [{"action": "Allow", **rule}]}


SOURCE = "spec.ingress[0].source"
HOST = {"node": "n", "interfaceName": "eth0"}
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
        (
            "GlobalNetworkPolicy",
            policy(source={"nets": ["10.0.0.1"]}),
            f"{SOURCE}.nets[0]: must have a length, as 10.0.0.1/32",
        ),
        (
            "GlobalNetworkPolicy",
            policy(source={"nets": ["fd00::1"]}),
            f"{SOURCE}.nets[0]: must have a length, as fd00::1/128",
        ),
        (
            "GlobalNetworkPolicy",
            policy(source={"nets": ["10.0.0.1/8"]}),
            f'{SOURCE}.nets[0]: has bits set past its length in "10.0.0.1/8"; the prefix is 10.0.0.0/8',
        ),
        (
            "GlobalNetworkPolicy",
            policy(source={"namespaceSelector": "global() || has(a)"}),
            f"{SOURCE}.namespaceSelector: must be global() alone",
        ),
        (
            "GlobalNetworkPolicy",
            policy("egress", protocol="TCP", destination={"ports": [80, "Web_1"]}),
            "spec.egress[0].destination.ports[1]: must be the name of a port",
        ),
        (
            "GlobalNetworkPolicy",
            policy(protocol="TCP", source={"notPorts": ["00:10"]}),
            f"{SOURCE}.notPorts[0]: a port is 1 to 65535",
        ),
        (
            "GlobalNetworkPolicy",
            policy(source={"services": {"name": "a_b", "namespace": "c"}}),
            f"{SOURCE}.services.name: must be a name of Kubernetes'",
        ),
        (
            "GlobalNetworkPolicy",
            policy(notProtocol="ICMP", ipVersion=6),
            "spec.ingress[0].notProtocol: must not be ICMP where ipVersion is 6",
        ),
        (
            "GlobalNetworkPolicy",
            policy(http={"paths": [{"exact": "/a"}, {"prefix": "b"}]}),
            'spec.ingress[0].http.paths[1].prefix: must begin with "/"',
        ),
        (
            "GlobalNetworkPolicy",
            policy(metadata={"annotations": {"a b": "c"}}),
            'spec.ingress[0].metadata.annotations["a b"]: is not a name an annotation may have',
        ),
        (
            "Profile",
            {"ingress": [{"action": "Allow", "source": {"nets": ["10.0.0.1"]}}]},
            f"{SOURCE}.nets[0]: must have",
        ),
        (
            "StagedGlobalNetworkPolicy",
            {"ingress": [{"action": "Permit"}]},
            "spec.ingress[0].action: must be one of Allow, Deny, Log or Pass",
        ),
        ("StagedGlobalNetworkPolicy", {"doNotTrack": True}, "spec.doNotTrack: takes applyOnForward: true"),
        (
            "StagedGlobalNetworkPolicy",
            {"stagedAction": "Delete", "tier": "default", "selector": "all()"},
            "spec.selector: must be left out where stagedAction is Delete",
        ),
        (
            "StagedKubernetesNetworkPolicy",
            {"podSelector": {}, "ingress": [{"ports": [{"port": 0}]}]},
            "spec.ingress[0].ports[0].port: must be a port from 1 to 65535",
        ),
        ("HostEndpoint", {**HOST, "node": "N!"}, 'spec.node: must be the name of a Node, not "N!"'),
        ("HostEndpoint", {**HOST, "interfaceName": "eth:0"}, "spec.interfaceName: must be at most 15"),
        ("HostEndpoint", {**HOST, "profiles": ["a", "b c"]}, "spec.profiles[1]: must be the name of a Profile"),
        ("HostEndpoint", {**HOST, "ports": [{"protocol": "TCP", "port": 8}]}, "spec.ports[0].name: is required"),
        (
            "HostEndpoint",
            {**HOST, "ports": [{"name": "8", "protocol": "TCP", "port": 8}]},
            "spec.ports[0].name: must be the name of a port",
        ),
        ("Tier", {}, "spec.order: must be 1000000 for the tier default"),
        (
            "FelixConfiguration",
            {"failsafeInboundHostPorts": [{"protocol": "ICMP", "port": 8}]},
            "spec.failsafeInboundHostPorts[0].protocol: must be TCP, UDP or SCTP",
        ),
        ("FelixConfiguration", {"externalNodesList": ["fd00::/8"]}, "spec.externalNodesList[0]: must be an IPv4"),
        (
            "FelixConfiguration",
            {"kubeNodePortRanges": ["http"]},
            "spec.kubeNodePortRanges[0]: must be a port or a range",
        ),
        ("FelixConfiguration", {"kubeNodePortRanges": [1] * 8}, "spec.kubeNodePortRanges: has more than 7"),
        (
            "FelixConfiguration",
            {"routeTableRange": {"min": 1, "max": 2}, "routeTableRanges": []},
            "spec.routeTableRange: must be left out",
        ),
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


@pytest.mark.parametrize(
    ("name", "tier", "expected"),
    [
        ("a.b", "", "has the tier a before the dot, and spec.tier says default"),
        ("a.b", "c", "has the tier a before the dot, and spec.tier says c"),
        ("a.b.c", "a", "must be a-z, 0-9"),
        ("a.b", "a", ""),
        ("b", "a", ""),  # as of v3.32
        ("default.b", "", ""),
        ("knp.default.a.b", "", ""),
        ("ossg.default.a", "", ""),
        ("kcnp.kube-admin.a", "kube-admin", ""),
    ],
)
@pytest.mark.parametrize("kind", ["GlobalNetworkPolicy", "NetworkPolicy", "StagedNetworkPolicy"])
def test_names_of_policies_and_their_tiers(kind: str, name: str, tier: str, expected: str) -> None:
    found = refused(kind, {"tier": tier}, name)
    assert [one.startswith(f"metadata.name: {expected}") for one in found] == ([True] if expected else [])


def test_names() -> None:
    assert refused("Tier", {"order": 1}, "a.b") == [
        "metadata.name: must be at most 63 of a-z, 0-9 and '-', with no dot, not \"a.b\""
    ]
    assert refused("Tier", {"order": 5}, "kube-admin")[0].startswith("spec.order: must be 1000 for the tier kube-admin")
    assert refused("Tier", {"order": 1}, "a" * 64) and not refused("Tier", {"order": 1}, "a-b")
    assert refused("ClusterInformation", {}, "other")[0].startswith("metadata.name: must be default")
    assert not refused("ClusterInformation", {})


def test_the_ports_of_workloads_have_a_name_or_are_the_node_s() -> None:
    def found(**port: Any) -> list[str]:
        ports = [{"protocol": "TCP", "port": 80, **port}]
        return refused("WorkloadEndpoint", {**ENDPOINT, "ports": ports}, "node--1-k8s-a-eth0", "default")

    assert found() == ["spec.ports[0].name: is required where there is no hostPort"]
    assert found(hostPort=80) == found(name="web") == []
    assert found(name="Web")[0].startswith("spec.ports[0].name: must be the name of a port")


def test_labels_and_annotations() -> None:
    def found(kind: str = "GlobalNetworkSet", **metadata: Any) -> list[str]:
        manifest = {
            "apiVersion": "v1" if kind == "Pod" else "projectcalico.org/v3",
            "kind": kind,
            "metadata": {"name": "a", **metadata},
        }
        return [str(one) for one in refusals(parse_manifest(manifest))]

    for kind in ("GlobalNetworkSet", "Pod"):
        assert found(kind, labels={"a..b/c": "d"}) == ["metadata.labels.a..b/c: must have a DNS name before the slash"]
        assert found(kind, labels={"a.b/c": "d", "e": ""}, annotations={"A.b/C": "any text", "D": ""}) == []
        assert found(kind, annotations={"a/b/c": ""}) == [
            "metadata.annotations.a/b/c: is not a name an annotation may have"
        ]
        assert found(kind, annotations={"a": "b" * 2**18})[0].startswith("metadata.annotations: are 262145 characters")
    assert found(labels={"projectcalico.org/namespace": "a"})[0].startswith("metadata.labels: must not hold")


def kubernetes(spec: dict[str, Any], kind: str = "NetworkPolicy", name: str = "a") -> list[str]:
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "v1"
    manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return [str(one) for one in refusals(parse_manifest(manifest))]


def to_port(**port: Any) -> dict[str, Any]:
    return {"ingress": [{"ports": [port]}]}


def from_peer(**peer: Any) -> dict[str, Any]:
    return {"ingress": [{"from": [peer]}]}


PORT = "spec.ingress[0].ports[0]"
PEER = "spec.ingress[0].from[0]"
OUTSIDE = {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.1"]}}]}]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (from_peer(ipBlock={"cidr": "10.0.0.1"}), f"{PEER}.ipBlock.cidr: must have a length, as 10.0.0.1/32"),
        (OUTSIDE, "spec.egress[0].to[0].ipBlock.except[1]: must have a length, as 10.2.0.1/32"),
        (to_port(port=0), f"{PORT}.port: must be a port from 1 to 65535, not 0"),
        (to_port(port="80"), f"{PORT}.port: must be a number, without quotes: 80"),
        (to_port(port="Http"), f"{PORT}.port: must be the name of a port"),
        (to_port(port="a--b"), f"{PORT}.port: must be the name of a port"),
        (to_port(port="a-"), f"{PORT}.port: must be the name of a port"),
        (to_port(port="1-2"), f"{PORT}.port: must be the name of a port"),
        (to_port(port="a.b"), f"{PORT}.port: must be the name of a port"),
        (to_port(port="a234567890123456"), f"{PORT}.port: must be the name of a port"),
        (to_port(port="80:90"), f"{PORT}.port: must be the name of a port"),
        (to_port(protocol="tcp"), f'{PORT}.protocol: must be TCP, UDP or SCTP, in capitals, not "tcp"'),
        (to_port(protocol="ICMP"), f"{PORT}.protocol: must be TCP, UDP or SCTP"),
        (to_port(protocol=6), f"{PORT}.protocol: must be TCP, UDP or SCTP"),
        ({"policyTypes": ["Ingress", "Ingress", "Egress"]}, "spec.policyTypes: names more than the two"),
        ({"podSelector": {"matchLabels": {"a..b/c": "d"}}}, "spec.podSelector.matchLabels.a..b/c: must have a DNS"),
        (
            from_peer(namespaceSelector={"matchExpressions": [{"key": "a-/b", "operator": "Exists"}]}),
            f"{PEER}.namespaceSelector.matchExpressions[0].key: must have a DNS name",
        ),
        (
            from_peer(podSelector={"matchExpressions": [{"key": "a", "operator": "In", "values": ["", "b c"]}]}),
            f"{PEER}.podSelector.matchExpressions[0].values[1]: is no value a label may have",
        ),
    ],
)
def test_what_kubernetes_refuses_of_policies(spec: dict[str, Any], expected: str) -> None:
    (found,) = kubernetes(spec)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"policyTypes": ["Egress", "Egress"]},
        to_port(port="a2345678901234b"),
        to_port(port=65535, protocol="SCTP"),
        to_port(port=1, endPort=65535),
        from_peer(ipBlock={"cidr": "10.0.0.1/8", "except": ["10.0.0.1/9"]}),
        from_peer(podSelector={"matchExpressions": [{"key": "a.b/C_d", "operator": "NotIn", "values": ["", "b"]}]}),
    ],
)
def test_what_kubernetes_takes_is_taken(spec: dict[str, Any]) -> None:
    assert kubernetes(spec) == []


def test_what_kubernetes_refuses_of_namespaces_and_pods() -> None:
    assert kubernetes({}, "Namespace", "a.b")[0].startswith("metadata.name: must be lower case letters")
    assert kubernetes({}, "Namespace", "a-b") == []
    ports = [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}, {"containerPort": 3, "name": "B"}]
    other = {"ports": [{"containerPort": 1, "name": "a", "protocol": "udp"}]}
    first, second, third = kubernetes({"containers": [{"ports": ports}], "initContainers": [other]}, "Pod")
    assert first == "spec.containers[0].ports[1].name: is the name of two ports: a"
    assert second.startswith("spec.containers[0].ports[2].name: must be the name of a port")
    assert third.startswith("spec.initContainers[0].ports[0].protocol: must be TCP, UDP or SCTP")


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("GlobalNetworkPolicy", policy(protocol="TCP", destination={"ports": [80, "90:100", "http"]})),
        ("GlobalNetworkPolicy", policy(source={"namespaceSelector": "global()", "nets": ["10.0.0.0/8"]})),
        ("GlobalNetworkPolicy", {**policy(http={"methods": ["GET"]}), "types": ["Ingress", "Egress"]}),
        ("GlobalNetworkPolicy", {"doNotTrack": True, "applyOnForward": True}),
        ("IPPool", {**LOAD_BALANCER, "nodeSelector": "all()"}),
        ("BGPConfiguration", {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["1:2"]}]}),
    ],
)
def test_what_calico_takes_is_taken(kind: str, spec: dict[str, Any]) -> None:
    assert refused(kind, spec) == []
