"""The man pages: made of the parsers and the reference, and roff has nothing to say about them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from package import man
from routed.cli import main as cli
from routed.daemon import main as daemon
from tests.house.rooms import ROOT


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man.pages()


def formatted(text: str) -> str:
    """What a reader of the page sees, without line breaks."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-b", "-Tascii", "-P-cbou"], input=text, capture_output=True, text=True, check=True
    )
    assert done.stderr == "", "a warning of roff's"
    return " ".join(done.stdout.replace("-\n", "-").split())


@pytest.mark.parametrize("name", ["routed.8", "routedctl.8", "routed.yaml.5"])
def test_roff_takes_them_without_a_warning(pages: dict[str, str], name: str) -> None:
    shown = formatted(pages[name])
    assert shown.startswith(name.rpartition(".")[0].upper())
    for heading in ("NAME", "DESCRIPTION", "FILES", "SEE ALSO"):
        assert heading in shown


def leaves(parser: argparse.ArgumentParser, before: str) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found |= leaves(inner, f"{before} {name}") or {f"{before} {name}"}
    return found


@pytest.mark.parametrize(
    ("page", "parser"), [("routed.8", daemon.command_parser()), ("routedctl.8", cli.commands().parser)]
)
def test_every_command_is_there(pages: dict[str, str], page: str, parser: argparse.ArgumentParser) -> None:
    for command in leaves(parser, parser.prog):
        assert f"\\fB{man.escape(command)}\\fR" in pages[page], command
    for heading in ("SYNOPSIS", "OPTIONS", "COMMANDS", "EXAMPLES", "EXIT STATUS"):
        assert f"\n.SH {heading}\n" in pages[page], heading


def test_every_key_is_there(pages: dict[str, str]) -> None:
    from tests.house.test_samples import all_keys  # noqa: PLC0415 - that module's business is the keys

    for key in all_keys():
        assert f"\n.B {man.escape(key)}\n" in pages["routed.yaml.5"], key
    for line in (ROOT / "config" / "routed.yaml").read_text().splitlines():
        assert man.escape(line) in pages["routed.yaml.5"]


@pytest.mark.parametrize("text", [".so /etc/passwd", "'br", "a\\fBb", "--option", "two\n.lines"])
def test_text_is_never_a_command(text: str) -> None:
    page = "\n".join([man.head("x", 8), ".SH NAME", "x \\- y", ".PP", man.escape(text), ""])
    assert " ".join(text.split()) in formatted(page)


def test_they_are_written(tmp_path: Path) -> None:
    assert [path.name for path in man.write(tmp_path / "man")] == ["routed.8", "routedctl.8", "routed.yaml.5"]


def test_the_page_of_the_configuration_stands_by_itself(pages: dict[str, str]) -> None:
    """What it calls below is below, and what is elsewhere is named."""
    description = pages["routed.yaml.5"].partition(".SH EXAMPLE")[0]
    assert "see below" not in description and "config/routed.yaml" not in description
    assert "The example below is a file with" in description and "configuration.md, secrets" in description
