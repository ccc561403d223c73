"""The attributes of a path as columns and as facts. Reads what `bgp.attributes.describe` makes of them."""

from __future__ import annotations

from routed.cli.command import Row

#: The columns of `attributes_line`.
ATTRIBUTES = ("Next hop", "MED", "Pref", "AS path", "Origin", "Communities")


def attributes_line(row: Row) -> tuple[object, ...]:
    """Cells for `ATTRIBUTES`; large and extended communities stand behind the standard ones."""
    communities = [*_list(row, "communities"), *_list(row, "largeCommunities"), *_list(row, "extendedCommunities")]
    return (
        row.get("nextHop"),
        row.get("med"),
        row.get("localPref"),
        row.get("asPath"),
        row.get("origin"),
        " ".join(communities),
    )


def attribute_facts(row: Row) -> list[tuple[str, object]]:
    """Every attribute that is there, the next hop first. A row without AS path holds no attributes at all."""
    aggregator = row.get("aggregator")
    return [
        ("next hop", " ".join(str(row[name]) for name in ("nextHop", "linkLocalNextHop") if row.get(name))),
        ("AS path", (row["asPath"] or "empty") if "asPath" in row else None),
        ("origin", row.get("origin")),
        ("local pref", row.get("localPref")),
        ("MED", row.get("med")),
        ("communities", " ".join(_list(row, "communities"))),
        ("large communities", " ".join(_list(row, "largeCommunities"))),
        ("ext. communities", " ".join(_list(row, "extendedCommunities"))),
        ("originator id", row.get("originatorId")),
        ("cluster list", " ".join(_list(row, "clusterList"))),
        ("unknown", ", ".join(f"type {one.get('type')}: {one.get('value')}" for one in row.get("unknown") or [])),
        ("atomic aggregate", "yes" if row.get("atomicAggregate") else None),
        ("aggregator", None if aggregator is None else f"AS {aggregator.get('as')}, {aggregator.get('routerId')}"),
    ]


def _list(row: Row, name: str) -> list[str]:
    return [str(value) for value in row.get(name) or []]
