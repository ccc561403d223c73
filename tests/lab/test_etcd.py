"""A node whose datastore is a real etcd, a neighbour, real kernels: etcd goes, and nothing else does."""

from __future__ import annotations

import json

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import Routed, resource
from tests.datastore.etcd_server import P
from tests.lab.etcd import Etcd

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

NODES = [resource("Node", name, {"bgp": {"ipv4Address": f"10.0.0.{index}/24"}}) for index, name in ((1, "a"), (2, "b"))]
POOL = resource("IPPool", "v4", {"cidr": "10.244.0.0/16"})
BLOCK_B = resource("BlockAffinity", "b-v4", {"node": "b", "cidr": "10.244.2.0/26", "state": "confirmed"})

STATUS = resource("CalicoNodeStatus", "a", {"node": "a", "classes": ["BGP", "Routes"], "updatePeriodSeconds": 1})


def test_etcd_comes_and_goes_and_no_route_does(lab: Lab) -> None:
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.link(a.port("eth0", "10.0.0.1/24"), b.port("eth0", "10.0.0.2/24"))

    etcd = Etcd(a)
    etcd.start()
    for node in NODES:
        etcd.put_resource("nodes", node)
    etcd.put_resource("ippools", POOL)
    etcd.put("/calico/ipam/v2/host/a/ipv4/block/10.244.1.0-26", {"state": "confirmed"})
    etcd.put_resource("caliconodestatuses", STATUS)
    here = Routed(a, datastore={"type": "etcd", "endpoints": [etcd.url]})
    there = Routed(b)
    there.put(*NODES, POOL, BLOCK_B)
    here.start()
    there.start()

    def both() -> bool:
        return "10.244.2.0/26" in a.run("ip", "route") and "10.244.1.0/26" in b.run("ip", "route")

    wait_for(both, 30, "routes both ways", state=lab.report)

    def told() -> list[str]:
        status = json.loads(etcd.ctl("get", "--print-value-only", f"{P}caliconodestatuses/a") or "{}").get("status", {})
        peers = status.get("bgp", {}).get("peersV4", [])
        routes = status.get("routes", {}).get("routesV4", [])
        return [one["state"] for one in peers] + [f"{one['destination']} {one['gateway']}" for one in routes]

    wanted = ["Established", "10.244.1.0/26 N/A", "10.244.2.0/26 10.0.0.2"]
    wait_for(lambda: told() == wanted, 30, "the node writes its status", state=lab.report)
    etcd.put("/calico/ipam/v2/host/a/ipv4/block/10.244.9.0-26", {"state": "confirmed"})
    wait_for(lambda: "10.244.9.0/26" in b.run("ip", "route"), 30, "a new block is in the neighbour's kernel")

    assert int(etcd.ctl("del", "--prefix", "/calico/")) > 0
    wait_for(lambda: "routedctl confirm" in here.ctl("status"), 30, "the deletion of everything is held")
    assert both()
    etcd.kill()
    wait_for(lambda: "what it last said stays" in here.ctl("status"), 30, "it is told that etcd is gone")
    assert both()

    here.processes[0].stop()
    a.run("ip", "route", "add", "10.99.0.0/24", "via", "10.0.0.2", "proto", "120")  # ours, and nobody asks for it
    here.start()
    wait_for(lambda: "stale" in here.ctl("status"), 30, "it begins with what was saved", state=lab.report)
    wait_for(lambda: "Established" in here.ctl("show", "neighbors"), 40, "the session is back", state=lab.report)
    assert both()
    assert "10.244.9.0/26" in b.run("ip", "route")
    wait_for(lambda: not here.status()["routeSelectionDeferred"], 40, "route selection begins", state=lab.report)
    stays(lambda: "10.99.0.0/24" in a.run("ip", "route"), 1.0, "nothing is removed on the saved state's word")
    etcd.start()
    wait_for(lambda: "10.99.0.0/24" not in a.run("ip", "route"), 30, "etcd has spoken: it goes", state=lab.report)
    assert both()
    wait_for(lambda: here.status()["store"]["heldDeletions"], 30, "the deletion is held again", state=lab.report)
    assert "followed" in here.ctl("confirm")
    wait_for(lambda: "10.244.1.0/26" not in b.run("ip", "route"), 30, "the deletion is confirmed", state=lab.report)
