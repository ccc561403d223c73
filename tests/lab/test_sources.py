"""Sources beside its own that a pod asks for (allowedSourcePrefixes), with packets, and where FelixConfiguration says no."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from routed.dataplane.firewall_layout import OWN_SETS
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import resource
from tests.lab.test_cni import DUAL, Node, cluster

pytestmark = pytest.mark.lab

ASKED = {"cni.projectcalico.org/allowedSourcePrefixes": '["198.51.100.0/25", "2001:db8:51::/64"]'}
ASKING: dict[str, Any] = {**DUAL, "runtimeConfig": {"io.kubernetes.cri.pod-annotations": ASKED}}
_ALL = 3  # ETH_P_ALL
INSIDE, OUTSIDE = ("198.51.100.7", "2001:db8:51::7"), ("198.51.100.200", "2001:db8:52::7")


class Site:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = Node.alone(lab)
        self.host = self.node.namespace
        self.node.routed.put(*cluster(1))
        self.spoofing("Any")
        self.node.start()
        self.asking, self.plain, self.target = (lab.namespace(name) for name in ("asking", "plain", "target"))
        self.made = self.node.runtime.add(self.asking, **ASKING)
        self.node.runtime.add(self.plain, **DUAL)
        self.addresses = self.node.runtime.add(self.target, **DUAL).addresses
        for pod in (self.asking, self.plain):
            for address in (*INSIDE, *OUTSIDE):
                pod.address("lo", f"{address}/{128 if ':' in address else 32}")
        # what comes is in there before the sender's call returns; a program that tells of it would do so when it comes to it
        with self.target.entered():
            self._heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        self._heard.bind(("eth0", _ALL))
        self._heard.setblocking(False)

    def close(self) -> None:
        self._heard.close()

    def spoofing(self, value: str) -> None:
        self.node.routed.put(resource("FelixConfiguration", "default", {"workloadSourceSpoofing": value}))

    def known(self) -> str:
        """What the kernel's routes are not asked about."""
        return "".join(self.host.run("nft", "list", "set", "inet", "routed", name) for name in OWN_SETS)

    def arrives(self, pod: Namespace, source: str) -> bool:
        """Whether an echo request of this source comes to the target."""
        self._sources()
        pod.pings(self.addresses[":" in source], source=source, timeout=0.3)
        return source in self._sources()

    def _sources(self) -> set[str]:
        """Who sent echo requests that came since this was asked last."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._heard.recv(256)
                if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_ICMP and packet[20] == 8:
                    found.add(socket.inet_ntop(socket.AF_INET, packet[12:16]))
                elif packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_ICMPV6 and packet[40] == 128:
                    found.add(socket.inet_ntop(socket.AF_INET6, packet[8:24]))
        return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab)
        yield made
        made.close()


def test_pods_own_sources_are_known_by_their_interface_also_over_a_restart(site: Site) -> None:
    name = site.made.output["interfaces"][0]["name"]
    for address in (*site.made.addresses, *site.addresses):
        wait_for(
            lambda address=address: f". {address}" in site.known(), 30, f"{address} is known", state=site.lab.report
        )
    assert all(f'"{name}" . {address}' in site.known() for address in site.made.addresses)
    site.node.routed.kill()
    site.node.start()
    assert all(f'"{name}" . {address}' in site.known() for address in site.made.addresses)


def test_only_who_asks_has_them_and_only_these(site: Site) -> None:
    for source in INSIDE:
        wait_for(lambda source=source: site.arrives(site.asking, source), 30, f"{source} passes", state=site.lab.report)
    assert site.node.runtime.call("CHECK", site.asking, previous=site.made.output, **ASKING).status == 0
    for source in OUTSIDE:
        assert not site.arrives(site.asking, source)
    for source in (*INSIDE, *OUTSIDE):
        assert not site.arrives(site.plain, source)
    for pod in (site.asking, site.plain):
        assert all(pod.pings(address) for address in site.addresses)
    assert "allowSpoofedSourcePrefixes" not in site.node.routed.ctl("status")
    site.host.sysctl("net.ipv4.conf.all.rp_filter", "1")
    site.host.ip(f"link set {site.made.output['interfaces'][0]['name']} mtu 1300")  # else within half a minute
    wait_for(lambda: "net.ipv4.conf.all.rp_filter is 1" in site.node.routed.ctl("status"), 30, "status says so")
    assert not site.arrives(site.asking, INSIDE[0])
    site.host.sysctl("net.ipv4.conf.all.rp_filter", "0")


def test_they_outlive_a_restart_and_go_with_the_setting(site: Site) -> None:
    site.node.routed.kill()
    site.node.start()
    assert all(site.arrives(site.asking, source) for source in INSIDE)
    site.spoofing("Disabled")
    for source in INSIDE:
        wait_for(lambda source=source: not site.arrives(site.asking, source), 30, f"{source} is dropped")
    wait_for(
        lambda: "allowSpoofedSourcePrefixes does nothing" in site.node.routed.ctl("status"), 30, "and status says so",
        state=site.lab.report,
    )  # fmt: skip
    interface = site.made.output["interfaces"][0]["name"]
    wait_for(
        lambda: site.host.run("sysctl", "-n", f"net.ipv4.conf.{interface}.rp_filter").strip() == "1", 30,
        "and the kernel's own check is back", state=site.lab.report,
    )  # fmt: skip
    answer = site.node.runtime.call("ADD", site.lab.namespace("late"), **ASKING)
    assert answer.status == 1 and answer.output["code"] == 2 and "workloadSourceSpoofing" in answer.output["msg"]
    site.spoofing("Any")
    for source in INSIDE:
        wait_for(lambda source=source: site.arrives(site.asking, source), 40, f"{source} passes", state=site.lab.report)


def test_policy_is_asked_about_them_as_about_any_packet(site: Site) -> None:
    deny = {"selector": "all()", "types": ["Egress"], "egress": []}
    site.node.routed.put(resource("GlobalNetworkPolicy", "silence", deny))
    for source in INSIDE:
        wait_for(lambda source=source: not site.arrives(site.asking, source), 30, "policy closes")
    site.node.routed.put(resource("GlobalNetworkPolicy", "silence", {**deny, "egress": [{"action": "Allow"}]}))
    for source in INSIDE:
        wait_for(lambda source=source: site.arrives(site.asking, source), 30, "policy opens")


def test_nothing_of_it_is_left_with_the_pod(site: Site) -> None:
    assert site.node.runtime.call("DEL", site.asking, **ASKING).status == 0
    wait_for(lambda: "198.51.100.0" not in site.host.run("nft", "list", "ruleset"), 30, "no rule names it")
    assert not any(f". {address}" in site.known() for address in site.made.addresses)
