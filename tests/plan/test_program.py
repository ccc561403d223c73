"""Which Calico to behave like, and what workloads' interfaces are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from routed.net.families import Family

if TYPE_CHECKING:
    from tests.plan.conftest import Scenario

Make = Callable[..., "Scenario"]


@pytest.mark.parametrize(
    ("version", "priority"),
    [
        ("v3.32.1", 1024),
        ("v3.33.0-0.dev", 1024),
        ("v4.0.0", 1024),
        ("v3.31.9", 0),
        ("v3.9.1", 0),
        ("master", 0),
        ("", 0),
    ],
)
def test_cluster_information_says_which_calico(scenario: Make, version: str, priority: int) -> None:
    made = scenario()
    assert made.plan.kernel.normal_priority[Family.IPV4_UNICAST] == 0
    made.apply(f'- {{kind: ClusterInformation, metadata: {{name: default}}, spec: {{calicoVersion: "{version}"}}}}')
    assert made.plan.kernel.normal_priority == dict.fromkeys(Family, priority)
    assert made.remove("ClusterInformation", "default").plan.kernel.normal_priority[Family.IPV6_UNICAST] == 0


def test_felix_says_what_interfaces_are_called(scenario: Make) -> None:
    made = scenario()
    assert made.plan.learn.workload_prefixes == ("cali",)
    made.apply('- {kind: FelixConfiguration, metadata: {name: default}, spec: {interfacePrefix: "tap,cali"}}')
    assert made.plan.learn.workload_prefixes == ("tap", "cali") and made.plan.problems == ()
    made.apply("- {kind: FelixConfiguration, metadata: {name: node.kube-master}, spec: {interfacePrefix: azv}}")
    made.apply("- {kind: FelixConfiguration, metadata: {name: node.kube-node-1}, spec: {interfacePrefix: other}}")
    assert made.plan.learn.workload_prefixes == ("azv", "cali")
