"""Keeps the firewall what policies, pools and endpoints ask for: one engine, fed with resources, and one kernel.

Changes of one turn of the loop go into the kernel as one batch. It is made in slices, a turn of the loop each, so that
sessions and pods never wait for it; what changes meanwhile is in the same batch. Nothing is written before the datastore
was read: the rules of before stay in force over a restart until all that is wanted is known. Where the kernel has none, as
after a boot, and the datastore does not answer, they are made from what an earlier run saved of it: old rules are better
than no rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_kernel import FirewallKernel
from routed.dataplane.tally import RuleTally
from routed.datastore.file import Problem
from routed.desired import Tunnel, TunnelKind
from routed.desired_policy import HostRules, PolicyBatch, TunnelPackets
from routed.model.policies import GlobalNetworkPolicy, NetworkPolicy, Policy
from routed.model.resources import IPPool, ResourceKey, Update
from routed.model.settings import FelixConfiguration, may_spoof, workload_prefixes
from routed.net.addresses import is_link_local
from routed.observed import Interface
from routed.policy.engine import PolicyEngine
from routed.policy.host import host_rules
from routed.policy.kubernetes import Kubernetes
from routed.policy.refusals import Refusal, read_refusal

K = TypeVar("K")
V = TypeVar("V")

_UDP, _IPIP = 17, 4
_POLICIES = (NetworkPolicy.kind, GlobalNetworkPolicy.kind)

#: Seconds between two looks whether the kernel has rules of ours, while there are none of this run.
_LOOK = 0.25

#: Seconds that interfaces which came or went wait for other changes.
_LATE = 0.1

#: Seconds between two readings of what policies' rules counted.
COUNT_EVERY = 10.0


class PolicyKeeper:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        problem: Callable[[str], None],
        bug: Callable[[str, Exception], None],
        interface_prefixes: tuple[str, ...] = (),
        log_group: int | None = None,
        named_policies: Callable[[], int] = lambda: 0,
    ) -> None:
        self.engine = PolicyEngine(node_name)
        self._kubernetes = Kubernetes()
        self._readable: dict[ResourceKey, Policy] = {}
        """Policies as they were last read."""
        self._refused: dict[ResourceKey, Refusal] = {}
        self.firewall = Firewall()
        self.kernel = FirewallKernel(self.firewall, problem)
        self.tally = RuleTally(named_policies)
        self.synced = False
        """The datastore itself has spoken."""
        self._follows = False
        """The kernel is to have what is known here."""
        self._node_name = node_name
        self._bug = bug
        self._prefixes = interface_prefixes
        self._log_group = log_group
        self._pools: dict[ResourceKey, IPPool] = {}
        self._felix: dict[str, FelixConfiguration] = {}
        self._host: HostRules | None = None
        """What was last applied."""
        self._host_due = True
        """It may be another one by now."""
        self._due = False
        self._links: dict[int, str] = {}
        """The names of the interfaces there are."""
        self._moved: dict[str, int] = {}
        """Their indexes, where these are others than the kernel's firewall was told of; 0 where there is none now."""
        self._late: asyncio.TimerHandle | None = None
        self._tunnels: tuple[TunnelPackets, ...] = ()

    def start(self) -> None:
        """Open the kernel's sockets. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self.kernel.start()

    def close(self) -> None:
        """Stop; the rules stay."""
        self.kernel.close()

    @property
    def problems(self) -> tuple[str, ...]:
        return self.engine.problems

    @property
    def source_spoofing(self) -> bool:
        """Pods may have the sources they ask for."""
        return may_spoof(self._felix, self._node_name)

    @property
    def workload_prefixes(self) -> tuple[str, ...]:
        """What names of workloads' interfaces begin with."""
        return workload_prefixes(self._felix, self._node_name, self._prefixes)

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        value = update.value
        if update.key.kind == IPPool.kind:
            _put(self._pools, update.key, value if isinstance(value, IPPool) else None)
            self._host_due = True
        elif update.key.kind == FelixConfiguration.kind:
            _put(self._felix, update.key.name, value if isinstance(value, FelixConfiguration) else None)
            self._host_due = True
        else:
            for each in self._kubernetes.update(update):
                self._tell(each)
        self._wake()

    def unreadable(self, problems: tuple[Problem, ...]) -> None:
        """All of the datastore that cannot be read now: policies among it close what they are for."""
        refused: dict[ResourceKey, Refusal] = {}
        for problem in problems:
            refusal = read_refusal(problem.manifest, str(problem))
            if refusal is not None:
                refused.setdefault(refusal.key, refusal)
        before, self._refused = self._refused, refused
        for key in before.keys() - refused.keys():
            self.engine.update(Update(key, self._readable.get(key)))
        for key, refusal in refused.items():
            if before.get(key) != refusal:
                if key in before and refusal.keeps_last and key in self._readable:  # it may be kept as it last was
                    self.engine.update(Update(key, self._readable[key]))
                self.engine.refuse(refusal)
        self._wake()

    def tunnels(self, tunnels: tuple[Tunnel, ...]) -> None:
        """The node's tunnels: their packets are let in from other nodes, and from nobody else."""
        self._tunnels = tuple(
            TunnelPackets(
                tunnel.family,
                _UDP if tunnel.kind is TunnelKind.VXLAN else _IPIP,
                tunnel.port,
                tuple(sorted(peer.address for peer in tunnel.peers)),
            )
            for tunnel in tunnels
        )
        self._host_due = True
        self._wake()

    def links(self, there: Collection[Interface], gone: Iterable[int]) -> None:
        """Interfaces are there, perhaps under another name, and others not any more.

        How packets are judged does not depend on the kernel's firewall hearing of it, only how much work that is. So it is
        told with the next change there is, or a moment later.
        """
        for index in gone:
            self._moved[self._links.pop(index, "")] = 0
        renamed = [each for each in there if self._links.get(each.index) != each.name]
        for interface in renamed:
            self._moved[self._links.pop(interface.index, "")] = 0
        for interface in renamed:
            self._links[interface.index] = interface.name
            self._moved[interface.name] = interface.index
        self._moved.pop("", None)
        if self._moved and self._follows and self._late is None:
            self._late = self._loop.call_later(_LATE, self._wake)

    def interfaces(self, interfaces: Mapping[int, Interface]) -> None:
        """All the kernel has."""
        self.links(interfaces.values(), self._links.keys() - interfaces.keys())
        self.engine.interfaces(
            {
                address: interface.name
                for interface in interfaces.values()
                for address, _ in interface.addresses
                if not is_link_local(address)  # that of all pods is the same
            }
        )
        self._wake()

    def in_sync(self) -> None:
        """The datastore was read: from here on the kernel follows."""
        self.synced = self._follows = True
        self._wake()

    async def loaded(self) -> None:
        """All was told that an earlier run saved: it counts as soon as the kernel has no rules of ours, and until the
        datastore is read."""
        while not self._follows:
            if not await self.kernel.is_there():
                self._follows = True
                self._wake()
            await asyncio.sleep(_LOOK)

    async def until_there(self) -> None:
        """Until the kernel has rules of ours, be it those of an earlier run."""
        while not await self.kernel.is_there():
            await asyncio.sleep(_LOOK)

    def _tell(self, update: Update) -> None:
        """To the engine; a policy that is refused stays so until the datastore says it can be read."""
        if update.key.kind in _POLICIES:
            _put(self._readable, update.key, update.value if isinstance(update.value, Policy) else None)
        self.engine.update(update)
        refusal = self._refused.get(update.key)
        if refusal is not None:  # which may keep what was just told in force
            self.engine.refuse(refusal)

    async def count(self) -> None:
        """Read the kernel's counters into the tally."""
        table = self.kernel.rebuilds
        try:
            found = await self.kernel.rules()
        except OSError:
            return  # what the kernel refuses is told where it matters
        if table == self.kernel.rebuilds:
            self.tally.read(found, self.firewall.decisions(), table)

    async def counting(self, wanted: Callable[[], object]) -> None:
        """Count again and again, where somebody reads it: a scrape reads no kernel."""
        while True:
            if wanted() and self._follows:
                try:
                    await self.count()
                except Exception as error:
                    self._bug("counting packets", error)
            await asyncio.sleep(COUNT_EVERY)

    async def settled(self) -> None:
        """Until all so far is in force."""
        while self._flush():
            await asyncio.sleep(0)
        await self.kernel.settled()

    def _wake(self) -> None:
        if self._follows and not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        if self._flush():
            self._wake()

    def _flush(self) -> bool:
        """One slice of work, and once all is done the batch it gives. Whether there is more to do."""
        if not self._follows:
            return False
        try:
            if self.engine.work():
                return True
            batch = self.engine.flush()
            changed = None
            if self._host_due:
                self._host_due = False
                host = self._host_rules()
                changed = None if host == self._host else host
                self._host = host
            moved, self._moved = self._moved, {}
            if self._late is not None:
                self._late.cancel()
                self._late = None
            if batch is not None or changed is not None or moved:
                made = batch if batch is not None else PolicyBatch()
                self.kernel.apply(PolicyBatch(made.sets, made.chains, made.endpoints, changed, moved))
        except Exception as error:
            self._bug("policy", error)
        return False

    def _host_rules(self) -> HostRules:
        made = host_rules(self._pools.values(), self._felix, self._node_name, self._prefixes)
        logged = self._log_group is not None
        return replace(made, tunnels=self._tunnels, log_group=self._log_group, log_denied=logged)


def _put(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
