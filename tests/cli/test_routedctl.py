"""routedctl against a real control server that answers what a daemon would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from routed import __version__
from routed.cli import completion
from routed.cli.main import main
from routed.cli.routes import routes
from routed.control.protocol import Request
from routed.control.server import ControlServer, Handler
from routed.errors import ControlError

NEIGHBORS = [
    {
        "name": "Mesh_10_0_0_2",
        "address": "10.0.0.2",
        "port": 179,
        "as": 64512,
        "localAs": 64512,
        "localAddress": "10.0.0.1",
        "type": "internal",
        "passive": True,
        "password": "bgp/\x1b[1mmesh",
        "ttlSecurity": 1,
        "state": "Established",
        "sinceSeconds": 3723.2,
        "lastError": "",
        "lastDown": "NOTIFICATION 6/2, message \x1b[2J",
        "why": "node-to-node mesh, Node b",
        "establishedCount": 2,
        "messages": {
            "received": {"open": 1, "update": 12, "keepalive": 3, "notification": 0},
            "sent": {"open": 1, "update": 7, "keepalive": 3, "notification": 0},
            "treatAsWithdraw": 3,
            "attributeDiscard": 0,
            "lastFinding": "ORIGIN 9 is undefined",
        },
        "families": {
            "ipv4-unicast": {
                "received": 10,
                "stale": 0,
                "best": 9,
                "sent": 4,
                "waiting": 3,
                "endOfRib": True,
                "sending": "current",
            }
        },
        "importFilter": {"ipv4-unicast": "accept all"},
        "exportFilter": {"ipv4-unicast": "default rules"},
        "negotiated": {
            "routerId": "10.0.0.2",
            "holdTime": 240,
            "keepaliveTime": 80.0,
            "families": ["ipv4-unicast"],
            "fourOctetAs": True,
            "routeRefresh": True,
            "declined": ["family ipv6-unicast", "capability 5 (extended next hop)"],
            "gracefulRestart": {"restartTime": 120, "restarting": False, "forwarding": ["ipv4-unicast"]},
        },
    },
    {
        "name": "tor",
        "address": "10.0.0.254",
        "as": 65001,
        "type": "external",
        "state": "Active",
        "sinceSeconds": 90061,
        "lastError": "cannot connect: 10.0.0.254 port 179: \x1b[31mrefused\n",
        "lastErrorSeconds": 61,
        "families": {
            "ipv4-unicast": {"received": 5, "stale": 5, "best": 5, "sent": 0, "endOfRib": False, "sending": None}
        },
    },
]

ROUTE = {
    "family": "ipv4-unicast",
    "prefix": "10.244.2.0/26",
    "candidates": [
        {
            "from": "Mesh_10_0_0_2",
            "peer": "10.0.0.2",
            "peerRouterId": "10.0.0.2",
            "type": "internal",
            "origin": "igp",
            "asPath": "",
            "nextHop": "10.0.0.2",
            "localPref": 200,
            "communities": ["64512:1", "64512:2"],
            "resolved": "via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)",
            "metric": 0,
            "best": True,
            "multipath": True,
            "step": 2,
            "stepName": "LOCAL_PREF",
            "value": "200",
            "winnerValue": "200",
            "reason": "best: highest LOCAL_PREF",
        },
        {
            "from": "tor",
            "peer": "10.0.0.254",
            "peerRouterId": "10.0.0.254",
            "type": "external",
            "origin": "incomplete",
            "asPath": "65001 65002",
            "nextHop": "10.0.0.254",
            "med": 10,
            "localPref": 100,
            "resolved": "via 10.0.0.254 dev eth0 (10.0.0.0/24, connected)",
            "metric": 0,
            "best": False,
            "multipath": False,
            "step": 2,
            "stepName": "LOCAL_PREF",
            "value": "100",
            "winnerValue": "200",
            "reason": "LOCAL_PREF 100 is lower than 200",
        },
    ],
    "kernel": "via 10.0.0.2 dev eth0",
    "kernelState": "installed",
    "kernelFailure": None,
    "notAdvertisedTo": [{"peer": "Mesh_10_0_0_2", "reason": "it is where the best path came from"}],
}

REFUSED = {
    **ROUTE,
    "prefix": "10.9.0.0/24",
    "candidates": ROUTE["candidates"][:1],  # type: ignore[index]
    "kernelState": "failed",
    "kernelFailure": "refused: 10.9.0.0/24 is held by a static route dev eth1; remove it or filter the prefix",
}

FIB = [
    {"family": "ipv4-unicast", "prefix": "10.244.1.0/26", "route": "blackhole", "state": "installed", "reason": None},
    {
        "family": "ipv4-unicast",
        "prefix": "10.9.0.0/24",
        "route": "via 10.0.0.2 dev eth0",
        "state": "failed",
        "reason": "no",
    },
]

STATUS = {
    "node": "a",
    "version": "9.9.9",
    "pid": 17,
    "runningSeconds": 61.0,
    "routerId": "10.0.0.1",
    "as": 64512,
    "listenPort": 179,
    "listening": False,
    "datastore": "/etc/routed/resources",
    "inSync": True,
    "routeSelectionDeferred": False,
    "peers": {"configured": 3, "established": 2},
    "routes": {"ipv4-unicast": {"prefixes": 10, "tableVersion": 17, "origins": 1}},
    "memoryBytes": 48 << 20,
    "routesRefusedByKernel": 1,
    "kernel": {"programRoutes": True, "table": 254, "routes": 9},
    "problems": ["cannot listen on port 179 (IPv4): another program uses it", "a.yaml:3: spec: \x1b[31m"],
    "notes": ["IPPool pods: spec.natOutgoing: \x1b[31m"],
}


EVIL = "\x1b[2J\u202e\x07" + "x" * 300

RECEIVED = [
    {
        "peer": "tor", "family": "ipv4-unicast", "prefix": "10.9.0.0/24", "nextHop": "10.0.0.254", "asPath": "65001 65002",
        "origin": "igp", "med": 5, "communities": ["65001:1", "65001:2"], "largeCommunities": ["1:2:3"],
        "accepted": False, "stale": False, "best": False, "multipath": False, "reason": EVIL,
    },
    {
        "peer": "tor", "family": "ipv4-unicast", "prefix": "0.0.0.0/0", "nextHop": "10.0.0.254", "asPath": "65001",
        "origin": "igp", "accepted": True, "stale": True, "best": True, "multipath": True, "reason": "best: the only one",
        "changedBy": "rule 1", "changedTo": {"localPref": 200, "communities": ["1:1"], "med": None},
    },
]  # fmt: skip

ADVERTISED = [
    {
        "peer": "tor", "family": "ipv4-unicast", "prefix": "10.244.1.0/26", "from": "local", "state": "sent",
        "nextHop": "10.0.0.1", "asPath": "64512", "origin": "igp", "med": 0,
    },
    {
        "peer": "tor", "family": "ipv4-unicast", "prefix": "10.9.0.0/24", "from": EVIL, "state": "not advertised",
        "reason": "it is where the best path came from",
    },
]  # fmt: skip

INTERFACES = [
    {"index": 1, "name": "lo", "state": "up", "mtu": 65536, "addresses": ["127.0.0.1/8"], "roles": ["loopback"]},
    {"index": 2, "name": EVIL[:15], "state": "down", "mtu": None, "addresses": [], "roles": []},
]


EVENTS = [
    {"time": "2026-01-01T00:00:00.000Z", "kind": "session", "subject": "tor", "text": "Idle -> Active: " + EVIL},
    {"kind": "dropped", "subject": "events", "text": "5 events were left out here", "count": 5},
]


class Daemon:
    """Answers as a daemon would, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []

    def handlers(self) -> dict[str, Handler]:
        return {
            "status": lambda request: self._note(request, STATUS),
            "neighbors": self._neighbors,
            "routes": self._routes,
            "fib": lambda request: self._note(request, iter(FIB)),
            "received": lambda request: self._exchanged(request, RECEIVED),
            "advertised": lambda request: self._exchanged(request, ADVERTISED),
            "interfaces": lambda request: self._note(request, INTERFACES),
            "events": lambda request: self._note(request, iter(EVENTS)),
            "clear": self._clear,
            "shutdown": lambda request: self._note(request, {"text": "routed is shutting down"}),
        }

    def _note(self, request: Request, answer: object) -> object:
        self.asked.append((request.name, request.arguments))
        return answer

    def _exchanged(self, request: Request, rows: list[dict[str, Any]]) -> object:
        return self._note(request, iter([row for row in rows if request.text("prefix") in (None, row["prefix"])]))

    def _clear(self, request: Request) -> object:
        row = {"address": "10.0.0.2", "text": "10.0.0.2: the session is reset"}
        return self._note(request, iter([row, row]) if request.text("address") == "all" else row)

    def _neighbors(self, request: Request) -> object:
        self._note(request, None)
        address = request.text("address")
        rows = [row for row in NEIGHBORS if address in (None, row["address"])]
        if not rows:
            raise ControlError(f"no neighbor has the address {address}")
        return iter(rows)

    def _routes(self, request: Request) -> object:
        self._note(request, None)
        return iter([ROUTE] if request.text("prefix") else [ROUTE, REFUSED])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Daemon]]:
    """The path of a socket on which a daemon answers."""
    path = str(tmp_path_factory.mktemp("run") / "routed.sock")
    daemon = Daemon()
    started, ended = threading.Event(), threading.Event()

    async def body() -> None:
        server = ControlServer(daemon.handlers(), lambda *_: None)
        await server.start(path)
        started.set()
        await asyncio.to_thread(ended.wait)
        await server.stop()

    def serve() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(body())

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(60)
    yield path, daemon
    ended.set()
    thread.join()


class Ctl:
    """Runs routedctl with its socket; keeps what it wrote."""

    def __init__(self, path: str, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.daemon = daemon
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        self.daemon.asked.clear()
        status = main(["--socket", self.path, *words])
        self.out, self.err = self._capsys.readouterr()
        return status

    def json(self, *words: str) -> Any:
        assert self(*words, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def ctl(served: tuple[str, Daemon], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(completion, "PATIENCE", 60.0)  # who types waits for a second; a machine may stand still for one
    return Ctl(*served, capsys)


def test_status(ctl: Ctl) -> None:
    assert ctl("status") == 0
    assert ctl.out.splitlines() == [
        "node:                a",
        "version:             9.9.9",
        "pid:                 17",
        "up for:              00:01:01",
        "router id:           10.0.0.1",
        "AS:                  64512",
        "BGP port:            179 (not open)",
        "datastore:           /etc/routed/resources (in sync)",
        "peers:               2 of 3 established",
        "ipv4-unicast routes: 10 prefixes, 1 our own",
        "kernel:              9 routes in table main, 1 refused",
        "problems: 2",
        "  cannot listen on port 179 (IPv4): another program uses it",
        "  a.yaml:3: spec: \\x1b[31m",
        "notes: 1",
        "  IPPool pods: spec.natOutgoing: \\x1b[31m",
    ]
    assert ctl.json("status") == STATUS


def test_neighbors(ctl: Ctl) -> None:
    shown_error = "cannot connect: 10.0.0.254 port 179: \\x1b[31mrefused\\x0a"
    assert ctl("show", "neighbors") == 0
    assert ctl.out.splitlines() == [
        "Neighbor       AS  State        Up/Down   Rcvd  Best  Sent  Name",
        "10.0.0.2    64512  Established  01:02:03    10     9     4  Mesh_10_0_0_2",
        "10.0.0.254  65001  Active       1d01h01m     5     5     -  tor: " + shown_error,
    ]
    assert ctl.daemon.asked == [("neighbors", {})]
    assert ctl.json("show", "neighbors") == NEIGHBORS


def test_a_narrow_terminal(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ctl("show", "neighbors") == 0
    assert max(map(len, ctl.out.splitlines())) == 80


def test_one_neighbor(ctl: Ctl) -> None:
    assert ctl("show", "neighbors", "10.0.0.2") == 0
    for line in (
        "Mesh_10_0_0_2: 10.0.0.2, AS 64512, internal",
        "  state:           Established, for 01:02:03",
        "  went down by:    NOTIFICATION 6/2, message \\x1b[2J",
        "  password:        TCP MD5, Secret bgp/\\x1b[1mmesh",
        "  TTL security:    at most 1 hop away",
        "  hold time:       240 s, a keepalive every 80.0 s",
        "  capabilities:    4-octet AS, route refresh, graceful restart",
        "  offered only:    family ipv6-unicast, capability 5 (extended next hop)",
        "  sent:            1 open, 7 update, 3 keepalive",
        "  bad UPDATEs:     3 treated as withdrawals, 0 lost an attribute; last: ORIGIN 9 is undefined",
        "    received:      10",
        "    export filter: default rules",
    ):
        assert line in ctl.out.splitlines()
    assert ctl("show", "neighbors", "10.0.0.254") == 0
    assert "cannot connect: 10.0.0.254 port 179: \\x1b[31mrefused\\x0a (00:01:01 ago)" in ctl.out
    assert "    received:   5 (5 stale: kept while the peer restarts)" in ctl.out.splitlines()
    assert "\x1b" not in ctl.out


def test_routes(ctl: Ctl) -> None:
    assert ctl("show", "route") == 0
    assert ctl.out.splitlines()[1:] == [
        ">  10.244.2.0/26  via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)  Mesh_10_0_0_2   200  -        installed",
        ">  10.9.0.0/24    via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)  Mesh_10_0_0_2   200  -        "
        + str(REFUSED["kernelFailure"]),
    ]
    assert ctl.daemon.asked == [("routes", {"prefix": None, "all": False})]
    assert ctl.json("show", "route", "--all") == [ROUTE, REFUSED]
    assert ctl.daemon.asked == [("routes", {"prefix": None, "all": True})]


@pytest.mark.parametrize(
    ("kernel", "shown"),
    [
        ("via 10.0.0.2 dev eth0", "via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)"),
        ("via 192.168.69.128 dev vxlan.calico", "through vxlan.calico via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)"),
        (None, "via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)"),
        ("blackhole", "via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)"),
    ],
)
def test_a_route_into_a_tunnel_says_so(kernel: str | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    row = {**ROUTE, "kernel": kernel}
    (line,) = [line for line in routes([row]) if "10.244.2.0/26" in line]
    assert line.startswith(f">  10.244.2.0/26  {shown}  Mesh_10_0_0_2 ")
    local = {**row, "candidates": [{**ROUTE["candidates"][0], "resolved": "this node"}]}  # type: ignore[index]
    assert "through" not in "".join(routes([local]))


def test_one_route(ctl: Ctl) -> None:
    assert ctl("show", "route", "10.244.2.0/26", "--all") == 0
    lines = ctl.out.splitlines()
    assert lines[0] == "10.244.2.0/26: 2 paths"
    assert "> from Mesh_10_0_0_2 (internal; peer 10.0.0.2, router id 10.0.0.2)" in lines
    assert "    values:      step 2, LOCAL_PREF: 200" in lines
    assert "    communities: 64512:1 64512:2" in lines
    assert "  from tor (external; peer 10.0.0.254, router id 10.0.0.254)" in lines
    assert "    decision:   LOCAL_PREF 100 is lower than 200" in lines
    assert "    values:     step 2, LOCAL_PREF: 100, the winner's 200" in lines
    assert "    MED:        10" in lines
    assert lines[-2:] == [
        "  kernel: via 10.0.0.2 dev eth0 (installed)",
        "  not advertised to Mesh_10_0_0_2: it is where the best path came from",
    ]


def test_fib(ctl: Ctl) -> None:
    assert ctl("show", "fib") == 0
    assert ctl.out.splitlines() == [
        "Prefix         Route                  State",
        "10.244.1.0/26  blackhole              installed",
        "10.9.0.0/24    via 10.0.0.2 dev eth0  failed: no",
    ]
    assert ctl.json("show", "fib") == FIB


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("clear", "10.0.0.2"), ("clear", {"address": "10.0.0.2", "mode": "hard"})),
        (("clear", "10.0.0.2", "soft"), ("clear", {"address": "10.0.0.2", "mode": "soft"})),
        (("clear", "10.0.0.2", "soft", "in"), ("clear", {"address": "10.0.0.2", "mode": "in"})),
        (("clear", "tor", "soft", "out"), ("clear", {"address": "tor", "mode": "out"})),
        (("clear", "10.0.0.2", "--in"), ("clear", {"address": "10.0.0.2", "mode": "in"})),
        (("clear", "10.0.0.2", "--out"), ("clear", {"address": "10.0.0.2", "mode": "out"})),
        (("shutdown",), ("shutdown", {"reason": ""})),
        (("shutdown", "--reason", "new disk"), ("shutdown", {"reason": "new disk"})),
    ],
)
def test_commands(ctl: Ctl, words: tuple[str, ...], asked: tuple[str, dict[str, object]]) -> None:
    assert ctl(*words) == 0
    assert ctl.daemon.asked == [asked]
    assert ctl.out in ("10.0.0.2: the session is reset\n", "routed is shutting down\n")


def test_clear_everybody(ctl: Ctl) -> None:
    for word in ("all", "*"):
        assert ctl("clear", word, "soft") == 0
        assert ctl.out == "10.0.0.2: the session is reset\n" * 2
        assert ctl.daemon.asked == [("clear", {"address": "all", "mode": "soft"})]
    assert [row["address"] for row in ctl.json("clear", "all")] == ["10.0.0.2"] * 2
    assert ctl("clear", "10.0.0.2", "soft", "both") == 2
    assert "not `soft both`" in ctl.err


def test_summary(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ctl("show", "summary") == 0
    assert ctl.out.splitlines()[:4] == [
        "BGP router identifier 10.0.0.1, local AS number 64512, memory 48 MiB",
        "",
        "ipv4-unicast: 10 prefixes, table version 17",
        "Neighbor    V     AS  MsgRcvd  MsgSent  OutQ  Up/Down   State/PfxRcd  PfxSnt  Desc",
    ]
    assert ctl.out.splitlines()[4] == (
        "10.0.0.2    4  64512       16       11     3  01:02:03            10       4  Mesh_10_0_0_2"
    )
    assert ctl.out.splitlines()[5].startswith("10.0.0.254  4  65001        0        0     -  never           Active")
    assert ctl.out.splitlines()[6] == "2 neighbors, 1 established; 15 prefixes received, 4 sent"
    answer = ctl.json("show", "summary")
    assert answer["routerId"] == "10.0.0.1"
    assert [row["messagesReceived"] for row in answer["families"]["ipv4-unicast"]["neighbors"]] == [16, 0]
    assert ctl.json("show", "summary", "--family", "ipv6")["families"] == {}
    monkeypatch.setenv("COLUMNS", "80")
    assert ctl("show", "summary") == 0
    assert max(map(len, ctl.out.splitlines())) <= 80


def test_received(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"address": "tor", "prefix": None, "family": None, "longer": False}
    assert ctl("show", "received", "tor") == 0
    assert ctl.daemon.asked == [("received", asked)]
    heading, refused, default = ctl.out.splitlines()
    assert heading.split() == ["Prefix", "Next", "hop", "MED", "Pref", "AS", "path", "Origin", "Communities", "Verdict"]
    assert refused.startswith("x  10.9.0.0/24  10.0.0.254    5     -  65001 65002  igp     65001:1 65001:2 1:2:3")
    assert default.endswith("stale; best: the only one; changed by rule 1")
    assert default.startswith(">  0.0.0.0/0 ")
    assert ctl.json("show", "received", "tor") == RECEIVED
    monkeypatch.setenv("COLUMNS", "80")
    assert ctl("show", "received", "tor") == 0
    assert max(map(len, ctl.out.splitlines())) <= 80
    assert ctl("show", "received", "tor", "0.0.0.0/0") == 0
    assert ctl.out.splitlines() == [
        "0.0.0.0/0 from tor: accepted",
        "  verdict:    best: the only one",
        "  stale:      kept while the peer restarts",
        "  next hop:   10.0.0.254",
        "  AS path:    65001",
        "  origin:     igp",
        "  changed by: rule 1",
        "  changed to: localPref = 200, communities = 1:1, med = none",
    ]
    assert ctl("show", "received", "tor", "10.9.9.0/24") == 1
    assert ctl.err == "routedctl: tor has not announced 10.9.9.0/24\n"


def test_advertised(ctl: Ctl) -> None:
    assert ctl("show", "advertised", "tor", "--all", "--family", "ipv4") == 0
    asked = {"address": "tor", "prefix": None, "family": "ipv4", "longer": False, "all": True}
    assert ctl.daemon.asked == [("advertised", asked)]
    assert ctl.out.splitlines()[1].split() == [
        "10.244.1.0/26",
        "10.0.0.1",
        "0",
        "-",
        "64512",
        "igp",
        "-",
        "local",
        "sent",
    ]
    assert ctl.out.splitlines()[2].endswith("not advertised: it is where the best path came from")
    assert ctl.json("show", "advertised", "tor") == ADVERTISED
    assert ctl("show", "advertised", "tor", "10.9.0.0/24") == 0
    assert ctl.out.splitlines()[:2] == [
        "10.9.0.0/24 to tor: not advertised",
        "  because:      it is where the best path came from",
    ]


def test_events(ctl: Ctl) -> None:
    assert ctl("events", "--follow", "--kind", "session", "--kind", "route") == 0
    asked = {"follow": True, "kinds": "session,route", "prefix": None, "longer": False}
    assert ctl.daemon.asked == [("events", asked)]
    first, last = ctl.out.splitlines()
    assert first.startswith("2026-01-01T00:00:00.000Z session   tor: Idle -> Active: \\x1b[2J")
    assert last == "- dropped   events: 5 events were left out here"
    assert ctl("events", "--json") == 0
    assert [json.loads(line) for line in ctl.out.splitlines()] == EVENTS
    assert ctl.daemon.asked[0][1]["kinds"] == "session,datastore,kernel,daemon"


def test_interfaces(ctl: Ctl) -> None:
    assert ctl("show", "interfaces") == 0
    assert ctl.out.splitlines()[1] == "lo" + " " * 26 + "up     65536  loopback  127.0.0.1/8"
    assert ctl.json("show", "interfaces") == INTERFACES


@pytest.mark.parametrize("columns", [None, "40", "200"])
@pytest.mark.parametrize(
    "words",
    [("received", "tor"), ("received", "tor", "10.9.0.0/24"), ("advertised", "tor", "--all"), ("interfaces",),
     ("neighbors",), ("summary",), ("advertised", "tor", "10.9.0.0/24")],
)  # fmt: skip
def test_hostile_text_is_harmless(
    ctl: Ctl, words: tuple[str, ...], columns: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert ctl("show", *words) == 0
    assert not set(ctl.out) & set("\x1b\x07\u202e")
    assert ctl("show", *words, "--json") == 0
    assert not set(ctl.out) & set("\x1b\x07\u202e")


def test_version(ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl("version") == 0
    assert ctl.out == f"routedctl {__version__}\nrouted 9.9.9\n"
    assert main(["version", "--socket", "/nowhere/routed.sock"]) == 0
    assert capsys.readouterr().out == f"routedctl {__version__}\nrouted is not running\n"


def test_errors_of_the_daemon(ctl: Ctl) -> None:
    assert ctl("show", "neighbors", "10.0.0.9") == 1
    assert (ctl.out, ctl.err) == ("", "routedctl: no neighbor has the address 10.0.0.9\n")
    assert ctl("show", "neighbors", "10.0.0.9", "--json") == 1


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "routed.yaml"
    config.write_text("runDir: run\n")
    for words in (
        ("status",),
        ("show", "neighbors"),
        ("show", "route"),
        ("show", "fib"),
        ("shutdown",),
        ("clear", "::1"),
    ):
        assert main([*words, "--config", str(config)]) == 69
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"routedctl: routed is not running: nothing listens on {tmp_path}/run/routed.sock; start it with"
            " `systemctl start routed` or `routed run --config FILE`, or name its socket with --socket\n"
        )


@pytest.mark.parametrize("words", [["show", "route"], ["show", "received", "10.0.0.2"], ["events", "--prefix"]])
def test_what_is_no_prefix_is_a_wrong_argument(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "10.0.0.0/33"])
    assert ended.value.code == 2
    assert "'10.0.0.0/33' is neither a prefix nor an address" in capsys.readouterr().err


def test_help_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["help", "show", "ro"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    assert "usage: routedctl show route" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_said(ctl: Ctl) -> None:
    argv = [sys.executable, "-m", "routed.cli.main", "--socket", str(ctl.path), "show", "neighbors"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr) == (1, "routedctl: cannot write the output: No space left on device\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_no_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0)
    assert main(["status", "--socket", str(tmp_path / "routed.sock")]) == 69
    assert "no permission to open" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot read the configuration: No such file or directory"),
        ("runDir: [", "is not YAML; name the daemon's socket with --socket"),
        ("runDir: 5", "runDir: must be the path of a folder"),
    ],
)
def test_bad_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str
) -> None:
    config = tmp_path / "routed.yaml"
    if text is not None:
        config.write_text(text)
    assert main(["status", "--config", str(config)]) == 78
    assert capsys.readouterr().err == f"routedctl: {config}: {sentence}\n"


@pytest.mark.parametrize(
    "words", [(), ("dance",), ("show",), ("show", "all"), ("clear",), ("status", "--socket", "a", "--config", "b")]
)
def test_wrong_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
    assert "usage: routedctl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "request_name"),
    [(("sh", "ne"), "neighbors"), (("sh", "ro"), "routes"), (("sta",), "status"), (("show", "routes"), "routes"),
     (("show", "protocols"), "neighbors"), (("--json", "sh", "f"), "fib"), (("cl", "10.0.0.2"), "clear")],
)  # fmt: skip
def test_words_may_be_shortened(ctl: Ctl, words: tuple[str, ...], request_name: str) -> None:
    assert ctl(*words) == 0
    assert [name for name, _ in ctl.daemon.asked] == [request_name]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("s",), "`s` may be `show`, `status`"),
        (("shut",), "invalid choice: 'shut'"),
        (("show", "x"), "invalid choice: 'x'"),
    ],
)
def test_words_that_say_too_little(words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "routedctl show route 10.244.1.0/26 --all" in out
    assert "exit status:" in out


def test_a_recording_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("x\n")
    assert main(["replay", str(path)]) == 78
    assert capsys.readouterr().err == f"routedctl: {path}:1: this is not a recording of routed\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sta"], ["status"]),
        (["show", "ne"], ["neighbors"]),
        (["sh", "re"], ["received"]),
        (["show", "received", ""], ["10.0.0.2", "10.0.0.254"]),
        (["clear", "10.0.0.2", "s"], ["soft"]),
        (["show", "summary", "--family", ""], ["ipv4", "ipv6"]),
        (["--socket", "x", "show", "summary", "--fam"], ["--family"]),
        (["replay", "/tm"], [":files"]),
        (["completion", "z"], ["zsh"]),
        (["export", "-o", ""], [":files"]),
        (["get", "bgp"], ["bgpconfigurations", "bgpfilters", "bgppeers"]),
        (["delete", "ippoo"], ["ippools"]),
        (["confirm", "BGPP"], ["BGPPeer"]),
        (["nonsense", ""], None),
    ],
)
def test_completion(ctl: Ctl, words: list[str], found: list[str] | None) -> None:
    assert ctl("complete", "--", *words) == 0
    if found is None:
        assert "status" in ctl.out.split()
    else:
        assert ctl.out.split() == found


@pytest.mark.parametrize("words", [["completion", "bash"], ["complete", "--", "sta"]])
def test_what_shells_read_is_refused_as_json(ctl: Ctl, words: list[str]) -> None:
    assert ctl("--json", *words) == 2 and ctl.out == ""


def test_completion_without_a_daemon_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", "/nowhere", "complete", "--", "show", "received", ""]) == 0
    assert capsys.readouterr() == ("", "")


ASKED = ("routedctl show adv", "routedctl show received 10.0.0.25", "routedctl show received fd00:1")

TYPED = {
    "bash": r"""
        eval "$(routedctl completion bash)"
        COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'  # as where somebody types
        for line in "$@"; do
            COMP_LINE=$line; COMP_POINT=${#line}; _routedctl; echo "${line%"${line##*[ :]}"}${COMPREPLY[@]}"
        done
    """,
    # an interactive zsh behind a terminal, which gets the line and a tab, and prints it as it then stands
    "zsh": r"""
        zmodload zsh/zpty
        routedctl completion zsh > $HOME/functions/_routedctl
        zpty shell zsh -f -i
        zpty -w shell 'PS1=; fpath=($HOME/functions $fpath); autoload -Uz compinit; compinit -u -D'
        zpty -w shell 'stand() { print -r -- "@"@"$BUFFER"@"@"; BUFFER=; zle accept-line }; zle -N stand'
        zpty -w shell 'bindkey "^G" stand; print rea""dy'
        zpty -r shell text '*ready*'
        for line in "$@"; do
            zpty -w -n shell "$line"$'\t'$'\a'
            zpty -r shell text '*@@*@@*'
            print -r -- ${${text#*@@}%%@@*}
        done
        zpty -d shell
    """,
    "fish": """
        routedctl completion fish | source
        for line in $argv; complete -C $line; end
    """,
}


@pytest.mark.parametrize("shell", TYPED)
def test_a_shell_takes_the_completion(ctl: Ctl, tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real shell, with routedctl in its PATH, completes a command's word and a neighbour's address of either family."""
    monkeypatch.setattr(sys.modules[__name__], "NEIGHBORS", [*NEIGHBORS, {"address": "fd00:10::2"}])
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = tmp_path / "routedctl"
    patient = "import sys; from routed.cli import completion, main; completion.PATIENCE = 60.0; sys.exit(main.main())"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{patient}" --socket {ctl.path} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "functions").mkdir()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    words = ["zsh", "-f", "-c", TYPED[shell], "zsh"] if shell == "zsh" else [shell, "-c", TYPED[shell]]
    words += ["bash"] if shell == "bash" else []
    done = subprocess.run([*words, *ASKED], env=environment, capture_output=True, text=True, timeout=110, check=True)
    found = [line.split()[-1] for line in done.stdout.splitlines()]
    assert found == ["advertised", "10.0.0.254", "fd00:10::2"]
