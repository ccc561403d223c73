"""Three nodes in a mesh, both families: sessions, kernels, packets, and changes of resources while they run."""

# ruff: noqa: B023 (what is waited for is looked at before the loop goes on)

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Routed, resource
from tests.lab.topology import RECONNECT, SOON, Rack, address, affinity, block, cluster, flaps, node, pod, start

NUMBERS = (1, 2, 3)


@pytest.fixture(scope="module")
def rack(lab: Lab) -> Rack:
    return Rack(lab)


@pytest.fixture(scope="module")
def nodes(rack: Rack) -> dict[int, Routed]:
    made = {number: rack.node(number, *cluster(*NUMBERS)) for number in NUMBERS}
    start(*made.values())
    return made


@pytest.fixture
def settled(nodes: dict[int, Routed]) -> Iterator[dict[int, Routed]]:
    """The mesh with all sessions up and all routes in place, before the test and after."""
    for number in NUMBERS:
        wait_for(lambda: mesh_is_up(nodes, number), RECONNECT, f"node-{number} has all it needs")
    before = {number: flaps(nodes[number]) for number in NUMBERS}
    yield nodes
    for number in NUMBERS:
        wait_for(lambda: mesh_is_up(nodes, number), RECONNECT, f"node-{number} is as it was before the test")
        assert {peer: flaps(nodes[number]).get(peer) for peer in before[number]} == before[number], (
            "a session was reset"
        )


def mesh_is_up(nodes: dict[int, Routed], number: int) -> bool:
    others = [other for other in NUMBERS if other != number]
    return nodes[number].established(*(address(other, ipv6=six) for other in others for six in (False, True))) and all(
        nodes[number].kernel_routes(ipv6=six) == expected(number, ipv6=six) for six in (False, True)
    )


def expected(number: int, *, ipv6: bool) -> dict[str, str]:
    """A node's kernel routes of ours: a blackhole for its own block, the others' blocks by their nodes."""
    routes = {block(other, ipv6=ipv6): f"via {address(other, ipv6=ipv6)} dev eth0" for other in NUMBERS}
    return {**routes, block(number, ipv6=ipv6): "blackhole"}


def test_every_pod_reaches_every_other(settled: dict[int, Routed]) -> None:
    for number, routed in settled.items():
        for other in NUMBERS:
            for ipv6 in (False, True):
                source = pod(number, ipv6=ipv6)
                assert routed.namespace.pings(pod(other, ipv6=ipv6), source=source), f"node {number} to {other}"


def test_the_daemon_explains_its_routes(settled: dict[int, Routed]) -> None:
    best = settled[1].best(block(2))
    assert best["from"] == "Mesh_10_0_0_2"
    assert best["nextHop"] == "10.0.0.2"
    assert best["asPath"] == ""
    text = settled[1].ctl("show", "route", pod(2), "--all")
    assert block(2) in text and "the only candidate" in text
    assert "Mesh_10_0_0_2" in settled[1].ctl("show", "neighbors")
    assert "4 of 4 established" in settled[1].ctl("status")
    assert block(2) in settled[1].ctl("show", "fib")


def test_new_block_reaches_the_others_and_goes_again(settled: dict[int, Routed]) -> None:
    fresh = affinity(1, "10.244.1.64/26")
    settled[1].put(fresh)
    for other in (2, 3):
        wait_for(
            lambda: settled[other].kernel_routes().get("10.244.1.64/26") == "via 10.0.0.1 dev eth0",
            SOON,
            f"the new block is in the kernel of node {other}",
        )
    settled[1].remove("BlockAffinity", fresh["metadata"]["name"])
    for other in NUMBERS:
        wait_for(
            lambda: "10.244.1.64/26" not in settled[other].kernel_routes(),
            SOON,
            f"the block leaves the kernel of node {other}",
        )


def test_file_edited_in_place(settled: dict[int, Routed]) -> None:
    path = settled[1].resources / "BlockAffinity-edited.yaml"
    path.write_text(_text("10.244.1.128/26"))
    wait_for(lambda: "10.244.1.128/26" in settled[2].kernel_routes(), SOON, "the block is announced")
    path.write_text(_text("10.244.1.192/26"))
    wait_for(
        lambda: "10.244.1.192/26" in settled[2].kernel_routes() and "10.244.1.128/26" not in settled[2].kernel_routes(),
        SOON,
        "the block is replaced",
    )
    path.unlink()
    wait_for(lambda: "10.244.1.192/26" not in settled[2].kernel_routes(), SOON, "the block is withdrawn")


def _text(cidr: str) -> str:
    return (
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: edited}\n"
        f"spec: {{node: node-1, cidr: {cidr}, state: confirmed}}\n"
    )


def told(routed: Routed, word: str) -> str:
    """The problem with this word in it, or nothing: a file that is just being written may be another problem."""
    return next((each for each in routed.problems() if word in each), "")


def test_bad_file_is_reported_and_the_old_state_stays(settled: dict[int, Routed]) -> None:
    path = settled[1].resources / "BlockAffinity-edited.yaml"
    path.write_text(_text("10.244.1.128/26"))
    wait_for(lambda: "10.244.1.128/26" in settled[2].kernel_routes(), SOON, "the block is announced")
    path.write_text(_text("10.244.1.300/26"))
    problem = wait_for(lambda: told(settled[1], "10.244.1.300/26"), SOON, "the file is reported")
    assert "BlockAffinity-edited.yaml" in problem and "cidr" in problem
    assert "BlockAffinity-edited.yaml" in settled[1].ctl("status")
    assert "10.244.1.128/26" in settled[2].kernel_routes()
    path.write_text("kind: BlockAffinity\nmetadata: {name: [\n")
    wait_for(lambda: told(settled[1], "YAML"), SOON, "broken YAML is reported")
    assert "10.244.1.128/26" in settled[2].kernel_routes()
    path.unlink()
    wait_for(lambda: not settled[1].problems(), SOON, "the problem is gone with the file")
    wait_for(lambda: "10.244.1.128/26" not in settled[2].kernel_routes(), SOON, "the block is withdrawn")


def test_two_files_naming_one_resource(settled: dict[int, Routed]) -> None:
    first, second = (settled[1].resources / f"{name}.yaml" for name in ("a-first", "z-second"))
    first.write_text(_text("10.244.1.128/26"))
    wait_for(lambda: "10.244.1.128/26" in settled[2].kernel_routes(), SOON, "the block is announced")
    second.write_text(_text("10.244.1.192/26"))
    problem = wait_for(lambda: told(settled[1], "z-second.yaml"), SOON, "the second file is reported")
    assert "a-first.yaml" in problem
    assert "10.244.1.192/26" not in settled[2].kernel_routes()
    assert "10.244.1.128/26" in settled[2].kernel_routes()
    first.unlink()
    wait_for(
        lambda: "10.244.1.192/26" in settled[2].kernel_routes(), SOON, "the second file counts once the first is gone"
    )
    wait_for(lambda: not settled[1].problems(), SOON, "the problem is gone")
    second.unlink()
    wait_for(lambda: "10.244.1.192/26" not in settled[2].kernel_routes(), SOON, "the block is withdrawn")


def test_unrelated_changes_reset_no_session(settled: dict[int, Routed]) -> None:
    """The fixture counts how often sessions came up."""
    routed = settled[1]
    before = routed.neighbors()
    routed.put(
        resource("IPPool", "more", {"cidr": "10.245.0.0/16", "blockSize": 26}),
        resource("BGPFilter", "unused", {"exportV4": [{"action": "Reject"}]}),
        resource("BGPPeer", "elsewhere", {"node": "node-9", "peerIP": "10.0.0.99", "asNumber": 65099}),
        resource("BGPPeer", "nobody", {"node": "node-1", "peerIP": "10.0.0.98", "asNumber": 65098}),
    )
    wait_for(lambda: "10.0.0.98" in routed.neighbors(), SOON, "the new peer is configured")
    for kind, name in (("IPPool", "more"), ("BGPFilter", "unused"), ("BGPPeer", "elsewhere"), ("BGPPeer", "nobody")):
        routed.remove(kind, name)
    wait_for(lambda: "10.0.0.98" not in routed.neighbors(), SOON, "the peer is gone")
    after = routed.neighbors()
    assert {peer: row["establishedCount"] for peer, row in after.items()} == {
        peer: row["establishedCount"] for peer, row in before.items()
    }
    assert all(after[peer]["sinceSeconds"] >= before[peer]["sinceSeconds"] for peer in before)


def test_a_node_joins_and_leaves(settled: dict[int, Routed], rack: Rack) -> None:
    joining = [node(4), affinity(4, block(4)), affinity(4, block(4, ipv6=True))]
    fourth = rack.node(4, *cluster(*NUMBERS), *joining)
    for routed in settled.values():
        routed.put(*joining)
    fourth.start()
    for number, routed in settled.items():
        wait_for(
            lambda: (
                routed.kernel_routes().get(block(4)) == "via 10.0.0.4 dev eth0"
                and routed.kernel_routes(ipv6=True).get(block(4, ipv6=True)) == "via fd00::4 dev eth0"
            ),
            RECONNECT,
            f"node {number} has the new node's blocks",
            state=lambda: (routed.sessions(), routed.kernel_routes()),
        )
    wait_for(lambda: mesh_is_up({4: fourth}, 4), RECONNECT, "and it has theirs", state=fourth.kernel_routes)
    assert fourth.namespace.pings(pod(1), source=pod(4))
    for routed in settled.values():
        for manifest in joining:
            routed.remove(manifest["kind"], manifest["metadata"]["name"])
    for number, routed in settled.items():
        wait_for(lambda: block(4) not in routed.kernel_routes(), SOON, f"node {number} forgot the node that left")
        assert address(4) not in routed.sessions()
    fourth.stop()
