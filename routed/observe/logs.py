"""Log lines: one event a line, as text or JSON, harmless and never a flood.

A line is `time level subject: text`, or the same as a JSON object. Where standard error is the journal, a line begins with
its priority (`<4>`, sd-daemon(3)), which the journal takes off and keeps, and text has no time of its own. Whatever the
text holds, the line stays one line of printable characters. The same words about the same subject are written
`SAME_LINES` times in `SAME_SECONDS`, one subject writes at most `BURST` lines at once and `RATE` a second on average, and
all subjects together at most `TOTAL_BURST` and `TOTAL_RATE`; what is left out is counted and the count written as soon as
it is known. At level `debug` nothing is left out: who asked for everything gets everything.
"""

from __future__ import annotations

import datetime
import json
import os
import time
import unicodedata
from collections.abc import Callable
from typing import TextIO

from routed.core.effects import Level

ORDER = {level: index for index, level in enumerate((Level.DEBUG, Level.INFO, Level.WARNING, Level.ERROR))}
FORMATS = ("text", "json")

#: Priorities of syslog(3).
PRIORITY = {Level.DEBUG: 7, Level.INFO: 6, Level.WARNING: 4, Level.ERROR: 3}

SAME_LINES = 3
SAME_SECONDS = 10.0
BURST = 200.0
RATE = 20.0
TOTAL_BURST = 2000.0
TOTAL_RATE = 100.0

#: Characters of a text that are written.
MAX_TEXT = 4000

#: Different recent lines remembered, to tell what repeats.
MAX_REMEMBERED = 4096


def harmless(text: str) -> str:
    """`text` on one line, with everything a terminal or a log reader could act on written as an escape.

    Escaped: control and format characters (newlines, ESC, bidirectional overrides, zero-width ones), line and paragraph
    separators, private and unassigned code points, surrogates (what is left of invalid UTF-8). Backslashes stay as they
    are, for people.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_plain(character) else _escape(character) for character in text)


def reads_journal(stream: TextIO) -> bool:
    """Whether what is written to a stream goes to the journal: $JOURNAL_STREAM names its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _is_plain(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] in "LMNPS"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class LogWriter:
    """Writes the daemon's log to a stream, usually standard error."""

    def __init__(
        self,
        stream: TextIO,
        level: Level = Level.INFO,
        form: str = "text",
        *,
        journal: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.level = level
        self.form = form
        self._stream = stream
        self._journal = journal
        self._clock = clock
        self._wall_clock = wall_clock
        self._repeats: dict[tuple[str, str], _Repeat] = {}
        self._budgets: dict[str, _Budget] = {}
        self._total = _Budget(clock(), TOTAL_BURST, TOTAL_RATE)

    def write(self, level: Level, subject: str, text: str) -> None:
        """One event. Cheap where its level is not wanted."""
        if ORDER[level] < ORDER[self.level]:
            return
        if self.level is Level.DEBUG:
            self._emit(level, subject, text)
            return
        now = self._clock()
        repeat = self._repeats.get((subject, text))
        if repeat is None or now - repeat.since >= SAME_SECONDS:
            if repeat is not None:
                self._report_repeat(subject, text, repeat)
            elif len(self._repeats) >= MAX_REMEMBERED:
                self._forget_repeats(now, everything=True)
            repeat = self._repeats[subject, text] = _Repeat(level, now)
        elif repeat.written >= SAME_LINES:
            repeat.left_out += 1
            return
        budget = self._budgets.get(subject)
        if budget is None:
            budget = self._budgets[subject] = _Budget(now, BURST, RATE)
        if not budget.spend(now) or not self._total.spend(now):
            return
        if self._total.left_out:
            self._report_flood("log", self._total)
        if budget.left_out:
            self._report_flood(subject, budget)
        repeat.written += 1
        self._emit(level, subject, text)

    def tidy(self) -> None:
        """Write the counts of what was left out and is over. To be called every few seconds."""
        self._forget(self._clock(), everything=False)

    def close(self) -> None:
        """Write all counts; the last thing to do."""
        self._forget(self._clock(), everything=True)

    def _forget(self, now: float, *, everything: bool) -> None:
        self._forget_repeats(now, everything=everything)
        for subject, budget in list(self._budgets.items()):
            if everything or budget.is_full(now):
                if budget.left_out:
                    self._report_flood(subject, budget)
                del self._budgets[subject]
        if self._total.left_out and (everything or self._total.is_full(now)):
            self._report_flood("log", self._total)

    def _forget_repeats(self, now: float, *, everything: bool) -> None:
        for (subject, text), repeat in list(self._repeats.items()):
            if everything or now - repeat.since >= SAME_SECONDS:
                self._report_repeat(subject, text, repeat)
                del self._repeats[subject, text]

    def _report_repeat(self, subject: str, text: str, repeat: _Repeat) -> None:
        if repeat.left_out:
            self._emit(repeat.level, subject, f"{text} (this was said {repeat.left_out} more times)")
            repeat.left_out = 0

    def _report_flood(self, subject: str, budget: _Budget) -> None:
        self._emit(Level.WARNING, subject, f"{budget.left_out} lines left out: too many at once")
        budget.left_out = 0

    def _emit(self, level: Level, subject: str, text: str) -> None:
        if len(text) > MAX_TEXT:
            text = f"{text[:MAX_TEXT]}... ({len(text)} characters)"
        at = datetime.datetime.fromtimestamp(self._wall_clock(), datetime.UTC).isoformat(timespec="milliseconds")
        at = at.replace("+00:00", "Z")
        if self.form == "json":
            line = json.dumps({"time": at, "level": level.value, "subject": harmless(subject), "text": harmless(text)})
        elif self._journal:
            line = f"{harmless(subject)}: {harmless(text)}"
        else:
            line = f"{at} {level.value:<7} {harmless(subject)}: {harmless(text)}"
        if self._journal:
            line = f"<{PRIORITY[level]}>{line}"
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads our standard error: no reason to stop routing, and nowhere to say it


class _Repeat:
    """The same words about the same subject, since when and how often."""

    __slots__ = ("left_out", "level", "since", "written")

    def __init__(self, level: Level, now: float) -> None:
        self.level = level
        self.since = now
        self.written = 0
        self.left_out = 0


class _Budget:
    """How many lines may be written: a token bucket."""

    __slots__ = ("at", "burst", "left_out", "lines", "rate")

    def __init__(self, now: float, burst: float, rate: float) -> None:
        self.at = now
        self.burst = burst
        self.rate = rate
        self.lines = burst
        self.left_out = 0

    def spend(self, now: float) -> bool:
        self._refill(now)
        if self.lines < 1:
            self.left_out += 1
            return False
        self.lines -= 1
        return True

    def is_full(self, now: float) -> bool:
        self._refill(now)
        return self.lines >= self.burst

    def _refill(self, now: float) -> None:
        self.lines = min(self.burst, self.lines + (now - self.at) * self.rate)
        self.at = now
