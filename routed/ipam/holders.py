"""Who has which address, whatever the blocks say: endpoints, and nodes by their tunnels.

Blocks and handles may get lost, by somebody's hand or with a backup that is older than the pods; the pods live on. So nobody
is given an address here that a WorkloadEndpoint or a Node names.

Invariant: a resource that comes or goes costs the same however many there are.
"""

from __future__ import annotations

from collections.abc import Collection

from routed.model.resources import Node, Resource, ResourceKey
from routed.model.workloads import WorkloadEndpoint
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who has an address."""

    what: str
    """For people."""
    node: str
    key: ResourceKey | None = None
    """The resource that says so, where it is one that is followed: by now the datastore may have it no more."""


def addresses_of(resource: Resource | None) -> tuple[bytes, ...]:
    """What an endpoint or a node's tunnels have."""
    match resource:
        case WorkloadEndpoint():
            return tuple(network.prefix[1:] for network in resource.ip_networks)
        case Node():
            wireguard = resource.wireguard
            found = (
                resource.bgp.ipv4_ipip_tunnel_addr if resource.bgp is not None else None,
                resource.ipv4_vxlan_tunnel_addr,
                resource.ipv6_vxlan_tunnel_addr,
                wireguard.interface_ipv4_address if wireguard is not None else None,
                wireguard.interface_ipv6_address if wireguard is not None else None,
            )
            return tuple(dict.fromkeys(each for each in found if each is not None))
        case _:
            return ()


class Holders:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._keys: dict[bytes, tuple[ResourceKey, ...]] = {}
        self._nodes: dict[ResourceKey, str] = {}
        """Of endpoints that have an address."""

    def change(self, key: ResourceKey, old: Resource | None, new: Resource | None) -> None:
        """A resource is another one, or (None) was or is not there."""
        before, after = addresses_of(old), addresses_of(new)
        for address in before:
            if address not in after:
                left = tuple(each for each in self._keys.get(address, ()) if each != key)
                if left:
                    self._keys[address] = left
                else:
                    self._keys.pop(address, None)
        for address in after:
            if address not in before:
                self._keys[address] = (*self._keys.get(address, ()), key)
        if after and isinstance(new, WorkloadEndpoint):
            self._nodes[key] = new.node
        else:
            self._nodes.pop(key, None)

    def who(self, address: bytes, *but: Collection[ResourceKey]) -> Holder | None:
        """Who has an address, apart from these."""
        for key in self._keys.get(address, ()):
            if not any(key in each for each in but):
                what = f"a tunnel of node {key.name}" if key.kind == Node.kind else str(key)
                return Holder(what, self._nodes.get(key, key.name), key)
        return None
