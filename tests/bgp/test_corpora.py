"""Other projects' data through the codec: FRR's RFC 7606 table and unit vectors, ExaBGP's messages.

Where the corpora are: `tests/corpora`. Absent, these tests are skipped;
`test_rfc7606.py` holds each clause without them.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from typing import Any

import pytest

from routed.bgp.as_path import AsPathError, format_as_path, merge_as4_path, read_as_path, summarise
from routed.bgp.attributes import as_path_text, encode_attributes
from routed.bgp.errors import Severity
from routed.bgp.update import (
    AttributePool,
    DecodeContext,
    Update,
    UpdateDecoder,
    reach_message,
    withdraw_message,
)
from routed.errors import PeerError
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import format_prefix, parse_prefix
from tests.corpora import CORPORA

pytestmark = pytest.mark.skipif(
    not CORPORA.is_dir(), reason=f"no corpora at {CORPORA}; set ROUTED_CORPORA to where they are"
)

V4 = Family.IPV4_UNICAST
V6 = Family.IPV6_UNICAST


def load(name: str) -> Any:
    path = CORPORA / name
    return json.loads(path.read_text()) if path.exists() else []


def decoder(*, external: bool, four_octet_as: bool = True) -> UpdateDecoder:
    return UpdateDecoder(DecodeContext(four_octet_as, external, frozenset((V4, V6))), pool=AttributePool())


def attribute(flags: int, code: int, value: bytes) -> bytes:
    return bytes((flags, code, len(value))) + value


def body(attributes: bytes, nlri: bytes = b"") -> bytes:
    return struct.pack(">HH", 0, len(attributes)) + attributes + nlri


# --- FRR's RFC 7606 table ----------------------------------------------------------------------------------------------

CASES = load("frr-rfc7606/cases.json")


def test_the_table_has_its_169_rows() -> None:
    assert len(CASES) == 169


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['suite']}-{case['name']}-{case['peer']}")
def test_rfc7606_row(case: dict[str, Any]) -> None:
    prefix, sentinel = parse_prefix("203.0.113.0/24")[1], parse_prefix("198.51.100.0/24")[1]
    external = case["peer"] == "ebgp"
    next_hop = bytes(map(int, (case["nexthop_override"] or "192.0.2.1").split(".")))
    block = {
        1: attribute(0x40, 1, b"\0"),
        2: attribute(0x40, 2, bytes.fromhex("02010000fde9")),
        3: attribute(0x40, 3, next_hop),
    }
    if not external:
        block[5] = attribute(0x40, 5, bytes((0, 0, 0, 100)))
    good = b"".join(value for code, value in block.items() if code != 3) + attribute(0x40, 3, bytes((192, 0, 2, 1)))
    code = case["attr_type"]
    if code is not None:
        block[code] = attribute(case["flags"], code, bytes.fromhex(case["value_hex"]))
    message = body(b"".join(block.values()), b"" if code in (14, 15) else prefix)
    subject = decoder(external=external)

    if case["outcome"] == "session-reset":
        with pytest.raises(PeerError) as caught:
            subject.decode(message)
        assert [caught.value.code, caught.value.subcode] == case["notification"]
        return
    update = subject.decode(message)
    if case["outcome"] == "withdraw":
        assert not update.reach
        assert [(family, list(prefixes)) for family, prefixes in update.withdrawn] == [(V4, [prefix])]
        assert max(finding.severity for finding in update.findings) is Severity.TREAT_AS_WITHDRAW
    else:
        assert not update.withdrawn
        assert [(reach.family, list(reach.prefixes)) for reach in update.reach] == [(V4, [prefix])]
        attrs = update.reach[0].attrs
        sent = decoder(external=False).decode(
            body(encode_attributes(attrs, four_octet_as=True, family=V4, include_local_pref=True), prefix)
        )
        passed_on = {unknown[1]: unknown for unknown in sent.reach[0].attrs.unknown}
        if case.get("must_propagate"):
            assert passed_on[code] == (0xE0, code, bytes.fromhex(case["value_hex"]))
        else:
            assert code not in passed_on
            field = {6: "atomic_aggregate", 7: "aggregator", 9: "originator_id", 10: "cluster_list"}.get(code)
            assert field is None or not getattr(attrs, field)
    # the session lives: the next announcement counts
    after = subject.decode(body(good, sentinel))
    assert [list(reach.prefixes) for reach in after.reach] == [[sentinel]]


# --- FRR's unit vectors ------------------------------------------------------------------------------------------------

VECTORS = load("frr-unit/frr_unit_vectors.json") or {"attr_parse": [], "mp_attr": [], "aspath": []}

OAD = "one administrative domain (draft-uttaro-idr-bgp-oad) is not supported: such a peer is an external one"


@pytest.mark.parametrize("vector", VECTORS["attr_parse"], ids=lambda vector: vector["name"])
def test_frr_attribute_block(vector: dict[str, Any]) -> None:
    if vector["oad"]:
        pytest.skip(OAD)
    prefix = parse_prefix("203.0.113.0/24")[1]
    message = body(bytes.fromhex(vector["attrs_hex"]), prefix if vector["has_nlri"] else b"")
    subject = decoder(external=vector["peer"] == "ebgp")
    if vector["expect"] == "ERROR":
        with pytest.raises(PeerError):
            subject.decode(message)
        return
    update = subject.decode(message)
    assert bool(update.reach) == (vector["expect"] == "PROCEED")
    assert bool(update.withdrawn) == (vector["expect"] == "WITHDRAW")


@pytest.mark.parametrize("vector", VECTORS["mp_attr"], ids=lambda vector: vector["name"])
def test_frr_mp_attribute(vector: dict[str, Any]) -> None:
    value = bytes.fromhex(vector["hex"])[: vector["declared_len"]]
    if "SHOULD_PARSE" in vector["rest"]:
        value = value.replace(b"\xff\xfe", b"\x2f\xfe")  # made-up addresses that lie in multicast space by accident
    if vector["name"] == "PREFIX-SID":
        update = decoder(external=True).decode(body(GOOD + attribute(0xC0, 40, value), b"\x08\x0a"))
        assert [unknown[1] for unknown in update.reach[0].attrs.unknown] == [40] and not update.findings
        return
    reach = "unreach" not in vector["name"]
    message = body(attribute(0x80, 14 if reach else 15, value) + (GOOD if reach else b""))
    if value[2] not in (1, 2):
        update = decoder(external=True).decode(message)
        assert not update.reach and not update.withdrawn
        assert [finding.severity for finding in update.findings] == [Severity.ATTRIBUTE_DISCARD]
    elif "SHOULD_PARSE" in vector["rest"]:
        update = decoder(external=True).decode(message)
        assert update.findings == ()
        assert bool(update.reach) == reach and bool(update.withdrawn) != reach
    elif vector["name"] == "IPv6-bug":
        # FRR refuses an MP_REACH_NLRI without prefixes; RFC 7606 5.2 finds nothing wrong with a message like that
        update = decoder(external=True).decode(message)
        assert not update.reach and update.end_of_rib is None
    else:
        with pytest.raises(PeerError) as caught:
            decoder(external=True).decode(message)
        assert caught.value.code == 3 and caught.value.subcode in (1, 9)


GOOD = (
    attribute(0x40, 1, b"\0")
    + attribute(0x40, 2, bytes.fromhex("02010000fde9"))
    + attribute(0x40, 3, bytes((192, 0, 2, 1)))
)


@pytest.mark.parametrize("vector", VECTORS["aspath"], ids=lambda vector: vector["name"])
def test_frr_as_path(vector: dict[str, Any]) -> None:
    value = bytes.fromhex(vector["hex"])
    text = re.search(r'"([^"]*)"', vector["rest"])
    if text is None or "AS_ZERO" in vector["name"]:
        with pytest.raises(AsPathError):
            read_as_path(value, four_octet_as=False, confederation_ok=True)
        return
    path = read_as_path(value, four_octet_as=False, confederation_ok=True)
    expected = text.group(1)
    if "DOTPLUS" in vector["rest"]:
        expected = expected.replace("0.", "")  # asdot+ is a way to print them, and not ours
    assert format_as_path(path) == expected
    hops = int(re.findall(r'",\s*(\d+),', vector["rest"])[0])
    assert summarise(path)[0] == hops


def test_frr_as_path_reconciliation() -> None:
    """The RFC 6793 pairs among them, with the result FRR's test file expects."""
    paths = {
        vector["name"]: read_as_path(bytes.fromhex(vector["hex"]), four_octet_as=False)
        for vector in VECTORS["aspath"]
        if vector["name"].startswith("reconcile")
    }
    if not paths:
        pytest.skip("no frr-unit corpus")
    new = paths["reconcile_start_trans4"]
    assert format_as_path(merge_as4_path(paths["reconcile_start_trans"], new)) == "1842 41591 51793 6435 59408 21665"
    assert merge_as4_path(paths["reconcile_start_trans_error"], new) == paths["reconcile_start_trans_error"]


# --- ExaBGP's messages -------------------------------------------------------------------------------------------------

MARTIANS = {
    "127.0.0.1": "192.0.2.127",
    "127.0.0.2": "192.0.2.126",
    "255.255.255.255": "192.0.2.255",
    "::1": "2001:db8::1",
}
"""Next hops of the corpus that we treat as withdraw, and what the tests put there instead."""

SKIPPED = {
    "conf-addpath.ci": "add-path is not supported",
    "conf-path-information.ci": "add-path is not supported",
    "api-attributes-path.ci": "add-path is not supported",
    "api-open.ci": "add-path is not supported",
    "extended-nexthop.ci": "IPv4 prefixes with IPv6 next hops (RFC 8950) are not supported",
    "unknown-message.ci": "not an UPDATE",
}


def exabgp_messages() -> list[Any]:
    found = []
    for path in sorted((CORPORA / "exabgp").glob("*/*.ci")):
        lines = [line for line in path.read_text().splitlines() if re.match(r"[A-Z]?\d+:(raw|json):", line)]
        for number, line in enumerate(lines):
            if ":raw:" not in line:
                continue
            after = lines[number + 1] if number + 1 < len(lines) else ""
            text = after.split(":json:", 1)[1] if ":json:" in after else ""
            # some lines hold several messages, some leave out colons
            stream = bytes.fromhex(line.split(":raw:")[1].replace(":", ""))
            while stream:
                length = int.from_bytes(stream[16:18], "big")
                assert stream[:16] == b"\xff" * 16 and length <= len(stream)
                if stream[18] == 2:
                    case = f"{path.parent.name}/{path.stem}-{number}"
                    found.append(pytest.param(path.name, stream[19:length].hex(), text, id=case))
                stream = stream[length:]
    return found


def as_exabgp(update: Update) -> dict[str, Any]:
    """An Update in the shape of ExaBGP's JSON."""
    told: dict[str, Any] = {}
    names = {V4: "ipv4 unicast", V6: "ipv6 unicast"}
    for reach in update.reach:
        attrs = reach.attrs
        attribute: dict[str, Any] = {"origin": ("igp", "egp", "incomplete")[attrs.origin]}
        if attrs.as_path:
            attribute["as-path"] = as_path_text(attrs)
        if attrs.med is not None:
            attribute["med"] = attrs.med
        if attrs.local_pref is not None:
            attribute["local-preference"] = attrs.local_pref
        if attrs.atomic_aggregate:
            attribute["atomic-aggregate"] = True
        if attrs.aggregator:
            attribute["aggregator"] = f"{attrs.aggregator[0]}:{format_address(attrs.aggregator[1])}"
        if attrs.communities:
            attribute["community"] = [list(pair) for pair in struct.iter_unpack(">HH", attrs.communities)]
        if attrs.extended_communities:
            attribute["extended-community"] = [one[0] for one in struct.iter_unpack(">Q", attrs.extended_communities)]
        if attrs.large_communities:
            attribute["large-community"] = [
                list(three) for three in struct.iter_unpack(">III", attrs.large_communities)
            ]
        if attrs.originator_id is not None:
            attribute["originator-id"] = format_address(attrs.originator_id.to_bytes(4, "big"))
        if attrs.cluster_list:
            attribute["cluster-list"] = [
                format_address(one[0].to_bytes(4, "big")) for one in struct.iter_unpack(">I", attrs.cluster_list)
            ]
        told["attribute"] = attribute
        told.setdefault("announce", {})[names[reach.family]] = {
            format_address(attrs.next_hop): [format_prefix(reach.family, prefix) for prefix in reach.prefixes]
        }
    for family, prefixes in update.withdrawn:
        told.setdefault("withdraw", {})[names[family]] = [format_prefix(family, prefix) for prefix in prefixes]
    return told


def expected_of(text: str) -> dict[str, Any]:
    for martian, instead in MARTIANS.items():
        text = text.replace(f'"{martian}":[', f'"{instead}":[')
    message = json.loads(text)["neighbor"]["message"]["update"]
    told: dict[str, Any] = {}
    if "attribute" in message:
        attribute = dict(message["attribute"])
        if "as-path" in attribute:
            assert all(part["element"] == "as-sequence" for part in attribute["as-path"].values())
            attribute["as-path"] = " ".join(str(n) for part in attribute["as-path"].values() for n in part["value"])
        if "extended-community" in attribute:
            attribute["extended-community"] = [one["value"] for one in attribute["extended-community"]]
        told["attribute"] = attribute
    if "announce" not in message:
        told.pop("attribute", None)  # attributes of no prefix: nothing the RIB could use
    for verb in ("announce", "withdraw"):
        for family, entries in message.get(verb, {}).items():
            if verb == "announce":
                entries = {hop: [entry["nlri"] for entry in prefixes] for hop, prefixes in entries.items()}
            else:
                entries = [entry["nlri"] for entry in entries]
            told.setdefault(verb, {})[family] = entries
    return told


def without_martians(octets: bytes) -> bytes:
    for martian, instead in (("7f000001", "c000027f"), ("7f000002", "c000027e"), ("ffffffff", "c00002ff")):
        octets = octets.replace(bytes.fromhex("400304" + martian), bytes.fromhex("400304" + instead))
    v6 = bytes.fromhex("00020110")
    return octets.replace(v6 + bytes(15) + b"\1", v6 + bytes.fromhex("20010db8") + bytes(11) + b"\1")


@pytest.mark.parametrize(("name", "octets", "text"), exabgp_messages())
def test_exabgp_message(name: str, octets: str, text: str) -> None:
    if name in SKIPPED:
        pytest.skip(SKIPPED[name])
    message = without_martians(bytes.fromhex(octets))
    neighbor = json.loads(text)["neighbor"] if text else {"asn": {"local": 1, "peer": 1}}
    external = neighbor["asn"]["local"] != neighbor["asn"]["peer"]
    four_octet_as = name != "conf-no-asn4.ci"
    context = DecodeContext(four_octet_as, external, frozenset((V4, V6)))
    subject = UpdateDecoder(context, pool=AttributePool())
    if b"\x60\x99" in message or b"\x70\x99" in message:
        # an unknown attribute with the flags of a well-known one
        with pytest.raises(PeerError) as caught:
            subject.decode(message)
        assert (caught.value.code, caught.value.subcode) == (3, 2)
        return
    update = subject.decode(message)
    again = subject.decode(message)
    assert as_exabgp(again) == as_exabgp(update)
    if any(finding.severity is Severity.TREAT_AS_WITHDRAW for finding in update.findings):
        pytest.fail(f"treated as withdraw: {update.findings}")
    if text and not any("not negotiate" in finding.text for finding in update.findings):
        told = as_exabgp(update)
        expected = expected_of(text)
        for unread in [
            key for key in expected.get("attribute", {}) if key.startswith(("attribute-", "bgp-prefix-sid"))
        ]:
            del expected["attribute"][unread]
        assert told == expected
    # what we would send says the same
    for reach in update.reach:
        attributes = encode_attributes(
            reach.attrs, four_octet_as=four_octet_as, family=reach.family, include_local_pref=not external
        )
        sent = reach_message(
            reach.family, attributes, reach.attrs.next_hop + reach.attrs.link_local, b"".join(reach.prefixes)
        )[19:]
        if reach.family is V4 and len(update.reach) == 1 and not update.withdrawn and not reach.attrs.unknown:
            assert sorted(sent) == sorted(message)  # the same octets; ExaBGP does not order its attributes
        decoded = UpdateDecoder(context, pool=AttributePool()).decode(sent)
        assert [list(part.prefixes) for part in decoded.reach] == [list(reach.prefixes)]
        assert decoded.reach[0].attrs.replace(unknown=()).content() == reach.attrs.replace(unknown=()).content()
    for family, prefixes in update.withdrawn:
        decoded = subject.decode(withdraw_message(family, b"".join(prefixes))[19:])
        assert [list(part[1]) for part in decoded.withdrawn] == [list(prefixes)]


def test_exabgp_decoding_golden() -> None:
    path = CORPORA / "exabgp" / "decoding" / "ipv4-unicast-2"
    if not path.exists():
        pytest.skip("no exabgp corpus")
    _, octets, text = [line for line in path.read_text().splitlines() if line]
    update = decoder(external=False).decode(bytes.fromhex(octets)[19:])
    # the message has attributes and no prefixes: nothing to announce, nothing wrong (RFC 7606 5.2)
    assert (update.reach, update.withdrawn, update.end_of_rib, update.findings) == ((), (), None, ())
    with_prefix = bytes.fromhex(octets)[19:] + b"\x08\x0a"
    told = as_exabgp(decoder(external=False).decode(with_prefix))
    announced = text.replace('"attribute": {', '"announce": {}, "attribute": {')
    assert told["attribute"] == expected_of(announced)["attribute"]


def test_exabgp_messages_are_all_there() -> None:
    counts = Counter(param.values[0] not in SKIPPED for param in exabgp_messages())
    assert counts[True] >= 300, counts
