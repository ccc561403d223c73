"""What a CNI call makes and takes back, step by step: every step may fail, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from routed.cni.call import parse_request
from routed.cni.protocol import Call
from routed.daemon.cni import Conversation, Inside
from routed.daemon.pods import Pods
from routed.dataplane.pods import PodPort
from routed.datastore.editing import FolderStore
from routed.datastore.etcd import EtcdStore
from routed.datastore.store import Conflict, Contents, Edit, Stored
from routed.errors import CniError, KernelError, StoreError
from routed.ipam.allocator import handle_key
from routed.ipam.holders import Holder
from routed.model.ipam import AllocationAttribute, IPAMBlock, IPAMHandle
from routed.model.policies import Profile
from routed.model.resources import Cidr, JsonObject, Resource, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.model.unread import UnreadBlock, plain_block
from routed.model.workloads import WorkloadEndpoint
from routed.net.families import Family
from routed.testing.routers import resource


class Store:
    """A store in memory; `broken` fails the n-th write from now."""

    shared_with_calico = False
    guards_deletions = False
    gone = frozenset[ResourceKey]()

    def __init__(self) -> None:
        self.items: dict[ResourceKey, tuple[Resource, str]] = {}
        self.revision = 0
        self.broken = -1

    async def read(self, _: Iterable[str] | None = None) -> Contents:
        return Contents({key: Stored(value, revision, "") for key, (value, revision) in self.items.items()})

    async def get(self, key: ResourceKey) -> Stored | None:
        await asyncio.sleep(0)
        found = self.items.get(key)
        return Stored(*found, "memory") if found else None

    async def has_elder(self, block: Cidr) -> bool:
        return any(
            isinstance(value, IPAMBlock) and value.cidr != block and value.cidr.overlaps(block)
            for value, _ in self.items.values()
        )

    async def write(self, key: ResourceKey, resource: Resource | None, revision: str | None) -> str:
        await asyncio.sleep(0)
        if self.broken == 0:
            raise StoreError("the store is gone")
        self.broken -= 1
        there = self.items.get(key)
        if (there[1] if there else None) != revision:
            raise Conflict(f"{key} has changed")
        self.revision += 1
        if resource is None:
            del self.items[key]
            return ""
        self.items[key] = (parse_manifest(json.loads(json.dumps(resource.manifest))), str(self.revision))
        return str(self.revision)

    async def write_all(self, edits: Sequence[Edit]) -> list[str]:
        """As a folder does: none where one lost a race, but what breaks may break between two."""
        for edit in edits:
            there = self.items.get(edit.key)
            if (there[1] if there else None) != edit.revision:
                raise Conflict(f"{edit.key} has changed")
        return [await self.write(edit.key, edit.resource, edit.revision) for edit in edits]

    async def close(self) -> None:
        pass

    def of(self, kind: type[Resource]) -> list[Any]:
        return [value for value, _ in self.items.values() if isinstance(value, kind)]


@dataclass
class Wiring:
    """Interfaces as names; `refusal` is raised by the next attach."""

    interfaces: dict[str, int] = field(default_factory=dict)
    """Index by name."""
    refusal: KernelError | None = None
    too_late: bool = False
    """What was there is gone by then."""
    last: int = 0
    ports: list[PodPort] = field(default_factory=list)
    """As they were made."""
    slow: threading.Event = field(default_factory=threading.Event)
    """What `detach` waits for."""
    wrong: list[str] = field(default_factory=list)
    """What somebody changed of all of them, until they are made anew."""

    def __post_init__(self) -> None:
        self.slow.set()

    def attach(self, port: PodPort, _: int, __: socket.socket) -> int:
        if self.refusal is not None:
            if self.too_late:
                self.interfaces.pop(port.interface, None)
            raise self.refusal
        self.last += 1
        self.ports.append(port)
        self.interfaces[port.interface] = self.last
        self.wrong = []
        return self.last

    def differences(self, port: PodPort, _: socket.socket) -> list[str]:
        return self.wrong if port.interface in self.interfaces else [f"{port.interface} is gone"]

    def mend_if_there(self, _: PodPort) -> None:
        self.wrong = [each for each in self.wrong if "in the container" in each or "the container" in each]

    def mtu_of(self, name: str) -> int:
        return 1400 if name in self.interfaces else 0

    def pods_ends(self) -> dict[int, str]:
        return {index: name for name, index in self.interfaces.items()}

    def index_of(self, name: str) -> int | None:
        return self.interfaces.get(name)

    def detach_all(self, indexes: list[int]) -> None:
        assert self.slow.wait(60)
        self.interfaces = {name: each for name, each in self.interfaces.items() if each not in indexes}

    def close(self) -> None:
        pass


class Dataplane:
    def __init__(self) -> None:
        self.published: list[Update] = []
        self.problem = ""
        self.ready = self.not_ours = self.away = ""
        self.limited = ""
        self.source_spoofing = False
        self.workload_prefixes = ("cali",)
        self.synced = True
        self.too_small = ""
        self.uplink = b""

    def publish(self, update: Update) -> None:
        self.published.append(update)

    async def until_ready(self) -> str:
        return self.ready

    def mtu(self, families: Collection[Family]) -> tuple[int, str]:
        return 1450, self.too_small if Family.IPV6_UNICAST in families else ""

    def own(self, address: bytes) -> Holder | None:
        return Holder("interface eth0 of this node", "n1") if address == self.uplink else None

    async def unused(self, _: Collection[int]) -> None:
        pass

    async def in_force(self, _: Iterable[tuple[Family, bytes]]) -> str:
        await asyncio.sleep(0)
        return self.problem


class Talk(Conversation):
    """A plugin that writes what it is asked to; `refusal` is what it answers instead."""

    def __init__(self, refusal: CniError | None = None) -> None:
        self.refusal = refusal
        self.asked: dict[str, str] = {}

    async def begin_sysctls(self, values: Iterable[tuple[str, str]]) -> None:
        self.asked = dict(values)

    async def sysctls_written(self) -> None:
        if self.refusal is not None:
            raise self.refusal


class Node:
    def __init__(self, store: Store | EtcdStore, name: str = "n1") -> None:
        """What an etcd has is to be told by who follows it."""
        self.store: Any = store
        self.wiring = Wiring()
        self.dataplane = Dataplane()
        self.log: list[str] = []
        self.pods = Pods(
            name,
            store,
            self.wiring,  # type: ignore[arg-type]
            self.dataplane,
            lambda _, __, text: self.log.append(text),
        )
        for value, _ in store.items.values() if isinstance(store, Store) else ():
            self.pods.update(Update(value.key, value))
        self.inside = Inside(socket.socket(), 0)

    async def call(self, command: str, name: str = "web", container: str = "c1", **values: Any) -> Any:
        talk = values.pop("talk", None) or Talk()
        interface = values.pop("interface", "eth0")
        configuration = {"cniVersion": "1.1.0", "name": values.pop("network", "pods"), "type": "routed-cni", **values}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/x",
            "CNI_IFNAME": interface,
            "CNI_ARGS": f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}" if name else "",
        }
        request = parse_request(Call(environment, json.dumps(configuration).encode()))
        output = await self.pods.handle(request, self.inside, talk)
        return json.loads(output) if output else None

    async def settled(self) -> None:
        """What is being torn down is gone."""
        async with asyncio.timeout(60):
            while self.pods._teardown is not None:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.pods.close()
        self.inside.netlink.close()


def nothing_left(node: Node) -> None:
    """No address, endpoint, handle or interface."""
    assert node.store.of(WorkloadEndpoint) == [] and node.store.of(IPAMHandle) == []
    for block in node.store.of(IPAMBlock):
        assert all(owner is None for owner in map(block.owner, range(len(block.allocations))))
    assert node.wiring.interfaces == {}


@pytest.fixture
def store() -> Store:
    made = Store()
    pool: JsonObject = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "v4"},
        "spec": {"cidr": "10.65.0.0/24", "blockSize": 30},
    }
    value = parse_manifest(pool)
    made.items[value.key] = (value, "0")
    return made


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def test_add_and_del(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        result = await node.call("ADD")
        (endpoint,) = store.of(WorkloadEndpoint)
        assert endpoint.key == ResourceKey("WorkloadEndpoint", "n1-k8s-web-eth0", "shop")
        assert result["ips"][0]["address"] == str(endpoint.ip_networks[0])
        assert result["interfaces"][0] == {"name": endpoint.interface_name, "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1450}
        assert endpoint.profiles == ("kns.shop",) and len(store.of(Profile)) == 1
        assert handle_key("pods.c1") in store.items
        await node.call("DEL")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_endpoints_are_marked_as_calico_marks_them(store: Store, runner: asyncio.Runner):
    """Policies may select by orchestrator, also who is no pod; a new sandbox of a pod has the endpoint of the old one."""

    async def main() -> None:
        node = Node(store)
        await node.call("ADD", container="c1")
        (first,) = store.of(WorkloadEndpoint)
        assert first.labels["projectcalico.org/orchestrator"] == "k8s"
        marks = ("uid", "creationTimestamp")
        metadata = first.manifest["metadata"]
        assert isinstance(metadata, dict) and all(isinstance(metadata.get(each), str) for each in marks)
        await node.call("ADD", container="c2")
        (second,) = store.of(WorkloadEndpoint)
        again = second.manifest["metadata"]
        assert isinstance(again, dict) and [again[each] for each in marks] == [metadata[each] for each in marks]
        assert second.container_id == "c2"
        await node.call("ADD", name="", container="none-of-kubernetes")
        (other,) = (each for each in store.of(WorkloadEndpoint) if each.container_id == "none-of-kubernetes")
        assert other.labels["projectcalico.org/orchestrator"] == "cni"
        profile = store.of(Profile)[0]
        assert isinstance(profile.manifest["metadata"], dict) and set(marks) <= set(profile.manifest["metadata"])
        await node.close()

    runner.run(main())


@pytest.mark.parametrize("step", ["sysctls", "attach", "routes", *(f"write {number}" for number in range(6))])
def test_whatever_fails_is_undone_and_the_next_try_works(store: Store, runner: asyncio.Runner, step: str):
    async def main() -> None:
        node = Node(store)
        talk = Talk()
        if step == "sysctls":
            talk.refusal = CniError(199, "no")
        elif step == "attach":
            node.wiring.refusal = KernelError(17, "", "interface")
        elif step == "routes":
            node.dataplane.problem = "the route is not in the kernel"
        else:
            store.broken = int(step.split()[1])
        with pytest.raises((CniError, StoreError)):
            await node.call("ADD", talk=talk)
        store.broken = -1
        node.wiring.refusal, node.dataplane.problem = None, ""
        if step.startswith("write"):  # what could not be taken back then is now
            await node.call("DEL")
        await node.pods.close()
        nothing_left(node)
        assert (await node.call("ADD"))["ips"]
        await node.call("DEL")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_a_new_sandbox_of_a_pod_takes_the_old_one_s_place(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        await node.call("ADD", container="old")
        await node.call("ADD", container="new")
        (endpoint,) = store.of(WorkloadEndpoint)
        assert endpoint.container_id == "new"
        assert {handle.name for handle in store.of(IPAMHandle)} == {"pods.new"}
        await node.call("DEL", container="old")  # late, and of somebody who is gone
        assert len(store.of(WorkloadEndpoint)) == 1 and len(node.wiring.interfaces) == 1
        await node.call("DEL", container="new")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_a_slow_teardown_does_not_take_the_next_pod_s_interface(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        await node.call("ADD", container="first")
        node.wiring.slow.clear()
        await node.call("DEL", container="first")  # answers before the kernel is done
        await node.call("ADD", container="second")
        node.wiring.slow.set()
        await node.pods.close()
        (endpoint,) = store.of(WorkloadEndpoint)
        assert list(node.wiring.interfaces) == [endpoint.interface_name]
        await node.close()

    runner.run(main())


def test_many_at_once_have_addresses_of_their_own(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        calls = [node.call("ADD", name=f"pod-{number}", container=f"c{number}") for number in range(20)]
        results = await asyncio.gather(*calls)
        addresses = {result["ips"][0]["address"] for result in results}
        assert len(addresses) == 20
        await asyncio.gather(
            *(node.call("DEL", name=f"pod-{number}", container=f"c{number}") for number in range(20)),
            *(node.call("DEL", name=f"pod-{number}", container=f"c{number}") for number in range(20)),
        )
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_no_address_says_why(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        with pytest.raises(CniError, match="cannot give the pod an IPv6 address: there is no enabled pool") as raised:
            await node.call("ADD", ipam={"assign_ipv6": "true"})
        assert raised.value.code == 100
        await node.pods.close()
        nothing_left(node)  # the IPv4 address it had already is back
        await node.close()

    runner.run(main())


def test_not_ready_is_try_again(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        node.dataplane.ready = "routed has not read the datastore yet"
        node.dataplane.synced = False
        for command, code in (("ADD", 11), ("DEL", 11), ("STATUS", 50)):
            with pytest.raises(CniError) as raised:
                await node.call(command)
            assert raised.value.code == code
        node.dataplane.ready = ""
        await node.call("STATUS")
        node.dataplane.away = "the datastore has not answered for 60 s"
        with pytest.raises(CniError, match="has not answered for 60 s") as raised:
            await node.call("STATUS")
        assert raised.value.code == 50
        await node.call("ADD")  # who asks for it all the same finds out himself
        await node.close()

    runner.run(main())


def test_gc(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        for number in range(3):
            await node.call("ADD", name=f"pod-{number}", container=f"c{number}")
        await node.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
        assert [endpoint.container_id for endpoint in store.of(WorkloadEndpoint)] == ["c1"]
        assert {handle.name for handle in store.of(IPAMHandle)} == {"pods.c1"}
        await node.call("GC")  # names nobody, so it is no list to go by
        assert len(store.of(WorkloadEndpoint)) == 1
        await node.close()

    runner.run(main())


def test_gc_takes_the_interface_whose_endpoint_a_crash_outlived(store: Store, runner: asyncio.Runner):
    """Unless it may be an endpoint that was lost: then its pod lives."""

    async def main() -> None:
        node = Node(store)
        for number in range(3):
            await node.call("ADD", name=f"pod-{number}", container=f"c{number}")
        endpoints = {each.container_id: each for each in store.of(WorkloadEndpoint)}
        names = {container: each.interface_name for container, each in endpoints.items()}
        for container in ("c1", "c2"):
            del store.items[endpoints[container].key]
            node.pods.update(Update(endpoints[container].key, None))
        valid = [{"containerID": each, "ifname": "eth0"} for each in ("c0", "c1")]
        await node.call("GC", **{"cni.dev/valid-attachments": valid})
        await node.settled()
        assert set(node.wiring.interfaces) == set(names.values())  # who of them is c1 nobody knows
        await node.call("ADD", name="other", container="c9", network="net-b")
        await node.call("GC", **{"cni.dev/valid-attachments": valid[:1]})
        await node.settled()
        assert len(node.wiring.interfaces) == 4
        await node.call("DEL", name="other", container="c9", network="net-b")
        await node.call("GC", **{"cni.dev/valid-attachments": valid[:1]})
        await node.settled()
        assert set(node.wiring.interfaces) == {names["c0"]}
        await node.close()

    runner.run(main())


def test_a_block_that_cannot_be_read_is_not_made_anew(tmp_path: Path, runner: asyncio.Runner):
    """Whoever has its addresses would be forgotten, and the file that is mended has no effect any more."""

    async def main() -> None:
        pool = resource("IPPool", "v4", {"cidr": "10.65.0.0/24", "blockSize": 30})
        (tmp_path / "pool.yaml").write_text(json.dumps(pool))
        for store in (FolderStore(str(tmp_path)), FolderStore(str(tmp_path))):  # the second: after a restart
            node = Node(store)  # type: ignore[arg-type]
            for key, stored in (await store.read()).resources.items():
                node.pods.update(Update(key, stored.resource))
            first = await node.call("ADD", name="first", container="c1")
            (file,) = tmp_path.glob("ipamblock-*")
            whole = file.read_text()
            file.write_text(whole[:20])
            before = sorted(tmp_path.iterdir())
            for command, container in (("ADD", "c2"), ("ADD", "c2"), ("DEL", "c1")):
                with pytest.raises(StoreError, match=rf"{file}:1: "):  # to the runtime: try again
                    await node.call(command, name=container, container=container)
            assert sorted(tmp_path.iterdir()) == before and file.read_text() == whole[:20]
            file.write_text(whole)
            second = await node.call("ADD", name="second", container="c2")
            assert second["ips"][0]["address"] != first["ips"][0]["address"]
            await node.call("DEL", name="second", container="c2")
            await node.close()

    runner.run(main())


def test_gc_looks_through_the_blocks_of_others_once(
    store: Store, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
):
    """A large cluster has tens of thousands of handles and thousands of blocks, and a daemon has other things to do."""
    asked: list[Cidr] = []
    read = UnreadBlock.nodes_of_addresses

    def counted(block: UnreadBlock) -> dict[int, str]:
        asked.append(block.cidr)
        return read(block)

    def never(_: UnreadBlock) -> tuple[AllocationAttribute, ...]:
        raise AssertionError("a block of others is read whole")

    async def main() -> None:
        node = Node(store)
        for number in range(2):
            await node.call("ADD", name=f"pod-{number}", container=f"c{number}")
        for number in range(50):
            cidr = f"10.66.{number}.0/29"
            owners = [{"handle_id": f"pods.n9-{number}-{each}", "secondary": {"node": "n9"}} for each in range(8)]
            value: JsonObject = {
                "cidr": cidr, "affinity": "host:n9", "allocations": list(range(8)), "attributes": owners,  # type: ignore[dict-item]
            }  # fmt: skip
            block = plain_block(json.dumps(value).encode(), cidr.translate(str.maketrans("./", "--")))
            assert block is not None
            node.pods.update(Update(block.key, block))
            for each in range(8):
                handle = IPAMHandle(name=f"pods.n9-{number}-{each}", blocks={block.cidr: 1})
                node.pods.update(Update(handle.key, handle))
        monkeypatch.setattr(UnreadBlock, "nodes_of_addresses", counted)
        monkeypatch.setattr(UnreadBlock, "attributes", property(never))
        await node.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
        assert [endpoint.container_id for endpoint in store.of(WorkloadEndpoint)] == ["c1"]
        assert len(asked) == len(set(asked)) == 50
        await node.close()

    runner.run(main())


def test_gc_is_of_one_network(store: Store, runner: asyncio.Runner):
    """Others of the node, also one whose name begins alike, keep their pods and addresses."""

    async def main() -> None:
        node = Node(store)
        await node.call("ADD", name="gone", container="c1")
        await node.call("ADD", name="other", container="c2", network="net-b")
        await node.call("ADD", name="dotted", container="c3", network="pods.b")
        before = {handle.name for handle in store.of(IPAMHandle)}
        assert before == {"pods.c1", "net-b.c2", "pods.b.c3"}
        await node.call("GC", **{"cni.dev/valid-attachments": []})
        assert {endpoint.container_id for endpoint in store.of(WorkloadEndpoint)} == {"c2", "c3"}
        assert {handle.name for handle in store.of(IPAMHandle)} == before - {"pods.c1"}
        await node.close()

    runner.run(main())


def test_gc_removes_a_handle_that_counts_nothing(store: Store, runner: asyncio.Runner):
    """A crash between counting and giving out."""

    async def main() -> None:
        node = Node(store)
        await node.call("ADD")
        (endpoint,) = store.of(WorkloadEndpoint)
        (block,) = store.of(IPAMBlock)
        leak = parse_manifest({
            "apiVersion": "projectcalico.org/v3", "kind": "IPAMHandle", "metadata": {"name": "pods.dead"},
            "spec": {"block": {str(block.cidr): 1}, "deleted": False},
        })  # fmt: skip
        store.items[leak.key] = (leak, "0")
        node.pods.update(Update(leak.key, leak))
        valid = [{"containerID": endpoint.container_id, "ifname": "eth0"}]
        await node.call("GC", **{"cni.dev/valid-attachments": valid})
        assert [handle.name for handle in store.of(IPAMHandle)] == ["pods.c1"]
        await node.close()

    runner.run(main())


def test_each_interface_of_a_container_has_addresses_of_its_own(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        first = await node.call("ADD")
        second = await node.call("ADD", interface="net1")
        assert first["ips"][0]["address"] != second["ips"][0]["address"]
        assert {handle.name for handle in store.of(IPAMHandle)} == {"pods.c1", "pods.c1.net1"}
        await node.call("DEL", interface="net1")
        (endpoint,) = store.of(WorkloadEndpoint)
        assert [str(each) for each in endpoint.ip_networks] == [first["ips"][0]["address"]]
        assert [handle.name for handle in store.of(IPAMHandle)] == ["pods.c1"]
        await node.call("DEL")
        await node.pods.close()
        nothing_left(node)

    runner.run(main())


@pytest.mark.parametrize(
    ("pod", "container", "interface"), [("Web", "c1", "eth0"), ("", "My_One", "eth0"), ("web", "c1", "E_0")]
)
def test_names_no_endpoint_may_have(store: Store, runner: asyncio.Runner, pod: str, container: str, interface: str):
    """Before anything is made; what cannot be there is gone."""

    async def main() -> None:
        node = Node(store)
        with pytest.raises(CniError, match=r"cannot be an? (endpoint|pod)'s name") as raised:
            await node.call("ADD", name=pod, container=container, interface=interface)
        assert raised.value.code == 4 and node.wiring.last == 0
        await node.call("DEL", name=pod, container=container, interface=interface)
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_what_ends_needs_no_peers(store: Store, runner: asyncio.Runner):
    """While route selection is put off after a restart nothing can be added, but what goes may go."""

    async def main() -> None:
        node = Node(store)
        await node.call("ADD")
        node.dataplane.ready = "routed restarts and waits for its peers; try again"
        await node.call("DEL")
        await node.call("GC", **{"cni.dev/valid-attachments": []})
        node.dataplane.synced = False
        for command in ("DEL", "GC"):
            with pytest.raises(CniError, match="has not read the datastore") as raised:
                await node.call(command, **{"cni.dev/valid-attachments": []})
            assert raised.value.code == 11
        await node.pods.close()
        nothing_left(node)

    runner.run(main())


def test_check_compares_with_what_was_told_and_with_what_is_there(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        told = await node.call("ADD")
        told["interfaces"][1]["mtu"] = 1400
        await node.call("CHECK", prevResult=told)
        for change, words in (
            (lambda it: it["ips"].clear(), "does not tell of what eth0 has"),
            (
                lambda it: it["ips"].append({"address": "10.65.0.99/32", "interface": 1}),
                "does not tell of what eth0 has",
            ),
            (lambda it: it["interfaces"][1].update(mac="0e:00:00:00:00:01"), "another MAC address"),
            (lambda it: it["interfaces"][1].update(sandbox="/y"), "does not tell of eth0 in /x"),
            (lambda it: it["interfaces"][1].update(name="eth1"), "does not tell of eth0 in /x"),
        ):
            wrong = json.loads(json.dumps(told))
            change(wrong)
            with pytest.raises(CniError, match=words) as raised:
                await node.call("CHECK", prevResult=wrong)
            assert raised.value.code == 101
        # another plugin's interface and address are none of ours
        told["interfaces"].append({"name": "ifb0"})
        told["ips"].append({"address": "192.0.2.1/32", "interface": 2})
        await node.call("CHECK", prevResult=told)
        node.wiring.wrong = ["the container has no address 10.65.0.1"]
        with pytest.raises(CniError, match="has no address"):
            await node.call("CHECK", prevResult=told)
        await node.close()

    runner.run(main())


def test_an_add_again_makes_right_what_was_changed_and_keeps_the_addresses(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        first = await node.call("ADD")
        again = await node.call("ADD")
        assert again["ips"] == first["ips"] and node.wiring.last == 1
        node.wiring.wrong = ["the container has no default route"]
        again = await node.call("ADD")
        assert again["ips"] == first["ips"] and node.wiring.last == 2 and node.wiring.wrong == []
        assert any("made anew: the container has no default route" in line for line in node.log)
        await node.close()

    runner.run(main())


def test_nobody_is_given_an_address_that_somebody_has_though_no_block_says_so(store: Store, runner: asyncio.Runner):
    """The blocks, handles and affinities are gone, by somebody's hand; the pods are not."""

    async def main() -> None:
        node = Node(store)
        node.dataplane.uplink = bytes((10, 65, 0, 4))
        living = {f"web-{number}": await node.call("ADD", f"web-{number}", f"c{number}") for number in range(3)}
        for key in [key for key in store.items if key.kind in ("IPAMBlock", "IPAMHandle", "BlockAffinity")]:
            del store.items[key]
            node.pods.update(Update(key, None))
        told = {each["ips"][0]["address"] for each in living.values()}
        for number in range(3, 12):
            made = await node.call("ADD", f"web-{number}", f"c{number}")
            assert made["ips"][0]["address"] not in {*told, "10.65.0.4/32"}, number
            told.add(made["ips"][0]["address"])
        asked = living["web-0"]["ips"][0]["address"].partition("/")[0]
        with pytest.raises(CniError, match="WorkloadEndpoint shop/n1-k8s-web--0-eth0 has it"):
            await node.call("ADD", "other", "c90", runtimeConfig={"ips": [asked]})
        again = await node.call("ADD", "web-0", "c91", runtimeConfig={"ips": [asked]})  # a new sandbox of the same pod
        assert again["ips"] == living["web-0"]["ips"]
        for number in (91, *range(1, 12)):
            await node.call("DEL", "web-0" if number == 91 else f"web-{number}", f"c{number}")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_a_del_takes_the_interface_whatever_the_datastore_says(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        await node.call("ADD")
        await node.call("ADD", "", "c2")
        for endpoint in store.of(WorkloadEndpoint):  # by somebody's hand
            del store.items[endpoint.key]
            node.pods.update(Update(endpoint.key, None))
        await node.call("DEL")
        await node.call("DEL", "", "c2")
        await node.pods.close()
        nothing_left(node)
        await node.call("ADD", "web", "c3")  # a new sandbox of the same pod
        await node.call("DEL", "web", "c1")  # and the late end of the first
        await node.pods.close()
        assert len(node.wiring.interfaces) == 1
        await node.close()

    runner.run(main())


def test_a_network_that_was_renamed_gives_back_what_its_pods_have(store: Store, runner: asyncio.Runner):
    """Runtimes send the configuration as it is now; addresses are counted under the name it had."""

    async def main() -> None:
        node = Node(store)
        for name in ("web", "other", "stays"):
            await node.call("ADD", name, f"c-{name}", network="before")
        await node.call("DEL", "web", "c-web", network="after")
        await node.call("ADD", "other", "c-other2", network="after")  # its next sandbox
        assert {each.name for each in store.of(IPAMHandle)} == {"before.c-stays", "after.c-other2"}
        await node.call("DEL", "other", "c-other2", network="after")
        await node.call("DEL", "stays", "c-stays", network="after")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_an_uplink_too_small_for_ipv6_is_told_before_anything_is_made(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        node.dataplane.too_small = "eth0 leaves 1230, too little for IPv6"
        with pytest.raises(CniError, match="leaves 1230, too little for IPv6") as raised:
            await node.call("ADD", ipam={"assign_ipv6": "true"})
        assert raised.value.code == 7
        nothing_left(node)
        await node.call("ADD")
        await node.close()

    runner.run(main())


def test_a_kernel_without_ipv6(store: Store, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("routed.daemon.pods.kernel_has_ipv6", lambda: False)

    async def main() -> None:
        node = Node(store)
        with pytest.raises(CniError, match="the kernel has no IPv6") as raised:
            await node.call("ADD", ipam={"assign_ipv6": "true"})
        assert raised.value.code == 7
        nothing_left(node)
        talk = Talk()
        await node.call("ADD", talk=talk)
        assert not talk.asked
        await node.close()

    runner.run(main())


def test_status(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        assert await node.call("STATUS") is None
        node.dataplane.limited = "no packet passes"
        with pytest.raises(CniError, match="no packet passes") as raised:
            await node.call("STATUS")
        assert raised.value.code == 51
        node.dataplane.ready = "not read yet"
        with pytest.raises(CniError, match="not read yet") as raised:
            await node.call("STATUS")
        assert raised.value.code == 50
        await node.close()

    runner.run(main())


def test_a_del_is_answered_in_good_time_and_done_by_the_next(
    store: Store, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
):
    async def main() -> None:
        node = Node(store)
        await node.call("ADD")
        hangs = asyncio.Event()
        write_all = store.write_all

        async def hanging(edits: Sequence[Edit]) -> list[str]:
            await hangs.wait()
            return await write_all(edits)

        monkeypatch.setattr(store, "write_all", hanging)
        monkeypatch.setattr("routed.daemon.pods.RELEASE", 0.05)
        for _ in range(2):
            with pytest.raises(CniError, match="has not answered") as raised:
                await node.call("DEL")
            assert raised.value.code == 11
        assert len(node.wiring.interfaces) == 1
        hangs.set()
        monkeypatch.setattr("routed.daemon.pods.RELEASE", 20)
        await node.call("DEL")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_an_add_again_puts_the_nodes_end_right_in_place(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        first = await node.call("ADD")
        node.wiring.wrong = ["cali1 has no permanent neighbour 10.65.0.0"]
        assert (await node.call("ADD"))["ips"] == first["ips"]
        assert node.wiring.last == 1 and node.wiring.wrong == []
        await node.close()

    runner.run(main())


def test_nobody_is_given_an_address_of_a_pool_that_was_deleted(store: Store, runner: asyncio.Runner):
    """Deletions of many, as of the only pool, are held: routes and NAT go on as before."""

    async def main() -> None:
        node = Node(store)
        await node.call("ADD")
        (pool,) = (key for key in store.items if key.kind == "IPPool")
        store.gone = frozenset({pool})
        with pytest.raises(CniError, match="there is no enabled pool"):
            await node.call("ADD", "other", "c2")
        with pytest.raises(CniError, match="there is no enabled IPPool") as raised:
            await node.call("STATUS")
        assert raised.value.code == 50
        await node.call("DEL")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


def test_sources_beside_its_own_are_written_down_where_they_may_be(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        asked = {"cni.projectcalico.org/allowedSourcePrefixes": '["198.51.100.0/24"]'}
        values: dict[str, Any] = {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": asked}}
        with pytest.raises(CniError, match="workloadSourceSpoofing of FelixConfiguration is not Any") as raised:
            await node.call("ADD", **values)
        assert raised.value.code == 2
        nothing_left(node)
        node.dataplane.source_spoofing = True
        await node.call("ADD", **values)
        (endpoint,) = store.of(WorkloadEndpoint)
        assert list(map(str, endpoint.allow_spoofed_source_prefixes)) == ["198.51.100.0/24"]
        assert node.wiring.ports[-1].spoofs
        await node.call("ADD", "other", "c2")
        assert not node.wiring.ports[-1].spoofs
        await node.close()

    runner.run(main())


@pytest.mark.parametrize("given_up", [False, True])
def test_the_next_sandbox_of_a_pod_keeps_its_interface(store: Store, runner: asyncio.Runner, given_up: bool):
    """Whatever becomes of the ADD of the one before, whose plugin was killed, and of its DEL."""

    async def main() -> None:
        node = Node(store)
        gate = asyncio.Event()

        class Slow(Talk):
            async def sysctls_written(self) -> None:
                await gate.wait()
                await super().sysctls_written()

        refusal = CniError(11, "the plugin ended during the call") if given_up else None
        first = asyncio.create_task(node.call("ADD", "web", "c1", talk=Slow(refusal)))
        while not store.of(WorkloadEndpoint):
            await asyncio.sleep(0)
        second = asyncio.create_task(node.call("ADD", "web", "c2"))
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[0], CniError) == given_up and not isinstance(results[1], BaseException)
        (endpoint,) = store.of(WorkloadEndpoint)
        index = node.wiring.interfaces[endpoint.interface_name]
        await node.call("DEL", "web", "c1")
        assert (
            await node.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]})
        ) is None
        await node.pods.close()
        assert endpoint.container_id == "c2" and node.wiring.interfaces == {endpoint.interface_name: index}
        assert index == node.wiring.last, "made after the other"
        await node.call("DEL", "web", "c2")
        await node.pods.close()
        nothing_left(node)
        await node.close()

    runner.run(main())


@pytest.mark.parametrize("too_late", [False, True])
def test_an_add_again_that_fails_leaves_the_pod_as_it_was_or_nothing(
    store: Store, runner: asyncio.Runner, too_late: bool
) -> None:
    async def main() -> None:
        node = Node(store)
        first = await node.call("ADD")
        node.wiring.wrong = ["the container has no default route"]
        node.wiring.refusal, node.wiring.too_late = KernelError(16, "", "the bridge"), too_late
        with pytest.raises(CniError, match="the bridge"):
            await node.call("ADD")
        await node.pods.close()
        if too_late:
            nothing_left(node)
        else:
            assert len(store.of(WorkloadEndpoint)) == len(node.wiring.interfaces) == 1
        node.wiring.refusal = None
        assert (await node.call("ADD"))["ips"] == first["ips"] or too_late
        await node.close()

    runner.run(main())


class Api:
    """The Kubernetes API, which knows one pod."""

    def __init__(self, answer: JsonObject | StoreError | None) -> None:
        self.answer = answer
        self.asked = 0

    async def namespace(self, name: str) -> None:
        assert name == "shop"
        if isinstance(self.answer, StoreError):
            raise self.answer

    async def pod(self, namespace: str, name: str) -> JsonObject | None:
        assert (namespace, name) == ("shop", "web")
        self.asked += 1
        if isinstance(self.answer, StoreError):
            raise self.answer
        return self.answer


def pod_of(app: str) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": app}},
        "spec": {
            "serviceAccountName": "robot",
            "containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
    }


NETCONF = {"args": {"cni": {"labels": [{"key": "app", "value": "netconf"}]}}}


@pytest.mark.parametrize(
    ("applied", "netconf", "api", "label", "asked"),
    [
        (True, True, True, "applied", 0),
        (True, False, True, "applied", 0),
        (False, True, True, "netconf", 1),
        (False, True, False, "netconf", 1),
        (False, False, True, "api", 1),
    ],
)
def test_whose_labels_count(
    store: Store, runner: asyncio.Runner, applied: bool, netconf: bool, api: bool, label: str, asked: int
):
    """A manifest that was applied, then the network configuration, then the Kubernetes API; the service account and named
    ports, which a network configuration cannot say, are the API's under its labels too."""

    async def main() -> None:
        if applied:
            value = parse_manifest(pod_of("applied"))
            store.items[value.key] = (value, "0")
        node = Node(store)
        source = Api(pod_of("api") if api else None)
        node.pods.who.api = source
        await node.call("ADD", **(NETCONF if netconf else {}))
        (endpoint,) = store.of(WorkloadEndpoint)
        assert endpoint.labels.get("app") == label
        assert source.asked == asked
        known = applied or api
        assert endpoint.service_account_name == ("robot" if known else "")
        # whoever writes an account's Profile may do so later
        namespace = endpoint.namespace
        assert endpoint.profiles == (f"kns.{namespace}", *((f"ksa.{namespace}.robot",) if known else ()))
        assert [(port.name, port.port) for port in endpoint.ports] == ([("http", 8080)] if known else [])
        await node.close()

    runner.run(main())


def test_an_endpoint_that_was_applied_says_what_it_has_and_the_api_the_rest(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        node.pods.who.api = Api(pod_of("api"))
        await node.call("ADD")
        ((key, (made, _)),) = [each for each in store.items.items() if each[0].kind == WorkloadEndpoint.kind]
        await node.call("DEL")
        manifest = json.loads(json.dumps(made.manifest))
        for name in ("containerID", "ipNetworks", "interfaceName", "mac", "serviceAccountName", "ports", "profiles"):
            manifest["spec"].pop(name, None)
        manifest["metadata"]["labels"] = {"app": "endpoint"}
        store.items[key] = applied = parse_manifest(manifest), "0"
        node.pods.update(Update(key, applied[0]))
        await node.call("ADD")
        (endpoint,) = store.of(WorkloadEndpoint)
        assert endpoint.labels["app"] == "endpoint"
        assert endpoint.service_account_name == "robot"
        assert [port.name for port in endpoint.ports] == ["http"]
        await node.close()

    runner.run(main())


async def is_tried_again(node: Node, words: str) -> None:
    """An ADD is refused with code 11, and leaves nothing."""
    with pytest.raises(CniError, match=words) as raised:
        await node.call("ADD")
    assert raised.value.code == 11
    nothing_left(node)


def test_a_pod_nobody_knows_is_tried_again(store: Store, runner: asyncio.Runner):
    """Without its labels no policy would select it, and all would pass."""

    async def main() -> None:
        node = Node(store)
        node.pods.who.api = Api(None)
        await is_tried_again(node, "knows no pod shop/web")
        await node.close()

    runner.run(main())


def test_a_namespace_whose_labels_cannot_be_had_is_tried_again(store: Store, runner: asyncio.Runner):
    """Without them its pods may get another pool's addresses, and policies by namespace would not select them."""

    class Silent(Api):
        async def namespace(self, name: str) -> None:
            raise StoreError(f"the Kubernetes API cannot be asked for {name}")

    async def main() -> None:
        node = Node(store)
        node.pods.who.api = Silent(pod_of("api"))
        await is_tried_again(node, "cannot be asked for shop")
        manifest: JsonObject = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
        known = parse_manifest(manifest)
        node.pods.update(Update(known.key, known))
        await node.call("ADD")  # nobody needs to be asked
        await node.close()

    runner.run(main())


def test_an_api_that_does_not_answer_is_tried_again(store: Store, runner: asyncio.Runner):
    async def main() -> None:
        node = Node(store)
        node.pods.who.api = Api(StoreError("the Kubernetes API does not answer"))
        await is_tried_again(node, "does not answer")
        await node.close()

    runner.run(main())
