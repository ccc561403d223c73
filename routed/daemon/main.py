"""The `routed` command: arguments, the loop, and errors as one sentence with an exit status."""

from __future__ import annotations

# the collector rests while all else is imported
# ruff: noqa: E402
import gc

gc.disable()  # what is imported stays: looking for garbage in it again and again is a tenth of what it takes

import argparse
import asyncio
import contextlib
import faulthandler
import os
import sys
from collections.abc import Sequence

import uvloop
import yaml

from routed import __version__
from routed.config import DEFAULT_PATH, Config, load_config, make_folder, registration, routing_daemon
from routed.control.client import ControlClient, Unreachable
from routed.daemon.daemon import Daemon
from routed.daemon.datastores import writable_datastore
from routed.daemon.registration import register, would_write
from routed.dataplane.handover import hand_over
from routed.errors import ConfigError, KernelError, StoreError
from routed.observe.logs import LogWriter, harmless, reads_journal

gc.freeze()
gc.enable()

EX_UNAVAILABLE = 69
EX_CONFIG = 78
#: All exit statuses but 130 (Ctrl-C before the daemon listened to signals), and what they say.
STATUSES = {
    0: "stopped when asked to, or done",
    1: "could not be done; one sentence on standard error says why",
    2: "wrong arguments",
    EX_UNAVAILABLE: "the datastore is not reachable",
    EX_CONFIG: "the configuration is wrong; one sentence on standard error says where",
}

EXAMPLES = f"""\
examples:
  routed run                                    with /etc/routed/routed.yaml
  routed run --config ./routed.yaml
  routed run --record /tmp/inputs.jsonl         write every input of the core, for `routedctl replay`
  routed hand-over bird                         after routed stopped and before BIRD starts: it keeps the routes
  routed node init                              write this node into the datastore, and what a new cluster needs
  routed node init --dry-run                    show what that would be

signals: SIGTERM and SIGINT stop (as onStop says), SIGHUP reads the configuration again
exit status: {"; ".join(f"{number} {meaning.partition(';')[0]}" for number, meaning in STATUSES.items())}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run routed. Returns the exit status; argparse exits by itself on wrong usage."""
    arguments = command_parser().parse_args(argv)
    try:
        config = load_config(arguments.config)
        if arguments.command == "hand-over":
            return _hand_over(config, *arguments.to)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if arguments.command == "node":
                return runner.run(_init(config, dry=arguments.dry_run))
            return runner.run(_run(config, arguments.config, arguments.record))
    except ConfigError as error:
        sys.stderr.write(harmless(f"routed: {error}") + "\n")
        return EX_CONFIG
    except StoreError as error:
        sys.stderr.write(harmless(f"routed: {error}") + "\n")
        return EX_UNAVAILABLE
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
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    run = commands.add_parser(
        "run", help="run the daemon in the foreground", description="Run the daemon in the foreground."
    )
    run.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help=f"default {DEFAULT_PATH}")
    run.add_argument("--record", metavar="FILE", help="write every input of the core to this file, as JSON lines")
    hand = commands.add_parser(
        "hand-over",
        help="give our routes to another routing daemon that is about to start",
        description="Give the routes this node has by routed to another routing daemon, in place: for going back.",
    )
    hand.add_argument("to", metavar="DAEMON", type=_daemon, help="bird, or another's name or route protocol number")
    hand.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help=f"default {DEFAULT_PATH}")
    node = commands.add_parser(
        "node", help="write this node into the datastore", description="Commands about this node in the datastore."
    )
    init = node.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="subcommand").add_parser(
        "init",
        help="write this node's Node, and what a new cluster needs",
        description="Write this node's Node with the addresses that are found, as node in routed.yaml says, and a default "
        "pool and BGPConfiguration where the cluster has none. What is there already stays; doing it twice changes nothing.",
    )
    init.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help=f"default {DEFAULT_PATH}")
    init.add_argument("--dry-run", action="store_true", help="print what would be written, as YAML, and write nothing")
    return parser


def _daemon(name: str) -> tuple[str, int]:
    """A routing daemon and its route protocol."""
    try:
        return name, routing_daemon(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def _init(config: Config, *, dry: bool) -> int:
    """Write this node into the datastore. Raises ConfigError, StoreError."""
    if config.etcd is None and not dry:
        make_folder(config.datastore_path)
    store = writable_datastore(config)
    wanted = registration(config)
    try:
        if dry:
            nothing = config.etcd is None and not os.path.isdir(config.datastore_path)
            written = await would_write(wanted, None if nothing else store)
        else:
            written = await register(wanted, store)
    finally:
        await store.close()
    if dry:
        sys.stdout.write(yaml.safe_dump_all([each.manifest for each in written], sort_keys=False))
        return 0
    for each in written:
        sys.stdout.write(harmless(f"{each.key} was written: {each.where}") + "\n")
    if not written:
        sys.stdout.write(f"Node {config.node_name} is as it should be; nothing was written\n")
    return 0


def _hand_over(config: Config, name: str, taking: int) -> int:
    """Our routes become another daemon's. Only while we don't run: we would put them back."""
    with contextlib.suppress(Unreachable), ControlClient(config.socket_path):
        sys.stderr.write("routed: the daemon runs on this node and would put its routes back; stop it first\n")
        return 1
    try:
        handed = hand_over(config.kernel.table, {config.kernel.route_protocol}, taking)
    except KernelError as error:
        sys.stderr.write(harmless(f"routed: {error}") + "\n")
        return 1
    sys.stdout.write(f"{handed.routes} routes were handed over to {name}\n")
    for text in handed.left:
        sys.stderr.write(harmless(f"routed: not handed over: {text}") + "\n")
    return 1 if handed.left else 0


async def _run(config: Config, path: str, record: str | None) -> int:
    faulthandler.enable(2)  # at the watchdog's SIGABRT, where the loop hangs is written to standard error
    log = LogWriter(sys.stderr, config.log.level, config.log.form, journal=reads_journal(sys.stderr))
    return await Daemon(config, path, log, record).run()


if __name__ == "__main__":
    sys.exit(main())
