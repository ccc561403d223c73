"""Any clusters and policies in Calico's own grammar, for Hypothesis: manifests, and the probes to try on them.

Who lives where is the same in every world (`PLACES`), so that packets can be tried in one laboratory; who they are is
drawn: namespace, labels, service account, named ports, profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.policy.calico_specification import NUMBERS, Cluster, Probe
from tests.policy.nodes import twin, workload
from tests.policy.specification import Endpoint

Manifest = dict[str, Any]

NODES = {"n1": "192.0.2.1", "n2": "192.0.2.2"}
PLACES = {"n1": ("10.65.1.2", "10.65.1.4", "10.65.1.6"), "n2": ("10.65.2.3", "10.65.2.5")}
OUTSIDE = "192.0.2.7"
PODS = tuple((node, address) for node, addresses in PLACES.items() for address in addresses)
EVERYBODY = (*(address for _, address in PODS), *NODES.values(), OUTSIDE)
NAMESPACES = ("red", "blue")
PORTS = (80, 81, 443)
FAILSAFE_IN, FAILSAFE_OUT = ((6, 443),), ((17, 81),)

# ---- selectors

KEYS, VALUES = ("app", "tier", "example.org/zone"), ("a", "b", "ab")
FORMS = (
    "{key}=={quote}{one}{quote}",
    "{key} == {quote}{one}{quote}",
    "{key}\t!={quote}{one}{quote}",
    "{key} in {{{quote}{one}{quote},{quote}{other}{quote}}}",
    "{key} in{{ {quote}{one}{quote} }}",
    "{key} not in {{{quote}{one}{quote}}}",
    "{key} notin{{{quote}{one}{quote}, {quote}{other}{quote}}}",
    "{key} contains {quote}{one}{quote}",
    "{key} starts with {quote}{one}{quote}",
    "{key} endswith{quote}{one}{quote}",
    "has({key})",
    "has( {key} )",
    "all()",
)
COMPARISONS = st.builds(
    lambda form, key, one, other, quote: form.format(key=key, one=one, other=other, quote=quote),
    st.sampled_from(FORMS), st.sampled_from(KEYS), st.sampled_from(VALUES), st.sampled_from(VALUES), st.sampled_from("'\""),
)  # fmt: skip
JOINS = (
    "{0}",
    "{0}",
    "{0}",
    "!{0}",
    "!({0})",
    "{0} && {1}",
    "{0}||{1}",
    "!({0} || {1}) && {2}",
    "{0} || {1}&&{2}",
    "!!{0} && ({1}||{2})",
)
SELECTORS = st.builds(
    lambda join, *each: join.format(*each), st.sampled_from(JOINS), COMPARISONS, COMPARISONS, COMPARISONS
)
NAMESPACES_SELECTED = (
    COMPARISONS
    | st.sampled_from(["all()", "global()", "!all()"])
    | st.sampled_from(NAMESPACES).map(lambda name: f"projectcalico.org/name == '{name}'")
)
ACCOUNTS = ("one", "two")
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)

# ---- rules

NETS = (
    *("10.65.0.0/16", "10.65.1.0/24", "10.65.1.2/32", "192.0.2.0/24", "192.0.2.7/32", "0.0.0.0/0", "0.0.0.0/1"),
    *map(twin, ("10.65.0.0/16", "10.65.1.0/24", "10.65.1.2/32", "192.0.2.7/32")),
    "::/0",
)
PORT_NAMES = ("web", "dns")
MANY_PORTS = [*range(1, 60, 2), 81, 443, "8000:65535", "web"]
RULE_PORTS = st.just(MANY_PORTS) | st.lists(
    st.sampled_from([*PORTS, "80:81", "1024:65535", "1:1023", "443", *PORT_NAMES]), min_size=1, max_size=3, unique=True
)
SOME_NETS = st.lists(st.sampled_from(NETS), min_size=1, max_size=3, unique=True)
CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "selector": SELECTORS,
    "notSelector": SELECTORS,
    "namespaceSelector": NAMESPACES_SELECTED,
    "serviceAccounts": st.fixed_dictionaries(
        {}, optional={"names": st.lists(st.sampled_from(ACCOUNTS), min_size=1, max_size=2), "selector": COMPARISONS}
    ),
    "nets": SOME_NETS,
    "notNets": SOME_NETS,
    "ports": RULE_PORTS,
    "notPorts": RULE_PORTS,
}
CONDITION = st.one_of(*(st.tuples(st.just(name), values) for name, values in CONDITIONS.items()))
SIDED = st.tuples(st.sampled_from(["source", "destination"]), CONDITION)
ICMP = st.fixed_dictionaries({"type": st.sampled_from([8, 13, 128, 200])}, optional={"code": st.integers(0, 1)})
PROTOCOLS = (None, None, "TCP", "TCP", "TCP", "UDP", 17, "SCTP", "132", "ICMP", "ICMPv6")
WITH_PORTS = ("TCP", "UDP", 17, "SCTP", "132")
ACTIONS = ("Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log")


def _rule(
    action: str,
    protocol: str | int | None,
    other: tuple[str, Any],
    sided: Sequence[tuple[str, tuple[str, Any]]],
) -> Manifest:
    """A rule of these conditions, less those that would contradict its protocol or version."""
    made: Manifest = {"action": action}
    if protocol is not None:
        made["protocol"] = protocol
    name, value = other
    allowed = {
        "nothing": False,
        "ipVersion": (protocol, value) not in (("ICMP", 6), ("ICMPv6", 4)),
        "notProtocol": True,
        "icmp": protocol in ("ICMP", "ICMPv6"),
        "notICMP": protocol in ("ICMP", "ICMPv6"),
    }
    if allowed[name]:
        made[name] = value
    for side, (condition, wanted) in sided:
        if condition in ("ports", "notPorts") and protocol not in WITH_PORTS:
            continue
        if condition in ("nets", "notNets") and "ipVersion" in made:
            wanted = [net for net in wanted if (":" in net) == (made["ipVersion"] == 6)]
        if wanted:
            made.setdefault(side, {})[condition] = wanted
    return made


OTHER = st.one_of(
    st.just(("nothing", None)),
    st.just(("nothing", None)),
    st.tuples(st.just("ipVersion"), st.sampled_from([4, 6])),
    st.tuples(st.just("notProtocol"), st.sampled_from(["TCP", "UDP", "ICMP", 6])),
    st.tuples(st.sampled_from(["icmp", "notICMP"]), ICMP),
)


def _rules(actions: Sequence[str]) -> st.SearchStrategy[Manifest]:
    return st.builds(_rule, st.sampled_from(actions), st.sampled_from(PROTOCOLS), OTHER, st.lists(SIDED, max_size=3))


RULES = st.lists(_rules(ACTIONS), max_size=3)
PROFILE_RULES = st.lists(_rules([each for each in ACTIONS if each != "Pass"]), max_size=1) | st.just(
    [{"action": "Allow"}]
)

# ---- resources

TIERS = ("default", "default", "default", "first", "last-tier", "nobody-s")
NAMES = ("p", "p-1", "p.a", "q")
"""Ties are broken by name: these sort differently with and without what stands behind them."""
KINDS = (*NAMESPACES, *NAMESPACES, "", "", "applyOnForward", "preDNAT", "doNotTrack")
"""A policy's namespace, or what kind of global one it is."""


def _made(kind: str, metadata: Manifest, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": metadata,
        "spec": {name: value for name, value in spec.items() if value is not None},
    }


def _policy(kind: str, tier: str, name: str, types: Any, ingress: Any, egress: Any, spec: Manifest) -> Manifest:
    metadata: Manifest = {"name": name if tier == "default" else f"{tier}.{name}"}
    if kind == "preDNAT":
        types, egress = ["Ingress"], []
    spec = {"tier": tier, "types": types, "ingress": ingress or None, "egress": egress or None, **spec}
    if kind in NAMESPACES:
        metadata["namespace"] = kind
        spec.pop("namespaceSelector", None)
        return _made("NetworkPolicy", metadata, spec)
    if kind:
        spec |= {kind: True, "applyOnForward": True}
    return _made("GlobalNetworkPolicy", metadata, spec)


POLICIES = st.builds(
    _policy,
    st.sampled_from(KINDS),
    st.sampled_from(TIERS),
    st.sampled_from(NAMES),
    st.sampled_from([None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
    RULES,
    RULES,
    st.fixed_dictionaries(
        {"order": st.sampled_from([None, None, 10, 10, 20.5])},
        optional={"selector": SELECTORS, "serviceAccountSelector": COMPARISONS, "namespaceSelector": COMPARISONS},
    ),
)

PROFILES = (*(f"kns.{namespace}" for namespace in NAMESPACES), "extra")
ACCOUNT_PROFILES = tuple(f"ksa.{namespace}.{account}" for namespace in NAMESPACES for account in ACCOUNTS)


def _profile(name: str, labels: dict[str, str], own: dict[str, str], ingress: Any, egress: Any) -> Manifest:
    prefix = {"kns": "pcns.", "ksa": "pcsa."}.get(name[:3], "")
    applied = {prefix + key: value for key, value in labels.items()} | own
    if name.startswith("kns."):
        applied["pcns.projectcalico.org/name"] = name.removeprefix("kns.")
    rules = {} if name.startswith("ksa.") else {"ingress": ingress, "egress": egress}
    return _made("Profile", {"name": name}, {"labelsToApply": applied, **rules})


OWN = st.just({}) | LABELS
NOTHING: st.SearchStrategy[Any] = st.just([])
ALL_PROFILES = st.tuples(
    *(st.builds(_profile, st.just(name), LABELS, OWN, PROFILE_RULES, PROFILE_RULES) for name in PROFILES),
    *(st.builds(_profile, st.just(name), LABELS, st.just({}), NOTHING, NOTHING) for name in ACCOUNT_PROFILES),
)


def _workload(
    node: str,
    address: str,
    interface: str,
    namespace: str,
    labels: Any,
    ports: Any,
    account: str,
    more: Any,
    upside: bool,
) -> Manifest:
    name = f"pod-{address.rpartition('.')[2]}"
    pod = Endpoint("pod", name, namespace, labels, node, (address, twin(address)), tuple(ports))
    made: Any = dict(workload(pod, interface).manifest)
    profiles = [f"kns.{namespace}", *([f"ksa.{namespace}.{account}"] if account else []), *more]
    made["spec"] |= {"profiles": profiles[::-1] if upside else profiles}
    if account:
        made["spec"]["serviceAccountName"] = account
    return made


def _workloads(interfaces: Callable[[str], str]) -> st.SearchStrategy[Any]:
    ports = st.lists(
        st.tuples(st.sampled_from(PORT_NAMES), st.sampled_from(["TCP", "UDP"]), st.sampled_from(PORTS)), max_size=2
    )
    more = st.sampled_from([[], [], [], ["extra"], ["lacking"], ["projectcalico-default-allow"]])
    return st.tuples(
        *(
            st.builds(
                _workload, st.just(node), st.just(address), st.just(interfaces(address)), st.sampled_from(NAMESPACES),
                LABELS, ports, st.sampled_from(["", *ACCOUNTS]), more, st.sampled_from([False, False, False, True]),
            )
            for node, address in PODS
        )
    )  # fmt: skip


def _set(namespace: str, labels: Any, nets: Any) -> Manifest:
    metadata = {"name": "set", "labels": labels, **({"namespace": namespace} if namespace else {})}
    return _made("NetworkSet" if namespace else "GlobalNetworkSet", metadata, {"nets": nets})


SETS = st.lists(st.builds(_set, st.sampled_from(["", "", *NAMESPACES]), LABELS, SOME_NETS), max_size=2)


def _host(node: str, interface: str, labels: Any, profiles: Any, ports: Any) -> Manifest:
    own = [NODES[node], twin(NODES[node])]
    spec = {"node": node, "interfaceName": interface, "expectedIPs": own, "profiles": profiles, "ports": ports}
    return _made("HostEndpoint", {"name": f"on-{node}-{interface.strip('*')}x", "labels": labels}, spec)


HOSTS = st.lists(
    st.builds(
        _host,
        st.sampled_from(list(NODES)),
        st.sampled_from(["eth0", "*"]),
        LABELS,
        st.sampled_from([[], ["extra"], ["projectcalico-default-allow"]]),
        st.sampled_from([[], [{"name": "web", "protocol": "TCP", "port": 81}]]),
    ),
    max_size=2,
)


def _tier(name: str, action: str, order: float | None) -> Manifest:
    return _made("Tier", {"name": name}, {"defaultAction": action, "order": order})


SOME_TIERS = st.tuples(
    *(
        st.none()
        | st.builds(_tier, st.just(name), st.sampled_from(["Deny", "Pass"]), st.sampled_from([None, 5, 2_000_000]))
        for name in ("first", "last-tier")
    )
)


def clusters(interfaces: Callable[[str], str]) -> st.SearchStrategy[Cluster]:
    """`interfaces`: of the pod at an address."""

    def made(*parts: Sequence[Manifest | None]) -> Cluster:
        found = {
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]): each
            for part in parts
            for each in part
            if each is not None
        }
        addresses = {node: (address, twin(address)) for node, address in NODES.items()}
        return Cluster(list(found.values()), addresses, FAILSAFE_IN, FAILSAFE_OUT)

    some = st.lists(POLICIES, min_size=1, max_size=5)
    return st.builds(made, _workloads(interfaces), ALL_PROFILES, SETS, HOSTS, SOME_TIERS, some)


def _probe(
    pair: tuple[str, str], ipv6: bool, protocol: str, source_port: int, port: int, icmp: tuple[int, int]
) -> Probe:
    source, destination = map(twin, pair) if ipv6 else pair
    if protocol == "ICMP":
        kind = icmp[0] if not ipv6 else {8: 128, 13: 200}[icmp[0]]
        return Probe(source, destination, NUMBERS["ICMPv6" if ipv6 else "ICMP"], 0, 0, (kind, icmp[1]))
    return Probe(source, destination, NUMBERS[protocol], source_port, port)


PROBES = st.builds(
    _probe,
    st.sampled_from([(one, other) for one in EVERYBODY for other in EVERYBODY if one != other]),
    st.sampled_from([False, False, True]),
    st.sampled_from(["TCP", "TCP", "TCP", "UDP", "UDP", "SCTP", "ICMP"]),
    st.sampled_from([40000, 40000, 80]),
    st.sampled_from(PORTS),
    st.tuples(st.sampled_from([8, 13]), st.integers(0, 1)),
)
