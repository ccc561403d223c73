"""Log lines: one line each whatever the text, and never a flood."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.core.effects import Level
from routed.observe import logs
from routed.observe.logs import LogWriter, harmless


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def writer(out: io.StringIO, clock: Clock, level: Level = Level.INFO, form: str = "text") -> LogWriter:
    return LogWriter(out, level, form, clock=clock, wall_clock=lambda: 1_700_000_000.25)


def texts(out: io.StringIO) -> list[str]:
    return [line.split(": ", 1)[1] for line in out.getvalue().splitlines()]


def test_text_line(out: io.StringIO, clock: Clock) -> None:
    writer(out, clock).write(Level.WARNING, "Mesh_10_0_0_2", "hold timer expired")
    assert out.getvalue() == "2023-11-14T22:13:20.250Z warning Mesh_10_0_0_2: hold timer expired\n"


def test_json_line(out: io.StringIO, clock: Clock) -> None:
    writer(out, clock, form="json").write(Level.INFO, "plan", "two\nlines \x1b[31m and \udcff")
    assert json.loads(out.getvalue()) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "subject": "plan",
        "text": "two\\x0alines \\x1b[31m and \\udcff",
    }


@pytest.mark.parametrize(("level", "priority"), [("error", 3), ("warning", 4), ("info", 6), ("debug", 7)])
def test_the_journal_gets_the_priority(out: io.StringIO, clock: Clock, level: str, priority: int) -> None:
    log = LogWriter(out, Level.DEBUG, journal=True, clock=clock, wall_clock=lambda: 1_700_000_000.25)
    log.write(Level(level), "listen", "<0>refused\n<0>emergency")
    assert out.getvalue() == f"<{priority}>listen: <0>refused\\x0a<0>emergency\n"


def test_the_journal_takes_json_too(out: io.StringIO, clock: Clock) -> None:
    LogWriter(out, form="json", journal=True, clock=clock).write(Level.ERROR, "kernel", "no")
    prefix, record = out.getvalue()[:3], json.loads(out.getvalue()[3:])
    assert (prefix, record["level"], record["text"]) == ("<3>", "error", "no")


def test_a_subject_cannot_choose_the_priority(out: io.StringIO, clock: Clock) -> None:
    LogWriter(out, journal=True, clock=clock).write(Level.INFO, "<0>peer", "up")
    assert out.getvalue() == "<6><0>peer: up\n", "the journal takes off one"


def test_the_journal_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "one").open("w") as one, (tmp_path / "other").open("w") as other:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not logs.reads_journal(one)
        found = os.fstat(one.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.reads_journal(one)
        assert not logs.reads_journal(other), "standard error was sent elsewhere"
    assert not logs.reads_journal(io.StringIO())


def test_levels(out: io.StringIO, clock: Clock) -> None:
    log = writer(out, clock, Level.WARNING)
    for level in Level:
        log.write(level, "x", level.value)
    assert texts(out) == ["warning", "error"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, with punctuation: 10.0.0.1/24 \\ %s {}", "plain text, with punctuation: 10.0.0.1/24 \\ %s {}"),
        ("grüße 漢字 €", "grüße 漢字 €"),
        ("a\nb\r\tc\0", "a\\x0ab\\x0d\\x09c\\x00"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202eesrever \u200b \u2028 \ufeff", "\\u202eesrever \\u200b \\u2028 \\ufeff"),
        ("\udc80 \U000e0001 \u00a0", "\\udc80 \\U000e0001 \\xa0"),
    ],
)
def test_harmless(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(st.text())
def test_harmless_is_one_printable_line_and_stays_as_it_is(text: str) -> None:
    shown = harmless(text)
    assert shown.isprintable()
    assert isinstance(shown.encode(), bytes), "no surrogate is left"
    assert harmless(shown) == shown


@given(st.text(), st.text(), st.sampled_from(logs.FORMATS))
def test_every_event_is_one_line(subject: str, text: str, form: str) -> None:
    out = io.StringIO()
    writer(out, Clock(), form=form).write(Level.INFO, subject, text)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue()[:-1].isprintable()


def test_long_text_is_cut(out: io.StringIO, clock: Clock) -> None:
    writer(out, clock).write(Level.INFO, "x", "y" * 10_000)
    assert texts(out)[0].endswith("y... (10000 characters)")
    assert len(out.getvalue()) < 4200


def test_the_same_words_are_counted(out: io.StringIO, clock: Clock) -> None:
    log = writer(out, clock)
    for _ in range(1000):
        log.write(Level.WARNING, "listen", "refused")
    log.write(Level.WARNING, "listen", "something else")
    assert texts(out) == ["refused"] * 3 + ["something else"]
    log.tidy()
    assert len(texts(out)) == 4, "not over yet"
    clock.now += logs.SAME_SECONDS
    log.tidy()
    assert texts(out)[4:] == ["refused (this was said 997 more times)"]
    log.write(Level.WARNING, "listen", "refused")
    assert texts(out)[5:] == ["refused"]


def test_a_repetition_that_goes_on_is_reported_again(out: io.StringIO, clock: Clock) -> None:
    log = writer(out, clock)
    for _ in range(3):
        for _ in range(10):
            log.write(Level.INFO, "x", "again")
        clock.now += logs.SAME_SECONDS
    log.close()
    assert texts(out) == (["again"] * 3 + ["again (this was said 7 more times)"]) * 3


def test_one_subject_cannot_flood(out: io.StringIO, clock: Clock) -> None:
    log = writer(out, clock)
    for number in range(10_000):
        log.write(Level.INFO, "noisy", f"event {number}")
    log.write(Level.INFO, "quiet", "still heard")
    lines = texts(out)
    assert len(lines) == logs.BURST + 1
    assert lines[-1] == "still heard"
    clock.now += 1
    log.write(Level.INFO, "noisy", "later")
    assert texts(out)[-2:] == ["9800 lines left out: too many at once", "later"]


def test_many_subjects_cannot_flood(out: io.StringIO, clock: Clock) -> None:
    """A thousand neighbours that flap all day long are no reason to fill a disk."""
    log = writer(out, clock)
    for number in range(10_000):
        log.write(Level.INFO, f"neighbour {number % 1000}", f"event {number}")
    assert len(texts(out)) == logs.TOTAL_BURST
    clock.now += 1
    log.write(Level.INFO, "another", "later")
    assert texts(out)[-2:] == ["8000 lines left out: too many at once", "later"]
    clock.now += 3600
    log.tidy()
    assert log._budgets == {}


def test_memory_is_bounded(out: io.StringIO, clock: Clock) -> None:
    log = writer(out, clock)
    for number in range(3 * logs.MAX_REMEMBERED):
        log.write(Level.INFO, "noisy", f"event {number}")
    assert len(log._repeats) <= logs.MAX_REMEMBERED


def test_debug_leaves_nothing_out(out: io.StringIO, clock: Clock) -> None:
    log = writer(out, clock, Level.DEBUG)
    for _ in range(1000):
        log.write(Level.INFO, "x", "same")
    assert len(texts(out)) == 1000


def test_a_closed_stream_stops_nobody(clock: Clock) -> None:
    out = io.StringIO()
    out.close()
    writer(out, clock).write(Level.INFO, "x", "nobody reads this")
