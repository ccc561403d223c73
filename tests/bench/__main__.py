"""`python -m tests.bench`: measure routed beside BIRD and FRR, check that what it did was right, print a table."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from routed.testing.lab import LabError
from tests.bench.contenders import CONTENDERS, Contender
from tests.bench.scenarios import LIMIT, Result, Scenario, TooSlow, Wrong, cores, measure, verify

#: What `make bench` runs, and the share of BIRD's time that routed holds itself to.
STANDARD = {
    "transit:1000000": 1.3,
    "rr:100x100": 0.2,
    "rr:100x1000": 0.1,
    "mesh:200x100": 0.8,
    "fib:500000": 0.8,
    "withdraw:500000": 1.0,
    "latency:1000": 5.0,
}

#: The same work in small, to see that all of it runs.
QUICK = ("transit:50000", "rr:20x50", "mesh:20x50", "fib:20000", "withdraw:20000", "latency:1000")

REFERENCE = "bird"
ROUNDS = 3

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- make bench writes from here -->", "<!-- to here -->"

Runs = dict[str, list[Result | None]]
"""Results by contender; None for a run that took longer than LIMIT."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where something was wrong; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, epilog=" ".join(STANDARD))
    parser.add_argument("scenarios", nargs="*", type=_scenario, metavar="SCENARIO", help="transit:N or rr:KxP ...")
    parser.add_argument("--quick", action="store_true", help="one round of small scenarios")
    parser.add_argument("--daemons", default=",".join(CONTENDERS), help="which to run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help=f"runs of each, the median counts (default {ROUNDS}, --quick: 1)")
    parser.add_argument("--verify", action="store_true", help="only check that routed does the right thing, untimed")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("this needs root, for network namespaces")
    contenders = [CONTENDERS[name] for name in arguments.daemons.split(",") if name in CONTENDERS]
    for contender in [each for each in contenders if each.missing]:
        _say(f"{contender.name} is not installed and left out")
        contenders.remove(contender)
    if not contenders:
        parser.error(f"--daemons takes {', '.join(CONTENDERS)}")
    scenarios = arguments.scenarios or [Scenario.parse(text) for text in (QUICK if arguments.quick else STANDARD)]
    try:
        if not arguments.verify:
            rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
            table = _tabulate({scenario: _compare(scenario, contenders, rounds) for scenario in scenarios}, contenders)
            text = f"{_machine(rounds)}\n\n{table}"
            _say(f"\n{text}\n")
            if arguments.write:
                _write(text)
        return _verify_all(scenarios)
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _scenario(text: str) -> Scenario:
    try:
        return Scenario.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _compare(scenario: Scenario, contenders: Sequence[Contender], rounds: int) -> Runs:
    """All contenders in turn, so that whatever else the machine does meets them alike."""
    runs: Runs = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            try:
                result = measure(contender, scenario)
                _say(f"{scenario}, {contender.name}: {_seconds(result.seconds)}, {result.peak_mib} MiB")
            except TooSlow:
                result = None
                _say(f"{scenario}, {contender.name}: not done after {LIMIT:.0f} s")
            runs[contender.name].append(result)
    return runs


def _verify_all(scenarios: Sequence[Scenario]) -> int:
    wrong = 0
    for scenario in scenarios:
        if scenario.kind == "latency" and any(other.kind == "transit" for other in scenarios):
            continue
        try:
            _say(f"{scenario}, routed: {verify(CONTENDERS['routed'], scenario)}")
        except Wrong as error:
            wrong += 1
            _say(f"{scenario}, routed: WRONG: {error}")
        except TooSlow:
            wrong += 1
            _say(f"{scenario}, routed: WRONG: not done after {LIMIT:.0f} s")
    return 1 if wrong else 0


# ---- the table


def _tabulate(results: dict[Scenario, Runs], contenders: Sequence[Contender]) -> str:
    """Markdown: seconds and peak memory of each, and routed's time relative to BIRD's."""
    heads = ["scenario", *(contender.version() for contender in contenders)]
    compared = {"routed", REFERENCE} <= {contender.name for contender in contenders}
    if compared:
        heads += ["routed / BIRD", "at most"]
    rows = [heads, ["---", *("---:" for _ in heads[1:])]]
    for scenario, runs in results.items():
        middles = {name: _median(each) for name, each in runs.items()}
        row = [str(scenario), *(_cell(middles[contender.name], scenario) for contender in contenders)]
        if compared:
            row += [_ratio(middles["routed"], middles[REFERENCE]), _bound(scenario)]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _median(runs: list[Result | None]) -> Result | None:
    """The run in the middle; one that was not done is the slowest."""
    ranked = sorted(runs, key=lambda run: float("inf") if run is None else run.seconds)
    middle = ranked[len(ranked) // 2]
    done = [run.peak_mib for run in runs if run is not None]
    if middle is None:
        return None
    return Result(middle.seconds, round(statistics.median(done)), middle.cpu_seconds, middle.worst)


def _cell(result: Result | None, scenario: Scenario) -> str:
    if result is None:
        return f"> {LIMIT:.0f} s"
    worst = f" (99 %: {_seconds(result.worst)})" if scenario.kind == "latency" else ""
    return f"{_seconds(result.seconds)}{worst}, {result.peak_mib} MiB"


def _seconds(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _ratio(result: Result | None, reference: Result | None) -> str:
    if result is None or reference is None:
        return ""
    return f"{result.seconds / reference.seconds:.2f}"


def _bound(scenario: Scenario) -> str:
    bound = STANDARD.get(f"{scenario.kind}:{'x'.join(map(str, scenario.numbers))}")
    return "" if bound is None else f"{bound:.1f}"


def _machine(rounds: int) -> str:
    """What it was measured on, a sentence."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    daemon, load = cores()
    where = "one core for both" if daemon == load else "the daemon on one core, the load on another"
    runs = "one run" if rounds == 1 else f"median of {rounds} runs"
    return (
        f"{cpu[1] if cpu else platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}; "
        f"{where}; {runs}; time and peak memory."
    )


def _write(text: str) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
