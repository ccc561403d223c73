"""Who a pod is: what its endpoint is called, its labels, service account and ports, and the endpoint's manifest.

Who says so, in this order: an endpoint that was applied before its pod, the Pod in the datastore, the CNI call, the
Kubernetes API. What of it becomes addresses and interfaces, and when, is the business of `pods`.

Invariants: nothing is made or written here, and what is answered is of one moment. Where nobody has heard of a Pod, that
there is none must be a condition of what is written (`Identity.without`). What nobody said before the API was asked is the
API's to say as long as the pod lives (`brought_up`); what that is stands in the annotation `FOLLOWS`, also after a restart.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Protocol

from routed.cni.call import FIRST_INTERFACE, INVALID_ENVIRONMENT, TRY_AGAIN, Request
from routed.datastore.remembered import RememberingStore
from routed.errors import CniError, ConfigError, StoreError
from routed.model.fields import shown
from routed.model.head import is_label, is_name
from routed.model.kubernetes import ACCOUNT_PROFILE, NAMESPACE_PROFILE, Namespace, Pod, calico_key
from routed.model.policies import Profile
from routed.model.resources import Cidr, JsonObject, JsonValue, Resource, ResourceKey
from routed.model.schema import parse_manifest
from routed.model.workloads import BRIDGE, FOLLOWED, FOLLOWS, WorkloadEndpoint, interface_of, workload_endpoint_name
from routed.net.addresses import format_address
from routed.values import dataclass

_API = "projectcalico.org/v3"
_NAMESPACE = "projectcalico.org/namespace"
_ORCHESTRATOR = "projectcalico.org/orchestrator"
_ACCOUNT = "projectcalico.org/serviceaccount"
_PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}


class Labels(Protocol):
    """Who knows a pod that is in no datastore: the Kubernetes API."""

    async def pod(self, namespace: str, name: str) -> JsonObject | None:
        """Its manifest. Raises StoreError."""

    async def namespace(self, name: str) -> None:
        """Have a namespace that nobody heard of yet known, if there is one. Raises StoreError."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A pod as its endpoint names it."""

    key: ResourceKey
    interface: str
    orchestrator: str
    labels: Mapping[str, str]
    profiles: tuple[str, ...]
    service_account: str
    ports: tuple[tuple[str, str, int], ...]
    sources: tuple[Cidr, ...]
    """Prefixes it may have sources of, beside its addresses."""
    follows: tuple[str, ...] = ()
    """What of FOLLOWED is the API's to say."""
    without: ResourceKey | None = None
    """The Pod that would have said all this and that nobody has heard of: if there is one now, it must be asked."""


class Identities:
    """See the module's docstring."""

    def __init__(
        self,
        node_name: str,
        store: RememberingStore,
        known: Mapping[str, Mapping[ResourceKey, Resource]],
        api: Labels | None,
    ) -> None:
        """`known`: what is followed, by kind."""
        self._node_name = node_name
        self._store = store
        self._known = known
        self.api = api
        self.problem = ""
        """The API knows the node by another name, by the last pod it was asked for."""

    async def of(self, request: Request, *, ask: bool = False) -> Identity:
        """`ask` the datastore for its Pod, whatever is known."""
        name = request.pod[1]
        key, interface = self.key_of(request)
        if not name:
            _must_be_name(key, f"CNI_CONTAINERID {request.container_id} and CNI_IFNAME {request.interface}")
            own = {**request.labels, _NAMESPACE: key.namespace, _ORCHESTRATOR: "cni"}
            return Identity(key, interface, "cni", own, (NAMESPACE_PROFILE + key.namespace,), "", (), request.sources)
        _must_be_name(key, f"K8S_POD_NAME {name} and CNI_IFNAME {request.interface}")
        pod_key = ResourceKey(Pod.kind, name, key.namespace)
        # a folder is read as a whole, so there what was read last counts; and the API is asked for the pod itself
        follows = self.api is None and self._store.shared_with_calico
        unheard = follows and not ask and pod_key not in self._known[Pod.kind]
        pod = await self._stored_pod(pod_key) if follows and not unheard else self._known[Pod.kind].get(pod_key)
        labels, account, ports, left = await self._pod_says(request, key, pod)
        if self.api is not None:
            await self._know_namespace(self.api, key.namespace)
        labels = {**labels, _NAMESPACE: key.namespace, _ORCHESTRATOR: "k8s"}
        profiles = (
            NAMESPACE_PROFILE + key.namespace,
            *((f"{ACCOUNT_PROFILE}{key.namespace}.{account}",) if account else ()),
        )
        there = self._known[WorkloadEndpoint.kind].get(key)
        # an endpoint that was applied before its pod says more than the pod does
        applied = there if isinstance(there, WorkloadEndpoint) and not there.container_id else None
        sources = request.sources or (applied.allow_spoofed_source_prefixes if applied is not None else ())
        without = pod_key if unheard else None
        return Identity(key, interface, "k8s", labels, profiles, account, ports, sources, left, without)

    def key_of(self, request: Request) -> tuple[ResourceKey, str]:
        """A pod's endpoint and the node's end of its interface, by what they are called."""
        return _names_of(self._node_name, *request.pod, request.container_id, request.interface)

    async def _pod_says(
        self, request: Request, key: ResourceKey, pod: Resource | None
    ) -> tuple[Mapping[str, str], str, tuple[tuple[str, str, int], ...], tuple[str, ...]]:
        """Labels, service account and ports: of the endpoint that was applied, the Pod in the datastore, the call, the
        API. What the nearest does not say is the next one's to say; a Pod says all. And what the API was left to say."""
        namespace, name = key.namespace, request.pod[1]
        labels: Mapping[str, str] = {}
        account, ports, left = "", tuple[tuple[str, str, int], ...](), tuple[str, ...]()
        there = self._known[WorkloadEndpoint.kind].get(key)
        if isinstance(there, WorkloadEndpoint) and not there.container_id:
            labels, account = there.labels, there.service_account_name
            ports = tuple((port.name, _PROTOCOLS.get(port.protocol, "TCP"), port.port) for port in there.ports)
        if not isinstance(pod, Pod):
            labels = labels or request.labels
            if self.api is not None and not (labels and account and ports):
                said = (labels, account, ports)
                left = tuple(each for each, known in zip(FOLLOWED, said, strict=True) if not known)
                pod = await self._asked_pod(self.api, namespace, name)
                if pod is None and not labels:
                    raise CniError(
                        TRY_AGAIN, f"the Kubernetes API knows no pod {namespace}/{name}, so no policy may hold"
                    )
        if isinstance(pod, Pod):
            labels, account = labels or pod.labels, account or pod.service_account
            ports = ports or tuple(_named_ports(pod))
        return labels, account, ports, left

    async def _asked_pod(self, source: Labels, namespace: str, name: str) -> Pod | None:
        try:
            manifest = await source.pod(namespace, name)
            read = parse_manifest({**manifest, "kind": "Pod", "apiVersion": "v1"}) if manifest is not None else None
        except (StoreError, ConfigError) as error:
            raise CniError(TRY_AGAIN, str(error)) from None
        if not isinstance(read, Pod):
            return None
        node = read.node_name
        self.problem = (
            f"the Kubernetes API calls the node of pod {namespace}/{name} {shown(node)}, and nodeName here is "
            f"{shown(self._node_name)}: labels that change while a pod runs are not heard of; give nodeName the API's name"
            if node not in ("", self._node_name)
            else ""
        )
        return read

    async def _know_namespace(self, source: Labels, name: str) -> None:
        """Its labels choose pools and policies. A namespace is made right before its first pods, maybe sooner than heard of;
        one that has a profile had pods before."""
        key = ResourceKey(Namespace.kind, name)
        if key in self._known[Namespace.kind] or calico_key(key) in self._known[Profile.kind]:
            return
        try:
            await source.namespace(name)
        except StoreError as error:
            raise CniError(TRY_AGAIN, str(error)) from None

    async def _stored_pod(self, key: ResourceKey) -> Resource | None:
        """As etcd has it now: whoever applies a manifest may start the pod before the daemon has heard of it, and the pod
        would begin without its labels. One nobody has heard of is not asked for: that there is none is a condition of what
        `pods` writes."""
        found = await self._store.newest(key)
        return found.resource if found is not None else None

    def endpoint(self, request: Request, identity: Identity, addresses: tuple[bytes, ...], mac: bytes) -> JsonObject:
        """The manifest of its endpoint."""
        networks: list[JsonValue] = [f"{format_address(each)}/{8 * len(each)}" for each in addresses]
        spec: JsonObject = {
            "orchestrator": identity.orchestrator,
            "node": self._node_name,
            "containerID": request.container_id,
            "endpoint": request.interface,
            "ipNetworks": networks,
            "profiles": list(identity.profiles),
            "interfaceName": identity.interface,
            "mac": mac.hex(":"),
        }
        if identity.sources:
            spec["allowSpoofedSourcePrefixes"] = [str(each) for each in identity.sources]
        if identity.orchestrator == "k8s":
            spec["pod"] = request.pod[1]
            if identity.service_account:
                spec["serviceAccountName"] = identity.service_account
        if identity.ports:
            spec["ports"] = [_port(*each) for each in identity.ports]
        labels: JsonObject = dict(identity.labels)
        marks: JsonObject = {BRIDGE: request.bridge} if request.bridge else {}
        if identity.follows:
            marks[FOLLOWS] = " ".join(identity.follows)
        annotations: JsonObject = {"annotations": marks} if marks else {}
        return {
            "apiVersion": _API,
            "kind": WorkloadEndpoint.kind,
            "metadata": {
                "name": identity.key.name,
                "namespace": identity.key.namespace,
                "labels": labels,
                **annotations,
            },
            "spec": spec,
        }


def follows(endpoint: WorkloadEndpoint) -> frozenset[str]:
    """What of an endpoint (of FOLLOWED) is the Kubernetes API's to say."""
    metadata = endpoint.manifest.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    said = annotations.get(FOLLOWS) if isinstance(annotations, dict) else None
    return frozenset(said.split()) if isinstance(said, str) else frozenset()


def brought_up(endpoint: WorkloadEndpoint, pod: Pod) -> JsonObject | None:
    """The manifest of an endpoint with what its Pod in the Kubernetes API says by now; None where it has that already.

    Labels of Calico's own stay, as they must be: its kube-controllers, which write labels too, add the account's.
    """
    its = follows(endpoint)
    if not its:
        return None
    account = pod.service_account if "serviceAccountName" in its else endpoint.service_account_name
    labels = dict(endpoint.labels)
    if "labels" in its:
        labels = {**pod.labels, _NAMESPACE: endpoint.namespace, _ORCHESTRATOR: endpoint.orchestrator}
    if _ACCOUNT in endpoint.labels and account and is_label(_ACCOUNT, account) and its != {"ports"}:
        labels[_ACCOUNT] = account
    profile = f"{ACCOUNT_PROFILE}{endpoint.namespace}.{account}"
    profiles = endpoint.profiles
    if "serviceAccountName" in its and profile not in profiles:
        profiles = (*(each for each in profiles if not each.startswith(ACCOUNT_PROFILE)), profile)
    had = {(each.name, _PROTOCOLS.get(each.protocol, ""), each.port) for each in endpoint.ports if each.name}
    ports = set(_named_ports(pod)) if "ports" in its else had
    if (labels, account, profiles, ports) == (
        endpoint.labels, endpoint.service_account_name, endpoint.profiles, had
    ):  # fmt: skip
        return None
    manifest = endpoint.manifest
    metadata, spec = manifest.get("metadata"), manifest.get("spec")
    assert isinstance(metadata, dict) and isinstance(spec, dict)
    spec = {**spec, "profiles": list(profiles)}
    if account:
        spec["serviceAccountName"] = account
    if ports != had:
        spec["ports"] = [_port(*each) for each in dict.fromkeys(_named_ports(pod))]
    named: JsonObject = dict(labels)
    return {**manifest, "metadata": {**metadata, "labels": named}, "spec": spec}


def _named_ports(pod: Pod) -> Iterator[tuple[str, str, int]]:
    for each in pod.ports:
        if each.name:
            yield each.name, _PROTOCOLS.get(each.protocol, "TCP"), each.port


def _port(name: str, protocol: str, port: int) -> JsonObject:
    return {"name": name, "protocol": protocol, "port": port}


@functools.lru_cache(1 << 10)
def _names_of(node: str, namespace: str, name: str, container_id: str, pod_interface: str) -> tuple[ResourceKey, str]:
    """Asked several times in a call."""
    if name:
        segments = (node, "k8s", name, pod_interface)
        key = ResourceKey(WorkloadEndpoint.kind, workload_endpoint_name(segments), namespace or "default")
        second = "" if pod_interface == FIRST_INTERFACE else f".{pod_interface}"
        return key, interface_of(f"{key.namespace}.{name}{second}")
    segments = (node, "cni", container_id, pod_interface)
    key = ResourceKey(WorkloadEndpoint.kind, workload_endpoint_name(segments), "default")
    return key, interface_of(f"{container_id}.{pod_interface}")


def _must_be_name(key: ResourceKey, of: str) -> None:
    """Raises CniError where no endpoint may have such a name, before anything is made."""
    if not is_name(key.name):
        raise CniError(
            INVALID_ENVIRONMENT,
            f'{of} cannot be an endpoint\'s name: it takes lower case letters, digits, "-" and ".", 253 at most',
        )
