"""Recordings of whole networks replay to the same outputs, byte for byte, in this process and in others."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from routed.core.core import Core, CoreSettings
from routed.errors import ConfigError
from routed.model.resources import JsonObject
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.observe.recorder import Engine, Header, RecordingCore
from routed.observe.replay import replay
from routed.testing.world import World

API = "projectcalico.org/v3"


def manifest(kind: str, name: str, spec: JsonObject) -> JsonObject:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def node(index: int) -> JsonObject:
    return manifest(
        "Node", f"n{index}", {"bgp": {"ipv4Address": f"10.0.0.{index}/24", "ipv6Address": f"fd00::{index}/64"}}
    )


def block(index: int, number: int) -> JsonObject:
    spec: JsonObject = {"node": f"n{index}", "cidr": f"10.244.{index}.{number * 64}/26", "state": "confirmed"}
    return manifest("BlockAffinity", f"b{index}-{number}", spec)


class Recorded:
    """A world in which every node is recorded."""

    def __init__(self) -> None:
        self.files: dict[str, io.StringIO] = {}
        self.world = World(record=self._record)

    def _record(self, name: str, core: Core, header: Header) -> Engine:
        out = self.files[f"{name}-{len(self.files)}"] = io.StringIO()
        return RecordingCore(core, header, out)

    def add(self, index: int, *more: JsonObject, routes_found: frozenset[Family] = frozenset()) -> None:
        nodes = [node(other) for other in range(1, 5)]
        pool = manifest("IPPool", "v4", {"cidr": "10.244.0.0/16"})
        addresses = [(f"10.0.0.{index}", 24), (f"fd00::{index}", 64)]
        self.world.add(f"n{index}", addresses, [pool, *nodes, block(index, 0), *more], routes_found=routes_found)

    def save(self, folder: Path) -> list[Path]:
        paths = []
        for name, out in self.files.items():
            path = folder / f"{name}.jsonl"
            path.write_text(out.getvalue())
            paths.append(path)
        return paths


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    """Four nodes: a mesh, changes, an interface that flaps, a reset, a death and a restart."""
    recorded = Recorded()
    world = recorded.world
    for index in range(1, 5):
        recorded.add(index)
    world.run(10)
    world.nodes["n1"].apply(block(1, 1), manifest("BGPConfiguration", "default", {"asNumber": 64600}))
    world.run(1)
    for name in ("n2", "n3", "n4"):
        world.nodes[name].apply(manifest("BGPConfiguration", "default", {"asNumber": 64600}))
    world.run(40)
    world.nodes["n2"].link(False)
    world.run(5)
    world.nodes["n2"].link(True)
    world.nodes["n1"].delete(parse_manifest(block(1, 1)).key)
    world.sever("n1", "n3")
    world.run(30)
    world.nodes["n3"].engine.clear(bytes([10, 0, 0, 1]), "hard", world.now)
    world.nodes["n3"].more = True
    world.run(10)
    world.kill("n4")
    world.run(20)
    recorded.add(4, routes_found=frozenset({Family.IPV4_UNICAST}))
    world.run(300)
    world.nodes["n1"].engine.shutdown("shutdown", "enough", world.now)
    world.run(1)
    return recorded.save(tmp_path)


def test_replaying_gives_the_same_outputs(recordings: list[Path]) -> None:
    assert len(recordings) == 5
    for path in recordings:
        steps = list(replay(str(path)))
        assert len(steps) > 100
        assert [step for step in steps if not step.equal] == []
        assert any(step.name == "take" and len(step.recorded) > 40 for step in steps)
        assert any("routes" in step.recorded for step in steps)


def test_another_process_with_other_hashes_gives_them_too(recordings: list[Path]) -> None:
    for seed, path in enumerate(recordings, 1):
        result = subprocess.run(
            [sys.executable, "-m", "routed.cli.main", "replay", str(path)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
        assert result.stdout.startswith("equal: ")


def test_recording_changes_nothing() -> None:
    def logs(world: World) -> list[list[str]]:
        return [each.log for each in world.nodes.values()]

    recorded, plain = Recorded(), Recorded()
    plain.world = World()
    for each in (recorded, plain):
        for index in range(1, 4):
            each.add(index)
        each.world.run(20)
    assert logs(recorded.world) == logs(plain.world)


def test_a_difference_is_found_where_it_is(recordings: list[Path]) -> None:
    lines = recordings[0].read_text().splitlines(keepends=True)
    number = next(index for index, line in enumerate(lines) if '"take"' in line and len(line) > 60)
    entry = json.loads(lines[number])
    entry["bytes"] = entry["bytes"][:-2] + ("00" if entry["bytes"][-2:] != "00" else "01")
    lines[number] = json.dumps(entry) + "\n"
    recordings[0].write_text("".join(lines))
    different = [step for step in replay(str(recordings[0])) if not step.equal]
    assert [(step.line, step.name) for step in different] == [(number + 1, "take")]


def test_a_last_line_cut_by_a_crash_is_ignored(recordings: list[Path]) -> None:
    text = recordings[0].read_text()
    recordings[0].write_text(text[:-20])
    assert all(step.equal for step in replay(str(recordings[0])))


class FullDisk(io.StringIO):
    """Takes some octets and no more."""

    def write(self, text: str) -> int:
        if self.tell() > 500:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_ends_the_recording_and_nothing_else() -> None:
    told: list[str] = []
    header = Header(CoreSettings(node_name="a"), 1)
    recorder = RecordingCore(
        Core(header.settings, header.seed), header, FullDisk(), lambda error: told.append(error.strerror)
    )
    for now in range(100):
        recorder.timer(float(now))
        recorder.flush(float(now))
    assert told == ["No space left on device"]


def test_a_bug_is_recorded_and_raised_again(tmp_path: Path) -> None:
    out = io.StringIO()
    header = Header(CoreSettings(node_name="a"), 1)
    recorder = RecordingCore(Core(header.settings, header.seed), header, out)
    with pytest.raises(ValueError, match="packed"):
        recorder.accepted(b"not an address", b"", "", 1.0)
    path = tmp_path / "bug.jsonl"
    path.write_text(out.getvalue())
    (step,) = replay(str(path))
    assert step.equal
    assert json.loads(step.recorded)["raised"] == "ValueError"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: this is not a recording of routed"),
        ("hello\n", ":1: this is not a recording of routed"),
        ('{"recording": 1}\n', ":1: this is not a recording of routed"),
        ('{"recording": 99}\n', "this recording has schema 99; this routed replays schema 1"),
        ("HEADER\nnonsense\n", ":2: this line is not an input of routed"),
        ('HEADER\n{"in": "dance", "now": 1}\n', ":2: this line is not an input of routed (KeyError: 'dance')"),
        ('HEADER\n{"in": "timer"}\n', ":2: this line is not an input of routed (KeyError: 'now')"),
        ('HEADER\n{"take": 1}\n', ":2: this line is not an input of routed (KeyError: 'limit')"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text(text.replace("HEADER", Header(CoreSettings(node_name="a"), 1).to_line()))
    with pytest.raises(ConfigError) as caught:
        list(replay(str(path)))
    assert message in str(caught.value)


def test_a_recording_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recording: No such file"):
        list(replay(str(tmp_path / "none")))
