"""What an API server refuses to have written, though whoever reads it stored takes it.

What is stored already is read as Calico's own components read it, so these rules are no part of a kind's: they are asked
where a person hands over a manifest (`routedctl apply`). They are those of Calico's validator and of the rules beside its
types that are not about one field's form, which the kinds themselves check. Those of policies are in `writing_policies`,
those of Kubernetes' API in `writing_kubernetes`. Limits of size that only some versions have are not among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from routed.errors import ConfigError
from routed.model.fields import Fields, shown
from routed.model.head import is_name
from routed.model.resources import JsonValue, Resource
from routed.model.writing_kubernetes import NAMED_PORT, check_written, is_port_name
from routed.model.writing_policies import (
    POLICIES,
    STAGED,
    check_annotations,
    check_policy,
    check_rules,
    no_global,
    staged,
)
from routed.net.addresses import parse_address

_OF_KUBERNETES = ("KubernetesNetworkPolicy", "Namespace", "Pod")
_ONLY_DEFAULT = ("ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_INTERFACE = re.compile(r"\*|[a-zA-Z0-9_.-]{1,15}")
_WITH_PORTS = frozenset(("TCP", "UDP", "SCTP", 6, 17, 132, "6", "17", "132"))
TIER_ORDERS: Mapping[str, int] = {
    "default": 1_000_000,
    "kube-admin": 1_000,
    "kube-baseline": 10_000_000,
    "adminnetworkpolicy": 1_000,
    "baselineadminnetworkpolicy": 10_000_000,
}
"""Tiers Calico makes, and the orders at which it wants them."""
_PORT_RANGES = 7
"""Node port ranges that one rule of iptables takes."""


def refusals(resource: Resource) -> list[ConfigError]:
    """Why it may not be written, each with its field."""
    top = Fields(resource.manifest, "")
    spec = top.object("spec") or Fields({}, "", "spec")
    return [*_metadata(top), *_of_kind(resource, spec)]


def _metadata(top: Fields) -> Iterator[ConfigError]:
    metadata = top.object("metadata")
    if metadata is None:
        return
    for name in metadata.text_map("labels"):
        if "/" in name and not is_name(name.partition("/")[0]):
            yield Fields({}, metadata, "labels").error(name, "must have a DNS name before the slash")
    yield from check_annotations(metadata)


def _of_kind(resource: Resource, spec: Fields) -> Iterator[ConfigError]:
    kind = resource.kind
    if kind in POLICIES:
        yield from check_policy(resource.name, kind, spec)
    elif kind in STAGED:
        yield from staged(resource, spec)
    elif kind in _OF_KUBERNETES:
        yield from check_written(resource, spec)
    elif kind == "Profile":
        yield from check_rules(spec)
    elif kind == "IPPool":
        yield from _pool(spec)
    elif kind in ("HostEndpoint", "WorkloadEndpoint"):
        yield from _endpoint(spec, of_host=kind == "HostEndpoint")
    elif kind in ("NetworkSet", "GlobalNetworkSet") and "projectcalico.org/namespace" in resource.labels:
        yield ConfigError("metadata.labels", "must not hold projectcalico.org/namespace, which Calico sets itself")
    elif kind == "BGPConfiguration" and spec.has("communities") and not spec.values.get("prefixAdvertisements"):
        yield spec.error("communities", "are of no use without prefixAdvertisements")
    elif kind == "FelixConfiguration":
        yield from _felix(spec)
    elif kind == "Tier":
        yield from _tier(resource.name, spec)
    elif kind in _ONLY_DEFAULT and resource.name != "default":
        yield ConfigError("metadata.name", f"must be default, the only {kind} there is")


def _tier(name: str, spec: Fields) -> Iterator[ConfigError]:
    if not (_LABEL.fullmatch(name) and len(name) <= 63):
        yield ConfigError("metadata.name", f"must be at most 63 of a-z, 0-9 and '-', with no dot, not {shown(name)}")
    wanted = TIER_ORDERS.get(name)
    if wanted is not None and spec.number("order") != wanted:
        yield spec.error("order", f"must be {wanted} for the tier {name}, which Calico has there")


def _pool(spec: Fields) -> Iterator[ConfigError]:
    for field in ("nodeSelector", "namespaceSelector"):
        yield from no_global(spec, field, "is not for pools")
    uses = spec.texts("allowedUses")
    if "Tunnel" in uses and spec.has("namespaceSelector"):
        yield spec.error("namespaceSelector", "must be left out where allowedUses has Tunnel")
    if "LoadBalancer" not in uses:
        return
    for field in ("ipipMode", "vxlanMode"):
        if spec.text(field) not in ("", "Never"):
            yield spec.error(field, "must be Never where allowedUses has LoadBalancer")
    if spec.boolean("disableBGPExport"):
        yield spec.error("disableBGPExport", "must be false where allowedUses has LoadBalancer")
    if spec.text("nodeSelector") not in ("", "all()"):
        yield spec.error("nodeSelector", "must be all() where allowedUses has LoadBalancer")


def _endpoint(spec: Fields, *, of_host: bool) -> Iterator[ConfigError]:
    for port in spec.objects("ports"):
        name = port.text("name")
        if port.values.get("protocol") not in _WITH_PORTS:
            yield port.error("protocol", "must be TCP, UDP or SCTP, which have ports")
        if name and not is_port_name(name):
            yield port.error("name", f"{NAMED_PORT}, not {shown(name)}")
        elif not name and of_host:
            yield port.error("name", "is required")
        elif not name and not port.values.get("hostPort"):
            yield port.error("name", "is required where there is no hostPort")
    for path, profile in spec.array("profiles"):
        if not is_name(str(profile)):
            yield ConfigError(path, f"must be the name of a Profile, not {shown(profile)}")
    interface = spec.text("interfaceName")
    if interface and not _INTERFACE.fullmatch(interface):
        yield spec.error(
            "interfaceName", f'must be at most 15 letters, digits, "-", "_" and ".", not {shown(interface)}'
        )
    if not is_name(spec.text("node")):
        yield spec.error("node", f"must be the name of a Node, not {shown(spec.text('node'))}")
    own = {_address(net) for net in spec.texts("ipNetworks")}
    for nat in spec.objects("ipNATs"):
        inside = nat.text("internalIP")
        if _address(inside) not in own:
            yield nat.error("internalIP", f"{shown(inside)} is none of spec.ipNetworks")


def _felix(spec: Fields) -> Iterator[ConfigError]:
    for name in ("failsafeInboundHostPorts", "failsafeOutboundHostPorts"):
        for port in spec.objects(name):
            # the API has it in capitals, what Felix itself is configured with has not
            if str(port.values.get("protocol") or "TCP").upper() not in _WITH_PORTS:
                yield port.error("protocol", "must be TCP, UDP or SCTP, which have ports")
    for path, node in _array(spec, "externalNodesList"):
        if ":" in str(node):
            yield ConfigError(path, f"must be an IPv4 prefix, not {shown(node)}")
    ranges = _array(spec, "kubeNodePortRanges")
    if len(ranges) > _PORT_RANGES:
        yield spec.error("kubeNodePortRanges", f"has more than {_PORT_RANGES} ranges")
    for path, ports in ranges:
        if not re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5})?", str(ports)):
            yield ConfigError(path, f'must be a port or a range such as "30000:32767", not {shown(ports)}')
    if spec.values.get("routeTableRange") is not None and spec.values.get("routeTableRanges") is not None:
        yield spec.error("routeTableRange", "must be left out where routeTableRanges is set")


def _array(spec: Fields, name: str) -> list[tuple[str, JsonValue]]:
    """A list nobody has read; nothing where it is none."""
    return list(spec.array(name)) if isinstance(spec.values.get(name), list) else []


def _address(text: str) -> bytes:
    """Packed; a workload's networks are single addresses."""
    return parse_address(text.partition("/")[0])
