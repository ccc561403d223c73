"""Passes what the datastore says on to everybody who follows it, and what we wrote ourselves before it does.

What we write is in force at once, without waiting for the datastore to tell us of it. Until it does, it may still tell of
states from before our write: those are held back, so that nothing we decided is undone for a moment. Where it never tells
of our write (somebody else's came over it), the state it told last counts after `PATIENCE`.

What the Kubernetes API says (`Beneath`) counts where the datastore has no resource of that name; its Pods count by the
endpoints that `pod_follower` writes, and pass by here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from routed.datastore.folder import Problem
from routed.model.ipam import IPAMBlock
from routed.model.kubernetes import EndpointSlice, Namespace, Service
from routed.model.resources import Resource, ResourceKey, Update
from routed.values import dataclass

if TYPE_CHECKING:  # gRPC and httpx are imported by who needs them: see `datastores`
    from routed.datastore.etcd import EtcdSink

#: Kinds that both the datastore and the Kubernetes API may have.
_IN_BOTH = frozenset((Service.kind, EndpointSlice.kind, Namespace.kind))

#: Seconds the datastore may take to tell us of our own write.
PATIENCE = 5.0


@dataclass(slots=True)
class _Own:
    """A write of ours that the datastore has not told of yet."""

    value: Resource | None
    until: float
    told: Update | None = None
    """What it told instead, last."""


class Relay:
    """A sink of either datastore, and where our own writes go."""

    def __init__(
        self, first: EtcdSink, followers: Sequence[Callable[[Update], None]], synced: Sequence[Callable[[], None]],
        clock: Callable[[], float], problems: Sequence[Callable[[tuple[Problem, ...]], None]] = (),
        loaded: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._first = first
        self._followers = followers
        self._synced = synced
        self._clock = clock
        self._problems = problems
        self._loaded = loaded
        self._own: dict[ResourceKey, _Own] = {}
        self._stored: set[ResourceKey] = set()
        """What the datastore has of the kinds that the API may have, too."""
        self._beneath: dict[ResourceKey, Resource] = {}
        """What the API has."""

    # ---- the datastore's sink

    def update(self, update: Update) -> None:
        if update.key.kind in _IN_BOTH:
            if update.value is None:
                self._stored.discard(update.key)
                update = Update(update.key, self._beneath.get(update.key))
            else:
                self._stored.add(update.key)
        own = self._own.get(update.key)
        if own is not None:
            if not _same(update.value, own.value):
                own.told = update
                return
            del self._own[update.key]
            return  # it was passed on when it was written
        self._pass(update)

    def loaded(self) -> None:
        self._first.loaded()
        if self._loaded is not None:
            self._loaded()

    def in_sync(self) -> None:
        self._first.in_sync()
        for each in self._synced:
            each()

    def problems(self, problems: tuple[Problem, ...]) -> None:
        self._first.problems(problems)
        for each in self._problems:
            each(problems)

    # ---- the API's

    def beneath(self, update: Update) -> None:
        if update.value is None:
            self._beneath.pop(update.key, None)
        else:
            self._beneath[update.key] = update.value
        if update.key not in self._stored:
            self._pass(update)

    # ---- ours

    def publish(self, update: Update) -> None:
        """We wrote this."""
        self._own[update.key] = _Own(update.value, self._clock() + PATIENCE)
        self._pass(update)

    def tidy(self) -> None:
        """Give up waiting for what never came. To be called now and then."""
        now = self._clock()
        for key, own in list(self._own.items()):
            if own.until <= now:
                del self._own[key]
                if own.told is not None:
                    self._pass(own.told)

    def _pass(self, update: Update) -> None:
        self._first.update(update)
        for follower in self._followers:
            follower(update)


class Beneath:
    """The sink of who knows what the datastore may not have."""

    def __init__(self, relay: Relay, others: Callable[[Update], None] = lambda _: None) -> None:
        """`others` hears of kinds that count in another way."""
        self._relay = relay
        self._others = others

    def update(self, update: Update) -> None:
        if update.key.kind in _IN_BOTH:
            self._relay.beneath(update)
        else:
            self._others(update)


def _same(one: Resource | None, other: Resource | None) -> bool:
    """Whether two states mean the same; what a store adds to a manifest makes no difference."""
    if one is None or other is None or one is other:
        return one is other
    return _bare(one) == _bare(other)


def _bare(resource: Resource) -> Resource:
    return replace(resource.whole if isinstance(resource, IPAMBlock) else resource, manifest={})
