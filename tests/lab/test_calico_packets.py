"""Calico's policies with real packets on two nodes, IPv4 and IPv6, each case after the one before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.policy.judge import FirewallModel
from tests.lab.policy_site import Site, interface_of
from tests.policy.calico_cases import CASES, Case

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title.replace(" ", "-"))
def test_case(site: Site, case: Case):
    site.apply(case.all_resources(lambda pod: interface_of(pod.addresses[0])))
    assert site.disagreements(case.wanted()) == [] and site.problems == []


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
