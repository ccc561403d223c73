"""What may be taken back by itself, and when: what a check finds that is nobody's, for long enough.

Who does what, as Calico's kube-controllers do it: addresses of pods and containers without an endpoint, handles that count
what no block has, claims without a block, all of a node that is gone, and empty blocks beyond those a node needs. Whatever
a check finds beside that is left to a person.

Invariants: a thing is garbage only while every look finds it in the same way, from the first look to one at least the grace
period later; an address given out anew meanwhile is another (its sequence number). A node keeps a block of each pool that
selects it with an address to give.

Not here: what is wrong (`check`), reading, and taking back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from routed.ipam.blocks import free_count, is_empty
from routed.ipam.check import Finding, Problem, State, check
from routed.model.ipam import IPAMBlock
from routed.model.resources import Cidr
from routed.net.prefixes import covers

#: Seconds, as Calico's leakGracePeriod has it.
DEFAULT_GRACE = 900.0

_GARBAGE = frozenset((Problem.HANDLE, Problem.NO_BLOCK, Problem.STALE_AFFINITY, Problem.NO_NODE))


def garbage(state: State, node: str = "") -> list[Finding]:
    """What may be taken back if it stays as it is; with `node`, what is that node's own.

    Addresses of a node that is gone are part of that finding.
    """
    found = [each for each in (*check(state), *_spare_blocks(state)) if is_garbage(each)]
    gone = {each.node for each in found if each.problem is Problem.NO_NODE}
    found = [each for each in found if each.node not in gone or each.problem in (Problem.NO_NODE, Problem.HANDLE)]
    if not node:
        return found
    own = {str(block.cidr) for block in state.blocks if block.host == node}
    return [
        each
        for each in found
        if each.problem is not Problem.NO_NODE and (each.node == node or (not each.node and each.cidr in own))
    ]


def is_garbage(finding: Finding) -> bool:
    """Whether a finding is of a kind that nobody need look at."""
    if finding.problem is Problem.LEAKED:
        # who takes addresses for other things than pods and containers keeps account of them in another way
        return bool(finding.pod or (finding.handle and finding.node and not finding.use))
    return finding.problem in _GARBAGE or finding.problem is Problem.SPARE


def _spare_blocks(state: State) -> Iterator[Finding]:
    held: dict[tuple[str, Cidr | None], list[IPAMBlock]] = {}
    for block in state.blocks:
        if block.host in state.nodes:
            assert block.host is not None
            held.setdefault((block.host, _pool_of(state, block)), []).append(block)
    pools = {pool.cidr: pool for pool in state.pools}
    for (node, cidr_of_pool), blocks in held.items():
        pool = pools[cidr_of_pool] if cidr_of_pool is not None else None
        empty = sorted(block.cidr for block in blocks if is_empty(block))
        others = any(not is_empty(block) and free_count(block, lambda _: False) for block in blocks)
        unfit = pool is None or not pool.node_selector.matches(state.nodes[node].labels)
        why = "is in no pool that selects it" if unfit else "has others of the pool with free addresses"
        for cidr in empty if others or unfit else empty[1:]:
            text = f"node {node} holds {cidr}, which is empty, and {why}"
            yield Finding(Problem.SPARE, text, cidr=str(cidr), node=node)


def _pool_of(state: State, block: IPAMBlock) -> Cidr | None:
    for pool in state.pools:
        if pool.cidr.family is block.cidr.family and covers(pool.cidr.prefix, block.cidr.prefix):
            return pool.cidr
    return None


class Patience:
    """How long things have been garbage."""

    def __init__(self) -> None:
        self._since: dict[Finding, float] = {}

    def __len__(self) -> int:
        """Things that are waited for."""
        return len(self._since)

    def look(self, found: Iterable[Finding], now: float, grace: float) -> list[Finding]:
        """What is found now; those that have been found at every look for `grace` seconds, and at two at least."""
        self._since = {finding: self._since.get(finding, now) for finding in found}
        return [finding for finding, since in self._since.items() if since < now and now - since >= grace]

    def again(self, finding: Finding, now: float) -> None:
        """It is kept for now, and may be looked at after another grace period."""
        self._since[finding] = now

    def forget(self) -> None:
        """Looks were missed: begin anew."""
        self._since.clear()
