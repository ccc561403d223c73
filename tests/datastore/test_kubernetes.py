"""The Kubernetes API as a source, against a stand-in that speaks its protocol over real TLS."""

from __future__ import annotations

import asyncio
import base64
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from routed import values
from routed.datastore import kubernetes
from routed.datastore.kubeconfig import load_kubeconfig
from routed.datastore.kubernetes import ENDPOINT_SLICES, NAMESPACES, SERVICES, KubernetesSource, pods_of
from routed.datastore.saved import Identity, SavedState
from routed.errors import ConfigError, StoreError
from routed.model.kubernetes import Pod
from routed.model.resources import JsonObject, Resource, ResourceKey, Update
from routed.model.schema import parse_manifest
from tests.datastore.kubernetes_api import TOKEN, KubernetesApi, make_certificates
from tests.ports import free_port


@values.dataclass(frozen=True, slots=True, kw_only=True)
class Thing(Resource):
    """Any object of the API."""

    kind: ClassVar[str] = "Thing"
    spec: str = ""


def parse(manifest: JsonObject) -> Resource:
    if manifest.get("spec") == "wrong":
        raise ConfigError("spec", "is wrong")
    metadata = manifest["metadata"]
    assert isinstance(metadata, dict) and manifest["apiVersion"]
    return Thing(name=str(metadata["name"]), spec=str(manifest.get("spec")))


@dataclass
class Listener:
    """What a sink was told, and what follows from it."""

    heard: list[Update] = field(default_factory=list)

    def update(self, update: Update) -> None:
        self.heard.append(update)

    @property
    def state(self) -> dict[str, str]:
        found = {}
        for update in self.heard:
            assert isinstance(update.value, Thing | None)
            found[f"{update.key.kind} {update.key.namespace}/{update.key.name}"] = update.value
        return {key: value.spec for key, value in found.items() if value is not None}


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 15
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


def kubeconfig(folder: Path, port: int, user: dict[str, Any] | None = None, **cluster: Any) -> str:
    path = folder / f"kubeconfig-{port}"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [
                    {
                        "name": "k",
                        "cluster": {
                            "server": f"https://127.0.0.1:{port}/",
                            "certificate-authority": "ca.pem",
                            **cluster,
                        },
                    }
                ],
                "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
            }
        )
    )
    return str(path)


Scenario = Callable[[KubernetesApi, KubernetesSource, Listener], Awaitable[None]]


@pytest.fixture
def play(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    monkeypatch.setattr(kubernetes, "RETRY", 0.01)

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with KubernetesApi(certificates) as api:
                api.objects = {SERVICES.path: {}, ENDPOINT_SLICES.path: {}}
                for number in range(7):
                    await api.put(SERVICES.path, "default", f"s{number}", spec="one")
                source = KubernetesSource(
                    load_kubeconfig(kubeconfig(certificates, api.port)), (SERVICES, ENDPOINT_SLICES), parse
                )
                listener = Listener()
                task = asyncio.create_task(source.run(listener))
                await asyncio.wait_for(source.in_sync.wait(), 30)
                await scenario(api, source, listener)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(main())

    return run


def test_pages_then_changes(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        assert listener.state == {f"Service default/s{number}": "one" for number in range(7)}
        await api.put(SERVICES.path, "default", "s0", spec="two")
        await api.put(SERVICES.path, "other", "s0", spec="new")
        await api.delete(SERVICES.path, "default", "s1")
        await api.put(ENDPOINT_SLICES.path, "default", "e", spec="slice")
        gone = Update(ResourceKey("Service", "s1", "default"), None)
        await until(
            lambda: "EndpointSlice default/e" in listener.state and gone in listener.heard, "the changes arrive"
        )
        assert len(listener.state) == 8
        assert listener.state["Service default/s0"] == "two" and listener.state["Service other/s0"] == "new"
        assert listener.state["EndpointSlice default/e"] == "slice"
        assert source.problems == ()

    play(scenario)


def test_an_api_that_goes_away_deletes_nothing_and_is_found_again(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        before, heard = listener.state, len(listener.heard)
        api.refuse = 503
        api.hang_up()
        await until(lambda: "503" in " ".join(source.problems), "it is noticed")
        await api.put(SERVICES.path, "default", "s0", spec="meanwhile")
        assert listener.state == before and len(listener.heard) == heard
        api.refuse = 0
        await until(lambda: listener.state["Service default/s0"] == "meanwhile", "it goes on where it was")
        assert len(listener.heard) == heard + 1
        await until(lambda: not source.problems, "the problem is over")

    play(scenario)


def test_an_api_that_takes_requests_and_is_silent_is_told_and_asked_again(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kubernetes, "ANSWER", 0.5)

    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        before = listener.state
        api.answers.clear()
        api.hang_up()
        await until(lambda: "it does not answer" in str(source.problems), "it is told")
        await api.put(SERVICES.path, "default", "s0", spec="meanwhile")
        assert listener.state == before
        api.answers.set()
        await until(lambda: listener.state["Service default/s0"] == "meanwhile", "it is asked again")
        await until(lambda: not source.problems, "the problem is over")

    play(scenario)


def test_a_watch_too_old_is_listed_anew_and_only_differences_are_told(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        heard, lists = len(listener.heard), api.lists
        api.refuse = 503
        api.hang_up()
        await until(lambda: bool(source.problems), "it is cut off")
        await api.put(SERVICES.path, "default", "s2", spec="two")
        await api.delete(SERVICES.path, "default", "s3")
        api.forget()
        api.refuse = 0
        await until(lambda: "Service default/s3" not in listener.state, "the deletion is found")
        await until(lambda: listener.state["Service default/s2"] == "two", "the change is found")
        assert api.lists > lists and len(listener.heard) == heard + 2

    play(scenario)


def test_what_the_api_said_is_there_at_the_next_start(certificates: Path, tmp_path: Path):
    """Also where the API is away then; and what it says once it is back counts alone."""

    def service(name: str, address: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": "default"}, "spec": {"clusterIP": address}}

    async def main() -> None:
        async with KubernetesApi(certificates) as api:
            access = load_kubeconfig(kubeconfig(certificates, api.port))

            def source(node: str = "n1") -> KubernetesSource:
                saved = SavedState(str(tmp_path / "saved"), Identity(node, "kubernetes", (access.server,)))
                return KubernetesSource(access, (SERVICES, ENDPOINT_SLICES), parse_manifest, saved=saved)

            def names(of: list[Update]) -> dict[str, bool]:
                return {update.key.name: update.value is not None for update in of}

            api.objects = {SERVICES.path: {}, ENDPOINT_SLICES.path: {}}
            await api.put(SERVICES.path, "default", "a", **service("a", "10.96.0.1"))
            await api.put(SERVICES.path, "default", "b", **service("b", "10.96.0.2"))
            first, listener = source(), Listener()
            first.begin(listener)
            assert listener.heard == [], "nothing was saved"
            task = asyncio.create_task(first.run(listener))
            await asyncio.wait_for(first.in_sync.wait(), 30)
            await api.put(SERVICES.path, "default", "c", **service("c", "10.96.0.3"))
            await api.delete(SERVICES.path, "default", "a")
            await until(lambda: names(listener.heard) == {"a": False, "b": True, "c": True}, "all is heard")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

            listener = Listener()
            source("another").begin(listener)
            assert listener.heard == [], "it is another node's"
            again = source()
            again.begin(listener)
            assert names(listener.heard) == {"b": True, "c": True}, "whether the API answers or not"
            assert not again.in_sync.is_set()
            await api.delete(SERVICES.path, "default", "b")
            task = asyncio.create_task(again.run(listener))
            await asyncio.wait_for(again.in_sync.wait(), 30)
            assert names(listener.heard[2:]) == {"b": False}, "only what is different is told"
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_of_pods_only_the_node_s_own_are_asked_for_and_only_who_they_are(certificates: Path, tmp_path: Path):
    """A kubelet tells of a pod's containers again and again; and what a pod was is nothing for the next start."""
    pods = pods_of("n1")

    def spec(node: str) -> dict[str, Any]:
        return {"nodeName": node, "serviceAccountName": "robot", "containers": [{"name": "main", "image": "main:1"}]}

    async def main() -> None:
        async with KubernetesApi(certificates) as api:
            api.objects = {pods.path: {}}
            for name, node in (("a", "n1"), ("b", "n2"), ("c", "n1"), ("d", "n1"), ("e", "n1")):
                await api.put(pods.path, "shop", name, {"app": name}, spec=spec(node), status={"phase": "Pending"})
            access = load_kubeconfig(kubeconfig(certificates, api.port))
            state = str(tmp_path / "saved")

            def source() -> KubernetesSource:
                saved = SavedState(state, Identity("n1", "kubernetes", (access.server,)))
                return KubernetesSource(access, (pods,), parse_manifest, saved=saved)

            first, listener = source(), Listener()
            task = asyncio.create_task(first.run(listener))
            await asyncio.wait_for(first.in_sync.wait(), 60)
            assert [each.key.name for each in listener.heard] == ["a", "c", "d", "e"], "in two pages"
            await api.put(pods.path, "shop", "a", {"app": "a"}, spec=spec("n1"), status={"phase": "Running"})
            await api.put(pods.path, "shop", "b", {"app": "x"}, spec=spec("n2"), status={"phase": "Running"})
            await api.put(pods.path, "shop", "c", {"app": "x"}, spec=spec("n1"), status={"phase": "Running"})
            await until(lambda: len(listener.heard) > 4, "a label is another one")
            changed = listener.heard[4].value
            assert isinstance(changed, Pod) and (changed.name, changed.labels) == ("c", {"app": "x"})
            api.forget()
            api.hang_up()
            await api.put(pods.path, "shop", "e", {"app": "y"}, spec=spec("n1"))
            await until(lambda: len(listener.heard) > 5, "it is found after all")
            assert [each.key.name for each in listener.heard[5:]] == ["e"]
            assert all("fieldSelector=spec.nodeName%3Dn1" in each for each in api.asked)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            listener = Listener()
            source().begin(listener)
            assert listener.heard == []

    asyncio.run(main())


def test_who_may_not_list_pods_is_told_what_it_takes_and_gets_the_rest(certificates: Path):
    async def main() -> None:
        async with KubernetesApi(certificates) as api:
            pods = pods_of("n1")
            api.objects = {SERVICES.path: {}, pods.path: {}}
            api.denied.add(pods.path)
            await api.put(SERVICES.path, "default", "a", spec="one")
            access = load_kubeconfig(kubeconfig(certificates, api.port))
            source, listener = KubernetesSource(access, (SERVICES, pods), parse), Listener()
            task = asyncio.create_task(source.run(listener))
            await until(lambda: bool(source.problems and listener.state), "the services come")
            (problem,) = source.problems
            assert "must be allowed to list and watch /api/v1/pods" in problem and "reach no policy" in problem
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_an_error_in_the_watch_itself(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        lists = api.lists
        await api.say(SERVICES.path, "ERROR", {"code": 410, "message": "too old"})
        await until(lambda: api.lists > lists, "it lists anew")
        assert source.problems == ()
        assert len(listener.state) == 7

    play(scenario)


def test_an_api_that_forgets_its_own_lists_at_once_is_told_and_not_besieged(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        lists, api.oldest = api.lists, 1 << 30
        await api.say(SERVICES.path, "ERROR", {"code": 410, "message": "too old"})
        await until(lambda: any("listed again and again" in each for each in source.problems), "it is told")
        assert api.lists - lists <= 4, "each after a pause"
        assert len(listener.state) == 7
        api.oldest = 0
        await until(lambda: source.problems == (), "it is over")

    play(scenario)


def test_an_object_that_cannot_be_read_keeps_its_last_value(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        await api.put(SERVICES.path, "default", "s0", spec="wrong")
        await until(lambda: bool(source.problems), "it is said")
        assert "Service default/s0" in source.problems[0] and "last good state" in source.problems[0]
        assert listener.state["Service default/s0"] == "one"
        await api.put(SERVICES.path, "default", "s0", spec="right")
        await until(lambda: not source.problems, "it is right again")

    play(scenario)


def test_nonsense_in_a_watch_is_survived(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, listener: Listener) -> None:
        for what, found in (("ADDED", []), ("ADDED", {}), ("ADDED", {"metadata": 3}), ("BOOKMARK", {"metadata": {}})):
            await api.say(SERVICES.path, what, found)
        await api.put(SERVICES.path, "default", "last", spec="one")
        await until(lambda: "Service default/last" in listener.state, "what comes after is heard")
        assert len(source.problems) <= 1  # of the event that was no object

    play(scenario)


def test_one_object(play: Callable[[Scenario], None]):
    async def scenario(api: KubernetesApi, source: KubernetesSource, _: Listener) -> None:
        api.objects["/api/v1/pods"] = {"default/web": {"metadata": {"name": "web", "labels": {"a": "b"}}}}
        found = await source.get("/api/v1/namespaces/default/pods/web")
        assert found is not None and found["metadata"] == {"name": "web", "labels": {"a": "b"}}
        assert await source.get("/api/v1/namespaces/default/pods/none") is None
        api.refuse = 500
        with pytest.raises(StoreError, match="500"):
            await source.get("/api/v1/namespaces/default/pods/web")

    play(scenario)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def first_problem(source: KubernetesSource) -> str:
    task = asyncio.create_task(source.run(Listener()))
    await until(lambda: bool(source.problems), "it fails")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return source.problems[0]


def test_without_the_right_to_ask(certificates: Path, caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        async with KubernetesApi(certificates) as api:
            access = load_kubeconfig(kubeconfig(certificates, api.port, {"token": TOKEN + "x"}))
            told: list[tuple[str, bool]] = []
            problem = await first_problem(
                KubernetesSource(access, (SERVICES,), parse, lambda text, wrong: told.append((text, wrong)))
            )
            assert told == [(problem, True)]
            assert "401" in problem and SERVICES.path in problem
            assert TOKEN not in problem + repr(access) + caplog.text

    with caplog.at_level(logging.DEBUG):
        run(main())


def test_a_server_with_another_certificate_is_not_trusted(certificates: Path, tmp_path: Path):
    make_certificates(tmp_path)

    async def main() -> None:
        async with KubernetesApi(tmp_path) as api:
            access = load_kubeconfig(kubeconfig(certificates, api.port))
            problem = await first_problem(KubernetesSource(access, (SERVICES,), parse))
            assert "CERTIFICATE_VERIFY_FAILED" in problem

    run(main())


def test_an_object_that_the_watch_has_not_told_of_yet(certificates: Path):
    async def main() -> None:
        async with KubernetesApi(certificates) as api:
            await api.put(NAMESPACES.path, "", "shop", {"team": "a"})
            access = load_kubeconfig(kubeconfig(certificates, api.port))
            source, listener = KubernetesSource(access, (NAMESPACES,), parse_manifest), Listener()
            for name in ("none", "shop", "shop"):
                await source.know(NAMESPACES, name, listener)
            assert [str(each.key) for each in listener.heard] == ["Namespace shop"]
            task = asyncio.create_task(source.run(listener))
            async with asyncio.timeout(60):
                await source.in_sync.wait()
            assert len(listener.heard) == 1  # the list says what is known
            await api.delete(NAMESPACES.path, "", "shop")
            await until(lambda: [each.value for each in listener.heard][1:] == [None], "it goes")
            api.refuse = 503
            with pytest.raises(StoreError, match="503"):
                await source.know(NAMESPACES, "late", listener)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


@pytest.mark.parametrize("inline", [False, True])
def test_client_certificates(certificates: Path, inline: bool):
    async def main() -> None:
        user: dict[str, Any] = {"client-certificate": "client.pem", "client-key": "client.key"}
        cluster = {}
        if inline:
            user = {
                f"{key}-data": base64.b64encode((certificates / name).read_bytes()).decode()
                for key, name in user.items()
            }
            data = base64.b64encode((certificates / "ca.pem").read_bytes()).decode()
            cluster = {"certificate-authority": "", "certificate-authority-data": data}
        async with KubernetesApi(certificates, client_certificates=True) as api:
            api.objects[SERVICES.path] = {}
            access = load_kubeconfig(kubeconfig(certificates, api.port, user, **cluster))
            source = KubernetesSource(access, (SERVICES,), parse)
            task = asyncio.create_task(source.run(Listener()))
            await asyncio.wait_for(source.in_sync.wait(), 30)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_certificates_that_are_renewed_on_disk_need_no_restart(tmp_path: Path):
    """As kubelet and cert-manager renew them: the old ones are of no use from some day on."""
    (tmp_path / "new").mkdir()
    make_certificates(tmp_path)
    make_certificates(tmp_path / "new")
    path = "/api/v1/namespaces/default/services/s"
    user = {"client-certificate": "client.pem", "client-key": "client.key"}

    port = free_port()

    def renew(*names: str) -> None:
        for name in names:
            shutil.copy(tmp_path / "new" / name, tmp_path / "next")
            (tmp_path / "next").replace(tmp_path / name)

    async def main() -> None:
        source = KubernetesSource(load_kubeconfig(kubeconfig(tmp_path, port, user)), (SERVICES,), parse)
        async with KubernetesApi(tmp_path, client_certificates=True, port=port):
            assert await source.get(path) is None
            renew("client.pem")  # before its key: what was read before still lets us in
            assert await source.get(path) is None
            assert "and client-key are not a certificate in PEM and its key; what was read" in source.problems[0]
            renew("client.key")
        async with KubernetesApi(tmp_path / "new", client_certificates=True, port=port):
            with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
                await source.get(path)  # the authority is still the old one
            assert source.problems == ()
            renew("ca.pem")
            assert await source.get(path) is None

    run(main())


def test_a_token_in_a_file_is_read_when_it_is_needed(certificates: Path, tmp_path: Path):
    (tmp_path / "token").write_text("first\n")
    access = load_kubeconfig(kubeconfig(certificates, 1, {"tokenFile": str(tmp_path / "token")}))
    assert access.authorization() == {"Authorization": "Bearer first"}
    (tmp_path / "token").write_text("second")
    assert access.authorization() == {"Authorization": "Bearer second"}
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="cannot read the token"):
        access.authorization()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"current-context": ""}, "current-context: is not set"),
        ({"current-context": "x"}, "contexts: there is no 'x'"),
        ({"clusters": []}, "clusters: there is no 'k'"),
        ({"users": 3}, "users: there is no 'u'"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "x"}}}]}, "users.u.exec: is not supported"),
        ({"users": [{"name": "u", "user": {"username": "a", "password": "b"}}]}, "username: is not supported"),
        ({"users": [{"name": "u", "user": {"client-certificate": "ca.pem"}}]}, "must be given together"),
        ({"users": [{"name": "u", "user": {"client-certificate-data": "!", "client-key-data": "!"}}]}, "is not base64"),
        ({"clusters": [{"name": "k", "cluster": {"server": "ftp://x"}}]}, "must be an http or https address"),
        ({"clusters": [{"name": "k", "cluster": {}}]}, "server: is required"),
        ({"clusters": [{"name": "k", "cluster": {"server": "https://x", "certificate-authority": "no"}}]}, "cannot read no"),
        ({"clusters": [{"name": "k", "cluster": {"server": "https://x", "proxy-url": "http://y"}}]}, "proxy-url: is not"),
    ],
)  # fmt: skip
def test_kubeconfigs_that_cannot_be_used(certificates: Path, change: dict[str, Any], words: str):
    path = Path(kubeconfig(certificates, 2))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(ConfigError, match=words) as raised:
        load_kubeconfig(str(path))
    assert str(raised.value).startswith(str(path))


def test_what_is_no_kubeconfig(tmp_path: Path):
    for content in ("[]", "{", "", "\x00"):
        (tmp_path / "file").write_text(content)
        with pytest.raises(ConfigError):
            load_kubeconfig(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot read the kubeconfig"):
        load_kubeconfig(str(tmp_path / "none"))
