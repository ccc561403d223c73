"""Network policies that are found right without their manifests being made."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routed.errors import ConfigError
from routed.model.kubernetes import KubernetesNetworkPolicy
from routed.model.paths import Layout, encode, plain_manifest, read_text
from routed.model.policies import NetworkPolicy
from routed.model.resources import JsonObject, JsonValue, Resource, Unread, kept_manifest
from routed.model.schema import parse_manifest, parse_stored
from routed.model.unread_policies import plain_kubernetes_policy, plain_policy
from tests.model.test_unread import octets

_METADATA: Mapping[str, JsonValue] = {
    "name": "knp.default.web", "namespace": "production", "uid": "4b6f2c5e", "creationTimestamp": "2026-01-01T00:00:00Z",
    "resourceVersion": "7", "labels": {"app": "web"}, "annotations": {"who": "calico"},
}  # fmt: skip
CALICO: Mapping[str, JsonValue] = {
    "kind": "NetworkPolicy",
    "apiVersion": "projectcalico.org/v3",
    "metadata": _METADATA,
    "spec": {
        "tier": "default", "order": 1000, "selector": "app == 'web'", "serviceAccountSelector": "", "types": ["Ingress"],
        "ingress": [
            {
                "action": "Allow", "ipVersion": 4, "protocol": "TCP", "metadata": {"annotations": {"a": "b"}},
                "source": {"selector": "app == 'db'", "namespaceSelector": "all()", "notSelector": "has(x)"},
                "destination": {"ports": [80, "8000:9000", "http"], "notPorts": [81]},
            },
            {"action": "Deny", "source": {"nets": ["10.1.2.3/8", "192.0.2.1"], "notNets": ["10.1.0.0/16"]}},
        ],
        "egress": [{"action": "Pass", "ipVersion": 6, "notProtocol": "UDP", "destination": {"nets": ["fd00::/8"]}}],
    },
}  # fmt: skip
KUBERNETES: Mapping[str, JsonValue] = {
    "kind": "NetworkPolicy",
    "apiVersion": "networking.k8s.io/v1",
    "metadata": {**_METADATA, "name": "web"},
    "spec": {
        "podSelector": {
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["front", "back"]}, {"key": "x", "operator": "Exists"},
                {"key": "y", "operator": "DoesNotExist"}, {"key": "z", "operator": "NotIn", "values": ["a"]},
            ],
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [{"podSelector": {}, "namespaceSelector": {"matchLabels": {"team": "a"}}}, {"podSelector": {}}],
                "ports": [{"port": 80, "protocol": "TCP"}, {"port": 8000, "endPort": 9000}, {"port": "http"}],
            },
        ],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"protocol": "UDP"}]}],
    },
}  # fmt: skip

_OTHER = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 5), st.sampled_from([0, 65535, 65536, 80.0, 1e400, 1e301, 6, 17, 90]),
    st.sampled_from(["", "-", "TCP", "tcp", "6", "ICMP", "ICMPv6", "SCTP", "Allow", "allow", "Ingress", "In", "Exists"]),
    st.sampled_from(["10.64.1.5", "10.64.1.0/24", "010.0.0.1/32", "fd00::1", "fd00::/129", "10.0.0.0/7"]),
    st.sampled_from(["a b", "Production", "x" * 64, "\ud800", "a == 'b'", "a ==", "all()", "9000:8000", "80", "a:b"]),
    st.just(["10.64.1.5"]), st.just([]), st.just({}), st.just([""]), st.just([{}]), st.just([None]), st.just(["Egress"]),
    st.just({"a b": "c"}), st.just({"app": "b c"}), st.just({"app": 1}), st.just({"projectcalico.org/metadata": "{}"}),
    st.just([80, "http"]), st.just([{"action": "Allow"}]), st.just({"matchLabels": {"a": "b"}}),
    st.just({"ports": [1]}), st.just({"names": ["a"]}), st.just({"cidr": "10.0.0.0/8"}),
)  # fmt: skip
_EXTRA = (
    "unknownField", "deletionTimestamp", "performanceHints", "icmp", "http", "services", "serviceAccounts", "notPorts",
    "ports", "status", "namespaceSelector", "ipBlock", "endPort", "notICMP", "types", "policyTypes", "annotations", "except",
)  # fmt: skip


@st.composite
def _changed(draw: st.DrawFn) -> JsonObject:
    """A policy with up to three things other than they should be, or just otherwise."""
    made = copy.deepcopy(dict(draw(st.sampled_from([CALICO, KUBERNETES]))))
    for _ in range(draw(st.integers(0, 3))):
        target: JsonValue = made
        while isinstance(target, (dict, list)) and target:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            key = draw(st.sampled_from([*keys, *(_EXTRA if isinstance(target, dict) else ())]))
            inner = target.get(key) if isinstance(target, dict) else target[key]  # type: ignore[index, arg-type]
            if not inner or not isinstance(inner, (dict, list)) or draw(st.integers(0, 3)) == 0:
                if key in keys and draw(st.booleans()):
                    del target[key]  # type: ignore[arg-type]
                else:
                    target[key] = copy.deepcopy(draw(_OTHER))  # type: ignore[index, call-overload]
                break
            target = inner
    return made


@settings(max_examples=400)
@given(_changed())
def test_what_is_found_right_is_what_the_reader_reads_and_the_reader_takes_it(manifest: JsonObject) -> None:
    text = octets(manifest)
    found = plain_manifest(manifest, text)
    if found is None:
        return
    whole = parse_manifest(json.loads(text))
    assert type(whole) in (NetworkPolicy, KubernetesNetworkPolicy) and isinstance(found, Unread)
    for field in dataclasses.fields(whole):
        assert getattr(found, field.name) == getattr(whole, field.name), field.name
        assert type(getattr(found, field.name)) is type(getattr(whole, field.name)), field.name
    assert found == whole and whole == found and hash(found) == hash(whole)
    assert found.says_the_same(whole) and whole.says_the_same(found)
    assert json.loads(found.manifest_text()) == whole.manifest


@pytest.mark.parametrize(("manifest", "read"), [(CALICO, plain_policy), (KUBERNETES, plain_kubernetes_policy)])
def test_an_ordinary_policy_keeps_its_octets_only(
    manifest: Mapping[str, JsonValue], read: Callable[[bytes], Resource | None]
) -> None:
    found = read(octets(dict(manifest)))
    assert found is not None and kept_manifest(found) == octets(dict(manifest)) and found.manifest == manifest
    assert found == parse_manifest(dict(manifest)) and found != read(octets({**manifest, "metadata": {"name": "b"}}))
    changed = dataclasses.replace(found, name="other")
    assert changed.name == "other" and changed.manifest == manifest and changed != found
    assert read_text(found.key, found.manifest_text()) == found
    for wrong in (b"{}", b"[", octets(dict(manifest)).replace(b'"spec":', b'"spec" :\n')):
        assert read(wrong) is None


@pytest.mark.parametrize("stored_as", ["web", "default.web", "knp.default.web"])
def test_a_policy_of_an_etcd_is_found_under_each_of_its_names(stored_as: str) -> None:
    manifest = {**CALICO, "metadata": {**_METADATA, "name": stored_as}}
    path = Layout().resources + f"networkpolicies/production/{stored_as}"
    decoded = Layout().decode(path, octets(manifest))
    assert decoded is not None and isinstance(decoded.resource, Unread)
    name = stored_as.removeprefix("default.")
    assert decoded.resource.name == name == decoded.resource.manifest["metadata"]["name"]  # type: ignore[call-overload, index]
    assert decoded.resource == parse_stored({**manifest, "metadata": {**_METADATA, "name": name}})
    assert json.loads(encode(decoded.resource, path))["metadata"]["name"] == stored_as


def test_the_name_in_an_annotation_is_for_the_reader() -> None:
    said = json.dumps({"name": "of-people"})
    manifest = {**CALICO, "metadata": {**_METADATA, "annotations": {"projectcalico.org/metadata": said}}}
    assert plain_policy(octets(manifest)) is None
    decoded = Layout().decode(Layout().resources + "networkpolicies/production/knp.default.web", octets(manifest))
    assert decoded is not None and decoded.resource.name == "of-people"


@pytest.mark.parametrize(
    ("field", "value"),
    [("tierr", "a"), ("selector", "a =="), ("order", "1"), ("types", ["In"]), ("ingress", [{"action": "Maybe"}])],
)
def test_what_is_wrong_is_told_by_the_reader(field: str, value: JsonValue) -> None:
    spec = CALICO["spec"]
    assert isinstance(spec, dict)
    manifest: JsonObject = {**CALICO, "spec": {**spec, field: value}}
    with pytest.raises(ConfigError, match=field):
        Layout().decode(Layout().resources + "networkpolicies/production/knp.default.web", octets(manifest))
