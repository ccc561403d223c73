"""Real routers for a laboratory: routed itself, and BIRD, FRR, GoBGP, OpenBGPD and ExaBGP, each in a namespace.

Each is made for a namespace with its configuration in its own language, started with `start()`, asked with `sessions()`
(which neighbours are up) and `routes()` (what it holds, by prefix), and ended with `stop()` (SIGTERM) or `kill()`.
Nothing of theirs is kept outside the namespace's folder. `missing(...)` says which are not installed.

A route is told as text in the router's own words, for a test to look for what matters in it, and by `told` attribute by
attribute, in the same form by all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from routed.control.client import ControlClient, Unreachable
from routed.control.protocol import SOCKET_NAME
from routed.testing import told
from routed.testing.lab import LabError, Namespace, Process, run, wait_for
from routed.testing.told import Told

API = "projectcalico.org/v3"

#: Seconds a router may take until it answers questions.
START = 60.0

Json = dict[str, Any]

PROGRAMS = {
    "bird": ("bird", "birdc"),
    "frr": ("/usr/lib/frr/bgpd", "/usr/lib/frr/zebra", "vtysh"),
    "gobgp": ("gobgpd", "gobgp"),
    "openbgpd": ("/usr/sbin/bgpd", "bgpctl"),
    "exabgp": (os.path.join(os.path.dirname(sys.executable), "exabgp"),),
}


def missing(*names: str) -> list[str]:
    """Which of these routers (keys of PROGRAMS) are not installed here."""
    return [name for name in names if not all(shutil.which(program) for program in PROGRAMS[name])]


def resource(kind: str, name: str, spec: Json | None = None, **labels: str) -> Json:
    """A manifest, as it stands in a resource file."""
    metadata: Json = {"name": name, **({"labels": labels} if labels else {})}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec or {}}


class Router:
    """What all have in common: a namespace, a folder, processes."""

    name: ClassVar[str]

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.folder = namespace.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self.processes: list[Process] = []

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        wait_for(self.answers, START, f"{self.name} in {self.namespace.name} answers", state=self.namespace.lab.report)

    def launch(self) -> None:
        """Start it."""
        raise LabError(f"{self.name} cannot be started")

    def answers(self) -> bool:
        """Whether it takes questions already."""
        return True

    def sessions(self) -> dict[str, str]:
        """State by neighbour address, `Established` where it is up."""
        return {}

    def established(self, *addresses: str) -> bool:
        """Whether the sessions with these neighbours are up."""
        states = self.sessions()
        return all(states.get(address, "").lower() == "established" for address in addresses)

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        """What it holds, in its own words."""
        raise LabError(f"{self.name} cannot list routes{' of IPv6' if ipv6 else ''}")

    def told(self, prefix: str) -> Told | None:
        """The attributes of the route it uses for a prefix; None where it has none."""
        return self.tells(ipv6=":" in prefix).get(prefix)

    def tells(self, *, ipv6: bool = False) -> dict[str, Told]:
        """`told` of all it has by BGP."""
        raise LabError(f"{self.name} cannot tell of routes{' of IPv6' if ipv6 else ''}")

    def received(self, address: str) -> int:
        """How many routes it has from a neighbour, without listing them."""
        raise LabError(f"{self.name} cannot count those of {address}")

    @property
    def alive(self) -> bool:
        return bool(self.processes) and all(process.alive for process in self.processes)

    def stop(self) -> None:
        """End it as an administrator would."""
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()

    def kill(self) -> None:
        """It crashes: no last words."""
        for process in reversed(self.processes):
            process.kill()
        self.processes.clear()

    def log(self) -> str:
        """All it printed."""
        return "".join(process.text() for process in self.processes)


class Routed(Router):
    """routed with a file datastore: one file a resource, in `resources`."""

    name = "routed"

    def __init__(self, namespace: Namespace, node_name: str = "", **settings: object) -> None:
        """`settings` go into routed.yaml beside what a lab needs; None leaves a key out."""
        super().__init__(namespace)
        self.node_name = node_name or namespace.name
        self.resources = self.folder / "resources"
        self.resources.mkdir(exist_ok=True)
        self.config = self.folder / "routed.yaml"
        self.settings: Json = {
            "nodeName": self.node_name,
            "datastore": {"type": "file", "path": str(self.resources)},
            "runDir": str(self.folder / "run"),
            "stateDir": str(self.folder / "state"),
            "log": {"level": "debug"},
            **settings,
        }
        self.configure()

    def configure(self, **settings: object) -> None:
        """Write routed.yaml, with these settings changed."""
        self.settings.update(settings)
        wanted = {key: value for key, value in self.settings.items() if value is not None}
        self.config.write_text(yaml.safe_dump(wanted, sort_keys=False))

    # ---- its datastore

    def put(self, *manifests: Json) -> None:
        """These resources exist, each in a file of its own, renamed into place."""
        for manifest in manifests:
            path = self._path(manifest["kind"], manifest["metadata"]["name"])
            fresh = path.with_suffix(".new")
            fresh.write_text(yaml.safe_dump(manifest, sort_keys=False))
            fresh.rename(path)

    def remove(self, kind: str, name: str) -> None:
        self._path(kind, name).unlink()

    def _path(self, kind: str, name: str) -> Path:
        return self.resources / f"{kind}-{name}.yaml"

    # ---- running

    def launch(self) -> None:
        argv = (sys.executable, "-m", "routed.daemon.main", "run", "--config", str(self.config))
        self.processes = [self.namespace.start("routed", *argv)]

    def answers(self) -> bool:
        with contextlib.suppress(Unreachable):
            return bool(self.ask("status"))
        if not self.alive:
            raise LabError(f"routed in {self.namespace.name} ended:\n{self.log()}")
        return False

    @property
    def pid(self) -> int:
        return self.processes[0].pid

    # ---- asking

    def ask(self, request: str, **arguments: object) -> Any:
        """An answer from the control socket."""
        with ControlClient(str(self.folder / "run" / SOCKET_NAME), patience=30) as client:
            return client.ask(request, **arguments)

    def stream(self, request: str, **arguments: object) -> Iterator[Any]:
        with ControlClient(str(self.folder / "run" / SOCKET_NAME), patience=30) as client:
            yield from client.stream(request, **arguments)

    def ctl(self, *words: str, check: bool = True) -> str:
        """What routedctl prints."""
        argv = (sys.executable, "-m", "routed.cli.main", *words, "--config", str(self.config))
        return run(*argv, check=check)

    def status(self) -> Json:
        answer: Json = self.ask("status")
        return answer

    def problems(self) -> list[str]:
        found: list[str] = self.status()["problems"]
        return found

    def neighbors(self) -> dict[str, Json]:
        """By address."""
        return {row["address"]: row for row in self.stream("neighbors")}

    def sessions(self) -> dict[str, str]:
        return {address: row["state"] for address, row in self.neighbors().items()}

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        family = "ipv6" if ipv6 else "ipv4"
        return {
            row["prefix"]: json.dumps(row) for row in self.stream("routes") if row["family"].lower().startswith(family)
        }

    def route(self, prefix: str) -> Json:
        """One prefix with all its candidates; an empty object where there is none."""
        rows: list[Json] = [row for row in self.stream("routes", all=True) if row["prefix"] == prefix]
        return rows[0] if rows else {}

    def best(self, prefix: str) -> Json:
        """The best path to a prefix; an empty object where there is none."""
        candidates: list[Json] = self.route(prefix).get("candidates", [])
        return next((path for path in candidates if path["best"]), {})

    def told(self, prefix: str) -> Told | None:
        found = self.best(prefix)
        return told.of_routed(found) if found else None

    def received(self, address: str) -> int:
        row = self.neighbors().get(address, {})
        return sum(family["received"] for family in row.get("families", {}).values())

    def fib(self) -> dict[str, Json]:
        return {row["prefix"]: row for row in self.stream("fib")}

    def kernel_routes(self, *, ipv6: bool = False) -> dict[str, str]:
        """What is really in the kernel under our protocol number, without the constant words."""
        found = self.namespace.routes(protocol=120, ipv6=ipv6)
        noise = r" ?(proto 120|metric 1024|pref medium|onlink|dev lo)\b"
        return {prefix: " ".join(re.sub(noise, "", text).split()) for prefix, text in found.items()}


class Bird(Router):
    """BIRD 2. `config` is its configuration but for the log; with `recover` it starts as after a graceful restart."""

    name = "bird"

    def __init__(self, namespace: Namespace, config: str, *, recover: bool = False) -> None:
        super().__init__(namespace)
        self.config = config
        self.recover = recover

    def launch(self) -> None:
        file = self.folder / "bird.conf"
        file.write_text(f"log stderr all;\n{self.config}")
        argv = ("bird", "-f", "-c", str(file), "-s", str(self.folder / "bird.ctl"))
        self.processes = [self.namespace.start("bird", *argv, *(["-R"] if self.recover else []))]

    def configure(self, config: str) -> None:
        """Change the configuration while it runs."""
        self.config = config
        (self.folder / "bird.conf").write_text(f"log stderr all;\n{config}")
        self.ctl("configure")

    def ctl(self, *words: str) -> str:
        return run("birdc", "-s", str(self.folder / "bird.ctl"), *words, check=False)

    def answers(self) -> bool:
        return "up and running" in self.ctl("show", "status")

    def sessions(self) -> dict[str, str]:
        return bird_sessions(self.ctl("show", "protocols", "all"))

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        found: dict[str, str] = {}
        last = ""
        for line in self.ctl("show", "route", "table", "master6" if ipv6 else "master4", "all").splitlines():
            if line and not line[0].isspace() and "/" in line.split()[0]:
                last = line.split()[0]
                found[last] = line
            elif last and line[:1].isspace():
                found[last] += "\n" + line
        return found

    def tells(self, *, ipv6: bool = False) -> dict[str, Told]:
        routes = self.routes(ipv6=ipv6)
        return {prefix: told.of_bird(text) for prefix, text in routes.items() if "BGP.origin" in text}

    def received(self, address: str) -> int:
        protocols = re.split(r"\n(?=\S)", self.ctl("show", "protocols", "all"))
        text = next((text for text in protocols if re.search(rf"Neighbor address: {address}\n", text)), "")
        return sum(map(int, re.findall(r"Routes: +(\d+) imported", text)))


class Frr(Router):
    """FRR's zebra and bgpd. `config` is bgpd's configuration, `zebra` zebra's."""

    name = "frr"

    def __init__(self, namespace: Namespace, config: str, zebra: str = "", *, program_routes: bool = True) -> None:
        super().__init__(namespace)
        self.config = config
        self.zebra = zebra
        self.program_routes = program_routes

    def launch(self) -> None:
        folder = str(self.folder)
        (self.folder / "bgpd.conf").write_text(f"hostname {self.namespace.name}\n{self.config}")
        (self.folder / "zebra.conf").write_text(f"hostname {self.namespace.name}\n{self.zebra}")
        # both drop root for the user frr
        for path in (self.folder, *self.folder.iterdir()):
            shutil.chown(path, "frr", "frr")
        Path("/var/run/frr").mkdir(exist_ok=True)
        shutil.chown("/var/run/frr", "frr", "frr")
        common = (
            "-z",
            f"{folder}/zserv.sock",
            "--vty_socket",
            folder,
            "--log",
            "stdout",
            "--log-level",
            "informational",
        )
        zebra = ("/usr/lib/frr/zebra", "-f", f"{folder}/zebra.conf", "-i", f"{folder}/zebra.pid", *common)
        bgpd = ("/usr/lib/frr/bgpd", "-f", f"{folder}/bgpd.conf", "-i", f"{folder}/bgpd.pid", "-p", "179", *common)
        self.processes = [self.namespace.start("zebra", *zebra)]
        wait_for((self.folder / "zserv.sock").exists, START, "zebra serves", state=self.namespace.lab.report)
        self.processes.append(self.namespace.start("bgpd", *bgpd, *([] if self.program_routes else ["-n"])))

    def ctl(self, command: str) -> str:
        """What vtysh prints for a command."""
        return run("vtysh", "--vty_socket", str(self.folder), "-c", command, check=False)

    def configure(self, *lines: str) -> None:
        """Change the configuration while it runs, as typed after `configure terminal`."""
        words = [word for line in ("configure terminal", *lines) for word in ("-c", line)]
        run("vtysh", "--vty_socket", str(self.folder), *words)

    def answers(self) -> bool:
        return "router bgp" in self.ctl("show running-config")

    def sessions(self) -> dict[str, str]:
        return frr_sessions(self.ctl("show bgp neighbors json"))

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        found: Json = _json(self.ctl(f"show bgp {'ipv6' if ipv6 else 'ipv4'} unicast json detail"))
        return {prefix: json.dumps(row) for prefix, row in found.get("routes", {}).items()}

    def route(self, prefix: str) -> list[Json]:
        """The paths to one prefix, with all their attributes."""
        family = "ipv6" if ":" in prefix else "ipv4"
        found: Json = _json(self.ctl(f"show bgp {family} unicast {prefix} json"))
        paths: list[Json] = found.get("paths", [])
        return paths

    def told(self, prefix: str) -> Told | None:
        return self._best(self.route(prefix))

    def tells(self, *, ipv6: bool = False) -> dict[str, Told]:
        found: Json = _json(self.ctl(f"show bgp {'ipv6' if ipv6 else 'ipv4'} unicast json detail"))
        best = {prefix: self._best(paths) for prefix, paths in found.get("routes", {}).items()}
        return {prefix: path for prefix, path in best.items() if path is not None}

    @staticmethod
    def _best(paths: list[Json]) -> Told | None:
        return next((told.of_frr(path) for path in paths if path.get("bestpath", {}).get("overall")), None)

    def received(self, address: str) -> int:
        families: Json = _json(self.ctl("show bgp summary json"))
        return sum(family.get("peers", {}).get(address, {}).get("pfxRcd", 0) for family in families.values())


class GoBgp(Router):
    """GoBGP. `config` is its TOML; with `recover` it starts as after a graceful restart."""

    name = "gobgp"

    def __init__(self, namespace: Namespace, config: str, *, recover: bool = False) -> None:
        super().__init__(namespace)
        self.config = config
        self.recover = recover

    def launch(self) -> None:
        file = self.folder / "gobgpd.toml"
        file.write_text(self.config)
        argv = ("gobgpd", "-f", str(file), "--log-level", "info", "-p", *(["-r"] if self.recover else []))
        self.processes = [self.namespace.start("gobgpd", *argv)]

    def ctl(self, *words: str) -> str:
        return self.namespace.run("gobgp", *words, check=False)

    def asked(self, *words: str) -> str:
        """What it answers as JSON. Its program gives up after a second, which says nothing of what the daemon has."""
        return wait_for(
            lambda: "" if (text := self.ctl(*words, "-j")).startswith('{"error"') else text or "{}",
            START,
            f"gobgp {' '.join(words)} is answered",
            state=self.namespace.lab.report,
        )

    def answers(self) -> bool:
        return self.ctl("global").lstrip().startswith("AS:")

    def sessions(self) -> dict[str, str]:
        return gobgp_sessions(self.asked("neighbor"))

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        found: Json = _json(self.asked("global", "rib", "-a", "ipv6" if ipv6 else "ipv4"))
        return {prefix: json.dumps(paths) for prefix, paths in found.items()}

    def tells(self, *, ipv6: bool = False) -> dict[str, Told]:
        found: Json = _json(self.asked("global", "rib", "-a", "ipv6" if ipv6 else "ipv4"))
        return {prefix: told.of_gobgp(path) for prefix, paths in found.items() for path in paths if path.get("best")}

    def received(self, address: str) -> int:
        found: Json = _json(self.asked("neighbor", address))
        return sum(family.get("state", {}).get("accepted", 0) for family in found.get("afi_safis", ()))


class OpenBgpd(Router):
    """OpenBGPD, which has no part in the kernel here. `config` is its configuration but for the socket."""

    name = "openbgpd"

    def __init__(self, namespace: Namespace, config: str) -> None:
        super().__init__(namespace)
        self.config = config
        self.socket = self.folder / "bgpd.sock"

    def launch(self) -> None:
        Path("/run/openbgpd").mkdir(exist_ok=True)  # it locks itself in there
        file = self.folder / "bgpd.conf"
        file.write_text(f'fib-update no\nsocket "{self.socket}"\n{self.config}')
        file.chmod(0o600)
        self.processes = [self.namespace.start("bgpd", "/usr/sbin/bgpd", "-d", "-f", str(file))]

    def ctl(self, *words: str) -> str:
        return run("bgpctl", "-s", str(self.socket), *words, check=False)

    def answers(self) -> bool:
        return "neighbors" in self.ctl("-j", "show", "neighbor")

    def _neighbors(self) -> dict[str, Json]:
        found: Json = _json(self.ctl("-j", "show", "neighbor"))
        return {row["remote_addr"]: row for row in found.get("neighbors", ())}

    def sessions(self) -> dict[str, str]:
        return {address: row["state"] for address, row in self._neighbors().items()}

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        return {row["prefix"]: json.dumps(row) for row in self._rib(ipv6)}

    def tells(self, *, ipv6: bool = False) -> dict[str, Told]:
        return {row["prefix"]: told.of_openbgpd(row) for row in self._rib(ipv6)}

    def received(self, address: str) -> int:
        row = self._neighbors().get(address, {})
        count: int = row.get("stats", {}).get("prefixes", {}).get("received", 0)
        return count

    def _rib(self, ipv6: bool) -> list[Json]:
        found: Json = _json(self.ctl("-j", "show", "rib", "inet6" if ipv6 else "inet", "best", "detail"))
        rows: list[Json] = found.get("rib", [])
        return rows


class ExaBgp(Router):
    """ExaBGP. `config` holds its neighbours; what they hear is kept as ExaBGP tells it.

    Write `neighbor ADDRESS { ...; api { processes [ watch ]; receive { parsed; update; } } }`.
    """

    name = "exabgp"

    def __init__(self, namespace: Namespace, config: str) -> None:
        super().__init__(namespace)
        self.config = config
        self.heard = self.folder / "heard"

    def launch(self) -> None:
        script = self.folder / "watch"
        # descriptor 3 keeps the pipe to ExaBGP open: an end of it would count as the process's death
        script.write_text(f"#!/bin/sh\nexec cat 3>&1 > {self.heard}\n")
        script.chmod(0o755)
        file = self.folder / "exabgp.conf"
        file.write_text(f"process watch {{ run {script}; encoder json; }}\n{self.config}")
        settings = (
            "exabgp.daemon.user=root",
            "exabgp.daemon.drop=false",
            "exabgp.api.cli=false",
            "exabgp.api.ack=false",
        )
        argv = ("env", *settings, PROGRAMS["exabgp"][0], "server", str(file))
        self.processes = [self.namespace.start("exabgp", *argv)]

    def messages(self) -> list[Json]:
        """What it told its process, in order."""
        lines = self.heard.read_text().splitlines() if self.heard.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def sessions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for message in self.messages():
            if message.get("type") == "state":
                up = message["neighbor"]["state"] == "up"
                found[message["neighbor"]["address"]["peer"]] = "Established" if up else "Idle"
        return found

    def routes(self, *, ipv6: bool = False) -> dict[str, str]:
        wanted = "ipv6 unicast" if ipv6 else "ipv4 unicast"
        found: dict[str, str] = {}
        for message in self.messages():
            update = message.get("neighbor", {}).get("message", {}).get("update", {})
            for next_hop, rows in update.get("announce", {}).get(wanted, {}).items():
                for row in rows:
                    if "nlri" in row:
                        found[row["nlri"]] = json.dumps({"next-hop": next_hop, **update.get("attribute", {})})
            for row in update.get("withdraw", {}).get(wanted, []):
                found.pop(row["nlri"], None)
        return found

    def tells(self, *, ipv6: bool = False) -> dict[str, Told]:
        found: dict[str, Json] = {prefix: json.loads(text) for prefix, text in self.routes(ipv6=ipv6).items()}
        return {prefix: told.of_exabgp(row.pop("next-hop"), row) for prefix, row in found.items()}

    def received(self, address: str) -> int:
        """Of a neighbour that announced each once and withdrew none."""
        lines = self.heard.read_text().splitlines() if self.heard.exists() else []
        return sum(line.count('"nlri"') for line in lines if f'"peer": "{address}"' in line and '"announce"' in line)


# ---- what they say of their sessions: the state by the neighbour's address


def bird_sessions(text: str) -> dict[str, str]:
    """Of `birdc show protocols all`."""
    found: dict[str, str] = {}
    address = ""
    for line in text.splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "Neighbor address":
            address = value.strip().partition("%")[0]
        elif key == "BGP state":
            found["pending"] = value.strip()
        if address and "pending" in found:
            found[address] = found.pop("pending")
            address = ""
    return found


def frr_sessions(text: str) -> dict[str, str]:
    """Of `vtysh -c 'show bgp neighbors json'`."""
    found: Json = _json(text)
    return {address: row["bgpState"] for address, row in found.items() if isinstance(row, dict)}


def gobgp_sessions(text: str) -> dict[str, str]:
    """Of `gobgp neighbor -j`."""
    states = {1: "Idle", 2: "Connect", 3: "Active", 4: "OpenSent", 5: "OpenConfirm", 6: "Established"}
    found = _json(text)
    rows: list[Json] = found if isinstance(found, list) else []  # it was asked in vain
    return {
        row["conf"]["neighbor_address"]: states.get(row["state"].get("session_state", 0), "unknown") for row in rows
    }


def routed_sessions(text: str) -> dict[str, str]:
    """Of `routedctl show neighbors --json`."""
    return {row["address"]: row["state"] for row in _json(text) or []}


def _json(text: str) -> Any:
    """JSON among what a program prints; an empty object where there is none (it is just starting)."""
    start = re.search(r"[\[{]", text)
    if start is None:
        return {}
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text[start.start() :])
    return {}
