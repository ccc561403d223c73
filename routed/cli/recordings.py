"""The command about recordings: `replay`. The only one that needs the engine, which is loaded when it runs: 0.1 s."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from routed.cli.command import Commands, ExitStatus, show_one
from routed.observe.logs import harmless


def add(commands: Commands) -> None:
    replay = commands.add(
        "replay",
        _replay,
        "replay a recording and compare what comes out; asks no daemon",
        examples=[("routedctl replay /tmp/inputs.jsonl", "written by `routed run --record /tmp/inputs.jsonl`")],
    )
    replay.add_argument("file", metavar="FILE", help="written by `routed run --record FILE`")


def _replay(arguments: argparse.Namespace) -> int:
    from routed.observe.replay import replay  # noqa: PLC0415 - see the module's docstring

    count = 0
    for step in replay(arguments.file):
        count += 1
        if not step.equal:
            report = {
                "equal": False,
                "line": step.line,
                "input": step.name,
                "recorded": step.recorded,
                "replayed": step.replayed,
            }
            show_one(arguments, report, _difference)
            return ExitStatus.ERROR
    return show_one(arguments, {"equal": True, "steps": count}, _equal)


def _difference(report: Any) -> Iterator[str]:
    yield f"differs at line {report['line']} ({report['input']}):"
    yield f"  recorded {harmless(report['recorded'])}"
    yield f"  replayed {harmless(report['replayed'])}"


def _equal(report: Any) -> Iterator[str]:
    yield f"equal: {report['steps']} steps gave the same outputs, byte for byte"
