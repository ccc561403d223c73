"""Calico's policies with real packets on two nodes, IPv4 and IPv6, each case after the one before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routed.desired_policy import HostRules
from routed.model.schema import parse_manifest
from routed.policy.judge import FirewallModel
from tests.lab.first_packets import FirstPackets, distinct
from tests.lab.policy_site import Site, interface_of
from tests.policy.calico_cases import CASES, Case
from tests.policy.calico_specification import Cluster, Probe, admitted
from tests.policy.calico_worlds import PROBES, clusters
from tests.policy.test_calico_worlds import HOST

pytestmark = pytest.mark.lab

#: Clusters that are drawn in a run.
EXAMPLES = 25


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title.replace(" ", "-"))
def test_case(site: Site, case: Case):
    site.apply(case.all_resources(lambda pod: interface_of(pod.addresses[0])))
    assert site.disagreements(case.wanted()) == [] and site.problems == []


def test_any_clusters_one_after_the_other(site: Site):
    """As tests/policy has it on the model, on kernels: a few clusters drawn in Calico's whole grammar, anew in each run.

    Where packets and documents differ, Hypothesis looks for the smallest cluster that shows it, and says how to draw it.
    """
    packets = FirstPackets(site.hosts)
    nodes = [site.lab.namespaces[name] for name in site.nodes]
    verdicts: Counter[bool] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, report_multiple_bugs=False, print_blob=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(clusters(interface_of), st.lists(PROBES, min_size=40, max_size=60))
    def any_clusters(cluster: Cluster, tried: list[Probe]):
        site.apply(parse_manifest(dict(each)) for each in cluster.resources)
        probes = distinct(tried)
        wanted = [admitted(cluster, probe) for probe in probes]
        packets.forget(nodes)
        arrived = packets.arrived(probes, {number for number, each in enumerate(wanted) if each})
        verdicts.update(wanted)
        wrong = [
            f"{probe}: {'allowed' if each else 'denied'} by the documents"
            for number, (probe, each) in enumerate(zip(probes, wanted, strict=True))
            if each is not (number in arrived)
        ]
        assert wrong == [] and site.problems == []

    site.host(HOST)
    try:
        any_clusters()
    finally:
        site.host(HostRules())
        packets.close()
    assert min(verdicts[True], verdicts[False]) >= 3 * EXAMPLES


def test_what_is_left_is_what_a_new_start_makes(site: Site):
    """After all cases, and with them gone, the kernel has what the model of an empty cluster has."""
    site.apply([])
    for node in site.nodes.values():
        model = FirewallModel()
        model.apply(node.firewall.program)
        assert not model.sets and not model.chains and not model.endpoints
    for name in site.nodes:
        listed = site.lab.namespaces[name].run("nft", "list", "table", "inet", "routed")
        assert "chain p_" not in listed and "chain w_" not in listed and "set s_" not in listed
