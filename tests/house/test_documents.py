"""The documentation agrees with the code."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from routed import __version__
from routed.bgp.neighbor import NeighborConfig
from routed.bgp.session import LARGE_HOLD_TIME, SEND_HOLD_TIME_MIN
from routed.cli import main as cli
from routed.cli.command import ExitStatus
from routed.core.core import STALE_MAX
from routed.core.restart import DEFERRAL_MAX, DEFERRAL_SETTLE, SWEEP_MAX
from routed.daemon import main as daemon
from routed.dataplane.patience import REPAIR_FIRST, RETRY_FIRST, RETRY_LAST
from routed.model import bgp, ipam, kubernetes, policies, schema, workloads
from routed.model import settings as settings_kinds
from routed.model.resources import BGPFilterRule
from routed.plan import unsupported
from routed.rib.decide import MAXIMUM_PATHS, STEPS
from tests.house.rooms import ROOT, cells, documents, modules, section, settings, table, tree

DOCS = ROOT / "docs"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ---- links, commands


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_the_index_has_every_page_and_every_decision() -> None:
    index = read("docs/README.md")
    linked = set(re.findall(r"\]\(([^)#]+)\)", index))
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    decisions = {f"decisions/{path.name}" for path in (DOCS / "decisions").glob("*.md")}
    assert pages | decisions <= linked


def test_every_make_command_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for path in documents():
        for name in re.findall(r"(?:^    |`)make ([a-z-]+)", path.read_text(), re.MULTILINE):
            assert name in targets, f"{path.name}: make {name}"


def commands(text: str) -> list[str]:
    """Command lines of `routed` and `routedctl` in code blocks and in backquotes, placeholders left in."""
    found = re.findall(r"^ {4,}(?:# )?(?:\S*/)?(routed(?:ctl)? [a-z-].*)$", text, re.MULTILINE)
    return found + re.findall(r"`(routed(?:ctl)? [a-z-][^`]*)`", text)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_are_understood(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = cli.commands()
    for line in commands(path.read_text()):
        first = re.sub(r"\\\|[\w-]+", "", line)  # of alternatives the first: `ipv4\|ipv6`
        first = re.sub(r" [>|] .*", "", first)  # what the shell does with the output is not ours
        first = re.sub(r"\bPREFIX\b", "10.0.0.0/8", first)
        program, *words = shlex.split(first.replace("[", "").replace("]", ""), comments=True)
        if program == "routed":
            assert words[0] in {"run", "hand-over", "--version"} or words[:2] == ["node", "init"], line
        elif not {"--in", "--out"} <= set(words):
            try:
                made.parse(words)
            except SystemExit:  # a command that is only mentioned may lack its arguments
                printed = capsys.readouterr()
                assert printed.out.startswith("usage: ") or "arguments are required" in printed.err, line


# ---- docs/cli.md


def subcommands(parser: argparse.ArgumentParser, before: str) -> set[str]:
    """All commands a parser takes, `show route` and the like included."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                deeper = subcommands(inner, f"{before} {name}")
                found |= deeper or {f"{before} {name}"}
    return found


def test_the_commands_are_all_there() -> None:
    rows = table(section(read("docs/cli.md"), "## routedctl"), "command", "does")
    described = {re.sub(r" (\[.*|-.*|[A-Z]{2,}.*|\w+\0.*)$", "", row[0].strip("`")) for row in rows}
    assert described == subcommands(cli.commands().parser, "routedctl")


def test_exit_statuses() -> None:
    text = read("docs/cli.md")
    described = {int(row[0]): row[1] for row in table(text, "exit status of `routedctl`", "meaning")}
    assert set(described) == set(ExitStatus)
    assert all(described[status].startswith(status.meaning) for status in ExitStatus)
    described = {int(row[0]): row[1] for row in table(text, "exit status of `routed`", "meaning")}
    assert described.keys() == daemon.STATUSES.keys()
    assert all(described[number].startswith(meaning) for number, meaning in daemon.STATUSES.items())


@pytest.mark.parametrize("name", ["Neighbor, AS", "State", "Up/Down", "Rcvd", "Best", "Sent", "Name", "From"])
def test_columns_have_their_names(name: str) -> None:
    source = "".join(path.read_text() for path in (ROOT / "routed" / "cli").glob("*.py"))
    assert f"| {name} |" in read("docs/cli.md")
    for each in name.split(", "):
        assert f'"{each}"' in source


# ---- docs/bgp.md


def test_the_steps_of_the_decision() -> None:
    rows = table(section(read("docs/bgp.md"), "## The decision"), "step", "compares", "better")
    assert rows == [[str(rule.step.value), rule.name, rule.prefers] for rule in STEPS]


def test_numbers_are_those_of_the_code() -> None:
    bgp, kernel, restart = read("docs/bgp.md"), read("docs/kernel.md"), read("docs/decisions/0008-restart-rules.md")
    default = {name: field.default for name, field in NeighborConfig.__dataclass_fields__.items()}
    rows = dict(row[:2] for row in table(bgp, "setting", "value"))
    assert rows["hold time"].startswith(f"{default['hold_time']} s")
    assert rows["waiting for an OPEN"] == f"{LARGE_HOLD_TIME:.0f} s"
    assert rows["send hold timer"].startswith(f"{SEND_HOLD_TIME_MIN:.0f} s")
    assert rows["graceful restart time"].startswith(f"{default['restart_time']} s")
    assert rows["paths of one prefix that share traffic"] == str(MAXIMUM_PATHS)
    retry, limit = default["connect_retry_time"], default["connect_retry_limit"]
    assert f"then within {retry:.0f} s, doubling to {limit:.0f} s at most" in bgp
    assert f"had {DEFERRAL_SETTLE:.0f} s to come up, at most {DEFERRAL_MAX:.0f} s" in " ".join(bgp.split())
    assert f"or after {SWEEP_MAX:.0f} s" in bgp
    assert f"stale routes go after {STALE_MAX:.0f} s" in " ".join(bgp.split())
    assert f"| {DEFERRAL_SETTLE:.0f} s:" in restart
    assert f"| {DEFERRAL_MAX:.0f} s at most" in restart
    assert f"after {SWEEP_MAX:.0f} s" in restart
    assert f"after {REPAIR_FIRST:g} s" in kernel
    assert f"after {RETRY_FIRST:.0f} s, 2 s, ... {RETRY_LAST:.0f} s" in " ".join(kernel.split())


# ---- docs/configuration.md


def members(kind: str, at: str) -> set[str]:
    """Names of the fields at a place of a kind's manifests."""
    return {
        path.removeprefix(f"{at}.").partition(".")[0] for path in schema.field_names(kind) if path.startswith(f"{at}.")
    }


FIELDS: dict[str, dict[str, set[str]]] = {
    "### Node": {at: members("Node", at) for at in ("spec", "spec.bgp", "status")},
    "### BGPConfiguration": {"spec": members("BGPConfiguration", "spec")},
    "### BGPPeer": {"spec": members("BGPPeer", "spec")},
    "### BGPFilter": {"": members("BGPFilter", "spec.exportV4")},
    "### IPPool": {"spec": members("IPPool", "spec")},
}


@pytest.mark.parametrize("heading", FIELDS)
def test_every_field_of_a_resource_is_described(heading: str) -> None:
    text = section(read("docs/configuration.md"), heading)
    rows = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    described = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    known = {f"{at}.{name}" if at else name for at, names in FIELDS[heading].items() for name in names}
    assert described == known


def test_what_is_reported_is_described_as_reported() -> None:
    text = read("docs/configuration.md")
    for name in ("unsupported", "peers"):
        source = (ROOT / "routed" / "plan" / f"{name}.py").read_text()
        for field in re.findall(r"spec\.(\w+)(?:: | and \w+: )[a-zA-Z ]*not ", source):
            rows = [line for line in text.splitlines() if line.startswith("|") and f"`spec.{field}`" in line]
            assert any("reported" in row for row in rows), field


def test_every_kind_has_its_section() -> None:
    text = read("docs/configuration.md")
    assert all(f"### {kind}\n" in text for kind in (kind.name for kind in bgp.KINDS))
    assert len(BGPFilterRule.__dataclass_fields__) == 12, "a condition was added: describe it"


# ---- docs/troubleshooting.md


#: What strerror says.
LIBC = {"No route to host", "Network is unreachable", "Connection timed out"}


@cache
def source_texts() -> dict[str, list[str]]:
    """Every text in the code that is long enough to be a message, `.+` for placeholders, and its parts between those."""
    texts = {}
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(each.value) if isinstance(each, ast.Constant) else ".+" for each in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            parts = text.split(".+")
            if len("".join(parts)) >= 8:
                texts[text] = parts
    return texts


def is_said(told: str, longest: str) -> bool:
    """Whether a part of what is told is in a text of the code, or a text of the code is in what is told."""
    return any(
        longest in text or (all(part in told for part in parts) and re.search(".+".join(map(re.escape, parts)), told))
        for text, parts in source_texts().items()
    )


def test_messages_are_those_of_the_code() -> None:
    """Each message quoted in a first column is a text of the code: all of it, or its longest part between dots."""
    for line in read("docs/troubleshooting.md").splitlines():
        for message in re.findall(r"`([^`]{12,})`", cells(line)[0] if line.startswith("| ") else ""):
            told = re.sub(r"^NOTIFICATION \d/(\d|\.\.\.) ?|: (Connection|Network|Cannot) [\w ]*", "", message)
            longest = max((part.strip(" :,;") for part in told.split("...")), key=len)
            if len(longest) >= 8 and longest not in LIBC:
                assert is_said(told, longest), message


def test_lines_of_the_log_are_those_of_the_code() -> None:
    rows = table(section(read("docs/logs.md"), "## The lines"), "level", "subject", "line")
    assert {row[0] for row in rows} <= {"error", "warning", "info", "debug"}
    for row in rows:
        for line in re.findall(r"`([^`]+)`", row[2]):
            longest = max((part.strip(" :,;()") for part in line.split("...")), key=len)
            assert any(longest in text for text in source_texts()), line


# ---- docs/interop.md

ROUTERS = ("BIRD", "FRR", "GoBGP", "OpenBGPD", "ExaBGP")


def functions_of(path: Path) -> set[str]:
    return {
        node.name for node in tree(path).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_interoperability_is_that_of_the_tests() -> None:
    """Each test the page names is there, each module of tests is named, and every claim has a test beside it."""
    text, folder = read("docs/interop.md"), ROOT / "tests" / "interop"
    for module, name in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text):
        assert (folder / module).exists(), module
        assert not name or name in functions_of(folder / module), f"{module}::{name}"
    assert {path.name for path in folder.glob("test_*.py")} <= set(re.findall(r"`(test_\w+\.py)", text))
    rows = table(text, "feature", *ROUTERS)
    assert all("::" in row[-1] or row[-1].startswith("the same") for row in rows)
    assert all(set(row[1:-1]) <= {"yes", "", "IPv4"} and any(row[1:-1]) for row in rows)
    versions = {row[0]: row[1] for row in table(text, "router", "version", "from")}
    assert set(ROUTERS) <= set(versions)
    assert f"exabgp=={versions['ExaBGP']}" in settings()["project"]["optional-dependencies"]["test"]


# ---- the rest of the paper


def test_the_architecture_fits_in_one_sitting() -> None:
    text = read("ARCHITECTURE.md")
    assert len(text.splitlines()) <= 200
    rooms = ROOT / "routed"
    for name in re.findall(r"`([a-z]+/\w+\.py)`", text):
        assert (rooms / name).exists(), name


def test_decisions_are_short_and_say_what_would_change_our_mind() -> None:
    paths = sorted((DOCS / "decisions").glob("*.md"))
    for number, path in enumerate(paths, 1):
        text = path.read_text()
        assert re.fullmatch(rf"{number:04d}-[a-z0-9-]+\.md", path.name)
        assert text.startswith(f"# {number:04d}: ")
        assert len(text.splitlines()) <= 40, path.name
        for heading in ("## Context", "## Decision", "## What would change our mind"):
            assert f"\n{heading}\n" in text, path.name


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)} ", read("CHANGELOG.md"), re.MULTILINE)


def test_the_license_is_the_one_that_is_declared() -> None:
    assert "Apache License\n                           Version 2.0" in read("LICENSE")
    assert "Apache-2.0" in read("pyproject.toml")


# ---- docs/calico-compatibility.md

TOPICS = (ipam, policies, workloads, settings_kinds, kubernetes)
COMPARED = (
    {"## Node": {at: members("Node", at) for at in ("spec", "spec.bgp", "status")}}
    | {
        f"## {kind}": {"spec": members(kind, "spec")}
        for kind in ("BGPConfiguration", "BGPPeer", "IPPool", "BlockAffinity")
    }
    | {"## BGPFilter": {"": members("BGPFilter", "spec.exportV4")}}
)


@pytest.mark.parametrize("heading", COMPARED)
def test_every_field_is_compared_with_calico(heading: str) -> None:
    compared = comparison(heading)
    known = {f"{at}.{name}" if at else name for at, names in COMPARED[heading].items() for name in names}
    assert set(compared) == known
    assert set(compared.values()) <= {"honoured", "honoured, differs", "reported", "no effect"}


def comparison(heading: str) -> dict[str, str]:
    """What is said of each field in a section's table."""
    text = section(read("docs/calico-compatibility.md"), heading)
    rows = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    return {name: row[1].strip() for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}


@pytest.mark.parametrize(
    "kind", [kind.name for topic in TOPICS for kind in topic.KINDS if kind.shape.members.get("spec")]
)
def test_every_field_of_every_other_kind_is_told_of(kind: str) -> None:
    """A row of a field is one of what is in it too."""
    told = comparison(f"## {kind}")
    for field in schema.field_names(kind):
        if field.startswith("spec."):
            around = [".".join(field.split(".")[:depth]) for depth in range(2, field.count(".") + 2)]
            assert any(one in told for one in around), field
    known = set(schema.field_names(kind))
    assert all(any(field == one or field.startswith(f"{one}.") for field in known) for one in told)
    assert set(told.values()) <= {"honoured", "honoured, differs", "reported", "no effect"}


def test_every_kind_is_compared_once() -> None:
    text = read("docs/calico-compatibility.md")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    by_name = section(text, "## Kinds that are read by name")
    assert len(headings) == len(set(headings))
    assert set(headings) <= {*schema.KINDS, "Kinds that are read by name"}
    for kind in schema.KINDS:
        assert (kind in headings) is not bool(re.search(rf"\b{kind}\b", by_name)), kind


def test_what_is_used_of_a_felix_configuration_is_said_to_be() -> None:
    used = unsupported.FELIX_USED | unsupported.FELIX_OF_POLICY | unsupported.FELIX_OF_TUNNELS
    for name, verdict in comparison("## FelixConfiguration").items():
        assert (verdict == "reported") is not (name.removeprefix("spec.") in used), name


def test_what_is_reported_in_the_comparison_is_reported_in_the_reference() -> None:
    reference = read("docs/configuration.md")
    reported = {name for at in COMPARED for name, verdict in comparison(at).items() if verdict == "reported"}
    assert reported
    for name in reported:
        lines = [line for line in reference.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        assert any("reported" in line for line in lines), name
