"""What somebody does to the node's end of a pod is put right by the daemon, on a real kernel; the other end is the pod's."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import resource
from tests.lab.test_cni import DUAL, Node, cluster

pytestmark = pytest.mark.lab

BRIDGED = {**DUAL, "attach": "bridge"}
NODE_MAC = "ee:ee:ee:ee:ee:ee"
#: Seconds, less than RESYNC: what is seen only by the next look at all is late.
AT_ONCE = 25.0


class Site:
    def __init__(self, lab: Lab) -> None:
        self.node = Node.alone(lab)
        self.host = self.node.namespace
        self.node.routed.put(*cluster(1))
        self.node.start()
        self.pods: dict[str, tuple[Namespace, list[str], str]] = {}
        """Namespace, addresses, the node's end."""
        for name, values in (("plain", DUAL), ("other", DUAL), ("at-bridge", BRIDGED), ("beside", BRIDGED)):
            pod = lab.namespace(name)
            made = self.node.runtime.add(pod, mtu=1400, **values)
            self.pods[name] = (pod, made.addresses, made.output["interfaces"][0]["name"])
            self.made = {**getattr(self, "made", {}), name: made.output}

    def check(self, name: str) -> str:
        """What CHECK has against a pod; empty: nothing."""
        values = BRIDGED if name in ("at-bridge", "beside") else DUAL
        answer = self.node.runtime.call("CHECK", self.pods[name][0], previous=self.made[name], mtu=1400, **values)
        return "" if answer.status == 0 else str(answer.output["msg"])

    def advice(self, name: str) -> str:
        """What CHECK says is to be done."""
        values = BRIDGED if name in ("at-bridge", "beside") else DUAL
        answer = self.node.runtime.call("CHECK", self.pods[name][0], previous=self.made[name], mtu=1400, **values)
        return str(answer.output["details"])

    def put_right(self, name: str) -> Callable[[], bool]:
        other = self.pods["other"][0]
        return lambda: not self.check(name) and all(other.pings(each, timeout=0.5) for each in self.pods[name][1])

    def sees(self, name: str, words: str, *commands: str) -> Callable[[], bool]:
        """Whether CHECK says this after these commands. They are given anew each time: a second after it has put something
        right the daemon looks once more, and may have undone them by the time it is asked."""

        def said() -> bool:
            for each in commands:
                self.host.run(*each.split(), check=False)
            return words in self.check(name)

        return said

    def log(self) -> str:
        return self.node.routed.log()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


def test_the_link_the_mac_address_and_the_mtu_come_back_at_once(site: Site) -> None:
    _, _, end = site.pods["plain"]
    for words, told in (
        (f"link set {end} down", "is down"),
        (f"link set {end} address 02:00:00:00:00:01", "has the MAC address 02:00:00:00:00:01"),
        (f"link set {end} mtu 1300", "has an MTU of 1300, not 1400"),
    ):
        site.host.ip(words)
        wait_for(site.put_right("plain"), AT_ONCE, f"{words} is undone", state=site.node.lab.report)
        wait_for(
            lambda told=told: (
                f"{end} of default/plain was changed by others and put right" in site.log() and told in site.log()
            ),
            AT_ONCE,
            "and told",
        )


def test_an_interface_that_another_endpoint_names_for_a_while_is_kept_after_that(site: Site) -> None:
    _, (ipv4, _), end = site.pods["plain"]
    for name in ("n1-cni-0-eth0", "n1-cni-zz-eth0"):  # before and behind the pod's own
        spec = {
            "orchestrator": "cni", "node": "n1", "containerID": name.split("-")[2], "endpoint": "eth0",
            "ipNetworks": ["10.65.9.9/32"], "interfaceName": end, "mac": "02:00:00:00:00:09", "profiles": ["kns.default"],
        }  # fmt: skip
        other = resource("WorkloadEndpoint", name, spec)
        other["metadata"]["namespace"] = "default"
        site.node.routed.put(other)
        wait_for(
            lambda: any(f"has the interface {end}, as" in each for each in site.node.routed.problems()),
            AT_ONCE,
            "it is told",
            state=site.node.lab.report,
        )
        site.node.routed.remove("WorkloadEndpoint", name)
        wait_for(
            lambda: site.pods["other"][0].pings(ipv4, timeout=0.5), AT_ONCE, "it is reached", state=site.node.lab.report
        )
        site.host.ip(f"link set {end} address 02:00:00:00:00:01")
        wait_for(site.put_right("plain"), AT_ONCE, "it is kept", state=site.node.lab.report)


def test_somebodys_bridge_does_not_keep_a_pods_interface(site: Site) -> None:
    _, _, end = site.pods["plain"]
    site.host.ip("link add br7 type bridge", "link set br7 up", f"link set {end} master br7")
    wait_for(site.put_right("plain"), AT_ONCE, "it is alone again", state=site.node.lab.report)
    site.host.ip("link del br7")


def test_routes_neighbours_and_sysctls_come_back_with_the_next_event_or_in_time(site: Site) -> None:
    _, (ipv4, ipv6), end = site.pods["plain"]
    drops = (f"ip neigh del {ipv4} dev {end}", f"ip neigh del {ipv6} dev {end}", f"ip route del {ipv4}")
    wait_for(
        site.sees("plain", "permanent neighbour", *drops, f"sysctl -qw net.ipv4.conf.{end}.rp_filter=0"),
        AT_ONCE,
        "it is seen",
    )
    site.host.ip(f"link set {end} mtu 1300")  # else within RESYNC
    wait_for(site.put_right("plain"), AT_ONCE, "all is there", state=site.node.lab.report)
    assert site.host.run("sysctl", "-n", f"net.ipv4.conf.{end}.rp_filter").strip() == "1"
    assert f"{ipv4} lladdr" in site.host.run("ip", "neigh", "show", "dev", end, "nud", "permanent")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ip link set {end} nomaster", "is no port of routed0"),
        ("bridge link set dev {end} isolated off", "not isolated"),
        ("bridge link set dev {end} locked off learning on", "not locked"),
        ("ip link set routed0 down", "routed0 is down"),
        ("ip link set routed0 address 02:00:00:00:00:02", "routed0 has the MAC address"),
        ("ip link del routed0", "is no port of routed0"),
    ],
)
def test_a_port_of_a_bridge_is_guarded_again(site: Site, words: str, told: str) -> None:
    _, _, end = site.pods["at-bridge"]
    site.host.run(*words.format(end=end).split())
    both = [site.put_right(name) for name in ("at-bridge", "beside")]  # what helps one is no harm to another
    wait_for(lambda: all(right() for right in both), AT_ONCE, f"{words} is undone", state=site.node.lab.report)
    wait_for(lambda: told in site.log(), AT_ONCE, "and told")


def test_check_sees_what_a_port_lets_in(site: Site) -> None:
    _, _, end = site.pods["at-bridge"]
    (mac,) = (each["mac"] for each in site.made["at-bridge"]["interfaces"] if each.get("sandbox"))
    wait_for(
        site.sees("at-bridge", f"does not let in {mac}", f"bridge fdb del {mac} dev {end} master"),
        AT_ONCE,
        "it is seen",
    )
    site.host.run("bridge", "link", "set", "dev", end, "isolated", "off")  # an event
    wait_for(site.put_right("at-bridge"), AT_ONCE, "it lets its pod in", state=site.node.lab.report)


def test_an_add_again_that_may_not_make_the_pod_anew_leaves_it_alone(site: Site) -> None:
    pod, _, end = site.pods["at-bridge"]
    other = site.node.lab.namespace("third")
    site.host.ip("link add routed-x type bridge", "link set routed-x up")
    answer = site.node.runtime.call("ADD", other, **{**BRIDGED, "bridge": "routed-x"})
    assert answer.status == 1 and "somebody else has this name" in answer.output["msg"]
    assert site.node.interfaces() and end in site.node.interfaces()
    daemon = site.node.routed.processes[0]
    daemon.signal(signal.SIGSTOP)  # which would make its bridge anew in between
    site.host.ip(f"link set {end} nomaster", "link del routed0", "link add routed0 type bridge")  # an impostor
    daemon.signal(signal.SIGCONT)
    again = site.node.runtime.call("ADD", pod, mtu=1400, **BRIDGED)
    assert again.status == 1 and "somebody else has this name" in again.output["msg"]
    assert end in site.node.interfaces() and "eth0" in pod.run("ip", "-br", "link")
    wait_for(lambda: "somebody else has this name" in site.node.routed.ctl("status"), AT_ONCE, "status tells")
    site.host.ip("link del routed0")
    wait_for(site.put_right("at-bridge"), 40, "all is as it was", state=site.node.lab.report)


@pytest.mark.parametrize("name", ["plain", "at-bridge"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ip addr del {ipv4}/32 dev eth0",), ("has no address {ipv4}",)),
        (("ip addr del {ipv6}/128 dev eth0",), ("has no address {ipv6}",)),
        (("ip route del default",), ("has no default route by 169.254.1.1",)),
        (("ip -6 route del default",), ("has no default route by fe80::ecee:eeff:feee:eeee",)),
        (
            ("ip route flush dev eth0", "ip neigh del 169.254.1.1 dev eth0"),
            (
                "has no default route by 169.254.1.1",
                "has no route to 169.254.1.1",
                "eth0 has no permanent neighbour 169.254.1.1 at ee:ee:ee:ee:ee:ee",
            ),
        ),
        (("ip route del 169.254.1.1",), ("has no route to 169.254.1.1",)),
        (("ip link set eth0 address 02:00:00:00:00:07",), ("has the MAC address 02:00:00:00:00:07, not ",)),
        (("ip link set eth0 down",), ("eth0 in the container is down", "has no default route by 169.254.1.1")),
        (("sysctl -qw net.ipv6.conf.all.disable_ipv6=1",), ("has no address {ipv6}", "has no default route by fe80::")),
        (("ip link del eth0",), ("is gone",)),
    ],
)
def test_an_add_again_repairs_the_pods_own_end(
    site: Site, name: str, words: tuple[str, ...], told: tuple[str, ...]
) -> None:
    pod, (ipv4, ipv6), _ = site.pods[name]
    for each in words:
        pod.run(*each.format(ipv4=ipv4, ipv6=ipv6).split())
    said = site.check(name)
    assert all(each.format(ipv4=ipv4, ipv6=ipv6) in said for each in told), said
    assert "ADD again" in site.advice(name)
    again = site.node.runtime.add(pod, mtu=1400, **(BRIDGED if name == "at-bridge" else DUAL))
    assert again.addresses == [ipv4, ipv6]
    wait_for(
        site.put_right(name), AT_ONCE, "all is as it was", state=lambda: (site.check(name), site.node.lab.report())
    )


def test_the_pods_own_end_is_left_to_it_and_what_is_gone_is_told(site: Site) -> None:
    pod, _, end = site.pods["plain"]
    pod.ip("link set eth0 mtu 1200")
    assert "eth0 in the container has an MTU of 1200" in site.check("plain")
    assert "mtu 1200" in pod.run("ip", "link", "show", "eth0")
    site.host.ip(f"link del {end}")
    wait_for(
        lambda: (
            f"are gone until their runtime makes the pods anew: {end} of default/plain"
            in site.node.routed.ctl("status")
        ),
        AT_ONCE,
        "status says so",
        state=site.node.lab.report,
    )
    assert site.node.runtime.call("DEL", pod, **DUAL).status == 0
    site.host.ip(f"link set {site.pods['other'][2]} mtu 1300")
    wait_for(lambda: "are gone until" not in site.node.routed.ctl("status"), AT_ONCE, "and no longer")


def test_a_pod_whose_endpoint_is_lost_is_told_of(site: Site) -> None:
    pod, _, end = site.pods["beside"]
    listed = json.loads(site.node.routed.ctl("get", "workloadendpoints", "-o", "json"))
    (name,) = (each["metadata"]["name"] for each in listed["items"] if each["spec"]["interfaceName"] == end)
    site.node.routed.ctl("delete", "workloadendpoint", name)

    def told() -> bool:
        mtu = "1300" if "mtu 1400" in site.host.run("ip", "link", "show", site.pods["other"][2]) else "1400"
        site.host.ip(f"link set {site.pods['other'][2]} mtu {mtu}")  # has the daemon look
        return f"no WorkloadEndpoint has the interfaces {end}" in site.node.routed.ctl("status")

    wait_for(told, 60, "status says so", state=site.node.lab.report, every=1)
    assert site.node.runtime.call("DEL", pod, **BRIDGED).status == 0
    wait_for(lambda: end not in site.node.interfaces(), AT_ONCE, "the DEL takes it")


def test_an_interface_of_the_nodes_own_that_an_endpoint_names_is_left_alone(site: Site) -> None:
    evil = site.node.lab.namespace("evil")
    listed = json.loads(site.node.routed.ctl("get", "workloadendpoints", "-o", "json"))
    (honest,) = (each for each in listed["items"] if each["spec"]["interfaceName"] == site.pods["other"][2])
    spec = {
        **honest["spec"],
        "pod": "evil",
        "containerID": f"c-{evil.name}",
        "interfaceName": "eth0",
        "ipNetworks": ["10.65.9.9/32"],
    }
    name = f"{spec['node']}-k8s-evil-eth0"
    site.node.routed.put({**honest, "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    before = site.host.run("ip", "-br", "link", "show", "eth0")
    wait_for(
        lambda: f"{name}: eth0 is no pod's interface" in site.node.routed.ctl("status"), AT_ONCE, "status tells of it"
    )
    end = site.pods["other"][2]
    count = site.log().count("put right")
    site.host.ip(f"link set {end} down")  # has the daemon look at all
    wait_for(
        lambda: site.log().count("put right") > count, AT_ONCE, "the pod's is put right", state=site.node.lab.report
    )
    assert site.host.run("ip", "-br", "link", "show", "eth0") == before
    assert "10.65.9.9" not in site.host.run("ip", "route")
    assert site.node.runtime.call("DEL", evil, name="evil").status == 0
    wait_for(lambda: "eth0 is no pod's interface by its name, so it is not removed" in site.log(), AT_ONCE, "and left")
    assert site.host.run("ip", "-br", "link", "show", "eth0") == before


def test_what_happened_while_the_daemon_was_away(site: Site) -> None:
    _, _, end = site.pods["at-bridge"]
    site.node.routed.kill()
    site.host.ip("link set routed0 down", f"link set {end} nomaster")
    site.node.start()
    wait_for(site.put_right("at-bridge"), AT_ONCE, "it is put right at start", state=site.node.lab.report)
