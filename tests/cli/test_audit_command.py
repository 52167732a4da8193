"""`dw audit RUN` in full, and `dw audit --chart`."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from io import StringIO

import pytest

from dwcli.render.words import width
from tests.cli.test_look_commands import insert_run, on_screen, past

__all__ = ["past"]  # a fixture


def rows_of(text):
    return list(csv.DictReader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def detail(dw, shop, run_id):
    done = dw("audit", run_id, "--json", cwd=shop)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_in_full(dw, shop):
    run_id = json.loads(dw("run", "orders", cwd=shop).stdout)["run_id"]
    found = detail(dw, shop, run_id)
    (file,) = found["files"]
    (parquet,) = (shop / "lake").rglob("*.parquet")
    assert file == {"name": parquet.name, "rows": 100, "bytes": parquet.stat().st_size, "there": True}
    assert found["ddl"][0]["table"] == "public.orders"
    assert found["ddl"][0]["ddl"].startswith('create table "public"."orders"')
    assert found["rejects"] == {"rows": 0, "reasons": [], "first": []}
    assert found["log"] == str(shop / ".dw" / "logs" / f"{run_id}.log")
    assert found["config_before"] is None
    parquet.unlink()
    assert detail(dw, shop, run_id)["files_remark"] == "not all of its files are in the lake"
    next((shop / "lake").rglob("*.manifest.json")).unlink()
    assert detail(dw, shop, run_id)["files_remark"] == "no longer in the lake"


def test_a_snapshot_that_was_loaded_late_is_found(dw, shop):
    """The row of a run that was killed before its COMMIT does not name its snapshot; the receipt does."""
    dw("run", "orders", cwd=shop, DW_TEST_CRASH_AT="commit")
    healed = json.loads(dw("run", "orders", cwd=shop).stdout)["healed_runs"]
    assert [file["rows"] for file in detail(dw, shop, healed[0])["files"]] == [100]


def test_rows_set_aside_and_a_changed_configuration_are_told(dw, shop, terminal):
    with closing(sqlite3.connect(shop / "shop.db")) as connection, connection:
        connection.executescript(
            "CREATE TABLE marks (id INTEGER, mark TEXT);"
            "INSERT INTO marks VALUES (1, '10'), (2, 'ten'), (3, '30'), (4, 'x');"
        )
    source = shop / "sources" / "shop.yaml"
    before = source.read_text("utf-8")
    source.write_text(before + '  marks: {columns: {mark: "bigint"}}\n', "utf-8")
    assert dw("run", "marks", cwd=shop).returncode == 1
    source.write_text(before + '  marks: {columns: {mark: "bigint"}, max_rejects: 5}\n', "utf-8")
    run_id = json.loads(dw("run", "marks", cwd=shop).stdout)["run_id"]
    found = detail(dw, shop, run_id)
    assert found["rejects"]["rows"] == 2
    assert found["rejects"]["reasons"] == [{"reason": "mark: it holds a value that is no bigint", "rows": 2}]
    assert [entry["row_number"] for entry in found["rejects"]["first"]] == [2, 4]
    assert found["config_before"]["config_hash"] != found["config_hash"]
    lines = on_screen(terminal("audit", run_id, "--no-color", width=160))
    assert any("2 rows in etl_rejects" in line for line in lines)
    assert any("not as in the run before" in line for line in lines)
    assert lines[-1] == f"Next: dw logs {run_id[:8]}"


def test_in_a_pipe_lists_are_json(dw, shop):
    dw("run", "orders", cwd=shop)
    run_id = rows_of(dw("audit", cwd=shop).stdout)[0]["RUN"]
    told = dict(line.split("\t", 1) for line in dw("audit", run_id, cwd=shop).stdout.splitlines())
    assert set(json.loads(told["seconds"])) == {"extract", "stage", "load"}
    assert json.loads(told["files"])[0]["rows"] == 100


# -- drawn ---------------------------------------------------------------------------------------------


def test_the_series_of_each_pipeline_oldest_first(dw, past):
    found = json.loads(dw("audit", "--chart", "--json", cwd=past).stdout)
    told = {
        entry["pipeline_name"]: [(run["rows"], run["seconds"]) for run in entry["runs"]] for entry in found
    }
    assert told == {
        "broken.missing": [(None, 3.0)],
        "shop.customers": [(2, 3.0)],
        "shop.orders": [(1204551, 3.0), (0, 3.0)],
    }
    rows = rows_of(dw("audit", "--chart", "--pipeline", "orders", "--last", "1", cwd=past).stdout)
    assert [(row["PIPELINE"], row["ROWS"], row["STATUS"]) for row in rows] == [
        ("shop.orders", "0", "success")
    ]
    assert json.loads(dw("audit", "--chart", "--json", "--pipeline", "nosuch", cwd=past).stdout) == []


@pytest.mark.parametrize("words", [("shop",), ("--failed",)])
def test_a_chart_is_of_all_runs(dw, past, words):
    done = dw("audit", "--chart", *words, cwd=past)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_charts_fit_the_screen(terminal, past, warehouse, columns):
    for number in range(60):
        insert_run(warehouse, "shop.orders", "failure" if number == 7 else "success", 300 + number, number)
    lines = on_screen(terminal("audit", "--chart", "--pipeline", "orders", "--no-color", width=columns))
    assert max(width(line) for line in lines) <= columns
    assert any(line.startswith("  1.2M │") for line in lines)
    assert "x" in next(line for line in lines if line.startswith("     0 │"))
    small = on_screen(terminal("audit", "--chart", "--no-color", width=columns))
    assert any(line.startswith("shop.orders") and "█" in line for line in small)
    assert max(width(line) for line in small) <= columns


def test_bars_stand_in_their_places():
    from datetime import UTC, datetime

    from rich.console import Console

    from dwcli.render.charts import Point, chart

    at = datetime(2026, 11, 27, tzinfo=UTC)
    values = (12, 1, 0, None, 6)
    points = [
        Point(str(n), at, "failure" if rows is None else "success", rows, 1.0)
        for n, rows in enumerate(values)
    ]
    console = Console(width=25)
    with console.capture() as captured:
        console.print(chart("shop.orders", points, 25, ascii_only=True))
    drawn = [line.rstrip() for line in captured.get().splitlines()]
    assert drawn[:9] == [
        "shop.orders  5 runs, 1",
        "failed",
        "rows: at most 12, median",
        "4,",
        "last 6",
        "    12 |##",
        "       |##",
        "       |##",
        "       |##          ##",
    ]
    assert drawn[10] == "     0 |## ##    x  ##"


def test_a_screen_that_is_not_utf8_gets_ascii(terminal, environment, past):
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    lines = on_screen(terminal("audit", "--chart", "--pipeline", "orders", "--no-color"))
    assert all(line.isascii() for line in lines)
    assert any("|#" in line for line in lines)
