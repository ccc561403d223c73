"""Routes that cross the wire and the kernel, with BIRD as the neighbour: a CNI plugin beside us, services, priorities.

Node 1 is routed; node 2 is BIRD as Calico runs it: an internal peer that programs what it hears.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Bird, Routed, resource
from tests.lab.topology import CLUSTER_AS, SOON, Rack, address, block, cluster, flaps

BORROWED, OWN = "10.244.2.9", "10.244.1.9"
NORMAL = 2147483647 - 1024


@pytest.fixture(scope="module")
def rack(lab: Lab) -> Rack:
    return Rack(lab)


@pytest.fixture(scope="module")
def bird(rack: Rack) -> Iterator[Bird]:
    made = Bird(
        rack.machine("bird", 2),
        f"router id {address(2)};\nprotocol device {{}}\n"
        f"protocol static far {{ ipv4; route {block(2)} blackhole; }}\n"
        f"protocol static moving {{ ipv4; route 10.244.3.7/32 blackhole; }}\n"
        f"protocol bgp node1 {{ local {address(2)} as {CLUSTER_AS}; neighbor {address(1)} as {CLUSTER_AS};\n"
        "  connect delay time 1; connect retry time 2; error wait time 1, 2;\n"
        "  ipv4 { import all; next hop self; export filter {\n"
        f'    if proto = "moving" then bgp_local_pref = {NORMAL + 512}; accept; }}; }}; }}\n',
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def node(rack: Rack, bird: Bird) -> Routed:
    made = rack.node(1, *cluster(1, 2, ipv6=False))
    made.start()
    wait_for(lambda: bird.established(address(1)), SOON, "the session is up", state=bird.sessions)
    return made


def workload(namespace: Namespace, name: str, *routes: str) -> None:
    """What a CNI plugin leaves on the host: a veth's end, and host routes to it."""
    namespace.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"p{name}")
    namespace.run("ip", "link", "set", name, "up")
    namespace.run("ip", "link", "set", f"p{name}", "up")
    for route in routes:
        namespace.route(f"add {route} dev {name} scope link proto boot")


def test_a_borrowed_address_of_a_cni_plugin_reaches_the_neighbour_and_goes_with_its_route(
    node: Routed, bird: Bird
) -> None:
    workload(node.namespace, "cali1", f"{BORROWED}/32", f"{OWN}/32", "172.31.0.1/32")
    wait_for(
        lambda: {f"{BORROWED}/32", block(1)} <= set(bird.routes()), SOON, "BIRD has the borrowed address and the block",
        state=bird.routes,
    )  # fmt: skip
    assert not {f"{OWN}/32", "172.31.0.1/32"} & set(bird.routes()), "inside our block, and in no pool"
    assert node.best(f"{BORROWED}/32")["resolved"] == "this node, dev cali1 (kernel route)"
    assert f"{BORROWED}/32" not in node.kernel_routes(), "it is in the kernel already"
    node.namespace.route(f"del {BORROWED}/32 dev cali1")
    wait_for(lambda: f"{BORROWED}/32" not in bird.routes(), SOON, "BIRD has it no more", state=bird.routes)
    node.namespace.route(f"add {BORROWED}/32 dev cali1 scope link")
    wait_for(lambda: f"{BORROWED}/32" in bird.routes(), SOON, "BIRD has it again", state=bird.routes)
    node.namespace.run("ip", "link", "del", "cali1")
    wait_for(lambda: f"{BORROWED}/32" not in bird.routes(), SOON, "it goes with its interface", state=bird.routes)
    assert flaps(node) == {address(2): 1}


def test_service_ranges_and_addresses_are_announced_and_never_programmed(node: Routed, bird: Bird) -> None:
    spec = {"asNumber": CLUSTER_AS, "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]}
    node.put(
        resource("BGPConfiguration", "default", spec),
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.5"},
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": ["10.244.1.5"], "nodeName": "node-1"}],
        },
    )  # fmt: skip
    wait_for(lambda: {"10.96.0.0/12", "10.96.0.5/32"} <= set(bird.routes()), SOON, "BIRD has them", state=bird.routes)
    assert not {"10.96.0.0/12", "10.96.0.5/32"} & set(node.kernel_routes())
    node.put(resource("BGPConfiguration", "default", {"asNumber": CLUSTER_AS}))
    wait_for(lambda: "10.96.0.0/12" not in bird.routes(), SOON, "BIRD has them no more", state=bird.routes)
    assert flaps(node) == {address(2): 1}


def test_pools_of_felix_leave_the_kernel_and_ipip_goes_into_the_tunnel(node: Routed) -> None:
    wait_for(lambda: block(2) in node.kernel_routes(), SOON, "the route is there", state=node.kernel_routes)
    node.put(resource("IPPool", "pods", {"cidr": "10.244.0.0/16", "vxlanMode": "Always"}))
    wait_for(lambda: not node.kernel_routes(), SOON, "all routes of the pool are Felix's", state=node.kernel_routes)
    node.put(resource("IPPool", "pods", {"cidr": "10.244.0.0/16", "ipipMode": "Always"}))
    wait_for(lambda: block(1) in node.kernel_routes(), SOON, "our blackhole is back", state=node.kernel_routes)
    assert block(2) not in node.kernel_routes()
    node.namespace.run("ip", "link", "add", "tunl0", "type", "veth", "peer", "name", "tunl1")
    node.namespace.run("ip", "link", "set", "tunl1", "up")
    node.namespace.run("ip", "link", "set", "tunl0", "up")
    expected = f"via {address(2)} dev tunl0"
    wait_for(
        lambda: node.kernel_routes().get(block(2)) == expected,
        SOON,
        "the route leads into it",
        state=node.kernel_routes,
    )
    assert "onlink" in node.namespace.run("ip", "route", "show", block(2))
    node.put(resource("IPPool", "pods", {"cidr": "10.244.0.0/16", "ipipMode": "CrossSubnet"}))
    expected_direct = f"via {address(2)} dev eth0"
    wait_for(
        lambda: node.kernel_routes().get(block(2)) == expected_direct, SOON, "one subnet", state=node.kernel_routes
    )
    node.put(resource("IPPool", "pods", {"cidr": "10.244.0.0/16"}))
    node.namespace.run("ip", "link", "del", "tunl0")
    assert flaps(node) == {address(2): 1}


def test_priorities_of_v3_32_come_and_go_without_a_flap(node: Routed, bird: Bird) -> None:
    def metrics() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in node.namespace.run("ip", "route", "show", "proto", "120").splitlines():
            words = line.split()
            prefix = words[1] if words[0] == "blackhole" else words[0]
            found.setdefault(prefix, []).append(words[words.index("metric") + 1] if "metric" in words else "0")
        return found

    node.put(resource("ClusterInformation", "default", {"calicoVersion": "v3.32.1"}))
    moving = "10.244.3.7"
    wait_for(
        lambda: metrics().get(moving) == ["512"] and metrics().get(block(2)) in (["1024"], ["2147483547"]),
        SOON, "routes are at their priorities", state=metrics,
    )  # fmt: skip
    assert metrics()[block(1)] == ["0"], "a blackhole has none"
    workload(node.namespace, "cali2", f"{BORROWED}/32 metric 512")
    wait_for(
        lambda: f"BGP.local_pref: {NORMAL + 512}" in bird.ctl("show", "route", "for", f"{BORROWED}/32", "all"),
        SOON, "the metric is on the wire", state=bird.routes,
    )  # fmt: skip
    wait_for(
        lambda: f"BGP.local_pref: {NORMAL}" in bird.ctl("show", "route", "for", block(1), "all"),
        SOON, "and that of a route without one", state=bird.routes,
    )  # fmt: skip
    node.remove("ClusterInformation", "default")
    wait_for(lambda: metrics().get(moving) == ["0"] == metrics().get(block(2)), SOON, "one metric", state=metrics)
    wait_for(
        lambda: "BGP.local_pref: 100" in bird.ctl("show", "route", "for", block(1), "all"), SOON, "100 again",
        state=bird.routes,
    )  # fmt: skip
    assert flaps(node) == {address(2): 1}
