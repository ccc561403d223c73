"""A top-of-rack switch of every make, external and internal: sessions of both families, whoever opens them; routes and
their attributes both ways."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import resource
from routed.testing.told import Told
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
    announce,
    node_and_tor,
    wait_for_routes,
    wait_for_sessions,
)
from tests.lab.topology import RECONNECT, SOON

pytestmark = pytest.mark.lab


#: Whether the session is an internal one, and who waits for the other to connect. As a node of a mesh whose address is the
#: smaller one, routed does.
KINDS = {"ebgp": (False, ""), "ibgp, tor waits": (True, "tor"), "ibgp, node waits": (True, "node")}


def opened(namespace: Namespace, *addresses: str) -> set[str]:
    """Those of a machine's addresses whose session it has opened itself: the other end has the port of BGP."""
    rows = (line.split() for line in namespace.run("ss", "-Hnt", "state", "established", "dport = :179").splitlines())
    return {row[2].rpartition(":")[0].strip("[]") for row in rows} & set(addresses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", TORS)
def test_routes_of_both_families_go_both_ways(lab: Lab, on_the_wire: Wire, make: str, kind: str) -> None:
    internal, waits = KINDS[kind]
    tor_as = NODE_AS if internal else TOR_AS
    routed, namespace = node_and_tor(lab, tor_as=tor_as)
    if waits == "node":
        addresses = {"ipv4Address": f"{TOR4}/24", "ipv6Address": f"{TOR6}/64", "asNumber": NODE_AS}
        routed.put(resource("Node", "tor", {"bgp": addresses}))
        for name in ("tor4", "tor6"):
            routed.remove("BGPPeer", name)
    on_the_wire(routed.namespace, "eth0", NODE4, NODE6)
    tor = TORS[make](namespace, tor_as, passive=waits == "tor")
    # who waits is there first: OpenBGPD tries once, and again after two minutes
    for each in (routed, tor) if waits == "node" else (tor, routed):
        each.start()
        if each is routed and waits == "node":  # an answer of its own may come before it knows whom to wait for
            wait_for(lambda: set(routed.sessions().values()) == {"Active"}, SOON, "it waits", state=routed.sessions)
    wait_for_sessions(routed, tor, RECONNECT)
    announce(tor)
    wait_for_routes(routed, tor)

    for prefix, hop, block, block_hop in ((NET4, TOR4, BLOCK4, NODE4), (NET6, TOR6, BLOCK6, NODE6)):
        assert routed.told(prefix) == Told(
            origin="incomplete" if make == "gobgp" else "igp",
            as_path="" if internal else str(TOR_AS),
            next_hop=hop,
            med=0 if make == "frr" else None,  # which it says of a network of its own
            local_pref=100,
            communities=("65100:7",),
        )
        # FRR lists a route before it has chosen one
        assert wait_for(lambda block=block: tor.told(block), SOON, f"the switch uses {block}") == Told(
            origin="igp",
            as_path="" if internal else str(NODE_AS),
            next_hop=block_hop,
            local_pref=100 if internal or make in ("bird", "openbgpd") else None,  # which they assume
        )
    assert {row["passive"] for row in routed.neighbors().values()} == {waits == "node"}
    if waits == "tor":
        assert opened(routed.namespace, NODE4, NODE6) == {NODE4, NODE6}
    if waits == "node":
        assert opened(namespace, TOR4, TOR6) == {TOR4, TOR6}
    assert routed.problems() == []
