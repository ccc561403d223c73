"""The datastore that the configuration names, opened: to be followed by the daemon, or to be written.

Both are on the same folder or the same etcd. An etcd that is followed remembers what it last said (`SAVED`), and so does
the Kubernetes API beside it; a folder the last good state of what cannot be read (`KEPT`).

gRPC and the HTTP client are imported here, by who asks for etcd or for the Kubernetes API: a quarter of what a daemon
without them keeps in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from routed.config import Config, make_folder
from routed.datastore.editing import FolderStore
from routed.datastore.etcd_settings import check_files
from routed.datastore.file import FileStore
from routed.datastore.kubeconfig import load_kubeconfig
from routed.datastore.saved import Identity, SavedState
from routed.errors import ConfigError
from routed.model.schema import KINDS, parse_manifest

if TYPE_CHECKING:
    from routed.datastore.etcd import EtcdStore
    from routed.datastore.kubernetes import KubernetesSource

#: What etcd last said, in stateDir.
SAVED = "datastore.saved"
#: What was last good in the folder and cannot be read now, in stateDir.
KEPT = "datastore.kept"
#: And what the Kubernetes API last said.
SAVED_FROM_KUBERNETES = "kubernetes.saved"


def open_followed(config: Config) -> FileStore | EtcdStore:
    """The datastore, to be followed. Raises ConfigError."""
    if config.etcd is None:
        if config.node.register:
            make_folder(config.datastore_path)
        if not os.path.isdir(config.datastore_path):
            raise ConfigError(config.datastore_path, "there is no such folder, and datastore.path names it")
        return FileStore(config.datastore_path, os.path.join(config.state_dir, KEPT))
    from routed.datastore.etcd import FOLLOWED, EtcdStore  # noqa: PLC0415 - see the module's docstring

    etcd = config.etcd
    check_files(etcd.client)
    saved = SavedState(
        os.path.join(config.state_dir, SAVED), Identity(config.node_name, etcd.prefix, etcd.client.endpoints)
    )
    return EtcdStore(
        etcd.client,
        node=config.node_name,
        root=etcd.prefix,
        kinds=KINDS if config.cni.enabled else FOLLOWED,
        rules=etcd.mass_delete,
        saved=saved,
    )


def open_kubernetes(config: Config, told: Callable[[str, bool], None]) -> KubernetesSource:
    """The Kubernetes API that kubernetes.kubeconfig leads to. Raises ConfigError."""
    from routed.datastore.kubernetes import (  # noqa: PLC0415
        ENDPOINT_SLICES,
        NAMESPACES,
        SERVICES,
        KubernetesSource,
        pods_of,
    )

    try:
        access = load_kubeconfig(config.kubeconfig)
    except ConfigError as error:
        raise ConfigError("kubernetes.kubeconfig", str(error)) from None
    path = os.path.join(config.state_dir, SAVED_FROM_KUBERNETES)
    saved = SavedState(path, Identity(config.node_name, "kubernetes", (access.server,)))
    kinds = (SERVICES, ENDPOINT_SLICES, *((NAMESPACES, pods_of(config.node_name)) if config.cni.enabled else ()))
    return KubernetesSource(access, kinds, parse_manifest, told, saved)


def to_write(followed: FileStore | EtcdStore, config: Config, *, busy: bool = False) -> EtcdStore | FolderStore:
    """What is written where `followed` is followed: the same etcd connection, or the folder; `busy`: for each pod."""
    if not isinstance(followed, FileStore):
        return followed
    return FolderStore(config.datastore_path, followed.own if busy else None)


def writable_datastore(config: Config) -> EtcdStore | FolderStore:
    """The datastore, for who writes it and follows nothing. Raises ConfigError."""
    if config.etcd is None:
        return FolderStore(config.datastore_path)
    from routed.datastore.etcd import EtcdStore  # noqa: PLC0415

    check_files(config.etcd.client)
    return EtcdStore(config.etcd.client, root=config.etcd.prefix)
