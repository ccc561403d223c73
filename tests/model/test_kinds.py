"""What the kinds beyond BGP's mean as values: defaults, legacy forms, and what is refused."""

from __future__ import annotations

import json

import pytest

from routed.errors import ConfigError
from routed.model.ipam import DEFAULT_IPAM_CONFIG, AllocationAttribute, IPAMBlock, IPAMHandle
from routed.model.kubernetes import (
    EndpointSlice,
    KubernetesNetworkPolicy,
    Pod,
    Service,
    calico_form,
    calico_key,
    calico_policy,
)
from routed.model.policies import (
    DEFAULT_ALLOW,
    EntityRule,
    GlobalNetworkPolicy,
    IcmpMatch,
    NamedPort,
    NetworkPolicy,
    PolicyType,
    PortRange,
    Profile,
    Rule,
    RuleAction,
    Tier,
    TierAction,
)
from routed.model.resources import Cidr, JsonObject, JsonValue, ResourceKey
from routed.model.schema import KINDS, field_names, kind_named, parse_manifest
from routed.model.selector import Global, parse_selector
from routed.model.settings import FelixConfiguration, ProtoPort, set_fields
from routed.model.workloads import WorkloadEndpoint, workload_endpoint_name
from routed.net.addresses import parse_address
from routed.net.prefixes import parse_prefix
from tests.model.examples import BLOCK, EXAMPLES, KNP, manifest, named


def cidr(text: str) -> Cidr:
    return Cidr(*parse_prefix(text))


def policy(spec: JsonObject, kind: str = "NetworkPolicy") -> NetworkPolicy | GlobalNetworkPolicy:
    made = named(kind, "shop", "p", spec) if kind == "NetworkPolicy" else manifest(kind, spec, name="p")
    parsed = parse_manifest(made)
    assert isinstance(parsed, (NetworkPolicy, GlobalNetworkPolicy))
    return parsed


def refused(value: JsonValue) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(value)
    return caught.value


@pytest.mark.parametrize(
    "kind",
    [kind for kind in sorted(EXAMPLES) if kind not in ("FelixConfiguration", "WorkloadEndpoint", "CalicoNodeStatus")],
)
def test_the_examples_say_every_field(kind: str) -> None:
    """Or else a field could be read by nobody and no test would see it."""
    said: set[str] = set()

    def walk(value: JsonValue, path: str) -> None:
        if isinstance(value, list):
            for one in value:
                walk(one, path)
        elif isinstance(value, dict):
            for name, inner in value.items():
                said.add(f"{path}.{name}" if path else name)
                walk(inner, f"{path}.{name}" if path else name)

    walk(EXAMPLES[kind], "")
    # either side of a rule has the fields of both, and either direction those of all rules
    folded = {field.replace("source.", "destination.").replace("egress.", "ingress.") for field in said}
    wanted = {
        field.replace("source.", "destination.").replace("egress.", "ingress.")
        for field in field_names(kind)
        if not field.startswith("status")
    }
    optional = {"spec", "endpoints.deprecatedTopology", "endpoints.hints", "endpoints.hostname", "endpoints.targetRef"}
    missing = wanted - folded - optional - {"ports.appProtocol"}
    assert {field for field in missing if "matchExpressions" not in field} == set()


def test_a_policy_in_full() -> None:
    parsed = parse_manifest(EXAMPLES["NetworkPolicy"])
    assert isinstance(parsed, NetworkPolicy)
    assert (parsed.tier, parsed.order, parsed.types) == ("default", 100.5, frozenset(PolicyType))
    first, ping, log = parsed.ingress
    assert first.source == EntityRule(
        nets=(cidr("10.0.0.0/8"),),
        not_nets=(cidr("10.9.0.0/16"),),
        selector=parse_selector("app == 'web'"),
        not_selector=parse_selector("has(quarantine)"),
        namespace_selector=Global(),
        service_accounts=first.source.service_accounts,
    )
    assert first.source.service_accounts is not None
    assert first.source.service_accounts.names == ("x",)
    assert first.destination.ports == (PortRange(5432, 5432), PortRange(6000, 6010), NamedPort("named"))
    assert first.destination.not_ports == (PortRange(22, 22),)
    assert (first.protocol, first.not_protocol, first.ip_version) == (6, 17, 4)
    assert first.http is not None
    assert (first.http.exact_paths, first.http.prefix_paths) == (("/a",), ("/b",))
    assert (ping.action, ping.icmp, ping.not_icmp) == (RuleAction.DENY, IcmpMatch(8, 0), IcmpMatch(3, 1))
    assert log.source.service is not None
    assert (log.source.service.name, log.source.service.namespace) == ("s", "n")


ALLOW: JsonValue = [{"action": "Allow"}]


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, {PolicyType.INGRESS}),
        ({"ingress": ALLOW}, {PolicyType.INGRESS}),
        ({"egress": ALLOW}, {PolicyType.EGRESS}),
        ({"ingress": ALLOW, "egress": ALLOW}, set(PolicyType)),
        ({"egress": ALLOW, "types": ["Ingress"]}, {PolicyType.INGRESS}),
    ],
)
def test_types_that_are_not_said(spec: JsonObject, types: set[PolicyType]) -> None:
    assert policy(spec).types == types
    assert policy(spec, "GlobalNetworkPolicy").types == types


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({}, "action"),
        ({"action": "allow"}, "action"),
        ({"action": "Allow", "ipVersion": 5}, "ipVersion"),
        ({"action": "Allow", "protocol": "TPC"}, "protocol"),
        ({"action": "Allow", "protocol": 256}, "protocol"),
        ({"action": "Allow", "protocol": "0017999"}, "protocol"),
        ({"action": "Allow", "protocol": "9" * 5000}, "protocol"),
        ({"action": "Allow", "protocol": "TCP", "destination": {"ports": ["9" * 5000]}}, "destination.ports[0]"),
        ({"action": "Allow", "protocol": "TCP", "destination": {"ports": ["\u00b2"]}}, "destination.ports[0]"),
        ({"action": "Allow", "destination": {"ports": [80]}}, "destination.ports"),
        ({"action": "Allow", "protocol": "ICMP", "destination": {"ports": [80]}}, "destination.ports"),
        ({"action": "Allow", "protocol": "TCP", "destination": {"ports": ["9:8"]}}, "destination.ports[0]"),
        ({"action": "Allow", "protocol": "TCP", "destination": {"ports": [65536]}}, "destination.ports[0]"),
        ({"action": "Allow", "icmp": {"type": 8}}, "icmp"),
        ({"action": "Allow", "protocol": "ICMP", "icmp": {"code": 8}}, "icmp.code"),
        ({"action": "Allow", "protocol": "ICMPv6", "ipVersion": 4}, "protocol"),
        ({"action": "Allow", "ipVersion": 4, "source": {"nets": ["fd00::/8"]}}, "source.nets[0]"),
        ({"action": "Allow", "source": {"selector": "app = 'x'"}}, "source.selector"),
        ({"action": "Allow", "source": {"selectr": "all()"}}, "source.selectr"),
        ({"action": "Allow", "destination": {"services": {"name": "s"}}}, "destination.services"),
        ({"action": "Allow", "source": {"services": {"name": "s"}, "nets": ["10.0.0.0/8"]}}, "source.nets"),
        ({"action": "Deny", "http": {"methods": ["GET"]}}, "http"),
    ],
)
def test_rules_that_are_refused(rule: JsonObject, field: str) -> None:
    assert refused(named("NetworkPolicy", "shop", "p", {"ingress": [rule]})).path == f"spec.ingress[0].{field}"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"doNotTrack": True, "preDNAT": True}, "spec.preDNAT"),
        ({"doNotTrack": True, "applyOnForward": False}, "spec.applyOnForward"),
        ({"preDNAT": True, "egress": ALLOW}, "spec.egress"),
        ({"order": "first"}, "spec.order"),
        (
            {"ingress": [{"action": "Allow", "source": {"services": {"name": "s"}}}]},
            "spec.ingress[0].source.services.namespace",
        ),
    ],
)
def test_global_policies_that_are_refused(spec: JsonObject, field: str) -> None:
    assert refused(manifest("GlobalNetworkPolicy", spec)).path == field


def test_tiers_and_the_virtual_profile() -> None:
    tier = parse_manifest(manifest("Tier", {"order": 1000000}, name="default"))
    assert isinstance(tier, Tier)
    assert tier.default_action is TierAction.DENY
    assert refused(manifest("Tier", {"order": 5}, name="default")).path == "spec.order"
    assert DEFAULT_ALLOW.ingress == DEFAULT_ALLOW.egress == (Rule(RuleAction.ALLOW),)


# ---- the allocator


def test_a_block() -> None:
    block = parse_manifest(manifest("IPAMBlock", BLOCK, name="b"))
    assert isinstance(block, IPAMBlock)
    assert block.host == "node-1"
    assert block.sequence_number == 1777000000000000001
    assert block.sequence_number_for_allocation == {0: 1777000000000000000, 2: (1 << 64) - 1}
    owner = {"node": "node-1", "type": "ipipTunnelAddress"}
    assert block.owner(0) == AllocationAttribute("ipip-tunnel-addr-node-1", owner)
    assert block.owner(1) is None
    assert block.owner(3) is None, "it cools down"


def test_legacy_and_lost_parts_of_a_block() -> None:
    old: JsonObject = BLOCK | {"affinity": None, "allocations": [7, None, None, None], "attributes": None}
    block = parse_manifest(manifest("IPAMBlock", old, name="b"))
    assert isinstance(block, IPAMBlock)
    assert (block.affinity, block.host) == ("host:node-1", "node-1")
    assert block.owner(0) == AllocationAttribute(), "given out, and to whom is lost"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"allocations": [0, None, None]}, "spec.allocations"),
        ({"allocations": [-1, None, None, None]}, "spec.allocations[0]"),
        ({"allocations": [0, None, True, None]}, "spec.allocations[2]"),
        ({"allocations": [0, None, None, 1 << 16]}, "spec.allocations[3]"),
        ({"allocations": 7}, "spec.allocations"),
        ({"unallocated": [0]}, "spec.unallocated[0]"),
        ({"unallocated": [1, -1]}, "spec.unallocated[1]"),
        ({"unallocated": [False]}, "spec.unallocated[0]"),
        ({"attributes": [{"handle_id": "a", "secondary": {"pod": 1}}]}, "spec.attributes[0].secondary.pod"),
        ({"unallocated": [1, 1]}, "spec.unallocated[1]"),
        ({"unallocated": [4]}, "spec.unallocated[0]"),
        ({"sequenceNumber": 1 << 64}, "spec.sequenceNumber"),
        ({"sequenceNumberForAllocation": {"4": 1}}, "spec.sequenceNumberForAllocation.4"),
        ({"sequenceNumberForAllocation": {"1" * 5000: 1}}, None),
        ({"affinity": "node-1"}, "spec.affinity"),
        ({"cidr": "10.0.0.0/8"}, "spec.cidr"),
    ],
)
def test_blocks_that_are_refused(change: JsonObject, field: str | None) -> None:
    path = refused(manifest("IPAMBlock", BLOCK | change, name="b")).path
    assert path == field if field is not None else path.startswith("spec.")


def test_handles_and_settings() -> None:
    handle = parse_manifest(EXAMPLES["IPAMHandle"])
    assert isinstance(handle, IPAMHandle)
    assert handle.blocks == {cidr("10.244.1.0/26"): 2, cidr("fd00::/122"): 1}
    assert (DEFAULT_IPAM_CONFIG.strict_affinity, DEFAULT_IPAM_CONFIG.auto_allocate_blocks) == (False, True)
    api = parse_manifest(manifest("IPAMConfiguration", {"strictAffinity": True}))
    assert api.key == parse_manifest(manifest("IPAMConfig", {})).key
    assert refused(manifest("IPAMConfig", {"maxBlocksPerHost": 3})).path == "spec.maxBlocksPerHost"
    # as Calico's API server, which could not change it any more
    assert refused(manifest("IPAMConfig", {"ipCooldownSeconds": 1201})).path == "spec.ipCooldownSeconds"
    assert "Enabled or Disabled" in str(refused(manifest("IPAMConfig", {"kubeVirtVMAddressPersistence": "Bla"})))
    assert refused(manifest("IPAMConfig", {}, name="other")).path == "metadata.name"


# ---- endpoints


def test_a_workload_endpoint_s_name_is_made_of_its_fields() -> None:
    endpoint = parse_manifest(EXAMPLES["WorkloadEndpoint"])
    assert isinstance(endpoint, WorkloadEndpoint)
    assert endpoint.name == workload_endpoint_name(("node-1", "k8s", "web-0", "eth0"))
    assert endpoint.ip_networks == (cidr("10.244.1.5/32"), cidr("fd00::5/128"))
    changed = json.loads(json.dumps(EXAMPLES["WorkloadEndpoint"]))
    changed["spec"]["pod"] = "other"
    assert 'must be "node--1-k8s-other-eth0"' in refused(changed).message
    changed = json.loads(json.dumps(EXAMPLES["WorkloadEndpoint"]))
    changed["spec"]["ipNetworks"] = ["10.0.0.0/24"]
    assert refused(changed).path == "spec.ipNetworks[0]"


def test_felix_s_settings() -> None:
    felix = parse_manifest(EXAMPLES["FelixConfiguration"])
    assert isinstance(felix, FelixConfiguration)
    assert felix.interface_prefix == ("cali", "tap")
    assert felix.failsafe_inbound == (ProtoPort(6, 22, cidr("0.0.0.0/0")),)
    assert felix.failsafe_outbound == ()
    assert felix.default_endpoint_to_host_action == "Accept"
    assert "bpfEnabled" in set_fields(felix)
    assert parse_manifest(manifest("FelixConfiguration", {})) == FelixConfiguration(
        name="default", manifest=manifest("FelixConfiguration", {})
    )
    assert refused(manifest("FelixConfiguration", {"ipForwarding": "yes"})).path == "spec.ipForwarding"


# ---- Kubernetes


def test_services_and_their_endpoints() -> None:
    service, endpoints, pod = (parse_manifest(EXAMPLES[kind]) for kind in ("Service", "EndpointSlice", "Pod"))
    assert isinstance(service, Service)
    assert service.cluster_ips == (parse_address("10.96.0.10"), parse_address("fd00:96::a"))
    assert service.load_balancer_ips == (parse_address("198.51.100.9"),)
    assert service.external_traffic_local
    assert isinstance(endpoints, EndpointSlice)
    assert endpoints.service == "web"
    assert [one.ready for one in endpoints.endpoints] == [True, False, True]
    assert isinstance(pod, Pod)
    assert pod.pod_ips == (parse_address("10.244.1.5"), parse_address("fd00::5"))
    headless = parse_manifest(manifest("Service", {"clusterIP": "None"}, apiVersion="v1"))
    assert isinstance(headless, Service)
    assert headless.cluster_ips == ()


def kubernetes_policy(spec: JsonObject) -> KubernetesNetworkPolicy:
    made = manifest("NetworkPolicy", spec, apiVersion="networking.k8s.io/v1") | {
        "metadata": {"name": "p", "namespace": "shop"}
    }
    parsed = parse_manifest(made)
    assert isinstance(parsed, KubernetesNetworkPolicy)
    return parsed


def test_an_egress_only_policy_without_types_denies_all_ingress() -> None:
    assert kubernetes_policy({"podSelector": {}, "egress": [{}]}).types == frozenset(PolicyType)
    assert kubernetes_policy({"podSelector": {}, "egress": []}).types == {PolicyType.INGRESS}


def test_values_the_api_has_taken_once_do_not_close_what_a_policy_selects() -> None:
    """Empty is a value a label may have; any other text was taken before Kubernetes v1.25 and matches nothing."""
    expression: JsonObject = {"key": "a", "operator": "In", "values": ["", "not a value", "x"]}
    selector = kubernetes_policy({"podSelector": {"matchExpressions": [expression]}}).pod_selector
    assert [selector.matches(labels) for labels in ({}, {"a": ""}, {"a": "x"}, {"a": "b"})] == [
        False,
        True,
        True,
        False,
    ]
    made = parse_manifest(calico_policy(kubernetes_policy({"podSelector": {"matchExpressions": [expression]}})))
    assert isinstance(made, NetworkPolicy)
    assert made.selector is not None
    assert made.selector.matches({"a": "", "projectcalico.org/orchestrator": "k8s"})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["'\""]}]}},
            "spec.podSelector.matchExpressions[0].values[0]",
        ),
        ({"podSelector": {}, "ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
            "spec.ingress[0].from[0].ipBlock",
        ),
        *(
            (
                {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", outside]}}]}]},
                "spec.ingress[0].from[0].ipBlock.except[1]",
            )
            for outside in ("11.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "fd00::/16")
        ),
        (
            {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
            "spec.egress[0].to[0].ipBlock",
        ),
        ({"ingress": [{"ports": [{"port": "http", "endPort": 9}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"form": []}]}, "spec.ingress[0].form"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "in"}]}},
            "spec.podSelector.matchExpressions[0].operator",
        ),
    ],
)
def test_kubernetes_policies_that_are_refused(spec: JsonObject, field: str) -> None:
    made = manifest("NetworkPolicy", spec, apiVersion="networking.k8s.io/v1")
    assert refused(made).path == field


def test_as_calico_s_controllers_would_write_it() -> None:
    policy = parse_manifest(calico_policy(kubernetes_policy(KNP)))
    assert isinstance(policy, NetworkPolicy)
    assert (policy.name, policy.namespace, policy.order, policy.tier) == ("knp.default.p", "shop", 1000.0, "default")
    pods = "projectcalico.org/orchestrator == 'k8s'"
    assert policy.selector == parse_selector(f"{pods} && app == 'db' && has(tier)")
    assert len(policy.ingress) == 3 * 2, "peers times protocols"
    tcp, udp = policy.ingress[:2]
    assert tcp.source.selector == parse_selector(f"{pods} && app == 'web'")
    assert tcp.destination.ports == (PortRange(8000, 8080), NamedPort("http"))
    assert (udp.protocol, udp.destination) == (17, EntityRule())
    assert policy.ingress[2].source.namespace_selector == parse_selector("team == 'a' && env not in {'dev'}")
    assert policy.ingress[4].source.nets == (cidr("10.0.0.0/8"),)
    assert policy.ingress[4].source.not_nets == (cidr("10.1.0.0/16"),)
    assert policy.egress[0].destination.namespace_selector == parse_selector("all()")
    everything = parse_manifest(calico_policy(kubernetes_policy({"podSelector": {}, "ingress": [{}]})))
    assert isinstance(everything, NetworkPolicy)
    assert everything.ingress == (Rule(RuleAction.ALLOW),)
    nothing = parse_manifest(calico_policy(kubernetes_policy({"podSelector": {}, "ingress": []})))
    assert isinstance(nothing, NetworkPolicy)
    assert nothing.ingress == ()


def test_a_namespace_as_calico_s_controllers_would_write_it() -> None:
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
    namespace = parse_manifest(made)
    profile = parse_manifest(calico_form(namespace))
    assert isinstance(profile, Profile)
    assert profile.key == calico_key(namespace.key) == ResourceKey("Profile", "kns.shop")
    assert profile.ingress == profile.egress == (Rule(RuleAction.ALLOW),)
    assert profile.labels_to_apply == {
        "pcns.team": "a", "pcns.kubernetes.io/metadata.name": "shop", "pcns.projectcalico.org/name": "shop",
    }  # fmt: skip
    pod = parse_manifest(EXAMPLES["Pod"])
    assert calico_form(pod) is None
    assert calico_key(pod.key) == pod.key
    policy = kubernetes_policy(KNP)
    assert calico_form(policy) == calico_policy(policy)
    assert calico_key(policy.key) == parse_manifest(calico_policy(policy)).key


# ---- names of kinds


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("bgppeer", "BGPPeer"), ("BGPPeers", "BGPPeer"), ("bgpp", "BGPPeer"), ("ippools", "IPPool"), ("no", "Node"),
        ("wep", "WorkloadEndpoint"), ("gnp", "GlobalNetworkPolicy"), ("networkpolicies", "NetworkPolicy"),
        ("nodestatus", "CalicoNodeStatus"), ("svc", "Service"), ("blockaffinity", "BlockAffinity"),
    ],
)  # fmt: skip
def test_words_for_kinds(word: str, kind: str) -> None:
    assert kind_named(word).name == kind


def test_every_kind_can_be_named() -> None:
    assert all(kind_named(kind).name == kind for kind in KINDS)
    with pytest.raises(ValueError, match="did you mean BGPPeer"):
        kind_named("bgppear")
