"""Keys and etcd paths: both ways, and what is none of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.model.paths import (
    block_affinity_manifest,
    block_affinity_path,
    block_affinity_prefix,
    kind_prefix,
    parse_block_affinity_path,
    parse_resource_path,
    resource_path,
)
from routed.model.resources import AffinityState, AffinityType, BlockAffinity, Cidr, ResourceKey
from routed.model.schema import KINDS, parse_manifest
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True).filter(
    lambda name: ".." not in name and ".-" not in name and "-." not in name
)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (ResourceKey("Node", "node-1"), "/calico/resources/v3/projectcalico.org/nodes/node-1"),
        (ResourceKey("BGPPeer", "tor-a"), "/calico/resources/v3/projectcalico.org/bgppeers/tor-a"),
        (ResourceKey("BGPFilter", "x"), "/calico/resources/v3/projectcalico.org/bgpfilters/x"),
        (ResourceKey("IPPool", "p"), "/calico/resources/v3/projectcalico.org/ippools/p"),
        (
            ResourceKey("BGPConfiguration", "node.a.b"),
            "/calico/resources/v3/projectcalico.org/bgpconfigurations/node.a.b",
        ),
    ],
)
def test_calico_s_paths(key: ResourceKey, path: str) -> None:
    assert resource_path(key) == path
    assert parse_resource_path(path) == key


@given(st.sampled_from(KINDS), NAMES)
def test_resource_round_trip(kind: str, name: str) -> None:
    key = ResourceKey(kind, name)
    assert parse_resource_path(resource_path(key)) == key
    assert resource_path(key).startswith(kind_prefix(kind))


@given(st.text("/calioresurv3pjt.gnd", max_size=60))
def test_other_paths_are_none(path: str) -> None:
    assert parse_resource_path(path) is None or path.startswith("/calico/resources/v3/projectcalico.org/")
    assert parse_block_affinity_path(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "/calico/resources/v3/projectcalico.org/networkpolicies/ns/x",
        "/calico/resources/v3/projectcalico.org/nodes/",
        "/calico/resources/v3/projectcalico.org/nodes/a/b",
        "/calico/v1/Ready",
        "/calico/ipam/v2/config",
        "/calico/ipam/v2/host/node-1",
        "/calico/ipam/v2/host/node-1/ipv4/block/10.244.1.0-33",
        "/calico/ipam/v2/host/node-1/ipv6/block/10.244.1.0-26",
        "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-26",
    ],
)
def test_not_ours(path: str) -> None:
    assert parse_resource_path(path) is None
    assert parse_block_affinity_path(path) is None
    assert block_affinity_manifest(path, {}) is None


@given(
    st.sampled_from(AffinityType),
    NAMES,
    st.one_of(
        st.tuples(st.just(Family.IPV4_UNICAST), st.binary(min_size=4, max_size=4), st.integers(0, 32)),
        st.tuples(st.just(Family.IPV6_UNICAST), st.binary(min_size=16, max_size=16), st.integers(0, 128)),
    ),
)
def test_affinity_round_trip(kind: AffinityType, node: str, block: tuple[Family, bytes, int]) -> None:
    family, address, length = block
    cidr = Cidr(family, make_prefix(address, length))
    affinity = BlockAffinity(name="x", node=node, cidr=cidr, type=kind)
    path = block_affinity_path(affinity)
    assert parse_block_affinity_path(path) == (kind, node, cidr)
    assert path.startswith(block_affinity_prefix(node)) is (kind is AffinityType.HOST)


@pytest.mark.parametrize(
    ("value", "state", "is_confirmed"),
    [
        (None, AffinityState.CONFIRMED, True),
        ({}, AffinityState.CONFIRMED, True),
        ({"state": "confirmed", "deleted": False}, AffinityState.CONFIRMED, True),
        ({"state": "pending", "deleted": False}, AffinityState.PENDING, False),
        ({"state": "confirmed", "deleted": True}, AffinityState.CONFIRMED, False),
    ],
)
def test_affinity_value(value: dict[str, str | bool] | None, state: AffinityState, is_confirmed: bool) -> None:
    manifest = block_affinity_manifest("/calico/ipam/v2/host/node-1/ipv4/block/10.244.1.0-26", value)
    affinity = parse_manifest(manifest)
    assert isinstance(affinity, BlockAffinity)
    assert affinity.key == ResourceKey("BlockAffinity", "node-1-10-244-1-0-26")
    assert affinity.cidr == Cidr(*parse_prefix("10.244.1.0/26"))
    assert (affinity.node, affinity.state, affinity.is_confirmed) == ("node-1", state, is_confirmed)
