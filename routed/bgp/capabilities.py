"""What each side of a session can do, and what the two have in common.

`Capabilities` is the meaning of an OPEN's capabilities; `advertise` writes ours; `negotiate` judges the peer's OPEN
(the checks of RFC 4271 6.2 that need our configuration) and yields the session's `Negotiated`, a frozen value.

Decisions:
- Unknown capabilities are ignored (RFC 5492 3). A known one of the wrong length is a malformed OPEN (2/0): what it
  meant cannot be guessed. Repetitions of Multiprotocol add up; of any other the last counts (RFC 4724 3 of its own).
- A peer that sends no Multiprotocol capability at all speaks IPv4 unicast (RFC 4760 8).
- No family in common ends the session with 2/7 and our Multiprotocol capabilities as data: RFC 5492 3 gives that very
  example, and a session that can carry nothing would only look healthy.
- The 4-octet AS capability wins over the 2-octet field (RFC 6793 4.1); zero in either is refused (RFC 7607).

RFC 5492, 4760, 2918, 4724, 6793, 6286, 7607. Not here: bytes of the OPEN (`messages`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field

from routed.bgp.iana import AS_MAX_2_OCTET, AS_TRANS, CapabilityCode, NotificationCode, OpenSubcode
from routed.bgp.messages import Capability, Open
from routed.errors import PeerError
from routed.net.addresses import format_router_id
from routed.net.families import Family, family_from_wire
from routed.values import dataclass

RESTART_TIME_MAX = 0xFFF
"""Twelve bits of seconds (RFC 4724 3)."""


@dataclass(frozen=True, slots=True)
class PeerRestart:
    """Graceful Restart capability: flags 4 bits, restart time 12, then AFI 2 octets, SAFI 1, flags 1 each (RFC 4724 3)."""

    restart_time: int
    """Seconds the speaker may need to come back."""
    restarting: bool = False
    """Restart State (R): it has just restarted, don't wait for its End-of-RIB."""
    families: dict[Family, bool] = field(default_factory=dict)
    """Families it can keep forwarding while it restarts; the value is its F bit: did it, the last time."""

    def encode(self) -> bytes:
        head = (0x8000 if self.restarting else 0) | min(self.restart_time, RESTART_TIME_MAX)
        return head.to_bytes(2, "big") + b"".join(
            bytes((family.afi >> 8, family.afi & 0xFF, family.safi, 0x80 if forwarding else 0))
            for family, forwarding in self.families.items()
        )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The understood capabilities of one OPEN."""

    families: tuple[Family, ...] | None = None
    """Known families announced by Multiprotocol; None where the OPEN has none at all, so that IPv4 is implied."""
    route_refresh: bool = False
    four_octet_as: int | None = None
    graceful_restart: PeerRestart | None = None
    ignored: tuple[int, ...] = ()
    """Codes that were not understood, for people."""

    @classmethod
    def parse(cls, capabilities: Collection[Capability]) -> Capabilities:
        """Raises PeerError 2/0 for a known capability of the wrong length."""
        families: list[Family] | None = None
        route_refresh = False
        four_octet_as: int | None = None
        restart: PeerRestart | None = None
        ignored: list[int] = []
        for code, value in capabilities:
            if code == CapabilityCode.MULTIPROTOCOL:
                _require(len(value) == 4, code, value)
                families = [] if families is None else families
                family = family_from_wire(value[0] << 8 | value[1], value[3])
                if family is not None and family not in families:
                    families.append(family)
            elif code == CapabilityCode.FOUR_OCTET_AS:
                _require(len(value) == 4, code, value)
                four_octet_as = int.from_bytes(value, "big")
            elif code == CapabilityCode.GRACEFUL_RESTART:
                _require(len(value) % 4 == 2, code, value)
                restart = _parse_restart(value)
            elif code == CapabilityCode.ROUTE_REFRESH:
                route_refresh = True  # RFC 2918 2 gives it no value; one that came with it has no meaning
            else:
                ignored.append(code)
        return cls(None if families is None else tuple(families), route_refresh, four_octet_as, restart, tuple(ignored))


def _require(fits: bool, code: int, value: bytes) -> None:
    if not fits:
        raise PeerError(
            NotificationCode.OPEN_MESSAGE_ERROR,
            OpenSubcode.UNSPECIFIC,
            b"",
            f"the peer's OPEN is malformed: capability {code} has the impossible length {len(value)}",
        )


def _parse_restart(value: bytes) -> PeerRestart:
    head = value[0] << 8 | value[1]
    families: dict[Family, bool] = {}
    for at in range(2, len(value), 4):
        family = family_from_wire(value[at] << 8 | value[at + 1], value[at + 2])
        if family is not None:
            families[family] = bool(value[at + 3] & 0x80)
    return PeerRestart(head & RESTART_TIME_MAX, bool(head & 0x8000), families)


def multiprotocol(family: Family) -> Capability:
    """AFI 2 octets, reserved 1, SAFI 1 (RFC 4760 8)."""
    return Capability(CapabilityCode.MULTIPROTOCOL, bytes((family.afi >> 8, family.afi & 0xFF, 0, family.safi)))


def advertise(
    *,
    local_as: int,
    hold_time: int,
    router_id: int,
    families: Collection[Family],
    restart: PeerRestart | None,
    without: Collection[Capability] = (),
) -> Open:
    """Our OPEN. `without`: capabilities the peer refused with 2/7; named in any form, left out of this one."""
    capabilities = [multiprotocol(family) for family in families]
    capabilities.append(Capability(CapabilityCode.ROUTE_REFRESH, b""))
    capabilities.append(Capability(CapabilityCode.FOUR_OCTET_AS, local_as.to_bytes(4, "big")))
    if restart is not None:
        capabilities.append(Capability(CapabilityCode.GRACEFUL_RESTART, restart.encode()))
    return Open(
        two_octet_as=local_as if local_as <= AS_MAX_2_OCTET else AS_TRANS,
        hold_time=hold_time,
        router_id=router_id,
        capabilities=tuple(one for one in capabilities if not named(one, without)),
    )


def named(capability: Capability, refused: Collection[Capability]) -> bool:
    """Whether a peer's list of refused capabilities means this one. Multiprotocol is refused one family at a time."""
    if capability.code == CapabilityCode.MULTIPROTOCOL:
        return capability in refused
    return any(capability.code == one.code for one in refused)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What one session agreed on. Times are seconds."""

    families: frozenset[Family]
    four_octet_as: bool
    route_refresh: bool
    """The peer understands ROUTE-REFRESH."""
    hold_time: int
    """The smaller of the two proposals; 0: no keepalives, no hold timer (RFC 4271 4.2)."""
    keepalive_time: float
    """Longest time between our KEEPALIVEs; 0 with a hold time of 0."""
    graceful_restart: PeerRestart | None
    """What the peer said of RFC 4724, where both sides speak it."""
    peer_as: int
    peer_router_id: int
    external: bool
    peer: Capabilities
    """Everything the peer announced, for people."""

    @property
    def declined(self) -> tuple[str, ...]:
        """What the peer offered and this session does without, each once, in the OPEN's order."""
        families = (family for family in self.peer.families or () if family not in self.families)
        codes = dict.fromkeys(self.peer.ignored)
        return (*(f"family {family.label}" for family in families), *map(_capability_text, codes))


def _capability_text(code: int) -> str:
    try:
        name = CapabilityCode(code).name.lower().replace("_", " ")
    except ValueError:
        return f"capability {code}"
    return f"capability {code} ({name})"


def negotiate(ours: Open, theirs: Open, *, local_as: int, peer_as: int, keepalive_time: int = 0) -> Negotiated:
    """What the two OPENs agree on. Raises PeerError 2/x where theirs is unacceptable (RFC 4271 6.2, 5492, 6286, 7607).

    `peer_as` is the configured one; `keepalive_time` 0 means a third of the agreed hold time.
    """
    mine = Capabilities.parse(ours.capabilities)
    peer = Capabilities.parse(theirs.capabilities)
    asn = theirs.two_octet_as if peer.four_octet_as is None else peer.four_octet_as
    if theirs.two_octet_as == 0 or asn == 0:
        raise _refuse(OpenSubcode.BAD_PEER_AS, "the peer says it is AS 0, which nobody may be (RFC 7607)")
    if asn != peer_as:
        hint = ""
        if asn == AS_TRANS:
            hint = " (AS_TRANS: it has no 4-octet AS capability)" if peer.four_octet_as is None else " (AS_TRANS)"
        raise _refuse(OpenSubcode.BAD_PEER_AS, f"the peer says it is AS {asn}{hint}, configured is AS {peer_as}")
    if theirs.hold_time in (1, 2):
        raise _refuse(
            OpenSubcode.UNACCEPTABLE_HOLD_TIME,
            f"the peer proposes a hold time of {theirs.hold_time} s, it must be 0 or at least 3 s",
        )
    if theirs.router_id == 0:
        raise _refuse(OpenSubcode.BAD_BGP_IDENTIFIER, "the peer's router id is 0.0.0.0")
    if theirs.router_id == ours.router_id and local_as == peer_as:
        raise _refuse(
            OpenSubcode.BAD_BGP_IDENTIFIER,
            f"the peer, in our own AS, has our router id {format_router_id(ours.router_id)}",
        )
    implied = (Family.IPV4_UNICAST,)
    families = frozenset(implied if mine.families is None else mine.families) & frozenset(
        implied if peer.families is None else peer.families
    )
    if not families:
        wanted = [one for one in ours.capabilities if one.code == CapabilityCode.MULTIPROTOCOL]
        names = ", ".join(family.label for family in mine.families or implied)
        raise PeerError(
            NotificationCode.OPEN_MESSAGE_ERROR,
            OpenSubcode.UNSUPPORTED_CAPABILITY,
            b"".join(bytes((code, len(value))) + value for code, value in wanted),
            f"the peer has none of our address families ({names})",
        )
    hold_time = min(ours.hold_time, theirs.hold_time)
    third = hold_time / 3
    return Negotiated(
        families=families,
        four_octet_as=mine.four_octet_as is not None and peer.four_octet_as is not None,
        route_refresh=mine.route_refresh and peer.route_refresh,
        hold_time=hold_time,
        keepalive_time=min(third, keepalive_time) if keepalive_time else third,
        graceful_restart=peer.graceful_restart if mine.graceful_restart is not None else None,
        peer_as=asn,
        peer_router_id=theirs.router_id,
        external=local_as != peer_as,
        peer=peer,
    )


def _refuse(subcode: int, text: str) -> PeerError:
    return PeerError(NotificationCode.OPEN_MESSAGE_ERROR, subcode, b"", text)
