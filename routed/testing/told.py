"""What is told of a route, in one form for all: the octets of an UPDATE, and each router's own words for what it heard.

Two routers agree on a route where their `Told` are equal; dataclasses compare, and pytest shows, field by field. Written
from each router's output alone: it shares no code with `routed.bgp`, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import field
from ipaddress import ip_address
from typing import Any

from routed.values import dataclass

Json = dict[str, Any]

ORIGINS = ("igp", "egp", "incomplete")
AS_SET = 1

#: Type codes this module has a field for; NEXT_HOP and the multiprotocol attributes stand for the next hop.
KNOWN = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 16, 32}


@dataclass(frozen=True, slots=True)
class Told:
    """Path attributes. An absent one is None, empty or False."""

    origin: str
    as_path: str
    """`65001 65002 {65010 65011}`; a set has no order, so it is sorted."""
    next_hop: str
    """The global one; a link-local one beside it is left out."""
    med: int | None = None
    local_pref: int | None = None
    atomic_aggregate: bool = False
    aggregator: str = ""
    """`AS ADDRESS`."""
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    extended_communities: tuple[str, ...] = ()
    """Route targets as `rt:AS:NUMBER`."""
    originator_id: str = ""
    cluster_list: tuple[str, ...] = ()
    unknown: dict[int, str] = field(default_factory=dict)
    """Value in hexadecimal by type code."""


def of_octets(attributes: dict[int, tuple[int, bytes]], next_hop: str) -> Told:
    """Of `peer.HeardUpdate`, from a session with four-octet AS numbers."""
    values = {code: value for code, (_, value) in attributes.items()}

    def number(code: int) -> int | None:
        return int.from_bytes(values[code], "big") if code in values else None

    aggregator = struct.unpack(">I4s", values[7]) if 7 in values else None
    return Told(
        origin=ORIGINS[values[1][0]],
        as_path=_path(values[2]),
        next_hop=next_hop.split(maxsplit=1)[0],
        med=number(4),
        local_pref=number(5),
        atomic_aggregate=6 in values,
        aggregator=f"{aggregator[0]} {ip_address(aggregator[1])}" if aggregator else "",
        communities=_tuples(values.get(8, b""), ">HH"),
        large_communities=_tuples(values.get(32, b""), ">III"),
        extended_communities=tuple(f"rt:{text.partition(':')[2]}" for text in _tuples(values.get(16, b""), ">HHI")),
        originator_id=str(ip_address(values[9])) if 9 in values else "",
        cluster_list=tuple(str(ip_address(each[0])) for each in struct.iter_unpack(">4s", values.get(10, b""))),
        unknown={code: value.hex() for code, value in values.items() if code not in KNOWN},
    )


def _path(octets: bytes) -> str:
    words, at = [], 0
    while at < len(octets):
        kind, count = octets[at], octets[at + 1]
        words.append(_segment(kind == AS_SET, struct.unpack_from(f">{count}I", octets, at + 2)))
        at += 2 + 4 * count
    return " ".join(words)


def _segment(is_set: bool, numbers: tuple[int, ...] | list[int]) -> str:
    text = " ".join(map(str, sorted(numbers) if is_set else numbers))
    return f"{{{text}}}" if is_set else text


def _sorted(path: str) -> str:
    """An AS_PATH in text, with its sets as `Told` has them."""
    return re.sub(
        r"\{(.*?)\}", lambda found: _segment(True, [int(each) for each in re.findall(r"\d+", found[1])]), path
    )


def _tuples(octets: bytes, form: str) -> tuple[str, ...]:
    return tuple(":".join(map(str, each)) for each in struct.iter_unpack(form, octets))


def of_bird(text: str) -> Told:
    """Of one route of `birdc show route all`."""
    found = dict(re.findall(r"BGP\.(\w+)(?: \[\w*\])?: (.*)", text))

    def bracketed(name: str) -> tuple[str, ...]:
        return tuple(
            each.replace(", ", ":").replace(",", ":") for each in re.findall(r"\((.*?)\)", found.get(name, ""))
        )

    router, _, asn = found.get("aggregator", "").partition(" AS")
    return Told(
        origin=found["origin"].lower(),
        as_path=_sorted(found.get("as_path", "")),
        next_hop=found["next_hop"].split()[0],
        med=int(found["med"]) if "med" in found else None,
        local_pref=int(found["local_pref"]) if "local_pref" in found else None,
        atomic_aggregate="atomic_aggr" in found,
        aggregator=f"{asn} {router}" if asn else "",
        communities=bracketed("community"),
        large_communities=bracketed("large_community"),
        extended_communities=bracketed("ext_community"),
        originator_id=found.get("originator_id", ""),
        cluster_list=tuple(found.get("cluster_list", "").split()),
        unknown={
            int(name, 16): value.replace(" ", "") for name, value in found.items() if re.fullmatch("[0-9a-f]{2}", name)
        },
    )


def of_frr(path: Json) -> Told:
    """Of one path of `show bgp ... PREFIX json`. FRR passes unknown attributes on and does not tell of them."""

    def words(name: str) -> tuple[str, ...]:
        return tuple(path.get(name, {}).get("string", "").split())

    text = path["aspath"]["string"]
    return Told(
        origin=path["origin"].lower(),
        as_path="" if text == "Local" else _sorted(text),
        next_hop=path["nexthops"][0]["ip"],
        med=path.get("metric"),
        local_pref=path.get("locPrf"),
        atomic_aggregate=path.get("atomicAggregate", False),
        aggregator=f"{path['aggregatorAs']} {path['aggregatorId']}" if "aggregatorAs" in path else "",
        communities=words("community"),
        large_communities=words("largeCommunity"),
        extended_communities=tuple(each.replace("RT:", "rt:") for each in words("extendedCommunity")),
        originator_id=path.get("originatorId", ""),
        cluster_list=tuple(path.get("clusterList", {}).get("list", ())),
    )


def of_gobgp(path: Json) -> Told:
    """Of one path of `gobgp global rib -j`."""
    found: dict[int, Json] = {attribute["type"]: attribute for attribute in path["attrs"]}
    return Told(
        origin=ORIGINS[found[1]["value"]],
        as_path=" ".join(
            _segment(each["segment_type"] == AS_SET, each["asns"]) for each in found.get(2, {}).get("as_paths", ())
        ),
        next_hop=(found.get(3) or found[14])["nexthop"],
        med=found[4]["metric"] if 4 in found else None,
        local_pref=found[5]["value"] if 5 in found else None,
        atomic_aggregate=6 in found,
        aggregator=f"{found[7]['as']} {found[7]['address']}" if 7 in found else "",
        communities=tuple(f"{each >> 16}:{each & 0xFFFF}" for each in found.get(8, {}).get("communities", ())),
        large_communities=tuple(
            f"{each['ASN']}:{each['LocalData1']}:{each['LocalData2']}" for each in found.get(32, {}).get("value", ())
        ),
        extended_communities=tuple(f"rt:{each['value']}" for each in found.get(16, {}).get("value", ())),
        originator_id=found[9]["value"] if 9 in found else "",
        cluster_list=tuple(found.get(10, {}).get("value", ())),
        unknown={
            code: base64.b64decode(attribute["value"]).hex() for code, attribute in found.items() if code not in KNOWN
        },
    )


def of_openbgpd(path: Json) -> Told:
    """Of one row of `bgpctl -j show rib detail`, which shows a MED that is absent as 0."""
    found: dict[str, Json] = {attribute["type"]: attribute for attribute in path.get("attributes", ())}
    aggregator = found.get("Aggregator")
    return Told(
        origin=path["origin"].lower(),
        as_path=_sorted(path["aspath"]),
        next_hop=path["exit_nexthop"],
        med=path["metric"] or None,
        local_pref=path["localpref"],
        atomic_aggregate="Atomic Aggregate" in found,
        aggregator=f"{aggregator['AS']} {aggregator['router_id']}" if aggregator else "",
        communities=tuple(path.get("communities", ())),
        large_communities=tuple(path.get("large_communities", ())),
        extended_communities=tuple(each.replace(" ", ":") for each in path.get("extended_communities", ())),
        originator_id=found.get("Originator Id", {}).get("originator", ""),
        cluster_list=tuple(found.get("Cluster Id List", {}).get("cluster_list", ())),
        unknown={
            int(name.rpartition("#")[2]): attribute["data"]
            for name, attribute in found.items()
            if name.startswith("Unknown Attribute")
        },
    )


def of_exabgp(next_hop: str, found: Json) -> Told:
    """Of the attributes ExaBGP tells its process, which are those of the message: no defaults, nothing resolved."""

    def joined(name: str) -> tuple[str, ...]:
        return tuple(":".join(map(str, each)) for each in found.get(name, ()))

    return Told(
        origin=found["origin"],
        as_path=" ".join(
            _segment(each["element"] == "as-set", each["value"]) for each in found.get("as-path", {}).values()
        ),
        next_hop=next_hop,
        med=found.get("med"),
        local_pref=found.get("local-preference"),
        atomic_aggregate=found.get("atomic-aggregate", False),
        aggregator=found.get("aggregator", "").replace(":", " "),
        communities=joined("community"),
        large_communities=joined("large-community"),
        extended_communities=tuple(
            each["string"].replace("target:", "rt:") for each in found.get("extended-community", ())
        ),
        originator_id=found.get("originator-id", ""),
        cluster_list=tuple(found.get("cluster-list", ())),
        unknown={
            int(name.split("-")[1], 16): value.removeprefix("0x").lower()
            for name, value in found.items()
            if name.startswith("attribute-")
        },
    )


def of_routed(path: Json) -> Told:
    """Of a candidate of `routedctl show route --all --json`."""
    aggregator = path.get("aggregator")
    return Told(
        origin=path["origin"],
        as_path=_sorted(path["asPath"]),
        next_hop=path["nextHop"],
        med=path.get("med"),
        local_pref=path.get("localPref"),
        atomic_aggregate=path.get("atomicAggregate", False),
        aggregator=f"{aggregator['as']} {aggregator['routerId']}" if aggregator else "",
        communities=tuple(path.get("communities", ())),
        large_communities=tuple(path.get("largeCommunities", ())),
        extended_communities=tuple(path.get("extendedCommunities", ())),
        originator_id=path.get("originatorId", ""),
        cluster_list=tuple(path.get("clusterList", ())),
        unknown={each["type"]: each["value"] for each in path.get("unknown", ())},
    )
