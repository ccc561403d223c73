"""Columns that fit, durations as routers write them, nothing a terminal would act on."""

from __future__ import annotations

import pytest

from routed.cli.tables import SAMPLE, duration, facts, table


def test_columns_align() -> None:
    assert list(table(("Name", "AS"), [("tor", 65001), ("a-long-name", 1), (None, "")], right=frozenset({"AS"}))) == [
        "Name            AS",
        "tor          65001",
        "a-long-name      1",
        "-                -",
    ]


def test_the_last_column_is_cut_to_fit() -> None:
    lines = list(table(("A", "Reason"), [("x", "y" * 100)], width=40))
    assert lines[1] == "x  " + "y" * 36 + "…"
    assert all(len(line) <= 40 for line in lines)


def test_columns_that_may_shrink_do_so_before_the_last_is_cut() -> None:
    rows = [("10.0.0.0/8", "65001 " * 10, "why " * 20, "x")]
    _, line = table(("Prefix", "AS path", "Why", "Z"), rows, width=60, shrink={"AS path": 8, "Why": 8})
    assert len(line) == 60
    assert line.startswith("10.0.0.0/8  65001 65001 65001") and line.endswith("…  x")
    assert line.count("…") == 2
    _, line = table(("Prefix", "AS path"), [("10.0.0.0/8" * 5, "65001 " * 10)], width=40, shrink={"AS path": 8})
    assert len(line) == 40


def test_columns_are_left_out_before_what_matters_is_cut() -> None:
    headings = ("Prefix", "Route", "From", "Pref", "Kernel")
    rows = [("fd00:50::/64", "via fd00::254 dev eth0", "Global_fd00__254", 100, "installed")]

    def lines(width: int) -> list[str]:
        return list(table(headings, rows, width=width, shrink={"From": 8, "Route": 24}, spare=("Pref", "From")))

    assert lines(80)[1] == "fd00:50::/64  via fd00::254 dev eth0  Global_fd00__254  100   installed"
    assert lines(66)[1] == "fd00:50::/64  via fd00::254 dev eth0  Global_fd0…  100   installed"
    assert lines(60)[1] == "fd00:50::/64  via fd00::254 dev eth0  Global_fd0…  installed"
    assert lines(60)[2] == "(no room for Pref; a wider terminal or --json has them)"
    assert lines(50)[:2] == [
        "Prefix        Route                   Kernel",
        "fd00:50::/64  via fd00::254 dev eth0  installed",
    ]
    assert lines(40)[1] == "fd00:50::/64  via fd00::254 dev eth0  i…"


def test_a_long_key_has_a_line_of_its_own_where_there_is_no_room() -> None:
    headings = ("Neighbor", "AS", "State/PfxRcd", "PfxSnt", "Desc")
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    rows = [("fd00::2", 64512, 3, 4, "Mesh_fd00__2"), (address, 4200000001, "Idle", None, "Node_x: no route to host")]

    def lines(width: int) -> list[str]:
        return list(table(headings, rows, right=frozenset({"AS"}), width=width, shrink={"Desc": 8}, key="Neighbor"))

    assert lines(100)[2].startswith(f"{address}  4200000001  Idle")
    assert lines(70) == [
        "Neighbor          AS  State/PfxRcd  PfxSnt  Desc",
        "fd00::2        64512  3             4       Mesh_fd00__2",
        address,
        "          4200000001  Idle          -       Node_x: no route to host",
    ]


def test_long_tables_stream() -> None:
    seen = 0

    def rows() -> object:
        nonlocal seen
        while True:
            seen += 1
            yield (seen,)

    lines = table(("N",), rows())  # type: ignore[arg-type]
    assert [next(lines) for _ in range(SAMPLE + 10)][-1] == str(SAMPLE + 9)
    assert seen <= SAMPLE + 10


def test_cells_and_facts_are_harmless() -> None:
    assert list(table(("A",), [("\x1b[31m\n",)]))[1] == "\\x1b[31m\\x0a"
    assert list(facts([("one", "a\nb"), ("three", 3), ("none", None), ("empty", "")])) == ["one:   a\\x0ab", "three: 3"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00:00"),
        (59.9, "00:00:59"),
        (3723, "01:02:03"),
        (86399, "23:59:59"),
        (86400, "1d00h00m"),
        (400 * 86400 + 3 * 3600 + 120, "400d03h02m"),
        (-5, "00:00:00"),
        (None, ""),
        ("x", ""),
    ],
)
def test_durations(seconds: object, text: str) -> None:
    assert duration(seconds) == text
