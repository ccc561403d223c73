"""What Calico's API refuses of policies, though whoever reads them stored takes it: see `writing`.

Invariants: what is asked here was read without an error before; only staged policies were not, of which nothing is
read that is stored, so they are read here as the policies they would become.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from routed.errors import ConfigError
from routed.model.fields import Fields, as_cidr, shown
from routed.model.head import API_VERSION, is_label_name, is_name
from routed.model.policies import DEFAULT_TIER, PROTOCOLS, NamedPort, as_port, as_protocol
from routed.model.resources import JsonObject, Resource
from routed.model.schema import parse_manifest
from routed.model.selector import Global, parse_selector
from routed.model.writing_kubernetes import NAMED_PORT, check_written, is_port_name

POLICIES = ("GlobalNetworkPolicy", "NetworkPolicy")
STAGED: Mapping[str, tuple[str, str]] = {
    "StagedGlobalNetworkPolicy": (API_VERSION, "GlobalNetworkPolicy"),
    "StagedNetworkPolicy": (API_VERSION, "NetworkPolicy"),
    "StagedKubernetesNetworkPolicy": ("networking.k8s.io/v1", "NetworkPolicy"),
}
"""What each would become."""

_NAME = re.compile(r"([a-z0-9](?:[-a-z0-9]*[a-z0-9])?\.)?[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_MADE = ("knp.default.", "ossg.", "kcnp.", "kanp.", "kbanp.")
"""Of names that controllers make, which hold dots that say nothing of a tier."""
_TCP = PROTOCOLS["TCP"]
_EVERYTHING = ("0.0.0.0/0", "::/0")
_ANNOTATIONS = 256 * 1024
"""Characters of all annotations of a resource."""


def check_policy(name: str, kind: str, spec: Fields) -> Iterator[ConfigError]:
    """Of a NetworkPolicy or GlobalNetworkPolicy that was read, or would be stored as one."""
    yield from _name(name, spec.text("tier") or DEFAULT_TIER)
    of_cluster = kind == "GlobalNetworkPolicy"
    types = spec.texts("types")
    if len(set(types)) < len(types):
        yield spec.error("types", "names a type twice")
    for field in ("selector", "serviceAccountSelector", *(("namespaceSelector",) if of_cluster else ())):
        yield from no_global(spec, field)
    for field in ("doNotTrack", "preDNAT"):
        if spec.boolean(field) and not spec.boolean("applyOnForward"):
            yield spec.error(field, "takes applyOnForward: true")
    yield from check_rules(spec)


def _name(name: str, tier: str) -> Iterator[ConfigError]:
    if name.startswith(_MADE):
        return
    found = _NAME.fullmatch(name)
    if found is None:
        yield ConfigError(
            "metadata.name", f'must be a-z, 0-9 and "-", with nothing but its tier before a dot, not {shown(name)}'
        )
    elif found[1] and found[1] != f"{tier}.":
        yield ConfigError(
            "metadata.name",
            f"has the tier {found[1][:-1]} before the dot, and spec.tier says {tier}; make them the same, or leave "
            "the tier out of the name",
        )


def staged(resource: Resource, spec: Fields) -> Iterator[ConfigError]:
    """Of a policy on trial, as the one it would become."""
    version, kind = STAGED[resource.kind]
    rest: JsonObject = {name: value for name, value in spec.values.items() if name != "stagedAction"}
    if spec.text("stagedAction") == "Delete":
        for name, value in rest.items():
            if name != "tier" and value:
                yield spec.error(name, "must be left out where stagedAction is Delete")
        return
    try:
        becomes = parse_manifest({**resource.manifest, "apiVersion": version, "kind": kind, "spec": rest})
    except ConfigError as error:
        yield error
        return
    if becomes.kind in POLICIES:
        yield from check_policy(becomes.name, becomes.kind, Fields(rest, "", "spec"))
    else:
        yield from check_written(becomes, Fields(rest, "", "spec"))


def check_rules(spec: Fields) -> Iterator[ConfigError]:
    """Of the rules of a policy or a Profile."""
    for direction in ("ingress", "egress"):
        for rule in spec.objects(direction):
            yield from _rule(rule, egress=direction == "egress")


def _rule(rule: Fields, *, egress: bool) -> Iterator[ConfigError]:
    versions: set[bool] = set()
    for end in ("source", "destination"):
        entity = rule.object(end)
        if entity is None:
            continue
        yield from no_global(entity, "selector")
        among = entity.text("namespaceSelector")
        if "global(" in among and not isinstance(parse_selector(among), Global):
            yield entity.error("namespaceSelector", "must be global() alone: nothing is global and in a namespace")
        for field in ("nets", "notNets"):
            for path, net in entity.array(field):
                versions.add(":" in str(net))
                yield from _net(str(net), path, negated=field == "notNets")
        for field in ("ports", "notPorts"):
            for path, port in entity.array(field):
                found = as_port(port, path)
                if isinstance(found, NamedPort):
                    if not is_port_name(found.name):
                        yield ConfigError(path, f"{NAMED_PORT}, not {shown(found.name)}")
                elif not found.low:
                    yield ConfigError(path, f"a port is 1 to 65535, not {shown(port)}")
        services = entity.object("services")
        for field in ("name", "namespace"):
            if services is not None and services.has(field) and not is_name(services.text(field)):
                yield services.error(field, f"must be a name of Kubernetes', not {shown(services.text(field))}")
    if len(versions) > 1:
        yield ConfigError(rule.path, "has networks of IPv4 and of IPv6; make two rules of it")
    if rule.has("notProtocol"):
        without, version = as_protocol(rule.values["notProtocol"], ""), rule.values.get("ipVersion")
        for wanted, name in ((4, "ICMP"), (6, "ICMPv6")):
            if without == PROTOCOLS[name] and version not in (None, wanted):
                yield rule.error("notProtocol", f"must not be {name} where ipVersion is {version}")
    metadata = rule.object("metadata")
    if metadata is not None:
        yield from check_annotations(metadata)
    yield from _http(rule, egress=egress)


def _net(text: str, path: str, *, negated: bool) -> Iterator[ConfigError]:
    if negated and text in _EVERYTHING:
        yield ConfigError(path, f"{text} is everything, so that nothing would match")
    if "/" not in text:
        yield ConfigError(path, f"must have a length, as {text}/{128 if ':' in text else 32}")
        return
    try:
        as_cidr(text, path)
    except ConfigError as error:
        yield error


def _http(rule: Fields, *, egress: bool) -> Iterator[ConfigError]:
    http = rule.object("http")
    if http is None:
        return
    if egress:
        yield rule.error("http", "is for ingress rules only")
    if rule.has("protocol") and as_protocol(rule.values["protocol"], "") != _TCP:
        yield rule.error("http", "takes protocol TCP, or none")
    methods = http.texts("methods")
    if len(set(methods)) < len(methods):
        yield http.error("methods", "names a method twice")
    for each in http.objects("paths"):
        for field in ("exact", "prefix"):
            text = each.text(field)
            if text and (text[0] != "/" or any(one in text for one in "? #")):
                yield each.error(field, f'must begin with "/" and be without "?", "#" and spaces, not {shown(text)}')


def no_global(
    fields: Fields, field: str, why: str = "may only be used in a namespaceSelector of a rule's end"
) -> Iterator[ConfigError]:
    """Of a selector among which nothing can be global."""
    if "global(" in fields.text(field):
        yield fields.error(field, f"global() {why}")


def check_annotations(metadata: Fields) -> Iterator[ConfigError]:
    """Of what is noted beside a resource or a rule."""
    annotations = metadata.text_map("annotations")
    for name in annotations:
        folded = name.lower()
        if not is_label_name(folded) or ("/" in folded and not is_name(folded.partition("/")[0])):
            yield Fields({}, metadata, "annotations").error(name, "is not a name an annotation may have")
    size = sum(len(name) + len(value) for name, value in annotations.items())
    if size > _ANNOTATIONS:
        yield metadata.error("annotations", f"are {size} characters together, of at most {_ANNOTATIONS}")
