"""Whatever order peers come, go and speak in, the kernel ends up with what the final tables say: the model and Linux."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from routed.desired import Gateway, KernelRoute, RouteBatch
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.testing.world import ETH0
from routed.testing.world import World as Network
from tests.conformance.topologies import block, mesh
from tests.dataplane.conftest import World


def story(seed: int) -> Network:
    """A mesh in which sessions break, a link fails and blocks come and go; n1's kernel is the one to look at."""
    rng = random.Random(seed)
    network = Network()
    mesh(network)
    for _ in range(12):
        one, other = rng.sample(["n1", "n2", "n3"], 2)
        match rng.randrange(3):
            case 0:
                network.sever(one, other)
            case 1:
                network.nodes["n1"].link(False)
                network.run(rng.random())
                network.nodes["n1"].link(True)
            case _:
                network.nodes[one].apply(block(int(one[1]), f"10.244.{rng.randrange(100, 110)}.0/26"))
        network.run(rng.random() * 4)
    network.run(120)
    return network


@pytest.mark.parametrize("seed", range(4))
def test_any_interleaving_ends_in_the_same_kernel(world: World, seed: int) -> None:
    index = world.link("eth0", "10.0.0.1/24", "fd00::1/64")
    world.start()
    node = story(seed).nodes["n1"]
    rng = random.Random(seed)
    moved = translator(index)
    for batch in node.batches:
        world.engine.apply([RouteBatch(batch.family, batch.prefixes, moved(batch.route))])
        if rng.random() < 0.3:
            world.settle()
    world.settle()
    for family in Family:
        expected = {
            format_prefix(family, prefix): route for (each, prefix), route in node.kernel.items() if each is family
        }
        assert len(expected) >= 3
        assert world.ours(family) == {
            text: (int(route.kind), moved(route).gateways)  # type: ignore[union-attr]
            for text, route in expected.items()
        }


def translator(index: int) -> Callable[[KernelRoute | None], KernelRoute | None]:
    """The core's world calls its interface ETH0; here it has another index."""

    def move(route: KernelRoute | None) -> KernelRoute | None:
        if route is None:
            return None
        assert {gateway.interface for gateway in route.gateways} <= {ETH0}
        return KernelRoute(route.kind, tuple(Gateway(gateway.address, index) for gateway in route.gateways))

    return move
