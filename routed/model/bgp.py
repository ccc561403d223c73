"""Calico's kinds that make a node a BGP speaker: Node, BGPConfiguration, BGPPeer, BGPFilter, as manifests say them.

Invariants: fields, defaults and rules are Calico's v3 API. A few things Calico lets pass and then ignores are refused,
where they can only be mistakes: a peer that names nobody, an address without an AS number, AS 0, a rule whose length
window is empty. What they mean for this node is decided in `plan/`; the values are in `resources`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from routed.errors import ConfigError
from routed.model.fields import (
    Fields,
    as_address,
    as_as_number,
    as_cidr,
    as_community,
    as_text,
    nearest,
    one_of,
    shown,
)
from routed.model.head import API_VERSION, Head, Kind, kind_shape
from routed.model.resources import (
    DEFAULT_ROUTE_PRIORITY,
    AddCommunity,
    BGPConfiguration,
    BGPFilter,
    BGPFilterRule,
    BGPPeer,
    BindMode,
    Cidr,
    FilterAction,
    FilterOperation,
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
    ReversePeering,
    SecretKeyRef,
    SetPriority,
    SourceAddress,
)
from routed.net.families import Family

#: LOCAL_PREF is 2147483647 minus a priority and must stay positive.
MAX_PRIORITY = 2147483646

_INTERFACE_GLOB = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")

# --- Node ----------------------------------------------------------------------------------------------------------


def _parse_node(head: Head) -> Node:
    spec = head.spec
    status = head.status
    return Node(
        **head.common,
        bgp=_parse_node_bgp(spec),
        ipv4_vxlan_tunnel_addr=spec.address("ipv4VXLANTunnelAddr", Family.IPV4_UNICAST),
        vxlan_tunnel_mac_addr=spec.mac("vxlanTunnelMACAddr"),
        ipv6_vxlan_tunnel_addr=spec.address("ipv6VXLANTunnelAddr", Family.IPV6_UNICAST),
        vxlan_tunnel_mac_addr_v6=spec.mac("vxlanTunnelMACAddrV6"),
        orch_refs=tuple(map(_parse_orch_ref, spec.objects("orchRefs"))),
        wireguard=_parse_wireguard(spec),
        addresses=tuple(map(_parse_reported_address, spec.objects("addresses"))),
        interfaces=tuple(map(_parse_node_interface, spec.objects("interfaces"))),
        wireguard_public_key=status.text("wireguardPublicKey"),
        wireguard_public_key_v6=status.text("wireguardPublicKeyV6"),
        pod_cidrs=tuple(as_cidr(as_text(value, path), path) for path, value in status.array("podCIDRs")),
    )


def _parse_node_bgp(spec: Fields) -> NodeBGP | None:
    bgp = spec.object("bgp")
    if bgp is None:
        return None
    if not any(bgp.has(name) for name in bgp.values):
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
    wireguard = spec.object("wireguard")
    if wireguard is None:
        return None
    return NodeWireguard(
        interface_ipv4_address=wireguard.address("interfaceIPv4Address", Family.IPV4_UNICAST),
        interface_ipv6_address=wireguard.address("interfaceIPv6Address", Family.IPV6_UNICAST),
    )


def _parse_orch_ref(ref: Fields) -> OrchRef:
    return OrchRef(node_name=ref.text("nodeName"), orchestrator=ref.required_text("orchestrator"))


def _parse_reported_address(entry: Fields) -> ReportedAddress:
    return ReportedAddress(address=entry.required_node_address("address"), type=entry.text("type"))


def _parse_node_interface(entry: Fields) -> NodeInterface:
    addresses = tuple(as_address(as_text(one, at), at) for at, one in entry.array("addresses"))
    return NodeInterface(name=entry.text("name"), addresses=addresses)


# --- BGPConfiguration ----------------------------------------------------------------------------------------------

#: What counts in the BGPConfiguration of one node, `node.NAME`, as in Calico.
PER_NODE = frozenset({"listenPort", "prefixAdvertisements", "logSeverityScreen", "communities"})
#: What nobody may write anywhere but in `default`, as Calico's clients have it.
ONLY_IN_DEFAULT = ("asNumber", "nodeToNodeMeshEnabled", "nodeMeshPassword", "nodeMeshMaxRestartTime")


def _parse_bgp_configuration(head: Head) -> BGPConfiguration:
    spec = head.spec
    if head.name != "default":  # what does not count there is not looked at, and takes nothing else with it
        counting: JsonObject = {field: value for field, value in spec.values.items() if field in PER_NODE}
        spec = Fields(counting, head.top, "spec")
    mesh = spec.boolean("nodeToNodeMeshEnabled")
    if mesh is False:
        for field in ("nodeMeshPassword", "nodeMeshMaxRestartTime"):
            if spec.has(field):
                raise spec.error(field, "must be left out where nodeToNodeMeshEnabled is false")
    communities = tuple(_parse_named_community(value, path) for path, value in spec.array("communities"))
    named = dict(communities)
    return BGPConfiguration(
        **head.common,
        log_severity_screen=spec.choice("logSeverityScreen", LogSeverity, any_case=True),
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
        node_mesh_max_restart_time=spec.duration("nodeMeshMaxRestartTime"),
        ignored_interfaces=tuple(
            _parse_ignored_interface(value, path) for path, value in spec.array("ignoredInterfaces")
        ),
        local_workload_peering_ipv4=spec.address("localWorkloadPeeringIPV4", Family.IPV4_UNICAST),
        local_workload_peering_ipv6=spec.address("localWorkloadPeeringIPV6", Family.IPV6_UNICAST),
        program_cluster_routes=spec.choice("programClusterRoutes", ProgramClusterRoutes),
        ipv4_normal_route_priority=spec.integer("ipv4NormalRoutePriority", 1, MAX_PRIORITY) or DEFAULT_ROUTE_PRIORITY,
        ipv6_normal_route_priority=spec.integer("ipv6NormalRoutePriority", 1, MAX_PRIORITY) or DEFAULT_ROUTE_PRIORITY,
    )


def _parse_named_community(value: JsonValue, path: str) -> tuple[str, bytes]:
    entry = Fields(value, path)
    name = entry.required_text("name")
    return name, as_community(entry.required_text("value"), entry.at("value"))


def _parse_prefix_advertisement(value: JsonValue, path: str, named: Mapping[str, bytes]) -> PrefixAdvertisement:
    entry = Fields(value, path)
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
        entry = Fields(value, path)
        if entry.has("cidr"):  # an entry without one says nothing, for Calico too
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
    password = spec.object(name)
    ref = password and password.object("secretKeyRef")
    if not ref:
        return None
    return SecretKeyRef(ref.required_text("name"), ref.required_text("key"), ref.boolean("optional") or False)


# --- BGPPeer -------------------------------------------------------------------------------------------------------


def _parse_bgp_peer(head: Head) -> BGPPeer:
    spec = head.spec
    spec.exclude("nodeSelector", "node")
    spec.exclude("localWorkloadSelector", "peerIP", "peerSelector", "reachableBy")
    spec.exclude("peerSelector", "peerIP", "asNumber", "reachableBy")
    if not any(spec.has(name) for name in ("peerIP", "peerSelector", "localWorkloadSelector")):
        raise ConfigError(head.top.at("spec"), "names no peer: set peerIP, or peerSelector, or localWorkloadSelector")
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
        **head.common,
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
        max_restart_time=spec.duration("maxRestartTime"),
        keepalive_time=spec.duration("keepaliveTime"),
        num_allowed_local_as_numbers=spec.integer("numAllowedLocalASNumbers", 0, 0x7FFFFFFF) or 0,
        ttl_security=spec.integer("ttlSecurity", 0, 255),
        reachable_by=reachable_by,
        filters=tuple(as_text(value, path) for path, value in spec.array("filters")),
        reverse_peering=spec.choice("reversePeering", ReversePeering) or ReversePeering.AUTO,
    )


# --- BGPFilter -----------------------------------------------------------------------------------------------------

_OPERATIONS = ("addCommunity", "prependASPath", "setPriority")


def _parse_bgp_filter(head: Head) -> BGPFilter:
    spec = head.spec
    return BGPFilter(
        **head.common,
        import_v4=_parse_rules(spec, "importV4", Family.IPV4_UNICAST),
        import_v6=_parse_rules(spec, "importV6", Family.IPV6_UNICAST),
        export_v4=_parse_rules(spec, "exportV4", Family.IPV4_UNICAST),
        export_v6=_parse_rules(spec, "exportV6", Family.IPV6_UNICAST),
    )


def _parse_rules(spec: Fields, name: str, family: Family) -> tuple[BGPFilterRule, ...]:
    return tuple(_parse_rule(Fields(value, path), family) for path, value in spec.array(name))


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
    window = rule.object("prefixLength")
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
    match = rule.object("communities")
    if match is None:
        return ()
    values = tuple(as_community(value, path) for path, value in match.array("values"))
    if len(values) != 1:
        raise match.error("values", f"must be exactly one community, not {len(values)}")
    return values


def _parse_operation(value: JsonValue, path: str) -> FilterOperation:
    operation = Fields(value, path)
    if sum(operation.values.get(name) is not None for name in _OPERATIONS) != 1:
        raise ConfigError(path, f"must be exactly {one_of(_OPERATIONS)}")
    add = operation.object("addCommunity")
    if add:
        return AddCommunity(as_community(add.required_text("value"), add.at("value")))
    prepend = operation.object("prependASPath")
    if prepend:
        numbers = tuple(as_as_number(number, at) for at, number in prepend.array("prefix"))
        if not 1 <= len(numbers) <= 10:
            raise prepend.error("prefix", f"must be 1 to 10 AS numbers, not {len(numbers)}")
        return PrependASPath(numbers)
    priority = Fields(operation.values["setPriority"], operation.at("setPriority"))
    number = priority.integer("value", 1, MAX_PRIORITY)
    if number is None:
        raise priority.error("value", "is required")
    return SetPriority(number)


_RULE = """!{
    action asPathPrefix cidr communities !{ values } interface matchOperator
    operations !{ addCommunity !{ value } prependASPath !{ prefix } setPriority !{ value } }
    peerType prefixLength !{ max min } priority source
}"""
_PASSWORD = "{ secretKeyRef { key name optional } }"

KINDS = (
    Kind(
        name=Node.kind,
        plural="nodes",
        versions=(API_VERSION,),
        short=("no",),
        read=_parse_node,
        shape=kind_shape("""
            spec {
                addresses { address type }
                bgp { asNumber ipv4Address ipv4IPIPTunnelAddr ipv6Address routeReflectorClusterID }
                interfaces { addresses name }
                ipv4VXLANTunnelAddr ipv6VXLANTunnelAddr
                orchRefs { nodeName orchestrator }
                vxlanTunnelMACAddr vxlanTunnelMACAddrV6
                wireguard { interfaceIPv4Address interfaceIPv6Address }
            }
            status { podCIDRs wireguardPublicKey wireguardPublicKeyV6 }
        """),
    ),
    Kind(
        name=BGPConfiguration.kind,
        plural="bgpconfigurations",
        short=("bgpconfig", "bgpconfigs"),
        read=_parse_bgp_configuration,
        shape=kind_shape(f"""
            spec {{
                asNumber bindMode communities {{ name value }} ignoredInterfaces ipv4NormalRoutePriority
                ipv6NormalRoutePriority listenPort localWorkloadPeeringIPV4 localWorkloadPeeringIPV6 logSeverityScreen
                nodeMeshMaxRestartTime nodeMeshPassword {_PASSWORD} nodeToNodeMeshEnabled
                prefixAdvertisements {{ cidr communities }} programClusterRoutes serviceClusterIPs {{ cidr }}
                serviceExternalIPs {{ cidr }} serviceLoadBalancerAggregation serviceLoadBalancerIPs {{ cidr }}
            }}
            status
        """),
    ),
    Kind(
        name=BGPPeer.kind,
        plural="bgppeers",
        short=("bgpp",),
        read=_parse_bgp_peer,
        shape=kind_shape(f"""
            spec {{
                asNumber filters keepOriginalNextHop keepaliveTime localASNumber localWorkloadSelector maxRestartTime
                nextHopMode node nodeSelector numAllowedLocalASNumbers password {_PASSWORD} peerIP peerSelector
                reachableBy reversePeering sourceAddress ttlSecurity
            }}
            status
        """),
    ),
    Kind(
        name=BGPFilter.kind,
        plural="bgpfilters",
        short=("bgpf",),
        read=_parse_bgp_filter,
        shape=kind_shape(f"spec !{{ exportV4 {_RULE} exportV6 {_RULE} importV4 {_RULE} importV6 {_RULE} }} status"),
    ),
)
