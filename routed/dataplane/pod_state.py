"""What is wrong with a pod's interface: its two ends as they are, beside what `pods` made of them.

For CHECK, for an ADD of a pod that is there already, and for putting right what somebody did to the node's end. Only
looks; what it says is for people. What chained plugins or the pod itself add (more routes, more addresses) is their business
and no difference.

Not here: routes to the pod on the node and its policy, which are looked after all the time (`routes`, `firewall`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping

from routed.dataplane.exchange import Exchange
from routed.errors import KernelError
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE
from routed.netlink.bridge import BridgeLink, decode_bridge_link
from routed.netlink.links import Address, Link, decode_address, decode_link, dump_addresses, dump_links
from routed.netlink.messages import Message
from routed.netlink.numbers import RT_TABLE_MAIN
from routed.netlink.routes import RouteDecoder, dump_routes
from routed.netlink.tunnels import NeighbourEntry, decode_neighbour, dump_neighbours
from routed.netlink.veth import decode_mac, get_link
from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class End:
    """One end of a pair as the kernel has it."""

    link: Link
    mac: bytes
    addresses: frozenset[tuple[bytes, int]]
    """Packed, with the prefix length."""
    neighbours: dict[bytes, NeighbourEntry]
    """By address."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the kernel has of the node's ends and of their bridges."""

    links: Mapping[str, tuple[Link, BridgeLink]]
    neighbours: Mapping[int, Mapping[bytes, NeighbourEntry]]
    """By address, by the index of the link."""
    let_in: Mapping[int, frozenset[bytes]]
    """The MAC addresses that are written for a port, by its index."""


def link_of(exchange: Exchange, name: str) -> tuple[Link, bytes]:
    """The link of that name, and the message that describes it. Raises KernelError, ENODEV where there is none."""
    (answer,) = exchange.ask(get_link(exchange.next(), name), f"interface {name}")
    link = decode_link(answer.data)
    if link is None:
        raise KernelError(errno.EPROTO, "", f"interface {name}")
    return link, answer.data


def look(exchange: Exchange, name: str) -> End | None:
    """The end of that name; None where there is none. Raises KernelError."""
    what = f"interface {name}"
    try:
        link, answer = link_of(exchange, name)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    found: Iterator[Address | None] = (
        decode_address(message.data) for message in exchange.dump(dump_addresses(exchange.next()), what)
    )
    addresses = frozenset(
        (each.address, each.length) for each in found if each is not None and each.index == link.index
    )
    neighbours = {}
    for family in Family:
        for message in exchange.dump(dump_neighbours(exchange.next(), family), what):
            neighbour = decode_neighbour(message.data)
            if neighbour is not None and neighbour.index == link.index:
                neighbours[neighbour.address] = neighbour
    return End(link, decode_mac(answer), addresses, neighbours)


def read_node(exchange: Exchange, names: Iterable[str] | None = None) -> NodeState:
    """What there is of the links of these names; None: of all. Raises KernelError."""
    what, messages = "reading the interfaces of pods", []
    if names is None:
        messages = exchange.dump(dump_links(exchange.next()), what)
    for name in names or ():
        try:
            messages += exchange.ask(get_link(exchange.next(), name), f"interface {name}")
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
    links = {}
    for message in messages:
        link, facts = decode_link(message.data), decode_bridge_link(message.data)
        if link is not None and facts is not None:
            links[link.name] = link, facts
    indexes = {link.index for link, _ in links.values()}
    neighbours: dict[int, dict[bytes, NeighbourEntry]] = {}
    for family in Family:
        for entry in _neighbours(exchange.dump(dump_neighbours(exchange.next(), family), what)):
            if entry.index in indexes:
                neighbours.setdefault(entry.index, {})[entry.address] = entry
    let_in: dict[int, frozenset[bytes]] = {}
    if any(facts.master for _, facts in links.values()):
        for entry in _neighbours(exchange.dump(dump_neighbours(exchange.next(), None), what)):
            if entry.index in indexes and not entry.permanent:  # that is its own
                let_in[entry.index] = let_in.get(entry.index, frozenset()) | {entry.mac}
    return NodeState(links, neighbours, let_in)


def _neighbours(messages: Iterable[Message]) -> Iterator[NeighbourEntry]:
    for message in messages:
        found = decode_neighbour(message.data)
        if found is not None:
            yield found


def ways(exchange: Exchange, family: Family, table: int = RT_TABLE_MAIN) -> dict[bytes, list[tuple[bytes, int]]]:
    """Gateway (empty: none) and interface of a table's routes, by prefix, in the kernel's order. Raises KernelError."""
    decoder = RouteDecoder()
    found: dict[bytes, list[tuple[bytes, int]]] = {DEFAULT_ROUTE: []}
    for message in exchange.dump(dump_routes(family, table=table, sequence=exchange.next()), "routes"):
        decoded = decoder.decode(message.data)
        if decoded is not None and decoded[0] is family and decoded[2].table == table:
            legs = ((gateway.address, gateway.interface) for gateway in decoded[2].gateways)
            found.setdefault(decoded[1], []).extend(legs)
    return found


def permanent(
    name: str, there: Mapping[bytes, NeighbourEntry], neighbours: Iterable[tuple[bytes, bytes]]
) -> Iterator[str]:
    """What is wrong with those that must be permanent: (address, MAC)."""
    for address, mac in neighbours:
        found = there.get(address)
        if found is None or not found.permanent or found.mac != mac:
            yield f"{name} has no permanent neighbour {format_address(address)} at {mac.hex(':')}"
