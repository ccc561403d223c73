"""Broken attributes over a real TCP session (RFC 7606): what goes, what stays, and which sessions go on.

FRR's table of cases, row by row, as its README says: the attribute under test is sent on a session of the row's kind, with a
sentinel behind it; a third peer hears what is passed on. The table is read from `tests/corpora`;
where it is absent its test is skipped, and tests/bgp/test_rfc7606.py holds each clause without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.peer import (
    HeardUpdate,
    ScriptedPeer,
    as_path,
    attribute,
    local_pref,
    message,
    mp_reach,
    next_hop,
    nlri,
    origin,
    packed,
    update,
)
from routed.testing.routers import resource
from tests.corpora import CORPORA
from tests.lab.topology import SOON, Rack, address, configuration, node

TABLE = CORPORA / "frr-rfc7606" / "cases.json"
CASES: list[dict[str, Any]] = json.loads(TABLE.read_text()) if TABLE.exists() else []

NODE_AS = 65000
EXTERNAL, INTERNAL, WATCHER = 2, 3, 4
PEER_AS = {EXTERNAL: 65001, INTERNAL: NODE_AS, WATCHER: 65004}
UPDATE_ERROR, MALFORMED_ATTRIBUTES = 3, 1


class Stage:
    """routed, a peer of each kind to say things, and an external one that hears what becomes of them."""

    def __init__(self, lab: Lab) -> None:
        rack = Rack(lab)
        accept = [{"action": "Accept"}]
        self.routed = rack.node(
            1,
            node(1, asNumber=NODE_AS),
            configuration(nodeToNodeMeshEnabled=False, asNumber=NODE_AS),
            resource("BGPFilter", "all", {"exportV4": accept, "exportV6": accept}),
        )
        self.peers: dict[int, ScriptedPeer] = {}
        self.peers6: dict[int, ScriptedPeer] = {}
        """The same neighbours' sessions for IPv6 routes: only these read multiprotocol attributes of IPv6."""
        for number, asn in PEER_AS.items():
            machine = rack.machine(f"peer-{number}", number)
            for ipv6, peers in ((False, self.peers), (True, self.peers6)):
                own = address(number, ipv6=ipv6)
                spec = {"node": "node-1", "peerIP": own, "asNumber": asn, "filters": ["all"]}
                self.routed.put(resource("BGPPeer", f"peer-{number}-v{6 if ipv6 else 4}", spec))
                peers[number] = ScriptedPeer(machine, own, address(1, ipv6=ipv6), asn=asn, router_id=address(number))
        self.routed.start()
        for peer in (*self.peers.values(), *self.peers6.values()):
            self.establish(peer)
        self._cases = 0

    def establish(self, peer: ScriptedPeer) -> None:
        """A new connection of a peer, until both ends say that the session is up: the peer's own end is the first to."""
        peer.connect()
        peer.establish(hold_time=3600)  # it sends no KEEPALIVEs
        wait_for(lambda: self.routed.established(peer.local), SOON, "the session is up", state=self.routed.sessions)

    def close(self) -> None:
        for peer in (*self.peers.values(), *self.peers6.values()):
            peer.close()

    def prefixes(self) -> tuple[str, str]:
        """A prefix for a case's attribute and one for its sentinel, used by no other case."""
        self._cases += 1
        return f"198.18.{self._cases}.0/25", f"198.18.{self._cases}.128/25"

    def common(self, number: int) -> bytes:
        """Good attributes from this peer."""
        asn = PEER_AS[number]
        good = origin() + as_path(65001) + next_hop(address(number))
        return good + (local_pref() if asn == NODE_AS else b"")

    def passed_on(self, number: int, octets: bytes, subject: str, sentinel: str) -> tuple[list[HeardUpdate], Any]:
        """What the watcher hears of `subject` when `octets` are said, and the row routed shows of it meanwhile."""
        sender, watcher = self.peers[number], self.peers[WATCHER]
        sender.send(octets, update(self.common(number), nlri(sentinel)))
        heard = watcher.updates_until(sentinel)
        row = self.routed.route(subject)
        sender.send(update(withdrawn=nlri(subject, sentinel)))
        heard += watcher.updates_until(sentinel)
        return [each for each in heard if subject in each.announced], row

    def established(self) -> dict[str, int]:
        return {peer: row["establishedCount"] for peer, row in self.routed.neighbors().items()}


@pytest.fixture(scope="module")
def stage(lab: Lab) -> Iterator[Stage]:
    made = Stage(lab)
    yield made
    made.close()


@pytest.mark.skipif(not CASES, reason=f"no table at {TABLE}; set ROUTED_CORPORA to where the corpora are")
def test_the_table_has_its_rows() -> None:
    assert len(CASES) == 169


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['suite']}-{case['name']}-{case['peer']}")
def test_row(stage: Stage, case: dict[str, Any]) -> None:
    number = EXTERNAL if case["peer"] == "ebgp" else INTERNAL
    subject, sentinel = stage.prefixes()
    code, value = case["attr_type"], bytes.fromhex(case["value_hex"])
    block = {1: origin(), 2: as_path(65001), 3: next_hop(case["nexthop_override"] or address(number))}
    if number == INTERNAL:
        block[5] = local_pref()
    if code is not None:
        block[code] = attribute(case["flags"], code, value)
    octets = update(b"".join(block.values()), b"" if code in (14, 15) else nlri(subject))

    if case["outcome"] == "session-reset":
        # what these rows break belongs to IPv6, so it is said where IPv6 is spoken
        sender, watcher = stage.peers6[number], stage.peers6[WATCHER]
        sender.send(update(mp_reach(address(number, ipv6=True), "2001:db8:7::/48") + stage.common(number)))
        watcher.updates_until("2001:db8:7::/48")
        before = stage.established()
        sender.send(octets)
        assert list(sender.expect_notification()) == case["notification"]
        (gone,) = watcher.updates_until("2001:db8:7::/48")
        assert gone.withdrawn == ["2001:db8:7::/48"], "the session's routes go with it"
        stage.establish(sender)
        after = stage.established()
        assert [peer for peer in after if after[peer] != before[peer]] == [address(number, ipv6=True)]
        return

    before = stage.established()
    heard, row = stage.passed_on(number, octets, subject, sentinel)
    assert stage.established() == before, "no session was reset"
    if case["outcome"] == "withdraw":
        assert heard == []
        assert row == {}
        return
    (one,) = heard
    (path,) = row["candidates"]
    assert path["best"]
    if case.get("must_propagate"):
        flags, sent = one.attributes[code]
        assert sent == value
        assert flags & 0x20, "the partial bit is set"
    else:
        assert code not in one.attributes
        assert not any(path.get(name) for name in ("unknown", "clusterList", "originatorId"))
        assert path["localPref"] == 100


def test_a_broken_announcement_withdraws_what_was_announced_before(stage: Stage) -> None:
    """Treat-as-withdraw is a withdrawal: of the good route announced a moment ago."""
    subject, sentinel = stage.prefixes()
    sender, watcher = stage.peers[EXTERNAL], stage.peers[WATCHER]
    sender.send(update(stage.common(EXTERNAL), nlri(subject)))
    watcher.updates_until(subject)
    kernel = stage.routed.kernel_routes
    wait_for(lambda: subject in kernel(), SOON, "the good one is in the kernel", state=kernel)
    broken = origin(9) + as_path(65001) + next_hop(address(EXTERNAL))
    sender.send(update(broken, nlri(subject)), update(stage.common(EXTERNAL), nlri(sentinel)))
    heard = watcher.updates_until(sentinel)
    assert [subject] in [each.withdrawn for each in heard]
    wait_for(lambda: subject not in kernel() and sentinel in kernel(), SOON, "the kernel follows", state=kernel)
    sender.send(update(withdrawn=nlri(sentinel)))
    watcher.updates_until(sentinel)


def test_100000_broken_prefixes(stage: Stage) -> None:
    """They are counted and told a few times, not once each; the session and all others go on."""
    routed, sender, watcher = stage.routed, stage.peers[EXTERNAL], stage.peers[WATCHER]
    _, sentinel = stage.prefixes()
    before = stage.established()
    log = len(routed.log())
    broken = origin() + as_path(65001) + next_hop(address(EXTERNAL)) + attribute(0xC0, 8, b"12345")
    batch = 500
    for first in range(0, 100_000, batch):
        octets = b"".join(
            bytes((26,)) + ((20 << 24) + (number << 6)).to_bytes(4, "big") for number in range(first, first + batch)
        )
        sender.send(update(broken, octets))
    sender.send(update(stage.common(EXTERNAL), nlri(sentinel)))
    assert [each.announced for each in watcher.updates_until(sentinel, 100)] == [[sentinel]]
    assert stage.established() == before
    assert [prefix for prefix in routed.routes() if prefix.startswith("20.")] == []
    row = routed.neighbors()[address(EXTERNAL)]
    assert row["messages"]["treatAsWithdraw"] >= 200, row["messages"]
    assert len(routed.log()) - log < 20_000, "the log is not flooded"
    sender.send(update(withdrawn=nlri(sentinel)))
    watcher.updates_until(sentinel)


def test_reachable_and_unreachable_of_a_family_that_was_not_negotiated(stage: Stage) -> None:
    """IPv6 routes on a session that carries IPv4 alone are ignored; the IPv4 ones beside them count."""
    subject, sentinel = stage.prefixes()
    said = update(mp_reach("fd00::2", "2001:db8:77::/48") + stage.common(EXTERNAL), nlri(subject))
    heard, row = stage.passed_on(EXTERNAL, said, subject, sentinel)
    assert len(heard) == 1 and row["candidates"][0]["best"]
    assert "2001:db8:77::/48" not in stage.routed.routes(ipv6=True)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("attributes-longer-than-the-message", b"\0\0\0\xff" + origin()),
        ("withdrawn-longer-than-the-message", b"\0\xff\0\0"),
        ("withdrawn-prefix-too-long", b"\0\x02\x21\x0a\0\0"),
    ],
)
def test_what_cannot_be_taken_to_pieces_ends_the_session(stage: Stage, name: str, body: bytes) -> None:
    sender = stage.peers[EXTERNAL]
    before = stage.established()
    sender.send(message(2, body))
    assert sender.expect_notification()[0] == UPDATE_ERROR, name
    stage.establish(sender)
    after = stage.established()
    assert [peer for peer in after if after[peer] != before[peer]] == [address(EXTERNAL)]


def test_an_attribute_twice(stage: Stage) -> None:
    """Of any but the multiprotocol ones the first counts (RFC 7606 3 g)."""
    subject, sentinel = stage.prefixes()
    twice = stage.common(EXTERNAL) + origin(2) + next_hop("10.0.0.99")
    heard, row = stage.passed_on(EXTERNAL, update(twice, nlri(subject)), subject, sentinel)
    (one,) = heard
    assert one.attributes[1] == (0x40, b"\0")
    assert row["candidates"][0]["nextHop"] == address(EXTERNAL)
    assert one.attributes[3][1] in (packed(address(EXTERNAL)), packed(address(1)))


def test_multiprotocol_reachable_twice_ends_the_session(stage: Stage) -> None:
    sender = stage.peers6[EXTERNAL]
    twice = mp_reach("fd00::2", "2001:db8:1::/48") + mp_reach("fd00::2", "2001:db8:2::/48") + stage.common(EXTERNAL)
    sender.send(update(twice))
    assert sender.expect_notification() == (UPDATE_ERROR, MALFORMED_ATTRIBUTES)
    stage.establish(sender)
