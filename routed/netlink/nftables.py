"""nf_tables messages: tables, chains, rules, sets and elements, in one atomic batch.

A message is the netlink header, `struct nfgenmsg` (u8 family, u8 version 0, u16 big-endian resource id) and attributes.
Changes travel between NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END in one send: the kernel takes all of them or none, and
packets see either the old rules or the new. With a generation id in BATCH_BEGIN it refuses (ERESTART) where somebody
changed any table since.

Invariants: pure octets. Everything is of one table; nothing here can name another's. Errors come back by the sequence
number of the message they are about.

Not here: expressions of rules (`nft_expressions`), sockets, and what should be in the table (`dataplane`).
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Iterable, Iterator

from routed.netlink.messages import HEADER_LENGTH, Message, attribute, attributes, request, with_ack
from routed.netlink.nft_expressions import NFPROTO_INET, Verdict, cut, data_value, data_verdict, nested, text, u32
from routed.netlink.numbers import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL
from routed.values import dataclass

NETLINK_NETFILTER = 12

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN = 0x10
_BATCH_END = 0x11

_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_NEWSET, _GETSET, _DELSET = 9, 10, 11
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_NEWGEN, _GETGEN = 15, 16

_ANONYMOUS_VERDICT_TYPE = 0xFFFFFF00

#: Octets of elements in one message: an attribute's length is 16 bits, and a list is one attribute.
_ELEMENTS_SIZE = 60_000

_U64 = struct.Struct(">Q")
_HEADER = struct.Struct(">BBH")


class Hook(enum.IntEnum):
    """NF_INET_*."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Priority(enum.IntEnum):
    """Where a base chain stands among others of its hook; smaller is earlier."""

    RAW = -300
    MANGLE = -150
    FILTER = 0
    SOURCE_NAT = 100


@dataclass(frozen=True, slots=True)
class KeyType:
    """What a set's keys are: nft's own type number (for `nft list` only), octets, and their order."""

    number: int
    length: int
    host_order: bool = False


IPV4_ADDRESS = KeyType(7, 4)
IPV6_ADDRESS = KeyType(8, 16)
MAC_ADDRESS = KeyType(9, 6)
PROTOCOL = KeyType(12, 1)
PORT = KeyType(13, 2)
INTERFACE_INDEX = KeyType(20, 4, host_order=True)
INTERFACE_NAME = KeyType(41, 16, host_order=True)


def concatenation(*fields: KeyType) -> KeyType:
    """Fields side by side, each padded to 4 octets; nft's number has 6 bits a field."""
    number = length = 0
    for field in fields:
        number = number << 6 | field.number
        length += field.length + 3 & ~3
    return KeyType(number, length)


class SetFlag(enum.IntFlag):
    """NFT_SET_*."""

    INTERVAL = 0x4
    MAP = 0x8
    CONCAT = 0x80


@dataclass(frozen=True, slots=True)
class SetShape:
    """What a set is made with; it can't change later."""

    key: KeyType
    interval: bool = False
    """Its members are ranges, which must not overlap."""
    verdicts: bool = False
    """A verdict map: every key has a verdict."""


@dataclass(frozen=True, slots=True)
class Element:
    """A member of a set. For a range, `end` is the first key behind it; empty where it reaches to the last key there is."""

    key: bytes
    end: bytes | None = None
    """None: a single key."""
    verdict: tuple[Verdict, str] | None = None
    """In a verdict map: the code, and the chain of a jump."""


class Batch:
    """Messages of one atomic change to one table of the inet family, numbered from 1.

    What its rules look into is filled by a change before, and what they looked into goes by one after: of a set of ranges
    the kernel shows new members some time after the rules of the same change, and a packet on its way through the rules of
    before may look into a set that nothing names any more.
    """

    def __init__(self, table: str, generation: int | None = None) -> None:
        self.table = table
        self._of_table = attribute(1, text(table))
        self._messages: list[bytes] = []
        self._sequence = 0
        self._next_set_id = 0
        self._generation = generation
        self.is_rebuild = False
        """It makes the whole table."""
        self._before: Batch | None = None
        self._after: Batch | None = None
        self.subject = ""
        """What messages are about from here on, for who must find one that is refused."""
        self._subjects: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return self._sequence

    def about(self, sequence: int) -> str:
        """The subject of a message."""
        return self._subjects[sequence - 1] if 0 < sequence <= len(self._subjects) else ""

    @property
    def before(self) -> Batch:
        """What comes into force first."""
        if self._before is None:
            self._before = Batch(self.table)
        return self._before

    @property
    def after(self) -> Batch:
        """What comes into force last."""
        if self._after is None:
            self._after = Batch(self.table)
        return self._after

    @property
    def changes(self) -> list[Batch]:
        """All that is to be sent, in order."""
        return [each for each in (self._before, self, self._after) if each is not None and len(each)]

    @property
    def size(self) -> int:
        """Octets of all messages so far."""
        return self._size + sum(each.size for each in (self._before, self._after) if each is not None)

    def encode(self) -> bytes:
        """The whole batch, to be sent by one call.

        Each message that is refused is answered, and the last one in any case, so that silence never means success: answers
        to hundreds of thousands of rules would not fit into the socket that they are read from afterwards.
        """
        begin = attribute(1, u32(self._generation)) if self._generation is not None else b""
        head = request(_BATCH_BEGIN, 0, 0, _HEADER.pack(0, 0, 10) + begin)
        end = request(_BATCH_END, 0, self._sequence + 1, _HEADER.pack(0, 0, 10))
        return b"".join((head, *self._messages[:-1], *map(with_ack, self._messages[-1:]), end))

    # ---- tables

    def add_table(self, words: str = "") -> int:
        """Make the table, with a comment; where it exists, only let its rules work."""
        comment = attribute(6, _comment(words)) if words else b""
        return self._add(_NEWTABLE, NLM_F_CREATE, self._of_table, attribute(2, u32(0)), comment)

    def delete_table(self) -> int:
        """With everything in it. ENOENT where there is none."""
        return self._add(_DELTABLE, 0, self._of_table)

    # ---- chains

    def add_chain(self, name: str) -> int:
        return self._add(_NEWCHAIN, NLM_F_CREATE, self._of_table, attribute(3, text(name)))

    def add_base_chain(self, name: str, kind: str, hook: Hook, priority: int, *, drop: bool = False) -> int:
        """A chain packets enter by themselves. `kind`: filter, nat or route. `drop`: what its end does, else accept."""
        where = nested(4, attribute(1, u32(hook)), attribute(2, struct.pack(">i", priority)))
        return self._add(
            _NEWCHAIN,
            NLM_F_CREATE,
            self._of_table,
            attribute(3, text(name)),
            where,
            attribute(5, u32(Verdict.DROP if drop else Verdict.ACCEPT)),
            attribute(7, text(kind)),
        )

    def delete_chain(self, name: str) -> int:
        """EBUSY where something still leads there."""
        return self._add(_DELCHAIN, 0, self._of_table, attribute(3, text(name)))

    # ---- rules

    def add_rule(self, chain: str, expressions: bytes, words: str = "") -> int:
        """Append a rule, with a comment."""
        return self._add(
            _NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            self._of_table,
            attribute(2, text(chain)),
            nested(4, expressions),
            attribute(7, _comment(words)) if words else b"",
        )

    def flush_chain(self, chain: str) -> int:
        """Remove all rules of a chain."""
        return self._add(_DELRULE, 0, self._of_table, attribute(2, text(chain)))

    def flush_rules(self) -> int:
        """Remove all rules of all chains."""
        return self._add(_DELRULE, 0, self._of_table)

    # ---- sets

    def add_set(self, name: str, shape: SetShape) -> int:
        """Make a set or a verdict map. EEXIST where there is one of that name."""
        key = shape.key
        self._next_set_id += 1
        order = 1 if key.host_order else 2  # BYTEORDER_HOST_ENDIAN, BYTEORDER_BIG_ENDIAN
        return self._add(
            _NEWSET,
            NLM_F_CREATE | NLM_F_EXCL,
            self._of_table,
            attribute(2, text(name)),
            attribute(3, u32(_flags(shape))),
            attribute(4, u32(key.number)),
            attribute(5, u32(key.length)),
            attribute(6, u32(_ANONYMOUS_VERDICT_TYPE)) + attribute(7, u32(0)) if shape.verdicts else b"",
            attribute(10, u32(self._next_set_id)),
            attribute(13, b"\x00\x04" + struct.pack("=I", order)),
        )

    def delete_set(self, name: str) -> int:
        return self._add(_DELSET, 0, self._of_table, attribute(2, text(name)))

    def add_elements(self, name: str, elements: Iterable[Element]) -> int:
        """Into a set; an element that is there already is no error. The number of the last message."""
        return self._elements(_NEWSETELEM, NLM_F_CREATE, name, elements)

    def delete_elements(self, name: str, elements: Iterable[Element]) -> int:
        """ENOENT where one is not there."""
        return self._elements(_DELSETELEM, 0, name, elements)

    def flush_set(self, name: str) -> int:
        """Remove all elements."""
        return self._add(_DELSETELEM, 0, self._of_table, attribute(2, text(name)))

    # ---- inside

    def _elements(self, kind: int, flags: int, name: str, elements: Iterable[Element]) -> int:
        target = self._of_table + attribute(2, text(name))
        packed: list[bytes] = []
        size = 0
        for element in elements:
            octets = _encode_element(element)
            if size + len(octets) > _ELEMENTS_SIZE:
                self._add(kind, flags, target, nested(3, *packed))
                packed, size = [], 0
            packed.append(octets)
            size += len(octets)
        if packed:
            self._add(kind, flags, target, nested(3, *packed))
        return self._sequence

    def _add(self, kind: int, flags: int, *parts: bytes) -> int:
        self._sequence += 1
        body = _HEADER.pack(NFPROTO_INET, 0, 0) + b"".join(parts)
        self._subjects.append(self.subject)
        self._messages.append(request(_SUBSYSTEM | kind, flags, self._sequence, body))
        self._size += len(body)
        return self._sequence


@functools.cache
def _around_key(length: int) -> tuple[bytes, bytes]:
    """What is before and behind the key of an element that is nothing but a key."""
    made = nested(1, nested(1, data_value(bytes(length))))
    behind = len(made) - (-length & 3)
    return made[: behind - length], made[behind:]


def _encode_element(element: Element) -> bytes:
    if element.verdict is None and not element.end:
        before, behind = _around_key(len(element.key))
        return before + element.key + behind
    parts = [nested(1, data_value(element.key))]
    if element.verdict is not None:
        parts.append(nested(2, data_verdict(*element.verdict)))
    first = nested(1, *parts)
    if not element.end:
        return first
    return first + nested(1, attribute(3, u32(1)), nested(1, data_value(element.end)))  # NFT_SET_ELEM_INTERVAL_END


def comment(words: str) -> str:
    """What a comment keeps of a text."""
    return cut(words, 127)


def _comment(words: str) -> bytes:
    """User data as nft keeps a comment: u8 type 0, u8 length, text with its NUL."""
    value = comment(words).encode() + b"\x00"
    return bytes((0, len(value))) + value


# ---- questions


def get_generation(sequence: int) -> bytes:
    """Asks for the generation id of all tables together."""
    return _ask(_GETGEN, 0, sequence)


def get_table(table: str, sequence: int) -> bytes:
    """Asks for a table alone, of whose absence the kernel says ENOENT; the acknowledgement ends the answer."""
    return _ask(_GETTABLE, NLM_F_ACK, sequence, attribute(1, text(table)))


def dump_chains(table: str, sequence: int) -> bytes:
    return _ask(_GETCHAIN, NLM_F_DUMP, sequence, attribute(1, text(table)))


def dump_rules(table: str, sequence: int, chain: str = "") -> bytes:
    """The rules of a table, or of one chain of it."""
    return _ask(
        _GETRULE, NLM_F_DUMP, sequence, attribute(1, text(table)) + (attribute(2, text(chain)) if chain else b"")
    )


def dump_sets(table: str, sequence: int) -> bytes:
    return _ask(_GETSET, NLM_F_DUMP, sequence, attribute(1, text(table)))


def dump_elements(table: str, name: str, sequence: int) -> bytes:
    return _ask(_GETSETELEM, NLM_F_DUMP, sequence, attribute(1, text(table)) + attribute(2, text(name)))


def _ask(kind: int, flags: int, sequence: int, body: bytes = b"") -> bytes:
    return request(_SUBSYSTEM | kind, flags, sequence, _HEADER.pack(NFPROTO_INET, 0, 0) + body)


# ---- answers


@dataclass(frozen=True, slots=True)
class RuleFound:
    """A rule as the kernel lists it."""

    chain: str
    handle: int
    comment: str
    packets: int | None
    """Of its first anonymous counter; None where it has none."""
    octets: int | None
    expressions: bytes = b""
    """As the kernel writes them; see `nft_expressions.same`."""


def decode_table(message: Message, table: str) -> str | None:
    """The table's name, where this says that it is there."""
    return table if _fields_in(message, _NEWTABLE, table) is not None else None


def decode_generation(message: Message) -> int | None:
    if message.type != _SUBSYSTEM | _NEWGEN:
        return None
    for kind, value in _attributes(message):
        if kind == 1 and len(value) == 4:
            return int.from_bytes(value, "big")
    return None


@dataclass(frozen=True, slots=True)
class ChainFound:
    """A chain as the kernel lists it."""

    name: str
    kind: str = ""
    """Of a base chain: filter, nat or route."""
    hook: int | None = None
    priority: int = 0
    drop: bool = False
    """What the end of a base chain does."""


def decode_chain(message: Message, table: str) -> ChainFound | None:
    """A chain of the table."""
    fields = _fields_in(message, _NEWCHAIN, table)
    if fields is None:
        return None
    name = _text(fields.get(3, b""))
    where = dict(attributes(fields[4], 0)) if 4 in fields else {}
    if 1 not in where:
        return ChainFound(name)
    priority = int.from_bytes(where.get(2, b""), "big", signed=True)
    drop = int.from_bytes(fields.get(5, b""), "big", signed=True) == Verdict.DROP
    return ChainFound(name, _text(fields.get(7, b"")), int.from_bytes(where[1], "big"), priority, drop)


@dataclass(frozen=True, slots=True)
class SetFound:
    """A set as the kernel lists it."""

    name: str
    flags: int
    key: int
    """The number of its keys' type."""
    length: int
    """Octets of a key."""

    def has(self, shape: SetShape) -> bool:
        """Whether it was made with this shape."""
        return (self.flags, self.key, self.length) == (_flags(shape), shape.key.number, shape.key.length)


def decode_set(message: Message, table: str) -> SetFound | None:
    """A set of the table."""
    fields = _fields_in(message, _NEWSET, table)
    if fields is None:
        return None
    flags, key, length = (int.from_bytes(fields.get(kind, b""), "big") for kind in (3, 4, 5))
    return SetFound(_text(fields.get(2, b"")), flags, key, length)


def _flags(shape: SetShape) -> int:
    return (SetFlag.INTERVAL if shape.interval else 0) | (SetFlag.MAP if shape.verdicts else 0)


@dataclass(frozen=True, slots=True, order=True)
class ElementFound:
    """An element as the kernel lists it; of a range there are two."""

    key: bytes
    end: bool = False
    """It is the first key behind a range."""
    verdict: tuple[int, str] | None = None
    """In a verdict map: the code, and the chain it leads to."""


def found_as(element: Element) -> Iterator[ElementFound]:
    """How the kernel lists an element that was written."""
    yield ElementFound(element.key, verdict=element.verdict)
    if element.end:
        yield ElementFound(element.end, end=True)


def decode_elements(message: Message) -> Iterator[ElementFound]:
    """The elements in one message of a dump."""
    if message.type != _SUBSYSTEM | _NEWSETELEM:
        return
    for kind, value in _attributes(message):
        if kind != 3:
            continue
        for _, element in attributes(value, 0):
            key, flags, verdict = b"", 0, None
            for inner, octets in attributes(element, 0):
                if inner == 1:
                    key = next((data for at, data in attributes(octets, 0) if at == 1), b"")
                elif inner == 2:
                    verdict = next((_verdict(data) for at, data in attributes(octets, 0) if at == 2), None)
                elif inner == 3 and len(octets) == 4:
                    flags = int.from_bytes(octets, "big")
            yield ElementFound(key, bool(flags & 1), verdict)


def _verdict(data: bytes) -> tuple[int, str]:
    """NFTA_DATA_VERDICT."""
    parts = dict(attributes(data, 0))
    return int.from_bytes(parts.get(1, b""), "big", signed=True), _text(parts.get(2, b""))


def decode_rule(message: Message, table: str) -> RuleFound | None:
    if message.type != _SUBSYSTEM | _NEWRULE:
        return None
    chain = comment = ""
    handle = 0
    packets: int | None = None
    octets: int | None = None
    expressions = b""
    for kind, value in _attributes(message):
        if kind == 1 and _text(value) != table:
            return None
        if kind == 2:
            chain = _text(value)
        elif kind == 3 and len(value) == 8:
            handle = _U64.unpack(value)[0]
        elif kind == 7:
            comment = _text(value[2:]) if value[:1] == b"\x00" else ""
        elif kind == 4:
            expressions = value
            packets, octets = _first_counter(value)
    return RuleFound(chain, handle, comment, packets, octets, expressions)


def is_loss(message: Message) -> bool:
    """Whether a notification says that a table, a chain or a rule is gone."""
    return message.type in (_SUBSYSTEM | _DELTABLE, _SUBSYSTEM | _DELCHAIN, _SUBSYSTEM | _DELRULE)


def concerns_packets(message: Message) -> bool:
    """Whether a notification may be of something packets meet: not of a new set or chain, which nothing leads to yet."""
    return message.type not in (_SUBSYSTEM | _NEWCHAIN, _SUBSYSTEM | _NEWSET, _SUBSYSTEM | _DELSET)


def table_of_event(message: Message) -> str | None:
    """The table of the inet family a notification is about: all of nf_tables' but of generations begin with its name."""
    if message.type >> 8 != _SUBSYSTEM >> 8 or message.type & 0xFF in (_NEWGEN, _GETGEN):
        return None
    if message.data[HEADER_LENGTH : HEADER_LENGTH + 1] != bytes([NFPROTO_INET]):
        return None
    for kind, value in _attributes(message):
        if kind == 1:
            return _text(value)
    return None


def _first_counter(expressions: bytes) -> tuple[int | None, int | None]:
    for _, expression in attributes(expressions, 0):
        fields = dict(attributes(expression, 0))
        if _text(fields.get(1, b"")) == "counter":
            octets, packets = _counted(fields.get(2, b""))
            return packets, octets
    return None, None


def _counted(data: bytes) -> tuple[int, int]:
    """(octets, packets) of NFTA_COUNTER_*."""
    fields = {kind: _U64.unpack(value)[0] for kind, value in attributes(data, 0) if kind in (1, 2) and len(value) == 8}
    return fields.get(1, 0), fields.get(2, 0)


def _fields_in(message: Message, kind: int, table: str) -> dict[int, bytes] | None:
    """The attributes of a message about something in the table."""
    if message.type != _SUBSYSTEM | kind:
        return None
    fields = dict(_attributes(message))
    return fields if _text(fields.get(1, b"")) == table else None


def _attributes(message: Message) -> Iterator[tuple[int, bytes]]:
    return attributes(message.data, HEADER_LENGTH + 4)


def _text(value: bytes) -> str:
    return value.rstrip(b"\x00").decode("utf-8", "replace")
