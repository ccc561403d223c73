"""Passwords, TTL security and ways to a peer, against routers that do them too."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, Frr, Json, Routed, Router, resource
from tests.interop.tors import BLOCK4, NODE4, NODE6, NODE_AS, TOR4, TOR6, TOR_AS, TORS, node_and_tor, wait_for_sessions
from tests.lab.topology import SOON, Rack, affinity, configuration, node, pools, start

pytestmark = pytest.mark.lab


class Secrets:
    """A folder of Secrets, mounted as Kubernetes does: keys are links into a folder that a link names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = 0

    def write(self, secret: str, **keys: str) -> None:
        self.versions += 1
        folder = self.folder / secret
        version = folder / f"..{self.versions}"
        version.mkdir(parents=True)
        for key, value in keys.items():
            (version / key).write_text(value)
            if not (folder / key).is_symlink():
                (folder / key).symlink_to(f"..data/{key}")
        (folder / "..fresh").symlink_to(version.name)
        os.replace(folder / "..fresh", folder / "..data")


def with_secrets(routed: Routed) -> Secrets:
    made = Secrets(routed.folder / "secrets")
    made.folder.mkdir()
    routed.configure(secrets={"dir": str(made.folder)})
    return made


def password(key: str, secret: str = "bgp") -> Json:
    return {"secretKeyRef": {"name": secret, "key": key}}


def sessions_of(routed: Routed, peer: str) -> int:
    """How many sessions there were with a peer; more than one also where a router takes a collision for an end of all."""
    return routed.log().count(f"{peer}: OpenConfirm -> Established")


def guard_bird(tor: Router, four: str, six: str) -> None:
    assert isinstance(tor, Bird)
    for address, word in ((NODE4, four), (NODE6, six)):
        neighbor = f"neighbor {address} as {NODE_AS};"
        config = re.sub(f'{neighbor}( password "[^"]*"; ttl security on; direct;)?', neighbor, tor.config)
        tor.config = config.replace(neighbor, f'{neighbor} password "{word}"; ttl security on; direct;')


def guard_frr(tor: Router, four: str, six: str) -> None:
    assert isinstance(tor, Frr)
    for address, word in ((NODE4, four), (NODE6, six)):
        lines = (f"neighbor {address} password {word}", f"neighbor {address} ttl-security hops 1")
        if tor.alive:
            tor.configure(f"router bgp {TOR_AS}", lines[0])
        else:
            at = f" neighbor {address} timers 3 9\n"
            tor.config = tor.config.replace(at, "".join(f" {line}\n" for line in lines) + at)


GUARDS: dict[str, Callable[[Router, str, str], None]] = {"bird": guard_bird, "frr": guard_frr}


@pytest.mark.parametrize("make", GUARDS)
def test_passwords_and_ttl_security_with_a_switch(lab: Lab, make: str) -> None:
    routed, namespace = node_and_tor(lab)
    secrets = with_secrets(routed)
    secrets.write("bgp", four="ein Wort", six="noch-1\n")
    for name, address, key in (("tor4", TOR4, "four"), ("tor6", TOR6, "six")):
        spec = {"node": "node", "peerIP": address, "asNumber": TOR_AS, "ttlSecurity": 1, "password": password(key)}
        routed.put(resource("BGPPeer", name, spec))
    tor = TORS[make](namespace)
    GUARDS[make](tor, "ein Wort" if make == "bird" else "einWort", "noch-1")
    if make == "frr":  # its command line has no blanks in passwords
        secrets.write("bgp", four="einWort", six="noch-1\n")
    tor.launch()
    routed.start()
    wait_for_sessions(routed, tor)
    before = [sessions_of(routed, name) for name in ("Node_10_0_0_254", "Node_fd00__254")]
    rows = routed.neighbors()
    assert (rows[TOR4]["password"], rows[TOR4]["ttlSecurity"]) == ("bgp/four", 1)

    # this side first: the session with the other password goes, the other stays
    secrets.write("bgp", four="an0ther", six="noch-1")
    wait_for(lambda: routed.sessions()[TOR4] != "Established", SOON, "the session is reset", state=lab.report)
    assert routed.sessions()[TOR6] == "Established"
    GUARDS[make](tor, "an0ther", "noch-1")
    if isinstance(tor, Bird):
        tor.configure(tor.config)
    wait_for(lambda: routed.established(TOR4, TOR6), 60.0, "both are back", state=lab.report)
    assert sessions_of(routed, "Node_10_0_0_254") > before[0] and sessions_of(routed, "Node_fd00__254") == before[1]

    wait_for(lambda: routed.problems() == [], SOON, "nothing is wrong", state=routed.problems)
    told = routed.log() + str(routed.neighbors()) + str(routed.status())
    for word in ("ein Wort", "einWort", "noch-1", "an0ther"):
        assert word not in told


def test_a_missing_secret_is_said_and_nothing_is_tried(lab: Lab) -> None:
    routed, namespace = node_and_tor(lab)
    spec = {"node": "node", "peerIP": TOR4, "asNumber": TOR_AS, "password": password("late")}
    routed.put(resource("BGPPeer", "tor4", spec))
    tor = TORS["bird"](namespace)  # which would take us without
    tor.launch()
    routed.start()
    wait_for(lambda: routed.established(TOR6), SOON, "the session without password is up", state=lab.report)
    (problem,) = (text for text in routed.problems() if not text.startswith(TOR4))
    assert problem == (
        "BGPPeer tor4: spec.password: there is no bgp/late: secrets.dir, the folder it would be in, is not set in routed's "
        "own configuration, so no session begins; one that is up goes on as it is"
    )
    wait_for(
        lambda: any(text.startswith(f"{TOR4} connected") for text in routed.problems()),
        SOON,
        "the switch has tried, and was refused",
        state=lab.report,
    )
    assert routed.sessions()[TOR4] == "Idle"
    assert routed.neighbors()[TOR4]["lastError"].startswith("its password is missing: there is no bgp/late")

    secrets = with_secrets(routed)
    routed.processes[0].signal(signal.SIGHUP)
    secrets.write("bgp", late="now")
    assert isinstance(tor, Bird)
    tor.configure(tor.config.replace(f"neighbor {NODE4} as", f'password "now"; neighbor {NODE4} as'))
    wait_for(lambda: routed.established(TOR4, TOR6), 60.0, "both are up", state=lab.report)
    wait_for(lambda: routed.problems() == [], SOON, "nothing is wrong", state=routed.problems)

    # the other is up without one: it goes on until its password is there, whatever resource asks for it
    came_up = sessions_of(routed, "Node_fd00__254")
    six = {"peerIP": TOR6, "asNumber": TOR_AS, "password": password("six")}
    routed.put(resource("BGPPeer", "tor6", {"node": "node", **six}))
    wait_for(lambda: len(routed.problems()) == 1, SOON, "it is told", state=routed.problems)
    routed.put(resource("BGPPeer", "anew", six))
    wait_for(lambda: "Global_fd00__254: " in routed.log(), SOON, "another resource asks for it", state=lab.report)
    row = routed.neighbors()[TOR6]
    assert (row["state"], row["name"], row["establishedCount"]) == ("Established", "Global_fd00__254", came_up)
    assert row["waitsForPassword"].startswith("its password is missing: there is no bgp/six")
    assert "goes on as is" in routed.ctl("show", "neighbors", TOR6)
    secrets.write("bgp", late="now", six="then")
    tor.configure(tor.config.replace(f"neighbor {NODE6} as", f'password "then"; neighbor {NODE6} as'))
    wait_for(
        lambda: routed.neighbors()[TOR6]["password"] == "bgp/six" and routed.established(TOR4, TOR6),
        60.0,
        "both are up, each with its password",
        state=lab.report,
    )
    wait_for(lambda: routed.problems() == [], SOON, "nothing is wrong", state=routed.problems)


def test_a_mesh_with_a_password_beside_a_peer_without(lab: Lab) -> None:
    rack = Rack(lab)
    cluster = [
        configuration(nodeMeshPassword=password("mesh"), bindMode="NodeIP"),
        *pools(),
        *(node(number) for number in (1, 2)),
        *(affinity(number, f"10.244.{number}.0/26") for number in (1, 2)),
        resource("BGPPeer", "tor", {"node": "node-1", "peerIP": "10.0.0.9", "asNumber": 65100}),
    ]
    one, two = (rack.node(number, *cluster) for number in (1, 2))
    kept = [with_secrets(routed) for routed in (one, two)]
    for secrets in kept:
        secrets.write("bgp", mesh="first")
    tor = Bird(
        rack.machine("tor", 9),
        "router id 10.0.0.9; protocol device {}\n"
        "protocol bgp { local 10.0.0.9 as 65100; neighbor 10.0.0.1 as 64512; multihop;\n"
        " ipv4 { import all; export none; }; }\n",
    )
    tor.start()
    start(one, two)
    others = ("10.0.0.2", "fd00::2")
    wait_for(lambda: one.established(*others, "10.0.0.9"), 60.0, "all sessions are up", state=lab.report)
    names = ("Mesh_10_0_0_2", "Mesh_fd00__2", "Node_10_0_0_9")
    before = {name: sessions_of(one, name) for name in names}
    for secrets in kept:
        secrets.write("bgp", mesh="second")
    wait_for(
        lambda: one.established(*others) and all(sessions_of(one, name) > before[name] for name in names[:2]),
        60.0,
        "the mesh is up with the new password",
        state=lab.report,
    )
    assert sessions_of(one, "Node_10_0_0_9") == before["Node_10_0_0_9"], "no matter of the switch"
    before = {name: sessions_of(one, name) for name in names}

    listening = one.namespace.run("ss", "-Hltn", "sport = :179")
    assert "10.0.0.1:179" in listening and "[fd00::1]:179" in listening and "0.0.0.0:179" not in listening
    one.put(configuration(nodeMeshPassword=password("mesh")))
    wait_for(lambda: "0.0.0.0:179" in one.namespace.run("ss", "-Hltn", "sport = :179"), SOON, "every address listens")
    assert one.established(*others, "10.0.0.9") and before == {name: sessions_of(one, name) for name in names}
    two.stop()
    two.start()
    wait_for(lambda: one.established(*others), 60.0, "a restarted node comes back", state=lab.report)


def test_a_peer_behind_a_gateway(lab: Lab) -> None:
    """reachableBy leads there, TTL security allows for the router between, localASNumber is who we are there."""
    namespace, router, far = (lab.namespace(name, forward=name == "router") for name in ("node", "router", "far"))
    lab.link(namespace.port("eth0", "10.0.0.1/24"), router.port("eth0", "10.0.0.254/24"))
    lab.link(router.port("eth1", "172.16.0.254/24"), far.port("eth0", "172.16.0.1/24"))
    far.route("add default via 172.16.0.254")
    peer = {
        "node": "node",
        "peerIP": "172.16.0.1",
        "asNumber": 65200,
        "localASNumber": 64999,
        "reachableBy": "10.0.0.254",
        "ttlSecurity": 2,
    }
    routed = Routed(namespace)
    routed.put(
        resource("Node", "node", {"bgp": {"ipv4Address": "10.0.0.1/24"}}),
        resource("IPPool", "pods", {"cidr": "10.244.0.0/16"}),
        resource("BlockAffinity", "block4", {"node": "node", "cidr": BLOCK4}),
        resource("BGPPeer", "far", peer),
    )
    bird = Bird(
        far,
        "router id 172.16.0.1; protocol device {}\n"
        "protocol static { ipv4; route 192.0.2.0/24 blackhole; }\n"
        "protocol bgp node { local 172.16.0.1 as 65200; neighbor 10.0.0.1 as 64999; multihop 2; ttl security on;\n"
        " connect delay time 1; connect retry time 2; error wait time 1, 2;\n"
        " ipv4 { import all; export all; }; }\n",
    )
    bird.start()
    routed.start()
    wait_for(lambda: bird.established("10.0.0.1"), 40.0, "the session is up", state=lab.report)
    wait_for(lambda: "192.0.2.0/24" in routed.kernel_routes(), SOON, "its route is in the kernel", state=lab.report)
    assert routed.kernel_routes()["172.16.0.1"] == "via 10.0.0.254 dev eth0"
    assert routed.kernel_routes()["192.0.2.0/24"] == "via 10.0.0.254 dev eth0"
    wait_for(lambda: BLOCK4 in bird.routes(), SOON, "the block is there", state=lab.report)
    path = next(line for line in bird.routes()[BLOCK4].splitlines() if "as_path" in line)
    assert path.split(":")[1].split() == ["64999"], "the local AS alone"
    assert "172.16.0.1/32" not in bird.routes(), "a way is no announcement"

    routed.put(resource("BGPPeer", "far", {**peer, "ttlSecurity": 1}))
    wait_for(lambda: not routed.established("172.16.0.1"), SOON, "the session is reset", state=lab.report)
    refused = "TcpExtTCPMinTTLDrop"
    wait_for(
        lambda: int(namespace.run("nstat", "-asz", refused).split(refused)[1].split()[0]) > 0,
        SOON,
        "what comes from two hops away is dropped",
        state=lab.report,
    )
    wait_for(lambda: not bird.established("10.0.0.1"), SOON, "the other end knows", state=bird.sessions)
    routed.put(resource("BGPPeer", "far", peer))
    wait_for(lambda: bird.established("10.0.0.1"), 60.0, "two hops are enough again", state=lab.report)
    routed.remove("BGPPeer", "far")
    wait_for(lambda: "172.16.0.1" not in routed.kernel_routes(), SOON, "the way is gone", state=lab.report)


def test_a_pod_as_a_peer(lab: Lab) -> None:
    """BIRD in a pod connects to the address Felix puts on the node's end of its interface."""
    namespace, pod = lab.namespace("node", forward=True), lab.namespace("pod")
    lab.link(namespace.port("cali1", "169.254.0.179/32"), pod.port("eth0", "10.244.1.5/32"))
    namespace.route("add 10.244.1.5/32 dev cali1 scope link")
    pod.route("add 169.254.0.179/32 dev eth0")
    lab.link(namespace.port("eth0", "10.0.0.1/24"), lab.namespace("wire").port("eth0"))
    endpoint = resource(
        "WorkloadEndpoint",
        "node-k8s-router-eth0",
        {
            "orchestrator": "k8s",
            "node": "node",
            "pod": "router",
            "endpoint": "eth0",
            "interfaceName": "cali1",
            "ipNetworks": ["10.244.1.5/32"],
        },
        app="router",
    )
    endpoint["metadata"]["namespace"] = "default"
    routed = Routed(namespace)
    routed.put(
        resource("Node", "node", {"bgp": {"ipv4Address": "10.0.0.1/24"}}),
        resource("IPPool", "pods", {"cidr": "10.244.0.0/16"}),
        resource("BlockAffinity", "block4", {"node": "node", "cidr": BLOCK4}),
        resource("BGPPeer", "pods", {"localWorkloadSelector": "app == 'router'", "asNumber": 64516}),
        endpoint,
    )
    bird = Bird(
        pod,
        "router id 10.244.1.5; protocol device {}\n"
        "protocol static { ipv4; route 44.0.0.0/16 blackhole; }\n"
        "protocol bgp { local 10.244.1.5 as 64516; neighbor 169.254.0.179 as 64512; multihop;\n"
        " connect delay time 1; ipv4 { import all; export all; }; }\n",
    )
    bird.start()
    routed.start()
    wait_for(lambda: bird.established("169.254.0.179"), 40.0, "the session is up", state=lab.report)
    wait_for(lambda: "44.0.0.0/16" in routed.kernel_routes(), SOON, "the pod's route is there", state=lab.report)
    assert routed.kernel_routes()["44.0.0.0/16"] == "via 10.244.1.5 dev cali1"
    wait_for(lambda: BLOCK4 in bird.routes(), SOON, "the pod hears of the block", state=lab.report)
    assert routed.problems() == []
    routed.remove("WorkloadEndpoint", "node-k8s-router-eth0")
    wait_for(lambda: "44.0.0.0/16" not in routed.kernel_routes(), SOON, "the pod is gone", state=lab.report)
    wait_for(lambda: routed.sessions() == {}, SOON, "and its session", state=routed.sessions)
