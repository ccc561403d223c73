"""A key in etcd that one of many has, and only as long as it lives: written anew in time, or etcd deletes it.

Invariant: whoever takes it writes only where nobody has it or it is its own as it left it, so two never believe to have it
for longer than the time a write may be under way. What is done under it must bear that, as compare-and-swap writes do.
"""

from __future__ import annotations

import json
import secrets

from routed.datastore.etcd_client import Client


class Lease:
    """See the module's docstring."""

    def __init__(self, client: Client, path: str, node: str, run: str = "") -> None:
        """`run`: what tells who takes it from all others; empty: this run of the daemon."""
        self._client = client
        self._path = path
        self._value = json.dumps({"node": node, "run": run or secrets.token_hex(8)}).encode()
        self.held = False

    async def take(self, ttl: float) -> bool:
        """Take it, or keep it for `ttl` seconds more; False where another has it. Raises StoreError."""
        self.held = False
        there = await self._client.get(self._path)
        if there is not None and there.value != self._value:
            return False
        before = there.revision if there is not None else 0
        self.held = await self._client.swap([(self._path, before)], [(self._path, self._value)], ttl) is not None
        return self.held

    async def taken(self) -> bool:
        """Whether anybody has it. Raises StoreError."""
        return await self._client.get(self._path) is not None

    async def holder(self) -> str:
        """The `run` of who has it; empty where nobody has. Raises StoreError."""
        there = await self._client.get(self._path)
        try:
            return str(json.loads(there.value or b"")["run"]) if there is not None else ""
        except (ValueError, KeyError, TypeError, RecursionError):
            return "?"

    async def give_up(self) -> None:
        """Let another have it at once. Raises StoreError."""
        if not self.held:
            return
        self.held = False
        there = await self._client.get(self._path)
        if there is not None and there.value == self._value:
            await self._client.swap([(self._path, there.revision)], [(self._path, None)])
