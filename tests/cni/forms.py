"""The plugin's two forms as programs to run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from routed.cni import client

FORMS = ("python", "c")
PYTHON = [sys.executable, "-I", "-S", client.__file__]


def program(form: str, folder: Path) -> list[str]:
    """How to run it; what is built goes into the folder. Skips the test where it cannot be built."""
    if form == "python":
        return PYTHON
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = folder / "routed-cni"
    source = Path(client.__file__).with_name("routed-cni.c")
    subprocess.run(
        [compiler, "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(source)], check=True
    )
    return [str(target)]
