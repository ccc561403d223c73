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

#: Characters of a column that is made narrower, at least.
NARROWEST = 8


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
    shrink: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Lines of a table. The columns named in `right` are flush right.

    Where a line would be wider than `width`, the widest columns of `shrink` are made narrower, and what does not fit into
    them is cut; where that is not enough, the end of the line is.
    """
    rows = iter(rows)
    sample = [_cells(row) for _, row in zip(range(SAMPLE), rows, strict=False)]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *sample, strict=True)]
    narrowed = [width is not None and heading in shrink for heading in headings]
    if width is not None:
        widths = _fitted(widths, narrowed, width)
    aligned_right = [heading in right for heading in headings]

    def line(cells: Sequence[str]) -> str:
        padded = [
            _cut(cell, size if narrow else None).rjust(size)
            if flush
            else _cut(cell, size if narrow else None).ljust(size)
            for cell, size, flush, narrow in zip(cells, widths, aligned_right, narrowed, strict=True)
        ]
        return _cut(GAP.join(padded).rstrip(), width)

    yield line(headings)
    for cells in sample:
        yield line(cells)
    for row in rows:
        yield line(_cells(row))


def _fitted(widths: list[int], may_shrink: list[bool], width: int) -> list[int]:
    """`widths` with the widest of the columns that may shrink made narrower, down to `NARROWEST`, until a line fits."""
    widths = list(widths)
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        wide = [size if may and size > NARROWEST else 0 for size, may in zip(widths, may_shrink, strict=True)]
        if not any(wide):
            break
        widths[wide.index(max(wide))] -= 1
    return widths


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


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
