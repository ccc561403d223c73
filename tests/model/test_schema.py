"""Manifests: every field of every kind read once, every rule broken once, and fuzz that only ConfigError survives."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.errors import ConfigError
from routed.model import schema
from routed.model.resources import (
    AddCommunity,
    AffinityState,
    AffinityType,
    AllowedUse,
    AssignmentMode,
    BGPConfiguration,
    BGPFilter,
    BGPFilterRule,
    BGPPeer,
    BindMode,
    BlockAffinity,
    Cidr,
    EncapMode,
    FilterAction,
    IPPool,
    JsonObject,
    JsonValue,
    LoadBalancerAggregation,
    LogSeverity,
    MatchOperator,
    MatchSource,
    NextHopMode,
    Node,
    NodeAddress,
    NodeBGP,
    NodeInterface,
    NodeWireguard,
    OrchRef,
    PeerType,
    PrefixAdvertisement,
    PrependASPath,
    ProgramClusterRoutes,
    ReportedAddress,
    Resource,
    ResourceKey,
    ReversePeering,
    SecretKeyRef,
    SetPriority,
    SourceAddress,
)
from routed.model.schema import KINDS, field_names, parse_manifest, to_manifest
from routed.model.selector import All, parse_selector
from routed.model.settings import FelixConfiguration
from routed.net.addresses import parse_address
from routed.net.prefixes import parse_prefix
from tests.model.examples import EXAMPLES


def manifest(kind: str, spec: JsonValue = None, name: str = "default", **more: JsonValue) -> JsonObject:
    made: JsonObject = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}}
    if spec is not None:
        made["spec"] = spec
    return made | more


def cidr(text: str) -> Cidr:
    return Cidr(*parse_prefix(text))


def refused(value: JsonValue, where: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(value, where)
    return caught.value


NODE = manifest(
    "Node",
    {
        "bgp": {
            "asNumber": 64513,
            "ipv4Address": "10.0.0.1/24",
            "ipv6Address": "fd5f::1/64",
            "ipv4IPIPTunnelAddr": "10.244.1.0",
            "routeReflectorClusterID": "244.0.0.1",
        },
        "ipv4VXLANTunnelAddr": "10.244.1.1",
        "vxlanTunnelMACAddr": "66:00:00:00:00:01",
        "ipv6VXLANTunnelAddr": "fd00::1",
        "vxlanTunnelMACAddrV6": "66-00-00-00-00-0A",
        "wireguard": {"interfaceIPv4Address": "10.9.0.1", "interfaceIPv6Address": "fd09::1"},
        "orchRefs": [{"nodeName": "node-1", "orchestrator": "k8s"}],
        "addresses": [
            {"address": "10.0.0.1/24", "type": "CalicoNodeIP"},
            {"address": "10.0.0.1", "type": "InternalIP"},
        ],
        "interfaces": [{"name": "eth0", "addresses": ["10.0.0.1"]}],
    },
    name="node-1",
    status={
        "wireguardPublicKey": "key=",
        "wireguardPublicKeyV6": "key6=",
        "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"],
    },
)
NODE["metadata"] = {
    "name": "node-1",
    "uid": "6f0c",
    "creationTimestamp": "2026-05-01T10:00:00Z",
    "resourceVersion": "12",
    "generation": 3,
    "labels": {"rack": "a", "projectcalico.org/route-reflector": "true", "empty": ""},
    "annotations": {"note": "any text at all"},
    "managedFields": [{"manager": "kubectl"}],
    "ownerReferences": [],
    "finalizers": ["x"],
}

CONFIGURATION = manifest(
    "BGPConfiguration",
    {
        "logSeverityScreen": "Debug",
        "nodeToNodeMeshEnabled": True,
        "asNumber": "1.10",
        "listenPort": 1790,
        "bindMode": "NodeIP",
        "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
        "serviceExternalIPs": [{"cidr": "203.0.113.7"}],
        "serviceLoadBalancerIPs": [{"cidr": "fd00:2::/112"}],
        "serviceLoadBalancerAggregation": "Disabled",
        "communities": [{"name": "bgp-large", "value": "64512:300:100"}],
        "prefixAdvertisements": [{"cidr": "10.244.0.0/16", "communities": ["bgp-large", "64512:120"]}],
        "nodeMeshPassword": {"secretKeyRef": {"name": "bgp-secrets", "key": "mesh", "optional": True}},
        "nodeMeshMaxRestartTime": "2m0s",
        "ignoredInterfaces": ["docker0", "br-*"],
        "localWorkloadPeeringIPV4": "169.254.0.179",
        "localWorkloadPeeringIPV6": "fd12::1",
        "programClusterRoutes": "EnabledNoEncapOnly",
        "ipv4NormalRoutePriority": 512,
        "ipv6NormalRoutePriority": 600,
    },
)

PEER = manifest(
    "BGPPeer",
    {
        "nodeSelector": "rack == 'a'",
        "peerIP": "10.0.0.254:1790",
        "asNumber": "65001",
        "localASNumber": 64999,
        "keepOriginalNextHop": False,
        "nextHopMode": "Self",
        "password": {"secretKeyRef": {"name": "bgp-secrets", "key": "tor"}},
        "sourceAddress": "None",
        "maxRestartTime": "120s",
        "keepaliveTime": "1.5s",
        "numAllowedLocalASNumbers": 1,
        "ttlSecurity": 1,
        "reachableBy": "10.0.0.253",
        "filters": ["no-default", "second"],
        "reversePeering": "Manual",
    },
    name="tor-a",
)

FILTER = manifest(
    "BGPFilter",
    {
        "importV4": [{"action": "Reject", "matchOperator": "Equal", "cidr": "0.0.0.0/0"}],
        "exportV4": [
            {
                "cidr": "10.244.0.0/16",
                "matchOperator": "In",
                "prefixLength": {"min": 26, "max": 32},
                "source": "RemotePeers",
                "interface": "*.calico",
                "peerType": "eBGP",
                "communities": {"values": ["64512:100"]},
                "asPathPrefix": [65001, "1.1"],
                "priority": 512,
                "action": "Accept",
                "operations": [
                    {"addCommunity": {"value": "64512:1:2"}},
                    {"prependASPath": {"prefix": [64512, 64512]}},
                    {"setPriority": {"value": 512}},
                ],
            },
            {"action": "Accept"},
        ],
        "importV6": [],
        "exportV6": [{"action": "Reject", "matchOperator": "NotIn", "cidr": "fd00::/8", "prefixLength": {"max": 64}}],
    },
    name="all-of-it",
)

POOL = manifest(
    "IPPool",
    {
        "cidr": "10.244.0.0/16",
        "vxlanMode": "Never",
        "ipipMode": "CrossSubnet",
        "natOutgoing": True,
        "disabled": False,
        "disableBGPExport": True,
        "blockSize": 24,
        "nodeSelector": "has(rack)",
        "namespaceSelector": "team == 'x'",
        "allowedUses": ["Workload"],
        "assignmentMode": "Manual",
    },
    status={"conditions": [{"type": "Ready"}]},
)

AFFINITY = manifest(
    "BlockAffinity",
    {"state": "pending", "node": "node-1", "cidr": "10.244.1.0/26", "deleted": "true", "type": "virtual"},
    name="node-1-10-244-1-0-26",
)
AFFINITY["apiVersion"] = "crd.projectcalico.org/v1"

ALL = {"Node": NODE, "BGPConfiguration": CONFIGURATION, "BGPPeer": PEER, "BGPFilter": FILTER, "IPPool": POOL}
ALL["BlockAffinity"] = AFFINITY
ALL |= EXAMPLES


def test_every_field_of_a_node() -> None:
    assert parse_manifest(NODE) == Node(
        name="node-1",
        labels={"rack": "a", "projectcalico.org/route-reflector": "true", "empty": ""},
        manifest=NODE,
        bgp=NodeBGP(
            as_number=64513,
            ipv4_address=NodeAddress(parse_address("10.0.0.1"), cidr("10.0.0.0/24").prefix),
            ipv6_address=NodeAddress(parse_address("fd5f::1"), cidr("fd5f::/64").prefix),
            ipv4_ipip_tunnel_addr=parse_address("10.244.1.0"),
            route_reflector_cluster_id=0xF4000001,
        ),
        ipv4_vxlan_tunnel_addr=parse_address("10.244.1.1"),
        vxlan_tunnel_mac_addr=bytes.fromhex("660000000001"),
        ipv6_vxlan_tunnel_addr=parse_address("fd00::1"),
        vxlan_tunnel_mac_addr_v6=bytes.fromhex("66000000000a"),
        orch_refs=(OrchRef("node-1", "k8s"),),
        wireguard=NodeWireguard(parse_address("10.9.0.1"), parse_address("fd09::1")),
        addresses=(
            ReportedAddress(NodeAddress(parse_address("10.0.0.1"), cidr("10.0.0.0/24").prefix), "CalicoNodeIP"),
            ReportedAddress(NodeAddress(parse_address("10.0.0.1"), cidr("10.0.0.1/32").prefix), "InternalIP"),
        ),
        interfaces=(NodeInterface("eth0", (parse_address("10.0.0.1"),)),),
        wireguard_public_key="key=",
        wireguard_public_key_v6="key6=",
        pod_cidrs=(cidr("10.244.1.0/24"), cidr("fd00:1::/64")),
    )


def test_every_field_of_a_bgp_configuration() -> None:
    large = b"".join(part.to_bytes(4, "big") for part in (64512, 300, 100))
    assert parse_manifest(CONFIGURATION) == BGPConfiguration(
        name="default",
        manifest=CONFIGURATION,
        log_severity_screen=LogSeverity.DEBUG,
        node_to_node_mesh_enabled=True,
        as_number=65546,
        listen_port=1790,
        bind_mode=BindMode.NODE_IP,
        service_cluster_ips=(cidr("10.96.0.0/12"),),
        service_external_ips=(cidr("203.0.113.7/32"),),
        service_load_balancer_ips=(cidr("fd00:2::/112"),),
        service_load_balancer_aggregation=LoadBalancerAggregation.DISABLED,
        communities=(("bgp-large", large),),
        prefix_advertisements=(PrefixAdvertisement(cidr("10.244.0.0/16"), (large, b"\xfc\x00\x00\x78")),),
        node_mesh_password=SecretKeyRef("bgp-secrets", "mesh", optional=True),
        node_mesh_max_restart_time=120.0,
        ignored_interfaces=("docker0", "br-*"),
        local_workload_peering_ipv4=parse_address("169.254.0.179"),
        local_workload_peering_ipv6=parse_address("fd12::1"),
        program_cluster_routes=ProgramClusterRoutes.ENABLED_NO_ENCAP_ONLY,
        ipv4_normal_route_priority=512,
        ipv6_normal_route_priority=600,
    )


def test_every_field_of_a_bgp_peer() -> None:
    assert parse_manifest(PEER) == BGPPeer(
        name="tor-a",
        manifest=PEER,
        node_selector=parse_selector("rack == 'a'"),
        peer_ip=parse_address("10.0.0.254"),
        peer_port=1790,
        as_number=65001,
        local_as_number=64999,
        next_hop_mode=NextHopMode.SELF,
        password=SecretKeyRef("bgp-secrets", "tor"),
        source_address=SourceAddress.NONE,
        max_restart_time=120.0,
        keepalive_time=1.5,
        num_allowed_local_as_numbers=1,
        ttl_security=1,
        reachable_by=parse_address("10.0.0.253"),
        filters=("no-default", "second"),
        reverse_peering=ReversePeering.MANUAL,
    )


def test_every_field_of_a_bgp_filter() -> None:
    assert parse_manifest(FILTER) == BGPFilter(
        name="all-of-it",
        manifest=FILTER,
        import_v4=(BGPFilterRule(FilterAction.REJECT, cidr("0.0.0.0/0").prefix, MatchOperator.EQUAL),),
        export_v4=(
            BGPFilterRule(
                action=FilterAction.ACCEPT,
                cidr=cidr("10.244.0.0/16").prefix,
                match_operator=MatchOperator.IN,
                prefix_length_min=26,
                prefix_length_max=32,
                source=MatchSource.REMOTE_PEERS,
                interface="*.calico",
                peer_type=PeerType.EBGP,
                communities=(b"\xfc\x00\x00\x64",),
                as_path_prefix=(65001, 65537),
                priority=512,
                operations=(
                    AddCommunity(bytes.fromhex("0000fc000000000100000002")),
                    PrependASPath((64512, 64512)),
                    SetPriority(512),
                ),
            ),
            BGPFilterRule(FilterAction.ACCEPT),
        ),
        export_v6=(
            BGPFilterRule(FilterAction.REJECT, cidr("fd00::/8").prefix, MatchOperator.NOT_IN, prefix_length_max=64),
        ),
    )


def test_every_field_of_an_ip_pool() -> None:
    assert parse_manifest(POOL) == IPPool(
        name="default",
        manifest=POOL,
        cidr=cidr("10.244.0.0/16"),
        ipip_mode=EncapMode.CROSS_SUBNET,
        nat_outgoing=True,
        disable_bgp_export=True,
        block_size=24,
        node_selector=parse_selector("has(rack)"),
        namespace_selector=parse_selector("team == 'x'"),
        allowed_uses=(AllowedUse.WORKLOAD,),
        assignment_mode=AssignmentMode.MANUAL,
    )


def test_every_field_of_a_block_affinity() -> None:
    affinity = parse_manifest(AFFINITY)
    assert affinity == BlockAffinity(
        name="node-1-10-244-1-0-26",
        manifest=AFFINITY,
        node="node-1",
        cidr=cidr("10.244.1.0/26"),
        state=AffinityState.PENDING,
        type=AffinityType.VIRTUAL,
        deleted=True,
    )
    assert affinity.key == ResourceKey("BlockAffinity", "node-1-10-244-1-0-26")


def test_defaults_are_calico_s() -> None:
    configuration = parse_manifest(manifest("BGPConfiguration"))
    assert configuration == BGPConfiguration(name="default", manifest=manifest("BGPConfiguration"))
    pool = parse_manifest(manifest("IPPool", {"cidr": "10.244.0.0/16"}))
    assert isinstance(pool, IPPool)
    assert (pool.block_size, pool.node_selector, pool.ipip_mode) == (26, All(), EncapMode.NEVER)
    assert pool.allowed_uses == (AllowedUse.WORKLOAD, AllowedUse.TUNNEL)
    pool = parse_manifest(manifest("IPPool", {"cidr": "fd00::/64"}))
    assert isinstance(pool, IPPool)
    assert pool.block_size == 122
    peer = parse_manifest(manifest("BGPPeer", {"peerIP": "fd00::1", "asNumber": 1}))
    assert isinstance(peer, BGPPeer)
    assert (peer.peer_ip, peer.peer_port, peer.is_global) == (parse_address("fd00::1"), None, True)
    assert (peer.source_address, peer.reverse_peering) == (SourceAddress.USE_NODE_IP, ReversePeering.AUTO)
    node = parse_manifest(manifest("Node", {}))
    assert isinstance(node, Node)
    assert node.bgp is None
    affinity = parse_manifest(manifest("BlockAffinity", {"node": "n", "cidr": "10.0.0.0/26", "state": ""}))
    assert isinstance(affinity, BlockAffinity)
    assert affinity.is_confirmed
    assert configuration.kind == "BGPConfiguration"


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("10.0.0.254", "10.0.0.254", None),
        ("10.0.0.254:1790", "10.0.0.254", 1790),
        ("fd00::1", "fd00::1", None),
        ("[fd00::1]:179", "fd00::1", 179),
        ("fe80::1", "fe80::1", None),
    ],
)
def test_port_forms(text: str, address: str, port: int | None) -> None:
    peer = parse_manifest(manifest("BGPPeer", {"peerIP": text, "asNumber": 1}))
    assert isinstance(peer, BGPPeer)
    assert (peer.peer_ip, peer.peer_port) == (parse_address(address), port)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120s", 120.0), ("2m0s", 120.0), ("1h", 3600.0), ("1m30.5s", 90.5), ("1500ms", 1.5), (".5m", 30.0), ("0", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    peer = parse_manifest(manifest("BGPPeer", {"peerSelector": "all()", "maxRestartTime": text}))
    assert isinstance(peer, BGPPeer)
    assert peer.max_restart_time == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["info", "INFO", "Info"])
def test_what_calico_reads_in_any_case(text: str) -> None:
    parsed = parse_manifest(manifest("BGPConfiguration", {"logSeverityScreen": text, "asNumber": 65010}))
    assert isinstance(parsed, BGPConfiguration)
    assert (parsed.log_severity_screen, parsed.as_number) == (LogSeverity.INFO, 65010)


@pytest.mark.parametrize("text", ["drop", "DROP", "Drop"])
def test_felix_s_action_too(text: str) -> None:
    parsed = parse_manifest(manifest("FelixConfiguration", {"defaultEndpointToHostAction": text}))
    assert isinstance(parsed, FelixConfiguration)
    assert parsed.default_endpoint_to_host_action == "Drop"


@pytest.mark.parametrize("kind", ["Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool", "BlockAffinity"])
def test_null_and_empty_text_are_absent(kind: str) -> None:
    """As for Calico's own reader: a template that leaves `node: ""` behind is no error."""
    minimal: dict[str, JsonObject] = {
        "BGPPeer": {"peerSelector": "all()"},
        "IPPool": {"cidr": "10.0.0.0/8"},
        "BlockAffinity": {"node": "n", "cidr": "10.0.0.0/26"},
    }
    spec = minimal.get(kind, {})
    names = {path.split(".")[1] for path in field_names(kind) if path.startswith("spec.")}
    blank = spec | {name: None for name in names if name not in spec}
    before, after = parse_manifest(manifest(kind, spec)), parse_manifest(manifest(kind, blank))
    assert _without_manifest(before) == _without_manifest(after)


def _without_manifest(resource: Resource) -> str:
    return repr(resource)  # which leaves the manifest out


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    resource = parse_manifest(ALL[kind])
    copied = to_manifest(resource)
    assert parse_manifest(copied) == resource
    assert parse_manifest(json.loads(json.dumps(copied))) == resource
    copied["kind"] = "changed"
    assert resource.manifest["kind"] == schema.KIND_TABLE[kind].manifest_kind
    assert hash(resource) == hash(parse_manifest(ALL[kind]))


PEER_BY_IP: JsonObject = {"peerIP": "10.0.0.1", "asNumber": 65001}
ACCEPT_IN: JsonObject = {"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In"}


def rule(**changes: JsonValue) -> JsonObject:
    return manifest("BGPFilter", {"exportV4": [{"action": "Reject"}, ACCEPT_IN | changes]}, name="f")


@pytest.mark.parametrize(
    ("value", "path", "sentence"),
    [
        # the head
        (None, "", "must be an object"),
        ([], "", "must be an object"),
        ({}, "kind", "must be one of BGPConfiguration, BGPFilter"),
        (manifest("BGPPear"), "kind", "did you mean BGPPeer?"),
        (manifest("LiveMigration"), "kind", "does not read"),
        (manifest("Deployment"), "kind", "must be one of"),
        (manifest("Pod"), "apiVersion", "must be v1 for a Pod"),
        (manifest("Node", apiVersion="v1"), "apiVersion", 'must be projectcalico.org/v3 for a Node, not "v1"'),
        (manifest("IPPool", apiVersion="v1"), "apiVersion", "projectcalico.org/v3 or crd.projectcalico.org/v1"),
        (manifest("Node", speck={}), "speck", "did you mean spec?"),
        (manifest("Node", metadata=None), "metadata", "is required"),
        (manifest("Node", metadata={}), "metadata.name", "is required"),
        (manifest("Node", metadata={"name": "UP"}), "metadata.name", "lower case"),
        (manifest("Node", metadata={"name": 5}), "metadata.name", "write it in quotes"),
        (manifest("Node", metadata={"name": "a", "lables": {}}), "metadata.lables", "did you mean labels?"),
        (manifest("Node", metadata={"name": "a", "namespace": "x"}), "metadata.namespace", "whole cluster"),
        (manifest("Node", metadata={"name": "a", "labels": {"x": True}}), "metadata.labels.x", "write it in quotes"),
        (manifest("Node", metadata={"name": "a", "labels": {"a b": ""}}), 'metadata.labels["a b"]', "label name"),
        (manifest("Node", metadata={"name": "a", "labels": {"a": "b c"}}), "metadata.labels.a", "letter or digit"),
        (manifest("Node", metadata={"name": "a", "labels": []}), "metadata.labels", "object of texts"),
        (manifest("Node", []), "spec", "must be an object with fields, not a list"),
        (manifest("IPPool", status="x"), "status", "must be an object"),
        # Node
        (manifest("Node", {"bgp": {}}), "spec.bgp", "must not be empty"),
        (manifest("Node", {"bgp": {"ipv4Address": "fd00::1/64"}}), "spec.bgp.ipv4Address", "an IPv4 address"),
        (manifest("Node", {"bgp": {"ipv4Address": "10.0.0.1/33"}}), "spec.bgp.ipv4Address", "10.0.0.1/24"),
        (manifest("Node", {"bgp": {"ipv4Address": "0.0.0.0/24"}}), "spec.bgp.ipv4Address", "one host"),
        (manifest("Node", {"bgp": {"ipv6Address": "10.0.0.1"}}), "spec.bgp.ipv6Address", "fd00::1/64"),
        (manifest("Node", {"bgp": {"asNumber": 0}}), "spec.bgp.asNumber", "RFC 7607"),
        (manifest("Node", {"bgp": {"asNumber": 1.1}}), "spec.bgp.asNumber", "in quotes"),
        (manifest("Node", {"bgp": {"asNumber": 4294967296}}), "spec.bgp.asNumber", "1 to 4294967295"),
        (manifest("Node", {"bgp": {"asNumber": True}}), "spec.bgp.asNumber", "AS number"),
        (
            manifest("Node", {"bgp": {"routeReflectorClusterID": "0.0.0.0"}}),
            "spec.bgp.routeReflectorClusterID",
            "0.0.0.0",
        ),
        (manifest("Node", {"bgp": {"routeReflectorClusterID": "x"}}), "spec.bgp.routeReflectorClusterID", "IPv4"),
        (manifest("Node", {"vxlanTunnelMACAddr": "66:00"}), "spec.vxlanTunnelMACAddr", "MAC address"),
        (manifest("Node", {}, status={"podCIDRs": ["10.0.0.0/24", "x"]}), "status.podCIDRs[1]", "prefix"),
        (manifest("Node", {}, status={"podCIDR": "x"}), "status.podCIDR", "did you mean podCIDRs?"),
        # BGPConfiguration
        (
            manifest("BGPConfiguration", {"nodeToNodeMeshEnabled": False, "nodeMeshMaxRestartTime": "1s"}),
            "spec.nodeMeshMaxRestartTime",
            "nodeToNodeMeshEnabled is false",
        ),
        (manifest("BGPConfiguration", {"nodeToNodeMeshEnabled": "yes"}), "spec.nodeToNodeMeshEnabled", "true or false"),
        (manifest("BGPConfiguration", {"listenPort": 0}), "spec.listenPort", "1 to 65535"),
        (manifest("BGPConfiguration", {"bindMode": "nodeip"}), "spec.bindMode", "did you mean NodeIP?"),
        (manifest("BGPConfiguration", {"ignoredInterfaces": ["*"]}), "spec.ignoredInterfaces[0]", "interface"),
        (
            manifest("BGPConfiguration", {"communities": [{"name": "x", "value": "1:65536"}]}),
            "spec.communities[0].value",
            "community",
        ),
        (
            manifest("BGPConfiguration", {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["x"]}]}),
            "spec.prefixAdvertisements[0].communities[0]",
            "names no community",
        ),
        (
            manifest("BGPConfiguration", {"prefixAdvertisements": [{"cidr": "10.0.0.0/8"}]}),
            "spec.prefixAdvertisements[0].communities",
            "is required",
        ),
        (
            manifest("BGPConfiguration", {"nodeMeshPassword": {"secretKeyRef": {"name": "x"}}}),
            "spec.nodeMeshPassword.secretKeyRef.key",
            "is required",
        ),
        # BGPPeer
        (manifest("BGPPeer", {}), "spec", "names no peer"),
        (manifest("BGPPeer", {"peerIp": "10.0.0.1"}), "spec.peerIp", "did you mean peerIP?"),
        (manifest("BGPPeer", {"zzz": 1}), "spec.zzz", "known are asNumber"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerIP": "10.0.0.1:0"}), "spec.peerIP", "a port is 1 to 65535"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerIP": "10.0.0.1:70000"}), "spec.peerIP", "a port is 1 to 65535"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerIP": "10.0.0"}), "spec.peerIP", "10.0.0.254:1790"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerIP": "[fd00::1]"}), "spec.peerIP", "[fd00::1]:179"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerIP": "fe80::1%eth0"}), "spec.peerIP", "must be an address"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerIP": "224.0.0.1"}), "spec.peerIP", "one host"),
        (manifest("BGPPeer", PEER_BY_IP | {"peerSelector": "all()"}), "spec.peerIP", "where peerSelector is set"),
        (manifest("BGPPeer", {"peerSelector": "all()", "asNumber": 1}), "spec.asNumber", "where peerSelector is set"),
        (manifest("BGPPeer", PEER_BY_IP | {"node": "a", "nodeSelector": "all()"}), "spec.node", "nodeSelector is set"),
        (manifest("BGPPeer", {"localWorkloadSelector": "all()"}), "spec.asNumber", "is required with localWorkload"),
        (manifest("BGPPeer", PEER_BY_IP | {"localWorkloadSelector": "all()"}), "spec.peerIP", "left out"),
        (
            manifest("BGPPeer", {"localWorkloadSelector": "all()", "peerSelector": "all()", "asNumber": 1}),
            "spec.peerSelector",
            "left out where localWorkloadSelector is set",
        ),
        (manifest("BGPPeer", PEER_BY_IP | {"nodeSelector": "rack = 'a'"}), "spec.nodeSelector", "at character 6"),
        (manifest("BGPPeer", PEER_BY_IP | {"reachableBy": "fd00::1"}), "spec.reachableBy", "peerIP's family"),
        (
            manifest("BGPPeer", PEER_BY_IP | {"keepOriginalNextHop": True, "nextHopMode": "Keep"}),
            "spec.nextHopMode",
            "keepOriginalNextHop",
        ),
        (manifest("BGPPeer", PEER_BY_IP | {"maxRestartTime": 120}), "spec.maxRestartTime", 'such as "120s"'),
        (manifest("BGPPeer", PEER_BY_IP | {"maxRestartTime": "120"}), "spec.maxRestartTime", "duration"),
        (manifest("BGPPeer", PEER_BY_IP | {"keepaliveTime": "-5s"}), "spec.keepaliveTime", "from 0 to"),
        (manifest("BGPPeer", PEER_BY_IP | {"keepaliveTime": "9" * 12 + "h"}), "spec.keepaliveTime", "from 0 to"),
        (manifest("BGPPeer", PEER_BY_IP | {"ttlSecurity": 256}), "spec.ttlSecurity", "0 to 255"),
        (manifest("BGPPeer", PEER_BY_IP | {"filters": "x"}), "spec.filters", "must be a list"),
        (manifest("BGPPeer", PEER_BY_IP | {"filters": ["x", 1]}), "spec.filters[1]", "must be text"),
        (manifest("BGPPeer", PEER_BY_IP | {"sourceAddress": "useNodeIP"}), "spec.sourceAddress", "mean UseNodeIP?"),
        # BGPFilter
        (manifest("BGPFilter", {"exportV4": [{}]}), "spec.exportV4[0].action", "Accept or Reject"),
        (manifest("BGPFilter", {"exportv4": []}), "spec.exportv4", "did you mean exportV4?"),
        (rule(matchOperater="In"), "spec.exportV4[1].matchOperater", "did you mean matchOperator?"),
        (rule(matchOperator="Inside"), "spec.exportV4[1].matchOperator", "Equal, NotEqual, In or NotIn"),
        (rule(matchOperator=None), "spec.exportV4[1].matchOperator", "is required with cidr"),
        (rule(cidr=None), "spec.exportV4[1].cidr", "is required with matchOperator"),
        (rule(cidr="fd00::/8"), "spec.exportV4[1].cidr", "IPv4 prefix"),
        (rule(cidr="10.0.0.1/8"), "spec.exportV4[1].cidr", "the prefix is 10.0.0.0/8"),
        (rule(cidr="10.0.0.0/255.0.0.0"), "spec.exportV4[1].cidr", "IPv4 prefix"),
        (rule(action="accept"), "spec.exportV4[1].action", "did you mean Accept?"),
        (rule(source="Remote"), "spec.exportV4[1].source", "RemotePeers"),
        (rule(interface="a-name-too-long-for-linux"), "spec.exportV4[1].interface", "15 characters"),
        (rule(peerType="EBGP"), "spec.exportV4[1].peerType", "did you mean eBGP?"),
        (rule(prefixLength={"min": 33}), "spec.exportV4[1].prefixLength.min", "0 to 32"),
        (rule(prefixLength={"min": 24, "max": 16}), "spec.exportV4[1].prefixLength.max", "min 24"),
        (rule(prefixLength={"max": 7}), "spec.exportV4[1].prefixLength.max", "the /8 of cidr"),
        (rule(cidr=None, matchOperator=None, prefixLength={}), "spec.exportV4[1].prefixLength", "with cidr"),
        (rule(communities={"values": []}), "spec.exportV4[1].communities.values", "exactly one"),
        (rule(communities={"values": ["1:2", "3:4"]}), "spec.exportV4[1].communities.values", "exactly one"),
        (rule(communities={"values": ["1:2:3:4"]}), "spec.exportV4[1].communities.values[0]", '"a:b:c"'),
        (rule(asPathPrefix=[0]), "spec.exportV4[1].asPathPrefix[0]", "RFC 7607"),
        (rule(priority=0), "spec.exportV4[1].priority", "1 to 2147483646"),
        (rule(action="Reject", operations=[{"setPriority": {"value": 1}}]), "spec.exportV4[1].operations", "Accept"),
        (rule(operations=[{}]), "spec.exportV4[1].operations[0]", "exactly one of addCommunity"),
        (rule(operations=[{"setPriority": {}}]), "spec.exportV4[1].operations[0].setPriority.value", "is required"),
        (
            rule(operations=[{"setPriority": {"value": 1}, "addCommunity": {"value": "1:1"}}]),
            "spec.exportV4[1].operations[0]",
            "exactly",
        ),
        (
            rule(operations=[{"prependASPath": {"prefix": []}}]),
            "spec.exportV4[1].operations[0].prependASPath.prefix",
            "1 to 10",
        ),
        (rule(operations=[{"setPriority": {"value": 1}}] * 11), "spec.exportV4[1].operations", "at most 10"),
        # IPPool, BlockAffinity
        (manifest("IPPool"), "spec.cidr", "is required"),
        (manifest("IPPool", {"cidr": "10.244.0.1/16"}), "spec.cidr", "the prefix is 10.244.0.0/16"),
        (manifest("IPPool", {"cidr": "10.0.0.0/27"}), "spec.cidr", "at least one block of /26"),
        (manifest("IPPool", {"cidr": "169.254.1.0/24"}), "spec.cidr", "link-local"),
        (manifest("IPPool", {"cidr": "fe00::/8"}), "spec.cidr", "link-local"),
        (manifest("IPPool", {"cidr": "fd00::/64", "ipipMode": "Always"}), "spec.ipipMode", "Never for an IPv6 pool"),
        (
            manifest("IPPool", {"cidr": "10.0.0.0/8", "ipipMode": "Always", "vxlanMode": "Always"}),
            "spec.vxlanMode",
            "where ipipMode is Always",
        ),
        (manifest("IPPool", {"cidr": "10.0.0.0/8", "blockSize": 19}), "spec.blockSize", "20 to 32"),
        (manifest("IPPool", {"cidr": "fd00::/64", "blockSize": 26}), "spec.blockSize", "116 to 128"),
        (manifest("IPPool", {"cidr": "10.0.0.0/8", "allowedUses": ["Pods"]}), "spec.allowedUses[0]", "Workload"),
        (
            manifest("IPPool", {"cidr": "10.0.0.0/8", "allowedUses": ["Workload", "LoadBalancer"]}),
            "spec.allowedUses",
            "combine",
        ),
        (manifest("BlockAffinity", {"cidr": "10.0.0.0/26"}), "spec.node", "is required"),
        (manifest("BlockAffinity", {"node": "n", "cidr": "10.0.0.0/26", "state": "sure"}), "spec.state", "confirmed"),
        (manifest("BlockAffinity", {"node": "n", "cidr": "10.0.0.0/26", "deleted": "no"}), "spec.deleted", "true or"),
    ],
)
def test_refused_with_the_field_and_a_sentence(value: JsonValue, path: str, sentence: str) -> None:
    error = refused(value)
    assert error.path == path
    assert sentence in error.message


def test_where_is_put_before_the_path() -> None:
    assert refused(manifest("BGPPeer", {}), "items[3]").path == "items[3].spec"
    assert refused(manifest("X"), "items[3]").path == "items[3].kind"
    assert refused(7, "items[3]").path == "items[3]"


def test_hostile_text_is_escaped_and_cut() -> None:
    error = refused(manifest("BGPPeer", PEER_BY_IP | {"peerIP": "\x1b[31m\u202e" + "x" * 1000}))
    assert str(error).isascii()
    assert "\x1b" not in str(error)
    assert len(str(error)) < 250
    error = refused(manifest("BGPPeer", {"\x1b" * 1000: 1}))
    assert len(error.path) < 100
    assert "\x1b" not in str(error)


def _all_names() -> list[str]:
    names: set[str] = set()

    def walk(value: JsonValue) -> None:
        if isinstance(value, dict):
            names.update(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    for one in ALL.values():
        walk(one)
    return sorted(names)


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "10.0.0.1",
            "10.0.0.0/8",
            "fd00::/8",
            "[::1]:1",
            "all()",
            "1:2",
            "120s",
            "Accept",
            "In",
            "65001",
            "²",
            "\uff11",
        ]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(_all_names()), TEXTS), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_any_json_is_parsed_or_refused(value: JsonValue) -> None:
    with contextlib.suppress(ConfigError):
        parse_manifest(value)


def _places(value: JsonValue, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [here] if here else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inner:
        found += _places(child, (*here, name))
    return found


@settings(max_examples=300)
@given(st.data())
def test_any_change_of_a_good_manifest_is_parsed_or_refused(data: st.DataObject) -> None:
    good = ALL[data.draw(st.sampled_from(KINDS))]
    changed = json.loads(json.dumps(good))
    place = data.draw(st.sampled_from(_places(good)))
    around = changed
    for name in place[:-1]:
        around = around[name]
    around[place[-1]] = data.draw(VALUES)
    try:
        resource = parse_manifest(changed)
    except ConfigError:
        return
    assert parse_manifest(to_manifest(resource)) == resource
