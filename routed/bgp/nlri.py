"""NLRI fields <-> wire prefixes (RFC 4271 4.3, RFC 4760 5).

An NLRI field is prefixes end to end, each a length octet and the fewest octets that hold it. Splitting one is the
hottest loop of the daemon, so the common case, all prefixes of one length, costs one compare, two look-ups at C speed
and one `struct` call; anything else takes a plain loop. Bits set past a prefix's length are irrelevant (RFC 4271 4.3)
and are cleared, so what leaves here is always canonical. Add-path identifiers do not belong here yet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix, parse_prefix

_IPV4 = Family.IPV4_UNICAST

_SIZE = tuple(1 + ((length + 7) >> 3) for length in range(256))
"""Octets of a wire prefix, by its length in bits."""

_OCTET = tuple(bytes((value,)) for value in range(256))

_HOST_BITS = tuple((0xFF >> bits) & 0xFF if bits else 0 for bits in range(8))
"""By length modulo 8: the bits of the last octet that do not count."""

_CLEAN_LAST = tuple(bytes(value for value in range(256) if not value & mask) for mask in _HOST_BITS)
"""By length modulo 8: the last octets without such bits, as a deletion set for `bytes.translate`."""

_IGNORED = {
    Family.IPV4_UNICAST: tuple(parse_prefix(text)[1] for text in ("127.0.0.0/8", "224.0.0.0/4")),
    Family.IPV6_UNICAST: tuple(parse_prefix(text)[1] for text in ("::1/128", "fe80::/10", "ff00::/8")),
}
"""Loopback, multicast and link-local space: not routable, so the prefix is ignored (RFC 4271 6.3). 240/4 is used as
private space by some clusters, and stays."""

_SUSPECT_FIRST_OCTETS = {
    Family.IPV4_UNICAST: bytes((127, *range(224, 240))),
    Family.IPV6_UNICAST: bytes((0x00, 0xFE, 0xFF)),
}
"""The first octet of anything in _IGNORED: only such prefixes are looked at closely."""

_ORDINARY = {
    family: bytes(value for value in range(256) if value not in suspects)
    for family, suspects in _SUSPECT_FIRST_OCTETS.items()
}

_IS_SUSPECT = {
    family: bytes(value in suspects for value in range(256)) for family, suspects in _SUSPECT_FIRST_OCTETS.items()
}

_TOO_LONG = 1 << 20
"""Stands for the size of a prefix longer than its family allows: past the end of any field."""

_SIZES = {
    family: tuple(size if length <= family.max_length else _TOO_LONG for length, size in enumerate(_SIZE))
    for family in Family
}

_STRAY_BITS = bytes(_HOST_BITS[length & 7] for length in range(256))

_MAX_CACHED_FIELDS = 65536
"""Prefixes all cached splitters may stand for together: about 2 MiB of compiled formats."""

_splitters: dict[int, Callable[[bytes], tuple[bytes, ...]]] = {}
_splitter_fields = 0


class NlriError(ValueError):
    """The field can't be split into prefixes; the text is the end of a sentence ("a prefix length of 40 bits")."""


def split_uniform(family: Family, nlri: bytes) -> tuple[bytes, ...] | None:
    """The prefixes of a non-empty field if all have one length, no stray bits and plain space; else None."""
    length = nlri[0]
    size = _SIZE[length]
    count, left = divmod(len(nlri), size)
    if (
        left
        or length > (32 if family is _IPV4 else 128)
        or nlri[::size] != _OCTET[length] * count
        or (length & 7 and nlri[size - 1 :: size].translate(None, _CLEAN_LAST[length & 7]))
        or (size > 1 and nlri[1::size].translate(None, _ORDINARY[family]))
    ):
        return None
    splitter = _splitters.get(count << 5 | size)
    if splitter is None:
        splitter = _make_splitter(size, count)
    return splitter(nlri)


def _make_splitter(size: int, count: int) -> Callable[[bytes], tuple[bytes, ...]]:
    global _splitter_fields  # noqa: PLW0603 - a cache of compiled formats, like the one inside `struct` itself
    _splitter_fields += count
    if _splitter_fields > _MAX_CACHED_FIELDS:
        _splitters.clear()
        _splitter_fields = count
    splitter = struct.Struct(f"{size}s" * count).unpack
    _splitters[count << 5 | size] = splitter
    return splitter


def split_nlri(family: Family, nlri: bytes) -> tuple[Sequence[bytes], bool]:
    """(the canonical prefixes of an NLRI field, in order; whether some may be `unroutable`).

    Raises NlriError where it is not one (RFC 7606 5.3).
    """
    if not nlri:
        return (), False
    uniform = split_uniform(family, nlri)
    if uniform is not None:
        return uniform, False
    sizes = _SIZES[family]
    is_suspect = _IS_SUSPECT[family]
    prefixes: list[bytes] = []
    stray = suspect = at = 0
    end = len(nlri)
    padded = nlri + b"\x01"  # so that a last /0 has a first octet, too
    while at < end:
        length = nlri[at]
        stop = at + sizes[length]
        if stop > end:
            if sizes[length] == _TOO_LONG:
                raise NlriError(f"a prefix length of {length} bits")
            raise NlriError("a prefix that runs past its end")
        stray |= nlri[stop - 1] & _STRAY_BITS[length]
        suspect |= is_suspect[padded[at + 1]]
        prefixes.append(nlri[at:stop])
        at = stop
    if stray:
        prefixes = [make_prefix(prefix[1:], prefix[0]) for prefix in prefixes]
    return prefixes, bool(suspect)


def without_unroutable(family: Family, prefixes: Sequence[bytes]) -> Sequence[bytes]:
    """The prefixes outside loopback, multicast and link-local space; the same object where all are."""
    ignored = _IGNORED[family]
    kept = [prefix for prefix in prefixes if not any(covers(outer, prefix) for outer in ignored)]
    return kept if len(kept) < len(prefixes) else prefixes
