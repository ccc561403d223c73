"""Nodes that are found right without their manifests being read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.errors import ConfigError
from routed.model import paths
from routed.model.paths import Layout, encode, read_text
from routed.model.resources import JsonObject, JsonValue, Node, Resource, kept_manifest
from routed.model.unread_nodes import plain_node
from tests.model.test_unread import OTHER, changed, octets

NODE: Mapping[str, JsonValue] = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "Node",
    "metadata": {
        "name": "node-1", "uid": "4b6f2c5e-0000-4000-8000-000000000001", "creationTimestamp": "2026-01-01T00:00:00Z",
        "resourceVersion": "7", "labels": {"kubernetes.io/hostname": "node-1", "rack": "r-1", "empty": ""},
        "annotations": {"projectcalico.org/kube-labels": "{}"},
    },
    "spec": {
        "bgp": {
            "asNumber": 64513, "ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64", "ipv4IPIPTunnelAddr": "10.244.0.1",
            "routeReflectorClusterID": "244.0.0.1",
        },
        "addresses": [{"address": "10.0.0.1/24", "type": "CalicoNodeIP"}, {"address": "10.0.0.1", "type": "InternalIP"}],
        "orchRefs": [{"nodeName": "node-1", "orchestrator": "k8s"}],
        "ipv4VXLANTunnelAddr": "10.244.0.2", "vxlanTunnelMACAddr": "66:e6:8a:12:34:56",
        "ipv6VXLANTunnelAddr": "fd00::2", "vxlanTunnelMACAddrV6": "66:e6:8a:12:34:57",
        "wireguard": {"interfaceIPv4Address": "10.244.0.3", "interfaceIPv6Address": "fd00::3"},
        "interfaces": [{"name": "eth0", "addresses": ["10.0.0.1", "fd00::1"]}],
    },
    "status": {"wireguardPublicKey": "jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY=", "podCIDRs": ["10.244.1.0/24"]},
}  # fmt: skip
NODE_PATH = "/calico/resources/v3/projectcalico.org/nodes/node-1"

_OTHER = st.one_of(
    OTHER, st.sampled_from([0, 64512, 1 << 32, "1.10", "64512", "0", "node-2", "Node-1", "x" * 64, "a\nb", "a/b/c", "-a"]),
    st.sampled_from(["10.0.0.1/24", "10.0.0.1/33", "10.0.0.1/024", "224.0.0.1/24", "0.0.0.0", "fe80::1%eth0"]),
    st.sampled_from(["66-e6-8a-12-34-56", "66:e6:8a:12:34", "projectcalico.org/v3", "crd.projectcalico.org/v1", "v1"]),
    st.sampled_from(["10.0.0.1/26", "10.0.0.0/26", "fd00::/64", "fd00::1/64", "::ffff:1.2.3.4", "BGPPeer"]),
    st.sampled_from([[{}], [None], {"a": "b"}, {"a b": "c"}, {"a": "b\n"}, {"": ""}]),
    st.sampled_from([{"a": "b\nc", "d\ne": "f"}, {"a\nb": "c\nd"}, {"a\nb": "c", "d": "e\nf"}]),
)  # fmt: skip


def _read(path: str, value: bytes) -> tuple[Resource | None, list[str]]:
    """A resource, and what is said of it."""
    try:
        found = Layout().decode(path, value)
    except ConfigError as error:
        return None, [str(error)]
    assert found is not None
    return found.resource, [str(each) for each in found.unknown]


@given(changed(NODE, _OTHER))
def test_a_node_that_is_found_right_is_what_the_reader_reads(node: JsonObject) -> None:
    value = octets(node)
    one, said = _read(NODE_PATH, value)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(paths, "plain_node", lambda *_: None)
        other, said_of_other = _read(NODE_PATH, value)
    assert one == other and other == one and said == said_of_other
    if one is not None and other is not None:
        assert isinstance(one, Node) and hash(one) == hash(other) and one.manifest == other.manifest == node
        assert all(getattr(one, field.name) == getattr(other, field.name) for field in dataclasses.fields(Node))
        assert one.says_the_same(other) and other.says_the_same(one)
        assert read_text(one.key, one.manifest_text()) == other == read_text(one.key, other.manifest_text())
        assert json.loads(encode(one)) == json.loads(encode(other))


def test_an_ordinary_node_keeps_its_octets_only() -> None:
    found = plain_node(octets(dict(NODE)), "node-1")
    assert found is not None and found.manifest == NODE and kept_manifest(found) == octets(dict(NODE))
    assert found.bgp is not None and found.bgp.as_number == 64513
    other = plain_node(octets(dict(NODE) | {"status": None}))
    assert other is not None and not found.says_the_same(other) and found != other
    again = plain_node(octets(dict(reversed(NODE.items()))))
    assert again is not None and found.says_the_same(again) and found == again
    renamed = dataclasses.replace(found, labels={})
    assert renamed.labels == {} and renamed.manifest == NODE and renamed != found
    for wrong in (b"{}", b"[", octets(dict(NODE)).replace(b'"spec":', b'"spec" :\n')):
        assert plain_node(wrong) is None
    assert plain_node(octets(dict(NODE)), "node-2") is None
