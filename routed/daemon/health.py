"""The pages of the HTTP server: `/healthz`, `/readyz`, `/metrics`, and an index of them, as text or JSON by Accept.

`/healthz` says 200 while the loop's clock ticks, 503 where the clock stopped but the loop still turns, and nothing at all
where the loop is stuck: a probe's time-out is the answer then. `/readyz` is `readiness`, with a line for each peer. What a
peer chose is escaped: text is on one line each and never HTML, JSON is ASCII.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from routed.daemon.http import Page, Response
from routed.daemon.metrics import Metrics
from routed.daemon.readiness import Readiness, ReadinessJudge
from routed.datastore.health import StoreHealth
from routed.observe.logs import harmless

#: Seconds without a tick (there is one a second) after which the daemon is not healthy.
TICKS_MISSED = 10.0

#: Seconds after which what the datastore said last is old: the file datastore looks three times a second, and a watch of
#: etcd that says nothing for 10 s is asked whether it lives.
STORE_AGE = 15.0

INDEX = b"""\
routed
/metrics   for Prometheus
/healthz   200 while the daemon works
/readyz    200 where this node may be given traffic; the reasons where not
"""


class Health:
    """See the module's docstring."""

    def __init__(
        self,
        judge: ReadinessJudge,
        store: StoreHealth,
        *,
        clock: Callable[[], float],
        kernel_problem: Callable[[], str],
        store_problem: Callable[[], str],
        stopping: Callable[[], bool],
    ) -> None:
        self._judge = judge
        self._store = store
        self._clock = clock
        self._kernel_problem = kernel_problem
        self._store_problem = store_problem
        self._stopping = stopping
        self._ticked_at = clock()

    def tick(self) -> None:
        """Once a second, by the daemon's clock, which also tells systemd's watchdog."""
        self._ticked_at = self._clock()
        self._judge.look(self._ticked_at)

    def readiness(self) -> Readiness:
        return self._judge.judge(
            self._clock(),
            kernel_problem=self._kernel_problem(),
            datastore_note=self._datastore_note(),
            stopping=self._stopping(),
        )

    def pages(self, metrics: Metrics) -> Mapping[str, Page]:
        async def measured(accept: str) -> Response:
            body, content_type = await metrics.page(accept)
            return Response(body, 200, content_type)

        return {"/": _index, "/metrics": measured, "/healthz": self._healthz, "/readyz": self._readyz}

    async def _healthz(self, accept: str) -> Response:
        age = self._clock() - self._ticked_at
        healthy = age < TICKS_MISSED
        status = 200 if healthy else 503
        if _wants_json(accept):
            return _json({"healthy": healthy, "lastTickSeconds": round(age, 3)}, status)
        words = "ok" if healthy else "the daemon's clock has stopped"
        return Response(f"{words}: the last tick was {age:.1f} s ago\n".encode(), status)

    async def _readyz(self, accept: str) -> Response:
        readiness = self.readiness()
        status = 200 if readiness.ready else 503
        if _wants_json(accept):
            row = {
                "ready": readiness.ready,
                "reasons": readiness.reasons,
                "notes": readiness.notes,
                "peers": [asdict(peer) for peer in readiness.peers],
            }
            return _json(row, status)
        lines = ["ready" if readiness.ready else "not ready"]
        lines += [f"- {reason}" for reason in readiness.reasons]
        lines += [f"note: {note}" for note in readiness.notes]
        lines += [
            f"peer {peer.name} {peer.address} {peer.state}{f': {peer.reason}' if peer.reason else ''}"
            for peer in readiness.peers
        ]
        return Response("".join(f"{harmless(line)}\n" for line in lines).encode(), status)

    def _datastore_note(self) -> str:
        store = self._store
        if store.from_snapshot:
            return (
                f"the datastore has not answered yet; its last good state is used, from {_age(store.as_of)}"
                f"{f' ({store.problem})' if store.problem else ''}"
            )
        if store.as_of is None:
            return self._store_problem() or store.problem
        if not store.connected or time.time() - store.as_of > STORE_AGE:
            problem = self._store_problem() or store.problem
            return f"what the datastore said last is from {_age(store.as_of)}{f': {problem}' if problem else ''}"
        return ""


async def _index(_: str) -> Response:
    return Response(INDEX)


def _age(as_of: float | None) -> str:
    return "an unknown time" if as_of is None else f"{max(0.0, time.time() - as_of):.0f} s ago"


def _wants_json(accept: str) -> bool:
    return "application/json" in accept


def _json(row: Mapping[str, object], status: int) -> Response:
    return Response(json.dumps(row, indent=2).encode() + b"\n", status, "application/json")
