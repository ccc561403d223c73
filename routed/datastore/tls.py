"""Why a member of etcd and we do not come together over TLS, in a sentence with what to do.

gRPC says no more than that a handshake failed. So where a connection over https fails, one is made with Python's own TLS,
with the same files, only to hear the reason. Nothing is asked of etcd over it, and nothing is decided by it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from routed.datastore.etcd_settings import EtcdConfig

#: Seconds each step may take.
_PATIENCE = 2.0

#: Parts of OpenSSL's names for what the other side says of our certificate.
_ABOUT_OURS = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN",
               "HANDSHAKE_FAILURE", "ACCESS_DENIED", "UNSUPPORTED_CERTIFICATE")  # fmt: skip


def tls_problem(endpoint: str, config: EtcdConfig) -> str:
    """The reason, as of now; empty where TLS is not what fails. Blocks for some seconds at most."""
    scheme, _, target = endpoint.partition("://")
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    if scheme != "https":
        return "it speaks TLS: use https://, with its authority in datastore.caFile" if _speaks_tls(host, port) else ""
    try:
        context = ssl.create_default_context(cafile=config.ca_file or None)
    except OSError as error:
        return f"datastore.caFile: {config.ca_file} holds no certificate: {_words(error)}"
    context.set_alpn_protocols(["h2"])
    if config.cert_file:
        try:
            context.load_cert_chain(config.cert_file, config.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            return f"datastore.certFile and datastore.keyFile are no certificate with its key: {_words(error)}"
    try:
        with socket.create_connection((host, int(port)), _PATIENCE) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host) as secure:
                    # TLS 1.3 refuses a client's certificate only now. Nothing is sent: with octets of ours unread the
                    # connection would be reset, and the alert lost.
                    secure.settimeout(_PATIENCE)
                    secure.recv(1)
            except ssl.SSLCertVerificationError as error:
                return _about_theirs(error.verify_message, config)
            except ssl.SSLError as error:
                return _about_ours(error.reason or "", config) or f"TLS fails: {_words(error)}"
    except OSError:
        pass  # TLS is not what fails
    return ""


def _speaks_tls(host: str, port: str) -> bool:
    """Whether a TLS handshake gets as far as to a certificate, ours or theirs, whoever signed it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), _PATIENCE) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return any(alert in (error.reason or "") for alert in _ABOUT_OURS)
    except OSError:
        return False


def _about_theirs(said: str, config: EtcdConfig) -> str:
    whose = "its certificate, or the authority's that signed it,"
    if "expired" in said:
        return f"{whose} is no longer valid: {said}; renew it"
    if "not yet valid" in said:
        return f"{whose} is not valid yet: {said}; is this machine's clock right?"
    if "mismatch" in said or "not valid for" in said:
        return f"its certificate is for another name: {said}; use a name or address that it has, or renew it"
    where = f"datastore.caFile ({config.ca_file})" if config.ca_file else "datastore.caFile, which is not set"
    return f"its certificate is not signed by an authority in {where}: {said}"


def _about_ours(reason: str, config: EtcdConfig) -> str:
    alert = next((each for each in _ABOUT_OURS if each in reason), "")
    if not alert:
        return (
            "it does not speak TLS: use http://" if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE") else ""
        )
    said = alert.lower().replace("_", " ")
    if not config.cert_file:
        return f"it wants a certificate of ours ({said}): set datastore.certFile and datastore.keyFile"
    return (
        f"it does not accept our certificate ({said}): look at who signed {config.cert_file} and when it is valid, as in "
        f"openssl x509 -noout -issuer -dates -in {config.cert_file}"
    )


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    with contextlib.suppress(AttributeError):
        return (reason or getattr(error, "strerror", None) or str(error)).lower().replace("_", " ")
    return str(error)


def _no_password() -> str:
    raise ValueError("the key has a password, and nobody is there to ask")
