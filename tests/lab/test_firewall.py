"""The firewall on a real kernel: what the model admits arrives, what it denies does not, whatever changed in between.

One node with two pods behind it and a host outside. Each round is one batch of changes and a volley of UDP datagrams; a
last datagram that nothing judges tells that all before it have arrived or never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_kernel import FirewallKernel
from routed.desired_policy import (
    Action,
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
from routed.net.prefixes import parse_prefix
from routed.netlink.nft_expressions import same
from routed.policy.judge import FirewallModel, Packet
from routed.testing.lab import Lab, Namespace, run, wait_for
from routed.testing.lab.namespaces import NETNS

pytestmark = pytest.mark.lab

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
UDP = 17
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
            await asyncio.wait_for(self.kernel.settled(), 20)

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


def volley(site: Site, packets: list[Packet]) -> set[int]:
    """Send all and tell which arrived, by their number."""
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
                        made.settimeout(5)
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
    arrived = volley(site, packets)
    return [
        f"{packet.incoming} -> {packet.outgoing} {packet.family.label} {packet.source_port} -> {packet.port}: "
        f"the model says {judged}, the packet {'arrived' if number in arrived else 'was lost'}"
        for number, packet in enumerate(packets)
        if (judged := site.model.judge(packet)).admitted is not (number in arrived)
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
    assert volley(site, packets) == set(range(len(packets)))


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
            listener.settimeout(5)
            with host.entered():
                for packet, source in ((false, lie), (true, PODS["calia"][family])):
                    with contextlib.closing(socket.socket(listener.family, socket.SOCK_DGRAM)) as sender:
                        sender.bind((source, packet.source_port))
                        sender.sendto(source.encode(), (OUTSIDE[family], 80))
            assert listener.recv(64) == PODS["calia"][family].encode()


def test_replies_pass_whatever_the_policy_says_now(site: Site):
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", ALLOW),), endpoints=everywhere(ALLOW_ALL)))
    with contextlib.ExitStack() as opened:
        sockets = {}
        for interface in PODS:
            with site.hosts[interface].entered():
                made = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.bind((PODS[interface][V4], 80))
            made.settimeout(5)
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

        return Side(
            some(names, 0.5), some(names, 0.2), ranges(0.3), some(ports_of, 0.2), ranges(0.1), some(ports_of, 0.1)
        )

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
    assert "from_workload" in site.node.run("nft", "list", "chain", "inet", "routed", "forward")
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
    async with asyncio.timeout(10):
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


@pytest.mark.parametrize("change", ["flush ruleset", "delete table inet routed", "flush chain inet routed forward"])
def test_until_rules_that_are_gone_are_back_nothing_new_passes(site: Site, change: str):
    site.apply(SETS)
    monitor = site.node.start("monitor", "stdbuf", "-oL", "nft", "monitor")

    def watches() -> bool:
        site.node.run("nft", "add", "table", "inet", "x")
        site.node.run("nft", "delete", "table", "inet", "x")
        return "table" in monitor.text()

    wait_for(watches, 10, "what happens is seen")
    rebuilds = site.kernel.rebuilds
    site.node.run("nft", *change.split())
    site.run(made_anew_since(site, rebuilds))
    wait_for(
        lambda: "add chain inet routed by" in monitor.text() or "add rule inet routed forward" in monitor.text(),
        10,
        "all",
    )
    told = monitor.text()
    assert 0 < told.index("add chain inet routed closed") < told.rindex("add rule inet routed forward")
    assert "closed" not in listed(site)


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
    wait_for(lambda: site.run(site.kernel.rules()) and site.kernel.rebuilds == 2, 10, "it is put right")
    site.run(site.kernel.settled())
    assert hooked(site) == {"raw_prerouting", "forward", "nat_postrouting"} and site.problems == []


def listed(site: Site) -> str:
    return re.sub(r"packets \d+ bytes \d+", "", site.node.run("nft", "-s", "list", "table", "inet", "routed"))


def handles(site: Site) -> list[str]:
    text = site.node.run("nft", "-a", "-t", "list", "table", "inet", "routed")
    return re.findall(r"^(?:table inet|\t(?:set|map)) \w+ {.*", text, re.MULTILINE)


def test_no_packet_is_lost_while_the_table_is_made_anew(site: Site):
    """Each is the first of a connection to the kernel, since nobody replies, so each is judged."""
    site.apply(SETS)
    stop, sent, got = threading.Event(), [0], [0]
    with site.hosts["calia"].entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with site.hosts["calib"].entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        receiver.bind((PODS["calia"][V4], 5000))
        receiver.settimeout(5)
        sender.connect((PODS["calia"][V4], 5000))

        def send() -> None:
            while not stop.is_set():
                sender.send(b"x")
                sent[0] += 1
            sender.send(b"last")

        def receive() -> None:
            while receiver.recv(16) != b"last":
                got[0] += 1

        threads = [threading.Thread(target=each) for each in (send, receive)]
        for thread in threads:
            thread.start()

        async def rebuild() -> None:
            for _ in range(40):
                site.kernel._undo()
                await site.kernel.settled()
                await asyncio.sleep(0.01)

        site.run(rebuild())
        stop.set()
        for thread in threads:
            thread.join()
    assert sent[0] == got[0] > 1000


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


def test_packets_of_no_connection(site: Site):
    """As Felix has it: dropped at pods, though policy admits everything, unless that is switched off."""

    def arrives(port: int) -> bool:
        with contextlib.ExitStack() as opened:
            made = []
            for interface in ("calib", "calia"):
                with site.hosts[interface].entered():
                    made.append(
                        opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
                    )
            listener, sender = made
            listener.settimeout(5)
            target = PODS["calib"][V4]
            sender.sendto(reset_packet(port), (target, 0))
            with site.node.entered():
                node = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
            node.sendto(reset_packet(9), (target, 0))  # the node's own are never judged
            while (found := struct.unpack_from("!H", listener.recv(256), 22)[0]) != 9:
                if found == port:
                    return True
            return False

    site.apply(PolicyBatch(endpoints=everywhere(None)))
    assert not arrives(80)
    dropped = [rule for rule in site.run(site.kernel.rules()) if rule.comment == "of no connection" and rule.packets]
    assert [rule.chain for rule in dropped] == ["from_workload"]
    assert site.firewall.decisions()["from_workload"]["of no connection"] == ("of no connection", Action.DENY)
    packet = Packet(b"\x0a\x41\x00\x01", b"\x0a\x41\x00\x02", 6, incoming="calia", outgoing="calib", invalid=True)
    assert site.model.judge(packet).reason == "of no connection"
    site.apply(PolicyBatch(host=HostRules(drop_invalid=False)))
    assert arrives(81) and site.model.judge(packet).admitted


def test_whatever_is_dropped_has_a_name_and_a_counter(site: Site):
    tunnels = (TunnelPackets(V4, UDP, 4789, ()),)
    host = HostRules(tunnels=tunnels, workload_to_host=Action.DENY)
    site.apply(PolicyBatch(endpoints=everywhere(None), host=host))
    named = {rule.comment for rule in site.run(site.kernel.rules()) if rule.packets is not None}
    wanted = {"spoofed source", "unknown workload", "workload to host", "tunnels of workloads", "of no connection"}
    assert named == wanted | {"tunnel packets of who is no node", "loopback of the node"}
    listed = site.node.run("nft", "list", "table", "inet", "routed")
    assert all("comment" in line for line in listed.splitlines() if line.endswith("drop") or " drop " in line)


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
            listener.settimeout(5)
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
    assert volley(site, packets) == {number for number, each in enumerate(packets) if each.outgoing != "calia"}
    deny = Chain("allow", (Rule(Action.DENY, origin="deny"),))
    site.apply(PolicyBatch(chains=(ChainUpdate("allow", deny),)))
    packets = probes(random.Random(8))
    assert volley(site, packets) == {number for number, each in enumerate(packets) if each.outgoing == "eth0"}
    assert len(site.problems) == 1
    site.apply(PolicyBatch(chains=(ChainUpdate("bad", Chain("bad", ALLOW.rules)),)))
    assert site.problems[-1] == ""
    assert agree(site, probes(random.Random(9))) == []


def test_where_there_are_no_rules_and_none_are_taken_pods_are_cut_off(site: Site):
    walk = Walk((TierWalk("default", ("never_made",), Action.DENY),))

    async def wrong() -> None:
        site.kernel.apply(PolicyBatch(endpoints=everywhere(walk)))
        async with asyncio.timeout(10):
            while not site.problems:
                await asyncio.sleep(0.01)

    site.run(wrong())
    assert "as there are none no new connection from or to a pod passes" in site.problems[0]
    assert volley(site, probes(random.Random(3))) == set()
    site.apply(PolicyBatch(chains=(ChainUpdate("never_made", Chain("never_made", ALLOW.rules)),)))
    assert len(volley(site, packets := probes(random.Random(4)))) == len(packets)
    assert site.problems[-1] == ""


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
        await asyncio.wait_for(site.kernel.settled(), 20)

    site.run(wrong())
    assert "those of before stay in force" in site.problems[0] and site.problems[-1] == ""
    assert wait_for(lambda: "p_never_made" in site.node.run("nft", "list", "table", "inet", "routed"), 5)
