"""Numbers of the BGP registries, under the names the registries give them.

Sources: IANA "Border Gateway Protocol (BGP) Parameters" and "Capability Codes"; each class names its RFCs. Only values
routed reads or writes are listed; a number without a name stays a plain integer everywhere, it is never an error here.
"""

from __future__ import annotations

import enum

BGP_VERSION = 4
BGP_PORT = 179

MARKER = b"\xff" * 16
"""RFC 4271 4.1: sixteen octets, all ones."""

HEADER_LENGTH = 19
"""Octets: marker 16, length 2, type 1 (RFC 4271 4.1)."""

MAX_MESSAGE = 4096
"""Octets of the longest message, header included (RFC 4271 4.1)."""

AS_TRANS = 23456
"""Stands in a 2-octet field for an AS number that needs four (RFC 6793 9)."""

AS_MAX_2_OCTET = 0xFFFF


class MessageType(enum.IntEnum):
    """RFC 4271 4.1, RFC 2918."""

    OPEN = 1
    UPDATE = 2
    NOTIFICATION = 3
    KEEPALIVE = 4
    ROUTE_REFRESH = 5


class AttributeFlag(enum.IntFlag):
    """High bits of the attribute flags octet (RFC 4271 4.3). The low four are ignored on receipt."""

    OPTIONAL = 0x80
    TRANSITIVE = 0x40
    PARTIAL = 0x20
    EXTENDED_LENGTH = 0x10


class AttributeCode(enum.IntEnum):
    """Path attribute type codes: RFC 4271, 1997, 4456, 4760, 4360, 6793, 5701, 9012, 7311, 9552, 8092, 8669, 9234."""

    ORIGIN = 1
    AS_PATH = 2
    NEXT_HOP = 3
    MULTI_EXIT_DISC = 4
    LOCAL_PREF = 5
    ATOMIC_AGGREGATE = 6
    AGGREGATOR = 7
    COMMUNITIES = 8
    ORIGINATOR_ID = 9
    CLUSTER_LIST = 10
    MP_REACH_NLRI = 14
    MP_UNREACH_NLRI = 15
    EXTENDED_COMMUNITIES = 16
    AS4_PATH = 17
    AS4_AGGREGATOR = 18
    PMSI_TUNNEL = 22
    TUNNEL_ENCAPSULATION = 23
    TRAFFIC_ENGINEERING = 24
    IPV6_EXTENDED_COMMUNITIES = 25
    AIGP = 26
    BGP_LS = 29
    LARGE_COMMUNITY = 32
    ONLY_TO_CUSTOMER = 35
    NEXT_HOP_DEPENDENT_CHARACTERISTICS = 39
    """draft-ietf-idr-entropy-label."""
    PREFIX_SID = 40
    ATTR_SET = 128


class Origin(enum.IntEnum):
    """RFC 4271 4.3 a."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


class SegmentType(enum.IntEnum):
    """AS_PATH segment types: RFC 4271 4.3 b, RFC 5065 3."""

    AS_SET = 1
    AS_SEQUENCE = 2
    AS_CONFED_SEQUENCE = 3
    AS_CONFED_SET = 4


class CapabilityCode(enum.IntEnum):
    """RFC 5492: 4760, 2918, 8950, 8654, 9234, 4724, 6793, 7911, 7313, 9494, the hostname draft, the version draft."""

    MULTIPROTOCOL = 1
    ROUTE_REFRESH = 2
    EXTENDED_NEXT_HOP = 5
    EXTENDED_MESSAGE = 6
    ROLE = 9
    GRACEFUL_RESTART = 64
    FOUR_OCTET_AS = 65
    ADD_PATH = 69
    ENHANCED_ROUTE_REFRESH = 70
    LONG_LIVED_GRACEFUL_RESTART = 71
    FQDN = 73
    SOFTWARE_VERSION = 75
    ROUTE_REFRESH_CISCO = 128
    """The pre-standard number; some speakers still send it beside 2."""


class ParameterType(enum.IntEnum):
    """OPEN optional parameter types: RFC 5492, RFC 9072."""

    AUTHENTICATION = 1
    """Deprecated by RFC 4271 appendix A."""
    CAPABILITIES = 2
    EXTENDED_LENGTH = 255


class NotificationCode(enum.IntEnum):
    """RFC 4271 4.5, RFC 7313 (ROUTE-REFRESH), RFC 9687 (send hold timer)."""

    MESSAGE_HEADER_ERROR = 1
    OPEN_MESSAGE_ERROR = 2
    UPDATE_MESSAGE_ERROR = 3
    HOLD_TIMER_EXPIRED = 4
    FINITE_STATE_MACHINE_ERROR = 5
    CEASE = 6
    ROUTE_REFRESH_MESSAGE_ERROR = 7
    SEND_HOLD_TIMER_EXPIRED = 8


class MessageHeaderSubcode(enum.IntEnum):
    """RFC 4271 6.1."""

    CONNECTION_NOT_SYNCHRONIZED = 1
    BAD_MESSAGE_LENGTH = 2
    BAD_MESSAGE_TYPE = 3


class OpenSubcode(enum.IntEnum):
    """RFC 4271 6.2, RFC 5492 (7), RFC 9234 (11)."""

    UNSPECIFIC = 0
    UNSUPPORTED_VERSION_NUMBER = 1
    BAD_PEER_AS = 2
    BAD_BGP_IDENTIFIER = 3
    UNSUPPORTED_OPTIONAL_PARAMETER = 4
    UNACCEPTABLE_HOLD_TIME = 6
    UNSUPPORTED_CAPABILITY = 7
    ROLE_MISMATCH = 11


class UpdateSubcode(enum.IntEnum):
    """RFC 4271 6.3."""

    UNSPECIFIC = 0
    MALFORMED_ATTRIBUTE_LIST = 1
    UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE = 2
    MISSING_WELL_KNOWN_ATTRIBUTE = 3
    ATTRIBUTE_FLAGS_ERROR = 4
    ATTRIBUTE_LENGTH_ERROR = 5
    INVALID_ORIGIN_ATTRIBUTE = 6
    INVALID_NEXT_HOP_ATTRIBUTE = 8
    OPTIONAL_ATTRIBUTE_ERROR = 9
    INVALID_NETWORK_FIELD = 10
    MALFORMED_AS_PATH = 11


class FiniteStateMachineSubcode(enum.IntEnum):
    """RFC 6608."""

    UNSPECIFIC = 0
    UNEXPECTED_MESSAGE_IN_OPENSENT = 1
    UNEXPECTED_MESSAGE_IN_OPENCONFIRM = 2
    UNEXPECTED_MESSAGE_IN_ESTABLISHED = 3


class CeaseSubcode(enum.IntEnum):
    """RFC 4486, RFC 8538 (9), RFC 9384 (10)."""

    UNSPECIFIC = 0
    MAXIMUM_NUMBER_OF_PREFIXES_REACHED = 1
    ADMINISTRATIVE_SHUTDOWN = 2
    PEER_DECONFIGURED = 3
    ADMINISTRATIVE_RESET = 4
    CONNECTION_REJECTED = 5
    OTHER_CONFIGURATION_CHANGE = 6
    CONNECTION_COLLISION_RESOLUTION = 7
    OUT_OF_RESOURCES = 8
    HARD_RESET = 9
    BFD_DOWN = 10


class RouteRefreshSubcode(enum.IntEnum):
    """RFC 7313 5."""

    INVALID_MESSAGE_LENGTH = 1


class Community(enum.IntEnum):
    """Well-known communities: RFC 1997, 8326, 7999, 9494, 7611, and the registry's names for the Cisco ones."""

    GRACEFUL_SHUTDOWN = 0xFFFF0000
    ACCEPT_OWN = 0xFFFF0001
    LLGR_STALE = 0xFFFF0006
    NO_LLGR = 0xFFFF0007
    BLACKHOLE = 0xFFFF029A
    NO_EXPORT = 0xFFFFFF01
    NO_ADVERTISE = 0xFFFFFF02
    NO_EXPORT_SUBCONFED = 0xFFFFFF03
    NOPEER = 0xFFFFFF04
