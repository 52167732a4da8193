"""What `verify` finds between source, lake and warehouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dwcli.pipeline.record import Job
from dwcli.pipeline.verify import Finding, verify
from tests.pipeline.runs import Source, batches, run

ROWS = [{"id": n, "total": n / 4, "note": f"n{n}", "at": n} for n in range(1, 11)]


def findings(warehouse: Any, lake: Path, source: Source, **config: Any) -> dict[str, Finding]:
    """Verify the pipeline `s.p` against a source."""
    settings: dict[str, Any] = {"write": "merge", "key": ("id",), "cursor": "at"} | config
    job = Job("s.p", "s", "s.p", source.connector, "q", "public", "t", lake, protocol="values", **settings)
    return {finding.part: finding for finding in verify(job, warehouse)}


@pytest.fixture
def loaded(warehouse_url: str, lake: Path) -> None:
    outcome = run(warehouse_url, lake, batches(ROWS), write="merge", key=("id",), cursor="at")
    assert outcome.error is None


def test_what_is_the_same_is_said_to_be(loaded: None, warehouse: Any, lake: Path) -> None:
    found = findings(warehouse, lake, batches(ROWS))
    assert {part: finding.ok for part, finding in found.items()} == {
        "lake": True,
        "receipts": True,
        "source": True,
    }
    assert found["source"].detail == "10 rows, the same in the warehouse"
    assert found["lake"].detail == "1 file, 10 rows: every byte is as it was written"


def test_missing_changed_and_gone_rows_are_counted_and_named(
    loaded: None, warehouse: Any, lake: Path
) -> None:
    warehouse.execute("delete from t where id = 3")
    warehouse.execute("update t set total = 7, note = null where id = 4")
    warehouse.execute("update t set note = 'other' where id = 5")

    found = findings(warehouse, lake, batches(ROWS[:9]))["source"]

    assert not found.ok
    assert found.detail == (
        "of 9 rows 1 missing, 2 with other values in total (1), note (2) (key 10, 3, 4, 5);"
        " 1 row no longer in the source"
    )
    assert found.hint == "dw run s.p --full-refresh"


def test_rows_beyond_the_cursor_are_none_of_the_last_run(loaded: None, warehouse: Any, lake: Path) -> None:
    newer = [*ROWS[:9], ROWS[9] | {"total": 99, "at": 20}, {"id": 11, "total": 0, "note": "", "at": 21}]
    found = findings(warehouse, lake, batches(newer))["source"]
    assert found.ok
    assert found.detail == "11 rows, the same in the warehouse; 2 newer rows for the next run"


def test_nothing_is_changed_by_looking(loaded: None, warehouse: Any, lake: Path) -> None:
    before = warehouse.execute("select t::text, xmin::text from t order by id").fetchall()
    odd = [ROWS[0] | {"total": "text", "new": 1}]
    findings(warehouse, lake, batches(odd))
    assert warehouse.execute("select t::text, xmin::text from t order by id").fetchall() == before


def test_rows_without_a_key_are_counted_as_often_as_they_stand(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    twice = [{"line": "a"}, {"line": "a"}, {"line": "b"}, {"line": None}]
    run(warehouse_url, lake, batches(twice), write="replace")
    config = {"write": "replace", "key": (), "cursor": None}
    assert findings(warehouse, lake, batches(twice), **config)["source"].ok
    other = batches([{"line": "a"}, {"line": "b"}, {"line": "b"}, {"line": None}])
    assert findings(warehouse, lake, other, **config)["source"].detail == "of 4 rows 1 missing, 1 too many"


def test_a_flipped_byte_in_the_lake_is_named(loaded: None, warehouse: Any, lake: Path) -> None:
    (path,) = lake.rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    found = findings(warehouse, lake, batches(ROWS))["lake"]
    assert not found.ok
    assert path.name in found.detail


def test_a_snapshot_that_waits_is_told(loaded: None, warehouse: Any, lake: Path) -> None:
    warehouse.execute("delete from etl_load")
    found = findings(warehouse, lake, batches(ROWS))["receipts"]
    assert (found.ok, found.hint) == (False, "dw run s.p")


def test_a_stream_is_not_read_twice(loaded: None, warehouse: Any, lake: Path) -> None:
    stream = batches(ROWS)
    stream.stream = True
    assert "stream" in findings(warehouse, lake, stream)["source"].detail
    assert stream.asked == []
