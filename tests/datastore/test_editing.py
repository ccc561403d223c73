"""Writing resource files: one document changes, everything else stays, nobody's change is lost."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.datastore import editing
from routed.datastore.documents import read_documents
from routed.datastore.editing import LOOK_AGAIN, FolderStore, to_yaml
from routed.datastore.file import load_folder
from routed.datastore.files import read_whole
from routed.datastore.folder import Folder
from routed.datastore.own_files import OwnFile, OwnFiles
from routed.datastore.spares import FOLDER_NAME
from routed.datastore.store import Conflict, Edit, Stored
from routed.errors import StoreError
from routed.model.resources import JsonObject, JsonValue, Resource, ResourceKey
from routed.model.schema import parse_manifest
from routed.testing.lab import wait_for


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


@pytest.mark.parametrize(
    "text", ["kind: [\n", "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: four}\nspec: {asn: 4}\n"]
)
def test_what_a_broken_file_may_hold_is_not_made_beside_it(folder: Path, text: str) -> None:
    (folder / "bgppeer-four.yaml").write_text(text)
    with pytest.raises(
        StoreError, match=r"bgppeer-four.yaml:\d: .*; it may hold BGPPeer four: mend it or take it away"
    ):
        write(FolderStore(str(folder)), "four", peer("four", 4), None)
    assert not (folder / "bgppeer-four.2.yaml").exists()


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


def handle(count: int, name: str = "h") -> Resource:
    manifest: JsonValue = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPAMHandle",
        "metadata": {"name": name},
        "spec": {"block": {"10.65.0.0/26": count}, "deleted": False},
    }
    return parse_manifest(manifest)


@pytest.mark.parametrize("own", [None, OwnFiles()])
def test_what_was_just_written_and_is_changed_by_hand_is_what_the_hand_wrote(
    tmp_path: Path, own: OwnFiles | None
) -> None:
    async def main() -> None:
        store, key = FolderStore(str(tmp_path), own), handle(1).key
        first = await store.write(key, handle(1), None)
        (file,) = tmp_path.glob("*.json")
        written, times = file.read_text(), file.stat()
        file.write_text(written.replace(":1", ":2"))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long as before, and as old
        with pytest.raises(Conflict):
            await store.write(key, handle(3), first)
        found = await store.get(key)
        assert found is not None and found.resource == handle(2)
        third = await store.write(key, handle(3), found.revision)
        file.write_text(f"{file.read_text()}---\n# kept\n{text_of('beside', 7)}")
        await store.write(key, None, third)
        assert "# kept" in file.read_text() and numbers(tmp_path) == {"beside": 7}

    asyncio.run(main())


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


class Busy:
    """A store whose files come and go, with what follows from that on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = OwnFiles()
        self.store = FolderStore(str(folder), self.own)
        self.revisions: dict[str, str] = {}

    def put(self, count: int, *names: str) -> None:
        edits = [Edit(handle(count, name).key, handle(count, name), self.revisions.get(name)) for name in names]
        for name, revision in zip(names, asyncio.run(self.store.write_all(edits)), strict=True):
            self.revisions[name] = revision

    def remove(self, *names: str) -> None:
        edits = [Edit(handle(1, name).key, None, self.revisions.pop(name)) for name in names]
        asyncio.run(self.store.write_all(edits))

    def file(self, name: str) -> Path:
        return self.folder / f"ipamhandle-{name}.json"


def test_files_that_come_and_go_are_the_same_files(tmp_path: Path) -> None:
    busy = Busy(tmp_path)
    busy.put(1, "a", "b")
    inodes = {busy.file(name).stat().st_ino for name in ("a", "b")}
    busy.remove("a", "b")
    busy.put(1, "c")  # which brings to disk that a and b are gone
    busy.put(1000, "d", "e")
    assert {busy.file(name).stat().st_ino for name in ("d", "e")} == inodes
    busy.put(2, "d")
    busy.put(2, "c", "e")
    assert load_folder(tmp_path) == ([handle(2, name) for name in ("c", "d", "e")], [])
    assert busy.file("d").stat().st_mode & 0o777 == 0o644
    asyncio.run(busy.store.close())
    assert sorted(each.name for each in tmp_path.iterdir() if each.suffix != ".json") == [".routed.lock"]


def test_no_file_is_written_again_before_the_disk_knows_that_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what a power failure leaves under the old name were the new one's contents."""
    busy = Busy(tmp_path)
    busy.put(1, "a")
    inode = busy.file("a").stat().st_ino
    busy.remove("a")
    synced, real = list[str](), os.fsync

    def fsync(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    busy.put(1, "b")
    assert busy.file("b").stat().st_ino != inode
    assert str(tmp_path) in synced
    busy.put(1, "c")
    assert busy.file("c").stat().st_ino == inode


def test_who_reads_a_file_that_goes_reads_on_and_a_backup_stays(tmp_path: Path) -> None:
    busy = Busy(tmp_path)
    busy.put(1, "read", "linked")
    (tmp_path / "backup").hardlink_to(busy.file("linked"))
    text = {name: busy.file(name).read_text() for name in ("read", "linked")}
    with busy.file("read").open() as reader:
        busy.remove("read", "linked")
        for number in range(4):
            busy.put(number + 2, f"x{number}", f"y{number}")
        assert reader.read() == text["read"]
    assert (tmp_path / "backup").read_text() == text["linked"]


def test_what_is_not_as_it_was_written_is_not_written_again(tmp_path: Path) -> None:
    busy = Busy(tmp_path)
    busy.put(1, "a")
    busy.file("a").chmod(0o600)
    busy.remove("a")
    assert not (tmp_path / FOLDER_NAME).exists()


def test_what_who_follows_has_compared_goes_unread_and_no_edit_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ticked() -> bool:
        return time.time() - busy.file("c").stat().st_ctime > 0.06

    monkeypatch.setattr(editing, "LOOK_AGAIN", 1e9)
    busy = Busy(tmp_path)
    busy.put(1, "a", "b", "c")
    following = Folder(str(tmp_path), own=busy.own)
    following.look()
    busy.put(2, "a", "b", "c")
    wait_for(ticked, 30, "the clock of the file system goes on")
    following.look()
    busy.file("b").write_text(busy.file("b").read_text().replace(":2", ":7"))
    busy.put(3, "c")  # not compared since
    read = list[str]()
    monkeypatch.setattr(editing, "read_whole", lambda path, limit: (read.append(path), read_whole(path, limit))[1])
    busy.remove("a")
    assert read == []
    busy.remove("c")
    assert read == [str(busy.file("c"))]
    with pytest.raises(Conflict, match="is being changed by somebody else"):
        busy.remove("b")
    assert load_folder(tmp_path) == ([handle(7, "b")], [])


def test_who_writes_under_the_lock_is_seen_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "LOOK_AGAIN", 1e9)
    one, other = Busy(tmp_path), Busy(tmp_path)
    one.put(1, "a")
    other.revisions = dict(one.revisions)
    other.put(2, "a", "b")
    with pytest.raises(Conflict, match="a has changed"):
        one.put(3, "a")
    with pytest.raises(Conflict, match="b is in"):
        one.put(3, "b")
    one.revisions = dict(other.revisions)
    one.remove("a", "b")
    with pytest.raises(Conflict, match="a is gone"):
        other.put(3, "a")
    assert load_folder(tmp_path) == ([], [])


def test_who_knows_no_lock_is_seen_where_he_wrote_and_soon_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(editing.time, "monotonic", lambda: now)
    busy = Busy(tmp_path)
    busy.put(1, "a", "b", "c")
    busy.file("a").write_text(busy.file("a").read_text().replace(":1", ":7"))
    busy.file("b").unlink()
    before = sorted(tmp_path.iterdir())
    for name, why in (("a", "has changed"), ("b", "is gone")):
        with pytest.raises(Conflict, match=why):
            busy.put(2, name)
    assert sorted(tmp_path.iterdir()) == before
    now += LOOK_AGAIN
    busy.put(2, "c")  # looks at all
    (tmp_path / "1.json").write_bytes(busy.file("c").read_bytes())
    busy.put(3, "c")  # as if the other file came now
    now += LOOK_AGAIN
    with pytest.raises(Conflict, match=r"c has changed in .*/1\.json"):
        busy.put(4, "c")
    assert busy.own.take()["ipamhandle-c.json"] == OwnFile(busy.file("c").read_bytes(), handle(3, "c"))


WRITER = """
import asyncio, itertools, sys
from tests.datastore.test_editing import Busy
from pathlib import Path
busy = Busy(Path(sys.argv[1]))
for number in itertools.count():
    names = [f"{number}-{each}" for each in range(3)]
    busy.put(number, "block", *names)
    if number > 5:
        busy.remove(*(f"{number - 5}-{each}" for each in range(3)))
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_files_under_their_names(tmp_path: Path) -> None:
    for wait in (7, 12, 20):
        for left in tmp_path.glob("*.json"):
            left.unlink()
        writer = subprocess.Popen((sys.executable, "-c", WRITER, str(tmp_path)), stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer:
            while int(writer.stdout.readline()) < wait:
                pass
            writer.kill()
        resources, problems = load_folder(tmp_path)
        assert problems == []
        assert len(resources) >= 10
        for each in resources:
            assert f'"{each.name}"' in (tmp_path / f"ipamhandle-{each.name}.json").read_text()


def test_where_one_file_was_changed_by_somebody_none_is_written(tmp_path: Path) -> None:
    """Who tries again would count what was written twice."""
    own = OwnFiles()
    store = FolderStore(str(tmp_path), own)

    def named(name: str) -> Resource:
        return parse_manifest(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "IPAMHandle",
                "metadata": {"name": name},
                "spec": {"deleted": False, "block": {"10.65.0.0/26": 1}},
            }
        )

    one, other, new = (named("one"), named("other"), named("new"))

    async def revision(resource: Resource) -> str:
        there = await store.get(resource.key)
        assert there is not None
        return there.revision

    async def write() -> None:
        await store.write_all([Edit(each.key, each, None) for each in (one, other)])
        (file,) = tmp_path.glob("*other*")
        own.compared(file.name, store._written[str(file)])
        file.write_text(file.read_text() + "\n")
        before = {each.name: each.read_text() for each in tmp_path.glob("*.json")}
        edits = [
            Edit(new.key, new, None),
            Edit(one.key, None, await revision(one)),
            Edit(other.key, None, await revision(other)),
        ]
        with pytest.raises(Conflict):
            await store.write_all(edits)
        assert {each.name: each.read_text() for each in tmp_path.glob("*.json")} == before
        await store.write_all(edits)
        assert [each.name for each in tmp_path.glob("*.json")] == ["ipamhandle-new.json"]
        await store.close()

    asyncio.run(write())


def test_a_file_of_ours_that_somebody_changed_can_be_written_again(tmp_path: Path) -> None:
    """Also where the follower had seen that it said what we wrote, so that nothing is read before it goes."""
    own = OwnFiles()
    store = FolderStore(str(tmp_path), own)
    spec: JsonObject = {"deleted": False, "block": {"10.65.0.0/26": 1}}
    manifest: JsonObject = {
        "apiVersion": "projectcalico.org/v3", "kind": "IPAMHandle", "metadata": {"name": "h"}, "spec": spec,
    }  # fmt: skip
    handle = parse_manifest(manifest)

    async def write() -> None:
        await store.write(handle.key, handle, None)
        (file,) = tmp_path.glob("*.json")
        own.compared(file.name, store._written[str(file)])
        file.write_text(json.dumps({**manifest, "spec": {**spec, "block": {"10.65.0.0/26": 2}}}))
        for attempt in range(2):
            there = await store.get(handle.key)
            assert there is not None
            try:
                await store.write(handle.key, handle, there.revision)
            except Conflict:
                assert not attempt, "it is never read again"
        assert json.loads(file.read_text())["spec"] == spec
        await store.close()

    asyncio.run(write())
