"""A node whose pods are routed's no longer: those that run go on, whoever follows is told of the rules that are left."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from tests.lab.test_cni_etcd import Site

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

OTHERS = ("10.65.77.7", "fd00:65::77:7")


def another_plugins_pod(lab: Lab, node: Namespace) -> Namespace:
    """As Calico's plugin and Felix make one."""
    pod = lab.namespace("others")
    node.ip(f"link add calitheirs type veth peer name eth0 netns {pod.full_name}")
    node.ip("link set calitheirs address ee:ee:ee:ee:ee:ee", "link set calitheirs up")
    node.ip(*(f"route add {address} dev calitheirs" for address in OTHERS))
    node.ip("address add fe80::1/64 dev calitheirs nodad")
    pod.address("eth0", *(f"{address}/{128 if ':' in address else 32}" for address in OTHERS))
    pod.ip("link set eth0 up", "route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1 dev eth0")
    pod.ip("route add default via fe80::1 dev eth0")
    pod.ip("neighbor add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")
    return pod


@pytest.mark.timeout(300)
def test_pods_that_run_go_on_and_what_is_left_is_told_once_for_all(lab: Lab) -> None:
    site = Site(lab)
    site.start()
    for number in (1, 3):
        for letter in "ab":
            site.add(number, f"p{number}{letter}")
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)
    node = site.nodes[3]

    def turn(*, on: bool) -> None:
        before = node.routed.log().count("restart: it is over")
        node.routed.kill()
        cni = {"enabled": on, "socket": node.runtime.socket}
        node.routed.configure(datastore={"type": "etcd", "endpoints": [site.etcd.url]}, cni=cni)
        node.routed.start()
        wait_for(
            lambda: node.routed.log().count("restart: it is over") > before, 60, "the start is over", state=lab.report
        )

    turn(on=False)
    # the sweep is over too: no route of a pod was in it
    routes = node.namespace.run("ip", "route", "show", "proto", "120")
    assert all(f"{site.pods[name][1][0]} dev cali" in routes for name in ("p3a", "p3b")), routes
    wait_for(lambda: not site.unreachable(), 30, "they go on", state=site.unreachable)
    status = node.routed.ctl("status")
    assert "vanished" not in status and "nft delete table inet routed" in status

    theirs = another_plugins_pod(lab, node.namespace)
    outside = ("10.0.0.1", "fd00::1")
    assert not any(theirs.pings(address) for address in outside), "who is not known is denied still"
    node.namespace.run("nft", "delete", "table", "inet", "routed")
    wait_for(lambda: all(map(site.nodes[1].namespace.pings, OTHERS)), 30, "nothing is in the way", state=lab.report)
    assert "delete table" not in node.routed.ctl("status")

    turn(on=True)
    wait_for(node.is_ready, 30, "pods are routed's once more", state=lab.report)
    wait_for(lambda: not site.unreachable(), 30, "with the same ones", state=site.unreachable)
    assert not any(map(site.nodes[1].namespace.pings, OTHERS)), "and no others"
