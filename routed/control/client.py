"""Asks the daemon a question over its control socket and waits for the answer. Blocking; for command-line programs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from routed.control.protocol import MAX_REPLY, Request, decode_reply, encode_request
from routed.errors import ControlError, RoutedError

#: Seconds without a word from the daemon before the client gives up: it works in slices of milliseconds.
PATIENCE = 10.0


class Unreachable(RoutedError):
    """The daemon could not be asked; the text says why and what to do."""


class ControlClient:
    """One connection to a daemon; a context manager."""

    def __init__(self, path: str, patience: float = PATIENCE) -> None:
        """Connect to the socket at `path`. Raises Unreachable."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Unreachable(_why_unreachable(path, error)) from None
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._socket.close()

    def ask(self, name: str, **arguments: object) -> object:
        """The answer to a request that has one value. Raises ControlError (the daemon's sentence) or Unreachable."""
        for reply in self._exchange(Request(name, arguments)):
            return reply
        return None

    def stream(self, name: str, **arguments: object) -> Iterator[object]:
        """The items of a streamed answer, as they arrive. Raises as `ask` does."""
        return self._exchange(Request(name, arguments))

    def _exchange(self, request: Request) -> Iterator[object]:
        try:
            with contextlib.suppress(BrokenPipeError):  # who is refused at once is told why: that is still to be read
                self._socket.sendall(encode_request(request))
            streamed = False
            while True:
                line = self._reader.readline(MAX_REPLY)
                if not line.endswith(b"\n"):
                    raise Unreachable(f"routed closed the connection on {self._path} before its answer was complete")
                reply = decode_reply(line)
                if reply.error is not None:
                    raise ControlError(reply.error)
                if reply.items is None:
                    if not streamed:
                        yield reply.result
                    return
                streamed = True
                yield from reply.items
        except TimeoutError:
            raise Unreachable(
                f"routed did not answer on {self._path} for {self._socket.gettimeout():.0f} s: it is stopped, or stuck; its"
                " log and `systemctl status routed` may say more"
            ) from None
        except OSError as error:
            raise Unreachable(f"the connection to routed on {self._path} broke: {error.strerror or error}") from None


def _why_unreachable(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return (
            f"routed is not running: nothing listens on {path}; start it with `systemctl start routed`"
            " or `routed run --config FILE`, or name its socket with --socket"
        )
    if isinstance(error, PermissionError):
        return f"no permission to open {path}: run routedctl as root or as a member of the socket's group"
    return f"cannot connect to routed on {path}: {error.strerror or error}"
