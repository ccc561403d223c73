"""The CNI plugin `routed-cni`, in Python: carries a call to the daemon and prints what it answers (see `protocol`).

Run as `python -I -S client.py`. Every CNI call starts an interpreter, so this imports nothing that is not built into it
where it can be helped: `json` only to report trouble, no `os`, no `socket`. `routed-cni.c` is its twin.
"""

import _socket  # the C module under `socket`, which itself takes as long to import as all the rest
import posix
import sys

GREETING = b"routed-cni 1\0"
MAX_MESSAGE = 128 * 1024
MAX_CALL = 8 * 1024 * 1024
DEFAULT_SOCKET = "/run/routed/cni.sock"
PATIENCE = 90.0
CLONE_NEWNET = 0x40000000
VERSIONS = '["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'

INVALID_ENVIRONMENT, IO_FAILURE, DECODE_FAILURE, TRY_AGAIN, NOT_AVAILABLE = 4, 5, 6, 11, 50


class Failure(Exception):
    """A call that ends without the daemon: (CNI error code, sentence)."""


def main() -> int:
    given = read_all(0)
    try:
        return call(given)
    except Failure as failure:
        import json  # noqa: PLC0415

        code, words = failure.args
        if code == TRY_AGAIN and posix.environ.get(b"CNI_COMMAND") == b"STATUS":
            code = NOT_AVAILABLE  # which is what was asked
        posix.write(
            1, json.dumps({"cniVersion": setting(given, "cniVersion", "1.0.0"), "code": code, "msg": words}).encode()
        )
        return 1


def call(given: bytes) -> int:
    variables = [(name, value) for name, value in posix.environ.items() if name.startswith(b"CNI_")]
    environment = dict(variables)
    command = environment.get(b"CNI_COMMAND", b"")
    if command == b"VERSION":
        version = setting(given, "cniVersion", "1.0.0")
        posix.write(1, f'{{"cniVersion":"{version}","supportedVersions":{VERSIONS}}}'.encode())
        return 0
    path = setting(given, "socket", DEFAULT_SOCKET)
    daemon = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    daemon.settimeout(PATIENCE)
    try:
        rights = enter(environment.get(b"CNI_NETNS", b""), needed=command in (b"ADD", b"CHECK"))
    except Failure:  # told only where the daemon answers, since without it the runtime should just try again
        connect(daemon, path)
        raise
    message = GREETING + b"".join(name + b"=" + value + b"\0" for name, value in variables) + b"\0" + given
    if len(message) % MAX_MESSAGE == 0:
        message += b"\n"  # one of that length is not the last
    if len(message) > MAX_CALL:
        raise Failure(DECODE_FAILURE, f"the network configuration has more than {MAX_CALL} octets")
    packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in rights)
    connect(daemon, path)  # last, so that it finds the call when it looks
    try:
        daemon.sendmsg([message[:MAX_MESSAGE]], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if packed else [])
        for begin in range(MAX_MESSAGE, len(message), MAX_MESSAGE):
            daemon.send(message[begin : begin + MAX_MESSAGE])
        while True:
            answer = daemon.recv(MAX_MESSAGE)
            if answer[:1] == b"S":
                daemon.send(b"s" + write_sysctls(answer[1:]))
            elif answer[:1] == b"R" and len(answer) > 1:
                write_all(1, answer[2:])
                return answer[1]
            else:
                raise Failure(TRY_AGAIN, "the routed daemon ended during the call; try again")
    except OSError as error:
        raise Failure(TRY_AGAIN, f"no answer from the routed daemon: {error}; try again") from None


def setting(given: bytes, name: str, default: str) -> str:
    """A text at the top of the configuration; the default where it is not there, or nothing is readable."""
    if f'"{name}"'.encode() not in given:
        return default
    import json  # noqa: PLC0415

    try:
        value = json.loads(given)[name]
    except (ValueError, TypeError, KeyError, RecursionError):
        return default
    return value if isinstance(value, str) else default


def connect(daemon: _socket.socket, path: str) -> None:
    try:
        daemon.connect(path)
    except (OSError, ValueError) as error:
        raise Failure(
            TRY_AGAIN,
            f"the routed daemon does not answer at {path} ({error}); is it running? `systemctl status routed`",
        ) from None


def enter(path: bytes, *, needed: bool) -> list[int]:
    """Go into the network namespace: [a netlink socket opened inside, the namespace]; nothing where there is none."""
    if not path and not needed:
        return []
    try:
        namespace = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        if not needed:
            return []
        words = f"CNI_NETNS: cannot open {path.decode(errors='replace')}: {error.strerror}"
        raise Failure(INVALID_ENVIRONMENT, words) from None
    if setns(namespace) != 0:
        if not needed:  # the file outlived its namespace
            return []
        raise Failure(INVALID_ENVIRONMENT, f"CNI_NETNS: cannot enter {path.decode(errors='replace')}")
    return [_socket.socket(16, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0).detach(), namespace]


def setns(namespace: int) -> int:
    if hasattr(posix, "setns"):  # Python 3.12
        try:
            posix.setns(namespace, CLONE_NEWNET)
        except OSError:
            return -1
        return 0
    import _ctypes  # noqa: PLC0415 - as `_socket`

    libc = _ctypes.dlopen("libc.so.6", 0)
    status: int = _ctypes.call_function(_ctypes.dlsym(libc, "setns"), (namespace, CLONE_NEWNET))
    return status


def write_sysctls(values: bytes) -> bytes:
    """Write {path NUL value NUL}; what went wrong first, or nothing. A file that says so already is not written: for some
    the kernel waits until nobody else changes any interface."""
    fields = values.split(b"\0")
    for path, value in zip(fields[0:-1:2], fields[1::2], strict=False):
        if not path.startswith(b"/proc/sys/net/") or b".." in path:
            return b"refused to write " + path
        try:
            file = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC)
            try:
                if posix.read(file, 64).strip() != value:
                    posix.pwrite(file, value, 0)
            finally:
                posix.close(file)
        except FileNotFoundError as error:
            if not path.startswith(b"/proc/sys/net/ipv6/"):  # which a kernel may be without
                return path + b": " + str(error.strerror).encode()
        except OSError as error:
            return path + b": " + str(error.strerror).encode()
    return b""


def read_all(file: int) -> bytes:
    parts = []
    while part := posix.read(file, 65536):
        parts.append(part)
    return b"".join(parts)


def write_all(file: int, data: bytes) -> None:
    while data:
        data = data[posix.write(file, data) :]


if __name__ == "__main__":
    sys.exit(main())
