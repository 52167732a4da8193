"""What a change of the source's schema may do, and what becomes of rows and values that do not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dwcli.contract import Cursor, IngestedItem
from dwcli.events import BatchLoaded, Event
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse import make_engine
from tests.pipeline.runs import Source, batches, rows_of, run
from tests.pipeline.test_replay import again

FIRST = [{"id": 1, "n": 10, "t": "a"}]
NEW_COLUMN = [{"id": 2, "n": 20, "t": "b", "extra": "x"}, {"id": 3, "n": 30, "t": "c", "extra": None}]
NEW_TYPE = [{"id": 2, "n": "20", "t": "b"}, {"id": 3, "n": "N/A", "t": "c"}]
SHOWN = "select id, n, t from t order by id"


@pytest.mark.parametrize("write", ["append", "merge"])
@pytest.mark.parametrize("contract", ["evolve", "freeze", "discard_value", "discard_row"])
@pytest.mark.parametrize("rows", [NEW_COLUMN, NEW_TYPE], ids=["column", "type"])
def test_a_change_under_each_contract(
    warehouse_url: str, warehouse: Any, lake: Path, contract: str, rows: list[Any], write: str
) -> None:
    config: dict[str, Any] = {"contract": contract, "write": write, "key": ("id",)}
    assert run(warehouse_url, lake, batches(FIRST), **config).error is None
    done = run(warehouse_url, lake, batches(rows), **config).result
    added = ["extra"] if contract == "evolve" and rows is NEW_COLUMN else []
    own = ["id", "n", "t", *added]
    columns = rows_of(
        warehouse, "select attname from pg_attribute where attrelid = 't'::regclass and attnum > 0"
    )
    assert [name for (name,) in columns if not name.startswith("_")] == own
    if contract == "freeze":
        assert done["error"]["code"] == "DW-SCHEMA"
        assert rows_of(warehouse, SHOWN) == [(1, 10, "a")]
    elif contract == "evolve":
        assert done["rows_loaded"] == 2
    elif contract == "discard_value":
        expected = [(1, 10, "a"), (2, 20, "b"), (3, 30 if rows is NEW_COLUMN else None, "c")]
        assert rows_of(warehouse, SHOWN) == expected
        assert sum(done["values_changed"].values()) == 1
    else:
        left = (3, 30, "c") if rows is NEW_COLUMN else (2, 20, "b")
        assert rows_of(warehouse, SHOWN) == [(1, 10, "a"), left]
        assert (done["rows_read"], done["rows_loaded"], done["rows_rejected"]) == (2, 1, 1)
        ((number, reason, raw),) = rows_of(warehouse, "select row_number, reason, raw from etl_rejects")
        assert number == (1 if rows is NEW_COLUMN else 2)
        assert reason.startswith("extra: " if rows is NEW_COLUMN else "n: ")
        assert ('"x"' if rows is NEW_COLUMN else '"N/A"') in raw


OVERRIDE: dict[str, Any] = {"columns": {"n": "numeric(5,2)", "at": "date", "t": "varchar(3)"}}
MIXED = [
    {"id": 1, "n": "1.50", "at": "2026-01-31", "t": "abc"},
    {"id": 2, "n": "12345.6", "at": "2026-01-31", "t": "a"},
    {"id": 3, "n": "1.234", "at": None, "t": "a"},
    {"id": 4, "n": "", "at": "2026-02-30", "t": "abcd"},
    {"id": 5, "n": None, "at": "2026-02-28", "t": ""},
]


def test_rows_that_do_not_fit_are_set_aside_up_to_max_rejects(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    few = run(warehouse_url, lake, batches(MIXED), max_rejects=2, **OVERRIDE).result
    assert (few["status"], few["error"]["code"]) == ("failure", "DW-VALUE")
    assert "row 2 of" in few["error"]["message"]
    assert rows_of(warehouse, "select to_regclass('t'), to_regclass('etl_rejects')") == [(None, None)]

    done = run(warehouse_url, lake, batches(MIXED), max_rejects=3, **OVERRIDE).result
    assert (done["rows_loaded"], done["rows_rejected"]) == (2, 3)
    assert rows_of(warehouse, "select id, n::text, at::text, t from t order by id") == [
        (1, "1.50", "2026-01-31", "abc"),
        (5, None, "2026-02-28", ""),
    ]
    rejects = rows_of(warehouse, "select row_number, reason from etl_rejects order by 1")
    assert [number for number, _ in rejects] == [2, 3, 4]
    assert rejects[2][1].count("it holds a value that is no") == 3
    assert rows_of(warehouse, "select rows_rejected from etl_audit_log order by id") == [(0,), (3,)]

    again(warehouse_url, lake, max_rejects=3, **OVERRIDE)
    assert rows_of(warehouse, "select row_number, reason from etl_rejects order by 1") == rejects


def test_without_max_rejects_a_value_that_does_not_fit_fails_the_run(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    done = run(warehouse_url, lake, batches(MIXED), **OVERRIDE).result
    assert done["error"]["code"] == "DW-VALUE"
    assert rows_of(warehouse, "select to_regclass('t')") == [(None,)]


ROUNDED: dict[str, Any] = {"columns": {"d": "numeric(10,2)", "f": "numeric(10,2)", "t": "numeric(10,2)"}}
ROUNDING = [
    {"id": 1, "d": Decimal("1.2345"), "f": 1.5, "t": "1.25"},
    {"id": 2, "d": Decimal("1.2300"), "f": 0.125, "t": "1.255"},
    {"id": 3, "d": None, "f": None, "t": None},
    {"id": 4, "d": Decimal("-0.0050"), "f": 0.1, "t": "-7e-3"},
]


@pytest.mark.parametrize("write", ["append", "merge"])
def test_what_a_narrower_type_rounds_is_counted(
    warehouse_url: str, warehouse: Any, lake: Path, write: str
) -> None:
    config: dict[str, Any] = {"write": write, "key": ("id",)}
    exact = [{"id": 0, "d": Decimal("1.2000"), "f": 0.25, "t": "1"}]
    assert run(warehouse_url, lake, batches(exact), **config, **ROUNDED).result["values_changed"] == {}
    # the table is there now, so a merge waits in a table of its own, whose columns are as narrow
    done = run(warehouse_url, lake, batches(ROUNDING, ROUNDING[:0]), **config, **ROUNDED).result
    counted = {
        "d: rounded to numeric(10,2)": 2,
        "f: rounded to numeric(10,2)": 1,
        "t: rounded to numeric(10,2)": 2,
    }
    assert (done["status"], done["values_changed"]) == ("success", counted)
    assert rows_of(warehouse, "select values_changed from etl_audit_log order by id")[1] == (counted,)
    assert rows_of(warehouse, "select d::text, f::text, t::text from t where id > 0 order by id") == [
        ("1.23", "1.50", "1.25"),
        ("1.23", "0.13", "1.26"),
        (None, None, None),
        ("-0.01", "0.10", "-0.01"),
    ]


def test_decimals_alone_are_counted_on_the_short_way(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    rows = [{"d": Decimal(f"{n}.{n:04}")} for n in range(200)]
    done = run(warehouse_url, lake, batches(rows[:100], rows[100:]), columns={"d": "numeric(8,2)"}).result
    assert done["values_changed"] == {"d: rounded to numeric(8,2)": 198}
    assert rows_of(warehouse, "select sum(d) from t") == [(Decimal("19902.00"),)]


def test_other_casts_that_change_values_are_counted_and_those_that_do_not_are_let_be(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    rows = [
        {
            "whole": 1.5,
            "short": 12345,
            "padded": "abcd",
            "single": 0.1,
            "double": Decimal("0.1"),
            "flag": True,
        },
        {
            "whole": 2.0,
            "short": 12,
            "padded": "ab",
            "single": math.inf,
            "double": Decimal("1e-20"),
            "flag": False,
        },
        {"whole": 3.0, "short": None, "padded": "abc ", "single": 1 / 3, "double": None, "flag": None},
    ]
    columns = {
        "whole": "bigint",
        "short": "varchar(3)",
        "padded": "char(3)",
        "single": "real",
        "double": "double precision",
        "flag": "integer",
    }
    done = run(warehouse_url, lake, batches(rows), columns=columns).result
    assert done["values_changed"] == {
        "whole: rounded to bigint": 1,
        "short: cut to varchar(3)": 1,
        "padded: cut to char(3)": 1,
        "single: rounded to real": 1,
    }


def test_a_value_that_looks_like_our_own_placeholder_is_a_value(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    rows = [{"t": "<type>"}, {"t": "<value>"}, {"t": "<type> too long"}]
    config: dict[str, Any] = {"columns": {"t": "varchar(7)"}, "max_rejects": 1}
    assert run(warehouse_url, lake, batches(rows), **config).result["rows_rejected"] == 1
    assert rows_of(warehouse, "select t from t order by t") == [("<type>",), ("<value>",)]


def test_rejects_are_counted_over_batches(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    parts = batches(MIXED[:2], MIXED[2:])
    done = run(warehouse_url, lake, parts, max_rejects=10, **OVERRIDE).result
    assert done["rows_rejected"] == 3
    files = rows_of(warehouse, "select count(distinct source_file), max(row_number) from etl_rejects")
    assert files == [(2, 2)]


def test_a_column_that_comes_late_shuts_no_reader_out(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    """Rows that are in the table already stay there; those with the new column wait for the end."""

    def late(cursor: Cursor) -> Iterator[IngestedItem]:
        yield IngestedItem(payload=[{"id": 1}, {"id": 2}])
        yield IngestedItem(payload=[{"id": 3, "more": "x"}])
        yield IngestedItem(payload=[{"id": 4, "more": "y"}, {"id": 5.5, "more": None}])

    assert run(warehouse_url, lake, batches([{"id": 0}]), write="replace").error is None
    seen: list[Any] = []

    def look(event: Event) -> None:
        if isinstance(event, BatchLoaded):
            seen.append(warehouse.execute("select array_agg(id) from t").fetchone())

    warehouse.execute("set lock_timeout = '2s'")
    connector = Source(late).connector
    job = Job("s.p", "s", "s.p", connector, "q", "public", "t", lake, write="replace")
    engine = make_engine(warehouse_url)
    try:
        result, error = attempt(job, engine, RunOptions(allow_shrink=True), look)
    finally:
        engine.dispose()
    assert (error, seen) == (None, [([0],)] * 3)
    assert result["rows_inserted"] == 5
    found = rows_of(warehouse, "select id::text, more from t where _run_id is not null order by id")
    assert found == [("1", None), ("2", None), ("3", "x"), ("4", "y"), ("5.5", None)]
