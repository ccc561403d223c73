"""One rule of a policy -> the rules of `desired_policy` that say the same, one a family where addresses matter.

Pure: sets are named by a function the caller gives, which makes sure they exist. A rule whose networks, or networks it
excepts, are all of one family is a rule of this family, as in Felix, and left out in the other; one that no packet filter
can judge is left out with a reason where it would allow, and never widened: what is not understood must not let anything
through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from routed.desired_policy import Action, Icmp, Rule, SetKind, Side
from routed.model.policies import EntityRule, IcmpMatch, NamedPort, PortRange, RuleAction
from routed.model.policies import Rule as PolicyRule
from routed.model.resources import Cidr
from routed.model.selector import All, Selector
from routed.net.families import Family
from routed.policy.scope import peers, strangers
from routed.values import dataclass

_ICMP, _ICMPV6 = 1, 58
_FAMILY = {4: Family.IPV4_UNICAST, 6: Family.IPV6_UNICAST}
_FEW = 8
"""Ranges of ports in a rule; the kernel's rules are of a bounded length, and grow with the product of the two sides'."""
_ACTIONS = {
    RuleAction.ALLOW: Action.ALLOW,
    RuleAction.DENY: Action.DENY,
    RuleAction.PASS: Action.PASS,
    RuleAction.LOG: Action.LOG,
}


@dataclass(frozen=True, slots=True)
class SelectedAddresses:
    """Addresses of what a selector selects."""

    selector: Selector


@dataclass(frozen=True, slots=True)
class SelectedPorts:
    """Addresses of what a selector selects, each with the numbers its endpoint gives these names of ports."""

    selector: Selector
    ports: tuple[str, ...]
    protocol: int


@dataclass(frozen=True, slots=True)
class FixedNetworks:
    """Networks as they stand in a rule, of one family."""

    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FixedPorts:
    """Numbers of ports as they stand in a rule: first and last of ranges that do not meet, in order."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ServiceEndpoints:
    """Addresses of a Kubernetes Service's endpoints, alone or each with the Service's protocols and ports."""

    namespace: str
    name: str
    with_ports: bool


Source: TypeAlias = SelectedAddresses | SelectedPorts | FixedNetworks | FixedPorts | ServiceEndpoints
"""Where the members of a set come from."""


class Naming(Protocol):
    """Gives the name of the set for a source; the set exists from then on."""

    def __call__(self, source: Source, family: Family) -> str: ...


def compile_rule(rule: PolicyRule, namespace: str, origin: str, name: Naming) -> Iterator[Rule]:
    """`namespace` is the policy's, empty for global ones; `origin` is passed on."""
    if rule.http is not None:
        return  # requests cannot be seen here, and a connection that may carry others must not pass for them
    families = [family for version, family in _FAMILY.items() if rule.ip_version in (None, version)]
    if rule.protocol == _ICMP:
        families = [family for family in families if family is Family.IPV4_UNICAST]
    elif rule.protocol == _ICMPV6:
        families = [family for family in families if family is Family.IPV6_UNICAST]
    if len(families) == len(_FAMILY) and not any(map(_needs_family, (rule.source, rule.destination))):
        yield _rule(rule, None, _side(rule.source), _side(rule.destination), origin)
        return
    for family in families:
        made = [
            _Compiler(entity, rule.protocol, namespace, family, name, is_source).side()
            for entity, is_source in ((rule.source, True), (rule.destination, False))
        ]
        source, destination = made
        if source is not None and destination is not None:
            yield _rule(rule, family, source, destination, origin)


def cannot_judge(rule: PolicyRule) -> str:
    """Why a rule is left out, or empty."""
    if rule.http is not None:
        return "http: requests cannot be judged here, so this rule allows nothing"
    return ""


def _rule(rule: PolicyRule, family: Family | None, source: Side, destination: Side, origin: str) -> Rule:
    return Rule(
        action=_ACTIONS[rule.action],
        family=family,
        protocol=rule.protocol,
        not_protocol=rule.not_protocol,
        icmp=_icmp(rule.icmp),
        not_icmp=_icmp(rule.not_icmp),
        source=source,
        destination=destination,
        origin=origin,
    )


def _icmp(match: IcmpMatch | None) -> Icmp | None:
    return None if match is None or match.type is None else Icmp(match.type, match.code)


def _needs_family(entity: EntityRule) -> bool:
    return bool(
        entity.nets
        or entity.not_nets
        or entity.not_selector is not None
        or entity.service is not None
        or peers(entity, "") is not None
        or any(isinstance(port, NamedPort) for port in (*entity.ports, *entity.not_ports))
        or any(len(_ranges(ports)) > _FEW for ports in (entity.ports, entity.not_ports))
    )


def _side(entity: EntityRule) -> Side:
    """A side that asks for numbers of ports at most."""
    return Side(ports=_ranges(entity.ports), not_ports=_ranges(entity.not_ports))


def _ranges(ports: tuple[PortRange | NamedPort, ...]) -> tuple[tuple[int, int], ...]:
    """The numbers in the fewest ranges, in order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted((port.low, port.high) for port in ports if isinstance(port, PortRange)):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Compiler:
    """One side of a rule in one family."""

    entity: EntityRule
    protocol: int | None
    namespace: str
    family: Family
    name: Naming
    is_source: bool

    def side(self) -> Side | None:
        """None: nothing of this family can match."""
        entity = self.entity
        sets: list[str] = []
        not_sets: list[str] = []
        net = not_net = b""
        ports, port_sets = self._ports(entity.ports)
        not_ports, not_port_sets = self._ports(entity.not_ports)
        selector = peers(entity, self.namespace)
        if selector is not None:
            sets.append(self.name(SelectedAddresses(selector), self.family))
        if entity.nets:
            own = self._own(entity.nets)
            if not own:
                return None
            if len(own) == 1:
                (net,) = own
            else:
                sets.append(self.name(FixedNetworks(own), self.family))
        if entity.not_nets:
            own = self._own(entity.not_nets)
            if not own:
                return None
            if len(own) == 1:
                (not_net,) = own
            else:
                not_sets.append(self.name(FixedNetworks(own), self.family))
        excepted = strangers(entity, self.namespace)
        if excepted is not None:
            not_sets.append(self.name(SelectedAddresses(excepted), self.family))
        if entity.service is not None:
            namespace = entity.service.namespace or self.namespace
            service = self.name(ServiceEndpoints(namespace, entity.service.name, not self.is_source), self.family)
            (sets if self.is_source else port_sets).append(service)
        return Side(
            sets=tuple(sets),
            not_sets=tuple(not_sets),
            net=net,
            not_net=not_net,
            ports=ports,
            port_sets=tuple(port_sets),
            not_ports=not_ports,
            not_port_sets=tuple(not_port_sets),
        )

    def _ports(self, ports: tuple[PortRange | NamedPort, ...]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
        """Numbers, and sets: of names, and of numbers where there are many."""
        sets: list[str] = []
        names = tuple(sorted({port.name for port in ports if isinstance(port, NamedPort)}))
        if names and self.protocol is not None:
            selector = peers(self.entity, self.namespace) or All()
            sets.append(self.name(SelectedPorts(selector, names, self.protocol), self.family))
        ranges = _ranges(ports)
        if len(ranges) <= _FEW:
            return ranges, sets
        return (), [*sets, self.name(FixedPorts(ranges), self.family)]

    def _own(self, nets: tuple[Cidr, ...]) -> tuple[bytes, ...]:
        return tuple(sorted({net.prefix for net in nets if net.family is self.family}))


def kind_of(source: Source, *, networks: bool) -> SetKind:
    """What a set for a source holds; `networks`: something it selects is a network rather than an address."""
    match source:
        case SelectedPorts():
            return SetKind.PORTS
        case ServiceEndpoints(with_ports=with_ports):
            return SetKind.PORTS if with_ports else SetKind.HOSTS
        case FixedNetworks():
            return SetKind.NETS
        case FixedPorts():
            return SetKind.RANGES
        case SelectedAddresses():
            return SetKind.NETS if networks else SetKind.HOSTS
