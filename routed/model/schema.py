"""All kinds of resources: a manifest becomes a `Resource`, or a ConfigError with the exact field.

Invariants: the fields, defaults and rules are those of Calico's v3 API (projectcalico.org/v3, and
crd.projectcalico.org/v1 as the Kubernetes datastore writes it), of its allocator, and of the few Kubernetes kinds that
routed reads. An unknown kind, version or field is refused, never ignored, since a misspelt filter rule lets routes
through; where the writer may be a newer Calico the caller asks for unknown fields to be left out and named instead.
`parse_manifest(to_manifest(r)) == r` for every resource. The readers are in the modules of their topics (`bgp`, `ipam`,
`policies`, `workloads`, `settings`, `kubernetes`); what a resource means for this node is decided in `plan/`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

from routed.errors import ConfigError
from routed.model import bgp, ipam, kubernetes, policies, settings, workloads
from routed.model.fields import Fields, nearest, one_of, shown
from routed.model.head import API_VERSION, CRD_API_VERSION, Kind, read_head
from routed.model.resources import JsonObject, JsonValue, Resource
from routed.model.shape import known_only, lost_indentation, paths, unknown_fields

__all__ = [
    "API_VERSION", "CRD_API_VERSION", "KINDS", "KIND_TABLE", "OTHER_KINDS", "field_names", "kind_named",
    "manifest_kind", "parse_manifest", "parse_stored", "to_manifest", "versions_of",
]  # fmt: skip

_BY_TOPIC = (*bgp.KINDS, *ipam.KINDS, *policies.KINDS, *workloads.KINDS, *settings.KINDS, *kubernetes.KINDS)

KIND_TABLE: Mapping[str, Kind] = {kind.name: kind for kind in sorted(_BY_TOPIC, key=lambda kind: kind.name)}
"""The kinds routed reads, by their names in resource keys, sorted."""

KINDS: tuple[str, ...] = tuple(KIND_TABLE)
"""Their names."""

OTHER_KINDS = frozenset({"LiveMigration", "QoSPolicy"})
"""Calico's kinds that are refused, but are no mistake in what they are: an export of a cluster may hold them."""

_WORDS: Mapping[tuple[str, str], Kind] = {
    (version, kind.manifest_kind): kind for kind in KIND_TABLE.values() for version in kind.versions
} | {
    # The API's word for what the allocator keeps; the fields are the same.
    (version, "IPAMConfiguration"): KIND_TABLE["IPAMConfig"]
    for version in (API_VERSION, CRD_API_VERSION)
}


def _names() -> Mapping[str, Kind]:
    found: dict[str, Kind] = {}
    for kind in KIND_TABLE.values():
        for name in (kind.name, kind.plural, f"{kind.name}s", *kind.short):
            found.setdefault(name.lower(), kind)
    return found


_NAMES = _names()


def kind_named(word: str) -> Kind:
    """The kind a person means by `bgppeer`, `BGPPeers`, `bgpp`. Raises ValueError with a sentence."""
    kind = _NAMES.get(word.lower())
    if kind is None:
        raise ValueError(f"there is no kind {shown(word)}{nearest(word, KINDS) or '; known are ' + ', '.join(KINDS)}")
    return kind


def manifest_kind(manifest: JsonValue) -> Kind | None:
    """The kind a manifest is of; None where it says none that is known."""
    if not isinstance(manifest, dict):
        return None
    version, word = manifest.get("apiVersion"), manifest.get("kind")
    return _WORDS.get((version, word)) if isinstance(version, str) and isinstance(word, str) else None


def versions_of(word: str) -> tuple[str, ...]:
    """The API versions of what manifests call `word`; none where nothing is called so."""
    return tuple(version for version, known in _WORDS if known == word)


def field_names(kind: str) -> list[str]:
    """Every field of a kind that says something about it, such as `spec.bgp.asNumber`."""
    shape = KIND_TABLE[kind].shape
    return [path for path in paths(shape) if path.partition(".")[0] not in ("apiVersion", "kind", "metadata")]


def parse_manifest(manifest: JsonValue, where: str = "", unknown: list[ConfigError] | None = None) -> Resource:
    """The resource a manifest describes. `where` is put before the field paths of errors (as in `items[3]`).

    Raises ConfigError. The resource keeps `manifest` itself, so it must not be changed afterwards. With `unknown`,
    fields that nobody here knows are added to that list and left out, as long as that leaves the meaning of the others
    alone; without it they are refused.
    """
    kind = manifest_kind(manifest)
    if kind is None or not isinstance(manifest, dict):
        raise _no_such_kind(manifest, where)
    readable: JsonValue = manifest
    for found in unknown_fields(manifest, kind.shape, where):
        if unknown is None or found.closed:
            raise lost_indentation(manifest, where) or found.error
        unknown.append(found.error)
        if readable is manifest:
            readable = known_only(manifest, kind.shape)
    resource = kind.read(read_head(kind, readable if isinstance(readable, dict) else {}, where))
    if readable is not manifest:
        resource = dataclasses.replace(resource, manifest=manifest)  # what is written back holds what others wrote
    return resource


def parse_stored(manifest: JsonValue) -> Resource:
    """The resource of a manifest that a store holds, or held before something of it was changed.

    Who wrote it may be newer than this: fields nobody here knows stay where they are. Raises ConfigError.
    """
    return parse_manifest(manifest, "", [])


def to_manifest(resource: Resource) -> JsonObject:
    """A deep copy of the manifest a resource was parsed from, to be changed and written back."""
    return copy.deepcopy(resource.manifest)


def _no_such_kind(manifest: JsonValue, where: str) -> ConfigError:
    # The kind comes first: complaining about fields of a kind we do not have would only lead astray.
    top = Fields(manifest, where)
    word = top.text("kind")
    if word in OTHER_KINDS:
        return top.error("kind", f"is {word}, a kind of Calico's that routed does not read")
    versions = versions_of(word)
    if not versions:
        words = sorted({known for _, known in _WORDS})
        return top.error("kind", f"must be {one_of(words)}, not {shown(word)}{nearest(word, words)}")
    version = top.required_text("apiVersion")
    return top.error("apiVersion", f"must be {one_of(versions)} for a {word}, not {shown(version)}")
