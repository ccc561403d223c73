"""Lost addresses on a folder of files, where a node takes back its own, and with a Kubernetes API that knows better."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from routed.core.effects import Level
from routed.daemon.address_collector import FOLLOWED, AddressCollector
from routed.datastore.allocating import carry_out, clock, cluster_of
from routed.datastore.editing import FolderStore
from routed.ipam.allocator import Demand, assign_addresses
from routed.ipam.blocks import Owner
from routed.model.ipam import IPAMHandle
from routed.model.resources import JsonObject, Resource, ResourceKey, Update
from routed.net.addresses import format_address
from routed.net.families import Family

API = "projectcalico.org/v3"


class Here:
    """A folder, what is known of it, and what was logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(str(folder))
        self.known: dict[ResourceKey, Resource] = {}
        self.lines: list[str] = []
        self.pods: dict[str, JsonObject] = {}
        self.asked = 0
        self.put("Node", "n1", {"bgp": {"ipv4Address": "10.0.0.1/24"}})
        self.put("IPPool", "v4", {"cidr": "10.65.0.0/24"})

    def put(self, kind: str, name: str, spec: JsonObject) -> None:
        manifest = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
        (self.folder / f"{kind}-{name}.yaml").write_text(yaml.safe_dump(manifest))

    async def read(self) -> None:
        contents = await self.store.read()
        assert not contents.problems
        self.known = {key: stored.resource for key, stored in contents.resources.items()}

    async def give(self, node: str, pod: str) -> str:
        """An address that no endpoint has."""
        await self.read()
        secondary = {"node": node, "namespace": "default", "pod": pod}
        demand = Demand(node, {}, Owner(f"net.{pod}", secondary), Family.IPV4_UNICAST)
        outcome = await carry_out(self.store, assign_addresses(cluster_of(self.known.values()), demand, clock()))
        return format_address(outcome.addresses[0])

    def handles(self) -> set[str]:
        return {key.name for key in self.known if key.kind == IPAMHandle.kind}

    async def during(self, until: Callable[[AddressCollector], object], grace: float | None = 0.1) -> AddressCollector:
        """Let a collector work until something holds."""
        await self.read()
        self.asked = 0

        def known(kinds: Iterable[str]) -> list[Resource]:
            wanted = set(kinds)
            assert wanted <= FOLLOWED
            self.asked += 1
            return [one for key, one in self.known.items() if key.kind in wanted]

        def publish(update: Update) -> None:
            if update.value is None:
                self.known.pop(update.key, None)
            else:
                self.known[update.key] = update.value

        async def pod(namespace: str, name: str) -> JsonObject | None:
            return self.pods.get(f"{namespace}/{name}")

        def log(_level: Level, _subject: str, text: str) -> None:
            self.lines.append(text)

        def bug(what: str, error: Exception) -> None:
            raise AssertionError(what) from error

        made = AddressCollector("n1", self.store, known, lambda: True, publish, log, bug, pod, grace)
        made.start()
        async with asyncio.timeout(60):
            while not until(made):
                await asyncio.sleep(0.01)
        await made.stop()
        return made


def test_a_node_alone_takes_back_its_own(tmp_path: Path):
    async def work() -> None:
        here = Here(tmp_path)
        own, foreign = await here.give("n1", "a"), await here.give("n2", "b")
        made = await here.during(lambda _: here.handles() == {"net.b"})
        assert made.released["address"] == 1 and made.state[0] is False  # it has stopped
        assert here.lines == [
            f"{own} is given out to pod default/a on node n1, and no endpoint or tunnel has it: taken back"
        ]
        assert foreign != own

    asyncio.run(work())


def test_what_kubernetes_has_a_pod_with_is_kept_and_told(tmp_path: Path):
    async def work() -> None:
        here = Here(tmp_path)
        own = await here.give("n1", "a")
        here.pods["default/a"] = {"status": {"phase": "Running", "podIPs": [{"ip": own}]}}
        made = await here.during(lambda made: made.problems)
        assert made.problems == (f"{own} is that of pod default/a in Kubernetes, and no WorkloadEndpoint has it",)
        assert here.handles() == {"net.a"}
        here.pods["default/a"] = {"status": {"phase": "Succeeded", "podIPs": [{"ip": own}]}}
        await here.during(lambda _: not here.handles())

    asyncio.run(work())


def test_nothing_is_taken_back_where_it_is_off_or_locked_or_unreadable(tmp_path: Path):
    async def work() -> None:
        here = Here(tmp_path)
        await here.give("n1", "a")
        here.put("KubeControllersConfiguration", "default", {"controllers": {"node": {"leakGracePeriod": "0s"}}})
        await here.during(lambda _: here.asked >= 2, grace=None)  # one turn, and then it rests
        here.put("KubeControllersConfiguration", "default", {"controllers": {"node": {"leakGracePeriod": "100ms"}}})
        here.put("ClusterInformation", "default", {"datastoreReady": False})
        await here.during(lambda _: here.asked >= 6, grace=None)  # three turns
        here.put("ClusterInformation", "default", {"datastoreReady": True})
        await here.read()
        (here.folder / "broken.yaml").write_text("kind: [")
        known, here.read = dict(here.known), _nothing  # type: ignore[method-assign]
        here.known = known
        made = await here.during(lambda made: made.problems, grace=None)
        assert "while a part of the datastore cannot be read" in made.problems[0]
        assert here.handles() == {"net.a"}
        (here.folder / "broken.yaml").unlink()
        await here.during(lambda _: not here.handles(), grace=None)

    asyncio.run(work())


async def _nothing() -> None:
    """What is known stays as it is."""
