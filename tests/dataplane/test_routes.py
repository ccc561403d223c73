"""The writer's schedules and the engine's decisions that need a clock or a fault to show."""

from __future__ import annotations

import errno
from functools import partial

import pytest

from routed.dataplane.engine import KernelEngine, KernelSettings
from routed.dataplane.patience import SLICE, Repairs, Retries
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix
from routed.netlink.messages import messages
from routed.netlink.numbers import NLM_F_ACK, RTM_DELROUTE

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def many(count: int) -> list[bytes]:
    return [make_prefix((0x14000000 + number * 64).to_bytes(4, "big"), 26) for number in range(count)]


def route(interface: int, address: str = "10.0.0.2") -> KernelRoute:
    return KernelRoute(RouteKind.UNICAST, (Gateway(parse_address(address), interface),))


@pytest.fixture
def started(model):
    model.eth0 = model.link("eth0", "10.0.0.1/24", "fd00::1/64")
    return model.start()


def test_chunks_are_bounded_and_ask_for_one_acknowledgement(started):
    engine = started.engine
    engine.apply([RouteBatch(V4, many(5000), route(started.eth0))])
    sizes, asked = [], []
    for _ in range(2):
        chunk = engine.take_write(0.0)
        sizes.append(len(chunk))
        asked.append(sum(bool(message.flags & NLM_F_ACK) for message in messages(chunk)))
    assert max(sizes) <= 128 * 1024 + 100 and asked == [1, 1]
    assert engine.take_write(0.0) is None  # two in flight are enough


def test_a_restart_with_the_same_routes_writes_nothing(started):
    batch = RouteBatch(V4, many(20000), route(started.eth0))
    started.engine.apply([batch])
    started.settle()
    started.start()
    started.engine.apply([batch])
    started.settle()
    started.engine.sweep([V4])
    started.settle()
    assert started.engine.routes.counters.chunks == 0
    assert started.engine.routes.count(V4) == 20000
    assert all(entry.state == "installed" for entry in started.engine.routes.entries(V4))


def test_no_permission_is_one_sentence_and_tried_again(started):
    started.kernel.permitted = False
    started.engine.apply([RouteBatch(V4, many(3000), route(started.eth0))])
    started.run(1.0)
    routes = started.engine.routes
    assert routes.problem == "not permitted to change routes: run as root or give CAP_NET_ADMIN"
    assert not started.failures and not started.engine.idle
    entry = routes.entry(V4, many(1)[0])
    assert (entry.state, entry.reason) == ("pending", routes.problem)
    chunks = routes.counters.chunks
    started.run(60.0)
    assert routes.counters.chunks - chunks <= 13  # one probe every five seconds
    started.kernel.permitted = True
    assert started.until(lambda: started.engine.idle, 6)
    assert routes.problem == "" and len(started.ours()) == 3000


def test_one_who_keeps_removing_a_route_is_answered_later_each_time(started):
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    pauses = []
    for _ in range(8):
        started.route("delete", "10.1.0.0/24", "10.0.0.2", dev=started.eth0, protocol=120)
        began = started.driver.now
        assert started.until(lambda: bool(started.ours()), 70)
        pauses.append(round(started.driver.now - began, 3))
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    started.run(130.0)
    started.route("delete", "10.1.0.0/24", "10.0.0.2", dev=started.eth0, protocol=120)
    assert started.until(lambda: bool(started.ours()), 0.06)


def test_a_flush_of_everything_is_repaired_in_slices(started):
    started.engine.apply([RouteBatch(V4, many(3 * SLICE), route(started.eth0))])
    started.settle()
    for each in list(started.kernel_routes(V4)):
        if each.protocol == 120:
            started.kernel._drop(each)  # as `ip route flush proto 120`, whose news we lose
    monitor = started.driver._monitor
    monitor.overflowed = True
    assert started.until(lambda: len(started.ours()) == 3 * SLICE)
    assert started.engine.routes.counters.repaired == 3 * SLICE


def test_lost_answers_are_made_up_for_by_a_dump(started):
    started.kernel.lose_answers_of = started.driver._writer.port
    started.apply("10.1.0.0/24", "10.77.0.1", dev=started.eth0)
    started.apply("10.2.0.0/24", "10.0.0.2", dev=started.eth0)
    assert started.until(lambda: started.reason("10.1.0.0/24") != "")
    assert set(started.ours()) == {"10.2.0.0/24"}
    assert started.engine.routes.entry(*parse_prefix("10.2.0.0/24")).state == "installed"


def test_a_permission_that_came_is_seen_though_the_answers_to_what_was_written_are_lost(started):
    started.kernel.fail_next("add", errno.EPERM)
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.run(0.1)
    assert "not permitted" in started.engine.routes.problem and not started.ours()
    started.kernel.lose_answers_of = started.driver._writer.port
    started.run(100.0)
    assert set(started.ours()) == {"10.1.0.0/24"} and started.engine.routes.problem == ""


def test_the_alarm_of_a_missing_permission_ends_with_the_wish_for_what_needs_it(started):
    started.kernel.fail_next("add", errno.EPERM)
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.run(0.1)
    assert "not permitted" in started.engine.routes.problem
    started.engine.apply([RouteBatch(V4, [parse_prefix("10.1.0.0/24")[1]], None)])
    started.run(10.0)
    assert started.engine.idle and started.engine.routes.problem == ""


def test_lost_answers_to_a_dump_are_asked_for_again(model):
    model.link("eth0", "10.0.0.1/24")
    model.settings = KernelSettings()
    model.driver = model.make_driver()
    model.kernel.lose_answers_of = model.driver._dumper.port
    model.engine.start(model.driver.now)
    assert model.until(lambda: model.engine.ready, 2)


def test_a_refused_deletion_is_told_and_tried_again(started):
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    started.kernel.fail_next("delete", errno.ENOMEM, "no room")
    started.apply("10.1.0.0/24")
    assert started.until(lambda: bool(started.failures), 0.5)
    assert started.reason("10.1.0.0/24") == (
        "the kernel refused to remove 10.1.0.0/24: Cannot allocate memory (no room)"
    )
    assert started.until(lambda: not started.failures, 2)
    assert started.ours() == {} and started.engine.routes.entry(*parse_prefix("10.1.0.0/24")) is None


def test_a_refused_change_leaves_the_old_route_until_the_new_one_is_in(started):
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    started.apply("10.1.0.0/24", "10.77.0.1", dev=started.eth0)
    started.settle()
    assert "via 10.77.0.1 dev eth0" in started.reason("10.1.0.0/24")
    assert list(started.ours().values()) == [(1, (Gateway(parse_address("10.0.0.2"), started.eth0),))]
    started.add_address(started.eth0, "10.77.0.9/24")
    assert started.until(lambda: not started.failures, 0.2)
    assert list(started.ours().values()) == [(1, (Gateway(parse_address("10.77.0.1"), started.eth0),))]


def test_verifying_finds_what_nobody_told(started):
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    (ours,) = [each for each in started.kernel_routes(V4) if each.protocol == 120]
    started.kernel._drop(ours)
    dumps = started.engine.counters.dumps
    full = started.full_changes
    assert started.until(lambda: bool(started.ours()), 91)
    assert started.engine.counters.dumps == dumps + 1
    assert started.full_changes == full  # nothing foreign changed: nothing is told
    started.route("add", "10.9.0.0/24", "10.0.0.9", dev=started.eth0)
    started.driver._monitor.queue.clear()
    assert started.until(lambda: any(key[1] == parse_prefix("10.9.0.0/24")[1] for key in started.foreign), 91)
    assert started.full_changes == full


def test_verifying_gives_way_to_new_work(started):
    started.engine.apply([RouteBatch(V4, many(10), route(started.eth0))])
    started.settle()
    engine = started.engine
    now = started.driver.now + 95
    engine.handle_timer(now)
    request = engine.take_dump(now)
    assert request and engine.take_write(now) is None
    engine.apply([RouteBatch(V4, many(11)[10:], route(started.eth0))])
    assert engine.take_write(now)
    started.driver._dumper.send(request)
    started.driver.now = now
    started.kernel.routes()
    while (answer := started.driver._dumper.receive()) is not None:
        engine.dump_data(answer, now)
    assert engine.take_dump(now) == b""  # the rest of it is not asked for


def test_watching_only_never_writes(started):
    started.start(program_routes=False)
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.run(5.0)
    assert started.ours() == {} and started.engine.routes.counters.chunks == 0
    assert started.foreign


def test_an_interface_left_to_the_kernel_is_no_difference(started):
    started.apply("10.1.0.0/24", "10.0.0.2")
    started.settle()
    assert list(started.ours().values()) == [(1, (Gateway(parse_address("10.0.0.2"), started.eth0),))]
    started.run(200.0)
    assert started.engine.routes.counters.chunks == 1


def test_pods_whose_routes_go_before_their_links_cost_no_dump(started):
    stays = started.link("calistays")
    started.apply("10.65.0.1/32", dev=stays)
    pods = {f"10.65.1.{number}/32": started.link(f"cali{number}") for number in range(3)}
    for prefix, index in pods.items():
        started.apply(prefix, dev=index)
    started.settle()
    dumps = started.engine.counters.dumps
    for prefix, index in pods.items():
        started.apply(prefix)
        started.settle()
        started.remove_link(index)
        started.run(0.3)
    assert started.engine.counters.dumps == dumps
    started.remove_link(stays)  # without a word about its route
    assert started.until(lambda: started.engine.counters.dumps == dumps + 1)


def test_pod_links_that_come_and_go_cost_no_dump(started):
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    dumps = started.engine.counters.dumps
    for number in range(20):
        pod = started.link(f"cali{number}")
        started.route("add", f"10.65.0.{number}/32", dev=pod)
        started.run(0.5)
        assert started.foreign[V4, parse_prefix(f"10.65.0.{number}/32")[1], 0].gateways == (Gateway(b"", pod),)
        started.remove_link(pod)
        started.run(0.5)
        assert (V4, parse_prefix(f"10.65.0.{number}/32")[1], 0) not in started.foreign
    assert started.engine.counters.dumps == dumps


def test_deletions_name_protocol_and_table_and_nothing_else(started):
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    started.apply("10.1.0.0/24")
    chunk = started.engine.take_write(started.driver.now)
    first = next(messages(chunk))
    assert first.type == RTM_DELROUTE and len(first.data) == 36
    assert (first.data[20], first.data[21]) == (254, 120)


def test_entries_may_be_walked_while_routes_change(started):
    started.engine.apply([RouteBatch(V4, many(100), route(started.eth0))])
    started.settle()
    walk = started.engine.routes.entries(V4)
    next(walk)
    started.engine.apply([RouteBatch(V4, many(50), None), RouteBatch(V4, many(200)[100:], route(started.eth0))])
    started.settle()
    assert len(list(walk)) <= 200


def test_nothing_the_sockets_give_can_stop_the_engine(started):
    for noise in (b"", b"\x00" * 16, b"\xff" * 200, (20).to_bytes(4, "little") + b"\x18\x00" + bytes(14)):
        started.engine.monitor_data(noise, 1.0)
        started.engine.writer_data(noise, 1.0)
        started.engine.dump_data(noise, 1.0)
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.settle()
    assert started.ours()


def test_retries_go_round_in_slices_and_pauses_double():
    retries = Retries()
    everything = [(V4, prefix) for prefix in many(SLICE + 10)]
    retries.failed(0.0)
    assert retries.at == 1.0
    assert len(retries.due(1.0, list(everything))) == SLICE and retries.under_way and retries.at == 1.05
    assert len(retries.due(1.05, None)) == 10 and not retries.under_way and retries.at == 3.05
    for pause in (4.0, 8.0, 16.0, 30.0, 30.0):
        now = retries.at
        retries.due(now, [])
        assert retries.at == now + pause
    retries.soon(100.0)
    assert retries.at == 100.05
    retries.nothing_left()
    assert retries.at is None


def test_repairs_are_capped_and_forgiven():
    repairs = Repairs()
    which = (V4, many(1)[0])
    now = 0.0
    for _ in range(40):
        repairs.add(which, now)
        at = min(now + 60.0, repairs.next_timer())
        assert repairs.take(at) == [which]
        now = at
    assert repairs.take(now + 1000.0) == []
    repairs.add(which, now + 1000.0)
    assert repairs.take(now + 1000.1) == [which]


def test_the_engine_needs_no_kernel_to_say_what_it_wants():
    engine = KernelEngine(KernelSettings(), 1)
    assert engine.next_timer() is None and engine.take_write(0.0) is None and engine.take_dump(0.0) == b""
    engine.start(5.0)
    assert engine.next_timer() == 5.0
    assert engine.take_dump(5.0)


def test_what_is_on_its_way_is_not_there_before_the_kernel_says_so(started):
    """Who waits for a pod's route must not be told while a thread that writes it has not had its turn."""
    prefix = parse_prefix("10.1.0.1/32")
    started.apply("10.1.0.1/32", dev=started.eth0)
    now = started.driver.now
    (data,) = iter(partial(started.engine.take_write, now), None)
    assert data and started.engine.routes.entry(*prefix).state == "pending"
    writer = started.driver._writer
    writer.send(data)
    assert started.engine.routes.entry(*prefix).state == "pending"
    for answer in iter(writer.receive, None):
        started.engine.writer_data(answer, now)
    assert started.engine.routes.entry(*prefix).state == "installed" and "10.1.0.1/32" in started.ours()


def test_a_conflict_that_ends_is_noticed_however_long_it_lasted(started):
    started.route("add", "10.1.0.0/24", "10.0.0.9", dev=started.eth0)
    started.apply("10.1.0.0/24", "10.0.0.2", dev=started.eth0)
    started.run(40.0)
    assert started.failures and started.engine.routes.counters.failures == {errno.EEXIST: 1}
    started.route("delete", "10.1.0.0/24", "10.0.0.9", dev=started.eth0)
    assert started.until(lambda: bool(started.ours()), 0.1)


def test_nothing_is_written_between_lost_notifications_and_the_dump(started):
    """The foreign leg we were not told of would fall to our replacement."""
    started.apply("fd01::/64", "fd00::2", dev=started.eth0)
    started.settle()
    started.route("append", "fd01::/64", "fd00::9", dev=started.eth0)
    monitor = started.driver._monitor
    monitor.queue.clear()
    monitor.overflowed = True
    started.apply("fd01::/64", "fd00::3", dev=started.eth0)
    assert started.until(lambda: bool(started.failures), 0.5)
    assert {leg for _, _, _, legs in started.others(V6) for leg in legs} == {
        Gateway(parse_address("fd00::9"), started.eth0)
    }


def test_a_leg_of_ours_whose_removal_was_never_answered_is_still_ours(started):
    eth1 = started.link("eth1", "fd00:1::1/64")
    started.apply("fd01::/64", f"fd00::2%{started.eth0}", f"fd00:1::2%{eth1}")
    started.settle()
    started.kernel.lose_answers_of = started.driver._writer.port
    started.kernel.fail_next("add", errno.ENOMEM)
    started.apply("fd01::/64", "fd00::2", dev=started.eth0)
    wanted = {"fd01::/64": (1, (Gateway(parse_address("fd00::2"), started.eth0),))}
    assert started.until(lambda: started.ours(V6) == wanted)
