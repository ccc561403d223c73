"""The message that removes entries of the connection tracking table: all that one address takes part in, in one place.

Encoder only. The kernel (since 5.8) removes what a CTA_FILTER says in its flags: of the tuple beside it, only the fields
that are flagged are compared, and all else is left alone. An older kernel refuses this, since the tuple is not whole.

`struct nfgenmsg`: u8 family, u8 version, be16 resource. Without a version the kernel would not look at the family.
"""

from __future__ import annotations

import struct
from enum import Enum

from routed.net.families import Family
from routed.netlink.messages import attribute, request
from routed.netlink.numbers import NLM_F_ACK
from routed.netlink.routes import AF_OF_FAMILY

_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_NESTED = 0x8000
_TUPLE_IP, _FILTER = 1, 25
_SOURCE = 1  # CTA_FILTER_F_CTA_IP_SRC
_U32 = struct.Struct("=I")


class Part(Enum):
    """Where in an entry an address stands: (CTA_TUPLE_*, CTA_FILTER_*_FLAGS). In each it is the source."""

    ORIGINAL = (1, 1)
    """Who began."""
    REPLY = (2, 2)
    """Who answers, whomever the first packet was for."""


def delete_entries(sequence: int, part: Part, address: bytes) -> bytes:
    """Every entry with the address at this place."""
    family = Family.of_address(address)
    table, flags = part.value
    source = 1 if family is Family.IPV4_UNICAST else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    ip = attribute(_TUPLE_IP | _NESTED, attribute(source, address))
    # both words are there, as the kernel wants it of who filters by replies alone
    said = [attribute(kind, _U32.pack(_SOURCE if kind == flags else 0)) for kind in (1, 2)]
    body = b"".join(
        (
            bytes((AF_OF_FAMILY[family], 1, 0, 0)),
            attribute(table | _NESTED, ip),
            attribute(_FILTER | _NESTED, b"".join(said)),
        )
    )
    return request(_DELETE, NLM_F_ACK, sequence, body)
