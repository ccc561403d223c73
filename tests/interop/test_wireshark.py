"""What routed puts on the wire, as Wireshark reads it: nothing malformed, nothing too much.

A capture of a session with a start, many routes of both families, withdrawals, an End-of-RIB, a refresh and a shutdown.
"""

from __future__ import annotations

import pytest

from routed.testing.capture import Capture
from routed.testing.lab import Lab, wait_for
from routed.testing.peer import (
    KEEPALIVE,
    OPEN,
    UPDATE,
    ScriptedPeer,
    as_path,
    attribute,
    capability,
    communities,
    four_octet_as,
    message,
    mp_reach,
    multiprotocol,
    next_hop,
    nlri,
    origin,
    update,
)
from routed.testing.routers import Routed, resource
from tests.interop.tors import Wire
from tests.lab.topology import SOON


def test_every_message_is_well_formed(lab: Lab, on_the_wire: Wire) -> None:
    node, peer = lab.namespace("node"), lab.namespace("peer")
    lab.link(node.port("eth0", "10.0.0.1/24", "fd00::1/64"), peer.port("eth0", "10.0.0.2/24", "fd00::2/64"))
    capture = on_the_wire(node, "eth0", "10.0.0.1", "fd00::1")
    routed = Routed(node, onStop="shutdown")
    accept = [{"action": "Accept"}]
    routed.put(
        resource(
            "Node", "node", {"bgp": {"ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64", "asNumber": 65001}}
        ),
        resource("BGPFilter", "all", {"exportV4": accept, "exportV6": accept}),
        resource("BGPPeer", "p4", {"node": "node", "peerIP": "10.0.0.2", "asNumber": 65002, "filters": ["all"]}),
        resource("BGPPeer", "p6", {"node": "node", "peerIP": "fd00::2", "asNumber": 65002, "filters": ["all"]}),
        *(resource("BlockAffinity", f"b{i}", {"node": "node", "cidr": f"10.244.{i}.0/26"}) for i in range(50)),
        *(resource("BlockAffinity", f"c{i}", {"node": "node", "cidr": f"fd44:{i:x}::/122"}) for i in range(50)),
    )
    routed.start()
    with (
        ScriptedPeer(peer, "10.0.0.2", "10.0.0.1", asn=65002) as four,
        ScriptedPeer(peer, "fd00::2", "fd00::1", asn=65002) as six,
    ):
        four.establish(capabilities=multiprotocol() + four_octet_as(65002) + capability(2))
        six.establish()
        said = origin() + as_path(65002, 4200000001) + communities("65002:1")
        four.send(update(said + next_hop("10.0.0.2"), nlri("192.0.2.0/24")), message(KEEPALIVE))
        six.send(update(mp_reach("fd00::2", "2001:db8::/32") + said))
        wait_for(lambda: "192.0.2.0/24" in routed.routes(), SOON, "the route is known")
        for i in range(25):
            routed.remove("BlockAffinity", f"b{i}")
            routed.remove("BlockAffinity", f"c{i}")
        wait_for(
            lambda: len(routed.kernel_routes()) == 26, SOON, "half the blocks are gone", state=routed.kernel_routes
        )
        routed.ask("clear", address="10.0.0.2", mode="in")
        routed.stop()
        four.expect_notification()
        six.expect_notification()
    heard = capture.judge()
    assert {address: kinds["OPEN"] for address, kinds in heard.items()} == {"10.0.0.1": 1, "fd00::1": 1}
    assert all(kinds["NOTIFICATION"] == 1 for kinds in heard.values())
    assert heard["10.0.0.1"]["ROUTE-REFRESH"] == 1
    # 50 blocks at first, an End-of-RIB, and 25 withdrawn, well packed
    assert all(3 <= kinds["UPDATE"] <= 3 + 25 for kinds in heard.values()), heard


@pytest.fixture
def two(lab: Lab) -> tuple[ScriptedPeer, ScriptedPeer, Capture]:
    """Two scripted peers, connected; what the first, 10.0.0.1, says is captured."""
    one, other = lab.namespace("one"), lab.namespace("other")
    lab.link(one.port("eth0", "10.0.0.1/24", "fd00::1/64"), other.port("eth0", "10.0.0.2/24"))
    capture = Capture(one, "eth0", "10.0.0.1")
    speaker, listener = (
        ScriptedPeer(one, "10.0.0.1", "10.0.0.2", asn=65001),
        ScriptedPeer(other, "10.0.0.2", "10.0.0.1", asn=65002),
    )
    with listener.listener() as waiting:
        speaker.connect()
        listener.accept(waiting)
    return speaker, listener, capture


@pytest.mark.parametrize(
    "wrong",
    [
        update(origin() + attribute(0x40, 3, bytes(3)), nlri("192.0.2.0/24")),  # a next hop of three octets
        update(origin() + attribute(0x40, 2, b"\2\5\0\1"), nlri("192.0.2.0/24")),  # a path cut short
        update(origin(), b"\x28\1\2\3\4\5"),  # an IPv4 prefix of 40 bits
    ],
    ids=["next hop", "AS path", "prefix"],
)
def test_what_is_malformed_does_not_pass(two: tuple[ScriptedPeer, ScriptedPeer, Capture], wrong: bytes) -> None:
    speaker, listener, capture = two
    speaker.send(speaker.open(), message(KEEPALIVE), wrong)
    listener.expect(OPEN)
    listener.expect(UPDATE)
    with pytest.raises(AssertionError, match="tshark, 1 times: BGP"):
        capture.judge()


def test_silence_does_not_pass(two: tuple[ScriptedPeer, ScriptedPeer, Capture]) -> None:
    speaker, listener, capture = two
    speaker.send(speaker.open(), message(KEEPALIVE))
    listener.expect(OPEN)
    capture.addresses += ("fd00::1",)  # which says nothing
    with pytest.raises(AssertionError, match="no BGP message of fd00::1"):
        capture.judge()
