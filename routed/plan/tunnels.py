"""The tunnels of pools: which devices this node has, by which address, and which nodes they reach. Felix's part of Calico.

A device is there while the Node has an address for it (`ipv4VXLANTunnelAddr` and its like, which `daemon/tunnels` takes
from the pools); whether a route leads into it is the pool's to say (`program`). So a pool that gives up its encapsulation
stops sending at once, and goes on receiving what others still send.

MAC addresses are Felix's: what the Node says, else `66` and the beginning of a hash of its name.

Routes lead through the other node's address inside the tunnel, as Felix's do; those of IPv6 through the link-local address
that follows from its MAC address (RFC 4291 A). IPv6 refuses a gateway that another route leads to by another interface,
onlink or not, and the route that is about to move into the tunnel does just that.

Not here: taking addresses, making devices (`dataplane/tunnels`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from routed.desired import Tunnel, TunnelKind, TunnelPeer
from routed.model.resources import IPIP_DEVICE, VXLAN_DEVICES, EncapMode, IPPool, Node
from routed.model.settings import felix_in_force
from routed.net.families import Family
from routed.plan.cluster import Cluster, address_of
from routed.values import dataclass

DEFAULT_VNI = 4096
DEFAULT_PORT = 4789

_MULTICAST_BIT = 0x01


@dataclass(frozen=True, slots=True)
class VxlanSettings:
    """What FelixConfiguration says of VXLAN."""

    vni: int
    port: int
    mtu: Mapping[Family, int]
    """0: as the uplink has it."""
    ipip_mtu: int


def plan_tunnels(cluster: Cluster) -> tuple[Tunnel, ...]:
    """The devices this node should have, each with everybody it reaches."""
    node = cluster.node
    if node is None or node.bgp is None:
        return ()
    settings = vxlan_settings(cluster)
    found = []
    for family, device in VXLAN_DEVICES.items():
        local, address = address_of(node, family), vxlan_address(node, family)
        if not local or address is None:
            continue
        found.append(
            Tunnel(
                device=device,
                kind=TunnelKind.VXLAN,
                family=family,
                address=address,
                local=local,
                mac=vxlan_mac(node, family),
                vni=settings.vni,
                port=settings.port,
                mtu=settings.mtu[family],
                peers=tuple(sorted(_vxlan_peers(cluster, family))),
            )
        )
    if node.bgp.ipv4_address is not None and node.bgp.ipv4_ipip_tunnel_addr is not None:
        found.append(
            Tunnel(
                device=IPIP_DEVICE,
                kind=TunnelKind.IPIP,
                family=Family.IPV4_UNICAST,
                address=node.bgp.ipv4_ipip_tunnel_addr,
                local=node.bgp.ipv4_address.address,
                mtu=settings.ipip_mtu,
                peers=tuple(sorted(_ipip_peers(cluster))),
            )
        )
    return tuple(found)


def tunnel_problems(cluster: Cluster) -> list[str]:
    """What keeps the tunnels from being what the resources ask for."""
    problems = []
    for family, field in ((Family.IPV4_UNICAST, "ipv4Address"), (Family.IPV6_UNICAST, "ipv6Address")):
        wanting = sorted(
            pool.name
            for pool in cluster.pools.values()
            if pool.cidr.family is family and is_tunnelled(pool) and not pool.disabled
        )
        node = cluster.node
        if wanting and node is not None and not address_of(node, family):
            problems.append(
                f"IPPool {', '.join(wanting)}: Node {cluster.node_name} has no spec.bgp.{field}, "
                "so it has no end of the tunnel"
            )
    macs: dict[bytes, list[str]] = {}
    for name, node in sorted(cluster.nodes.items()):
        for family in Family:
            if vxlan_address(node, family) is not None:
                macs.setdefault(vxlan_mac(node, family), []).append(name)
    for mac, names in sorted(macs.items()):
        if len(set(names)) > 1:
            problems.append(
                f"Nodes {', '.join(names)}: have the same VXLAN MAC address {mac.hex(':')}; "
                "packets for one of them go to another until vxlanTunnelMACAddr differs"
            )
        if mac[0] & _MULTICAST_BIT:
            problems.append(f"Node {names[0]}: the VXLAN MAC address {mac.hex(':')} is a multicast address")
    return problems


def no_way_in(cluster: Cluster) -> list[str]:
    """Of a node that has no peer: which pools' tunnels no route will ever lead into."""
    pools = sorted(pool.name for pool in cluster.pools.values() if is_tunnelled(pool) and not pool.disabled)
    if cluster.node is None or len(cluster.nodes) < 2 or not pools:
        return []
    problem = (
        f"IPPool {', '.join(pools)}: the node-to-node mesh is off and no BGPPeer is for this node, and without BGP there is "
        "no route into the tunnel: pods of other nodes are not reached"
    )
    return [problem]


def ways_into(cluster: Cluster, family: Family, device: str) -> dict[bytes, bytes]:
    """The gateway inside a tunnel, by the node's address that routes have as their next hop; our own is not in it."""
    peers = _ipip_peers(cluster) if device == IPIP_DEVICE else _vxlan_peers(cluster, family)
    return {peer.address: peer.gateway for peer in peers}


def is_tunnelled(pool: IPPool) -> bool:
    return pool.vxlan_mode is not EncapMode.NEVER or pool.ipip_mode is not EncapMode.NEVER


def vxlan_address(node: Node, family: Family) -> bytes | None:
    return node.ipv4_vxlan_tunnel_addr if family is Family.IPV4_UNICAST else node.ipv6_vxlan_tunnel_addr


def vxlan_mac(node: Node, family: Family) -> bytes:
    """As Felix has it: what the Node says, else `66` and the beginning of the SHA-1 of its name (`-v6` behind it)."""
    said, suffix = (
        (node.vxlan_tunnel_mac_addr, "") if family is Family.IPV4_UNICAST else (node.vxlan_tunnel_mac_addr_v6, "-v6")
    )
    return said or b"f" + hashlib.sha1(f"{node.name}{suffix}".encode(), usedforsecurity=False).digest()[:5]


def vxlan_settings(cluster: Cluster) -> VxlanSettings:
    felix = felix_in_force(cluster.felix, cluster.node_name)
    return VxlanSettings(
        vni=_first((each.vxlan_vni for each in felix), DEFAULT_VNI),
        port=_first((each.vxlan_port for each in felix), DEFAULT_PORT),
        mtu={
            Family.IPV4_UNICAST: _first((each.vxlan_mtu for each in felix), 0),
            Family.IPV6_UNICAST: _first((each.vxlan_mtu_v6 for each in felix), 0),
        },
        ipip_mtu=_first((each.ipip_mtu for each in felix), 0),
    )


def _vxlan_peers(cluster: Cluster, family: Family) -> Iterator[TunnelPeer]:
    for name, node in cluster.nodes.items():
        address, vtep = address_of(node, family), vxlan_address(node, family)
        if name != cluster.node_name and address and vtep is not None:
            mac = vxlan_mac(node, family)
            gateway = vtep if family is Family.IPV4_UNICAST else _link_local(mac)
            yield TunnelPeer(name, address, vtep, gateway, mac)


def _link_local(mac: bytes) -> bytes:
    """fe80:: and the modified EUI-64 of a MAC address."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 0x02,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _ipip_peers(cluster: Cluster) -> Iterator[TunnelPeer]:
    """Every node with an address is one: nothing has to be known of it."""
    for name, node in cluster.nodes.items():
        address = address_of(node, Family.IPV4_UNICAST)
        if name != cluster.node_name and address and node.bgp is not None:
            yield TunnelPeer(name, address, node.bgp.ipv4_ipip_tunnel_addr or b"", address, b"")


def _first(values: Iterable[int | None], default: int) -> int:
    return next((value for value in values if value is not None), default)
