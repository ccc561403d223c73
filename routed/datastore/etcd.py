"""The etcd datastore: Calico's tree, as a snapshot at one revision and a watch from the next.

Invariants: only the kinds that somebody here reads are listed and watched, and of the blocks' affinities only this
node's; each range resumes behind what it has told itself, so a change of member loses nothing and lists nothing. Where
etcd has forgotten that revision, or counts anew (restored, set up anew), everything is listed and compared: what did not
change is not even parsed. What is believed is the `Guard`'s business; until etcd answers it is what `saved` holds.
While ClusterInformation says that the datastore is not ready (a migration is under way) nothing changes but that, which
those who write must know. etcd failing changes nothing either: it is tried again, and `health` and the problems say why.

Long for one idea: what a listing and what a watch say must end in the same state, and every trouble with either is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Protocol

from routed.datastore.count import Count
from routed.datastore.etcd_client import Client, Events, KeyValue
from routed.datastore.etcd_settings import EtcdConfig
from routed.datastore.folder import Problem
from routed.datastore.guard import Change, Good, Guard, MassDelete
from routed.datastore.health import StoreHealth
from routed.datastore.lease import Lease
from routed.datastore.saved import Loaded, SavedState, Saver, is_another
from routed.datastore.store import Conflict, Contents, Edit, Stored
from routed.errors import Compacted, ConfigError, Denied, StoreError
from routed.model.head import API_VERSION
from routed.model.ipam import IPAMBlock
from routed.model.paths import TIERED_KINDS, Layout, Place, decode_at, encode
from routed.model.policies import GlobalNetworkPolicy, NetworkPolicy, Profile
from routed.model.resources import BGPPeer, BlockAffinity, Cidr, JsonValue, Node, Resource, ResourceKey, Update
from routed.model.schema import KINDS
from routed.model.settings import CalicoNodeStatus, ClusterInformation
from routed.model.workloads import WorkloadEndpoint
from routed.values import dataclass

#: What a node without policy of its own reads.
FOLLOWED = (
    "Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool", "BlockAffinity", "IPAMBlock", "ClusterInformation",
    "FelixConfiguration", "CalicoNodeStatus", "Service", "EndpointSlice",
)  # fmt: skip

#: Kinds that no BGP daemon of Calico's read in etcd: who may not read them either goes on without.
BESIDE = ("CalicoNodeStatus", "Service", "EndpointSlice")

#: The first Calico that stores a policy of the tier default without the tier in its name.
TIER_LEFT_OUT = (3, 32)
#: Seconds etcd may take at the start before what was saved is used.
COLD_START = 3.0
#: Seconds between attempts: the first, and the most; each is drawn from half to all of it.
BACKOFF = 0.5
MAX_BACKOFF = 5.0
#: Seconds the sink may be fed, and values parsed, before the loop gets a turn.
_SLICE = 0.005
#: Seconds between two looks at what is held; between two marks of the time in the saved state, and two questions for what
#: nobody tells.
_TICK = 1.0
_MARK = 30.0

#: Kinds of which each belongs to a node, and goes with it.
_OF_ONE_NODE = (BlockAffinity.kind, IPAMBlock.kind, WorkloadEndpoint.kind)
#: What pods have, and from what.
_ALLOCATED = (IPAMBlock.kind, WorkloadEndpoint.kind)
#: Kinds of which a node may follow its own only, among those of all.
_OF_OTHERS_TOO = (WorkloadEndpoint.kind, CalicoNodeStatus.kind)
#: Kinds of which nothing broken stays in force as it was: whoever enforces policies says what becomes of it.
_CLOSING = (NetworkPolicy.kind, GlobalNetworkPolicy.kind)


class EtcdSink(Protocol):
    """Who is told. Called on the loop's thread."""

    def update(self, update: Update) -> None: ...
    def loaded(self) -> None:
        """What an earlier run saved is complete: good for adding and replacing, and for nothing else."""

    def in_sync(self) -> None: ...
    def problems(self, problems: tuple[Problem, ...]) -> None: ...


#: Own writes that are known by their octets when etcd tells of them.
_WRITTEN = 1000


@dataclass(slots=True)
class _Reading:
    """What a listing found."""

    paths: dict[ResourceKey, str] = field(default_factory=dict)
    written: dict[ResourceKey, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    ready: bool = True


class _ListAnew(Exception):
    """What was not followed so far has to be looked at."""


class EtcdStore:
    """See the module's docstring."""

    shared_with_calico = True
    guards_deletions = True

    def __init__(
        self,
        config: EtcdConfig,
        *,
        node: str = "",
        root: str = "/calico",
        kinds: Collection[str] = FOLLOWED,
        rules: MassDelete | None = None,
        saved: SavedState | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = Client(config)
        self.health = StoreHealth("etcd")
        self.layout = Layout(root)
        self.guard = Guard(rules or MassDelete())
        self._node = node
        self._kinds = set(kinds)
        self._asks_for_workloads = False
        self._own_workloads_only = False
        self._clock = clock
        self._offset = time.time() - clock()
        self._saver = None if saved is None else Saver(saved, self.guard, self._offset, self._tell_problems)
        self._wanted = [
            (prefix, _end(prefix))
            for kind in kinds
            for prefix in (
                (self.layout.affinity_prefix(node),)
                if node and kind == BlockAffinity.kind
                else self.layout.kind_prefixes(kind)
            )
        ]
        self._ranges: list[tuple[str, str]] = []
        """What is listed and watched of it."""
        self._beside = {
            (prefix, _end(prefix)): kind
            for kind in BESIDE
            if kind in kinds
            for prefix in self.layout.kind_prefixes(kind)
        }
        self._denied: tuple[tuple[str, str], ...] = ()
        """Of those, what etcd does not let us read."""
        self._ready_path = f"{self.layout.resources}clusterinformations/default"
        self._ready = True
        self._paths: dict[ResourceKey, str] = {}
        self._twins: dict[ResourceKey, set[str]] = {}
        """Policies stored under more than one form of their name, and where; what was written last counts."""
        self._broken: dict[ResourceKey, str] = {}
        """What was stored as garbage, as far as it is JSON."""
        self._unknown: dict[tuple[str, str], dict[str, None]] = {}
        """Fields nobody here knows, by kind and field: the paths they are at."""
        self._with_unknown: dict[str, list[tuple[str, str]]] = {}
        """The same by path."""
        self._revisions: list[int] = []
        """Up to which each range is known; empty: list everything."""
        self._sink: EtcdSink | None = None
        self._told: tuple[Problem, ...] = ()
        self._synced = False
        self._began = False
        self._may_use_saved = False
        """There is a saved state, and nobody has been told of it."""
        self._not_saved = ""
        """Why there is none to begin with."""
        self._elsewhere: Loaded | None = None
        """A saved state of other endpoints, until etcd says which cluster it is."""
        self._counted = Count()
        """How far etcd had counted when it was last asked; its revision may be another one by now."""
        self._to_list = False
        """A watch should end for a new listing."""
        self._seen_last: tuple[str, int, bool] | None = None
        """The last event, of which path at which revision, and whether it was a deletion: an etcd that is restored does not
        know it."""
        """Of etcd, and of its last election we know of."""
        self._marked_at = 0.0
        self._written: dict[tuple[str, bytes], Resource] = {}
        """What we wrote, by path and octets, until etcd tells of it."""
        self._settling: asyncio.TimerHandle | None = None
        """For the deletions that the guard puts off."""
        self._deleted: set[ResourceKey] = set()
        """What we deleted, until etcd tells of it."""
        self.when_restored: Callable[[Mapping[ResourceKey, Resource]], None] | None = None
        """Who hears of an etcd that was restored from a backup, with the endpoints and blocks there were, before anybody is
        told what it has instead."""

    # ---- following

    async def run(self, sink: EtcdSink) -> None:
        """Feed the sink until cancelled."""
        self._sink = sink
        await self._load_saved()
        self._began = True
        helpers = [asyncio.create_task(each) for each in (self._cold_start(), self._tick(), self._ask_again())]
        pause = BACKOFF
        try:
            while True:
                began = self._clock()
                try:
                    await self._follow()
                except (_ListAnew, Compacted):
                    self._revisions = []
                except StoreError as error:
                    self.health.connected = False
                    self.health.failures += 1
                    self.health.problem = str(error)
                    self._use_saved()
                    self._tell_problems()
                    if self._clock() - began > MAX_BACKOFF:
                        pause = BACKOFF
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, MAX_BACKOFF)
        finally:
            for helper in helpers:
                helper.cancel()
            if self._settling is not None:
                self._settling.cancel()
            if self._saver is not None:
                await self._saver.close()

    async def _follow(self) -> None:
        if self._revisions:  # etcd may have been restored, and say nothing of a revision until it gets there again
            count = await self.client.count(self._ranges[0])
            if not await self._continues(count) or await self._may_read_other():
                raise _ListAnew
            self._counted = count
        else:
            await self._list()
        watch = self.client.watch(
            [(first, end, known + 1) for (first, end), known in zip(self._ranges, self._revisions, strict=True)]
        )
        try:
            async for events in watch:
                await self._heard(events)
        except Denied:
            if await self._find_denied() != self._denied:
                raise _ListAnew from None
            raise

    async def _heard(self, events: Events) -> None:
        self._connected()
        if self._to_list:
            raise _ListAnew
        if events.watch is None:
            return
        self._revisions[events.watch] = max(self._revisions[events.watch], events.revision)
        self.health.revision = max(self.health.revision, events.revision)
        if events.pairs:
            await self._take(events)

    async def _may_read_other(self) -> bool:
        """Whether etcd lets us read what it did not let us read before."""
        return bool(self._denied) and await self._find_denied() != self._denied

    async def _find_denied(self) -> tuple[tuple[str, str], ...]:
        """Ranges that etcd does not let us read, of those one may go on without."""
        found = []
        for each in self._beside:
            try:
                await self.client.count(each)
            except Denied:
                found.append(each)
        return tuple(found)

    async def _continues(self, count: Count) -> bool:
        """Whether this may be the etcd of before: it has counted on, and knows what we saw last."""
        if not count.continues(replace(self._counted, revision=self.health.revision)):
            return False
        if self._seen_last is not None:
            return await self._knows(*self._seen_last)
        if not self.guard.good:
            return True
        key, newest = max(self.guard.good.items(), key=lambda one: one[1].revision)
        known = self._paths.get(key)
        for path in [known] if known else self.layout.candidate_paths(key):
            if await self._knows(path, newest.revision, deleted=False):
                return True
        return False

    async def _knows(self, path: str, revision: int, deleted: bool) -> bool:
        """Whether a key was written or deleted at a revision; what etcd has forgotten, or keeps from us, may well be so."""
        try:
            there = await self.client.get(path, revision)
            if deleted:
                return there is None and await self.client.get(path, revision - 1) is not None
        except Compacted:
            there = None if deleted else await self.client.get(path)
            return there is None or there.revision >= revision
        except Denied:
            return True
        return there is not None and there.revision == revision

    async def _ask_again(self) -> None:
        """Ask for what no watch tells: how far raft has counted, and whether more may be read than before."""
        while True:
            await asyncio.sleep(_MARK)
            if self.health.connected:
                with contextlib.suppress(StoreError):
                    index = await self.client.index()
                    self._counted = replace(self._counted, index=max(index, self._counted.index))
                    self._to_list = self._to_list or await self._may_read_other()

    async def _list(self) -> None:
        count = await self.client.count(self._wanted[0])
        if self._elsewhere is not None and self._elsewhere.counted.cluster_id == count.cluster_id:
            self._believe(self._elsewhere)
        self._elsewhere = None
        # an etcd that was set up anew may well have the same id, but it begins to count anew
        continues = await self._continues(count)
        read = await self._read_allowed(count, continues=continues)
        paths, changes, ready = read.paths, read.changes, read.ready
        unread = {self._beside[each] for each in self._denied}
        paths |= {key: self._paths.get(key, "") for key in self.guard.good if key.kind in unread}
        self._counted, self._seen_last, self._to_list = count, None, False
        self._paths = paths
        if self._with_unknown:
            for gone in self._with_unknown.keys() - set(paths.values()):
                self._forget_unknown(gone)
        self._revisions = [count.revision] * len(self._ranges)
        self._ready = ready
        self._connected()
        self.health.readings += 1
        self.health.revision = count.revision
        if not ready:
            self._use_saved()
            lock = [change for change in changes if paths.get(change.key) == self._ready_path]
            await self._deliver(self.guard.changes(lock, self._clock()))  # who writes must know of it
            self._tell_problems()
            return
        self._follow_workloads()
        own = {key for key in self._deleted if key not in paths}
        self._deleted -= own
        updates = self.guard.own(own)
        another = not continues and is_another(self.guard.good, changes)
        if another and not self._synced:
            updates += self.guard.own([key for key in self.guard.good if key not in paths])
        if self.when_restored is not None and self.guard.good and not continues and not another:
            good = self.guard.good.items()
            self.when_restored({key: each.resource for key, each in good if key.kind in _ALLOCATED})
        was = self.guard.good.get(ResourceKey(Node.kind, self._node))
        updates += self.guard.listed(paths, changes, self._clock())
        updates += self.guard.own(self._taken_back(was))
        if self._may_use_saved:  # nobody knows what was saved
            self._may_use_saved = False
            updates = [Update(key, good.resource) for key, good in self.guard.good.items()]
        await self._deliver(updates)
        self.health.from_snapshot = False
        if not self._synced and self._sink is not None:
            self._synced = True
            self._tell_problems()
            self._sink.in_sync()
        if self._saver is not None:
            self._saver.save_all(count.revision, count)
        self._tell_problems()

    async def _read_allowed(self, count: Count, *, continues: bool) -> _Reading:
        """`_read_all`, where need be without ranges that etcd does not let us read."""
        self._ranges = list(self._wanted)
        try:
            reading = await self._read_all(count, continues=continues)
        except Denied:
            denied = await self._find_denied()
            self._ranges = [each for each in self._wanted if each not in denied]
            reading = await self._read_all(count, continues=continues)
            self._denied = denied
        else:
            self._denied = ()
        return reading

    async def _read_all(self, count: Count, *, continues: bool) -> _Reading:
        """All there is, parsed where it is not as it is believed. `continues`: revisions are comparable with those known."""
        reading = _Reading()
        self._twins.clear()
        paths, written = reading.paths, reading.written
        good, garbage, held = self.guard.good, self.guard.garbage, self.guard.held
        until = self._clock() + _SLICE
        async with contextlib.aclosing(self.client.pages(self._ranges, count.revision)) as pages:
            async for page in pages:
                for pair in page:
                    path = pair.key
                    if path == self._ready_path:
                        reading.ready = _is_ready(pair.value)
                    place = self.layout.place(path)
                    if place is None:
                        continue
                    key = place.key
                    if key in paths:  # a policy may have several
                        self._twins.setdefault(key, {paths[key]}).add(path)
                        if written[key] > pair.revision:
                            continue
                    paths[key], written[key] = path, pair.revision
                    known = good.get(key)
                    same = known is not None and known.revision == pair.revision and continues
                    if not same or key in garbage or key in held:
                        change = self._change(pair, place)
                        if change is not None:
                            reading.changes.append(change)
                    if self._clock() > until:
                        await asyncio.sleep(0)
                        until = self._clock() + _SLICE
        return reading

    async def _take(self, events: Events) -> None:
        last = events.pairs[-1]
        if self._seen_last is None or last.revision >= self._seen_last[1]:
            self._seen_last = last.key, last.revision, last.value is None
        changes: list[Change] = []
        for pair in events.pairs:
            if pair.key == self._ready_path:
                was, self._ready = self._ready, pair.value is None or _is_ready(pair.value)
                if self._ready and not was:
                    raise _ListAnew
                self._tell_problems()
            place = self.layout.place(pair.key)
            if place is None or not (self._ready or pair.key == self._ready_path):
                continue
            key = place.key
            if pair.value is None:
                if key in self._twins:
                    raise _ListAnew  # the other one counts now
                self._forget_unknown(pair.key)
                if self._paths.get(key) == pair.key:
                    del self._paths[key]
                    changes.append(Change(key, None, pair.revision))
            else:
                if self._paths.get(key, pair.key) != pair.key:
                    self._twins.setdefault(key, {self._paths[key]}).add(pair.key)
                self._paths[key] = pair.key
                change = self._change(pair, place)
                if change is not None:
                    changes.append(change)
        self._follow_workloads()
        latest = {change.key: change for change in changes}
        own = {key for key in self._deleted & latest.keys() if latest[key].resource is None and not latest[key].garbage}
        self._deleted -= own
        updates = self.guard.changes([change for change in changes if change.key not in own], self._clock())
        updates += self.guard.own(own)
        self.health.changes += len(updates)
        await self._deliver(updates)
        self._save(change.key for change in changes)
        self._settle_later()
        self._tell_problems()

    def _settle_later(self) -> None:
        """Follow the deletions that are put off when they are due."""
        if self._settling is not None:
            self._settling.cancel()
        due = self.guard.due()
        wait = None if due is None else max(0.0, due - self._clock())
        self._settling = None if wait is None else asyncio.get_running_loop().call_later(wait, self._settle)

    def _settle(self) -> None:
        self._settling = None
        if self._ready:  # else all is read anew when it is
            self._let_go(self.guard.settle(self._clock()))
            self._settle_later()

    def _change(self, pair: KeyValue, place: Place) -> Change | None:
        """What a value says; None where it is nothing to us."""
        key, path, value = place.key, pair.key, pair.value or b""
        if self._with_unknown:
            self._forget_unknown(path)
        if self._written:
            own = self._written.pop((path, value), None)
            if own is not None:  # what we have written need not be read
                return Change(key, own, pair.revision)
        try:
            found, unknown = decode_at(place, value)
        except ConfigError as error:
            self._broken[key] = _manifest_of(key, value)
            return Change(key, None, pair.revision, str(error))
        if key.kind in _OF_OTHERS_TOO and self._is_foreign(found) and key not in self.guard.good:
            return None
        if isinstance(found, BGPPeer) and found.local_workload_selector is not None:
            self._asks_for_workloads = True
        for each in unknown:
            self._unknown.setdefault((key.kind, each.path), {})[path] = None
            self._with_unknown.setdefault(path, []).append((key.kind, each.path))
        return Change(key, found, pair.revision)

    def _forget_unknown(self, path: str) -> None:
        """What is stored there is another value."""
        for each in self._with_unknown.pop(path, ()):
            paths = self._unknown[each]
            paths.pop(path, None)
            if not paths:
                del self._unknown[each]

    def _is_foreign(self, found: Resource) -> bool:
        """What other nodes have, of kinds of which a node needs its own only, and there are very many."""
        if isinstance(found, WorkloadEndpoint) and self._own_workloads_only:
            return found.node != self._node
        return isinstance(found, CalicoNodeStatus) and found.node != self._node != ""

    def _follow_workloads(self) -> None:
        """A BGPPeer is for pods: the endpoints of this node are followed too, and their profiles, from a new listing on."""
        if not self._asks_for_workloads or WorkloadEndpoint.kind in self._kinds or not self._node:
            return
        self._own_workloads_only = True
        self._kinds |= {WorkloadEndpoint.kind, Profile.kind}
        for kind in (WorkloadEndpoint.kind, Profile.kind):
            self._wanted += [(prefix, _end(prefix)) for prefix in self.layout.kind_prefixes(kind)]
        raise _ListAnew

    def _taken_back(self, was: Good | None) -> list[ResourceKey]:
        """What of this node's own is held though it was removed meanwhile: its Node `was` another, and the rest is there."""
        now = self.guard.good.get(ResourceKey(Node.kind, self._node))
        if was is None or (now is not None and _identity(now.resource) == _identity(was.resource)):
            return []
        if any(key.kind not in _OF_ONE_NODE for key in self.guard.held):
            return []
        return [key for key in self.guard.held if _node_of(self.guard.good[key].resource) == self._node]

    async def _deliver(self, updates: Sequence[Update]) -> None:
        until = self._clock() + _SLICE
        for update in updates:
            if self._sink is not None:
                self._sink.update(update)
            if self._clock() > until:
                await asyncio.sleep(0)
                until = self._clock() + _SLICE

    # ---- what is held, and people

    def confirm(self, kind: str = "") -> int:
        """What is held (of a kind) is really gone. How many."""
        return self._let_go(self.guard.confirm(kind))

    def _let_go(self, updates: list[Update]) -> int:
        for update in updates:
            if self._sink is not None:
                self._sink.update(update)
        self.health.changes += len(updates)
        self._save(update.key for update in updates)
        self._tell_problems()
        return len(updates)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            if not self.health.connected:
                continue
            if self._ready:
                updates = self.guard.expire(self._clock())
                if updates:
                    self._let_go(updates)
                elif self.guard.held:  # for a moment, or for longer
                    self._tell_problems()
            if self._synced and self._clock() - self._marked_at > _MARK:
                self._save(())

    def _connected(self) -> None:
        """Etcd has said something, so what we hold is what it says; a connection that only nobody closed says nothing."""
        health = self.health
        health.as_of = time.time()
        if not health.connected:
            health.connected, health.problem = True, ""
            self._tell_problems()

    def _tell_problems(self) -> None:
        self.health.held = len(self.guard.held)
        said = [Problem("etcd", 0, "", text) for text in self.guard.sentences(self._clock())]
        if self.health.problem:
            kept = (
                "what it last said stays"
                if self._synced or self.health.from_snapshot
                else f"nothing is known yet ({self._not_saved or 'no state was saved'})"
            )
            said.append(Problem("etcd", 0, "", f"{self.health.problem.removeprefix('etcd ')}; {kept}"))
        if not self._ready:
            text = "ClusterInformation says that the datastore is not ready, so what it last said stays"
            said.append(Problem(self._ready_path, 0, "spec.datastoreReady", text))
        for prefix, _ in self._denied:
            text = "etcd does not let us read this: what was known of it stays, and where nothing was there is none"
            said.append(Problem(prefix, 0, "", text))
        for key, text in self.guard.garbage.items():
            if key.kind not in _CLOSING:
                text += "; its last good value stays" if key in self.guard.good else "; it has no effect"
            said.append(Problem(self._paths.get(key, str(key)), 0, "", text, self._broken.get(key, "")))
        for key, twins in self._twins.items():
            text = f"{key} is stored under two names, {' and '.join(sorted(twins))}; what was written last counts"
            said.append(Problem(self._paths.get(key, str(key)), 0, "metadata.name", text))
        for (kind, name), paths in self._unknown.items():
            others = f", here and in {len(paths) - 1} more" if len(paths) > 1 else ""
            said.append(Problem(next(iter(paths)), 0, name, f"is no field of {kind} that routed knows{others}"))
        if self._saver is not None and self._saver.state.problem:
            said.append(Problem("etcd", 0, "", self._saver.state.problem))
        problems = tuple(said)
        if problems != self._told and self._sink is not None:
            self._told = problems
            self._sink.problems(problems)

    # ---- the saved state

    async def _cold_start(self) -> None:
        await asyncio.sleep(COLD_START)
        self._use_saved()

    async def _load_saved(self) -> None:
        """Believe what an earlier run believed. Nobody is told yet: etcd may answer in a moment."""
        if self._saver is None or self._began:
            return
        try:
            loaded = await asyncio.to_thread(self._saver.state.load)
        except ConfigError as refusal:
            self._not_saved = str(refusal)
            return
        if loaded.elsewhere:
            self._not_saved = (
                "the saved state is of other endpoints, so it is used only if etcd says that it is the same"
            )
            self._elsewhere = loaded
            return
        self._believe(loaded)

    def _believe(self, loaded: Loaded) -> None:
        self._counted = loaded.counted
        self._asks_for_workloads = any(
            isinstance(good.resource, BGPPeer) and good.resource.local_workload_selector is not None
            for good in loaded.good.values()
        )
        kinds = self._kinds
        if self._asks_for_workloads:
            kinds = kinds | {WorkloadEndpoint.kind, Profile.kind}
        # what an earlier run read and this one does not is missing from no listing
        self.guard.garbage = {key: reason for key, reason in loaded.garbage.items() if key.kind in kinds}
        self.guard.load(
            [(key, good) for key, good in loaded.good.items() if key.kind in kinds and not self._is_of_another(good)],
            {key: at - self._offset for key, at in loaded.held.items()},
        )
        self.health.as_of, self.health.revision = loaded.as_of, loaded.revision
        self._may_use_saved = True

    def _is_of_another(self, good: Good) -> bool:
        """An endpoint of another node, where this one reads its own."""
        found = good.resource
        return (
            isinstance(found, WorkloadEndpoint)
            and WorkloadEndpoint.kind not in self._kinds
            and found.node != self._node
        )

    def _use_saved(self) -> None:
        """Begin with what was saved where etcd has not said anything yet."""
        if self._synced or not self._may_use_saved or self._sink is None:
            return
        self._may_use_saved = False
        self.health.from_snapshot = True
        for good in self.guard.good.values():
            self._sink.update(Update(good.resource.key, good.resource))
        self._sink.loaded()
        self._tell_problems()

    def _save(self, keys: Iterable[ResourceKey]) -> None:
        if self._saver is not None and self._synced:
            self._marked_at = self._clock()
            self._saver.save(keys, self.health.revision)

    # ---- reading and writing

    @property
    def gone(self) -> Collection[ResourceKey]:
        return self.guard.gone

    async def read(self, kinds: Collection[str] | None = None) -> Contents:
        """Everything, or these kinds."""
        prefixes = [prefix for kind in kinds or KINDS for prefix in self.layout.kind_prefixes(kind)]
        listing = await self.client.listing([(prefix, _end(prefix)) for prefix in prefixes])
        resources: dict[ResourceKey, Stored] = {}
        problems: list[str] = []
        unreadable: dict[ResourceKey, str] = {}
        broken: list[tuple[str, str]] = []
        for pair in listing.pairs:
            place = self.layout.place(pair.key)
            if place is None:
                continue
            try:
                decoded = decode_at(place, pair.value or b"")
            except ConfigError as error:
                broken.append(((pair.value or b"").decode(errors="replace"), f"{pair.key}: {error}"))
                unreadable[place.key] = f"{pair.revision} {pair.key}"
                continue
            stored = Stored(decoded.resource, f"{pair.revision} {pair.key}", pair.key)
            other = resources.get(stored.resource.key)
            if other is not None:
                stored = max(stored, other, key=_written)
                text = f"{stored.resource.key} is stored under two names, here and at"
                problems.append(f"{pair.key}: {text} {other.where}; what was written last counts")
            resources[stored.resource.key] = stored
        return Contents(resources, (*(why for _, why in broken), *problems), unreadable, tuple(broken))

    async def get(self, key: ResourceKey) -> Stored | None:
        """One resource, as etcd has it now."""
        if key.kind in TIERED_KINDS:  # it may have any of three names there
            return (await self.read({key.kind})).resources.get(key)
        known = self._paths.get(key)
        for path in dict.fromkeys(([known] if known else []) + self.layout.candidate_paths(key)):
            pair = await self.client.get(path)
            if pair is None or pair.value is None:
                continue
            try:
                decoded = self.layout.decode(path, pair.value)
            except ConfigError as error:
                raise StoreError(f"{path}: {error}") from None
            if decoded is not None and decoded.resource.key == key:
                return Stored(decoded.resource, f"{pair.revision} {path}", path)
        return None

    async def has_elder(self, block: Cidr) -> bool:
        """By the revisions at which the keys were made: whoever was later sees who was before."""
        made = {
            place.block[0]: revision
            for path, revision in await self.client.made(self.layout.keys_near(block))
            if (place := self.layout.place(path)) is not None and place.block is not None
        }
        own = made.get(block)
        return own is not None and any(
            revision < own and each.overlaps(block) for each, revision in made.items() if each != block
        )

    async def write(
        self, key: ResourceKey, resource: Resource | None, revision: str | None, *, ttl: float | None = None
    ) -> str:
        """Make `resource` (None: nothing) what is stored at `key`, where that is still at `revision` (None: absent).

        With `ttl`, etcd deletes it again after that many seconds (at least one), unless it is written anew before.
        """
        (written,) = await self._swap((Edit(key, resource, revision),), None if resource is None else ttl)
        return written

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        """As of `Store`: one transaction."""
        return await self._swap(edits, None)

    async def _swap(self, edits: Sequence[Edit], ttl: float | None) -> list[str]:
        compares: list[tuple[str, int]] = []
        writes: list[tuple[str, bytes | None]] = []
        for edit in edits:
            if edit.revision:
                text, _, path = edit.revision.partition(" ")
                compares.append((path, int(text)))
            elif edit.resource is not None:
                path = self.layout.path(edit.resource, old_policy_names=await self._is_old(edit.resource))
                compares.append((path, 0))
            else:
                compares += [(path, 0) for path in self.layout.candidate_paths(edit.key)]
                continue
            writes.append((path, None if edit.resource is None else encode(edit.resource, path)))
        made = [edit for edit in edits if not edit.is_condition]
        if self._sink is not None:  # before: etcd may tell of it before it answers
            for edit, (path, value) in zip(made, writes, strict=True):
                self._expect(edit, path, value)
        written = await self.client.swap(compares, writes, ttl)
        if written is None:
            for edit, (path, value) in zip(made, writes, strict=True):
                self._deleted.discard(edit.key)
                self._written.pop((path, value or b""), None)
            paths = [path for path, _ in compares]
            which = paths[0] if len(paths) == 1 else f"one of {', '.join(paths)}"
            raise Conflict(f"{which} is not what it was: somebody else has written it; read it again")
        revisions = iter([f"{written} {path}" if value is not None else "" for path, value in writes])
        return ["" if edit.is_condition else next(revisions) for edit in edits]

    def _expect(self, edit: Edit, path: str, value: bytes | None) -> None:
        """Know what we write by its octets when etcd tells of it."""
        if edit.resource is None or value is None:
            self._deleted.add(edit.key)
            return
        self._written.pop((path, value), None)
        self._written[path, value] = edit.resource
        if len(self._written) > _WRITTEN:
            del self._written[next(iter(self._written))]

    async def _is_old(self, resource: Resource) -> bool:
        """Whether the Calico that reads a new policy looks for it with its tier before the name."""
        if resource.kind not in TIERED_KINDS:
            return False
        stored = await self.get(ResourceKey(ClusterInformation.kind, "default"))
        found = stored.resource if stored is not None else None
        return isinstance(found, ClusterInformation) and (found.release or (0, 0)) < TIER_LEFT_OUT

    def lease(self, name: str, node: str, run: str = "") -> Lease:
        """A key of ours that one of many has, for `node` to take."""
        return Lease(self.client, f"{self.layout.root}/routed/v1/{name}", node, run)

    async def close(self) -> None:
        """Give back the connection."""
        await self.client.close()


def _written(stored: Stored) -> int:
    """When a value read from etcd was written: its revision."""
    return int(stored.revision.partition(" ")[0])


def _end(prefix: str) -> str:
    """The key behind all that begin with a prefix; behind the key itself where it is no folder."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix.endswith("/") else prefix + "\0"


def _is_ready(value: bytes | None) -> bool:
    """What ClusterInformation says; what can't be read counts as yes, since it is reported as garbage anyway."""
    try:
        return json.loads(value or b"{}")["spec"]["datastoreReady"] is not False
    except (ValueError, KeyError, TypeError, RecursionError):
        return True


def _identity(resource: Resource) -> JsonValue:
    """What tells a resource from another that is called the same."""
    metadata = resource.manifest.get("metadata")
    return [metadata.get("uid"), metadata.get("creationTimestamp")] if isinstance(metadata, dict) else None


def _node_of(resource: Resource) -> str | None:
    if isinstance(resource, IPAMBlock):
        return resource.host
    return resource.node if isinstance(resource, (BlockAffinity, WorkloadEndpoint)) else None


def _manifest_of(key: ResourceKey, value: bytes) -> str:
    """A value that is no resource as a manifest, as far as it is one."""
    try:
        read = json.loads(value)
        spec = json.dumps(read.get("spec") if isinstance(read, dict) else None)
    except (ValueError, RecursionError):
        spec = "null"
    metadata = {"name": key.name, **({"namespace": key.namespace} if key.namespace else {})}
    head = json.dumps({"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata})
    return f'{head[:-1]}, "spec": {spec}}}'
