"""Which of a node's addresses is its BGP address, where nobody has written it down: Calico's autodetection methods.

    first-found                    the first interface that is not known to be virtual
    interface=REGEX[,REGEX...]     the first interface of these, in the order of the list
    skip-interface=REGEX[,...]     as first-found, without these
    cidr=CIDR[,CIDR...]            the first address inside one of these
    can-reach=ADDRESS              the source address of packets to it, as the kernel routes now

A REGEX may match anywhere in the name, as in Calico: `eth` means every interface with `eth` in its name.

Invariants: interfaces are looked at by index, addresses in the order the kernel has them, which lists the newest of IPv6
first; those that pass (deprecated, temporary, tentative) are taken only where there is no other; loopback, link-local and
multicast addresses never count; the answer has its reason, and so has the lack of one. Pure: what can be reached is asked
of a function the caller gives.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TypeAlias

from routed.errors import ConfigError
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.observed import Interface
from routed.values import dataclass

FIRST_FOUND = "first-found"

#: Interfaces that other programs make for their own purposes; regular expressions on the whole name.
VIRTUAL = (
    "lo", "docker.*", "cbr.*", "dummy.*", "virbr.*", "lxcbr.*", "veth.*", "cali.*", "tunl.*", "flannel.*",
    "kube-ipvs.*", "cni.*", "vxlan\\..*", "vxlan-v6\\..*", "wireguard\\..*", "nodelocaldns.*", "br-[0-9a-f]{12}",
)  # fmt: skip

SourceOf: TypeAlias = "Callable[[bytes], bytes | None]"
"""The packed source address of packets to an address; None where there is no way to it."""


@dataclass(frozen=True, slots=True)
class Detected:
    """An address with its prefix length, and where it was found."""

    address: bytes
    length: int
    interface: str

    def __str__(self) -> str:
        """As Node.spec.bgp has it: `10.0.0.1/24`."""
        return f"{format_address(self.address)}/{self.length}"


@dataclass(frozen=True, slots=True)
class Method:
    """A parsed autodetection method."""

    text: str
    interfaces: tuple[re.Pattern[str], ...] = ()
    skipped: tuple[re.Pattern[str], ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    reach: bytes = b""


def parse_method(text: str) -> Method:
    """Raises ConfigError with an empty path: where the text stood is the caller's to say."""
    name, given, values = text.partition("=")
    if name == FIRST_FOUND and not given:
        return Method(text)
    if not given or not values:
        raise ConfigError("", f"{text!r} is no way to find an address; {_KNOWN}")
    match name:
        case "interface":
            return Method(text, interfaces=tuple(_patterns(text, values)))
        case "skip-interface":
            return Method(text, skipped=tuple(_patterns(text, values)))
        case "cidr":
            try:
                return Method(text, networks=tuple(ipaddress.ip_network(each.strip()) for each in values.split(",")))
            except ValueError as error:
                raise ConfigError("", f"{text!r}: {error}") from None
        case "can-reach":
            try:
                return Method(text, reach=parse_address(values))
            except ValueError:
                raise ConfigError("", f"{text!r}: {values!r} is not an address; names are not looked up") from None
        case _:
            raise ConfigError("", f"{text!r} is no way to find an address; {_KNOWN}")


_KNOWN = "known are first-found, interface=, skip-interface=, cidr= and can-reach="


def detect(
    method: Method,
    family: Family,
    interfaces: Iterable[Interface],
    source_of: SourceOf,
    passing: Container[bytes] = frozenset(),
) -> Detected | str:
    """The address, or a sentence about why there is none; one that is `passing` only where there is no other."""
    ordered = sorted(interfaces, key=lambda interface: interface.index)
    usable = [found for found in _addresses(ordered, family) if _is_usable(found.address)]
    if method.reach:
        return _reached(method, family, usable, source_of)
    if method.interfaces:
        usable = [
            found for pattern in method.interfaces for found in usable if pattern.search(found.interface) is not None
        ]
    elif not method.networks:
        usable = [
            found
            for found in usable
            if not any(re.fullmatch(pattern, found.interface) for pattern in VIRTUAL)
            and not any(pattern.search(found.interface) for pattern in method.skipped)
        ]
    if method.networks:
        usable = [
            found
            for found in usable
            if any(ipaddress.ip_address(found.address) in network for network in method.networks)
        ]
    if usable:
        return min(usable, key=lambda found: found.address in passing)  # the first of them
    up = ", ".join(interface.name for interface in ordered if interface.up) or "none"
    return f"no {_name(family)} address was found by {method.text}; interfaces that are up: {up}"


def _reached(method: Method, family: Family, usable: list[Detected], source_of: SourceOf) -> Detected | str:
    if len(method.reach) != family.address_length:
        return f"{method.text} is of the other family, so it says nothing about {_name(family)}"
    source = source_of(method.reach)
    if source is None:
        return f"there is no route to {format_address(method.reach)}, which {method.text} asks for"
    for found in usable:
        if found.address == source:
            return found
    return f"packets to {format_address(method.reach)} leave with {format_address(source)}, which no interface here has"


def _addresses(interfaces: Iterable[Interface], family: Family) -> Iterator[Detected]:
    for interface in interfaces:
        if interface.up:
            for address, length in interface.addresses:
                if len(address) == family.address_length:
                    yield Detected(address, length, interface.name)


def _is_usable(address: bytes) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified)


def _patterns(text: str, values: str) -> Iterator[re.Pattern[str]]:
    for each in values.split(","):
        try:
            yield re.compile(each.strip())
        except re.error as error:
            raise ConfigError("", f"{text!r}: {each!r} is not a regular expression: {error}") from None


def _name(family: Family) -> str:
    return "IPv4" if family is Family.IPV4_UNICAST else "IPv6"
