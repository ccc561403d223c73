"""A store that remembers what was last written through it, so that who writes a thing again need not read it first.

Reading one's own last write back costs a question to the datastore each time, and of the few things a node writes for its
pods (blocks, handles, endpoints) it is nearly always the only writer. Where somebody else was faster, the write finds out:
it names the revision it is based on. After a conflict, and after any failure, the datastore itself is asked.

Invariants: nothing is remembered that the datastore has contradicted (`told`); what is answered from memory is only as good
as a moment-old reading of the datastore, which is what every reading is by the time somebody acts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from routed.datastore.store import Contents, Edit, Store, Stored
from routed.errors import StoreError
from routed.model.resources import Cidr, Resource, ResourceKey, Update

#: What is remembered; the oldest goes first.
LIMIT = 10_000


class RememberingStore:
    """Implements `store.Store` over another one."""

    def __init__(self, store: Store, is_there: Callable[[ResourceKey], bool | None]) -> None:
        """`is_there`: whether those who follow the datastore know of something at this key; None: they cannot say."""
        self._store = store
        self._is_there = is_there
        self._known: dict[ResourceKey, Stored] = {}
        self._doubtful: set[ResourceKey] = set()
        """Keys to ask the datastore for, whatever is believed of them."""

    @property
    def shared_with_calico(self) -> bool:
        return self._store.shared_with_calico

    @property
    def guards_deletions(self) -> bool:
        return self._store.guards_deletions

    @property
    def gone(self) -> Collection[ResourceKey]:
        return self._store.gone

    async def read(self, kinds: Collection[str] | None = None) -> Contents:
        return await self._store.read(kinds)

    async def get(self, key: ResourceKey) -> Stored | None:
        """What is stored, as far as this is known; as the datastore says after a conflict.

        Raises StoreError also where it may be in what cannot be read: to take it for absent would be to make it anew.
        """
        if key not in self._doubtful and key not in self._store.gone:
            known = self._known.get(key)
            if known is not None:
                return known
            if self._is_there(key) is False:
                return None
        found = await self._store.get(key)
        if found is None and self._is_there(key) and key not in self._store.gone:
            problems = (await self._store.read((key.kind,))).problems
            if problems:
                raise StoreError(f"{key} is not found, and may be in what cannot be read: {problems[0]}")
        self._doubtful.discard(key)
        if found is not None:
            self._remember(key, found)
        return found

    async def newest(self, key: ResourceKey) -> Stored | None:
        """What is stored now, asked of the datastore whatever is known."""
        return await self._store.get(key)

    async def has_elder(self, block: Cidr) -> bool:
        return await self._store.has_elder(block)

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        (written,) = await self.write_all((Edit(key, resource, revision),))
        return written

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        before = [self._known.pop(edit.key, None) for edit in edits]
        try:
            revisions = await self._store.write_all(edits)
        except StoreError:  # a conflict, or nobody knows whether it was written
            self._doubtful.update(edit.key for edit in edits)
            raise
        for edit, known, written in zip(edits, before, revisions, strict=True):
            self._doubtful.discard(edit.key)
            if edit.resource is not None:
                self._remember(edit.key, Stored(edit.resource, written, known.where if known is not None else ""))
        return revisions

    def forget(self) -> None:
        """The datastore was restored: what was written may not be there any more, and its revisions are used again."""
        self._doubtful.update(self._known)
        self._known.clear()

    def told(self, update: Update) -> None:
        """The datastore says so: what is remembered and differs was changed by somebody else."""
        known = self._known.get(update.key)
        if known is not None and known.resource is not update.value:
            del self._known[update.key]

    async def close(self) -> None:
        await self._store.close()

    def _remember(self, key: ResourceKey, stored: Stored) -> None:
        self._known.pop(key, None)
        self._known[key] = stored
        if len(self._known) > LIMIT:
            del self._known[next(iter(self._known))]
