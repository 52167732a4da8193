"""`write: scd2`: versions of rows, from when and until when each was the one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dwcli.pipeline.record import RunOptions
from tests.pipeline.runs import batches, rows_of, run
from tests.pipeline.test_replay import again

HISTORY: dict[str, Any] = {"write": "scd2", "key": ("id",)}
SHOWN = "select id, name, _valid_to is null, _is_current from t order by id, _valid_from"


def named(*pairs: tuple[int, str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in pairs]


def test_a_changed_row_ends_its_version_and_begins_the_next(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    run(warehouse_url, lake, batches(named((1, "a"), (2, "b"))), **HISTORY)
    changed = run(warehouse_url, lake, batches(named((1, "a"), (2, "B"), (3, "c"))), **HISTORY)
    assert (changed.result["rows_inserted"], changed.result["rows_updated"]) == (1, 1)
    assert rows_of(warehouse, SHOWN) == [
        (1, "a", True, True),
        (2, "b", False, False),
        (2, "B", True, True),
        (3, "c", True, True),
    ]
    ends = "select o._valid_to = n._valid_from from t o join t n on o.id = n.id and n._is_current"
    assert rows_of(warehouse, ends + " where not o._is_current") == [(True,)]


def test_the_same_rows_again_change_nothing(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    for _ in range(3):
        run(warehouse_url, lake, batches(named((1, "a"), (2, "b"))), **HISTORY)
    run(warehouse_url, lake, batches(named((1, "a"))), RunOptions(full_refresh=True), **HISTORY)
    assert rows_of(warehouse, SHOWN) == [(1, "a", True, True), (2, "b", True, True)]


def test_of_two_versions_in_one_run_the_newest_stands(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, batches(named((1, "a"), (1, "b"))), **HISTORY)
    run(warehouse_url, lake, batches(named((1, "c")), named((1, "d"))), **HISTORY)
    assert rows_of(warehouse, SHOWN) == [(1, "b", False, False), (1, "d", True, True)]


def test_a_row_that_is_gone_ends_and_may_come_back(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    for rows in (named((1, "a"), (2, "b")), named((1, "a")), named((1, "a"), (2, "b"))):
        done = run(warehouse_url, lake, batches(rows), deletes="soft", **HISTORY)
        assert done.error is None
    assert rows_of(warehouse, SHOWN) == [
        (1, "a", True, True),
        (2, "b", False, False),
        (2, "b", True, True),
    ]


def test_a_replay_gives_the_same_history(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    for rows in (named((1, "a"), (2, "b")), named((1, "A")), named((1, "A"), (2, "b"), (3, "c"))):
        run(warehouse_url, lake, batches(rows), deletes="soft", **HISTORY)
    everything = "select id, name, _valid_from, _valid_to, _is_current from t order by id, _valid_from"
    before = rows_of(warehouse, everything)
    again(warehouse_url, lake, deletes="soft", **HISTORY)
    assert rows_of(warehouse, everything) == before
    warehouse.execute("drop table t")
    again(warehouse_url, lake, deletes="soft", **HISTORY)
    assert rows_of(warehouse, everything) == before


def test_a_table_that_was_merged_gets_a_history(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    run(warehouse_url, lake, batches(named((1, "a"), (2, "b"))), write="merge", key=("id",))
    warehouse.execute("drop index t_id_dw_key")
    assert run(warehouse_url, lake, batches(named((1, "A"))), **HISTORY).error is None
    assert rows_of(warehouse, SHOWN) == [
        (1, "a", False, False),
        (1, "A", True, True),
        (2, "b", True, True),
    ]


@pytest.mark.parametrize("later", ["number", "column"])
def test_columns_grow_beside_old_versions(warehouse_url: str, warehouse: Any, lake: Path, later: str) -> None:
    run(warehouse_url, lake, batches([{"id": 1, "v": 1}]), **HISTORY)
    row = {"id": 1, "v": "x"} if later == "number" else {"id": 1, "v": 1, "w": 2}
    run(warehouse_url, lake, batches([row]), **HISTORY)
    assert rows_of(warehouse, "select v::text, _is_current from t order by _valid_from") == [
        ("1", False),
        (str(row["v"]), True),
    ]
