"""Faults of sources, names and places that are the subject of no other test."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from dwcli.connectors import create_connector
from dwcli.errors import ConfigError
from dwcli.events import Notice, ignore
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.project import load_project, select
from dwcli.staging import writer
from dwcli.warehouse.engine import make_engine
from tests.pipeline.runs import batches, rows_of, run

# -- schemas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "type_name"),
    [
        (1, 2**40, "bigint"),
        (2**40, 2**70, "numeric"),
        (1, Decimal("1.5"), "numeric"),
        (2**53 + 1, 0.5, "numeric"),
        (1, "x", "text"),
        (True, "x", "text"),
        (date(2024, 1, 31), datetime(2024, 1, 31, 12, tzinfo=UTC), "timestamp with time zone"),
        (date(2024, 1, 31), "x", "text"),
    ],
)
def test_a_column_becomes_wider_and_what_was_in_it_reads_the_same(
    warehouse_url: str, warehouse: Any, lake: Path, before: Any, after: Any, type_name: str
) -> None:
    run(warehouse_url, lake, batches([{"id": 1, "v": before}]), write="merge", key=("id",))
    run(warehouse_url, lake, batches([{"id": 2, "v": after}]), write="merge", key=("id",))
    back = run(warehouse_url, lake, batches([{"id": 3, "v": before}]), write="merge", key=("id",))

    kind = "select data_type from information_schema.columns where table_name = 't' and column_name = 'v'"
    assert rows_of(warehouse, kind) == [(type_name,)]
    (first,), (second,), (third,) = rows_of(warehouse, "select v from t order by id")
    assert first == third, "what is narrower again does not make the column narrow"
    assert back.result["schema_changes"] == []
    if type_name != "text":
        assert second == after
    if type_name == "numeric":
        assert first == before


def test_a_column_that_the_source_drops_or_renames_stays(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    told = []
    for row in ({"id": 1, "old": "a"}, {"id": 2, "new": "b"}, {"id": 2, "new": "c"}):
        outcome = run(warehouse_url, lake, batches([row]), write="merge", key=("id",))
        told.append([words for words in outcome.result["schema_changes"] if "not in what was read" in words])
    assert rows_of(warehouse, "select id, old, new from t order by id") == [(1, "a", None), (2, None, "c")]
    assert told == [[], ["column old was not in what was read: it stays, NULL in new rows"], []]


def test_more_columns_than_a_table_can_have_are_refused_before_anything_is_changed(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    wide = {f"c{number}": number for number in range(1700)}
    outcome = run(warehouse_url, lake, batches([wide]))
    assert outcome.result["status"] == "failure"
    assert "1,600" in str(outcome.result["error"]) or "1600" in str(outcome.result["error"])
    assert rows_of(warehouse, "select to_regclass('t')") == [(None,)]


def test_a_row_that_is_too_wide_for_postgresql_says_what_to_leave_out(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    wide = {f"c{number}": f"more than eighteen bytes in column {number}" for number in range(1500)}
    outcome = run(warehouse_url, lake, batches([wide]))
    assert outcome.result["status"] == "failure"
    assert outcome.result["error"]["message"] == "t cannot hold a row"
    assert "row is too big" in outcome.result["error"]["why"]
    assert rows_of(warehouse, "select to_regclass('t')") == [(None,)]


def test_a_key_that_is_too_long_for_an_index_says_so(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    noise = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))
    outcome = run(warehouse_url, lake, batches([{"id": noise}]), write="merge", key=("id",))
    assert outcome.result["status"] == "failure"
    assert "a key 2.7 kB at most" in outcome.result["error"]["why"]
    assert rows_of(warehouse, "select to_regclass('t')") == [(None,)]


def test_three_hundred_names_are_three_hundred_columns_on_every_run(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    reserved = [
        name for (name,) in rows_of(warehouse, "select word from pg_get_keywords() where catcode = 'R'")
    ]
    odd = [
        "", " ", "  ", "Id", "id", "ID", "1a", 'a"b', "a'b", "a`b", "a.b", "a%b", "a%sb", "a\nb", "a\tb",
        "a;b", "a--b", "a/*b", "\u202eab", "a\u200bb", "é", "e\u0301", "ß", "😀", "ctid", "xmin", "oid",
        "tableoid", "cmax", "_run_id", "_loaded_at", "_source", "x" * 63, "x" * 64, "x" * 70, "é" * 40,
        "é" * 41, "日" * 30, "日" * 21, "$1", ":a", "{a}", "../a", "con", "a b", "a  b", "A B", "a_b", "a-b",
    ]  # fmt: skip
    names = dict.fromkeys([*odd, *reserved])
    for number in range(300 - len(names)):
        names[f"{'n' * (60 + number % 6)}{number}{'É' * (number % 9)}"] = None
    row = {name: number for number, name in enumerate(names)}
    for _ in range(2):
        assert run(warehouse_url, lake, batches([row])).error is None

    mapped = dict(rows_of(warehouse, "select source_name, column_name from etl_columns"))
    assert len(row) >= 300
    assert len(set(mapped.values())) == len(mapped) == len(row)
    assert all(len(name.encode()) <= 63 for name in mapped.values())
    columns = psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, mapped.values()))
    query = psycopg.sql.SQL("select {} from t").format(columns)
    assert [sorted(values) for values in warehouse.execute(query)] == [sorted(row.values())] * 2
    assert [mapped[name] for name in ("id", "select", "a_b")] == ["id", "select", "a_b"]


# -- cursors ------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as source:
        source.execute("create table o (id integer primary key not null, at integer not null)")
        yield source


def load(url: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    config = {"protocol": "sqlite", "database_path": str(folder / "shop.db")}
    job = Job(
        pipeline="s.o", source="s", lake_name="s.o", query="o", schema="public", table="o",
        lake=folder / "lake",
        connector=lambda: create_connector(config),
        write="merge", key=("id",), cursor="at",
    )  # fmt: skip
    events: list[Any] = []
    engine = make_engine(url)
    result, error = attempt(job, engine, RunOptions(), events.append)
    engine.dispose()
    assert error is None
    return result, [event.text for event in events if isinstance(event, Notice)]


def test_a_source_that_was_made_anew_is_told(
    warehouse_url: str, tmp_path: Path, shop: sqlite3.Connection
) -> None:
    """Its numbers begin again below the cursor, so nothing of it would ever be read."""
    shop.executemany("insert into o values (?, ?)", [(n, n) for n in range(1, 501)])
    load(warehouse_url, tmp_path)
    assert load(warehouse_url, tmp_path)[1] == [], "nothing new is no alarm"
    shop.execute("delete from o")
    shop.executemany("insert into o values (?, ?)", [(n, n) for n in range(1, 11)])
    result, (notice,) = load(warehouse_url, tmp_path)
    assert result["rows_read"] == 0
    assert "at 500" in notice and "dw run s.o --full-refresh" in notice


# -- a project ----------------------------------------------------------------------------------------


def project(root: Path, url: str, pipelines: str) -> Path:
    (root / "sources").mkdir(parents=True)
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {url}\n", "utf-8")
    database = root / "shop.db"
    (root / "sources" / "shop.yaml").write_text(
        f"protocol: sqlite\ndatabase_path: {database}\npipelines:\n{pipelines}", "utf-8"
    )
    with closing(sqlite3.connect(database)) as source, source:
        source.execute("create table o (id integer primary key not null, at integer not null)")
        source.executemany("insert into o values (?, ?)", [(n, n) for n in range(100)])
    return root


def run_all(root: Path, url: str, *names: str, jobs: int = 1) -> list[dict[str, Any]]:
    found = load_project(root)
    return run_project(found, select(found, list(names)), url, RunOptions(jobs=jobs), ignore)


def test_one_failure_of_five_leaves_the_others_done(
    warehouse_url: str, warehouse: Any, tmp_path: Path
) -> None:
    lines = [f"  p{n}: {{query: {'nowhere' if n == 2 else 'o'}, write: append}}\n" for n in range(5)]
    root = project(tmp_path / "shop", warehouse_url, "".join(lines))
    results = run_all(root, warehouse_url, *(f"p{n}" for n in range(5)))
    assert [one["status"] for one in results] == ["success"] * 2 + ["failure"] + ["success"] * 2
    for n in (0, 1, 3, 4):
        assert rows_of(warehouse, f"select count(*) from p{n}") == [(100,)]


def test_twenty_pipelines_at_once_neither_wait_for_one_another_nor_mix(
    warehouse_url: str, warehouse: Any, tmp_path: Path
) -> None:
    lines = [
        f"  p{n}: {{query: select * from o where id % 20 >= {n}, write: merge, key: [id]}}\n"
        for n in range(20)
    ]
    root = project(tmp_path / "shop", warehouse_url, "".join(lines))
    for _ in range(2):
        results = run_all(root, warehouse_url, *(f"p{n}" for n in range(20)), jobs=20)
        assert {one["status"] for one in results} == {"success"}
    for n in range(20):
        assert rows_of(warehouse, f"select count(*), min(id) from p{n}") == [(100 - 5 * n, n)]


def test_two_pipelines_with_one_table_are_refused(warehouse_url: str, tmp_path: Path) -> None:
    lines = "  a: {query: o, target: t}\n  b: {query: o, target: t}\n"
    root = project(tmp_path / "shop", warehouse_url, lines)
    with pytest.raises(ConfigError, match="both load public"):
        load_project(root)


def test_the_same_pipeline_in_two_folders_has_one_lock(
    warehouse_url: str, warehouse: Any, tmp_path: Path
) -> None:
    """Two machines with a copy of one project each: the lock is where the table is."""
    roots = [project(tmp_path / name, warehouse_url, "  p: {query: o, write: append}\n") for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        (first,), (second,) = pool.map(lambda root: run_all(root, warehouse_url, "p"), roots)
    overlap = (
        "select count(*) from etl_audit_log a join etl_audit_log b on a.id < b.id and a.status = 'success'"
        " and b.status = 'success' and a.started_at < b.finished_at and b.started_at < a.finished_at"
    )
    assert rows_of(warehouse, overlap) == [(0,)]
    for one in (first, second):
        assert one["status"] == "success" or one["error"]["code"] == "DW-LOCKED"


# -- warehouse and lake -------------------------------------------------------------------------------


def test_a_warehouse_that_may_only_be_read_says_so(warehouse_url: str, warehouse: Any, lake: Path) -> None:
    """As a standby does after a failover."""
    run(warehouse_url, lake, batches([{"id": 1}]))
    name = urlsplit(warehouse_url).path[1:]
    warehouse.execute(f'alter database "{name}" set default_transaction_read_only = on'.encode())
    outcome = run(warehouse_url, lake, batches([{"id": 2}]))
    assert outcome.result["error"]["code"] == "DW-WAREHOUSE"
    assert "read-only" in str(outcome.result["error"])
    warehouse.execute(f'alter database "{name}" reset default_transaction_read_only'.encode())
    assert run(warehouse_url, lake, batches([{"id": 2}])).error is None
    assert rows_of(warehouse, "select id from t order by id") == [(1,), (2,)]


def test_a_role_that_owns_its_schema_and_nothing_else_is_enough(
    warehouse_url: str, warehouse: Any, lake: Path
) -> None:
    role, name = f"loader_{os.getpid()}", urlsplit(warehouse_url).path[1:]
    warehouse.execute(f"create role {role} login password 'p' nosuperuser nocreatedb".encode())
    try:
        warehouse.execute(b"revoke all on schema public from public")
        warehouse.execute(f"grant create, usage on schema public to {role}".encode())
        parts = psycopg.conninfo.conninfo_to_dict(warehouse_url)
        url = f"postgresql://{role}:p@127.0.0.1:{parts['port']}/{name}"
        for write in ("append", "replace", "merge"):
            outcome = run(url, lake, batches([{"id": 1, "v": write}]), write=write, key=("id",))
            assert outcome.error is None
    finally:
        warehouse.execute(f"drop owned by {role} cascade".encode())
        warehouse.execute(f"drop role {role}".encode())


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_lake_is_its_owners_alone(warehouse_url: str, lake: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        run(warehouse_url, lake, batches([{"id": 1}]))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [lake, *lake.rglob("*")]}
    assert {path.suffix for path in modes if path.is_file()} >= {".parquet", ".json"}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_warehouse_has_the_rows(
    warehouse_url: str, warehouse: Any, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves is what was fsynced."""
    seen: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def told_fsync(handle: int) -> None:
        seen.append(f"fsync {kind(str(Path(f'/proc/self/fd/{handle}').readlink()))}")
        fsync(handle)

    def told_rename(path: Path, target: Path) -> Path:
        assert rows_of(warehouse, "select count(*) from etl_load") == [(0,)]
        seen.append(f"rename {kind(str(target))}")
        return rename(path, target)

    def kind(path: str) -> str:
        return "manifest" if "manifest" in path else "rows" if ".parquet" in path else "folder"

    monkeypatch.setattr(writer.os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "rename", told_rename)
    assert run(warehouse_url, lake, batches([{"id": 1}])).error is None
    assert seen == [
        *("fsync rows", "rename rows", "fsync folder"),
        *("fsync manifest", "rename manifest", "fsync folder"),
    ]
    assert rows_of(warehouse, "select count(*) from etl_load") == [(1,)]
