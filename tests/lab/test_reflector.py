"""Route reflectors among nodes: two reflectors and three clients, a reflector that dies, a mesh that becomes reflection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Json, Routed, resource
from tests.lab.topology import SOON, Rack, address, affinity, block, configuration, flaps, node, pod, pools, start

REFLECTORS, CLIENTS = (1, 2), (3, 4, 5)
EVERYBODY = (*REFLECTORS, *CLIENTS)
CLUSTER_ID = "224.0.0.1"

#: Addresses as they are in names of sessions.
UNDERLINED = str.maketrans(".:", "__")


def nodes(*, reflecting: bool) -> list[Json]:
    found = [configuration(nodeToNodeMeshEnabled=not reflecting), *pools()]
    for number in EVERYBODY:
        reflector = reflecting and number in REFLECTORS
        extra = {"routeReflectorClusterID": CLUSTER_ID} if reflector else {}
        labels = {"reflector": "yes"} if reflector else None
        found += [
            node(number, labels=labels, **extra),
            affinity(number, block(number)),
            affinity(number, block(number, ipv6=True)),
        ]
    return found


def peerings() -> list[Json]:
    return [
        resource("BGPPeer", "clients", {"nodeSelector": "!has(reflector)", "peerSelector": "has(reflector)"}),
        resource("BGPPeer", "reflectors", {"nodeSelector": "has(reflector)", "peerSelector": "has(reflector)"}),
    ]


def is_whole(routed: Routed, number: int) -> bool:
    """The node's kernel has every block, by the node that holds it."""
    return all(
        routed.kernel_routes(ipv6=ipv6)
        == {
            block(each, ipv6=ipv6): "blackhole" if each == number else f"via {address(each, ipv6=ipv6)} dev eth0"
            for each in EVERYBODY
        }
        for ipv6 in (False, True)
    )


def wait_until_whole(routers: dict[int, Routed]) -> None:
    for number, routed in routers.items():
        wait_for(
            lambda routed=routed, number=number: is_whole(routed, number),
            SOON,
            f"node-{number} has all blocks",
            state=lambda routed=routed: (routed.kernel_routes(), routed.kernel_routes(ipv6=True), routed.sessions()),
        )


def hears(client: Routed, number: int) -> bool:
    """The client has every other client's blocks from both reflectors: one of them is enough for its kernel."""
    others = {
        block(other, ipv6=ipv6): {f"Node_{address(each, ipv6=ipv6).translate(UNDERLINED)}" for each in REFLECTORS}
        for other in CLIENTS
        if other != number
        for ipv6 in (False, True)
    }
    rows = {row["prefix"]: row for row in client.stream("routes", all=True) if row["prefix"] in others}
    return all(
        reflectors <= {path["from"] for path in rows.get(prefix, {"candidates": []})["candidates"]}
        for prefix, reflectors in others.items()
    )


def wait_until_reflected(routers: dict[int, Routed]) -> None:
    for number in CLIENTS:
        wait_for(
            lambda number=number: hears(routers[number], number),
            SOON,
            f"node-{number} hears of the clients from both reflectors",
            state=lambda number=number: list(routers[number].stream("routes", all=True)),
        )


@pytest.fixture
def reflected(lab: Lab) -> dict[int, Routed]:
    rack = Rack(lab, f"rack{len(lab.namespaces)}")
    made = {number: rack.node(number, *nodes(reflecting=True), *peerings()) for number in EVERYBODY}
    start(*made.values())
    wait_until_whole(made)
    wait_until_reflected(made)
    return made


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Each test has its own nodes of the same names."""
    with Lab() as made:
        yield made


def test_clients_reach_each_other_by_their_own_addresses(reflected: dict[int, Routed]) -> None:
    for number in CLIENTS:
        routed = reflected[number]
        assert set(routed.sessions()) == {address(each, ipv6=six) for each in REFLECTORS for six in (False, True)}
        for other in EVERYBODY:
            for ipv6 in (False, True):
                target = pod(other, ipv6=ipv6)
                assert routed.namespace.pings(target, source=pod(number, ipv6=ipv6)), (number, target)
    # a client hears each block from both reflectors, with the same originator, and says why one is the best
    row = reflected[3].route(block(4))
    assert [path["originatorId"] for path in row["candidates"]] == [address(4)] * 2
    assert [path["clusterList"] for path in row["candidates"]] == [[CLUSTER_ID]] * 2
    assert [path["best"] for path in row["candidates"]] == [True, False]
    assert row["candidates"][1]["reason"]
    # the two reflectors share a cluster id: what one reflects, the other refuses
    wait_for(
        lambda: (
            [path["from"].startswith("Node_10_0_0_4") for path in reflected[1].route(block(4))["candidates"]]
            == [True, False]
        ),
        SOON,
        "a reflector has a client's block from the client and from the other reflector",
        state=lambda: reflected[1].route(block(4)),
    )
    wait_for(
        lambda: [routed.status()["peers"]["established"] for routed in reflected.values()] == [8, 8, 4, 4, 4],
        SOON,
        "each session is up",
        state=lambda: [routed.sessions() for routed in reflected.values()],
    )
    assert [problem for routed in reflected.values() for problem in routed.problems()] == []


def test_a_reflector_dies(reflected: dict[int, Routed]) -> None:
    """Its clients lose a path to each block, not one block; nobody resets a session for it."""
    before = {number: flaps(reflected[number]) for number in CLIENTS}
    reflected[1].namespace.ip("link set eth0 down")
    reflected[1].kill()
    watched = {number: reflected[number] for number in CLIENTS}
    for _ in range(20):
        for number in CLIENTS:
            for other in CLIENTS:
                assert block(other) in watched[number].kernel_routes()
    assert reflected[3].namespace.pings(pod(4), source=pod(3))
    assert {number: flaps(reflected[number]) for number in CLIENTS} == before


def test_a_reflector_is_restarted(reflected: dict[int, Routed]) -> None:
    """SIGTERM and a new start: the kernels of the clients never lack a route."""
    reflected[1].stop()
    reflected[1].launch()

    def up() -> bool:
        for number in CLIENTS:
            assert is_whole(reflected[number], number), f"node-{number} lacks a route"
        return reflected[3].established(address(1), address(2)) and reflected[1].answers()

    wait_for(up, SOON, "the reflector is back", state=reflected[3].sessions)
    wait_until_whole(reflected)


def test_a_mesh_becomes_reflection_without_losing_a_route(lab: Lab) -> None:
    """As Calico's guide says: the reflectors first, and the mesh off once their sessions are up.

    A node that becomes a reflector leaves the mesh and resets its sessions; the clients' routes to each other stay.
    """
    rack = Rack(lab, "migration")
    routers = {number: rack.node(number, *nodes(reflecting=False)) for number in EVERYBODY}
    start(*routers.values())
    wait_until_whole(routers)
    clients = {number: routers[number] for number in CLIENTS}

    def settled() -> bool:
        for number, routed in clients.items():
            lacking = {block(each) for each in CLIENTS} - set(routed.kernel_routes())
            assert not lacking, f"node-{number} lost {lacking}"
        return all(
            [row["name"] for row in routed.neighbors().values() if row["state"] == "Established"].count(name) == 1
            for routed in clients.values()
            for name in (f"Node_{address(each).replace('.', '_')}" for each in REFLECTORS)
        )

    for routed in routers.values():
        routed.put(*nodes(reflecting=True)[1:], *peerings())
    wait_for(settled, 4 * SOON, "the clients speak with the reflectors", state=clients[3].sessions)
    wait_until_whole(routers)
    wait_until_reflected(routers)
    for routed in routers.values():
        routed.put(configuration(nodeToNodeMeshEnabled=False))
    wait_for(
        lambda: settled() and all(len(routed.sessions()) == 2 * len(REFLECTORS) for routed in clients.values()),
        SOON,
        "there is no mesh any more",
        state=clients[3].sessions,
    )
    wait_until_whole(routers)
    assert routers[3].namespace.pings(pod(5), source=pod(3))
