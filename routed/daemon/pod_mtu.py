"""The MTU of a pod's interface: the uplink's, less what the tunnels of the cluster's pools put around packets.

One MTU for both families, since a link has one; each family's pools leave what the uplink of that family has room for. The
smallest that any pool leaves fits all of them; where that is too little for IPv6 because of an IPv4 tunnel, a pod with IPv6
gets what IPv6 takes at least, and its IPv4 packets find the tunnel's MTU out by themselves (RFC 1191). Where it is IPv6's
own tunnel that leaves too little, no pod can have IPv6: the kernel drops what does not fit into an IPv6 tunnel, and takes no
smaller MTU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from routed.desired import LEAST_MTU_OF_IPV6, TunnelKind, tunnel_overhead
from routed.model.resources import EncapMode, IPPool
from routed.net.families import Family
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class Uplink:
    """What carries packets to other nodes."""

    name: str
    """Empty: it cannot be told which it is."""
    mtu: int


def pod_mtu(
    uplinks: Mapping[Family, Uplink],
    pools: Collection[IPPool],
    said: Mapping[tuple[TunnelKind, Family], int],
    families: Collection[Family],
) -> tuple[int, str]:
    """Of a pod with addresses of these families, and why it cannot have them, or empty.

    `uplinks` has both families; `said`: MTUs of tunnels that FelixConfiguration names.
    """
    enabled = [pool for pool in pools if not pool.disabled]
    left = [(_within(pool, uplinks[pool.cidr.family].mtu, said), pool) for pool in enabled]
    mtu = min((octets for octets, _ in left), default=min(each.mtu for each in uplinks.values()))
    if mtu >= LEAST_MTU_OF_IPV6 or Family.IPV6_UNICAST not in families:
        return mtu, ""
    tight = [(octets, pool.name, pool) for octets, pool in left if pool.cidr.family is Family.IPV6_UNICAST]
    for octets, name, pool in sorted(tight, key=lambda each: each[:2]):
        if octets < LEAST_MTU_OF_IPV6:
            return mtu, _too_little(uplinks[Family.IPV6_UNICAST], octets, name, _kind(pool))
    return LEAST_MTU_OF_IPV6, ""


def _too_little(uplink: Uplink, octets: int, pool: str, kind: TunnelKind | None) -> str:
    around = tunnel_overhead(kind, Family.IPV6_UNICAST) if kind is not None else 0
    where = f"{uplink.name or 'the uplink'} with an MTU of {uplink.mtu}"
    if octets != uplink.mtu - around:
        return (
            f"an MTU of {octets}, as FelixConfiguration has it, is too little for IPv6, which takes {LEAST_MTU_OF_IPV6}"
        )
    return (
        f"IPPool {pool}: {where} leaves {octets}, too little for IPv6, which takes {LEAST_MTU_OF_IPV6} (RFC 8200): "
        f"raise it to {LEAST_MTU_OF_IPV6 + around}" + (", or use the pool without encapsulation" if around else "")
    )


def _kind(pool: IPPool) -> TunnelKind | None:
    if pool.vxlan_mode is not EncapMode.NEVER:
        return TunnelKind.VXLAN
    return TunnelKind.IPIP if pool.ipip_mode is not EncapMode.NEVER else None


def _within(pool: IPPool, mtu: int, said: Mapping[tuple[TunnelKind, Family], int]) -> int:
    """Of packets of a pool: what FelixConfiguration says of its tunnel, else what the tunnel leaves of the uplink's."""
    kind, family = _kind(pool), pool.cidr.family
    if kind is None:
        return mtu
    return said.get((kind, family)) or mtu - tunnel_overhead(kind, family)
