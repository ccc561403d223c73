"""AS paths: widening, narrowing, merging and prepending, with hand-written cases from RFC 6793 and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.bgp.as_path import (
    AsPathError,
    format_as_path,
    join_segments,
    merge_as4_path,
    narrow_as_path,
    prepend,
    read_as_path,
    segments,
    summarise,
)

asns = st.one_of(
    st.integers(1, 0xFFFF), st.integers(0x10000, 0xFFFFFFFF), st.sampled_from([23456, 256, 65536, 16777216])
)
plain_segments = st.tuples(st.sampled_from([1, 2]), st.lists(asns, min_size=1, max_size=9).map(tuple))
paths = st.lists(plain_segments, max_size=5)


def seq(*numbers: int) -> tuple[int, tuple[int, ...]]:
    return 2, numbers


def one_by_one(parts: list[tuple[int, tuple[int, ...]]]) -> bytes:
    """Segments as given, nothing merged."""
    return b"".join(
        bytes((kind, len(numbers))) + b"".join(n.to_bytes(4, "big") for n in numbers) for kind, numbers in parts
    )


@given(paths)
def test_four_octet_paths_are_kept_as_they_are(parts: list[tuple[int, tuple[int, ...]]]) -> None:
    wire = one_by_one(parts)
    assert read_as_path(wire, four_octet_as=True) == wire
    assert list(segments(wire)) == parts


@given(paths)
def test_narrow_then_merge_gives_the_path_back(parts: list[tuple[int, tuple[int, ...]]]) -> None:
    path = join_segments(parts)
    narrow, as4_path = narrow_as_path(path)
    wide = read_as_path(narrow, four_octet_as=False)
    if as4_path:
        assert join_segments(list(segments(merge_as4_path(wide, as4_path)))) == path
    else:
        assert wide == path


@given(paths, st.lists(asns, max_size=4))
def test_old_speakers_in_between_do_not_hurt(parts: list[tuple[int, tuple[int, ...]]], added: list[int]) -> None:
    """RFC 6793 4.2.3: what 2-octet speakers prepended since is kept in front."""
    path = join_segments(parts)
    narrow, as4_path = narrow_as_path(path)
    wide = read_as_path(narrow, four_octet_as=False)
    expected = path
    for asn in added:
        wide = prepend(wide, asn & 0xFFFF or 1)
        expected = prepend(expected, asn & 0xFFFF or 1)
    if as4_path:
        wide = merge_as4_path(wide, as4_path)
    assert summarise(wide) == summarise(expected)
    assert format_as_path(wide) == format_as_path(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([seq(23456, 65001)], [seq(100000, 65001)], "100000 65001"),
        ([seq(65002, 23456, 65001)], [seq(100000, 65001)], "65002 100000 65001"),
        ([seq(65002)], [seq(100000, 65001)], "65002"),  # longer than AS_PATH: ignored
        ([seq(1, 23456), (1, (5, 6))], [seq(70000), (1, (5, 80000))], "1 70000 {5,80000}"),
        ([seq(1), (1, (5, 6)), seq(23456)], [seq(70000)], "1 {5,6} 70000"),
        ([seq(1, 2)], [(3, (70000,)), seq(80000)], "1 80000"),  # confederation segments are dropped
        ([seq(1, 2)], [(3, (70000,))], "1 2"),  # and nothing else was there
    ],
)
def test_merge(old: list[tuple[int, tuple[int, ...]]], new: list[tuple[int, tuple[int, ...]]], expected: str) -> None:
    assert format_as_path(merge_as4_path(one_by_one(old), one_by_one(new))) == expected


def test_summary() -> None:
    assert summarise(b"") == (0, 0, frozenset())
    assert summarise(one_by_one([seq(5, 6, 5)])) == (3, 5, {5, 6})
    assert summarise(one_by_one([(1, (7, 8)), seq(5)])) == (2, 0, {5, 7, 8})
    assert summarise(one_by_one([(3, (7, 8)), seq(5), (4, (9,))])) == (1, 5, {5, 7, 8, 9})


def test_text() -> None:
    path = one_by_one([seq(64512, 4200000000), (1, (3, 1, 2)), (3, (9, 8)), (4, (6, 5))])
    assert format_as_path(path) == "64512 4200000000 {1,2,3} (9 8) [5,6]"
    assert format_as_path(b"") == ""


@given(paths, asns, st.integers(0, 600))
def test_prepend_never_overflows_a_segment(parts: list[tuple[int, tuple[int, ...]]], asn: int, times: int) -> None:
    path = join_segments(parts)
    longer = prepend(path, asn, times)
    assert read_as_path(longer, four_octet_as=True) == longer
    assert summarise(longer)[0] == summarise(path)[0] + times
    flat = [n for kind, numbers in segments(longer) for n in numbers]
    assert flat == [asn] * times + [n for kind, numbers in segments(path) for n in numbers]


@pytest.mark.parametrize("held", [254, 255])
def test_prepend_across_the_255_boundary(held: int) -> None:
    """CVE-2025-20115's neighbourhood."""
    path = prepend(b"", 1, held)
    assert [len(numbers) for _, numbers in segments(path)] == [held]
    two = prepend(path, 2, 2)
    assert [len(numbers) for _, numbers in segments(two)] == ([1, 255] if held == 254 else [2, 255])


def test_long_paths_cost_linear_time() -> None:
    """CVE-2026-49943's shape: 16,000 hops."""
    path = prepend(b"", 70000, 16000)
    assert summarise(read_as_path(path, four_octet_as=True))[0] == 16000
    narrow, as4_path = narrow_as_path(path)
    assert merge_as4_path(read_as_path(narrow, four_octet_as=False), as4_path) == path


@given(st.binary(max_size=60), st.booleans(), st.booleans())
def test_any_octets_read_or_raise(value: bytes, wide: bool, confederation_ok: bool) -> None:
    try:
        path = read_as_path(value, four_octet_as=wide, confederation_ok=confederation_ok)
    except AsPathError:
        return
    assert read_as_path(path, four_octet_as=True, confederation_ok=confederation_ok) == path
    assert 0 not in summarise(path)[2]
    format_as_path(path)
