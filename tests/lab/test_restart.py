"""Packets while the daemon restarts: a node, another node and a switch (BIRD) keep forwarding; a shutdown says why."""

# ruff: noqa: B023 (what is waited for is looked at before the loop goes on)

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echoes import echoes
from routed.testing.routers import Bird, Routed, resource
from tests.lab.topology import CLUSTER_AS, RECONNECT, SOON, Rack, address, block, cluster, pod, start

TOR_AS = 65000
TOR = 254
CLIENT = "192.0.2.1"


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> dict[int, Routed]:
    rack = Rack(lab)
    peers = [
        resource("BGPPeer", f"tor-{6 if ipv6 else 4}", {"peerIP": address(TOR, ipv6=ipv6), "asNumber": TOR_AS})
        for ipv6 in (False, True)
    ]
    made = {number: rack.node(number, *cluster(1, 2), *peers) for number in (1, 2)}
    tor = rack.machine("tor", TOR)
    tor.address("lo", f"{CLIENT}/32")
    sessions = "".join(
        f"protocol bgp {{ local {address(TOR, ipv6=six)} as {TOR_AS}; neighbor {address(number, ipv6=six)} as {CLUSTER_AS};"
        " connect delay time 1; connect retry time 2; error wait time 1, 2;"
        f" {'ipv6' if six else 'ipv4'} {{ import all; export where source = RTS_STATIC; }}; }}\n"
        for number in (1, 2)
        for six in (False, True)
    )
    Bird(
        tor,
        f"router id {address(TOR)};\nprotocol device {{}}\n"
        "protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n"
        "protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }\n"
        f'protocol static {{ ipv4; route {CLIENT}/32 via "lo"; }}\n{sessions}',
    ).start()
    start(*made.values())
    return made


@pytest.fixture
def settled(nodes: dict[int, Routed]) -> dict[int, Routed]:
    for number, routed in nodes.items():
        wait_for(lambda: is_whole(routed, number), RECONNECT, f"node-{number} has all it needs", state=routed.sessions)
    return nodes


def is_whole(routed: Routed, number: int) -> bool:
    other = 3 - number
    return routed.established(*(address(each, ipv6=six) for each in (other, TOR) for six in (False, True))) and all(
        routed.kernel_routes(ipv6=six).get(block(other, ipv6=six)) == f"via {address(other, ipv6=six)} dev eth0"
        for six in (False, True)
    )


@contextlib.contextmanager
def nothing_lost(namespace: Namespace, destination: str, source: str) -> Iterator[None]:
    """Twenty pings a second go out for as long as the block runs, and each is answered, one more after it too."""
    asked = echoes(namespace, destination, 0.05, source)
    yield
    sent, lost = asked.end()
    assert not lost, f"{lost} of {sent} pings from {source} to {destination} were lost"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_is_lost_while_the_daemon_restarts(settled: dict[int, Routed], how: str) -> None:
    first, second = settled[1], settled[2]
    with contextlib.ExitStack() as pings:
        # from the node that restarts, to it through the other node's routes, and to it through the switch's
        pings.enter_context(nothing_lost(first.namespace, pod(2), pod(1)))
        pings.enter_context(nothing_lost(second.namespace, pod(1, ipv6=True), pod(2, ipv6=True)))
        pings.enter_context(nothing_lost(first.namespace.lab.namespaces["tor"], pod(1), CLIENT))
        if how == "stop":
            first.stop()
        else:
            first.kill()
        assert second.kernel_routes()[block(1)] == f"via {address(1)} dev eth0", "the other node keeps the routes"
        first.start()
        wait_for(
            lambda: is_whole(first, 1) and is_whole(second, 2), RECONNECT, "all is as before", state=first.sessions
        )
        wait_for(lambda: not first.status()["sweepPending"], RECONNECT, "the restart is over", state=first.status)
        wait_for(lambda: second.neighbors()[address(1)]["families"], SOON, "the session is back at the other end")


def test_a_shutdown_withdraws_and_says_why(settled: dict[int, Routed]) -> None:
    first, second = settled[1], settled[2]
    first.ctl("shutdown", "--reason", "new memory")
    wait_for(lambda: not first.alive, SOON, "the daemon ends")
    wait_for(lambda: block(1) not in second.kernel_routes(), SOON, "its routes go at the other node")
    assert "new memory" in second.neighbors()[address(1)]["lastDown"]
    assert "new memory" in second.ctl("show", "neighbors", address(1))
    assert first.kernel_routes()[block(2)] == f"via {address(2)} dev eth0", "its own kernel keeps them"
    first.start()
    wait_for(lambda: is_whole(first, 1) and is_whole(second, 2), RECONNECT, "all is as before", state=second.sessions)
