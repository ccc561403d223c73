"""This node as a BGP speaker: its AS, router id, addresses, listen port and cluster id."""

from __future__ import annotations

import hashlib

from routed.model.resources import DEFAULT_PORT, BindMode
from routed.net.families import Family
from routed.plan.cluster import Cluster, address_of
from routed.plan.types import PlanSettings, Speaker


def plan_speaker(cluster: Cluster, settings: PlanSettings) -> tuple[Speaker | None, list[str]]:
    """None where this node speaks no BGP, with the reason among the problems."""
    name = cluster.node_name
    node = cluster.node
    if node is None:
        return None, [f"Node {name}: there is no such resource, so BGP is off on this node; is nodeName right?"]
    if node.bgp is None:
        return None, [f"Node {name}: it has no spec.bgp, so BGP is off on this node"]
    ipv4, ipv6 = address_of(node, Family.IPV4_UNICAST), address_of(node, Family.IPV6_UNICAST)
    problems = []
    if not ipv4 and not ipv6:
        problems.append(f"Node {name}: spec.bgp has neither ipv4Address nor ipv6Address, so it can have no sessions")
    router_id = settings.router_id
    if router_id is None:
        router_id = int.from_bytes(ipv4, "big") if ipv4 else router_id_from_name(name)
    port = cluster.listen_port(name)
    speaker = Speaker(
        local_as=cluster.as_number(node),
        router_id=router_id,
        listen_port=DEFAULT_PORT if port is None else port,
        cluster_id=node.bgp.route_reflector_cluster_id or 0,
        ipv4_address=ipv4,
        ipv6_address=ipv6,
        listen_addresses=tuple(filter(None, (ipv4, ipv6)))
        if cluster.default_configuration.bind_mode is BindMode.NODE_IP
        else (),
    )
    return speaker, problems


def router_id_from_name(name: str) -> int:
    """A stable router id for a node without an IPv4 address: the first octets of its name's SHA-256, kept out of 0.x
    and of the multicast and reserved ranges."""
    octets = bytearray(hashlib.sha256(name.encode()).digest()[:4])
    if octets[0] > 223:
        octets[0] -= 32
    octets[0] = octets[0] or 1
    return int.from_bytes(octets, "big")
