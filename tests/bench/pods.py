"""How fast pods come and go: CNI ADD by the whole plugin process, beside Debian's ptp with host-local, and a flood of pods.

    nice python -m tests.bench.pods                 # root; a minute
    nice python -m tests.bench.pods --seconds 5     # the flood in short

The plugins take turns, pod by pod, so that whatever else the machine does is the same for all. The clock runs from the
start of the plugin's process to its end. In the flood, pods are asked for at a fixed rate whether or not the ones before
are done, each is deleted a second later, and afterwards nothing may be left: no interface, route, endpoint, address, and
no element in a set of the firewall.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import threading
import time
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
#: Namespaces the flood goes round. One is used again seconds after its pod went, when the kernel is done with it.
ROOMS = 400
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
        given = json.dumps(self.configuration).encode()
        began = time.perf_counter()
        done = subprocess.run(self.argv, input=given, stdout=subprocess.PIPE, env=environment, check=False)
        took = time.perf_counter() - began
        if done.returncode:
            raise Failed(f"{self.name}: {command} {container}: {done.stdout.decode()}")
        return took


class Site:
    """One node, with routed, and namespaces for its pods."""

    def __init__(self, lab: Lab, *, etcd: bool) -> None:
        self.lab = lab
        self.node = lab.namespace("node", forward=True)
        self.etcd = Etcd(self.node) if etcd else None
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
        for name in names:
            run("ip", "netns", "add", name)
        self.rooms += names

    def contender(self, form: str) -> Contender:
        configuration = {"cniVersion": "1.0.0", "name": "pods", "type": "routed-cni", "socket": self.socket}
        return Contender(f"routed ({form})", program(form, self.node.folder), configuration)

    def reference(self) -> Contender:
        ipam = {"type": "host-local", "subnet": "10.66.0.0/16", "dataDir": str(self.node.folder / "host-local")}
        configuration = {"cniVersion": "1.0.0", "name": "reference", "type": "ptp", "ipam": {**ipam}}
        return Contender("ptp + host-local", (f"{PLUGINS}/ptp",), configuration)

    def processor(self) -> float:
        """Seconds the daemon has computed so far."""
        fields = Path(f"/proc/{self.routed.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def left(self) -> list[str]:
        """What is there of pods."""
        found = [line.split("@")[0] for line in self.node.run("ip", "-br", "link").splitlines() if line[:4] == "cali"]
        found += [prefix for prefix, way in self.node.routes(protocol=120).items() if "blackhole" not in way]
        listed = self.node.run("nft", "list", "table", "inet", "routed")
        found += re.findall(r'"cali[0-9a-f]{11}"', listed)
        for pool in json.loads(self.routedctl("ipam", "show", "--json")):
            found += [f"{pool['inUse']} addresses in use"] if pool["inUse"] else []
        return found


@contextlib.contextmanager
def site(datastore: str) -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab, etcd=datastore == "etcd")
        made.start()
        try:
            yield made
        finally:
            made.routed.stop()
            for name in made.rooms:
                run("ip", "netns", "del", name, check=False)


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
    late: float
    """Seconds the slowest answer came after it was due to be asked for."""
    processor: float
    """Seconds the daemon computed for each, its part of the kernel's work included."""


def flood(made: Site, rate: int, seconds: float) -> Flood:
    """Pods at a fixed rate, each deleted a moment later."""
    contender = made.contender("c")
    made.make_rooms(min(ROOMS, int(rate * seconds)))
    computed = made.processor()
    due: queue.PriorityQueue[tuple[float, int, str]] = queue.PriorityQueue()
    total = int(rate * seconds)
    began = time.perf_counter() + 0.5
    for number in range(total):
        due.put((began + number / rate, number, "ADD"))
    free: queue.Queue[str] = queue.Queue()
    for room in made.rooms:
        free.put(room)
    rooms: dict[int, str] = {}
    adds: list[float] = []
    ends: list[float] = []
    late: list[float] = []
    errors: list[str] = []

    def work() -> None:
        with made.node.entered():
            while not errors:
                try:
                    when, number, command = due.get_nowait()
                except queue.Empty:
                    if len(ends) == total:
                        return
                    time.sleep(0.001)
                    continue
                now = time.perf_counter()
                if when > now:
                    due.put((when, number, command))
                    time.sleep(min(when - now, 0.002))
                    continue
                if command == "ADD":
                    try:
                        rooms[number] = free.get_nowait()
                    except queue.Empty:  # deletions are late, and first of all that
                        due.put((now + 0.01, number, command))
                        continue
                room = rooms[number]
                try:
                    took = contender.call(command, f"flood-{number}", room)
                except Failed as failed:
                    errors.append(str(failed))
                    return
                after = time.perf_counter()
                if command == "DEL":
                    free.put(room)
                else:
                    adds.append(took)
                    ends.append(after)
                    late.append(after - when)
                    due.put((max(after, when) + LIFETIME, number, "DEL"))

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    if errors:
        raise LabError(errors[0])
    wait_for(lambda: not made.left(), 30, "nothing is left", state=lambda: "\n".join(made.left()[:20]))
    if "add up" not in made.routedctl("ipam", "check"):
        raise LabError("routedctl ipam check found something")
    return Flood(total, max(ends) - began, adds, max(late), (made.processor() - computed) / total)


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
                    _say(
                        f"{datastore}: {done.pods} pods in {done.seconds:.1f} s: ADD {_times(done.adds)}, the slowest "
                        f"answer {1000 * done.late:.0f} ms after it was due; nothing left; "
                        f"daemon: {1000 * done.processor:.1f} ms a pod"
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
