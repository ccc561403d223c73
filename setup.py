"""What pyproject.toml can't say: files that are data, found by walking. The rest of the package's facts are there."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

#: Folders of this tree and where they come to be below the prefix (a venv, /usr). Man pages are there after `make man`.
DATA = {
    "build/man": "share/man/man{page}",
    "config": "share/doc/routed/examples",
    "systemd": "share/routed/systemd",
}


def data_files() -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for source, target in DATA.items():
        for path in sorted(Path(source).rglob("*")):
            if path.is_file():
                inside = path.parent.relative_to(source)
                folder = Path(target.format(page=path.suffix[1:])) / inside
                found.setdefault(str(folder), []).append(str(path))
    return list(found.items())


setup(data_files=data_files())
