"""Two daemons in network namespaces: a mesh, a block each, real kernels. Stops, restarts, missing permissions."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from routed.control.client import ControlClient
from routed.control.protocol import SOCKET_NAME
from routed.observe.replay import replay
from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Routed, resource

pytestmark = pytest.mark.lab

SOON = 40.0

CLUSTER = [
    resource("IPPool", "v4", {"cidr": "10.244.0.0/16"}),
    resource("IPPool", "v6", {"cidr": "fd00:10:244::/48"}),
    *(
        resource("Node", name, {"bgp": {"ipv4Address": f"10.0.0.{index}/24", "ipv6Address": f"fd00::{index}/64"}})
        for index, name in ((1, "a"), (2, "b"))
    ),
    *(
        resource("BlockAffinity", f"{name}-v{version}", {"node": name, "cidr": cidr, "state": "confirmed"})
        for name, version, cidr in (
            ("a", 4, "10.244.1.0/26"),
            ("b", 4, "10.244.2.0/26"),
            ("a", 6, "fd00:10:244:1::/122"),
            ("b", 6, "fd00:10:244:2::/122"),
        )
    ),
]


class RecordedRouted(Routed):
    """routed that records its inputs."""

    def launch(self) -> None:
        argv = (sys.executable, "-m", "routed.daemon.main", "run", "--config", str(self.config))
        self.recording = self.folder / "inputs.jsonl"
        self.processes = [self.namespace.start("routed", *argv, "--record", str(self.recording))]


class WithoutCapabilities(Routed):
    """routed that may neither change routes nor open a port below 1024."""

    def launch(self) -> None:
        argv = (sys.executable, "-m", "routed.daemon.main", "run", "--config", str(self.config))
        strip = ("setpriv", "--bounding-set", "-net_admin,-net_bind_service")
        self.processes = [self.namespace.start("routed", *strip, *argv)]


@pytest.fixture
def nodes(lab: Lab) -> Iterator[tuple[RecordedRouted, RecordedRouted]]:
    ports = [
        lab.namespace(name).port("eth0", f"10.0.0.{index}/24", f"fd00::{index}/64")
        for index, name in ((1, "a"), (2, "b"))
    ]
    lab.link(*ports)
    a, b = (RecordedRouted(port.namespace) for port in ports)
    for each in (a, b):
        each.put(*CLUSTER)
        each.start()
    for each in (a, b):
        each.wait()
    yield a, b
    for each in (a, b):
        each.kill()


def expected(own: int, *, ipv6: bool) -> dict[str, str]:
    other = 3 - own
    if ipv6:
        return {f"fd00:10:244:{own}::/122": "blackhole", f"fd00:10:244:{other}::/122": f"via fd00::{other} dev eth0"}
    return {f"10.244.{own}.0/26": "blackhole", f"10.244.{other}.0/26": f"via 10.0.0.{other} dev eth0"}


def complete(node: Routed, own: int) -> bool:
    return all(node.kernel_routes(ipv6=ipv6) == expected(own, ipv6=ipv6) for ipv6 in (False, True))


def test_a_mesh_of_two(nodes: tuple[RecordedRouted, RecordedRouted]) -> None:
    a, b = nodes
    for own, each in enumerate(nodes, 1):
        wait_for(lambda each=each, own=own: complete(each, own), SOON, f"routes of node {own}")  # type: ignore[misc]
    wait_for(
        lambda: a.problems() == b.problems() == [], SOON, "nobody complains", state=lambda: (a.problems(), b.problems())
    )
    assert [row["state"] for row in a.stream("neighbors")] == ["Established", "Established"]
    installed = dict.fromkeys((*expected(1, ipv6=False), *expected(1, ipv6=True)), "installed")
    wait_for(  # the kernel's answer is read after the route is there
        lambda: {row["prefix"]: row["kernelState"] for row in a.stream("routes")} == installed, SOON, "all are installed",
        state=lambda: list(a.stream("routes")),
    )  # fmt: skip

    with ControlClient(str(a.folder / "run" / SOCKET_NAME), patience=30) as client:
        seen = client.stream("events", follow=True, kinds="session,route", prefix="10.244.9.0/26")
        assert next(each for each in seen if each["new"] == "Established")["subject"].startswith("Mesh_")
        b.put(resource("BlockAffinity", "b-v4-2", {"node": "b", "cidr": "10.244.9.0/26", "state": "confirmed"}))
        event = next(each for each in seen if each["kind"] == "route")
        assert event["text"] == "none -> Mesh_10_0_0_2 via 10.0.0.2"
        b.remove("BlockAffinity", "b-v4-2")
        event = next(each for each in seen if each["kind"] == "route")
        assert event["text"] == "Mesh_10_0_0_2 via 10.0.0.2 -> none"
    wait_for(lambda: complete(b, 2), SOON, "b withdraws it everywhere")

    b.processes[0].signal(signal.SIGTERM)
    assert b.processes[0].wait() == 0
    assert complete(b, 2), "routes stay when the daemon stops"
    wait_for(lambda: not a.established("10.0.0.2", "fd00::2"), SOON, "a notices")
    assert complete(a, 1), "a keeps the routes of a node that restarts"
    b.start()
    b.wait()
    wait_for(lambda: a.established("10.0.0.2", "fd00::2"), SOON, "b is back")
    wait_for(lambda: not b.status()["sweepPending"], SOON, "b has heard all its peers")
    assert complete(a, 1) and complete(b, 2)

    assert "new disk" not in a.ctl("shutdown", "--reason", "new disk")
    assert a.processes[0].wait() == 0
    wait_for(lambda: len(b.kernel_routes()) == 1, SOON, "the routes of a node that is shut down go at once")
    # "went down by" once a new connection was refused
    assert '6/2 Administrative Shutdown, message "new disk"' in b.ctl("show", "neighbors", "10.0.0.1")
    assert complete(a, 1)
    b.processes[0].signal(signal.SIGTERM)
    assert b.processes[0].wait() == 0
    for each in nodes:
        steps = list(replay(str(each.recording)))
        assert len(steps) > 20
        assert all(step.equal for step in steps)


def test_without_permission_it_says_so_and_goes_on(lab: Lab) -> None:
    space = lab.namespace("powerless")
    space.address("lo", "10.0.0.1/32")
    space.address("lo", "fd00::1/128")
    node = WithoutCapabilities(space, "a")
    node.put(*CLUSTER)
    node.start()
    node.wait()
    problems = wait_for(lambda: len(found := node.problems()) >= 3 and found, SOON, "the problems are told")
    assert [problem.split("; ")[0] for problem in problems] == [
        "cannot listen on port 179 (IPv4): no permission, it takes root or CAP_NET_BIND_SERVICE",
        "cannot listen on port 179 (IPv6): no permission, it takes root or CAP_NET_BIND_SERVICE",
        "not permitted to change routes: run as root or give CAP_NET_ADMIN",
    ]
    assert node.kernel_routes() == {}
    assert "not permitted to change routes" in node.ctl("status")
    node.stop()
