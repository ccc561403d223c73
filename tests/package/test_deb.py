"""The Debian package's documentation: what it has links to is there."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from package import deb
from tests.house.rooms import ROOT

LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def test_no_link_of_a_document_is_dead(tmp_path: Path) -> None:
    deb.documentation(tmp_path)
    folder = tmp_path / "usr/share/doc/routed"
    shutil.copytree(ROOT / "config", folder / "examples")  # as the wheel has it
    pages = list(folder.rglob("*.md"))
    assert len(pages) > 40 and (folder / "docs/decisions").is_dir()
    seen = 0
    for page in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            seen += 1
            assert (page.parent / target).exists(), f"{page.relative_to(folder)}: {target}"
    assert seen > 150


def test_byte_code_is_the_same_whoever_compiles(tmp_path: Path) -> None:
    """Also in a process that has interned one of its constants, as one that has run other tests has."""
    made = []
    for place in ("one", "two"):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "module.py").write_text('SEPARATOR = "\\x1c"\n')
        deb._compile(folder)
        made.append(next(folder.rglob("*.pyc")).read_bytes())
        sys.intern("\x1c")
    assert made[0] == made[1]
