"""Policy of host endpoints with real packets, IPv4 and IPv6: what Calico's documents say of them, and the model beside it.

One node between two networks, with two pods behind it: a client on its `eth0`, a server on its `eth1`. The node's policy is
the daemon's own keeper, fed with resources. Every case says what must become of which connections; each is tried with
packets, and the model must say the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from routed.daemon.policy import PolicyKeeper
from routed.dataplane.firewall_layout import EARLY
from routed.desired_policy import Icmp
from routed.model.resources import ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.observed import Interface
from routed.policy.judge import FirewallModel, Packet, begins_nothing
from routed.testing.lab import Lab
from tests.lab.policy_site import Connections, interface_of, wire
from tests.policy.nodes import packet, profile, twin, workload
from tests.policy.specification import Connection, Endpoint

pytestmark = pytest.mark.lab

NODE = {"eth0": "192.0.2.1", "eth1": "198.51.100.1"}
PODS = {"a": "10.65.1.2", "b": "10.65.1.4"}
PORTS = (22, 53, 80, 179, 443, 6443)

CLIENT, SERVER, HOST, FAR, A, B, LOCAL = "client", "server", "node", "node by eth1", "a", "b", "localhost"
ADDRESSES = {
    CLIENT: "192.0.2.7",
    SERVER: "198.51.100.7",
    HOST: NODE["eth0"],
    FAR: NODE["eth1"],
    **PODS,
    LOCAL: "127.0.0.1",
    "a service": "198.51.100.99",
}


def who(name: str) -> Endpoint:
    address = ADDRESSES[name]
    kind = "pod" if name in PODS else "node" if address in (*NODE.values(), "127.0.0.1") else "ext"
    labels = {"pod": name} if kind == "pod" else {}
    return Endpoint(kind, name, "red" if kind == "pod" else "", labels, "node", (address, twin(address)))


def host_endpoint(interface: str = "eth0", **spec: Any) -> dict[str, Any]:
    return resource(
        "HostEndpoint", f"on-{interface.replace('*', 'all')}", {"node": "node", "interfaceName": interface, **spec}
    )


def resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"role": "host"} if kind == "HostEndpoint" else {}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def global_policy(name: str, **spec: Any) -> dict[str, Any]:
    return resource("GlobalNetworkPolicy", name, {"selector": "has(role)", **spec})


def allow(protocol: str, *ports: int, nets: tuple[str, ...] = (), **rule: Any) -> dict[str, Any]:
    destination = {"ports": list(ports)} | ({"nets": [*nets, *map(twin, nets)]} if nets else {})
    return {"action": "Allow", "protocol": protocol, "destination": destination, **rule}


DENY = {"action": "Deny"}


class Site:
    def __init__(self) -> None:
        self.lab = Lab()
        self.problems: list[str] = []
        self.node = node = self.lab.namespace("node", forward=True)
        self.namespaces = {"client": self.lab.namespace("client"), "server": self.lab.namespace("server")}
        hosts = {NODE["eth0"]: node, NODE["eth1"]: node}
        for name, interface in ((CLIENT, "eth0"), (SERVER, "eth1")):
            outer, address = self.namespaces[name], ADDRESSES[name]
            ours = NODE[interface]
            self.lab.link(
                node.port(interface, f"{ours}/24", twin(f"{ours}/24")),
                outer.port("eth0", f"{address}/24", twin(f"{address}/24")),
            )
            outer.ip(f"route add default via {ours}", f"route add default via {twin(ours)}")
            hosts[address] = outer
        numbers = itertools.count(1)
        for name, address in PODS.items():
            self.namespaces[name] = wire(
                self.lab, node, f"pod-{name}", interface_of(address), next(numbers), (address, twin(address))
            )
            hosts[address] = self.namespaces[name]
        self.connections = Connections(
            {each: host for address, host in hosts.items() for each in (address, twin(address))} | {"127.0.0.1": node},
            PORTS,
        )
        self._runner = asyncio.Runner()
        self._told: set[ResourceKey] = set()
        self.keeper = PolicyKeeper("node", self.problems.append, self._bug)
        with node.entered():
            self.run(self._start())

    def _bug(self, _: str, error: Exception) -> None:
        raise error

    async def _start(self) -> None:
        self.keeper.start()
        self.keeper.in_sync()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        async def end() -> None:
            self.keeper.close()

        self.connections.close()
        self.run(end())
        self._runner.close()
        self.lab.close()

    def have(self, *manifests: dict[str, Any]) -> None:
        """These resources exist beside the pods and their namespace, and no others."""
        wanted = [
            profile("red", {}),
            *(workload(who(pod), interface_of(PODS[pod])) for pod in PODS),
            *map(parse_manifest, manifests),
        ]

        async def change() -> None:
            now = {each.key: each for each in wanted}
            for key in self._told - now.keys():
                self.keeper.update(Update(key, None))
            for key, value in now.items():
                self.keeper.update(Update(key, value))
            self._told = set(now)
            async with asyncio.timeout(30):
                await self.keeper.settled()

        self.run(change())

    async def made_anew(self, rebuilds: int, within: float) -> None:
        """What somebody changed was noticed after so many rebuilds, and all is in force again."""
        async with asyncio.timeout(within):
            while self.keeper.kernel.rebuilds == rebuilds:
                await asyncio.sleep(0.01)
            await self.keeper.settled()

    def check(self, wanted: dict[tuple[str, str, str], bool], families: tuple[int, ...] = (4, 6)) -> None:
        """What becomes of these connections ("TCP/80"), in packets and in the model."""
        tried: list[tuple[Connection, bool]] = []
        for (source, destination, what), admitted in wanted.items():
            protocol, port = what.split("/")
            for family in families:
                connection = Connection(who(source), who(destination), protocol, int(port), family == 6)
                tried.append((connection, admitted))
        expected = {number for number, (_, admitted) in enumerate(tried) if admitted}
        made = self.connections.attempt([connection for connection, _ in tried], expected)
        model = FirewallModel()
        model.apply(self.keeper.firewall.program)
        wrong = []
        for number, (connection, admitted) in enumerate(tried):
            text = f"{connection.source.name} -> {connection.destination.name} {connection.protocol}/{connection.port}"
            text += " (IPv6)" if connection.ipv6 else ""
            if admitted is not (number in made):
                wrong.append(f"{text}: {'not ' if admitted else ''}made")
            judged = model.judge(as_it_passes(connection))
            if judged.admitted is not admitted:
                wrong.append(f"{text}: the model says {judged}")
        assert wrong == [] and self.problems == []

    def tracked(self, port: int) -> str:
        return self.node.run("conntrack", "-L", "-p", "tcp", "--dport", str(port))


def as_it_passes(connection: Connection) -> Packet:
    """The connection's first packet, with the node's interfaces that it meets."""

    def interface(endpoint: Endpoint) -> str:
        if endpoint.kind == "pod":
            return interface_of(endpoint.addresses[0])
        if endpoint.kind == "node":
            return "lo" if endpoint.name == LOCAL and endpoint is connection.destination else ""
        return "eth0" if endpoint.name == "client" else "eth1"

    return packet(connection, incoming=interface(connection.source), outgoing=interface(connection.destination))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


OPEN = {
    (CLIENT, HOST, "TCP/80"): True,
    (HOST, CLIENT, "TCP/80"): True,
    (CLIENT, SERVER, "TCP/80"): True,
    (CLIENT, A, "UDP/80"): True,
    (A, CLIENT, "TCP/80"): True,
    (A, B, "TCP/80"): True,
    (A, HOST, "TCP/80"): True,
    (HOST, A, "TCP/80"): True,
}


def test_without_host_endpoints_nothing_of_the_host_is_closed(site: Site):
    site.have(global_policy("deny-all", types=["Ingress", "Egress"]))
    site.check(OPEN)


def test_a_host_endpoint_nobody_has_a_policy_for_is_closed_but_for_the_failsafe_ports(site: Site):
    site.have(host_endpoint())
    site.check(
        {
            (CLIENT, HOST, "TCP/80"): False,
            (CLIENT, HOST, "UDP/80"): False,
            (CLIENT, HOST, "TCP/22"): True,
            (CLIENT, HOST, "UDP/22"): False,
            (CLIENT, HOST, "TCP/179"): True,
            (CLIENT, HOST, "TCP/6443"): True,
            (CLIENT, HOST, "UDP/53"): False,
            (HOST, CLIENT, "TCP/80"): False,
            (HOST, CLIENT, "TCP/22"): False,
            (HOST, CLIENT, "UDP/53"): True,
            (HOST, CLIENT, "TCP/179"): True,
            # what passes through, and interfaces nobody listed, are not its business
            (CLIENT, SERVER, "TCP/80"): True,
            (CLIENT, A, "TCP/80"): True,
            (A, CLIENT, "TCP/80"): True,
            (SERVER, FAR, "TCP/80"): True,
            (FAR, SERVER, "TCP/80"): True,
            (A, HOST, "TCP/80"): True,
            (HOST, A, "TCP/80"): True,
        }
    )


def test_neighbours_are_found_whatever_host_policy_says(site: Site):
    site.have(
        host_endpoint(),
        global_policy("none", types=["Ingress", "Egress"], ingress=[DENY], egress=[DENY]),
        global_policy("early", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[DENY]),
    )
    site.node.ip("neigh flush all dev eth0")
    site.namespaces["client"].ip("neigh flush all dev eth0")
    site.check({(CLIENT, HOST, "TCP/22"): True, (HOST, CLIENT, "TCP/179"): True, (CLIENT, HOST, "TCP/80"): False})


def test_failsafe_ports_as_felix_is_told(site: Site):
    site.have(
        host_endpoint(),
        resource(
            "FelixConfiguration",
            "default",
            {
                "failsafeInboundHostPorts": [
                    {"protocol": "tcp", "port": 80, "net": "192.0.2.0/28"},
                    {"protocol": "tcp", "port": 443, "net": "192.0.2.128/25"},
                    {"protocol": "udp", "port": 443, "net": "::/0"},
                ],
                "failsafeOutboundHostPorts": [],
            },
        ),
        resource(
            "FelixConfiguration",
            "node.node",
            {"failsafeOutboundHostPorts": [{"protocol": "tcp", "port": 443, "net": "192.0.2.7/32"}]},
        ),
    )
    site.check({(CLIENT, HOST, "TCP/22"): False, (CLIENT, HOST, "TCP/443"): False, (HOST, CLIENT, "UDP/53"): False})
    site.check(
        {(CLIENT, HOST, "TCP/80"): True, (HOST, CLIENT, "TCP/443"): True, (CLIENT, HOST, "UDP/443"): False}, (4,)
    )
    site.check(
        {(CLIENT, HOST, "TCP/80"): False, (HOST, CLIENT, "TCP/443"): False, (CLIENT, HOST, "UDP/443"): True}, (6,)
    )


def test_normal_policy_judges_what_the_node_hears_and_says(site: Site):
    site.have(
        host_endpoint(),
        global_policy(
            "host",
            types=["Ingress", "Egress"],
            ingress=[allow("TCP", 80, source={"nets": ["192.0.2.7/32", twin("192.0.2.7/32")]}), allow("UDP", 443)],
            egress=[allow("TCP", 443), {"action": "Deny", "protocol": "UDP"}],
        ),
    )
    site.check(
        {
            (CLIENT, HOST, "TCP/80"): True,
            (CLIENT, HOST, "TCP/443"): False,
            (CLIENT, HOST, "UDP/443"): True,
            (CLIENT, HOST, "TCP/22"): True,
            (HOST, CLIENT, "TCP/443"): True,
            (HOST, CLIENT, "TCP/80"): False,
            (HOST, CLIENT, "UDP/80"): False,
            (HOST, CLIENT, "UDP/53"): True,
            (CLIENT, SERVER, "TCP/443"): True,
            (CLIENT, A, "TCP/443"): True,
            (A, HOST, "TCP/443"): True,
        }
    )


def test_profiles_of_a_host_endpoint(site: Site):
    site.have(host_endpoint(profiles=["projectcalico-default-allow"]))
    site.check(OPEN)


def test_a_host_endpoint_is_found_by_its_addresses(site: Site):
    site.have(resource("HostEndpoint", "by-address", {"node": "node", "expectedIPs": [NODE["eth1"]]}))

    async def look() -> None:
        site.keeper.interfaces(
            {
                number: Interface(number, name, True, ((parse_address(NODE[name]), 24),))
                for number, name in enumerate(NODE, 1)
            }
        )
        await site.keeper.settled()

    site.run(look())
    site.check({(SERVER, FAR, "TCP/80"): False, (SERVER, FAR, "TCP/22"): True, (CLIENT, HOST, "TCP/80"): True})


def test_apply_on_forward_judges_what_passes_through(site: Site):
    forward = global_policy(
        "forward",
        applyOnForward=True,
        types=["Ingress", "Egress"],
        ingress=[allow("TCP", 80)],
        egress=[allow("TCP", 443)],
    )
    site.have(host_endpoint(), forward)
    site.check(
        {
            (CLIENT, SERVER, "TCP/80"): True,
            (CLIENT, SERVER, "TCP/443"): False,
            (CLIENT, SERVER, "TCP/22"): False,  # failsafe ports are the host's own
            (SERVER, CLIENT, "TCP/443"): True,
            (SERVER, CLIENT, "TCP/80"): False,
            (CLIENT, A, "TCP/80"): True,
            (CLIENT, A, "TCP/443"): False,
            (A, CLIENT, "TCP/443"): True,
            (A, CLIENT, "TCP/80"): False,
            (A, SERVER, "TCP/80"): True,
            (A, B, "TCP/443"): True,
            (CLIENT, HOST, "TCP/80"): True,
            (CLIENT, HOST, "TCP/443"): False,
            (HOST, CLIENT, "TCP/443"): True,
        }
    )
    # one direction only: the other stays open for what passes through
    site.have(host_endpoint(), {**forward, "spec": {**forward["spec"], "types": ["Ingress"], "egress": []}})
    site.check({(CLIENT, SERVER, "TCP/443"): False, (SERVER, CLIENT, "TCP/80"): True, (HOST, CLIENT, "TCP/80"): False})


def test_the_wildcard_is_every_interface_of_the_host(site: Site):
    site.have(
        host_endpoint("*"),
        global_policy("all", types=["Ingress", "Egress"], ingress=[allow("TCP", 80)], egress=[allow("TCP", 443)]),
    )
    site.check(
        {
            (CLIENT, HOST, "TCP/80"): True,
            (CLIENT, HOST, "TCP/443"): False,
            (SERVER, FAR, "TCP/80"): True,
            (SERVER, FAR, "TCP/443"): False,
            (FAR, SERVER, "TCP/443"): True,
            (FAR, SERVER, "TCP/80"): False,
            (CLIENT, SERVER, "TCP/443"): True,
            # between the host and its own pods it is not asked
            (A, HOST, "TCP/443"): True,
            (HOST, A, "TCP/80"): True,
        }
    )
    site.check({(LOCAL, LOCAL, "TCP/443"): True, (LOCAL, LOCAL, "UDP/80"): True}, (4,))
    # an interface with an endpoint of its own is not among them
    site.have(
        host_endpoint("*"),
        host_endpoint("eth1", profiles=["projectcalico-default-allow"]),
        resource("GlobalNetworkPolicy", "wide", {"selector": "has(nothing)"}),
    )
    site.check({(CLIENT, HOST, "TCP/80"): False, (SERVER, FAR, "TCP/80"): True, (FAR, SERVER, "UDP/80"): True})


def test_an_endpoint_of_its_own_keeps_the_wildcard_s_policies_of_every_kind_away(site: Site):
    """Whether its own endpoint has policies of this kind, in this direction, or none."""
    site.have(
        host_endpoint("*"),
        {
            **host_endpoint("eth0", profiles=["projectcalico-default-allow"]),
            "metadata": {"name": "own", "labels": {"role": "own"}},
        },
        global_policy("forward", selector="role == 'host'", applyOnForward=True, types=["Egress"], egress=[DENY]),
        global_policy(
            "early",
            selector="role == 'host'",
            preDNAT=True,
            applyOnForward=True,
            types=["Ingress"],
            ingress=[{"action": "Deny", "protocol": "UDP"}],
        ),
    )
    site.check(
        {
            (CLIENT, SERVER, "TCP/80"): False,  # by eth1, which has none
            (SERVER, CLIENT, "TCP/80"): True,
            (CLIENT, HOST, "UDP/80"): True,
            (SERVER, FAR, "UDP/80"): False,
            (A, CLIENT, "TCP/80"): True,
            (CLIENT, A, "TCP/80"): False,
        }
    )


def test_the_wildcard_on_forward_includes_the_pods(site: Site):
    site.have(
        host_endpoint("*"),
        global_policy("all", applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 80)]),
    )
    site.check(
        {
            (CLIENT, SERVER, "TCP/80"): True,
            (CLIENT, SERVER, "TCP/443"): False,
            (A, CLIENT, "TCP/443"): False,
            (A, CLIENT, "TCP/80"): True,
            (A, B, "TCP/443"): False,
            (A, B, "TCP/80"): True,
            (A, HOST, "TCP/443"): True,
        }
    )


def node_port(site: Site, port: int) -> contextlib.AbstractContextManager[None]:
    """What kube-proxy makes of a NodePort: packets to the node's port go to a pod's port 80."""

    @contextlib.contextmanager
    def made() -> Iterator[None]:
        for family, pod in (("ip", PODS[A]), ("ip6", f"[{twin(PODS[A])}]")):
            site.node.run(
                "nft",
                f"table {family} theirs {{ chain prerouting {{ type nat hook prerouting priority dstnat; "
                f"fib daddr type local tcp dport {port} dnat to {pod}:80; }}; }}",
            )
        try:
            yield
        finally:
            for family in ("ip", "ip6"):
                site.node.run("nft", "delete", "table", family, "theirs")

    return made()


def test_pre_dnat_policy_sees_where_packets_were_sent(site: Site):
    site.have(
        host_endpoint(profiles=["projectcalico-default-allow"]),
        global_policy(
            "node-ports",
            preDNAT=True,
            applyOnForward=True,
            types=["Ingress"],
            ingress=[
                allow("TCP", 80, nets=("10.65.1.2/32",)),
                {"action": "Deny", "protocol": "TCP", "destination": {"ports": [443, 22]}},
            ],
        ),
    )
    with node_port(site, 443):
        # port 443 of the node is a pod's port 80, which may be reached as such
        expected = {(CLIENT, A, "TCP/80"): True, (CLIENT, HOST, "TCP/443"): False, (SERVER, FAR, "TCP/443"): True}
        made = site.connections.attempt(
            [Connection(who(a), who(b), "TCP", int(what[4:]), six) for a, b, what in expected for six in (False, True)],
            {0, 1, 4, 5},
        )
        assert made == {0, 1, 4, 5}
    site.check({(CLIENT, HOST, "TCP/443"): False, (CLIENT, HOST, "TCP/80"): True, (CLIENT, HOST, "TCP/22"): True})
    site.check({(CLIENT, A, "TCP/443"): False, (CLIENT, SERVER, "TCP/443"): False, (A, CLIENT, "TCP/443"): True})


def test_what_pre_dnat_policy_allows_is_the_host_s_no_more(site: Site):
    site.have(
        host_endpoint(),
        global_policy("early", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 80)]),
        global_policy("late", applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 443)]),
        resource(
            "GlobalNetworkPolicy",
            "pods",
            {"selector": "pod == 'b'", "types": ["Ingress"], "ingress": [allow("TCP", 443)]},
        ),
    )
    site.check(
        {
            (CLIENT, HOST, "TCP/80"): True,
            (CLIENT, HOST, "TCP/443"): True,
            (CLIENT, HOST, "UDP/80"): False,
            (CLIENT, SERVER, "TCP/80"): True,
            (CLIENT, SERVER, "UDP/80"): False,
            (CLIENT, A, "TCP/80"): True,
            (CLIENT, B, "TCP/80"): False,  # a pod's own policy is asked all the same
            (CLIENT, B, "TCP/443"): True,
        }
    )


def test_what_was_admitted_early_is_still_asked_where_it_leaves(site: Site):
    site.have(
        host_endpoint("eth0"),
        host_endpoint("eth1"),
        global_policy("early", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 80, 443)]),
        global_policy("late", applyOnForward=True, types=["Egress"], egress=[allow("TCP", 80)]),
    )
    site.check({(CLIENT, SERVER, "TCP/80"): True, (CLIENT, SERVER, "TCP/443"): False, (CLIENT, HOST, "TCP/443"): True})


def test_nobody_else_s_mark_passes_for_ours(site: Site):
    site.have(host_endpoint())
    with site.node.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, EARLY)
        with pytest.raises(PermissionError):
            sender.sendto(b"x", (ADDRESSES[CLIENT], 80))


def test_egress_of_the_node_is_judged_where_packets_really_leave(site: Site):
    """A service's address is translated after the kernel chose a way out: the way that counts is the one they take."""
    site.have(
        host_endpoint("eth0"),
        host_endpoint("eth1", profiles=["projectcalico-default-allow"]),
    )
    service, address = ADDRESSES["a service"], ADDRESSES[CLIENT]
    for family, wanted, target in (("ip", service, address), ("ip6", twin(service), f"[{twin(address)}]")):
        site.node.run(
            "nft",
            f"table {family} theirs {{ chain output {{ type nat hook output priority -100; "
            f"{family} daddr {wanted} tcp dport {{ 80, 179 }} dnat to {target}; }}; "
            f"chain postrouting {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}; }}",
        )
    try:
        tries = [
            Connection(who(FAR), who("a service"), "TCP", port, ipv6) for port in (80, 179) for ipv6 in (False, True)
        ]
        assert site.connections.attempt(tries, {2, 3}) == {2, 3}
        site.have(
            host_endpoint("eth0"),
            host_endpoint("eth1"),
            global_policy(
                "by-address",
                types=["Egress"],
                egress=[allow("TCP", 80, nets=(f"{address}/32",))],
            ),
        )
        assert site.connections.attempt(tries, {0, 1, 2, 3}) == {0, 1, 2, 3}
    finally:
        for family in ("ip", "ip6"):
            site.node.run("nft", "delete", "table", family, "theirs")


def test_untracked_policy_leaves_no_track_and_asks_both_ways(site: Site):
    untracked = global_policy(
        "untracked",
        doNotTrack=True,
        applyOnForward=True,
        types=["Ingress", "Egress"],
        ingress=[allow("TCP", 80), {"action": "Deny", "protocol": "TCP", "destination": {"ports": [443, 22]}}],
        egress=[{"action": "Allow", "protocol": "TCP", "source": {"ports": [80]}}],
    )
    site.node.run("conntrack", "-F")
    site.have(host_endpoint(), untracked)
    site.check(
        {
            (CLIENT, HOST, "TCP/80"): True,
            (CLIENT, HOST, "TCP/443"): False,
            (CLIENT, HOST, "TCP/22"): True,
            (CLIENT, HOST, "UDP/80"): False,
            (HOST, CLIENT, "TCP/443"): False,
        }
    )
    assert "dport=80" not in site.tracked(80) and "dport=22" in site.tracked(22)
    # without a word for the replies they are lost: nobody knows them as such
    one_way = {**untracked, "spec": {**untracked["spec"], "types": ["Ingress"], "egress": []}}
    site.have(host_endpoint(), one_way)
    lost = [Connection(who(CLIENT), who(HOST), "TCP", 80, ipv6) for ipv6 in (False, True)]
    assert site.connections.attempt(lost, set()) == set()


def test_of_icmp_only_what_may_begin_a_connection_passes(site: Site):
    """Connection tracking says which types may; `policy explain` and `policy test` must know them."""
    site.have()
    kinds = {False: (3, 5, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 42, 255)}
    kinds[True] = (1, 2, 3, 4, 100, 127, 128, 130, 131, 133, 134, 135, 136, 137, 138, 139, 140, 143, 144, 200, 254)
    tries = [Connection(who(A), who(B), "ICMP", kind << 8, ipv6) for ipv6, each in kinds.items() for kind in each]
    first = {
        number
        for number, each in enumerate(tries)
        if not begins_nothing(58 if each.ipv6 else 1, Icmp(each.port >> 8, 0))
    }
    assert site.connections.attempt(tries, first) == first


def test_what_a_pod_says_to_its_node(site: Site):
    """Felix's defaultEndpointToHostAction: Accept is what routed does unasked."""

    def felix(action: str) -> dict[str, Any]:
        return resource("FelixConfiguration", "default", {"defaultEndpointToHostAction": action})

    quiet = resource(
        "GlobalNetworkPolicy",
        "quiet",
        {"selector": "pod == 'a'", "types": ["Egress"], "egress": [allow("TCP", 80)]},
    )
    site.have(quiet)
    site.check({(A, HOST, "TCP/443"): True, (A, CLIENT, "TCP/443"): False})
    site.have(quiet, felix("Return"))
    site.check({(A, HOST, "TCP/443"): False, (A, HOST, "TCP/80"): True, (B, HOST, "TCP/443"): True})
    site.have(quiet, felix("Drop"))
    site.check(
        {(A, HOST, "TCP/80"): False, (B, HOST, "TCP/443"): False, (HOST, A, "TCP/443"): True, (A, B, "TCP/80"): True}
    )
    # that comes before what a policy at the wildcard admitted early
    early = global_policy(
        "early", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[allow("TCP", 80, 443)]
    )
    open_host = host_endpoint("*", profiles=["projectcalico-default-allow"])
    site.have(quiet, felix("Drop"), open_host, early)
    site.check({(A, HOST, "TCP/80"): False, (B, HOST, "TCP/443"): False, (CLIENT, HOST, "TCP/443"): True})
    site.have(quiet, felix("Return"), open_host, early)
    site.check({(A, HOST, "TCP/80"): True, (A, HOST, "TCP/443"): False, (B, HOST, "TCP/443"): True})


def test_nothing_stays_of_host_policy(site: Site):
    site.have(host_endpoint("*"), global_policy("all", types=["Ingress"]))
    site.check({(CLIENT, HOST, "TCP/80"): False})
    site.have()
    site.check(OPEN)
