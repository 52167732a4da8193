"""Rows as a table that fits the screen, or as tab-separated text."""

from __future__ import annotations

from datetime import UTC, datetime

from dwcli.render.tables import Column, Said, cell, fields, table, tsv
from dwcli.render.words import width

COLUMNS = (
    Column("RUN"),
    Column("NAME"),
    Column("ROWS", right=True, optional=1),
    Column("NOTE", optional=2, folds=True),
)
LONG = "a remark that is longer than the narrow screens are and so goes on in the next line"
ROWS = (
    ("7f3b0a1c-9d7e-4b11-8a55-0123456789ab", "größe_日本語", 1204551, LONG),
    ("x", "[red]x[/] \x1b[31m", None, "tab\there"),
)


def test_a_wide_screen_shows_every_column(screen):
    assert screen(table(COLUMNS, ROWS, 160), 160) == [
        "RUN                                   NAME                     ROWS  NOTE",
        f"7f3b0a1c-9d7e-4b11-8a55-0123456789ab  größe_日本語        1,204,551  {LONG}",
        "x                                     [red]x[/] \\x1b[31m          -  tab\\there",
    ]


def test_long_text_folds_before_columns_go(screen):
    lines = screen(table(COLUMNS, ROWS, 100), 100)
    assert lines[:3] == [
        "RUN                                   NAME                     ROWS  NOTE",
        "7f3b0a1c-9d7e-4b11-8a55-0123456789ab  größe_日本語        1,204,551  a remark that is longer than",
        "                                                                     the narrow screens are and so",
    ]
    assert all(width(line) <= 100 for line in lines)


def test_optional_columns_go_when_the_screen_is_narrow(screen):
    lines = screen(table(COLUMNS, ROWS, 80), 80)
    assert lines == [
        "RUN                                   NAME                     ROWS",
        "7f3b0a1c-9d7e-4b11-8a55-0123456789ab  größe_日本語        1,204,551",
        "x                                     [red]x[/] \\x1b[31m          -",
    ]


def test_a_screen_too_narrow_for_columns_shows_a_line_per_field_and_cuts_nothing(screen):
    lines = screen(table(COLUMNS, ROWS, 40), 40)
    assert lines[:2] == ["RUN", "  7f3b0a1c-9d7e-4b11-8a55-0123456789ab"]
    assert "NAME  größe_日本語" in lines
    assert "ROWS  1,204,551" in lines
    assert "".join(lines).replace(" ", "").count(LONG.replace(" ", "")) == 1
    assert all(width(line) <= 40 for line in lines)


def test_a_table_without_rows_still_has_its_header(screen):
    assert screen(table(COLUMNS, (), 80), 80) == ["RUN  NAME  ROWS  NOTE"]


def test_screens_and_pipes_say_a_value_their_own_way():
    moment = datetime(2026, 11, 22, 21, 48, tzinfo=UTC)
    row = [1204551, None, True, moment, Said("7f3b0a1c-9d7e", "7f3b"), "a\tb\\c\nd"]
    assert [cell(value).plain for value in row[:3]] == ["1,204,551", "-", "true"]
    assert cell(row[4]).plain == "7f3b"
    lines = list(tsv([Column(f"c{n}") for n in range(6)], [row]))
    assert lines[1] == "1204551\t\ttrue\t2026-11-22T21:48:00Z\t7f3b0a1c-9d7e\ta\\tb\\\\c\\nd\n"


def test_one_thing_in_detail_leaves_out_what_is_not_known(screen):
    view = fields([("run", "7f3b"), ("error", None), ("note", LONG)], 40)
    assert screen(view, 40) == [
        "run   7f3b",
        "note  a remark that is longer than the",
        "      narrow screens are and so goes on",
        "      in the next line",
    ]


def test_a_name_as_wide_as_the_screen_stands_above_its_value_whole(screen):
    long = "東京" * 30
    shown = screen(table([Column("id"), Column(long)], [["7", "42"]], 80), 80)
    assert shown[0].split() == ["id", "7"]
    assert "".join(line.strip() for line in shown[1:-1]) == long and shown[-1].strip() == "42"
