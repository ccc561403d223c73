"""Recorded topologies replayed: the same inputs must give the same effects and the same octets on the wire."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from routed.core.core import Core
from routed.observe.recorder import Engine, Header, RecordingCore
from routed.observe.replay import replay
from routed.testing.world import World
from tests.conformance.topologies import TOPOLOGIES

RECORDINGS = Path(__file__).parent / "recordings"


def record(name: str) -> str:
    """Play a topology anew; the recording of its chosen node (of its last life, if it restarts)."""
    topology, recorded = TOPOLOGIES[name]
    out = io.StringIO()

    def recorder(node: str, core: Core, header: Header) -> Engine:
        if node != recorded:
            return core
        out.seek(0)
        out.truncate()
        return RecordingCore(core, header, out)

    topology(World(record=recorder))
    return out.getvalue()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_recording_replays_byte_for_byte(name: str) -> None:
    path = RECORDINGS / f"{name}.jsonl"
    if os.environ.get("ROUTED_RECORD"):
        path.write_text(record(name), encoding="utf-8")
    steps = list(replay(str(path)))
    assert len(steps) > 50
    assert [step for step in steps if not step.equal] == []


@pytest.mark.parametrize("name", ["mesh", "reflector"])
def test_a_topology_happens_the_same_way_every_time(name: str) -> None:
    assert record(name) == record(name)
