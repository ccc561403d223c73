"""Every topology in containerlab/ comes up, what its expect.yaml says holds step by step, and its pages say what is true."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import yaml

from routed.testing.lab import LabError, wait_for
from routed.testing.lab.clab import read_topology
from routed.testing.lab.deploy import Deployment, deployed
from routed.testing.lab.expect import FILE, check, read_expectation
from tests.house.rooms import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "containerlab").glob("*/*.clab.yml"))

#: Of our own words, the part our files use; and containerlab's, where somebody has put a copy.
SCHEMA = Path(__file__).parent / "containerlab" / "clab.schema.json"


def file_of(folder: Path) -> Path:
    (file,) = folder.glob("*.clab.yml")
    return file


@pytest.mark.timeout(300)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_must_hold_does(folder: Path, record_property: Callable[[str, object], None]) -> None:
    topology = read_topology(file_of(folder), {})
    assert topology.notes == ()
    expectation = read_expectation(folder / FILE, topology)
    with deployed(topology) as lab:
        try:
            losses = check(lab, expectation)
            run_pages(lab, folder)
        except AssertionError as error:
            error.add_note(lab.report())
            raise
        for title, found in losses.items():
            record_property(title, "; ".join(map(str, found)))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_name_is_its_folders_and_its_page_says_what_it_is(folder: Path) -> None:
    assert (file_of(folder).name, read_topology(file_of(folder), {}).name) == (f"{folder.name}.clab.yml", folder.name)
    text = (folder / "README.md").read_text()
    assert text.startswith(f"# {folder.name}\n")
    assert f"make lab TOPO={folder.name}" in text
    assert re.search(r"^ +.*(---|\|).*$", text, re.MULTILINE), "there is no picture"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_file_is_containerlabs(folder: Path) -> None:
    document = yaml.safe_load(file_of(folder).read_text())
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(document)


@pytest.mark.timeout(300)
def test_mixed_with_the_roles_swapped() -> None:
    folder = ROOT / "containerlab" / "mixed"
    topology = read_topology(file_of(folder), {"FIRST": "birds", "SECOND": "nodes"})
    with deployed(topology) as lab:
        assert [lab.nodes[f"node{number}"].role for number in (1, 2, 3, 4)] == ["bird", "bird", "routed", "routed"]
        check(lab, read_expectation(folder / FILE, topology))


def test_nodes_of_a_rack_need_to_allow_their_own_as_number(tmp_path: Path) -> None:
    """rack-2 without numAllowedLocalASNumbers: the other rack is reached, one's own is not, and routedctl says why."""
    folder = tmp_path / "rack-2"
    shutil.copytree(ROOT / "containerlab" / "rack-2", folder)
    resources = folder / "resources" / "nodes.yaml"
    resources.write_text(resources.read_text().replace(", numAllowedLocalASNumbers: 1", ""))
    (folder / FILE).write_text(
        "holds:\n  sessions: {a1: [10.1.1.2], a2: [10.1.2.2]}\n"
        "  routes: {a1: {10.244.2.0/26: none, 10.244.3.0/26: 10.1.1.2}, tor-a: {10.244.2.0/26: 10.1.2.1}}\n"
        "  pings: {pod-a1: [10.244.3.2]}\n"
    )
    topology = read_topology(file_of(folder), {})
    with deployed(topology) as lab:
        check(lab, read_expectation(folder / FILE, topology))
        said = lab.nodes["a1"].run("routedctl", "show", "route", "10.244.2.0/26", "--all", check=False)
        assert "its AS_PATH holds our own AS 65001" in said


def pages(folder: Path) -> list[Path]:
    """A topology's own page, and the guides that lead to it."""
    guides = [path for path in (ROOT / "docs").glob("*.md") if f"make lab TOPO={folder.name}" in path.read_text()]
    return [folder / "README.md", *guides]


def typed(page: Path, topology: str, nodes: Collection[str]) -> Iterator[tuple[str, str, list[str]]]:
    """What a page has people type in a node, as `    node1# command`, with the lines of the answer it shows.

    In a guide it is a node of the laboratory that was brought up last, by a `make lab` further up.
    """
    answer: list[str] | None = None
    up = page.parent.name
    for line in page.read_text().splitlines():
        match = re.fullmatch(r" {4}(\S+?)# (.+)", line)
        brought = re.fullmatch(r" {4}make lab TOPO=(\S+)", line)
        if brought:
            up = brought[1]
        if match and up == topology:
            assert match[1] in nodes, f"{page.name}: there is no node {match[1]} in {topology}"
            answer = []
            yield match[1], match[2], answer
        elif line.startswith("    ") and answer is not None:
            answer.append(line)
        else:
            answer = None


def plain(line: str) -> str:
    """A line of an answer without what differs from one run to the next."""
    return re.sub(r"\d\d:\d\d:\d\d", "TIME", " ".join(line.split()))


def run_pages(lab: Deployment, folder: Path) -> None:
    """Every command a page shows works in the laboratory, and answers what the page shows of the answer."""
    for page in pages(folder):
        commands = list(typed(page, folder.name, lab.nodes))
        assert commands or page.parent != folder, f"{page} has people type nothing"
        for typed_there in commands:
            lacking = partial(lacks, lab, *typed_there)
            node, command, _ = typed_there
            wait_for(lambda lacking=lacking: not lacking(), 30, f"{page.name}: {node}# {command}", state=lacking)  # type: ignore[misc]


def lacks(lab: Deployment, node: str, command: str, shown: list[str]) -> str:
    """What there is against a command's answer: why it failed, or the first line the page shows and it has not."""
    try:
        said = [plain(line) for line in lab.nodes[node].run("sh", "-c", command).splitlines()]
    except LabError as error:
        return str(error)
    return next((f"no {line!r} in {said}" for line in shown if not any(plain(line) in each for each in said)), "")
