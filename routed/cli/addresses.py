"""What `ipam show` does: how full pools and blocks are, and who has an address."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

from routed.cli.command import ExitStatus, UsageError, show_list, show_one
from routed.cli.stored import complain, with_store
from routed.cli.tables import facts, table
from routed.datastore.store import Contents
from routed.model.ipam import IPAMBlock
from routed.model.resources import Cidr, IPPool
from routed.net.addresses import format_address, parse_address
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix
from routed.observe.logs import harmless


def run_show(arguments: argparse.Namespace) -> int:
    contents = with_store(arguments, lambda store: store.read({IPPool.kind, IPAMBlock.kind}))
    complain(contents.problems)
    if arguments.ip is not None:
        return _owner(arguments, contents)
    shown = show_list(arguments, _usage(contents, arguments.show_blocks), _usage_table)
    return ExitStatus.ERROR if contents.problems else shown


def _of(contents: Contents) -> tuple[list[IPPool], list[IPAMBlock]]:
    resources = [one.resource for one in contents.resources.values()]
    pools = [one for one in resources if isinstance(one, IPPool)]
    blocks = [one for one in resources if isinstance(one, IPAMBlock) and not one.deleted]
    return sorted(pools, key=lambda one: one.cidr), sorted(blocks, key=lambda one: one.cidr)


def _usage(contents: Contents, with_blocks: bool) -> Iterator[dict[str, object]]:
    pools, blocks = _of(contents)
    seen: set[Cidr] = set()
    for pool in pools:
        inside = [
            one for one in blocks if one.cidr.family is pool.cidr.family and covers(pool.cidr.prefix, one.cidr.prefix)
        ]
        seen |= {one.cidr for one in inside}
        yield _line("pool", pool.name, pool.cidr, sum(map(_in_use, inside)), "disabled" if pool.disabled else "")
        for block in inside if with_blocks else ():
            yield _line("block", "", block.cidr, _in_use(block), block.affinity or "no affinity")
    for block in blocks:
        if block.cidr not in seen:
            yield _line("block", "", block.cidr, _in_use(block), f"{block.affinity or 'no affinity'}, in no pool")


def _in_use(block: IPAMBlock) -> int:
    return sum(block.owner(ordinal) is not None for ordinal in range(len(block.allocations)))


def _line(grouping: str, name: str, cidr: Cidr, used: int, note: str) -> dict[str, object]:
    total = 1 << cidr.family.max_length - cidr.prefix[0]
    counts = {"total": total, "inUse": used, "free": total - used}
    return {"grouping": grouping, "name": name, "cidr": str(cidr), **counts, "note": note}


def _usage_table(rows: Iterable[Any]) -> Iterator[str]:
    return table(
        ("grouping", "name", "cidr", "total", "in use", "free", "note"),
        (
            (
                ("  " if row["grouping"] == "block" else "") + row["grouping"],
                row["name"],
                row["cidr"],
                _count(row["total"]),
                f"{row['inUse']} ({100 * row['inUse'] / row['total']:.0f}%)",
                _count(row["free"]),
                row["note"],
            )
            for row in rows
        ),
    )


def _count(number: int) -> str:
    return str(number) if number < 1 << 40 else f"{number:.4g}"


def _owner(arguments: argparse.Namespace, contents: Contents) -> int:
    try:
        address = parse_address(arguments.ip)
    except ValueError:
        raise UsageError(f"--ip: not an address: {arguments.ip!r:.60}") from None
    family = Family.of_address(address)
    host = make_prefix(address, family.max_length)
    pools, blocks = _of(contents)
    pool = next((one for one in pools if one.cidr.family is family and covers(one.cidr.prefix, host)), None)
    block = next((one for one in blocks if one.cidr.family is family and covers(one.cidr.prefix, host)), None)
    answer: dict[str, object] = {
        "address": format_address(address),
        "pool": None if pool is None else pool.name,
        "block": None if block is None else str(block.cidr),
        "affinity": None if block is None else block.affinity,
        "inUse": False,
    }
    if block is not None:
        ordinal = int(ipaddress.ip_address(address)) - int(ipaddress.ip_network(str(block.cidr)).network_address)
        owner = block.owner(ordinal)
        if owner is not None:
            answer |= {"inUse": True, "handle": owner.handle_id, "attributes": dict(owner.secondary)}
    show_one(arguments, answer, _owner_lines)
    return ExitStatus.OK


def _owner_lines(answer: Any) -> Iterator[str]:
    used = "in use" if answer["inUse"] else "in no block" if answer["block"] is None else "free"
    attributes = [(harmless(name), harmless(value)) for name, value in answer.get("attributes", {}).items()]
    yield from facts(
        [
            ("address", f"{answer['address']} is {used}"),
            ("pool", answer["pool"] or "none"),
            ("block", answer["block"] or "none"),
            ("affinity", harmless(answer["affinity"] or "none")),
            ("handle", harmless(answer.get("handle") or "none")),
            *attributes,
        ]
    )
