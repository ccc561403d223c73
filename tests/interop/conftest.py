"""Every test here has a laboratory of its own: what a router remembers of the test before would only confuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made
