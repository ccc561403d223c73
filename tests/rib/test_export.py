"""Export rules: what a peer is told of a path, and what the protocol keeps from it."""

from __future__ import annotations

import pytest

from routed.bgp.attributes import AttributeSet
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.rib.export import (
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
    ExportPolicy,
    NextHopMode,
    announcements,
    export_attributes,
    refusal,
    withdrawals,
)
from routed.rib.filters import RouteFilter
from routed.rib.path import Path, Source, SourceKind

V4 = Family.IPV4_UNICAST
US = parse_address("192.0.2.1")
THEM = parse_address("192.0.2.9")


def policy(kind: SourceKind, mode: NextHopMode = NextHopMode.AUTO) -> ExportPolicy:
    return ExportPolicy(
        family=V4,
        kind=kind,
        local_as=64512,
        cluster_id=0x01000001 if kind is not SourceKind.EBGP else 0,
        local_address=US,
        next_hop_mode=mode,
        four_octet_as=True,
        export_filter=RouteFilter("all", V4, export=True),
    )


def path(kind: SourceKind, **fields: object) -> Path:
    fields.setdefault("next_hop", b"" if kind is SourceKind.LOCAL else THEM)
    return Path(Source("s", kind, 9, THEM), AttributeSet(**fields), None)  # type: ignore[arg-type]


EBGP, IBGP, CLIENT, LOCAL = SourceKind.EBGP, SourceKind.IBGP, SourceKind.IBGP_CLIENT, SourceKind.LOCAL


@pytest.mark.parametrize(
    ("source", "to", "told"),
    [
        (LOCAL, EBGP, True), (LOCAL, IBGP, True), (LOCAL, CLIENT, True),
        (EBGP, EBGP, True), (EBGP, IBGP, True), (EBGP, CLIENT, True),
        (IBGP, EBGP, True), (IBGP, IBGP, False), (IBGP, CLIENT, True),
        (CLIENT, EBGP, True), (CLIENT, IBGP, True), (CLIENT, CLIENT, True),
    ],
)  # fmt: skip
def test_who_is_told(source: SourceKind, to: SourceKind, told: bool) -> None:
    """RFC 4271 9.2 and RFC 4456 6."""
    assert (refusal(path(source), policy(to)) is None) is told


@pytest.mark.parametrize(
    ("community", "to", "told"),
    [
        (NO_ADVERTISE, IBGP, False), (NO_ADVERTISE, EBGP, False),
        (NO_EXPORT, IBGP, True), (NO_EXPORT, EBGP, False),
        (NO_EXPORT_SUBCONFED, EBGP, False), (b"\x00\x01\x00\x02", EBGP, True),
    ],
)  # fmt: skip
def test_well_known_communities(community: bytes, to: SourceKind, told: bool) -> None:
    """RFC 1997."""
    assert (refusal(path(EBGP, communities=b"\x00\x01\x00\x03" + community), policy(to)) is None) is told


def test_to_an_external_peer() -> None:
    learned = path(
        CLIENT, local_pref=200, med=7, originator_id=3, cluster_list=b"\x00\x00\x00\x05",
        as_path=b"\x02\x01\x00\x00\xfd\xe8",
        extended_communities=b"\x00\x02\x00\x00\x00\x00\x00\x01" + b"\x43\x00\x00\x00\x00\x00\x00\x02",
    )  # fmt: skip
    told = export_attributes(learned, learned.attrs, policy(EBGP))
    assert told.as_path == b"\x02\x02\x00\x00\xfc\x00\x00\x00\xfd\xe8"
    assert told.next_hop == US
    assert (told.local_pref, told.med, told.originator_id, told.cluster_list) == (None, None, None, b"")
    assert told.extended_communities == b"\x00\x02\x00\x00\x00\x00\x00\x01", (
        "non-transitive ones stay in the AS (RFC 4360 6)"
    )


def test_reflected_to_an_internal_peer() -> None:
    learned = path(CLIENT, local_pref=200, med=7, cluster_list=b"\x00\x00\x00\x05")
    told = export_attributes(learned, learned.attrs, policy(IBGP))
    assert told.next_hop == THEM
    assert (told.local_pref, told.med) == (200, 7)
    assert told.originator_id == 9, "the router id of who it was learned from (RFC 4456 8)"
    assert told.cluster_list == b"\x01\x00\x00\x01\x00\x00\x00\x05"
    again = path(CLIENT, originator_id=4)
    assert export_attributes(again, again.attrs, policy(IBGP)).originator_id == 4


def test_external_routes_to_an_internal_peer_are_not_reflected() -> None:
    learned = path(EBGP)
    told = export_attributes(learned, learned.attrs, policy(CLIENT))
    assert (told.local_pref, told.originator_id, told.cluster_list, told.next_hop) == (100, None, b"", THEM)


@pytest.mark.parametrize(
    ("source", "to", "mode", "expected"),
    [
        (LOCAL, IBGP, NextHopMode.KEEP, US), (EBGP, IBGP, NextHopMode.SELF, US), (EBGP, EBGP, NextHopMode.KEEP, THEM),
        (EBGP, EBGP, NextHopMode.AUTO, US), (IBGP, CLIENT, NextHopMode.AUTO, THEM), (IBGP, CLIENT, NextHopMode.SELF, US),
    ],
)  # fmt: skip
def test_next_hop_modes(source: SourceKind, to: SourceKind, mode: NextHopMode, expected: bytes) -> None:
    learned = path(source)
    assert export_attributes(learned, learned.attrs, policy(to, mode)).next_hop == expected


@pytest.mark.parametrize("count", [1, 10, 815, 816, 5000])
def test_messages_are_full_but_never_too_long(count: int) -> None:
    prefixes = [b"\x20" + index.to_bytes(4, "big") for index in range(count)]
    for messages in (
        withdrawals(V4, [prefixes]),
        announcements(V4, b"\x40\x01\x01\x00", [prefixes[: count // 2], prefixes[count // 2 :]]),
    ):
        assert all(len(message) <= 4096 for message in messages)
        assert len(messages) <= count * 5 // 4050 + 1
        assert sum(len(message) for message in messages) == count * 5 + len(messages) * (
            len(messages[0]) - _nlri(messages[0])
        )


def _nlri(message: bytes) -> int:
    withdrawn = int.from_bytes(message[19:21], "big")
    attributes = int.from_bytes(message[21 + withdrawn : 23 + withdrawn], "big")
    return withdrawn + len(message) - 23 - withdrawn - attributes
