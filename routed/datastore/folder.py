"""A folder of resource files and its last good state: what is looked at, what is believed, what is reported.

Invariants:
- A look (`Folder.look`) costs one `stat` per file (links followed) and reads only files that changed. A change is
  believed once two looks agree on it, so a file caught in the middle of being written, or missing for the moment
  between an editor's two renames, is not taken at its word. A file that says what this process wrote is whole: it is
  believed at once, and not parsed.
- What could not be read deletes nothing. A file with a bad document keeps the resource that the document names; where
  that cannot be told, every resource it may be that the file had and does not name now, and says so. All are kept by one
  that is empty, holds nothing but comments, or names fewer resources than before and breaks off in the middle of a line,
  or within what it said before; one cut short in the middle of what it said before is not believed at all, and one that
  names fewer only once nobody has it open for writing and it has been left alone for a moment. Good documents beside a
  bad one apply. What is kept so is written down, so that it outlives a restart. A file that is gone from the folder, and
  only that, takes all its resources with it.
- One resource, one file: the first by file name has it, any other is reported and takes over when the first lets go.
- An update is a real change: manifests are compared.

Files are `*.yaml`, `*.yml` and `*.json` directly in the folder; names that begin with a dot are not ours (editors' swap
files, Kubernetes' `..data`). Synchronous, and used from one thread at a time; `file` puts it on a clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import field, replace

from routed.datastore.documents import Document, read_documents
from routed.datastore.files import is_being_written, read_whole, signature_at
from routed.datastore.own_files import OwnFile, OwnFiles
from routed.errors import ConfigError, StoreError
from routed.model.fields import field_path, shown
from routed.model.paths import plain_manifest
from routed.model.resources import JsonObject, JsonValue, Resource, ResourceKey, Update
from routed.model.schema import KINDS, OTHER_KINDS, manifest_kind, parse_manifest, versions_of
from routed.values import dataclass

SUFFIXES = (".yaml", ".yml", ".json")
#: Octets of the largest file that is read.
MAX_FILE_SIZE = 64 << 20
#: Problems reported of one file; a thousand more would say nothing new.
MAX_PROBLEMS_PER_FILE = 100
#: Seconds a file must have been left alone, with nobody writing to it, before what it no longer names is deleted.
DELETION_SETTLE = 0.5
#: Seconds in which a file's change time is too young to tell a second change from the first.
_YOUNG = 1.0
#: The same of a file that we wrote, where the clock is the file system's own: it ticks.
_TICK = 0.05


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something a person has to put right. Reads `file:line: field: sentence`."""

    file: str
    """Path of the file, or of the folder."""
    line: int
    """From 1; 0 where the whole file is meant."""
    field: str
    """Such as `spec.peerIP`; empty where it is not about one field."""
    text: str
    manifest: str = ""
    """As JSON what could not be read, where it is at least a manifest: some of it may still count."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.text}" if self.field else f"{place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the folder found."""

    updates: tuple[Update, ...]
    """New and changed resources first, then deletions, each sorted by key."""
    problems: tuple[Problem, ...]
    """All that are open now, sorted."""
    unsettled: bool
    """Something changed just now and will be believed if the next look finds it the same."""
    unreadable: str
    """Why the folder itself could not be looked into, or empty."""
    before: Mapping[ResourceKey, Resource]
    """What there was before it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A resource where it was found."""

    resource: Resource
    line: int


@dataclass(frozen=True, slots=True)
class _Suspect:
    """What a manifest that cannot be read may be."""

    problem: int
    """Which of the reading's problems it is."""
    kind: str = ""
    """Empty: of any kind."""
    name: str = ""
    """Empty: of any name."""

    def may_be(self, key: ResourceKey) -> bool:
        return self.kind in ("", key.kind) and self.name in ("", key.name)


@dataclass(slots=True)
class _Reading:
    """What one reading of a file's text gave."""

    entries: dict[ResourceKey, _Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    documents: int = 0
    bad: list[_Suspect] = field(default_factory=list)
    """What could not be read: what is missing may be in it."""
    last_line: int = 0


#: What `stat` says of a file: device, inode, size, modified and changed (ns); or an errno; None: not there.
_Signature = tuple[int, ...] | None


_NOT_OURS: tuple[JsonValue, ...] = tuple(OTHER_KINDS)


class _File:
    """The last good state of one file."""

    __slots__ = ("data", "entries", "good_data", "kept", "problems", "seen", "settled")

    def __init__(self) -> None:
        self.seen: _Signature = None
        self.settled = False
        self.data: bytes | None = None
        """What was last read."""
        self.good_data = b""
        """What was last read without a complaint."""
        self.entries: dict[ResourceKey, _Entry] = {}
        self.kept: tuple[ResourceKey, ...] = ()
        """Those the file does not say any more, since it can't be read in full."""
        self.problems: tuple[Problem, ...] = ()


class Folder:
    """The resources in a folder, as of the last look.

    `kept`: a file of ours in which the last good states of what cannot be read outlive a restart. `own`: what this process
    writes.
    """

    def __init__(self, path: str, kept: str = "", own: OwnFiles | None = None) -> None:
        self.path = path
        self._own = own
        self._kept_path = kept
        self._kept: JsonObject = {}
        """What that file says: manifests by the name of the file they were in."""
        self._not_kept = ""
        """Why it does not say what it should."""
        self._files: dict[str, _File] = {}
        self._published: dict[ResourceKey, Resource] = {}
        self._identity: tuple[int, int] | None = None
        self._first = True
        self._dirty = False
        """A file's resources or problems changed since they were last merged."""
        self._file_problems: list[Problem] = []

    @property
    def resources(self) -> dict[ResourceKey, Resource]:
        """A copy of what the looks so far have reported."""
        return dict(self._published)

    def look(self) -> Look:
        """Compare the folder with what was known. The first look believes what it sees.

        Raises StoreError from the first look where the folder cannot be read; later that is a problem like others.
        """
        problems: list[Problem] = []
        unsettled = False
        own = self._own.take() if self._own is not None else {}
        names = self._list(problems)
        if self._first and names is not None:
            self._recall(names)
        if names is not None:
            for name in sorted(names | self._files.keys()):
                unsettled |= self._look_at(name, name in names, own)
            self._first = False
        before = self._published
        updates = self._publish() if self._dirty else ()
        unreadable = "; ".join(str(problem) for problem in problems)
        self._keep()
        if self._not_kept:
            problems.append(Problem(self._kept_path, 0, "", self._not_kept))
        return Look(updates, tuple(sorted(problems + self._file_problems)), unsettled, unreadable, before)

    def _recall(self, names: set[str]) -> None:
        """What was last good of files that could not be read in full when the last run ended."""
        try:
            with open(self._kept_path, encoding="utf-8") as written:
                said = json.load(written)
        except (OSError, ValueError):
            return  # there is none, or what we wrote is spoilt: then a file is what it says
        self._kept = said if isinstance(said, dict) else {}
        for name, manifests in self._kept.items():
            if name not in names or not isinstance(manifests, list):
                continue
            file = self._files[name] = _File()
            for manifest in manifests:
                with contextlib.suppress(ConfigError):
                    resource = parse_manifest(manifest)
                    file.entries[resource.key] = _Entry(resource, 0)
            file.kept = tuple(file.entries)

    def _keep(self) -> None:
        """Write down what is kept of files, where that changed."""
        wanted: JsonObject = {
            name: [file.entries[key].resource.manifest for key in file.kept]
            for name, file in sorted(self._files.items())
            if file.kept
        }
        if not self._kept_path or (wanted == self._kept and not self._not_kept):
            return
        beside = f"{self._kept_path}.new"
        try:
            os.makedirs(os.path.dirname(self._kept_path), mode=0o755, exist_ok=True)
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as written:
                json.dump(wanted, written)
                written.flush()
                os.fsync(written.fileno())
            os.replace(beside, self._kept_path)
        except OSError as error:
            self._not_kept = f"the last good state of what cannot be read is lost at a restart: {_reason(error)}"
            return
        self._kept, self._not_kept = wanted, ""

    def _list(self, problems: list[Problem]) -> set[str] | None:
        """The names of resource files; None (and why) where the folder does not say."""
        try:
            with os.scandir(self.path) as entries:
                names = {entry.name for entry in entries if entry.name.endswith(SUFFIXES) and entry.name[0] != "."}
            status = os.stat(self.path)
        except OSError as error:
            if self._first:
                raise StoreError(f"{self.path}: the folder of resources cannot be read: {_reason(error)}") from error
            problems.append(
                Problem(self.path, 0, "", f"the folder cannot be read, so its last state stays: {_reason(error)}")
            )
            return None
        identity = (status.st_dev, status.st_ino)
        if not names and self._published and identity != self._identity:
            # A volume that is not mounted looks like this. Emptying the folder itself does not.
            problems.append(
                Problem(
                    self.path,
                    0,
                    "",
                    "the folder was replaced by an empty one, so its last state stays until it holds a resource file",
                )
            )
            return None
        self._identity = identity
        return names

    def _look_at(self, name: str, present: bool, own: Mapping[str, OwnFile | None]) -> bool:
        """Take in one file if it changed and is settled, or says what was written by us. True: look again soon."""
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _File()
        path = os.path.join(self.path, name)
        signature = signature_at(path) if present else None
        if signature != file.seen or self._first:
            file.seen = signature
            file.settled = False
            if not self._first:
                if name not in own or not self._is_as_written(file, path, own[name]):
                    return True
                if signature is not None:
                    return False
        elif file.settled:
            return False
        file.settled = True
        if signature is None:
            del self._files[name]
            self._dirty = True
            return False
        try:
            data = _contents(path, signature)
        except OSError as error:
            kept = ", so the resources it had stay" if file.entries else ""
            unreadable = (Problem(path, 0, "", f"the file cannot be read{kept}: {_reason(error)}"),)
            self._dirty |= unreadable != file.problems
            file.problems = unreadable
            file.data = None
            file.settled = False  # what stands in the way may go without a trace on the file: try at every look
            return False
        if self._first:
            # A clock tick is the finest the change time shows: one written just now may yet change unseen.
            file.settled = abs(time.time() - signature[-1] / 1e9) > _YOUNG
        elif signature_at(path) != signature:
            file.settled = False
            return True
        if data != file.data:
            if not _take(file, path, data, signature):
                file.settled = False
                return True
            file.data = data
            self._dirty = True
        return not file.settled

    def _is_as_written(self, file: _File, path: str, own: OwnFile | None) -> bool:
        """Whether a file is as we left it; what we wrote is taken in then."""
        if own is None or file.seen is None:
            return own is None and file.seen is None
        try:
            data = _contents(path, file.seen)
        except OSError:
            return False
        if data != own.data:
            return False
        file.settled = time.time() - file.seen[-1] / 1e9 > _TICK
        if file.settled and self._own is not None:
            self._own.compared(os.path.basename(path), file.seen)
        file.data = file.good_data = data
        file.entries = {own.resource.key: _Entry(own.resource, 1)}
        file.kept = file.problems = ()
        self._dirty = True
        return True

    def _publish(self) -> tuple[Update, ...]:
        """Merge the files; what changed since the last time, as updates."""
        self._dirty = False
        problems: list[Problem] = []
        merged: dict[ResourceKey, Resource] = {}
        owners: dict[ResourceKey, tuple[str, int]] = {}
        for name in sorted(self._files):
            file = self._files[name]
            problems.extend(file.problems)
            for key, entry in file.entries.items():
                if key in owners:
                    first, line = owners[key]
                    text = f"{key} is already in {first}:{line}, which comes first by name; this one has no effect"
                    problems.append(Problem(os.path.join(self.path, name), entry.line, "metadata.name", text))
                    continue
                owners[key] = (name, entry.line)
                known = self._published.get(key)
                # Keeping the old object makes "nothing changed" visible to whoever compares by identity.
                unchanged = known is not None and (known is entry.resource or known.says_the_same(entry.resource))
                merged[key] = known if known is not None and unchanged else entry.resource
        updates = [Update(key, merged[key]) for key in sorted(merged) if merged[key] is not self._published.get(key)]
        updates += [Update(key, None) for key in sorted(self._published.keys() - merged.keys())]
        self._published = merged
        self._file_problems = problems
        return tuple(updates)


def _take(file: _File, path: str, data: bytes, signature: tuple[int, ...]) -> bool:
    """Bring a file's last good state up to date with what it says now. False: not yet, it may say more in a moment."""
    reading = _parse(path, data, file.entries)
    whole = data.endswith(b"\n") or data.rstrip().endswith((b"}", b"]"))
    if not whole and 0 < len(data) < len(file.good_data) and file.good_data.startswith(data):
        text = "the file breaks off in the middle of what it said before; its last good state stays until it is whole"
        file.problems, file.kept = (Problem(path, data.count(b"\n") + 1, "", text),), tuple(file.entries)
        return True
    missing = [key for key in file.entries if key not in reading.entries]
    kept: list[ResourceKey] = []
    reason = _reason_to_keep(reading, data, whole)
    if reading.bad and whole and not file.good_data.startswith(data):
        # what is certainly none of what cannot be read is gone
        held = [key for key in missing if any(suspect.may_be(key) for suspect in reading.bad)]
        if len(held) < len(missing) and file.data is not None and _unfinished(path, signature):
            return False
        missing = held
    if missing and not reason and file.data is not None and _unfinished(path, signature):
        return False
    if missing and reason:
        guessed = [key for key in missing if not any(each.name and each.may_be(key) for each in reading.bad)]
        if guessed and reading.bad:
            at = next((each.problem for each in reading.bad if each.may_be(min(guessed))), reading.bad[-1].problem)
            more = f" and {len(guessed) - 1} more of the file stay" if len(guessed) > 1 else " stays"
            text = f"{reading.problems[at].text}; {min(guessed)}{more}, since it may be in this"
            reading.problems[at] = replace(reading.problems[at], text=text)
        elif not reading.bad:
            more = f" and {len(missing) - 1} more stay" if len(missing) > 1 else " stays"
            text = f"{reason}, so {min(missing)}{more}; delete the file to delete all it had"
            reading.problems.append(Problem(path, reading.last_line, "", text))
        for key in missing:
            reading.entries[key] = file.entries[key]
        kept = missing
    elif not data.strip():
        reading.problems.append(Problem(path, 0, "", "the file is empty"))
    if not reading.problems:
        file.good_data = data
    file.entries, file.kept = reading.entries, tuple(kept)
    if len(reading.problems) > MAX_PROBLEMS_PER_FILE:
        left = len(reading.problems) - MAX_PROBLEMS_PER_FILE
        reading.problems[MAX_PROBLEMS_PER_FILE:] = [Problem(path, 0, "", f"the file has {left} problems more")]
    file.problems = tuple(reading.problems)
    return True


def _unfinished(path: str, signature: tuple[int, ...]) -> bool:
    """Whether a file may still be on its way: cut at the end of a document it looks whole."""
    if 0 <= time.time() - signature[4] / 1e9 < DELETION_SETTLE:
        return True
    try:
        with open(path, "rb") as stream:
            return is_being_written(stream.fileno())
    except OSError:
        return False


def _contents(path: str, signature: tuple[int, ...]) -> bytes:
    """The octets of a regular file. Raises OSError, also where it is something else or too large."""
    if len(signature) == 1:
        raise OSError(signature[0], os.strerror(signature[0]))
    if not stat.S_ISREG(signature[2]):
        raise OSError(0, "it is not a regular file")
    if signature[3] > MAX_FILE_SIZE:
        raise OSError(0, f"it is larger than {MAX_FILE_SIZE >> 20} MiB")
    return read_whole(path, signature[3])  # what was added since shows at the next look


def _reason_to_keep(reading: _Reading, data: bytes, whole: bool) -> str:
    """Why resources the file no longer names should stay; empty where they are really gone."""
    if reading.bad:
        return "a document cannot be read"
    if not data.strip():
        return "the file is empty"
    if not reading.documents:
        return "the file holds nothing but comments"
    if not whole:
        return "the file breaks off in the middle of a line"
    return ""


def _parse(path: str, data: bytes, known: dict[ResourceKey, _Entry]) -> _Reading:
    """All resources of a file; those that say what they said before are the same objects as before."""
    reading = _Reading(last_line=max(1, data.count(b"\n") + (not data.endswith(b"\n"))))
    for document in read_documents(data):
        reading.documents += 1
        if document.error:
            reading.bad.append(_Suspect(len(reading.problems)))
            reading.problems += [
                Problem(path, document.line, document.field, text, manifest)
                for text, manifest in unreadable_manifests(document)
            ]
            continue
        manifests, problem = manifests_of(document)
        if problem is not None:
            reading.bad.append(_Suspect(len(reading.problems)))
            reading.problems.append(Problem(path, document.line_of(problem[0]), *problem))
        for where, manifest in manifests:
            line = document.line_of(where) if where else document.line
            try:
                plain = plain_manifest(manifest, document.text.encode()) if document.text and not where else None
                entry = _Entry(plain or parse_manifest(manifest, where), line)
            except ConfigError as error:
                # A Calico kind that is not ours is whole, so it cannot be a broken form of something missing.
                if not (isinstance(manifest, dict) and manifest.get("kind") in _NOT_OURS):
                    reading.bad.append(_suspect(len(reading.problems), manifest, error, where))
                at = document.line_of(error.path)
                reading.problems.append(Problem(path, at, error.path, error.message, json.dumps(manifest)))
                continue
            key = entry.resource.key
            if key in reading.entries:
                text = f"{key} is already on line {reading.entries[key].line}; this one has no effect"
                reading.problems.append(
                    Problem(path, document.line_of(field_path(where, "metadata") + ".name"), "metadata.name", text)
                )
                continue
            before = known.get(key)
            if before is not None and before.resource.says_the_same(entry.resource):
                entry = _Entry(before.resource, line)
            reading.entries[key] = entry
    return reading


def _suspect(problem: int, manifest: JsonValue, error: ConfigError, where: str) -> _Suspect:
    """What a manifest with an error may be. A name that is itself in doubt tells nothing."""
    kind = manifest_kind(manifest)
    if kind is None or not isinstance(manifest, dict):
        return _Suspect(problem)
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    named = f"{field_path(where, 'metadata')}.name"
    if not isinstance(name, str) or error.path == named or kind.free_name:
        return _Suspect(problem, kind.name)
    return _Suspect(problem, kind.name, name)


def manifests_of(document: Document) -> tuple[list[tuple[str, JsonValue]], tuple[str, str] | None]:
    """The manifests of a document, each with where it is: itself, or the items of a List; and what is wrong with it."""
    value = document.value
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str) or not kind.endswith("List"):
        return [("", value)], None
    item_kind = kind.removesuffix("List")
    versions = versions_of(item_kind) if item_kind else ("v1",)
    unknown = sorted(value.keys() - {"apiVersion", "kind", "metadata", "items"})
    items = value.get("items")
    if not versions:
        return [], ("kind", f"must be a list of {', '.join(KINDS)}, or List")
    if value.get("apiVersion") not in versions:
        return [], ("apiVersion", f"must be {' or '.join(versions)} for a {kind}")
    if unknown:
        text = f"is not a field of a {kind}; known are apiVersion, items, kind, metadata"
        return [], (field_path("", unknown[0]), text)
    if items is not None and not isinstance(items, list):
        return [], ("items", "must be a list of resources")
    found = [(field_path("items", index), item) for index, item in enumerate(items if isinstance(items, list) else [])]
    return [(where, _typed_item(item, item_kind, value)) for where, item in found] if item_kind else found, None


def unreadable_manifests(document: Document) -> list[tuple[str, str]]:
    """What is wrong with a document that cannot be read, with each manifest in it, as JSON, as far as it says what it is.

    Where nothing in it says that, the manifest is empty. What a manifest asks for is left out: it may say more.
    """
    said: list[tuple[str, str]] = []
    for where, manifest in manifests_of(replace(document, value=document.before))[0]:
        head = _head_of(manifest, document.open_at, field_path(where, "metadata"))
        if head is not None:
            metadata = head["metadata"]
            assert isinstance(metadata, dict)
            name = "/".join(str(metadata[each]) for each in ("namespace", "name") if each in metadata)
            what = shown(f"{head['kind']} {name}")[1:-1]
            said.append((f"{document.error}; {what} cannot be read", json.dumps(head)))
    return said or [(document.error, "")]


def _head_of(manifest: JsonValue, open_at: str, at: str) -> JsonObject | None:
    """Kind and names; None where these are not all there: `open_at` is what breaks off, `at` where the metadata are."""
    metadata = manifest.get("metadata") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or not isinstance(metadata, dict) or not isinstance(manifest.get("kind"), str):
        return None
    names = {each: metadata[each] for each in ("name", "namespace") if isinstance(metadata.get(each), str)}
    if "name" not in names or ("namespace" not in names and open_at.startswith(at)):
        return None
    return {each: manifest[each] for each in ("apiVersion", "kind") if each in manifest} | {"metadata": dict(names)}


def _typed_item(item: JsonValue, kind: str, around: JsonObject) -> JsonValue:
    """An item of a `<Kind>List`, with the kind and version that the list says for it."""
    if not isinstance(item, dict):
        return item
    return {"apiVersion": around["apiVersion"], "kind": kind} | item


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
