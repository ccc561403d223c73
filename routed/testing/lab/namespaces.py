"""A laboratory on this machine: network namespaces as nodes, wires between them, programs running inside.

    with Lab() as lab:
        node, tor = lab.namespace("node"), lab.namespace("tor")
        lab.link(node.port("eth0", "10.0.0.1/24"), tor.port("eth0", "10.0.0.254/24"))
        wait_for(lambda: node.pings("10.0.0.254"), 5, "the ToR answers")

Invariants:
- Nothing is made outside namespaces of our own: no interface, route, address or sysctl of the host changes, and no packet
  can leave, since no wire leads out.
- Names begin with a prefix that no other Lab has (process id, its start time, a counter), so that any number of processes
  may have laboratories at once.
- It cleans up after itself, and after those who could not: programs die with the process that started them, and the next
  Lab removes namespaces and folders whose process is gone.

Needs root and iproute2. What runs in a namespace (routed, BIRD, FRR, ...) is in `routers`; scripted BGP peers are in `peer`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from routed.testing.lab.echo import is_answered, open_socket
from routed.values import dataclass

T = TypeVar("T")

NETNS = "/run/netns"
CLONE_NEWNET = 0x40000000

#: Seconds between two looks of `wait_for`.
POLL = 0.02

#: Characters of a state that are shown where waiting was in vain.
MAX_STATE = 4000

#: Seconds a program may take to end after it was asked to.
PATIENCE = 30.0

_PREFIX = re.compile(r"rlab-(\d+)-(\d+)-\d+")
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


class LabError(Exception):
    """The laboratory could not do what it was asked; the text says what failed and how."""


def wait_for(
    condition: Callable[[], T],
    deadline: float,
    what: str = "",
    *,
    state: Callable[[], object] | None = None,
    every: float = POLL,
) -> T:
    """What `condition` returns as soon as that is truthy. Raises AssertionError after `deadline` seconds.

    `what` says what is waited for; `state` what to show of how far it got; `every` is the pause between two looks, longer
    where looking is work for the one who is waited for.
    """
    until = time.monotonic() + deadline
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > until:
            seen = f"; now: {state()}" if state is not None else f"; last answer: {answer!r}"
            if len(seen) > MAX_STATE:
                seen = f"{seen[:MAX_STATE]} ... ({len(seen)} characters)"
            raise AssertionError(f"waited {deadline:g} s for: {what or condition}{seen}")
        time.sleep(every)


def stays(condition: Callable[[], object], seconds: float, what: str = "") -> None:
    """`condition` holds all through `seconds`. Raises AssertionError as soon as it does not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = condition()
        if not answer:
            raise AssertionError(f"it did not stay so that {what or condition}: {answer!r}")
        time.sleep(POLL)


class Process:
    """A program that runs in a namespace, with all it prints in one file."""

    def __init__(self, namespace: Namespace, name: str, argv: Sequence[str], log: Path) -> None:
        self.namespace = namespace
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            # nsenter and setpriv become the program itself: its process id is ours to signal
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={NETNS}/{namespace.full_name}", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def text(self) -> str:
        """All it printed so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        if self.alive:
            self._popen.send_signal(number)

    def wait(self, deadline: float = PATIENCE) -> int:
        """Its exit status (negative: the signal that ended it). Raises LabError where it does not end."""
        try:
            return self._popen.wait(deadline)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} did not end within {deadline:g} s") from None

    def stop(self, deadline: float = PATIENCE) -> int:
        """Ask it to end (SIGTERM). Its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(deadline)

    def kill(self) -> None:
        """End it and all it started, without asking."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


class Namespace:
    """One node of the laboratory. Made by `Lab.namespace`."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.full_name = f"{lab.prefix}-{name}"
        self.folder = lab.folder / name
        self.folder.mkdir()
        run("ip", "netns", "add", self.full_name)
        # no duplicate address detection: an IPv6 address would take seconds to become usable
        for key, value in (("accept_dad", 0), ("dad_transmits", 0), ("accept_ra", 0)):
            for which in ("all", "default"):
                self.sysctl(f"net.ipv6.conf.{which}.{key}", value)
        self.ip("link set lo up")

    def __repr__(self) -> str:
        return f"<namespace {self.full_name}>"

    # ---- set-up

    def port(self, interface: str, *addresses: str) -> Port:
        """One end of a wire to be made by `Lab.link`."""
        return Port(self, interface, addresses)

    def ip(self, *commands: str) -> None:
        """`ip` commands, in order, as one batch. Raises LabError with the first that failed."""
        run("ip", "-n", self.full_name, "-batch", "-", given="".join(command + "\n" for command in commands))

    def address(self, interface: str, *addresses: str) -> None:
        """Give an interface addresses (`10.0.0.1/24`)."""
        self.ip(*(f"addr add {each} dev {interface}{' nodad' if ':' in each else ''}" for each in addresses))

    def route(self, command: str) -> None:
        """`add default via 10.0.0.1`; `ip` tells the family by the addresses in it."""
        self.ip(f"route {command}")

    def forward(self) -> None:
        """Let it forward packets between its interfaces."""
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)

    def sysctl(self, key: str, value: object) -> None:
        with self.entered():
            Path("/proc/sys", *key.split(".")).write_text(f"{value}\n")

    # ---- running things

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace: sockets made inside the block stay there for good."""
        with entered(f"{NETNS}/{self.full_name}"):
            yield

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command in the namespace prints. Raises LabError where it fails."""
        return run("nsenter", f"--net={NETNS}/{self.full_name}", "--", *argv, check=check)

    def start(self, name: str, *argv: str) -> Process:
        """Start a program; its output goes to `<name>.log` in the namespace's folder."""
        process = Process(self, name, argv, self.folder / f"{name}.log")
        self.lab.processes.append(process)
        return process

    # ---- looking

    def pings(self, address: str, *, source: str = "", timeout: float = 1.0) -> bool:
        """Whether an address answers an echo request, once, within `timeout` seconds."""
        with self.entered():
            asking = open_socket(address, source)
        return is_answered(asking, timeout)

    def routes(self, *, protocol: int | str | None = None, ipv6: bool = False, table: str = "main") -> dict[str, str]:
        """The kernel's routes, as `ip route` names and describes them: {"10.1.0.0/26": "via 10.0.0.2 dev eth0 proto 120"}.

        Of several routes to one prefix the first listed, the one in force, is told.
        """
        argv = ["ip", "-6" if ipv6 else "-4", "-n", self.full_name, "route", "show", "table", table]
        if protocol is not None:
            argv += ["proto", str(protocol)]
        found: dict[str, str] = {}
        last = ""
        for line in run(*argv, check=table == "main").splitlines():  # another table may not exist yet
            if line[:1].isspace():  # a leg of the route before
                found[last] += " " + " ".join(line.split())
                continue
            words = line.split()
            kind = words.pop(0) if words[0] in ("blackhole", "unreachable", "prohibit") else ""
            last = words.pop(0)
            found.setdefault(last, " ".join([*([kind] if kind else []), *words]))
        return found


@dataclass(frozen=True, slots=True)
class Port:
    """One end of a wire: an interface to be, with its addresses (`10.0.0.1/24`)."""

    namespace: Namespace
    interface: str
    addresses: tuple[str, ...] = ()


class Segment:
    """A layer-2 segment: a switch that many namespaces are plugged into. Made by `Lab.segment`."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self._switch = lab.namespace(f"switch-{name}")
        self._switch.ip("link add br0 type bridge stp_state 0 forward_delay 0", "link set br0 up")
        self._ports = 0

    def attach(self, namespace: Namespace, interface: str, *addresses: str) -> None:
        """Plug a namespace in by a new interface with these addresses."""
        port = f"port{self._ports}"
        self._ports += 1
        run(
            *("ip", "link", "add", interface, "netns", namespace.full_name, "type", "veth"),
            *("peer", "name", port, "netns", self._switch.full_name),
        )
        self._switch.ip(f"link set {port} master br0", f"link set {port} up")
        namespace.ip(f"link set {interface} up")
        namespace.address(interface, *addresses)
        _carry((self._switch, port), (namespace, interface))


class Lab:
    """See the module's docstring. A context manager; `close` also works by hand, and runs at exit at the latest."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabError("a laboratory needs root, for network namespaces")
        remove_stale()
        self.prefix = fresh_prefix()
        self.folder = Path(tempfile.gettempdir()) / self.prefix
        self.folder.mkdir(mode=0o755)
        self.namespaces: dict[str, Namespace] = {}
        self.processes: list[Process] = []
        atexit.register(self.close)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self, name: str, *, forward: bool = False) -> Namespace:
        """A new node; `forward` makes it a router."""
        made = self.namespaces[name] = Namespace(self, name)
        if forward:
            made.forward()
        return made

    def segment(self, name: str) -> Segment:
        return Segment(self, name)

    def link(self, one: Port, other: Port) -> None:
        """A wire between two nodes."""
        run(
            *("ip", "link", "add", one.interface, "netns", one.namespace.full_name, "type", "veth"),
            *("peer", "name", other.interface, "netns", other.namespace.full_name),
        )
        for port in (one, other):
            port.namespace.ip(f"link set {port.interface} up")
            port.namespace.address(port.interface, *port.addresses)
        _carry(*((port.namespace, port.interface) for port in (one, other)))

    def report(self, lines: int = 40) -> str:
        """The last words of every program, for whoever has to find out what went wrong."""
        parts = []
        for process in self.processes:
            state = "runs" if process.alive else f"ended with {process.wait()}"
            tail = "\n".join(process.text().splitlines()[-lines:])
            parts.append(f"--- {process.namespace.name}/{process.name} ({state})\n{tail}")
        return "\n".join(parts)

    def close(self) -> None:
        """End all programs, remove all namespaces and files. May be called again."""
        for process in self.processes:
            process.kill()
        self.processes.clear()
        for namespace in self.namespaces.values():
            _remove_namespace(namespace.full_name)
        self.namespaces.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)


def run(*argv: str, given: str | None = None, check: bool = True) -> str:
    """What a command prints. Raises LabError with what it said where it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, input=given or "")
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed") from None
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[:2000]
        raise LabError(f"`{' '.join(argv)}` failed ({done.returncode}): {said}" + (f"\n{given}" if given else ""))
    return done.stdout


# ---- inside


def _carry(*ends: tuple[Namespace, str]) -> None:
    """Wait until packets pass: the kernel sees some time after `up` that both ends are, and drops them until then."""
    for namespace, interface in ends:
        show = ("ip", "-n", namespace.full_name, "-o", "link", "show", "dev", interface)
        wait_for(partial(_is_up, show), PATIENCE, f"{interface} of {namespace.name} is up")


def _is_up(show: tuple[str, ...]) -> bool:
    return "state UP" in run(*show)


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """This thread is in the network namespace with this name: sockets made inside the block stay there for good."""
    with open("/proc/thread-self/ns/net") as home, open(path) as here:
        _setns(here.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise LabError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")


def start_time(pid: int) -> int:
    """Clock ticks after boot at which a process started; 0 where there is none, or only what is left of it."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # any other error is ours, and no reason to take a process for gone
        return 0
    return 0 if words[0] in ("Z", "X") else int(words[19])


def fresh_prefix() -> str:
    """What begins the names of one laboratory of this process: `remove_stale` knows by it whose they are."""
    return f"rlab-{os.getpid()}-{start_time(os.getpid())}-{next(_numbers)}"


def remove_stale() -> None:
    """Namespaces and folders of processes that no longer are."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(NETNS):
            if _is_stale(name):
                _remove_namespace(name)
    for name in os.listdir(tempfile.gettempdir()):
        if _is_stale(name):
            shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)


def _is_stale(name: str) -> bool:
    match = _PREFIX.match(name)
    return match is not None and start_time(int(match[1])) != int(match[2])


def _remove_namespace(full_name: str) -> None:
    for pid in run("ip", "netns", "pids", full_name, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run("ip", "netns", "del", full_name, check=False)
