"""Either side ends and comes back, with every make of router: the session and all routes are there again."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, wait_for
from tests.interop.tors import (
    NODE4,
    NODE6,
    TOR4,
    TOR6,
    TORS,
    Wire,
    announce,
    node_and_tor,
    wait_for_routes,
    wait_for_sessions,
)

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("make", TORS)
def test_either_side_comes_back(lab: Lab, on_the_wire: Wire, make: str) -> None:
    routed, namespace = node_and_tor(lab)
    on_the_wire(routed.namespace, "eth0", NODE4, NODE6)
    tor = TORS[make](namespace)
    tor.start()
    routed.start()
    wait_for_sessions(routed, tor)
    announce(tor)
    wait_for_routes(routed, tor)

    tor.kill()
    wait_for(
        lambda: not (routed.established(TOR4) or routed.established(TOR6)),
        20,
        "the node notices that the switch is gone",
        state=routed.sessions,
    )
    tor.start()
    wait_for_sessions(routed, tor, 40)
    announce(tor)
    wait_for_routes(routed, tor)

    routed.stop()
    wait_for(
        lambda: not (tor.established(NODE4) or tor.established(NODE6)),
        20,
        "the switch notices that the node is gone",
        state=tor.sessions,
    )
    routed.start()
    wait_for_sessions(routed, tor, 40)
    wait_for_routes(routed, tor)
    assert routed.problems() == []
