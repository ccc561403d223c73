"""Workloads' endpoints as they are stored: found right in one go, their manifests read when somebody asks.

A cluster has tens of thousands of them, and a node with policy follows them all. What policy asks of one is read at once by
a compiled decoder; the rest stays octets, a tenth of what the objects of a manifest are.

Invariants: what `plain_endpoint` takes, the reader (`workloads`) takes too, as the same resource; of what it does not take
it says nothing, so the reader looks and says what is wrong. An `UnreadEndpoint` equals the endpoint it stands for.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import msgspec

from routed.model.fields import plain_host, plain_mac
from routed.model.head import are_labels, is_name, is_namespace
from routed.model.plain import PlainMetadata
from routed.model.policies import PROTOCOLS
from routed.model.resources import JsonObject, ResourceKey, Unread
from routed.model.workloads import (
    BRIDGE,
    EndpointPort,
    WorkloadEndpoint,
    is_interface,
    is_segment,
    workload_endpoint_name,
)

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_HostPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Word = Annotated[str, msgspec.Meta(min_length=1)]


class _Metadata(PlainMetadata, kw_only=True, gc=False):
    namespace: _Word
    generateName: str | None = None


class _NamedPort(msgspec.Struct, forbid_unknown_fields=True):
    port: _Port
    protocol: str
    name: str | None = None
    hostPort: _HostPort | None = None


class _Spec(msgspec.Struct, forbid_unknown_fields=True):
    """What Calico's plugin writes of a pod, and ours; everything else is for the reader."""

    orchestrator: Literal["k8s"]
    node: _Word
    pod: _Word
    endpoint: _Word
    containerID: str | None = None
    serviceAccountName: str | None = None
    ipNetworks: list[str] | None = None
    profiles: list[_Word] | None = None
    interfaceName: str | None = None
    mac: str | None = None
    ports: list[_NamedPort] | None = None


class _Endpoint(msgspec.Struct, forbid_unknown_fields=True):
    apiVersion: Literal["projectcalico.org/v3"]
    kind: Literal["WorkloadEndpoint"]
    metadata: _Metadata
    spec: _Spec


_DECODER = msgspec.json.Decoder(_Endpoint)


class UnreadEndpoint(Unread, WorkloadEndpoint):
    """See the module's docstring."""

    __slots__ = ()


def plain_endpoint(octets: bytes, key: ResourceKey | None = None) -> UnreadEndpoint | None:
    """The endpoint that is stored so; `key` is what its path says, where there is one. None: the reader must look."""
    try:
        read = _DECODER.decode(octets)
    except (msgspec.DecodeError, RecursionError):
        return None
    metadata, spec = read.metadata, read.spec
    name, namespace = metadata.name, metadata.namespace
    if key is not None and (name, namespace) != (key.name, key.namespace):
        return None
    segments = (spec.node, spec.orchestrator, spec.pod, spec.endpoint)
    if name != workload_endpoint_name(segments) or not all(map(is_segment, segments)):
        return None
    labels = metadata.labels or {}
    if not (is_name(name) and is_namespace(namespace) and are_labels(labels)):
        return None
    interface = spec.interfaceName or ""
    if (interface and not is_interface(interface)) or BRIDGE in (metadata.annotations or ()) or b"\n" in octets:
        return None
    networks = [plain_host(text) for text in spec.ipNetworks or ()]
    mac = plain_mac(spec.mac) if spec.mac else None
    if None in networks or (spec.mac and mac is None):
        return None
    ports = []
    for port in spec.ports or ():
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None:
            return None
        ports.append(EndpointPort(port.name or "", protocol, port.port, port.hostPort or 0))
    return UnreadEndpoint(
        name=name,
        namespace=namespace,
        labels=labels,
        manifest=cast("JsonObject", octets),
        orchestrator=spec.orchestrator,
        node=spec.node,
        container_id=spec.containerID or "",
        pod=spec.pod,
        endpoint=spec.endpoint,
        service_account_name=spec.serviceAccountName or "",
        ip_networks=tuple(network for network in networks if network is not None),
        profiles=tuple(spec.profiles or ()),
        interface_name=interface,
        mac=mac,
        ports=tuple(ports),
    )
