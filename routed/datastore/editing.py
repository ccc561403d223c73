"""Changing resource files as a careful person would: one document, and nothing else in its file.

Invariants:
- A file is split at its `---` lines, and only the text of the document that changes is replaced; all others, their
  comments and the comment above the document stay byte for byte. Comments inside a document that changes are lost,
  and the caller can tell (`FolderStore.losses`).
- What is written is read back before it replaces anything, and must say the same.
- A write happens under a lock on the folder, compares the resource with what the caller last saw, and replaces the file
  by a rename. A file that changes between reading and renaming (an editor knows no lock) is left alone: Conflict.
- The last resource of a file takes the file with it: the datastore deletes nothing on the word of an empty file.

Synchronous; `FolderStore` has the methods of `store.Store` over it. What a folder's files mean to the daemon is
`folder`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO

import yaml

from routed.datastore.documents import read_documents
from routed.datastore.folder import MAX_FILE_SIZE, SUFFIXES, manifests_of
from routed.datastore.store import Conflict, Contents, Edit, Stored
from routed.errors import ConfigError, StoreError
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.resources import BlockAffinity, JsonObject, JsonValue, Resource, ResourceKey
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint

#: Kinds that programs write for programs: new ones are files of JSON on one line, which are read fast.
BY_PROGRAMS = frozenset(kind.kind for kind in (IPAMBlock, IPAMHandle, BlockAffinity, WorkloadEndpoint))

LOCK_NAME = ".routed.lock"
_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a resource is: a document of a file, and in it the document itself or an item of a List."""

    file: str
    chunk: int
    item: int | None
    line: int
    resource: Resource


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was read."""

    signature: tuple[int, ...]
    read_at: float
    text: str
    places: tuple[_Place, ...]
    problems: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    """See `Contents`."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a file."""

    path: str
    text: str | None
    """None: it goes."""
    before: tuple[int, ...] | None
    """What it was when it was read; None: it is new."""


#: Files whose way to the disk is waited for at once.
_DISK_THREADS = 8

#: Seconds after which a change of a file shows in its times; the clock of the file system ticks.
_TICK = 0.05


def _look(path: str, before: _Seen | None) -> _Seen:
    """A file as it is now, read only where it may have changed since. Raises OSError and UnicodeDecodeError."""
    signature, now = _signature(path), time.time()
    if before is not None and signature == before.signature and before.read_at - signature[-1] / 1e9 > _TICK:
        return before
    text = _text(path)
    if before is not None and text == before.text:
        return replace(before, signature=signature, read_at=now)
    problems: list[str] = []
    broken: list[tuple[str, str]] = []
    places = tuple(_places_of(path, text, problems, broken))
    return _Seen(signature, now, text, places, tuple(problems), tuple(broken))


def revision_of(resource: Resource) -> str:
    """What tells a resource's states apart: its manifest, whatever the file around it looks like."""
    text = json.dumps(resource.manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class FolderStore:
    """A folder of resource files that can be written. Implements `store.Store`."""

    shared_with_calico = False
    guards_deletions = False
    gone = frozenset[ResourceKey]()

    def __init__(self, path: str) -> None:
        self.path = path
        self.losses: list[str] = []
        """Places where comments were lost by what was written so far, a sentence each."""
        self._seen: dict[str, _Seen] = {}
        """Files as they were read last: of a large folder, what did not change is not read again for each write."""
        self._reading = threading.Lock()
        self._disk = ThreadPoolExecutor(max_workers=_DISK_THREADS, thread_name_prefix="disk")

    async def read(self, kinds: Collection[str] | None = None) -> Contents:
        return await asyncio.to_thread(self._read, kinds)

    async def get(self, key: ResourceKey) -> Stored | None:
        return (await self.read((key.kind,))).resources.get(key)

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        (written,) = await self.write_all((Edit(key, resource, revision),))
        return written

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        """As of `Store`; whoever changes files without the lock may come between two of them."""
        return await asyncio.to_thread(self._write_all, edits)

    async def close(self) -> None:
        """Nothing but threads is held between calls."""
        self._disk.shutdown(wait=False)

    def _read(self, kinds: Collection[str] | None) -> Contents:
        found: dict[ResourceKey, Stored] = {}
        problems: list[str] = []
        for place in self._places(problems):
            if (kinds is None or place.resource.kind in kinds) and place.resource.key not in found:
                where = f"{place.file}:{place.line}"
                found[place.resource.key] = Stored(place.resource, revision_of(place.resource), where)
        broken = tuple(each for seen in self._seen.values() for each in seen.broken)
        return Contents(found, tuple(problems), broken=broken)

    def _write_all(self, edits: Sequence[Edit]) -> list[str]:
        with self._locked():
            there = self._places_by_key({edit.key for edit in edits})
            for edit in edits:
                places = there[edit.key]
                current = revision_of(places[0].resource) if places else None
                if current != edit.revision:
                    state = (
                        "is gone from" if current is None else "is in" if edit.revision is None else "has changed in"
                    )
                    raise Conflict(f"{edit.key} {state} {places[0].file if places else self.path}; read it again")
            changes: list[_Change] = []
            for edit in edits:
                places = there[edit.key]
                if any(place.file == change.path for place in places for change in changes):
                    self._apply(changes)
                    changes, places = [], self._places_by_key({edit.key})[edit.key]
                # The last of one file first, so that the numbers of the others' documents stay true.
                for place in reversed(places[1:] if edit.resource is None else ()):
                    self._apply([self._replaced(place, None)])
                if places:
                    changes.append(self._replaced(places[0], edit.resource))
                elif edit.resource is not None:
                    made = self._created(edit.resource)
                    if any(change.path == made.path for change in changes):  # two names of one spelling
                        self._apply(changes)
                        changes, made = [], self._created(edit.resource)
                    changes.append(made)
            self._apply(changes)
            return ["" if edit.resource is None else revision_of(edit.resource) for edit in edits]

    def _places_by_key(self, keys: Collection[ResourceKey]) -> dict[ResourceKey, list[_Place]]:
        found: dict[ResourceKey, list[_Place]] = {key: [] for key in keys}
        for place in self._places([]):
            if place.resource.key in found:
                found[place.resource.key].append(place)
        return found

    # ---- reading

    def _places(self, problems: list[str]) -> Iterator[_Place]:
        """All resources, in the order in which the first of several counts."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.path) if entry.name.endswith(SUFFIXES))
        except OSError as error:
            raise StoreError(f"{self.path}: the folder of resources cannot be read: {error.strerror}") from error
        with self._reading:
            before, self._seen = self._seen, {}
            for name in names:
                if name[0] == ".":
                    continue
                path = os.path.join(self.path, name)
                try:
                    seen = self._seen[path] = _look(path, before.get(path))
                except (OSError, UnicodeDecodeError) as error:
                    problems.append(f"{path}: the file cannot be read: {error}")
                    continue
                problems += seen.problems
            found = [place for seen in self._seen.values() for place in seen.places]
        yield from found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            handle = os.open(os.path.join(self.path, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.geteuid() == 0:  # the daemon, whose folder it may be, must not be locked out by root's lock
                folder = os.stat(self.path)
                os.fchown(handle, folder.st_uid, folder.st_gid)
        except OSError as error:
            raise StoreError(f"{self.path}: the folder of resources cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # ---- writing

    def _created(self, resource: Resource) -> _Change:
        parts = [resource.kind.lower(), *filter(None, (resource.namespace,)), resource.name]
        stem = re.sub(r"[^A-Za-z0-9.-]", "_", "-".join(parts))
        suffix = "json" if resource.kind in BY_PROGRAMS else "yaml"
        path = os.path.join(self.path, f"{stem}.{suffix}")
        number = 1
        while os.path.lexists(path):
            number += 1
            path = os.path.join(self.path, f"{stem}.{number}.{suffix}")
        return _Change(path, _dump_json(resource.manifest) if suffix == "json" else _dump(resource.manifest), None)

    def _replaced(self, place: _Place, resource: Resource | None) -> _Change:
        before = _signature(place.file)
        text = _text(place.file)
        chunks = _split(text)
        # Something may have come between looking and locking; what is to be replaced must still be there.
        if place not in _places_of(place.file, text, [], []):
            raise Conflict(f"{place.resource.key} has changed in {place.file}; read it again")
        chunk = chunks[place.chunk]
        head, body = _head(chunk)
        documents = list(read_documents(chunk.encode()))
        if len(documents) != 1:
            raise StoreError(f"{place.file}:{place.line}: has several documents without `---`; change it by hand")
        new = _without_or_with(documents[0].value, place.item, resource)
        if re.search(r"(^|\s)#", body):
            self.losses.append(f"{place.file}:{place.line}: comments inside this document were lost")
        if new is None:
            del chunks[place.chunk]
        else:
            chunks[place.chunk] = head + (_dump_json(new) if place.file.endswith(".json") else _dump(new))
        if any(_says_something(one) for one in chunks):
            if chunks and place.chunk == 0 and new is None:
                chunks[0] = _SEPARATOR.sub("", chunks[0], count=1).lstrip("\n")
            return _Change(place.file, "".join(chunks), before)
        return _Change(place.file, None, before)

    def _apply(self, changes: Sequence[_Change]) -> None:
        """Make changes of files, each in one step, in their order. All are on disk before the first is made: together,
        since a disk takes as long for one as for several."""
        fresh: dict[str, str] = {}
        try:
            with contextlib.ExitStack() as opened:
                files = []
                for change in changes:
                    if change.text is not None:
                        file, name = _prepare(change)
                        fresh[change.path] = name
                        files.append(opened.enter_context(file).fileno())
                try:
                    list(self._disk.map(os.fsync, files))
                except OSError as error:
                    raise StoreError(f"{self.path}: cannot be written: {error.strerror}") from error
            for change in changes:
                _put(change, fresh.get(change.path, ""))
        finally:
            for name in fresh.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)


def _text(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(MAX_FILE_SIZE).decode("utf-8-sig")


def _signature(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _split(text: str) -> list[str]:
    """A file's text in parts of one document each; together they are the text."""
    starts = [match.start() for match in _SEPARATOR.finditer(text)]
    cuts = [0, *(start for start in starts if start), len(text)]
    return [text[low:high] for low, high in itertools.pairwise(cuts)]


def _says_something(chunk: str) -> bool:
    return any(document.error or document.value is not None for document in read_documents(chunk.encode()))


def _places_of(path: str, text: str, problems: list[str], broken: list[tuple[str, str]]) -> list[_Place]:
    found: list[_Place] = []
    line = 0
    for number, chunk in enumerate(_split(text)):
        for document in read_documents(chunk.encode()):
            if document.error:
                problems.append(f"{path}:{document.line + line}: {document.error}")
                continue
            is_list = isinstance(document.value, dict) and "items" in document.value
            manifests, problem = manifests_of(document)
            if problem is not None:
                problems.append(f"{path}:{document.line_of(problem[0]) + line}: {problem[0]}: {problem[1]}")
            for item, (where, manifest) in enumerate(manifests):
                at = document.line_of(where) + line if where else document.line + line
                try:
                    resource = parse_manifest(manifest, where)
                except ConfigError as error:
                    problems.append(f"{path}:{document.line_of(error.path) + line}: {error}")
                    broken.append((json.dumps(manifest), problems[-1]))
                    continue
                found.append(_Place(path, number, item if is_list else None, at, resource))
        line += chunk.count("\n")
    return found


def _head(chunk: str) -> tuple[str, str]:
    """The separator and the comments above a document, and the document."""
    lines = chunk.splitlines(keepends=True)
    count = 0
    while count < len(lines) and (
        re.match(r"---\s*(#.*)?$", lines[count]) or not lines[count].strip() or lines[count][0] == "#"
    ):
        count += 1
    head = "".join(lines[:count])
    return ("---\n" if not head and chunk.startswith("---") else head), "".join(lines[count:])


def _without_or_with(document: JsonValue, item: int | None, resource: Resource | None) -> JsonObject | None:
    """The document with the resource in its place, or without it; None where nothing is left."""
    if item is None or not isinstance(document, dict):
        return None if resource is None else resource.manifest
    items = document["items"]
    kept = list(items) if isinstance(items, list) else []
    kept[item : item + 1] = [] if resource is None else [resource.manifest]
    return document | {"items": kept} if kept else None


class _Dumper(yaml.SafeDumper):
    """Lists stand out from the keys they belong to, and nothing is an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002  # PyYAML's signature
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  # PyYAML's signature
        return True


def to_yaml(value: JsonValue) -> str:
    """A value as YAML that `read_documents` reads back as the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    read = list(read_documents(text.encode()))
    if len(read) == 1 and not read[0].error and read[0].value == value:
        return text
    # JSON is YAML, and leaves nothing to how a plain word is read; its escapes for what is past 16 bits are not YAML's
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return (
        re.sub("[\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
        + "\n"
    )


def _dump(manifest: JsonObject) -> str:
    return to_yaml(manifest)


def _dump_json(manifest: JsonObject) -> str:
    """On one line what only programs write and read, several times for each pod."""
    compact = manifest.get("kind") in BY_PROGRAMS
    return json.dumps(manifest, indent=None if compact else 2, ensure_ascii=False) + "\n"


def _prepare(change: _Change) -> tuple[BinaryIO, str]:
    """What will be in a file, in a new one beside it."""
    fresh = ""
    try:
        handle, fresh = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=os.path.dirname(os.path.realpath(change.path)))
        file = os.fdopen(handle, "wb")
        file.write((change.text or "").encode())
        file.flush()
        if change.before is None:
            os.fchmod(handle, 0o644)
        else:
            status = os.stat(change.path)
            os.fchmod(handle, status.st_mode & 0o7777)
            with contextlib.suppress(PermissionError):
                os.fchown(handle, status.st_uid, status.st_gid)
    except OSError as error:
        if fresh:
            os.unlink(fresh)
        raise StoreError(f"{change.path}: cannot be written: {error.strerror}") from error
    return file, fresh


def _put(change: _Change, fresh: str) -> None:
    """Put `fresh` in the place of a file, or (empty) remove that."""
    target = os.path.realpath(change.path)
    try:
        if change.before is None:
            os.link(fresh, target)  # fails where somebody made one meanwhile
        elif _signature(change.path) != change.before:
            raise Conflict(f"{change.path} is being changed by somebody else; try again")
        elif fresh:
            os.replace(fresh, target)
        else:
            os.unlink(change.path)
    except OSError as error:
        raise StoreError(f"{change.path}: cannot be written: {error.strerror}") from error
