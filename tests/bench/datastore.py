"""How fast the datastore of a large cluster is read and followed: 5,000 nodes with 20,000 blocks in one real etcd.

    nice python -m tests.bench.datastore

etcd is filled as Calico fills it. Then a process of its own follows it as a node does, with the core and its plan behind
it and a saved state beside it, and says: how long from connecting to in-sync, how long the loop was kept from anything
else (a session's keepalive, say), how much memory the process has, and how much processor time a change costs it. Two kinds
of change: one that means nothing to this node (an address given out of another's block, which is what nearly all are) and
one that does (an affinity of its own is confirmed, or is pending again, so that a block is announced or withdrawn).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from routed.core.core import Core, CoreSettings
from routed.daemon.daemon import tell_collector, tell_collector_of_the_cluster
from routed.datastore.etcd import EtcdStore
from routed.datastore.etcd_client import Client
from routed.datastore.etcd_settings import EtcdConfig
from routed.datastore.folder import Problem
from routed.datastore.saved import Identity, SavedState
from routed.model.resources import JsonObject, Update
from tests.datastore.etcd_server import P, cluster

NODES, BLOCKS, CHANGES = 5_000, 20_000, 1_000
#: The node that follows.
OWN = "node-7"
KINDS_OF_CHANGE = ("another node's block", "an affinity of ours")
#: etcd takes 128 operations in a transaction.
BATCH = 128


def block(number: int, nodes: int, pods: int, sequence: int = 0) -> tuple[str, str, JsonObject]:
    """(the node it is of, its CIDR as in keys, its value) of a block of 64 addresses, `pods` of them given out."""
    name = f"node-{number % nodes}"
    cidr = f"10.{64 + number // 1024}.{number // 4 % 256}.{number % 4 * 64}/26"
    value: JsonObject = {
        "cidr": cidr,
        "affinity": f"host:{name}",
        "allocations": [*range(pods), *[None] * (64 - pods)],
        "unallocated": list(range(pods, 64)),
        "attributes": [
            {
                "handle_id": f"k8s-pod-network.{random.Random(number * 64 + pod).randbytes(32).hex()}",
                "secondary": {"namespace": "default", "node": name, "pod": f"web-{number}-{pod}",
                              "timestamp": "2026-01-01 00:00:00.000000000 +0000 UTC"},
            }
            for pod in range(pods)
        ],
        "deleted": False,
        "sequenceNumber": (1 << 62) + sequence,
        "sequenceNumberForAllocation": {str(pod): (1 << 62) + pod for pod in range(pods)},
    }  # fmt: skip
    return name, cidr.replace("/", "-"), value


def keys(nodes: int, blocks: int, pods: int) -> Iterator[tuple[str, JsonObject]]:
    """Everything in the cluster."""
    for number in range(nodes):
        name = f"node-{number}"
        yield (
            f"{P}nodes/{name}",
            resource(
                "Node",
                name,
                {
                    "bgp": {"ipv4Address": f"172.{16 + number // 65536}.{number // 256 % 256}.{number % 256}/12"},
                    "addresses": [{"address": f"172.16.{number // 256}.{number % 256}", "type": "InternalIP"}],
                    "orchRefs": [{"nodeName": name, "orchestrator": "k8s"}],
                    "ipv4VXLANTunnelAddr": f"10.{64 + number // 1024}.{number // 4 % 256}.{number % 4 * 64}",
                },
                {"kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64", "rack": f"rack-{number // 40}"},
            ),
        )
    for number in range(blocks):
        name, cidr, value = block(number, nodes, pods)
        yield f"/calico/ipam/v2/assignment/ipv4/block/{cidr}", value
        yield f"/calico/ipam/v2/host/{name}/ipv4/block/{cidr}", {"state": "confirmed", "deleted": False}
    yield f"{P}ippools/default", resource("IPPool", "default", {"cidr": "10.64.0.0/10", "ipipMode": "Never"})
    yield f"{P}bgpconfigurations/default", resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
    yield f"{P}bgppeers/rack", resource("BGPPeer", "rack", {"peerIP": "172.16.255.1", "asNumber": 64512})


def resource(kind: str, name: str, spec: JsonObject, labels: JsonObject | None = None) -> JsonObject:
    metadata: JsonObject = {
        "name": name, "uid": f"4b6f2c5e-0000-4000-8000-{abs(hash(name)) % 10**12:012}",
        "creationTimestamp": "2026-01-01T00:00:00Z", **({"labels": labels} if labels else {}),
    }  # fmt: skip
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


async def fill(endpoints: tuple[str, ...], pairs: Iterator[tuple[str, JsonObject]]) -> tuple[int, int]:
    """Write all: how many keys, and their octets."""
    client = Client(EtcdConfig(endpoints))
    waiting: list[tuple[str, bytes | None]] = []
    count = octets = 0
    for key, value in pairs:
        data = json.dumps(value, separators=(",", ":")).encode()
        waiting.append((key, data))
        count, octets = count + 1, octets + len(key) + len(data)
        if len(waiting) == BATCH:
            await client.swap([], waiting)
            waiting = []
    await client.swap([], waiting)
    await client.close()
    return count, octets


class Follower:
    """What the daemon has behind the datastore: the core, which plans once in each turn of the loop that brought changes."""

    def __init__(self, node: str) -> None:
        self.core = Core(CoreSettings(node, b"\x0a\x00\x00\x01"), 1)
        self.synced = asyncio.Event()
        self.updates = 0
        self.planned = 0.0
        """Milliseconds of the first plan."""
        self._turn_due = False

    def update(self, update: Update) -> None:
        self.updates += 1
        self.core.resource(update, time.monotonic())
        if self.synced.is_set() and not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def loaded(self) -> None:
        self.core.loaded(time.monotonic())

    def in_sync(self) -> None:
        self.core.in_sync(time.monotonic())
        tell_collector_of_the_cluster()
        began = time.perf_counter()
        self._turn()
        self.planned = (time.perf_counter() - began) * 1000
        self.synced.set()

    def problems(self, problems: tuple[Problem, ...]) -> None:
        for problem in problems:
            sys.stderr.write(f"{problem}\n")

    def _turn(self) -> None:
        self._turn_due = False
        while self.core.flush(time.monotonic()):
            pass
        self.core.effects.clear()


async def follow(
    endpoint: str, nodes: int, blocks: int, pods: int, count: int, folder: str, *, everything: bool
) -> dict[str, float]:
    node = "" if everything else OWN
    config = EtcdConfig((endpoint,))
    saved = SavedState(os.path.join(folder, "saved"), Identity(node, "/calico", (endpoint,)))
    sink = Follower(OWN)
    before = resident()
    store = EtcdStore(config, node=node, saved=saved)
    lag = Lag()
    lagging = asyncio.create_task(lag.run())
    await asyncio.sleep(0.2)
    lag.worst = 0.0
    began, cpu = time.perf_counter(), time.process_time()
    running = asyncio.create_task(store.run(sink))
    await sink.synced.wait()
    results: dict[str, float] = {
        "keys read": sink.updates,
        "connect to in-sync (s)": round(time.perf_counter() - began, 3),
        "processor time of that (s)": round(time.process_time() - cpu, 3),
        "the first plan (ms)": round(sink.planned, 1),
    }
    await asyncio.sleep(0.5 + blocks / 20_000)  # the state is being saved
    results["the loop's longest wait (ms)"] = round(lag.worst * 1000, 1)
    gc.collect()
    results["resident memory (MiB)"] = round(resident() / 1048576, 1)
    results["of it the cluster (MiB)"] = round((resident() - before) / 1048576, 1)
    lagging.cancel()
    results |= await changes(config, store, nodes, blocks, pods, count)
    running.cancel()
    await asyncio.gather(running, lagging, return_exceptions=True)
    await store.close()
    return results


async def changes(
    config: EtcdConfig, store: EtcdStore, nodes: int, blocks: int, pods: int, count: int
) -> dict[str, float]:
    """One after the other, each after etcd's answer to the one before, by another process, as in a cluster."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.datastore", "--write", config.endpoints[0], f"--nodes={nodes}",
        f"--blocks={blocks}", f"--pods={pods}", f"--changes={count}", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdin is not None and writer.stdout is not None
    results: dict[str, float] = {}
    for kind in KINDS_OF_CHANGE:
        cpu, told = time.process_time(), store.health.changes
        writer.stdin.write(f"{kind}\n".encode())
        seconds, revision = (await writer.stdout.readline()).split()
        while store.health.revision < int(revision):
            await asyncio.sleep(0.001)
        if store.health.changes - told != count:
            raise RuntimeError(f"{count} changes of {kind} were made, and {store.health.changes - told} told")
        results |= {
            f"processor time of a change: {kind} (ms)": round((time.process_time() - cpu) / count * 1000, 3),
            f"changes a second: {kind}": round(count / float(seconds)),
        }
    await writer.communicate(b"")  # it has an end
    return results


async def write(endpoint: str, nodes: int, blocks: int, pods: int, count: int) -> None:
    """For each kind of change read: make that many, and say how long it took and the revision of the last."""
    client = Client(EtcdConfig((endpoint,)))
    loop = asyncio.get_running_loop()
    own = int(OWN[5:])
    while kind := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        base = (await client.count(("/calico/", "/calico0"))).revision  # no two runs write the same
        began = time.perf_counter()
        for number in range(count):
            if kind == KINDS_OF_CHANGE[0]:
                other = number * 17 % blocks
                other += other % nodes == own
                _, cidr, value = block(other, nodes, pods, base + number + 1)
                key = f"/calico/ipam/v2/assignment/ipv4/block/{cidr}"
            else:
                _, cidr, _ = block(own, nodes, pods)
                key = f"/calico/ipam/v2/host/{OWN}/ipv4/block/{cidr}"
                value = {"state": "confirmed" if number % 2 else "pending", "deleted": False}
            revision = await client.swap([], [(key, json.dumps(value, separators=(",", ":")).encode())])
        sys.stdout.write(f"{time.perf_counter() - began} {revision}\n")
        sys.stdout.flush()
    await client.close()


class Lag:
    """How late the loop lets go on who asked for a millisecond."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def run(self) -> None:
        while True:
            at = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - at - 0.001)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(
    nodes: int, blocks: int, pods: int, count: int, rounds: int, *, everything: bool = False
) -> list[dict[str, float]]:
    """What each of the processes found that follow one etcd, one after the other."""
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), durable=True) as etcd:
        began = time.perf_counter()
        written, octets = asyncio.run(fill(etcd.endpoints, keys(nodes, blocks, pods)))
        sys.stdout.write(f"{written:,} keys, {octets / 1e6:.1f} MB written in {time.perf_counter() - began:.1f} s\n")
        found: list[dict[str, float]] = []
        for _ in range(rounds):
            words = [f"--nodes={nodes}", f"--blocks={blocks}", f"--pods={pods}", f"--changes={count}"]
            words += ["--everything"] if everything else []
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.datastore", "--follow", etcd.endpoints[0], *words],
                stdout=subprocess.PIPE,
                check=True,
            )
            found.append(json.loads(done.stdout))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.datastore", description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--pods", type=int, default=2, help="addresses given out of each block")
    parser.add_argument("--changes", type=int, default=CHANGES, help="how many of each kind")
    parser.add_argument("--everything", action="store_true", help="follow all affinities, not only one node's")
    parser.add_argument("--rounds", type=int, default=3, help="processes measured, one after the other")
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.nodes, arguments.blocks, arguments.pods, arguments.changes)
    if arguments.write:
        asyncio.run(write(arguments.write, *size))
        return
    if arguments.follow:
        tell_collector()  # as the daemon
        with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(follow(arguments.follow, *size, folder, everything=arguments.everything))
        json.dump(found, sys.stdout)
        return
    rounds = measure(*size, arguments.rounds, everything=arguments.everything)
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        sys.stdout.write(f"{name}: {statistics.median(values):g} ({', '.join(f'{each:g}' for each in values)})\n")


if __name__ == "__main__":
    main()
