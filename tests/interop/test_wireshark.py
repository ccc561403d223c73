"""What routed puts on the wire, as Wireshark reads it: nothing malformed, nothing too much.

A capture of a session with a start, many routes of both families, withdrawals, an End-of-RIB, a refresh and a shutdown.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from routed.testing.lab import Lab, run, wait_for
from routed.testing.peer import (
    KEEPALIVE,
    ScriptedPeer,
    as_path,
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

NAMES = {1: "OPEN", 2: "UPDATE", 3: "NOTIFICATION", 4: "KEEPALIVE", 5: "ROUTE-REFRESH"}


def bgp_messages(capture: Path, source: str) -> list[dict[str, object]]:
    """The BGP layers of the packets from one address."""
    found: list[dict[str, object]] = []
    text = run(
        "tshark", "-n", "-r", str(capture), "-Y", f"bgp and ip.src == {source}", "-T", "json", "--no-duplicate-keys"
    )
    for packet in json.loads(text or "[]"):
        layers = packet["_source"]["layers"]["bgp"]
        found += layers if isinstance(layers, list) else [layers]
    return found


def test_every_message_is_well_formed(lab: Lab) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    node, peer = lab.namespace("node"), lab.namespace("peer")
    lab.link(node.port("eth0", "10.0.0.1/24", "fd00::1/64"), peer.port("eth0", "10.0.0.2/24", "fd00::2/64"))
    capture = lab.folder / "bgp.pcap"
    dumper = node.start("dumpcap", "dumpcap", "-q", "-i", "eth0", "-f", "tcp port 179", "-w", str(capture))
    wait_for(lambda: "File:" in dumper.text() or capture.exists(), 10, "the capture runs", state=dumper.text)
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
        wait_for(lambda: "192.0.2.0/24" in routed.routes(), 5, "the route is known")
        for i in range(25):
            routed.remove("BlockAffinity", f"b{i}")
            routed.remove("BlockAffinity", f"c{i}")
        wait_for(lambda: len(routed.kernel_routes()) == 26, 5, "half the blocks are gone", state=routed.kernel_routes)
        routed.ask("clear", address="10.0.0.2", mode="in")
        routed.stop()
        four.expect_notification()
        six.expect_notification()
    wait_for(lambda: capture.stat().st_size > 0, 5, "something was captured")
    dumper.signal(2)
    dumper.wait()

    malformed = run(
        *("tshark", "-n", "-r", str(capture), "-Y", "_ws.malformed or _ws.expert.severity == error"),
        *("-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message"),
    )
    assert malformed == ""
    kinds: Counter[str] = Counter()
    for layer in bgp_messages(capture, "10.0.0.1"):
        kinds[NAMES[int(str(layer["bgp.type"]))]] += 1
    assert kinds["OPEN"] == 1
    assert kinds["NOTIFICATION"] == 1
    assert kinds["ROUTE-REFRESH"] == 1
    # 50 blocks at first, an End-of-RIB, and 25 withdrawn, well packed
    assert 3 <= kinds["UPDATE"] <= 3 + 25
