"""What a change of resources does to sessions: reset, live, nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest

from routed.bgp.neighbor import NeighborConfig
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.plan.diff import diff, reset_reason
from routed.plan.types import NextHopMode, PeerChange, PeerPlan, Plan, PlanDelta
from routed.rib.filters import Action, RouteFilter, Rule
from routed.rib.path import SourceKind

if TYPE_CHECKING:
    from tests.plan.conftest import Scenario

Make = Callable[..., "Scenario"]

V4 = Family.IPV4_UNICAST
SESSION = NeighborConfig(
    name="Node_172_16_0_1", address=b"\xac\x10\0\1", port=179, local_address=b"\x0a\0\0\1", local_as=64512, peer_as=65001,
    router_id=1, passive=False, families=(V4,),
)  # fmt: skip
PEER = PeerPlan(
    name=SESSION.name, session=SESSION, kind=SourceKind.EBGP, cluster_id=0, next_hop_mode=NextHopMode.AUTO,
    allowed_own_as=0, import_filter={V4: RouteFilter("", V4)}, export_filter={V4: RouteFilter("", V4, export=True)}, why="",
)  # fmt: skip
REJECT = RouteFilter("", V4, (Rule(Action.REJECT, "no"),))

LIVE = [
    ({"import_filter": {V4: REJECT}}, PeerChange.IMPORT),
    ({"allowed_own_as": 1}, PeerChange.IMPORT),
    ({"export_filter": {V4: REJECT}}, PeerChange.EXPORT),
    ({"next_hop_mode": NextHopMode.SELF}, PeerChange.EXPORT),
    ({"kind": SourceKind.IBGP_CLIENT}, PeerChange.ROLE),
    ({"cluster_id": 1}, PeerChange.ROLE),
    ({"session": replace(SESSION, passive=True)}, PeerChange.SESSION),
    ({"session": replace(SESSION, keepalive_time=5)}, PeerChange.SESSION),
    ({"session": replace(SESSION, restart_time=60)}, PeerChange.SESSION),
    ({"next_hop_mode": NextHopMode.KEEP, "allowed_own_as": 1}, PeerChange.IMPORT | PeerChange.EXPORT),
]
RESET = [
    ({"session": replace(SESSION, peer_as=65002)}, "peer as 65001 -> 65002"),
    ({"session": replace(SESSION, local_as=64513)}, "local as 64512 -> 64513"),
    ({"session": replace(SESSION, router_id=2)}, "router id 0.0.0.1 -> 0.0.0.2"),
    ({"session": replace(SESSION, local_address=b"")}, "local address 10.0.0.1 -> any"),
]


def plan(peer: PeerPlan) -> Plan:
    return Plan(peers={peer.name: peer})


@pytest.mark.parametrize(("change", "expected"), LIVE)
def test_fields_that_apply_live(change: dict[str, object], expected: PeerChange) -> None:
    changed = replace(PEER, **change)  # type: ignore[arg-type]
    assert diff(plan(PEER), plan(changed)) == PlanDelta(changed={PEER.name: expected})


@pytest.mark.parametrize(("change", "reason"), RESET)
def test_fields_that_reset(change: dict[str, object], reason: str) -> None:
    changed = replace(PEER, **change)  # type: ignore[arg-type]
    assert diff(plan(PEER), plan(changed)) == PlanDelta(reset={PEER.name: reason})


def test_every_field_of_a_peer_is_settled() -> None:
    """A new field fails here until it is in LIVE, in RESET, or without effect."""
    settled = {name for change, _ in (*LIVE, *RESET) for name in change}
    assert settled | {"name", "why"} == {entry.name for entry in fields(PeerPlan)}


def test_equal_content_is_no_change_and_the_reason_neither() -> None:
    same = replace(PEER, import_filter={V4: RouteFilter("other name", V4)}, why="BGPPeer x")
    delta = diff(plan(PEER), plan(same))
    assert delta == PlanDelta() and not delta
    assert reset_reason(PEER, same) == ""


def test_peers_and_origins_come_and_go(scenario: Make) -> None:
    made = scenario()
    old = made.plan
    made.remove("Node", "kube-node-1").apply("""
        - {kind: BGPPeer, metadata: {name: tor}, spec: {peerIP: 172.16.0.1, asNumber: 65001}}
        - {kind: BlockAffinity, metadata: {name: a}, spec: {node: kube-master, cidr: 10.244.1.0/26}}
        - {kind: BlockAffinity, metadata: {name: b}, spec: {node: kube-master, cidr: 10.244.2.0/26}}
    """)
    new = made.plan
    delta = diff(old, new)
    assert delta
    assert (delta.added, delta.removed) == (("Global_172_16_0_1",), ("Mesh_10_192_0_3", "Mesh_fd5f__3"))
    assert list(delta.origins_set) == [parse_prefix("10.244.1.0/26"), parse_prefix("10.244.2.0/26")]
    assert (delta.origins_removed, delta.reset) == ((), {})
    back = made.remove("BlockAffinity", "a").plan
    assert diff(new, back).origins_removed == (parse_prefix("10.244.1.0/26"),)


def test_another_resource_for_the_same_peer_is_another_name() -> None:
    renamed = replace(PEER, name="Global_172_16_0_1", session=replace(SESSION, name="Global_172_16_0_1"), why="x")
    names = {renamed.name: PEER.name}
    assert diff(plan(PEER), plan(renamed)) == PlanDelta(changed={renamed.name: PeerChange.NAME}, renamed=names)
    other_as = replace(renamed, session=replace(renamed.session, peer_as=65002))
    assert diff(plan(PEER), plan(other_as)) == PlanDelta(reset={renamed.name: "peer as 65001 -> 65002"}, renamed=names)
    filtered = replace(renamed, import_filter={V4: REJECT}, session=replace(renamed.session, keepalive_time=5))
    assert diff(plan(PEER), plan(filtered)).changed == {
        renamed.name: PeerChange.NAME | PeerChange.SESSION | PeerChange.IMPORT
    }
    elsewhere = replace(renamed, session=replace(renamed.session, port=1790))
    assert diff(plan(PEER), plan(elsewhere)) == PlanDelta(removed=(PEER.name,), added=(renamed.name,))


def test_a_first_plan_is_all_added(scenario: Make) -> None:
    new = scenario().plan
    delta = diff(Plan(), new)
    assert delta.speaker_changed and delta.added == tuple(new.peers)


def test_becoming_a_reflector_resets_nobody_who_stays_a_peer(scenario: Make) -> None:
    made = scenario("- {kind: BGPPeer, metadata: {name: other}, spec: {peerIP: 172.16.0.9, asNumber: 64512}}")
    old = made.plan
    made.apply("""
        - kind: Node
          metadata: {name: kube-master}
          spec: {bgp: {ipv4Address: 10.192.0.2/16, routeReflectorClusterID: 224.0.0.1}}
    """)
    delta = diff(old, made.plan)
    assert delta.changed == {"Global_172_16_0_9": PeerChange.ROLE}
    assert (delta.added, delta.reset) == ((), {})
    assert set(delta.removed) == {"Mesh_10_192_0_3", "Mesh_fd5f__3", "Mesh_10_192_0_10"}


def test_filters_and_pools_are_soft(scenario: Make) -> None:
    made = scenario("""
        - {kind: BGPPeer, metadata: {name: tor}, spec: {peerIP: 172.16.0.1, asNumber: 65001, filters: [f]}}
        - {kind: BGPFilter, metadata: {name: f}, spec: {importV4: [{action: Reject, source: RemotePeers}]}}
    """)
    old = made.plan
    made.apply("- {kind: BGPFilter, metadata: {name: f}, spec: {importV4: [{action: Accept}]}}")
    new = made.plan
    assert diff(old, new) == PlanDelta(changed={"Global_172_16_0_1": PeerChange.IMPORT})
    made.apply("- {kind: IPPool, metadata: {name: p}, spec: {cidr: 10.244.0.0/16}}")
    pooled = made.plan
    assert diff(new, pooled) == PlanDelta(
        changed=dict.fromkeys(["Global_172_16_0_1", "Mesh_10_192_0_3", "Mesh_10_192_0_10"], PeerChange.EXPORT)
    )
    made.apply("- {kind: BGPFilter, metadata: {name: unused}, spec: {importV4: [{action: Accept}]}}")
    assert made.plan is pooled
