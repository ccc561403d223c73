"""Route changes on their way: batches that wait, and chunks the kernel has been sent.

Not here: what goes into a chunk and what follows from its answers (`routes`).
"""

from __future__ import annotations

from collections.abc import Sequence

from routed.dataplane.ours import OwnRoutes
from routed.dataplane.patience import RouteId
from routed.desired import KernelRoute, RouteBatch
from routed.netlink.messages import fence
from routed.netlink.routes import Operation, encode_routes


class Batch:
    """Prefixes in the queue; those of them that `queued` gives another route by now are somebody else's to write."""

    __slots__ = ("metric", "position", "prefixes", "route", "scattered", "table", "tickets")

    def __init__(
        self, table: OwnRoutes, route: KernelRoute | None, prefixes: Sequence[bytes], leftover_metric: int = -1
    ) -> None:
        self.table = table
        self.route = route
        self.prefixes = prefixes
        self.metric = leftover_metric
        """Of leftovers to be deleted; -1 for routes at our metric."""
        self.position = 0
        """Prefixes before this one went into chunks."""
        self.scattered = False
        """Deletions that were put into the order they go fastest in."""
        self.tickets: tuple[int, ...] = ()
        """Of who wants to hear when the kernel is through with it."""


class Segment:
    """Part of a chunk: one operation on prefixes that share a route."""

    __slots__ = ("_members", "before", "instead", "leftover", "operation", "prefixes", "route", "table")

    def __init__(
        self, table: OwnRoutes, operation: Operation, route: KernelRoute | None, prefixes: Sequence[bytes]
    ) -> None:
        self.table = table
        self.operation = operation
        self.route = route
        self.prefixes = prefixes
        self.before: dict[bytes, KernelRoute] = {}
        """What the kernel held, of prefixes replaced or deleted."""
        self.instead: KernelRoute | None = None
        """Of a deletion: the route that takes the place of what is deleted, at another metric."""
        self.leftover = False
        """A deletion of what was beside the routes we want, and nothing is said of these."""
        self._members: frozenset[bytes] | None = None

    @property
    def wanted(self) -> KernelRoute | None:
        """What its prefixes should be in the end."""
        return self.instead if self.operation is Operation.DELETE else self.route

    def __contains__(self, prefix: bytes) -> bool:
        if self._members is None:
            self._members = frozenset(self.prefixes)
        return prefix in self._members


class Chunk:
    """What one send carries: messages of one sequence number, and a fence that is acknowledged after them."""

    __slots__ = ("_out", "denied", "refused", "segments", "sequence", "size", "tickets")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.segments: list[Segment] = []
        self.size = 0
        """Octets."""
        self.refused: set[RouteId] = set()
        self.denied = False
        """Some of it was refused for lack of permission."""
        self.tickets: tuple[int, ...] = ()
        """Of the batches whose last prefixes are in it."""
        self._out: list[bytes] = []

    def put(self, segment: Segment, *, table: int, protocol: int, metric: int) -> None:
        data = encode_routes(
            RouteBatch(segment.table.family, segment.prefixes, segment.route),
            table=table,
            protocol=protocol,
            sequence=self.sequence,
            create=segment.operation,
            metric=metric,
        )
        self.segments.append(segment)
        self.size += len(data)
        self._out.append(data)

    def changes(self, table: OwnRoutes, prefix: bytes) -> bool:
        """Whether a message in it is about this route."""
        return any(segment.table is table and prefix in segment for segment in self.segments)

    def finish(self) -> bytes:
        """The octets to send, once."""
        data = b"".join((*self._out, fence(self.sequence)))
        self._out = []
        return data
