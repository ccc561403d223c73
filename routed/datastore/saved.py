"""What was last believed, on disk, so that a node whose datastore is down at start has what it had.

A file of lines in `stateDir`: a header, then one line for each change of a key, each with its checksum. A line says all
that is known of its key, so the last one counts, what was cut off is left out, and a change costs its own octets. When
most lines are outdated, and after every complete listing, the file is written anew beside the old and takes its place.
That is a second's work for a large cluster, so `Saver` has it done in a thread.

Invariants: a file of another node, another kind of datastore or another root is not used, and why is said, and one of other
endpoints is marked so; what a line holds is validated like what comes from the datastore; a disk that does not take it
stops nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, BinaryIO

import msgspec

from routed.datastore.count import Count
from routed.datastore.guard import Believed, Change, Good, Guard
from routed.errors import ConfigError
from routed.model.paths import ALLOCATOR_KINDS, read_text
from routed.model.resources import JsonObject, JsonValue, ResourceKey, json_line
from routed.model.settings import ClusterInformation
from routed.values import dataclass

SCHEMA = 1
#: A line of a key: kind, namespace, name, revision, manifest, since when it is held, why it is garbage. And one of the time.
_ENTRY = msgspec.json.Decoder(tuple[str, str, str, int, msgspec.Raw, float | None, str])
_MARK = msgspec.json.Decoder(tuple[float, int])
#: Outdated lines that are not worth a new file.
_SPARE = 2000


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose state it is."""

    node: str
    root: str
    endpoints: tuple[str, ...]


@dataclass(slots=True)
class Loaded:
    """What a file held."""

    as_of: float = 0.0
    """Unix time of its last line that says so."""
    revision: int = 0
    counted: Count = field(default_factory=Count)
    """By which etcd, and how far it had counted when all was last written: revisions of another mean nothing."""
    elsewhere: bool = False
    """None of its endpoints is ours, so only etcd's own word tells whether it is the same."""
    good: dict[ResourceKey, Good] = field(default_factory=dict)
    held: dict[ResourceKey, float] = field(default_factory=dict)
    """Since when, in Unix time."""
    garbage: dict[ResourceKey, str] = field(default_factory=dict)


class SavedState:
    """See the module's docstring. Used from one thread at a time."""

    def __init__(self, path: str, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self.problem = ""
        """Why nothing is being saved; empty while it is."""
        self._file: BinaryIO | None = None
        self._lines = 0

    def load(self) -> Loaded:
        """What the last run believed. Raises ConfigError with why it is of no use; the file stays as it is."""
        try:
            with open(self.path, "rb") as file:
                loaded = self._begun(file.readline())
                for line in file:
                    if text := _text_of(line):
                        _take(loaded, text)
                return loaded
        except FileNotFoundError:
            raise ConfigError(self.path, "there is no saved state") from None
        except OSError as error:
            raise ConfigError(self.path, f"cannot read the saved state: {error.strerror}") from None

    def _begun(self, line: bytes) -> Loaded:
        """What the first line says. Raises ConfigError."""
        header = _header(line)
        if not isinstance(header, dict) or header.get("saved") != SCHEMA:
            raise ConfigError(self.path, "this is no saved state of this version of routed")
        own = self.identity
        if (header.get("node"), header.get("root")) != (own.node, own.root):
            raise ConfigError(self.path, "the saved state is of another node or another root, so it is not used")
        return Loaded(
            counted=Count(int(header.get("cluster", 0)), 0, int(header.get("term", 0)), int(header.get("index", 0))),
            elsewhere=not set(header.get("endpoints") or ()) & set(own.endpoints),
        )

    def rewrite(self, believed: Believed, offset: float, as_of: float, revision: int, counted: Count) -> None:
        """Write all of it. `offset` is what to add to the guard's times for Unix time."""
        own = self.identity
        header: JsonObject = {"saved": SCHEMA, "node": own.node, "root": own.root, "endpoints": list(own.endpoints)}
        header |= {"cluster": counted.cluster_id, "term": counted.term, "index": counted.index}
        keys = (*believed.good, *(key for key in believed.garbage if key not in believed.good))
        first = (_line(header), _line([as_of, revision]))
        temporary = f"{self.path}.new"
        try:
            self.close()
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.writelines(first)
                file.writelines(_states(believed, keys, offset))  # one after the other: all of it is tens of megabytes
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            self._file = open(self.path, "ab")  # noqa: SIM115 - kept open for the changes that follow
            self._lines = len(first) + len(keys)
            self.problem = ""
        except OSError as error:
            self._failed(error)

    def append(self, guard: Guard, keys: Iterable[ResourceKey], offset: float, as_of: float, revision: int) -> None:
        """Write what is known of some keys now, and that all was known at this time."""
        if self._file is None:
            return
        try:
            lines = [*_states(guard, keys, offset), _line([as_of, revision])]
            self._file.writelines(lines)
            self._file.flush()
            self._lines += len(lines)
        except OSError as error:
            self._failed(error)

    def outdated(self, guard: Guard) -> bool:
        """Whether the file should be written anew."""
        return self._file is None or self._lines > 2 * len(guard.good) + _SPARE

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.problem = f"{self.path}: the state is not saved for a start without etcd: {error.strerror}"
        self._file = None


#: Seconds changes are gathered: what changes all the time is written a few times a second.
GATHER = 0.2


class Saver:
    """Keeps a saved state up with a guard: a moment late, and after what is being written if all of it is."""

    def __init__(self, state: SavedState, guard: Guard, offset: float, done: Callable[[], None]) -> None:
        """`done` is called after each writing of all of it: `state.problem` may be another one."""
        self.state = state
        self._guard = guard
        self._offset = offset
        self._done = done
        self._writing: asyncio.Task[None] | None = None
        self._due: asyncio.TimerHandle | None = None
        self._waiting: dict[ResourceKey, None] = {}
        self._again = False
        self._revision = 0
        self._counted = Count()

    def save_all(self, revision: int, counted: Count) -> None:
        """Everything was read anew."""
        self._revision, self._counted = revision, counted
        self._again = True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    def save(self, keys: Iterable[ResourceKey], revision: int) -> None:
        """These have changed, and all is known as of now."""
        self._revision = revision
        self._waiting.update(dict.fromkeys(keys))
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(GATHER, self._append)

    async def close(self) -> None:
        """Everything told so far is on disk when this returns."""
        while self._writing is not None or self._due is not None:
            self._append()
            if self._writing is not None:
                await asyncio.wait((self._writing,))
        self.state.close()

    def _append(self) -> None:
        """Write what was gathered."""
        if self._due is None:
            return
        self._due.cancel()
        self._due = None
        if self._writing is not None:  # it is added after that
            return
        if self.state.outdated(self._guard):
            self.save_all(self._revision, self._counted)
            return
        waiting, self._waiting = self._waiting, {}
        self.state.append(self._guard, waiting, self._offset, time.time(), self._revision)

    async def _write_all(self) -> None:
        try:
            while self._again:
                self._again = False
                self._waiting.clear()
                arguments = (self._guard.believed(), self._offset, time.time(), self._revision, self._counted)
                await asyncio.to_thread(self.state.rewrite, *arguments)
        finally:
            self._writing = None
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self.state.append(self._guard, waiting, self._offset, time.time(), self._revision)
        self._done()


def is_another(believed: Mapping[ResourceKey, Good], listed: Iterable[Change]) -> bool:
    """Whether an etcd that is not the one of before holds another cluster, and not the same one restored, or nothing.

    Calico's clusters have an identity (`spec.clusterGUID` of ClusterInformation), and so has every object
    (`metadata.uid`). Without either it counts as the same: that takes nothing away that somebody has not confirmed.
    """
    of_another = False
    for change in listed:
        before = believed.get(change.key)
        if before is None or change.resource is None:
            continue
        for part, name in (("spec", "clusterGUID"), ("metadata", "uid")):
            if change.key.kind in ALLOCATOR_KINDS or (part == "spec" and change.key.kind != ClusterInformation.kind):
                continue
            old, new = (_member(each.manifest, part, name) for each in (before.resource, change.resource))
            if old and old == new:
                return False
            of_another |= bool(old and new)
    return of_another


def _member(manifest: JsonObject, part: str, name: str) -> JsonValue:
    inner = manifest.get(part)
    return inner.get(name) if isinstance(inner, dict) else None


def _states(guard: Guard | Believed, keys: Iterable[ResourceKey], offset: float) -> Iterator[bytes]:
    for key in keys:
        good = guard.good.get(key)
        held = guard.held.get(key)
        head = json_line([key.kind, key.namespace, key.name, good.revision if good else 0])
        manifest = good.resource.manifest_text() if good else b"null"
        tail = json_line([None if held is None else held + offset, guard.garbage.get(key, "")])
        yield _checked(b"%s,%s,%s" % (head[:-1], manifest, tail[1:]))


def _line(value: JsonValue) -> bytes:
    return _checked(json_line(value))


def _checked(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _text_of(line: bytes) -> bytes:
    """What a line says; nothing where it is damaged."""
    mark, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        return text if int(mark, 16) == zlib.crc32(text) else b""
    except ValueError:
        return b""


def _header(line: bytes) -> Any:
    try:
        return json.loads(_text_of(line))
    except ValueError:
        return None


def _take(loaded: Loaded, text: bytes) -> None:
    try:
        kind, namespace, name, revision, manifest, held, garbage = _ENTRY.decode(text)
    except msgspec.ValidationError:  # not of a key
        loaded.as_of, loaded.revision = _MARK.decode(text)
        return
    key = ResourceKey(kind, name, namespace)
    for known in (loaded.good, loaded.held, loaded.garbage):
        known.pop(key, None)
    if garbage:
        loaded.garbage[key] = garbage
    if bytes(manifest) == b"null":
        return
    try:
        loaded.good[key] = Good(read_text(key, bytes(manifest)), revision)
    except ConfigError as error:  # another version of routed wrote it
        loaded.garbage[key] = str(error)
        return
    if held is not None:
        loaded.held[key] = held
