"""Two nodes with pods behind them, an engine and a kernel's firewall on each, a host outside, and real connections.

Every IPv4 address of the site has an IPv6 twin, so that each case is tried in both families. A pod is a place (a namespace
with an address); who lives there is said anew with every world.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import select
import socket
import struct
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_kernel import FirewallKernel
from routed.desired_policy import HostRules, PolicyBatch
from routed.model.resources import Resource, Update
from routed.policy.engine import PolicyEngine
from routed.testing.lab import Lab, Namespace
from tests.policy.nodes import PROTOCOLS, policy, profile, twin, workload
from tests.policy.specification import Connection, Endpoint, World

NODES = {"n1": "192.0.2.1", "n2": "192.0.2.2"}
OUTSIDE = "192.0.2.7"
PLACES = {
    "n1": ("10.65.1.2", "10.65.1.4", "10.65.1.6"),
    "n2": ("10.65.2.3", "10.65.2.5"),
}
PORTS = (80, 81, 443)
NODE_MAC = "ee:ee:ee:ee:ee:ee"
#: Seconds a connection that should be made may take, and in which one that should not be must not have been.
PATIENCE, QUIET = 30.0, 0.2


def in_both_families(world: World) -> World:
    """The same world where every address block has its twin beside it."""
    policies = json.loads(json.dumps(list(world.policies)))
    for each in policies:
        for section, side in (("ingress", "from"), ("egress", "to")):
            for rule in each["spec"].get(section) or []:
                for peer in [peer for peer in (rule or {}).get(side) or [] if "ipBlock" in peer]:
                    text = json.dumps(peer)
                    if ":" not in peer["ipBlock"]["cidr"]:
                        changed = re.sub(r"\d+\.\d+\.\d+\.\d+/\d+", lambda match: twin(match[0]), text)
                        rule[side].append(json.loads(changed))
    return World(policies, world.namespaces)


def in_both(endpoint: Endpoint) -> Endpoint:
    if any(":" in each for each in endpoint.addresses):
        return endpoint
    return replace(endpoint, addresses=(*endpoint.addresses, *map(twin, endpoint.addresses)))


def twins(connections: Iterable[Connection]) -> list[Connection]:
    """Each connection in both families."""
    return [
        replace(each, source=in_both(each.source), destination=in_both(each.destination), ipv6=ipv6)
        for each in connections
        for ipv6 in (False, True)
    ]


def wire(lab: Lab, node: Namespace, name: str, interface: str, number: int, addresses: Sequence[str]) -> Namespace:
    """A host behind an interface of a node, as a CNI plugin wires a pod."""
    host = lab.namespace(name)
    lab.link(node.port(interface), host.port("eth0"))
    mac = f"0e:00:00:00:00:{number:02x}"
    node.ip(f"link set {interface} address {NODE_MAC}")
    host.ip(f"link set eth0 address {mac}")
    for address in addresses:
        bits, gateway = (128, "fe80::1") if ":" in address else (32, "169.254.1.1")
        host.address("eth0", f"{address}/{bits}")
        host.ip(
            f"neigh replace {gateway} lladdr {NODE_MAC} dev eth0",
            f"route replace default via {gateway} dev eth0 onlink",
        )
        node.ip(f"route add {address}/{bits} dev {interface}", f"neigh replace {address} lladdr {mac} dev {interface}")
    return host


def interface_of(address: str) -> str:
    return "cali" + address.replace(".", "x")


class Connections:
    """Makes connections between namespaces, tells which were made: TCP to its end, UDP's echo, others' first packet."""

    def __init__(self, hosts: Mapping[str, Namespace], ports: Sequence[int] = PORTS) -> None:
        """`hosts` by address, of both families; all serve these ports."""
        self._hosts = hosts
        self._opened = contextlib.ExitStack()
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[str, socket.socket]] = {}
        self._ports = itertools.count(10_000)
        for address, host in hosts.items():
            with host.entered():
                for port in ports:
                    self._listen(address, socket.SOCK_STREAM, port)
                    self._listen(address, socket.SOCK_DGRAM, port)
                for protocol in ("SCTP", "ICMP"):
                    self._listen(address, socket.SOCK_RAW, 0, protocol)

    def close(self) -> None:
        self._opened.close()
        self._poll.close()

    def _listen(self, address: str, kind: socket.SocketKind, port: int, raw: str = "") -> None:
        made = self._socket(address, kind, raw)
        made.bind((address, port))
        name = raw or {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP"}[kind]
        if kind is socket.SOCK_STREAM:
            made.listen(256)
        self._opened.enter_context(made)
        self._listeners[made.fileno()] = (name, made)
        self._poll.register(made, select.EPOLLIN)

    def _socket(self, address: str, kind: socket.SocketKind, raw: str = "") -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        icmp = socket.IPPROTO_ICMPV6 if ":" in address else socket.IPPROTO_ICMP
        made = socket.socket(family, kind, 0 if not raw else icmp if raw == "ICMP" else PROTOCOLS[raw])
        made.setblocking(False)
        if kind is socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def attempt(self, connections: Sequence[Connection], expected: set[int]) -> set[int]:
        """The numbers of those that were made. Waits for the expected ones, and a moment for the others."""
        made: set[int] = set()
        with contextlib.ExitStack() as opened:
            senders: dict[int, tuple[int, str, socket.socket]] = {}
            for number, connection in enumerate(connections):
                source, destination = (connection.address(each) for each in (connection.source, connection.destination))
                kind = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}.get(connection.protocol, socket.SOCK_RAW)
                port = self._fresh_port()
                raw = connection.protocol if kind is socket.SOCK_RAW else ""
                with self._hosts[source].entered():
                    sender = opened.enter_context(self._socket(source, kind, raw))
                if raw:
                    first = icmp_message if raw == "ICMP" else sctp_init
                    sender.bind((source, 0))
                    sender.sendto(first(port, connection.port, number), (destination, 0))
                    continue
                sender.bind((source, port))
                sender.connect_ex((destination, connection.port))
                if connection.protocol == "UDP":
                    with contextlib.suppress(PermissionError):  # dropped where it was sent
                        sender.send(struct.pack("!I", number))
                senders[sender.fileno()] = (number, connection.protocol, sender)
                wanted = select.EPOLLOUT if connection.protocol == "TCP" else select.EPOLLIN
                self._poll.register(sender, wanted)
            until = time.monotonic() + PATIENCE
            quiet_since = time.monotonic()
            while time.monotonic() < until and (not expected <= made or time.monotonic() - quiet_since < QUIET):
                for descriptor, _ in self._poll.poll(QUIET / 4):
                    quiet_since = time.monotonic()
                    if descriptor in self._listeners:
                        made |= self._serve(*self._listeners[descriptor], len(connections))
                        continue
                    number, protocol, sender = senders[descriptor]
                    if protocol == "UDP":
                        with contextlib.suppress(OSError):
                            if struct.unpack("!I", sender.recv(64))[0] == number:
                                made.add(number)
                        continue
                    self._poll.unregister(sender)
                    if sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        made.add(number)
        return made

    def _serve(self, protocol: str, listener: socket.socket, count: int) -> set[int]:
        with contextlib.suppress(BlockingIOError):
            while True:
                if protocol == "TCP":
                    listener.accept()[0].close()
                elif protocol == "UDP":
                    data, peer = listener.recvfrom(64)
                    listener.sendto(data, peer)
                else:
                    data = listener.recv(256)[0 if listener.family == socket.AF_INET6 else 20 :]
                    read = icmp_number if protocol == "ICMP" else sctp_number
                    number = read(data)
                    return {number} if number is not None and number < count else set()
        return set()

    def _fresh_port(self) -> int:
        """One that no connection had before: a tuple that is known would pass as established."""
        port = next(self._ports)
        if port > 60_000:
            raise AssertionError("no ports are left")
        return port


def sctp_init(source_port: int, port: int, number: int) -> bytes:
    """RFC 9260: a common header and an INIT chunk, whose tag carries a number."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, number + 1, 65536, 1, 1, 1)
    header = struct.pack("!HHI", source_port, port, 0)
    checksum = _crc32c(header + bytes(4) + chunk)
    return header + struct.pack("<I", checksum) + chunk


def sctp_number(data: bytes) -> int | None:
    return int(struct.unpack_from("!I", data, 16)[0]) - 1 if data[12] == 1 else None


_OURS = b"a case's number"


def icmp_message(identifier: int, kind: int, number: int) -> bytes:
    """RFC 792, RFC 4443: type and code, a checksum (for ICMPv6 the kernel's), where echoes have theirs an identifier."""
    body = struct.pack("!HHI", identifier, 0, number) + _OURS + bytes(len(_OURS) % 2)
    words = sum(struct.unpack(f"!{len(body) // 2}H", body)) + kind
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return struct.pack("!HH", kind, 0xFFFF - words) + body


def icmp_number(data: bytes) -> int | None:
    """Replies to echo requests repeat their text, and are no first packets."""
    return int(struct.unpack_from("!I", data, 8)[0]) if _OURS in data and data[0] not in (0, 14, 129) else None


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for octet in data:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@dataclass
class _Node:
    engine: PolicyEngine
    firewall: Firewall
    kernel: FirewallKernel


class Site:
    """The laboratory with engines and kernels; its worlds and connections."""

    def __init__(self) -> None:
        self.lab = Lab()
        self.problems: list[str] = []
        self.hosts: dict[str, Namespace] = {}
        self.nodes: dict[str, _Node] = {}
        self._runner = asyncio.Runner()
        self._told: dict[Any, Resource] = {}
        segment = self.lab.segment("wire")
        numbers = itertools.count(1)
        for name, address in NODES.items():
            namespace = self.lab.namespace(name, forward=True)
            segment.attach(namespace, "eth0", f"{address}/24", twin(f"{address}/24"))
            for place in PLACES[name]:
                host = wire(
                    self.lab, namespace, f"pod-{place}", interface_of(place), next(numbers), (place, twin(place))
                )
                self.hosts |= {place: host, twin(place): host}
            self.hosts |= {address: namespace, twin(address): namespace}
        outside = self.lab.namespace("outside")
        segment.attach(outside, "eth0", f"{OUTSIDE}/24", twin(f"{OUTSIDE}/24"))
        self.hosts |= {OUTSIDE: outside, twin(OUTSIDE): outside}
        for name, address in NODES.items():
            block = PLACES[name][0].rpartition(".")[0] + ".0/24"
            for other in (*(self.lab.namespaces[each] for each in NODES if each != name), outside):
                other.ip(f"route add {block} via {address}", f"route add {twin(block)} via {twin(address)}")
        for name in NODES:
            firewall = Firewall()
            kernel = FirewallKernel(firewall, self.problems.append)
            made = self.nodes[name] = _Node(PolicyEngine(name), firewall, kernel)
            with self.lab.namespaces[name].entered():
                self.run(_soon(made.kernel.start))
        self.connections = Connections(self.hosts)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self.connections.close()
        for node in self.nodes.values():
            self.run(_soon(node.kernel.close))
        self._runner.close()
        self.lab.close()

    def become(self, world: World, pods: Iterable[Endpoint]) -> None:
        """Have the resources of a world in force, by updates of what differs."""
        self.apply(
            [
                *(workload(pod, interface_of(pod.addresses[0])) for pod in map(in_both, pods)),
                *(profile(name, labels) for name, labels in world.namespaces.items()),
                *(policy(each) for each in world.policies),
            ]
        )

    def apply(self, wanted: Iterable[Resource]) -> None:
        """These resources exist, and no others."""
        now = {resource.key: resource for resource in wanted}
        updates = [Update(key, None) for key in self._told.keys() - now.keys()]
        updates += [Update(key, value) for key, value in now.items() if self._told.get(key) != value]
        self._told = now

        async def commit() -> None:
            for node in self.nodes.values():
                for update in updates:
                    node.engine.update(update)
                batch = node.engine.flush()
                if batch is not None:
                    node.kernel.apply(batch)
            for node in self.nodes.values():
                await asyncio.wait_for(node.kernel.settled(), 30)

        self.run(commit())

    def host(self, rules: HostRules) -> None:
        """What both nodes do beside policy."""

        async def commit() -> None:
            for node in self.nodes.values():
                node.kernel.apply(PolicyBatch(host=rules))
                await asyncio.wait_for(node.kernel.settled(), 30)

        self.run(commit())

    def disagreements(self, judged: Sequence[tuple[Connection, bool, str]]) -> list[str]:
        """Where what happens is not what was said."""
        expected = {number for number, (_, admitted, _) in enumerate(judged) if admitted}
        made = self.connections.attempt([connection for connection, _, _ in judged], expected)
        return [
            f"{text}{' (IPv6)' if connection.ipv6 else ''}: expected {'allow' if admitted else 'deny'}, "
            f"and it was {'made' if number in made else 'not made'}"
            for number, (connection, admitted, text) in enumerate(judged)
            if admitted is not (number in made)
        ]


async def _soon(call: Any) -> None:
    """Call it while a loop runs."""
    call()
