"""Feeds a recording to a fresh core and compares what comes out, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from routed.core.core import Core
from routed.errors import ConfigError
from routed.observe.encoding import INPUTS, Json
from routed.observe.recorder import Header, call, dump
from routed.values import dataclass

OUTPUTS = ("returned", "effects", "raised")


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded call and what replaying it gave."""

    line: int
    """Line number in the file, from 1."""
    name: str
    """The input's method, or `take`."""
    recorded: str
    """Its outputs then, in the recording's spelling."""
    replayed: str
    """Its outputs now."""

    @property
    def equal(self) -> bool:
        return self.recorded == self.replayed


def replay(path: str) -> Iterator[Step]:
    """Replay the recording at `path`, a step at a time. A last line that was cut off (a crash) is ignored.

    Raises ConfigError where the file is no recording, or can't be read.
    """
    try:
        with open(path, encoding="utf-8") as lines:
            header = Header.from_line(lines.readline(), path)
            core = Core(header.settings, header.seed)
            for number, line in enumerate(lines, 2):
                if not line.endswith("\n"):
                    return
                yield _step(core, path, number, line)
                core.effects = []
    except OSError as error:
        raise ConfigError(path, f"cannot read the recording: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(path, "this is not a recording of routed") from None


def _step(core: Core, path: str, number: int, line: str) -> Step:
    try:
        entry = json.loads(line)
        if "take" in entry:
            core.writable.discard(entry["take"])
            taken = core.take(entry["take"], entry["limit"])
            return Step(number, "take", dump(entry["bytes"]), dump(taken.hex()))
        name = entry["in"]
        arguments: tuple[Any, ...] = tuple(codec.from_json(entry[parameter]) for parameter, codec in INPUTS[name])
        now = float(entry["now"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}:{number}", f"this line is not an input of routed ({type(error).__name__}: {error})"
        ) from None
    _, outputs, _ = call(core, name, (*arguments, now))
    recorded: dict[str, Json] = {key: entry[key] for key in OUTPUTS if key in entry}
    replayed: dict[str, Json] = {key: outputs[key] for key in OUTPUTS if key in outputs}
    return Step(number, name, dump(recorded), dump(replayed))
