"""Network policies as they are stored: found right in one go, their manifests read when somebody asks.

A node reads all policies of the cluster before it enforces any, so how long one takes is how long pods wait at a start.
Calico's own (`plain_policy`), which its controllers also make of Kubernetes', and Kubernetes' as people apply them
(`plain_kubernetes_policy`) are judged by a compiled decoder, four times and twice as fast as by the reader.

Invariants: what is taken here, the readers (`policies`, `kubernetes`) take too, as the same resource; of what is not,
nothing is said, so that the reader looks at it and says what is wrong and where. Global policies are few, and the reader's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, cast

import msgspec

from routed.errors import ConfigError
from routed.model.head import METADATA_ANNOTATION, are_labels, is_label_name, is_label_value, is_name, is_namespace
from routed.model.kubernetes import (
    IPBlock,
    KubernetesNetworkPolicy,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    selector_of_terms,
)
from routed.model.plain import NotPlain, PlainMetadata, needed
from routed.model.policies import (
    DEFAULT_TIER,
    PROTOCOLS,
    WITH_PORTS,
    EntityRule,
    NetworkPolicy,
    PolicyType,
    Port,
    PortRange,
    Rule,
    RuleAction,
    as_port,
    default_types,
)
from routed.model.resources import Cidr, JsonObject, ResourceKey, Unread
from routed.model.selector import All, Equal, Has, In, Not, NotIn, Selector, parse_selector
from routed.net.prefixes import is_part, plain_prefix

_Word = Annotated[str, msgspec.Meta(min_length=1)]
_PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Type = Literal["Ingress", "Egress"]


class _Metadata(PlainMetadata, gc=False):
    namespace: str | None = None
    generateName: str | None = None


class _Entity(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    nets: list[_Word] | None = None
    notNets: list[_Word] | None = None
    selector: str | None = None
    notSelector: str | None = None
    namespaceSelector: str | None = None
    ports: list[_PortNumber | str] | None = None
    notPorts: list[_PortNumber | str] | None = None


class _RuleMetadata(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    annotations: dict[str, str] | None = None


class _Rule(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What nearly all ask; ICMP, HTTP, services and service accounts are for the reader."""

    action: Literal["Allow", "Deny", "Log", "Pass"]
    ipVersion: Literal[4, 6] | None = None
    protocol: str | None = None
    notProtocol: str | None = None
    source: _Entity | None = None
    destination: _Entity | None = None
    metadata: _RuleMetadata | None = None


class _Spec(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    tier: str | None = None
    order: float | None = None
    selector: str | None = None
    serviceAccountSelector: str | None = None
    types: list[_Type] | None = None
    ingress: list[_Rule] | None = None
    egress: list[_Rule] | None = None


class _Policy(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    apiVersion: Literal["projectcalico.org/v3"]
    kind: Literal["NetworkPolicy"]
    metadata: _Metadata
    spec: _Spec


class _Requirement(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: _Word
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[_Word] | None = None


class _Labels(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    matchLabels: dict[str, str] | None = None
    matchExpressions: list[_Requirement] | None = None


class _Block(msgspec.Struct, forbid_unknown_fields=True, rename={"excepted": "except"}, gc=False):
    cidr: _Word
    excepted: list[_Word] | None = None


class _Peer(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    podSelector: _Labels | None = None
    namespaceSelector: _Labels | None = None
    ipBlock: _Block | None = None


class _PolicyPort(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    port: _PortNumber | str | None = None
    endPort: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    protocol: str | None = None


class _Ingress(msgspec.Struct, forbid_unknown_fields=True, rename={"peers": "from"}, gc=False):
    peers: list[_Peer] | None = None
    ports: list[_PolicyPort] | None = None


class _Egress(msgspec.Struct, forbid_unknown_fields=True, rename={"peers": "to"}, gc=False):
    peers: list[_Peer] | None = None
    ports: list[_PolicyPort] | None = None


class _KubernetesSpec(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    podSelector: _Labels | None = None
    policyTypes: list[_Type] | None = None
    ingress: list[_Ingress] | None = None
    egress: list[_Egress] | None = None


class _KubernetesPolicy(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: _Metadata
    spec: _KubernetesSpec


_POLICY = msgspec.json.Decoder(_Policy)
_KUBERNETES = msgspec.json.Decoder(_KubernetesPolicy)
_ACTIONS = {str(action): action for action in RuleAction}
_TYPES = {str(one): one for one in PolicyType}
_ANYBODY = EntityRule()


class UnreadPolicy(Unread, NetworkPolicy):
    """See the module's docstring."""

    __slots__ = ()


class UnreadKubernetesPolicy(Unread, KubernetesNetworkPolicy):
    """See the module's docstring."""

    __slots__ = ()


def plain_policy(octets: bytes, key: ResourceKey | None = None) -> UnreadPolicy | None:
    """The policy that is stored so; `key` is what its path says, where there is one. None: the reader must look."""
    try:
        read = _POLICY.decode(octets)
        _check(read.metadata, octets, key)
        spec = read.spec
        ingress = tuple([_rule(rule) for rule in spec.ingress or ()])
        egress = tuple([_rule(rule) for rule in spec.egress or ()])
        return UnreadPolicy(
            name=read.metadata.name,
            namespace=_namespace(read.metadata),
            labels=read.metadata.labels or {},
            manifest=cast("JsonObject", octets),
            tier=spec.tier or DEFAULT_TIER,
            order=_order(spec.order),
            selector=_selector(spec.selector),
            service_account_selector=_selector(spec.serviceAccountSelector),
            types=_types(spec.types) or default_types(ingress, egress),
            ingress=ingress,
            egress=egress,
        )
    except (msgspec.DecodeError, RecursionError, ConfigError, NotPlain):
        return None


def plain_kubernetes_policy(octets: bytes) -> UnreadKubernetesPolicy | None:
    """Kubernetes' policy that is written so. None: the reader must look."""
    try:
        read = _KUBERNETES.decode(octets)
        _check(read.metadata, octets, None)
        spec = read.spec
        ingress = tuple([_kubernetes_rule(rule) for rule in spec.ingress or ()])
        egress = tuple([_kubernetes_rule(rule) for rule in spec.egress or ()])
        types = _types(spec.policyTypes) or frozenset(PolicyType if egress else (PolicyType.INGRESS,))
        return UnreadKubernetesPolicy(
            name=read.metadata.name,
            namespace=_namespace(read.metadata),
            labels=read.metadata.labels or {},
            manifest=cast("JsonObject", octets),
            pod_selector=All() if spec.podSelector is None else _label_selector(spec.podSelector),
            types=types,
            ingress=ingress if PolicyType.INGRESS in types else (),
            egress=egress if PolicyType.EGRESS in types else (),
        )
    except (msgspec.DecodeError, RecursionError, ConfigError, NotPlain):
        return None


def _check(metadata: _Metadata, octets: bytes, key: ResourceKey | None) -> None:
    name, namespace = metadata.name, _namespace(metadata)
    if METADATA_ANNOTATION in (metadata.annotations or ()):  # it has another name
        raise NotPlain
    if key is not None and (name, namespace) != (key.name, key.namespace):
        raise NotPlain
    if not (is_name(name) and is_namespace(namespace) and are_labels(metadata.labels or {})) or b"\n" in octets:
        raise NotPlain


def _namespace(metadata: _Metadata) -> str:
    return metadata.namespace or "default"


def _order(order: float | None) -> float | None:
    if order is not None and not abs(order) < 1e300:
        raise NotPlain
    return order


def _types(types: Iterable[str] | None) -> frozenset[PolicyType]:
    return frozenset([_TYPES[one] for one in types or ()])


def _selector(text: str | None) -> Selector | None:
    if not text:
        return None
    try:
        return parse_selector(text)
    except ValueError:
        raise NotPlain from None


def _nets(texts: Iterable[str] | None, version: int | None) -> tuple[Cidr, ...]:
    found = tuple([Cidr(*needed(plain_prefix(text))[:2]) for text in texts or ()])
    if version is not None and any((net.family.address_length == 4) != (version == 4) for net in found):
        raise NotPlain
    return found


def _protocol(word: str | None) -> int | None:
    return None if not word else needed(PROTOCOLS.get(word))


def _ports(ports: Iterable[int | str] | None) -> tuple[Port, ...]:
    return tuple([PortRange(port, port) if isinstance(port, int) else as_port(port, "") for port in ports or ()])


def _rule(rule: _Rule) -> Rule:
    version, protocol, metadata = rule.ipVersion, _protocol(rule.protocol), rule.metadata
    for wanted, name in ((4, "ICMP"), (6, "ICMPv6")):
        if protocol == PROTOCOLS[name] and version not in (None, wanted):
            raise NotPlain
    return Rule(
        action=_ACTIONS[rule.action],
        ip_version=version,
        protocol=protocol,
        not_protocol=_protocol(rule.notProtocol),
        source=_ANYBODY if rule.source is None else _entity(rule.source, version, protocol),
        destination=_ANYBODY if rule.destination is None else _entity(rule.destination, version, protocol),
        annotations={} if metadata is None else metadata.annotations or {},
    )


def _entity(entity: _Entity, version: int | None, protocol: int | None) -> EntityRule:
    ports, not_ports = _ports(entity.ports), _ports(entity.notPorts)
    if (ports or not_ports) and protocol not in WITH_PORTS:
        raise NotPlain
    return EntityRule(
        nets=_nets(entity.nets, version),
        not_nets=_nets(entity.notNets, version),
        selector=_selector(entity.selector),
        not_selector=_selector(entity.notSelector),
        namespace_selector=_selector(entity.namespaceSelector),
        ports=ports,
        not_ports=not_ports,
    )


# ---- Kubernetes' words


def _label_selector(labels: _Labels) -> Selector:
    wanted = labels.matchLabels or {}
    if not are_labels(wanted):
        raise NotPlain
    terms: list[Selector] = [Equal(label, value) for label, value in wanted.items()]
    for each in labels.matchExpressions or ():
        values = each.values or ()
        if not is_label_name(each.key) or not all(map(is_label_value, values)):
            raise NotPlain
        if bool(values) is not (each.operator in ("In", "NotIn")):
            raise NotPlain
        match each.operator:
            case "In":
                terms.append(In(each.key, frozenset(values)))
            case "NotIn":
                terms.append(NotIn(each.key, frozenset(values)))
            case "Exists":
                terms.append(Has(each.key))
            case "DoesNotExist":
                terms.append(Not(Has(each.key)))
    return selector_of_terms(terms)


def _kubernetes_rule(rule: _Ingress | _Egress) -> PolicyRule:
    return PolicyRule(
        tuple([_peer(peer) for peer in rule.peers or ()]), tuple([_policy_port(port) for port in rule.ports or ()])
    )


def _peer(peer: _Peer) -> PolicyPeer:
    pods, namespaces, block = peer.podSelector, peer.namespaceSelector, peer.ipBlock
    if (block is None) is (pods is None and namespaces is None):
        raise NotPlain
    if block is not None:
        (cidr,), excepted = _nets((block.cidr,), None), _nets(block.excepted, None)
        if not all(one.family is cidr.family and is_part(one.prefix, cidr.prefix) for one in excepted):
            raise NotPlain
        return PolicyPeer(ip_block=IPBlock(cidr, excepted))
    return PolicyPeer(
        None if pods is None else _label_selector(pods), None if namespaces is None else _label_selector(namespaces)
    )


def _policy_port(port: _PolicyPort) -> PolicyPort:
    protocol, value, end = _protocol(port.protocol or "TCP"), port.port, port.endPort
    if end is not None:
        if not isinstance(value, int) or end < value:
            raise NotPlain
        return PolicyPort(needed(protocol), PortRange(value, end))
    if isinstance(value, int):
        return PolicyPort(needed(protocol), PortRange(value, value))
    return PolicyPort(needed(protocol), None if value is None else as_port(value, ""))
