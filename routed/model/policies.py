"""Calico's policies as values: tiers, policies, the rules in them, profiles, sets of networks.

Invariants: everything is frozen and complete: defaults that Calico's API server would fill in (types, tier, order) are
filled in here, since files and etcd hold raw objects; a rule that Calico's own validation refuses is refused. Protocols
are numbers. A rule's unknown members are never left out: a condition less matches more. Which policy applies to what,
and in which order, is `policy/`'s business; staged policies are recognised and enforce nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar, TypeAlias

from routed.errors import ConfigError
from routed.model.fields import Fields, as_choice, as_network, as_text, decimal, shown
from routed.model.head import API_VERSION, Head, Kind, kind_shape
from routed.model.resources import Cidr, JsonValue, Resource
from routed.model.selector import Selector
from routed.net.families import Family
from routed.values import dataclass

DEFAULT_TIER = "default"
DEFAULT_TIER_ORDER = 1_000_000.0


class RuleAction(enum.StrEnum):
    ALLOW = "Allow"
    DENY = "Deny"
    LOG = "Log"
    PASS = "Pass"


class TierAction(enum.StrEnum):
    """What becomes of a packet that policies of a tier apply to and none decides."""

    DENY = "Deny"
    PASS = "Pass"


class PolicyType(enum.StrEnum):
    INGRESS = "Ingress"
    EGRESS = "Egress"


class StagedAction(enum.StrEnum):
    SET = "Set"
    DELETE = "Delete"
    LEARN = "Learn"
    IGNORE = "Ignore"


PROTOCOLS: Mapping[str, int] = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
"""Names of protocols and their numbers (IANA)."""
WITH_PORTS = (6, 17, 132)


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports from `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True, order=True)
class NamedPort:
    """A port by the name that the endpoint on that side gives it."""

    name: str

    def __str__(self) -> str:
        return self.name


Port: TypeAlias = PortRange | NamedPort


@dataclass(frozen=True, slots=True)
class IcmpMatch:
    """An ICMP type, and a code of it; None: any."""

    type: int | None = None
    code: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceMatch:
    """The endpoints of a Kubernetes Service, with its ports."""

    name: str
    namespace: str = ""
    """Empty: the policy's."""


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    """Endpoints that run under one of these service accounts; both conditions must hold."""

    names: tuple[str, ...] = ()
    """Empty: any."""
    selector: Selector | None = None


@dataclass(frozen=True, slots=True)
class EntityRule:
    """One side of a rule; all conditions present must hold."""

    nets: tuple[Cidr, ...] = ()
    not_nets: tuple[Cidr, ...] = ()
    selector: Selector | None = None
    not_selector: Selector | None = None
    namespace_selector: Selector | None = None
    """`Global()` is what belongs to no namespace, `All()` what belongs to any."""
    ports: tuple[Port, ...] = ()
    not_ports: tuple[Port, ...] = ()
    service: ServiceMatch | None = None
    service_accounts: ServiceAccountMatch | None = None


@dataclass(frozen=True, slots=True)
class HttpMatch:
    """Conditions on requests; no packet filter can judge them."""

    methods: tuple[str, ...] = ()
    exact_paths: tuple[str, ...] = ()
    prefix_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; all conditions present must hold."""

    action: RuleAction
    ip_version: int | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: IcmpMatch | None = None
    not_icmp: IcmpMatch | None = None
    source: EntityRule = EntityRule()
    destination: EntityRule = EntityRule()
    http: HttpMatch | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier(Resource):
    kind: ClassVar[str] = "Tier"

    order: float | None = None
    """None comes last."""
    default_action: TierAction = TierAction.DENY


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Resource):
    """What NetworkPolicy and GlobalNetworkPolicy have in common."""

    tier: str = DEFAULT_TIER
    order: float | None = None
    """None comes last."""
    selector: Selector | None = None
    """None: every endpoint (of the namespace)."""
    service_account_selector: Selector | None = None
    types: frozenset[PolicyType] = frozenset((PolicyType.INGRESS,))
    """The directions it applies to, with Calico's default filled in."""
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy(Policy):
    kind: ClassVar[str] = "NetworkPolicy"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalNetworkPolicy(Policy):
    kind: ClassVar[str] = "GlobalNetworkPolicy"

    namespace_selector: Selector | None = None
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPolicy(Resource):
    """A policy on trial: recognised, so that an export is whole, and without any effect."""

    staged_action: StagedAction = StagedAction.SET


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedNetworkPolicy(StagedPolicy):
    kind: ClassVar[str] = "StagedNetworkPolicy"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedGlobalNetworkPolicy(StagedPolicy):
    kind: ClassVar[str] = "StagedGlobalNetworkPolicy"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedKubernetesNetworkPolicy(StagedPolicy):
    kind: ClassVar[str] = "StagedKubernetesNetworkPolicy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Resource):
    """Rules for endpoints that no policy applies to, and labels that its endpoints inherit."""

    kind: ClassVar[str] = "Profile"

    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    labels_to_apply: Mapping[str, str] = field(default_factory=dict, hash=False)


DEFAULT_ALLOW = Profile(
    name="projectcalico-default-allow",
    ingress=(Rule(RuleAction.ALLOW),),
    egress=(Rule(RuleAction.ALLOW),),
    manifest={
        "apiVersion": API_VERSION,
        "kind": "Profile",
        "metadata": {"name": "projectcalico-default-allow"},
        "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]},
    },
)
"""A profile that exists in every cluster and is stored in none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSet(Resource):
    """Networks that selectors of its namespace can select by its labels."""

    kind: ClassVar[str] = "NetworkSet"

    nets: tuple[Cidr, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalNetworkSet(Resource):
    kind: ClassVar[str] = "GlobalNetworkSet"

    nets: tuple[Cidr, ...] = ()


# --- readers -------------------------------------------------------------------------------------------------------


def as_protocol(value: JsonValue, path: str) -> int:
    """The number of a protocol: TCP, "TCP", 6. Names are folded as Calico folds them."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255:
        return value
    if isinstance(value, str):
        for name, number in PROTOCOLS.items():
            if value.lower() == name.lower():
                return number
        read = decimal(value)
        if read is not None and 1 <= read <= 255:
            return read
    raise ConfigError(
        path, f"must be a protocol ({', '.join(PROTOCOLS)}, or a number from 1 to 255), not {shown(value)}"
    )


def as_port(value: JsonValue, path: str) -> Port:
    """80, "80", "8000:9000", or the name of a port."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
        return PortRange(value, value)
    if isinstance(value, str) and value:
        low, colon, high = value.partition(":")
        first, last = decimal(low), decimal(high if colon else low)
        if first is not None and last is not None:
            if first <= last <= 65535:
                return PortRange(first, last)
            if last < first <= 65535:
                raise ConfigError(path, f"must go from the lower port to the higher, not {shown(value)}")
        elif (
            not (colon or value.isdigit())
            and len(value) <= 128
            and all(one.isascii() and (one.isalnum() or one in "-_.") for one in value)
        ):
            return NamedPort(value)
    raise ConfigError(path, f'must be a port: 0 to 65535, "8000:9000", or a name, not {shown(value)}')


def read_rules(spec: Fields, name: str, *, namespaced: bool, profile: bool = False) -> tuple[Rule, ...]:
    """The rules of one direction."""
    return tuple(_read_rule(Fields(value, path), name, namespaced, profile) for path, value in spec.array(name))


def _read_rule(rule: Fields, direction: str, namespaced: bool, profile: bool) -> Rule:
    action = rule.choice("action", RuleAction)
    if action is None:
        raise rule.error("action", "is required: one of Allow, Deny, Log or Pass")
    if action is RuleAction.PASS and profile:
        raise rule.error("action", "must not be Pass in a profile, which no tier follows")
    version = rule.integer("ipVersion", 4, 6)
    if version == 5:
        raise rule.error("ipVersion", "must be 4 or 6, not 5")
    protocol, not_protocol = _protocol(rule, "protocol"), _protocol(rule, "notProtocol")
    icmp, not_icmp = _icmp(rule, "icmp"), _icmp(rule, "notICMP")
    if (icmp or not_icmp) and protocol not in (PROTOCOLS["ICMP"], PROTOCOLS["ICMPv6"]):
        raise rule.error("icmp" if icmp else "notICMP", "may only be used with protocol ICMP or ICMPv6")
    for wanted, name in ((4, "ICMP"), (6, "ICMPv6")):
        if protocol == PROTOCOLS[name] and version not in (None, wanted):
            raise rule.error("protocol", f"must not be {name} where ipVersion is {version}")
    source = _entity(rule, "source", version, protocol, namespaced)
    destination = _entity(rule, "destination", version, protocol, namespaced)
    if source.service and direction == "egress":
        raise rule.error("source.services", "may only be used in ingress rules")
    if destination.service:
        if direction == "ingress":
            raise rule.error("destination.services", "may only be used in egress rules")
        if destination.ports or destination.not_ports:
            raise rule.error("destination.ports", "must be left out where services is set: the service has the ports")
    http = _http(rule)
    if http is not None and action is not RuleAction.ALLOW:
        raise rule.error("http", "may only be used with action Allow")
    metadata = rule.object("metadata")
    return Rule(
        action=action,
        ip_version=version,
        protocol=protocol,
        not_protocol=not_protocol,
        icmp=icmp,
        not_icmp=not_icmp,
        source=source,
        destination=destination,
        http=http,
        annotations={} if metadata is None else metadata.text_map("annotations"),
    )


def _protocol(rule: Fields, name: str) -> int | None:
    return as_protocol(rule.values[name], rule.at(name)) if rule.has(name) else None


def _icmp(rule: Fields, name: str) -> IcmpMatch | None:
    match = rule.object(name)
    if match is None:
        return None
    kind, code = match.integer("type", 0, 254), match.integer("code", 0, 255)
    if code is not None and kind is None:
        raise match.error("code", "may only be set where type is")
    return IcmpMatch(kind, code)


def _entity(rule: Fields, side: str, version: int | None, protocol: int | None, namespaced: bool) -> EntityRule:
    entity = rule.object(side)
    if entity is None:
        return EntityRule()
    ports = tuple(as_port(value, path) for path, value in entity.array("ports"))
    not_ports = tuple(as_port(value, path) for path, value in entity.array("notPorts"))
    if (ports or not_ports) and protocol not in WITH_PORTS:
        raise entity.error("ports" if ports else "notPorts", "may only be used with protocol TCP, UDP or SCTP")
    service = _service(entity, namespaced)
    if service is not None:
        for name in ("nets", "notNets", "selector", "notSelector", "namespaceSelector", "serviceAccounts"):
            if entity.values.get(name) not in (None, "", []):
                raise entity.error(name, "must be left out where services is set")
    return EntityRule(
        nets=_nets(entity, "nets", version),
        not_nets=_nets(entity, "notNets", version),
        selector=entity.selector("selector"),
        not_selector=entity.selector("notSelector"),
        namespace_selector=entity.selector("namespaceSelector"),
        ports=ports,
        not_ports=not_ports,
        service=service,
        service_accounts=_service_accounts(entity),
    )


def _nets(fields: Fields, name: str, version: int | None = None) -> tuple[Cidr, ...]:
    found: list[Cidr] = []
    for path, value in fields.array(name):
        net = as_network(as_text(value, path), path)
        if version is not None and (net.family is Family.IPV4_UNICAST) != (version == 4):
            raise ConfigError(path, f"must be of IP version {version}, as ipVersion says, not {net}")
        found.append(net)
    return tuple(found)


def _service(entity: Fields, namespaced: bool) -> ServiceMatch | None:
    service = entity.object("services")
    if service is None:
        return None
    name, namespace = service.required_text("name"), service.text("namespace")
    if not namespace and not namespaced:
        raise service.error("namespace", "is required: a global policy has no namespace of its own")
    return ServiceMatch(name, namespace)


def _service_accounts(entity: Fields) -> ServiceAccountMatch | None:
    accounts = entity.object("serviceAccounts")
    if accounts is None:
        return None
    return ServiceAccountMatch(accounts.texts("names"), accounts.selector("selector"))


def _http(rule: Fields) -> HttpMatch | None:
    http = rule.object("http")
    if http is None:
        return None
    exact: list[str] = []
    prefixes: list[str] = []
    for path in http.objects("paths"):
        if path.has("exact") == path.has("prefix"):
            raise ConfigError(path.path, "must be exactly exact or prefix")
        (exact if path.has("exact") else prefixes).append(path.text("exact") or path.text("prefix"))
    return HttpMatch(http.texts("methods"), tuple(exact), tuple(prefixes))


def read_types(spec: Fields, name: str, ingress: tuple[Rule, ...], egress: tuple[Rule, ...]) -> frozenset[PolicyType]:
    """The directions that are said, or Calico's default."""
    types = frozenset(as_choice(value, path, PolicyType) for path, value in spec.array(name))
    return types or default_types(ingress, egress)


def default_types(ingress: tuple[Rule, ...], egress: tuple[Rule, ...]) -> frozenset[PolicyType]:
    """The directions of a policy that says none: those it has rules of, Ingress where it has none."""
    if egress and not ingress:
        return frozenset((PolicyType.EGRESS,))
    return frozenset(PolicyType) if egress else frozenset((PolicyType.INGRESS,))


def _parse_tier(head: Head) -> Tier:
    spec = head.spec
    action = spec.choice("defaultAction", TierAction) or TierAction.DENY
    if head.name == DEFAULT_TIER:
        if spec.number("order") not in (None, DEFAULT_TIER_ORDER):
            raise spec.error("order", "must be 1000000 for the tier default, which every cluster has there")
        if action is not TierAction.DENY:
            raise spec.error("defaultAction", "must be Deny for the tier default")
    return Tier(**head.common, order=spec.number("order"), default_action=action)


def _parse_network_policy(head: Head) -> NetworkPolicy:
    spec = head.spec
    ingress = read_rules(spec, "ingress", namespaced=True)
    egress = read_rules(spec, "egress", namespaced=True)
    return NetworkPolicy(
        **head.common,
        tier=spec.text("tier") or DEFAULT_TIER,
        order=spec.number("order"),
        selector=spec.selector("selector"),
        service_account_selector=spec.selector("serviceAccountSelector"),
        types=read_types(spec, "types", ingress, egress),
        ingress=ingress,
        egress=egress,
    )


def _parse_global_network_policy(head: Head) -> GlobalNetworkPolicy:
    spec = head.spec
    ingress = read_rules(spec, "ingress", namespaced=False)
    egress = read_rules(spec, "egress", namespaced=False)
    types = read_types(spec, "types", ingress, egress)
    track, dnat = spec.boolean("doNotTrack") or False, spec.boolean("preDNAT") or False
    forward = spec.boolean("applyOnForward") or False
    if track and dnat:
        raise spec.error("preDNAT", "must not be true where doNotTrack is")
    if (track or dnat) and spec.values.get("applyOnForward") is False:
        raise spec.error("applyOnForward", "must be true where doNotTrack or preDNAT is")
    if dnat and (egress or PolicyType.EGRESS in types):
        raise spec.error("egress", "must be left out where preDNAT is true: it comes before any egress")
    return GlobalNetworkPolicy(
        **head.common,
        tier=spec.text("tier") or DEFAULT_TIER,
        order=spec.number("order"),
        selector=spec.selector("selector"),
        namespace_selector=spec.selector("namespaceSelector"),
        service_account_selector=spec.selector("serviceAccountSelector"),
        types=types,
        ingress=ingress,
        egress=egress,
        do_not_track=track,
        pre_dnat=dnat,
        apply_on_forward=forward or track or dnat,
    )


def _staged(kind: type[StagedNetworkPolicy | StagedGlobalNetworkPolicy | StagedKubernetesNetworkPolicy]) -> Kind:
    def read(head: Head) -> Resource:
        return kind(**head.common, staged_action=head.spec.choice("stagedAction", StagedAction) or StagedAction.SET)

    return Kind(
        name=kind.kind,
        plural=kind.kind.lower().removesuffix("y") + "ies",
        namespaced=kind is not StagedGlobalNetworkPolicy,
        read=read,
        shape=kind_shape("spec"),
    )


def _parse_profile(head: Head) -> Profile:
    spec = head.spec
    return Profile(
        **head.common,
        ingress=read_rules(spec, "ingress", namespaced=False, profile=True),
        egress=read_rules(spec, "egress", namespaced=False, profile=True),
        labels_to_apply=spec.text_map("labelsToApply"),
    )


def _parse_network_set(head: Head) -> NetworkSet:
    return NetworkSet(**head.common, nets=_nets(head.spec, "nets"))


def _parse_global_network_set(head: Head) -> GlobalNetworkSet:
    return GlobalNetworkSet(**head.common, nets=_nets(head.spec, "nets"))


_ENTITY = """!{
    namespaceSelector nets notNets notPorts notSelector ports selector
    serviceAccounts !{ names selector } services !{ name namespace }
}"""
_RULE = f"""!{{
    action destination {_ENTITY} http !{{ methods paths !{{ exact prefix }} }} icmp !{{ code type }} ipVersion
    metadata {{ annotations }} notICMP !{{ code type }} notProtocol protocol source {_ENTITY}
}}"""
_POLICY = f"egress {_RULE} ingress {_RULE} order performanceHints selector serviceAccountSelector tier types"

KINDS = (
    Kind(
        name=Tier.kind,
        plural="tiers",
        read=_parse_tier,
        shape=kind_shape("spec { defaultAction order } status"),
    ),
    Kind(
        name=NetworkPolicy.kind,
        plural="networkpolicies",
        short=("networkpolicy", "policy", "policies", "np"),
        namespaced=True,
        read=_parse_network_policy,
        shape=kind_shape(f"spec !{{ {_POLICY} }} status"),
    ),
    Kind(
        name=GlobalNetworkPolicy.kind,
        plural="globalnetworkpolicies",
        short=("gnp",),
        read=_parse_global_network_policy,
        shape=kind_shape(f"spec !{{ applyOnForward doNotTrack namespaceSelector preDNAT {_POLICY} }} status"),
    ),
    _staged(StagedNetworkPolicy),
    _staged(StagedGlobalNetworkPolicy),
    _staged(StagedKubernetesNetworkPolicy),
    Kind(
        name=Profile.kind,
        plural="profiles",
        short=("pro",),
        read=_parse_profile,
        shape=kind_shape(f"spec !{{ egress {_RULE} ingress {_RULE} labelsToApply }} status"),
    ),
    Kind(
        name=NetworkSet.kind,
        plural="networksets",
        short=("netset", "netsets"),
        namespaced=True,
        read=_parse_network_set,
        shape=kind_shape("spec { nets } status"),
    ),
    Kind(
        name=GlobalNetworkSet.kind,
        plural="globalnetworksets",
        short=("gns",),
        read=_parse_global_network_set,
        shape=kind_shape("spec { nets } status"),
    ),
)
