"""The etcd datastore against real etcd servers."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path

import pytest

from routed.cli.main import main
from routed.datastore import etcd as etcd_module
from routed.datastore.allocating import carry_out, clock
from routed.datastore.applying import delete
from routed.datastore.etcd import FOLLOWED, EtcdStore
from routed.datastore.etcd_client import Client
from routed.datastore.etcd_settings import EtcdConfig
from routed.datastore.folder import Problem
from routed.datastore.guard import MassDelete
from routed.datastore.saved import Identity, SavedState
from routed.datastore.store import Conflict, Edit
from routed.errors import Denied
from routed.ipam.allocator import Cluster as Allocator
from routed.ipam.allocator import Demand, assign_addresses
from routed.ipam.blocks import Owner
from routed.model.policies import NetworkPolicy
from routed.model.resources import IPPool, JsonObject, Resource, ResourceKey, Update
from routed.model.schema import KINDS, parse_manifest
from routed.model.settings import ClusterInformation
from routed.net.families import Family
from tests.datastore.etcd_server import PASSWORD, Cluster, Member, P, Proxy, cluster

pytestmark = pytest.mark.etcd


def node(number: int, **labels: str) -> JsonObject:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": f"n{number}", "labels": dict(labels), "creationTimestamp": None},
        "spec": {"bgp": {"ipv4Address": f"10.{number >> 8}.{number & 255}.1/24", "newerField": 1}},
    }


def peer(number: int) -> JsonObject:
    spec: JsonObject = {"peerIP": f"10.0.0.{number}", "asNumber": 65001}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BGPPeer",
        "metadata": {"name": f"p{number}"},
        "spec": spec,
    }


def nodes(count: int) -> dict[str, object]:
    return {f"{P}nodes/n{number}": node(number) for number in range(count)}


def pod(on: str) -> tuple[str, JsonObject]:
    name = f"{on}-k8s-web-eth0"
    spec: JsonObject = {
        "orchestrator": "k8s", "node": on, "pod": "web", "endpoint": "eth0", "ipNetworks": ["10.244.1.5/32"],
    }  # fmt: skip
    metadata: JsonObject = {"name": name, "namespace": "shop"}
    return f"{P}workloadendpoints/shop/{name}", node(1) | {
        "kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec,
    }  # fmt: skip


def profile(name: str) -> JsonObject:
    return node(1) | {"kind": "Profile", "metadata": {"name": name}, "spec": {}}


AFFINITY = "/calico/ipam/v2/host/n1/ipv4/block/10.244.1.0-26"


class Sink:
    def __init__(self) -> None:
        self.resources: dict[ResourceKey, Resource] = {}
        self.removed: list[ResourceKey] = []
        self.events: list[str] = []
        self.open: tuple[Problem, ...] = ()

    def update(self, update: Update) -> None:
        if update.value is None:
            self.removed.append(update.key)
            del self.resources[update.key]
        else:
            assert self.resources.get(update.key) != update.value, "an update must be a change"
            self.resources[update.key] = update.value

    def loaded(self) -> None:
        self.events.append("loaded")

    def in_sync(self) -> None:
        self.events.append("in sync")

    def problems(self, problems: tuple[Problem, ...]) -> None:
        self.open = problems

    def says(self, *words: str) -> bool:
        return any(all(word in str(problem) for word in words) for problem in self.open)

    def names(self, kind: str = "Node") -> set[str]:
        return {key.name for key in self.resources if key.kind == kind}


async def until(condition: Callable[[], object], what: str, deadline: float = 30.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        assert loop.time() < end, f"waited {deadline} s for: {what}"
        await asyncio.sleep(0.01)


def follow(store: EtcdStore, test: Callable[[EtcdStore, Sink], Awaitable[None]], wait: str = "in sync") -> Sink:
    """Run a store and a test of it."""
    sink = Sink()

    async def main() -> None:
        running = asyncio.create_task(store.run(sink))
        try:
            if wait:
                await until(lambda: wait in sink.events or running.done(), wait)
            if running.done():
                running.result()
            await test(store, sink)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await store.close()

    asyncio.run(main())
    return sink


async def ctl(call: Callable[..., object], *arguments: object) -> None:
    await asyncio.to_thread(call, *arguments)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@pytest.fixture
def server(shared: Cluster) -> Cluster:
    """A running etcd with nothing in it."""
    shared.delete("--prefix", "")
    return shared


def store_of(server: Cluster, *, saved: SavedState | None = None, rules: MassDelete | None = None) -> EtcdStore:
    return EtcdStore(EtcdConfig(server.endpoints), node="n1", saved=saved, rules=rules)


def saved_in(folder: Path, server: Cluster) -> SavedState:
    return SavedState(str(folder / "datastore.saved"), Identity("n1", "/calico", server.endpoints))


def test_a_snapshot_and_then_changes(server: Cluster) -> None:
    server.put_all(nodes(30) | {AFFINITY: "", "/calico/ipam/v2/host/n2/ipv4/block/10.244.2.0-26": "{}"})
    server.put("/calico/ipam/v2/handle/x", {"block": {}})

    async def test(store: EtcdStore, sink: Sink) -> None:
        assert sink.names() == {f"n{number}" for number in range(30)}
        assert len(sink.names("BlockAffinity")) == 1, "only our own affinities"
        assert not sink.names("IPAMHandle")
        await ctl(server.put, f"{P}nodes/n99", node(99))
        await until(lambda: "n99" in sink.names(), "a new node")
        await ctl(server.put, f"{P}nodes/n99", node(99, rack="b"))
        await until(lambda: sink.resources[ResourceKey("Node", "n99")].labels == {"rack": "b"}, "a changed node")
        await ctl(server.delete, f"{P}nodes/n99")
        await until(lambda: "n99" not in sink.names(), "a deleted node")
        assert store.health.connected and store.health.revision > 1 and store.health.changes == 3
        assert sink.says("newerField", "no field"), "unknown fields are kept and told"

    follow(store_of(server), test)


def test_fields_that_nobody_knows_are_told_while_they_are_there(server: Cluster) -> None:
    server.put_all(nodes(3))

    def plain(number: int) -> JsonObject:
        return node(number) | {"spec": {"bgp": {"ipv4Address": f"10.0.{number}.1/24"}}}

    async def test(_: EtcdStore, sink: Sink) -> None:
        assert sink.says("/n0", "newerField", "here and in 2 more")
        await ctl(server.put, f"{P}nodes/n0", plain(0))
        await until(lambda: sink.says("/n1", "newerField", "here and in 1 more"), "one less")
        await ctl(server.delete, f"{P}nodes/n1")
        await until(lambda: sink.says("/n2", "newerField") and not sink.says("newerField", "more"), "one more less")
        await ctl(server.put, f"{P}nodes/n2", plain(2))
        await until(lambda: not sink.says("newerField"), "nothing is left to tell")

    follow(store_of(server), test)


def test_pages_are_one_snapshot(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routed.datastore.etcd_client.PAGE", 7)
    server.put_all(nodes(50))

    async def test(_: EtcdStore, sink: Sink) -> None:
        assert len(sink.names()) == 50

    follow(store_of(server), test)


def test_writing_is_a_compare_and_swap_and_keeps_what_it_does_not_know(server: Cluster) -> None:
    server.put(f"{P}nodes/n1", node(1))

    async def main() -> None:
        store = store_of(server)
        found = (await store.read(["Node"])).resources[ResourceKey("Node", "n1")]
        changed = parse_manifest(found.resource.manifest | {"metadata": {"name": "n1", "labels": {"a": "b"}}}, "", [])
        key = changed.key
        revision = await store.write(key, changed, found.revision)
        assert '"newerField":1' in server.ctl("get", f"{P}nodes/n1")
        with pytest.raises(Conflict):
            await store.write(key, changed, found.revision)
        with pytest.raises(Conflict):
            await store.write(key, changed, None)
        assert await store.write(key, None, revision) == ""
        assert await store.write(key, changed, None)
        await store.close()

    asyncio.run(main())


def test_what_must_not_be_there_is_a_condition_of_what_is_written(server: Cluster) -> None:
    """A pod's endpoint is written on condition that nobody has stored a Pod that says more of it."""

    async def main() -> None:
        store = store_of(server)
        pod = parse_manifest(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}}}
        )
        one, other = (parse_manifest(peer(number)) for number in (1, 2))
        assert await store.write_all([Edit(pod.key, None, None), Edit(one.key, one, None)])
        assert await store.get(one.key)
        assert await store.get(pod.key) is None
        await store.write(pod.key, pod, None)
        with pytest.raises(Conflict):
            await store.write_all([Edit(pod.key, None, None), Edit(other.key, other, None)])
        assert await store.get(other.key) is None
        await store.close()

    asyncio.run(main())


def test_pods_are_followed_once_a_bgppeer_is_for_them_and_only_this_node_s(server: Cluster, tmp_path: Path) -> None:
    empty: JsonObject = {
        "cidr": "10.244.1.0/26", "affinity": "host:n1", "strictAffinity": False, "deleted": False,
        "allocations": [None] * 64, "unallocated": list(range(64)), "attributes": [],
    }  # fmt: skip
    for path, value in map(pod, ("n1", "n2")):
        server.put(path, value)
    server.put(f"{P}nodes/n1", node(1))
    saved = SavedState(str(tmp_path / "saved"), Identity("n1", "/calico", server.endpoints))

    async def main(store: EtcdStore, sink: Sink) -> None:
        assert sink.names("WorkloadEndpoint") == set()
        spec: JsonObject = {"asNumber": 64512, "localWorkloadSelector": "all()"}
        peer = node(1) | {"kind": "BGPPeer", "metadata": {"name": "pods"}, "spec": spec}
        await ctl(server.put, f"{P}bgppeers/pods", peer)
        await until(lambda: sink.names("BGPPeer") == {"pods"}, "the peer")
        await until(lambda: sink.names("WorkloadEndpoint") == {"n1-k8s-web-eth0"}, "the pod of this node")
        assert all(key.name != "n2-k8s-web-eth0" for key in store.guard.good)
        await ctl(server.delete, pod("n1")[0])
        await until(lambda: store.health.held == 1, "the last pod may be an accident")
        assert sink.names("WorkloadEndpoint") == {"n1-k8s-web-eth0"}
        await ctl(server.put, "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-26", empty)
        await until(lambda: not sink.names("WorkloadEndpoint"), "and is none once its address was given back")

    async def again(_: EtcdStore, sink: Sink) -> None:
        assert sink.names("BGPPeer") == {"pods"}
        await ctl(server.put, *pod("n1"))
        await until(lambda: "n1-k8s-web-eth0" in sink.names("WorkloadEndpoint"), "after a restart too")

    follow(EtcdStore(EtcdConfig(server.endpoints), node="n1", saved=saved), main)
    follow(EtcdStore(EtcdConfig(server.endpoints), node="n1", saved=saved), again)


def test_services_are_followed_for_their_routes(server: Cluster) -> None:
    metadata: JsonObject = {"name": "web", "namespace": "shop"}
    service: JsonObject = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": "10.96.0.1"},
    }
    endpoints: JsonObject = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "endpoints": [],
    }  # fmt: skip
    server.put(f"{P}kubernetesservices/shop/web", service)

    async def main(_: EtcdStore, sink: Sink) -> None:
        assert sink.names("Service") == {"web"}
        await ctl(server.put, f"{P}kubernetesendpointslices/shop/web", endpoints)
        await until(lambda: sink.names("EndpointSlice") == {"web"}, "its endpoints")

    follow(EtcdStore(EtcdConfig(server.endpoints), node="n1"), main)


def policy(stored: str, selector: str = "all()", named: str = "") -> JsonObject:
    metadata: JsonObject = {"name": stored, "namespace": "shop"}
    if named:
        metadata["annotations"] = {"projectcalico.org/metadata": f'{{"name":"{named}"}}'}
    return {
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": metadata,
        "spec": {"selector": selector, "types": ["Ingress"]},
    }  # fmt: skip


POLICY = ResourceKey("NetworkPolicy", "db", "shop")


@pytest.mark.parametrize(
    ("version", "name"), [("v3.31.0", "default.db"), ("v3.32.1", "db"), ("", "default.db"), (None, "db")]
)
def test_a_new_policy_has_the_name_the_cluster_s_calico_looks_for(
    server: Cluster, version: str | None, name: str
) -> None:
    if version is not None:
        spec = {"calicoVersion": version, "datastoreReady": True}
        server.put(
            f"{P}clusterinformations/default",
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "ClusterInformation",
                "metadata": {"name": "default"},
                "spec": spec,
            },
        )

    async def main() -> None:
        store = EtcdStore(EtcdConfig(server.endpoints))
        try:
            await store.write(POLICY, parse_manifest(policy("db")), None)
            kept = await store.get(POLICY)
            assert kept is not None and kept.where == f"{P}networkpolicies/shop/{name}"
            assert (await store.read({"NetworkPolicy"})).resources.keys() == {POLICY}
        finally:
            await store.close()

    asyncio.run(main())
    assert (
        json.loads(server.ctl("get", f"{P}networkpolicies/shop/{name}", "--print-value-only"))["metadata"]["name"]
        == name
    )


@pytest.mark.parametrize(("stored", "named"), [("db", ""), ("default.db", ""), ("default.db-1x", "db")])
def test_a_policy_is_found_and_written_back_under_whichever_name(server: Cluster, stored: str, named: str) -> None:
    server.put(f"{P}networkpolicies/shop/{stored}", policy(stored, named=named))

    async def main() -> None:
        store = EtcdStore(EtcdConfig(server.endpoints))
        try:
            found = await store.get(POLICY)
            assert found is not None and found.resource.key == POLICY
            changed = parse_manifest(found.resource.manifest | {"spec": {"selector": "has(a)", "types": ["Ingress"]}})
            await store.write(POLICY, changed, found.revision)
            contents = await store.read({"NetworkPolicy"})
            assert contents.problems == ()
            assert contents.resources.keys() == {POLICY}
        finally:
            await store.close()

    asyncio.run(main())
    kept = json.loads(server.ctl("get", f"{P}networkpolicies/shop/{stored}", "--print-value-only"))
    assert kept == policy(stored, "has(a)", named)


@pytest.mark.parametrize("version", ["v3.31.0", "v3.32.1"])
def test_a_policy_of_a_tier_is_changed_and_deleted_by_the_name_it_was_applied_with(
    server: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    """A Calico before v3.32 puts the tier before the name; there the same name in another tier is another policy."""
    spec: JsonObject = {"calicoVersion": version, "datastoreReady": True}
    head: JsonObject = {"apiVersion": "projectcalico.org/v3"}
    server.put(
        f"{P}clusterinformations/default",
        head | {"kind": "ClusterInformation", "metadata": {"name": "default"}, "spec": spec},
    )
    server.put(f"{P}tiers/t0", head | {"kind": "Tier", "metadata": {"name": "t0"}, "spec": {"order": 1}})
    config = tmp_path / "routed.yaml"
    config.write_text(json.dumps({"datastore": {"type": "etcd", "endpoints": list(server.endpoints)}}))
    file = tmp_path / "policy.yaml"
    said: list[str] = []

    def ctl_says(command: str, name: str, tier: str, order: int = 1) -> str:
        spec: JsonObject = {"tier": tier, "order": order, "selector": "all()"}
        metadata: JsonObject = {"name": name, "namespace": "x"}
        file.write_text(json.dumps(head | {"kind": "NetworkPolicy", "metadata": metadata, "spec": spec}))
        main(["--config", str(config), command, "-f", str(file)])
        done = capsys.readouterr()
        said.append(done.err)
        return done.out.strip().rpartition(": ")[2] or done.err

    def names() -> list[str]:
        found = server.ctl("get", "--prefix", "--keys-only", f"{P}networkpolicies/x/").split()
        return [path.rpartition("/")[2] for path in found]

    old = version == "v3.31.0"
    assert ctl_says("apply", "cp", "t0") == "created" and names() == (["t0.cp"] if old else ["cp"])
    assert ctl_says("apply", "cp", "t0") == "unchanged"
    assert ctl_says("apply", "cp", "t0", 2) == "configured"
    if old:
        assert ctl_says("apply", "t0.cp", "t0", 3) == "configured" and names() == ["t0.cp"]
        ctl_says("apply", "cp", "default")
        assert names() == ["default.cp", "t0.cp"] and "x/t0.cp is another policy, and stays" in said[-1]
        ctl_says("delete", "cp", "default")
        assert names() == ["t0.cp"]
    else:
        assert ctl_says("apply", "cp", "default") == "configured" and names() == ["cp"]
        assert ctl_says("apply", "cp", "t0") == "configured"
    assert ctl_says("delete", "cp", "t0") == "deleted" and names() == []
    assert ctl_says("apply", "default.db", "default") == "created"
    assert ctl_says("apply", "default.db", "default", 2) == "configured"
    assert ctl_says("apply", "db", "default", 2) == "unchanged" and len(names()) == 1
    assert ctl_says("delete", "default.db", "default") == "deleted" and names() == []


def test_a_policy_under_two_names_is_told_and_what_was_written_last_counts(server: Cluster) -> None:
    old, new = f"{P}networkpolicies/shop/default.db", f"{P}networkpolicies/shop/db"
    server.put(old, policy("default.db", "has(old)"))
    server.put(new, policy("db", "has(new)"))
    told = "is stored under two names"

    async def main(store: EtcdStore, sink: Sink) -> None:
        def selects(text: str) -> bool:
            found = sink.resources.get(POLICY)
            return isinstance(found, NetworkPolicy) and str(found.selector) == text

        assert selects("has(new)")
        assert sink.says(told, old, new)
        contents = await store.read({"NetworkPolicy"})
        assert [told in text for text in contents.problems] == [True]
        assert contents.resources[POLICY].where == new
        await ctl(server.put, old, policy("default.db", "has(newer)"))
        await until(lambda: selects("has(newer)"), "the other one is written")
        kept = await store.get(POLICY)
        assert kept is not None and kept.where == old
        await ctl(server.delete, old)
        await until(lambda: selects("has(new)"), "the one that is left counts")
        await until(lambda: not sink.says(told), "it is put right")
        await ctl(server.put, old, policy("default.db", "has(third)"))
        await until(lambda: sink.says(told), "two again")

    follow(EtcdStore(EtcdConfig(server.endpoints), kinds=("NetworkPolicy",)), main)


def test_a_lease_takes_its_keys_with_it(server: Cluster) -> None:
    async def main() -> None:
        store = store_of(server)
        ttl = 5.0  # whoever stands still meanwhile, none is over before all is written
        assert await store.client.swap([], [("/calico/felix/v2/status", b"{}")], ttl=ttl)
        assert await store.client.get("/calico/felix/v2/status") is not None
        short, long = parse_manifest(node(1), "", []), parse_manifest(node(2), "", [])
        first = await store.write(short.key, short, None, ttl=ttl)
        second = await store.write(long.key, long, None, ttl=ttl)
        await store.write(long.key, long, second)  # written anew, without one
        with pytest.raises(Conflict):
            await store.write(short.key, short, second, ttl=60.0)
        for path in ("/calico/felix/v2/status", first.partition(" ")[2]):
            await until(lambda path=path: not server.ctl("get", path), "the lease is over")  # type: ignore[misc]
        # what was refused leaves none behind
        await until(lambda: int(server.ctl("lease", "list").split()[1]) == 0, "there is no lease any more")
        assert await store.get(long.key) is not None
        await store.close()

    asyncio.run(main())


def test_compaction_lists_anew_and_only_what_changed_is_told(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    server.put_all(nodes(20))

    async def test(store: EtcdStore, sink: Sink) -> None:
        before = dict(sink.resources)
        proxy.silent = True  # the watch hears nothing more, and its next attempt is after the compaction
        await ctl(server.put, f"{P}nodes/n3", node(3, rack="b"))
        await ctl(server.delete, f"{P}nodes/n4")
        await ctl(server.compact)
        proxy.silent = False
        await store.client._drop(store.client._member)
        await until(lambda: store.health.readings > 1, "a second listing")
        await until(lambda: "n4" not in sink.names(), "the deletion that was missed")
        assert sink.resources[ResourceKey("Node", "n3")].labels == {"rack": "b"}
        assert sink.removed == [ResourceKey("Node", "n4")]
        same = [key for key in sink.resources if sink.resources[key] is before[key]]
        assert len(same) == 18

    proxy = Proxy(server.members[0].port)
    follow(EtcdStore(EtcdConfig((proxy.endpoint,)), node="n1"), test)
    proxy.close()


def test_garbage_keeps_the_last_good_value_and_names_the_key(server: Cluster, tmp_path: Path) -> None:
    server.put_all(nodes(5))
    path = f"{P}nodes/n2"

    async def spoil(_: EtcdStore, sink: Sink) -> None:
        await ctl(server.put, path, '{"kind": "Node", "spec')
        await until(lambda: sink.says(path, "not JSON", "last good value stays"), "an alarm")
        assert "n2" in sink.names()

    async def again(_: EtcdStore, sink: Sink) -> None:
        assert "n2" not in sink.names(), "without a saved state there is no last good value"
        assert sink.says(path)

    async def restarted(_: EtcdStore, sink: Sink) -> None:
        assert sink.says(path, "last good value stays")
        assert "n2" in sink.names() and not sink.removed
        await ctl(server.put, path, node(2, rack="c"))
        await until(lambda: not sink.says(path, "not JSON"), "the alarm is over")
        assert sink.resources[ResourceKey("Node", "n2")].labels == {"rack": "c"}

    saved = saved_in(tmp_path, server)
    follow(store_of(server, saved=saved), spoil)
    follow(store_of(server), again)
    follow(store_of(server, saved=saved_in(tmp_path, server)), restarted)


@pytest.mark.parametrize("depth", [300, 3000, 100_000])
def test_garbage_of_any_depth_is_an_alarm_for_its_key_and_nothing_else(server: Cluster, depth: int) -> None:
    """What reads it must not end in a RecursionError, nor lose what came with it."""
    paths = [
        f"{P}{name}" for name in ("nodes/n2", "bgpfilters/x", "clusterinformations/default", "networkpolicies/x/y")
    ]
    deep = dict.fromkeys(paths, "[" * depth + "]" * depth)

    async def spoil(_: EtcdStore, sink: Sink) -> None:
        await ctl(server.put_all, {**deep, f"{P}nodes/n4": node(4)})
        await until(lambda: all(sink.says(path) for path in paths) and "n4" in sink.names(), "alarms and a change")
        assert "n2" in sink.names()

    async def started(_: EtcdStore, sink: Sink) -> None:
        assert all(sink.says(path) for path in paths) and sink.names() == {"n0", "n1", "n4"}

    server.put_all(nodes(3))
    kinds = (*FOLLOWED, "NetworkPolicy")
    follow(EtcdStore(EtcdConfig(server.endpoints), node="n1", kinds=kinds), spoil)
    follow(EtcdStore(EtcdConfig(server.endpoints), node="n1", kinds=kinds), started)


def test_an_emptied_prefix_is_held_until_somebody_confirms(server: Cluster) -> None:
    server.put_all(nodes(10) | {AFFINITY: "{}"})

    async def test(store: EtcdStore, sink: Sink) -> None:
        await ctl(server.delete, "--prefix", "/calico/")
        await until(lambda: store.health.held == 11, "all are held")
        await until(lambda: sink.says("10 of 10 Node", "routedctl confirm"), "it is told")
        assert not sink.removed
        await ctl(server.put, f"{P}nodes/n0", node(0))
        await until(lambda: store.health.held == 10, "one is back")
        assert store.confirm("Node") == 9
        assert sink.names() == {"n0"} and sink.names("BlockAffinity")
        assert store.confirm() == 1
        assert not sink.says("vanished")

    follow(store_of(server), test)


def test_what_is_deleted_on_purpose_is_held_by_nobody(server: Cluster) -> None:
    """`routedctl delete` of all there is, block and affinity included; the same by another hand is held."""
    block = {
        "cidr": "10.244.1.0/26",
        "affinity": "host:n1",
        "allocations": [None] * 64,
        "unallocated": [],
        "attributes": [],
    }
    server.put_all(nodes(10) | {AFFINITY: "{}", "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-26": block})

    async def test(store: EtcdStore, sink: Sink) -> None:
        away = store_of(server)
        keys = sorted(sink.resources)
        assert {key.kind for key in keys} == {"Node", "BlockAffinity", "IPAMBlock"}
        outcomes = await delete(away, keys)
        assert [(one.result, one.error, one.note) for one in outcomes] == [("deleted", "", "")] * len(keys)
        await until(lambda: not sink.resources, "all are gone")
        assert store.health.held == 0 and not sink.says("vanished")
        await ctl(server.put_all, nodes(2))
        await until(lambda: len(sink.resources) == 2, "new ones")
        await ctl(server.delete, "--prefix", "/calico/")
        await until(lambda: store.health.held == 2, "all are held")
        await away.close()

    follow(store_of(server), test)


@pytest.mark.parametrize("kind", ["bgppeers", "affinities"])
def test_what_is_deleted_one_by_one_by_accident_is_held_before_any_is_lost(server: Cluster, kind: str) -> None:
    paths = [
        f"{P}bgppeers/p{number}" if kind == "bgppeers" else AFFINITY.replace("10.244.1.", f"10.244.{number}.")
        for number in range(11)
    ]
    server.put_all({path: peer(number) if kind == "bgppeers" else "{}" for number, path in enumerate(paths)})

    async def test(store: EtcdStore, sink: Sink) -> None:
        for path in paths[:5]:  # a transaction each, as all tools do
            await ctl(server.delete, path)
        await until(lambda: store.health.held == 5, "they are held")
        await until(lambda: sink.says("5 of 11"), "people are told, in a moment")
        assert not sink.removed

    follow(store_of(server, rules=MassDelete(window=40.0)), test)  # however slow this machine is


def test_what_is_deleted_alone_goes_in_a_moment(server: Cluster) -> None:
    server.put_all({f"{P}bgppeers/p{number}": peer(number) for number in range(2)})

    async def test(store: EtcdStore, sink: Sink) -> None:
        await ctl(server.delete, f"{P}bgppeers/p0")
        await until(lambda: [key.name for key in sink.removed] == ["p0"], "it is followed")
        assert store.health.held == 0

    follow(store_of(server), test)


def test_what_is_held_is_believed_after_the_timeout(server: Cluster) -> None:
    server.put_all(nodes(6))

    async def test(store: EtcdStore, sink: Sink) -> None:
        await ctl(server.delete, "--prefix", P)
        await until(lambda: store.health.held == 6, "all are held")
        await until(lambda: not sink.resources, "the timeout")

    follow(store_of(server, rules=MassDelete(timeout=1.0)), test)


def test_while_the_datastore_is_not_ready_nothing_changes(server: Cluster) -> None:
    def ready(flag: bool) -> JsonObject:
        return {
            "apiVersion": "projectcalico.org/v3",
            "kind": "ClusterInformation",
            "metadata": {"name": "default"},
            "spec": {"datastoreReady": flag},
        }

    server.put_all(nodes(5) | {f"{P}clusterinformations/default": ready(True)})

    async def test(store: EtcdStore, sink: Sink) -> None:
        await ctl(server.put, f"{P}clusterinformations/default", ready(False))
        await until(lambda: sink.says("not ready"), "the hold is told")
        information = sink.resources[ResourceKey("ClusterInformation", "default")]
        assert (
            isinstance(information, ClusterInformation) and not information.datastore_ready
        )  # whoever writes must know
        await ctl(server.delete, f"{P}nodes/n1")
        await ctl(server.put, f"{P}nodes/n7", node(7))
        await ctl(server.put, f"{P}clusterinformations/default", ready(True))
        await until(lambda: "n7" in sink.names() and sink.removed and not sink.says("not ready"), "what was missed")
        information = sink.resources[ResourceKey("ClusterInformation", "default")]
        assert isinstance(information, ClusterInformation) and information.datastore_ready
        assert store.health.readings == 2
        assert sink.removed == [ResourceKey("Node", "n1")]

    follow(store_of(server), test)


def test_down_at_start_it_begins_with_what_was_saved(tmp_path: Path) -> None:
    with cluster(tmp_path) as server:
        server.put_all(nodes(8))

        async def first(_: EtcdStore, sink: Sink) -> None:
            await ctl(server.put, f"{P}nodes/n8", node(8))
            await until(lambda: "n8" in sink.names(), "a change after the snapshot")

        follow(store_of(server, saved=saved_in(tmp_path, server)), first)
        server.delete(f"{P}nodes/n3")
        server.stop()

        async def cold(store: EtcdStore, sink: Sink) -> None:
            assert sink.names() == {f"n{number}" for number in range(9)}
            assert sink.events == ["loaded"]
            assert store.health.from_snapshot and store.health.as_of and not store.health.connected
            await until(lambda: sink.says("etcd", "what it last said stays"), "an alarm")
            await ctl(server.start)
            await until(lambda: "in sync" in sink.events and sink.removed, "etcd is back")
            assert sink.removed == [ResourceKey("Node", "n3")]
            assert not store.health.from_snapshot
            await until(lambda: not sink.says("what it last said stays"), "the alarm is over")

        follow(store_of(server, saved=saved_in(tmp_path, server)), cold, wait="loaded")


def test_what_a_node_does_not_read_any_more_has_not_vanished(server: Cluster, tmp_path: Path) -> None:
    """Its pods are no longer routed's: what an earlier run read for them is no accident, and nothing to confirm."""
    server.put_all(nodes(3))
    for number in range(8):
        path, value = pod(f"n{number}")
        server.put(path, value)
        server.put(f"{P}profiles/kns.shop{number}", profile(f"kns.shop{number}"))

    def store_for(kinds: Collection[str]) -> EtcdStore:
        return EtcdStore(EtcdConfig(server.endpoints), node="n1", kinds=kinds, saved=saved_in(tmp_path, server))

    async def all_of_it(_: EtcdStore, sink: Sink) -> None:
        assert len(sink.names("WorkloadEndpoint")) == len(sink.names("Profile")) == 8

    follow(store_for(KINDS), all_of_it)

    async def less(_: EtcdStore, sink: Sink) -> None:
        assert sink.names() == {"n0", "n1", "n2"}
        assert not sink.open and not sink.names("WorkloadEndpoint") and not sink.names("Profile")

    follow(store_for(FOLLOWED), less)


def test_a_saved_state_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    with cluster(tmp_path) as server:
        server.put_all(nodes(3))

        async def nothing(_: EtcdStore, __: Sink) -> None:
            pass

        follow(store_of(server, saved=saved_in(tmp_path, server)), nothing)
    path = str(tmp_path / "datastore.saved")
    for identity, why in (
        (Identity("n2", "/calico", server.endpoints), "of another node"),
        (Identity("n1", "/other", server.endpoints), "another root"),
        (Identity("n1", "/calico", ("http://10.9.9.9:2379",)), "of other endpoints"),
    ):

        async def unused(_: EtcdStore, sink: Sink, why: str = why) -> None:
            await until(lambda: sink.says("nothing is known yet", why), "the alarm")
            assert not sink.resources and not sink.events

        follow(EtcdStore(EtcdConfig(server.endpoints), node="n1", saved=SavedState(path, identity)), unused, wait="")


def test_a_saved_state_of_the_same_etcd_by_another_name_is_used_once_etcd_answers(tmp_path: Path) -> None:
    with cluster(tmp_path) as server:
        server.put_all(nodes(8))

        async def nothing(_: EtcdStore, __: Sink) -> None:
            pass

        follow(store_of(server, saved=saved_in(tmp_path, server)), nothing)
        server.delete("--prefix", P)
        named = tuple(endpoint.replace("127.0.0.1", "localhost") for endpoint in server.endpoints)

        async def held(store: EtcdStore, sink: Sink) -> None:
            assert store.health.held == 8 and len(sink.names()) == 8
            await until(lambda: sink.says("8 of 8 Node objects vanished"), "it is told")

        saved = SavedState(str(tmp_path / "datastore.saved"), Identity("n1", "/calico", named))
        follow(EtcdStore(EtcdConfig(named), node="n1", saved=saved), held)


def information(guid: str) -> JsonObject:
    metadata: JsonObject = {"name": "default"}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "ClusterInformation",
        "metadata": metadata,
        "spec": {"clusterGUID": guid},
    }


@pytest.mark.parametrize("token", ["another", "the same"])
@pytest.mark.parametrize("there", ["another cluster", "the cluster restored", "nothing"])
def test_an_etcd_set_up_anew_at_the_same_address(tmp_path: Path, there: str, token: str) -> None:
    with cluster(tmp_path) as server:
        for _ in range(3):  # so that it has counted further than the new one will
            server.put_all({f"{P}clusterinformations/default": information("one")} | nodes(8))

        async def nothing(_: EtcdStore, __: Sink) -> None:
            pass

        follow(store_of(server, saved=saved_in(tmp_path, server)), nothing)
        server.stop()
        shutil.rmtree(tmp_path / "m0")
        if token == "another":
            server.members[0]._argv.append("--initial-cluster-token=another")
        server.start()
        guid = "one" if there == "the cluster restored" else "two"
        if there != "nothing":
            server.put_all({f"{P}clusterinformations/default": information(guid), f"{P}nodes/n1": node(1)})

        async def found(store: EtcdStore, sink: Sink) -> None:
            if there == "another cluster":
                assert sink.names() == {"n1"} and not store.health.held
            else:
                assert len(sink.names()) == 8 and store.health.held == (7 if there == "the cluster restored" else 9)

        follow(store_of(server, saved=saved_in(tmp_path, server)), found)


@pytest.mark.parametrize("token", ["another", "the same"])
def test_an_etcd_that_is_restored_while_it_is_followed(tmp_path: Path, token: str) -> None:
    """It begins to count again at the backup: nothing of what it says then may be waited for or missed."""
    with cluster(tmp_path) as server:
        server.put_all(nodes(8))
        backup = tmp_path / "backup"
        server.ctl("snapshot", "save", str(backup))

        async def restored(store: EtcdStore, sink: Sink) -> None:
            await ctl(server.put_all, {**nodes(12), f"{P}nodes/n1": node(1, rack="later")})
            await until(lambda: len(sink.names()) == 12, "what the backup does not have")
            readings, revision = store.health.readings, store.health.revision
            await ctl(server.stop)
            await ctl(shutil.rmtree, tmp_path / "m0")
            await ctl(server.restore, backup, token)
            await until(lambda: store.health.readings > readings, "it is listed anew")
            await until(lambda: 0 < store.health.revision < revision and len(sink.names()) == 8, "all of the backup")
            assert store.health.held == 0, "4 of 12 are no accident"
            assert sink.resources[ResourceKey("Node", "n1")].labels == {}
            await ctl(server.put, f"{P}nodes/n20", node(20))
            await until(lambda: "n20" in sink.names(), "a change is followed")

        follow(store_of(server), restored)


@pytest.mark.parametrize("when", ["followed", "restarted"])
@pytest.mark.parametrize("lost", [f"{P}nodes/n1", "/other/x"])
def test_an_etcd_that_is_restored_and_has_counted_further_meanwhile(tmp_path: Path, when: str, lost: str) -> None:
    """Revisions that were seen are used again for other values, as in any cluster where much is written."""
    with cluster(tmp_path) as server:
        server.put_all(nodes(8))
        backup = tmp_path / "backup"
        server.ctl("snapshot", "save", str(backup))
        saved = saved_in(tmp_path, server)

        async def before(store: EtcdStore, sink: Sink) -> None:
            for number in range(6):
                await ctl(server.put, lost, node(1, rack=f"r{number}"))
            if not lost.startswith(P):
                await ctl(server.put, f"{P}nodes/n9", node(9))
                await ctl(server.delete, f"{P}nodes/n9")
            revision = json.loads(server.ctl("endpoint", "status", "-w", "json"))[0]["Status"]["header"]["revision"]
            await until(lambda: store.health.revision == revision, "all of it")
            if when == "followed":
                restore()  # meanwhile the loop stands still
                await until(lambda: store.health.readings > 1, "it is listed anew")
                await check(store, sink)

        def restore() -> None:
            server.stop()
            shutil.rmtree(tmp_path / "m0")
            server.restore(backup, "the same")
            server.put_all({f"{P}nodes/n1": node(1, rack="new")})
            for number in range(8):
                server.put(f"{P}nodes/n2", node(2, rack=f"n{number}"))

        async def check(_: EtcdStore, sink: Sink) -> None:
            for name, rack in (("n1", "new"), ("n2", "n7")):
                key, labels = ResourceKey("Node", name), {"rack": rack}
                await until(lambda key=key, labels=labels: sink.resources[key].labels == labels, rack)
            await ctl(server.put, f"{P}nodes/n20", node(20))
            await until(lambda: "n20" in sink.names(), "a change is followed")

        follow(store_of(server, saved=saved), before)
        if when == "restarted":
            restore()
            follow(store_of(server, saved=saved_in(tmp_path, server)), check)


def test_a_killed_member_is_left_for_another_and_nothing_is_lost_or_listed_again(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as server:
        server.put_all(nodes(10))

        async def test(store: EtcdStore, sink: Sink) -> None:
            for number in (20, 21):
                used = await in_use(store, server)
                await ctl(used.kill)
                await until(lambda used=used: store.client.endpoint not in ("", used.endpoint), "another member")
                await until(lambda: store.health.connected and not store.health.problem, "it says so unasked")
                await ctl(server.put, f"{P}nodes/n{number}", node(number))
                await until(lambda number=number: f"n{number}" in sink.names(), "a change")
                assert store.health.readings == 1 and not sink.removed
                await ctl(used.start)

        follow(store_of(server), test)


def test_no_connection_stays_but_the_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that refuses us, having no leader, or that answers second, is let go at once, not when it is garbage."""
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    monkeypatch.setattr(etcd_module, "MAX_BACKOFF", 0.3)
    with cluster(tmp_path, 3) as server:
        server.put_all(nodes(3))

        async def test(store: EtcdStore, _: Sink) -> None:
            for _ in range(2):
                used = await in_use(store, server)
                others = [member for member in server.members if member is not used]
                before = store.health.failures
                for member in others:
                    await ctl(member.kill)
                await until(lambda before=before: store.health.failures > before + 2, "refused, having no leader")
                await until(lambda: "no leader" in store.health.problem, "which is told")
                for member in others:
                    await ctl(member.start)
                await until(lambda: store.health.connected and not store.health.problem, "all is well")
                await until(lambda: connections(server) == [store.client.endpoint], "there is one connection")

        gc.collect()
        gc.disable()
        try:
            follow(store_of(server), test)
        finally:
            gc.enable()


async def in_use(store: EtcdStore, server: Cluster) -> Member:
    """A cluster that stands still for a moment elects a leader, and has none meanwhile."""
    await until(lambda: store.client.endpoint, "a member is followed")
    return next(member for member in server.members if member.endpoint == store.client.endpoint)


def connections(server: Cluster) -> list[str]:
    """The endpoints this process has connections to."""
    found = subprocess.run(["ss", "-Htnp", "state", "established"], capture_output=True, text=True, check=True)
    ports = [line.split()[3].rpartition(":")[2] for line in found.stdout.splitlines() if f"pid={os.getpid()}," in line]
    return [member.endpoint for member in server.members for port in ports if port == str(member.port)]


def test_a_member_that_goes_silent_is_noticed(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routed.datastore.etcd_client.QUIET", 0.5)
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    server.put_all(nodes(3))
    proxy = Proxy(server.members[0].port)

    async def test(store: EtcdStore, sink: Sink) -> None:
        await until(lambda: store.client.endpoint == proxy.endpoint, "the proxy is in use")
        proxy.silent = True
        await ctl(server.put, f"{P}nodes/n5", node(5))
        await until(lambda: "n5" in sink.names(), "the change, over another endpoint")
        await until(lambda: store.client.endpoint == server.endpoints[0], "which is the one in use")

    store = EtcdStore(EtcdConfig((proxy.endpoint, *server.endpoints)), node="n1")
    store.client._endpoints.sort(key=lambda endpoint: endpoint != proxy.endpoint)
    follow(store, test)
    proxy.close()


def test_slow_is_no_failure(server: Cluster) -> None:
    server.put_all(nodes(3))
    proxy = Proxy(server.members[0].port)
    proxy.delay = 0.3

    async def test(store: EtcdStore, sink: Sink) -> None:
        await ctl(server.put, f"{P}nodes/n5", node(5))
        await until(lambda: "n5" in sink.names(), "a change")
        assert not store.health.failures and store.health.readings == 1

    follow(EtcdStore(EtcdConfig((proxy.endpoint,)), node="n1"), test)
    proxy.close()


def test_cut_off_in_the_middle_of_a_listing(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routed.datastore.etcd_client.PAGE", 20)
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    server.put_all(nodes(200))
    proxy = Proxy(server.members[0].port)
    proxy.cut_after = 20_000

    async def test(_: EtcdStore, sink: Sink) -> None:
        assert len(sink.names()) == 200 and not sink.removed
        assert proxy.connections > 1

    follow(EtcdStore(EtcdConfig((proxy.endpoint,)), node="n1"), test)
    proxy.close()


def test_user_and_password_and_what_is_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    with cluster(tmp_path) as server:
        server.put_all(nodes(6))
        server.demand_login()
        password = tmp_path / "password"
        password.write_text(f"{PASSWORD}\n")
        config = EtcdConfig(server.endpoints, username="routed", password_file=str(password))

        async def test(store: EtcdStore, sink: Sink) -> None:
            assert len(sink.names()) == 6
            await ctl(server.ctl, "user", "revoke-role", "routed", "calico")
            await store.client._drop(store.client._member)
            await until(lambda: sink.says("refuses us"), "the alarm")
            assert len(sink.names()) == 6 and not sink.removed
            assert PASSWORD not in str(sink.open)
            await ctl(server.ctl, "user", "grant-role", "routed", "calico")
            await ctl(server.put, f"{P}nodes/n7", node(7))
            await until(lambda: "n7" in sink.names(), "it goes on", 40)

        follow(EtcdStore(config, node="n1"), test)

        async def wrong() -> None:
            password.write_text("wrong\n")
            store = EtcdStore(config, node="n1")
            with pytest.raises(Denied, match="authentication failed"):
                await store.read()
            await store.close()

        asyncio.run(wrong())
        assert PASSWORD not in repr(EtcdConfig(("x",), username="routed", password=PASSWORD))


def test_who_may_not_read_or_write_is_told_what_and_how(tmp_path: Path) -> None:
    with cluster(tmp_path) as server:
        server.put_all(nodes(1))
        server.demand_login()
        for words in (
            "role add few", "user revoke-role routed calico", "user grant-role routed few",
            f"role grant-permission few --prefix=true read {P}bgppeers/",
        ):  # fmt: skip
            server.ctl(*words.split())

        async def ask() -> None:
            client = Client(EtcdConfig(server.endpoints, username="routed", password=PASSWORD))
            try:
                assert await client.get(f"{P}bgppeers/none") is None
                with pytest.raises(Denied) as read:
                    await client.listing([(f"{P}nodes/", f"{P}nodes0")])
                with pytest.raises(Denied) as one:
                    await client.get(f"{P}nodes/n0")
                with pytest.raises(Denied) as written:
                    await client.swap([(f"{P}bgppeers/a", 0)], [(f"{P}bgppeers/a", b"{}")])
            finally:
                await client.close()
            for said, right, key in (
                (read, "read", "nodes/"),
                (one, "read", "nodes/n0"),
                (written, "write", "bgppeers/a"),
            ):
                assert f"user routed may not {right} {P}{key};" in str(said.value)
                assert f"etcdctl role grant-permission ROLE {right} " in str(said.value)

        asyncio.run(ask())


def test_a_role_for_what_calico_s_bgp_daemon_reads_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services and the status of nodes are beside that: what was known of them stays, and the user is told."""
    with cluster(tmp_path) as server:
        server.put_all(nodes(3))
        server.demand_login()
        for words in (
            "role add bird", "user revoke-role routed calico", "user grant-role routed bird",
            *(f"role grant-permission bird --prefix=true read {prefix}" for prefix in (
                *(f"{P}{plural}/" for plural in (
                    "nodes", "bgpconfigurations", "bgppeers", "bgpfilters", "ippools", "clusterinformations",
                    "felixconfigurations",
                )), "/calico/ipam/v2/",
            )),
        ):  # fmt: skip
            server.ctl(*words.split())
        config = EtcdConfig(server.endpoints, username="routed", password=PASSWORD)
        metadata: JsonObject = {"name": "web", "namespace": "shop"}
        service: JsonObject = {
            "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": "10.96.0.1", "ports": []},
        }  # fmt: skip

        async def test(_: EtcdStore, sink: Sink) -> None:
            assert sink.names() == {"n0", "n1", "n2"}
            assert {problem.file for problem in sink.open if "does not let us read" in str(problem)} == {
                f"{P}{plural}/" for plural in ("kubernetesservices", "kubernetesendpointslices", "caliconodestatuses")
            }
            await ctl(server.put, f"{P}nodes/n7", node(7))
            await until(lambda: "n7" in sink.names(), "changes are followed")
            await ctl(server.ctl, "user", "grant-role", "routed", "calico")
            await until(lambda: not sink.says("does not let us read"), "what may be read now is told no more")
            await until(lambda: sink.names("Service") == {"web"}, "and is read")
            assert not sink.removed

        async def granted(store: EtcdStore, sink: Sink) -> None:
            assert not sink.says("does not let us read") and sink.names("Service") == {"web"}
            await ctl(server.ctl, "user", "revoke-role", "routed", "calico")
            await store.client._drop(store.client._member)  # an open watch is not asked again
            await ctl(server.put, f"{P}nodes/n8", node(8))
            await until(lambda: sink.says("kubernetesservices/", "does not let us read"), "what was revoked", 60)
            assert sink.names("Service") == {"web"} and not sink.removed
            await until(lambda: "n8" in sink.names(), "the rest is followed")

        monkeypatch.setattr(etcd_module, "_MARK", 0.3)
        monkeypatch.setattr("routed.datastore.etcd_client.QUIET", 0.4)
        server.put(f"{P}kubernetesservices/shop/web", service)
        follow(EtcdStore(config, node="n1"), test)
        follow(EtcdStore(config, node="n1"), granted)


def test_stopped_for_long_it_stays_and_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routed.datastore.etcd_client.QUIET", 0.4)
    monkeypatch.setattr("routed.datastore.etcd_client.PROBE", 2.0)
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    monkeypatch.setattr(etcd_module, "MAX_BACKOFF", 0.3)
    with cluster(tmp_path) as server:
        server.put_all(nodes(4))

        async def test(store: EtcdStore, sink: Sink) -> None:
            server.members[0].signal(signal.SIGSTOP)
            await until(lambda: store.health.failures > 1, "it is noticed")
            await until(lambda: sink.says("what it last said stays"), "and told")
            assert len(sink.names()) == 4
            server.members[0].signal(signal.SIGCONT)
            await ctl(server.put, f"{P}nodes/n9", node(9))
            await until(lambda: "n9" in sink.names(), "it catches up")
            assert store.health.readings == 1 and not sink.removed

        follow(store_of(server), test)


def test_an_address_is_given_out_of_a_block_that_a_newer_calico_wrote(server: Cluster) -> None:
    """What nobody here knows of a block, its attributes and its affinity is written back as it was."""
    path = "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-30"
    attributes = [{"handle_id": "h", "secondary": {"node": "n1"}, "ofTomorrow": 1}]
    server.put(AFFINITY.replace("-26", "-30"), {"state": "confirmed", "deleted": False, "ofTomorrow": 1})
    server.put(
        path,
        {"cidr": "10.244.1.0/30", "affinity": "host:n1", "allocations": [0, None, None, None], "unallocated": [1, 2, 3]}
        | {"attributes": attributes, "sequenceNumber": 7, "deleted": False, "ofTomorrow": {"a": 1}},
    )
    pool = parse_manifest(
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"}}
        | {"spec": {"cidr": "10.244.0.0/16", "blockSize": 30}}
    )
    assert isinstance(pool, IPPool)

    async def test(store: EtcdStore, _: Sink) -> None:
        demand = Demand("n1", {}, Owner("g", {"node": "n1"}), Family.IPV4_UNICAST)
        outcome = await carry_out(store, assign_addresses(Allocator((pool,)), demand, clock()))
        assert outcome.reason == "" and outcome.addresses == (bytes((10, 244, 1, 1)),)
        stored = json.loads(server.ctl("get", path, "--print-value-only"))
        assert stored["ofTomorrow"] == {"a": 1} and stored["attributes"][0] == attributes[0]
        assert stored["allocations"] == [0, 1, None, None] and stored["sequenceNumber"] == 8

    follow(store_of(server), test)
