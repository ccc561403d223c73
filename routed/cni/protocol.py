"""What the CNI plugin and the daemon say to each other, over a SOCK_SEQPACKET unix socket: one call, one connection.

    plugin -> daemon   b"routed-cni 1\\0" { NAME=VALUE "\\0" } "\\0" standard-input
                       the CNI_* variables of the call, then the network configuration as the runtime gave it; with
                       it, as SCM_RIGHTS where the call has a network namespace: an AF_NETLINK socket opened inside it,
                       and the namespace itself
    daemon -> plugin   b"S" { path "\\0" value "\\0" }
                       write these files below /proc/sys/net, as seen inside the namespace
    plugin -> daemon   b"s" error-text (empty: all written)
    daemon -> plugin   b"R" status standard-output
                       one octet of exit status, then what to print; the last message

The daemon never enters a namespace (it may not), so what must be done inside goes through the socket or through the
plugin. A message holds at most `MAX_MESSAGE` octets. A call that is longer (a pod's annotations may be, and what a GC
spares) comes in several, all but the last of exactly so many; at most `MAX_CALL` in all. Pure; both clients carry their
own copy of these few constants, and a test holds all three together.
"""

from __future__ import annotations

from collections.abc import Iterable

from routed.values import dataclass

GREETING = b"routed-cni 1\x00"
MAX_MESSAGE = 128 * 1024
MAX_CALL = 8 * 1024 * 1024
DEFAULT_SOCKET = "/run/routed/cni.sock"

#: Versions of the CNI specification a configuration may name.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

SYSCTLS = b"S"
SYSCTLS_DONE = b"s"
RESULT = b"R"


@dataclass(frozen=True, slots=True)
class Call:
    """A CNI call as it arrived."""

    environment: dict[str, str]
    """The CNI_* variables."""
    configuration: bytes
    """Standard input."""


def parse_call(message: bytes) -> Call:
    """Raises ValueError where it is no call of this version."""
    if not message.startswith(GREETING):
        raise ValueError("not the greeting of routed-cni")
    rest = message[len(GREETING) :]
    environment: dict[str, str] = {}
    while True:
        entry, found, rest = rest.partition(b"\x00")
        if not found:
            raise ValueError("the variables do not end")
        if not entry:
            return Call(environment, rest)
        name, _, value = entry.decode("utf-8", "surrogateescape").partition("=")
        environment[name] = value


def encode_call(call: Call) -> bytes:
    entries = b"".join(
        f"{name}={value}".encode("utf-8", "surrogateescape") + b"\x00" for name, value in call.environment.items()
    )
    return GREETING + entries + b"\x00" + call.configuration


def encode_sysctls(values: Iterable[tuple[str, str]]) -> bytes:
    """`values` are (path below /proc/sys/net, value)."""
    return SYSCTLS + b"".join(f"/proc/sys/net/{path}\x00{value}\x00".encode() for path, value in values)


def encode_result(status: int, output: bytes) -> bytes:
    return RESULT + bytes((status,)) + output
