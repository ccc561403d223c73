"""Inputs and outputs of the core as JSON and back, in full and by explicit rules.

Octets are hex text, prefixes too (canonical wire form), families their labels, enums their values, times the shortest
decimal that reads back as the same float. A resource is its manifest: reading one back parses it again, so a recording
also shows a change of the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from routed.core.core import CoreSettings
from routed.core.effects import Close, Connect, Effect, Guards, Listen, Log, Routes, Sweep, Tunnels
from routed.desired import Gateway, KernelRoute, RouteBatch, Tunnel
from routed.model.resources import ResourceKey, Update
from routed.model.schema import parse_stored
from routed.net.families import Family
from routed.observed import ForeignRoute, Interface, KernelChange, RouteFailure
from routed.plan.types import CalicoVersion, PodCidrs
from routed.values import dataclass

Json: TypeAlias = Any
"""A value of the json module. The reading functions raise KeyError, TypeError or ValueError on what is no recording."""

FAMILY_BY_LABEL = {family.label: family for family in Family}


@dataclass(frozen=True, slots=True)
class Codec:
    """How one kind of value is written and read."""

    to_json: Callable[[Any], Json]
    from_json: Callable[[Json], Any]


def _same(value: Any) -> Any:
    return value


PLAIN = Codec(_same, _same)
"""Numbers, text and truth values."""
OCTETS = Codec(bytes.hex, bytes.fromhex)
FAMILY = Codec(lambda family: family.label, FAMILY_BY_LABEL.__getitem__)


def listed(item: Codec) -> Codec:
    """A tuple of values of one kind, as a list."""
    return Codec(
        lambda values: [item.to_json(value) for value in values],
        lambda values: tuple(item.from_json(value) for value in values),
    )


# --- what the datastore says


def update_to_json(update: Update) -> Json:
    key = update.key
    return {
        "key": [key.kind, key.name, key.namespace],
        "manifest": None if update.value is None else update.value.manifest,
    }


def update_from_json(value: Json) -> Update:
    kind, name, namespace = value["key"]
    manifest = value["manifest"]
    return Update(ResourceKey(kind, name, namespace), None if manifest is None else parse_stored(manifest))


# --- what the kernel says


def _gateway_to_json(gateway: Gateway) -> Json:
    return [gateway.address.hex(), gateway.interface, gateway.onlink]


def _gateway_from_json(value: Json) -> Gateway:
    address, interface, onlink = value
    return Gateway(bytes.fromhex(address), interface, onlink)


GATEWAYS = listed(Codec(_gateway_to_json, _gateway_from_json))


def _foreign_to_json(route: ForeignRoute) -> Json:
    return {
        "family": route.family.label,
        "prefix": route.prefix.hex(),
        "metric": route.metric,
        "protocol": route.protocol,
        "kind": route.kind,
        "gateways": GATEWAYS.to_json(route.gateways),
    }


def _foreign_from_json(value: Json) -> ForeignRoute:
    return ForeignRoute(
        family=FAMILY_BY_LABEL[value["family"]],
        prefix=bytes.fromhex(value["prefix"]),
        metric=value["metric"],
        protocol=value["protocol"],
        kind=value["kind"],
        gateways=GATEWAYS.from_json(value["gateways"]),
    )


def _interface_to_json(interface: Interface) -> Json:
    return {
        "index": interface.index,
        "name": interface.name,
        "up": interface.up,
        "addresses": [[address.hex(), length] for address, length in interface.addresses],
    }


def _interface_from_json(value: Json) -> Interface:
    return Interface(
        index=value["index"],
        name=value["name"],
        up=value["up"],
        addresses=tuple((bytes.fromhex(address), length) for address, length in value["addresses"]),
    )


FOREIGN_ROUTES = listed(Codec(_foreign_to_json, _foreign_from_json))
INTERFACES = listed(Codec(_interface_to_json, _interface_from_json))


def kernel_change_to_json(change: KernelChange) -> Json:
    return {
        "full": change.full,
        "routesAdded": FOREIGN_ROUTES.to_json(change.routes_added),
        "routesRemoved": FOREIGN_ROUTES.to_json(change.routes_removed),
        "interfaces": INTERFACES.to_json(change.interfaces),
        "interfacesRemoved": list(change.interfaces_removed),
    }


def kernel_change_from_json(value: Json) -> KernelChange:
    return KernelChange(
        full=value["full"],
        routes_added=FOREIGN_ROUTES.from_json(value["routesAdded"]),
        routes_removed=FOREIGN_ROUTES.from_json(value["routesRemoved"]),
        interfaces=INTERFACES.from_json(value["interfaces"]),
        interfaces_removed=tuple(value["interfacesRemoved"]),
    )


def route_failure_to_json(failure: RouteFailure) -> Json:
    return [failure.family.label, failure.prefix.hex(), failure.errno, failure.reason]


def route_failure_from_json(value: Json) -> RouteFailure:
    label, prefix, errno, reason = value
    return RouteFailure(FAMILY_BY_LABEL[label], bytes.fromhex(prefix), errno, reason)


def route_key_to_json(key: tuple[Family, bytes]) -> Json:
    return [key[0].label, key[1].hex()]


def route_key_from_json(value: Json) -> tuple[Family, bytes]:
    label, prefix = value
    return FAMILY_BY_LABEL[label], bytes.fromhex(prefix)


UPDATE = Codec(update_to_json, update_from_json)
KERNEL_CHANGE = Codec(kernel_change_to_json, kernel_change_from_json)
ROUTE_FAILURES = listed(Codec(route_failure_to_json, route_failure_from_json))
ROUTE_KEYS = listed(Codec(route_key_to_json, route_key_from_json))


# --- the core's settings


def settings_to_json(settings: CoreSettings) -> Json:
    return {
        "nodeName": settings.node_name,
        "routerId": settings.router_id,
        "programRoutes": settings.program_routes,
        "routesFound": sorted(family.label for family in settings.routes_found),
        "maximumPaths": settings.maximum_paths,
        "podCidrs": settings.pod_cidrs.value,
        "calicoVersion": None if settings.calico_version is None else settings.calico_version.value,
        "interfacePrefixes": list(settings.interface_prefixes),
        "programPriorities": settings.program_priorities,
        **({"ownWorkloads": True} if settings.own_workloads else {}),
    }


def settings_from_json(value: Json) -> CoreSettings:
    return CoreSettings(
        node_name=value["nodeName"],
        router_id=value["routerId"],
        program_routes=value["programRoutes"],
        routes_found=frozenset(FAMILY_BY_LABEL[label] for label in value["routesFound"]),
        maximum_paths=value["maximumPaths"],
        pod_cidrs=PodCidrs(value.get("podCidrs", PodCidrs.WITHOUT_AFFINITY)),
        calico_version=CalicoVersion(version) if (version := value.get("calicoVersion")) is not None else None,
        interface_prefixes=tuple(value.get("interfacePrefixes", ())),
        program_priorities=value.get("programPriorities", True),
        own_workloads=value.get("ownWorkloads", False),
    )


# --- what the core asks for: written only, to be compared


def _route_to_json(route: KernelRoute | None) -> Json:
    if route is None:
        return None
    found = {"kind": route.kind.name.lower(), "gateways": GATEWAYS.to_json(route.gateways)}
    return {**found, "metric": route.metric} if route.metric else found


def _batch_to_json(batch: RouteBatch) -> Json:
    return {
        "family": batch.family.label,
        "prefixes": [prefix.hex() for prefix in batch.prefixes],
        "route": _route_to_json(batch.route),
    }


def _tunnel_to_json(tunnel: Tunnel) -> Json:
    return {
        "device": tunnel.device,
        "kind": tunnel.kind.value,
        "family": tunnel.family.label,
        "address": tunnel.address.hex(),
        "local": tunnel.local.hex(),
        "mac": tunnel.mac.hex(),
        "vni": tunnel.vni,
        "port": tunnel.port,
        "mtu": tunnel.mtu,
        "peers": [
            [peer.node, peer.address.hex(), peer.vtep.hex(), peer.gateway.hex(), peer.mac.hex()]
            for peer in tunnel.peers
        ],
    }


def effect_to_json(effect: Effect) -> Json:
    match effect:
        case Connect():
            return {
                "connect": effect.conn,
                "remote": effect.remote.hex(),
                "port": effect.port,
                "local": effect.local.hex(),
                "interface": effect.interface,
                **({"password": effect.password} if effect.password else {}),
                **({"ttlSecurity": effect.ttl_security} if effect.ttl_security else {}),
            }
        case Close():
            return {"close": effect.conn}
        case Listen():
            addresses = [address.hex() for address in effect.addresses]
            return {"listen": effect.port, **({"addresses": addresses} if addresses else {})}
        case Guards():
            return {
                "guards": [
                    [guard.remote.hex(), guard.password, guard.generation, guard.ttl_security] for guard in effect.peers
                ]
            }
        case Routes():
            return {"routes": [_batch_to_json(batch) for batch in effect.batches]}
        case Sweep():
            return {"sweep": [family.label for family in effect.families]}
        case Tunnels():
            return {"tunnels": [_tunnel_to_json(tunnel) for tunnel in effect.tunnels]}
        case Log():
            return {"log": effect.level.value, "subject": effect.subject, "text": effect.text}


# --- the core's inputs

Parameters: TypeAlias = tuple[tuple[str, Codec], ...]

INPUTS: dict[str, Parameters] = {
    "resource": (("update", UPDATE),),
    "secret": (("reference", PLAIN), ("generation", PLAIN), ("problem", PLAIN)),
    "loaded": (),
    "in_sync": (),
    "connected": (("conn", PLAIN), ("local", OCTETS)),
    "connect_failed": (("conn", PLAIN), ("reason", PLAIN)),
    "accepted": (("remote", OCTETS), ("local", OCTETS), ("interface", PLAIN)),
    "received": (("conn", PLAIN), ("data", OCTETS)),
    "closed": (("conn", PLAIN), ("reason", PLAIN)),
    "writing_paused": (("conn", PLAIN),),
    "writing_resumed": (("conn", PLAIN),),
    "kernel": (("change", KERNEL_CHANGE),),
    "route_failures_changed": (("failures", ROUTE_FAILURES), ("cleared", ROUTE_KEYS)),
    "timer": (),
    "shutdown": (("mode", PLAIN), ("reason", PLAIN)),
    "clear": (("address", OCTETS), ("mode", PLAIN)),
    "flush": (),
}
"""Every input of a core: the method and its parameters in order; `now` always comes last."""
