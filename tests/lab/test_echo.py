"""Echo requests as the laboratory sends them: what is answered, what is not, and what was lost of many."""

from __future__ import annotations

import select
from types import SimpleNamespace

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echo import is_answered, open_socket
from routed.testing.lab.echoes import echoes

ADDRESSES = ("10.0.0.2", "fd00::2")


@pytest.fixture(scope="module")
def pair(lab: Lab) -> tuple[Namespace, Namespace]:
    one, two = lab.namespace("one"), lab.namespace("two")
    lab.link(one.port("eth0", "10.0.0.1/24", "fd00::1/64"), two.port("eth0", "10.0.0.2/24", "fd00::2/64"))
    one.address("lo", "10.1.0.1/32", "fd01::1/128")
    two.ip("route add 10.1.0.1 via 10.0.0.1", "route add fd01::1 via fd00::1")
    return one, two


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_answered_and_what_is_not(pair: tuple[Namespace, Namespace], address: str) -> None:
    one, two = pair
    inside = "fd01::1" if ":" in address else "10.1.0.1"
    assert one.pings(address, timeout=10) and one.pings(address, source=inside, timeout=10)
    assert not one.pings("2001:db8::1" if ":" in address else "192.0.2.1")  # there is no route
    family, sources = ("ip6", "fd01::/64") if ":" in address else ("ip", "10.1.0.0/24")
    two.run(
        "nft", f"table inet deaf {{ chain c {{ type filter hook input priority 0; {family} saddr {sources} drop; }}; }}"
    )
    assert not one.pings(address, source=inside, timeout=0.2) and one.pings(address, timeout=10)
    two.run("nft", "delete table inet deaf")
    one.run(
        "nft", "table inet mute { chain c { type filter hook output priority 0; meta l4proto {icmp, icmpv6} drop; }; }"
    )
    assert not one.pings(address)  # and is told so at once
    one.run("nft", "delete table inet mute")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_answer_that_waits_counts_though_its_time_is_over(
    pair: tuple[Namespace, Namespace], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process is stopped between its request and the answer, until long after."""
    with pair[0].entered():
        asking = open_socket(address)
    late = iter((0.0, 100.0, 200.0))

    def clock() -> float:
        now = next(late)
        if now:  # time goes on once the answer is there
            assert select.select([asking], [], [], 30)[0], "the answer has not come"
        return now

    monkeypatch.setattr("routed.testing.lab.echo.time", SimpleNamespace(monotonic=clock))
    assert is_answered(asking, 1.0)


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_lost_of_many_is_counted(pair: tuple[Namespace, Namespace], address: str) -> None:
    one, two = pair
    assert echoes(one, address).end()[1] == []
    running = echoes(one, address)
    two.run(
        "nft",
        "table inet deaf { chain c { type filter hook input priority 0; meta l4proto {icmp, icmpv6} counter drop; }; }",
    )
    wait_for(lambda: "packets 0 " not in two.run("nft", "list", "table", "inet", "deaf"), 30, "one is dropped")
    two.run("nft", "delete table inet deaf")
    last, (gap,) = running.end()
    assert 0 < gap < last
