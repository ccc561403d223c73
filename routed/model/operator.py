"""Manifests of the Tigera operator, as Calico's resources: Installation, CalicoNetwork and CalicoNode.

People describe a cluster's network with them (apiVersion operator.tigera.io/v1), and on a node without the operator
nobody would act on them. Invariants: a translation says every thing it wrote and every field it left alone; a field
that has no meaning here is refused by name like everywhere else, but for those of Installation that are about images
and workloads, which are told. What is merged into a resource that exists already is a part of its `spec` (`merge`).

`bgp: Enabled` of the operator's starts BIRD and leaves BGPConfiguration alone, where the mesh is on unless that says
otherwise. So it is written only where nothing is said yet: a mesh that somebody switched off in favour of route
reflectors stays off. What a manifest says of the mesh itself counts, and so does `Disabled`.
"""

from __future__ import annotations

from collections.abc import Collection

from routed.errors import ConfigError
from routed.model.fields import Fields, as_cidr, one_of, shown
from routed.model.head import API_VERSION
from routed.model.paths import block_name
from routed.model.resources import BGPConfiguration, EncapMode, IPPool, JsonObject, JsonValue
from routed.model.shape import lost_indentation, shape, unknown_fields
from routed.net.families import Family
from routed.values import dataclass

API = "operator.tigera.io/v1"

#: encapsulation -> (ipipMode, vxlanMode)
ENCAPSULATIONS = {
    "None": (EncapMode.NEVER, EncapMode.NEVER),
    "IPIP": (EncapMode.ALWAYS, EncapMode.NEVER),
    "IPIPCrossSubnet": (EncapMode.CROSS_SUBNET, EncapMode.NEVER),
    "VXLAN": (EncapMode.NEVER, EncapMode.ALWAYS),
    "VXLANCrossSubnet": (EncapMode.NEVER, EncapMode.CROSS_SUBNET),
}
#: Kinds beside those that are about programs the operator runs, not about a node's network: in Calico's own
#: custom-resources.yaml they stand next to the Installation.
_OF_PROGRAMS = frozenset(("APIServer", "GatewayAPI", "Goldmane", "ImageSet", "TigeraStatus", "Whisker"))
_POOL = "{ allowedUses assignmentMode blockSize cidr disableBGPExport encapsulation name natOutgoing nodeSelector }"
_HEAD = "apiVersion kind metadata"
_SHAPES = {
    "CalicoNetwork": shape(f"{_HEAD} spec {{ bgp ipPools {_POOL} nodeToNodeMeshEnabled }} status"),
    "CalicoNode": shape(
        f"{_HEAD} spec {{ bgp {{ asNumber enabled nodeToNodeMeshEnabled }} nodeToNodeMeshEnabled }} status"
    ),
    "Installation": shape(f"{_HEAD} spec status"),
}
_NETWORK = shape(f"""
    bgp containerIPForwarding hostPorts ipPools {_POOL} kubeProxyManagement linuxDataplane
    linuxPolicySetupTimeoutSeconds mtu multiInterfaceMode nodeAddressAutodetectionV4 nodeAddressAutodetectionV6 sysctl
    windowsDataplane
""")
_OF_THE_NETWORK = frozenset(("bgp", "ipPools"))


@dataclass(frozen=True, slots=True)
class Translation:
    """What a manifest of the operator's comes to."""

    manifests: tuple[JsonObject, ...]
    merged: tuple[JsonObject, ...]
    """Manifests whose spec is laid over that of the resource that exists, instead of taking its place."""
    filling: frozenset[str]
    """Fields of those specs that count only where the resource that exists says nothing."""
    said: tuple[str, ...]
    """Sentences for who pasted it."""


def translate(manifest: JsonValue, where: str = "") -> Translation | None:
    """None: it is none of the operator's. Raises ConfigError."""
    if not isinstance(manifest, dict) or manifest.get("apiVersion") != API:
        return None
    top = Fields(manifest, where)
    kind = top.required_text("kind")
    if kind in _OF_PROGRAMS:
        return Translation((), (), frozenset(), (f"{kind}: left alone, since it is about programs of the operator's",))
    if kind not in _SHAPES:
        raise top.error("kind", f"must be {one_of(sorted(_SHAPES))} for {API}, not {shown(kind)}")
    for found in unknown_fields(manifest, _SHAPES[kind], where):
        raise lost_indentation(manifest, where) or found.error
    spec = top.object("spec")
    if spec is None:
        raise lost_indentation(manifest, where) or top.error("spec", "is required")
    if kind == "CalicoNode":
        return _node(spec)
    if kind == "CalicoNetwork":
        return _network(spec, kind)
    network = spec.object("calicoNetwork")
    if network is None:
        raise spec.error("calicoNetwork", "is required: nothing else of an Installation is about a node's routes")
    for found in unknown_fields(network.values, _NETWORK, network.path):
        raise found.error
    made = _network(network, kind)
    left = [spec.at(name) for name in spec.values if name != "calicoNetwork"]
    left += [network.at(name) for name in network.values if name not in _OF_THE_NETWORK]
    said = (f"left alone, since they are about workloads of the operator's: {', '.join(left)}",) if left else ()
    return Translation(made.manifests, made.merged, made.filling, (*made.said, *said))


def _network(spec: Fields, kind: str) -> Translation:
    pools: list[JsonObject] = []
    said: list[str] = []
    for entry in spec.objects("ipPools"):
        pool = _pool(entry, [str(_name(one)) for one in pools])
        pools.append(pool)
        said.append(f"{kind} {entry.path} became IPPool {_name(pool)}")
    speaks, mesh = _enabled(spec, "bgp"), spec.boolean("nodeToNodeMeshEnabled")
    field = "bgp" if mesh is None else "nodeToNodeMeshEnabled"
    merged, filling, sentences = _mesh(spec.at(field), speaks, mesh, {})
    return Translation(tuple(pools), merged, filling, (*said, *sentences))


def _node(spec: Fields) -> Translation:
    bgp = spec.object("bgp")
    enabled = bgp.boolean("enabled") if bgp is not None else None
    mesh = bgp.boolean("nodeToNodeMeshEnabled") if bgp is not None else None
    outer = spec.boolean("nodeToNodeMeshEnabled")
    if mesh is not None and outer is not None and mesh is not outer:
        raise spec.error("nodeToNodeMeshEnabled", "says otherwise than spec.bgp.nodeToNodeMeshEnabled")
    mesh = outer if mesh is None else mesh
    number = bgp.as_number("asNumber") if bgp is not None else None
    if enabled is None and mesh is None and number is None:
        raise ConfigError(spec.path, "says nothing: set bgp.enabled, nodeToNodeMeshEnabled or bgp.asNumber")
    return Translation((), *_mesh(spec.at("bgp"), enabled, mesh, {} if number is None else {"asNumber": number}))


def _mesh(
    field: str, speaks: bool | None, mesh: bool | None, more: JsonObject
) -> tuple[tuple[JsonObject, ...], frozenset[str], tuple[str, ...]]:
    """What is merged into BGPConfiguration default, which of its fields only fill it, and the sentence about it."""
    made = dict(more)
    fills = speaks is True and mesh is None
    if speaks is not None or mesh is not None:
        made["nodeToNodeMeshEnabled"] = mesh is not False and speaks is not False
    if not made:
        return (), frozenset(), ()
    text = f"{field} became {', '.join(f'{name}: {shown(value)}' for name, value in made.items())}"
    text += " in BGPConfiguration default"
    if fills:
        text += ", unless that says nodeToNodeMeshEnabled already"
    if speaks is False:
        text += "; BGPPeers, if there are any, are still peered with"
    return (_configuration(made),), frozenset(("nodeToNodeMeshEnabled",) if fills else ()), (text,)


def _configuration(spec: JsonObject) -> JsonObject:
    return {"apiVersion": API_VERSION, "kind": BGPConfiguration.kind, "metadata": {"name": "default"}, "spec": spec}


def _enabled(fields: Fields, name: str) -> bool | None:
    text = fields.values.get(name)
    if text not in (None, "", "Enabled", "Disabled"):
        raise fields.error(name, f"must be Enabled or Disabled, not {shown(text)}")
    return text == "Enabled" if text else None


def _name(manifest: JsonObject) -> JsonValue:
    metadata = manifest["metadata"]
    return metadata["name"] if isinstance(metadata, dict) else None


def _pool(entry: Fields, taken: list[str]) -> JsonObject:
    cidr = as_cidr(entry.required_text("cidr"), entry.at("cidr"))
    ipv4 = cidr.family is Family.IPV4_UNICAST
    usual = f"default-ipv{4 if ipv4 else 6}-ippool"
    name = entry.text("name") or (usual if usual not in taken else block_name(cidr))
    encapsulation = entry.text("encapsulation") or ("IPIP" if ipv4 else "None")
    if encapsulation not in ENCAPSULATIONS:
        raise entry.error("encapsulation", f"must be {one_of(list(ENCAPSULATIONS))}, not {shown(encapsulation)}")
    ipip, vxlan = ENCAPSULATIONS[encapsulation]
    nat = _enabled(entry, "natOutgoing")
    spec: JsonObject = {
        "cidr": str(cidr),
        "ipipMode": str(ipip),
        "vxlanMode": str(vxlan),
        "natOutgoing": ipv4 if nat is None else nat,
        "blockSize": entry.integer("blockSize", 20, 128) or (26 if ipv4 else 122),
        "nodeSelector": entry.text("nodeSelector") or "all()",
    }
    for field in ("disableBGPExport", "allowedUses", "assignmentMode"):
        if entry.has(field):
            spec[field] = entry.values[field]
    return {"apiVersion": API_VERSION, "kind": IPPool.kind, "metadata": {"name": name}, "spec": spec}


def merge(stored: JsonObject | None, made: JsonObject, filling: Collection[str] = ()) -> JsonObject:
    """`made` laid over what is stored: only the fields of spec that it says change, and `filling` ones not even those."""
    if stored is None:
        return made
    old, new = _spec(stored), _spec(made)
    kept = {name: value for name, value in old.items() if name in filling}
    return stored | {"spec": old | new | kept}


def fold(first: JsonObject, second: JsonObject, filling: tuple[frozenset[str], frozenset[str]]) -> JsonObject:
    """Two manifests to be merged into one resource, as one: what only fills gives way. Raises ConfigError."""
    one, other = _spec(first), _spec(second)
    for name in one.keys() & other.keys():
        if one[name] != other[name] and name not in filling[0] | filling[1]:
            raise ConfigError(f"spec.{name}", f"{shown(other[name])} is said here, and {shown(one[name])} before")
    strong = {name: value for name, value in one.items() if name not in filling[0]}
    return second | {"spec": one | other | strong}


def _spec(manifest: JsonObject) -> JsonObject:
    spec = manifest.get("spec")
    return spec if isinstance(spec, dict) else {}
