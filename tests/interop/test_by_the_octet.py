"""Sessions with a scripted peer, which does what no router can be made to do on purpose: collisions, restarts with and
without forwarding, who connects when.
"""

from __future__ import annotations

import time

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.peer import (
    END_OF_RIB,
    KEEPALIVE,
    OPEN,
    ScriptedPeer,
    as_path,
    attribute,
    four_octet_as,
    graceful_restart,
    message,
    mp_reach,
    mp_unreach,
    multiprotocol,
    next_hop,
    nlri,
    origin,
    update,
)
from routed.testing.routers import Routed, resource
from tests.lab.topology import SOON

NODE, PEER, NODE6, PEER6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
NET, OTHER = "192.0.2.0/24", "198.51.100.0/24"
FORWARDING = 0x80


@pytest.fixture
def routed(lab: Lab) -> Routed:
    node, peer = lab.namespace("node"), lab.namespace("peer")
    lab.link(node.port("eth0", f"{NODE}/24", f"{NODE6}/64"), peer.port("eth0", f"{PEER}/24", f"{PEER6}/64"))
    made = Routed(node)
    made.put(
        resource(
            "Node", "node", {"bgp": {"ipv4Address": f"{NODE}/24", "ipv6Address": f"{NODE6}/64", "asNumber": 65001}}
        ),
        resource("BGPPeer", "p4", {"node": "node", "peerIP": PEER, "asNumber": 65002}),
        resource("BGPPeer", "p6", {"node": "node", "peerIP": PEER6, "asNumber": 65002}),
    )
    return made


@pytest.fixture
def peer(lab: Lab, routed: Routed) -> ScriptedPeer:  # noqa: ARG001 - it makes the namespaces
    return ScriptedPeer(lab.namespaces["peer"], PEER, NODE, asn=65002)


def said(*, hop: str = PEER) -> bytes:
    return origin() + as_path(65002) + next_hop(hop)


def test_it_connects_at_once_and_again_within_seconds(routed: Routed, peer: ScriptedPeer) -> None:
    with peer, peer.listener() as listener:
        routed.start()
        peer.accept(listener)
        assert peer.socket.getpeername()[0] == NODE
        first = peer.establish()
        wait_for(lambda: routed.established(PEER), SOON, "up", state=routed.sessions)
        assert first[:5] == bytes((4, 65001 >> 8, 65001 & 255)) + (240).to_bytes(2, "big")
        peer.reset()
        peer.accept(listener)
        peer.establish()
        wait_for(lambda: routed.established(PEER), SOON, "up again", state=routed.sessions)


@pytest.mark.parametrize("ours", ["10.0.0.0", "10.0.0.9"])
def test_a_collision_ends_the_connection_of_the_lower_identifier(routed: Routed, peer: ScriptedPeer, ours: str) -> None:
    """Both ends connect at once; the connection opened by the one with the higher identifier stays (RFC 4271 6.8)."""
    peer.router_id = ours
    second = ScriptedPeer(peer.namespace, PEER, NODE, asn=65002, router_id=ours)
    with peer, second, peer.listener() as listener:
        routed.start()
        peer.accept(listener)  # routed's
        peer.expect(OPEN)
        second.connect()  # ours
        second.expect(OPEN)
        peer.send(peer.open())
        second.send(second.open())
        stays, goes = (second, peer) if ours == "10.0.0.9" else (peer, second)
        assert goes.expect_notification() == (6, 7), "Connection Collision Resolution"
        stays.expect(KEEPALIVE)
        stays.send(message(KEEPALIVE))
        wait_for(lambda: routed.established(PEER), SOON, "one session is up", state=routed.sessions)
        stays.send(update(said(), nlri(NET)))
        wait_for(lambda: NET in routed.kernel_routes(), SOON, "and carries routes", state=routed.kernel_routes)
    assert routed.neighbors()[PEER]["establishedCount"] == 1


@pytest.mark.parametrize("forwarding", [True, False])
def test_a_restarting_peer_keeps_its_routes_if_it_went_on_forwarding(
    routed: Routed, peer: ScriptedPeer, forwarding: bool
) -> None:
    routed.start()
    base = multiprotocol() + four_octet_as(65002)
    with peer:
        # a restart time far beyond any wait: what goes within one does not go because that is over
        peer.establish(capabilities=base + graceful_restart(300, (1, 1, FORWARDING)))
        peer.send(update(said(), nlri(NET, OTHER)), END_OF_RIB)
        wait_for(lambda: OTHER in routed.kernel_routes(), SOON, "both routes are in the kernel")
        peer.reset()
        wait_for(lambda: not routed.established(PEER), SOON, "the session is down", state=routed.sessions)
        assert {NET, OTHER} <= set(routed.kernel_routes())
        wait_for(lambda: routed.neighbors()[PEER]["families"]["ipv4-unicast"]["stale"] == 2, SOON, "both are stale")

        flags = FORWARDING if forwarding else 0
        peer.establish(capabilities=base + graceful_restart(300, (1, 1, flags), restarting=True))
        if not forwarding:
            wait_for(lambda: not {NET, OTHER} & set(routed.kernel_routes()), SOON, "what cannot work is gone at once")
            return
        peer.send(update(said(), nlri(NET)))
        wait_for(lambda: routed.neighbors()[PEER]["families"]["ipv4-unicast"]["stale"] == 1, SOON, "one is still stale")
        assert {NET, OTHER} <= set(routed.kernel_routes())
        peer.send(END_OF_RIB)
        wait_for(
            lambda: OTHER not in routed.kernel_routes(), SOON, "End-of-RIB takes the rest", state=routed.kernel_routes
        )
        assert NET in routed.kernel_routes()


def test_a_restart_that_takes_too_long(routed: Routed, peer: ScriptedPeer) -> None:
    routed.start()
    with peer:
        peer.establish(capabilities=multiprotocol() + four_octet_as(65002) + graceful_restart(3, (1, 1, FORWARDING)))
        peer.send(update(said(), nlri(NET)), END_OF_RIB)
        wait_for(lambda: NET in routed.kernel_routes(), SOON, "the route is in the kernel")
        lost = time.monotonic()  # before it can be: who looks late sees more than the restart time, never less
        peer.reset()
        wait_for(lambda: NET not in routed.kernel_routes(), SOON, "the restart time is over")
        assert time.monotonic() - lost > 2.9
        assert not routed.established(PEER)


def test_ipv6_routes_come_and_go_by_their_own_attributes(routed: Routed, lab: Lab) -> None:
    routed.start()
    net, other = "2001:db8:1::/48", "2001:db8:2::/48"
    with ScriptedPeer(lab.namespaces["peer"], PEER6, NODE6, asn=65002) as peer:
        peer.establish()
        peer.send(update(mp_reach(PEER6, net, other) + origin() + as_path(65002)))
        wait_for(lambda: {net, other} <= set(routed.kernel_routes(ipv6=True)), SOON, "both are in the kernel")
        peer.send(update(mp_unreach(other)))
        wait_for(lambda: other not in routed.kernel_routes(ipv6=True), SOON, "one is gone")
        assert routed.kernel_routes(ipv6=True) == {net: f"via {PEER6} dev eth0"}
        peer.send(update(mp_unreach()))
        wait_for(
            lambda: routed.neighbors()[PEER6]["families"]["ipv6-unicast"]["endOfRib"],
            SOON,
            "an empty one is End-of-RIB",
        )
        # a withdrawal of what was never announced, and one with attributes beside it, end nothing
        peer.send(update(mp_unreach("2001:db8:3::/48")), update(mp_unreach(net) + attribute(0x40, 1, b"\0")))
        wait_for(lambda: routed.kernel_routes(ipv6=True) == {}, SOON, "the last is gone")
        assert routed.neighbors()[PEER6]["establishedCount"] == 1


def test_hold_time(routed: Routed, peer: ScriptedPeer) -> None:
    """The smaller hold time counts: silence ends the session with Hold Timer Expired, and not before."""
    routed.start()
    with peer:
        # before the last thing we say: who looks late sees more than the hold time, never less
        began = time.monotonic()
        peer.establish(hold_time=6)
        wait_for(lambda: routed.established(PEER), SOON, "the session is up", state=routed.sessions)
        assert routed.neighbors()[PEER]["negotiated"]["holdTime"] == 6
        assert peer.expect_notification() == (4, 0)
        assert time.monotonic() - began > 5.9
        wait_for(lambda: "hold timer" in routed.neighbors()[PEER]["lastError"].lower(), SOON, "it says why")


def test_no_hold_time(routed: Routed, peer: ScriptedPeer) -> None:
    """Hold time 0: no KEEPALIVEs, no expiry (RFC 4271 4.4)."""
    routed.start()
    with peer:
        peer.establish(hold_time=0)
        peer.expect(2)  # End-of-RIB
        with pytest.raises(TimeoutError):
            peer.receive(2.5)
        assert routed.established(PEER)
