"""Process 1 of a laboratory's node: makes the node's namespaces and its view of the files, then reaps and waits.

Run by `nodes` as a program of its own, with nothing but the standard library, so that it starts in milliseconds. The first
line of standard input is the description, as JSON; the answers on standard output are the process id and `ready`, or one
line that says what failed.

Invariants:
- Standard input is the leash: when it ends, the node ends, with every process in it and its network. Only after the word
  `stay` does the node outlive who made it. So a crash leaves nothing behind, at whatever moment.
- The host's files are seen, but none can be changed: what a node writes goes to folders of its own, in memory, or to what
  the topology binds writable.
- The root folder is the node's own, so that a file can be bound at any path without a trace on the host. The host's root
  is at /.host.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18

HOST = "/.host"

#: Folders every node has to itself.
OWN = ("/run", "/tmp", "/var/tmp", "/var/log", "/root")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    encoded = [text.encode() or None for text in (source, target, kind, options)]
    check(libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), f"mount {source} at {target}")


def bind(source: str, target: str, *, read_only: bool) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)
    mount("", target, flags=MS_REMOUNT | MS_BIND | (MS_RDONLY if read_only else 0))


def ancestors(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found


def real(path: str) -> str:
    """The path with symbolic links of the host resolved, but for the last name."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


class Root:
    """The node's root folder: the host's, with folders and files of the node's own in it."""

    def __init__(self, own: list[str], targets: list[str]) -> None:
        self.own = {real(path) for path in (*OWN, *own)}
        #: folders that are made anew, entry by entry, since something in them is the node's own
        self.parted = {"/", "/etc"}
        for path in (*self.own, *map(real, targets)):
            above = ancestors(path)
            inside = [each for each in above if each in self.own]
            if not inside:
                self.parted.update(above)

    def build(self, path: str = "/") -> None:
        for name in os.listdir(HOST + path):
            here = os.path.join(path, name)
            there = HOST + here
            if here in (HOST, "/proc", "/sys", "/dev") or here in self.own:
                continue
            if here in self.parted and os.path.isdir(there) and not os.path.islink(there):
                os.mkdir(here)
                self.build(here)
            elif path == "/" and os.path.isdir(there) and not os.path.islink(there):
                os.mkdir(here)
                mount(there, here, flags=MS_BIND | MS_REC)
            elif path == "/" and os.path.islink(there):
                os.symlink(os.readlink(there), here)
            else:
                os.symlink(there, here)

    def folder(self, path: str) -> str:
        """A folder of the node's own, made with its parents."""
        path = real(path)
        os.makedirs(path, exist_ok=True)
        return path

    def place(self, target: str, *, folder: bool) -> str:
        """Something to mount over."""
        target = real(target)
        if folder:
            return self.folder(target)
        self.folder(os.path.dirname(target))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        with open(target, "w"):
            pass
        return target


def seal() -> None:
    """Every mount of the host that is seen here can't be written to."""
    spared = ("/proc", "/sys", "/dev", f"{HOST}/proc", f"{HOST}/sys", f"{HOST}/dev")
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    for point in points:
        if point != "/" and not any(point == each or point.startswith(each + "/") for each in spared):
            with contextlib.suppress(OSError):  # mounts hidden under others
                mount("", point, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def enter_root(at: str) -> None:
    """A fresh folder in memory becomes the root, the host's root is at /.host."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", at, "tmpfs", options="mode=755,size=64m")
    os.mkdir(at + HOST)
    subprocess.run(["pivot_root", at, at + HOST], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    os.chdir("/")


def furnish(given: dict[str, object]) -> None:
    """Mounts, files, sysctls: all that must be there before the first program."""
    folders: dict[str, str] = given["folders"]  # type: ignore[assignment]  # the caller is nodes.py
    binds: list[tuple[str, str, bool]] = given["binds"]  # type: ignore[assignment]
    tmpfs: dict[str, str] = given["tmpfs"]  # type: ignore[assignment]
    sysctls: dict[str, str] = given["sysctls"]  # type: ignore[assignment]
    hostname = str(given["hostname"])
    socket.sethostname(hostname)
    # looked up while the interpreter's own modules are still where it expects them
    owners = {path: pwd.getpwnam(owner) for path, owner in folders.items()}
    root = Root(list(folders), [target for _, target, _ in binds] + list(tmpfs))
    enter_root(str(given["root"]))
    for name in ("/proc", "/sys", "/dev"):
        os.mkdir(name)
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount(f"{HOST}/dev", "/dev", flags=MS_BIND | MS_REC)
    root.build()
    seal()
    for path in (*OWN, *folders):
        os.chmod(root.folder(path), 0o1777 if path.endswith("tmp") else 0o755)
        if path in owners:
            os.chown(root.folder(path), owners[path].pw_uid, owners[path].pw_gid)
    for path, text in (("/etc/hostname", f"{hostname}\n"), ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")):
        with open(root.place(path, folder=False), "w") as file:
            file.write(text)
    for target, options in tmpfs.items():
        mount("tmpfs", root.place(target, folder=True), "tmpfs", options=options)
    for source, target, read_only in sorted(binds, key=lambda each: each[1].count("/")):
        at = root.place(target, folder=os.path.isdir(HOST + source))
        bind(HOST + os.path.realpath(HOST + source).removeprefix(HOST), at, read_only=read_only)
    if not given["shares"]:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    for key, value in sysctls.items():
        try:
            with open("/proc/sys/" + key.replace(".", "/"), "w") as file:
                file.write(value)
        except OSError as error:
            raise OSError(error.errno, f"sysctl {key}={value}: {error.strerror}") from None


def wait_for_the_end() -> None:
    """Reap what ends, until the leash does or SIGTERM comes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    watched = [0, reading]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if reading in ready:
            os.read(reading, 4096)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        if 0 in ready:
            if not os.read(0, 4096).startswith(b"stay"):
                os._exit(0)
            watched.remove(0)


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or sys.exit(1)
    given = json.loads(line)
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    if given["shares"]:
        with open(f"/proc/{given['shares']}/ns/net") as other:
            check(libc.setns(other.fileno(), CLONE_NEWNET), "enter the other node's network")
    else:
        flags |= CLONE_NEWNET
    check(libc.unshare(flags), "unshare")
    child = os.fork()
    if child:
        os.write(1, f"{child}\n".encode())
        os._exit(0)
    os.setsid()
    try:
        furnish(given)
    except (OSError, LookupError, subprocess.CalledProcessError) as error:
        os.write(1, f"{error}\n".encode())
        os._exit(1)
    os.write(1, b"ready\n")
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    wait_for_the_end()


if __name__ == "__main__":
    main()
