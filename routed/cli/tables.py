"""Text for terminals: columns that fit, durations, and nothing a terminal would act on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from routed.observe.logs import harmless

#: Rows looked at before the first is printed: their widths hold for the whole table, which may be very long.
SAMPLE = 1000

GAP = "  "

#: Characters of a column that is made narrower, at least, where there is nothing to be said of it.
NARROWEST = 8

#: Characters of a key that stands in the line of what it is the key of, where there is not room for all keys.
KEY = 18

NOTHING: Mapping[str, int] = MappingProxyType({})


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
    shrink: Mapping[str, int] = NOTHING,
    spare: Sequence[str] = (),
    key: str = "",
) -> Iterator[str]:
    """Lines of a table. The columns named in `right` are flush right.

    Where a line would be wider than `width`, the columns of `shrink` are made narrower, the widest first and each down to
    the number of characters that stands there, and what does not fit into them is cut. Where that is not enough, cells of
    the column `key` that are longer than `KEY` stand on a line of their own, above the rest of theirs. Then the columns
    named in `spare` are left out, the first of them first, with a line behind the table that names them. Only where all
    that is not enough the end of the line is cut.
    """
    rows = iter(rows)
    sample = [_cells(row) for _, row in zip(range(SAMPLE), rows, strict=False)]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *sample, strict=True)]
    kept = list(range(len(headings)))
    left_out = []
    least = [min(size, shrink.get(heading, size)) for heading, size in zip(headings, widths, strict=True)]
    own_line = headings.index(key) if key and width is not None and _length(least) > width else -1
    if own_line >= 0:
        widths[own_line] = least[own_line] = max(
            (len(cells[own_line]) for cells in (headings, *sample) if len(cells[own_line]) <= KEY), default=0
        )
    if width is not None:
        for heading in spare:
            if _length([least[at] for at in kept]) <= width:
                break
            left_out.append(heading)
            kept.remove(headings.index(heading))
    widths, least = [widths[at] for at in kept], [least[at] for at in kept]
    if width is not None:
        widths = _fitted(widths, least, width)
    narrowed = [width is not None and headings[at] in shrink for at in kept]
    aligned_right = [headings[at] in right for at in kept]

    def line(cells: Sequence[str]) -> str:
        padded = [
            _cut(cell, size if narrow else None).rjust(size)
            if flush
            else _cut(cell, size if narrow else None).ljust(size)
            for cell, size, flush, narrow in zip(
                [cells[at] for at in kept], widths, aligned_right, narrowed, strict=True
            )
        ]
        return _cut(GAP.join(padded).rstrip(), width)

    def lines(cells: list[str]) -> Iterator[str]:
        if own_line >= 0 and len(cells[own_line]) > KEY:
            yield _cut(GAP.join([*(cells[at] for at in range(own_line)), cells[own_line]]), width)
            cells = ["" if at <= own_line else cell for at, cell in enumerate(cells)]
        yield line(cells)

    yield line(headings)
    for cells in sample:
        yield from lines(cells)
    for row in rows:
        yield from lines(_cells(row))
    if left_out:
        yield _cut(f"(no room for {', '.join(left_out)}; a wider terminal or --json has them)", width)


def _length(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _fitted(widths: list[int], least: list[int], width: int) -> list[int]:
    """`widths` with the widest of those above their `least` made narrower until a line fits."""
    widths = list(widths)
    while _length(widths) > width:
        wide = [size if size > lowest else 0 for size, lowest in zip(widths, least, strict=True)]
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
