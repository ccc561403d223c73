"""What a call asks for: read from its environment and configuration, or refused with the specification's code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from routed.cni.call import Request, handle_of, parse_request
from routed.cni.protocol import Call
from routed.errors import CniError
from routed.net.families import Family

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"


def request(**configuration: Any) -> Request:
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/p", "CNI_IFNAME": "eth0"}
    body = {"cniVersion": "1.0.0", "name": "pods", "type": "routed-cni", **configuration}
    return parse_request(Call(environment, json.dumps(body).encode()))


def annotated(**annotations: str) -> dict[str, Any]:
    return {
        "runtimeConfig": {ANNOTATIONS: {f"cni.projectcalico.org/{key}": value for key, value in annotations.items()}}
    }


def test_ranges_are_pools():
    ranges = [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00::/64"}, {"subnet": "10.2.0.0/16"}]]
    asked = request(runtimeConfig={"ipRanges": ranges}, ipam={"ipv4_pools": ["other"]})
    assert asked.pools == {V4: ("10.1.0.0/16", "10.2.0.0/16"), V6: ("fd00::/64",)}


@pytest.mark.parametrize(
    ("configuration", "code", "words"),
    [
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9"}]]}}, 2, "rangeStart"),
        ({"runtimeConfig": {"ipRanges": [{"subnet": "10.1.0.0/16"}]}}, 7, "list of lists"),
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.1/16"}]]}}, 7, "is no CIDR"),
        ({"runtimeConfig": {"ipRanges": [["10.1.0.0/16"]]}}, 7, "is no CIDR"),
        ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, 7, "nobody's"),
        ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, 7, "a group's"),
        ({"runtimeConfig": {"mac": "ee:ee:ee:ee:ee:ee"}}, 7, "gateway"),
        ({"runtimeConfig": {"ips": ["fd00::77%eth0"]}}, 7, "is no address"),
        ({"mtu": 1279, "ipam": {"assign_ipv6": "true"}}, 7, "too little for IPv6"),
        ({"args": {"cni": {"labels": [{"key": "a b", "value": "c"}]}}}, 7, "cannot be a label"),
        ({"args": {"cni": {"labels": [{"key": "a", "value": "c" * 64}]}}}, 7, "cannot be a label"),
        ({"prevResult": {"ips": 7}}, 6, "prevResult.ips: must be a list"),
        ({"prevResult": {"dns": []}}, 6, "prevResult.dns: must be an object"),
        (annotated(ipFamilies='["IPv4", "IPv4"]'), 7, "twice"),
        (annotated(floatingIPs='["10.0.0.1"]'), 2, "floatingIPs"),
        (annotated(ipAddrsNoIpam='["10.0.0.1"]'), 2, "ipAddrsNoIpam"),
        (annotated(allowedSourcePrefixes='["10.0.0.1/8"]'), 7, "is no CIDR"),
        (annotated(allowedSourcePrefixes='"10.0.0.0/8"'), 7, "must be a list"),
        ({**annotated(allowedSourcePrefixes='["10.0.0.0/8"]'), "attach": "bridge"}, 2, "at a bridge"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_done_is_refused(configuration: dict[str, Any], code: int, words: str):
    with pytest.raises(CniError, match=words) as raised:
        request(**configuration)
    assert raised.value.code == code


@pytest.mark.parametrize("words", ["K8S_POD_NAME=-x", "K8S_POD_NAME=Web", "K8S_POD_NAME=web;K8S_POD_NAMESPACE=UP"])
def test_names_that_no_pod_has_are_refused_and_yet_may_go(words: str):
    environment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/p", "CNI_IFNAME": "eth0", "CNI_ARGS": words}
    body = json.dumps({"cniVersion": "1.0.0", "name": "pods", "mtu": 600, "ipam": {"assign_ipv6": True}}).encode()
    with pytest.raises(CniError, match="cannot be a") as raised:
        parse_request(Call({**environment, "CNI_COMMAND": "ADD"}, body))
    assert raised.value.code == 4
    assert parse_request(Call({**environment, "CNI_COMMAND": "DEL"}, body)).container_id == "c1"


@pytest.mark.parametrize(
    "configuration",
    [
        annotated(ipAddrs="nonsense"), annotated(hwAddr="x"), annotated(ipFamilies="[]"), annotated(floatingIPs="[]x"),
        annotated(allowedSourcePrefixes="7"), {"runtimeConfig": {"ips": "x", "mac": 7, "ipRanges": {}}},
        {"runtimeConfig": 7}, {"ipam": {"assign_ipv4": "false"}}, {"attach": "x"}, {"bridge": "eth0"}, {"mtu": -1},
        {"prevResult": []}, {"args": 7},
    ],
)  # fmt: skip
def test_a_del_needs_to_know_which_pod_and_nothing_else(configuration: dict[str, Any]):
    environment = {
        "CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0",
        "CNI_ARGS": "nonsense;IP=x;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
    }  # fmt: skip
    body = json.dumps({"cniVersion": "1.1.0", "name": "pods", **configuration}).encode()
    asked = parse_request(Call(environment, body))
    assert (asked.pod, asked.container_id, asked.handle) == (("shop", "web"), "c1", "pods.c1")
    collecting = parse_request(Call({"CNI_COMMAND": "GC"}, body))
    assert collecting.network == "pods"


def test_sources_beside_its_own():
    asked = request(**annotated(allowedSourcePrefixes='["10.0.0.0/8", "fd00:9::/64", "192.0.2.7"]'))
    assert [str(each) for each in asked.sources] == ["10.0.0.0/8", "fd00:9::/64", "192.0.2.7/32"]
    assert request().sources == ()


def test_handles():
    """The first interface's is Calico's; another one goes without it."""
    assert request().handle == handle_of("pods", "c1", "eth0") == "pods.c1"
    assert handle_of("pods", "c1", "net1") == "pods.c1.net1"
