"""Adj-RIB-In and Adj-RIB-Out of one peer: what is shown is what was said on the wire, with the reason for each verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.bgp.attributes import AttributeSet
from routed.core import exchanged, queries
from routed.core.exchanged import Wanted, advertised, in_order, longest_match, received
from routed.core.queries import Row, neighbors
from routed.model.resources import JsonObject, ResourceKey
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix, parse_prefix
from routed.rib.path import Path
from routed.rib.table import SLICE, FamilyRib
from routed.testing.world import Node, World

API = "projectcalico.org/v3"
V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def manifest(kind: str, name: str, spec: JsonObject) -> JsonObject:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def node(name: str, index: int, asn: int) -> JsonObject:
    bgp: JsonObject = {"ipv4Address": f"10.0.0.{index}/24", "ipv6Address": f"fd00::{index}/64", "asNumber": asn}
    return manifest("Node", name, {"bgp": bgp})


def block(owner: str, cidr: str) -> JsonObject:
    name = f"{owner}-{cidr.replace('/', '-').replace('.', '-').replace(':', '-')}"
    return manifest("BlockAffinity", name, {"node": owner, "cidr": cidr, "state": "confirmed", "deleted": "false"})


FILTER = manifest(
    "BGPFilter",
    "picky",
    {
        "importV4": [{"cidr": "10.244.3.0/24", "matchOperator": "In", "action": "Reject"}],
        "exportV4": [{"cidr": "10.244.9.0/24", "matchOperator": "In", "action": "Reject"}],
    },
)

POOLS = [
    manifest("IPPool", "v4", {"cidr": "10.244.0.0/16", "blockSize": 26}),
    manifest("IPPool", "v6", {"cidr": "fd00:10::/48", "blockSize": 122}),
    manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}),
]

NAMES = {1: "a", 2: "b", 3: "c"}


def peer(of: str, index: int, asn: int, filters: Iterable[str] = ()) -> list[JsonObject]:
    spec: JsonObject = {"node": of, "asNumber": asn, "filters": [*filters]}
    return [
        manifest("BGPPeer", f"{of}-{index}-v{version}", {**spec, "peerIP": address})
        for version, address in ((4, f"10.0.0.{index}"), (6, f"fd00::{index}"))
    ]


@pytest.fixture(scope="module")
def line() -> dict[str, Node]:
    """a (AS 1) -- b (AS 2) -- c (AS 3); b is picky about what it takes from c and gives to a."""
    world = World()
    everything = [
        *POOLS,
        FILTER,
        *(node(name, index, index) for index, name in NAMES.items()),
        *(block(name, f"10.244.{index}.0/26") for index, name in NAMES.items()),
        *(block(name, f"fd00:10:0:{index}::/122") for index, name in NAMES.items()),
        block("c", "10.244.30.0/26"),
        block("b", "10.244.9.0/26"),
        *peer("a", 2, 2),
        *peer("b", 1, 1, ["picky"]),
        *peer("b", 3, 3, ["picky"]),
        *peer("c", 2, 2),
    ]
    nodes = {
        name: world.add(name, [(f"10.0.0.{index}", 24), (f"fd00::{index}", 64)], everything)
        for index, name in NAMES.items()
    }
    world.run(60)
    return nodes


def rows(found: Iterable[Row | None]) -> dict[str, Row]:
    return {str(row["prefix"]): row for row in found if row is not None}


def heard(node: Node, name: str, family: Family = V4, **wanted: object) -> dict[str, Row]:
    return rows(received(node.core, node.core.peers[name], Wanted(family, **wanted)))  # type: ignore[arg-type]


def said(node: Node, name: str, family: Family = V4, *, every: bool = False, **wanted: object) -> dict[str, Row]:
    found = advertised(node.core, node.core.peers[name], Wanted(family, **wanted), every=every)  # type: ignore[arg-type]
    return rows(found)


def name_of(node: Node, index: int, family: Family = V4) -> str:
    length = 4 if family is V4 else 16
    return next(
        name
        for name, each in node.core.peers.items()
        if each.plan.session.address[-1] == index and len(each.plan.session.address) == length
    )


def test_what_was_refused_is_shown_with_the_rule(line: dict[str, Node]) -> None:
    found = heard(line["b"], name_of(line["b"], 3))
    assert set(found) == {"10.244.3.0/26", "10.244.30.0/26"}
    refused, taken = found["10.244.3.0/26"], found["10.244.30.0/26"]
    assert refused["accepted"] is False
    assert refused["reason"] == "refused on import by BGPFilter picky rule 1: Reject In 10.244.3.0/24"
    assert (taken["accepted"], taken["best"], taken["reason"]) == (True, True, "best: the only candidate")
    assert (taken["asPath"], taken["nextHop"]) == ("3", "10.0.0.3")


@pytest.mark.parametrize("family", [V4, V6])
def test_what_one_end_says_is_what_the_other_hears(line: dict[str, Node], family: Family) -> None:
    for one, other in (("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")):
        ends = {name: index for index, name in NAMES.items()}
        told = said(line[one], name_of(line[one], ends[other], family), family)
        known = heard(line[other], name_of(line[other], ends[one], family), family)
        assert set(told) == set(known)
        assert told
        for prefix, row in told.items():
            assert row["state"] == "sent"
            assert attributes(row) == attributes(known[prefix])


#: What a row says beside the attributes.
VERDICTS = {"peer", "from", "state", "accepted", "stale", "best", "multipath", "reason"}


def attributes(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in VERDICTS}


def test_why_a_route_is_not_announced(line: dict[str, Node]) -> None:
    b = line["b"]
    name = name_of(b, 1)
    assert set(said(b, name)) == {"10.244.2.0/26", "10.244.30.0/26"}
    every = said(b, name, every=True)
    reasons = {prefix: row["reason"] for prefix, row in every.items() if row["state"] == "not advertised"}
    assert set(reasons) == {"10.244.1.0/26", "10.244.9.0/26"}
    assert reasons["10.244.1.0/26"] == "it is where the best path came from"
    assert "picky" in str(reasons["10.244.9.0/26"])


def test_one_prefix_and_those_within(line: dict[str, Node]) -> None:
    b = line["b"]
    one = parse_prefix("10.244.30.0/26")[1]
    wide = parse_prefix("10.244.30.0/23")[1]
    assert set(heard(b, name_of(b, 3), prefix=one)) == {"10.244.30.0/26"}
    assert set(heard(b, name_of(b, 3), prefix=wide)) == set()
    assert set(heard(b, name_of(b, 3), prefix=wide, longer=True)) == {"10.244.30.0/26"}
    assert set(said(b, name_of(b, 1), prefix=wide, longer=True)) == {"10.244.30.0/26"}


def test_until_the_peer_takes_it_it_is_pending() -> None:
    world = World()
    everything = [
        *POOLS, node("a", 1, 1), node("b", 2, 2), *peer("a", 2, 2), *peer("b", 1, 1),
        block("a", "10.244.1.0/26"), block("a", "10.244.5.0/26"),
    ]  # fmt: skip
    a = world.add("a", [("10.0.0.1", 24), ("fd00::1", 64)], everything)
    world.add("b", [("10.0.0.2", 24), ("fd00::2", 64)], everything)
    world.run(30)
    name = name_of(a, 2)
    assert {row["state"] for row in said(a, name).values()} == {"sent"}
    a.apply(block("a", "10.244.6.0/26"))
    a.delete(ResourceKey("BlockAffinity", "a-10-244-5-0-26"))
    while a.engine.flush(world.now):
        pass
    found = said(a, name)
    assert {prefix: row["state"] for prefix, row in found.items()} == {
        "10.244.1.0/26": "sent",
        "10.244.5.0/26": "withdrawing",
        "10.244.6.0/26": "pending",
    }
    assert found["10.244.5.0/26"]["reason"] == "there is no usable path to it"
    world.run(5)
    assert {prefix: row["state"] for prefix, row in said(a, name).items()} == {
        "10.244.1.0/26": "sent",
        "10.244.6.0/26": "sent",
    }


prefixes = st.builds(make_prefix, st.binary(min_size=4, max_size=4), st.integers(0, 32))


@settings(deadline=None)
@given(st.sets(prefixes, max_size=60), st.binary(min_size=4, max_size=4))
def test_order_and_longest_match(known: set[bytes], address: bytes) -> None:
    ordered = [prefix for prefix in in_order(chain(known, known)) if prefix is not None]
    assert ordered == sorted(known, key=lambda prefix: (prefix[1:], prefix[0]))
    host = make_prefix(address, 32)
    covering = [prefix for prefix in known if covers(prefix, host)]
    assert longest_match(V4, host, known) == max(covering, key=lambda prefix: prefix[0], default=host)


def test_turns_are_offered_before_the_first_row_of_a_large_table() -> None:
    many = [make_prefix(index.to_bytes(4, "big"), 32) for index in range(3 * SLICE)]
    found = list(in_order(many))
    assert found[:3] == [None, None, None]
    assert [prefix for prefix in found if prefix is not None] == many


def test_what_is_left_out_offers_turns_too(line: dict[str, Node]) -> None:
    b = line["b"]
    found = list(advertised(b.core, b.core.peers[name_of(b, 1)], Wanted(V4)))
    shown = [row for row in found if row is not None]
    assert found.count(None) >= len(b.core.ribs[V4].table) - len(shown) > 0


#: More than the first octets of an address can tell apart, in one network.
MANY = [make_prefix(index.to_bytes(4, "big"), 32) for index in range(30_000)]


class Work:
    """How much is looked at between two turns, whatever it is: prefixes compared, put in order, looked up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.most = 0
        for place, name in (
            (exchanged, "by_address"),
            (exchanged, "covers"),
            (exchanged, "_path_of"),
            (FamilyRib, "best"),
            (FamilyRib, "candidates"),
        ):
            monkeypatch.setattr(place, name, self._counted(getattr(place, name)))

    def _counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object) -> object:
            self.done += 1
            return real(*args)

        return counted

    def measure(self, found: Iterator[Row | None]) -> int:
        """The rows of an answer that is asked for item by item, and in `most` the most work for one of them."""
        rows = 0
        self.most = 0
        while True:
            self.done = 0
            row = next(found, "end")
            self.most = max(self.most, self.done)
            if row == "end":
                return rows
            rows += row is not None


def crowded() -> Node:
    """Node b of another line, with very many routes from c."""
    world = World()
    everything = [*POOLS, node("a", 1, 1), node("b", 2, 2), node("c", 3, 3)]
    sessions = [*peer("a", 2, 2), *peer("b", 1, 1), *peer("b", 3, 3), *peer("c", 2, 2)]
    for index, name in NAMES.items():
        world.add(name, [(f"10.0.0.{index}", 24), (f"fd00::{index}", 64)], [*everything, *sessions])
    world.run(60)
    b = world.nodes["b"]
    from_c = b.core.peers[name_of(b, 3)]
    rib, adj_in = b.core.ribs[V4], from_c.adj_in[V4]
    path = Path(from_c.source, AttributeSet(), b.core.next_hops.track(from_c.source.address), adj_in.epoch)
    rib.refresh(path)
    rib.announce(adj_in, path, MANY)
    return b


def test_no_step_of_an_answer_looks_at_more_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    b = crowded()
    a, c = b.core.peers[name_of(b, 1)], b.core.peers[name_of(b, 3)]
    few = Wanted(V4, MANY[-1], longer=True)
    work = Work(monkeypatch)
    for found, rows_expected in (
        (received(b.core, c, Wanted(V4)), len(MANY)),
        (received(b.core, c, few), 1),
        (advertised(b.core, a, Wanted(V4)), len(MANY)),
        (advertised(b.core, a, few), 1),
    ):
        assert work.measure(found) == rows_expected
        assert 0 < work.most <= 2 * SLICE


def test_neighbors_are_told_one_at_a_time_without_a_look_at_their_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    b = crowded()
    c = b.core.peers[name_of(b, 3)]
    made: list[str] = []
    real = queries._neighbor
    monkeypatch.setattr(
        queries, "_neighbor", lambda core, peer, now: made.append(peer.plan.name) or real(core, peer, now)
    )
    b.world.kill("c")
    b.world.run(1)
    work = Work(monkeypatch)
    monkeypatch.setattr(FamilyRib, "announced", lambda *_: pytest.fail("a walk over the table"))
    found = neighbors(b.core, b.world.now)
    for count in range(1, len(b.core.peers) + 1):
        row = next(found)
        assert len(made) == count
        families = row["families"]
        assert isinstance(families, dict)
        if row["name"] == c.plan.name:
            assert families[V4.label]["stale"] == len(MANY)
    assert next(found, None) is None
    assert work.done == 0
