"""Either side ends and comes back, with every make of router: the session and all routes are there again."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Router
from tests.interop.tors import (
    NET4,
    NET6,
    NODE4,
    NODE6,
    TOR4,
    TOR6,
    TORS,
    Wire,
    bird,
    node_and_tor,
    wait_for_routes,
    wait_for_sessions,
)

pytestmark = pytest.mark.lab


def announce(make: str, tor: Router) -> None:
    """GoBGP has no routes in its configuration."""
    if make == "gobgp":
        for family, prefix, hop in (("ipv4", NET4, TOR4), ("ipv6", NET6, TOR6)):
            tor.ctl("global", "rib", "-a", family, "add", prefix, "nexthop", hop)  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", TORS)
def test_either_side_comes_back(lab: Lab, on_the_wire: Wire, make: str) -> None:
    routed, namespace = node_and_tor(lab)
    on_the_wire(routed.namespace, "eth0", NODE4, NODE6)
    tor = TORS[make](namespace)
    tor.start()
    routed.start()
    wait_for_sessions(routed, tor)
    announce(make, tor)
    wait_for_routes(routed, tor)

    tor.kill()
    wait_for(
        lambda: not routed.established(TOR4), 20, "the node notices that the switch is gone", state=routed.sessions
    )
    tor.start()
    wait_for_sessions(routed, tor, 40)
    announce(make, tor)
    wait_for_routes(routed, tor)

    routed.stop()
    routed.start()
    wait_for_sessions(routed, tor, 40)
    wait_for_routes(routed, tor)
    assert routed.problems() == []


def test_a_neighbour_that_only_waits(lab: Lab) -> None:
    """The switch never connects by itself; the node does. (The other way round is what a mesh with BIRD does.)"""
    routed, namespace = node_and_tor(lab)
    tor = bird(namespace, extra="passive yes;")
    tor.start()
    routed.start()
    wait_for_sessions(routed, tor)
    wait_for_routes(routed, tor)
