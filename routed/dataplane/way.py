"""Which way a packet goes, as the kernel routes it now: rules, tables and which of several gateways it takes.

The kernel answers such a question at once, without the lock that changes of routes wait for.
"""

from __future__ import annotations

import errno

from routed.dataplane.exchange import Exchange, open_exchange
from routed.desired import Gateway
from routed.errors import KernelError
from routed.netlink.routes import Flow, RouteDecoder, RouteFacts, ask_way

_RTN_LOCAL = 2


def way_of(flow: Flow) -> Gateway | None:
    """By which interface, and to whom; None where it stays here or goes nowhere. In the network namespace of this thread.

    Raises KernelError where there is no way, or the kernel would not take such a packet in by that interface.
    """
    what = "asking for a route"
    try:
        exchange = open_exchange()
    except OSError as error:
        raise KernelError(error.errno or 0, "", what) from None
    try:
        found = _asked(exchange, flow, what)
    finally:
        exchange.close()
    return found.gateways[0] if found is not None and found.gateways else None


def is_at_home(exchange: Exchange, address: bytes, what: str) -> bool:
    """Whether packets to an address are for who is asked. Raises KernelError where he cannot be."""
    try:
        found = _asked(exchange, Flow(address), what)
    except KernelError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            raise
        return False
    return found is not None and found.kind == _RTN_LOCAL


def _asked(exchange: Exchange, flow: Flow, what: str) -> RouteFacts | None:
    for answer in exchange.ask(ask_way(flow, exchange.next()), what):
        decoded = RouteDecoder().decode(answer.data)
        if decoded is not None:
            return decoded[2]
    return None
