"""What the commands of routedctl are made of: how one is declared, how it asks the daemon, how it prints the answer.

A module with commands has a function `add(commands)` that declares them; `main` has the list of these modules. A command
is a function of its arguments that returns an exit status; it prints with `show_one` and `show_list`, which know about
--json, and raises `RoutedError` where it can't do what it was asked.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import yaml

from routed.control.client import ControlClient
from routed.control.protocol import DEFAULT_RUN_DIR, SOCKET_NAME
from routed.errors import ConfigError, RoutedError
from routed.net.prefixes import parse_prefix
from routed.observe.logs import harmless

DEFAULT_CONFIG = "/etc/routed/routed.yaml"

#: Seconds between two looks of --watch where none are given, and at least.
WATCH_SECONDS = 2.0
SHORTEST_WATCH = 0.1

SHOW = "show neighbors, routes, interfaces and more"
"""The help of the group that most modules add to."""

Run: TypeAlias = Callable[[argparse.Namespace], int]

Row: TypeAlias = dict[str, Any]
"""A JSON object of an answer. Its text may come from a peer: everything printed passes `harmless`."""

Render: TypeAlias = Callable[[Iterable[Any]], Iterator[str]]
"""Rows of an answer as lines of text."""


class UsageError(RoutedError):
    """The arguments don't go together in a way argparse can't see."""


class ExitStatus(enum.IntEnum):
    """What a script can tell apart. The meanings stay; the words here are those of --help and docs/cli.md."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitStatus:
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done"
    ERROR = 1, "an error, or a difference that was asked for"
    USAGE = 2, "wrong arguments"
    DATA = 65, "a manifest is not valid, and nothing was written"
    UNAVAILABLE = 69, "the daemon or the datastore is not reachable"
    CONFLICT = 75, "somebody else keeps changing a resource; try again"
    CONFIG = 78, "the configuration is wrong"
    INTERRUPTED = 130, "ended with Ctrl-C"


class Commands:
    """The parser of routedctl while modules add their commands to it.

    Commands can be shortened as long as one only is meant (`sh ne`), those with `abbreviate=False` excepted.
    """

    def __init__(self, description: str, epilog: str) -> None:
        common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        where = common.add_mutually_exclusive_group()
        where.add_argument("--config", metavar="FILE", help=f"the daemon's configuration (default {DEFAULT_CONFIG})")
        where.add_argument("--socket", metavar="PATH", help="the daemon's control socket, instead of --config")
        common.add_argument("--json", action="store_true", help="print JSON, for programs")
        self._common = common
        self.parser = argparse.ArgumentParser(
            prog="routedctl",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
        )
        self._groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {
            "": self.parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
        }
        self._group_parsers: dict[str, argparse.ArgumentParser] = {}
        self._names: dict[str, dict[str, str]] = {"": {}}
        """For each group what may be typed in full: the names of its commands, and other words for them."""
        self._in_full: set[str] = set()

    def group(self, name: str, summary: str, metavar: str = "WHAT") -> None:
        """A word that other words follow, such as `show`. Several modules may ask for the same one."""
        if name in self._groups:
            return
        parser = self._groups[""].add_parser(
            name,
            help=summary,
            description=summary,
            epilog="examples:",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[self._common],
        )
        self._group_parsers[name] = parser
        self._groups[name] = parser.add_subparsers(required=True, metavar=metavar)
        self._names[""][name] = name
        self._names[name] = {}

    def add(
        self,
        words: str,
        run: Run,
        summary: str,
        *,
        examples: Sequence[tuple[str, str]],
        aliases: Sequence[str] = (),
        abbreviate: bool = True,
        watch: bool = False,
    ) -> argparse.ArgumentParser:
        """Declare a command, `words` being all of its name; the parser it returns takes its arguments.

        `examples` are pairs of a command line and what it does. `aliases` are other words for the last one of `words`.
        With `watch` it can be repeated: see `watch`.
        """
        group, _, name = words.rpartition(" ")
        width = max(len(line) for line, _ in examples)
        shown = "\n".join(f"  {line:<{width}}   {text}" for line, text in examples)
        parser = self._groups[group].add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"examples:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[self._common],
        )
        parser.set_defaults(run=run)
        if group:  # the first example of each command is one of the group
            above = self._group_parsers[group]
            above.epilog = f"{above.epilog}\n  {examples[0][0]:<46}   {examples[0][1]}"
        if watch:
            parser.add_argument(
                "--watch",
                nargs="?",
                const=WATCH_SECONDS,
                type=_seconds,
                metavar="SECONDS",
                help=f"again every SECONDS ({WATCH_SECONDS:g} if not given) until Ctrl-C",
            )
        self._names[group].update(dict.fromkeys((name, *aliases), name))
        if not abbreviate:
            self._in_full.add(words)
        return parser

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line; argparse exits by itself on wrong usage, and for `help WORDS`."""
        if argv[:1] == ["help"]:
            argv = [*argv[1:], "--help"]
        return self.parser.parse_args(self.in_full(argv))

    def in_full(self, argv: Sequence[str]) -> list[str]:
        """A command line with the words of its command written out."""
        words, group, skip = _watching(argv), "", False
        for index, word in enumerate(words):
            if skip or word.startswith("-"):
                skip = not skip and word in ("--config", "--socket")
                continue
            meant = self._meant(group, word)
            if len(meant) > 1:
                shown = ", ".join(f"`{f'{group} {name}'.strip()}`" for name in sorted(meant))
                self.parser.error(f"`{word}` may be {shown}")
            words[index] = meant.pop() if meant else word
            if group or words[index] not in self._names:
                break
            group = words[index]
        return words

    def _meant(self, group: str, word: str) -> set[str]:
        names = self._names[group]
        if word in names:
            return {names[word]}
        found = {name for typed, name in names.items() if typed.startswith(word)}
        return {name for name in found if f"{group} {name}".strip() not in self._in_full}


def _watching(argv: Sequence[str]) -> list[str]:
    """A command line in which --watch keeps its number, and takes nothing else for one: an address may follow it."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--watch":
            number = word.replace(".", "", 1).isdigit()
            words[-1] = f"--watch={word if number else f'{WATCH_SECONDS:g}'}"
            if number:
                continue
        words.append(word)
    return words


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST_WATCH <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from {SHORTEST_WATCH} to 86400, not {text!r}")
    return seconds


def prefix_or_address(text: str) -> str:
    """The type of an argument: `a.b.c.d/n`, `x::/n`, or an address. Raises ArgumentTypeError."""
    try:
        parse_prefix(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a prefix nor an address") from None
    return text


def socket_path(arguments: argparse.Namespace) -> str:
    """Where the daemon's socket is: --socket, or runDir of the configuration. Raises ConfigError.

    Only runDir is read: an error elsewhere in the file is the daemon's to report, not a reason to leave it unasked.
    """
    if "socket" in arguments:
        return str(arguments.socket)
    path, config = configuration(arguments, "name the daemon's socket with --socket")
    run_dir = config.get("runDir", DEFAULT_RUN_DIR)
    if not isinstance(run_dir, str):
        raise ConfigError(path, "runDir: must be the path of a folder")
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), run_dir, SOCKET_NAME))


def configuration(arguments: argparse.Namespace, otherwise: str) -> tuple[str, dict[str, Any]]:
    """The path of routed.yaml and what it says; nothing where it is not there and was not named. Raises ConfigError."""
    path = str(getattr(arguments, "config", DEFAULT_CONFIG))
    try:
        with open(path, "rb") as file:
            config = yaml.safe_load(file)
    except OSError as error:
        if "config" in arguments:
            raise ConfigError(path, f"cannot read the configuration: {error.strerror}") from None
        config = None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
        raise ConfigError(path, f"is not YAML; {otherwise}") from None
    return path, config if isinstance(config, dict) else {}


# --- asking


def connect(arguments: argparse.Namespace) -> ControlClient:
    """A connection to the daemon; a context manager. Raises Unreachable or ConfigError."""
    return ControlClient(socket_path(arguments))


def ask(arguments: argparse.Namespace, request: str, **values: object) -> Any:
    """The daemon's answer to one request. Raises ControlError with its sentence."""
    with connect(arguments) as client:
        return client.ask(request, **values)


# --- printing


def show_one(arguments: argparse.Namespace, answer: Any, render: Callable[[Any], Iterable[str]]) -> int:
    """Print an answer that is one object: as lines of text, or as JSON."""
    if "json" in arguments:
        emit((json.dumps(answer, indent=2),))
    else:
        emit(render(answer))
    return ExitStatus.OK


def show_list(arguments: argparse.Namespace, rows: Iterable[Any], render: Render) -> int:
    """Print an answer that is a list while it arrives: as lines of text, or as a JSON array."""
    if "json" in arguments:
        emit(_array(rows))
    else:
        emit(render(rows))
    return ExitStatus.OK


def stream(arguments: argparse.Namespace, render: Render, request: str, **values: object) -> int:
    """Ask the daemon for a list and print it."""
    with connect(arguments) as client:
        return show_list(arguments, client.stream(request, **values), render)


def sentence(answer: Any) -> Iterator[str]:
    """The text of an answer that is a sentence."""
    yield harmless(str(answer.get("text")))


def each(render: Callable[[Any], Iterator[str]]) -> Render:
    """Rows rendered one by one."""

    def all_of(rows: Iterable[Any]) -> Iterator[str]:
        for row in rows:
            yield from render(row)

    return all_of


def emit(lines: Iterable[str]) -> None:
    sys.stdout.writelines(line + "\n" for line in lines)


def emit_each(lines: Iterable[str]) -> None:
    """Print each line at once: somebody waits for it."""
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _array(rows: Iterable[object]) -> Iterator[str]:
    """A JSON array, an element a line as soon as it is there."""
    last = None
    for row in rows:
        yield "[" if last is None else f"{last},"
        last = json.dumps(row)
    if last is None:
        yield "[]"
    else:
        yield last
        yield "]"
