"""What a call asks for: read from its environment and configuration, or refused with the specification's code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from routed.cni.call import Request, handle_of, parse_request
from routed.cni.protocol import Call
from routed.cni.results import Attached, format_result
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
        ({"prevResult": {"ips": [5]}}, 6, r"prevResult.ips\[0\]: must be an object"),
        ({"prevResult": {"ips": [{"address": "foo"}]}}, 7, r"prevResult.ips\[0\].address: 'foo' is no address"),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1/24", "interface": "0"}]}},
            6,
            r"prevResult.ips\[0\].interface: must be a number",
        ),
        (
            {"prevResult": {"ips": [{"address": "10.0.0.1/24", "interface": 1}], "interfaces": [{"name": "a"}]}},
            7,
            r"prevResult.ips\[0\].interface: 1 is the place of none of prevResult.interfaces",
        ),
        ({"prevResult": {"ips": [{"address": "10.0.0.1"}]}}, 7, r"prevResult.ips\[0\].address: '10.0.0.1' has no length"),
        ({"prevResult": {"interfaces": [{}]}}, 6, r"prevResult.interfaces\[0\]: must be an object with a name"),
        ({"prevResult": {"routes": [{"dst": 7}]}}, 7, r"prevResult.routes\[0\].dst: 7 is no address"),
        ({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}}, 7, "ipam.type: 'host-local'"),
        ({"ipam": {"subnet": "usePodCidr"}}, 2, "ipam.subnet: 'usePodCidr'"),
        ({"ipMasq": True}, 2, "natOutgoing"),
        ({"atach": "bridge"}, 7, "atach: unknown key; did you mean `attach`"),
        ({"sokcet": "/run/x.sock"}, 7, "did you mean `socket`"),
        ({"MTU": 1400}, 7, "did you mean `mtu`"),
        ({"container_settings": {"allow_ip_forwarding": True}}, 2, "allow_ip_forwarding"),
        ({"dns": []}, 7, "dns: must be an object"),
        ({"runtimeConfig": {ANNOTATIONS: {"qos.projectcalico.org/ingressBandwidth": "1M"}}}, 2, "plugin bandwidth"),
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


@pytest.mark.parametrize(
    "annotations", [{"hwAddr": "x"}, {"ipAddrs": "["}, {"floatingIPs": '["10.0.0.1"]'}, {"allowedSourcePrefixes": "7"}]
)
def test_a_check_is_about_what_was_made(annotations: dict[str, str]):
    """A pod's annotations can be changed while it lives; the pod is no worse for it. Its configuration is the runtime's."""
    environment = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/p", "CNI_IFNAME": "eth0"}
    body = {"cniVersion": "1.0.0", "name": "pods", "prevResult": {"ips": []}, **annotated(**annotations)}
    assert parse_request(Call(environment, json.dumps(body).encode())).command == "CHECK"
    with pytest.raises(CniError, match="attach") as raised:
        parse_request(Call(environment, json.dumps({**body, "attach": "x"}).encode()))
    assert raised.value.code == 7


def test_sources_beside_its_own():
    asked = request(**annotated(allowedSourcePrefixes='["10.0.0.0/8", "fd00:9::/64", "192.0.2.7"]'))
    assert [str(each) for each in asked.sources] == ["10.0.0.0/8", "fd00:9::/64", "192.0.2.7/32"]
    assert request().sources == ()


def test_dns_is_passed_on():
    """What a plugin before said; else the configuration's, with the runtime's word on it."""
    made = Attached("cali1", b"\xee" * 6, "eth0", b"\x02" * 6, (b"\x0a\x01\x00\x01",), 1500)

    def dns(**configuration: Any) -> Any:
        return format_result(request(**configuration), made)["dns"]

    own = {"nameservers": ["10.0.0.10"], "domain": "cluster.local"}
    assert dns() == {}
    assert dns(dns=own) == own
    said = {"servers": ["10.0.0.53"], "searches": ["shop.svc"], "options": ["ndots:5"]}
    assert dns(dns=own, runtimeConfig={"dns": said}) == {
        "nameservers": ["10.0.0.53"], "domain": "cluster.local", "search": ["shop.svc"], "options": ["ndots:5"],
    }  # fmt: skip
    before = {"nameservers": ["192.0.2.1"]}
    assert dns(dns=own, prevResult={"dns": before}) == before
    assert dns(dns=own, prevResult={"dns": {}}) == own


def test_handles():
    """The first interface's is Calico's; another one goes without it."""
    assert request().handle == handle_of("pods", "c1", "eth0") == "pods.c1"
    assert handle_of("pods", "c1", "net1") == "pods.c1.net1"


def test_what_others_put_into_a_configuration_is_theirs() -> None:
    """Keys of the specification, of runtimes, and of Calico's plugin, whose configuration may have been the pattern."""
    others = (
        "capabilities", "cni.dev/attachments", "cni.dev/valid-attachments", "datastore_type", "delegates", "deviceID",
        "disableCheck", "disableGC", "etcd_endpoints", "feature_control", "include_default_routes", "kubernetes",
        "loadOnlyInlinedPlugins", "log_file_path", "log_level", "nodename", "nodename_file_optional", "num_queues",
        "plugins", "policy", "readiness_gates",
    )  # fmt: skip
    assert request(**dict.fromkeys(others, "x")).bridge == ""


@pytest.mark.parametrize("name", ["", ".", "..", "all", "default", "a/b", "a b", "sixteen-letters1"])
def test_what_no_interface_can_be_called(name: str):
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/p", "CNI_IFNAME": name}
    body = {"cniVersion": "1.0.0", "name": "pods", "type": "routed-cni"}
    with pytest.raises(CniError, match="CNI_IFNAME: must be an interface's name") as raised:
        parse_request(Call(environment, json.dumps(body).encode()))
    assert raised.value.code == 4


def test_keys_of_the_specification_and_of_other_plugins_pass():
    others = {
        "cniVersions": ["1.0.0", "1.1.0"], "capabilities": {"portMappings": True}, "disableGC": True, "log_level": "info",
        "nodename": "n1", "kubernetes": {"kubeconfig": "/x"}, "policy": {"type": "k8s"}, "isGateway": True,
    }  # fmt: skip
    assert request(**others).network == "pods"
