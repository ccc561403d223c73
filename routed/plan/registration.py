"""A node from nothing: the Node to write for it, and what a cluster that has nothing yet needs beside it.

As calico-node does when it starts: the Node gets the addresses that were found, a cluster without any pool of a family gets
a default one, and a datastore it shares with others gets its ClusterInformation and the tiers every cluster has. Beside that
a BGPConfiguration `default`, where there is none.

Invariants: what somebody wrote stays, but for the fields this node's own configuration names; what is there already leads
to no write, so that doing it twice is doing it once; an address another Node has is refused.

Not here: finding addresses (`autodetect`), reading and writing (`daemon/registration`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import TypeAlias

from routed.errors import ConfigError
from routed.model.head import API_VERSION
from routed.model.operator import ENCAPSULATIONS
from routed.model.policies import DEFAULT_TIER, DEFAULT_TIER_ORDER, Tier, TierAction
from routed.model.resources import (
    DEFAULT_AS_NUMBER,
    BGPConfiguration,
    Cidr,
    IPPool,
    JsonObject,
    JsonValue,
    Node,
    NodeAddress,
    Resource,
    ResourceKey,
)
from routed.model.settings import ClusterInformation, locked
from routed.net.addresses import format_address, format_router_id
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix
from routed.plan.autodetect import Detected, Method
from routed.plan.cluster import address_of
from routed.values import dataclass

BLOCK_SIZES = {Family.IPV4_UNICAST: 26, Family.IPV6_UNICAST: 122}
FIELDS = {Family.IPV4_UNICAST: "ipv4Address", Family.IPV6_UNICAST: "ipv6Address"}
_POOLS = {Family.IPV4_UNICAST: "default-ipv4-ippool", Family.IPV6_UNICAST: "default-ipv6-ippool"}
Way: TypeAlias = "Method | NodeAddress | None"
"""How an address is found: a method, an address that is said, or None: what the Node has is left as it is."""

_TIERS = (
    (DEFAULT_TIER, int(DEFAULT_TIER_ORDER), TierAction.DENY),
    ("kube-admin", 1_000, TierAction.PASS),
    ("kube-baseline", 10_000_000, TierAction.PASS),
)
"""Those every cluster has, with their orders: its own policies', and those of Kubernetes' admin and baseline policies."""

#: What calico-node says of an address it found.
_FOUND_BY_THE_NODE = "CalicoNodeIP"


@dataclass(frozen=True, slots=True)
class ClusterDefaults:
    """What a cluster gets that has nothing of it."""

    as_number: int = DEFAULT_AS_NUMBER
    pools: Mapping[Family, Cidr] = field(default_factory=dict, hash=False)
    block_sizes: Mapping[Family, int] = field(default_factory=lambda: BLOCK_SIZES, hash=False)
    encapsulation: str = "None"
    nat_outgoing: bool = False


@dataclass(frozen=True, slots=True)
class Registration:
    """What this node's configuration says about its Node."""

    name: str
    ways: Mapping[Family, Way] = field(default_factory=dict, hash=False)
    """How its addresses are found."""
    as_number: int | None = None
    cluster_id: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    orchestrator: str = ""
    calico_version: str = ""
    """Which Calico the cluster is to behave like, where it does not say; empty: nobody says."""
    cluster: ClusterDefaults = ClusterDefaults()


def wanted_resources(
    registration: Registration, addresses: Mapping[Family, Detected], there: Iterable[Resource], guid: str = ""
) -> list[JsonObject]:
    """What to write, in order: the manifests that are new or change. Raises ConfigError.

    `guid` is for a cluster that has none; empty where the datastore is one node's alone and not a cluster's.
    """
    known = list(there)
    nodes = {one.name: one for one in known if isinstance(one, Node)}
    _refuse_taken(registration, addresses, nodes.values())
    made = list(_of_the_cluster(registration, known, guid)) if guid else []
    if not any(isinstance(one, BGPConfiguration) and one.name == "default" for one in known):
        made.append(_manifest(BGPConfiguration.kind, "default", {"asNumber": registration.cluster.as_number}))
    pools = [one for one in known if isinstance(one, IPPool)]
    for family, cidr in registration.cluster.pools.items():
        if not any(pool.cidr.family is family for pool in pools):
            _refuse_overlap(family, cidr, addresses)
            made.append(_pool(registration.cluster, family, cidr))
    own = nodes.get(registration.name)
    node = _node(registration, addresses, own.manifest if own is not None else None)
    if own is None or node != own.manifest:
        made.append(node)
    return made


def _of_the_cluster(registration: Registration, known: Iterable[Resource], guid: str) -> Iterator[JsonObject]:
    """ClusterInformation and tiers, as calico-node's start makes them or makes them complete."""
    there = {one.key: one for one in known}
    information = there.get(ResourceKey(ClusterInformation.kind, "default"))
    if lock := locked(information):
        raise ConfigError(
            "",
            f"{lock}, as while it is moved: nothing is written until it is unlocked",
        )
    stored = information.manifest if information is not None else None
    made = copy.deepcopy(stored) if stored is not None else _manifest(ClusterInformation.kind, "default", {})
    spec = _object(made, "spec")
    wanted: JsonObject = {"clusterGUID": guid, "datastoreReady": True}
    if stored is None:
        wanted["clusterType"] = f"{registration.orchestrator},bgp" if registration.orchestrator else "bgp"
        if registration.calico_version:
            wanted["calicoVersion"] = f"{registration.calico_version}.0"
    for name, value in wanted.items():
        if spec.get(name) in (None, ""):
            spec[name] = value
    if made != stored:
        yield made
    for name, order, action in _TIERS:
        if ResourceKey(Tier.kind, name) not in there:
            yield _manifest(Tier.kind, name, {"order": order, "defaultAction": action.value})


def _node(registration: Registration, addresses: Mapping[Family, Detected], stored: JsonObject | None) -> JsonObject:
    made = copy.deepcopy(stored) if stored is not None else _manifest(Node.kind, registration.name, {})
    metadata, spec = _object(made, "metadata"), _object(made, "spec")
    if registration.labels:
        labels: JsonObject = dict(registration.labels)
        _object(metadata, "labels").update(labels)
    bgp: JsonObject = {FIELDS[family]: str(found) for family, found in addresses.items()}
    if registration.as_number is not None:
        bgp["asNumber"] = registration.as_number
    if registration.cluster_id is not None:
        bgp["routeReflectorClusterID"] = format_router_id(registration.cluster_id)
    if bgp:
        _object(spec, "bgp").update(bgp)
    told: list[JsonValue] = [{"address": str(found), "type": _FOUND_BY_THE_NODE} for found in addresses.values()]
    if told:
        others = [each for each in _list(spec, "addresses") if not _is_ours(each)]
        spec["addresses"] = [*told, *others]
    if registration.orchestrator and not _list(spec, "orchRefs"):
        spec["orchRefs"] = [{"nodeName": registration.name, "orchestrator": registration.orchestrator}]
    return made


def _refuse_taken(registration: Registration, addresses: Mapping[Family, Detected], nodes: Iterable[Node]) -> None:
    for node in sorted(nodes, key=lambda node: node.name):
        for family, found in addresses.items():
            if node.name != registration.name and address_of(node, family) == found.address:
                raise ConfigError(
                    "",
                    f"Node {node.name} has the address {format_address(found.address)} of this node, {registration.name}: "
                    f"another node has taken the name or the address; delete the one that is gone",
                )


def _refuse_overlap(family: Family, cidr: Cidr, addresses: Mapping[Family, Detected]) -> None:
    found = addresses.get(family)
    if found is not None and covers(cidr.prefix, make_prefix(found.address, family.max_length)):
        raise ConfigError(
            "",
            f"the default pool {cidr} holds this node's own address {format_address(found.address)}: "
            f"say another in clusterDefaults.{'ipv4Pool' if family is Family.IPV4_UNICAST else 'ipv6Pool'}, or none",
        )


def _pool(cluster: ClusterDefaults, family: Family, cidr: Cidr) -> JsonObject:
    ipip, vxlan = ENCAPSULATIONS[cluster.encapsulation]
    return _manifest(
        IPPool.kind,
        _POOLS[family],
        {
            "cidr": str(cidr),
            "blockSize": cluster.block_sizes[family],
            "ipipMode": str(ipip),
            "vxlanMode": str(vxlan),
            "natOutgoing": cluster.nat_outgoing,
            "nodeSelector": "all()",
        },
    )


def _manifest(kind: str, name: str, spec: JsonObject) -> JsonObject:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _object(within: JsonObject, name: str) -> JsonObject:
    found = within.get(name)
    if not isinstance(found, dict):
        found = within[name] = {}
    return found


def _list(within: JsonObject, name: str) -> list[JsonValue]:
    found = within.get(name)
    return found if isinstance(found, list) else []


def _is_ours(address: JsonValue) -> bool:
    return isinstance(address, dict) and address.get("type") == _FOUND_BY_THE_NODE
