"""Changing resource files as a careful person would: one document, and nothing else in its file.

Invariants:
- A file is split at its `---` lines, and only the text of the document that changes is replaced; all others, their
  comments and the comment above the document stay byte for byte. Comments inside a document that changes are lost,
  and the caller can tell (`FolderStore.losses`).
- What is written is read back before it replaces anything, and must say the same.
- A write happens under a lock on the folder, compares the resource with what the caller last saw, and replaces the file
  by a rename. A file that changes between reading and renaming (an editor knows no lock) is left alone: Conflict.
- The last resource of a file takes the file with it: the datastore deletes nothing on the word of an empty file.
- What others wrote under the lock is looked for before the next write; what others did without it to a file that is
  written, too. Another file that somebody made without the lock, with a resource that is written here, is known of
  `LOOK_AGAIN` seconds later: until then it is as if it had come a moment after the write.

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
import secrets
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import yaml

from routed.datastore.documents import read_documents
from routed.datastore.files import name_anew, read_whole, signature_of, write_whole
from routed.datastore.folder import MAX_FILE_SIZE, SUFFIXES, manifests_of, unreadable_manifests
from routed.datastore.own_files import OwnFile, OwnFiles
from routed.datastore.spares import Spares
from routed.datastore.store import Conflict, Contents, Edit, Stored
from routed.errors import ConfigError, StoreError
from routed.model.ipam import IPAMBlock, IPAMHandle
from routed.model.resources import BlockAffinity, Cidr, JsonObject, JsonValue, Resource, ResourceKey, json_line
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint
from routed.values import dataclass

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
    revision: str = ""
    """Of the one resource of a file that we wrote for programs."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a file."""

    path: str
    text: str | None
    """None: it goes."""
    before: tuple[int, ...] | None
    """What it was when it was read; None: it is new."""
    alone: Resource | None = None
    """What the file is written by programs for, where it is all that is in it."""
    ours: bool = False
    """What is there is as we wrote it, and may be written again once nobody needs it."""


#: Files whose way to the disk is waited for at once.
_DISK_THREADS = 8

#: Seconds after which a change of a file shows in its times; the clock of the file system ticks.
_TICK = 0.05
#: Seconds for which it is not asked whether somebody who knows no lock has made another file with what is written here.
LOOK_AGAIN = 0.3


def _look(path: str, before: _Seen | None, *, to_write: bool) -> _Seen:
    """A file as it is now, read only where it may have changed since; `to_write`: what we wrote is read again by who changes
    it. Raises OSError and UnicodeDecodeError."""
    signature, now = _signature(path), time.time()
    if to_write and before is not None and before.revision and signature == before.signature:
        return before
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
    return hashlib.sha256(json_line(resource.manifest, ordered=True)).hexdigest()[:16]


class FolderStore:
    """A folder of resource files that can be written. Implements `store.Store`."""

    shared_with_calico = False
    guards_deletions = False
    gone = frozenset[ResourceKey]()

    def __init__(self, path: str, own: OwnFiles | None = None) -> None:
        """`own`: where who follows the folder hears of what is written here, hundreds of files in a second it may be."""
        self.path = path
        self._own = own
        self._spares = Spares(path) if own is not None else None
        self._written: dict[str, tuple[int, ...]] = {}
        """Files of programs, as they were when we wrote them."""
        self.losses: list[str] = []
        """Places where comments were lost by what was written so far, a sentence each."""
        self._seen: dict[str, _Seen] = {}
        """Files as they were read last: of a large folder, what did not change is not read again for each write."""
        self._files: dict[ResourceKey, tuple[str, ...]] = {}
        """The files that have a resource, in the order in which the first of several counts."""
        self._look_until = 0.0
        """Until when that is as good as looking again, on the clock, while nobody else wrote under the lock."""
        self._name = secrets.token_hex(16).encode()
        """Stands in the lock while we were the last to write."""
        self._reading = threading.Lock()
        self._disk = ThreadPoolExecutor(max_workers=_DISK_THREADS, thread_name_prefix="disk")

    async def read(self, kinds: Collection[str] | None = None) -> Contents:
        return await asyncio.to_thread(self._read, kinds)

    async def get(self, key: ResourceKey) -> Stored | None:
        return (await self.read((key.kind,))).resources.get(key)

    async def has_elder(self, block: Cidr) -> bool:
        """A folder has no order; that of one node is its own, so whatever overlaps was there before."""
        there = (await self.read((IPAMBlock.kind,))).resources.values()
        others = (each.resource.cidr for each in there if isinstance(each.resource, IPAMBlock))
        return any(each != block and each.overlaps(block) for each in others)

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        (written,) = await self.write_all((Edit(key, resource, revision),))
        return written

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        """As of `Store`; whoever changes files without the lock may come between two of them."""
        return await asyncio.to_thread(self._write_all, edits)

    async def close(self) -> None:
        """Give back what is held between calls."""
        if self._spares is not None:
            with contextlib.suppress(StoreError):
                await asyncio.to_thread(self._give_back, self._spares)
        self._disk.shutdown(wait=False)

    def _give_back(self, spares: Spares) -> None:
        with self._locked():
            spares.close()

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
        with self._locked() as lock:
            if os.pread(lock, len(self._name), 0) != self._name:
                self._look_until = 0.0
                os.pwrite(lock, self._name, 0)
            try:
                return self._write_under_lock(edits)
            except Exception:
                self._look_until = 0.0  # what we know may be why
                raise

    def _write_under_lock(self, edits: Sequence[Edit]) -> list[str]:
        there = self._places_by_key({edit.key for edit in edits})
        for edit in edits:
            places = there[edit.key]
            current = self._revision_at(places[0]) if places else None
            if current != edit.revision:
                state = "is gone from" if current is None else "is in" if edit.revision is None else "has changed in"
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
        """Where resources are. What is said of a file holds unless somebody changed it since: who writes it sees that."""
        if time.monotonic() >= self._look_until:
            self._places([], to_write=True)
        with self._reading:
            return {
                key: [
                    place
                    for path in self._files.get(key, ())
                    for place in self._seen[path].places
                    if place.resource.key == key
                ]
                for key in keys
            }

    def _revision_at(self, place: _Place) -> str:
        return self._seen[place.file].revision or revision_of(place.resource)

    # ---- reading

    def _places(self, problems: list[str], *, to_write: bool = False) -> list[_Place]:
        """All resources, in the order in which the first of several counts."""
        began = time.monotonic()
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
                    seen = self._seen[path] = _look(path, before.get(path), to_write=to_write)
                except (OSError, UnicodeDecodeError) as error:
                    problems.append(f"{path}: the file cannot be read: {error}")
                    continue
                problems += seen.problems
            found = [place for seen in self._seen.values() for place in seen.places]
            files: dict[ResourceKey, dict[str, None]] = {}
            for place in found:
                files.setdefault(place.resource.key, {})[place.file] = None
            self._files = {key: tuple(paths) for key, paths in files.items()}
            self._look_until = began + LOOK_AGAIN
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The lock of the folder, held; its file."""
        try:
            handle = os.open(os.path.join(self.path, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.geteuid() == 0:  # the daemon, whose folder it may be, must not be locked out by root's lock
                folder, lock = os.stat(self.path), os.fstat(handle)
                if (lock.st_uid, lock.st_gid) != (folder.st_uid, folder.st_gid):
                    os.fchown(handle, folder.st_uid, folder.st_gid)
        except OSError as error:
            raise StoreError(f"{self.path}: the folder of resources cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
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
            seen = self._seen.get(path)
            if seen is None or seen.problems:
                said = seen.problems[0] if seen is not None else f"{path}: the file cannot be read"
                raise StoreError(f"{said}; it may hold {resource.key}: mend it or take it away first")
            number += 1
            path = os.path.join(self.path, f"{stem}.{number}.{suffix}")
        if suffix == "json":
            return _Change(path, _dump_json(resource.manifest), None, resource)
        return _Change(path, _dump(resource.manifest), None)

    def _replaced(self, place: _Place, resource: Resource | None) -> _Change:
        written = self._written.get(place.file)
        if self._own is not None and self._own.is_as_written(os.path.basename(place.file), written):
            return _Change(
                place.file, None if resource is None else _dump_json(resource.manifest), written, resource, True
            )
        try:
            before = _signature(place.file)
            text = _text(place.file)
        except FileNotFoundError:
            raise Conflict(f"{place.resource.key} is gone from {place.file}; read it again") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{place.file}: the file cannot be read: {error}") from error
        seen = self._seen.get(place.file)
        ours = seen is not None and bool(seen.revision) and text == seen.text
        by_programs = place.item is None and place.resource.kind in BY_PROGRAMS
        if ours or (by_programs and text == _dump_json(place.resource.manifest)):
            after = None if resource is None else _dump_json(resource.manifest)
            return _Change(place.file, after, before, resource, ours and written == before)
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
        spares = self._spares
        try:
            with contextlib.ExitStack() as opened:
                files = []
                for change in changes:
                    if change.text is not None:
                        file, name = self._prepare(change)
                        fresh[change.path] = name
                        opened.callback(os.close, file)
                        files.append(file)
                if spares is not None and spares.unsettled:
                    files.append(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                    opened.callback(os.close, files[-1])
                try:
                    list(self._disk.map(os.fsync, files))
                except OSError as error:
                    raise StoreError(f"{self.path}: cannot be written: {error.strerror}") from error
            if spares is not None:
                spares.settled()
            for change in changes:  # before any is made: who tries again must not count a part of it twice
                self._refuse_if_changed(change)
            for change in changes:
                self._put(change, fresh.get(change.path, ""))
                fresh.pop(change.path, None)
                self._remember(change)
        finally:
            for name in fresh.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)

    def _prepare(self, change: _Change) -> tuple[int, str]:
        """What will be in a file, in another one, which is open, and its name."""
        spare = self._spares.take() if self._spares is not None and change.alone is not None else None
        file, name = -1, ""
        try:
            file, name = spare or tempfile.mkstemp(prefix=".", suffix=".tmp", dir=os.path.dirname(_target(change.path)))
            data = (change.text or "").encode()
            write_whole(file, data)
            status = os.fstat(file)
            if status.st_size > len(data):
                os.ftruncate(file, len(data))
            if change.before is None:
                mode = 0o644
            else:
                was = os.stat(change.path)
                mode = was.st_mode & 0o7777
                if (was.st_uid, was.st_gid) != (status.st_uid, status.st_gid):
                    with contextlib.suppress(PermissionError):
                        os.fchown(file, was.st_uid, was.st_gid)
            if status.st_mode & 0o7777 != mode:
                os.fchmod(file, mode)
        except OSError as error:
            if name:
                os.close(file)
                os.unlink(name)
            raise StoreError(f"{change.path}: cannot be written: {error.strerror}") from error
        return file, name

    def _refuse_if_changed(self, change: _Change) -> None:
        """Raises Conflict where a file is not what it was when the change was made up."""
        try:
            if change.before is None or _signature(change.path) == change.before:
                return
        except OSError:
            pass  # it is gone
        self._written.pop(change.path, None)  # it is not as we wrote it: who tries again must read it
        raise Conflict(f"{change.path} is being changed by somebody else; try again")

    def _put(self, change: _Change, fresh: str) -> None:
        """Put `fresh` in the place of a file, or (empty) remove that."""
        target = change.path if change.ours or change.before is None else _target(change.path)
        spares = self._spares if change.ours else None
        try:
            if change.before is None:
                name_anew(fresh, target)  # fails where somebody made one meanwhile
                return
            self._refuse_if_changed(change)
            if fresh:
                spare = spares.name_too(target) if spares is not None else ""
                done = False
                try:
                    os.replace(fresh, target)
                    done = True
                finally:
                    if spares is not None and spare:
                        spares.replaced(spare, done=done)
            elif spares is None or not spares.keep(target):
                os.unlink(change.path)
        except OSError as error:
            raise StoreError(f"{change.path}: cannot be written: {error.strerror}") from error

    def _remember(self, change: _Change) -> None:
        """What was written need not be looked for, nor parsed."""
        path, resource = change.path, change.alone
        with self._reading:
            self._written.pop(path, None)
            before = self._seen.pop(path, None)
            for place in before.places if before is not None else ():
                key = place.resource.key
                left = tuple(each for each in self._files.get(key, ()) if each != path)
                if left:
                    self._files[key] = left
                else:
                    self._files.pop(key, None)
            if change.text is None:
                self._hand_over(path, None)
                return
            if resource is None:
                self._look_until = 0.0
                return
            self._hand_over(path, OwnFile(change.text.encode(), resource))
            try:
                signature = _signature(path)
            except OSError:  # somebody was fast
                self._look_until = 0.0
                return
            place = _Place(path, 0, None, 1, resource)
            self._seen[path] = _Seen(signature, 0.0, change.text, (place,), (), (), revision_of(resource))
            self._files[resource.key] = tuple(sorted((*self._files.get(resource.key, ()), path)))
            self._written[path] = signature

    def _hand_over(self, path: str, file: OwnFile | None) -> None:
        if self._own is not None:
            self._own.wrote(os.path.basename(path), file)


def _text(path: str) -> str:
    return read_whole(path, MAX_FILE_SIZE).decode("utf-8-sig")


def _signature(path: str) -> tuple[int, ...]:
    return signature_of(os.stat(path))


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
                for said, head in unreadable_manifests(document):
                    problems.append(f"{path}:{document.line + line}: {said}")
                    broken += [(head, problems[-1])] if head else []
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
    if manifest.get("kind") in BY_PROGRAMS:
        return json_line(manifest).decode() + "\n"
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _target(path: str) -> str:
    """The file itself, where a name leads to another one."""
    return os.path.realpath(path) if os.path.islink(path) else path
