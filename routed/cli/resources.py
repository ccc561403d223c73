"""The commands about resources: apply, get, delete, diff, export, import, ipam. They work without a daemon.

Only what is typed is declared here. What the commands do is in `stored`, `addresses` and `allocations`, which are loaded
when one of them runs: resources, files and etcd take longer to import than the rest of routedctl altogether.
"""

from __future__ import annotations

import argparse
import importlib

from routed.cli.command import Commands, Run

_OUTPUTS = ("table", "wide", "name", "yaml", "json")


def _later(module: str, name: str) -> Run:
    """The function `name` of a module of this room, which is imported when it is called."""

    def run(arguments: argparse.Namespace) -> int:
        function: Run = getattr(importlib.import_module(f"routed.cli.{module}"), name)
        return function(arguments)

    return run


def add(commands: Commands) -> None:
    one = commands.add(
        "apply",
        _later("stored", "run_apply"),
        "write resources to the datastore: all of them valid, or none is written",
        examples=[
            ("routedctl apply -f peers.yaml", "create or change what the file says"),
            ("routedctl apply -f cluster/ --dry-run", "only say what would be done"),
        ],
    )
    _add_files(one)
    _add_dry_run(one)
    one = commands.add(
        "get",
        _later("stored", "run_get"),
        "show resources of the datastore",
        examples=[
            ("routedctl get bgppeers", "a line for each"),
            ("routedctl get bgppeer tor-a -o yaml", "one of them in full"),
            ("routedctl get networkpolicies -A", "those of every namespace"),
        ],
    )
    one.add_argument("kinds", metavar="KIND", help="a kind as bgppeer, BGPPeers or bgpp; several with commas")
    one.add_argument("names", metavar="NAME", nargs="*", help="names; all without any")
    _add_namespace(one, everywhere=True)
    one.add_argument("-o", dest="output", choices=_OUTPUTS, help="how to show them (default: table)")
    one = commands.add(
        "delete",
        _later("stored", "run_delete"),
        "delete resources from the datastore",
        examples=[
            ("routedctl delete bgppeer tor-a", "one by its name"),
            ("routedctl delete -f peers.yaml", "those that the file names"),
        ],
        abbreviate=False,
    )
    one.add_argument("kinds", metavar="KIND", nargs="?", help="a kind")
    one.add_argument("names", metavar="NAME", nargs="*", help="names")
    one.add_argument(
        "-f", dest="files", action="append", metavar="FILE", help="a file, a folder, or - for standard input"
    )
    _add_namespace(one)
    _add_dry_run(one)
    one = commands.add(
        "diff",
        _later("stored", "run_diff"),
        "what `apply` would change; exit status 1 where that is anything",
        examples=[("routedctl diff -f peers.yaml", "changed lines, what is stored before what is wanted")],
    )
    _add_files(one)
    one = commands.add(
        "export",
        _later("stored", "run_export"),
        "write all resources of the datastore out as YAML",
        examples=[
            ("routedctl export > cluster.yaml", "one file"),
            ("routedctl export -o resources/", "a file a kind, in a folder that the file datastore can read"),
        ],
    )
    one.add_argument("-o", dest="output", metavar="FOLDER", help="a folder; it must be empty or not exist")
    one = commands.add(
        "import",
        _later("stored", "run_import"),
        "bring resources that were exported into the datastore, exactly as they are",
        examples=[
            ("routedctl import -f cluster.yaml --dry-run", "what would be written"),
            ("routedctl import -f cluster.yaml", "safe to do again: what is the same already is left alone"),
        ],
    )
    _add_files(one)
    _add_dry_run(one)
    commands.group("ipam", "addresses of pools and blocks")
    one = commands.add(
        "ipam show",
        _later("addresses", "run_show"),
        "how many addresses of pools and blocks are in use",
        examples=[
            ("routedctl ipam show", "a line for each pool"),
            ("routedctl ipam show --show-blocks", "and for each block of it"),
            ("routedctl ipam show --ip 10.244.1.5", "who has an address"),
        ],
    )
    which = one.add_mutually_exclusive_group()
    which.add_argument("--show-blocks", action="store_true", help="the blocks of each pool too")
    which.add_argument("--ip", metavar="ADDR", help="who has this address")
    one = commands.add(
        "ipam check",
        _later("allocations", "run_check"),
        "find addresses nobody has, and handles and blocks that do not add up",
        examples=[
            ("routedctl ipam check", "exit status 1 where anything is found"),
            ("routedctl ipam check -o report.json", "what `ipam release --from-report` takes"),
        ],
    )
    one.add_argument("-o", dest="output", metavar="FILE", help="write a report for `ipam release --from-report`")
    one = commands.add(
        "ipam release",
        _later("allocations", "run_release"),
        "give addresses and blocks back that nobody has",
        examples=[
            (
                "routedctl ipam release --from-report report.json",
                "what was wrong then and is still wrong in the same way",
            ),
            ("routedctl ipam release --ip 10.244.1.5", "an address, where no endpoint has it"),
            ("routedctl ipam release --node n4", "all of a node that is gone: endpoints, addresses, blocks"),
        ],
    )
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--ip", metavar="ADDR", action="append", help="this address; may be given more than once")
    which.add_argument("--handle", metavar="HANDLE", help="all addresses under this handle")
    which.add_argument("--node", metavar="NODE", help="all that a node has whose Node is deleted")
    which.add_argument("--from-report", dest="report", metavar="FILE", help="what `ipam check -o FILE` found")
    _add_dry_run(one)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        dest="files",
        action="append",
        required=True,
        metavar="FILE",
        help="a file, a folder, or - for standard input",
    )


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="write nothing, only say what would be done")


def _add_namespace(parser: argparse.ArgumentParser, *, everywhere: bool = False) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", dest="namespace", metavar="NAMESPACE", default="default", help="default: default")
    if everywhere:
        where.add_argument("-A", dest="everywhere", action="store_true", help="of all namespaces")
