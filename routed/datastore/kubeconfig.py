"""A kubeconfig file: where the Kubernetes API is and how to be let in.

Certificates and tokens may be in the file or in files it names. Kubelet and others renew them on disk: a token in a file is
read again for every connection, and `Access.renewed` reads all the rest again where one of the files changed.

What would make us run a program (`exec`, `auth-provider`) is refused: a daemon with rights to the network does not start
strangers' programs.

Errors name the file and the key; values of keys and tokens never appear in them.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yaml

from routed.datastore.files import signature_at
from routed.errors import ConfigError
from routed.values import dataclass

MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """How to reach the API."""

    server: str
    """`https://host:port`, without a slash at the end."""
    context: ssl.SSLContext | None
    """None for plain http."""
    token: str = ""
    token_file: str = ""
    server_name: str = ""
    """What the certificate must be for, where it is not the host of `server`."""
    path: str = ""
    """The kubeconfig."""
    files: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """What was read for this, the kubeconfig included, and its signature right before it was read."""

    def renewed(self) -> Access:
        """This, or what the kubeconfig says by now where a file of it changed. Raises ConfigError where that is unusable."""
        return self if all(signature_at(path) == then for path, then in self.files) else load_kubeconfig(self.path)

    def authorization(self) -> dict[str, str]:
        """Headers of a request. Raises ConfigError where a token's file cannot be read."""
        token = self.token
        if self.token_file:
            try:
                with open(self.token_file, encoding="utf-8") as file:
                    token = file.read(MAX_SIZE).strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(self.token_file, f"cannot read the token: {_why(error)}") from None
        return {"Authorization": f"Bearer {token}"} if token else {}


def load_kubeconfig(path: str) -> Access:
    """The access the current context of a kubeconfig gives. Raises ConfigError."""
    signature = signature_at(path)
    try:
        with open(path, "rb") as file:
            config = yaml.safe_load(file.read(MAX_SIZE))
    except OSError as error:
        raise ConfigError(path, f"cannot read the kubeconfig: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        raise ConfigError(path, "is not YAML") from None
    return _Reader(path, signature).access(config)


class _Reader:
    def __init__(self, path: str, signature: tuple[int, ...]) -> None:
        self._path = path
        self._files = {path: signature}
        self._folder = os.path.dirname(os.path.abspath(path))

    def access(self, config: Any) -> Access:
        if not isinstance(config, dict):
            self._fail("", "is not a kubeconfig")
        name = config.get("current-context")
        if not isinstance(name, str) or not name:
            self._fail("current-context", "is not set: `kubectl config use-context` sets it")
        context = self._named(config, "contexts", name, "context")
        cluster = self._named(config, "clusters", self._text(context, "cluster", f"contexts.{name}"), "cluster")
        user_name = context.get("user")
        user = self._named(config, "users", user_name, "user") if isinstance(user_name, str) and user_name else {}
        for key in ("exec", "auth-provider"):
            if user.get(key):
                self._fail(
                    f"users.{user_name}.{key}",
                    "is not supported: routed starts no programs; use a token or a certificate",
                )
        for key in ("username", "password"):
            if user.get(key):
                self._fail(
                    f"users.{user_name}.{key}",
                    "is not supported, nor is it by Kubernetes since 1.19; use a token or a certificate",
                )
        if cluster.get("proxy-url"):
            self._fail("clusters.proxy-url", "is not supported")
        server = self._text(cluster, "server", "clusters").rstrip("/")
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            self._fail("clusters.server", f"must be an http or https address, not {server!r}")
        token_file = user.get("tokenFile") or ""
        tls = self._tls(cluster, user) if parts.scheme == "https" else None
        return Access(
            server=server,
            context=tls,
            token=str(user.get("token") or ""),
            token_file=self._absolute(token_file) if token_file else "",
            server_name=str(cluster.get("tls-server-name") or ""),
            path=self._path,
            files=tuple(self._files.items()),
        )

    def _tls(self, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority = self._material(cluster, "certificate-authority")
        if authority:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
            except ssl.SSLError:
                self._fail("clusters.certificate-authority", "is not a certificate in PEM")
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = self._material(user, "client-certificate"), self._material(user, "client-key")
        if bool(certificate) is not bool(key):
            self._fail("users.client-certificate", "and client-key must be given together")
        if certificate:
            with tempfile.NamedTemporaryFile() as file:  # the ssl module reads key pairs from files only
                file.write(certificate + b"\n" + key)
                file.flush()
                try:
                    context.load_cert_chain(file.name)
                except ssl.SSLError:
                    self._fail("users.client-certificate", "and client-key are not a certificate in PEM and its key")
        return context

    def _material(self, of: dict[str, Any], name: str) -> bytes:
        """What a key or its `-data` twin holds; empty where neither is given."""
        data = of.get(f"{name}-data")
        if data:
            try:
                return base64.b64decode(str(data), validate=True)
            except binascii.Error:
                self._fail(f"{name}-data", "is not base64")
        path = of.get(name)
        if not path:
            return b""
        place = self._absolute(str(path))
        self._files[place] = signature_at(place)
        try:
            with open(place, "rb") as file:
                return file.read(MAX_SIZE)
        except OSError as error:
            self._fail(name, f"cannot read {path}: {error.strerror}")

    def _named(self, config: dict[str, Any], plural: str, name: str, singular: str) -> dict[str, Any]:
        entries = config.get(plural)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(singular), dict):
                found: dict[str, Any] = entry[singular]
                return found
        return self._fail(plural, f"there is no {name!r}")

    def _text(self, of: dict[str, Any], key: str, where: str) -> str:
        value = of.get(key)
        if not isinstance(value, str) or not value:
            self._fail(f"{where}.{key}", "is required")
        return value

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._folder, path))

    def _fail(self, key: str, message: str) -> NoReturn:
        raise ConfigError(self._path, f"{key}: {message}" if key else message)


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or "error" if isinstance(error, OSError) else "it is not text"
