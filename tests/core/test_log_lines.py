"""Every change of state is one line in the log, with its reason in words; docs/logs.md lists them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from routed.core.restart import SWEEP_MAX
from routed.net.families import Family
from routed.testing.world import Node, World
from tests.core.test_nodes import POOLS, addresses, block, blocks, manifest, mesh, node

TO_SECOND = "Mesh_10_0_0_2"


def said(node: Node, work: Callable[[], object]) -> list[str]:
    """The lines of level info and above that come of `work`, the IPv6 session left out."""
    before = len(node.log)
    work()
    return [line for line in node.log[before:] if "fd00" not in line.split(": ")[0] and not is_debug(line)]


def is_debug(line: str) -> bool:
    """A step of a session on its way up, or back from there."""
    step = re.search(r": (\w+) -> (\w+): ", line)
    return step is not None and "Established" not in step.groups()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pair(world: World) -> tuple[Node, Node]:
    first, second = mesh(world, 2)
    world.run(5)
    return first, second


def test_coming_up(pair: tuple[Node, Node]) -> None:
    assert [line for line in pair[0].log if line.startswith(TO_SECOND) and not is_debug(line)] == [
        f"{TO_SECOND}: peer added: node-to-node mesh, Node n2",
        f"{TO_SECOND}: OpenConfirm -> Established: the peer accepted our OPEN",
        f"{TO_SECOND}: End-of-RIB: it has announced all its ipv4-unicast routes, 1",
    ]


def test_a_connection_that_breaks(world: World, pair: tuple[Node, Node]) -> None:
    lines = said(pair[0], lambda: (world.sever("n1", "n2"), world.run(0)))
    assert lines[0].startswith(f"{TO_SECOND}: Established -> ")
    assert lines[0].endswith(": connection reset by peer; its 1 routes are kept, as stale")
    assert [line for line in lines[1:] if "kept" in line or "reset" in line] == [], "once"


def test_a_peer_that_does_not_come_back(world: World, pair: tuple[Node, Node]) -> None:
    world.kill("n2")
    lines = said(pair[0], lambda: world.run(200))
    gone = f"{TO_SECOND}: did not come back in its restart time: its routes are removed"
    assert lines.count(gone) == 1
    assert [line for line in lines if "come back" in line] == [gone]


def test_a_stop_while_a_peer_is_waited_for(world: World, pair: tuple[Node, Node]) -> None:
    """Its routes stay in the kernel, and its time to come back is not over."""
    world.kill("n2")
    lines = said(pair[0], lambda: (world.run(1), pair[0].engine.shutdown("shutdown", "", world.now), world.run(1)))
    assert [line for line in lines if "kept, as stale" in line]
    assert not [line for line in lines if "removed" in line or "come back" in line]


def test_a_notification_is_quoted(world: World, pair: tuple[Node, Node]) -> None:
    first, second = pair
    lines = said(first, lambda: (second.engine.shutdown("shutdown", "new kernel\x1b[2J", world.now), world.run(1)))
    (line,) = [line for line in lines if line.startswith(f"{TO_SECOND}: Established -> ")]
    assert "6/2 Administrative Shutdown" in line and "new kernel" in line


def test_the_hold_timer(world: World, pair: tuple[Node, Node]) -> None:
    first, second = pair
    second.engine.take = lambda *_: b""  # type: ignore[method-assign]
    (line,) = [line for line in said(first, lambda: world.run(241)) if "Established -> " in line]
    assert "hold timer expired" in line.lower()


def test_a_peer_that_goes(world: World, pair: tuple[Node, Node]) -> None:
    no_mesh = manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
    lines = said(pair[0], lambda: (pair[0].apply(no_mesh), world.run(1)))
    assert [line for line in lines if line.startswith(TO_SECOND)] == [
        f"{TO_SECOND}: Established -> Idle: no resource asks for this peer any more: NOTIFICATION 6/3 Peer De-configured",
        f"{TO_SECOND}: peer removed: no resource asks for it any more",
    ]


def test_a_change_the_session_survives(world: World, pair: tuple[Node, Node]) -> None:
    first, _ = pair
    no_export = manifest(
        "BGPFilter", "no-export", {"exportV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.244.0.0/16"}]}
    )
    peer = manifest("BGPPeer", "tor", {"peerIP": "10.0.0.2", "asNumber": 64512, "filters": ["no-export"]})
    first.apply(no_export, peer, manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}))
    world.run(10)
    name = next(name for name in first.core.peers if "10_0_0_2" in name)
    allowed = manifest("BGPFilter", "no-export", {"exportV4": [{"action": "Accept"}]})
    lines = said(first, lambda: (first.apply(allowed), world.run(1)))
    assert lines == [f"plan: what is announced changed for {name}; sessions stay"]


def test_a_problem_and_its_end(world: World, pair: tuple[Node, Node]) -> None:
    first, _ = pair
    wrong = manifest("BGPPeer", "x", {"peerIP": "10.0.0.9", "asNumber": 65000, "filters": ["nowhere"]})
    (problem,) = [line for line in said(first, lambda: (first.apply(wrong), world.run(0))) if line.startswith("plan: ")]
    right = manifest("BGPPeer", "x", {"peerIP": "10.0.0.9", "asNumber": 65000})
    lines = said(first, lambda: (first.apply(right), world.run(0)))
    assert problem.replace("plan: ", "plan: put right: ") in lines


def test_a_restart(world: World) -> None:
    mesh(world, 2)
    world.run(5)
    world.kill("n1")
    names = [node(f"n{index}", index) for index in (1, 2)]
    again = world.add("n1", addresses(1), [*POOLS, *names, *blocks("n1", 1)], routes_found=frozenset(Family))
    world.run(SWEEP_MAX + 1)
    assert [line for line in again.log if line.startswith("restart: ")] == [
        "restart: the kernel has routes of ours from before: they stay, and route selection waits for the peers",
        "restart: route selection begins",
        "restart: it is over: routes from before that nobody announced again are removed",
    ]


def test_a_stranger(world: World, pair: tuple[Node, Node]) -> None:
    lines = said(
        pair[0], lambda: (pair[0].engine.accepted(b"\x0a\0\0\x63", b"\x0a\0\0\x02", "", world.now), world.run(0))
    )
    assert lines == ["listen: refused a connection from 10.0.0.99: it is not the address of a configured peer"]


def test_a_change_about_many_peers_is_one_line(world: World) -> None:
    first, *_ = mesh(world, 6)
    world.run(5)
    (line,) = said(first, lambda: (first.apply(block("n1", "10.244.77.0/26")), world.run(1)))
    assert line.startswith("plan: what is announced changed for Mesh_") and line.endswith(" more; sessions stay")


def test_an_unrelated_change_says_nothing(world: World, pair: tuple[Node, Node]) -> None:
    assert said(pair[0], lambda: (pair[0].apply(manifest("BGPFilter", "unused", {})), world.run(1))) == []
