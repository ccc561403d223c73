"""Sums of what policies' rules counted: never backwards, each policy under its name or among the others."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routed.dataplane.tally import RuleTally
from routed.desired_policy import Action
from routed.netlink.nftables import RuleFound

ALLOW, DENY = Action.ALLOW, Action.DENY
DECISIONS = {f"p_{name}": {"rule 1": (name, ALLOW), "rule 2": (name, DENY)} for name in "abc"}


def rules(chain: str, *counts: int, handle: int = 1) -> list[RuleFound]:
    return [
        RuleFound(f"p_{chain}", handle + number, f"rule {number + 1}", count, 0) for number, count in enumerate(counts)
    ]


def sums(tally: RuleTally) -> dict[tuple[str, str], int]:
    return {(policy, action.value): count for policy, action, count in tally.named} | {
        ("(others)", action.value): count for action, count in tally.others
    }


def test_by_policy_and_action():
    tally = RuleTally(lambda: 100)
    tally.read([*rules("a", 5, 2), *rules("b", 1, 0)], DECISIONS, 1)
    tally.read([*rules("a", 7, 2), *rules("b", 1, 3)], DECISIONS, 1)
    assert sums(tally) == {("a", "allow"): 7, ("a", "deny"): 2, ("b", "allow"): 1, ("b", "deny"): 3}


def test_rules_written_anew_begin_at_nothing():
    tally = RuleTally(lambda: 100)
    tally.read(rules("a", 5), DECISIONS, 1)
    tally.read(rules("a", 2, handle=9), DECISIONS, 1)  # the chain's rules are others
    tally.read(rules("a", 3, handle=9), DECISIONS, 2)  # the table is another
    assert sums(tally) == {("a", "allow"): 10}


def test_what_nobody_made_is_not_counted():
    tally = RuleTally(lambda: 100)
    tally.read([RuleFound("p_a", 1, "by hand", 9, 0), RuleFound("p_x", 2, "rule 1", 9, 0)], DECISIONS, 1)
    assert sums(tally) == {}


def test_only_so_many_have_names_and_the_others_keep_their_sum():
    tally = RuleTally(lambda: 1)
    tally.read([*rules("a", 1), *rules("b", 10), *rules("c", 100)], DECISIONS, 1)
    assert sums(tally) == {("a", "allow"): 1, ("(others)", "allow"): 110}
    # its name goes to another, which begins anew: what it was counted for among the others stays there
    tally.read([*rules("b", 11), *rules("c", 100)], DECISIONS, 1)
    assert sums(tally) == {("b", "allow"): 1, ("(others)", "allow"): 110}


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=4), max_size=6), st.integers(0, 3)
)
def test_never_backwards(readings: list[list[tuple[str, int]]], most: int):
    tally = RuleTally(lambda: most)
    before: Counter[tuple[str, str]] = Counter()
    for number, reading in enumerate(readings):
        found = [rule for name, count in dict(reading).items() for rule in rules(name, count)]
        tally.read(found, DECISIONS, number // 2)
        now = sums(tally)
        assert len({policy for policy, _ in now} - {"(others)"}) <= most
        for key, count in now.items():
            assert count >= before[key] or key[0] not in {policy for policy, _ in before}
        before = Counter(now)
