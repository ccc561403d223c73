"""`expect.yaml`: what must hold in a laboratory once it is up, and after each thing that is done to it.

    within: 60                        # seconds everything may take to become true
    holds:
      sessions: {node1: [10.0.0.2]}   # established, as the node's own daemon says
      routes:                         # in the node's kernel: next hops (all of them), blackhole, or none
        node1: {10.244.2.0/26: 10.0.0.2, 10.244.1.0/26: blackhole}
      pings: {pod1: [10.244.2.2]}
    steps:
      - title: a reflector dies
        do: [off rr1]                 # kill, start, off, on NODE; link NODE INTERFACE up|down; run NODE COMMAND
        flows: [pod1 > 10.244.2.2]    # packets all along, from before the first action until what must hold does
        loses: nothing                # or `measured`, the default: told, not judged
        keeps: {node1: {10.244.2.0/26: 10.0.0.2}}    # routes that may not change at any moment meanwhile
        holds: {down: {node1: [10.0.0.1]}}           # besides the above: sessions that are not established

`kill` ends every program of a node, `off` also takes its links down and with them its addresses and routes, as a machine
that loses power; `on` and `start` bring back what `off` and `kill` took.

Invariants: the file is read whole before anything is done; an unknown key, node or action is refused with its place. What
does not hold in time is one AssertionError that names all of it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from routed.netlink.messages import attributes, messages
from routed.netlink.numbers import RT_TABLE_MAIN, RTA_DST, RTM_DELROUTE, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE
from routed.testing.lab.clab import Topology
from routed.testing.lab.deploy import Deployment
from routed.testing.lab.document import Value, read_document
from routed.testing.lab.echoes import Echoes
from routed.testing.lab.namespaces import LabError, entered, wait_for
from routed.testing.lab.nodes import Node
from routed.testing.routers import bird_sessions, frr_sessions, gobgp_sessions, routed_sessions
from routed.values import dataclass

FILE = "expect.yaml"

#: How each kind of daemon is asked for its sessions.
ASK: dict[str, tuple[tuple[str, ...], Callable[[str], dict[str, str]]]] = {
    "routed": (("routedctl", "show", "neighbors", "--json"), routed_sessions),
    "bird": (("birdc", "show", "protocols", "all"), bird_sessions),
    "frr": (("vtysh", "-c", "show bgp neighbors json"), frr_sessions),
    "gobgp": (("gobgp", "neighbor", "-j"), gobgp_sessions),
}

#: Actions on a node, and how many words follow the node's name.
ACTIONS = {"kill": 0, "start": 0, "off": 0, "on": 0, "link": 2, "run": -1}

#: Seconds between two packets of a flow, and between two looks at routes that may not change.
INTERVAL = 0.02
LOOK = 0.1

#: Octets of news of routes that are kept until they are read; beyond them they are lost, which is an error.
_HEARD = 16 << 20
_SO_RCVBUFFORCE = 33

Routes = Mapping[str, Mapping[str, frozenset[str]]]
"""By node and prefix: the next hops; the empty set where there must be no route."""


@dataclass(frozen=True, slots=True)
class State:
    """What holds."""

    sessions: Mapping[str, tuple[str, ...]]
    down: Mapping[str, tuple[str, ...]]
    routes: Routes
    pings: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is done, and what holds then."""

    title: str
    actions: tuple[tuple[str, ...], ...]
    flows: tuple[tuple[str, str], ...]
    loses_nothing: bool
    keeps: Routes
    holds: State


@dataclass(frozen=True, slots=True)
class Expectation:
    within: int
    holds: State
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of a flow's packets."""

    source: str
    target: str
    sent: int
    lost: int
    longest: float
    """Seconds of the longest run without an answer."""

    def __str__(self) -> str:
        gap = f", {self.longest:.2f} s at a time at most" if self.lost else ""
        return f"{self.source} > {self.target}: {self.lost} of {self.sent} packets lost{gap}"


# ---- reading


def read_expectation(file: Path, topology: Topology) -> Expectation:
    """What must hold in a topology. Raises TopologyError."""
    top = read_document(file).known({"within", "holds", "steps"}, {}, {})
    reader = _Reader(topology)
    return Expectation(
        within=top["within"].number(1, 600) if "within" in top else 60,
        holds=reader.state(top.get("holds")),
        steps=tuple(map(reader.step, top["steps"].elements())) if "steps" in top else (),
    )


class _Reader:
    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def state(self, value: Value | None) -> State:
        keys = value.known({"sessions", "down", "routes", "pings"}, {}, {}) if value is not None else {}
        return State(
            self.addresses(keys.get("sessions")),
            self.addresses(keys.get("down")),
            self.routes(keys.get("routes")),
            self.addresses(keys.get("pings")),
        )

    def step(self, value: Value) -> Step:
        keys = value.known({"title", "do", "flows", "loses", "keeps", "holds"}, {}, {})
        for name in ("title", "do"):
            if name not in keys:
                value.fail(f"`{name}` is missing")
        loses = keys["loses"].text() if "loses" in keys else "measured"
        if loses not in ("nothing", "measured"):
            keys["loses"].fail("must be nothing or measured")
        return Step(
            title=keys["title"].text(),
            actions=tuple(map(self.action, keys["do"].elements())),
            flows=tuple(map(self.flow, keys["flows"].elements())) if "flows" in keys else (),
            loses_nothing=loses == "nothing",
            keeps=self.routes(keys.get("keeps")),
            holds=self.state(keys.get("holds")),
        )

    def by_node(self, value: Value | None) -> Iterator[tuple[str, Value]]:
        for name, each in (value.items() if value is not None else {}).items():
            self.known(name, each)
            yield name, each

    def known(self, name: str, value: Value) -> str:
        if name not in self.topology.nodes:
            value.fail(f"there is no node `{name}` in {self.topology.name}")
        return name

    def addresses(self, value: Value | None) -> dict[str, tuple[str, ...]]:
        return {name: tuple(map(self.address, each.elements())) for name, each in self.by_node(value)}

    def address(self, value: Value) -> str:
        try:
            return str(ipaddress.ip_address(value.text()))
        except ValueError:
            value.fail("must be an address")

    def routes(self, value: Value | None) -> dict[str, dict[str, frozenset[str]]]:
        found: dict[str, dict[str, frozenset[str]]] = {}
        for name, each in self.by_node(value):
            found[name] = {}
            for prefix, hops in each.items().items():
                with contextlib.suppress(LabError):
                    found[name][prefix] = frozenset(hop.text() for hop in hops.elements())
                    continue
                found[name][prefix] = frozenset({hops.text()} - {"none"})
        return found

    def flow(self, value: Value) -> tuple[str, str]:
        source, arrow, target = value.text().partition(" > ")
        if not arrow:
            value.fail("must be NODE > ADDRESS")
        return self.known(source, value), target

    def action(self, value: Value) -> tuple[str, ...]:
        verb, *rest = value.words() or ("",)
        if verb not in ACTIONS or not rest:
            value.fail(f"must be {', '.join(ACTIONS)} and a node")
        self.known(rest[0], value)
        wanted = ACTIONS[verb]
        if len(rest) - 1 != wanted and not (wanted < 0 and len(rest) > 1):
            value.fail("has too few or too many words")
        if verb == "link" and rest[2] not in ("up", "down"):
            value.fail("a link goes up or down")
        return (verb, *rest)


# ---- looking


def kernel_routes(node: Node, *, ipv6: bool) -> dict[str, frozenset[str]]:
    """Where a node's kernel sends what: next hops by prefix; `dev NAME` for what is on a link; `blackhole` and the like."""
    found: dict[str, frozenset[str]] = {}
    for row in json.loads(node.run("ip", "-j", "-d", "-6" if ipv6 else "-4", "route", "show", "table", "main") or "[]"):
        kind = row.get("type", "unicast")
        if kind != "unicast":
            hops = {kind}
        else:
            legs = row.get("nexthops") or [row]
            hops = {leg.get("gateway") or leg.get("via", {}).get("host") or f"dev {leg['dev']}" for leg in legs}
        found.setdefault(row["dst"], frozenset(hops))
    if ipv6 and "default" in found:
        found["::/0"] = found.pop("default")
    elif "default" in found:
        found["0.0.0.0/0"] = found.pop("default")
    return found


def sessions(node: Node) -> dict[str, str]:
    """What a node's daemon says of its neighbours: the state by address."""
    if node.role not in ASK:
        raise LabError(f"{node.name} has no BGP daemon to ask")
    command, read = ASK[node.role]
    return read(node.run(*command, check=False))


def wrong_routes(lab: Deployment, wanted: Routes) -> list[str]:
    """Routes that are not as they should be."""
    wrong = []
    for name, prefixes in wanted.items():
        there: dict[str, frozenset[str]] = {}
        for ipv6 in sorted({":" in prefix for prefix in prefixes}):
            there |= kernel_routes(lab.nodes[name], ipv6=ipv6)
        for prefix, hops in prefixes.items():
            now = there.get(prefix, frozenset())
            if now != hops:
                wrong.append(f"{name}: {prefix} goes {_hops(now)}, not {_hops(hops)}")
    return wrong


def wrong(lab: Deployment, state: State) -> list[str]:
    """What does not hold yet, a sentence each; pings only once the rest does."""
    found: list[str] = []
    for name in dict.fromkeys((*state.sessions, *state.down)):
        states = sessions(lab.nodes[name])
        up = {address for address, each in states.items() if each.lower() == "established"}
        for address in state.sessions.get(name, ()):
            if address not in up:
                found.append(f"{name}: the session with {address} is {states.get(address, 'not there')}")
        for address in state.down.get(name, ()):
            if address in up:
                found.append(f"{name}: the session with {address} is still up")
    found += wrong_routes(lab, state.routes)
    if not found:
        for name, addresses in state.pings.items():
            found += [f"{name}: no answer from {each}" for each in addresses if not lab.nodes[name].pings(each)]
    return found


def _hops(hops: frozenset[str]) -> str:
    return " and ".join(sorted(hops)) or "nowhere"


# ---- doing


def check(
    lab: Deployment, expectation: Expectation, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[Loss]]:
    """All of it, in order. The losses of each step's flows, by its title. Raises AssertionError."""
    assert not lab.failures, "; ".join(lab.failures)
    _settle(lab, expectation.holds, expectation.within, "the laboratory is as it should be")
    say("up: everything holds")
    losses: dict[str, list[Loss]] = {}
    for step in expectation.steps:
        losses[step.title] = _take(lab, step, expectation.within)
        say(f"{step.title}: holds")
        for loss in losses[step.title]:
            say(f"  {loss}")
    return losses


def _settle(lab: Deployment, state: State, within: int, what: str) -> None:
    wait_for(lambda: not wrong(lab, state), within, what, state=lambda: wrong(lab, state))


def _take(lab: Deployment, step: Step, within: int) -> list[Loss]:
    flows: list[Flow] = []
    watch = Watch(lab, step.keeps)
    try:
        flows += [Flow(lab.nodes[source], target) for source, target in step.flows]
        for action in step.actions:
            act(lab, *action)
        _settle(lab, step.holds, within, f"after `{step.title}`, what must hold does")
    finally:
        changed = watch.end()
        losses = [flow.end() for flow in flows]
    assert not changed, f"{step.title}: meanwhile {'; '.join(changed)}"
    if step.loses_nothing:
        assert not sum(loss.lost for loss in losses), f"{step.title}: " + "; ".join(map(str, losses))
    return losses


def act(lab: Deployment, verb: str, name: str, *rest: str) -> None:
    """One action on a node."""
    node = lab.nodes[name]
    if verb == "run":
        node.run(*rest)
    elif verb == "link":
        node.run("ip", "link", "set", *rest)
    elif verb == "start":
        node.start()
    elif verb == "kill":
        node.kill()
    elif verb == "off":
        node.power_off()
    else:
        node.power_on()


class Watch:
    """Routes that may not change: looked at all the time, and the kernel is listened to for those that go in between."""

    def __init__(self, lab: Deployment, keeps: Routes) -> None:
        self.lab = lab
        self.keeps = keeps
        self.changed: list[str] = []
        self.over = threading.Event()
        self.removals = {name: Removals(lab.nodes[name]) for name in keeps}
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self) -> None:
        while not self.over.wait(LOOK) and not self.changed:
            self.changed.extend(wrong_routes(self.lab, self.keeps))

    def end(self) -> list[str]:
        """What changed, a sentence each."""
        self.over.set()
        self.thread.join()
        if not self.changed:  # what was done since the last look, however long ago that was
            self.changed.extend(wrong_routes(self.lab, self.keeps))
        for name, removals in self.removals.items():
            gone = sorted(removals.heard())
            self.changed += [f"{name}: {prefix} was removed" for prefix in gone if self.keeps[name].get(prefix)]
        return self.changed


class Removals:
    """Routes that leave a node's main table, from now on: to a socket, which unlike a program listens at once."""

    def __init__(self, node: Node) -> None:
        with entered(f"/proc/{node.pid}/ns/net"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _HEARD)
        self._socket.bind((0, 1 << RTNLGRP_IPV4_ROUTE - 1 | 1 << RTNLGRP_IPV6_ROUTE - 1))

    def heard(self) -> set[str]:
        """Their prefixes. The end of listening."""
        found = set()
        with self._socket, contextlib.suppress(BlockingIOError):
            while True:
                for message in messages(self._socket.recv(1 << 16)):
                    family, length, _, _, table = message.data[16:21]
                    if message.type == RTM_DELROUTE and table == RT_TABLE_MAIN:
                        nowhere = bytes(4 if family == socket.AF_INET else 16)
                        address = dict(attributes(message.data, 28)).get(RTA_DST, nowhere)
                        found.add(f"{ipaddress.ip_address(bytes(address))}/{length}")
        return found


class Flow:
    """Echo requests from a node to an address, fifty a second, from now until `end`. The first was answered."""

    def __init__(self, node: Node, target: str) -> None:
        self.node = node
        self.target = target
        output = node.log.with_name(f"{node.name}-to-{target}.ping")
        self.process = node.popen(output, "ping", "-n", "-O", "-i", f"{INTERVAL:g}", target)
        self.echoes = Echoes(output, self.kill, f"{node.name} > {target}")

    def kill(self) -> None:
        # nsenter stands between us and ping, in the same group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> Loss:
        last, gaps = self.echoes.end()
        return Loss(self.node.name, self.target, last, sum(gaps), max(gaps, default=0) * INTERVAL)
