"""A running pod's labels at the Kubernetes API, brought into its endpoints: when they are, and when nothing is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from routed.daemon import pod_follower
from routed.daemon.pod_follower import PodFollower
from routed.errors import StoreError
from routed.model.kubernetes import Pod
from routed.model.resources import JsonObject, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.model.workloads import WorkloadEndpoint
from tests.daemon.test_pods import NETCONF, Node, Store, Talk, nothing_left
from tests.datastore.test_etcd import until

WEB = ResourceKey(Pod.kind, "web", "shop")
ENDPOINT = ResourceKey(WorkloadEndpoint.kind, "n1-k8s-web-eth0", "shop")


def pod(name: str = "web", account: str = "robot", port: int = 8080, **labels: str) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {**labels}},
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": account,
            "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": port}]}],
        },
    }


class Api:
    """What the API answers who asks it; what its watch says is told by `Followed.says`."""

    def __init__(self) -> None:
        self.pods: dict[str, JsonObject] = {}
        self.asked = 0
        self.error = ""

    async def namespace(self, name: str) -> None:
        pass

    async def pod(self, namespace: str, name: str) -> JsonObject | None:
        await asyncio.sleep(0)
        self.asked += 1
        if self.error:
            raise StoreError(self.error)
        assert namespace == "shop"
        return self.pods.get(name)


class Followed(Node):
    """A node on a store, and the API it follows."""

    def __init__(self, store: Store, api: Api) -> None:
        super().__init__(store)
        self.api = self.pods.who.api = api
        self.not_yet = False
        self.follower = PodFollower(
            "n1",
            self.pods,
            api.pod,
            lambda: self.not_yet,
            lambda _, __, text: self.log.append(text),
            lambda what, error: pytest.fail(f"{what}: {error!r}"),
        )
        self.dataplane.publish = self.follower.update  # type: ignore[method-assign]
        for value, _ in store.items.values():
            self.follower.update(Update(value.key, value))
        self.follower.start()

    def says(self, manifest: JsonObject, *, watched: bool = True) -> None:
        """The API has this pod now, and its watch says so."""
        value = parse_manifest(manifest)
        self.api.pods[value.name] = manifest
        if watched:
            self.follower.told(Update(value.key, value))

    def put(self, manifest: JsonObject) -> None:
        """Somebody else writes this, and whoever follows the datastore says so."""
        value = parse_manifest(manifest)
        self.store.revision += 1
        self.store.items[value.key] = value, str(self.store.revision)
        self.tell(Update(value.key, value))

    def tell(self, update: Update) -> None:
        self.pods.update(update)
        self.follower.update(update)

    def endpoint(self, key: ResourceKey = ENDPOINT) -> WorkloadEndpoint:
        value, _ = self.store.items[key]
        assert isinstance(value, WorkloadEndpoint)
        return value

    def app(self) -> str | None:
        return self.endpoint().labels.get("app")

    async def until_has(self, app: str) -> None:
        await until(lambda: self.app() == app, f"the endpoint has {app}")

    async def done(self) -> None:
        """Whatever was to be looked at has been: pods are, one after the other."""
        self.says(pod("marker", app="1"), watched=False)
        if ResourceKey(WorkloadEndpoint.kind, "n1-k8s-marker-eth0", "shop") not in self.store.items:
            await self.call("ADD", name="marker", container="marker")
        key = ResourceKey(WorkloadEndpoint.kind, "n1-k8s-marker-eth0", "shop")
        mark = f"{int(self.endpoint(key).labels['app']) + 1}"
        self.says(pod("marker", app=mark))
        await until(lambda: self.endpoint(key).labels["app"] == mark, "the last one was looked at")

    async def close(self) -> None:
        await self.follower.stop()
        await super().close()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Followed], Awaitable[None]]], None]:
    monkeypatch.setattr(pod_follower, "RETRY", 0.01)

    def run(scenario: Callable[[Followed], Awaitable[None]]) -> None:
        async def main() -> None:
            store = Store()
            spec: JsonObject = {"cidr": "10.65.0.0/24", "blockSize": 30}
            head: JsonObject = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "v4"}}
            pool = parse_manifest(head | {"spec": spec})
            store.items[pool.key] = (pool, "0")
            node = Followed(store, Api())
            node.says(pod(app="first"))
            try:
                await scenario(node)
            finally:
                await node.close()

        asyncio.run(main())

    return run


Play = Callable[[Callable[[Followed], Awaitable[None]]], None]


def changed(endpoint: WorkloadEndpoint, **labels: str) -> JsonObject:
    """Its manifest with other labels beside those it has."""
    manifest: Any = json.loads(json.dumps(endpoint.manifest))
    manifest["metadata"]["labels"] |= labels
    made: JsonObject = manifest
    return made


def test_a_label_that_changes_reaches_every_interface_of_the_pod(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        await node.call("ADD", interface="net1")
        second = ResourceKey(WorkloadEndpoint.kind, "n1-k8s-web-net1", "shop")
        before = node.endpoint()
        assert before.labels["app"] == "first"
        node.says(pod(app="second", tier="a"))
        await until(lambda: node.endpoint(second).labels.get("app") == "second", "the second has it")
        await node.until_has("second")
        after = node.endpoint()
        assert after.labels == {
            "app": "second", "tier": "a", "projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s",
        }  # fmt: skip
        assert (after.ip_networks, after.mac, after.container_id) == (before.ip_networks, before.mac, "c1")
        assert (after.service_account_name, after.profiles, after.ports) == ("robot", before.profiles, before.ports)
        node.says(pod(app="second"))
        await until(lambda: "tier" not in node.endpoint().labels, "a label is gone")

    play(scenario)


def test_account_and_ports_of_a_pod_the_api_hears_of_late(play: Play):
    """Its labels are the call's, and stay."""

    async def scenario(node: Followed) -> None:
        node.api.pods.clear()
        await node.call("ADD", **NETCONF)
        assert (node.endpoint().service_account_name, node.endpoint().ports) == ("", ())
        node.says(pod(app="api", account="clerk", port=8081))
        await until(lambda: node.endpoint().service_account_name == "clerk", "the account")
        found = node.endpoint()
        assert found.profiles == ("kns.shop", "ksa.shop.clerk")
        assert [(each.name, each.protocol, each.port) for each in found.ports] == [("http", 6, 8081)]
        assert found.labels["app"] == "netconf"

    play(scenario)


def test_labels_of_a_pod_in_the_datastore_stay_until_it_is_there_no_more(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        value = parse_manifest(pod(app="stored"))
        node.put(pod(app="stored"))
        node.says(pod(app="second"))
        await node.done()
        assert node.app() == "first"  # policies go by the Pod that is stored
        del node.store.items[value.key]
        node.tell(Update(value.key, None))
        await node.until_has("second")

        node.put(pod("early", app="stored"))
        node.says(pod("early", app="api"))
        await node.call("ADD", name="early", container="c2")
        early = parse_manifest(pod("early")).key
        del node.store.items[early]
        node.tell(Update(early, None))
        await node.done()
        key = ResourceKey(WorkloadEndpoint.kind, "n1-k8s-early-eth0", "shop")
        assert node.endpoint(key).labels["app"] == "stored"

    play(scenario)


def test_labels_of_an_endpoint_that_was_applied_stay_and_so_does_one_nobody_marked(play: Play):
    async def scenario(node: Followed) -> None:
        spec: JsonObject = {"orchestrator": "k8s", "node": "n1", "pod": "web", "endpoint": "eth0"}
        metadata: JsonObject = {"name": ENDPOINT.name, "namespace": "shop", "labels": {"app": "applied"}}
        head: JsonObject = {"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint"}
        node.put({**head, "metadata": metadata, "spec": spec})
        await node.call("ADD")
        node.says(pod(app="second", account="clerk"))
        await until(lambda: node.endpoint().service_account_name == "clerk", "what it did not say")
        assert node.app() == "applied"
        # as Calico's plugin, or a routed that did not follow, has written it
        manifest = changed(node.endpoint())
        assert isinstance(manifest["metadata"], dict)
        del manifest["metadata"]["annotations"]
        node.put(manifest)
        node.says(pod(app="third", account="waiter"))
        await node.done()
        assert (node.app(), node.endpoint().service_account_name) == ("applied", "clerk")

    play(scenario)


def test_calico_s_controllers_may_do_the_same(play: Play):
    """What they have written is not written again, and the label they add stays, with the account there is."""

    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        node.put(changed(node.endpoint(), **{"projectcalico.org/serviceaccount": "robot"}))
        node.says(pod(app="second"), watched=False)
        node.put(changed(node.endpoint(), app="second"))  # they have heard of it before us
        theirs = node.store.items[ENDPOINT]
        await node.done()
        node.says(pod(app="second"))
        await node.done()
        assert node.store.items[ENDPOINT] == theirs
        node.says(pod(app="third", account="clerk"))
        await node.until_has("third")
        assert node.endpoint().labels["projectcalico.org/serviceaccount"] == "clerk"

    play(scenario)


def test_a_watch_that_is_behind_undoes_nothing(play: Play):
    """An ADD, or Calico's controllers, were told of a change before it was."""

    async def scenario(node: Followed) -> None:
        node.says(pod(app="second"), watched=False)
        await node.call("ADD")
        written = node.store.items[ENDPOINT][1]
        assert node.app() == "second"
        await node.done()
        assert (node.app(), node.store.items[ENDPOINT][1]) == ("second", written)

    play(scenario)


def test_what_changes_while_the_add_is_under_way_is_in_the_endpoint_soon(play: Play):
    async def scenario(node: Followed) -> None:
        class Slow(Talk):
            async def sysctls_written(self) -> None:
                node.says(pod(app="second"))

        class Early(Talk):
            async def begin_sysctls(self, values: Any) -> None:
                await super().begin_sysctls(values)
                node.says(pod(app="third"))

        await node.call("ADD", talk=Slow())
        await node.until_has("second")
        await node.call("DEL")
        await node.call("ADD", talk=Early())
        await node.until_has("third")

    play(scenario)


def test_a_pod_that_is_gone_from_the_api_keeps_what_it_has(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        written = node.store.items[ENDPOINT][1]
        node.api.pods.clear()
        node.follower.told(Update(WEB, None))
        await node.done()
        # and where it goes between the word of its change and the question
        node.follower.told(Update(WEB, parse_manifest(pod(app="second"))))
        await node.done()
        assert node.store.items[ENDPOINT][1] == written
        await node.call("DEL")
        node.says(pod(app="third"))
        await node.done()
        assert ENDPOINT not in node.store.items

    play(scenario)


def test_an_api_or_a_datastore_that_is_away_is_told_and_tried_again(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        node.api.error = "the Kubernetes API refuses it: 403 Forbidden"
        node.says(pod(app="second"))
        await until(lambda: bool(node.follower.problems), "it is told")
        (problem,) = node.follower.problems
        assert "shop/web" in problem and "403" in problem and node.app() == "first"
        node.api.error = ""
        await node.until_has("second")
        await until(lambda: node.follower.problems == (), "it is over")
        node.store.broken = 0
        node.says(pod(app="third"))
        await until(lambda: any("the store is gone" in each for each in node.follower.problems), "it is told")
        node.store.broken = -1
        await node.until_has("third")
        await until(lambda: node.follower.problems == (), "it is over")

    play(scenario)


def test_nothing_is_written_before_the_datastore_was_read(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        asked, node.not_yet = node.api.asked, True
        node.says(pod(app="second"))
        await until(lambda: not node.follower._due.is_set(), "it has been looked at")
        assert (node.app(), node.api.asked) == ("first", asked)
        node.not_yet = False
        await node.until_has("second")

    play(scenario)


def test_a_daemon_that_starts_again_knows_what_is_the_api_s_to_say(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        await node.call("ADD", name="fixed", container="c2", **NETCONF)
        node.says(pod("fixed", app="api"))
        fixed = ResourceKey(WorkloadEndpoint.kind, "n1-k8s-fixed-eth0", "shop")
        again = Followed(node.store, node.api)
        again.says(pod("fixed", app="api"))
        again.says(pod(app="second"))
        await again.until_has("second")
        await again.done()
        assert again.endpoint(fixed).labels["app"] == "netconf"
        await again.close()

    play(scenario)


def test_what_somebody_else_writes_at_the_same_time_stays(play: Play):
    async def scenario(node: Followed) -> None:
        await node.call("ADD")
        manifest: Any = changed(node.endpoint())
        manifest["metadata"]["annotations"]["theirs"] = "kept"
        value = parse_manifest(manifest)
        node.store.items[ENDPOINT] = value, "theirs"  # which nobody has told us of yet
        node.says(pod(app="second"))
        await node.until_has("second")
        found: Any = node.endpoint().manifest
        assert found["metadata"]["annotations"]["theirs"] == "kept"

    play(scenario)


def test_a_node_the_api_calls_otherwise_is_told(play: Play):
    """Its pods would be asked for by a name no pod is of."""

    async def scenario(node: Followed) -> None:
        manifest: Any = pod(app="first")
        manifest["spec"]["nodeName"] = "n1.example.com"
        node.says(manifest, watched=False)
        await node.call("ADD")
        assert '"n1.example.com", and nodeName here is "n1"' in node.pods.who.problem
        node.says(pod("other", app="first"))
        await node.call("ADD", name="other", container="c2")
        assert node.pods.who.problem == ""

    play(scenario)


def test_many_pods_are_one_question_each(play: Play):
    async def scenario(node: Followed) -> None:
        names = [f"p{number}" for number in range(20)]
        for name in names:
            node.says(pod(name, app="first"))
            await node.call("ADD", name=name, container=name)
        asked = node.api.asked
        for name in names:
            for app in ("second", "third"):
                node.says(pod(name, app=app))
        keys = [ResourceKey(WorkloadEndpoint.kind, f"n1-k8s-{name}-eth0", "shop") for name in names]
        await until(lambda: all(node.endpoint(key).labels["app"] == "third" for key in keys), "all have it")
        assert node.api.asked == asked + len(names)

    play(scenario)


def test_pods_come_and_go_while_their_labels_change(play: Play):
    """No call fails for it, and nothing is written of a pod that is gone."""

    async def scenario(node: Followed) -> None:
        over = asyncio.Event()

        async def flip() -> None:
            number = 0
            while not over.is_set():
                number += 1
                for each in list(node.api.pods):
                    node.says(pod(each, app=f"v{number}"))
                await asyncio.sleep(0)

        async def live(name: str) -> None:
            node.says(pod(name, app="v0"))
            for _ in range(5):
                await node.call("ADD", name=name, container=name)
                await node.call("DEL", name=name, container=name)

        flipping = asyncio.create_task(flip())
        await asyncio.gather(*(live(f"p{number}") for number in range(8)))
        over.set()
        await flipping
        await node.done()
        await node.call("DEL", name="marker", container="marker")
        await node.settled()
        nothing_left(node)

    play(scenario)
