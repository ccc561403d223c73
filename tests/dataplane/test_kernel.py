"""The asyncio adapter on a real kernel, in a namespace of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from functools import partial

import pytest

import routed
from routed.dataplane.engine import KernelSettings
from routed.dataplane.kernel import Kernel
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix
from routed.testing.lab import wait_for
from tests.dataplane.conftest import PATIENCE, is_up

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("namespace")]

V4 = Family.IPV4_UNICAST


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def eth0(namespace):  # noqa: ARG001  # its interface is in there
    ip("link", "set", "lo", "up")
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far")
    for name in ("eth0", "far"):
        ip("link", "set", name, "up")
    for name in ("eth0", "far"):
        wait_for(partial(is_up, name), PATIENCE, f"{name} is up")
    ip("addr", "add", "10.0.0.1/24", "dev", "eth0")
    return socket.if_nametoindex("eth0")


class Books:
    def __init__(self) -> None:
        self.changes, self.failures, self.cleared, self.problems = [], [], [], []

    def kernel(self, **settings) -> Kernel:
        def failed(failures, cleared):
            self.failures.extend(failures)
            self.cleared.extend(cleared)

        return Kernel(
            KernelSettings(**settings), changed=self.changes.append, failed=failed, problem=self.problems.append
        )


def many(count: int) -> list[bytes]:
    return [make_prefix((0x14000000 + number * 64).to_bytes(4, "big"), 26) for number in range(count)]


def via(interface: int, address: str = "10.0.0.2") -> KernelRoute:
    return KernelRoute(RouteKind.UNICAST, (Gateway(parse_address(address), interface),))


async def until(condition, seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def test_routes_are_written_found_again_repaired_and_stay(eth0):
    async def run() -> None:
        books = Books()
        kernel = books.kernel()
        await kernel.start()
        assert books.changes[0].full and kernel.found_at_start == frozenset()
        prefixes = many(20000)
        for start in range(0, len(prefixes), 100):
            kernel.apply([RouteBatch(V4, prefixes[start : start + 100], via(eth0))])
        kernel.apply([RouteBatch(V4, [parse_prefix("10.9.0.0/16")[1]], via(eth0, "10.77.0.1"))])
        await kernel.drained()
        assert kernel.route_count(V4) == 20000
        assert [failure.reason for failure in books.failures] == [
            "the kernel refused 10.9.0.0/16 via 10.77.0.1 dev eth0: Network is unreachable (Nexthop has invalid gateway)"
        ]
        assert kernel.fib_entry(V4, prefixes[0]).state == "installed"
        kernel.close()
        assert len(ip("route", "show", "proto", "120").splitlines()) == 20000

        books = Books()
        kernel = books.kernel()
        await kernel.start()
        assert kernel.found_at_start == {V4}
        kernel.apply([RouteBatch(V4, prefixes[:1000], via(eth0))])
        kernel.sweep([V4])
        await kernel.drained()
        assert len(ip("route", "show", "proto", "120").splitlines()) == 1000
        ip("route", "flush", "proto", "120")
        assert await until(lambda: ip("route", "show", "proto", "120").count("\n") == 1000)
        assert await until(lambda: kernel.route_counters.repaired == 1000)
        kernel.close()
        kernel.close()

    asyncio.run(run())


def test_own_writes_are_not_heard_again_and_others_are(eth0):
    async def run() -> None:
        books = Books()
        kernel = books.kernel()
        await kernel.start()
        kernel.apply([RouteBatch(V4, many(3000), via(eth0))])
        await kernel.drained()
        await asyncio.sleep(0.05)
        assert len(books.changes) == 1
        ip("route", "add", "10.3.0.0/24", "via", "10.0.0.9")
        assert await until(lambda: len(books.changes) == 2)
        assert [route.prefix for route in books.changes[1].routes_added] == [parse_prefix("10.3.0.0/24")[1]]
        ip("route", "add", "10.4.0.0/24", "via", "10.0.0.9", "table", "77")
        ip("link", "set", "eth0", "name", "uplink0")
        assert await until(lambda: len(books.changes) == 3)
        assert [interface.name for interface in books.changes[2].interfaces] == ["uplink0"]
        kernel.close()

    asyncio.run(run())


def test_the_loop_goes_on_while_the_kernel_works(eth0):
    async def run() -> float:
        kernel = Books().kernel()
        await kernel.start()
        prefixes = many(100_000)
        for start in range(0, len(prefixes), 100):
            kernel.apply([RouteBatch(V4, prefixes[start : start + 100], via(eth0))])
        done = asyncio.ensure_future(kernel.drained())
        turns = 0
        while not done.done():
            await asyncio.sleep(0.001)
            turns += 1
        kernel.close()
        return turns

    assert asyncio.run(run()) > 20  # the kernel takes half a second for it


@pytest.mark.usefixtures("eth0")
def test_watching_needs_no_privilege_and_writing_says_what_it_needs():
    """As an unprivileged user in the namespace: everything is seen, nothing written, one sentence told."""
    script = """
import asyncio, json
from routed.dataplane.engine import KernelSettings
from routed.dataplane.kernel import Kernel
from routed.desired import KernelRoute, RouteBatch, RouteKind
from routed.net.families import Family
async def run():
    changes, failures, problems = [], [], []
    kernel = Kernel(KernelSettings(), changed=changes.append, failed=lambda *each: failures.append(each),
                    problem=problems.append)
    await kernel.start()
    kernel.apply([RouteBatch(Family.IPV4_UNICAST, [bytes((24, 10, 1, n)) for n in range(200)],
                             KernelRoute(RouteKind.BLACKHOLE))])
    for _ in range(3000):
        await asyncio.sleep(0.01)
        if problems:
            break
    print(json.dumps([len(changes[0].interfaces), problems, len(failures),
                      kernel.fib_entry(Family.IPV4_UNICAST, bytes((24, 10, 1, 0))).reason]))
    kernel.close()
asyncio.run(run())
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(routed.__file__))}
    command = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    result = subprocess.run(
        [*command, sys.executable, "-c", script], check=False, capture_output=True, text=True, env=environment
    )
    if result.returncode:
        pytest.skip(f"can't run Python as another user here: {result.stderr.splitlines()[-1:]}")
    interfaces, problems, failures, reason = json.loads(result.stdout)
    sentence = "not permitted to change routes: run as root or give CAP_NET_ADMIN"
    assert (interfaces, problems, failures, reason) == (3, [sentence], 0, sentence)
    assert ip("route", "show", "proto", "120") == ""
