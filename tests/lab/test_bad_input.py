"""Peers that err, attack, sleep or never listen, and a machine that refuses: a clear sentence each, and nobody else hurt.

One node has two good neighbours that stay up all through, with routes, and one that misbehaves in every test.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
from collections.abc import Callable, Iterator

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.peer import (
    KEEPALIVE,
    NOTIFICATION,
    OPEN,
    ScriptedPeer,
    as_path,
    capability,
    four_octet_as,
    message,
    multiprotocol,
    next_hop,
    nlri,
    open_message,
    origin,
    read_update,
    update,
)
from routed.testing.routers import START, Json, Routed, resource
from tests.lab.topology import SOON, Rack, address, affinity, configuration, flaps, node

NODE_AS = 65000
GOOD, OTHER, BAD = 2, 3, 4
STRANGER = 9
PEER_AS = {GOOD: 65002, OTHER: 65003, BAD: 65004}
NET = "192.0.2.0/24"


def peering(number: int, asn: int) -> Json:
    spec = {"node": "node-1", "peerIP": address(number), "asNumber": asn, "filters": ["all"]}
    return resource("BGPPeer", f"peer-{number}", spec)


def resources() -> list[Json]:
    return [
        node(1, ipv6=False, asNumber=NODE_AS),
        configuration(nodeToNodeMeshEnabled=False, asNumber=NODE_AS),
        resource("BGPFilter", "all", {"exportV4": [{"action": "Accept"}]}),
        affinity(1, "10.244.1.0/26"),
        *(peering(number, asn) for number, asn in PEER_AS.items()),
    ]


class Stage:
    def __init__(self, lab: Lab) -> None:
        rack = Rack(lab)
        self.routed = rack.node(1, *resources(), ipv6=False)
        spaces = {number: rack.machine(f"peer-{number}", number, ipv6=False) for number in (*PEER_AS, STRANGER)}
        self.peers = {
            number: ScriptedPeer(space, address(number), address(1), asn=PEER_AS.get(number, 65009))
            for number, space in spaces.items()
        }
        # small send buffers: a neighbour that does not read is felt at once
        self.routed.namespace.sysctl("net.ipv4.tcp_wmem", "4096 16384 65536")
        self.routed.start()
        for number in (GOOD, OTHER):
            self.peers[number].establish(hold_time=0)  # they send no KEEPALIVEs, however long all tests take
        self.peers[GOOD].send(update(origin() + as_path(65002) + next_hop(address(GOOD)), nlri(NET)))
        self.peers[OTHER].updates_until(NET)

    def row(self) -> Json:
        """What routed says of the bad neighbour."""
        return self.routed.neighbors()[address(BAD)]

    def wait_for_error(self, *words: str) -> None:
        """Its `lastError` is a sentence with these words, and so is a line of the log."""
        wait_for(
            lambda: all(word in str(self.row()["lastError"]) for word in words),
            SOON,
            f"the error names {words}",
            state=lambda: self.row()["lastError"],
        )

        def told() -> list[str]:
            return [line for line in self.routed.log().splitlines() if "Node_10_0_0_4" in line]

        wait_for(
            lambda: any(all(word in line for word in words) for line in told()), SOON, "the log says so too",
            state=lambda: told()[-5:],
        )  # fmt: skip


@pytest.fixture(scope="module")
def whole(lab: Lab) -> Iterator[Stage]:
    made = Stage(lab)
    yield made
    for peer in made.peers.values():
        peer.close()


@pytest.fixture
def stage(whole: Stage) -> Iterator[Stage]:
    """The stage; afterwards the good neighbours have noticed nothing."""
    yield whole
    whole.peers[BAD].close()
    whole.peers[STRANGER].close()
    assert whole.routed.alive
    counts = flaps(whole.routed)
    assert (counts[address(GOOD)], counts[address(OTHER)]) == (1, 1)
    assert whole.routed.kernel_routes()[NET] == f"via {address(GOOD)} dev eth0"
    assert "Traceback" not in whole.routed.log()


def opening(asn: int = 65004, router_id: str = "10.0.0.4", hold: int = 240, version: int = 4) -> bytes:
    return open_message(asn, router_id, hold, multiprotocol() + four_octet_as(asn), version)


MISTAKES: dict[str, tuple[bytes, tuple[int, int], tuple[str, ...]]] = {
    "wrong-as": (opening(asn=65099), (2, 2), ("65099", "65004")),
    "version-3": (opening(version=3), (2, 1), ("version",)),
    "zero-router-id": (opening(router_id="0.0.0.0"), (2, 3), ("0.0.0.0",)),
    "hold-time-2": (opening(hold=2), (2, 6), ("hold time",)),
    "marker": (b"\0" * 16 + opening()[16:], (1, 1), ("marker",)),
    "length-18": (b"\xff" * 16 + struct.pack(">HB", 18, 1), (1, 2), ("18",)),
    "length-65535": (b"\xff" * 16 + struct.pack(">HB", 65535, 1), (1, 2), ("65535",)),
    "short-open": (message(OPEN, b"\x04"), (1, 2), ("20",)),
    "type-9": (message(9), (1, 3), ("9",)),
    "web": (b"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n", (1, 1), ("marker",)),
    "keepalive-first": (message(KEEPALIVE), (5, 1), ("KEEPALIVE", "OpenSent")),
    "update-first": (update(), (5, 1), ("UPDATE", "OpenSent")),
    "open-twice": (opening() + opening(), (5, 2), ("OPEN", "OpenConfirm")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_neighbour(stage: Stage, mistake: str) -> None:
    octets, error, words = MISTAKES[mistake]
    peer = stage.peers[BAD]
    peer.connect()
    peer.expect(OPEN)
    peer.send(octets)
    assert peer.expect_notification() == error
    stage.wait_for_error(*words)
    assert stage.row()["state"] != "Established"


def test_mistakes_do_not_lock_a_neighbour_out(stage: Stage) -> None:
    peer = stage.peers[BAD]
    for _ in range(10):
        peer.connect()
        peer.send(b"\0" * 19)
        peer.expect_notification()
    peer.connect()
    peer.establish()
    wait_for(lambda: stage.row()["state"] == "Established", SOON, "it is up once it behaves")


def test_noise(stage: Stage) -> None:
    """Octets at random, cut at random: an error and an end, every time."""
    rng = random.Random(7)
    peer = stage.peers[BAD]
    for _ in range(20):
        peer.connect()
        noise = opening()[: rng.randrange(19, 60)] + rng.randbytes(rng.randrange(1, 3000))
        try:
            peer.send(noise[: len(noise) // 2])
            peer.send(noise[len(noise) // 2 :])
            peer.socket.shutdown(socket.SHUT_WR)
        except OSError:
            continue  # it was hung up on before it had said all
        peer.expect_end()
    assert stage.row()["lastError"]


def test_a_neighbour_that_says_nothing(stage: Stage) -> None:
    peer = stage.peers[BAD]
    peer.connect()
    peer.expect(OPEN)
    wait_for(lambda: stage.row()["state"] == "OpenSent", SOON, "we wait for its OPEN", state=stage.row)
    stays(lambda: stage.row()["state"] == "OpenSent", 0.5, "nothing happens, and nothing is held up")


def test_many_silent_connections(stage: Stage) -> None:
    """More connections of one neighbour than a collision needs are refused; none of them costs the others anything."""
    peer = stage.peers[BAD]
    opened = []
    for _ in range(50):
        with peer.namespace.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.bind((address(BAD), 0))
        sock.connect((address(1), 179))
        opened.append(sock)
    wait_for(
        lambda: _connections(stage.routed) <= 4, SOON, "the rest is closed", state=lambda: _connections(stage.routed)
    )
    for sock in opened:
        sock.close()


def _connections(routed: Routed) -> int:
    """TCP connections of the bad neighbour's address that routed holds open."""
    lines = routed.namespace.run("ss", "-Htn", "state", "established", "dst", address(BAD)).splitlines()
    return len(lines)


def test_a_stranger(stage: Stage) -> None:
    """Who is no neighbour is not even greeted."""
    peer = stage.peers[STRANGER]
    peer.connect()
    assert peer.expect_end() == []
    wait_for(
        lambda: "refused a connection from 10.0.0.9" in stage.routed.log(),
        SOON,
        "the log says why",
        state=stage.routed.log,
    )


def test_a_neighbour_that_refuses_our_open(stage: Stage) -> None:
    """It answers Unsupported Capability: its words are shown, and it is tried again."""
    peer = stage.peers[BAD]
    peer.connect()
    peer.expect(OPEN)
    peer.send(message(NOTIFICATION, bytes((2, 7)) + capability(64, b"\0\0")))
    peer.expect_end()
    stage.wait_for_error("Unsupported Capability")
    peer.connect()
    peer.establish()
    wait_for(lambda: stage.row()["state"] == "Established", SOON, "the next attempt succeeds")


def test_hostile_text_is_shown_harmless(stage: Stage) -> None:
    """A shutdown communication (RFC 9003) with escape sequences and line ends is one line of plain text."""
    peer = stage.peers[BAD]
    peer.connect()
    peer.establish()
    evil = "so long\x1b[2J\r\n2026-01-01 error fake line \u202e".encode()
    peer.send(message(NOTIFICATION, bytes((6, 2, len(evil))) + evil))
    stage.wait_for_error("so long")
    shown = stage.routed.ctl("show", "neighbors", address(BAD))
    for text in (shown, stage.routed.log(), str(stage.row()["lastError"])):
        assert "\x1b" not in text and "\u202e" not in text
    assert not any(line.startswith("2026-01-01 error fake") for line in stage.routed.log().splitlines())


def test_a_neighbour_that_never_reads(stage: Stage) -> None:
    """Its share waits outside the way of the others, and is complete once it reads."""
    bad, good, other = (stage.peers[number] for number in (BAD, GOOD, OTHER))
    bad.connect()
    bad.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    bad.establish()
    count = 40_000
    attributes = [
        origin() + as_path(65002, 100_000 + number) + next_hop(address(GOOD)) for number in range(count // 50)
    ]

    def prefixes(first: int) -> bytes:
        return b"".join(bytes((26,)) + ((20 << 24) + (n << 6)).to_bytes(4, "big") for n in range(first, first + 50))

    for number, said in enumerate(attributes):
        good.send(update(said, prefixes(number * 50)))
    last = "20.39.15.192/26"
    heard = {prefix for each in other.updates_until(last, 30) for prefix in each.announced}
    assert len(heard) >= count
    for number in range(len(attributes)):
        good.send(update(withdrawn=prefixes(number * 50)))
    gone = {prefix for each in other.updates_until(last, 30) for prefix in each.withdrawn}
    assert len(gone) >= count
    assert stage.row()["state"] == "Established"

    held: set[str] = set()
    marker = "203.0.113.0/24"
    good.send(update(origin() + as_path(65002) + next_hop(address(GOOD)), nlri(marker)))
    while marker not in held:
        said_now = read_update(bad.expect(2, 30).body)
        held.difference_update(said_now.withdrawn)
        held.update(said_now.announced)
    assert held == {NET, marker, "10.244.1.0/26"}
    good.send(update(withdrawn=nlri(marker)))
    other.updates_until(marker)


# ---- the machine refuses


@pytest.fixture
def alone(lab: Lab) -> Iterator[Callable[..., Routed]]:
    """A node of its own, in a rack of its own."""
    made: list[Routed] = []

    def make(*manifests: Json, **settings: object) -> Routed:
        name = f"alone-{len(lab.namespaces)}"
        rack = Rack(lab, name)
        space = lab.namespace(f"{name}-node", forward=True)
        rack.segment.attach(space, "eth0", f"{address(1)}/24")
        routed = Routed(space, node_name="node-1", **settings)
        routed.put(*manifests)
        made.append(routed)
        return routed

    yield make
    for routed in made:
        routed.kill()


def test_a_port_that_is_taken(alone: Callable[..., Routed]) -> None:
    routed = alone(*resources())
    code = "import socket,time; s=socket.socket(); s.bind(('', 179)); s.listen(); time.sleep(600)"
    squatter = routed.namespace.start("squatter", sys.executable, "-c", code)
    wait_for(lambda: ":179" in routed.namespace.run("ss", "-Htln"), SOON, "the port is taken")
    routed.start()
    (problem,) = wait_for(
        lambda: [text for text in routed.problems() if "port 179 (IPv4)" in text], SOON, "the problem is shown"
    )
    assert "another program uses it" in problem
    assert problem in routed.log()
    wait_for(
        lambda: routed.kernel_routes() == {"10.244.1.0/26": "blackhole"}, SOON, "the rest works",
        state=routed.kernel_routes,
    )  # fmt: skip
    squatter.kill()
    wait_for(lambda: not routed.problems(), SOON, "the port is had as soon as it is free", state=routed.problems)


def test_an_address_no_interface_has(alone: Callable[..., Routed]) -> None:
    moved = resource("Node", "node-1", {"bgp": {"ipv4Address": "10.0.0.77/24", "asNumber": NODE_AS}})
    routed = alone(*resources()[1:], moved)
    routed.start()
    row = wait_for(
        lambda: next((row for row in routed.neighbors().values() if row["lastError"]), None), SOON, "the error is shown"
    )
    assert "10.0.0.77" in row["lastError"], row["lastError"]


def test_no_permission(alone: Callable[..., Routed], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_NET_ADMIN and CAP_NET_BIND_SERVICE: both are said, and the daemon runs."""
    routed = alone(*resources())
    start = routed.namespace.start
    drop = ("setpriv", "--bounding-set=-net_admin,-net_bind_service")
    monkeypatch.setattr(routed.namespace, "start", lambda name, *argv: start(name, *drop, *argv))
    routed.start()
    for words in (("port 179", "CAP_NET_BIND_SERVICE"), ("give CAP_NET_ADMIN",)):
        wait_for(
            lambda words=words: all(word in "\n".join(routed.problems()) for word in words), SOON, f"{words} are shown",
            state=routed.problems,
        )  # fmt: skip
    assert routed.kernel_routes() == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodeName: node-1\n", ("datastore.path", "required")),
        ("nodeNmae: node-1\n", ("nodeNmae", "nodeName")),
        ("datastore: {path: /nowhere/at/all}\n", ("/nowhere/at/all",)),
        ("datastore: {path: .}\nkernel: {routeProtocol: 2}\n", ("kernel.routeProtocol", "5 to 255")),
        ("datastore: {path: .}\nlog: {level: loud}\n", ("log.level", "loud")),
        ("[", ("YAML",)),
    ],
)
def test_a_wrong_configuration_ends_with_78(alone: Callable[..., Routed], text: str, words: tuple[str, ...]) -> None:
    routed = alone()
    routed.config.write_text(text)
    routed.launch()
    assert routed.processes[0].wait(START) == os.EX_CONFIG
    said = routed.log().strip()
    assert len(said.splitlines()) == 1, said
    for word in (*words, str(routed.config) if "nowhere" not in text else "no such"):
        assert word in said
