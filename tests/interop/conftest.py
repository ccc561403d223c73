"""Every test here has a laboratory of its own: what a router remembers of the test before would only confuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing import capture
from routed.testing.capture import Capture
from routed.testing.lab import Lab, Namespace
from tests.interop.tors import Wire


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def on_the_wire(lab: Lab) -> Iterator[Wire]:  # noqa: ARG001 - it ends after us
    """`on_the_wire(node, "eth0", "10.0.0.1", "fd00::1")` captures to the end of the test, which then fails for every
    complaint tshark has about what was sent from these addresses, and where one of them sent nothing."""
    if absent := capture.missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    made: list[Capture] = []

    def start(namespace: Namespace, interface: str, *addresses: str) -> Capture:
        made.append(Capture(namespace, interface, *addresses))
        return made[-1]

    yield start
    for each in made:
        if not each.judged:
            each.judge()
