"""What a CNI call is answered, and what an earlier answer told of, in the words of the specification (0.3.0 to 1.1.0). Pure.

A result has the form of the version that was asked for, and what plugins before us made is in it.
"""

from __future__ import annotations

import json

from routed.cni.call import INVALID_CONFIGURATION, NOT_AS_IT_WAS, Request, as_address, as_object
from routed.cni.protocol import VERSIONS
from routed.errors import CniError
from routed.model.resources import JsonObject, JsonValue
from routed.net.addresses import format_address
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class Attached:
    """What an ADD made."""

    host_interface: str
    host_mac: bytes
    pod_interface: str
    pod_mac: bytes
    addresses: tuple[bytes, ...]
    mtu: int


def format_result(request: Request, made: Attached) -> JsonObject:
    """The result of ADD in the version asked for, with what plugins before us made."""
    modern = VERSIONS.index(request.version) >= VERSIONS.index("1.0.0")
    previous = request.previous or {}
    interfaces: list[JsonValue] = list(_list_of(previous, "interfaces"))
    first = len(interfaces)
    host: JsonObject = {"name": made.host_interface, "mac": _mac_text(made.host_mac)}
    pod: JsonObject = {
        "name": made.pod_interface,
        "mac": _mac_text(made.pod_mac),
        "sandbox": request.namespace_path,
    }
    if request.version == "1.1.0":
        host["mtu"] = pod["mtu"] = made.mtu
    interfaces += [host, pod]
    ips: list[JsonValue] = list(_list_of(previous, "ips"))
    for address in made.addresses:
        ip: JsonObject = {"address": f"{format_address(address)}/{8 * len(address)}", "interface": first + 1}
        if not modern:
            ip["version"] = "4" if len(address) == 4 else "6"
        ips.append(ip)
    return {
        "cniVersion": request.version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": list(_list_of(previous, "routes")),
        "dns": _dns(request),
    }


def format_error(version: str, error: CniError) -> bytes:
    found: JsonObject = {"cniVersion": version, "code": error.code, "msg": error.message}
    if error.details:
        found["details"] = error.details
    return json.dumps(found).encode()


@dataclass(frozen=True, slots=True)
class Previous:
    """What a `prevResult` tells of the attachment that is asked about."""

    addresses: frozenset[bytes]
    mac: bytes | None
    """None where it does not say."""
    mtu: int
    """0 where it does not say, as before version 1.1."""


def previous_result(request: Request) -> Previous:
    """Raises CniError where it does not tell of the interface at all."""
    previous = request.previous or {}
    interfaces = _list_of(previous, "interfaces")
    number, own = next(
        (
            (number, each)
            for number, each in enumerate(interfaces)
            if isinstance(each, dict) and each.get("name") == request.interface and each.get("sandbox")
        ),
        (-1, {}),
    )
    if number < 0 or own.get("sandbox") != request.namespace_path:
        where = f"{request.interface} in {request.namespace_path}"
        raise CniError(NOT_AS_IT_WAS, f"prevResult does not tell of {where}")
    addresses = set()
    for each in _list_of(previous, "ips"):
        if isinstance(each, dict) and each.get("interface", number) == number:
            addresses.add(as_address("prevResult.ips", each.get("address")))
    mac, mtu = own.get("mac"), own.get("mtu")
    try:
        octets = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) and mac else None
    except ValueError:
        raise CniError(INVALID_CONFIGURATION, f"prevResult.interfaces: {mac!r} is no MAC address") from None
    return Previous(frozenset(addresses), octets, mtu if isinstance(mtu, int) else 0)


def _dns(request: Request) -> JsonObject:
    """What is passed on to the runtime: of a plugin before, else the configuration's, with what the runtime said of it."""
    said = as_object(request.configuration, "runtimeConfig").get("dns")
    own = {**as_object(request.configuration, "dns"), **_renamed(said if isinstance(said, dict) else {})}
    return as_object(request.previous or {}, "dns") or own


def _renamed(said: JsonObject) -> JsonObject:
    """The capability `dns` has names of its own for what a result has."""
    names = {"servers": "nameservers", "searches": "search"}
    return {names.get(name, name): value for name, value in said.items()}


def _list_of(of: JsonObject, name: str) -> list[JsonValue]:
    value = of.get(name)
    return value if isinstance(value, list) else []


def _mac_text(mac: bytes) -> str:
    return mac.hex(":")
