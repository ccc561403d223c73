"""A peer that offers more than a session carries: IPv4 routes over IPv6 with IPv6 next hops (RFC 8950), which we decline.

decisions/0020 says why. The session comes up, carries its own family, and says what was offered and is not used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.peer import (
    ScriptedPeer,
    as_path,
    attribute,
    capability,
    four_octet_as,
    mp_reach,
    multiprotocol,
    nlri,
    origin,
    packed,
    update,
)
from routed.testing.routers import Bird, ExaBgp, Frr, GoBgp, Router
from tests.interop.tors import (
    BLOCK4,
    BLOCK6,
    NET4,
    NET6,
    NODE6,
    NODE_AS,
    TOR4,
    TOR6,
    TOR_AS,
    Wire,
    announce,
    node_and_tor,
)
from tests.lab.topology import SOON

OFFERED = "capability 5 (extended next hop)"


def bird(namespace: Namespace) -> Bird:
    return Bird(
        namespace,
        f"router id {TOR4};\nprotocol device {{}}\n"
        f"protocol static {{ ipv4; route {NET4} blackhole; }}\nprotocol static {{ ipv6; route {NET6} blackhole; }}\n"
        f"protocol bgp {{ local {TOR6} as {TOR_AS}; neighbor {NODE6} as {NODE_AS}; connect delay time 1;\n"
        "  ipv4 { import all; export all; extended next hop on; }; ipv6 { import all; export all; }; }\n",
    )


def frr(namespace: Namespace) -> Frr:
    return Frr(
        namespace,
        f"router bgp {TOR_AS}\n bgp router-id {TOR4}\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
        # passive: some collisions it takes for the end of the neighbour (test_collisions)
        f" neighbor {NODE6} remote-as {NODE_AS}\n neighbor {NODE6} passive\n"
        f" neighbor {NODE6} capability extended-nexthop\n"
        f" address-family ipv4 unicast\n  network {NET4}\n  neighbor {NODE6} activate\n exit-address-family\n"
        f" address-family ipv6 unicast\n  network {NET6}\n  neighbor {NODE6} activate\n exit-address-family\n",
    )


def gobgp(namespace: Namespace) -> GoBgp:
    families = "".join(
        f'[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "{family}-unicast"\n'
        for family in ("ipv4", "ipv6")
    )
    return GoBgp(
        namespace,
        f'[global.config]\nas = {TOR_AS}\nrouter-id = "{TOR4}"\n'
        f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{NODE6}"\npeer-as = {NODE_AS}\n' + families,
    )


def exabgp(namespace: Namespace) -> ExaBgp:
    return ExaBgp(
        namespace,
        f"neighbor {NODE6} {{ router-id {TOR4}; local-address {TOR6}; local-as {TOR_AS}; peer-as {NODE_AS};\n"
        "  family { ipv4 unicast; ipv6 unicast; }\n  capability { nexthop enable; }\n  nexthop { ipv4 unicast ipv6; }\n"
        f"  static {{ route {NET4} next-hop {TOR6}; route {NET6} next-hop {TOR6}; }}\n"
        "  api { processes [ watch ]; neighbor-changes; receive { parsed; update; } } }\n",
    )


MAKES: dict[str, Callable[[Namespace], Router]] = {"bird": bird, "frr": frr, "gobgp": gobgp, "exabgp": exabgp}


@pytest.mark.parametrize("make", MAKES)
def test_the_session_carries_its_own_family(lab: Lab, on_the_wire: Wire, make: str) -> None:
    routed, namespace = node_and_tor(lab)
    routed.remove("BGPPeer", "tor4")
    on_the_wire(routed.namespace, "eth0", NODE6)
    tor = MAKES[make](namespace)
    tor.start()
    routed.start()
    wait_for(lambda: routed.established(TOR6) and tor.established(NODE6), 30, "the session is up", state=lab.report)
    announce(tor)
    wait_for(
        lambda: NET6 in routed.kernel_routes(ipv6=True) and BLOCK6 in tor.routes(ipv6=True),
        SOON,
        "IPv6 routes go both ways",
        state=lab.report,
    )
    row = routed.neighbors()[TOR6]
    assert row["negotiated"]["families"] == ["ipv6-unicast"]
    assert {"family ipv4-unicast", OFFERED} <= set(row["negotiated"]["declined"])
    assert OFFERED in routed.ctl("show", "neighbors", TOR6)
    assert row["messages"]["treatAsWithdraw"] == row["messages"]["attributeDiscard"] == 0, "it sent none of them"
    assert NET4 not in routed.kernel_routes() and BLOCK4 not in tor.routes()
    assert row["establishedCount"] == 1 and routed.problems() == []


def test_one_that_sends_them_all_the_same(lab: Lab) -> None:
    """They are left out and counted; what else the peer says counts, and the session stays (RFC 4760 7, RFC 7606)."""
    routed, namespace = node_and_tor(lab)
    routed.remove("BGPPeer", "tor4")
    routed.start()
    offers = multiprotocol() + multiprotocol(ipv6=True) + capability(5, struct.pack(">HHH", 1, 1, 2))
    said = origin() + as_path(TOR_AS)
    with ScriptedPeer(namespace, TOR6, NODE6, asn=TOR_AS) as peer:
        peer.establish(capabilities=offers + four_octet_as(TOR_AS))
        four = attribute(0x80, 14, struct.pack(">HBB", 1, 1, 16) + packed(TOR6) + b"\0" + nlri(NET4))
        peer.send(update(four + said), update(mp_reach(TOR6, NET6) + said))
        wait_for(lambda: NET6 in routed.kernel_routes(ipv6=True), SOON, "its IPv6 route is there", state=routed.routes)
        row = routed.neighbors()[TOR6]
        assert row["messages"]["attributeDiscard"] == 1
        assert "did not negotiate" in row["messages"]["lastFinding"]
        assert NET4 not in routed.routes() and routed.established(TOR6)
