"""Calico's policies as their documents read, evaluated on raw manifests: the oracle of the generated tests.

Written from Calico's API reference (and, where that is silent, from what Felix does) alone, in the plainest way, with
nothing of routed in it: neither its model, nor its selectors, nor its compiled rules. Where a packet meets policy on a node:

    in by a host endpoint     doNotTrack, then preDNAT policies; what one allows is not asked again where it came in
    passing through           applyOnForward policies of the endpoint it came in by, egress of the workload it is from,
                              ingress of the workload it is for, applyOnForward policies of the endpoint it leaves by
    for the node, of the node the endpoint's other policies, then its profiles; failsafe ports excepted
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]

NUMBERS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132}
UPLINK = "eth0"


@dataclass(frozen=True)
class Probe:
    """The first packet of a connection."""

    source: str
    destination: str
    """Addresses."""
    protocol: int
    source_port: int = 40000
    port: int = 0
    icmp: tuple[int, int] | None = None

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4


@dataclass(frozen=True)
class Cluster:
    resources: Sequence[Manifest]
    nodes: Mapping[str, Sequence[str]]
    """Addresses by name."""
    failsafe_in: Sequence[tuple[int, int]] = ()
    failsafe_out: Sequence[tuple[int, int]] = ()
    """(protocol, port)."""

    def of(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.resources if each["kind"] in kinds]


def admitted(cluster: Cluster, probe: Probe) -> bool:
    """Whether every node on the way lets it pass."""
    source, destination = _place(cluster, probe.source), _place(cluster, probe.destination)
    if source == destination and source.interface:
        return True
    return all(
        _passes(cluster, probe, node, incoming, outgoing) for node, incoming, outgoing in _way(source, destination)
    )


# ---- the way of a packet


@dataclass(frozen=True)
class _Place:
    node: str = ""
    interface: str = ""
    """Of a workload."""


def _place(cluster: Cluster, address: str) -> _Place:
    for endpoint in cluster.of("WorkloadEndpoint"):
        if _in(address, endpoint["spec"]["ipNetworks"]):
            return _Place(endpoint["spec"]["node"], endpoint["spec"]["interfaceName"])
    return next((_Place(name) for name, addresses in cluster.nodes.items() if address in addresses), _Place())


def _way(source: _Place, destination: _Place) -> Iterator[tuple[str, str, str]]:
    """Nodes with the interfaces it comes in and leaves by; empty: the node itself."""
    if source.node and source.node == destination.node:
        yield source.node, source.interface, destination.interface
        return
    if source.node:
        yield source.node, source.interface, UPLINK
    if destination.node:
        yield destination.node, UPLINK, destination.interface


def _passes(cluster: Cluster, probe: Probe, node: str, incoming: str, outgoing: str) -> bool:
    in_by = _host_endpoint(cluster, node, incoming)
    out_by = _host_endpoint(cluster, node, outgoing)
    failsafe_in = (probe.protocol, probe.port) in cluster.failsafe_in
    failsafe_out = (probe.protocol, probe.port) in cluster.failsafe_out
    answers_in = (probe.protocol, probe.source_port) in cluster.failsafe_out
    answers_out = (probe.protocol, probe.source_port) in cluster.failsafe_in
    early = False
    if incoming:
        if not _of_workload(incoming) and not (failsafe_in or answers_in):
            decided = _early(cluster, probe, in_by, "Ingress", "doNotTrack")
            if decided is False:
                return False
            early = decided is True
        if not early and not failsafe_in:
            decided = _early(cluster, probe, in_by, "Ingress", "preDNAT")
            if decided is False:
                return False
            early = decided is True
    elif not _of_workload(outgoing) and not (failsafe_out or answers_out):
        decided = _early(cluster, probe, out_by, "Egress", "doNotTrack")
        if decided is False:
            return False
        early = decided is True
    if incoming and outgoing:
        return (
            (early or _forward(cluster, probe, in_by, "Ingress"))
            and _workload(cluster, probe, node, incoming, "Egress")
            and _workload(cluster, probe, node, outgoing, "Ingress")
            and _forward(cluster, probe, out_by, "Egress")
        )
    if early:
        return True
    if incoming:
        return _of_workload(incoming) or failsafe_in or _host(cluster, probe, in_by, "Ingress")
    return _of_workload(outgoing) or failsafe_out or _host(cluster, probe, out_by, "Egress")


def _of_workload(interface: str) -> bool:
    return interface.startswith("cali")


def _host_endpoint(cluster: Cluster, node: str, interface: str) -> Manifest | None:
    here = [each for each in cluster.of("HostEndpoint") if each["spec"]["node"] == node and interface]
    for wanted in (interface, "*"):
        for each in here:
            if each["spec"].get("interfaceName") == wanted:
                return each
    return None


# ---- what decides at an endpoint


def _workload(cluster: Cluster, probe: Probe, node: str, interface: str, direction: str) -> bool:
    if not _of_workload(interface):
        return True
    for endpoint in cluster.of("WorkloadEndpoint"):
        if (endpoint["spec"]["node"], endpoint["spec"]["interfaceName"]) == (node, interface):
            plain = [each for each in _policies(cluster, endpoint, direction) if not _is_early(each)]
            decided = _tiers(cluster, probe, plain, direction, open_ended=False)
            return _profiles(cluster, probe, endpoint, direction) if decided is None else decided
    return False


def _host(cluster: Cluster, probe: Probe, endpoint: Manifest | None, direction: str) -> bool:
    if endpoint is None:
        return True
    plain = [each for each in _policies(cluster, endpoint, direction) if not _is_early(each)]
    decided = _tiers(cluster, probe, plain, direction, open_ended=False)
    return _profiles(cluster, probe, endpoint, direction) if decided is None else decided


def _forward(cluster: Cluster, probe: Probe, endpoint: Manifest | None, direction: str) -> bool:
    if endpoint is None:
        return True
    forward = [
        each
        for each in _policies(cluster, endpoint, direction)
        if each["spec"].get("applyOnForward") and not _is_early(each)
    ]
    return _tiers(cluster, probe, forward, direction, open_ended=False) is not False


def _early(cluster: Cluster, probe: Probe, endpoint: Manifest | None, direction: str, kind: str) -> bool | None:
    if endpoint is None:
        return None
    wanted = [each for each in _policies(cluster, endpoint, direction) if each["spec"].get(kind)]
    return _tiers(cluster, probe, wanted, direction, open_ended=True)


def _is_early(policy: Manifest) -> bool:
    return bool(policy["spec"].get("doNotTrack") or policy["spec"].get("preDNAT"))


def _policies(cluster: Cluster, endpoint: Manifest, direction: str) -> list[Manifest]:
    """Those for an endpoint in a direction, in the order they are asked within a tier."""
    labels = _labels(cluster, endpoint)
    found = [
        each
        for each in cluster.of("NetworkPolicy", "GlobalNetworkPolicy")
        if direction in _types(each["spec"]) and _is_for(each, labels)
    ]

    def rank(policy: Manifest) -> tuple[float, str]:
        meta, order = policy["metadata"], policy["spec"].get("order")
        names = f"{meta['name']}/{meta.get('namespace', '')}/{policy['kind']}"
        return (float("inf") if order is None else order), names

    return sorted(found, key=rank)


def _types(spec: Manifest) -> list[str]:
    if spec.get("types"):
        return list(spec["types"])
    if spec.get("egress"):
        return ["Ingress", "Egress"] if spec.get("ingress") else ["Egress"]
    return ["Ingress"]


def _is_for(policy: Manifest, labels: Mapping[str, str]) -> bool:
    spec, namespace = policy["spec"], policy["metadata"].get("namespace")
    selector, accounts, namespaces = (
        spec.get(name) or "" for name in ("selector", "serviceAccountSelector", "namespaceSelector")
    )
    if namespace:
        return (
            labels.get(NAMESPACE) == namespace
            and holds(selector, labels)
            and (not accounts or holds(accounts, labels, prefix="pcsa."))
        )
    # all() beside a namespaceSelector means all workloads, beside a serviceAccountSelector those that have one
    everybody: str | None = None
    if accounts:
        everybody = "projectcalico.org/serviceaccount"
    if namespaces:
        everybody = NAMESPACE
    return (
        (not selector or holds(selector, labels, everybody=everybody))
        and (not accounts or holds(accounts, labels, prefix="pcsa.", everybody=everybody))
        and (not namespaces or holds(namespaces, labels, prefix="pcns.", everybody=everybody))
    )


def _tiers(
    cluster: Cluster, probe: Probe, policies: Sequence[Manifest], direction: str, *, open_ended: bool
) -> bool | None:
    """None: no tier decides."""
    known = {each["metadata"]["name"]: each["spec"] for each in cluster.of("Tier")}
    known.setdefault("default", {"order": 1_000_000, "defaultAction": "Deny"})

    def rank(tier: str) -> tuple[bool, float, str]:
        order = known.get(tier, {}).get("order")
        return tier not in known, float("inf") if order is None else order, tier

    by_tier: dict[str, list[Manifest]] = {}
    for policy in policies:
        by_tier.setdefault(policy["spec"].get("tier") or "default", []).append(policy)
    for tier in sorted(by_tier, key=rank):
        action = next(
            (action for policy in by_tier[tier] if (action := _decided(cluster, probe, policy, direction)) is not None),
            "Pass" if open_ended else known.get(tier, {}).get("defaultAction") or "Deny",
        )
        if action != "Pass":
            return action == "Allow"
    return None


def _profiles(cluster: Cluster, probe: Probe, endpoint: Manifest, direction: str) -> bool:
    for name in endpoint["spec"].get("profiles") or []:
        profile = next((each for each in cluster.of("Profile") if each["metadata"]["name"] == name), None)
        if name == "projectcalico-default-allow":
            return True
        if profile is None:
            return False
        action = _decided(cluster, probe, profile, direction)
        if action is not None:
            return action == "Allow"
    return False


def _decided(cluster: Cluster, probe: Probe, owner: Manifest, direction: str) -> str | None:
    namespace = owner["metadata"].get("namespace", "")
    for rule in owner["spec"].get(direction.lower()) or []:
        if rule["action"] != "Log" and _matches(cluster, probe, rule, namespace):
            return str(rule["action"])
    return None


# ---- rules


def _matches(cluster: Cluster, probe: Probe, rule: Manifest, namespace: str) -> bool:
    if rule.get("ipVersion") not in (None, probe.version):
        return False
    protocol, not_protocol = rule.get("protocol"), rule.get("notProtocol")
    if protocol is not None and _number(protocol) != probe.protocol:
        return False
    if not_protocol is not None and _number(not_protocol) == probe.protocol:
        return False
    icmp, not_icmp = rule.get("icmp"), rule.get("notICMP")
    if icmp is not None and not _is_icmp(icmp, probe):
        return False
    if not_icmp is not None and _is_icmp(not_icmp, probe):
        return False
    return all(
        _side(cluster, probe, rule.get(side) or {}, namespace, address, port)
        for side, address, port in (
            ("source", probe.source, probe.source_port),
            ("destination", probe.destination, probe.port),
        )
    )


def _number(protocol: str | int) -> int:
    return NUMBERS[protocol] if protocol in NUMBERS else int(protocol)  # type: ignore[index]


def _is_icmp(wanted: Manifest, probe: Probe) -> bool:
    if probe.icmp is None:
        return False
    return wanted["type"] == probe.icmp[0] and wanted.get("code") in (None, probe.icmp[1])


def _side(cluster: Cluster, probe: Probe, entity: Manifest, namespace: str, address: str, port: int) -> bool:
    nets, not_nets = entity.get("nets") or [], entity.get("notNets") or []
    for given in (nets, not_nets):  # networks of one version only make it a rule of this version
        if given and not [each for each in given if (":" in each) == (probe.version == 6)]:
            return False
    if nets and not _in(address, nets):
        return False
    if _in(address, not_nets):
        return False
    if _is_selective(entity, namespace):
        if not any(_selects(entity, namespace, item) for item in _items(cluster, address)):
            return False
    elif entity.get("notSelector") and any(
        holds(entity["notSelector"], item.labels) for item in _items(cluster, address)
    ):
        return False
    ports, not_ports = entity.get("ports") or [], entity.get("notPorts") or []
    if ports and not _has_port(cluster, probe, ports, entity, namespace, address, port):
        return False
    return not _has_port(cluster, probe, not_ports, entity, namespace, address, port)


def _is_selective(entity: Manifest, namespace: str) -> bool:
    """Whether it is about endpoints and network sets only; in a namespace as soon as it selects in any way."""
    accounts = entity.get("serviceAccounts") or {}
    return bool(
        entity.get("selector")
        or entity.get("namespaceSelector")
        or accounts.get("selector")
        or accounts.get("names")
        or (namespace and entity.get("notSelector"))
    )


def _has_port(
    cluster: Cluster,
    probe: Probe,
    wanted: Sequence[int | str],
    entity: Manifest,
    namespace: str,
    address: str,
    port: int,
) -> bool:
    for each in wanted:
        low, _, high = str(each).partition(":")
        if low.isdigit():
            if int(low) <= port <= int(high or low):
                return True
            continue
        for item in _items(cluster, address):
            if _is_selective(entity, namespace) and not _selects(entity, namespace, item):
                continue
            if any(
                (named["name"], _number(named["protocol"]), named["port"]) == (each, probe.protocol, port)
                for named in item.ports
            ):
                return True
    return False


# ---- what selectors select

NAMESPACE = "projectcalico.org/namespace"
ACCOUNT = "projectcalico.org/serviceaccount"


@dataclass(frozen=True)
class _Item:
    labels: Mapping[str, str]
    ports: Sequence[Manifest] = ()


def _items(cluster: Cluster, address: str) -> Iterator[_Item]:
    """All that selectors may select which has this address."""
    for each in cluster.of("WorkloadEndpoint", "HostEndpoint", "NetworkSet", "GlobalNetworkSet"):
        spec = each["spec"]
        addresses = spec.get("ipNetworks") or spec.get("expectedIPs") or spec.get("nets") or []
        if _in(address, addresses):
            yield _Item(_labels(cluster, each), spec.get("ports") or ())


def _labels(cluster: Cluster, item: Manifest) -> dict[str, str]:
    """Its own, and those its profiles apply; its own win, then those of the first profile."""
    own = dict(item["metadata"].get("labels") or {})
    namespace = item["metadata"].get("namespace")
    profiles = list(item["spec"].get("profiles") or [])
    if item["kind"] == "WorkloadEndpoint":
        own = {label: value for label, value in own.items() if not label.startswith(("pcns.", "pcsa."))}
        if item["spec"].get("serviceAccountName"):
            own[ACCOUNT] = item["spec"]["serviceAccountName"]
    if namespace:
        own[NAMESPACE] = namespace
    if item["kind"] == "NetworkSet":
        profiles = [f"kns.{namespace}"]
    applied: dict[str, str] = {}
    for name in reversed(profiles):
        for profile in cluster.of("Profile"):
            if profile["metadata"]["name"] == name:
                applied.update(profile["spec"].get("labelsToApply") or {})
    return applied | own


def _selects(entity: Manifest, namespace: str, item: _Item) -> bool:
    labels, accounts = item.labels, entity.get("serviceAccounts") or {}
    if entity.get("namespaceSelector"):
        if not holds(entity["namespaceSelector"], labels, prefix="pcns.", everybody=NAMESPACE):
            return False
    elif namespace and labels.get(NAMESPACE) != namespace:
        return False
    if accounts.get("names") and labels.get(ACCOUNT) not in accounts["names"]:
        return False
    if accounts.get("selector") and not holds(accounts["selector"], labels, prefix="pcsa."):
        return False
    if entity.get("notSelector") and holds(entity["notSelector"], labels):
        return False
    return not entity.get("selector") or holds(entity["selector"], labels)


def _in(address: str, networks: Sequence[str]) -> bool:
    wanted = ipaddress.ip_address(address)
    return any(wanted in ipaddress.ip_network(each, strict=False) for each in networks)


# ---- selectors

_TOKEN = re.compile(
    r"""[ \t]*(?:
      (?P<call>(?:has|all|global)\() | (?P<string>'[^']*'|"[^"]*") | (?P<sign>==|!=|&&|\|\||[!(){},])
    | (?P<operator>contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in)(?![A-Za-z0-9_./-])
    | (?P<label>[A-Za-z0-9_./-]+) )""",
    re.VERBOSE,
)


def holds(selector: str, labels: Mapping[str, str], *, prefix: str = "", everybody: str | None = None) -> bool:
    """Whether labels satisfy a selector. `prefix` stands before each label it names; `everybody`: the label that all()
    asks for, and global() for the lack of."""
    tokens = [match[0].strip() for match in _TOKEN.finditer(selector) if match[0].strip()]
    if not tokens:
        return True
    reader = _Reader(tokens, labels, prefix, everybody)
    result = reader.either()
    assert not reader.tokens, f"{selector!r} is no selector"
    return result


class _Reader:
    """Evaluates while it reads."""

    def __init__(self, tokens: list[str], labels: Mapping[str, str], prefix: str, everybody: str | None) -> None:
        self.tokens = tokens
        self._labels = labels
        self._prefix = prefix
        self._everybody = everybody

    def _take(self, *wanted: str) -> bool:
        if self.tokens and self.tokens[0] in wanted:
            self.tokens.pop(0)
            return True
        return False

    def either(self) -> bool:
        result = self._all()
        while self._take("||"):
            other = self._all()
            result = result or other
        return result

    def _all(self) -> bool:
        result = self._term()
        while self._take("&&"):
            other = self._term()
            result = result and other
        return result

    def _term(self) -> bool:
        if self._take("!"):
            return not self._term()
        if self._take("("):
            result = self.either()
            assert self._take(")")
            return result
        first = self.tokens.pop(0)
        if first == "has(":
            result = self._prefix + self.tokens.pop(0) in self._labels
            assert self._take(")")
            return result
        if first in ("all(", "global("):
            assert self._take(")")
            if self._everybody is None:
                return True
            return (self._everybody in self._labels) is (first == "all(")
        value = self._labels.get(self._prefix + first)
        operator = re.sub(r"\s", "", self.tokens.pop(0))
        if operator in ("in", "notin"):
            assert self._take("{")
            values = []
            while not self._take("}"):
                values.append(self.tokens.pop(0)[1:-1])
                self._take(",")
            return (value in values) is (operator == "in")
        wanted = self.tokens.pop(0)[1:-1]
        if operator in ("==", "!="):
            return (value == wanted) is (operator == "==")
        if value is None:
            return False
        return {
            "contains": wanted in value,
            "startswith": value.startswith(wanted),
            "endswith": value.endswith(wanted),
        }[operator]
