"""One run of one daemon in one scenario, and what it took.

    transit N     one eBGP sender announces N prefixes; until one eBGP receiver holds all of them
    fib N         the same, until all of them are in the kernel's table
    withdraw N    after `fib N` the sender's connection is reset; until they are all gone from the kernel's table
    mesh K P      K iBGP peers announce P prefixes each; until all K*P are in the kernel's table
    rr K P        K route-reflection clients announce P prefixes each; until every one holds the others' (K-1)*P
    latency N     after `transit N` one prefix at a time is withdrawn and announced again, 400 times: the median time until
                  the receiver knows

Times begin with the first octet of the first UPDATE. The daemon is held to one core, the load and this program to another.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from routed.testing.lab import Lab, LabError, Namespace, run
from routed.testing.lab.namespaces import NETNS
from tests.bench.contenders import ADDRESS, Contender, Work, peer_address

SOURCE = Path(__file__).parent / "load.c"
PER_UPDATE = 50
PREFIXES_A_SET = 100
FLAPS = 200

#: Seconds a run may take before it counts as not finished.
LIMIT = 120.0

#: Kernel routes looked at one by one in a verifying run.
SAMPLES = 500

#: Two numbers mean peers and prefixes each announces, one means prefixes.
KINDS = {"transit": 1, "fib": 1, "withdraw": 1, "mesh": 2, "rr": 2, "latency": 1}


class TooSlow(Exception):
    """A run was not done within LIMIT."""


class Wrong(Exception):
    """A verifying run found something that is not as it must be."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is asked of a daemon."""

    kind: str
    numbers: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """`transit:1000000`, `rr:100x1000`. Raises ValueError with a sentence."""
        kind, _, numbers = text.partition(":")
        values = [int(each) if each.isdigit() else 0 for each in numbers.split("x")]
        if kind not in KINDS or len(values) != KINDS[kind] or min(values) < 1 or (kind == "rr" and values[0] < 2):
            raise ValueError(f"{text!r} is no scenario; they look like transit:1000000 and rr:100x1000")
        return cls(kind, tuple(values))

    def __str__(self) -> str:
        return f"{self.kind} {' x '.join(f'{number:,}' for number in self.numbers)}"

    @property
    def work(self) -> Work:
        mode = {"rr": "rr", "mesh": "ibgp"}.get(self.kind, "ebgp")
        return Work(mode, self.numbers[0] if self.between_many else 2, self.kind in ("fib", "withdraw", "mesh"))

    @property
    def between_many(self) -> bool:
        return len(self.numbers) == 2

    @property
    def senders(self) -> int:
        return self.numbers[0] if self.between_many else 1

    @property
    def routes(self) -> int:
        """Prefixes of each sender."""
        return self.numbers[-1]

    @property
    def total(self) -> int:
        return self.senders * self.routes

    @property
    def received(self) -> int:
        """Prefixes each receiver must end up with, where receivers are what the scenario is about; else 0."""
        return {"transit": self.total, "latency": self.total, "rr": self.total - self.routes}.get(self.kind, 0)


@dataclass(frozen=True, slots=True)
class Result:
    seconds: float
    peak_mib: int
    """Peak resident memory of all processes of the daemon."""
    cpu_seconds: float
    """Of the daemon, in the time measured."""
    worst: float = 0.0
    """latency: the 99th percentile."""


class Load:
    """The synthetic peers. See load.c."""

    def __init__(self, program: str, namespace: Namespace, scenario: Scenario, want: int, *, check: bool, core: int):
        work = scenario.work
        sets = max(1, scenario.routes // PREFIXES_A_SET)
        numbers = (179, work.peers, scenario.senders, scenario.routes, PER_UPDATE, sets, want, int(check))
        self._popen = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={NETNS}/{namespace.full_name}", "--"),
                *(program, work.mode, ADDRESS, *map(str, numbers)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _pin(self._popen.pid, core)
        self._buffer = b""

    def say(self, command: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(command.encode() + b"\n")
        self._popen.stdin.flush()

    def hear(self, word: str, seconds: float) -> list[str]:
        """The rest of its next line, which must begin with `word`. Raises TooSlow, LabError."""
        assert self._popen.stdout is not None and self._popen.stderr is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._popen.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TooSlow
            data = os.read(self._popen.stdout.fileno(), 1 << 16)
            if not data:
                raise LabError(self._popen.stderr.read().decode().strip() or "the load generator ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        first, *rest = line.decode().split()
        if first != word:
            raise LabError(f"the load generator said {line.decode()!r}, not {word}")
        return rest

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()


def build(folder: Path) -> str:
    """Compile the load generator. Raises LabError."""
    program = str(folder / "bgpload")
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, str(SOURCE))
    return program


def cores() -> tuple[int, int]:
    """The daemon's and the load's; the same one where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[1 % len(available)]


def measure(contender: Contender, scenario: Scenario) -> Result:
    """One run. Raises TooSlow; LabError where something else goes wrong."""
    with _stage(contender, scenario, scenario.received, check=False) as (stage, load):
        seconds, cpu = _timed(stage, load, scenario)
        if scenario.kind == "latency":
            load.say(f"flap {FLAPS}")
            times = sorted(float(each) / 1e6 for each in load.hear("latency", LIMIT))
            return Result(statistics.median(times), stage.peak_mib(), cpu, times[len(times) * 99 // 100])
        if scenario.kind == "withdraw":
            before = stage.cpu_seconds()
            load.say("drop")
            start = float(load.hear("dropped", LIMIT)[0])
            seconds = stage.wait_fib(0) - start
            cpu = stage.cpu_seconds() - before
        return Result(seconds, stage.peak_mib(), cpu)


def verify(contender: Contender, scenario: Scenario) -> str:
    """One run in which everything received is compared with what must be sent, and the kernel's routes are sampled.

    A sentence about what was looked at. Raises Wrong with the first finding, and as `measure`.
    """
    work = scenario.work
    want = scenario.received or (0 if work.mode == "ibgp" else scenario.total)
    with _stage(contender, scenario, want, check=True) as (stage, load):
        load.say("send")
        load.hear("sent", LIMIT)
        if want:
            load.hear("full", LIMIT)
        if work.fib:
            stage.wait_fib(scenario.total)
        time.sleep(0.5)  # what still comes now is more than there should be
        load.say("check")
        checked, _, wrong, _, repeated, *finding = load.hear("checked", LIMIT)
        receivers = 0 if not want else work.peers if scenario.between_many else work.peers - 1
        if int(wrong):
            raise Wrong(f"{wrong} of {checked} announcements are wrong, the first: {' '.join(finding)}")
        if int(checked) - int(repeated) != want * receivers:
            raise Wrong(f"{checked} announcements ({repeated} repeated), not {want} to each of {receivers} peers")
        text = f"{int(checked):,} announcements right" if want else "nothing passed on, as it must be"
        if int(repeated):
            text += f" ({int(repeated):,} of them repeated)"
        if work.fib:
            text += (
                f", {stage.check_kernel(scenario, contender.protocol)} of {scenario.total:,} kernel routes looked at"
            )
        if scenario.kind == "withdraw":
            load.say("drop")
            load.hear("dropped", LIMIT)
            stage.wait_fib(0)
            text += ", all gone in the end"
        return text


def _timed(stage: _Stage, load: Load, scenario: Scenario) -> tuple[float, float]:
    """Seconds from the first octet to the end, and seconds of the daemon's CPU."""
    before = stage.cpu_seconds()
    load.say("send")
    start = float(load.hear("sent", LIMIT)[0])
    end = stage.wait_fib(scenario.total) if scenario.work.fib else float(load.hear("full", LIMIT)[0])
    return end - start, stage.cpu_seconds() - before


@contextlib.contextmanager
def _stage(contender: Contender, scenario: Scenario, want: int, *, check: bool) -> Iterator[tuple[_Stage, Load]]:
    """The daemon and the load, with all sessions up."""
    daemon_core, load_core = cores()
    with Lab() as lab, _pinned(load_core):
        dut, generator = lab.namespace("dut"), lab.namespace("load")
        lab.link(dut.port("dut", f"{ADDRESS}/16"), generator.port("load"))
        work = scenario.work
        generator.address("load", *(f"{peer_address(index)}/16" for index in range(work.peers)))
        router = contender.make(dut, work)
        router.launch()
        for process in router.processes:
            _pin(process.pid, daemon_core)
        stage = _Stage(dut, [process.pid for process in router.processes])
        load = Load(build(lab.folder), generator, scenario, want, check=check, core=load_core)
        try:
            load.hear("up", 90)
            time.sleep(0.5)  # the daemon is done with the sessions, its End-of-RIBs are out
            yield stage, load
        except LabError as error:
            raise LabError(f"{error}\n{lab.report()}") from None
        finally:
            load.kill()


class _Stage:
    """The daemon as it can be watched from outside."""

    def __init__(self, namespace: Namespace, pids: Sequence[int]) -> None:
        self._namespace = namespace
        self._pids = pids
        self._base = self._prefixes()

    def _prefixes(self) -> int:
        """Prefixes in the main IPv4 table of the daemon's namespace (and in the local one, which shares its trie)."""
        with self._namespace.entered():
            text = Path("/proc/thread-self/net/fib_triestat").read_text()
        _, _, main = text.partition("Main:")
        return int(main.partition("Prefixes:")[2].split()[0])

    def wait_fib(self, count: int) -> float:
        """When the kernel held so many prefixes more than at start (0: no more). Raises TooSlow."""
        pause = 0.002 if count < 50_000 else 0.05
        until = time.monotonic() + LIMIT
        while True:
            held = self._prefixes() - self._base
            now = time.monotonic()
            if (held >= count) if count else (held <= 0):
                return now
            if now > until:
                raise TooSlow
            time.sleep(pause)

    def check_kernel(self, scenario: Scenario, protocol: str) -> int:
        """Look at some kernel routes: prefix, gateway, protocol. How many. Raises Wrong."""
        numbers = random.Random(scenario.total).sample(range(scenario.total), min(SAMPLES, scenario.total))
        asked = "".join(f"route get fibmatch {_prefix(number).partition('/')[0]}\n" for number in numbers)
        try:
            answers = run("ip", "-n", self._namespace.full_name, "-batch", "-", given=asked).splitlines()
        except LabError as error:
            raise Wrong(f"a route is missing: {str(error).splitlines()[0]}") from None
        for number, answer in zip(numbers, answers, strict=True):
            must = f"{_prefix(number)} via {peer_address(number // scenario.routes)} dev dut proto {protocol}"
            if not f"{answer} ".startswith(f"{must} "):
                raise Wrong(f"the kernel has `{answer}`, not `{must}`")
        return len(numbers)

    def cpu_seconds(self) -> float:
        ticks = 0
        for pid in self._pids:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> int:
        kib = 0
        for pid in self._pids:
            status = Path(f"/proc/{pid}/status").read_text()
            kib += int(status.partition("VmHWM:")[2].split()[0])
        return kib // 1024


def _prefix(number: int) -> str:
    """As load.c numbers prefixes."""
    value = (20 << 24) + number * 64
    return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}/26"


def _pin(pid: int, core: int) -> None:
    """All threads of a process on one core; those to come inherit it."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {core})


@contextlib.contextmanager
def _pinned(core: int) -> Iterator[None]:
    """This thread on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
