"""--watch: again and again, over the last page on a terminal only, and through the daemon's absence."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable

import pytest

from routed.cli.main import commands
from routed.cli.watch import watch
from routed.control.client import Unreachable


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def watched(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[int], str], times: int, *, terminal: bool, **arguments: object
) -> str:
    """What is written by so many rounds of a command."""
    screen, count = Screen(terminal), 0
    monkeypatch.setattr(sys, "stdout", screen)

    def command(_: argparse.Namespace) -> int:
        nonlocal count
        count += 1
        sys.stdout.write(run(count))
        return 0

    def sleep(seconds: float) -> None:
        assert seconds == 5
        if count >= times:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(command, argparse.Namespace(**arguments), 5, sleep)
    return screen.getvalue()


def test_elsewhere_than_on_a_terminal_nothing_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    text = watched(monkeypatch, lambda n: f"page {n}\n", 3, terminal=False)
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("page")] == ["page 1", "page 2", "page 3"]


def test_on_a_terminal_a_page_is_written_over_the_last_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "10")
    text = watched(monkeypatch, lambda _: "line\n" * 100, 2, terminal=True)
    pages = text.split("\x1b[H")[1:]
    assert len(pages) == 2
    assert all(page.count("\n") <= 9 and page.endswith("\x1b[J") for page in pages)
    assert "... 93 more lines" in pages[0]


def test_json_is_a_line_a_time_and_an_absent_daemon_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(count: int) -> str:
        if count == 2:
            raise Unreachable("routed is not running")
        return json.dumps({"n": count}, indent=2)

    text = watched(monkeypatch, run, 3, terminal=True, json=True)
    assert [json.loads(line) for line in text.splitlines()] == [{"n": 1}, {"error": "routed is not running"}, {"n": 3}]


def test_where_the_first_answer_is_an_error_that_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: argparse.Namespace) -> int:
        raise Unreachable("no")

    screen = Screen(False)
    monkeypatch.setattr(sys, "stdout", screen)
    with pytest.raises(Unreachable):
        watch(run, argparse.Namespace(), 1)
    assert sys.stdout is screen


@pytest.mark.parametrize(
    ("words", "seconds", "address"),
    [("show neighbors --watch 10.0.0.2", 2.0, "10.0.0.2"), ("show neighbors --watch 5 10.0.0.2", 5.0, "10.0.0.2"),
     ("show neighbors --watch=0.5", 0.5, None), ("sh ne 10.0.0.2 --watch", 2.0, "10.0.0.2")],
)  # fmt: skip
def test_the_seconds_are_optional(words: str, seconds: float, address: str | None) -> None:
    arguments = commands().parse(words.split())
    assert (arguments.watch, arguments.address) == (seconds, address)


@pytest.mark.parametrize("word", ["0", "x", "-1", "1e9"])
def test_seconds_that_are_none(word: str) -> None:
    with pytest.raises(SystemExit):
        commands().parse(["status", f"--watch={word}"])
