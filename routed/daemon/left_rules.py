"""The policies a node has left when its pods are routed's no longer: told of, for as long as they are in the kernel.

With `cni.enabled` turned off the table of rules stays as it is. Taking it away would open the pods that still run, before
whoever follows enforces anything; left where it is, it denies every pod it does not know. So it goes by the hand of who
knows that it may. Where there is none at the start, nobody asks again.
"""

from __future__ import annotations

from routed.dataplane.firewall_layout import TABLE
from routed.dataplane.table_socket import TableSocket


class LeftRules:
    """See the module's docstring."""

    def __init__(self) -> None:
        """In the network namespace of this thread."""
        self._socket: TableSocket | None = None
        try:
            self._socket = TableSocket(TABLE)
        except OSError:  # a kernel without nf_tables has no table either
            return
        if not self._is_there():
            self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What to do about it; none where there is nothing (any more)."""
        if not self._is_there():
            return ()
        told = (
            f"table inet {TABLE} is in the kernel from when this node's pods were routed's (cni.enabled): it follows no "
            f"policy any more and drops what pods made since send and get; where something else enforces policies, or "
            f"nothing should, remove it: nft delete table inet {TABLE}"
        )
        return (told,)

    def _is_there(self) -> bool:
        try:
            return self._socket is not None and self._socket.is_there()
        except OSError:
            return False
