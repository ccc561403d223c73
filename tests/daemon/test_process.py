"""`routed run` as a process: how it starts, what signals do, how it ends. Loopback only, and no kernel route is touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed import __version__
from routed.control.client import ControlClient, Unreachable
from routed.daemon.main import main
from routed.observe.replay import replay
from routed.testing.routers import resource
from tests.ports import free_port

SOON = 50.0


def wait_for(condition: Callable[[], Any], what: str = "") -> Any:
    until = time.monotonic() + SOON
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"waited too long: {what}"
        time.sleep(0.01)


class Process:
    """A routed of its own folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.resources = self.folder / "resources"
        self.resources.mkdir(parents=True)
        self.config = self.folder / "routed.yaml"
        self.settings: dict[str, Any] = {
            "nodeName": name,
            "datastore": {"type": "file", "path": str(self.resources)},
            "runDir": "run/below",
            "stateDir": "state",
            "kernel": {"programRoutes": False},
            "metrics": {"listen": "off"},
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.folder / "log"

    def start(self, *words: str, env: dict[str, str] | None = None, **settings: object) -> None:
        self.configure(**settings)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "routed.daemon.main", "run", "--config", str(self.config), *words],
                stderr=log,
                env={**os.environ, **(env or {})},
            )

    def configure(self, **settings: object) -> None:
        self.settings.update(settings)
        self.config.write_text(yaml.safe_dump(self.settings))

    def put(self, *manifests: dict[str, Any]) -> None:
        (self.resources / "new").write_text(yaml.safe_dump_all(manifests))
        (self.resources / "new").rename(self.resources / "all.yaml")

    def ask(self, request: str = "status", **arguments: object) -> Any:
        try:
            with ControlClient(str(self.folder / "run/below/routed.sock"), patience=5) as client:
                return list(client.stream(request, **arguments)) if request != "status" else client.ask(request)
        except Unreachable:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            return None

    def ready(self) -> None:
        wait_for(lambda: (self.ask() or {}).get("inSync"), f"{self.folder.name} is in sync")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(SOON)

    def said(self, text: str) -> bool:
        return text in self.log.read_text()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    made: list[Process] = []

    def one(name: str) -> Process:
        made.append(Process(tmp_path, name))
        return made[-1]

    yield one
    for each in made:
        if each.process is not None:
            with contextlib.suppress(ProcessLookupError):
                each.process.kill()
            each.process.wait()


def node(name: str, address: str, port: int) -> list[dict[str, Any]]:
    return [
        resource("Node", name, {"bgp": {"ipv4Address": f"{address}/8"}}),
        resource("BGPConfiguration", f"node.{name}", {"listenPort": port}),
        resource(
            "BlockAffinity", f"{name}-block", {"node": name, "cidr": f"10.244.{address[-1]}.0/26", "state": "confirmed"}
        ),
    ]


def two_nodes() -> tuple[list[dict[str, Any]], int, int]:
    first, second = free_port(), free_port()
    pool = resource("IPPool", "pool", {"cidr": "10.244.0.0/16"})
    return [pool, *node("a", "127.0.0.1", first), *node("b", "127.0.0.2", second)], first, second


def state(process: Process) -> str:
    rows = process.ask("neighbors")
    return str(rows[0]["state"]) if rows else ""


def meet(make: Callable[[str], Process], recording: Path | None = None, **settings: object) -> tuple[Process, Process]:
    """Two nodes with a session between them. `b` connects: of two mesh peers the lesser address, as text, waits."""
    manifests, _, _ = two_nodes()
    a, b = make("a"), make("b")
    a.put(*manifests)
    b.put(*manifests)
    a.start(*(() if recording is None else ("--record", str(recording))), log={"level": "debug"}, **settings)
    wait_for(lambda: (a.ask() or {}).get("listening"), "a listens")
    b.start(**settings)
    wait_for(lambda: state(a) == state(b) == "Established", "the session is up")
    return a, b


def test_two_nodes_meet_part_and_replay(make: Callable[[str], Process], tmp_path: Path) -> None:
    recording = tmp_path / "a.jsonl"
    a, b = meet(make, recording)
    (route,) = a.ask("routes", prefix="10.244.1.9", all=True)
    assert route["prefix"] == "10.244.1.0/26"
    assert route["kernel"] is None and route["kernelState"] is None
    assert a.ask("fib") == []
    b.signal(signal.SIGTERM)
    assert b.ended() == 0
    assert not (b.folder / "run/below/routed.sock").exists()
    wait_for(lambda: state(a) != "Established", "a notices")
    assert "closed the connection" in a.ask("neighbors")[0]["lastDown"], "a restart ends without a NOTIFICATION"
    a.ask("shutdown", reason="the end")
    assert a.ended() == 0
    assert all(step.equal for step in replay(str(recording)))


def test_shutdown_by_configuration_says_why(make: Callable[[str], Process]) -> None:
    a, b = meet(make, onStop="shutdown")
    b.signal(signal.SIGINT)
    assert b.ended() == 0
    wait_for(lambda: state(a) != "Established", "a notices")
    error = a.ask("neighbors")[0]["lastDown"]
    assert "6/2 Administrative Shutdown" in error and "routed is stopping" in error


def test_reload(make: Callable[[str], Process]) -> None:
    a = make("a")
    a.put(*two_nodes()[0])
    a.start()
    a.ready()
    a.configure(log={"format": "json"}, nodeName="z")
    a.signal(signal.SIGHUP)
    problem = f"{a.config}: nodeName changed, which takes a restart; the old stays"
    wait_for(lambda: problem in a.ask()["problems"], "the key that can't change is named")
    wait_for(lambda: '"subject": "config"' in a.log.read_text(), "the log is JSON now")
    (line,) = [line for line in a.log.read_text().splitlines() if '"subject": "config"' in line]
    assert json.loads(line)["text"] == f"reloaded, but not all: {problem}"
    a.configure(nodeName="a", runDirectory="x")
    a.signal(signal.SIGHUP)
    wait_for(lambda: any("runDirectory: unknown key" in each for each in a.ask()["problems"]), "the error is told")
    del a.settings["runDirectory"]
    a.configure()
    a.signal(signal.SIGHUP)
    wait_for(lambda: a.ask()["problems"] == [], "all is well again")


def test_a_bad_resource_is_reported_and_the_rest_goes_on(make: Callable[[str], Process]) -> None:
    a = make("a")
    a.put(*two_nodes()[0])
    a.start()
    a.ready()
    bad, whole = a.resources / "bad.yaml", a.resources / "whole"
    whole.write_text(
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: x}\nspec:\n  peerIP: nonsense\n  asNumber: 1\n"
    )
    whole.rename(bad)
    (problem,) = wait_for(lambda: a.ask()["problems"], "the problem is told")
    assert problem.startswith(f"{bad}:5: spec.peerIP: ")
    assert a.said(problem)
    bad.unlink()
    wait_for(lambda: a.ask()["problems"] == [], "it is put right")
    assert a.said(f"put right: {bad}:5")


def test_a_port_that_is_taken(make: Callable[[str], Process]) -> None:
    manifests, port, _ = two_nodes()
    a = make("a")
    a.put(*manifests)
    with socket.create_server(("", port)):
        a.start()
        (problem,) = wait_for(lambda: (a.ask() or {}).get("problems"), "the problem is told")
        assert problem.startswith(f"cannot listen on port {port} (IPv4): another program uses it")
        assert a.ask()["listening"] is False
    wait_for(lambda: a.ask()["listening"], "the port is had once it is free")
    assert a.ask()["problems"] == []


def test_the_second_daemon_of_a_folder_is_refused(make: Callable[[str], Process]) -> None:
    a = make("a")
    a.put(*two_nodes()[0])
    a.start()
    a.ready()
    second = subprocess.run(
        [sys.executable, "-m", "routed.daemon.main", "run", "--config", str(a.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 78
    assert "another routed is running with this runDir" in second.stderr.splitlines()[-1]
    assert a.ask()["pid"] == a.process.pid  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["a path", "an abstract name"])
def test_systemd_is_told(make: Callable[[str], Process], tmp_path: Path, kind: str) -> None:
    a = make("a")
    a.put(*two_nodes()[0])
    name = str(tmp_path / "notify") if kind == "a path" else f"@routed-test-{os.getpid()}"
    summary = "node a: 0 of 0 sessions established, 0 routes in the kernel"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1))
        manager.settimeout(SOON)
        a.start(env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "300000"})
        assert a.process is not None
        starting = "EXTEND_TIMEOUT_USEC=30000000\nSTATUS=node a: reading the kernel's routes"
        assert manager.recv(4096).decode() == starting
        while (told := manager.recv(4096).decode()) == starting:
            pass  # again each second, as long as it takes
        assert told == f"READY=1\nMAINPID={a.process.pid}\nSTATUS={summary}"
        assert manager.recv(4096).startswith(b"WATCHDOG=1\n")
        while b"0 of 1 sessions established" not in (told := manager.recv(4096)):
            assert told.startswith(b"WATCHDOG=1\n")
        a.signal(signal.SIGHUP)
        while not (told := manager.recv(4096)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
            assert told.startswith(b"WATCHDOG=1\n")
        assert manager.recv(4096).startswith(b"READY=1")
        a.signal(signal.SIGTERM)
        while not (told := manager.recv(4096)).startswith(b"STOPPING=1"):
            assert told.startswith(b"WATCHDOG=1\n")
    assert a.ended() == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "routed.yaml: there is no such configuration file; name one with --config"),
        ("nodename: a", "routed.yaml:1: nodename: unknown key; did you mean `nodeName`?"),
        ("datastore: {type: file, path: none}", "none: there is no such folder, and datastore.path names it"),
        ("datastore: {type: file, path: .}\nrunDir: routed.yaml", "cannot create the folder runDir names: File exists"),
    ],
)
def test_what_keeps_it_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str
) -> None:
    config = tmp_path / "routed.yaml"
    if text is not None:
        config.write_text(f"{text}\nstateDir: state\n" if "nodename" not in text else text)
    assert main(["run", "--config", str(config)]) == 78
    error = capsys.readouterr().err
    assert error.startswith("routed: ") and error.endswith("\n") and error.count("\n") == 1
    assert sentence in error


def test_a_recording_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "routed.yaml"
    config.write_text("datastore: {type: file, path: .}\nrunDir: run\nstateDir: state\n")
    assert main(["run", "--config", str(config), "--record", str(tmp_path)]) == 78
    assert "cannot write the recording: Is a directory" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"routed {__version__}" in out
    assert "routed run --config ./routed.yaml" in out


def test_a_datastore_that_is_not_reachable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "routed.yaml"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        etcd = f"{{type: etcd, endpoints: ['http://127.0.0.1:{closed.getsockname()[1]}']}}"
        config.write_text(f"nodeName: n1\nnode: {{ipv4: 10.0.0.1/24}}\ndatastore: {etcd}\nstateDir: state\n")
        assert main(["node", "init", "--config", str(config)]) == 69
    error = capsys.readouterr().err
    assert error.startswith("routed: etcd http://127.0.0.1:") and error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["dance"], ["run", "--fast"], ["hand-over", "quagga"], ["hand-over", "3"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: routed" in capsys.readouterr().err
