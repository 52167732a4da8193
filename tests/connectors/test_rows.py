"""Rows into bounded batches, and the SQL that asks for them."""

from __future__ import annotations

import datetime
from decimal import Decimal
from uuid import UUID

import polars as pl
import pytest

from dwcli.connectors._rows import RowColumn, as_text, fill_values, items, localized, typed
from dwcli.connectors._sqltext import Dialect, bounded, find_table, is_select, name_parts, quoted, spelled


def reader(rows):
    """What a cursor's `fetchmany` is."""
    left = list(rows)

    def fetch(count):
        taken, left[:] = left[:count], left[count:]
        return taken

    return fetch


@pytest.mark.parametrize(
    ("values", "wanted", "type", "expected"),
    [
        ([2**63 - 1, None], "bigint", "bigint", [2**63 - 1, None]),
        ([2**63], "bigint", "numeric", [str(2**63)]),
        ([2**64 - 1], "numeric(20,0)", "numeric(20,0)", [str(2**64 - 1)]),
        ([Decimal("1.25"), None], "numeric(5,2)", "numeric(5,2)", [Decimal("1.25"), None]),
        ([Decimal("1.255")], "numeric(5,2)", "numeric(5,2)", ["1.255"]),
        ([Decimal("1E+3")], "numeric", "numeric", ["1000"]),
        ([Decimal("NaN"), Decimal("-Infinity")], "numeric", "numeric", ["NaN", "-Infinity"]),
        ([Decimal("1E+300")], "", "numeric", ["1" + "0" * 300]),
        ([1, 0.5], "double precision", "double precision", [1.0, 0.5]),
        ([2**53 + 1, 0.5], "double precision", "numeric", [str(2**53 + 1), "0.5"]),
        ([True, None], "", "boolean", [True, None]),
        ([True, 2], "bigint", "text", ["true", "2"]),
        ([UUID(int=1)], "", "uuid", ["00000000-0000-0000-0000-000000000001"]),
        ([{"a": 10**20}], "", "jsonb", ['{"a": 100000000000000000000}']),
        ([[1, None]], "", "jsonb", ["[1, null]"]),
        ([datetime.timedelta(hours=-30, microseconds=1)], "", "interval", ["-29:59:59.999999"]),
        ([datetime.time(1, 2)], "", "time", ["01:02:00"]),
        ([datetime.date(2024, 1, 1)], "", "date", [datetime.date(2024, 1, 1)]),
        ([bytearray(b"\x00"), memoryview(b"\xff")], "", "bytea", [b"\x00", b"\xff"]),
        ([], "numeric(5,2)", "numeric(5,2)", []),
    ],
)
def test_python_values_keep_their_type_or_widen_it(values, wanted, type, expected):
    filled = fill_values(values, wanted)
    assert (filled.type, filled.series.to_list()) == (type, expected)


def test_a_column_without_a_name_keeps_it():
    columns = [RowColumn("", typed("bigint")), RowColumn("column_0", typed("text"))]
    (item,) = items(reader([(1, "a")]), columns, 10**6)
    assert item.payload.to_dicts() == [{"": 1, "column_0": "a"}]
    assert item.types == {"": "bigint", "column_0": "text"}
    (item,) = items(reader([]), columns, 10**6)
    assert item.payload.columns == ["", "column_0"]


def test_naive_and_aware_times_become_the_same_instant():
    berlin = datetime.timezone(datetime.timedelta(hours=1))
    naive = datetime.datetime(2024, 1, 1, 12)
    filled = fill_values([naive, naive.replace(tzinfo=berlin), None], "timestamptz", "Europe/Berlin")
    assert filled.series.to_list() == [datetime.datetime(2024, 1, 1, 11, tzinfo=datetime.UTC)] * 2 + [None]


def test_hours_that_a_clock_skips_or_has_twice_are_read_as_postgresql_reads_them():
    local = pl.Series([datetime.datetime(2024, 3, 10, 2, 30), datetime.datetime(2024, 11, 3, 1, 30), None])
    times, changed = localized(local, "America/New_York")
    assert [t and t.hour for t in times] == [7, 6, None] and list(changed.values()) == [1, 1]


def test_a_day_that_a_zone_skipped_is_not_lost():
    times, changed = localized(pl.Series([datetime.datetime(2011, 12, 30, 12)]), "Pacific/Apia")
    assert times.null_count() == 0 and sum(changed.values()) == 1


def test_items_are_about_as_large_as_asked_and_lose_no_row():
    rows = [(i, "x" * (10 if i < 900 else 20_000)) for i in range(1500)]
    columns = [RowColumn("i", typed("bigint")), RowColumn("tx", typed("text"))]
    batches = list(items(reader(rows), columns, 200_000))
    assert [row for batch in batches for row in batch.payload.rows()] == rows
    assert max(batch.payload.estimated_size() for batch in batches) <= 400_000


def test_a_wider_type_begins_a_new_item_and_stays():
    rows = [(i,) for i in range(3000)] + [(1.5,)] + [(i,) for i in range(3000)]
    batches = list(items(reader(rows), [RowColumn("n", typed())], 10**6))
    assert [batch.types["n"] for batch in batches] == ["bigint", "numeric"]
    assert [Decimal(v) for batch in batches for v in batch.payload["n"]] == [Decimal(str(n)) for (n,) in rows]


def test_no_row_gives_one_empty_item_with_types():
    (item,) = items(reader([]), [RowColumn("a", typed("numeric(5,2)")), RowColumn("b", typed())], 10**6)
    assert item.payload.schema == {"a": pl.Decimal(5, 2), "b": pl.Null} and item.types == {
        "a": "numeric(5,2)"
    }


def test_text_forms_are_those_that_postgresql_reads():
    aware = datetime.datetime(2024, 1, 1, 0, 0, 0, 1, datetime.UTC)
    assert as_text(aware) == "2024-01-01 00:00:00.000001+00:00"
    assert [as_text(v) for v in (0.1, float("nan"), float("-inf"), True, b"\x01")] == [
        "0.1", "NaN", "-Infinity", "true", "\\x01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select 1", True),
        ("-- note\n/* more */ (WITH x AS (SELECT 1) SELECT * FROM x)", True),
        ("VALUES(1)", True),
        ("selection", False),
        ("from_here", False),
        ("orders", False),
        ('"select x"', False),
    ],
)
def test_queries_are_told_from_names(query, expected):
    assert is_select(query) is expected


@pytest.mark.parametrize("parts", [("a",), ("s", "t"), ("a.b", 'c"d'), ("select x",), (" ", "")])
def test_names_are_read_back_as_they_were_spelled(parts):
    assert name_parts(spelled(parts, Dialect()), Dialect()) == parts


def test_names_are_quoted_by_doubling():
    assert quoted('a"b', Dialect()) == '"a""b"' and quoted("a`b", Dialect("`")) == "`a``b`"


def test_a_name_with_a_dot_is_found_before_a_schema():
    known = [("main", "a.b"), ("a", "b"), ("main", "Orders")]
    assert find_table("a.b", known, "main", Dialect()) == ("main", "a.b")
    assert find_table('"a"."b"', known, "main", Dialect()) == ("a", "b")
    assert find_table("orders", known, "main", Dialect()) == ("main", "Orders")
    assert find_table("nope", known, "main", Dialect()) is None


def test_bounds_are_parameters_and_null_is_read():
    sql, parameters = bounded(['"c"'], "t", '"c"', 1, 5)
    assert sql == 'SELECT "c" FROM t WHERE ("c" >= ? AND "c" < ?) OR "c" IS NULL' and parameters == [1, 5]
    assert bounded(["*"], "t", "c", 1, None, null_sql="")[0] == "SELECT * FROM t WHERE (c >= ?)"
    assert bounded(["*"], "t", "", None, None) == ("SELECT * FROM t", [])
