"""One real etcd in a namespace of a laboratory, on the port everybody knows.

Several members, TLS and trouble on the way are in tests/datastore/etcd_server.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
from pathlib import Path

from routed.testing.lab import Namespace, Process, wait_for
from routed.testing.routers import Json
from tests.datastore.etcd_server import NO_SYNC, P

PEER = "http://127.0.0.1:2380"


class Etcd:
    """`url` is where it is reached, by an `address` of its namespace. It ends with the laboratory, or by `kill`.

    `durable`: as in production, each write is on disk before it is answered.
    """

    def __init__(self, namespace: Namespace, address: str = "127.0.0.1", *, durable: bool = False) -> None:
        self.namespace = namespace
        self.url = f"http://{address}:2379"
        self._options = () if durable else NO_SYNC
        self._process: Process | None = None

    def start(self) -> None:
        """Returns once it answers; what an earlier one of the namespace stored is there."""
        self._process = self.namespace.start(
            "etcd", "etcd", "--data-dir", str(self.namespace.folder / "etcd-data"), "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url, "--listen-peer-urls", PEER, "--initial-advertise-peer-urls", PEER,
            "--initial-cluster", f"default={PEER}", *self._options,
        )  # fmt: skip
        wait_for(self._answers, 30, "etcd is up", state=self.namespace.lab.report)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def back_up(self) -> None:
        self.ctl("snapshot", "save", str(self._backup))
        assert self._backup.exists()

    def restore(self) -> None:
        """Begin again with what was backed up."""
        assert self._process is not None
        self._process.kill()
        data = self.namespace.folder / "etcd-data"
        shutil.rmtree(data)
        self.namespace.run(
            "env", "ETCDCTL_API=3", "etcdctl", "snapshot", "restore", str(self._backup), "--data-dir", str(data)
        )
        self.start()

    @property
    def _backup(self) -> Path:
        return self.namespace.folder / "etcd-backup"

    def hang(self) -> None:
        """It takes connections and what is sent, and does nothing, until `go_on`."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def ctl(self, *words: str, user: str = "") -> str:
        """What etcdctl prints, also where it fails; `user` is `NAME:PASSWORD`."""
        login = (f"--user={user}",) if user else ()
        return self.namespace.run(
            "env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.url}", "--command-timeout=10s", *login, *words,
            check=False,
        )  # fmt: skip

    def put(self, path: str, value: object) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        wait_for(
            lambda: self.ctl("put", path, "--", text).strip() == "OK", 30, "etcd answers",
            state=self.namespace.lab.report,
        )  # fmt: skip

    def put_resource(self, folder: str, manifest: Json) -> None:
        """As calicoctl writes it."""
        self.put(f"{P}{folder}/{manifest['metadata']['name']}", manifest)

    def keys(self, prefix: str) -> list[str]:
        """An etcd that does not answer is asked again: that would look as if nothing were there."""
        words = ("get", "--prefix", "--keys-only", "--write-out=json", prefix)
        answer = json.loads(wait_for(lambda: self.ctl(*words), 30, "etcd answers", state=self.namespace.lab.report))
        return [base64.b64decode(each["key"]).decode() for each in answer.get("kvs", ())]

    def _answers(self) -> bool:
        return "true" in self.namespace.run("curl", "-s", f"{self.url}/health", check=False)
