"""The `routedctl` command: which modules have its commands, and what becomes of their errors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from functools import cache

from routed.cli import check, completion, events, neighbors, node, policy, recordings, resources, routes, tunnels
from routed.cli.command import Commands, ExitStatus, UsageError
from routed.cli.watch import watch
from routed.control.client import Unreachable
from routed.errors import ConfigError, RoutedError, StoreError
from routed.observe.logs import harmless

MODULES = (node, neighbors, routes, tunnels, events, check, resources, policy, recordings, completion)
"""In the order of --help."""

EXAMPLES = """\
examples:
  routedctl status                              is this node well?
  routedctl show neighbors                      who we speak BGP with
  routedctl show neighbors 10.0.0.2             everything about one of them
  routedctl show route                          the routes in use
  routedctl show route 10.244.1.0/26 --all      every path, which won, in which step
  routedctl show route 10.244.1.7               the route that covers an address
  routedctl show fib --json                     what is in the kernel, for programs
  routedctl show received 10.0.0.2              what a neighbour announced, refused routes and why included
  routedctl show advertised 10.0.0.2            what we announce to it, with the attributes as they are sent
  routedctl events --follow                     what happens
  routedctl check /etc/routed/resources         is what I wrote right? asks no daemon
  routedctl clear 10.0.0.2 soft in              ask a neighbour for its routes again
  routedctl apply -f peers.yaml                 write resources to the datastore
  routedctl shutdown --reason "new kernel"      end all sessions and the daemon

Words may be shortened while one command only is meant: `routedctl sh ne`. Every command has its own --help,
which `routedctl help COMMAND` shows, too.

exit status: """


@cache
def commands() -> Commands:
    """All commands of routedctl; who calls `main` many times declares them once."""
    statuses = "; ".join(f"{status.value} {status.meaning}" for status in ExitStatus)
    made = Commands("Ask the routed daemon on this node.", EXAMPLES + statuses)
    for module in MODULES:
        module.add(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run routedctl. Returns the exit status; argparse exits by itself on wrong usage."""
    arguments = commands().parse(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no UTF-8 is no reason to fail
    try:
        seconds = getattr(arguments, "watch", None)
        if seconds is not None:
            watch(arguments.run, arguments, seconds)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except RoutedError as error:
        sys.stderr.write(harmless(f"routedctl: {error}") + "\n")
        return status_of(error)
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        _drop_output()
        return ExitStatus.OK
    except OSError as error:
        _drop_output()
        sys.stderr.write(f"routedctl: cannot write the output: {error.strerror}\n")
        return ExitStatus.ERROR
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED


def _drop_output() -> None:
    """What is left in the buffer goes nowhere: the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def status_of(error: RoutedError) -> ExitStatus:
    """The exit status that goes with an error."""
    match error:
        case Unreachable() | StoreError():
            return ExitStatus.UNAVAILABLE
        case UsageError():
            return ExitStatus.USAGE
        case ConfigError():
            return ExitStatus.CONFIG
        case _:
            return ExitStatus.ERROR


if __name__ == "__main__":
    sys.exit(main())
