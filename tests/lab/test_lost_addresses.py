"""What a real etcd knew of living pods is lost, by a restored backup or by somebody's hand: the pods go on, and nobody gets
an address of theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, wait_for
from tests.datastore.etcd_server import P
from tests.lab.test_cni import DUAL
from tests.lab.test_cni_etcd import NUMBERS, Site

pytestmark = [pytest.mark.lab, pytest.mark.etcd]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab)
        made.start()
        for number in NUMBERS:
            made.add(number, f"old-{number}")
        wait_for(lambda: not made.unreachable(), 30, "every pod reaches every other", state=made.unreachable)
        yield made


def check(site: Site) -> str:
    return site.routedctl("ipam", "check", check=False)


def given(site: Site) -> list[str]:
    return [address for _, addresses in site.pods.values() for address in addresses]


def test_pods_younger_than_a_backup_that_is_restored_go_on(site: Site) -> None:
    site.etcd.back_up()
    for number in NUMBERS:
        site.add(number, f"young-{number}")
    wait_for(lambda: not site.unreachable(), 30, "every pod reaches every other", state=site.unreachable)
    folder = f"{P}workloadendpoints/"
    before = set(site.etcd.keys(folder))
    site.etcd.restore()
    again = "runs here, and the backup etcd was restored from does not have it: written again"
    wait_for(lambda: all(again in node.routed.log() for node in site.nodes.values()), 40, again, state=site.lab.report)
    wait_for(lambda: set(site.etcd.keys(folder)) == before, 40, "all are there", state=site.lab.report)
    wait_for(lambda: not site.unreachable(), 40, "every pod reaches every other", state=site.unreachable)
    for number in NUMBERS:
        site.add(number, f"later-{number}")
    assert len(set(given(site))) == len(given(site)), site.pods
    wait_for(lambda: "add up" in check(site), 30, "all adds up", state=lambda: check(site), every=0.5)
    for name in [name for name in site.pods if not name.startswith("old")]:
        pod, _ = site.pods.pop(name)
        number = int(name[-1])
        assert site.nodes[number].runtime.call("DEL", pod, **DUAL).status == 0


@pytest.mark.parametrize(
    "prefix", ["/calico/ipam/v2/assignment/", "/calico/ipam/v2/handle/", "/calico/ipam/v2/host/", "/calico/ipam/"]
)
def test_nobody_is_given_what_a_living_pod_has(site: Site, prefix: str) -> None:
    site.etcd.ctl("del", "--prefix", prefix)
    suffix = prefix.strip("/").rpartition("/")[2]
    for number in NUMBERS:
        for letter in "ab":
            site.add(number, f"{suffix}-{number}{letter}")
    assert len(set(given(site))) == len(given(site)), site.pods
    wait_for(lambda: not site.unreachable(), 60, "every pod reaches every other", state=site.unreachable)
    for number in NUMBERS:  # and back again
        for letter in "ab":
            pod, _ = site.pods.pop(f"{suffix}-{number}{letter}")
            assert site.nodes[number].runtime.call("DEL", pod, **DUAL).status == 0
    assert site.unreachable() == []


def test_what_is_left_can_be_told_and_goes_with_the_pods(site: Site) -> None:
    told = check(site)
    assert all(f"{address} of WorkloadEndpoint" in told for address in given(site)), told
    for number in NUMBERS:
        pod, _ = site.pods.pop(f"old-{number}")
        assert site.nodes[number].runtime.call("DEL", pod, **DUAL).status == 0
    wait_for(
        lambda: "add up" in check(site) and not site.in_use(), 30, "nothing is left", state=lambda: check(site)
    )  # fmt: skip
