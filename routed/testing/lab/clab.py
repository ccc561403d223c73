"""A containerlab topology file (`*.clab.yml`), read.

    topology = read_topology(Path("containerlab/mesh-3/mesh-3.clab.yml"))
    topology.nodes["node1"].binds

What a file may say is containerlab's (its manual and schemas/clab.schema.json, as of August 2026); what becomes of each
key here is one of three things, and the tables below say which:

- it is honoured, and means what it means in containerlab;
- it changes nothing about the network (labels, limits, management addresses): `Topology.notes` says that it was left out;
- it asks for what plain namespaces can't give, or what would touch the host: refused.

A key containerlab does not know either is refused too. Every refusal is one sentence with file, line, column and the
key's path. Invariants: a `Topology` is complete (defaults, kinds, groups and variables are worked in, paths are absolute
and exist), and reading runs nothing.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path

from routed.testing.lab.document import Value, read_document
from routed.values import dataclass

KINDS = ("linux", "bridge")

#: What containerlab gives an interface whose link names no MTU.
DEFAULT_MTU = 9500

#: Characters of an interface's name in the kernel.
MAX_INTERFACE = 15

NODE_USED = {
    "kind", "image", "group", "binds", "exec", "env", "env-files", "entrypoint", "cmd", "sysctls", "hostname",
    "network-mode", "startup-config", "startup-delay", "tmpfs",
}  # fmt: skip

#: Keys that change nothing about the network, and why they are left out.
NODE_NOTED = {
    **dict.fromkeys(("mgmt-ipv4", "mgmt-ipv6", "aliases", "dns"), "there is no management network"),
    "ports": "no port of the host leads into a node",
    **dict.fromkeys(("image-pull-policy", "runtime", "license"), "programs come from this machine, not from images"),
    **dict.fromkeys(("cpu", "cpu-set", "memory", "shm-size", "cgroupns-mode", "cgroup-parent"), "nodes have no limits"),
    **dict.fromkeys(("cap-add", "privileged", "security-opts"), "programs in a node run as root of its namespaces"),
    **dict.fromkeys(("restart-policy", "auto-remove"), "a program that ends is not started again"),
    "healthcheck": "whether a node is healthy is for expect.yaml to say",
    "link-apply-mode": "links are made once",
    **dict.fromkeys(("labels", "type", "credentials"), "they mean nothing to these kinds"),
    **dict.fromkeys(("enforce-startup-config", "suppress-startup-config"), "no run leaves a configuration to the next"),
}  # fmt: skip

#: Keys that can't be left out without the node being another one.
NODE_REFUSED = (
    "user", "volumes", "devices", "stages", "certificate", "config", "extras", "components", "pid-mode",
)  # fmt: skip

TOP_USED = {"name", "topology"}
TOP_NOTED = {
    "prefix": "nodes go by their short names",
    "mgmt": "there is no management network",
    "debug": "there is nothing to debug",
    "settings": "no certificates are made",
}
TOPOLOGY_USED = {"nodes", "links", "kinds", "groups", "defaults"}

LINK_NOTED = {"vars": "no configuration is made of templates", "labels": "they mean nothing to these kinds"}
LINK_REFUSED_TYPES = {
    **dict.fromkeys(("host", "mgmt-net", "macvlan"), "would touch this machine's own network"),
    **dict.fromkeys(("vxlan", "vxlan-stitch"), "leads out of this machine"),
    "veth-stitch": "is not done by this runner",
}

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_NODE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._|-]*")
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}")

#: `$$`, `$name`, `${name}`, `${name:=text}` and the like.
_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-=+])([^}]*))?\})")


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the host that a node sees."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node as the file describes it, with what it inherits."""

    name: str
    kind: str
    place: str
    """Where in the file it stands, for errors."""
    image: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    exec: tuple[tuple[str, ...], ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    startup_config: Path | None = None
    startup_delay: int = 0
    shares: str = ""
    """The node whose network it is in (`network-mode: container:NAME`), or none."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link."""

    node: str
    interface: str
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A wire with two ends, or a dummy interface, which has one."""

    ends: tuple[End, ...]
    mtu: int = DEFAULT_MTU


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole file."""

    name: str
    file: Path
    nodes: Mapping[str, NodeSpec]
    links: tuple[Link, ...]
    notes: tuple[str, ...]
    """What was left out, a sentence each."""


def read_topology(file: Path, environment: Mapping[str, str] | None = None) -> Topology:
    """Read a topology file; `environment` is what `${NAME}` in it stands for. Raises TopologyError."""
    file = file.absolute()
    variables = os.environ if environment is None else environment
    root = read_document(file, lambda text: expand(text, variables))
    return _Reader(file).topology(root)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Shell variables, as containerlab expands them: what is not set and has no default stays as it is."""

    def value(match: re.Match[str]) -> str:
        dollar, plain, name, operator, other = match.groups()
        if dollar:
            return "$"
        name = plain or name
        found = environment.get(name)
        if not operator:
            return match[0] if found is None else found
        is_there = bool(found) if operator[0] == ":" else found is not None
        if operator[-1] == "+":
            return expand(other, environment) if is_there else ""
        return found or "" if is_there else expand(other, environment)

    return _VARIABLE.sub(value, text)


class _Reader:
    """One reading of one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.notes: list[str] = []

    def topology(self, root: Value) -> Topology:
        top = root.known(TOP_USED, TOP_NOTED, {})
        for name in ("name", "topology"):
            if name not in top:
                root.fail(f"`{name}` is missing")
        self.note(top, TOP_NOTED)
        name = top["name"].text()
        if not _NAME.fullmatch(name):
            top["name"].fail("must be letters, digits, dots, dashes and underscores")
        parts = top["topology"].known(TOPOLOGY_USED, {}, {})
        if "nodes" not in parts:
            top["topology"].fail("`nodes` is missing")
        kinds = parts["kinds"].items() if "kinds" in parts else {}
        for kind, value in kinds.items():
            self.check_kind(value, kind)
        groups = parts["groups"].items() if "groups" in parts else {}
        scopes = [*kinds.values(), *groups.values(), *([parts["defaults"]] if "defaults" in parts else [])]
        for scope in [*scopes, *parts["nodes"].items().values()]:
            self.note(self.node_keys(scope), NODE_NOTED)
        nodes = {
            node: self.node(name, node, value, groups, kinds, parts.get("defaults"))
            for node, value in parts["nodes"].items().items()
        }
        if not nodes:
            parts["nodes"].fail("there is no node")
        self.check_sharing(nodes, parts["nodes"])
        links = self.links(parts["links"], nodes) if "links" in parts else ()
        return Topology(name, self.file, nodes, links, tuple(dict.fromkeys(self.notes)))

    def note(self, found: Mapping[str, Value], noted: Mapping[str, str]) -> None:
        self.notes += [
            f"{value.place}: {value.key}: left out: {noted[name]}" for name, value in found.items() if name in noted
        ]

    def node_keys(self, value: Value) -> dict[str, Value]:
        return value.known(NODE_USED, NODE_NOTED, dict.fromkeys(NODE_REFUSED, "this runner of namespaces has not"))

    def check_kind(self, value: Value, kind: str) -> None:
        if kind not in KINDS:
            value.fail(f"kind `{kind}` needs its image; this runner has the kinds {' and '.join(KINDS)}")

    def node(
        self,
        lab: str,
        name: str,
        value: Value,
        groups: Mapping[str, Value],
        kinds: Mapping[str, Value],
        defaults: Value | None,
    ) -> NodeSpec:
        if not _NODE_NAME.fullmatch(name):
            value.fail("a node's name is letters, digits, dots, dashes and underscores")
        own = self.node_keys(value)
        base = self.node_keys(defaults) if defaults is not None else {}
        group: Mapping[str, Value] = {}
        if "group" in own or "group" in base:
            wanted = own.get("group") or base["group"]
            # a group nothing is said about only sorts nodes in pictures
            group = self.node_keys(groups[wanted.text()]) if wanted.text() in groups else {}
        kind_value = own.get("kind") or group.get("kind") or base.get("kind")
        if kind_value is None:
            value.fail("has no kind: say `kind: linux`, here or in the defaults")
        kind = kind_value.text()
        self.check_kind(kind_value, kind)
        # from the least specific to the most
        layers = [base, self.node_keys(kinds[kind]) if kind in kinds else {}, group, own]

        def last(key: str) -> Value | None:
            return next((layer[key] for layer in reversed(layers) if key in layer), None)

        def each(key: str) -> Iterator[Value]:
            for layer in layers:
                if key in layer:
                    yield layer[key]

        def merged(key: str) -> dict[str, Value]:
            return {inner: found for mapping in each(key) for inner, found in mapping.items().items()}

        def magic(text: str) -> str:
            folder = self.file.parent / f"clab-{lab}"
            for variable, meaning in (
                ("__clabNodeName__", name),
                ("__clabNodeDir__", str(folder / name)),
                ("__clabDir__", str(folder)),
                ("__clabLabName__", folder.name),
            ):
                text = text.replace(variable, meaning)
            return text

        network = last("network-mode")
        shares = self.network_mode(network, kind) if network is not None else ""
        image = last("image")
        if kind == "linux" and image is None:
            value.fail("has no image")
        entrypoint, cmd, hostname, delay = last("entrypoint"), last("cmd"), last("hostname"), last("startup-delay")
        startup = last("startup-config")
        return NodeSpec(
            name=name,
            kind=kind,
            place=value.place,
            image=image.text() if image is not None else "",
            entrypoint=entrypoint.words() if entrypoint is not None else (),
            cmd=cmd.words() if cmd is not None else (),
            binds=self.binds([bind for binds in each("binds") for bind in binds.elements()], magic),
            env={
                **self.env_files([each for files in each("env-files") for each in files.elements()], magic),
                **{key: found.text() for key, found in merged("env").items()},
            },
            exec=tuple(
                tuple(map(magic, command.words())) for commands in each("exec") for command in commands.elements()
            ),
            sysctls={key: self.sysctl(key, found) for key, found in merged("sysctls").items()},
            tmpfs={key: self.tmpfs(key, found) for key, found in merged("tmpfs").items()},
            hostname=hostname.text() if hostname is not None else name,
            startup_config=self.path(startup, magic(startup.text())) if startup is not None else None,
            startup_delay=delay.number(0, 3600) if delay is not None else 0,
            shares=shares,
        )

    def network_mode(self, value: Value, kind: str) -> str:
        mode, _, other = value.text().partition(":")
        if mode == "container" and other:
            return other
        if mode == "host" and kind == "linux":
            value.fail("a node on the host's own network would change this machine")
        if mode not in ("none", "bridge", "host"):
            value.fail("must be none, or container:NODE")
        return ""

    def path(self, value: Value, text: str) -> Path:
        found = Path(os.path.normpath(self.file.parent / Path(text).expanduser()))
        if not found.exists():
            value.fail(f"there is no {found}")
        return found

    def binds(self, values: list[Value], magic: Callable[[str], str]) -> tuple[Bind, ...]:
        found: dict[str, Bind] = {}
        for value in values:
            source, _, rest = magic(value.text()).partition(":")
            target, _, options = rest.partition(":")
            if not target.startswith("/") or os.path.normpath(target) == "/":
                value.fail("must be SOURCE:/TARGET or SOURCE:/TARGET:ro")
            unknown = set(options.split(",")) - {"", "ro", "rw", "z", "Z"}
            if unknown:
                value.fail(f"unknown option {', '.join(sorted(unknown))}; known are ro and rw")
            target = os.path.normpath(target)
            found[target] = Bind(self.path(value, source), target, "ro" in options.split(","))
        return tuple(found.values())

    def env_files(self, values: list[Value], magic: Callable[[str], str]) -> dict[str, str]:
        found = {}
        for value in values:
            for line in self.path(value, magic(value.text())).read_text().splitlines():
                key, equals, text = line.strip().partition("=")
                if equals and not key.startswith("#"):
                    found[key.strip()] = text.strip().strip("\"'")
        return found

    def sysctl(self, key: str, value: Value) -> str:
        if not key.startswith("net.") or "/" in key or ".." in key:
            value.fail("only net.* settings belong to a node alone; this one would change this machine")
        return value.text()

    def tmpfs(self, key: str, value: Value) -> str:
        if not key.startswith("/") or os.path.normpath(key) == "/":
            value.fail("must be an absolute folder")
        return value.text()

    def check_sharing(self, nodes: Mapping[str, NodeSpec], value: Value) -> None:
        for name, node in nodes.items():
            at = value.items()[name]
            bridge, bar, parent = name.partition("|")
            if bar and (node.kind != "bridge" or parent != node.shares):
                at.fail(
                    "a name with `|` is for a bridge inside another node: BRIDGE|NODE with network-mode: container:NODE"
                )
            if node.kind == "bridge" and len(bridge) > MAX_INTERFACE:
                at.fail(f"a bridge's name is an interface's: at most {MAX_INTERFACE} characters")
            if not node.shares:
                continue
            other = nodes.get(node.shares)
            if other is None:
                at.fail(f"network-mode: there is no node `{node.shares}`")
            if other.kind != "linux" or other.shares:
                at.fail(f"network-mode: `{node.shares}` has no network of its own to share")

    def links(self, value: Value, nodes: Mapping[str, NodeSpec]) -> tuple[Link, ...]:
        found: list[Link] = []
        ends: dict[tuple[str, str], str] = {}
        for each in value.elements():
            link = self.link(each)
            for end in link.ends:
                if end.node not in nodes:
                    near = difflib.get_close_matches(end.node, nodes, 1)
                    each.fail(f"there is no node `{end.node}`" + (f"; did you mean `{near[0]}`?" if near else ""))
                if not end.interface or len(end.interface) > MAX_INTERFACE or re.search(r"[\s/]", end.interface):
                    each.fail(
                        f"`{end.interface}` can't be an interface: at most {MAX_INTERFACE} characters, no space, no /"
                    )
                home = nodes[end.node].shares or end.node
                if (home, end.interface) in ends:
                    each.fail(
                        f"{end.node}:{end.interface} is already an end of the link at {ends[home, end.interface]}"
                    )
                ends[home, end.interface] = each.place
            found.append(link)
        return tuple(found)

    def link(self, value: Value) -> Link:
        keys = value.items()
        kind = keys["type"].text() if "type" in keys else ""
        if kind in LINK_REFUSED_TYPES:
            keys["type"].fail(f"containerlab has this, but a link of type {kind} {LINK_REFUSED_TYPES[kind]}")
        if kind not in ("", "veth", "dummy"):
            keys["type"].fail("unknown type of link; known are veth and dummy")
        used = {"mtu", *(("endpoints",) if kind != "dummy" else ("endpoint",)), *(("type",) if kind else ())}
        addresses = "containerlab gives nodes of these kinds no addresses by a link; use exec: ip addr add ..."
        keys = value.known(used, LINK_NOTED, dict.fromkeys(("ipv4", "ipv6"), addresses))
        self.note(keys, LINK_NOTED)
        mtu = keys["mtu"].number(68, 65535) if "mtu" in keys else DEFAULT_MTU
        where = "endpoint" if kind == "dummy" else "endpoints"
        if where not in keys:
            value.fail(f"`{where}` is missing")
        if kind == "dummy":
            return Link((self.end(keys[where], addresses),), mtu)
        both = keys[where].elements()
        if len(both) != 2:
            keys[where].fail("a link has two ends")
        return Link(tuple(self.end(end, addresses) if kind else self.short_end(end) for end in both), mtu)

    def short_end(self, value: Value) -> End:
        node, colon, interface = value.text().partition(":")
        if not colon:
            value.fail("must be NODE:INTERFACE")
        return End(node, interface)

    def end(self, value: Value, addresses: str) -> End:
        keys = value.known({"node", "interface", "mac"}, LINK_NOTED, dict.fromkeys(("ipv4", "ipv6"), addresses))
        self.note(keys, LINK_NOTED)
        for name in ("node", "interface"):
            if name not in keys:
                value.fail(f"`{name}` is missing")
        mac = keys["mac"].text() if "mac" in keys else ""
        if mac and not _MAC.fullmatch(mac):
            keys["mac"].fail("must be a hardware address such as 02:00:00:00:00:01")
        return End(keys["node"].text(), keys["interface"].text(), mac.replace("-", ":"))
