"""Loc-RIB and Adj-RIB-Out together: whatever peers say and however slowly others listen, everybody ends up knowing what
the table says, and the table does not depend on the order in which it was told."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.bgp.attributes import AttributeSet
from routed.bgp.update import AttributePool, DecodeContext, UpdateDecoder
from routed.desired import Gateway
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.observed import ForeignRoute, Interface, KernelChange
from routed.rib import adj_out as adj_out_module
from routed.rib.adj_out import AdjRibOut, UpdateGroup
from routed.rib.decide import best
from routed.rib.export import ExportPolicy, NextHopMode
from routed.rib.filters import Action, PrefixMatch, RouteFilter, Rule
from routed.rib.nexthops import NextHopTable
from routed.rib.path import Path, Source, SourceKind
from routed.rib.table import AdjRibIn, FamilyRib

V4 = Family.IPV4_UNICAST
IMPORT_ALL = RouteFilter("all", V4)
EXPORT_ALL = RouteFilter("all", V4, export=True)
#: Export rules a peer may be moved to: they look at nothing, at the path, at the prefix, or let nothing out.
EXPORTS = [
    EXPORT_ALL,
    RouteFilter("paths", V4, [Rule(Action.REJECT, "70001", as_path_prefix=(70001,))], export=True),
    RouteFilter("long", V4, [Rule(Action.REJECT, "/16", (PrefixMatch(b"\0", 0, 16),))], export=True),
    RouteFilter("nothing", V4, export=True, default=False),
]
ETH0 = Interface(2, "eth0", True, ((parse_address("192.0.2.254"), 24),))
CONNECTED = ForeignRoute(V4, parse_prefix("192.0.2.0/24")[1], 0, 2, 1, (Gateway(b"", 2),))
PREFIXES = [parse_prefix(f"10.{index}.0.0/{16 + index % 3}")[1] for index in range(12)]


class Net:
    """A RIB with peers whose received state is tracked by decoding what they are sent."""

    def __init__(self, kinds: list[SourceKind], *, program: bool = True) -> None:
        self.rib = FamilyRib(V4, program_routes=program)
        self.next_hops = NextHopTable(lambda _family, _prefix: None)
        self.next_hops.apply(KernelChange(full=True, interfaces=(ETH0,), routes_added=(CONNECTED,)))
        self.pool = AttributePool()
        self.groups: dict[ExportPolicy, UpdateGroup] = {}
        self.counting: list[Iterator[None]] = []
        self.kernel: dict[bytes, object] = {}
        self.peers = [Peer(self, index, kind) for index, kind in enumerate(kinds)]

    def flush(self) -> None:
        changes = self.rib.take_changes()
        for group in self.groups.values():
            group.append(changes)
            group.trim()
        for route, prefixes in self.rib.take_kernel_changes():
            for prefix in prefixes:
                if route is None:
                    self.kernel.pop(prefix, None)
                else:
                    self.kernel[prefix] = route

    def drain(self) -> None:
        self.flush()
        for job in self.counting:
            for _ in job:
                pass
        self.counting = []
        for peer in self.peers:
            peer.listen(1 << 20)
            while peer.up and peer.out.has_output():
                peer.listen(1 << 20)

    def check(self) -> None:
        for peer in self.peers:
            if not peer.up:
                continue
            expected = {}
            for prefix in self.rib.table:
                best = self.rib.best(prefix)
                if best is not None and best.source is not peer.source:
                    encoded = peer.out.group.exported(prefix, best)
                    if encoded is not None:
                        expected[prefix] = encoded
            assert {prefix: encoded for prefix, (encoded, _) in peer.heard.items()} == expected
            assert peer.ends == 1, "End-of-RIB is said once in a session"
        assert self.kernel == {
            prefix: self.rib.kernel_route(prefix)
            for prefix in self.rib.table
            if self.rib.kernel_route(prefix) is not None
        }
        for peer in self.peers:
            epochs = [path.epoch for _, path in self.rib.announced(peer.adj_in)]
            assert peer.adj_in.count == len(epochs)
            assert peer.adj_in.stale == len(epochs) - epochs.count(peer.adj_in.epoch)
            best = sum(1 for prefix in self.rib.table if (path := self.rib.best(prefix)) and path.source is peer.source)
            assert sum(peer.source.prefixes_best.values()) == best
        for group in self.groups.values():
            told: dict[Source, int] = {}
            for prefix in self.rib.table:
                path = self.rib.best(prefix)
                if path is not None and group.exported(prefix, path) is not None:
                    told[path.source] = told.get(path.source, 0) + 1
            assert {source: count for source, count in group.advertised.items() if count} == told


class Peer:
    def __init__(self, net: Net, index: int, kind: SourceKind) -> None:
        self.net = net
        self.kind = kind
        self.source = Source(f"p{index}", kind, index + 1, bytes((192, 0, 2, index + 1)))
        self.adj_in = AdjRibIn(self.source, IMPORT_ALL)
        self.heard: dict[bytes, tuple[bytes, AttributeSet]] = {}
        self.up = False
        self.join()

    def join(self) -> None:
        self.up = True
        self.heard = {}
        self.ends = 0
        self.out = AdjRibOut(self.source, self.group(EXPORT_ALL))
        context = DecodeContext(True, self.kind is SourceKind.EBGP, frozenset({V4}))
        self.decoder = UpdateDecoder(context, pool=AttributePool())
        self.adj_in.new_epoch()

    def group(self, export_filter: RouteFilter) -> UpdateGroup:
        policy = ExportPolicy(
            family=V4,
            kind=self.kind,
            local_as=64512,
            cluster_id=1,
            local_address=parse_address("192.0.2.254"),
            next_hop_mode=NextHopMode.AUTO,
            four_octet_as=True,
            export_filter=export_filter,
        )
        self.net.flush()
        group = self.net.groups.get(policy)
        if group is None:
            group = self.net.groups[policy] = UpdateGroup(policy, self.net.rib)
            self.net.counting.append(group.count())
        return group

    def leave(self) -> None:
        self.up = False
        self.out.close()
        self.adj_in.new_epoch()
        for _ in self.net.rib.sweep(self.adj_in):
            pass

    def path(self, variant: int) -> Path:
        attrs = self.net.pool.intern(
            AttributeSet(
                next_hop=bytes((192, 0, 2, 100 + variant)),
                med=variant,
                local_pref=100 + variant % 2,
                as_path=b"\x02\x01" + (70000 + variant).to_bytes(4, "big"),
            )
        )
        path = self.adj_in.paths.get(attrs)
        if path is None:
            path = Path(self.source, attrs, self.net.next_hops.track(attrs.next_hop), self.adj_in.epoch)
            self.adj_in.paths[attrs] = path
            self.adj_in.next_hops.add(path.next_hop)  # type: ignore[arg-type]
            self.net.rib.refresh(path)
        return path

    def listen(self, limit: int) -> None:
        if not self.up:
            return
        data = self.out.take(limit)
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at + 16 : at + 18], "big")
            assert length <= 4096
            body = data[at + 19 : at + length]
            at += length
            update = self.decoder.decode(body)
            assert not update.findings
            self.ends += update.end_of_rib is not None
            for _, prefixes in update.withdrawn:
                for prefix in prefixes:
                    self.heard.pop(prefix, None)
            raw = body[4 + int.from_bytes(body[:2], "big") :][
                : int.from_bytes(body[2 + int.from_bytes(body[:2], "big") :][:2], "big")
            ]
            for reach in update.reach:
                for prefix in reach.prefixes:
                    self.heard[prefix] = (raw, reach.attrs)


KINDS = st.lists(st.sampled_from([SourceKind.EBGP, SourceKind.IBGP, SourceKind.IBGP_CLIENT]), min_size=2, max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("announce"),
            st.integers(0, 4),
            st.integers(0, 3),
            st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=6),
        ),
        st.tuples(
            st.just("withdraw"),
            st.integers(0, 4),
            st.just(0),
            st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=6),
        ),
        st.tuples(
            st.sampled_from(["leave", "join", "listen", "flush", "refresh", "lag", "link", "drain", "move"]),
            st.integers(0, 4),
            st.integers(0, 3),
            st.just([]),
        ),
    ),
    max_size=40,
)


@pytest.mark.parametrize("others", [False, True], ids=["the only path", "one of two"])
def test_a_session_that_ends_before_the_sweep_of_its_end_of_rib_takes_nothing_along(others: bool) -> None:
    """A peer is back, says all it has, and is gone again, at once: what it said is kept, what it did not say again goes."""
    net = Net([SourceKind.EBGP, SourceKind.EBGP])
    peer, other = net.peers
    again, not_again = PREFIXES[:2]
    if others:
        net.rib.announce(other.adj_in, other.path(1), [again, not_again])
    net.rib.announce(peer.adj_in, peer.path(0), [again, not_again])
    peer.adj_in.new_epoch()  # its session ends, graceful restart keeps what it had
    peer.adj_in.new_epoch()  # and is up again
    net.rib.announce(peer.adj_in, peer.path(0), [again])
    sweep = net.rib.sweep(peer.adj_in)  # End-of-RIB
    peer.adj_in.new_epoch()  # and it ends before anything is swept
    for _ in sweep:
        pass
    assert [prefix for prefix, _ in net.rib.announced(peer.adj_in)] == [again]
    assert (peer.adj_in.count, peer.adj_in.stale) == (1, 1)
    net.drain()
    net.check()


@settings(max_examples=120, deadline=None)
@given(KINDS, STEPS)
def test_everybody_hears_what_the_table_says(
    kinds: list[SourceKind], steps: list[tuple[str, int, int, list[bytes]]]
) -> None:
    net = Net(kinds)
    net.drain()  # everybody reads the group's log from here on; who joins or lags later has a queue of its own
    up = True
    for action, index, variant, prefixes in steps:
        peer = net.peers[index % len(net.peers)]
        if action == "announce" and peer.up:
            net.rib.announce(peer.adj_in, peer.path(variant), prefixes)
        elif action == "withdraw" and peer.up:
            net.rib.withdraw(peer.adj_in, prefixes)
        elif action == "leave" and peer.up:
            net.flush()
            peer.leave()
        elif action == "join" and not peer.up:
            net.flush()
            peer.join()
        elif action == "listen":
            peer.listen(100)
        elif action == "refresh" and peer.up:
            net.flush()
            peer.out.refresh()
        elif action == "move" and peer.up:
            net.flush()
            group = peer.group(EXPORTS[variant])
            if group is not peer.out.group:
                peer.out.move(group)
        elif action == "lag" and peer.up and peer.out.in_log:
            peer.out.leave_log()
        elif action == "link":
            up = not up
            connected = (CONNECTED,)
            changed = net.next_hops.apply(
                KernelChange(routes_added=connected) if up else KernelChange(routes_removed=connected)
            )
            net.rib.next_hops_changed(set(changed), [each.adj_in for each in net.peers])
        elif action == "flush":
            net.flush()
        elif action == "drain":
            net.drain()
    net.drain()
    net.check()


@settings(max_examples=60, deadline=None)
@given(KINDS, st.randoms(use_true_random=False))
def test_the_table_does_not_depend_on_the_interleaving(kinds: list[SourceKind], rng: random.Random) -> None:
    script = [
        [(rng.randrange(4), rng.sample(PREFIXES, 3), rng.random() < 0.3) for _ in range(rng.randrange(1, 6))]
        for _ in kinds
    ]
    results = []
    for _ in range(3):
        net = Net(kinds)
        queues = [list(each) for each in script]
        while any(queues):
            index = rng.choice([i for i, queue in enumerate(queues) if queue])
            variant, prefixes, withdrawn = queues[index].pop(0)
            peer = net.peers[index]
            if withdrawn:
                net.rib.withdraw(peer.adj_in, prefixes)
            else:
                net.rib.announce(peer.adj_in, peer.path(variant), prefixes)
            if rng.random() < 0.5:
                net.flush()
        net.drain()
        net.check()
        results.append(
            {
                prefix: (best.source.name, best.attrs.med, net.kernel.get(prefix))
                for prefix in net.rib.table
                if (best := net.rib.best(prefix)) is not None
            }
        )
    assert results[0] == results[1] == results[2]


def test_a_peer_too_far_behind_leaves_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adj_out_module, "LOG_LIMIT", 200)
    net = Net([SourceKind.EBGP, SourceKind.EBGP, SourceKind.EBGP])
    net.drain()
    speaker, listener, deaf = net.peers
    for variant in range(4):
        for prefix in PREFIXES:
            net.rib.announce(speaker.adj_in, speaker.path(variant), [prefix])
            net.flush()
            listener.listen(1 << 20)
    assert listener.out.in_log
    assert not deaf.out.in_log
    group = listener.out.group
    assert group.log_bytes <= 200
    assert len(deaf.out.take(1 << 20)) < 4 * len(PREFIXES) * 60, "what changed twice is said once"
    deaf.heard = {}
    deaf.out.refresh()
    net.drain()
    net.check()


TANGLED = ["20.1.1.0/24", "20.2.1.0/24", "20.3.1.0/24", "0.0.0.0/0"]
LEADING = ["20.1.1.7", "20.2.1.7", "20.3.1.7", "192.0.2.50"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(TANGLED), st.sampled_from(LEADING), st.sampled_from([100, 200])),
        max_size=9,
        unique_by=lambda route: route[:2],
    ),
    st.randoms(use_true_random=False),
)
def test_next_hops_through_our_own_routes_settle_and_do_not_depend_on_order(
    routes: list[tuple[int, str, str, int]], rng: random.Random
) -> None:
    """Routes whose next hops lie in one another: no order of arrival may make them flap, or end elsewhere."""
    ends = []
    for _ in range(3):
        rng.shuffle(routes)
        net = Net([SourceKind.EBGP, SourceKind.IBGP, SourceKind.IBGP])
        rib = net.rib

        def carrier(_family: Family, prefix: bytes, rib: FamilyRib = rib) -> Path | None:
            carriers = [p for p in rib.candidates(prefix) if p.next_hop is None or p.next_hop.resolves_directly]
            return best(carriers, maximum_paths=1).best if carriers else None

        net.next_hops._own_route = carrier
        rib.watched = net.next_hops.watched[V4]
        for index, prefix, next_hop, preference in routes:
            peer = net.peers[index]
            attrs = net.pool.intern(AttributeSet(next_hop=parse_address(next_hop), local_pref=preference))
            path = Path(peer.source, attrs, net.next_hops.track(attrs.next_hop), peer.adj_in.epoch)
            peer.adj_in.paths[attrs] = path
            peer.adj_in.next_hops.add(path.next_hop)  # type: ignore[arg-type]
            rib.refresh(path)
            rib.announce(peer.adj_in, path, [parse_prefix(prefix)[1]])
            for _turn in range(20):
                touched, rib.touched = rib.touched, set()
                changed = set(net.next_hops.routes_changed(V4, touched))
                rib.next_hops_changed(changed, [each.adj_in for each in net.peers])
                if not rib.touched and not changed:
                    break
            else:
                raise AssertionError("it does not settle")
        net.drain()
        net.check()
        ends.append(dict(net.kernel))
    assert ends[0] == ends[1] == ends[2]


def test_end_of_rib_comes_behind_everything_also_where_the_rules_change_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarting peer drops what it kept of ours when it hears End-of-RIB: it must have been told all by then."""
    monkeypatch.setattr(adj_out_module, "QUEUE_SLICE", 2)
    net = Net([SourceKind.EBGP, SourceKind.EBGP])
    speaker, listener = net.peers
    listener.leave()
    net.rib.announce(speaker.adj_in, speaker.path(0), PREFIXES)
    net.drain()
    listener.join()
    listener.listen(1 << 20)
    assert 0 < len(listener.heard) < len(PREFIXES)
    listener.out.move(listener.group(EXPORTS[2]))
    while not listener.ends:
        listener.listen(1 << 20)
    allowed = {prefix for prefix in PREFIXES if prefix[0] > 16}
    assert set(listener.heard) == allowed
