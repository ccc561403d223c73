"""A BGPFilter here, and what confd makes of it for BIRD: the same routes pass, and they leave with the same attributes.

Each case (filters_of_confd.yaml) is a filter's rules and, written by hand beside them, BIRD's words for them as confd has
them. A real BIRD has both families' routes from a peer, and some of its own, behind an interface of a pod and
blackholed; what a case lets out is piped through it, what it lets in comes over a session of its own. On our side a plan is
made of the BGPFilter, whose filters judge the same routes. All addresses are in an enabled pool, so what no rule decides on
passes.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path as FilePath
from string import Template
from typing import Any

import pytest
import yaml

from routed.bgp.as_path import prepend, segments
from routed.bgp.attributes import AttributeSet, split_values
from routed.model.fields import as_community
from routed.model.resources import Update
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.plan.planner import Planner
from routed.plan.types import Plan, PlanSettings
from routed.rib.filters import community_text
from routed.rib.path import Path, Source, SourceKind
from routed.testing.lab import Lab, wait_for
from routed.testing.routers import Bird, missing, resource
from tests.lab.topology import CLUSTER_AS, RECONNECT, SOON

pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(missing("bird")), reason="needs bird")]

PEER_AS = 65001
NODE, FEEDER = "192.0.2.1", "192.0.2.2"

#: What cases are written with, for IPv4 and IPv6: nested prefixes a > b > c > d, another one, and a window of lengths.
WORDS = {
    Family.IPV4_UNICAST: {
        "a": "10.0.0.0/8", "b": "10.1.0.0/16", "c": "10.1.2.0/24", "d": "10.1.2.3/32", "e": "11.0.0.0/8",
        "of_b": "16", "of_c": "24", "low": "18", "high": "25", "all": "32",
    },
    Family.IPV6_UNICAST: {
        "a": "fd10::/16", "b": "fd10:1::/32", "c": "fd10:1:2::/48", "d": "fd10:1:2::3/128", "e": "fd11::/16",
        "of_b": "32", "of_c": "48", "low": "34", "high": "51", "all": "128",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    about: str
    rules: str
    """The rules of the BGPFilter."""
    bird: str
    """What confd writes of them."""
    external: bool = False
    """The filter's peer is."""
    incoming: bool = False


CASES = [Case(**each) for each in yaml.safe_load(FilePath(__file__).with_name("filters_of_confd.yaml").read_text())]


@dataclass(frozen=True)
class Route:
    prefix: str
    as_path: tuple[int, ...] = ()
    communities: tuple[str, ...] = ()
    local_pref: int | None = None
    interface: str = "eth0"
    """Of a peer's routes; `cali1`, or empty for a blackhole, of this node's own."""


KINDS = [
    ((), (), 100),
    ((65001,), ("65000:100",), 2147483547),
    ((65001, 65002), ("65000:100", "65000:42", "65000:100:200"), 100),
    ((65002,), ("65000:1:2", "65000:42"), 2147483447),
    ((65002, 65001), ("65000:42",), 2147482623),
    ((65001, 65001, 65002), ("65000:100:200",), 2147483447),
    ((65003, 65001), (), 2147483547),
]


def prefixes(family: Family) -> list[str]:
    words = WORDS[family]
    a, b, c, d, e = (ipaddress.ip_network(words[name]) for name in "abcde")
    below = [*list(a.subnets(1)), *list(b.subnets(2)), *list(c.subnets(3)), *list(e.subnets(4))[:5]]
    beside = [d.supernet(1), d.supernet(4), a.supernet(3)]
    return [str(each) for each in dict.fromkeys([a, b, c, d, e, *below, *beside])]


def routes(family: Family) -> list[Route]:
    given = prefixes(family)
    assert len(given) >= 25
    return [Route(prefix, *KINDS[index % len(KINDS)]) for index, prefix in enumerate(given)]


def own_routes(family: Family) -> list[Route]:
    b, c, e = (ipaddress.ip_network(WORDS[family][name]) for name in "bce")
    return [
        Route(str(ipaddress.ip_network((c[77], c.max_prefixlen))), interface="cali1"),
        Route(str(ipaddress.ip_network((e[9], e.max_prefixlen))), interface="cali1"),
        Route(str(list(b.subnets(10))[33]), interface=""),
    ]


def written(text: str, family: Family) -> str:
    return Template(text).substitute(WORDS[family])


# ---- BIRD


def channel(family: Family) -> str:
    return "ipv4" if family is Family.IPV4_UNICAST else "ipv6"


def static(family: Family, of: list[Route]) -> str:
    text = f"protocol static {{ {channel(family)};\n"
    for one in of:
        way = f'via "{one.interface}"' if one.interface == "cali1" else "blackhole"
        said = "".join(f" bgp_path.prepend({number});" for number in reversed(one.as_path))
        for community in one.communities:
            numbers = community.split(":")
            said += f" {'bgp_community' if len(numbers) == 2 else 'bgp_large_community'}.add(({','.join(numbers)}));"
        if one.local_pref is not None:
            said += f" bgp_local_pref = {one.local_pref};"
        text += f"  route {one.prefix} {way} {{{said} }};\n"
    return text + "}\n"


def session(index: int) -> tuple[str, str]:
    """Both ends of a session, the node's first; BIRD has no two with one neighbour. The first is for what goes out."""
    return f"192.0.2.{100 + index}", f"192.0.2.{200 + index}"


INCOMING = [None, *(case for case in CASES if case.incoming)]


def feeder() -> str:
    text = f"router id {FEEDER};\nprotocol device {{}}\n" + "".join(static(family, routes(family)) for family in Family)
    for index, case in enumerate(INCOMING):
        own = PEER_AS if case is not None and case.external else CLUSTER_AS
        at, from_ = session(index)
        text += f"protocol bgp {{ local {from_} as {own}; neighbor {at} as {CLUSTER_AS}; multihop;\n"
        text += " connect delay time 1; connect retry time 1; error wait time 1, 2;\n"
        text += " ipv4 { import none; export where source = RTS_STATIC; next hop self; };\n"
        text += " ipv6 { import none; export where source = RTS_STATIC; next hop address 2001:db8::2; }; }\n"
    return text


def node() -> str:
    text = f"router id {NODE};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n"
    for index, case in enumerate(CASES):
        for family in Family:
            kind = channel(family)
            body = written(case.bird, family)
            text += f"{kind} table out{index}{kind};\n"
            text += f"function f{index}{kind}(bool is_same_as) {{\n{body}\n}}\n"
            text += f"filter t{index}{kind} {{ f{index}{kind}({'false' if case.external else 'true'}); accept; }}\n"
            if not case.incoming:
                text += (
                    f"protocol pipe {{ table {'master4' if kind == 'ipv4' else 'master6'}; peer table out{index}{kind};"
                )
                text += f" import none; export filter t{index}{kind}; }}\n"
    text += "".join(static(family, own_routes(family)) for family in Family)
    for number, case in enumerate(INCOMING):
        peer = PEER_AS if case is not None and case.external else CLUSTER_AS
        here, there = session(number)
        text += f"protocol bgp {{ local {here} as {CLUSTER_AS}; neighbor {there} as {peer}; multihop; passive;\n"
        for family in Family:
            kind = channel(family)
            at = "" if case is None else f"table out{CASES.index(case)}{kind}; igp table master{kind[-1]}; "
            let_in = "all" if case is None else f"filter t{CASES.index(case)}{kind}"
            text += f" {kind} {{ {at}import {let_in}; export none; gateway recursive; }};\n"
        text += "}\n"
    return text


# prefix: (AS path, communities, LOCAL_PREF)
Passing = dict[str, tuple[tuple[int, ...], tuple[str, ...], int]]


def told(text: str) -> dict[str, str]:
    """Every route of a table, with the text about it."""
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and "/" in line.split()[0]:
            last = line.split()[0]
            found[last] = ""
        elif last and line[:1].isspace():
            found[last] += "\n" + line
    return found


def of_bird(bird: Bird, case: Case, family: Family) -> Passing:
    of_interest = {one.prefix for one in (*routes(family), *own_routes(family))}
    passing: Passing = {}
    for prefix, text in told(
        bird.ctl("show", "route", "table", f"out{CASES.index(case)}{channel(family)}", "all")
    ).items():
        if prefix in of_interest:
            said = dict(re.findall(r"BGP\.(\w+): ?(.*)", text))
            communities = re.findall(r"\((.*?)\)", said.get("community", "") + said.get("large_community", ""))
            passing[prefix] = (
                tuple(int(number) for number in said.get("as_path", "").split()),
                tuple(sorted(re.sub(r", ?", ":", each) for each in communities)),
                int(said.get("local_pref", 100)),
            )
    return passing


# ---- and we


def plan_of(case: Case, family: Family) -> Plan:
    rules = yaml.safe_load(written(case.rules, family))
    field = f"{'import' if case.incoming else 'export'}V{channel(family)[-1]}"
    own: dict[str, Any] = {"bgp": {"ipv4Address": f"{NODE}/24", "ipv6Address": "2001:db8::1/64"}}
    peer = FEEDER if family is Family.IPV4_UNICAST else "2001:db8::2"
    planner = Planner("node-1", PlanSettings(interface_of=lambda path: path.interface))
    for made in (
        resource("Node", "node-1", own),
        resource("IPPool", "v4", {"cidr": "8.0.0.0/5"}),
        resource("IPPool", "v6", {"cidr": "fd00::/8"}),
        resource("BGPFilter", "f", {field: rules}),
        resource(
            "BGPPeer",
            "p",
            {"peerIP": peer, "asNumber": PEER_AS if case.external else CLUSTER_AS, "filters": ["f"]},
        ),
    ):
        found = parse_manifest(made)
        planner.update(Update(found.key, found))
    plan = planner.plan()
    assert plan.problems == ()
    return plan


def of_ours(case: Case, family: Family) -> Passing:
    (peer,) = plan_of(case, family).peers.values()
    judge = (peer.import_filter if case.incoming else peer.export_filter)[family]
    passing: Passing = {}
    for one in (*routes(family), *(() if case.incoming else own_routes(family))):
        local = one.interface != "eth0"
        kind = SourceKind.LOCAL if local else SourceKind.EBGP if case.incoming and case.external else SourceKind.IBGP
        as_path = (PEER_AS, *one.as_path) if kind is SourceKind.EBGP else one.as_path
        held = [as_community(text, "") for text in one.communities]
        attrs = AttributeSet(
            local_pref=one.local_pref if kind is SourceKind.IBGP else None,
            as_path=sequence(as_path),
            communities=b"".join(each for each in held if len(each) == 4),
            large_communities=b"".join(each for each in held if len(each) == 12),
        )
        path = Path(Source("x", kind, 1, b""), attrs, None)
        path.interface = one.interface
        verdict = judge.evaluate(*parse_prefix(one.prefix), path)
        if verdict.accept:
            now = verdict.attrs
            texts = [*split_values(now.communities, 4), *split_values(now.large_communities, 12)]
            passing[one.prefix] = (
                tuple(number for _, numbers in segments(now.as_path) for number in numbers),
                tuple(sorted(map(community_text, texts))),
                100 if now.local_pref is None else now.local_pref,
            )
    return passing


def sequence(numbers: tuple[int, ...]) -> bytes:
    made = b""
    for number in reversed(numbers):
        made = prepend(made, number)
    return made


# ---- the test


@pytest.fixture(scope="module")
def bird(lab: Lab) -> Bird:
    here, there = lab.namespace("node"), lab.namespace("feeder")
    lab.link(here.port("eth0", f"{NODE}/24", "2001:db8::1/64"), there.port("eth0", f"{FEEDER}/24", "2001:db8::2/64"))
    for end, namespace in enumerate((here, there)):
        namespace.address("eth0", *(f"{session(index)[end]}/24" for index in range(len(INCOMING))))
    here.ip("link add cali1 type veth peer name pod1", "link set cali1 up", "link set pod1 up")
    Bird(there, feeder()).start()
    made = Bird(here, node())
    made.start()
    counts = {family: len(routes(family)) for family in Family}

    def complete() -> bool:
        protocols = made.ctl("show", "protocols", "all")
        return len(re.findall("BGP state: +Established", protocols)) == len(INCOMING) and all(
            sum(
                "BGP.origin" in text
                for text in told(made.ctl("show", "route", "table", f"master{kind[-1]}", "all")).values()
            )
            == counts[family]
            for family in Family
            for kind in (channel(family),)
        )

    wait_for(
        complete, RECONNECT, "BIRD has all routes", state=lambda: made.ctl("show", "protocols") + made.log()[-2000:]
    )
    return made


@pytest.mark.parametrize("family", list(Family), ids=channel)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_the_same_passes(bird: Bird, case: Case, family: Family) -> None:
    ours = of_ours(case, family)
    everything = len(routes(family)) + (0 if case.incoming else len(own_routes(family)))
    assert ours, "a case that lets nothing pass says little"
    assert len(ours) < everything or "operations" in case.rules, "nor one that lets all pass as it is"
    wait_for(
        lambda: of_bird(bird, case, family) == ours,
        SOON,
        "BIRD has the same",
        state=lambda: difference(bird, case, family),
    )


def difference(bird: Bird, case: Case, family: Family) -> str:
    ours, theirs = of_ours(case, family), of_bird(bird, case, family)
    return "\n".join(
        f"{prefix}: ours {ours.get(prefix)}, BIRD's {theirs.get(prefix)}"
        for prefix in sorted(ours.keys() | theirs.keys())
        if ours.get(prefix) != theirs.get(prefix)
    )
