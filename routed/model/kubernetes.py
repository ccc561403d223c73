"""The Kubernetes kinds that matter to a node: services and their endpoints, namespaces, pods, NetworkPolicy.

Invariants: what the API server would default is defaulted here, since files hold what people wrote (`protocol`,
`policyTypes`, empty lists that mean absent ones); other fields of these kinds are Kubernetes' own and not judged,
but for NetworkPolicy, where a field left out lets traffic through. A NetworkPolicy of Kubernetes' is the kind
KubernetesNetworkPolicy in keys, as in Calico. What Calico's kube-controllers write from a policy and a Namespace is
made here, for all who need it: `calico_policy`, `namespace_profile`, and both by `calico_form`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from routed.errors import ConfigError
from routed.model.fields import Fields, as_address, as_choice, as_network, as_text, shown
from routed.model.head import API_VERSION, Head, Kind, check_label_name, kind_shape, read_labels
from routed.model.policies import NetworkPolicy, PolicyType, Port, Profile, as_port, as_protocol
from routed.model.resources import Cidr, JsonObject, JsonValue, Resource, ResourceKey
from routed.model.selector import All, And, Equal, Has, In, Not, NotIn, Selector
from routed.net.prefixes import is_part
from routed.values import dataclass

POLICY_PREFIX = "knp.default."
"""What Calico's kube-controllers puts before the name of a Kubernetes policy."""
POLICY_ORDER = 1000
NAMESPACE_PROFILE = "kns."
"""What they put before the name of a namespace: a Profile that every endpoint in it has."""
ACCOUNT_PROFILE = "ksa."
"""What they put before NAMESPACE.NAME of a service account: a Profile without rules."""
NAMESPACE_LABELS = "pcns."
"""What they put before its labels, which the Profile gives to the endpoints."""
EVERYTHING = All()
SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    protocol: int
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Resource):
    kind: ClassVar[str] = "Service"

    type: str = "ClusterIP"
    cluster_ips: tuple[bytes, ...] = ()
    """Packed; empty for a headless service."""
    external_ips: tuple[bytes, ...] = ()
    load_balancer_ips: tuple[bytes, ...] = ()
    """What status.loadBalancer says it has."""
    external_traffic_local: bool = False
    """externalTrafficPolicy is Local: only nodes with an endpoint of it may attract traffic from outside."""
    internal_traffic_local: bool = False
    ports: tuple[ServicePort, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    addresses: tuple[bytes, ...]
    """Packed; one host, so usually one address."""
    ready: bool = True
    """Not said counts as ready."""
    node_name: str = ""


@dataclass(frozen=True, slots=True)
class EndpointPort:
    name: str
    protocol: int
    port: int | None
    """None: all ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice(Resource):
    kind: ClassVar[str] = "EndpointSlice"

    service: str = ""
    """The Service (of its namespace) it belongs to."""
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace(Resource):
    """Its labels are what namespace selectors select."""

    kind: ClassVar[str] = "Namespace"


@dataclass(frozen=True, slots=True)
class ContainerPort:
    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod(Resource):
    kind: ClassVar[str] = "Pod"

    node_name: str = ""
    service_account: str = "default"
    host_network: bool = False
    phase: str = ""
    pod_ips: tuple[bytes, ...] = ()
    ports: tuple[ContainerPort, ...] = ()


@dataclass(frozen=True, slots=True)
class IPBlock:
    cidr: Cidr
    excepted: tuple[Cidr, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyPeer:
    """Pods (by one or both selectors), or addresses. A selector that is None was not given; `All()` selects all."""

    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IPBlock | None = None


@dataclass(frozen=True, slots=True)
class PolicyPort:
    protocol: int
    port: Port | None = None
    """None: every port of the protocol."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    peers: tuple[PolicyPeer, ...] = ()
    """Empty: anybody."""
    ports: tuple[PolicyPort, ...] = ()
    """Empty: anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesNetworkPolicy(Resource):
    kind: ClassVar[str] = "KubernetesNetworkPolicy"

    pod_selector: Selector = EVERYTHING
    types: frozenset[PolicyType] = frozenset((PolicyType.INGRESS,))
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()


# --- readers -------------------------------------------------------------------------------------------------------


def label_selector(fields: Fields) -> Selector:
    """A Kubernetes label selector. Nothing in it selects everything."""
    terms: list[Selector] = [Equal(label, value) for label, value in read_labels(fields, "matchLabels").items()]
    for entry in fields.objects("matchExpressions"):
        label, operator = entry.required_text("key"), entry.required_text("operator")
        values = [_label_value(value, path) for path, value in entry.array("values")]
        check_label_name(label, entry.at("key"))
        if operator in ("In", "NotIn"):
            if not values:
                raise entry.error("values", f"is required with operator {operator}")
            terms.append((In if operator == "In" else NotIn)(label, frozenset(values)))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                raise entry.error("values", f"must be left out with operator {operator}")
            terms.append(Has(label) if operator == "Exists" else Not(Has(label)))
        else:
            raise entry.error("operator", f"must be In, NotIn, Exists or DoesNotExist, not {shown(operator)}")
    return selector_of_terms(terms)


def _label_value(value: JsonValue, path: str) -> str:
    """The API has always had empty ones, and before v1.25 took any text, and keeps what it has."""
    if not isinstance(value, str):
        raise ConfigError(path, f"must be text, not {shown(value)}")
    if "'" in value and '"' in value:
        raise ConfigError(
            path, f"must not hold both kinds of quotes, which no selector of Calico's can say: {shown(value)}"
        )
    return value


def selector_of_terms(terms: list[Selector]) -> Selector:
    """What all of them select; everything where there is none."""
    return All() if not terms else terms[0] if len(terms) == 1 else And(tuple(terms))


def _protocol(entry: Fields) -> int:
    return as_protocol(entry.values["protocol"] if entry.has("protocol") else "TCP", entry.at("protocol"))


def _addresses(fields: Fields, name: str) -> tuple[bytes, ...]:
    return tuple(as_address(as_text(value, path), path) for path, value in fields.array(name))


def _parse_service(head: Head) -> Service:
    spec = head.spec
    own = spec.text("clusterIP")
    cluster = tuple(
        as_address(text, spec.at("clusterIPs"))
        for text in spec.texts("clusterIPs") or ((own,) if own else ())
        if text != "None"
    )
    balancer = head.status.object("loadBalancer")
    ingress = list(balancer.objects("ingress")) if balancer is not None else []
    return Service(
        **head.common,
        type=spec.text("type") or "ClusterIP",
        cluster_ips=cluster,
        external_ips=_addresses(spec, "externalIPs"),
        load_balancer_ips=tuple(as_address(one.text("ip"), one.at("ip")) for one in ingress if one.has("ip")),
        external_traffic_local=_local(spec, "externalTrafficPolicy"),
        internal_traffic_local=_local(spec, "internalTrafficPolicy"),
        ports=tuple(
            ServicePort(
                name=entry.text("name"),
                protocol=_protocol(entry),
                port=entry.integer("port", 1, 65535) or 0,
                node_port=entry.integer("nodePort", 0, 65535) or 0,
            )
            for entry in spec.objects("ports")
        ),
    )


def _local(spec: Fields, name: str) -> bool:
    text = spec.text(name)
    if text not in ("", "Cluster", "Local"):
        raise spec.error(name, f"must be Cluster or Local, not {shown(text)}")
    return text == "Local"


def _parse_endpoint_slice(head: Head) -> EndpointSlice:
    top = head.top
    kind = top.required_text("addressType")
    if kind not in ("IPv4", "IPv6", "FQDN"):
        raise top.error("addressType", f"must be one of IPv4, IPv6 or FQDN, not {shown(kind)}")
    endpoints: list[Endpoint] = []
    for entry in top.objects("endpoints") if kind != "FQDN" else ():
        conditions = entry.object("conditions")
        ready = conditions.boolean("ready") if conditions is not None else None
        endpoints.append(Endpoint(_addresses(entry, "addresses"), ready is not False, entry.text("nodeName")))
    return EndpointSlice(
        **head.common,
        service=head.labels.get(SERVICE_LABEL, ""),
        address_type=kind,
        endpoints=tuple(endpoints),
        ports=tuple(
            EndpointPort(entry.text("name"), _protocol(entry), entry.integer("port", 0, 65535))
            for entry in top.objects("ports")
        ),
    )


def _parse_namespace(head: Head) -> Namespace:
    return Namespace(**head.common)


def _parse_pod(head: Head) -> Pod:
    spec, status = head.spec, head.status
    ports: list[ContainerPort] = []
    # Sidecars are init containers that go on running, and their ports are the pod's as well.
    for name in ("containers", "initContainers"):
        for container in spec.objects(name):
            for entry in container.objects("ports"):
                number = entry.integer("containerPort", 1, 65535)
                if number is None:
                    raise entry.error("containerPort", "is required")
                ports.append(ContainerPort(entry.text("name"), _protocol(entry), number))
    addresses = tuple(as_address(one.text("ip"), one.at("ip")) for one in status.objects("podIPs") if one.has("ip"))
    single = status.address("podIP")
    return Pod(
        **head.common,
        node_name=spec.text("nodeName"),
        service_account=spec.text("serviceAccountName") or "default",
        host_network=spec.boolean("hostNetwork") or False,
        phase=status.text("phase"),
        pod_ips=addresses or ((single,) if single is not None else ()),
        ports=tuple(ports),
    )


def _parse_policy(head: Head) -> KubernetesNetworkPolicy:
    spec = head.spec
    selector = spec.object("podSelector")
    ingress = tuple(_parse_rule(rule, "from") for rule in spec.objects("ingress"))
    egress = tuple(_parse_rule(rule, "to") for rule in spec.objects("egress"))
    types = frozenset(as_choice(value, path, PolicyType) for path, value in spec.array("policyTypes"))
    if not types:
        types = frozenset(PolicyType) if egress else frozenset((PolicyType.INGRESS,))
    return KubernetesNetworkPolicy(
        **head.common,
        pod_selector=All() if selector is None else label_selector(selector),
        types=types,
        # rules of a direction that is not listed have no effect
        ingress=ingress if PolicyType.INGRESS in types else (),
        egress=egress if PolicyType.EGRESS in types else (),
    )


def _parse_rule(rule: Fields, peers: str) -> PolicyRule:
    return PolicyRule(
        tuple(_parse_peer(entry) for entry in rule.objects(peers)),
        tuple(_parse_port(entry) for entry in rule.objects("ports")),
    )


def _parse_peer(entry: Fields) -> PolicyPeer:
    pods, namespaces, block = entry.object("podSelector"), entry.object("namespaceSelector"), entry.object("ipBlock")
    if block is not None:
        if pods is not None or namespaces is not None:
            raise entry.error("ipBlock", "must stand alone, without podSelector and namespaceSelector")
        cidr = as_network(block.required_text("cidr"), block.at("cidr"))
        excepted = tuple(as_network(as_text(value, path), path) for path, value in block.array("except"))
        for (path, _), one in zip(block.array("except"), excepted, strict=True):
            if one.family is not cidr.family or not is_part(one.prefix, cidr.prefix):
                raise ConfigError(path, f"must lie inside {cidr} and be smaller")
        return PolicyPeer(ip_block=IPBlock(cidr, excepted))
    if pods is None and namespaces is None:
        raise ConfigError(entry.path, "must have a podSelector, a namespaceSelector or an ipBlock")
    return PolicyPeer(
        None if pods is None else label_selector(pods), None if namespaces is None else label_selector(namespaces)
    )


def _parse_port(entry: Fields) -> PolicyPort:
    value = entry.values.get("port")
    end = entry.integer("endPort", 1, 65535)
    if isinstance(value, int) and end is not None:
        if end < value:
            raise entry.error("endPort", f"must not be before port {value}")
        return PolicyPort(_protocol(entry), as_port(f"{value}:{end}", entry.at("port")))
    if end is not None:
        raise entry.error("endPort", "needs a port that is a number")
    return PolicyPort(_protocol(entry), None if value is None else as_port(value, entry.at("port")))


# --- as Calico's -------------------------------------------------------------------------------------------------

_POD = "projectcalico.org/orchestrator == 'k8s'"


def calico_policy(policy: KubernetesNetworkPolicy) -> JsonObject:
    """The manifest of the Calico NetworkPolicy that means the same, as Calico's kube-controllers name and order it."""
    spec: JsonObject = {
        "tier": "default",
        "order": POLICY_ORDER,
        "selector": _of_pods(policy.pod_selector),
        "types": [str(one) for one in sorted(policy.types)],
        "ingress": _rules(policy.ingress, "source"),
        "egress": _rules(policy.egress, "destination"),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "NetworkPolicy",
        "metadata": {"name": POLICY_PREFIX + policy.name, "namespace": policy.namespace},
        "spec": spec,
    }


def namespace_labels(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that endpoints of a namespace get from its profile. The API server adds the name; files lack it."""
    implied = {"kubernetes.io/metadata.name": name, "projectcalico.org/name": name}
    return {NAMESPACE_LABELS + label: text for label, text in {**labels, **implied}.items()}


def namespace_profile(name: str, labels: Mapping[str, str]) -> JsonObject:
    """The manifest of the Profile that a namespace is for Calico: everything is allowed, and its labels are applied."""
    applied: JsonObject = dict(namespace_labels(name, labels))
    return {
        "apiVersion": API_VERSION,
        "kind": Profile.kind,
        "metadata": {"name": NAMESPACE_PROFILE + name},
        "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}], "labelsToApply": applied},
    }


def calico_form(resource: Resource) -> JsonObject | None:
    """The manifest of what Calico's kube-controllers write from a resource of Kubernetes'; None where they write nothing."""
    match resource:
        case KubernetesNetworkPolicy():
            return calico_policy(resource)
        case Namespace():
            return namespace_profile(resource.name, resource.labels)
        case _:
            return None


def calico_key(key: ResourceKey) -> ResourceKey:
    """Where that is kept; the key itself where they write nothing."""
    match key.kind:
        case KubernetesNetworkPolicy.kind:
            return ResourceKey(NetworkPolicy.kind, POLICY_PREFIX + key.name, key.namespace)
        case Namespace.kind:
            return ResourceKey(Profile.kind, NAMESPACE_PROFILE + key.name)
        case _:
            return key


def other_keys(key: ResourceKey) -> tuple[ResourceKey, ...]:
    """Where else what a person calls `key` may be: a manifest of Kubernetes says `kind: NetworkPolicy`, too."""
    if key.kind == NetworkPolicy.kind:
        own = ResourceKey(KubernetesNetworkPolicy.kind, key.name, key.namespace)
        return own, calico_key(own)
    derived = calico_key(key)
    return () if derived == key else (derived,)


def _of_pods(selector: Selector) -> str:
    return _POD if isinstance(selector, All) else f"{_POD} && {selector}"


def _rules(rules: tuple[PolicyRule, ...], side: str) -> list[JsonValue]:
    """A rule for every peer and protocol: a rule of Calico's has one of each."""
    found: list[JsonValue] = []
    for rule in rules:
        for peer in rule.peers or (None,):
            for protocol, ports in _by_protocol(rule.ports):
                made: JsonObject = {"action": "Allow"}
                entity = _entity(peer)
                if protocol is not None:
                    made["protocol"] = protocol
                if ports and side == "destination":
                    entity["ports"] = ports
                elif ports:
                    made["destination"] = {"ports": ports}
                if entity:
                    made[side] = entity
                found.append(made)
    return found


_NAMES = {6: "TCP", 17: "UDP", 132: "SCTP"}


def _by_protocol(ports: tuple[PolicyPort, ...]) -> list[tuple[JsonValue, list[JsonValue]]]:
    if not ports:
        return [(None, [])]
    whole = {port.protocol for port in ports if port.port is None}
    found: dict[int, list[JsonValue]] = {}
    for port in ports:
        listed = found.setdefault(port.protocol, [])
        if port.protocol not in whole:
            text = str(port.port)
            listed.append(int(text) if text.isdigit() else text)
    return [(_NAMES.get(protocol, protocol), listed) for protocol, listed in found.items()]


def _entity(peer: PolicyPeer | None) -> JsonObject:
    if peer is None:
        return {}
    if peer.ip_block is not None:
        made: JsonObject = {"nets": [str(peer.ip_block.cidr)]}
        if peer.ip_block.excepted:
            made["notNets"] = [str(one) for one in peer.ip_block.excepted]
        return made
    made = {"selector": _of_pods(peer.pod_selector or All())}
    if peer.namespace_selector is not None:
        made["namespaceSelector"] = str(peer.namespace_selector)
    return made


_CLOSED_LABELS = "!{ matchExpressions !{ key operator values } matchLabels }"
_PORTS = "ports !{ endPort port protocol }"


def _peers(side: str) -> str:
    peer = f"ipBlock !{{ cidr except }} namespaceSelector {_CLOSED_LABELS} podSelector {_CLOSED_LABELS}"
    return f"!{{ {side} !{{ {peer} }} {_PORTS} }}"


KINDS = (
    Kind(
        name=KubernetesNetworkPolicy.kind,
        plural="kubernetesnetworkpolicies",
        word="NetworkPolicy",
        versions=("networking.k8s.io/v1",),
        namespaced=True,
        short=("kubernetesnetworkpolicy", "knp"),
        read=_parse_policy,
        shape=kind_shape(f"""
            spec !{{ egress {_peers("to")} ingress {_peers("from")} podSelector {_CLOSED_LABELS} policyTypes }} status
        """),
    ),
    Kind(
        name=Service.kind,
        plural="kubernetesservices",
        versions=("v1",),
        namespaced=True,
        short=("svc", "services"),
        read=_parse_service,
        shape=kind_shape("spec status"),
    ),
    Kind(
        name=EndpointSlice.kind,
        plural="kubernetesendpointslices",
        versions=("discovery.k8s.io/v1",),
        namespaced=True,
        short=("endpointslices",),
        read=_parse_endpoint_slice,
        shape=kind_shape("""
            addressType endpoints { addresses conditions deprecatedTopology hints hostname nodeName targetRef zone }
            ports { appProtocol name port protocol }
        """),
    ),
    Kind(
        name=Namespace.kind,
        plural="kubernetesnamespaces",
        versions=("v1",),
        short=("ns", "namespaces"),
        read=_parse_namespace,
        shape=kind_shape("spec status"),
    ),
    Kind(
        name=Pod.kind,
        plural="kubernetespods",
        versions=("v1",),
        namespaced=True,
        short=("po", "pods"),
        read=_parse_pod,
        shape=kind_shape("spec status"),
    ),
)
