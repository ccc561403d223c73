"""What `ipam check` and `ipam release` do: find addresses, handles and blocks that do not add up, and give them back.

Invariant: a finding is put right only where two looks agree on it, the one in the report and the one now: an address is
given out before its endpoint is written, so one look may see a pod that is just being made. What an endpoint has is never
released.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

from routed.cli.command import ExitStatus, UsageError, emit, show_list
from routed.cli.stored import complain, with_store
from routed.cli.tables import table
from routed.datastore.allocating import cluster_of
from routed.datastore.mending import give_back, put_right, remove_endpoints
from routed.datastore.store import Contents, Store
from routed.ipam.blocks import address_at, allocations
from routed.ipam.check import CHECKED, Finding, Problem, State, check, covers_address, holders, state_of, unchanged
from routed.model.ipam import IPAMConfig, IPReservation
from routed.net.addresses import format_address, parse_address
from routed.observe.logs import harmless

_READ = CHECKED | {IPAMConfig.kind, IPReservation.kind}


def run_check(arguments: argparse.Namespace) -> int:
    contents = with_store(arguments, lambda store: store.read(_READ))
    complain(contents.problems)
    found = check(_complete(contents))
    rows = [dataclasses.asdict(each) for each in found]
    if arguments.output is not None:
        try:
            with open(arguments.output, "w", encoding="utf-8") as file:
                json.dump({"findings": rows}, file, indent=1)
        except OSError as error:
            raise UsageError(f"-o: cannot write {arguments.output}: {error.strerror}") from None
    show_list(arguments, rows, _findings)
    return ExitStatus.ERROR if found or contents.problems else ExitStatus.OK


def run_release(arguments: argparse.Namespace) -> int:
    return with_store(arguments, lambda store: _release(arguments, store))


async def _release(arguments: argparse.Namespace, store: Store) -> int:
    contents = await store.read(_READ)
    if contents.problems:  # what cannot be read may be the endpoint that has the address
        complain((*contents.problems, "nothing is released while a part of the datastore cannot be read"))
        return ExitStatus.ERROR
    state = _complete(contents)
    if arguments.node is not None:
        return await _release_node(arguments, store, contents, state)
    if arguments.report is not None:
        chosen = unchanged(_report(arguments.report), check(state))
    elif arguments.handle is not None:
        chosen = _under_handle(state, arguments.handle)
    else:
        chosen = [_allocation(state, text) for text in arguments.ip]
    failed = False
    told = _Told("json" in arguments)
    for finding in chosen:
        done = _WOULD if arguments.dry_run else await _put_right(store, contents, state, finding)
        told.add(finding.text, done)
        failed |= done == _LEFT
    told.end("nothing to release" if not chosen else "")
    return ExitStatus.ERROR if failed else ExitStatus.OK


_DONE, _WOULD, _LEFT, _CHANGED = "put right", "would be put right", "left: this is for a person", "left: it has changed"


class _Told:
    """What became of each: a line as soon as it is known, or an array of JSON at the end."""

    def __init__(self, as_json: bool) -> None:
        self._rows: list[dict[str, str]] | None = [] if as_json else None

    def add(self, what: str, result: str) -> None:
        if self._rows is not None:
            self._rows.append({"what": what, "result": result})
        else:
            emit((f"{harmless(what)}: {result}",))

    def end(self, sentence: str = "") -> None:
        if self._rows is not None:
            emit((json.dumps(self._rows, indent=2),))
        elif sentence:
            emit((harmless(sentence),))


async def _put_right(store: Store, contents: Contents, state: State, finding: Finding) -> str:
    cluster = cluster_of(each.resource for each in contents.resources.values())
    done = await put_right(store, cluster, state.nodes, finding)
    return _LEFT if done is None else _DONE if done else _CHANGED


async def _release_node(arguments: argparse.Namespace, store: Store, contents: Contents, state: State) -> int:
    """All of a node that is gone: its endpoints, addresses and blocks."""
    node, told = arguments.node, _Told("json" in arguments)
    if node in state.nodes:
        raise UsageError(f"--node: node {node} is there; delete it first: routedctl delete node {node}")
    if arguments.dry_run:
        for each in state.endpoints:
            if each.node == node:
                told.add(str(each.key), "would be deleted")
        for finding in check(state):
            if finding.node == node:
                told.add(finding.text, _WOULD)
        told.end()
        return ExitStatus.OK
    for endpoint in await remove_endpoints(store, contents.resources.values(), node):
        told.add(str(endpoint.key), "deleted")
    for address in await give_back(store, cluster_of(each.resource for each in contents.resources.values()), node):
        told.add(format_address(address), "released")
    told.end(f"node {node} holds no addresses and no blocks")
    return ExitStatus.OK


def _complete(contents: Contents) -> State:
    return state_of(each.resource for each in contents.resources.values())


def _allocation(state: State, text: str, option: str = "--ip") -> Finding:
    """An address that is to be released though it may not have leaked. Raises UsageError where somebody has it."""
    try:
        address = parse_address(text)
    except ValueError:
        raise UsageError(f"{option}: not an address: {text!r:.60}") from None
    who = holders(state).get(address)
    if who:
        raise UsageError(f"{option}: {format_address(address)} is that of {who[0]}; remove that first")
    for block in state.blocks:
        if not covers_address(block.cidr, address):
            continue
        for ordinal, owner in allocations(block):
            if address_at(block, ordinal) == address:
                return Finding(
                    Problem.LEAKED,
                    format_address(address),
                    address=format_address(address),
                    cidr=str(block.cidr),
                    handle=owner.handle_id or "",
                    sequence=block.sequence_number_for_allocation.get(ordinal, -1),
                )
    raise UsageError(f"{option}: {format_address(address)} is not given out")


def _under_handle(state: State, handle: str) -> list[Finding]:
    found = [
        _allocation(state, format_address(address_at(block, ordinal)), "--handle")
        for block in state.blocks
        for ordinal, owner in allocations(block)
        if owner.handle_id == handle
    ]
    if not found:
        raise UsageError(f"--handle: no address is given out under {handle!r:.80}")
    return found


def _report(path: str) -> list[Finding]:
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["findings"]
        return [Finding(**{**row, "problem": Problem(row["problem"])}) for row in rows]
    except OSError as error:
        raise UsageError(f"--from-report: cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--from-report: {path} is no report of `routedctl ipam check -o`") from None


def _findings(rows: Iterable[Any]) -> Iterator[str]:
    rows = list(rows)
    if not rows:
        yield "all addresses, handles and blocks add up"
        return
    yield from table(("problem", "what"), ((row["problem"], harmless(row["text"])) for row in rows))
