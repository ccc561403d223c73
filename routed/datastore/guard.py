"""What is believed of what a datastore says: last good values, and deletions that look like an accident.

Invariants:
- A key whose stored value is no resource keeps its last good value, until a valid one or its deletion is believed.
- Deletions that the resource itself announced, and of endpoints whose addresses were given back (`model.deletion`), are
  followed, however many, and count as nothing.
- What an accident looks like is held: a kind that has nothing left, or, within `window` seconds, `minimum` objects and
  more than `share` of a kind. It is held until the key is there again, somebody confirms, or `timeout` is over.
- Rules of policy are followed as they go, since one that is deleted must not stay in force: ordinary work deletes the last
  of a kind. Theirs is an accident where at least `minimum` go at one moment and leave none, or none is left while other
  kinds are held.
- So that this is seen before anything was withdrawn where deletions come one after the other, as programs make them, each
  is put off: for `pause` seconds where it is alone, for `window` seconds where another of its kind is deleted within as
  long before or after it. Should an accident be seen too late for one, since it began more slowly, that one comes back.
- A complete listing is compared with what is believed; what it does not name counts as deleted now, so what was missed
  while disconnected, compacted away or deleted while we did not run is judged like what is watched, and nothing is put
  off: it is known what else is gone.
- An update is a real change: one key, one `Update`, only where the believed manifest differs.

Pure: `now` is an argument. Which key has which value, and who is asked, is the store's business.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from routed.model.deletion import is_announced, is_given_back
from routed.model.ipam import IPAMBlock, IPAMConfig, IPAMHandle, IPReservation
from routed.model.kubernetes import KubernetesNetworkPolicy
from routed.model.policies import (
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    NetworkPolicy,
    NetworkSet,
    Profile,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.settings import CalicoNodeStatus
from routed.model.workloads import HostEndpoint, WorkloadEndpoint
from routed.values import dataclass

#: Kinds that say which packets pass. No route and no session goes by them.
POLICY = frozenset(
    each.kind
    for each in (
        NetworkPolicy, GlobalNetworkPolicy, KubernetesNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy,
        StagedKubernetesNetworkPolicy, Tier, NetworkSet, GlobalNetworkSet, Profile, HostEndpoint,
    )
)  # fmt: skip


#: Kinds of which there may well be none left, and no packet goes by them: deletions are followed at once, however many.
#: Addresses are given by what the store has, whatever is believed: to hold what is asked about them there would do nothing.
HARMLESS = frozenset({CalicoNodeStatus.kind, IPAMConfig.kind, IPAMHandle.kind, IPReservation.kind})

#: Seconds after which it is told that something is held: where the last of a kind goes on purpose, the rest of the same
#: write says so a moment later.
MOMENT = 1.0


@dataclass(frozen=True, slots=True)
class MassDelete:
    """When deletions are held, and for how long."""

    enabled: bool = True
    share: float = 0.3
    minimum: int = 5
    window: float = 2.0
    timeout: float | None = 900.0
    """Seconds after which what is held is believed; None: only a person ends it."""

    @property
    def pause(self) -> float:
        """Seconds a deletion waits for another: `minimum` of them, evenly spread over the window, are this far apart."""
        return self.window / max(1, self.minimum - 1)


class Good(NamedTuple):
    """A value that is believed."""

    resource: Resource
    revision: int


class Change(NamedTuple):
    """What the store says of a key: a resource, nothing (`resource` None), or (`garbage` not empty) no resource."""

    key: ResourceKey
    resource: Resource | None
    revision: int = 0
    garbage: str = ""


@dataclass(frozen=True, slots=True)
class Believed:
    """What a `Guard` believed at one moment."""

    good: Mapping[ResourceKey, Good]
    garbage: Mapping[ResourceKey, str]
    held: Mapping[ResourceKey, float]


class Guard:
    """See the module's docstring."""

    def __init__(self, rules: MassDelete) -> None:
        self.rules = rules
        self.good: dict[ResourceKey, Good] = {}
        self.garbage: dict[ResourceKey, str] = {}
        """Keys whose stored value is no resource, and why."""
        self.held: dict[ResourceKey, float] = {}
        """Keys that are gone from the store and kept, and since when."""
        self._count: Counter[str] = Counter()
        """Believed keys of a kind that are not held."""
        self._recent: deque[tuple[float, ResourceKey, Good]] = deque()
        """Deletions followed, of the last `window` seconds; when each was made."""
        self._told: dict[str, tuple[int, str]] = {}
        """How many of a kind are held, and the sentence about it."""
        self._put_off: dict[ResourceKey, tuple[float, float]] = {}
        """Deletions that wait for others: when each was made, and when it is followed. Their keys are still believed."""

    def load(self, good: Iterable[tuple[ResourceKey, Good]], held: dict[ResourceKey, float]) -> list[Update]:
        """Begin with what an earlier run believed."""
        self.good = dict(good)
        self.held = {key: at for key, at in held.items() if key in self.good}
        self._count = Counter(key.kind for key in self.good if key not in self.held)
        return [Update(key, each.resource) for key, each in self.good.items()]

    def believed(self) -> Believed:
        """A copy, for another thread: what comes later changes nothing in it."""
        return Believed(dict(self.good), dict(self.garbage), dict(self.held))

    def changes(self, changes: Sequence[Change], now: float) -> list[Update]:
        """What the store said at one moment, in its order. The last word on a key counts."""
        updates: list[Update] = []
        gone: dict[ResourceKey, None] = {}
        for change in changes:
            gone.pop(change.key, None)
            if change.resource is None and not change.garbage:
                gone[change.key] = None
            else:
                self._there(change, updates)
        self._gone(gone, now, updates, put_off=True)
        if any(
            change.key.kind == IPAMBlock.kind for change in changes
        ):  # addresses may be given back after the endpoint
            updates += self.own([key for key in self.gone if self._on_purpose(key)])
        return updates

    @property
    def gone(self) -> Collection[ResourceKey]:
        """Keys that are believed, and that the store has no more."""
        return self.held.keys() | self._put_off.keys() if self.held or self._put_off else ()

    def due(self) -> float | None:
        """When `settle` should be called; None: nothing waits."""
        return min((due for _, due in self._put_off.values()), default=None)

    def settle(self, now: float) -> list[Update]:
        """Follow the deletions that have waited long enough."""
        updates: list[Update] = []
        for key in [key for key, (_, due) in self._put_off.items() if due <= now]:
            self._follow(key, self._put_off.pop(key)[0], updates)
        return updates

    def own(self, keys: Iterable[ResourceKey]) -> list[Update]:
        """Deletions by our own hand, or announced: however many, nobody need wonder at them."""
        updates = []
        for key in keys:
            self._put_off.pop(key, None)
            if self.held.pop(key, None) is None and key in self.good:
                self._count[key.kind] -= 1
            self.good.pop(key, None)
            self.garbage.pop(key, None)
            updates.append(Update(key, None))
        return updates

    def listed(self, present: Collection[ResourceKey], changes: Sequence[Change], now: float) -> list[Update]:
        """A complete listing: the keys that are there, and what those say that are not as they were believed."""
        updates: list[Update] = []
        for change in changes:
            self._there(change, updates)
        keys = present if isinstance(present, (set, frozenset, dict)) else set(present)
        for key in [key for key in self.garbage if key not in keys]:
            del self.garbage[key]
        gone = {key: None for key in self.good if key not in keys and key not in self.held}
        self._gone(gone, now, updates, put_off=False)
        return updates

    def confirm(self, kind: str = "") -> list[Update]:
        """Somebody says that what is held (of a kind) is really gone."""
        return self._release([key for key in self.held if kind in ("", key.kind)])

    def expire(self, now: float) -> list[Update]:
        """What was held for long enough is believed. Only to be asked while the store answers."""
        timeout = self.rules.timeout
        if timeout is None or not self.held:
            return []
        return self._release([key for key, at in self.held.items() if now - at >= timeout])

    def sentences(self, now: float) -> list[str]:
        """What has been held for a moment, a sentence a kind, for people. What else of a kind comes and goes makes no other
        sentence."""
        kinds = Counter(key.kind for key in self.held)
        since: dict[str, float] = {}
        for key, at in self.held.items():
            since[key.kind] = min(at, since.get(key.kind, at))
        self._told = {
            kind: self._told[kind]
            if self._told.get(kind, (0, ""))[0] == count
            else (count, self._sentence(kind, count))
            for kind, count in sorted(kinds.items())
            if now - since[kind] >= MOMENT
        }
        return [text for _, text in self._told.values()]

    def _sentence(self, kind: str, count: int) -> str:
        until = "" if self.rules.timeout is None else f", or {self.rules.timeout:g} s are over"
        return (
            f"{count} of {count + self._count[kind]} {kind} objects vanished at once and are kept until they are back, "
            f"`routedctl confirm` says that they are gone{until}"
        )

    def _there(self, change: Change, updates: list[Update]) -> None:
        key = change.key
        self._put_off.pop(key, None)
        if self.held.pop(key, None) is not None:
            self._count[key.kind] += 1
        if change.resource is None:
            self.garbage[key] = change.garbage
            return
        self.garbage.pop(key, None)
        before = self.good.get(key)
        if before is None:
            self._count[key.kind] += 1
        resource = change.resource
        if before is not None and before.resource.says_the_same(resource):
            resource = before.resource
        else:
            updates.append(Update(key, resource))
        self.good[key] = Good(resource, change.revision)

    def _gone(self, gone: Collection[ResourceKey], now: float, updates: list[Update], *, put_off: bool) -> None:
        rules, recent = self.rules, self._recent
        updates += self.own([key for key in gone if self._on_purpose(key)])
        while recent and now - recent[0][0] > rules.window:
            recent.popleft()
        kinds: dict[str, dict[ResourceKey, None]] = {}
        for key in gone:
            self.garbage.pop(key, None)
            if key in self.good and key not in self.held:
                kinds.setdefault(key.kind, {})[key] = None
        policy = {kind: kinds.pop(kind) for kind in list(kinds) if kind in POLICY and rules.enabled}
        for kind, keys in kinds.items():
            keys |= {key: None for key in self._put_off if key.kind == kind}
            followed = {key: good for _, key, good in recent if key.kind == kind and key not in self.good}
            just_held = sum(key.kind == kind and now - at <= rules.window for key, at in self.held.items())
            lost = len(keys) + len(followed) + just_held
            whole = self._count[kind] + len(followed) + just_held
            suspicious = len(keys) == self._count[kind] or (lost >= rules.minimum and lost > rules.share * whole)
            guarded = rules.enabled and kind not in HARMLESS
            if guarded and suspicious:
                for key in keys:
                    self._put_off.pop(key, None)
                for key, good in followed.items():
                    self.good[key] = good
                    self.held[key] = now
                    updates.append(Update(key, good.resource))
                self.held.update(dict.fromkeys(keys, now))
                self._count[kind] -= len(keys)
            elif guarded and put_off:
                alone = len(keys) + len(followed) == 1
                for key in keys:
                    at, _ = self._put_off.get(key, (now, now))
                    self._put_off[key] = at, at + (rules.pause if alone else rules.window)
            else:
                for key in keys:
                    at, _ = self._put_off.pop(key, (now, now))
                    self._follow(key, at, updates)
        self._policy_gone(policy, now, updates, put_off=put_off)

    def _policy_gone(
        self, kinds: Mapping[str, Collection[ResourceKey]], now: float, updates: list[Update], *, put_off: bool
    ) -> None:
        """Rules are gone, or (whatever `kinds` is) other kinds are held now, of which the last rules that wait are part."""
        rules = self.rules
        accident = any(key.kind not in POLICY and now - at <= rules.window for key, at in self.held.items())
        if accident:
            for key in [key for key in self._put_off if key.kind in POLICY]:
                self._hold(key, self._put_off[key][0])
        for kind, keys in kinds.items():
            emptied = len(keys) == self._count[kind]
            for key in keys:
                if emptied and (accident or len(keys) >= rules.minimum):
                    self._hold(key, now)
                elif emptied and put_off:  # all there was may be about to be gone: the moment until that is seen
                    self._put_off[key] = now, now + rules.pause
                else:
                    self._put_off.pop(key, None)
                    self._follow(key, now, updates)

    def _hold(self, key: ResourceKey, now: float) -> None:
        self._put_off.pop(key, None)
        self.held[key] = now
        self._count[key.kind] -= 1

    def _on_purpose(self, key: ResourceKey) -> bool:
        """Whether a deletion is nothing to wonder at."""
        good = self.good.get(key)
        if good is None:
            return False
        if isinstance(good.resource, WorkloadEndpoint) and is_given_back(good.resource, self._believed):
            return True
        return is_announced(good.resource)

    def _believed(self, key: ResourceKey) -> Resource | None:
        good = self.good.get(key)
        gone = key in self.held or key in self._put_off
        return good.resource if good is not None and not gone else None

    def _follow(self, key: ResourceKey, at: float, updates: list[Update]) -> None:
        self._recent.append((at, key, self.good.pop(key)))
        self._count[key.kind] -= 1
        updates.append(Update(key, None))

    def _release(self, keys: list[ResourceKey]) -> list[Update]:
        for key in keys:
            del self.held[key]
            del self.good[key]
            self.garbage.pop(key, None)
        return [Update(key, None) for key in keys]
