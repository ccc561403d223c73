"""The file store on a real loop and a real folder: snapshot, then changes, without stalling the loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from routed.datastore.editing import FolderStore
from routed.datastore.file import FileStore, Problem, load_folder
from routed.datastore.store import Edit
from routed.errors import StoreError
from routed.model.resources import Resource, ResourceKey, Update
from routed.model.schema import parse_manifest

SOON = 30.0
"""Seconds in which a change must have been read, on a machine that does other things beside."""


def peer(name: str, asn: int = 65001) -> str:
    return (
        f"apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata:\n  name: {name}\n"
        f"spec:\n  peerIP: 10.0.0.1\n  asNumber: {asn}\n"
    )


class Queue:
    """A sink that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Update | str | tuple[Problem, ...]] = asyncio.Queue()

    def update(self, update: Update) -> None:
        self.told.put_nowait(update)

    def in_sync(self) -> None:
        self.told.put_nowait("in sync")

    def problems(self, problems: tuple[Problem, ...]) -> None:
        self.told.put_nowait(problems)

    async def next(self) -> str:
        """The next thing told, in short; the wait for it is the assertion."""
        told = await asyncio.wait_for(self.told.get(), SOON)
        if isinstance(told, Update):
            return f"{told.key.name} {'gone' if told.value is None else told.value.manifest['spec']['asNumber']}"  # type: ignore[index,call-overload]
        return told if isinstance(told, str) else f"{len(told)} problems"


def running(folder: Path, story: Callable[[Queue], Awaitable[None]]) -> None:
    """Tell a story against a running store."""

    async def play() -> None:
        sink = Queue()
        store = asyncio.create_task(FileStore(folder).run(sink))
        try:
            await story(sink)
        finally:
            store.cancel()
        with pytest.raises(asyncio.CancelledError):
            await store

    asyncio.run(play())


def test_snapshot_then_changes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(peer("one", 1))
    (tmp_path / "b.yaml").write_text(peer("two", 2) + "---\nkind: Nonsense\n")

    async def story(sink: Queue) -> None:
        assert [await sink.next() for _ in range(4)] == ["one 1", "two 2", "1 problems", "in sync"]
        (tmp_path / "a.yaml").write_text(peer("one", 11))
        assert await sink.next() == "one 11"
        (tmp_path / "b.yaml").write_text(peer("two", 2))
        assert await sink.next() == "0 problems"
        (tmp_path / "new").write_text(peer("three", 3))
        (tmp_path / "new").rename(tmp_path / "c.yaml")
        assert await sink.next() == "three 3"
        (tmp_path / "a.yaml").unlink()
        assert await sink.next() == "one gone"
        (tmp_path / "b.yaml").write_text("")
        assert await sink.next() == "1 problems"
        assert sink.told.empty()

    running(tmp_path, story)


def test_a_writer_that_takes_its_time_deletes_nothing(tmp_path: Path) -> None:
    text = "---\n".join(peer(f"p{n}", n + 1) for n in range(5))
    (tmp_path / "a.yaml").write_text(text)

    async def story(sink: Queue) -> None:
        assert [await sink.next() for _ in range(6)] == ["p0 1", "p1 2", "p2 3", "p3 4", "p4 5", "in sync"]
        with (tmp_path / "a.yaml").open("w") as stream:
            assert await sink.next() == "1 problems"
            stream.write(text[: len(text) // 2])
            stream.flush()
            assert await sink.next() == "1 problems"
            stream.write(text[len(text) // 2 :])
        assert await sink.next() == "0 problems"

    running(tmp_path, story)


def test_an_empty_folder_is_in_sync(tmp_path: Path) -> None:
    async def story(sink: Queue) -> None:
        assert await sink.next() == "in sync"
        (tmp_path / "a.yaml").write_text(peer("one", 1))
        assert await sink.next() == "one 1"

    running(tmp_path, story)


def test_a_missing_folder_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the folder of resources cannot be read"):
        asyncio.run(FileStore(tmp_path / "nowhere").run(Queue()))
    with pytest.raises(StoreError, match="the folder of resources cannot be read"):
        load_folder(tmp_path / "nowhere")


def test_load_folder_serves_a_check(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(peer("two", 2))
    (tmp_path / "a.yaml").write_text(peer("one", 1) + "---\n" + peer("three", 0))
    resources, problems = load_folder(tmp_path)
    assert [resource.key for resource in resources] == [ResourceKey("BGPPeer", "one"), ResourceKey("BGPPeer", "two")]
    assert [str(problem) for problem in problems] == [
        f"{tmp_path}/a.yaml:15: spec.asNumber: must not be AS 0, which is reserved (RFC 7607)"
    ]


def test_the_loop_turns_while_two_thousand_peers_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("---\n".join(peer(f"p{n}", n + 1) for n in range(2000)))

    async def story(sink: Queue) -> None:
        turns = 0
        while sink.told.qsize() < 2001:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 10, "read in one go"

    running(tmp_path, story)


def test_a_file_written_document_by_document_deletes_nothing_on_its_way(tmp_path: Path) -> None:
    """Cut at the end of a document a file looks whole; whoever writes it has it open."""
    (tmp_path / "a.yaml").write_text("---\n".join(peer(f"p{n}", n + 1) for n in range(4)))

    async def story(sink: Queue) -> None:
        while sink.told.qsize() < 5:
            await asyncio.sleep(0.01)
        with (tmp_path / "a.yaml").open("w") as stream:
            for n in range(4):
                stream.write(("---\n" if n else "") + peer(f"p{n}", n + 1))
                stream.flush()
                await asyncio.sleep(0.35)  # longer than a look: the time between two writes is the matter of this test
        await asyncio.sleep(1.2)
        assert sink.told.qsize() == 5

    running(tmp_path, story)


def test_its_health_says_what_it_sees(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "resources", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "a.yaml").write_text(peer("a"))
    store = FileStore(folder)
    health = store.health
    assert (health.kind, health.connected, health.as_of, health.readings) == ("file", False, None, 0)

    async def play() -> None:
        sink = Queue()
        task = asyncio.create_task(store.run(sink))
        assert [await sink.next(), await sink.next()] == ["a 65001", "in sync"]
        await until(lambda: health.connected)
        assert (health.readings, health.changes, health.failures, health.from_snapshot) == (1, 0, 0, False)
        (folder / "b.yaml").write_text(peer("b"))
        assert await sink.next() == "b 65001"
        assert health.changes == 1
        folder.rename(elsewhere)
        await until(lambda: not health.connected)
        last = health.as_of
        assert "cannot be read" in health.problem and health.failures == 1
        elsewhere.rename(folder)
        await until(lambda: health.connected)
        assert health.problem == "" and health.failures == 1
        assert last is not None and health.as_of is not None and health.as_of > last
        task.cancel()

    asyncio.run(play())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.01)


def test_others_are_noticed_while_hundreds_of_files_come_and_go(tmp_path: Path) -> None:
    """An edit in place, a rename, a symlink swapped and a broken file, beside a writer that is never done."""

    def handle(number: int) -> Resource:
        return parse_manifest(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "IPAMHandle",
                "metadata": {"name": f"h{number}"},
                "spec": {"block": {"10.65.0.0/26": 1}},
            }
        )

    (tmp_path / "elsewhere").mkdir()
    for version in (1, 2):
        (tmp_path / "elsewhere" / f"{version}").write_text(peer("linked", version))
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "edited.yaml").write_text(peer("edited", 1))
    (folder / "linked.yaml").symlink_to(tmp_path / "elsewhere" / "1")

    async def write(store: FolderStore) -> None:
        revisions: dict[ResourceKey, str] = {}
        for number in itertools.count(step=5):
            made = [handle(each) for each in range(number, number + 5)]
            gone = list(revisions)[:5] if len(revisions) > 100 else []
            edits = [Edit(each.key, each, None) for each in made]
            edits += [Edit(each, None, revisions.pop(each)) for each in gone]
            written = await asyncio.shield(store.write_all(edits))
            revisions |= {each.key: revision for each, revision in zip(made, written, strict=False)}

    async def play() -> None:
        sink = Queue()
        store = FileStore(folder)
        following = asyncio.create_task(store.run(sink))
        seen: dict[ResourceKey, Resource | None] = {}

        async def until(name: str, asn: int) -> None:
            key = ResourceKey("BGPPeer", name)
            async with asyncio.timeout(SOON):
                while getattr(seen.get(key), "as_number", None) != asn:
                    told = await sink.told.get()
                    if isinstance(told, Update):
                        assert told.value is not seen.get(told.key), "told twice"
                        seen[told.key] = told.value

        await until("edited", 1)
        await until("linked", 1)
        writer = FolderStore(str(folder), store.own)
        writing = asyncio.create_task(write(writer))
        (folder / "edited.yaml").write_text(peer("edited", 2))
        await until("edited", 2)
        (folder / ".new").symlink_to(tmp_path / "elsewhere" / "2")
        (folder / ".new").rename(folder / "linked.yaml")
        await until("linked", 2)
        (folder / ".new").write_text(peer("renamed", 3))
        (folder / ".new").rename(folder / "renamed.yaml")
        await until("renamed", 3)
        (folder / "edited.yaml").write_text(peer("edited", 4) + "---\nkind: [broken\n")
        await until("edited", 4)
        while isinstance(told := await sink.told.get(), Update):
            seen[told.key] = told.value
        assert str(told[0]).startswith(f"{folder}/edited.yaml:10: ")
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await writer.close()
        async with asyncio.timeout(30):
            while {each.key for each in load_folder(folder)[0]} != {key for key, value in seen.items() if value}:
                told = await sink.told.get()
                if isinstance(told, Update):
                    seen[told.key] = told.value
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(play())
