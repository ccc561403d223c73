"""The addresses of this node's tunnel devices: taken from the pools, written into the Node, given back. Calico's allocateip.

An address is taken while a pool with that encapsulation is enabled for this node, under Calico's handle
(`vxlan-tunnel-addr-NODE` and its like), so that every allocator of the cluster knows whose it is. One that the Node has
already is kept while it is ours and in such a pool. Where no pool wants the tunnel any more, the Node keeps the address for
LINGER seconds: other nodes may still send through the tunnel while they hear of the change.

Invariants: an address is in IPAM before the Node names it; the Node names it no longer, and the device is gone, before it is
given back. Every step may be cut off: the next look finds what it left and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable, Collection

from routed.core.effects import Level, problem_lines
from routed.daemon.background import Background
from routed.datastore.allocating import carry_out, clock, cluster_of
from routed.datastore.store import Conflict, Store
from routed.errors import ConfigError, StoreError
from routed.ipam.allocator import (
    Demand,
    Outcome,
    assign_addresses,
    assign_specific,
    handle_key,
    owner_of,
    pool_of,
    release_by_handle,
)
from routed.ipam.blocks import Owner
from routed.ipam.holders import Holder
from routed.model.ipam import IPAMConfig, IPReservation
from routed.model.resources import AllowedUse, EncapMode, IPPool, JsonObject, Node, Resource, ResourceKey, Update
from routed.model.schema import parse_stored
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.values import dataclass

#: Seconds the Node keeps an address no pool asks for any more.
LINGER = 5.0
RETRY = 2.0
#: Times a write that lost a race is tried again.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Slot:
    """One address a Node may have for a tunnel."""

    name: str
    """For people."""
    family: Family
    wants: Callable[[IPPool], bool]
    field: tuple[str, ...]
    """Where it is in the Node's spec."""
    handle: str
    type: str
    """Calico's attribute of the allocation."""
    of: Callable[[Node], bytes | None]


SLOTS = (
    Slot(
        "VXLAN", Family.IPV4_UNICAST, lambda pool: pool.vxlan_mode is not EncapMode.NEVER, ("ipv4VXLANTunnelAddr",),
        "vxlan-tunnel-addr-", "vxlanTunnelAddress", lambda node: node.ipv4_vxlan_tunnel_addr,
    ),
    Slot(
        "IPv6 VXLAN", Family.IPV6_UNICAST, lambda pool: pool.vxlan_mode is not EncapMode.NEVER,
        ("ipv6VXLANTunnelAddr",), "vxlan-v6-tunnel-addr-", "vxlanV6TunnelAddress",
        lambda node: node.ipv6_vxlan_tunnel_addr,
    ),
    Slot(
        "IPIP", Family.IPV4_UNICAST, lambda pool: pool.ipip_mode is not EncapMode.NEVER,
        ("bgp", "ipv4IPIPTunnelAddr"), "ipip-tunnel-addr-", "ipipTunnelAddress",
        lambda node: node.bgp.ipv4_ipip_tunnel_addr if node.bgp is not None else None,
    ),
)  # fmt: skip


class TunnelAddresses:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        store: Store,
        publish: Callable[[Update], None],
        gone: Callable[[bytes], Awaitable[None]],
        holder: Callable[[bytes, Collection[ResourceKey]], Holder | None],
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
        *,
        takes: bool = True,
    ) -> None:
        """`publish` hears of every write; `gone` waits until no device has an address any more; `holder` knows who has an
        address, apart from some. Without `takes`, addresses are only given back."""
        self._takes = takes
        self._node_name = node_name
        self._store = store
        self._publish = publish
        self._gone = gone
        self._holder = holder
        self._log = log
        self._bug = bug
        self._known: dict[ResourceKey, Resource] = {}
        self._own = ResourceKey(Node.kind, node_name)
        self._synced = False
        self._due = asyncio.Event()
        self._unwanted_since: dict[Slot, float] = {}
        self._work = Background()
        self.problems: tuple[str, ...] = ()

    def start(self) -> None:
        self._work.start(self._run())

    async def stop(self) -> None:
        await self._work.stop()

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        if update.key.kind not in _KINDS and update.key != self._own:
            return
        if update.value is None:
            self._known.pop(update.key, None)
        else:
            self._known[update.key] = update.value
        self._due.set()

    def in_sync(self) -> None:
        self._synced = True
        self._due.set()

    # ---- inside

    async def _run(self) -> None:
        pause: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._due.wait()
            self._due.clear()
            if not self._synced:
                continue
            problems = []
            pause = None
            for slot in SLOTS:
                try:
                    wait, problem = await self._look(slot)
                except Conflict:
                    wait, problem = RETRY, ""
                except (StoreError, ConfigError) as error:
                    wait, problem = RETRY, f"the {slot.name} address of this node: {error}"
                except Exception as error:
                    self._bug(f"the {slot.name} address", error)
                    wait, problem = RETRY, f"the {slot.name} address of this node: an internal error; the log has it"
                if problem:
                    problems.append(problem)
                if wait is not None:
                    pause = wait if pause is None else min(wait, pause)
            for level, line in problem_lines(self.problems, problems, Level.ERROR):
                self._log(level, "tunnels", line)
            self.problems = tuple(problems)

    async def _look(self, slot: Slot) -> tuple[float | None, str]:
        """Make one address right; seconds until it should be looked at again, and what is wrong."""
        node = self._known.get(self._own)
        if not isinstance(node, Node):
            return None, ""
        pools = [
            pool
            for pool in self._known.values()
            if isinstance(pool, IPPool) and pool.cidr.family is slot.family and slot.wants(pool)
        ]
        current = slot.of(node)
        if not pools or node.bgp is None:
            return await self._give_up(slot, current)
        self._unwanted_since.pop(slot, None)
        if not self._takes:
            return None, ""
        if (
            current is not None
            and pool_of(pools, slot.family, current) is not None
            and await self._is_ours(slot, current)
        ):
            return None, ""
        enabled = [
            pool
            for pool in pools
            if not pool.disabled and AllowedUse.TUNNEL in pool.allowed_uses and pool.node_selector.matches(node.labels)
        ]
        if not enabled:
            return await self._give_up(slot, current)
        taking = [pool for pool in enabled if pool.key not in self._store.gone]
        if not taking:  # it was deleted, and all goes on as before for a while: no more, and no less
            return None, ""
        return await self._take(slot, node, taking, current)

    async def _take(
        self, slot: Slot, node: Node, pools: list[IPPool], current: bytes | None
    ) -> tuple[float | None, str]:
        handle = self._handle(slot)
        gone = self._store.gone
        known = [one for one in self._known.values() if one.key not in gone]
        cluster = cluster_of(known, lambda address: self._holder(address, (self._own,)))
        await carry_out(self._store, release_by_handle(cluster, handle, clock()), written=self._publish)
        demand = Demand(
            node=self._node_name,
            node_labels=node.labels,
            owner=Owner(handle, {"node": self._node_name, "type": slot.type}),
            family=slot.family,
            pools=tuple(pool.name for pool in pools),
            use=AllowedUse.TUNNEL,
        )
        outcome = Outcome((), ())
        if (
            current is not None and pool_of(pools, slot.family, current) is not None
        ):  # as somebody wrote it, if it is free
            outcome = await carry_out(
                self._store, assign_specific(cluster, demand, current, clock()), written=self._publish
            )
        if not outcome.addresses:
            outcome = await carry_out(self._store, assign_addresses(cluster, demand, clock()), written=self._publish)
        if not outcome.addresses:
            return RETRY * 5, f"this node has no {slot.name} address: {outcome.reason}"
        address = outcome.addresses[0]
        await self._write(slot, address)  # where it is not known whether this was done, the next look sees, and goes on
        self._log(Level.INFO, "tunnels", f"the {slot.name} address of this node is {format_address(address)}")
        return None, ""

    async def _give_up(self, slot: Slot, current: bytes | None) -> tuple[float | None, str]:
        now = asyncio.get_running_loop().time()
        if current is not None:
            since = self._unwanted_since.setdefault(slot, now)
            if now < since + LINGER:
                return since + LINGER - now, ""
            await self._write(slot, None)
            await self._gone(current)
        elif self._unwanted_since.get(slot) is None:
            self._unwanted_since[slot] = now
            if await self._store.get(handle_key(self._handle(slot))) is None:
                return None, ""
        else:
            return None, ""
        await self._release(slot)
        self._log(Level.INFO, "tunnels", f"the {slot.name} address of this node was given back")
        return None, ""

    async def _release(self, slot: Slot) -> None:
        cluster = cluster_of(self._known.values())
        await carry_out(self._store, release_by_handle(cluster, self._handle(slot), clock()), written=self._publish)

    async def _is_ours(self, slot: Slot, address: bytes) -> bool:
        """Whether IPAM says so too."""
        owner = await carry_out(self._store, owner_of(cluster_of(self._known.values()), address))
        return owner is not None and owner.handle_id == self._handle(slot)

    async def _write(self, slot: Slot, address: bytes | None) -> None:
        """Have the Node name an address, or none."""
        for _ in range(_ATTEMPTS):
            stored = await self._store.get(self._own)
            if stored is None:
                raise StoreError(f"there is no Node {self._node_name} any more")
            manifest = with_address(stored.resource.manifest, slot, address)
            value = parse_stored(manifest)
            try:
                await self._store.write(self._own, value, stored.revision)
            except Conflict:
                continue
            self._publish(Update(self._own, value))
            return
        raise StoreError(f"Node {self._node_name} is changed by others at the same time")

    def _handle(self, slot: Slot) -> str:
        return slot.handle + self._node_name


_KINDS = frozenset(kind.kind for kind in (IPPool, IPAMConfig, IPReservation))


def with_address(manifest: JsonObject, slot: Slot, address: bytes | None) -> JsonObject:
    """A Node's manifest with an address of a tunnel, or without."""
    made = copy.deepcopy(manifest)
    at = made.setdefault("spec", {})
    for name in slot.field[:-1]:
        at = at.setdefault(name, {}) if isinstance(at, dict) else at
    if isinstance(at, dict):
        if address is None:
            at.pop(slot.field[-1], None)
        else:
            at[slot.field[-1]] = format_address(address)
    return made
