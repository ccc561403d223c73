"""The `routedctl` command: arguments, exit status, and who prints what."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import yaml

from routed import __version__
from routed.cli import show
from routed.cli.tables import terminal_width
from routed.control.client import ControlClient, Unreachable
from routed.control.protocol import DEFAULT_RUN_DIR, SOCKET_NAME
from routed.errors import ConfigError, ControlError
from routed.observe.logs import harmless

DEFAULT_CONFIG = "/etc/routed/routed.yaml"

EX_OK = 0
EX_ERROR = 1
"""The daemon answered with an error; a recording that does not replay."""
EX_USAGE = 2
EX_UNAVAILABLE = 69
"""The daemon can't be reached."""
EX_CONFIG = 78

EXAMPLES = """\
examples:
  routedctl status                              is this node well?
  routedctl show neighbors                      who we speak BGP with
  routedctl show neighbors 10.0.0.2             everything about one of them
  routedctl show route                          the routes in use
  routedctl show route 10.244.1.0/26 --all      every path, which won, in which step
  routedctl show route 10.244.1.7               the route that covers an address
  routedctl show fib --json                     what is in the kernel, for programs
  routedctl clear 10.0.0.2 --in                 ask a neighbour for its routes again
  routedctl shutdown --reason "new kernel"      end all sessions and the daemon

exit status: 0 done; 1 the daemon answered with an error; 2 wrong arguments; 69 the daemon is not reachable;
78 the configuration is wrong
"""

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run routedctl. Returns the exit status; argparse exits by itself on wrong usage."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no UTF-8 is no reason to fail
    command: Command = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except Unreachable as error:
        return _complain(error, EX_UNAVAILABLE)
    except ConfigError as error:
        return _complain(error, EX_CONFIG)
    except ControlError as error:
        return _complain(error, EX_ERROR)
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    except KeyboardInterrupt:
        return 130


def _complain(error: Exception, status: int) -> int:
    sys.stderr.write(harmless(f"routedctl: {error}") + "\n")
    return status


# --- arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", help=f"the daemon's configuration (default {DEFAULT_CONFIG})")
    where.add_argument("--socket", metavar="PATH", help="the daemon's control socket, instead of --config")
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser = argparse.ArgumentParser(
        prog="routedctl",
        description="Ask the routed daemon on this node.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(group: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(command=run)
        return made

    add(commands, "status", _status, "the node at a glance, and its problems")
    shows = commands.add_parser(
        "show", help="show neighbors, routes or the kernel's table", parents=[common]
    ).add_subparsers(required=True, metavar="WHAT")
    neighbors = add(shows, "neighbors", _neighbors, "the BGP neighbours, or everything about one")
    neighbors.add_argument("address", nargs="?", metavar="ADDR", help="a neighbour's address")
    route = add(shows, "route", _route, "the routes in use, or one prefix in full")
    route.add_argument("prefix", nargs="?", metavar="PREFIX", help="a prefix, or an address it covers")
    route.add_argument("--all", action="store_true", help="every path with the step that decided, refused ones too")
    add(shows, "fib", _fib, "our routes in the kernel, and those it refused")
    clear = add(commands, "clear", _clear, "reset the session with a neighbour")
    clear.add_argument("address", metavar="ADDR", help="the neighbour's address")
    soft = clear.add_mutually_exclusive_group()
    soft.add_argument("--in", dest="mode", action="store_const", const="in", help="only ask it for its routes again")
    soft.add_argument("--out", dest="mode", action="store_const", const="out", help="only send it our routes again")
    shutdown = add(commands, "shutdown", _shutdown, "end all sessions with a reason (Cease/2), then the daemon")
    shutdown.add_argument("--reason", metavar="TEXT", default="", help="what the peers' operators read (RFC 9003)")
    recording = add(commands, "replay", _replay, "replay a recording and compare what comes out")
    recording.add_argument("file", metavar="FILE", help="written by `routed run --record FILE`")
    add(commands, "version", _version, "the version of routedctl and of the daemon")
    return parser


def socket_path(arguments: argparse.Namespace) -> str:
    """Where the daemon's socket is: --socket, or runDir of the configuration. Raises ConfigError.

    Only runDir is read: an error elsewhere in the file is the daemon's to report, not a reason to leave it unasked.
    """
    if "socket" in arguments:
        return str(arguments.socket)
    path = str(getattr(arguments, "config", DEFAULT_CONFIG))
    try:
        with open(path, "rb") as file:
            config = yaml.safe_load(file)
    except OSError as error:
        if "config" in arguments:
            raise ConfigError(path, f"cannot read the configuration: {error.strerror}") from None
        config = None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
        raise ConfigError(path, "is not YAML; name the daemon's socket with --socket") from None
    run_dir = config.get("runDir", DEFAULT_RUN_DIR) if isinstance(config, dict) else DEFAULT_RUN_DIR
    if not isinstance(run_dir, str):
        raise ConfigError(path, "runDir: must be the path of a folder")
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), run_dir, SOCKET_NAME))


# --- commands


def _ask(arguments: argparse.Namespace, request: str, **values: object) -> Any:
    with ControlClient(socket_path(arguments)) as client:
        return client.ask(request, **values)


def _wants_json(arguments: argparse.Namespace) -> bool:
    return "json" in arguments


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2))


def _print_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(line + "\n" for line in lines)


def _print_list(rows: Iterable[object]) -> None:
    """A JSON array, an element as soon as it is there."""
    before = "[\n"
    for row in rows:
        sys.stdout.write(before + json.dumps(row))
        before = ",\n"
    _print("[]" if before == "[\n" else "\n]")


def _status(arguments: argparse.Namespace) -> int:
    answer = _ask(arguments, "status")
    if _wants_json(arguments):
        _print_json(answer)
    else:
        _print_lines(show.status(answer))
    return EX_OK


def _stream(
    arguments: argparse.Namespace, request: str, render: Callable[[Iterable[Any]], Iterator[str]], **values: object
) -> int:
    with ControlClient(socket_path(arguments)) as client:
        rows = client.stream(request, **values)
        if _wants_json(arguments):
            _print_list(rows)
        else:
            _print_lines(render(rows))
    return EX_OK


def _each(render: Callable[[Any], Iterator[str]]) -> Callable[[Iterable[Any]], Iterator[str]]:
    """Rows rendered one by one."""

    def all_of(rows: Iterable[Any]) -> Iterator[str]:
        for row in rows:
            yield from render(row)

    return all_of


def _neighbors(arguments: argparse.Namespace) -> int:
    width = terminal_width()
    if arguments.address is not None:
        return _stream(arguments, "neighbors", _each(show.neighbor), address=arguments.address)
    return _stream(arguments, "neighbors", lambda rows: show.neighbors(rows, width))


def _route(arguments: argparse.Namespace) -> int:
    width = terminal_width()
    render = _each(show.route) if arguments.prefix or arguments.all else lambda rows: show.routes(rows, width)
    return _stream(arguments, "routes", render, prefix=arguments.prefix, all=bool(arguments.all or arguments.prefix))


def _fib(arguments: argparse.Namespace) -> int:
    width = terminal_width()
    return _stream(arguments, "fib", lambda rows: show.fib(rows, width))


def _clear(arguments: argparse.Namespace) -> int:
    answer = _ask(arguments, "clear", address=arguments.address, mode=arguments.mode or "hard")
    return _say(arguments, answer)


def _shutdown(arguments: argparse.Namespace) -> int:
    return _say(arguments, _ask(arguments, "shutdown", reason=arguments.reason))


def _say(arguments: argparse.Namespace, answer: Any) -> int:
    """Print the sentence of an answer that is one."""
    if _wants_json(arguments):
        _print_json(answer)
    else:
        _print(harmless(str(answer.get("text"))))
    return EX_OK


def _version(arguments: argparse.Namespace) -> int:
    """Also says the version of a daemon that runs; one that does not is no error here."""
    try:
        daemon = _ask(arguments, "status").get("version")
    except (Unreachable, ControlError, ConfigError):
        daemon = None
    if _wants_json(arguments):
        _print_json({"routedctl": __version__, "routed": daemon})
    else:
        _print_lines([f"routedctl {__version__}", f"routed {harmless(str(daemon)) if daemon else 'is not running'}"])
    return EX_OK


def _replay(arguments: argparse.Namespace) -> int:
    from routed.observe.replay import replay  # noqa: PLC0415 - the only command that needs the engine: 0.1 s

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
            if _wants_json(arguments):
                _print_json(report)
            else:
                _print(f"differs at line {step.line} ({step.name}):")
                _print(f"  recorded {harmless(step.recorded)}")
                _print(f"  replayed {harmless(step.replayed)}")
            return EX_ERROR
    if _wants_json(arguments):
        _print_json({"equal": True, "steps": count})
    else:
        _print(f"equal: {count} steps gave the same outputs, byte for byte")
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
