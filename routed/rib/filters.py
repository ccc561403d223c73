"""Route filters: compiled rules that let a route in or out of a session, perhaps changed, and say which rule did.

A `RouteFilter` is an ordered list of `Rule`s for one family and one direction. The first rule that matches and accepts
or rejects ends it; a rule that continues only changes the route; where none ends it, the filter's default does. Both a
user's BGPFilters (`compile_rules`) and the default export rules (`plan/export`) are such rules: there is one mechanism.

Invariants:
- Immutable and equal by content, so that peers with equal filters share an update group and a changed plan can be
  diffed. Rules that can't be reached are no part of the content.
- The same path and prefix always give the same verdict, and the same `AttributeSet` object where attributes change.
- On export a rule accepts the default route only if its cidr names it: neither a bare accept nor "everything but X"
  makes a node the cluster's way out.
- `accepts_all` and `prefix_free` are exact or False: they let the hot path skip `evaluate`.

The meaning of a BGPFilter's fields is Calico's. AS paths are matched as they are in our tables, without our own AS.
Not here: what RFC 4271 9.2 and 4456 forbid whatever the filter says (`adj_out`), which filters a peer has (`plan/`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from routed.bgp.as_path import prepend, segments
from routed.bgp.attributes import DEFAULT_LOCAL_PREF, AttributeSet
from routed.bgp.iana import SegmentType
from routed.model.resources import (
    AddCommunity,
    BGPFilterRule,
    FilterAction,
    FilterOperation,
    MatchOperator,
    PeerType,
    PrependASPath,
)
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE, format_prefix
from routed.rib.path import HIGHEST_LOCAL_PREF, NORMAL_PRIORITY, Path, SourceKind
from routed.values import dataclass

#: Changed attribute sets a filter remembers before it forgets them all (it would otherwise keep dead ones alive).
CHANGED_CACHE = 65536


class Action(enum.Enum):
    ACCEPT = "Accept"
    REJECT = "Reject"
    CONTINUE = "Continue"
    """Apply the operations and go on with the next rule."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The prefixes inside `prefix` that are from `low` to `high` bits long, both included."""

    prefix: bytes
    low: int
    high: int
    text: str = ""
    """Says which of a rule's matches it was, where it has several; goes behind the rule's own text."""


@dataclass(frozen=True, slots=True)
class Rule:
    """All conditions must hold; one left out always does."""

    action: Action
    text: str
    """Names the rule for people: "BGPFilter no-default rule 1: Reject 0.0.0.0/0"."""
    prefixes: tuple[PrefixMatch, ...] = ()
    """Any of these, at most one for a `prefix`; empty: every prefix."""
    negated: bool = False
    """None of `prefixes` instead."""
    remote_only: bool = False
    """Learned by BGP, rather than our own."""
    interface: str = ""
    """Glob of the name of the interface the route leaves through."""
    communities: tuple[bytes, ...] = ()
    """Has all of these: 4 octets standard, 12 large."""
    as_path_prefix: tuple[int, ...] = ()
    """The AS path begins with these, in a sequence."""
    local_pref: tuple[int, int] | None = None
    """From, to; both included."""
    operations: tuple[FilterOperation, ...] = ()

    @property
    def only_prefixes(self) -> bool:
        """Whether nothing but the prefix decides if it matches."""
        return not (
            self.remote_only or self.interface or self.communities or self.as_path_prefix or self.local_pref is not None
        )


class FilterVerdict(NamedTuple):
    accept: bool
    attrs: AttributeSet
    """The path's own, the same object, where no operation changed them."""
    rule: str
    """Which rule decided, for people."""


class RouteFilter:
    """See the module's docstring. `interface_of` gives the name of the interface a path leaves through, or ""."""

    __slots__ = (
        "_changed",
        "_compiled",
        "_hash",
        "_interface_of",
        "accepts_all",
        "default",
        "default_text",
        "export",
        "family",
        "name",
        "prefix_free",
        "rules",
    )

    def __init__(
        self,
        name: str,
        family: Family,
        rules: Sequence[Rule] = (),
        *,
        export: bool = False,
        default: bool = True,
        default_text: str = "accepted by default",
        interface_of: Callable[[Path], str] | None = None,
    ) -> None:
        self.name = name
        self.family = family
        self.rules = _reachable(rules, family, export)
        self.export = export
        self.default = default
        """Whether a route no rule decided on is accepted. On export the default route never is, without a rule."""
        self.default_text = default_text
        self.accepts_all = _lets_all_through(self.rules, partial(_reach, family=family), default) and (
            export or _lets_all_through(self.rules, _reach_of_default_route, default)
        )
        """Import: accepts every route as it is. Export: the same for all but the default route."""
        self.prefix_free = _is_prefix_free(self.rules, family)
        """The verdict on a path is the same for all its prefixes, the default route aside."""
        self._interface_of = interface_of
        self._compiled = [_Compiled(rule) for rule in self.rules]
        self._changed: dict[tuple[int, AttributeSet], AttributeSet] = {}
        self._hash = hash((family, self.rules, export, default, default_text))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, RouteFilter)
            and self._hash == other._hash
            and self.family is other.family
            and self.rules == other.rules
            and self.export == other.export
            and self.default == other.default
            and self.default_text == other.default_text
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<RouteFilter {self.name} {self.family.label} {len(self.rules)} rules>"

    def evaluate(self, family: Family, prefix: bytes, path: Path) -> FilterVerdict:
        """Judge one route. `family` is the filter's own."""
        assert family is self.family
        attrs = path.attrs
        length = prefix[0]
        number = int.from_bytes(prefix[1:], "big")
        bits = (len(prefix) - 1) * 8
        shy = self.export and length == 0
        """The default route, on its way out: see the module's docstring."""
        for index, rule in enumerate(self._compiled):
            text = rule.text
            if rule.by_length is not None:
                hit: PrefixMatch | None = None
                for mask, entries in rule.by_length:
                    if mask <= length:
                        match = entries.get(number >> (bits - mask))
                        if match is not None and match.low <= length <= match.high:
                            hit = match
                            break
                if (hit is None) is not rule.negated:
                    continue
                if hit is not None and hit.text:
                    text += hit.text
            if shy and rule.accepts and not rule.names_prefixes:
                continue
            if not (rule.only_prefixes or self._matches(rule, attrs, path)):
                continue
            if rule.operations:
                attrs = self._apply(index, rule.operations, attrs)
            if rule.ends:
                return FilterVerdict(rule.accepts, attrs, text)
        if shy and self.default:
            return FilterVerdict(False, attrs, "the default route is exported by a rule that names it only")
        return FilterVerdict(self.default, attrs, self.default_text)

    def _matches(self, rule: _Compiled, attrs: AttributeSet, path: Path) -> bool:
        """The conditions beside the prefix."""
        if rule.remote_only and path.source.kind is SourceKind.LOCAL:
            return False
        if rule.local_pref is not None:
            low, high = rule.local_pref
            if not low <= self._local_pref(attrs, path) <= high:
                return False
        for community in rule.communities:
            if not has_community(attrs, community):
                return False
        if rule.as_path_prefix and _leading_sequence(attrs.as_path, len(rule.as_path_prefix)) != rule.as_path_prefix:
            return False
        if rule.interface is None:
            return True
        # what leads nowhere has the empty name, which "*" matches, as in BIRD
        return self._interface_of is not None and rule.interface.fullmatch(self._interface_of(path)) is not None

    def _local_pref(self, attrs: AttributeSet, path: Path) -> int:
        """What a priority is compared with. A route of our own leaves with the normal priority."""
        if attrs.local_pref is not None:
            return attrs.local_pref
        value = path.local_pref
        if self.export and path.source.kind is SourceKind.LOCAL and value == DEFAULT_LOCAL_PREF:
            return HIGHEST_LOCAL_PREF - NORMAL_PRIORITY
        return value

    def _apply(self, index: int, operations: tuple[FilterOperation, ...], attrs: AttributeSet) -> AttributeSet:
        key = (index, attrs)
        changed = self._changed.get(key)
        if changed is None:
            if len(self._changed) >= CHANGED_CACHE:
                self._changed.clear()
            changed = attrs
            for operation in operations:
                changed = _operate(operation, changed)
            self._changed[key] = changed
        return changed


class _Compiled:
    """A rule in the form the loop wants."""

    __slots__ = (
        "accepts",
        "as_path_prefix",
        "by_length",
        "communities",
        "ends",
        "interface",
        "local_pref",
        "names_prefixes",
        "negated",
        "only_prefixes",
        "operations",
        "remote_only",
        "text",
    )

    def __init__(self, rule: Rule) -> None:
        self.text = rule.text
        self.accepts = rule.action is not Action.REJECT
        self.ends = rule.action is not Action.CONTINUE
        self.negated = rule.negated
        self.names_prefixes = bool(rule.prefixes) and not rule.negated
        tables: dict[int, dict[int, PrefixMatch]] = {}
        for match in rule.prefixes:
            mask, octets = match.prefix[0], match.prefix[1:]
            key = int.from_bytes(octets, "big") >> (len(octets) * 8 - mask)
            tables.setdefault(mask, {}).setdefault(key, match)
        self.by_length = sorted(tables.items(), reverse=True) if rule.prefixes else None
        self.only_prefixes = rule.only_prefixes
        self.remote_only = rule.remote_only
        self.interface = _glob(rule.interface) if rule.interface else None
        self.communities = rule.communities
        self.as_path_prefix = rule.as_path_prefix
        self.local_pref = rule.local_pref
        self.operations = rule.operations


# ---- the flags


class _Reach(enum.Enum):
    """Which prefixes of those asked about a rule's prefix condition lets through."""

    NOTHING = 0
    SOME = 1
    EVERYTHING = 2


def _reach(rule: Rule, family: Family) -> _Reach:
    """Of all prefixes but the default route."""
    if not rule.prefixes:
        return _Reach.EVERYTHING
    matches = rule.prefixes
    if any(match.prefix == DEFAULT_ROUTE and match.low <= 1 and match.high >= family.max_length for match in matches):
        return _Reach.NOTHING if rule.negated else _Reach.EVERYTHING
    if all(match.high == 0 or match.low > match.high for match in matches):
        return _Reach.EVERYTHING if rule.negated else _Reach.NOTHING
    return _Reach.SOME


def _reach_of_default_route(rule: Rule) -> _Reach:
    """Of the default route alone."""
    hit = not rule.prefixes or rule.negated is not any(
        match.prefix == DEFAULT_ROUTE and match.low == 0 <= match.high for match in rule.prefixes
    )
    return _Reach.EVERYTHING if hit else _Reach.NOTHING


def _lets_all_through(rules: Sequence[Rule], reach_of: Callable[[Rule], _Reach], default: bool) -> bool:
    for rule in rules:
        reach = reach_of(rule)
        if reach is _Reach.NOTHING:
            continue
        if rule.action is Action.REJECT or rule.operations:
            return False
        if rule.action is Action.ACCEPT and rule.only_prefixes and reach is _Reach.EVERYTHING:
            return True
    return default


def _is_total(rule: Rule, family: Family) -> bool:
    """Whether it decides on everything but the default route."""
    return rule.action is not Action.CONTINUE and rule.only_prefixes and _reach(rule, family) is _Reach.EVERYTHING


def _reachable(rules: Sequence[Rule], family: Family, export: bool) -> tuple[Rule, ...]:
    """Without the rules behind one that decides on everything, unless they may be about the default route."""
    reachable: list[Rule] = []
    total = False
    for rule in rules:
        takes_default = _reach_of_default_route(rule) is _Reach.EVERYTHING
        if total and not takes_default:
            continue
        reachable.append(rule)
        total = total or _is_total(rule, family)
        bare_accept = rule.action is Action.ACCEPT and (not rule.prefixes or rule.negated)
        if total and takes_default and rule.action is not Action.CONTINUE and rule.only_prefixes:
            if export and bare_accept:
                continue
            break
    return tuple(reachable)


def _is_prefix_free(rules: Sequence[Rule], family: Family) -> bool:
    for rule in rules:
        if _reach(rule, family) is _Reach.SOME:
            return False
        if _is_total(rule, family):
            return True
    return True


# ---- conditions and operations


def has_community(attrs: AttributeSet, community: bytes) -> bool:
    """Whether a standard (4 octets) or large (12 octets) community is on a path."""
    size = len(community)
    held = attrs.communities if size == 4 else attrs.large_communities
    at = held.find(community)
    while at >= 0 and at % size:
        at = held.find(community, at + 1)
    return at >= 0


def _leading_sequence(as_path: bytes, count: int) -> tuple[int, ...]:
    """The first `count` AS numbers of a path, up to its first set."""
    numbers: list[int] = []
    for kind, members in segments(as_path):
        if kind != SegmentType.AS_SEQUENCE or len(numbers) >= count:
            break
        numbers.extend(members)
    return tuple(numbers[:count])


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` is any run of characters, `?` any one; the rest is literal."""
    return re.compile("".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in pattern), re.DOTALL)


def _operate(operation: FilterOperation, attrs: AttributeSet) -> AttributeSet:
    if isinstance(operation, AddCommunity):
        if has_community(attrs, operation.value):
            return attrs
        if len(operation.value) == 4:
            return attrs.replace(communities=attrs.communities + operation.value)
        return attrs.replace(large_communities=attrs.large_communities + operation.value)
    if isinstance(operation, PrependASPath):
        as_path = attrs.as_path
        for asn in reversed(operation.prefix):
            as_path = prepend(as_path, asn)
        return attrs.replace(as_path=as_path)
    return attrs.replace(local_pref=HIGHEST_LOCAL_PREF - operation.value)


# ---- a user's BGPFilter


def compile_rules(name: str, rules: Iterable[BGPFilterRule], family: Family, *, external: bool) -> list[Rule]:
    """The rules of one of a BGPFilter's lists, for sessions with an external or an internal peer.

    Rules for the other type of peer are left out; the numbers in the texts stay those of the list, from 1.
    """
    peer_type = PeerType.EBGP if external else PeerType.IBGP
    return [
        _compile_rule(f"BGPFilter {name} rule {number}: ", rule, family)
        for number, rule in enumerate(rules, 1)
        if rule.peer_type is None or rule.peer_type is peer_type
    ]


def _compile_rule(label: str, rule: BGPFilterRule, family: Family) -> Rule:
    prefixes: tuple[PrefixMatch, ...] = ()
    operator = rule.match_operator
    if rule.cidr is not None:
        mask, widest = rule.cidr[0], family.max_length
        low, high = mask, widest
        if rule.prefix_length_min is None and rule.prefix_length_max is None:
            if operator in (MatchOperator.EQUAL, MatchOperator.NOT_EQUAL):
                high = mask
        else:
            if rule.prefix_length_min is not None:
                low = max(mask, rule.prefix_length_min)
            if rule.prefix_length_max is not None:
                high = min(widest, rule.prefix_length_max)
        prefixes = (PrefixMatch(rule.cidr, low, high),)
    return Rule(
        action=Action.ACCEPT if rule.action is FilterAction.ACCEPT else Action.REJECT,
        text=label + _describe(rule, family),
        prefixes=prefixes,
        negated=operator in (MatchOperator.NOT_EQUAL, MatchOperator.NOT_IN),
        remote_only=rule.source is not None,
        interface=rule.interface,
        communities=rule.communities,
        as_path_prefix=rule.as_path_prefix,
        local_pref=None if rule.priority is None else (HIGHEST_LOCAL_PREF - rule.priority,) * 2,
        operations=rule.operations,
    )


def _describe(rule: BGPFilterRule, family: Family) -> str:
    """`Reject 0.0.0.0/0`, `Accept In 10.244.0.0/16 26-32 source RemotePeers`, in the resource's words."""
    words = [rule.action.value]
    if rule.cidr is not None:
        if rule.match_operator is not None and rule.match_operator is not MatchOperator.EQUAL:
            words.append(rule.match_operator.value)
        words.append(format_prefix(family, rule.cidr))
        if rule.prefix_length_min is not None or rule.prefix_length_max is not None:
            low = rule.cidr[0] if rule.prefix_length_min is None else rule.prefix_length_min
            high = family.max_length if rule.prefix_length_max is None else rule.prefix_length_max
            words.append(f"{low}-{high}")
    if rule.source is not None:
        words.append(f"source {rule.source.value}")
    if rule.interface:
        words.append(f"interface {rule.interface}")
    if rule.peer_type is not None:
        words.append(f"peerType {rule.peer_type.value}")
    words.extend(f"community {community_text(value)}" for value in rule.communities)
    if rule.as_path_prefix:
        words.append("asPathPrefix " + " ".join(map(str, rule.as_path_prefix)))
    if rule.priority is not None:
        words.append(f"priority {rule.priority}")
    return " ".join(words)


def community_text(community: bytes) -> str:
    """`64512:100` or `64512:1:2`."""
    width = 2 if len(community) == 4 else 4
    return ":".join(str(int.from_bytes(community[at : at + width], "big")) for at in range(0, len(community), width))
