"""Policies with real packets on two nodes, IPv4, IPv6: Kubernetes' own cases,any worlds against the specification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.policy_site import NODES, OUTSIDE, PLACES, PORTS, Site, in_both, in_both_families, twins
from tests.policy.cases import FILE, cases, steps
from tests.policy.specification import Connection, Endpoint, admitted
from tests.policy.test_engine import LABELS, NAMESPACES, POD_PORTS, POLICIES, world_of

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.mark.skipif(not FILE.exists(), reason=f"the corpus {FILE.name} is not here")
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case['id']}-{case['title'].replace(' ', '-')}")
def test_kubernetes_own_cases(site: Site, case: dict[str, Any]):
    wrong = []
    for step in steps(case):
        site.become(in_both_families(step.world), step.pods)
        judged = [
            (each, probe.expected, f"{step.title}: {probe.text}")
            for probe in step.probes
            for each in twins([probe.connection])
        ]
        wrong += site.disagreements(judged)
    assert wrong == [] and site.problems == []


# ---- any worlds

HOSTS = (
    *(Endpoint("node", name, node=name, addresses=(address,)) for name, address in NODES.items()),
    Endpoint("ext", "outside", addresses=(OUTSIDE,)),
)


@st.composite
def pods(draw: st.DrawFn) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(
            "pod",
            f"pod-{address.rpartition('.')[2]}",
            draw(st.sampled_from(NAMESPACES)),
            draw(LABELS),
            node,
            (address,),
            tuple((name, protocol, port) for name, (protocol, port) in draw(POD_PORTS).items()),
        )
        for node, addresses in PLACES.items()
        for address in addresses
    )


BLOCKS = {"10.0.0.0/16": "10.65.0.0/16", "10.0.1.0/24": "10.65.1.0/24", "fd00:0:1::/48": "fd00::a41:100/120"}


def here(policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Address blocks as they are on this site."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        return BLOCKS.get(value, value) if isinstance(value, str) else value

    return [moved(each) for each in policies]


def test_any_world(site: Site):
    """What connections are made on two nodes is what the specification says, whatever was in force before."""
    verdicts: Counter[bool] = Counter()

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        st.lists(POLICIES, min_size=1, max_size=4),
        st.tuples(LABELS, LABELS),
        pods(),
        st.lists(
            st.tuples(
                st.integers(0, 7), st.integers(0, 7), st.sampled_from(["TCP", "UDP", "SCTP"]), st.sampled_from(PORTS)
            ),
            min_size=30,
            max_size=40,
            unique=True,
        ),
    )
    def any_world(policies: Any, labels: Any, living: tuple[Endpoint, ...], tries: Any):
        world = world_of(here(policies), labels)
        living = tuple(map(in_both, living))
        everybody = (*living, *(in_both(each) for each in HOSTS))
        site.become(world, living)
        judged = []
        for source, destination, protocol, port in tries:
            for ipv6 in (False, True):
                connection = Connection(everybody[source], everybody[destination], protocol, port, ipv6)
                if source != destination:
                    text = f"{everybody[source].name} -> {everybody[destination].name} {protocol}/{port}"
                    judged.append((connection, admitted(world, connection), text))
        verdicts.update(verdict for _, verdict, _ in judged)
        assert site.disagreements(judged) == [] and site.problems == []

    any_world()
    assert verdicts[True] + verdicts[False] >= 500 and min(verdicts[True], verdicts[False]) >= 100
