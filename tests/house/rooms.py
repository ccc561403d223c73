"""The house as its own tests see it: modules, rooms, files."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "routed"

PURE = (
    "values", "errors", "net", "desired", "desired_policy", "observed", "bgp", "netlink", "model", "rib", "policy", "ipam",
    "plan", "core",
)  # fmt: skip
"""The rooms above the purity line."""


def modules(*rooms: str) -> list[Path]:
    """Python files of these rooms; of all rooms without any."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if not rooms or room_of(path) in rooms]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> tuple[tuple[str, str], ...]:
    """(module, name) of every import, wherever it stands; the name is empty for `import module`."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.module or "", alias.name


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def layers() -> list[set[str]]:
    """The rooms in the order of the import contract: a room imports only what comes later."""
    contract = next(each for each in settings()["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    return [{name.strip() for name in layer.split("|")} for layer in contract["layers"]]


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is part of the project: what git knows, or, in an unpacked archive, what is there."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        strange = [path.parent for path in ROOT.rglob("pyvenv.cfg")] + [ROOT / "build"]
        paths = [path for path in ROOT.rglob("*") if not any(map(path.is_relative_to, strange))]
        paths = [path for path in paths if not any(part[0] == "." for part in path.relative_to(ROOT).parts)]
    return tuple(path for path in sorted(paths) if path.is_file())


def documents() -> list[Path]:
    """The Markdown files."""
    return [path for path in project_files() if path.suffix == ".md"]


def table(text: str, *heads: str) -> list[list[str]]:
    """Rows of the Markdown table in `text` whose first columns have these heads, cells stripped."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("|") and [cell.strip() for cell in cells(line)][: len(heads)] == list(heads):
            next(lines)
            rows: list[list[str]] = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in cells(row)])
            return rows
    raise AssertionError(f"no table with the columns {', '.join(heads)}")


def cells(line: str) -> list[str]:
    return line.strip().strip("|").replace("\\|", "\0").split("|")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    marks = heading.split(maxsplit=1)[0]
    lines = text.splitlines()
    start = lines.index(heading) + 1
    end = next((at for at in range(start, len(lines)) if lines[at].startswith(f"{marks} ")), len(lines))
    return "\n".join(lines[start:end])
