"""A table rebuilt from the lake is the table that was loaded."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dwcli.contract import Cursor, IngestedItem
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.replay import Stretch, replay
from dwcli.warehouse.engine import connect
from tests.pipeline.runs import Source, batches, rows_of, run


def again(url: str, lake: Path, stretch: Stretch | None = None, **config: Any) -> Any:
    """Replay the pipeline `s.p`; its source would fail if it were asked."""
    source = Source(lambda cursor: (_ for _ in ()).throw(AssertionError("the source was asked")))
    settings: dict[str, Any] = {"write": "append"} | config
    job = Job("s.p", "s", "s.p", source.connector, "q", "public", "t", lake, protocol="values", **settings)
    return replay(job, partial(connect, url), stretch or Stretch(), lambda event: None)


def table(connection: psycopg.Connection) -> list[Any]:
    """Every value of the table, but when it was loaded."""
    columns = rows_of(
        connection,
        "select string_agg(quote_ident(column_name), ', ' order by column_name)"
        " from information_schema.columns where table_name = 't' and column_name <> '_loaded_at'",
    )[0][0]
    return sorted(rows_of(connection, f"select row({columns})::text from t"))


def changing(*answers: list[dict[str, Any]]) -> Source:
    """A source that gives the next answer at each read."""
    left = list(answers)

    def answer(cursor: Cursor) -> list[IngestedItem]:
        return [IngestedItem(payload=left.pop(0))]

    return Source(answer)


@pytest.mark.parametrize("lost", ["delete from t", "drop table t", "update t set total = 0"])
@pytest.mark.parametrize("write", ["append", "merge", "replace"])
def test_a_table_is_rebuilt_as_it_was(
    warehouse_url: str, warehouse: Any, lake: Path, write: str, lost: str
) -> None:
    source = changing(
        [{"id": 1, "total": 1}, {"id": 2, "total": 2}],
        [{"id": 2, "total": 2.5, "note": "é\t\\N"}, {"id": 3, "total": 3}],
    )
    key = {"key": ("id",)} if write == "merge" else {}
    for _ in range(2):
        assert run(warehouse_url, lake, source, write=write, **key).error is None
    before = table(warehouse)

    warehouse.execute(lost)
    result, error = again(warehouse_url, lake, write=write, **key)

    assert error is None
    assert table(warehouse) == before
    assert result["status"] == "success"


def test_rows_left_out_stay_out(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    source = batches([{"id": 1, "total": 1}, {"id": None, "total": 2}])
    config = {"cursor": "id", "cursor_nulls": "exclude"}
    assert run(warehouse_url, lake, source, **config).error is None
    again(warehouse_url, lake, **config)
    assert rows_of(warehouse, "select id, total from t") == [(1, 1)]


def test_only_what_came_since_the_last_full_load_is_needed(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    source = changing([{"id": 1, "total": 1}], [{"id": 2, "total": 2}], [{"id": 3, "total": 3}])
    run(warehouse_url, lake, source)
    run(warehouse_url, lake, source, RunOptions(full_refresh=True))
    run(warehouse_url, lake, source)
    for path in sorted(lake.rglob("*.json"))[:1]:
        path.unlink()

    again(warehouse_url, lake)

    assert rows_of(warehouse, "select id from t order by id") == [(2,), (3,)]


def test_a_snapshot_that_is_gone_is_told_and_nothing_changes(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    source = changing([{"id": 1, "total": 1}], [{"id": 2, "total": 2}])
    run(warehouse_url, lake, source)
    run(warehouse_url, lake, source)
    min(lake.rglob("*.json")).unlink()
    before = table(warehouse)

    result, error = again(warehouse_url, lake)

    assert result["error"]["code"] == "DW-LAKE"
    assert "--full-refresh" in result["error"]["hint"]
    assert error is not None and table(warehouse) == before


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_a_flipped_byte_is_found_and_nothing_changes(
    warehouse_url: str, warehouse: Any, lake: Path, place: int
) -> None:
    run(warehouse_url, lake, batches([{"id": 1, "total": 1}], [{"id": 2, "total": 2}]))
    before = table(warehouse)
    path = sorted(lake.rglob("*.parquet"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) * place // 100] ^= 0x01
    path.write_bytes(data)

    result, _ = again(warehouse_url, lake)

    assert result["error"]["code"] == "DW-LAKE"
    assert path.name in result["error"]["message"]
    assert table(warehouse) == before


def test_one_run_of_an_append_is_put_back(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    source = changing([{"id": 1, "total": 1}], [{"id": 2, "total": 2}])
    first = run(warehouse_url, lake, source).result["run_id"]
    run(warehouse_url, lake, source)
    warehouse.execute("update t set total = 7")

    again(warehouse_url, lake, Stretch(run_id=first))

    assert rows_of(warehouse, "select id, total from t order by id") == [(1, 1), (2, 7)]


def test_a_superseded_run_is_not_brought_back(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    source = changing([{"id": 1, "total": 1}], [{"id": 2, "total": 2}])
    first = run(warehouse_url, lake, source).result["run_id"]
    run(warehouse_url, lake, source, RunOptions(full_refresh=True))

    result, _ = again(warehouse_url, lake, Stretch(run_id=first))

    assert "loaded everything anew since" in result["error"]["message"]
    assert rows_of(warehouse, "select id from t") == [(2,)]


def test_a_stretch_of_time(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    source = changing([{"id": 1, "total": 1}], [{"id": 2, "total": 2}], [{"id": 3, "total": 3}])
    for _ in range(3):
        run(warehouse_url, lake, source, write="merge", key=("id",))
    (start,), (end,) = rows_of(warehouse, "select loaded_at from etl_load order by 1 offset 1")
    assert isinstance(start, datetime)
    warehouse.execute("delete from t")

    again(warehouse_url, lake, Stretch(start=start, end=end), write="merge", key=("id",))

    assert rows_of(warehouse, "select id from t") == [(2,)]


def test_the_next_run_goes_on_where_the_last_one_ended(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    first = batches([{"id": 1, "total": 1}, {"id": 2, "total": 2}])
    run(warehouse_url, lake, first, cursor="id")
    again(warehouse_url, lake, cursor="id")
    second = batches([{"id": 2, "total": 2}, {"id": 3, "total": 3}])
    assert run(warehouse_url, lake, second, cursor="id").error is None
    assert second.asked[0].start == "2"
    assert rows_of(warehouse, "select id from t order by id") == [(1,), (2,), (3,)]
