"""The datastore that routed.yaml names, opened to be read and written, with no daemon needed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from routed.datastore.config_lines import place_of_key
from routed.datastore.editing import FolderStore
from routed.datastore.etcd_settings import check_files, etcd_settings
from routed.datastore.store import Store
from routed.errors import ConfigError


def open_store(path: str, config: Mapping[str, object]) -> Store:
    """The store of a configuration `config` read from `path`. Raises ConfigError.

    Only the key `datastore` is read: an error elsewhere in the file is the daemon's to report.
    """
    settings = config.get("datastore")
    if not isinstance(settings, Mapping):
        settings = {}
        if "DATASTORE_TYPE" not in os.environ:
            raise ConfigError(path, "datastore: is required, as {type: file, path: /etc/routed/resources}")
    base = os.path.dirname(os.path.abspath(path))
    try:
        etcd = etcd_settings(settings, os.environ, base)
    except ConfigError as error:
        raise ConfigError(place_of_key(path, error.path), str(error)) from None
    if etcd is not None:
        from routed.datastore.etcd import EtcdStore  # noqa: PLC0415 - gRPC is slow to import, and a folder needs none

        check_files(etcd.client)
        return EtcdStore(etcd.client, root=etcd.prefix)
    folder = settings.get("path")
    if not isinstance(folder, str) or not folder:
        place = place_of_key(path, "datastore.path")
        raise ConfigError(place, "datastore.path: is required: the folder of resource files")
    return FolderStore(os.path.join(base, folder))
