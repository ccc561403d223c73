"""The saved state is kept up while all of it is being written, by a thread that takes its time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from routed.datastore.count import Count
from routed.datastore.guard import Believed, Change, Guard, MassDelete
from routed.datastore.saved import Identity, SavedState, Saver
from routed.model.resources import Resource, ResourceKey
from routed.model.schema import parse_manifest

WHO = Identity("n1", "/calico", ("http://127.0.0.1:2379",))


def node(number: int, address: int = 1) -> Resource:
    return parse_manifest(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": f"n{number}"},
            "spec": {"bgp": {"ipv4Address": f"10.0.{number}.{address}/24"}},
        }
    )


def there(value: Resource, revision: int) -> Change:
    return Change(value.key, value, revision)


class Slow(SavedState):
    """A disk that takes as long as a test wants."""

    def __init__(self, path: str) -> None:
        super().__init__(path, WHO)
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.rewritten = 0

    def rewrite(self, believed: Believed, offset: float, as_of: float, revision: int, counted: Count) -> None:
        self.began.set()
        assert self.may_end.wait(60)
        super().rewrite(believed, offset, as_of, revision, counted)
        self.rewritten += 1


def test_what_changes_while_all_is_written_is_there_after_it(tmp_path: Path) -> None:
    path = str(tmp_path / "saved")

    async def main() -> None:
        guard, state, told = Guard(MassDelete()), Slow(path), asyncio.Event()
        saver = Saver(state, guard, 0.0, told.set)
        guard.changes([there(node(number), number) for number in range(1, 5)], 0.0)
        saver.save_all(4, Count(77, term=3, index=9))
        await asyncio.to_thread(state.began.wait, 20)
        # the loop is here while the thread writes
        guard.changes([there(node(2, 9), 5), Change(ResourceKey("Node", "n3"), None, 6)], 1.0)
        guard.settle(100.0)
        guard.changes([Change(ResourceKey("Node", "n1"), None, 7, "no resource")], 2.0)
        saver.save([ResourceKey("Node", "n2"), ResourceKey("Node", "n3"), ResourceKey("Node", "n1")], 7)
        state.may_end.set()
        async with asyncio.timeout(60):
            await told.wait()
        guard.changes([there(node(8), 8)], 3.0)
        saver.save([ResourceKey("Node", "n8")], 8)
        await saver.close()
        assert state.rewritten == 1 and not state.problem

    asyncio.run(main())
    loaded = SavedState(path, WHO).load()
    assert {key.name: good.revision for key, good in loaded.good.items()} == {"n1": 1, "n2": 5, "n4": 4, "n8": 8}
    assert loaded.good[ResourceKey("Node", "n2")].resource == node(2, 9)
    assert {key.name: text for key, text in loaded.garbage.items()} == {"n1": "no resource"}
    assert (loaded.revision, loaded.counted) == (8, Count(77, term=3, index=9))


def test_a_second_reading_while_the_first_is_written_is_written_too(tmp_path: Path) -> None:
    path = str(tmp_path / "saved")

    async def main() -> None:
        guard, state = Guard(MassDelete()), Slow(path)
        saver = Saver(state, guard, 0.0, lambda: None)
        guard.changes([there(node(1), 1)], 0.0)
        saver.save_all(1, Count(77, term=3, index=9))
        await asyncio.to_thread(state.began.wait, 20)
        guard.changes([there(node(2), 2)], 1.0)
        saver.save_all(2, Count(78, term=3, index=9))
        state.may_end.set()
        await saver.close()
        assert state.rewritten == 2

    asyncio.run(main())
    loaded = SavedState(path, WHO).load()
    assert {key.name for key in loaded.good} == {"n1", "n2"}
    assert (loaded.revision, loaded.counted.cluster_id) == (2, 78)


def test_a_disk_that_does_not_take_it_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        guard, state, told = Guard(MassDelete()), SavedState(str(tmp_path / "no" / "saved"), WHO), asyncio.Event()
        saver = Saver(state, guard, 0.0, told.set)
        saver.save_all(1, Count(77, term=3, index=9))
        async with asyncio.timeout(60):
            await told.wait()
        assert "the state is not saved" in state.problem
        await saver.close()

    asyncio.run(main())
