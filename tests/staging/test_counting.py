"""The rows of tables, for a screen that waits for nothing."""

from __future__ import annotations

import time

import psycopg

from dwcli.staging.counting import COUNTED_UP_TO, Rows, rows_in
from dwcli.warehouse import connect


def test_small_tables_are_counted_and_large_ones_estimated(warehouse: psycopg.Connection) -> None:
    warehouse.execute(
        'create schema "Größe"; create table "Größe"."t ""1" as select generate_series(1, 7) as n'
    )
    warehouse.execute("create table empty (n integer)")
    large = COUNTED_UP_TO * 2
    warehouse.execute("create table large as select generate_series(1, %s) as n", (large,))
    warehouse.execute("analyze large")
    asked = [("Größe", 't "1'), ("public", "empty"), ("public", "large"), ("public", "no"), ("none", "t")]
    assert rows_in(warehouse, asked) == {
        asked[0]: Rows(7, True),
        asked[1]: Rows(0, True),
        asked[2]: Rows(large, False),
    }
    assert rows_in(warehouse, []) == {}


def test_a_table_that_a_load_has_locked_is_not_waited_for(
    warehouse: psycopg.Connection, warehouse_url: str
) -> None:
    warehouse.execute("create table t as select generate_series(1, 7) as n")
    warehouse.execute("analyze t")
    with connect(warehouse_url) as load, connect(warehouse_url) as screen:
        load.execute("lock table t in access exclusive mode")
        began = time.monotonic()
        assert rows_in(screen, [("public", "t")]) == {("public", "t"): Rows(7, False)}
        assert time.monotonic() - began < 10
        # the session goes on, with its own time-outs
        assert screen.execute("show statement_timeout").fetchone() == ("0",)


def test_a_table_that_may_not_be_read_is_estimated(warehouse: psycopg.Connection) -> None:
    warehouse.execute("create table t as select generate_series(1, 7) as n")
    warehouse.execute("analyze t")
    warehouse.execute("create role reader_of_counts")
    try:
        warehouse.execute("set role reader_of_counts")
        assert rows_in(warehouse, [("public", "t")]) == {("public", "t"): Rows(7, False)}
    finally:
        warehouse.execute("reset role")
        warehouse.execute("drop role reader_of_counts")
