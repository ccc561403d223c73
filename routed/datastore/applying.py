"""From the manifests a person hands over to writes on a store: read them all, check them all, then write each.

Invariants: nothing is written before everything was found to be valid, on its own and beside what is stored; a write is
based on the revision that was compared, and one that somebody else overtook is compared again, since the person's
intent still holds; one that fails leaves the others alone. What was not asked for stays: the uid and times of what is
stored, its status where the manifest has none, and fields of a newer writer.
"""

from __future__ import annotations

import datetime
import enum
import os
import sys
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from routed.datastore.documents import Document, read_documents
from routed.datastore.folder import SUFFIXES, manifests_of
from routed.datastore.store import Conflict, Contents, Store, Stored
from routed.errors import ConfigError, StoreError
from routed.model import kubernetes
from routed.model.bgp import ONLY_IN_DEFAULT
from routed.model.deletion import announced, is_announced
from routed.model.fields import shown
from routed.model.kubernetes import calico_form, other_keys
from routed.model.operator import fold, merge, translate
from routed.model.paths import ALLOCATOR_KINDS, TIERED_KINDS, Layout, encode
from routed.model.policies import DEFAULT_ALLOW, DEFAULT_TIER, Tier
from routed.model.resources import BGPConfiguration, IPPool, JsonObject, JsonValue, Resource, ResourceKey
from routed.model.schema import KIND_TABLE, parse_manifest, parse_stored
from routed.model.shape import with_unknown
from routed.model.writing import TIER_ORDERS, refusals
from routed.net.prefixes import covers
from routed.values import dataclass

#: How often a write that somebody overtook is compared and tried again.
ATTEMPTS = 5
_OF_KUBERNETES = frozenset(kind.name for kind in kubernetes.KINDS)
_KEPT = ("uid", "creationTimestamp", "resourceVersion", "generation", "managedFields", "selfLink")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A resource as somebody wants it."""

    resource: Resource
    where: str
    """`file:line`."""
    merged: bool = False
    """Only what its spec says is wanted; the rest of what is stored stays."""
    filling: frozenset[str] = frozenset()
    """Fields of its spec that are wanted only where what is stored says nothing."""
    translated: bool = False
    """It was made of a manifest that is about something else, and may not even give its name."""
    refused: tuple[str, ...] = ()
    """Why it may not be written, though it can be read, a line each."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a person handed over."""

    wanted: tuple[Wanted, ...]
    errors: tuple[str, ...]
    """What is wrong, a line each: `file:line: field: sentence`."""
    said: tuple[str, ...]
    """What was made of it, where that is not what it says."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one resource."""

    key: ResourceKey
    result: str
    """created, configured, unchanged, deleted, or failed."""
    error: str = ""
    conflict: bool = False
    note: str = ""
    """What else somebody should know."""


class Form(enum.Enum):
    """What becomes of Kubernetes' kinds."""

    OWN = "own"
    """They are stored as they are, in a store nobody but routed reads."""
    BESIDE = "beside"
    """As they are too, in a store Calico's components read, which then see nothing of them."""
    CALICO = "calico"
    """What Calico's controllers would write of them is stored, where they would write anything."""


def read_manifests(names: Sequence[str], form: Form) -> Reading:
    """All manifests of files, folders and (`-`) standard input."""
    wanted: dict[ResourceKey, Wanted] = {}
    errors: list[str] = []
    said: list[str] = []
    for path, data in _inputs(names, errors):
        documents = 0
        for document in read_documents(data):
            documents += 1
            for one in _of_document(path, document, errors, said, form):
                before = wanted.get(one.resource.key)
                if before is not None and before.merged and one.merged:
                    wanted[one.resource.key] = _folded(before, one, errors)
                elif before is not None:
                    errors.append(f"{one.where}: {one.resource.key} is already in {before.where}")
                elif one.resource.key == DEFAULT_ALLOW.key:
                    errors.append(f"{one.where}: {one.resource.key} is built in and cannot be written")
                else:
                    wanted[one.resource.key] = one
        if not documents:
            errors.append(f"{path}: holds no manifest")
    return Reading(tuple(wanted.values()), tuple(errors), tuple(said))


def _folded(before: Wanted, one: Wanted, errors: list[str]) -> Wanted:
    """Two manifests that are each about some fields of one resource, as one."""
    try:
        made = fold(before.resource.manifest, one.resource.manifest, (before.filling, one.filling))
    except ConfigError as error:
        errors.append(f"{one.where}: {error} in {before.where}")
        return before
    said = {name for each in (before, one) for name in _spec_of(each) if name not in each.filling}
    return _translated(made, one.where, merged=True, filling=(before.filling | one.filling) - said)


def _spec_of(one: Wanted) -> JsonObject:
    spec = one.resource.manifest.get("spec")
    return spec if isinstance(spec, dict) else {}


def _inputs(names: Sequence[str], errors: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        try:
            if name == "-":
                yield "standard input", sys.stdin.buffer.read()
            elif os.path.isdir(name):
                inside = sorted(one for one in os.listdir(name) if one.endswith(SUFFIXES) and one[0] != ".")
                if not inside:
                    errors.append(f"{name}: holds no {', '.join(SUFFIXES)} file")
                yield from _inputs([os.path.join(name, one) for one in inside], errors)
            else:
                with open(name, "rb") as file:
                    yield name, file.read()
        except OSError as error:
            errors.append(f"{name}: cannot be read: {error.strerror}")


def _of_document(path: str, document: Document, errors: list[str], said: list[str], form: Form) -> Iterator[Wanted]:
    if document.error:
        field = f"{document.field}: " if document.field else ""
        errors.append(f"{path}:{document.line}: {field}{document.error}")
        return
    manifests, problem = manifests_of(document)
    if problem is not None:
        errors.append(f"{path}:{document.line_of(problem[0])}: {problem[0]}: {problem[1]}")
    for where, manifest in manifests:
        try:
            yield from _of_manifest(manifest, _Place(path, document, where), said, form)
        except ConfigError as error:
            errors.append(f"{path}:{document.line_of(error.path)}: {error}")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a manifest stands: in a document of a file, by itself or (`where`) as an item of it."""

    path: str
    document: Document
    where: str

    def __str__(self) -> str:
        return f"{self.path}:{self.document.line_of(self.where) if self.where else self.document.line}"

    def of(self, error: ConfigError) -> str:
        """What is wrong with a field of it, on the line of that field."""
        field = f"{self.where}.{error.path}" if self.where else error.path
        return f"{self.path}:{self.document.line_of(field)}: {field}: {error.message}"


def _of_manifest(manifest: JsonValue, place: _Place, said: list[str], form: Form) -> Iterator[Wanted]:
    where, at = place.where, str(place)
    translation = translate(manifest, where)
    if translation is not None:
        said.extend(f"{at}: {sentence}" for sentence in translation.said)
        # what follows from a pasted manifest must be valid too, and its errors be about a field of it
        yield from (_translated(made, at) for made in translation.manifests)
        for made in translation.merged:
            yield _translated(made, at, merged=True, filling=translation.filling)
        if not translation.manifests and not translation.merged and not translation.said:
            said.append(f"{at}: nothing of it is to be written")
        return
    resource = parse_manifest(manifest, where)
    refused = tuple(place.of(error) for error in refusals(resource))  # of the manifest, whatever is stored of it
    if form is not Form.OWN and resource.kind in _OF_KUBERNETES:
        derived = calico_form(resource) if form is Form.CALICO else None
        if derived is not None:
            resource = parse_manifest(derived)
            said.append(f"{at}: is stored as {resource.key}, which is what Calico's components read")
        else:
            said.append(f"{at}: {resource.key} is stored beside Calico's resources, where nobody but routed reads it")
    if form is not Form.OWN and resource.kind in ALLOCATOR_KINDS:
        resource = _renamed(resource, at, said)
    yield Wanted(resource, at, refused=refused)


def _translated(made: JsonObject, at: str, *, merged: bool = False, filling: frozenset[str] = frozenset()) -> Wanted:
    resource = parse_manifest(made)
    refused = tuple(f"{at}: {error}" for error in refusals(resource))
    return Wanted(resource, at, merged, filling, translated=True, refused=refused)


def _renamed(resource: Resource, at: str, said: list[str]) -> Resource:
    """Where the allocator's own tree holds it, a resource is called by what it says."""
    layout = Layout()
    key = layout.parse_path(layout.path(resource))
    if key is None or key == resource.key:
        return resource
    said.append(f"{at}: {resource.key} is stored as {key}, by what it says")
    return parse_manifest(_named(resource, key.name))


def _named(resource: Resource, name: str) -> JsonObject:
    """Its manifest, under another name."""
    metadata = resource.manifest.get("metadata")
    kept = dict(metadata) if isinstance(metadata, dict) else {}
    return resource.manifest | {"metadata": kept | {"name": name}}


def as_stored(wanted: Sequence[Wanted], contents: Contents) -> tuple[tuple[Wanted, ...], list[str]]:
    """Policies by the names they have in etcd, and what to say of it: a Calico before v3.32 puts a policy's tier before its
    name, so that what is called the same in two tiers is two policies, and `default.` before a name says nothing."""
    said: list[str] = []
    found = tuple(_with_tier(one, contents, said) for one in wanted)
    return found, said


def _with_tier(one: Wanted, contents: Contents, said: list[str]) -> Wanted:
    resource = one.resource
    key = resource.key
    if key.kind not in TIERED_KINDS:
        return one
    tier = getattr(resource, "tier", DEFAULT_TIER)
    bare = key._replace(name=key.name.removeprefix(f"{tier}.") or key.name)
    if tier == DEFAULT_TIER:
        place = bare
    else:
        whole = key._replace(name=f"{tier}.{bare.name}")
        place = next((each for each in (key, whole, bare) if _is_of_tier(contents, each, tier)), key)
    if _revision(contents, place) is None:
        said += [f"{one.where}: {each} is another policy, and stays" for each in _with_any_tier(contents, bare)]
    if place == key:
        return one
    said.append(f"{one.where}: {key} is stored as {place}")
    return replace(one, resource=parse_stored(_named(resource, place.name)))


def _is_of_tier(contents: Contents, key: ResourceKey, tier: str) -> bool:
    stored = contents.resources.get(key)
    return key in contents.unreadable if stored is None else getattr(stored.resource, "tier", DEFAULT_TIER) == tier


def _with_any_tier(contents: Contents, key: ResourceKey) -> list[ResourceKey]:
    """Policies whose name is this one with their tier before it."""
    return [
        other
        for other, stored in contents.resources.items()
        if (other.kind, other.namespace) == (key.kind, key.namespace)
        and key.kind in TIERED_KINDS
        and other.name == f"{getattr(stored.resource, 'tier', DEFAULT_TIER)}.{key.name}"
    ]


def check_beside(wanted: Iterable[Wanted], contents: Contents) -> list[str]:
    """What is wrong with writing resources that may each be stored, and beside the others that will be there."""
    errors: list[str] = []
    wanted = list(wanted)
    pools = {key: one.resource for key, one in contents.resources.items() if isinstance(one.resource, IPPool)}
    keys = {one.resource.key for one in wanted} | contents.resources.keys() | contents.unreadable.keys()
    tiers = {DEFAULT_TIER} | {key.name for key in keys if key.kind == Tier.kind}
    for one in wanted:
        new = one.resource
        errors.extend(one.refused)
        tier = _tier_of(one)
        if tier not in tiers:
            errors.append(f"{one.where}: spec.tier: there is no Tier {shown(tier)}; make it before, or with the policy")
        if isinstance(new, BGPConfiguration) and new.name != "default":
            only = [field for field in ONLY_IN_DEFAULT if _spec_of(one).get(field) not in (None, "")]
            errors.extend(
                f"{one.where}: spec.{field}: may only be set in the BGPConfiguration named default, not in {new.name}"
                for field in only
            )
        if not isinstance(new, IPPool):
            continue
        old = pools.get(new.key)
        if isinstance(old, IPPool) and (old.cidr, old.block_size) != (new.cidr, new.block_size):
            text = f"spec.cidr and spec.blockSize of {new.key} cannot change from {old.cidr} /{old.block_size}"
            errors.append(f"{one.where}: {text}; delete the pool and make another")
        for key, other in pools.items():
            if key == new.key or not isinstance(other, IPPool) or other.cidr.family is not new.cidr.family:
                continue
            if covers(other.cidr.prefix, new.cidr.prefix) or covers(new.cidr.prefix, other.cidr.prefix):
                errors.append(f"{one.where}: spec.cidr: {new.cidr} overlaps {other.cidr} of {key}")
        pools[new.key] = new
    return errors


def kinds_of(wanted: Iterable[Wanted]) -> set[str]:
    """The kinds that have to be read to write these."""
    wanted = list(wanted)
    beside = {Tier.kind} if any(_tier_of(one) != DEFAULT_TIER for one in wanted) else set()
    return {one.resource.kind for one in wanted} | beside


def _tier_of(one: Wanted) -> str:
    """That of a policy; of what is none, the one that is always there."""
    said = _spec_of(one).get("tier") if one.resource.kind in TIERED_KINDS else None
    return said if isinstance(said, str) and said else DEFAULT_TIER


def merged_with(one: Wanted, stored: Stored | None, *, exact: bool, stamp: bool) -> Resource:
    """The resource to be stored. `exact`: as handed over; `stamp`: a new one gets the marks Calico's clients give it."""
    made: JsonObject = one.resource.manifest
    if exact:
        return one.resource
    before = None if stored is None else stored.resource.manifest
    if one.merged:
        made = merge(before, made, one.filling)
    metadata = made.get("metadata")
    marks = dict(metadata) if isinstance(metadata, dict) else {}
    if before is not None:
        old = before.get("metadata")
        marks |= {name: value for name, value in (old if isinstance(old, dict) else {}).items() if name in _KEPT}
        made = made | {"metadata": marks}
        if made.get("status") is None and before.get("status") is not None:
            made = made | {"status": before["status"]}
        whole = with_unknown(made, before, KIND_TABLE[one.resource.kind].shape)
        made = whole if isinstance(whole, dict) else made
    elif stamp:
        made = stamped(made)
    return parse_stored(made)


def stamped(manifest: JsonObject, before: Resource | None = None) -> JsonObject:
    """A resource's manifest with the marks Calico's clients give it; it has those of what it replaces, if that has any."""
    metadata = manifest.get("metadata")
    marks = dict(metadata) if isinstance(metadata, dict) else {}
    old = before.manifest.get("metadata") if before is not None else None
    for name in ("uid", "creationTimestamp"):
        if isinstance(old, dict) and isinstance(old.get(name), str):
            marks.setdefault(name, old[name])
    marks.setdefault("uid", str(uuid.uuid4()))
    marks.setdefault("creationTimestamp", _now())
    return manifest | {"metadata": marks}


def same(left: Resource, right: Resource) -> bool:
    """Whether two resources say the same, whatever revision the one was read at."""
    if left.kind in ALLOCATOR_KINDS:  # the allocator's values have one form, manifests of them several
        return (left.key, encode(left)) == (right.key, encode(right))
    return _content(left) == _content(right)


def _content(resource: Resource) -> JsonObject:
    metadata = resource.manifest.get("metadata")
    kept: JsonObject = dict(metadata) if isinstance(metadata, dict) else {}
    kept.pop("resourceVersion", None)
    if resource.namespace:
        kept["namespace"] = resource.namespace
    said: JsonObject = {name: value for name, value in resource.manifest.items() if value is not None}
    return said | {"metadata": kept, "apiVersion": "", "kind": resource.kind}


async def apply(
    store: Store, wanted: Sequence[Wanted], contents: Contents, *, exact: bool = False, dry_run: bool = False
) -> list[Outcome]:
    """Make each resource what is wanted."""
    return [await _apply_one(store, one, contents, exact, dry_run) for one in wanted]


async def _apply_one(store: Store, one: Wanted, contents: Contents, exact: bool, dry_run: bool) -> Outcome:
    key = one.resource.key
    for attempt in range(ATTEMPTS):
        stored, revision = contents.resources.get(key), _revision(contents, key)
        try:
            new = merged_with(one, stored, exact=exact, stamp=store.shared_with_calico)
            if stored is not None and same(stored.resource, new):
                return Outcome(key, "unchanged")
            if not dry_run:
                await store.write(key, new, revision)
            return Outcome(key, "created" if revision is None else "configured")
        except Conflict as error:
            if attempt == ATTEMPTS - 1:
                return Outcome(key, "failed", str(error), conflict=True)
            contents = await store.read({key.kind})
        except (StoreError, ConfigError) as error:
            return Outcome(key, "failed", str(error))
    raise AssertionError("the loop returns")


def deletable(wanted: Iterable[Wanted], contents: Contents) -> tuple[list[ResourceKey], list[Outcome]]:
    """The resources that go where their manifests are deleted, and what becomes of those that stay.

    A manifest of the operator's that set fields of a resource is not that resource; and a pool it does not name may be
    called like another that is there.
    """
    keys: list[ResourceKey] = []
    stay: list[Outcome] = []
    for one in wanted:
        key = one.resource.key
        stored = contents.resources.get(key)
        there = None if stored is None else stored.resource
        if one.merged:
            fields = ", ".join(f"spec.{name}" for name in _spec_of(one))
            note = f"stays: the manifest is about {fields} of it alone, which apply changes"
            stay.append(Outcome(key, "unchanged", note=note))
        elif (
            one.translated
            and isinstance(there, IPPool)
            and isinstance(one.resource, IPPool)
            and (there.cidr != one.resource.cidr)
        ):
            note = f"stays: it is the pool {there.cidr}, and the manifest is about {one.resource.cidr}"
            stay.append(Outcome(key, "unchanged", note=note))
        else:
            keys.append(key)
    return keys, stay


async def delete(store: Store, keys: Iterable[ResourceKey], *, dry_run: bool = False) -> list[Outcome]:
    """Delete each of these, under the other name it may be stored by where nothing is called so. Tiers go last."""
    keys = list(keys)
    contents = await store.read({one.kind for key in keys for one in (key, *other_keys(key))})
    others = [key for key in keys if key.kind != Tier.kind]
    outcomes = {key: await _delete_one(store, key, contents, dry_run) for key in others}
    if len(others) < len(keys):
        gone = {each.key for each in outcomes.values() if not each.error}
        policies = {key: each for key, each in (await store.read(TIERED_KINDS)).resources.items() if key not in gone}
        for key in keys:
            if key.kind == Tier.kind:
                why = _why_tier_stays(key.name, policies)
                outcomes[key] = Outcome(key, "failed", why) if why else await _delete_one(store, key, contents, dry_run)
    return [outcomes[key] for key in keys]


def _why_tier_stays(name: str, policies: Mapping[ResourceKey, Stored]) -> str:
    """Why a tier cannot be deleted, as Calico sees it: its policies would be asked by nobody; empty where it can."""
    if name in TIER_ORDERS:
        return "this tier is Calico's own and stays"
    of_tier = sorted(str(key) for key, each in policies.items() if getattr(each.resource, "tier", "") == name)
    if not of_tier:
        return ""
    more = f" and {len(of_tier) - 3} more" if len(of_tier) > 3 else ""
    return f"{', '.join(of_tier[:3])}{more} would be in no tier, and asked by nobody; delete or move them first"


async def _delete_one(store: Store, key: ResourceKey, contents: Contents, dry_run: bool) -> Outcome:
    missing = Outcome(key, "failed", f"{key} is not there")
    named = (key, key._replace(name=key.name.removeprefix(f"{DEFAULT_TIER}.")), *other_keys(key))
    there = [one for one in named if one.name and _revision(contents, one) is not None] or _with_any_tier(contents, key)
    if len(there) > 1 and there[0] not in named:
        names = " or ".join(sorted(one.name for one in there))
        return Outcome(key, "failed", f"{key} may be {names}: say which")
    key = there[0] if there else key
    for attempt in range(ATTEMPTS):
        revision = _revision(contents, key)
        if revision is None:
            return missing
        try:
            note = ""
            if not dry_run:
                if store.guards_deletions:
                    revision, note = await announce(store, key, contents.resources.get(key), revision)
                await store.write(key, None, revision)
            return Outcome(key, "deleted", note=note)
        except Conflict as error:
            if attempt == ATTEMPTS - 1:
                return Outcome(key, "failed", str(error), conflict=True)
            contents = await store.read({key.kind})
        except StoreError as error:
            return Outcome(key, "failed", str(error))
    raise AssertionError("the loop returns")


async def announce(store: Store, key: ResourceKey, stored: Stored | None, revision: str) -> tuple[str, str]:
    """Let all who follow the store know that what comes is no accident. The new revision, and what to know where not."""
    going = None if stored is None else announced(stored.resource, _now())
    if stored is not None and is_announced(stored.resource):
        return revision, ""
    if going is None:
        return revision, (
            "routed cannot be told that this is no accident; where it was the last of its kind, nodes hold the deletion "
            f"until `routedctl confirm {key.kind}` on each of them"
        )
    return await store.write(key, going, revision), ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _revision(contents: Contents, key: ResourceKey) -> str | None:
    """What a write at a key is based on, whether its value can be read or not; None where there is nothing."""
    stored = contents.resources.get(key)
    return contents.unreadable.get(key) if stored is None else stored.revision


def selected(
    contents: Contents, kinds: Collection[str], names: Collection[str], namespace: str | None
) -> tuple[list[Stored], list[str]]:
    """The resources of these kinds, names (none: all) and namespace (None: all), in order; and the names not found.

    `contents` has the kinds of `kinds_beside` too, where what is called by a name may be.
    """
    found = contents.resources
    if "Profile" in kinds and DEFAULT_ALLOW.key not in found:
        found = found | {DEFAULT_ALLOW.key: Stored(DEFAULT_ALLOW, "", "built in")}
    places = {
        key for key in found if namespace is None or not KIND_TABLE[key.kind].namespaced or key.namespace == namespace
    }
    if not names:
        return [found[key] for key in sorted(places) if key.kind in kinds], []
    chosen: set[ResourceKey] = set()
    missing: list[str] = []
    for name in names:
        these = {key for key in places if key.name == name and key.kind in kinds}
        if not these:
            spaces = {key.namespace for key in places}
            meant = {
                other for kind in kinds for space in spaces for other in other_keys(ResourceKey(kind, name, space))
            }
            these = meant & places
        if not these:
            missing.append(name)
        chosen |= these
    return [found[key] for key in sorted(chosen)], missing


def kinds_beside(kinds: Collection[str]) -> set[str]:
    """These kinds, and those under which the same may be stored."""
    return {one.kind for kind in kinds for one in (ResourceKey(kind, ""), *other_keys(ResourceKey(kind, "")))}


def in_order_of(value: JsonValue, stored: JsonValue) -> JsonValue:
    """`value` with its fields in the order of what is stored, which means nothing but makes a comparison readable."""
    if isinstance(value, list) and isinstance(stored, list):
        return [in_order_of(one, stored[at] if at < len(stored) else None) for at, one in enumerate(value)]
    if not isinstance(value, dict) or not isinstance(stored, dict):
        return value
    names = [*(name for name in stored if name in value), *(name for name in value if name not in stored)]
    return {name: in_order_of(value[name], stored.get(name)) for name in names}


def with_namespace(resource: Resource) -> JsonObject:
    """The manifest for people to keep, its namespace written out."""
    manifest = resource.manifest
    metadata = manifest.get("metadata")
    if not resource.namespace or not isinstance(metadata, dict) or metadata.get("namespace"):
        return manifest
    return manifest | {"metadata": metadata | {"namespace": resource.namespace}}
