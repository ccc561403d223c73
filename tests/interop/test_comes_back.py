"""Either side ends and comes back, with every make of router: the session and all routes are there again."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Routed, resource
from tests.interop.tors import (
    NODE4,
    NODE6,
    NODE_AS,
    TOR4,
    TOR6,
    TOR_AS,
    TORS,
    Wire,
    announce,
    node_and_tor,
    wait_for_routes,
    wait_for_sessions,
)
from tests.lab.topology import RECONNECT, SOON

pytestmark = pytest.mark.lab

NEW4, NEW6 = "10.244.7.0/26", "fd00:244:7::/122"


@pytest.mark.parametrize("tor_as", [TOR_AS, NODE_AS], ids=["ebgp", "ibgp"])
@pytest.mark.parametrize("make", TORS)
def test_either_side_comes_back(lab: Lab, on_the_wire: Wire, make: str, tor_as: int) -> None:
    routed, namespace = node_and_tor(lab, tor_as=tor_as)
    on_the_wire(routed.namespace, "eth0", NODE4, NODE6)
    tor = TORS[make](namespace, tor_as)
    tor.start()
    routed.start()
    wait_for_sessions(routed, tor)
    announce(tor)
    wait_for_routes(routed, tor)

    tor.kill()
    wait_for(
        lambda: not (routed.established(TOR4) or routed.established(TOR6)),
        SOON,
        "the node notices that the switch is gone",
        state=routed.sessions,
    )
    tor.start()
    wait_for_sessions(routed, tor, RECONNECT)
    announce(tor)
    wait_for_routes(routed, tor)
    # what was kept while it was away would be there, too: it must have been said again
    wait_for(lambda: fresh(routed, TOR4) and fresh(routed, TOR6), SOON, "the switch's routes are no stale ones")

    routed.stop()
    wait_for(
        lambda: not (tor.established(NODE4) or tor.established(NODE6)),
        SOON,
        "the switch notices that the node is gone",
        state=tor.sessions,
    )
    for name, cidr in (("new4", NEW4), ("new6", NEW6)):
        routed.put(resource("BlockAffinity", name, {"node": "node", "cidr": cidr}))
    routed.start()
    wait_for_sessions(routed, tor, RECONNECT)
    wait_for_routes(routed, tor)
    wait_for(
        lambda: NEW4 in tor.routes() and NEW6 in tor.routes(ipv6=True),
        SOON,
        "the switch knows what the node has had since",
        state=lambda: (tor.routes(), tor.routes(ipv6=True)),
    )
    wait_for(lambda: fresh(routed, TOR4) and fresh(routed, TOR6), SOON, "the switch's routes were said again")
    assert routed.problems() == []


def fresh(routed: Routed, address: str) -> bool:
    """Whether the neighbour has announced something on this session, and nothing of an earlier one is left."""
    families = routed.neighbors()[address]["families"].values()
    return any(family["received"] for family in families) and not any(family.get("stale") for family in families)
