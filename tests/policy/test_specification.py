"""The oracle of the policy tests against Kubernetes' own expectations: an oracle that errs would prove nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy.cases import FILE, cases, steps
from tests.policy.specification import admitted

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"the corpus {FILE.name} is not here")


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case['id']}-{case['title'].replace(' ', '-')}")
def test_it_expects_what_kubernetes_expects(case: dict[str, Any]):
    wrong = [
        f"{step.title}: {probe.text} expects {probe.expected}"
        for step in steps(case)
        for probe in step.probes
        if admitted(step.world, probe.connection) is not probe.expected
    ]
    assert wrong == []


def test_all_of_it_is_read():
    assert len(cases()) == 48
    assert sum(len(step.probes) for case in cases() for step in steps(case)) == 506
