"""The decision process: one pair of paths a step, then what must hold for any candidates."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.attributes import AttributeFields, AttributeSet
from routed.rib.decide import STEPS, Step, best, explain
from routed.rib.nexthops import NextHop
from routed.rib.path import Path, Source, SourceKind


def as_path(*numbers: int, kind: int = 2) -> bytes:
    return (
        b"".join((bytes((kind, len(numbers))), *(number.to_bytes(4, "big") for number in numbers))) if numbers else b""
    )


def hop(last: int = 1, metric: int = 0) -> NextHop:
    next_hop = NextHop(bytes((10, 0, 0, last)), 0)
    next_hop.metric = metric
    return next_hop


HOP = hop()


def path(
    *,
    kind: SourceKind = SourceKind.EBGP,
    router_id: int = 10,
    address: bytes = bytes((10, 0, 0, 1)),
    name: str = "peer",
    next_hop: NextHop | None = HOP,
    **attributes: object,
) -> Path:
    fields: AttributeFields = {"as_path": as_path(65001, 65002), "local_pref": 100, "origin": 0, "med": 10}
    fields.update(attributes)  # type: ignore[typeddict-item]
    source = Source(name, kind, router_id, address)
    return Path(source, AttributeSet(**fields), None if kind is SourceKind.LOCAL else next_hop)


LOSERS = {
    Step.LOCAL_ORIGIN: (path(kind=SourceKind.LOCAL), path(local_pref=4000000000)),
    Step.LOCAL_PREF: (path(local_pref=200, as_path=as_path(65001, 2, 3, 4)), path()),
    Step.AS_PATH_LENGTH: (path(as_path=as_path(65001), origin=2), path()),
    Step.ORIGIN: (path(origin=0, med=20), path(origin=1)),
    Step.MED: (path(med=9, kind=SourceKind.IBGP), path()),
    Step.EXTERNAL: (path(next_hop=hop(metric=5)), path(kind=SourceKind.IBGP)),
    Step.NEXT_HOP_METRIC: (path(next_hop=hop(metric=1), router_id=11), path(next_hop=hop(metric=2))),
    Step.ROUTER_ID: (path(router_id=9, cluster_list=b"abcd"), path()),
    Step.CLUSTER_LIST_LENGTH: (
        path(cluster_list=b"zzzz", address=bytes((10, 0, 0, 9))),
        path(cluster_list=b"aaaabbbb"),
    ),
    Step.PEER_ADDRESS: (path(communities=b"zzzz"), path(address=bytes((10, 0, 0, 2)))),
    Step.CONTENT: (path(communities=b"aaaa"), path(communities=b"bbbb")),
}


def test_every_step_has_a_losing_pair() -> None:
    assert list(LOSERS) == list(Step) == [rule.step for rule in STEPS]


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize("backwards", [False, True])
def test_a_step_decides_in_both_orders(step: Step, backwards: bool) -> None:
    winner, loser = LOSERS[step]
    candidates = [loser, winner] if backwards else [winner, loser]
    assert best(candidates).best is winner
    won, lost = sorted(explain(candidates), key=lambda verdict: not verdict.best)
    assert (won.path, won.step) == (winner, step)
    assert (lost.path, lost.step, lost.best) == (loser, step, False)
    assert lost.value != lost.winner_value == won.value
    assert f"step {step.value}" in lost.text and f"step {step.value}" in won.text


def test_no_candidates_and_one() -> None:
    assert best([]) == (None, ())
    assert explain([]) == []
    only = path()
    assert best([only]) == (only, (only,))
    verdict = explain([only])[0]
    assert (verdict.best, verdict.multipath, verdict.step, verdict.text) == (
        True,
        True,
        None,
        "best: the only candidate",
    )


def test_a_missing_med_is_zero_and_a_missing_local_pref_is_100() -> None:
    absent, zero = path(med=None, router_id=9), path(med=0)
    assert best([zero, absent]).best is absent
    assert explain([zero, absent])[0].step is Step.ROUTER_ID
    unset, explicit = path(local_pref=None, router_id=9), path(local_pref=100)
    assert best([explicit, unset]).best is unset


def test_med_counts_within_a_neighbour_as_only_and_never_by_order() -> None:
    """The example that makes a pairwise comparison depend on arrival: A beats B, B beats C, C beats A."""
    a = path(as_path=as_path(65001, 1), med=10, router_id=3, name="a")
    b = path(as_path=as_path(65002, 1), med=5, router_id=2, name="b")
    c = path(as_path=as_path(65001, 1), med=1, router_id=4, name="c")
    for order in itertools.permutations((a, b, c)):
        assert best(order).best is b
        verdicts = {verdict.path: verdict for verdict in explain(order)}
        assert verdicts[a].step is Step.MED
        assert (verdicts[a].value, verdicts[a].winner_value) == ("10 (AS 65001)", "1 (AS 65001)")
        assert verdicts[c].step is Step.ROUTER_ID


def test_originator_id_stands_for_the_router_id() -> None:
    reflected = path(kind=SourceKind.IBGP, router_id=1, originator_id=20)
    direct = path(kind=SourceKind.IBGP, router_id=10)
    assert best([reflected, direct]).best is direct


def test_an_as_set_counts_as_one() -> None:
    with_set = path(as_path=as_path(65001) + as_path(1, 2, 3, kind=1), router_id=9)
    assert best([path(), with_set]).best is with_set


# ---- multipath


def ecmp(count: int, **attributes: object) -> list[Path]:
    return [
        path(
            router_id=number,
            next_hop=hop(number),
            name=f"peer{number}",
            address=bytes((10, 0, 0, number)),
            **attributes,
        )
        for number in range(1, count + 1)
    ]


def test_equal_paths_share_the_traffic_best_first() -> None:
    paths = ecmp(3)
    for order in itertools.permutations(paths):
        assert best(order) == (paths[0], tuple(paths))
    assert [verdict.multipath for verdict in explain(paths)] == [True] * 3
    assert explain(paths)[2].text.startswith("multipath; step 8")


def test_maximum_paths_takes_the_best_ranked() -> None:
    paths = ecmp(20)
    assert best(paths[::-1]).multipath == tuple(paths[:16])
    assert best(paths[::-1], maximum_paths=2).multipath == tuple(paths[:2])
    assert best(paths[::-1], maximum_paths=1).multipath == (paths[0],)


def test_the_same_next_hop_counts_once() -> None:
    one, other = path(router_id=1), path(router_id=2)
    assert best([other, one]).multipath == (one,)


def test_as_paths_may_differ_only_when_relaxed() -> None:
    one, other = ecmp(2)
    other = path(router_id=2, next_hop=hop(2), as_path=as_path(65003, 65004))
    assert best([other, one]).multipath == (one, other)
    assert best([other, one], relax=False).multipath == (one,)
    assert best(ecmp(2), relax=False).multipath[1].source.name == "peer2"


def test_what_loses_up_to_step_seven_shares_nothing() -> None:
    one = path(router_id=5)
    for step in (Step.EXTERNAL, Step.NEXT_HOP_METRIC, Step.MED):
        winner, loser = LOSERS[step]
        assert best([winner, loser]).multipath == (winner,)
    assert best([one, path(kind=SourceKind.LOCAL)]).multipath[0].source.kind is SourceKind.LOCAL


# ---- any candidates

HOPS = [hop(1), hop(2), hop(3, metric=1)]
SMALL = st.integers(0, 2)


@st.composite
def any_path(draw: st.DrawFn) -> Path:
    """Few values a field, so that steps are reached."""
    return path(
        kind=draw(st.sampled_from(SourceKind)),
        router_id=draw(SMALL),
        address=bytes((10, 0, 0, draw(SMALL))),
        name=f"peer{draw(st.integers())}",
        next_hop=draw(st.sampled_from(HOPS)),
        as_path=as_path(*draw(st.lists(st.integers(65001, 65002), max_size=2))),
        local_pref=draw(st.sampled_from([None, 99, 100])),
        origin=draw(SMALL),
        med=draw(st.sampled_from([None, 0, 1])),
        originator_id=draw(st.sampled_from([None, 1])),
        cluster_list=draw(st.sampled_from([b"", b"aaaa"])),
        communities=draw(st.sampled_from([b"", b"aaaa"])),
    )


CANDIDATES = st.lists(any_path(), min_size=1, max_size=6, unique_by=lambda one: one.source.name)


@given(CANDIDATES, st.randoms(use_true_random=False), st.sampled_from([1, 2, 16]))
def test_the_order_of_arrival_changes_nothing(candidates: list[Path], shuffler: object, maximum_paths: int) -> None:
    first = best(candidates, maximum_paths=maximum_paths)
    shuffled = list(candidates)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    second = best(shuffled, maximum_paths=maximum_paths)
    assert second == first


@given(CANDIDATES, st.booleans())
def test_explain_agrees_with_best(candidates: list[Path], relax: bool) -> None:
    decision = best(candidates, relax=relax)
    verdicts = explain(candidates, relax=relax)
    assert [verdict.path for verdict in verdicts] == candidates
    winners = [verdict.path for verdict in verdicts if verdict.best]
    assert winners == [decision.best]
    assert {verdict.path for verdict in verdicts if verdict.multipath} == set(decision.multipath)
    for verdict in verdicts:
        assert verdict.text
        assert (verdict.step is None) == (len(candidates) == 1)
