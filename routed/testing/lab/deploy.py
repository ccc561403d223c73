"""A whole laboratory from a topology file: brought up, found again, ended.

    with deployed(read_topology(file)) as lab:     # ends with the block, or with this process
        lab.nodes["pod1"].pings("10.244.2.2")

    leave(read_topology(file))                     # stays until `end` is called, by whichever process

The order is containerlab's: main programs first, then links, then the commands of `exec`. So a daemon starts before its
interfaces are there, as it does in a container.

Invariants: a laboratory that stays is written down under RUNNING, one folder each, before its nodes are let off the
leash; so whatever runs without belonging to a process can be found and ended. Bringing one up that is up changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import IO

from routed.testing.lab.clab import Link, Topology
from routed.testing.lab.document import TopologyError
from routed.testing.lab.images import image_of
from routed.testing.lab.namespaces import LabError, fresh_prefix, remove_stale, run
from routed.testing.lab.nodes import Node, start_node
from routed.values import dataclass

#: Laboratories that stay.
RUNNING = Path("/run/routed-lab")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A laboratory that runs."""

    name: str
    file: Path
    folder: Path
    nodes: Mapping[str, Node]
    failures: tuple[str, ...] = ()
    """Commands of `exec` that failed, a sentence each."""
    leashes: list[IO[bytes]] = field(default_factory=list, compare=False)

    @property
    def alive(self) -> bool:
        return all(node.alive for node in self.nodes.values())

    def report(self, lines: int = 30) -> str:
        """The last words of every main program, for whoever has to find out what went wrong."""
        parts = []
        for node in self.nodes.values():
            if node.command:
                text = node.log.read_text(errors="replace").splitlines()[-lines:] if node.log.exists() else []
                parts.append("\n".join([f"--- {node.name} ({', '.join(node.processes()) or 'nothing runs'})", *text]))
        return "\n".join(parts)

    def close(self) -> None:
        """End every node and remove its files."""
        for leash in self.leashes:
            with contextlib.suppress(OSError):
                leash.close()
        for node in self.nodes.values():
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def deployed(topology: Topology) -> Iterator[Deployment]:
    """A laboratory for the time of a block."""
    remove_stale()
    folder = Path(tempfile.gettempdir()) / f"{fresh_prefix()}-{topology.name}"
    folder.mkdir(mode=0o755)
    lab = _deploy(topology, topology.name, folder)
    try:
        yield lab
    finally:
        lab.close()


def leave(topology: Topology, name: str = "") -> tuple[Deployment, bool]:
    """A laboratory that stays, under a name (the topology's own by default), and whether it was up already."""
    name = name or topology.name
    with _locked(name):
        lab = find(name)
        if lab is not None:
            if lab.file != topology.file:
                raise LabError(f"a laboratory `{name}` of {lab.file} is up: end it, or give this one another name")
            return lab, True
        folder = RUNNING / name
        _end(folder)  # what is left of one that is not whole
        folder.mkdir()
        try:
            lab = _deploy(topology, name, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        state = {
            "file": str(lab.file),
            "failures": lab.failures,
            "nodes": {node.name: {**asdict(node), "log": str(node.log)} for node in lab.nodes.values()},
        }
        fresh = folder / "state.new"
        fresh.write_text(json.dumps(state))
        fresh.rename(folder / "state.json")
        for leash in lab.leashes:
            leash.write(b"stay\n")
            leash.close()
        lab.leashes.clear()
        return lab, False


def find(name: str) -> Deployment | None:
    """A laboratory that stays, or none where no such one is whole."""
    lab = _written(RUNNING / name)
    return lab if lab is not None and lab.alive else None


def _written(folder: Path) -> Deployment | None:
    """The laboratory that was written down in a folder, whatever has become of it."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    nodes = {}
    for key, row in state["nodes"].items():
        command, commands = tuple(row.pop("command")), tuple(tuple(each) for each in row.pop("exec"))
        nodes[key] = Node(**{**row, "log": Path(row["log"])}, command=command, exec=commands)
    return Deployment(folder.name, Path(state["file"]), folder, nodes, tuple(state["failures"]))


def _end(folder: Path) -> None:
    """Whatever is left of what was in this folder."""
    lab = _written(folder)
    if lab is not None:
        lab.close()
    shutil.rmtree(folder, ignore_errors=True)


def names() -> list[str]:
    """The laboratories that stay, those included of which something is left."""
    return sorted(path.name for path in RUNNING.iterdir() if path.is_dir()) if RUNNING.is_dir() else []


def end(name: str) -> bool:
    """End a laboratory that stays, whatever is left of it. Whether there was one."""
    if name not in names():
        return False
    with _locked(name):
        _end(RUNNING / name)
    with contextlib.suppress(FileNotFoundError):
        (RUNNING / f"{name}.lock").unlink()
    return True


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Nobody else brings up or ends the laboratory of this name meanwhile."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name[0] in ".-":
        raise LabError(f"`{name}` can't be a laboratory's name: letters, digits, dots, dashes and underscores")
    RUNNING.mkdir(mode=0o755, exist_ok=True)
    with open(RUNNING / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _deploy(topology: Topology, name: str, folder: Path) -> Deployment:
    """Everything up. What fails takes all of it down again."""
    if os.geteuid() != 0:
        raise LabError("a laboratory needs root, for network namespaces")
    images = {node.name: image_of(node) for node in topology.nodes.values() if node.kind == "linux"}
    nodes: dict[str, Node] = {}
    failures: list[str] = []
    lab = Deployment(name, topology.file, folder, nodes)
    try:
        for spec in sorted(topology.nodes.values(), key=lambda spec: bool(spec.shares)):
            shares = nodes[spec.shares].pid if spec.shares else 0
            nodes[spec.name], leash = start_node(spec, images.get(spec.name), folder, shares)
            lab.leashes.append(leash)
            if spec.kind == "bridge":
                nodes[spec.name].run("ip", "link", "add", bridge_name(spec.name), "type", "bridge")
                nodes[spec.name].run("ip", "link", "set", bridge_name(spec.name), "up")
        began = time.monotonic()
        for spec in sorted(topology.nodes.values(), key=lambda spec: spec.startup_delay):
            time.sleep(max(0.0, began + spec.startup_delay - time.monotonic()))
            nodes[spec.name].start()
        for link in topology.links:
            _link(link, topology, nodes)
        for node in nodes.values():
            failures += node.boot()
    except BaseException:
        lab.close()
        raise
    return Deployment(name, topology.file, folder, nodes, tuple(failures), lab.leashes)


def bridge_name(node: str) -> str:
    """`br0|host` is the bridge br0 inside the node host."""
    return node.partition("|")[0]


def _link(link: Link, topology: Topology, nodes: Mapping[str, Node]) -> None:
    one = link.ends[0]
    words = ["ip", "link", "add", one.interface, "netns", str(nodes[one.node].pid), "mtu", str(link.mtu)]
    if len(link.ends) == 1:
        words += ["type", "dummy"]
    else:
        other = link.ends[1]
        words += ["type", "veth", "peer", "name", other.interface, "netns", str(nodes[other.node].pid)]
        words += ["mtu", str(link.mtu)]
    try:
        run(*words)
    except LabError as error:
        ends = " to ".join(f"{end.node}:{end.interface}" for end in link.ends)
        raise TopologyError(f"{topology.file}: the link {ends} could not be made: {error}") from None
    for end_ in link.ends:
        node = nodes[end_.node]
        if end_.mac:
            node.run("ip", "link", "set", end_.interface, "address", end_.mac)
        if topology.nodes[end_.node].kind == "bridge":
            node.run("ip", "link", "set", end_.interface, "master", bridge_name(end_.node))
    for end_ in link.ends:
        nodes[end_.node].run("ip", "link", "set", end_.interface, "up")
