"""Address families as BGP numbers them (RFC 4760: AFI and SAFI)."""

from __future__ import annotations

import enum

#: A plain number, since looking up a member of an enumeration takes a call of its own and these are asked for each prefix.
_IPV4 = 0x0101


class Family(enum.IntEnum):
    """AFI * 256 + SAFI of the families routed routes."""

    IPV4_UNICAST = 0x0101
    IPV6_UNICAST = 0x0201

    __hash__ = int.__hash__  # of an enumeration's member, Python would ask its name, in a call of its own

    @property
    def afi(self) -> int:
        return self >> 8

    @property
    def safi(self) -> int:
        return self & 0xFF

    @property
    def address_length(self) -> int:
        """Octets of one address: 4 or 16."""
        return 4 if self == _IPV4 else 16

    @property
    def max_length(self) -> int:
        """Bits of the longest prefix: 32 or 128."""
        return 32 if self == _IPV4 else 128

    @property
    def label(self) -> str:
        """The name people see: `ipv4-unicast` or `ipv6-unicast`."""
        return "ipv4-unicast" if self is Family.IPV4_UNICAST else "ipv6-unicast"

    @classmethod
    def of_address(cls, address: bytes) -> Family:
        """The unicast family of a packed address."""
        return cls.IPV4_UNICAST if len(address) == 4 else cls.IPV6_UNICAST


def family_from_wire(afi: int, safi: int) -> Family | None:
    """The family for an AFI/SAFI pair, or None for one routed does not route."""
    return _BY_WIRE.get((afi, safi))


_BY_WIRE = {(family.afi, family.safi): family for family in Family}
