"""How fast pods come and go: CNI ADD by the whole plugin process, beside Debian's ptp with host-local, and a flood of pods.

    nice python -m tests.bench.pods                 # root; a minute
    nice python -m tests.bench.pods --seconds 5     # the flood in short

The plugins take turns, pod by pod, so that whatever else the machine does is the same for all. The clock runs from the
start of the plugin's process to its end. In the flood, pods are asked for at a fixed rate whether or not the ones before
are done, each in a network namespace of its own that was made before, each is deleted a second later, and afterwards
nothing may be left: no interface, route, endpoint, address, and no element in a set of the firewall. The rate is held
where no answer, to an ADD or a DEL, comes more than LAG seconds after it was due to be asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import resource as rusage
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routed.testing.lab import Lab, LabError, run, wait_for
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import Routed, resource
from tests.cni.forms import program
from tests.lab.etcd import Etcd

PLUGINS = "/usr/lib/cni"
COUNT, RATE, SECONDS = 100, 100, 30
#: Seconds a pod of the flood lives.
LIFETIME = 1.0
#: Seconds the slowest answer may come after it was due to be asked for, where the rate is held.
LAG = 1.0
#: Calls of the flood at once, as a runtime bounds them.
WORKERS = 24


class Failed(Exception):
    """A call that did not work: what it printed."""


@dataclass
class Contender:
    """A plugin and its configuration."""

    name: str
    argv: Sequence[str]
    configuration: dict[str, Any]
    adds: list[float] = field(default_factory=list)
    deletes: list[float] = field(default_factory=list)

    def call(self, command: str, container: str, room: str) -> float:
        """Seconds it took."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"{NETNS}/{room}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}",
        }
        began = time.perf_counter()
        status, output = self._run(environment)
        took = time.perf_counter() - began
        if status:
            raise Failed(f"{self.name}: {command} {container}: {output.decode()}")
        return took

    def _run(self, environment: dict[str, str]) -> tuple[int, bytes]:
        """As `subprocess.run`, which computes as long as the plugin does."""
        given, its_input = os.pipe()
        reading, output = os.pipe()
        try:
            os.write(its_input, json.dumps(self.configuration).encode())  # a pipe takes that much
            os.close(its_input)
            actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
            process = os.posix_spawn(self.argv[0], tuple(self.argv), environment, file_actions=actions)
        finally:
            os.close(given)
            os.close(output)
        with open(reading, "rb") as said:
            printed = said.read()
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), printed


class Site:
    """One node, with routed, and namespaces for its pods."""

    def __init__(self, lab: Lab, *, etcd: bool) -> None:
        self.lab = lab
        self.node = lab.namespace("node", forward=True)
        self.etcd = Etcd(self.node, durable=True) if etcd else None
        self.node.ip("link add eth0 type bridge", "link set eth0 up")
        self.node.address("eth0", "10.0.0.1/24")
        self.socket = str(self.node.folder / "cni.sock")
        datastore: dict[str, Any] = {"datastore": {"type": "etcd", "endpoints": [self.etcd.url]}} if self.etcd else {}
        self.routed = Routed(
            self.node, node_name="n1", cni={"enabled": True, "socket": self.socket}, log={"level": "info"}, **datastore
        )
        self.rooms: list[str] = []

    def start(self) -> None:
        manifests = (
            resource("BGPConfiguration", "default", {"asNumber": 64512}),
            resource("IPPool", "v4", {"cidr": "10.65.0.0/16"}),
            resource("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}}),
        )
        if self.etcd:
            self.etcd.start()
            given = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
            file = self.node.folder / "all.json"
            file.write_text(given)
            self.routedctl("apply", "-f", str(file))
        else:
            self.routed.put(*manifests)
        self.routed.start()

    def routedctl(self, *words: str) -> str:
        argv = (sys.executable, "-m", "routed.cli.main", "--config", str(self.routed.config), *words)
        return self.node.run(*argv)

    def make_rooms(self, count: int) -> None:
        names = [f"{self.lab.prefix}-room{number}" for number in range(len(self.rooms), count)]
        run("ip", "-batch", "-", given="".join(f"netns add {name}\n" for name in names))
        self.rooms += names

    def contender(self, form: str) -> Contender:
        configuration = {"cniVersion": "1.0.0", "name": "pods", "type": "routed-cni", "socket": self.socket}
        return Contender(f"routed ({form})", program(form, self.node.folder), configuration)

    def reference(self) -> Contender:
        ipam = {"type": "host-local", "subnet": "10.66.0.0/16", "dataDir": str(self.node.folder / "host-local")}
        configuration = {"cniVersion": "1.0.0", "name": "reference", "type": "ptp", "ipam": {**ipam}}
        return Contender("ptp + host-local", (f"{PLUGINS}/ptp",), configuration)

    def computed(self) -> dict[str, float]:
        """Seconds that each of those who take part has computed so far."""
        own, plugins = (rusage.getrusage(who) for who in (rusage.RUSAGE_SELF, rusage.RUSAGE_CHILDREN))
        return {
            "daemon": _computed(self.routed.pid),
            **({"etcd": _computed(self.etcd.pid)} if self.etcd else {}),
            "plugins": plugins.ru_utime + plugins.ru_stime,
            "bench": own.ru_utime + own.ru_stime,
        }

    def left(self) -> list[str]:
        """What is there of pods."""
        found = [line.split("@")[0] for line in self.node.run("ip", "-br", "link").splitlines() if line[:4] == "cali"]
        found += [prefix for prefix, way in self.node.routes(protocol=120).items() if "blackhole" not in way]
        listed = self.node.run("nft", "list", "table", "inet", "routed")
        found += re.findall(r'"cali[0-9a-f]{11}"', listed)
        for pool in json.loads(self.routedctl("ipam", "show", "--json")):
            found += [f"{pool['inUse']} addresses in use"] if pool["inUse"] else []
        return found


def _computed(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def site(datastore: str) -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab, etcd=datastore == "etcd")
        made.start()
        try:
            yield made
        finally:
            made.routed.stop()
            run("ip", "-batch", "-", given="".join(f"netns del {name}\n" for name in made.rooms), check=False)


def latency(made: Site, count: int) -> list[Contender]:
    """ADD and DEL of pods one after the other, the contenders in turn."""
    contenders = [made.reference(), made.contender("c"), made.contender("python")]
    made.make_rooms(count)
    with made.node.entered():
        wait_for(lambda: _works(made.contender("c")), 30, "the node takes pods", state=made.lab.report)
        for number in range(count):
            room = made.rooms[number]
            for contender in contenders:
                container = f"{contender.argv[0].rpartition('/')[2]}-{number}"
                contender.adds.append(contender.call("ADD", container, room))
                contender.deletes.append(contender.call("DEL", container, room))
                _empty(room)
    return contenders


def _works(contender: Contender) -> bool:
    configuration = {**contender.configuration, "cniVersion": "1.1.0"}
    given = json.dumps(configuration).encode()
    return subprocess.run(contender.argv, input=given, env={"CNI_COMMAND": "STATUS"}, check=False).returncode == 0


def _empty(room: str) -> None:
    """The kernel deletes interfaces after the answer; the next contender's pod should not wait for that."""
    wait_for(lambda: "eth0" not in run("ip", "-n", room, "-br", "link"), 10, "the interface goes")


@dataclass
class Flood:
    pods: int
    seconds: float
    """From the first request to the last answer of an ADD."""
    adds: list[float]
    deletes: list[float]
    lag: float
    """Seconds the slowest answer came after it was due to be asked for."""
    left: float
    """Seconds from the last answer until nothing was left."""
    computed: dict[str, float]
    """Seconds each of those who take part computed for a pod, their part of the kernel's work included."""


def flood(made: Site, rate: int, seconds: float) -> Flood:
    """Pods at a fixed rate, each deleted a moment later."""
    contender = made.contender("c")
    total = int(rate * seconds)
    first = len(made.rooms)
    made.make_rooms(first + total)
    ready: queue.PriorityQueue[tuple[bool, float, int, str]] = queue.PriorityQueue()  # what is due to go goes first
    to_delete: deque[tuple[float, int]] = deque()
    adds: list[float] = []
    deletes: list[float] = []
    lags: list[float] = []
    errors: list[str] = []
    answered = 0.0

    def work() -> None:
        nonlocal answered
        with made.node.entered():
            while True:
                _, due, number, command = ready.get()
                if not command:
                    return
                try:
                    took = contender.call(command, f"flood-{number}", made.rooms[first + number])
                except Failed as failed:
                    errors.append(str(failed))
                    return
                now = time.perf_counter()
                lags.append(now - due)
                if command == "ADD":
                    answered = now
                    adds.append(took)
                    to_delete.append((now + LIFETIME, number))
                else:
                    deletes.append(took)

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for each in workers:
        each.start()
    before = made.computed()
    began = time.perf_counter() + 0.5
    number = 0
    while len(deletes) < total and not errors:
        now = time.perf_counter()
        while number < total and began + number / rate <= now:
            ready.put((True, began + number / rate, number, "ADD"))
            number += 1
        while to_delete and to_delete[0][0] <= now:
            ready.put((False, *to_delete.popleft(), "DEL"))
        time.sleep(0.001)
    for _ in workers:
        ready.put((True, float("inf"), 0, ""))
    for each in workers:
        each.join()
    if errors:
        raise LabError(errors[0])
    computed = {name: (after - before[name]) / total for name, after in made.computed().items()}
    ended = time.perf_counter()
    wait_for(lambda: not made.left(), 30, "nothing is left", state=lambda: "\n".join(made.left()[:20]))
    left = time.perf_counter() - ended
    if "add up" not in made.routedctl("ipam", "check"):
        raise LabError("routedctl ipam check found something")
    return Flood(total, answered - began, adds, deletes, max(lags), left, computed)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pods", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="pods one after the other (default %(default)s)")
    parser.add_argument("--rate", type=int, default=RATE, help="pods a second in the flood (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the flood (default %(default)s; 0: none)")
    parser.add_argument("--datastores", default="file,etcd", help="which to measure on (default %(default)s)")
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("this needs root, for network namespaces")
    if not Path(PLUGINS, "ptp").exists():
        parser.error("Debian's plugins are not installed (containernetworking-plugins)")
    try:
        for datastore in arguments.datastores.split(","):
            with site(datastore) as made:
                for each in latency(made, arguments.count):
                    _say(f"{datastore}: {each.name}: ADD {_times(each.adds)}; DEL {_times(each.deletes)}")
                if arguments.seconds:
                    done = flood(made, arguments.rate, arguments.seconds)
                    held = "held" if done.lag <= LAG else "NOT held"
                    computed = ", ".join(f"{name} {1000 * each:.1f}" for name, each in done.computed.items())
                    _say(
                        f"{datastore}: {done.pods} pods in {done.seconds:.1f} s: the rate was {held}: the slowest answer "
                        f"{1000 * done.lag:.0f} ms after it was due; ADD {_times(done.adds)}; DEL {_times(done.deletes)}; "
                        f"nothing left {done.left:.1f} s after the last; computed for a pod, in ms: {computed}"
                    )
    except (LabError, Failed) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _times(times: list[float]) -> str:
    ordered = sorted(times)
    return f"{1000 * statistics.median(ordered):.1f} ms (95 %: {1000 * ordered[len(ordered) * 95 // 100 - 1]:.1f})"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
