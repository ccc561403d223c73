"""50,000 routes each way through a node, between two makes of router: all arrive, as they were sent, and all go again."""

from __future__ import annotations

import re

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, Frr, Routed, resource
from tests.interop.tors import Wire

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

COUNT = 50_000
NODE_AS, BIRD_AS, FRR_AS = 65001, 65100, 65200


def prefixes(first: int) -> list[str]:
    return [f"{first + (number >> 16)}.{number >> 8 & 255}.{number & 255}.0/24" for number in range(COUNT)]


FROM_BIRD, FROM_FRR = prefixes(11), prefixes(12)


def bird_routes(bird: Bird) -> dict[str, str]:
    """What BIRD has from the node: the AS path by prefix."""
    text = bird.ctl("show", "route", "protocol", "node", "all")
    found, prefix = {}, ""
    for line in text.splitlines():
        if match := re.match(r"(\d+\.\d+\.\d+\.\d+/\d+)", line):
            prefix = match[1]
        elif match := re.search(r"BGP.as_path: (.*)", line):
            found[prefix] = match[1].strip()
    return found


def test_each_way_between_bird_and_frr(lab: Lab, on_the_wire: Wire) -> None:
    node = lab.namespace("node", forward=True)
    left, right = lab.namespace("bird"), lab.namespace("frr")
    lab.link(node.port("eth0", "10.0.1.1/24"), left.port("eth0", "10.0.1.2/24"))
    lab.link(node.port("eth1", "10.0.2.1/24"), right.port("eth0", "10.0.2.2/24"))
    on_the_wire(node, "eth0", "10.0.1.1")
    on_the_wire(node, "eth1", "10.0.2.1")
    routed = Routed(node)
    everything = {"exportV4": [{"action": "Accept"}]}
    routed.put(
        resource("BGPFilter", "everything", everything),
        resource("Node", "node", {"bgp": {"ipv4Address": "10.0.1.1/24", "asNumber": NODE_AS}}),
        *(
            resource(
                "BGPPeer",
                name,
                {"node": "node", "peerIP": ip, "asNumber": asn, "sourceAddress": "None", "filters": ["everything"]},
            )
            for name, ip, asn in (("bird", "10.0.1.2", BIRD_AS), ("frr", "10.0.2.2", FRR_AS))
        ),
    )
    bird = Bird(
        left,
        "router id 10.0.1.2;\nprotocol device {}\n"
        "protocol static { ipv4; " + " ".join(f"route {each} blackhole;" for each in FROM_BIRD) + " }\n"
        f"protocol bgp node {{ local 10.0.1.2 as {BIRD_AS}; neighbor 10.0.1.1 as {NODE_AS}; connect delay time 1;\n"
        "  ipv4 { import all; export all; }; }\n",
    )
    frr = Frr(
        right,
        f"router bgp {FRR_AS}\n bgp router-id 10.0.2.2\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
        f" neighbor 10.0.2.1 remote-as {NODE_AS}\n"
        " neighbor 10.0.2.1 timers connect 1\n address-family ipv4 unicast\n"
        + "".join(f"  network {each}\n" for each in FROM_FRR),
    )
    bird.launch()
    frr.launch()
    routed.start()
    wait_for(lambda: routed.established("10.0.1.2", "10.0.2.2"), 90, "both sessions are up", state=routed.sessions)

    expected = dict.fromkeys(FROM_FRR, f"{NODE_AS} {FRR_AS}")
    wait_for(lambda: len(bird_routes(bird)) >= COUNT, 120, "BIRD has them all", state=lambda: len(bird_routes(bird)))
    assert bird_routes(bird) == expected
    wait_for(lambda: len(set(frr.routes()) & set(FROM_BIRD)) == COUNT, 120, "FRR has them all")
    heard = frr.routes()
    assert all(f"{NODE_AS} {BIRD_AS}" in heard[prefix] for prefix in FROM_BIRD)
    wait_for(lambda: len(routed.kernel_routes()) == 2 * COUNT, 60, "the kernel has them all")
    assert routed.kernel_routes().keys() == {*FROM_BIRD, *FROM_FRR}

    bird.stop()
    wait_for(lambda: not set(frr.routes()) & set(FROM_BIRD), 120, "they are withdrawn")
    wait_for(lambda: routed.kernel_routes().keys() == set(FROM_FRR), 60, "and leave the kernel")
    assert routed.established("10.0.2.2") and routed.problems() == []
