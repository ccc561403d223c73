"""A cluster as Calico's users have it, on one real etcd: two nodes with routed, one with BIRD, and a switch, both families.

What users change while it runs is changed in etcd, as calicoctl writes it, and beside what is asked for nothing may
happen: `quiet` counts how often each session came up, and looks for routes that left a kernel.

Node 1 and 2 are routed's, 3 is BIRD, configured as confd does it; node 1 has a session with the switch, 10.0.0.254.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Bird, Json, Routed, missing, resource
from tests.datastore.etcd_server import P
from tests.lab.etcd import Etcd
from tests.lab.topology import RECONNECT, SOON, Rack, address, block, flaps, node, pools, start

pytestmark = [
    pytest.mark.lab,
    pytest.mark.etcd,
    pytest.mark.skipif(bool(missing("bird")), reason="needs bird"),
]

TOR, TOR_AS, FAR = "10.0.0.254", 65001, "192.0.2.0/24"
FOLDERS = {"Node": "nodes", "IPPool": "ippools", "BGPConfiguration": "bgpconfigurations", "BGPPeer": "bgppeers",
           "BGPFilter": "bgpfilters"}  # fmt: skip
TIMERS = "connect delay time 1; connect retry time 1; error wait time 1, 2;"


def bird_node(password: str = "") -> str:
    """Node 3."""
    secret = f'password "{password}";' if password else ""
    sessions = "".join(
        f"protocol bgp Mesh_{number}_{'6' if six else '4'} {{ local {address(3, ipv6=six)} as 64512;\n"
        f" neighbor {address(number, ipv6=six)} as 64512; multihop; graceful restart on; {TIMERS} {secret}\n"
        f" ipv{'6' if six else '4'} {{ import all; export where source ~ [RTS_BGP, RTS_STATIC]; gateway recursive; }}; }}\n"
        for number in (1, 2)
        for six in (False, True)
    )
    kernels = "".join(
        f"protocol kernel {{ learn; persist; ipv{version} {{ import none;\n"
        " export where source ~ [RTS_BGP, RTS_STATIC]; }; }\n"
        f"protocol static {{ ipv{version}; route {block(3, ipv6=version == 6)} blackhole; }}\n"
        for version in (4, 6)
    )
    return f"router id 10.0.0.3; protocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n{kernels}{sessions}"


def bird_switch() -> str:
    sessions = "".join(
        f"protocol bgp node{number} {{ local {TOR} as {TOR_AS}; neighbor {address(number)} as 64512; multihop;\n"
        f" {TIMERS} passive on; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}\n"
        for number in (1, 2)
    )
    return f"router id {TOR}; protocol device {{}}\nprotocol static {{ ipv4; route {FAR} blackhole; }}\n{sessions}"


@dataclass
class Cluster:
    lab: Lab
    rack: Rack
    etcd: Etcd
    nodes: dict[int, Routed]
    bird: Bird
    switch: Bird
    secrets: dict[int, Path]
    quiets: int = 0

    def put(self, *manifests: Json) -> None:
        for manifest in manifests:
            self.etcd.put_resource(FOLDERS[manifest["kind"]], manifest)

    def delete(self, kind: str, name: str) -> None:
        one = self.nodes[1]
        words = ("-m", "routed.cli.main", "delete", kind, name, "--config", str(one.config))
        one.namespace.run(sys.executable, *words)

    def configure(self, **spec: object) -> None:
        self.put(resource("BGPConfiguration", "default", {"asNumber": 64512, **spec}))

    def write(self, key: str, password: str, *numbers: int) -> None:
        """The file of a Secret, on these nodes."""
        for number in numbers:
            (self.secrets[number] / "bgp").mkdir(parents=True, exist_ok=True)
            (self.secrets[number] / "bgp" / key).write_text(password)

    def meshed(self) -> bool:
        return all(
            self.nodes[number].established(*(address(other, ipv6=six) for other in {1, 2, 3} - {number}))
            for number in (1, 2)
            for six in (False, True)
        )

    def whole(self) -> bool:
        """Every kernel has everybody's blocks, by who has them."""
        return (
            all(
                self.nodes[number]
                .kernel_routes(ipv6=six)
                .get(block(other, ipv6=six), "")
                .startswith("via" if number != other else "black")
                for number in (1, 2)
                for other in (1, 2, 3)
                for six in (False, True)
            )
            and all("via" in self.bird.namespace.routes().get(block(number), "") for number in (1, 2))
            and all(
                "via" in self.bird.namespace.routes(ipv6=True).get(block(number, ipv6=True), "") for number in (1, 2)
            )
        )

    def paths(self) -> dict[str, int]:
        """How many ways node 1 and node 3 know to each other's blocks."""
        found = {}
        for six in (False, True):
            found[block(3, ipv6=six)] = len(self.nodes[1].route(block(3, ipv6=six)).get("candidates", []))
            shown = self.bird.ctl("show", "route", "for", block(1, ipv6=six))
            found[block(1, ipv6=six)] = shown.count("unicast [Mesh_")
        return found

    def problems(self, number: int) -> list[str]:
        """Those of a node but that one of the BIRDs tried to connect while nobody asked for it."""
        return [text for text in self.nodes[number].problems() if "times and was refused" not in text]

    def told(self) -> str:
        return "\n".join(f"{number}: {each.sessions()} {each.problems()}" for number, each in self.nodes.items())

    @contextmanager
    def quiet(self, *but: str, routes: bool = True) -> Iterator[None]:
        """No session comes up anew, those with addresses `but` excepted; with `routes`, no kernel loses one."""
        self.quiets += 1
        before = {number: flaps(each) for number, each in self.nodes.items()}
        monitors = [
            space.start(f"monitor-{self.quiets}", "ip", "monitor", "route")
            for space in (*(each.namespace for each in self.nodes.values()), self.bird.namespace)
        ]
        yield
        after = {number: flaps(each) for number, each in self.nodes.items()}
        for number, sessions in before.items():
            for peer, count in sessions.items():
                if peer not in but and peer in after[number]:
                    assert after[number][peer] == count, f"the session of node-{number} with {peer} came up anew"
        lost = [line for each in monitors for line in each.text().splitlines() if line.startswith("Deleted")]
        for each in monitors:
            each.stop()
        assert not routes or not lost


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Cluster:
    rack = Rack(lab)
    etcd = Etcd(rack.machine("store", 100), address(100))
    etcd.start()
    switch = Bird(rack.machine("switch", 254), bird_switch())
    bird = Bird(rack.machine("node-3", 3), bird_node())
    secrets = {}
    nodes: dict[int, Routed] = {}
    for number in (1, 2):
        nodes[number] = rack.node(number, datastore={"type": "etcd", "endpoints": [etcd.url]})
        secrets[number] = nodes[number].folder / "secrets"
        secrets[number].mkdir()
        nodes[number].configure(secrets={"dir": str(secrets[number])})
    made = Cluster(lab, rack, etcd, nodes, bird, switch, secrets)
    made.configure()
    made.put(*pools(), *(node(number, labels={"rack": "a"} if number == 1 else {}) for number in (1, 2, 3)))
    made.put(resource("BGPPeer", "switch", {"peerIP": TOR, "asNumber": TOR_AS, "nodeSelector": "rack == 'a'"}))
    for number in (1, 2, 3):
        for six in (False, True):
            name = block(number, ipv6=six).replace("/", "-")
            etcd.put(f"/calico/ipam/v2/host/node-{number}/ipv{6 if six else 4}/block/{name}", {"state": "confirmed"})
    for each in (switch, bird):
        each.start()
    start(*nodes.values())
    return made


@pytest.fixture
def settled(cluster: Cluster) -> Iterator[Cluster]:
    """All sessions are up and all routes in place, before a test and after it."""
    one = cluster.nodes[1]

    def ready() -> bool:
        return cluster.meshed() and one.established(TOR) and cluster.whole() and FAR in one.kernel_routes()

    wait_for(ready, RECONNECT, "the cluster is whole", state=cluster.told)
    yield cluster
    wait_for(ready, RECONNECT, "the cluster is as it was", state=cluster.told)
    wait_for(lambda: not cluster.problems(1) and not cluster.problems(2), SOON, "nobody complains", state=cluster.told)


def test_both_families_are_sessions_of_their_own(settled: Cluster) -> None:
    for number, routed in settled.nodes.items():
        rows = routed.neighbors()
        others = {address(other, ipv6=six) for other in {1, 2, 3} - {number} for six in (False, True)}
        assert rows.keys() - {TOR} == others
        for peer in others:
            assert list(rows[peer]["families"]) == ["ipv6-unicast" if ":" in peer else "ipv4-unicast"]
            # as texts, "10.0.0.1" < "10.0.0.2" < "10.0.0.3", and so do their twins
            assert rows[peer]["passive"] is (peer > address(number, ipv6=":" in peer))
    assert settled.nodes[1].status()["notes"] == []


def test_a_session_outlives_the_resource_that_asks_for_it(settled: Cluster) -> None:
    """A BGPPeer for a node of the mesh, renamed, and gone again: with routed and with BIRD at the other end."""
    one, two = settled.nodes[1], settled.nodes[2]

    def names() -> tuple[str, str, str]:
        return (
            one.neighbors()["10.0.0.2"]["name"],
            two.neighbors()["10.0.0.1"]["name"],
            two.neighbors()["10.0.0.3"]["name"],
        )

    def asked_by(why: str) -> bool:
        return one.neighbors()["10.0.0.2"]["why"] == why

    with settled.quiet():
        peer = {"peerIP": "10.0.0.2", "asNumber": 64512}
        settled.put(resource("BGPPeer", "pair", peer))
        wanted = ("Global_10_0_0_2", "Node_10_0_0_1", "Node_10_0_0_3")
        wait_for(lambda: names() == wanted, SOON, "it is the BGPPeer's", state=names)
        assert settled.problems(1) == [], "a cluster that is set up like this is healthy"
        assert any("node-to-node mesh: not used for 10.0.0.2" in note for note in one.status()["notes"])
        assert "problems: none\nnotes: 1" in one.ctl("status")
        settled.put(resource("BGPPeer", "renamed", peer))
        settled.delete("bgppeer", "pair")
        wait_for(lambda: asked_by("BGPPeer renamed"), SOON, "another one's", state=lambda: one.neighbors()["10.0.0.2"])
        settled.delete("bgppeer", "renamed")
        wanted = ("Mesh_10_0_0_2", "Mesh_10_0_0_1", "Mesh_10_0_0_3")
        wait_for(lambda: names() == wanted, SOON, "it is the mesh's again", state=names)


def test_a_mesh_password_that_comes_before_its_file_and_is_changed(settled: Cluster) -> None:
    one, two = settled.nodes[1], settled.nodes[2]
    mesh = [address(number, ipv6=six) for number in (1, 2, 3) for six in (False, True)]
    with settled.quiet():
        settled.configure(nodeMeshPassword={"secretKeyRef": {"name": "bgp", "key": "mesh"}})
        goes_on = "so no session begins; one that is up goes on as it is"
        for each in (one, two):
            wait_for(lambda each=each: goes_on in str(each.problems()), SOON, "it is told", state=settled.told)
        assert settled.meshed() and settled.whole()

    def protected() -> bool:
        return settled.meshed() and all(
            row["password"] == "bgp/mesh"
            for each in (one, two)
            for peer, row in each.neighbors().items()
            if peer != TOR
        )

    with settled.quiet(*mesh, routes=False):
        settled.write("mesh", "first", 1, 2)
        settled.bird.configure(bird_node("first"))
        wait_for(protected, RECONNECT, "the mesh is up with its password", state=settled.told)
        assert settled.problems(1) == [] and settled.problems(2) == []
        assert not any("password is missing" in (row["lastError"] or "") for row in one.neighbors().values())
    with settled.quiet(*mesh, routes=False):
        settled.write("mesh", "second", 1, 2)
        settled.bird.configure(bird_node("second"))
        wait_for(
            lambda: one.log().count("the password in Secret bgp/mesh changed") >= 4 and settled.meshed(),
            RECONNECT,
            "the mesh is up with the other password",
            state=settled.told,
        )
    with settled.quiet(*mesh, routes=False):
        settled.configure()
        settled.bird.configure(bird_node())
        wait_for(
            lambda: settled.meshed() and not any(row["password"] for row in one.neighbors().values()),
            RECONNECT,
            "the mesh is up without",
            state=settled.told,
        )


def test_a_node_becomes_a_reflector_and_the_mesh_ends(settled: Cluster) -> None:
    """Node 2 leaves the mesh with a cluster id and serves the others; then they have no mesh but through it."""
    one, two = settled.nodes[1], settled.nodes[2]

    def types() -> set[str]:
        return {row["type"] for row in two.neighbors().values()}

    def reflects(ways: int) -> None:
        wait_for(
            lambda: set(settled.paths().values()) == {ways}, SOON, f"each knows {ways} ways to the other",
            state=lambda: f"{settled.paths()} {settled.told()}",
        )  # fmt: skip

    with settled.quiet():
        peering = {"nodeSelector": "!has(rr)", "peerSelector": "has(rr)"}
        settled.put(resource("BGPPeer", "reflectors", peering))
        settled.put(node(2, labels={"rr": "yes"}, routeReflectorClusterID="224.0.0.2"))
        wait_for(
            lambda: (
                one.neighbors()["10.0.0.2"]["name"] == "Node_10_0_0_2"
                and types() == {"internal, route-reflection client"}
            ),
            SOON,
            "node 2 is a reflector",
            state=settled.told,
        )
        reflects(2)
    with settled.quiet():
        settled.configure(nodeToNodeMeshEnabled=False)
        wait_for(lambda: one.sessions().keys() == {"10.0.0.2", "fd00::2", TOR}, SOON, "the mesh is off")
        wait_for(settled.whole, SOON, "what the others have comes by the reflector", state=settled.told)
        reflects(1)
        best = one.best(block(3))
        assert (best["from"], best["nextHop"], best["originatorId"]) == ("Node_10_0_0_2", "10.0.0.3", "10.0.0.3")
        assert best["clusterList"] == ["224.0.0.2"]
    settled.configure()
    wait_for(settled.meshed, RECONNECT, "the mesh is back", state=settled.told)
    reflects(2)
    with settled.quiet():
        settled.put(node(2))
        settled.delete("bgppeer", "reflectors")
        wait_for(lambda: types() == {"internal"}, SOON, "node 2 is a node like the others", state=settled.told)
        reflects(1)


def test_the_mesh_is_switched_off_and_on(settled: Cluster) -> None:
    one = settled.nodes[1]
    with settled.quiet(*(address(number, ipv6=six) for number in (1, 2, 3) for six in (False, True)), routes=False):
        settled.configure(nodeToNodeMeshEnabled=False)
        wait_for(lambda: one.sessions() == {TOR: "Established"}, SOON, "the switch alone is left", state=settled.told)
        wait_for(lambda: block(2) not in one.kernel_routes(), SOON, "what came by the mesh is gone")
        assert FAR in one.kernel_routes() and block(1) in settled.switch.routes()
        settled.configure()
        wait_for(settled.meshed, RECONNECT, "the mesh is back", state=settled.told)


def test_labels_decide_which_nodes_a_peer_is_for(settled: Cluster) -> None:
    two = settled.nodes[2]
    with settled.quiet():
        settled.put(node(2, labels={"rack": "a"}))
        wait_for(lambda: two.established(TOR), RECONNECT, "the switch is a peer of node 2", state=settled.told)
        wait_for(lambda: FAR in two.kernel_routes(), SOON, "and so is its route")
    with settled.quiet(routes=False):
        settled.put(node(2, labels={"rack": "b"}))
        wait_for(lambda: TOR not in two.sessions() and FAR not in two.kernel_routes(), SOON, "no more")


def test_a_filter_changes_without_a_reset(settled: Cluster) -> None:
    """What came in is judged again, what goes out is withdrawn and announced: the session stays."""
    one, switch = settled.nodes[1], settled.switch
    peer = {"peerIP": TOR, "asNumber": TOR_AS, "nodeSelector": "rack == 'a'"}

    def rule(cidr: str, action: str = "Reject", **more: object) -> Json:
        return {"action": action, "matchOperator": "Equal", "cidr": cidr, **more}

    with settled.quiet(routes=False):
        settled.put(resource("BGPFilter", "f", {"exportV4": [rule(block(1))]}))
        settled.put(resource("BGPPeer", "switch", {**peer, "filters": ["f"]}))
        wait_for(lambda: block(1) not in switch.routes(), SOON, "the block is withdrawn", state=switch.routes)
        assert block(2) in switch.routes() and FAR in one.kernel_routes()
        settled.put(resource("BGPFilter", "f", {"importV4": [rule(FAR)]}))
        wait_for(lambda: block(1) in switch.routes(), SOON, "it is announced again", state=switch.routes)
        wait_for(lambda: FAR not in one.kernel_routes(), SOON, "what comes in is refused", state=one.kernel_routes)
        assert "refused on import" in str(one.route(FAR)), "and says by what"
        community = {"addCommunity": {"value": "64512:77"}}
        settled.put(resource("BGPFilter", "f", {"exportV4": [rule(block(1), "Accept", operations=[community])]}))
        wait_for(
            lambda: "(64512,77)" in switch.routes().get(block(1), ""), SOON, "it has a community", state=switch.routes
        )
        wait_for(lambda: FAR in one.kernel_routes(), SOON, "what comes in is taken", state=one.kernel_routes)
        settled.put(resource("BGPPeer", "switch", peer))
        settled.delete("bgpfilter", "f")
        wait_for(lambda: "64512,77" not in switch.routes().get(block(1), "64512,77"), SOON, "it is as it was")


def test_a_pod_that_speaks_bgp(settled: Cluster) -> None:
    """A selected pod connects to the address the configuration gives; its routes go through the cluster, and go with it."""
    one = settled.nodes[1]
    pod: Namespace = settled.lab.namespace("pod")
    settled.lab.link(one.namespace.port("cali1", "169.254.0.179/32"), pod.port("eth0", "10.244.1.5/32"))
    one.namespace.route("add 10.244.1.5/32 dev cali1 scope link")
    pod.route("add 169.254.0.179/32 dev eth0")
    pod.route("add default via 169.254.0.179 onlink dev eth0")
    bird = Bird(
        pod,
        "router id 10.244.1.5; protocol device {}\nprotocol static { ipv4; route 10.244.200.0/24 blackhole; }\n"
        "protocol bgp { local 10.244.1.5 as 65100; neighbor 169.254.0.179 as 64512; multihop;\n"
        f" {TIMERS} ipv4 {{ import all; export all; }}; }}\n",
    )
    bird.start()
    path = f"{P}workloadendpoints/default/node--1-k8s-router-eth0"
    spec = {"orchestrator": "k8s", "node": "node-1", "pod": "router", "endpoint": "eth0", "interfaceName": "cali1",
            "ipNetworks": ["10.244.1.5/32"]}  # fmt: skip
    endpoint = resource("WorkloadEndpoint", "node--1-k8s-router-eth0", spec, app="router")
    endpoint["metadata"]["namespace"] = "default"
    learned = "10.244.200.0/24"
    with settled.quiet():
        settled.configure(localWorkloadPeeringIPV4="169.254.0.179")
        settled.put(resource("BGPPeer", "pods", {"localWorkloadSelector": "app == 'router'", "asNumber": 65100}))
        settled.etcd.put(path, endpoint)
        wait_for(lambda: bird.established("169.254.0.179"), RECONNECT, "the pod's session is up", state=settled.told)
        wait_for(
            lambda: learned in settled.nodes[2].kernel_routes(),
            SOON,
            "its route is at the next node",
            state=settled.told,
        )
        wait_for(
            lambda: one.kernel_routes().get(learned) == "via 10.244.1.5 dev cali1", SOON, "and at its own, to the pod",
            state=one.kernel_routes,
        )  # fmt: skip
        wait_for(lambda: block(2) in bird.routes(), SOON, "the pod hears of the cluster", state=bird.routes)
        assert one.neighbors()["10.244.1.5"]["name"] == "Local_Workload_10_244_1_5"
    with settled.quiet(routes=False):
        settled.delete("workloadendpoint", "node--1-k8s-router-eth0")
        wait_for(
            lambda: learned not in settled.nodes[2].kernel_routes() and "10.244.1.5" not in one.sessions(),
            SOON,
            "it goes with the pod",
            state=settled.told,
        )
        settled.delete("bgppeer", "pods")
        settled.configure()
    bird.stop()
    one.namespace.ip("link del cali1")
