"""Addresses that got lost come back by themselves: on a real etcd, with real pods, a node removed, a collector killed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, wait_for
from tests.datastore.etcd_server import P
from tests.lab.test_cni_etcd import NUMBERS, Site

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

GRACE = 3
LOCK = "/calico/routed/v1/address-collector"


class Collected(Site):
    def collector(self) -> int:
        """The number of the node that takes back; 0: none."""
        found = self.etcd.ctl("get", "--print-value-only", LOCK)
        return int(json.loads(found)["node"].removeprefix("n")) if found.strip() else 0

    def held_by(self, number: int) -> list[str]:
        return self.etcd.keys(f"/calico/ipam/v2/host/n{number}/")

    def handles(self) -> str:
        return " ".join(self.etcd.keys("/calico/ipam/v2/handle/"))

    def said(self, number: int, *lines: str) -> None:
        """Wait for these in a node's log: what is done is in etcd before it is told."""
        routed = self.nodes[number].routed
        wait_for(lambda: all(line in routed.log() for line in lines), 60, f"it is said: {lines}", state=routed.log)

    def adds_up(self) -> None:
        def told() -> str:
            return self.routedctl("ipam", "check", check=False)

        wait_for(lambda: "add up" in told(), 30, "all adds up", state=told, every=0.5)


@pytest.fixture
def site() -> Iterator[Collected]:
    with Lab() as lab:
        made = Collected(lab, ipam={"leakGracePeriod": f"{GRACE}s"})
        made.start()
        yield made


def test_what_is_lost_comes_back_and_what_lives_stays(site: Collected) -> None:
    for number in NUMBERS:
        for letter in "ab":
            site.add(number, f"p{number}{letter}")
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)
    wait_for(site.collector, 30, "a node takes back")
    first = site.collector()
    second, third = (number for number in NUMBERS if number != first)

    # a leak: a pod's endpoint is gone while its node's daemon is, so that nothing of the node's own gives it back
    site.nodes[second].routed.kill()
    lost, (_, leaked) = f"p{second}b", site.pods[f"p{second}b"]
    site.pods.pop(lost)
    (endpoint,) = (key for key in site.etcd.keys(f"{P}workloadendpoints/") if lost in key)
    site.etcd.ctl("del", endpoint)
    assert lost in site.handles()
    wait_for(lambda: lost not in site.handles(), 60, "the leak is released", state=site.handles)
    site.said(first, *(f"{address} is given out to pod default/{lost}" for address in leaked))
    assert f"p{second}a" in site.handles()

    # a node is removed, and the collector dies with its hand on the lock: another goes on
    site.nodes[second].start()
    site.nodes[third].routed.kill()
    for letter in "ab":
        site.pods.pop(f"p{third}{letter}")
    site.etcd.ctl("del", f"{P}nodes/n{third}")
    site.nodes[first].routed.kill()
    wait_for(lambda: not site.held_by(third), 90, "the blocks of the removed node are released", state=site.handles)
    site.said(second, f"node n{third} is gone: its 2 endpoints and its blocks were taken back")
    assert site.collector() == second
    left = site.etcd.keys(f"{P}workloadendpoints/")
    assert len(left) == 3 and not [key for key in left if f"p{third}" in key]
    assert f"p{third}" not in site.handles()
    site.nodes[first].start()
    site.adds_up()

    # a node whose Node somebody deleted, and which runs: all of its pods' addresses stay
    manifest = json.loads(site.etcd.ctl("get", "--print-value-only", f"{P}nodes/n{first}"))
    site.etcd.ctl("del", f"{P}nodes/n{first}")
    site.said(second, f"node n{first} runs and its Node is gone: its addresses are kept")
    assert site.held_by(first) and f"p{first}a" in site.handles() and f"p{first}b" in site.handles()
    gone = f"Node n{first} is gone and this node has pods"
    wait_for(lambda: gone in " ".join(site.nodes[first].routed.problems()), 30, gone, state=site.lab.report)
    site.etcd.put_resource("nodes", manifest)
    wait_for(lambda: not site.unreachable(), 60, "all that is left works", state=site.unreachable)
    site.adds_up()
