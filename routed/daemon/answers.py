"""What the daemon answers on its control socket: the core's queries, and what only the daemon knows.

The requests: `status`, `neighbors` (address), `routes` (prefix, all), `fib` (prefix), `received` and `advertised` (address,
prefix, family, longer, all), `interfaces`, `events` (follow, kinds, prefix, longer), `clear` (address, mode),
`confirm` (kind), `shutdown` (reason). Arguments are text as people type it, an address may be a neighbour's name as well;
what is wrong with them is said in a sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from routed import __version__
from routed.config import Config
from routed.control.protocol import Request
from routed.control.server import Handler
from routed.core import exchanged, queries
from routed.core.core import Core
from routed.core.peer import Peer
from routed.daemon.driver import Driver
from routed.daemon.events import KINDS, Follower
from routed.dataplane.kernel import Kernel
from routed.dataplane.ours import FibEntry
from routed.datastore.file import FileStore
from routed.desired import KernelRoute, RouteKind
from routed.errors import ControlError
from routed.model.workloads import INTERFACE_PREFIX
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, parse_prefix
from routed.observed import Interface

if TYPE_CHECKING:  # gRPC and httpx are imported by who needs them: see `datastores`
    from routed.datastore.etcd import EtcdStore

#: Words for all neighbours, as other routers have them.
EVERYBODY = ("all", "*")

#: What `clear` did, by its mode.
CLEARED = {
    "hard": "the session is reset",
    "soft": "asked for its routes again, and ours are sent again",
    "in": "asked for its routes again",
    "out": "our routes are sent again",
}

Row = dict[str, object]


class Answers:
    """Handlers of the control socket's requests."""

    def __init__(
        self,
        core: Core,
        driver: Driver,
        kernel: Kernel,
        store: FileStore | EtcdStore,
        *,
        config: Callable[[], Config],
        problems: Callable[[], list[str]],
        stop: Callable[[str, str], None],
    ) -> None:
        self._core = core
        self._driver = driver
        self._kernel = kernel
        self._store = store
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
            "received": self.received,
            "advertised": self.advertised,
            "interfaces": self.interfaces,
            "events": self.events,
            "clear": self.clear,
            "confirm": self.confirm,
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
            "datastore": config.datastore_path or ", ".join(config.etcd.client.endpoints if config.etcd else ()),
            "store": self._store_row(),
            "listening": self._driver.listening,
            "kernel": {
                "programRoutes": config.kernel.program_routes,
                "table": config.kernel.table,
                "protocol": config.kernel.route_protocol,
                "routes": sum(self._kernel.route_count(family) for family in Family),
            },
            "memoryBytes": _memory(),
            "largestLoopLagSeconds": round(self.largest_lag, 3),
            "problems": problems,
        }

    def neighbors(self, request: Request) -> Iterator[Row]:
        text = request.text("address")
        now = self._driver.clock()
        if text is None:
            return queries.neighbors(self._core, now)
        peers = self._peers(text)
        names = {peer.plan.name for peer in peers}
        rows = queries.neighbors(self._core, now, peers[0].plan.session.address)
        return (row for row in rows if row["name"] in names)

    def routes(self, request: Request) -> Iterator[Row | None]:
        every = request.flag("all")
        text = request.text("prefix")
        if text is None:
            return chain.from_iterable(self._table(family, every) for family in Family)
        family, prefix = _prefix(text)
        if "/" not in text:
            prefix = exchanged.longest_match(family, prefix, self._core.ribs[family].table)
        first = next(queries.routes(self._core, (family, prefix), every=every), None)
        if first is None:
            raise ControlError(f"no route to {text}")
        return iter((self._with_kernel(first),))

    def _table(self, family: Family, every: bool) -> Iterator[Row | None]:
        """A family's routes in the order of their addresses. None between: sorting a million prefixes takes seconds."""
        tables: list[Collection[bytes]] = [self._core.ribs[family].table]
        if every:
            tables += [peer.adj_in[family].refused for peer in self._core.peers.values() if family in peer.adj_in]
        known = chain.from_iterable(exchanged.Wanted(family).among(table) for table in tables)
        for key in exchanged.in_order(known):
            if key is None:
                yield None
                continue
            for row in queries.routes(self._core, (family, key), every=every):
                yield self._with_kernel(row)

    def _with_kernel(self, row: Row) -> Row:
        """A route with what became of it in the kernel: `installed`, `pending`, `failed`, or null where it is not there."""
        family, prefix = parse_prefix(str(row["prefix"]))
        entry = self._kernel.fib_entry(family, prefix) if self._config().kernel.program_routes else None
        return {**row, "kernelState": None if entry is None else entry.state}

    def received(self, request: Request) -> Iterator[Row | None]:
        wanted = self._wanted(request, lambda peer, family: exchanged.announces(self._core, peer, family))
        return chain.from_iterable(exchanged.received(self._core, peer, each) for peer, each in wanted)

    def advertised(self, request: Request) -> Iterator[Row | None]:
        every = request.flag("all") or request.text("prefix") is not None
        wanted = self._wanted(request, lambda _, family: self._core.ribs[family].table)
        down = [peer for peer, _ in wanted if not peer.adj_out]
        if down and len(down) == len(wanted):
            peer = down[0]
            raise ControlError(f"nothing is advertised to {peer.plan.name}: it is {peer.neighbor.state.label}")
        return chain.from_iterable(exchanged.advertised(self._core, peer, each, every=every) for peer, each in wanted)

    def _wanted(
        self, request: Request, known: Callable[[Peer, Family], Collection[bytes]]
    ) -> list[tuple[Peer, exchanged.Wanted]]:
        """Which tables of which peers a request is about, by its arguments address, prefix, family and longer."""
        peers = self._peers(_required(request, "address", "the address or name of a neighbor"))
        text, label = request.text("prefix"), request.text("family")
        only, prefix = (None, None) if text is None else _prefix(text)
        families = [family for family in Family if label is None or family.label.startswith(label)]
        if not families:
            raise ControlError(f"there is no family {label!r}; there are {', '.join(each.label for each in Family)}")
        if only is not None:
            if only not in families:
                raise ControlError(f"{text} is no prefix of family {label}")
            families = [only]
        found = []
        for peer in peers:
            for family in families:
                if family not in peer.adj_in:
                    continue
                meant = prefix
                if meant is not None and text is not None and "/" not in text:
                    meant = exchanged.longest_match(family, meant, known(peer, family))
                found.append((peer, exchanged.Wanted(family, meant, request.flag("longer"))))
        if not found:
            raise ControlError(f"{peers[0].plan.name} has no {' or '.join(each.label for each in families)} session")
        return found

    def _peers(self, text: str) -> list[Peer]:
        """The peers an operator means by an address or a name. Raises ControlError where there are none."""
        try:
            address = parse_address(text)
        except ValueError:
            peer = self._core.peers.get(text)
            if peer is None:
                raise ControlError(f"no neighbor has the address or name {text!r}; see `show neighbors`") from None
            return [peer]
        found = [peer for peer in self._core.peers.values() if peer.plan.session.address == address]
        if not found:
            raise ControlError(f"no neighbor has the address {format_address(address)}")
        return found

    def interfaces(self, _: Request) -> list[Row]:
        ours = {self._core.session_address(peer) for peer in self._core.peers.values()}
        return [self._interface(each, ours) for _, each in sorted(self._core.interfaces.items())]

    def _interface(self, interface: Interface, ours: set[bytes]) -> Row:
        roles = []
        if interface.name == "lo":
            roles.append("loopback")
        if any(address in ours for address, _ in interface.addresses):
            roles.append("BGP")
        if interface.name.startswith(INTERFACE_PREFIX):
            roles.append("workload")
        return {
            "index": interface.index,
            "name": interface.name,
            "state": "up" if interface.up else "down",
            "mtu": _mtu(interface.name),
            "addresses": [f"{format_address(address)}/{length}" for address, length in interface.addresses],
            "roles": roles,
        }

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

    def clear(self, request: Request) -> Row | Iterator[Row]:
        """One neighbor, or `all`: then a row for each, with a turn between two of them."""
        text = _required(request, "address", "the address or name of a neighbor, or all")
        mode = request.text("mode") or "hard"
        if mode not in CLEARED:
            raise ControlError(f"clear can do {', '.join(CLEARED)}, not {mode!r}")
        if text in EVERYBODY:
            return self._clear_all(mode)
        peers = self._peers(text)
        return self._clear(peers[0].plan.session.address, mode)

    def _clear_all(self, mode: str) -> Iterator[Row]:
        for address in sorted({peer.plan.session.address for peer in self._core.peers.values()}, key=_address_order):
            yield self._clear(address, mode)

    def _clear(self, address: bytes, mode: str) -> Row:
        for each in ("in", "out") if mode == "soft" else (mode,):
            self._driver.clear(address, each)
        return {"address": format_address(address), "text": f"{format_address(address)}: {CLEARED[mode]}"}

    def events(self, request: Request) -> Iterator[Row] | AsyncIterator[list[object]]:
        """What happened lately, and with `follow` what happens from now on."""
        text = request.text("kinds")
        kinds = frozenset(KINDS[:-1] if not text else text.split(","))
        if not kinds <= set(KINDS):
            raise ControlError(f"there are events of the kinds {', '.join(KINDS)}, not {', '.join(kinds - set(KINDS))}")
        prefix = request.text("prefix")
        within = None if prefix is None else _prefix(prefix)
        recent = [event for event in self._driver.events.recent if event["kind"] in kinds]
        if not request.flag("follow"):
            return iter(recent)
        follower: Follower = self._driver.events.follow(kinds, within, longer=request.flag("longer"))
        for event in recent:
            follower.offer(event)
        return follower

    def confirm(self, request: Request) -> Row:
        if isinstance(self._store, FileStore):
            raise ControlError("nothing is held: deletions in a folder of resource files are followed at once")
        kind = request.text("kind") or ""
        held = sorted({key.kind for key in self._store.guard.held})
        if kind and kind not in held:
            raise ControlError(f"no deletion of {kind!r:.60} is held" + (f", but of {', '.join(held)}" if held else ""))
        count = self._store.confirm(kind)
        return {"confirmed": count, "text": f"{count} held deletions are followed" if count else "no deletion is held"}

    def _store_row(self) -> Row:
        health, store = self._store.health, self._store
        return {
            "type": health.kind,
            "endpoint": store.path if isinstance(store, FileStore) else store.client.endpoint or None,
            "connected": health.connected,
            "stale": health.from_snapshot,
            "ageSeconds": None if health.as_of is None else round(max(0.0, time.time() - health.as_of), 3),
            "revision": health.revision or None,
            "heldDeletions": health.held,
        }

    def shutdown(self, request: Request) -> Row:
        self._stop("shutdown", request.text("reason") or "shut down by routedctl")
        return {"text": "routed is shutting down; its routes stay in the kernel"}


def _required(request: Request, name: str, what: str) -> str:
    text = request.text(name)
    if text is None:
        raise ControlError(f"{request.name} needs {what}")
    return text


def _address_order(address: bytes) -> tuple[int, bytes]:
    return len(address), address


def _memory() -> int | None:
    """Octets of memory the daemon holds (resident)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _mtu(interface: str) -> int | None:
    """What the kernel says; None where it says nothing, as for an interface that is just going."""
    try:
        with open(f"/sys/class/net/{interface}/mtu", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _prefix(text: str) -> tuple[Family, bytes]:
    try:
        return parse_prefix(text)
    except ValueError:
        raise ControlError(f"{text!r} is neither a prefix such as 10.244.1.0/26 nor an address") from None
