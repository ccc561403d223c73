"""Who has which address, kept as endpoints and nodes come, change and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routed.ipam.holders import Holders, addresses_of
from routed.model.resources import Resource, ResourceKey
from routed.model.schema import parse_manifest

API = "projectcalico.org/v3"


def endpoint(name: int, node: str, addresses: frozenset[int]) -> Resource:
    networks = [f"10.65.0.{each}/32" for each in sorted(addresses)]
    spec = {"orchestrator": "cni", "node": node, "containerID": f"c{name}", "endpoint": "eth0", "ipNetworks": networks}
    metadata = {"name": f"{node}-cni-c{name}-eth0", "namespace": "default"}
    return parse_manifest({"apiVersion": API, "kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec})


def node(name: str, tunnel: int) -> Resource:
    spec = {"ipv4VXLANTunnelAddr": f"10.65.0.{tunnel}"}
    return parse_manifest({"apiVersion": API, "kind": "Node", "metadata": {"name": name}, "spec": spec})


ADDRESSES = st.integers(0, 4)
RESOURCES = st.one_of(
    st.builds(endpoint, st.integers(0, 2), st.sampled_from(["n1", "n2"]), st.frozensets(ADDRESSES, max_size=3)),
    st.builds(node, st.sampled_from(["n1", "n2"]), ADDRESSES),
)


@given(st.lists(st.tuples(RESOURCES, st.booleans()), max_size=20))
def test_it_says_who_has_what_after_any_history(history: list[tuple[Resource, bool]]) -> None:
    holders, there = Holders(), dict[ResourceKey, Resource]()
    for resource, exists in history:
        new = resource if exists else None
        holders.change(resource.key, there.get(resource.key), new)
        if new is None:
            there.pop(resource.key, None)
        else:
            there[resource.key] = new
    for number in range(5):
        address = bytes((10, 65, 0, number))
        having = {key: value for key, value in there.items() if address in addresses_of(value)}
        found = holders.who(address)
        assert (found is None) == (not having)
        assert holders.who(address, set(having)) is None
        for key, value in having.items():
            alone = holders.who(address, having.keys() - {key})
            assert alone is not None and alone.node == getattr(value, "node", value.name)


def test_what_it_says_is_for_people() -> None:
    holders = Holders()
    for each in (endpoint(1, "n1", frozenset({1})), node("n2", 2)):
        holders.change(each.key, None, each)
    assert [getattr(holders.who(bytes((10, 65, 0, number))), "what", "") for number in (1, 2, 3)] == [
        "WorkloadEndpoint default/n1-cni-c1-eth0", "a tunnel of node n2", "",
    ]  # fmt: skip
