"""Calico's policies on the model: every case alone, and one after the other on engines that saw those before."""

from __future__ import annotations

import pytest

from tests.policy.calico_cases import CASES, NODES, Case
from tests.policy.nodes import Nodes


def wrong(nodes: Nodes, case: Case) -> list[str]:
    return [
        f"{text}{' (IPv6)' if connection.ipv6 else ''}: {judged}"
        for connection, admitted, text in case.wanted()
        if (judged := nodes.judge(connection)).admitted is not admitted
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title.replace(" ", "-"))
def test_alone(case: Case):
    nodes = Nodes(NODES)
    nodes.apply(case.all_resources())
    assert wrong(nodes, case) == []


def test_one_after_the_other_and_back():
    nodes = Nodes(NODES)
    for case in (*CASES, *reversed(CASES)):
        nodes.apply(case.all_resources())
        assert wrong(nodes, case) == []
