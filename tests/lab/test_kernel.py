"""One node's kernel, changed behind routed's back: foreign routes, deletions, links, crashes, stale routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import Routed
from tests.lab.topology import RECONNECT, SOON, Rack, address, affinity, block, cluster, flaps, pod, start

#: Blocks of the second node beside its first.
MORE = [f"10.244.2.{last}/26" for last in (64, 128, 192)]


@pytest.fixture(scope="module")
def rack(lab: Lab) -> Rack:
    return Rack(lab)


@pytest.fixture(scope="module")
def both(rack: Rack) -> dict[int, Routed]:
    resources = [*cluster(1, 2), *(affinity(2, cidr) for cidr in MORE)]
    made = {number: rack.node(number, *resources) for number in (1, 2)}
    start(*made.values())
    return made


@pytest.fixture
def subject(both: dict[int, Routed]) -> Iterator[Routed]:
    """Node 1, with everything in place before and after."""
    wait_for(lambda: is_whole(both[1]), RECONNECT, "node-1 has its routes", state=both[1].kernel_routes)
    yield both[1]
    wait_for(lambda: is_whole(both[1]), RECONNECT, "node-1 has its routes again", state=both[1].kernel_routes)
    wait_for(lambda: both[1].problems() == [], SOON, "nothing is wrong", state=both[1].problems)


def expected(*, ipv6: bool) -> dict[str, str]:
    others = [block(2, ipv6=ipv6), *([] if ipv6 else MORE)]
    hop = f"via {address(2, ipv6=ipv6)} dev eth0"
    return {block(1, ipv6=ipv6): "blackhole", **dict.fromkeys(others, hop)}


def is_whole(routed: Routed) -> bool:
    return all(routed.kernel_routes(ipv6=six) == expected(ipv6=six) for six in (False, True))


def wait_until_whole(routed: Routed) -> None:
    wait_for(lambda: is_whole(routed), SOON, "the routes are repaired", state=routed.kernel_routes)


def test_a_deleted_route_comes_back(subject: Routed) -> None:
    for command in (f"del {block(2)}", f"del blackhole {block(1)}", f"del {block(2, ipv6=True)}"):
        subject.namespace.route(command)
        wait_until_whole(subject)


def test_flushed_routes_come_back(subject: Routed) -> None:
    for command in ("route flush proto 120", "-6 route flush proto 120", "route flush root 10.244.0.0/16"):
        subject.namespace.run("ip", *command.split())
        wait_until_whole(subject)


def test_a_replaced_route_is_a_foreign_one_until_it_goes(subject: Routed) -> None:
    subject.namespace.route(f"replace {block(2)} via 10.0.0.77 proto static")
    stays(lambda: "10.0.0.77" in subject.namespace.routes()[block(2)], 1.5, "the administrator's route is left alone")
    subject.namespace.route(f"del {block(2)} proto static")
    wait_until_whole(subject)


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_route_in_the_way_is_refused_with_a_reason(subject: Routed, both: dict[int, Routed], ipv6: bool) -> None:
    prefix = "fd00:244:2::40/122" if ipv6 else "10.244.250.0/26"
    foreign = f"{prefix} via {address(77, ipv6=ipv6)} proto static"
    subject.namespace.route(f"add {foreign}")
    manifest = affinity(2, prefix, name="in-the-way")
    for routed in both.values():
        routed.put(manifest)
    wait_for(lambda: subject.best(prefix).get("from"), SOON, "the block is learned")
    row = wait_for(
        lambda: (found := subject.fib().get(prefix)) and found.get("reason") and found, SOON, "the route is refused",
        state=subject.fib,
    )  # fmt: skip
    assert "static" in row["reason"] or "foreign" in row["reason"] or "another" in row["reason"], row
    wait_for(lambda: "1 refused" in subject.ctl("status"), SOON, "it is counted", state=subject.fib)
    assert prefix in subject.ctl("show", "fib")
    wait_for(lambda: subject.route(prefix)["kernelFailure"], SOON, "the table knows", state=subject.fib)
    stays(
        lambda: address(77, ipv6=ipv6) in subject.namespace.routes(ipv6=ipv6).get(prefix, ""), 1.5,
        "the foreign route is untouched",
    )  # fmt: skip
    subject.namespace.route(f"del {foreign}")
    wait_for(
        lambda: subject.kernel_routes(ipv6=ipv6).get(prefix) == f"via {address(2, ipv6=ipv6)} dev eth0",
        SOON,
        "ours gets in once the foreign one is gone",
        state=subject.fib,
    )
    wait_for(lambda: subject.route(prefix)["kernelFailure"] is None, SOON, "the table knows that, too")
    for routed in both.values():
        routed.remove("BlockAffinity", "in-the-way")
    wait_for(lambda: prefix not in subject.kernel_routes(ipv6=ipv6), SOON, "the block is withdrawn")


def test_foreign_routes_of_all_kinds_stay(subject: Routed) -> None:
    subject.namespace.ip(
        "route add 172.16.0.0/16 via 10.0.0.2 proto static",
        "route add 172.17.0.0/16 dev eth0",
        "route add blackhole 172.18.0.0/16 proto 99",
    )
    subject.stop()
    subject.start()
    wait_for(lambda: is_whole(subject), SOON, "the routes are there")
    found = subject.namespace.routes()
    assert {"172.16.0.0/16", "172.17.0.0/16", "172.18.0.0/16"} <= found.keys()
    subject.namespace.ip(
        "route del 172.16.0.0/16", "route del 172.17.0.0/16", "route del blackhole 172.18.0.0/16 proto 99"
    )


def test_link_down_and_up(subject: Routed, both: dict[int, Routed]) -> None:
    subject.namespace.ip("link set eth0 down")
    wait_for(
        lambda: block(2) not in subject.namespace.routes(), SOON, "the kernel drops routes through a link that is down"
    )
    subject.namespace.ip("link set eth0 up", f"addr replace {address(1, ipv6=True)}/64 dev eth0 nodad")
    wait_for(
        lambda: is_whole(subject) and subject.namespace.pings(pod(2), source=pod(1)), RECONNECT, "everything is back",
        state=lambda: (subject.sessions(), subject.fib()),
    )  # fmt: skip
    wait_for(lambda: both[2].established(address(1), address(1, ipv6=True)), RECONNECT, "the other end is back too")


def test_many_deletions_at_once(subject: Routed, both: dict[int, Routed]) -> None:
    """5,000 routes flushed: more than one chunk of notifications, none of them missed."""
    cidrs = [f"10.{249 + i // 1024}.{i // 4 % 256}.{i % 4 * 64}/26" for i in range(5000)]
    many = "---\n".join(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\n"
        f"metadata: {{name: many-{i}}}\nspec: {{node: node-2, cidr: {cidr}, state: confirmed}}\n"
        for i, cidr in enumerate(cidrs)
    )
    wide = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: wide}\nspec: {cidr: 10.128.0.0/9}\n---\n"
    path = both[2].resources / "many.yaml"
    path.write_text(wide + many)
    wait_for(lambda: len(subject.kernel_routes()) >= 5000, 30, "5,000 routes are in the kernel")
    subject.namespace.run("ip", "route", "flush", "proto", "120")
    wait_for(lambda: len(subject.kernel_routes()) >= 5000, 30, "5,000 routes are in the kernel again")
    assert flaps(subject)[address(2)] >= 1
    path.unlink()


def test_a_crash_leaves_the_routes_and_a_restart_adopts_them(subject: Routed, both: dict[int, Routed]) -> None:
    subject.kill()
    stays(lambda: is_whole(subject), 1.0, "the routes stay without the daemon")
    assert subject.namespace.pings(pod(2), source=pod(1))
    # stale ones: a prefix nobody announces any more, and one that now leads elsewhere
    subject.namespace.ip(
        "route add 10.244.99.0/26 via 10.0.0.2 proto 120",
        f"route replace {block(2)} via 10.0.0.77 proto 120",
        "route add 10.244.98.0/26 via 10.0.0.2 proto 121",
    )
    subject.start()
    wait_for(
        lambda: subject.kernel_routes() == expected(ipv6=False), 60, "stale routes of ours are swept after End-of-RIB",
        state=lambda: (subject.kernel_routes(), subject.status()),
    )  # fmt: skip
    assert "10.244.98.0/26" in subject.namespace.routes(), "another daemon's route is not ours to sweep"
    subject.namespace.ip("route del 10.244.98.0/26 proto 121")
    wait_for(lambda: both[2].established(address(1)), RECONNECT, "the session is back")


def test_stale_routes_wait_for_end_of_rib(subject: Routed, both: dict[int, Routed]) -> None:
    """No peer comes back: what was found in the kernel stays, for its packets still arrive."""
    subject.kill()
    both[2].kill()
    subject.start()
    stays(lambda: is_whole(subject), 3.0, "nothing is swept while the peer is away")
    assert subject.status()["sweepPending"]
    both[2].start()
    wait_for(lambda: not subject.status()["sweepPending"], RECONNECT, "the sweep is done", state=subject.status)
    assert is_whole(subject)
