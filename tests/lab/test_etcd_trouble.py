"""Three real members of etcd, a node, BIRD as its neighbour: whatever happens to etcd, no session and no route goes.

BIRD counts what it is told: a withdrawal that is taken back before anybody looks is seen all the same. The members are in
a namespace of their own, so that a cable can be pulled between them and the node. Every test leaves etcd as it was, and
ends with a block that is written then and reaches BIRD: the node follows again.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from routed.testing.lab import Lab, Namespace, stays, wait_for
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import Bird, Routed, missing, resource
from tests.datastore.etcd_server import PASSWORD, Cluster, Member, P
from tests.lab.test_metrics import ask, value

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(bool(missing("bird")), reason="needs bird"),
]

#: Seconds until a peer that says nothing is given up, twice over, and what a busy machine adds.
NOTICED = 90

BIRD = """
router id 10.0.0.2;
protocol device {}
protocol bgp node { local 10.0.0.2 as 65010; neighbor 10.0.0.1 as 64512; ipv4 { import all; export none; }; }
"""

OBJECTS: dict[str, object] = {
    f"{P}nodes/a": resource("Node", "a", {"bgp": {"ipv4Address": "10.0.0.1/24"}}),
    f"{P}ippools/v4": resource("IPPool", "v4", {"cidr": "10.244.0.0/16"}),
    f"{P}bgppeers/bird": resource("BGPPeer", "bird", {"peerIP": "10.0.0.2", "asNumber": 65010}),
}


def affinity(number: int) -> str:
    return f"/calico/ipam/v2/host/a/ipv4/block/10.244.{number}.0-26"


@dataclass
class Site:
    lab: Lab
    etcd: Cluster
    node: Routed
    bird: Bird
    store: Namespace
    blocks: int = 0
    objects: dict[str, object] = field(default_factory=dict)

    def add_block(self) -> str:
        """One more block of the node's, and its route."""
        self.blocks += 1
        path = affinity(self.blocks)
        self.objects[path] = {"state": "confirmed", "deleted": False}
        self.etcd.put(path, self.objects[path])
        return f"10.244.{self.blocks}.0/26"

    def withdrawals(self) -> int:
        found = re.search(r"Import withdraws: +(\d+)", self.bird.ctl("show", "protocols", "all", "node"))
        assert found is not None
        return int(found[1])

    def times_up(self) -> int:
        return int(self.node.neighbors()["10.0.0.2"]["establishedCount"])

    def follows(self) -> None:
        """A block that is written now reaches BIRD."""
        prefix = self.add_block()
        wait_for(lambda: prefix in self.bird.routes(), NOTICED, f"{prefix} is at BIRD", state=self.lab.report)

    def ready(self) -> tuple[int, str]:
        status, _, text = ask(self.node.namespace, "/readyz")
        return status, text

    def is_stale(self) -> bool:
        """The node is still ready, and says that what it knows is old, in words and in numbers."""
        status, text = self.ready()
        return (
            status == 200
            and re.search(r"note: what the datastore said last is from \d+ s ago: etcd ", text) is not None
            and value(self.node, "routed_datastore_connected") == 0
            and value(self.node, "routed_datastore_age_seconds") >= 1
        )

    def is_fresh(self) -> bool:
        status, text = self.ready()
        connected = value(self.node, "routed_datastore_connected") == 1
        return status == 200 and "note:" not in text and connected

    def used(self) -> Member:
        """The member the node follows, by its own word, and by its connections, of which it has no other to etcd."""

        def look() -> Member | None:
            endpoint = self.node.status()["store"]["endpoint"]
            lines = self.node.namespace.run("ss", "-Htn", "state", "established").splitlines()
            ports = [line.split()[3].rpartition(":")[2] for line in lines]
            connected = [one for one in self.etcd.members for port in ports if port == str(one.port)]
            return connected[0] if [one.endpoint for one in connected] == [endpoint] else None

        return wait_for(look, NOTICED, "the node is connected to one member, the one it follows", state=self.ready)


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    a, bird, store = lab.namespace("a"), lab.namespace("bird"), lab.namespace("store")
    lab.link(a.port("eth0", "10.0.0.1/24"), bird.port("eth0", "10.0.0.2/24"))
    lab.link(a.port("eth1", "10.1.0.1/24"), store.port("eth0", "10.1.0.2/24"))
    etcd = Cluster(store.folder, 3, host="10.1.0.2", inside=("nsenter", f"--net={NETNS}/{store.full_name}", "--"))
    try:
        etcd.start()
        etcd.demand_login()
        password = a.folder / "password"
        password.write_text(f"{PASSWORD}\n")
        settings = {"endpoints": list(etcd.endpoints), "username": "routed", "passwordFile": str(password)}
        node = Routed(a, datastore={"type": "etcd", **settings})
        made = Site(lab, etcd, node, Bird(bird, BIRD), store, objects=dict(OBJECTS))
        for path, manifest in OBJECTS.items():
            etcd.put(path, manifest)
        made.add_block()
        made.add_block()
        made.bird.start()
        node.start()
        wait_for(lambda: {"10.244.1.0/26", "10.244.2.0/26"} <= set(made.bird.routes()), 60, "routes", state=lab.report)
        yield made
    finally:
        etcd.stop()


@pytest.fixture(autouse=True)
def nothing_is_lost(site: Site) -> Iterator[None]:
    """No session was reset, nothing was withdrawn, and the node follows again."""
    wait_for(site.is_fresh, NOTICED, "all is well before", state=site.ready)
    routes, withdrawals, up = set(site.bird.routes()), site.withdrawals(), site.times_up()
    assert routes and up == 1
    yield
    site.follows()
    wait_for(site.is_fresh, NOTICED, "all is well after", state=site.ready)
    assert routes < set(site.bird.routes())
    assert site.withdrawals() == withdrawals
    assert site.times_up() == up and site.node.established("10.0.0.2")
    assert site.node.alive


def test_a_member_killed(site: Site) -> None:
    used = site.used()
    readings = value(site.node, "routed_datastore_readings_total")
    used.kill()
    site.follows()
    assert site.used() is not used
    assert value(site.node, "routed_datastore_readings_total") == readings, "it resumes, and lists nothing"
    used.start()
    wait_for(site.etcd.healthy, 30, "all three are back")


def test_a_member_that_neither_answers_nor_ends(site: Site) -> None:
    used = site.used()
    readings = value(site.node, "routed_datastore_readings_total")
    used.signal(signal.SIGSTOP)
    try:
        site.follows()
        assert site.used() is not used
        assert value(site.node, "routed_datastore_readings_total") == readings
    finally:
        used.signal(signal.SIGCONT)


def test_the_cable_is_pulled_for_long_and_etcd_is_compacted_meanwhile(site: Site) -> None:
    readings = value(site.node, "routed_datastore_readings_total")
    site.store.ip("link set eth0 down")
    try:
        wait_for(site.is_stale, NOTICED, "the node says how old what it knows is", state=site.ready)
        age = value(site.node, "routed_datastore_age_seconds")
        # the members' own connections are over lo: etcd goes on
        missed = site.add_block()
        site.etcd.put("/other/1", "1")
        site.etcd.compact()
        wait_for(lambda: value(site.node, "routed_datastore_age_seconds") > age + 1, 30, "the age grows")
        assert missed not in site.bird.routes() and site.is_stale()
    finally:
        site.store.ip("link set eth0 up")
    wait_for(lambda: missed in site.bird.routes(), NOTICED, "what was missed is there", state=site.lab.report)
    assert value(site.node, "routed_datastore_readings_total") == readings + 1, "compacted away, so all is listed"


def test_packets_are_dropped_without_a_word(site: Site) -> None:
    """The connection is half open: nobody closes it, and what is sent goes nowhere."""
    age = partial(value, site.node, "routed_datastore_age_seconds")
    chain = "chain in { type filter hook input priority -300; ip saddr 10.1.0.2 drop; }"
    site.node.namespace.run("nft", f"add table ip deaf {{ {chain}; }}")
    began = time.monotonic()
    try:
        wait_for(site.is_stale, NOTICED, "the node says how old what it knows is", state=site.ready)
        since = time.monotonic() - began
        assert age() >= since - 2, "old since the packets went, not since it was noticed"
        assert re.search("does not answer|timed out|has ended", site.ready()[1])
        assert re.search(r"datastore: .*\d+ s old", site.node.ctl("status"))
        missed = site.add_block()
        stays(lambda: missed not in site.bird.routes() and site.is_stale(), 2.0, "it goes on with what it knows")
    finally:
        site.node.namespace.run("nft", "delete table ip deaf")
    wait_for(lambda: missed in site.bird.routes(), NOTICED, "what was missed is there", state=site.lab.report)


def test_garbage_in_keys_that_matter(site: Site) -> None:
    wrong = [f"{P}nodes/a", f"{P}bgppeers/bird", affinity(1)]
    for path in wrong:
        site.etcd.put(path, "{ this is no JSON")
    for path in wrong:
        wait_for(lambda path=path: any(path in one for one in site.node.problems()), 30, f"{path} is named")  # type: ignore[misc]
    assert sum("its last good value stays" in one for one in site.node.problems()) == len(wrong)
    assert value(site.node, "routed_problems", area="datastore") >= len(wrong)
    stays(lambda: site.node.established("10.0.0.2"), 1.0, "the session is up")
    for path in wrong:
        site.etcd.put(path, site.objects[path])
    wait_for(lambda: not any("stays" in one for one in site.node.problems()), 30, "put right")


def test_everything_deleted_by_accident(site: Site) -> None:
    kinds = len(site.objects)
    site.etcd.delete("--prefix", "/calico/")
    wait_for(lambda: value(site.node, "routed_datastore_held_deletions") == kinds, 30, "all of it is held")
    wait_for(
        lambda: any("routedctl confirm" in one for one in site.node.problems()), 30, "people are told, in a moment"
    )
    stays(lambda: site.node.established("10.0.0.2"), 1.0, "the session is up")
    site.etcd.put_all(site.objects)
    wait_for(lambda: value(site.node, "routed_datastore_held_deletions") == 0, 30, "it is back")


def test_who_may_read_is_revoked(site: Site) -> None:
    site.etcd.ctl("user", "revoke-role", "routed", "calico")
    for member in site.etcd.members:  # a watch that runs is not asked for its rights again
        member.kill()
    for member in site.etcd.members:
        member.start()
    wait_for(lambda: "refuses us" in site.ready()[1], NOTICED, "it is said", state=site.ready)
    wait_for(site.is_stale, NOTICED, "the node says how old what it knows is", state=site.ready)
    assert PASSWORD not in str(site.node.problems())
    site.etcd.ctl("user", "grant-role", "routed", "calico")
