"""Writes every input of a core, and what came of it, as JSON lines.

`RecordingCore` stands in the place of a `Core`: the daemon calls it and cannot tell. A recording is a header line
(`Header`: schema, settings, seed) and then a line for each call in its order:

    {"in": "received", "now": 12.5, "conn": 3, "data": "ffff..."}              an input, its parameters by name
    {..., "returned": 4, "effects": [...]}                                      what it gave, where that is anything
    {..., "raised": "ValueError"}                                               a bug
    {"take": 3, "limit": 262144, "bytes": "ffff..."}                            octets taken to be written

The line is written after the call but holds the input that led to it even if the call raised. Nothing of this exists
while nobody records.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from routed import __version__
from routed.core.core import Core, CoreSettings
from routed.core.effects import Effect
from routed.errors import ConfigError
from routed.model.resources import Update
from routed.net.families import Family
from routed.observe.encoding import INPUTS, Json, effect_to_json, settings_from_json, settings_to_json
from routed.observed import KernelChange, RouteFailure
from routed.values import dataclass

SCHEMA = 1


class Engine(Protocol):
    """What the daemon drives: a `Core`, or a recording one."""

    effects: list[Effect]

    @property
    def writable(self) -> set[int]: ...
    def resource(self, update: Update, now: float) -> None: ...
    def secret(self, reference: str, generation: int, problem: str, now: float) -> None: ...
    def loaded(self, now: float) -> None: ...
    def in_sync(self, now: float) -> None: ...
    def connected(self, conn: int, local: bytes, now: float) -> None: ...
    def connect_failed(self, conn: int, reason: str, now: float) -> None: ...
    def accepted(self, remote: bytes, local: bytes, interface: str, now: float) -> int: ...
    def received(self, conn: int, data: bytes, now: float) -> None: ...
    def closed(self, conn: int, reason: str, now: float) -> None: ...
    def writing_paused(self, conn: int, now: float) -> None: ...
    def writing_resumed(self, conn: int, now: float) -> None: ...
    def kernel(self, change: KernelChange, now: float) -> None: ...
    def route_failures_changed(
        self, failures: tuple[RouteFailure, ...], cleared: tuple[tuple[Family, bytes], ...], now: float
    ) -> None: ...
    def timer(self, now: float) -> None: ...
    def shutdown(self, mode: str, reason: str, now: float) -> None: ...
    def clear(self, address: bytes, mode: str, now: float) -> bool: ...
    def flush(self, now: float) -> bool: ...
    def take(self, conn: int, limit: int) -> bytes: ...
    def next_timer(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a recording."""

    settings: CoreSettings
    seed: int
    version: str = __version__

    def to_line(self) -> str:
        return dump(
            {
                "recording": SCHEMA,
                "version": self.version,
                "settings": settings_to_json(self.settings),
                "seed": self.seed,
            }
        )

    @classmethod
    def from_line(cls, line: str, path: str) -> Header:
        """Raises ConfigError where the line is no header of a recording this version reads."""
        try:
            value = json.loads(line)
            schema = value["recording"]
            if schema != SCHEMA:
                raise ConfigError(path, f"this recording has schema {schema!r}; this routed replays schema {SCHEMA}")
            return cls(settings_from_json(value["settings"]), int(value["seed"]), str(value["version"]))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}:1", "this is not a recording of routed") from None


def dump(value: Json) -> str:
    """The one spelling of a JSON value: recorded and replayed outputs are compared as text."""
    return json.dumps(value, separators=(",", ":"))


class RecordingCore:
    """A core that writes a recording; see the module's docstring."""

    def __init__(
        self, core: Core, header: Header, out: TextIO, on_failure: Callable[[OSError], None] | None = None
    ) -> None:
        """`on_failure` is told once when `out` can't be written any more, as on a full disk; the core goes on."""
        self.core = core
        self._out: TextIO | None = out
        self._on_failure = on_failure
        self._write(header.to_line())

    @property
    def effects(self) -> list[Effect]:
        return self.core.effects

    @effects.setter
    def effects(self, effects: list[Effect]) -> None:
        self.core.effects = effects

    @property
    def writable(self) -> set[int]:
        return self.core.writable

    def resource(self, update: Update, now: float) -> None:
        self._record("resource", now, update)

    def secret(self, reference: str, generation: int, problem: str, now: float) -> None:
        self._record("secret", now, reference, generation, problem)

    def loaded(self, now: float) -> None:
        self._record("loaded", now)

    def in_sync(self, now: float) -> None:
        self._record("in_sync", now)

    def connected(self, conn: int, local: bytes, now: float) -> None:
        self._record("connected", now, conn, local)

    def connect_failed(self, conn: int, reason: str, now: float) -> None:
        self._record("connect_failed", now, conn, reason)

    def accepted(self, remote: bytes, local: bytes, interface: str, now: float) -> int:
        return int(self._record("accepted", now, remote, local, interface))

    def received(self, conn: int, data: bytes, now: float) -> None:
        self._record("received", now, conn, data)

    def closed(self, conn: int, reason: str, now: float) -> None:
        self._record("closed", now, conn, reason)

    def writing_paused(self, conn: int, now: float) -> None:
        self._record("writing_paused", now, conn)

    def writing_resumed(self, conn: int, now: float) -> None:
        self._record("writing_resumed", now, conn)

    def kernel(self, change: KernelChange, now: float) -> None:
        self._record("kernel", now, change)

    def route_failures_changed(
        self, failures: tuple[RouteFailure, ...], cleared: tuple[tuple[Family, bytes], ...], now: float
    ) -> None:
        self._record("route_failures_changed", now, failures, cleared)

    def timer(self, now: float) -> None:
        self._record("timer", now)

    def shutdown(self, mode: str, reason: str, now: float) -> None:
        self._record("shutdown", now, mode, reason)

    def clear(self, address: bytes, mode: str, now: float) -> bool:
        return bool(self._record("clear", now, address, mode))

    def flush(self, now: float) -> bool:
        more = bool(self._record("flush", now))
        if self._out is not None:
            try:
                self._out.flush()  # once a turn: what led to a crash is on disk
            except OSError as error:
                self._failed(error)
        return more

    def take(self, conn: int, limit: int) -> bytes:
        data = self.core.take(conn, limit)
        # also when it gave nothing: it may have moved a reader past what is not for it
        self._write(dump({"take": conn, "limit": limit, "bytes": data.hex()}))
        return data

    def next_timer(self) -> float | None:
        return self.core.next_timer()

    def _record(self, name: str, now: float, *arguments: Any) -> Any:
        entry: dict[str, Json] = {"in": name, "now": now}
        for (parameter, codec), argument in zip(INPUTS[name], arguments, strict=True):
            entry[parameter] = codec.to_json(argument)
        returned, outputs, error = call(self.core, name, (*arguments, now))
        self._write(dump({**entry, **outputs}))
        if error is not None:
            raise error
        return returned

    def _write(self, line: str) -> None:
        if self._out is not None:
            try:
                self._out.write(line + "\n")
            except OSError as error:
                self._failed(error)

    def _failed(self, error: OSError) -> None:
        """A recording with a gap is none: it ends here."""
        self._out = None
        if self._on_failure is not None:
            self._on_failure(error)


def call(core: Core, name: str, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Json], Exception | None]:
    """Give a core one input: what it returned, what came of it in the words of a recording, and what it raised."""
    before = len(core.effects)
    outputs: dict[str, Json] = {}
    returned, error = None, None
    try:
        returned = getattr(core, name)(*arguments)
    except Exception as raised:
        error = raised
        outputs["raised"] = type(raised).__name__
    if returned is not None:
        outputs["returned"] = returned
    if len(core.effects) > before:
        outputs["effects"] = [effect_to_json(effect) for effect in core.effects[before:]]
    return returned, outputs, error
