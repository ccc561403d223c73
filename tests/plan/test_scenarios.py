"""Whole scenarios: resources in, neighbours, routes and verdicts of filters out, in steps.

Each file under `scenarios/` is one case, and says what it is about. Its parts:

    about: one sentence
    resources: [...]              manifests, apiVersion left out
    secrets: {NAME/KEY: 1}        Secrets that are there, with the generation of their content; 0: there is none
    expect:                       one of these, or a list of them for several nodes
      node: kube-master
      port: 179                   where the node takes connections
      neighbours: {NAME: {...}}   all of them; what has its default value is left out, see `neighbour`
      routes: {PREFIX: blackhole | advertised | via ADDRESS}
      withheld: {PREFIX: REASON}  blocks that are not announced
      kernel: {PREFIX: programmed | left | tunnel | cross-subnet}
      verdicts: [{peer, export | import: PREFIX, source: local | eBGP | iBGP, ..., is: accept | reject}]
                                  the route: localPref, interface, communities, asPath; what it becomes: adds, path,
                                  setsLocalPref; and `rule`: part of what decided
      problems: [TEXT]            each is part of a problem, and each problem is named; left out: not looked at
      notes: [TEXT]               likewise
    steps:                        changes while everything runs, each with
      - about: one sentence
        apply: [...]
        delete: [{kind, name}]
        secrets: {...}
        expect: as above, and which sessions were `added`, `removed`, `reset` or `changed`, and which `renamed`
                ({NEW: OLD}): all left out are none
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
import yaml

from routed.bgp.as_path import prepend, segments
from routed.bgp.attributes import AttributeSet, split_values
from routed.model.fields import as_community
from routed.model.resources import DEFAULT_PORT, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import format_address, format_router_id
from routed.net.prefixes import format_prefix, parse_prefix
from routed.plan.diff import diff
from routed.plan.planner import Planner
from routed.plan.types import NextHopMode, Origin, PeerPlan, Plan, PlanSettings
from routed.rib.filters import community_text
from routed.rib.path import Path, Source, SourceKind
from routed.rib.program import Programming

Json = dict[str, Any]

FOLDER = FilePath(__file__).parent / "scenarios"
FILES = sorted(FOLDER.rglob("*.yaml"))

PROGRAMMING = {
    Programming.LEAVE: "left",
    Programming.TUNNEL: "tunnel",
    Programming.CROSS_SUBNET: "cross-subnet",
}
TYPES = {SourceKind.EBGP: "external", SourceKind.IBGP: "internal", SourceKind.IBGP_CLIENT: "client"}


def neighbour(peer: PeerPlan, plan: Plan) -> Json:
    """A neighbour as scenarios write it: what is as it usually is stays unsaid."""
    session, speaker = peer.session, plan.speaker
    assert speaker is not None
    own = speaker.ipv4_address if len(session.address) == 4 else speaker.ipv6_address
    row: Json = {"ip": format_address(session.address), "as": session.peer_as, "type": TYPES[peer.kind]}
    unusual: tuple[tuple[str, object, object], ...] = (
        ("port", session.port, DEFAULT_PORT),
        ("localAs", session.local_as, speaker.local_as),
        ("source", format_address(session.local_address) if session.local_address else "any", format_address(own)),
        ("passive", session.passive, False),
        ("keepalive", session.keepalive_time, 0),
        ("restartTime", session.restart_time, 120),
        ("clusterId", format_router_id(peer.cluster_id), "0.0.0.0"),
        ("nextHop", peer.next_hop_mode.name.lower(), NextHopMode.AUTO.name.lower()),
        ("allowedOwnAs", peer.allowed_own_as, 0),
        ("password", session.password, ""),
        ("ttlSecurity", session.ttl_security, 0),
        ("held", bool(session.held), False),
    )
    row.update({key: value for key, value, default in unusual if value != default})
    return row


def route(origin: Origin) -> str:
    if origin.gateway:
        return f"via {format_address(origin.gateway)}"
    return "blackhole" if origin.blackhole else "advertised"


class Run:
    """A scenario as it runs: a planner for each node somebody expects something of."""

    def __init__(self, scenario: Json) -> None:
        self.planners: dict[str, Planner] = {}
        for step in (scenario, *scenario.get("steps", ())):
            for expected in expectations(step):
                settings = PlanSettings(interface_of=lambda path: path.interface)
                self.planners.setdefault(expected["node"], Planner(expected["node"], settings))
        self.plans = {name: Plan() for name in self.planners}

    def change(self, step: Json) -> dict[str, Plan]:
        """Apply a step; the plans before it."""
        for planner in self.planners.values():
            for manifest in (*step.get("resources", ()), *step.get("apply", ())):
                resource = parse_manifest({"apiVersion": "projectcalico.org/v3", **manifest})
                planner.update(Update(resource.key, resource))
            for reference, generation in step.get("secrets", {}).items():
                planner.secret(reference, generation, "")
            for gone in step.get("delete", ()):
                planner.update(Update(ResourceKey(gone["kind"], gone["name"], gone.get("namespace", "")), None))
        before = self.plans
        self.plans = {name: planner.plan() for name, planner in self.planners.items()}
        return before


def expectations(step: Json) -> list[Json]:
    found = step.get("expect", [])
    return found if isinstance(found, list) else [found]


def verdict(plan: Plan, case: Json) -> Json:
    """What a filter says about the route a case describes, with the case's own keys."""
    direction = "export" if "export" in case else "import"
    peer = plan.peers[case["peer"]]
    family, prefix = parse_prefix(case[direction])
    kind = {"local": SourceKind.LOCAL, "eBGP": SourceKind.EBGP, "iBGP": SourceKind.IBGP}[case.get("source", "iBGP")]
    held = [as_community(text, "") for text in case.get("communities", ())]
    attrs = AttributeSet(
        local_pref=case.get("localPref"),
        as_path=as_path(case.get("asPath", ())),
        communities=b"".join(each for each in held if len(each) == 4),
        large_communities=b"".join(each for each in held if len(each) == 12),
    )
    filters = peer.export_filter if direction == "export" else peer.import_filter
    path = Path(Source("x", kind, 1, b""), attrs, None)
    path.interface = case.get("interface", "eth0")
    found = filters[family].evaluate(family, prefix, path)
    answer = dict(case)
    answer["is"] = "accept" if found.accept else "reject"
    if "rule" in case and case["rule"] not in found.rule:
        answer["rule"] = found.rule
    if "adds" in case:
        now = [*split_values(found.attrs.communities, 4), *split_values(found.attrs.large_communities, 12)]
        answer["adds"] = [community_text(each) for each in now if each not in held]
    if "path" in case:
        answer["path"] = [number for _, numbers in segments(found.attrs.as_path) for number in numbers]
    if "setsLocalPref" in case:
        answer["setsLocalPref"] = found.attrs.local_pref
    return answer


def as_path(numbers: Iterable[int]) -> bytes:
    made = b""
    for number in reversed(list(numbers)):
        made = prepend(made, number)
    return made


def programmed(plan: Plan, text: str) -> str:
    """What becomes of a prefix in the kernel."""
    family, prefix = parse_prefix(text)
    rule = plan.kernel.policy[family].judge(prefix)
    return "programmed" if rule is None else PROGRAMMING[rule.programming]


def check(expected: Json, before: Plan, plan: Plan, *, first: bool) -> None:
    if "neighbours" in expected:
        assert {name: neighbour(peer, plan) for name, peer in plan.peers.items()} == (expected["neighbours"] or {})
    if "port" in expected:
        assert plan.speaker is not None and plan.speaker.listen_port == expected["port"]
    if "routes" in expected:
        found = {format_prefix(*key): route(origin) for key, origin in plan.origins.items()}
        assert found == (expected["routes"] or {})
    if "withheld" in expected:
        assert {format_prefix(*key): why for key, why in plan.withheld.items()} == (expected["withheld"] or {})
    for prefix, what in expected.get("kernel", {}).items():
        assert (prefix, programmed(plan, prefix)) == (prefix, what)
    for case in expected.get("verdicts", ()):
        assert verdict(plan, case) == case
    for key, told in (("problems", plan.problems), ("notes", plan.notes)):
        if key in expected:
            texts = expected[key] or []
            assert [text for text in texts if not any(text in line for line in told)] == [], told
            assert [line for line in told if not any(text in line for text in texts)] == []
    if not first:
        delta = diff(before, plan)
        for key, names in (
            ("added", delta.added),
            ("removed", delta.removed),
            ("reset", tuple(delta.reset)),
            ("changed", tuple(delta.changed)),
        ):
            assert sorted(names) == sorted(expected.get(key, [])), f"{key}: {dict(delta.reset)}"
        assert delta.renamed == expected.get("renamed", {})


def known_keys(scenario: Json) -> Iterator[str]:
    """Keys nothing looks at: a misspelt expectation must not pass."""
    allowed = {"about", "resources", "secrets", "expect", "steps"}
    yield from set(scenario) - allowed
    for step in scenario.get("steps", ()):
        yield from set(step) - {"about", "apply", "delete", "secrets", "expect"}
    for step in (scenario, *scenario.get("steps", ())):
        for expected in expectations(step):
            yield from set(expected) - {
                "node", "port", "neighbours", "routes", "withheld", "kernel", "verdicts", "problems", "notes", "added",
                "removed", "reset", "changed", "renamed",
            }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_scenario(path: FilePath) -> None:
    scenario: Json = yaml.safe_load(path.read_text())
    assert not list(known_keys(scenario))
    assert scenario["about"]
    run = Run(scenario)
    assert run.planners, "it expects nothing"
    for number, step in enumerate((scenario, *scenario.get("steps", ()))):
        before = run.change(step)
        for expected in expectations(step):
            node = expected["node"]
            check(expected, before[node], run.plans[node], first=number == 0)


def test_the_table_of_confd_s_cases_names_what_is_there() -> None:
    """And every scenario is in it."""
    text = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"(?:sessions|routes)/[\w-]+\.yaml", text))
    assert named == {str(path.relative_to(FOLDER)) for path in FILES}
    root = FOLDER.parents[2]
    assert [path for path in set(re.findall(r"tests/\w+/\w+\.py", text)) if not (root / path).exists()] == []
