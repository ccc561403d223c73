"""Policies in a real etcd that cannot be read: what they are for is closed, the rest stays as it was; what `apply` refuses.

One node with four pods; all they ask each other for is one UDP port. What is broken is written with etcdctl, as a bug of
another writer would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from routed.testing.lab import Lab, LabError, Namespace, wait_for
from routed.testing.routers import resource
from tests.datastore.etcd_server import P
from tests.lab.etcd import Etcd
from tests.lab.test_cni import Node

pytestmark = [pytest.mark.lab, pytest.mark.etcd]

PODS = {"web": ("red", "web"), "db": ("red", "db"), "cache": ("red", "cache"), "blue": ("blue", "web")}
LIVED = "until it is put right, what it selects is closed"


class Site:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.written: set[str] = set()
        """What a test put into etcd."""
        self.node = Node(lab, 1)
        node = self.node.namespace
        node.ip("link add eth0 type bridge", "link set eth0 up")
        node.address("eth0", "10.0.0.1/24")
        self.etcd = Etcd(node)
        self.etcd.start()
        self.put("bgpconfigurations/default", resource("BGPConfiguration", "default", {"asNumber": 64512}))
        self.put("ippools/v4", resource("IPPool", "v4", {"cidr": "10.65.0.0/16"}))
        self.put("nodes/n1", resource("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}}))
        for name in ("red", "blue"):
            allow = [{"action": "Allow"}]
            self.put(f"profiles/kns.{name}", resource("Profile", f"kns.{name}", {"ingress": allow, "egress": allow}))
        self.node.routed.configure(datastore={"type": "etcd", "endpoints": [self.etcd.url]})
        self.node.start()
        self.pods: dict[str, tuple[Namespace, str]] = {}
        for name, (namespace, app) in PODS.items():
            made = lab.namespace(name)
            labels = [{"key": "app", "value": app}]
            answer = self.node.runtime.add(made, name=name, namespace=namespace, args={"cni": {"labels": labels}})
            self.pods[name] = (made, answer.addresses[0])

    def put(self, path: str, value: object) -> None:
        self.etcd.put(f"{P}{path}", value)
        self.written.add(path)

    def forget(self, path: str) -> None:
        assert self.etcd.ctl("del", f"{P}{path}").strip() == "1"
        self.written.remove(path)

    def open(self) -> set[str]:
        """`web>db` where an echo request is answered."""
        pairs = [(one, other) for one in self.pods for other in self.pods if one != other]

        def answered(pair: tuple[str, str]) -> bool:
            return self.pods[pair[0]][0].pings(self.pods[pair[1]][1], timeout=0.3)

        with ThreadPoolExecutor(len(pairs)) as pool:
            return {f"{one}>{other}" for (one, other), yes in zip(pairs, pool.map(answered, pairs), strict=True) if yes}

    def becomes(self, wanted: set[str], what: str) -> None:
        wait_for(lambda: self.open() == wanted, 30, what, state=lambda: f"{self.open()} {self.problems()}")

    def remains(self, wanted: set[str], what: str) -> None:
        """It is so now, and nothing else is open."""
        assert self.open() <= wanted, what
        self.becomes(wanted, what)

    def problems(self) -> list[str]:
        return [one for one in self.node.routed.problems() if "olicy" in one]


ALL = {f"{one}>{other}" for one in PODS for other in PODS if one != other}


def into(*names: str) -> set[str]:
    return {each for each in ALL if each.split(">")[1] in names}


def out_of(*names: str) -> set[str]:
    return {each for each in ALL if each.split(">")[0] in names}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab)
        made.becomes(ALL, "all pods reach each other")
        for number in range(20):
            kind = "networkpolicies/other" if number % 2 else "globalnetworkpolicies"
            namespace = "other" if number % 2 else ""
            made.put(f"{kind}/p{number}", policy(f"p{number}", namespace, selector="app == 'nobody'"))
        made.put("networkpolicies/red/guard", GUARD)
        made.becomes(ALL - into("cache"), "a policy that can be read is enforced")
        made.written.clear()
        yield made


def policy(name: str, namespace: str = "red", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    kind = "NetworkPolicy" if namespace else "GlobalNetworkPolicy"
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


GUARD = policy("guard", selector="app == 'cache'", types=["Ingress"], ingress=[])
"""One that can be read, and stays enforced whatever the others are."""


@pytest.fixture(autouse=True)
def guarded(site: Site) -> Iterator[None]:
    yield
    for path in site.written:  # one at a time: who deletes many is asked whether it is meant
        site.etcd.ctl("del", f"{P}{path}")
    site.written.clear()
    site.becomes(ALL - into("cache"), "what was broken is gone")
    wait_for(lambda: not site.problems(), 30, "nobody complains", state=site.problems)


def test_a_bad_network_closes_what_is_selected_in_its_directions(site: Site):
    spec = {"selector": "app == 'db'", "types": ["Ingress"]}
    site.put(
        "networkpolicies/red/net",
        policy("net", **spec, ingress=[{"action": "Allow", "source": {"nets": ["10.0.0.0/40"]}}]),
    )
    site.becomes(ALL - into("cache", "db"), "closed")
    (problem,) = wait_for(site.problems, 30, "it is told")
    assert problem.startswith("NetworkPolicy red/net: ") and LIVED in problem and problem.count("stays") == 0
    assert f"{P}networkpolicies/red/net" in problem and "spec.ingress[0].source.nets[0]" in problem
    site.put("networkpolicies/red/net", policy("net", **spec, ingress=[{"action": "Allow"}]))
    site.becomes(ALL - into("cache"), "put right")
    wait_for(lambda: not site.problems(), 30, "nobody complains", state=site.problems)


def test_what_was_good_and_is_broken_now_closes_too(site: Site):
    good = policy(
        "web",
        selector="app == 'web'",
        types=["Ingress", "Egress"],
        ingress=[{"action": "Allow"}],
        egress=[{"action": "Allow"}],
    )
    site.put("networkpolicies/red/web", good)
    site.put("networkpolicies/red/web", {**good, "spec": {**good["spec"], "order": "first"}})
    site.becomes(ALL - into("cache", "web") - out_of("web"), "closed in both directions")
    wait_for(lambda: "order" in "".join(site.problems()), 30, "it is told", state=site.problems)
    site.forget("networkpolicies/red/web")
    site.becomes(ALL - into("cache"), "it is gone")


@pytest.mark.parametrize(
    "value",
    [
        "this is no policy",
        "",
        '{"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata"',
        json.dumps(policy("odd", selector="app = 'db'", types=["Ingress"])),
        json.dumps({**policy("odd"), "spec": ["nothing", "of", "use"]}),
    ],
    ids=["words", "nothing", "half", "selector", "list"],
)
def test_where_nobody_can_tell_what_it_is_for_its_namespace_is_closed(site: Site, value: str):
    site.put("networkpolicies/red/odd", value)
    site.becomes(set(), "red is closed, and what blue reaches was in red")
    (problem,) = wait_for(site.problems, 30, "it is told")
    assert LIVED in problem and "red/odd" in problem
    site.forget("networkpolicies/red/odd")
    site.becomes(ALL - into("cache"), "it is gone")


def test_of_a_global_policy_the_last_good_version_stays_over_a_restart_too(site: Site):
    good = policy("wide", "", selector="app == 'db'", types=["Ingress"], ingress=[])
    site.put("globalnetworkpolicies/wide", good)
    site.becomes(ALL - into("cache", "db"), "in force")
    site.put("globalnetworkpolicies/wide", "}{")
    (problem,) = wait_for(site.problems, 30, "it is told")
    assert "GlobalNetworkPolicy wide" in problem and "its last good version stays" in problem
    site.remains(ALL - into("cache", "db"), "the last good version stays")
    site.node.routed.processes[0].stop()
    site.node.routed.start()
    wait_for(lambda: len(site.problems()) == 1, 30, "it is told again", state=site.problems)
    site.remains(ALL - into("cache", "db"), "the last good version stays over a restart")
    # with a selector that can be read it is closed like any other
    broken = policy("wide", "", selector="app == 'web'", types=["Egress"], egress=[{"action": "Maybe"}])
    site.put("globalnetworkpolicies/wide", broken)
    site.becomes(ALL - into("cache") - out_of("web", "blue"), "closed")
    wait_for(lambda: LIVED in "".join(site.problems()), 30, "it is told", state=site.problems)


def test_a_node_that_starts_beside_a_broken_policy_never_opens_it(site: Site):
    site.put("networkpolicies/red/net", policy("net", selector="app == 'db'", types=["Ingress"], tier=7))
    site.becomes(ALL - into("cache", "db"), "closed")
    site.node.routed.processes[0].stop()
    site.node.routed.launch()
    web, (_, db) = site.pods["web"][0], site.pods["db"]
    wait_for(lambda: web.pings(db, timeout=0.02) or site.node.routed.answers(), 30, "it runs again")
    site.node.routed.wait()
    wait_for(lambda: web.pings(db, timeout=0.02) or len(site.problems()) == 1, 30, "it is told")
    assert not web.pings(db, timeout=0.2)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("selector: all()\n  ingres: []", r"ingres: is not a field known here; did you mean ingress"),
        ("ingress: [{action: Allow, source: {nets: [10.0.0.0/33]}}]", r"nets\[0\]"),
        (
            "ingress: [{action: Allow, protocol: TCP, destination: {ports: ['90:80']}}]",
            r"ports\[0\]: .*from the lower port to the higher.*90:80",
        ),
        ("selector: app == web", r"selector: .*character 8"),
        ("types: [Sideways]", r"types\[0\]: .*Ingress"),
        (
            "ingress: [{action: Allow, protocol: ICMP, destination: {ports: [80]}}]",
            r"ports: .*TCP, UDP or SCTP",
        ),
    ],
    ids=["field", "cidr", "range", "selector", "direction", "ports"],
)
def test_apply_says_where_and_why_and_writes_nothing(site: Site, spec: str, said: str):
    path = site.lab.folder / "applied.yaml"
    beside = json.dumps(policy("beside", selector="app == 'db'", types=["Ingress"]))
    path.write_text(
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: refused, namespace: red}\nspec:\n  "
        f"{spec}\n---\n{beside}\n"
    )
    with pytest.raises(LabError, match=rf"applied\.yaml:[56]: spec.*{said}"):
        site.node.routed.ctl("apply", "-f", str(path))
    assert site.etcd.ctl("get", "--keys-only", "--prefix", f"{P}networkpolicies/red/").split() == [
        f"{P}networkpolicies/red/guard"
    ]
