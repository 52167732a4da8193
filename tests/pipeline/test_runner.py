"""One run after another against a real PostgreSQL: what arrives, what stays, what is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

import dwcli.ahead
from dwcli.connectors import Connector
from dwcli.contract import Cursor, IngestedItem
from dwcli.errors import (
    ConfigError,
    ConnectionFailed,
    DwError,
    KeyRefused,
    PipelineLocked,
    RunStopped,
    SchemaRefused,
    SourceData,
    SourceError,
    UsageError,
)
from dwcli.events import BatchLoaded, Event, Notice, RunFinished, SchemaChanged
from dwcli.pipeline.lock import take_lock
from dwcli.pipeline.record import Idle, Job, RunOptions
from dwcli.pipeline.runner import attempt, close_idle
from dwcli.staging.writer import read_manifest, snapshots
from dwcli.warehouse import connect
from dwcli.warehouse.engine import make_engine
from tests.audit_log import rewrite
from tests.pipeline.runs import Source, batches, rows_of, run

DAY = datetime(2024, 1, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    return DAY + timedelta(days=number)


def audit(warehouse: psycopg.Connection) -> list[tuple[Any, ...]]:
    return rows_of(warehouse, "select status, rows_loaded, error_code from etl_audit_log order by id")


# -- write dispositions -------------------------------------------------------------------------------


def test_append_adds_every_batch_and_says_so(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    outcome = run(warehouse_url, lake, batches([{"id": 1}], [{"id": 2}, {"id": 3}]))

    assert (outcome.result["status"], outcome.result["rows_loaded"]) == ("success", 3)
    assert rows_of(warehouse, "select id from t order by id") == [(1,), (2,), (3,)]
    assert rows_of(warehouse, "select count(distinct _source_file), count(_run_id) from t") == [(2, 3)]
    assert audit(warehouse) == [("success", 3, None)]


def test_replace_leaves_only_what_the_source_has_now(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, batches([{"id": 1}, {"id": 2}]), write="replace")
    outcome = run(warehouse_url, lake, batches([{"id": 9}]), write="replace")

    assert rows_of(warehouse, "select id from t") == [(9,)]
    assert outcome.result["rows_deleted"] == 2


def test_readers_see_the_old_table_until_a_replace_commits(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]), write="replace")
    seen: list[Any] = []

    def slowly(cursor: Cursor) -> Iterator[IngestedItem]:
        yield IngestedItem(payload=[{"id": 2}])
        seen.extend(rows_of(warehouse, "select id from t"))
        yield IngestedItem(payload=[{"id": 3}])

    run(warehouse_url, lake, Source(slowly), write="replace")

    assert seen == [(1,)]
    assert rows_of(warehouse, "select id from t order by id") == [(2,), (3,)]


def merge(url: str, lake: Path, *rows: list[dict[str, Any]], **config: Any) -> Any:
    return run(url, lake, batches(*rows), write="merge", key=("id",), cursor="at", **config)


def test_merge_inserts_new_rows_and_updates_changed_ones(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    merge(warehouse_url, lake, [{"id": 1, "at": day(1), "v": "a"}, {"id": 2, "at": day(1), "v": "b"}])
    rows = [
        {"id": 2, "at": day(2), "v": "B"},
        {"id": 1, "at": day(1), "v": "a"},
        {"id": 3, "at": day(2), "v": "c"},
    ]
    outcome = merge(warehouse_url, lake, rows)

    assert rows_of(warehouse, "select id, v from t order by id") == [(1, "a"), (2, "B"), (3, "c")]
    assert (outcome.result["rows_inserted"], outcome.result["rows_updated"]) == (1, 1)


def test_an_update_finds_room_on_the_page_of_its_row(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    rows = [{"id": number, "at": day(1), "v": number} for number in range(2_000)]
    pages = "select id, (ctid::text::point)[0] from t where id % 100 = 0 order by id"
    merge(warehouse_url, lake, rows)
    before = rows_of(warehouse, pages)
    merge(warehouse_url, lake, [{**row, "v": -1} for row in rows[::100]])
    run(warehouse_url, lake, batches(rows), table="appended")

    assert rows_of(warehouse, "select count(*) from t where v = -1") == [(20,)]
    assert rows_of(warehouse, pages) == before
    options = "select relname, reloptions from pg_class where relname in ('t', 'appended') order by 1"
    assert rows_of(warehouse, options) == [("appended", None), ("t", ["fillfactor=90"])]


@pytest.mark.parametrize("loaded_before", [False, True])
def test_of_several_rows_with_one_key_the_newest_wins(
    warehouse_url: str, warehouse: Any, lake: Path, loaded_before: bool
) -> None:
    if loaded_before:
        merge(warehouse_url, lake, [{"id": 9, "at": day(0), "v": "old"}])
    rows = [{"id": 1, "at": day(2), "v": "newest"}, {"id": 1, "at": day(1), "v": "older"}]
    merge(warehouse_url, lake, rows, [{"id": 1, "at": day(2), "v": "newest, and last to arrive"}])

    assert rows_of(warehouse, "select v from t where id = 1") == [("newest, and last to arrive",)]


def test_a_row_read_late_does_not_put_back_what_is_newer(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    merge(warehouse_url, lake, [{"id": 1, "at": day(5), "v": "new"}])
    merge(warehouse_url, lake, [{"id": 1, "at": day(1), "v": "stale"}])

    assert rows_of(warehouse, "select v from t") == [("new",)]


@pytest.mark.parametrize("loaded_before", [False, True])
def test_rows_without_a_key_are_refused_with_their_number(
    warehouse_url: str, warehouse: Any, lake: Path, loaded_before: bool
) -> None:
    if loaded_before:
        merge(warehouse_url, lake, [{"id": 9, "at": day(0)}])
    outcome = merge(warehouse_url, lake, [{"id": None, "at": day(1)}, {"id": 1, "at": day(1)}])

    assert isinstance(outcome.error, KeyRefused)
    assert "1 of 2 rows" in outcome.error.message
    left = rows_of(warehouse, "select to_regclass('t') is not null")[0][0]
    assert left is loaded_before
    if left:
        assert rows_of(warehouse, "select id from t") == [(9,)]


def test_a_key_that_is_not_in_the_data_is_named(warehouse_url: str, lake: Path) -> None:
    outcome = run(warehouse_url, lake, batches([{"id": 1}]), write="merge", key=("idd",))

    assert isinstance(outcome.error, KeyRefused)
    assert "idd" in outcome.error.message
    assert "id" in outcome.error.hint


def test_json_columns_can_be_merged(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    items = [IngestedItem(payload=[{"id": 1, "at": day(1), "j": '{"a": 1}'}], types={"j": "json"})]
    for _ in range(2):
        outcome = run(
            warehouse_url, lake, Source(lambda cursor: items), write="merge", key=("id",), cursor="at"
        )
    assert outcome.result["rows_updated"] == 0
    assert rows_of(warehouse, "select j::text from t") == [('{"a": 1}',)]


# -- cursors ------------------------------------------------------------------------------------------


def test_the_next_run_begins_where_the_last_one_ended(warehouse_url: str, lake: Path) -> None:
    source = batches([{"id": 1, "at": day(1)}, {"id": 2, "at": day(3)}])
    for _ in range(2):
        run(warehouse_url, lake, source, write="merge", key=("id",), cursor="at")

    assert [cursor.start for cursor in source.asked] == [None, "2024-01-04 00:00:00+00"]


def test_lookback_reads_behind_the_cursor(warehouse_url: str, lake: Path) -> None:
    source = batches([{"id": 1, "at": day(1)}])
    for _ in range(2):
        run(warehouse_url, lake, source, write="merge", key=("id",), cursor="at", lookback="15m")

    assert source.asked[1].start == "2024-01-01 23:45:00+00"


def test_lookback_on_a_number_is_a_number(warehouse_url: str, lake: Path) -> None:
    source = batches([{"id": 100}])
    for _ in range(2):
        run(warehouse_url, lake, source, write="merge", key=("id",), cursor="id", lookback=10)

    assert source.asked[1].start == "90"


def test_an_append_takes_ties_at_the_boundary_once(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    config = {"write": "append", "cursor": "at"}
    first = [{"id": 1, "at": 5, "j": {"a": 1}}, {"id": 1, "at": 5, "j": {"a": 1}}]
    run(warehouse_url, lake, batches(first), **config)
    later = [*first, first[0], {"id": 2, "at": 5, "j": None}, {"id": 3, "at": 6, "j": None}]
    run(warehouse_url, lake, batches(later), **config)
    run(warehouse_url, lake, batches([{"id": 3, "at": 6, "j": None}]), **config)

    assert rows_of(warehouse, "select id, count(*) from t group by id order by id") == [
        (1, 3),
        (2, 1),
        (3, 1),
    ]


def test_a_row_from_the_future_is_loaded_but_does_not_move_the_cursor(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    far = datetime(2099, 1, 1, tzinfo=UTC)
    outcome = merge(warehouse_url, lake, [{"id": 1, "at": day(1)}, {"id": 2, "at": far}])

    assert outcome.result["cursor_to"] == "2024-01-02 00:00:00+00"
    assert rows_of(warehouse, "select count(*) from t") == [(2,)]


@pytest.mark.parametrize(("policy", "rows"), [("error", 0), ("include", 2), ("exclude", 1)])
def test_rows_without_a_cursor_follow_the_policy(
    warehouse_url: str, warehouse: Any, lake: Path, policy: str, rows: int
) -> None:
    outcome = merge(
        warehouse_url, lake, [{"id": 1, "at": day(1)}, {"id": 2, "at": None}], cursor_nulls=policy
    )

    if policy == "error":
        assert isinstance(outcome.error, SourceData)
        assert "1 rows have no value in the cursor column at" in outcome.error.message
    else:
        assert outcome.error is None
        assert rows_of(warehouse, "select count(*) from t") == [(rows,)]


def test_a_hostile_cursor_value_stays_a_value(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    hostile = "2024'; drop table t; --"
    source = batches([{"id": 1, "at": hostile}])
    for _ in range(2):
        run(warehouse_url, lake, source, write="append", cursor="at")

    assert source.asked[1].start == hostile
    assert rows_of(warehouse, "select id, at from t") == [(1, hostile)]


def test_a_full_refresh_reads_everything_and_forgets_what_was_there(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    for write in ("append", "merge"):
        config: dict[str, Any] = {"pipeline": f"s.{write}", "table": write, "write": write, "cursor": "id"}
        config |= {"key": ("id",)} if write == "merge" else {}
        run(warehouse_url, lake, batches([{"id": 1}, {"id": 2}]), **config)
        source = batches([{"id": 1}])
        run(warehouse_url, lake, source, RunOptions(full_refresh=True), **config)

        assert source.asked[0].start is None
        assert rows_of(warehouse, f"select id from {write}") == [(1,)]


def test_a_backfill_reads_its_range_and_leaves_the_cursor(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    merge(warehouse_url, lake, [{"id": 1, "at": day(9)}])
    source = batches([{"id": 2, "at": day(2)}])
    options = RunOptions(start="2024-01-02", end="2024-01-05")
    run(warehouse_url, lake, source, options, write="merge", key=("id",), cursor="at")

    assert (source.asked[0].start, source.asked[0].end) == ("2024-01-02", "2024-01-05")
    assert rows_of(warehouse, "select cursor_value from etl_state") == [("2024-01-10 00:00:00+00",)]


def test_a_trial_with_limit_is_followed_by_a_run_that_reads_everything(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    source = batches([{"id": 1}, {"id": 2}], [{"id": 3}])
    run(warehouse_url, lake, source, RunOptions(limit=1), cursor="id")
    assert rows_of(warehouse, "select id from t") == [(1,)]

    run(warehouse_url, lake, source, cursor="id")
    assert rows_of(warehouse, "select id from t order by id") == [(1,), (2,), (3,)]
    assert source.asked[1].start is None


# -- schema -------------------------------------------------------------------------------------------


def test_a_last_value_that_is_no_number_widens_the_column(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    outcome = run(warehouse_url, lake, batches([{"n": 1}, {"n": 20}], [{"n": "N/A"}]))

    assert rows_of(warehouse, "select n from t order by 1") == [("1",), ("20",), ("N/A",)]
    assert "column n: bigint is now text" in outcome.result["schema_changes"]
    assert SchemaChanged("s.p", "column n: bigint is now text") in outcome.events


def test_a_column_without_values_takes_the_type_of_the_first_value(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, batches([{"id": 1, "n": None}]))
    run(warehouse_url, lake, batches([{"id": 2, "n": 7}]))

    assert rows_of(warehouse, "select n, pg_typeof(n)::text from t order by id") == [
        (None, "bigint"),
        (7, "bigint"),
    ]


def test_the_rows_of_a_first_load_say_where_they_come_from(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    first = run(warehouse_url, lake, batches([{"id": 1}], [{"id": 2, "new": "x"}])).result["run_id"]
    second = run(warehouse_url, lake, batches([{"id": 3}])).result["run_id"]

    said = "select id, _run_id, _ingested_at is not null, _loaded_at is not null from t order by id"
    assert rows_of(warehouse, said) == [
        (1, first, True, True),
        (2, first, True, True),
        (3, second, True, True),
    ]
    warehouse.execute("insert into t (id) values (4)")
    assert rows_of(warehouse, "select _run_id, _ingested_at from t where id = 4") == [(None, None)]


def test_new_columns_are_added_and_old_rows_have_none(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]))
    run(warehouse_url, lake, batches([{"id": 2, "Neu & Groß": "x"}]))

    assert rows_of(warehouse, "select id, neu_groß from t order by id") == [(1, None), (2, "x")]
    assert rows_of(warehouse, "select change from etl_schema_history order by id") == [
        ("new table t",),
        ("where and when its rows came from",),
        ("new column neu_groß (text)",),
    ]


def test_names_that_fold_to_one_stay_two_columns(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    row = {"id": 1, "ID": 2, "Id": 3, "x" * 70: 4, "x" * 69: 5, "ctid": 6, "_run_id": 7, "": 8, "1a": 9}
    run(warehouse_url, lake, batches([row]))
    run(warehouse_url, lake, batches([row]))

    columns = rows_of(warehouse, "select column_name from information_schema.columns where table_name = 't'")
    assert len(columns) == len(row) + 4
    named = dict(rows_of(warehouse, "select source_name, column_name from etl_columns"))
    assert named["id"] == "id"
    assert len(set(named.values())) == len(row)
    assert all(len(column.encode()) <= 63 for column in named.values())


def test_a_frozen_contract_refuses_a_new_column_and_changes_nothing(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]), contract="freeze")
    outcome = run(warehouse_url, lake, batches([{"id": 2, "extra": 1}]), contract="freeze")

    assert isinstance(outcome.error, SchemaRefused)
    assert "new column extra (bigint)" in outcome.error.message
    assert rows_of(warehouse, "select id from t") == [(1,)]


def test_types_given_under_columns_win(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    columns = {"total": "numeric(12,2)", "code": "text", "span": "interval"}
    rows = [{"total": 1.5, "code": 7, "span": "1 day 02:00:00"}]
    run(warehouse_url, lake, batches(rows), columns=columns)

    assert rows_of(warehouse, "select total::text, code, span::text from t") == [
        ("1.50", "7", "1 day 02:00:00")
    ]


def test_a_value_that_does_not_fit_is_an_error_without_the_value(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    outcome = run(warehouse_url, lake, batches([{"d": "secret-pan-4111"}]), columns={"d": "date"})

    assert isinstance(outcome.error, DwError)
    assert outcome.error.code == "DW-VALUE"
    assert "secret-pan" not in str(outcome.result) + str(audit(warehouse))
    assert rows_of(warehouse, "select to_regclass('t')") == [(None,)]


def test_nul_characters_are_taken_out_and_counted(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    outcome = run(warehouse_url, lake, batches([{"a": "x\0y", "j": {"k": "\0"}}, {"a": "clean", "j": {}}]))

    assert rows_of(warehouse, "select a from t order by a") == [("clean",), ("xy",)]
    assert outcome.result["values_changed"] == {"a: NUL removed": 1, "j: NUL removed": 1}


def test_one_nul_far_down_a_batch_is_found(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    values = [None, "", "a text that is no short one", *(f"row {number}" for number in range(20_000)), "x\0y"]
    outcome = run(warehouse_url, lake, batches([{"a": value} for value in values]))

    assert outcome.result["values_changed"] == {"a: NUL removed": 1}
    assert rows_of(warehouse, "select count(*), count(a), max(a) from t") == [(20_004, 20_003, "xy")]


def test_views_grants_and_indexes_survive_every_disposition(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, batches([{"id": 1, "at": day(1)}]))
    warehouse.execute("create view v as select id from t")
    warehouse.execute("create index mine on t (at)")
    run(warehouse_url, lake, batches([{"id": 2, "at": day(1)}]), write="replace")
    merge(warehouse_url, lake, [{"id": 3, "at": day(2)}])

    assert rows_of(warehouse, "select id from v order by id") == [(2,), (3,)]
    assert rows_of(warehouse, "select to_regclass('mine') is not null") == [(True,)]


# -- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["append", "replace", "merge"])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_source_that_breaks_leaves_the_table_as_it_was(
    warehouse_url: str, warehouse: Any, lake: Path, write: str, loaded_before: bool
) -> None:
    config = {"write": write, "key": ("id",) if write == "merge" else (), "cursor": "id"}
    if loaded_before:
        run(warehouse_url, lake, batches([{"id": 1}]), **config)

    def broken(cursor: Cursor) -> Iterator[IngestedItem]:
        yield IngestedItem(payload=[{"id": 2, "new": "x"}])
        raise SourceError("the connection broke", hint="try again")

    source = Source(broken)
    outcome = run(warehouse_url, lake, source, **config)

    assert isinstance(outcome.error, SourceError)
    assert outcome.result["error"]["hint"] == "try again"
    assert source.closed == 1
    exists = rows_of(warehouse, "select to_regclass('t') is not null")[0][0]
    assert exists is loaded_before
    if exists:
        assert rows_of(warehouse, "select * from t")[0][0] == 1
        assert rows_of(warehouse, "select cursor_value from etl_state") in ([("1",)], [(None,)])
    assert audit(warehouse)[-1] == ("failure", 0, "DW-SOURCE")
    files = [path.name for path in lake.rglob("*") if path.is_file()]
    assert len(files) == (2 if loaded_before else 0)


def test_an_interrupt_rolls_back_and_leaves_an_audit_row(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    def interrupted(cursor: Cursor) -> Iterator[IngestedItem]:
        yield IngestedItem(payload=[{"id": 1}])
        raise KeyboardInterrupt

    outcome = run(warehouse_url, lake, Source(interrupted))

    assert isinstance(outcome.error, KeyboardInterrupt)
    assert outcome.result["error"]["code"] == RunStopped.code
    assert audit(warehouse) == [("failure", 0, "DW-STOPPED")]
    assert rows_of(warehouse, "select to_regclass('t')") == [(None,)]


def test_a_second_run_of_the_same_pipeline_is_told_who_holds_it(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def held(cursor: Cursor) -> Iterator[IngestedItem]:
        inside.set()
        leave.wait(30)
        yield IngestedItem(payload=[{"id": 1}])

    first = threading.Thread(target=run, args=(warehouse_url, lake, Source(held)))
    first.start()
    try:
        assert inside.wait(30)
        outcome = run(warehouse_url, lake, batches([{"id": 2}]))
    finally:
        leave.set()
        first.join()

    assert isinstance(outcome.error, PipelineLocked)
    assert "s.p is already running (run " in outcome.error.message
    assert rows_of(warehouse, "select id from t") == [(1,)]


def test_runs_that_share_an_engine_and_its_pool_follow_each_other(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    engine = create_engine(warehouse_url.replace("postgresql://", "postgresql+psycopg://", 1))
    job = Job("s.p", "s", "s.p", batches([{"id": 1}]).connector, "q", "public", "t", lake)
    try:
        errors = [attempt(job, engine, RunOptions(), lambda event: None)[1] for _ in range(4)]
    finally:
        engine.dispose()

    assert errors == [None] * 4
    assert rows_of(warehouse, "select count(*) from t") == [(4,)]


def test_a_run_that_died_is_marked_by_the_next(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]))
    rewrite(warehouse, "update etl_audit_log set status = 'running', finished_at = null")
    run(warehouse_url, lake, batches([{"id": 2}]))

    assert audit(warehouse) == [("failure", 1, "DW-INTERRUPTED"), ("success", 1, None)]


def test_a_snapshot_without_a_receipt_is_loaded_without_the_source(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    told = (
        "select snapshot, bytes_staged, cursor_from, cursor_to, values_changed, rows_deleted"
        " from etl_audit_log order by id"
    )
    merge(warehouse_url, lake, [{"id": 1, "at": day(1), "v": "\0a"}])
    before = rows_of(warehouse, told)
    rewrite(
        warehouse,
        "update etl_audit_log set status = 'running', snapshot = null, bytes_staged = null, cursor_to = null,"
        " values_changed = null, rows_deleted = null",
    )
    for statement in (
        "drop table t",
        "delete from etl_state",
        "delete from etl_load",
        "delete from etl_columns",
    ):
        warehouse.execute(statement)
    source = batches([])
    outcome = run(warehouse_url, lake, source, write="merge", key=("id",), cursor="at")

    assert rows_of(warehouse, "select id, v from t") == [(1, "a")]
    assert source.asked[0].start == "2024-01-02 00:00:00+00"
    assert len(outcome.result["healed_runs"]) == 1
    # the audit row is as if the run had ended by itself
    assert rows_of(warehouse, told)[0] == before[0]
    assert before[0][0].endswith(".manifest.json")


def test_a_damaged_snapshot_is_never_loaded(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]))
    warehouse.execute("drop table t")
    warehouse.execute("delete from etl_load")
    (parquet,) = lake.rglob("*.parquet")
    data = bytearray(parquet.read_bytes())
    data[len(data) // 2] ^= 1
    parquet.write_bytes(data)
    run(warehouse_url, lake, batches([{"id": 2}]))

    assert rows_of(warehouse, "select id from t") == [(2,)]


def test_files_of_a_run_that_never_finished_are_swept(warehouse_url: str, lake: Path) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]))
    (manifest,) = snapshots(lake / "values" / "s.p")
    stem = manifest.name.removesuffix(".manifest.json").replace("s.p_2", "s.p_1")
    for name in (f"{stem}.open", f"{stem}_00000.parquet", f"{stem}_00001.parquet.tmp"):
        (manifest.parent / name).write_bytes(b"half")
    run(warehouse_url, lake, batches([{"id": 2}]))

    names = {path.name for path in manifest.parent.iterdir()}
    assert not [name for name in names if name.startswith(stem)]
    assert read_manifest(manifest).files[0].name in names


def test_old_snapshots_leave_the_lake_once_they_are_loaded(warehouse_url: str, lake: Path) -> None:
    run(warehouse_url, lake, batches([{"id": 1}]), keep=3600.0)
    (old,) = snapshots(lake / "values" / "s.p")
    run(warehouse_url, lake, batches([{"id": 2}]), keep=3600.0)
    assert old.exists()

    os.utime(old, (0, 0))
    run(warehouse_url, lake, batches([{"id": 3}]), keep=3600.0)
    assert not old.exists()
    assert len(list(lake.rglob("*.parquet"))) == 2


# -- positions ----------------------------------------------------------------------------------------


def test_a_position_commits_with_the_rows_and_is_acknowledged_after(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    source = Source(lambda cursor: [IngestedItem(payload=[{"id": 1}], position={"offset": 7})], stream=True)
    run(warehouse_url, lake, source)
    run(warehouse_url, lake, source)

    assert source.acknowledged == [{"offset": 7}, {"offset": 7}]
    assert [cursor.position for cursor in source.asked] == [None, {"offset": 7}]


def offsets(broken: bool) -> Source:
    """A stream of the offsets 1 to 3 that gives what lies behind the position it is given."""

    def answer(cursor: Cursor) -> list[IngestedItem]:
        begin = cursor.position["offset"] if cursor.position else 0
        rows = [{"offset": number} for number in range(begin + 1, 4)]
        return [IngestedItem(payload=rows, position={"offset": 3})] if rows else []

    source = Source(answer, stream=True)
    made = source.connector

    def connector() -> Connector:
        connector = made()
        if broken:

            def acknowledge(client: Any, position: Any) -> None:
                raise ConnectionFailed("the broker is gone", "lost")

            connector.module.acknowledge = acknowledge
        return connector

    source.connector = connector  # type: ignore[method-assign]
    return source


def test_a_failed_acknowledgement_leaves_the_run_a_success(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    outcome = run(warehouse_url, lake, offsets(broken=True))

    assert outcome.error is None and outcome.result["status"] == "success"
    assert outcome.result["rows_loaded"] == 3
    assert rows_of(warehouse, "select status, rows_loaded from etl_audit_log") == [("success", 3)]
    assert any("the broker is gone" in e.text for e in outcome.events if isinstance(e, Notice))
    assert len(list(lake.rglob("*.parquet"))) == 1

    again = run(warehouse_url, lake, offsets(broken=False))
    assert again.result["status"] == "success" and again.result["rows_loaded"] == 0
    assert rows_of(warehouse, 'select "offset" from t order by 1') == [(1,), (2,), (3,)]


def test_a_signal_after_the_commit_ends_the_command_and_not_the_run(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    source = offsets(broken=False)
    made = source.connector

    def connector() -> Connector:
        def acknowledge(client: Any, position: Any) -> None:
            raise KeyboardInterrupt

        connector = made()
        connector.module.acknowledge = acknowledge
        return connector

    source.connector = connector  # type: ignore[method-assign]
    outcome = run(warehouse_url, lake, source)

    assert isinstance(outcome.error, KeyboardInterrupt)
    assert outcome.result["status"] == "success"
    assert rows_of(warehouse, "select status from etl_audit_log") == [("success",)]
    assert rows_of(warehouse, "select count(*) from t") == [(3,)]


def test_a_source_without_a_position_is_not_told_anything(warehouse_url: str, lake: Path) -> None:
    source = batches([{"id": 1}])
    source.stream = True
    run(warehouse_url, lake, source)
    assert source.acknowledged == []


def test_a_source_that_cannot_be_closed_does_not_make_a_failure(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    source = batches([{"id": 1}])
    made = source.connector

    def connector() -> Connector:
        def close(client: Any) -> None:
            raise OSError("already gone")

        connector = made()
        connector.module.close = close
        return connector

    source.connector = connector  # type: ignore[method-assign]
    assert run(warehouse_url, lake, source).result["status"] == "success"
    assert rows_of(warehouse, "select status from etl_audit_log") == [("success",)]


# -- one connection for several pipelines -------------------------------------------------------------


def test_pipelines_of_a_source_share_its_connection(warehouse_url: str, lake: Path) -> None:
    source, idle = batches([{"id": 1}]), {}
    for name in ("s.a", "s.b", "s.c"):
        run(warehouse_url, lake, source, pipeline=name, lake_name=name, table=name[-1], idle=idle)
    assert (source.connected, source.closed, len(idle)) == (1, 0, 1)
    close_idle(idle)
    assert (source.closed, idle) == (1, {})


def test_a_connection_is_made_anew_after_a_failure_a_long_wait_and_for_a_stream(
    warehouse_url: str, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cursor: Cursor) -> list[IngestedItem]:
        raise SourceData("broken")

    idle: dict[str, Idle] = {}
    failing = Source(fail)
    assert run(warehouse_url, lake, failing, idle=idle).result["status"] == "failure"
    assert (failing.closed, idle) == (1, {})

    stream = batches([{"id": 1}])
    stream.stream = True
    run(warehouse_url, lake, stream, idle=idle)
    assert (stream.closed, idle) == (1, {})

    monkeypatch.setattr("dwcli.pipeline.runner.IDLE_SECONDS", -1.0)
    source = batches([{"id": 1}])
    run(warehouse_url, lake, source, idle=idle)
    run(warehouse_url, lake, source, idle=idle)
    assert (source.connected, source.closed) == (2, 1)
    close_idle(idle)


def test_a_stream_is_not_replaced(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    """What is acknowledged may be gone from the source: the next run would replace it by nothing."""
    source = Source(lambda cursor: [IngestedItem(payload=[{"id": 1}], position=1)], stream=True)
    error = run(warehouse_url, lake, source, write="replace").error

    assert isinstance(error, ConfigError) and "write: append" in error.hint
    assert not source.asked and not source.acknowledged


def test_a_message_that_is_gone_deletes_no_row(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    source = Source(lambda cursor: [IngestedItem(payload=[{"id": 1}], position=1)], stream=True)
    error = run(warehouse_url, lake, source, write="merge", key=("id",), deletes="soft").error

    assert isinstance(error, ConfigError) and not source.asked


def test_what_a_source_forgets_is_not_read_again(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    source = Source(lambda cursor: [IngestedItem(payload=[{"id": 1}], position=1)], stream=True, forgets=True)
    assert run(warehouse_url, lake, source).error is None
    again = run(warehouse_url, lake, source, RunOptions(full_refresh=True)).error

    assert isinstance(again, UsageError) and "dw replay s.p" in again.hint
    assert len(source.asked) == 1 and rows_of(warehouse, "select id from t") == [(1,)]


def test_rows_that_a_batch_replaces_go_in_the_same_transaction(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    def item(path: str, value: int, changed: bool) -> IngestedItem:
        replaces = {"_source_path": path} if changed else {}
        return IngestedItem(payload=[{"_source_path": path, "v": value}], replaces=replaces)

    run(warehouse_url, lake, Source(lambda cursor: [item("a.csv", 1, False), item("b.csv", 2, False)]))
    outcome = run(warehouse_url, lake, Source(lambda cursor: [item("a.csv", 10, True)]))

    assert rows_of(warehouse, "select _source_path, v from t order by 1") == [("a.csv", 10), ("b.csv", 2)]
    assert outcome.result["rows_deleted"] == 1


# -- events -------------------------------------------------------------------------------------------


def test_events_tell_each_batch_and_the_end(warehouse_url: str, lake: Path) -> None:
    outcome = run(warehouse_url, lake, batches([{"id": 1}], [{"id": 2}]))

    assert [event.rows for event in outcome.events if isinstance(event, BatchLoaded)] == [1, 1]
    assert isinstance(outcome.events[-1], RunFinished)
    assert outcome.events[-1].result == outcome.result


def test_a_run_that_ends_does_not_wait_for_a_silent_source(
    warehouse_url: str, warehouse: Any, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is closed, which ends its read, before anybody waits for the thread that reads."""
    monkeypatch.setattr(dwcli.ahead, "JOIN_SECONDS", 3600)
    closed, reading, ends = threading.Event(), threading.Event(), list[bool]()

    def answer(cursor: Cursor) -> Iterator[IngestedItem]:
        yield IngestedItem(payload=[{"id": 1}])
        reading.set()
        ends.append(closed.wait(20))
        raise OSError("closed")

    source = Source(answer)
    connector = source.connector()
    connector.module.close = lambda client: closed.set()  # type: ignore[attr-defined]
    source.connector = lambda: connector  # type: ignore[method-assign]

    def stop(event: Event) -> None:
        if isinstance(event, BatchLoaded):
            assert reading.wait(60)
            raise KeyboardInterrupt

    job = Job("s.p", "s", "s.p", source.connector, "q", "public", "t", lake)
    engine = make_engine(warehouse_url)
    try:
        _, error = attempt(job, engine, RunOptions(), stop)
    finally:
        engine.dispose()
    assert isinstance(error, KeyboardInterrupt)
    assert ends == [True]


def test_a_lock_that_its_holder_has_just_let_go_is_taken(
    warehouse_url: str, warehouse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the try and the question who holds it, the holder ends: then nobody does."""
    with connect(warehouse_url, autocommit=True) as first, connect(warehouse_url, autocommit=True) as second:
        take_lock(first, "s.p", "first")

        def ended(session: psycopg.Connection, pipeline: str) -> str | None:
            first.execute("select pg_advisory_unlock_all()")
            return None

        monkeypatch.setattr("dwcli.pipeline.lock.holder", ended)
        take_lock(second, "s.p", "second")
        monkeypatch.undo()
        with pytest.raises(PipelineLocked, match="run second"):
            take_lock(first, "s.p", "first")
