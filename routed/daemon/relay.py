"""Passes what the datastore says on to everybody who follows it, and what we wrote ourselves before it does.

What we write is in force at once, without waiting for the datastore to tell us of it. Until it does, it may still tell of
states from before our write: those are held back, so that nothing we decided is undone for a moment. Where it never tells
of our write (somebody else's came over it), the state it told last counts after `PATIENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from routed.datastore.folder import Problem
from routed.model.resources import Resource, ResourceKey, Update

if TYPE_CHECKING:  # gRPC and httpx are imported by who needs them: see `datastores`
    from routed.datastore.etcd import EtcdSink

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
    ) -> None:  # fmt: skip
        self._first = first
        self._followers = followers
        self._synced = synced
        self._clock = clock
        self._problems = problems
        self._own: dict[ResourceKey, _Own] = {}

    # ---- the datastore's sink

    def update(self, update: Update) -> None:
        own = self._own.get(update.key)
        if own is not None:
            if not _same(update.value, own.value):
                own.told = update
                return
            del self._own[update.key]
            return  # it was passed on when it was written
        self._pass(update)

    def loaded(self) -> None:
        self._first.loaded()  # followers wait for the datastore itself: what a pod may do is not decided by old state

    def in_sync(self) -> None:
        self._first.in_sync()
        for each in self._synced:
            each()

    def problems(self, problems: tuple[Problem, ...]) -> None:
        self._first.problems(problems)
        for each in self._problems:
            each(problems)

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


def _same(one: Resource | None, other: Resource | None) -> bool:
    """Whether two states mean the same; what a store adds to a manifest makes no difference."""
    if one is None or other is None or one is other:
        return one is other
    return replace(one, manifest={}) == replace(other, manifest={})
