"""A stand-in for systemd where it is not process 1: starts a unit's ExecStart as the unit says, and minds it.

    root = Root(namespace)                                 # a copy-on-write copy of this machine, in a namespace's network
    service = Service(root, "/usr/lib/systemd/system/routed.service")
    service.start()                                        # returns at READY=1

What is done with each directive stands in DIRECTIVES; one that is not there is an error, so that a unit can't say what
no test has tried. User, capabilities and no_new_privs come from setpriv. The sandbox is made of what systemd makes it of:
mounts in a namespace of the service's own, and seccomp filters, here from systemd's own list of system calls
(`systemd-analyze syscall-filter`).

Invariants: nothing outside the root and its namespaces is changed; what a root has written is gone with it; the service is
one process from nsenter to the daemon, so its id is the daemon's.

Needs root, overlayfs, systemd's tools, setpriv, gcc (for the numbers of system calls). Not here: dependencies, timers,
cgroups, credentials; docs/systemd.md says what that leaves untried.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import re
import resource
import shlex
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from routed.testing.lab import LabError, Namespace, Process, run, wait_for

#: What becomes of a directive of [Service]; of the other sections nothing depends on how the process runs.
DIRECTIVES = {
    "AmbientCapabilities": "setpriv",
    "CapabilityBoundingSet": "setpriv",
    "ExecReload": "run by `reload`",
    "ExecStart": "run",
    "LimitNOFILE": "prlimit, as far as this machine lets us",
    "LockPersonality": "seccomp",
    "MemoryDenyWriteExecute": "seccomp",
    "NoNewPrivileges": "setpriv",
    "NotifyAccess": "messages of other processes are not heard",
    "OOMScoreAdjust": "written to /proc, where this machine lets us",
    "PrivateDevices": "mounts",
    "PrivateTmp": "mounts",
    "ProtectClock": "seccomp, by the filter of system calls",
    "ProtectControlGroups": "mounts",
    "ProtectHome": "mounts",
    "ProtectHostname": "seccomp, by the filter of system calls",
    "ProtectKernelLogs": "mounts",
    "ProtectKernelModules": "mounts",
    "ProtectProc": "mounts",
    "ProtectSystem": "mounts",
    "RemoveIPC": "not tried: nothing of the kind is made",
    "Restart": "followed by `mind`",
    "RestartPreventExitStatus": "followed by `mind`",
    "RestartSec": "followed by `mind`",
    "RestrictAddressFamilies": "seccomp",
    "RestrictNamespaces": "seccomp",
    "RestrictRealtime": "seccomp, by the filter of system calls",
    "RestrictSUIDSGID": "seccomp",
    "RuntimeDirectory": "made, and owned by the user",
    "RuntimeDirectoryPreserve": "kept",
    "StateDirectory": "made, and owned by the user",
    "StateDirectoryMode": "its mode",
    "SystemCallArchitectures": "seccomp",
    "SystemCallErrorNumber": "seccomp",
    "SystemCallFilter": "seccomp",
    "TimeoutStartSec": "how long `start` waits; more after EXTEND_TIMEOUT_USEC",
    "TimeoutStopSec": "how long `stop` waits",
    "Type": "notify",
    "UMask": "set",
    "User": "setpriv",
    "WatchdogSec": "followed by `mind`",
}

NOTIFY = "/run/systemd/notify"

#: Seconds a service that has ended may take to be noticed.
SOON = 30.0

_roots = itertools.count()


def read_unit(text: str) -> dict[str, dict[str, list[str]]]:
    """A unit file's values by section and key, in order; an empty value forgets those before it, as in systemd."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = found.setdefault(line[1:-1], {})
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise LabError(f"not a line of a unit: {line}")
        values = section.setdefault(key.strip(), [])
        if value.strip():
            values.append(value.strip())
        else:
            values.clear()
    return found


def seconds(text: str) -> float:
    """A time span of a unit: a plain number of seconds."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise LabError(f"{text!r} is not a number of seconds")
    return float(text)


class Root:
    """This machine's file system, copy on write, with /run, /tmp and /home of its own, in the network of a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.path = namespace.folder / f"root-{next(_roots)}"
        self.path.mkdir()
        place = shlex.quote(str(self.path))
        script = f"""set -e
            mount -t tmpfs scratch {place}
            mkdir {place}/upper {place}/work {place}/root
            mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {place}/root
            cd {place}/root
            mount -t proc proc proc
            mount -t sysfs sysfs sys
            mount --rbind /dev dev
            for each in run tmp var/tmp home; do mount -t tmpfs -o mode=755 own $each; done
            chmod 1777 tmp var/tmp
            mkdir -p run/systemd run/lock
            exec chroot . sh -c 'echo ready; exec sleep infinity'
        """
        self._holder = namespace.start("root", "unshare", "--mount", "--propagation", "private", "sh", "-c", script)
        wait_for(
            lambda: "ready" in self._holder.text() or not self._holder.alive, SOON, "a root", state=self._holder.text
        )
        if not self._holder.alive:
            raise LabError(f"no root could be made:\n{self._holder.text()}")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def host_path(self, path: str) -> Path:
        """A file of the root as the host sees it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def command(self, *argv: str) -> tuple[str, ...]:
        """The command line on the host that runs `argv` in the root."""
        return ("nsenter", "-t", str(self.pid), "-m", "-n", "-r", "-w", "--", *argv)

    def run(self, *argv: str, check: bool = True, user: str = "") -> str:
        """What a command prints, run as root or another user."""
        become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--") if user else ()
        return run(*self.command(*become, *argv), check=check)

    def users_id(self, name: str) -> tuple[int, int]:
        """The numbers of a user and of the user's group."""
        line = self.run("getent", "passwd", name)
        _, _, uid, gid, *_ = line.split(":")
        return int(uid), int(gid)


class Service:
    """A unit's service: started, told, minded, ended."""

    def __init__(self, root: Root, unit: str, name: str = "routed") -> None:
        """`unit` is a path in the root."""
        self.root = root
        self.name = name
        self.process: Process | None = None
        self.messages: list[str] = []
        """What it told systemd, in order."""
        self.results: list[str] = []
        """How its runs ended: `success`, `exit-code 78`, `signal KILL`, `watchdog`."""
        sections = read_unit(root.host_path(unit).read_text() + self._drop_ins(unit))
        self._values = sections["Service"]
        unknown = set(self._values) - set(DIRECTIVES)
        if unknown:
            raise LabError(f"{unit}: nothing is known here of {', '.join(sorted(unknown))}")
        if self.value("Type") != "notify" or self.value("NotifyAccess") != "main":
            raise LabError(f"{unit}: only Type=notify with NotifyAccess=main can be minded here")
        start = sections["Unit"]
        self._start_limit = int(start["StartLimitBurst"][-1]), seconds(start["StartLimitIntervalSec"][-1])
        self._starts: list[float] = []
        self._start_until = 0.0
        self._alive_at = 0.0
        self._stopping = False
        self._closed = threading.Event()
        self._launching = threading.Lock()
        """Held while it is not known yet whose the next messages are."""
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        place = root.host_path(NOTIFY)
        place.unlink(missing_ok=True)
        self._notify.bind(str(place))
        place.chmod(0o666)
        self._notify.settimeout(0.05)
        self._minder = threading.Thread(target=self._mind, daemon=True)
        self._minder.start()

    # ---- the unit

    def _drop_ins(self, unit: str) -> str:
        """What `systemctl edit` made: /etc/systemd/system/UNIT.d/*.conf."""
        folder = self.root.host_path(f"/etc/systemd/system/{os.path.basename(unit)}.d")
        return "".join(f"\n{path.read_text()}" for path in sorted(folder.glob("*.conf")))

    def value(self, key: str, default: str = "") -> str:
        """The last value of a directive."""
        values = self._values.get(key, [])
        return values[-1] if values else default

    def words(self, key: str) -> list[str]:
        return [word for value in self._values.get(key, []) for word in value.split()]

    @property
    def open_files(self) -> int:
        """LimitNOFILE, or what this machine lets us have of it."""
        return min(int(self.value("LimitNOFILE")), resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    # ---- what systemctl does

    def start(self) -> None:
        """Start it and wait for READY=1. Raises LabError where that does not come in time."""
        self._stopping = False
        self._launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the run that is under way has said READY=1."""
        while not self.ready:
            if time.monotonic() > self._start_until or (self.process is not None and not self.process.alive):
                raise LabError(f"{self.name} did not become ready:\n{self.log()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """As `systemctl stop`: SIGTERM, and SIGKILL after TimeoutStopSec."""
        self._stopping = True
        assert self.process is not None
        self.process.stop(seconds(self.value("TimeoutStopSec")))
        self._wait_result()

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self) -> None:
        """As `systemctl reload`: ExecReload in the root, then READY=1 anew."""
        assert self.process is not None
        said = len(self.messages)
        self.root.run(*self.value("ExecReload").replace("$MAINPID", str(self.process.pid)).split())
        wait_for(lambda: any("READY=1" in each for each in self.messages[said:]), SOON, "reloaded", state=self.log)

    def try_out(self, code: str) -> str:
        """What a Python program prints that runs as the service would: its user, its capabilities, its sandbox."""
        program = f"/usr/bin/python3 -IS -c {shlex.quote(code)}"
        return run(
            *self.root.command("unshare", "--mount", "--propagation", "private", "sh", "-c", self._script(program))
        )

    def close(self) -> None:
        """Mind it no more, and end it."""
        self._stopping = True
        self._closed.set()
        self._minder.join()
        if self.process is not None:
            self.process.kill()
        self._notify.close()

    # ---- looking

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def ready(self) -> bool:
        return any("READY=1" in each.splitlines() for each in self.messages)

    @property
    def status(self) -> str:
        """The last status line."""
        lines = [line for each in self.messages for line in each.splitlines() if line.startswith("STATUS=")]
        return lines[-1].removeprefix("STATUS=") if lines else ""

    def log(self) -> str:
        """What the journal would have, of all runs."""
        return self.process.text() if self.process is not None else ""

    def state(self) -> dict[str, str]:
        """/proc/PID/status of the daemon."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    # ---- starting

    def _launch(self) -> None:
        began = time.monotonic()
        self.messages = []
        self._start_until = time.monotonic() + seconds(self.value("TimeoutStartSec"))
        self._alive_at = time.monotonic()
        script = self._script(self.value("ExecStart"))
        with self._launching:
            self.process = self.root.namespace.start(
                self.name, *self.root.command("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
            )
        # last: while there are as many results as starts, `_mind` takes the run before for one that has been counted
        self._starts.append(began)

    def _script(self, program: str) -> str:
        """What root does before it gives up being root."""
        user = self.value("User")
        uid, gid = self.root.users_id(user)
        lines = ["set -e", f"umask {self.value('UMask', '0022')}"]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "LANG": "C.UTF-8",
            "USER": user,
            "NOTIFY_SOCKET": NOTIFY,
            "WATCHDOG_USEC": str(round(seconds(self.value("WatchdogSec")) * 1e6)),
        }
        folders = (("RuntimeDirectory", "/run", "0755"), ("StateDirectory", "/var/lib", "0755"))
        writable = ["/dev", "/proc", "/sys", "/tmp", "/var/tmp"]
        for key, parent, mode in folders:
            for name in self.words(key):
                path = f"{parent}/{name}"
                lines.append(
                    f"mkdir -p {path}; chown {uid}:{gid} {path}; chmod {self.value(f'{key}Mode', mode)} {path}"
                )
                environment[{"RuntimeDirectory": "RUNTIME_DIRECTORY", "StateDirectory": "STATE_DIRECTORY"}[key]] = path
                writable.append(path)
        lines += self._mounts(writable)
        if self.value("OOMScoreAdjust"):
            lines.append(f"echo {self.value('OOMScoreAdjust')} 2>/dev/null >/proc/self/oom_score_adj || true")
        capabilities = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in self.words("AmbientCapabilities"))
        bounding = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in self.words("CapabilityBoundingSet"))
        argv = [
            "env", "-i", *(f"{name}={value}" for name, value in environment.items()), "JOURNAL_STREAM=$journal",
            "WATCHDOG_PID=$$",
            "prlimit", f"--nofile={self.open_files}:{self.open_files}",
            "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups",
            f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}", f"--bounding-set=-all,{bounding}",
            *(["--no-new-privs"] if self.value("NoNewPrivileges") == "yes" else []),
            "/usr/bin/python3", "-IS", "-c", shlex.quote(_FILTER_LOADER), *self._filters(), "--",
            program,
        ]  # fmt: skip
        lines += ["journal=$(stat -L -c %d:%i /proc/self/fd/2)", f"exec {' '.join(argv)}"]
        return "\n".join(lines)

    def _mounts(self, writable: Sequence[str]) -> Iterator[str]:
        if self.value("ProtectSystem") == "strict":
            for path in writable:
                yield f"mount --bind {path} {path}" if path not in ("/dev", "/proc", "/sys") else ":"
            yield "mount -o remount,bind,ro /"
            yield "mount -o remount,bind,ro /run"
        if self.value("ProtectProc"):
            yield f"mount -t proc -o hidepid={self.value('ProtectProc')} proc /proc"
        if self.value("ProtectControlGroups") == "yes":
            yield "mount -o remount,bind,ro /sys"
        if self.value("ProtectKernelLogs") == "yes":
            yield "mount --bind /dev/null /proc/kmsg"
        if self.value("ProtectKernelModules") == "yes":
            yield "for each in /usr/lib/modules; do [ ! -d $each ] || mount -t tmpfs -o mode=0 none $each; done"
        if self.value("ProtectHome") == "yes":
            yield "for each in /home /root; do mount -t tmpfs -o mode=0,ro none $each; done"
        if self.value("PrivateTmp") == "yes":
            yield "for each in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 none $each; done"
        if self.value("PrivateDevices") == "yes":
            yield "mkdir -p /tmp/dev; mount -t tmpfs -o mode=755 none /tmp/dev"
            yield "for each in null zero full random urandom tty; do"
            yield "touch /tmp/dev/$each; mount --bind /dev/$each /tmp/dev/$each; done"
            yield "ln -s /proc/self/fd /tmp/dev/fd; mount --rbind /tmp/dev /dev; umount -l /tmp/dev; rmdir /tmp/dev"

    def _filters(self) -> list[str]:
        """The seccomp programs of the unit, as the loader takes them."""
        programs = []
        if self.value("RestrictAddressFamilies"):
            programs.append(_only_families(self.words("RestrictAddressFamilies")))
        if self.value("MemoryDenyWriteExecute") == "yes":
            programs.append(_no_writable_code())
        if self.value("RestrictNamespaces") == "yes":
            programs.append(_no_namespaces())
        if self.value("RestrictSUIDSGID") == "yes":
            programs.append(_no_setuid_files())
        allowed = set(system_calls("@default"))  # systemd allows these in any case
        for value in self._values.get("SystemCallFilter", []):
            names = set[str]().union(*(system_calls(word) for word in value.removeprefix("~").split()))
            allowed = allowed - names if value.startswith("~") else allowed | names
        if self.value("LockPersonality") == "yes":
            allowed -= {"personality"}
        programs.append(_only_calls(allowed))
        return [base64.b64encode(program).decode() for program in programs]

    # ---- minding

    def _mind(self) -> None:
        """What systemd's own loop does for a service: hear it, look at its watchdog, start it again."""
        while not self._closed.is_set():
            self._hear()
            process = self.process
            if process is None or len(self.results) >= len(self._starts):
                continue
            if not process.alive:
                self._ended(process)
            elif self.ready and time.monotonic() - self._alive_at > seconds(self.value("WatchdogSec")):
                process.signal(signal.SIGABRT)
                process.wait()
                self._ended(process, "watchdog")

    def _hear(self) -> None:
        with contextlib.suppress(TimeoutError):
            data, control, _, _ = self._notify.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
            sender = struct.unpack("3i", control[0][2])[0]
            with self._launching:
                main = self.process
            if main is None or sender != main.pid:
                return
            text = data.decode()
            self.messages.append(text)
            for line in text.splitlines():
                name, _, value = line.partition("=")
                if name in ("WATCHDOG", "READY"):
                    self._alive_at = time.monotonic()
                elif name == "EXTEND_TIMEOUT_USEC":
                    self._start_until = max(self._start_until, time.monotonic() + int(value) / 1e6)

    def _ended(self, process: Process, result: str = "") -> None:
        status = process.wait()
        if not result:
            result = "success" if status == 0 else f"exit-code {status}"
            if status < 0:
                result = f"signal {signal.Signals(-status).name.removeprefix('SIG')}"
        self.results.append(result)
        clean = status == 0 or -status in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
        if self._stopping or clean or str(status) in self.words("RestartPreventExitStatus"):
            return
        if self.value("Restart") != "on-failure":
            raise LabError("only Restart=on-failure is known here")
        burst, interval = self._start_limit
        if sum(at > time.monotonic() - interval for at in self._starts) >= burst:
            self.results[-1] += ", start-limit-hit"
            return
        if not self._closed.wait(seconds(self.value("RestartSec"))):
            self._launch()

    def _wait_result(self) -> None:
        wait_for(lambda: len(self.results) >= len(self._starts), SOON, f"{self.name} has ended")


# ---- seccomp(2): classic BPF over struct seccomp_data

_LOAD, _EQUAL, _AND, _ANY, _RETURN = 0x20, 0x15, 0x54, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97

#: Runs as the service's user, as the last thing before the daemon: each argument is a filter, `--` ends them.
_FILTER_LOADER = """\
import base64, ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
end = sys.argv.index("--")
for text in sys.argv[1:end]:
    code = base64.b64decode(text)
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
    program = Program(len(code) // 8, code)
    if libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        sys.exit("seccomp: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[end + 1], sys.argv[end + 1:])
"""


@cache
def system_calls(word: str) -> frozenset[str]:
    """The system calls of a word of SystemCallFilter=: itself, or what a group holds, groups within it included."""
    if not word.startswith("@"):
        return frozenset((word,))
    lines = [line.strip() for line in run("systemd-analyze", "syscall-filter", word).splitlines()[1:]]
    names = [line for line in lines if line and not line.startswith("#")]
    return frozenset[str]().union(*(system_calls(name) for name in names))


@cache
def _numbers() -> dict[str, int]:
    """The numbers of this machine's system calls."""
    text = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}


def _op(code: int, value: int, hit: int = 0, miss: int = 0) -> bytes:
    return struct.pack("=HBBI", code, hit, miss, value)


def _argument(index: int) -> bytes:
    """Load the lower half of an argument (on a little-endian machine)."""
    return _op(_LOAD, 16 + 8 * index)


def _native_only() -> bytes:
    """SystemCallArchitectures=native: calls of another architecture are refused."""
    machine = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
    return _op(_LOAD, 4) + _op(_EQUAL, machine, 1) + _op(_RETURN, _ERRNO | _EPERM) + _op(_LOAD, 0)


def _only_calls(names: set[str]) -> bytes:
    known = _numbers()
    program = _native_only()
    for number in sorted(known[name] for name in names if name in known):
        program += _op(_EQUAL, number, 0, 1) + _op(_RETURN, _ALLOW)
    return program + _op(_RETURN, _ERRNO | _EPERM)


def _for_calls(rules: Callable[[], Iterator[tuple[str, bytes]]]) -> bytes:
    """A program that allows all calls but those its rules judge; a rule ends with a verdict."""
    program = _native_only()
    for name, rule in rules():
        if name in _numbers():
            program += _op(_EQUAL, _numbers()[name], 0, len(rule) // 8) + rule
    return program + _op(_RETURN, _ALLOW)


def _refuse_bits(index: int, bits: int, number: int = _EPERM) -> bytes:
    """Refused where an argument has one of these bits."""
    return _argument(index) + _op(_ANY, bits, 0, 1) + _op(_RETURN, _ERRNO | number) + _op(_RETURN, _ALLOW)


def _refuse_all_bits(index: int, bits: int) -> bytes:
    """Refused where an argument has all of these bits."""
    test = _op(_AND, bits) + _op(_EQUAL, bits, 0, 1)
    return _argument(index) + test + _op(_RETURN, _ERRNO | _EPERM) + _op(_RETURN, _ALLOW)


def _only_families(names: Sequence[str]) -> bytes:
    def rules() -> Iterator[tuple[str, bytes]]:
        allowed = b"".join(_op(_EQUAL, getattr(socket, name), 0, 1) + _op(_RETURN, _ALLOW) for name in names)
        yield "socket", _argument(0) + allowed + _op(_RETURN, _ERRNO | _EAFNOSUPPORT)

    return _for_calls(rules)


def _no_writable_code() -> bytes:
    def rules() -> Iterator[tuple[str, bytes]]:
        yield "mmap", _refuse_all_bits(2, 0x2 | 0x4)  # PROT_WRITE and PROT_EXEC
        for name in ("mprotect", "pkey_mprotect"):
            yield name, _refuse_bits(2, 0x4)
        yield "shmat", _refuse_bits(2, 0o100000)  # SHM_EXEC

    return _for_calls(rules)


def _no_namespaces() -> bytes:
    flags = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000

    def rules() -> Iterator[tuple[str, bytes]]:
        yield "unshare", _refuse_bits(0, flags)
        yield "clone", _refuse_bits(0, flags)
        yield "clone3", _op(_RETURN, _ERRNO | _ENOSYS)  # its flags are in memory, where a filter can't look
        yield "setns", _op(_RETURN, _ERRNO | _EPERM)

    return _for_calls(rules)


def _no_setuid_files() -> bytes:
    def rules() -> Iterator[tuple[str, bytes]]:
        for name, index in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2), ("mknodat", 2)):
            yield name, _refuse_bits(index, 0o6000)

    return _for_calls(rules)
