"""Answers requests on a unix socket with the handlers it is given.

A handler is called with the request and returns the answer at once, or an iterator whose items are sent in batches,
with a turn of the loop between two batches: neither a large table nor a client that reads slowly holds anybody up. An
item of None is not sent: it only offers a turn, for work that comes before the first item.
An async iterator of batches is followed until the client goes away: a batch is sent when it is there, an empty one where
there was none for `HEARTBEAT`, so that both ends notice when the other one is gone.
Errors are sentences: a handler raises `ControlError` for the person who asked; anything else it raises is a bug, which
is handed to `on_bug` and answered in general words.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from routed.control.listening import Listening
from routed.control.protocol import (
    MAX_REQUEST,
    Request,
    decode_request,
    encode_error,
    encode_items,
    encode_result,
)
from routed.errors import ControlError

Handler = Callable[[Request], object]

#: Clients served at a time; a further one is told so and closed.
MAX_CLIENTS = 64

#: Seconds the items of one batch may take to produce, and how many they are at most.
BATCH_SECONDS = 0.005
BATCH_ITEMS = 256

#: Seconds between two lines of an answer that is followed.
HEARTBEAT = 3.0

#: Seconds a client may take to read what was sent, before it is dropped.
SLOWEST_READER = 60.0


class ControlServer:
    """The daemon's end of the control socket."""

    def __init__(self, handlers: Mapping[str, Handler], on_bug: Callable[[str, Exception], None]) -> None:
        self._handlers = dict(handlers)
        self._on_bug = on_bug
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._listening: Listening | None = None

    async def start(self, path: str) -> None:
        """Listen on `path`, mode 0660. Raises ConfigError where that can't be: another daemon is there, no permission."""
        self._listening = Listening(path, socket.SOCK_STREAM, 0o660, MAX_CLIENTS, "runDir")
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listening.socket, limit=MAX_REQUEST)

    async def stop(self) -> None:
        """Close the socket and every client, and remove the socket from its folder if it is still ours."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > MAX_CLIENTS:
                _write(writer, encode_error(f"too many clients: routed serves {MAX_CLIENTS} at a time"))
                return
            await self._serve_requests(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client went away, reads nothing, or the daemon stops: nobody is left to be told
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                _write(writer, encode_error(f"the request is larger than {MAX_REQUEST} octets"))
                return
            name = "?"
            try:
                request = decode_request(line)
                name = request.name
                handler = self._handlers.get(name)
                if handler is None:
                    raise ControlError(
                        f"unknown request `{name[:100]}`; this daemon answers: {', '.join(sorted(self._handlers))}"
                    )
                answer = handler(request)
                if isinstance(answer, Awaitable):
                    answer = await answer
                if isinstance(answer, AsyncIterator):
                    await self._follow(answer, reader, writer)
                    return
                if isinstance(answer, Iterator):
                    await self._stream(answer, writer)
                    answer = None
                _write(writer, encode_result(answer))
            except ControlError as error:
                _write(writer, encode_error(str(error)))
            except (ConnectionError, TimeoutError):
                raise
            except Exception as error:  # a bug of ours must neither end the daemon nor leave the client without a word
                self._on_bug(f"request {name}", error)
                _write(writer, encode_error("an internal error of routed; its log has the details"))
            await _drain(writer)

    async def _stream(self, items: Iterator[object], writer: asyncio.StreamWriter) -> None:
        close = getattr(items, "close", None)  # of a generator
        try:
            await self._send_all(items, writer)
        finally:
            if close is not None:
                close()

    async def _send_all(self, items: Iterator[object], writer: asyncio.StreamWriter) -> None:
        batch: list[object] = []
        until = time.monotonic() + BATCH_SECONDS
        try:
            for item in items:
                if item is not None:
                    batch.append(item)
                if len(batch) >= BATCH_ITEMS or time.monotonic() >= until:
                    if batch:
                        _write(writer, encode_items(batch))
                        batch = []
                        await _drain(writer)
                    await asyncio.sleep(0)
                    until = time.monotonic() + BATCH_SECONDS
        finally:
            # Also where it breaks off: what there is comes before the error. Also if empty: that tells an empty table
            # from a null answer.
            _write(writer, encode_items(batch))

    async def _follow(
        self, batches: AsyncIterator[object], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send what comes until the client closes, or says anything: there is no other way to end it."""
        gone = asyncio.ensure_future(reader.read(1))
        coming: asyncio.Future[object] | None = None
        batch: object = []
        try:
            while True:
                _write(writer, encode_items(batch if isinstance(batch, list) else [batch]))
                await _drain(writer)
                coming = coming or asyncio.ensure_future(_next(batches))
                await asyncio.wait((coming, gone), timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                batch = []
                if coming.done():
                    batch, coming = coming.result(), None
        finally:
            gone.cancel()
            if coming is not None:
                coming.cancel()
            close = getattr(batches, "aclose", None)
            if close is not None:
                await close()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write to a client that is there. Raises ConnectionResetError: what uvloop raises is no ConnectionError."""
    if writer.transport.is_closing():
        raise ConnectionResetError
    writer.write(data)


async def _next(batches: AsyncIterator[object]) -> object:
    return await anext(batches)


async def _drain(writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(SLOWEST_READER):
        await writer.drain()
