"""How far an etcd has counted, by which one that was restored from a backup, or set up anew, is told from the one of before.

Invariant: within one life of one cluster no number of a later `Count` is smaller, whichever member says it, if that has
answered a linearizable read just before. A restored etcd begins to count anew at its backup's revision, and at nothing with
what raft counts: so its revision may have got past the old one's within seconds, while raft's index takes as many writes
as there were in the whole life before.
"""

from __future__ import annotations

from routed.values import dataclass


@dataclass(frozen=True, slots=True)
class Count:
    cluster_id: int = 0
    revision: int = 0
    term: int = 0
    """Of raft: one more with each election."""
    index: int = 0
    """Of raft: one more with each proposal. 0: not known."""

    def continues(self, before: Count) -> bool:
        """Whether this may be the etcd of before, later."""
        return (
            self.cluster_id == before.cluster_id
            and self.revision >= before.revision
            and self.term >= before.term
            and (self.index >= before.index or not self.index)
        )
