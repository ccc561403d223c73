"""--watch: a command again and again, its output over the last one's on a terminal, one after the other elsewhere.

A daemon that goes away while it is watched is shown as gone and asked again: who watches wants to see it come back. Only
where the first answer is an error the command ends with it.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from routed.cli.command import Run
from routed.control.client import Unreachable
from routed.errors import ConfigError, ControlError
from routed.observe.logs import harmless

#: Clear nothing, go to the first column of the first line; clear what is left of a line, of the screen.
HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(
    run: Run, arguments: argparse.Namespace, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> NoReturn:
    """Run a command every so many seconds, until Ctrl-C or until nobody reads any more."""
    terminal = sys.stdout.isatty()
    first = True
    while True:
        text = _once(run, arguments, terminal, first=first)
        if "json" in arguments:
            sys.stdout.write(_one_line(text))
        elif terminal:
            sys.stdout.write(_screen(text))
        else:
            sys.stdout.write(f"{'' if first else chr(10)}{_now()}\n{text}")
        sys.stdout.flush()
        first = False
        sleep(seconds)


def _once(run: Run, arguments: argparse.Namespace, terminal: bool, *, first: bool) -> str:
    """What a command prints; after the first time an error is printed too."""
    real, page = sys.stdout, _Page(terminal)
    sys.stdout = page
    try:
        run(arguments)
    except (Unreachable, ControlError, ConfigError) as error:
        if first:
            raise
        text = harmless(str(error))
        return (json.dumps({"error": text}) if "json" in arguments else text) + "\n"
    finally:
        sys.stdout = real
    return page.getvalue()


class _Page(io.StringIO):
    """Collects output, and is as wide as the terminal it is for."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def _screen(text: str) -> str:
    """A page for a terminal: what does not fit on it is counted."""
    height = shutil.get_terminal_size().lines
    lines = [_now(), *text.splitlines()]
    if len(lines) > height - 1:
        left = len(lines) - (height - 2)
        lines = [*lines[: height - 2], f"... {left} more lines"]
    return HOME + "".join(f"{line}{END_OF_LINE}\n" for line in lines) + END_OF_SCREEN


def _one_line(text: str) -> str:
    return json.dumps(json.loads(text)) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
