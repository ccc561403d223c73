"""What `datastore` of routed.yaml says where its type is etcd.

    datastore:
      type: etcd
      endpoints: [https://10.0.0.5:2379, https://10.0.0.6:2379]
      caFile: /etc/routed/etcd/ca.pem
      certFile: /etc/routed/etcd/node.pem       # with keyFile: the client's certificate
      keyFile: /etc/routed/etcd/node.key
      username: routed                          # with passwordFile
      passwordFile: /etc/routed/etcd/password
      prefix: /calico                           # the root of Calico's tree
      massDelete: {hold: true, percent: 30, minimum: 5, windowSeconds: 2, timeoutSeconds: 900}

What a key does not say, Calico's environment does: DATASTORE_TYPE (etcdv3), ETCD_ENDPOINTS (with commas),
ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD. A type or a key in the file comes first.

Invariants: what is given is complete and goes together; a password is in no message. No library of etcd's is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field

from routed.datastore.guard import MassDelete
from routed.errors import ConfigError, Denied, StoreError
from routed.values import dataclass

ETCD_KEYS = (
    "endpoints", "caFile", "certFile", "keyFile", "username", "passwordFile", "prefix", "massDelete",
)  # fmt: skip
_TYPES = {"file": "file", "etcd": "etcd", "etcdv3": "etcd"}
_ENVIRONMENT = {
    "caFile": "ETCD_CA_CERT_FILE",
    "certFile": "ETCD_CERT_FILE",
    "keyFile": "ETCD_KEY_FILE",
    "username": "ETCD_USERNAME",
}
_ENDPOINT = re.compile(r"(https?)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")

#: Names that Calico knows, or once knew, and what says the same here.
_NOT_DONE = {
    "ETCD_DISCOVERY_SRV": "ETCD_ENDPOINTS",
    "ETCD_AUTHORITY": "ETCD_ENDPOINTS",
    "ETCD_SCHEME": "ETCD_ENDPOINTS",
    "ETCD_CA_CERT": "ETCD_CA_CERT_FILE",
    "ETCD_CERT": "ETCD_CERT_FILE",
    "ETCD_KEY": "ETCD_KEY_FILE",
}


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Where etcd is and who we are to it."""

    endpoints: tuple[str, ...]
    """`https://host:port` or `http://host:port`, all of one kind."""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password_file: str = ""
    password: str = field(default="", repr=False)
    """From ETCD_PASSWORD; `password_file` is read anew at each login."""


@dataclass(frozen=True, slots=True)
class EtcdDatastore:
    """`datastore` of a configuration whose type is etcd."""

    client: EtcdConfig
    prefix: str = "/calico"
    mass_delete: MassDelete = field(default_factory=MassDelete)


def etcd_settings(datastore: Mapping[str, object], environment: Mapping[str, str], base: str) -> EtcdDatastore | None:
    """What `datastore` says of etcd; None where it names a folder. Raises ConfigError with the key's full path.

    `base` is the folder that relative paths begin at. Files are not looked at.
    """
    said = datastore.get("type")
    usual = "etcd" if environment.get("ETCD_ENDPOINTS") and "path" not in datastore else "file"
    kind = said if said is not None else environment.get("DATASTORE_TYPE") or usual
    if not isinstance(kind, str) or kind not in _TYPES:
        name = "datastore.type" if said is not None else "DATASTORE_TYPE"
        raise ConfigError(name, f"must be file or etcd, not {kind!r:.40}")
    if _TYPES[kind] == "file":
        for key in ETCD_KEYS:
            if key in datastore:
                raise ConfigError(f"datastore.{key}", "is a key of type etcd, and the type is file")
        return None
    if "path" in datastore:
        raise ConfigError("datastore.path", "is a key of type file, and the type is etcd")
    for name, instead in _NOT_DONE.items():
        if environment.get(name):
            raise ConfigError(name, f"is set in the environment and not supported; use {instead}")
    texts = {
        key: _text(datastore, key) or environment.get(_ENVIRONMENT.get(key, ""), "")
        for key in ("caFile", "certFile", "keyFile", "username", "passwordFile")
    }
    files = {key: os.path.join(base, text) if text else "" for key, text in texts.items() if key.endswith("File")}
    password = "" if files["passwordFile"] else environment.get("ETCD_PASSWORD", "")
    endpoints = _endpoints(datastore, environment)
    _check_pairs(endpoints, files, texts["username"], password)
    prefix = _text(datastore, "prefix") or "/calico"
    if not re.fullmatch(r"(/[^/\s]+)+", prefix):
        raise ConfigError("datastore.prefix", f"must begin with `/` and not end with one, not {prefix!r:.60}")
    return EtcdDatastore(
        EtcdConfig(
            endpoints,
            ca_file=files["caFile"],
            cert_file=files["certFile"],
            key_file=files["keyFile"],
            username=texts["username"],
            password_file=files["passwordFile"],
            password=password,
        ),
        prefix,
        _mass_delete(datastore.get("massDelete")),
    )


def check_files(config: EtcdConfig) -> None:
    """Raises ConfigError where a file of the configuration cannot be read."""
    for key in ("ca_file", "cert_file", "key_file", "password_file"):
        path = getattr(config, key)
        if path:
            name = "datastore." + key.split("_")[0] + "File"
            try:
                contents(path, name)
            except StoreError as error:
                raise ConfigError("", str(error)) from None


def contents(path: str, key: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise Denied(f"{key}: cannot read {path}: {error.strerror}") from None


def _endpoints(datastore: Mapping[str, object], environment: Mapping[str, str]) -> tuple[str, ...]:
    said = datastore.get("endpoints")
    if said is None:
        said = [one.strip() for one in environment.get("ETCD_ENDPOINTS", "").split(",") if one.strip()]
    if isinstance(said, str):
        said = [said]
    if not isinstance(said, list) or not said:
        raise ConfigError(
            "datastore.endpoints", "is required, or ETCD_ENDPOINTS: a list such as [https://10.0.0.5:2379]"
        )
    found: list[str] = []
    for index, one in enumerate(said):
        match = _ENDPOINT.fullmatch(one.rstrip("/")) if isinstance(one, str) else None
        if match is None or not 0 < int(match[3]) < 65536:
            raise ConfigError(f"datastore.endpoints[{index}]", "must be http://HOST:PORT or https://HOST:PORT")
        found.append(match[0])
    if len({one.partition(":")[0] for one in found}) > 1:
        raise ConfigError("datastore.endpoints", "must be all http or all https")
    return tuple(dict.fromkeys(found))


def _check_pairs(endpoints: tuple[str, ...], files: Mapping[str, str], username: str, password: str) -> None:
    secure = endpoints[0].startswith("https:")
    for key in ("caFile", "certFile", "keyFile"):
        if files[key] and not secure:
            raise ConfigError(f"datastore.{key}", "is for https, and the endpoints are http")
    if bool(files["certFile"]) != bool(files["keyFile"]):
        missing = "keyFile" if files["certFile"] else "certFile"
        raise ConfigError(f"datastore.{missing}", "is required: a certificate and its key go together")
    if username and not (files["passwordFile"] or password):
        raise ConfigError("datastore.passwordFile", "is required where there is a username")
    if not username and (files["passwordFile"] or password):
        raise ConfigError("datastore.username", "is required where there is a password")


def _text(datastore: Mapping[str, object], key: str) -> str:
    value = datastore.get(key)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ConfigError(f"datastore.{key}", "must be text")
    return value if isinstance(value, str) else ""


def _mass_delete(said: object) -> MassDelete:
    known = ("hold", "percent", "minimum", "windowSeconds", "timeoutSeconds")
    if said is None:
        return MassDelete()
    if not isinstance(said, dict):
        raise ConfigError("datastore.massDelete", f"must be a mapping with the keys {', '.join(known)}")
    for key, value in said.items():
        name = f"datastore.massDelete.{key}"
        if key not in known:
            raise ConfigError(name, f"unknown key; known keys are {', '.join(known)}")
        if key == "hold":
            if not isinstance(value, bool):
                raise ConfigError(name, "must be true or false")
        elif key == "timeoutSeconds" and value == "never":
            continue
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1_000_000:
            raise ConfigError(name, "must be a number above 0" + (", or never" if key == "timeoutSeconds" else ""))
        elif key == "percent" and value > 100:
            raise ConfigError(name, "must be at most 100")
    usual = MassDelete()
    timeout = said.get("timeoutSeconds", usual.timeout)
    return MassDelete(
        enabled=said.get("hold", True),
        share=said.get("percent", usual.share * 100) / 100,
        minimum=int(said.get("minimum", usual.minimum)),
        window=float(said.get("windowSeconds", usual.window)),
        timeout=None if timeout == "never" else timeout,
    )
