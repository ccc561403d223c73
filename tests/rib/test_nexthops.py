"""Next hops: resolution, recursion, stability."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.attributes import AttributeSet
from routed.desired import Gateway, KernelRoute, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.rib.nexthops import NextHop, NextHopTable
from routed.rib.path import Path, Source, SourceKind

SOURCE = Source("peer", SourceKind.IBGP, 1, b"\x0a\x00\x00\x09")
ETH0 = Interface(2, "eth0", True, ((parse_address("10.0.0.1"), 24), (parse_address("fe80::1"), 64)))
ETH1 = Interface(3, "eth1", True, ((parse_address("10.0.1.1"), 24),))


def foreign(prefix: str, *via: tuple[str, int], metric: int = 0, protocol: int = 4, kind: int = 1) -> ForeignRoute:
    family, wire = parse_prefix(prefix)
    legs = tuple(sorted(Gateway(parse_address(a) if a else b"", i) for a, i in via))
    return ForeignRoute(family, wire, metric, protocol, kind, legs)


CONNECTED = foreign("10.0.0.0/24", ("", 2), protocol=2)
CONNECTED1 = foreign("10.0.1.0/24", ("", 3), protocol=2)
DEFAULT = foreign("0.0.0.0/0", ("10.0.0.254", 2), metric=100, protocol=16)


class Rib:
    """Our best routes, and the table under test."""

    def __init__(self, *routes: ForeignRoute) -> None:
        self.best: dict[tuple[Family, bytes], Path] = {}
        self.table = NextHopTable(self.carrier)
        self.table.apply(KernelChange(True, routes, (), (ETH0, ETH1)))

    def carrier(self, family: Family, prefix: bytes) -> Path | None:
        path = self.best.get((family, prefix))
        return path if path is not None and (path.next_hop is None or path.next_hop.resolves_directly) else None

    def learn(self, prefix: str, next_hop: str | None) -> list[NextHop]:
        family, wire = parse_prefix(prefix)
        if next_hop is None:
            self.best.pop((family, wire), None)
        else:
            self.best[family, wire] = Path(SOURCE, AttributeSet(), self.table.track(parse_address(next_hop)))
        return self.table.routes_changed(family, [wire])

    def track(self, address: str, interface: int = 0) -> NextHop:
        return self.table.track(parse_address(address), interface)


def via(address: str, interface: int) -> Gateway:
    return Gateway(parse_address(address), interface)


def test_connected_static_and_default():
    rib = Rib(CONNECTED, DEFAULT, foreign("10.9.0.0/16", ("10.0.0.5", 2), ("10.0.1.5", 3), metric=7))
    on_link = rib.track("10.0.0.2")
    assert (on_link.gateways, on_link.metric) == ((via("10.0.0.2", 2),), 0)
    assert on_link.text == "via 10.0.0.2 dev eth0 (10.0.0.0/24, connected)"
    assert rib.track("10.0.0.2") is on_link
    static = rib.track("10.9.9.9")
    assert (static.gateways, static.metric) == ((via("10.0.0.5", 2), via("10.0.1.5", 3)), 7)
    assert static.text == "via 10.0.0.5 dev eth0, via 10.0.1.5 dev eth1 (10.9.0.0/16, static)"
    far = rib.track("192.0.2.1")
    assert (far.gateways, far.metric) == ((via("10.0.0.254", 2),), 100)
    assert far.text == "via 10.0.0.254 dev eth0 (default route)"
    lost = rib.track("2001:db8::1")
    assert lost.gateways == () and lost.text == "unreachable: no route to 2001:db8::1"


def test_own_addresses_and_dead_ends_are_no_way():
    rib = Rib(CONNECTED, DEFAULT, foreign("10.5.0.0/16", kind=6), foreign("10.6.0.0/16", kind=9))
    assert rib.track("10.0.0.1").text == "unreachable: 10.0.0.1 is this node's own address"
    assert rib.track("10.5.0.1").text == "unreachable: the route to it is of type blackhole (10.5.0.0/16)"
    assert rib.track("10.6.0.1").text == "via 10.0.0.254 dev eth0 (default route)"  # a throw route is no answer


def test_link_local_needs_its_interface():
    rib = Rib()
    assert rib.track("fe80::2").text == "unreachable: fe80::2 is link-local and its interface is not known"
    peer = rib.track("fe80::2", 2)
    assert peer.gateways == (via("fe80::2", 2),) and peer.text == "via fe80::2 dev eth0 (on link)"
    assert rib.track("fe80::1", 2).gateways == ()
    assert rib.track("fe80::1", 3).gateways == (via("fe80::1", 3),)  # our address on another link
    assert rib.track("fe80::2", 9).text == "unreachable: interface 9 is gone"
    assert rib.table.apply(KernelChange(interfaces_removed=(2,))) == [peer]
    assert peer.text == "unreachable: interface 2 is gone"


def test_changes_are_told_once_and_only_where_they_matter():
    rib = Rib(CONNECTED, CONNECTED1)
    a, b = rib.track("10.0.0.2"), rib.track("10.0.1.2")
    down = Interface(2, "eth0", False, ETH0.addresses)
    assert rib.table.apply(KernelChange(interfaces=(down,))) == [a]
    assert a.gateways == () and a.text == "unreachable: eth0 is down (10.0.0.0/24)"
    assert rib.table.apply(KernelChange(interfaces=(down,))) == []
    assert rib.table.apply(KernelChange(interfaces=(ETH0,))) == [a]
    assert rib.table.apply(KernelChange(routes_added=(foreign("10.9.0.0/16", ("10.0.0.5", 2)),))) == []
    host = foreign("10.0.1.2/32", ("10.0.0.7", 2), metric=3)
    assert rib.table.apply(KernelChange(routes_added=(host,))) == [b]
    assert (b.gateways, b.metric) == ((via("10.0.0.7", 2),), 3)
    assert rib.table.apply(KernelChange(routes_removed=(host,))) == [b]
    mine = Interface(3, "eth1", True, (*ETH1.addresses, (parse_address("10.0.0.2"), 32)))
    assert rib.table.apply(KernelChange(interfaces=(mine,))) == [a]
    assert a.text == "unreachable: 10.0.0.2 is this node's own address"


def test_a_full_change_forgets_what_it_does_not_name():
    rib = Rib(CONNECTED, DEFAULT)
    a, far = rib.track("10.0.0.2"), rib.track("192.0.2.1")
    assert rib.table.apply(KernelChange(True, (CONNECTED,), (), (ETH0,))) == [far]
    assert a.gateways and not far.gateways


def test_the_lowest_metric_with_a_living_leg_counts():
    rib = Rib(foreign("0.0.0.0/0", ("10.0.0.254", 2), metric=5), foreign("0.0.0.0/0", ("10.0.1.254", 3), metric=9))
    far = rib.track("192.0.2.1")
    assert far.gateways == (via("10.0.0.254", 2),)
    rib.table.apply(KernelChange(interfaces=(Interface(2, "eth0", False),)))
    assert (far.gateways, far.metric) == ((via("10.0.1.254", 3),), 9)


def test_recursion_through_our_own_routes():
    rib = Rib(CONNECTED)
    loopback = rib.track("192.0.2.1")
    assert loopback.gateways == ()
    assert rib.learn("192.0.2.0/24", "10.0.0.2") == [loopback]
    assert loopback.gateways == (via("10.0.0.2", 2),)
    assert loopback.text == "via 10.0.0.2 dev eth0 (BGP route 192.0.2.0/24 through 10.0.0.2)"
    assert not loopback.resolves_directly
    assert rib.learn("203.0.113.0/24", "192.0.2.1") == []
    assert rib.track("203.0.113.1").gateways == (), "a route that itself leans on one of ours carries no next hop"
    # the change of a next hop others lead through moves them too
    assert loopback in rib.table.apply(KernelChange(interfaces=(Interface(2, "eth0", False),)))
    assert loopback.gateways == ()
    assert loopback in rib.table.apply(KernelChange(interfaces=(ETH0,)))
    assert rib.learn("192.0.2.0/24", None) == [loopback]


def test_a_foreign_route_goes_before_ours_of_the_same_length():
    rib = Rib(CONNECTED, DEFAULT)
    a = rib.track("10.0.0.2")
    assert rib.learn("10.0.0.0/24", "192.0.2.9") == []
    assert a.gateways == (via("10.0.0.2", 2),)
    assert rib.learn("10.0.0.2/32", "192.0.2.9") == [a]
    assert a.gateways == (via("10.0.0.254", 2),)


def test_a_peer_that_announces_its_own_next_hop_is_reached_as_before():
    rib = Rib(CONNECTED, DEFAULT)
    loopback = rib.track("192.0.2.1")
    for prefix in ("192.0.2.1/32", "192.0.2.0/24"):
        assert rib.learn(prefix, "192.0.2.1") == []
    assert loopback.text == "via 10.0.0.254 dev eth0 (default route)"


def test_two_next_hops_that_lead_to_each_other_fall_back_to_the_kernel_or_nothing():
    for routes, gateways in (((CONNECTED, DEFAULT), (via("10.0.0.254", 2),)), ((CONNECTED,), ())):
        rib = Rib(*routes)
        a, b = rib.track("192.0.2.1"), rib.track("198.51.100.1")
        rib.learn("192.0.2.0/24", "198.51.100.1")
        rib.learn("198.51.100.0/24", "192.0.2.1")
        assert (a.gateways, b.gateways) == (gateways, gateways)


def test_inside_our_own_block_only_what_is_in_use():
    rib = Rib(CONNECTED, DEFAULT)
    family, block = parse_prefix("10.1.0.0/26")
    own = Path(Source("self", SourceKind.LOCAL, 1, b""), AttributeSet(), None)
    own.kernel_route = KernelRoute(RouteKind.BLACKHOLE)
    rib.best[family, block] = own
    pod = rib.track("10.1.0.5")
    assert pod.text == "unreachable: 10.1.0.5 lies in our own block 10.1.0.0/26 and is not in use"
    rib.table.apply(KernelChange(routes_added=(foreign("10.1.0.5/32", ("", 3)),)))
    assert pod.gateways == (via("10.1.0.5", 3),)
    own.kernel_route = None  # a host route of ours that is announced but not programmed
    rib.best[family, parse_prefix("10.2.0.9/32")[1]] = own
    assert rib.track("10.2.0.9").text == "via 10.0.0.254 dev eth0 (default route)"


def test_watched_holds_what_covers_a_next_hop_and_forgets_the_unused():
    rib = Rib(CONNECTED)
    a, b = rib.track("10.0.0.2"), rib.track("192.0.2.1")
    watched = rib.table.watched[Family.IPV4_UNICAST]
    assert parse_prefix("10.0.0.2/32")[1] in watched and parse_prefix("0.0.0.0/0")[1] in watched
    assert parse_prefix("10.0.1.0/24")[1] not in watched
    rib.table.forget_unused({a})
    assert parse_prefix("192.0.2.1/32")[1] not in rib.table.watched[Family.IPV4_UNICAST]
    assert rib.track("10.0.0.2") is a and rib.track("192.0.2.1") is not b


ADDRESSES = ["10.0.0.2", "10.0.1.2", "192.0.2.1", "192.0.2.65", "198.51.100.1"]
ROUTES = [CONNECTED, CONNECTED1, DEFAULT, foreign("192.0.2.0/26", ("10.0.1.7", 3)), foreign("192.0.2.64/26", kind=6)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("kernel"), st.sampled_from(ROUTES), st.booleans()),
            st.tuples(st.just("link"), st.sampled_from([ETH0, ETH1]), st.booleans()),
        ),
        max_size=20,
    )
)
def test_told_changes_are_all_changes_and_order_does_not_matter(steps):
    """Next hops updated by the way are as those of a table that begins with the end state."""
    rib = Rib()
    hops = [rib.track(text) for text in ADDRESSES]
    told = {hop: (hop.gateways, hop.metric) for hop in hops}
    routes: dict[bytes, ForeignRoute] = {}
    links = {2: ETH0, 3: ETH1}
    for kind, what, present in steps:
        if kind == "kernel":
            routes.pop(what.prefix, None)
            if present:
                routes[what.prefix] = what
            change = KernelChange(routes_added=(what,)) if present else KernelChange(routes_removed=(what,))
        else:
            links[what.index] = Interface(what.index, what.name, present, what.addresses)
            change = KernelChange(interfaces=(links[what.index],))
        for hop in rib.table.apply(change):
            assert told[hop] != (hop.gateways, hop.metric)
            told[hop] = (hop.gateways, hop.metric)
    fresh = Rib()
    fresh.table.apply(KernelChange(True, tuple(routes.values()), (), tuple(links.values())))
    for text, hop in zip(ADDRESSES, hops, strict=True):
        again = fresh.track(text)
        assert (again.gateways, again.metric, again.text) == (hop.gateways, hop.metric, hop.text)
        assert told[hop] == (hop.gateways, hop.metric)
