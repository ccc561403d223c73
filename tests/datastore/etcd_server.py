"""Real etcd servers on free ports of 127.0.0.1, and a proxy that delays, drops or cuts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from routed.testing.lab import wait_for
from tests.ports import free_ports

P = "/calico/resources/v3/projectcalico.org/"

#: What an etcd gets that need not outlive the machine: a disk with other work to do does not have it miss its own deadlines.
NO_SYNC = ("--unsafe-no-fsync",)

#: Of the user `routed`, where a login is demanded.
PASSWORD = "secret1"


class Member:
    """One etcd process."""

    def __init__(
        self,
        name: str,
        folder: Path,
        client: int,
        peer: int,
        cluster: str,
        extra: Sequence[str] = (),
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.folder = folder
        self.tls = any("client-cert" in word for word in extra)
        self.port = client
        scheme = "https" if self.tls else "http"
        self.endpoint = f"{scheme}://{host}:{client}"
        self._inside = inside
        self._argv = [
            "etcd", "--name", name, "--data-dir", str(folder / name), "--log-level", "error", "--logger", "zap",
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", f"http://{host}:{peer}", "--initial-advertise-peer-urls", f"http://{host}:{peer}",
            "--initial-cluster", cluster, "--heartbeat-interval", "100", "--election-timeout", "1000",
            *extra,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def flag(self, name: str) -> str:
        return self._argv[self._argv.index(name) + 1]

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self._inside, *self._argv],
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / f"{self.name}.log", "ab"),  # noqa: SIM115 - the child's
            env={**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine},
        )

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.kill()
            self._process.wait()
            self._process = None


class Cluster:
    """Some members, and `etcdctl` for them."""

    def __init__(
        self,
        folder: Path,
        size: int = 1,
        extra: Sequence[str] = (),
        ctl: Sequence[str] = (),
        *,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
        durable: bool = False,
    ) -> None:
        """`inside`: what to run it with, such as `nsenter` into the namespace that has `host`. `durable`: as in production,
        each write is on disk before it is answered."""
        extra = (*extra, *(() if durable else NO_SYNC))
        ports = free_ports(2 * size)
        names = [f"m{number}" for number in range(size)]
        cluster = ",".join(f"{name}=http://{host}:{ports[size + at]}" for at, name in enumerate(names))
        self.members = [
            Member(name, folder, ports[at], ports[size + at], cluster, extra, host, inside)
            for at, name in enumerate(names)
        ]
        self._ctl = list(ctl)
        self._inside = inside

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def start(self) -> None:
        for member in self.members:
            member.start()
        wait_for(self.healthy, 30, "etcd is up")

    def healthy(self) -> bool:
        return self._run("endpoint", "health").returncode == 0

    def demand_login(self) -> None:
        """Nobody may read or write without a login from here on: `routed` with `secret1` below /calico/; etcdctl is root."""
        for words in (
            "user add root:rootpw", f"user add routed:{PASSWORD}", "role add root", "user grant-role root root",
            "role add calico", "role grant-permission calico --prefix=true readwrite /calico/",
            "user grant-role routed calico", "auth enable",
        ):  # fmt: skip
            self.ctl(*words.split())
        self._ctl.append("--user=root:rootpw")

    def restore(self, backup: Path, token: str) -> None:
        """Begin again with what `etcdctl snapshot save` wrote; the cluster's token is the same or another."""
        (member,) = self.members
        cluster, peers = (member.flag(name) for name in ("--initial-cluster", "--initial-advertise-peer-urls"))
        member.kill()
        self.ctl(
            "snapshot", "restore", str(backup), "--name", member.name, "--data-dir", member.flag("--data-dir"),
            "--initial-cluster", cluster, "--initial-advertise-peer-urls", peers,
            *(("--initial-cluster-token", token) if token == "another" else ()),
        )  # fmt: skip
        self.start()

    def stop(self) -> None:
        for member in self.members:
            member.kill()

    def ctl(self, *words: str, stdin: str = "") -> str:
        done = self._run(*words, stdin=stdin, patience=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ctl_anyhow(self, *words: str, stdin: str = "") -> None:
        """What may be done twice, as soon as there is a leader: what is asked for while one is elected may well fail."""
        wait_for(
            lambda: self._run(*words, stdin=stdin).returncode == 0, 60, "etcd has a leader again",
            state=lambda: self._run(*words, stdin=stdin).stderr,
        )  # fmt: skip

    def put(self, path: str, value: object) -> None:
        self.ctl_anyhow("put", path, "--", value if isinstance(value, str) else json.dumps(value))

    def put_all(self, pairs: dict[str, object]) -> None:
        """Many keys, a hundred in a transaction."""
        items = list(pairs.items())
        for start in range(0, len(items), 100):
            lines = [
                f"put {path} {json.dumps(value if isinstance(value, str) else json.dumps(value))}\n"
                for path, value in items[start : start + 100]
            ]
            self.ctl_anyhow("txn", stdin="\n" + "".join(lines) + "\n\n")

    def delete(self, *words: str) -> None:
        self.ctl_anyhow("del", *words)

    def compact(self) -> None:
        status = json.loads(self.ctl("endpoint", "status", "-w", "json"))
        self.ctl("compact", str(max(one["Status"]["header"]["revision"] for one in status)))

    def _run(self, *words: str, stdin: str = "", patience: int = 8) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *self._inside,
                "etcdctl",
                f"--endpoints={','.join(self.endpoints)}",
                f"--command-timeout={patience}s",
                *self._ctl,
                *words,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ETCDCTL_API": "3"},
        )


class Proxy:
    """A TCP proxy in front of a port: adds a delay, goes silent, or cuts after some octets."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.silent = False
        self.cut_after = 0
        """Octets from the server after which a connection is cut, once; 0: never."""
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._server.accept()
                self.connections += 1
                try:
                    there = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the server is down: so is what is before it, for now
                    here.close()
                    continue
                for source, sink, back in ((here, there, False), (there, here, True)):
                    threading.Thread(target=self._pump, args=(source, sink, back), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            for data in iter(lambda: source.recv(65536), b""):
                passed += len(data)
                if back and self.cut_after and passed > self.cut_after:
                    self.cut_after = 0
                    break
                if self.delay:
                    time.sleep(self.delay)  # the network's own time, not a test that waits
                if not self.silent:
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cluster(
    folder: Path, size: int = 1, extra: Sequence[str] = (), ctl: Sequence[str] = (), *, durable: bool = False
) -> Iterator[Cluster]:
    made = Cluster(folder, size, extra, ctl, durable=durable)
    try:
        made.start()
        yield made
    finally:
        made.stop()
