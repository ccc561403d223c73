"""Any policies in Calico's grammar, changed step by step, against Calico's documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routed.desired_policy import Failsafe, HostRules, Icmp, PolicyBatch
from routed.model.resources import Resource
from routed.model.schema import parse_manifest
from routed.model.selector import parse_selector
from routed.net.addresses import parse_address
from routed.policy.judge import Packet
from tests.policy.calico_specification import Cluster, Probe, admitted, holds
from tests.policy.calico_worlds import FAILSAFE_IN, FAILSAFE_OUT, LABELS, NODES, PODS, PROBES, SELECTORS, clusters
from tests.policy.nodes import UPLINK, Nodes, twin

POLICIES = ("NetworkPolicy", "GlobalNetworkPolicy")
HOST = HostRules(
    failsafe_in=tuple(Failsafe(*each) for each in FAILSAFE_IN),
    failsafe_out=tuple(Failsafe(*each) for each in FAILSAFE_OUT),
)


def packet(probe: Probe) -> Packet:
    return Packet(
        parse_address(probe.source),
        parse_address(probe.destination),
        probe.protocol,
        probe.source_port,
        probe.port,
        Icmp(*probe.icmp) if probe.icmp is not None else None,
    )


def place(address: str) -> tuple[str, str]:
    """The node of an address, and the interface of a pod's."""
    for node, home in (*PODS, *NODES.items()):
        if address in (home, twin(home)):
            return node, interface_of(home) if (node, home) in PODS else ""
    return "", ""


def way(probe: Probe) -> list[tuple[str, str, str]]:
    (here, incoming), (there, outgoing) = place(probe.source), place(probe.destination)
    if here == there:
        return [(here, incoming, outgoing)]
    out, back = (here, incoming, UPLINK), (there, UPLINK, outgoing)
    return [each for each in (out, back) if each[0]]


def interface_of(address: str) -> str:
    return "cali" + address.replace(".", "x")


def resources(cluster: Cluster) -> list[Resource]:
    return [parse_manifest(dict(each)) for each in cluster.resources]


def renamed(policies: Cluster, others: Cluster) -> Cluster:
    """The policies of one cluster under other names, with all the rest of another."""
    kept = [each for each in others.resources if each not in others.of(*POLICIES)]
    moved = [
        {**each, "metadata": {**each["metadata"], "name": f"{each['metadata']['name']}-2"}}
        for each in policies.of(*POLICIES)
    ]
    return replace(others, resources=[*kept, *moved])


def test_any_clusters_one_after_the_other():
    """What is enforced after any changes is what Calico's documents say of the last state."""
    verdicts: Counter[bool] = Counter()

    @settings(
        max_examples=50,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        st.lists(clusters(interface_of), min_size=1, max_size=2),
        st.lists(PROBES, min_size=20, max_size=30),
        st.booleans(),
    )
    def any_clusters(steps: list[Cluster], tried: list[Probe], rename: bool):
        if rename:
            steps.append(renamed(steps[0], steps[-1]))
        nodes = Nodes(NODES)
        for firewall in nodes.firewalls.values():
            firewall.apply(PolicyBatch(host=HOST))
        for cluster in steps:
            nodes.apply(resources(cluster))
            for probe in tried:
                judged = nodes.cross(packet(probe), way(probe))
                expected = admitted(cluster, probe)
                verdicts[expected] += 1
                assert judged.admitted is expected, (probe, judged)

    any_clusters()
    assert sum(verdicts.values()) >= 1000 and min(verdicts[True], verdicts[False]) >= 200


@given(SELECTORS, LABELS)
def test_selectors(text: str, labels: dict[str, str]):
    assert parse_selector(text).matches(labels) is holds(text, labels)
