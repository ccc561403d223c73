"""Workloads' endpoints that are found right without their manifests being made."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.errors import ConfigError
from routed.model.paths import Layout, encode
from routed.model.resources import JsonObject, JsonValue, kept_manifest
from routed.model.schema import parse_manifest, parse_stored
from routed.model.unread_endpoints import UnreadEndpoint, plain_endpoint
from routed.model.workloads import BRIDGE, WorkloadEndpoint

ENDPOINT: Mapping[str, JsonValue] = {
    "kind": "WorkloadEndpoint",
    "apiVersion": "projectcalico.org/v3",
    "metadata": {
        "name": "node--1-k8s-web--5d9-eth0", "namespace": "production", "uid": "4b6f2c5e",
        "creationTimestamp": "2026-01-01T00:00:00Z", "generateName": "web-", "resourceVersion": "7",
        "labels": {"app": "web", "projectcalico.org/namespace": "production"}, "annotations": {"who": "calico"},
    },
    "spec": {
        "orchestrator": "k8s", "node": "node-1", "containerID": "c7", "pod": "web-5d9", "endpoint": "eth0",
        "serviceAccountName": "web", "ipNetworks": ["10.64.1.5/32", "fd00::5/128"], "interfaceName": "cali12345678901",
        "profiles": ["kns.production", "ksa.production.web"], "mac": "66:e6:8a:12:34:56",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "hostPort": 8080}],
    },
}  # fmt: skip


def octets(value: JsonValue) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def endpoint(**spec: JsonValue) -> JsonObject:
    made = copy.deepcopy(dict(ENDPOINT))
    inner = made["spec"]
    assert isinstance(inner, dict)
    made["spec"] = inner | spec
    return made


_OTHER = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 5), st.sampled_from([0, 65535, 65536, 80.0, 1e400]),
    st.sampled_from(["", "-", "a-", "TCP", "tcp", "6", "ICMP", "10.64.1.5", "10.64.1.0/24", "010.0.0.1/32"]),
    st.sampled_from(["00-00-00-00-00-01", "0:0", "a b", "Production", "x" * 64, "\ud800", "k8s", "cni", "a/b", "eth0\xe9"]),
    st.just(["10.64.1.5"]), st.just([]), st.just({}), st.just([""]),
    st.just({"a b": "c"}), st.just({"app": "b c"}), st.just({"app": 1}), st.just({BRIDGE: "routed0"}),
    st.just([{"port": 80}]), st.just([{"port": 80, "protocol": "UDP"}]),
)  # fmt: skip
_EXTRA = (
    "unknownField", "deletionTimestamp", "workload", "ipv4Gateway", "ipNATs", "qosControls", "hostIP", "annotations",
    "allowSpoofedSourcePrefixes", "status",
)  # fmt: skip


@st.composite
def _changed(draw: st.DrawFn) -> JsonObject:
    """An endpoint with up to three things other than they should be, or just otherwise."""
    made = endpoint()
    for _ in range(draw(st.integers(0, 3))):
        target: JsonValue = made
        while isinstance(target, (dict, list)) and target:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            key = draw(st.sampled_from([*keys, *(_EXTRA if isinstance(target, dict) else ())]))
            inner = target.get(key) if isinstance(target, dict) else target[key]  # type: ignore[index, arg-type]
            if not inner or not isinstance(inner, (dict, list)) or draw(st.booleans()):
                if key in keys and draw(st.booleans()):
                    del target[key]  # type: ignore[arg-type]
                else:
                    target[key] = copy.deepcopy(draw(_OTHER))  # type: ignore[index, call-overload]
                break
            target = inner
    return made


@given(_changed())
def test_what_is_found_right_is_what_the_reader_reads_and_the_reader_takes_it(manifest: JsonObject) -> None:
    text = octets(manifest)
    found = plain_endpoint(text)
    if found is None:
        return
    whole = parse_stored(json.loads(text))
    assert type(whole) is WorkloadEndpoint
    for field in dataclasses.fields(WorkloadEndpoint):
        assert getattr(found, field.name) == getattr(whole, field.name), field.name
    assert found == whole and whole == found and hash(found) == hash(whole)
    assert found.says_the_same(whole) and whole.says_the_same(found)
    assert json.loads(found.manifest_text()) == whole.manifest


def test_an_ordinary_endpoint_keeps_its_octets_only() -> None:
    path = Layout().path(parse_manifest(endpoint()))
    decoded = Layout().decode(path, octets(endpoint()))
    assert decoded is not None and isinstance(decoded.resource, UnreadEndpoint)
    found = decoded.resource
    assert found.service_account_name == "web" and kept_manifest(found) == octets(endpoint())
    again = plain_endpoint(octets(endpoint()))
    other = plain_endpoint(octets(endpoint(serviceAccountName="db")))
    assert again is not None and other is not None
    assert found == again and found.says_the_same(again) and found != other and not found.says_the_same(other)
    assert found != "an endpoint" and found.manifest_text() == octets(endpoint())
    assert json.loads(encode(found))["spec"] == ENDPOINT["spec"]


def test_a_changed_copy_says_what_it_was_given() -> None:
    found = plain_endpoint(octets(endpoint()))
    assert found is not None
    changed = dataclasses.replace(found, node="node-2", manifest={"spec": {}})
    assert isinstance(changed, UnreadEndpoint) and changed.node == "node-2"
    assert changed.manifest == {"spec": {}} and changed.manifest_text() == b'{"spec":{}}'
    assert dataclasses.replace(found, pod="x").manifest == found.manifest


@pytest.mark.parametrize(
    "change",
    [
        {"node": "node-2"}, {"ipNetworks": ["10.0.0.0/24"]}, {"interfaceName": "x" * 16}, {"mac": "1"},
        {"ports": [{"port": 0, "protocol": "TCP"}]}, {"profiles": [""]}, {"pod": "-"},
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_the_reader(change: JsonObject) -> None:
    path = Layout().path(parse_manifest(endpoint()))
    with pytest.raises(ConfigError):
        Layout().decode(path, octets(endpoint(**change)))


def test_what_is_stored_elsewhere_than_it_says_is_refused() -> None:
    path = Layout().path(parse_manifest(endpoint())).replace("production", "staging")
    with pytest.raises(ConfigError, match="is not the name in the key"):
        Layout().decode(path, octets(endpoint()))
