"""What the Kubernetes API refuses of NetworkPolicies, Namespaces and Pods, though we read it stored: see `writing`.

A folder holds what people wrote, and nothing that is plain in its meaning is closed there for its form; where it is handed
over, it is to be what every other cluster takes too. Of a Pod only what we read is judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from routed.errors import ConfigError
from routed.model.fields import Fields, decimal, shown
from routed.model.head import is_label_value, is_name, is_namespace
from routed.model.resources import JsonValue, Resource

NAMED_PORT = 'must be the name of a port: at most 15 of a-z, 0-9 and single "-" inside, with a letter among them'

_PORT_NAME = re.compile(r"(?=[^a-z]*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_TYPES = 2


def is_port_name(text: str) -> bool:
    """Whether a port may be called so (RFC 6335, in small letters)."""
    return len(text) <= 15 and _PORT_NAME.fullmatch(text) is not None


def check_written(resource: Resource, spec: Fields) -> Iterator[ConfigError]:
    """Of a resource that was read."""
    if resource.kind == "Namespace" and not is_namespace(resource.name):
        yield ConfigError(
            "metadata.name",
            f'must be lower case letters, digits and "-", at most 63 of them, not {shown(resource.name)}',
        )
    elif resource.kind == "Pod":
        for name in ("containers", "initContainers"):
            for container in spec.objects(name):
                yield from _container(container)
    elif resource.kind == "KubernetesNetworkPolicy":
        yield from _policy(spec)


def _container(container: Fields) -> Iterator[ConfigError]:
    seen: set[str] = set()
    for port in container.objects("ports"):
        yield from _protocol(port)
        name = port.text("name")
        if name and not is_port_name(name):
            yield port.error("name", f"{NAMED_PORT}, not {shown(name)}")
        elif name in seen:
            yield port.error("name", f"is the name of two ports: {name}")
        seen.update((name,) if name else ())


def _policy(spec: Fields) -> Iterator[ConfigError]:
    if len(spec.texts("policyTypes")) > _TYPES:
        yield spec.error("policyTypes", "names more than the two types there are")
    yield from _labels(spec.object("podSelector"))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in spec.objects(direction):
            for peer in rule.objects(peers):
                yield from _peer(peer)
            for port in rule.objects("ports"):
                yield from _protocol(port)
                yield from _port(port)


def _peer(peer: Fields) -> Iterator[ConfigError]:
    yield from _labels(peer.object("podSelector"))
    yield from _labels(peer.object("namespaceSelector"))
    block = peer.object("ipBlock")
    if block is None:
        return
    yield from _net(block.values.get("cidr"), block.at("cidr"))
    for path, net in block.array("except"):
        yield from _net(net, path)


def _net(net: JsonValue, path: str) -> Iterator[ConfigError]:
    text = str(net)
    if "/" not in text:
        yield ConfigError(path, f"must have a length, as {text}/{128 if ':' in text else 32}")


def _port(port: Fields) -> Iterator[ConfigError]:
    value = port.values.get("port")
    if value == 0:
        yield port.error("port", "must be a port from 1 to 65535, not 0")
    elif isinstance(value, str) and decimal(value) is not None:
        yield port.error("port", f"must be a number, without quotes: {value}")
    elif isinstance(value, str) and not is_port_name(value):
        hint = "; a range is port and endPort" if ":" in value else ""
        yield port.error("port", f"{NAMED_PORT}, not {shown(value)}{hint}")


def _protocol(port: Fields) -> Iterator[ConfigError]:
    value = port.values.get("protocol")
    if port.has("protocol") and value not in _PROTOCOLS:
        yield port.error("protocol", f"must be TCP, UDP or SCTP, in capitals, not {shown(value)}")


def _labels(selector: Fields | None) -> Iterator[ConfigError]:
    if selector is None:
        return
    for name in selector.text_map("matchLabels"):
        if not _has_name(name):
            yield Fields({}, selector, "matchLabels").error(name, "must have a DNS name before the slash")
    for entry in selector.objects("matchExpressions"):
        if not _has_name(entry.text("key")):
            yield entry.error("key", f"must have a DNS name before the slash, not {shown(entry.text('key'))}")
        for path, value in entry.array("values"):
            if not is_label_value(str(value)):
                yield ConfigError(path, f"is no value a label may have: {shown(value)}")


def _has_name(label: str) -> bool:
    return "/" not in label or is_name(label.partition("/")[0])
