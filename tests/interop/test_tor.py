"""eBGP with a top-of-rack switch of every make: sessions of both families, routes and their attributes both ways."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab
from tests.interop.tors import (
    BLOCK4,
    BLOCK6,
    NET4,
    NET6,
    NODE4,
    NODE6,
    NODE_AS,
    TOR4,
    TOR6,
    TOR_AS,
    TORS,
    Wire,
    node_and_tor,
    wait_for_routes,
    wait_for_sessions,
)

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("internal", [False, True], ids=["ebgp", "ibgp"])
@pytest.mark.parametrize("make", TORS)
def test_routes_of_both_families_go_both_ways(lab: Lab, on_the_wire: Wire, make: str, internal: bool) -> None:
    tor_as = NODE_AS if internal else TOR_AS
    routed, namespace = node_and_tor(lab, tor_as=tor_as)
    on_the_wire(routed.namespace, "eth0", NODE4, NODE6)
    tor = TORS[make](namespace, tor_as)  # type: ignore[call-arg]
    tor.launch()
    routed.start()
    wait_for_sessions(routed, tor)
    if make == "gobgp":
        for family, prefix, hop in (("ipv4", NET4, TOR4), ("ipv6", NET6, TOR6)):
            tor.ctl("global", "rib", "-a", family, "add", prefix, "nexthop", hop, "community", "65100:7")
    wait_for_routes(routed, tor)

    for prefix, hop in ((NET4, TOR4), (NET6, TOR6)):
        path = routed.best(prefix)
        assert (path["asPath"], path["origin"].upper(), path["nextHop"], path["communities"]) == (
            *("" if internal else str(TOR_AS), "INCOMPLETE" if make == "gobgp" else "IGP"),
            *(hop, ["65100:7"]),
        )
    for prefix, hop, text in (
        (BLOCK4, NODE4, tor.routes()[BLOCK4]),
        (BLOCK6, NODE6, tor.routes(ipv6=True)[BLOCK6]),
    ):
        assert hop in text and (internal or str(NODE_AS) in text), prefix
    assert routed.problems() == []
