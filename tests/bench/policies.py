"""How fast policy is at scale: 10,000 pods, 100 of them here, 1,000 policies of Kubernetes in 50 namespaces.

    nice python -m tests.bench.policies

Time is processor time, so that what else the machine does counts little. Without `--kernel` the engine alone is measured,
and no privileges are needed; with it (as root) the whole program is also written into a network namespace of its own.
With `--daemon etcd` (as root) the real daemon reads it all from a real etcd, as Calico's plugin and controllers write it,
and with `--daemon file` from three files, Kubernetes' own NetworkPolicies and Namespaces among them. It is measured from its
start: until the node's pods are in its table, and some seconds later.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import routed
from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_kernel import FirewallKernel
from routed.desired_policy import PolicyBatch
from routed.model.paths import Layout, encode
from routed.model.resources import JsonObject, Resource, Update
from routed.model.schema import parse_manifest
from routed.netlink.nftables import Batch
from routed.policy.engine import PolicyEngine
from routed.policy.kubernetes import Kubernetes
from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Routed
from tests.bench.datastore import fill
from tests.lab.etcd import Etcd
from tests.policy.nodes import policy, profile, workload
from tests.policy.specification import Endpoint

PODS, HERE, POLICIES, NAMESPACES, LARGE = 10_000, 100, 1_000, 50, 1_000
#: Seconds after which the daemon is looked at again.
SETTLED = 5.0


def pod(number: int, rng: random.Random, *, heavy: bool = False) -> Resource:
    # a tenth of all pods are in the first namespace
    namespace = "ns0" if number % 10 == 0 else f"ns{1 + number % (NAMESPACES - 1)}"
    return workload(
        Endpoint(
            "pod",
            f"p{number}",
            namespace,
            {"app": f"app{rng.randrange(20)}", "tier": rng.choice(("front", "back"))},
            "n1" if number < HERE else f"n{2 + number % 99}",
            (
                f"10.{64 + number // 65536}.{number // 256 % 256}.{number % 256}",
                *([f"fd00::{number:x}"] if heavy else ()),
            ),
            (("http", "TCP", 8080), ("dns", "UDP", 53)) if heavy else (),
        )
    )


def heavy_rule(rng: random.Random) -> dict[str, Any]:
    """With named ports, peers of other namespaces, and blocks with holes."""
    block = f"10.{rng.randrange(64)}"
    app = {"matchLabels": {"app": f"app{rng.randrange(20)}"}}
    peers = rng.choice(
        (
            [{"podSelector": app, "namespaceSelector": {"matchLabels": {"team": f"team{rng.randrange(10)}"}}}],
            [{"namespaceSelector": {"matchLabels": {"team": f"team{rng.randrange(10)}"}}}, {"podSelector": app}],
            [{"ipBlock": {"cidr": f"{block}.0.0/16", "except": [f"{block}.0.0/24"]}}],
        )
    )
    return {
        "from": peers,
        "ports": [{"port": rng.choice(("http", 443)), "protocol": "TCP"}, {"port": "dns", "protocol": "UDP"}],
    }


def rule(rng: random.Random) -> dict[str, Any]:
    peers = rng.choice(
        (
            [{"podSelector": {"matchLabels": {"app": f"app{rng.randrange(20)}"}}}],
            [{"namespaceSelector": {"matchLabels": {"team": f"team{rng.randrange(10)}"}}}],
            [{"ipBlock": {"cidr": f"192.0.{rng.randrange(250)}.0/24"}}],
        )
    )
    return {"from": peers, "ports": [{"port": rng.choice((80, 443, 8080)), "protocol": "TCP"}]}


def kubernetes_policy(number: int, rng: random.Random, *, heavy: bool = False) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"policy{number}", "namespace": f"ns{number % NAMESPACES}"},
        "spec": {
            "podSelector": {"matchLabels": {"app": f"app{rng.randrange(20)}"}},
            "ingress": [(heavy_rule if heavy else rule)(rng) for _ in range(3)],
        },
    }


def world(rng: random.Random, policies: int) -> list[Resource]:
    made: list[Resource] = [profile(f"ns{number}", {"team": f"team{number % 10}"}) for number in range(NAMESPACES)]
    made += [pod(number, rng) for number in range(PODS)]
    made += [policy(kubernetes_policy(number, rng)) for number in range(policies)]
    return made


class Bench:
    def __init__(self) -> None:
        self.results: dict[str, float] = {}

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        gc.collect()
        started = time.process_time()
        answer = work()
        self.results[name] = round((time.process_time() - started) * 1000, 2)
        return answer


def _octets(batch: Batch) -> bytes:
    return b"".join(each.encode() for each in batch.changes)


def run(*, kernel: bool) -> dict[str, float]:
    rng = random.Random(1)
    bench = Bench()
    resources = world(rng, POLICIES)
    gc.collect()
    memory_before = resident()
    engine, kubernetes, firewall = PolicyEngine("n1"), Kubernetes(), Firewall()

    def tell(value: Resource) -> PolicyBatch | None:
        for update in kubernetes.update(Update(value.key, value)):
            engine.update(update)
        return engine.flush()

    def start() -> PolicyBatch:
        for value in resources:
            for update in kubernetes.update(Update(value.key, value)):
                engine.update(update)
        batch = engine.flush()
        assert batch is not None
        return batch

    first = bench.timed("start: engine (ms)", start)
    bench.timed("start: program (ms)", lambda: (firewall.take_in(first), _octets(firewall.rebuild())))
    bench.results["memory (MiB)"] = round((resident() - memory_before) / 1048576, 1)
    bench.results["sets"] = len(first.sets)
    bench.results["chains"] = len(first.chains)

    added = pod(PODS + 1, rng)
    change = bench.timed("a pod added elsewhere (ms)", lambda: tell(added))
    if change is not None:
        bench.timed("a pod added elsewhere: batch (ms)", lambda: _octets(firewall.change(change)))
    relabelled = profile("ns0", {"team": "team5"})
    change = bench.timed(f"a label of a namespace of {LARGE} pods (ms)", lambda: tell(relabelled))
    if change is not None:
        bench.timed(f"a label of a namespace of {LARGE} pods: batch (ms)", lambda: _octets(firewall.change(change)))
    if kernel:
        bench.results |= asyncio.run(in_kernel(first))
    return bench.results


async def in_kernel(first: PolicyBatch) -> dict[str, float]:
    with Lab() as lab:
        made = FirewallKernel(Firewall(), sys.stderr.write)
        with lab.namespace("node").entered():
            made.start()
        started = time.process_time()  # the kernel makes rules in the thread that asks for them
        made.apply(first)
        await made.settled()
        took = time.process_time() - started
        made.close()
        return {"start: in the kernel (ms)": round(took * 1000, 2)}


def of_daemon(pods: int, policies: int, *, etcd: bool, heavy: bool = False) -> dict[str, float]:
    """The real daemon, from its start on."""
    with Lab() as lab:
        node = lab.namespace("node", forward=True)
        daemon = Routed(node, "n1", cni={"enabled": True, "socket": str(node.folder / "cni.sock")}, log=None)
        if etcd:
            store = Etcd(node, durable=True)
            store.start()
            daemon.configure(datastore={"type": "etcd", "endpoints": [store.url]})
            words = ("--fill", store.url, f"--pods={pods}", f"--policies={policies}", *(["--heavy"] if heavy else ()))
            node.run(sys.executable, "-m", "tests.bench.policies", *words)
        else:
            for name, manifests in in_files(pods, policies, heavy=heavy).items():
                text = "".join(f"---\n{json.dumps(manifest)}\n" for manifest in manifests)
                (daemon.resources / f"{name}.yaml").write_text(text)
        # as it is where it is installed
        subprocess.run([sys.executable, "-m", "compileall", "-q", *routed.__path__], check=True)
        started = time.monotonic()
        daemon.launch()
        pid = daemon.pid

        def complete() -> bool:
            found = node.run("nft", "list", "map", "inet", "routed", "by_to_workload", check=False)
            return found.count("goto") == min(pods, HERE)

        wait_for(complete, 120, "the node's pods are in the table")
        results = {
            "daemon: table complete, on the clock (s)": round(time.monotonic() - started, 1),
            "daemon: table complete, processor time (s)": processor_time(pid),
            "daemon: resident then (MiB)": round(resident(pid) / 1048576, 1),
        }
        time.sleep(SETTLED)
        results["daemon: processor time after 5 s more (s)"] = processor_time(pid)
        results["daemon: resident after 5 s more (MiB)"] = round(resident(pid) / 1048576, 1)
        busy = re.findall(r"busy or stopped for ([0-9.]+) s", daemon.log())
        results["daemon: longest wait of the loop it complains of (s)"] = max(map(float, busy), default=0.0)
        daemon.stop()
    return results


def in_files(pods: int, policies: int, *, heavy: bool = False) -> dict[str, list[JsonObject]]:
    """The cluster as people apply it: manifests by the name of their file."""
    rng = random.Random(1)
    namespaces: list[JsonObject] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns{n}", "labels": {"team": f"team{n % 10}"}}}
        for n in range(NAMESPACES)
    ]
    return {
        "namespaces": namespaces,
        "endpoints": [pod(number, rng, heavy=heavy).manifest for number in range(pods)],
        "policies": [kubernetes_policy(number, rng, heavy=heavy) for number in range(policies)],
    }


def in_etcd(pods: int, policies: int, *, heavy: bool = False) -> Iterator[tuple[str, JsonObject]]:
    """The cluster as Calico's plugin and controllers write it: paths and values."""
    layout, kubernetes = Layout(), Kubernetes()
    for manifests in in_files(pods, policies, heavy=heavy).values():
        for manifest in manifests:
            read = parse_manifest(manifest)
            for update in kubernetes.update(Update(read.key, read)):
                assert update.value is not None
                path = layout.path(update.value, old_policy_names=True)
                yield path, json.loads(encode(update.value, path))


def processor_time(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 2)


def resident(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policies", description=__doc__)
    parser.add_argument("--kernel", action="store_true", help="also write the program into a kernel, as root")
    parser.add_argument(
        "--daemon", choices=("etcd", "file"), help="measure the real daemon with this datastore, as root"
    )
    parser.add_argument("--pods", type=int, default=PODS, help="of the cluster, for the daemon")
    parser.add_argument("--policies", type=int, default=POLICIES, help="of the cluster, for the daemon")
    parser.add_argument(
        "--heavy", action="store_true", help="two families, named ports, peers of other namespaces, blocks with holes"
    )
    parser.add_argument("--fill", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        asyncio.run(fill((arguments.fill,), in_etcd(arguments.pods, arguments.policies, heavy=arguments.heavy)))
        return
    if arguments.daemon:
        found = of_daemon(arguments.pods, arguments.policies, etcd=arguments.daemon == "etcd", heavy=arguments.heavy)
    else:
        found = run(kernel=arguments.kernel)
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
