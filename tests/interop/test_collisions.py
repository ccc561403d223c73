"""Both ends connect at once, and SYNs and OPENs arrive in every possible order: a session comes up, the first that does
stays, and no peer takes the end of the connection that has lost for the end of the neighbour.

FRR 8.4 does so in some orders, whatever we do, and a second later the session is up again: more is not asked of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, Frr, GoBgp, OpenBgpd, Routed, Router, missing, resource
from tests.interop.held_wire import ORDERS, SYNS, held_wire
from tests.interop.tors import NODE_AS, TOR_AS

#: Seconds without a frame after which what was let go has been answered, and for what may not come any more.
QUIET, GONE = 0.01, 0.1

#: Seconds in which both ends must have been able to answer for the order to be the one that was meant.
ON_TIME = 1.0


def at(router: int, order: int, end: int) -> str:
    """An address: of the node (1) or the router (2), for the order of arrival with this number."""
    return f"10.{router}.{order}.{end}"


def bird(lab: Lab, router_id: str, pairs: list[tuple[str, str]]) -> Bird:
    return Bird(
        lab.namespaces["router"],
        f"router id {router_id};\nprotocol device {{}}\n"
        + "".join(
            f"protocol bgp {{ local {own} as {TOR_AS}; neighbor {node} as {NODE_AS}; connect delay time 1;"
            f" ipv4 {{ import all; export none; }}; }}\n"
            for node, own in pairs
        ),
    )


def frr(lab: Lab, router_id: str, pairs: list[tuple[str, str]]) -> Frr:
    return Frr(
        lab.namespaces["router"],
        f"router bgp {TOR_AS}\n bgp router-id {router_id}\n no bgp ebgp-requires-policy\n"
        + "".join(f" neighbor {node} remote-as {NODE_AS}\n neighbor {node} timers connect 1\n" for node, _ in pairs),
    )


def gobgp(lab: Lab, router_id: str, pairs: list[tuple[str, str]]) -> GoBgp:
    return GoBgp(
        lab.namespaces["router"],
        f'[global.config]\nas = {TOR_AS}\nrouter-id = "{router_id}"\n'
        + "".join(
            f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{node}"\npeer-as = {NODE_AS}\n'
            "[neighbors.timers.config]\nconnect-retry = 5\n"
            for node, _ in pairs
        ),
    )


def openbgpd(lab: Lab, router_id: str, pairs: list[tuple[str, str]]) -> OpenBgpd:
    return OpenBgpd(
        lab.namespaces["router"],
        f"AS {TOR_AS}\nrouter-id {router_id}\n"
        + "".join(f"neighbor {node} {{\n remote-as {NODE_AS}\n local-address {own}\n}}\n" for node, own in pairs)
        + "allow from any\nallow to any\n",
    )


ROUTERS: dict[str, tuple[Callable[..., Router], int]] = {
    "bird": (bird, 1),
    "frr": (frr, 4),
    "gobgp": (gobgp, 4),
    "openbgpd": (openbgpd, 4),
}
"""How to make it, and which share of the orders is tried."""


@pytest.mark.parametrize("ours", ["higher", "lower"])
@pytest.mark.parametrize("make", ROUTERS)
def test_whatever_arrives_first(lab: Lab, make: str, ours: str) -> None:
    if missing(make):
        pytest.skip(f"needs {make}")
    build, share = ROUTERS[make]
    orders = ORDERS[::share]
    node, router = lab.namespace("node"), lab.namespace("router")
    pairs = [(at(0, number, 1), at(0, number, 2)) for number in range(len(orders))]
    ports = (
        namespace.port("eth0", *(f"{pair[end]}/30" for pair in pairs)) for end, namespace in enumerate((node, router))
    )
    with held_wire(lab, *ports) as wire:
        routed = Routed(node)
        routed.put(
            resource("Node", "node", {"bgp": {"ipv4Address": f"{pairs[0][0]}/30", "asNumber": NODE_AS}}),
            *(
                resource("BGPPeer", f"p{number}", {"peerIP": there, "asNumber": TOR_AS, "sourceAddress": "None"})
                for number, (_, there) in enumerate(pairs)
            ),
        )
        other = build(lab, "1.0.0.1" if ours == "higher" else "250.0.0.1", pairs)
        other.start()
        routed.start()
        late = set()
        for order, (_, address) in zip(orders, pairs, strict=True):
            wait_for(lambda address=address: wire.has(address, *SYNS.values()), 60, f"both connect: {address}")  # type: ignore[misc]
            wire.longest_pause = 0.0
            for flow in order:
                wire.comes(address, flow, GONE)
                wire.let_go(address, flow)
                wire.is_quiet(address, QUIET)
            wait_for(
                lambda address=address: routed.established(address), 50, f"{address}: {order}", state=routed.sessions
            )  # type: ignore[misc]
            if wire.longest_pause > ON_TIME:
                late.add(address)
        rows = routed.neighbors()
        again = {
            address: (order, rows[address]["lastDown"])
            for order, (_, address) in zip(orders, pairs, strict=True)
            if rows[address]["establishedCount"] != 1 and address not in late
        }
        assert make == "frr" or not again
        assert len(late) < len(orders) / 2, "the machine was too busy to try anything"
        assert routed.problems() == [], "a collision is nobody's mistake"
        assert "Established" in set(other.sessions().values())
