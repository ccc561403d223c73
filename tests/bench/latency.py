"""How long a block committed in etcd on one node takes into another node's kernel: etcd, routed, BGP, routed, kernel.

    python -m tests.bench.latency

Two nodes with real kernels in namespaces, their datastore one real etcd on the first. A writer on the first node gives it
one block after the other, as many as a node has; then each is taken back (its affinity is pending) and given anew. A
netlink socket on the second hears of the route. Each change is made when the one before has arrived, so they do not wait
for each other. Where the time went is told by the two daemons' own histograms. Needs root. What else the machine does
counts: its load is told.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

from routed.datastore.etcd_client import Client
from routed.datastore.etcd_settings import EtcdConfig
from routed.testing.lab import Lab, LabError, Namespace, wait_for
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import Routed, resource
from tests.datastore.etcd_server import Cluster, P

CHANGES, WARM = 200, 20
#: Blocks of the node.
BLOCKS = 8
_ROUTES = 0x40
_NEW_ROUTE, _NO_ROUTE = 24, 25


class Watcher:
    """What the kernel of a namespace says of new IPv4 routes."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, _ROUTES))

    def wait(self, address: bytes, seconds: float, wanted: int = _NEW_ROUTE) -> float:
        """The time at which it tells of a route to a network, that it is there or no longer."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not select.select([self._socket], [], [], until - time.monotonic())[0]:
                break
            data = self._socket.recv(1 << 16)
            now = time.monotonic()
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == wanted and address in data[16:length]:
                    return now
                data = data[(length + 3) & ~3 :]
        raise LabError(f"no news of the route to {socket.inet_ntoa(address)} within {seconds:g} s")


class Writer:
    """A process inside a namespace that writes to etcd when told to."""

    def __init__(self, namespace: Namespace, endpoint: str) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={NETNS}/{namespace.full_name}", "--", sys.executable,
             "-m", "tests.bench.latency", "--write", endpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def put(self, path: str, state: str) -> tuple[float, float]:
        """When it was sent, and when etcd answered."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path} {state}\n")
        self._process.stdin.flush()
        sent, answered = self._process.stdout.readline().split()
        return float(sent), float(answered)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def write(endpoint: str) -> None:
    client = Client(EtcdConfig((endpoint,)))
    loop = asyncio.get_running_loop()
    await client.get("/calico")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        path, state = line.split()
        sent = time.monotonic()
        await client.swap([], [(path, f'{{"state":"{state}","deleted":false}}'.encode())])
        sys.stdout.write(f"{sent} {time.monotonic()}\n")
        sys.stdout.flush()
    await client.close()


def run(changes: int) -> dict[str, list[float]]:
    """Milliseconds of each change."""
    with Lab() as lab:
        a, b = lab.namespace("a"), lab.namespace("b")
        lab.link(a.port("eth0", "10.0.0.1/24"), b.port("eth0", "10.0.0.2/24"))
        etcd = Cluster(
            a.folder, host="10.0.0.1", inside=("nsenter", f"--net={NETNS}/{a.full_name}", "--"), durable=True
        )
        nodes = [Routed(a), Routed(b)]
        for node in nodes:
            node.configure(datastore={"type": "etcd", "endpoints": list(etcd.endpoints)}, log={"level": "info"})
        try:
            etcd.start()
            etcd.put(f"{P}nodes/a", resource("Node", "a", {"bgp": {"ipv4Address": "10.0.0.1/24"}}))
            etcd.put(f"{P}nodes/b", resource("Node", "b", {"bgp": {"ipv4Address": "10.0.0.2/24"}}))
            etcd.put(f"{P}ippools/v4", resource("IPPool", "v4", {"cidr": "10.128.0.0/9"}))
            for node in nodes:
                node.start()
            wait_for(lambda: nodes[1].established("10.0.0.1"), 60, "the session is up", state=lab.report)
            watcher, writer = Watcher(b), Writer(a, etcd.endpoints[0])
            found: dict[str, list[float]] = {"etcd's answer": [], "from the answer": [], "from the request": []}
            for number in range(changes + WARM):
                address = bytes((10, 128, 0, number % BLOCKS * 8))
                path = f"/calico/ipam/v2/host/a/ipv4/block/{socket.inet_ntoa(address)}-29"
                if number >= BLOCKS:
                    writer.put(path, "pending")
                    watcher.wait(address, 20, _NO_ROUTE)
                    time.sleep(0.005)
                sent, answered = writer.put(path, "confirmed")
                arrived = watcher.wait(address, 20)
                if number >= WARM:
                    found["etcd's answer"].append((answered - sent) * 1000)
                    found["from the answer"].append((arrived - answered) * 1000)
                    found["from the request"].append((arrived - sent) * 1000)
                time.sleep(0.005)  # the last turn of either daemon is over
            writer.close()
            for node in nodes:
                found |= {f"{node.namespace.name}: {stage}": [ms] for stage, ms in stages(node).items()}
            return found
        finally:
            etcd.stop()


def stages(node: Routed) -> dict[str, float]:
    """What a daemon says of its own part: mean milliseconds from the arrival of a change until each stage."""
    text = node.namespace.run("curl", "-s", "http://127.0.0.1:9971/metrics")
    sums: dict[str, dict[str, float]] = {}
    for what, labels, value in re.findall(r"routed_change_latency_seconds_(sum|count)\{([^}]*)\} (\S+)", text):
        sums.setdefault(" ".join(re.findall(r'"([^"]*)"', labels)), {})[what] = float(value)
    return {stage: each["sum"] / each["count"] * 1000 for stage, each in sums.items() if each.get("count")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.latency", description=__doc__)
    parser.add_argument("--changes", type=int, default=CHANGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        asyncio.run(write(arguments.write))
        return
    if os.geteuid() != 0:
        parser.error("this needs root, for network namespaces")
    for _ in range(arguments.rounds):
        found = run(arguments.changes)
        load = re.split(" ", Path("/proc/loadavg").read_text())[0]
        sys.stdout.write(f"load {load}: ")
        sys.stdout.write(
            "; ".join(
                f"{name} {statistics.median(each):.2f} ms (99 %: {sorted(each)[len(each) * 99 // 100]:.2f})"
                for name, each in found.items()
                if len(each) > 1
            )
        )
        parts = "; ".join(f"{name} {each[0]:.2f}" for name, each in found.items() if len(each) == 1)
        sys.stdout.write(f"\n  mean from a change's arrival there (ms): {parts}")
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
