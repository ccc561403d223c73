"""What the keeper of pods' interfaces looks at, and when; what it does to them is tried on a kernel, in tests/lab."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from typing import Any, cast

from routed.daemon.pod_keeper import PodKeeper
from routed.errors import KernelError
from routed.model.resources import Update
from routed.model.schema import parse_manifest

INTERFACE = "cali0123456789a"


def endpoint(container: str) -> Update:
    manifest = {
        "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": f"n1-cni-{container}-eth0", "namespace": "default"},
        "spec": {
            "orchestrator": "cni", "node": "n1", "containerID": container, "endpoint": "eth0",
            "interfaceName": INTERFACE, "mac": "02:00:00:00:00:09", "ipNetworks": ["10.65.0.1/32"],
        },
    }  # fmt: skip
    made = parse_manifest(manifest)
    return Update(made.key, made)


class Looked:
    """In the place of the kernel and of the calls for pods: what is looked at, and nothing can be seen."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[str, ...] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def node_state(self, only: tuple[str, ...] | None = None) -> Any:
        """Called in a thread."""
        self._loop.call_soon_threadsafe(self.asked.put_nowait, only)
        raise KernelError(errno.EIO, "", "this test's kernel")

    @contextlib.asynccontextmanager
    async def turn(self, _: str) -> AsyncIterator[None]:
        yield


def bug(where: str, error: Exception) -> None:
    raise AssertionError(where) from error


def test_an_interface_that_two_endpoints_named_is_looked_at_once_it_is_ones_again():
    """What somebody did to it meanwhile was nobody's, and the next look at all may be half a minute away."""

    async def body() -> None:
        looked = Looked()
        keeper = PodKeeper("n1", cast("Any", looked), cast("Any", looked), False, lambda: None, lambda *_: None, bug)
        keeper.start()
        try:
            async with asyncio.timeout(20):  # less than RESYNC
                keeper.update(endpoint("one"))
                other = endpoint("two")
                keeper.update(other)
                keeper.in_sync()
                assert await looked.asked.get() is None, "at all, at first"
                keeper.update(Update(other.key, None))
                assert await looked.asked.get() == (INTERFACE, "")
        finally:
            await keeper.stop()

    asyncio.run(body())
