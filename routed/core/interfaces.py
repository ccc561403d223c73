"""The node's interfaces as the kernel last told of them, and what follows from them for sessions and paths.

By index, as a mapping. Beside that: which index a name has while it is up, which interface a session runs over, by which
one a next hop leaves.

Invariant: a function of the changes taken in; an interface that is not up has no index by its name.

Not here: how next hops resolve (`rib/nexthops`), what interfaces make routes of this node's own (`core/learned`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from routed.net.addresses import format_address
from routed.net.prefixes import covers, make_prefix
from routed.observed import Interface, KernelChange
from routed.plan.types import Speaker
from routed.rib.nexthops import NextHop


class Interfaces(Mapping[int, Interface]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._by_index: dict[int, Interface] = {}
        self._up: dict[str, int] = {}
        """Indexes of those that are up, by name."""

    def __getitem__(self, index: int) -> Interface:
        return self._by_index[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_index)

    def __len__(self) -> int:
        return len(self._by_index)

    def apply(self, change: KernelChange) -> dict[int, Interface]:
        """Take in what interfaces there are now; those it is about as they were before."""
        before: dict[int, Interface] = {}
        if change.full:
            before, self._by_index, self._up = self._by_index, {}, {}
        for index in (*change.interfaces_removed, *(interface.index for interface in change.interfaces)):
            old = self._by_index.pop(index, None)
            if old is not None:
                before[index] = old
                if self._up.get(old.name) == index:
                    del self._up[old.name]
        for interface in change.interfaces:
            self._by_index[interface.index] = interface
            if interface.up:
                self._up[interface.name] = interface.index
        return before

    def up(self, name: str) -> int:
        """The index of the interface of this name if it is up, or 0."""
        return self._up.get(name, 0)

    def is_up(self, index: int) -> bool:
        interface = self._by_index.get(index)
        return interface is not None and interface.up

    def scope(self, name: str, local: bytes) -> int:
        """Index of the interface a session runs over, which is that of its link-local addresses, or 0.

        By the name it was given; without one it is the one with the session's own address.
        """
        for interface in self._by_index.values():
            if interface.name == name or (not name and any(address == local for address, _ in interface.addresses)):
                return interface.index
        return 0

    def connected(self, remote: bytes, local: bytes) -> int:
        """Index of the interface that is up and on whose network an address is, or 0.

        Where several are it is the one with the longest network, then the one that has `local`.
        """
        host = make_prefix(remote, len(remote) * 8)
        networks = [
            (length, address == local, interface.index)
            for interface in self._by_index.values()
            if interface.up
            for address, length in interface.addresses
            if len(address) == len(remote) and covers(make_prefix(address, length), host)
        ]
        return max(networks)[2] if networks else 0

    def towards(self, next_hop: NextHop | None) -> str:
        """The name of the interface that leads to a next hop, or empty."""
        if next_hop is None or not next_hop.gateways:
            return ""
        interface = self._by_index.get(next_hop.gateways[0].interface)
        return interface.name if interface is not None else ""

    def without_address(self, node: str, speaker: Speaker | None) -> tuple[str, ...]:
        """Where the Node's address is on no interface, in words: with passive peers nothing else would say it."""
        if speaker is None or not self._by_index:
            return ()
        there = {address for interface in self._by_index.values() for address, _ in interface.addresses}
        return tuple(
            f"Node {node}: spec.bgp.{field} {format_address(address)} is on no interface here"
            for field, address in (("ipv4Address", speaker.ipv4_address), ("ipv6Address", speaker.ipv6_address))
            if address and address not in there
        )
