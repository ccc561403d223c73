"""The datastore that routed.yaml names, opened to be read and written, with no daemon needed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from routed.datastore.editing import FolderStore
from routed.datastore.store import Store
from routed.errors import ConfigError


def open_store(path: str, config: Mapping[str, object]) -> Store:
    """The store of a configuration `config` read from `path`. Raises ConfigError.

    Only the key `datastore` is read: an error elsewhere in the file is the daemon's to report.
    """
    settings = config.get("datastore")
    if not isinstance(settings, Mapping):
        raise ConfigError(path, "datastore: is required, as {type: file, path: /etc/routed/resources}")
    kind = settings.get("type", "file")
    if kind != "file":
        raise ConfigError(path, f"datastore.type: must be file, not {kind!r:.40}")
    folder = settings.get("path")
    if not isinstance(folder, str) or not folder:
        raise ConfigError(path, "datastore.path: is required: the folder of resource files")
    return FolderStore(os.path.join(os.path.dirname(os.path.abspath(path)), folder))
