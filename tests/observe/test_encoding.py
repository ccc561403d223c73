"""What a recording writes reads back as the same value, through JSON text."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.core.core import Core, CoreSettings
from routed.core.effects import Effect, Guard, Level
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind, Tunnel, TunnelKind, TunnelPeer
from routed.model.resources import JsonObject, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.net.prefixes import make_prefix
from routed.observe.encoding import (
    INPUTS,
    KERNEL_CHANGE,
    OCTETS,
    ROUTE_FAILURES,
    ROUTE_KEYS,
    UPDATE,
    Codec,
    effect_to_json,
    settings_from_json,
    settings_to_json,
)
from routed.observed import ForeignRoute, Interface, KernelChange, RouteFailure

families = st.sampled_from(Family)
indexes = st.integers(0, 2**31 - 1)
addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@st.composite
def route_keys(draw: st.DrawFn) -> tuple[Family, bytes]:
    family = draw(families)
    length = draw(st.integers(0, family.max_length))
    address = draw(st.binary(min_size=family.address_length, max_size=family.address_length))
    return family, make_prefix(address, length)


gateways = st.lists(
    st.builds(Gateway, address=addresses | st.just(b""), interface=indexes, onlink=st.booleans()), max_size=3
).map(tuple)
foreign_routes = st.builds(
    lambda key, metric, protocol, kind, legs: ForeignRoute(*key, metric, protocol, kind, legs),
    route_keys(),
    indexes,
    st.integers(0, 255),
    st.integers(0, 11),
    gateways,
)
interfaces = st.builds(
    Interface,
    index=indexes,
    name=st.text(max_size=15),
    up=st.booleans(),
    addresses=st.lists(st.tuples(addresses, st.integers(0, 128)), max_size=3).map(tuple),
)
changes = st.builds(
    KernelChange,
    full=st.booleans(),
    routes_added=st.lists(foreign_routes, max_size=3).map(tuple),
    routes_removed=st.lists(foreign_routes, max_size=3).map(tuple),
    interfaces=st.lists(interfaces, max_size=3).map(tuple),
    interfaces_removed=st.lists(indexes, max_size=3).map(tuple),
)
failures = st.builds(
    lambda key, errno, reason: RouteFailure(*key, errno, reason), route_keys(), st.integers(0, 133), st.text()
)


tunnels = st.builds(
    Tunnel,
    device=st.sampled_from(("vxlan.calico", "tunl0")),
    kind=st.sampled_from(TunnelKind),
    family=families,
    address=addresses,
    local=addresses,
    mac=st.binary(max_size=6),
    vni=indexes,
    port=indexes,
    mtu=indexes,
    peers=st.lists(
        st.builds(TunnelPeer, st.text(), addresses, addresses, addresses, st.binary(max_size=6)), max_size=2
    ).map(tuple),
)


def through_json(codec: Codec, value: object) -> object:
    return codec.from_json(json.loads(json.dumps(codec.to_json(value))))


@given(changes)
def test_kernel_changes(change: KernelChange) -> None:
    assert through_json(KERNEL_CHANGE, change) == change


@given(st.lists(failures, max_size=5).map(tuple), st.lists(route_keys(), max_size=5).map(tuple))
def test_route_failures(refused: tuple[RouteFailure, ...], cleared: tuple[tuple[Family, bytes], ...]) -> None:
    assert through_json(ROUTE_FAILURES, refused) == refused
    assert through_json(ROUTE_KEYS, cleared) == cleared


@given(st.binary())
def test_octets(data: bytes) -> None:
    assert through_json(OCTETS, data) == data


@given(
    st.builds(
        CoreSettings,
        node_name=st.text(min_size=1),
        router_id=st.none() | st.integers(1, 2**32 - 1),
        program_routes=st.booleans(),
        routes_found=st.frozensets(families),
        maximum_paths=st.integers(1, 64),
        own_workloads=st.booleans(),
    )
)
def test_settings(settings: CoreSettings) -> None:
    assert settings_from_json(json.loads(json.dumps(settings_to_json(settings)))) == settings


RESOURCES: list[JsonObject] = [
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": "a", "labels": {"rack": "1"}},
        "spec": {"bgp": {"ipv4Address": "10.0.0.1/24", "asNumber": 64512}},
        "status": {"podCIDRs": ["10.244.0.0/26"]},
    },
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BGPPeer",
        "metadata": {"name": "tor"},
        "spec": {"peerIP": "10.0.0.254", "asNumber": 65001, "nodeSelector": "rack == '1'", "filters": ["f"]},
    },
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BGPFilter",
        "metadata": {"name": "f"},
        "spec": {"exportV4": [{"action": "Accept", "matchOperator": "In", "cidr": "10.244.0.0/16"}]},
    },
]


@pytest.mark.parametrize("manifest", RESOURCES)
def test_resources(manifest: JsonObject) -> None:
    resource = parse_manifest(manifest)
    update = Update(resource.key, resource)
    assert through_json(UPDATE, update) == update


def test_a_resource_that_is_gone() -> None:
    update = Update(ResourceKey("Node", "a", "b"), None)
    assert through_json(UPDATE, update) == update


def test_every_input_of_a_core_is_known_with_its_parameters() -> None:
    inputs = {
        name: [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
        for name, method in inspect.getmembers(Core, inspect.isfunction)
        if not name.startswith("_") and "now" in inspect.signature(method).parameters
    }
    assert inputs == {name: [*(parameter for parameter, _ in parameters), "now"] for name, parameters in INPUTS.items()}


@st.composite
def any_effect(draw: st.DrawFn) -> object:
    kind: Any = draw(st.sampled_from(get_args(Effect)))
    routes = st.none() | st.builds(KernelRoute, kind=st.sampled_from(RouteKind), gateways=gateways)
    batch = st.builds(lambda key, route: RouteBatch(key[0], [key[1]], route), route_keys(), routes)
    values: dict[str, st.SearchStrategy[Any]] = {
        "conn": indexes,
        "port": indexes,
        "remote": addresses,
        "local": addresses,
        "interface": st.text(),
        "batches": st.lists(batch, max_size=2).map(tuple),
        "families": st.lists(families).map(tuple),
        "level": st.sampled_from(Level),
        "subject": st.text(),
        "text": st.text(),
        "password": st.text(),
        "ttl_security": st.integers(0, 255),
        "addresses": st.lists(addresses, max_size=2).map(tuple),
        "peers": st.lists(
            st.builds(Guard, addresses, st.text(), st.integers(0, 9), st.integers(0, 255)), max_size=2
        ).map(tuple),
        "tunnels": st.lists(tunnels, max_size=2).map(tuple),
    }
    return kind(**{name: draw(values[name]) for name in kind.__match_args__})


@given(any_effect(), any_effect())
def test_different_effects_read_differently(one: Any, other: Any) -> None:
    assert (json.dumps(effect_to_json(one)) == json.dumps(effect_to_json(other))) == (one == other)
