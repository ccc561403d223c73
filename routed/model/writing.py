"""What Calico's API server refuses to have written, though whoever reads it stored takes it.

What is stored already is read as Calico's own components read it, so these rules are no part of a kind's: they are asked
where a person hands over a manifest (`routedctl apply`). They are those of Calico's validator and of the rules beside its
types that are not about one field's form, which the kinds themselves check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from routed.model.fields import shown
from routed.model.resources import JsonObject, JsonValue, Resource
from routed.net.addresses import parse_address

_POLICIES = ("GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy")
_ONLY_DEFAULT = ("ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_WITH_PORTS = frozenset(("TCP", "UDP", "SCTP", 6, 17, 132, "6", "17", "132"))
_TCP = ("TCP", 6, "6")
_EVERYTHING = ("0.0.0.0/0", "::/0")


def refusals(resource: Resource) -> list[str]:
    """Why it may not be written, `field: sentence` each."""
    spec = _object(resource.manifest.get("spec"))
    kind = resource.kind
    if kind in _POLICIES:
        return list(_policy(spec, of_cluster="Global" in kind))
    if kind == "IPPool":
        return list(_pool(spec))
    if kind in ("HostEndpoint", "WorkloadEndpoint"):
        return list(_endpoint(spec))
    if kind == "BGPConfiguration" and spec.get("communities") and not spec.get("prefixAdvertisements"):
        return ["spec.communities: are of no use without prefixAdvertisements"]
    if kind == "Tier" and not (_LABEL.fullmatch(resource.name) and len(resource.name) <= 63):
        return [f"metadata.name: must be at most 63 of a-z, 0-9 and '-', with no dot, not {shown(resource.name)}"]
    if kind in _ONLY_DEFAULT and resource.name != "default":
        return [f"metadata.name: must be default, the only {kind} there is"]
    return []


def _policy(spec: JsonObject, *, of_cluster: bool) -> Iterator[str]:
    types = _list(spec.get("types"))
    if len({str(each) for each in types}) < len(types):
        yield "spec.types: names a type twice"
    for field in ("selector", "serviceAccountSelector", *(("namespaceSelector",) if of_cluster else ())):
        yield from _no_global(spec.get(field), f"spec.{field}")
    for field in ("doNotTrack", "preDNAT"):
        if spec.get(field) is True and spec.get("applyOnForward") is not True:
            yield f"spec.{field}: takes applyOnForward: true"
    for direction in ("ingress", "egress"):
        for index, rule in enumerate(_list(spec.get(direction))):
            yield from _rule(_object(rule), f"spec.{direction}[{index}]", egress=direction == "egress")


def _rule(rule: JsonObject, path: str, *, egress: bool) -> Iterator[str]:
    versions: set[bool] = set()
    for end in ("source", "destination"):
        entity, where = _object(rule.get(end)), f"{path}.{end}"
        yield from _no_global(entity.get("selector"), f"{where}.selector")
        for field in ("nets", "notNets"):
            for index, net in enumerate(_list(entity.get(field))):
                versions.add(":" in str(net))
                if field == "notNets" and net in _EVERYTHING:
                    yield f"{where}.{field}[{index}]: {net} is everything, so that nothing would match"
        for field in ("ports", "notPorts"):
            for index, port in enumerate(_list(entity.get(field))):
                if str(port).partition(":")[0] == "0":
                    yield f"{where}.{field}[{index}]: a port is 1 to 65535, not {shown(port)}"
    if len(versions) > 1:
        yield f"{path}: has networks of IPv4 and of IPv6; make two rules of it"
    http = rule.get("http")
    if http is None:
        return
    if egress:
        yield f"{path}.http: is for ingress rules only"
    if rule.get("protocol") not in (None, *_TCP):
        yield f"{path}.http: takes protocol TCP, or none"
    methods = _list(_object(http).get("methods"))
    if len({str(each) for each in methods}) < len(methods):
        yield f"{path}.http.methods: names a method twice"


def _pool(spec: JsonObject) -> Iterator[str]:
    for field in ("nodeSelector", "namespaceSelector"):
        yield from _no_global(spec.get(field), f"spec.{field}", where="a pool")
    uses = _list(spec.get("allowedUses"))
    if "Tunnel" in uses and spec.get("namespaceSelector"):
        yield "spec.namespaceSelector: must be left out where allowedUses has Tunnel"
    if "LoadBalancer" not in uses:
        return
    for field in ("ipipMode", "vxlanMode"):
        if spec.get(field) not in (None, "", "Never"):
            yield f"spec.{field}: must be Never where allowedUses has LoadBalancer"
    if spec.get("disableBGPExport") is True:
        yield "spec.disableBGPExport: must be false where allowedUses has LoadBalancer"
    if spec.get("nodeSelector") not in (None, "", "all()"):
        yield "spec.nodeSelector: must be all() where allowedUses has LoadBalancer"


def _endpoint(spec: JsonObject) -> Iterator[str]:
    for index, port in enumerate(_list(spec.get("ports"))):
        if _object(port).get("protocol") not in _WITH_PORTS:
            yield f"spec.ports[{index}].protocol: must be TCP, UDP or SCTP, which have ports"
    own = {_address(net) for net in _list(spec.get("ipNetworks"))}
    for index, nat in enumerate(_list(spec.get("ipNATs"))):
        inside = _object(nat).get("internalIP")
        if _address(inside) not in own:
            yield f"spec.ipNATs[{index}].internalIP: {shown(inside)} is none of spec.ipNetworks"


def _no_global(selector: JsonValue, field: str, where: str = "a namespaceSelector of a rule's end") -> Iterator[str]:
    if isinstance(selector, str) and "global(" in selector:
        only = "is not for pools" if where == "a pool" else f"may only be used in {where}"
        yield f"{field}: global() {only}"


def _address(value: JsonValue) -> bytes:
    """Packed; a workload's networks are single addresses."""
    return parse_address(str(value).partition("/")[0])


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
