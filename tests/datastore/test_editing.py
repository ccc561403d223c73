"""Writing resource files: one document changes, everything else stays, nobody's change is lost."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.datastore.documents import read_documents
from routed.datastore.editing import FolderStore, to_yaml
from routed.datastore.file import load_folder
from routed.datastore.store import Conflict, Edit, Stored
from routed.errors import StoreError
from routed.model.resources import JsonValue, Resource, ResourceKey
from routed.model.schema import parse_manifest


def peer(name: str, number: int) -> Resource:
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "BGPPeer",
            "metadata": {"name": name},
            "spec": {"peerIP": "10.0.0.1", "asNumber": number},
        }
    )


def text_of(name: str, number: int, comment: str = "") -> str:
    return (
        f"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: {name}}}{comment}\n"
        f"spec: {{peerIP: 10.0.0.1, asNumber: {number}}}\n"
    )


THREE = f"# the rack\n{text_of('one', 1)}---\n# two is special\n{text_of('two', 2, ' # so it is')}---\n{text_of('three', 3)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "peers.yaml").write_text(THREE)
    return tmp_path


def stored(store: FolderStore, name: str) -> Stored:
    return asyncio.run(store.read()).resources[ResourceKey("BGPPeer", name)]


def write(store: FolderStore, name: str, resource: Resource | None, revision: str | None) -> str:
    return asyncio.run(store.write(ResourceKey("BGPPeer", name), resource, revision))


def numbers(folder: Path) -> dict[str, object]:
    resources, problems = load_folder(folder)
    assert problems == []
    return {each.name: getattr(each, "as_number", None) for each in resources}


def test_only_the_document_changes(folder: Path) -> None:
    store = FolderStore(str(folder))
    before = stored(store, "two")
    assert before.where.endswith("peers.yaml:8")
    assert write(store, "two", peer("two", 22), before.revision) == stored(store, "two").revision
    text = (folder / "peers.yaml").read_text()
    head, tail = THREE.split(text_of("two", 2, " # so it is"))
    assert text.startswith(head)
    assert text.endswith(tail)
    assert numbers(folder) == {"one": 1, "two": 22, "three": 3}
    assert store.losses == [f"{folder}/peers.yaml:8: comments inside this document were lost"]


def test_a_new_resource_has_a_file_of_its_own(folder: Path) -> None:
    (folder / "bgppeer-four.yaml").write_text(text_of("other", 9))
    store = FolderStore(str(folder))
    write(store, "four", peer("four", 4), None)
    assert (folder / "bgppeer-four.2.yaml").exists()
    assert numbers(folder) == {"one": 1, "two": 2, "three": 3, "four": 4, "other": 9}


@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "one", "two"), ("two", "three", "one")])
def test_deleting_to_the_last(folder: Path, order: tuple[str, ...]) -> None:
    store = FolderStore(str(folder))
    left = {"one": 1, "two": 2, "three": 3}
    for name in order:
        assert write(store, name, None, stored(store, name).revision) == ""
        del left[name]
        assert numbers(folder) == left
    assert not (folder / "peers.yaml").exists()


def test_a_resource_that_is_twice_there_goes_from_both(folder: Path) -> None:
    (folder / "z.yaml").write_text(text_of("one", 1))
    store = FolderStore(str(folder))
    write(store, "one", None, stored(store, "one").revision)
    assert numbers(folder) == {"two": 2, "three": 3}


def test_items_of_a_list(tmp_path: Path) -> None:
    items = "".join(f"- metadata: {{name: {name}}}\n  spec: {{peerIP: 10.0.0.1, asNumber: 7}}\n" for name in ("x", "y"))
    (tmp_path / "l.yaml").write_text("apiVersion: projectcalico.org/v3\nkind: BGPPeerList\nitems:\n" + items)
    store = FolderStore(str(tmp_path))
    write(store, "y", peer("y", 8), stored(store, "y").revision)
    assert numbers(tmp_path) == {"x": 7, "y": 8}
    write(store, "x", None, stored(store, "x").revision)
    assert numbers(tmp_path) == {"y": 8}


def test_json_stays_json(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(
        to_json := '{"apiVersion":"projectcalico.org/v3","kind":"BGPPeer",'
        '"metadata":{"name":"one"},"spec":{"peerIP":"10.0.0.1","asNumber":1}}'
    )
    store = FolderStore(str(tmp_path))
    write(store, "one", peer("one", 5), stored(store, "one").revision)
    assert (tmp_path / "p.json").read_text().startswith("{")
    assert to_json
    assert numbers(tmp_path) == {"one": 5}


def test_a_stale_revision_is_a_conflict(folder: Path) -> None:
    store = FolderStore(str(folder))
    revision = stored(store, "one").revision
    write(store, "one", peer("one", 11), revision)
    with pytest.raises(Conflict, match="has changed in"):
        write(store, "one", peer("one", 12), revision)
    with pytest.raises(Conflict, match="is in"):
        write(store, "one", peer("one", 12), None)
    with pytest.raises(Conflict, match="is gone from"):
        write(store, "nobody", None, revision)
    assert numbers(folder)["one"] == 11


def test_writers_at_the_same_time_lose_nothing(folder: Path) -> None:
    """Each adds one to the number, again and again, as whoever reads, changes and writes does."""

    def add(times: int) -> None:
        store = FolderStore(str(folder))
        done = 0
        while done < times:
            now = stored(store, "one")
            number = getattr(now.resource, "as_number", 0)
            try:
                write(store, "one", peer("one", number + 1), now.revision)
            except Conflict:
                continue
            done += 1

    threads = [threading.Thread(target=add, args=(5,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(folder) == {"one": 16, "two": 2, "three": 3}


def test_a_broken_document_beside_it_stays_as_it_is(tmp_path: Path) -> None:
    broken = "kind: [unfinished\n"
    (tmp_path / "p.yaml").write_text(f"{text_of('one', 1)}---\n{broken}---\n{text_of('two', 2)}")
    store = FolderStore(str(tmp_path))
    contents = asyncio.run(store.read())
    assert len(contents.problems) == 1
    assert contents.problems[0].startswith(f"{tmp_path}/p.yaml:")
    write(store, "two", peer("two", 22), stored(store, "two").revision)
    assert broken in (tmp_path / "p.yaml").read_text()


def test_a_file_that_changes_under_the_store_s_eyes_is_read_again(folder: Path) -> None:
    store, path, name = FolderStore(str(folder)), folder / "peers.yaml", "one"
    for number in range(3, 9):  # in place, of the same size, and within a tick of the clock
        path.write_text(text_of(name, number))
        assert stored(store, name).resource == peer(name, number)


def test_what_programs_write_is_json_on_one_line(tmp_path: Path) -> None:
    handle = parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "IPAMHandle",
            "metadata": {"name": "pods.c1"},
            "spec": {"block": {"10.65.0.0/26": 1}},
        }
    )
    store = FolderStore(str(tmp_path))
    asyncio.run(store.write(handle.key, handle, None))
    (path,) = tmp_path.glob("*.json")
    assert path.read_text().count("\n") == 1
    assert load_folder(tmp_path) == ([handle], [])


def test_no_folder(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path / "none"))
    with pytest.raises(StoreError, match="cannot be read"):
        asyncio.run(store.read())
    with pytest.raises(StoreError, match="cannot be written"):
        write(store, "one", peer("one", 1), None)


TRAPS = ["yes", "0x10", "1e3", "64512:10", "2026-05-01", "~", "null", " x", "#", "a: b", "- a", "<<", "=", "0o7", "1_0"]
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=12) | st.sampled_from(TRAPS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS.filter(lambda word: word != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(VALUES)
def test_what_is_written_reads_back_the_same(value: JsonValue) -> None:
    wrapped: JsonValue = {"value": value}
    (document,) = read_documents(to_yaml(wrapped).encode())
    assert document.error == ""
    assert document.value == wrapped


def test_several_edits_are_made_in_their_order_or_none(folder: Path) -> None:
    store = FolderStore(str(folder))
    seen = {name: stored(store, name).revision for name in ("one", "two")}
    key = {name: ResourceKey("BGPPeer", name) for name in ("one", "two", "a-b")}
    with pytest.raises(Conflict, match="two has changed"):
        asyncio.run(store.write_all([Edit(key["one"], None, seen["one"]), Edit(key["two"], None, "else")]))
    assert numbers(folder) == {"one": 1, "two": 2, "three": 3}
    revisions = asyncio.run(
        store.write_all(
            [
                Edit(key["one"], peer("one", 11), seen["one"]),
                Edit(key["a-b"], peer("a-b", 5), None),
                Edit(key["two"], None, seen["two"]),
            ]
        )
    )
    assert numbers(folder) == {"one": 11, "three": 3, "a-b": 5}
    assert revisions == [stored(store, "one").revision, stored(store, "a-b").revision, ""]
    assert sorted(each.name for each in folder.iterdir()) == [".routed.lock", "bgppeer-a-b.yaml", "peers.yaml"]


def test_a_disk_that_is_full_leaves_all_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = FolderStore(str(folder))
    revision = stored(store, "one").revision
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        asyncio.run(
            store.write_all(
                [
                    Edit(ResourceKey("BGPPeer", "one"), peer("one", 11), revision),
                    Edit(ResourceKey("BGPPeer", "new"), peer("new", 5), None),
                ]
            )
        )
    assert (folder / "peers.yaml").read_text() == THREE
    assert sorted(each.name for each in folder.iterdir()) == [".routed.lock", "peers.yaml"]
