"""Endpoints: what policies apply to and addresses belong to, on a node (workloads) or of one (hosts).

Invariants: everything is frozen; a WorkloadEndpoint's name follows Calico's rule for it, both ways. Which labels an
endpoint inherits from its profiles is `policy/`'s business.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar

from routed.errors import ConfigError
from routed.model.fields import Fields, as_address, as_network, as_text, shown
from routed.model.head import Head, Kind, kind_shape
from routed.model.policies import as_protocol
from routed.model.resources import Cidr, Resource
from routed.net.families import Family
from routed.values import dataclass

#: How the names of workloads' interfaces begin, as Calico has them and routed makes them.
INTERFACE_PREFIX = "cali"

#: What identifies a workload's endpoint after the node, by orchestrator: the fields its name is made of.
NAME_SEGMENTS: Mapping[str, tuple[str, ...]] = {
    "k8s": ("node", "orchestrator", "pod", "endpoint"),
    "cni": ("node", "orchestrator", "containerID", "endpoint"),
    "libnetwork": ("node", "orchestrator", "workload", "endpoint"),
}
_OTHER_SEGMENTS = ("node", "orchestrator", "workload", "endpoint")
#: The annotation of an endpoint whose interface is a port of a bridge: the bridge's name.
BRIDGE = "routed/bridge"
#: The annotation of an endpoint for what of it the Kubernetes API says, and goes on saying while the pod lives, since nobody
#: had who is asked before: some of FOLLOWED, with blanks between.
FOLLOWS = "routed/follows"
FOLLOWED = ("labels", "serviceAccountName", "ports")
#: What bridges of pods are called, so that no endpoint can say of an uplink that it is one.
BRIDGE_NAME = re.compile(r"routed[A-Za-z0-9_-]{0,9}")

_INTERFACE = re.compile(r"[^/\s]{1,15}")
_INTERFACE_OCTETS = 15
_QOS = (
    "ingressBandwidth", "egressBandwidth", "ingressBurst", "egressBurst", "ingressPeakrate", "egressPeakrate",
    "ingressMinburst", "egressMinburst", "ingressPacketRate", "egressPacketRate", "ingressPacketBurst",
    "egressPacketBurst", "ingressMaxConnections", "egressMaxConnections", "dscp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """A named port of an endpoint."""

    name: str
    protocol: int
    port: int
    host_port: int = 0
    host_ip: bytes | None = None


@dataclass(frozen=True, slots=True)
class IPNAT:
    """A floating address: `external` reaches `internal`."""

    internal: bytes
    external: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEndpoint(Resource):
    kind: ClassVar[str] = "WorkloadEndpoint"

    orchestrator: str
    workload: str = ""
    node: str
    container_id: str = ""
    pod: str = ""
    endpoint: str
    service_account_name: str = ""
    ip_networks: tuple[Cidr, ...] = ()
    """Host prefixes. Without any the endpoint is not one yet."""
    ip_nats: tuple[IPNAT, ...] = ()
    ipv4_gateway: bytes | None = None
    ipv6_gateway: bytes | None = None
    profiles: tuple[str, ...] = ()
    interface_name: str = ""
    bridge: str = ""
    """The bridge its interface is a port of; empty: of none."""
    mac: bytes | None = None
    ports: tuple[EndpointPort, ...] = ()
    allow_spoofed_source_prefixes: tuple[Cidr, ...] = ()
    qos_controls: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEndpoint(Resource):
    """An interface of a node, or (`*`) all of them."""

    kind: ClassVar[str] = "HostEndpoint"

    node: str
    interface_name: str = ""
    expected_ips: tuple[bytes, ...] = ()
    """Packed octets."""
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


def workload_endpoint_name(segments: tuple[str, ...]) -> str:
    """The name that the segments (see NAME_SEGMENTS) make: joined by "-", each "-" inside one doubled."""
    return "-".join(segment.replace("-", "--") for segment in segments)


def is_segment(text: str) -> bool:
    """Whether it may be part of an endpoint's name."""
    return text != "" and text[0] != "-" and text[-1] != "-"


def _bridge(head: Head) -> str:
    metadata = head.top.object("metadata")
    assert metadata is not None
    name = metadata.text_map("annotations").get(BRIDGE, "")
    if name and not BRIDGE_NAME.fullmatch(name):
        raise metadata.error("annotations", f'{BRIDGE} must be a name that begins with "routed", not {shown(name)}')
    return name


def _parse_workload_endpoint(head: Head) -> WorkloadEndpoint:
    spec = head.spec
    orchestrator = spec.required_text("orchestrator")
    segments = tuple(spec.text(name) for name in NAME_SEGMENTS.get(orchestrator, _OTHER_SEGMENTS))
    for name, segment in zip(NAME_SEGMENTS.get(orchestrator, _OTHER_SEGMENTS), segments, strict=True):
        if not is_segment(segment):
            raise spec.error(
                name, f'is part of the name, so it must be there and not begin or end with "-": {shown(segment)}'
            )
    made = workload_endpoint_name(segments)
    if head.name != made:
        raise ConfigError(
            head.top.at("metadata.name"), f"must be {shown(made)}, from the endpoint's fields, not {shown(head.name)}"
        )
    networks = tuple(as_network(as_text(value, path), path) for path, value in spec.array("ipNetworks"))
    for (path, value), network in zip(spec.array("ipNetworks"), networks, strict=True):
        if network.prefix[0] != network.family.max_length:
            raise ConfigError(path, f"must be one address, not {shown(value)}")
    qos = spec.object("qosControls")
    interface = spec.text("interfaceName")
    if interface and not is_interface(interface):
        raise spec.error("interfaceName", f"must be an interface name of at most 15 octets, not {shown(interface)}")
    return WorkloadEndpoint(
        **head.common,
        orchestrator=orchestrator,
        workload=spec.text("workload"),
        node=spec.required_text("node"),
        container_id=spec.text("containerID"),
        pod=spec.text("pod"),
        endpoint=spec.required_text("endpoint"),
        service_account_name=spec.text("serviceAccountName"),
        ip_networks=networks,
        ip_nats=tuple(_parse_nat(entry) for entry in spec.objects("ipNATs")),
        ipv4_gateway=spec.address("ipv4Gateway", Family.IPV4_UNICAST),
        ipv6_gateway=spec.address("ipv6Gateway", Family.IPV6_UNICAST),
        profiles=spec.texts("profiles"),
        interface_name=interface,
        bridge=_bridge(head),
        mac=spec.mac("mac"),
        ports=_parse_ports(spec),
        allow_spoofed_source_prefixes=tuple(
            as_network(as_text(value, path), path) for path, value in spec.array("allowSpoofedSourcePrefixes")
        ),
        qos_controls={}
        if qos is None
        else {name: qos.integer(name, 0, 1 << 63) or 0 for name in _QOS if qos.has(name)},
    )


def interface_of(seed: str) -> str:
    """The node's end of a pod as Calico calls it: the prefix and eleven digits of a hash."""
    return INTERFACE_PREFIX + hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()[:11]


def is_interface(name: str) -> bool:
    """Whether the kernel takes it for an interface's name."""
    return _INTERFACE.fullmatch(name) is not None and len(name.encode(errors="replace")) <= _INTERFACE_OCTETS


def _parse_nat(entry: Fields) -> IPNAT:
    internal = as_address(entry.required_text("internalIP"), entry.at("internalIP"))
    external = as_address(entry.required_text("externalIP"), entry.at("externalIP"))
    if len(internal) != len(external):
        raise entry.error("externalIP", "must be of internalIP's family")
    return IPNAT(internal, external)


def _parse_ports(spec: Fields) -> tuple[EndpointPort, ...]:
    found: list[EndpointPort] = []
    for entry in spec.objects("ports"):
        port = entry.integer("port", 1, 65535)
        if port is None:
            raise entry.error("port", "is required")
        if not entry.has("protocol"):
            raise entry.error("protocol", "is required")
        found.append(
            EndpointPort(
                name=entry.text("name"),
                protocol=as_protocol(entry.values["protocol"], entry.at("protocol")),
                port=port,
                host_port=entry.integer("hostPort", 0, 65535) or 0,
                host_ip=entry.address("hostIP"),
            )
        )
    return tuple(found)


def _parse_host_endpoint(head: Head) -> HostEndpoint:
    spec = head.spec
    interface = spec.text("interfaceName")
    expected = tuple(as_address(as_text(value, path), path) for path, value in spec.array("expectedIPs"))
    if interface and not is_interface(interface):
        raise spec.error(
            "interfaceName", f'must be "*" or an interface name of at most 15 octets, not {shown(interface)}'
        )
    if not interface and not expected:
        raise spec.error("interfaceName", "is required where there are no expectedIPs")
    return HostEndpoint(
        **head.common,
        node=spec.required_text("node"),
        interface_name=interface,
        expected_ips=expected,
        profiles=spec.texts("profiles"),
        ports=_parse_ports(spec),
    )


_PORTS = "ports { hostIP hostPort name port protocol }"

KINDS = (
    Kind(
        name=WorkloadEndpoint.kind,
        plural="workloadendpoints",
        short=("wep", "weps"),
        namespaced=True,
        read=_parse_workload_endpoint,
        shape=kind_shape(f"""
            spec {{
                allowSpoofedSourcePrefixes containerID endpoint interfaceName ipNATs {{ externalIP internalIP }}
                ipNetworks ipv4Gateway ipv6Gateway mac node orchestrator pod {_PORTS} profiles
                qosControls {{ {" ".join(_QOS)} }} serviceAccountName workload
            }}
            status
        """),
    ),
    Kind(
        name=HostEndpoint.kind,
        plural="hostendpoints",
        short=("hep", "heps"),
        read=_parse_host_endpoint,
        shape=kind_shape("spec { expectedIPs interfaceName node ports { name port protocol } profiles } status"),
    ),
)
