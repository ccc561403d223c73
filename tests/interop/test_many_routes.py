"""50,000 routes each way through a node, between two makes of router: all arrive, as they were sent, and all go again.

BIRD and FRR by external sessions of either family; GoBGP and ExaBGP by internal ones, with the node as their reflector, over
IPv4 alone: with each IPv6 route GoBGP lists all that came in the same UPDATE, which takes it minutes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Collection, Iterator
from ipaddress import ip_network, summarize_address_range

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.peer import ScriptedPeer, as_path, next_hop, nlri, origin, update
from routed.testing.routers import Bird, ExaBgp, Frr, GoBgp, Routed, Router, resource
from routed.testing.told import Told
from tests.interop.tors import Wire

pytestmark = [pytest.mark.lab, pytest.mark.timeout(480)]

COUNT = 50_000
NODE_AS, BIRD_AS, FRR_AS, SOURCE_AS = 65001, 65100, 65200, 65300
PATIENCE = 120


def prefixes(number: int, *, ipv6: bool = False) -> list[str]:
    """50,000 networks one after the other."""
    if ipv6:
        return [f"2a00:{number}:{each:x}::/48" if each else f"2a00:{number}::/48" for each in range(COUNT)]
    return [f"{number}.{each >> 8}.{each & 255}.0/24" for each in range(COUNT)]


def batched(prefixes: list[str], size: int) -> Iterator[list[str]]:
    return (prefixes[at : at + size] for at in range(0, len(prefixes), size))


def assert_all_told(router: Router, prefixes: Collection[str], told: Told) -> None:
    """The router has all of them, each as `told`. What differs is named, and not 50,000 lines of it."""
    found = router.tells(ipv6=":" in next(iter(prefixes)))
    missing = [prefix for prefix in prefixes if prefix not in found]
    assert not missing, f"{len(missing)} are missing: {missing[:3]}"
    differing = [prefix for prefix in prefixes if found[prefix] != told]
    assert not differing, f"{len(differing)} differ: {[(prefix, found[prefix]) for prefix in differing[:3]]}"


def drain(connection: socket.socket) -> None:
    """Read what comes, and forget it."""
    connection.settimeout(None)
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


def wait_for_all(*pairs: tuple[Router, str]) -> None:
    for router, address in pairs:
        wait_for(
            lambda router=router, address=address: router.received(address) >= COUNT,
            PATIENCE,
            f"{router.name} has all routes of {address}",
            state=lambda router=router, address=address: router.received(address),
            every=0.5,
        )


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_each_way_between_bird_and_frr(lab: Lab, on_the_wire: Wire, ipv6: bool) -> None:
    from_bird, from_frr = prefixes(11, ipv6=ipv6), prefixes(12, ipv6=ipv6)
    if ipv6:
        family, length, one, bird_ip, two, frr_ip = "ipv6", 64, "fd00:1::1", "fd00:1::2", "fd00:2::1", "fd00:2::2"
    else:
        family, length, one, bird_ip, two, frr_ip = "ipv4", 24, "10.0.1.1", "10.0.1.2", "10.0.2.1", "10.0.2.2"
    node = lab.namespace("node", forward=True)
    left, right = lab.namespace("bird"), lab.namespace("frr")
    lab.link(node.port("eth0", f"{one}/{length}"), left.port("eth0", f"{bird_ip}/{length}"))
    lab.link(node.port("eth1", f"{two}/{length}"), right.port("eth0", f"{frr_ip}/{length}"))
    on_the_wire(node, "eth0", one)
    on_the_wire(node, "eth1", two)
    routed = Routed(node)
    accept = [{"action": "Accept"}]
    if ipv6:
        node.address("eth0", "10.0.1.1/24")  # for its router id
    own = {"ipv4Address": "10.0.1.1/24", f"{family}Address": f"{one}/{length}", "asNumber": NODE_AS}
    routed.put(
        resource("BGPFilter", "everything", {"exportV4": accept, "exportV6": accept}),
        resource("Node", "node", {"bgp": own}),
        *(
            resource(
                "BGPPeer",
                name,
                {"node": "node", "peerIP": ip, "asNumber": asn, "sourceAddress": "None", "filters": ["everything"]},
            )
            for name, ip, asn in (("bird", bird_ip, BIRD_AS), ("frr", frr_ip, FRR_AS))
        ),
    )
    bird = Bird(
        left,
        "router id 10.0.1.2;\nprotocol device {}\n"
        f"protocol static {{ {family}; " + " ".join(f"route {each} blackhole;" for each in from_bird) + " }\n"
        f"protocol bgp node {{ local {bird_ip} as {BIRD_AS}; neighbor {one} as {NODE_AS}; connect delay time 1;\n"
        f"  {family} {{ import all; export all; }}; }}\n",
    )
    frr = Frr(
        right,
        f"router bgp {FRR_AS}\n bgp router-id 10.0.2.2\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
        f" neighbor {two} remote-as {NODE_AS}\n neighbor {two} timers connect 1\n"
        f" address-family {family} unicast\n  neighbor {two} activate\n"
        + "".join(f"  network {each}\n" for each in from_frr),
    )
    bird.launch()
    frr.launch()
    routed.start()
    wait_for_all((routed, bird_ip), (routed, frr_ip), (bird, one), (frr, two))
    told = Told("igp", f"{NODE_AS} {FRR_AS}", one, local_pref=100)
    assert_all_told(bird, from_frr, told)
    assert_all_told(frr, from_bird, Told("igp", f"{NODE_AS} {BIRD_AS}", two))
    wait_for(lambda: len(routed.kernel_routes(ipv6=ipv6)) == 2 * COUNT, PATIENCE, "the kernel has them all", every=0.5)
    assert routed.kernel_routes(ipv6=ipv6) == {
        **dict.fromkeys(from_bird, f"via {bird_ip} dev eth0"),
        **dict.fromkeys(from_frr, f"via {frr_ip} dev eth1"),
    }

    bird.stop()
    wait_for(lambda: frr.received(two) == 0, PATIENCE, "they are withdrawn", every=0.5)
    wait_for(
        lambda: routed.kernel_routes(ipv6=ipv6).keys() == set(from_frr), PATIENCE, "and leave the kernel", every=0.5
    )
    assert routed.established(frr_ip) and routed.problems() == []


def test_each_way_between_gobgp_and_exabgp(lab: Lab, on_the_wire: Wire) -> None:
    """GoBGP has its routes from a scripted peer, since its own are added one by one."""
    from_gobgp, from_exabgp = prefixes(11), prefixes(12)
    node = lab.namespace("node", forward=True)
    left, source, right = lab.namespace("gobgp"), lab.namespace("source"), lab.namespace("exabgp")
    segment = lab.segment("lan")
    segment.attach(node, "eth0", "10.0.1.1/24")
    segment.attach(left, "eth0", "10.0.1.2/24")
    segment.attach(source, "eth0", "10.0.1.3/24")
    lab.link(node.port("eth1", "10.0.2.1/24"), right.port("eth0", "10.0.2.2/24"))
    on_the_wire(node, "eth0", "10.0.1.1")
    on_the_wire(node, "eth1", "10.0.2.1")
    routed = Routed(node)
    own = {"ipv4Address": "10.0.1.1/24", "asNumber": NODE_AS}
    routed.put(
        resource("BGPFilter", "everything", {"exportV4": [{"action": "Accept"}]}),
        resource("Node", "node", {"bgp": own | {"routeReflectorClusterID": "224.0.0.9"}}),
        *(
            resource(
                "BGPPeer",
                name,
                {"node": "node", "peerIP": ip, "asNumber": NODE_AS, "sourceAddress": "None", "filters": ["everything"]},
            )
            for name, ip in (("gobgp", "10.0.1.2"), ("exabgp", "10.0.2.2"))
        ),
    )
    gobgp = GoBgp(
        left,
        f'[global.config]\nas = {NODE_AS}\nrouter-id = "10.0.1.2"\n'
        + "".join(
            f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{peer}"\npeer-as = {asn}\n'
            "[neighbors.transport.config]\npassive-mode = true\n"
            # the scripted peer sends no KEEPALIVEs; without any hold time GoBGP has no patience in writing
            "[neighbors.timers.config]\nhold-time = 900\nkeepalive-interval = 80\n"
            '[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "ipv4-unicast"\n'
            for peer, asn in (("10.0.1.1", NODE_AS), ("10.0.1.3", SOURCE_AS))
        ),
    )
    blocks = summarize_address_range(ip_network(from_exabgp[0])[0], ip_network(from_exabgp[-1])[-1])
    exabgp = ExaBgp(
        right,
        f"neighbor 10.0.2.1 {{ router-id 10.0.2.2; local-address 10.0.2.2; local-as {NODE_AS}; peer-as {NODE_AS};\n"
        "  family { ipv4 unicast; }\n"
        "  static { " + " ".join(f"route {block} next-hop 10.0.2.2 split /24;" for block in blocks) + " }\n"
        "  api { processes [ watch ]; neighbor-changes; receive { parsed; update; } } }\n",
    )
    gobgp.start()
    exabgp.launch()
    routed.start()
    with ScriptedPeer(source, "10.0.1.3", "10.0.1.2", asn=SOURCE_AS, router_id="10.0.1.3") as peer:
        peer.establish(hold_time=900)
        # GoBGP gives it up where it does not read what is passed on to it
        threading.Thread(target=drain, args=(peer.socket,), daemon=True).start()
        said = origin() + as_path(SOURCE_AS) + next_hop(peer.local)
        peer.send(*(update(said, nlri(*some)) for some in batched(from_gobgp, 500)))
        # GoBGP counts while nothing else goes on in it: it is asked last
        wait_for_all((routed, "10.0.1.2"), (routed, "10.0.2.2"), (exabgp, "10.0.2.1"), (gobgp, "10.0.1.1"))
        reflected = {"local_pref": 100, "cluster_list": ("224.0.0.9",)}
        assert_all_told(
            exabgp, from_gobgp, Told("igp", str(SOURCE_AS), "10.0.1.3", originator_id="10.0.1.2", **reflected)
        )
        assert_all_told(gobgp, from_exabgp, Told("igp", "", "10.0.2.2", originator_id="10.0.2.2", **reflected))
        wait_for(lambda: len(routed.kernel_routes()) == 2 * COUNT, PATIENCE, "the kernel has them all", every=0.5)
        assert routed.kernel_routes() == {
            **dict.fromkeys(from_gobgp, "via 10.0.1.3 dev eth0"),
            **dict.fromkeys(from_exabgp, "via 10.0.2.2 dev eth1"),
        }

        exabgp.stop()
        wait_for(lambda: gobgp.received("10.0.1.1") == 0, PATIENCE, "they are withdrawn", every=0.5)
        wait_for(lambda: routed.kernel_routes().keys() == set(from_gobgp), PATIENCE, "and leave the kernel", every=0.5)
        assert routed.established("10.0.1.2") and routed.problems() == []
