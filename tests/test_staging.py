"""The staging functions as the library offers them, on SQLite: no server is needed."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from dwcli.contract import IngestedItem, IngestionResult
from dwcli.staging import (
    ensure_audit_table,
    ensure_table_exists,
    load_parquet_files_to_dw,
    write_audit_record,
    write_ingestion_result_to_parquet,
)
from dwcli.staging.dw_schema import postgres_type


@pytest.fixture
def engine() -> Engine:
    return create_engine("sqlite:///:memory:")


def answered(*items: IngestedItem) -> IngestionResult:
    return IngestionResult(success=True, protocol="http", items=list(items))


# -- writer -------------------------------------------------------------------------------------------


def test_a_dict_payload_becomes_one_parquet_file_with_its_row(tmp_path: Path) -> None:
    paths = write_ingestion_result_to_parquet(
        answered(IngestedItem(payload={"id": 1, "name": "a"})), str(tmp_path), "orders"
    )

    assert len(paths) == 1
    assert pl.read_parquet(paths[0]).to_dicts() == [{"id": 1, "name": "a"}]


def test_a_list_of_dicts_keeps_every_row_and_every_key(tmp_path: Path) -> None:
    rows = [{"id": 1}, {"id": 2, "late": "x"}, {"id": 3}]
    (path,) = write_ingestion_result_to_parquet(answered(IngestedItem(payload=rows)), tmp_path, "orders")

    frame = pl.read_parquet(path)
    assert frame.height == 3
    assert frame["late"].to_list() == [None, "x", None]


def test_each_item_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    items = [IngestedItem(payload={"id": number}) for number in range(3)]
    paths = write_ingestion_result_to_parquet(answered(*items), tmp_path, "orders")

    assert len(set(paths)) == 3
    assert [pl.read_parquet(path)["id"][0] for path in paths] == [0, 1, 2]


def test_a_result_without_success_writes_nothing(tmp_path: Path) -> None:
    result = IngestionResult(success=False, protocol="http", items=[IngestedItem(payload={"id": 1})])

    assert write_ingestion_result_to_parquet(result, tmp_path, "orders") == []
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_items_writes_nothing(tmp_path: Path) -> None:
    assert write_ingestion_result_to_parquet(answered(), tmp_path, "orders") == []
    assert list(tmp_path.iterdir()) == []


def test_an_item_that_is_in_the_lake_already_is_not_written_again(tmp_path: Path) -> None:
    paths = write_ingestion_result_to_parquet(
        answered(IngestedItem(lake_path="/lake/kafka/batch.parquet")), tmp_path, "orders"
    )

    assert paths == ["/lake/kafka/batch.parquet"]
    assert list(tmp_path.iterdir()) == []


def test_files_stand_in_protocol_source_and_date(tmp_path: Path) -> None:
    (path,) = write_ingestion_result_to_parquet(answered(IngestedItem(payload={"id": 1})), tmp_path, "orders")

    protocol, source, day, name = Path(path).relative_to(tmp_path).parts
    assert (protocol, source, day) == ("http", "orders", datetime.now(UTC).strftime("%Y-%m-%d"))
    assert re.fullmatch(r"orders_\d{8}T\d{12}Z_\d{5}\.parquet", name)


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "a/b", "..", "", "x" * 300, "naïve ☂", "/abs", "-rf"])
def test_no_source_name_leads_out_of_the_lake(tmp_path: Path, name: str) -> None:
    lake = tmp_path / "lake"
    (path,) = write_ingestion_result_to_parquet(answered(IngestedItem(payload={"id": 1})), lake, name)

    assert Path(path).resolve().is_relative_to(lake / "http")
    assert len(Path(path).resolve().relative_to(lake).parts) == 4


def test_an_interrupted_write_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dwcli.staging.writer.os.fsync", full)
    with pytest.raises(Exception, match="cannot be written") as caught:
        write_ingestion_result_to_parquet(answered(IngestedItem(payload={"id": 1})), tmp_path, "orders")

    assert "No space left" in caught.value.why
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# -- schema -------------------------------------------------------------------------------------------


def test_ensure_table_exists_makes_the_table_once(engine: Engine) -> None:
    frame = pl.DataFrame({"id": [1], "name": ["a"]})
    ensure_table_exists(engine, "orders", frame)
    ensure_table_exists(engine, "orders", frame)

    names = [column["name"] for column in inspect(engine).get_columns("orders")]
    assert names == ["id", "name", "_loaded_at", "_source_file"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (pl.String, "text"),
        (pl.Int8, "bigint"),
        (pl.Int32, "bigint"),
        (pl.Int64, "bigint"),
        (pl.UInt32, "bigint"),
        (pl.UInt64, "numeric(20,0)"),
        (pl.Int128, "numeric"),
        (pl.Float32, "double precision"),
        (pl.Float64, "double precision"),
        (pl.Decimal(12, 2), "numeric(12,2)"),
        (pl.Boolean, "boolean"),
        (pl.Date, "date"),
        (pl.Time, "time"),
        (pl.Duration("us"), "interval"),
        (pl.Datetime("us"), "timestamptz"),
        (pl.Datetime("ns", "Europe/Paris"), "timestamptz"),
        (pl.Binary, "bytea"),
        (pl.List(pl.Int64), "jsonb"),
        (pl.Struct({"a": pl.Int64}), "jsonb"),
        (pl.Categorical, "text"),
        (pl.Enum(["a"]), "text"),
    ],
)
def test_every_polars_type_has_a_postgresql_type(dtype: pl.DataType, expected: str) -> None:
    assert postgres_type(pl.Series([], dtype=dtype).dtype) == expected


# -- loader -------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> list[str]:
    items = [
        IngestedItem(payload=[{"id": 1, "at": datetime(2024, 1, 1, tzinfo=UTC)}, {"id": 2, "at": None}]),
        IngestedItem(payload={"id": 3, "at": None}),
    ]
    return write_ingestion_result_to_parquet(answered(*items), tmp_path, "orders")


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


def test_a_file_is_loaded_with_every_row(engine: Engine, parquet: list[str]) -> None:
    assert load_parquet_files_to_dw(engine, parquet[:1], "orders") == 2
    assert count(engine, "orders") == 2


def test_several_files_add_up(engine: Engine, parquet: list[str]) -> None:
    assert load_parquet_files_to_dw(engine, parquet, "orders") == 3
    with engine.connect() as connection:
        files = (
            connection.execute(text("SELECT DISTINCT _source_file FROM orders ORDER BY 1")).scalars().all()
        )
    assert files == sorted(parquet)


def test_no_file_loads_nothing(engine: Engine) -> None:
    assert load_parquet_files_to_dw(engine, [], "orders") == 0


def test_a_missing_file_is_named_before_anything_is_loaded(engine: Engine, parquet: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        load_parquet_files_to_dw(engine, [parquet[0], "/nowhere/gone.parquet"], "orders")

    assert not inspect(engine).has_table("orders")


def test_given_a_connection_the_load_joins_its_transaction(engine: Engine, parquet: list[str]) -> None:
    ensure_table_exists(engine, "orders", pl.read_parquet(parquet[0]))
    with engine.connect() as connection:
        load_parquet_files_to_dw(connection, parquet, "orders")
        connection.rollback()

    assert count(engine, "orders") == 0


# -- audit --------------------------------------------------------------------------------------------


def record(engine: Engine, status: str, rows: int | None) -> None:
    write_audit_record(
        engine,
        "run-1",
        "shop.orders",
        "shop",
        "postgres",
        "public.orders",
        status,
        rows,
        2,
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 2, tzinfo=UTC),
        None if status == "success" else "it broke",
    )


def test_the_audit_table_is_made_once(engine: Engine) -> None:
    ensure_audit_table(engine)
    ensure_audit_table(engine)

    assert count(engine, "etl_audit_log") == 0
    assert [index["column_names"] for index in inspect(engine).get_indexes("etl_audit_log")] == [
        ["pipeline_name", "started_at"]
    ]


def test_an_older_audit_table_gets_the_columns_it_lacks(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE etl_audit_log (id INTEGER PRIMARY KEY, run_id TEXT UNIQUE)"))
    ensure_audit_table(engine)

    names = {column["name"] for column in inspect(engine).get_columns("etl_audit_log")}
    assert {"run_id", "status", "rows_read", "error_code"} <= names


def test_an_audit_record_is_one_row_with_its_values(engine: Engine) -> None:
    ensure_audit_table(engine)
    record(engine, "success", 7)

    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM etl_audit_log")).mappings().one()
    assert (row["run_id"], row["pipeline_name"], row["source_name"]) == ("run-1", "shop.orders", "shop")
    assert (row["protocol"], row["target_table"], row["status"]) == ("postgres", "public.orders", "success")
    assert (row["rows_loaded"], row["parquet_files"], row["error_message"]) == (7, 2, None)


def test_a_run_is_one_row_however_often_it_is_written(engine: Engine) -> None:
    ensure_audit_table(engine)
    record(engine, "running", None)
    record(engine, "failure", 0)

    with engine.connect() as connection:
        row = connection.execute(text("SELECT status, error_message FROM etl_audit_log")).one()
    assert tuple(row) == ("failure", "it broke")


def test_dates_and_nested_values_keep_their_meaning_in_the_lake(tmp_path: Path) -> None:
    rows = [{"day": date(2024, 2, 29), "tags": ["a", 1], "n": 2**70}, {"day": None, "tags": None, "n": 1}]
    (path,) = write_ingestion_result_to_parquet(answered(IngestedItem(payload=rows)), tmp_path, "orders")

    frame = pl.read_parquet(path)
    assert frame["day"][0] == date(2024, 2, 29)
    assert frame["tags"][0] == '["a", 1]'
    assert frame["n"].to_list() == [str(2**70), "1"]
