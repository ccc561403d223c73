"""What every manifest begins with, and what a kind is: its names, its fields, its reader.

Invariants: a `Head` is complete (name, labels and namespace are checked) before a kind's own reader sees it. Which
kinds there are is told by `schema`; what one of them says is read in the module of its topic.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

from routed.errors import ConfigError
from routed.model.fields import Fields, field_path, shown
from routed.model.resources import Common, JsonObject, JsonValue, Resource
from routed.model.shape import Shape, shape
from routed.values import dataclass

API_VERSION = "projectcalico.org/v3"
METADATA_ANNOTATION = "projectcalico.org/metadata"
"""Where Calico keeps the metadata a policy was applied with, if it is stored under another name."""
CRD_API_VERSION = "crd.projectcalico.org/v1"

METADATA = shape("""
    annotations clusterName creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName
    generation labels managedFields name namespace ownerReferences resourceVersion selfLink uid
""")
_TOP: Mapping[str, Shape | None] = {"apiVersion": None, "kind": None, "metadata": METADATA}

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FREE_NAME = re.compile(r"[!-.0-~]{1,512}")
_LABEL_NAME = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
#: Many of them, each with a line break behind it.
_LABEL_NAMES = re.compile(f"(?:{_LABEL_NAME.pattern}\n)*")
_LABEL_VALUES = re.compile(f"(?:{_LABEL_VALUE.pattern}\n)*")


#: Labels that were found right, up to this many: those of a cluster are the same again and again.
_KNOWN_LABELS = 1 << 14
_known_labels: set[tuple[str, str]] = set()


def is_name(text: str) -> bool:
    """Whether a resource may have this name: a DNS subdomain."""
    return len(text) <= 253 and _NAME.fullmatch(text) is not None


@functools.lru_cache(4096)
def is_namespace(text: str) -> bool:
    """Whether a namespace may be called so: a DNS label."""
    return _NAMESPACE.fullmatch(text) is not None


@functools.lru_cache(1 << 14)
def is_label(name: str, value: str) -> bool:
    """Whether Kubernetes' rules allow this label."""
    return _LABEL_NAME.fullmatch(name) is not None and _LABEL_VALUE.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Head:
    """What every kind has in common, already read."""

    top: Fields
    name: str
    namespace: str
    labels: Mapping[str, str]

    @property
    def common(self) -> Common:
        """To be handed on to the resource."""
        return {"name": self.name, "namespace": self.namespace, "labels": self.labels, "manifest": self.top.values}

    @property
    def spec(self) -> Fields:
        """An absent spec says nothing."""
        value = self.top.values.get("spec")
        return Fields({} if value is None else value, self.top, "spec")

    @property
    def status(self) -> Fields:
        value = self.top.values.get("status")
        return Fields({} if value is None else value, self.top, "status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of resource."""

    name: str
    """As in resource keys. Unique, which a manifest's own word for it is not: NetworkPolicy is Calico's here."""
    plural: str
    """Its segment in etcd's paths, and one of the names a person may give it."""
    shape: Shape
    read: Callable[[Head], Resource]
    versions: tuple[str, ...] = (API_VERSION, CRD_API_VERSION)
    namespaced: bool = False
    free_name: bool = False
    """The name is the allocator's, not a DNS name."""
    word: str = ""
    """What its manifests say as `kind`, where that is not `name`."""
    short: tuple[str, ...] = ()
    """Further names that calicoctl or kubectl know it by."""

    @property
    def manifest_kind(self) -> str:
        return self.word or self.name


def kind_shape(text: str) -> Shape:
    """The shape of a kind's manifests, from what its `spec`, `status` and so on may hold."""
    return Shape({**_TOP, **shape(text).members})


def read_head(kind: Kind, manifest: JsonObject, where: str) -> Head:
    """Raises ConfigError. The head keeps `manifest` itself."""
    top = Fields(manifest, where)
    metadata = top.object("metadata")
    if metadata is None:
        raise top.error("metadata", "is required, with the resource's name")
    name = metadata.required_text("name")
    if kind.free_name:
        if not _FREE_NAME.fullmatch(name):
            raise metadata.error("name", f'must be printable, without spaces and "/", not {shown(name)}')
    elif not is_name(name):
        raise metadata.error(
            "name", f'must be lower case letters, digits, "-" and ".", at most 253 of them, not {shown(name)}'
        )
    namespace = metadata.text("namespace")
    if not kind.namespaced:
        if namespace:
            raise metadata.error("namespace", "must be left out: this kind belongs to the whole cluster")
    elif namespace and not is_namespace(namespace):
        raise metadata.error(
            "namespace", f'must be lower case letters, digits and "-", at most 63 of them, not {shown(namespace)}'
        )
    status: JsonValue = top.values.get("status")
    if status is not None and not isinstance(status, dict):
        raise top.error("status", f"must be an object, not {shown(status)}")
    if len(metadata.values) == 1:  # the allocator's objects have no more, and there are tens of thousands
        return Head(top, name, "default" if kind.namespaced else "", {})
    for field in ("uid", "resourceVersion", "generateName", "creationTimestamp", "deletionTimestamp"):
        metadata.text(field)
    metadata.text_map("annotations")
    labels = read_labels(metadata, "labels")
    return Head(top, name, (namespace or "default") if kind.namespaced else "", labels)


def read_labels(fields: Fields, name: str) -> Mapping[str, str]:
    """Labels, by Kubernetes' rules for their names and values."""
    labels = fields.text_map(name)
    if not are_labels(labels):
        for key, text in labels.items():
            path = field_path(fields.at(name), key)
            check_label_name(key, path)
            check_label_value(text, path)
    return labels


def are_labels(labels: Mapping[str, str]) -> bool:
    """Whether all are labels by Kubernetes' rules: in one go, for there are hundreds of thousands in a cluster."""
    if labels.items() <= _known_labels:
        return True
    names, values = "\n".join((*labels, "")), "\n".join((*labels.values(), ""))
    if not names.count("\n") == values.count("\n") == len(labels):
        return False
    if not (_LABEL_NAMES.fullmatch(names) and _LABEL_VALUES.fullmatch(values)):
        return False
    if len(_known_labels) < _KNOWN_LABELS:
        _known_labels.update(labels.items())
    return True


def is_label_name(text: str) -> bool:
    return _LABEL_NAME.fullmatch(text) is not None


def is_label_value(text: str) -> bool:
    return _LABEL_VALUE.fullmatch(text) is not None


def check_label_name(name: str, path: str) -> None:
    """Raises ConfigError."""
    if not is_label_name(name):
        raise ConfigError(path, f"is not a label name: {shown(name)}")


def check_label_value(text: str, path: str) -> None:
    """Raises ConfigError."""
    if not is_label_value(text):
        raise ConfigError(
            path,
            'must be at most 63 letters, digits, "-", "_" and ".", beginning and ending with a letter or '
            f"digit, not {shown(text)}",
        )
