"""Which chosen routes go into the kernel, and how: Calico's kernel export filter as data.

The default programs everything and costs nothing. Beside it: addresses of services stay out (kube-proxy has them), pools
whose routes Felix programs (VXLAN, or what programClusterRoutes leaves to it) stay out, and the routes of a pool with
encapsulation lead into a tunnel device: with IPIP to the node itself, with VXLAN to the address that node has inside the
tunnel. Routes of BGP next hops that another daemon leads to by a way of its own (WireGuard) stay out, too.

Invariants: equal by content; a rule's verdict depends on the prefix alone. Ranges of services come before pools; of several
that cover a prefix the longest counts (Calico's pools don't overlap).

Not here: which pools mean what (`plan/program`), the tunnel devices' indexes (`core`), the devices (`plan/tunnels`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from routed.net.prefixes import make_prefix
from routed.values import dataclass


class Programming(enum.Enum):
    LEAVE = "leave"
    """Not ours to program."""
    TUNNEL = "tunnel"
    """Into a tunnel device."""
    CROSS_SUBNET = "cross-subnet"
    """Into the tunnel where the next hop is outside this node's own subnet."""


@dataclass(frozen=True, slots=True)
class ProgramRule:
    """What becomes of the routes inside a prefix."""

    prefix: bytes
    programming: Programming
    why: str
    """For people: "IPPool pods: vxlanMode Always, Felix programs its routes"."""
    first: bool = False
    """Comes before all that are not."""
    device: str = ""
    """The tunnel's."""
    any_next_hop: bool = False
    """Where nobody knows the node, the BGP next hop is the tunnel's other end (IPIP)."""


class ProgramPolicy:
    """See the module's docstring."""

    __slots__ = ("_tables", "left", "own_subnet", "rules", "ways")

    def __init__(
        self,
        rules: Sequence[ProgramRule] = (),
        own_subnet: bytes = b"",
        ways: Mapping[str, Mapping[bytes, bytes]] | None = None,
        left: Mapping[bytes, str] | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self.own_subnet = own_subnet
        """Wire prefix of this node's subnet; empty: it has none, so every next hop is in another."""
        self.ways = ways if ways is not None else {}
        """By tunnel device: a node's gateway inside the tunnel, by its BGP next hop. Packed, both."""
        self.left = left if left is not None else {}
        """BGP next hops (packed) whose routes are not ours to program, and why, for people."""
        self._tables: list[list[tuple[int, dict[bytes, ProgramRule]]]] = []
        for first in (True, False):
            by_length: dict[int, dict[bytes, ProgramRule]] = {}
            for rule in self.rules:
                if rule.first is first:
                    by_length.setdefault(rule.prefix[0], {}).setdefault(rule.prefix, rule)
            if by_length:
                self._tables.append(sorted(by_length.items(), reverse=True))

    def __bool__(self) -> bool:
        """Whether anything is other than programmed as it is."""
        return bool(self.rules or self.left)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ProgramPolicy)
            and self.rules == other.rules
            and self.own_subnet == other.own_subnet
            and self.ways == other.ways
            and self.left == other.left
        )

    def __hash__(self) -> int:
        return hash((self.rules, self.own_subnet, len(self.ways), len(self.left)))

    def judge(self, prefix: bytes) -> ProgramRule | None:
        """The rule for a prefix, or None: programmed as it is."""
        for table in self._tables:
            for length, rules in table:
                if length <= prefix[0]:
                    found = rules.get(make_prefix(prefix[1:], length))
                    if found is not None:
                        return found
        return None

    def tunnels(self, rule: ProgramRule, next_hop: bytes) -> bool:
        """Whether a route of a pool with encapsulation through this next hop (packed) goes into the tunnel."""
        if rule.programming is Programming.TUNNEL:
            return True
        subnet = self.own_subnet
        return not subnet or make_prefix(next_hop, subnet[0]) != subnet

    def way(self, rule: ProgramRule, next_hop: bytes) -> bytes:
        """The gateway inside the tunnel to a next hop; empty where that is no node with an end of the tunnel."""
        return self.ways[rule.device].get(next_hop, b"")


PROGRAM_ALL = ProgramPolicy()
