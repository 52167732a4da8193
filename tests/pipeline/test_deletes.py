"""Rows that leave the source: ignored, marked or deleted, and never by mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dwcli.contract import Cursor, IngestedItem
from dwcli.pipeline.record import RunOptions
from tests.pipeline.runs import Source, rows_of, run
from tests.pipeline.test_replay import again, table

MERGED: dict[str, Any] = {"write": "merge", "key": ("id",), "cursor": "at"}


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": n, "at": n, "name": f"n{n}"} for n in numbers]


def holding(held: list[dict[str, Any]]) -> Source:
    """A source with these rows, which gives those at or beyond the cursor."""

    def answer(cursor: Cursor) -> list[IngestedItem]:
        start = int(cursor.start) if cursor.start is not None else 0
        return [IngestedItem(payload=[row for row in held if row["at"] >= start])]

    return Source(answer)


def ids(warehouse: Any, where: str = "true") -> list[int]:
    return [row[0] for row in rows_of(warehouse, f"select id from t where {where} order by id")]


def test_hard_deletes_take_out_what_the_source_no_longer_has(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, holding(rows(1, 2, 3)), deletes="hard", **MERGED)
    outcome = run(warehouse_url, lake, holding(rows(1, 3, 4)), deletes="hard", **MERGED)
    assert outcome.error is None
    assert ids(warehouse) == [1, 3, 4]
    assert (outcome.result["rows_deleted"], outcome.result["rows_inserted"]) == (1, 1)


def test_soft_deletes_mark_rows_and_take_the_mark_off_again(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    for held in (rows(1, 2, 3), rows(1, 3)):
        assert run(warehouse_url, lake, holding(held), deletes="soft", **MERGED).error is None
    assert ids(warehouse, "_deleted_at is not null") == [2]
    marked = rows_of(warehouse, "select _deleted_at from t where id = 2")

    run(warehouse_url, lake, holding(rows(1, 3)), deletes="soft", **MERGED)
    assert rows_of(warehouse, "select _deleted_at from t where id = 2") == marked

    back = run(warehouse_url, lake, holding(rows(1, 2, 3)), deletes="soft", **MERGED)
    assert back.error is None
    assert ids(warehouse, "_deleted_at is not null") == []


def test_without_deletes_the_rows_stay(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, holding(rows(1, 2)), **MERGED)
    run(warehouse_url, lake, holding(rows(2)), **MERGED)
    assert ids(warehouse) == [1, 2]


@pytest.mark.parametrize("left", [0, 49])
@pytest.mark.parametrize("deletes", ["soft", "hard"])
def test_a_source_that_lost_most_of_its_rows_stops_the_run(
    warehouse_url: str, warehouse: Any, lake: Path, deletes: str, left: int
) -> None:
    run(warehouse_url, lake, holding(rows(*range(1, 201))), deletes=deletes, **MERGED)
    before = table(warehouse)

    emptied = holding(rows(*range(1, left + 1)))
    stopped = run(warehouse_url, lake, emptied, deletes=deletes, **MERGED)
    assert stopped.result["error"]["code"] == "DW-SHRANK"
    assert "--allow-shrink" in stopped.result["error"]["hint"]
    assert table(warehouse) == before

    allowed = run(warehouse_url, lake, emptied, RunOptions(allow_shrink=True), deletes=deletes, **MERGED)
    assert allowed.error is None
    assert allowed.result["rows_deleted"] == 200 - left


def test_a_replace_by_nothing_stops_the_run(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, holding(rows(1, 2)), write="replace")
    stopped = run(warehouse_url, lake, holding([]), write="replace")
    assert stopped.result["error"]["code"] == "DW-SHRANK"
    assert ids(warehouse) == [1, 2]
    assert run(warehouse_url, lake, holding([]), RunOptions(allow_shrink=True), write="replace").error is None
    assert ids(warehouse) == []


@pytest.mark.parametrize("deletes", ["soft", "hard"])
def test_what_is_gone_is_gone_after_a_replay(
    warehouse_url: str, warehouse: Any, lake: Path, deletes: str
) -> None:
    for held in (rows(1, 2, 3), rows(1, 3), rows(1, 2, 3, 4), rows(1, 2, 4)):
        assert run(warehouse_url, lake, holding(held), deletes=deletes, **MERGED).error is None
    before = (
        ids(warehouse),
        ids(warehouse, "_run_id is not null")
        if deletes == "hard"
        else ids(warehouse, "_deleted_at is not null"),
    )
    warehouse.execute("drop table t")
    again(warehouse_url, lake, deletes=deletes, **MERGED)
    after = (
        ids(warehouse),
        ids(warehouse, "_run_id is not null")
        if deletes == "hard"
        else ids(warehouse, "_deleted_at is not null"),
    )
    assert after == before


def test_a_run_that_dies_before_its_commit_is_finished_with_its_deletes(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, holding(rows(1, 2, 3)), deletes="hard", **MERGED)
    run(warehouse_url, lake, holding(rows(1, 3)), deletes="hard", **MERGED)
    # as if the last run's transaction had been lost with the warehouse's
    warehouse.execute(
        "delete from etl_load where run_id = (select run_id from etl_load order by loaded_at desc limit 1)"
    )
    warehouse.execute("insert into t (id, at, name) values (2, 2, 'n2')")
    healed = run(warehouse_url, lake, holding(rows(1, 3)), deletes="ignore", **MERGED)
    assert len(healed.result["healed_runs"]) == 1
    assert ids(warehouse) == [1, 3]


def test_keys_of_several_columns_and_types(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    def keyed(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"a": a, "B b": b, "at": 1} for a, b in pairs]

    config: dict[str, Any] = {"write": "merge", "key": ("a", "B b"), "deletes": "hard"}
    run(warehouse_url, lake, holding(keyed(("x", 0.1), ("x", 0.2), ("y'", 0.1))), **config)
    run(warehouse_url, lake, holding(keyed(("x", 0.2))), **config)
    assert rows_of(warehouse, "select a, b_b from t") == [("x", 0.2)]
