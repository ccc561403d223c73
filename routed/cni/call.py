"""What a CNI call asks for, in the words of the specification (0.3.0 to 1.1.0). Pure.

A call is environment variables and a JSON configuration; both come from whoever runs containers, so all of it is checked
here, and what is wrong gets the specification's error code and a sentence. Keys of the configuration nobody here knows are
the specification's or another plugin's business and pass, but for those that ask for what is not done.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TypeAlias

from routed.cni.protocol import VERSIONS, Call
from routed.desired import LEAST_MTU_OF_IPV6
from routed.errors import CniError
from routed.model.head import is_label, is_name, is_namespace
from routed.model.resources import Cidr, JsonObject, JsonValue
from routed.model.workloads import BRIDGE_NAME
from routed.net.families import Family
from routed.net.prefixes import make_prefix
from routed.values import dataclass

#: Error codes of the specification.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODE_FAILURE = 6
INVALID_CONFIGURATION = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50
LIMITED = 51
#: Ours.
NO_ADDRESS = 100
NOT_AS_IT_WAS = 101
INTERNAL = 199

#: The interface every pod has.
FIRST_INTERFACE = "eth0"

COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_INTERFACE = re.compile(r"[^\s/:\0]{1,15}")
#: Names the kernel has for something else below /proc/sys/net, or takes for nobody's.
_NO_INTERFACES = frozenset((".", "..", "all", "default"))
_SINCE = {
    command: VERSIONS.index(version) for command, version in (("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0"))
}
#: Annotations of Calico's plugin that would give a pod something else than it gets here.
_NOT_DONE = ("ipAddrsNoIpam", "floatingIPs")
_QOS = "qos.projectcalico.org/"
#: Keys of `ipam`: who knows another one means other addresses than are given here.
_IPAM_TYPES = ("routed-ipam", "calico-ipam")
_IPAM_KEYS = ("type", "assign_ipv4", "assign_ipv6", "ipv4_pools", "ipv6_pools")
#: Keys of the configuration that say something here or to runtimes, and how like one of them a misspelt one is.
_KEYS = (
    "args", "attach", "bridge", "cniVersion", "cniVersions", "container_settings", "dns", "ipMasq", "ipam", "mtu", "name",
    "prevResult", "runtimeConfig", "socket", "type",
)  # fmt: skip
_LIKENESS = 0.8
#: What a result has, where it has it.
_PARTS = (
    ("interfaces", list, "a list"), ("ips", list, "a list"), ("routes", list, "a list"), ("dns", dict, "an object"),
)  # fmt: skip
_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
_PREFIX = "cni.projectcalico.org/"
SOURCES = f"{_PREFIX}allowedSourcePrefixes"

#: Of `attach: bridge`, where the configuration names no other.
DEFAULT_BRIDGE = "routed0"

#: What is on the node's end of every pod (`dataplane.pods`).
_GATEWAY_MAC = bytes.fromhex("eeeeeeeeeeee")

Attachment: TypeAlias = "tuple[str, str]"
"""(container id, interface in the pod)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call, checked."""

    command: str
    version: str
    network: str
    """The configuration's `name`."""
    container_id: str = ""
    namespace_path: str = ""
    interface: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """CNI_ARGS."""
    configuration: JsonObject = field(default_factory=dict)
    previous: JsonObject | None = None
    """`prevResult`."""
    addresses: tuple[bytes, ...] = ()
    """Asked for by name: runtimeConfig.ips, args.cni.ips, CNI_ARGS IP, or the annotation ipAddrs."""
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    """Names or CIDRs, by the configuration or annotations."""
    families: tuple[Family, ...] = (Family.IPV4_UNICAST,)
    mac: bytes | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of args.cni.labels."""
    bridge: str = ""
    """The bridge to attach to; empty: attached by routes alone."""
    mtu: int = 0
    sources: tuple[Cidr, ...] = ()
    """Prefixes it may have sources of beside its addresses, by the annotation allowedSourcePrefixes."""
    valid_attachments: tuple[Attachment, ...] | None = None
    """Of GC; None where the configuration names none."""

    @property
    def pod(self) -> tuple[str, str]:
        """Namespace and name of the Kubernetes pod; empty where there is none."""
        return self.arguments.get("K8S_POD_NAMESPACE", ""), self.arguments.get("K8S_POD_NAME", "")

    @property
    def handle(self) -> str:
        """What its addresses are counted under."""
        return handle_of(self.network, self.container_id, self.interface)


def handle_of(network: str, container_id: str, interface: str) -> str:
    """What the addresses of an attachment are counted under: Calico's name for a pod's first interface, and for another
    one a name of its own, for each may go without the other."""
    return f"{network}.{container_id}" + ("" if interface == FIRST_INTERFACE else f".{interface}")


def version_of(call: Call) -> str:
    """The version an answer is written in: the one asked for, if we know it."""
    try:
        version = _configuration(call.configuration).get("cniVersion")
    except CniError:
        version = None
    return version if isinstance(version, str) and version in VERSIONS else "1.0.0"


def parse_request(call: Call) -> Request:
    """Raises CniError."""
    environment = call.environment
    configuration = _configuration(call.configuration)
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND: must be one of {', '.join(COMMANDS)}, not {command!r}")
    version = configuration.get("cniVersion", "0.3.0")
    if not isinstance(version, str) or version not in VERSIONS:
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: {version!r} is none of {', '.join(VERSIONS)}")
    if VERSIONS.index(version) < _SINCE.get(command, 0):
        raise CniError(INCOMPATIBLE_VERSION, f"CNI_COMMAND: there is no {command} in version {version}")
    network = configuration.get("name")
    if not isinstance(network, str) or not _NETWORK.fullmatch(network):
        raise CniError(INVALID_CONFIGURATION, f"name: must be the network's name, not {network!r}")
    if command in ("STATUS", "GC"):
        return Request(
            command, version, network, configuration=configuration, valid_attachments=_attachments(configuration)
        )
    container_id, interface = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if not _CONTAINER_ID.fullmatch(container_id):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID: must be a container's id, not {container_id!r}")
    if not _INTERFACE.fullmatch(interface) or interface in _NO_INTERFACES:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_IFNAME: must be an interface's name, not {interface!r}")
    if command in ("ADD", "CHECK") and not environment.get("CNI_NETNS"):
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS: must be the path of the container's network namespace")
    if command == "DEL":  # nothing of what the call says beside may keep a pod from going
        arguments = _arguments(environment.get("CNI_ARGS", ""), strict=False)
        return Request(command, version, network, container_id, environment.get("CNI_NETNS", ""), interface, arguments)
    previous = configuration.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        raise CniError(DECODE_FAILURE, "prevResult: must be an object")
    for name, kind, what in _PARTS:
        if previous is not None and not isinstance(previous.get(name), kind | None):
            raise CniError(DECODE_FAILURE, f"prevResult.{name}: must be {what}")
    if previous is not None:
        _refuse_members(previous)
    if command == "CHECK" and previous is None:
        raise CniError(INVALID_CONFIGURATION, "prevResult: is required to check an attachment")
    arguments = _arguments(environment.get("CNI_ARGS", ""))
    runtime = as_object(configuration, "runtimeConfig")
    # a pod's annotations may change while it lives, and none of them is what a CHECK asks about
    said = as_object(runtime, _ANNOTATIONS) if command == "ADD" else {}
    annotations = _texts(said, f"runtimeConfig.{_ANNOTATIONS}")
    for name in _NOT_DONE:
        if annotations.get(_PREFIX + name):
            raise CniError(UNSUPPORTED_FIELD, f"{_PREFIX}{name}: is not supported; remove the annotation")
    for name in annotations:
        if name.startswith(_QOS):
            raise CniError(
                UNSUPPORTED_FIELD, f"{name}: is not supported; use the plugin bandwidth, or remove the annotation"
            )
    args = as_object(as_object(configuration, "args"), "cni")
    ipam = as_object(configuration, "ipam")
    _must_be_done(configuration, ipam)
    if command == "ADD":  # a pod that is there stays what it is
        _must_be_spelt(configuration)
    attach = configuration.get("attach", "routed")
    if attach not in ("routed", "bridge"):
        raise CniError(INVALID_CONFIGURATION, f"attach: must be routed or bridge, not {attach!r}")
    bridge = configuration.get("bridge", DEFAULT_BRIDGE)
    if not isinstance(bridge, str) or not BRIDGE_NAME.fullmatch(bridge):
        text = f"bridge: must be an interface's name that begins with routed, not {bridge!r}"
        raise CniError(INVALID_CONFIGURATION, text)
    if "bridge" in configuration and attach != "bridge":
        raise CniError(INVALID_CONFIGURATION, "bridge: is for attach: bridge")
    pools = _ranges(runtime) or {
        Family.IPV4_UNICAST: _pools(ipam, annotations, "ipv4_pools", "ipv4pools"),
        Family.IPV6_UNICAST: _pools(ipam, annotations, "ipv6_pools", "ipv6pools"),
    }
    addresses = _addresses(arguments, runtime, args, annotations)
    families, labels, mtu = _families(ipam, annotations, addresses), _labels(args), _mtu(configuration)
    if command == "ADD":
        _must_be_possible(arguments, labels, mtu, families)
    return Request(
        command,
        version,
        network,
        container_id,
        environment.get("CNI_NETNS", ""),
        interface,
        arguments,
        configuration,
        previous,
        addresses,
        {family: names for family, names in pools.items() if names},
        families,
        _mac(runtime, annotations),
        labels,
        bridge if attach == "bridge" else "",
        mtu,
        _sources(annotations, attach == "bridge"),
    )


def _sources(annotations: Mapping[str, str], at_bridge: bool) -> tuple[Cidr, ...]:
    text = annotations.get(SOURCES)
    if not text:
        return ()
    if at_bridge:
        raise CniError(
            UNSUPPORTED_FIELD, f"{SOURCES}: a pod at a bridge has no sources but its own: use attach: routed"
        )
    value = _json_text(text, SOURCES)
    if not isinstance(value, list):
        raise CniError(INVALID_CONFIGURATION, f"{SOURCES}: must be a list of CIDRs")
    found = []
    for each in value:
        try:
            network = ipaddress.ip_network(str(each))
        except ValueError:
            raise CniError(INVALID_CONFIGURATION, f"{SOURCES}: {each!r} is no CIDR") from None
        packed = network.network_address.packed
        found.append(Cidr(Family.of_address(packed), make_prefix(packed, network.prefixlen)))
    return tuple(found)


def _must_be_done(configuration: JsonObject, ipam: JsonObject) -> None:
    """What other plugins do with such a configuration is not silently left out."""
    if ipam.get("type", _IPAM_TYPES[0]) not in _IPAM_TYPES:
        raise CniError(
            INVALID_CONFIGURATION, f"ipam.type: {ipam['type']!r}: addresses are given by routed; leave it out"
        )
    for name in ipam:
        if name not in _IPAM_KEYS:
            raise CniError(
                UNSUPPORTED_FIELD, f"ipam.{name}: {ipam[name]!r}: is not supported; a pool says which addresses"
            )
    if configuration.get("ipMasq"):
        raise CniError(UNSUPPORTED_FIELD, "ipMasq: true: is not supported; use natOutgoing of the IPPool")
    if as_object(configuration, "container_settings").get("allow_ip_forwarding"):
        raise CniError(UNSUPPORTED_FIELD, "container_settings.allow_ip_forwarding: true: is not supported")
    for where, dns in (
        ("dns", configuration.get("dns")),
        ("runtimeConfig.dns", as_object(configuration, "runtimeConfig").get("dns")),
    ):
        if dns is not None and not isinstance(dns, dict):
            raise CniError(INVALID_CONFIGURATION, f"{where}: must be an object")


def _must_be_spelt(configuration: JsonObject) -> None:
    """A key that is nearly one of ours would change what a pod gets without a word. What runtimes and other plugins' users
    put beside ours is theirs."""
    ours = {each.lower(): each for each in _KEYS}
    for name in configuration:
        if name not in _KEYS and (near := difflib.get_close_matches(name.lower(), ours, 1, _LIKENESS)):
            raise CniError(INVALID_CONFIGURATION, f"{name}: unknown key; did you mean `{ours[near[0]]}`?")


def _must_be_possible(
    arguments: Mapping[str, str], labels: Mapping[str, str], mtu: int, families: tuple[Family, ...]
) -> None:
    """What no endpoint can be made of will never work: it is refused before anything is made."""
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    if name and not is_name(name):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: K8S_POD_NAME: cannot be a pod's name: {name!r}")
    if namespace and not is_namespace(namespace):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: K8S_POD_NAMESPACE: cannot be a namespace's name: {namespace!r}")
    for key, value in labels.items():
        if not is_label(key, value):
            raise CniError(
                INVALID_CONFIGURATION, f"args.cni.labels: cannot be a label and its value: {key!r}, {value!r}"
            )
    if mtu and mtu < LEAST_MTU_OF_IPV6 and Family.IPV6_UNICAST in families:
        raise CniError(
            INVALID_CONFIGURATION, f"mtu: {mtu} is too little for IPv6, which takes {LEAST_MTU_OF_IPV6} (RFC 8200)"
        )


# ---- the configuration


@functools.lru_cache(16)
def _configuration(data: bytes) -> JsonObject:
    """Mostly the same for all pods; nobody changes it."""
    try:
        found: JsonValue = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CniError(DECODE_FAILURE, f"the network configuration is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CniError(DECODE_FAILURE, "the network configuration is no object")
    return found


def as_object(of: JsonObject, name: str) -> JsonObject:
    value = of.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniError(INVALID_CONFIGURATION, f"{name}: must be an object")
    return value


def _refuse_members(previous: JsonObject) -> None:
    """What lists of a `prevResult` have is in our result too, which the runtime must be able to read. Raises CniError."""
    interfaces, ips, routes = (
        each if isinstance(each := previous.get(name), list) else [] for name in ("interfaces", "ips", "routes")
    )
    for number, each in enumerate(interfaces):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise CniError(DECODE_FAILURE, f"prevResult.interfaces[{number}]: must be an object with a name")
    for number, each in enumerate(ips):
        if not isinstance(each, dict):
            raise CniError(DECODE_FAILURE, f"prevResult.ips[{number}]: must be an object")
        _refuse_no_network(f"prevResult.ips[{number}].address", each.get("address"))
        place = each.get("interface")
        if "interface" in each and type(place) is not int:
            raise CniError(DECODE_FAILURE, f"prevResult.ips[{number}].interface: must be a number")
        if isinstance(place, int) and not 0 <= place < len(interfaces):
            where = f"prevResult.ips[{number}].interface"
            raise CniError(INVALID_CONFIGURATION, f"{where}: {place} is the place of none of prevResult.interfaces")
    for number, each in enumerate(routes):
        if not isinstance(each, dict):
            raise CniError(DECODE_FAILURE, f"prevResult.routes[{number}]: must be an object")
        _refuse_no_network(f"prevResult.routes[{number}].dst", each.get("dst"))


def _refuse_no_network(where: str, value: JsonValue) -> None:
    as_address(where, value)
    if "/" not in str(value):
        raise CniError(INVALID_CONFIGURATION, f"{where}: {value!r} has no length, as 10.0.0.1/24 has")


def _texts(of: JsonObject, where: str) -> dict[str, str]:
    for name, value in of.items():
        if not isinstance(value, str):
            raise CniError(INVALID_CONFIGURATION, f"{where}.{name}: must be text")
    return {name: str(value) for name, value in of.items()}


def _arguments(text: str, *, strict: bool = True) -> dict[str, str]:
    """Not strict: what is none is passed over."""
    found: dict[str, str] = {}
    for part in text.split(";") if text else ():
        name, given, value = part.partition("=")
        if strict and (not given or not name):
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: must be NAME=VALUE;..., and {part!r} is not")
        found[name] = value
    return found


def _attachments(configuration: JsonObject) -> tuple[Attachment, ...] | None:
    value = configuration.get("cni.dev/valid-attachments")
    if value is None:
        return None
    if not isinstance(value, list):
        raise CniError(INVALID_CONFIGURATION, "cni.dev/valid-attachments: must be a list")
    found = []
    for each in value:
        container, interface = (each.get("containerID"), each.get("ifname")) if isinstance(each, dict) else (None, None)
        if not isinstance(container, str) or not isinstance(interface, str):
            raise CniError(INVALID_CONFIGURATION, "cni.dev/valid-attachments: each needs a containerID and an ifname")
        found.append((container, interface))
    return tuple(found)


def _pools(ipam: JsonObject, annotations: Mapping[str, str], name: str, annotation: str) -> tuple[str, ...]:
    where, value = f"ipam.{name}", ipam.get(name)
    if _PREFIX + annotation in annotations:
        where = _PREFIX + annotation
        value = _json_text(annotations[where], where)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise CniError(INVALID_CONFIGURATION, f"{where}: must be a list of pools' names or CIDRs")
    return tuple(map(str, value))


def _ranges(runtime: JsonObject) -> dict[Family, tuple[str, ...]]:
    """`runtimeConfig.ipRanges`, sets of ranges: each the `subnet` of a pool; a part of one cannot be asked for."""
    where, value = "runtimeConfig.ipRanges", runtime.get("ipRanges")
    if value is None:
        return {}
    if not isinstance(value, list) or not all(isinstance(each, list) for each in value):
        raise CniError(INVALID_CONFIGURATION, f"{where}: must be a list of lists of ranges")
    found: dict[Family, tuple[str, ...]] = {}
    for each in (each for ranges in value if isinstance(ranges, list) for each in ranges):
        subnet = each.get("subnet") if isinstance(each, dict) else None
        try:
            network = ipaddress.ip_network(str(subnet))
        except ValueError:
            raise CniError(INVALID_CONFIGURATION, f"{where}: subnet: {subnet!r} is no CIDR") from None
        more = sorted(set(each) - {"subnet"}) if isinstance(each, dict) else []
        if more:
            raise CniError(
                UNSUPPORTED_FIELD, f"{where}: {', '.join(more)}: is not supported; name a pool's subnet only"
            )
        family = Family.of_address(network.network_address.packed)
        found[family] = (*found.get(family, ()), str(network))
    return found


def _json_text(text: str, where: str) -> JsonValue:
    try:
        found: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        raise CniError(INVALID_CONFIGURATION, f"{where}: is not JSON") from None
    return found


def _addresses(
    arguments: Mapping[str, str], runtime: JsonObject, args: JsonObject, annotations: Mapping[str, str]
) -> tuple[bytes, ...]:
    """The first source that names any."""
    sources: list[tuple[str, JsonValue]] = [
        ("runtimeConfig.ips", runtime.get("ips")),
        ("args.cni.ips", args.get("ips")),
        ("CNI_ARGS IP", [arguments["IP"]] if arguments.get("IP") else None),
    ]
    annotation = annotations.get(_PREFIX + "ipAddrs")
    if annotation is not None:
        sources.append((_PREFIX + "ipAddrs", _json_text(annotation, _PREFIX + "ipAddrs")))
    for where, value in sources:
        if value is None or value == []:
            continue
        if not isinstance(value, list):
            raise CniError(INVALID_CONFIGURATION, f"{where}: must be a list of addresses")
        found = tuple(as_address(where, each) for each in value)
        families = [Family.of_address(each) for each in found]
        if len(set(families)) != len(families):
            raise CniError(INVALID_CONFIGURATION, f"{where}: at most one address of a family")
        return found
    return ()


def as_address(where: str, value: JsonValue) -> bytes:
    try:
        if "%" in str(value):
            raise ValueError("it is of one link")
        return ipaddress.ip_interface(str(value)).ip.packed
    except ValueError:
        raise CniError(INVALID_CONFIGURATION, f"{where}: {value!r} is no address") from None


def _families(ipam: JsonObject, annotations: Mapping[str, str], addresses: Sequence[bytes]) -> tuple[Family, ...]:
    if addresses:
        return tuple(Family.of_address(each) for each in addresses)
    annotation = annotations.get(_PREFIX + "ipFamilies")
    if annotation is not None:
        asked = _json_text(annotation, _PREFIX + "ipFamilies")
        known: dict[JsonValue, Family] = {"IPv4": Family.IPV4_UNICAST, "IPv6": Family.IPV6_UNICAST}
        if (
            not isinstance(asked, list)
            or not asked
            or not all(isinstance(each, str) and each in known for each in asked)
        ):
            raise CniError(INVALID_CONFIGURATION, f'{_PREFIX}ipFamilies: must be a list of "IPv4" and "IPv6"')
        if len(set(map(str, asked))) != len(asked):
            raise CniError(INVALID_CONFIGURATION, f"{_PREFIX}ipFamilies: names a family twice")
        return tuple(known[each] for each in asked)
    wanted = []
    for family, name, default in (
        (Family.IPV4_UNICAST, "assign_ipv4", "true"),
        (Family.IPV6_UNICAST, "assign_ipv6", "false"),
    ):
        value = ipam.get(name, default)
        if value not in ("true", "false", True, False):
            raise CniError(INVALID_CONFIGURATION, f"ipam.{name}: must be true or false, not {value!r}")
        if value in ("true", True):
            wanted.append(family)
    if not wanted:
        raise CniError(INVALID_CONFIGURATION, "ipam: at least one of assign_ipv4 and assign_ipv6 must be true")
    return tuple(wanted)


def _mac(runtime: JsonObject, annotations: Mapping[str, str]) -> bytes | None:
    value = runtime.get("mac") or annotations.get(_PREFIX + "hwAddr")
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", value):
        raise CniError(INVALID_CONFIGURATION, f"mac: {value!r} is no MAC address")
    mac = bytes.fromhex(value.replace(":", ""))
    if not any(mac):
        raise CniError(INVALID_CONFIGURATION, f"mac: {value} is nobody's address")
    if mac == _GATEWAY_MAC:
        raise CniError(INVALID_CONFIGURATION, f"mac: {value} is that of the pod's gateway")
    if mac[0] & 1:
        raise CniError(INVALID_CONFIGURATION, f"mac: {value} is a group's address, not an interface's")
    return mac


def _labels(args: JsonObject) -> dict[str, str]:
    value = args.get("labels")
    if value is None:
        return {}
    if isinstance(value, dict):
        return _texts(value, "args.cni.labels")
    found: dict[str, str] = {}
    for each in value if isinstance(value, list) else (None,):
        key, text = (each.get("key"), each.get("value")) if isinstance(each, dict) else (None, None)
        if not isinstance(key, str) or not isinstance(text, str):
            raise CniError(INVALID_CONFIGURATION, "args.cni.labels: must be a list of objects with a key and a value")
        found[key] = text
    return found


def _mtu(configuration: JsonObject) -> int:
    value = configuration.get("mtu", 0)
    if isinstance(value, bool) or not isinstance(value, int) or (value and not 576 <= value <= 65535):
        raise CniError(INVALID_CONFIGURATION, f"mtu: must be 0 (the uplink's) or from 576 to 65535, not {value!r}")
    return value
