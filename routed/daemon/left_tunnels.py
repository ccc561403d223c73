"""The tunnels a node has left when its pods are routed's no longer: taken away once no pool wants them.

With `cni.enabled` turned off the devices stay as they are, for pods may still live by them, or Felix follow, and take them
over. A device that no pool has a use for any more is nobody's, if it was made here, which its alias says: it goes, with its
address of the Node and in IPAM, as it does while `cni.enabled` is on. Where nothing of ours is there at the start, nothing
here is looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from routed.core.effects import Level
from routed.daemon.tunnel_addresses import LINGER, TunnelAddresses
from routed.dataplane.tunnels import TunnelKernel
from routed.datastore.store import Store
from routed.errors import KernelError
from routed.model.resources import VXLAN_DEVICES, EncapMode, IPPool, ResourceKey, Update
from routed.net.families import Family


def devices_left() -> list[str]:
    """What was made here."""
    try:
        with contextlib.closing(TunnelKernel()) as kernel:
            return kernel.left_behind()
    except (KernelError, OSError):  # nothing that anybody could see
        return []


class LeftTunnels:
    """See the module's docstring. All methods belong to the loop's thread."""

    def __init__(
        self,
        node_name: str,
        store: Store,
        log: Callable[[Level, str, str], None],
        bug: Callable[[str, Exception], None],
    ) -> None:
        self._kernel = TunnelKernel()
        self._devices = devices_left()
        self._log = log
        self._pools: dict[ResourceKey, IPPool] = {}
        self._publish: Callable[[Update], None] = lambda _: None
        self._addresses = TunnelAddresses(
            node_name, store, self._tell, self._gone, lambda _, __: None, log, bug, takes=False
        )
        self._removing: set[asyncio.Task[None]] = set()
        self._synced = False

    def start(self, publish: Callable[[Update], None]) -> None:
        """`publish` hears of every write."""
        self._publish = publish
        self._addresses.start()

    def _tell(self, update: Update) -> None:
        self._publish(update)

    async def stop(self) -> None:
        await self._addresses.stop()
        for task in self._removing:
            task.cancel()
        await asyncio.gather(*self._removing, return_exceptions=True)
        self._kernel.close()

    @property
    def problems(self) -> tuple[str, ...]:
        return self._addresses.problems

    def update(self, update: Update) -> None:
        """A resource exists with this value, or (None) does not."""
        if update.key.kind == IPPool.kind:
            self._pools.pop(update.key, None)
            if isinstance(update.value, IPPool):
                self._pools[update.key] = update.value
            self._look()
        self._addresses.update(update)

    def in_sync(self) -> None:
        self._synced = True
        self._look()
        self._addresses.in_sync()

    def _look(self) -> None:
        """What the Node names no address for is not given back, and goes all the same."""
        if self._synced and self._unwanted():
            task = asyncio.get_running_loop().create_task(self._go_later())
            self._removing.add(task)
            task.add_done_callback(self._removing.discard)

    async def _go_later(self) -> None:
        await asyncio.sleep(LINGER)
        await self._gone(b"")

    def _unwanted(self) -> list[str]:
        wanted = {pool.cidr.family for pool in self._pools.values() if pool.vxlan_mode is not EncapMode.NEVER}
        return [
            VXLAN_DEVICES[family]
            for family in Family
            if family not in wanted and VXLAN_DEVICES[family] in self._devices
        ]

    async def _gone(self, _: bytes) -> None:
        """Before an address is given back its device is gone."""
        for device in self._unwanted():
            self._devices.remove(device)
            try:
                await asyncio.to_thread(self._kernel.remove, device)
            except KernelError as error:
                self._log(Level.ERROR, "tunnels", str(error))
            else:
                self._log(Level.INFO, "tunnels", f"{device} is gone: it was made here, and no pool wants it any more")
