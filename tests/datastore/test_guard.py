"""What is believed of what a store says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routed.datastore.guard import Change, Guard, MassDelete
from routed.model.deletion import announced
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.schema import parse_manifest


def peer(name: str, asn: int = 65001) -> Resource:
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": {"name": name},
            "spec": {"peerIP": "10.0.0.1", "asNumber": asn},
        }
    )


def there(name: str, asn: int = 65001) -> Change:
    resource = peer(name, asn)
    return Change(resource.key, resource, 1)


def gone(name: str) -> Change:
    return Change(ResourceKey("BGPPeer", name), None)


def full(count: int) -> Guard:
    guard = Guard(MassDelete())
    guard.changes([there(f"p{number}") for number in range(count)], 0.0)
    return guard


def names(updates: list[Update]) -> list[str]:
    return sorted(update.key.name for update in updates if update.value is None)


def deleted(guard: Guard, changes: list[Change], now: float) -> list[Update]:
    """What comes of deletions after which nothing happens for long."""
    updates = guard.changes(changes, now)
    return updates + guard.settle(now + 100.0)


def test_one_of_two_is_followed_after_a_moment_and_the_last_is_held() -> None:
    guard = full(2)
    assert guard.changes([gone("p0")], 10.0) == guard.settle(10.49) == []
    assert guard.due() == 10.5
    assert names(guard.settle(10.5)) == ["p0"] and guard.due() is None
    assert guard.changes([gone("p1")], 20.0) == []
    assert [key.name for key in guard.held] == ["p1"]
    assert guard.sentences(20.9) == []  # what else the same write says comes a moment later
    (told,) = guard.sentences(21.0)
    assert "1 of 1 BGPPeer" in told
    assert guard.changes([there("p7")], 22.0) and guard.sentences(22.0) == [
        told
    ]  # what comes beside is no news of that


def test_a_third_of_a_kind_at_once_is_held_and_a_quarter_is_not() -> None:
    guard = full(20)
    assert len(deleted(guard, [gone(f"p{number}") for number in range(5)], 10.0)) == 5
    guard = full(16)
    assert guard.changes([gone(f"p{number}") for number in range(5)], 10.0) == []
    assert len(guard.held) == 5


@given(st.integers(5, 16), st.lists(st.floats(0.0, 0.49), min_size=16, max_size=16))
def test_one_by_one_is_an_accident_too_and_nothing_goes(count: int, gaps: list[float]) -> None:
    """As `calicoctl delete -f` deletes, or a script: each for itself, less than half a second apart."""
    guard = full(16)
    now = 10.0
    for number, gap in zip(range(count), gaps, strict=False):
        assert guard.settle(now) == guard.changes([gone(f"p{number}")], now) == []
        now += gap
    assert len(guard.held) == count and len(guard.good) == 16
    assert guard.settle(now + 100.0) == []


def endpoint(number: int) -> Resource:
    spec = {
        "orchestrator": "k8s", "node": "n1", "containerID": f"c{number}", "endpoint": "eth0", "pod": f"web{number}",
        "ipNetworks": [f"10.65.0.{number}/32"], "interfaceName": f"cali{number}", "profiles": [],
    }  # fmt: skip
    metadata = {"name": f"n1-k8s-web{number}-eth0", "namespace": "shop"}
    return parse_manifest(
        {"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec}
    )


def block(owners: dict[int, str]) -> Resource:
    """10.65.0.0/28, with a container for each ordinal that is given out."""
    spec = {
        "cidr": "10.65.0.0/28", "affinity": "host:n1", "deleted": False,
        "allocations": [list(owners).index(each) if each in owners else None for each in range(16)],
        "unallocated": [each for each in range(16) if each not in owners],
        "attributes": [{"handle_id": f"k8s-pod-network.{each}", "secondary": {"node": "n1"}} for each in owners.values()],
    }  # fmt: skip
    metadata = {"name": "10-65-0-0-28"}
    return parse_manifest(
        {"apiVersion": "projectcalico.org/v3", "kind": "IPAMBlock", "metadata": metadata, "spec": spec}
    )


def pods(*numbers: int) -> tuple[Guard, list[Change]]:
    """A guard that knows these pods and their block, and the deletions of all their endpoints."""
    guard = Guard(MassDelete())
    known = [endpoint(number) for number in numbers]
    known.append(block({number: f"c{number}" for number in numbers}))
    guard.changes([Change(each.key, each, 1) for each in known], 0.0)
    return guard, [Change(each.key, None, 2) for each in known[:-1]]


def test_pods_that_gave_their_addresses_back_are_no_accident_however_many() -> None:
    """As routed removes a pod, all at one revision; as Calico's plugin does, the addresses later; and where another pod
    has the addresses already."""
    empty = block({})
    guard, deletions = pods(*range(12))
    assert len(names(guard.changes([*deletions, Change(empty.key, empty, 2)], 10.0))) == 12 and not guard.held
    for again in (empty, block({number: f"other{number}" for number in range(12)})):
        guard, deletions = pods(*range(12))
        assert guard.changes(deletions, 10.0) == [] and len(guard.held) == 12
        assert len(names(guard.changes([Change(again.key, again, 3)], 10.1))) == 12 and not guard.held


def test_endpoints_that_vanish_without_their_addresses_are_held() -> None:
    guard, deletions = pods(*range(12))
    partly = block({number: f"c{number}" for number in range(9)})
    assert len(names(guard.changes([*deletions, Change(partly.key, partly, 2)], 10.0))) == 3
    assert len(guard.held) == 9
    guard, deletions = pods(*range(12))  # all of /calico/ at once
    assert guard.changes([*deletions, Change(partly.key, None, 2)], 10.0) == [] and len(guard.held) == 13


def test_few_one_by_one_are_followed_each_after_the_window() -> None:
    guard = full(20)
    for number in range(5):
        assert guard.changes([gone(f"p{number}")], 10.0 + number / 10) == []
    assert guard.settle(11.99) == []
    assert names(guard.settle(12.0)) == ["p0"]
    assert names(guard.settle(12.41)) == ["p1", "p2", "p3", "p4"] and not guard.held


def test_deletions_without_end_are_followed_all_the_same() -> None:
    """Pods come and go all day in a large cluster."""
    guard = full(100)
    followed = 0
    for number in range(60):
        now = 10.0 + number / 10
        followed += len(guard.settle(now))
        guard.changes([gone(f"p{number}"), there(f"q{number}")], now)
    assert followed == 40 and not guard.held


def test_what_is_back_in_time_was_never_gone() -> None:
    guard = full(10)
    assert guard.changes([gone("p0")], 10.0) == guard.changes([there("p0")], 10.4) == guard.settle(11.0) == []
    assert guard.due() is None


def test_what_went_before_it_looked_like_an_accident_comes_back() -> None:
    guard = full(10)
    assert guard.changes([gone("p0")], 10.0) == []
    assert names(guard.settle(10.5)) == ["p0"]
    assert guard.changes([gone(f"p{number}") for number in range(1, 4)], 10.9) == []
    updates = guard.changes([gone("p4")], 11.5)
    assert [(update.key.name, update.value) for update in updates] == [("p0", peer("p0"))]
    assert len(guard.held) == 5 and len(guard.good) == 10


def policy(name: str) -> Resource:
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "x"},
            "spec": {"selector": "all()", "ingress": [{"action": "Allow"}]},
        }
    )


def with_policies(count: int, peers: int = 3) -> tuple[Guard, list[Change]]:
    """A guard that knows policies and peers, and the deletions of the policies."""
    guard = full(peers)
    policies = [policy(f"n{number}") for number in range(count)]
    guard.changes([Change(each.key, each, 1) for each in policies], 0.0)
    return guard, [Change(each.key, None) for each in policies]


def test_a_rule_that_is_deleted_is_out_of_force_at_once_however_many_but_the_last() -> None:
    guard, deletions = with_policies(20)
    assert len(names(guard.changes(deletions[:10], 10.0))) == 10
    assert len(names(guard.changes(deletions[10:19], 10.1))) == 9
    assert names(guard.changes(deletions[19:], 10.2)) == []
    assert len(names(guard.settle(10.7))) == 1 and not guard.held


def test_all_rules_at_one_moment_are_an_accident_where_they_are_not_few() -> None:
    guard, deletions = with_policies(5)
    assert names(deleted(guard, deletions, 10.0)) == [] and len(guard.held) == 5
    guard, deletions = with_policies(4)
    assert len(names(deleted(guard, deletions, 10.0))) == 4
    guard, deletions = with_policies(2)
    assert len(names(guard.listed([key for key in guard.good if key.kind == "BGPPeer"], [], 10.0))) == 2


def test_the_last_rule_is_kept_where_other_kinds_vanish_with_it_in_either_order() -> None:
    peers = [gone(f"p{number}") for number in range(3)]
    for first, second in ((0, 1), (1, 0)):
        guard, deletions = with_policies(1)
        turns = (deletions, peers)
        assert guard.changes(turns[first], 10.0) == guard.changes(turns[second], 10.3) == []
        assert guard.settle(100.0) == [] and len(guard.held) == 4
    guard, deletions = with_policies(1)
    assert guard.listed([], [], 10.0) == [] and len(guard.held) == 4
    guard, deletions = with_policies(1)
    assert guard.changes([*deletions, *peers], 10.0) == [] and len(guard.held) == 4
    assert len(names(guard.confirm())) == 4


def test_without_a_guard_all_is_followed_at_once() -> None:
    guard = Guard(MassDelete(enabled=False))
    guard.changes([there("p0")], 0.0)
    assert names(guard.changes([gone("p0")], 1.0)) == ["p0"]


def test_what_only_the_allocator_asks_about_goes_at_once_and_alarms_nobody() -> None:
    """Addresses are given by what the store has: the only reservation, and the one configuration."""
    guard = full(1)
    known = [
        parse_manifest(
            {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "default"}, "spec": spec}
        )
        for kind, spec in (("IPReservation", {"reservedCIDRs": ["10.65.0.0/28"]}), ("IPAMConfig", {}))
    ]
    guard.changes([Change(each.key, each, 1) for each in known], 0.0)
    for each in known:
        assert guard.changes([Change(each.key, None)], 10.0) == [Update(each.key, None)]
    assert guard.due() is None and not guard.held and guard.sentences(100.0) == []
    guard.changes([Change(each.key, each, 2) for each in known], 20.0)
    assert len(guard.changes([gone("p0"), *(Change(each.key, None) for each in known)], 30.0)) == 2
    assert [key.kind for key in guard.held] == ["BGPPeer"]  # an accident of which they are part is none the less one


def test_own_deletions_are_followed_however_many_and_count_as_nothing() -> None:
    guard = full(10)
    own = [peer(f"p{number}").key for number in range(8)]
    assert names(guard.own(own)) == [f"p{number}" for number in range(8)]
    assert guard.held == {} and names(deleted(guard, [gone("p8")], 0.0)) == ["p8"]
    assert guard.changes([gone("p9")], 1e6) == []  # the last one, by somebody else, is judged as ever
    assert [key.name for key in guard.held] == ["p9"]
    assert names(guard.own([peer("p9").key])) == ["p9"]
    assert guard.held == {} and guard.good == {} and guard.sentences(1e9) == []


def test_what_announced_its_deletion_goes_however_much_and_counts_as_nothing() -> None:
    guard = full(10)
    going = [announced(peer(f"p{number}"), "2026-05-01T10:00:00Z") for number in range(8)]
    changes = [Change(one.key, one, 2) for one in going if one is not None]
    assert names(guard.changes([*changes, *(gone(f"p{number}") for number in range(8))], 0.0)) == [
        f"p{number}" for number in range(8)
    ]
    assert guard.changes([gone("p8"), gone("p9")], 1.0) == [], "nobody announced these, and they are all there is"
    assert [key.name for key in guard.held] == ["p8", "p9"]
    # and also where nobody saw it vanish
    guard = full(1)
    guard.changes(changes[:1], 0.0)
    assert names(guard.listed(set(), [], 1.0)) == ["p0"] and not guard.held


def test_one_by_one_over_a_day_is_none() -> None:
    guard = full(10)
    for number in range(9):
        assert names(deleted(guard, [gone(f"p{number}")], 3600.0 * number)) == [f"p{number}"]


def test_what_is_held_goes_when_confirmed_or_after_the_timeout_and_stays_when_it_is_back() -> None:
    for end in ("confirm", "timeout", "back"):
        guard = full(5)
        assert guard.changes([gone(f"p{number}") for number in range(5)], 10.0) == []
        if end == "confirm":
            assert guard.confirm("IPPool") == []
            assert len(names(guard.confirm("BGPPeer"))) == 5
        elif end == "timeout":
            assert guard.expire(909.0) == []
            assert len(names(guard.expire(910.0))) == 5
        else:
            assert guard.changes([there(f"p{number}") for number in range(5)], 11.0) == []
            assert len(guard.good) == 5
        assert not guard.held and not guard.sentences(1e9)


def test_garbage_keeps_the_last_good_value_through_a_listing_and_until_it_is_deleted() -> None:
    guard = full(8)
    key = ResourceKey("BGPPeer", "p0")
    assert guard.changes([Change(key, None, 2, "not JSON")], 1.0) == []
    assert guard.good[key].resource == peer("p0") and guard.garbage == {key: "not JSON"}
    assert guard.listed({ResourceKey("BGPPeer", f"p{number}") for number in range(8)}, [], 2.0) == []
    assert key in guard.garbage
    assert names(deleted(guard, [gone("p0")], 3.0)) == ["p0"]
    assert not guard.garbage
    assert guard.changes([Change(key, None, 4, "not JSON")], 4.0) == []
    assert guard.changes([there("p0")], 5.0)[0].value == peer("p0")
    assert not guard.garbage


def test_what_a_listing_does_not_name_is_judged_as_deleted_now() -> None:
    guard = full(10)
    assert names(guard.listed({ResourceKey("BGPPeer", f"p{number}") for number in range(9)}, [], 5.0)) == ["p9"]
    assert guard.listed((), [], 10.0) == []
    assert len(guard.held) == 9


def test_a_key_written_again_in_the_same_moment_was_never_gone() -> None:
    guard = full(1)
    assert guard.changes([gone("p0"), there("p0", 65002)], 1.0)[0].value == peer("p0", 65002)
    assert not guard.held


def test_a_key_that_comes_and_goes_is_one_key() -> None:
    guard = full(10)
    for number in range(6):
        assert names([*guard.changes([gone("p0")], 10.0 + number), *guard.settle(10.5 + number)]) == ["p0"]
        assert not guard.held, "one of ten, however often"
        back = guard.changes([there("p0", 65100 + number)], 10.75 + number)
        assert back[0].value == peer("p0", 65100 + number)
    assert guard.changes([gone(f"p{number}") for number in range(5)], 16.0) == []
    assert len(guard.held) == 5


def changed(name: str, what: int) -> Change:
    """A peer or (n) a policy is gone (0), or there."""
    if name.startswith("p"):
        return gone(name) if what == 0 else there(name, 65000 + what)
    found = policy(name)
    return Change(found.key, found if what else None, 1)


_STEPS = st.lists(
    st.tuples(
        st.lists(
            st.builds(
                changed,
                st.sampled_from([*(f"p{number}" for number in range(12)), *(f"n{number}" for number in range(7))]),
                st.integers(0, 2),
            ),
            max_size=14,
        ),
        st.floats(0, 5),
        st.sampled_from(["change", "change", "list", "confirm", "expire", "settle", "restart"]),
    ),
    max_size=20,
)


@given(_STEPS)
def test_whatever_happens_the_updates_add_up_to_what_is_believed(
    steps: list[tuple[list[Change], float, str]],
) -> None:
    guard = Guard(MassDelete(timeout=8.0))
    store: dict[ResourceKey, Resource] = {}
    followed: dict[ResourceKey, Resource] = {}
    now = 0.0
    for changes, wait, what in steps:
        now += wait
        for change in changes:
            if change.resource is None:
                store.pop(change.key, None)
            else:
                store[change.key] = change.resource
        if what == "restart":
            earlier, guard = guard, Guard(guard.rules)
            guard.load(earlier.good.items(), earlier.held)
        if what in ("change", "settle"):
            updates = guard.changes(changes, now)
        else:
            updates = guard.listed(store, [Change(key, value, 1) for key, value in store.items()], now)
        if what == "confirm":
            updates += guard.confirm()
        elif what == "expire":
            updates += guard.expire(now)
        elif what == "settle":
            now += 5.0
            updates += guard.settle(now)
        for update in updates:
            if update.value is None:
                del followed[update.key]  # it was there: nothing is deleted twice
            else:
                assert followed.get(update.key) != update.value
                followed[update.key] = update.value
        assert followed == {key: good.resource for key, good in guard.good.items()}
        waits = guard.held.keys() | (followed.keys() - store.keys() if guard.due() is not None else set())
        assert {key: value for key, value in followed.items() if key not in waits} == store
        assert not guard.held.keys() & store.keys()
    if store:
        assert all(update.value is None for update in guard.confirm())
