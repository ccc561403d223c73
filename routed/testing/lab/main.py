"""The command line behind `make lab`: topologies brought up and left, entered, checked and ended."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from routed.testing.lab.clab import read_topology
from routed.testing.lab.deploy import deployed, end, find, leave, names
from routed.testing.lab.expect import FILE, check, read_expectation
from routed.testing.lab.namespaces import LabError
from routed.testing.lab.nodes import Node

#: What to type in a node, by what runs there.
COMMANDS = {
    "routed": "routedctl show neighbors",
    "bird": "birdc show protocols",
    "frr": "vtysh -c 'show bgp summary'",
    "gobgp": "gobgp neighbor",
}


def topology_file(path: Path) -> Path:
    """The topology file that is meant: itself, or the only one in a folder. Raises LabError."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.clab.yml"))
    if len(found) != 1:
        raise LabError(f"{path}: there are {len(found)} files *.clab.yml in it, not one")
    return found[0]


def up(path: Path, name: str) -> int:
    topology = read_topology(topology_file(path))
    lab, was_there = leave(topology, name)
    say(f"{lab.name} is up{' already' if was_there else ''}: {len(lab.nodes)} nodes")
    for node in lab.nodes.values():
        say(f"  {node.name:12} {node.role:7} {addresses(node)}".rstrip())
    this = f"{os.path.relpath(sys.executable)} -m routed.testing.lab"
    say("\nA shell in a node, and a question to its daemon:")
    roles: dict[str, Node] = {}
    for node in lab.nodes.values():
        if node.role in COMMANDS:
            roles.setdefault(node.role, node)
    first = roles.get("routed") or next(iter(lab.nodes.values()))
    say(f"  {this} shell {lab.name} {first.name}")
    for role, node in roles.items():
        say(f"  {this} exec {lab.name} {node.name} {COMMANDS[role]}")
    say(f"End it:\n  make lab-down TOPO={lab.name}")
    for note in topology.notes:
        warn(note)
    for failure in lab.failures:
        warn(failure)
    return 1 if lab.failures else 0


def addresses(node: Node) -> str:
    rows = json.loads(node.run("ip", "-j", "addr", "show", "scope", "global") or "[]")
    return ", ".join(
        f"{row['ifname']} {each['local']}/{each['prefixlen']}"
        for row in rows
        for each in row.get("addr_info", ())
        if "local" in each
    )


def down(wanted: list[str]) -> int:
    all_ = wanted or names()
    failed = False
    for name in all_:
        try:
            say(f"{name} is down" if end(name) else f"{name} is not up")
        except AssertionError as error:  # the others are ended none the less
            failed = True
            warn(f"lab: {name} does not end: {error}")
    if not all_:
        say("no laboratory is up")
    return int(failed)


def show() -> int:
    for name in names():
        lab = find(name)
        say(f"{name:16} {len(lab.nodes)} nodes  {lab.file}" if lab else f"{name:16} is broken: end it")
    return 0


def enter(name: str, node: str, command: list[str]) -> int:
    """This process becomes the command in the node."""
    lab = find(name)
    if lab is None:
        raise LabError(f"no laboratory `{name}` is up; there are: {', '.join(names()) or 'none'}")
    if node not in lab.nodes:
        raise LabError(f"there is no node `{node}` in {name}; there are: {', '.join(lab.nodes)}")
    terminal = {"TERM": os.environ.get("TERM", "linux"), "PS1": f"{node}# "}
    inside = lab.nodes[node].entering("env", *(f"{key}={value}" for key, value in terminal.items()), *command)
    os.execvp(inside[0], inside)


def verify(path: Path) -> int:
    """Bring one up, check what must hold, and end it."""
    file = topology_file(path)
    topology = read_topology(file)
    expectation = read_expectation(file.parent / FILE, topology)
    with deployed(topology) as lab:
        try:
            check(lab, expectation, say)
        except AssertionError as error:
            say(lab.report())
            raise LabError(f"{topology.name}: {error}") from None
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m routed.testing.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    verb = verbs.add_parser("up", help="bring a topology up and leave it; nothing changes where it is up")
    verb.add_argument("topology", type=Path, help="a *.clab.yml, or a folder with one")
    verb.add_argument("--as", dest="name", default="", help="its name while it runs (default: the topology's)")
    verb = verbs.add_parser("down", help="end these laboratories, or all")
    verb.add_argument("names", nargs="*", metavar="NAME")
    verbs.add_parser("list", help="the laboratories that are up")
    verb = verbs.add_parser("check", help="bring a topology up, check its expect.yaml, end it")
    verb.add_argument("topology", type=Path)
    for name, text in (("shell", "a shell in a node"), ("exec", "a command in a node")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("name", metavar="LAB")
        verb.add_argument("node", metavar="NODE")
        if name == "exec":
            verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    given = parser.parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise LabError("a laboratory needs root, for network namespaces")
        if given.verb == "up":
            return up(given.topology, given.name)
        if given.verb == "down":
            return down(given.names)
        if given.verb == "list":
            return show()
        if given.verb == "check":
            return verify(given.topology)
        command = ["bash", "--norc"] if given.verb == "shell" else given.command
        if not command:
            parser.error("exec needs a command")
        return enter(given.name, given.node, command)
    except LabError as error:
        warn(f"lab: {error}")
        return 1


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    sys.stderr.write(text + "\n")
