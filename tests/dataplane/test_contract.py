"""What dataplane promises, on the model kernel and on Linux alike."""

from __future__ import annotations

import errno

import pytest

from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def leg(address: str, interface: int, *, onlink: bool = False) -> Gateway:
    return Gateway(parse_address(address) if address else b"", interface, onlink)


@pytest.fixture
def eth0(world):
    return world.link("eth0", "10.0.0.1/24", "fd00::1/64")


@pytest.fixture
def eth1(world):
    return world.link("eth1", "10.0.1.1/24", "fd00:1::1/64")


def test_routes_of_every_shape(world, eth0, eth1):
    world.start()
    world.apply(["10.1.0.0/26", "10.1.0.64/26", "10.2.0.0/16", "0.0.0.0/0", "10.3.3.3/32"], "10.0.0.2", dev=eth0)
    world.apply("10.4.0.0/24", f"10.0.0.2%{eth0}", f"10.0.1.2%{eth1}")
    world.apply("10.5.0.0/26", blackhole=True)
    world.apply("10.6.0.1/32", dev=eth0)
    world.apply("10.7.0.0/24", f"192.0.2.1%{eth0}%onlink")
    world.apply("10.8.0.0/24", f"fd00::2%{eth0}")
    world.apply(["fd01::/64", "::/0", "fd02::1/128", "fd03::/49"], "fd00::2", dev=eth0)
    world.apply("fd04::/64", f"fd00::2%{eth0}", f"fd00:1::2%{eth1}")
    world.apply("fd05::/122", blackhole=True)
    world.settle()
    assert not world.failures
    via = (1, (leg("10.0.0.2", eth0),))
    assert world.ours() == {
        "10.1.0.0/26": via,
        "10.1.0.64/26": via,
        "10.2.0.0/16": via,
        "0.0.0.0/0": via,
        "10.3.3.3/32": via,
        "10.4.0.0/24": (1, (leg("10.0.0.2", eth0), leg("10.0.1.2", eth1))),
        "10.5.0.0/26": (6, ()),
        "10.6.0.1/32": (1, (leg("", eth0),)),
        "10.7.0.0/24": (1, (leg("192.0.2.1", eth0, onlink=True),)),
        "10.8.0.0/24": (1, (leg("fd00::2", eth0),)),
    }
    via = (1, (leg("fd00::2", eth0),))
    assert world.ours(V6) == {
        "fd01::/64": via,
        "::/0": via,
        "fd02::1/128": via,
        "fd03::/49": via,
        "fd04::/64": (1, (leg("fd00::2", eth0), leg("fd00:1::2", eth1))),
        "fd05::/122": (6, ()),
    }
    assert world.engine.routes.counters.added == 16


@pytest.mark.parametrize(
    ("prefix", "first", "second"), [("10.1.0.0/24", "10.0.0.2", "10.0.1.2"), ("fd01::/64", "fd00::2", "fd00:1::2")]
)
def test_changes_of_one_route(world, eth0, eth1, prefix, first, second):
    family = parse_prefix(prefix)[0]
    world.start()
    a, b = f"{first}%{eth0}", f"{second}%{eth1}"
    one, two = leg(first, eth0), leg(second, eth1)
    for via, gateways in [((a,), (one,)), ((b,), (two,)), ((a, b), (one, two)), ((b,), (two,)), ((a, b), (one, two))]:
        world.apply(prefix, *via)
        world.settle()
        assert world.ours(family) == {prefix: (1, gateways)}
    world.apply(prefix, blackhole=True)
    world.settle()
    assert world.ours(family) == {prefix: (6, ())}
    world.apply(prefix, a, b)
    world.settle()
    assert world.ours(family) == {prefix: (1, (one, two))}
    world.apply(prefix)
    world.settle()
    assert world.ours(family) == {}
    assert not world.failures
    assert world.engine.routes.counters.deleted == 1


def test_a_prefix_changed_twice_is_written_once(world, eth0):
    world.start()
    for last in (2, 3, 2, 4):
        world.apply(["10.1.0.0/24", "10.2.0.0/24"], f"10.0.0.{last}", dev=eth0)
    world.apply("10.3.0.0/24", "10.0.0.2", dev=eth0)
    world.apply("10.3.0.0/24")
    world.settle()
    via = (1, (leg("10.0.0.4", eth0),))
    assert world.ours() == {"10.1.0.0/24": via, "10.2.0.0/24": via}
    counters = world.engine.routes.counters
    assert (counters.added, counters.replaced, counters.deleted, counters.chunks) == (2, 0, 0, 1)


@pytest.mark.parametrize(("prefix", "via", "other"), [
    ("10.1.0.0/24", "10.0.0.2", "10.0.0.9"), ("fd01::/64", "fd00::2", "fd00::9"),
])  # fmt: skip
def test_a_foreign_route_is_never_replaced_and_ours_follows_when_it_goes(world, eth0, prefix, via, other):
    family = parse_prefix(prefix)[0]
    world.start()
    world.route("add", prefix, other, dev=eth0)
    before = world.others(family)
    world.apply(prefix, via, dev=eth0)
    assert world.until(lambda: bool(world.failures))
    assert world.reason(prefix) == (
        f"refused: {prefix} is held by a static route via {other} dev eth0; remove it or filter the prefix"
    )
    assert world.failures[parse_prefix(prefix)].errno == errno.EEXIST
    assert world.others(family) == before
    entry = world.engine.routes.entry(*parse_prefix(prefix))
    assert entry.state == "failed" and entry.reason == world.reason(prefix)
    world.route("delete", prefix, other, dev=eth0)
    assert world.until(lambda: not world.failures)
    assert world.ours(family) == {prefix: (1, (leg(via, eth0),))}
    assert world.engine.routes.entry(*parse_prefix(prefix)).state == "installed"


def test_a_foreign_route_with_another_metric_lives_beside_ours(world, eth0):
    world.start()
    world.route("add", "0.0.0.0/0", "10.0.0.9", dev=eth0, protocol=16, metric=100)
    before = world.others()
    world.apply("0.0.0.0/0", "10.0.0.2", dev=eth0)
    world.settle()
    assert "0.0.0.0/0" in world.ours()
    world.apply("0.0.0.0/0", "10.0.0.3", dev=eth0)
    world.settle()
    world.apply("0.0.0.0/0")
    world.settle()
    assert world.ours() == {} and world.others() == before


def test_found_at_start_kept_where_wanted_and_swept_where_not(world, eth0):
    world.start()
    assert world.engine.found_at_start == frozenset()
    world.apply(["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"], "10.0.0.2", dev=eth0)
    world.apply("fd01::/64", "fd00::2", dev=eth0)
    world.settle()
    world.start()
    assert world.engine.found_at_start == {V4, V6}
    assert {e.state for e in world.engine.routes.entries(V4)} == {"stale"}
    world.apply("10.1.0.0/24", "10.0.0.2", dev=eth0)
    world.apply("10.2.0.0/24", "10.0.0.3", dev=eth0)
    world.settle()
    counters = world.engine.routes.counters
    assert (counters.added, counters.replaced) == (0, 1)
    world.engine.sweep([V4])
    world.settle()
    assert world.ours() == {"10.1.0.0/24": (1, (leg("10.0.0.2", eth0),)), "10.2.0.0/24": (1, (leg("10.0.0.3", eth0),))}
    assert set(world.ours(V6)) == {"fd01::/64"}
    world.engine.sweep([V6])
    world.settle()
    assert world.ours(V6) == {}


def test_routes_of_pods_are_left_to_them_where_pods_are_no_more_ours(world, eth0):
    pod = world.link("cali0123")
    world.start()
    world.apply(["10.1.0.1/32", "10.1.0.2/32"], dev=pod)
    world.apply("fd01::1/128", dev=pod)
    world.apply("10.1.0.3/32", dev=eth0)
    world.apply("10.1.0.4/32", "10.0.0.2", dev=eth0)
    world.apply("10.1.0.0/26", blackhole=True)
    world.settle()
    world.start(left_to_pods="cali")
    world.engine.sweep(Family)
    world.settle()
    assert world.ours().keys() == {"10.1.0.1/32", "10.1.0.2/32"}
    assert world.ours(V6).keys() == {"fd01::1/128"}
    # they are routes of others, also when they change
    mine = (V4, parse_prefix("10.1.0.1/32")[1], 0)
    assert world.foreign[mine].gateways == (leg("", pod),)
    world.route("delete", "10.1.0.1/32", dev=pod, protocol=120)
    assert world.until(lambda: mine not in world.foreign)
    world.run(1.0)
    assert world.ours().keys() == {"10.1.0.2/32"}
    world.remove_link(pod)
    assert world.until(lambda: not world.ours() and not world.ours(V6))
    # and ours once more where pods are
    pod = world.link("cali0123")
    world.route("add", "10.1.0.1/32", dev=pod, protocol=120)
    world.start()
    world.engine.sweep(Family)
    world.settle()
    assert not world.ours()


def test_routes_of_an_earlier_metric_are_swept(world, eth0):
    world.start(metric=50)
    world.apply(["10.1.0.0/24", "10.2.0.0/24"], "10.0.0.2", dev=eth0)
    world.apply("fd01::/64", "fd00::2", dev=eth0)
    world.settle()
    world.start(metric=0)
    assert world.engine.found_at_start == {V4, V6}
    world.apply("10.1.0.0/24", "10.0.0.2", dev=eth0)
    world.apply("fd01::/64", "fd00::2", dev=eth0)
    world.settle()
    world.engine.sweep([V4, V6])
    world.settle()
    assert [r.metric for r in world.kernel_routes(V4) if r.protocol == 120] == [0]
    assert [r.metric for r in world.kernel_routes(V6) if r.protocol == 120] == [1024]


@pytest.mark.parametrize(("prefix", "via"), [("10.1.0.0/24", "10.0.0.2"), ("fd01::/64", "fd00::2")])
def test_what_somebody_else_removes_is_put_back(world, eth0, prefix, via):
    family = parse_prefix(prefix)[0]
    world.start()
    world.apply(prefix, via, dev=eth0)
    world.settle()
    world.route("delete", prefix, via, dev=eth0, protocol=120)
    assert world.ours(family) == {}
    assert world.until(lambda: bool(world.ours(family)))
    assert world.engine.routes.counters.repaired == 1
    world.route("delete", prefix, via, dev=eth0, protocol=120)
    assert world.until(lambda: bool(world.ours(family)))


@pytest.mark.parametrize(("prefix", "via", "other"), [
    ("10.1.0.0/24", "10.0.0.2", "10.0.0.9"), ("fd01::/64", "fd00::2", "fd00::9"),
])  # fmt: skip
def test_what_somebody_else_changes_under_our_number_is_repaired(world, eth0, prefix, via, other):
    family = parse_prefix(prefix)[0]
    world.start()
    world.apply(prefix, via, dev=eth0)
    world.settle()
    world.route("replace", prefix, other, dev=eth0, protocol=120)
    assert world.ours(family) == {prefix: (1, (leg(other, eth0),))}
    assert world.until(lambda: world.ours(family) == {prefix: (1, (leg(via, eth0),))})


@pytest.mark.parametrize(("prefix", "via", "other"), [
    ("10.1.0.0/24", "10.0.0.2", "10.0.0.9"), ("fd01::/64", "fd00::2", "fd00::9"),
])  # fmt: skip
def test_ours_replaced_by_a_foreign_route_yields_and_returns(world, eth0, prefix, via, other):
    family = parse_prefix(prefix)[0]
    world.start()
    world.apply(prefix, via, dev=eth0)
    world.settle()
    world.route("replace", prefix, other, dev=eth0)
    before = world.others(family)
    assert world.until(lambda: "is held by a static route" in world.reason(prefix))
    world.apply(prefix, other, dev=eth0)
    world.run(0.3)
    assert world.others(family) == before and world.ours(family) == {}
    world.route("delete", prefix, other, dev=eth0)
    assert world.until(lambda: bool(world.ours(family)))
    assert not world.failures


def test_a_foreign_route_appended_beside_ours_survives_all_we_do(world, eth0):
    world.start()
    world.apply("10.1.0.0/24", "10.0.0.2", dev=eth0)
    world.settle()
    world.route("append", "10.1.0.0/24", "10.0.0.9", dev=eth0)
    before = world.others()
    world.run(0.2)
    assert before == world.others() and "10.1.0.0/24" in world.ours()
    world.apply("10.1.0.0/24", "10.0.0.3", dev=eth0)
    assert world.until(lambda: bool(world.failures))
    assert world.others() == before
    world.apply("10.1.0.0/24")
    world.settle()
    assert world.others() == before and world.ours() == {} and not world.failures


def test_a_foreign_route_prepended_to_ours_survives_all_we_do(world, eth0):
    world.start()
    world.apply("10.1.0.0/24", "10.0.0.2", dev=eth0)
    world.settle()
    world.route("prepend", "10.1.0.0/24", "10.0.0.9", dev=eth0)
    before = world.others()
    world.run(0.2)
    world.apply("10.1.0.0/24", "10.0.0.3", dev=eth0)
    world.run(0.2)
    assert world.others() == before
    world.apply("10.1.0.0/24")
    world.settle()
    assert world.others() == before and world.ours() == {}


def test_foreign_legs_in_our_ipv6_group_survive_all_we_do(world, eth0):
    world.start()
    world.apply("fd01::/64", "fd00::2", dev=eth0)
    world.settle()
    world.route("append", "fd01::/64", "fd00::9", dev=eth0)
    world.run(0.2)
    foreign = world.foreign[V6, parse_prefix("fd01::/64")[1], 1024]
    assert foreign.gateways == (leg("fd00::9", eth0),)

    def legs():
        return {g for r in world.kernel_routes(V6) if r.prefix == parse_prefix("fd01::/64")[1] for g in r.gateways}

    assert legs() == {leg("fd00::2", eth0), leg("fd00::9", eth0)}
    world.apply("fd01::/64", "fd00::3", dev=eth0)
    assert world.until(lambda: bool(world.failures))
    assert legs() == {leg("fd00::9", eth0)}
    world.route("delete", "fd01::/64", "fd00::9", dev=eth0)
    assert world.until(lambda: legs() == {leg("fd00::3", eth0)})
    world.route("append", "fd01::/64", "fd00::9", dev=eth0)
    world.run(0.2)
    world.apply("fd01::/64")
    world.settle()
    assert legs() == {leg("fd00::9", eth0)}


@pytest.mark.parametrize(("prefix", "via", "address"), [
    ("10.1.0.0/24", "10.9.0.2", "10.9.0.1/24"), ("fd01::/64", "fd09::2", "fd09::1/64"),
])  # fmt: skip
def test_a_refused_route_is_told_with_the_kernels_words_and_retried_when_an_address_helps(
    world, eth0, prefix, via, address
):
    family = parse_prefix(prefix)[0]
    world.start()
    world.apply(prefix, via, dev=eth0)
    assert world.until(lambda: bool(world.failures))
    assert world.reason(prefix).startswith(f"the kernel refused {prefix} via {via} dev eth0: ")
    assert "invalid gateway" in world.reason(prefix) or "No route to host" in world.reason(prefix)
    world.run(0.1)
    world.add_address(eth0, address)
    assert world.until(lambda: not world.failures)
    assert world.ours(family) == {prefix: (1, (leg(via, eth0),))}


def test_a_refusal_is_retried_with_growing_pauses(model):
    eth0 = model.link("eth0", "10.0.0.1/24")
    model.start()
    for _ in range(3):
        model.kernel.fail_next("add", errno.ENOMEM)
    model.apply("10.1.0.0/24", "10.0.0.2", dev=eth0)
    began = model.driver.now
    assert model.until(lambda: not model.failures and bool(model.ours()), 10)
    assert 6.9 < model.driver.now - began < 7.5  # after 1, 2 and 4 seconds
    assert model.engine.routes.counters.failures == {errno.ENOMEM: 3}


@pytest.mark.parametrize("family", [V4, V6])
def test_routes_return_after_a_link_went_down_and_up(world, eth0, eth1, family):
    prefixes, via, other = (
        (["10.1.0.0/24", "10.2.0.0/24"], "10.0.0.2", "10.0.1.2")
        if family is V4
        else (["fd01::/64", "fd02::/64"], "fd00::2", "fd00:1::2")
    )
    world.start()
    world.apply(prefixes, via, dev=eth0)
    world.apply("10.3.0.0/24" if family is V4 else "fd03::/64", other, dev=eth1)
    world.settle()
    world.set_link(eth0, enabled=False)
    assert world.until(lambda: len(world.failures) == 2)
    assert world.interfaces[eth0].up is False
    assert len(world.ours(family)) == 1
    world.set_link(eth0, enabled=True)
    if family is V6:  # Linux forgets a link's IPv6 addresses when it goes down
        world.remove_address(eth0, "fd00::1/64") if type(world).__name__ == "ModelWorld" else None
        world.add_address(eth0, "fd00::1/64")
    assert world.until(lambda: not world.failures, 2)
    assert len(world.ours(family)) == 3


def test_foreign_routes_are_seen_to_come_change_and_go(world, eth0, eth1):
    world.start()
    key = (V4, parse_prefix("10.1.0.0/24")[1], 0)
    assert {i.name for i in world.interfaces.values()} >= {"eth0", "eth1"}
    assert (parse_address("10.0.0.1"), 24) in world.interfaces[eth0].addresses
    assert world.foreign[V4, parse_prefix("10.0.0.0/24")[1], 0].gateways == (Gateway(b"", eth0),)
    world.route("add", "10.1.0.0/24", "10.0.0.9", dev=eth0)
    assert world.until(lambda: key in world.foreign)
    world.route("replace", "10.1.0.0/24", "10.0.1.9", dev=eth1)
    assert world.until(lambda: world.foreign[key].gateways == (leg("10.0.1.9", eth1),))
    world.route("append", "10.1.0.0/24", "10.0.0.9", dev=eth0)
    world.run(0.1)
    assert world.foreign[key].gateways == (leg("10.0.1.9", eth1),)
    world.route("delete", "10.1.0.0/24", "10.0.1.9", dev=eth1)
    assert world.until(lambda: world.foreign[key].gateways == (leg("10.0.0.9", eth0),))
    world.set_link(eth0, enabled=False)  # Linux says nothing of the routes this takes along
    assert world.until(lambda: key not in world.foreign)
    assert (V4, parse_prefix("10.0.0.0/24")[1], 0) not in world.foreign
    world.remove_link(eth1)
    assert world.until(lambda: eth1 not in world.interfaces)
    assert not [r for r in world.foreign.values() if r.family is V4 and r.gateways]


def test_a_table_of_its_own_beyond_255(world, eth0):
    world.start(table=1000, metric=77, protocol=121)
    world.apply("10.1.0.0/24", "10.0.0.2", dev=eth0)
    world.apply("fd01::/64", "fd00::2", dev=eth0)
    world.settle()
    assert set(world.ours()) == {"10.1.0.0/24"} and set(world.ours(V6)) == {"fd01::/64"}
    world.route("delete", "10.1.0.0/24", "10.0.0.2", dev=eth0, protocol=121, metric=77)
    assert world.until(lambda: bool(world.ours()))
    world.apply("10.1.0.0/24")
    world.apply("fd01::/64")
    world.settle()
    assert world.ours() == {} and world.ours(V6) == {}


def test_lost_notifications_lead_to_a_full_reading(world, eth0):
    world.start()
    world.apply(["10.1.0.0/24", "10.2.0.0/24"], "10.0.0.2", dev=eth0)
    world.settle()
    told = world.full_changes

    def disturb():
        world.route("delete", "10.1.0.0/24", "10.0.0.2", dev=eth0, protocol=120)
        world.route("replace", "10.2.0.0/24", "10.0.0.9", dev=eth0, protocol=120)
        world.route("add", "10.3.0.0/24", "10.0.0.9", dev=eth0)

    world.overflow_monitor(disturb)
    via = (1, (leg("10.0.0.2", eth0),))
    assert world.until(lambda: world.ours() == {"10.1.0.0/24": via, "10.2.0.0/24": via})
    assert world.until(lambda: (V4, parse_prefix("10.3.0.0/24")[1], 0) in world.foreign)
    assert world.full_changes > told
    assert world.engine.counters.overflows >= 1


def test_many_routes_and_some_bad_ones_in_a_chunk(world, eth0):
    world.start()
    prefixes = [bytes((26, 20, n >> 8, n & 255, 0)) for n in range(3000)]
    world.route("add", "20.0.7.0/26", "10.0.0.9", dev=eth0)
    world.route("add", "20.11.183.0/26", "10.0.0.9", dev=eth0)
    world.apply("10.1.0.0/24", "10.77.0.1", dev=eth0)
    world.engine.apply([RouteBatch(V4, prefixes, KernelRoute(RouteKind.UNICAST, (leg("10.0.0.2", eth0),)))])
    world.settle()
    assert {failure.errno for failure in world.failures.values()} == {errno.EEXIST, errno.ENETUNREACH}
    assert len(world.failures) == 3
    assert len(world.ours()) == 2998
    assert world.engine.routes.counters.added == 2998
    world.engine.apply([RouteBatch(V4, prefixes, None)])
    world.settle()
    assert world.ours() == {} and len(world.failures) == 1 and len(world.others()) == 2
    assert world.engine.routes.counters.deleted == 2998


@pytest.mark.parametrize(
    ("prefix", "via", "other", "usual"),
    [("10.1.0.0/24", "10.0.0.2", "10.0.0.3", 0), ("fd01::/64", "fd00::2", "fd00::3", 1024)],
)
def test_a_metric_of_its_own(world, eth0, prefix, via, other, usual):
    family = parse_prefix(prefix)[0]
    world.start()
    for gateway, metric in [(via, 0), (via, 512), (other, 512), (other, 300), (via, 0), (via, 1024), (via, 512)]:
        world.apply(prefix, gateway, dev=eth0, metric=metric)
        world.settle()
        assert world.metrics(family) == {prefix: [metric or usual]}
        assert world.ours(family) == {prefix: (1, (leg(gateway, eth0),))}
    assert not world.failures
    world.start()  # another daemon takes over: what it finds at another metric is its own to change
    world.apply(prefix, via, dev=eth0)
    world.settle()
    assert world.metrics(family) == {prefix: [usual]}
    world.apply(prefix, via, dev=eth0, metric=512)
    world.settle()
    world.start()
    world.engine.sweep([family])
    world.settle()
    assert world.metrics(family) == {}


@pytest.mark.parametrize(
    ("prefix", "via", "other"), [("10.1.0.0/24", "10.0.0.2", "10.0.0.9"), ("fd01::/64", "fd00::2", "fd00::9")]
)
def test_a_foreign_route_is_in_the_way_at_its_metric_only(world, eth0, prefix, via, other):
    family = parse_prefix(prefix)[0]
    world.start()
    world.route("add", prefix, other, dev=eth0, metric=512)
    world.apply(prefix, via, dev=eth0, metric=300)
    world.settle()
    assert world.metrics(family) == {prefix: [300]} and not world.failures
    world.apply(prefix, via, dev=eth0, metric=512)
    assert world.until(lambda: bool(world.failures))
    assert "is held by a static route" in world.reason(prefix)
    assert (prefix, 4, 512, (leg(other, eth0),)) in world.others(family)
    world.route("delete", prefix, other, dev=eth0, metric=512)
    assert world.until(lambda: world.metrics(family) == {prefix: [512]} and not world.failures)
    world.apply(prefix)
    world.settle()
    assert world.metrics(family) == {}


def test_somebody_removes_a_route_of_one_metric_and_adds_one_of_another(world, eth0):
    world.start()
    world.apply("10.1.0.0/24", "10.0.0.2", dev=eth0, metric=512)
    world.settle()
    world.engine.sweep([V4])
    world.route("delete", "10.1.0.0/24", dev=0, protocol=world.settings.protocol, metric=512)
    assert world.until(lambda: world.metrics() == {"10.1.0.0/24": [512]}, 5.0), "it is put back"
    world.route("add", "10.1.0.0/24", "10.0.0.3", dev=eth0, protocol=world.settings.protocol, metric=9)
    assert world.until(lambda: world.metrics() == {"10.1.0.0/24": [512]}, 5.0), "one too many under our number goes"
