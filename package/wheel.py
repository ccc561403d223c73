"""The wheel: the package, and beside it man pages, completions, the configuration as shipped, samples and systemd's files.

    python -m package.wheel dist

It is built of a copy of the sources, so that nothing an earlier build left gets into it, and without the network: what
builds it (setuptools) is in the environment already.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from package import completions, man

ROOT = Path(__file__).parents[1]

FOLDERS = ("routed", "config", "systemd")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def build(target: Path) -> Path:
    """Build the wheel into a folder, which is made. Its path."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="routed-wheel-") as name:
        tree = Path(name) / "routed"
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in FILES:
            shutil.copy(ROOT / file, tree / file)
        man.write(tree / "build" / "man")
        completions.write(tree / "build" / "completions")
        made = Path(name) / "made"
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        offline = ["--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*pip, *offline, "--wheel-dir", str(made), str(tree)], check=True)
        (wheel,) = made.iterdir()
        return Path(shutil.copy(wheel, target / wheel.name))


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))  # noqa: T201 - a program for developers
