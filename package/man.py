"""Man pages, made of what the programs themselves know: their argument parsers, and the reference of routed.yaml.

    python -m package.man build/man

Commands, options, examples and exit statuses of routed(8) and routedctl(8) are the parsers' own help; the keys of
routed.yaml(5) are the table of docs/configuration.md (which a test compares with the code), its example is
config/routed.yaml. So no page can say what the programs don't.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from routed import __version__
from routed.cli.main import commands as routedctl_commands
from routed.daemon.main import command_parser as routed_parser

ROOT = Path(__file__).parents[1]

FILES = {
    "/etc/routed/routed.yaml": "the configuration; see routed.yaml(5)",
    "/etc/routed/resources/": "the resources, where the datastore is a folder",
    "/run/routed/routed.sock": "the control socket; its group may use routedctl(8)",
}


def pages() -> dict[str, str]:
    """The pages by file name."""
    return {
        "routed.8": program_page(
            routed_parser(), 8, "BGP and the kernel's routes for a node", "routedctl(8), routed.yaml(5)"
        ),
        "routedctl.8": program_page(
            routedctl_commands().parser, 8, "ask and steer the routed daemon on this node", "routed(8), routed.yaml(5)"
        ),
        "routed.yaml.5": configuration_page(),
    }


def write(folder: Path) -> list[Path]:
    """Write all pages into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, text in pages().items():
        made.append(folder / name)
        made[-1].write_text(text, encoding="utf-8")
    return made


# ---- a program


def program_page(parser: argparse.ArgumentParser, number: int, purpose: str, also: str) -> str:
    lines = [
        head(parser.prog, number),
        ".SH NAME",
        f"{escape(parser.prog)} \\- {escape(purpose)}",
        ".SH SYNOPSIS",
        f".B {escape(parser.prog)}",
        escape(_synopsis(parser)),
        ".SH DESCRIPTION",
        escape(parser.description or ""),
    ]
    options = list(_options(parser))
    if options:
        lines += [".SH OPTIONS", *options]
    commands = list(_commands(parser, parser.prog))
    if commands:
        lines += [".SH COMMANDS", *commands]
    lines += _epilog(parser.epilog or "")
    lines += [".SH FILES"]
    for path, text in FILES.items():
        lines += [".TP", f".I {escape(path)}", escape(text)]
    lines += [".SH SEE ALSO", escape(also)]
    return "\n".join(line for line in lines if line) + "\n"


def _synopsis(parser: argparse.ArgumentParser) -> str:
    """The usage line without the program's name."""
    usage = " ".join(parser.format_usage().split())
    return usage.removeprefix("usage: ").removeprefix(parser.prog).strip()


def _commands(parser: argparse.ArgumentParser, before: str) -> Iterator[str]:
    """A paragraph for each command that does something, those below groups such as `show` included."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        texts = {choice.dest: choice.help for choice in action._choices_actions}
        seen: set[int] = set()
        for name, inner in action.choices.items():
            if id(inner) in seen:  # an alias
                continue
            seen.add(id(inner))
            if any(isinstance(each, argparse._SubParsersAction) for each in inner._actions):
                yield from _commands(inner, f"{before} {name}")
                continue
            yield ".TP"
            yield f"\\fB{escape(f'{before} {name}')}\\fR {escape(_positionals(inner))}".rstrip()
            yield escape(_sentence(inner.description or texts.get(name) or ""))
            yield from (".RS", *_options(inner, skip=_shared(parser)))
            examples = (inner.epilog or "").partition("examples:\n")[2]
            if examples:
                yield from (".PP", "Examples:", ".nf", *(escape(line) for line in examples.splitlines()), ".fi")
            yield ".RE"


def _shared(parser: argparse.ArgumentParser) -> frozenset[str]:
    """Options the command inherits from the program: said once, at the top."""
    return frozenset(option for action in parser._actions for option in action.option_strings)


def _positionals(parser: argparse.ArgumentParser) -> str:
    words = []
    for action in parser._actions:
        if not action.option_strings:
            word = str(action.metavar or action.dest)
            words.append(f"[{word}]" if action.nargs in ("?", "*") else word)
    return " ".join(words)


def _options(parser: argparse.ArgumentParser, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or skip.intersection(action.option_strings):
            continue
        if isinstance(action, argparse._HelpAction) and skip:
            continue
        if action.help is argparse.SUPPRESS:
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            value = str(action.metavar or action.dest.upper())
            name += f" [{value}]" if action.nargs == "?" else f" {value}"
        yield ".TP"
        yield f".B {escape(name)}"
        yield escape(_sentence((action.help or "") % {"prog": parser.prog, "default": action.default}))


def _epilog(text: str) -> list[str]:
    """The parser's closing paragraphs: `title: text` each; indented lines stand as they are, `;` parts a list."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=[a-z][a-z ]*:)", text.strip("\n")):
        match = re.match(r"([a-z][a-z ]*):", paragraph)
        if match is None:
            lines += [".PP", escape(" ".join(paragraph.split()))]
            continue
        title, rest = match[1], paragraph[match.end() :]
        lines.append(f".SH {escape(title.strip().upper())}")
        body = rest.strip("\n")
        if body.startswith("  "):
            lines += [".nf", *(escape(line.removeprefix("  ")) for line in body.splitlines()), ".fi"]
        else:
            for part in " ".join(body.split()).split("; "):
                lines += [".TP", ".B \\(bu", escape(part)] if "; " in body else [escape(part)]
    return lines


# ---- routed.yaml

DOCUMENT = "docs/configuration.md (with the Debian package in /usr/share/doc/routed)"


def configuration_page() -> str:
    """routed.yaml(5), of the section of docs/configuration.md and the file as shipped."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = _apart(text.split("\n## routed.yaml\n", 1)[1].split("\n## ", 1)[0])
    lines = [
        head("routed.yaml", 5),
        ".SH NAME",
        "routed.yaml \\- configuration of the routed daemon",
        ".SH DESCRIPTION",
    ]
    keys: list[str] = []
    for paragraph in section.strip().split("\n\n"):
        if not paragraph.startswith("|"):
            target = keys if keys else lines
            target += [".PP", escape(plain(paragraph))]
            continue
        rows = [[cell.replace("\0", "|").strip() for cell in _cells(line)] for line in paragraph.splitlines()[2:]]
        keys.append(".SH KEYS")
        for key, default, meaning in rows:
            keys += [".TP", f".B {escape(plain(key))}", escape(_sentence(plain(meaning))), ".br"]
            keys.append(escape(f"Default: {plain(default)}." if default != "required" else "Required."))
    lines += keys
    lines += [".SH EXAMPLE", "Every key with its default:", ".PP", ".nf"]
    lines += [escape(line) for line in (ROOT / "config" / "routed.yaml").read_text(encoding="utf-8").splitlines()]
    lines += [".fi", ".SH FILES"]
    for path, meaning in FILES.items():
        lines += [".TP", f".I {escape(path)}", escape(meaning)]
    return "\n".join([*lines, ".SH SEE ALSO", f"routed(8), routedctl(8), {DOCUMENT}"]) + "\n"


def _apart(section: str) -> str:
    """A section without the rest of its document: what it calls below is there, and the file as shipped is the example."""
    section = section.replace("[config/routed.yaml](../config/routed.yaml)", "The example below")
    return re.sub(r"\[below\]\(#([a-z-]+)\)", lambda found: f"configuration.md, {found[1].replace('-', ' ')}", section)


def _cells(line: str) -> list[str]:
    return line.strip().strip("|").replace("\\|", "\0").split("|")


# ---- text


def head(name: str, number: int) -> str:
    return f'.TH "{name.upper()}" "{number}" "" "routed {__version__}" "routed"'


def plain(markdown: str) -> str:
    """Markdown's words: links as their text, no backquotes, one line."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[`*]", "", text).split())


def escape(text: str) -> str:
    """Text as roff prints it: no character of it is a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


if __name__ == "__main__":
    for page in write(Path(sys.argv[1])):
        print(page)  # noqa: T201 - a program for developers
