"""Nodes as they are stored: found right in one go, their manifests read when somebody asks.

A cluster has thousands of them, and every node reads them all. Their fields are needed at once, and are made of what a
compiled decoder found; the manifest, which is as much again, stays octets.

Invariants: what `plain_node` takes, the reader (`bgp`) takes too, as the same resource; of what it does not take it says
nothing, so that the reader looks at it and says what is wrong. An `UnreadNode` equals the Node it stands for.
"""

from __future__ import annotations

from typing import Literal, cast

import msgspec

from routed.errors import ConfigError
from routed.model.fields import as_as_number, plain_address, plain_cidr, plain_mac, plain_node_address
from routed.model.head import are_labels, is_name
from routed.model.plain import NotPlain, PlainMetadata, needed
from routed.model.resources import (
    JsonObject,
    Node,
    NodeAddress,
    NodeBGP,
    NodeInterface,
    NodeWireguard,
    OrchRef,
    ReportedAddress,
    Unread,
)
from routed.net.families import Family


class _Bgp(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    asNumber: int | str | None = None
    ipv4Address: str | None = None
    ipv6Address: str | None = None
    ipv4IPIPTunnelAddr: str | None = None
    routeReflectorClusterID: str | None = None


class _OrchRef(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    orchestrator: str
    nodeName: str | None = None


class _Address(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    address: str
    type: str | None = None


class _Interface(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str | None = None
    addresses: list[str] | None = None


class _Wireguard(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    interfaceIPv4Address: str | None = None
    interfaceIPv6Address: str | None = None


class _NodeSpec(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    bgp: _Bgp | None = None
    addresses: list[_Address] | None = None
    interfaces: list[_Interface] | None = None
    ipv4VXLANTunnelAddr: str | None = None
    ipv6VXLANTunnelAddr: str | None = None
    orchRefs: list[_OrchRef] | None = None
    vxlanTunnelMACAddr: str | None = None
    vxlanTunnelMACAddrV6: str | None = None
    wireguard: _Wireguard | None = None


class _NodeStatus(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    podCIDRs: list[str] | None = None
    wireguardPublicKey: str | None = None
    wireguardPublicKeyV6: str | None = None


class _Node(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What Calico writes today; everything else is for the reader."""

    apiVersion: Literal["projectcalico.org/v3"]
    kind: Literal["Node"]
    metadata: PlainMetadata
    spec: _NodeSpec
    status: _NodeStatus | None = None


_NODE = msgspec.json.Decoder(_Node)


class UnreadNode(Unread, Node):
    """See the module's docstring."""

    __slots__ = ()


_NO_STATUS = _NodeStatus()


def plain_node(octets: bytes, name: str = "") -> UnreadNode | None:
    """The Node stored with a name, or (empty) with any. None: the reader must look."""
    try:
        node = _NODE.decode(octets)
        return _plain_node(node, octets, name or node.metadata.name)
    except (msgspec.DecodeError, RecursionError, ConfigError, NotPlain):
        return None


def _plain_node(node: _Node, octets: bytes, name: str) -> UnreadNode:
    spec, status = node.spec, node.status or _NO_STATUS
    labels = node.metadata.labels or {}
    if node.metadata.name != name or not is_name(name) or not are_labels(labels) or b"\n" in octets:
        raise NotPlain
    wireguard = spec.wireguard
    return UnreadNode(
        name=name,
        labels=labels,
        manifest=cast("JsonObject", octets),
        bgp=_plain_bgp(spec.bgp) if spec.bgp is not None else None,
        ipv4_vxlan_tunnel_addr=_address(spec.ipv4VXLANTunnelAddr, Family.IPV4_UNICAST),
        vxlan_tunnel_mac_addr=needed(plain_mac(spec.vxlanTunnelMACAddr)) if spec.vxlanTunnelMACAddr else None,
        ipv6_vxlan_tunnel_addr=_address(spec.ipv6VXLANTunnelAddr, Family.IPV6_UNICAST),
        vxlan_tunnel_mac_addr_v6=needed(plain_mac(spec.vxlanTunnelMACAddrV6)) if spec.vxlanTunnelMACAddrV6 else None,
        orch_refs=tuple([OrchRef(one.nodeName or "", needed(one.orchestrator or None)) for one in spec.orchRefs or ()]),
        wireguard=NodeWireguard(
            _address(wireguard.interfaceIPv4Address, Family.IPV4_UNICAST),
            _address(wireguard.interfaceIPv6Address, Family.IPV6_UNICAST),
        )
        if wireguard is not None
        else None,
        addresses=tuple(
            [
                ReportedAddress(needed(plain_node_address(one.address, None)), one.type or "")
                for one in spec.addresses or ()
            ]
        ),
        interfaces=tuple(
            [
                NodeInterface(
                    one.name or "", tuple([needed(plain_address(text, None)) for text in one.addresses or ()])
                )
                for one in spec.interfaces or ()
            ]
        ),
        wireguard_public_key=status.wireguardPublicKey or "",
        wireguard_public_key_v6=status.wireguardPublicKeyV6 or "",
        pod_cidrs=tuple([needed(plain_cidr(text, None)) for text in status.podCIDRs or ()]),
    )


def _plain_bgp(bgp: _Bgp) -> NodeBGP:
    cluster_id = _address(bgp.routeReflectorClusterID, Family.IPV4_UNICAST)
    made = NodeBGP(
        as_number=as_as_number(bgp.asNumber, "") if bgp.asNumber not in (None, "") else None,
        ipv4_address=_node_address(bgp.ipv4Address, Family.IPV4_UNICAST),
        ipv6_address=_node_address(bgp.ipv6Address, Family.IPV6_UNICAST),
        ipv4_ipip_tunnel_addr=_address(bgp.ipv4IPIPTunnelAddr, Family.IPV4_UNICAST),
        route_reflector_cluster_id=int.from_bytes(cluster_id, "big") if cluster_id else None,
    )
    if made == _NO_BGP or made.route_reflector_cluster_id == 0:
        raise NotPlain
    return made


_NO_BGP = NodeBGP()


def _address(text: str | None, family: Family) -> bytes | None:
    return needed(plain_address(text, family)) if text else None


def _node_address(text: str | None, family: Family) -> NodeAddress | None:
    return needed(plain_node_address(text, family)) if text else None
