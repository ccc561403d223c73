"""The socket the CNI plugin calls: takes calls with their descriptors, hands them on, answers (see `cni.protocol`).

One connection is one call. A call that is not understood, or whose handling raises, gets a CNI error; the daemon goes on.
Descriptors that came with a call are closed when it ends, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterable

from routed.cni.call import (
    DECODE_FAILURE,
    INTERNAL,
    INVALID_CONFIGURATION,
    TRY_AGAIN,
    Request,
    parse_request,
    version_of,
)
from routed.cni.protocol import MAX_CALL, MAX_MESSAGE, SYSCTLS_DONE, encode_result, encode_sysctls, parse_call
from routed.cni.results import format_error
from routed.control.listening import Listening
from routed.daemon.background import Background
from routed.errors import CniError, ConfigError, RoutedError

#: Calls handled at once; more wait in the socket's queue.
BACKLOG = 512
#: Seconds the plugin may take to write sysctls.
PATIENCE = 10.0
#: Seconds between two looks whether the socket is still where the plugin looks for it.
LOOK = 5.0
_DESCRIPTORS = 2
#: What the plugin opens, so that the kernel need not be asked what it is.
_NETLINK = (socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)

Handler = Callable[[Request, "Inside | None", "Conversation"], Awaitable[bytes]]
"""Carries a call out; what it returns is printed. Raises CniError."""


class Inside:
    """What was opened in the container's network namespace."""

    def __init__(self, netlink: socket.socket, namespace: int) -> None:
        self.netlink = netlink
        self.namespace = namespace


class Conversation:
    """One call's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._writing = False
        """The plugin was asked to write sysctls, and has not answered."""

    async def begin_sysctls(self, values: Iterable[tuple[str, str]]) -> None:
        """Have the plugin write files below /proc/sys/net inside the container's namespace, if any. Raises CniError."""
        asked = list(values)
        if not asked:
            return
        try:
            await self._send(encode_sysctls(asked))
        except OSError:
            raise CniError(TRY_AGAIN, "the plugin ended during the call") from None
        self._writing = True

    async def sysctls_written(self) -> None:
        """Until it has, where it was asked to. Raises CniError."""
        if not self._writing:
            return
        self._writing = False
        try:
            try:
                answer = self._connection.recv(MAX_MESSAGE)  # mostly it wrote them long before anybody asks
            except BlockingIOError:
                async with asyncio.timeout(PATIENCE):
                    answer = await asyncio.get_running_loop().sock_recv(self._connection, MAX_MESSAGE)
        except (OSError, TimeoutError):
            raise CniError(TRY_AGAIN, "the plugin ended during the call") from None
        if answer[:1] != SYSCTLS_DONE:
            raise CniError(TRY_AGAIN, "the plugin did not say whether it wrote the sysctls")
        if len(answer) > 1:
            raise CniError(INTERNAL, f"inside the container: {answer[1:].decode('utf-8', 'replace')}")

    async def answer(self, status: int, output: bytes) -> None:
        if self._writing:  # a connection that ends with something unread loses its last words
            with contextlib.suppress(CniError):
                await self.sysctls_written()
        with contextlib.suppress(OSError):  # it has gone; whoever runs it will ask again
            await self._send(encode_result(status, output))

    async def _send(self, message: bytes) -> None:
        """Raises OSError."""
        try:
            self._connection.send(message)
        except BlockingIOError:
            await asyncio.get_running_loop().sock_sendall(self._connection, message)


class CniServer:
    """See the module's docstring."""

    def __init__(self, handler: Handler, bug: Callable[[str, Exception], None]) -> None:
        self._handler = handler
        self._bug = bug
        self._listening: Listening | None = None
        self._looking = Background()
        self.problem = ""
        """Why no call arrives; empty where they do."""
        self._calls: set[asyncio.Task[None]] = set()

    def start(self, path: str) -> None:
        """Listen at `path`, for root alone, also where somebody removes it. Raises ConfigError."""
        self._loop = asyncio.get_running_loop()
        self._listen(path)
        self._looking.start(self._look(path))

    async def stop(self) -> None:
        """No more calls; those under way are ended."""
        await self._looking.stop()
        self._end_listening()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _listen(self, path: str) -> None:
        """Raises ConfigError."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            self._listening = Listening(path, socket.SOCK_SEQPACKET, 0o600, BACKLOG, "cni.socket")
        except OSError as error:  # of the folder, or there is no descriptor for another socket
            raise ConfigError(path, f"cni.socket: cannot listen there: {error.strerror}") from None
        self._loop.add_reader(self._listening.socket.fileno(), self._accept)

    def _end_listening(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening.socket.fileno())
            self._listening.close()
            self._listening = None

    async def _look(self, path: str) -> None:
        """The plugin would find nobody at a path that leads nowhere, and nobody here would know."""
        while True:
            await asyncio.sleep(LOOK)
            if self._listening is None or not self._listening.is_there:
                self._end_listening()
                try:
                    self._listen(path)
                except ConfigError as error:
                    self.problem = f"no CNI call arrives: {error}"
                else:
                    self.problem = ""

    def _accept(self) -> None:
        assert self._listening is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self._listening.socket.accept()
            connection.setblocking(False)
            call = self._loop.create_task(self._serve(connection))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        with connection:
            try:
                message = await self._receive(connection, descriptors)
                await self._handle(message, descriptors, Conversation(connection))
            except (OSError, TimeoutError):
                pass  # whoever called is gone
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def _receive(self, connection: socket.socket, descriptors: list[int]) -> bytes:
        """The call, once it is there: mostly it came with the connection, and in one piece."""
        message = part = await self._part(connection, descriptors)
        while len(part) == MAX_MESSAGE and len(message) < MAX_CALL:
            part = await self._part(connection, descriptors)
            message += part
        return message

    async def _part(self, connection: socket.socket, descriptors: list[int]) -> bytes:
        try:
            return self._received(connection, descriptors)
        except BlockingIOError:
            pass
        ready: asyncio.Future[None] = self._loop.create_future()

        def arrived() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(connection.fileno(), arrived)
        try:
            async with asyncio.timeout(PATIENCE):
                await ready
        finally:
            self._loop.remove_reader(connection.fileno())
        return self._received(connection, descriptors)

    def _received(self, connection: socket.socket, descriptors: list[int]) -> bytes:
        message, found, _, _ = socket.recv_fds(connection, MAX_MESSAGE, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        descriptors += found
        return message

    async def _handle(self, message: bytes, descriptors: list[int], conversation: Conversation) -> None:
        version = "1.0.0"
        try:
            try:
                call = parse_call(message)
            except ValueError as error:
                raise CniError(DECODE_FAILURE, f"the plugin is of another version than the daemon: {error}") from None
            version = version_of(call)
            request = parse_request(call)
            if len(descriptors) == _DESCRIPTORS:
                with socket.socket(*_NETLINK, descriptors.pop(0)) as netlink:
                    output = await self._handler(request, Inside(netlink, descriptors[0]), conversation)
            else:
                output = await self._handler(request, None, conversation)
        except CniError as error:
            await conversation.answer(1, format_error(version, error))
        except ConfigError as error:  # what was asked for cannot be written down, now or later
            await conversation.answer(1, format_error(version, CniError(INVALID_CONFIGURATION, str(error))))
        except RoutedError as error:
            await conversation.answer(1, format_error(version, CniError(TRY_AGAIN, str(error))))
        except Exception as error:
            self._bug("a CNI call", error)
            await conversation.answer(
                1, format_error(version, CniError(INTERNAL, "internal error of routed; its log has the details"))
            )
        else:
            await conversation.answer(0, output)
