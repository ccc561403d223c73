"""What is written for a node, and for a cluster that has nothing yet."""

from __future__ import annotations

from typing import Any

import pytest

from routed.errors import ConfigError
from routed.model.resources import Cidr, JsonObject, Resource
from routed.model.schema import parse_manifest
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.plan.autodetect import Detected
from routed.plan.registration import ClusterDefaults, Registration, wanted_resources

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
FOUND = {V4: Detected(parse_address("10.0.0.1"), 24, "eth0"), V6: Detected(parse_address("fd00::1"), 64, "eth0")}
POOLS = {V4: Cidr(*parse_prefix("10.65.0.0/16")), V6: Cidr(*parse_prefix("fd65::/64"))}
CLUSTER = ClusterDefaults(64999, POOLS, encapsulation="VXLANCrossSubnet", nat_outgoing=True)
REGISTRATION = Registration(
    "n1", as_number=64513, cluster_id=0xF4000001, labels={"rack": "a"}, orchestrator="k8s", cluster=CLUSTER
)


def read(manifests: list[JsonObject]) -> list[Resource]:
    return [parse_manifest(manifest) for manifest in manifests]


def specs(manifests: list[JsonObject]) -> dict[str, Any]:
    return {f"{one['kind']} {one['metadata']['name']}": one["spec"] for one in manifests}  # type: ignore[index,call-overload]


def test_a_cluster_from_nothing() -> None:
    made = specs(wanted_resources(REGISTRATION, FOUND, ()))
    assert list(made) == [
        "BGPConfiguration default", "IPPool default-ipv4-ippool", "IPPool default-ipv6-ippool", "Node n1",
    ]  # fmt: skip
    assert made["BGPConfiguration default"] == {"asNumber": 64999}
    pool = {"ipipMode": "Never", "vxlanMode": "CrossSubnet", "natOutgoing": True, "nodeSelector": "all()"}
    assert made["IPPool default-ipv4-ippool"] == {"cidr": "10.65.0.0/16", "blockSize": 26, **pool}
    assert made["IPPool default-ipv6-ippool"] == {"cidr": "fd65::/64", "blockSize": 122, **pool}
    assert made["Node n1"] == {
        "bgp": {
            "ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64", "asNumber": 64513,
            "routeReflectorClusterID": "244.0.0.1",
        },
        "addresses": [
            {"address": "10.0.0.1/24", "type": "CalicoNodeIP"}, {"address": "fd00::1/64", "type": "CalicoNodeIP"},
        ],
        "orchRefs": [{"nodeName": "n1", "orchestrator": "k8s"}],
    }  # fmt: skip


def test_twice_is_once() -> None:
    made = wanted_resources(REGISTRATION, FOUND, ())
    assert wanted_resources(REGISTRATION, FOUND, read(made)) == []


def test_what_somebody_wrote_stays() -> None:
    there: list[JsonObject] = [
        {
            "apiVersion": "projectcalico.org/v3", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"rack": "b", "zone": "x"}, "annotations": {"note": "mine"}},
            "spec": {
                "bgp": {"ipv4Address": "10.9.9.9/24", "asNumber": 64600, "ipv4IPIPTunnelAddr": "10.65.0.1"},
                "ipv4VXLANTunnelAddr": "10.65.0.0", "addresses": [{"address": "10.7.7.7", "type": "InternalIP"}],
            },
        },
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "mine"},
         "spec": {"cidr": "10.1.0.0/16"}},
    ]  # fmt: skip
    plain = Registration("n1", labels={"rack": "a"}, cluster=ClusterDefaults(pools=POOLS))
    made = wanted_resources(plain, {V4: FOUND[V4]}, read(there))
    assert [one["kind"] for one in made] == ["BGPConfiguration", "IPPool", "Node"]  # a pool of the other family only
    node: Any = made[2]
    assert node["metadata"] == {**there[0]["metadata"], "labels": {"rack": "a", "zone": "x"}}  # type: ignore[dict-item]
    assert node["spec"]["bgp"] == {
        "ipv4Address": "10.0.0.1/24", "asNumber": 64600, "ipv4IPIPTunnelAddr": "10.65.0.1",
    }  # fmt: skip
    assert node["spec"]["ipv4VXLANTunnelAddr"] == "10.65.0.0"
    assert [each["address"] for each in node["spec"]["addresses"]] == ["10.0.0.1/24", "10.7.7.7"]


def test_another_node_with_the_address_is_no_place_for_ours() -> None:
    other = read(wanted_resources(Registration("n2", cluster=ClusterDefaults()), {V6: FOUND[V6]}, ()))
    with pytest.raises(ConfigError, match="Node n2 has the address fd00::1"):
        wanted_resources(REGISTRATION, FOUND, other)


def test_a_pool_around_the_node_itself_is_refused() -> None:
    around = Registration("n1", cluster=ClusterDefaults(pools={V4: Cidr(*parse_prefix("10.0.0.0/8"))}))
    with pytest.raises(ConfigError, match=r"10\.0\.0\.0/8 holds this node's own address 10\.0\.0\.1.*ipv4Pool"):
        wanted_resources(around, FOUND, ())
