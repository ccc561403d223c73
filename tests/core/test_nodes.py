"""Cores talking to each other in memory: meshes, reflectors, ToRs, restarts, changes of resources."""

from __future__ import annotations

import random

import pytest

from routed.bgp.attributes import AttributeSet, encode_attributes
from routed.bgp.counters import DownReason
from routed.bgp.neighbor import State
from routed.bgp.update import update_message
from routed.core import imports
from routed.core.effects import Listen
from routed.core.queries import neighbors, status
from routed.desired import Gateway, KernelRoute, RouteKind
from routed.model.resources import JsonObject, ResourceKey
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, parse_prefix
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.rib.path import SourceKind
from routed.testing.world import ETH0, Node, World

API = "projectcalico.org/v3"
V4 = Family.IPV4_UNICAST


def manifest(kind: str, name: str, spec: JsonObject, **metadata: object) -> JsonObject:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}  # type: ignore[dict-item]


def node(name: str, index: int, **bgp: object) -> JsonObject:
    spec = {"bgp": {"ipv4Address": f"10.0.0.{index}/24", "ipv6Address": f"fd00::{index}/64", **bgp}}
    return manifest("Node", name, spec, labels={"name": name})  # type: ignore[arg-type]


def block(owner: str, cidr: str) -> JsonObject:
    name = f"{owner}-{cidr.replace('/', '-').replace('.', '-').replace(':', '-')}"
    return manifest("BlockAffinity", name, {"node": owner, "cidr": cidr, "state": "confirmed", "deleted": "false"})


POOLS = [
    manifest("IPPool", "v4", {"cidr": "10.244.0.0/16", "blockSize": 26}),
    manifest("IPPool", "v6", {"cidr": "fd00:10::/48", "blockSize": 122}),
]


def addresses(index: int) -> list[tuple[str, int]]:
    return [(f"10.0.0.{index}", 24), (f"fd00::{index}", 64)]


def blocks(name: str, index: int) -> list[JsonObject]:
    return [block(name, f"10.244.{index}.0/26"), block(name, f"fd00:10:0:{index}::/122")]


def mesh(world: World, count: int, *more: JsonObject, **bgp: object) -> list[Node]:
    names = [f"n{index}" for index in range(1, count + 1)]
    nodes = [node(name, index + 1, **bgp) for index, name in enumerate(names)]
    return [
        world.add(name, addresses(index + 1), [*POOLS, *nodes, *more, *blocks(name, index + 1)])
        for index, name in enumerate(names)
    ]


def established(each: Node) -> int:
    return sum(1 for peer in each.core.peers.values() if peer.neighbor.state is State.ESTABLISHED)


def test_a_mesh_gives_every_node_the_blocks_of_all_others_in_both_families() -> None:
    world = World()
    nodes = mesh(world, 4)
    world.run(5)
    for own, each in enumerate(nodes, 1):
        assert established(each) == 6, each.log
        expected = {}
        for other in range(1, 5):
            expected[f"10.244.{other}.0/26"] = "blackhole" if other == own else f"via 10.0.0.{other}"
            expected[f"fd00:10:0:{other}::/122"] = "blackhole" if other == own else f"via fd00::{other}"
        assert each.routes() == expected


def test_the_first_connection_is_immediate() -> None:
    world = World()
    nodes = mesh(world, 3)
    world.run(0)
    # n1 started first and found nobody; whoever came later found those before it
    assert established(nodes[2]) >= 2
    world.run(6)
    assert [established(each) for each in nodes] == [4, 4, 4]


def test_a_node_that_dies_takes_its_routes_along_after_its_restart_time() -> None:
    world = World()
    nodes = mesh(world, 3)
    world.run(5)
    world.kill("n3")
    world.run(60)
    assert nodes[0].routes()["10.244.3.0/26"] == "via 10.0.0.3", "a helper keeps the routes of a restarting peer"
    world.run(70)
    assert "10.244.3.0/26" not in nodes[0].routes()


def test_what_went_wrong_is_told_with_its_age() -> None:
    world = World()
    one, _ = mesh(world, 2)
    world.run(5)
    (row,) = neighbors(one.core, world.now, parse_address("10.0.0.2"))
    assert (row["lastError"], row["lastErrorSeconds"]) == ("", None)
    world.kill("n2")
    world.run(0)
    died = world.now
    world.run(5)
    (row,) = neighbors(one.core, died + 60, parse_address("10.0.0.2"))
    assert row["lastError"] and 55 <= row["lastErrorSeconds"] <= 60  # type: ignore[operator]


def test_a_shutdown_withdraws_at_once() -> None:
    world = World()
    nodes = mesh(world, 3)
    world.run(5)
    nodes[2].engine.shutdown("shutdown", "replacing a disk", world.now)
    world.run(0)
    assert "10.244.3.0/26" not in nodes[0].routes()
    assert any("replacing a disk" in line for line in nodes[0].log)


def test_a_restart_keeps_routes_everywhere_and_sweeps_only_after_end_of_rib() -> None:
    world = World()
    nodes = mesh(world, 3)
    world.run(5)
    before = nodes[0].routes()
    gone = nodes[2]
    gone.engine.shutdown("restart", "", world.now)
    world.run(0)
    world.kill("n3")
    assert nodes[0].routes() == before
    kept = gone.routes()
    stale = (V4, b"\x1a\x0a\xf4\x63\x00")
    gone.kernel[stale] = gone.kernel[V4, b"\x1a\x0a\xf4\x01\x00"]
    everything = [node(f"n{index}", index) for index in (1, 2, 3)]
    again = world.add(
        "n3",
        addresses(3),
        [*POOLS, *everything, *blocks("n3", 3)],
        routes_found=frozenset(Family),
        kernel=gone.kernel,
    )
    assert again.core.restart.deferring
    world.run(20)
    assert not again.core.restart.deferring
    assert len(again.sweeps) == 1
    assert nodes[0].routes() == before
    assert again.swept == {stale}, "a sweep comes behind the routes it must spare"
    assert again.routes() == kept
    assert sum(each.core.peers["Mesh_10_0_0_3"].neighbor.counters.established for each in nodes[:2]) == 4


#: Graceful Restart (64) with 120 s and IPv4 unicast: R and F set, and neither.
RESTARTED = bytes.fromhex("4006 8078 0001 01 80")
NOT_RESTARTED = bytes.fromhex("4006 0078 0001 01 00")


def restarted_without(world: World, missing: str) -> Node:
    """Node n3 of a mesh of three restarts, and route selection begins while it can't reach one peer."""
    world.cut.add(frozenset({"n3", missing}))
    gone = world.kill("n3")
    everything = [node(f"n{index}", index) for index in (1, 2, 3)]
    again = world.add(
        "n3",
        addresses(3),
        [*POOLS, *everything, *blocks("n3", 3)],
        routes_found=frozenset(Family),
        kernel=gone.kernel,
    )
    assert world.run(20, until=lambda: not again.core.restart.deferring)
    assert established(again) == 2
    return again


def next_open(one: Node, peer: str) -> bytes:
    return one.core.peers[peer].neighbor.open_message().encode()


def test_a_peer_that_is_back_after_route_selection_began_keeps_the_routes_of_a_restarted_node() -> None:
    """The OPEN to it still has R and F: without F a helper removes the stale routes at once (RFC 4724 4.1, 4.2)."""
    world = World()
    helper = mesh(world, 3)[0]
    world.run(5)
    before = helper.routes()
    again = restarted_without(world, "n1")
    assert RESTARTED in next_open(again, "Mesh_10_0_0_1")
    assert NOT_RESTARTED in next_open(again, "Mesh_10_0_0_2"), "it has been up since the restart"
    helper.batches.clear()
    world.cut.clear()
    assert world.run(30, until=lambda: established(again) == 4 and bool(again.sweeps))
    told = helper.core.peers["Mesh_10_0_0_3"].neighbor.negotiated
    assert told is not None and told.graceful_restart is not None
    assert told.graceful_restart.restarting and told.graceful_restart.families == {V4: True}
    assert [batch for batch in helper.batches if batch.route is None] == [], "not even for a moment"
    assert helper.routes() == before
    assert NOT_RESTARTED in next_open(again, "Mesh_10_0_0_1"), "it has been up since"


def test_a_peer_that_becomes_known_after_route_selection_began_is_told_of_the_restart() -> None:
    """What an earlier run saved need not have all peers in it; the datastore names the rest."""
    world = World()
    mesh(world, 3)
    world.run(5)
    again = restarted_without(world, "n1")
    again.delete(ResourceKey("Node", "n1"))
    again.apply(node("n9", 9))
    world.run(0)
    again.apply(node("n1", 1))
    world.run(0)
    assert RESTARTED in next_open(again, "Mesh_10_0_0_1")


def test_a_restart_is_told_no_longer_than_its_routes_are_kept() -> None:
    world = World()
    mesh(world, 3)
    world.run(5)
    again = restarted_without(world, "n1")
    assert world.run(130, until=lambda: bool(again.sweeps))
    assert NOT_RESTARTED in next_open(again, "Mesh_10_0_0_1")


def test_nothing_is_swept_while_a_peer_that_restarts_too_still_owes_its_routes() -> None:
    """It delays no route selection (RFC 4724 4.1), but packets go on over what it announced before."""
    world = World()
    first, second = mesh(world, 2)
    world.run(5)
    world.kill("n1")
    world.kill("n2")
    both = [*POOLS, node("n1", 1), node("n2", 2)]
    again = world.add(
        "n1", addresses(1), [*both, *blocks("n1", 1)], routes_found=frozenset(Family), kernel=first.kernel
    )
    # the other waits ten seconds for a third node before it announces anything
    waits = [*both, node("n3", 3), *blocks("n2", 2)]
    world.add("n2", addresses(2), waits, routes_found=frozenset(Family), kernel=second.kernel)
    assert world.run(5, until=lambda: not again.core.restart.deferring and established(again) == 2)
    world.run(5)
    assert not again.sweeps
    assert world.run(10, until=lambda: bool(again.sweeps))
    assert all(peer.end_of_rib >= set(peer.adj_out) for peer in again.core.peers.values())


def test_route_reflection_reaches_clients_only_once() -> None:
    world = World()
    peering = [
        manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False, "asNumber": 64512}),
        manifest("BGPPeer", "to-reflectors", {"nodeSelector": "all()", "peerSelector": "name == 'n1' || name == 'n2'"}),
    ]
    everything = [node(f"n{index}", index) for index in range(3, 6)]
    everything += [node(f"n{index}", index, routeReflectorClusterID="1.0.0.1") for index in (1, 2)]
    nodes = [
        world.add(f"n{index}", addresses(index), [*POOLS, *everything, *peering, *blocks(f"n{index}", index)])
        for index in range(1, 6)
    ]
    world.run(10)
    for own, each in enumerate(nodes, 1):
        for other in range(1, 6):
            expected = "blackhole" if other == own else f"via 10.0.0.{other}"
            assert each.routes()[f"10.244.{other}.0/26"] == expected, (own, each.log)
    world.kill("n1")
    world.run(200)
    for own in range(3, 6):
        routes = nodes[own - 1].routes()
        assert all(f"10.244.{other}.0/26" in routes for other in range(2, 6)), "one reflector gone: no route lost"


def test_a_mesh_becomes_reflection_and_a_mesh_again_without_a_reset() -> None:
    """Both ends keep their session; what the reflector may tell whom follows at once, in both directions."""
    world = World()
    nodes = mesh(world, 4)
    reflector, *clients = nodes
    world.run(30, until=lambda: up(world))
    world.run(1)

    def everywhere(*changes: JsonObject) -> None:
        for each in nodes:
            each.batches.clear()
            each.apply(*changes)
        world.run(5)
        for each in nodes:
            assert not [batch for batch in each.batches if batch.route is None], "no route goes"

    def heard(each: Node) -> set[str]:
        """What a client has from the reflector."""
        peer = next(peer for peer in each.core.peers.values() if peer.plan.session.address == parse_address("10.0.0.1"))
        return {format_prefix(V4, prefix) for prefix, _ in each.core.ribs[V4].announced(peer.adj_in[V4])}

    blocks_of_all = {f"10.244.{index}.0/26" for index in range(1, 5)}
    everywhere(manifest("BGPPeer", "reflectors", {"nodeSelector": "name != 'n1'", "peerSelector": "has(rr)"}))
    becomes = node("n1", 1, routeReflectorClusterID="1.0.0.1")
    becomes["metadata"]["labels"] = {"name": "n1", "rr": ""}  # type: ignore[index, call-overload]
    everywhere(becomes)
    assert {peer.plan.kind for peer in reflector.core.peers.values()} == {SourceKind.IBGP_CLIENT}
    for index, each in enumerate(clients, 2):
        assert heard(each) == blocks_of_all - {f"10.244.{index}.0/26"}
        assert set(times_up(each).values()) == {1}
    assert set(times_up(reflector).values()) == {1}

    for each in nodes:  # another cluster id is another mark on what is reflected, and no reset
        each.apply({**becomes, "spec": {"bgp": {**becomes["spec"]["bgp"], "routeReflectorClusterID": "2.0.0.2"}}})  # type: ignore[index, call-overload, dict-item]
    world.run(5)
    best = clients[0].core.ribs[V4].candidates(parse_prefix("10.244.3.0/26")[1])
    assert [path.attrs.cluster_list for path in best if path.attrs.cluster_list] == [bytes((2, 0, 0, 2))]
    assert set(times_up(reflector).values()) == {1}

    everywhere(node("n1", 1))
    for each in nodes:
        each.delete(ResourceKey("BGPPeer", "reflectors"))
    world.run(5)
    for each in clients:
        assert heard(each) == {"10.244.1.0/26"}, "what it reflected is withdrawn"
    for each in nodes:
        assert set(times_up(each).values()) == {1} and len(each.core.peers) == 6
        assert each.core.plan.problems == ()


def test_a_peer_becomes_a_client_of_a_reflector_and_is_none_again() -> None:
    """Two reflectors of one cluster hear each other directly; one that gets an id of its own is the third's client."""
    world = World()
    world.cut.add(frozenset(("n2", "n3")))
    nodes = mesh(
        world,
        3,
        manifest("BGPPeer", "all", {"nodeSelector": "all()", "peerSelector": "all()"}),
        routeReflectorClusterID="1.0.0.1",
    )
    world.run(40)
    far = parse_prefix("10.244.2.0/26")
    before = times_up(nodes[0])
    assert set(before.values()) == {1} and far not in nodes[2].kernel
    for cluster_id, there in (("2.0.0.2", True), ("1.0.0.1", False)):
        for each in nodes:
            each.apply(node("n2", 2, routeReflectorClusterID=cluster_id))
        world.run(5)
        reflected = next(
            peer for peer in nodes[2].core.peers.values() if peer.plan.session.address == parse_address("10.0.0.1")
        )
        assert (far[1] in reflected.adj_in[V4].refused) is there, "it is told, and takes none of its own cluster"
        assert (parse_prefix("10.244.3.0/26") in nodes[1].kernel) is there
        assert times_up(nodes[0]) == before


def test_ebgp_between_nodes_prepends_and_does_not_loop() -> None:
    world = World()
    everything = [node(f"n{index}", index, asNumber=64512 + index) for index in (1, 2, 3)]
    nodes = [
        world.add(f"n{index}", addresses(index), [*POOLS, *everything, *blocks(f"n{index}", index)])
        for index in (1, 2, 3)
    ]
    world.run(6)
    assert nodes[0].routes()["10.244.2.0/26"] == "via 10.0.0.2"
    path = nodes[0].core.ribs[V4].best(bytes((26, 10, 244, 2, 0)))
    assert path is not None
    assert path.attrs.as_path_length == 1


def test_the_loss_of_the_link_ends_the_external_sessions_over_it_at_once() -> None:
    """Hold timers take minutes; the others' routes through it are gone with their next hops in any case."""
    world = World()
    everything = [node(f"n{index}", index, asNumber=64512 + index) for index in (1, 2, 3)]
    *_, first = [
        world.add(f"n{index}", addresses(index), [*POOLS, *everything, *blocks(f"n{index}", index)])
        for index in (1, 2, 3)
    ]
    world.run(6)
    assert established(first) == 4
    world.cut.update({frozenset({"n1", "n3"}), frozenset({"n2", "n3"})})
    first.link(False)
    world.run(0)
    assert established(first) == 0
    neighbor = first.core.peers["Mesh_10_0_0_1"].neighbor
    assert neighbor.counters.downs == {DownReason.INTERFACE_DOWN: 1}
    assert neighbor.counters.last_down_reason == "interface eth0, which the session ran over, is down"
    assert any("Established -> Idle: interface eth0, which the session ran over, is down" in line for line in first.log)
    adj_in = first.core.peers["Mesh_10_0_0_1"].adj_in[V4]
    assert adj_in.count == 0, "a peer that reboots takes the link along: nothing of it is kept as stale"
    world.run(60)
    world.cut.clear()
    first.link(True)
    world.run(0)
    assert established(first) == 4, "and when the link is back nobody waits for a back-off"


def test_the_loss_of_the_link_leaves_internal_sessions_to_their_timers() -> None:
    """They may find another way, and a short loss must not cost a mesh all its sessions."""
    world = World()
    first, *_ = mesh(world, 3)
    world.run(6)
    first.link(False)
    world.run(0)
    assert established(first) == 4


def far_peer(world: World, *routes: ForeignRoute) -> Node:
    """A node with an external peer that is on none of its networks."""
    near = [node("n1", 1), manifest("BGPPeer", "x", {"peerIP": "10.0.9.2", "asNumber": 65009})]
    far = [
        manifest("Node", "n9", {"bgp": {"ipv4Address": "10.0.9.2/24", "asNumber": 65009}}),
        manifest("BGPPeer", "y", {"peerIP": "10.0.0.1", "asNumber": 64512}),
    ]
    first = world.add("n1", addresses(1), [*POOLS, *near])
    first.engine.kernel(KernelChange(routes_added=routes), world.now)
    world.add("n9", [("10.0.9.2", 24)], [*POOLS, *far])
    world.run(6)
    assert established(first) == 1
    return first


def test_an_external_session_by_a_gateway_outlives_an_interface() -> None:
    world = World()
    gateway = Gateway(parse_address("10.0.0.254"), ETH0)
    first = far_peer(world, ForeignRoute(V4, parse_prefix("0.0.0.0/0")[1], 0, 4, 1, (gateway,)))
    first.link(False)
    world.run(0)
    assert established(first) == 1


def test_a_peer_by_a_route_to_its_interface_is_directly_connected_too() -> None:
    """A pod, or a switch on a link without a network of its own."""
    world = World()
    first = far_peer(world, ForeignRoute(V4, parse_prefix("10.0.9.2/32")[1], 0, 3, 1, (Gateway(b"", ETH0),)))
    first.link(False)
    world.run(0)
    assert established(first) == 0


def test_an_external_session_stays_where_another_interface_leads_to_the_peer() -> None:
    world = World()
    everything = [node(f"n{index}", index, asNumber=64512 + index) for index in (1, 2)]
    first, _ = [world.add(f"n{index}", addresses(index), [*POOLS, *everything]) for index in (1, 2)]
    world.run(6)
    second = Interface(7, "eth1", up=True, addresses=((parse_address("10.0.0.200"), 24),))
    first.engine.kernel(KernelChange(interfaces=(second,)), world.now)
    first.link(False)
    world.run(0)
    states = {name: peer.neighbor.state for name, peer in first.core.peers.items()}
    assert states["Mesh_10_0_0_2"] is State.ESTABLISHED
    assert states["Mesh_fd00__2"] is not State.ESTABLISHED
    first.engine.kernel(KernelChange(interfaces_removed=(7,)), world.now)
    world.run(0)
    assert first.core.peers["Mesh_10_0_0_2"].neighbor.state is not State.ESTABLISHED


def test_filters_change_live_without_a_reset() -> None:
    world = World()
    peering = [
        manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}),
        manifest("BGPPeer", "all", {"peerSelector": "all()", "filters": ["f"]}),
    ]
    nodes = mesh(world, 3, *peering, manifest("BGPFilter", "f", {}))
    world.run(6)
    assert nodes[0].routes()["10.244.2.0/26"] == "via 10.0.0.2"
    refuse = {"importV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.244.2.0/24"}]}
    nodes[0].apply(manifest("BGPFilter", "f", refuse))  # type: ignore[arg-type]
    world.run(0)
    assert "10.244.2.0/26" not in nodes[0].routes()
    assert nodes[0].routes()["10.244.3.0/26"] == "via 10.0.0.3"
    refuse = {"exportV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.244.1.0/24"}]}
    nodes[0].apply(manifest("BGPFilter", "f", refuse))  # type: ignore[arg-type]
    world.run(0)
    assert nodes[0].routes()["10.244.2.0/26"] == "via 10.0.0.2"
    assert "10.244.1.0/26" not in nodes[1].routes()
    assert "10.244.3.0/26" in nodes[1].routes()
    nodes[0].apply(manifest("BGPFilter", "f", {}))
    world.run(0)
    assert nodes[1].routes()["10.244.1.0/26"] == "via 10.0.0.1"
    for each in nodes:
        assert {peer.neighbor.counters.established for peer in each.core.peers.values()} == {1}


def test_a_thousand_changes_reset_nothing_that_they_do_not_touch() -> None:
    world = World()
    watched = manifest("BGPPeer", "watched", {"node": "n1", "peerIP": "10.0.0.2", "asNumber": 64512})
    nodes = mesh(world, 2, manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}), watched)
    world.run(6)
    assert established(nodes[0]) == 1
    rng = random.Random(7)
    name = next(iter(peer.plan.name for peer in nodes[0].core.peers.values()))
    for step in range(1000):
        index = rng.randrange(50)
        kind = rng.choice(["BGPPeer", "BGPFilter", "IPPool", "Node", "BlockAffinity"])
        if kind == "BGPPeer":
            change = manifest(
                kind, f"x{index}", {"peerIP": f"10.9.0.{index + 1}", "asNumber": 65000 + rng.randrange(3)}
            )
        elif kind == "BGPFilter":
            change = manifest(kind, f"x{index}", {"exportV4": [{"action": "Accept"}]})
        elif kind == "IPPool":
            change = manifest(kind, f"x{index}", {"cidr": f"172.16.{index}.0/24", "disabled": rng.random() < 0.5})
        elif kind == "Node":
            change = node(f"x{index}", 100 + index)
        else:
            change = block("n1", f"10.244.{100 + index}.0/26")
        if rng.random() < 0.3:
            nodes[0].delete(ResourceKey(kind, str(change["metadata"]["name"])))  # type: ignore[call-overload, index]
        else:
            nodes[0].apply(change)
        if step % 10 == 0:
            world.run(0.1)
    world.run(5)
    assert established(nodes[0]) >= 1
    assert nodes[0].core.peers[name].neighbor.counters.established == 1
    assert nodes[1].core.peers["Node_10_0_0_1"].neighbor.counters.established == 1


def test_a_session_outlives_the_resource_that_asked_for_it() -> None:
    """Mesh, then a global BGPPeer, one of this node, the same at its port, and the mesh again: one session throughout."""
    world = World()
    nodes = mesh(world, 3)
    world.run(30, until=lambda: up(world))
    world.run(1)
    for each in nodes:
        each.batches.clear()
    peer = {"peerIP": "10.0.0.2", "asNumber": 64512}
    for change, name in (
        (manifest("BGPPeer", "a", peer), "Global_10_0_0_2"),
        (manifest("BGPPeer", "a", {**peer, "node": "n1"}), "Node_10_0_0_2"),
        (manifest("BGPPeer", "a", {**peer, "node": "n1", "peerIP": "10.0.0.2:179"}), "Node_10_0_0_2_port_179"),
    ):
        nodes[0].apply(change)
        world.run(10)
        assert name in nodes[0].core.peers and len(nodes[0].core.peers) == 4
        found = nodes[0].core.peers[name]
        assert (found.plan.why, found.source.name, found.neighbor.config.name) == ("BGPPeer a", name, name)
        assert nodes[0].core.ribs[V4].best(parse_prefix("10.244.2.0/26")[1]).source.name == name  # type: ignore[union-attr]
    nodes[0].apply(manifest("BGPPeer", "b", {**peer, "node": "n1", "peerIP": "10.0.0.2:179"}))
    nodes[0].delete(ResourceKey("BGPPeer", "a"))
    world.run(1)
    assert nodes[0].core.peers["Node_10_0_0_2_port_179"].plan.why == "BGPPeer b"
    nodes[0].delete(ResourceKey("BGPPeer", "b"))
    world.run(300)  # the renamed one's keepalives and hold timer go on
    assert "Mesh_10_0_0_2" in nodes[0].core.peers
    for each in nodes:
        assert set(times_up(each).values()) == {1}
        assert not each.batches, "no route was touched"


def test_a_parameter_that_counts_resets_under_the_new_name() -> None:
    world = World()
    nodes = mesh(world, 2)
    world.run(30, until=lambda: up(world))
    for each, other in zip(nodes, ("10.0.0.2", "10.0.0.1"), strict=True):
        each.apply(manifest("BGPPeer", "a", {"peerIP": other, "asNumber": 64512, "ttlSecurity": 1}))
    world.run(1)
    world.run(30, until=lambda: up(world))
    assert any("Global_10_0_0_2: its session starts anew: ttl security 0 -> 1" in line for line in nodes[0].log)
    assert up(world) and nodes[0].core.peers["Global_10_0_0_2"].neighbor.counters.downs


@pytest.mark.parametrize("seed", range(20))
def test_any_interleaving_ends_in_the_same_tables(seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    nodes = mesh(world, 4)
    for _ in range(15):
        world.run(rng.random() * 3)
        action = rng.randrange(3)
        one, other = rng.sample(["n1", "n2", "n3", "n4"], 2)
        if action == 0:
            world.sever(one, other)
        elif action == 1:
            world.nodes[one].link(False)
            world.run(rng.random())
            world.nodes[one].link(True)
        else:
            world.nodes[one].apply(block(one, f"10.244.{rng.randrange(100, 120)}.0/26"))
    world.run(120)
    origins = {}
    for each in nodes:
        for family, prefix in each.core.plan.origins:
            origins.setdefault((family, prefix), each)
    for each in nodes:
        for key in origins:
            assert key in each.kernel


def test_next_hops_nobody_uses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-30405's class: a peer that gives every route a next hop of its own must not fill our memory."""
    monkeypatch.setattr(imports, "NEXT_HOPS", 16)
    world = World()
    nodes = mesh(world, 2)
    world.run(6)
    core = nodes[0].core
    core.importer._next_hops_most = 16
    peer = core.peers["Mesh_10_0_0_2"]
    for third in range(40):
        for last in range(3, 8):
            attrs = encode_attributes(
                AttributeSet(next_hop=bytes((10, 9, third, last)), local_pref=100),
                four_octet_as=True, family=V4, include_local_pref=True,
            )  # fmt: skip
            core.received(peer.neighbor.connection, update_message(b"", attrs, b"\x18\x0a\xf4\x63"), world.now)
        core.flush(world.now)
    assert len(core.next_hops) < 40
    assert core.ribs[V4].candidates(b"\x18\x0a\xf4\x63")[0].next_hop in core.next_hops._next_hops.values()


def test_a_group_that_is_new_does_not_hear_of_old_changes() -> None:
    world = World()
    nodes = mesh(world, 2)
    world.run(6)
    nodes[0].apply(block("n1", "10.244.77.0/26"))
    world.sever("n1", "n2")
    world.run(20)
    for each in nodes:
        for group in each.core.exporter._groups.values():
            told: dict[object, int] = {}
            for prefix in group.rib.table:
                path = group.rib.best(prefix)
                if path is not None and group.exported(prefix, path) is not None:
                    told[path.source] = told.get(path.source, 0) + 1
            assert {source: count for source, count in group.advertised.items() if count} == told


def test_a_rule_that_asks_for_an_interface_withdraws_when_that_fails_or_another_takes_over() -> None:
    world = World()
    every = [{"action": "Accept"}]
    by_eth0 = [{"action": "Accept", "cidr": "10.244.0.0/16", "matchOperator": "In", "interface": "eth0"}]
    resources = [
        manifest("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}),
        manifest("BGPFilter", "all", {"exportV4": every, "importV4": every}),
        manifest("BGPFilter", "eth0", {"exportV4": [*by_eth0, {"action": "Reject"}]}),
        *(node(f"n{index}", index, asNumber=65000 + index) for index in (1, 2, 3)),
    ]
    for one, other, name in ((1, 2, "all"), (2, 1, "all"), (2, 3, "eth0"), (3, 2, "all")):
        spec = {"node": f"n{one}", "peerIP": f"10.0.0.{other}", "asNumber": 65000 + other, "filters": [name]}
        resources.append(manifest("BGPPeer", f"p{one}{other}", spec))  # type: ignore[arg-type]
    nodes = [
        world.add(f"n{index}", addresses(index), [*POOLS, *resources, block(f"n{index}", f"10.244.{index}.0/26")])
        for index in (1, 2, 3)
    ]
    world.run(6)
    assert nodes[2].routes()["10.244.1.0/26"] == "via 10.0.0.2"
    connected = parse_prefix("10.0.0.0/24")[1]
    connected_route = ForeignRoute(V4, connected, 0, 2, 1, (Gateway(b"", 2),))
    nodes[1].engine.kernel(KernelChange(routes_removed=(connected_route,)), world.now)
    nodes[1].more = True
    world.run(1)
    assert "10.244.1.0/26" not in nodes[2].routes()
    nodes[1].engine.kernel(KernelChange(routes_added=(connected_route,)), world.now)
    nodes[1].more = True
    world.run(1)
    assert "10.244.1.0/26" in nodes[2].routes()
    # the same network now behind another interface
    nodes[1].engine.kernel(
        KernelChange(
            interfaces=(Interface(3, "eth1", True, ()),),
            routes_added=(ForeignRoute(V4, connected, 0, 2, 1, (Gateway(b"", 3),)),),
        ),
        world.now,
    )
    nodes[1].more = True
    world.run(1)
    assert nodes[1].core.ribs[V4].best(bytes((26, 10, 244, 1, 0))) is not None
    assert "10.244.1.0/26" not in nodes[2].routes()


def test_what_nobody_else_would_notice_is_among_the_problems() -> None:
    world = World()
    each = world.add("n1", [("10.0.0.77", 24)], [*POOLS, node("n1", 1), node("n2", 2)])
    world.run(1)
    assert each.engine.accepted(b"\x0a\x00\x00\x63", b"\x0a\x00\x00\x01", "", world.now) == 0
    problems = status(each.core, world.now + 5)["problems"]
    assert isinstance(problems, list)
    assert "Node n1: spec.bgp.ipv4Address 10.0.0.1 is on no interface here" in problems
    assert any(line.startswith("10.0.0.99 connected 1 times and was refused, last 5 s ago") for line in problems)


# ---- passwords, TTL security, reachableBy

MESH_PASSWORD = manifest(
    "BGPConfiguration", "default", {"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}}
)


def up(world: World) -> bool:
    return all(
        peer.neighbor.state is State.ESTABLISHED for one in world.nodes.values() for peer in one.core.peers.values()
    )


def times_up(one: Node) -> dict[str, int]:
    return {name: peer.neighbor.counters.established for name, peer in one.core.peers.items()}


def test_a_mesh_waits_for_its_password_and_follows_it() -> None:
    world = World()
    nodes = mesh(world, 2, MESH_PASSWORD)
    world.run(60)
    assert [peer.neighbor.state for peer in nodes[0].core.peers.values()] == [State.IDLE, State.IDLE]
    problem = "BGPConfiguration default: spec.nodeMeshPassword: there is no bgp/mesh in the folder secrets.dir"
    assert any(problem in line for line in nodes[0].log)
    nodes[0].secret("bgp/mesh", 1)
    world.run(10)
    assert not up(world), "the other one has none: it is not tried without"
    nodes[1].secret("bgp/mesh", 1)
    assert world.run(60, until=lambda: up(world))
    assert not nodes[0].core.plan.problems

    nodes[0].secret("bgp/mesh", 1, "the file is gone")
    world.run(300)
    assert up(world) and set(times_up(nodes[0]).values()) == {1}, "what was known stays in use"
    assert any("the password known before stays in use" in problem for problem in nodes[0].core.plan.problems)

    for one in nodes:
        one.secret("bgp/mesh", 2)
    assert world.run(60, until=lambda: up(world) and set(times_up(nodes[0]).values()) == {1})
    assert any("its session starts anew: the password in Secret bgp/mesh changed" in line for line in nodes[0].log)


def test_a_session_that_is_up_goes_on_until_its_new_password_is_there() -> None:
    """A reference reaches every node at once, its file later: no route goes in between."""
    world = World()
    nodes = mesh(world, 2)
    world.run(30, until=lambda: up(world))
    world.run(1)
    for each in nodes:
        each.batches.clear()
        each.apply(MESH_PASSWORD)
    world.run(300)
    for each in nodes:
        assert set(times_up(each).values()) == {1} and up(world) and not each.batches
        assert not each.guards, "connections without a password are let in as before"
        assert any("so no session begins; one that is up goes on as it is" in text for text in each.core.plan.problems)
        assert sum("its password is missing" in line for line in each.log) == 2, "told once a session"
    assert nodes[0].core.peers["Mesh_10_0_0_2"].waits_for_password.startswith("its password is missing")
    world.sever("n1", "n2")
    assert world.run(60, until=lambda: up(world)), "it comes back under what it had"

    nodes[0].apply(node("n3", 4))
    world.run(10)
    assert nodes[0].core.peers["Mesh_10_0_0_4"].plan.session.held, "one that never was up waits"
    nodes[0].delete(ResourceKey("Node", "n3"))

    for each in nodes:
        each.secret("bgp/mesh", 1)
    world.run(1)
    assert world.run(60, until=lambda: up(world))
    for each in nodes:
        assert each.guards and not each.core.plan.problems
        assert not any(peer.waits_for_password or peer.plan.session.held for peer in each.core.peers.values())
        assert any("its session starts anew: password none -> bgp/mesh" in line for line in each.log)

    other = {"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "next"}}}
    for each in nodes:
        each.batches.clear()
        each.apply(manifest("BGPConfiguration", "default", other))
    world.run(60)
    assert [each.guards[parse_address(f"10.0.0.{3 - index}")].password for index, each in enumerate(nodes, 1)] == [
        "bgp/mesh"
    ] * 2, "the password before stays in use until there is another"
    for each in nodes:
        each.apply(MESH_PASSWORD)
    world.run(60)
    for each in nodes:
        assert set(times_up(each).values()) == {1} and not each.batches and not each.core.plan.problems


def test_what_ends_a_session_anyway_does_not_begin_it_without_its_password() -> None:
    world = World()
    nodes = mesh(world, 2)
    world.run(30, until=lambda: up(world))
    nodes[0].apply(
        manifest("BGPConfiguration", "default", {**MESH_PASSWORD["spec"], "asNumber": 64600})  # type: ignore[dict-item]
    )
    world.run(60)
    assert {peer.neighbor.state for peer in nodes[0].core.peers.values()} == {State.IDLE}
    assert all(peer.plan.session.held for peer in nodes[0].core.peers.values())


def test_a_reason_that_is_none_any_more_is_not_told() -> None:
    world = World()
    nodes = mesh(world, 2, MESH_PASSWORD)
    world.run(10)
    peer = nodes[0].core.peers["Mesh_10_0_0_2"]
    assert peer.neighbor.counters.last_error.startswith("its password is missing")
    nodes[0].secret("bgp/mesh", 1)
    world.run(1)
    assert peer.neighbor.counters.last_error == ""


def test_a_password_of_one_peer_is_no_matter_of_the_others() -> None:
    world = World()
    nodes = mesh(world, 3)
    world.run(30, until=lambda: up(world))
    before = {name: times_up(one) for name, one in world.nodes.items()}
    peer = manifest(
        "BGPPeer",
        "a-to-b",
        {
            "node": "n1",
            "peerIP": "10.0.0.2",
            "asNumber": 64512,
            "ttlSecurity": 1,
            "password": {"secretKeyRef": {"name": "bgp", "key": "b"}},
        },
    )
    for one in nodes:
        one.secret("bgp/b", 7)
        one.apply(peer)
    assert world.run(60, until=lambda: up(world) and "Node_10_0_0_2" in nodes[0].core.peers)
    assert nodes[0].guards.keys() == {parse_address("10.0.0.2")}
    assert nodes[1].guards.keys() == {parse_address("10.0.0.1")}, "the reverse has the same password"
    for one in nodes:
        for name, count in times_up(one).items():
            assert count == before[names_of(world)[one]].get(name, 1), name
    nodes[0].secret("bgp/b", 8)
    world.run(5)
    assert not up(world), "the ends differ"
    nodes[1].secret("bgp/b", 8)
    assert world.run(60, until=lambda: up(world))
    assert times_up(nodes[2]) == before["n3"]
    nodes[0].delete(ResourceKey("BGPPeer", "a-to-b"))
    nodes[1].delete(ResourceKey("BGPPeer", "a-to-b"))
    assert world.run(60, until=lambda: up(world))
    assert nodes[0].guards == {}


def names_of(world: World) -> dict[Node, str]:
    return {one: name for name, one in world.nodes.items()}


def test_a_restarted_node_waits_for_a_peer_whose_password_is_missing() -> None:
    """Its routes stay in the kernel as long as those of any peer that is late."""
    world = World()
    key = parse_prefix("10.244.9.0/26")
    kernel = {key: KernelRoute(RouteKind.BLACKHOLE)}
    peer = {"peerIP": "10.0.0.9", "password": {"secretKeyRef": {"name": "bgp", "key": "x"}}}
    one = world.add(
        "n1",
        addresses(2),
        [*POOLS, node("n1", 2), manifest("BGPPeer", "x", peer)],
        routes_found=frozenset({V4}),
        kernel=kernel,
    )
    world.run(100)
    assert key in one.kernel
    world.run(30)
    assert key not in one.kernel


def test_a_peer_reachable_by_a_gateway() -> None:
    """The gateway is on the link, the peer behind it; its route comes and goes with the resource and the link."""
    world = World()
    peer = {"peerIP": "172.16.0.1", "asNumber": 65001, "reachableBy": "10.0.0.254"}
    one = world.add("n1", addresses(2), [*POOLS, node("n1", 2), manifest("BGPPeer", "far", peer)])
    world.run(1)
    assert one.routes() == {"172.16.0.1/32": "via 10.0.0.254"}
    next_hop = one.core.next_hops.track(parse_address("172.16.0.1"))
    assert next_hop.text == "via 10.0.0.254 dev eth0 (route by reachableBy 172.16.0.1/32 through 10.0.0.254)"
    one.link(False)
    world.run(1)
    assert one.routes() == {}
    one.link(True)
    world.run(1)
    assert one.routes() == {"172.16.0.1/32": "via 10.0.0.254"}
    one.apply(manifest("BGPPeer", "far", {**peer, "reachableBy": "10.0.0.253"}))
    world.run(1)
    assert one.routes() == {"172.16.0.1/32": "via 10.0.0.253"}
    assert not any("anew" in line for line in one.log)
    one.delete(ResourceKey("BGPPeer", "far"))
    world.run(1)
    assert one.routes() == {}


def test_bind_mode_is_a_matter_of_listening_alone() -> None:
    world = World()
    nodes = mesh(world, 2)
    world.run(30, until=lambda: up(world))
    assert nodes[0].listen == Listen(179)
    for one in nodes:
        one.apply(manifest("BGPConfiguration", "default", {"bindMode": "NodeIP"}))
    world.run(10)
    assert nodes[0].listen == Listen(179, (parse_address("10.0.0.1"), parse_address("fd00::1")))
    assert up(world) and set(times_up(nodes[0]).values()) == {1}
