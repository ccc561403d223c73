"""A node moves from BIRD to routed and back, and no packet is lost: the routes change hands in the kernel, in place."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Bird, Routed, missing
from tests.lab.test_restart import nothing_lost
from tests.lab.topology import CLUSTER_AS, RECONNECT, SOON, Rack, address, block, cluster, pod, start

pytestmark = pytest.mark.skipif(bool(missing("bird")), reason="needs bird")

BIRD_NUMBER, OUR_NUMBER = "bird", "120"


def bird_config(own: int, other: int) -> str:
    """What a Calico node's BIRD is told, in BIRD 2's words."""
    text = f"router id {address(own)};\nprotocol device {{}}\n"
    for six in (False, True):
        channel = "ipv6" if six else "ipv4"
        text += (
            f"protocol kernel {{ persist; graceful restart; metric {1024 if six else 0};"
            f" {channel} {{ import none; export where source ~ [RTS_BGP, RTS_STATIC]; }}; }}\n"
            f"protocol static {{ {channel}; route {block(own, ipv6=six)} blackhole; }}\n"
            f"protocol bgp {{ local {address(own, ipv6=six)} as {CLUSTER_AS};"
            f" neighbor {address(other, ipv6=six)} as {CLUSTER_AS}; direct; graceful restart on;"
            # as confd has it: a second connection would end BIRD's graceful restart
            f"{' passive;' if address(other, ipv6=six) > address(own, ipv6=six) else ''}"
            " connect delay time 1; connect retry time 2; error wait time 1, 2;"
            f" {channel} {{ import all; export where source = RTS_STATIC; next hop self; }}; }}\n"
        )
    return text


def protocols(routed: Routed) -> set[str]:
    """The protocols of the kernel's routes to the other node's blocks."""
    texts = [routed.namespace.routes(ipv6=six).get(block(2, ipv6=six), "proto none") for six in (False, True)]
    return {text.partition("proto ")[2].split()[0] for text in texts}


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> tuple[Routed, Routed, Bird]:
    rack = Rack(lab)
    first, second = (rack.node(number, *cluster(1, 2)) for number in (1, 2))
    first.configure(kernel={"takeOver": ["bird"]})
    bird = Bird(first.namespace, bird_config(1, 2))
    bird.start()
    start(second)
    peers = [address(1, ipv6=six) for six in (False, True)]
    wait_for(lambda: second.established(*peers), RECONNECT, "BIRD is up", state=second.sessions)
    wait_for(lambda: protocols(first) == {BIRD_NUMBER}, SOON, "BIRD's routes are in the kernel")
    return first, second, bird


@contextlib.contextmanager
def routed_in_its_place(first: Routed, second: Routed, bird: Bird) -> Iterator[None]:
    """BIRD ends on the first node and routed starts; nothing that pods send each other is lost, then and within."""
    peers = [address(1, ipv6=six) for six in (False, True)]
    with contextlib.ExitStack() as pings:
        for six in (False, True):
            pings.enter_context(nothing_lost(first.namespace, pod(2, ipv6=six), pod(1, ipv6=six)))
            pings.enter_context(nothing_lost(second.namespace, pod(1, ipv6=six), pod(2, ipv6=six)))
        bird.kill()
        first.start()
        wait_for(lambda: second.established(*peers), RECONNECT, "routed is up in its place", state=second.sessions)
        wait_for(lambda: not first.status()["sweepPending"], RECONNECT, "the start is over", state=first.status)
        wait_for(lambda: protocols(first) == {OUR_NUMBER}, SOON, "the routes are ours", state=first.fib)
        yield


@contextlib.contextmanager
def back_at_bird(first: Routed, second: Routed) -> Iterator[Bird]:
    """routed ends on the first node, hands its routes over, and BIRD starts: nothing goes from either kernel meanwhile."""
    peers = [address(1, ipv6=six) for six in (False, True)]
    hand = (sys.executable, "-m", "routed.daemon.main", "hand-over", "bird", "--config", str(first.config))
    assert "stop it first" in first.namespace.run("sh", "-c", f"{' '.join(hand)} 2>&1", check=False)
    with contextlib.ExitStack() as watched:
        for each in (first, second):
            watched.enter_context(no_route_deleted(each.namespace))
        first.stop()
        assert "were handed over to bird" in first.namespace.run(*hand)
        assert protocols(first) == {BIRD_NUMBER}
        back = Bird(first.namespace, bird_config(1, 2), recover=True)
        back.start()
        try:
            wait_for(lambda: second.established(*peers), RECONNECT, "BIRD is back", state=second.sessions)
            wait_for(lambda: block(2) in back.routes(), SOON, "and has the routes")
            wait_for(
                lambda: ended_restarts(second, *peers), SOON, "and has said that these are all", state=second.neighbors
            )
            assert protocols(first) == {BIRD_NUMBER}
            yield back
        finally:
            back.kill()


def ended_restarts(routed: Routed, *peers: str) -> bool:
    """Whether nothing is kept any more as it was before these peers were away."""
    rows = routed.neighbors()
    return not any(family["stale"] for peer in peers for family in rows[peer]["families"].values())


@contextlib.contextmanager
def no_route_deleted(namespace: Namespace) -> Iterator[None]:
    """The kernel of a namespace deletes no unicast route of pods meanwhile; a replacement is none."""
    monitor = namespace.start("monitor", "ip", "-o", "monitor", "route")

    def heard(marker: str) -> bool:
        namespace.ip(f"route add blackhole {marker}", f"route del blackhole {marker}")
        return f"Deleted blackhole {marker}" in monitor.text()

    wait_for(lambda: heard("203.0.113.1"), SOON, "the kernel's news arrive", every=0.2)
    yield
    wait_for(lambda: heard("203.0.113.2"), SOON, "all of the kernel's news", every=0.2)
    monitor.stop()
    deleted = [
        line for line in monitor.text().splitlines() if line.startswith("Deleted") and "244" in line and "via" in line
    ]
    assert deleted == []


def test_to_routed_and_back_without_a_lost_packet(nodes: tuple[Routed, Routed, Bird]) -> None:
    first, second, bird = nodes
    with routed_in_its_place(first, second, bird):
        assert "routes of another routing daemon were taken over" in first.log()
        with back_at_bird(first, second):
            pass


def test_what_nobody_asks_for_is_swept(nodes: tuple[Routed, Routed, Bird]) -> None:
    first, _, bird = nodes
    bird.kill()  # it has gone already where the test before this ran
    first.namespace.route(f"add 10.244.9.0/26 via {address(2)} proto bird")
    first.namespace.route(f"add 10.244.8.0/26 via {address(2)} proto static")
    for unresolved in ("unreachable 10.244.7.0/26", "prohibit 10.244.6.0/26"):
        first.namespace.route(f"add {unresolved} proto bird")
    for six in (False, True):
        first.namespace.route(f"replace unreachable {block(2, ipv6=six)} proto bird")
    first.start()
    wait_for(lambda: not first.status()["sweepPending"], RECONNECT, "the start is over", state=first.status)
    wait_for(lambda: "10.244.9.0/26" not in first.namespace.routes(), SOON, "what BIRD left and nobody wants is gone")
    assert "proto static" in first.namespace.routes()["10.244.8.0/26"], "never another's"
    nowhere = {"10.244.7.0/26", "10.244.6.0/26"}
    wait_for(lambda: not first.namespace.routes().keys() & nowhere, SOON, "and what it could not resolve")
    for six in (False, True):
        wait_for(
            lambda six=six: "via" in first.namespace.routes(ipv6=six).get(block(2, ipv6=six), ""), SOON, "a way again"
        )
    wait_for(lambda: protocols(first) == {OUR_NUMBER}, SOON, "all are ours", state=first.fib)
