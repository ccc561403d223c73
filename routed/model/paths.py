"""Where Calico keeps resources in etcd: resource key <-> path.

    /calico/resources/v3/projectcalico.org/<plural>/<name>
    /calico/ipam/v2/<host|virtual>/<node>/<ipv4|ipv6>/block/<cidr, "-" for "/">

Invariants: pure text; what is not a path of a kind routed reads is None, never an error, since the tree holds much
more than that. Block affinities live with the allocator, under a path that says everything but their state; the
value may be `{}` or nothing, which is old data and means confirmed.
"""

from __future__ import annotations

import re

from routed.model.resources import (
    AffinityType,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    BlockAffinity,
    Cidr,
    IPPool,
    JsonObject,
    JsonValue,
    Node,
    ResourceKey,
)
from routed.model.schema import API_VERSION
from routed.net.families import Family
from routed.net.prefixes import parse_prefix

RESOURCES = "/calico/resources/v3/projectcalico.org/"
IPAM = "/calico/ipam/v2/"

_PLURALS = {
    BGPConfiguration.kind: "bgpconfigurations",
    BGPFilter.kind: "bgpfilters",
    BGPPeer.kind: "bgppeers",
    BlockAffinity.kind: "blockaffinities",
    IPPool.kind: "ippools",
    Node.kind: "nodes",
}
_KINDS = {plural: kind for kind, plural in _PLURALS.items()}
_AFFINITY = re.compile(re.escape(IPAM) + r"(host|virtual)/([^/]+)/(ipv4|ipv6)/block/([0-9a-f.:]+)-([0-9]{1,3})")


def kind_prefix(kind: str) -> str:
    """The prefix that all resources of a kind share, with its trailing slash: what to list and watch."""
    return f"{RESOURCES}{_PLURALS[kind]}/"


def resource_path(key: ResourceKey) -> str:
    """The path of a resource of a global kind."""
    return kind_prefix(key.kind) + key.name


def parse_resource_path(path: str) -> ResourceKey | None:
    """The key a path is for; None where it is no resource of ours."""
    if not path.startswith(RESOURCES):
        return None
    plural, _, name = path[len(RESOURCES) :].partition("/")
    kind = _KINDS.get(plural)
    return ResourceKey(kind, name) if kind is not None and name and "/" not in name else None


def block_affinity_prefix(node: str) -> str:
    """The prefix of all blocks a node holds: what a BGP daemon lists and watches for its own."""
    return f"{IPAM}{AffinityType.HOST}/{node}/"


def block_affinity_path(affinity: BlockAffinity) -> str:
    """Where the allocator keeps a block affinity."""
    family = "ipv4" if affinity.cidr.family is Family.IPV4_UNICAST else "ipv6"
    return f"{IPAM}{affinity.type}/{affinity.node}/{family}/block/{str(affinity.cidr).replace('/', '-')}"


def parse_block_affinity_path(path: str) -> tuple[AffinityType, str, Cidr] | None:
    """(type, node, block) of a block affinity's path; None where it is another."""
    match = _AFFINITY.fullmatch(path)
    if not match:
        return None
    try:
        family, prefix = parse_prefix(f"{match[4]}/{match[5]}")
    except ValueError:
        return None
    if family is not (Family.IPV4_UNICAST if match[3] == "ipv4" else Family.IPV6_UNICAST):
        return None
    return AffinityType(match[1]), match[2], Cidr(family, prefix)


def block_affinity_manifest(path: str, value: JsonValue) -> JsonObject | None:
    """The manifest of the BlockAffinity that an allocator's path and value stand for; None where the path is another.

    The name is made as the Kubernetes datastore makes it: the node and the block, with "-" for ".", ":" and "/".
    """
    found = parse_block_affinity_path(path)
    if found is None:
        return None
    kind, node, cidr = found
    spec: JsonObject = {"type": str(kind), "node": node, "cidr": str(cidr)}
    if isinstance(value, dict):
        spec |= {field: value[field] for field in ("state", "deleted") if field in value}
    name = f"{node}-{re.sub('[.:/]', '-', str(cidr))}"
    return {"apiVersion": API_VERSION, "kind": BlockAffinity.kind, "metadata": {"name": name}, "spec": spec}
