"""What each kind of resource may say: a manifest becomes a `Resource`, or a ConfigError with the exact field.

Invariants: the fields, defaults and rules are Calico's v3 API (projectcalico.org/v3, and crd.projectcalico.org/v1 as
the Kubernetes datastore writes it); an unknown kind, version or field is refused, never ignored, since a misspelt
filter rule lets routes through. A few things Calico lets pass and then ignores are refused too, where they can only
be mistakes: a peer that names nobody, an address without an AS number, AS 0, a rule whose length window is empty.
`parse_manifest(to_manifest(r)) == r` for every resource. What a resource means for this node is decided in `plan/`.

Long for one idea: a parser a kind, to be read beside Calico's API reference from top to bottom.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from routed.errors import ConfigError
from routed.model.fields import (
    Fields,
    as_address,
    as_as_number,
    as_choice,
    as_cidr,
    as_community,
    as_node_address,
    as_text,
    field_path,
    nearest,
    one_of,
    shown,
)
from routed.model.resources import (
    DEFAULT_ROUTE_PRIORITY,
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
    FilterOperation,
    IPPool,
    JsonObject,
    JsonValue,
    LoadBalancerAggregation,
    LogSeverity,
    MatchOperator,
    MatchSource,
    NextHopMode,
    Node,
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
    ReversePeering,
    SecretKeyRef,
    SetPriority,
    SourceAddress,
)
from routed.model.selector import All
from routed.net.families import Family
from routed.net.prefixes import covers, parse_prefix

API_VERSION = "projectcalico.org/v3"
CRD_API_VERSION = "crd.projectcalico.org/v1"

#: Seconds of graceful restart time that fit the capability's 12 bits (RFC 4724 section 3).
MAX_RESTART_TIME = 4095
#: A third of the longest hold time (RFC 4271 section 4.2).
MAX_KEEPALIVE_TIME = 21845
#: LOCAL_PREF is 2147483647 minus a priority and must stay positive.
MAX_PRIORITY = 2147483646

_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = (
    "annotations", "clusterName", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers",
    "generateName", "generation", "labels", "managedFields", "name", "namespace", "ownerReferences", "resourceVersion",
    "selfLink", "uid",
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_INTERFACE_GLOB = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")

_LINK_LOCAL = (parse_prefix("169.254.0.0/16"), parse_prefix("fe80::/10"))


@dataclass(frozen=True, slots=True)
class _Head:
    """What every kind has in common, already read."""

    name: str
    labels: Mapping[str, str]
    manifest: JsonObject
    spec: JsonValue
    spec_path: str
    status: JsonValue
    status_path: str


def parse_manifest(manifest: JsonValue, where: str = "") -> Resource:
    """The resource a manifest describes. `where` is put before the field paths of errors (as in `items[3]`).

    Raises ConfigError. The resource keeps `manifest` itself, so it must not be changed afterwards.
    """
    top = Fields(manifest, where, _TOP) if _says_known_kind(manifest) else _refuse_kind(manifest, where)
    kind = top.required_text("kind")
    version = top.required_text("apiVersion")
    versions = (API_VERSION,) if kind == Node.kind else (API_VERSION, CRD_API_VERSION)
    if version not in versions:
        raise top.error("apiVersion", f"must be {one_of(versions)} for a {kind}, not {shown(version)}")
    name, labels = _parse_metadata(top)
    head = _Head(
        name=name,
        labels=labels,
        manifest=top.values,
        spec={} if top.values.get("spec") is None else top.values["spec"],
        spec_path=top.at("spec"),
        status=top.values.get("status"),
        status_path=top.at("status"),
    )
    if head.status is not None and not isinstance(head.status, dict):
        raise top.error("status", f"must be an object, not {shown(head.status)}")
    return _PARSERS[kind](head)


def to_manifest(resource: Resource) -> JsonObject:
    """A deep copy of the manifest a resource was parsed from, to be changed and written back."""
    return copy.deepcopy(resource.manifest)


def _says_known_kind(manifest: JsonValue) -> bool:
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    return isinstance(kind, str) and kind in _PARSERS


def _refuse_kind(manifest: JsonValue, where: str) -> Fields:
    # The kind comes first: complaining about fields of a kind we do not have would only lead astray.
    top = Fields(manifest, where, manifest if isinstance(manifest, dict) else ())
    kind = top.text("kind")
    if kind in OTHER_KINDS:
        raise top.error("kind", f"is {kind}, a kind of Calico's that routed does not read")
    raise top.error("kind", f"must be {one_of(KINDS)}, not {shown(kind)}{nearest(kind, KINDS)}")


def _parse_metadata(top: Fields) -> tuple[str, Mapping[str, str]]:
    metadata = top.object("metadata", _METADATA)
    if metadata is None:
        raise top.error("metadata", "is required, with the resource's name")
    name = metadata.required_text("name")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise metadata.error(
            "name", f'must be lower case letters, digits, "-" and ".", at most 253 of them, not {shown(name)}'
        )
    if metadata.has("namespace"):
        raise metadata.error("namespace", "must be left out: this kind belongs to the whole cluster")
    for field in ("uid", "resourceVersion", "generateName", "creationTimestamp", "deletionTimestamp"):
        metadata.text(field)
    return name, _parse_labels(metadata)


def _parse_labels(metadata: Fields) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for field in ("annotations", "labels"):
        value = metadata.values.get(field)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise metadata.error(field, f"must be an object of texts, not {shown(value)}")
        for key, text in value.items():
            path = field_path(metadata.at(field), key)
            if not isinstance(text, str):
                hint = "; write it in quotes" if isinstance(text, (bool, int, float)) else ""
                raise ConfigError(path, f"must be text, not {shown(text)}{hint}")
            if field == "labels":
                if not _LABEL_NAME.fullmatch(key):
                    raise ConfigError(path, f"is not a label name: {shown(key)}")
                if not _LABEL_VALUE.fullmatch(text):
                    raise ConfigError(
                        path,
                        'must be at most 63 letters, digits, "-", "_" and ".", beginning and ending with a letter or '
                        f"digit, not {shown(text)}",
                    )
                labels[key] = text
    return labels


# --- Node ----------------------------------------------------------------------------------------------------------

_NODE_SPEC = (
    "addresses", "bgp", "interfaces", "ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr", "orchRefs", "vxlanTunnelMACAddr",
    "vxlanTunnelMACAddrV6", "wireguard",
)  # fmt: skip
_NODE_BGP = ("asNumber", "ipv4Address", "ipv4IPIPTunnelAddr", "ipv6Address", "routeReflectorClusterID")
_NODE_STATUS = ("podCIDRs", "wireguardPublicKey", "wireguardPublicKeyV6")


def _parse_node(head: _Head) -> Node:
    spec = Fields(head.spec, head.spec_path, _NODE_SPEC)
    status = Fields(head.status or {}, head.status_path, _NODE_STATUS)
    return Node(
        name=head.name,
        labels=head.labels,
        manifest=head.manifest,
        bgp=_parse_node_bgp(spec),
        ipv4_vxlan_tunnel_addr=spec.address("ipv4VXLANTunnelAddr", Family.IPV4_UNICAST),
        vxlan_tunnel_mac_addr=spec.mac("vxlanTunnelMACAddr"),
        ipv6_vxlan_tunnel_addr=spec.address("ipv6VXLANTunnelAddr", Family.IPV6_UNICAST),
        vxlan_tunnel_mac_addr_v6=spec.mac("vxlanTunnelMACAddrV6"),
        orch_refs=tuple(_parse_orch_ref(value, path) for path, value in spec.array("orchRefs")),
        wireguard=_parse_wireguard(spec),
        addresses=tuple(_parse_reported_address(value, path) for path, value in spec.array("addresses")),
        interfaces=tuple(_parse_node_interface(value, path) for path, value in spec.array("interfaces")),
        wireguard_public_key=status.text("wireguardPublicKey"),
        wireguard_public_key_v6=status.text("wireguardPublicKeyV6"),
        pod_cidrs=tuple(as_cidr(as_text(value, path), path) for path, value in status.array("podCIDRs")),
    )


def _parse_node_bgp(spec: Fields) -> NodeBGP | None:
    bgp = spec.object("bgp", _NODE_BGP)
    if bgp is None:
        return None
    if not any(bgp.has(name) for name in _NODE_BGP):
        raise spec.error(
            "bgp", "must not be empty: set ipv4Address or ipv6Address, or leave bgp out for a node without BGP"
        )
    cluster_id = bgp.address("routeReflectorClusterID", Family.IPV4_UNICAST)
    if cluster_id == bytes(4):
        raise bgp.error("routeReflectorClusterID", "must not be 0.0.0.0; leave it out for a node that reflects nothing")
    return NodeBGP(
        as_number=bgp.as_number("asNumber"),
        ipv4_address=bgp.node_address("ipv4Address", Family.IPV4_UNICAST),
        ipv6_address=bgp.node_address("ipv6Address", Family.IPV6_UNICAST),
        ipv4_ipip_tunnel_addr=bgp.address("ipv4IPIPTunnelAddr", Family.IPV4_UNICAST),
        route_reflector_cluster_id=None if cluster_id is None else int.from_bytes(cluster_id, "big"),
    )


def _parse_wireguard(spec: Fields) -> NodeWireguard | None:
    wireguard = spec.object("wireguard", ("interfaceIPv4Address", "interfaceIPv6Address"))
    if wireguard is None:
        return None
    return NodeWireguard(
        interface_ipv4_address=wireguard.address("interfaceIPv4Address", Family.IPV4_UNICAST),
        interface_ipv6_address=wireguard.address("interfaceIPv6Address", Family.IPV6_UNICAST),
    )


def _parse_orch_ref(value: JsonValue, path: str) -> OrchRef:
    ref = Fields(value, path, ("nodeName", "orchestrator"))
    return OrchRef(node_name=ref.text("nodeName"), orchestrator=ref.required_text("orchestrator"))


def _parse_reported_address(value: JsonValue, path: str) -> ReportedAddress:
    entry = Fields(value, path, ("address", "type"))
    address = as_node_address(entry.required_text("address"), entry.at("address"), None)
    return ReportedAddress(address=address, type=entry.text("type"))


def _parse_node_interface(value: JsonValue, path: str) -> NodeInterface:
    entry = Fields(value, path, ("addresses", "name"))
    addresses = tuple(as_address(as_text(one, at), at) for at, one in entry.array("addresses"))
    return NodeInterface(name=entry.text("name"), addresses=addresses)


# --- BGPConfiguration ----------------------------------------------------------------------------------------------

_BGP_CONFIGURATION_SPEC = (
    "asNumber", "bindMode", "communities", "ignoredInterfaces", "ipv4NormalRoutePriority", "ipv6NormalRoutePriority",
    "listenPort", "localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6", "logSeverityScreen", "nodeMeshMaxRestartTime",
    "nodeMeshPassword", "nodeToNodeMeshEnabled", "prefixAdvertisements", "programClusterRoutes", "serviceClusterIPs",
    "serviceExternalIPs", "serviceLoadBalancerAggregation", "serviceLoadBalancerIPs",
)  # fmt: skip
_ONLY_IN_DEFAULT = ("asNumber", "nodeToNodeMeshEnabled", "nodeMeshPassword", "nodeMeshMaxRestartTime")


def _parse_bgp_configuration(head: _Head) -> BGPConfiguration:
    spec = Fields(head.spec, head.spec_path, _BGP_CONFIGURATION_SPEC)
    if head.name != "default":
        for field in _ONLY_IN_DEFAULT:
            if spec.has(field):
                raise spec.error(field, f"may only be set in the BGPConfiguration named default, not in {head.name}")
    mesh = spec.boolean("nodeToNodeMeshEnabled")
    if mesh is False:
        for field in ("nodeMeshPassword", "nodeMeshMaxRestartTime"):
            if spec.has(field):
                raise spec.error(field, "must be left out where nodeToNodeMeshEnabled is false")
    communities = tuple(_parse_named_community(value, path) for path, value in spec.array("communities"))
    named = dict(communities)
    return BGPConfiguration(
        name=head.name,
        labels=head.labels,
        manifest=head.manifest,
        log_severity_screen=spec.choice("logSeverityScreen", LogSeverity),
        node_to_node_mesh_enabled=mesh,
        as_number=spec.as_number("asNumber"),
        listen_port=spec.integer("listenPort", 1, 65535),
        bind_mode=spec.choice("bindMode", BindMode) or BindMode.NONE,
        service_cluster_ips=_parse_cidr_blocks(spec, "serviceClusterIPs"),
        service_external_ips=_parse_cidr_blocks(spec, "serviceExternalIPs"),
        service_load_balancer_ips=_parse_cidr_blocks(spec, "serviceLoadBalancerIPs"),
        service_load_balancer_aggregation=spec.choice("serviceLoadBalancerAggregation", LoadBalancerAggregation)
        or LoadBalancerAggregation.ENABLED,
        communities=communities,
        prefix_advertisements=tuple(
            _parse_prefix_advertisement(value, path, named) for path, value in spec.array("prefixAdvertisements")
        ),
        node_mesh_password=_parse_password(spec, "nodeMeshPassword"),
        node_mesh_max_restart_time=spec.duration("nodeMeshMaxRestartTime", 0, MAX_RESTART_TIME),
        ignored_interfaces=tuple(
            _parse_ignored_interface(value, path) for path, value in spec.array("ignoredInterfaces")
        ),
        local_workload_peering_ipv4=spec.address("localWorkloadPeeringIPV4", Family.IPV4_UNICAST),
        local_workload_peering_ipv6=spec.address("localWorkloadPeeringIPV6", Family.IPV6_UNICAST),
        program_cluster_routes=spec.choice("programClusterRoutes", ProgramClusterRoutes)
        or ProgramClusterRoutes.ENABLED,
        ipv4_normal_route_priority=spec.integer("ipv4NormalRoutePriority", 1, MAX_PRIORITY) or DEFAULT_ROUTE_PRIORITY,
        ipv6_normal_route_priority=spec.integer("ipv6NormalRoutePriority", 1, MAX_PRIORITY) or DEFAULT_ROUTE_PRIORITY,
    )


def _parse_named_community(value: JsonValue, path: str) -> tuple[str, bytes]:
    entry = Fields(value, path, ("name", "value"))
    name = entry.required_text("name")
    return name, as_community(entry.required_text("value"), entry.at("value"))


def _parse_prefix_advertisement(value: JsonValue, path: str, named: Mapping[str, bytes]) -> PrefixAdvertisement:
    entry = Fields(value, path, ("cidr", "communities"))
    cidr = as_cidr(entry.required_text("cidr"), entry.at("cidr"))
    communities: list[bytes] = []
    for at, element in entry.array("communities"):
        text = as_text(element, at)
        if text not in named and ":" not in text:
            raise ConfigError(at, f"names no community of spec.communities: {shown(text)}{nearest(text, named)}")
        communities.append(named[text] if text in named else as_community(text, at))
    if not communities:
        raise entry.error("communities", "is required, with at least one community")
    return PrefixAdvertisement(cidr=cidr, communities=tuple(communities))


def _parse_cidr_blocks(spec: Fields, name: str) -> tuple[Cidr, ...]:
    found: list[Cidr] = []
    for path, value in spec.array(name):
        entry = Fields(value, path, ("cidr",))
        found.append(as_cidr(entry.required_text("cidr"), entry.at("cidr")))
    return tuple(found)


def _parse_ignored_interface(value: JsonValue, path: str) -> str:
    text = as_text(value, path)
    if not _INTERFACE_GLOB.fullmatch(text) or text == "*":
        raise ConfigError(
            path, f'must be an interface name of at most 15 characters, or one with "*" in it, not {shown(text)}'
        )
    return text


def _parse_password(spec: Fields, name: str) -> SecretKeyRef | None:
    password = spec.object(name, ("secretKeyRef",))
    ref = password and password.object("secretKeyRef", ("key", "name", "optional"))
    if not ref:
        return None
    return SecretKeyRef(ref.required_text("name"), ref.required_text("key"), ref.boolean("optional") or False)


# --- BGPPeer -------------------------------------------------------------------------------------------------------

_BGP_PEER_SPEC = (
    "asNumber", "filters", "keepOriginalNextHop", "keepaliveTime", "localASNumber", "localWorkloadSelector",
    "maxRestartTime", "nextHopMode", "node", "nodeSelector", "numAllowedLocalASNumbers", "password", "peerIP",
    "peerSelector", "reachableBy", "reversePeering", "sourceAddress", "ttlSecurity",
)  # fmt: skip


def _parse_bgp_peer(head: _Head) -> BGPPeer:
    spec = Fields(head.spec, head.spec_path, _BGP_PEER_SPEC)
    spec.exclude("nodeSelector", "node")
    spec.exclude("localWorkloadSelector", "peerIP", "peerSelector", "reachableBy")
    spec.exclude("peerSelector", "peerIP", "asNumber", "reachableBy")
    if not any(spec.has(name) for name in ("peerIP", "peerSelector", "localWorkloadSelector")):
        raise ConfigError(head.spec_path, "names no peer: set peerIP, or peerSelector, or localWorkloadSelector")
    peer_ip, peer_port = spec.address_and_port("peerIP") or (None, None)
    as_number = spec.as_number("asNumber")
    if as_number is None and spec.has("localWorkloadSelector"):
        raise spec.error("asNumber", "is required with localWorkloadSelector")
    reachable_by = spec.address("reachableBy")
    if reachable_by is not None and (peer_ip is None or len(peer_ip) != len(reachable_by)):
        raise spec.error("reachableBy", "must be an address of peerIP's family")
    keep = spec.boolean("keepOriginalNextHop") or False
    next_hop_mode = spec.choice("nextHopMode", NextHopMode)
    if keep and next_hop_mode is not None:
        raise spec.error("nextHopMode", "must be left out where keepOriginalNextHop is true")
    return BGPPeer(
        name=head.name,
        labels=head.labels,
        manifest=head.manifest,
        node=spec.text("node"),
        node_selector=spec.selector("nodeSelector"),
        peer_ip=peer_ip,
        peer_port=peer_port,
        as_number=as_number,
        local_as_number=spec.as_number("localASNumber"),
        peer_selector=spec.selector("peerSelector"),
        local_workload_selector=spec.selector("localWorkloadSelector"),
        keep_original_next_hop=keep,
        next_hop_mode=next_hop_mode,
        password=_parse_password(spec, "password"),
        source_address=spec.choice("sourceAddress", SourceAddress) or SourceAddress.USE_NODE_IP,
        max_restart_time=spec.duration("maxRestartTime", 0, MAX_RESTART_TIME),
        keepalive_time=spec.duration("keepaliveTime", 1, MAX_KEEPALIVE_TIME),
        num_allowed_local_as_numbers=spec.integer("numAllowedLocalASNumbers", 0, 0x7FFFFFFF) or 0,
        ttl_security=spec.integer("ttlSecurity", 1, 255),
        reachable_by=reachable_by,
        filters=tuple(as_text(value, path) for path, value in spec.array("filters")),
        reverse_peering=spec.choice("reversePeering", ReversePeering) or ReversePeering.AUTO,
    )


# --- BGPFilter -----------------------------------------------------------------------------------------------------

_BGP_FILTER_SPEC = ("exportV4", "exportV6", "importV4", "importV6")
_RULE = (
    "action", "asPathPrefix", "cidr", "communities", "interface", "matchOperator", "operations", "peerType",
    "prefixLength", "priority", "source",
)  # fmt: skip
_OPERATIONS = ("addCommunity", "prependASPath", "setPriority")


def _parse_bgp_filter(head: _Head) -> BGPFilter:
    spec = Fields(head.spec, head.spec_path, _BGP_FILTER_SPEC)
    return BGPFilter(
        name=head.name,
        labels=head.labels,
        manifest=head.manifest,
        import_v4=_parse_rules(spec, "importV4", Family.IPV4_UNICAST),
        import_v6=_parse_rules(spec, "importV6", Family.IPV6_UNICAST),
        export_v4=_parse_rules(spec, "exportV4", Family.IPV4_UNICAST),
        export_v6=_parse_rules(spec, "exportV6", Family.IPV6_UNICAST),
    )


def _parse_rules(spec: Fields, name: str, family: Family) -> tuple[BGPFilterRule, ...]:
    return tuple(_parse_rule(Fields(value, path, _RULE), family) for path, value in spec.array(name))


def _parse_rule(rule: Fields, family: Family) -> BGPFilterRule:
    action = rule.choice("action", FilterAction)
    if action is None:
        raise rule.error("action", f"is required: {one_of([str(one) for one in FilterAction])}")
    cidr = rule.cidr("cidr", family)
    operator = rule.choice("matchOperator", MatchOperator)
    if cidr is not None and operator is None:
        raise rule.error("matchOperator", f"is required with cidr: {one_of([str(one) for one in MatchOperator])}")
    if cidr is None and operator is not None:
        raise rule.error("cidr", "is required with matchOperator")
    interface = rule.text("interface")
    if interface and not _INTERFACE_GLOB.fullmatch(interface):
        raise rule.error(
            "interface", f'must be an interface name of at most 15 characters, "*" for any run, not {shown(interface)}'
        )
    low, high = _parse_prefix_length(rule, cidr, family)
    operations = tuple(_parse_operation(value, path) for path, value in rule.array("operations"))
    if operations and action is not FilterAction.ACCEPT:
        raise rule.error("operations", "may only be used with action Accept")
    if len(operations) > 10:
        raise rule.error("operations", f"must be at most 10 operations, not {len(operations)}")
    return BGPFilterRule(
        action=action,
        cidr=None if cidr is None else cidr.prefix,
        match_operator=operator,
        prefix_length_min=low,
        prefix_length_max=high,
        source=rule.choice("source", MatchSource),
        interface=interface,
        peer_type=rule.choice("peerType", PeerType),
        communities=_parse_community_match(rule),
        as_path_prefix=tuple(as_as_number(value, path) for path, value in rule.array("asPathPrefix")),
        priority=rule.integer("priority", 1, MAX_PRIORITY),
        operations=operations,
    )


def _parse_prefix_length(rule: Fields, cidr: Cidr | None, family: Family) -> tuple[int | None, int | None]:
    window = rule.object("prefixLength", ("max", "min"))
    if window is None:
        return None, None
    if cidr is None:
        raise rule.error("prefixLength", "may only be used with cidr")
    low = window.integer("min", 0, family.max_length)
    high = window.integer("max", 0, family.max_length)
    if high is not None and high < max(low or 0, cidr.prefix[0]):
        least = f"min {low}" if low is not None and low > cidr.prefix[0] else f"the /{cidr.prefix[0]} of cidr"
        raise window.error("max", f"must not be shorter than {least}, or no route can match; it is {high}")
    return low, high


def _parse_community_match(rule: Fields) -> tuple[bytes, ...]:
    match = rule.object("communities", ("values",))
    if match is None:
        return ()
    values = tuple(as_community(value, path) for path, value in match.array("values"))
    if len(values) != 1:
        raise match.error("values", f"must be exactly one community, not {len(values)}")
    return values


def _parse_operation(value: JsonValue, path: str) -> FilterOperation:
    operation = Fields(value, path, _OPERATIONS)
    if sum(operation.values.get(name) is not None for name in _OPERATIONS) != 1:
        raise ConfigError(path, f"must be exactly {one_of(_OPERATIONS)}")
    add = operation.object("addCommunity", ("value",))
    if add:
        return AddCommunity(as_community(add.required_text("value"), add.at("value")))
    prepend = operation.object("prependASPath", ("prefix",))
    if prepend:
        numbers = tuple(as_as_number(number, at) for at, number in prepend.array("prefix"))
        if not 1 <= len(numbers) <= 10:
            raise prepend.error("prefix", f"must be 1 to 10 AS numbers, not {len(numbers)}")
        return PrependASPath(numbers)
    priority = Fields(operation.values["setPriority"], operation.at("setPriority"), ("value",))
    number = priority.integer("value", 1, MAX_PRIORITY)
    if number is None:
        raise priority.error("value", "is required")
    return SetPriority(number)


# --- IPPool, BlockAffinity -----------------------------------------------------------------------------------------

_IP_POOL_SPEC = (
    "allowedUses", "assignmentMode", "blockSize", "cidr", "disableBGPExport", "disabled", "ipipMode",
    "namespaceSelector", "natOutgoing", "nodeSelector", "vxlanMode",
)  # fmt: skip


def _parse_ip_pool(head: _Head) -> IPPool:
    spec = Fields(head.spec, head.spec_path, _IP_POOL_SPEC)
    cidr = as_cidr(spec.required_text("cidr"), spec.at("cidr"))
    ipv4 = cidr.family is Family.IPV4_UNICAST
    for family, reserved in _LINK_LOCAL:
        if family is cidr.family and (covers(reserved, cidr.prefix) or covers(cidr.prefix, reserved)):
            raise spec.error("cidr", f"must not overlap the link-local range, which {cidr} does")
    ipip = spec.choice("ipipMode", EncapMode) or EncapMode.NEVER
    vxlan = spec.choice("vxlanMode", EncapMode) or EncapMode.NEVER
    if ipip is not EncapMode.NEVER and not ipv4:
        raise spec.error("ipipMode", "must be Never for an IPv6 pool")
    if ipip is not EncapMode.NEVER and vxlan is not EncapMode.NEVER:
        raise spec.error("vxlanMode", f"must be Never where ipipMode is {ipip}")
    disabled = spec.boolean("disabled") or False
    least, most = (20, 32) if ipv4 else (116, 128)
    block_size = (spec.integer("blockSize", least, most) if spec.values.get("blockSize") != 0 else None) or (
        26 if ipv4 else 122
    )
    if not disabled and cidr.prefix[0] > block_size:
        raise spec.error("cidr", f"must hold at least one block of /{block_size}, which {cidr} does not")
    uses = tuple(as_choice(value, path, AllowedUse) for path, value in spec.array("allowedUses"))
    if AllowedUse.LOAD_BALANCER in uses and len(set(uses)) > 1:
        raise spec.error("allowedUses", "must not combine LoadBalancer with other uses")
    return IPPool(
        name=head.name,
        labels=head.labels,
        manifest=head.manifest,
        cidr=cidr,
        ipip_mode=ipip,
        vxlan_mode=vxlan,
        nat_outgoing=spec.boolean("natOutgoing") or False,
        disabled=disabled,
        disable_bgp_export=spec.boolean("disableBGPExport") or False,
        block_size=block_size,
        node_selector=spec.selector("nodeSelector") or All(),
        namespace_selector=spec.selector("namespaceSelector"),
        allowed_uses=uses or (AllowedUse.WORKLOAD, AllowedUse.TUNNEL),
        assignment_mode=spec.choice("assignmentMode", AssignmentMode) or AssignmentMode.AUTOMATIC,
    )


def _parse_block_affinity(head: _Head) -> BlockAffinity:
    spec = Fields(head.spec, head.spec_path, ("cidr", "deleted", "node", "state", "type"))
    # The Kubernetes datastore writes this boolean as text.
    deleted = spec.values.get("deleted")
    is_deleted = deleted == "true" if deleted in ("true", "false", "") else spec.boolean("deleted") or False
    return BlockAffinity(
        name=head.name,
        labels=head.labels,
        manifest=head.manifest,
        node=spec.required_text("node"),
        cidr=as_cidr(spec.required_text("cidr"), spec.at("cidr")),
        state=spec.choice("state", AffinityState) or AffinityState.CONFIRMED,
        type=spec.choice("type", AffinityType) or AffinityType.HOST,
        deleted=is_deleted,
    )


_PARSERS: dict[str, Callable[[_Head], Resource]] = {
    BGPConfiguration.kind: _parse_bgp_configuration,
    BGPFilter.kind: _parse_bgp_filter,
    BGPPeer.kind: _parse_bgp_peer,
    BlockAffinity.kind: _parse_block_affinity,
    IPPool.kind: _parse_ip_pool,
    Node.kind: _parse_node,
}

KINDS: tuple[str, ...] = tuple(_PARSERS)
"""The kinds routed reads, sorted."""

OTHER_KINDS = frozenset(
    {
        "CalicoNodeStatus", "ClusterInformation", "FelixConfiguration", "GlobalNetworkPolicy", "GlobalNetworkSet",
        "HostEndpoint", "IPAMBlock", "IPAMConfig", "IPAMConfiguration", "IPAMHandle", "IPReservation",
        "KubeControllersConfiguration", "LiveMigration", "NetworkPolicy", "NetworkSet", "Profile",
        "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "Tier", "WorkloadEndpoint",
    }
)  # fmt: skip
"""Calico's kinds that are refused, but are no mistake in what they are: an export of a cluster holds them."""
