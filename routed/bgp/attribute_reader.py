"""From the wire to attribute values: which attributes we know, what is wrong with them, and what that asks for.

`ATTRIBUTES` is the one table of what we know: name, what to do when the flags or the value are wrong, and the reader of
the value. Whatever is not in it is unknown: refused, kept or dropped by its flags alone (RFC 4271 5, 6.3).

Reading a block never stops at the first finding (RFC 7606 3 h); only what leaves no choice raises `PeerError`. The two
MP attributes are not read here, they carry prefixes: see `update`, which also decides what the findings of a whole
message come to.

RFC 4271 5, 6.3; RFC 7606 3, 4, 7; RFC 6793 4.2.3, 6; RFC 7607; RFC 8092 6; RFC 8669 6; RFC 9012 13; RFC 9234 5.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from routed.bgp.as_path import AsPathError, merge_as4_path, read_as_path
from routed.bgp.attributes import ATTRIBUTE_FLAGS, AttributeFields, Unknown
from routed.bgp.errors import Finding, Severity
from routed.bgp.iana import AS_TRANS, AttributeCode, AttributeFlag, NotificationCode, Origin, UpdateSubcode
from routed.errors import PeerError

_OPTIONAL = int(AttributeFlag.OPTIONAL)
_TRANSITIVE = int(AttributeFlag.TRANSITIVE)
_PARTIAL = int(AttributeFlag.PARTIAL)
_EXTENDED = int(AttributeFlag.EXTENDED_LENGTH)
_CARRIED_FLAGS = _OPTIONAL | _TRANSITIVE | _PARTIAL

_DISCARD = Severity.ATTRIBUTE_DISCARD
_WITHDRAW = Severity.TREAT_AS_WITHDRAW


class _Reading:
    """The attribute values of one block while they are read."""

    __slots__ = (
        "as4_aggregator",
        "as4_path",
        "external",
        "fields",
        "findings",
        "four_octet_as",
        "partial",
        "repeated",
        "unknown",
    )

    def __init__(self, *, four_octet_as: bool, external: bool) -> None:
        self.four_octet_as = four_octet_as
        self.external = external
        self.fields: AttributeFields = {}
        self.findings: list[Finding] = []
        self.unknown: list[Unknown] = []
        self.partial: list[int] = []
        self.repeated: set[int] = set()
        self.as4_path = b""
        self.as4_aggregator: tuple[int, bytes] | None = None

    def found(self, severity: Severity, attribute: int, text: str) -> None:
        self.findings.append(Finding(severity, attribute, text))

    def found_repeated(self, code: int) -> None:
        """One finding for each code, however often it comes back."""
        if code not in self.repeated:
            self.repeated.add(code)
            text = f"{_name(code)} appears more than once; the first one counts (RFC 7606 section 3 (g))"
            self.found(_DISCARD, code, text)


class Use(enum.Enum):
    """What happens to a well-formed attribute."""

    READ = enum.auto()
    """Into its own field of the AttributeSet."""
    CARRY = enum.auto()
    """Only checked, then passed on like an unknown optional transitive one."""
    DROP = enum.auto()
    """A non-transitive one we have no use for: ignored and not passed on (RFC 4271 5)."""


Reader = Callable[[_Reading, bytes], str]
"""Takes the value in and returns "", or a sentence about what is wrong with it that cites the RFC."""


class AttributeSpec:
    """One attribute we know."""

    __slots__ = ("code", "flags", "internal_only", "malformed", "name", "read", "special", "use", "wrong_flags")

    def __init__(
        self,
        code: AttributeCode,
        malformed: Severity,
        read: Reader,
        use: Use = Use.READ,
        *,
        wrong_flags: Severity = _WITHDRAW,
        internal_only: str = "",
    ) -> None:
        self.code = int(code)
        self.name = code.name
        self.flags = ATTRIBUTE_FLAGS[code]
        """The Optional and Transitive bits it is defined with."""
        self.malformed = malformed
        """What a wrong value asks for."""
        self.read = read
        self.use = use
        self.wrong_flags = wrong_flags
        """What wrong flags ask for: RFC 7606 3 (c), unless the attribute's own RFC says otherwise."""
        self.internal_only = internal_only
        """The RFC section that has it discarded when an external peer sends it, or empty."""
        self.special = bool(internal_only) or use is not Use.READ
        """Whether more than reading its value may be to be done."""


def _length_error(name: str, value: bytes, expected: str, citation: str) -> str:
    return f"{name} has {len(value)} octets where {expected} expected ({citation})"


def _read_origin(reading: _Reading, value: bytes) -> str:
    if len(value) != 1:
        return _length_error("ORIGIN", value, "one is", "RFC 7606 section 7.1")
    if value[0] > Origin.INCOMPLETE:
        return f"ORIGIN has the undefined value {value[0]} (RFC 7606 section 7.1)"
    reading.fields["origin"] = value[0]
    return ""


def _read_as_path(reading: _Reading, value: bytes) -> str:
    try:
        reading.fields["as_path"] = read_as_path(value, four_octet_as=reading.four_octet_as)
    except AsPathError as error:
        return str(error)
    return ""


def _read_next_hop(reading: _Reading, value: bytes) -> str:
    if len(value) != 4:
        return _length_error("NEXT_HOP", value, "four are", "RFC 7606 section 7.3")
    if value[0] in (0, 127) or value[0] >= 224:
        return "NEXT_HOP is not an address of a host: 0/8, 127/8, multicast or class E (RFC 4271 section 6.3)"
    reading.fields["next_hop"] = value
    return ""


def _read_med(reading: _Reading, value: bytes) -> str:
    if len(value) != 4:
        return _length_error("MULTI_EXIT_DISC", value, "four are", "RFC 7606 section 7.4")
    reading.fields["med"] = int.from_bytes(value, "big")
    return ""


def _read_local_pref(reading: _Reading, value: bytes) -> str:
    if len(value) != 4:
        return _length_error("LOCAL_PREF", value, "four are", "RFC 7606 section 7.5")
    reading.fields["local_pref"] = int.from_bytes(value, "big")
    return ""


def _read_atomic_aggregate(reading: _Reading, value: bytes) -> str:
    if value:
        return _length_error("ATOMIC_AGGREGATE", value, "none is", "RFC 7606 section 7.6")
    reading.fields["atomic_aggregate"] = True
    return ""


def _read_aggregator(reading: _Reading, value: bytes) -> str:
    width = 4 if reading.four_octet_as else 2
    if len(value) != width + 4:
        return _length_error("AGGREGATOR", value, f"{width + 4} are", "RFC 7606 section 7.7")
    asn = int.from_bytes(value[:width], "big")
    if not asn:
        return "AGGREGATOR holds AS 0, which nobody may use (RFC 7607 section 2)"
    reading.fields["aggregator"] = (asn, value[width:])
    return ""


def _read_communities(reading: _Reading, value: bytes) -> str:
    if not value or len(value) % 4:
        return _length_error("COMMUNITIES", value, "a multiple of four is", "RFC 7606 section 7.8")
    reading.fields["communities"] = value
    return ""


def _read_originator_id(reading: _Reading, value: bytes) -> str:
    if len(value) != 4:
        return _length_error("ORIGINATOR_ID", value, "four are", "RFC 7606 section 7.9")
    reading.fields["originator_id"] = int.from_bytes(value, "big")
    return ""


def _read_cluster_list(reading: _Reading, value: bytes) -> str:
    if not value or len(value) % 4:
        return _length_error("CLUSTER_LIST", value, "a multiple of four is", "RFC 7606 section 7.10")
    reading.fields["cluster_list"] = value
    return ""


def _read_extended_communities(reading: _Reading, value: bytes) -> str:
    if not value or len(value) % 8:
        return _length_error("EXTENDED_COMMUNITIES", value, "a multiple of eight is", "RFC 7606 section 7.14")
    reading.fields["extended_communities"] = value
    return ""


def _read_large_communities(reading: _Reading, value: bytes) -> str:
    if not value or len(value) % 12:
        return _length_error("LARGE_COMMUNITY", value, "a multiple of twelve is", "RFC 8092 section 6")
    # repetitions are silently removed on receipt (RFC 8092 5)
    reading.fields["large_communities"] = b"".join(
        dict.fromkeys([value[at : at + 12] for at in range(0, len(value), 12)])
    )
    return ""


def _read_as4_path(reading: _Reading, value: bytes) -> str:
    try:
        path = read_as_path(value, four_octet_as=True, confederation_ok=True)
    except AsPathError:
        path = b""
    if path:
        if reading.four_octet_as:
            text = "AS4_PATH from a peer that speaks 4-octet AS numbers is ignored (RFC 6793 section 6)"
            reading.found(_DISCARD, AttributeCode.AS4_PATH, text)
        else:
            reading.as4_path = path
        return ""
    if reading.four_octet_as:
        # RFC 6793 speaks of a damaged one from a 2-octet peer only. One that must not be there and is damaged on top
        # casts doubt on the whole list; it takes the stronger course, as FRR does.
        return "AS4_PATH is damaged, and this peer must not send it (RFC 6793 section 6)"
    reading.found(_DISCARD, AttributeCode.AS4_PATH, "AS4_PATH is damaged and ignored (RFC 6793 section 6)")
    return ""


def _read_as4_aggregator(reading: _Reading, value: bytes) -> str:
    if len(value) != 8:
        return _length_error("AS4_AGGREGATOR", value, "eight are", "RFC 6793 section 6")
    asn = int.from_bytes(value[:4], "big")
    if not asn:
        return "AS4_AGGREGATOR holds AS 0, which nobody may use (RFC 7607 section 2)"
    if reading.four_octet_as:
        return "AS4_AGGREGATOR from a peer that speaks 4-octet AS numbers is ignored (RFC 6793 section 6)"
    reading.as4_aggregator = (asn, value[4:])
    return ""


def _check_nothing(_reading: _Reading, _value: bytes) -> str:
    return ""


def _check_pmsi_tunnel(_reading: _Reading, value: bytes) -> str:
    """Flags 1, tunnel type 1, label 3, tunnel identifier (RFC 6514 5)."""
    if len(value) < 5:
        return _length_error("PMSI_TUNNEL", value, "at least five are", "RFC 6514 section 5")
    if value[1] > 7:
        return f"PMSI_TUNNEL has the undefined tunnel type {value[1]} (RFC 6514 section 5)"
    if value[1] == 6 and len(value) not in (9, 21):
        return "PMSI_TUNNEL for ingress replication does not hold one address (RFC 6514 section 5)"
    return ""


def _check_tunnel_encapsulation(_reading: _Reading, value: bytes) -> str:
    """TLVs of type 2, length 2; in them sub-TLVs of type 1 and length 1, or 2 from type 128 on (RFC 9012 2)."""
    if not value:
        return "TUNNEL_ENCAPSULATION is empty (RFC 9012 section 13)"
    for _, body in _tlvs(value, 2, 2):
        if body is None:
            return "TUNNEL_ENCAPSULATION has a TLV that runs past its end (RFC 9012 section 13)"
        at = 0
        while at < len(body):
            header = 2 if body[at] < 128 else 3
            at += header + int.from_bytes(body[at + 1 : at + header], "big")
        if at != len(body):
            return "TUNNEL_ENCAPSULATION has a sub-TLV that runs past its TLV (RFC 9012 section 13)"
    return ""


def _check_ipv6_extended_communities(_reading: _Reading, value: bytes) -> str:
    if not value or len(value) % 20:
        return _length_error("IPV6_EXTENDED_COMMUNITIES", value, "a multiple of twenty is", "RFC 7606 section 7.15")
    return ""


def _check_only_to_customer(_reading: _Reading, value: bytes) -> str:
    if len(value) != 4:
        return _length_error("ONLY_TO_CUSTOMER", value, "four are", "RFC 9234 section 5")
    if value == b"\x00\x00\x00\x00":
        return "ONLY_TO_CUSTOMER holds AS 0, which nobody may use (RFC 7607 section 2)"
    return ""


def _check_next_hop_dependent(_reading: _Reading, value: bytes) -> str:
    """AFI 2, SAFI 1, next hop length 1, next hop, TLVs of code 2, length 2 (draft-ietf-idr-entropy-label)."""
    citation = "(draft-ietf-idr-entropy-label section 2)"
    if len(value) < 4 or value[:3] not in (b"\x00\x01\x01", b"\x00\x02\x01"):
        return f"NEXT_HOP_DEPENDENT_CHARACTERISTICS names no family we route {citation}"
    start = 4 + value[3]
    if start > len(value) or any(body is None for _, body in _tlvs(value[start:], 2, 2)):
        return f"NEXT_HOP_DEPENDENT_CHARACTERISTICS has a field that runs past its end {citation}"
    return ""


def _check_prefix_sid(_reading: _Reading, value: bytes) -> str:
    """TLVs of type 1, length 2. Label-Index has 7 octets, Originator SRGB 2 + 6 for each range (RFC 8669 3)."""
    if not value:
        return "PREFIX_SID is empty (RFC 8669 section 6)"
    for kind, body in _tlvs(value, 1, 2):
        if body is None:
            return "PREFIX_SID has a TLV that runs past its end (RFC 8669 section 6)"
        if kind == 1 and len(body) != 7:
            return "PREFIX_SID has a Label-Index of a wrong length (RFC 8669 section 6)"
        if kind == 3 and (len(body) < 8 or (len(body) - 2) % 6):
            return "PREFIX_SID has an Originator SRGB of a wrong length (RFC 8669 section 6)"
    return ""


def _tlvs(value: bytes, type_octets: int, length_octets: int) -> list[tuple[int, bytes | None]]:
    """(type, body) of TLVs end to end; the body is None in the last entry where one is cut short."""
    found: list[tuple[int, bytes | None]] = []
    header = type_octets + length_octets
    at = 0
    while at < len(value):
        kind = int.from_bytes(value[at : at + type_octets], "big")
        body_at = at + header
        at = body_at + int.from_bytes(value[at + type_octets : body_at], "big")
        if body_at > len(value) or at > len(value):
            found.append((kind, None))
            break
        found.append((kind, value[body_at:at]))
    return found


ATTRIBUTES: dict[int, AttributeSpec] = {
    spec.code: spec
    for spec in (
        AttributeSpec(AttributeCode.ORIGIN, _WITHDRAW, _read_origin),
        AttributeSpec(AttributeCode.AS_PATH, _WITHDRAW, _read_as_path),
        AttributeSpec(AttributeCode.NEXT_HOP, _WITHDRAW, _read_next_hop),
        AttributeSpec(AttributeCode.MULTI_EXIT_DISC, _WITHDRAW, _read_med),
        AttributeSpec(AttributeCode.LOCAL_PREF, _WITHDRAW, _read_local_pref, internal_only="7606 section 7.5"),
        AttributeSpec(AttributeCode.ATOMIC_AGGREGATE, _DISCARD, _read_atomic_aggregate),
        AttributeSpec(AttributeCode.AGGREGATOR, _DISCARD, _read_aggregator),
        AttributeSpec(AttributeCode.COMMUNITIES, _WITHDRAW, _read_communities),
        AttributeSpec(AttributeCode.ORIGINATOR_ID, _WITHDRAW, _read_originator_id, internal_only="7606 section 7.9"),
        AttributeSpec(AttributeCode.CLUSTER_LIST, _WITHDRAW, _read_cluster_list, internal_only="7606 section 7.10"),
        AttributeSpec(AttributeCode.EXTENDED_COMMUNITIES, _WITHDRAW, _read_extended_communities),
        AttributeSpec(AttributeCode.AS4_PATH, _WITHDRAW, _read_as4_path),
        AttributeSpec(AttributeCode.AS4_AGGREGATOR, _DISCARD, _read_as4_aggregator),
        AttributeSpec(AttributeCode.PMSI_TUNNEL, _WITHDRAW, _check_pmsi_tunnel, Use.CARRY),
        AttributeSpec(AttributeCode.TUNNEL_ENCAPSULATION, _WITHDRAW, _check_tunnel_encapsulation, Use.CARRY),
        AttributeSpec(AttributeCode.IPV6_EXTENDED_COMMUNITIES, _WITHDRAW, _check_ipv6_extended_communities, Use.CARRY),
        AttributeSpec(AttributeCode.AIGP, _DISCARD, _check_nothing, Use.DROP, wrong_flags=_DISCARD),
        AttributeSpec(AttributeCode.BGP_LS, _DISCARD, _check_nothing, Use.DROP, wrong_flags=_DISCARD),
        AttributeSpec(AttributeCode.LARGE_COMMUNITY, _WITHDRAW, _read_large_communities),
        AttributeSpec(AttributeCode.ONLY_TO_CUSTOMER, _WITHDRAW, _check_only_to_customer, Use.CARRY),
        AttributeSpec(AttributeCode.NEXT_HOP_DEPENDENT_CHARACTERISTICS, _DISCARD, _check_next_hop_dependent, Use.CARRY),
        AttributeSpec(AttributeCode.PREFIX_SID, _DISCARD, _check_prefix_sid, Use.CARRY, wrong_flags=_DISCARD),
    )
}
"""Everything known but the two MP attributes, by type code."""


def _wrong_flags(name: str, flags: int, expected: int) -> str:
    """ "" or a sentence about flags that conflict with those an attribute is defined with (RFC 7606 3 c)."""
    if (flags ^ expected) & (_OPTIONAL | _TRANSITIVE):
        return f"{name} has a wrong Optional or Transitive flag (RFC 7606 section 3 (c))"
    if flags & _PARTIAL and not expected & _OPTIONAL:
        # RFC 7606 names two bits only; a well-known attribute some router did not recognise is as doubtful (as in FRR)
        return f"{name} is well-known and has the Partial flag (RFC 4271 section 4.3)"
    return ""


class AttributeBlock:
    """A block of attributes without MP_*, read."""

    __slots__ = ("codes", "fields", "findings")

    def __init__(self, fields: AttributeFields, codes: set[int], findings: tuple[Finding, ...]) -> None:
        self.fields = fields
        """The well-formed ones; mandatory ones may be missing."""
        self.codes = codes
        """Type codes that were there, well-formed or not."""
        self.findings = findings


def read_attributes(block: bytes, *, four_octet_as: bool, external: bool) -> AttributeBlock:
    """Read a block of attributes that holds no MP_REACH_NLRI or MP_UNREACH_NLRI.

    Raises PeerError 3/2 for an unknown well-known attribute, with that attribute as data (RFC 4271 6.3).
    """
    reading = _Reading(four_octet_as=four_octet_as, external=external)
    codes: set[int] = set()
    at = 0
    end = len(block)
    while at < end:
        flags = block[at]
        value_at = at + (4 if flags & _EXTENDED else 3)
        if value_at > end:
            text = f"The attribute list ends in {end - at} octets that hold no attribute (RFC 7606 section 4)"
            reading.found(_WITHDRAW, 0, text)
            break
        code = block[at + 1]
        length = block[at + 2]
        if flags & _EXTENDED:
            length = length << 8 | block[at + 3]
        stop = value_at + length
        spec = ATTRIBUTES.get(code)
        if spec is None and not flags & _OPTIONAL:
            raise PeerError(
                NotificationCode.UPDATE_MESSAGE_ERROR,
                UpdateSubcode.UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE,
                block[at:stop],
                f"Attribute {code} is marked well-known, and we do not know it (RFC 4271 section 6.3)",
            )
        if stop > end:
            text = "An attribute runs past the end of the attribute list (RFC 7606 section 4)"
            reading.found(_WITHDRAW, 0, text)
            break
        if code in codes:
            reading.found_repeated(code)
        else:
            codes.add(code)
            value = block[value_at:stop]
            if spec is not None:
                if flags & _CARRIED_FLAGS == spec.flags and not spec.special:
                    problem = spec.read(reading, value)
                    if problem:
                        reading.found(spec.malformed, code, problem)
                else:
                    _read_special(reading, code, spec, flags, value)
            elif flags & _TRANSITIVE:
                reading.unknown.append((flags & _CARRIED_FLAGS, code, value))
        at = stop
    if not four_octet_as:
        _merge_as4(reading)
    if reading.partial:
        reading.fields["partial"] = tuple(sorted(reading.partial))
    if reading.unknown:
        reading.fields["unknown"] = tuple(sorted(reading.unknown, key=lambda unknown: unknown[1]))
    return AttributeBlock(reading.fields, codes, tuple(reading.findings))


def _read_special(reading: _Reading, code: int, spec: AttributeSpec, flags: int, value: bytes) -> None:
    problem = "" if flags & _CARRIED_FLAGS == spec.flags else _wrong_flags(spec.name, flags, spec.flags)
    if problem:
        reading.found(spec.wrong_flags, code, problem)
    elif spec.internal_only and reading.external:
        reading.found(_DISCARD, code, f"{spec.name} from an external peer is ignored (RFC {spec.internal_only})")
    else:
        problem = spec.read(reading, value)
        if problem:
            reading.found(spec.malformed, code, problem)
        elif spec.use is Use.CARRY:
            reading.unknown.append((flags & _CARRIED_FLAGS, code, value))
        elif flags & _PARTIAL and spec.flags & _TRANSITIVE:
            reading.partial.append(code)


def _merge_as4(reading: _Reading) -> None:
    """Put AS4_PATH and AS4_AGGREGATOR where they belong (RFC 6793 4.2.3)."""
    fields = reading.fields
    aggregator = fields.get("aggregator")
    if aggregator is not None and reading.as4_aggregator is not None:
        if aggregator[0] != AS_TRANS:
            # the last aggregator spoke two octets and left AS4_* of the routes it aggregated behind
            return
        fields["aggregator"] = reading.as4_aggregator
    if reading.as4_path and "as_path" in fields:
        fields["as_path"] = merge_as4_path(fields["as_path"], reading.as4_path)


def _name(code: int) -> str:
    spec = ATTRIBUTES.get(code)
    return spec.name if spec is not None else f"Attribute {code}"
