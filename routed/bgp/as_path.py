"""AS paths as octets: check what a peer sent, widen it to four octets, merge AS4_PATH, prepend, narrow, show.

One form inside: a `bytes` of segments in 4-octet form, whatever the session spoke. A segment is a type octet, a count
octet and that many AS numbers (RFC 4271 4.3 b, RFC 6793 3). `read_as_path` is the only door for peer-supplied octets,
so every other function may trust its argument.

What is malformed: RFC 7606 7.2 (structure), RFC 7607 2 (AS 0), RFC 5065 5 (confederation segments from a neighbour
outside a confederation, which for routed is every neighbour). Loop and first-AS checks are not here: they need to know
who we are and who sent it. In particular an empty AS_PATH from an external peer is well-formed (RFC 4271 4.3 b allows
zero segments, RFC 7606 7.2 does not list it); refusing it is the optional first-AS check of RFC 4271 6.3.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator

from routed.bgp.iana import AS_MAX_2_OCTET, AS_TRANS, SegmentType

_SET = int(SegmentType.AS_SET)
_SEQUENCE = int(SegmentType.AS_SEQUENCE)
_CONFED_SEQUENCE = int(SegmentType.AS_CONFED_SEQUENCE)
_CONFED_SET = int(SegmentType.AS_CONFED_SET)

_NONE = b"\x00\x00\x00\x00"
"""AS 0."""

_MAX_COUNT = 255
"""AS numbers one segment can hold: its count is one octet."""

Segment = tuple[int, tuple[int, ...]]
"""(segment type, AS numbers)"""


class AsPathError(ValueError):
    """The octets are not an AS path we may use; the text is a sentence that cites the RFC."""


def read_as_path(value: bytes, *, four_octet_as: bool, confederation_ok: bool = False) -> bytes:
    """The 4-octet form of an AS_PATH or AS4_PATH value from the wire.

    `confederation_ok` lets AS_CONFED_* segments through (they are dropped from an AS4_PATH rather than an error,
    RFC 6793 6). Raises AsPathError.
    """
    size = len(value)
    if four_octet_as and size >= 6 and value[0] == _SEQUENCE and size == 2 + 4 * value[1] and _NONE not in value:
        return value  # one AS_SEQUENCE and nothing to find, as nearly all are
    width = 4 if four_octet_as else 2
    pieces: list[bytes] = []
    at = 0
    while at < size:
        if size - at < 2:
            raise AsPathError("AS_PATH ends with a single octet where a segment should start (RFC 7606 section 7.2)")
        kind = value[at]
        count = value[at + 1]
        stop = at + 2 + count * width
        if not _SET <= kind <= _CONFED_SET:
            raise AsPathError(f"AS_PATH has a segment of unknown type {kind} (RFC 7606 section 7.2)")
        if not count:
            raise AsPathError("AS_PATH has a segment without AS numbers (RFC 7606 section 7.2)")
        if stop > size:
            raise AsPathError(
                f"AS_PATH has a segment of {count} AS numbers that runs past its end (RFC 7606 section 7.2)"
            )
        if kind >= _CONFED_SEQUENCE and not confederation_ok:
            raise AsPathError("AS_PATH has a confederation segment, and this peer is in none (RFC 5065 section 5)")
        octets = value[at + 2 : stop]
        if width == 2:
            octets = struct.pack(f">{count}I", *struct.unpack(f">{count}H", octets))
        # the substring test is a C search that may hit across two numbers, so a hit is looked at closely
        if _NONE in octets and 0 in struct.unpack(f">{count}I", octets):
            raise AsPathError("AS_PATH holds AS 0, which nobody may use (RFC 7607 section 2)")
        pieces.append(value[at : at + 2])
        pieces.append(octets)
        at = stop
    return b"".join(pieces)


def segments(as_path: bytes) -> Iterator[Segment]:
    """The segments of a path in 4-octet form, in order."""
    at = 0
    end = len(as_path)
    while at < end:
        count = as_path[at + 1]
        yield as_path[at], struct.unpack_from(f">{count}I", as_path, at + 2)
        at += 2 + 4 * count


def join_segments(parts: list[Segment]) -> bytes:
    """Octets of segments; neighbouring AS_SEQUENCEs become one where its count allows it."""
    merged: list[Segment] = []
    for kind, numbers in parts:
        if merged and kind == _SEQUENCE == merged[-1][0] and len(merged[-1][1]) + len(numbers) <= _MAX_COUNT:
            merged[-1] = (kind, merged[-1][1] + numbers)
        else:
            merged.append((kind, numbers))
    return b"".join(struct.pack(f">BB{len(numbers)}I", kind, len(numbers), *numbers) for kind, numbers in merged)


@functools.lru_cache(maxsize=4096)
def summarise(as_path: bytes) -> tuple[int, int, frozenset[int]]:
    """What the decision asks of a path: (length, neighbour AS, all AS numbers).

    Length counts an AS_SET as one and confederation segments not at all (RFC 4271 9.1.2.2 a, RFC 5065 5.3). The
    neighbour AS is the first of a leading AS_SEQUENCE; 0 where there is none, which RFC 4271 9.1.2.2 c reads as our
    own AS.
    """
    if as_path and as_path[0] == _SEQUENCE and len(as_path) == 2 + 4 * as_path[1]:
        members = struct.unpack_from(f">{as_path[1]}I", as_path, 2)
        return as_path[1], members[0], frozenset(members)
    length = 0
    neighbor_as = -1
    numbers: set[int] = set()
    for kind, members in segments(as_path):
        numbers.update(members)
        if kind == _SEQUENCE:
            length += len(members)
            if neighbor_as < 0:
                neighbor_as = members[0]
        elif kind == _SET:
            length += 1
            neighbor_as = max(neighbor_as, 0)
    return length, max(neighbor_as, 0), frozenset(numbers)


def merge_as4_path(as_path: bytes, as4_path: bytes) -> bytes:
    """The true path of a route from a 2-octet peer (RFC 6793 4.2.3). Both arguments in 4-octet form.

    A longer AS4_PATH than AS_PATH is ignored; otherwise the leading part of AS_PATH that AS4_PATH lacks goes in front
    of it. AS_CONFED_* segments of AS4_PATH are dropped (RFC 6793 6).
    """
    new = [part for part in segments(as4_path) if part[0] <= _SEQUENCE]
    missing = summarise(as_path)[0] - sum(_hops(part) for part in new)
    if missing < 0 or not new:
        return as_path
    lead: list[Segment] = []
    for part in segments(as_path):
        if missing <= 0:
            break
        kind, numbers = part
        if kind == _SEQUENCE and len(numbers) > missing:
            part = (kind, numbers[:missing])
        lead.append(part)
        missing -= _hops(part)
    return join_segments(lead + new)


def _hops(part: Segment) -> int:
    kind, numbers = part
    if kind == _SEQUENCE:
        return len(numbers)
    return 1 if kind == _SET else 0


def narrow_as_path(as_path: bytes) -> tuple[bytes, bytes]:
    """(AS_PATH for a 2-octet peer, AS4_PATH in 4-octet form or empty where it is not needed) (RFC 6793 4.2.2)."""
    parts = list(segments(as_path))
    narrow = b"".join(
        struct.pack(
            f">BB{len(numbers)}H", kind, len(numbers), *(n if n <= AS_MAX_2_OCTET else AS_TRANS for n in numbers)
        )
        for kind, numbers in parts
    )
    if all(n <= AS_MAX_2_OCTET for _, numbers in parts for n in numbers):
        return narrow, b""
    return narrow, join_segments([part for part in parts if part[0] <= _SEQUENCE])


def prepend(as_path: bytes, asn: int, times: int = 1) -> bytes:
    """The path with `asn` in front, `times` times (RFC 4271 5.1.2 b).

    Goes into a leading AS_SEQUENCE as long as its count stays within 255, and opens a new segment past that.
    """
    while times > 0:
        own = asn.to_bytes(4, "big")
        if as_path and as_path[0] == _SEQUENCE and as_path[1] < _MAX_COUNT:
            step = min(times, _MAX_COUNT - as_path[1])
            as_path = bytes((_SEQUENCE, as_path[1] + step)) + own * step + as_path[2:]
        else:
            step = min(times, _MAX_COUNT)
            as_path = bytes((_SEQUENCE, step)) + own * step + as_path
        times -= step
    return as_path


def format_as_path(as_path: bytes) -> str:
    """`64512 64513 {1,2} (3 4) [5,6]`: sequence, set, confederation sequence, confederation set; sets are sorted."""
    words: list[str] = []
    for kind, numbers in segments(as_path):
        if kind == _SEQUENCE:
            words.extend(map(str, numbers))
        elif kind == _CONFED_SEQUENCE:
            words.append(f"({' '.join(map(str, numbers))})")
        else:
            members = ",".join(map(str, sorted(numbers)))
            words.append(f"{{{members}}}" if kind == _SET else f"[{members}]")
    return " ".join(words)
