"""`dw run --dry-run`: what it tells is what a run then does, and nothing is changed by telling it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from dwcli.pipeline.lock import take_lock
from dwcli.warehouse import connect
from tests.audit_log import rewrite
from tests.cli.loaded import SOURCES


def plan(dw, shop, *words, code=0):
    done = dw("run", *words, "--dry-run", "--json", cwd=shop)
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def change_source(shop: Path, *statements: str) -> None:
    with closing(sqlite3.connect(shop / "shop.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def configure(shop: Path, orders: str) -> None:
    text = SOURCES.format(database=shop / "shop.db")
    old = "query: orders, write: merge, key: [id], cursor: updated_at, every: 1h"
    assert old in text
    (shop / "sources" / "shop.yaml").write_text(text.replace(old, orders), "utf-8")


def everything(shop: Path, warehouse: psycopg.Connection) -> tuple[object, ...]:
    """Files and tables as they are, whatever they hold."""
    files = {
        str(path.relative_to(shop)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(shop.rglob("*"))
        if path.is_file()
    }
    tables = warehouse.execute(
        "select relname, relkind, oid from pg_class where relnamespace = 'public'::regnamespace order by oid"
    ).fetchall()
    rows = [
        warehouse.execute(f'select t::text from "{name}" t order by 1').fetchall()
        for name, kind, _ in tables
        if kind == "r"
    ]
    locks = warehouse.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone()
    return files, tables, rows, locks


def columns_of(warehouse: psycopg.Connection, table: str) -> dict[str, str]:
    spelled = {"timestamp with time zone": "timestamptz"}
    return {
        name: spelled.get(kind, kind)
        for name, kind in warehouse.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = %s::regclass and attnum > 0",
            (table,),
        ).fetchall()
    }


def test_nothing_is_changed_not_even_in_an_empty_warehouse(dw, shop, warehouse):
    before = everything(shop, warehouse)
    told = plan(dw, shop, "--all", code=1)
    assert [one["ok"] for one in told["plans"]] == [False, True, True]
    assert everything(shop, warehouse) == before

    dw("run", "--all", cwd=shop)
    before = everything(shop, warehouse)
    plan(dw, shop, "shop")
    plan(dw, shop, "shop", "--full-refresh")
    assert everything(shop, warehouse) == before


def test_a_new_table_has_the_columns_that_were_told(dw, shop, warehouse):
    told = plan(dw, shop, "orders")
    assert told["ok"] and told["schema"]["new_table"] and told["reading"]["everything"]
    assert told["reading"]["rows_estimate"] == 100
    assert told["cost"]["seconds_estimate"] is None
    assert json.loads(dw("run", "orders", cwd=shop).stdout)["rows_read"] == 100
    assert {one["name"]: one["type"] for one in told["schema"]["columns"]} == columns_of(warehouse, "orders")


def test_new_and_wider_columns_are_told_as_they_come(dw, shop, warehouse):
    dw("run", "customers", cwd=shop)
    before = columns_of(warehouse, "customers")
    assert plan(dw, shop, "customers")["schema"]["columns"] == []
    change_source(
        shop,
        "drop table customers",
        "create table customers (id text primary key not null, city text)",
        "insert into customers values ('one', 'Linz')",
    )
    told = plan(dw, shop, "customers")
    assert told["schema"]["columns"] == [
        {"name": "id", "type": "text", "type_now": "bigint"},
        {"name": "city", "type": "text", "type_now": None},
    ]
    assert told["schema"]["not_in_source"] == ["name"]
    assert [warning["text"] for warning in told["warnings"]] == [
        "not in the source (any more), NULL in new rows: name"
    ]
    assert columns_of(warehouse, "customers") == before
    assert dw("run", "customers", "--allow-shrink", cwd=shop).returncode == 0
    assert columns_of(warehouse, "customers") == before | {"id": "text", "city": "text"}


def test_the_range_and_the_size_come_from_the_state_and_from_earlier_runs(dw, shop):
    dw("run", "orders", cwd=shop)
    dw("state", "set", "orders", "2026-01-01 10:01:00", cwd=shop)
    dw("run", "orders", cwd=shop)
    told = plan(dw, shop, "orders")
    assert told["reading"] == {
        "query": "orders",
        "everything": False,
        "why": "the last run came as far as 2026-01-01 10:01:40+00",
        "cursor_column": "updated_at",
        "cursor_from": "2026-01-01 10:01:40+00",
        "cursor_to": None,
        "rows_estimate": 41,
        "bytes_estimate": None,
        "estimated_by": "history",
    }
    assert told["cost"]["seconds_estimate"] > 0
    assert told["cost"]["lake_bytes_estimate"] > 0
    assert told["cost"]["from_runs"] == 2
    assert plan(dw, shop, "orders", "--limit", "7")["reading"]["rows_estimate"] == 7
    anew = plan(dw, shop, "orders", "--full-refresh")["reading"]
    assert (anew["everything"], anew["why"], anew["rows_estimate"]) == (True, "--full-refresh", 100)
    ranged = plan(dw, shop, "orders", "--from", "2026-01-01", "--to", "2026-01-02")["reading"]
    assert (ranged["cursor_from"], ranged["cursor_to"]) == ("2026-01-01", "2026-01-02")


def test_without_a_cursor_it_is_told_that_an_append_adds_everything_again(dw, shop, warehouse):
    configure(shop, "query: orders, write: append")
    first = plan(dw, shop, "orders")["reading"]
    assert (first["everything"], first["why"]) == (
        True,
        "nothing has been loaded yet, or its state was reset",
    )
    dw("run", "orders", cwd=shop)
    again = plan(dw, shop, "orders")["reading"]
    assert (again["everything"], again["why"]) == (True, "it has no cursor: all of it is added again")
    dw("run", "orders", cwd=shop)
    assert warehouse.execute("select count(*) from orders").fetchone() == (200,)


def test_a_source_that_keeps_its_own_place_gives_what_is_new(dw, shop):
    (shop / "in").mkdir()
    (shop / "in" / "one.csv").write_text("id,name\n1,Ada\n2,Grace\n", "utf-8")
    (shop / "sources" / "in.yaml").write_text(
        "protocol: files\npath: in\npipelines:\n  people: {query: '*.csv'}\n", "utf-8"
    )
    assert plan(dw, shop, "people")["schema"]["typing"] == "inferred"
    dw("run", "people", cwd=shop)
    told = plan(dw, shop, "people")["reading"]
    assert (told["everything"], told["why"]) == (False, "the source gives what has not been loaded yet")
    assert (told["rows_estimate"], told["estimated_by"]) == (None, None)


def test_a_snapshot_that_waits_is_told_and_the_cursor_is_the_one_after_it(dw, shop, warehouse):
    assert dw("run", "orders", cwd=shop, DW_TEST_CRASH_AT="commit").returncode != 0
    told = plan(dw, shop, "orders")
    assert [waiting["rows"] for waiting in told["waiting"]] == [100]
    assert told["reading"]["cursor_from"] == "2026-01-01 10:01:40+00"
    done = json.loads(dw("run", "orders", cwd=shop).stdout)
    assert done["healed_runs"] == [told["waiting"][0]["run_id"]]
    assert done["cursor_from"] == told["reading"]["cursor_from"]


def test_a_pipeline_that_runs_just_now_is_told_and_its_lock_is_not_taken(dw, shop, warehouse_url):
    with closing(connect(warehouse_url)) as holding:
        take_lock(holding, "shop.orders", "7f3a91c2")
        told = plan(dw, shop, "orders", code=1)
    assert told["error"] is None
    assert [(one["stops"], one["text"].split(",")[0]) for one in told["warnings"]] == [
        (True, "it is already running (run 7f3a91c2")
    ]


def test_what_contract_freeze_would_refuse_is_told(dw, shop):
    configure(shop, "query: orders, write: merge, key: [id], contract: freeze")
    dw("run", "orders", cwd=shop)
    assert plan(dw, shop, "orders")["ok"]
    change_source(shop, "alter table orders add column discount integer", "update orders set discount = 3")
    told = plan(dw, shop, "orders", code=1)
    assert told["warnings"][0]["stops"] and "(discount)" in told["warnings"][0]["text"]
    assert json.loads(dw("run", "orders", cwd=shop).stdout)["error"]["code"] == "DW-SCHEMA"


def test_with_a_contract_that_discards_no_column_comes(dw, shop):
    configure(shop, "query: orders, write: merge, key: [id], contract: discard_value")
    dw("run", "orders", cwd=shop)
    change_source(shop, "alter table orders add column discount integer", "update orders set discount = 3")
    told = plan(dw, shop, "orders")
    assert (told["ok"], told["schema"]["columns"]) == (True, [])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("query: orders, write: merge, key: [nr]", "key columns that the source does not have: nr"),
        (
            "query: orders, write: merge, key: [id], cursor: changed_at",
            "the source has no column changed_at, which is the cursor",
        ),
    ],
)
def test_a_column_that_is_not_there_is_told_and_stops_the_run(dw, shop, config, said):
    configure(shop, config)
    assert [one["text"] for one in plan(dw, shop, "orders", code=1)["warnings"] if one["stops"]] == [said]
    assert dw("run", "orders", cwd=shop).returncode == 1


def test_a_failure_and_a_missed_time_are_told(dw, shop, warehouse):
    dw("run", "orders", cwd=shop)
    rewrite(
        warehouse,
        "update etl_audit_log set started_at = started_at - interval '3 h',"
        " finished_at = finished_at - interval '3 h'",
    )
    (shop / "shop.db").rename(shop / "away.db")
    dw("run", "orders", cwd=shop)
    (shop / "away.db").rename(shop / "shop.db")
    texts = [one["text"] for one in plan(dw, shop, "orders")["warnings"]]
    assert texts[0].startswith("the last run failed: ")
    assert texts[1].startswith("it is late: every 1h, but the last good run was at ")


def test_people_read_it_on_stderr_and_programs_on_stdout(dw, shop):
    done = dw("run", "orders", "customers", "--dry-run", cwd=shop)
    assert [one["pipeline_name"] for one in json.loads(done.stdout)["plans"]] == [
        "shop.orders",
        "shop.customers",
    ]
    assert "shop.orders → public.orders\n" in done.stderr
    assert done.stderr.endswith("Nothing was changed.\n")
    failing = dw("run", "shop", "missing", "--dry-run", "-q", cwd=shop)
    assert failing.returncode == 1
    assert failing.stderr.startswith("broken.missing → public.missing\n")
    assert "shop.orders" not in failing.stderr


def test_one_query_without_a_project(dw, tmp_path, shop, warehouse_url, warehouse):
    config = tmp_path / "shop.json"
    config.write_text(json.dumps({"protocol": "sqlite", "database_path": str(shop / "shop.db")}), "utf-8")
    words = ("--config", str(config), "--query", "select id, total from orders", "--source", "shop")
    words += ("--table", "totals", "--lake", str(tmp_path / "lake"), "--warehouse", warehouse_url)
    told = json.loads(dw("run", *words, "--dry-run").stdout)
    assert (told["ok"], told["pipeline_name"], told["target_table"]) == (True, "default", "public.totals")
    assert [one["name"] for one in told["schema"]["columns"]][:2] == ["id", "total"]
    assert not (tmp_path / "lake").exists()
    assert warehouse.execute("select to_regclass('totals')").fetchone() == (None,)
    assert dw("run", *words).returncode == 0
