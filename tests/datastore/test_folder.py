"""The folder's last good state, on real files: every way a file changes, breaks, hides or goes away."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from routed.datastore import folder as folder_module
from routed.datastore.folder import MAX_PROBLEMS_PER_FILE, Folder, Look, Problem
from routed.datastore.own_files import OwnFile, OwnFiles
from routed.errors import StoreError
from routed.model.resources import BGPPeer, ResourceKey
from routed.model.schema import parse_manifest


def peer(name: str, asn: int = 65001, address: str = "10.0.0.1") -> str:
    return (
        f"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata:\n  name: {name}\n"
        f"spec:\n  peerIP: {address}\n  asNumber: {asn}\n"
    )


def several(*documents: str) -> str:
    return "---\n".join(documents)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletions wait for time to pass; `test_file` has that."""
    monkeypatch.setattr(folder_module, "DELETION_SETTLE", 0)


class Watched:
    """A folder and the state its updates add up to, checked against the folder's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = Folder(str(path))
        self.peers: dict[str, int | None] = {}
        self.problems: list[str] = []
        self.last = self.look()

    def look(self) -> Look:
        look = self.folder.look()
        for update in look.updates:
            if update.value is None:
                del self.peers[update.key.name]
            else:
                assert isinstance(update.value, BGPPeer)
                assert update.value.key == update.key
                self.peers[update.key.name] = update.value.as_number
        assert {key.name for key in self.folder.resources} == set(self.peers)
        self.problems = [str(problem).removeprefix(f"{self.path}/") for problem in look.problems]
        return look

    def settle(self) -> list[tuple[str, bool]]:
        """Look until nothing is pending; (name, still there) of every update on the way."""
        changes: list[tuple[str, bool]] = []
        for _ in range(5):
            look = self.look()
            changes += [(update.key.name, update.value is not None) for update in look.updates]
            if not look.unsettled:
                return changes
        raise AssertionError("the folder does not settle")

    def write(self, name: str, text: str | bytes) -> list[tuple[str, bool]]:
        """Change a file in place, then settle."""
        data = text.encode() if isinstance(text, str) else text
        (self.path / name).write_bytes(data)
        return self.settle()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "b.yaml").write_text(several(peer("one", 1), peer("two", 2)))
    return Watched(tmp_path)


def test_first_look_is_a_snapshot_and_the_next_says_nothing(watched: Watched) -> None:
    assert [update.key for update in watched.last.updates] == [
        ResourceKey("BGPPeer", "one"),
        ResourceKey("BGPPeer", "two"),
    ]
    assert watched.peers == {"one": 1, "two": 2}
    assert watched.settle() == []
    assert watched.problems == []


def test_only_files_of_ours_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(peer("a"))
    (tmp_path / "b.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": []}))
    for name in (".hidden.yaml", "notes.txt", "c.yaml~", "d.yaml.swp"):
        (tmp_path / name).write_text("kind: Nonsense\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.yaml").write_text(peer("e"))
    watched = Watched(tmp_path)
    assert watched.peers == {"a": 65001}
    assert watched.problems == []


def test_a_change_is_believed_at_the_second_look(watched: Watched) -> None:
    watched.settle()
    (watched.path / "b.yaml").write_text(several(peer("one", 10), peer("two", 2)))
    look = watched.look()
    assert (look.updates, look.unsettled) == ((), True)
    look = watched.look()
    assert [(update.key.name, update.value is not None) for update in look.updates] == [("one", True)]
    assert not look.unsettled


def test_only_real_changes_are_updates(watched: Watched) -> None:
    assert watched.write("b.yaml", several("# a comment\n" + peer("two", 2), peer("one", 1))) == []
    assert watched.write("b.yaml", several(peer("two", 2), peer("one", 1).replace("65001", '"65001"'))) == []
    os.utime(watched.path / "b.yaml", (1, 1))
    assert watched.settle() == []
    (watched.path / "b.yaml").rename(watched.path / "c.yaml")
    assert watched.settle() == []
    assert watched.write("b.yaml", several(peer("one", 1), peer("two", 22))) == [("two", True)]


def test_documents_come_and_go(watched: Watched) -> None:
    assert watched.write("b.yaml", several(peer("one", 1), peer("three", 3))) == [("three", True), ("two", False)]
    assert watched.write("c.yaml", peer("four", 4)) == [("four", True)]
    (watched.path / "b.yaml").unlink()
    assert watched.settle() == [("one", False), ("three", False)]
    assert watched.peers == {"four": 4}


def test_renamed_into_place_and_edited_in_place(watched: Watched) -> None:
    other = watched.path / ".new"
    other.write_text(several(peer("one", 11), peer("two", 2)))
    other.rename(watched.path / "b.yaml")
    assert watched.settle() == [("one", True)]
    with (watched.path / "b.yaml").open("r+") as stream:
        text = stream.read()
        stream.seek(text.index("asNumber: 11") + len("asNumber: "))
        stream.write("12")
    assert watched.settle() == [("one", True)]
    assert watched.peers["one"] == 12


def test_an_editor_s_gap_is_no_deletion(watched: Watched) -> None:
    watched.settle()
    backup = watched.path / "b.yaml~"
    (watched.path / "b.yaml").rename(backup)
    assert watched.look().updates == ()
    backup.rename(watched.path / "b.yaml")
    assert watched.settle() == []


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("", "b.yaml:1: ", "the file is empty, so BGPPeer one and 1 more stay"),
        (" \n\n", "b.yaml:2: ", "the file is empty"),
        ("# all of it\n# commented out\n", "b.yaml:2: ", "nothing but comments"),
        ("---\n", "b.yaml:1: ", "nothing but comments"),
        ("\x00" * 4096, "b.yaml:1: ", "U+0000"),
        (b"\xff\xfe", "b.yaml:1: ", "UTF-8"),
        ("apiVersion: projectcalico.org/v3\nkind: [", "b.yaml:3: ", "this is not YAML"),
        ("just words\n", "b.yaml:1: ", "must be an object"),
        ("- a\n- b\n", "b.yaml:1: ", "must be an object"),
    ],
)
def test_a_file_without_sense_keeps_its_last_good_state(
    watched: Watched, text: str | bytes, line: str, sentence: str
) -> None:
    assert watched.write("b.yaml", text) == []
    assert watched.peers == {"one": 1, "two": 2}
    assert len(watched.problems) == 1
    assert watched.problems[0].startswith(line)
    assert sentence in watched.problems[0]
    assert watched.write("b.yaml", several(peer("one", 1), peer("two", 2))) == []
    assert watched.problems == []


def test_no_prefix_of_a_file_deletes_or_changes_anything(watched: Watched) -> None:
    """Every way of cutting the file short in the middle of a line."""
    text = several(peer("one", 1), peer("two", 2), peer("three", 65003))
    watched.write("b.yaml", text)
    for end in range(len(text)):
        if not text[:end].endswith("\n"):
            assert (end, watched.write("b.yaml", text[:end])) == (end, [])
            assert len(watched.problems) == 1
    assert watched.write("b.yaml", text) == []
    assert watched.problems == []


def test_no_half_of_a_new_version_deletes_anything(watched: Watched) -> None:
    """The new version differs from its first line on, so no comparison with the old text helps."""
    text = several("# new\n" + peer("one", 100), peer("two", 200))
    for end in range(len(text)):
        if not text[:end].endswith("\n"):
            (watched.path / "b.yaml").write_text(text[:end])
            assert all(still_there for _, still_there in watched.settle())
    watched.write("b.yaml", text)
    assert (watched.peers, watched.problems) == ({"one": 100, "two": 200}, [])


def test_a_shorter_file_that_ends_its_last_line_is_meant(watched: Watched) -> None:
    assert watched.write("b.yaml", peer("one", 1)) == [("two", False)]
    watched.write("b.yaml", several(peer("one", 1), peer("two", 2)))
    assert watched.write("b.yaml", peer("two", 2).rstrip("\n")) == []
    assert watched.problems == [
        "b.yaml:7: the file breaks off in the middle of a line, so BGPPeer one stays; delete the file to delete all it had"
    ]
    assert watched.write("b.yaml", peer("two", 2)) == [("one", False)]


def test_json_needs_no_line_feed(tmp_path: Path) -> None:
    items = [
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": {"name": name},
            "spec": {"peerIP": "10.0.0.1", "asNumber": 1},
        }
        for name in ("one", "two")
    ]
    (tmp_path / "a.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    watched = Watched(tmp_path)
    assert watched.write("a.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items[1:]})) == [
        ("one", False)
    ]
    assert watched.write("a.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": []})) == [("two", False)]


def test_one_bad_document_keeps_its_resource_and_the_others_apply(watched: Watched) -> None:
    bad = peer("one", 1).replace("10.0.0.1", "10.0.0")
    assert watched.write("b.yaml", several(bad, peer("two", 22), peer("three", 3))) == [("three", True), ("two", True)]
    assert watched.peers == {"one": 1, "two": 22, "three": 3}
    (problem,) = watched.problems
    assert problem.startswith("b.yaml:6: spec.peerIP: must be an address")
    # What is neither there nor in what cannot be read is gone.
    assert watched.write("b.yaml", several(bad, peer("three", 3))) == [("two", False)]
    assert len(watched.problems) == 1
    assert watched.write("b.yaml", several(peer("one", 5), peer("three", 3))) == [("one", True)]
    assert watched.problems == []


@pytest.mark.parametrize(
    ("broken", "stay"),
    [
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: w, labels: {a b: c}}\n", []),
        (peer("two").replace("10.0.0.1", "10.0.0"), ["two"]),
        (peer("Two"), ["one", "two"]),
        (peer("two").replace("BGPPeer", "BGPPear"), ["one", "two"]),
        (peer("two") + "  filters: [a\n", ["one", "two"]),
    ],
    ids=["of another kind", "its name can be told", "its name is wrong", "its kind is wrong", "no YAML"],
)
def test_what_a_bad_document_cannot_be_is_gone_and_what_it_may_be_stays(
    watched: Watched, broken: str, stay: list[str]
) -> None:
    watched.write("b.yaml", several(peer("three", 3), broken))
    assert sorted(watched.peers) == sorted([*stay, "three"])
    (problem,) = watched.problems
    # who deleted it must hear why it is still there
    assert problem.endswith("; BGPPeer one and 1 more of the file stay, since it may be in this") is (len(stay) > 1)


def test_calico_s_other_kinds_are_reported_and_hold_nothing_back(watched: Watched) -> None:
    other = "apiVersion: projectcalico.org/v3\nkind: LiveMigration\nmetadata:\n  name: default\n"
    assert watched.write("b.yaml", several(other, peer("one", 1))) == [("two", False)]
    assert watched.problems == ["b.yaml:2: kind: is LiveMigration, a kind of Calico's that routed does not read"]


def test_a_document_that_is_no_yaml_keeps_its_resource_and_the_others_apply(watched: Watched) -> None:
    assert watched.write("b.yaml", several(peer("one", 1) + "  filters: [a\n", peer("two", 22))) == [("two", True)]
    assert watched.peers == {"one": 1, "two": 22}
    assert watched.problems[0].startswith("b.yaml:9: this is not YAML")


def test_bad_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(several("kind: Nonsense\n", peer("two", 2)))
    (tmp_path / "b.yaml").write_text("")
    (tmp_path / "c.yaml").write_text("# an example, commented out\n")
    watched = Watched(tmp_path)
    assert watched.peers == {"two": 2}
    assert [problem.split(":")[0] for problem in watched.problems] == ["a.yaml", "b.yaml"]
    assert watched.write("a.yaml", several(peer("one", 1), peer("two", 2))) == [("one", True)]
    assert watched.write("b.yaml", peer("three", 3)) == [("three", True)]
    assert watched.problems == []


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("kind: NetworkPolicy\nmetadata: {name: a, namespace: x}\nspec: {}\nspec: {}\n", ["x/a"]),
        ("kind: NetworkPolicy\nmetadata: {namespace: x, name: a}\nspec: {podSelector: {}\n", ["x/a"]),
        ("kind: NetworkPolicy\nmetadata: {labels: {a: 1, a: 2}, name: a, namespace: x}\nspec: {}\n", ["x/a"]),
        ("kind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}\n", ["a"]),
        ("kind: NetworkPolicy\nmetadata: {name: a, namespace: [}\n", []),  # it is in one, and nobody knows in which
        ("kind: [\n", []),
        ("words: [", []),
        (
            (
                "kind: List\nitems:\n- {apiVersion: v1, kind: NetworkPolicy, metadata: {name: a, namespace: x}, spec: {}}\n"
                "- {apiVersion: v1, kind: NetworkPolicy, metadata: {name: b, namespace: x}, spec: {a: 1, a: 2}}\n"
            ),
            ["x/a", "x/b"],
        ),
    ],
)
def test_a_document_that_cannot_be_read_says_what_it_is_if_that_is_whole(watched: Watched, text: str, heads: list[str]):
    watched.write("a.yaml", "apiVersion: v1\n" + text)
    problems = [each for each in watched.folder.look().problems if each.file.endswith("a.yaml")]
    manifests = [json.loads(each.manifest) for each in problems if each.manifest]
    assert all(each.keys() == {"apiVersion", "kind", "metadata"} for each in manifests)
    found = [each["metadata"] for each in manifests]
    assert ["/".join(filter(None, (each.get("namespace"), each["name"]))) for each in found] == heads
    assert len(problems) == max(1, len(heads))
    for problem, head in zip(problems, heads, strict=False):
        assert f"; NetworkPolicy {head} cannot be read" in problem.text


def test_problems_name_file_line_and_field(watched: Watched) -> None:
    watched.write(
        "a.yaml",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: projectcalico.org/v3\n  kind: BGPFilter\n"
        "  metadata: {name: f}\n  spec:\n    exportV4:\n    - action: Accept\n    - cidr: 10.0.0.0/8\n"
        "      matchOperater: In\n",
    )
    assert watched.problems == [
        "a.yaml:11: items[0].spec.exportV4[1].matchOperater: is not a field known here; did you mean matchOperator?"
    ]
    (problem,) = watched.folder.look().problems
    assert json.loads(problem.manifest)["metadata"] == {"name": "f"}
    assert replace(problem, manifest="") == Problem(
        str(watched.path / "a.yaml"),
        11,
        "items[0].spec.exportV4[1].matchOperater",
        "is not a field known here; did you mean matchOperator?",
    )
    watched.write("a.yaml", peer("x") + "  numAllowedLocalASNumbers: -1\n  localAsNumber: 3\n")
    assert watched.problems[0].startswith("a.yaml:9: spec.localAsNumber: ")
    watched.write(
        "a.yaml",
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata:\n  name: x\nspec:\n  localWorkloadSelector: all()\n",
    )
    assert watched.problems == ["a.yaml:5: spec.asNumber: is required with localWorkloadSelector"]


def test_many_problems_of_one_file_are_cut(watched: Watched) -> None:
    watched.write("a.yaml", "---\n".join(["kind: X\n"] * (MAX_PROBLEMS_PER_FILE + 20)))
    assert len(watched.problems) == MAX_PROBLEMS_PER_FILE + 1
    assert watched.problems[0] == "a.yaml: the file has 20 problems more"


def test_lists(watched: Watched) -> None:
    def items(*names: str) -> str:
        return "".join(f"- metadata: {{name: {name}}}\n  spec: {{peerIP: 10.0.0.1, asNumber: 7}}\n" for name in names)

    head = "apiVersion: projectcalico.org/v3\nkind: BGPPeerList\nmetadata: {resourceVersion: '12'}\nitems:\n"
    assert watched.write("a.yaml", head + items("x", "y")) == [("x", True), ("y", True)]
    broken = head + items("x") + "- metadata: {name: y}\n  spec: {peerIP: 10.0.0.1, asNumber: 0}\n"
    assert watched.write("a.yaml", broken) == []
    assert watched.problems[0].startswith("a.yaml:8: items[1].spec.asNumber: ")
    assert watched.write("a.yaml", head + items("y")) == [("x", False)]
    for text, problem in [
        ("apiVersion: v1\nkind: BGPPeerList\nitems: []\n", "a.yaml:1: apiVersion: must be projectcalico.org/v3"),
        ("apiVersion: v1\nkind: DeploymentList\nitems: []\n", "a.yaml:2: kind: must be a list of"),
        ("apiVersion: v1\nkind: List\nitems: {}\n", "a.yaml:3: items: must be a list"),
        ("apiVersion: v1\nkind: List\nitem: []\n", "a.yaml:3: item: is not a field of a List"),
        ("apiVersion: v1\nkind: List\nitems: [x]\n", "a.yaml:3: items[0]: must be an object"),
        (head + "- 7\n", "a.yaml:5: items[0]: must be an object"),
    ]:
        assert watched.write("a.yaml", text) == []
        assert watched.problems[0].startswith(problem)
    assert watched.write("a.yaml", "apiVersion: projectcalico.org/v3\nkind: BGPPeerList\nitems: []\n") == [("y", False)]


def test_the_first_file_by_name_has_the_resource(watched: Watched) -> None:
    assert watched.write("c.yaml", several("# x\n" + peer("one", 111), peer("three", 3))) == [("three", True)]
    assert watched.problems == [
        "c.yaml:2: metadata.name: BGPPeer one is already in b.yaml:1, which comes first by name; this one has no effect"
    ]
    assert watched.write("c.yaml", several("# x\n" + peer("one", 112), peer("three", 3))) == []
    (watched.path / "b.yaml").unlink()
    assert watched.settle() == [("one", True), ("two", False)]
    assert (watched.peers, watched.problems) == ({"one": 112, "three": 3}, [])
    assert watched.write("a.yaml", peer("one", 5)) == [("one", True)]
    assert len(watched.problems) == 1
    assert watched.write("a.yaml", peer("five", 5)) == [("five", True), ("one", True)]
    assert watched.peers["one"] == 112
    assert watched.problems == []


def test_the_first_document_in_a_file_has_the_resource(watched: Watched) -> None:
    assert watched.write("b.yaml", several(peer("one", 1), peer("one", 2), peer("two", 2))) == []
    assert watched.problems == ["b.yaml:12: metadata.name: BGPPeer one is already on line 1; this one has no effect"]
    assert watched.write("b.yaml", several(peer("one", 2), peer("two", 2))) == [("one", True)]


def test_symbolic_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "real").write_text(peer("one", 1))
    (folder / "a.yaml").symlink_to(elsewhere / "real")
    watched = Watched(folder)
    assert watched.peers == {"one": 1}
    (elsewhere / "real").write_text(peer("one", 2))
    assert watched.settle() == [("one", True)]
    (elsewhere / "real").unlink()
    assert watched.settle() == []
    assert watched.problems == [
        "a.yaml: the file cannot be read, so the resources it had stay: No such file or directory"
    ]
    (elsewhere / "real").write_text(peer("one", 3))
    assert watched.settle() == [("one", True)]
    assert watched.problems == []
    (folder / "a.yaml").unlink()
    assert watched.settle() == [("one", False)]


def test_a_kubernetes_config_map(tmp_path: Path) -> None:
    """The kubelet's way: `x.yaml -> ..data/x.yaml`, `..data -> ..<time>`, and `..data` is renamed over."""

    def publish(version: str, **files: str) -> None:
        (tmp_path / f"..{version}").mkdir()
        for name, text in files.items():
            (tmp_path / f"..{version}" / f"{name}.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(f"..{version}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        for name in files:
            if not (tmp_path / f"{name}.yaml").is_symlink():
                (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")

    publish("1", a=peer("a", 1), b=peer("b", 1))
    watched = Watched(tmp_path)
    assert watched.peers == {"a": 1, "b": 1}
    publish("2", a=peer("a", 2), b=peer("b", 1))
    assert watched.settle() == [("a", True)]
    publish("3", a=peer("a", 2))
    assert watched.settle() == []  # b.yaml dangles until the kubelet has removed the link
    assert "cannot be read" in watched.problems[0]
    (tmp_path / "b.yaml").unlink()
    assert watched.settle() == [("b", False)]


def test_things_that_are_no_files(watched: Watched) -> None:
    os.mkfifo(watched.path / "fifo.yaml")
    (watched.path / "sub.yaml").mkdir()
    (watched.path / "loop.yaml").symlink_to("loop.yaml")
    assert watched.settle() == []
    assert watched.problems == [
        "fifo.yaml: the file cannot be read: it is not a regular file",
        "loop.yaml: the file cannot be read: Too many levels of symbolic links",
        "sub.yaml: the file cannot be read: it is not a regular file",
    ]


def test_too_large(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routed.datastore.folder.MAX_FILE_SIZE", 1 << 20)
    assert watched.write("b.yaml", several(peer("one", 1), "#" * (1 << 20) + "\n")) == []
    assert "larger than 1 MiB" in watched.problems[0]
    assert watched.peers == {"one": 1, "two": 2}


def test_a_missing_folder_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere: the folder of resources cannot be read: No such file"):
        Folder(str(tmp_path / "nowhere")).look()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be read: Not a directory"):
        Folder(str(tmp_path / "file")).look()


def test_a_folder_that_disappears_keeps_its_last_state(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.yaml").write_text(peer("one", 1))
    watched = Watched(folder)
    folder.rename(tmp_path / "gone")
    assert watched.settle() == []
    assert watched.problems[0].endswith("the folder cannot be read, so its last state stays: No such file or directory")
    folder.mkdir()  # as a volume that is not mounted yet
    assert watched.settle() == []
    assert "replaced by an empty one" in watched.problems[0]
    (folder / "b.yaml").write_text(peer("two", 2))
    assert watched.settle() == [("two", True), ("one", False)]
    assert watched.problems == []
    (folder / "b.yaml").unlink()
    assert watched.settle() == [("two", False)]


def test_a_second_write_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """Same size, same inode, and a change time too coarse to differ."""
    file = tmp_path / "a.yaml"
    file.write_text(peer("one", 1))
    watched = Watched(tmp_path)
    file.write_text(peer("one", 2))
    assert watched.settle() == [("one", True)]


def test_two_thousand_peers_in_a_file_and_a_thousand_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(several(*(peer(f"peer-{n}", n + 1) for n in range(2000))))
    watched = Watched(tmp_path)
    assert len(watched.peers) == 2000
    for n in range(1000):
        (tmp_path / f"{n}.yaml").write_text(peer(f"more-{n}"))
    watched.settle()
    assert len(watched.peers) == 3000


def test_what_is_kept_of_a_broken_file_outlives_a_restart(tmp_path: Path):
    folder, kept = tmp_path / "folder", tmp_path / "state" / "kept"
    folder.mkdir()
    file = folder / "a.yaml"

    def started() -> dict[str, int | None]:
        """What a new run has after its first look."""
        made = Folder(str(folder), str(kept))
        made.look()
        return {key.name: each.as_number for key, each in made.resources.items() if isinstance(each, BGPPeer)}

    running = Folder(str(folder), str(kept))
    file.write_text(several(peer("one", 1), peer("two", 2)))
    while running.look().unsettled:
        pass
    assert not kept.exists()
    file.write_text(several(peer("one", 1), peer("two", 2).replace("asNumber: 2", "asNumber: none"), peer("three", 3)))
    while running.look().unsettled:
        pass
    assert started() == {"one": 1, "two": 2, "three": 3}
    assert started() == {"one": 1, "two": 2, "three": 3}  # the second start after the fault, too
    file.write_text(peer("one", 1)[:-9])
    assert started() == {"one": None, "two": 2} or started() == {"two": 2}
    file.write_text(several(peer("one", 1), peer("two", 4)))
    assert started() == {"one": 1, "two": 4}
    assert json.loads(kept.read_text()) == {}
    file.write_text(several(peer("one", 1), "kind: nonsense\n"))
    assert started() == {"one": 1}
    kept.write_text("{ spoilt")
    assert started() == {"one": 1}


def test_a_place_that_takes_nothing_is_told_of(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    running = Folder(str(tmp_path / "folder"), str(tmp_path / "file" / "kept"))
    (tmp_path / "folder" / "a.yaml").write_text(several(peer("one", 1), peer("two", 2)))
    running.look()
    (tmp_path / "folder" / "a.yaml").write_text(several(peer("one", 1), "kind: nonsense\n"))
    while (look := running.look()).unsettled:
        pass
    assert any("is lost at a restart" in str(problem) for problem in look.problems)


class WithOwn:
    """A folder in which what looks for changes is told of some."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own = OwnFiles()
        self.folder = Folder(str(path), own=self.own)
        self.folder.look()

    def wrote(self, name: str, asn: int) -> OwnFile:
        manifest = {
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": {"name": name},
            "spec": {"peerIP": "10.0.0.1", "asNumber": asn},
        }
        file = OwnFile(json.dumps(manifest).encode(), parse_manifest(manifest))
        (self.path / f".{name}").write_bytes(file.data)
        (self.path / f".{name}").rename(self.path / f"{name}.json")
        self.own.wrote(f"{name}.json", file)
        return file

    def look(self) -> tuple[list[tuple[str, int | None]], bool]:
        """What one look tells, and whether it is to be repeated soon."""
        look = self.folder.look()
        assert look.problems == ()
        return [(each.key.name, getattr(each.value, "as_number", None)) for each in look.updates], look.unsettled


@pytest.fixture
def with_own(tmp_path: Path) -> WithOwn:
    return WithOwn(tmp_path)


def test_what_was_written_here_is_believed_at_once_and_not_parsed(with_own: WithOwn) -> None:
    file = with_own.wrote("a", 1)
    assert with_own.look() == ([("a", 1)], False)
    assert with_own.folder.resources[file.resource.key] is file.resource
    assert with_own.look() == ([], False)
    with_own.wrote("a", 2)
    with_own.wrote("b", 3)
    assert with_own.look() == ([("a", 2), ("b", 3)], False)
    (with_own.path / "a.json").unlink()
    with_own.own.wrote("a.json", None)
    assert with_own.look() == ([("a", None)], False)
    assert with_own.look() == ([], False)


def test_an_editor_who_comes_after_us_is_believed_as_ever(with_own: WithOwn) -> None:
    file = with_own.wrote("a", 1)
    path = with_own.path / "a.json"
    path.write_bytes(file.data.replace(b" 1}", b" 7}"))  # as long, and in the same tick of the clock
    assert with_own.look() == ([], True)
    assert with_own.look() == ([("a", 7)], False)
    with_own.wrote("a", 2)
    assert with_own.look() == ([("a", 2)], False)
    path.write_bytes(file.data.replace(b" 1}", b" 88}"))
    assert with_own.look() == ([], True)
    assert with_own.look() == ([("a", 88)], False)


def test_the_same_tick_hides_no_change_of_what_was_written_here(with_own: WithOwn) -> None:
    with_own.wrote("a", 1)
    path = with_own.path / "a.json"
    assert with_own.look() == ([("a", 1)], False)
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b" 1}", b" 7}"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with_own.look()
    with_own.look()
    assert with_own.folder.resources[ResourceKey("BGPPeer", "a")] == parse_manifest(json.loads(path.read_bytes()))


def test_a_file_that_is_not_as_it_was_left_is_looked_at_twice(with_own: WithOwn) -> None:
    with_own.wrote("gone", 1)
    with_own.wrote("there", 2)
    (with_own.path / "gone.json").unlink()  # by somebody, after we wrote it
    with_own.own.wrote("there.json", None)  # we removed it, and somebody made it anew
    assert with_own.look() == ([], True)
    assert with_own.look() == ([("there", 2)], False)
    (with_own.path / "there.json").write_bytes(b"")
    with_own.own.wrote("there.json", None)
    with_own.folder.look()
    (problem,) = with_own.folder.look().problems
    assert "the file is empty, so BGPPeer there stays" in problem.text
