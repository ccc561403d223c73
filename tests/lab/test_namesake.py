"""Two machines with one node name on one etcd: the second takes no pods, both are told, and no pod of the first goes."""

from __future__ import annotations

import pytest

from routed.testing.lab import Lab, wait_for
from tests.lab.test_cni import DUAL
from tests.lab.test_cni_etcd import Site

pytestmark = [pytest.mark.lab, pytest.mark.etcd]


@pytest.mark.timeout(300)
def test_the_second_of_a_name_takes_no_pods_and_collects_none(lab: Lab) -> None:
    site = Site(lab)
    site.start()
    first, second = site.nodes[1], site.nodes[3]
    site.add(1, "p1a")
    site.add(2, "p2a")
    wait_for(lambda: not site.unreachable(), 30, "the pods reach each other", state=site.unreachable)
    settings = {"datastore": {"type": "etcd", "endpoints": [site.etcd.url]}, "nodeName": "n1"}

    def told(node: str, words: str) -> bool:
        return words in site.nodes[int(node)].routed.ctl("status")

    second.routed.stop()
    second.routed.configure(**settings, cni={"enabled": True, "socket": second.runtime.socket})
    second.routed.start()
    wait_for(lambda: told("3", "so this machine takes no pods"), 30, "the second is told", state=lab.report)
    wait_for(lambda: told("1", "runs as node n1 too"), 60, "and the first", state=lab.report)
    refused = second.runtime.call("ADD", lab.namespace("late"), **DUAL)
    assert refused.output["code"] == 11 and "runs as node n1, so this machine takes no pods" in refused.output["msg"]
    assert second.runtime.call("STATUS", cniVersion="1.1.0").output["code"] == 50
    collected = second.runtime.call("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": []})
    assert collected.output["code"] == 11
    assert not site.unreachable()
    # the first is killed, and goes on at once
    first.routed.kill()
    first.routed.start()
    wait_for(first.is_ready, 30, "it is the same machine", state=lab.report)
    site.add(1, "p1b")
    # it is stopped and started again: the second has not become the node meanwhile
    first.routed.stop()
    looks = second.routed.ctl("status")
    assert "so this machine takes no pods" in looks
    # nor does it where etcd is away for a while
    site.etcd.kill()
    wait_for(lambda: told("3", "failed to connect"), 60, "it is told that etcd is away", state=lab.report)
    site.etcd.start()
    first.routed.start()
    wait_for(first.is_ready, 60, "the first goes on", state=lab.report)
    wait_for(lambda: told("1", "runs as node n1 too"), 60, "and is told again", state=lab.report)
    refused = second.runtime.call("GC", cniVersion="1.1.0", **{"cni.dev/valid-attachments": []})
    assert refused.output["code"] == 11
    assert not site.unreachable()
