"""Reading topology files: what containerlab lets a file say, and where this runner says no."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.testing.lab.clab import DEFAULT_MTU, End, Topology, expand, read_topology
from routed.testing.lab.document import TopologyError
from routed.testing.lab.expect import read_expectation
from routed.testing.lab.images import image_of

TWO = "  nodes:\n    a: {kind: linux, image: debian}\n    b: {kind: linux, image: debian}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two", "clab-t/n/conf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("A=file\nB='b'\n# C=1\n")
    return tmp_path


def read(folder: Path, text: str, **environment: str) -> Topology:
    file = folder / "t.clab.yml"
    file.write_text(text if text.startswith("name") else f"name: t\ntopology:\n{text}")
    return read_topology(file, environment)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(TopologyError) as caught:
        read(folder, text)
    return str(caught.value).removeprefix(f"{folder}/")


class TestInheritance:
    TEXT = """\
  defaults: {kind: linux, image: debian, env: {A: d, B: d, C: d, D: d}, binds: [one:/x, two:/y], exec: [echo d], cmd: d}
  kinds:
    linux: {env: {B: k, C: k, D: k}, exec: [echo k], sysctls: {net.ipv4.ip_forward: 1}, cmd: sleep k}
  groups:
    g: {env: {C: g, D: g}, binds: ["two:/x:ro"], exec: [echo g], cmd: sleep g}
  nodes:
    n: {group: g, env: {D: n}, exec: [echo n]}
    plain:
"""

    def test_the_more_specific_wins_and_lists_add_up(self, folder: Path) -> None:
        node = read(folder, self.TEXT).nodes["n"]
        assert dict(node.env) == {"A": "d", "B": "k", "C": "g", "D": "n"}
        assert node.exec == (("echo", "d"), ("echo", "k"), ("echo", "g"), ("echo", "n"))
        assert node.cmd == ("sleep", "g")
        binds = {bind.target: (bind.source.name, bind.read_only) for bind in node.binds}
        assert binds == {"/x": ("two", True), "/y": ("two", False)}

    def test_a_node_about_which_nothing_is_said_takes_kind_and_defaults(self, folder: Path) -> None:
        node = read(folder, self.TEXT).nodes["plain"]
        assert (node.kind, node.image, node.cmd, node.hostname) == ("linux", "debian", ("sleep", "k"), "plain")
        assert dict(node.sysctls) == {"net.ipv4.ip_forward": "1"}

    def test_env_files_come_before_env(self, folder: Path) -> None:
        text = "  nodes:\n    n: {kind: linux, image: debian, env-files: [one], env: {A: own}}\n"
        assert dict(read(folder, text).nodes["n"].env) == {"A": "own", "B": "b"}

    def test_anchors_may_be_merged(self, folder: Path) -> None:
        text = "  nodes:\n    a: &a {kind: linux, image: debian, cmd: one}\n    b: {<<: *a, cmd: two}\n"
        nodes = read(folder, text).nodes
        assert (nodes["a"].cmd, nodes["b"].cmd, nodes["b"].image) == (("one",), ("two",), "debian")


class TestVariables:
    @pytest.mark.parametrize(
        ("text", "meaning"),
        [
            ("$A ${A} $$A", "a a $A"),
            ("${NO} $NO", "${NO} $NO"),
            ("${NO:=x} ${NO-x} ${A:-x} ${EMPTY:-x} ${EMPTY-x}", "x x a x "),
            ("${A:+x} ${NO+x}.", "x ."),
            ("10 $ ${", "10 $ ${"),
        ],
    )
    def test_they_are_the_shells(self, text: str, meaning: str) -> None:
        assert expand(text, {"A": "a", "EMPTY": ""}) == meaning

    @given(st.text(alphabet="abcXYZ09 :=-+{}/.\n"))
    def test_a_text_without_a_dollar_stays(self, text: str) -> None:
        assert expand(text, {"a": "1"}) == text

    def test_a_variable_may_choose_a_group(self, folder: Path) -> None:
        groups = "  groups:\n    x: {kind: linux, image: bird}\n    y: {kind: linux, image: routed}\n"
        text = groups + "  nodes:\n    n: {group: '${G:=x}'}\n"
        assert read(folder, text).nodes["n"].image == "bird"
        assert read(folder, text, G="y").nodes["n"].image == "routed"

    def test_magic_ones_name_the_node_and_its_folder(self, folder: Path) -> None:
        text = (
            "  nodes:\n    n: {kind: linux, image: debian, binds: ['__clabNodeDir__/conf:/c'],"
            " exec: [echo __clabNodeName__ __clabLabName__]}\n"
        )
        node = read(folder, text).nodes["n"]
        assert node.binds[0].source == folder / "clab-t" / "n" / "conf"
        assert node.exec == (("echo", "n", "clab-t"),)


class TestLinks:
    def test_short_and_typed_ones(self, folder: Path) -> None:
        text = TWO + (
            "  links:\n    - endpoints: ['a:eth1', 'b:eth1']\n    - endpoints: ['a:eth2', 'b:eth2']\n      mtu: 1500\n"
            "    - type: veth\n      endpoints:\n        - {node: a, interface: eth3, mac: '02-00-00-00-00-01'}\n"
            "        - {node: b, interface: eth3}\n    - {type: dummy, endpoint: {node: a, interface: d0}}\n"
        )
        links = read(folder, text).links
        assert [link.mtu for link in links] == [DEFAULT_MTU, 1500, DEFAULT_MTU, DEFAULT_MTU]
        assert links[2].ends == (End("a", "eth3", "02:00:00:00:00:01"), End("b", "eth3"))
        assert links[3].ends == (End("a", "d0"),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "  nodes:\n    a: {kind: linux, image: x, exce: [y]}\n",
            "t.clab.yml:4:38: topology.nodes.a.exce: unknown key; did you mean `exec`?",
        ),
        (
            "  nodes:\n    a: {kind: linux, image: x, user: y}\n",
            "topology.nodes.a.user: containerlab has this, but this runner",
        ),
        ("  nodes:\n    a: {kind: linux, image: x, cmd: z, cmd: y}\n", "4:40: topology.nodes.a.cmd: is given twice"),
        ("  nodes:\n    a: {kind: nokia_srlinux, image: x}\n", "kind `nokia_srlinux` needs its image"),
        (
            "  kinds: {arista_ceos: {image: x}}\n  nodes:\n    a: {kind: linux, image: x}\n",
            "kind `arista_ceos` needs its image",
        ),
        ("  nodes:\n    a: {image: x}\n", "topology.nodes.a: has no kind"),
        ("  nodes:\n    a: {kind: linux}\n", "topology.nodes.a: has no image"),
        ("  nodes:\n    a: {kind: linux, image: x, network-mode: host}\n", "would change this machine"),
        ("  nodes:\n    a: {kind: linux, image: x, network-mode: 'container:b'}\n", "there is no node `b`"),
        ("  nodes:\n    a: {kind: linux, image: x, sysctls: {vm.swappiness: 1}}\n", "only net.* settings"),
        ("  nodes:\n    a: {kind: linux, image: x, binds: ['nowhere:/x']}\n", "topology.nodes.a.binds[0]: there is no"),
        ("  nodes:\n    a: {kind: linux, image: x, binds: ['one:/x:rx']}\n", "unknown option rx"),
        ('  nodes:\n    a: {kind: linux, image: x, exec: ["echo \'x"]}\n', "is no command line: no closing quotation"),
        ("  nodes:\n    br-with-a-long-name: {kind: bridge}\n", "at most 15 characters"),
        ("  nodes:\n    br|a: {kind: bridge}\n    a: {kind: linux, image: x}\n", "BRIDGE|NODE with network-mode"),
        (
            TWO + "  links:\n    - endpoints: ['a:eth1', 'bb:eth1']\n",
            "topology.links[0]: there is no node `bb`; did you mean `b`?",
        ),
        (TWO + "  links:\n    - endpoints: ['a:eth1']\n", "a link has two ends"),
        (
            TWO + "  links:\n    - endpoints: ['a:eth1', 'b:eth1']\n    - endpoints: ['a:eth1', 'b:eth2']\n",
            "topology.links[1]: a:eth1 is already",
        ),
        (TWO + "  links:\n    - endpoints: ['a:e/1', 'b:eth1']\n", "`e/1` can't be an interface"),
        (TWO + "  links:\n    - {endpoints: ['a:eth1', 'b:eth1'], ipv4: [10.0.0.1/24]}\n", "use exec: ip addr add"),
        (
            TWO + "  links:\n    - {type: macvlan, endpoint: {node: a, interface: x}, host-interface: eth0}\n",
            "would touch this machine's own network",
        ),
        (TWO + "  links:\n    - {endpoints: ['a:eth1', 'b:eth1'], mtu: big}\n", "must be a number from 68 to 65535"),
        ("name: t\n", "`topology` is missing"),
        ("name: 'a b'\ntopology: {nodes: {a: {kind: bridge}}}\n", "t.clab.yml:1:7: name: must be letters"),
        ("name: t\ntopology: [\n", "is not YAML"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(folder: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(folder, text)


def test_what_changes_nothing_is_left_out_and_told(folder: Path) -> None:
    text = (
        "name: t\nprefix: x\nmgmt: {network: y}\ntopology:\n  nodes:\n"
        "    a: {kind: linux, image: debian, ports: ['80:80'], mgmt-ipv4: 172.20.20.2, labels: {a: b}, memory: 1Gb}\n"
    )
    notes = read(folder, text).notes
    assert [note.partition(": left out: ")[0].rpartition(": ")[2] for note in notes] == [
        "prefix", "mgmt", "topology.nodes.a.ports", "topology.nodes.a.mgmt-ipv4", "topology.nodes.a.labels",
        "topology.nodes.a.memory",
    ]  # fmt: skip
    assert f"{folder}/t.clab.yml:6:44: topology.nodes.a.ports: left out: no port of the host leads into a node" in notes


class TestImages:
    @pytest.mark.parametrize(
        ("image", "role"),
        [
            ("routed:lab", "routed"),
            ("localhost:5000/library/debian:12-slim", "host"),
            ("ghcr.io/nicolaka/netshoot@sha256:00", "host"),
        ],
    )
    def test_registry_and_tag_do_not_matter(self, folder: Path, image: str, role: str) -> None:
        node = read(folder, f"  nodes:\n    a: {{kind: linux, image: '{image}'}}\n").nodes["a"]
        assert image_of(node).role == role

    def test_an_unknown_one_is_refused(self, folder: Path) -> None:
        node = read(folder, "  nodes:\n    a: {kind: linux, image: ceos:4.32}\n").nodes["a"]
        with pytest.raises(
            TopologyError, match=r"t.clab.yml:4:8: no program of this machine stands for the image ceos"
        ):
            image_of(node)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hold: {}\n", "1:7: hold: unknown key; did you mean `holds`?"),
        ("holds: {sessions: {c: [10.0.0.1]}}\n", "holds.sessions.c: there is no node `c`"),
        ("holds: {pings: {a: [10.0.0.300]}}\n", "must be an address"),
        ("steps: [{title: x, do: [explode a]}]\n", "must be kill, start"),
        ("steps: [{title: x, do: [link a eth1]}]\n", "too few or too many words"),
        ("steps: [{do: [kill a]}]\n", "`title` is missing"),
        ("steps: [{title: x, do: [kill a], flows: [a b]}]\n", "must be NODE > ADDRESS"),
        ("steps: [{title: x, do: [kill a], loses: everything}]\n", "must be nothing or measured"),
    ],
)
def test_what_must_hold_is_read_before_anything_is_done(folder: Path, text: str, sentence: str) -> None:
    topology = read(folder, TWO)
    (folder / "expect.yaml").write_text(text)
    with pytest.raises(TopologyError) as caught:
        read_expectation(folder / "expect.yaml", topology)
    assert sentence in str(caught.value)
