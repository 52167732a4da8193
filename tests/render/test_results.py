"""The answer to a query, written exactly in every format."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from io import StringIO
from pathlib import Path

import polars as pl
import pytest

from dwcli.errors import WarehouseError
from dwcli.render.results import (
    ResultColumn,
    csv_lines,
    excerpt,
    json_lines,
    json_value,
    result_table,
    tsv_lines,
    unique_names,
    write_parquet,
)

TEXT, TEXTS, NUMERICS = 25, 1009, 1231
COLUMNS = [ResultColumn("id", 20), ResultColumn("größe", TEXT), ResultColumn("amount", 1700)]
ROWS = [
    ("9007199254740993", 'a,"b"\n\\c\t\x1b', "1.10"),
    ("2", "", None),
    ("3", None, "NaN"),
    ("4", " [red] ", "123456789012345678901234567890.5"),
]


def test_csv_tells_null_from_empty_text_and_reads_back():
    text = "".join(csv_lines(COLUMNS, ROWS))
    assert text.splitlines()[3] == '2,"",'
    assert text.splitlines()[4] == "3,,NaN"
    read = list(csv.reader(StringIO(text, newline="")))
    assert read[1] == ["9007199254740993", 'a,"b"\n\\c\t\x1b', "1.10"]
    assert read[4][1] == " [red] "


def test_tsv_is_postgresqls_copy_text():
    assert list(tsv_lines(COLUMNS, ROWS))[1:4] == [
        '9007199254740993\ta,"b"\\n\\\\c\\t\x1b\t1.10\n',
        "2\t\t\\N\n",
        "3\t\\N\tNaN\n",
    ]


def test_json_keeps_every_digit():
    text = "".join(json_lines(COLUMNS, ROWS))
    read = json.loads(text, parse_float=Decimal)
    assert read[0] == {"id": 9007199254740993, "größe": 'a,"b"\n\\c\t\x1b', "amount": Decimal("1.10")}
    assert read[2] == {"id": 3, "größe": None, "amount": "NaN"}
    assert read[3]["amount"] == Decimal("123456789012345678901234567890.5")
    assert json.loads("".join(json_lines(COLUMNS, []))) == []


@pytest.mark.parametrize(
    ("text", "element", "value"),
    [
        ("{}", 25, []),
        ('{1,NULL,"NULL",""}', 25, ["1", None, "NULL", ""]),
        ('{{"a,\\"b","\\\\"},{"]","[, x"}}', 25, [['a,"b', "\\"], ["]", "[, x"]]),
        ("[0:1]={1.50,2}", 1700, [Decimal("1.50"), 2]),
        ("{t,f}", 16, [True, False]),
    ],
)
def test_arrays_become_json_arrays(text, element, value):
    said = json_value(text, ResultColumn("a", TEXTS, element))
    assert json.loads(said, parse_float=Decimal) == value


def test_moments_and_documents_have_their_json_form():
    assert json_value("2026-01-01 08:00:00.5+00", ResultColumn("t", 1184)) == '"2026-01-01T08:00:00.5Z"'
    assert json_value("infinity", ResultColumn("t", 1184)) == '"infinity"'
    assert json_value('{"k": 1.0}', ResultColumn("j", 3802)) == '{"k": 1.0}'


def test_a_column_name_that_stands_twice_loses_nothing():
    again = [ResultColumn(name, 20) for name in ("a", "a", "a_2", "a")]
    assert unique_names(again) == ["a", "a_2", "a_2_2", "a_3"]


def test_parquet_has_typed_columns(tmp_path: Path):
    columns = [
        ResultColumn("id", 20),
        ResultColumn("amount", 1700, digits=(12, 2)),
        ResultColumn("free", 1700),
        ResultColumn("at", 1184),
        ResultColumn("raw", 17),
        ResultColumn("ok", 16),
    ]
    rows = [("1", "1.10", "1.123456789", "2026-01-01 08:00:00.5+00", "\\x00ff", "t"), (None,) * 6]
    write_parquet(columns, iter(rows), tmp_path / "a.parquet", 1)
    frame = pl.read_parquet(tmp_path / "a.parquet")
    assert frame.schema["amount"] == pl.Decimal(12, 2)
    first = frame.row(0, named=True)
    assert (first["id"], first["amount"], first["free"]) == (1, Decimal("1.10"), "1.123456789")
    assert (first["at"].isoformat(), first["raw"], first["ok"]) == (
        "2026-01-01T08:00:00.500000+00:00",
        b"\x00\xff",
        True,
    )
    assert frame.row(1) == (None,) * 6


def test_a_value_that_parquet_cannot_hold_is_refused_without_showing_it(tmp_path: Path):
    with pytest.raises(WarehouseError, match="'at' does not fit") as caught:
        write_parquet([ResultColumn("at", 1184)], [("infinity",)], tmp_path / "a.parquet", 10)
    assert caught.value.hint == 'select it as text: "at"::text'


def test_a_table_shows_null_as_null_and_data_as_it_is(screen):
    assert screen(result_table(COLUMNS[:2], ROWS[:3], 80), 80) == [
        "              id  größe",
        '9007199254740993  a,"b"\\n\\c\\t\\x1b',
        "               2",
        "               3  NULL",
    ]


def test_an_error_in_sql_is_marked_where_it_is():
    sql = "select\n\t'日本', nope\nfrom t"
    assert excerpt(sql, sql.index("nope") + 1).splitlines() == ["line 2:  '日本', nope", " " * 17 + "^"]
    long = "select " + "a, " * 100 + "nope from t"
    line, caret = excerpt(long, long.index("nope") + 1, 40).splitlines()
    assert line[caret.index("^") :].startswith("nope")
