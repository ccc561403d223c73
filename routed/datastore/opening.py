"""The datastore that routed.yaml names, opened to be read and written, with no daemon needed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import yaml

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
        raise ConfigError(f"{path}{_line(path, error.path)}", str(error)) from None
    if etcd is not None:
        from routed.datastore.etcd import EtcdStore  # noqa: PLC0415 - gRPC is slow to import, and a folder needs none

        check_files(etcd.client)
        return EtcdStore(etcd.client, root=etcd.prefix)
    folder = settings.get("path")
    if not isinstance(folder, str) or not folder:
        line = _line(path, "datastore.path")
        raise ConfigError(f"{path}{line}", "datastore.path: is required: the folder of resource files")
    return FolderStore(os.path.join(base, folder))


def _line(path: str, key: str) -> str:
    """`:LINE` of a key of a configuration, or of what it is missing in; empty where it is none of the file's."""
    try:
        with open(path, "rb") as file:
            node = yaml.compose(file, yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # changed since it was read
        return ""
    line = ""
    for part in re.findall(r"[^.\[\]]+", key):
        below: dict[str, yaml.Node] = {}
        if isinstance(node, yaml.MappingNode):
            below = {name.value: value for name, value in node.value if isinstance(name, yaml.ScalarNode)}
        elif isinstance(node, yaml.SequenceNode):
            below = {str(index): value for index, value in enumerate(node.value)}
        if part not in below:
            break
        node = below[part]
        line = f":{node.start_mark.line + 1}"
    return line
