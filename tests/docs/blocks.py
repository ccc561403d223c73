"""The command lines of a Markdown page: what a reader would type, with the output the page shows for it.

A block is fenced, or indented by four columns after an empty line or a heading. In it a command is

- a line behind a prompt, `$ ` or `# `, whatever the block; the lines up to the next one are its output;
- in a block without prompts whose fence says sh, bash, shell or console, and in one whose first line is a command known to
  `test_commands`: every line.

A comment on the line before a block says what can't be seen in it:

    <!-- not run: REASON -->     is an illustration; the reason is for whoever reviews the page
    <!-- exits with: 78 -->      its commands end with this status
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHELLS = ("sh", "bash", "shell", "console")

MARKER = re.compile(r"<!-- (not run|exits with): (.*?) -->")


@dataclass
class Block:
    """A piece of code of a page."""

    page: Path
    line: int
    language: str
    text: list[str]
    markers: dict[str, str]


@dataclass
class Command:
    """One command line, as it stands there."""

    page: Path
    line: int
    text: str
    markers: dict[str, str]
    output: list[str] = field(default_factory=list)

    @property
    def program(self) -> str:
        """What it runs, without what stands before it (`sudo`, variables) and without a folder in front."""
        words = re.sub(r"^(sudo |\w+=\S+ )*", "", self.text).split()
        return words[0].rpartition("/")[2] if words else ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}: {self.text}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    at, before = 0, ""
    while at < len(lines):
        line = lines[at]
        fence = re.match(r"( *)(```+|~~~+) *(\w*)", line)
        if fence:
            end = next(
                (n for n in range(at + 1, len(lines)) if lines[n].strip().startswith(fence[2])), len(lines)
            )  # fmt: skip
            yield Block(
                page, at + 2, fence[3], textwrap.dedent("\n".join(lines[at + 1 : end])).splitlines(), _markers(before)
            )
            at, before = end + 1, ""
            continue
        if line.startswith("    ") and line.strip() and (at == 0 or re.match(r"#|\s*$", lines[at - 1])):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = textwrap.dedent("\n".join(lines[at:end])).rstrip().splitlines()
            yield Block(page, at + 1, "", text, _markers(before))
            at, before = end, ""
            continue
        if line.strip():
            before = line
        at += 1


def _markers(line: str) -> dict[str, str]:
    return dict(MARKER.findall(line))


def commands(page: Path, known: Collection[str]) -> Iterator[Command]:
    """The commands of a page; `known` are the programs by which a block without prompts is told from a text."""
    for block in blocks(page):
        if any(_prompted(line, block, known) for line in block.text):
            yield from _prompts(block, known)
        elif block.language in SHELLS or (not block.language and _first(block, known)):
            yield from _lines(block)


def _prompted(line: str, block: Block, known: Collection[str]) -> bool:
    if line.startswith("$ "):
        return True
    if not line.startswith("# "):
        return False
    word = line[2:].split(maxsplit=1)[0].rpartition("/")[2] if line[2:].split() else ""
    return block.language == "console" or (not block.language and word in known)


def _first(block: Block, known: Collection[str]) -> bool:
    return bool(block.text) and Command(block.page, 0, block.text[0], {}).program in known


def _prompts(block: Block, known: Collection[str]) -> Iterator[Command]:
    found: list[Command] = []
    for number, line in enumerate(block.text):
        if _prompted(line, block, known):
            found.append(Command(block.page, block.line + number, _plain(line[2:]), block.markers))
        elif found and not found[-1].output and found[-1].text.endswith("\\"):
            found[-1].text = found[-1].text[:-1] + _plain(line)
        elif found:
            found[-1].output.append(line)
    yield from found


def _lines(block: Block) -> Iterator[Command]:
    text, start = "", 0
    for number, line in enumerate(block.text):
        start = start if text else number
        text += _plain(line)
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if text.strip():
            yield Command(block.page, block.line + start, text.strip(), block.markers)
        text = ""


def _plain(line: str) -> str:
    """A line without its comment."""
    return re.sub(r"(^|\s+)#(\s.*)?$", "", line)
