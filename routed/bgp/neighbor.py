"""One configured neighbour: its connections, who may connect when, and what its table owner must know.

(configuration and events are settled; the machine follows)
"""

from __future__ import annotations

from dataclasses import dataclass

from routed.net.families import Family


@dataclass(frozen=True, slots=True)
class NeighborConfig:
    """What is configured of one neighbour. Times are seconds; addresses are packed octets."""

    name: str
    """The name people see, e.g. `Mesh_10_0_0_2`."""
    address: bytes
    port: int
    """TCP port to connect to."""
    local_address: bytes
    """Source address of our connections; empty: the kernel chooses."""
    local_as: int
    peer_as: int
    router_id: int
    """Our BGP identifier: not zero (RFC 6286)."""
    passive: bool
    """Never connect, only accept."""
    families: tuple[Family, ...]
    hold_time: int = 240
    """What our OPEN proposes: 0 (no keepalives) or at least 3 (RFC 4271 4.2)."""
    keepalive_time: int = 0
    """Longest time between KEEPALIVEs; 0, or more than a third of the negotiated hold time: that third."""
    connect_retry_time: float = 5.0
    """Wait before the first retry; doubled with every failure."""
    connect_retry_limit: float = 30.0
    """The longest wait, and how long a session must have been Established for earlier failures to be forgotten."""
    graceful_restart: bool = True
    """Advertise RFC 4724 and keep the peer's routes while it restarts."""
    restart_time: int = 120
    """What our graceful restart capability promises, at most 4095."""
    interface: str = ""
    """For a link-local `address`: the interface it is on."""
    admin_down: bool = False

    @property
    def external(self) -> bool:
        """Whether this is an eBGP neighbour."""
        return self.local_as != self.peer_as

    def needs_reset(self, old: NeighborConfig) -> bool:
        """Whether a session held under `old` must end before this configuration can apply.

        The rest changes live: `passive`, `admin_down`, `port` and the times (those the OPEN carries: from the next session on).
        """
        return (
            self.address != old.address
            or self.local_address != old.local_address
            or self.interface != old.interface
            or self.local_as != old.local_as
            or self.peer_as != old.peer_as
            or self.router_id != old.router_id
            or set(self.families) != set(old.families)
            or self.graceful_restart != old.graceful_restart
        )
