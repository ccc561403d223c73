"""How long a block committed in etcd on one node takes into another node's kernel: etcd, routed, BGP, routed, kernel.

    python -m tests.bench.latency

Two nodes with real kernels in namespaces, their datastore one real etcd on the first. A writer on the first node gives it
one block after the other; a netlink socket on the second hears of the route. Each change is made when the one before has
arrived, so they do not wait for each other. Needs root. What else the machine does counts: its load is told.
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
_ROUTES = 0x40
_NEW_ROUTE = 24


class Watcher:
    """What the kernel of a namespace says of new IPv4 routes."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, _ROUTES))

    def wait(self, address: bytes, seconds: float) -> float:
        """The time at which it tells of a route to a network."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not select.select([self._socket], [], [], until - time.monotonic())[0]:
                break
            data = self._socket.recv(1 << 16)
            now = time.monotonic()
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NEW_ROUTE and address in data[16:length]:
                    return now
                data = data[(length + 3) & ~3 :]
        raise LabError(f"no route to {socket.inet_ntoa(address)} within {seconds:g} s")


class Writer:
    """A process inside a namespace that writes to etcd when told to."""

    def __init__(self, namespace: Namespace, endpoint: str) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={NETNS}/{namespace.full_name}", "--", sys.executable,
             "-m", "tests.bench.latency", "--write", endpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def put(self, path: str) -> tuple[float, float]:
        """When it was sent, and when etcd answered."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
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
    while path := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        sent = time.monotonic()
        await client.swap([], [(path, b'{"state":"confirmed","deleted":false}')])
        sys.stdout.write(f"{sent} {time.monotonic()}\n")
        sys.stdout.flush()
    await client.close()


def run(changes: int) -> dict[str, list[float]]:
    """Milliseconds of each change."""
    with Lab() as lab:
        a, b = lab.namespace("a"), lab.namespace("b")
        lab.link(a.port("eth0", "10.0.0.1/24"), b.port("eth0", "10.0.0.2/24"))
        etcd = Cluster(a.folder, host="10.0.0.1", inside=("nsenter", f"--net={NETNS}/{a.full_name}", "--"))
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
                address = bytes((10, 128 + number // 1024, number // 4 % 256, number % 4 * 64))
                text = socket.inet_ntoa(address)
                sent, answered = writer.put(f"/calico/ipam/v2/host/a/ipv4/block/{text}-26")
                arrived = watcher.wait(address, 20)
                if number >= WARM:
                    found["etcd's answer"].append((answered - sent) * 1000)
                    found["from the answer"].append((arrived - answered) * 1000)
                    found["from the request"].append((arrived - sent) * 1000)
                time.sleep(0.005)  # the last turn of either daemon is over
            writer.close()
            return found
        finally:
            etcd.stop()


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
            )
        )
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
