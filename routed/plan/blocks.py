"""The blocks that others allocate from: which node each is of, and which node has a single address that was lent.

Whose a block is changes rarely; who has its addresses, with every pod. So a block is only looked into where somebody asks
for an address of it, and from then on the changes of its addresses are told.

Invariants: holds the last value of every block; a change of what was asked about is told once (`take_moved`), as long as
blocks don't overlap.
"""

from __future__ import annotations

from routed.model.ipam import IPAMBlock, blocks_with
from routed.model.resources import Cidr
from routed.net.families import Family
from routed.net.prefixes import prefix_address


class Blocks:
    """See the module's docstring."""

    __slots__ = ("_addresses", "_asked_in_vain", "_by_cidr", "_by_name", "_lengths", "_moved")

    def __init__(self) -> None:
        self._by_name: dict[str, IPAMBlock] = {}
        self._by_cidr: dict[Cidr, IPAMBlock] = {}
        self._lengths: dict[Family, tuple[int, ...]] = dict.fromkeys(Family, ())
        """Of the blocks there are or were, the longest first: pools mostly have blocks of one size."""
        self._moved: set[Cidr] = set()
        self._addresses: dict[Cidr, dict[Cidr, str]] = {}
        """Of the blocks that were looked into: the node of each address that is given out."""
        self._asked_in_vain: set[Family] = set()
        """There was no block with an address somebody asked for."""

    def put(self, name: str, block: IPAMBlock | None) -> tuple[Cidr, ...]:
        """A block is so, or (None) is not there: the blocks that have another holder since."""
        if block is not None and block.deleted:
            block = None
        old = self._by_name.pop(name, None)
        if block is not None:
            self._by_name[name] = self._by_cidr[block.cidr] = block
            if old is not None and old.cidr == block.cidr and old.affinity == block.affinity:
                if block.cidr in self._addresses:  # an address was handed out
                    self._look_into(block)
                return ()
            changed = (block.cidr,) if old is None or old.cidr == block.cidr else (old.cidr, block.cidr)
        elif old is None:
            return ()
        else:
            changed = (old.cidr,)
        if old is not None and (block is None or block.cidr != old.cidr):
            self._by_cidr.pop(old.cidr, None)
            if old.cidr in self._addresses:
                self._moved.update(self._addresses.pop(old.cidr))
                self._asked_in_vain.add(old.cidr.family)
        if block is not None and (block.cidr in self._addresses or block.cidr.family in self._asked_in_vain):
            self._look_into(block)
        if block is not None and block.cidr.prefix[0] not in (lengths := self._lengths[block.cidr.family]):
            self._lengths[block.cidr.family] = tuple(sorted((*lengths, block.cidr.prefix[0]), reverse=True))
        self._moved.update(changed)
        return changed

    def claimed(self, cidr: Cidr) -> None:
        """Somebody claims a block, or does no more: where there is no such block, that says whose it is."""
        if cidr not in self._by_cidr:
            self._moved.add(cidr)

    def affinity(self, cidr: Cidr) -> str | None:
        """What a block says of whose it is: `host:node-1`."""
        block = self._by_cidr.get(cidr)
        return block.affinity if block is not None else None

    def node_with(self, address: Cidr) -> str | None:
        """The node that has a single address, as the block says that gave it out."""
        lengths = self._lengths[address.family]
        block = next(blocks_with(prefix_address(*address), self._by_cidr.get, lengths), None)
        if block is None:
            self._asked_in_vain.add(address.family)
            return None
        if block.cidr not in self._addresses:
            self._addresses[block.cidr] = _nodes(block)
        return self._addresses[block.cidr].get(address)

    def take_moved(self) -> set[Cidr]:
        """Blocks that have another holder than at the last call, and addresses that were asked for and may be another's."""
        moved, self._moved = self._moved, set()
        return moved

    def _look_into(self, block: IPAMBlock) -> None:
        before, now = self._addresses.get(block.cidr, {}), _nodes(block)
        self._addresses[block.cidr] = now
        self._moved.update(address for address, _ in before.items() ^ now.items())


def _nodes(block: IPAMBlock) -> dict[Cidr, str]:
    family = block.cidr.family
    first = int.from_bytes(prefix_address(*block.cidr))
    size, length = family.address_length, bytes((family.max_length,))
    return {
        Cidr(family, length + (first + ordinal).to_bytes(size)): node
        for ordinal, node in block.nodes_of_addresses().items()
    }
