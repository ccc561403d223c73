"""UPDATE messages: from octets to what the RIB acts on, and back.

The one place that judges a whole UPDATE (RFC 7606 3): the carriers of prefixes are found and split first, so that
treat-as-withdraw knows what to withdraw; then the attributes are read; the strongest finding decides. What leaves here
has that decision applied: announcements of a message to be treated as withdraw are withdrawals already. `PeerError` is
raised for a session reset and nothing else; whatever else the octets hold, decoding returns.

Cost: a block of attributes is read once a session and found by its octets from then on. With MP_REACH_NLRI or
MP_UNREACH_NLRI in it (RFC 4760), in whatever position, the rest of the block is what is looked up. The cache is bounded
by octets, so a peer that never repeats itself costs time, not memory.

Not here: framing and the message header, loop and first-AS checks, what a route is worth.

RFC 4271 4.3, 6.3; RFC 4760 3, 4, 7; RFC 2545 3; RFC 4724 2; RFC 7606.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Sequence

from routed.bgp.attribute_reader import AttributeBlock, read_attributes
from routed.bgp.attributes import ATTRIBUTE_FLAGS, AttributeSet
from routed.bgp.errors import Finding, Severity
from routed.bgp.iana import (
    HEADER_LENGTH,
    MARKER,
    MAX_MESSAGE,
    AttributeCode,
    AttributeFlag,
    MessageType,
    NotificationCode,
    UpdateSubcode,
)
from routed.bgp.nlri import NlriError, split_nlri, split_uniform, without_unroutable
from routed.errors import PeerError
from routed.net.addresses import is_link_local
from routed.net.families import Family
from routed.values import dataclass

Prefixes = Sequence[bytes]
"""Canonical wire prefixes, in message order, duplicates allowed."""


class Reach:
    """Prefixes announced with one attribute set."""

    __slots__ = ("attrs", "family", "prefixes")

    def __init__(self, family: Family, attrs: AttributeSet, prefixes: Prefixes) -> None:
        self.family = family
        self.attrs = attrs
        self.prefixes = prefixes


class Update:
    """One decoded UPDATE, treat-as-withdraw applied. Withdrawals come before announcements (RFC 4271 4.3)."""

    __slots__ = ("end_of_rib", "findings", "reach", "withdrawn")

    def __init__(
        self,
        reach: tuple[Reach, ...] = (),
        withdrawn: tuple[tuple[Family, Prefixes], ...] = (),
        end_of_rib: Family | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        self.reach = reach
        self.withdrawn = withdrawn
        self.end_of_rib = end_of_rib
        """The family whose initial announcement is complete (RFC 4724 2)."""
        self.findings = findings


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """What a session agreed on, as far as it changes how UPDATEs are read."""

    four_octet_as: bool
    """RFC 6793, both ways."""
    external: bool
    families: frozenset[Family]
    """Those both sides announced; others are ignored, with a finding."""


class AttributePool:
    """One `AttributeSet` for each content, for all sessions together. A set lives as long as somebody else holds it."""

    __slots__ = ("_sets",)

    def __init__(self) -> None:
        self._sets: weakref.WeakValueDictionary[tuple[object, ...], AttributeSet] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._sets)

    def intern(self, attrs: AttributeSet) -> AttributeSet:
        """The set of this content: the one we have, else `attrs` itself from now on."""
        return self._sets.setdefault(attrs.content(), attrs)


_IPV4 = Family.IPV4_UNICAST
_IPV6 = Family.IPV6_UNICAST
_MP_REACH = int(AttributeCode.MP_REACH_NLRI)
_MP_UNREACH = int(AttributeCode.MP_UNREACH_NLRI)
_NEXT_HOP = int(AttributeCode.NEXT_HOP)
_EXTENDED = int(AttributeFlag.EXTENDED_LENGTH)
_TYPE_FLAGS = int(AttributeFlag.OPTIONAL | AttributeFlag.TRANSITIVE)
_MP_FLAGS = int(AttributeFlag.OPTIONAL | AttributeFlag.EXTENDED_LENGTH)
_WITHDRAW = Severity.TREAT_AS_WITHDRAW

_MP_NEXT_HOP_LENGTHS = {_IPV4: (4,), _IPV6: (16, 32)}
"""RFC 4760 3 and RFC 2545 3; RFC 8950's others need a capability we do not announce."""

_MAX_CACHED_OCTETS = 64 << 20
_ENTRY_OCTETS = 1024
"""What an entry costs beside its key, roughly; with it the bound above is one of about 60,000 blocks a session."""

_FAMILY_IGNORED = {
    code: Finding(
        Severity.ATTRIBUTE_DISCARD,
        code,
        f"{what} of a family this session did not negotiate is ignored (RFC 4760 section 7)",
    )
    for code, what in (
        (0, "A field for IPv4 prefixes"),
        (_MP_REACH, "MP_REACH_NLRI"),
        (_MP_UNREACH, "MP_UNREACH_NLRI"),
    )
}

_UNROUTABLE_IGNORED = {
    code: Finding(
        Severity.ATTRIBUTE_DISCARD, code, "A loopback, multicast or link-local prefix is ignored (RFC 4271 section 6.3)"
    )
    for code in (0, _MP_REACH)
}

_MP_NEXT_HOP_UNUSABLE = Finding(
    _WITHDRAW,
    _MP_REACH,
    "MP_REACH_NLRI has an unspecified, loopback or multicast next hop (RFC 4271 section 6.3)",
)

_MISSING = {
    int(code): Finding(_WITHDRAW, code, f"{code.name} is missing (RFC 7606 section 3 (d))")
    for code in (AttributeCode.ORIGIN, AttributeCode.AS_PATH, AttributeCode.NEXT_HOP)
}
_MANDATORY = _MISSING.keys()

_RawMp = tuple[bytes, bytes]
"""(the whole attribute, its value)"""


@dataclass(frozen=True, slots=True)
class _MpReach:
    """An MP_REACH_NLRI of a family we route."""

    family: Family
    next_hop: bytes
    """4, 16 or 32 octets, as received."""
    prefixes: Prefixes


class _Block:
    """A block of attributes without MP_*, read once, and the attribute sets made of it."""

    __slots__ = ("by_next_hop", "findings", "missing", "plain", "source")

    def __init__(self, read: AttributeBlock, source: AttributeSet, *, ipv4: bool) -> None:
        self.source = source
        """With the NEXT_HOP of the block, if any."""
        self.findings = read.findings
        self.missing = () if read.codes >= _MANDATORY else tuple(_MISSING[code] for code in _MANDATORY - read.codes)
        self.plain = source if ipv4 and not self.findings and not self.missing else None
        """For prefixes of the NLRI field: set where there is nothing to find."""
        self.by_next_hop: dict[bytes, AttributeSet] = {}
        """For those of MP_REACH_NLRI: by its next hop as received."""


class UpdateDecoder:
    """Decodes the UPDATEs of one session."""

    def __init__(self, context: DecodeContext, *, pool: AttributePool) -> None:
        self._context = context
        self._pool = pool
        self._ipv4 = _IPV4 in context.families
        self._families = {struct.pack(">HB", family.afi, family.safi): family for family in context.families}
        self._blocks: dict[bytes, _Block] = {}
        self._cached_octets = 0

    def decode(self, body: bytes) -> Update:
        """Decode an UPDATE without its 19-octet header.

        Raises PeerError where RFC 7606 leaves only the session reset.
        """
        if body[:2] == b"\x00\x00" and len(body) > 4:
            # the hot path: nothing withdrawn, faultless attributes without MP_*, prefixes of one length
            nlri_at = 4 + (body[2] << 8 | body[3])
            if nlri_at < len(body):
                raw = body[4:nlri_at]
                block = self._blocks.get(raw)
                if block is None and _MP_REACH not in raw and _MP_UNREACH not in raw:
                    block = self._read_block(raw)
                if block is not None and block.plain is not None:
                    prefixes = split_uniform(_IPV4, body[nlri_at:])
                    if prefixes is not None:
                        return Update((Reach(_IPV4, block.plain, prefixes),))
        return self._decode_any(body)

    def _decode_any(self, body: bytes) -> Update:
        withdrawn_field, raw, nlri = _split_body(body)
        findings: list[Finding] = []
        withdrawn: list[tuple[Family, Prefixes]] = []
        # prefixes first: without them treat-as-withdraw could not be carried out (RFC 7606 3 j)
        rest, mp_reach, mp_unreach = self._excise(raw)
        if withdrawn_field:
            gone, _ = _split_field(_IPV4, withdrawn_field, 0, "Withdrawn Routes field")
            if self._ipv4:
                withdrawn.append((_IPV4, gone))
            else:
                findings.append(_FAMILY_IGNORED[0])
        come: Prefixes | None = None
        if nlri:
            come, suspect = _split_field(_IPV4, nlri, 0, "NLRI field")
            if not self._ipv4:
                findings.append(_FAMILY_IGNORED[0])
                come = None
            elif suspect:
                come = _routable(_IPV4, come, 0, findings)
        mp_come: _MpReach | None = None
        if mp_reach is not None:
            mp_come = self._read_mp_reach(mp_reach, findings)
            if mp_come is None:
                findings.append(_FAMILY_IGNORED[_MP_REACH])
        if mp_unreach is not None:
            mp_gone = self._read_mp_unreach(mp_unreach)
            if mp_gone is None:
                findings.append(_FAMILY_IGNORED[_MP_UNREACH])
            elif mp_gone[1]:
                withdrawn.append(mp_gone)
            elif not rest and mp_reach is None and not withdrawn_field and not nlri:
                return Update(end_of_rib=mp_gone[0])
        elif not raw and not withdrawn_field and not nlri:
            return Update(end_of_rib=_IPV4) if self._ipv4 else Update(findings=(_FAMILY_IGNORED[0],))
        announces = bool(nlri) or mp_reach is not None
        if not rest and not announces:
            return Update((), tuple(withdrawn), None, tuple(findings))
        block = self._blocks.get(rest)
        if block is None:
            block = self._read_block(rest)
        # NEXT_HOP is about the NLRI field; beside MP_REACH_NLRI alone it is ignored (RFC 4760 3)
        next_hop_counts = bool(nlri) or mp_reach is None
        findings.extend(f for f in block.findings if next_hop_counts or f.attribute != _NEXT_HOP)
        reach = self._announced(block, come, mp_come, findings)
        if any(finding.severity >= _WITHDRAW for finding in findings):
            if not announces:
                raise _update_error(
                    UpdateSubcode.MALFORMED_ATTRIBUTE_LIST,
                    "UPDATE has a damaged attribute and no reachable prefix, so prefixes may be lost in it"
                    " (RFC 7606 section 5.2)",
                )
            withdrawn.extend((entry.family, entry.prefixes) for entry in reach)
            reach = []
        return Update(
            tuple(entry for entry in reach if entry.prefixes),
            tuple(entry for entry in withdrawn if entry[1]),
            None,
            tuple(findings),
        )

    def _announced(
        self, block: _Block, come: Prefixes | None, mp_come: _MpReach | None, findings: list[Finding]
    ) -> list[Reach]:
        """What each carrier announces. A mandatory attribute is missing only where a route misses it (RFC 7606 3 d)."""
        reach: list[Reach] = []
        if come is not None:
            findings.extend(block.missing)
            reach.append(Reach(_IPV4, block.source, come))
        if mp_come is not None:
            if come is None:
                findings.extend(f for f in block.missing if f.attribute != _NEXT_HOP)
            attrs = self._with_next_hop(block, mp_come)
            if attrs is None:
                findings.append(_MP_NEXT_HOP_UNUSABLE)
                attrs = block.source
            reach.append(Reach(mp_come.family, attrs, mp_come.prefixes))
        return reach

    def _read_block(self, rest: bytes) -> _Block:
        read = read_attributes(rest, four_octet_as=self._context.four_octet_as, external=self._context.external)
        block = _Block(read, self._pool.intern(AttributeSet(**read.fields)), ipv4=self._ipv4)
        self._make_room(len(rest))
        self._blocks[rest] = block
        return block

    def _make_room(self, octets: int) -> None:
        """Count what is about to be cached, and start over where it would be too much."""
        self._cached_octets += octets + _ENTRY_OCTETS
        if self._cached_octets > _MAX_CACHED_OCTETS:
            self._blocks.clear()
            self._cached_octets = octets + _ENTRY_OCTETS

    def _excise(self, raw: bytes) -> tuple[bytes, _RawMp | None, _RawMp | None]:
        """(the block without MP_*, MP_REACH_NLRI, MP_UNREACH_NLRI)."""
        if (_MP_REACH not in raw and _MP_UNREACH not in raw) or raw in self._blocks:
            return raw, None, None
        found: dict[int, _RawMp] = {}
        pieces: list[bytes] = []
        kept_from = at = 0
        end = len(raw)
        while end - at >= 3:
            flags = raw[at]
            code = raw[at + 1]
            if flags & _EXTENDED:
                # cut short, the length reads too small; the attribute still ends past the block
                value_at = at + 4
                stop = value_at + (raw[at + 2] << 8) + (raw[at + 3] if value_at <= end else 0)
            else:
                value_at = at + 3
                stop = value_at + raw[at + 2]
            if code in (_MP_REACH, _MP_UNREACH):
                if stop > end:
                    raise _update_error(
                        UpdateSubcode.MALFORMED_ATTRIBUTE_LIST,
                        f"{AttributeCode(code).name} runs past the end of the attribute list (RFC 7606 section 3 (j))",
                    )
                if code in found:
                    raise _update_error(
                        UpdateSubcode.MALFORMED_ATTRIBUTE_LIST,
                        f"{AttributeCode(code).name} appears more than once (RFC 7606 section 3 (g))",
                    )
                found[code] = raw[at:stop], raw[value_at:stop]
                pieces.append(raw[kept_from:at])
                kept_from = stop
                if at == 0 and raw[stop:] in self._blocks:
                    # a block seen before holds no second one
                    break
            if stop > end:
                break
            at = stop
        pieces.append(raw[kept_from:])
        return b"".join(pieces), found.get(_MP_REACH), found.get(_MP_UNREACH)

    def _family_of(self, attribute: _RawMp, code: AttributeCode, least: int) -> Family | None:
        """The family of an MP attribute, which has at least `least` octets; None where we did not negotiate it."""
        octets, value = attribute
        if len(value) >= 3:
            family = self._families.get(value[:3])
            if family is None:
                return None
            if (octets[0] ^ ATTRIBUTE_FLAGS[code]) & _TYPE_FLAGS:
                raise _update_error(
                    UpdateSubcode.ATTRIBUTE_FLAGS_ERROR,
                    f"{code.name} has a wrong Optional or Transitive flag (RFC 7606 section 5.3)",
                    octets,
                )
            if len(value) >= least:
                return family
        raise _update_error(
            UpdateSubcode.MALFORMED_ATTRIBUTE_LIST,
            f"{code.name} has {len(value)} octets where at least {least} are expected (RFC 7606 section 5.3)",
        )

    def _read_mp_unreach(self, attribute: _RawMp) -> tuple[Family, Prefixes] | None:
        """AFI 2, SAFI 1, withdrawn routes (RFC 4760 4)."""
        family = self._family_of(attribute, AttributeCode.MP_UNREACH_NLRI, 3)
        if family is None:
            return None
        prefixes, _ = _split_field(family, attribute[1][3:], _MP_UNREACH, "MP_UNREACH_NLRI")
        return family, prefixes

    def _read_mp_reach(self, attribute: _RawMp, findings: list[Finding]) -> _MpReach | None:
        """AFI 2, SAFI 1, next hop length 1, next hop, reserved 1, NLRI (RFC 4760 3)."""
        family = self._family_of(attribute, AttributeCode.MP_REACH_NLRI, 5)
        if family is None:
            return None
        value = attribute[1]
        length = value[3]
        nlri_at = 5 + length
        if length not in _MP_NEXT_HOP_LENGTHS[family] or nlri_at > len(value):
            raise _update_error(
                UpdateSubcode.MALFORMED_ATTRIBUTE_LIST,
                f"MP_REACH_NLRI has a next hop of {length} octets, so its prefixes can't be found"
                " (RFC 7606 section 7.11)",
            )
        prefixes, suspect = _split_field(family, value[nlri_at:], _MP_REACH, "MP_REACH_NLRI")
        if suspect:
            prefixes = _routable(family, prefixes, _MP_REACH, findings)
        return _MpReach(family, value[4 : 4 + length], prefixes)

    def _with_next_hop(self, block: _Block, mp: _MpReach) -> AttributeSet | None:
        """The block's attributes with the next hop of an MP_REACH_NLRI; None where that is no host's address."""
        attrs = block.by_next_hop.get(mp.next_hop)
        if attrs is None:
            next_hop, link_local = mp.next_hop[:16], mp.next_hop[16:]
            if link_local and not is_link_local(link_local):
                link_local = b""
            if link_local and not any(next_hop):
                # a peer without a global address on the link fills in zeros (RFC 2545 leaves no form for it)
                next_hop, link_local = link_local, b""
            if not _is_host_address(next_hop):
                return None
            attrs = self._pool.intern(block.source.replace(next_hop=next_hop, link_local=link_local))
            self._make_room(0)
            block.by_next_hop[mp.next_hop] = attrs
        return attrs


# --- the parts of a message ------------------------------------------------------------------------------------------


def _update_error(subcode: UpdateSubcode, text: str, data: bytes = b"") -> PeerError:
    return PeerError(NotificationCode.UPDATE_MESSAGE_ERROR, subcode, data, text)


def _split_body(body: bytes) -> tuple[bytes, bytes, bytes]:
    """(Withdrawn Routes, Path Attributes, NLRI), or PeerError 3/1 where the lengths don't add up (RFC 7606 4)."""
    end = len(body)
    if end >= 4:
        attributes_at = 4 + (body[0] << 8 | body[1])
        if attributes_at <= end:
            nlri_at = attributes_at + (body[attributes_at - 2] << 8 | body[attributes_at - 1])
            if nlri_at <= end:
                return body[2 : attributes_at - 2], body[attributes_at:nlri_at], body[nlri_at:]
    raise _update_error(
        UpdateSubcode.MALFORMED_ATTRIBUTE_LIST,
        "The lengths of withdrawn routes and attributes exceed the UPDATE they are in (RFC 4271 section 6.3)",
    )


def _split_field(family: Family, nlri: bytes, attribute: int, name: str) -> tuple[Prefixes, bool]:
    """What `split_nlri` says; PeerError 3/9 for an MP attribute (RFC 4760 7), else 3/10 (RFC 4271 6.3)."""
    try:
        return split_nlri(family, nlri)
    except NlriError as error:
        subcode = UpdateSubcode.OPTIONAL_ATTRIBUTE_ERROR if attribute else UpdateSubcode.INVALID_NETWORK_FIELD
        raise _update_error(subcode, f"{name} holds {error} (RFC 7606 section 5.3)") from None


def _routable(family: Family, prefixes: Prefixes, attribute: int, findings: list[Finding]) -> Prefixes:
    """The prefixes that can be routed, with a finding where some can't."""
    kept = without_unroutable(family, prefixes)
    if kept is not prefixes:
        findings.append(_UNROUTABLE_IGNORED[attribute])
    return kept


def _is_host_address(address: bytes) -> bool:
    """Whether an address can be a next hop: not unspecified, loopback, multicast or class E (RFC 4271 6.3)."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and (any(address[:15]) or address[15] > 1)


# --- writing ---------------------------------------------------------------------------------------------------------

_MP_REACH_OVERHEAD = 4 + 3 + 1 + 32 + 1
"""Octets of an MP_REACH_NLRI beside its prefixes: header, AFI/SAFI, next hop length, the longer next hop, reserved."""


def update_message(withdrawn: bytes, attributes: bytes, nlri: bytes) -> bytes:
    """A whole UPDATE, header included, of its three fields (RFC 4271 4.3)."""
    length = HEADER_LENGTH + 4 + len(withdrawn) + len(attributes) + len(nlri)
    return b"".join(
        (
            MARKER,
            struct.pack(">HBH", length, MessageType.UPDATE, len(withdrawn)),
            withdrawn,
            len(attributes).to_bytes(2, "big"),
            attributes,
            nlri,
        )
    )


def reach_message(family: Family, attributes: bytes, next_hop: bytes, nlri: bytes) -> bytes:
    """An UPDATE that announces prefixes.

    IPv4 goes in the NLRI field, with NEXT_HOP in `attributes`; IPv6 in an MP_REACH_NLRI ahead of the other attributes
    (RFC 7606 5.1), with `next_hop` of 16 or 32 octets.
    """
    if family is _IPV4:
        return update_message(b"", attributes, nlri)
    size = 5 + len(next_hop) + len(nlri)
    head = struct.pack(">BBHHBB", _MP_FLAGS, _MP_REACH, size, family.afi, family.safi, len(next_hop))
    return update_message(b"", b"".join((head, next_hop, b"\x00", nlri, attributes)), b"")


def withdraw_message(family: Family, nlri: bytes) -> bytes:
    """An UPDATE that withdraws prefixes."""
    if family is _IPV4:
        return update_message(nlri, b"", b"")
    head = struct.pack(">BBHHB", _MP_FLAGS, _MP_UNREACH, 3 + len(nlri), family.afi, family.safi)
    return update_message(b"", head + nlri, b"")


def end_of_rib(family: Family) -> bytes:
    """The End-of-RIB marker: an UPDATE that withdraws nothing (RFC 4724 2)."""
    return withdraw_message(family, b"")


def nlri_room(family: Family, attributes: bytes, max_message: int = MAX_MESSAGE) -> int:
    """Octets of prefixes that still fit in a `reach_message` with these attributes; 0 where not even they do.

    For IPv6 whatever the next hop's length.
    """
    room = max_message - HEADER_LENGTH - 4 - len(attributes)
    if family is not _IPV4:
        room -= _MP_REACH_OVERHEAD
    return max(room, 0)
