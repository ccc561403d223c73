"""Reading typed fields out of a manifest, each error with its exact path and a sentence.

Invariants: every complaint is a ConfigError whose path is the field as people write it (`spec.exportV4[0].cidr`); what
the manifest says is quoted as escaped, shortened JSON, since it may come from anybody; null and, for text, the empty
string count as absent, as they do for Calico's own reader. Which fields a kind has is told by its `Shape`.
"""

from __future__ import annotations

import difflib
import enum
import ipaddress
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar, cast

from routed.errors import ConfigError
from routed.model.resources import Cidr, JsonObject, JsonValue, NodeAddress
from routed.model.selector import Selector, parse_selector
from routed.net.addresses import parse_asn
from routed.net.families import Family
from routed.net.prefixes import make_prefix, plain_prefix

E = TypeVar("E", bound=enum.StrEnum)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./-]{1,64}")
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 2.0**63 / 1e9
"""Seconds of the longest Go duration."""
_NUMBER = re.compile(r"[0-9]{1,10}")
_TEXTS = frozenset((str,))
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}")
_HOST_AND_PORT = re.compile(r"(?:([0-9]+(?:\.[0-9]+){3})|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")


def field_path(parent: str, name: str | int) -> str:
    """The path of a member (by name) or an element (by index) of what is at `parent`."""
    if isinstance(name, int):
        return f"{parent}[{name}]"
    if not (name.isalnum() and name.isascii() and len(name) <= 64) and not _PLAIN_NAME.fullmatch(name):
        return f"{parent}[{shown(name)}]"
    return f"{parent}.{name}" if parent else name


def decimal(text: str) -> int | None:
    """The number that at most ten ASCII digits are; None of anything else (`str.isdigit` takes what `int` does not)."""
    return int(text) if _NUMBER.fullmatch(text) else None


def shown(value: JsonValue) -> str:
    """A value as escaped JSON of at most about 64 characters, safe for logs and terminals."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 64 else text[:60] + "..." + ('"' if isinstance(value, str) else "")


def nearest(word: str, allowed: Collection[str]) -> str:
    """`; did you mean X?` for a near miss, else nothing."""
    folded = {one.lower(): one for one in allowed}
    close = difflib.get_close_matches(word[:64].lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def one_of(allowed: Collection[str]) -> str:
    """`A`, `A or B`, or `one of A, B or C`."""
    *most, last = allowed
    if not most:
        return last
    return f"{'one of ' if len(most) > 1 else ''}{', '.join(most)} or {last}"


class Fields:
    """The members of one object of a manifest."""

    __slots__ = ("_above", "_names", "values")

    def __init__(self, value: JsonValue, above: str | Fields, *names: str | int) -> None:
        """What stands at the path `above`, or at these names below other fields."""
        self._above = above
        self._names = names
        if not isinstance(value, dict):
            raise ConfigError(self.path, f"must be an object with fields, not {shown(value)}")
        self.values: JsonObject = value

    @property
    def path(self) -> str:
        """Made when somebody complains: tens of thousands of resources are read in which all is well."""
        path = self._above if isinstance(self._above, str) else self._above.path
        for name in self._names:
            path = field_path(path, name)
        return path

    def at(self, name: str) -> str:
        """The path of a member."""
        return field_path(self.path, name)

    def error(self, name: str, message: str) -> ConfigError:
        return ConfigError(self.at(name), message)

    def has(self, name: str) -> bool:
        """Whether a member says anything: present, not null, not empty text."""
        return self.values.get(name) not in (None, "")

    def exclude(self, name: str, *others: str) -> None:
        """Refuse `others` where `name` is set."""
        if self.has(name):
            for other in others:
                if self.has(other):
                    raise self.error(other, f"must be left out where {name} is set")

    def text(self, name: str) -> str:
        """A string; empty where absent."""
        value = self.values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(name, f"must be text, not {shown(value)}{_quote_hint(value)}")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise self.error(name, "is required")
        return value

    def boolean(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {shown(value)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}, not {shown(value)}")
        return value

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.error(name, f"must be a number, not {shown(value)}")
        return float(value)

    def choice(self, name: str, kind: type[E], *, any_case: bool = False) -> E | None:
        """A member of an enumeration, by its exact spelling, or (`any_case`) in letters of any size."""
        value = self.values.get(name)
        if value in (None, ""):
            return None
        if any_case and isinstance(value, str):
            value = value.capitalize()
        known = kind._value2member_map_.get(value) if isinstance(value, str) else None
        return cast("E", known) if known is not None else as_choice(value, self.at(name), kind)

    def object(self, name: str) -> Fields | None:
        value = self.values.get(name)
        return None if value is None else Fields(value, self, name)

    def objects(self, name: str) -> Iterator[Fields]:
        """The elements of a list of objects."""
        for index, value in enumerate(self.elements(name)):
            yield Fields(value, self, name, index)

    def texts(self, name: str) -> tuple[str, ...]:
        """The elements of a list of texts, none of them empty."""
        return tuple(as_text(value, path) for path, value in self.array(name))

    def text_map(self, name: str) -> Mapping[str, str]:
        """An object whose members are texts, such as labels. It is the manifest's own."""
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object of texts, not {shown(value)}")
        if not _TEXTS.issuperset(map(type, value.values())):  # one go, for there are hundreds of thousands in a cluster
            for key, text in value.items():
                if not isinstance(text, str):
                    path = field_path(self.at(name), key)
                    raise ConfigError(path, f"must be text, not {shown(text)}{_quote_hint(text)}")
        return cast("Mapping[str, str]", value)

    def elements(self, name: str) -> list[JsonValue]:
        """A list as it is; empty where absent."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(name, f"must be a list, not {shown(value)}")
        return value

    def array(self, name: str) -> Iterator[tuple[str, JsonValue]]:
        """(path, value) of each element; nothing where absent."""
        elements = self.elements(name)
        path = self.at(name) if elements else ""
        for index, element in enumerate(elements):
            yield field_path(path, index), element

    def as_number(self, name: str) -> int | None:
        value = self.values.get(name)
        return None if value in (None, "") else as_as_number(value, self.at(name))

    def duration(self, name: str, most: float = _LONGEST) -> float | None:
        """Seconds of a Go duration such as "120s" or "2m0s", none of them negative."""
        if not self.has(name):
            return None
        value = self.values[name]
        seconds = go_duration(value) if isinstance(value, str) else None
        if seconds is None:
            raise self.error(name, f'must be a duration such as "120s" or "2m0s", not {shown(value)}')
        if not 0 <= seconds <= most:
            raise self.error(name, f"must be from 0 to {most:.15g} seconds, not {shown(value)}")
        return seconds

    def address(self, name: str, family: Family | None = None) -> bytes | None:
        """Packed octets of an address without a mask."""
        text = self.text(name)
        if not text:
            return None
        return plain_address(text, family) or as_address(text, self.at(name), family)

    def node_address(self, name: str, family: Family | None) -> NodeAddress | None:
        """`10.0.0.1/24` or `10.0.0.1`: an address and the subnet it is in."""
        text = self.text(name)
        if not text:
            return None
        return plain_node_address(text, family) or as_node_address(text, self.at(name), family)

    def cidr(self, name: str, family: Family | None = None) -> Cidr | None:
        text = self.text(name)
        if not text:
            return None
        return plain_cidr(text, family) or as_cidr(text, self.at(name), family)

    def required_node_address(self, name: str) -> NodeAddress:
        self.required_text(name)
        return cast("NodeAddress", self.node_address(name, None))

    def required_cidr(self, name: str) -> Cidr:
        text = self.required_text(name)
        return plain_cidr(text, None) or as_cidr(text, self.at(name))

    def selector(self, name: str) -> Selector | None:
        text = self.text(name)
        if not text:
            return None
        try:
            return parse_selector(text)
        except ValueError as error:
            raise self.error(name, f"is not a selector: {shown(text)}: {error}") from None

    def mac(self, name: str) -> bytes | None:
        text = self.text(name)
        if not text:
            return None
        if (mac := plain_mac(text)) is None:
            raise self.error(name, f'must be a MAC address such as "66:e6:8a:12:34:56", not {shown(text)}')
        return mac

    def address_and_port(self, name: str) -> tuple[bytes, int | None] | None:
        """A peer's address and, where the text names one, its port: `10.0.0.254:1790`, `[fd00::1]:179`, `fd00::1`."""
        text = self.text(name)
        if not text:
            return None
        match = _HOST_AND_PORT.fullmatch(text)
        if match:
            port = int(match[3])
            if not 1 <= port <= 65535:
                raise self.error(name, f"has port {port} in {shown(text)}; a port is 1 to 65535")
            address = as_address(match[1] or match[2], self.at(name), Family.IPV4_UNICAST if match[1] else None)
            return _usable(address, text, self.at(name)), port
        address = as_address(text, self.at(name), None, "an address, with a port as 10.0.0.254:1790 or [fd00::1]:179")
        return _usable(address, text, self.at(name)), None


def as_text(value: JsonValue, path: str) -> str:
    """An element that must be non-empty text."""
    if not isinstance(value, str) or not value:
        raise ConfigError(path, f"must be text, not {shown(value)}{_quote_hint(value)}")
    return value


def as_choice(value: JsonValue, path: str, kind: type[E]) -> E:
    """A member of an enumeration, by its exact spelling."""
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            pass
    allowed = [str(one) for one in kind]
    hint = nearest(value, allowed) if isinstance(value, str) else ""
    raise ConfigError(path, f"must be {one_of(allowed)}, not {shown(value)}{hint}")


def as_as_number(value: JsonValue, path: str) -> int:
    """An AS number: 64512, "64512" or "1.10". AS 0 is refused (RFC 7607)."""
    if isinstance(value, (int, str)) and len(str(value)) <= 16:
        try:
            number = parse_asn(value)
        except ValueError:
            pass
        else:
            if number == 0:
                raise ConfigError(path, "must not be AS 0, which is reserved (RFC 7607)")
            return number
    hint = '; write the dotted form in quotes, as "1.10"' if isinstance(value, float) else ""
    raise ConfigError(path, f"must be an AS number from 1 to 4294967295, not {shown(value)}{hint}")


def as_address(text: str, path: str, family: Family | None = None, what: str = "") -> bytes:
    if (plain := plain_address(text, family)) is not None:
        return plain
    what = what or f"an {_family_name(family)} address"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(path, f"must be {what}, not {shown(text)}") from None
    packed = address.packed
    if "%" in text or (family is not None and Family.of_address(packed) is not family):
        raise ConfigError(path, f"must be {what}, not {shown(text)}")
    return packed


def as_node_address(text: str, path: str, family: Family | None) -> NodeAddress:
    """`10.0.0.1/24` or `10.0.0.1`: an address and the subnet it is in."""
    address_text, slash, length_text = text.partition("/")
    what = f"an {_family_name(family)} address with its subnet's length, as {_example(family)}"
    address = as_address(address_text, path, family, what)
    length = len(address) * 8
    if slash:
        if not _NUMBER.fullmatch(length_text) or int(length_text) > length:
            raise ConfigError(path, f"must be {what}, not {shown(text)}")
        length = int(length_text)
    return NodeAddress(_usable(address, text, path), make_prefix(address, length))


def as_cidr(text: str, path: str, family: Family | None = None) -> Cidr:
    """`10.244.0.0/16`; a bare address is a host prefix; bits set past the length are refused, as in Calico."""
    if (plain := plain_cidr(text, family)) is not None:
        return plain
    try:
        network = ipaddress.ip_interface(text).network
    except ValueError:
        network = None
    found = None if network is None or "%" in text else Family.of_address(network.network_address.packed)
    if network is None or found is None or (family is not None and found is not family):
        raise ConfigError(
            path, f"must be an {_family_name(family)} prefix such as {_network(family)}, not {shown(text)}"
        )
    host, _, length = text.partition("/")
    if length and not _NUMBER.fullmatch(length):  # the netmask form is no CIDR
        raise ConfigError(
            path, f"must be an {_family_name(family)} prefix such as {_network(family)}, not {shown(text)}"
        )
    if ipaddress.ip_address(host) != network.network_address:
        raise ConfigError(path, f"has bits set past its length in {shown(text)}; the prefix is {network}")
    return Cidr(found, make_prefix(network.network_address.packed, network.prefixlen))


def plain_address(text: str, family: Family | None) -> bytes | None:
    """What nearly all texts are; None: look closer."""
    plain = plain_prefix(text) if "/" not in text else None
    return plain[2] if plain is not None and family in (None, plain[0]) else None


def plain_cidr(text: str, family: Family | None) -> Cidr | None:
    """What nearly all texts are; None: look closer."""
    plain = plain_prefix(text)
    if plain is None or (family is not None and family is not plain[0]):
        return None
    found, prefix, address = plain
    return Cidr(found, prefix) if prefix[1:].ljust(len(address), b"\0") == address else None


def plain_host(text: str) -> Cidr | None:
    """A prefix of one address, in the spelling nearly all have; None: look closer."""
    plain = plain_prefix(text)
    return Cidr(plain[0], plain[1]) if plain is not None and plain[1][0] == plain[0].max_length else None


def plain_node_address(text: str, family: Family | None) -> NodeAddress | None:
    """What nearly all texts are; None: look closer."""
    plain = plain_prefix(text)
    if plain is None or (family is not None and family is not plain[0]) or not _is_usable(plain[2]):
        return None
    return NodeAddress(plain[2], plain[1])


def plain_mac(text: str) -> bytes | None:
    """The octets of a MAC address; None where it is none."""
    return bytes.fromhex(text.replace(":", "").replace("-", "")) if _MAC.fullmatch(text) else None


def as_network(text: str, path: str) -> Cidr:
    """A prefix that packets are matched by: bits set past its length say nothing, as in Calico's rules."""
    address, slash, length = text.partition("/")
    packed = as_address(address, path, None, "an IP prefix such as 10.244.0.0/16")
    if not slash:
        length = str(len(packed) * 8)
    if not _NUMBER.fullmatch(length) or int(length) > len(packed) * 8:
        raise ConfigError(path, f"must be an IP prefix such as 10.244.0.0/16, not {shown(text)}")
    return Cidr(Family.of_address(packed), make_prefix(packed, int(length)))


def as_community(value: JsonValue, path: str) -> bytes:
    """Packed octets: `a:b` is a standard community (4), `a:b:c` a large one (12)."""
    if isinstance(value, str):
        parts = value.split(":")
        limit = 0xFFFF if len(parts) == 2 else 0xFFFFFFFF
        if len(parts) in (2, 3) and all(_NUMBER.fullmatch(part) and int(part) <= limit for part in parts):
            size = 2 if len(parts) == 2 else 4
            return b"".join(int(part).to_bytes(size, "big") for part in parts)
    raise ConfigError(
        path,
        f'must be a community "a:b" (each 0 to 65535) or "a:b:c" (each 0 to 4294967295), not {shown(value)}',
    )


def _usable(address: bytes, text: str, path: str) -> bytes:
    """Refuse addresses no router can have."""
    if not _is_usable(address):
        raise ConfigError(path, f"must be the address of one host, not {shown(text)}")
    return address


def _is_usable(address: bytes) -> bool:
    multicast = 224 <= address[0] < 240 if len(address) == 4 else address[0] == 0xFF
    return not multicast and any(address) and address != b"\xff\xff\xff\xff"


def go_duration(text: str) -> float | None:
    """Seconds of a Go duration; None where it is none."""
    if text in ("0", "+0", "-0"):
        return 0.0
    negative = text.startswith("-")
    at = 1 if text[:1] in ("+", "-") else 0
    seconds, parts = 0.0, 0
    while at < len(text):
        match = _DURATION_PART.match(text, at)
        if not match:
            return None
        seconds += float(match[1]) * _UNIT_SECONDS[match[2]]
        parts += 1
        at = match.end()
    if not parts:
        return None
    return -seconds if negative else seconds


def _quote_hint(value: JsonValue) -> str:
    return "; write it in quotes" if isinstance(value, (bool, int, float)) else ""


def _family_name(family: Family | None) -> str:
    return "IP" if family is None else "IPv4" if family is Family.IPV4_UNICAST else "IPv6"


def _example(family: Family | None) -> str:
    return "fd00::1/64" if family is Family.IPV6_UNICAST else "10.0.0.1/24"


def _network(family: Family | None) -> str:
    return "fd00::/64" if family is Family.IPV6_UNICAST else "10.244.0.0/16"
