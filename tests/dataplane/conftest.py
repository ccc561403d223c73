"""Two worlds for one contract: the model kernel on a clock that jumps, and Linux in a namespace of its own.

The Linux world's namespace has no name: it is gone with the last socket in it, also after a crash.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from routed.dataplane.engine import KernelEngine, KernelSettings
from routed.dataplane.sockets import NetlinkSocket, open_dumper, open_monitor, open_writer
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, parse_prefix
from routed.netlink.messages import messages, parse_error
from routed.netlink.numbers import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_NEWROUTE,
)
from routed.netlink.routes import RouteDecoder, dump_routes
from routed.observed import ForeignRoute, Interface, RouteFailure
from routed.testing.kernel import Driver, FibRoute, ModelKernel, command, model_driver
from routed.testing.lab import wait_for

#: Seconds until something that should happen soon must have happened.
PATIENCE = 30.0

HOW = {
    "add": NLM_F_CREATE | NLM_F_EXCL,
    "append": NLM_F_CREATE | NLM_F_APPEND,
    "prepend": NLM_F_CREATE,
    "replace": NLM_F_CREATE | NLM_F_REPLACE,
}


class World(ABC):
    """A kernel, an engine on it, and somebody else who changes things."""

    settings: KernelSettings
    driver: Driver

    def __init__(self) -> None:
        self.foreign: dict[tuple[Family, bytes, int], ForeignRoute] = {}
        self.interfaces: dict[int, Interface] = {}
        self.failures: dict[tuple[Family, bytes], RouteFailure] = {}
        self.full_changes = 0

    @property
    def engine(self) -> KernelEngine:
        return self.driver.engine

    def start(self, **settings: object) -> World:
        """A (new) engine takes over, as after a restart of the daemon."""
        self.settings = KernelSettings(**settings)  # type: ignore[arg-type]
        self.foreign, self.interfaces, self.failures = {}, {}, {}
        self.driver = self.make_driver()
        self.engine.start(self.driver.now)
        self.settle()
        return self

    def settle(self, seconds: float = 5.0) -> None:
        """Until all that can be written is, and the engine told what it saw."""
        assert self.driver.run_until(lambda: self.engine.idle, seconds)
        self.observe()

    def run(self, seconds: float) -> None:
        self.driver.run(seconds)
        self.observe()

    def until(self, condition: Callable[[], bool], seconds: float = 1.0) -> bool:
        """Whether a condition comes true within a second, unless said otherwise."""

        def check() -> bool:
            self.observe()
            return condition()

        return self.driver.run_until(check, seconds)

    def observe(self) -> None:
        """Keep the books as the core would."""
        engine = self.engine
        change = engine.take_change() if engine.ready else None
        if change is not None:
            if change.full:
                self.full_changes += 1
                self.foreign, self.interfaces = {}, {}
            for route in change.routes_removed:
                self.foreign.pop((route.family, route.prefix, route.metric), None)
            for route in change.routes_added:
                self.foreign[route.family, route.prefix, route.metric] = route
            for index in change.interfaces_removed:
                self.interfaces.pop(index, None)
            for interface in change.interfaces:
                self.interfaces[interface.index] = interface
        routes = engine.routes
        for where in routes.cleared:
            self.failures.pop(where, None)
        for failure in routes.failures:
            self.failures[failure.family, failure.prefix] = failure
        routes.cleared, routes.failures = [], []

    def apply(
        self, prefixes: str | list[str], *via: str, dev: int = 0, blackhole: bool = False, metric: int = 0
    ) -> None:
        """Desire: no `via` and no blackhole means absent. A via may be `10.0.0.2%3` to name its interface."""
        texts = [prefixes] if isinstance(prefixes, str) else prefixes
        parsed = [parse_prefix(text) for text in texts]
        family = parsed[0][0]
        route = None
        if blackhole:
            route = KernelRoute(RouteKind.BLACKHOLE)
        elif via:
            route = KernelRoute(RouteKind.UNICAST, tuple(sorted(gateway(text, dev) for text in via)), metric)
        elif dev:
            route = KernelRoute(RouteKind.UNICAST, (Gateway(b"", dev),))
        self.engine.apply([RouteBatch(family, [prefix for _, prefix in parsed], route)])

    def route(
        self, how: str, prefix: str, *via: str, dev: int = 0, protocol: int = 4, metric: int = 0, kind: int = 1
    ) -> None:
        """Somebody else adds, appends, prepends, replaces or deletes a route."""
        family, wire = parse_prefix(prefix)
        gateways = tuple(gateway(text, dev) for text in via) or ((Gateway(b"", dev),) if dev else ())
        route = FibRoute(family, wire, self.settings.table, metric, protocol, kind, gateways)
        data = command(route, delete=how == "delete", flags=HOW.get(how, 0))
        errno, text = self.command(data)
        assert errno == 0, f"{how} {prefix}: {os.strerror(errno)} {text}"

    def ours(self, family: Family = Family.IPV4_UNICAST) -> dict[str, tuple[int, tuple[Gateway, ...]]]:
        """What the kernel holds under our number: text -> (kind, gateways)."""
        return {
            format_prefix(r.family, r.prefix): (r.kind, tuple(sorted(r.gateways)))
            for r in self.kernel_routes(family)
            if r.protocol == self.settings.protocol
        }

    def metrics(self, family: Family = Family.IPV4_UNICAST) -> dict[str, list[int]]:
        """The metrics of the routes under our number."""
        found: dict[str, list[int]] = {}
        for r in self.kernel_routes(family):
            if r.protocol == self.settings.protocol:
                found.setdefault(format_prefix(r.family, r.prefix), []).append(r.metric)
        return found

    def others(self, family: Family = Family.IPV4_UNICAST) -> set[tuple[str, int, int, tuple[Gateway, ...]]]:
        """Routes of others, but for what the kernel makes of addresses: (text, protocol, metric, gateways)."""
        return {
            (format_prefix(r.family, r.prefix), r.protocol, r.metric, r.gateways)
            for r in self.kernel_routes(family)
            if r.protocol not in (2, self.settings.protocol)
        }

    def reason(self, prefix: str) -> str:
        failure = self.failures.get(parse_prefix(prefix))
        return failure.reason if failure is not None else ""

    @abstractmethod
    def make_driver(self) -> Driver: ...
    @abstractmethod
    def command(self, data: bytes) -> tuple[int, str]: ...
    @abstractmethod
    def kernel_routes(self, family: Family) -> list[FibRoute]: ...
    @abstractmethod
    def link(self, name: str, *addresses: str) -> int: ...
    @abstractmethod
    def set_link(self, index: int, *, enabled: bool) -> None: ...
    @abstractmethod
    def remove_link(self, index: int) -> None: ...
    @abstractmethod
    def add_address(self, index: int, text: str) -> None: ...
    @abstractmethod
    def remove_address(self, index: int, text: str) -> None: ...
    @abstractmethod
    def overflow_monitor(self, disturb: Callable[[], None]) -> None:
        """Run `disturb` so that the monitor loses what it causes."""


class ModelWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = ModelKernel()
        self.person = self.kernel.open()
        self.now = 100.0

    def make_driver(self) -> Driver:
        if hasattr(self, "driver"):
            self.now = self.driver.now
        driver = model_driver(self.kernel, lambda port: KernelEngine(self.settings, port))
        driver.now = self.now
        return driver

    def command(self, data: bytes) -> tuple[int, str]:
        self.person.send(data)
        answer = self.person.receive()
        assert answer is not None
        refusal = parse_error(next(messages(answer)))
        return refusal.errno, refusal.text

    def kernel_routes(self, family: Family) -> list[FibRoute]:
        return [route for route in self.kernel.routes(self.settings.table) if route.family is family]

    def link(self, name: str, *addresses: str) -> int:
        index = self.kernel.add_link(name)
        for text in addresses:
            self.add_address(index, text)
        return index

    def set_link(self, index: int, *, enabled: bool) -> None:
        self.kernel.set_link(index, enabled=enabled)

    def remove_link(self, index: int) -> None:
        self.kernel.remove_link(index)

    def add_address(self, index: int, text: str) -> None:
        address, _, length = text.partition("/")
        self.kernel.add_address(index, parse_address(address), int(length))

    def remove_address(self, index: int, text: str) -> None:
        address, _, length = text.partition("/")
        self.kernel.remove_address(index, parse_address(address), int(length))

    def overflow_monitor(self, disturb: Callable[[], None]) -> None:
        monitor = self.driver._monitor
        capacity, monitor.capacity = monitor.capacity, 0  # type: ignore[attr-defined]
        disturb()
        monitor.capacity = capacity  # type: ignore[attr-defined]


class LinuxWorld(World):
    """The network namespace the test's thread is in."""

    def __init__(self) -> None:
        super().__init__()
        self.person = NetlinkSocket(receive_buffer=1 << 20)
        self.sockets: list[NetlinkSocket] = []
        self.names: dict[int, str] = {}
        self.ip("link set lo up")

    def ip(self, arguments: str) -> None:
        subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)

    def make_driver(self) -> Driver:
        self.close()
        writer = open_writer()
        monitor = open_monitor(writer.port, self.settings.table)
        dumper = open_dumper()
        self.sockets = [writer, monitor, dumper]

        def wait(deadline: float) -> float:
            select.select([monitor, dumper], [], [], max(0.0, min(deadline - time.monotonic(), 0.02)))
            return time.monotonic()

        engine = KernelEngine(self.settings, writer.port)
        return Driver(engine, writer=writer, monitor=monitor, dumper=dumper, wait=wait, now=time.monotonic())

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        self.sockets = []

    def run(self, seconds: float) -> None:
        self.driver.now = time.monotonic()
        super().run(seconds)

    def settle(self, seconds: float = PATIENCE) -> None:
        self.driver.now = time.monotonic()
        super().settle(max(seconds, PATIENCE))

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Time is not the kernel's own here: whoever else runs on the machine takes it."""
        self.driver.now = time.monotonic()
        return super().until(condition, max(seconds, PATIENCE))

    def command(self, data: bytes) -> tuple[int, str]:
        self.person.send(data)
        answer = self.person.receive()
        assert answer is not None
        refusal = parse_error(next(messages(answer)))
        return refusal.errno, refusal.text

    def kernel_routes(self, family: Family) -> list[FibRoute]:
        self.person.send(dump_routes(family, table=self.settings.table, sequence=7))
        decoder = RouteDecoder()
        found = []
        while True:
            data = self.person.receive()
            assert data is not None
            for message in messages(data):
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                decoded = decoder.decode(message.data)
                if message.type == RTM_NEWROUTE and decoded is not None and decoded[0] is family:
                    _, prefix, facts = decoded
                    found.append(
                        FibRoute(family, prefix, facts.table, facts.metric, facts.protocol, facts.kind, facts.gateways)
                    )

    def link(self, name: str, *addresses: str) -> int:
        self.ip(f"link add {name} type veth peer name {name}-far")
        index = socket.if_nametoindex(name)
        self.names[index] = name
        self.ip(f"link set {name}-far up")
        self.ip(f"link set {name} up")
        for end in (name, f"{name}-far"):
            wait_for(partial(is_up, end), PATIENCE, f"{end} is up")
        for text in addresses:
            self.add_address(index, text)
        return index

    def set_link(self, index: int, *, enabled: bool) -> None:
        self.ip(f"link set {self.names[index]} {'up' if enabled else 'down'}")

    def remove_link(self, index: int) -> None:
        self.ip(f"link del {self.names[index]}")

    def add_address(self, index: int, text: str) -> None:
        self.ip(f"addr add {text} dev {self.names[index]}" + (" nodad" if ":" in text else ""))

    def remove_address(self, index: int, text: str) -> None:
        self.ip(f"addr del {text} dev {self.names[index]}")

    def overflow_monitor(self, disturb: Callable[[], None]) -> None:
        monitor = self.sockets[1]._socket
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        disturb()
        for number in range(40):  # the smallest buffer the kernel grants holds a few messages
            self.route("add", f"203.0.113.{number}/32", dev=1)
            self.route("delete", f"203.0.113.{number}/32", dev=1)


def is_up(name: str) -> bool:
    """The kernel sees some time after `up` that both ends of a wire are, and tells of it then."""
    return "state UP" in subprocess.run(
        ["ip", "-o", "link", "show", "dev", name], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def gateway(text: str, dev: int) -> Gateway:
    address, _, rest = text.partition("%")
    interface, _, onlink = rest.partition("%")
    return Gateway(parse_address(address), int(interface) if interface else dev, onlink == "onlink")


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test's thread in a network namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(0x40000000) != 0:
        os.close(before)
        pytest.skip("needs root to make a network namespace")
    # no link-local addresses: the kernel would tell of them a second or two after the links are there
    Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
    try:
        yield
    finally:
        assert libc.setns(before, 0x40000000) == 0
        os.close(before)


@pytest.fixture
def model() -> ModelWorld:
    return ModelWorld()


@pytest.fixture(params=["model", pytest.param("linux", marks=pytest.mark.lab)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "model":
        yield ModelWorld()
        return
    request.getfixturevalue("namespace")
    linux = LinuxWorld()
    yield linux
    linux.close()
    linux.person.close()
