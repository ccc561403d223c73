"""A node of a Calico cluster on etcd moves from BIRD and confd to routed and back: the same session, the same routes, no
packet lost, no route deleted.

Nothing is described to routed: the cluster's state is in etcd, at Calico's keys, and another node reads it there already.
"""

from __future__ import annotations

import pytest

from routed.model.paths import Layout, encode
from routed.model.schema import parse_manifest
from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, Routed, missing
from tests.lab.etcd import Etcd
from tests.lab.test_moving import BIRD_NUMBER, back_at_bird, bird_config, protocols, routed_in_its_place
from tests.lab.topology import RECONNECT, SOON, Rack, address, block, cluster

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(missing("bird")), reason="needs bird"),
    pytest.mark.etcd,
]


def test_a_node_of_a_cluster_on_etcd_moves(lab: Lab) -> None:
    rack = Rack(lab)
    store = rack.machine("store", 9)
    etcd = Etcd(store, address(9))
    etcd.start()
    layout = Layout()
    for manifest in cluster(1, 2):
        found = parse_manifest(manifest)
        etcd.put(layout.path(found), encode(found).decode())

    datastore = {"type": "etcd", "endpoints": [etcd.url]}
    first = rack.node(1, datastore=datastore, kernel={"takeOver": ["bird"]})
    second = rack.node(2, datastore=datastore)
    bird = Bird(first.namespace, bird_config(1, 2))
    bird.start()
    second.start()
    peers = [address(1, ipv6=six) for six in (False, True)]
    wait_for(lambda: second.established(*peers), RECONNECT, "BIRD and routed are neighbours", state=second.sessions)
    wait_for(lambda: protocols(first) == {BIRD_NUMBER}, SOON, "BIRD's routes are in the kernel")

    def routes(of: Routed) -> list[dict[str, str]]:
        """The ways to others."""
        found = [of.namespace.routes(ipv6=six) for six in (False, True)]
        return [
            {prefix: text.partition(" proto ")[0] for prefix, text in each.items() if "244" in prefix and "via" in text}
            for each in found
        ]

    wait_for(lambda: block(1) in second.namespace.routes(), SOON, "and the other way")
    before = routes(first), routes(second)
    with routed_in_its_place(first, second, bird):
        wait_for(lambda: (routes(first), routes(second)) == before, SOON, "the same routes on both", state=lab.report)
        wait_for(lambda: first.problems() == [], SOON, "nothing is wrong", state=first.problems)
        with back_at_bird(first, second) as back:
            assert (routes(first), routes(second)) == before
        back.kill()
        first.start()
        wait_for(lambda: second.established(*peers), RECONNECT, "routed again", state=second.sessions)
    etcd.put("/calico/ipam/v2/host/node-1/ipv4/block/10.244.77.0-26", '{"state":"confirmed"}')
    wait_for(lambda: "10.244.77.0/26" in second.namespace.routes(), SOON, "and a new block in etcd is followed")
