"""What a datastore can be asked and told, besides being followed: read all, write one resource if it is unchanged.

Invariants: a write names the revision it is based on and raises Conflict where somebody else was faster, so that no
change is ever lost unseen; reading and writing never need the daemon. A revision is opaque text of the store's own.
Which resources follow from which files of a person is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Protocol

from routed.errors import StoreError
from routed.model.resources import Cidr, Resource, ResourceKey
from routed.values import dataclass


class Conflict(StoreError):
    """What is stored is not what the write was based on; read again and decide again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A resource as it is stored."""

    resource: Resource
    revision: str
    where: str
    """For people: `file:line`, or the path in etcd."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store holds."""

    resources: dict[ResourceKey, Stored]
    problems: tuple[str, ...] = ()
    """What could not be read, a sentence each, with where it is."""
    unreadable: Mapping[ResourceKey, str] = field(default_factory=dict)
    """Revisions of keys whose stored value is no resource, for who replaces it."""
    broken: tuple[tuple[str, str], ...] = ()
    """Of what could not be read: the manifest (JSON) and why."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Make `resource` (None: nothing) what is stored at `key`, where that is still at `revision` (None: absent)."""

    key: ResourceKey
    resource: Resource | None
    revision: str | None

    @property
    def is_condition(self) -> bool:
        """Nothing is there, and nothing shall be: it only must be so for the others to be made."""
        return self.resource is None and not self.revision


class Editable(Protocol):
    """What a procedure reads and writes, one resource at a time."""

    async def get(self, key: ResourceKey) -> Stored | None:
        """One resource; None where there is none."""

    async def has_elder(self, block: Cidr) -> bool:
        """Whether there is, now, an allocation block that overlaps with this one and was made before it."""

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        """Make `resource` (None: nothing) what is stored at `key`, where that is still at `revision` (None: absent).

        Returns the new revision, empty after a deletion. Raises Conflict.
        """


class Store(Editable, Protocol):
    """A datastore that can be written. Every method raises StoreError where it cannot be reached."""

    @property
    def shared_with_calico(self) -> bool:
        """Calico's own components read it too, so policies go there in the form they read."""

    @property
    def guards_deletions(self) -> bool:
        """Who follows it holds deletions that look like an accident, unless they were announced (`model.deletion`)."""

    @property
    def gone(self) -> Collection[ResourceKey]:
        """What is there no more, and those who follow it are not told so yet, or until somebody confirms it."""

    async def read(self, kinds: Collection[str] | None = None) -> Contents:
        """Everything, or these kinds."""

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        """Make all edits (each of another key, a hundred at most), in their order; their revisions as of `write`.

        Raises Conflict, and nothing is written, where one is not based on what is stored.
        """

    async def close(self) -> None:
        """Give back what it holds."""
