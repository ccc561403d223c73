"""How well a datastore does: what `/readyz`, the metrics and `routedctl status` say of it.

The store owns one `StoreHealth` and writes to it as things happen; everybody else only reads, at any time, on the loop's
thread. Plain numbers: nothing is computed here, and nothing is asked of the store when somebody looks.
"""

from __future__ import annotations

from routed.values import dataclass


@dataclass(slots=True)
class StoreHealth:
    """See the module's docstring."""

    kind: str
    """`file` or `etcd`."""
    connected: bool = False
    """The store answers: what we hold follows what it says."""
    problem: str = ""
    """Why it does not, in a sentence; empty while it does."""
    as_of: float | None = None
    """Unix time at which what we hold was last known to be what the store says; None before anything was read."""
    from_snapshot: bool = False
    """What we hold is the last good state of an earlier run, from `stateDir`: the store has not answered yet."""
    revision: int = 0
    """Of what we hold; 0 where the store has none."""
    changes: int = 0
    """Changes given to the sink after the first complete reading."""
    readings: int = 0
    """Times everything was read: the first, and after a compaction or a lost watch."""
    failures: int = 0
    """Times the store could not be reached or read."""
    held: int = 0
    """Deletions held back by the mass-delete guard, now."""
