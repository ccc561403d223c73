"""The decision process: which of a prefix's candidates is best, and which step says so (RFC 4271 9.1.2.2, RFC 4456 9).

`STEPS` is the table both `best` and `explain` walk, so what is explained is what was decided. Every step keeps the
candidates with the lowest value and drops the rest; the MED step does so within each neighbour AS.

Invariants:
- The outcome depends on the set of candidates only, never on the order they came in: each step looks at all that are
  left at once (so MED needs no "deterministic" switch), there is no oldest-route step, and the last step compares what
  the paths say, so that two candidates tie only where nothing tells them apart.
- Candidates are usable (rejected paths and those without a resolved next hop never get here), and one a source.
- Steps 1 to 7 say how good a path is; what is equal there may share the traffic. Steps 8 to 11 only break ties.

Not here: which paths are candidates (`table`), how far a next hop is (`nexthops`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from routed.bgp.attributes import describe
from routed.net.addresses import format_address, format_router_id
from routed.rib.path import HIGHEST_LOCAL_PREF, NORMAL_PRIORITY, Path, SourceKind
from routed.values import dataclass

MAXIMUM_PATHS = 16
"""Paths that share the traffic of a prefix unless told otherwise, the best one included."""

#: LOCAL_PREFs above this are priorities better than the normal one.
_ELEVATED = HIGHEST_LOCAL_PREF - NORMAL_PRIORITY

Value: TypeAlias = "int | tuple[object, ...]"
"""What a step compares; of one type within a step, lower is better."""


class Step(enum.IntEnum):
    """The numbers people see in `routedctl show route` and in docs."""

    LOCAL_ORIGIN = 1
    LOCAL_PREF = 2
    AS_PATH_LENGTH = 3
    ORIGIN = 4
    MED = 5
    EXTERNAL = 6
    NEXT_HOP_METRIC = 7
    ROUTER_ID = 8
    CLUSTER_LIST_LENGTH = 9
    PEER_ADDRESS = 10
    CONTENT = 11


@dataclass(frozen=True, slots=True)
class StepRule:
    """One line of the table."""

    step: Step
    name: str
    """What is compared, as people read it: "AS_PATH length"."""
    prefers: str
    """Which side wins: "shorter"."""
    value: Callable[[Path], Value]
    text: Callable[[Path], str]
    """The value for people."""
    within_neighbor_as: bool = False
    """Only paths through the same neighbour AS are compared with each other."""


class Decision(NamedTuple):
    best: Path | None
    multipath: tuple[Path, ...]
    """The paths that share the traffic, best first; just the best one without multipath, empty without candidates."""


class Verdict(NamedTuple):
    """What the decision says of one candidate."""

    path: Path
    best: bool
    multipath: bool
    """Whether it carries traffic: the best one always does."""
    step: Step | None
    """Where it lost; for the best one, where the last other candidate did. None for an only candidate."""
    name: str
    """What that step compares; empty where `step` is None."""
    value: str
    """The candidate's value in that step."""
    winner_value: str
    """The value it lost to (in the MED step, its neighbour AS's lowest); the best path's own."""
    text: str
    """The whole as a sentence."""


def best(candidates: Sequence[Path], *, maximum_paths: int = MAXIMUM_PATHS, relax: bool = True) -> Decision:
    """The best of the candidates, and those equal to it that share its traffic.

    `maximum_paths` 1 turns multipath off. Paths share the traffic when steps 1 to 7 don't tell them apart and their
    next hops differ; with `relax` off their AS paths must be the same too, not only of the same length.
    """
    if not candidates:
        return Decision(None, ())
    alive = candidates
    if len(alive) > 1 and not _equally_good(alive):
        for rule in _PREFERENCE:
            alive = _survivors(rule, alive)
            if len(alive) == 1:
                break
    if len(alive) == 1:
        winner = alive[0]
        return Decision(winner, (winner,))
    ranked = _ranked(alive)
    return Decision(ranked[0], _multipath(ranked, maximum_paths, relax))


def explain(candidates: Sequence[Path], *, maximum_paths: int = MAXIMUM_PATHS, relax: bool = True) -> list[Verdict]:
    """A verdict for each candidate, in the order given. The winner is always the one `best` chooses."""
    verdicts: dict[Path, Verdict] = {}
    alive: Sequence[Path] = candidates
    decided: StepRule | None = None
    shared = set(best(candidates, maximum_paths=maximum_paths, relax=relax).multipath)
    for rule in STEPS:
        if len(alive) <= 1:
            break
        left = _survivors(rule, alive)
        if len(left) == len(alive):
            continue
        decided = rule
        for path in alive:
            if path not in left:
                verdicts[path] = _lost(rule, path, left, path in shared)
        alive = left
    for path in alive[:1]:
        if decided is None:
            verdicts[path] = Verdict(path, True, True, None, "", "", "", "best: the only candidate")
            continue
        value = decided.text(path)
        text = f"best: decided at step {decided.step.value}, {decided.prefers} {decided.name} ({value})"
        verdicts[path] = Verdict(path, True, True, decided.step, decided.name, value, value, text)
    return [verdicts[path] for path in candidates]


def _lost(rule: StepRule, path: Path, left: Sequence[Path], shared: bool) -> Verdict:
    rivals = left
    if rule.within_neighbor_as:
        rivals = [rival for rival in left if rival.attrs.neighbor_as == path.attrs.neighbor_as]
    mine, theirs = rule.text(path), rule.text(rivals[0])
    text = f"step {rule.step.value}: {rule.prefers} {rule.name} preferred, {mine} loses to {theirs}"
    if shared:
        text = f"multipath; {text}"
    return Verdict(path, False, shared, rule.step, rule.name, mine, theirs, text)


def _survivors(rule: StepRule, alive: Sequence[Path]) -> Sequence[Path]:
    """Those of `alive` no other one beats in this step; `alive` itself where nothing is beaten."""
    values: list[Value] = list(map(rule.value, alive))
    first = values[0]
    if values.count(first) == len(values):
        return alive
    if rule.within_neighbor_as:
        lowest: dict[int, Value] = {}
        for path, value in zip(alive, values, strict=True):
            group = path.attrs.neighbor_as
            if group not in lowest or value < lowest[group]:  # type: ignore[operator]  # one type within a step
                lowest[group] = value
        return [path for path, value in zip(alive, values, strict=True) if value == lowest[path.attrs.neighbor_as]]
    low = min(values)
    return [path for path, value in zip(alive, values, strict=True) if value == low]


def _equally_good(candidates: Sequence[Path]) -> bool:
    """Whether steps 1 to 7 can be skipped since what they look at is the same: the usual case where paths share traffic."""
    first = _preference_fields(candidates[0])
    return all(_preference_fields(path) == first for path in candidates[1:])


def _preference_fields(path: Path) -> tuple[int | None, ...]:
    attrs, next_hop = path.attrs, path.next_hop
    metric = 0 if next_hop is None else next_hop.metric
    return path.source.kind, attrs.local_pref, attrs.as_path_length, attrs.origin, attrs.med, metric


def _ranked(alive: Sequence[Path]) -> list[Path]:
    """By steps 8 to 11."""
    keys = list(map(_tie_break, alive))
    if len(set(keys)) == len(keys):
        return [alive[index] for index in sorted(range(len(keys)), key=keys.__getitem__)]
    return sorted(alive, key=lambda path: (_tie_break(path), _content(path)))


def _multipath(ranked: list[Path], maximum_paths: int, relax: bool) -> tuple[Path, ...]:
    winner = ranked[0]
    if maximum_paths <= 1 or winner.next_hop is None:
        return (winner,)
    chosen: list[Path] = []
    next_hops = set()
    as_path = winner.attrs.as_path
    for path in ranked:
        if path.next_hop not in next_hops and (relax or path.attrs.as_path == as_path):
            next_hops.add(path.next_hop)
            chosen.append(path)
            if len(chosen) == maximum_paths:
                break
    return tuple(chosen)


# ---- what the steps compare; lower is better


def _local_origin(path: Path) -> int:
    """Our own routes go before learned ones, with one exception: a workload that moves here or away has a route on both
    nodes, whose priorities decide. So a learned route with a better than normal priority is as good as a workload's."""
    source = path.source
    if source.kind is SourceKind.LOCAL:
        return 1 if source.by_priority else 0
    value = path.attrs.local_pref
    return 1 if value is not None and value > _ELEVATED else 2


def _local_pref(path: Path) -> int:
    return -path.local_pref


def _as_path_length(path: Path) -> int:
    return path.attrs.as_path_length


def _origin(path: Path) -> int:
    return path.attrs.origin


def _med(path: Path) -> int:
    return path.attrs.med or 0


def _external(path: Path) -> int:
    return 0 if path.source.kind is SourceKind.EBGP or path.source.kind is SourceKind.LOCAL else 1


def _next_hop_metric(path: Path) -> int:
    return 0 if path.next_hop is None else path.next_hop.metric


def _router_id(path: Path) -> int:
    originator = path.attrs.originator_id
    return path.source.router_id if originator is None else originator


def _cluster_list_length(path: Path) -> int:
    return len(path.attrs.cluster_list) // 4


def _peer_address(path: Path) -> tuple[object, ...]:
    address = path.source.address
    return len(address), address


def _tie_break(path: Path) -> tuple[int, int, int, bytes]:
    """Steps 8 to 10 in one."""
    attrs = path.attrs
    source = path.source
    originator = attrs.originator_id
    router_id = source.router_id if originator is None else originator
    return router_id, len(attrs.cluster_list), len(source.address), source.address


def _content(path: Path) -> tuple[object, ...]:
    """All that a path says and who says it; equal only for paths nothing tells apart. None sorts before numbers."""
    attrs = path.attrs
    return (
        attrs.as_path,
        attrs.next_hop,
        attrs.link_local,
        -1 if attrs.med is None else attrs.med,
        -1 if attrs.local_pref is None else attrs.local_pref,
        -1 if attrs.originator_id is None else attrs.originator_id,
        attrs.cluster_list,
        attrs.communities,
        attrs.extended_communities,
        attrs.large_communities,
        attrs.atomic_aggregate,
        attrs.aggregator or (),
        attrs.unknown,
        path.source.name,
    )


_ORIGIN_NAMES = ("IGP", "EGP", "INCOMPLETE")


def _content_text(path: Path) -> str:
    return ", ".join((f"from {path.source.name}", *(f"{name} {value}" for name, value in describe(path.attrs).items())))


STEPS: tuple[StepRule, ...] = (
    StepRule(
        Step.LOCAL_ORIGIN, "origin on this node", "our own", _local_origin,
        lambda path: ("local", "priority decides", "learned")[_local_origin(path)],
    ),
    StepRule(Step.LOCAL_PREF, "LOCAL_PREF", "higher", _local_pref, lambda path: str(path.local_pref)),
    StepRule(
        Step.AS_PATH_LENGTH, "AS_PATH length", "shorter", _as_path_length, lambda path: str(path.attrs.as_path_length)
    ),
    StepRule(Step.ORIGIN, "ORIGIN", "lower", _origin, lambda path: _ORIGIN_NAMES[path.attrs.origin]),
    StepRule(
        Step.MED, "MED within the neighbour AS", "lower", _med,
        lambda path: f"{_med(path)} (AS {path.attrs.neighbor_as})", within_neighbor_as=True,
    ),
    StepRule(
        Step.EXTERNAL, "peer type", "external", _external, lambda path: "internal" if _external(path) else "external"
    ),
    StepRule(
        Step.NEXT_HOP_METRIC, "metric to the next hop", "lower", _next_hop_metric,
        lambda path: str(_next_hop_metric(path)),
    ),
    StepRule(
        Step.ROUTER_ID, "router id (or ORIGINATOR_ID)", "lower", _router_id,
        lambda path: format_router_id(_router_id(path)),
    ),
    StepRule(
        Step.CLUSTER_LIST_LENGTH, "CLUSTER_LIST length", "shorter", _cluster_list_length,
        lambda path: str(_cluster_list_length(path)),
    ),
    StepRule(
        Step.PEER_ADDRESS, "peer address", "lower", _peer_address,
        lambda path: format_address(path.source.address) if path.source.address else "none",
    ),
    StepRule(Step.CONTENT, "path content", "lower", _content, _content_text),
)  # fmt: skip

#: The steps that say how good a path is, in order.
_PREFERENCE = STEPS[: Step.NEXT_HOP_METRIC]
