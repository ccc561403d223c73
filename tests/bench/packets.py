"""What policy costs a packet: none, routed's, and iptables rules per pod and policy as kube-router writes them.

    python -m tests.bench.packets
    python -m tests.bench.packets --established [--ipv6]

Each contender has a node of its own with a client and a server pod behind veth pairs, and all are there at once. Rounds go
from one to the next, so that what else the machine does hits all alike, and of each the best round counts. Every node
tracks connections, as one with services or natOutgoing does; `tracking alone` is what the others are compared with. Time is
processor time of the program that is client and server at once, and in whose turn the kernel forwards. The server pod
is subject to ten policies, of which the last admits the client; with 1,000 policies on the node 99 other pods have ten
each; `one pod` is the worst case, all of them for the server.

`--established` is about flows that are there, whose cost is below the noise of such rounds: every contender has one
connection in each of many short rounds (a connection alone may be a tenth faster than the next for as long as it lives), in
which all take turns. What counts is the ratio to `tracking alone` in the same round: its median, and where that is with a
probability of 95 %, whatever the noise is distributed like. A round trip of one octet is two small packets, so it shows what
a packet costs; a stream goes in packets of 64 KiB. New connections are beside that, a few in each turn.

kube-router's rules are those of its netpol controller (v2): in FORWARD three rules a pod, a chain a pod that asks
conntrack first, a chain a policy that marks. Its ipsets are plain addresses here, which is no slower.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_kernel import FirewallKernel
from routed.model.resources import Update
from routed.policy.engine import PolicyEngine
from routed.testing.lab import Lab, Namespace
from routed.testing.lab.namespaces import NETNS
from tests.lab.policy_site import wire
from tests.policy.nodes import policy, profile, twin, workload
from tests.policy.specification import Endpoint

CLIENT, SERVER = "10.65.0.1", "10.65.0.2"
"""And their twins of IPv6."""
PORT = 8080
TRACKING = "tracking alone"
PASSES = 5
"""Turns of each contender in a round of established flows."""
EACH = 10
"""Policies a pod is subject to."""


@dataclass
class Stage:
    """One contender's node."""

    name: str
    client: Namespace
    server: Namespace
    ipv6: bool = False
    connection: list[float] = field(default_factory=list)
    """Seconds for one connection, by round."""
    stream: list[float] = field(default_factory=list)
    """Seconds for one GiB, by round."""

    @property
    def best(self) -> tuple[float, float]:
        """Microseconds for one connection, milliseconds for one GiB."""
        return min(self.connection) * 1e6, min(self.stream) * 1e3

    @property
    def kind(self) -> socket.AddressFamily:
        return socket.AF_INET6 if self.ipv6 else socket.AF_INET

    @property
    def at(self) -> tuple[str, int]:
        """Where the server listens."""
        return (twin(SERVER) if self.ipv6 else SERVER), PORT


def stage(lab: Lab, name: str, *, ipv6: bool) -> tuple[Namespace, Stage]:
    short = name.replace(" ", "").replace(",", "")
    node = lab.namespace(f"{short}-n", forward=True)
    client, server = (
        wire(lab, node, f"{short}-{role}", f"cali{role}", number, (address, twin(address)))
        for number, (role, address) in enumerate((("client", CLIENT), ("server", SERVER)), 1)
    )
    return node, Stage(name, client, server, ipv6)


# ---- the contenders


def address_of(pod: int) -> str:
    """Pod 0 is the server."""
    return SERVER if pod == 0 else f"10.65.{1 + pod // 250}.{pod % 250 + 1}"


def subjects(policies: int, *, one_pod: bool) -> list[int]:
    """The pod that each policy is for."""
    return [0 if one_pod else number // EACH for number in range(policies)]


def port_of(number: int, policies: int, *, one_pod: bool) -> int:
    """Only the last policy of the server admits the client's port."""
    return PORT if number == (policies if one_pod else EACH) - 1 else 1000 + number % 1000


async def routed(node: Namespace, policies: int, *, one_pod: bool) -> FirewallKernel:
    engine, firewall = PolicyEngine("n1"), Firewall()
    pods = sorted(set(subjects(policies, one_pod=one_pod)))
    made = [profile("default", {})]
    made += [
        workload(
            Endpoint("pod", f"p{pod}", "default", {"pod": f"p{pod}"}, "n1", (address_of(pod), twin(address_of(pod)))),
            "caliserver" if pod == 0 else f"cali{pod}",
        )
        for pod in pods
    ]
    client = Endpoint("pod", "client", "default", {"role": "client"}, "n1", (CLIENT, twin(CLIENT)))
    made.append(workload(client, "caliclient"))
    for number, pod in enumerate(subjects(policies, one_pod=one_pod)):
        rule = {
            "from": [{"podSelector": {"matchLabels": {"role": "client"}}}],
            "ports": [{"port": port_of(number, policies, one_pod=one_pod)}],
        }
        made.append(
            policy(
                {
                    "apiVersion": "networking.k8s.io/v1",
                    "kind": "NetworkPolicy",
                    "metadata": {"name": f"p{number:04}", "namespace": "default"},
                    "spec": {"podSelector": {"matchLabels": {"pod": f"p{pod}"}}, "ingress": [rule]},
                }
            )
        )
    for resource in made:
        engine.update(Update(resource.key, resource))
    batch = engine.flush()
    assert batch is not None
    kernel = FirewallKernel(firewall, sys.stderr.write)
    with node.entered():
        kernel.start()
        there = {name: index for index, name in socket.if_nameindex()}
    kernel.apply(replace(batch, interfaces=there))
    await kernel.settled()
    return kernel


def kube_router(node: Namespace, policies: int, *, one_pod: bool, ipv6: bool) -> None:
    shown = twin if ipv6 else str
    chains: list[str] = ["KUBE-ROUTER-FORWARD"]
    rules: list[str] = ["-A FORWARD -j KUBE-ROUTER-FORWARD"]
    by_pod: dict[int, list[int]] = {}
    for number, pod in enumerate(subjects(policies, one_pod=one_pod)):
        by_pod.setdefault(pod, []).append(number)
        chain, port = f"KUBE-NWPLCY-{number}", port_of(number, policies, one_pod=one_pod)
        match = f"-s {shown(CLIENT)} -d {shown(address_of(pod))} -p tcp -m tcp --dport {port}"
        chains.append(chain)
        rules += [
            f"-A {chain} {match} -j MARK --set-xmark 0x10000/0x10000",
            f"-A {chain} {match} -m mark --mark 0x10000/0x10000 -j RETURN",
        ]
    # each pod's rules come before those of the pods before it, so the server's are the last
    for pod in sorted(by_pod, reverse=True):
        chain, address = f"KUBE-POD-FW-{pod}", shown(address_of(pod))
        chains.append(chain)
        rules += [
            f"-A KUBE-ROUTER-FORWARD -m physdev --physdev-is-bridged -d {address} -j {chain}",
            f"-A KUBE-ROUTER-FORWARD -d {address} -j {chain}",
            f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A {chain} -d {address} -m addrtype --src-type LOCAL -j ACCEPT",
            *(f"-A {chain} -j KUBE-NWPLCY-{number}" for number in by_pod[pod]),
            f"-A {chain} -m mark ! --mark 0x10000/0x10000 -j REJECT",
            f"-A {chain} -j MARK --set-xmark 0x0/0x10000",
        ]
    text = "*filter\n" + "".join(f":{chain} - [0:0]\n" for chain in chains) + "\n".join(rules) + "\nCOMMIT\n"
    subprocess.run(
        [
            "nsenter",
            f"--net={NETNS}/{node.full_name}",
            "--",
            "ip6tables-nft-restore" if ipv6 else "iptables-nft-restore",
            "--noflush",
        ],
        input=text,
        text=True,
        check=True,
    )


# ---- what is measured


def connections(on: Stage, count: int) -> float:
    """Seconds for one connection: made, accepted, reset."""
    with on.server.entered():
        listener = socket.create_server(on.at, family=on.kind, backlog=64)
    with listener, on.client.entered():
        started = time.process_time()
        for _ in range(count):
            made = socket.create_connection(on.at)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            accepted, _ = listener.accept()
            accepted.close()
            made.close()
        return (time.process_time() - started) / count


def stream(on: Stage, octets: int) -> float:
    """Seconds for one GiB over one TCP connection, to the last octet's arrival."""
    with on.server.entered():
        listener = socket.create_server(on.at, family=on.kind)
    with on.client.entered():
        made = socket.create_connection(on.at)
    accepted, _ = listener.accept()
    with listener, made, accepted:
        block, buffer = memoryview(bytes(1 << 17)), bytearray(1 << 17)
        started = time.process_time()
        for _ in range(octets >> 17):
            made.sendall(block)
            left = len(block)
            while left:
                left -= accepted.recv_into(buffer)
        return (time.process_time() - started) * 2**30 / octets


@contextlib.contextmanager
def stages(many: int, *, ipv6: bool) -> Iterator[list[Stage]]:
    with Lab() as lab, asyncio.Runner() as runner, contextlib.ExitStack() as opened:
        made = [stage(lab, "nothing", ipv6=ipv6)[1]]
        node, place = stage(lab, TRACKING, ipv6=ipv6)
        node.run(
            "nft", "table inet t { chain c { type filter hook forward priority 0; ct state established accept; }; }"
        )
        made.append(place)
        for (label, policies, one_pod), who in itertools.product(
            ((f"{EACH}", EACH, False), (f"{many}", many, False), (f"{many}, one pod", many, True)),
            ("routed", "kube-router"),
        ):
            node, place = stage(lab, f"{who} {label}", ipv6=ipv6)
            if who == "routed":
                opened.callback(_close, runner, runner.run(routed(node, policies, one_pod=one_pod)))
            else:
                kube_router(node, policies, one_pod=one_pod, ipv6=ipv6)
            made.append(place)
        for namespace in lab.namespaces.values():  # a tuple may come again while its last connection is remembered
            with contextlib.suppress(OSError):
                namespace.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", 1)
        yield made


def _close(runner: asyncio.Runner, kernel: FirewallKernel) -> None:
    async def close() -> None:
        kernel.close()

    runner.run(close())


def measure(many: int, rounds: int, count: int, octets: int, *, ipv6: bool) -> list[Stage]:
    with stages(many, ipv6=ipv6) as contenders:
        for _ in range(rounds):
            for each in contenders:
                each.connection.append(connections(each, count))
                each.stream.append(stream(each, octets))
        return contenders


class Flow:
    """A connection that is there."""

    def __init__(self, on: Stage) -> None:
        self.stage = on
        self.spent = [0.0, 0.0, 0.0]
        """Seconds: streaming, on round trips, and on connections of the same two ends."""
        with on.server.entered():
            listener = socket.create_server(on.at, family=on.kind)
        with on.client.entered(), listener:
            self._made = socket.create_connection(on.at)
            self._accepted, _ = listener.accept()
        for end in (self._made, self._accepted):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stream(self, octets: int) -> float:
        """Seconds for this many octets."""
        block, buffer = memoryview(bytes(1 << 17)), bytearray(1 << 17)
        started = time.process_time()
        for _ in range(octets >> 17):
            self._made.sendall(block)
            left = len(block)
            while left:
                left -= self._accepted.recv_into(buffer)
        return time.process_time() - started

    def round_trips(self, count: int) -> float:
        """Seconds for this many."""
        one, other = self._made, self._accepted
        started = time.process_time()
        for _ in range(count):
            one.send(b"x")
            other.recv(1)
            other.send(b"x")
            one.recv(1)
        return time.process_time() - started

    def close(self) -> None:
        self._made.close()
        self._accepted.close()


def established(many: int, rounds: int, octets: int, trips: int, *, ipv6: bool) -> str:
    """See the module's docstring."""
    spent: dict[str, list[list[float]]] = {}
    with stages(many, ipv6=ipv6) as contenders:
        for number in range(rounds):
            turn = number % len(contenders)
            order = (contenders[turn:] + contenders[:turn])[:: 1 if number % 2 else -1]  # no place in it is one's own
            with contextlib.ExitStack() as opened:
                flows = [opened.enter_context(contextlib.closing(Flow(each))) for each in order]
                for _ in range(PASSES):
                    for flow in flows:
                        flow.stream(1 << 17)
                        flow.spent[0] += flow.stream(octets)
                        flow.spent[1] += flow.round_trips(trips)
                        flow.spent[2] += connections(flow.stage, trips // 5)
                for flow in flows:
                    spent.setdefault(flow.stage.name, []).append(flow.spent)
    lines = [
        f"| policies | a stream, ratio ({rounds} rounds) | 95 % | a round trip | 95 % | a connection | 95 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in contenders:
        cells = []
        for of_it, of_tracking in zip(
            zip(*spent[each.name], strict=True), zip(*spent[TRACKING], strict=True), strict=True
        ):
            low, middle, high = median_within([one / other for one, other in zip(of_it, of_tracking, strict=True)])
            cells.append(f"{middle:.3f} | {low:.3f} to {high:.3f}")
        lines.append(f"| {each.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def median_within(values: list[float]) -> tuple[float, float, float]:
    """The median, and between which of the values it is in 95 of 100 cases: a matter of ranks alone."""
    ordered, middle, reach = sorted(values), len(values) // 2, math.ceil(0.98 * math.sqrt(len(values)))
    return ordered[max(0, middle - reach)], ordered[middle], ordered[min(len(ordered) - 1, middle + reach)]


def table(contenders: list[Stage]) -> str:
    baseline = next(each.best for each in contenders if each.name == TRACKING)
    lines = ["| policies | a connection | ratio | a GiB of TCP | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for each in contenders:
        cost, rate = each.best
        ratios = f"{cost / baseline[0]:.2f} | {rate:.0f} ms | {rate / baseline[1]:.2f}"
        lines.append(f"| {each.name} | {cost:.1f} us | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="40, or 400 short ones of established flows")
    parser.add_argument("--established", action="store_true", help="measure flows that are there")
    parser.add_argument("--ipv6", action="store_true", help="instead of IPv4")
    arguments = parser.parse_args()
    ipv6 = arguments.ipv6
    if arguments.established:
        sys.stdout.write(established(1000, arguments.rounds or 400, 2 << 20, 50, ipv6=ipv6) + "\n")
        return
    contenders = measure(1000, arguments.rounds or 40, 200, 64 << 20, ipv6=ipv6)
    sys.stdout.write(table(contenders) + "\n")


if __name__ == "__main__":
    main()
