"""What Calico's policies mean, case by case: some resources, and which connections they admit. Read from Calico's documents.

The cases run on the model (`test_calico.py`) and with real packets (`tests/lab/test_calico_packets.py`). Whatever is not
named as admitted among the probes of a case is denied; each probe is one of both families unless it says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from routed.model.resources import Resource
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint
from tests.policy.nodes import interface_of, profile, twin, workload
from tests.policy.specification import Connection, Endpoint

NODES = {"n1": "192.0.2.1", "n2": "192.0.2.2"}


def _pod(name: str, namespace: str, node: str, address: str, *ports: tuple[str, str, int], **labels: str) -> Endpoint:
    return Endpoint("pod", name, namespace, labels, node, (address, twin(address)), ports)


PODS = (
    _pod("web", "red", "n1", "10.65.1.2", app="web", side="front"),
    _pod("db", "red", "n1", "10.65.1.4", ("http", "TCP", 443), app="db", side="back"),
    _pod("api", "red", "n2", "10.65.2.3", ("http", "TCP", 80), ("dns", "UDP", 81), app="api", side="back"),
    _pod("web2", "blue", "n1", "10.65.1.6", app="web"),
    _pod("api2", "blue", "n2", "10.65.2.5", app="api"),
)
ACCOUNTS = {"web": "web-account", "api": "api-account", "api2": "api-account"}
OUTSIDE = Endpoint("ext", "out", addresses=("192.0.2.7", twin("192.0.2.7")))
PEERS = {each.name: each for each in (*PODS, OUTSIDE)}
OUT_NETS = ["192.0.2.7/32", twin("192.0.2.7/32")]
POD_NETS = ["10.65.0.0/16", twin("10.65.0.0/16")]


@dataclass(frozen=True)
class Case:
    title: str
    resources: tuple[dict[str, Any], ...]
    admitted: str
    """`web>api TCP/80, web>api ICMP/8/0 v4, ...`"""
    denied: str = ""
    namespaces: dict[str, dict[str, str]] = field(default_factory=lambda: {"red": {"env": "prod"}, "blue": {}})
    """With their labels."""

    def wanted(self) -> list[tuple[Connection, bool, str]]:
        return [
            (connection, admitted, f"{self.title}: {text}")
            for texts, admitted in ((self.admitted, True), (self.denied, False))
            for text in filter(None, map(str.strip, texts.split(",")))
            for connection in connections(text)
        ]

    def all_resources(self, interface: Callable[[Endpoint], str] = interface_of) -> list[Resource]:
        endpoints = []
        for pod in PODS:
            made = workload(pod, interface(pod))
            assert isinstance(made, WorkloadEndpoint)
            account = ACCOUNTS.get(pod.name, "")
            profiles = (*made.profiles, *((f"ksa.{pod.namespace}.{account}",) if account else ()))
            endpoints.append(replace(made, service_account_name=account, profiles=profiles))
        accounts = [
            {
                **of("Profile", f"ksa.{pod.namespace}.{ACCOUNTS[pod.name]}"),
                "spec": {"labelsToApply": {"pcsa.team": pod.namespace, "pcsa.kind": ACCOUNTS[pod.name]}},
            }
            for pod in PODS
            if pod.name in ACCOUNTS
        ]
        return [
            *endpoints,
            *(profile(name, labels) for name, labels in self.namespaces.items()),
            *map(parse_manifest, (*accounts, *self.resources)),
        ]


def connections(text: str) -> Iterator[Connection]:
    sides, what, *only = text.split()
    source, destination = sides.split(">")
    protocol, *numbers = what.split("/")
    for ipv6, family in ((False, "v4"), (True, "v6")):
        if only in ([], [family]):
            port = int(numbers[0]) * 256 + int(numbers[1]) if protocol == "ICMP" else int(numbers[0])
            yield Connection(PEERS[source], PEERS[destination], protocol, port, ipv6)


# ---- manifests, shortly


def of(kind: str, name: str, namespace: str = "", **spec: Any) -> dict[str, Any]:
    labels = spec.pop("labels", {})
    metadata: dict[str, Any] = {"name": name, "labels": labels, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def tier(name: str, order: int, action: str = "Deny") -> dict[str, Any]:
    return of("Tier", name, order=order, defaultAction=action)


def ingress(name: str, *rules: dict[str, Any], selector: str = "app == 'api'", **spec: Any) -> dict[str, Any]:
    """A policy for what the pods of namespace red hear."""
    tiered = f"{spec['tier']}.{name}" if "tier" in spec else name
    return of("NetworkPolicy", tiered, "red", selector=selector, types=["Ingress"], ingress=list(rules), **spec)


def egress(name: str, *rules: dict[str, Any], selector: str = "app == 'web'", **spec: Any) -> dict[str, Any]:
    return of("NetworkPolicy", name, "red", selector=selector, types=["Egress"], egress=list(rules), **spec)


def everywhere(name: str, *rules: dict[str, Any], selector: str = "app == 'api'", **spec: Any) -> dict[str, Any]:
    tiered = f"{spec['tier']}.{name}" if "tier" in spec else name
    return of("GlobalNetworkPolicy", tiered, selector=selector, types=["Ingress"], ingress=list(rules), **spec)


def rule(action: str, protocol: str | int | None = None, **fields: Any) -> dict[str, Any]:
    return {"action": action, **({"protocol": protocol} if protocol is not None else {}), **fields}


def source(**fields: Any) -> dict[str, Any]:
    return {"source": fields}


def destination(**fields: Any) -> dict[str, Any]:
    return {"destination": fields}


ALLOW, DENY, PASS = rule("Allow"), rule("Deny"), rule("Pass")
TO_80 = destination(ports=[80])

EVERYBODY_80 = "web>api TCP/80, db>api TCP/80, web2>api TCP/80, api2>api TCP/80, out>api TCP/80"

CASES = [
    Case(
        "nothing is asked where no policy is for a pod",
        (ingress("other", selector="app == 'nobody'"),),
        f"{EVERYBODY_80}, web>api UDP/81, web>api SCTP/80, web>api ICMP/8/0 v4, web>api ICMP/128/0 v6",
    ),
    Case(
        "a policy without rules denies its direction and no other",
        (ingress("empty"),),
        "api>web TCP/80, api>out UDP/80, web>api2 TCP/80",
        f"{EVERYBODY_80}, web>api UDP/81, web>api ICMP/8/0 v4",
    ),
    Case(
        "types that are not said follow from the rules",
        (
            of("NetworkPolicy", "only-egress", "red", selector="app == 'api'", egress=[rule("Allow", "TCP")]),
            of("NetworkPolicy", "none", "red", selector="app == 'db'"),
        ),
        "api>web TCP/80, web>api UDP/80, db>web UDP/80",
        "api>web UDP/80, web>db TCP/80",
    ),
    Case(
        "the first rule that matches decides",
        (
            ingress(
                "mixed",
                rule("Deny", "TCP", **source(selector="app == 'db'")),
                rule("Allow", "TCP", **TO_80),
                DENY,
                ALLOW,
            ),
        ),
        "web>api TCP/80, out>api TCP/80",
        "db>api TCP/80, web>api TCP/81, web>api UDP/80",
    ),
    Case(
        "the lower order is asked first",
        (ingress("a-deny", DENY, order=20), ingress("z-allow", rule("Allow", "TCP"), order=10)),
        "web>api TCP/80",
        "web>api UDP/80",
    ),
    Case(
        "of one order the name decides, and no order is the last",
        (
            ingress("b", rule("Deny", "TCP", **TO_80), order=5),
            ingress("a", rule("Allow", "TCP", **TO_80), order=5),
            ingress("0", rule("Deny", "UDP")),
            ingress("9", rule("Allow", "UDP"), order=9),
        ),
        "web>api TCP/80, web>api UDP/80",
        "web>api TCP/81",
    ),
    Case(
        "tiers by their order: pass goes to the next, deny ends",
        (
            tier("security", 10),
            tier("platform", 20),
            ingress(
                "guard",
                rule("Deny", "TCP", **destination(ports=[443])),
                rule("Pass", "TCP"),
                rule("Allow", "UDP"),
                tier="security",
            ),
            ingress(
                "shared", rule("Allow", "TCP", **TO_80), rule("Pass", "TCP", **destination(ports=[81])), tier="platform"
            ),
            ingress("own", ALLOW, order=1),
        ),
        "web>api TCP/80, web>api TCP/81, web>api UDP/443, out>api TCP/80",
        "web>api TCP/443, web>api SCTP/80, web>api ICMP/8/0 v4",
    ),
    Case(
        "a tier that ends without a decision denies, or passes where it says so",
        (
            tier("soft", 10, "Pass"),
            tier("hard", 20),
            ingress("soft", rule("Allow", "TCP", **TO_80), tier="soft"),
            ingress("hard", rule("Allow", "UDP"), tier="hard"),
            ingress("own", ALLOW),
        ),
        "web>api TCP/80, web>api UDP/80",
        "web>api TCP/81",
    ),
    Case(
        "a tier with no policy for a pod is not asked",
        (tier("security", 10), ingress("guard", selector="app == 'db'", tier="security")),
        "web>api TCP/80",
        "web>db TCP/443",
    ),
    Case(
        "past the last tier the profiles are asked",
        (
            ingress("pass", rule("Pass", "TCP")),
            of("Profile", "kns.red", ingress=[rule("Deny", "TCP", **TO_80), ALLOW], egress=[ALLOW]),
        ),
        "web>api TCP/81, web>db TCP/443",
        "web>api TCP/80, web>api UDP/80, web>db TCP/80",
    ),
    Case(
        "dozens of tiers",
        (
            *(tier(f"t{number}", number) for number in range(30)),
            *(ingress("pass", PASS, tier=f"t{number}") for number in range(29)),
            ingress("end", rule("Allow", "TCP", **TO_80), rule("Pass", "UDP"), tier="t29"),
            ingress("last", rule("Allow", "UDP", **TO_80)),
        ),
        "web>api TCP/80, web>api UDP/80",
        "web>api TCP/81, web>api UDP/81",
    ),
    Case(
        "a rule that logs goes on",
        (ingress("log", rule("Log", "TCP"), rule("Allow", "TCP", **TO_80), rule("Log")),),
        "web>api TCP/80",
        "web>api TCP/81, web>api UDP/80",
    ),
    Case(
        "ICMP by type and code",
        (
            ingress(
                "ping",
                rule("Allow", "ICMP", icmp={"type": 8}),
                rule("Allow", "ICMP", icmp={"type": 13, "code": 0}),
                rule("Allow", "ICMPv6", icmp={"type": 128, "code": 0}),
            ),
        ),
        "web>api ICMP/8/0 v4, web>api ICMP/8/3 v4, web>api ICMP/13/0 v4, out>api ICMP/128/0 v6",
        "web>api ICMP/13/1 v4, web>api ICMP/15/0 v4, web>api ICMP/128/1 v6, web>api ICMP/200/0 v6, web>api TCP/80",
    ),
    Case(
        "ICMP but for a type",
        (
            ingress(
                "not-ping",
                rule("Allow", "ICMP", notICMP={"type": 8, "code": 0}),
                rule("Allow", "ICMPv6", notICMP={"type": 128}),
            ),
        ),
        "web>api ICMP/13/0 v4, web>api ICMP/8/1 v4, web>api ICMP/139/0 v6",
        "web>api ICMP/8/0 v4, web>api ICMP/128/0 v6, web>api ICMP/128/4 v6, web>api UDP/80",
    ),
    Case(
        "ICMP as a whole is of its family",
        (ingress("icmp", rule("Allow", "ICMP")),),
        "web>api ICMP/8/0 v4, web>api ICMP/13/0 v4",
        "web>api ICMP/128/0 v6, web>api TCP/80",
    ),
    Case(
        "every protocol but one",
        (ingress("not", rule("Allow", notProtocol="TCP")),),
        "web>api UDP/80, web>api SCTP/80, web>api ICMP/8/0 v4, web>api ICMP/128/0 v6",
        "web>api TCP/80",
    ),
    Case(
        "a protocol by its number",
        (ingress("number", rule("Allow", 17), rule("Allow", "132", **TO_80)),),
        "web>api UDP/80, web>api SCTP/80",
        "web>api TCP/80, web>api SCTP/81",
    ),
    Case(
        "ports: single, ranges, lists",
        (ingress("ports", rule("Allow", "TCP", **destination(ports=["80:81", 8080])), rule("Allow", "UDP", **TO_80)),),
        "web>api TCP/80, web>api TCP/81, web>api UDP/80",
        "web>api TCP/443, web>api UDP/81",
    ),
    Case(
        "hundreds of ports and of excepted ones, on both sides",
        (
            ingress(
                "many",
                rule(
                    "Allow",
                    "TCP",
                    source={"notPorts": list(range(1, 9000, 100))},
                    destination={"notPorts": [*range(1, 600, 2), "http"]},
                ),
                rule(
                    "Allow",
                    "UDP",
                    source={"ports": ["9000:65535", *range(1, 90, 2)]},
                    **destination(ports=list(range(1, 600, 2))),
                ),
                rule("Allow", "SCTP", **destination(ports=[*range(100, 600, 2), "1000:65535", "80", "dns"])),
            ),
        ),
        "web>api SCTP/80, web>api UDP/81",
        "web>api TCP/81, web>api TCP/80, web>api UDP/80, web>api SCTP/81",
    ),
    Case(
        "every port but some",
        (ingress("ports", rule("Allow", "TCP", **destination(ports=["1:100"], notPorts=[81, "90:443"]))),),
        "web>api TCP/80",
        "web>api TCP/81, web>api TCP/443, web>api UDP/80",
    ),
    Case(
        "ports of the source",
        (
            ingress(
                "from",
                rule("Allow", "TCP", **source(ports=["1024:65535"])),
                rule("Allow", "UDP", **source(ports=["1:1023"])),
                rule("Allow", "SCTP", **source(notPorts=["1:1023"])),
            ),
        ),
        "web>api TCP/80, web>api SCTP/80",
        "web>api UDP/80",
    ),
    Case(
        "a port by its name is what each pod calls so",
        (
            ingress("http", rule("Allow", "TCP", **destination(ports=["http"])), selector="all()"),
            egress("to-dns", rule("Allow", "UDP", **destination(ports=["dns"])), selector="app == 'db'"),
        ),
        "web>api TCP/80, out>api TCP/80, web>db TCP/443",
        "web>api TCP/443, web>db TCP/80, out>web TCP/80, db>api UDP/80, web>api UDP/81",
    ),
    Case(
        "a port by its name on egress, among what is selected",
        (
            egress(
                "to",
                rule("Allow", "TCP", **destination(selector="app == 'api'", ports=["http"])),
                selector="app == 'web'",
            ),
        ),
        "web>api TCP/80",
        "web>api TCP/81, web>db TCP/443, web>out TCP/80",
    ),
    Case(
        "but not a port of this name",
        (ingress("not-http", rule("Allow", "TCP", **destination(notPorts=["http"])), selector="all()"),),
        "web>api TCP/81, web>api TCP/443, web>db TCP/80, out>web TCP/80",
        "web>api TCP/80, web>db TCP/443",
    ),
    Case(
        "networks, and all but some",
        (
            ingress("nets", rule("Allow", **source(nets=POD_NETS, notNets=["10.65.1.2/32", twin("10.65.1.2/32")]))),
            ingress("out", rule("Allow", **source(notNets=["0.0.0.0/1", "::/0"])), selector="app == 'db'"),
        ),
        "db>api TCP/80, web2>api UDP/80, out>db TCP/80 v4",
        "web>api TCP/80, out>api TCP/80, web>db TCP/80, out>db TCP/80 v6",
    ),
    Case(
        "networks of one family only say nothing of the other",
        (ingress("v4", rule("Allow", **source(nets=["10.65.0.0/16"])), rule("Allow", "TCP", ipVersion=6, **TO_80)),),
        "web>api TCP/80, web>api UDP/80 v4",
        "web>api UDP/80 v6, out>api TCP/80 v4",
    ),
    Case(
        "all that a selector does not select, in a namespace and everywhere",
        (
            ingress("not", rule("Allow", **source(notSelector="app == 'web'"))),
            everywhere("not", rule("Allow", **source(notSelector="app == 'web'")), selector="app == 'db'"),
        ),
        "db>api TCP/80, api>db TCP/80, api2>db TCP/80, out>db TCP/80",
        "web>api TCP/80, web2>api TCP/80, api2>api TCP/80, out>api TCP/80, web>db TCP/80, web2>db TCP/80",
    ),
    Case(
        "who is selected stays so where something else at its address is not",
        (
            of("GlobalNetworkSet", "near", labels={"zone": "near"}, nets=["10.65.1.0/24", twin("10.65.1.0/24")]),
            everywhere("both", rule("Allow", **source(selector="has(app)", notSelector="zone == 'near'"))),
            everywhere("only", rule("Allow", **source(notSelector="zone == 'near'")), selector="app == 'db'"),
        ),
        "web>api TCP/80, web2>api TCP/80, api>db TCP/80, out>db TCP/80",
        "out>api TCP/80, web>db TCP/80",
    ),
    Case(
        "what excepts networks of one family is about this family",
        (ingress("v4", rule("Allow", "TCP", **source(notNets=["10.65.1.2/32"])), rule("Allow", "UDP")),),
        "db>api TCP/80 v4, out>api TCP/80 v4, web>api UDP/80",
        "web>api TCP/80, db>api TCP/80 v6, out>api TCP/80 v6",
    ),
    Case(
        "of one order, the names with what follows them decide",
        (
            ingress("p", rule("Deny", "TCP"), order=10),
            ingress("p-1", rule("Allow", "TCP", **TO_80), order=10),
            ingress("p.1", rule("Allow", "TCP"), order=10),
        ),
        "web>api TCP/80, web>api TCP/81",
        "web>api UDP/80",
    ),
    Case(
        "a tier nobody made comes behind one nobody ordered",
        (
            of("Tier", "zz"),
            ingress("deny", rule("Deny", "TCP", **TO_80), rule("Pass"), tier="aa"),
            ingress("allow", rule("Allow", "TCP", **TO_80), rule("Pass"), tier="zz"),
        ),
        "web>api TCP/80, web>api TCP/81, web>api UDP/80",
    ),
    Case(
        "all() beside a namespaceSelector means workloads, and beside a serviceAccountSelector those that have one",
        (
            everywhere("ns", selector="app == 'api' && all()", namespaceSelector="env != 'prod'"),
            everywhere("sa", selector="all()", serviceAccountSelector="kind != 'api-account'"),
        ),
        "db>api TCP/80, out>db TCP/80",
        "web>api2 TCP/80, out>web TCP/80, out>api2 TCP/80",
    ),
    Case(
        "selected, and not, at once",
        (ingress("both", rule("Allow", **source(selector="has(app)", notSelector="side == 'back'"))),),
        "web>api TCP/80",
        "db>api TCP/80, web2>api TCP/80, out>api TCP/80",
    ),
    Case(
        "a selector in a namespace means this namespace",
        (ingress("own", rule("Allow", **source(selector="app == 'web'"))),),
        "web>api TCP/80",
        "web2>api TCP/80, db>api TCP/80, out>api TCP/80",
    ),
    Case(
        "by the namespace's labels",
        (
            ingress("prod", rule("Allow", **source(namespaceSelector="env == 'test'", selector="app == 'web'"))),
            ingress("any", rule("Allow", **source(namespaceSelector="all()")), selector="app == 'db'"),
        ),
        "web2>api TCP/80, web>db TCP/80, api2>db TCP/80",
        "web>api TCP/80, api2>api TCP/80, out>db TCP/80",
        {"red": {"env": "prod"}, "blue": {"env": "test"}},
    ),
    Case(
        "the namespace's labels changed",
        (
            ingress("prod", rule("Allow", **source(namespaceSelector="env == 'test'", selector="app == 'web'"))),
            ingress(
                "named",
                rule("Allow", **source(namespaceSelector="projectcalico.org/name == 'blue'")),
                selector="app == 'db'",
            ),
        ),
        "web>api TCP/80, api2>db TCP/80, web2>db TCP/80",
        "web2>api TCP/80, api>db TCP/80",
        {"red": {"env": "test"}, "blue": {}},
    ),
    Case(
        "a global policy is for all namespaces, or those it selects",
        (
            everywhere("all", rule("Allow", "TCP", **TO_80)),
            everywhere("some", rule("Allow", "TCP"), selector="app == 'web'", namespaceSelector="env == 'prod'"),
        ),
        "out>api TCP/80, out>api2 TCP/80, out>web TCP/80, out>web2 UDP/80",
        "out>api TCP/81, out>api2 UDP/80, out>web UDP/80",
    ),
    Case(
        "selectors of a global policy are about everybody",
        (everywhere("all", rule("Allow", **source(selector="app == 'web'"))),),
        "web>api TCP/80, web2>api TCP/80, web>api2 TCP/80, web2>api2 UDP/80",
        "db>api TCP/80, out>api2 TCP/80",
    ),
    Case(
        "every operator of selectors",
        (
            ingress("in", rule("Allow", "TCP", **source(selector="app in {'web', 'x'}")), selector="app == 'api'"),
            ingress(
                "has",
                rule("Allow", "UDP", **source(selector="has(side) && !(side == 'back')")),
                selector="app == 'api'",
            ),
            ingress("ends", rule("Allow", "SCTP", **source(selector="app ends with 'b' && app contains 'e'"))),
            ingress(
                "db1",
                rule("Allow", "TCP", **source(selector="app starts with 'ap' || app == 'none'")),
                selector="app not in {'api', 'web'}",
            ),
            ingress(
                "db2", rule("Allow", "UDP", **source(selector="!has(nothing) && app != 'web'")), selector="app == 'db'"
            ),
        ),
        "web>api TCP/80, web>api UDP/80, web>api SCTP/80, api>db TCP/80, api>db UDP/80",
        "db>api TCP/80, db>api UDP/80, db>api SCTP/80, web>db TCP/80, web>db UDP/80",
    ),
    Case(
        "service accounts by name and by label",
        (
            ingress("named", rule("Allow", "TCP", **source(serviceAccounts={"names": ["web-account"]}))),
            ingress("labelled", rule("Allow", "UDP", **source(serviceAccounts={"selector": "kind == 'web-account'"}))),
            of(
                "NetworkPolicy",
                "subject",
                "red",
                serviceAccountSelector="kind == 'web-account'",
                types=["Ingress"],
                ingress=[rule("Allow", "TCP", **source(serviceAccounts={"names": ["api-account"]}))],
            ),
            everywhere(
                "teams",
                rule("Allow", "TCP", **source(serviceAccounts={"selector": "team == 'blue'"})),
                selector="app == 'db'",
            ),
        ),
        "web>api TCP/80, web>api UDP/80, api>web TCP/80, api2>db TCP/80",
        "db>api TCP/80, api2>api TCP/80, out>api UDP/80, db>web TCP/80, api2>web TCP/80, web>db TCP/80",
    ),
    Case(
        "services: their endpoints and ports",
        (
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "front-1", "namespace": "red", "labels": {"kubernetes.io/service-name": "front"}},
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.65.2.3"]},
                    {"addresses": ["10.65.2.5"]},
                    {"addresses": ["10.65.1.4"], "conditions": {"ready": False}},
                ],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "front-6", "namespace": "red", "labels": {"kubernetes.io/service-name": "front"}},
                "addressType": "IPv6",
                "endpoints": [{"addresses": [twin("10.65.2.3")]}],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            },
            egress("to-service", rule("Allow", "TCP", **destination(services={"name": "front"}))),
            ingress(
                "from-service",
                rule("Allow", **source(services={"name": "front", "namespace": "red"})),
                selector="app == 'db'",
            ),
        ),
        "web>api TCP/80, web>api2 TCP/80 v4, api>db TCP/443, api>db UDP/80, api2>db TCP/80 v4",
        "web>api TCP/81, web>api UDP/80, web>api2 TCP/80 v6, web>db TCP/80, api2>db TCP/80 v6, web2>db TCP/80",
    ),
    Case(
        "services: endpoints that are not ready count",
        (
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "back-1", "namespace": "red", "labels": {"kubernetes.io/service-name": "back"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.65.1.4"], "conditions": {"ready": False}}],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            },
            ingress(
                "not-from-service",
                rule("Deny", **source(services={"name": "back", "namespace": "red"})),
                rule("Allow"),
                selector="app == 'api'",
            ),
        ),
        "db>api TCP/80 v6, web>api TCP/80",
        "db>api TCP/80 v4",
    ),
    Case(
        "sets of networks by their labels",
        (
            of("GlobalNetworkSet", "partners", labels={"zone": "outside"}, nets=OUT_NETS),
            of("NetworkSet", "near", "red", labels={"zone": "near"}, nets=["10.65.1.0/24", twin("10.65.1.0/24")]),
            of("NetworkSet", "far", "blue", labels={"zone": "far"}, nets=OUT_NETS),
            # a namespaced selector sees the sets of its namespace, and global ones where it asks for them
            ingress("near", rule("Allow", "TCP", **source(selector="zone == 'near'"))),
            ingress("far", rule("Allow", "UDP", **source(selector="has(zone)"))),
            ingress(
                "partners",
                rule("Allow", "TCP", **source(selector="zone == 'outside'", namespaceSelector="global()")),
                rule("Allow", "UDP", **source(selector="zone == 'far'", namespaceSelector="all()")),
                selector="app == 'db'",
            ),
            everywhere("open", rule("Allow", **source(selector="zone == 'outside'")), selector="app == 'web'"),
        ),
        "web>api TCP/80, web2>api TCP/80, web2>api UDP/80, out>db TCP/80, out>db UDP/80, out>web TCP/80, out>web2 UDP/80",
        "out>api TCP/80, out>api UDP/80, api2>api TCP/80, web>db TCP/80, api2>db UDP/80, db>web TCP/80",
    ),
    Case(
        "a set of networks changed",
        (
            of("NetworkSet", "near", "red", labels={"zone": "near"}, nets=["10.65.1.4/32", *OUT_NETS]),
            ingress("near", rule("Allow", "TCP", **source(selector="zone == 'near' || side == 'front'"))),
        ),
        "db>api TCP/80 v4, web>api TCP/80, out>api TCP/80",
        "db>api TCP/80 v6, web2>api TCP/80",
    ),
    Case(
        "labels inherited from profiles are selected like a pod's own",
        (
            of("Profile", "kns.red", ingress=[ALLOW], egress=[ALLOW], labelsToApply={"tenant": "r", "app": "shadowed"}),
            of("Profile", "kns.blue", ingress=[ALLOW], egress=[ALLOW], labelsToApply={"tenant": "b"}),
            everywhere(
                "tenants", rule("Allow", **source(selector="tenant == 'b'")), selector="tenant == 'r' && app == 'api'"
            ),
            everywhere("shadowed", selector="app == 'shadowed'"),
        ),
        "web2>api TCP/80, api2>api TCP/80, out>web TCP/80",
        "web>api TCP/80, out>api TCP/80",
    ),
    Case(
        "staged policies decide nothing",
        (
            of("StagedNetworkPolicy", "later", "red", selector="all()", types=["Ingress", "Egress"]),
            of("StagedGlobalNetworkPolicy", "later", selector="all()", types=["Ingress"]),
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "StagedKubernetesNetworkPolicy",
                "metadata": {"name": "later", "namespace": "red"},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
            },
        ),
        f"{EVERYBODY_80}, api>out UDP/80",
    ),
    Case(
        "what only a proxy could judge allows nothing",
        (ingress("http", rule("Allow", "TCP", http={"methods": ["GET"]}), rule("Allow", "UDP")),),
        "web>api UDP/80",
        "web>api TCP/80",
    ),
    Case(
        "both directions are asked, at each pod",
        (
            egress("out", rule("Allow", "TCP", **destination(selector="app == 'db'")), rule("Allow", "UDP")),
            ingress("in", rule("Allow", "TCP", **source(selector="side == 'front'")), selector="side == 'back'"),
        ),
        "web>db TCP/443",
        "web>db UDP/80, web>api TCP/80, web>out TCP/80, api>db TCP/80, db>api TCP/80",
    ),
]
