"""One node of a running laboratory: started, entered, rebooted, ended.

A node is process 1 of its own PID, mount, UTS, IPC and network namespaces (`inside` says what that sees); everything else
enters by nsenter. Nothing has a name on the host: when process 1 is gone, the kernel removes the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from routed.testing.lab import inside
from routed.testing.lab.clab import NodeSpec
from routed.testing.lab.images import Image
from routed.testing.lab.namespaces import LabError, run, start_time, wait_for
from routed.values import dataclass

#: Where programs are found in a node; what `pip install` put beside this interpreter comes first.
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What must be seen in every node, whatever lies above it: the interpreter's folders and this package.
VISIBLE = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[3])})

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node that runs. Two numbers are enough to find it again: the process id and when that process started."""

    name: str
    role: str
    pid: int
    started: int
    log: Path
    """What its main program prints."""
    command: tuple[str, ...]
    environment: Mapping[str, str]
    exec: tuple[tuple[str, ...], ...]

    # ---- life

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    def end(self) -> None:
        """End it with everything in it, and wait until it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: self._woken() and not self.alive, PATIENCE, f"node {self.name} ends")

    def start(self) -> None:
        """Start its main program, if it has one."""
        if self.command:
            with open(self.log, "ab") as output:
                subprocess.Popen(
                    self.entering(*self.command),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip

    def kill(self) -> None:
        """Every program in it ends at once, without a last word."""
        self.run("sh", "-c", "kill -9 -1", check=False)
        wait_for(
            lambda: self._woken() and not self.processes(), PATIENCE, f"the programs in {self.name} end",
            state=self.processes,
        )  # fmt: skip

    def _woken(self) -> bool:
        """Whoever entered the node goes on. nsenter stops itself where what it started was stopped, and then does not hear
        of its end; until it does, the node cannot end."""
        target = f"--target={self.pid}".encode()
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and target in (folder / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGCONT)
        return True

    def processes(self) -> list[str]:
        """The programs in it, process 1 left out."""
        listed = self.run("ps", "-e", "-o", "pid=,comm=").splitlines()
        words = [line.split(maxsplit=1) for line in listed]
        return [name for pid, name in words if pid != "1" and name != "ps"]

    def boot(self) -> list[str]:
        """The commands of `exec`, in order. What failed, a sentence each: containerlab goes on too."""
        failed = []
        for command in self.exec:
            done = subprocess.run(self.entering(*command), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = (done.stderr.strip() or done.stdout.strip())[:500]
                failed.append(f"{self.name}: `{' '.join(command)}` failed ({done.returncode}): {said}")
        return failed

    # ---- entering

    def entering(self, *argv: str) -> list[str]:
        """The command line that runs `argv` in the node."""
        environment = [f"{key}={value}" for key, value in self.environment.items()]
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", f"--target={self.pid}", *namespaces, "--wdns=/", "env", "-i", *environment, *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command in the node prints. Raises LabError where it fails."""
        return run(*self.entering(*argv), check=check)

    def popen(self, output: Path, *argv: str) -> subprocess.Popen[bytes]:
        """A command in the node that goes on, and what it prints goes to a file."""
        with open(output, "wb") as file:
            return subprocess.Popen(
                self.entering(*argv),
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def pings(self, address: str, *, source: str = "", timeout: float = 1.0) -> bool:
        """Whether an address answers an echo request, once, within `timeout` seconds."""
        argv = self.entering(
            "ping", "-n", "-q", "-c", "1", "-W", f"{timeout:g}", *(("-I", source) if source else ()), address
        )
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    # ---- links

    def interfaces(self) -> list[str]:
        rows = json.loads(self.run("ip", "-j", "link", "show"))
        return [row["ifname"] for row in rows if row["ifname"] != "lo"]

    def power_off(self) -> None:
        """The machine loses power: links go dark with no last word; addresses and routes are gone, and what was in /run."""
        interfaces = self.interfaces()
        for interface in interfaces:
            self.run("ip", "link", "set", interface, "down")
        self.kill()
        for interface in interfaces:
            self.run("ip", "addr", "flush", "dev", interface)
        for family in ("-4", "-6"):
            self.run("ip", family, "route", "flush", "table", "main", check=False)
        self.run("find", "/run", "-mindepth", "1", "!", "-type", "d", "-delete")

    def power_on(self) -> None:
        """It comes back: the main program, links, and the commands of `exec`. Raises LabError where one of these fails."""
        self.start()
        for interface in self.interfaces():
            self.run("ip", "link", "set", interface, "up")
        failed = self.boot()
        if failed:
            raise LabError("; ".join(failed))


def start_node(spec: NodeSpec, image: Image | None, folder: Path, shares: int = 0) -> tuple[Node, IO[bytes]]:
    """Make a node; `image` is none for a bridge, `shares` the process id of the node whose network it is in.

    The second value is its leash: closed, it ends the node; the word `stay` lets the node outlive it.
    """
    root = folder / f"{spec.name.replace('|', '-')}.root"
    root.mkdir()
    binds = [(str(bind.source), bind.target, bind.read_only) for bind in spec.binds]
    if spec.startup_config is not None and image is not None and image.config:
        binds.insert(0, (str(spec.startup_config), image.config, True))
    own = (*inside.OWN, *(image.folders if image is not None else ()))
    binds += [(path, path, True) for path in VISIBLE if any(Path(path).is_relative_to(each) for each in own)]
    description = {
        "root": str(root),
        "hostname": spec.hostname,
        "folders": dict(image.folders) if image is not None else {},
        "binds": binds,
        "tmpfs": dict(spec.tmpfs),
        "sysctls": dict(spec.sysctls),
        "shares": shares,
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", inside.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(description).encode() + b"\n")
    process.stdin.flush()
    pid, answer = process.stdout.readline().strip(), process.stdout.readline().strip()
    process.stdout.close()
    process.wait()
    if answer != b"ready":
        process.stdin.close()
        said = (answer or pid).decode(errors="replace") or "it ended"
        raise LabError(f"{spec.place}: node {spec.name} could not be made: {said}")
    environment = {
        "PATH": PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "HOSTNAME": spec.hostname,
        "TERM": "linux",
        **spec.env,
    }
    node = Node(
        name=spec.name,
        role=image.role if image is not None else "bridge",
        pid=int(pid),
        started=start_time(int(pid)),
        log=folder / f"{spec.name.replace('|', '-')}.log",
        command=_command(spec, image),
        environment=environment,
        exec=spec.exec,
    )
    return node, process.stdin


def _command(spec: NodeSpec, image: Image | None) -> tuple[str, ...]:
    """What its main program is, by Docker's rules: an entrypoint of one's own drops the image's command."""
    if image is None:
        return ()
    entrypoint: Sequence[str] = spec.entrypoint or image.entrypoint
    cmd: Sequence[str] = spec.cmd or (() if spec.entrypoint else image.cmd)
    return (*entrypoint, *cmd)
