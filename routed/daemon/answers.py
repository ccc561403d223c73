"""What the daemon answers on its control socket: the core's queries, and what only the daemon knows.

The requests: `status`, `neighbors` (address), `routes` (prefix, all), `fib` (prefix), `clear` (address, mode), `shutdown`
(reason). Arguments are text as people type it; what is wrong with them is said in a sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from itertools import chain

from routed import __version__
from routed.control.protocol import Request
from routed.control.server import Handler
from routed.core import queries
from routed.core.core import Core
from routed.daemon.config import Config
from routed.daemon.driver import Driver
from routed.dataplane.kernel import Kernel
from routed.dataplane.ours import FibEntry
from routed.desired import KernelRoute, RouteKind
from routed.errors import ControlError
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, make_prefix, parse_prefix, prefix_address

#: Prefixes looked at between two turns of the loop.
SLICE = 4000

Row = dict[str, object]


class Answers:
    """Handlers of the control socket's requests."""

    def __init__(
        self,
        core: Core,
        driver: Driver,
        kernel: Kernel,
        *,
        config: Callable[[], Config],
        problems: Callable[[], list[str]],
        stop: Callable[[str, str], None],
    ) -> None:
        self._core = core
        self._driver = driver
        self._kernel = kernel
        self._config = config
        self._problems = problems
        self._stop = stop
        self._started_at = time.monotonic()
        self.largest_lag = 0.0
        """Seconds the loop was ever late for its own clock."""

    def handlers(self) -> dict[str, Handler]:
        return {
            "status": self.status,
            "neighbors": self.neighbors,
            "routes": self.routes,
            "fib": self.fib,
            "clear": self.clear,
            "shutdown": self.shutdown,
        }

    def status(self, _: Request) -> Row:
        config = self._config()
        row = queries.status(self._core, self._driver.clock())
        planned = row.get("problems")
        problems = [*self._problems(), *(planned if isinstance(planned, list) else [])]
        return {
            **row,
            "version": __version__,
            "pid": os.getpid(),
            "runningSeconds": round(time.monotonic() - self._started_at, 3),
            "datastore": config.datastore_path,
            "listening": self._driver.listening,
            "kernel": {
                "programRoutes": config.kernel.program_routes,
                "table": config.kernel.table,
                "protocol": config.kernel.route_protocol,
                "routes": sum(self._kernel.route_count(family) for family in Family),
            },
            "largestLoopLagSeconds": round(self.largest_lag, 3),
            "problems": problems,
        }

    def neighbors(self, request: Request) -> Iterator[Row]:
        text = request.text("address")
        address = None if text is None else _address(text)
        rows = queries.neighbors(self._core, self._driver.clock(), address)
        if address is not None and not rows:
            raise ControlError(f"no neighbor has the address {format_address(address)}")
        return iter(rows)

    def routes(self, request: Request) -> Iterator[Row | None]:
        every = request.flag("all")
        text = request.text("prefix")
        if text is None:
            return chain.from_iterable(self._table(family, every) for family in Family)
        family, prefix = _prefix(text)
        if "/" not in text:
            prefix = self._longest_match(family, prefix)
        first = next(queries.routes(self._core, (family, prefix), every=every), None)
        if first is None:
            raise ControlError(f"no route to {text}")
        return iter((self._with_kernel(first),))

    def _table(self, family: Family, every: bool) -> Iterator[Row | None]:
        """A family's routes in the order of their addresses. None between: sorting a million prefixes takes seconds."""
        keys: Collection[bytes] = self._core.ribs[family].table
        if every:
            adj_ins = [peer.adj_in[family] for peer in self._core.peers.values() if family in peer.adj_in]
            keys = set(keys).union(*(adj_in.refused for adj_in in adj_ins))
        groups: dict[bytes, list[bytes]] = {}
        end = 3 if family is Family.IPV4_UNICAST else 5
        for number, key in enumerate(list(keys)):
            groups.setdefault(key[1:end], []).append(key)
            if not number % SLICE:
                yield None
        for number, start in enumerate(sorted(groups)):
            if not number % SLICE:
                yield None
            for key in sorted(groups[start], key=lambda key: (key[1:], key[0])):
                for row in queries.routes(self._core, (family, key), every=every):
                    yield self._with_kernel(row)

    def _with_kernel(self, row: Row) -> Row:
        """A route with what became of it in the kernel: `installed`, `pending`, `failed`, or null where it is not there."""
        family, prefix = parse_prefix(str(row["prefix"]))
        entry = self._kernel.fib_entry(family, prefix) if self._config().kernel.program_routes else None
        return {**row, "kernelState": None if entry is None else entry.state}

    def _longest_match(self, family: Family, host: bytes) -> bytes:
        table = self._core.ribs[family].table
        address = prefix_address(family, host)
        for length in range(family.max_length, -1, -1):
            prefix = make_prefix(address, length)
            if prefix in table:
                return prefix
        return host

    def fib(self, request: Request) -> Iterator[Row]:
        text = request.text("prefix")
        if text is None:
            return map(self._fib_row, chain.from_iterable(self._kernel.fib(family) for family in Family))
        family, prefix = _prefix(text)
        entry = self._kernel.fib_entry(family, prefix)
        if entry is None:
            raise ControlError(f"routed has no route to {format_prefix(family, prefix)} in the kernel and wants none")
        return iter((self._fib_row(entry),))

    def _fib_row(self, entry: FibEntry) -> Row:
        return {
            "family": entry.family.label,
            "prefix": format_prefix(entry.family, entry.prefix),
            "route": self._describe(entry.route),
            "state": entry.state,
            "reason": entry.reason or None,
        }

    def _describe(self, route: KernelRoute | None) -> str | None:
        """A route in the words of `ip route`; None where it should go."""
        if route is None:
            return None
        if route.kind is not RouteKind.UNICAST:
            return route.kind.name.lower()
        legs = []
        for gateway in route.gateways:
            interface = self._core.interfaces.get(gateway.interface)
            device = interface.name if interface is not None else f"interface {gateway.interface}"
            legs.append(f"via {format_address(gateway.address)} dev {device}" if gateway.address else f"dev {device}")
        return " nexthop ".join(legs)

    def clear(self, request: Request) -> Row:
        text = request.text("address")
        if text is None:
            raise ControlError("clear needs the address of a neighbor")
        mode = request.text("mode") or "hard"
        if mode not in ("hard", "in", "out"):
            raise ControlError(f"clear can do hard, in and out, not {mode!r}")
        address = _address(text)
        if not self._driver.clear(address, mode):
            raise ControlError(f"no neighbor has the address {format_address(address)}")
        done = {"hard": "the session is reset", "in": "asked for its routes again", "out": "our routes are sent again"}
        return {"text": f"{format_address(address)}: {done[mode]}"}

    def shutdown(self, request: Request) -> Row:
        self._stop("shutdown", request.text("reason") or "shut down by routedctl")
        return {"text": "routed is shutting down; its routes stay in the kernel"}


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError:
        raise ControlError(f"{text!r} is not an IPv4 or IPv6 address") from None


def _prefix(text: str) -> tuple[Family, bytes]:
    try:
        return parse_prefix(text)
    except ValueError:
        raise ControlError(f"{text!r} is neither a prefix such as 10.244.1.0/26 nor an address") from None
