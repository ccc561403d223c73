"""The driver with a real core and real sockets: a peer comes up, misbehaves, or meets a bug of ours."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import uvloop

from routed.bgp.messages import Open, frame
from routed.core.core import Core, CoreSettings
from routed.core.effects import Level
from routed.daemon import driver as driver_module
from routed.daemon.driver import Driver, trace
from routed.datastore.file import Problem
from routed.desired import Gateway, RouteBatch
from routed.model.resources import JsonObject, Update
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.observe.logs import LogWriter
from routed.observed import ForeignRoute, Interface, KernelChange, RouteFailure
from tests.ports import free_port

API = "projectcalico.org/v3"
LO = 1
POISON = frame(2, b"poison")


class Poisoned(Core):
    """A core with a bug: some octets are too much for it."""

    def received(self, conn: int, data: bytes, now: float) -> None:
        if data.endswith(POISON):
            raise RuntimeError("this was too much\nfor me")
        super().received(conn, data, now)


class Routes:
    """Notes what is asked of the kernel."""

    def __init__(self) -> None:
        self.batches: list[RouteBatch] = []
        self.sweeps: list[Sequence[Family]] = []

    def apply(self, batches: Sequence[RouteBatch], ticket: int = 0) -> None:  # noqa: ARG002
        self.batches += batches

    def sweep(self, families: Sequence[Family]) -> None:
        self.sweeps.append(families)


class Stage:
    """A driver for node `a`, which listens for two passive peers, 127.0.0.2 and 127.0.0.3, AS 64512."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.routes = Routes()
        self.out = io.StringIO()
        self.driver = Driver(core, self.routes, LogWriter(self.out, Level.INFO))
        self.port = free_port()

    def feed(self) -> None:
        peers = [
            manifest("BGPPeer", f"p{index}", {"peerIP": f"127.0.0.{index}:1", "asNumber": 64512, "filters": ["all"]})
            for index in (2, 3)
        ]
        rule: JsonObject = {"importV4": [{"action": "Accept"}], "exportV4": [{"action": "Accept"}]}
        for each in (
            manifest("BGPConfiguration", "default", {"listenPort": self.port, "nodeToNodeMeshEnabled": False}),
            manifest("Node", "a", {"bgp": {"ipv4Address": "127.0.0.1/8"}}),
            manifest("BGPFilter", "all", rule),
            manifest("BlockAffinity", "b", {"node": "a", "cidr": "10.244.0.0/26", "state": "confirmed"}),
            *peers,
        ):
            resource = parse_manifest(each)
            self.driver.update(Update(resource.key, resource))
        lo = Interface(LO, "lo", True, ((bytes([127, 0, 0, 1]), 8),))
        connected = parse_prefix("10.0.0.0/24")
        route = ForeignRoute(*connected, 0, 2, 1, (Gateway(b"", LO),))
        self.driver.kernel(KernelChange(True, (route,), (), (lo,)))
        self.driver.in_sync()

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def peer(self, index: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A peer that brings its session up."""
        source = f"127.0.0.{index}"
        async with asyncio.timeout(60):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.001)
        writer.write(Open(64512, 90, 0x7F000000 + index).encode() + frame(4, b""))
        await self.until(lambda: self.state(index) == "Established")
        return reader, writer

    def state(self, index: int) -> str:
        neighbor = next(peer for name, peer in self.core.peers.items() if name.endswith(f"127_0_0_{index}_port_1"))
        return neighbor.neighbor.state.label


def manifest(kind: str, name: str, spec: JsonObject) -> JsonObject:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def run(test: Callable[[Stage], Coroutine[Any, Any, None]], core: Core | None = None) -> None:
    async def body() -> None:
        stage = Stage(core or Core(CoreSettings(node_name="a"), 1))
        stage.feed()
        try:
            await test(stage)
        finally:
            stage.driver.transports.reset_all()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


def update(prefix: str, next_hop: str) -> bytes:
    """An UPDATE of an internal peer with one IPv4 prefix."""
    attributes = bytes.fromhex("400101004002004003 04".replace(" ", "")) + socket.inet_aton(next_hop)
    attributes += bytes.fromhex("40050400000064")
    body = b"\0\0" + len(attributes).to_bytes(2, "big") + attributes + parse_prefix(prefix)[1]
    return frame(2, body)


def test_the_port_opens_with_the_first_sync_and_not_before() -> None:
    async def test(stage: Stage) -> None:
        _, writer = await stage.peer(2)
        assert any(f"listening on port {stage.port}" in line for line in stage.lines())
        writer.close()
        await stage.until(lambda: stage.state(2) != "Established")

    run(test)


def test_routes_go_in_and_to_the_kernel() -> None:
    async def test(stage: Stage) -> None:
        _, writer = await stage.peer(2)
        writer.write(update("10.9.9.0/24", "10.0.0.254"))
        wanted = parse_prefix("10.9.9.0/24")[1]
        await stage.until(lambda: any(wanted in batch.prefixes for batch in stage.routes.batches))

    run(test)


def test_a_bug_in_one_peers_handling_ends_that_session_only() -> None:
    async def test(stage: Stage) -> None:
        _, good = await stage.peer(3)
        reader, bad = await stage.peer(2)
        bad.write(POISON)
        await reader.readuntil(frame(4, b""))
        with pytest.raises(ConnectionResetError):
            await reader.readuntil(b"never")
        await stage.until(lambda: stage.state(2) != "Established")
        assert stage.state(3) == "Established"
        bugs = [line for line in stage.lines() if " bug: " in line]
        assert len(bugs) == 1
        assert "RuntimeError: this was too much\\x0afor me [at " in bugs[0]
        assert "test_driver.py" in bugs[0] and "received" in bugs[0]
        assert "internal error of routed: RuntimeError" in "\n".join(stage.lines())
        good.write(update("10.9.9.0/24", "10.0.0.253"))
        await stage.until(lambda: stage.routes.batches and stage.routes.batches[-1].route is not None)
        await stage.peer(2)

    run(test, Poisoned(CoreSettings(node_name="a"), 1))


def test_a_bug_in_a_turn_is_logged_and_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "BUG_PAUSE", 0.05)

    class Broken(Core):
        calls = 0

        def flush(self, now: float) -> bool:
            self.calls += 1
            if self.calls <= 3:
                raise RuntimeError("broken")
            return super().flush(now)

    core = Broken(CoreSettings(node_name="a"), 1)

    async def test(stage: Stage) -> None:
        await stage.peer(2)
        bugs = [line for line in stage.lines() if " bug: " in line]
        assert len(bugs) == 3

    run(test, core)


def test_unknown_addresses_are_refused_and_counted() -> None:
    async def test(stage: Stage) -> None:
        _, writer = await stage.peer(2)
        for _ in range(20):
            reader, other = await asyncio.open_connection("127.0.0.1", stage.port, local_addr=("127.0.0.77", 0))
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            other.close()
        said = [line for line in stage.lines() if "127.0.0.77" in line]
        assert len(said) == 3
        assert "refused a connection from 127.0.0.77" in said[0]
        assert stage.state(2) == "Established"
        writer.close()

    run(test)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 16 + b"\xff\xff\x01", b"\0" * 5000, b"\xff" * 16 + b"\0\x13\x09"],
)
def test_garbage_gets_a_notification_and_the_connection_ends(garbage: bytes) -> None:
    async def test(stage: Stage) -> None:
        _, good = await stage.peer(3)
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port, local_addr=("127.0.0.2", 0))
        writer.write(garbage)
        answer = await reader.read()
        last = answer[headers(answer)[-1] :]
        assert last[18:20] == b"\x03\x01", "a NOTIFICATION of a message header error"
        writer.close()
        await stage.until(lambda: len(stage.driver.transports) == 1)
        assert stage.state(3) == "Established"
        good.close()

    run(test)


def test_shutdown_says_why_and_leaves_the_kernel_alone() -> None:
    async def test(stage: Stage) -> None:
        reader, writer = await stage.peer(2)
        writer.write(update("10.9.9.0/24", "10.0.0.254"))
        await stage.until(lambda: any(batch.route for batch in stage.routes.batches))
        asked = len(stage.routes.batches)
        stage.driver.shutdown("shutdown", "moving house")
        data = await reader.read()
        assert data.endswith(b"\x03\x06\x02\x0cmoving house")
        writer.close()
        await stage.until(lambda: len(stage.driver.transports) == 0)
        assert len(stage.routes.batches) == asked

    run(test)


def test_a_restart_closes_without_a_word() -> None:
    async def test(stage: Stage) -> None:
        reader, writer = await stage.peer(2)
        stage.driver.shutdown("restart", "")
        data = await reader.read()
        assert not any(data[index + 18] == 3 for index in headers(data)), "no NOTIFICATION"
        writer.close()

    run(test)


def headers(data: bytes) -> list[int]:
    """Where the messages begin."""
    at, found = 0, []
    while at < len(data):
        found.append(at)
        at += int.from_bytes(data[at + 16 : at + 18], "big")
    return found


def test_clear_in_asks_for_the_routes_again() -> None:
    async def test(stage: Stage) -> None:
        await stage.peer(2)
        assert stage.driver.clear(bytes([127, 0, 0, 2]), "in")
        assert not stage.driver.clear(bytes([127, 9, 9, 9]), "hard")

    run(test)


def test_problems_are_logged_once_and_when_they_end() -> None:
    async def test(stage: Stage) -> None:
        problem = Problem("/r/a.yaml", 3, "spec.peerIP", "must be an address")
        other = Problem("/r/b.yaml", 0, "", "is not YAML")
        stage.driver.problems((problem,))
        stage.driver.problems((problem, other))
        stage.driver.problems((other,))
        assert stage.driver.store_problems == ("/r/b.yaml: is not YAML",)
        said = [line.split(" datastore: ")[1] for line in stage.lines() if " datastore: " in line]
        assert said == [
            "in sync: everything it holds was read, and is followed from here on",
            "/r/a.yaml:3: spec.peerIP: must be an address",
            "/r/b.yaml: is not YAML",
            "put right: /r/a.yaml:3: spec.peerIP: must be an address",
        ]

    run(test)


@pytest.mark.parametrize("mended", [True, False])
def test_a_node_that_cannot_read_who_it_is_waits(mended: bool) -> None:
    """A wrong AS number in a mesh that is off is worse than a node that is late."""

    async def test(stage: Stage) -> None:
        core = Core(CoreSettings(node_name="a"), 1)
        driver = Driver(core, stage.routes, LogWriter(stage.out, Level.INFO), node_name="a")
        bad = manifest("BGPConfiguration", "default", {"asNumber": "x"})
        node = parse_manifest(manifest("Node", "a", {"bgp": {"ipv4Address": "127.0.0.1/8"}}))
        other = Problem("/r/b.yaml", 1, "spec", "x", json.dumps(manifest("BGPConfiguration", "node.b", {})))
        problem = Problem("/r/a.yaml", 3, "spec.asNumber", "must be a number", json.dumps(bad))
        driver.update(Update(node.key, node))
        driver.problems((other, problem))
        driver.in_sync()
        await asyncio.sleep(0)
        assert core.restart.in_sync_at is None and not core.planned
        waits = "BGPConfiguration default cannot be read, and nothing is known of it from before"
        assert [text for text in driver.store_problems if waits in text]
        if mended:
            found = parse_manifest(manifest("BGPConfiguration", "default", {"asNumber": 65010}))
            driver.update(Update(found.key, found))
        else:
            driver.problems((other,))  # it is gone
        await stage.until(lambda: core.planned)
        assert core.plan.speaker is not None and core.plan.speaker.local_as == (65010 if mended else 64512)
        driver.problems((other, problem))
        assert driver.store_problems == (str(other), str(problem)), "its last good state stays"
        driver.transports.reset_all()

    run(test)


def test_refused_routes_are_logged_and_known() -> None:
    async def test(stage: Stage) -> None:
        family, prefix = parse_prefix("10.9.9.0/24")
        stage.driver.route_failures((RouteFailure(family, prefix, 17, "refused: 10.9.9.0/24 is taken"),), ())
        assert (family, prefix) in stage.core.route_failures
        assert any("refused: 10.9.9.0/24 is taken" in line for line in stage.lines())
        stage.driver.route_failures((), ((family, prefix),))
        assert stage.core.route_failures == {}

    run(test)


def test_traces_are_one_line() -> None:
    with pytest.raises(ValueError) as caught:
        int("x")
    text = trace(caught.value)
    assert text.startswith("ValueError: invalid literal for int() with base 10: 'x' [at ")
    assert "test_traces_are_one_line" in text and "\n" not in text


def test_a_refused_route_is_a_line_and_its_end_another() -> None:
    async def test(stage: Stage) -> None:
        key = (Family.IPV4_UNICAST, bytes([24, 192, 0, 2]))
        failure = RouteFailure(*key, 13, "192.0.2.0/24: the kernel refused the route: Permission denied")
        stage.driver.route_failures((failure,), ())
        stage.driver.route_failures((), (key,))
        assert [line.split(" kernel: ")[1] for line in stage.lines() if " kernel: " in line] == [
            "192.0.2.0/24: the kernel refused the route: Permission denied",
            "put right: the route to 192.0.2.0/24",
        ]

    run(test)
