"""What the kernel holds and what it gets: workloads' routes of others, pools that others program, priorities."""

from __future__ import annotations

import pytest

from routed.core.queries import routes
from routed.desired import Gateway
from routed.model.resources import JsonObject
from routed.net.families import Family
from routed.net.prefixes import format_prefix, parse_prefix
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.testing.world import Node, World
from tests.core.test_nodes import POOLS, V4, addresses, established, manifest, mesh, node

NORMAL = 2147483647 - 1024
CALI = 7


def cali(each: Node, world: World, name: str = "cali1", index: int = CALI, *own: tuple[bytes, int]) -> None:
    each.engine.kernel(KernelChange(interfaces=(Interface(index, name, True, tuple(own)),)), world.now)
    each.more = True


def workload(text: str, metric: int = 0, interface: int = CALI, protocol: int = 3) -> ForeignRoute:
    family, prefix = parse_prefix(text)
    return ForeignRoute(family, prefix, metric, protocol, 1, (Gateway(b"", interface),))


def add(each: Node, world: World, *found: ForeignRoute) -> None:
    each.engine.kernel(KernelChange(routes_added=found), world.now)
    each.more = True
    world.run(1)


def remove(each: Node, world: World, *gone: ForeignRoute) -> None:
    each.engine.kernel(KernelChange(routes_removed=gone), world.now)
    each.more = True
    world.run(1)


def learned(each: Node) -> set[str]:
    source = each.core.origins.learned
    return {
        format_prefix(family, prefix)
        for family, rib in each.core.ribs.items()
        for prefix in rib.table
        for path in rib.candidates(prefix)
        if path.source is source
    }


def pref(each: Node, prefix: str) -> int:
    family, wire = parse_prefix(prefix)
    best = each.core.ribs[family].best(wire)
    assert best is not None
    return best.local_pref


def metric(each: Node, prefix: str) -> int:
    return each.kernel[parse_prefix(prefix)].metric


def config(**spec: object) -> object:
    return manifest("BGPConfiguration", "default", dict(spec))  # type: ignore[arg-type]


def test_borrowed_addresses_go_out_and_own_ones_are_aggregated() -> None:
    world = World()
    one, two = mesh(world, 2)
    cali(one, world)
    add(
        one,
        world,
        workload("10.244.2.9/32"),  # from the other node's block
        workload("10.244.1.5/32"),  # from our own
        workload("172.30.0.1/32"),  # from no pool
        workload("fd00:10:0:2::9/128", 1024),
        workload("10.244.2.10/32", interface=2),  # not a workload's interface
        ForeignRoute(V4, parse_prefix("10.244.2.11/32")[1], 0, 4, 1, (Gateway(b"\x0a\x00\x00\x09", CALI),)),
    )
    assert learned(one) == {"10.244.2.9/32", "10.244.1.5/32", "172.30.0.1/32", "fd00:10:0:2::9/128"}
    assert {prefix for prefix in two.routes() if prefix.endswith(("/32", "/128"))} == {
        "10.244.2.9/32",
        "fd00:10:0:2::9/128",
    }
    assert "10.244.2.9/32" not in one.routes(), "the kernel has it already, from whom we learned it"
    (row,) = routes(one.core, parse_prefix("10.244.2.9/32"), every=True)
    assert row["candidates"][0]["resolved"] == "this node, dev cali1 (kernel route)"  # type: ignore[index]
    remove(one, world, workload("10.244.2.9/32"))
    assert "10.244.2.9/32" not in two.routes()
    one.engine.kernel(KernelChange(interfaces_removed=(CALI,)), world.now)
    one.more = True
    world.run(1)
    assert "fd00:10:0:2::9/128" not in two.routes(), "an interface that is gone is nobody's"
    assert all(peer.neighbor.counters.established == 1 for peer in one.core.peers.values())


def test_addresses_of_other_interfaces_count_inside_pools_only() -> None:
    world = World()
    one, two = mesh(world, 2)
    cali(one, world, "tunl0", 9, (b"\x0a\xf4\x02\x2a", 32))
    cali(one, world, "docker0", 10, (b"\x0a\xf4\x09\x01", 24), (b"\xac\x11\x00\x01", 16))
    cali(one, world, "kube-ipvs0", 11, (b"\x0a\xf4\x02\x2b", 32))
    cali(one, world, "own", 12, (b"\x0a\xf4\x01\x01", 32))
    world.run(1)
    assert learned(one) == {"10.244.2.42/32", "10.244.9.0/24"}
    assert {"10.244.2.42/32", "10.244.9.0/24"} <= set(two.routes())
    one.apply(config(ignoredInterfaces=["docker*"]))
    world.run(1)
    assert learned(one) == {"10.244.2.42/32"}
    assert "10.244.9.0/24" not in two.routes()


def test_a_full_resync_forgets_what_it_does_not_name() -> None:
    world = World()
    one, two = mesh(world, 2)
    cali(one, world)
    add(one, world, workload("10.244.2.9/32"))
    assert "10.244.2.9/32" in two.routes()
    interface = one.core.interfaces[2]
    connected = ForeignRoute(V4, parse_prefix("10.0.0.0/24")[1], 0, 2, 1, (Gateway(b"", 2),))
    one.engine.kernel(KernelChange(full=True, interfaces=(interface,), routes_added=(connected,)), world.now)
    one.more = True
    world.run(1)
    assert learned(one) == set() and "10.244.2.9/32" not in two.routes()


def test_service_ranges_are_told_and_never_programmed() -> None:
    world = World()
    one, two = mesh(world, 2)
    two.apply(config(serviceClusterIPs=[{"cidr": "10.96.0.0/12"}]))
    world.run(1)
    assert one.routes()["10.96.0.0/12"] == "via 10.0.0.2", "a node that knows nothing of services follows"
    one.apply(config(serviceClusterIPs=[{"cidr": "10.96.0.0/12"}]))
    world.run(1)
    assert "10.96.0.0/12" not in one.routes() and "10.96.0.0/12" not in two.routes()
    (row,) = routes(one.core, parse_prefix("10.96.0.0/12"), every=True)
    assert "kube-proxy" in str(row["kernelNot"]) or row["kernel"] is None
    one.apply(config())
    world.run(1)
    assert one.routes()["10.96.0.0/12"] == "via 10.0.0.2"
    assert all(peer.neighbor.counters.established == 1 for peer in one.core.peers.values())


def pool(name: str, cidr: str, **spec: object) -> object:
    return manifest("IPPool", name, {"cidr": cidr, "blockSize": 26, **spec})  # type: ignore[dict-item]


def test_felixs_routes_are_taken_out_of_the_kernel_and_come_back() -> None:
    world = World()
    one, _ = mesh(world, 2)
    world.run(5)
    assert one.routes()["10.244.2.0/26"] == "via 10.0.0.2"
    one.apply(pool("v4", "10.244.0.0/16", vxlanMode="Always"))
    world.run(1)
    assert [prefix for prefix in one.routes() if "." in prefix] == []
    (row,) = routes(one.core, parse_prefix("10.244.2.0/26"), every=True)
    assert row["kernel"] is None and row["kernelNot"] == "IPPool v4: vxlanMode Always, Felix programs its routes"
    one.apply(pool("v4", "10.244.0.0/16"), config(programClusterRoutes="Disabled"))
    world.run(1)
    assert one.routes() == {}
    one.apply(config())
    world.run(1)
    assert one.routes()["10.244.2.0/26"] == "via 10.0.0.2" and one.routes()["10.244.1.0/26"] == "blackhole"
    assert established(one) == 2 and all(p.neighbor.counters.established == 1 for p in one.core.peers.values())


def test_routes_to_wireguard_peers_are_felix_s_where_both_ends_run_it() -> None:
    def with_wireguard(index: int, **addresses: str) -> JsonObject:
        made = node(f"n{index}", index)
        return made | {"spec": {"bgp": made["spec"]["bgp"], "wireguard": addresses}}  # type: ignore[call-overload, index]

    world = World()
    one, two, three = mesh(world, 3)
    both = {"interfaceIPv4Address": "10.9.0.2", "interfaceIPv6Address": "fd09::2"}
    one.apply(with_wireguard(2, **both))
    world.run(5)
    theirs = {"10.244.2.0/26", "fd00:10:0:2::/122"}
    assert theirs <= one.routes().keys(), "this node has none itself, so it reaches the other as ever"
    one.apply(with_wireguard(1, interfaceIPv4Address="10.9.0.1"))
    world.run(1)
    assert theirs & one.routes().keys() == {"fd00:10:0:2::/122"}, "of the family for which both have it"
    assert one.routes()["10.244.3.0/26"] == "via 10.0.0.3"
    (row,) = routes(one.core, parse_prefix("10.244.2.0/26"), every=True)
    assert row["kernel"] is None and row["kernelNot"] == "Node n2 is a WireGuard peer, Felix programs routes to it"
    for index, each in ((CALI, two), (CALI, three)):
        cali(each, world, "cali1", index)
        add(each, world, workload("10.244.9.9/32"))
    assert one.routes()["10.244.9.9/32"] == "via 10.0.0.3", "of the two that share its traffic"
    one.apply(with_wireguard(2))
    world.run(1)
    assert one.routes()["10.244.2.0/26"] == "via 10.0.0.2"
    assert one.routes()["10.244.9.9/32"] != "via 10.0.0.3"
    assert established(one) == 4 and all(p.neighbor.counters.established == 1 for p in one.core.peers.values())


def test_ipip_goes_into_the_tunnel_when_there_is_one() -> None:
    world = World()
    one, _ = mesh(world, 2)
    one.apply(pool("v4", "10.244.0.0/16", ipipMode="Always"))
    world.run(5)
    assert "10.244.2.0/26" not in one.routes(), "never without the encapsulation that was asked for"
    (row,) = routes(one.core, parse_prefix("10.244.2.0/26"), every=True)
    assert row["kernelNot"] == "IPPool v4: ipipMode Always, but no interface tunl0 is up on this node"
    cali(one, world, "tunl0", 9)
    world.run(1)
    route = one.kernel[parse_prefix("10.244.2.0/26")]
    assert route.gateways == (Gateway(b"\x0a\x00\x00\x02", 9, onlink=True),)
    assert one.routes()["10.244.1.0/26"] == "blackhole"
    one.apply(pool("v4", "10.244.0.0/16", ipipMode="CrossSubnet"))
    world.run(1)
    assert one.kernel[parse_prefix("10.244.2.0/26")].gateways == (Gateway(b"\x0a\x00\x00\x02", 2),)
    one.apply(node("n1", 1, ipv4Address="10.0.0.1/32"))  # the other node is in another subnet now
    world.run(1)
    assert one.kernel[parse_prefix("10.244.2.0/26")].gateways == (Gateway(b"\x0a\x00\x00\x02", 9, onlink=True),)


@pytest.mark.parametrize("family", list(Family))
def test_priorities_of_v3_32(family: Family) -> None:
    v4 = family is V4
    theirs, borrowed = ("10.244.2.0/26", "10.244.2.9/32") if v4 else ("fd00:10:0:2::/122", "fd00:10:0:2::9/128")
    world = World(calico_version="v3.32")
    one, two = mesh(world, 2)
    cali(one, world)
    cali(two, world)
    world.run(5)
    assert pref(one, theirs) == NORMAL and metric(one, theirs) == 1024
    add(one, world, workload(borrowed, 1024))
    assert pref(two, borrowed) == NORMAL and metric(two, borrowed) == 1024
    add(two, world, workload(borrowed, 1024))
    assert borrowed not in {format_prefix(*key) for key in two.kernel}, "a workload here goes before one elsewhere"
    remove(one, world, workload(borrowed, 1024))
    add(one, world, workload(borrowed, 512))
    assert pref(two, borrowed) == NORMAL + 512 and metric(two, borrowed) == 512, "it is moving to the other node"
    name = "ipv4NormalRoutePriority" if v4 else "ipv6NormalRoutePriority"
    for each in (one, two):
        each.apply(config(**{name: 2000}))
    world.run(1)
    assert metric(one, theirs) == 2000
    assert all(peer.neighbor.counters.established == 1 for peer in one.core.peers.values())


def test_v3_31_has_no_priorities() -> None:
    world = World(calico_version="v3.31")
    one, two = mesh(world, 2)
    cali(one, world)
    add(one, world, workload("10.244.2.9/32", 512))
    assert pref(two, "10.244.2.9/32") == 100 and metric(two, "10.244.2.9/32") == 0


def test_what_is_learned_from_outside_has_the_normal_priority() -> None:
    world = World(calico_version="v3.32")
    peer = manifest("BGPPeer", "tor", {"peerIP": "10.0.0.9", "asNumber": 65001})
    one, two = mesh(world, 2, peer)
    tor = world.add(
        "tor",
        addresses(9),
        [
            *POOLS,
            manifest("Node", "tor", {"bgp": {"ipv4Address": "10.0.0.9/24", "asNumber": 65001}}),
            *[manifest("BGPPeer", f"n{i}", {"peerIP": f"10.0.0.{i}", "asNumber": 64512}) for i in (1, 2)],
            manifest("BlockAffinity", "t", {"node": "tor", "cidr": "10.244.99.0/26", "state": "confirmed"}),
        ],
    )
    world.run(5)
    assert established(tor) == 2
    for each in (one, two):
        assert pref(each, "10.244.99.0/26") == NORMAL and metric(each, "10.244.99.0/26") == 1024
        assert each.routes()["10.244.99.0/26"] == "via 10.0.0.9", "external before internal, at the same priority"
