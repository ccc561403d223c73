"""Text for terminals: columns that fit, durations, and nothing a terminal would act on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from routed.observe.logs import harmless

#: Rows looked at before the first is printed: their widths hold for the whole table, which may be very long.
SAMPLE = 1000

GAP = "  "


def terminal_width() -> int | None:
    """Columns of the terminal, or None where the output goes elsewhere: then nothing is cut."""
    if "COLUMNS" not in os.environ and not sys.stdout.isatty():
        return None
    return max(40, shutil.get_terminal_size().columns)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: frozenset[str] = frozenset(),
    width: int | None = None,
) -> Iterator[str]:
    """Lines of a table. The columns named in `right` are flush right; the last one is cut where `width` would be passed."""
    rows = iter(rows)
    sample = [_cells(row) for _, row in zip(range(SAMPLE), rows, strict=False)]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *sample, strict=True)]
    aligned_right = [heading in right for heading in headings]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(size) if flush else cell.ljust(size)
            for cell, size, flush in zip(cells, widths, aligned_right, strict=True)
        ]
        text = GAP.join(padded).rstrip()
        return text if width is None or len(text) <= width else text[: width - 1] + "…"

    yield line(headings)
    for cells in sample:
        yield line(cells)
    for row in rows:
        yield line(_cells(row))


def _cells(row: Sequence[object]) -> list[str]:
    return ["-" if cell is None or cell == "" else harmless(str(cell)) for cell in row]


def facts(pairs: Iterable[tuple[str, object]], indent: str = "") -> Iterator[str]:
    """`name: value` lines with the values under each other; a value that is None or empty is left out."""
    kept = [(name, harmless(str(value))) for name, value in pairs if value is not None and value != ""]
    size = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        yield f"{indent}{name + ':':<{size + 1}} {value}"


def duration(seconds: object) -> str:
    """`00:05:12`, or `3d04h12m` from a day on, as routers write it; empty for what is no number."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02}h{minute:02}m" if days else f"{hour:02}:{minute:02}:{second:02}"
