"""Routes that change hands: those of one routing daemon become those of another, in place, with no packet lost.

What says whose a route is in the kernel is its protocol number. Each route of the giving numbers is replaced by the same
route under the taking one (NLM_F_REPLACE without NLM_F_CREATE: in one step, and only while it is still there), metric,
legs and all. Run before the taker starts and after the giver has stopped, it makes a move from BIRD to routed, or back, a
restart: the taker finds "its own" routes and keeps them until it knows better.

Invariants: only the numbers and the table that were named are touched; a route of a kind that neither daemon writes is
left alone and told. Blocking, and used before anything else of the dataplane runs.
"""

from __future__ import annotations

import errno as errnos
import os
import select
from collections.abc import Collection, Iterator

from routed.dataplane.sockets import NetlinkSocket, open_dumper, open_writer
from routed.desired import KernelRoute, RouteBatch, RouteKind
from routed.errors import KernelError
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.netlink.messages import Message, dump_errno, fence, messages, parse_error
from routed.netlink.numbers import NLMSG_DONE, NLMSG_ERROR
from routed.netlink.routes import Operation, RouteDecoder, RouteFacts, dump_routes, encode_routes, refused_prefix
from routed.values import dataclass

#: Routes by which a daemon says that there is no way (RTN_UNREACHABLE, RTN_PROHIBIT), as BIRD does for a next hop it cannot
#: resolve. Their packets go nowhere as a blackhole's, which is what they are taken over as.
_NO_WAY = (7, 8)

#: Routes of one send, and the seconds the kernel may take to answer it.
_RUN = 1000
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class HandedOver:
    routes: int
    left: tuple[str, ...]
    """Routes that stay with their daemon, and why."""


def hand_over(table: int, giving: Collection[int], taking: int) -> HandedOver:
    """Give all routes of the protocols `giving` in a table the protocol `taking`. Raises KernelError."""
    done, left = 0, list[str]()
    try:
        for family in (Family.IPV4_UNICAST, Family.IPV6_UNICAST):
            for facts, prefixes in _found(table, family, giving).items():
                if facts.kind not in (*RouteKind, *_NO_WAY) or not facts.plain:
                    left += [f"{format_prefix(family, prefix)}: is no route of a daemon's" for prefix in prefixes]
                    continue
                refused = _give(family, facts, prefixes, table, taking)
                done += len(prefixes) - len(refused)
                left += refused
    except OSError as error:
        raise KernelError(error.errno or 0, "", "hand routes over") from error
    return HandedOver(done, tuple(left))


def _found(table: int, family: Family, giving: Collection[int]) -> dict[RouteFacts, list[bytes]]:
    found: dict[RouteFacts, list[bytes]] = {}
    decoder = RouteDecoder()
    dumper = open_dumper()
    try:
        dumper.send(dump_routes(family, table=table, sequence=1))
        for message in _answers(dumper):
            if message.type == NLMSG_DONE:
                if errno := dump_errno(message):
                    raise OSError(errno, os.strerror(errno))
                break
            if message.type == NLMSG_ERROR:
                raise OSError(parse_error(message).errno, "dump")
            decoded = decoder.decode(message.data)
            if decoded is not None and decoded[0] is family:
                _, prefix, facts = decoded
                if facts.table == table and facts.protocol in giving:
                    found.setdefault(facts, []).append(prefix)
    finally:
        dumper.close()
    return found


def _give(family: Family, facts: RouteFacts, prefixes: list[bytes], table: int, taking: int) -> list[str]:
    """Replace them; those that were not, each with the reason."""
    refused: list[str] = []
    kind = RouteKind.BLACKHOLE if facts.kind in _NO_WAY else RouteKind(facts.kind)
    route = KernelRoute(kind, facts.gateways)
    writer = open_writer()
    try:
        for sequence, start in enumerate(range(0, len(prefixes), _RUN), 1):
            batch = RouteBatch(family, prefixes[start : start + _RUN], route)
            data = encode_routes(
                batch, table=table, protocol=taking, sequence=sequence, create=Operation.REPLACE, metric=facts.metric
            )
            writer.send(data + fence(sequence))
            for message in _answers(writer):
                refusal = parse_error(message)
                if not refusal.errno:
                    break  # the fence
                known = refused_prefix(refusal)
                if known is not None and refusal.errno not in (errnos.ENOENT, errnos.ESRCH):  # gone by itself
                    refused.append(f"{format_prefix(*known)}: {os.strerror(refusal.errno)} {refusal.text}".rstrip())
    finally:
        writer.close()
    return refused


def _answers(socket: NetlinkSocket) -> Iterator[Message]:
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    while True:
        if not poll.poll(_PATIENCE * 1000):
            raise OSError(errnos.ETIMEDOUT, os.strerror(errnos.ETIMEDOUT))
        while (data := socket.receive()) is not None:
            yield from messages(data)
