"""Which way a packet goes, as the kernel routes it now: rules, tables and which of several gateways it takes.

The kernel answers such a question at once, without the lock that changes of routes wait for.
"""

from __future__ import annotations

from routed.dataplane.exchange import open_exchange
from routed.desired import Gateway
from routed.errors import KernelError
from routed.netlink.routes import Flow, RouteDecoder, ask_way


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
        answers = exchange.ask(ask_way(flow, exchange.next()), what)
    finally:
        exchange.close()
    for answer in answers:
        decoded = RouteDecoder().decode(answer.data)
        if decoded is not None and decoded[2].gateways:
            return decoded[2].gateways[0]
    return None
