"""Where Calico keeps resources in etcd: resource <-> (path, value).

    /calico/resources/v3/projectcalico.org/<plural>/[<namespace>/]<name>
    /calico/ipam/v2/<host|virtual>/<node>/<ipv4|ipv6>/block/<cidr, "-" for "/">      BlockAffinity
    /calico/ipam/v2/assignment/<ipv4|ipv6>/block/<cidr, "-" for "/">                 IPAMBlock
    /calico/ipam/v2/handle/<id>                                                      IPAMHandle
    /calico/ipam/v2/config                                                           IPAMConfig

Invariants: pure; what is not a path of a kind routed reads is None, never an error, since the tree holds much more
than that; fields that a newer writer added travel through `decode` and `encode` untouched. The allocator's values are
no manifests: what their key says, and their spelling of names, is moved here and nowhere else. A policy of the tier
default has three forms of name: `name`, `default.name` (older Calico's), and any with the name in an annotation;
`decode` reads all, and a resource that was read is written back to the path it came from by whoever keeps that path.
Kubernetes' kinds are in no Calico etcd; they have places of their own beside Calico's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from types import MappingProxyType
from typing import NamedTuple

from routed.errors import ConfigError
from routed.model.fields import shown
from routed.model.head import API_VERSION, METADATA_ANNOTATION, Kind
from routed.model.ipam import MAX_BLOCK_BITS, IPAMBlock, IPAMConfig, IPAMHandle, name_of_block
from routed.model.policies import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
)
from routed.model.resources import (
    AffinityType,
    BlockAffinity,
    Cidr,
    JsonObject,
    JsonValue,
    Node,
    Resource,
    ResourceKey,
    json_line,
)
from routed.model.schema import KIND_TABLE, parse_manifest, parse_stored
from routed.model.unread import plain_block, plain_block_text
from routed.model.unread_endpoints import plain_endpoint
from routed.model.unread_nodes import plain_node
from routed.model.unread_policies import plain_kubernetes_policy, plain_policy
from routed.model.workloads import WorkloadEndpoint
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, make_prefix, parse_prefix, plain_ipv4_network, prefix_address
from routed.values import dataclass

DEFAULT_ROOT = "/calico"
#: Kinds that have a place with the allocator instead of one by their plural.
ALLOCATOR_KINDS = frozenset((BlockAffinity.kind, IPAMBlock.kind, IPAMHandle.kind, IPAMConfig.kind))
TIERED_KINDS = frozenset(
    (NetworkPolicy.kind, GlobalNetworkPolicy.kind, StagedNetworkPolicy.kind, StagedGlobalNetworkPolicy.kind)
)
_TIER_PREFIX = "default."
_KINDS = {kind.plural: kind for kind in KIND_TABLE.values() if kind.name not in ALLOCATOR_KINDS}
_AFFINITY = re.compile(r"(host|virtual)/([^/]+)/(ipv4|ipv6)/block/([0-9a-f.:]+-[0-9]{1,3})")
_BLOCKS = "assignment/"
_BLOCK = re.compile(r"[0-9a-f.:]+-[0-9]{1,3}")
_HANDLE = re.compile(r"handle/([^/]+)")
#: Names in the allocator's value of the cluster's settings, and in the API's.
_CONFIG_NAMES = {"strict_affinity": "strictAffinity", "auto_allocate_blocks": "autoAllocateBlocks"}
_MAX_VALUE = 8 << 20

#: Levels of objects and lists.
MAX_DEPTH = 200
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[][{}]")


class Decoded(NamedTuple):
    """What a value says."""

    resource: Resource
    unknown: tuple[ConfigError, ...] = ()
    """Fields nobody here knows, written by a newer Calico and left out."""


class Place(NamedTuple):
    """What a path says by itself."""

    key: ResourceKey
    spec: Mapping[str, JsonValue] = MappingProxyType({})
    """Fields of the spec that are in the path, and for the allocator's objects nowhere else."""
    block: tuple[Cidr, str] | None = None
    """Of an IPAMBlock: which, and how that is spelt. Its key has the name of that."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The tree under one root. Several clusters may share an etcd, each with its own."""

    root: str = DEFAULT_ROOT

    @property
    def resources(self) -> str:
        return f"{self.root}/resources/v3/projectcalico.org/"

    @property
    def ipam(self) -> str:
        return f"{self.root}/ipam/v2/"

    def kind_prefixes(self, kind: str) -> tuple[str, ...]:
        """The prefixes under which all resources of a kind are, with their trailing slash: what to list and watch."""
        if kind == BlockAffinity.kind:
            return tuple(f"{self.ipam}{one}/" for one in AffinityType)
        if kind == IPAMBlock.kind:
            return (f"{self.ipam}assignment/",)
        if kind == IPAMHandle.kind:
            return (f"{self.ipam}handle/",)
        if kind == IPAMConfig.kind:
            return (f"{self.ipam}config",)
        return (f"{self.resources}{KIND_TABLE[kind].plural}/",)

    def affinity_prefix(self, node: str) -> str:
        """The prefix of all blocks a node holds: what a BGP daemon lists and watches for its own."""
        return f"{self.ipam}{AffinityType.HOST}/{node}/"

    def keys_near(self, block: Cidr) -> tuple[str, str]:
        """The range of keys (first, end) in which all blocks are that overlap with one; others may be in it, too.

        Their addresses are all in the largest block there may be around it, so their text begins as its first and last do.
        """
        family, _ = _segments(block)
        first = make_prefix(prefix_address(*block), min(block.prefix[0], block.family.max_length - MAX_BLOCK_BITS))
        bits = block.family.max_length - first[0]
        start = int.from_bytes(prefix_address(block.family, first))
        size = block.family.address_length
        ends = (format_address(each.to_bytes(size)) for each in (start, start | (1 << bits) - 1))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
        prefix = f"{self.ipam}assignment/{family}/block/{''.join(one for one, _ in same)}"
        return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)

    def path(self, resource: Resource, *, old_policy_names: bool = False) -> str:
        """Where a new resource goes. `old_policy_names`: a policy's with the tier before it, as before Calico v3.32."""
        if isinstance(resource, BlockAffinity):
            family, block = _segments(resource.cidr)
            return f"{self.ipam}{resource.type}/{resource.node}/{family}/block/{block}"
        if isinstance(resource, IPAMBlock):
            family, block = _segments(resource.cidr)
            return f"{self.ipam}assignment/{family}/block/{block}"
        if isinstance(resource, IPAMHandle):
            return f"{self.ipam}handle/{resource.name}"
        if isinstance(resource, IPAMConfig):
            return f"{self.ipam}config"
        name = resource.name
        if old_policy_names and resource.kind in TIERED_KINDS and not name.startswith("knp.default."):
            tier = resource.tier if isinstance(resource, (NetworkPolicy, GlobalNetworkPolicy)) else "default"
            name = name if name.startswith(f"{tier}.") else f"{tier}.{name}"
        place = f"{resource.namespace}/" if KIND_TABLE[resource.kind].namespaced else ""
        return f"{self.resources}{KIND_TABLE[resource.kind].plural}/{place}{name}"

    def candidate_paths(self, key: ResourceKey) -> list[str]:
        """Where a resource may be, by its key alone; the likeliest first.

        A policy may be under its name with or without its tier. The name of an affinity does not say where the node ends
        and the block begins, so there may be several readings of it.
        """
        if key.kind == IPAMHandle.kind:
            return [f"{self.ipam}handle/{key.name}"]
        if key.kind == IPAMConfig.kind:
            return [f"{self.ipam}config"]
        if key.kind == IPAMBlock.kind:
            return [
                f"{self.ipam}assignment/{family}/block/{block}"
                for family, block in map(_segments, _named_blocks(key.name))
            ]
        if key.kind == BlockAffinity.kind:
            return [
                f"{self.ipam}{AffinityType.HOST}/{node}/{family}/block/{block}"
                for node, cidr in _named_affinities(key.name)
                for family, block in (_segments(cidr),)
            ]
        kind = KIND_TABLE[key.kind]
        start = f"{self.resources}{kind.plural}/" + (f"{key.namespace}/" if kind.namespaced else "")
        return [start + key.name, *([start + _TIER_PREFIX + key.name] if key.kind in TIERED_KINDS else ())]

    def place(self, path: str) -> Place | None:
        """What a path is for, by the path alone; None where it is no resource of ours."""
        if path.startswith(self.ipam):
            return _allocator_place(path[len(self.ipam) :])
        if path.startswith(self.resources):
            key = _resource_key(path[len(self.resources) :])
            return None if key is None else Place(key)
        return None

    def parse_path(self, path: str) -> ResourceKey | None:
        """The key a path is for, by the path alone; None where it is no resource of ours."""
        place = self.place(path)
        return None if place is None else place.key

    def decode(self, path: str, value: bytes) -> Decoded | None:
        """The resource at a path; None where the path is not one of ours. Raises ConfigError for what it holds."""
        place = self.place(path)
        return None if place is None else decode_at(place, value)


def decode_at(place: Place, value: bytes) -> Decoded:
    """The resource at a place. Raises ConfigError for what is stored there."""
    key = place.key
    plain = plain_block(value, key.name, *place.block) if place.block is not None else _plain(key, value)
    if plain is not None:
        return Decoded(plain)
    if _is_deep(value):
        raise ConfigError("", f"the value is nested deeper than {MAX_DEPTH} levels")
    data = _json(value, key.kind == BlockAffinity.kind)
    unknown: list[ConfigError] = []
    if key.kind not in ALLOCATOR_KINDS:
        named = _named(data, KIND_TABLE[key.kind])
        if named is not data and key.kind == NetworkPolicy.kind and (policy := plain_policy(json_line(named), key)):
            return Decoded(policy)
        resource = parse_manifest(named, "", unknown)
        if (resource.kind, resource.namespace) != (key.kind, key.namespace) or not _same_name(resource, key):
            raise ConfigError("metadata.name", f"is not the name in the key: {resource.key} is stored as {key}")
        return Decoded(resource, tuple(unknown))
    if not isinstance(data, dict):
        raise ConfigError("", f"must be an object, not {shown(data)}")
    spec: JsonObject
    if key.kind == IPAMConfig.kind:
        spec = {_CONFIG_NAMES.get(name, name): inner for name, inner in data.items()}
    elif place.block is None:
        spec = {**data, **place.spec}
    elif data.get("cidr") == place.block[1]:
        spec = data
    else:
        raise ConfigError("cidr", f"is {shown(data.get('cidr'))}, and the key is for {shown(place.block[1])}")
    manifest: JsonObject = {
        "apiVersion": API_VERSION,
        "kind": key.kind,
        "metadata": {"name": key.name},
        "spec": spec,
    }
    return Decoded(parse_manifest(manifest, "", unknown), tuple(unknown))


def read_text(key: ResourceKey, text: bytes) -> Resource:
    """The resource whose `manifest_text` this is. Raises ConfigError, and ValueError where it is not JSON."""
    plain = plain_block_text(text) if key.kind == IPAMBlock.kind else _plain(key, text)
    return plain if plain is not None else parse_stored(json.loads(text))


def _plain(key: ResourceKey, value: bytes) -> Resource | None:
    """What is stored as its manifest, and is as nearly all of its kind; None: the reader must look."""
    if key.kind == Node.kind:
        return plain_node(value, key.name)
    if key.kind == WorkloadEndpoint.kind:
        return plain_endpoint(value, key)
    return plain_policy(value, key) if key.kind == NetworkPolicy.kind else None


_PLAIN: Mapping[tuple[JsonValue, JsonValue], Callable[[bytes], Resource | None]] = {
    (API_VERSION, Node.kind): plain_node,
    (API_VERSION, WorkloadEndpoint.kind): plain_endpoint,
    (API_VERSION, NetworkPolicy.kind): plain_policy,
    ("networking.k8s.io/v1", "NetworkPolicy"): plain_kubernetes_policy,
}


def plain_manifest(manifest: JsonValue, written: bytes) -> Resource | None:
    """What a manifest describes that is written so, on one line, and is as nearly all of its kind; None: the reader must
    look."""
    if not isinstance(manifest, dict):
        return None
    version, kind = manifest.get("apiVersion"), manifest.get("kind")
    plain = _PLAIN.get((version, kind)) if isinstance(version, str) and isinstance(kind, str) else None
    return None if plain is None else plain(written)


def encode(resource: Resource, path: str = "") -> bytes:
    """A resource as it is stored at `path`: the object, or what the allocator keeps of it.

    A policy has the name there that its path ends in, whichever of its three forms that is.
    """
    manifest = resource.manifest
    if resource.kind not in ALLOCATOR_KINDS:
        metadata = manifest.get("metadata")
        stored = {
            name: one
            for name, one in (metadata if isinstance(metadata, dict) else {}).items()
            if name != "resourceVersion"
        }
        if resource.namespace:
            stored["namespace"] = resource.namespace
        if path and resource.kind in TIERED_KINDS:
            stored["name"] = path.rpartition("/")[2]
        version = API_VERSION if API_VERSION in KIND_TABLE[resource.kind].versions else manifest["apiVersion"]
        return json_line(manifest | {"apiVersion": version, "metadata": stored})
    spec = manifest.get("spec")
    value: JsonObject = dict(spec) if isinstance(spec, dict) else {}
    if isinstance(resource, BlockAffinity):
        for name in ("type", "node", "cidr"):
            value.pop(name, None)
        value |= {"state": str(resource.state), "deleted": resource.deleted}
    elif isinstance(resource, IPAMHandle):
        value.pop("handleID", None)
        value["deleted"] = resource.deleted
    elif isinstance(resource, IPAMBlock):
        if "affinityClaimTime" in value:
            value["affinity_claim_time"] = value.pop("affinityClaimTime")
        value["deleted"] = resource.deleted
    else:
        names = {theirs: ours for ours, theirs in _CONFIG_NAMES.items()}
        value = {names.get(name, name): one for name, one in value.items()}
    return json_line(value)


def block_name(cidr: Cidr) -> str:
    """The name of a block, as the Kubernetes datastore makes it."""
    return name_of_block(str(cidr))


def _named_blocks(name: str) -> list[Cidr]:
    """The blocks a name may be of: see `block_name`."""
    start, _, length = name.rpartition("-")
    found = []
    for address in (start.replace("-", "."), start.replace("-", ":")):
        try:
            family, prefix = parse_prefix(f"{address}/{length}")
        except ValueError:
            continue
        if block_name(Cidr(family, prefix)) == name:
            found.append(Cidr(family, prefix))
    return found


def _named_affinities(name: str) -> list[tuple[str, Cidr]]:
    """The (node, block) pairs a name may be of, those with the longest block first."""
    return [
        (name[:at], cidr)
        for at, character in enumerate(name)
        if character == "-" and at
        for cidr in _named_blocks(name[at + 1 :])
    ]


def _segments(cidr: Cidr) -> tuple[str, str]:
    return "ipv4" if cidr.family is Family.IPV4_UNICAST else "ipv6", str(cidr).replace("/", "-")


def _resource_key(rest: str) -> ResourceKey | None:
    segments = rest.split("/")
    kind = _KINDS.get(segments[0])
    if kind is None or len(segments) != (3 if kind.namespaced else 2) or not all(segments):
        return None
    name = segments[-1]
    if kind.name in TIERED_KINDS and name.startswith(_TIER_PREFIX):
        name = name.removeprefix(_TIER_PREFIX) or name
    return ResourceKey(kind.name, name, segments[1] if kind.namespaced else "")


def _allocator_place(rest: str) -> Place | None:
    if rest.startswith(_BLOCKS):
        family, _, text = rest[len(_BLOCKS) :].partition("/block/")
        block = _block(family, text)
        return None if block is None else Place(ResourceKey(IPAMBlock.kind, name_of_block(block[1])), block=block)
    if match := _AFFINITY.fullmatch(rest):
        block = _block(match[3], match[4])
        if block is None:
            return None
        text = block[1]
        # Two holders of one block must not be one resource, and a virtual one may be called like a node.
        kind = "" if match[1] == AffinityType.HOST else f"{match[1]}."
        return Place(
            ResourceKey(BlockAffinity.kind, f"{kind}{match[2]}-{name_of_block(text)}"),
            {"type": match[1], "node": match[2], "cidr": text},
        )
    if handle := _HANDLE.fullmatch(rest):
        return Place(ResourceKey(IPAMHandle.kind, handle[1]))
    return Place(ResourceKey(IPAMConfig.kind, "default")) if rest == "config" else None


def _block(family: str, text: str) -> tuple[Cidr, str] | None:
    """A block by the last part of its path, and its canonical spelling."""
    address, _, length = text.partition("-")
    written = f"{address}/{length}"
    if family == "ipv4" and (prefix := plain_ipv4_network(address, length)):  # as nearly all are: spelt as it would be
        return Cidr(Family.IPV4_UNICAST, prefix), written
    if family not in ("ipv4", "ipv6") or not _BLOCK.fullmatch(text):
        return None
    try:
        found, prefix = parse_prefix(written)
    except ValueError:
        return None
    if found is not (Family.IPV4_UNICAST if family == "ipv4" else Family.IPV6_UNICAST):
        return None
    return Cidr(found, prefix), format_prefix(found, prefix)


def _json(value: bytes, may_be_empty: bool) -> JsonValue:
    if may_be_empty and not value:
        return {}
    if len(value) > _MAX_VALUE:
        raise ConfigError("", f"the value has {len(value)} octets, which is no resource")
    try:
        data: JsonValue = _DECODER.decode(value.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError("", f"the value is not JSON: {error}") from None
    return data


def _is_deep(value: bytes) -> bool:
    """Whether reading it, or comparing it with another, might end in a RecursionError."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _named(data: JsonValue, kind: Kind) -> JsonValue:
    """The manifest with the name it has for people: without the default tier's prefix, or from the annotation."""
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if kind.name not in TIERED_KINDS or not isinstance(data, dict) or not isinstance(metadata, dict):
        return data
    name = metadata.get("name")
    annotations = metadata.get("annotations")
    kept = annotations.get(METADATA_ANNOTATION) if isinstance(annotations, dict) else None
    if isinstance(kept, str):
        try:
            inner: JsonValue = json.loads(kept)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict) and isinstance(inner.get("name"), str) and inner["name"]:
            name = inner["name"]
    if isinstance(name, str) and name.startswith(_TIER_PREFIX):
        name = name.removeprefix(_TIER_PREFIX) or name
    return data if name == metadata.get("name") else data | {"metadata": metadata | {"name": name}}


def _same_name(resource: Resource, key: ResourceKey) -> bool:
    # An annotation may say another name than the key; the key stays what the resource is found by.
    return resource.name == key.name or resource.kind in TIERED_KINDS
