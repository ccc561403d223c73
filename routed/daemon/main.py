"""The `routed` command: arguments, the loop, and errors as one sentence with an exit status."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import sys
from collections.abc import Sequence

import uvloop

from routed import __version__
from routed.config import DEFAULT_PATH, Config, load_config
from routed.daemon.daemon import Daemon
from routed.errors import ConfigError
from routed.observe.logs import LogWriter, harmless, reads_journal

EX_CONFIG = 78

EXAMPLES = """\
examples:
  routed run                                    with /etc/routed/routed.yaml
  routed run --config ./routed.yaml
  routed run --record /tmp/inputs.jsonl         write every input of the core, for `routedctl replay`

signals: SIGTERM and SIGINT stop (as onStop says), SIGHUP reads the configuration again
exit status: 0 stopped when asked to; 2 wrong arguments; 78 the configuration is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run routed. Returns the exit status; argparse exits by itself on wrong usage."""
    arguments = command_parser().parse_args(argv)
    try:
        config = load_config(arguments.config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(config, arguments.config, arguments.record))
    except ConfigError as error:
        sys.stderr.write(harmless(f"routed: {error}") + "\n")
        return EX_CONFIG
    except KeyboardInterrupt:  # before the daemon listened to signals
        return 130


def command_parser() -> argparse.ArgumentParser:
    """What `routed` can be told; its help is also the source of routed(8)."""
    parser = argparse.ArgumentParser(
        prog="routed",
        description="Pure layer-3 networking for this node: BGP and the kernel's routes, from Calico-shaped resources.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"routed {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="run the daemon in the foreground", description="Run the daemon in the foreground."
    )
    run.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help=f"default {DEFAULT_PATH}")
    run.add_argument("--record", metavar="FILE", help="write every input of the core to this file, as JSON lines")
    return parser


async def _run(config: Config, path: str, record: str | None) -> int:
    faulthandler.enable(2)  # at the watchdog's SIGABRT, where the loop hangs is written to standard error
    log = LogWriter(sys.stderr, config.log.level, config.log.form, journal=reads_journal(sys.stderr))
    return await Daemon(config, path, log, record).run()


if __name__ == "__main__":
    sys.exit(main())
