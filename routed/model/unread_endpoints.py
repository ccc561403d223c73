"""Workloads' endpoints as they are stored: found right in one go, their manifests read when somebody asks.

A cluster has tens of thousands of them, and a node with policy follows them all. What policy asks of one is read at once by
a compiled decoder; the rest stays octets, a tenth of what the objects of a manifest are.

Invariants: what `plain_endpoint` takes, the reader (`workloads`) takes too, as the same resource; of what it does not take
it says nothing, so the reader looks and says what is wrong. An `UnreadEndpoint` equals the endpoint it stands for.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

import msgspec

from routed.model.fields import plain_host, plain_mac
from routed.model.head import are_labels, is_name, is_namespace
from routed.model.policies import PROTOCOLS
from routed.model.resources import JsonObject, Resource, ResourceKey
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


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    namespace: _Word
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    uid: str | None = None
    creationTimestamp: str | None = None
    resourceVersion: str | None = None
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


class UnreadEndpoint(WorkloadEndpoint):
    """See the module's docstring."""

    __slots__ = ("_octets", "_read")
    _octets: bytes
    """Empty where the manifest is another one than was stored."""
    _read: JsonObject | None

    @property
    def manifest(self) -> JsonObject:
        if self._read is None:
            object.__setattr__(self, "_read", json.loads(self._octets))
        return self._read or {}

    @manifest.setter
    def manifest(self, value: JsonObject) -> None:  # what makes a resource, or a changed copy of one, sets all fields
        object.__setattr__(self, "_read", value)
        object.__setattr__(self, "_octets", b"")

    def manifest_text(self) -> bytes:
        return self._octets or super().manifest_text()

    def says_the_same(self, other: Resource) -> bool:
        if isinstance(other, UnreadEndpoint) and self._octets and other._octets:  # nothing is kept of a comparison
            return self._octets == other._octets or json.loads(self._octets) == json.loads(other._octets)
        return super().says_the_same(other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkloadEndpoint):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _COMPARED) and self.says_the_same(other)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in _HASHED))


_COMPARED = tuple(field.name for field in dataclasses.fields(WorkloadEndpoint) if field.name != "manifest")
_HASHED = tuple(field.name for field in dataclasses.fields(WorkloadEndpoint) if field.hash is not False)


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
    made = UnreadEndpoint(
        name=name,
        namespace=namespace,
        labels=labels,
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
    object.__setattr__(made, "_octets", octets)
    object.__setattr__(made, "_read", None)
    return made
