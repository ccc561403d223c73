"""Echo requests in a row, read from what `ping` prints: which of them were lost.

`ping -c` waits after its last request for two round trips, a moment in a laboratory, and leaves without an answer that comes
later. So it is left to go on until one more answer is there than was needed, and what is lost is the gaps before answers.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

from routed.testing.lab.namespaces import Namespace, wait_for

#: Seconds until the first answer, and to wait at the end for one more.
FIRST_ANSWER, LAST_ANSWER = 30.0, 5.0

_numbers = itertools.count()


class Echoes:
    """What `ping -n -O`, which goes on until it is killed, prints into a file."""

    def __init__(self, output: Path, kill: Callable[[], None], what: str) -> None:
        """Returns once the first request was answered. `kill` ends it."""
        self._output = output
        self._kill = kill
        wait_for(self._answered, FIRST_ANSWER, f"{what}: the first answer", state=output.read_text)

    def _answered(self) -> list[int]:
        return sorted({int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", self._output.read_text())})

    def _asked(self) -> int:
        """The last request that ping says anything of, answered or not."""
        return max(int(number) for number in re.findall(r"icmp_seq=(\d+)", self._output.read_text()))

    def end(self) -> tuple[int, list[int]]:
        """The last request, and how many in a row were lost each time that some were. Ends it."""
        # what a cut took shows in the numbers only by the answer after it, so one more is waited for; where none comes, all
        # since the last is lost
        asked = self._asked()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self._answered()[-1] > asked, LAST_ANSWER)
        self._kill()  # ping tells of every packet when it comes, none are lost
        seen = self._answered()
        gaps = [after - before - 1 for before, after in itertools.pairwise([0, *seen])]
        last = seen[-1]
        if last <= asked:
            last = self._asked()
            gaps.append(last - seen[-1])
        return last, [gap for gap in gaps if gap]


def echoes(namespace: Namespace, address: str, interval: float = 0.01, source: str = "") -> Echoes:
    """Requests from a namespace (from `source`) to an address from now on, this many seconds between two."""
    name = f"ping-{address}-{next(_numbers)}"
    process = namespace.start(
        name, "ping", "-n", "-O", "-i", f"{interval:g}", *(("-I", source) if source else ()), address
    )
    return Echoes(process.log, process.kill, f"{namespace.name} > {address}")
