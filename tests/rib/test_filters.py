"""Route filters: every condition and operation of a BGPFilter, order, the default route, and the flags of the hot path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.attributes import AttributeFields, AttributeSet, as_path_text
from routed.model.resources import BGPFilter, BGPFilterRule
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE, parse_prefix
from routed.rib.filters import Action, PrefixMatch, RouteFilter, Rule, compile_rules
from routed.rib.path import Path, Source, SourceKind

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def sequence(*numbers: int) -> bytes:
    return bytes((2, len(numbers))) + b"".join(number.to_bytes(4, "big") for number in numbers)


def path(kind: SourceKind = SourceKind.EBGP, **attributes: object) -> Path:
    fields: AttributeFields = {"as_path": sequence(65001, 65002)}
    fields.update(attributes)  # type: ignore[typeddict-item]
    return Path(Source("peer", kind, 1, b"\x0a\0\0\x01"), AttributeSet(**fields), None)


def rules_of(rules: list[dict[str, object]], direction: str, family: Family) -> tuple[BGPFilterRule, ...]:
    key = f"{direction}V{4 if family is V4 else 6}"
    manifest = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BGPFilter",
        "metadata": {"name": "f"},
        "spec": {key: rules},
    }
    resource = parse_manifest(manifest)  # type: ignore[arg-type]
    assert isinstance(resource, BGPFilter)
    lists = (resource.import_v4, resource.import_v6, resource.export_v4, resource.export_v6)
    return next((found for found in lists if found), ())


def make(
    *rules: dict[str, object],
    family: Family = V4,
    export: bool = False,
    default: bool | None = None,
    external: bool = True,
    interface: str = "eth0",
) -> RouteFilter:
    parsed = rules_of(list(rules), "export" if export else "import", family)
    return RouteFilter(
        "f",
        family,
        compile_rules("f", parsed, family, external=external),
        export=export,
        default=not export if default is None else default,
        default_text="default",
        interface_of=lambda _: interface,
    )


def accepts(route_filter: RouteFilter, prefix: str, one: Path | None = None) -> bool:
    return route_filter.evaluate(*parse_prefix(prefix), one or path()).accept


def reject(**conditions: object) -> dict[str, object]:
    return {"action": "Reject", **conditions}


def accept(**conditions: object) -> dict[str, object]:
    return {"action": "Accept", **conditions}


# ---- cidr

CIDR_CASES = [
    # operator, prefixLength, what matches, what does not
    ("Equal", None, ["10.0.0.0/8"], ["10.0.0.0/9", "10.1.0.0/16", "0.0.0.0/0", "11.0.0.0/8"]),
    ("NotEqual", None, ["10.0.0.0/9", "0.0.0.0/0"], ["10.0.0.0/8"]),
    ("In", None, ["10.0.0.0/8", "10.1.0.0/16", "10.255.255.255/32"], ["10.0.0.0/7", "11.0.0.0/8"]),
    ("NotIn", None, ["10.0.0.0/7", "11.0.0.0/8"], ["10.0.0.0/8", "10.1.0.0/16"]),
    ("In", {"min": 16, "max": 24}, ["10.0.0.0/16", "10.0.0.0/24"], ["10.0.0.0/8", "10.0.0.0/15", "10.0.0.0/25"]),
    ("In", {"min": 16}, ["10.0.0.1/32"], ["10.0.0.0/15"]),
    ("In", {"max": 9}, ["10.0.0.0/8", "10.128.0.0/9"], ["10.0.0.0/10"]),
    ("In", {"min": 4, "max": 9}, ["10.0.0.0/8", "10.0.0.0/9"], ["8.0.0.0/7"]),
    ("NotIn", {"min": 16, "max": 24}, ["10.0.0.0/8", "10.0.0.0/25", "11.0.0.0/16"], ["10.0.0.0/16"]),
    ("Equal", {"min": 8, "max": 9}, ["10.0.0.0/8", "10.0.0.0/9"], ["10.0.0.0/10"]),
]


@pytest.mark.parametrize(("operator", "window", "matching", "other"), CIDR_CASES)
def test_cidr_operators(operator: str, window: dict[str, int] | None, matching: list[str], other: list[str]) -> None:
    conditions: dict[str, object] = {"cidr": "10.0.0.0/8", "matchOperator": operator}
    if window is not None:
        conditions["prefixLength"] = window
    route_filter = make(reject(**conditions))
    assert [prefix for prefix in (*matching, *other) if not accepts(route_filter, prefix)] == matching
    assert not route_filter.accepts_all and not route_filter.prefix_free


def test_ipv6_cidrs_off_the_octet() -> None:
    route_filter = make(
        reject(cidr="fd00:10:244::/47", matchOperator="In", prefixLength={"min": 48, "max": 122}), family=V6
    )
    expected = {
        "fd00:10:244::/47": True, "fd00:10:245::/48": False, "fd00:10:246::/48": True, "fd00:10:244::40/122": False,
        "fd00:10:244::1/128": True,
    }  # fmt: skip
    assert {prefix: accepts(route_filter, prefix) for prefix in expected} == expected


PREFIXES = st.builds(
    lambda number, length: (length, number >> (32 - length) << (32 - length) if length else 0),
    st.integers(0, 2**32 - 1) | st.sampled_from([0x0A000000, 0x0AF40000, 0x0AF40140]),
    st.integers(0, 32),
)


@given(PREFIXES, PREFIXES, st.integers(0, 32), st.integers(0, 32))
def test_prefix_match_against_arithmetic(outer: tuple[int, int], inner: tuple[int, int], low: int, high: int) -> None:
    (mask, network), (length, address) = outer, inner
    wire = [bytes((size,)) + number.to_bytes(4, "big")[: (size + 7) // 8] for size, number in (outer, inner)]
    rule = Rule(Action.REJECT, "", (PrefixMatch(wire[0], low, high),))
    shift = 32 - mask
    expected = length >= mask and address >> shift == network >> shift and low <= length <= high
    assert RouteFilter("", V4, (rule,)).evaluate(V4, wire[1], path()).accept is not expected


# ---- the other conditions


def test_source_remote_peers_is_what_bgp_learned() -> None:
    route_filter = make(reject(source="RemotePeers"), export=True, default=True)
    for kind in (SourceKind.EBGP, SourceKind.IBGP, SourceKind.IBGP_CLIENT):
        assert not accepts(route_filter, "10.0.0.0/8", path(kind))
    assert accepts(route_filter, "10.0.0.0/8", path(SourceKind.LOCAL))


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.calico", "vxlan.calico", True),
        ("*.calico", "vxlanxcalico", False),
        ("eth0", "eth0", True),
        ("eth0", "eth01", False),
        ("eth*", "eth0", True),
        ("*", "", True),
        ("cali*[x]", "calia[x]", True),
    ],
)
def test_interface_globs(pattern: str, name: str, matches: bool) -> None:
    rule = Rule(Action.REJECT, "", interface=pattern)
    route_filter = RouteFilter("f", V4, (rule,), interface_of=lambda _: name)
    assert accepts(route_filter, "10.0.0.0/8") is not matches
    assert accepts(RouteFilter("f", V4, (rule,)), "10.0.0.0/8"), "no interface known: no match"


def test_peer_type_leaves_rules_out_but_keeps_their_numbers() -> None:
    rules = [reject(peerType="eBGP"), reject(peerType="iBGP", cidr="10.0.0.0/8", matchOperator="In")]
    internal, external = make(*rules, external=False), make(*rules, external=True)
    assert accepts(internal, "11.0.0.0/8") and not accepts(internal, "10.0.0.0/8")
    assert not accepts(external, "11.0.0.0/8")
    verdict = internal.evaluate(V4, parse_prefix("10.1.0.0/16")[1], path())
    assert verdict.rule == "BGPFilter f rule 2: Reject In 10.0.0.0/8 peerType iBGP"


def test_communities_are_found_aligned() -> None:
    standard = make(reject(communities={"values": ["64512:100"]}))
    value = (64512 << 16 | 100).to_bytes(4, "big")
    assert not accepts(standard, "10.0.0.0/8", path(communities=b"\0\1\0\2" + value))
    assert accepts(standard, "10.0.0.0/8", path(communities=b"\0\0" + value + b"\0\0"))
    assert accepts(standard, "10.0.0.0/8", path(large_communities=value * 3))
    large = make(reject(communities={"values": ["64512:1:2"]}))
    value = b"".join(part.to_bytes(4, "big") for part in (64512, 1, 2))
    assert not accepts(large, "10.0.0.0/8", path(large_communities=value))
    assert accepts(large, "10.0.0.0/8", path(communities=value))


def test_as_path_prefix() -> None:
    route_filter = make(reject(asPathPrefix=[65001, 65002]))
    assert not accepts(route_filter, "10.0.0.0/8")
    assert not accepts(route_filter, "10.0.0.0/8", path(as_path=sequence(65001) + sequence(65002, 1)))
    for other in (sequence(65001), sequence(65002, 65001), b"", sequence(65001) + b"\x01" + sequence(65002)[1:]):
        assert accepts(route_filter, "10.0.0.0/8", path(as_path=other))


def test_priority_is_local_pref_counted_down() -> None:
    route_filter = make(reject(priority=512), export=True, default=True)
    assert not accepts(route_filter, "10.0.0.0/8", path(local_pref=2147483647 - 512))
    assert accepts(route_filter, "10.0.0.0/8", path(local_pref=512))
    normal = make(reject(priority=1024), export=True, default=True)
    assert not accepts(normal, "10.0.0.0/8", path(SourceKind.LOCAL)), "our own routes have the normal priority"
    assert accepts(normal, "10.0.0.0/8", path(SourceKind.IBGP)), "a learned one without LOCAL_PREF counts as 100"


# ---- order, operations, texts


def test_first_terminating_rule_wins_and_conditions_are_anded() -> None:
    route_filter = make(
        accept(cidr="10.1.0.0/16", matchOperator="In", source="RemotePeers"),
        reject(cidr="10.0.0.0/8", matchOperator="In"),
    )
    assert accepts(route_filter, "10.1.2.0/24")
    assert not accepts(route_filter, "10.1.2.0/24", path(SourceKind.LOCAL))
    assert accepts(route_filter, "11.0.0.0/8")


def test_operations_change_the_attributes_once_for_all_prefixes() -> None:
    route_filter = make(
        accept(
            communities={"values": ["1:1"]},
            operations=[
                {"addCommunity": {"value": "64512:100"}},
                {"addCommunity": {"value": "64512:1:2"}},
                {"addCommunity": {"value": "1:1"}},
                {"prependASPath": {"prefix": [64700, 64701]}},
                {"setPriority": {"value": 512}},
            ],
        )
    )
    one = path(communities=b"\0\1\0\1")
    first = route_filter.evaluate(V4, parse_prefix("10.0.0.0/8")[1], one)
    second = route_filter.evaluate(V4, parse_prefix("10.1.0.0/16")[1], one)
    attrs = first.attrs
    assert attrs is second.attrs and attrs is not one.attrs
    assert attrs.communities == b"\0\1\0\1" + (64512 << 16 | 100).to_bytes(4, "big")
    assert len(attrs.large_communities) == 12
    assert as_path_text(attrs) == "64700 64701 65001 65002"
    assert attrs.local_pref == 2147483647 - 512
    assert one.attrs.local_pref is None, "the path's own are untouched"
    untouched = route_filter.evaluate(V4, parse_prefix("10.0.0.0/8")[1], two := path())
    assert untouched.attrs is two.attrs
    assert route_filter.prefix_free and not route_filter.accepts_all


def test_a_continuing_rule_changes_and_goes_on() -> None:
    (compiled,) = compile_rules(
        "f", rules_of([accept(operations=[{"setPriority": {"value": 1}}])], "import", V4), V4, external=True
    )
    rules = (
        Rule(Action.CONTINUE, "mark", operations=compiled.operations),
        Rule(Action.REJECT, "marked", local_pref=(2147483646, 2147483646)),
    )
    verdict = RouteFilter("f", V4, rules).evaluate(V4, b"\x08\x0a", path())
    assert (verdict.accept, verdict.rule) == (False, "marked")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (reject(cidr="0.0.0.0/0", matchOperator="Equal"), "Reject 0.0.0.0/0"),
        (accept(), "Accept"),
        (
            reject(cidr="10.0.0.0/8", matchOperator="NotIn", prefixLength={"min": 26}, interface="*.calico"),
            "Reject NotIn 10.0.0.0/8 26-32 interface *.calico",
        ),
        (
            accept(source="RemotePeers", communities={"values": ["1:2:3"]}, asPathPrefix=[1, 2], priority=7),
            "Accept source RemotePeers community 1:2:3 asPathPrefix 1 2 priority 7",
        ),
    ],
)
def test_texts_name_filter_rule_and_conditions(rule: dict[str, object], text: str) -> None:
    assert make(rule).rules[0].text == f"BGPFilter f rule 1: {text}"


def test_a_match_of_several_says_which() -> None:
    matches = (PrefixMatch(b"\x08\x0a", 8, 32, "a 10.0.0.0/8"), PrefixMatch(b"\x08\x0b", 8, 32, "b 11.0.0.0/8"))
    route_filter = RouteFilter("f", V4, (Rule(Action.ACCEPT, "inside IPPool ", matches),), export=True, default=False)
    assert route_filter.evaluate(V4, b"\x09\x0b\x80", path()).rule == "inside IPPool b 11.0.0.0/8"


# ---- the default route on its way out


@pytest.mark.parametrize(
    ("rules", "exported"),
    [
        ([accept()], False),
        ([accept(source="RemotePeers")], False),
        ([accept(cidr="10.0.0.0/8", matchOperator="NotIn")], False),
        ([accept(cidr="10.0.0.0/8", matchOperator="NotEqual")], False),
        ([accept(cidr="0.0.0.0/0", matchOperator="Equal")], True),
        ([accept(cidr="0.0.0.0/0", matchOperator="In")], True),
        ([accept(cidr="0.0.0.0/0", matchOperator="In", prefixLength={"min": 1})], False),
        ([accept(), accept(cidr="0.0.0.0/0", matchOperator="Equal")], True),
        ([reject(), accept(cidr="0.0.0.0/0", matchOperator="Equal")], False),
        ([], False),
    ],
)
def test_the_default_route_goes_out_by_name_only(rules: list[dict[str, object]], exported: bool) -> None:
    for default in (True, False):
        assert accepts(make(*rules, export=True, default=default), "0.0.0.0/0") is exported
    v6 = [{**rule, **({"cidr": "::/0"} if rule.get("cidr") == "0.0.0.0/0" else {})} for rule in rules]
    if all(rule.get("cidr") in (None, "::/0") for rule in v6):
        assert accepts(make(*v6, export=True, family=V6), "::/0") is exported


def test_the_default_route_comes_in_like_any_other() -> None:
    assert accepts(make(), "0.0.0.0/0")
    assert accepts(make(accept(), default=False), "0.0.0.0/0")
    assert not accepts(make(reject(cidr="0.0.0.0/0", matchOperator="Equal")), "0.0.0.0/0")


# ---- flags and content

NO_DEFAULT = reject(cidr="0.0.0.0/0", matchOperator="Equal")
POOL = accept(cidr="10.244.0.0/16", matchOperator="In")
FLAG_CASES = [
    # rules, export, accepts_all, prefix_free
    ([], False, True, True),
    ([], True, False, True),
    ([accept()], True, True, True),
    ([accept()], False, True, True),
    ([POOL], False, True, False),
    ([POOL], True, False, False),
    ([POOL, accept()], True, True, False),
    ([accept(), POOL], True, True, True),
    ([NO_DEFAULT], False, False, True),
    ([NO_DEFAULT, accept()], True, True, True),
    ([accept(cidr="0.0.0.0/0", matchOperator="In")], True, True, True),
    ([accept(cidr="0.0.0.0/0", matchOperator="In", prefixLength={"max": 24})], True, False, False),
    ([accept(cidr="0.0.0.0/0", matchOperator="NotEqual")], True, True, True),
    ([accept(cidr="0.0.0.0/0", matchOperator="NotEqual"), reject()], False, False, True),
    ([accept(source="RemotePeers")], True, False, True),
    ([accept(source="RemotePeers"), accept()], True, True, True),
    ([accept(operations=[{"setPriority": {"value": 1}}])], True, False, True),
    ([reject(), accept()], True, False, True),
    ([reject(peerType="iBGP"), accept()], True, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "export", "accepts_all", "prefix_free"), FLAG_CASES)
def test_flags(rules: list[dict[str, object]], export: bool, accepts_all: bool, prefix_free: bool) -> None:
    route_filter = make(*rules, export=export)
    assert (route_filter.accepts_all, route_filter.prefix_free) == (accepts_all, prefix_free)


def test_what_cannot_be_reached_is_no_part_of_the_content() -> None:
    bare = make(accept(), export=True)
    pools = Rule(Action.ACCEPT, "pool", (PrefixMatch(b"\x08\x0a", 8, 32),))
    behind = RouteFilter("other", V4, (*bare.rules, pools), export=True, default=False, default_text="default")
    assert behind == bare and hash(behind) == hash(bare)
    by_name = make(accept(), accept(cidr="0.0.0.0/0", matchOperator="Equal"), export=True)
    assert by_name != bare and accepts(by_name, "0.0.0.0/0")


def test_equality_is_by_content() -> None:
    assert make(NO_DEFAULT) == make(NO_DEFAULT) and hash(make(NO_DEFAULT)) == hash(make(NO_DEFAULT))
    others = [make(), make(NO_DEFAULT, export=True), make(NO_DEFAULT, default=False), make(POOL), make(family=V6)]
    assert all(other != make(NO_DEFAULT) for other in others)
    assert make(NO_DEFAULT) != "f"


MATCHES = st.lists(
    st.builds(
        PrefixMatch, st.sampled_from([b"\0", b"\x08\x0a", b"\x10\x0a\xf4"]), st.integers(0, 32), st.integers(0, 32)
    ),
    max_size=2,
    unique_by=lambda match: match.prefix,
).map(tuple)
RULES = st.lists(
    st.builds(
        Rule,
        action=st.sampled_from(Action),
        text=st.just("rule"),
        prefixes=MATCHES,
        negated=st.booleans(),
        remote_only=st.booleans(),
        as_path_prefix=st.sampled_from([(), (65001,), (1,)]),
    ),
    max_size=4,
)
SOME_PREFIXES = [
    b"\0",
    b"\x01\x80",
    b"\x08\x0a",
    b"\x09\x0a\x80",
    b"\x10\x0a\xf4",
    b"\x20\x0a\xf4\0\1",
    b"\x20\1\2\3\4",
]
SOME_PATHS = [path(), path(SourceKind.LOCAL, as_path=b""), path(as_path=sequence(1))]


def naive(rules: list[Rule], export: bool, default: bool, prefix: bytes, one: Path) -> bool:
    """The verdict by reading the rules as they are written."""
    length, value = prefix[0], int.from_bytes(prefix[1:].ljust(4, b"\0"), "big")
    for rule in rules:
        hit = any(
            match.prefix[0] <= length
            and match.low <= length <= match.high
            and value >> 32 - match.prefix[0]
            == int.from_bytes(match.prefix[1:].ljust(4, b"\0"), "big") >> 32 - match.prefix[0]
            for match in rule.prefixes
        )
        if rule.prefixes and hit is rule.negated:
            continue
        if rule.remote_only and one.source.kind is SourceKind.LOCAL:
            continue
        if rule.as_path_prefix and not as_path_text(one.attrs).startswith(str(rule.as_path_prefix[0])):
            continue
        named = bool(rule.prefixes) and not rule.negated
        if rule.action is Action.REJECT:
            return False
        if rule.action is Action.ACCEPT and (not export or length or named):
            return True
    return default and not (export and not length)


@given(RULES, st.booleans(), st.booleans())
def test_verdicts_and_flags_against_the_rules_as_written(rules: list[Rule], export: bool, default: bool) -> None:
    route_filter = RouteFilter("f", V4, rules, export=export, default=default)
    for one in SOME_PATHS:
        verdicts = {prefix: route_filter.evaluate(V4, prefix, one).accept for prefix in SOME_PREFIXES}
        assert verdicts == {prefix: naive(rules, export, default, prefix, one) for prefix in SOME_PREFIXES}
        ordinary = {accepted for prefix, accepted in verdicts.items() if prefix != DEFAULT_ROUTE}
        if route_filter.accepts_all:
            assert ordinary == {True}
            assert export or verdicts[DEFAULT_ROUTE]
        if route_filter.prefix_free:
            assert len(ordinary) == 1
