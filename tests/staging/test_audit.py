"""The audit log's table in PostgreSQL: its index, and that many first runs at once make it in peace."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import Engine

from dwcli.staging import ensure_audit_table
from dwcli.staging.audit import INDEX, latest_runs
from dwcli.warehouse import connect, make_engine
from tests.audit_log import rewrite


@pytest.fixture
def engine(warehouse_url: str) -> Iterator[Engine]:
    engine = make_engine(warehouse_url)
    yield engine
    engine.dispose()


def indexed(warehouse: psycopg.Connection) -> list[str]:
    found = warehouse.execute(
        "select indexdef from pg_indexes where tablename = 'etl_audit_log' and indexname = %s", (INDEX,)
    )
    return [definition.partition("(")[2] for (definition,) in found]


def fill(warehouse: psycopg.Connection, pipelines: int, runs: int) -> None:
    warehouse.execute(
        "insert into etl_audit_log (run_id, pipeline_name, source_name, protocol, target_table, status,"
        " started_at, finished_at)"
        " select format('%%s-%%s', p, r), 'shop.p' || p, 'shop', 'sqlite', 'public.p',"
        " case when r = 1 then 'success' else 'failure' end, now() - r * interval '1 minute', now()"
        " from generate_series(1, %s) p, generate_series(1, %s) r",
        (pipelines, runs),
    )


def test_a_warehouse_of_an_older_dw_gets_the_index(engine, warehouse):
    ensure_audit_table(engine)
    warehouse.execute(f"drop index {INDEX}")
    ensure_audit_table(engine)
    ensure_audit_table(engine)
    assert indexed(warehouse) == ["pipeline_name, started_at DESC)"]


@pytest.mark.parametrize(
    "statement",
    [
        "delete from etl_audit_log where run_id = '1-2'",
        "truncate etl_audit_log",
        "update etl_audit_log set rows_loaded = 5 where run_id = '1-1'",
        "update etl_audit_log set status = 'failure' where run_id = '1-1'",
    ],
)
def test_what_the_log_says_of_loaded_runs_stays(engine, warehouse, statement):
    ensure_audit_table(engine)
    fill(warehouse, 1, 2)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only") as refused:
        warehouse.execute(statement)
    assert "disable trigger user" in refused.value.diag.message_hint
    told = warehouse.execute("select run_id, status, rows_loaded from etl_audit_log order by 1").fetchall()
    assert told == [("1-1", "success", None), ("1-2", "failure", None)]
    warehouse.execute("update etl_audit_log set status = 'success' where run_id = '1-2'")


def test_a_log_of_an_older_dw_becomes_append_only(engine, warehouse):
    ensure_audit_table(engine)
    warehouse.execute("drop function etl_audit_log_append_only cascade")
    ensure_audit_table(engine)
    ensure_audit_table(engine)
    with pytest.raises(psycopg.errors.RestrictViolation):
        warehouse.execute("delete from etl_audit_log")


def test_the_index_that_is_there_waits_for_nobody(engine, warehouse, warehouse_url):
    ensure_audit_table(engine)
    with connect(warehouse_url) as other:  # a run between its audit row and COMMIT
        other.execute("lock table etl_audit_log in row exclusive mode")
        with engine.connect() as connection:
            connection.exec_driver_sql("set lock_timeout = '1s'")
            ensure_audit_table(connection)
            connection.rollback()


def test_first_runs_at_once_all_make_the_table(engine, warehouse, warehouse_url):
    def first(_: int) -> None:
        own = make_engine(warehouse_url)
        ensure_audit_table(own)
        own.dispose()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(first, range(8)))
    assert len(indexed(warehouse)) == 1


def test_a_log_that_belongs_to_another_role_is_used_without_the_index(engine, warehouse):
    ensure_audit_table(engine)
    warehouse.execute(f"drop index {INDEX}")
    warehouse.execute("create role guest_of_audit")
    try:
        warehouse.execute("grant usage, create on schema public to guest_of_audit")
        warehouse.execute("grant all on etl_audit_log to guest_of_audit")
        with engine.begin() as connection:
            connection.exec_driver_sql("set local role guest_of_audit")
            ensure_audit_table(connection)
            assert connection.exec_driver_sql("select count(*) from etl_audit_log").scalar() == 0
        assert indexed(warehouse) == []
    finally:
        warehouse.execute("drop owned by guest_of_audit")
        warehouse.execute("drop role guest_of_audit")


def test_the_last_runs_are_found_by_the_index(engine, warehouse):
    ensure_audit_table(engine)
    fill(warehouse, 3, 20)
    found = latest_runs(warehouse, 7, ["shop.p1", "shop.p3", "shop.new"])
    assert list(found) == ["shop.p1", "shop.p3"]
    assert [run["run_id"] for run in found["shop.p1"]] == [f"1-{n}" for n in (*range(7, 0, -1),)][::-1]
    warehouse.execute("update etl_audit_log set status = 'success' where run_id = '3-20'")
    rewrite(warehouse, "update etl_audit_log set status = 'failure' where run_id = '3-1'")
    assert [run["run_id"] for run in latest_runs(warehouse, 2)["shop.p3"]] == ["3-1", "3-2", "3-20"]
