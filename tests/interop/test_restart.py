"""Restarts of either end (RFC 4724): routes stay where they should and go where they must."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from routed.testing.lab import Lab, stays, wait_for
from routed.testing.routers import GoBgp, Json, Routed, Router, resource
from tests.interop.tors import (
    BLOCK4,
    BLOCK6,
    NET4,
    NET6,
    NODE4,
    TOR4,
    TOR6,
    TORS,
    announce,
    node_and_tor,
    wait_for_routes,
    wait_for_sessions,
)
from tests.lab.topology import RECONNECT, SOON

#: Those that keep a table, and so can keep our routes in it. ExaBGP only reports what it hears.
KEEPERS = ("bird", "frr", "gobgp")

#: What makes a switch one that can restart gracefully itself.
RESTARTABLE = {
    "bird": {"extra": "graceful restart yes;", "recover": True},
    "frr": {"extra": " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n"},
    "gobgp": {"graceful": True},
    "exabgp": {"graceful": True},
}


def running(lab: Lab, make: str, *, restartable: bool = False, **settings: object) -> tuple[Routed, Router]:
    routed, namespace = node_and_tor(lab)
    routed.configure(**settings)
    # GoBGP helps only where it is configured to restart, too
    extra = RESTARTABLE[make] if restartable or make == "gobgp" else {}
    # FRR takes some collisions for the end of the neighbour (test_collisions), and drops what it kept
    tor = TORS[make](namespace, passive=make == "frr", **extra)
    tor.start()
    announce(tor)
    routed.start()
    wait_for_routes(routed, tor)
    return routed, tor


def holds(tor: Router) -> set[str]:
    """Networks the switch sends packets for to the node, by its kernel; GoBGP has a table and no hand in the kernel."""
    if isinstance(tor, GoBgp):
        return {*tor.routes(), *tor.routes(ipv6=True)}
    four = {prefix for prefix, route in tor.namespace.routes().items() if NODE4 in route}
    return four | {prefix for prefix, route in tor.namespace.routes(ipv6=True).items() if "dev eth0" in route}


def forwarded(tor: Router) -> bool:
    """The switch still sends packets for the node's blocks to the node."""
    return {BLOCK4, BLOCK6} <= holds(tor)


def kept(routed: Routed) -> bool:
    return routed.kernel_routes().get(NET4) == f"via {TOR4} dev eth0" and NET6 in routed.kernel_routes(ipv6=True)


def by_family(routed: Routed) -> dict[str, Json]:
    rows = routed.neighbors()
    return {"ipv4": rows[TOR4], "ipv6": rows[TOR6]}


@contextlib.contextmanager
def silent(tor: Router) -> Iterator[None]:
    """Nothing the switch sends arrives."""
    rules = tuple((version, f"from {address} blackhole pref 0") for version, address in ((4, TOR4), (6, TOR6)))
    for version, rule in rules:
        tor.namespace.run("ip", f"-{version}", "rule", "add", *rule.split())
    yield
    for version, rule in rules:
        tor.namespace.run("ip", f"-{version}", "rule", "del", *rule.split())


@pytest.mark.parametrize("make", KEEPERS)
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_switch_keeps_our_routes_while_routed_restarts(lab: Lab, make: str, how: str) -> None:
    routed, tor = running(lab, make)
    if how == "SIGTERM":
        routed.stop()
    else:
        routed.kill()
    stays(lambda: forwarded(tor) and kept(routed), 1.5, "both kernels forward while routed is away")
    routed.start()

    def both_forward() -> bool:
        assert forwarded(tor), "the switch lost a route when routed came back"
        assert kept(routed), "the node lost a route when routed came back"
        return routed.established(TOR4, TOR6)

    wait_for(both_forward, SOON, "the sessions are up again", state=routed.sessions)
    wait_for_routes(routed, tor)
    stays(lambda: forwarded(tor) and kept(routed), 1.5, "both kernels forward after the restart")


@pytest.mark.parametrize("make", KEEPERS)
def test_routes_that_changed_while_routed_was_away_are_right_afterwards(lab: Lab, make: str) -> None:
    routed, tor = running(lab, make)
    routed.stop()
    routed.remove("BlockAffinity", "block4")
    routed.put(resource("BlockAffinity", "other", {"node": "node", "cidr": "10.244.9.0/26"}))
    routed.start()
    wait_for(
        lambda: "10.244.9.0/26" in holds(tor) and BLOCK4 not in holds(tor),
        30,
        "the switch has the new block and not the old one",
        state=lambda: (holds(tor), tor.routes()),
    )
    wait_for(
        lambda: "10.244.9.0/26" in routed.kernel_routes() and BLOCK4 not in routed.kernel_routes(),
        30,
        "the old block's blackhole is swept",
        state=routed.kernel_routes,
    )
    assert kept(routed)


@pytest.mark.parametrize("make", KEEPERS)
def test_a_shutdown_takes_our_routes_away_at_once(lab: Lab, make: str) -> None:
    routed, tor = running(lab, make, onStop="shutdown")
    routed.stop()
    wait_for(lambda: not tor.routes().get(BLOCK4), SOON, "the switch dropped our routes", state=tor.routes)
    wait_for(lambda: BLOCK4 not in holds(tor), SOON, "its kernel too", state=tor.namespace.routes)
    assert kept(routed), "the node's own kernel keeps its routes"
    if make == "frr":
        assert "Administrative Shutdown" in tor.ctl(f"show bgp neighbors {NODE4}")


@pytest.mark.parametrize("make", RESTARTABLE)
def test_we_keep_the_routes_of_a_switch_that_restarts(lab: Lab, make: str) -> None:
    routed, tor = running(lab, make, restartable=True)
    tor.kill()
    wait_for(
        lambda: not (routed.established(TOR4) or routed.established(TOR6)),
        SOON,
        "the sessions are seen to be down",
        state=routed.sessions,
    )
    wait_for(
        lambda: all(row["families"][f"{name}-unicast"]["stale"] for name, row in by_family(routed).items()),
        SOON,
        "its routes are stale",
        state=routed.neighbors,
    )
    stays(lambda: kept(routed), 1.5, "we forward while the switch is away")
    if isinstance(tor, GoBgp):
        tor.recover = True
        with silent(tor):  # its routes have to be there again before it says End-of-RIB
            tor.start()
            announce(tor)
    else:
        tor.start()

    def forwarding() -> bool:
        assert kept(routed), "we lost a route when the switch came back"
        return routed.established(TOR4, TOR6)

    wait_for(forwarding, 45, "the sessions are up again", state=routed.sessions)
    wait_for_routes(routed, tor)
    wait_for(
        lambda: all(family["stale"] == 0 for row in routed.neighbors().values() for family in row["families"].values()),
        SOON,
        "nothing is stale any more",
        state=routed.neighbors,
    )


def test_what_a_switch_does_not_announce_again_goes_with_its_end_of_rib(lab: Lab) -> None:
    routed, tor = running(lab, "bird", restartable=True)
    tor.kill()
    wait_for(lambda: not routed.established(TOR4), SOON, "the session is seen to be down", state=routed.sessions)
    assert NET4 in routed.kernel_routes()
    tor.config = tor.config.replace(f"route {NET4} blackhole;", "route 198.51.100.0/24 blackhole;")
    tor.start()
    wait_for(
        lambda: "198.51.100.0/24" in routed.kernel_routes() and NET4 not in routed.kernel_routes(),
        45,
        "the new network is in the kernel and the old one gone",
        state=routed.kernel_routes,
    )


def test_a_session_that_ends_without_restart_takes_its_routes(lab: Lab) -> None:
    """A session ended with Cease/2 is no restart: nothing is kept."""
    routed, tor = running(lab, "bird")
    tor.ctl("disable", "node4")
    wait_for(lambda: NET4 not in routed.kernel_routes(), SOON, "the route is gone", state=routed.kernel_routes)
    row = routed.neighbors()[TOR4]
    assert "dministrative" in row["lastDown"], row["lastDown"]
    assert NET6 in routed.kernel_routes(ipv6=True), "the other session is untouched"
    tor.ctl("enable", "node4")
    wait_for_sessions(routed, tor, RECONNECT)
    wait_for_routes(routed, tor)


def test_sighup_changes_what_may_change_and_no_session(lab: Lab) -> None:
    routed, _ = running(lab, "bird")
    counts = {address: row["establishedCount"] for address, row in routed.neighbors().items()}
    routed.configure(log={"level": "warning"}, kernel={"table": 100})
    routed.processes[0].signal(signal.SIGHUP)
    wait_for(
        lambda: any("kernel" in text for text in routed.problems()),
        SOON,
        "the refused key is named",
        state=routed.problems,
    )
    assert {address: row["establishedCount"] for address, row in routed.neighbors().items()} == counts
    assert routed.established(TOR4, TOR6)
