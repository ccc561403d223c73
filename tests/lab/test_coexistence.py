"""Beside iptables: rules as kube-proxy and Docker write them, with iptables-nft and iptables-legacy, before and after ours.

Their rules stay octet for octet whatever we change, ours whatever they change, and a connection is made where both allow it.
The commands are the distribution's own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from routed.testing.lab import Namespace
from routed.testing.lab.namespaces import NETNS
from tests.lab.policy_site import interface_of
from tests.lab.test_host_policy import ADDRESSES, CLIENT, HOST, PODS, A, B, Site, allow, host_endpoint, resource, who
from tests.policy.nodes import twin
from tests.policy.specification import Connection

pytestmark = pytest.mark.lab

SERVICE = "198.51.100.99"
"""A ClusterIP; nobody has it."""
NODE_PORT = 6443
FORMS = ("nft", "legacy")


def kube_proxy(family: int) -> str:
    """A service with one endpoint, by ClusterIP and NodePort, with kube-proxy's chains and marks."""
    pod, service = (PODS[B], SERVICE) if family == 4 else (f"[{twin(PODS[B])}]", twin(SERVICE))
    return f"""\
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-B - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d {service} -p tcp -m tcp --dport 443 -j KUBE-SEP-B
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport {NODE_PORT} -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport {NODE_PORT} -j KUBE-SEP-B
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination {pod}:80
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
"""


DOCKER = """\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""


class Tables:
    """One form of iptables in a namespace."""

    def __init__(self, where: Namespace, form: str) -> None:
        self._where = where
        self._form = form

    def program(self, family: int, what: str = "") -> str:
        return f"ip{'6' if family == 6 else ''}tables-{self._form}{what}"

    def restore(self, family: int, rules: str) -> None:
        """As kube-proxy does: what is there stays."""
        subprocess.run(
            [
                "nsenter",
                f"--net={NETNS}/{self._where.full_name}",
                "--",
                self.program(family, "-restore"),
                "--noflush",
                "--wait",
            ],
            input=rules,
            text=True,
            check=True,
            capture_output=True,
        )

    def run(self, family: int, *words: str) -> None:
        self._where.run(self.program(family), "--wait", *words)  # the lock is one for all namespaces

    def saved(self) -> str:
        """All rules of both families, without times and counts."""
        text = "".join(self._where.run(self.program(family, "-save")) for family in (4, 6))
        return re.sub(r"\[\d+:\d+\]|^#.*\n", "", text, flags=re.MULTILINE)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


PODS_80 = resource(
    "GlobalNetworkPolicy", "pods", {"selector": "pod == 'b'", "types": ["Ingress"], "ingress": [allow("TCP", 80)]}
)
PODS_CLOSED = resource("GlobalNetworkPolicy", "pods", {"selector": "pod == 'b'", "types": ["Ingress"]})


def by_service(source: str, address: str, port: int) -> list[Connection]:
    ADDRESSES.setdefault("the service", SERVICE)
    return [Connection(who(source), who(address), "TCP", port, ipv6) for ipv6 in (False, True)]


def ours(site: Site) -> str:
    """Our rules, without counts."""
    return re.sub(r"packets \d+ bytes \d+", "", site.node.run("nft", "list", "table", "inet", "routed"))


def test_kube_proxy(site: Site, form: str):
    tables = Tables(site.node, form)
    for family in (4, 6):
        tables.restore(family, kube_proxy(family))
    before = tables.saved()
    assert before.count("KUBE-SEP-B") >= 6
    site.have(PODS_80)
    assert tables.saved() == before
    made = [
        *by_service(A, "the service", 443),
        *by_service(CLIENT, HOST, NODE_PORT),
        *by_service(HOST, "the service", 443),
    ]
    assert site.connections.attempt(made, set(range(6))) == set(range(6))
    # a service's packets are judged as what they are: a connection to the pod behind it
    masqueraded = site.node.run("conntrack", "-L", "-p", "tcp", "--orig-port-dst", str(NODE_PORT))
    assert f"src={PODS[B]} dst={ADDRESSES[HOST]}" in masqueraded  # their mark lived through ours
    site.check({(A, B, "TCP/80"): True, (A, B, "TCP/443"): False, (CLIENT, B, "TCP/443"): False})
    site.have(PODS_CLOSED)
    assert site.connections.attempt(made[:4], set()) == set()
    site.check({(A, B, "TCP/80"): False, (HOST, B, "TCP/80"): True})
    assert tables.saved() == before
    # they come and go as they like, and ours stay, and are not written again for it
    written, rebuilt = ours(site), site.keeper.kernel.rebuilds
    for family in (4, 6):
        tables.run(family, "-t", "nat", "-F", "KUBE-SERVICES")
        tables.restore(family, "*filter\n:KUBE-PROXY-FIREWALL - [0:0]\n-A INPUT -j KUBE-PROXY-FIREWALL\nCOMMIT\n")
    site.have(PODS_80)
    site.check({(A, B, "TCP/80"): True, (A, B, "TCP/443"): False})
    site.have(PODS_CLOSED)
    assert ours(site) == written and site.keeper.kernel.rebuilds == rebuilt
    assert tables.saved().count("KUBE-PROXY-FIREWALL") == 4


def test_docker(site: Site, form: str):
    tables = Tables(site.node, form)
    site.have(PODS_80)
    site.check({(CLIENT, A, "TCP/80"): True, (CLIENT, B, "TCP/443"): False})
    for family in (4, 6):
        tables.restore(family, DOCKER.replace("172.17.0.0/16", "172.17.0.0/16" if family == 4 else "fd17::/64"))
    # Docker drops all forwarding it does not know, and its rules are not ours to change
    lost = [Connection(who(CLIENT), who(A), "TCP", 80, ipv6) for ipv6 in (False, True)]
    assert site.connections.attempt(lost, set()) == set()
    for family in (4, 6):  # as docs/policy.md has it
        tables.run(family, "-I", "DOCKER-USER", "-i", "cali+", "-j", "ACCEPT")
        tables.run(family, "-I", "DOCKER-USER", "-o", "cali+", "-j", "ACCEPT")
    before = tables.saved()
    site.check({(CLIENT, A, "TCP/80"): True, (A, CLIENT, "UDP/80"): True, (A, B, "TCP/80"): True})
    site.check({(CLIENT, B, "TCP/443"): False, (A, B, "TCP/443"): False})  # what they accept we still deny
    site.have(PODS_CLOSED, host_endpoint())
    site.check({(A, B, "TCP/80"): False, (CLIENT, HOST, "TCP/80"): False, (CLIENT, HOST, "TCP/22"): True})
    assert tables.saved() == before


def test_both_forms_and_a_table_of_firewalld_s_kind_at_once(site: Site):
    both = [Tables(site.node, form) for form in FORMS]
    site.node.run(
        "nft",
        "table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; "
        f'ct state established,related accept; oifname "{interface_of(PODS[A])}" udp dport 80 reject; }}; }}',
    )
    firewalld = site.node.run("nft", "list", "table", "inet", "firewalld")
    for tables in both:
        for family in (4, 6):
            tables.run(family, "-A", "FORWARD", "-p", "tcp", "--dport", "443", "-j", "DROP")
    before = [tables.saved() for tables in both]
    site.have(PODS_80)
    lost = [Connection(who(CLIENT), who(A), kind, port) for kind, port in (("UDP", 80), ("TCP", 443))]
    assert site.connections.attempt(lost, set()) == set()  # each may deny what the others allow
    site.check({(CLIENT, A, "TCP/80"): True, (CLIENT, B, "TCP/80"): True, (CLIENT, B, "UDP/80"): False})
    site.have()
    site.check({(CLIENT, B, "UDP/80"): True})
    assert [tables.saved() for tables in both] == before
    assert site.node.run("nft", "list", "table", "inet", "firewalld") == firewalld
