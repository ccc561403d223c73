"""What pyproject.toml can't say: files that are data, found by walking, and the CNI plugin as a program of its own.

The rest of the package's facts are there.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

#: Folders of this tree and where they come to be below the prefix (a venv, /usr). Man pages and completions are there once
#: `package.wheel` made them.
DATA = {
    "build/completions": "share",
    "build/man": "share/man/man{page}",
    "config": "share/doc/routed/examples",
    "systemd": "share/routed/systemd",
}

#: The container runtime starts the plugin for every call, so it starts without `site`, which takes as long as all the rest,
#: and isolated from the runtime's environment. An entry point can't: installers write the first line of those, without
#: options. So the first line is the shell's, and the file is both: to Python, what the shell runs is a string. Runtimes
#: have folders of their own for plugins; a link from there leads here, to the Python beside it.
PLUGIN = "build/scripts/routed-cni"
START = """\
#!/bin/sh
\""":"
here=$0
[ ! -L "$here" ] || here=$(readlink -f "$here")
python=${here%/*}/python3
[ -x "$python" ] || python=python3
exec "$python" -I -S "$here" "$@"
":\"""
"""


def plugin() -> str:
    """The plugin in Python as an executable file, made; its path."""
    path = Path(PLUGIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(START + Path("routed/cni/client.py").read_text(encoding="utf-8"), encoding="utf-8")
    return PLUGIN


def data_files() -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for source, target in DATA.items():
        for path in sorted(Path(source).rglob("*")):
            if path.is_file():
                inside = path.parent.relative_to(source)
                folder = Path(target.format(page=path.suffix[1:])) / inside
                found.setdefault(str(folder), []).append(str(path))
    return list(found.items())


setup(data_files=data_files(), scripts=[plugin()])
