"""The firewall on a real kernel: what the model admits arrives, what it denies does not, whatever changed in between.

One node with two pods behind it and a host outside. Each round is one batch of changes and a volley of UDP datagrams; a
last datagram that nothing judges tells that all before it have arrived or never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import random
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Collection, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_kernel import FirewallKernel
from routed.dataplane.firewall_layout import CLOSED, CLOSED_HOSTS, OWN_SETS
from routed.dataplane.sockets import open_nftables
from routed.dataplane.table_found import TableFound
from routed.dataplane.tally import RuleTally
from routed.desired_policy import (
    Action,
    BridgePort,
    Chain,
    ChainUpdate,
    EndpointPolicy,
    EndpointUpdate,
    HostRules,
    Place,
    PolicyBatch,
    Rule,
    SetKind,
    SetSpec,
    SetUpdate,
    Side,
    TierWalk,
    TunnelPackets,
    Walk,
)
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix
from routed.netlink.messages import messages
from routed.netlink.nft_expressions import same
from routed.netlink.nftables import Batch, decode_chain, decode_rule
from routed.policy.judge import FirewallModel, Packet
from routed.testing.lab import Lab, Namespace, run, wait_for
from routed.testing.lab.namespaces import NETNS

pytestmark = pytest.mark.lab

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
UDP = 17
LATE = 5.0
"""Seconds in which a packet must have arrived that should, and was overtaken."""
SO_RCVBUFFORCE = 33
"""Of the kernel; Python does not know it."""

PODS = {
    "calia": {V4: "10.65.0.1", V6: "fd00:65::1"},
    "calib": {V4: "10.65.0.2", V6: "fd00:65::2"},
}
OUTSIDE = {V4: "192.0.2.7", V6: "2001:db8::7"}
PORTS = (80, 81, 443)


@dataclass
class Site:
    """The laboratory, a kernel's firewall and the model beside it."""

    lab: Lab
    node: Namespace
    hosts: dict[str, Namespace]
    """By the node's interface that leads there."""
    model: FirewallModel
    firewall: Firewall
    kernel: FirewallKernel
    runner: asyncio.Runner
    problems: list[str]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def apply(self, batch: PolicyBatch) -> None:
        self.model.apply(batch)

        async def commit() -> None:
            self.kernel.apply(batch)
            await asyncio.wait_for(self.kernel.settled(), 60)

        self.run(commit())

    def close(self) -> None:
        async def end() -> None:
            self.kernel.close()

        self.run(end())
        self.runner.close()
        self.lab.close()


@pytest.fixture
def site() -> Iterator[Site]:
    lab = Lab()
    node = lab.namespace("node", forward=True)
    hosts = {}
    for number, (interface, addresses) in enumerate([*PODS.items(), ("eth0", OUTSIDE)]):
        host = hosts[interface] = lab.namespace(f"host-{interface}")
        lab.link(node.port(interface), host.port("eth0"))
        mac, ours = f"0e:00:00:00:00:0{number}", "ee:ee:ee:ee:ee:ee"
        node.ip(f"link set {interface} address {ours}")
        host.ip(f"link set eth0 address {mac}")
        for family, address in addresses.items():
            bits, gateway = (128, "fe80::1") if family is V6 else (32, "169.254.1.1")
            host.address("eth0", f"{address}/{bits}")
            host.ip(
                f"neigh replace {gateway} lladdr {ours} dev eth0",
                f"route replace default via {gateway} dev eth0 onlink",
            )
            node.ip(
                f"route add {address}/{bits} dev {interface}", f"neigh replace {address} lladdr {mac} dev {interface}"
            )
    node.address("eth0", "192.0.2.1/24", "2001:db8::1/64")
    problems: list[str] = []
    runner = asyncio.Runner()
    firewall = Firewall()
    kernel = FirewallKernel(firewall, problems.append)

    async def start() -> None:
        kernel.start()

    with node.entered():
        runner.run(start())
    made = Site(lab, node, hosts, FirewallModel(), firewall, kernel, runner, problems)
    yield made
    made.close()


def address_of(interface: str, family: Family) -> str:
    return (PODS.get(interface) or OUTSIDE)[family]


def volley(site: Site, packets: list[Packet], expected: Collection[int] = ()) -> set[int]:
    """Send all and tell which arrived, by their number. Those expected are waited for also where another processor was
    faster with the last."""
    arrived: set[int] = set()
    with contextlib.ExitStack() as opened:
        listeners: dict[tuple[str, Family, int], socket.socket] = {}
        for interface, host in site.hosts.items():
            with host.entered():
                for family in (V4, V6):
                    for port in (*PORTS, 9):
                        af = socket.AF_INET if family is V4 else socket.AF_INET6
                        made = opened.enter_context(socket.socket(af, socket.SOCK_DGRAM))
                        made.bind((address_of(interface, family), port))
                        made.settimeout(60)
                        listeners[interface, family, port] = made
        for number, packet in enumerate(packets):
            with (
                site.hosts[packet.incoming].entered(),
                contextlib.closing(
                    socket.socket(socket.AF_INET if packet.family is V4 else socket.AF_INET6, socket.SOCK_DGRAM)
                ) as sender,
            ):
                sender.bind((address_of(packet.incoming, packet.family), packet.source_port))
                sender.sendto(struct.pack("!I", number), (address_of(packet.outgoing, packet.family), packet.port))
        with site.node.entered():
            for (interface, family, port), listener in listeners.items():
                with contextlib.closing(socket.socket(listener.family, socket.SOCK_DGRAM)) as sender:
                    sender.sendto(b"last", (address_of(interface, family), port))
        for listener in listeners.values():
            while (data := listener.recv(64)) != b"last":
                arrived.add(struct.unpack("!I", data)[0])
        until = time.monotonic() + LATE
        while not arrived.issuperset(expected) and time.monotonic() < until:
            for late in select.select(list(listeners.values()), (), (), LATE / 10)[0]:
                arrived.add(struct.unpack("!I", late.recv(64))[0])
    return arrived


def probes(rng: random.Random, families: tuple[Family, ...] = (V4, V6)) -> list[Packet]:
    interfaces = [*PODS, "eth0"]
    made = []
    for source in interfaces:
        for destination in interfaces:
            if source == destination:
                continue
            for family in families:
                for port in PORTS:
                    made.append(
                        Packet(
                            parse_address(address_of(source, family)),
                            parse_address(address_of(destination, family)),
                            UDP,
                            rng.randrange(1024, 60000),
                            port,
                            incoming=source,
                            outgoing=destination,
                        )
                    )
    return made


def agree(site: Site, packets: list[Packet]) -> list[str]:
    """Where kernel and model differ."""
    judged = [site.model.judge(packet) for packet in packets]
    arrived = volley(site, packets, [number for number, each in enumerate(judged) if each.admitted])
    return [
        f"{packet.incoming} -> {packet.outgoing} {packet.family.label} {packet.source_port} -> {packet.port}: "
        f"the model says {said}, the packet {'arrived' if number in arrived else 'was lost'}"
        for number, (packet, said) in enumerate(zip(packets, judged, strict=True))
        if said.admitted is not (number in arrived)
    ]


ALLOW_ALL = Walk((TierWalk("default", ("allow",), Action.DENY),))
ALLOW = Chain("allow", (Rule(Action.ALLOW, origin="allow everything"),))


def everywhere(walk: Walk | None) -> tuple[EndpointUpdate, ...]:
    return tuple(
        EndpointUpdate(name, Place.WORKLOAD, EndpointPolicy(name, Place.WORKLOAD, walk, walk)) for name in PODS
    )


def test_before_anything_is_known_nothing_is_written(site: Site):
    assert site.node.run("nft", "list", "tables").strip() == ""


def test_an_interface_nobody_described_admits_nothing(site: Site):
    site.apply(PolicyBatch())
    packets = probes(random.Random(1))
    assert agree(site, packets) == []
    assert all(packet.incoming == "eth0" or not site.model.judge(packet).admitted for packet in packets)


def test_pods_without_policy_are_open(site: Site):
    site.apply(PolicyBatch(endpoints=everywhere(None)))
    packets = probes(random.Random(1))
    assert volley(site, packets, range(len(packets))) == set(range(len(packets)))


def test_a_pod_s_lies_about_its_address_are_dropped(site: Site):
    site.apply(PolicyBatch(endpoints=everywhere(None)))
    for family, lie in ((V4, "10.65.0.99"), (V6, "fd00:65::99")):
        host = site.hosts["calia"]
        host.ip(f"addr add {lie}/{128 if family is V6 else 32} dev eth0{' nodad' if family is V6 else ''}")
        true, false = (
            Packet(parse_address(source), parse_address(OUTSIDE[family]), UDP, 5000, 80)
            for source in (PODS["calia"][family], lie)
        )
        with (
            site.hosts["eth0"].entered(),
            contextlib.closing(
                socket.socket(socket.AF_INET if family is V4 else socket.AF_INET6, socket.SOCK_DGRAM)
            ) as listener,
        ):
            listener.bind((OUTSIDE[family], 80))
            listener.settimeout(60)
            with host.entered():
                for packet, source in ((false, lie), (true, PODS["calia"][family])):
                    with contextlib.closing(socket.socket(listener.family, socket.SOCK_DGRAM)) as sender:
                        sender.bind((source, packet.source_port))
                        sender.sendto(source.encode(), (OUTSIDE[family], 80))
            assert listener.recv(64) == PODS["calia"][family].encode()


def indexes(site: Site) -> dict[str, int]:
    with site.node.entered():
        return {name: index for index, name in socket.if_nameindex()}


def known(site: Site, addresses: dict[str, tuple[str, ...]]) -> PolicyBatch:
    """Pods without policy, with addresses of their own by interface."""
    return PolicyBatch(
        interfaces=indexes(site),
        endpoints=tuple(
            EndpointUpdate(
                name,
                Place.WORKLOAD,
                EndpointPolicy(name, Place.WORKLOAD, None, None, addresses=tuple(map(parse_address, each))),
            )
            for name, each in addresses.items()
        ),
    )


def heard(site: Site, interface: str, source: str) -> bool:
    """Whether a datagram with this source comes from a pod to the host outside."""
    family = V6 if ":" in source else V4
    kind = socket.AF_INET6 if family is V6 else socket.AF_INET
    with site.hosts["eth0"].entered(), socket.socket(kind, socket.SOCK_DGRAM) as listener:
        listener.bind((OUTSIDE[family], 80))
        listener.settimeout(60)
        with site.hosts[interface].entered(), socket.socket(kind, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(b"pod", (OUTSIDE[family], 80))
        with site.node.entered(), socket.socket(kind, socket.SOCK_DGRAM) as last:
            last.sendto(b"last", (OUTSIDE[family], 80))
        if listener.recv(16) == b"pod":
            return True
        listener.settimeout(0.05)  # another processor may have been faster with the last
        with contextlib.suppress(TimeoutError):
            return listener.recv(16) == b"pod"
        return False


def sources_listed(site: Site) -> set[tuple[str, str]]:
    text = "".join(site.node.run("nft", "list", "set", "inet", "routed", name) for name in OWN_SETS)
    return {(name, address) for name, address in re.findall(r'"(\w+)" \. ([0-9a-f.:]+)', text)}


@pytest.mark.parametrize("family", [V4, V6])
def test_a_pod_s_own_sources_are_known_with_it_and_others_are_held_against_routes(site: Site, family: Family):
    own = {name: (addresses[family],) for name, addresses in PODS.items()}
    both = {name: tuple(addresses.values()) for name, addresses in PODS.items()}
    site.apply(known(site, both))
    assert sources_listed(site) == {(name, address) for name, each in both.items() for address in each}
    stolen, nobody = PODS["calib"][family], "10.65.0.99" if family is V4 else "fd00:65::99"
    for lie in (stolen, nobody):
        site.hosts["calia"].ip(
            f"addr add {lie}/{128 if family is V6 else 32} dev eth0{' nodad' if family is V6 else ''}"
        )
        assert not heard(site, "calia", lie)
    assert all(heard(site, name, address) for name, (address,) in own.items())
    site.node.ip(f"route add {nobody} dev calia")  # what no endpoint has is the kernel's routes' business
    assert heard(site, "calia", nobody)
    site.node.ip(f"route del {nobody} dev calia")
    assert not heard(site, "calia", nobody)
    # two that claim one address: the routes tell whose it is
    site.apply(known(site, {"calia": (*own["calia"], stolen)}))
    assert not any(address == stolen for _, address in sources_listed(site))
    assert heard(site, "calib", stolen) and not heard(site, "calia", stolen)
    site.apply(known(site, {"calia": own["calia"]}))
    assert ("calib", stolen) in sources_listed(site)
    # what goes takes its sources with it, in a change as in a table made anew
    site.apply(PolicyBatch(endpoints=(EndpointUpdate("calib", Place.WORKLOAD, None),)))
    assert sources_listed(site) == {("calia", own["calia"][0])}
    before, rules = listed(site), site.kernel.rebuilds
    site.node.run(
        "nft", "add", "element", "inet", "routed", f"own_{4 if family is V4 else 6}", f'{{ "calia" . {nobody} }}'
    )
    wait_for(lambda: site.run(site.kernel.rules()) and site.kernel.rebuilds > rules, 60, "it is put right")
    site.run(site.kernel.settled())
    assert listed(site) == before and not heard(site, "calia", nobody)
    assert site.problems == []


@pytest.mark.parametrize("family", [V4, V6])
def test_of_known_sources_no_route_is_asked(site: Site, family: Family):
    """Which is what makes them cheap: a route that leads elsewhere changes nothing for them, and all for others."""
    site.apply(known(site, {name: tuple(addresses.values()) for name, addresses in PODS.items()}))
    address = PODS["calia"][family]
    for name, expected in (("calia", True), ("calib", False)):
        if name == "calib":
            address = PODS["calib"][family]
            site.apply(known(site, {"calib": ()}))
        site.node.ip(f"route replace {address} dev {'calib' if name == 'calia' else 'calia'}")
        assert heard(site, name, address) is expected


def test_sources_go_with_the_interface_and_come_with_it(site: Site):
    """Whatever comes first, the pod's endpoint or its interface, under which name and number."""
    own = {(name, address) for name, addresses in PODS.items() for address in addresses.values()}
    site.apply(replace(known(site, {name: tuple(each.values()) for name, each in PODS.items()}), interfaces={}))
    assert sources_listed(site) == set() and heard(site, "calia", PODS["calia"][V4])
    site.apply(PolicyBatch(interfaces=indexes(site)))
    assert sources_listed(site) == own
    _, found = site.run(site.kernel.look(OWN_SETS))
    assert found == {name: site.firewall.elements_of(name) for name in OWN_SETS} and all(found.values())
    site.apply(PolicyBatch(interfaces={"calia": 0}))
    assert sources_listed(site) == {each for each in own if each[0] == "calib"} and heard(
        site, "calia", PODS["calia"][V6]
    )
    there = indexes(site)
    site.apply(PolicyBatch(interfaces={"calia": there["calib"], "calib": there["calia"]}))
    assert sources_listed(site) == {({"calia": "calib", "calib": "calia"}[name], address) for name, address in own}
    rebuilds = site.kernel.rebuilds
    site.node.run("nft", "flush", "ruleset")
    site.run(made_anew_since(site, rebuilds))
    site.apply(PolicyBatch(interfaces=there))
    assert sources_listed(site) == own and site.problems == []


def test_replies_pass_whatever_the_policy_says_now(site: Site):
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", ALLOW),), endpoints=everywhere(ALLOW_ALL)))
    with contextlib.ExitStack() as opened:
        sockets = {}
        for interface in PODS:
            with site.hosts[interface].entered():
                made = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.bind((PODS[interface][V4], 80))
            made.settimeout(60)
            sockets[interface] = made
        sockets["calia"].sendto(b"question", (PODS["calib"][V4], 80))
        assert sockets["calib"].recv(64) == b"question"
        site.apply(PolicyBatch(endpoints=everywhere(Walk((TierWalk("default", ("allow",), Action.DENY),), ("allow",)))))
        site.apply(PolicyBatch(chains=(ChainUpdate("allow", Chain("allow", (Rule(Action.DENY, origin="closed"),))),)))
        sockets["calib"].sendto(b"answer", (PODS["calia"][V4], 80))
        assert sockets["calia"].recv(64) == b"answer"


def random_rule(rng: random.Random, sets: list[SetSpec]) -> Rule:
    family = rng.choice((None, V4, V6))

    def side() -> Side:
        if family is None:
            names: list[str] = []
            ports_of: list[str] = []
        else:
            of_ports = (SetKind.PORTS, SetKind.RANGES)
            names = [each.name for each in sets if each.family is family and each.kind not in of_ports]
            ports_of = [each.name for each in sets if each.family is family and each.kind in of_ports]

        def some(of: list[str], chance: float) -> tuple[str, ...]:
            return tuple(rng.sample(of, 1)) if of and rng.random() < chance else ()

        def ranges(chance: float) -> tuple[tuple[int, int], ...]:
            made = [(80, 80), (80, 81), (443, 443), (1024, 30000), (30000, 65535)]
            return tuple(rng.sample(made, rng.randint(1, 2))) if rng.random() < chance else ()

        def net(chance: float) -> bytes:
            if family is None or rng.random() >= chance:
                return b""
            address = parse_address(rng.choice([each[family] for each in (*PODS.values(), OUTSIDE)]))
            return make_prefix(address, rng.choice((0, 1, 16, 25, 8 * len(address) - 1, 8 * len(address))))

        return Side(
            some(names, 0.5), some(names, 0.2), ranges(0.3), some(ports_of, 0.2), ranges(0.1), some(ports_of, 0.1),
            net(0.2), net(0.1),
        )  # fmt: skip

    source, destination = side(), side()
    ports = source.asks_for_ports or destination.asks_for_ports
    protocol = UDP if ports else rng.choice((None, UDP, 6))
    action = rng.choice((Action.ALLOW, Action.ALLOW, Action.DENY, Action.PASS, Action.LOG))
    refused = rng.choice((None, None, 6, UDP)) if protocol is None else None
    return Rule(action, family, protocol, refused, None, None, source, destination, f"rule {rng.randrange(1000)}")


def not_as_made(site: Site) -> list[str]:
    """Rules that are read back otherwise than they were written."""
    found = site.run(site.kernel.rules())
    wanted = dict(site.firewall.base_rules)
    for update in site.firewall.program.chains:
        chain, rules = site.firewall.rules_of(update.name)
        wanted[chain] = tuple(each for _, each in rules)
    there = {chain: [rule for rule in found if rule.chain == chain] for chain in wanted}
    return [
        f"{chain} {number}"
        for chain, rules in wanted.items()
        for number, (made, rule) in enumerate(zip(rules, there[chain], strict=True))
        if not same(made, rule.expressions)
    ]


def random_members(rng: random.Random, spec: SetSpec) -> frozenset[bytes]:
    addresses = [parse_address(each[spec.family]) for each in (*PODS.values(), OUTSIDE)]
    if spec.kind is SetKind.HOSTS:
        return frozenset(rng.sample(addresses, rng.randint(0, 3)))
    if spec.kind is SetKind.PORTS:
        return frozenset(
            address + bytes([UDP]) + rng.choice(PORTS).to_bytes(2, "big") for address in rng.sample(addresses, 2)
        )
    if spec.kind is SetKind.RANGES:
        ranges = rng.sample([(80, 80), (81, 443), (1024, 30000), (30001, 65535)], 2)
        return frozenset(low.to_bytes(2, "big") + high.to_bytes(2, "big") for low, high in ranges)
    nets = {
        V4: ("10.65.0.0/24", "10.65.0.2/32", "192.0.2.0/25", "192.0.2.128/25", "0.0.0.0/0", "128.0.0.0/1"),
        V6: ("fd00:65::/32", "fd00:65::2/128", "2001:db8::/48", "::/0", "8000::/1"),
    }[spec.family]
    return _disjoint(rng.sample([parse_prefix(each)[1] for each in nets], 3))


def _disjoint(prefixes: list[bytes]) -> frozenset[bytes]:
    """Without those inside another."""

    def inside(one: bytes, other: bytes) -> bool:
        if one == other or one[0] < other[0]:
            return False
        width = 128
        first = int.from_bytes(one[1:].ljust(16, b"\x00"), "big") >> width - other[0] if other[0] else 0
        second = int.from_bytes(other[1:].ljust(16, b"\x00"), "big") >> width - other[0] if other[0] else 0
        return first == second

    return frozenset(one for one in prefixes if not any(inside(one, other) for other in prefixes))


@pytest.mark.parametrize("seed", range(6))
def test_any_program_and_any_change_of_it(site: Site, seed: int):
    rng = random.Random(seed)
    specs = [SetSpec(f"set_{number}", family, kind) for number, (family, kind) in enumerate(
        (family, kind) for family in (V4, V6) for kind in SetKind for _ in range(2)
    )]  # fmt: skip
    members = {spec: random_members(rng, spec) for spec in specs}
    chains = [f"c{number}" for number in range(4)]

    def walk() -> Walk | None:
        if rng.random() < 0.2:
            return None
        tiers = tuple(
            TierWalk(
                f"tier{number}", tuple(rng.sample(chains, rng.randint(1, 3))), rng.choice((Action.DENY, Action.PASS))
            )
            for number in range(rng.randint(0, 2))
        )
        return Walk(tiers, tuple(rng.sample(chains, rng.randint(0, 2))))

    def chain(name: str) -> ChainUpdate:
        return ChainUpdate(name, Chain(name, tuple(random_rule(rng, specs) for _ in range(rng.randint(0, 4)))))

    def endpoint(interface: str) -> EndpointUpdate:
        if rng.random() < 0.1:
            return EndpointUpdate(interface, Place.WORKLOAD, None)
        policy = EndpointPolicy(interface, Place.WORKLOAD, walk(), walk())
        return EndpointUpdate(interface, Place.WORKLOAD, policy)

    def forwarded() -> EndpointUpdate:
        interface = rng.choice(("eth0", "*"))
        if rng.random() < 0.3:
            return EndpointUpdate(interface, Place.HOST_FORWARD, None)
        policy = EndpointPolicy(interface, Place.HOST_FORWARD, walk(), walk())
        return EndpointUpdate(interface, Place.HOST_FORWARD, policy)

    site.apply(
        PolicyBatch(
            tuple(SetUpdate(spec, members[spec]) for spec in specs),
            tuple(chain(name) for name in chains),
            tuple(endpoint(interface) for interface in PODS),
            HostRules(
                log_group=5,
                log_denied=rng.random() < 0.5,
                tunnels=tuple(
                    TunnelPackets(family, UDP, 81, rng.choice(((), (parse_address(OUTSIDE[family]),))))
                    for family in (V4, V6)
                    if rng.random() < 0.5
                ),
            ),
        )
    )
    assert agree(site, probes(rng)) == []
    for _ in range(6):
        spec = rng.choice(specs)
        new = random_members(rng, spec)
        site.apply(
            PolicyBatch(
                (SetUpdate(spec, new - members[spec], members[spec] - new),),
                (chain(rng.choice(chains)),) if rng.random() < 0.5 else (),
                (endpoint(rng.choice(list(PODS))), *((forwarded(),) if rng.random() < 0.5 else ())),
            )
        )
        members[spec] = new
        assert agree(site, probes(rng)) == []
        assert not_as_made(site) == []
    assert site.problems == [] and site.kernel.rebuilds == 1


def test_what_is_taken_back_is_gone(site: Site):
    spec = SetSpec("peers", V4, SetKind.HOSTS)
    rule = Rule(Action.ALLOW, V4, source=Side(("peers",)), origin="peers")
    site.apply(
        PolicyBatch(
            (SetUpdate(spec, frozenset([parse_address("10.65.0.1")])),),
            (ChainUpdate("one", Chain("one", (rule,))),),
            everywhere(Walk((TierWalk("default", ("one",), Action.DENY),))),
        )
    )
    full = site.node.run("nft", "list", "table", "inet", "routed")
    assert "p_one" in full and "set peers" in full and "chain w_" in full
    site.apply(
        PolicyBatch(
            (SetUpdate(spec, gone=True),),
            (ChainUpdate("one", None),),
            tuple(EndpointUpdate(name, Place.WORKLOAD, None) for name in PODS),
        )
    )
    empty = site.node.run("nft", "list", "table", "inet", "routed")
    assert "p_one" not in empty and "set peers" not in empty and "chain w_" not in empty
    assert site.problems == []


def test_what_somebody_else_changes_is_put_back(site: Site):
    site.apply(PolicyBatch(endpoints=everywhere(None)))
    site.node.run("nft", "add", "table", "inet", "theirs")
    before = site.kernel.rebuilds
    site.node.run("nft", "flush", "chain", "inet", "routed", "forward")

    async def until() -> None:
        deadline = asyncio.get_running_loop().time() + 10
        while site.kernel.rebuilds == before and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        await site.kernel.settled()

    site.run(until())
    assert "goto forwarded" in site.node.run("nft", "list", "chain", "inet", "routed", "forward")
    assert "theirs" in site.node.run("nft", "list", "tables")


SETS = PolicyBatch(
    (
        SetUpdate(SetSpec("hosts", V4, SetKind.HOSTS), frozenset(parse_address(PODS[pod][V4]) for pod in PODS)),
        SetUpdate(SetSpec("nets", V4, SetKind.NETS), frozenset((b"\x08\x0a", b"\x10\xc0\x00"))),
    ),
    (
        ChainUpdate("hosts", Chain("hosts", (Rule(Action.ALLOW, V4, source=Side(("hosts",)), origin="hosts"),))),
        ChainUpdate("nets", Chain("nets", (Rule(Action.DENY, V4, source=Side(("nets",)), origin="nets"),))),
    ),
    everywhere(Walk((TierWalk("default", ("hosts", "nets"), Action.DENY),))),
    HostRules(nat_pools={V4: (b"\x10\x0a\x41",)}, all_pools={V4: (b"\x10\x0a\x41",)}),
)
TAMPERED = [
    "add element inet routed hosts { 10.9.9.9 }",
    "delete element inet routed hosts { 10.65.0.1 }",
    "add element inet routed nets { 172.16.0.0/12 }",
    "delete element inet routed by_to_workload { calia }",
    "delete element inet routed by_to_workload { calia }\nadd element inet routed by_to_workload { calia : goto A_WALK }",
    "add element inet routed by_to_workload { cali9 : drop }",
    "add set inet routed theirs { type ipv4_addr; }",
    "add chain inet routed theirs\nadd rule inet routed theirs jump p_hosts\nadd rule inet routed forward jump theirs",
    "add map inet routed theirs { type ifname : verdict; }\nadd element inet routed theirs { x : goto p_hosts }",
    "add chain inet routed late { type filter hook forward priority 9; policy drop; }",
    "insert rule inet routed A_WALK accept",
    "flush chain inet routed to_workload",
    "flush chain inet routed p_nets",
    "add table inet routed { flags dormant; }",
]


async def made_anew_since(site: Site, rebuilds: int) -> None:
    """What somebody changed was noticed after so many rebuilds, and all is in force again."""
    async with asyncio.timeout(60):
        while site.kernel.rebuilds == rebuilds:
            await asyncio.sleep(0.01)
        await site.kernel.settled()


REPLACED = ["chain inet routed forward { policy drop; }", "flush ruleset", "delete table inet routed"]


@pytest.mark.parametrize("change", [*TAMPERED, *REPLACED])
def test_what_is_put_back_leaves_alone_what_nobody_changed(site: Site, change: str):
    site.apply(SETS)
    before, there = listed(site), handles(site)
    rebuilds = site.kernel.rebuilds
    walk = next(iter(re.findall("chain (w_[0-9a-f]*_0)", before)))
    run("nsenter", f"--net={NETNS}/{site.node.full_name}", "--", "nft", "-f", "-", given=change.replace("A_WALK", walk))
    site.run(made_anew_since(site, rebuilds))
    assert listed(site) == before and site.problems == [] and site.kernel.refusals == 0
    assert (handles(site) == there) is (change in TAMPERED)


class Told:
    """What the kernel tells of the table's new chains and rules, by whomever they are, from here on."""

    def __init__(self, site: Site) -> None:
        self._table = site.firewall.table
        self._so_far: list[str] = []
        with site.node.entered():
            self._socket = open_nftables(groups=1 << (7 - 1))

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def all(self) -> list[str]:
        """In the kernel's order. Each of its changes is told before the call that made it comes back."""
        while (data := self._socket.receive()) is not None:
            for message in messages(data):
                if (chain := decode_chain(message, self._table)) is not None:
                    self._so_far.append(f"chain {chain.name}")
                elif (rule := decode_rule(message, self._table)) is not None:
                    self._so_far.append(f"rule {rule.chain}")
        return self._so_far


@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        "delete table inet routed",
        "flush chain inet routed forward",
        "flush set inet routed nets",
        "delete element inet routed by_to_workload { calia }",
        "add element inet routed hosts { 10.9.9.9 }",
        "insert rule inet routed forwarded accept",
        "add table inet routed { flags dormant; }",
    ],
)
def test_until_all_is_as_it_should_be_nothing_new_passes(site: Site, change: str):
    """And what closes is the first that is written, though who writes and reads the table is busy for long."""
    site.apply(SETS)
    rebuilds = site.kernel.rebuilds
    busy = threading.Event()
    with Told(site) as told:
        site.kernel._thread.submit(busy.wait, 120)
        site.node.run("nft", *change.split())

        async def close_first() -> None:
            async with asyncio.timeout(60):
                while "chain closed" not in told.all():
                    await asyncio.sleep(0.01)
            assert site.kernel.rebuilds == rebuilds
            busy.set()

        site.run(close_first())
        site.run(made_anew_since(site, rebuilds))
        said = told.all()
    assert said.index("rule closed") < said.index("rule forward", said.index("chain closed"))
    assert "closed" not in listed(site)


def test_what_closes_goes_out_at_the_first_word_of_a_change(site: Site, monkeypatch: pytest.MonkeyPatch):
    """The kernel tells of a table that is flushed in many datagrams; those that come later close no more."""
    some = tuple(
        ChainUpdate(f"c{number}", Chain(f"c{number}", (Rule(Action.ALLOW, origin="some"),) * 20))
        for number in range(100)
    )
    site.apply(replace(SETS, chains=(*SETS.chains, *some)))
    before, guard, happened = listed(site), site.kernel._guard, []
    monkeypatch.setattr("routed.dataplane.firewall_guard._PATIENCE", 20.0)  # however late its thread has a turn
    receive, commit = guard._monitor.receive, guard._socket.commit

    def received() -> bytes | None:
        data = receive()
        if data is not None and b"routed\x00" in data:
            happened.append("told")
        return data

    def committed(batch: Batch) -> Any:
        happened.append("closes")
        return commit(batch)

    monkeypatch.setattr(guard._monitor, "receive", received)
    monkeypatch.setattr(guard._socket, "commit", committed)
    rebuilds = site.kernel.rebuilds
    with Told(site) as told:
        site.node.run("nft", "flush", "ruleset")
        site.run(made_anew_since(site, rebuilds))
        assert told.all().count("chain closed") == 1
    assert (
        happened[:3] == ["told", "closes", "closes"] and happened.count("closes") == 2 and happened.count("told") > 10
    )
    assert listed(site) == before and site.problems == [] and site.kernel.rebuilds == rebuilds + 1


def test_rules_that_go_while_they_are_put_back_leave_nothing_open(site: Site, monkeypatch: pytest.MonkeyPatch):
    """As `systemctl restart nftables` has it: flushed at the stop, and by the first line of the file at the start."""
    many = tuple(
        ChainUpdate(f"c{number}", Chain(f"c{number}", (Rule(Action.ALLOW, origin="some"),) * 20))
        for number in range(100)
    )
    host = HostRules(workload_to_host=Action.PASS)
    site.apply(replace(SETS, chains=(*SETS.chains, *many), host=host))
    before, rebuilding, flushed = listed(site), site.firewall.rebuilding, []

    def interrupted(batch: Batch, found: TableFound | None = None) -> Iterator[None]:
        for number, step in enumerate(rebuilding(batch, found=found)):
            if number == 3 and len(flushed) < 2:
                flushed.append(site.node.run("nft", "flush", "ruleset"))
            yield step

    monkeypatch.setattr(site.firewall, "rebuilding", interrupted)
    rebuilds = site.kernel.rebuilds
    with Told(site) as told:
        site.node.run("nft", "flush", "ruleset")
        site.run(made_anew_since(site, rebuilds))
        closing = told.all()[: told.all().index("rule forward")]
    assert len(flushed) == 2
    assert all(closing.count(f"chain {chain}") == 3 for chain in CLOSED - CLOSED_HOSTS), closing
    assert listed(site) == before and site.problems == [] and site.kernel.refusals == 0
    assert site.kernel.rebuilds == rebuilds + 1


def test_where_notifications_were_lost_it_is_looked_whether_rules_went(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.apply(SETS)
    before = listed(site)

    receive = site.kernel._guard._monitor.receive

    def overflow() -> bytes | None:
        monkeypatch.undo()  # once: what comes later is of our own doing
        while receive() is not None:
            pass
        raise OSError(errno.ENOBUFS, "overflow")

    for change, closes in ((("add", "table", "inet", "theirs"), False), (("flush", "ruleset"), True)):
        rebuilds = site.kernel.rebuilds
        with Told(site) as told:
            site.node.run("nft", *change)
            monkeypatch.setattr(site.kernel._guard._monitor, "receive", overflow)
            site.run(made_anew_since(site, rebuilds))
            assert listed(site) == before
            assert ("chain closed" in told.all()) is closes


def test_pods_at_a_bridge_are_closed_with_the_others():
    firewall = Firewall()
    port = EndpointPolicy(
        "calia", Place.WORKLOAD, None, None, BridgePort("routed0", b"\x0e" * 6), (b"\x0a\x41\x00\x01",)
    )
    firewall.take_in(PolicyBatch(endpoints=(EndpointUpdate("calia", Place.WORKLOAD, port),)))
    closing = firewall.closed().encode()
    assert closing.count(b"routed0\x00") == closing.count(b"cali") == 2  # what comes from there, and what goes there


def hooked(site: Site) -> set[str]:
    return set(re.findall(r"chain (\w+) {\n\t\ttype", site.node.run("nft", "list", "chains", "inet")))


def test_packets_stop_only_where_there_are_rules(site: Site):
    """And connections that are translated stay so when nobody's are any more."""
    site.apply(PolicyBatch(endpoints=everywhere(None)))
    assert hooked(site) == {"raw_prerouting", "forward"}
    host = EndpointPolicy("eth0", Place.HOST, ALLOW_ALL, ALLOW_ALL)
    asked = replace(SETS, endpoints=(EndpointUpdate("eth0", Place.HOST, host),), chains=(ChainUpdate("allow", ALLOW),))
    site.apply(asked)
    everything = {"raw_prerouting", "forward", "nat_postrouting", "input", "output", "postrouting"}
    assert hooked(site) == everything | {"raw_output"}
    site.apply(PolicyBatch(endpoints=(EndpointUpdate("eth0", Place.HOST, None),), host=HostRules()))
    assert hooked(site) == {"raw_prerouting", "forward", "nat_postrouting"}
    site.node.run("nft", "add", "set", "inet", "routed", "theirs", "{ type ipv4_addr; }")
    wait_for(lambda: site.run(site.kernel.rules()) and site.kernel.rebuilds == 2, 60, "it is put right")
    site.run(site.kernel.settled())
    assert hooked(site) == {"raw_prerouting", "forward", "nat_postrouting"} and site.problems == []


def listed(site: Site) -> str:
    return re.sub(r"packets \d+ bytes \d+", "", site.node.run("nft", "-s", "list", "table", "inet", "routed"))


def handles(site: Site) -> list[str]:
    text = site.node.run("nft", "-a", "-t", "list", "table", "inet", "routed")
    return re.findall(r"^(?:table inet|\t(?:set|map)) \w+ {.*", text, re.MULTILINE)


class Flow:
    """Datagrams from a pod to another's port, as fast as they go; each is judged, since nobody replies."""

    AHEAD = 200
    """So many of those that should arrive are on their way at most: the kernel's queues take more."""

    def __init__(self, site: Site, source: str, destination: str, port: int, *, admitted: bool) -> None:
        self.sent = self.got = 0
        self._admitted = admitted
        self._stop = threading.Event()
        self._site, self._to = site, (PODS[destination][V4], port)
        with site.hosts[destination].entered():
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with site.hosts[source].entered():
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self._receiver.bind(self._to)
        self._sender.connect(self._to)
        self._thread = threading.Thread(target=self._send)

    def denied(self, changes: int) -> bool:
        """Whether nothing passed while so many changes moved who is denied from one set or table to another.

        A packet that the kernel judges at the very moment of such a change goes on by the rules of before, and looks into
        sets as they are after it (nft_do_chain reads the generation once, each lookup reads it again): of a flow it may be
        one each time. A window between two transactions lets hundreds through.
        """
        return self.got <= changes

    def _send(self) -> None:
        given_up = 0
        while not self._stop.is_set():
            self._sender.send(b"x")
            self.sent += 1
            if self._admitted and self.sent - self.got - given_up >= self.AHEAD and not self._receive(1):
                given_up = self.sent - self.got

    def _receive(self, timeout: float) -> bool:
        """Whether one that is not the last arrives within some seconds."""
        self._receiver.settimeout(timeout)
        try:
            another = self._receiver.recv(16) != b"last"
        except TimeoutError:
            return False
        self.got += another
        return another

    def __enter__(self) -> Flow:
        """Some were sent, however late a thread has its first turn."""
        self._thread.start()
        wait_for(lambda: self.sent > 100, 30, "packets are sent")
        return self

    def __exit__(self, *_: object) -> None:
        """The last is from the node, which may always."""
        self._stop.set()
        self._thread.join()
        with self._site.node.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"last", self._to)
        while self._receive(LATE):
            pass
        while self._admitted and self.got < self.sent and self._receive(LATE):
            pass  # who was overtaken by the last
        self._receiver.close()
        self._sender.close()


def test_no_packet_is_lost_while_the_table_is_made_anew(site: Site):
    """Each is the first of a connection to the kernel, since nobody replies, so each is judged."""
    site.apply(SETS)
    with Flow(site, "calib", "calia", 5000, admitted=True) as flow:

        async def rebuild() -> None:
            for number in itertools.count():
                if number >= 40 and flow.sent > 1000:
                    return
                await undone(site)
                await asyncio.sleep(0.01)

        site.run(rebuild())
    assert flow.sent == flow.got


def test_a_table_of_another_shape_is_replaced_and_nothing_denied_passes_meanwhile(site: Site):
    """As an older version may have left it: one transaction, in which not even a set may stay."""
    bad = SetUpdate(SetSpec("bad", V4, SetKind.HOSTS), frozenset((parse_address(PODS["calib"][V4]),)))
    rules = (
        Rule(Action.DENY, V4, source=Side(("bad",)), origin="the bad"),
        Rule(Action.ALLOW, origin="all others"),
    )
    site.apply(PolicyBatch((bad,), (ChainUpdate("allow", Chain("allow", rules)),), everywhere(ALLOW_ALL)))
    before, told = listed(site), handles(site)
    with Flow(site, "calib", "calia", 5000, admitted=False) as denied:

        async def replace_it() -> None:
            while len(replaced) < 40 or denied.sent <= 1000:
                site.kernel._replace = True
                await undone(site)
                replaced.append(site.kernel.rebuilds)

        replaced: list[int] = []
        site.run(replace_it())
    assert denied.denied(len(replaced))
    assert listed(site) == before and handles(site) != told and site.problems == [] and site.kernel.refusals == 0


def of_ranges(kind: SetKind, number: int) -> tuple[tuple[SetUpdate, ...], Chain]:
    """A policy that denies calib what it sends to port 5000 and admits what calia sends to port 5001, by sets of ranges."""
    names, members = [], []
    for name, pod, port in (("bad", "calib", 5000), ("good", "calia", 5001)):
        names.append(f"{name}{number}")
        own, other = b"\x20" + parse_address(PODS[pod][V4]), bytes((16, 172, number % 256))
        of_ports = frozenset((struct.pack("!HH", port, port), struct.pack("!HH", 7000 + number, 8000)))
        members.append(frozenset((own, other)) if kind is SetKind.NETS else of_ports)
    updates = tuple(SetUpdate(SetSpec(name, V4, kind), each) for name, each in zip(names, members, strict=True))

    def rule(action: Action, name: str) -> Rule:
        if kind is SetKind.NETS:
            return Rule(action, V4, source=Side((name,)), origin=name)
        return Rule(action, V4, UDP, destination=Side(port_sets=(name,)), origin=name)

    to_5000 = Rule(Action.ALLOW, V4, UDP, destination=Side(ports=((5000, 5000),)), origin="others")
    return updates, Chain("allow", (rule(Action.DENY, names[0]), to_5000, rule(Action.ALLOW, names[1])))


@pytest.mark.parametrize("kind", [SetKind.NETS, SetKind.RANGES])
@pytest.mark.parametrize("how", ["changed", "replaced", "put back"])
def test_rules_never_meet_a_set_of_ranges_that_is_not_filled_yet(site: Site, kind: SetKind, how: str):
    """The kernel shows the members of such a set some time after the rules of the same transaction."""
    many = tuple(
        ChainUpdate(f"c{number}", Chain(f"c{number}", (Rule(Action.ALLOW, origin="some"),) * 20))
        for number in range(30)
    )
    sets, chain = of_ranges(kind, 0)
    site.apply(PolicyBatch(sets, (ChainUpdate("allow", chain), *many), everywhere(ALLOW_ALL)))
    sent = 0
    for number in range(1, 12 if how == "changed" else 5):
        busy = threading.Event()
        if how == "put back":
            with Told(site) as told:
                site.kernel._thread.submit(busy.wait, 120)
                site.node.run("nft", "flush", "ruleset")

                async def closed() -> None:
                    while "rule closed" not in told.all():
                        await asyncio.sleep(0.01)

                site.run(closed())
        with (
            Flow(site, "calib", "calia", 5000, admitted=False) as denied,
            Flow(site, "calia", "calib", 5001, admitted=True) as admitted,
        ):
            if how == "changed":
                gone, (sets, chain) = sets, of_ranges(kind, number)
                removed = tuple(SetUpdate(each.spec, gone=True) for each in gone)
                site.apply(PolicyBatch((*sets, *removed), (ChainUpdate("allow", chain), *many)))
            else:
                site.kernel._replace = how == "replaced"
                busy.set()
                site.run(undone(site))
        assert denied.denied(how == "replaced") and (how != "changed" or admitted.got == admitted.sent)
        sent += min(denied.sent, admitted.sent)
    assert sent > 100 and site.problems == [] and site.kernel.refusals == 0


def test_who_moves_from_a_rule_into_a_set_of_ranges_that_is_there_is_denied_all_the_time(site: Site):
    """The set is told its new member before the rules rely on that."""
    many = tuple(
        ChainUpdate(f"c{number}", Chain(f"c{number}", (Rule(Action.ALLOW, origin="some"),) * 20))
        for number in range(150)
    )
    bad, own = SetSpec("bad", V4, SetKind.NETS), SetSpec("own", V4, SetKind.NETS)
    others, calib = bytes((12, 172, 16)), b"\x20" + parse_address(PODS["calib"][V4])

    def denies(*names: str) -> ChainUpdate:
        rules = (Rule(Action.DENY, V4, source=Side((name,)), origin=name) for name in names)
        return ChainUpdate("allow", Chain("allow", (*rules, Rule(Action.ALLOW, origin="all others"))))

    sets = (SetUpdate(bad, frozenset((others,))), SetUpdate(own, frozenset((calib,))))
    site.apply(PolicyBatch(sets, (denies("own", "bad"), *many), everywhere(ALLOW_ALL)))
    with Flow(site, "calib", "calia", 5000, admitted=False) as denied:
        for _ in range(8):
            moved = (SetUpdate(bad, frozenset((calib,))), SetUpdate(own, gone=True))
            site.apply(PolicyBatch(moved, (denies("bad"), *many)))
            moved = (SetUpdate(bad, removed=frozenset((calib,))), SetUpdate(own, frozenset((calib,))))
            site.apply(PolicyBatch(moved, (denies("own", "bad"), *many)))
    assert denied.denied(16) and denied.sent > 100 and site.problems == [] and site.kernel.refusals == 0


@pytest.mark.parametrize("kind", [SetKind.NETS, SetKind.HOSTS])
def test_who_is_denied_by_a_set_and_then_by_another_is_denied_while_all_is_made_anew(site: Site, kind: SetKind):
    """As at a start after which other policies say what those of before said."""
    many = tuple(
        ChainUpdate(f"c{number}", Chain(f"c{number}", (Rule(Action.ALLOW, origin="some"),) * 20))
        for number in range(150)
    )
    calib = frozenset(((b"\x20" if kind is SetKind.NETS else b"") + parse_address(PODS["calib"][V4]),))
    old, new = SetSpec("old", V4, kind), SetSpec("new", V4, kind)

    def denies(name: str) -> ChainUpdate:
        deny = Rule(Action.DENY, V4, source=Side((name,)), origin=name)
        return ChainUpdate("allow", Chain("allow", (deny, Rule(Action.ALLOW, origin="all others"))))

    first = (SetUpdate(old, calib), SetUpdate(new))
    site.apply(PolicyBatch(first, (denies("old"), *many), everywhere(ALLOW_ALL)))
    with Flow(site, "calib", "calia", 5000, admitted=False) as denied:
        for number in range(6):
            one, other = (old, new) if number % 2 == 0 else (new, old)
            moved = (SetUpdate(one, removed=calib), SetUpdate(other, calib))
            site.firewall.take_in(PolicyBatch(moved, (denies(other.name),)))
            site.run(undone(site))
    assert denied.denied(6) and denied.sent > 100 and site.problems == [] and site.kernel.refusals == 0


async def undone(site: Site) -> None:
    site.kernel._undo()
    await site.kernel.settled()


def test_counters_name_the_rule(site: Site):
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", ALLOW),), endpoints=everywhere(ALLOW_ALL)))
    packets = [packet for packet in probes(random.Random(2)) if packet.incoming == "calia"]
    assert agree(site, packets) == []
    rules = site.run(site.kernel.rules())
    counted = {rule.comment: rule.packets for rule in rules if rule.chain == "p_allow"}
    # a packet to the other pod is admitted twice, one to the outside once
    assert counted == {"allow everything": sum(2 if packet.outgoing == "calib" else 1 for packet in packets)}


def reset_packet(port: int) -> bytes:
    """A TCP header with RST and ACK: of no connection where none is tracked (RFC 9293 3.1)."""
    return struct.pack("!HHIIBBHHH", 4000, port, 1, 1, 5 << 4, 0x14, 0, 0, 0)


def resets_arrive(source: Namespace, target: Namespace, node: Namespace, address: str, port: int) -> bool:
    """Whether one arrives before one that the node itself sends, which is never judged."""
    with contextlib.ExitStack() as opened:
        made = []
        for namespace in (target, source, node):
            with namespace.entered():
                made.append(opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)))
        listener, *senders = made
        listener.settimeout(60)
        for sender, number in zip(senders, (port, 9), strict=True):
            sender.sendto(reset_packet(number), (address, 0))
        while (found := struct.unpack_from("!H", listener.recv(256), 22)[0]) != 9:
            if found == port:
                return True
        return False


def test_packets_of_no_connection(site: Site):
    """As Felix has it: dropped at pods, though policy admits everything, unless that is switched off."""

    def arrives(port: int) -> bool:
        return resets_arrive(site.hosts["calia"], site.hosts["calib"], site.node, PODS["calib"][V4], port)

    site.apply(PolicyBatch(endpoints=everywhere(None)))
    assert not arrives(80)
    dropped = [rule for rule in site.run(site.kernel.rules()) if rule.comment == "of no connection" and rule.packets]
    assert [rule.chain for rule in dropped] == ["from_workload"]
    assert site.firewall.decisions()["from_workload"]["of no connection"] == ("of no connection", Action.DENY)
    packet = Packet(b"\x0a\x41\x00\x01", b"\x0a\x41\x00\x02", 6, incoming="calia", outgoing="calib", invalid=True)
    assert site.model.judge(packet).reason == "of no connection"
    site.apply(PolicyBatch(host=HostRules(drop_invalid=False)))
    assert arrives(81) and site.model.judge(packet).admitted


@pytest.mark.parametrize("place", [Place.HOST, Place.HOST_PRE_DNAT, Place.HOST_FORWARD])
def test_packets_of_no_connection_at_host_endpoints(site: Site, place: Place):
    """As at pods: though policy admits everything; where no policy is asked they pass."""
    outside = site.hosts["eth0"]
    forwarded = place is Place.HOST_FORWARD
    target, address = (outside, "192.0.2.7") if forwarded else (site.node, "192.0.2.1")
    source = site.hosts["calia"] if forwarded else outside

    def arrives(port: int) -> bool:
        return resets_arrive(source, target, site.node, address, port)

    # what comes from a pod is asked there first: this one is no workload
    site.apply(PolicyBatch(host=HostRules(workload_prefixes=("calib",))))
    assert arrives(80)
    policy = EndpointPolicy("eth0", place, None if forwarded else ALLOW_ALL, ALLOW_ALL if forwarded else None)
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", ALLOW),), endpoints=(EndpointUpdate("eth0", place, policy),)))
    assert not arrives(81) and site.problems == []
    dropped = [rule for rule in site.run(site.kernel.rules()) if rule.comment == "of no connection" and rule.packets]
    assert [site.firewall.decisions()[rule.chain][rule.comment] for rule in dropped] == [
        ("of no connection", Action.DENY)
    ]
    ends = {"outgoing": "eth0", "incoming": "calia"} if forwarded else {"incoming": "eth0"}
    packet = Packet(parse_address("192.0.2.7"), parse_address(address), 6, invalid=True, **ends)
    assert site.model.judge(packet).reason == "of no connection"
    site.apply(PolicyBatch(host=HostRules(workload_prefixes=("calib",), drop_invalid=False)))
    assert arrives(82) and site.model.judge(packet).admitted


def test_whatever_is_dropped_has_a_name_and_a_counter(site: Site):
    tunnels = (TunnelPackets(V4, UDP, 4789, ()),)
    host = HostRules(tunnels=tunnels, workload_to_host=Action.DENY)
    site.apply(PolicyBatch(endpoints=everywhere(None), host=host))
    named = {rule.comment for rule in site.run(site.kernel.rules()) if rule.packets is not None}
    wanted = {"spoofed source", "unknown workload", "workload to host", "tunnels of workloads", "of no connection"}
    assert named == wanted | {"tunnel packets of who is no node", "loopback of the node"}
    listed = site.node.run("nft", "list", "table", "inet", "routed")
    assert all("comment" in line for line in listed.splitlines() if line.endswith("drop") or " drop " in line)


@pytest.mark.parametrize("logged", [False, True])
def test_what_a_bridge_does_not_let_in_has_a_name_as_well(site: Site, logged: bool):
    """Whatever other rules of the same words are called."""
    port = BridgePort("routed0", b"\x0e" * 6)
    pod = EndpointPolicy("calia", Place.WORKLOAD, None, None, port, (parse_address("10.65.0.9"),))
    host = HostRules(log_group=7 if logged else None, log_denied=logged)
    site.apply(PolicyBatch(endpoints=(EndpointUpdate("calia", Place.WORKLOAD, pod),), host=host))
    said = {(rule.chain, rule.comment) for rule in site.run(site.kernel.rules()) if rule.packets is not None}
    assert ("from_bridge", "spoofed source") in said and ("from_workload", "unknown workload") in said
    listed = site.node.run("nft", "list", "chain", "inet", "routed", "from_bridge")
    assert ('log prefix "routed deny spoofed source" group 7' in listed) is logged
    assert site.firewall.decisions()["from_bridge"] == {"spoofed source": ("spoofed source", Action.DENY)}


def frame(source: str, destination: str) -> bytes:
    """A router solicitation, from anybody."""
    solicitation = bytes((133, 0, 0, 0)) + bytes(4)
    header = struct.pack("!IHBB", 6 << 28, len(solicitation), socket.IPPROTO_ICMPV6, 255)
    addresses = parse_address(source) + parse_address(destination)
    return b"\xee" * 6 + b"\x0e" * 6 + b"\x86\xdd" + header + addresses + solicitation


@pytest.mark.parametrize("behind", ["interface", "bridge"])
def test_what_pods_say_on_their_link_is_no_spoofing(site: Site, behind: str):
    """Also where nobody has an IPv6 address: the kernel asks for routers and tells of groups by itself at each start."""
    pod = EndpointPolicy("calia", Place.WORKLOAD, None, None, addresses=(parse_address(PODS["calia"][V4]),))
    if behind == "bridge":  # to the rules, calia is a bridge
        pod = replace(pod, interface="port", port=BridgePort("calia", b"\x0e" * 6))
    site.node.run("ip", "-6", "address", "flush", "dev", "calia")
    site.node.run("ip", "-6", "route", "flush", "dev", "calia")
    update = EndpointUpdate(pod.interface, Place.WORKLOAD, pod)
    host = HostRules(workload_prefixes=("calib",) if behind == "bridge" else ("cali",))
    site.apply(PolicyBatch(endpoints=(update,), host=host))

    def spoofed() -> int:
        rules = site.run(site.kernel.rules())
        return sum(rule.packets or 0 for rule in rules if rule.comment == "spoofed source")

    with site.hosts["calia"].entered(), contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
        sender.bind(("eth0", 0))
        before = spoofed()
        for source in ("fe80::c:1", "febf::1", "::"):
            for destination in ("ff02::2", "ff02::16", "ff02::1:ff00:1", "fe80::1"):
                sender.send(frame(source, destination))
        assert spoofed() == before
        for number, source in enumerate(("2001:db8::bad", "fec0::1", "fd00:65::2", "::2"), 1):
            sender.send(frame(source, "ff02::2"))
            wait_for(lambda number=number: spoofed() == before + number, LATE, f"{source} counts")


def test_addresses_of_pools_are_translated_only_outside(site: Site):
    nat = {V4: (parse_prefix("10.65.0.0/16")[1],)}
    every = {V4: (parse_prefix("10.65.0.0/16")[1], parse_prefix("198.51.100.0/24")[1])}
    site.apply(PolicyBatch(endpoints=everywhere(None), host=HostRules(nat_pools=nat, all_pools=every)))
    outside = site.hosts["eth0"]
    outside.address("eth0", "198.51.100.7/32")
    site.node.ip("route add 198.51.100.7/32 via 192.0.2.7")
    for destination, expected in (("192.0.2.7", "192.0.2.1"), ("198.51.100.7", "10.65.0.1")):
        with outside.entered(), contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener:
            listener.bind((destination, 80))
            listener.settimeout(60)
            with (
                site.hosts["calia"].entered(),
                contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
            ):
                sender.sendto(b"x", (destination, 80))
            assert listener.recvfrom(64)[1][0] == expected


LONG = Side(not_ports=tuple((port, port) for port in range(1, 300, 2)))
"""More than fits into a rule of the kernel's."""


def test_what_the_kernel_never_takes_is_closed_alone(site: Site):
    """One policy's rules are refused: it closes what it is for, and all others come into force, now and later."""
    bad = Chain("bad", (Rule(Action.ALLOW, protocol=UDP, destination=LONG, origin="bad"),), "NetworkPolicy red/bad")
    asked = {name: Walk((TierWalk("default", (name,), Action.DENY),)) for name in ("bad", "allow")}
    endpoints = tuple(
        EndpointUpdate(interface, Place.WORKLOAD, EndpointPolicy(interface, Place.WORKLOAD, asked[name], None))
        for interface, name in (("calia", "bad"), ("calib", "allow"))
    )
    site.apply(PolicyBatch(chains=(ChainUpdate("bad", bad), ChainUpdate("allow", ALLOW)), endpoints=endpoints))
    (problem,) = site.problems
    assert "NetworkPolicy red/bad" in problem and "closed" in problem
    packets = probes(random.Random(7))
    others = {number for number, each in enumerate(packets) if each.outgoing != "calia"}
    assert volley(site, packets, others) == others
    deny = Chain("allow", (Rule(Action.DENY, origin="deny"),))
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", deny),)))
    packets = probes(random.Random(8))
    outside = {number for number, each in enumerate(packets) if each.outgoing == "eth0"}
    assert volley(site, packets, outside) == outside
    assert len(site.problems) == 1
    site.apply(PolicyBatch(chains=(ChainUpdate("bad", Chain("bad", ALLOW.rules)),)))
    assert site.problems[-1] == ""
    assert agree(site, probes(random.Random(9))) == []


async def refused(site: Site, walk: Walk) -> None:
    """A walk everywhere that the kernel does not take, until that is told."""
    site.kernel.apply(PolicyBatch(endpoints=everywhere(walk)))
    async with asyncio.timeout(60):
        while not site.problems:
            await asyncio.sleep(0.01)


def test_where_there_are_no_rules_and_none_are_taken_pods_are_cut_off(site: Site):
    walk = Walk((TierWalk("default", ("never_made",), Action.DENY),))

    site.run(refused(site, walk))
    assert "as there are none no new connection from or to a pod passes" in site.problems[0]
    assert volley(site, probes(random.Random(3))) == set()
    site.apply(PolicyBatch(chains=(ChainUpdate("never_made", Chain("never_made", ALLOW.rules)),)))
    packets = probes(random.Random(4))
    assert volley(site, packets, range(len(packets))) == set(range(len(packets)))
    assert site.problems[-1] == ""


def test_what_the_kernel_refuses_is_no_new_table_and_its_counters_no_new_ones(site: Site):
    tally = RuleTally(lambda: 10)

    def counted() -> int:
        tally.read(site.run(site.kernel.rules()), site.firewall.decisions(), site.kernel.rebuilds)
        return sum(count for _, _, count in tally.named)

    allow = replace(ALLOW, policy="NetworkPolicy red/allow")
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", allow),), endpoints=everywhere(ALLOW_ALL)))
    volley(site, probes(random.Random(5)))
    before, counts, seen = counted(), site.kernel.counts, []
    assert before > 0
    commit = site.kernel._commit

    def committing(batches: list[Batch]) -> Any:
        seen.append(site.kernel.counts)
        return commit(batches)

    site.kernel._commit = committing  # type: ignore[method-assign]
    site.run(refused(site, Walk((TierWalk("default", ("never_made",), Action.DENY),))))
    assert "those of before stay in force" in site.problems[0]
    assert counted() == before
    assert seen and {each[:2] for each in seen} == {counts[:2]} and site.kernel.counts[:2] == counts[:2]
    assert site.kernel.counts[2] > counts[2]


def test_names_longer_than_the_kernel_keeps(site: Site):
    """Words of any script and length, in a log's prefix and in comments, and the rules are told by them."""
    name = "NetworkPolicy red/" + "ж\n" * 150
    rule = Rule(Action.DENY, protocol=UDP, origin=f"{name} ingress 1")
    walk = Walk((TierWalk("語" * 100, ("named",), Action.DENY),))
    site.apply(
        PolicyBatch(
            chains=(ChainUpdate("named", Chain("named", (rule, Rule(Action.LOG, origin=name)), name)),),
            endpoints=everywhere(walk),
            host=HostRules(log_group=7, log_denied=True),
        )
    )
    assert site.problems == []
    chain, made = site.firewall.rules_of("named")
    comments = [each for each, _ in made]
    assert [each.comment for each in site.run(site.kernel.rules()) if each.chain == chain] == comments
    assert all(each.startswith("NetworkPolicy red/ж?ж?") for each in comments)


def test_the_kernel_answers_for_what_it_refuses(site: Site):
    site.apply(PolicyBatch(endpoints=everywhere(None)))

    async def wrong() -> None:
        walk = Walk((TierWalk("default", ("never_made",), Action.DENY),))
        site.kernel.apply(PolicyBatch(endpoints=everywhere(walk)))
        deadline = asyncio.get_running_loop().time() + 10
        while not site.problems and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        # the policy that was missing arrives: all is well again
        site.kernel.apply(PolicyBatch(chains=(ChainUpdate("never_made", Chain("never_made", ())),)))
        await asyncio.wait_for(site.kernel.settled(), 60)

    site.run(wrong())
    assert "those of before stay in force" in site.problems[0] and site.problems[-1] == ""
    assert wait_for(lambda: "p_never_made" in site.node.run("nft", "list", "table", "inet", "routed"), 60)
