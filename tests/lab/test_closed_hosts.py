"""Host endpoints while our rules are gone: closed but for failsafe ports, with real packets, until all is as it should be.

Somebody flushes the table, what closes goes out by itself, and the thread that would make the table anew is held, so that
packets meet that state for as long as they need.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from routed.dataplane.firewall_layout import CLOSED_HOSTS
from routed.desired_policy import (
    Action,
    EndpointPolicy,
    EndpointUpdate,
    Place,
    PolicyBatch,
    TierWalk,
    Walk,
)
from tests.lab.test_host_policy import (
    ADDRESSES,
    CLIENT,
    DENY,
    FAR,
    HOST,
    SERVER,
    A,
    Site,
    allow,
    global_policy,
    host_endpoint,
    resource,
    who,
)
from tests.policy.nodes import twin
from tests.policy.specification import Connection

pytestmark = pytest.mark.lab

BOTH = ["Ingress", "Egress"]
NORMAL = global_policy("normal", types=BOTH, ingress=[allow("TCP", 443)], egress=[allow("TCP", 443)])
FORWARD = global_policy("forward", applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 80, 443)])
PRE_DNAT = global_policy(
    "early", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 443), DENY]
)
NO_FAILSAFES = resource("FelixConfiguration", "default", {"failsafeInboundHostPorts": []})

#: What passes whatever is closed: failsafe ports of the node, and interfaces without policy.
KEPT = {
    (CLIENT, HOST, "TCP/22"): True,
    (CLIENT, HOST, "TCP/6443"): True,
    (HOST, CLIENT, "TCP/179"): True,
    (HOST, CLIENT, "UDP/53"): True,
}
BY_ETH1 = {(SERVER, FAR, "TCP/80"): True, (FAR, SERVER, "TCP/80"): True}
#: What no policy of the node is asked about.
PODS_AND_NODE = {(A, HOST, "TCP/80"): True, (HOST, A, "TCP/80"): True}


def node_is_closed(*, heard: bool = True, said: bool = True, passing: bool = False) -> dict[tuple[str, str, str], bool]:
    return {
        (CLIENT, HOST, "TCP/443"): not heard,
        (CLIENT, HOST, "UDP/53"): not heard,
        (HOST, CLIENT, "TCP/443"): not said,
        (CLIENT, SERVER, "TCP/443"): not passing,
        (CLIENT, A, "TCP/443"): False,
        (A, CLIENT, "TCP/443"): False,
    }


CASES: dict[str, tuple[tuple[dict[str, Any], ...], dict[tuple[str, str, str], bool]]] = {
    "normal": ((host_endpoint(), NORMAL), {**KEPT, **BY_ETH1, **PODS_AND_NODE, **node_is_closed()}),
    "the wildcard": (
        (host_endpoint("*"), host_endpoint("eth1", profiles=["projectcalico-default-allow"]), NORMAL),
        {
            **KEPT,
            **PODS_AND_NODE,
            **node_is_closed(),
            (SERVER, FAR, "TCP/443"): False,
            (FAR, SERVER, "TCP/443"): False,
            (SERVER, FAR, "TCP/22"): True,
        },
    ),
    "what passes through": (
        (host_endpoint(), FORWARD),
        {**KEPT, **BY_ETH1, **node_is_closed(passing=True), (SERVER, CLIENT, "TCP/80"): True},
    ),
    "before translation": (
        (host_endpoint("eth0", profiles=["projectcalico-default-allow"]), PRE_DNAT),
        {**KEPT, **BY_ETH1, **PODS_AND_NODE, **node_is_closed(passing=True)},
    ),
    "no failsafe ports": (
        (host_endpoint(), NORMAL, NO_FAILSAFES),
        {**KEPT, **BY_ETH1, **PODS_AND_NODE, **node_is_closed(heard=False, said=False)},
    ),
    "no host endpoint": ((NORMAL,), {**KEPT, **BY_ETH1, **PODS_AND_NODE, **node_is_closed(heard=False, said=False)}),
}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def listed(site: Site) -> str:
    return site.node.run("nft", "-s", "list", "ruleset")


@contextlib.contextmanager
def closed(site: Site, *change: str) -> Iterator[None]:
    """Somebody changes our table, and it is closed and not yet made anew."""
    held = threading.Event()
    site.keeper.kernel._thread.submit(held.wait, 120)
    try:
        site.node.run("nft", *change)

        async def told() -> None:
            async with asyncio.timeout(30):
                while "chain closed " not in listed(site):
                    await asyncio.sleep(0.01)

        site.run(told())
        yield
    finally:
        held.set()


@contextlib.contextmanager
def held_back(site: Site, *change: str) -> Iterator[None]:
    """So, and at the end all is in force again."""
    rebuilds = site.keeper.kernel.rebuilds
    with closed(site, *change):
        yield

    site.run(site.made_anew(rebuilds, 30))


async def soon(call: Callable[..., None], *given: Any) -> None:
    """Call it while a loop runs."""
    call(*given)


def wrongly(site: Site, wanted: dict[tuple[str, str, str], bool]) -> list[str]:
    """Where packets do not do what was said."""
    tries = [
        (Connection(who(source), who(destination), what.split("/")[0], int(what.split("/")[1]), ipv6), admitted)
        for (source, destination, what), admitted in wanted.items()
        for ipv6 in (False, True)
    ]
    made = site.connections.attempt(
        [connection for connection, _ in tries], {number for number, (_, admitted) in enumerate(tries) if admitted}
    )
    return [
        f"{each.source.name} -> {each.destination.name} {each.protocol}/{each.port}{' (IPv6)' if each.ipv6 else ''}: "
        f"{'made' if number in made else 'not made'}"
        for number, (each, admitted) in enumerate(tries)
        if admitted is not (number in made)
    ]


@pytest.mark.parametrize("case", CASES)
def test_until_the_rules_are_back_only_what_is_kept_open_passes(site: Site, case: str):
    manifests, wanted = CASES[case]
    site.have(*manifests)
    before = listed(site)
    with held_back(site, "flush", "ruleset"):
        assert wrongly(site, wanted) == []
    assert sorted(listed(site).split()) == sorted(before.split()) and site.problems == []


def test_connections_that_are_there_live_on(site: Site):
    site.have(host_endpoint(), NORMAL)
    with contextlib.ExitStack() as opened:
        with site.node.entered():
            listener = opened.enter_context(socket.create_server((ADDRESSES[HOST], 8443)))
            inner = opened.enter_context(socket.create_server((ADDRESSES[HOST], 7000)))
        pairs = []
        site.have(host_endpoint(), global_policy("normal", types=["Ingress"], ingress=[allow("TCP", 7000, 8443)]))
        for each in (listener, inner):
            with site.namespaces[CLIENT].entered():
                there = opened.enter_context(socket.create_connection(each.getsockname(), 30))
            here = opened.enter_context(each.accept()[0])
            for end in (here, there):
                end.settimeout(30)
            pairs.append((here, there))
        with held_back(site, "flush", "ruleset"):
            for here, there in pairs:
                there.sendall(b"asked")
                assert here.recv(5) == b"asked"
                here.sendall(b"answered")
                assert there.recv(8) == b"answered"
            assert wrongly(site, {(CLIENT, HOST, "TCP/443"): False}) == []


def test_what_untracked_policy_admits_passes_where_its_rules_are_there(site: Site):
    untracked = global_policy(
        "untracked",
        doNotTrack=True,
        applyOnForward=True,
        types=BOTH,
        ingress=[allow("TCP", 80)],
        egress=[{"action": "Allow", "protocol": "TCP", "source": {"ports": [80]}}],
    )
    site.have(host_endpoint(), untracked, NORMAL)
    with held_back(site, "insert", "rule", "inet", "routed", "forwarded", "accept"):
        assert wrongly(site, {**KEPT, (CLIENT, HOST, "TCP/80"): True, (CLIENT, HOST, "TCP/443"): False}) == []
    with held_back(site, "flush", "ruleset"):
        assert wrongly(site, {**KEPT, (CLIENT, HOST, "TCP/80"): False, (CLIENT, HOST, "TCP/443"): False}) == []


def test_what_the_node_says_to_a_service_is_stopped_where_it_leaves(site: Site):
    site.have(host_endpoint("eth0"), NORMAL)
    services = (
        f"add table inet theirs; add chain inet theirs output {{ type nat hook output priority -100; }}; "
        f"add rule inet theirs output ip daddr {ADDRESSES['a service']} dnat ip to {ADDRESSES[CLIENT]}; "
        f"add rule inet theirs output ip6 daddr {twin(ADDRESSES['a service'])} dnat ip6 to {twin(ADDRESSES[CLIENT])}; "
        f"add chain inet theirs out {{ type nat hook postrouting priority 100; }}; "
        f"add rule inet theirs out ct status dnat masquerade"
    )
    site.node.run("nft", services)
    wanted = {(FAR, "a service", "TCP/443"): True}
    try:
        assert wrongly(site, wanted) == []
        with held_back(site, "delete", "table", "inet", "routed"):
            assert wrongly(site, {(FAR, "a service", "TCP/443"): False, (FAR, "a service", "TCP/179"): True}) == []
        assert wrongly(site, wanted) == []
    finally:
        site.node.run("nft", "delete", "table", "inet", "theirs")


def test_where_the_kernel_takes_no_rules_nobody_is_locked_out_of_the_node(site: Site):
    """Whoever must mend that may come by a port that only a policy allowed."""
    site.have(host_endpoint(), NORMAL)
    walk = Walk((TierWalk("default", ("never_made",), Action.DENY),))
    kernel = site.keeper.kernel

    def asking(walk: Walk | None) -> EndpointUpdate:
        return EndpointUpdate("calix", Place.WORKLOAD, EndpointPolicy("calix", Place.WORKLOAD, walk, walk))

    async def told(problem: str) -> None:
        async with asyncio.timeout(30):
            while not site.problems or problem not in site.problems[-1]:
                await asyncio.sleep(0.01)

    site.run(soon(kernel.apply, PolicyBatch(endpoints=(asking(walk),))))
    site.run(told("those of before stay in force"))
    with closed(site, "flush", "ruleset"):
        assert wrongly(site, {(CLIENT, HOST, "TCP/80"): False, (CLIENT, HOST, "TCP/22"): True}) == []
    site.run(told("as there are none no new connection from or to a pod passes"))
    there = listed(site)
    assert "chain closed " in there and not any(chain in there for chain in CLOSED_HOSTS)
    open_to_all = {(CLIENT, HOST, "TCP/80"): True, (HOST, CLIENT, "TCP/80"): True}
    assert wrongly(site, {**open_to_all, (CLIENT, A, "TCP/80"): False}) == []

    async def mended() -> None:
        kernel.apply(PolicyBatch(endpoints=(EndpointUpdate("calix", Place.WORKLOAD, None),)))
        async with asyncio.timeout(120):
            await kernel.settled()

    site.run(mended())
    assert site.problems.pop() == "" and "closed" not in listed(site)
    site.problems.clear()
    assert wrongly(site, {(CLIENT, HOST, "TCP/80"): False, (CLIENT, HOST, "TCP/443"): True}) == []
