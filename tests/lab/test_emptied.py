"""Three nodes on one real etcd, sessions up: parts of the tree are deleted by accident, and no packet's way changes.

Every kernel's routes are listened to, so that one that goes and comes back is seen all the same. What ends the holding is
the objects being there again, a person's word at one node, and the time that is set at another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import Routed
from tests.datastore.etcd_server import P
from tests.lab.etcd import Etcd
from tests.lab.test_metrics import value
from tests.lab.topology import RECONNECT, Rack, address, flaps, node, pools, start

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

NODES = (1, 2, 3)
BLOCKS_EACH = 2
#: Seconds after which the third node believes what is held, in the test that is about it. Else all believe a person only.
TIMEOUT = 20
IPAM = "/calico/ipam/v2/"


def blocks(number: int) -> list[str]:
    return [f"10.244.{number}{index}.0/26" for index in range(BLOCKS_EACH)]


def objects() -> dict[str, object]:
    found: dict[str, object] = {f"{P}ippools/{one['metadata']['name']}": one for one in pools()}
    for number in NODES:
        found[f"{P}nodes/node-{number}"] = node(number, ipv6=False)
        for cidr in blocks(number):
            path = cidr.replace("/", "-")
            found[f"{IPAM}host/node-{number}/ipv4/block/{path}"] = {"state": "confirmed", "deleted": False}
            found[f"{IPAM}assignment/ipv4/block/{path}"] = {
                "cidr": cidr, "affinity": f"host:node-{number}", "allocations": [None] * 64,
                "unallocated": list(range(64)), "attributes": [], "deleted": False,
            }  # fmt: skip
    return found


@dataclass
class Site:
    lab: Lab
    etcd: Etcd
    nodes: list[Routed]
    heard: list[Path]
    """What each kernel said of its routes."""

    def routes(self, at: Routed) -> set[str]:
        return set(at.kernel_routes())

    def complete(self) -> bool:
        wanted = {cidr for number in NODES for cidr in blocks(number)}
        return all(wanted <= self.routes(each) for each in self.nodes)

    def withdrawn(self, at: int) -> list[str]:
        return [line for line in self.heard[at].read_text().splitlines() if line.startswith("Deleted 10.244.")]

    def held(self, at: int) -> float:
        return value(self.nodes[at], "routed_datastore_held_deletions")

    def put_back(self) -> None:
        for path, manifest in objects().items():
            self.etcd.put(path, manifest)
        wait_for(lambda: not any(map(self.held, range(3))), 60, "nothing is held", state=self.lab.report)
        wait_for(self.complete, 60, "all routes everywhere", state=self.lab.report)


def settings(etcd: Etcd, believes: object) -> dict[str, object]:
    return {"type": "etcd", "endpoints": [etcd.url], "massDelete": {"timeoutSeconds": believes}}


@pytest.fixture(scope="module")
def site(lab: Lab) -> Site:
    rack = Rack(lab)
    store = rack.machine("store", 9, ipv6=False)
    etcd = Etcd(store, address(9))
    etcd.start()
    for path, manifest in objects().items():
        etcd.put(path, manifest)
    nodes = []
    for number in NODES:
        nodes.append(rack.node(number, ipv6=False, datastore=settings(etcd, "never")))
    heard = []
    for each in nodes:
        heard.append(each.namespace.folder / "monitor.out")
        each.namespace.start("monitor", "sh", "-c", f"exec ip -4 monitor route > {heard[-1]}")
    start(*nodes)
    made = Site(lab, etcd, nodes, heard)
    wait_for(made.complete, 60, "all routes everywhere", state=lab.report)
    return made


@pytest.fixture
def before(site: Site) -> list[int]:
    """How many routes each kernel has lost so far, when all is well."""
    wait_for(lambda: site.complete() and not any(map(site.held, range(3))), 60, "all is well", state=site.lab.report)
    return [len(site.withdrawn(at)) for at in range(3)]


@pytest.mark.parametrize("prefix", ["/calico/", f"{P}nodes/", f"{IPAM}host/", f"{P}ippools/"])
def test_no_session_and_no_route_goes_and_everybody_is_told(site: Site, before: list[int], prefix: str) -> None:
    up = [flaps(each) for each in site.nodes]
    assert int(site.etcd.ctl("del", "--prefix", prefix)) > 0
    for at, each in enumerate(site.nodes):
        wait_for(lambda at=at: site.held(at) > 0, 30, "it is held", state=site.lab.report)  # type: ignore[misc]
        alarm = wait_for(
            lambda each=each: [text for text in each.problems() if "vanished at once" in text], 30, "everybody is told"
        )
        assert all("routedctl confirm" in text for text in alarm)
        assert value(each, "routed_problems", area="datastore") >= len(alarm)
    stays(site.complete, 1.5, "all routes stay")
    site.put_back()
    assert [len(site.withdrawn(at)) for at in range(3)] == before
    assert [flaps(each) for each in site.nodes] == up


@pytest.mark.usefixtures("before")
def test_a_person_s_word_at_one_node_and_the_time_at_another_end_it(site: Site) -> None:
    first, second, third = site.nodes
    earlier = [flaps(each)[address(3)] for each in (first, second)]
    third.stop()
    third.configure(datastore=settings(site.etcd, TIMEOUT))
    third.start()
    wait_for(
        lambda: (
            site.complete() and third.established(address(1), address(2))
            and all(flaps(each)[address(3)] > count for each, count in zip((first, second), earlier, strict=True))
        ),
        RECONNECT, "all is well", state=site.lab.report,
    )  # fmt: skip
    before = [len(site.withdrawn(at)) for at in range(3)]
    up = [flaps(each) for each in site.nodes]
    assert int(site.etcd.ctl("del", "--prefix", IPAM)) > 0
    wait_for(lambda: all(map(site.held, range(3))), 30, "it is held everywhere", state=site.lab.report)
    assert site.complete() and [len(site.withdrawn(at)) for at in range(3)] == before

    wait_for(lambda: not site.held(2), TIMEOUT + 30, "its time is over", state=site.lab.report)
    gone = set(blocks(3))
    wait_for(
        lambda: not any(gone & site.routes(each) for each in site.nodes), 30, "its blocks go", state=site.lab.report
    )
    kept = {*blocks(1), *blocks(2)}
    stays(lambda: all(kept <= site.routes(each) for each in site.nodes), 2.0, "those of the others stay")
    assert site.held(0) and site.held(1)

    assert "followed" in first.ctl("confirm")
    gone = set(blocks(1))
    wait_for(lambda: not any(gone & site.routes(each) for each in site.nodes), 30, "and its", state=site.lab.report)
    stays(lambda: all(set(blocks(2)) <= site.routes(each) for each in site.nodes), 2.0, "nobody said so at the second")
    assert not site.held(0) and site.held(1) and "vanished at once" in " ".join(second.problems())
    assert not any("vanished" in text for each in (first, third) for text in each.problems())
    assert [flaps(each) for each in site.nodes] == up, "a block is no session"
    site.put_back()
