"""What holds on a whole node: which interfaces are workloads'."""

from __future__ import annotations

import pytest

from routed.model.schema import parse_manifest
from routed.model.settings import FelixConfiguration
from routed.policy.host import host_rules


@pytest.mark.parametrize(
    ("felix", "own", "prefixes"),
    [
        ("", (), ("cali",)),
        ("tap", (), ("tap", "cali")),
        ("tap,cali", (), ("tap", "cali")),
        ("ca", (), ("ca",)),
        ("tap", ("azv",), ("azv", "cali")),
    ],
)
def test_pods_that_routed_wires_are_workloads_whatever_is_configured(
    felix: str, own: tuple[str, ...], prefixes: tuple[str, ...]
):
    """A prefix of another plugin's, or a slip, must take no policy off them."""
    made = parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "FelixConfiguration",
            "metadata": {"name": "default"},
            "spec": {"interfacePrefix": felix} if felix else {},
        }
    )
    assert isinstance(made, FelixConfiguration)
    assert host_rules((), {"default": made}, "n1", own).workload_prefixes == prefixes
