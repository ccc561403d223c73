"""A real etcd that takes nobody without a certificate, and one whose tokens end soon: what works, and what is said."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd import rpc

from routed.datastore import etcd as etcd_module
from routed.datastore.etcd import EtcdStore
from routed.datastore.etcd_settings import EtcdConfig
from routed.datastore.tls import tls_problem
from routed.errors import Denied
from routed.testing.lab import wait_for
from tests.datastore.certificates import Authority
from tests.datastore.etcd_server import PASSWORD, Cluster, P, Proxy, cluster
from tests.datastore.test_etcd import Sink, ctl, follow, node, nodes, until

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


def served(authority: Authority, certificate: tuple[str, str]) -> tuple[str, ...]:
    """etcd's flags."""
    return (
        "--client-cert-auth", "--trusted-ca-file", authority.file, "--cert-file", certificate[0], "--key-file",
        certificate[1],
    )  # fmt: skip


def with_certificate(config: EtcdConfig, certificate: tuple[str, str]) -> EtcdConfig:
    return replace(config, cert_file=certificate[0], key_file=certificate[1])


def denied(config: EtcdConfig) -> str:
    """What is said to who tries."""

    async def attempt() -> str:
        store = EtcdStore(config)
        with pytest.raises(Denied) as refusal:
            await store.read({"Node"})
        await store.close()
        return str(refusal.value)

    return asyncio.run(attempt())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def client(authority: Authority) -> tuple[str, str]:
    return authority.sign("routed")


@pytest.fixture(scope="module")
def secured(folder: Path, authority: Authority, client: tuple[str, str]) -> Iterator[Cluster]:
    flags = served(authority, authority.sign("server"))
    with cluster(folder, 1, flags, ("--cacert", authority.file, "--cert", client[0], "--key", client[1])) as made:
        yield made


@pytest.fixture
def config(secured: Cluster, authority: Authority, client: tuple[str, str]) -> EtcdConfig:
    return with_certificate(EtcdConfig(secured.endpoints, ca_file=authority.file), client)


def test_with_the_right_certificate_it_is_followed_and_written(secured: Cluster, config: EtcdConfig) -> None:
    secured.put_all(nodes(5))

    async def test(store: EtcdStore, sink: Sink) -> None:
        assert sink.names() == {f"n{number}" for number in range(5)}
        await ctl(secured.put, f"{P}nodes/n7", node(7))
        await until(lambda: "n7" in sink.names(), "a change")
        stored = (await store.read({"Node"})).resources
        key = next(key for key in stored if key.name == "n3")
        await store.write(key, None, stored[key].revision)
        await until(lambda: "n3" not in sink.names(), "our own deletion")
        assert not store.health.failures

    follow(EtcdStore(config, node="n1"), test)
    assert tls_problem(config.endpoints[0], config) == "", "nothing is wrong"


def test_two_seconds_a_round_trip_are_no_failure(secured: Cluster, config: EtcdConfig) -> None:
    """TCP, TLS and the first question are four of them."""
    secured.put_all(nodes(3))
    proxy = Proxy(secured.members[0].port)
    proxy.delay = 1.0  # each way

    async def test(store: EtcdStore, sink: Sink) -> None:
        assert len(sink.names()) >= 3 and store.health.failures == 0

    try:
        follow(EtcdStore(replace(config, endpoints=(proxy.endpoint.replace("http:", "https:"),))), test)
    finally:
        proxy.close()


def test_an_authority_that_is_not_etcd_s(config: EtcdConfig, stranger: Authority) -> None:
    said = denied(replace(config, ca_file=stranger.file))
    assert "its certificate is not signed by an authority in datastore.caFile" in said and stranger.file in said
    assert "datastore.caFile, which is not set" in denied(replace(config, ca_file=""))


def test_a_certificate_that_etcd_does_not_take(config: EtcdConfig, authority: Authority, stranger: Authority) -> None:
    assert "it wants a certificate of ours" in denied(replace(config, cert_file="", key_file=""))
    for wrong in (stranger.sign("routed-of-another"), authority.sign("routed-of-last-year", days=-1)):
        said = denied(with_certificate(config, wrong))
        assert "it does not accept our certificate" in said
        assert f"openssl x509 -noout -issuer -dates -in {wrong[0]}" in said


def test_http_for_an_etcd_that_speaks_tls(config: EtcdConfig) -> None:
    plain = tuple(endpoint.replace("https://", "http://") for endpoint in config.endpoints)
    assert "it speaks TLS: use https://" in denied(EtcdConfig(plain))


def test_files_that_do_not_belong_together(config: EtcdConfig, folder: Path, client: tuple[str, str]) -> None:
    other = Authority(folder, "other").sign("other-client")
    said = denied(with_certificate(config, (client[0], other[1])))
    assert "datastore.certFile and datastore.keyFile are no certificate with its key" in said
    empty = folder / "empty.pem"
    empty.write_text("")
    assert "datastore.caFile" in denied(replace(config, ca_file=str(empty)))
    missing = str(folder / "missing.pem")
    assert f"datastore.caFile: cannot read {missing}" in denied(replace(config, ca_file=missing))


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("expired", {"days": -1}, "no longer valid: certificate has expired; renew it"),
        (
            "early",
            {"days": 9000, "starts": "20400101000000Z"},
            "is not valid yet: certificate is not yet valid; is this machine's clock right?",
        ),
        ("elsewhere", {"alternative": "DNS:etcd.example"}, "is for another name"),
    ],
)
def test_a_certificate_of_etcd_s_that_is_wrong(
    tmp_path: Path, config: EtcdConfig, authority: Authority, name: str, how: dict[str, Any], said: str
) -> None:
    made = Cluster(tmp_path, 1, served(authority, authority.sign(name, **how)))
    try:
        made.members[0].start()
        wait_for(lambda: listens(made.members[0].port), 30, "etcd listens")
        assert said in denied(replace(config, endpoints=made.endpoints))
    finally:
        made.stop()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_a_certificate_that_is_renewed_is_used_without_a_restart(
    secured: Cluster,
    config: EtcdConfig,
    authority: Authority,
    client: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    monkeypatch.setattr(etcd_module, "MAX_BACKOFF", 0.3)
    secured.put_all(nodes(2))
    lapsed = authority.sign("renewed", days=-1)

    async def test(store: EtcdStore, sink: Sink) -> None:
        await until(lambda: sink.says("does not accept our certificate", "nothing is known yet"), "the alarm")
        assert not store.health.connected
        for ours, good in zip(lapsed, client, strict=True):
            await asyncio.to_thread(shutil.copy, good, ours)
        await until(lambda: "in sync" in sink.events, "it is in sync")
        await until(lambda: not sink.says("certificate"), "nothing is wrong")

    follow(EtcdStore(with_certificate(config, lapsed), node="n1"), test, wait="")


# ---- tokens


def test_tokens_that_end_are_renewed_for_reading_writing_and_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_module, "BACKOFF", 0.1)
    with cluster(tmp_path, 1, ("--auth-token-ttl", "1")) as server:
        server.put_all(nodes(3))
        server.demand_login()
        password = tmp_path / "password"
        password.write_text(f"{PASSWORD}\n")
        config = EtcdConfig(server.endpoints, username="routed", password_file=str(password))

        async def over(store: EtcdStore) -> None:
            """Until the token in use is worth nothing. Asking renews it, so whoever asks waits longer than it lasts."""
            member = store.client._member
            assert member is not None
            token = member.token
            loop = asyncio.get_running_loop()
            end, pause = loop.time() + 40, 2.0
            while store.client._member is member:
                await asyncio.sleep(pause)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await rpc.KVStub(member.channel).Range(rpc.RangeRequest(key=b"/calico/x"), metadata=member.metadata)
                    assert loop.time() < end, f"the token {len(token)} still counts"
                    continue
                return

        async def test(store: EtcdStore, sink: Sink) -> None:
            await over(store)
            stored = (await store.read({"Node"})).resources
            assert len(stored) == 3
            await over(store)
            key = next(iter(stored))
            await store.write(key, None, stored[key].revision)
            await until(lambda: key not in sink.resources, "our own deletion")
            await over(store)
            await ctl(server.put, f"{P}nodes/n7", node(7))
            await until(lambda: "n7" in sink.names(), "a change, by the watch")
            await until(lambda: not sink.says("refuses us"), "nothing is wrong")
            assert store.health.readings == 1
            assert PASSWORD not in str(sink.open)

        follow(EtcdStore(config, node="n1"), test)
