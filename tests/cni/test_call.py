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
        (annotated(ipFamilies='["IPv4", "IPv4"]'), 7, "twice"),
        (annotated(floatingIPs='["10.0.0.1"]'), 2, "floatingIPs"),
        (annotated(ipAddrsNoIpam='["10.0.0.1"]'), 2, "ipAddrsNoIpam"),
        (annotated(allowedSourcePrefixes='["10.0.0.0/8"]'), 2, "allowedSourcePrefixes"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_done_is_refused(configuration: dict[str, Any], code: int, words: str):
    with pytest.raises(CniError, match=words) as raised:
        request(**configuration)
    assert raised.value.code == code


def test_handles():
    """The first interface's is Calico's; another one goes without it."""
    assert request().handle == handle_of("pods", "c1", "eth0") == "pods.c1"
    assert handle_of("pods", "c1", "net1") == "pods.c1.net1"
