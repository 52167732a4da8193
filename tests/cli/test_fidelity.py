"""The report on types before the first load."""

from __future__ import annotations

import pytest

from dwcli.cli._fidelity import lookalikes, report, step
from dwcli.contract import Column, Resource


@pytest.mark.parametrize(
    ("protocol", "source", "kind", "expected"),
    [
        ("mysql", "int unsigned", "bigint", None),
        ("mysql", "varchar(20)", "text", None),
        ("mysql", "datetime(6)", "timestamptz", "changed has no time zone: read as UTC"),
        ("mysql", "timestamp", "timestamptz", None),
        ("mssql", "datetime2(7)", "timestamptz", "LOSSY nanoseconds are cut to microseconds"),
        ("mssql", "geometry", "text", "changed each value as text"),
        ("oracle", "TIMESTAMP(9) WITH TIME ZONE", "timestamptz", "LOSSY nanoseconds are cut to microseconds"),
        ("postgres", "timestamp without time zone", "timestamp", None),
        ("clickhouse", "DateTime64(9, 'UTC')", "timestamptz", "LOSSY nanoseconds are cut to microseconds"),
        ("clickhouse", "Array(String)", "jsonb", "changed nested values as JSON"),
        ("duckdb", "TIMESTAMP_NS", "timestamptz", "LOSSY nanoseconds are cut to microseconds"),
        ("files", "", "text", None),
    ],
)
def test_each_step_is_judged(protocol: str, source: str, kind: str, expected: str | None):
    found = step(Column("c", kind, source_type=source), protocol, "UTC")
    assert (found and f"{found.mark} {found.words}") == expected


def test_one_line_says_that_all_is_exact():
    columns = (Column("id", "bigint", source_type="INTEGER"), Column("n", "text", source_type="TEXT"))
    assert list(report({"t": Resource("t", columns)}, "sqlite", "UTC")) == [
        "  ok      all 2 columns arrive exactly"
    ]


def test_what_is_not_exact_stands_by_itself():
    columns = (
        Column("id", "bigint", source_type="INTEGER"),
        Column("at", "timestamptz", source_type="DATETIME"),
    )
    assert list(report({"t": Resource("t", columns)}, "sqlite", "Europe/Berlin")) == [
        "  changed at  DATETIME → timestamptz: has no time zone: read as Europe/Berlin",
        "  ok      1 other column arrives exactly",
    ]


def test_dates_and_decimal_commas_of_a_file_are_told_to_stay_text():
    columns = [Column(name, "text") for name in ("Datum", "Betrag", "Kunde")]
    rows = [
        {"Datum": "31/12/2025", "Betrag": "1.234,56", "Kunde": "7,5 GmbH"},
        {"Datum": "1/2/2026", "Betrag": None, "Kunde": None},
    ]
    said = list(lookalikes(Resource("t", kind="file", columns=tuple(columns)), rows))
    assert [sentence.split(" stays text")[0] for sentence in said] == ["Datum", "Betrag"]
    assert said[0].endswith("to_date(datum, 'DD/MM/YYYY')")
    assert said[1].endswith("translate(betrag, ',.', '.')::numeric")
    of_a_table = [Column("day", "text", source_type="varchar(10)")]
    assert not list(lookalikes(Resource("t", columns=tuple(of_a_table)), [{"day": "31/12/2025"}]))
