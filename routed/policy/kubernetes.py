"""What Kubernetes' own kinds mean for policy: the resources Calico's kube-controllers would write from them.

A datastore of files holds what people applied: NetworkPolicies, Namespaces and Pods of Kubernetes. Calico's holds what its
controllers made of them: `knp.default.*`, Profiles `kns.*`, labels at WorkloadEndpoints. `Kubernetes.update` takes either
and gives the second form, so that there is one kind of each to enforce.

Invariants: where both forms are there, Kubernetes' own counts, since whoever wrote the other derived it; when it goes, the
stored one is back. What is not derived passes unchanged. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from routed.model.kubernetes import (
    ACCOUNT_PROFILE,
    NAMESPACE_LABELS,
    NAMESPACE_PROFILE,
    POLICY_PREFIX,
    KubernetesNetworkPolicy,
    Namespace,
    Pod,
    calico_key,
    calico_policy,
    namespace_labels,
    namespace_profile,
)
from routed.model.policies import NetworkPolicy, Profile
from routed.model.resources import Cidr, Resource, ResourceKey, Update, json_line
from routed.model.schema import parse_manifest
from routed.model.unread_policies import plain_policy
from routed.model.workloads import EndpointPort, WorkloadEndpoint, workload_endpoint_name
from routed.net.families import Family
from routed.policy.scope import NAMESPACE

ORCHESTRATOR = "projectcalico.org/orchestrator"
_CALICO = "projectcalico.org/"
_FINISHED = ("Succeeded", "Failed")


class Kubernetes:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._own: dict[ResourceKey, Resource] = {}
        """Of Kubernetes' kinds."""
        self._stored: dict[ResourceKey, Resource] = {}
        """What is stored and may stand in what is derived."""
        self._endpoints: dict[tuple[str, str], tuple[ResourceKey, ...]] = {}
        """Stored endpoints of a pod."""

    def update(self, update: Update) -> Iterator[Update]:
        """A resource is stored with this value, or (None) is not: what that means."""
        key, value = update.key, update.value
        match key.kind:
            case KubernetesNetworkPolicy.kind:
                _put(self._own, key, value)
                yield self._policy(calico_key(key))
            case NetworkPolicy.kind if key.name.startswith(POLICY_PREFIX):
                _put(self._stored, key, value)
                yield self._policy(key)
            case Namespace.kind:
                _put(self._own, key, value)
                yield self._profile(calico_key(key))
            case Profile.kind if key.name.startswith(NAMESPACE_PROFILE):
                _put(self._stored, key, value)
                yield self._profile(key)
            case Pod.kind:
                before = self._own.get(key)
                _put(self._own, key, value)
                yield from self._pod(key, before, value)
            case WorkloadEndpoint.kind:
                yield from self._endpoint_stored(key, value)
            case _:
                yield update

    def _policy(self, key: ResourceKey) -> Update:
        own = self._own.get(
            ResourceKey(KubernetesNetworkPolicy.kind, key.name.removeprefix(POLICY_PREFIX), key.namespace)
        )
        if isinstance(own, KubernetesNetworkPolicy):
            manifest = calico_policy(own)
            return Update(key, plain_policy(json_line(manifest)) or parse_manifest(manifest))
        return Update(key, self._stored.get(key))

    def _profile(self, key: ResourceKey) -> Update:
        name = key.name.removeprefix(NAMESPACE_PROFILE)
        own, stored = self._own.get(ResourceKey(Namespace.kind, name)), self._stored.get(key)
        if own is None:
            return Update(key, stored)
        if not isinstance(stored, Profile):
            return Update(key, parse_manifest(namespace_profile(name, own.labels)))
        kept = {label: text for label, text in stored.labels_to_apply.items() if not label.startswith(NAMESPACE_LABELS)}
        return Update(key, replace(stored, labels_to_apply={**kept, **namespace_labels(name, own.labels)}))

    # ---- pods

    def _pod(self, key: ResourceKey, before: Resource | None, now: Resource | None) -> Iterator[Update]:
        stored = self._endpoints.get((key.namespace, key.name))
        if stored:
            for each in sorted(stored):
                yield Update(each, self._endpoint(each))
            return
        was, made = _unwired(before), _unwired(now)
        if was is not None and (made is None or made.key != was.key):
            yield Update(was.key, None)
        if made is not None:
            yield Update(made.key, made)

    def _endpoint_stored(self, key: ResourceKey, value: Resource | None) -> Iterator[Update]:
        old = self._stored.get(key)
        if old is None and value is None:
            return
        _put(self._stored, key, value)
        if (
            old is None
            and isinstance(value, WorkloadEndpoint)
            and value.pod
            and ResourceKey(Pod.kind, value.pod, key.namespace) not in self._own
        ):  # as nearly all are, at a start
            pod = (key.namespace, value.pod)
            self._endpoints[pod] = (*self._endpoints.get(pod, ()), key)
            yield Update(key, value)
            return
        pods = {(key.namespace, each.pod) for each in (old, value) if isinstance(each, WorkloadEndpoint) and each.pod}
        for pod in pods:
            stored = self._endpoints.get(pod, ())
            unwired = _unwired(self._own.get(ResourceKey(Pod.kind, pod[1], pod[0])))
            if isinstance(value, WorkloadEndpoint) and value.pod == pod[1]:
                if unwired is not None and not stored and unwired.key != key:
                    yield Update(unwired.key, None)
                if key not in stored:
                    self._endpoints[pod] = (*stored, key)
                continue
            stored = tuple(each for each in stored if each != key)
            if stored:
                self._endpoints[pod] = stored
            else:
                self._endpoints.pop(pod, None)
                if unwired is not None:
                    if unwired.key != key:
                        yield Update(key, None)
                    yield Update(unwired.key, unwired)
                    return
        yield Update(key, self._endpoint(key))

    def _endpoint(self, key: ResourceKey) -> Resource | None:
        """A stored endpoint with what its Pod says now. That of a finished one has no addresses any more, as Calico has it:
        who gets them next is somebody else."""
        stored = self._stored.get(key)
        if not isinstance(stored, WorkloadEndpoint) or not stored.pod:
            return stored
        pod = self._own.get(ResourceKey(Pod.kind, stored.pod, key.namespace))
        if not isinstance(pod, Pod):
            return stored
        if pod.phase in _FINISHED:
            return replace(stored, ip_networks=(), manifest={})
        kept = {label: text for label, text in stored.labels.items() if label.startswith(_CALICO)}
        made = replace(stored, labels={**pod.labels, **kept}, ports=_ports(pod) or stored.ports, manifest={})
        account = f"{ACCOUNT_PROFILE}{key.namespace}.{pod.service_account}"
        if pod.service_account == stored.service_account_name and account in stored.profiles:
            return made
        others = (name for name in stored.profiles if not name.startswith(ACCOUNT_PROFILE))
        return replace(made, service_account_name=pod.service_account, profiles=(*others, account))


def _unwired(pod: Resource | None) -> WorkloadEndpoint | None:
    """A Pod with addresses that nobody wrote an endpoint for: others select it, and nothing is asked at it."""
    if not isinstance(pod, Pod) or not pod.pod_ips or not pod.node_name or pod.host_network or pod.phase in _FINISHED:
        return None
    return WorkloadEndpoint(
        name=workload_endpoint_name((pod.node_name, "k8s", pod.name, "eth0")),
        namespace=pod.namespace,
        labels={**pod.labels, NAMESPACE: pod.namespace, ORCHESTRATOR: "k8s"},
        manifest={},
        orchestrator="k8s",
        node=pod.node_name,
        pod=pod.name,
        endpoint="eth0",
        service_account_name=pod.service_account,
        ip_networks=tuple(Cidr(Family.of_address(ip), bytes((8 * len(ip),)) + ip) for ip in pod.pod_ips),
        profiles=(NAMESPACE_PROFILE + pod.namespace, f"{ACCOUNT_PROFILE}{pod.namespace}.{pod.service_account}"),
        ports=_ports(pod),
    )


def _ports(pod: Pod) -> tuple[EndpointPort, ...]:
    return tuple(EndpointPort(port.name, port.protocol, port.port) for port in pod.ports if port.name)


def _put(table: dict[ResourceKey, Resource], key: ResourceKey, value: Resource | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
