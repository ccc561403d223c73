"""What can still be told of a stored policy that cannot be read: whose it is, what it is for, in which directions.

Only the fields that say what a policy is for are read; a fault in its rules leaves them readable. Where even those cannot
be, `selector` is None, and every direction is meant. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from routed.errors import ConfigError
from routed.model.head import API_VERSION
from routed.model.kubernetes import KubernetesNetworkPolicy, calico_key, calico_policy
from routed.model.policies import GlobalNetworkPolicy, NetworkPolicy, Policy, PolicyType, Tier
from routed.model.resources import JsonObject, JsonValue, ResourceKey
from routed.model.schema import parse_manifest
from routed.model.selector import Selector
from routed.policy.scope import subjects
from routed.values import dataclass

_CALICO = (NetworkPolicy.kind, GlobalNetworkPolicy.kind)
_KUBERNETES_VERSION = "networking.k8s.io/v1"
_KUBERNETES_GROUPS = ("networking.k8s.io/", "extensions/")
"""Where it is and where it was, with the same fields."""
_STAGES = ("applyOnForward", "preDNAT", "doNotTrack")
_SCOPE = ("selector", "namespaceSelector", "serviceAccountSelector", "types", "tier", *_STAGES)
_KUBERNETES_SCOPE = ("podSelector", "policyTypes")


UNREADABLE = Tier(name="policies that cannot be read", order=float("-inf"))
"""Asked before all others: what cannot be read must not be overruled by what allows."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A policy that is stored and cannot be read."""

    key: ResourceKey
    """Of the policy that would be enforced."""
    reason: str
    selector: Selector | None
    types: frozenset[PolicyType]
    """Empty where it is not known."""
    apply_on_forward: bool = False
    pre_dnat: bool = False
    do_not_track: bool = False
    anywhere: bool = False
    """These three cannot be told."""

    @property
    def keeps_last(self) -> bool:
        """Nothing says what it is for: its last good version stays in force."""
        return self.selector is None and not self.key.namespace


@dataclass(frozen=True, slots=True)
class Refused:
    """A policy that cannot be read."""

    refusal: Refusal
    closing: Policy | None
    """What takes its place; None: its last good version stays, where there was one."""

    def told(self, was_good: bool) -> str:
        if self.closing is None:
            if was_good:
                return f"{self.refusal.reason}; its last good version stays"
            return f"{self.refusal.reason}; none of its versions was good, so it enforces nothing"
        return f"{self.refusal.reason}; until it is put right, what it selects is closed"


def closing_policy(refusal: Refusal) -> Policy:
    """What takes the place of a policy that cannot be read: it closes what that one is for."""
    key, selector = refusal.key, refusal.selector
    types = refusal.types or frozenset(PolicyType)
    if key.kind == GlobalNetworkPolicy.kind:
        return GlobalNetworkPolicy(
            name=key.name,
            tier=UNREADABLE.name,
            selector=selector,
            types=types,
            apply_on_forward=refusal.apply_on_forward,
            pre_dnat=refusal.pre_dnat,
            do_not_track=refusal.do_not_track,
        )
    return NetworkPolicy(name=key.name, namespace=key.namespace, tier=UNREADABLE.name, selector=selector, types=types)


def read_refusal(text: str, reason: str) -> Refusal | None:
    """What a manifest (JSON) that cannot be read is; None where it is no policy, or nobody can tell which."""
    try:
        manifest: JsonValue = json.loads(text) if text else None
    except RecursionError:
        return None
    if not isinstance(manifest, dict):
        return None
    kind, version, metadata = manifest.get("kind"), manifest.get("apiVersion"), manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        return None
    namespace = metadata.get("namespace")
    namespace = namespace if isinstance(namespace, str) and namespace else "default"
    spec = manifest.get("spec")
    readable = isinstance(spec, dict)
    spec = spec if isinstance(spec, dict) else {}
    of_kubernetes = isinstance(version, str) and version.startswith(_KUBERNETES_GROUPS)
    if kind == KubernetesNetworkPolicy.kind or (kind == NetworkPolicy.kind and of_kubernetes):
        key = calico_key(ResourceKey(KubernetesNetworkPolicy.kind, name, namespace))
        rules: JsonObject = {"egress": [{}]} if spec.get("egress") else {}
        fields: tuple[str, ...] = _KUBERNETES_SCOPE
        written_as = _KUBERNETES_VERSION
    elif kind in _CALICO:
        assert isinstance(kind, str)
        key = ResourceKey(kind, name, "" if kind == GlobalNetworkPolicy.kind else namespace)
        rules = {side: [{"action": "Deny"}] for side in ("ingress", "egress") if spec.get(side)}
        fields = _SCOPE
        written_as = API_VERSION
    else:
        return None
    if not readable:
        return Refusal(key, reason, None, frozenset())
    scope: JsonObject = {field: spec[field] for field in fields if field in spec}
    if not isinstance(scope.get("tier"), str):
        scope.pop("tier", None)  # when it is asked matters no more
    # whatever is wrong with the name, it says nothing of what it is for
    metadata = {"name": "unreadable", **({"namespace": key.namespace} if key.namespace else {})}
    types = "policyTypes" if fields is _KUBERNETES_SCOPE else "types"
    for left_out in ((), (types,), _STAGES, (types, *_STAGES)):
        tried = {field: value for field, value in scope.items() if field not in left_out}
        read = _read({**manifest, "metadata": metadata, "spec": {**tried, **rules}}, written_as)
        if read is None:
            continue
        found = Refusal(key, reason, subjects(read), frozenset() if types in left_out else read.types)
        if not isinstance(read, GlobalNetworkPolicy):
            return found
        return replace(
            found,
            apply_on_forward=read.apply_on_forward,
            pre_dnat=read.pre_dnat,
            do_not_track=read.do_not_track,
            anywhere="preDNAT" in left_out,
        )
    return Refusal(key, reason, None, frozenset())


def _read(manifest: Mapping[str, JsonValue], version: str) -> Policy | None:
    plain = {field: manifest[field] for field in ("kind", "metadata", "spec")}
    try:
        read = parse_manifest(plain | {"apiVersion": version})
        if isinstance(read, KubernetesNetworkPolicy):
            read = parse_manifest(calico_policy(read))
    except ConfigError:
        return None
    return read if isinstance(read, Policy) else None
